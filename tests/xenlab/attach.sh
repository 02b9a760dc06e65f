# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 900
#
# What "cowctl xen-attach" can make besides the disks of ring.sh: one without an image, one
# with large sectors, a ring of 16 pages; and what becomes of its disks when their cowd was
# killed: the guest keeps them or ends, somebody detaches them or nobody does.
. tests/lib/xenlab.sh
require_cmd jq cmp
guest_programs="$guest_programs $BUILD/tests/xenlab/hostile"
guest_modules='xen-evtchn xen-gntalloc'
[ -x "$BUILD/tests/xenlab/hostile" ] || skip "built without Xen's libraries"
xen_up -t 800

PATH=$BUILD/tests/lab:$PATH
cd "$TMP"
at_exit 'cd /; for g in g1 g2 g3; do xl destroy $g; done >/dev/null 2>&1'

names() {
	cowctl list --json | jq -r '.devices[].name' | sort | tr '\n' ' '
}
nothing_left() {
	wait_for 30 '[ -z "$(names)" ]'
	xen_calm
	[ -z "$(ls "$COW_RUN_DIR")" ] || fail "left in the run directory: $(ls "$COW_RUN_DIR")"
}
kill_cowd() {	# of DEVICE
	pid=$(cowctl status "$1" --json | jq .pid)
	kill -9 "$pid"
	wait_for 20 '[ ! -e /proc/$pid ]'
}

head -c 8M /dev/urandom >base.raw
cp base.raw base.was
for n in one two; do
	cowimg create -q -f dscow -b base.raw -F raw $n.dscow
done
guest_start g1
id=$(guest_id g1)

subtest a disk without an image reads as zeroes and forgets
cowctl xen-attach --backend null --size 16M g1 xvda >/dev/null
guest_disk g1 xvda
[ "$(guest_run g1 'cat /sys/block/xvda/size /sys/block/xvda/ro' | tr '\n' ' ')" = "32768 0 " ] || fail "size, ro"
guest_check g1 'payload fill -s 1 /dev/xvda && ! payload verify -s 1 /dev/xvda >/dev/null 2>&1 &&
	blkdiscard -l 1048576 /dev/xvda &&
	dd if=/dev/xvda bs=1M iflag=direct status=none | cmp -n 16777216 - /dev/zero'
[ "$(cowctl status "xen-$id-51712" --json | jq .xen.refused)" = 0 ] || fail "requests were refused"
cowctl xen-attach -r --backend null --size 1M g1 xvdb >/dev/null
guest_disk g1 xvdb
[ "$(guest_run g1 'cat /sys/block/xvdb/ro')" = 1 ] || fail "xvdb can be written to"
guest_calm g1
for d in xvda xvdb; do
	cowctl xen-detach g1 $d || fail "detach of $d"
done
expect_fail 'cowctl xen-attach --backend null --size much g1 xvda' 'size'
nothing_left
! xenstore-exists "/local/domain/$id/device/vbd/51712" || fail "half a disk is left"

subtest large sectors are for who can, and others have small ones
cowctl xen-attach -p dscow --sector-size 4096 g1 one.dscow xvda >/dev/null
guest_disk g1 xvda
[ "$(guest_run g1 'cat /sys/block/xvda/queue/logical_block_size /sys/block/xvda/size' | tr '\n' ' ')" = \
	"512 16384 " ] || fail "what Linux sees, which does not say that it can"
[ "$(guest_run g1 'sha256sum </dev/xvda')" = "$(sha256sum <base.raw)" ] || fail "not the base"
cowctl xen-detach g1 xvda
guest_check g1 'rmmod xen_blkfront'
cowctl xen-attach -p dscow --sector-size 4096 g1 one.dscow xvda >/dev/null
guest_check g1 'hostile 51712 large'
cowctl xen-detach g1 xvda
nothing_left
cowimg check -q -f dscow one.dscow || fail "one.dscow is not sound"
cowimg read -q -f dscow one.dscow flat.raw
cp base.raw wanted.raw
head -c 4096 /dev/zero | tr '\0' '\247' | dd of=wanted.raw bs=4096 seek=3 conv=notrunc status=none
cmp flat.raw wanted.raw || fail "the large sector is not where it should be"
guest_off g1

