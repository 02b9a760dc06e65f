# SPDX-License-Identifier: GPL-2.0-or-later
#
# The target "userspace" and its daemons and tables come and go: without a daemon, hand-over,
# suspension, reload, resize, removal with granules that nobody was told of. No bio is lost, none gets a
# wrong answer, and the module can be unloaded.
. tests/lib/test.sh
. tests/lib/lab.sh
lab_self --module -m 2048 -t 500
. tests/lib/dmu.sh
dmu_disks 163845 81923

read_at() {	# MIB
	dd if=/dev/mapper/n bs=1M skip="$1" count=1 iflag=direct status=none
}
want_at() {
	dd if="$TMP/shadow" bs=1M skip="$1" count=1 status=none
}

subtest "what is remembered is served without a daemon, the rest waits for the next one"
dmu_node
dmu_fresh
dmu_serve
read_at 1 | cmp - "$(want_at 1 >"$TMP/want" && echo "$TMP/want")"
dmu_kill
[ "$(dmu_status daemon)" = none ] || fail "$(dmsetup status n)"
read_at 2 >"$TMP/got"
want_at 2 | cmp - "$TMP/got"
read_at 40 >"$TMP/got" &
reader=$!
wait_for 20 '[ "$(dmu_status pending)" -gt 0 ]'
dmu_serve
wait $reader
want_at 40 | cmp - "$TMP/got"
[ "$(dmu_status pending)" = 0 ] || fail "$(dmsetup status n)"

subtest "a timeout, given by the table or a message, ends the waiting"
dmu_leave
dmsetup message n 0 invalidate
dmsetup message n 0 no_daemon_timeout 1
dmsetup suspend n
dmsetup resume n
if read_at 1 >"$TMP/got" 2>"$TMP/said"; then fail "read without a daemon"; fi
grep -q 'Input/output error' "$TMP/said" || fail "$(cat "$TMP/said")"
dmsetup message n 0 no_daemon_timeout 0
dmu_line no_daemon_timeout:1 | dmsetup load n
dmsetup suspend n
dmsetup resume n
if read_at 1 >"$TMP/got" 2>"$TMP/said"; then fail "read without a daemon"; fi
dmu_serve
read_at 1 >"$TMP/got"
want_at 1 | cmp - "$TMP/got"

subtest "error_if_no_daemon does not wait"
dmu_leave
dmu_line error_if_no_daemon | dmsetup load n
dmsetup suspend n
dmsetup resume n
read_at 1 >"$TMP/got"
if read_at 40 >"$TMP/got" 2>"$TMP/said"; then fail "read without a daemon"; fi
dmu_line | dmsetup load n
dmsetup suspend n
dmsetup resume n

subtest "hand-over under load, ten times"
dmu_fresh
dmu_serve -m mixed
timeout "$(patience 400)" dmu-model run /dev/mapper/n "$TMP/shadow" 5 1000000 4 >"$TMP/said" 2>&1 &
load=$!
for i in 1 2 3 4 5 6 7 8 9 10; do
	old=$dmu_pid
	events=$(dmsetup info -c --noheadings -o events n)
	dmu-serve -k key -s "$TMP/state" -0 /dev/mapper/over -1 /dev/mapper/base -m mixed -w -S $i \
		>"$TMP/serve.new" 2>&1 &
	dmu_pid=$!
	kill "$old"
	wait "$old" || fail "$(cat "$TMP/serve.$$")"
	mv "$TMP/serve.new" "$TMP/serve.$$"
	wait_for 20 "[ \$(dmsetup info -c --noheadings -o events n) -gt $events ]"
	kill -0 $load || fail "$(cat "$TMP/said")"
	before=$(dmu_status hits)
	wait_for 60 "[ \$(dmu_status hits) -gt $before ]"
done
kill $load
wait $load || fail "$(cat "$TMP/said")"
dmu-model verify /dev/mapper/n "$TMP/shadow"
dmsetup message n 0 invalidate
dmu-model verify /dev/mapper/n "$TMP/shadow"

