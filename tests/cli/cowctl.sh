# SPDX-License-Identifier: GPL-2.0-or-later
#
# cowctl: every verb, on a running device, on none, and on a dead one; its
# output for programs, its exit status, its words of refusal.
. tests/lib/test.sh
require_root
require_fuse
require_cmd jq

cd "$TMP"
R=$COW_RUN_DIR
at_exit 'for s in "$R"/*.sock; do
	[ ! -e "$s" ] || timeout 20 cowctl stop "$(basename "$s" .sock)" --force >/dev/null 2>&1
done'
mkdir mnt
head -c 8M /dev/urandom >base.raw
cowimg create -q -f dscow -b base.raw -F raw ov.dscow
loop=--no-loop
[ ! -e /dev/loop-control ] || loop=

subtest an empty list
[ -z "$(cowctl list)" ] || fail "lists $(cowctl list)"
[ "$(cowctl list --json | jq -c '[.schema, .devices]')" = '[1,[]]' ] || fail "$(cowctl list --json)"
[ -z "$(COW_RUN_DIR=$TMP/none cowctl list)" ] || fail "no run directory is no device"

cowd $loop -p dscow one ov.dscow >path
path=$(cat path)
cowd --no-loop -r -p raw two base.raw >/dev/null

subtest list
cowctl list >list
[ "$(wc -l <list)" = 2 ] || fail "$(cat list)"
grep -Eq "^one +running +dscow +$path +$TMP/ov.dscow\$" list || fail "$(cat list)"
grep -Eq "^two +running +raw +$R/two/disk +$TMP/base.raw\$" list || fail "$(cat list)"
cowctl list --json | jq -e '.schema == 1 and (.devices | map(.name) == ["one", "two"]) and
	(.devices | all(.state == "running" and .pid > 1))' >/dev/null || fail "$(cowctl list --json)"

subtest status
cowctl status one | grep -q '^state: running$' || fail "text"
cowctl status one --json | jq -e --arg p "$path" --arg i "$TMP/ov.dscow" \
	'.schema == 1 and .name == "one" and .device == $p and .image == $i and .size == 8388608 and
	 .format == "dscow" and .frontend == "fuse" and .read_only == false and .state == "running" and
	 .mode == "read-write" and (.layers | length) == 2 and .views == []' >/dev/null ||
	fail "$(cowctl status one --json)"

subtest stats
before=$(cowctl stats one --json | jq '[.ops.write.ops, .ops.write.bytes]' -c)
head -c 64k /dev/zero | dd of="$R/one/disk" bs=4k oflag=direct conv=notrunc status=none 2>/dev/null ||
	head -c 64k /dev/zero | dd of="$R/one/disk" bs=4k conv=notrunc,fsync status=none
cowctl stats one --json >stats.json
jq -e --argjson b "$before" '.schema == 1 and .ops.write.bytes == $b[1] + 65536 and
	.ops.write.ops > $b[0] and
	(.ops | to_entries | all(.value.ops == (.value.latency_log2_us | add))) and
	.chain.allocated_bytes >= 65536 and (.chain | has("copied_bytes"))' stats.json >/dev/null ||
	fail "$(cat stats.json)"
cowctl stats one | grep -q '^ops:' || fail "text"
cowctl stats one --openmetrics >om
[ "$(tail -n 1 om)" = '# EOF' ] || fail "openmetrics does not end"
grep -q '^cowd_ops_total{device="one",op="write"} [1-9]' om || fail "openmetrics"
# Each sample belongs to a family that was declared, once.
sed -n 's/^# TYPE \([^ ]*\) .*/\1/p' om | sort >families
[ -z "$(uniq -d families)" ] || fail "declared twice: $(uniq -d families)"
sed -n 's/^\(cowd_[a-z_]*\).*/\1/p' om | sed 's/_total$//;s/_bucket$//;s/_sum$//;s/_count$//' |
	sort -u | cmp - families || fail "samples and families differ"

subtest flush
syncs=$(cowctl stats one --json | jq .ops.flush.ops)
cowctl flush one || fail flush
[ "$(cowctl stats one --json | jq .ops.flush.ops)" = $((syncs + 1)) ] || fail "not counted"

subtest pause and resume
cowctl pause one
[ "$(cowctl status one --json | jq -r .state)" = paused ] || fail state
cowctl list | grep -Eq '^one +paused' || fail list
expect_fail 'cowctl pause one' 'paused already'
cowctl flush one || fail "flush while paused"
head -c 4096 /dev/urandom >block
dd if=block of="$R/one/disk" bs=4k seek=5 conv=notrunc,fsync status=none &
dd=$!
wait_for 20 '[ "$(cowctl stats one --json | jq .parked)" -gt 0 ]'
kill -0 $dd || fail "the writer did not wait"
[ "$(cowctl stats one --json | jq .inflight)" = 0 ] || fail "something is in flight"
expect_fail 'cowctl stop one' 'paused'
cowctl resume one
wait $dd || fail "the writer failed"
dd if="$R/one/disk" bs=4k skip=5 count=1 status=none | cmp - block || fail "data"
expect_fail 'cowctl resume one' 'not paused'

