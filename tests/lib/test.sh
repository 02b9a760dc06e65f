# SPDX-License-Identifier: GPL-2.0-or-later
#
# For shell tests: `. tests/lib/test.sh` as their first command (the runner
# starts them at the top of the tree). Sets -eu; what fails ends the test.
#
#	require_root, require_fuse, require_loop, require_cmd CMD...   or skip
#	at_exit 'COMMAND'        undone at exit, last one first
#	fail SENTENCE            ends the test as failed
#	skip REASON              ends the test as skipped
#	expect_fail 'CMD' REGEX  CMD fails and says why in exactly one line on
#	                         standard error that matches; sets $status, $said
#	wait_for SECONDS 'CMD'   until CMD succeeds, or fails the test
#	patience SECONDS         as many times more as $TEST_PATIENCE says
#	limited SECONDS CMD...   CMD is ended then, with status 124
#	wait_locked FILE         until some process has locks in FILE, as QEMU and we take them
#	kill_hard PID            kill -9, and waits until it is gone (a zombie is)
#	killed_at CALL PATH CMD...   CMD is killed at its first system call CALL for PATH;
#	                         needs strace, which does not go with sanitizers
#	mount_options DIR        as the kernel has them
#	subtest NAME             names what the lines below show; counts it as passed
#	                         when the next one, or the end, is reached
set -eu

: "${BUILD:?run tests with make check, or set BUILD}"
if [ -z "${TMP:-}" ]; then
	TMP=$(mktemp -d /tmp/cow.XXXXXX)
	COW_RUN_DIR=$TMP/run
	mkdir "$COW_RUN_DIR"
	PATH=$BUILD/bin:$PATH:/usr/sbin:/sbin
	export TMP COW_RUN_DIR PATH
fi
test_name=${0#tests/}
test_name=${test_name%.sh}
test_undo=
test_sub=
test_passed=0

test_leave() {
	test_status=$?
	set +e
	trap - EXIT
	if [ -n "$test_sub" ] && [ $test_status = 0 ]; then
		test_passed=$((test_passed + 1))
		echo "COUNT: $test_passed 0 0"
	elif [ -n "$test_sub" ] && [ $test_status != 77 ]; then
		echo "$test_name: failed in: $test_sub" >&2
		echo "COUNT: $test_passed 1 0"
	fi
	eval "$test_undo"
	exit $test_status
}
trap test_leave EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

at_exit() {
	test_undo="{ $1
} ; $test_undo"
}

fail() {
	echo "$test_name: $*" >&2
	exit 1
}

skip() {
	[ -z "$test_sub" ] || fail "skip after a subtest began: $*"
	echo "SKIP: $test_name: $*"
	exit 77
}

subtest() {
	[ -z "$test_sub" ] || test_passed=$((test_passed + 1))
	test_sub=$*
	echo "# $*"
}

require_root() {
	[ "$(id -u)" = 0 ] || skip "not root"
}

require_cmd() {
	for test_cmd; do
		command -v "$test_cmd" >/dev/null 2>&1 || skip "$test_cmd is not installed"
	done
}

require_fuse() {
	[ -x "$BUILD/bin/cowfuse" ] || skip "built without FUSE"
	[ -r /dev/fuse ] && [ -w /dev/fuse ] || skip "no access to /dev/fuse"
	require_cmd fusermount3
}

require_loop() {
	require_root
	require_cmd losetup
	losetup -f >/dev/null 2>&1 || skip "no loop device"
}

expect_fail() {
	status=0
	sh -c "$1" >"$TMP/expect.out" 2>"$TMP/expect.err" || status=$?
	said=$(cat "$TMP/expect.err")
	[ $status != 0 ] || fail "succeeded, but must fail: $1"
	[ $status -lt 126 ] || fail "died (status $status): $1: $said"
	[ "$(wc -l <"$TMP/expect.err")" = 1 ] ||
		fail "must say why in one line on standard error: $1: said '$said'"
	echo "$said" | grep -Eq -- "$2" || fail "$1: said '$said', which does not match '$2'"
}

patience() {
	echo $(($1 * ${TEST_PATIENCE:-1}))
}

limited() {
	test_limit=$(patience "$1")
	shift
	timeout "$test_limit" "$@"
}

wait_for() {
	test_tries=$(($(patience "$1") * 20))
	until eval "$2"; do
		test_tries=$((test_tries - 1))
		[ $test_tries -gt 0 ] || fail "waited $1 s in vain for: $2"
		sleep 0.05
	done
}

kill_hard() {
	test_killed=$1
	kill -9 "$1"
	wait_for 20 '! grep -qs "^State:.*[^ZX] (" "/proc/$test_killed/status"'
}

wait_locked() {
	wait_for 20 "grep -q '^[0-9]*: OFDLCK.*:$(stat -c %i "$1") ' /proc/locks"
}

killed_at() {
	test_call=$1 test_path=$2
	shift 2
	timeout 60 strace -f -qq -o "$TMP/killed.trace" -P "$test_path" -e trace="$test_call" \
		-e inject="$test_call":signal=KILL "$@" >"$TMP/killed.out" 2>&1 || true
	grep -q 'killed by SIGKILL' "$TMP/killed.trace" ||
		fail "not killed at $test_call $test_path: $(cat "$TMP/killed.trace" "$TMP/killed.out")"
}

mount_options() {
	findmnt -n -o OPTIONS --target "$1"
}
