# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 600
#
# Every format as a file that cowd serves (tests/lib/conform.sh).
. tests/lib/test.sh
. tests/lib/conform.sh
require_root
require_fuse
require_cmd qemu-img jq
[ -x "$BUILD/bin/cowd" ] || skip "built without cowd"
[ -x "$BUILD/tests/lab/payload" ] || skip "the load was not built"
export COW_RUN_DIR
cd "$TMP"
PATH=$BUILD/tests/lab:$PATH
at_exit 'cowctl stop --force vm >/dev/null 2>&1; umount -l "$COW_RUN_DIR/vm" 2>/dev/null || true'

up() {	# FORMAT IMAGE
	disk=$(cowd --frontend=fuse -p "$1" vm "$2")
}
down() {
	cowctl stop vm
}
dies() {
	kill_hard "$(cowctl status vm --json | jq .pid)"
}
again() {
	up "$@"
}

for kind in $conform_kinds; do
	subtest "$kind"
	conform "$kind"
done
