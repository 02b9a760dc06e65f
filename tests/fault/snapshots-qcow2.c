// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Snapshots inside qcow2 images, made, applied and deleted on the simulated
 * machine, and other sizes and options of an image that has some: cut off at every
 * step, on a failing disk, and refused. What is left is what the image was or what it was
 * to be, as a whole, and has leaks at worst.
 *
 * Short unless FAULT=full.
 */
#include <errno.h>
#include <stdlib.h>

#include "cow/log.h"
#include "image.h"
#include "test.h"

#define SNAPS 3u

static const struct image_shape shapes[] = {
	{ .name = "small clusters", .options = "cluster_size=4K,refcount_bits=64", .cluster = 4096,
	  .base_size = COW_KIB(600), .size = COW_MIB(1) + 512 },
	{ .name = "four-bit refcounts", .options = "cluster_size=4K,refcount_bits=4", .cluster = 4096,
	  .size = COW_MIB(1) },
	{ .name = "subclusters", .options = "cluster_size=16K,extended_l2=on", .cluster = 16384,
	  .base_size = COW_KIB(500), .size = COW_MIB(1) },
	{ .name = "version 2", .options = "compat=0.10,cluster_size=8K", .cluster = 8192,
	  .base_size = COW_KIB(300), .size = COW_KIB(900) },
	{ .name = "large clusters", .options = "cluster_size=64K,lazy_refcounts=on", .cluster = 65536,
	  .size = COW_MIB(1) },
};

const struct image_kind image_kind = { .format = "qcow2", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes) };

/* What a disk or a snapshot of it reads as. */
struct kept {
	uint8_t *bytes;		/* NULL: there is no such snapshot */
	uint64_t size;
};

struct state {
	struct kept disk, snap[SNAPS];	/* named "s0", "s1" ... */
};

/* States share their bytes, so all of them go together. */
static uint8_t *taken[512];
static unsigned n_taken;

static uint8_t *take(uint64_t size)
{
	CHECK(n_taken < COW_ARRAY_SIZE(taken));
	taken[n_taken] = calloc(1, size);
	CHECK(taken[n_taken]);
	return taken[n_taken++];
}

static void free_taken(void)
{
	while (n_taken)
		free(taken[--n_taken]);
}

static struct kept keep(struct cow_chain *c)
{
	struct kept k = { .bytes = take(cow_chain_size(c)), .size = cow_chain_size(c) };

	CHECK_EQ(cow_chain_pread(c, k.bytes, k.size, 0), 0);
	return k;
}

static bool reads_as(struct cow_chain *c, const struct kept *want)
{
	uint8_t *got = malloc(want->size);
	bool same = got && cow_chain_size(c) == want->size && !cow_chain_pread(c, got, want->size, 0) &&
		    !memcmp(got, want->bytes, want->size);

	free(got);
	return same;
}

/* Is @name in @state, as a whole? */
static bool is_in(struct rig *r, const char *name, const struct state *state)
{
	struct cow_err err = { 0 };
	struct cow_chain *c;
	char snapshot[8];
	bool same;

	CHECK_EQ(image_try_open(r, name, 0, &c, &err), 0);
	same = reads_as(c, &state->disk);
	CHECK_EQ(cow_chain_close(c), 0);
	for (unsigned i = 0; i < SNAPS && same; i++) {
		snprintf(snapshot, sizeof(snapshot), "s%u", i);
		if (image_try_snapshot(r, name, snapshot, &c, &err)) {
			same = !state->snap[i].bytes;
			continue;
		}
		same = state->snap[i].bytes && reads_as(c, &state->snap[i]);
		CHECK_EQ(cow_chain_close(c), 0);
	}
	return same;
}

