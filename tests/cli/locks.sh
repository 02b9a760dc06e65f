#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Who keeps whom out: the holder of an image (cowimg, cowd, QEMU) against a
# second opener (the same three), for writing and for reading, of the overlay
# and of its base. Holders are processes that wait for their input, so that no
# timing decides.
. tests/lib/test.sh
cd "$TMP"

# A part that this machine cannot run: counted as skipped, with its reason.
part_skipped() {
	echo "SKIP: $test_name: $*"
	echo 'COUNT: 0 0 1'
}
command -v qemu-io >/dev/null && command -v qemu-img >/dev/null && qemu=yes || qemu=

head -c 16M /dev/urandom >base.raw
cowimg create -q -f dscow -b base.raw -F raw over.dscow
cowimg write -f dscow -s 4M over.dscow base.raw -l 12M
base_sum=$(sha256sum <base.raw)

# Holds IMAGE open for writing by cowimg, until its input ends.
hold_cowimg() {	# FORMAT IMAGE
	rm -f in
	mkfifo in
	cowimg write -q -f "$1" "$2" <in &
	holder=$!
	exec 9>in
	wait_locked "$2"
}

drop_cowimg() {
	exec 9>&-
	wait $holder || fail 'the holder failed'
}

# Holds IMAGE open for writing by QEMU, as raw: its locks do not depend on the format.
hold_qemu() {	# IMAGE
	rm -f in
	mkfifo in
	qemu-io -f raw "$1" <in >qemu.out 2>&1 &
	holder=$!
	exec 9>in
	wait_locked "$1"
}

drop_qemu() {
	echo quit >&9
	exec 9>&-
	wait $holder || fail "the holder failed: $(cat qemu.out)"
}

# Holds IMAGE open for reading by QEMU: a copy so slow that it will be stopped first.
hold_qemu_reading() {	# IMAGE
	qemu-img convert -r 65536 -f raw -O raw "$1" slow.raw >qemu.out 2>&1 &
	holder=$!
	wait_locked "$1"
}

drop_qemu_reading() {
	kill $holder || fail "the holder is gone: $(cat qemu.out)"
	wait $holder || :
}

busy_cowimg() {	# may neither write nor read
	expect_fail 'cowimg write -f dscow -l 1 --pattern 1 over.dscow' 'over.dscow.*in use'
	expect_fail 'cowimg read -f dscow over.dscow' 'over.dscow.*in use'
	expect_fail 'cowimg check -f dscow over.dscow' 'over.dscow.*in use'
	expect_fail 'cowimg check -f dscow -r all over.dscow' 'over.dscow.*in use'
	expect_fail 'cowimg resize -f dscow over.dscow +1M' 'over.dscow.*in use'
	expect_fail 'cowimg commit -f dscow over.dscow' 'over.dscow.*in use'
	expect_fail 'dscow_tool -s over.dscow' 'over.dscow.*in use'
}

busy_qemu() {
	[ -n "$qemu" ] || return 0
	! qemu-io -f raw -c 'write 0 512' over.dscow >out 2>&1 || fail "QEMU wrote: $(cat out)"
	grep -q 'lock' out || fail "QEMU failed for another reason: $(cat out)"
	! qemu-img convert -f raw -O raw over.dscow copy.raw >out 2>&1 || fail 'QEMU read beside a writer'
	grep -q 'lock' out || fail "QEMU failed for another reason: $(cat out)"
}

# The base of an image in use: shared for reading, by everybody; writers stay out.
base_shared() {
	cowimg read -f raw base.raw | cmp - base.raw
	expect_fail 'cowimg write -f raw -l 1 --pattern 1 base.raw' 'base.raw.*in use'
	expect_fail 'cowimg resize -f raw base.raw +1' 'base.raw.*in use'
	cowimg create -q -f dscow -b base.raw -F raw second.dscow
	cowimg write -f dscow -l 5 --pattern 1 second.dscow
	expect_fail 'cowimg commit -f dscow second.dscow' 'base.raw.*in use'
	cowimg read -f dscow -l 5 --pattern 1 second.dscow
	! dscow_tool -s second.dscow | grep -q committing || fail 'a refused commit left its mark'
	rm second.dscow
	[ -n "$qemu" ] || return 0
	qemu-io -r -f raw -c 'read 0 512' base.raw >out 2>&1 || fail "QEMU cannot read a base: $(cat out)"
	qemu-img compare -q -f raw -F raw base.raw base.raw >out 2>&1 || fail "QEMU cannot read a base: $(cat out)"
	! qemu-io -f raw -c 'write 0 512' base.raw >out 2>&1 || fail 'QEMU wrote to a base in use'
	grep -q 'lock' out || fail "QEMU failed for another reason: $(cat out)"
}

