// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Nth failure of qcow2 images (image.h).
 */
#include "image.h"

#define ALONE .size = COW_KIB(700) - 1024, .cap = COW_KIB(900)
#define SIZES .base_size = COW_KIB(768) + 512, ALONE

static const struct image_shape shapes[] = {
	{ .name = "plain", .options = "cluster_size=4K", .cluster = 4096, SIZES },
	{ .name = "lazy", .options = "cluster_size=16K,lazy_refcounts=on", .cluster = 16384, SIZES },
	{ .name = "subclusters", .options = "cluster_size=16K,extended_l2=on", .cluster = 16384, SIZES },
	{ .name = "data file", .options = "cluster_size=4K", .data = IMAGE_DATA, .cluster = 4096, SIZES },
	{ .name = "raw data file", .options = "cluster_size=16K,data_file_raw=on", .data = IMAGE_DATA,
	  .cluster = 16384, ALONE },
	{ .name = "compressed", .options = "cluster_size=16K", .cluster = 16384, SIZES,
	  .prepare = image_with_encoded },
	/* Alone: a commit changes what shows through in a snapshot. */
	{ .name = "snapshot", .options = "cluster_size=4K", .cluster = 4096, ALONE,
	  .prepare = image_with_snapshot, .judge = image_snapshot_kept },
	{ .name = "bitmaps", .options = "cluster_size=16K", .cluster = 16384, SIZES,
	  .prepare = image_with_bitmaps, .judge = image_bitmaps_good },
#ifdef HAVE_GCRYPT
	{ .name = "LUKS", .options = "cluster_size=16K,encrypt.format=luks,encrypt.iter-time=1," IMAGE_KEY,
	  .open_options = IMAGE_KEY, .cluster = 16384, SIZES },
#endif
};

const struct image_kind image_kind = { .format = "qcow2", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes) };

NTHFAIL_TESTS
