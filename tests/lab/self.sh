# SPDX-License-Identifier: GPL-2.0-or-later
#
# The lab itself: output, status and folders come through; what the kernel says, its
# death and the time limit are noticed. Runs outside and boots the lab several times.
# TIMEOUT: 1500
. tests/lib/test.sh
. tests/lib/lab.sh

lab_require
out=$TMP/out

# lab STATUS [OPTION]... -- COMMAND...: what it printed is then in $TMP/said
lab() {
	wanted=$1 status=0
	shift
	tests/lab/lab -k "$lab_kernel" -o "$out" "$@" >"$TMP/said" 2>"$TMP/complained" || status=$?
	[ $status = "$wanted" ] ||
		fail "status $status instead of $wanted: $* : $(cat "$TMP/said" "$TMP/complained")"
}

complained() {
	grep -Eq "$1" "$TMP/complained" || fail "does not say '$1' but: $(cat "$TMP/complained")"
}

subtest "output, status, environment, folders, module loading"
cat >"$TMP/inside" <<'END'
[ "$(id -u)" = 0 ] && [ "$COW_IN_LAB" = 1 ] && [ "$DM_DISABLE_UDEV" = 1 ] || exit 20
[ "$PWD" = "$HERE" ] && [ -f tests/lab/self.sh ] || exit 21
[ "$(stat -f -c %T /run)" = tmpfs ] && [ "$(stat -f -c %T /dev/shm)" = tmpfs ] || exit 22
[ -z "$(cat)" ] || exit 23
echo written >/out/file && echo changed >"$0" && echo new >/etc/lab-was-here || exit 24
[ "$(blockdev --getsize64 /dev/vda)" = 67108864 ] || exit 25
mkfs.ext4 -q /dev/vda && mkdir /run/m && mount /dev/vda /run/m && umount /run/m || exit 26
modprobe -a dm-mod brd && [ -b /dev/ram3 ] && [ -c /dev/mapper/control ] || exit 27
echo "0 2048 linear /dev/ram0 0" | dmsetup create lab && [ -b /dev/mapper/lab ] || exit 28
losetup -f >/dev/null || exit 29
echo "to standard error: $WORDS" >&2
echo "$LAB_KERNEL $(uname -r)"
exit 7
END
cp "$TMP/inside" "$TMP/was"
lab 7 -m 768 -d 64M -e HERE="$PWD" -e WORDS="it's  two" -- sh "$TMP/inside"
grep -qx "to standard error: it's  two" "$TMP/said" || fail "standard error is lost: $(cat "$TMP/said")"
grep -qx "$lab_kernel $(cat "$(tests/lab/kernels --have "$lab_kernel")/release")" "$TMP/said" ||
	fail "another kernel ran: $(cat "$TMP/said")"
[ "$(cat "$out/file")" = written ] || fail "/out is not $out"
cmp -s "$TMP/inside" "$TMP/was" || fail "the command could write to this machine's files"
[ ! -e /etc/lab-was-here ] || fail "the command could write to this machine's /etc"
[ -s "$out/dmesg" ] || fail "no dmesg"

subtest "a kernel complaint outweighs the status, a high status is 122"
lab 123 -- 'echo "<1>BUG: not a real one" >/dev/kmsg; exit 5'
complained 'BUG: not a real one'
complained "the command's status was 5"
lab 122 -W -- 'echo "<1>BUG: not a real one" >/dev/kmsg; kill -KILL $$'
complained 'status is 137'

subtest "a warning out of a module"
ko=$(tests/lab/kmod -s tests/lab/bad "$lab_kernel") || fail "cannot build a module"
lab 123 -- "insmod $ko what=warn && rmmod bad"
complained 'WARNING: .*bad_init'
complained 'asked for'

subtest "a kernel that dies, a time limit"
lab 125 -- 'echo c >/proc/sysrq-trigger; sleep 100'
complained 'Kernel panic'
! grep -q 'before anything ran' "$TMP/complained" || fail "what died while it was used was booted again"
lab 125 -a rdinit=/absent -- true
[ "$(grep -c 'before anything ran' "$TMP/complained")" = 2 ] || fail "$(cat "$TMP/complained")"
lab 124 -t 5 -- 'sleep 1000'
complained 'time limit'

subtest "misuse has one sentence and status 126"
for args in "-k 5.10 true" "-d /nonexistent true" "-m many true" "-t 9"; do
	# shellcheck disable=SC2086
	lab 126 $args
	[ "$(wc -l <"$TMP/complained")" = 1 ] || fail "not one sentence: $(cat "$TMP/complained")"
done

if [ "$lab_kernel" = debug ]; then
	subtest "the checkers of kernel debug: KASAN, lockdep, kmemleak"
	lab 123 -- "insmod $ko what=uaf"
	complained 'KASAN: .*use-after-free'
	lab 123 -- "insmod $ko what=abba"
	complained 'possible circular locking'
	lab 123 -- "insmod $ko what=leak && rmmod bad"
	complained 'unreferenced object'
	lab 0 -- 'for d in failslab fail_page_alloc fail_make_request; do ls -d /sys/kernel/debug/$d || exit 1; done'
fi
