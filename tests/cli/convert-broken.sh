#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# cowimg convert when it goes wrong: a command line that makes no sense, sources that
# cannot be read, signals, a full disk, data that changes behind its back. Nothing
# may stand under the new image's name afterwards, nor beside it.
. tests/lib/test.sh
require_cmd mkfifo jq python3
cd "$TMP"
mkdir out
seq 1 400000 >src.raw

# A part that this machine cannot run: counted as skipped, with its reason.
part_skipped() {
	echo "SKIP: $test_name: $*"
	echo 'COUNT: 0 0 1'
}
misuse() {
	expect_fail "$1" "$2"
	[ $status = 2 ] || fail "$1: exit status $status, not 2"
}
nothing_left() {
	[ -z "$(ls -A out)" ] || fail "left: $(ls -A out)"
}

subtest misuse
misuse 'cowimg convert src.raw out/a' 'never guessed'
misuse 'cowimg convert -f raw src.raw' 'OUT is missing'
misuse 'cowimg convert -f raw -b src.raw -O dscow src.raw out/a' 'needs -F'
misuse 'cowimg convert -f raw -F raw src.raw out/a' '-b BASE is missing'
misuse 'cowimg convert -f dscow - out/a' 'only a raw image can come'
misuse 'cowimg convert -f raw -O dscow src.raw -' 'only a plain raw image can go'
misuse 'cowimg convert -f raw --verify src.raw -' 'cannot read a pipe again'
misuse 'cowimg convert -f raw --output=json src.raw -' 'would go into the image'
misuse 'cowimg convert -f raw - -' 'nothing to convert'
misuse 'cowimg convert -f raw --source-options =1 src.raw out/a' '--source-options'
expect_fail 'cowimg convert -f raw -O frob src.raw out/a' "unknown format 'frob'"
expect_fail 'cowimg convert -f raw -O zero src.raw out/a' 'zero cannot be created'
expect_fail 'cowimg convert -f raw -O dscow -o frob=1 src.raw out/a' 'frob'
expect_fail 'cowimg convert -f raw -O raw -c src.raw out/a' 'raw cannot hold compressed'
if [ -e "$BUILD/lib/cow/cow-qcow.so" ]; then
	expect_fail 'cowimg convert -f raw -O qcow -b src.raw -F raw -c src.raw out/a' \
		'clusters of 512 bytes are too small to be compressed: 4096 is the least'
fi
expect_fail 'cowimg convert -f raw -O raw -b src.raw -F raw src.raw out/a' 'cannot have a base'
expect_fail 'cowimg convert -f raw missing.raw out/a' 'missing.raw.*No such file'
expect_fail 'cowimg convert -f raw -O dscow -b missing.raw -F raw src.raw out/a' 'missing.raw'
expect_fail 'cowimg convert -f dscow src.raw out/a' 'src.raw'
expect_fail 'cowimg convert -f raw src.raw no/such/folder/a' 'No such file'
cowimg convert -O dscow -o help | grep -q '^  block_size=' || fail '-o help'
nothing_left

subtest "what exists stays, and is replaced as a whole or not at all"
echo precious >out/a
expect_fail 'cowimg convert -f raw src.raw out/a' 'out/a.*exists'
# At once, not when all is read: from this pipe nothing ever comes.
mkfifo silent
exec 8<>silent
expect_fail 'cowimg convert -f raw - out/a <silent' 'out/a.*exists'
expect_fail 'cowimg convert -f raw -O dscow - out/a <silent' 'out/a.*exists'
exec 8>&-
expect_fail 'cowimg convert -f raw --overwrite missing.raw out/a' 'No such file'
[ "$(cat out/a)" = precious ] || fail "an existing file was changed"
expect_fail 'cowimg convert -f raw --overwrite out/a out/a' 'in use'
[ "$(cat out/a)" = precious ] || fail "a source was replaced by itself"
cowimg convert -q -f raw --overwrite src.raw out/a
cmp src.raw out/a
cowimg convert -q -f raw -O dscow --overwrite - out/a <src.raw
cowimg compare -q -f raw -F dscow src.raw out/a
rm out/a

