// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * qcow2 under power cuts, failing disks and many requests at once, on the
 * simulated machine. A recorded workload is cut at positions of its log; what
 * is left must open, have no corruption (leaks are allowed), read as the model
 * permits, and be clean after a repair.
 *
 * Short unless FAULT=full.
 */
#include <errno.h>
#include <stdlib.h>

#include "cow/log.h"
#include "meta.h"
#include "qcow2/qcow2-priv.h"
#include "rig.h"
#include "test.h"

#define CRASH "crash.qcow2"
#define FINDINGS_MAX 512u	/* bytes */
#define JOBS 24u

struct shape {
	const char *name, *options;
	uint32_t cluster;
	uint64_t base_size, size;	/* base_size 0: no base */
	uint64_t cap;			/* grows up to here; 0: not at all */
	uint64_t fill;			/* written first, so that refcount blocks are made */
};

static const struct shape shapes[] = {
	{ "plain", "cluster_size=64K", 65536, COW_MIB(3) + 700, COW_MIB(4), 0, 0 },
	{ "small clusters", "cluster_size=4K,refcount_bits=64", 4096, COW_MIB(2), COW_MIB(8), 0, COW_MIB(3) },
	{ "one-bit refcounts", "cluster_size=4K,refcount_bits=1", 4096, 0, COW_MIB(6) - 512, 0, 0 },
	{ "lazy", "cluster_size=16K,lazy_refcounts=on", 16384, COW_MIB(2), COW_MIB(3), 0, 0 },
	{ "subclusters", "cluster_size=16K,extended_l2=on,refcount_bits=64", 16384, COW_MIB(2), COW_MIB(4),
	  0, 0 },
	{ "version 2", "compat=0.10,cluster_size=8K", 8192, COW_MIB(1), COW_MIB(2), 0, 0 },
	{ "growing", "cluster_size=4K,refcount_bits=64", 4096, COW_MIB(2), COW_MIB(1), COW_MIB(9), 0 },
};

static int open_image(struct rig *r, const char *name, uint32_t flags, struct cow_chain **ret,
		      struct cow_err *err)
{
	const char *const backing[] = { RIG_BASE, NULL };
	struct cow_chain_cfg cfg = {
		.format = "qcow2", .path = name, .flags = flags,
		.backing = r->cfg.base_size ? backing : NULL,
		.cache_bytes = r->cfg.cache_bytes, .io = &cow_io_sim_ops, .io_arg = r->sim,
	};

	return cow_chain_open(&cfg, ret, err);
}

static void must_open(struct rig *r)
{
	struct cow_err err = { 0 };

	if (open_image(r, RIG_OVER, COW_OPEN_WRITE, &r->c, &err))
		FAIL("open: %s", err.msg);
}

static void must_close(struct rig *r)
{
	CHECK_EQ(cow_chain_close(r->c), 0);
	r->c = NULL;
}

static void init(struct rig *r, const struct shape *s, uint64_t seed)
{
	const struct cow_format *fmt;
	struct cow_args *args = cow_args_new();
	struct cow_err err = { 0 };
	struct cow_create_cfg cfg = {
		.format = "qcow2", .path = RIG_OVER, .size = s->size, .args = args,
		.backing = s->base_size ? RIG_BASE : NULL, .backing_format = "raw",
		.io = &cow_io_sim_ops,
	};

	if (cow_format_find("qcow2", &fmt, &err))
		test_skip("built without zlib and zstd");
	*r = (struct rig){
		.cfg = { .seed = seed, .base_size = s->base_size, .size = s->size, .cap = s->cap,
			 .block = s->cluster, .granule = s->cluster,
			 .cache_bytes = COW_KIB(512) },
		.rng = seed, .base = RIG_BASE, .sim = cow_sim_new(seed),
		.m = model_new(s->size, s->cap, s->cluster), .buf = malloc(RIG_MAX),
	};
	CHECK(r->sim && r->buf && args);
	cfg.io_arg = r->sim;
	if (s->base_size) {
		uint8_t *p = model_bytes(r->m);
		uint64_t shown = cow_min(s->base_size, s->size);

		for (uint64_t i = 0; i < shown; i++)
			p[i] = i / 4096 % 5 == 3 ? 0 : (uint8_t)rig_rand(r, 256);
		CHECK_EQ(cow_sim_add(r->sim, RIG_BASE, s->base_size, false), 0);
		CHECK_EQ(cow_sim_write(r->sim, RIG_BASE, p, shown, 0), 0);
	}
	model_below(r->m, s->base_size);
	CHECK_EQ(cow_args_parse(args, s->options, &err), 0);
	if (cow_image_create(&cfg, NULL, &err))
		FAIL("create: %s", err.msg);
	cow_args_free(args);
	cow_sim_log_start(r->sim, RIG_OVER);
}

