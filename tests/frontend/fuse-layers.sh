# SPDX-License-Identifier: GPL-2.0-or-later
#
# layers/N: what each layer of a chain and those below it hold.
. tests/lib/test.sh
require_fuse
require_cmd cmp
mnt=$TMP/mnt
mkdir "$mnt"
at_exit 'fusermount3 -u -z "$mnt" 2>/dev/null || true'

put() {	# IMAGE-OPTIONS... ; writes $text at $at through a mount of its own
	cowfuse -p dscow -o rw "$1" "$mnt"
	printf %s "$text" | dd of="$mnt/disk" bs=4096 seek="$at" conv=notrunc,fsync status=none
	fusermount3 -u "$mnt"
	wait_for 20 "cowimg info -f dscow '$1' >/dev/null 2>&1 && ! grep -q ' $mnt ' /proc/mounts"
}

head -c 8388608 /dev/urandom >"$TMP/base"
cp "$TMP/base" "$TMP/base.was"
dscow_tool -c "$TMP/mid" "$TMP/base" >/dev/null
text=written-in-the-middle at=10
put "$TMP/mid"
dscow_tool -c "$TMP/top" "$TMP/mid" -F dscow >/dev/null
text=written-at-the-top at=20
put "$TMP/top"
text=both-top at=10
put "$TMP/top"

subtest "each layer shows itself and what is below"
cowfuse -p dscow "$TMP/top" "$mnt"
[ "$(ls "$mnt/layers" | tr '\n' ' ')" = "0 1 2 " ] || fail "layers: $(ls "$mnt/layers")"
cmp "$mnt/layers/0" "$mnt/disk"
cmp "$mnt/layers/2" "$TMP/base"
page() { dd if="$mnt/$1" bs=4096 skip="$2" count=1 status=none | head -c "$3"; }
[ "$(page layers/0 10 8)" = both-top ] || fail "layer 0 at 10"
[ "$(page layers/1 10 21)" = written-in-the-middle ] || fail "layer 1 at 10"
[ "$(page layers/0 20 18)" = written-at-the-top ] || fail "layer 0 at 20"
cmp -s -n 4096 -i 81920:81920 "$mnt/layers/1" "$TMP/base" || fail "layer 1 at 20 is not the base's"
subtest "layers are read-only and read at random like any file"
expect_fail ": >>'$mnt/layers/1'" "[Rr]ead-only"
for skip in 0 1 5 9 10 11 20 2047; do
	dd if="$mnt/layers/2" bs=4096 skip=$skip count=1 status=none | cmp -n 4096 -i "0:$((skip * 4096))" - "$TMP/base"
done
fusermount3 -u "$mnt"
wait_for 20 "cowimg info -f dscow '$TMP/top' >/dev/null 2>&1 && ! grep -q ' $mnt ' /proc/mounts"

subtest "while the disk is written, the lower layers stay"
cowfuse -p dscow -o rw "$TMP/top" "$mnt"
sum=$(sha256sum <"$mnt/layers/1")
for i in 1 2 3; do
	printf "change %s" $i | dd of="$mnt/disk" bs=4096 seek=10 conv=notrunc status=none
	[ "$(page layers/0 10 8)" = "change $i" ] || fail "layers/0 does not follow"
	[ "$(sha256sum <"$mnt/layers/1")" = "$sum" ] || fail "layers/1 changed"
done
fusermount3 -u "$mnt"
wait_for 20 "cowimg info -f dscow '$TMP/top' >/dev/null 2>&1"
cmp "$TMP/base" "$TMP/base.was"
