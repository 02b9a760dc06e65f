#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 600
#
# cowimg dd, held against dd on plain files and against qemu-img dd: ranges of every
# alignment into new images and into images that are there.
. tests/lib/test.sh
[ -e "$BUILD/lib/cow/cow-qcow2.so" ] || skip "built without zlib and zstd"
require_cmd qemu-img jq python3
cd "$TMP"

# Noise, zeroes that are stored, holes, and an end that fills no sector.
python3 - <<'END'
import random
random.seed(3)
with open('src.raw', 'wb') as f:
    f.write(random.randbytes(400000) + bytes(300000) + random.randbytes(70000))
    f.seek(1500000, 1)
    f.write(random.randbytes(150000) + b'the end')
with open('old.raw', 'wb') as f:
    f.write(random.randbytes(4 << 20))
END
SIZE=$(stat -c %s src.raw)
cowimg convert -q -f raw -O qcow2 -o cluster_size=4K src.raw src.qcow2

misuse() {
	expect_fail "$1" "$2"
	[ $status = 2 ] || fail "$1: exit status $status, not 2"
}

# want BS COUNT SKIP SEEK FILE: what plain dd makes of it; count 0: to the end
want() {
	dd if=src.raw of="$5" bs="$1" ${2:+count=$2} skip="$3" seek="$4" conv=notrunc status=none
}

ranges() {
	cat <<-END
		512 - 0 0
		512 - 1000 0
		4096 10 0 0
		4K 100 60 13
		1 70000 399990 0
		1 70000 399990 4097
		1000 300 350 7
		64K 3 5 2
		1M 1 1 1
		333333 2 2 1
		4096 200 180 500
		1M 99 1 0
	END
}

subtest a range into a new image
qemu=0
ranges | while read -r bs count skip seek; do
	[ "$count" != - ] || count=
	rm -f want.raw
	want "$bs" "$count" "$skip" "$seek" want.raw
	for format in raw dscow qcow2 qcow; do
		cowimg dd -q -f qcow2 -O $format if=src.qcow2 of=new.img bs="$bs" ${count:+count=$count} skip="$skip" seek="$seek" ||
			fail "dd into $format"
		cowimg compare -q -f $format -F raw new.img want.raw || fail "$format: bs=$bs count=$count skip=$skip seek=$seek"
		if [ $format = raw ]; then
			cowimg dd -q --overwrite -f raw if=src.raw of=new.img bs="$bs" ${count:+count=$count} skip="$skip" seek="$seek"
			# The source is as long in qcow2 as its last sector.
			cmp new.img want.raw || fail "from raw: bs=$bs count=$count skip=$skip seek=$seek"
		fi
		rm new.img
	done
	# QEMU has no seek, and counts from the start of the image even with a skip.
	[ "$seek" = 0 ] && { [ -z "$count" ] || [ "$skip" = 0 ]; } || continue
	qemu=$((qemu + 1))
	qemu-img dd -f qcow2 -O qcow2 if=src.qcow2 of=q.qcow2 bs="$bs" ${count:+count=$count} skip="$skip" 2>qemu.err ||
		fail "qemu-img dd: $(cat qemu.err)"
	cowimg dd -q --overwrite -f qcow2 -O qcow2 if=src.qcow2 of=o.qcow2 bs="$bs" ${count:+count=$count} skip="$skip"
	qemu-img compare -q o.qcow2 q.qcow2 || fail "bs=$bs count=$count skip=$skip: QEMU makes something else"
	qemu-img check -q o.qcow2 || fail "QEMU finds something in o.qcow2"
	echo "$qemu" >compared
done || exit 1
[ "$(cat compared)" -ge 3 ] || fail "compared with QEMU: $(cat compared)"

