// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Images that have more inside than a disk (image.h): a snapshot, which reads as when it
 * was made whatever becomes of the disk; and bitmaps, of which none that is said to be
 * good misses a change of it.
 */
#include "image.h"

#include <errno.h>
#include <stdlib.h>

#define PLACES 8u	/* that something is written to before a snapshot */
#define SNAPSHOT "kept"

struct image_bitmap_tally image_bitmap_tally;

/* The disk as it was when the image was prepared, and as it is. */
static struct {
	uint8_t *bytes, *now;
	uint64_t size;
} kept;

static void keep(struct rig *r)
{
	uint64_t room = cow_max(r->cfg.size, r->cfg.cap);

	free(kept.bytes);
	free(kept.now);
	kept.bytes = calloc(1, room);
	kept.now = malloc(room);
	kept.size = model_size(r->m);
	CHECK(kept.bytes && kept.now);
	memcpy(kept.bytes, model_bytes(r->m), kept.size);
}

static int read_all(struct cow_chain *c, struct cow_err *why)
{
	int rc = cow_chain_pread(c, kept.now, cow_chain_size(c), 0);

	return rc ? cow_err_sys(why, rc, "read") : 0;
}

/* ---- a snapshot ---- */

void image_with_snapshot(struct rig *r)
{
	struct cow_err err = { 0 };

	image_open(r);
	for (uint64_t i = 0; i < PLACES; i++) {
		uint64_t off = i * model_size(r->m) / PLACES;

		rig_must(r, &(struct rig_op){ .kind = RIG_WRITE, .off = off,
					      .len = cow_min(r->cfg.block / 2, model_size(r->m) - off) });
	}
	rig_must(r, &(struct rig_op){ .kind = RIG_FLUSH });
	if (cow_chain_snapshot(r->c, COW_SNAPSHOT_CREATE, SNAPSHOT, &err))
		FAIL("snapshot: %s", err.msg);
	image_close(r);
	keep(r);
}

int image_snapshot_kept(struct rig *r, const char *name, struct cow_err *why)
{
	struct cow_chain *c;
	int rc = image_try_snapshot(r, name, SNAPSHOT, &c, why);

	if (rc)
		return rc;
	if (cow_chain_size(c) != kept.size)
		rc = cow_err_set(why, -EUCLEAN, "the snapshot has %llu bytes",
				 (unsigned long long)cow_chain_size(c));
	if (rc == 0)
		rc = read_all(c, why);
	if (rc == 0 && memcmp(kept.now, kept.bytes, kept.size))
		rc = cow_err_set(why, -EUCLEAN, "the snapshot reads otherwise than when it was made");
	CHECK_EQ(cow_chain_close(c), 0);
	return rc;
}

/* ---- bitmaps ---- */

static void add(struct rig *r, const char *name, uint64_t granularity, bool disabled)
{
	struct cow_bitmap_change ch = { .op = COW_BITMAP_ADD, .name = name, .granularity = granularity,
					.disabled = disabled };
	struct cow_err err = { 0 };

	if (cow_chain_bitmap(r->c, &ch, &err))
		FAIL("bitmap '%s': %s", name, err.msg);
}

void image_with_bitmaps(struct rig *r)
{
	keep(r);
	image_bitmap_tally = (struct image_bitmap_tally){ 0 };
	image_open(r);
	add(r, "fine", 512, false);
	add(r, "coarse", 65536, false);
	add(r, "off", 4096, true);
	image_close(r);
}

struct judging {
	struct rig *r;
	struct cow_chain *c;
	struct cow_err *why;
	uint64_t at;		/* end of the last range */
};

/* Does it read as at first? What was behind the end in between comes into view as zeroes, unrecorded. */
static bool unchanged(uint64_t from, uint64_t to, uint64_t least)
{
	uint64_t at = cow_max(from, cow_min(to, least));

	if (memcmp(kept.now + from, kept.bytes + from, at - from))
		return false;
	while (at < to && (kept.now[at] == 0 || kept.now[at] == kept.bytes[at]))
		at++;
	return at == to;
}

/* What lies between two ranges is. */
static int unchanged_before(void *opaque, uint64_t virt, uint64_t len)
{
	struct judging *j = opaque;

	if (!unchanged(j->at, virt, model_least(j->r->m)))
		return 1;
	j->at = virt + len;
	return 0;
}

/* Only an image that changes its size may lose one that records nothing. */
static int stale(struct judging *j, const struct cow_bitmap *b)
{
	image_bitmap_tally.stale += b->enabled;
	if (strcmp(b->state, "inconsistent") || (!b->enabled && !j->r->cfg.cap))
		return cow_err_set(j->why, -EUCLEAN, "the bitmap '%s' is %s", b->name, b->state);
	return 0;
}

static int judge_one(void *opaque, const struct cow_bitmap *b)
{
	struct judging *j = opaque;
	int rc;

	if (strcmp(b->name, "fine") && strcmp(b->name, "coarse") && strcmp(b->name, "off"))
		return 0;
	if (strcmp(b->state, "good"))
		return stale(j, b);
	j->at = 0;
	rc = cow_chain_bitmap_ranges(j->c, b->name, unchanged_before, j, j->why);
	if (rc < 0)
		return rc;
	if (!b->enabled)
		return j->at == 0 ? 0 : cow_err_set(j->why, -EUCLEAN, "the bitmap '%s' records changes",
						    b->name);
	image_bitmap_tally.good++;
	if (rc == 0)
		rc = unchanged_before(j, cow_chain_size(j->c), 0);
	return rc ? cow_err_set(j->why, -EUCLEAN, "the bitmap '%s' is good and misses a change behind %llu",
				b->name, (unsigned long long)j->at) : 0;
}

int image_bitmaps_good(struct rig *r, const char *name, struct cow_err *why)
{
	struct judging j = { .r = r, .why = why };
	int rc = image_try_open(r, name, 0, &j.c, why);

	if (rc)
		return rc;
	rc = read_all(j.c, why);
	if (rc == 0)
		rc = cow_chain_bitmaps(j.c, judge_one, &j, why);
	CHECK_EQ(cow_chain_close(j.c), 0);
	return rc;
}
