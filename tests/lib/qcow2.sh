# SPDX-License-Identifier: GPL-2.0-or-later
#
# For shell tests that hold cowimg and QEMU's programs against each other on qcow2
# images: `. tests/lib/qcow2.sh` after test.sh, at the top of the tree. Skips where
# one of them is missing.
#
#	both_clean IMAGE         neither finds anything in it
#	both_read IMAGE FILE     to both it reads as FILE
#	qemu_luks IMAGE SIZE [OPTION...]
#	                         QEMU makes an encrypted image; its key is "x"
#	history CREATOR SIZE BASE OPTIONS [snapshots]
#	                         a subtest: both change an image in turns, as many as
#	                         $turns says (60 with FAULT=full), at random from $SEED
[ -e "$BUILD/lib/cow/cow-qcow2.so" ] || skip "built without zlib and zstd"
require_cmd python3 qemu-img qemu-io jq
qcow2_histories=$PWD/tests/cli/qcow2_histories.py
qcow2_seed=${SEED:-20060501}
turns=5

both_clean() {
	qemu-img check -q "$1" || fail "QEMU finds something in $1"
	cowimg check -q -f qcow2 "$1" || fail "cowimg finds something in $1"
}

both_read() {
	qemu-img convert -f qcow2 -O raw "$1" got.raw
	cmp got.raw "$2" || fail "QEMU reads $1 otherwise"
	cowimg read -q -f qcow2 "$1" - | cmp - "$2" || fail "cowimg reads $1 otherwise"
}

# qemu-img times its key derivation with a clock of coarse ticks, and gives up when it saw none.
qemu_luks() {
	luks_image=$1 luks_size=$2
	shift 2
	for luks_try in 1 2 3 4 5 6 7 8 9 10; do
		! qemu-img create -q -f qcow2 --object secret,id=s,data=x \
			-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 "$@" \
			"$luks_image" "$luks_size" 2>"$TMP/luks.err" || return 0
		grep -q 'Unable to get accurate CPU usage' "$TMP/luks.err" || break
	done
	fail "qemu-img, try $luks_try: $(cat "$TMP/luks.err")"
}

history() {
	qcow2_seed=$((qcow2_seed + 1))
	[ "${FAULT:-quick}" != full ] || turns=60
	subtest "turns, made by $1, $2 bytes, base of $3: $4"
	python3 "$qcow2_histories" $qcow2_seed $turns "$@" || fail "see above"
}
