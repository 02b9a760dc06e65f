# SPDX-License-Identifier: GPL-2.0-or-later
#
# A failed fdatasync stays failed. After one, the kernel may have dropped the pages
# that it could not write; a later success would be a lie. strace makes one fdatasync
# of the daemon fail, once; from then on every flush and write fails, reads go on,
# and the image asks for a check. fuse.ko passes on what the daemon says, so
# all of it is seen through the served file, as any user of it would.
# TIMEOUT: 120
. tests/lib/test.sh
require_fuse
require_root
require_cmd strace python3
export COW_RUN_DIR
img=$TMP/over.dscow

# Does what it is told, one result a line: "ok", or the error's name.
cat >"$TMP/client.py" <<'PY'
import errno, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
buf = mmap.mmap(-1, 4096)

def write(at):
    buf[:] = bytes([65 + at % 26]) * 4096
    os.pwrite(fd, buf, at * 65536)

def read(at):
    got = mmap.mmap(-1, 4096)
    os.preadv(fd, [got], at * 65536)
    assert got[:] == bytes([65 + at % 26]) * 4096, 'wrong data'

for i, what in enumerate(sys.argv[2:]):
    verb, _, at = what.partition(':')
    try:
        if verb == 's':
            os.fdatasync(fd)
        elif verb == 'S':
            os.fsync(fd)
        else:
            {'w': write, 'r': read}[verb](int(at))
        print(what, 'ok')
    except OSError as e:
        print(what, errno.errorcode[e.errno])
PY

# Serves the image under strace; the $2-th fdatasync of the daemon fails with $1.
serve() {
	rm -f "$img" "$TMP/strace.out"
	dscow_tool -c "$img" "$TMP/base" >/dev/null
	# A leak checker cannot work in a traced process.
	ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0 \
		strace -f -qq -o "$TMP/strace.out" -e trace=fdatasync \
		-e inject=fdatasync:error=$1:when=$2 cowd -f --no-loop --io=sync -p dscow sync "$img" >"$TMP/cowd.log" 2>&1 &
	server=$!
	wait_for 20 'cowctl status sync >/dev/null 2>&1'
	wait_for 20 'test -e "$COW_RUN_DIR/sync/disk"'
}

finish() {
	expect_fail 'cowctl stop sync' 'flush failed.*Input/output error'
	expect_fail 'cowctl stop --force sync' 'not closed cleanly'
	server_status=0
	wait $server || server_status=$?
	[ "$(grep -c INJECTED "$TMP/strace.out")" = 1 ] || fail "not one fdatasync was made to fail"
}

at_exit 'cowctl stop --force sync >/dev/null 2>&1; umount -l "$COW_RUN_DIR/sync" 2>/dev/null || true'
head -c 4194304 /dev/urandom >"$TMP/base"

# The first fdatasync of a session may be that of the header: look for the one of a flush.
subtest "which fdatasync is the first of a flush"
serve EIO 60000
before=$(grep -c fdatasync "$TMP/strace.out" || true)
python3 "$TMP/client.py" "$COW_RUN_DIR/sync/disk" w:0 >/dev/null
wrote=$(grep -c fdatasync "$TMP/strace.out" || true)
python3 "$TMP/client.py" "$COW_RUN_DIR/sync/disk" s | grep -qx 's ok' || fail "a flush failed"
flushed=$(grep -c fdatasync "$TMP/strace.out" || true)
[ "$flushed" -gt "$wrote" ] || fail "a flush after a write called no fdatasync"
cowctl stop sync >/dev/null
wait $server || fail "an undisturbed session did not end well"
dscow_tool -k "$img"

n=$((wrote + 1))
while [ $n -le "$flushed" ]; do
	subtest "fdatasync $((n - wrote)) of the flush fails: so do later ones and writes, reads go on"
	serve EIO $n
	python3 "$TMP/client.py" "$COW_RUN_DIR/sync/disk" w:0 w:1 s s S w:2 w:0 s r:0 r:1 >"$TMP/said"
	printf '%s\n' 'w:0 ok' 'w:1 ok' 's EIO' 's EIO' 'S EIO' 'w:2 EIO' 'w:0 EIO' 's EIO' 'r:0 ok' \
		'r:1 ok' |
		diff "$TMP/said" - || fail "not what a failed flush must lead to"
	cowctl status sync >"$TMP/status"
	! grep -q 'mode: read-write' "$TMP/status" || fail "the device does not say that it failed"
	# Nobody may be told by a new open that all is well.
	! python3 "$TMP/client.py" "$COW_RUN_DIR/sync/disk" s w:3 | grep ok || fail "forgotten at the next open"
	finish
	[ $server_status != 0 ] || fail "cowd ended as if nothing had happened"
	# What is on disk is older, not damaged.
	dscow_tool -R "$img" >/dev/null 2>&1 || true
	dscow_tool -k "$img" || fail "the image does not check clean"
	n=$((n + 1))
done
