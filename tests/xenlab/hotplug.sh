# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 3600
#
# A running guest gets a disk, writes and reads it, and loses it again, many times, in each
# of three ways: /dev/mapper by xl, block-dmu by xl, a direct ring by cowctl. What the guest
# writes one time it reads the next. In the end nothing of it is left: not in xenstore, not
# in device-mapper, no process and no loop device, and xenstored has not grown.
#
# environment: TIMES (5; FAULT=full 100)
. tests/lib/xenlab.sh
require_cmd losetup dmsetup jq
times=5 limit=600
[ "${FAULT:-quick}" != full ] || times=100 limit=3400
times=${TIMES:-$times}
xen_block_dmu
xen_up --module -t $limit -e TIMES

xen_block_dmu
modprobe -a loop xen-blkback
cd "$TMP"
P=$TMP
at_exit 'cd /; xl destroy g1 >/dev/null 2>&1; cowctl stop --force vm >/dev/null 2>&1 || true'

plug_phy() {
	disk=$(cowd --frontend=dm --log-level=error -p dscow vm over.dscow) || fail "cowd"
	xl block-attach g1 "phy:$disk,xvdb,w"
}
unplug_phy() {
	xl block-detach g1 xvdb && cowctl stop vm
}
plug_dmu() {
	xl block-attach g1 "script=block-dmu,vdev=xvdb,access=w,target=dscow:$P/over.dscow"
}
unplug_dmu() {
	xl block-detach g1 xvdb
}
plug_ring() {
	cowctl xen-attach -p dscow g1 over.dscow xvdb >/dev/null
}
unplug_ring() {
	cowctl xen-detach g1 xvdb
}
# What the process holds of memory that grows, in kB.
xenstored_size() {
	sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$(cat /run/xenstored.pid)/status"
}

truncate -s 8M base.raw
cowimg create -q -f dscow -b base.raw -F raw over.dscow
guest_start g1
n=0
for way in phy dmu ring; do
	subtest "$way: a disk comes and goes $times times"
	i=0
	while [ $i -lt "$times" ]; do
		plug_$way || fail "attach $i"
		guest_disk g1 xvdb
		last=$(guest_check g1 "dd if=/dev/xvdb bs=512 skip=$n count=1 status=none | tr -d '\\0'
			echo turn-$n | dd of=/dev/xvdb bs=512 seek=$((n + 1)) conv=sync oflag=direct status=none")
		[ "$last" = "$([ $n = 0 ] || echo turn-$((n - 1)))" ] || fail "turn $n: the guest reads '$last'"
		unplug_$way || fail "detach $i"
		guest_check g1 '[ ! -e /sys/block/xvdb ]'
		xen_calm
		wait_for 20 '[ "$(cowctl list --json | jq ".devices | length")" = 0 ]'
		[ $n != 0 ] || before=$(xenstored_size)
		n=$((n + 1)) i=$((i + 1))
	done
done
guest_off g1

subtest nothing is left
after=$(xenstored_size)
[ "$after" -lt $((before + 4096)) ] || fail "xenstored grew from $before to $after kB"
[ "$(dmsetup ls)" = 'No devices found' ] || fail "nodes: $(dmsetup ls)"
[ -z "$(losetup -a)" ] || fail "loop devices: $(losetup -a)"
wait_for 10 '! pidof cowd >/dev/null'
cowimg check -q -f dscow over.dscow || fail "the image is not sound"
