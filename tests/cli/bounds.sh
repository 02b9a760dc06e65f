#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 600
#
# Crafted qcow2 and qcow images cost the tools little: at most 64 MiB of memory, and a refusal
# one second of the processor; and it is one sentence. FAULT=full: every tool with each image.
# (What each image does to the library is in tests/unit.)
. tests/lib/test.sh
require_cmd python3
[ -e "$BUILD/lib/cow/cow-qcow2.so" ] || skip "built without zlib and zstd"
mkdir "$TMP/images"
ulimit -t 600	# what hangs ends
python3 tests/cli/bounds.py "$TMP/images" || fail "see above"
