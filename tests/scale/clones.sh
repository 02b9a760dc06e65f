# SPDX-License-Identifier: GPL-2.0-or-later
#
# Many clones of one base, served at once, a cowd each: what one costs in memory, that
# each shows the base and its own changes and nobody else's, and that all of them
# stop. CLONES says how many: 20, with FAULT=full 200.
# TIMEOUT: 900
. tests/lib/test.sh
require_fuse
require_cmd jq
export COW_RUN_DIR
n=20
[ "${FAULT:-quick}" != full ] || n=200
n=${CLONES:-$n}
limit_kib=3072		# of anonymous memory each; more would be a leak or a cache per clone
size=$((16 << 20))

all() {
	seq -f 'c%03.0f' 1 "$n"
}

stop_all() {
	for c in $(all); do cowctl stop --force "$c" >/dev/null 2>&1; done
	for c in $(all); do umount -l "$COW_RUN_DIR/$c" 2>/dev/null || true; done
}

stat_line() {	# TITLE, numbers on standard input
	sort -n | awk -v t="$1" '{ v[NR] = $1; s += $1 }
		END { printf "%s: median %d KiB, max %d KiB, sum %d KiB\n", t, v[int((NR + 1) / 2)], v[NR], s }'
}

at_exit stop_all
head -c $size /dev/urandom >"$TMP/base"
sum=$(sha256sum <"$TMP/base")

subtest "$n clones are made and served"
for c in $(all); do
	dscow_tool -q -c "$TMP/$c" "$TMP/base"
	cowd --no-loop -p dscow "$c" "$TMP/$c" >/dev/null
done
[ "$(cowctl list | wc -l)" = "$n" ] || fail "cowctl does not list $n devices"

subtest "each shows the base"
for c in $(all); do
	cmp "$COW_RUN_DIR/$c/disk" "$TMP/base" || fail "$c differs from the base"
done

subtest "each keeps its own changes"
i=0
for c in $(all); do
	i=$((i + 1))
	yes "this is $c" | head -c 300000 >"$TMP/mine"
	dd if="$TMP/mine" of="$COW_RUN_DIR/$c/disk" bs=5000 seek=$((i * 15)) conv=notrunc,fsync status=none
done
i=0
for c in $(all); do
	i=$((i + 1))
	yes "this is $c" | head -c 300000 >"$TMP/mine"
	cp "$TMP/base" "$TMP/wanted"
	dd if="$TMP/mine" of="$TMP/wanted" bs=5000 seek=$((i * 15)) conv=notrunc status=none
	cmp "$COW_RUN_DIR/$c/disk" "$TMP/wanted" || fail "$c is not the base with its own change"
done
[ "$(sha256sum <"$TMP/base")" = "$sum" ] || fail "the base changed"

subtest "what a clone costs"
for c in $(all); do
	cowctl status "$c" --json | jq .pid
done >"$TMP/pids"
sleep 1.5	# buffers of a rush are given back after a second
while read -r pid; do
	sed -n 's/^RssAnon:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$pid/status"
done <"$TMP/pids" >"$TMP/anon"
while read -r pid; do
	sed -n 's/^Pss:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$pid/smaps_rollup"
done <"$TMP/pids" >"$TMP/pss"
[ "$(wc -l <"$TMP/anon")" = "$n" ] && [ "$(wc -l <"$TMP/pss")" = "$n" ] || fail "a daemon is missing"
stat_line "anonymous memory of $n" <"$TMP/anon"
stat_line "proportional share of $n" <"$TMP/pss"
echo "on disk each: $(du -k "$TMP/c001" | cut -f 1) KiB"
if [ -z "${SAN:-}" ]; then	# sanitizers need memory of their own
	[ "$(sort -n "$TMP/anon" | tail -n 1)" -le $limit_kib ] || fail "more than $limit_kib KiB"
fi

subtest "all stop, every image is sound"
for c in $(all); do
	cowctl stop "$c" || fail "$c did not stop"
done
while read -r pid; do
	wait_for 20 '! [ -d /proc/$pid ] || grep -q "^State:.Z" "/proc/$pid/status"'
done <"$TMP/pids"
[ -z "$(ls -A "$COW_RUN_DIR")" ] || fail "left in the run directory: $(ls -A "$COW_RUN_DIR")"
! grep -F " $COW_RUN_DIR/" /proc/mounts || fail "still mounted"
for c in $(all); do
	dscow_tool -q -k "$TMP/$c" || fail "$c"
done
