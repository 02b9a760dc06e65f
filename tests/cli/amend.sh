#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 600
#
# cowimg amend of qcow2 images that QEMU made, and qemu-img amend of ours: what one
# changes, the other reads and checks; and what is refused, with nothing changed.
. tests/lib/test.sh
. tests/lib/qcow2.sh
cd "$TMP"
seq 1 900000 | head -c 3000000 >data.raw
truncate -s 4M data.raw
head -c 1M data.raw >base.raw

amend() {
	cowimg amend -q -f qcow2 "$@"
}
# fact IMAGE QEMU-MEMBER WANT: what both say of the image
fact() {
	is=$(qemu-img info -f qcow2 --output=json "$1" | jq -r ".\"format-specific\".data.\"$2\"")
	[ "$is" = "$3" ] || fail "QEMU says $2 of $1 is $is, not $3"
}
refused() {	# IMAGE OPTIONS REGEX
	cp --sparse=always "$1" before
	expect_fail "cowimg amend -f qcow2 -o $2 $1" "$3"
	cmp "$1" before || fail "$2 was refused, but $1 changed"
}

subtest the version
for base in '' '-b base.raw -F raw'; do
	qemu-img create -q -f qcow2 -o compat=0.10 $base a.qcow2 4M
	cowimg write -q -f qcow2 a.qcow2 data.raw
	qemu-img snapshot -c one a.qcow2
	amend -o compat=1.1 a.qcow2
	fact a.qcow2 compat 1.1
	both_clean a.qcow2
	both_read a.qcow2 data.raw
	[ -z "$base" ] || [ "$(qemu-img info --output=json a.qcow2 | jq -r '."backing-filename-format"')" = raw ] ||
		fail 'the format of the base is gone'
	[ "$(qemu-img snapshot -l a.qcow2 | grep -c one)" = 1 ] || fail 'the snapshot is gone'
	cowimg write -q -f qcow2 -s 1000 -l 5000 --pattern 0x61 a.qcow2
	cowimg read -q -f qcow2 a.qcow2 now.raw
	both_clean a.qcow2
	amend -o compat=v2 a.qcow2
	fact a.qcow2 compat 0.10
	both_clean a.qcow2
	both_read a.qcow2 now.raw
	qemu-img amend -f qcow2 -o compat=1.1 a.qcow2
	amend -o compat=0.10 a.qcow2
	amend -o compat=0.10 a.qcow2
	both_clean a.qcow2
	both_read a.qcow2 now.raw
	qemu-img snapshot -a one a.qcow2
	both_read a.qcow2 data.raw
	rm -f a.qcow2 now.raw
done

subtest a name of the base that fills the first sector
long=$(printf 'd%.0s' $(seq 1 180))
mkdir -p "$long/$long"
cp base.raw "$long/$long/base.raw"
for compat in 0.10 1.1; do
	qemu-img create -q -f qcow2 -o compat=$compat -b "$long/$long/base.raw" -F raw long.qcow2
	[ $compat = 0.10 ] && other=1.1 || other=0.10
	amend -o compat=$other long.qcow2
	fact long.qcow2 compat $other
	both_clean long.qcow2
	both_read long.qcow2 base.raw
	cowimg rebase -q -u -f qcow2 -b base.raw -F raw long.qcow2
	both_read long.qcow2 base.raw
	rm long.qcow2
	# A name that is put into the first sector stays there.
	qemu-img create -q -u -f qcow2 -o compat=$compat -b elsewhere.raw -F raw short.qcow2 1M
	cowimg rebase -q -u -f qcow2 -b base.raw -F raw short.qcow2
	both_read short.qcow2 base.raw
	rm short.qcow2
done

subtest lazy refcounts
cowimg create -q -f qcow2 b.qcow2 4M
cowimg write -q -f qcow2 b.qcow2 data.raw
amend -o lazy_refcounts=on b.qcow2
fact b.qcow2 lazy-refcounts true
both_clean b.qcow2
amend -o lazy_refcounts=off b.qcow2
fact b.qcow2 lazy-refcounts false
qemu-img amend -f qcow2 -o lazy_refcounts=on b.qcow2
cowimg info -f qcow2 --output=json b.qcow2 | jq -e '.layers[0].format_specific.lazy_refcounts' >/dev/null ||
	fail 'QEMU amended, cowimg does not see it'
both_read b.qcow2 data.raw

