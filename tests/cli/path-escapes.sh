#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 1800
#
# Names of other files in qcow2 and qcow images, as base and as data file: absolute ones, through
# links and "..", those that other programs take for a protocol, devices, descriptors, bytes that
# are no text. Whatever program opens the image, and for whatever: nothing but what the caller
# named is opened, looked at or talked to outside of the image's folder, and what lies in it is
# only opened in a way that no link leads out of (openat2, RESOLVE_BENEATH). Names that are
# allowed, however they look, work. FAULT=full: each name with each operation.
. tests/lib/test.sh
require_cmd python3 strace
[ -e "$BUILD/lib/cow/cow-qcow2.so" ] || skip "built without zlib and zstd"
require_root
require_fuse
[ -z "${SAN:-}" ] || skip "strace does not go with sanitizers"

escapes=$PWD/tests/cli/path_escapes.py
top=$TMP/top
mkdir "$top"
export COW_RUN_DIR="$top/run" COW_VMAP_DIR="$top/vmap"
at_exit 'for m in "$top"/mnt/* "$top"/run/e*; do umount -l "$m" 2>/dev/null; done || :'
python3 "$escapes" make "$top"
cd "$top/in"
status=0
# Whoever opens descriptor 0 or 9 by a name opens what nobody may see.
strace -ff -qq -y -s 4100 --seccomp-bpf -e trace=%file,%network,open_by_handle_at -o ../trace \
	sh ../runs <../secret.raw 9<../secret.raw >../said 2>&1 || status=$?
[ $status = 0 ] && [ ! -s ../said ] || fail "status $status: $(cat ../said)"
python3 "$escapes" judge "$top" >../faults || fail "$(tail -n 50 ../faults)"
cat ../faults
