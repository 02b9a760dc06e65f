#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# qcow2 images with an external data file: created, read, written, resized,
# checked, both ways against QEMU; names that lead elsewhere; and random
# histories in which both programs take turns.
# TIMEOUT: 600
. tests/lib/test.sh
. tests/lib/qcow2.sh

cd "$TMP"
seq 1 900000 | head -c 3000000 >one.raw
truncate -s 4M one.raw

layer() {	# IMAGE MEMBER
	cowimg info -f qcow2 --output=json "$1" | jq -r ".layers[0]$2"
}

subtest created, written and read
for raw in off on; do
	cowimg create -q -f qcow2 --overwrite -o data_file=d.raw,data_file_raw=$raw d.qcow2 4M
	[ "$(stat -c %s d.raw)" = 4194304 ] || fail "the data file has $(stat -c %s d.raw) bytes"
	[ "$(qemu-img info --output=json d.qcow2 | jq -r '."format-specific".data."data-file"')" = d.raw ] ||
		fail "QEMU sees no data file"
	[ "$(layer d.qcow2 .format_specific.data_file_raw)" = $([ $raw = on ] && echo true || echo false) ] ||
		fail "data_file_raw=$raw is not shown"
	[ "$(layer d.qcow2 .data_file)" = ./d.raw ] || fail "the data file is $(layer d.qcow2 .data_file)"
	cowimg write -q -f qcow2 -o data_file=d.raw d.qcow2 one.raw
	cmp d.raw one.raw || fail "the data is not in its place"
	[ "$(stat -c %b d.qcow2)" -lt 1500 ] || fail "the data is in the image"
	both_clean d.qcow2
	both_read d.qcow2 one.raw
	cowimg map -f qcow2 --output=json d.qcow2 |
		jq -e '.map[0] | .file == "d.raw" and .file_index == 1 and .offset == 0 and .kind == "data"' >/dev/null ||
		fail "the map says otherwise"
	cowimg zero -q -f qcow2 -o data_file=d.raw -s 100000 -l 1000000 d.qcow2
	cowimg discard -q -f qcow2 -o data_file=d.raw -s 2M -l 1M d.qcow2
	cp one.raw want.raw
	dd if=/dev/zero of=want.raw oflag=seek_bytes seek=100000 bs=1000000 count=1 conv=notrunc status=none
	dd if=/dev/zero of=want.raw bs=1M seek=2 count=1 conv=notrunc status=none
	both_read d.qcow2 want.raw
	[ $raw = off ] || cmp d.raw want.raw || fail "the raw file does not read as the disk"
done

subtest resized
cowimg resize -q -f qcow2 -o data_file=d.raw --shrink d.qcow2 1000000
head -c 1000448 want.raw >head.raw
both_clean d.qcow2
both_read d.qcow2 head.raw
cmp d.raw head.raw || fail "the data file has another length"
cowimg resize -q -f qcow2 -o data_file=d.raw d.qcow2 700M
[ "$(stat -c %s d.raw)" = 734003200 ] || fail "the data file did not grow"
cowimg write -q -f qcow2 -o data_file=d.raw -s 690M d.qcow2 one.raw
both_clean d.qcow2
cowimg read -q -f qcow2 -s 690M -l 4M d.qcow2 - | cmp - one.raw || fail "the far end"

subtest over a base, and given another one
cowimg create -q -f qcow2 -o data_file=o.raw,cluster_size=4K -b one.raw -F raw o.qcow2
cowimg write -q -f qcow2 -o data_file=o.raw -s 5000 -l 3000 --pattern 9 o.qcow2
cp one.raw want.raw
cowimg write -q -f raw -s 5000 -l 3000 --pattern 9 want.raw
both_clean o.qcow2
both_read o.qcow2 want.raw
cp one.raw other.raw
cowimg rebase -q -u -f qcow2 -o data_file=o.raw -b other.raw -F raw o.qcow2
both_read o.qcow2 want.raw
cowimg create -q -f qcow2 -b o.qcow2 -F qcow2 top.qcow2
both_read top.qcow2 want.raw

subtest refused in a sentence
rm -f x.raw
while IFS='|' read -r options words; do
	expect_fail "cowimg create -f qcow2 -o $options x.qcow2 4M" "$words"
	[ ! -e x.qcow2 ] && [ ! -e x.raw ] || fail "$options: something was left"
done <<-END
	data_file_raw=on|data_file_raw needs a data_file
	data_file=x.raw,compat=0.10|compat=0.10 has neither
	data_file=/tmp/x.raw|is no other file in or below its folder
	data_file=../x.raw|is no other file in or below its folder
	data_file=a/../../x.raw|is no other file in or below its folder
	data_file=x.qcow2|is no other file in or below its folder
	data_file=one.raw|File exists
	data_file=nowhere/x.raw|No such file