/* No corruption; after a repair nothing at all. */
static int check_both(struct rig *r, const char *name, bool leaks_too, struct cow_err *why)
{
	char findings[IMAGE_FINDINGS] = "";
	struct cow_report rep = { .say = image_finding, .opaque = findings };
	struct cow_chain *c;
	int rc = image_try_open(r, name, leaks_too ? COW_OPEN_WRITE | COW_OPEN_CHECK : 0, &c, why);

	if (rc)
		return rc;
	if (leaks_too)
		rc = cow_chain_check(c, &(struct cow_report){ 0 }, COW_CHECK_REPAIR, why);
	if (rc == 0)
		rc = cow_chain_check(c, &rep, 0, why);
	if (rc == 0 && (rep.corruptions || (leaks_too && rep.leaks)))
		rc = cow_err_set(why, -EUCLEAN, "%llu leaks; check finds%s", (unsigned long long)rep.leaks,
				 findings);
	CHECK_EQ(cow_chain_close(c), 0);
	return rc;
}

/* What a cut left is the one or the other, as a whole, and sound. */
static void judge_states(struct rig *r, const char *name, const struct state *a, const struct state *b,
			 const char *what, size_t pos)
{
	struct cow_err why = { 0 };
	const struct state *is;

	if (check_both(r, name, false, &why))
		FAIL("%s, cut at %zu (seed %llu): %s", what, pos, (unsigned long long)r->cfg.seed, why.msg);
	is = is_in(r, name, a) ? a : is_in(r, name, b) ? b : NULL;
	if (!is)
		FAIL("%s, cut at %zu (seed %llu): neither what it was nor what it is to be", what, pos,
		     (unsigned long long)r->cfg.seed);
	if (check_both(r, name, true, &why))
		FAIL("%s, cut at %zu (seed %llu), after a repair: %s", what, pos,
		     (unsigned long long)r->cfg.seed, why.msg);
	if (!is_in(r, name, is))
		FAIL("%s, cut at %zu (seed %llu): the repair changed it", what, pos,
		     (unsigned long long)r->cfg.seed);
}

/* What was logged since the last start, cut everywhere. */
static unsigned cut(struct rig *r, const struct state *before, const struct state *after, const char *what)
{
	size_t n = rig_now(r);

	for (size_t pos = 0; pos <= n; pos++) {
		enum cow_sim_crash how = pos % 3 == 0 ? COW_SIM_PREFIX : COW_SIM_RANDOM;

		rig_crash(r, pos, how, rig_rand(r, UINT64_MAX), IMAGE_CRASH);
		judge_states(r, IMAGE_CRASH, before, after, what, pos);
	}
	judge_states(r, RIG_OVER, after, after, what, n);
	return (unsigned)n + 1;
}

/* One operation on snapshot @i, and every cut in it. */
static unsigned cut_snapshot(struct rig *r, struct state *state, enum cow_snapshot_op op, unsigned i)
{
	static const char *const names[] = { "create", "apply", "delete" };
	struct state before = *state;
	struct cow_err err = { 0 };
	char name[8];

	snprintf(name, sizeof(name), "s%u", i);
	rig_log_start(r);
	image_open(r);
	if (cow_chain_snapshot(r->c, op, name, &err))
		FAIL("%s: %s", names[op], err.msg);
	if (op == COW_SNAPSHOT_CREATE)
		state->snap[i] = keep(r->c);
	if (op == COW_SNAPSHOT_APPLY)
		state->disk = state->snap[i];
	if (op == COW_SNAPSHOT_DELETE)
		state->snap[i].bytes = NULL;
	image_close(r);
	return cut(r, &before, state, names[op]);
}

static unsigned cut_resize(struct rig *r, struct state *state)
{
	uint64_t size = cow_max(COW_KIB(100), rig_rand(r, 2 * r->cfg.size)) / 512 * 512, kept;
	struct state before = *state;
	struct cow_err err = { 0 };

	rig_log_start(r);
	image_open(r);
	if (cow_chain_resize(r->c, size, true, &err))
		FAIL("resize: %s", err.msg);
	image_close(r);
	kept = cow_min(size, before.disk.size);
	state->disk = (struct kept){ take(size), size };
	memcpy(state->disk.bytes, before.disk.bytes, kept);
	return cut(r, &before, state, "resize");
}

