# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 300
#
# cowd's life with a device: started, used through the loop device and the
# file, killed, started again, stopped; and what it refuses in one sentence
# without leaving anything behind.
. tests/lib/test.sh
require_root
require_fuse
require_loop
require_cmd mkfs.ext4 blockdev jq

cd "$TMP"
R=$COW_RUN_DIR
at_exit 'umount -l "$TMP/mnt" "$TMP/small" 2>/dev/null; for s in "$R"/*.sock; do
	[ ! -e "$s" ] || timeout 20 cowctl stop "$(basename "$s" .sock)" --force >/dev/null 2>&1
done'
mkdir mnt small
truncate -s 32M base.raw
mkfs.ext4 -q base.raw
sha256sum base.raw >base.sha
dscow_tool -c ov.dscow base.raw >/dev/null

# What is said of loop devices here is true of this front end; the others are tried by
# tests/lab.
cowd() {
	command cowd --frontend=fuse "$@"
}
state() {	# NAME: as the list says
	cowctl list --json | jq -r ".devices[] | select(.name == \"$1\") | .state"
}
pid() {
	cowctl status "$1" --json | jq .pid
}
kill_9() {	# NAME, and waits for the process to be gone, as a service manager does
	kill_hard "$(pid "$1")"
	wait_for 10 '[ "$(state '"$1"')" = dead ]'
}
nothing_left() {	# NAME
	for f in "$R/$1" "$R/$1.sock" "$R/$1.state" "$R/$1.lock"; do
		[ ! -e "$f" ] || fail "$f was left behind"
	done
	! grep -qs " $R/$1 " /proc/self/mounts || fail "$R/$1 is still mounted"
	! grep -qsx "$R/$1/disk" /sys/block/loop*/loop/backing_file || fail "a loop device is left"
}

