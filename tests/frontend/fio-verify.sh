# SPDX-License-Identifier: GPL-2.0-or-later
#
# fio as an independent judge: writes checksummed blocks of several sizes to the file that
# cowd serves, in random order and several at a time, mixed with reads that it
# verifies; then verifies all of them again after an orderly restart and after a kill -9.
# TIMEOUT: 300
. tests/lib/test.sh
require_fuse
require_root
require_cmd fio
export COW_RUN_DIR
img=$TMP/over.dscow
disk=$COW_RUN_DIR/fio/disk
area=$((16 << 20))
seed=${SEED:-20061}

# One line a job: name, options. Each has an area of its own.
cat >"$TMP/jobs" <<'EOT'
sectors --bs=512 --ioengine=libaio --iodepth=16 --direct=1 --io_size=2m
pages --bs=4k --ioengine=libaio --iodepth=8 --direct=1
odd --bsrange=512-96k --bs_unaligned=0 --ioengine=psync --direct=1
blocks --bs=64k --ioengine=io_uring --iodepth=4 --direct=1
large --bs=1m --ioengine=psync --direct=1
cached --bs=12k --ioengine=psync --direct=0
EOT

# fio_all OPTION...: every job with these options
fio_all() {
	at=0
	while read -r job options; do
		# shellcheck disable=SC2086
		fio --name="$job" --filename="$disk" --offset=$at --size=$area \
			--rw=randrw --rwmixwrite=70 --randseed=$seed --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
			$options "$@" >"$TMP/fio.out" 2>&1 </dev/null ||
			fail "fio: $job: $(tail -n 5 "$TMP/fio.out")"
		grep -q 'err= 0' "$TMP/fio.out" || fail "fio: $job: $(tail -n 5 "$TMP/fio.out")"
		at=$((at + area))
	done <"$TMP/jobs"
}

start() {
	cowd --no-loop -p dscow fio "$img" >/dev/null
}

stop() {
	cowctl stop fio
}

at_exit 'cowctl stop --force fio >/dev/null 2>&1
	umount -l "$COW_RUN_DIR/fio" "$TMP/mnt" 2>/dev/null || true'
head -c $((area * 4)) /dev/urandom >"$TMP/base"
truncate -s $((area * 6)) "$TMP/base"
sum=$(sha256sum <"$TMP/base")
dscow_tool -c "$img" "$TMP/base" >/dev/null
echo "seed $seed"

subtest "write and verify in one go"
start
fio_all --do_verify=1

subtest "all there after an orderly restart"
stop
dscow_tool -k "$img"
start
fio_all --verify_only

subtest "all there after kill -9, flushed or not"
seed=$((seed + 1))
fio_all --do_verify=1
kill -9 "$(cowctl status fio --json | sed -n 's/.*"pid": \([0-9]*\).*/\1/p')"
start
fio_all --verify_only

subtest "the same bytes through cowfuse"
served=$(sha256sum <"$disk")
stop
mkdir "$TMP/mnt"
cowfuse -p dscow "$img" "$TMP/mnt"
[ "$(sha256sum <"$TMP/mnt/disk")" = "$served" ] || fail "cowfuse shows something else"
fusermount3 -u "$TMP/mnt"

subtest "the image is sound, the base untouched"
wait_for 20 'dscow_tool -k "$img" >/dev/null 2>&1'
dscow_tool -k "$img"
[ "$(sha256sum <"$TMP/base")" = "$sum" ] || fail "the base changed"