static void random_op(struct rig *r, struct rig_op *op)
{
	rig_random(r, op, 1);
	if (op->kind == RIG_WRITTEN)
		op->kind = RIG_WRITE;
	if (r->cfg.cap && rig_rand(r, 24) == 0 && model_size(r->m) < r->cfg.cap)
		*op = (struct rig_op){ .kind = RIG_RESIZE,
				       .len = model_size(r->m) + 512 +
					      512 * rig_rand(r, (r->cfg.cap - model_size(r->m)) / 512) };
}

static void work(struct rig *r, unsigned ops)
{
	for (unsigned i = 0; i < ops; i++) {
		struct rig_op op;

		random_op(r, &op);
		rig_must(r, &op);
	}
}

static void finding(struct cow_report *rep, const char *sentence)
{
	char *all = rep->opaque;
	size_t used = strlen(all);

	if (strstr(sentence, "leaked") == NULL)
		snprintf(all + used, FINDINGS_MAX - used, "; %s", sentence);
}

/* Opened with @flags: no corruption, contents as the model permits at @pos. */
static int judge_open(struct rig *r, const char *name, uint32_t flags, size_t pos, struct cow_err *why)
{
	char findings[FINDINGS_MAX] = "";
	struct cow_report rep = { .say = finding, .opaque = findings };
	struct cow_chain *c;
	int rc = open_image(r, name, flags, &c, why), rc2;

	if (rc)
		return rc;
	rc = cow_chain_check(c, &rep, flags & COW_OPEN_CHECK ? COW_CHECK_REPAIR : 0, why);
	if (rc == 0 && rep.corruptions)
		rc = cow_err_set(why, -EUCLEAN, "check finds%s", findings);
	rep = (struct cow_report){ 0 };
	if (rc == 0 && (flags & COW_OPEN_CHECK))
		rc = cow_chain_check(c, &rep, 0, why);
	if (rc == 0 && rep.leaks + rep.corruptions)
		rc = cow_err_set(why, -EUCLEAN, "not clean after a repair");
	if (rc == 0)
		rc = model_verify(r->m, c, pos, true, why);
	rc2 = cow_chain_close(c);
	return rc ? rc : rc2;
}

static int judge(struct rig *r, const char *name, size_t pos, struct cow_err *why)
{
	int rc = judge_open(r, name, 0, pos, why);

	return rc ? rc : judge_open(r, name, COW_OPEN_WRITE | COW_OPEN_CHECK, pos, why);
}

static unsigned cut(struct rig *r, const struct shape *s, size_t pos, enum cow_sim_crash how)
{
	uint64_t seed = rig_rand(r, UINT64_MAX);
	struct cow_err why = { 0 };
	int rc;

	CHECK_EQ(cow_sim_crash(r->sim, RIG_OVER, pos, how, seed, r->sim, CRASH), 0);
	rc = judge(r, CRASH, pos, &why);
	if (rc)
		FAIL("%s: cut at %zu of %zu (%d, image seed %llu, workload seed %llu): %s", s->name, pos,
		     cow_sim_log_len(r->sim, RIG_OVER), (int)how, (unsigned long long)seed,
		     (unsigned long long)r->cfg.seed, cow_err_text(&why, rc));
	return 1;
}

static void power_cuts(const struct shape *s)
{
	unsigned ops = rig_full() ? 600 : 80, images = 0;
	size_t n, step;
	struct rig r;

	init(&r, s, test_rand());
	must_open(&r);
	for (uint64_t off = 0; off < s->fill; off += RIG_MAX)
		rig_must(&r, &(struct rig_op){ .kind = RIG_WRITE, .off = off, .len = RIG_MAX });
	work(&r, ops);
	must_close(&r);
	n = cow_sim_log_len(r.sim, RIG_OVER);
	step = rig_full() ? 1 : cow_max(n / 25, 1);
	for (size_t pos = 0; pos <= n; pos += step) {
		images += cut(&r, s, pos, COW_SIM_PREFIX);
		images += cut(&r, s, pos, COW_SIM_SYNCED);
		for (unsigned i = 0; i < (rig_full() ? 8 : 3); i++)
			images += cut(&r, s, pos, COW_SIM_RANDOM);
	}
	images += cut(&r, s, n, COW_SIM_PREFIX);
	printf("%s: seed %llu, %u images of %zu log entries\n", s->name, (unsigned long long)r.cfg.seed,
	       images, n);
	rig_free(&r);
}

