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

case " $fes " in *' dm '*)
	subtest "dm: a qcow2 image grows under the node, and is not cut off there"
	fe=dm
	conform_make qcow2
	up qcow2 image.qcow2
	payload run -s $conform_seed -n 200 -l ${conform_mib}M -S state "$disk" >"$TMP/payload"
	cowctl resize "$node" 300M
	[ "$(blockdev --getsize64 "$disk")" = 314572800 ] || fail "its size"
	dd if=/dev/urandom of="$TMP/piece" bs=1M count=3 status=none
	dd if="$TMP/piece" of="$disk" bs=1M seek=297 oflag=direct status=none
	expect_fail "cowctl resize $node 100M --shrink" 'can only be made smaller while it is stopped'
	payload verify -s $conform_seed -l ${conform_mib}M -S state "$disk"
	down
	cowimg read -q -f qcow2 -s 297M image.qcow2 - | cmp - "$TMP/piece" || fail "the new end"
	conform_sound qcow2
	;;
esac
nothing_left
