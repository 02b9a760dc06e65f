# SPDX-License-Identifier: GPL-2.0-or-later
#
# What cowfuse says to bad input: one sentence, a non-zero status, nothing
# mounted, nothing left running, the image unchanged.
. tests/lib/test.sh
require_fuse
img=$TMP/over.dscow
mnt=$TMP/mnt
mkdir "$mnt"
at_exit 'umount -l "$mnt" 2>/dev/null || true'
head -c 1048576 /dev/urandom >"$TMP/base"
dscow_tool -c "$img" "$TMP/base" >/dev/null
sums=$(sha256sum "$img" "$TMP/base")

refuse() {	# ARGUMENTS REGEX
	expect_fail "cowfuse $1" "^cowfuse: .*($2)"
	! grep -q " $mnt " /proc/mounts || fail "something was mounted: cowfuse $1"
	[ "$(sha256sum "$img" "$TMP/base")" = "$sums" ] || fail "a file was changed: cowfuse $1"
	for p in $(pidof cowfuse); do
		! tr '\0' ' ' <"/proc/$p/cmdline" | grep -qF "$TMP/" || fail "still running: cowfuse $1"
	done
}

subtest "the command line"
refuse "" "IMAGE is missing"
refuse "'$img'" "DIR is missing"
refuse "'$img' '$mnt'" "FORMAT is missing"
refuse "-p dscow '$img' '$mnt' more" "'more' is one operand too many"
refuse "-p dscow '' '$mnt'" "IMAGE is empty"
refuse "-p dscow '$img' ''" "DIR is empty"
refuse "--no-such-option '$img' '$mnt'" "no-such-option"
refuse "-p" "needs an argument"
refuse "-p nosuch '$img' '$mnt'" "nosuch"
refuse "-p ../dscow '$img' '$mnt'" "dscow"
refuse "-p dscow -o nonsense '$img' '$mnt'" "'nonsense' is not an option"
refuse "-p dscow -o nonsense=1 '$img' '$mnt'" "'nonsense' is not an option"
refuse "-p dscow -o cache=lots '$img' '$mnt'" "'lots' is not a size"
refuse "-p dscow -r -o rw '$img' '$mnt'" "both read-only and rw"
refuse "-p dscow -o ro,rw '$img' '$mnt'" "both read-only and rw"
refuse "-p dscow -b '' '$img' '$mnt'" "empty"
refuse "-p raw -o offset=x '$TMP/base' '$mnt'" "offset"

subtest "the image"
refuse "-p dscow '$TMP/none' '$mnt'" "none.*No such file"
refuse "-p dscow '$TMP/base' '$mnt'" "base"
refuse "-p dscow '$TMP' '$mnt'" "."
head -c 5000 "$img" >"$TMP/short"
refuse "-p dscow '$TMP/short' '$mnt'" "short"
refuse "-p zero -o rw,size=1M x '$mnt'" "."

subtest "the folder"
refuse "-p dscow '$img' '$TMP/nowhere'" "nowhere.*No such file"
refuse "-p dscow '$img' '$TMP/base'" "base.*not a folder"
refuse "-p dscow -o rw '$img' '$TMP/nowhere'" "nowhere.*No such file"

subtest "an image in use"
cowfuse -p dscow -o rw "$img" "$mnt"
mkdir "$TMP/other"
expect_fail "cowfuse -p dscow -o rw '$img' '$TMP/other'" "^cowfuse: .*over.dscow"
expect_fail "cowfuse -p dscow '$img' '$TMP/other'" "^cowfuse: .*over.dscow"
! grep -q " $TMP/other " /proc/mounts || fail "mounted twice"
fusermount3 -u "$mnt"
wait_for 20 'cowimg info -f dscow "$img" >/dev/null 2>&1 && ! grep -q " $mnt " /proc/mounts'

if [ "$(id -u)" = 0 ] && unshare -m true 2>/dev/null && [ "${BUILD#/dev/}" = "$BUILD" ]; then
	subtest "no /dev/fuse"
	expect_fail "unshare -m sh -c 'mount -t tmpfs none /dev && exec cowfuse -p dscow \"$img\" \"$mnt\"'" \
		"^cowfuse: .*(/dev/fuse|device not found)"
fi
