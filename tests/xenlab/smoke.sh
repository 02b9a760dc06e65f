# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 400
#
# A guest of a real Xen on a cowd overlay, the plainest way: cowd makes /dev/mapper/vm with
# the kernel's target, xl gives it to the guest through Xen's own block script and blkback.
# The guest sees its size and the base below, makes a file system, writes, powers off; the
# image is sound then and holds what the guest wrote, and the base is as it was.
. tests/lib/xenlab.sh
require_cmd mkfs.ext4 e2fsck losetup cmp
xen_up --module -t 300

modprobe -a loop xen-blkback
cd "$TMP"
at_exit 'cd /; cowctl stop --force vm >/dev/null 2>&1 || true'

subtest a guest starts on the node
head -c 16M /dev/urandom >base.raw
cp base.raw before.raw
cowimg create -q -f dscow -b base.raw -F raw over.dscow
disk=$(cowd --frontend=dm -p dscow vm over.dscow) || fail "cowd"
guest_start g1 "phy:$disk,xvda,w"
guest_disk g1 xvda

subtest the guest sees the base
[ "$(guest_run g1 'cat /sys/block/xvda/size /sys/block/xvda/ro' | tr '\n' ' ')" = "32768 0 " ] ||
	fail "size or read-only flag of xvda"
[ "$(guest_run g1 'sha256sum </dev/xvda')" = "$(sha256sum <base.raw)" ] || fail "another base"

subtest the guest writes
sum=$(guest_check g1 'mkfs.ext4 -q /dev/xvda && mount /dev/xvda /mnt &&
	head -c 3000000 /dev/urandom >/mnt/file && sha256sum </mnt/file && umount /mnt')
guest_off g1

subtest the image holds it
cowctl stop vm
xen_calm
cowimg check -q -f dscow over.dscow || fail "the image is not sound"
cowimg read -q -f dscow over.dscow flat.raw
e2fsck -fn flat.raw >e2fsck.log 2>&1 || fail "the file system: $(cat e2fsck.log)"
mkdir mnt
mount -o loop,ro flat.raw mnt
at_exit 'umount "$TMP/mnt"'
[ "$(sha256sum <mnt/file)" = "$sum" ] || fail "the file's contents"
cmp base.raw before.raw || fail "the base was written to"