subtest signals
mkfifo fifo
for format in raw dscow; do
	for signal in TERM INT HUP KILL; do
		# As a job of its own: the shell lets background jobs ignore SIGINT.
		python3 -c 'import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])' cowimg convert -f raw -O $format - out/a <fifo 2>said &
		pid=$!
		exec 9>fifo
		head -c 2000000 src.raw >&9
		wait_for 20 'ls -l /proc/$pid/fd | grep -q deleted'
		kill -$signal $pid
		status=0
		wait $pid || status=$?
		exec 9>&-
		nothing_left
		if [ $signal = KILL ]; then
			[ $status = 137 ] || fail "status $status after SIGKILL"
		else
			[ $status = 1 ] || fail "SIG$signal: status $status: $(cat said)"
			grep -q "interrupted by SIG$signal .*out/a was not made" said || fail "said: $(cat said)"
			[ "$(wc -l <said)" = 1 ] || fail "said: $(cat said)"
		fi
	done
done

subtest a source that ends early or is damaged
cowimg create -q -f dscow -b src.raw -F raw over.dscow
cowimg write -q -f dscow -l 500000 -s 1M --pattern 3 over.dscow
cp src.raw moved.raw
truncate -s 2000000 src.raw
expect_fail 'cowimg convert -f dscow over.dscow out/a' 'became shorter'
mv moved.raw src.raw
nothing_left
if [ -e "$BUILD/lib/cow/cow-qcow2.so" ]; then
	cowimg convert -q -c -f raw -O qcow2 src.raw bad.qcow2
	at=$(cowimg info -f qcow2 --output=json bad.qcow2 | jq '.layers[0].format_specific.cluster_size * 6 + 1000')
	head -c 3000 /dev/zero | tr '\0' '\377' |
		dd of=bad.qcow2 oflag=seek_bytes seek="$at" conv=notrunc status=none
	for format in raw qcow2; do
		expect_fail "cowimg convert -f qcow2 -O $format bad.qcow2 out/a" 'bad.qcow2.*cannot read at offset [0-9]+.*compressed cluster'
	done
	nothing_left
fi

# As it is written, through the file that has no name yet: nobody else can, and nothing in it
# depends on when that is.
subtest "--verify finds a byte that is not what was written"
cowimg convert -f raw --verify - out/a <fifo 2>said &
pid=$!
exec 9>fifo
head -c 2M src.raw >&9
nameless() {
	for fd in /proc/$pid/fd/*; do
		case $(readlink $fd) in
		*deleted*)
			dd if=$fd bs=1K skip=1000 count=24 status=none | cmp -s - want && echo $fd && return
			;;
		esac
	done
	return 1
}
dd if=src.raw bs=1K skip=1000 count=24 of=want status=none
wait_for 20 'nameless >/dev/null'
printf '\377' | dd of="$(nameless)" bs=1 seek=1030000 conv=notrunc status=none
exec 9>&-
status=0
wait $pid || status=$?
[ $status = 1 ] || fail "status $status: $(cat said)"
grep -q 'out/a: at offset 0 is not what was written; it was not made' said || fail "said: $(cat said)"
nothing_left
cowimg convert -q -f raw --verify - out/a <src.raw
cmp out/a src.raw
rm out/a

subtest a full disk
full() {
	for format in raw dscow; do
		expect_fail "cowimg convert -f raw -O $format src.raw small/a" 'small/a.*No space left'
		[ -z "$(ls -A small)" ] || fail "left: $(ls -A small)"
	done
	expect_fail 'cowimg convert -f raw - small/a <src.raw' 'small/a.*No space left'
	[ -z "$(ls -A small)" ] || fail "left: $(ls -A small)"
	# Within one file system the kernel may copy the data.
	head -c 600K src.raw >small/src.raw
	expect_fail 'cowimg convert -f raw small/src.raw small/a' 'small/a: cannot write.*No space left'
	[ "$(ls -A small)" = src.raw ] || fail "left: $(ls -A small)"
}
if [ "$(id -u)" = 0 ]; then
	mkdir small
	mount -t tmpfs -o size=1M none small
	at_exit 'umount "$TMP/small"'
	full
else
	part_skipped 'not root: no small file system'
fi

subtest block devices
if losetup -f >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
	truncate -s 4M disk
	head -c 4M /dev/urandom >disk
	dev=$(losetup -f --show disk)
	at_exit "losetup -d $dev"
	expect_fail "cowimg convert -f raw src.raw $dev" 'exists|--overwrite'
	head -c 3M src.raw >part.raw
	truncate -s 4M part.raw
	cowimg convert -q --verify --overwrite -f raw part.raw "$dev"
	cmp part.raw "$dev" || fail "a device that was not empty reads otherwise"
	truncate -s 5M part.raw
	expect_fail "cowimg convert --overwrite -f raw part.raw $dev" "$dev"
	expect_fail "cowimg convert --overwrite -f raw - $dev <part.raw" "$dev.*No space left"
else
	part_skipped 'no loop device'
fi
