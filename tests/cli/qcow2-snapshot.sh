#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Snapshots inside qcow2 images: ours for QEMU and QEMU's for us, with other
# sizes, bitmaps, states of machines, full disks, and what is refused; and random
# histories in which both programs take turns.
# TIMEOUT: 600
. tests/lib/test.sh
. tests/lib/qcow2.sh
turns=6

cd "$TMP"
seq 1 900000 | head -c 3000000 >one.raw
seq 7 900000 | head -c 3000000 >two.raw
truncate -s 4M one.raw two.raw

part_skipped() {
	echo "SKIP: $test_name: $*"
	echo 'COUNT: 0 0 1'
}
snap() {
	cowimg snapshot -q -f qcow2 "$@"
}
both_list() {	# IMAGE NAMES
	[ "$(qemu-img info -U --output=json "$1" | jq -r '[.snapshots[]?.name] | join(" ")')" = "$2" ] ||
		fail "QEMU lists other snapshots of $1"
	[ "$(snap --output=json "$1" | jq -r '[.snapshots[].name] | join(" ")')" = "$2" ] ||
		fail "cowimg lists other snapshots of $1"
}
blocks() {	# IMAGE
	stat -c %b "$1"
}

subtest made by one, listed, applied and deleted by the other
for makes in snap 'qemu-img snapshot'; do
	uses=snap
	[ "$makes" != snap ] || uses='qemu-img snapshot'
	rm -f a.qcow2
	cowimg create -q -f qcow2 a.qcow2 4M
	cowimg write -q -f qcow2 a.qcow2 one.raw
	$makes -c first a.qcow2
	both_clean a.qcow2
	cowimg write -q -f qcow2 a.qcow2 two.raw
	$makes -c 'second one' a.qcow2
	both_clean a.qcow2
	both_list a.qcow2 'first second one'
	both_read a.qcow2 two.raw
	$uses -a first a.qcow2
	both_clean a.qcow2
	both_read a.qcow2 one.raw
	$uses -a 2 a.qcow2
	both_read a.qcow2 two.raw
	$uses -d first a.qcow2
	both_clean a.qcow2
	both_list a.qcow2 'second one'
	$uses -d 'second one' a.qcow2
	both_clean a.qcow2
	both_list a.qcow2 ''
	both_read a.qcow2 two.raw
done

subtest the list
cowimg create -q -f qcow2 l.qcow2 4M
[ -z "$(cowimg snapshot -f qcow2 l.qcow2)" ] || fail "something is listed"
before=$(date +%s)
[ "$(cowimg snapshot -f qcow2 -c 'a b' l.qcow2)" = 'Snapshot made.' ] || fail "no word of it"
cowimg snapshot -f qcow2 -l l.qcow2 >list
grep -Eq '^1  .* 4194304 +0  a b$' list || fail "the list says: $(cat list)"
[ "$(snap --output=json l.qcow2 | jq -c '.snapshots[0] | del(.date_seconds)')" = \
	'{"id":"1","name":"a b","virtual_size":4194304,"vm_state_size":0}' ] || fail "the JSON says otherwise"
made=$(snap --output=json l.qcow2 | jq '.snapshots[0].date_seconds')
[ "$made" -ge "$before" ] && [ "$made" -le "$(date +%s)" ] || fail "made at $made"
qemu-img snapshot -c "$(printf 'two\nlines')" l.qcow2
[ "$(cowimg snapshot -f qcow2 l.qcow2 | wc -l)" = 3 ] || fail "a name forged a line"

subtest refused in a sentence
while IFS='|' read -r args words; do
	cp l.qcow2 before.qcow2
	expect_fail "cowimg snapshot -f qcow2 $args l.qcow2" "$words"
	cmp l.qcow2 before.qcow2 || fail "$args: changed the image"
done <<-END
	-a nothing|has no snapshot 'nothing'
	-d 7|has no snapshot '7'
	-d ''|has no snapshot ''
	-c 'a b'|has a snapshot 'a b' already
	-c 1|has a snapshot '1' already
	-c ''|has 1 to 255 bytes
	-c $(head -c 256 /dev/zero | tr '\0' x)|has 1 to 255 bytes
	-c x -d 1|exclude each other
	-l -c x|exclude each other
	-c x --output=json|is for the list
