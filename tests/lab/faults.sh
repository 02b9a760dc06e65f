# SPDX-License-Identifier: GPL-2.0-or-later
#
# Failing disks below a running cowd: dm-flakey and dm-error under overlay and base, and
# where the kernel can inject faults (the debug kernel), failing requests and failing
# allocations. Errors reach who asked; what was reported as written is there; nothing
# hangs; afterwards the device can be removed, the image is sound or the check says what is
# wrong, and a new daemon serves all that was flushed.
#
# environment: COW_FE (dm ublk bridge), SEED, ROUNDS (1; FAULT=full 5)
# TIMEOUT: 3600
. tests/lib/lab-node.sh

rounds=1
[ "${FAULT:-quick}" != full ] || rounds=5
rounds=${ROUNDS:-$rounds}
seed=${SEED:-20061}
size=64 ops=300
front_ends dm ublk bridge

node_lab -m 2048 -e ROUNDS
pick_front_ends
modprobe dm-flakey
at_exit 'timeout 30 cowctl stop --force "$node" >/dev/null 2>&1 || true'
debugfs=/sys/kernel/debug

# becomes NAME TARGET PARAMETERS...: of base or over, while it is in use
becomes() {
	mib=$size
	[ "$1" = base ] || mib=$((size + 8))
	echo "0 $((mib << 11)) $2" | dmsetup load "$1"
	dmsetup suspend --noflush --nolockfs "$1"
	dmsetup resume "$1"
}

ram_of() {
	[ "$1" = base ] && echo /dev/ram0 || echo /dev/ram1
}

begin() {
	dmsetup info base >/dev/null 2>&1 || slice base $size /dev/ram0
	slice over $((size + 8)) /dev/ram1
	new_overlay
	serve /dev/mapper/over
	rm -f "$TMP/state"
	load -n $ops
	load -z -n 40	# something is not flushed yet
}

# Runs payload; its counts of errors go to $bad_writes, $bad_reads, $bad_flushes.
load() {
	bounded 100 payload run -k 60 -s "$seed" -S "$TMP/state" "$@" "$disk" >"$TMP/load" 2>&1 ||
		fail "$why: $(cat "$TMP/load")"
	# shellcheck disable=SC2046
	set -- $(sed -n 's/.*errors://p' "$TMP/load" | tr -c '0-9\n' ' ')
	bad_writes=$1 bad_reads=$2 bad_flushes=$3
}

# Takes the device away, whatever state it is in, and looks at what is left. What $1 asks for
# (all, or flushed: since errors may have cost what was not) must be there.
finish() {
	bounded 60 cowctl stop "$node" >"$TMP/stop" 2>&1 ||
		bounded 60 cowctl stop --force "$node" >>"$TMP/stop" 2>&1 ||
		wait_for 30 '! cowctl status "$node" >/dev/null 2>&1'
	wait_for 30 '[ ! -e /proc/$pid ]'
	! dmsetup info "$node" >/dev/null 2>&1 || fail "$why: the node is still there: $(cat "$TMP/stop")"
	r=0
	cowimg check -f dscow /dev/mapper/over >"$TMP/check" 2>&1 || r=$?
	case $r in
	0 | 3) ;;
	2) [ -s "$TMP/check" ] || fail "$why: check does not say what is wrong" ;;
	*) fail "$why: check: $(cat "$TMP/check")" ;;
	esac
	serve /dev/mapper/over
	if [ "$1" = all ]; then
		bounded 60 payload verify -S "$TMP/state" "$disk" || fail "$why: after a restart"
	else
		bounded 60 payload verify -F -S "$TMP/state" "$disk" || fail "$why: after a restart, flushed"
	fi
	cowctl stop "$node" || fail "$why: cannot be stopped"
	drop over
	echo "$fe: $why: $seen; check $r"
}

# ---- a device below fails ----

