#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 1200
#
# A guest writes the head of another format into its raw disk: a magic number, or a whole image
# whose base, or data file, is a file of the host. Nobody takes the disk for anything but raw,
# served, copied, as a base, committed into: its bytes stay what they are, the file that it names
# is not opened, and where no format is said the answer is a refusal.
# FAULT=full: everything with each of them.
self=$PWD/$0
. tests/lib/test.sh
require_cmd jq strace qemu-img
require_root
require_fuse
[ -e "$BUILD/lib/cow/cow-qcow2.so" ] || skip "built without zlib and zstd"

# The runner's call only prepares, and calls this again to be traced.
if [ -z "${NO_PROBING_HEADS:-}" ]; then
	cd "$TMP"
	mkdir heads
	yes 'what nobody may see' | head -c 1M >secret.raw
	yes 'something else' | head -c 1M >secrex.raw
	for o in 'qcow2 qcow2 -o compat=1.1' 'qcow2-v2 qcow2 -o compat=0.10' 'qcow qcow' 'dscow dscow'; do
		# shellcheck disable=SC2086
		set -- $o
		name=$1
		shift
		cowimg create -q -f "$@" -b secret.raw -F raw "heads/../$name"
		mv "$name" heads/
	done
	cowimg create -q -f qcow2 -o data_file=d.raw d.qcow2 1M
	rm d.raw
	sed 's/\(DATA\x00\x00\x00\x05\)d\.raw/\1s.raw/' d.qcow2 >heads/qcow2-data
	! cmp -s d.qcow2 heads/qcow2-data || fail "the data file's name was not changed"
	cp secret.raw s.raw
	for f in vmdk vpc vhdx vdi qed parallels; do
		qemu-img create -q -f $f heads/$f 1M 2>/dev/null || echo "# qemu-img makes no $f here"
	done
	qemu-img create -q -f qed -b secret.raw -F raw heads/qed-base 2>/dev/null || :
	printf '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n%s\n' \
		'RW 2048 FLAT "secret.raw" 0' >heads/vmdk-text
	printf 'LUKS\272\276\0\1aes' >heads/luks1
	printf 'LUKS\272\276\0\2' >heads/luks2
	printf 'conectix\0\0\0\2' >heads/vhd
	truncate -s '<1M' heads/*
	seq 1 400000 | head -c 2M >before.raw
	[ "$(find heads -size +0 | wc -l)" -ge 10 ] || fail "too few heads: $(ls heads)"
	status=0
	export NO_PROBING_HEADS=$TMP/heads
	if [ -n "${SAN:-}" ]; then
		echo '# strace does not go with sanitizers: only contents are looked at'
		cd "${self%/tests/*}" && sh "$self" || exit
		exit 0
	fi
	traced() {
		strace -f -qq --seccomp-bpf -e signal=none -e trace=open,openat,openat2,fcntl,execve -o "$TMP/trace" \
			-P "$TMP/secret.raw" -P "$TMP/s.raw" -P secret.raw -P s.raw -P ./secret.raw -P ./s.raw "$@"
	}
	mv heads/qcow2 .
	traced cowimg read -q -f qcow2 qcow2 shown
	cmp -s shown secret.raw && grep -q 'openat2.*secret.raw' "$TMP/trace" || fail 'the trace shows nothing'
	mv qcow2 heads/
	rm shown
	cd "${self%/tests/*}"
	traced sh "$self" || status=$?
	[ $status = 0 ] || exit $status
	[ ! -s "$TMP/trace" ] || fail "what a disk names was opened: $(head -n 5 "$TMP/trace")"
	exit 0
fi

cd "$TMP"
mkdir -p mnt
at_exit 'umount -l "$TMP/mnt" 2>/dev/null; cowctl stop probed --force >/dev/null 2>&1 || :'

is_raw() {	# FILE WHO: it is what the guest wrote
	cmp -s "$1" want.raw || fail "$head: $2: the bytes are others"
}
unchanged() {
	is_raw disk.raw "$1"
}
refused() {	# COMMAND: for no format is said
	expect_fail "$1" 'never guessed|F(ORMAT)? is missing|format must be said|needs? .*-F|go together'
	[ ! -e none ] || fail "$head: $1: made something"
	unchanged "$1"
}

# A raw disk, and what it reads as when the head is written to it.
fresh() {
	cp before.raw disk.raw
	cp before.raw want.raw
	dd if="heads/$head" of=want.raw bs=64K conv=notrunc status=none
}

# The guest writes it, through whatever serves its disk.
by_a_guest() {
	cowfuse -p raw -o rw disk.raw mnt
	dd if="heads/$head" of=mnt/disk bs=64K conv=notrunc,fsync status=none
	fusermount3 -u mnt
	wait_for 20 'flock -n disk.raw true && ! grep -q " $TMP/mnt " /proc/mounts'
	unchanged 'the guest'
	cowd --frontend=fuse --no-loop -p raw probed disk.raw >path
	cmp -s "$(cat path)" want.raw || fail "$head: cowd shows something else"
	cowctl stop probed >/dev/null
	cowfuse -p raw disk.raw mnt
	is_raw mnt/disk cowfuse
	[ "$(jq -r '.layers[0].format + " " + (.layers | length | tostring)' mnt/info.json)" = 'raw 1' ] ||
		fail "$head: $(cat mnt/info.json)"
	fusermount3 -u mnt
	wait_for 20 '! grep -q " $TMP/mnt " /proc/mounts'
}

by_few() {
	cowimg info -f raw --backing-chain --output=json disk.raw >info
	[ "$(jq -c '.layers | map([.format, .virtual_size, .base_path, .data_file])' info)" = \
		'[["raw",2097152,null,null]]' ] || fail "$head: info: $(cat info)"
	cowimg map -f raw --output=json disk.raw |
		jq -e 'all(.map[]; .depth == 0 and (.kind != "data" or .offset == .start))' >/dev/null ||
		fail "$head: map says otherwise"
	rm -f got*
	cowimg read -q -f raw disk.raw got.raw
	is_raw got.raw read
	cowimg convert -q -f raw -O qcow2 disk.raw got-qcow2
	rm got.raw
	cowimg read -q -f qcow2 got-qcow2 got.raw
	is_raw got.raw 'convert to qcow2'
	unchanged 'a few tools'
}

by_tools() {
	for to in raw qcow dscow; do
		cowimg convert -q -f raw -O $to --overwrite disk.raw got-$to
		rm -f got.raw
		cowimg read -q -f $to got-$to got.raw
		is_raw got.raw "convert to $to"
	done
	rm -f got*
	cowimg dd -q -f raw -O raw if=disk.raw of=got.raw
	is_raw got.raw dd
	cowimg compare -q -f raw disk.raw want.raw || fail "$head: compare"
	[ "$(cowimg diff -f raw --output=json before.raw disk.raw | jq .size2)" = 2097152 ] || fail "$head: diff"
	[ "$(cowimg measure -f raw -O raw --output=json disk.raw | jq .required_bytes)" = 2097152 ] ||
		fail "$head: measure"
	status=0
	cowimg check -q -f raw disk.raw 2>/dev/null || status=$?
	[ $status = 63 ] || fail "$head: check ended with $status"
	cowimg resize -q -f raw disk.raw +64K
	[ "$(stat -c %s disk.raw)" = 2162688 ] || fail "$head: resize made $(stat -c %s disk.raw) bytes"
	cowimg resize -q -f raw --shrink disk.raw 2M
	unchanged 'all tools'
}

# As a base, which what an overlay holds is then committed into.
as_a_base() {	# FORMAT
	rm -f over got.raw
	cowimg create -q -f "$1" -b disk.raw -F raw over
	cowimg info -f "$1" --backing-chain --output=json over | jq -r '.layers[].format' | tr '\n' ' ' >info
	[ "$(cat info)" = "$1 raw " ] || fail "$head: a chain of $(cat info)"
	cowimg read -q -f "$1" over got.raw
	is_raw got.raw "an overlay ($1)"
	cp disk.raw moved.raw
	cowimg rebase -q -f "$1" -b moved.raw -F raw over
	cowimg write -q -f "$1" -s 1M -l 512 --pattern 9 over
	cowimg commit -q -f "$1" over
	cowimg write -q -f raw -s 1M -l 512 --pattern 9 got.raw
	cmp -s moved.raw got.raw || fail "$head: commit from $1 into it"
	unchanged "an overlay ($1)"
	# The other way round: the guest has an overlay, and commit brings the head into the base.
	rm -f over
	cp before.raw moved.raw
	cowimg create -q -f "$1" -b moved.raw -F raw over
	cowimg write -q -f "$1" over "heads/$head"
	cowimg commit -q -f "$1" over
	is_raw moved.raw "commit of $1"
	rm -f got.raw
	cowimg read -q -f "$1" over got.raw
	is_raw got.raw "$1 after its commit"
}

unsaid() {
	rm -f over
	cowimg create -q -f dscow -b disk.raw -F raw over
	for c in 'info disk.raw' 'map disk.raw' 'check disk.raw' 'check -r all disk.raw' 'read disk.raw none' \
		 'convert disk.raw none' 'convert -O qcow2 disk.raw none' 'resize disk.raw +1M' 'commit disk.raw' \
		 'rebase -u disk.raw' 'dd if=disk.raw of=none' 'measure disk.raw' 'compare disk.raw want.raw' \
		 'snapshot -l disk.raw' 'write -l 1 --pattern 1 disk.raw' \
		 'create -f qcow2 -b disk.raw none' 'create -f dscow -b disk.raw none' \
		 'rebase -f dscow -b disk.raw over' 'convert -f raw -O qcow2 -b disk.raw want.raw none'; do
		refused "cowimg $c"
	done
	expect_fail 'cowd --frontend=fuse probed disk.raw' 'FORMAT|format'
	expect_fail 'cowfuse disk.raw mnt' 'FORMAT|format'
}

# Of the tools that take one format, or are of another program's names.
by_other_names() {
	rm -f over got.raw got.qcow
	dscow_tool -c over disk.raw >/dev/null
	cowimg read -q -f dscow over got.raw
	is_raw got.raw 'dscow_tool'
	img2qcow -q got.qcow disk.raw
	rm got.raw
	qcow2raw -q got.raw got.qcow
	is_raw got.raw 'img2qcow and qcow2raw'
	unchanged 'tools of other names'
}

for head in $(ls heads); do
	subtest "$head"
	fresh
	case $head:${FAULT:-quick} in
	qcow2:* | *:full)
		by_a_guest
		by_few
		by_tools
		for f in dscow qcow qcow2; do
			as_a_base $f
		done
		unsaid
		by_other_names
		;;
	qcow:* | qcow2-data:* | dscow:* | vmdk-text:*)
		cowimg write -q -f raw disk.raw "heads/$head"
		unchanged 'write'
		by_few
		by_tools
		as_a_base dscow
		;;
	*)
		cowimg write -q -f raw disk.raw "heads/$head"
		unchanged 'write'
		by_few
		;;
	esac
done
