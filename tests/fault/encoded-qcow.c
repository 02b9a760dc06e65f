// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Compressed clusters of qcow among other changes, under power cuts and failing
 * disks (image.h). What they replace is a leak.
 *
 * Short unless FAULT=full.
 */
#include "image.h"

static const struct image_shape shapes[] = {
	{ .name = "alone", .options = "", .cluster = 4096, .size = COW_MIB(5) - 512 },
	{ .name = "large clusters over a base", .options = "cluster_size=64K", .cluster = 65536,
	  .base_size = COW_MIB(2) + 700, .size = COW_MIB(3) + 512 },
	{ .name = "overlay that grows", .options = "cluster_size=8K", .cluster = 8192,
	  .base_size = COW_MIB(2), .size = COW_MIB(1), .cap = COW_MIB(4) },
	{ .name = "sectors", .options = "", .cluster = 512, .base_size = COW_MIB(1), .size = COW_MIB(1) },
	{ .name = "on a device", .options = "", .cluster = 4096, .size = COW_MIB(2), .device = COW_MIB(24) },
};

const struct image_kind image_kind = {
	.format = "qcow", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes), .work = image_work_encoded,
};

ENCODED_TESTS
