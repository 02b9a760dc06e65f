// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * All short histories of qcow2 images (image.h), compressed clusters and snapshots
 * among their operations.
 */
#include "image.h"

static const struct image_shape shapes[] = {
	IMAGE_HISTORY_SHAPE("plain", "cluster_size=4K", 4096, 4096),
	IMAGE_HISTORY_SHAPE("lazy", "cluster_size=4K,lazy_refcounts=on", 4096, 4096),
	IMAGE_HISTORY_SHAPE("subclusters", "cluster_size=16K,extended_l2=on", 16384, 16384),
};

const struct image_kind image_kind = { .format = "qcow2", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes) };

TEST(short_sequences)
{
	image_histories(rig_full() ? 3 : 2);
}
