# SPDX-License-Identifier: GPL-2.0-or-later
"""A qcow2 image of any size, half of whose clusters are allocated, in a moment.

Its tables are complete and true; the data are holes of the file. Which clusters of a table's
range are there is chosen once, and the same for each table; they lie in the file in the order of
the disk. So one table is made by hand, and all others from it by one addition: a table is a number
of 64 KiB, in whose digits, the entries, what is added never carries.
"""
import random
import struct

CLUSTER = 65536
ENTRIES = CLUSTER // 8		# of an L1 or L2 table's cluster, or of the refcount table
REFCOUNTS = CLUSTER // 2	# of a refcount block
COPIED = 1 << 63


def numbers(values):
    return b''.join(struct.pack('>Q', v) for v in values)


def layout(tables, data):
    """First clusters of: L1 table, refcount blocks, L2 tables, data; and the end."""
    l1 = 2
    blocks_at = l1 + -(-tables // ENTRIES)
    blocks = 0
    while True:
        end = blocks_at + blocks + tables + data
        if -(-end // REFCOUNTS) == blocks:
            return l1, blocks_at, blocks_at + blocks, end - data, end
        blocks = -(-end // REFCOUNTS)


def make(path, size, seed):
    """@size is a multiple of the 512 MiB that a table covers, and what one refcount table can hold."""
    tables, there = size // CLUSTER // ENTRIES, ENTRIES // 2
    l1, blocks_at, l2, data, end = layout(tables, tables * there)
    chosen = set(random.Random(seed).sample(range(ENTRIES), there))
    place = iter(range(there))
    first = int.from_bytes(numbers(COPIED | (data + next(place)) * CLUSTER if i in chosen else 0
                                   for i in range(ENTRIES)), 'big')
    ones = int.from_bytes(numbers(int(i in chosen) for i in range(ENTRIES)), 'big')
    with open(path, 'wb') as f:
        f.write(struct.pack('>4sIQIIQIIQQIIQQQQII', b'QFI\xfb', 3, 0, 0, 16, size, 0, tables,
                            l1 * CLUSTER, CLUSTER, 1, 0, 0, 0, 0, 0, 4, 104))
        f.seek(CLUSTER)
        f.write(numbers(c * CLUSTER for c in range(blocks_at, l2)))
        f.seek(l1 * CLUSTER)
        f.write(numbers(COPIED | c * CLUSTER for c in range(l2, data)))
        f.seek(blocks_at * CLUSTER)
        f.write(b'\0\1' * end)
        f.seek(l2 * CLUSTER)
        for t in range(tables):
            f.write((first + t * there * CLUSTER * ones).to_bytes(CLUSTER, 'big'))
        f.truncate(end * CLUSTER)