END
expect_fail 'cowimg snapshot l.qcow2' 'formats are never guessed'
expect_fail 'cowimg snapshot -f raw -c x one.raw' 'format raw has no snapshots'
qemu-io -f qcow2 -c 'sleep 3000' l.qcow2 >/dev/null &
at_exit "kill $! 2>/dev/null"
wait_locked l.qcow2
expect_fail 'cowimg snapshot -f qcow2 -c x l.qcow2' 'in use by another process'
kill $!
wait $! || :
cowimg create -q -f qcow2 -o refcount_bits=1 n.qcow2 4M
cowimg write -q -f qcow2 n.qcow2 one.raw
expect_fail 'cowimg snapshot -f qcow2 -c x n.qcow2' 'refcounts are too narrow'
both_clean n.qcow2
cowimg create -q -f qcow2 --overwrite -o refcount_bits=2 n.qcow2 4M
cowimg write -q -f qcow2 n.qcow2 one.raw
snap -c x n.qcow2 && snap -c y n.qcow2
cowimg write -q -f qcow2 -l 300000 --pattern 7 n.qcow2	# not too narrow for the first clusters
expect_fail 'cowimg snapshot -f qcow2 -c z n.qcow2' 'refcounts are too narrow'
both_clean n.qcow2
both_list n.qcow2 'x y'
cowimg read -q -f qcow2 -o snapshot=x n.qcow2 - | cmp - one.raw || fail "a snapshot changed"

subtest space comes back
cowimg create -q -f qcow2 s.qcow2 4M
snap -c empty s.qcow2
empty=$(blocks s.qcow2)
cowimg write -q -f qcow2 s.qcow2 one.raw
snap -a empty s.qcow2
[ "$(blocks s.qcow2)" -lt $((empty + 512)) ] || fail "apply kept the space: $(blocks s.qcow2) after $empty"
cowimg write -q -f qcow2 s.qcow2 one.raw
snap -c full s.qcow2
cowimg discard -q -f qcow2 -l 4M s.qcow2
[ "$(blocks s.qcow2)" -gt 4000 ] || fail "the snapshot lost its data"
snap -d full s.qcow2
[ "$(blocks s.qcow2)" -lt $((empty + 512)) ] || fail "delete kept the space: $(blocks s.qcow2) after $empty"
both_clean s.qcow2

subtest another size than the disk has
cowimg create -q -f qcow2 r.qcow2 4M
cowimg write -q -f qcow2 r.qcow2 one.raw
snap -c small r.qcow2
cowimg resize -q -f qcow2 r.qcow2 900M
cowimg write -q -f qcow2 -s 800M r.qcow2 two.raw
snap -c large r.qcow2
both_clean r.qcow2
for tool in snap 'qemu-img snapshot'; do
	$tool -a small r.qcow2
	both_clean r.qcow2
	both_read r.qcow2 one.raw
	$tool -a large r.qcow2
	both_clean r.qcow2
	[ "$(qemu-img info --output=json r.qcow2 | jq '."virtual-size"')" = 943718400 ] || fail "size"
	cowimg read -q -f qcow2 -s 800M -l 4M r.qcow2 - | cmp - two.raw || fail "the far end"
done
cowimg resize -q -f qcow2 --shrink r.qcow2 1000000
both_clean r.qcow2
head -c 1000448 one.raw >head.raw
both_read r.qcow2 head.raw
cowimg resize -q -f qcow2 r.qcow2 4M
truncate -s 4M head.raw
both_read r.qcow2 head.raw
snap -a small r.qcow2
both_read r.qcow2 one.raw
both_clean r.qcow2
cowimg create -q -f qcow2 -o compat=0.10 v2.qcow2 1M
snap -c x v2.qcow2
expect_fail 'cowimg resize -f qcow2 v2.qcow2 2M' 'do not record their size in version 2'

subtest shrinking
for options in cluster_size=64K cluster_size=4K extended_l2=on,cluster_size=16K; do
	cowimg create -q -f qcow2 --overwrite -o $options -b two.raw -F raw k.qcow2
	cowimg write -q -f qcow2 k.qcow2 one.raw
	cowimg resize -q -f qcow2 --shrink k.qcow2 1234432
	both_clean k.qcow2
	head -c 1234432 one.raw >head.raw
	both_read k.qcow2 head.raw
	[ "$(blocks k.qcow2)" -lt 3000 ] || fail "the space is not given back"
	cowimg resize -q -f qcow2 k.qcow2 3M
	truncate -s 3M head.raw
	both_clean k.qcow2
	both_read k.qcow2 head.raw
done
for type in zlib zstd; do
	qemu-img convert -q -c -O qcow2 -o compression_type=$type -f raw one.raw k.qcow2
	cowimg resize -q -f qcow2 --shrink k.qcow2 1000448
	qemu-img resize -q k.qcow2 4M
	head -c 1000448 one.raw >head.raw
	truncate -s 4M head.raw
	both_clean k.qcow2
	both_read k.qcow2 head.raw
done
expect_fail 'cowimg resize -f qcow2 k.qcow2 1M' 'give --shrink'

