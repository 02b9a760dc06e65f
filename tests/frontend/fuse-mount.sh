# SPDX-License-Identifier: GPL-2.0-or-later
#
# cowfuse as a command: read-only unless asked, in the background only when it
# works, and a clean close at the end however it ends.
. tests/lib/test.sh
require_fuse
require_cmd findmnt
img=$TMP/over.dscow
mnt=$TMP/mnt
mkdir "$mnt"
at_exit 'umount -l "$mnt" 2>/dev/null || true'
head -c 4194304 /dev/urandom >"$TMP/base"
dscow_tool -c "$img" "$TMP/base" >/dev/null

# The server is through: nobody holds the image any more.
closed() {
	! grep -q " $mnt " /proc/mounts && cowimg check -f dscow "$img" >/dev/null 2>&1 &&
		dscow_tool -r 4194304 "$img" >/dev/null 2>&1
}

server() {
	for p in $(pidof cowfuse); do
		! tr '\0' ' ' <"/proc/$p/cmdline" | grep -qF "$img" || echo "$p"
	done
}

subtest "read-only by default"
cowfuse -p dscow "$img" "$mnt"
case ,$(mount_options "$mnt"), in *,ro,*) ;; *) fail "options are $(mount_options "$mnt")" ;; esac
[ "$(findmnt -n -o FSTYPE --target "$mnt")" = fuse.cowfuse ] || fail "type"
[ "$(findmnt -n -o SOURCE --target "$mnt")" = "$img" ] || fail "source"
expect_fail "echo x | dd of='$mnt/disk' conv=notrunc status=none" "[Rr]ead-only"
cmp "$mnt/disk" "$TMP/base"
case $(mount_options "$mnt") in *nosuid*nodev*) ;; *) fail "options are $(mount_options "$mnt")" ;; esac
fusermount3 -u "$mnt"
wait_for 20 closed

subtest "-o rw, and what is written is there the next time"
cowfuse -p dscow -o rw "$img" "$mnt"
printf hello | dd of="$mnt/disk" bs=4096 seek=3 conv=notrunc status=none
fusermount3 -u "$mnt"
wait_for 20 closed
cowfuse "$img" "$mnt" -o format=dscow,ro
[ "$(dd if="$mnt/disk" bs=4096 skip=3 count=1 status=none | head -c 5)" = hello ] || fail "lost a write"
fusermount3 -u "$mnt"
wait_for 20 closed

subtest "stopped by signals, orderly"
for sig in TERM INT HUP; do
	cowfuse -p dscow -o rw "$img" "$mnt"
	printf "$sig" | dd of="$mnt/disk" bs=4096 seek=7 conv=notrunc status=none
	kill -$sig $(server)
	wait_for 20 closed
	cowfuse -p dscow "$img" "$mnt"
	[ "$(dd if="$mnt/disk" bs=4096 skip=7 count=1 status=none | head -c ${#sig})" = $sig ] || fail "lost a write"
	fusermount3 -u "$mnt"
	wait_for 20 closed
done

subtest "stopped while in use"
cowfuse -p dscow -o rw "$img" "$mnt"
exec 8<>"$mnt/disk"
kill -TERM $(server)
wait_for 20 closed
exec 8>&-

subtest "in the foreground"
cowfuse -f -p dscow -o rw "$img" "$mnt" >"$TMP/out" 2>"$TMP/err" &
pid=$!
wait_for 20 '[ -e "$mnt/disk" ]'
printf fg | dd of="$mnt/disk" bs=4096 seek=8 conv=notrunc status=none
fusermount3 -u "$mnt"
wait $pid || fail "exit status $?"
grep -q "flushed and closed" "$TMP/err" || fail "said: $(cat "$TMP/err")"

subtest "killed, and started again on the same folder"
cowfuse -p dscow -o rw "$img" "$mnt"
printf survives | dd of="$mnt/disk" bs=4096 seek=9 conv=notrunc status=none
kill -KILL $(server)
wait_for 20 '[ -z "$(server)" ] || ! stat -f "$mnt" >/dev/null 2>&1'
cowfuse -p dscow -o rw "$img" "$mnt" 2>"$TMP/err"
[ "$(grep -c " $mnt fuse.cowfuse" /proc/mounts)" = 1 ] || fail "the dead mount is still there"
[ "$(dd if="$mnt/disk" bs=4096 skip=9 count=1 status=none | head -c 8)" = survives ] || fail "lost an acknowledged write"
fusermount3 -u "$mnt"
wait_for 20 closed

subtest "nothing is kept open: a caller that reads its output is not held up"
out=$(cowfuse -p dscow "$img" "$mnt" 2>&1)
[ -z "$out" ] || fail "said: $out"
fusermount3 -u "$mnt"
wait_for 20 closed

subtest "odd characters in names"
odd="$TMP/a,b \\c"
cp --sparse=always "$TMP/base" "$odd"
mkdir "$TMP/d,e f"
cowfuse -p raw "$odd" "$TMP/d,e f"
cmp "$TMP/d,e f/disk" "$TMP/base"
fusermount3 -u "$TMP/d,e f"

subtest "killed, in a folder with an odd name, given in an odd way"
(cd "$TMP" && cowfuse -p dscow -o rw "$img" "./d,e f/")
kill -KILL $(server)
wait_for 20 '! stat -f "$TMP/d,e f" >/dev/null 2>&1'
(cd "$TMP/d,e f/.." && cowfuse -p dscow -o rw "$img" "d,e f//")
cmp -s "$TMP/d,e f/disk" "$TMP/d,e f/layers/0" || fail "does not work"
fusermount3 -u "$TMP/d,e f"
! grep -qF "$TMP/d,e" /proc/mounts || fail "the dead mount is still there"
wait_for 20 closed

subtest "options of the format"
cowfuse -p raw -o offset=4096,size=8192 "$TMP/base" "$mnt"
[ "$(stat -c %s "$mnt/disk")" = 8192 ] || fail "size $(stat -c %s "$mnt/disk")"
cmp -n 8192 -i 0:4096 "$mnt/disk" "$TMP/base"
fusermount3 -u "$mnt"

subtest "another base"
mkdir "$TMP/moved"
mv "$TMP/base" "$TMP/moved/base"
expect_fail "cowfuse -p dscow '$img' '$mnt'" "base"
for how in "-b $TMP/moved/base" "-o backing=$TMP/moved/base"; do
	# shellcheck disable=SC2086
	cowfuse -p dscow $how "$img" "$mnt"
	fusermount3 -u "$mnt"
	wait_for 20 '! grep -q " $mnt " /proc/mounts'
done
mv "$TMP/moved/base" "$TMP/base"
