#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 300
#
# qcow on the command line: what is created, what is refused and in which words,
# bases, growing, commit, compressed clusters, and images of Xen.
. tests/lib/test.sh
[ -e "$BUILD/lib/cow/cow-qcow.so" ] || skip "built without zlib and zstd"
require_cmd qemu-img qemu-io jq

cd "$TMP"
seq 1 900000 | head -c 5000000 >base.raw
seq 5 900000 | head -c 300000 >piece

info() {	# IMAGE MEMBER
	qemu-img info -U --output=json "$1" | jq -r "$2"
}
both_read() {	# IMAGE FILE [OPTION...]
	image=$1 file=$2
	shift 2
	cowimg check -q -f qcow "$@" -r all "$image" || fail "cowimg finds something in $image"
	qemu-img convert -f qcow -O raw "$image" got.raw
	cmp got.raw "$file" || fail "QEMU reads $image otherwise"
	cowimg read -q -f qcow "$@" "$image" - | cmp - "$file" || fail "cowimg reads $image otherwise"
}
poke() {	# IMAGE OFFSET OCTAL...
	printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}
over() {	# FILE OFFSET-IN-PIECES: the model of writing piece there
	dd if=piece of="$1" bs=100000 seek="$2" conv=notrunc status=none
}

subtest options of create
cowimg create -q -f qcow a.qcow 1000000
[ "$(info a.qcow '."cluster-size"')" = 4096 ] || fail "cluster size"
[ "$(info a.qcow '."virtual-size"')" = 1000448 ] || fail "the size is not rounded up to sectors"
for size in 512 1K 2K 8K 16K 32K 64K; do
	cowimg create -q -f qcow --overwrite -o cluster_size=$size a.qcow 3M
	cowimg write -q -f qcow -s 100000 a.qcow piece
	rm -f model
	truncate -s 3M model
	over model 1
	both_read a.qcow model
done
while read -r options words; do
	expect_fail "cowimg create -f qcow -o $options bad.qcow 1M" "$words"
	[ ! -e bad.qcow ] || fail "bad.qcow was left"
done <<-END
	cluster_size=256 not a power of two between 512 and 64K
	cluster_size=128K not a power of two between 512 and 64K
	cluster_size=5000 not a power of two
	refcount_bits=16 refcount_bits
END
expect_fail 'cowimg create -f qcow bad.qcow 9T' 'more than clusters of this size can hold'

subtest measured as they become
for size in 512 4K 64K; do
	cowimg create -q -f qcow --overwrite -o cluster_size=$size m.qcow 6M
	seq 1 9000000 | head -c 6M | cowimg write -q -f qcow m.qcow -
	[ "$(cowimg measure -O qcow -o cluster_size=$size --size 6M --output=json | jq .fully_allocated_bytes)" = \
	  "$(stat -c %s m.qcow)" ] || fail "clusters of $size"
done

subtest overlays
cowimg create -q -f qcow -b base.raw -F raw o.qcow 6M
[ "$(info o.qcow '."cluster-size"')" = 512 ] || fail "cluster size of an overlay"
[ "$(info o.qcow '."backing-filename"')" = base.raw ] || fail "the base's name"
cp base.raw model
truncate -s 6M model
cowimg write -q -f qcow -s 4900000 o.qcow piece
over model 49
cowimg zero -q -f qcow -s 1000000 -l 1000000 o.qcow
dd if=/dev/zero of=model bs=1000000 seek=1 count=1 conv=notrunc status=none
both_read o.qcow model
[ "$(stat -c %s o.qcow)" -lt 700000 ] || fail "zeroes over the base take space"
cowimg resize -q -f qcow o.qcow 9M
truncate -s 9M model
both_read o.qcow model
expect_fail 'cowimg resize -f qcow --shrink o.qcow 1M' 'cannot be made smaller'

subtest a longer base stays hidden when an overlay grows
cowimg create -q -f qcow -b base.raw -F raw g.qcow 1M
cowimg resize -q -f qcow g.qcow 3M
head -c 1M base.raw >short
truncate -s 3M short
both_read g.qcow short

subtest neighbours in large clusters over a base
cowimg create -q -f qcow -o cluster_size=64K -b base.raw -F raw n.qcow
for off in 512 70000 4999000; do
	head -c 1000 piece | cowimg write -q -f qcow -s $off n.qcow -