subtest "suspended, reloaded and resumed under load, both ways"
timeout "$(patience 400)" dmu-model run /dev/mapper/n "$TMP/shadow" 6 1000000 4 >"$TMP/said" 2>&1 &
load=$!
for i in 1 2 3 4 5 6 7 8 9 10; do
	dmu_line granule:4096 | dmsetup load n
	dmsetup suspend $([ $((i % 2)) = 0 ] || echo --noflush --nolockfs) n
	dmsetup resume n
	[ $((i % 3)) != 0 ] || { dmu_kill; dmu_serve -m mixed -r 100; }
	kill -0 $load || fail "$(cat "$TMP/said")"
done
kill $load
wait $load || fail "$(cat "$TMP/said")"
dmu-model verify /dev/mapper/n "$TMP/shadow"
[ "$(dmu_status sections)" -gt 0 ] || fail "the reload forgot all: $(dmsetup status n)"

subtest "suspended without flushing, and without a daemon"
dmu_leave
dmsetup message n 0 invalidate
read_at 1 >"$TMP/got" &
reader=$!
wait_for 20 '[ "$(dmu_status pending)" -gt 0 ]'
limited 20 dmsetup suspend --noflush --nolockfs n
[ "$(dmu_status pending)" = 0 ] || fail "$(dmsetup status n)"
dmsetup resume n
wait_for 20 '[ "$(dmu_status pending)" -gt 0 ]'
dmu_serve -m mixed
wait $reader
want_at 1 | cmp - "$TMP/got"

subtest "suspended with flushing, it waits for the daemon"
dmu_leave
dmsetup message n 0 invalidate
read_at 1 >"$TMP/got" &
reader=$!
wait_for 20 '[ "$(dmu_status pending)" -gt 0 ]'
dmsetup suspend n &
suspender=$!
sleep 0.5
kill -0 $suspender || fail "it did not wait"
dmu_serve -m mixed
wait $suspender
wait $reader
dmsetup resume n
want_at 1 | cmp - "$TMP/got"

subtest "longer and shorter"
dmu_len=140000 dmu_line | dmsetup load n
dmsetup suspend n
dmsetup resume n
[ "$(blockdev --getsz /dev/mapper/n)" = 140000 ]
read_at 60 >"$TMP/got"
want_at 60 | cmp - "$TMP/got"
dmu_line | dmsetup load n
dmsetup suspend n
dmsetup resume n
dmu-model verify /dev/mapper/n "$TMP/shadow"

subtest "two nodes of one key are one disk"
dmu_line | dmsetup create m
dmu-model verify /dev/mapper/m "$TMP/shadow"
dmu-model run /dev/mapper/m "$TMP/shadow" 8 300 2
dmu-model verify /dev/mapper/n "$TMP/shadow"
dmsetup remove m

subtest "removed: the daemon hears all of it, and then that it is over"
dmu-model run /dev/mapper/n "$TMP/shadow" 9 200 1
dmsetup remove n
wait "$dmu_pid" || fail "$(cat "$TMP/serve.$$")"
dmu_node
dmu_serve -m mixed
dmu-model verify /dev/mapper/n "$TMP/shadow"

subtest "removed without a daemon: the next one hears what was written"
dmu_leave
dmu_fresh
dmu_serve -N		# hears, and keeps nothing of it
dmu-model verify /dev/mapper/n "$TMP/shadow"
dd if=/dev/urandom of="$TMP/data" bs=64k count=1 status=none
dd if="$TMP/data" of=/dev/mapper/n bs=64k seek=5 oflag=direct status=none
dd if="$TMP/data" of="$TMP/shadow" bs=64k seek=5 conv=notrunc status=none
dmu_kill
dmsetup remove n
dmu_node
dmu_serve
wait_for 20 "[ \$(wc -c <'$TMP/state') -gt 0 ] && dmu-model verify /dev/mapper/n '$TMP/shadow'"
dmsetup message n 0 invalidate
dmu-model verify /dev/mapper/n "$TMP/shadow"
dmu_leave

subtest "the module goes although nobody came for such granules"
dmu_serve -N
dd if="$TMP/data" of=/dev/mapper/n bs=64k seek=9 oflag=direct status=none
dmu_kill
dmu_unload
