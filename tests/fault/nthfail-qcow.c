// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Nth failure of qcow images (image.h).
 */
#include "image.h"

#define BASE .base_size = COW_KIB(768) + 512
#define SIZES .grows_only = true, .size = COW_KIB(700) - 1024, .cap = COW_KIB(900)

static const struct image_shape shapes[] = {
	{ .name = "overlay", .options = "cluster_size=4K", .cluster = 4096, BASE, SIZES },
	{ .name = "alone", .options = "cluster_size=4K", .cluster = 4096, SIZES },
	{ .name = "compressed", .options = "cluster_size=16K", .cluster = 16384, BASE, SIZES,
	  .prepare = image_with_encoded },
#ifdef HAVE_GCRYPT
	{ .name = "AES", .options = "cluster_size=4K,encrypt.format=aes," IMAGE_KEY,
	  .open_options = IMAGE_KEY, .cluster = 4096, BASE, SIZES },
#endif
};

const struct image_kind image_kind = { .format = "qcow", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes) };

NTHFAIL_TESTS
