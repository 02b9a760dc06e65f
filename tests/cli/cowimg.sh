#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Every verb of cowimg, used well and badly, against plain files changed by dd.
. tests/lib/test.sh
cd "$TMP"

# A part that this machine cannot run: counted as skipped, with its reason.
part_skipped() {
	echo "SKIP: $test_name: $*"
	echo 'COUNT: 0 0 1'
}

# misuse 'CMD' REGEX: as expect_fail, and the exit status is that of misuse
misuse() {
	expect_fail "$1" "$2"
	[ $status = 2 ] || fail "$1: exit status $status, not 2"
}

# The base: text, so that any misplaced byte differs from its neighbours; an odd size.
SIZE=3000001
seq 1 1000000 | head -c $SIZE >base.raw
chmod 444 base.raw
base_sum=$(sha256sum <base.raw)

# put OFF LEN FILE: the same bytes into the overlay and into the plain file
put() {
	head -c "$2" "$3" >chunk
	cowimg write -f dscow -s "$1" over.dscow chunk
	dd if=chunk of=ref.raw bs=64K seek="$1" oflag=seek_bytes conv=notrunc status=none
}

ref_zero() {	# OFF LEN
	[ "$2" = 0 ] || head -c "$2" /dev/zero |
		dd of=ref.raw bs=64K seek="$1" oflag=seek_bytes conv=notrunc status=none
}

same() {
	cowimg read -f dscow over.dscow - >out.raw
	cmp out.raw ref.raw || fail "overlay and reference differ: $*"
}

subtest misuse is told in one sentence
misuse 'cowimg' 'a VERB is missing'
misuse 'cowimg frobnicate x' "'frobnicate' is not a verb"
misuse 'cowimg --frobnicate' 'unknown'
cowimg --help >help
cowimg --version | grep -q '^cowimg '
for verb in bench check commit compare convert create diff discard info map measure read rebase resize write zero; do
	grep -q "^  $verb " help || fail "cowimg --help does not list $verb"
	cowimg $verb --help | grep -q "^Usage: cowimg $verb " || fail "$verb --help"
	cowimg $verb --long-options | grep -qx -- --format || fail "$verb --long-options"
	misuse "cowimg $verb --frobnicate" 'unknown'
	misuse "cowimg $verb -f" 'needs an argument'
	misuse "cowimg $verb -f dscow" 'missing'
	misuse "cowimg $verb -f dscow ''" 'missing|empty'
	misuse "cowimg $verb -f dscow a 1 c d" 'too many'
done
for verb in check commit info map read resize write; do
	misuse "cowimg $verb base.raw 100" 'too many|never guessed'
done
misuse 'cowimg map -f raw -s 10x base.raw' 'not a size'
misuse 'cowimg map -f raw -s 99999999999999999999 base.raw' 'too large'
misuse 'cowimg map -f raw -U base.raw' 'unknown option -U'
misuse 'cowimg info -f raw --output=xml base.raw' "not 'xml'"
misuse 'cowimg info -f raw -o =3 base.raw' '-o'
misuse 'cowimg zero -f raw base.raw' 'LENGTH'
misuse 'cowimg discard -f raw -s 1 base.raw' 'LENGTH'
misuse 'cowimg write -f raw --pattern 300 -l 1 base.raw' '0 to 255'
misuse 'cowimg write -f raw --pattern 3 base.raw' 'needs -l'
misuse 'cowimg write -f raw --pattern 3 -l 1 base.raw chunk' 'too many'
misuse 'cowimg check -f dscow -r some over.dscow' "not 'some'"
misuse 'cowimg rebase -f dscow over.dscow' 'only with -u'
misuse 'cowimg rebase -u -f dscow -b base.raw over.dscow' 'go together'
misuse 'cowimg create -o help' 'needs -f'
cowimg create -f dscow -o help | grep -q '^  block_size=' || fail 'create -o help'
cowimg read -f raw -o help | grep -q '^  offset=' || fail 'read -o help'
expect_fail 'cowimg info -f frob -o help' "unknown format 'frob'"
expect_fail 'cowimg info -f frob base.raw' "unknown format 'frob'.*dscow"
expect_fail 'cowimg info -f ../raw base.raw' 'unknown format'
expect_fail 'cowimg info -f raw missing.raw' 'missing.raw.*No such file'
expect_fail 'cowimg info -f raw .' 'directory|not a regular file'
expect_fail 'cowimg info -f raw -o frob=1 base.raw' 'frob'
expect_fail 'cowimg info -f raw base.raw >/dev/full' 'No space left'

