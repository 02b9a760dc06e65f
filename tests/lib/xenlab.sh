# SPDX-License-Identifier: GPL-2.0-or-later
#
# For tests under a real Xen, with guests: `. tests/lib/xenlab.sh` instead of test.sh and
# lab.sh, which it brings along. On both sides:
#
#	xen_up [--module] [OPTION of tests/lab/xen]...
#
# Outside, it boots Xen $LAB_XEN (xen-4.17 if unset) with kernel 6.1 as domain 0, runs the
# same script there, and leaves with its status and output; inside, it returns, as
# lab_self does (tests/lib/lab.sh). Programs in $guest_programs get into the guests, and kernel
# modules in $guest_modules.
# Inside:
#
#	guest_config NAME [XL-DISK]...	writes $TMP/NAME.cfg, for edits before guest_start
#	guest_start NAME [XL-DISK]...	makes the configuration unless it is there, runs
#					$xl create and waits until the guest obeys; $guest_type
#					(pv), $guest_memory (192 MiB), $guest_vcpus (1), $guest_extra
#					(words for its kernel; xen_blkfront.KEY=VALUE for that module)
#	guest_run NAME CMD [SECONDS]	runs shell text in the guest: its output, its status
#	guest_check NAME CMD [SECONDS]	the same, and it must succeed: else the test fails
#	guest_disk NAME DISK		waits until the guest has the disk, e.g. xvda
#	guest_calm NAME			fails when the guest's kernel knows of I/O errors
#	guest_wait NAME [SECONDS]	until the guest is gone, with all that it had
#	guest_off NAME			guest_calm, powers it off, guest_wait
#	guest_destroy NAME		xl destroy, guest_wait
#	guest_reboot NAME		powers it off and waits until it obeys again
#	guest_id NAME			its number
#	guest_log NAME			what its console said
#	xen_calm			nothing of a guest is left in xenstore
#	xen_block_dmu			Xen has our block-dmu, and xl-dmu is there; on both sides:
#					skips when they are not built
. tests/lib/test.sh
. tests/lib/lab.sh

xl=xl
guest_type=pv
guest_memory=192
guest_vcpus=1
guest_extra=
guest_programs="mkfs.ext4 e2fsck $BUILD/tests/lab/payload"
guest_modules=

xen_outside() {
	lab_require
	LAB_XEN=${LAB_XEN:-xen-4.17}
	tests/lab/kernels --have "$LAB_XEN" >/dev/null || tests/lab/kernels "$LAB_XEN" || skip "no $LAB_XEN"
	# shellcheck disable=SC2086,SC2046
	XEN_GUEST=$(tests/lab/guest ${guest_modules:+$(printf -- '-m %s ' $guest_modules)} "$lab_kernel" $guest_programs) || fail "no initial file system for guests"
	export XEN_GUEST
	lab_self "$@" -x "$LAB_XEN" -e XEN_GUEST
}

xen_up() {
	[ -n "${COW_IN_LAB:-}" ] || xen_outside "$@"
	lab_self
	xen_kernel=$(tests/lab/kernels --have "$lab_kernel")/vmlinux
}

guest_config() {
	guest_name=$1
	shift
	guest_disks=
	for guest_d; do
		guest_disks="$guest_disks'$guest_d', "
	done
	cat >"$TMP/$guest_name.cfg" <<END
name = '$guest_name'
type = '$guest_type'
kernel = '$xen_kernel'
ramdisk = '$XEN_GUEST'
extra = 'console=hvc0 quiet loglevel=2 rdinit=/init mitigations=off nokaslr norandmaps random.trust_cpu=on $guest_extra'
memory = $guest_memory
vcpus = $guest_vcpus
cpus = '1'
disk = [ $guest_disks]
vif = []
on_crash = 'destroy'
END
}

guest_start() {
	[ -e "$TMP/$1.cfg" ] || guest_config "$@"
	rm -f "/var/log/xen/console/guest-$1.log"
	$xl create -q "$TMP/$1.cfg" || fail "xl create of $1 failed"
	guest_attach "$1"
}

guest_id() {
	xl domid "$1"
}

# What guest_run needs to know; also after a reboot, by which the guest became another domain.
guest_attach() {
	guest_n=$1
	guest_domid=$(guest_id "$1")
	echo "$guest_domid" >"$TMP/$1.id"
	wait_for 20 'xenstore-read "/local/domain/$guest_domid/console/tty" >"$TMP/$guest_n.tty" 2>/dev/null &&
		grep -q . "$TMP/$guest_n.tty"'
	"$BUILD/tests/lab/guest-run" -t $((180 * ${TEST_PATIENCE:-1})) "$(cat "$TMP/$1.tty")" "/var/log/xen/console/guest-$1.log" ||
		fail "guest $1 does not come up: $(guest_log "$1")"
}

guest_run() {
	read -r guest_tty <"$TMP/$1.tty"
	"$BUILD/tests/lab/guest-run" -t $((${3:-60} * ${TEST_PATIENCE:-1})) "$guest_tty" "/var/log/xen/console/guest-$1.log" "$2"
}

guest_check() {
	guest_run "$@" || fail "guest $1, status $?: $2
$(guest_run "$1" 'dmesg | tail -n 20')"
}

guest_disk() {
	guest_check "$1" "for i in \$(seq 200); do [ ! -b /dev/$2 ] || exit 0; usleep 50000; done; exit 1"
}

guest_calm() {
	! guest_run "$1" "dmesg | grep -E 'I/O error|Buffer I/O|EXT4-fs error|Call Trace|timed out'" ||
		fail "guest $1 saw errors"
}

guest_log() {
	cat "/var/log/xen/console/guest-$1.log"
}

guest_wait() {
	read -r guest_domid <"$TMP/$1.id"
	wait_for "${2:-40}" '! xenstore-exists /local/domain/$guest_domid'
	rm -f "$TMP/$1.id" "$TMP/$1.tty"
}

guest_reboot() {
	guest_calm "$1"
	guest_n=$1
	read -r guest_was <"$TMP/$1.id"
	: >"/var/log/xen/console/guest-$1.log"	# guest_attach is to see the second start
	guest_run "$1" 'sync; reboot -f' 20 2>/dev/null && fail "guest $1 does not reboot"
	guest_wait "$1"
	wait_for 40 '[ "$(guest_id $guest_n 2>/dev/null || echo $guest_was)" != "$guest_was" ]'
	guest_attach "$1"
}

guest_off() {
	guest_calm "$1"
	# The command's end is not seen any more.
	guest_run "$1" 'sync; poweroff -f' 20 2>/dev/null && fail "guest $1 is still there"
	guest_wait "$1"
}

guest_destroy() {
	xl destroy "$1"
	guest_wait "$1"
}

xen_calm() {
	for xen_type in vbd vbd3 dmu; do
		xen_left=$(xenstore-ls -f "/local/domain/0/backend/$xen_type" 2>/dev/null | grep '/[0-9]*/[0-9]* = ' || true)
		[ -z "$xen_left" ] || fail "left in xenstore: $xen_left"
	done
}

xen_block_dmu() {
	[ -x "$BUILD/bin/block-dmu" ] || skip "built without libxenstore: no block-dmu"
	[ -n "${COW_IN_LAB:-}" ] || return 0
	cp "$BUILD/bin/block-dmu" /etc/xen/scripts/
	COW_BIN_DIR=$BUILD/bin
	export COW_BIN_DIR
}