done
cp base.raw model
truncate -s 5000192 model
for off in 512 70000 4999000; do
	dd if=piece of=model bs=1000 count=1 oflag=seek_bytes seek=$off conv=notrunc status=none
done
both_read n.qcow model

subtest overlays of QEMU
qemu-img create -q -f qcow -b base.raw -F raw q.qcow 6M
qemu-io -f qcow -c 'write -P 3 1000k 70k' -c 'write -P 4 5000k 512' q.qcow >/dev/null
expect_fail 'cowimg read -f qcow q.qcow -' 'does not say which format its base has'
expect_fail 'cowimg info -f qcow -o backing_format=raw a.qcow' 'has no base'
qemu-img convert -f qcow -O raw q.qcow model
cowimg write -q -f qcow -o backing_format=raw -s 1000000 q.qcow piece
over model 10
both_read q.qcow model -o backing_format=raw
qemu-io -f qcow -c 'write -P 9 900k 300k' -c 'write -P 8 3M 512' q.qcow >/dev/null
qemu-img convert -f qcow -O raw q.qcow model
both_read q.qcow model -o backing_format=raw
cowimg rebase -q -u -f qcow -o backing_format=raw -b base.raw -F raw q.qcow
both_read q.qcow model
expect_fail 'cowimg read -f qcow -o backing_format=qcow q.qcow -' 'format of its base is raw'

subtest another base, and commit
cp base.raw moved-to-a-longer-name.raw
cowimg rebase -q -u -f qcow -b moved-to-a-longer-name.raw -F raw q.qcow
[ "$(info q.qcow '."backing-filename"')" = moved-to-a-longer-name.raw ] || fail "the base's name"
both_read q.qcow model
cowimg commit -q -f qcow q.qcow
cmp moved-to-a-longer-name.raw model || fail "the base is not what the overlay was"
both_read q.qcow model
[ "$(cowimg map -f qcow --output=json q.qcow | jq '[.. | objects | select(.depth == 0 and .kind == "data")] | length')" = 0 ] ||
	fail "the overlay is not empty"
cowimg write -q -f qcow q.qcow piece
over model 0
qemu-img commit -q -f qcow q.qcow
cmp moved-to-a-longer-name.raw model || fail "QEMU's commit"
both_read q.qcow model

subtest a base for an image that had none
cowimg create -q -f qcow w.qcow 5M
cowimg write -q -f qcow -s 1000000 w.qcow piece
cowimg rebase -q -u -f qcow -b base.raw -F raw w.qcow
qemu-img convert -f qcow -O raw w.qcow model
cmp -n 999424 model base.raw || fail "the base does not show"
cowimg zero -q -f qcow -l 900000 w.qcow
dd if=/dev/zero of=model bs=900000 count=1 conv=notrunc status=none
both_read w.qcow model

subtest compressed clusters
qemu-img convert -q -c -O qcow -f raw base.raw c.qcow || :	# 7.2 does it, and fails without a word
cowimg read -q -f qcow c.qcow - >got.raw
qemu-img convert -f qcow -O raw c.qcow want.raw
cmp got.raw want.raw || fail "read"
cmp -n 5000000 got.raw base.raw || fail "this shows nothing: QEMU did not make the image"
cowimg write -q -f qcow -s 1234567 c.qcow piece
dd if=piece of=want.raw oflag=seek_bytes seek=1234567 conv=notrunc status=none
cowimg zero -q -f qcow -s 3M -l 300000 c.qcow
dd if=/dev/zero of=want.raw oflag=seek_bytes seek=3M bs=300000 count=1 conv=notrunc status=none
status=0
cowimg check -q -f qcow c.qcow || status=$?
[ $status = 3 ] || fail "what replaced clusters leave is no leak: status $status"
both_read c.qcow want.raw
cowimg check -q -f qcow c.qcow || fail "leaks are left after a repair"

