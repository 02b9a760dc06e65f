# SPDX-License-Identifier: GPL-2.0-or-later
#
# The target "userspace" keeps data: random reads, writes, zeroing, discards and flushes
# against a model, with sections, blocks that are copied, temporary places, small granules and
# large, bytes that the daemon sends, places that it makes, sections revoked at random, a cache that is too small, and a daemon that is killed and
# replaced all the time.
#
# TIMEOUT: 1200
. tests/lib/test.sh
. tests/lib/lab.sh
lab_self --module -m 3072 -t 1000 -e FAULT
. tests/lib/dmu.sh

operations=1500
[ "${FAULT:-quick}" != full ] || operations=40000

# Neither the device nor its base ends where a granule, a block or a section does.
dmu_disks 163845 81923
dmu_node granule:4096

round() {
	what=$1
	shift
	subtest "$what"
	dmu_fresh
	dmu_serve "$@"
	limited 300 dmu-model verify /dev/mapper/n "$TMP/shadow"
	limited 600 dmu-model run /dev/mapper/n "$TMP/shadow" $((seed += 17)) $operations 4
	limited 300 dmu-model verify /dev/mapper/n "$TMP/shadow"
	dmsetup message n 0 invalidate
	limited 300 dmu-model verify /dev/mapper/n "$TMP/shadow"
	dmu_leave
}
seed=1

round "sections, granules of 4 KiB"
round "sections, granules of 64 KiB" -g 7
round "blocks, copied before the first write" -m blocks
round "sections and blocks" -m mixed
round "some answers hold only once" -m mixed -t 40
round "some reads are answered by their bytes, places made by the daemon" -m blocks -d 40 -p 60
round "sections revoked at random" -m mixed -r 20

subtest "zeroing by the target itself"
dmsetup remove n
dmsetup remove over base
dmu_loops 163845 81923
dmu_node granule:4096
for mode in sections mixed; do
	dmu_fresh
	dmu_serve -m $mode
	limited 600 dmu-model run /dev/mapper/n "$TMP/shadow" 71 $operations 4
	limited 300 dmu-model verify /dev/mapper/n "$TMP/shadow"
	dmsetup message n 0 invalidate
	limited 300 dmu-model verify /dev/mapper/n "$TMP/shadow"
	dmu_leave
done

# Else the new daemon would complete the block from the base, over what was written.
subtest "a new daemon hears of a block that was written before it is to zero a part of it"
dmu_fresh
dmu_serve -m blocks -N
dd if=/dev/urandom of="$TMP/new" bs=4096 count=1 2>/dev/null
limited 60 dd if="$TMP/new" of=/dev/mapper/n bs=4096 seek=33 count=1 oflag=direct 2>/dev/null
timeout "$(patience 60)" blkdiscard -z -o $((40 * 4096)) -l 4096 /dev/mapper/n &
zeroing=$!
wait_for 20 '[ "$(dmu_status pending)" -gt 0 ]'
dmu_kill
dmu_serve -m blocks
wait $zeroing || fail "the zeroing failed"
dd if=/dev/mapper/n bs=4096 skip=33 count=1 iflag=direct 2>/dev/null | cmp - "$TMP/new" || fail "what was written is lost"
dd if=/dev/mapper/n bs=4096 skip=40 count=1 iflag=direct 2>/dev/null | cmp -n 4096 - /dev/zero || fail "not zeroed"
dmu_leave

subtest "a cache of 2,000 bytes"
dmu_line cache_bytes:2000 | dmsetup load n
dmsetup suspend n
dmsetup resume n
dmu_fresh
dmu_serve -m mixed
limited 600 dmu-model run /dev/mapper/n "$TMP/shadow" 5 $operations 4
limited 300 dmu-model verify /dev/mapper/n "$TMP/shadow"
dmu_leave
dmu_line granule:4096 | dmsetup load n
dmsetup suspend n
dmsetup resume n

killed() {
	subtest "the daemon is killed and replaced $kills times under load: $1"
	dmu_fresh
	dmu_serve -m "$1" -r 50
	timeout "$(patience 900)" dmu-model run /dev/mapper/n "$TMP/shadow" 99 1000000 4 >"$TMP/said" 2>&1 &
	load=$!
	done=0
	while [ $done -lt "$kills" ]; do
		before=$(dmu_status hits)
		wait_for 60 "[ \$(dmu_status hits) -gt $before ]"
		dmu_kill
		kill -0 $load || fail "after $done kills: $(cat "$TMP/said")"
		done=$((done + 1))
		dmu_serve -m "$1" -r 50 -S $done
	done
	kill $load
	wait $load || fail "after $done kills: $(cat "$TMP/said")"
	cat "$TMP/said"
	limited 300 dmu-model verify /dev/mapper/n "$TMP/shadow"
	dmsetup message n 0 invalidate
	limited 300 dmu-model verify /dev/mapper/n "$TMP/shadow"
	dmu_leave
}
kills=8
[ "${FAULT:-quick}" != full ] || kills=100
killed sections
killed blocks

subtest "nothing is left"
dmu_unload
