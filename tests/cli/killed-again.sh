# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 120
#
# A daemon that takes over from a killed one, and is killed in the middle of that: at
# each point its successor still knows what the first one left. strace does the killing.
. tests/lib/test.sh
require_root
require_fuse
require_loop
require_cmd strace jq
[ -z "${SAN:-}" ] || skip "strace does not go with sanitizers"

cd "$TMP"
R=$COW_RUN_DIR
at_exit 'timeout 20 cowctl stop vm --force >/dev/null 2>&1'
truncate -s 4M base.raw
dscow_tool -q -c ov.dscow base.raw

left() {	# what is known of vm
	cowctl list --json | jq -r '.devices[] | select(.name == "vm") | .state + " " + .device'
}

dev=$(cowd --frontend=fuse -p dscow vm ov.dscow)
printf written | dd of="$dev" bs=512 seek=7 conv=notrunc,fsync,sync status=none
kill -9 "$(cowctl status vm --json | jq .pid)"
wait_for 10 '[ "$(left)" = "dead $dev" ]'

for at in "unlink $R/vm.sock" "mkdir $R/vm" "rename $R/vm.state~"; do
	subtest "killed at $at"
	# shellcheck disable=SC2086
	killed_at $at cowd -f --frontend=fuse -p dscow vm ov.dscow
	wait_for 10 '[ "$(left | cut -d " " -f 1)" = dead ]'
	grep -qx 'frontend fuse' "$R/vm.state" || fail "what it left is forgotten: $(cat "$R/vm.state")"
done

subtest "the next one that lives finds all of it"
dev=$(cowd --frontend=fuse -p dscow vm ov.dscow)
dd if="$dev" bs=512 skip=7 count=1 status=none | grep -q written || fail "a write is lost"
[ "$(losetup -nl -O BACK-FILE | grep -c "$R/vm/disk")" = 1 ] || fail "a loop device is left: $(losetup -a)"
cowctl stop vm
for f in "$R/vm" "$R/vm".*; do
	[ ! -e "$f" ] || fail "$f is left"
done
