// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Nth failure: one scripted session (open, two hundred requests, resize, commit
 * into the base if there is one, close) with an image of the format that image_kind names, in which
 * I/O operation k, or allocation k, fails; for every k and every kind of failure.
 * Whatever fails: no crash, no hang, the error goes to whoever asked, nothing else
 * fails because of it, and afterwards the image opens, checks clean, and holds
 * everything that was acknowledged and flushed.
 *
 * FAULT=full fails every k; otherwise every so many, counted from a seeded start.
 */
#include <errno.h>
#include <string.h>

#include "cow/log.h"
#include "image.h"

#define REQUESTS 200u
#define ENCODED_EVERY 12u	/* requests; where the image takes encoded clusters */
#define QUICK_TRIES 60u	/* of a class of failures, in a short run */
#define QUICK_OTHERS 12u	/* the same for all shapes but the first */

/* What a class of failures does. */
struct class {
	const char *name;
	int error;		/* 0: short count */
	bool persistent;
	bool harmless;		/* nobody may notice */
	unsigned ops;
};

static const struct class io_classes[] = {
	{ "EIO once", -EIO, false, false, 0 },
	{ "EIO from then on", -EIO, true, false, 0 },
	{ "ENOSPC once", -ENOSPC, false, false, 0 },
	{ "ENOSPC from then on", -ENOSPC, true, false, 0 },
	{ "short count once", 0, false, true, 0 },
	{ "short counts from then on", 0, true, true, 0 },
	{ "EINTR once", -EINTR, false, true,
	  (1u << COW_IO_READ) | (1u << COW_IO_WRITE) | (1u << COW_IO_SYNC) },
	{ "fdatasync EIO once", -EIO, false, false, 1u << COW_IO_SYNC },
	{ "write ENOSPC from then on", -ENOSPC, true, false, 1u << COW_IO_WRITE },
};

/* ---- failing allocations ---- */

static uint64_t allocs, alloc_nth;
static bool alloc_persistent;

static bool alloc_fails(void)
{
	allocs++;
	return alloc_nth && (allocs == alloc_nth || (alloc_persistent && allocs > alloc_nth));
}

/* ---- the session ---- */

struct session {
	struct rig r;
	const struct image_shape *shape;
	const char *what;	/* the class, for messages */
	uint64_t nth;
	bool memory;		/* allocations fail, not I/O */
	bool harmless, persistent;
	bool closed_well;
	unsigned errors;
};

static uint64_t events(const struct session *s)
{
	return s->memory ? allocs : cow_sim_op_count(s->r.sim);
}

/*
 * An error is right only if the failure happened meanwhile, goes on, or has
 * ended writing for good (an fdatasync or a metadata write failed).
 */
static void judge_result(struct session *s, const char *step, int rc, uint64_t before)
{
	bool struck = s->nth && before < s->nth && events(s) >= s->nth;
	bool lasting = s->persistent && events(s) >= s->nth;
	bool down = s->r.c && cow_chain_mode(s->r.c) != COW_MODE_RW;

	if (!rc)
		return;
	s->errors++;
	if (s->nth && s->harmless)
		FAIL("%s at %llu: %s: %s, but nothing was lost", s->what,
		     (unsigned long long)s->nth, step, strerror(-rc));
	if (!struck && !lasting && !down)
		FAIL("%s at %llu: %s: %s, but that did not fail", s->what,
		     (unsigned long long)s->nth, step, strerror(-rc));
}

static bool session_open(struct session *s)
{
	uint64_t before = events(s);
	struct cow_err err = { 0 };
	int rc = image_try_open(&s->r, RIG_OVER, COW_OPEN_WRITE, &s->r.c, &err);

	judge_result(s, "open", rc, before);
	if (rc && !err.msg[0])
		FAIL("%s at %llu: open failed without a sentence", s->what,
		     (unsigned long long)s->nth);
	return rc == 0;
}

static void session_requests(struct session *s, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		uint64_t before = events(s);
		struct rig_op op;

		if (i % ENCODED_EVERY == 0 && image_encodes(&s->r)) {
			judge_result(s, "encoded cluster", image_put_encoded(&s->r), before);
			continue;
		}
		rig_random(&s->r, &op, MODEL_SECTOR);
		if (op.kind == RIG_WRITTEN && !cow_chain_image(s->r.c, 0)->linear)
			op.kind = RIG_WRITE;
		judge_result(s, "request", rig_do(&s->r, &op), before);
	}
}

static void session_resize(struct session *s, uint64_t size)
{
	struct rig_op op = { .kind = RIG_RESIZE, .len = size };
	uint64_t before = events(s);

	judge_result(s, "resize", rig_do(&s->r, &op), before);
}

static void session_commit(struct session *s)
{
	uint64_t before = events(s);
	struct cow_err err = { 0 };
	int rc;

	model_begin(s->r.m, rig_now(&s->r), MODEL_FLUSH);
	rc = cow_chain_commit(s->r.c, NULL, NULL, &err);
	model_end(s->r.m, rig_now(&s->r), rc == 0);
	judge_result(s, "commit", rc, before);
}

