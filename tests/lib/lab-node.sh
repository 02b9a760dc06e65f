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
#	serve IMAGE [FORMAT]   starts cowd with front end $fe for the device $node, waits
#	                       until it is usable; sets $disk and $pid
#	status MEMBER          of what cowctl says of $node, as jq spells members
#	kill_9                 kills the daemon of $node and waits until it is gone
#	nothing_left           no node, no loop device, nothing of $node in the run directory
#	slice NAME MIB DEVICE [MIB]    /dev/mapper/NAME: MIB of DEVICE, from there
#	ram_overlay MIB SPARE  /dev/mapper/base and an overlay of it in /dev/mapper/over, SPARE MiB
#	                       longer, on RAM disks; then new_overlay
#	new_overlay            fills base from $seed and makes over an empty overlay of it
#	drop NAME...           removes device-mapper nodes
#	check_image IMAGE      sound? Unused space is no damage: repaired, checked again
#	bounded SECONDS CMD    runs CMD, whose status it returns; 124 when it lasts longer, also
#	                       when it hangs in the kernel and cannot be killed
. tests/lib/test.sh
. tests/lib/lab.sh
require_cmd jq

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
	cowd --frontend="$fe" --log-level=warning -p "${2:-dscow}" "$node" "$1" >"$TMP/path" 2>"$TMP/serve.err" ||
		fail "cowd: $(cat "$TMP/serve.err")"
	disk=$(tail -n 1 "$TMP/path")
	[ -b "$disk" ] || fail "cowd made no block device but '$disk'"
	pid=$(status pid)
}

status() {
	cowctl status "$node" --json | jq -r ".$1"
}

kill_9() {
	kill_hard "$(status pid)"
}

nothing_left() {
	[ "$(dmsetup ls)" = "No devices found" ] || fail "nodes are left: $(dmsetup ls)"
	[ ! -e "/dev/mapper/$node" ] || fail "/dev/mapper/$node is left"
	wait_for 10 '[ -z "$(losetup -a)" ]'
	for node_left in "$COW_RUN_DIR/$node" "$COW_RUN_DIR/$node".*; do
		[ ! -e "$node_left" ] || fail "$node_left is left"
	done
}

slice() {
	echo "0 $(($2 << 11)) linear $3 $((${4:-0} << 11))" | dmsetup create "$1"
}

drop() {
	for node_name; do
		dmsetup remove --retry "$node_name" || fail "$node_name cannot be removed"
	done
}

ram_overlay() {
	slice base "$1" /dev/ram0
	slice over $(($1 + $2)) /dev/ram1
	new_overlay
}

new_overlay() {
	payload fill -s "$seed" /dev/mapper/base
	payload zero /dev/mapper/over
	cowimg create -q -f dscow --overwrite -b /dev/mapper/base -F raw /dev/mapper/over
}

bounded() {
	node_limit=$(($(date +%s) + $(patience "$1")))
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
