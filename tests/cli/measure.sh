#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# cowimg measure: what it says holds for the images that create and convert make, and is
# what QEMU says of qcow2.
. tests/lib/test.sh
require_cmd jq
cd "$TMP"
seq 1 300000 >data
truncate -s 40M sparse.raw
for at in 0 5000000 5100000 20000000 39900000; do
	head -c 50000 data | dd of=sparse.raw oflag=seek_bytes seek=$at conv=notrunc status=none
done

ask() {	# MEMBER ARGS...
	member=$1
	shift
	cowimg measure --output=json "$@" | jq ".$member"
}

subtest misuse
for bad in '' '--size 1M x' '--size 0' '-f raw --size 1M' 'sparse.raw'; do
	expect_fail "cowimg measure $bad" 'missing|too many|0 bytes|needs none|never guessed'
	[ $status = 2 ] || fail "status $status"
done
expect_fail 'cowimg measure --size 1M -O frob' "unknown format 'frob'"
expect_fail 'cowimg measure --size 1M -O zero' 'zero cannot be created'
expect_fail 'cowimg measure --size 1M -O dscow -o block_size=5' 'the new image: block size 5'
expect_fail 'cowimg measure -f raw missing.raw' 'No such file'

subtest formats where all has its place
[ "$(ask required_bytes -f raw sparse.raw)" = $((40 << 20)) ] || fail raw
for blocks in 4K 64K 1M; do
	want=$(ask required_bytes -f raw -O dscow -o block_size=$blocks sparse.raw)
	cowimg convert -q -f raw -O dscow -o block_size=$blocks --overwrite sparse.raw a.dscow
	[ "$(stat -c %s a.dscow)" = "$want" ] || fail "dscow $blocks: $want"
done
cowimg measure -f raw sparse.raw >said
printf 'required size: 41943040\nfully allocated size: 41943040\n' | cmp - said

[ -e "$BUILD/lib/cow/cow-qcow2.so" ] || exit 0
subtest qcow2
for options in cluster_size=64K cluster_size=4K cluster_size=2M extended_l2=on refcount_bits=1 refcount_bits=64; do
	need=$(ask required_bytes -f raw -O qcow2 -o $options sparse.raw)
	full=$(ask fully_allocated_bytes -f raw -O qcow2 -o $options sparse.raw)
	[ "$full" = "$(ask fully_allocated_bytes --size 40M -O qcow2 -o $options)" ] || fail "$options: $full"
	cowimg convert -q -f raw -O qcow2 -o $options --overwrite sparse.raw a.qcow2
	[ "$(stat -c %s a.qcow2)" -le "$need" ] || fail "$options: $(stat -c %s a.qcow2), said $need"
	cowimg write -q -f qcow2 -l 40M --pattern 1 a.qcow2
	[ "$(stat -c %s a.qcow2)" -le "$full" ] || fail "$options: $(stat -c %s a.qcow2), said $full"
	[ "$(stat -c %s a.qcow2)" -gt $((full - full / 50)) ] || fail "$options: said too much: $full"
	command -v qemu-img >/dev/null || continue
	[ "$(qemu-img measure --output=json -f raw -O qcow2 -o $options sparse.raw | jq '.required, ."fully-allocated"' | paste -sd ' ')" = \
		"$need $full" ] || fail "$options: QEMU says otherwise than $need $full"
done
