#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 300
#
# Persistent bitmaps of qcow2, made, filled, changed and read by QEMU and by us in turn:
# which ranges they have, what becomes of them in each change of the image, and what is
# not believed.
. tests/lib/test.sh
[ -e "$BUILD/lib/cow/cow-qcow2.so" ] || skip "built without zlib and zstd"
require_cmd qemu-img qemu-io jq python3
cd "$TMP"

bitmaps() {	# IMAGE [JQ]: what info says of them
	cowimg info -f qcow2 --output=json "$1" | jq -cr ".layers[0].format_specific.bitmaps | ${2:-.}"
}
changed() {	# IMAGE BITMAP: "start+length ..."
	cowimg bitmap -f qcow2 --output=json --dump "$2" "$1" | jq -r '[.changed[] | "\(.start)+\(.length)"] | join(" ")'
}
by_qemu() {	# IMAGE BITMAP: the same, read by QEMU
	qemu-nbd -f qcow2 -r -B "$2" -k "$PWD/nbd.sock" --fork --pid-file="$PWD/nbd.pid" "$1"
	qemu-img map --output=json --image-opts \
		"driver=nbd,server.type=unix,server.path=$PWD/nbd.sock,x-dirty-bitmap=qemu:dirty-bitmap:$2" |
		jq -r '[.[] | select(.data | not) | "\(.start)+\(.length)"] | join(" ")'
	kill "$(cat nbd.pid)"
	while [ -e "/proc/$(cat nbd.pid)" ]; do sleep 0.01; done 2>/dev/null || :
}
both_say() {	# IMAGE BITMAP RANGES
	[ "$(changed "$1" "$2")" = "$3" ] || fail "$2 has $(changed "$1" "$2"), not $3"
	[ "$(by_qemu "$1" "$2")" = "$3" ] || fail "to QEMU $2 has $(by_qemu "$1" "$2"), not $3"
}
both_clean() {
	qemu-img check -q "$1" || fail "QEMU finds something in $1"
	cowimg check -q -f qcow2 "$1" || fail "cowimg finds something in $1"
}
poke() {	# IMAGE OFFSET OCTAL...
	printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}
directory() {	# IMAGE: where its bitmap directory is
	python3 - "$1" <<-'END'
	import struct, sys
	h = open(sys.argv[1], "rb").read(4096)
	at = struct.unpack(">I", h[100:104])[0]
	while True:
	    kind, n = struct.unpack(">II", h[at:at + 8])
	    if kind == 0x23852875:
	        print(struct.unpack(">Q", h[at + 24:at + 32])[0])
	        break
	    at += 8 + (n + 7) // 8 * 8
	END
}

subtest listed
qemu-img create -q -f qcow2 a.qcow2 20M
[ "$(bitmaps a.qcow2)" = '[]' ] || fail "an image without bitmaps has some"
qemu-img bitmap --add a.qcow2 one
qemu-img bitmap --add -g 4096 --disable a.qcow2 two
[ "$(bitmaps a.qcow2 '[.[] | [.name, .granularity, .type, .enabled, .in_use, .state]]')" = \
  '[["one",65536,"dirty",true,false,"good"],["two",4096,"dirty",false,false,"good"]]' ] ||
	fail "$(bitmaps a.qcow2)"
cowimg bitmap -f qcow2 a.qcow2 | grep -Eq '^4096 +no +good +two$' || fail "$(cowimg bitmap -f qcow2 a.qcow2)"
cowimg bitmap -f qcow2 --output=json a.qcow2 | jq -e '.bitmaps | length == 2' >/dev/null || fail "JSON"
cowimg info -f qcow2 a.qcow2 | grep -q 'state: good' || fail "$(cowimg info -f qcow2 a.qcow2)"

