# SPDX-License-Identifier: GPL-2.0-or-later
#
# The wrappers of tests/stress on a node that cowd serves, shortly: file systems under load
# and fio with verification. That they can fail is tried on a device that loses writes.
#
# environment: COW_FE (dm ublk bridge), SECONDS_EACH (2; FAULT=full 60)
# TIMEOUT: 3600
. tests/lib/lab-node.sh

each=2
[ "${FAULT:-quick}" != full ] || each=60
each=${SECONDS_EACH:-$each}
size=200
front_ends dm ublk bridge

node_lab -m 2560 -e SECONDS_EACH
pick_front_ends
modprobe ext4
export TMPDIR="$TMP"
at_exit 'timeout 30 cowctl stop --force "$node" >/dev/null 2>&1 || true'

stress() {	# WRAPPER SECONDS
	began=$(date +%s)
	tests/stress/"$1" --overwrite "$disk" "$2" || fail "$fe: tests/stress/$1"
	echo "$1: $(($(date +%s) - began)) s"
}

for fe in $fes; do
	slice base $size /dev/ram0
	slice over $((size + 8)) /dev/ram1
	payload zero /dev/mapper/over
	dd if=/dev/urandom of=/dev/mapper/base bs=1M count=16 status=none
	sum=$(head -c 64M /dev/mapper/base | sha256sum)
	cowimg create -q -f dscow --overwrite -b /dev/mapper/base -F raw /dev/mapper/over
	serve /dev/mapper/over
	for what in fio-verify bonnie dbench fsload; do
		subtest "$fe: $what"
		stress $what "$each"
	done

	subtest "$fe: the image is sound, the base untouched"
	cowctl stop "$node"
	check_image /dev/mapper/over
	[ "$(head -c 64M /dev/mapper/base | sha256sum)" = "$sum" ] || fail "the base changed"
	drop over base
done

subtest "a device that loses writes is seen"
modprobe dm-flakey
dd if=/dev/zero of=/dev/ram0 bs=1M oflag=direct status=none 2>/dev/null || true
echo "0 $((64 << 11)) flakey /dev/ram0 0 0 1 1 drop_writes" | dmsetup create liar
for what in fio-verify dbench; do
	! tests/stress/$what --overwrite /dev/mapper/liar 1 >/dev/null 2>"$TMP/seen" ||
		fail "$what saw nothing"
	grep -q . "$TMP/seen" || fail "$what did not say why"
done

subtest "wrong devices are refused"
expect_fail "tests/stress/bonnie $TMP/none" 'is not a block device$'
slice used 64 /dev/ram1
mkfs.ext4 -q -F /dev/mapper/used
expect_fail "tests/stress/bonnie /dev/mapper/used" 'has ext4 on it, see --overwrite$'
mkdir "$TMP/used"
mount /dev/mapper/used "$TMP/used"
expect_fail "tests/stress/bonnie --overwrite /dev/mapper/used" 'is in use, or read-only$'
umount "$TMP/used"
drop used liar