TEST(power_cuts)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(shapes); i++)
		power_cuts(&shapes[i]);
}

/* A clean end leaves nothing behind: every reserved cluster is given back. */
TEST(no_leaks_after_close)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(shapes); i++) {
		struct cow_report rep = { 0 };
		struct cow_err err = { 0 };
		struct rig r;

		init(&r, &shapes[i], test_rand());
		for (unsigned k = 0; k < 6; k++) {
			must_open(&r);
			work(&r, 12);
			must_close(&r);
		}
		CHECK_EQ(open_image(&r, RIG_OVER, 0, &r.c, &err), 0);
		CHECK_EQ(cow_chain_check(r.c, &rep, 0, &err), 0);
		if (rep.leaks || rep.corruptions)
			FAIL("%s: %llu leaks, %llu corruptions", shapes[i].name,
			     (unsigned long long)rep.leaks, (unsigned long long)rep.corruptions);
		CHECK_EQ(model_verify(r.m, r.c, MODEL_NOW, true, &err), 0);
		rig_free(&r);
	}
}

/* Refcounts are reserved ahead: a flush after new clusters costs a sync of data and one of entries. */
TEST(a_flush_costs_two_syncs)
{
	struct cow_chain_stats before, after;
	struct rig r;

	init(&r, &shapes[0], test_rand());
	must_open(&r);
	for (unsigned i = 0; i < 20; i++) {
		struct rig_op op = { .kind = RIG_WRITE, .off = i * 3 * 65536ULL % COW_MIB(4), .len = 5000 };

		cow_chain_get_stats(r.c, &before);
		rig_must(&r, &op);
		rig_must(&r, &(struct rig_op){ .kind = RIG_FLUSH });
		cow_chain_get_stats(r.c, &after);
		if (i == 0)	/* the batch, and the L2 table */
			CHECK_EQ(after.meta_syncs - before.meta_syncs, 2);
		else
			CHECK_EQ(after.meta_syncs - before.meta_syncs, 1);
		CHECK_EQ(after.data_syncs - before.data_syncs, 1);
	}
	cow_chain_get_stats(r.c, &before);
	rig_must(&r, &(struct rig_op){ .kind = RIG_WRITE, .off = 0, .len = 5000 });	/* in place */
	rig_must(&r, &(struct rig_op){ .kind = RIG_FLUSH });
	cow_chain_get_stats(r.c, &after);
	CHECK_EQ(after.meta_syncs, before.meta_syncs);
	rig_free(&r);
}

/* Operation @nth fails; the rest goes on. False: there were fewer operations. */
static bool fail_one(const struct shape *s, uint64_t seed, uint64_t nth, bool forever)
{
	struct cow_sim_fault none = { 0 }, fault = { .nth = nth, .error = nth % 3 ? -EIO : -ENOSPC,
						     .persistent = forever };
	struct cow_err why = { 0 };
	bool reached;
	struct rig r;
	int rc;

	init(&r, s, seed);
	must_open(&r);
	cow_sim_set_fault(r.sim, &fault);
	for (unsigned i = 0; i < 25; i++) {
		struct rig_op op;

		do
			random_op(&r, &op);
		while (op.kind == RIG_READ);
		op.off -= op.off % 512;
		op.len = cow_max(512, op.len - op.len % 512);
		if (op.kind == RIG_RESIZE)
			op.kind = RIG_FLUSH;
		else
			op.len = cow_min(op.len, model_size(r.m) - op.off);
		(void)rig_do(&r, &op);
	}
	(void)cow_chain_close(r.c);
	r.c = NULL;
	reached = cow_sim_op_count(r.sim) >= nth;
	cow_sim_set_fault(r.sim, &none);
	rc = judge(&r, RIG_OVER, MODEL_NOW, &why);
	/* What was not flushed may be lost when the end failed, so only soundness is judged then. */
	if (rc && rc != -EIO)
		FAIL("%s: operation %llu failed (seed %llu): %s", s->name, (unsigned long long)nth,
		     (unsigned long long)seed, cow_err_text(&why, rc));
	rig_free(&r);
	return reached;
}

