// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * All short histories of dscow images (image.h), in files and on a block device: nothing
 * is cut off there by cutting a file, what was hidden has to be cleared.
 */
#include "image.h"

static const struct image_shape shapes[] = {
	IMAGE_HISTORY_SHAPE("4 KiB blocks", "block_size=4K,granule_size=4K", 4096, 4096),
	IMAGE_HISTORY_SHAPE("16 KiB blocks, 4 KiB granules", "block_size=16K,granule_size=4K", 16384, 4096),
	IMAGE_HISTORY_SHAPE("on a device", "block_size=4K,granule_size=4K", 4096, 4096,
			    .device = COW_MIB(9)),
};

const struct image_kind image_kind = { .format = "dscow", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes) };

TEST(up_to_three_operations)
{
	image_histories(3, 3);
}