subtest create
misuse 'cowimg create -f dscow over.dscow' 'SIZE is missing'
misuse 'cowimg create over.dscow 1M' '-f FORMAT is missing'
misuse 'cowimg create -f dscow -b base.raw over.dscow' 'needs -F'
misuse 'cowimg create -f dscow -F raw over.dscow 1M' '-b BASE is missing'
misuse 'cowimg create -f dscow over.dscow 0' '0 bytes'
misuse 'cowimg create -f dscow over.dscow 1.5G' 'not a size'
for bad in 'create -f dscow -b missing.raw -F raw over.dscow' \
	   'create -f dscow -b base.raw -F frob over.dscow' \
	   'create -f dscow -o frob=1 over.dscow 1M' \
	   'create -f dscow -o block_size=5000 over.dscow 1M' \
	   'create -f dscow -o block_size=2K over.dscow 1M' \
	   'create -f dscow -o block_size=32M over.dscow 1M' \
	   'create -f dscow -b base.raw -F dscow over.dscow' \
	   'create -f dscow no/such/folder/over.dscow 1M' \
	   'create -f dscow over.dscow 15E'; do
	expect_fail "cowimg $bad" '.'
	[ ! -e over.dscow ] || fail "left a file: cowimg $bad"
done
cowimg create -f dscow -b base.raw -F raw over.dscow >said
grep -q "over.dscow.*$SIZE bytes.*base.raw" said || fail "create said: $(cat said)"
expect_fail 'cowimg create -f dscow -b base.raw -F raw over.dscow' 'over.dscow.*exists'
cowimg create -q -f dscow --overwrite -b base.raw -F raw over.dscow >said
[ ! -s said ] || fail 'create -q is not quiet'
cowimg create -f dscow --output=json alone.dscow 1M | grep -q '"size": *1048576' || fail json
cp base.raw ref.raw
chmod 644 ref.raw
same 'fresh overlay'

subtest info
cowimg info -f dscow over.dscow | grep -q base.raw || fail 'info does not name the base'
cowimg info -f dscow --output=json over.dscow >info.json
grep -q '"schema": *1' info.json || fail 'info: no schema'
grep -q "\"size\": *$SIZE" info.json || fail 'info: no size'
[ "$(grep -c '"path":' info.json)" = 1 ] || fail 'info opened the base'
cowimg info -f dscow --backing-chain --output=json over.dscow >info.json
[ "$(grep -o '"path":' info.json | wc -l)" = 2 ] || fail 'info --backing-chain lacks the base'

subtest writes at awkward places read back
seq 5000000 6000000 >noise
put 0 1 noise
put 4095 2 noise
put 65535 70001 noise
put $((SIZE - 2)) 2 noise
put 1048576 1048576 noise
put 2999000 1001 noise
same writes
cowimg read -f dscow -s 65530 -l 20 over.dscow >a
dd if=ref.raw bs=64K skip=65530 count=20 iflag=skip_bytes,count_bytes of=b status=none
cmp a b
printf x | cowimg write -f dscow -s 77777 over.dscow
printf x | dd of=ref.raw bs=1 seek=77777 conv=notrunc status=none
printf abcdef | cowimg write -f dscow -s 88888 -l 3 over.dscow
printf abc | dd of=ref.raw bs=1 seek=88888 conv=notrunc status=none
cowimg write -f dscow -s 200000 -l 9999 --pattern 0x5a over.dscow
head -c 9999 /dev/zero | tr '\0' Z | dd of=ref.raw bs=64K seek=200000 oflag=seek_bytes conv=notrunc status=none
cowimg read -f dscow -s 200000 -l 9999 --pattern 90 over.dscow
expect_fail 'cowimg read -f dscow -s 199999 -l 10000 --pattern 90 over.dscow' 'offset 199999 is not 0x5a'
same patterns

