#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 600
#
# cowimg rebase without -u: an overlay reads the same over its new base, of whatever
# size and contents, whatever interrupts it; held against qemu-img rebase.
. tests/lib/test.sh
. tests/lib/qcow2.sh
cd "$TMP"
python3 - <<'END'
import random
random.seed(9)
a = bytearray(random.randbytes(3 << 20))
a[1 << 20:(1 << 20) + 300000] = bytes(300000)
b = bytearray(a)
b[5000] ^= 1
b[700000:900000] = random.randbytes(200000)
b[1 << 20:(1 << 20) + 50000] = random.randbytes(50000)
b[2000000:2100000] = bytes(100000)
open('old.raw', 'wb').write(a)
open('new.raw', 'wb').write(b)
open('short.raw', 'wb').write(b[:1500000])
open('long.raw', 'wb').write(b + random.randbytes(2 << 20))
END

over() {	# FORMAT OPTIONS: over.img over old.raw, and what it reads as
	cowimg create -q --overwrite -f "$1" ${2:+-o "$2"} -b old.raw -F raw over.img 4M
	cowimg write -q -f "$1" -s 710000 -l 100000 --pattern 7 over.img
	cowimg zero -q -f "$1" -s 1M -l 20000 over.img
	cowimg read -q -f "$1" over.img - >want.raw
}
same() {	# FORMAT BASE
	cowimg read -q -f "$1" over.img - | cmp - want.raw || fail "$1 over $2 reads otherwise"
	# What a compressed cluster of qcow occupied is a leak when it is written to.
	cowimg check -q -f "$1" over.img || [ "$1,$?" = qcow,3 ] || fail "$1 over $2: check"
	cowimg info -f "$1" --output=json over.img | jq -e ".layers[0].base_path == \"$2\"" >/dev/null ||
		fail "$1: $2 is not recorded"
	[ "$1" != qcow2 ] || both_clean over.img
	[ "$1" != qcow2 ] || both_read over.img want.raw
}

subtest another base
while read -r format options; do
	for base in new.raw short.raw long.raw; do
		over $format "$options"
		cowimg rebase -q -f $format -b $base -F raw over.img
		same $format $base
		[ "$(cowimg map -f $format --output=json over.img | jq '[.map[] | select(.depth == 0 and .kind == "data") | .length] | add')" -lt 3900000 ] ||
			fail "$format over $base: more is copied than differs"
		cowimg rebase -q -f $format -b old.raw -F raw over.img
		same $format old.raw
	done
done <<-END
	dscow
	dscow granule_size=64K
	qcow2
	qcow2 cluster_size=4K
	qcow2 extended_l2=on
	qcow
END

subtest no base
while read -r format options; do
	over $format "$options"
	cp over.img own.img
	cowimg rebase -f $format -b '' over.img >said
	grep -qx 'It needs no base any more.' said || fail "said: $(cat said)"
	mv old.raw away.raw
	cowimg read -q -f $format over.img - | cmp - want.raw || fail "$format: reads otherwise without its base"
	cowimg check -q -f $format over.img || fail "$format: check finds something"
	[ "$(cowimg info -f $format --backing-chain --output=json over.img | jq '.layers | length')" = 1 ] || fail "$format: still has a base"
	[ $format = dscow ] || qemu-img compare -q -f $format over.img want.raw || fail "$format: QEMU reads it otherwise"
	mv away.raw old.raw
	expect_fail "cowimg rebase -f $format -b '' over.img" 'over.img: has no base'

	# Its base is only forgotten, and recorded again.
	cowimg rebase -q -u -f $format -b '' own.img
	cowimg map -f $format --output=json own.img | jq -e 'all(.map[]; .depth == 0 or .kind != "data")' >/dev/null ||
		fail "$format: shows a base that was forgotten"
	cowimg rebase -q -u -f $format -b old.raw -F raw own.img
	cowimg read -q -f $format own.img - | cmp - want.raw || fail "$format: the base does not come back"
done <<-END
	dscow
	dscow granule_size=64K
	qcow2
	qcow2 compat=0.10
	qcow2 extended_l2=on
	qcow
END

