# SPDX-License-Identifier: GPL-2.0-or-later
#
# A real file system on the disk that cowd makes: ext4 on the loop device, under a load
# of many kinds of file operations at once, trimmed, checked, served again, and once
# killed in the middle of it. FAULT=full makes the load longer.
# TIMEOUT: 600
. tests/lib/test.sh
require_fuse
require_loop
require_cmd mkfs.ext4 e2fsck stress-ng fstrim
export COW_RUN_DIR
img=$TMP/over.dscow
mnt=$TMP/mnt
seconds=4
[ "${FAULT:-quick}" != full ] || seconds=60
mkdir "$mnt"

serve() {	# sets $disk
	cowd -p dscow mkfs "$img" >"$TMP/path"
	disk=$(tail -n 1 "$TMP/path")
	[ -b "$disk" ] || fail "cowd made no block device but $disk"
}

load() {	# SECONDS: works on the mounted file system until then
	mkdir -p "$mnt/load"
	stress-ng --temp-path "$mnt/load" --timeout "$1" --no-rand-seed --verify --oomable \
		--hdd 1 --hdd-bytes 16m --fallocate 1 --fallocate-bytes 16m --aiol 1 \
		--dir 1 --dirdeep 1 --rename 1 --link 1 --symlink 1 --utime 1 --chmod 1 \
		--iomix 1 --iomix-bytes 16m --sync-file 1 --sync-file-bytes 8m --seek 1 --seek-size 8m
}

tree() {
	(cd "$mnt/tree" && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
}

fsck() {
	e2fsck -f -n "$disk" >"$TMP/fsck" 2>&1 || fail "e2fsck: $(cat "$TMP/fsck")"
}

at_exit 'umount -l "$mnt" 2>/dev/null; cowctl stop --force mkfs >/dev/null 2>&1
	umount -l "$COW_RUN_DIR/mkfs" 2>/dev/null || true'
truncate -s 320M "$TMP/base"
head -c 33554432 /dev/urandom | dd of="$TMP/base" bs=1M seek=100 conv=notrunc status=none
sum=$(sha256sum <"$TMP/base")
dscow_tool -c "$img" "$TMP/base" >/dev/null
serve

subtest "mkfs, files, a load, fsck"
mkfs.ext4 -q "$disk"
mount "$disk" "$mnt"
mkdir "$mnt/tree"
cp -r daemon formats tests man "$mnt/tree/"
head -c 20000000 /dev/urandom >"$mnt/tree/random"
want=$(tree)
load "$seconds" >"$TMP/stress" 2>&1 || fail "stress-ng: $(tail -n 5 "$TMP/stress")"
rm -r "$mnt/load"
fstrim "$mnt"
umount "$mnt"
fsck

subtest "the same after a restart"
cowctl stop mkfs
dscow_tool -k "$img"
serve
fsck
mount "$disk" "$mnt"
[ "$(tree)" = "$want" ] || fail "the files differ"

subtest "kill -9 under the load: what was synced is there, the journal makes it sound"
cp -r "$mnt/tree/daemon" "$mnt/tree/more"
head -c 5000000 /dev/urandom >"$mnt/tree/random2"
sync -f "$mnt"
want=$(tree)
load 5 >"$TMP/stress" 2>&1 &
stress=$!
sleep 2
kill -9 "$(cowctl status mkfs --json | sed -n 's/.*"pid": \([0-9]*\).*/\1/p')"
wait $stress || true
umount -l "$mnt"
serve
mount "$disk" "$mnt"
[ "$(tree)" = "$want" ] || fail "the files differ"
umount "$mnt"
fsck

subtest "the image is sound, the base untouched"
cowctl stop mkfs
# Of a write that the kill cut off, data may be left that nothing refers to: status 3.
dscow_tool -k "$img" || { [ $? = 3 ] && dscow_tool -R "$img" && dscow_tool -k "$img"; }
[ "$(sha256sum <"$TMP/base")" = "$sum" ] || fail "the base changed"
