#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 120
#
# A killed daemon and its qcow2 image: what was written and not flushed is there
# for the next one, unless QEMU wrote to the image in between.
. tests/lib/test.sh
[ -e "$BUILD/lib/cow/cow-qcow2.so" ] || skip "built without zlib and zstd"
require_root
require_fuse
require_loop
require_cmd qemu-io qemu-img jq

cd "$TMP"
at_exit 'timeout 20 cowctl stop vm --force >/dev/null 2>&1'
allowed=
seq 1 900000 | head -c $((733 * 4096)) >piece
pages=733

serve() {
	# shellcheck disable=SC2086
	dev=$(cowd --frontend=fuse -p qcow2 $allowed vm img.qcow2) || fail "cowd: status $?"
}
write_and_kill() {	# past the page cache, so that all of it was acknowledged; nothing is flushed
	dd if=piece of="$dev" bs=4096 count=$pages seek="$1" conv=notrunc oflag=direct status=none
	kill_hard "$(cowctl status vm --json | jq .pid)"
}
same() {	# FIRST-PAGE
	dd if="$dev" bs=4096 skip="$1" count=$pages status=none | cmp -n $((pages * 4096)) - piece ||
		fail "a write is lost"
}

for options in cluster_size=64K cluster_size=4K,refcount_bits=64 cluster_size=16K,extended_l2=on data_file=data.raw; do
	subtest "taken over: $options"
	case $options in data_file=*) allowed="-o $options" ;; esac
	cowimg create -q -f qcow2 --overwrite -o $options img.qcow2 16M
	serve
	write_and_kill 100
	serve
	same 100
	write_and_kill 2000
	serve
	same 100
	same 2000
	cowctl stop vm
	# shellcheck disable=SC2086
	cowimg check -q -f qcow2 $allowed -r all img.qcow2 || fail "not clean"
	qemu-img check -q img.qcow2 || fail "QEMU finds something"
	qemu-img convert -f qcow2 -O raw img.qcow2 flat
	dd if=flat bs=4096 skip=100 count=$pages status=none | cmp -n $((pages * 4096)) - piece ||
		fail "QEMU does not see what was written"
done

allowed=
subtest QEMU wrote in between
cowimg create -q -f qcow2 --overwrite img.qcow2 16M
serve
write_and_kill 100
qemu-io -f qcow2 -c 'write -P 9 8M 1M' img.qcow2 >/dev/null || fail "QEMU cannot write"
cowimg read -q -f qcow2 img.qcow2 - >flat
qemu-img convert -f qcow2 -O raw img.qcow2 theirs
cmp flat theirs || fail "old changes were mixed with QEMU's"
cowimg zero -q -f qcow2 -s 4M -l 64K img.qcow2
qemu-img convert -f qcow2 -O raw img.qcow2 theirs
cmp flat theirs || fail "old changes were mixed with QEMU's, by a writer"
serve
cmp -n 16777216 "$dev" flat || fail "old changes were mixed with QEMU's, by a daemon"
cowctl stop vm

subtest what bitmaps are worth afterwards
state() {	# BITMAP
	cowimg info -f qcow2 --output=json img.qcow2 |
		jq -r ".layers[0].format_specific.bitmaps[] | select(.name == \"$1\").state"
}
cowimg create -q -f qcow2 --overwrite img.qcow2 16M
cowimg bitmap -q -f qcow2 -a bits -g 4096 img.qcow2
cowimg bitmap -q -f qcow2 -a off -n img.qcow2
serve
dd if=piece of="$dev" bs=4096 count=3 seek=100 conv=notrunc oflag=direct status=none
cowctl stop vm
[ "$(cowimg bitmap -f qcow2 --output=json -D bits img.qcow2 | jq -c '.changed')" = \
  '[{"start":409600,"length":12288}]' ] || fail "a daemon's writes are not recorded as they were"
serve
write_and_kill 100
[ "$(state bits) $(state off)" = 'inconsistent good' ] || fail "after a kill: $(state bits), $(state off)"
serve
same 100
cowctl stop vm
[ "$(state bits) $(state off)" = 'inconsistent good' ] || fail "later: $(state bits), $(state off)"
cowimg check -q -f qcow2 -r all img.qcow2 || fail "not clean"
qemu-img check -q img.qcow2 || fail "QEMU finds something"
