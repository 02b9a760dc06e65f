# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 3600
#
# kill -9 of cowd under a guest's load, again and again: the guest sees neither an I/O error
# nor a wrong byte, and the image holds at the end what the guest last saw. Once with
# /dev/mapper and the kernel's backend, once with cowd as the backend itself.
#
# environment: KILLS (3; FAULT=full 20)
. tests/lib/xenlab.sh
require_cmd jq
kills=3 limit=800
[ "${FAULT:-quick}" != full ] || kills=20 limit=3000
kills=${KILLS:-$kills}
xen_up --module -t $limit -e KILLS

PATH=$BUILD/tests/lab:$PATH
modprobe -a loop xen-blkback
cd "$TMP"
at_exit 'cd /; xl destroy g1 >/dev/null 2>&1; cowctl stop --force vm >/dev/null 2>&1 || true'

serve_node() {
	cowd --frontend=dm --log-level=error -p dscow vm over.dscow >path
}
begin_node() {
	name=vm
	serve_node || fail "cowd"
	xl block-attach g1 "phy:$(cat path),xvda,w" || fail "attach"
}
end_node() {
	xl block-detach g1 xvda || fail "detach"
	cowctl stop vm
}

serve_ring() {
	cowd --frontend=xen --xenbus="$bus" --log-level=error -p dscow "$name" over.dscow >path
}
begin_ring() {
	name=xen-$(guest_id g1)-51712
	bus=$(cowctl xen-attach -p dscow g1 over.dscow xvda) || fail "attach"
}
end_ring() {
	cowctl xen-detach g1 xvda || fail "detach"
}

one_kill() {
	sleep 1
	guest_check g1 'kill -USR1 $(cat /tmp/pid)'	# on to blocks that nobody asked for yet
	sleep 0.1
	pid=$(cowctl status "$name" --json | jq .pid)
	kill -9 "$pid"
	wait_for 20 '[ ! -e /proc/$pid ]'
	sleep 0.3
	serve_$1 || fail "cowd does not take over"
	guest_check g1 'kill -0 $(cat /tmp/pid)'
}

truncate -s 40M base.raw
payload fill -s 7 base.raw
guest_start g1
for way in node ring; do
	subtest "$way: a guest's load through $kills kills"
	cowimg create -q -f dscow --overwrite -b base.raw -F raw over.dscow
	begin_$way
	guest_disk g1 xvda
	guest_check g1 'rm -f /tmp/state /tmp/load; payload run -s 7 -w 2M -S /tmp/state /dev/xvda >/tmp/load 2>&1 &
		echo $! >/tmp/pid; until [ -s /tmp/load ]; do usleep 100000; done'
	n=0
	while [ $n -lt "$kills" ]; do
		n=$((n + 1))
		one_kill $way
	done

	subtest "$way: every byte, for the guest and at rest"
	guest_check g1 'kill $(cat /tmp/pid); while kill -0 $(cat /tmp/pid) 2>/dev/null; do usleep 100000; done
		tail -n 1 /tmp/load; payload verify -S /tmp/state /dev/xvda' 180
	sum=$(guest_check g1 'sha256sum </dev/xvda' 180)
	guest_calm g1
	end_$way
	wait_for 20 '! cowctl status "$name" >/dev/null 2>&1'
	cowimg check -q -f dscow over.dscow || fail "the image is not sound"
	rm -f flat.raw
	cowimg read -q -f dscow over.dscow flat.raw
	[ "$(sha256sum <flat.raw)" = "$sum" ] || fail "the image holds other bytes than the guest saw"
done
guest_off g1
xen_calm

subtest the base is as it was
payload verify -s 7 base.raw