subtest zero and discard
cowimg zero -f dscow -s 100 -l 300000 over.dscow
ref_zero 100 300000
same zero
cowimg zero -f dscow -s $((SIZE - 100)) -l 100 over.dscow
ref_zero $((SIZE - 100)) 100
same 'zero at the end'
# Whole granules (4096) become zero, ragged edges stay; the end of the image is an edge of a granule.
cowimg discard -f dscow -s 1000000 -l 100000 over.dscow
ref_zero 1003520 94208
cowimg discard -f dscow -s 2998000 -l $((SIZE - 2998000)) over.dscow
ref_zero 2998272 $((SIZE - 2998272))
cowimg discard -f dscow -s 5000 -l 100 over.dscow
same discard

subtest 150 pseudo-random changes
awk -v size=$SIZE 'BEGIN { srand(7); for (i = 0; i < 150; i++) {
	off = int(rand() * size); len = 1 + int(rand() * (rand() < 0.7 ? 9000 : 200000));
	if (off + len > size) len = size - off;
	print (rand() < 0.7 ? "put" : "zero"), off, len } }' >plan
while read -r op off len; do
	if [ $op = put ]; then
		put "$off" "$len" noise
	else
		cowimg zero -f dscow -s "$off" -l "$len" over.dscow
		ref_zero "$off" "$len"
	fi
done <plan
same random
[ "$(sha256sum <base.raw)" = "$base_sum" ] || fail 'the base was changed'

subtest nothing is written outside the image
before=$(sha256sum <over.dscow)
expect_fail "cowimg write -f dscow -s $SIZE over.dscow noise" 'past the end'
expect_fail 'cowimg write -f dscow over.dscow noise' 'past the end'
expect_fail "cowimg write -f dscow -s $((SIZE - 1)) -l 2 --pattern 1 over.dscow" 'past the end'
expect_fail "cowimg zero -f dscow -s 1 -l $SIZE over.dscow" 'past the end'
expect_fail "cowimg zero -f dscow -s 15E -l 15E over.dscow" 'past the end'
expect_fail "cowimg discard -f dscow -s $SIZE -l 1 over.dscow" 'past the end'
expect_fail "cowimg read -f dscow -s $SIZE -l 1 over.dscow" 'past the end'
expect_fail "cowimg map -f dscow -s $((SIZE + 1)) over.dscow" 'past the end'
expect_fail 'cowimg write -f dscow over.dscow missing' 'missing.*No such file'
expect_fail 'cowimg write -f dscow over.dscow .' 'directory'
[ "$(sha256sum <over.dscow)" = "$before" ] || fail 'a refused change changed the image'
expect_fail 'head -c 20 noise | cowimg write -f dscow -s 2999991 over.dscow' 'no room'
expect_fail 'printf abc | cowimg write -f dscow -l 4 over.dscow' 'input ended after 3 bytes'
printf abc | dd of=ref.raw bs=1 conv=notrunc status=none
same 'short input'

subtest read to files
cowimg read -f dscow over.dscow out2.raw
cmp out2.raw ref.raw
expect_fail 'cowimg read -f dscow over.dscow out2.raw' 'out2.raw.*exists'
expect_fail 'cowimg read -f dscow over.dscow no/such/out' 'No such file'
expect_fail 'cowimg read -f dscow over.dscow /dev/full' 'No space left'
expect_fail 'cowimg read -f dscow over.dscow >/dev/full' 'No space left'
cowimg read -f dscow over.dscow /dev/null
cowimg create -q -f dscow sparse.dscow 1G
cowimg read -f dscow sparse.dscow sparse.raw
[ "$(stat -c %s sparse.raw)" = 1073741824 ] || fail 'wrong size of a sparse copy'
[ "$(stat -c %b sparse.raw)" -lt 64 ] || fail 'a copy of nothing takes space'

