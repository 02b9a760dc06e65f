// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Nth failure of qcow images (image.h).
 */
#include "image.h"

static const struct image_shape shapes[] = {
	{ .name = "overlay", .options = "cluster_size=4K", .cluster = 4096, .grows_only = true,
	  .base_size = COW_KIB(768) + 512, .size = COW_KIB(700) - 1024, .cap = COW_KIB(900) },
};

const struct image_kind image_kind = { .format = "qcow", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes) };

NTHFAIL_TESTS
