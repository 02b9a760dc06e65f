# SPDX-License-Identifier: GPL-2.0-or-later
#
# The front end ublk: what kind of device it is, who is kept from it and who keeps it,
# its sizes, its end, and above all the end of its daemon: killed again and again under
# load, without an error or a wrong byte for those who use the device.
#
# Kernels without the driver (Debian's 6.1), or with one that is too old for it (before 6.5),
# only have to say so.
# environment: FAULT=full (100 kills), SEED
# TIMEOUT: 1200
. tests/lib/lab-node.sh

kills=8
[ "${FAULT:-quick}" = quick ] || kills=100
size=64
fe=ublk
front_ends ublk
[ -n "${COW_IN_LAB:-}" ] || require_cmd fio strace
node_lab -m 1536 -t 1000 -e FAULT -e SEED
seed=${SEED:-20061}

# WHAT IS WANTED
is() {
	[ "$2" = "$3" ] || fail "$1 is $2, not $3"
}

# ---- without the driver ----

why=
modprobe -q ublk_drv || why='/dev/ublk-control: .*module ublk_drv'
printf '6.5\n%s\n' "$(uname -r)" | sort -CV || why=${why:-"ublk driver is too old"}
if [ -n "$why" ]; then
	subtest "a kernel without the driver, or an old one: a sentence"
	status=0
	cowd --probe=ublk >"$TMP/probe" 2>&1 || status=$?
	is "status of the probe" $status 77
	grep "$why" "$TMP/probe" || fail "said: $(cat "$TMP/probe")"
	truncate -s 1M "$TMP/raw"
	expect_fail "cowd --frontend=ublk -p raw $node $TMP/raw" "front end ublk: .*$why"
	[ ! -e "$COW_RUN_DIR/$node.state" ] || fail "a failed start left $COW_RUN_DIR/$node.state"
	exit 0
fi

# ---- tools ----

kill_daemon() {
	kill -9 "$pid"
	# It has let go of everything when its lock is free; the start waits for that, too.
	wait_for 60 "! kill -0 $pid 2>/dev/null"
}

no_trace() {
	for left in /dev/ublkc* /dev/ublkb* "/dev/mapper/$node" "$COW_RUN_DIR"/* "$COW_RUN_DIR"/.ublk*; do
		[ ! -e "$left" ] || fail "$1 left $left"
	done
	wait_for 10 '! grep -qx cowd-keep /proc/[0-9]*/comm 2>/dev/null'
}

answered() {
	cowctl stats "$node" --openmetrics | awk '/^cowd_ops_total/ { n += $2 } END { print n + 0 }'
}

# What the node lies on: a number is free for the next one only some time after the end of the last.
low() {
	status block_device
}

queue() {	# ATTRIBUTE
	cat "/sys/block/$(basename "$(low)")/queue/$1"
}

img=$TMP/disks/over.dscow
can_resize=no
printf '6.16\n%s\n' "$(uname -r)" | sort -CV && can_resize=yes
at_exit 'cowctl stop --force $node >/dev/null 2>&1; umount -l "$TMP/mnt" "$TMP/disks" 2>/dev/null || true'
mkdir "$TMP/disks" "$TMP/mnt"
mkfs.ext4 -q -F /dev/ram0 && mount /dev/ram0 "$TMP/disks"
truncate -s ${size}M "$TMP/disks/base"
payload fill -s "$seed" "$TMP/disks/base"
# A partition table, which is the guest's: one entry, from sector 2048.
printf '\0\0\0\0\203\0\0\0\0\010\0\0\0\100\0\0' | dd of="$TMP/disks/base" bs=1 seek=446 conv=notrunc status=none
printf '\125\252' | dd of="$TMP/disks/base" bs=1 seek=510 conv=notrunc status=none
sum=$(sha256sum <"$TMP/disks/base")
cowimg create -q -f dscow -b "$TMP/disks/base" -F raw "$img"
echo "seed $seed"

subtest "a device of the right kind"
serve "$img"
is node "$disk" "/dev/mapper/$node"
is "size in sectors" "$(blockdev --getsz "$disk")" $((size * 2048))
is "logical block" "$(queue logical_block_size)" 512
is "physical block" "$(queue physical_block_size)" 4096
is "least good request" "$(queue minimum_io_size)" 4096
is "best request" "$(queue optimal_io_size)" 65536
is "unit of discard" "$(queue discard_granularity)" 4096
is "write cache" "$(queue write_cache)" 'write back'
is FUA "$(queue fua)" 1
queue scheduler | grep -q '\[none\]' || fail "an I/O scheduler: $(queue scheduler)"
is "block size of the node" "$(blockdev --getpbsz "$disk")" 4096
[ "$(sha256sum <"$disk")" = "$sum" ] || fail "the device shows something else than the base"