# NAME TARGET WHAT KEEPS: while NAME is TARGET, WHAT (read write flush) must fail; then it heals,
# and after a restart there is what KEEPS says
failing() {
	why="$1 is $2"
	subtest "$fe: $why"
	n=0
	while [ $n -lt "$rounds" ]; do
		begin
		echo 3 >/proc/sys/vm/drop_caches
		becomes "$1" "$2"
		load -e -n $ops
		for what in $3; do
			case $what in
			write) [ $bad_writes -gt 0 ] ;;
			read) [ $bad_reads -gt 0 ] ;;
			flush) [ $bad_flushes -gt 0 ] ;;
			esac || fail "$why: no $what failed: $(cat "$TMP/load")"
		done
		seen="errors: writes=$bad_writes reads=$bad_reads flushes=$bad_flushes"
		becomes "$1" "linear $(ram_of "$1") 0"
		# Reads work again at once, and show what was acknowledged.
		load -e -r -n $ops
		[ $bad_reads = 0 ] || fail "$why: $bad_reads reads fail although it is well again"
		load -e -n $ops
		finish "$4"
		n=$((n + 1))
	done
}

# ---- the kernel injects faults ----

inject() {	# ATTRIBUTE-FOLDER PERCENT TIMES
	echo 0 >"$debugfs/$1/verbose"
	echo 1 >"$debugfs/$1/interval"
	echo "$3" >"$debugfs/$1/times"
	echo "$2" >"$debugfs/$1/probability"
}

# Allocations of cowd fail (of the load as well: of the kernel on its behalf).
allocations() {	# failslab or fail_page_alloc
	why="$1"
	subtest "$fe: $why"
	begin
	echo Y >"$debugfs/$1/task-filter"
	for f in ignore-gfp-wait ignore-gfp-highmem; do
		[ ! -e "$debugfs/$1/$f" ] || echo N >"$debugfs/$1/$f"
	done
	[ ! -e "$debugfs/$1/min-order" ] || echo 0 >"$debugfs/$1/min-order"
	for t in /proc/"$pid"/task/*; do
		echo 1 >"$t/make-it-fail"
	done
	inject "$1" 2 -1
	load -e -x -n $ops
	inject "$1" 0 0
	seen="errors: writes=$bad_writes reads=$bad_reads flushes=$bad_flushes"
	if [ ! -e "/proc/$pid" ]; then	# it may end, but not without leave to its successor
		echo "$why: cowd ended"
		serve /dev/mapper/over
	fi
	load -e -r -n $ops
	[ $bad_reads = 0 ] || fail "$why: $bad_reads reads fail although there is memory"
	finish flushed
}

requests() {
	why="fail_make_request on $1"
	subtest "$fe: $why"
	begin
	ram=$(ram_of "$1")
	echo 1 >"/sys/block/${ram#/dev/}/make-it-fail"
	inject fail_make_request 10 -1
	load -e -n $ops
	inject fail_make_request 0 0
	echo 0 >"/sys/block/${ram#/dev/}/make-it-fail"
	seen="errors: writes=$bad_writes reads=$bad_reads flushes=$bad_flushes"
	[ $((bad_writes + bad_reads)) -gt 0 ] || fail "$why: nothing failed: $(cat "$TMP/load")"
	load -e -r -n $ops
	[ $bad_reads = 0 ] || fail "$why: $bad_reads reads fail although it is well again"
	finish flushed
}

for fe in $fes; do
	# The target's I/O goes to the device. The others' goes through cowd's page cache: reads may
	# be answered, and writes be taken, until a flush tells.
	all='write read flush' writes='write flush'
	[ $fe = dm ] || all=flush writes=flush
	failing over 'flakey /dev/ram1 0 0 1 1 error_writes' "$writes" flushed
	failing over 'flakey /dev/ram1 0 0 1' "$all" flushed
	failing over error "$all" flushed
	failing base 'flakey /dev/ram0 0 0 1' read all
	failing base error read all
	if [ -d $debugfs/fail_make_request ]; then
		requests over
		requests base
		allocations failslab
		allocations fail_page_alloc
	else
		echo "left out, not in this kernel: fail_make_request, failslab, fail_page_alloc"
	fi
	subtest "$fe: the base is as it was"
	payload verify -s "$seed" /dev/mapper/base || fail "the base changed"
	drop base
done

subtest "a disk that lies is seen"
fe=${fes##* } why="a lying disk"
begin
becomes over 'flakey /dev/ram1 0 0 1 1 drop_writes'
! payload run -e -n $ops -s "$seed" "$disk" >"$TMP/load" 2>&1 ||
	fail "nothing was seen: $(cat "$TMP/load")"
grep -q 'must be there' "$TMP/load" || fail "$(cat "$TMP/load")"
