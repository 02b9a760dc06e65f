# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 1200
#
# Every format behind every block device front end that this kernel has (tests/lib/conform.sh).
. tests/lib/lab-node.sh
. tests/lib/conform.sh
require_cmd qemu-img
front_ends dm ublk bridge
node_lab -d 512M -m 1536
pick_front_ends
mkfs.ext4 -q /dev/vda
mkdir "$TMP/disk"
mount /dev/vda "$TMP/disk"
cd "$TMP/disk"
at_exit 'cd /; timeout 30 cowctl stop --force "$node" >/dev/null 2>&1; umount -l "$TMP/disk"'

up() {	# FORMAT IMAGE
	serve "$2" "$1"
}
down() {
	cowctl stop "$node"
}
dies() {
	kill_9
}
again() {
	up "$@"
}

for fe in $fes; do
	for kind in $conform_kinds; do
		subtest "$fe: $kind"
		conform "$kind"
	done
done
nothing_left
