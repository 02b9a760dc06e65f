# SPDX-License-Identifier: GPL-2.0-or-later
#
# "mount -t fuse.cowfuse" and a line of fstab. mount(8) looks for cowfuse in the
# usual folders only, so this runs in a mount namespace of its own in which the
# build is /usr/local.
if [ "$(id -u)" = 0 ] && [ "${COW_TEST_NS:-}" != yes ] && unshare -m true 2>/dev/null; then
	COW_TEST_NS=yes exec unshare -m --propagation private sh "$0"
fi
. tests/lib/test.sh
require_root
require_fuse
require_cmd findmnt unshare
[ "${COW_TEST_NS:-}" = yes ] || skip "no mount namespaces"
[ -x /sbin/mount.fuse3 ] || [ -x /sbin/mount.fuse ] || skip "mount.fuse is not installed"
mount --bind "$BUILD" /usr/local
img=$TMP/over.dscow
mnt=$TMP/mnt
mkdir "$mnt"
at_exit 'umount -l "$mnt" 2>/dev/null || true'
head -c 4194304 /dev/urandom >"$TMP/base"
dscow_tool -c "$img" "$TMP/base" >/dev/null

closed() {
	! grep -q " $mnt " /proc/mounts && dscow_tool -r 4194304 "$img" >/dev/null 2>&1
}

subtest "mount -t fuse.cowfuse"
mount -t fuse.cowfuse "$img" "$mnt" -o format=dscow,ro
case ,$(mount_options "$mnt"), in *,ro,*) ;; *) fail "options are $(mount_options "$mnt")" ;; esac
cmp "$mnt/disk" "$TMP/base"
umount "$mnt"
wait_for 20 closed
mount -t fuse.cowfuse "$img" "$mnt" -o format=dscow,rw,noatime,nosuid,x-note=1
printf via-mount | dd of="$mnt/disk" bs=4096 seek=11 conv=notrunc status=none
umount "$mnt"
wait_for 20 closed
expect_fail "mount -t fuse.cowfuse '$img' '$mnt' -o ro" "cowfuse: .*[Ff]ormat"
expect_fail "mount -t fuse.cowfuse '$img' '$mnt' -o format=dscow,ro,nonsense=1" "nonsense"

subtest "a line of fstab"
echo "$img $mnt fuse.cowfuse format=dscow,ro,nofail,_netdev,x-systemd.automount 0 0" >"$TMP/fstab"
mount -T "$TMP/fstab" "$mnt"
[ "$(dd if="$mnt/disk" bs=4096 skip=11 count=1 status=none | head -c 9)" = via-mount ] || fail "content"
umount "$mnt"
wait_for 20 closed
mount -T "$TMP/fstab" -a
[ -e "$mnt/disk" ] || fail "mount -a left it out"
umount "$mnt"
wait_for 20 closed
