#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 600
#
# Overlays that are cut off, corrupted or hostile, files that may not be read,
# full disks, and very large images: one sentence, no crash, nothing changed.
. tests/lib/test.sh
cd "$TMP"

# A part that this machine cannot run: counted as skipped, with its reason.
part_skipped() {
	echo "SKIP: $test_name: $*"
	echo 'COUNT: 0 0 1'
}

seq 1 300000 | head -c 1500000 >base.raw
cowimg create -q -f dscow -b base.raw -F raw good.dscow
cowimg write -f dscow -s 0 -l 20000 --pattern 1 good.dscow
cowimg write -f dscow -s 700000 -l 100000 --pattern 2 good.dscow
cowimg zero -f dscow -s 1000000 -l 100000 good.dscow
cowimg read -f dscow good.dscow >want.raw

# try CMD: may fail, in one sentence, and must not die
try() {
	status=0
	sh -c "$1" >out 2>err </dev/null || status=$?
	[ $status -lt 126 ] || fail "died with status $status: $1: $(cat err)"
	grep -v 'warning:' err >errors || :
	if [ $status = 0 ]; then
		[ ! -s errors ] || fail "succeeded and complained: $1: $(cat err)"
	else
		[ "$(wc -l <errors)" -le 1 ] || fail "more than one sentence: $1: $(cat err)"
	fi
}

# Every tool over bad.dscow. Readers change nothing, whatever they say; what they can
# read is what was written or the base, or they fail: wrong data is never given out.
ordeal() {
	sha256sum bad.dscow >sums
	for cmd in 'cowimg info -f dscow' 'cowimg info -f dscow --backing-chain --output=json' \
		   'cowimg map -f dscow' 'cowimg check -f dscow' 'dscow_tool -s' 'dscow_tool -k'; do
		try "$cmd bad.dscow"
	done
	try 'cowimg read -f dscow bad.dscow'
	if [ $status = 0 ] && [ "${1:-}" != sizes ]; then
		cmp -s out want.raw || fail "wrong data was read: $*"
	fi
	sha256sum -c --status sums || fail "a reader changed the image: $*"
	cp --sparse=always bad.dscow bad2.dscow
	try 'cowimg write -f dscow -s 4000 -l 10000 --pattern 3 bad2.dscow'
	try 'cowimg zero -f dscow -s 4000 -l 10000 bad2.dscow'
	try 'cowimg resize -f dscow bad2.dscow +1M'
	try 'cowimg check -f dscow -r all bad.dscow'
	repaired=$status
	try 'cowimg check -f dscow bad.dscow'
	[ $repaired != 0 ] || [ $status = 0 ] || fail "a repaired image does not check clean: $*"
}

subtest what is no dscow image
for f in /dev/null /dev/zero . base.raw missing; do
	expect_fail "cowimg info -f dscow $f" '.'
	expect_fail "dscow_tool -s $f" '.'
done
: >empty
expect_fail 'cowimg info -f dscow empty' 'empty'
printf 'QFI\373\000\000\000\003' >q
expect_fail 'cowimg info -f dscow q' 'not a dscow image'
mkfifo pipe
expect_fail 'cowimg info -f dscow pipe' 'not a regular file'
expect_fail 'cowimg info pipe' 'never guessed'
expect_fail 'cowimg info good.dscow' 'looks like dscow'
expect_fail 'cowimg info -f dscow "$(printf "a\nb")"' 'No such file'

subtest cut off at every 512 bytes of the metadata, and in the data
size=$(stat -c %s good.dscow)
at=0
while [ $at -lt $size ]; do
	head -c $at good.dscow >bad.dscow
	expect_fail 'cowimg read -f dscow bad.dscow' 'bad.dscow'
	expect_fail 'cowimg write -f dscow -l 1 --pattern 1 bad.dscow' 'bad.dscow'
	[ $at -lt 8192 ] && at=$((at + 512)) || at=$((at + 100001))
	[ $at != 8192 ] || at=65536
done
for at in 1 100 511 513 $((size - 1)); do
	head -c $at good.dscow >bad.dscow
	ordeal cut at $at
done

subtest one byte of the metadata changed, everywhere
# Header and backup, both text areas, the map sectors that are in use.
for at in $(seq 0 16 511) $(seq 512 37 1023) $(seq 1024 61 2559) $(seq 2560 150 4095) \
	  $(seq 4096 23 4607) 4608 5000 8191 20000 65535; do
	cp --sparse=always good.dscow bad.dscow
	byte=$(dd if=good.dscow bs=1 skip=$at count=1 status=none | od -An -tu1)
	printf "$(printf '\\%03o' $((byte ^ 0x41)))" | dd of=bad.dscow bs=1 seek=$at conv=notrunc status=none
	ordeal byte $at
