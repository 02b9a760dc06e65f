// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Power cuts: a recorded workload on an overlay, and every state that a power
 * cut could have left judged by the model. Prefixes of the log, what a sync
 * had made durable, and random mixtures of the unsynced tail, torn at 512
 * bytes. The failure messages name the position and the seed of the image.
 *
 * FAULT=full judges more than 20,000 images, otherwise about a tenth.
 */
#include <errno.h>

#include "rig.h"
#include "test.h"

#define CRASH "crash.dscow"
#define CRASH_BASE "crash.raw"
#define FULL_READ_EVERY 64u	/* images whose untouched granules are read too, not only mapped */

struct tally {
	uint64_t prefix, synced, random;
};

static const char *const how_names[] = { "prefix", "synced", "random" };

static void judge(struct rig *r, size_t pos, enum cow_sim_crash how, uint64_t seed,
		  struct tally *t)
{
	uint64_t n = t->prefix + t->synced + t->random;
	struct cow_err why = { 0 };
	int rc;

	rig_crash(r, pos, how, seed, CRASH);
	rc = rig_judge(r, CRASH, pos, n % FULL_READ_EVERY == 0, &why);
	if (rc)
		FAIL("cut at %zu of %zu (%s, image seed %llu, workload seed %llu): %s", pos,
		     cow_sim_log_len(r->sim, RIG_OVER), how_names[how], (unsigned long long)seed,
		     (unsigned long long)r->cfg.seed, cow_err_text(&why, rc));
	t->prefix += how == COW_SIM_PREFIX;
	t->synced += how == COW_SIM_SYNCED;
	t->random += how == COW_SIM_RANDOM;
}

/* Every prefix, in order; then each interval between two syncs @per_epoch times. */
static void judge_log(struct rig *r, size_t step, unsigned per_epoch, struct tally *t)
{
	size_t n = cow_sim_log_len(r->sim, RIG_OVER), start = 0;

	for (size_t pos = 0; pos <= n; pos += step)
		judge(r, pos, COW_SIM_PREFIX, 0, t);
	for (size_t pos = 1; pos <= n; pos++) {
		if (pos < n && !cow_sim_log_is_sync(r->sim, RIG_OVER, pos))
			continue;
		judge(r, pos, COW_SIM_SYNCED, 0, t);
		for (unsigned i = 0; i < per_epoch && pos > start; i++)
			judge(r, start + 1 + rig_rand(r, pos - start), COW_SIM_RANDOM,
			      rig_rand(r, UINT64_MAX), t);
		start = pos;
	}
}

static void report(const char *what, const struct rig *r, const struct tally *t)
{
	printf("%s: seed %llu, %llu prefix + %llu synced + %llu random = %llu images, 0 failures\n",
	       what, (unsigned long long)r->cfg.seed, (unsigned long long)t->prefix,
	       (unsigned long long)t->synced, (unsigned long long)t->random,
	       (unsigned long long)(t->prefix + t->synced + t->random));
}

static void workload(struct rig *r, unsigned ops)
{
	for (unsigned i = 0; i < ops; i++) {
		struct rig_op op;

		rig_random(r, &op, 1);
		rig_must(r, &op);
	}
}

/* 160 MiB reach into the 11th map sector and the second cache block of the map. */
static struct rig_cfg big_cfg(void)
{
	uint64_t sector = 3968 * 4096ULL;

	return (struct rig_cfg){
		.seed = test_rand(),
		.base_size = COW_MIB(160) + 1536 + 100,
		.hot = { 0, sector - 90000, 8 * sector - 100000, COW_MIB(160) - 200000 },
		.hot_len = 220000,
	};
}

static void record_and_judge(const char *what, const struct rig_cfg *cfg, unsigned ops)
{
	struct tally t = { 0 };
	struct rig r;

	rig_init(&r, cfg);
	r.c = rig_open(&r, RIG_OVER, COW_OPEN_WRITE);
	workload(&r, ops);
	CHECK_EQ(cow_chain_close(r.c), 0);
	r.c = NULL;
	judge_log(&r, rig_full() ? 1 : 2, rig_full() ? 60 : 12, &t);
	report(what, &r, &t);
	rig_free(&r);
}

TEST(two_thousand_operations)
{
	struct rig_cfg cfg = big_cfg();

	record_and_judge("64 KiB blocks, 4 KiB granules", &cfg, rig_full() ? 2000 : 800);
}

