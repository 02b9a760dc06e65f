# SPDX-License-Identifier: GPL-2.0-or-later
#
# For tests/lab/dmu*.sh, inside the lab: the target "userspace" with a daemon that is
# not cowd (tests/lab/dmu-serve.c). After lab_self:
#
#	dmu_disks SECTORS BASE_SECTORS	/dev/mapper/base and /dev/mapper/over on RAM disks, base filled
#	dmu_loops SECTORS BASE_SECTORS	the same on loop devices, which can zero without writing
#	dmu_fresh [DMU-SERVE-OPTION]..	an empty overlay: forgets what was written; for dmu_serve
#	dmu_serve [DMU-SERVE-OPTION]..	starts it ($dmu_pid)
#	dmu_kill, dmu_leave		ends it: kill -9, SIGTERM (and it says how many records)
#	dmu_node [FEATURE]...		makes /dev/mapper/n of all that
#	dmu_status FIELD		of the node: mode daemon hits misses sections bytes pending
#					uncommitted epoch

PATH=$BUILD/tests/lab:$PATH
dmu_key=key
dmu_pid=

dmu_disks() {
	modprobe brd rd_nr=2 rd_size=262144 max_part=0 2>/dev/null || true
	[ -b /dev/ram1 ] || fail "no RAM disks"
	dmu_below "$1" "$2" /dev/ram0 /dev/ram1
}

dmu_loops() {
	modprobe loop 2>/dev/null || true
	truncate -s 256M "$TMP/file.0" "$TMP/file.1"
	at_exit 'losetup -D'
	dmu_below "$1" "$2" "$(losetup -f --show "$TMP/file.0")" "$(losetup -f --show "$TMP/file.1")"
}

dmu_below() {
	dmu_sectors=$1 dmu_base=$2
	echo "0 $dmu_base linear $3 0" | dmsetup create base
	echo "0 $(((dmu_sectors + 65535) / 65536 * 131072)) linear $4 0" | dmsetup create over
	at_exit 'dmu_end'
	dmu-model fill /dev/mapper/base 42
}

dmu_fresh() {
	rm -f "$TMP/state" "$TMP/shadow"
	dmu-model fill /dev/mapper/over 666
	dmu-model shadow "$TMP/shadow" "$dmu_sectors" "$dmu_base" 42
	[ ! -e /dev/mapper/n ] || dmsetup message n 0 invalidate
}

dmu_line() {
	echo "0 ${dmu_len:-$dmu_sectors} userspace $dmu_key ${dmu_block:-65536} $* writable:1 /dev/mapper/over /dev/mapper/base"
}

dmu_node() {
	dmu_line "$@" | dmsetup create n
}

dmu_serve() {
	dmu-serve -k "$dmu_key" -s "$TMP/state" -0 /dev/mapper/over -1 /dev/mapper/base "$@" \
		>"$TMP/serve.$$" 2>&1 &
	dmu_pid=$!
	wait_for 20 "[ \$(dmu_status daemon) = attached ]"
}

dmu_kill() {
	kill -9 "$dmu_pid"
	wait "$dmu_pid" 2>/dev/null || true
	dmu_pid=
}

dmu_leave() {
	kill "$dmu_pid"
	wait "$dmu_pid" || fail "$(cat "$TMP/serve.$$")"
	cat "$TMP/serve.$$"
	dmu_pid=
}

dmu_status() {
	dmu_fields=$(dmsetup status n)
	# shellcheck disable=SC2086
	set -- "$1" $dmu_fields
	case $1 in
	mode) echo "$6" ;;
	daemon) echo "$7" ;;
	hits) echo "$8" ;;
	misses) echo "$9" ;;
	sections) echo "${10}" ;;
	bytes) echo "${11}" ;;
	pending) echo "${12}" ;;
	uncommitted) echo "${13}" ;;
	epoch) echo "${14}" ;;
	esac
}

dmu_end() {
	[ -z "$dmu_pid" ] || kill -9 "$dmu_pid" 2>/dev/null
	dmsetup remove_all --force >/dev/null 2>&1
}

# No node, no daemon: the module has nothing left.
dmu_unload() {
	dmsetup remove n
	dmsetup remove over base
	rmmod dm-userspace || fail "the module is still in use"
}
