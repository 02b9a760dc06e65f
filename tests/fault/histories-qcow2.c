// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * All short histories of qcow2 images (image.h), compressed clusters and snapshots
 * among their operations where the image takes them.
 */
#include "image.h"

static const struct image_shape shapes[] = {
	IMAGE_HISTORY_SHAPE("plain", "cluster_size=4K", 4096, 4096),
	IMAGE_HISTORY_SHAPE("lazy", "cluster_size=4K,lazy_refcounts=on", 4096, 4096),
	IMAGE_HISTORY_SHAPE("subclusters", "cluster_size=16K,extended_l2=on", 16384, 16384),
	IMAGE_HISTORY_SHAPE("data file", "cluster_size=4K", 4096, 4096, .data = IMAGE_DATA),
	IMAGE_HISTORY_ALONE("raw data file", "cluster_size=4K,data_file_raw=on", 4096, 4096,
			    .data = IMAGE_DATA),
	IMAGE_HISTORY_SHAPE("compressed", "cluster_size=4K", 4096, 4096, .prepare = image_with_encoded),
	IMAGE_HISTORY_SHAPE("snapshot", "cluster_size=4K", 4096, 4096, .prepare = image_with_snapshot,
			    .judge = image_snapshot_kept),
	IMAGE_HISTORY_SHAPE("bitmaps", "cluster_size=4K", 4096, 4096, .prepare = image_with_bitmaps,
			    .judge = image_bitmaps_good),
#ifdef HAVE_GCRYPT
	IMAGE_HISTORY_SHAPE("LUKS", "cluster_size=4K,encrypt.format=luks,encrypt.iter-time=1," IMAGE_KEY,
			    4096, 4096, .open_options = IMAGE_KEY),
#endif
};

const struct image_kind image_kind = { .format = "qcow2", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes) };

TEST(short_sequences)
{
	image_histories(rig_full() ? 3 : 2, rig_full() ? 3 : 1);
}
