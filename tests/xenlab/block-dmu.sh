# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 500
#
# Disks of cowd in a guest's configuration, by block-dmu and the kernel's backend: as stock
# xl understands them and as xl-dmu does. Overlays appear when they are first used, are
# sound afterwards, and nothing is left behind; what cannot be is said in a sentence.
. tests/lib/xenlab.sh
require_cmd dmsetup
[ -x "$BUILD/bin/block-dmu" ] || skip "built without xenstore"
xen_up --module -t 400

modprobe -a loop xen-blkback
cp "$BUILD/bin/block-dmu" /etc/xen/scripts/
COW_BIN_DIR=$BUILD/bin
export COW_BIN_DIR
cd "$TMP"
head -c 8M /dev/urandom >base.raw
sum=$(sha256sum <base.raw)

idle() {	# nothing of a disk is left on this side
	xen_calm
	[ -z "$(cowctl list)" ] || fail "cowd: $(cowctl list)"
	[ "$(dmsetup ls)" = 'No devices found' ] || fail "nodes: $(dmsetup ls)"
	[ -z "$(losetup -a)" ] || fail "loop devices: $(losetup -a)"
}

subtest "the line dmu:dscow:OVERLAY:BASE,hda1,w by xl-dmu, and a second disk"
xl=xl-dmu guest_start g1 "dmu:dscow:$TMP/a.dscow:$TMP/base.raw,hda1,w" "dmu:raw:$TMP/base.raw,xvdb,r"
guest_disk g1 xvda
guest_disk g1 xvdb
id=$(guest_id g1)
for d in xvda xvdb; do
	[ "$(guest_run g1 "sha256sum </dev/$d")" = "$sum" ] || fail "$d is not the base"
done
[ "$(guest_run g1 'cat /sys/block/xvda/ro /sys/block/xvdb/ro' | tr '\n' ' ')" = '0 1 ' ] || fail "read-only"
node=$(xenstore-read "/local/domain/0/backend/vbd/$id/769/physical-device-path")
[ "$node" = "/dev/mapper/xen-$id-769" ] || fail "the node is $node"
[ "$(xenstore-read "/local/domain/0/backend/vbd/$id/769/physical-device")" = "$(stat -L -c %t:%T "$node")" ] ||
	fail "physical-device"
guest_check g1 'mkfs.ext4 -q /dev/xvda && mount /dev/xvda /mnt && echo kept >/mnt/file && umount /mnt'

subtest "attached and detached while the guest runs, in each spelling"
for words in "script=block-dmu,vdev=xvdc,access=rw,target=dscow:$TMP/b.dscow:$TMP/base.raw" \
	     "dmu:dscow:$TMP/b.dscow:$TMP/base.raw,raw,xvdc,w,script=block-dmu" \
	     "phy:dmu:dscow:$TMP/b.dscow:$TMP/base.raw,xvdc,w,script=block-dmu"; do
	xl block-attach g1 "$words" || fail "block-attach: $words"
	guest_disk g1 xvdc
	guest_check g1 'dd if=/dev/xvdc of=/dev/null bs=64k count=1 status=none'
	xl block-detach g1 xvdc || fail "block-detach: $words"
	guest_check g1 '[ ! -e /sys/block/xvdc ]'
	[ "$(cowctl list | wc -l)" = 2 ] || fail "left by $words: $(cowctl list)"
done
xl-dmu block-attach g1 "dmu:dscow:$TMP/b.dscow:$TMP/base.raw" xvdc w || fail "xl-dmu block-attach"
guest_disk g1 xvdc
xl block-detach g1 xvdc

subtest "an image in domain 0"
xl-dmu block-attach 0 "dmu:dscow:$TMP/b.dscow:$TMP/base.raw,xvdd,r" || fail "block-attach 0"
modprobe xen-blkfront
wait_for 10 '[ -b /dev/xvdd ]'
[ "$(sha256sum </dev/xvdd)" = "$sum" ] || fail "xvdd is not the base"
xl block-detach 0 xvdd || fail "block-detach 0"

subtest "a cowd that was killed is started again, and the guest waits for it"
pid=$(cowctl status "xen-$id-769" --json | jq .pid)
kill -9 "$pid"
wait_for 5 '! kill -0 $pid 2>/dev/null'
XENBUS_PATH=backend/vbd/$id/769 /etc/xen/scripts/block-dmu add || fail "add, again"
[ "$(cowctl list | grep -c running)" = 2 ] || fail "$(cowctl list)"
guest_check g1 'mount /dev/xvda /mnt && grep -q kept /mnt/file && echo more >>/mnt/file && umount /mnt'

subtest "what cannot be is one sentence, and leaves nothing"
refused() {	# DISK REGEX
	if xl block-attach g1 "$1" >said 2>&1; then
		fail "attached: $1"
	fi
	grep -Eq "script: .*$2" said || fail "$1: $(cat said)"
	[ "$(cowctl list | wc -l)" = 2 ] || fail "left by $1: $(cowctl list)"
	xl block-detach g1 xvdc >/dev/null 2>&1 || true
}
refused "script=block-dmu,vdev=xvdc,target=dscow:$TMP/no.dscow" 'no.dscow: No such file'
refused "script=block-dmu,vdev=xvdc,target=dscow:$TMP/no.dscow:$TMP/none" 'none: No such file'
refused "script=block-dmu,vdev=xvdc,target=dscow:$TMP/a.dscow" 'a.dscow.* in use|a.dscow.*lock'
refused "script=block-dmu,vdev=xvdc,target=dscow:a.dscow" 'does not begin with a slash'
refused "script=block-dmu,vdev=xvdc,target=nosuch:/a" 'nosuch'
refused "script=block-dmu,vdev=xvdc,target=dscow:$TMP/b.dscow,ring" 'xen-blkback has taken this device'
[ ! -e no.dscow ] || fail "an overlay was left"
expect_fail "xl-dmu block-attach g1 dmu:dscow:a,xvdc,w" 'xl-dmu: dmu:dscow:a,xvdc,w: .*slash'

subtest "the guest reboots, and its disks come along"
guest_run g1 'sync; reboot -f' 5 2>/dev/null && fail "it did not reboot"
wait_for 60 'new=$(guest_id g1 2>/dev/null) && [ "$new" != "$id" ]'
wait_for 20 'xenstore-exists "/local/domain/$new/console/tty"'
guest_attach g1
guest_disk g1 xvda
guest_check g1 'mount /dev/xvda /mnt && grep -q more /mnt/file && umount /mnt'

subtest "the guest is destroyed with a cowd that was killed"
id=$(guest_id g1)
kill -9 "$(cowctl status "xen-$id-769" --json | jq .pid)"
guest_destroy g1
wait_for 20 '[ -z "$(cowctl list)" ]'
idle

subtest "what is left is sound"
for i in a b; do
	cowimg check -q -f dscow $i.dscow || fail "$i.dscow is not sound"
done
[ "$(sha256sum <base.raw)" = "$sum" ] || fail "the base was written to"
cowimg read -q -f dscow a.dscow flat.raw
e2fsck -fn flat.raw >e2fsck.log 2>&1 || fail "the file system: $(cat e2fsck.log)"