subtest "partitions of a guest are not looked for"
! blockdev --rereadpt "$(low)" 2>/dev/null || fail "the partition table can be read again"
[ -z "$(ls -d /sys/block/ublkb*/ublkb*p1 2>/dev/null)" ] || fail "the kernel found the guest's partition"
[ -e "$COW_RUN_DIR/.$(basename "$(low)")" ] || fail "nothing tells udev to keep off"

subtest "a file system: written, trimmed, read back"
mkfs.ext4 -q -F "$disk"
mount "$disk" "$TMP/mnt"
mkdir "$TMP/mnt/d"
cp -r daemon formats "$TMP/mnt/d"
head -c 20M /dev/urandom >"$TMP/mnt/big"
sync -f "$TMP/mnt"
before=$(stat -c %b "$img")
rm "$TMP/mnt/big"
sync -f "$TMP/mnt"
fstrim "$TMP/mnt"
after=$(stat -c %b "$img")
[ $((before - after)) -gt 36000 ] || fail "20 MiB trimmed, but the image went from $before to $after sectors"
echo 3 >/proc/sys/vm/drop_caches
diff -r daemon "$TMP/mnt/d/daemon"

subtest "mounted: not stopped"
expect_fail "cowctl stop $node" "$disk is in use: mounted on $TMP/mnt"
umount "$TMP/mnt"

subtest "open: not stopped, be it the node or what is below it"
sleep 1000 <"$disk" &
holder=$!
wait_for 10 "readlink /proc/$holder/fd/0 | grep -q /dev/"
expect_fail "cowctl stop $node" "$disk is in use"
kill $holder
wait $holder 2>/dev/null || true
sleep 1000 <"$(low)" &
holder=$!
wait_for 10 "readlink /proc/$holder/fd/0 | grep -q $(low)"
expect_fail "cowctl stop $node" "$(low) is in use: process $holder has it open"
kill $holder
wait $holder 2>/dev/null || true
e2fsck -fn "$disk" >/dev/null 2>&1 || fail "the node is not what it was before a refused stop"

subtest "killed, and killed again while it is taken up: whoever waits is served in the end"
was=$(low)
kill_daemon
dd if="$disk" of="$TMP/waited" bs=4k count=1 iflag=direct status=none &
waiter=$!
for at in "unlink $COW_RUN_DIR/$node.sock" "mkdir $COW_RUN_DIR/$node" "rename $COW_RUN_DIR/$node.state~"; do
	# shellcheck disable=SC2086
	killed_at $at cowd -f --frontend=ublk -p dscow "$node" "$img"
done
kill -0 $waiter || fail "it did not wait"
serve "$img"
is "device" "$(low)" "$was"
wait $waiter || fail "an error for who waited"
cmp -n 4096 "$TMP/waited" "$disk"

subtest "stopped: nothing is left, the image is sound, the base untouched"
cowctl stop "$node"
no_trace "an orderly end"
check_image "$img"
[ "$(sha256sum <"$TMP/disks/base")" = "$sum" ] || fail "the base changed"

subtest "stopped by force while mounted: what was written is there"
serve "$img"
mount "$disk" "$TMP/mnt"
head -c 1M /dev/urandom >"$TMP/mnt/late"
late=$(sha256sum <"$TMP/mnt/late")
cowctl stop --force "$node"
umount "$TMP/mnt"
wait_for 10 '[ ! -e /dev/mapper/$node ]'
no_trace "a forced end"
serve "$img"
mount "$disk" "$TMP/mnt"
[ "$(sha256sum <"$TMP/mnt/late")" = "$late" ] || fail "a forced end lost what was in the page cache"
umount "$TMP/mnt"
cowctl stop "$node"

subtest "read-only"
cowd --read-only --frontend=ublk -p dscow "$node" "$img" >/dev/null
is "read-only flag" "$(blockdev --getro "/dev/mapper/$node")" 1
is "read-only flag below" "$(blockdev --getro "$(low)")" 1
! dd if=/dev/zero of="/dev/mapper/$node" bs=4k count=1 conv=fsync 2>/dev/null || fail "could be written"
cowctl stop "$node"

