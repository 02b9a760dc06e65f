// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Compressed clusters of qcow2 among other changes, under power cuts and failing
 * disks (image.h).
 *
 * Short unless FAULT=full.
 */
#include "image.h"

static const struct image_shape shapes[] = {
	{ .name = "zlib", .options = "cluster_size=16K", .cluster = 16384,
	  .base_size = COW_MIB(2), .size = COW_MIB(3) - 512 },
	{ .name = "zstd, wide refcounts", .options = "cluster_size=4K,refcount_bits=64,compression_type=zstd",
	  .cluster = 4096, .base_size = COW_MIB(1) + 512, .size = COW_MIB(6) },
	{ .name = "one-bit refcounts", .options = "cluster_size=4K,refcount_bits=1", .cluster = 4096,
	  .size = COW_MIB(3) },
	{ .name = "two-bit refcounts", .options = "cluster_size=8K,refcount_bits=2", .cluster = 8192,
	  .size = COW_MIB(3) },
	{ .name = "subclusters", .options = "cluster_size=16K,extended_l2=on", .cluster = 16384,
	  .base_size = COW_MIB(2), .size = COW_MIB(3) },
};

const struct image_kind image_kind = {
	.format = "qcow2", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes), .work = image_work_encoded,
};

ENCODED_TESTS

/* Clean when it is closed: no leak, no cluster shared by more than say so; and packed. */
TEST(refcounts_after_a_close)
{
	image_no_leaks_after_close(4, 60);
}
