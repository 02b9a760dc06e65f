#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# qcow-create, img2qcow and qcow2raw: blktap's operands, in its order, do what its
# tools did, with images that QEMU reads.
. tests/lib/test.sh
[ -e "$BUILD/lib/cow/cow-qcow.so" ] || skip "built without zlib"
require_cmd qemu-img jq
cd "$TMP"

misuse() {
	expect_fail "$1" "$2"
	[ $status = 2 ] || fail "$1: exit status $status, not 2"
}

size_of() {	# IMAGE: virtual bytes, as QEMU sees them
	qemu-img info -f qcow --output=json "$1" | jq '."virtual-size"'
}

subtest qcow-create
qcow-create 10 a.qcow >said
grep -qx 'Created a.qcow: qcow, 10485760 bytes' said || fail "said: $(cat said)"
[ "$(size_of a.qcow)" = 10485760 ] || fail "a.qcow: $(size_of a.qcow) bytes"
seq 1 300000 | head -c 1048576 >base.img
qcow-create -q 1 over.qcow base.img
cowimg compare -q -f qcow -F raw over.qcow base.img || fail 'the overlay does not show its base'
cowimg write -q -f qcow -s 1000 -l 5000 --pattern 7 over.qcow
qcow-create -q -F qcow 1 second.qcow over.qcow
cowimg compare -q -f qcow -F qcow second.qcow over.qcow || fail 'an overlay of an overlay reads otherwise'

subtest "room that is kept"
qcow-create -q -r 8 full.qcow
[ "$(stat -c %b full.qcow)" -ge $((8 * 2048)) ] || fail "-r keeps $(stat -c %b full.qcow) blocks"
[ "$(stat -c %s full.qcow)" -lt 1048576 ] || fail '-r made the file longer'
qcow-create -q 8 thin.qcow
[ "$(stat -c %b thin.qcow)" -lt 2048 ] || fail "without -r it takes $(stat -c %b thin.qcow) blocks"
cowimg write -q -f qcow -l 1M --pattern 3 full.qcow
cowimg check -q -f qcow full.qcow
expect_fail 'qcow-create -r 900000000 none.qcow' 'none.qcow'
[ ! -e none.qcow ] || fail 'a file for which there is no room'

subtest misuse
misuse 'qcow-create' 'SIZE is missing'
misuse 'qcow-create 10' 'FILENAME is missing'
misuse 'qcow-create 10 x y z' 'too many'
for size in 0 -1 10G x 1.5 99999999999999999999; do
	misuse "qcow-create -- $size x.qcow" "megabytes"
done
misuse 'qcow-create -F raw 10 x.qcow' 'BACKING_FILENAME is missing'
misuse 'qcow-create 1 x.qcow over.qcow' "'over.qcow' looks like qcow: say with -F"
expect_fail 'qcow-create 1 a.qcow' 'exists'
expect_fail 'qcow-create 1 x.qcow missing' 'missing'
[ ! -e x.qcow ] || fail 'a failed command left a file'
qcow-create -q --overwrite 1 a.qcow
qcow-create -q -F raw 1 odd.qcow over.qcow
cowimg compare -q -f qcow -F raw odd.qcow over.qcow || fail '-F raw does not show the bytes of the base'
for program in qcow-create img2qcow qcow2raw; do
	$program --help | grep -q "^Usage: $program " || fail "$program --help"
	$program --version | grep -q "^$program [0-9]" || fail "$program --version"
done
qcow-create -h | head -n 1 | grep -q '^Usage: qcow-create ' || fail 'qcow-create -h'

subtest img2qcow
img2qcow b.qcow base.img >said
grep -q '^Made b.qcow: 1048576 bytes' said || fail "said: $(cat said)"
qemu-img compare -q -f qcow -F raw b.qcow base.img || fail 'QEMU reads b.qcow otherwise'
expect_fail 'img2qcow b.qcow base.img' 'exists'
img2qcow -q --overwrite b.qcow base.img >said 2>&1
[ ! -s said ] || fail "-q said: $(cat said)"
misuse 'img2qcow x.qcow' 'SRC_IMAGE is missing'
expect_fail 'img2qcow x.qcow missing' 'missing'
[ ! -e x.qcow ] || fail 'a failed command left a file'

subtest qcow2raw
qcow2raw b.raw b.qcow >said
cmp b.raw base.img
qcow2raw -q s.raw second.qcow
cowimg compare -q -f qcow -F raw second.qcow s.raw || fail 'a chain is not flattened'
expect_fail 'qcow2raw b.raw b.qcow' 'exists'
misuse 'qcow2raw b.raw' 'QCOW_IMAGE is missing'
expect_fail 'qcow2raw x.raw base.img' 'base.img'
# As blktap's and QEMU's tools leave them: the format of the base is not said.
qemu-img create -q -u -f qcow -b base.img -F raw old.qcow 1M
expect_fail 'qcow2raw x.raw old.qcow' 'does not say which format its base has'
qcow2raw -q -o backing_format=raw old.raw old.qcow
cmp old.raw base.img
mv base.img moved.img
qcow2raw -q --overwrite -o backing_format=raw --backing=moved.img old.raw old.qcow
cmp old.raw moved.img
[ ! -e x.raw ] || fail 'a failed command left a file'