subtest resize
cowctl resize one 12M || fail "grow"
[ "$(stat -c %s "$R/one/disk")" = 12582912 ] || fail "the file has $(stat -c %s "$R/one/disk") bytes"
[ -z "$loop" ] && [ "$(blockdev --getsize64 "$path")" != 12582912 ] && fail "the device's size"
[ "$(cowctl status one --json | jq .size)" = 12582912 ] || fail status
expect_fail 'cowctl resize one 8M' 'one: .*(shrink|smaller)'
cowctl resize one 8M --shrink || fail shrink
[ "$(stat -c %s "$R/one/disk")" = 8388608 ] || fail "the file after shrinking"
expect_fail 'cowctl resize one 0' 'above zero'
expect_fail 'cowctl resize one many' 'above zero'
expect_fail 'cowctl resize one 99999999E' 'above zero'
expect_fail 'cowctl resize two 1G' 'read-only'
[ "$(cowctl status one --json | jq -c '[.size, .state]')" = '[8388608,"running"]' ] || fail "state"

subtest mount and umount
cowctl mount one mnt || fail mount
cmp mnt/disk "$R/one/disk" || fail "the view differs"
! dd if=block of=mnt/disk conv=notrunc status=none 2>/dev/null || fail "the view is writable"
[ "$(cowctl status one --json | jq -c .views)" = "[\"$TMP/mnt\"]" ] || fail "status"
expect_fail 'cowctl mount one mnt' 'mounted there already'
dd if=block of="$R/one/disk" bs=4k seek=9 conv=notrunc,fsync status=none
dd if=mnt/disk bs=4k skip=9 count=1 status=none | cmp - block || fail "the view is stale"
exec 8<mnt/disk
expect_fail 'cowctl umount one mnt' 'mnt is in use'
exec 8<&-
cowctl umount one mnt || fail umount
! grep -q " $TMP/mnt " /proc/self/mounts || fail "still mounted"
expect_fail 'cowctl umount one mnt' 'no view'
expect_fail 'cowctl mount one missing' 'missing: No such file'
expect_fail 'cowctl mount one base.raw' 'not a folder'
expect_fail "cowctl mount one $R/one/layers" 'this very device'
cowctl mount one mnt
umount mnt			# behind the daemon's back
wait_for 10 '[ "$(cowctl status one --json | jq -c .views)" = "[]" ]'
cowctl mount one mnt		# a stop takes views away
cp "$R/one.state" state
grep -q "^view $TMP/mnt\$" state || fail "a kill would leave the view mounted"

subtest log-level and version
[ "$(cowctl log-level one)" = info ] || fail "$(cowctl log-level one)"
cowctl log-level one debug
[ "$(cowctl log-level one)" = debug ] || fail "$(cowctl log-level one)"
expect_fail 'cowctl log-level one loud' 'error, warning, info, debug'
[ "cowd $(cowctl version one)" = "$(cowd --version)" ] || fail "$(cowctl version one)"

subtest misuse has exit status 2
for args in '' frobnicate 'status' 'status one two' 'status one --force' 'stats one --json --openmetrics' \
	    'resize one' 'resize one 1 2' 'mount one' 'list one' 'stop' 'status ../x' 'flush --json one'; do
	expect_fail "cowctl $args" '^cowctl: '
	[ $status = 2 ] || fail "exit status $status for: $args"
done
expect_fail 'cowctl status none' 'no device "none" is running'
[ $status = 1 ] || fail "exit status $status"
cowctl --long-options | grep -qx -- --json || fail "--long-options"

subtest a killed daemon is dead, and its view is cleaned up too
kill -9 "$(cowctl status one --json | jq .pid)"
wait_for 10 'cowctl list | grep -Eq "^one +dead"'
cowctl list --json | jq -e --arg i "$TMP/ov.dscow" '.devices[] | select(.name == "one") |
	.state == "dead" and .image == $i' >/dev/null || fail "$(cowctl list --json)"
for v in status stats flush pause resume stop version log-level; do
	expect_fail "cowctl $v one" '"one" is dead'
done
grep -q " $TMP/mnt " /proc/self/mounts || fail "the dead view is gone by itself: nothing to show"
cowd $loop -p dscow one ov.dscow >/dev/null 2>&1 || fail "does not start again"
! grep -q " $TMP/mnt " /proc/self/mounts || fail "the dead view is still mounted"

subtest stop
cowctl mount one mnt
cowctl stop one || fail "stop with a view"
! grep -q " $TMP/mnt " /proc/self/mounts || fail "the view outlives the device"
expect_fail 'cowctl stop one' 'no device'
cowctl stop two
[ -z "$(cowctl list)" ] || fail "still listed: $(cowctl list)"