subtest map
cowimg map -f dscow over.dscow >map
awk -v size=$SIZE 'NR == 1 { next } $1 != at { print "gap at", at; exit 1 } { at += $2 }
	END { if (at != size) { print "ends at", at; exit 1 } }' map || fail "map: $(cat map)"
grep -q ' 0 *data .*over.dscow' map || fail 'no data of the overlay in the map'
grep -q ' 1 *data .*base.raw' map || fail 'no data of the base in the map'
grep -q ' zero' map || fail 'no zeroes in the map'
# What the map says is the truth: the bytes it points at are the bytes read.
while read -r start length depth kind offset file; do
	if [ "$kind" = data ]; then
		tail -c +$((offset + 1)) "$file" | head -c "$length" >a
	elif [ "$kind" = zero ]; then
		head -c "$length" /dev/zero >a
	else
		continue
	fi
	tail -c +$((start + 1)) ref.raw | head -c "$length" >b
	# An image may end inside its last block; what the file lacks there reads as zeroes.
	truncate -s "$length" a
	cmp -s a b || fail "map is wrong at $start ($kind, depth $depth)"
done <map
cowimg map -f dscow -s 4096 -l 8192 over.dscow | awk 'NR > 1 { n += $2; if (NR == 2 && $1 != 4096) exit 1 }
	END { exit n != 8192 }' || fail 'map -s -l'
cowimg map -f dscow --layer 1 over.dscow | awk 'NR > 1 && $3 != 1 { exit 1 }' || fail 'map --layer'
expect_fail 'cowimg map -f dscow --layer 2 over.dscow' 'no layer 2'
cowimg map -f dscow --output=json over.dscow >map.json
grep -q '"schema": *1' map.json && grep -q '"map"' map.json || fail 'map --output=json'
[ "$(grep -o '"start":' map.json | wc -l)" = "$(($(wc -l <map) - 1))" ] || fail 'map: json and text differ'
if command -v python3 >/dev/null; then
	for v in info map check; do
		cowimg $v -f dscow --output=json over.dscow |
			python3 -c 'import json, sys; json.load(sys.stdin)' || fail "$v: JSON that is none"
	done
else
	part_skipped 'no python3: JSON is not parsed'
fi

subtest check
cowimg check -f dscow over.dscow | grep -q '^No errors were found' || fail check
cowimg check -q -f dscow over.dscow >said
[ ! -s said ] || fail 'check -q is not quiet'
cowimg check -f dscow --output=json over.dscow | grep -q '"corruptions": *0' || fail 'check json'
status=0
cowimg check -f raw base.raw 2>said || status=$?
[ $status = 63 ] || fail "check of a raw image: status $status, said $(cat said)"
[ "$(wc -l <said)" = 1 ] || fail "check of a raw image said $(cat said)"

subtest compare
cowimg compare -f dscow -F raw over.dscow ref.raw | grep -q '^Images are identical' || fail compare
cowimg compare -f raw -F dscow ref.raw over.dscow >said
cowimg compare -q -f dscow -F raw over.dscow ref.raw >said
[ ! -s said ] || fail 'compare -q is not quiet'
cp ref.raw other.raw
printf '\001' | dd of=other.raw bs=1 seek=2222222 conv=notrunc status=none
status=0
cowimg compare -f dscow -F raw over.dscow other.raw >said || status=$?
[ $status = 1 ] && grep -q "mismatch at offset 2222222!" said || fail "compare: $status $(cat said)"
status=0
cowimg compare -f dscow -F raw --output=json over.dscow other.raw >said || status=$?
[ $status = 1 ] && grep -q "\"offset\": *2222222" said || fail "compare json: $(cat said)"
cp ref.raw longer.raw
truncate -s +100000 longer.raw
cowimg compare -f dscow -F raw over.dscow longer.raw | grep -q 'sizes differ' || fail 'a zero tail is the same'
status=0
cowimg compare -s -f dscow -F raw over.dscow longer.raw >said || status=$?
[ $status = 1 ] && grep -q Strict said || fail 'compare -s'
printf x >>longer.raw
status=0
cowimg compare -f raw longer.raw ref.raw >said || status=$?
[ $status = 1 ] || fail 'a tail that is not zero differs'
expect_fail 'cowimg compare -f dscow -F raw over.dscow missing.raw' 'missing.raw'
[ $status = 2 ] || fail "compare with nothing: status $status"

