# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 900
#
# The bridge, a node over a loop device over a FUSE file, on a stock kernel: made,
# used, resized, killed and taken up again, refused while in use, and nothing left
# of it afterwards; and that udevd, where it runs, keeps off what is in it.
. tests/lib/lab-node.sh
require_cmd dmsetup losetup jq mkfs.ext4 blockdev
lab_self -t 600

cd "$TMP"
R=$COW_RUN_DIR
node=vm
NODE=/dev/mapper/$node
modprobe -a dm-mod loop fuse
at_exit 'umount -l "$TMP/mnt" 2>/dev/null; cowctl stop vm --force >/dev/null 2>&1'
mkdir mnt
truncate -s 64M base.raw
dscow_tool -q -c ov.dscow base.raw

subtest probed
cowd --probe=bridge >probe || fail "this kernel cannot run it: $(cat probe)"
cowd --probe >probe || fail "--probe: status $?"
grep -qx 'bridge  yes  .*' probe || fail "--probe: $(cat probe)"

subtest made
out=$(cowd --frontend=bridge -p dscow vm ov.dscow)
[ "$out" = $NODE ] || fail "printed '$out'"
[ -b $NODE ] || fail "$NODE is no block device"
[ "$(blockdev --getsize64 $NODE)" = 67108864 ] || fail "its size"
[ "$(dmsetup info -c --noheadings -o uuid vm)" = COWD-vm ] || fail "its UUID"
loop=$(status block_device)
[ "$(cat "/sys/block/${loop#/dev/}/loop/backing_file")" = "$R/vm/disk" ] || fail "its loop device"
[ "$(cat "/sys/block/${loop#/dev/}/loop/dio")" = 1 ] || fail "the loop device caches what we cache"
[ "$(status frontend) $(status device)" = "bridge $NODE" ] || fail "status: $(cowctl status vm)"
[ "$(cowctl list --json | jq -r '.devices[0].device')" = $NODE ] || fail "list: $(cowctl list)"

subtest used as a disk
mkfs.ext4 -q $NODE
cmp $NODE "$R/vm/disk" || fail "node and file differ"
mount $NODE mnt
dd if=/dev/urandom of=mnt/data bs=64k count=100 status=none
sha256sum mnt/data >sum
sync -f mnt
fstrim mnt || fail "discards do not get through"

subtest a stop is refused while it is in use, and changes nothing
expect_fail 'cowctl stop vm' "^cowctl: vm: $NODE is in use: mounted on $TMP/mnt\$"
umount mnt
exec 8<$NODE
expect_fail 'cowctl stop vm' "^cowctl: vm: $NODE is in use: a process has it open\$"
exec 8<&-
exec 8<"$loop"
expect_fail 'cowctl stop vm' "$loop is in use: a process has it open\$"
exec 8<&-
[ -b $NODE ] || fail "the node is gone after a refused stop"
exec 8<"$R/vm/info.json"
expect_fail 'cowctl stop vm' "$R/vm is in use: a process has a file below it open\$"
exec 8<&-
mount $NODE mnt
sha256sum -c --quiet sum || fail "a refused stop broke the device"

subtest resized under a mounted file system
cowctl resize vm 128M
[ "$(blockdev --getsize64 $NODE)" = 134217728 ] || fail "not larger"
resize2fs -p $NODE >/dev/null 2>&1 || fail "resize2fs"
dd if=/dev/urandom of=mnt/more bs=1M count=70 conv=fsync status=none || fail "the new space"
rm mnt/more

subtest resized while it is written to
(while [ ! -e enough ]; do
	dd if=/dev/zero of=mnt/load bs=4k count=200 oflag=direct conv=notrunc status=none
done) &
writer=$!
for mib in 129 130 131 132 133 134 135 136; do
	cowctl resize vm ${mib}M
	[ "$(blockdev --getsize64 $NODE)" = $((mib << 20)) ] || fail "not $mib MiB"
done
: >enough
wait $writer
rm enough mnt/load

subtest a view is not mounted on the device itself
mkdir mnt/dir
expect_fail "cowctl mount vm $TMP/mnt/dir" 'is on this very device'

subtest killed, and taken up again while it is mounted
echo acknowledged >mnt/word
sync -f mnt
kill_9
echo 3 >/proc/sys/vm/drop_caches
! cat mnt/data >/dev/null 2>&1 || fail "this shows nothing: no error without a daemon"
[ "$(cowctl list --json | jq -r '.devices[0] | .state + " " + .device')" = "dead $NODE" ] ||
	fail "list: $(cowctl list)"
out=$(cowd -p dscow vm ov.dscow 2>again.err) || fail "$(cat again.err)"
[ "$out" = $NODE ] || fail "printed '$out'"
[ "$(status frontend)" = bridge ] || fail "another front end"
[ "$(cat mnt/word)" = acknowledged ] || fail "an acknowledged write is lost"
sha256sum -c --quiet sum || fail "other contents"
[ "$(losetup -nl | wc -l)" = 1 ] || fail "loop devices pile up: $(losetup -a)"
umount mnt

subtest killed, and started with another front end
kill_9
out=$(cowd --frontend=fuse -p dscow vm ov.dscow 2>again.err) || fail "$(cat again.err)"
[ "$out" = "$(status block_device)" ] || fail "printed '$out'"
[ ! -e $NODE ] || fail "the node of the dead one is still there"
mount -o ro,noload "$out" mnt
[ "$(cat mnt/word)" = acknowledged ] || fail "an acknowledged write is lost"
umount mnt
cowctl stop vm
nothing_left

subtest killed, and what cannot start leaves it for who can
cowd --frontend=bridge -p dscow vm ov.dscow >/dev/null
mount -o ro $NODE mnt		# nothing of its own that the kernel would write meanwhile
kill_9
umount -l "$R/vm"
expect_fail 'cowd -p dscow vm missing.dscow' 'missing.dscow: No such file'
[ -b $NODE ] || fail "the node is gone"
cowd --frontend=bridge -p dscow vm ov.dscow >/dev/null 2>again.err || fail "$(cat again.err)"
[ "$(cat mnt/word)" = acknowledged ] || fail "an acknowledged write is lost"
umount mnt
mount $NODE mnt

subtest stopped by force while it is mounted
echo last >mnt/last
cowctl stop vm --force || fail "stop --force"
! echo x 2>/dev/null >mnt/x || ! sync -f mnt 2>/dev/null || fail "this shows nothing: still served"
umount mnt
nothing_left

subtest read-only
cowd -r --frontend=bridge -p dscow vm ov.dscow >/dev/null
[ "$(blockdev --getro $NODE)" = 1 ] || fail "the node can be written"
mount -o ro,noload $NODE mnt
umount mnt
cowctl stop vm
nothing_left

subtest what was written before the force is there
cowd --frontend=bridge -p dscow vm ov.dscow >/dev/null
mount $NODE mnt
[ "$(cat mnt/last)" = last ] || fail "lost"
umount mnt

subtest SIGTERM
p=$(status pid)
kill "$p"
wait_for 20 '[ ! -e "/proc/'"$p"'" ]'
nothing_left

subtest a node of somebody else under that name
echo '0 8 zero' | dmsetup create vm
expect_fail 'cowd --frontend=bridge -p dscow vm ov.dscow' '/dev/mapper/vm exists already and is not ours'
dmsetup table vm | grep -q '^0 8 zero' || fail "it was touched"
dmsetup remove vm
nothing_left
expect_fail 'cowd --frontend=bridge -p dscow control ov.dscow' 'control node of device-mapper'
expect_fail 'cowd --frontend=dm -p dscow vm ov.dscow' '^cowd: front end dm: '
nothing_left
long=n123456789012345678901234567890123456789012345678901234567890.+-
out=$(cowd --frontend=bridge -p dscow $long ov.dscow)
[ -b "/dev/mapper/$long" ] && [ "$out" = "/dev/mapper/$long" ] || fail "a long name: '$out'"
cowctl stop $long
nothing_left

subtest of itself it is taken before FUSE alone
cowd --log-level=debug -p raw vm base.raw >path 2>log
case $(status frontend) in
dm | ublk | bridge) ;;
*) fail "chose $(status frontend): $(cat log)" ;;
esac
cowctl stop vm
nothing_left

udevd=/lib/systemd/systemd-udevd
if [ ! -x $udevd ]; then
	echo "# no udevd here: not shown how it is kept off"
	exit 0
fi
subtest with udevd: a node that it makes, and whose contents it leaves alone
unset DM_DISABLE_UDEV
cp "$OLDPWD/contrib/udev/12-cowd.rules" /usr/lib/udev/rules.d/
$udevd --daemon
at_exit 'udevadm control --exit 2>/dev/null || true'
mkdir /run/cowd
COW_RUN_DIR=/run/cowd R=/run/cowd
mkfs.ext4 -q -L guest -F base.raw
properties() {
	udevadm settle
	udevadm info -q property "$1"
}
cowd --frontend=bridge -p raw vm base.raw >/dev/null
[ -L $NODE ] || fail "udevd did not make $NODE"
# Also after an event of which cowd knows nothing.
for times in 1 2; do
	properties $NODE >prop
	grep -qx DM_NAME=vm prop || fail "udevd does not know it: $(cat prop)"
	! grep ^ID_FS prop || fail "udevd looked into the node"
	properties "$(status block_device)" >prop
	! grep ^ID_FS prop || fail "udevd looked into the loop device"
	udevadm trigger -c change $NODE "$(status block_device)"
done
[ ! -e /dev/disk/by-label/guest ] || fail "a guest's label is a name on this machine"
cowctl stop vm
nothing_left

subtest with udevd: and looks into it where that was asked for
cowd --scan --frontend=bridge -p raw vm base.raw >/dev/null
for times in 1 2; do
	properties $NODE >prop
	grep -qx ID_FS_LABEL=guest prop || fail "udevd did not look into the node: $(cat prop)"
	udevadm trigger -c change $NODE
done
[ -e /dev/disk/by-label/guest ] || fail "no name by its label"
cowctl stop vm
nothing_left
dev=$(cowd --scan --frontend=fuse -p raw vm base.raw)
properties "$dev" | grep -qx ID_FS_LABEL=guest || fail "udevd did not look into the loop device"
cowctl stop vm
nothing_left

subtest udevd ends, or dies, while a device runs
cowd --frontend=bridge -p raw vm base.raw >/dev/null
udevadm control --exit
wait_for 20 '! pidof systemd-udevd >/dev/null'
cowctl stop vm || fail "stop"
nothing_left
$udevd --daemon
cowd --frontend=bridge -p raw vm base.raw >/dev/null
udevadm settle
kill -9 $(pidof systemd-udevd)
cowctl stop vm || fail "stop"
nothing_left
