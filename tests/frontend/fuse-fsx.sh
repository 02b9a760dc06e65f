# SPDX-License-Identifier: GPL-2.0-or-later
#
# The random test (fsx.c, which runs by itself over cowfuse) over cowd, with
# more restarts; and that it can fail.
. tests/lib/test.sh
require_root
require_fuse
[ -x "$BUILD/bin/cowd" ] || skip "built without cowd"
fsx=$BUILD/tests/frontend/fsx
[ -x "$fsx" ] || skip "the program was not built"
at_exit 'fusermount3 -u -z "$TMP/fsx/mnt" 2>/dev/null || true'
at_exit 'TMP=$TMP tests/frontend/fsx-cycle cowd stop >/dev/null 2>&1 || true'

subtest "through cowd, with restarts and kills"
"$fsx" -n "${FSX_COWD_OPS:-20000}" -r 16 -c "tests/frontend/fsx-cycle cowd"

subtest "one wrong byte is noticed"
status=0
"$fsx" -n 3000 -r 0 -x 100 >"$TMP/out" 2>&1 || status=$?
[ $status = 1 ] || fail "exit status $status"
grep -q 'must be' "$TMP/out" || fail "said: $(tail -n 1 "$TMP/out")"
grep -q -- '-s 20060501' "$TMP/out" || fail "does not print its seed"
fusermount3 -u "$TMP/fsx/mnt"