subtest a map that continues behind the data survives growing, with large granules at odd ends
cowimg create -q -f dscow -o block_size=64K,granule_size=64K far.dscow 1M
cowimg resize -q -f dscow far.dscow 68719480832	# 64 GiB and 4 KiB: the map no longer fits in front
cowimg write -f dscow -s 40G -l 65536 --pattern 7 far.dscow
cowimg resize -q -f dscow far.dscow 75161931776
cowimg read -f dscow -s 40G -l 65536 --pattern 7 far.dscow
cowimg check -q -f dscow far.dscow

subtest resize
expect_fail 'cowimg resize -f dscow over.dscow -1000' '--shrink'
misuse 'cowimg resize -f dscow over.dscow 1x' 'not a size'
misuse 'cowimg resize -f dscow over.dscow 0' '0 bytes'
expect_fail 'cowimg resize -f dscow --shrink over.dscow -10M' 'only [0-9]* bytes'
same 'refused resize'
cowimg resize -f dscow over.dscow +1000000 | grep -q resized || fail resize
truncate -s $((SIZE + 1000000)) ref.raw
same grown
put $((SIZE + 500000)) 3000 noise
same 'written behind the old end'
cowimg resize -q -f dscow --shrink over.dscow 1234567
truncate -s 1234567 ref.raw
same shrunk
cowimg resize -q -f dscow over.dscow 2500000
truncate -s 2500000 ref.raw
same 'what was cut off does not come back'
cowimg check -q -f dscow over.dscow

subtest commit
cp base.raw cbase.raw
chmod 644 cbase.raw
cowimg create -q -f dscow -b cbase.raw -F raw cover.dscow
cowimg write -f dscow -s 12345 -l 678901 --pattern 7 cover.dscow
cowimg zero -f dscow -s 1000000 -l 300000 cover.dscow
cowimg read -f dscow cover.dscow want.raw
cowimg commit -f dscow cover.dscow | grep -q 'committed' || fail commit
cmp want.raw cbase.raw
cowimg read -f dscow cover.dscow >got.raw
cmp want.raw got.raw
cowimg map -f dscow cover.dscow | awk 'NR > 1 && $3 == 0 { exit 1 }' || fail 'a committed overlay is empty'
cowimg check -q -f dscow cover.dscow
expect_fail 'cowimg commit -f dscow alone.dscow' 'base'
expect_fail 'cowimg commit -f raw cbase.raw' '.'
cowimg resize -q -f dscow cover.dscow 4000000
cowimg write -f dscow -s 3999990 -l 10 --pattern 3 cover.dscow
cowimg read -f dscow cover.dscow >want.raw
cowimg commit -q -f dscow cover.dscow
cmp want.raw cbase.raw || fail 'a longer overlay makes its base longer'
cowimg read -f dscow cover.dscow >got.raw
cmp want.raw got.raw

subtest rebase
cp base.raw moved.raw
cowimg create -q -f dscow -b base.raw -F raw reb.dscow
cowimg write -f dscow -s 5 -l 5 --pattern 5 reb.dscow
cowimg read -f dscow reb.dscow >want.raw
cowimg rebase -u -f dscow -b moved.raw -F raw reb.dscow | grep -q recorded || fail rebase
cowimg info -f dscow reb.dscow | grep -q moved.raw || fail 'the new base is not recorded'
cowimg read -f dscow reb.dscow >got.raw
cmp want.raw got.raw
touch -d @1000000000 moved.raw
expect_fail 'cowimg read -f dscow reb.dscow' 'moved.raw was modified'
cowimg rebase -q -u -f dscow reb.dscow 2>/dev/null
cowimg read -f dscow reb.dscow >got.raw
cmp want.raw got.raw
seq 3 1000000 | head -c $SIZE >other.raw
expect_fail 'cowimg rebase -u -f dscow -b other.raw -F raw reb.dscow' 'contents of the base'
expect_fail 'cowimg rebase -u -f dscow -b missing.raw -F raw reb.dscow' 'missing.raw'
expect_fail 'cowimg rebase -u -f dscow -b reb.dscow -F dscow reb.dscow' 'reb.dscow'
expect_fail 'cowimg rebase -u -f raw base.raw' '.'
cowimg read -f dscow reb.dscow >got.raw
cmp want.raw got.raw

