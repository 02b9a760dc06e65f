#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 300
#
# Persistent bitmaps of qcow2: what is listed of those that QEMU makes and fills,
# and which ranges they have.
. tests/lib/test.sh
[ -e "$BUILD/lib/cow/cow-qcow2.so" ] || skip "built without zlib and zstd"
require_cmd qemu-img qemu-io jq
cd "$TMP"

bitmaps() {	# IMAGE [JQ]: what info says of them
	cowimg info -f qcow2 --output=json "$1" | jq -cr ".layers[0].format_specific.bitmaps | ${2:-.}"
}
changed() {	# IMAGE BITMAP: "start+length ..."
	cowimg bitmap -f qcow2 --output=json --dump "$2" "$1" | jq -r '[.changed[] | "\(.start)+\(.length)"] | join(" ")'
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