subtest an overlay with snapshots is committed
cowimg create -q -f qcow2 o.qcow2 4M
cowimg create -q -f qcow2 -b o.qcow2 -F qcow2 top.qcow2
cowimg write -q -f qcow2 top.qcow2 one.raw
snap -c kept top.qcow2
cowimg write -q -f qcow2 top.qcow2 two.raw
expect_fail 'cowimg commit -f qcow2 top.qcow2' 'top.qcow2: has snapshots.*--force'
cowimg commit -q -f qcow2 --force top.qcow2
both_clean top.qcow2
both_read top.qcow2 two.raw
both_read o.qcow2 two.raw
cowimg read -q -f qcow2 -o snapshot=kept top.qcow2 - | cmp - one.raw || fail "the snapshot changed"

subtest the state of a machine
# What QEMU keeps there lies behind the end of the disk: a disk that is cut short has such a thing.
cowimg create -q -f qcow2 vm.qcow2 1200M
cowimg write -q -f qcow2 -s 1100M vm.qcow2 two.raw
cowimg write -q -f qcow2 vm.qcow2 one.raw
snap -c state vm.qcow2
at=$(python3 -c '
import struct
f = open("vm.qcow2", "r+b")
f.seek(64)
at = struct.unpack(">Q", f.read(8))[0]
f.seek(at + 32)
f.write(struct.pack(">II", 4 << 20, 16))
f.write(struct.pack(">QQ", 4 << 20, 4 << 20))
print(at)')
[ "$at" -gt 0 ] || fail "no table"
both_clean vm.qcow2
[ "$(snap --output=json vm.qcow2 | jq '.snapshots[0].vm_state_size')" = 4194304 ] || fail "its size"
snap -a state vm.qcow2
both_clean vm.qcow2
both_read vm.qcow2 one.raw
cowimg read -q -f qcow2 -o snapshot=state vm.qcow2 - | cmp - one.raw || fail "the snapshot's disk"
full=$(blocks vm.qcow2)
snap -d state vm.qcow2
[ "$(blocks vm.qcow2)" -lt $((full - 4000)) ] || fail "its space is kept"
both_clean vm.qcow2
both_read vm.qcow2 one.raw

subtest bitmaps
cowimg create -q -f qcow2 b.qcow2 4M
cowimg write -q -f qcow2 b.qcow2 one.raw
qemu-img bitmap --add b.qcow2 bits
snap -c x b.qcow2
snap -c y b.qcow2
snap -d y b.qcow2
[ "$(cowimg info -f qcow2 --output=json b.qcow2 | jq '.layers[0].format_specific.bitmaps | length')" = 1 ] ||
	fail "the bitmap is not valid any more, and nothing changed"
qemu-img info --output=json b.qcow2 | grep -q '"name": "bits"' || fail "QEMU does not see the bitmap"
both_clean b.qcow2
expect_fail 'cowimg snapshot -f qcow2 -a x b.qcow2' 'has persistent bitmaps'
qemu-img bitmap --remove b.qcow2 bits
snap -a x b.qcow2
both_clean b.qcow2

if [ "$(id -u)" = 0 ] && mkdir small && mount -t tmpfs -o size=5M none small 2>/dev/null; then
	subtest a full disk
	at_exit "umount '$TMP/small'"
	cowimg create -q -f qcow2 -o cluster_size=4K small/f.qcow2 4M
	cowimg write -q -f qcow2 small/f.qcow2 one.raw
	snap -c one small/f.qcow2
	cowimg write -q -f qcow2 -l 300000 --pattern 7 small/f.qcow2
	cowimg read -q -f qcow2 small/f.qcow2 - >now.raw
	head -c "$(df --output=avail -B1 small | tail -n 1)" /dev/zero >small/fill || :
	expect_fail 'cowimg snapshot -f qcow2 -c two small/f.qcow2' 'cannot make the snapshot .two.: No space left'
	both_clean small/f.qcow2
	both_list small/f.qcow2 one
	both_read small/f.qcow2 now.raw
	cp small/f.qcow2 before.qcow2
	expect_fail 'cowimg snapshot -f qcow2 -a one small/f.qcow2' 'No space left'
	both_clean small/f.qcow2
	both_read small/f.qcow2 now.raw
	snap -d one small/f.qcow2	# the last one needs no new table
	both_clean small/f.qcow2
	both_read small/f.qcow2 now.raw
else
	part_skipped 'cannot mount a tmpfs: a full disk is not tried'
fi

history cowimg 8388608 3000000 cluster_size=65536 snapshots
history qemu-img 3145728 1000000 cluster_size=4096,refcount_bits=64 snapshots
history cowimg 3000320 0 cluster_size=8192,refcount_bits=8,compression_type=zstd snapshots
history qemu-img 6291456 2500000 cluster_size=16384,extended_l2=on snapshots
history cowimg 4194304 1500000 compat=0.10,cluster_size=65536 snapshots