subtest dumped
[ "$(changed a.qcow2 one)" = '' ] || fail "nothing was written yet: $(changed a.qcow2 one)"
qemu-io -f qcow2 -c 'write 0 512' -c 'write 70000 100' -c 'write 130000 4096' -c 'write 20971000 520' a.qcow2 >/dev/null
[ "$(changed a.qcow2 one)" = '0+196608 20905984+65536' ] || fail "$(changed a.qcow2 one)"
[ "$(changed a.qcow2 two)" = '' ] || fail "the disabled bitmap has $(changed a.qcow2 two)"
cowimg bitmap -f qcow2 -D one a.qcow2 | grep -Eq '^20905984 +65536$' || fail "text"
expect_fail 'cowimg bitmap -f qcow2 -D three a.qcow2' "has no bitmap 'three'"
expect_fail 'cowimg bitmap -f raw a.qcow2' 'raw has no bitmaps inside an image'
expect_usage() {
	status=0
	$1 >out 2>&1 || status=$?
	[ $status = 2 ] || fail "$1: status $status"
}
expect_usage 'cowimg bitmap -f qcow2 -l -D one a.qcow2'

subtest a disk that ends within a granule
qemu-img create -q -f qcow2 e.qcow2 1000448
qemu-img bitmap --add e.qcow2 bits
qemu-io -f qcow2 -c 'write 999936 512' e.qcow2 >/dev/null
[ "$(changed e.qcow2 bits)" = '983040+17408' ] || fail "$(changed e.qcow2 bits)"

subtest what is not to be believed
dir=$(directory a.qcow2)
cp a.qcow2 b.qcow2
poke b.qcow2 $((dir + 15)) '\003'
[ "$(bitmaps b.qcow2 '.[0] | [.in_use, .state]')" = '[true,"inconsistent"]' ] || fail "$(bitmaps b.qcow2)"
expect_fail 'cowimg bitmap -f qcow2 -D one b.qcow2' "bitmap 'one' was not stored by who used it last"
cp a.qcow2 b.qcow2
poke b.qcow2 $((dir + 15)) '\012'
[ "$(bitmaps b.qcow2 '.[0].state')" = unknown ] || fail "$(bitmaps b.qcow2)"
cp a.qcow2 b.qcow2
poke b.qcow2 $((dir + 16)) '\002'
[ "$(bitmaps b.qcow2 '.[0] | [.type, .state]')" = '["unknown","unknown"]' ] || fail "$(bitmaps b.qcow2)"
expect_fail 'cowimg bitmap -f qcow2 -D one b.qcow2' 'of a kind that this program does not know'
cp a.qcow2 b.qcow2
poke b.qcow2 $((dir + 11)) '\002'
[ "$(bitmaps b.qcow2 '.[0].state')" = inconsistent ] || fail "a table of the wrong size: $(bitmaps b.qcow2)"
cp a.qcow2 b.qcow2
poke b.qcow2 $((dir + 18)) '\377\377'
expect_fail 'cowimg bitmap -f qcow2 b.qcow2' 'entry 1 of the bitmap directory is damaged'
status=0
cowimg check -q -f qcow2 b.qcow2 || status=$?
[ $status = 2 ] || fail "check of a damaged directory: status $status"
cowimg check -q -f qcow2 a.qcow2 || fail "check"

subtest what either side writes is recorded
for create in 'cowimg create -q -f qcow2' 'qemu-img create -q -f qcow2' 'cowimg create -q -f qcow2 -o cluster_size=4K,extended_l2=off'; do
	rm -f w.qcow2
	$create w.qcow2 20M
	cowimg bitmap -q -f qcow2 -a ours -g 512 w.qcow2
	qemu-img bitmap --add -g 4096 w.qcow2 theirs
	cowimg bitmap -q -f qcow2 -a off -n w.qcow2
	qemu-io -f qcow2 -c 'write 1M 10000' w.qcow2 >/dev/null
	head -c 5 /dev/urandom | cowimg write -q -f qcow2 -s 3000000 w.qcow2 -
	cowimg zero -q -f qcow2 -s 5M -l 1000 w.qcow2
	cowimg discard -q -f qcow2 -s 8M -l 128K w.qcow2
	both_say w.qcow2 ours '1048576+10240 2999808+512 5242880+1024 8388608+131072'
	both_say w.qcow2 theirs '1048576+12288 2998272+4096 5242880+4096 8388608+131072'
	[ "$(changed w.qcow2 off)" = '' ] || fail "the disabled bitmap has $(changed w.qcow2 off)"
	both_clean w.qcow2
done
cowimg read -q -f qcow2 w.qcow2 - >/dev/null
[ "$(bitmaps w.qcow2 '[.[].state] | unique | join(" ")')" = good ] || fail "$(bitmaps w.qcow2)"