done

subtest sectors of noise
for at in 0 512 1024 2560 4096 4608 61440; do
	cp --sparse=always good.dscow bad.dscow
	head -c 512 /dev/urandom | dd of=bad.dscow bs=512 seek=$((at / 512)) conv=notrunc status=none
	ordeal noise at $at
done
cp --sparse=always good.dscow bad.dscow
head -c 65536 /dev/urandom | dd of=bad.dscow bs=64K conv=notrunc status=none
expect_fail 'cowimg read -f dscow bad.dscow' 'not a dscow image'
cp --sparse=always good.dscow bad.dscow
head -c 61440 /dev/urandom | dd of=bad.dscow bs=4K seek=1 conv=notrunc status=none
ordeal noisy map

subtest repairs
# The header is gone, its backup is whole; a damaged map sector.
cp --sparse=always good.dscow bad.dscow
dd if=/dev/zero of=bad.dscow bs=512 count=1 conv=notrunc status=none
expect_fail 'cowimg read -f dscow bad.dscow' 'header'
status=0
cowimg check -f dscow bad.dscow >out || status=$?
[ $status = 2 ] || fail "check of a lost header: status $status"
status=0
cowimg check -f dscow --output=json bad.dscow >out || status=$?
[ $status = 2 ] && grep -q '"corruptions": *[1-9]' out || fail "check json: $status $(cat out)"
cowimg check -f dscow -r all bad.dscow >out || fail "repair: $(cat out)"
grep -q repaired out || fail "repair said $(cat out)"
cowimg read -f dscow bad.dscow | cmp - want.raw
cp --sparse=always good.dscow bad.dscow
printf '\377\377\377\377' | dd of=bad.dscow bs=1 seek=4100 conv=notrunc status=none
expect_fail 'cowimg read -f dscow bad.dscow >/dev/null' '.'
status=0
dscow_tool -k bad.dscow >out || status=$?
[ $status = 2 ] || fail "check of a damaged map: status $status"
dscow_tool -R bad.dscow >out || fail "repair: $(cat out)"
dscow_tool -k bad.dscow >out || fail "check after repair: $(cat out)"
cowimg read -f dscow bad.dscow >out

subtest features from the future
cp --sparse=always good.dscow bad.dscow
"$BUILD/tests/format/dscow-forge" bad.dscow incompat=0x100
expect_fail 'cowimg read -f dscow bad.dscow' 'feature bits 0x100'
expect_fail 'cowimg check -f dscow -r all bad.dscow' 'feature bits 0x100'
"$BUILD/tests/format/dscow-forge" bad.dscow incompat=0 compat=0xffff
cowimg read -f dscow bad.dscow | cmp - want.raw
cowimg write -f dscow -l 1 --pattern 1 bad.dscow
"$BUILD/tests/format/dscow-forge" bad.dscow version=7
expect_fail 'cowimg read -f dscow bad.dscow' 'version 7'
for set in size=0 size=0xffffffffffffffff first_block=0 first_block=4096 block_bits=63 \
	   granule_bits=255 below_limit=0xffffffffffffffff text_off=77 path_len=65535; do
	cp --sparse=always good.dscow bad.dscow
	"$BUILD/tests/format/dscow-forge" bad.dscow $set
	ordeal sizes $set
	expect_fail 'cowimg read -f dscow bad.dscow' 'bad.dscow'
done

if [ "$(id -u)" = 0 ] && mkdir full && mount -t tmpfs -o size=1M none full 2>/dev/null; then
	subtest no space
	at_exit "umount '$TMP/full'"
	cp base.raw outside.raw
	cowimg create -q -f dscow -b outside.raw -F raw full/over.dscow
	expect_fail 'cowimg write -f dscow --backing outside.raw full/over.dscow base.raw' 'No space left'
	# Blocks that were written but never shown are leaks (3); damage would be 2.
	status=0
	cowimg check -q -f dscow full/over.dscow || status=$?
	[ $status = 0 ] || [ $status = 3 ] || fail "a full disk damaged the image: status $status"
	# What was written before stands; the rest is the base. No byte is anything else.
	cowimg read -f dscow --backing outside.raw full/over.dscow | cmp - base.raw
	expect_fail 'cowimg read -f dscow --backing outside.raw full/over.dscow full/copy' 'No space left'
	[ ! -e full/copy ] || fail 'a half copy was left'
	fill=$(df --output=avail -B1 full | tail -n 1)
	head -c "$fill" /dev/zero >full/fill || :
	expect_fail 'cowimg create -q -f dscow -b outside.raw -F raw full/second.dscow' 'No space left'
	[ ! -e full/second.dscow ] || fail 'a half image was left'
	rm full/fill
	cowimg check -q -f dscow -r all full/over.dscow || fail 'leaks are not repaired'
	cowimg write -f dscow -s 5 -l 5 --pattern 5 --backing outside.raw full/over.dscow
