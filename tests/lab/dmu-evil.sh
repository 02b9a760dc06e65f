# SPDX-License-Identifier: GPL-2.0-or-later
#
# What nobody should say to the target "userspace": table lines, messages and records
# of every wrong shape. Each has its error; nothing changes, nothing is left.
. tests/lib/test.sh
. tests/lib/lab.sh
lab_self --module -t 400
. tests/lib/dmu.sh
dmu_disks 163845 90000

subtest "table lines of every wrong shape"
d='/dev/mapper/over /dev/mapper/base'
long=$(printf '%0128d' 0)
refused() {
	if echo "0 163845 userspace $*" | dmsetup create n 2>"$TMP/said"; then
		fail "taken: $*"
	fi
	[ ! -e /dev/mapper/n ] || fail "left behind by: $*"
}
refused
refused k
refused k 65536
refused k 65536 ' '
refused k 0 $d
refused k 512 $d
refused k 2048 $d
refused k 65537 $d
refused k 67108864 $d
refused k 4294967296 $d
refused k 18446744073709551616 $d
refused k -65536 $d
refused k +65536 $d
refused k 0x10000 $d
refused k 64k $d
refused "$long" 65536 $d
refused k 65536 no_such_feature $d
refused k 65536 error_if_no_daemon error_if_no_daemon $d
refused k 65536 error_if_no_daemon:1 $d
refused k 65536 no_daemon_timeout $d
refused k 65536 no_daemon_timeout: $d
refused k 65536 no_daemon_timeout:x $d
refused k 65536 no_daemon_timeout:-1 $d
refused k 65536 no_daemon_timeout:86401 $d
refused k 65536 no_daemon_timeout:99999999999999999999 $d
refused k 65536 cache_bytes:1k $d
refused k 65536 granule:2048 $d
refused k 65536 granule:131072 $d
refused k 65536 granule:5000 $d
refused k 65536 writable:65 $d
refused k 65536 error_if_no_daemon
refused k 65536 /dev/no-such-device
refused k 65536 /dev/null
refused k 65536 /dev
refused k 65536 $d error_if_no_daemon
refused k 65536 999:999
many=
for i in 1 2 3 4 5 6 7 8 9 10 11; do many="$many $d $d $d"; done
refused k 65536 $many

subtest "table lines are given back as they were"
for line in "65536 $d" "4096 error_if_no_daemon $d" "33554432 no_daemon_timeout:7 cache_bytes:4096 $d" \
	"65536 granule:8192 writable:1 $d" "65536 writable:0 read_only $d" "65536 no_daemon_timeout:0 $d $d"; do
	echo "0 163845 userspace k $line" | dmsetup create n
	dmsetup table n >"$TMP/a"
	dmsetup remove n
	dmsetup create n <"$TMP/a"
	dmsetup table n | cmp - "$TMP/a"
	sed 's,/dev/mapper/over,@,g;s,/dev/mapper/base,@,g;s,[0-9]*:[0-9]* *$,@,' <"$TMP/a" >/dev/null
	words=${line%% /dev*}
	grep -q "userspace k $words [0-9]" "$TMP/a" || fail "'$words' came back as $(cat "$TMP/a")"
	dmsetup remove n
done

subtest "one key, one set of devices and one block size"
dmu_node
for line in "4096 writable:1 $d" "65536 writable:1 /dev/mapper/over" "65536 $d" \
	"65536 writable:1 /dev/mapper/base /dev/mapper/over"; do
	if dmsetup create m --table "0 163845 userspace $dmu_key $line" 2>"$TMP/said"; then
		fail "taken: $line"
	fi
	grep -q busy "$TMP/said" || fail "$(cat "$TMP/said")"
done
dmsetup create m --table "0 163845 userspace $dmu_key 65536 writable:1 $d"
dmsetup remove m

subtest "messages"
for message in 'no' 'invalidate all' 'no_daemon_timeout' 'no_daemon_timeout x' 'no_daemon_timeout 1 2' \
	'no_daemon_timeout 86401' '@cancel'; do
	# shellcheck disable=SC2086
	if dmsetup message n 0 $message 2>"$TMP/said"; then fail "taken: $message"; fi
done
dmsetup message n 0 invalidate
dmsetup message n 0 no_daemon_timeout 3

subtest "the control node is root's"
[ "$(stat -c '%a %u' /dev/dm-userspace)" = '600 0' ] || fail "$(ls -l /dev/dm-userspace)"
chmod 666 /dev/dm-userspace
if setpriv --reuid=65534 --clear-groups --bounding-set=-all --inh-caps=-all \
	sh -c ': <>/dev/dm-userspace' 2>"$TMP/said"; then
	fail "opened without CAP_SYS_ADMIN"
fi
grep -qi 'not permitted' "$TMP/said" || fail "$(cat "$TMP/said")"
chmod 600 /dev/dm-userspace

subtest "records of every wrong shape"
limited 200 dmu-evil "$dmu_key" /dev/mapper/n

subtest "and the target works"
dmu_fresh
dmsetup message n 0 no_daemon_timeout 0
dmu_serve
limited 100 dmu-model run /dev/mapper/n "$TMP/shadow" 3 500 2
dmu_leave

subtest "nothing is left"
dmu_unload
