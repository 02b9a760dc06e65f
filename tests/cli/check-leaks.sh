#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# cowimg check -r leaks: gives leaks back, and leaves a damaged image as it is.
. tests/lib/test.sh
. tests/lib/qcow2.sh
cd "$TMP"
seq 1 100000 >data.raw
truncate -s 1M data.raw

# refcount IMAGE CLUSTER VALUE: of an image of 64K clusters, whose first refcount block is its third cluster
refcount() {
	printf "\\$(printf %03o "$3")" | dd of="$1" bs=1 seek=$((131072 + $2 * 2 + 1)) conv=notrunc status=none
}

cowimg create -q -f qcow2 a.qcow2 1M
cowimg write -q -f qcow2 a.qcow2 data.raw
both_clean a.qcow2

subtest leaks alone
refcount a.qcow2 1000 1
status=0
cowimg check -q -f qcow2 a.qcow2 || status=$?
[ $status = 3 ] || fail "a leak: exit status $status"
cowimg check -f qcow2 -r leaks a.qcow2 >said || fail "-r leaks: exit status $?"
grep -q '1 problem repaired' said || fail "said: $(cat said)"
both_clean a.qcow2
both_read a.qcow2 data.raw
cowimg check -f qcow2 -r leaks a.qcow2 | grep -q 'No errors were found' || fail 'twice'

subtest a damaged image is only examined
refcount a.qcow2 1000 1
refcount a.qcow2 5 0
cp a.qcow2 before
status=0
cowimg check -f qcow2 -r leaks a.qcow2 >said || status=$?
[ $status = 2 ] || fail "exit status $status"
grep -q '1 corruptions and 1 leaks were found' said || fail "said: $(cat said)"
cmp a.qcow2 before || fail '-r leaks changed a damaged image'
cowimg check -q -f qcow2 -r all a.qcow2
both_clean a.qcow2
both_read a.qcow2 data.raw
expect_fail 'cowimg check -f qcow2 -r some a.qcow2' "-r is 'leaks' or 'all', not 'some'"
