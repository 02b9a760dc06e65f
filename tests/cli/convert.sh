#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 600
#
# cowimg convert, from every format into every other, with and without bases and
# compression, held against QEMU's reading and checking; and through pipes.
. tests/lib/test.sh
[ -e "$BUILD/lib/cow/cow-qcow2.so" ] || skip "built without zlib and zstd"
require_cmd qemu-img jq python3
cd "$TMP"

# Data of each kind: noise, what compresses, zeroes that are stored, holes, both mixed below a
# cluster; and an end that fills neither a sector nor a cluster.
python3 - <<'END'
import random
random.seed(1)
with open('src.raw', 'wb') as f:
    f.write(random.randbytes(1300000))
    f.write(b''.join(b'line %d\n' % i for i in range(150000))[:1500000])
    f.write(bytes(900000))
    f.seek(2500000, 1)
    for i in range(60):
        f.write(random.randbytes(4096) + bytes(4096 * (i % 5)))
    f.write(b'the end')
END
SIZE=$(stat -c %s src.raw)
sectors=$(((SIZE + 511) / 512 * 512))

# same FORMAT IMAGE: reads as src.raw, by QEMU where it knows the format, and by us
same() {
	case $1 in
	raw)
		cmp src.raw "$2" || fail "$2 is not the source"
		;;
	*)
		cowimg compare -q -f "$1" -F raw "$2" src.raw || fail "$2 reads otherwise"
		cowimg check -q -f "$1" "$2" || fail "cowimg finds something in $2"
		;;
	esac
	case $1 in
	qcow)
		qemu-img convert -f qcow -O raw "$2" qemu.raw	# whole sectors
		cmp -n "$SIZE" qemu.raw src.raw || fail "QEMU reads $2 otherwise"
		;;
	qcow2)
		qemu-img compare -q -f qcow2 -F raw "$2" src.raw || fail "QEMU reads $2 otherwise"
		qemu-img check -q "$2" || fail "QEMU finds something in $2"
		;;
	esac
}

encoded() {	# FORMAT IMAGE: clusters that are stored compressed, of qcow their bytes
	case $1 in
	qcow)
		cowimg map -f qcow --output=json "$2" | jq '[.map[] | select(.kind == "encoded").length] | add // 0'
		;;
	qcow2)
		qemu-img check --output=json "$2" | jq '."compressed-clusters" // 0'
		;;
	esac
}

subtest raw into each format and back
while read -r format options; do
	for c in '' -c; do
		case $c$format in -craw|-cdscow) continue;; esac
		cowimg convert -q $c -f raw -O "$format" ${options:+-o "$options"} src.raw a.img
		same "$format" a.img
		if [ -n "$c" ]; then
			[ "$(encoded "$format" a.img)" -gt 1 ] || fail "$options: nothing is compressed"
		fi
		cowimg convert -q -f "$format" --verify a.img back.raw
		head -c "$SIZE" back.raw >cut.raw
		cmp cut.raw src.raw || fail "$format $options $c: not the same when converted back"
		[ "$(stat -c %b back.raw)" -lt "$((SIZE / 512))" ] || fail "$format: holes are filled"
		rm a.img back.raw
	done
done <<-END
	raw
	dscow
	dscow block_size=4K
	qcow
	qcow cluster_size=64K
	qcow2
	qcow2 cluster_size=4K
	qcow2 cluster_size=2M
	qcow2 cluster_size=4K,refcount_bits=1
	qcow2 refcount_bits=2,cluster_size=512K
	qcow2 extended_l2=on
	qcow2 extended_l2=on,cluster_size=16K,compression_type=zstd
	qcow2 compression_type=zstd
	qcow2 compat=0.10
END

shm=$(mktemp -d /dev/shm/cow.XXXXXX 2>/dev/null) || shm=
if [ -n "$shm" ] && [ "$(stat -f -c %T "$shm")" = tmpfs ]; then
	subtest into memory, where it is copied in another way
	at_exit "rm -rf '$shm'"
	for format in raw dscow qcow2; do
		cowimg convert -q -f raw -O $format src.raw "$shm/a.img"
		same $format "$shm/a.img"
		cowimg convert -q -f $format "$shm/a.img" "$shm/back.raw"
		cmp -n "$SIZE" src.raw "$shm/back.raw" || fail "$format: not the same when converted back"
		[ "$(stat -c %b "$shm/back.raw")" -lt "$((SIZE / 512))" ] || fail "$format: holes are filled"
		rm "$shm/a.img" "$shm/back.raw"
	done
fi

subtest what QEMU makes
while read -r options; do
	qemu-img convert -q -f raw -O qcow2 $options src.raw q.qcow2
	for format in raw dscow qcow2; do
		cowimg convert -q -f qcow2 -O $format q.qcow2 a.img
		[ $format != raw ] || truncate -s "$SIZE" a.img
		same $format a.img
		rm a.img
	done
	cowimg convert -q -c -f qcow2 -O qcow2 q.qcow2 a.img
	same qcow2 a.img
	rm a.img