else
	part_skipped 'cannot mount a tmpfs: a full disk is not tried'
fi

# The build may lie where another user cannot go.
mkdir -p tools/lib
cp -r "$BUILD/bin" tools/
cp -r "$BUILD/lib/cow" "$BUILD"/lib/libcow.so* tools/lib/
if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null &&
   nobody="setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all env PATH=$PWD/tools/bin:$PATH" &&
   mkdir open && chmod 777 open && chmod 755 . && $nobody cowimg --version >/dev/null 2>&1; then
	subtest no permission
	cp --sparse=always good.dscow base.raw open/
	touch -r base.raw open/base.raw
	chmod 600 open/good.dscow
	expect_fail "$nobody cowimg info -f dscow open/good.dscow" 'open/good.dscow.*Permission denied'
	chmod 644 open/good.dscow
	chmod 600 open/base.raw
	expect_fail "$nobody cowimg read -f dscow open/good.dscow" 'base.raw.*Permission denied'
	chmod 644 open/base.raw
	$nobody cowimg read -f dscow open/good.dscow | cmp - want.raw
	expect_fail "$nobody cowimg write -f dscow -l 1 --pattern 1 open/good.dscow" 'Permission denied'
	chmod 666 open/good.dscow
	$nobody cowimg write -f dscow -l 1 --pattern 1 open/good.dscow
	expect_fail "$nobody cowimg commit -f dscow open/good.dscow" 'base.raw.*Permission denied'
	$nobody cowimg read -f dscow -l 1 --pattern 1 open/good.dscow
	chmod 755 open
	expect_fail "$nobody cowimg create -q -f dscow -b open/base.raw -F raw open/new.dscow" 'Permission denied'
	expect_fail "$nobody dscow_tool -c open/new.dscow open/base.raw" 'Permission denied'
	[ ! -e open/new.dscow ] || fail 'made without permission'
else
	part_skipped 'cannot become another user: missing permissions are not tried'
fi

shm=$(mktemp -d /dev/shm/cow.XXXXXX 2>/dev/null) || shm=
if [ -n "$shm" ] && truncate -s 16T "$shm/base.raw" 2>/dev/null; then
	subtest 16 TiB in little memory
	at_exit "rm -rf '$shm'"
	# Private memory, as RLIMIT_DATA counts it; meaningless under a sanitizer.
	lean='prlimit --data=16777216'
	[ -z "${SAN:-}" ] && command -v prlimit >/dev/null || lean=
	$lean dscow_tool -c "$shm/over.dscow" "$shm/base.raw" >out
	grep -qx 'Size:         17592186044416' out && grep -qx 'Blocks:       268435456' out || fail "$(cat out)"
	$lean cowimg info -f dscow --backing-chain "$shm/over.dscow" >out
	for off in 0 8796093022208 17592186040000; do
		$lean cowimg write -f dscow -s $off -l 4416 --pattern 9 "$shm/over.dscow"
		$lean cowimg read -f dscow -s $off -l 4416 --pattern 9 "$shm/over.dscow"
	done
	$lean cowimg map -f dscow "$shm/over.dscow" >out
	[ "$(grep -c ' 0 *data' out)" = 3 ] || fail "map: $(cat out)"
	$lean dscow_tool -s "$shm/over.dscow" | grep -qx 'Present:      24576' || fail 'present bytes'
	[ $(($(stat -c %b "$shm/over.dscow") * 512)) -lt 1000000 ] || fail 'the overlay is not sparse'
	$lean cowimg create -q -f dscow "$shm/huge.dscow" 64T
	$lean cowimg write -f dscow -s $((64 * 1024 * 1024 * 1024 * 1024 - 10)) -l 10 --pattern 4 "$shm/huge.dscow"
	$lean cowimg read -f dscow -s $((64 * 1024 * 1024 * 1024 * 1024 - 10)) -l 10 --pattern 4 "$shm/huge.dscow"
	$lean cowimg info -f dscow "$shm/huge.dscow" >out
else
	rm -rf "$shm"
	part_skipped 'no sparse file of 16 TiB in /dev/shm'
fi
