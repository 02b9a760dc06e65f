# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 900
#
# Direct rings: cowd is the backend of guests' disks, no kernel driver in between. Attached
# without a toolstack (cowctl xen-attach) and by xl: as type vbd where xen-blkback is not
# loaded, as backendtype=tap from Xen 4.19 on. Each with the guest's view, and the image
# afterwards; several queues and pages, resize, read-only, private disks; a PVH guest; a
# guest destroyed under load; what is refused.
. tests/lib/xenlab.sh
require_cmd jq cmp
xen_block_dmu
xen_up -t 800

xen_block_dmu
PATH=$BUILD/tests/lab:$PATH
cd "$TMP"
P=$TMP
at_exit 'cd /; for g in g1 g2 g3; do xl destroy $g; done >/dev/null 2>&1'

nothing_left() {
	wait_for 20 '[ "$(cowctl list --json | jq ".devices | length")" = 0 ]'
	xen_calm
}
sound() {
	cowimg check -q -f dscow "$1" || fail "$1 is not sound"
}
same_at_rest() {	# IMAGE SUM
	sound "$1"
	rm -f flat.raw
	cowimg read -q -f dscow "$1" flat.raw
	[ "$(sha256sum <flat.raw)" = "$2" ] || fail "$1 holds other bytes than the guest saw"
}

head -c 16M /dev/urandom >base.raw
cp base.raw base.was
for n in one two; do
	cowimg create -q -f dscow -b base.raw -F raw $n.dscow
done

subtest attached to a running guest without a toolstack
guest_start g1
id=$(guest_id g1)
[ "$(cowctl xen-attach -p dscow g1 one.dscow xvda)" = "/local/domain/0/backend/dmu/$id/51712" ] ||
	fail "what xen-attach prints"
guest_disk g1 xvda
[ "$(guest_run g1 'cat /sys/block/xvda/size /sys/block/xvda/ro' | tr '\n' ' ')" = "32768 0 " ] || fail "size"
[ "$(guest_run g1 'sha256sum </dev/xvda')" = "$(sha256sum <base.raw)" ] || fail "not the base"
guest_check g1 'mkfs.ext4 -q /dev/xvda && mount /dev/xvda /mnt && head -c 5000000 /dev/urandom >/mnt/file &&
	rm /mnt/file && head -c 3000000 /dev/urandom >/mnt/file && umount /mnt && e2fsck -fn /dev/xvda &&
	blkdiscard -o 12582912 -l 1048576 /dev/xvda'
guest_check g1 'dmesg | grep "blkfront: xvda: flush diskcache: enabled; persistent grants: enabled; indirect descriptors: enabled"'
cowctl status "xen-$id-51712" --json | jq -e '.xen.mapped_pages > 0' >/dev/null || fail "no page of the guest is mapped"

sum=$(guest_run g1 'sha256sum </dev/xvda')
[ "$(cowctl status "xen-$id-51712" --json | jq .xen.refused)" = 0 ] || fail "requests were refused"

subtest a second, read-only, and one that is private
cowctl xen-attach -r -p raw g1 base.raw xvdb
cowctl xen-attach --private -p raw g1 base.raw xvdc
guest_disk g1 xvdb
guest_disk g1 xvdc
[ "$(guest_run g1 'cat /sys/block/xvd[bc]/ro' | tr '\n' ' ')" = "1 0 " ] || fail "read-only flags"
guest_run g1 'dd if=/dev/zero of=/dev/xvdb bs=512 count=1 2>/dev/null' && fail "xvdb can be written to"
guest_check g1 'dd if=/dev/zero of=/dev/xvdc bs=1M count=8 conv=fsync status=none
	dd if=/dev/xvdc bs=1M count=8 iflag=direct status=none | cmp -n 8388608 - /dev/zero'

subtest detached again
for d in xvdc xvdb xvda; do
	cowctl xen-detach g1 $d || fail "detach of $d"
	guest_check g1 "[ ! -e /sys/block/$d ]"
done
nothing_left
same_at_rest one.dscow "$sum"
cmp base.raw base.was || fail "the base was written to"

subtest what is refused has one sentence and leaves nothing
expect_fail 'cowctl xen-attach -p dscow nobody one.dscow xvda' 'there is no domain "nobody"'
expect_fail 'cowctl xen-attach -p dscow g1 one.dscow floppy' 'floppy'
expect_fail 'cowctl xen-attach -p dscow g1 absent.dscow xvda' 'absent.dscow.*No such file'
expect_fail 'cowctl xen-attach -p dscow g1 base.raw xvda' 'base.raw'
expect_fail 'cowctl xen-detach g1 xvda' '.'
nothing_left
! xenstore-exists "/local/domain/$id/device/vbd/51712" || fail "half a disk is left"

subtest larger while it is in use
cowctl xen-attach -p dscow g1 two.dscow xvda >path
guest_disk g1 xvda
cowctl resize "xen-$id-51712" 24M
guest_check g1 'for i in $(seq 100); do [ $(cat /sys/block/xvda/size) != 49152 ] || exit 0; usleep 50000; done; exit 1'
guest_check g1 'echo at the end | dd of=/dev/xvda bs=512 seek=49151 conv=sync,fsync status=none'

subtest a guest that is destroyed under load
guest_check g1 'payload fill -s 1 -l 16777216 /dev/xvda; payload run -s 1 -l 16777216 /dev/xvda >/tmp/load 2>&1 &
	until [ -s /tmp/load ]; do usleep 100000; done'
guest_destroy g1
nothing_left
sound two.dscow

subtest by xl, type vbd without xen-blkback, several queues and pages
cowd-xenbus vbd &
watcher=$!
at_exit 'kill $watcher'
guest_vcpus=2
# For persistent grants it takes all the pages that its rings can make use of: 17 MiB each.
guest_memory=256
guest_extra='xen_blkfront.max_ring_page_order=2 xen_blkfront.max_queues=2'
guest_start g2 "script=block-dmu,vdev=xvda,access=w,target=dscow:$P/two.dscow,ring"
id=$(guest_id g2)
guest_disk g2 xvda
cowctl status "xen-$id-51712" --json | jq -e '.xen.queues == 2 and .xen.ring_pages == 4' >/dev/null ||
	fail "queues or pages: $(cowctl status "xen-$id-51712" --json | jq -c .xen)"
guest_check g2 'payload fill -s 2 -l 16777216 /dev/xvda && payload run -s 2 -n 400 -l 16777216 -S /tmp/state /dev/xvda &&
	payload verify -S /tmp/state /dev/xvda' 200
sum=$(guest_run g2 'sha256sum </dev/xvda')
guest_off g2
nothing_left
same_at_rest two.dscow "$sum"

subtest a PVH guest, by xl
guest_type=pvh guest_vcpus=1 guest_extra= guest_memory=192
disk="script=block-dmu,vdev=xvda,access=w,target=dscow:$P/two.dscow,ring"
case $LAB_XEN in
xen-4.17) ;;
*)
	kill $watcher
	cowd-xenbus &
	watcher=$!
	disk="backendtype=tap,${disk%,ring}"
	;;
esac
guest_start g3 "$disk"
guest_disk g3 xvda
[ "$(guest_run g3 'sha256sum </dev/xvda')" = "$sum" ] || fail "not what the other guest left"
guest_check g3 'mkfs.ext4 -q /dev/xvda && mount /dev/xvda /mnt && head -c 3000000 /dev/urandom >/mnt/file && umount /mnt'
sum=$(guest_run g3 'sha256sum </dev/xvda')
guest_off g3
nothing_left
same_at_rest two.dscow "$sum"
cmp base.raw base.was || fail "the base was written to"
