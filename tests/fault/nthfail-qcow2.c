// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Nth failure of qcow2 images (image.h).
 */
#include "image.h"

#define SIZES .base_size = COW_KIB(768) + 512, .size = COW_KIB(700) - 1024, .cap = COW_KIB(900)

static const struct image_shape shapes[] = {
	{ .name = "plain", .options = "cluster_size=4K", .cluster = 4096, SIZES },
	{ .name = "lazy", .options = "cluster_size=16K,lazy_refcounts=on", .cluster = 16384, SIZES },
	{ .name = "subclusters", .options = "cluster_size=16K,extended_l2=on", .cluster = 16384, SIZES },
};

const struct image_kind image_kind = { .format = "qcow2", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes) };

NTHFAIL_TESTS
