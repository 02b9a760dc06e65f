// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Persistent bitmaps of qcow2 under power cuts and failing disks (image.h): whatever
 * is left, a bitmap that is said to be good misses no change of the disk.
 *
 * Short unless FAULT=full.
 */
#include "image.h"

static void change(struct cow_chain *c, const struct cow_bitmap_change *ch)
{
	struct cow_err err = { 0 };

	if (cow_chain_bitmap(c, ch, &err))
		FAIL("bitmap '%s': %s", ch->name, err.msg);
}

#define BITMAPS .prepare = image_with_bitmaps, .judge = image_bitmaps_good

static const struct image_shape shapes[] = {
	{ .name = "plain", .options = "cluster_size=64K", .cluster = 65536,
	  .base_size = COW_MIB(2) + 700, .size = COW_MIB(3) - 512, BITMAPS },
	{ .name = "small clusters", .options = "cluster_size=4K,refcount_bits=64", .cluster = 4096,
	  .size = COW_MIB(20), .fill = COW_MIB(1), BITMAPS },
	{ .name = "one-bit refcounts", .options = "cluster_size=4K,refcount_bits=1,lazy_refcounts=on",
	  .cluster = 4096, .size = COW_MIB(3), BITMAPS },
	{ .name = "subclusters", .options = "cluster_size=16K,extended_l2=on", .cluster = 16384,
	  .base_size = COW_MIB(2), .size = COW_MIB(4), BITMAPS },
	{ .name = "growing", .options = "cluster_size=4K", .cluster = 4096, .base_size = COW_MIB(2),
	  .size = COW_MIB(1), .cap = COW_MIB(20), BITMAPS },
};

const struct image_kind image_kind = {
	.format = "qcow2", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes),
};

IMAGE_TESTS

/* Sessions of changes, with bitmaps made, changed and removed in between and within. */
static void sessions(struct rig *r, unsigned n)
{
	struct cow_err err = { 0 };

	for (unsigned i = 0; i < n; i++) {
		image_open(r);
		image_work(r, 1 + (unsigned)rig_rand(r, 10));
		if (i % 3 == 0)
			change(r->c, &(struct cow_bitmap_change){ .op = COW_BITMAP_ADD,
								  .name = "passing", .granularity = 4096 });
		image_work(r, (unsigned)rig_rand(r, 4));
		if (i % 3 == 1) {
			if (cow_chain_bitmap_merge(r->c, "passing", r->c, "fine", &err))
				FAIL("merge: %s", err.msg);
			change(r->c, &(struct cow_bitmap_change){ .op = COW_BITMAP_CLEAR, .name = "passing" });
		}
		if (i % 3 == 2)
			change(r->c, &(struct cow_bitmap_change){ .op = COW_BITMAP_REMOVE,
								  .name = "passing" });
		image_work(r, (unsigned)rig_rand(r, 4));
		image_close(r);
	}
}

static void cut_sessions(const struct image_shape *s)
{
	struct rig r;
	size_t n;

	image_init(&r, s, test_rand());
	sessions(&r, rig_full() ? 12 : 4);
	n = rig_now(&r);
	for (size_t pos = 0; pos <= n; pos++) {
		/* Just before a sync the most is undecided. */
		if (!rig_full() && pos < n && !cow_sim_log_is_sync(r.sim, RIG_OVER, pos))
			continue;
		for (unsigned i = 0; i < (rig_full() ? 6 : 2); i++)
			image_cut(&r, s, pos, i ? COW_SIM_RANDOM : COW_SIM_PREFIX);
	}
	CHECK(image_bitmap_tally.good && image_bitmap_tally.stale);
	printf("%s: %zu log entries; of bitmaps that record %u were good, %u stale\n", s->name, n,
	       image_bitmap_tally.good, image_bitmap_tally.stale);
	rig_free(&r);
}

TEST(good_bitmaps_miss_nothing)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(shapes); i++)
		cut_sessions(&shapes[i]);
}