TEST(failing_disk)
{
	uint64_t seed = test_rand();

	cow_log_set_level((enum cow_log_level)0);
	for (size_t i = 0; i < COW_ARRAY_SIZE(shapes); i++) {
		for (uint64_t nth = 1; fail_one(&shapes[i], seed, nth, false); nth += rig_full() ? 1 : 5)
			;
		for (uint64_t nth = 1; fail_one(&shapes[i], seed, nth, true); nth += rig_full() ? 1 : 11)
			;
	}
}

/* ---- repairs ---- */

static uint64_t field(struct rig *r, uint64_t off)
{
	uint8_t b[8];

	CHECK_EQ(cow_sim_read(r->sim, RIG_OVER, b, sizeof(b), off), 0);
	return cow_get_be64(b);
}

/* Refcounts too low, too high and missing altogether. */
static void damage(struct rig *r)
{
	uint64_t table = field(r, QCOW2_H_REFTABLE_OFF), block = field(r, table);
	uint8_t b[64], none[8] = { 0 };

	for (unsigned i = 0; i < 3; i++) {
		uint64_t at = block + rig_rand(r, 8) * sizeof(b);

		CHECK_EQ(cow_sim_read(r->sim, RIG_OVER, b, sizeof(b), at), 0);
		for (size_t k = 0; k < sizeof(b); k++)
			b[k] ^= rig_rand(r, 4) ? 0 : 1;
		CHECK_EQ(cow_sim_write(r->sim, RIG_OVER, b, sizeof(b), at), 0);
	}
	if (rig_rand(r, 2))
		CHECK_EQ(cow_sim_write(r->sim, RIG_OVER, none, sizeof(none), table), 0);
}

/* A repair is cut at each of its steps: the next one finishes it, and no data is lost. */
static void cut_repair(const struct shape *s)
{
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };
	struct rig r;

	init(&r, s, test_rand());
	must_open(&r);
	work(&r, 40);
	CHECK_EQ(cow_chain_close(r.c), 0);
	damage(&r);
	cow_sim_log_start(r.sim, RIG_OVER);
	CHECK_EQ(open_image(&r, RIG_OVER, COW_OPEN_WRITE | COW_OPEN_CHECK, &r.c, &err), 0);
	CHECK_EQ(cow_chain_check(r.c, &rep, COW_CHECK_REPAIR, &err), 0);
	must_close(&r);
	CHECK(rep.repaired > 0);
	for (size_t pos = 0; pos <= cow_sim_log_len(r.sim, RIG_OVER); pos++) {
		CHECK_EQ(cow_sim_crash(r.sim, RIG_OVER, pos, COW_SIM_RANDOM, rig_rand(&r, UINT64_MAX),
				       r.sim, CRASH), 0);
		CHECK_EQ(open_image(&r, CRASH, COW_OPEN_WRITE | COW_OPEN_CHECK, &r.c, &err), 0);
		rep = (struct cow_report){ 0 };
		CHECK_EQ(cow_chain_check(r.c, &rep, COW_CHECK_REPAIR, &err), 0);
		must_close(&r);
		if (judge(&r, CRASH, MODEL_NOW, &err))
			FAIL("%s: repair cut at %zu (seed %llu): %s", s->name, pos,
			     (unsigned long long)r.cfg.seed, err.msg);
	}
	rig_free(&r);
}

TEST(interrupted_repairs)
{
	for (unsigned n = 0; n < (rig_full() ? 20 : 3); n++) {
		for (size_t i = 0; i < COW_ARRAY_SIZE(shapes); i++)
			cut_repair(&shapes[i]);
	}
}

