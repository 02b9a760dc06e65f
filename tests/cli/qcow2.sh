#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 300
#
# qcow2 on the command line: what is created, what is refused and in which
# words, bases, growing, commit, repair, and marks left by others.
. tests/lib/test.sh
. tests/lib/qcow2.sh

cd "$TMP"
seq 1 900000 | head -c 5000000 >base.raw
seq 5 900000 | head -c 300000 >piece

info() {	# IMAGE MEMBER
	qemu-img info -U --output=json "$1" | jq -r "$2"
}
specific() {	# IMAGE MEMBER
	info "$1" ".\"format-specific\".data.\"$2\""
}
poke() {	# IMAGE OFFSET OCTAL...
	printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

subtest options of create
cowimg create -q -f qcow2 -o cluster_size=128K,refcount_bits=32,lazy_refcounts=on,extended_l2=on,compression_type=zstd a.qcow2 10M
[ "$(info a.qcow2 '."cluster-size"')" = 131072 ] || fail "cluster size"
[ "$(specific a.qcow2 refcount-bits)" = 32 ] || fail "refcount bits"
[ "$(specific a.qcow2 lazy-refcounts)" = true ] || fail "lazy refcounts"
[ "$(specific a.qcow2 extended-l2)" = true ] || fail "extended L2"
[ "$(specific a.qcow2 compression-type)" = zstd ] || fail "compression type"
both_clean a.qcow2
cowimg create -q -f qcow2 --overwrite -o compat=0.10 a.qcow2 1000000
[ "$(specific a.qcow2 compat)" = 0.10 ] || fail "version 2"
[ "$(info a.qcow2 '."virtual-size"')" = 1000448 ] || fail "the size is not rounded up to sectors"
while read -r options words; do
	expect_fail "cowimg create -f qcow2 -o $options bad.qcow2 1M" "$words"
	[ ! -e bad.qcow2 ] || fail "bad.qcow2 was left"
done <<-END
	cluster_size=2K not a power of two between 4K and 2M
	cluster_size=4M not a power of two between 4K and 2M
	cluster_size=5000 not a power of two
	refcount_bits=3 refcount_bits is not
	refcount_bits=128 refcount_bits is not
	extended_l2=on,cluster_size=8K needs clusters of 16K
	compat=0.10,extended_l2=on compat=0.10 has neither
	compat=0.10,refcount_bits=8 compat=0.10 has neither
	compat=2 compat is neither
	compression_type=lzo neither zlib nor zstd
	preallocation=full other than off
END
expect_fail 'cowimg create -f qcow2 -o cluster_size=4K bad.qcow2 100T' 'more than clusters of this size can hold'

subtest overlays
cowimg create -q -f qcow2 -b base.raw -F raw o.qcow2 6M
cp base.raw model
truncate -s 6M model
cowimg write -q -f qcow2 -s 4900000 o.qcow2 piece
dd if=piece of=model bs=100000 seek=49 conv=notrunc status=none
cowimg zero -q -f qcow2 -s 1000000 -l 1000000 o.qcow2
dd if=/dev/zero of=model bs=1000000 seek=1 count=1 conv=notrunc status=none
both_clean o.qcow2
both_read o.qcow2 model
cowimg resize -q -f qcow2 o.qcow2 9M
truncate -s 9M model
both_clean o.qcow2
both_read o.qcow2 model

subtest a longer base stays hidden when an overlay grows
qemu-img create -q -f qcow2 -b base.raw -F raw g.qcow2 1M
cowimg resize -q -f qcow2 g.qcow2 3M
head -c 1M base.raw >short
truncate -s 3M short
both_clean g.qcow2
both_read g.qcow2 short

subtest another base, and commit
cp base.raw moved-to-a-longer-name.raw
cowimg rebase -q -u -f qcow2 -b moved-to-a-longer-name.raw -F raw o.qcow2
[ "$(info o.qcow2 '."backing-filename"')" = moved-to-a-longer-name.raw ] || fail "the base's name"
both_read o.qcow2 model
cowimg commit -q -f qcow2 o.qcow2
cmp moved-to-a-longer-name.raw model || fail "the base is not what the overlay was"
both_clean o.qcow2
both_read o.qcow2 model
[ "$(cowimg map -f qcow2 --output=json o.qcow2 | jq '[.. | objects | select(.depth == 0 and .kind == "data")] | length')" = 0 ] ||
	fail "the overlay is not empty"

subtest refused by name
cowimg create -q -f qcow2 e.qcow2 1M
printf '\003' | dd of=e.qcow2 bs=1 seek=35 conv=notrunc status=none
expect_fail 'cowimg info -f qcow2 e.qcow2' 'is encrypted by method 3, which this program does not know'
qemu-img create -q -f qcow2 -o cluster_size=512 s.qcow2 1M
qemu-io -f qcow2 -c 'write -P 3 0 5000' s.qcow2 >/dev/null
cowimg read -q -f qcow2 s.qcow2 - >got.raw
qemu-img convert -f qcow2 -O raw s.qcow2 want.raw
cmp got.raw want.raw || fail "small clusters"
expect_fail 'cowimg zero -f qcow2 -l 4K s.qcow2' 'below 4 KiB can only be read'
qemu-img create -q -f qcow2 u.qcow2 1M
poke u.qcow2 72 '\000\000\000\000\000\000\000\100'	# bit 6, and the name of bit 4 for it
expect_fail 'cowimg info -f qcow2 u.qcow2' 'features that this program does not know: bit 6'
at=$(grep -abo 'extended L2 entries' u.qcow2 | cut -d : -f 1)
poke u.qcow2 $((at - 1)) '\006'
expect_fail 'cowimg info -f qcow2 u.qcow2' 'does not know: extended L2 entries'

subtest snapshots are read and kept
qemu-img create -q -f qcow2 n.qcow2 2M
qemu-io -f qcow2 -c 'write -P 7 100k 300k' n.qcow2 >/dev/null
qemu-img convert -f qcow2 -O raw n.qcow2 first.raw
qemu-img snapshot -c one n.qcow2
cowimg write -q -f qcow2 -s 150000 n.qcow2 piece
cp first.raw second.raw
dd if=piece of=second.raw bs=50000 seek=3 conv=notrunc status=none
both_clean n.qcow2
both_read n.qcow2 second.raw
for id in 1 one; do
	cowimg read -q -f qcow2 -o snapshot=$id n.qcow2 - | cmp - first.raw || fail "snapshot $id"
done
expect_fail 'cowimg read -f qcow2 -o snapshot=two n.qcow2 -' "has no snapshot 'two'"
expect_fail 'cowimg zero -f qcow2 -o snapshot=one -l 4K n.qcow2' 'can only be read'
qemu-img snapshot -a one n.qcow2
both_read n.qcow2 first.raw

subtest compressed clusters
for type in zlib zstd; do
	qemu-img convert -q -c -O qcow2 -o compression_type=$type -f raw base.raw c.qcow2
	cowimg read -q -f qcow2 c.qcow2 - >got.raw
	truncate -s "$(info c.qcow2 '."virtual-size"')" got.raw
	qemu-img convert -f qcow2 -O raw c.qcow2 want.raw
	cmp got.raw want.raw || fail "$type"
	cowimg write -q -f qcow2 -s 1234567 c.qcow2 piece
	dd if=piece of=want.raw oflag=seek_bytes seek=1234567 conv=notrunc status=none
	both_clean c.qcow2
	both_read c.qcow2 want.raw
done

subtest a killed writer with delayed refcounts
qemu-img create -q -f qcow2 -o lazy_refcounts=on l.qcow2 4M
qemu-io -f qcow2 -c 'write -P 5 0 1M' -c 'flush' -c 'abort' l.qcow2 >/dev/null 2>&1 || true
[ "$(cowimg info -f qcow2 --output=json l.qcow2 | jq '.layers[0].format_specific.dirty')" = true ] ||
	fail "QEMU left no mark: this shows nothing"
cowimg write -q -f qcow2 -s 2M l.qcow2 piece
both_clean l.qcow2
[ "$(cowimg info -f qcow2 --output=json l.qcow2 | jq '.layers[0].format_specific.dirty')" = false ] ||
	fail "the mark is left"

subtest leaks and low refcounts are repaired
cowimg create -q -f qcow2 -o cluster_size=4K r.qcow2 4M
cowimg write -q -f qcow2 r.qcow2 piece
poke r.qcow2 8200 '\000\000'	# the refcount of the first table
poke r.qcow2 10000 '\000\005'	# of a cluster behind everything
status=0
cowimg check -q -f qcow2 r.qcow2 || status=$?
[ $status = 2 ] || fail "status $status"
expect_fail 'cowimg zero -f qcow2 -l 4K r.qcow2' 'has refcount 0: repair the image'
cowimg check -q -f qcow2 -r all r.qcow2 || fail "not repaired"
both_clean r.qcow2
head -c 300000 piece >want.raw
truncate -s 4M want.raw
both_read r.qcow2 want.raw

subtest wrong flags, and clusters referred to twice, are repaired
entries() {	# IMAGE CHANGE: of l1, l2 and the refcount table rt: the first tables as lists
	python3 - "$@" <<'END'
import struct, sys
with open(sys.argv[1], 'r+b') as f:
    def table(off, fmt, new=None):
        f.seek(off)
        if new is None:
            return list(struct.unpack(fmt, f.read(struct.calcsize(fmt))))
        f.write(struct.pack(fmt, *new))
    l1_off, rt_off = table(40, '>2Q')
    rt = table(rt_off, '>512Q')
    l1 = table(l1_off, '>2Q')
    l2_off = l1[0] & (1 << 56) - 512
    l2 = table(l2_off, '>512Q')
    exec(sys.argv[2])
    table(rt_off, '>512Q', rt)
    table(l1_off, '>2Q', l1)
    table(l2_off, '>512Q', l2)
END
}
damaged() {	# CHANGE: of the sound image, which check sees
	cp sound.qcow2 r.qcow2
	entries r.qcow2 "$1"
	status=0
	cowimg check -q -f qcow2 r.qcow2 || status=$?
	[ $status = 2 ] || fail "$1: status $status"
}
cp r.qcow2 sound.qcow2
for change in 'l2[3] ^= 1 << 63' 'l1[0] ^= 1 << 63' 'l2[5] = l2[4]' \
    'rt[7] = l2_off; l2[3] ^= 1 << 63' 'rt[7] = l1_off; l1[0] ^= 1 << 63' 'rt[0] = l2[3] & ~(1 << 63)' \
    'rt[7] = rt[8] = rt[0]'; do
	damaged "$change"
	cowimg check -q -f qcow2 -r all r.qcow2 || fail "$change: not repaired"
	both_clean r.qcow2
done
damaged 'l2[6] = l1[0]'			# data upon a table
damaged 'l2[6] = l1[0]; rt[7] = l2_off'	# and a refcount block: that it can be moved hides nothing
cowimg check -q -f qcow2 -r all r.qcow2 && fail "data upon a table was repaired" || :
damaged 'l2[3] |= 1 << 57'		# bits that mean nothing, neither here
damaged 'l1[0] |= 1 << 3'		# nor there
cowimg check -q -f qcow2 -r all r.qcow2 && fail "bits that mean nothing were repaired" || :
cowimg read -q -f qcow2 r.qcow2 - | cmp - want.raw || fail "bits that mean nothing change what is read"
damaged 'l2[511] = 1 << 63 | 7 << 40'	# behind all that refcounts can be told of
cowimg check -q -f qcow2 sound.qcow2