subtest cowimg holds, cowimg and QEMU come
hold_cowimg dscow over.dscow
busy_cowimg
busy_qemu
base_shared
expect_fail 'dscow_tool -c over.dscow base.raw' 'exists'
expect_fail 'cowimg create --overwrite -f raw over.dscow 1M' 'over.dscow.*in use'
drop_cowimg
cowimg write -f dscow -l 1 --pattern 1 over.dscow

if [ -n "$qemu" ]; then
	subtest QEMU holds for writing, cowimg comes
	hold_qemu over.dscow
	busy_cowimg
	drop_qemu
	cowimg read -f dscow -l 1 --pattern 1 over.dscow

	subtest QEMU holds the base for writing
	hold_qemu base.raw
	expect_fail 'cowimg read -f dscow over.dscow' 'base.raw.*in use'
	expect_fail 'cowimg write -f dscow -l 1 --pattern 1 over.dscow' 'base.raw.*in use'
	expect_fail 'cowimg create -f dscow -b base.raw -F raw new.dscow' 'base.raw.*in use'
	[ ! -e new.dscow ] || fail 'made over a base in use'
	cowimg info -f dscow over.dscow >out
	drop_qemu

	subtest QEMU holds for reading, cowimg comes
	hold_qemu_reading over.dscow
	cowimg read -f dscow -l 1 --pattern 1 over.dscow
	cowimg check -q -f dscow over.dscow
	expect_fail 'cowimg write -f dscow -l 1 --pattern 2 over.dscow' 'over.dscow.*in use'
	drop_qemu_reading
	hold_qemu_reading base.raw
	cowimg write -f dscow -l 1 --pattern 3 over.dscow
	expect_fail 'cowimg commit -f dscow over.dscow' 'base.raw.*in use'
	drop_qemu_reading
	cowimg read -f dscow -l 1 --pattern 3 over.dscow
else
	part_skipped 'no qemu-img and qemu-io: locks are not tried against QEMU'
fi

# A served device: its control socket and mount need FUSE.
if [ -x "$BUILD/bin/cowd" ] && [ -r /dev/fuse ] && [ -w /dev/fuse ] && [ "$(id -u)" = 0 ]; then
	subtest cowd holds, all come
	cowd -p dscow --no-loop locks over.dscow >device
	at_exit 'cowctl stop locks >/dev/null 2>&1'
	busy_cowimg
	busy_qemu
	base_shared
	expect_fail 'cowd -p dscow --no-loop locks2 over.dscow' 'over.dscow.*in use'
	expect_fail 'cowd -p raw --no-loop locks2 base.raw' 'base.raw.*in use'
	cowd -p raw -r --no-loop locks3 base.raw >device3
	cowctl stop locks3
	cowctl stop locks
	cowimg check -q -f dscow over.dscow

	subtest cowd holds for reading, all read
	cowd -p dscow -r --no-loop locks over.dscow >device
	cowimg read -f dscow over.dscow >out
	expect_fail 'cowimg write -f dscow -l 1 --pattern 2 over.dscow' 'over.dscow.*in use'
	cowd -p dscow -r --no-loop locks2 over.dscow >device2
	[ -z "$qemu" ] || qemu-img convert -f raw -O raw over.dscow copy.raw
	cowctl stop locks2
	cowctl stop locks

	subtest others hold, cowd comes
	hold_cowimg dscow over.dscow
	expect_fail 'cowd -p dscow --no-loop locks over.dscow' 'over.dscow.*in use'
	expect_fail 'cowd -p dscow -r --no-loop locks over.dscow' 'over.dscow.*in use'
	drop_cowimg
	if [ -n "$qemu" ]; then
		hold_qemu over.dscow
		expect_fail 'cowd -p dscow --no-loop locks over.dscow' 'over.dscow.*in use'
		expect_fail 'cowd -p dscow -r --no-loop locks over.dscow' 'over.dscow.*in use'
		drop_qemu
		hold_qemu base.raw
		expect_fail 'cowd -p dscow --no-loop locks over.dscow' 'base.raw.*in use'
		drop_qemu
	fi
	cowd -p dscow --no-loop locks over.dscow >device
	cowctl stop locks
else
	part_skipped 'no cowd or no FUSE: locks are not tried against a served device'
fi

[ "$(sha256sum <base.raw)" = "$base_sum" ] || fail 'the base was changed'
