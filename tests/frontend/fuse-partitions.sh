# SPDX-License-Identifier: GPL-2.0-or-later
#
# Partitions as files: GPT, MBR with logical ones, tables that change, tables
# that are wrong or hostile, and that nobody looks at the table before asked.
. tests/lib/test.sh
require_fuse
require_cmd sfdisk cmp
img=$TMP/disk.img
mnt=$TMP/mnt
mkdir "$mnt"

serve() {	# OPTIONS
	cowfuse -p raw ${1:+-o "$1"} "$img" "$mnt"
}

pid_of_server() {
	for p in $(pidof cowfuse); do
		! tr '\0' ' ' <"/proc/$p/cmdline" | grep -qF "$img" || echo "$p"
	done
}

leave() {
	p=$(pid_of_server)
	fusermount3 -u "$mnt"
	for q in $p; do wait_for 20 "[ ! -d /proc/$q ] || grep -qs '^State:.Z' /proc/$q/status"; done
}
at_exit 'fusermount3 -u -z "$mnt" 2>/dev/null || true'

fresh() {	# SIZE
	rm -f "$img"
	truncate -s "$1" "$img"
}

parts() {
	(cd "$mnt" && ls -d p* 2>/dev/null) | tr '\n' ' '
}

expect_parts() {
	got=$(parts)
	[ "$got" = "$1" ] || fail "partitions are '$got', not '$1'"
}

# pN shows exactly the bytes of the image from START on, LENGTH of them (sectors).
expect_bytes() {	# NAME START LENGTH
	[ "$(stat -c %s "$mnt/$1")" = $(($3 * 512)) ] || fail "$1 has $(stat -c %s "$mnt/$1") bytes"
	cmp -s -n $(($3 * 512)) -i "$(($2 * 512)):0" "$img" "$mnt/$1" || fail "$1 shows other bytes"
}

mark() {	# START...: something to recognise at these sectors
	for s; do
		printf 'sector %s of the disk' "$s" | dd of="$img" bs=512 seek="$s" conv=notrunc status=none
	done
}

subtest "GPT"
fresh 96M
mark 2048 8191 8192 100000 150000
sfdisk -q "$img" <<-END
	label: gpt
	start=2048, size=6144
	start=8192, size=91808
	start=150000, size=20000
END
serve ro
grep -q '"state": "not read yet"' "$mnt/info.json" || fail "the table was read before anybody asked"
[ -r "$mnt/disk" ] || fail "no disk"
grep -q '"state": "not read yet"' "$mnt/info.json" || fail "looking at disk read the table"
expect_parts "p1 p2 p3 "
expect_bytes p1 2048 6144
expect_bytes p2 8192 91808
expect_bytes p3 150000 20000
grep -q '"name": "p2", "start": 4194304, "length": 47005696' "$mnt/info.json" || fail "info.json lacks p2"
[ ! -e "$mnt/p4" ] || fail "there is a p4"
leave

subtest "a lookup alone finds a partition"
serve ro
[ -f "$mnt/p3" ] || fail "no p3"
leave

subtest "MBR with logical partitions"
fresh 64M
mark 2048 20480 22528 40960 61440
sfdisk -q "$img" <<-END
	label: dos
	start=2048, size=10000, type=83
	start=16384, size=90000, type=5
	start=20480, size=2000, type=83
	start=40960, size=20000, type=83
	start=110000, size=1000, type=83
END
serve ro
expect_parts "p1 p3 p5 p6 "	# p2 only holds the logical ones
expect_bytes p1 2048 10000
expect_bytes p3 110000 1000
expect_bytes p5 20480 2000
expect_bytes p6 40960 20000
leave

subtest "partitions beyond 4 GiB"
fresh 9G
mark 12582912 18000000
sfdisk -q "$img" <<-END
	label: gpt
	start=2048, size=2048
	start=12582912, size=6000000
END
serve rw
[ "$(stat -c %s "$mnt/p2")" = 3072000000 ] || fail "size of p2"
[ "$(head -c 25 "$mnt/p2")" = "sector 12582912 of the di" ] || fail "p2 shows other bytes"
printf 'written through p2' | dd of="$mnt/p2" bs=512 seek=5000000 conv=notrunc status=none
[ "$(dd if="$img" bs=512 skip=17582912 count=1 status=none | head -c 18)" = "written through p2" ] ||
	fail "a write through p2 went elsewhere"
expect_fail "printf x | dd of='$mnt/p2' bs=512 seek=6000000 conv=notrunc status=none" "[Nn]o space"
leave

subtest "a table that changes"
fresh 64M
serve rw
expect_parts ""
printf 'label: gpt\nstart=2048, size=2048\n' >"$TMP/one"
printf 'label: gpt\nstart=4096, size=4096\nstart=10240, size=2048\n' >"$TMP/two"
sfdisk -q --no-reread --no-tell-kernel "$mnt/disk" <"$TMP/one"
expect_parts "p1 "
printf 'first table' | dd of="$mnt/p1" conv=notrunc status=none
[ "$(head -c 11 "$mnt/p1")" = "first table" ] || fail "p1 does not show what was written"
sfdisk -q --no-reread --no-tell-kernel "$mnt/disk" <"$TMP/two"
expect_parts "p1 p2 "
[ "$(stat -c %s "$mnt/p1")" = 2097152 ] || fail "p1 kept its old size"
cmp -s -n 2097152 -i 2097152:0 "$mnt/disk" "$mnt/p1" || fail "p1 shows the old partition's bytes"
# In use: stays what it is until closed.
exec 7<"$mnt/p1"
sfdisk -q --no-reread --no-tell-kernel "$mnt/disk" <"$TMP/one"
expect_parts "p1 p2 "
[ "$(stat -L -c %s /proc/self/fd/7)" = 2097152 ] || fail "an open partition changed its size"
exec 7<&-
wait_for 10 '[ "$(parts)" = "p1 " ]'
[ "$(stat -c %s "$mnt/p1")" = 1048576 ] || fail "p1 has a wrong size"
[ "$(head -c 11 "$mnt/p1")" = "first table" ] || fail "p1 does not show the first partition again"
leave

subtest "a file system without a table"
fresh 16M
if command -v mkfs.ext4 >/dev/null; then
	mkfs.ext4 -q -F "$img"
fi
serve ro
expect_parts ""
leave