subtest a killed cowd of a guest that goes on: detached, and nothing is lost
guest_start g2
id=$(guest_id g2)
cowctl xen-attach -p dscow g2 two.dscow xvda >/dev/null
cowctl xen-attach --private -p raw g2 base.raw xvdb >/dev/null
guest_disk g2 xvda
guest_disk g2 xvdb
guest_check g2 'echo before the kill | dd of=/dev/xvda bs=512 seek=7 conv=sync,fsync status=none'
kill_cowd "xen-$id-51712"
kill_cowd "xen-$id-51728"
guest_check g2 '(echo after the kill | dd of=/dev/xvda bs=512 seek=8 conv=sync oflag=direct status=none; echo $? >/tmp/rc) >/dev/null 2>&1 &'
cowctl xen-detach g2 xvda || fail "detach of xvda"
cowctl xen-detach g2 xvdb || fail "detach of xvdb"
guest_check g2 '[ ! -e /sys/block/xvda ] && [ ! -e /sys/block/xvdb ]'
nothing_left
guest_calm g2
cowimg check -q -f dscow two.dscow || fail "two.dscow is not sound"
rm flat.raw
cowimg read -q -f dscow two.dscow flat.raw
dd if=flat.raw bs=512 skip=7 count=1 status=none | grep -q 'before the kill' || fail "what was written before"
dd if=flat.raw bs=512 skip=8 count=1 status=none | grep -q 'after the kill' || fail "what was asked meanwhile"

subtest a killed cowd of a guest that ends: detached by its number
cowctl xen-attach -p dscow g2 two.dscow xvda >/dev/null
cowctl xen-attach --private -p raw g2 base.raw xvdb >/dev/null
guest_disk g2 xvda
guest_check g2 'echo the last word | dd of=/dev/xvda bs=512 seek=9 conv=sync,fsync status=none'
kill_cowd "xen-$id-51712"
kill_cowd "xen-$id-51728"
guest_destroy g2
expect_fail 'cowctl xen-detach g2 xvda' 'there is no domain "g2"'
cowctl xen-detach "$id" xvda || fail "detach of xvda"
cowctl xen-detach "$id" xvdb || fail "detach of xvdb"
nothing_left
expect_fail "cowctl xen-detach $id xvda" 'has no disk xvda'
rm flat.raw
cowimg read -q -f dscow two.dscow flat.raw
dd if=flat.raw bs=512 skip=9 count=1 status=none | grep -q 'the last word' || fail "what was written"

subtest the same by cowd-xenbus, and a ring of 16 pages
guest_extra='xen_blkfront.max_ring_page_order=4' guest_memory=384
guest_start g3
id=$(guest_id g3)
cowctl xen-attach -p dscow g3 two.dscow xvda >/dev/null
guest_disk g3 xvda
[ "$(cowctl status "xen-$id-51712" --json | jq .xen.ring_pages)" = 16 ] || fail "pages of the ring"
guest_check g3 'payload fill -s 4 -l 8388608 /dev/xvda && payload run -s 4 -n 400 -l 8388608 -S /tmp/state /dev/xvda &&
	payload verify -S /tmp/state /dev/xvda' 200
[ "$(cowctl status "xen-$id-51712" --json | jq .xen.refused)" = 0 ] || fail "requests were refused"
sum=$(guest_run g3 'sha256sum </dev/xvda')
guest_calm g3
cowd-xenbus 2>watcher.log &
watcher=$!
at_exit 'kill $watcher'
kill_cowd "xen-$id-51712"
guest_destroy g3
nothing_left
grep -q "backend/dmu/$id/51712: the guest is gone" watcher.log || fail "$(cat watcher.log)"
cowimg check -q -f dscow two.dscow || fail "two.dscow is not sound"
rm flat.raw
cowimg read -q -f dscow two.dscow flat.raw
[ "$(sha256sum <flat.raw)" = "$sum" ] || fail "other bytes than the guest saw"
cmp base.raw base.was || fail "the base was written to"
