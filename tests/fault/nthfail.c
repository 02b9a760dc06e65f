// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Nth failure: one scripted session (open, two hundred requests, resize, commit
 * into the base, close), in which I/O operation k, or allocation k, fails; for
 * every k and every kind of failure. Whatever fails: no crash, no hang, the
 * error goes to whoever asked, nothing else fails because of it, and afterwards
 * the image opens, checks clean, and holds everything that was acknowledged and
 * flushed.
 *
 * FAULT=full fails every k; otherwise every seventh, counted from a seeded start.
 */
#include <errno.h>
#include <string.h>

#include "cow/log.h"
#include "rig.h"
#include "test.h"

#define REQUESTS 200u
#define QUICK_STEP 7u

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
	int rc = rig_try_open(&s->r, RIG_OVER, COW_OPEN_WRITE, &s->r.c, &err);

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

		rig_random(&s->r, &op, MODEL_SECTOR);
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

	model_begin(s->r.m, cow_sim_log_len(s->r.sim, RIG_OVER), MODEL_FLUSH);
	rc = cow_chain_commit(s->r.c, NULL, NULL, &err);
	model_end(s->r.m, cow_sim_log_len(s->r.sim, RIG_OVER), rc == 0);
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
	session_resize(s, s->r.cfg.size - 8192);
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
	size_t pos = s->closed_well ? MODEL_NOW : cow_sim_log_len(s->r.sim, RIG_OVER);
	struct cow_err why = { 0 };
	int rc = rig_judge(&s->r, RIG_OVER, pos, true, &why);

	if (rc)
		FAIL("%s at %llu: afterwards: %s", s->what, (unsigned long long)s->nth,
		     cow_err_text(&why, rc));
	CHECK_EQ(cow_sim_open_files(s->r.sim), 0);
}