subtest progress and signals
cowimg compare -p -f dscow -F raw over.dscow ref.raw >out 2>err
[ ! -s err ] || fail 'a bar was written into a file'
if command -v script >/dev/null; then
	script -qec 'cowimg compare -p -f dscow -F raw over.dscow ref.raw' /dev/null >tty </dev/null
	grep -q '100%' tty || fail 'no bar on a terminal'
	script -qec 'cowimg compare -f dscow -F raw over.dscow ref.raw' /dev/null >tty </dev/null
	! grep -q '%' tty || fail 'a bar without -p'
else
	part_skipped 'no script(1): the bar on a terminal is not tried'
fi
# A signal that waits since before the program began comes at the first look: no timing involved.
pending() {	# SIGNAL COMMAND...
	sig=$1
	shift
	env --default-signal="$sig" --block-signal="$sig" sh -c 'kill -'"$sig"' $$; exec "$@"' sh "$@"
}
if env --block-signal=INT true 2>/dev/null; then
	pending USR1 cowimg compare -f dscow -F raw over.dscow ref.raw >out 2>err
	grep -q '^cowimg compare: [0-9]*%' err && [ "$(wc -l <err)" = 1 ] || fail "SIGUSR1: $(cat err)"
	status=0
	pending INT cowimg read -f dscow over.dscow half.raw 2>err || status=$?
	[ $status = 1 ] && [ ! -e half.raw ] || fail "SIGINT of read: $status"
	grep -q 'interrupted by SIGINT.*half.raw was removed' err || fail "read said $(cat err)"
	status=0
	pending TERM cowimg write -f dscow over.dscow chunk 2>err || status=$?
	[ $status = 1 ] && grep -q 'SIGTERM after 0 bytes' err || fail "SIGTERM of write: $status $(cat err)"
	same 'interrupted write'
	cowimg write -f dscow -l 70000 --pattern 1 cover.dscow
	cowimg read -f dscow cover.dscow >want.raw
	status=0
	pending HUP cowimg commit -f dscow cover.dscow 2>err || status=$?
	[ $status = 1 ] && grep -q 'SIGHUP.*run again' err || fail "SIGHUP of commit: $status $(cat err)"
	cowimg read -f dscow cover.dscow >got.raw
	cmp want.raw got.raw
	cowimg commit -q -f dscow cover.dscow
	cmp want.raw cbase.raw
else
	part_skipped 'env cannot block signals: being stopped is not tried'
fi

subtest raw images too
cp ref.raw r.raw
cowimg info -f raw r.raw | grep -q raw
cowimg write -f raw -s 99 r.raw chunk
dd if=chunk of=ref.raw bs=64K seek=99 oflag=seek_bytes conv=notrunc status=none
cowimg zero -f raw -s 10000 -l 100000 r.raw
ref_zero 10000 100000
cmp r.raw ref.raw
cowimg read -f raw -o offset=4096,size=8192 r.raw >a
dd if=ref.raw bs=4096 skip=1 count=2 of=b status=none
cmp a b
cowimg create -q -f raw new.raw 1000001
[ "$(stat -c %s new.raw)" = 1000001 ] || fail 'size of a new raw image'
cowimg info -f zero -o size=1M anything >said || fail 'the zero format'

[ "$(sha256sum <base.raw)" = "$base_sum" ] || fail 'the base was changed'