subtest written compressed, then written to by either side
for size in 4K 64K; do
	cowimg convert -q -c -f raw -O qcow -o cluster_size=$size base.raw k.qcow
	cp base.raw want.raw
	truncate -s 5000192 want.raw
	[ "$(stat -c %s k.qcow)" -lt 2500000 ] || fail "clusters of $size: nothing is compressed"
	both_read k.qcow want.raw
	cowimg write -q -f qcow -s 1234567 k.qcow piece
	dd if=piece of=want.raw oflag=seek_bytes seek=1234567 conv=notrunc status=none
	qemu-io -f qcow -c 'write -P 7 3M 70k' k.qcow >/dev/null
	head -c 71680 /dev/zero | tr '\0' '\7' | dd of=want.raw oflag=seek_bytes seek=3M conv=notrunc status=none
	both_read k.qcow want.raw
	cowimg convert -q -c -f qcow -O qcow -o cluster_size=$size k.qcow l.qcow
	both_read l.qcow want.raw
	rm k.qcow l.qcow
done
cowimg convert -q -c -f raw -O qcow -o cluster_size=16K -b base.raw -F raw want.raw k.qcow
both_read k.qcow want.raw

subtest names of bases that lead elsewhere
mkdir sub outside
cp base.raw outside/secret
ln -s ../outside/secret sub/link
name() {	# in a header of which the name was 20 bytes long: as long, with slashes or dots in front
	cowimg create -q -f qcow --overwrite -b sub/twenty-bytes-n.raw -F raw sub/e.qcow
	poke sub/e.qcow 72 "$1"
	poke sub/e.qcow 16 "$(printf '\\000\\000\\000\\%03o' ${#1})"
}
cp base.raw sub/twenty-bytes-n.raw
for escape in ../outside/secret /etc/passwd link json:x nbd:h:1 fd:0 ./../base.raw //etc/passwd sub/../../base ; do
	name "$escape"
	expect_fail 'cowimg read -f qcow sub/e.qcow -' \
		'lies outside|does not exist|symbolic links|Too many levels|not allowed'
done

subtest refused by name
cowimg create -q -f qcow e.qcow 1M
poke e.qcow 39 '\002'
expect_fail 'cowimg info -f qcow e.qcow' 'is encrypted by method 2, which this program does not know'
qemu-img create -q -f qcow2 e.qcow2 1M
expect_fail 'cowimg info -f qcow e.qcow2' 'its format is qcow2'
expect_fail 'cowimg info -f qcow base.raw' 'is not a qcow image'
expect_fail 'cowimg info -f qcow2 o.qcow' 'qcow version 1'
cowimg create -q -f qcow t.qcow 1M
poke t.qcow 33 '\010'	# tables of 256 entries
cowimg read -q -f qcow t.qcow - >/dev/null || fail "small tables cannot be read"
expect_fail 'cowimg zero -f qcow -l 4K t.qcow' 'below 4 KiB can only be read'

subtest images of Xen, in both byte orders
cowimg create -q -f qcow x.qcow 4M
cowimg write -q -f qcow x.qcow piece
poke x.qcow 48 'XEN\373\000\000\000\000\000\000\000\001\000\000\000\003'
head -c 300000 piece >want.raw
truncate -s 4M want.raw
both_read x.qcow want.raw
l1=$(dd if=x.qcow bs=1 skip=4096 count=8 status=none | od -An -tx1 | tr -d ' ')
[ "$l1" = 0000000000002000 ] || fail "the first L2 table is elsewhere: $l1"
poke x.qcow 63 '\001'
poke x.qcow 4096 '\000\040\000\000\000\000\000\000'
cowimg read -q -f qcow x.qcow - | cmp - want.raw || fail "little endian"
[ "$(cowimg info -f qcow --output=json x.qcow | jq -r '.layers[0].format_specific.l1_byte_order')" = little ] ||
	fail "info"
cowimg write -q -f qcow -s 3M x.qcow piece	# a second table
dd if=piece of=want.raw oflag=seek_bytes seek=3M conv=notrunc status=none
cowimg read -q -f qcow x.qcow - | cmp - want.raw || fail "little endian, after a write"
cowimg check -q -f qcow x.qcow || fail "check"

subtest entries behind the end, as QEMU leaves them
cowimg create -q -f qcow p.qcow 4M
cowimg write -q -f qcow p.qcow piece
poke p.qcow 4104 '\000\000\000\000\001\000\000\000'
status=0
cowimg check -q -f qcow p.qcow || status=$?
[ $status = 2 ] || fail "status $status"
cowimg check -q -f qcow -r all p.qcow || fail "not repaired"
head -c 300000 piece >want.raw
truncate -s 4M want.raw
both_read p.qcow want.raw
