# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 900
#
# Every format as a guest's disk (tests/lib/conform.sh), on /dev/mapper with the kernel's
# backend and by cowd's own ring.
. tests/lib/xenlab.sh
. tests/lib/conform.sh
require_cmd jq qemu-img
xen_up --module -t 800

PATH=$BUILD/tests/lab:$PATH
modprobe -a loop xen-blkback
cd "$TMP"
at_exit 'cd /; xl destroy g1 >/dev/null 2>&1; cowctl stop --force vm >/dev/null 2>&1 || true'
disk=/dev/xvda
conform_state=/tmp/state
conform_mib=24

serve_node() {
	cowd --frontend=dm --log-level=error -p "$1" vm "$2" >path || fail "cowd"
}
begin_node() {
	name=vm
	serve_node "$@"
	xl block-attach g1 "phy:$(cat path),xvda,w" || fail "attach"
}
end_node() {
	xl block-detach g1 xvda || fail "detach"
	cowctl stop vm
}

serve_ring() {
	cowd --frontend=xen --xenbus="$bus" --log-level=error -p "$1" "$name" "$2" >path || fail "cowd"
}
begin_ring() {
	name=xen-$(guest_id g1)-51712
	bus=$(cowctl xen-attach -p "$1" g1 "$2" xvda) || fail "attach"
}
end_ring() {
	cowctl xen-detach g1 xvda || fail "detach"
	wait_for 20 '! cowctl status "$name" >/dev/null 2>&1'
}

up() {	# FORMAT IMAGE
	begin_$way "$@"
	guest_disk g1 xvda
}
down() {
	guest_calm g1
	end_$way
}
dies() {
	pid=$(cowctl status "$name" --json | jq .pid)
	kill -9 "$pid"
	wait_for 20 '[ ! -e /proc/$pid ]'
}
again() {
	serve_$way "$@"
}
user() {
	guest_run g1 "$*" 180
}

guest_start g1
for way in node ring; do
	for kind in $conform_kinds; do
		subtest "$way: $kind"
		conform "$kind"
	done
done
guest_off g1
xen_calm
