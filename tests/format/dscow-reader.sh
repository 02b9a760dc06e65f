#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The description of the format against the program: dscow_reader.py, written
# from dscow(5) alone, must read what cowimg reads, and refuse what it refuses.
. tests/lib/test.sh
require_cmd python3 jq
READER=$PWD/tests/format/dscow_reader.py
cd "$TMP"
python3 -c 'import ctypes; ctypes.CDLL("libxxhash.so.0")' 2>/dev/null ||
	skip "python3 finds no libxxhash.so.0"

same() {	# OVERLAY
	rm -f a.raw b.raw
	cowimg read -q -f dscow "$1" a.raw
	python3 "$READER" "$1" b.raw || fail "the reader refuses $1"
	cmp a.raw b.raw || fail "the reader and cowimg differ: $1"
}

refused() {	# OVERLAY REGEX: by both, by the reader with these words
	expect_fail "python3 '$READER' '$1' c.raw" "$2"
	expect_fail "cowimg read -f dscow '$1' - >/dev/null" "$1"
}

# put OFF LEN SEED: bytes that are not the base's
put() {
	seq "$3" 9999999 | head -c "$2" | cowimg write -q -f dscow -s "$1" over.dscow
}

seq 1 2000000 | head -c 9876543 >base.raw	# odd in every respect
touch -d '2001-02-03 04:05:06.789' base.raw

subtest block and granule sizes, odd places
for sizes in 4K,4K 64K,4K 64K,64K 1M,32K 16M,4K 16M,16M; do
	rm -f over.dscow
	cowimg create -q -f dscow -o "block_size=${sizes%,*},granule_size=${sizes#*,}" \
		-b base.raw -F raw over.dscow
	same over.dscow
	put 0 1 7000000
	put 4095 2 7100000
	put 65535 140001 7200000
	put 5000001 300000 7300000
	put 9876542 1 7400000
	cowimg zero -q -f dscow -s 1000000 -l 2000000 over.dscow
	cowimg discard -q -f dscow -s 70000 -l 60000 over.dscow
	same over.dscow
	cowimg read -q -f dscow over.dscow - | cmp -s base.raw - && fail "nothing was written: $sizes"
done

subtest larger and smaller than the base, and without one
for size in 1 4095 70001 12345678; do
	rm -f over.dscow
	cowimg create -q -f dscow -b base.raw -F raw over.dscow $size
	same over.dscow
	put 0 1 42
	same over.dscow
done
rm -f over.dscow
cowimg create -q -f dscow over.dscow 3000001
put 2000000 1000001 99
same over.dscow

subtest after shrinking and growing
rm -f over.dscow
cowimg create -q -f dscow -b base.raw -F raw over.dscow
put 3000000 6000000 8000000
cowimg resize -q -f dscow --shrink over.dscow 4000001
same over.dscow
cowimg resize -q -f dscow over.dscow 9999999
same over.dscow
cowimg read -q -f dscow -s 4000001 over.dscow - | tr -d '\0' | wc -c | grep -qx 0 ||
	fail 'what was cut off came back'
put 4100000 77777 8100000
same over.dscow

subtest with the map in an extension, moved, and shrunk away from
rm -f over.dscow
cowimg create -q -f dscow -o block_size=4K -b base.raw -F raw over.dscow
put 9000000 500000 8200000
cowimg resize -q -f dscow over.dscow 200000001
[ "$(cowimg info -f dscow --output=json over.dscow | jq '.layers[0].format_specific.incompatible_features')" = 1 ] ||
	fail 'there is no extension: this shows nothing'
same over.dscow
put 160000000 70001 8300000
put 199999990 11 8400000
same over.dscow
cowimg resize -q -f dscow over.dscow 300000000
put 299000000 1000000 8500000
same over.dscow
cowimg resize -q -f dscow --shrink over.dscow 100000001
same over.dscow
cowimg resize -q -f dscow over.dscow 170000000
put 169000000 1000000 8600000
same over.dscow

subtest a chain, and a base that was recorded anew
mkdir sub
rm -f over.dscow
cowimg create -q -f dscow -b base.raw -F raw over.dscow
put 123456 100000 8700000
cp --preserve=timestamps over.dscow mid.dscow
rm over.dscow
cowimg create -q -f dscow -o block_size=4K -b mid.dscow -F dscow over.dscow 11000000
put 200000 100000 8800000
same over.dscow
cp base.raw sub/copy.raw
cowimg rebase -q -u -f dscow -b sub/copy.raw -F raw mid.dscow
cowimg rebase -q -u -f dscow over.dscow
same over.dscow
cowimg rebase -q -u -f dscow -b base.raw -F raw mid.dscow
cowimg rebase -q -u -f dscow over.dscow
same over.dscow

subtest emptied by a commit
rm -f over.dscow
cp base.raw cbase.raw
cowimg create -q -f dscow -b cbase.raw -F raw over.dscow 10000000
put 123456 1000000 8900000
cowimg commit -q -f dscow over.dscow
same over.dscow
cmp a.raw cbase.raw || fail 'the base is not what the overlay was'
put 5 5 10
same over.dscow

flip() {	# FILE OFFSET: every bit of one byte
	byte=$(od -An -tu1 -j "$2" -N 1 "$1")
	printf "\\$(printf %o $((255 - byte)))" |
		dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

subtest both refuse the same damage
rm -f over.dscow
cowimg create -q -f dscow -b base.raw -F raw over.dscow
put 100000 100000 77
cp over.dscow whole.dscow
for at in 40 151 160 504 511; do
	cp whole.dscow bad.dscow
	flip bad.dscow $at
	refused bad.dscow 'header is damaged'
done
cp whole.dscow bad.dscow
flip bad.dscow 0
refused bad.dscow 'magic'
cp whole.dscow bad.dscow
flip bad.dscow 4097
refused bad.dscow 'map sector 0 is damaged'
cp whole.dscow bad.dscow
flip bad.dscow 4592
refused bad.dscow 'map sector 0 is damaged'
cp whole.dscow bad.dscow
flip bad.dscow 1024
refused bad.dscow 'text is damaged'
cp whole.dscow bad.dscow
truncate -s -1 bad.dscow
refused bad.dscow 'cut off'
# A sector of another place, with a right hash for that one.
cp whole.dscow bad.dscow
dd if=whole.dscow of=bad.dscow bs=512 skip=8 seek=9 count=1 conv=notrunc status=none
dd if=/dev/zero of=bad.dscow bs=512 seek=8 count=1 conv=notrunc status=none
cowimg check -f dscow bad.dscow >said && fail 'a map sector in the wrong place was not noticed'
grep -qx 'damaged map sector 1' said || fail "check said: $(cat said)"

subtest both see that the base changed
cp --preserve=timestamps base.raw kept.raw
touch base.raw
refused over.dscow 'modified'
printf x >>base.raw
touch -r kept.raw base.raw
refused over.dscow 'size'
cp --preserve=timestamps kept.raw base.raw
same over.dscow
flip base.raw 9876542
touch -r kept.raw base.raw
refused over.dscow 'contents'
