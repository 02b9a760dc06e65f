#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# qcow2 both ways: images made by either side, changed in turns, read by both,
# and found clean by both after each turn; over a matrix of options.
# TIMEOUT: 600
. tests/lib/test.sh
. tests/lib/qcow2.sh
turns=4

cd "$TMP"
for who in cowimg qemu-img; do
	history $who 8388608 0 cluster_size=65536
	history $who 5000192 3000000 cluster_size=65536,lazy_refcounts=on
	history $who 3145728 1000000 cluster_size=4096,refcount_bits=64
	history $who 3145728 0 cluster_size=4096,refcount_bits=1
	history $who 4194304 2000000 cluster_size=8192,refcount_bits=4,compression_type=zstd
	history $who 6291456 2500000 cluster_size=16384,extended_l2=on
	history $who 6291456 0 cluster_size=65536,extended_l2=on,refcount_bits=32
	history $who 8388608 3000000 cluster_size=2097152
	history $who 4194304 1500000 compat=0.10,cluster_size=65536
	history $who 4194304 0 compat=0.10,cluster_size=4096
done