subtest the path of a usable device is printed
dev=$(cowd -p dscow vm ov.dscow)
[ -b "$dev" ] || fail "printed '$dev', which is no block device"
[ "$(blockdev --getsize64 "$dev")" = 33554432 ] || fail "wrong size"
[ "$(cat "/sys/block/${dev#/dev/}/loop/backing_file")" = "$R/vm/disk" ] || fail "not over the file"
cmp "$dev" base.raw || fail "does not read as its base"
cmp "$R/vm/disk" base.raw || fail "the file does not read as the base"
[ "$(stat -c %a "$R/vm.sock")" = 600 ] || fail "others may open the control socket"

subtest writes through the device and the file are seen by both, not by the base
printf through-the-device | dd of="$dev" bs=512 seek=100 conv=notrunc,fsync,sync status=none
dd if="$R/vm/disk" bs=512 skip=100 count=1 status=none | grep -q through-the-device || fail "file"
printf through-the-file | dd of="$R/vm/disk" bs=512 seek=200 conv=notrunc,fsync,sync status=none
dd if="$dev" bs=512 skip=200 count=1 iflag=direct status=none | grep -q through-the-file || fail "device"
sha256sum -c --quiet base.sha || fail "the base changed"

subtest name in use, image in use
expect_fail 'cowd -p dscow vm ov.dscow' 'vm: the name is in use by a running cowd$'
expect_fail 'cowd -p raw -r vm base.raw' 'vm: the name is in use'
expect_fail 'cowd -p dscow other ov.dscow' 'ov.dscow.*(lock|use)'
nothing_left other
[ "$(state vm)" = running ] || fail "the first one was disturbed"

subtest kill -9, then the same name again
mount "$dev" mnt
echo written >mnt/file
sync -f mnt/file
kill_9 vm
expect_fail 'cowctl status vm' 'vm.* is dead'
umount mnt
dev2=$(cowd -p dscow vm ov.dscow 2>again.err) || fail "does not start again: $(cat again.err)"
[ "$(grep -c " $R/vm " /proc/self/mounts)" = 1 ] || fail "mounts pile up"
[ "$(grep -sx "$R/vm/disk" /sys/block/loop*/loop/backing_file | wc -l)" = 1 ] || fail "loops pile up"
# Seen from outside, what hung on the dead mount is now "/disk".
[ "$(cat "/sys/block/${dev#/dev/}/loop/backing_file" 2>/dev/null)" != /disk ] ||
	fail "the dead loop device is still attached"
mount "$dev2" mnt
[ "$(cat mnt/file)" = written ] || fail "an acknowledged write was lost"
umount mnt

subtest kill -9 with nothing else, twice, in the foreground too
kill_9 vm
"$BUILD/bin/cowd" --frontend=fuse -f -p dscow vm ov.dscow >fg.out 2>fg.err &
fg=$!
wait_for 20 '[ -s fg.out ]'
[ -b "$(cat fg.out)" ] || fail "printed '$(cat fg.out)'"
[ "$(pid vm)" = $fg ] || fail "not in the foreground"
kill -TERM $fg
wait $fg || fail "SIGTERM: exit status $?: $(cat fg.err)"
nothing_left vm

subtest kill -9, and somebody takes the dead mount away
dev=$(cowd -p dscow vm ov.dscow)
kill_9 vm
umount -l "$R/vm"
[ "$(cat "/sys/block/${dev#/dev/}/loop/backing_file")" = /disk ] || fail "not what this is about"
cowd -p dscow vm ov.dscow >/dev/null 2>&1 || fail "does not start again"
[ "$(cat "/sys/block/${dev#/dev/}/loop/backing_file" 2>/dev/null)" != /disk ] ||
	fail "the dead loop device is still attached"
cowctl stop vm
nothing_left vm

subtest stop leaves nothing behind
cowd -p dscow vm ov.dscow >/dev/null
p=$(pid vm)
cowctl stop vm || fail "stop"
nothing_left vm
wait_for 10 '! kill -0 '$p' 2>/dev/null'
cowimg check -f dscow ov.dscow >/dev/null || fail "check"
! cowimg info -f dscow ov.dscow | grep -i '^ *state:.*dirty' || fail "not closed cleanly"

subtest stop is refused while the device is in use
dev=$(cowd -p dscow vm ov.dscow)
mount "$dev" mnt
expect_fail 'cowctl stop vm' "vm: $dev is in use: mounted on $TMP/mnt\$"
umount mnt
exec 8<"$dev"
expect_fail 'cowctl stop vm' "vm: $dev is in use: a process has it open\$"
exec 8<&-
exec 8<"$R/vm/info.json"
expect_fail 'cowctl stop vm' "vm: $R/vm is in use: a process has a file below it open\$"
exec 8<&-
dev=$(cowctl status vm --json | jq -r .device)
[ -b "$dev" ] || fail "a refused stop took the loop device away"
cmp "$dev" "$R/vm/disk" || fail "a refused stop broke the device"
echo more >"$TMP/word"
mount "$dev" mnt
cp word mnt/more

subtest stop --force stops all the same, and loses nothing that was in the file system
cowctl stop vm --force || fail "stop --force"
wait_for 10 '! grep -q " $R/vm " /proc/self/mounts'
umount mnt
wait_for 10 '! grep -qsE "^(/disk|$R/vm/disk)$" /sys/block/"${dev#/dev/}"/loop/backing_file'
nothing_left vm
dev=$(cowd -p dscow vm ov.dscow)
mount "$dev" mnt
cmp word mnt/more || fail "what was in the file system is lost"

subtest SIGTERM stops a device in use
p=$(pid vm)
kill -TERM "$p"
wait_for 20 '! kill -0 '$p' 2>/dev/null'
umount mnt
nothing_left vm

subtest read-only
dev=$(cowd -r -p dscow vm ov.dscow)
[ "$(blockdev --getro "$dev")" = 1 ] || fail "the device is writable"
! dd if=/dev/zero of="$R/vm/disk" bs=512 count=1 conv=notrunc status=none 2>/dev/null ||
	fail "the file is writable"
[ "$(cowctl status vm --json | jq .read_only)" = true ] || fail "status"
cowctl stop vm

subtest only the file
path=$(cowd --no-loop -p dscow vm ov.dscow)
[ "$path" = "$R/vm/disk" ] || fail "printed $path"
! grep -qsx "$R/vm/disk" /sys/block/loop*/loop/backing_file || fail "a loop device all the same"
exec 8<"$path"
expect_fail 'cowctl stop vm' 'in use'
dd if="$path" of=/dev/null bs=4k count=16 iflag=direct status=none || fail "a refused stop broke the file"
exec 8<&-
cowctl stop vm
nothing_left vm

subtest an image that does not fill the last sector, and other formats
head -c 100000 base.raw >odd.raw
path=$(cowd --no-loop -p raw vm odd.raw)
cmp "$path" odd.raw || fail "odd size"
cowctl stop vm
dev=$(cowd -p raw -o offset=4096,size=8192 vm base.raw)
dd if=base.raw bs=4096 skip=1 count=2 status=none | cmp - "$dev" || fail "raw with an offset"
cowctl stop vm
dev=$(cowd --no-loop -r -p zero -o size=1M vm nothing)
head -c 1M /dev/zero | cmp - "$dev" || fail "zero"
cowctl stop vm

subtest a relative base, and bases given by hand
mkdir sub
mv base.raw sub/moved.raw
expect_fail 'cowd -p dscow vm ov.dscow' 'base'
nothing_left vm
dev=$(cd sub && cowd -p dscow -b moved.raw vm ../ov.dscow) || fail "-b"
cowctl stop vm
mv sub/moved.raw base.raw

subtest refused in one sentence, nothing left
for args in '-p dscow vm missing.dscow|missing.dscow: No such file' \
	    '-p dscow vm base.raw|base.raw.*not a dscow image' \
	    '-p raw vm sub|Is a directory' \
	    '-p nosuch vm ov.dscow|nosuch' \
	    '-p dscow -o bogus=1 vm ov.dscow|bogus' \
	    '-p dscow -b missing.raw vm ov.dscow|missing.raw: No such file' \
	    '-p zero vm 1M|zero'; do
	expect_fail "cowd ${args%%|*}" "${args#*|}"
	[ $status = 1 ] || fail "exit status $status for: ${args%%|*}"
	nothing_left vm
done
for args in '' '-p dscow' '-p dscow vm' '-p dscow vm a b' 'vm ov.dscow' '-p dscow ../vm ov.dscow' \
	    '-p dscow .vm ov.dscow' '-p dscow vm ""' '--bogus' \
	    '-p dscow --cache 1 vm ov.dscow' '-p dscow --cache 1E vm ov.dscow' \
	    '-p dscow --enospc=x vm ov.dscow' '-p dscow --io=x vm ov.dscow' \
	    '-p dscow --frontend=x vm ov.dscow' '-p dscow --log-level=x vm ov.dscow' \
	    '--probe=fuse vm ov.dscow'; do
	expect_fail "cowd $args" '^cowd: '
	[ $status = 2 ] || fail "exit status $status for: $args"
	nothing_left vm
done
cp ov.dscow cut.dscow
truncate -s 100 cut.dscow
expect_fail 'cowd -p dscow vm cut.dscow' 'cut.dscow'
nothing_left vm
expect_fail 'COW_RUN_DIR=relative cowd -p dscow vm ov.dscow' 'COW_RUN_DIR.*not an absolute'
mkdir -m 777 open
expect_fail "COW_RUN_DIR=$TMP/open cowd -p dscow vm ov.dscow" 'others may write'
expect_fail "COW_RUN_DIR=$TMP/no/such cowd -p dscow vm ov.dscow" 'No such file'
cp base.raw keep.raw
touch base.raw
expect_fail 'cowd -p dscow vm ov.dscow' 'base'
nothing_left vm
cowd --force -p dscow vm ov.dscow >/dev/null 2>force.err || fail "--force: $(cat force.err)"
cowctl stop vm

subtest a front end that is asked for, and cannot
for fe in dm ublk bridge; do
	command cowd --probe="$fe" >probe.out || true
	if [ -s probe.out ]; then
		expect_fail "cowd --frontend=$fe -r -p raw vm base.raw" "^cowd: front end $fe: "
		[ $status = 1 ] || fail "exit status $status"
		[ "$said" = "cowd: front end $fe: $(cat probe.out)" ] || fail "said '$said'"
		nothing_left vm
	fi
	expect_fail "cowd --no-loop --frontend=$fe -p dscow vm ov.dscow" 'no-loop is for .* fuse'
	[ $status = 2 ] || fail "exit status $status"
done
expect_fail 'cowd --frontend=x -p dscow vm ov.dscow' '"x"; there are dm, ublk, bridge, fuse, xen '

subtest without a word on it, one that can is taken
# An empty plugin folder apart from the formats: no module for nodes.
mkdir plugins
ln -s "$BUILD"/lib/cow/cow-*.so plugins/
dev=$(COW_PLUGIN_DIR=$TMP/plugins command cowd -p raw -r vm base.raw 2>auto.err) || fail "$(cat auto.err)"
cowctl status vm --json >auto.json
case $(jq -r .frontend auto.json) in
ublk) n=1 ;;
fuse) n=3 ;;
*) fail "took $(jq -r .frontend auto.json)" ;;
esac
[ "$(jq -r '.passed_over | length' auto.json)" = $n ] || fail "passed over: $(cat auto.json)"
jq -e '.passed_over[0] | test("^dm: .")' auto.json >/dev/null || fail "no reason: $(cat auto.json)"
[ "$(jq -r .device auto.json)" = "$dev" ] || fail "printed '$dev'"
cowctl stop vm
nothing_left vm

subtest what ordinary users get
if command -v setpriv >/dev/null 2>&1; then
	setpriv --reuid=65534 --regid=65534 --clear-groups "$BUILD/bin/cowd" --probe >user.out || true
	for fe in dm ublk bridge; do
		grep -Eq "^$fe +no +." user.out || fail "$fe: $(cat user.out)"
	done
fi

subtest probe
command cowd --probe >probe.out || fail "status $?: $(cat probe.out)"
[ "$(cut -d ' ' -f 1 probe.out | tr '\n' ' ')" = 'dm ublk bridge fuse xen ' ] || fail "$(cat probe.out)"
! grep -Evq '^[a-z]+ +(yes|no) +[^ ]' probe.out || fail "a line without an answer or a reason: $(cat probe.out)"
grep -Eq '^fuse +yes ' probe.out || fail "$(cat probe.out)"
cowd --probe=fuse >probe.out || fail "status $?: $(cat probe.out)"
[ ! -s probe.out ] || fail "says something"
status=0
cowd --probe=nosuch >probe.out || status=$?
[ $status = 77 ] && grep -q nosuch probe.out || fail "status $status: $(cat probe.out)"

subtest no space: reported, or waited for
mount -t tmpfs -o size=2m none small
cowimg create -q -f dscow -b "$TMP/base.raw" -F raw small/ov.dscow
cowd --no-loop -p dscow -b base.raw vm small/ov.dscow >/dev/null
! dd if=/dev/urandom of="$R/vm/disk" bs=1M count=8 conv=notrunc,fsync status=none 2>dd.err ||
	fail "8 MiB fit in 2"
grep -q 'No space left' dd.err || fail "$(cat dd.err)"
[ "$(state vm)" = running ] || fail "state $(state vm)"
expect_fail 'cowctl stop vm' 'flush failed.*No space left.*--force'
[ "$(state vm)" = running ] || fail "a refused stop left it in state $(state vm)"
mount -o remount,size=64m small
cowctl stop vm || fail "stop when there is room"
mount -o remount,size=2m small 2>/dev/null || { umount small; mount -t tmpfs -o size=2m none small; }
rm -f small/ov.dscow
cowimg create -q -f dscow -b "$TMP/base.raw" -F raw small/ov.dscow
cowd --enospc=pause --no-loop -p dscow -b base.raw vm small/ov.dscow >/dev/null
head -c 8M /dev/urandom >pattern
dd if=pattern of="$R/vm/disk" bs=1M conv=notrunc,fsync status=none &
dd=$!
wait_for 30 '[ "$(state vm)" = no-space ]'
[ "$(cowctl status vm --json | jq -r .state)" = no-space ] || fail "status"
[ "$(cowctl stats vm --json | jq '.parked > 0')" = true ] || fail "nothing is parked"
kill -0 $dd || fail "the writer got an answer"
expect_fail 'cowctl stop vm' 'waiting for space'
cowctl resume vm
wait_for 30 '[ "$(state vm)" = no-space ]'
mount -o remount,size=64m small
cowctl resume vm || fail "resume"
wait $dd || fail "the writer failed after there was room"
[ "$(state vm)" = running ] || fail "state $(state vm)"
cmp -n 8388608 pattern "$R/vm/disk" || fail "data"
cowctl stop vm
umount small

subtest no space, and stopped by force
mount -t tmpfs -o size=2m none small
cowimg create -q -f dscow -b "$TMP/base.raw" -F raw small/ov.dscow
cowd --enospc=pause --no-loop -p dscow -b base.raw vm small/ov.dscow >/dev/null
dd if=pattern of="$R/vm/disk" bs=1M conv=notrunc,fsync status=none 2>/dev/null &
dd=$!
wait_for 30 '[ "$(state vm)" = no-space ]'
expect_fail 'timeout 60 cowctl stop vm --force' 'was not closed cleanly: No space left'
[ $status = 1 ] || fail "exit status $status"
! wait $dd || fail "the writer was told that it succeeded"
nothing_left vm
umount small

subtest sync I/O and a small cache serve the same
cmp keep.raw base.raw
cowd --force --no-loop --io=sync --cache=64K -p dscow vm ov.dscow >/dev/null 2>&1
cp "$R/vm/disk" a
cowctl stop vm
cowd --force --no-loop -p dscow vm ov.dscow >/dev/null 2>&1
cmp a "$R/vm/disk" || fail "differs"
cowctl stop vm
