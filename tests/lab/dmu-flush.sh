# SPDX-License-Identifier: GPL-2.0-or-later
#
# The target "userspace": when a flush asks the daemon and when not, what a power cut after
# it leaves, and what becomes of errors: of the daemon, and of the devices below.
. tests/lib/test.sh
. tests/lib/lab.sh
lab_self --module -m 3072 -t 500
. tests/lib/dmu.sh
dmu_loops 163845 81923
dmu_node granule:4096
dmu_fresh
dmu_serve
[ "$(cat "/sys/block/$(dmsetup info -c --noheadings -o blkdevname n)/queue/write_zeroes_max_bytes")" = 33554432 ] ||
	fail "zeroing does not reach the target: this shows nothing of it"

# commits COUNT COMMAND...: it makes so many commits
commits() {
	want=$(($(dmu_status epoch) + $1))
	shift
	"$@"
	[ "$(dmu_status epoch)" = $want ] || fail "$*: epoch $(dmu_status epoch), not $want"
}
put() {		# FLAGS BYTES SEEK
	dd if=/dev/urandom of=/dev/mapper/n bs="$2" seek="$3" count=1 oflag="$1" conv=notrunc,nocreat status=none
}
flush() {
	dd if=/dev/null of=/dev/mapper/n conv=fsync,notrunc status=none
}
zero() {
	blkdiscard -z -o "$1" -l "$2" /dev/mapper/n
}

subtest "a flush asks the daemon only when there is something to make durable"
commits 0 flush
put direct 4k 1
[ "$(dmu_status uncommitted)" = 1 ]
commits 1 flush
[ "$(dmu_status uncommitted)" = 0 ]
commits 0 flush
put direct 4k 1
commits 0 flush
put direct 512 100
commits 1 flush
zero 1048576 65536
commits 1 flush
zero 1048576 4096
commits 1 flush

subtest "and so does a write that is to be durable"
commits 0 put direct,dsync 4k 1
commits 1 put direct,dsync 4k 300
put direct 4k 301
commits 1 put direct,dsync 4k 301	# present, but not for ever until now
commits 0 put direct,dsync 4k 300

subtest "and after an answer that made something which is not durable yet"
dmu_leave
dmu_fresh
dmu_serve -m blocks -p 100
put direct 4k 300
[ "$(dmu_status uncommitted)" = 1 ]
commits 1 flush
put direct 4k 300
commits 0 flush

cut_off() {	# SUBTEST OPTION...
	subtest "what was flushed is there after a power cut: $1"
	shift
	dmu_leave
	dmu_fresh
	dmu_serve "$@" -C "$TMP/committed"
	dmu-model run /dev/mapper/n "$TMP/shadow" 77 1000 4
	flush
	dmu_kill
	cp "$TMP/committed" "$TMP/state"
	dmsetup message n 0 invalidate
	dmsetup remove n
	dmu_node granule:4096
	dmu_serve "$@"
	dmu-model verify /dev/mapper/n "$TMP/shadow"
}
cut_off "sections and blocks" -m mixed
cut_off "blocks that the daemon makes" -m blocks -p 100

subtest "errors of the daemon"
dmu_leave
dmu_fresh
dmu_serve -a 28
if put direct 4k 5 2>"$TMP/said"; then fail "written"; fi
grep -q 'No space left' "$TMP/said" || fail "$(cat "$TMP/said")"
dmu_leave
dmu_serve -z 5
# Not zeroing: the block layer writes zeroes itself when that fails.
if blkdiscard -o 0 -l 65536 /dev/mapper/n 2>"$TMP/said"; then fail "discarded"; fi
dmu-model verify /dev/mapper/n "$TMP/shadow"
dmu_leave
dmsetup message n 0 invalidate

subtest "answers that do not help end in an error, not in a hang"
dmu_serve -u
dmu-model verify /dev/mapper/n "$TMP/shadow"
if limited 20 dd if=/dev/zero of=/dev/mapper/n bs=4k count=1 oflag=direct 2>"$TMP/said"; then
	fail "written"
fi
grep -q 'Input/output error' "$TMP/said" || fail "$(cat "$TMP/said")"
dmu_leave

subtest "errors of the devices leave granules as they were"
dmsetup message n 0 invalidate
dmu_serve -m mixed
swap() {	# NODE LINE
	echo "$2" | dmsetup load "$1"
	dmsetup suspend "$1"
	dmsetup resume "$1"
}
over=$(dmsetup table over)
base=$(dmsetup table base)
swap over "0 ${over#0 }" # the same: it can be done
swap over "$(echo "$over" | sed 's/linear.*/error/')"
for at in 28672 36003840; do	# a section, a table of blocks
	for size in 4k 512; do
		if put direct,seek_bytes $size $at 2>"$TMP/said"; then fail "written to a broken device"; fi
		grep -q 'Input/output error' "$TMP/said" || fail "$(cat "$TMP/said")"
	done
done
if zero 8192 512 2>/dev/null; then fail "zeroed on a broken device"; fi
swap over "$over"
dmu-model verify /dev/mapper/n "$TMP/shadow"
swap base "$(echo "$base" | sed 's/linear.*/error/')"
for at in 28672 36003840; do	# a part of a granule: what the rest of it is cannot be read
	if put direct,seek_bytes 512 $at 2>"$TMP/said"; then fail "copied from a broken device"; fi
	grep -q 'Input/output error' "$TMP/said" || fail "$(cat "$TMP/said")"
done
swap base "$base"
dmsetup message n 0 invalidate
dmu-model verify /dev/mapper/n "$TMP/shadow"
dmu-model run /dev/mapper/n "$TMP/shadow" 3 300 2

subtest "a failed commit fails the flush, and writes from then on"
dmu_leave
dmu_serve -m mixed -c 5
events=$(dmsetup info -c --noheadings -o events n)
dmu-model verify /dev/mapper/n "$TMP/shadow"
zero 2097152 65536
dd if=/dev/zero of="$TMP/shadow" bs=64k count=1 seek=32 conv=notrunc status=none
if flush 2>"$TMP/said"; then fail "flushed"; fi
[ "$(dmu_status mode)" = fail ] || fail "$(dmsetup status n)"
wait_for 20 "[ \$(dmsetup info -c --noheadings -o events n) -gt $events ]"
if put direct 4k 1 2>/dev/null; then fail "written"; fi
if zero 0 4096 2>/dev/null; then fail "zeroed"; fi
if flush 2>/dev/null; then fail "flushed"; fi
dmu-model verify /dev/mapper/n "$TMP/shadow"
dmu_leave

subtest "nothing is left"
dmu_unload