subtest "every kind of request against a model"
rm "$img"
payload fill -s "$seed" "$TMP/disks/base"
cowimg create -q -f dscow -b "$TMP/disks/base" -F raw "$img"
serve "$img"
payload run -s "$seed" -n 3000 -S "$TMP/state" "$disk"
payload verify -s "$seed" -S "$TMP/state" "$disk"
cowctl stop "$node"
serve "$img"
payload verify -s "$seed" -S "$TMP/state" "$disk"

# ---- the end of the daemon ----

subtest "no daemon: requests wait, and are answered by the next one"
kill_daemon
dd if="$disk" of="$TMP/waits" bs=64k count=1 iflag=direct 2>"$TMP/dd.err" &
reader=$!
wait_for 20 "grep -q '^State:.*D' /proc/$reader/status"
kill -0 $reader || fail "a read without a daemon did not wait: $(cat "$TMP/dd.err")"
serve "$img"
wait $reader || fail "a request that waited for a daemon failed: $(cat "$TMP/dd.err")"
head -c 64k "$disk" | cmp - "$TMP/waits"

subtest "another image is not put behind the device of a killed daemon"
cowimg create -q -f dscow "$TMP/disks/small.dscow" 32M
was=$(low)
kill_daemon
expect_fail "cowd --log-level=warning --frontend=ublk -p dscow $node $TMP/disks/small.dscow" \
	"$was, which a killed daemon left, has [0-9]* sectors, but the image only 65536"
expect_fail "cowd --log-level=warning --read-only --frontend=ublk -p dscow $node $img" \
	"$was, which a killed daemon left, is writable, but the image is not"
serve "$img"
payload verify -S "$TMP/state" "$disk"

subtest "another front end takes the name: nothing of the device is left"
kill_daemon
cowd --frontend=fuse --no-loop -p dscow "$node" "$img" >/dev/null
for left in /dev/ublkc* /dev/ublkb* "/dev/mapper/$node"; do
	[ ! -e "$left" ] || fail "the other front end left $left"
done
cowctl stop "$node"
no_trace "the other front end"

subtest "sizes"
serve "$img"
if [ $can_resize = yes ]; then
	cowctl resize "$node" $((size + 8))M
	is "new size of the node" "$(blockdev --getsz "$disk")" $(((size + 8) * 2048))
	is "new size below" "$(blockdev --getsz "$(low)")" $(((size + 8) * 2048))
	payload fill -s 5 -f $((size << 20)) -l $((8 << 20)) "$disk"
	cowctl resize "$node" --shrink ${size}M
	is "size after shrinking" "$(blockdev --getsz "$disk")" $((size * 2048))
else
	expect_fail "cowctl resize $node $((size + 8))M" "$(low) is not: this needs Linux 6.16"
	echo "$said"
fi
payload verify -S "$TMP/state" "$disk"
cowctl stop "$node"
rm "$img"

# The same with a model of every request, and with daemons that die while they take over: kill9.sh.
subtest "killed $kills times with every tag in use: no error, no wrong byte"
cowimg create -q -f dscow "$img" ${size}M
serve "$img"
fios() {
	run=0
	while [ ! -e "$TMP/enough" ]; do
		run=$((run + 1))
		fio --name=judge --filename="$disk" --allow_file_create=0 --size=${size}m --io_size=12m \
			--rw=randrw --rwmixwrite=70 --bs=4k --ioengine=libaio --iodepth=256 --direct=1 \
			--randseed=$((seed + run)) --verify=crc32c --verify_fatal=1 --do_verify=1 \
			--verify_state_save=0 >"$TMP/fio" 2>&1 || return 1
		grep -q 'err= 0' "$TMP/fio" || return 1
	done
	echo $run >"$TMP/fios"
}
fios &
judge=$!
n=0
while [ $n -lt $kills ]; do
	n=$((n + 1))
	# Each answers some before its turn comes.
	wait_for 60 "[ \$(answered) -gt $((n * 137 % 1500)) ] || ! kill -0 $judge"
	kill_daemon
	serve "$img"
	kill -0 $judge 2>/dev/null || fail "kill $n: $(tail -n 20 "$TMP/fio")"
done
: >"$TMP/enough"
wait $judge || fail "$(tail -n 20 "$TMP/fio")"
echo "$kills kills, $(cat "$TMP/fios") runs of fio"
cowctl stop "$node"
check_image "$img"
no_trace "the last of them"