/* The base has it all: whatever a power cut leaves of the overlay, the pair reads the same. */
TEST(interrupted_emptying)
{
	const struct shape *s = &shapes[0];
	struct cow_err err = { 0 };
	struct rig r;

	init(&r, s, test_rand());
	must_open(&r);
	work(&r, 40);
	CHECK_EQ(cow_chain_flush(r.c), 0);
	cow_sim_log_start(r.sim, RIG_OVER);
	if (cow_chain_commit(r.c, NULL, NULL, &err))
		FAIL("commit: %s", err.msg);
	must_close(&r);
	for (size_t pos = 0; pos <= cow_sim_log_len(r.sim, RIG_OVER); pos++) {
		CHECK_EQ(cow_sim_crash(r.sim, RIG_OVER, pos, COW_SIM_RANDOM, rig_rand(&r, UINT64_MAX),
				       r.sim, CRASH), 0);
		/* What was not touched shows the base, as before: only the contents are judged. */
		CHECK_EQ(open_image(&r, CRASH, 0, &r.c, &err), 0);
		for (uint64_t at = 0; at < s->size; at += RIG_MAX) {
			CHECK_EQ(cow_chain_pread(r.c, r.buf, RIG_MAX, at), 0);
			if (memcmp(r.buf, model_bytes(r.m) + at, RIG_MAX))
				FAIL("emptying cut at %zu: bytes from %llu on differ", pos,
				     (unsigned long long)at);
		}
		must_close(&r);
	}
	rig_free(&r);
}

/* ---- many at once ---- */

struct job {
	struct cow_req req;
	bool done;
	int result;
};

static void job_done(struct cow_req *req, int result)
{
	struct job *j = req->opaque;

	j->done = true;
	j->result = result;
}

/* Writes that share clusters, tables and refcount blocks but no sector, in random order and in pieces. */
static void many_at_once(const struct shape *s)
{
	static struct job jobs[JOBS];
	struct cow_err err = { 0 };
	struct rig r;

	init(&r, s, test_rand());
	must_open(&r);
	cow_sim_set_async(r.sim, true);
	for (unsigned round = 0; round < (rig_full() ? 200 : 20); round++) {
		uint64_t span = model_size(r.m) / 512 / JOBS, left = JOBS;

		model_begin(r.m, cow_sim_log_len(r.sim, RIG_OVER), 0);
		for (unsigned i = 0; i < JOBS; i++) {
			bool near = round % 2;	/* all in few clusters, or all over the disk */
			uint64_t off = near ? (round * 40 + i * 3) * 512 : (i * span + rig_rand(&r, span)) * 512;
			uint64_t len = near ? 1024 : 512 * (1 + rig_rand(&r, span / 2));

			off = cow_min(off, (model_size(r.m) - 1) / 512 * 512);
			len = cow_min(cow_min(len, RIG_MAX / JOBS), model_size(r.m) - off);
			if (!near)
				len = cow_min(len, ((i + 1) * span) * 512 - off);
			for (uint64_t k = 0; k < len; k++)
				r.buf[i * (RIG_MAX / JOBS) + k] = (uint8_t)rig_rand(&r, 256);
			jobs[i] = (struct job){ .req = {
				.op = COW_OP_WRITE, .virt = off, .len = len,
				.buf = r.buf + i * (RIG_MAX / JOBS), .done = job_done, .opaque = &jobs[i],
			} };
			model_write(r.m, off, len, jobs[i].req.buf);
			cow_req_submit(r.c, &jobs[i].req);
		}
		while (left) {
			cow_chain_poll(r.c, true);
			left = 0;
			for (unsigned i = 0; i < JOBS; i++)
				left += !jobs[i].done;
		}
		for (unsigned i = 0; i < JOBS; i++)
			CHECK_EQ(jobs[i].result, 0);
		model_end(r.m, cow_sim_log_len(r.sim, RIG_OVER), true);
	}
	must_close(&r);
	cow_sim_set_async(r.sim, false);
	if (judge(&r, RIG_OVER, MODEL_NOW, &err))
		FAIL("%s: %s", s->name, err.msg);
	rig_free(&r);
}

TEST(many_requests_at_once)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(shapes); i++)
		many_at_once(&shapes[i]);
}

/* Every lookup of metadata misses at first: map() must have changed nothing then. */
TEST(restartable_map)
{
	cow_meta_test_miss = true;
	for (size_t i = 0; i < COW_ARRAY_SIZE(shapes); i++) {
		struct cow_err err = { 0 };
		struct rig r;

		init(&r, &shapes[i], test_rand());
		must_open(&r);
		work(&r, 60);
		must_close(&r);
		if (judge(&r, RIG_OVER, MODEL_NOW, &err))
			FAIL("%s: %s", shapes[i].name, err.msg);
		rig_free(&r);
	}
	cow_meta_test_miss = false;
}
