// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * All short histories: every sequence of up to three operations on a small
 * image of the format that image_kind names, crashed after every raw write. Most
 * crash bugs of storage software need no more than three operations on a fresh
 * image, so this small bound is searched completely instead of a large one at random.
 *
 * Each sequence runs on a fresh image and on one that holds flushed data.
 * FAULT=full makes five images for each raw write, otherwise two; the tests choose shorter
 * sequences then.
 */
#include <errno.h>

#include "image.h"

#define LENGTH IMAGE_HISTORY_MAX
#define RANDOM_FULL 3u	/* random images at each position */
#define RANDOM_QUICK 1u

enum letter { NEW, REWRITE, STRADDLE, ZERO, DISCARD, FLUSH, RESIZE, OTHERS, ENCODED, SNAPSHOT, LETTERS };

static const char *const letters[] = {
	"write-new", "rewrite", "straddle", "zero", "discard", "flush", "resize",
	"written-by-others", "write-encoded", "snapshot",
};

struct history {
	struct rig r;
	const struct image_shape *shape;
	unsigned next_block;	/* of write-new */
	unsigned snapshots;
	uint64_t last_off, last_len;	/* of the newest write */
	bool grown;
	uint64_t images;
};

static void letter_op(struct history *h, enum letter l, struct rig_op *op)
{
	uint64_t block = h->r.cfg.block, size = model_size(h->r.m);

	*op = (struct rig_op){ .kind = RIG_WRITE };
	switch (l) {
	case NEW:
		op->off = h->next_block * block + 300;
		op->len = block / 2;
		h->next_block = (h->next_block + 1) % IMAGE_HISTORY_BLOCKS;
		break;
	case REWRITE:
		op->off = h->last_off;
		op->len = h->last_len;
		break;
	case STRADDLE:
		op->off = 2 * block - 1000;
		op->len = 3000;
		break;
	case ZERO:
		op->kind = RIG_ZERO;
		op->off = block / 2 + 100;
		op->len = block + block / 4;
		break;
	case DISCARD:
		op->kind = RIG_DISCARD;
		op->off = 100;
		op->len = 2 * block;
		break;
	case FLUSH:
		op->kind = RIG_FLUSH;
		break;
	case OTHERS:	/* straddles a block's end, and the image's when that was cut to two blocks */
		op->kind = RIG_WRITTEN;
		op->off = 2 * block - h->r.cfg.granule;
		op->len = cow_min(2 * (uint64_t)h->r.cfg.granule, size - op->off);
		return;
	default:
		if (h->grown && h->shape->grows_only) {
			op->kind = RIG_FLUSH;
			return;
		}
		op->kind = RIG_RESIZE;
		/* The short size cuts one granule of what straddles in two, and another one off. */
		op->len = h->grown ? 2 * block - 512 : (IMAGE_HISTORY_BLOCKS + 1) * block + 512;
		h->grown = !h->grown;
		return;
	}
	if (op->kind != RIG_FLUSH) {
		op->off = op->off < size ? op->off : 300;
		op->len = cow_min(op->len, size - op->off);
	}
	if (op->kind == RIG_WRITE) {
		h->last_off = op->off;
		h->last_len = op->len;
	}
}

/* What changes nothing that the disk reads as. */
static void snapshot(struct history *h)
{
	struct cow_err err = { 0 };
	char name[8];

	snprintf(name, sizeof(name), "s%u", h->snapshots++);
	if (cow_chain_snapshot(h->r.c, COW_SNAPSHOT_CREATE, name, &err))
		FAIL("snapshot: %s", err.msg);
}

static void play(struct history *h, enum letter l)
{
	struct rig_op op;

	if (l == SNAPSHOT) {
		snapshot(h);
	} else if (l == ENCODED) {
		CHECK_EQ(image_put_encoded(&h->r), 0);
	} else {
		letter_op(h, l, &op);
		rig_must(&h->r, &op);
	}
}

static void cut(struct history *h, const char *name)
{
	struct image_shape s = *h->shape;
	size_t end = rig_now(&h->r);
	char full[160];

	snprintf(full, sizeof(full), "%s: %s", h->shape->name, name);
	s.name = full;
	for (size_t pos = 0; pos <= end; pos++) {
		unsigned random = rig_full() ? RANDOM_FULL : RANDOM_QUICK;

		image_cut(&h->r, &s, pos, COW_SIM_PREFIX);
		if (rig_full())
			image_cut(&h->r, &s, pos, COW_SIM_SYNCED);
		for (unsigned i = 0; i < random; i++)
			image_cut(&h->r, &s, pos, COW_SIM_RANDOM);
		h->images += 1 + rig_full() + random;
	}
}

static uint64_t run(const struct image_shape *s, uint64_t seed, const enum letter *seq, unsigned n,
		    bool flushed)
{
	/* With data there is something to cut off: then the first resize is a shrink. */
	struct history h = { .shape = s, .last_len = 700, .grown = flushed && !s->grows_only };
	char name[128] = "";

	image_init(&h.r, s, seed);
	image_open(&h.r);
	if (flushed) {
		play(&h, NEW);
		play(&h, FLUSH);
	}
	for (unsigned i = 0; i < n; i++) {
		size_t used = strlen(name);

		snprintf(name + used, sizeof(name) - used, "%s%s", i ? " " : "", letters[seq[i]]);
		play(&h, seq[i]);
	}
	image_close(&h.r);
	cut(&h, name);
	rig_free(&h.r);
	return h.images;
}

/* The operations that such an image has. */
static unsigned alphabet(const struct image_shape *s, enum letter *ret)
{
	const struct cow_image *img;
	unsigned n = 0;
	struct rig r;

	image_init(&r, s, 1);
	image_open(&r);
	img = cow_chain_image(r.c, 0);
	for (unsigned l = 0; l < LETTERS; l++) {
		if ((l != OTHERS || img->linear) && (l != ENCODED || image_encodes(&r)) &&
		    (l != SNAPSHOT || (img->fmt->snapshot && !img->data_file[0])))
			ret[n++] = (enum letter)l;
	}
	image_close(&r);
	rig_free(&r);
	return n;
}

static void all_histories(const struct image_shape *s, unsigned length)
{
	uint64_t images = 0, seed = test_rand();
	enum letter abc[LETTERS];
	unsigned count = 0, size = alphabet(s, abc);

	for (unsigned n = 0, total = 1; n <= length; n++, total *= size) {
		for (unsigned code = 0; code < total; code++) {
			enum letter seq[LENGTH];

			for (unsigned i = 0, c = code; i < n; i++, c /= size)
				seq[i] = abc[c % size];
			images += run(s, seed, seq, n, false);
			images += run(s, seed, seq, n, true);
			count += 2;
		}
	}
	printf("%s: seed %llu, %u operations, %u histories, %llu images, 0 failures\n", s->name,
	       (unsigned long long)seed, size, count, (unsigned long long)images);
}

void image_histories(unsigned first, unsigned others)
{
	CHECK(first <= LENGTH && others <= LENGTH);
	for (size_t i = 0; i < image_kind.n; i++)
		all_histories(&image_kind.shapes[i], i ? others : first);
}