/* Runs the session with one failure. Returns the number of events without one. */
static uint64_t run(struct session *s, uint64_t seed, const struct cow_sim_fault *fault)
{
	struct rig_cfg cfg = {
		.seed = seed, .base_size = COW_KIB(768) + 512, .size = COW_KIB(700) - 1024,
		.cap = COW_KIB(900), .block = 16384,
	};
	uint64_t n;

	rig_init(&s->r, &cfg);
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

static uint64_t first_nth(void)
{
	return rig_full() ? 1 : 1 + test_rand_below(QUICK_STEP);
}

static uint64_t step(void)
{
	return rig_full() ? 1 : QUICK_STEP;
}

static void io_class(const struct class *c, uint64_t seed)
{
	struct cow_sim_fault f = { .error = c->error, .persistent = c->persistent, .ops = c->ops };
	struct session count = { .what = c->name };
	uint64_t total = run(&count, seed, &f), tried = 0, noticed = 0;

	for (uint64_t k = first_nth(); k <= total; k += step()) {
		struct session s = {
			.what = c->name, .nth = k, .harmless = c->harmless,
			.persistent = c->persistent,
		};

		f.nth = k;
		run(&s, seed, &f);
		tried++;
		noticed += s.errors != 0;
	}
	printf("%s: %llu/%llu of %llu operations, noticed by callers %llu times\n", c->name,
	       (unsigned long long)tried, (unsigned long long)tried, (unsigned long long)total,
	       (unsigned long long)noticed);
}

TEST(every_operation)
{
	uint64_t seed = test_rand();

	cow_log_set_level(COW_LOG_ERR - 1);
	printf("seed %llu\n", (unsigned long long)seed);
	for (unsigned i = 0; i < COW_ARRAY_SIZE(io_classes); i++)
		io_class(&io_classes[i], seed);
}

TEST(every_allocation)
{
	uint64_t seed = test_rand();

	cow_log_set_level(COW_LOG_ERR - 1);
	for (int persistent = 0; persistent < 2; persistent++) {
		const char *name = persistent ? "ENOMEM from then on" : "ENOMEM once";
		struct session count = { .what = name, .memory = true };
		uint64_t total = run(&count, seed, NULL), tried = 0;

		for (uint64_t k = first_nth(); k <= total; k += step()) {
			struct session s = {
				.what = name, .nth = k, .memory = true, .persistent = persistent,
			};

			run(&s, seed, NULL);
			tried++;
		}
		printf("%s: %llu/%llu of %llu allocations\n", name, (unsigned long long)tried,
		       (unsigned long long)tried, (unsigned long long)total);
	}
}

/* ---- a failed fdatasync is final ---- */

static void after_failed_sync(struct rig *r, uint64_t nth)
{
	struct rig_op write = { .kind = RIG_WRITE, .off = 0, .len = 4096 };
	struct rig_op flush = { .kind = RIG_FLUSH };
	struct rig_op read = { .kind = RIG_READ, .off = 0, .len = 65536 };

	cow_sim_set_fault(r->sim, NULL);
	for (int i = 0; i < 3; i++) {
		if (!rig_do(r, &flush))
			FAIL("fdatasync %llu failed, but a later flush succeeds",
			     (unsigned long long)nth);
		if (!rig_do(r, &write))
			FAIL("fdatasync %llu failed, but a later write succeeds",
			     (unsigned long long)nth);
	}
	CHECK(cow_chain_mode(r->c) != COW_MODE_RW);
	CHECK_EQ(rig_do(r, &read), 0);
	if (!cow_chain_close(r->c))
		FAIL("fdatasync %llu failed, but close succeeds", (unsigned long long)nth);
	r->c = NULL;
}

/* Returns false when the session has no fdatasync number @nth. */
static bool sticky_case(uint64_t seed, uint64_t nth, int error)
{
	struct cow_sim_fault f = { .nth = nth, .error = error, .ops = 1u << COW_IO_SYNC };
	struct rig_cfg cfg = { .seed = seed, .base_size = COW_KIB(768) };
	struct cow_err why = { 0 };
	struct rig r;
	bool struck;
	int rc = 0;

	rig_init(&r, &cfg);
	r.c = rig_open(&r, RIG_OVER, COW_OPEN_WRITE);
	cow_sim_set_fault(r.sim, &f);
	for (unsigned i = 0; i < REQUESTS && !rc; i++) {
		struct rig_op op;

		rig_random(&r, &op, MODEL_SECTOR);
		if (i % 50 == 49)
			op = (struct rig_op){ .kind = RIG_RESIZE, .len = cfg.base_size - 512 * i };
		rc = rig_do(&r, &op);
	}
	struck = cow_sim_op_count(r.sim) >= nth;
	if (struck != (rc != 0))
		FAIL("fdatasync %llu: %s", (unsigned long long)nth,
		     struck ? "its failure was not reported" : "an error without a cause");
	if (struck) {
		after_failed_sync(&r, nth);
		rc = rig_judge(&r, RIG_OVER, cow_sim_log_len(r.sim, RIG_OVER), true, &why);
		if (rc)
			FAIL("after failed fdatasync %llu: %s", (unsigned long long)nth,
			     cow_err_text(&why, rc));
	}
	rig_free(&r);
	return struck;
}

TEST(failed_sync_stays_failed)
{
	static const int errors[] = { -EIO, -ENOSPC, -EDQUOT };
	uint64_t seed = test_rand();

	cow_log_set_level(COW_LOG_ERR - 1);
	for (unsigned i = 0; i < COW_ARRAY_SIZE(errors); i++) {
		uint64_t n = 0;

		while (sticky_case(seed, n + 1, errors[i]))
			n++;
		CHECK(n > 5);
		printf("fdatasync %s: %llu/%llu stay failed\n", strerror(-errors[i]),
		       (unsigned long long)n, (unsigned long long)n);
	}
}

/* ---- creating ---- */

static int create(struct cow_sim *sim, struct cow_err *err)
{
	struct cow_create_cfg cfg = {
		.format = "dscow", .path = "new.dscow", .backing = RIG_BASE,
		.backing_format = "raw", .io = &cow_io_sim_ops, .io_arg = sim,
	};

	return cow_image_create(&cfg, NULL, err);
}

static bool opens(struct cow_sim *sim)
{
	struct cow_chain_cfg cfg = {
		.format = "dscow", .path = "new.dscow", .io = &cow_io_sim_ops, .io_arg = sim,
	};
	struct cow_err err = { 0 };
	struct cow_report rep = { 0 };
	struct cow_chain *c;
	int rc = cow_chain_open(&cfg, &c, &err);

	if (rc == -ENOENT)
		return false;
	if (rc)
		FAIL("a half-made image appeared: %s", cow_err_text(&err, rc));
	CHECK_EQ(cow_chain_check(c, &rep, 0, &err), 0);
	CHECK_EQ(rep.corruptions, 0);
	CHECK_EQ(cow_chain_close(c), 0);
	return true;
}

/* A new image appears complete, or not at all. */
TEST(every_operation_of_create)
{
	uint64_t total = 1, failed = 0;

	for (uint64_t k = 1; k <= total + 1; k++) {
		struct cow_sim *sim = cow_sim_new(k);
		struct cow_err err = { 0 };
		int rc;

		CHECK_EQ(cow_sim_add(sim, RIG_BASE, 1 << 20, false), 0);
		cow_sim_set_fault(sim, &(struct cow_sim_fault){ .nth = k, .error = -EIO });
		rc = create(sim, &err);
		total = cow_max(total, cow_sim_op_count(sim));
		cow_sim_set_fault(sim, NULL);
		if (rc && !err.msg[0])
			FAIL("create failed without a sentence");
		CHECK_EQ(opens(sim), rc == 0);
		CHECK_EQ(cow_sim_open_files(sim), 0);
		failed += rc != 0;
		cow_sim_free(sim);
	}
	CHECK(failed > 3);
	printf("create: %llu/%llu operations\n", (unsigned long long)total,
	       (unsigned long long)total);
}