subtest a base whose format was not recorded
# As images of QEMU's older versions: with and without room between the extensions and the name.
for options in '' compat=0.10; do
	rm -f over.img
	qemu-img create -q -f qcow2 ${options:+-o $options} -b old.raw -F raw over.img 4M
	python3 - <<-END
		head = open('over.img', 'rb').read(1024)
		at = head.index(bytes.fromhex('e2792aca'))
		head = bytearray(head[:at] + head[at + 16:] + bytes(16))
		head[8:16] = (int.from_bytes(head[8:16], 'big') - 16).to_bytes(8, 'big')
		open('over.img', 'r+b').write(head)
	END
	qemu-io -f qcow2 -c 'write -P 7 655360 131072' over.img >/dev/null 2>&1
	expect_fail 'cowimg read -f qcow2 over.img -' 'over.img'
	cowimg rebase -q -u -f qcow2 -b old.raw -F raw over.img
	cowimg read -q -f qcow2 over.img - >want.raw
	same qcow2 old.raw
	[ "$(qemu-img info --output=json over.img | jq -r '."backing-filename-format"')" = raw ] || fail 'QEMU sees no format'
	cowimg rebase -q -f qcow2 -b new.raw -F raw over.img
	same qcow2 new.raw
done

subtest a first base
for options in '' compat=0.10 cluster_size=4K; do
	cowimg create -q --overwrite -f qcow2 ${options:+-o $options} over.img 4M
	cowimg write -q -f qcow2 -s 710000 -l 100000 --pattern 7 over.img
	cowimg rebase -q -u -f qcow2 -b old.raw -F raw over.img
	cowimg read -q -f qcow2 over.img - >want.raw
	cmp -n 655360 want.raw old.raw || fail "$options: the base does not show"
	same qcow2 old.raw
done
expect_fail 'cowimg rebase -f qcow2 -b old.raw -F raw over.img --base-options snapshot=x' 'there is no option "snapshot"'

subtest snapshots are spared
over qcow2 ''
cowimg snapshot -q -f qcow2 -c kept over.img
for base in "''" 'new.raw -F raw'; do
	expect_fail "cowimg rebase -f qcow2 -b $base over.img" 'over.img: has snapshots'
done
expect_fail "cowimg rebase -u -f qcow2 -b '' over.img" 'over.img: has snapshots'
same qcow2 old.raw
cowimg rebase -q -f qcow2 --force -b new.raw -F raw over.img
same qcow2 new.raw

subtest "QEMU does the same"
for base in new.raw short.raw long.raw; do
	over qcow2 ''
	cp over.img q.img
	cowimg rebase -q -f qcow2 -b $base -F raw over.img
	qemu-img rebase -f qcow2 -b $base -F raw q.img
	qemu-img compare -q over.img q.img || fail "over $base QEMU makes something else"
done
over qcow2 ''
cp over.img q.img
cowimg rebase -q -f qcow2 -b '' over.img
qemu-img rebase -f qcow2 -b '' q.img
qemu-img compare -q over.img q.img || fail "without a base QEMU makes something else"

subtest down a chain, and up
over qcow2 ''
cowimg create -q -f qcow2 -b over.img -F qcow2 top.img
cowimg write -q -f qcow2 -s 2M -l 70000 --pattern 3 top.img
cowimg read -q -f qcow2 top.img - >top.raw
cowimg rebase -f qcow2 -b old.raw -F raw top.img >said
grep -qx 'Base changed.' said || fail "said: $(cat said)"
both_read top.img top.raw
# Only what over.img had is copied: the rest is from old.raw in both.
[ "$(cowimg map -f qcow2 --output=json top.img | jq '[.map[] | select(.depth == 0 and .kind == "data") | .length] | add')" -lt 500000 ] ||
	fail 'more is copied than the layer in between had'
cowimg rebase -q -f qcow2 -b over.img -F qcow2 top.img
both_read top.img top.raw
rm top.img

if ! ldd "$BUILD/bin/cowimg" | grep -q libasan && command -v strace >/dev/null; then
	subtest killed while it copies
	over qcow2 cluster_size=4K
	killed_at fdatasync "$TMP/over.img" cowimg rebase -q -f qcow2 -b new.raw -F raw "$TMP/over.img"
	cowimg check -q -f qcow2 -r leaks over.img || fail "killed, it has more than leaks"
	same qcow2 old.raw
	cowimg rebase -q -f qcow2 -b new.raw -F raw over.img
	same qcow2 new.raw
fi

subtest what is refused
over qcow2 ''
expect_fail 'cowimg rebase -f qcow2 over.img' '-b BASE is missing'
expect_fail 'cowimg rebase -f qcow2 -b new.raw over.img' 'go together'
expect_fail 'cowimg rebase -f qcow2 -b none.raw -F raw over.img' 'none.raw'
expect_fail 'cowimg rebase -f qcow2 -b over.img -F qcow2 over.img' 'over.img: in use'
expect_fail 'cowimg rebase -f raw -b new.raw -F raw old.raw' 'old.raw: has no base'
same qcow2 old.raw