subtest changed by either side
cowimg bitmap -q -f qcow2 -d ours w.qcow2
cowimg bitmap -q -f qcow2 -e off w.qcow2
cowimg write -q -f qcow2 --pattern 7 -s 12M -l 100 w.qcow2
both_say w.qcow2 off '12582912+65536'
both_say w.qcow2 ours '1048576+10240 2999808+512 5242880+1024 8388608+131072'
cowimg bitmap -q -f qcow2 -m off -s ours w.qcow2
both_say w.qcow2 off '1048576+65536 2949120+65536 5242880+65536 8388608+131072 12582912+65536'
qemu-img bitmap --merge off w.qcow2 ours
both_say w.qcow2 ours '1048576+65536 2949120+65536 5242880+65536 8388608+131072 12582912+65536'
cowimg bitmap -q -f qcow2 -c ours w.qcow2
both_say w.qcow2 ours ''
cowimg bitmap -q -f qcow2 -a other w.qcow2
cowimg bitmap -q -f qcow2 -m other -s one -S a.qcow2 w.qcow2
both_say w.qcow2 other '0+196608 20905984+65536'
both_clean w.qcow2
cowimg bitmap -q -f qcow2 -r theirs w.qcow2
qemu-img bitmap --remove w.qcow2 off
[ "$(bitmaps w.qcow2 '[.[].name] | join(" ")')" = 'ours other' ] || fail "$(bitmaps w.qcow2)"
for name in ours other; do
	cowimg bitmap -q -f qcow2 -r $name w.qcow2
done
[ "$(bitmaps w.qcow2)" = '[]' ] || fail "$(bitmaps w.qcow2)"
qemu-img info w.qcow2 >out 2>&1
! grep -qi bitmap out || fail "QEMU still sees some: $(cat out)"
both_clean w.qcow2
cowimg bitmap -q -f qcow2 -a again w.qcow2
both_say w.qcow2 again ''

subtest a base whose name is in the way
qemu-img create -q -f raw base.raw 10M
for create in cowimg qemu-img; do
	rm -f o.qcow2
	$create create -q -f qcow2 -b base.raw -F raw o.qcow2
	cowimg bitmap -q -f qcow2 -a bits o.qcow2
	cowimg write -q -f qcow2 --pattern 7 -l 10 o.qcow2
	both_say o.qcow2 bits '0+65536'
	[ "$(qemu-img info --output=json o.qcow2 | jq -r '."backing-filename"')" = base.raw ] || fail "the base is lost"
	both_clean o.qcow2
done
cowimg commit -q -f qcow2 o.qcow2
both_say o.qcow2 bits '0+65536'

subtest other sizes, snapshots, repairs
qemu-img create -q -f qcow2 s.qcow2 5000K
cowimg bitmap -q -f qcow2 -a bits -g 512 s.qcow2
cowimg bitmap -q -f qcow2 -a off -n s.qcow2
cowimg write -q -f qcow2 --pattern 7 -s 5119000 -l 1000 s.qcow2
cowimg write -q -f qcow2 --pattern 7 -l 1000 s.qcow2
cowimg resize -q -f qcow2 s.qcow2 3G
both_say s.qcow2 bits '0+1024 5118976+1024'
cowimg write -q -f qcow2 --pattern 7 -s 2G -l 1 s.qcow2
both_say s.qcow2 bits '0+1024 5118976+1024 2147483648+512'
cowimg snapshot -q -f qcow2 -c one s.qcow2
cowimg check -q -f qcow2 -r all s.qcow2
both_say s.qcow2 bits '0+1024 5118976+1024 2147483648+512'
cowimg snapshot -q -f qcow2 -d one s.qcow2
cowimg resize -q -f qcow2 --shrink s.qcow2 1M
cowimg resize -q -f qcow2 s.qcow2 5000K
both_say s.qcow2 bits '0+1024'
[ "$(bitmaps s.qcow2 '[.[].state] | join(" ")')" = 'good good' ] || fail "$(bitmaps s.qcow2)"
both_clean s.qcow2