static void session_run(struct session *s)
{
	uint64_t before;
	int rc;

	if (!session_open(s))
		return;
	session_requests(s, REQUESTS - 40);
	session_resize(s, s->r.cfg.cap);
	session_requests(s, 20);
	if (!s->shape->grows_only)
		session_resize(s, s->r.cfg.size - 8192);
	if (image_commits(s->shape))
		session_commit(s);
	session_requests(s, 20);
	before = events(s);
	rc = cow_chain_close(s->r.c);
	s->r.c = NULL;
	/* Down the ladder is known to the callers before; close may say so again. */
	if (!s->errors)
		judge_result(s, "close", rc, before);
	s->closed_well = rc == 0;
	CHECK_EQ(cow_sim_open_files(s->r.sim), 0);
}

/* The failure is over: what is on the disk must be whole, and usable. */
static void session_judge(struct session *s)
{
	size_t pos = s->closed_well ? MODEL_NOW : rig_now(&s->r);
	struct cow_err why = { 0 };
	int rc = image_judge(&s->r, RIG_OVER, pos, &why);

	if (rc)
		FAIL("%s at %llu: afterwards: %s", s->what, (unsigned long long)s->nth,
		     cow_err_text(&why, rc));
	CHECK_EQ(cow_sim_open_files(s->r.sim), 0);
}

/* Runs the session with one failure. Returns the number of events without one. */
static uint64_t run(struct session *s, uint64_t seed, const struct cow_sim_fault *fault)
{
	uint64_t n;

	image_init(&s->r, s->shape, seed);
	cow_sim_set_fault(s->r.sim, fault);
	allocs = 0;
	alloc_nth = s->memory ? s->nth : 0;
	alloc_persistent = s->persistent;
	cow_alloc_should_fail = alloc_fails;
	session_run(s);
	cow_alloc_should_fail = NULL;
	n = events(s);
	cow_sim_set_fault(s->r.sim, NULL);
	session_judge(s);
	rig_free(&s->r);
	return n;
}

/* Of @total events, in a short run. */
static uint64_t step(const struct image_shape *shape, uint64_t total)
{
	uint64_t tries = shape == &image_kind.shapes[0] ? QUICK_TRIES : QUICK_OTHERS;

	return rig_full() ? 1 : cow_max(total / tries, 1);
}

static uint64_t first_nth(const struct image_shape *shape, uint64_t total)
{
	return 1 + test_rand_below(step(shape, total));
}

static void io_class(const struct image_shape *shape, const struct class *c, uint64_t seed)
{
	struct cow_sim_fault f = { .error = c->error, .persistent = c->persistent, .ops = c->ops };
	struct session count = { .shape = shape, .what = c->name };
	uint64_t total = run(&count, seed, &f), tried = 0, noticed = 0;

	for (uint64_t k = first_nth(shape, total); k <= total; k += step(shape, total)) {
		struct session s = {
			.shape = shape, .what = c->name, .nth = k, .harmless = c->harmless,
			.persistent = c->persistent,
		};

		f.nth = k;
		run(&s, seed, &f);
		tried++;
		noticed += s.errors != 0;
	}
	printf("%s, %s: %llu/%llu of %llu operations, noticed by callers %llu times\n", shape->name, c->name,
	       (unsigned long long)tried, (unsigned long long)tried, (unsigned long long)total,
	       (unsigned long long)noticed);
}

void image_every_operation_fails(void)
{
	uint64_t seed = test_rand();

	cow_log_set_level(COW_LOG_ERR - 1);
	printf("seed %llu\n", (unsigned long long)seed);
	for (size_t k = 0; k < image_kind.n; k++) {
		for (unsigned i = 0; i < COW_ARRAY_SIZE(io_classes); i++)
			io_class(&image_kind.shapes[k], &io_classes[i], seed);
	}
}

static void allocations(const struct image_shape *shape, bool persistent, uint64_t seed)
{
	const char *name = persistent ? "ENOMEM from then on" : "ENOMEM once";
	struct session count = { .shape = shape, .what = name, .memory = true };
	uint64_t total = run(&count, seed, NULL), tried = 0;

	for (uint64_t k = first_nth(shape, total); k <= total; k += step(shape, total)) {
		struct session s = {
			.shape = shape, .what = name, .nth = k, .memory = true, .persistent = persistent,
		};

		run(&s, seed, NULL);
		tried++;
	}
	printf("%s, %s: %llu/%llu of %llu allocations\n", shape->name, name, (unsigned long long)tried,
	       (unsigned long long)tried, (unsigned long long)total);
}

void image_every_allocation_fails(void)
{
	uint64_t seed = test_rand();

	cow_log_set_level(COW_LOG_ERR - 1);
	for (size_t k = 0; k < image_kind.n; k++) {
		allocations(&image_kind.shapes[k], false, seed);
		allocations(&image_kind.shapes[k], true, seed);
	}
}
