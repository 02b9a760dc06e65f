# SPDX-License-Identifier: GPL-2.0-or-later
#
# For tests that need another kernel than this machine's (tests/lab/*.sh). After
# `. tests/lib/test.sh`, `. tests/lib/lab.sh`:
#
#	lab_self [--module] [OPTION of tests/lab/lab]...
#
# Outside, it boots kernel $LAB_KERNEL (6.1 if unset), runs the same script inside,
# and leaves with its status and output; inside, it returns. So what stands before
# it happens on both sides and what follows only inside, where
#	- BUILD, the tree and the working folder are what they are outside;
#	- TMP is a new folder on tmpfs;
#	- /out is kept, as $TMP/out outside, until the test's end.
# --module builds kernel-compat for the kernel and inserts it.
#
#	lab_kernel_min VERSION REASON    inside: skips when the kernel is older
#	lab_require                      outside: skips when the lab cannot be
#
# A test is skipped where the lab cannot be: no qemu, or no way to get the kernel.
# That the module does not build is a failure.

lab_kernel=${LAB_KERNEL:-6.1}

lab_require() {
	[ "$(uname -m)" = x86_64 ] || skip "the lab needs an amd64 machine"
	require_cmd qemu-system-x86_64 busybox modprobe cpio
	if ! tests/lab/kernels --have "$lab_kernel" >/dev/null; then
		[ "$lab_kernel" != debug ] || skip "no kernel debug: build it with tests/lab/debug-kernel"
		tests/lab/kernels "$lab_kernel" || skip "no kernel $lab_kernel"
	fi
}

lab_outside() {
	lab_module=
	if [ "${1:-}" = --module ]; then
		lab_module=yes
		shift
	fi
	lab_require
	if [ -n "$lab_module" ]; then
		lab_module=$(tests/lab/kmod "$lab_kernel") || fail "no module for kernel $lab_kernel"
		set -- -i "$lab_module" "$@"
	fi
	lab_status=0
	tests/lab/lab -k "$lab_kernel" -o "$TMP/out" "$@" -- sh "$0" ||
		lab_status=$?
	exit $lab_status
}

lab_self() {
	[ -n "${COW_IN_LAB:-}" ] || lab_outside "$@"
	TMP=$(mktemp -d /run/test.XXXXXX)
	COW_RUN_DIR=$TMP/run
	mkdir "$COW_RUN_DIR"
	export TMP COW_RUN_DIR
	at_exit "cd / && rm -rf '$TMP'"
}

lab_kernel_min() {
	printf '%s\n%s\n' "$1" "$(uname -r)" | sort -CV || skip "$2"
}