/* Other options, with which it reads the same. */
static unsigned cut_amend(struct rig *r, struct state *state, bool version_2)
{
	static const char *const options[] = {
		"compat=1.1", "compat=1.1,refcount_bits=8", "compat=1.1,refcount_bits=64,lazy_refcounts=on",
		"compat=v3,refcount_bits=32", "compat=0.10,refcount_bits=16", "compat=1.1,lazy_refcounts=off",
	};
	const char *text = options[rig_rand(r, COW_ARRAY_SIZE(options))];
	struct cow_args *args = cow_args_new();
	struct cow_err err = { 0 };
	int rc;

	CHECK(args && cow_args_parse(args, text, &err) == 0);
	rig_log_start(r);
	image_open(r);
	rc = cow_chain_amend(r->c, args, &err);
	/* Zero clusters and subclusters are not for version 2. */
	if (rc && (rc != -EOPNOTSUPP || !strstr(text, "0.10")))
		FAIL("%s: %s", text, err.msg);
	image_close(r);
	cow_args_free(args);
	if (version_2) {	/* and stays it, for what else is done here depends on it */
		args = cow_args_new();
		CHECK(args && cow_args_parse(args, "compat=0.10,refcount_bits=16", &err) == 0);
		image_open(r);
		if (cow_chain_amend(r->c, args, &err))
			FAIL("back to version 2: %s", err.msg);
		image_close(r);
		cow_args_free(args);
	}
	return cut(r, state, state, text);
}

/* Writes and discards, and what the disk reads as then. */
static void scribble(struct rig *r, struct state *state)
{
	image_open(r);
	for (unsigned i = 0; i < 6; i++) {
		uint64_t len = 1 + rig_rand(r, COW_KIB(60)), off = rig_rand(r, cow_chain_size(r->c) - len);

		for (uint64_t k = 0; k < len; k++)
			r->buf[k] = (uint8_t)rig_rand(r, 256);
		if (rig_rand(r, 4) == 0)
			CHECK_EQ(cow_chain_discard(r->c, off, len), 0);
		else
			CHECK_EQ(cow_chain_pwrite(r->c, r->buf, len, off), 0);
	}
	CHECK_EQ(cow_chain_flush(r->c), 0);
	state->disk = keep(r->c);
	image_close(r);
}

TEST(interrupted_snapshots)
{
	for (size_t k = 0; k < COW_ARRAY_SIZE(shapes); k++) {
		struct state state = { 0 };
		unsigned images = 0;
		struct rig r;

		image_init(&r, &shapes[k], test_rand());
		scribble(&r, &state);
		for (unsigned n = 0; n < (rig_full() ? 60 : 9); n++) {
			unsigned i = (unsigned)rig_rand(&r, SNAPS);
			bool version_2 = !strcmp(shapes[k].name, "version 2");

			if (rig_rand(&r, 4) == 0)
				images += cut_amend(&r, &state, version_2);
			else if (!version_2 && rig_rand(&r, 4) == 0)
				images += cut_resize(&r, &state);
			else if (!state.snap[i].bytes)
				images += cut_snapshot(&r, &state, COW_SNAPSHOT_CREATE, i);
			else if (rig_rand(&r, 2))
				images += cut_snapshot(&r, &state, COW_SNAPSHOT_APPLY, i);
			else
				images += cut_snapshot(&r, &state, COW_SNAPSHOT_DELETE, i);
			if (rig_rand(&r, 3))
				scribble(&r, &state);
		}
		printf("%s: %u images\n", shapes[k].name, images);
		rig_free(&r);
		free_taken();
	}
}

/* A refused or failed snapshot leaves nothing of itself. */
TEST(snapshots_that_fail)
{
	static const struct image_shape narrow = {
		.name = "one-bit refcounts", .options = "cluster_size=4K,refcount_bits=1",
		.cluster = 4096, .size = COW_MIB(1),
	};
	struct cow_report rep = { 0 };
	struct state state = { 0 };
	struct cow_err err = { 0 };
	struct rig r;

	image_init(&r, &narrow, test_rand());
	scribble(&r, &state);
	image_open(&r);
	CHECK_EQ(cow_chain_snapshot(r.c, COW_SNAPSHOT_CREATE, "s0", &err), -EMLINK);
	CHECK(strstr(err.msg, "refcounts are too narrow"));
	image_close(&r);
	CHECK(is_in(&r, RIG_OVER, &state));
	image_open(&r);
	CHECK_EQ(cow_chain_check(r.c, &rep, 0, &err), 0);
	CHECK_EQ(rep.corruptions + rep.leaks, 0);
	image_close(&r);
	rig_free(&r);
	free_taken();
}

