#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 600
#
# cow-migration(7): its examples do, word for word, what they are said to; each verb
# of qemu-img has its row; and the commands of the tables, and their options, exist.
. tests/lib/test.sh
[ -e "$BUILD/lib/cow/cow-qcow2.so" ] || skip "built without zlib and zstd"
require_cmd qemu-img qemu-io
page=$PWD/man/cow-migration.7

subtest the rows
sed -n '/^\.Sh FROM/,/^\.Sh EXAMPLES/s/^\.It \(.* Ta .*\)/\1/p' "$page" | grep -v '^Sy ' >"$TMP/rows"
[ "$(wc -l <"$TMP/rows")" -ge 30 ] || fail 'the rows were not found'
qemu-img --help | sed -n 's/^  \([a-z]*\) \[.*/\1/p' | sort -u >"$TMP/verbs"
[ "$(wc -l <"$TMP/verbs")" -ge 14 ] || fail "the verbs of qemu-img were not found: $(cat "$TMP/verbs")"
while read -r verb; do
	grep -q "^$verb .* Ta cowimg $verb " "$TMP/rows" || fail "qemu-img $verb has no row"
done <"$TMP/verbs"
sed 's/.* Ta //;s/, /\n/g' "$TMP/rows" | while read -r command verb rest; do
	case $command in
	cowimg) "$command" "$verb" --help >"$TMP/help" || fail "there is no $command $verb" ;;
	cowctl)
		"$command" --help | grep -Eq "^(Usage:)? +cowctl ([a-z|-]*\|)?$verb([ |]|\$)" || fail "there is no $command $verb"
		continue
		;;
	cowd)	# not built everywhere
		grep -q -- "^\.It Fl p , " man/cowd.8 || fail 'cowd -p'
		continue
		;;
	*) fail "what is '$command'?" ;;
	esac
	for word in $rest; do
		case $word in
		--*) grep -q -- " ${word%%=*}[= ]" "$TMP/help" || fail "cowimg $verb $word" ;;
		-?) grep -q -- "^  $word, " "$TMP/help" || fail "cowimg $verb $word" ;;
		esac
	done
done || exit 1

cd "$TMP"
seq 1 900000 | head -c 5000000 >golden.img
truncate -s 8M golden.img
cp golden.img newer.img
seq 3 90000 | dd of=newer.img bs=4K seek=300 conv=notrunc status=none
qemu-img create -q -f qcow2 -o compat=0.10 vm.qcow2 8M
cowimg write -q -f qcow2 vm.qcow2 golden.img
cowimg write -q -f qcow2 -s 100000 -l 70000 --pattern 9 vm.qcow2
qemu-img create -q -f qcow2 other.qcow2 16M
qemu-img create -q -f qcow -b golden.img -F raw old.qcow 8M
cowimg write -q -f qcow -o backing_format=raw -s 5000 -l 9000 --pattern 8 old.qcow

# In the order of the page: one goes on with what another left.
awk '/^\.\\" run$/ { run = 1; next }
	run && /^\.Bd/ { n++; on = 1; next }
	/^\.Ed/ { on = run = 0 }
	on { print > ("example" n) }' "$page"
[ -e example9 ] || fail 'the examples were not found'
n=1
while [ -e example$n ]; do
	subtest "$(head -n 1 example$n)"
	sh -e "./example$n" >said 2>&1 || fail "status $?: $(cat said)"
	n=$((n + 1))
done
[ "$(stat -c %s p1.raw)" = 2097152 ] || fail 'the partition has another size'
cowimg dd -q -f qcow2 if=other.qcow2 of=p2.raw bs=1M skip=1 count=2
cmp p1.raw p2.raw || fail 'the partition is another in the other image'
qemu-img check -q clone.qcow2 || fail 'QEMU finds something in the clone'
qemu-img compare -q -f qcow2 -F raw clone.qcow2 before.raw || fail 'the clone reads otherwise to QEMU'
cowimg read -q -f qcow2 -s 1M -l 64K --pattern 0x55 clone.qcow2
cowimg read -q -f qcow2 -s 2M -l 64K --pattern 0x66 clone.qcow2
head -c 8M tap.raw | cmp - golden.img || fail "what blktap's names made reads otherwise"
tail -n 1 said | grep -q '3145728 *4096 *data' || fail "the difference is: $(cat said)"