done <<-END
	-o cluster_size=64K
	-o cluster_size=512
	-o cluster_size=2M
	-o extended_l2=on
	-o compat=0.10
	-c
	-c -o compression_type=zstd,cluster_size=4K
	-c -o cluster_size=2M
END

subtest the same input makes the same image
# All but the number of the session that wrote it, which is in the header of either.
for c in '' -c; do
	cowimg convert -q $c -f raw -O qcow2 src.raw one.qcow2
	cowimg convert -q $c -f raw -O qcow2 src.raw two.qcow2
	cmp -i 4096 one.qcow2 two.qcow2 || fail "convert $c is not deterministic"
	rm one.qcow2 two.qcow2
done

subtest "overlays hold only what differs"
head -c 6000000 src.raw >base.raw
printf X | dd of=base.raw bs=1 seek=2000000 conv=notrunc status=none
dd if=/dev/urandom of=base.raw bs=64K seek=64 count=2 conv=notrunc status=none	# over zeroes of the source
for format in dscow qcow2; do
	for c in '' -c; do
		[ -z "$c" ] || [ $format = qcow2 ] || continue
		cowimg convert -q $c --verify -f raw -O $format -b base.raw -F raw src.raw o.img
		same $format o.img
		cowimg info -f $format --output=json o.img | jq -e '.layers[0].base_path == "base.raw"' >/dev/null ||
			fail "$format: the base is not recorded"
		cowimg map -f $format --output=json o.img >map.json
		# 2,000,000 and the zeroes differ; the rest up to the base's end is its own.
		jq -e '[.map[] | select(.depth == 0 and .kind != "zero" and .start < 5800000) | .length] | add <= 65536' map.json >/dev/null ||
			fail "$format $c: more than what differs is stored: $(cat map.json)"
		rm o.img
	done
done
cowimg create -q -f qcow2 -b base.raw -F raw over.qcow2 "$sectors"
cowimg write -q -f qcow2 -s 300000 -l 5000 --pattern 7 over.qcow2
cowimg convert -q -f qcow2 -O qcow2 -b base.raw -F raw over.qcow2 o.qcow2
qemu-img compare -q over.qcow2 o.qcow2 || fail "an overlay over the same base reads otherwise"
qemu-img check -q o.qcow2
cowimg convert -q --output=json -f qcow2 -O qcow2 --overwrite -b base.raw -F raw over.qcow2 o.qcow2 >said
jq -e '.read_bytes <= 131072' said >/dev/null || fail "the shared base was read: $(cat said)"
cowimg convert -q -f qcow2 over.qcow2 flat.raw
qemu-img compare -q -f qcow2 -F raw over.qcow2 flat.raw || fail "an overlay is not flattened"
rm -f flat.raw o.qcow2

subtest pipes
cowimg convert -f raw - p.raw <src.raw >said
cmp p.raw src.raw
grep -q "^Made p.raw: $SIZE bytes" said || fail "said: $(cat said)"
[ "$(stat -c %b p.raw)" -lt "$((SIZE / 512))" ] || fail "zeroes from a pipe are stored"
cat src.raw | cowimg convert -q -c --verify -f raw -O qcow2 - p.qcow2
same qcow2 p.qcow2
cat src.raw | cowimg convert -q -f raw -O dscow - p.dscow
same dscow p.dscow
cowimg convert -f dscow p.dscow - | cmp - src.raw || fail "a pipe gets something else"
cowimg convert -f qcow2 -O raw p.qcow2 - | head -c "$SIZE" | cmp - src.raw || fail "a pipe gets something else"
expect_fail 'cowimg convert -f raw -O raw - none.raw </dev/null' 'standard input.*nothing came'
expect_fail 'cowimg convert -f dscow p.dscow - >/dev/full' 'standard output.*No space left'
[ ! -e none.raw ] || fail "a file of nothing"

subtest a snapshot as the source
qemu-img create -q -f qcow2 s.qcow2 1M
cowimg write -q -f qcow2 -l 100000 --pattern 1 s.qcow2
qemu-img snapshot -c one s.qcow2
cowimg write -q -f qcow2 -l 100000 --pattern 2 s.qcow2
cowimg convert -q -f qcow2 --source-options snapshot=one s.qcow2 s.raw
cowimg read -q -f raw -l 100000 --pattern 1 s.raw

subtest what is said of it
cowimg convert -f raw -O dscow --overwrite --output=json --verify src.raw p.dscow >said
jq -e ".schema == 1 and .path == \"p.dscow\" and .size == $SIZE and .verified and
	.read_bytes > 0 and .read_bytes < $SIZE and .written_bytes + .zero_bytes >= $SIZE and
	.written_bytes < .read_bytes and .elapsed_ms >= 0" said >/dev/null || fail "said: $(cat said)"
cowimg convert -q -f raw --overwrite src.raw p.raw >said 2>&1
[ ! -s said ] || fail "-q said: $(cat said)"
cowimg convert -p -f raw --overwrite src.raw p.raw >said 2>bar
[ ! -s bar ] || fail "a bar without a terminal"