/*
 * Operation @nth of the disk fails, or all from it on: what is left is the one or the other.
 * False: there were fewer.
 */
static bool fail_one(enum cow_snapshot_op op, uint64_t seed, uint64_t nth)
{
	struct cow_sim_fault none = { 0 }, fault = { .nth = nth, .error = nth % 2 ? -EIO : -ENOSPC,
						     .persistent = nth % 3 == 0 };
	struct state before = { 0 }, after;
	struct cow_err err = { 0 };
	bool reached;
	struct rig r;
	int rc;

	image_init(&r, &shapes[0], seed);
	scribble(&r, &before);
	if (op != COW_SNAPSHOT_CREATE) {
		image_open(&r);
		CHECK_EQ(cow_chain_snapshot(r.c, COW_SNAPSHOT_CREATE, "s0", &err), 0);
		image_close(&r);
		before.snap[0] = before.disk;
		scribble(&r, &before);
	}
	after = before;
	if (op == COW_SNAPSHOT_CREATE)
		after.snap[0] = before.disk;
	else if (op == COW_SNAPSHOT_APPLY)
		after.disk = before.snap[0];
	else
		after.snap[0].bytes = NULL;
	image_open(&r);
	cow_sim_set_fault(r.sim, &fault);
	rc = cow_chain_snapshot(r.c, op, "s0", &err);
	(void)cow_chain_close(r.c);
	r.c = NULL;
	reached = cow_sim_op_count(r.sim) >= nth;
	cow_sim_set_fault(r.sim, &none);
	judge_states(&r, RIG_OVER, rc ? &before : &after, &after, "failing", (size_t)nth);
	rig_free(&r);
	free_taken();
	return reached;
}

TEST(snapshots_on_a_failing_disk)
{
	uint64_t seed = test_rand();

	cow_log_set_level((enum cow_log_level)0);
	for (unsigned op = COW_SNAPSHOT_CREATE; op <= COW_SNAPSHOT_DELETE; op++) {
		for (uint64_t nth = 1; fail_one((enum cow_snapshot_op)op, seed, nth); nth++)
			;
	}
}

/* The same for other options, of an image with a snapshot. */
static bool fail_amend(const struct image_shape *shape, const char *options, uint64_t seed, uint64_t nth)
{
	struct cow_sim_fault none = { 0 }, fault = { .nth = nth, .error = nth % 2 ? -EIO : -ENOSPC,
						     .persistent = nth % 3 == 0 };
	struct cow_args *args = cow_args_new();
	struct state state = { 0 };
	struct cow_err err = { 0 };
	bool reached;
	struct rig r;

	CHECK(args && cow_args_parse(args, options, &err) == 0);
	image_init(&r, shape, seed);
	scribble(&r, &state);
	image_open(&r);
	CHECK_EQ(cow_chain_snapshot(r.c, COW_SNAPSHOT_CREATE, "s0", &err), 0);
	image_close(&r);
	state.snap[0] = state.disk;
	image_open(&r);
	cow_sim_set_fault(r.sim, &fault);
	(void)cow_chain_amend(r.c, args, &err);
	(void)cow_chain_close(r.c);
	r.c = NULL;
	cow_args_free(args);
	reached = cow_sim_op_count(r.sim) >= nth;
	cow_sim_set_fault(r.sim, &none);
	judge_states(&r, RIG_OVER, &state, &state, options, (size_t)nth);
	rig_free(&r);
	free_taken();
	return reached;
}

TEST(amending_on_a_failing_disk)
{
	static const char *const options[] = { "compat=1.1,refcount_bits=64,lazy_refcounts=on",
					       "compat=0.10,refcount_bits=16" };
	uint64_t seed = test_rand();

	cow_log_set_level((enum cow_log_level)0);
	for (size_t k = 0; k < COW_ARRAY_SIZE(shapes); k++) {
		for (size_t i = 0; i < COW_ARRAY_SIZE(options); i++) {
			for (uint64_t nth = 1; fail_amend(&shapes[k], options[i], seed, nth); nth++)
				;
		}
	}
}
