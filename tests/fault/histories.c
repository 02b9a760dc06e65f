// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * All short histories: every sequence of up to three operations on a small
 * image, crashed after every raw write. Most crash bugs of storage software
 * need no more than three operations on a fresh image, so this small bound is
 * searched completely instead of a large one at random.
 *
 * Each sequence runs on a fresh image and on one that holds flushed data.
 * FAULT=full makes five images for each raw write, otherwise two.
 */
#include "rig.h"
#include "test.h"

#define CRASH "crash.dscow"
#define BLOCKS 4u
#define LENGTH 3u
#define RANDOM_FULL 3u	/* random images at each position */
#define RANDOM_QUICK 1u

enum letter { NEW, REWRITE, STRADDLE, ZERO, DISCARD, FLUSH, RESIZE, OTHERS, LETTERS };

static const char *const letters[] = {
	"write-new", "rewrite", "straddle", "zero", "discard", "flush", "resize",
	"written-by-others",
};

struct history {
	struct rig r;
	unsigned next_block;	/* of write-new */
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
		h->next_block = (h->next_block + 1) % BLOCKS;
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
		op->kind = RIG_RESIZE;
		/* The short size cuts one granule of what straddles in two, and another one off. */
		op->len = h->grown ? 2 * block - 512 : (BLOCKS + 1) * block + 512;
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

static void judge(struct history *h, size_t pos, enum cow_sim_crash how, uint64_t seed,
		  const char *name)
{
	struct rig *r = &h->r;
	struct cow_err why = { 0 };
	int rc;

	CHECK_EQ(cow_sim_crash(r->sim, RIG_OVER, pos, how, seed, r->sim, CRASH), 0);
	rc = rig_judge(r, CRASH, pos, true, &why);
	if (rc)
		FAIL("%s: cut at %zu of %zu (mode %d, image seed %llu): %s", name, pos,
		     cow_sim_log_len(r->sim, RIG_OVER), (int)how, (unsigned long long)seed,
		     cow_err_text(&why, rc));
	h->images++;
}

static uint64_t run(const struct rig_cfg *cfg, const enum letter *seq, unsigned n, bool flushed)
{
	/* With data there is something to cut off: then the first resize is a shrink. */
	struct history h = { .last_len = 700, .grown = flushed };
	struct rig_op op;
	char name[128] = "";
	size_t end;

	rig_init(&h.r, cfg);
	h.r.c = rig_open(&h.r, RIG_OVER, COW_OPEN_WRITE);
	if (flushed) {
		letter_op(&h, NEW, &op);
		rig_must(&h.r, &op);
		rig_must(&h.r, &(struct rig_op){ .kind = RIG_FLUSH });
	}
	for (unsigned i = 0; i < n; i++) {
		size_t used = strlen(name);

		snprintf(name + used, sizeof(name) - used, "%s%s", i ? " " : "", letters[seq[i]]);
		letter_op(&h, seq[i], &op);
		rig_must(&h.r, &op);
	}
	CHECK_EQ(cow_chain_close(h.r.c), 0);
	h.r.c = NULL;
	end = cow_sim_log_len(h.r.sim, RIG_OVER);
	for (size_t pos = 0; pos <= end; pos++) {
		judge(&h, pos, COW_SIM_PREFIX, 0, name);
		if (rig_full())
			judge(&h, pos, COW_SIM_SYNCED, 0, name);
		for (unsigned i = 0; i < (rig_full() ? RANDOM_FULL : RANDOM_QUICK); i++)
			judge(&h, pos, COW_SIM_RANDOM, rig_rand(&h.r, UINT64_MAX), name);
	}
	rig_free(&h.r);
	return h.images;
}

static void all_histories(uint32_t block, uint32_t granule, bool blkdev)
{
	/* The base is shorter than the image by half a block: its end is a border, too. */
	struct rig_cfg cfg = {
		.seed = test_rand(), .block = block, .granule = granule, .blkdev = blkdev,
		.base_size = BLOCKS * (uint64_t)block - block / 2 - 100,
		.size = BLOCKS * (uint64_t)block - 512, .cap = (BLOCKS + 2) * (uint64_t)block,
	};
	uint64_t images = 0;
	unsigned count = 0;

	for (unsigned n = 0, total = 1; n <= LENGTH; n++, total *= LETTERS) {
		for (unsigned code = 0; code < total; code++) {
			enum letter seq[LENGTH];

			for (unsigned i = 0, c = code; i < n; i++, c /= LETTERS)
				seq[i] = (enum letter)(c % LETTERS);
			images += run(&cfg, seq, n, false);
			images += run(&cfg, seq, n, true);
			count += 2;
		}
	}
	printf("%u KiB blocks, %u KiB granules, %s: seed %llu, %u histories, %llu images, "
	       "0 failures\n", block / 1024, granule / 1024, blkdev ? "device" : "file",
	       (unsigned long long)cfg.seed, count, (unsigned long long)images);
}

TEST(four_kib_blocks)
{
	all_histories(4096, 4096, false);
}

TEST(sixteen_kib_blocks)
{
	all_histories(16384, 4096, false);
}

/* Nothing is cut off there by cutting a file: what was hidden has to be cleared. */
TEST(block_device)
{
	all_histories(4096, 4096, true);
}
