#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# dscow_tool: its exact output, and that each option does what the verb of
# cowimg behind it does.
. tests/lib/test.sh
cd "$TMP"

misuse() {
	expect_fail "$1" "$2"
	[ $status = 2 ] || fail "$1: exit status $status, not 2"
}

subtest the five lines
truncate -s 537919488 base.raw
base_sum=$(sha256sum <base.raw)
dscow_tool -c over.dscow base.raw >said
cat >want <<-EOF
	Size:         537919488
	First block:  65536
	Block size:   65536
	Blocks:       8208
	Bitmap count: 257
EOF
diff want said || fail 'not the five lines'

subtest block sizes
for b in 4096 8K 64K 1M 16M; do
	dscow_tool -c -b $b b.dscow base.raw >said
	case $b in 8K) n=8192 ;; 64K) n=65536 ;; 1M) n=1048576 ;; 16M) n=16777216 ;; *) n=$b ;; esac
	blocks=$(((537919488 + n - 1) / n))
	grep -qx "Block size:   $n" said || fail "-b $b: $(cat said)"
	grep -qx "Blocks:       $blocks" said || fail "-b $b: $(cat said)"
	grep -qx "Bitmap count: $(((blocks + 31) / 32))" said || fail "-b $b: $(cat said)"
	first=$(sed -n 's/First block: *//p' said)
	[ $((first % n)) = 0 ] && [ "$first" -gt 0 ] || fail "-b $b: first block $first"
	dscow_tool -s b.dscow >shown
	head -n 5 shown | diff said - || fail "-s says otherwise than -c for -b $b"
	rm b.dscow
done
for b in 0 1 2048 5000 32M 4097 x -4096; do
	expect_fail "dscow_tool -c b.dscow base.raw -b $b" '.'
	[ ! -e b.dscow ] || fail "-b $b left a file"
done

subtest misuse
misuse 'dscow_tool' 'one of -c'
misuse 'dscow_tool over.dscow' 'one of -c'
misuse 'dscow_tool -c over.dscow' 'BASE is missing'
misuse 'dscow_tool -c' 'OVERLAY is missing'
misuse 'dscow_tool -c a b c' 'too many'
misuse 'dscow_tool -s' 'OVERLAY is missing'
misuse 'dscow_tool -s over.dscow base.raw' 'too many'
misuse 'dscow_tool -s -k over.dscow' 'only one'
misuse 'dscow_tool -r' 'needs an argument'
misuse 'dscow_tool -r 1x over.dscow' 'not a size'
misuse 'dscow_tool --frobnicate' 'unknown'
dscow_tool --help | grep -q '^Usage: dscow_tool -c OVERLAY BASE' || fail help
expect_fail 'dscow_tool -c over.dscow base.raw' 'exists'
expect_fail 'dscow_tool -c new.dscow missing.raw' 'missing.raw'
expect_fail 'dscow_tool -c new.dscow base.raw -F frob' 'frob'
[ ! -e new.dscow ] || fail 'a failed -c left a file'
expect_fail 'dscow_tool -s base.raw' 'base.raw'
expect_fail 'dscow_tool -s missing' 'missing'
expect_fail 'dscow_tool -m base.raw' 'base.raw'

subtest show, map, check
dscow_tool -s over.dscow >said
for label in UUID Granule Base State Present; do
	grep -q "^$label" said || fail "no $label in: $(cat said)"
done
grep -qx 'Present:      0' said || fail "present: $(cat said)"
awk 'substr($0, 15, 1) == " " || substr($0, 14, 1) != " " { exit 1 }' said || fail "not in columns: $(cat said)"
cowimg write -f dscow -s 5000 -l 10000 --pattern 1 over.dscow
dscow_tool -s over.dscow | grep -qx 'Present:      12288' || fail 'present bytes after a write'
dscow_tool -s --output=json over.dscow | grep -q '"present_bytes": *12288' || fail 'show json'
dscow_tool -m over.dscow | grep -q ' 0 *data .*over.dscow' || fail map
dscow_tool -k over.dscow | grep -q 'No errors' || fail check
dscow_tool -R over.dscow | grep -q 'No errors' || fail repair

subtest resize
dscow_tool -r +512 over.dscow
dscow_tool -s over.dscow | grep -qx 'Size:         537920000' || fail 'resize +512'
expect_fail 'dscow_tool -r -512 over.dscow' '--shrink'
dscow_tool -r -512 --shrink over.dscow
dscow_tool -s over.dscow | grep -qx 'Size:         537919488' || fail 'resize -512'
dscow_tool -r 600M -q over.dscow
dscow_tool -s over.dscow | grep -qx 'Size:         629145600' || fail 'resize 600M'

subtest commit
[ "$(sha256sum <base.raw)" = "$base_sum" ] || fail 'the base was changed'
cp --sparse=always base.raw cbase.raw
dscow_tool -c c.dscow cbase.raw -q
cowimg write -f dscow -s 70000 -l 12345 --pattern 0x61 c.dscow
dscow_tool -C c.dscow
cowimg read -f raw -s 70000 -l 12345 --pattern 0x61 cbase.raw
cowimg read -f raw -l 70000 --pattern 0 cbase.raw
dscow_tool -s c.dscow | grep -qx 'Present:      0' || fail 'not empty after the commit'

subtest overlay of an overlay, rebase
dscow_tool -c top.dscow c.dscow -F dscow -q
cowimg read -f dscow -s 70000 -l 12345 --pattern 0x61 top.dscow
cp --sparse=always cbase.raw copy.raw
dscow_tool --rebase c.dscow copy.raw
dscow_tool -s c.dscow | grep -q '^Base: .*copy.raw' || fail 'rebase'
touch -d @1000000000 copy.raw
expect_fail 'dscow_tool -m c.dscow' 'copy.raw was modified'
dscow_tool -m --force c.dscow >said 2>err
dscow_tool --rebase c.dscow 2>err
dscow_tool -m c.dscow >said
