# SPDX-License-Identifier: GPL-2.0-or-later
#
# Partition tables that nobody honest writes. Whatever they say: the server
# answers, stays alive, shows no byte outside of the disk, and `disk` works.
. tests/lib/test.sh
require_fuse
require_cmd sfdisk od awk
img=$TMP/disk.img
mnt=$TMP/mnt
mkdir "$mnt"
at_exit 'fusermount3 -u -z "$mnt" 2>/dev/null || true'

# bytes OFFSET HEX...: into the image
bytes() {
	b_off=$1
	shift
	for b_hex; do
		printf "\\$(printf %03o "0x$b_hex")"
	done | dd of="$img" bs=1 seek="$b_off" conv=notrunc status=none
}

le32() {	# as four bytes in hex
	printf '%02x %02x %02x %02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255))
}

entry() {	# AT-SECTOR SLOT TYPE START LENGTH
	bytes $(($1 * 512 + 446 + 16 * $2)) 00 00 00 00 "$3" 00 00 00 $(le32 "$4") $(le32 "$5")
	bytes $(($1 * 512 + 510)) 55 aa
}

fresh() {
	rm -f "$img"
	truncate -s 32M "$img"
	printf 'still here' | dd of="$img" bs=1M seek=31 conv=notrunc status=none
}

# Serves the image and sets $parts; every size must stay within the disk.
look() {
	cowfuse -p raw "$img" "$mnt"
	parts=$(cd "$mnt" && ls -d p* 2>/dev/null | tr '\n' ' ') || true
	n=0
	for p in $parts; do
		n=$((n + 1))
		s=$(stat -c %s "$mnt/$p")
		[ "$s" -gt 0 ] && [ "$s" -le 33554432 ] || fail "$p has $s bytes"
		tail -c 1 "$mnt/$p" >/dev/null || fail "the end of $p cannot be read"
	done
	[ $n -le 256 ] || fail "$n partitions"
	[ "$(tail -c 1048576 "$mnt/disk" | head -c 10)" = "still here" ] || fail "disk does not work"
	grep -q '"partition_table"' "$mnt/info.json" || fail "info.json does not work"
	state=$(sed 's/.*"partition_table": {"state": "\([^"]*\)".*/\1/' "$mnt/info.json")
	fusermount3 -u "$mnt"
	wait_for 20 "flock -n '$img' true && ! grep -q ' $mnt ' /proc/mounts"
}

subtest "entries that reach past the end are left out"
fresh
entry 0 0 83 2048 4096
entry 0 1 83 4096 4294967295
entry 0 2 83 4294967295 4294967295
entry 0 3 83 65535 2
look
[ "$parts" = "p1 " ] || fail "partitions: '$parts' ($state)"

subtest "empty and overlapping entries"
fresh
entry 0 0 83 2048 4096
entry 0 1 83 2048 4096
entry 0 2 83 3000 1
entry 0 3 83 1 0
look
case $parts in *p4*) fail "an empty entry is shown: $parts" ;; esac

subtest "extended partitions in a circle"
fresh
entry 0 0 05 2048 40000
entry 2048 0 83 1 16
entry 2048 1 05 0 40000
look
fresh
entry 0 0 05 2048 40000
entry 2048 1 05 4096 100
entry 6144 1 05 0 100
look

subtest "more logical partitions than anybody needs"
fresh
entry 0 0 05 64 60000
zeroes() { printf '\\000%.0s' $(seq "$1"); }	# as escapes
head446=$(zeroes 446) rest="$(zeroes 32)\\125\\252$(zeroes 1536)"
i=0
while [ $i -lt 300 ]; do	# four sectors each: one for the table, two for data
	i=$((i + 1))
	next=$(printf '\\%03o\\%03o\\000\\000' $((i * 4 & 255)) $((i * 4 >> 8)))
	printf "$head446\\0\\0\\0\\0\\203\\0\\0\\0\\1\\0\\0\\0\\2\\0\\0\\0\\0\\0\\0\\0\\5\\0\\0\\0$next\\4\\0\\0\\0"
	printf "$rest"
done | dd of="$img" bs=512 seek=64 conv=notrunc status=none
look
[ -n "$parts" ] || fail "none shown ($state)"

subtest "damaged GPT headers"
for hole in "512 00" "524 ff ff ff ff" "528 00 00 00 00" "584 ff ff ff ff ff ff ff 7f" "592 ff ff ff 7f" \
	    "596 00 00 00 00" "596 ff ff ff ff" "560 ff ff ff ff ff ff ff ff"; do
	fresh
	printf 'label: gpt\nstart=2048, size=2048\n' | sfdisk -q "$img"
	# shellcheck disable=SC2086
	bytes $hole
	look
done

subtest "noise"
round=0
while [ $round -lt 12 ]; do
	fresh
	dd if=/dev/urandom of="$img" bs=1M count=1 conv=notrunc status=none
	[ $((round % 2)) = 0 ] || printf 'EFI PART\0\0\1\0\134\0\0\0' | dd of="$img" bs=512 seek=1 conv=notrunc status=none
	bytes 510 55 aa
	look
	round=$((round + 1))
done

subtest "a disk smaller than any table"
for size in 1 511 512 513 1024; do
	rm -f "$img"
	head -c $size /dev/urandom >"$img"
	cowfuse -p raw "$img" "$mnt"
	ls "$mnt" >/dev/null
	cmp "$img" "$mnt/disk"
	fusermount3 -u "$mnt"
	wait_for 20 "! grep -q ' $mnt ' /proc/mounts"
done

# The child that reads the table has neither rights nor files.
if command -v strace >/dev/null && [ "$(id -u)" = 0 ] && [ -z "${SAN:-}" ]; then
	subtest "the reader of the table gives up its rights first"
	fresh
	entry 0 0 83 2048 4096
	strace -f -qq -e trace=setuid,setgroups,prctl,close_range,prlimit64,pread64,read -o "$TMP/trace" \
		cowfuse -f -p raw "$img" "$mnt" &
	wait_for 20 '[ -e "$mnt/disk" ]'
	ls "$mnt" >/dev/null
	fusermount3 -u "$mnt"
	wait
	pid=$(awk '/setuid\(65534\)/ { print $1; exit }' "$TMP/trace")
	awk -v pid="$pid" '$1 == pid' "$TMP/trace" >"$TMP/child"
	for must in 'PR_SET_NO_NEW_PRIVS, 1' 'setgroups(0' 'close_range(5' RLIMIT_AS RLIMIT_CPU RLIMIT_NOFILE; do
		grep -qF "$must" "$TMP/child" || fail "the reader never did: $must"
	done
	first_read=$(grep -nE 'read(64)?\(3,' "$TMP/child" | head -n 1 | cut -d : -f 1)
	nnp=$(grep -n 'PR_SET_NO_NEW_PRIVS' "$TMP/child" | tail -n 1 | cut -d : -f 1)
	[ -n "$first_read" ] && [ "$first_read" -gt "$nnp" ] || fail "the table was read before the rights were gone"
fi