TEST(small_blocks)
{
	struct rig_cfg cfg = {
		.seed = test_rand(), .base_size = COW_MIB(1) + 700, .block = 4096,
	};

	record_and_judge("4 KiB blocks", &cfg, rig_full() ? 2000 : 200);
}

TEST(large_granules)
{
	struct rig_cfg cfg = {
		.seed = test_rand(), .base_size = COW_MIB(3) + 8192, .size = COW_MIB(4) - 512,
		.block = 65536, .granule = 16384,
	};

	record_and_judge("16 KiB granules, larger than the base", &cfg, rig_full() ? 2000 : 200);
}

TEST(block_device)
{
	struct rig_cfg cfg = big_cfg();

	cfg.blkdev = true;
	record_and_judge("on a block device", &cfg, rig_full() ? 2000 : 200);
}

static void resizing_workload(struct rig *r, unsigned ops)
{
	for (unsigned i = 0; i < ops; i++) {
		struct rig_op op;

		rig_random(r, &op, 1);
		if (rig_rand(r, 16) == 0) {
			op = (struct rig_op){ .kind = RIG_RESIZE };
			op.len = rig_rand(r, 3) ? COW_MIB(1) : r->cfg.cap - 4096;
			op.len = 4096 + rig_rand(r, op.len);
			op.len -= op.len % 512;
		}
		rig_must(r, &op);
	}
}

/* Growing past the space before the first block moves the map; that must be safe, too. */
TEST(resizing)
{
	struct rig_cfg cfg = {
		.seed = test_rand(), .base_size = COW_KIB(600), .size = COW_KIB(512),
		.cap = COW_MIB(400),
		.hot = { 0, COW_MIB(200), COW_MIB(300), COW_KIB(400) }, .hot_len = COW_KIB(100),
	};
	struct tally t = { 0 };
	struct rig r;

	rig_init(&r, &cfg);
	r.c = rig_open(&r, RIG_OVER, COW_OPEN_WRITE);
	resizing_workload(&r, rig_full() ? 600 : 100);
	CHECK_EQ(cow_chain_close(r.c), 0);
	r.c = NULL;
	judge_log(&r, rig_full() ? 1 : 2, rig_full() ? 10 : 2, &t);
	report("with resizes", &r, &t);
	rig_free(&r);
}

/* What a crash at @pos left becomes the disk of the next life; the model starts again from it. */
static void next_life(struct rig *r, size_t pos)
{
	uint64_t seed = rig_rand(r, UINT64_MAX), size;
	struct cow_err why = { 0 };
	uint8_t *bytes;
	int rc;

	rig_crash(r, pos, COW_SIM_RANDOM, seed, CRASH);
	rc = rig_judge(r, CRASH, pos, true, &why);
	if (rc)
		FAIL("%s", cow_err_text(&why, rc));
	/* Made anew, because judging opened it for writing; and given the overlay's name. */
	CHECK_EQ(cow_sim_crash(r->sim, RIG_OVER, pos, COW_SIM_RANDOM, seed, r->sim, CRASH), 0);
	cow_sim_log_start(r->sim, CRASH);
	CHECK_EQ(cow_sim_crash(r->sim, CRASH, 0, COW_SIM_PREFIX, 0, r->sim, RIG_OVER), 0);
	r->c = rig_open(r, RIG_OVER, 0);
	size = cow_chain_size(r->c);
	model_free(r->m);
	r->m = model_new(size, r->cfg.cap, r->cfg.granule);
	model_below(r->m, 0);
	bytes = model_bytes(r->m);
	CHECK_EQ(cow_chain_pread(r->c, bytes, size, 0), 0);
	CHECK_EQ(cow_chain_close(r->c), 0);
	cow_sim_log_start(r->sim, RIG_OVER);
}

static void lives(const char *what, const struct rig_cfg *cfg)
{
	unsigned n = rig_full() ? 400 : 50;
	struct rig r;
	size_t pos;

	rig_init(&r, cfg);
	for (unsigned i = 0; i < n; i++) {
		/* Power fails at @pos; the close behind it happens to the old disk only. */
		r.c = rig_open(&r, RIG_OVER, COW_OPEN_WRITE);
		if (rig_rand(&r, 2))
			workload(&r, 1 + (unsigned)rig_rand(&r, 60));
		else
			resizing_workload(&r, 1 + (unsigned)rig_rand(&r, 60));
		if (rig_rand(&r, 4) == 0)
			rig_must(&r, &(struct rig_op){ .kind = RIG_FLUSH });
		pos = cow_sim_log_len(r.sim, RIG_OVER);
		CHECK_EQ(cow_chain_close(r.c), 0);
		next_life(&r, pos - rig_rand(&r, cow_min(pos, 8) + 1));
		r.c = NULL;
	}
	printf("lives, %s: seed %llu, %u crashes of one image, 0 failures\n", what,
	       (unsigned long long)cfg->seed, n);
	rig_free(&r);
}

