// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * All short histories of qcow images (image.h), compressed clusters among their
 * operations.
 */
#include "image.h"

static const struct image_shape shapes[] = {
	IMAGE_HISTORY_SHAPE("overlay", "cluster_size=4K", 4096, 4096, .grows_only = true),
	IMAGE_HISTORY_ALONE("alone", "cluster_size=4K", 4096, 4096, .grows_only = true),
	IMAGE_HISTORY_SHAPE("compressed", "cluster_size=4K", 4096, 4096, .grows_only = true,
			    .prepare = image_with_encoded),
#ifdef HAVE_GCRYPT
	IMAGE_HISTORY_SHAPE("AES", "cluster_size=4K,encrypt.format=aes," IMAGE_KEY, 4096, 4096,
			    .grows_only = true, .open_options = IMAGE_KEY),
#endif
	IMAGE_HISTORY_SHAPE("on a device", "cluster_size=4K", 4096, 4096, .grows_only = true,
			    .device = COW_MIB(2)),
};

const struct image_kind image_kind = { .format = "qcow", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes) };

TEST(short_sequences)
{
	image_histories(rig_full() ? 3 : 2, rig_full() ? 3 : 1);
}