subtest the width of refcounts
while read -r maker widths options; do
	case $maker in
	ours) cowimg create -q -f qcow2 --overwrite -o "$options" c.qcow2 4M ;;
	*) qemu-img create -q -f qcow2 -o "$options" c.qcow2 4M ;;
	esac
	cowimg write -q -f qcow2 c.qcow2 data.raw
	for bits in $(echo "$widths" | tr , ' '); do
		amend -o refcount_bits=$bits c.qcow2
		fact c.qcow2 refcount-bits $bits
		both_clean c.qcow2
		both_read c.qcow2 data.raw
		# And it goes on from there.
		cowimg write -q -f qcow2 -s 3M -l 70000 --pattern $bits c.qcow2
		cowimg write -q -f qcow2 -s 3M -l 70000 --pattern 0 c.qcow2
	done
	both_clean c.qcow2
	rm c.qcow2
done <<-END
	ours 1,64,2,32,4,8,16 cluster_size=4K
	ours 64,1 cluster_size=64K
	ours 8,32 cluster_size=16K,extended_l2=on
	qemu 1,16 cluster_size=4K,refcount_bits=64
	qemu 64 cluster_size=2M
END
# QEMU takes its time over this; once is enough.
qemu-img create -q -f qcow2 -o cluster_size=64K c.qcow2 4M
cowimg write -q -f qcow2 c.qcow2 data.raw
qemu-img amend -f qcow2 -o refcount_bits=8 c.qcow2
cowimg write -q -f qcow2 -s 3M -l 70000 --pattern 0 c.qcow2
both_clean c.qcow2
both_read c.qcow2 data.raw
cowimg create -q -f qcow2 -o cluster_size=4K d.qcow2 4M
cowimg write -q -f qcow2 d.qcow2 data.raw
for name in 1 2 3 4; do
	cowimg snapshot -q -f qcow2 -c $name d.qcow2
done
refused d.qcow2 refcount_bits=2 'has 5 references, which refcounts of 2 bits cannot count'
amend -o refcount_bits=4 d.qcow2
both_clean d.qcow2
size=$(stat -c %s d.qcow2)
for bits in 64 4 64 4; do
	amend -o refcount_bits=$bits d.qcow2
done
both_clean d.qcow2
both_read d.qcow2 data.raw
[ "$(stat -c %b d.qcow2)" -le $((size / 512 + 1024)) ] || fail 'the space of old refcounts is not given back'

subtest several at once
qemu-img create -q -f qcow2 -o compat=0.10 e.qcow2 4M
amend -o compat=1.1,refcount_bits=32,lazy_refcounts=on e.qcow2
fact e.qcow2 refcount-bits 32
fact e.qcow2 lazy-refcounts true
amend -o compat=0.10,refcount_bits=16 e.qcow2
fact e.qcow2 compat 0.10
both_clean e.qcow2

subtest what is refused
cowimg create -q -f qcow2 z.qcow2 4M
cowimg write -q -f qcow2 z.qcow2 data.raw
qemu-io -f qcow2 -c 'write -z 64k 64k' z.qcow2 >/dev/null
refused z.qcow2 compat=0.10 'clusters that only read as zeroes.*convert it'
cowimg create -q -f qcow2 -o extended_l2=on x.qcow2 4M
refused x.qcow2 compat=0.10 'has subclusters'
cowimg create -q -f qcow2 -o compression_type=zstd s.qcow2 4M
refused s.qcow2 compat=0.10 'zstd'
cowimg create -q -f qcow2 -o refcount_bits=8 r.qcow2 4M
refused r.qcow2 compat=0.10 'say refcount_bits=16, too'
qemu-img create -q -f qcow2 m.qcow2 4M
qemu-img bitmap --add m.qcow2 bits
refused m.qcow2 compat=0.10 'bitmaps'
qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 4M
refused v2.qcow2 lazy_refcounts=on 'has no lazy_refcounts'
refused v2.qcow2 refcount_bits=8 'say refcount_bits=16'
refused r.qcow2 refcount_bits=3 'refcount_bits is not 1, 2'
refused r.qcow2 refcount_bits=128 'refcount_bits is not 1, 2'
refused r.qcow2 compat=2.0 'compat is neither'
refused r.qcow2 cluster_size=4K 'cluster_size'
refused r.qcow2 lazy_refcounts=maybe 'lazy_refcounts'
expect_fail 'cowimg amend -f qcow2 r.qcow2' '-o is missing'
expect_fail 'cowimg amend -o compat=1.1 r.qcow2' '-f FORMAT is missing.*looks like qcow2'
expect_fail 'cowimg amend -f raw -o x=y data.raw' 'has no options that can be amended'
expect_fail 'cowimg amend -f qcow2 -o compat=1.1 none' 'none'
cowimg amend -f qcow2 -o help r.qcow2 | grep -q '^  refcount_bits=NUMBER ' || fail '-o help'