subtest "a range into an image that is there"
cowimg convert -q -f raw -O qcow2 old.raw old.qcow2
cowimg create -q -f dscow -b old.raw -F raw old.dscow
cowimg create -q -f dscow -o granule_size=64K -b old.raw -F raw old2.dscow
cp old.raw old.copy
cp old.raw want.raw
ranges | while read -r bs count skip seek; do
	[ "$count" != - ] || count=
	want "$bs" "$count" "$skip" "$seek" want.raw
	for image in raw:old.copy qcow2:old.qcow2 dscow:old.dscow dscow:old2.dscow; do
		cowimg dd -q -f raw -O ${image%:*} if=src.raw of=${image#*:} conv=notrunc bs="$bs" \
			${count:+count=$count} skip="$skip" seek="$seek" || fail "dd into $image"
		cowimg compare -q -f ${image%:*} -F raw ${image#*:} want.raw ||
			fail "$image: bs=$bs count=$count skip=$skip seek=$seek"
	done
done || exit 1
qemu-img check -q old.qcow2 || fail "QEMU finds something in old.qcow2"
cowimg check -q -f dscow old.dscow
[ "$(stat -c %s old.copy)" = 4194304 ] || fail "conv=notrunc changed the size"

subtest pipes
cowimg dd -f qcow2 if=src.qcow2 of=- bs=1000 skip=350 count=300 | cmp - "$(
	rm -f want.raw
	want 1000 300 350 0 want.raw
	echo want.raw
)" || fail "a pipe gets something else"
expect_fail 'cowimg dd -f qcow2 if=src.qcow2 of=- >/dev/full' 'standard output.*No space left'

subtest what is said of it
cowimg dd -f raw if=src.raw of=s.raw bs=4K skip=1 count=2 >said
grep -q '^Copied 8192 bytes to offset 0 of s.raw: 8 KiB of data' said || fail "said: $(cat said)"
cowimg dd --output=json -f raw -O qcow2 if=src.raw of=s.qcow2 bs=4K seek=3 >said
jq -e ".path == \"s.qcow2\" and .offset == 12288 and .length == $SIZE and
	.written_bytes + .zero_bytes == .length" said >/dev/null || fail "said: $(cat said)"
cowimg dd -q -f raw if=src.raw of=s.raw conv=notrunc count=1 >said 2>&1
[ ! -s said ] || fail "-q said: $(cat said)"

if [ "$(id -u)" = 0 ] && dev=$(losetup -f --show old.copy 2>/dev/null); then
	subtest a block device
	at_exit "losetup -d $dev"
	cp old.copy want.raw
	misuse "cowimg dd -f raw if=src.raw of=$dev --overwrite" 'block device'
	cowimg dd -q -f qcow2 if=src.qcow2 of="$dev" conv=notrunc bs=1000 skip=11 count=900 seek=1501
	want 1000 900 11 1501 want.raw
	cmp "$dev" want.raw || fail "$dev is not as dd leaves it"
fi

subtest misuse
misuse 'cowimg dd -f raw of=x' 'if=IMAGE is missing'
misuse 'cowimg dd -f raw if=- of=x' 'if=IMAGE is missing.*cowimg write'
misuse 'cowimg dd -f raw if=src.raw' 'of=OUT is missing'
misuse 'cowimg dd if=src.raw of=x' '-f FORMAT is missing'
misuse 'cowimg dd -f raw if=src.raw of=x if=y' 'if= is given twice'
misuse 'cowimg dd -f raw if=src.raw of=' 'of= has no value'
misuse 'cowimg dd -f raw src.raw x' "'src.raw' is not if="
misuse 'cowimg dd -f raw if=src.raw of=x =3' "'=3' is not if="
misuse 'cowimg dd -f raw if=src.raw of=x bs=0' '0 bytes'
misuse 'cowimg dd -f raw if=src.raw of=x bs=x' 'not a size'
misuse 'cowimg dd -f raw if=src.raw of=x count=0' 'nothing'
misuse 'cowimg dd -f raw if=src.raw of=x bs=8E skip=3' 'skip=3 is too large'
misuse 'cowimg dd -f raw if=src.raw of=x conv=sync' "not 'sync'"
misuse 'cowimg dd -f raw if=src.raw of=s.raw conv=notrunc --overwrite' 'not both'
misuse 'cowimg dd -f raw if=src.raw of=- seek=1' 'no place'
misuse 'cowimg dd -f raw -O qcow2 if=src.raw of=-' 'plain raw'
expect_fail 'cowimg dd -f raw if=missing of=x' 'missing'
expect_fail "cowimg dd -f raw if=src.raw of=x bs=1 skip=$SIZE" "src.raw: ends at $SIZE"
expect_fail 'cowimg dd -f raw if=src.raw of=s.raw' 's.raw.*exists'
expect_fail 'cowimg dd -f raw if=src.raw of=x conv=notrunc' 'x: No such file'
expect_fail 'cowimg dd -f raw if=src.raw of=s.raw conv=notrunc bs=1M seek=1' 's.raw: .* past the end'
expect_fail 'cowimg dd -f raw if=s.raw of=s.raw conv=notrunc' 's.raw: in use'
[ ! -e x ] || fail 'a failed command left a file'
