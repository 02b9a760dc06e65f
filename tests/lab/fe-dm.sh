# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 1200
#
# The device-mapper front end with the target "userspace": what the node is made of,
# a file system on it, contents against a plain file to which the same is done, chains
# of every shape that it takes and what it refuses, pause, resize, views, taking up
# after a kill, stop. Long loads, kills under load, power cuts and failing disks:
# kill9.sh, crash.sh, faults.sh.
. tests/lib/lab-node.sh
require_cmd dmsetup losetup jq mkfs.ext4 blockdev cmp fstrim

# The module as it was before reports could have places.
older=$BUILD/kmod/older
if [ -z "${COW_IN_LAB:-}" ]; then
	lab_require
	rm -rf "$older"
	mkdir -p "$older"
	cp -R kernel-compat/. "$older"
	sed -i '/define DMU_FEATURES/s/ | DMU_F_PLACES//' "$older/uapi/linux/dm-userspace.h"
	tests/lab/kmod -s "$older" "$lab_kernel" >"$older/file" || fail "no older module for kernel $lab_kernel"
fi
lab_self --module -d 768M -m 1024 -t 900

node=vm
NODE=/dev/mapper/$node
R=$COW_RUN_DIR
modprobe -a dm-mod loop fuse brd
mkfs.ext4 -q /dev/vda
mkdir /run/disk "$TMP/mnt" "$TMP/view"
mount /dev/vda /run/disk
cd /run/disk
at_exit 'cd /; umount -l "$TMP/mnt" "$TMP/view" 2>/dev/null; cowctl stop vm --force >/dev/null 2>&1; umount -l /run/disk'