cowimg resize -q -f qcow2 s.qcow2 4T 2>out
[ "$(bitmaps s.qcow2 '[.[].state] | join(" ")')" = 'inconsistent good' ] || fail "$(bitmaps s.qcow2)"
cowimg resize -q -f qcow2 --shrink s.qcow2 5M
cowimg bitmap -q -f qcow2 -r bits s.qcow2
cowimg bitmap -q -f qcow2 -a bits s.qcow2
cp --sparse=always base.raw longer.raw
qemu-img create -q -f qcow2 -b longer.raw -F raw g.qcow2 1M
cowimg bitmap -q -f qcow2 -a bits g.qcow2
cowimg write -q -f qcow2 --pattern 7 -l 10 g.qcow2
cowimg resize -q -f qcow2 g.qcow2 12M
both_say g.qcow2 bits '0+65536'
both_clean g.qcow2

subtest it takes no more room with each session
for i in 1 2 3 4 5 6 7 8 9; do
	cowimg write -q -f qcow2 --pattern $i -l 1000 s.qcow2
	[ $i != 3 ] || size=$(stat -c %s s.qcow2)
done
[ "$(stat -c %s s.qcow2)" = "$size" ] || fail "$size bytes became $(stat -c %s s.qcow2)"

subtest what is stale stays so, and as it is
qemu-img create -q -f qcow2 i.qcow2 5M
cowimg bitmap -q -f qcow2 -a bits i.qcow2
cowimg write -q -f qcow2 --pattern 7 -l 10 i.qcow2
poke i.qcow2 $(($(directory i.qcow2) + 15)) '\003'
for change in 'write --pattern 7 -s 2M -l 10' 'resize 6M'; do
	set -- $change
	verb=$1
	shift
	[ $verb != resize ] || set -- i.qcow2 6M
	[ $verb = resize ] || set -- "$@" i.qcow2
	cowimg $verb -q -f qcow2 "$@"
	[ "$(bitmaps i.qcow2 '.[0].state')" = inconsistent ] || fail "$(bitmaps i.qcow2)"
done
for change in '-c bits' '-e bits' '-m bits -s bits'; do
	expect_fail "cowimg bitmap -f qcow2 $change i.qcow2" 'was not stored by who used it last'
done
cowimg bitmap -q -f qcow2 -r bits i.qcow2
both_clean i.qcow2

subtest those that forbid to write
for at in 15:012 16:002 17:100; do
	qemu-img create -q -f qcow2 u.qcow2 5M
	qemu-img bitmap --add u.qcow2 odd
	poke u.qcow2 $(($(directory u.qcow2) + ${at%:*})) "\\${at#*:}"
	expect_fail 'cowimg write -f qcow2 --pattern 7 -l 10 u.qcow2' "'odd' is to know of every change.*remove it before writing"
	cowimg bitmap -q -f qcow2 -r odd u.qcow2
	cowimg write -q -f qcow2 --pattern 7 -l 10 u.qcow2
	both_clean u.qcow2
done

subtest refused in a sentence
cowimg create -q -f qcow2 r.qcow2 1M
cowimg create -q -f qcow2 -o compat=0.10 v2.qcow2 1M
cowimg bitmap -q -f qcow2 -a x r.qcow2
long=$(printf '%01100d' 0)
while IFS='|' read -r options words; do
	expect_fail "cowimg bitmap -f qcow2 $options" "$words"
done <<-END
	-a x r.qcow2|has a bitmap 'x' already
	-a y -g 1000 r.qcow2|power of two between 512 and 2G
	-a y -g 256 r.qcow2|power of two between 512 and 2G
	-a y -g 4G r.qcow2|power of two between 512 and 2G
	-a $long r.qcow2|has 1 to 1023 bytes
	-r y r.qcow2|has no bitmap 'y'
	-c y r.qcow2|has no bitmap 'y'
	-m x -s y r.qcow2|has no bitmap 'y'
	-a x v2.qcow2|version 2 have no bitmaps
END
cowimg create -q -f qcow2 big.qcow2 4T
expect_fail 'cowimg bitmap -f qcow2 -a x -g 512 big.qcow2' 'take a larger granularity'
expect_usage 'cowimg bitmap -f qcow2 -n r.qcow2'
expect_usage 'cowimg bitmap -f qcow2 -m x r.qcow2'
expect_usage 'cowimg bitmap -f qcow2 -l -a x r.qcow2'
both_say r.qcow2 x ''
both_clean r.qcow2
