// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Persistent bitmaps of qcow2 under power cuts and failing disks (image.h): whatever
 * is left, a bitmap that is said to be good misses no change of the disk.
 *
 * Short unless FAULT=full.
 */
#include "image.h"

#include <stdlib.h>

static void change(struct cow_chain *c, const struct cow_bitmap_change *ch)
{
	struct cow_err err = { 0 };

	if (cow_chain_bitmap(c, ch, &err))
		FAIL("bitmap '%s': %s", ch->name, err.msg);
}

static void add(struct cow_chain *c, const char *name, uint64_t granularity, bool disabled)
{
	change(c, &(struct cow_bitmap_change){ .op = COW_BITMAP_ADD, .name = name,
					       .granularity = granularity, .disabled = disabled });
}

/* Two that record everything, and one that records nothing. */
static void with_bitmaps(struct rig *r)
{
	image_open(r);
	add(r->c, "fine", 512, false);
	add(r->c, "coarse", 65536, false);
	add(r->c, "off", 4096, true);
	image_close(r);
}

static const struct image_shape shapes[] = {
	{ .name = "plain", .options = "cluster_size=64K", .cluster = 65536,
	  .base_size = COW_MIB(2) + 700, .size = COW_MIB(3) - 512, .prepare = with_bitmaps },
	{ .name = "small clusters", .options = "cluster_size=4K,refcount_bits=64", .cluster = 4096,
	  .size = COW_MIB(20), .fill = COW_MIB(1), .prepare = with_bitmaps },
	{ .name = "one-bit refcounts", .options = "cluster_size=4K,refcount_bits=1,lazy_refcounts=on",
	  .cluster = 4096, .size = COW_MIB(3), .prepare = with_bitmaps },
	{ .name = "subclusters", .options = "cluster_size=16K,extended_l2=on", .cluster = 16384,
	  .base_size = COW_MIB(2), .size = COW_MIB(4), .prepare = with_bitmaps },
	{ .name = "growing", .options = "cluster_size=4K", .cluster = 4096, .base_size = COW_MIB(2),
	  .size = COW_MIB(1), .cap = COW_MIB(40), .prepare = with_bitmaps },
};

const struct image_kind image_kind = {
	.format = "qcow2", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes),
};

IMAGE_TESTS

/* ---- what is said to be good ---- */

struct judging {
	struct rig *r;
	uint8_t *first;			/* the disk before anything was recorded */
	uint8_t *now;
	uint64_t size, at;		/* of the crashed image; end of the last range */
	unsigned good, stale;		/* of those that record */
};

/* What lies between two ranges reads as at first. */
static int unchanged_before(void *opaque, uint64_t virt, uint64_t len)
{
	struct judging *j = opaque;

	if (memcmp(j->now + j->at, j->first + j->at, virt - j->at))
		return 1;
	j->at = virt + len;
	return 0;
}

static int judge_one(void *opaque, const struct cow_bitmap *b)
{
	struct judging *j = opaque;
	struct cow_err err = { 0 };
	int rc;

	if (strcmp(b->name, "fine") && strcmp(b->name, "coarse") && strcmp(b->name, "off"))
		return 0;
	if (strcmp(b->state, "good")) {
		CHECK_STR(b->state, "inconsistent");
		if (b->enabled)
			j->stale++;
		else
			CHECK(j->r->cfg.cap);	/* only while the size changes */
		return 0;
	}
	j->at = 0;
	rc = cow_chain_bitmap_ranges(j->r->c, b->name, unchanged_before, j, &err);
	if (rc < 0)
		FAIL("the bitmap '%s' cannot be read: %s", b->name, err.msg);
	if (!b->enabled) {
		CHECK_EQ(j->at, 0);
		return 0;
	}
	j->good++;
	return rc ? rc : unchanged_before(j, j->size, 0);
}

static void judge(struct judging *j, const char *shape, size_t pos)
{
	struct cow_err err = { 0 };
	int rc;

	CHECK_EQ(image_try_open(j->r, IMAGE_CRASH, 0, &j->r->c, &err), 0);
	j->size = cow_chain_size(j->r->c);
	for (uint64_t at = 0; at < j->size; at += COW_MIB(1))
		CHECK_EQ(cow_chain_pread(j->r->c, j->now + at, cow_min(COW_MIB(1), j->size - at), at), 0);
	rc = cow_chain_bitmaps(j->r->c, judge_one, j, &err);
	if (rc)
		FAIL("%s: cut at %zu (workload seed %llu): a good bitmap misses a change before %llu, or %s",
		     shape, pos, (unsigned long long)j->r->cfg.seed, (unsigned long long)j->at,
		     cow_err_text(&err, rc));
	image_close(j->r);
}

/* Sessions of changes, with bitmaps made, changed and removed in between and within. */
static void sessions(struct rig *r, unsigned n)
{
	struct cow_err err = { 0 };

	for (unsigned i = 0; i < n; i++) {
		image_open(r);
		image_work(r, 1 + (unsigned)rig_rand(r, 10));
		if (i % 3 == 0)
			add(r->c, "passing", 4096, false);
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
	uint64_t room = cow_max(s->size, s->cap);
	struct rig r;
	struct judging j = { .r = &r, .first = calloc(1, room), .now = malloc(room) };
	size_t n;

	CHECK(j.first && j.now);
	image_init(&r, s, test_rand());
	memcpy(j.first, model_bytes(r.m), s->size);
	sessions(&r, rig_full() ? 12 : 4);
	n = cow_sim_log_len(r.sim, RIG_OVER);
	for (size_t pos = 1; pos <= n; pos++) {
		/* Just before a sync the most is undecided. */
		if (!rig_full() && pos < n && !cow_sim_log_is_sync(r.sim, RIG_OVER, pos))
			continue;
		for (unsigned i = 0; i < (rig_full() ? 6 : 2); i++) {
			image_cut(&r, s, pos, i ? COW_SIM_RANDOM : COW_SIM_PREFIX);
			judge(&j, s->name, pos);
		}
	}
	CHECK(j.good && j.stale);
	printf("%s: %zu log entries; of bitmaps that record %u were good, %u stale\n", s->name, n, j.good,
	       j.stale);
	free(j.first);
	free(j.now);
	rig_free(&r);
}

TEST(good_bitmaps_miss_nothing)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(shapes); i++)
		cut_sessions(&shapes[i]);
}