END
expect_fail 'cowimg create -f qcow2 -o data_file=x.raw d.qcow2 4M' 'd.qcow2: File exists'
[ ! -e x.raw ] || fail "a data file was left"
expect_fail 'cowimg create -f qcow2 -o data_file=x.raw,data_file_raw=on -b one.raw -F raw x.qcow2' \
	'data_file_raw does not go with a base'
expect_fail 'cowimg snapshot -f qcow2 -o data_file=d.raw -c x d.qcow2' 'has an external data file, and so no snapshots'
expect_fail 'cowimg commit -f qcow2 -o data_file=o.raw o.qcow2' 'has an external data file, and cannot be emptied'
both_read o.qcow2 want.raw
for allowed in '' '-o data_file=one.raw'; do
	expect_fail "cowimg write -q -f qcow2 $allowed -l 512 --pattern 1 d.qcow2" "d.qcow2: its data .*file.*'d.raw'"
	expect_fail "cowimg resize -q -f qcow2 $allowed d.qcow2 800M" "d.qcow2: its data .*file.*'d.raw'"
	expect_fail "cowimg check -q -f qcow2 $allowed --repair d.qcow2" "d.qcow2: its data .*file.*'d.raw'"
done
expect_fail 'cowimg write -q -f qcow2 -o data_file=d.raw -l 512 --pattern 1 top.qcow2' 'top.qcow2: has no data file'
both_clean d.qcow2
qemu-io -f raw -c 'sleep 3000' d.raw >/dev/null &
at_exit "kill $! 2>/dev/null"
wait_locked d.raw
expect_fail 'cowimg read -f qcow2 d.qcow2' 'd.raw: in use by another process'
kill $!
wait $! || :
mv d.raw elsewhere.raw
expect_fail 'cowimg info -f qcow2 d.qcow2' "its data file 'd.raw' does not exist"
mkdir dir
mv elsewhere.raw dir/d.raw
ln -s dir/d.raw d.raw
cowimg info -f qcow2 d.qcow2 >/dev/null || fail "a link that stays below is refused"
rm d.raw
cowimg read -q -f qcow2 --backing-dir dir -s 690M -l 4M d.qcow2 - | cmp - one.raw ||
	fail "not found in a folder that is allowed"

subtest names that lead elsewhere
mkdir inside
echo secret >secret
for name in /etc/passwd "$TMP/secret" ../secret ../../../../etc/passwd ./../secret inside/../../secret \
	    json:{} nbd://localhost/x fd:0 /dev/fd/0 /proc/self/fd/0 file:/etc/passwd '' . /; do
	rm -f inside/e.qcow2 inside/e.raw
	cowimg create -q -f qcow2 -o data_file=e.raw inside/e.qcow2 1M
	python3 - "$name" <<-'END'
		import struct, sys
		name = sys.argv[1].encode()
		f = open("inside/e.qcow2", "r+b")
		head = f.read(4096)
		at = head.index(struct.pack(">II", 0x44415441, 5))
		rest = head[at + 16:2048]
		new = struct.pack(">II", 0x44415441, len(name)) + name + bytes(-len(name) % 8)
		f.seek(at)
		f.write(new + rest)
	END
	if command -v strace >/dev/null && ! nm -D "$BUILD/lib/libcow.so" | grep -q __asan_init; then
		strace -f -o trace -e trace=open,openat,openat2 cowimg read -q -f qcow2 inside/e.qcow2 - >/dev/null 2>&1 &&
			fail "'$name' was opened"
		! grep -Ev 'ENOENT|EXDEV|ELOOP|EINVAL' trace | grep -E '/etc/passwd|secret|/proc/self/fd/0' ||
			fail "'$name': something outside was opened"
	fi
	expect_fail 'cowimg read -q -f qcow2 inside/e.qcow2 -' 'inside/e.qcow2'
done
ln -s ../secret inside/link
rm -f inside/e.qcow2 inside/e.raw
cowimg create -q -f qcow2 -o data_file=e.raw inside/e.qcow2 1M
rm inside/e.raw
ln -s ../secret inside/e.raw
expect_fail 'cowimg read -q -f qcow2 inside/e.qcow2 -' 'lies outside the image.s folder'
rm inside/e.raw
ln inside/e.qcow2 inside/e.raw
expect_fail 'cowimg read -q -f qcow2 inside/e.qcow2 -' 'is in the chain already'

for who in cowimg qemu-img; do
	history $who 5000192 0 cluster_size=65536,data_file_raw=on,data_file=data.raw snapshots
	history $who 3145728 1000000 cluster_size=4096,data_file=data.raw snapshots
	history $who 6291456 2500000 cluster_size=16384,extended_l2=on,data_file=data.raw snapshots
	history $who 4194304 0 cluster_size=16384,extended_l2=on,data_file_raw=on,data_file=data.raw snapshots
done
