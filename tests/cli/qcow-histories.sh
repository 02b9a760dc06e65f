#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# qcow both ways: images made by either side, changed in turns, read by both,
# and found clean after each turn. Over a base only with clusters of a sector:
# with larger ones QEMU does not carry over what it does not write.
# TIMEOUT: 300
. tests/lib/test.sh
[ -e "$BUILD/lib/cow/cow-qcow.so" ] || skip "built without zlib and zstd"
require_cmd python3 qemu-img qemu-io
DRIVER=$PWD/tests/cli/qcow2_histories.py
cd "$TMP"
seed=${SEED:-20060501}
turns=6
[ "${FAULT:-quick}" != full ] || turns=60

# history CREATOR SIZE BASE [OPTIONS]
history() {
	seed=$((seed + 1))
	subtest "made by $1, $2 bytes, base of $3: ${4:-no options}"
	python3 "$DRIVER" $seed $turns "$1" "$2" "$3" "${4:-}" qcow || fail "see above"
}

for who in cowimg qemu-img; do
	history $who 8388608 0
	history $who 3145728 1000000
	history $who 6291456 8000000
done
history cowimg 5000192 0 cluster_size=512
history cowimg 5000192 0 cluster_size=2048
history cowimg 20000768 0 cluster_size=65536
