# SPDX-License-Identifier: GPL-2.0-or-later
#
# For tests of a whole cowd in the lab: `. tests/lib/lab-node.sh` instead of test.sh and lab.sh,
# which it brings along. On both sides:
#
#	front_ends NAME...     those to test: these, or what $COW_FE says; sets $fes
#	node_lab [OPTION]...   lab_self, with the module where $fes has dm
#	payload, logreplay, dmops      the programs of tests/lab
#
# and inside:
#
#	pick_front_ends        leaves in $fes those that this kernel has; skips without any
#	serve IMAGE            starts cowd with front end $fe for the device $node, waits
#	                       until it is usable; sets $disk and $pid
#	slice NAME MIB DEVICE [MIB]    /dev/mapper/NAME: MIB of DEVICE, from there
#	drop NAME...           removes device-mapper nodes
#	check_image IMAGE      sound? Unused space is no damage: repaired, checked again
#	bounded SECONDS CMD    runs CMD, whose status it returns; 124 when it lasts longer, also
#	                       when it hangs in the kernel and cannot be killed
. tests/lib/test.sh
. tests/lib/lab.sh

node=lab
fe=

payload() {
	"$BUILD/tests/lab/payload" "$@"
}

logreplay() {
	"$BUILD/tests/lab/logreplay" "$@"
}

dmops() {
	"$BUILD/tests/lab/dmops" "$@"
}

front_ends() {
	fes=${COW_FE:-$*}
}

node_lab() {
	limit=1800
	[ "${FAULT:-quick}" != full ] || limit=3400
	set -- -t $limit "$@"
	case " $fes " in
	*' dm '*) lab_self --module -e COW_FE "$@" ;;
	*) lab_self -e COW_FE "$@" ;;
	esac
	modprobe -a -q dm-mod fuse loop brd || true
	modprobe -q ublk_drv || true
}

pick_front_ends() {
	node_why= node_have=
	for fe in $fes; do
		if node_said=$(cowd --probe="$fe" 2>&1); then
			node_have="$node_have $fe"
		else
			node_why="$node_why $node_said;"
		fi
	done
	fes=$node_have
	[ -n "$fes" ] || skip "no front end:$node_why"
}

serve() {
	cowd --frontend="$fe" --log-level=warning -p dscow "$node" "$1" >"$TMP/path" 2>"$TMP/serve.err" ||
		fail "cowd: $(cat "$TMP/serve.err")"
	disk=$(tail -n 1 "$TMP/path")
	[ -b "$disk" ] || fail "cowd made no block device but '$disk'"
	pid=$(cowctl status "$node" --json | sed -n 's/.*"pid": \([0-9]*\).*/\1/p')
}

slice() {
	echo "0 $(($2 << 11)) linear $3 $((${4:-0} << 11))" | dmsetup create "$1"
}

drop() {
	for node_name; do
		dmsetup remove --retry "$node_name" || fail "$node_name cannot be removed"
	done
}

bounded() {
	node_limit=$(($(date +%s) + $1))
	shift
	rm -f "$TMP/ended"
	(
		node_status=0
		"$@" || node_status=$?
		echo $node_status >"$TMP/ended.new"
		mv "$TMP/ended.new" "$TMP/ended"
	) &
	until [ -e "$TMP/ended" ]; do
		[ "$(date +%s)" -le $node_limit ] || return 124
		sleep 0.1
	done
	return "$(cat "$TMP/ended")"
}

check_image() {
	dscow_tool -k "$1" >"$TMP/check" 2>&1 && return 0
	[ $? = 3 ] && dscow_tool -R "$1" >"$TMP/check" 2>&1 && dscow_tool -k "$1" >"$TMP/check" 2>&1 ||
		fail "$1 does not check clean: $(cat "$TMP/check")"
}