up() {	# [OPTION of cowd]...
	out=$(cowd --frontend=dm -p dscow "$@" vm "$image") || fail "cowd: status $?"
	[ "$out" = $NODE ] || fail "printed '$out'"
	[ -b $NODE ] || fail "$NODE is no block device"
}
sound() {	# IMAGE
	cowimg check -q -f dscow "$1" || fail "$1 is not sound"
}
same() {	# WHAT
	blockdev --flushbufs $NODE
	cmp $NODE model || fail "$1: the node differs from the model"
}
# dd with these words on the node and on the model, past the page cache on the node.
both() {
	dd "$@" of=$NODE oflag=direct conv=notrunc status=none || fail "dd $*"
	dd "$@" of=model conv=notrunc status=none
}
# Writes of odd places and lengths: inside granules, over their ends, whole ones.
scribble() {	# MIB of the node
	head -c 300000 /dev/urandom >junk
	for place in 1:3 8:8 13:40 100:1 127:2 4095:600 $(($1 * 2048 - 9)):9; do
		dd if=junk of=part bs=512 count=$((${place#*:})) status=none
		both if=part bs=512 seek=$((${place%:*})) 
	done
}

subtest probed and preferred
cowd --probe=dm
dd if=/dev/urandom of=base.raw bs=1M count=40 status=none
cp base.raw model
cowimg create -q -f dscow -b base.raw -F raw over.dscow
out=$(cowd -p dscow vm over.dscow)
[ "$out $(status frontend)" = "$NODE dm" ] || fail "took $(status frontend)"
cowctl stop vm

subtest what it is made of
image=over.dscow
up
[ "$(dmsetup table vm)" = "0 81920 userspace vm 65536 granule:4096 writable:1 7:0 7:1" ] ||
	fail "table: $(dmsetup table vm)"
[ "$(dmsetup info -c --noheadings -o uuid vm)" = COWD-vm ] || fail "its UUID"
for n in 0 1; do
	[ "$(cat /sys/block/loop$n/loop/dio)" = 1 ] || fail "loop$n caches"
	[ "$(cat /sys/block/loop$n/loop/autoclear)" = 1 ] || fail "loop$n would stay"
	[ "$(cat /sys/block/loop$n/ro)" = $n ] || fail "loop$n: ro"
done
[ "$(cat /sys/block/loop0/loop/backing_file)" = /run/disk/over.dscow ] || fail "lower name of the overlay"
[ "$(status 'kernel.devices[1].kind')" = "loop device, direct" ] || fail "status: $(cowctl status vm)"
locked=$(awk '$1 == "VmLck:" { print $2 }' "/proc/$(status pid)/status")
[ "$locked" -gt 0 ] || fail "its memory is not locked"

subtest reads and writes
same "fresh"
scribble 40
same "scribbled"
dd if=/dev/zero of=$NODE bs=1M count=2 seek=10 oflag=direct conv=fsync status=none
dd if=/dev/zero of=model bs=1M count=2 seek=10 conv=notrunc status=none
same "zeroed"
# A question or two a section, however much is read and written in it.
[ "$(status kernel.asked)" -le 4 ] || fail "asked $(status kernel.asked) times for 2 sections"
asked=$(status kernel.asked)
blkdiscard -o 20971520 -l 3145728 $NODE
blkdiscard -z -o 33034240 -l 1052672 $NODE	# over the end of a section
dd if=/dev/zero of=model bs=1M count=3 seek=20 conv=notrunc status=none
dd if=/dev/zero of=model bs=4096 count=257 seek=8065 conv=notrunc status=none
same "discarded"
[ "$(status kernel.changes)" -gt 0 ] || fail "the daemon heard of no discard"
[ "$(status kernel.commits)" -gt 0 ] || fail "the daemon heard of no flush"
[ "$(status kernel.asked)" = "$asked" ] || fail "what was remembered was asked again"

subtest 'a stop is refused while it is in use, and changes nothing'
exec 8<$NODE
expect_fail 'cowctl stop vm' "^cowctl: vm: $NODE is in use: a process has it open\$"
exec 8<&-
same "after a refused stop"

subtest a view is as new as the last flush
both if=junk bs=4096 count=3 seek=700
sync $NODE
cowctl mount vm "$TMP/view"
cmp "$TMP/view/disk" model || fail "the view differs"
both if=junk bs=4096 count=5 seek=701
sync $NODE
cmp "$TMP/view/disk" model || fail "the view is old"
expect_fail "echo x 2>&1 >>$TMP/view/disk || { echo refused >&2; false; }" refused
cowctl umount vm "$TMP/view"

subtest stopped, and at rest what was served
cowctl stop vm
nothing_left
sound over.dscow
cowimg read -q -f dscow over.dscow - | cmp - model || fail "the image differs from what was served"
rm -f flat

subtest a file system
up
mkfs.ext4 -q $NODE
mount $NODE "$TMP/mnt"
expect_fail 'cowctl stop vm' "^cowctl: vm: $NODE is in use: (mounted on $TMP/mnt|a process has it open)\$"
dd if=/dev/urandom of="$TMP/mnt/data" bs=64k count=150 conv=fsync status=none
sha256sum "$TMP/mnt/data" >sum
fstrim "$TMP/mnt"
echo 3 >/proc/sys/vm/drop_caches
sha256sum -c --quiet sum

subtest 'paused: nothing moves; resumed: it goes on'
cowctl pause vm
[ "$(dmsetup info -c --noheadings -o suspended vm)" = Suspended ] || fail "not suspended"
dd if=$NODE of=/dev/null bs=4096 count=1 iflag=direct status=none &
reader=$!
cowctl flush vm
kill -0 $reader || fail "a read got through a pause"
cowctl resume vm
wait $reader || fail "the read that waited failed"
sha256sum -c --quiet sum

subtest killed and taken up again under a mounted file system
echo 3 >/proc/sys/vm/drop_caches
sha256sum -c --quiet sum	# remembered from here on
kill_9
[ "$(dmsetup status vm | cut -d' ' -f6)" = none ] || fail "a daemon is still attached"
dd if=$NODE of=/dev/null bs=1M count=16 iflag=direct status=none ||
	fail "what is remembered is not served without a daemon"
# Either may wait for the next daemon: the journal's own flush can come before the copy's end.
(cp "$TMP/mnt/data" "$TMP/mnt/copy" && sync "$TMP/mnt/copy") &
syncer=$!
sleep 1
up
wait $syncer || fail "a copy failed over a kill"
cmp "$TMP/mnt/data" "$TMP/mnt/copy"
umount "$TMP/mnt"
fsck.ext4 -fn $NODE >/dev/null 2>&1 || fail "the file system is damaged"
[ "$(losetup -l --noheadings | wc -l)" = 2 ] || fail "loop devices were made again"
cowctl stop vm
nothing_left
sound over.dscow

subtest killed while paused
up
cowctl pause vm
kill_9
up
[ "$(dmsetup info -c --noheadings -o suspended vm)" = Active ] || fail "still suspended"
dd if=$NODE of=/dev/null bs=1M count=1 iflag=direct status=none

subtest 'nobody else writes to what the node of a killed daemon lives on'
kill_9
for command in 'cowimg check -q -f dscow over.dscow' 'cowimg zero -q -f dscow -l 4K over.dscow' \
	'cowd --frontend=fuse --log-level=error -p dscow other over.dscow' \
	'cowimg zero -q -f raw -l 4K base.raw'; do
	expect_fail "$command" '(over.dscow|base.raw): in use by another process'
done
! qemu-io -f raw -c 'write 0 512' over.dscow >"$TMP/said" 2>&1 || fail "QEMU wrote to the overlay"
grep -q 'Failed to get .*lock' "$TMP/said" || fail "QEMU says: $(cat "$TMP/said")"
cowimg info -f raw base.raw >/dev/null || fail "the base cannot be read"
up
dd if=$NODE of=/dev/null bs=1M count=1 iflag=direct status=none

subtest taken up only over its own files
cp over.dscow other.dscow
kill_9
expect_fail 'cowd --frontend=dm --log-level=error -p dscow vm other.dscow' \
	"$NODE, left by a killed daemon, is of something else \(/dev/loop0 is not over "
expect_fail 'cowd --frontend=dm --log-level=error -r -p dscow vm over.dscow' "is of something else \(it is writable\)"
[ -b $NODE ] || fail "a refusal took the node away"
mv over.dscow moved.dscow
image=moved.dscow
up
cowctl stop vm
nothing_left
mv moved.dscow over.dscow
image=over.dscow

subtest a chain of three, granules of different sizes, an end within a sector
rm -f over.dscow other.dscow
truncate -s $((34 * 1048576 + 1000)) base.raw
cp base.raw model
truncate -s 36M model
cowimg create -q -f dscow -b base.raw -F raw -o granule_size=4K mid.dscow 36M
head -c 100000 /dev/urandom >junk
cowimg write -q -f dscow -s 5000 mid.dscow junk
dd if=junk of=model bs=1000 seek=5 conv=notrunc status=none
cowimg create -q -f dscow -b mid.dscow -F dscow -o granule_size=16K over.dscow
up
same "three layers"
scribble 36
same "three layers, scribbled"
[ "$(status kernel.copied_up_granules)" -gt 0 ] || fail "nothing was ragged"
cowctl stop vm
nothing_left
cowimg read -q -f dscow over.dscow - | cmp - model || fail "three layers at rest"

subtest killed, and the image cannot tell what was given out
# Version 2 has no place for that: what the kernel was told is forgotten, lest it be given out twice.
for format in 'qcow2 -o compat=0.10' qcow; do
	cowimg create -q --overwrite -f $format old.img 8M
	cowd --frontend=dm -p ${format%% *} vm old.img >/dev/null
	dd if=base.raw of=$NODE bs=4k count=1 oflag=direct conv=notrunc status=none
	kill_9
	cowd --frontend=dm -p ${format%% *} vm old.img >/dev/null
	dd if=base.raw of=$NODE bs=64k seek=8 skip=8 count=1 oflag=direct conv=notrunc,fsync status=none
	dd if=base.raw of=$NODE bs=4k skip=100 count=1 oflag=direct conv=notrunc,fsync status=none
	cowctl stop vm
	cowimg check -q -f ${format%% *} old.img || [ $? = 3 ] || fail "$format: damaged"
	cowimg read -q -f ${format%% *} -s 512K -l 64K old.img - | cmp -n 65536 -i 0:512K - base.raw ||
		fail "$format: a place was given out twice"
	cowimg read -q -f ${format%% *} -l 4K old.img - | cmp -n 4096 -i 0:400K - base.raw || fail "$format: is not recorded"
	rm old.img
done

subtest read-only
expect_fail 'cowd --frontend=dm -r -p dscow vm over.dscow' \
	'base.raw: ends within a block of its device, and the device on top is read-only'
head -c 10M base.raw >even.raw
cp even.raw model
cowimg create -q -f dscow -b even.raw -F raw -o granule_size=16K even.dscow
cowimg write -q -f dscow -s 50000 even.dscow junk
dd if=junk of=model bs=1000 seek=50 conv=notrunc status=none
image=even.dscow
up -r
[ "$(blockdev --getro $NODE)" = 1 ] || fail "the node is writable"
same "read-only"
expect_fail "dd if=junk of=$NODE bs=512 count=1 oflag=direct status=none" 'dd: .*'
cowctl stop vm
nothing_left
image=over.dscow

subtest raw alone, from an offset
cp base.raw raw.img
truncate -s 10M raw.img
out=$(cowd --frontend=dm -p raw -o offset=1M vm raw.img)
tail -c +1048577 raw.img >model
same "raw"
scribble 9
same "raw, scribbled"
[ "$(status kernel.written_records)" = 0 ] || fail "new granules in a raw image"
cowctl stop vm
nothing_left
tail -c +1048577 raw.img | cmp - model || fail "raw at rest"

subtest images on block devices
cp base.raw /run/base.cut
truncate -s 34M /run/base.cut
dd if=/run/base.cut of=/dev/ram0 bs=1M conv=fsync status=none
dd if=/dev/urandom of=/dev/ram1 bs=1M count=40 conv=fsync status=none
dmsetup create low --table "0 $((34 * 2048)) linear /dev/ram0 0"
cp /run/base.cut model
cowimg create -q -f dscow --overwrite -b /dev/mapper/low -F raw /dev/ram1
image=/dev/ram1
up
[ -z "$(losetup -a)" ] || fail "a loop device over a block device"
# What the page cache of the device holds of old places must not be seen, or written back.
same "block devices"
scribble 34
blkdiscard -z -o 4194304 -l 1048576 $NODE
dd if=/dev/zero of=model bs=1M count=1 seek=4 conv=notrunc status=none
sync $NODE	# a view is as new as the last flush
cowctl mount vm "$TMP/view"
cmp "$TMP/view/disk" model || fail "a view over block devices"
both if=junk bs=4096 count=20 seek=1030
sync $NODE
cmp "$TMP/view/disk" model || fail "a view over block devices is old"
cowctl umount vm "$TMP/view"
same "block devices, scribbled"
kill_9
expect_fail 'cowimg zero -q -f dscow -l 4K /dev/ram1' '/dev/ram1: in use by the kernel'
expect_fail 'cowd --frontend=fuse --log-level=error -p dscow other /dev/ram1' '/dev/ram1: in use by the kernel'
up
same "block devices, taken up"
cowctl stop vm
sync
same_at_rest=$(cowimg read -q -f dscow /dev/ram1 - | cmp - model && echo yes)
[ "$same_at_rest" = yes ] || fail "block devices at rest"
[ "$(dmsetup ls | cut -f1)" = low ] || fail "nodes are left"
dmsetup remove low
image=over.dscow

subtest what it does not take
expect_fail 'cowd --frontend=dm -p raw vm base.raw' 'base.raw: its size is no multiple of its device.s block'
expect_fail 'cowd --frontend=dm -p zero vm 64M' 'cannot be told where its data is|cannot'
expect_fail 'cowd --frontend=dm -r -p raw vm base.raw' 'no multiple'
dmsetup create vm --notable
expect_fail "cowd --frontend=dm -p dscow vm over.dscow" '.'
dmsetup remove vm
[ -z "$(losetup -a)" ] || fail "a failed start left loop devices"
nothing_left

subtest resized under a mounted file system
rm -f over.dscow
dd if=/dev/urandom of=base.raw bs=1M count=20 status=none
cowimg create -q -f dscow -b base.raw -F raw over.dscow
up
mkfs.ext4 -q $NODE
mount $NODE "$TMP/mnt"
dd if=/dev/urandom of="$TMP/mnt/data" bs=64k count=50 conv=fsync status=none
sha256sum "$TMP/mnt/data" >sum
cowctl resize vm 64M
[ "$(blockdev --getsize64 $NODE)" = 67108864 ] || fail "not larger"
resize2fs $NODE >/dev/null 2>&1 || fail "resize2fs"
dd if=/dev/urandom of="$TMP/mnt/more" bs=1M count=35 conv=fsync status=none || fail "the new space"
sha256sum -c --quiet sum
umount "$TMP/mnt"
fsck.ext4 -fn $NODE >/dev/null 2>&1 || fail "the file system is damaged"
cowctl resize vm 40M --shrink
[ "$(blockdev --getsize64 $NODE)" = 41943040 ] || fail "not smaller"
dd if=$NODE of=/dev/null bs=1M iflag=direct status=none || fail "its end cannot be read"
cowctl stop vm
nothing_left
sound over.dscow

subtest removed by somebody else
up
dmsetup remove vm
wait_for 20 '[ ! -e "$R/vm.sock" ]'
nothing_left
sound over.dscow

subtest writes that were given up reach no other image
rm -f over.dscow
cowimg create -q -f dscow -b base.raw -F raw over.dscow
cowimg create -q -f dscow -b base.raw -F raw other.dscow
cp base.raw model
up
dd if=$NODE of=/dev/null bs=1M iflag=direct status=none	# the kernel knows all sections
pid=$(status pid)
kill -STOP "$pid"
dd if=/dev/urandom of=$NODE bs=64k seek=3 count=20 oflag=direct status=none
[ "$(dmsetup status vm | cut -d ' ' -f 12)" = 1 ] || fail "nothing is left to record: $(dmsetup status vm)"
below=$(losetup -nl -O NAME -j "$PWD/over.dscow")
kill_hard "$pid"
dmsetup remove vm
image=other.dscow
up
[ "$(losetup -nl -O NAME -j "$PWD/other.dscow")" = "$below" ] || fail "not the loop device of before"
same "after another image's writes were given up"
cowctl stop vm
sound other.dscow
cowimg read -q -f dscow other.dscow - | cmp - base.raw || fail "the image at rest"
rm other.dscow
image=over.dscow

subtest with a module that is too old
rmmod dm-userspace
insmod "$(cat "$older/file")"
expect_fail 'cowd --frontend=dm -p dscow vm over.dscow' 'module dm-userspace that is loaded is older'
nothing_left
[ -z "$(losetup -a)" ] || fail "it left loop devices"
rmmod dm-userspace