TEST(life_after_life)
{
	struct rig_cfg cfg = {
		.seed = test_rand(), .base_size = COW_MIB(1) + 123, .cap = COW_MIB(2),
	};

	lives("file", &cfg);
	cfg.blkdev = true;
	lives("device", &cfg);
}

/* ---- committing: two files change ---- */

/* How many entries of @name's log were made before machine time @seq. */
static size_t log_before(struct rig *r, const char *name, uint64_t seq)
{
	size_t n = 0;

	while (n < cow_sim_log_len(r->sim, name) && cow_sim_log_seq(r->sim, name, n) < seq)
		n++;
	return n;
}

static uint64_t log_end(struct rig *r, const char *name)
{
	size_t n = cow_sim_log_len(r->sim, name);

	return n ? cow_sim_log_seq(r->sim, name, n - 1) + 1 : 0;
}

static void judge_pair(struct rig *r, uint64_t seq, enum cow_sim_crash over,
		       enum cow_sim_crash base)
{
	uint64_t seed = rig_rand(r, UINT64_MAX);
	struct cow_err why = { 0 };
	int rc;

	rig_crash(r, log_before(r, RIG_OVER, seq), over, seed, CRASH);
	CHECK_EQ(cow_sim_crash(r->sim, RIG_BASE, log_before(r, RIG_BASE, seq), base, seed + 1,
			       r->sim, CRASH_BASE), 0);
	r->base = CRASH_BASE;
	rc = rig_judge(r, CRASH, MODEL_NOW, true, &why);
	r->base = RIG_BASE;
	if (rc)
		FAIL("commit cut at %llu (overlay %s, base %s, image seed %llu): %s",
		     (unsigned long long)seq, how_names[over], how_names[base],
		     (unsigned long long)seed, cow_err_text(&why, rc));
}

static unsigned commit_once(uint64_t seed, uint64_t base_size, uint64_t size)
{
	struct rig_cfg cfg = { .seed = seed, .base_size = base_size, .size = size, .block = 16384 };
	unsigned images = 0, randoms = rig_full() ? 12 : 3;
	struct cow_err err = { 0 };
	uint64_t start, end;
	struct rig r;

	rig_init(&r, &cfg);
	r.c = rig_open(&r, RIG_OVER, COW_OPEN_WRITE);
	workload(&r, 60);
	rig_must(&r, &(struct rig_op){ .kind = RIG_FLUSH });
	start = log_end(&r, RIG_OVER);
	cow_sim_log_start(r.sim, RIG_OVER);
	cow_sim_log_start(r.sim, RIG_BASE);
	if (cow_chain_commit(r.c, NULL, NULL, &err))
		FAIL("commit: %s", cow_err_text(&err, err.code));
	end = cow_max(log_end(&r, RIG_OVER), log_end(&r, RIG_BASE));
	for (uint64_t seq = start; seq <= end; seq++) {
		judge_pair(&r, seq, COW_SIM_PREFIX, COW_SIM_PREFIX);
		judge_pair(&r, seq, COW_SIM_SYNCED, COW_SIM_SYNCED);
		judge_pair(&r, seq, COW_SIM_PREFIX, COW_SIM_SYNCED);
		judge_pair(&r, seq, COW_SIM_SYNCED, COW_SIM_PREFIX);
		for (unsigned i = 0; i < randoms; i++)
			judge_pair(&r, seq, COW_SIM_RANDOM, COW_SIM_RANDOM);
		images += 4 + randoms;
	}
	CHECK_EQ(cow_chain_close(r.c), 0);
	r.c = NULL;
	rig_free(&r);
	return images;
}

/* Before, during and after a commit, the pair reads the same. */
TEST(committing)
{
	unsigned rounds = rig_full() ? 20 : 2, images = 0;

	for (unsigned i = 0; i < rounds; i++) {
		images += commit_once(test_rand(), COW_KIB(700), COW_KIB(700));
		images += commit_once(test_rand(), COW_KIB(500) + 512, COW_KIB(600));
		images += commit_once(test_rand(), COW_KIB(700), COW_KIB(600));
	}
	printf("committing: seed %llu, %u pairs of images, 0 failures\n",
	       (unsigned long long)test_seed(), images);
}
