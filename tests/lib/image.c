// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Images of a format under power cuts, failing disks and many requests at once
 * (image.h). A recorded workload is cut at positions of its log; what is left must
 * open, have no corruption (leaks are allowed), read as the model permits, and be
 * clean after a repair.
 */
#include "image.h"

#include <errno.h>
#include <stdlib.h>

#include "cow/log.h"
#include "meta.h"
#include "test.h"

#define JOBS 24u

static const struct image_shape *shape_now;	/* of the last image_init() */

/*
 * What an image of this shape is made with, or opened: @options, which may be NULL, and its data file.
 * These allocations are the test's own and do not fail.
 */
static struct cow_args *args_for(const struct image_shape *s, const char *options)
{
	bool (*fails)(void) = cow_alloc_should_fail;
	struct cow_err err = { 0 };
	struct cow_args *args;

	cow_alloc_should_fail = NULL;
	args = cow_args_new();
	CHECK(args && (!options || cow_args_parse(args, options, &err) == 0));
	if (s->data)
		CHECK_EQ(cow_args_set(args, "data_file", s->data), 0);
	cow_alloc_should_fail = fails;
	return args;
}

/* Frees @args. */
static int try_open(struct rig *r, const char *name, uint32_t flags, struct cow_args *args, bool without_base,
		    struct cow_chain **ret, struct cow_err *err)
{
	const char *const backing[] = { RIG_BASE, NULL };
	struct cow_chain_cfg cfg = {
		.format = image_kind.format, .path = name, .flags = flags, .args = args,
		.backing = r->cfg.base_size && !without_base ? backing : NULL, .no_backing = without_base,
		.cache_bytes = r->cfg.cache_bytes, .io = &cow_io_sim_ops, .io_arg = r->sim,
	};
	int rc = cow_chain_open(&cfg, ret, err);

	cow_args_free(args);
	return rc;
}

int image_try_open(struct rig *r, const char *name, uint32_t flags, struct cow_chain **ret,
		   struct cow_err *err)
{
	return try_open(r, name, flags, args_for(shape_now, shape_now->open_options), false, ret,
			err);
}

int image_try_snapshot(struct rig *r, const char *name, const char *snapshot, struct cow_chain **ret,
		       struct cow_err *err)
{
	struct cow_args *args = args_for(shape_now, shape_now->open_options);

	CHECK_EQ(cow_args_set(args, "snapshot", snapshot), 0);
	return try_open(r, name, 0, args, false, ret, err);
}

void image_open(struct rig *r)
{
	struct cow_err err = { 0 };

	if (image_try_open(r, RIG_OVER, COW_OPEN_WRITE, &r->c, &err))
		FAIL("open: %s", err.msg);
}

void image_close(struct rig *r)
{
	CHECK_EQ(cow_chain_close(r->c), 0);
	r->c = NULL;
}

/* Bytes at random, with zeroes between; the model knows what of them the image shows. */
static void make_base(struct rig *r, const struct image_shape *s)
{
	uint8_t *p = malloc(s->base_size);

	CHECK(p);
	for (uint64_t i = 0; i < s->base_size; i++)
		p[i] = i / 4096 % 5 == 3 ? 0 : (uint8_t)rig_rand(r, 256);
	CHECK_EQ(cow_sim_add(r->sim, RIG_BASE, s->base_size, false), 0);
	CHECK_EQ(cow_sim_write(r->sim, RIG_BASE, p, s->base_size, 0), 0);
	memcpy(model_bytes(r->m), p, cow_min(s->base_size, s->size));
	free(p);
}

static void make_image(struct rig *r, const struct image_shape *s)
{
	struct cow_err err = { 0 };
	struct cow_args *args = args_for(s, s->options);
	struct cow_create_cfg cfg = {
		.format = image_kind.format, .path = RIG_OVER, .size = s->size, .args = args,
		.backing = s->base_size ? RIG_BASE : NULL, .backing_format = "raw",
		.exist_ok = s->device, .io = &cow_io_sim_ops, .io_arg = r->sim,
	};

	if (s->device)
		CHECK_EQ(cow_sim_add(r->sim, RIG_OVER, s->device, true), 0);
	if (cow_image_create(&cfg, NULL, &err))
		FAIL("create: %s", err.msg);
	cow_args_free(args);
	if (s->prepare)
		s->prepare(r);
}

void image_init(struct rig *r, const struct image_shape *s, uint64_t seed)
{
	const struct cow_format *fmt;

	if (cow_format_find(image_kind.format, &fmt, NULL))
		test_skip("built without zlib and zstd");
	shape_now = s;
	*r = (struct rig){
		.cfg = { .seed = seed, .base_size = s->base_size, .size = s->size, .cap = s->cap,
			 .block = s->block ? s->block : s->cluster, .granule = s->cluster,
			 .cache_bytes = COW_KIB(512) },
		.rng = seed, .base = RIG_BASE, .data = s->data, .sim = cow_sim_new(seed),
		.m = model_new(s->size, s->cap, s->cluster), .buf = malloc(RIG_MAX),
	};
	CHECK(r->sim && r->buf);
	if (s->base_size)
		make_base(r, s);
	model_below(r->m, s->base_size);
	make_image(r, s);
	model_settle(r->m);
	rig_log_start(r);
}

bool image_encodes(struct rig *r)
{
	const struct cow_image *img = cow_chain_image(r->c, 0);

	return img->fmt->encode && !img->data_file[0] && !img->encrypted;
}

bool image_commits(const struct image_shape *s)
{
	return s->base_size && !s->data;
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

void image_work(struct rig *r, unsigned ops)
{
	for (unsigned i = 0; i < ops; i++) {
		struct rig_op op;

		random_op(r, &op);
		rig_must(r, &op);
	}
}

static void work(struct rig *r, unsigned ops)
{
	(image_kind.work ? image_kind.work : image_work)(r, ops);
}

static void any_finding(struct cow_report *rep, const char *sentence)
{
	char *all = rep->opaque;
	size_t used = strlen(all);

	snprintf(all + used, IMAGE_FINDINGS - used, "; %s", sentence);
}

void image_finding(struct cow_report *rep, const char *sentence)
{
	if (!strstr(sentence, "leaked"))
		any_finding(rep, sentence);
}

/* Opened with @flags: no corruption, contents as the model permits at @pos. */
static int judge_open(struct rig *r, const char *name, uint32_t flags, size_t pos, struct cow_err *why)
{
	char findings[IMAGE_FINDINGS] = "";
	struct cow_report rep = { .say = image_finding, .opaque = findings };
	struct cow_chain *c;
	int rc = image_try_open(r, name, flags, &c, why), rc2;

	if (rc)
		return rc;
	rc = cow_chain_check(c, &rep, flags & COW_OPEN_CHECK ? COW_CHECK_REPAIR : 0, why);
	if (rc == 0 && rep.corruptions)
		rc = cow_err_set(why, -EUCLEAN, "check finds%s", findings);
	rep = (struct cow_report){ .say = any_finding, .opaque = findings };
	findings[0] = 0;
	if (rc == 0 && (flags & COW_OPEN_CHECK))
		rc = cow_chain_check(c, &rep, 0, why);
	if (rc == 0 && rep.leaks + rep.corruptions)
		rc = cow_err_set(why, -EUCLEAN, "not clean after a repair%s", findings);
	if (rc == 0)
		rc = model_verify(r->m, c, pos, true, why);
	rc2 = cow_chain_close(c);
	return rc ? rc : rc2;
}

/* Opened with @flags, and then what its shape asks for. */
static int judge_once(struct rig *r, const char *name, uint32_t flags, size_t pos, struct cow_err *why)
{
	int rc = judge_open(r, name, flags, pos, why);

	return rc || !shape_now->judge ? rc : shape_now->judge(r, name, why);
}

int image_judge(struct rig *r, const char *name, size_t pos, struct cow_err *why)
{
	int rc = judge_once(r, name, 0, pos, why);

	return rc ? rc : judge_once(r, name, COW_OPEN_WRITE | COW_OPEN_CHECK, pos, why);
}

void image_cut(struct rig *r, const struct image_shape *s, size_t pos, enum cow_sim_crash how)
{
	uint64_t seed = rig_rand(r, UINT64_MAX);
	struct cow_err why = { 0 };
	int rc;

	rig_crash(r, pos, how, seed, IMAGE_CRASH);
	rc = image_judge(r, IMAGE_CRASH, pos, &why);
	rig_uncrash(r);
	if (rc)
		FAIL("%s: cut at %zu of %zu (%d, image seed %llu, workload seed %llu): %s", s->name, pos,
		     rig_now(r), (int)how, (unsigned long long)seed, (unsigned long long)r->cfg.seed,
		     cow_err_text(&why, rc));
}

static void power_cuts(const struct image_shape *s)
{
	unsigned ops = rig_full() ? 600 : 80, random = rig_full() ? 8 : 3, images = 1;
	size_t n, step;
	struct rig r;

	image_init(&r, s, test_rand());
	image_open(&r);
	for (uint64_t off = 0; off < s->fill; off += RIG_MAX)
		rig_must(&r, &(struct rig_op){ .kind = RIG_WRITE, .off = off, .len = RIG_MAX });
	work(&r, ops);
	image_close(&r);
	n = rig_now(&r);
	step = rig_full() ? 1 : cow_max(n / 25, 1);
	for (size_t pos = 0; pos <= n; pos += step) {
		image_cut(&r, s, pos, COW_SIM_PREFIX);
		image_cut(&r, s, pos, COW_SIM_SYNCED);
		for (unsigned i = 0; i < random; i++)
			image_cut(&r, s, pos, COW_SIM_RANDOM);
		images += 2 + random;
	}
	image_cut(&r, s, n, COW_SIM_PREFIX);
	printf("%s: seed %llu, %u images of %zu log entries\n", s->name, (unsigned long long)r.cfg.seed,
	       images, n);
	rig_free(&r);
}

void image_power_cuts(void)
{
	for (size_t i = 0; i < image_kind.n; i++)
		power_cuts(&image_kind.shapes[i]);
}

/* A clean end leaves nothing behind: every reserved cluster is given back. */
void image_no_leaks_after_close(unsigned sessions, unsigned ops)
{
	for (size_t i = 0; i < image_kind.n; i++) {
		char findings[IMAGE_FINDINGS] = "";
		struct cow_report rep = { .say = any_finding, .opaque = findings };
		struct cow_err err = { 0 };
		struct rig r;

		image_init(&r, &image_kind.shapes[i], test_rand());
		for (unsigned k = 0; k < sessions; k++) {
			image_open(&r);
			work(&r, ops);
			image_close(&r);
		}
		CHECK_EQ(image_try_open(&r, RIG_OVER, 0, &r.c, &err), 0);
		CHECK_EQ(cow_chain_check(r.c, &rep, 0, &err), 0);
		if (rep.leaks || rep.corruptions)
			FAIL("%s: check finds%s", image_kind.shapes[i].name, findings);
		CHECK_EQ(model_verify(r.m, r.c, MODEL_NOW, true, &err), 0);
		rig_free(&r);
	}
}

/* Any of them may fail; the rest goes on. */
static void random_requests(struct rig *r)
{
	for (unsigned i = 0; i < 25; i++) {
		struct rig_op op;

		do
			random_op(r, &op);
		while (op.kind == RIG_READ);
		op.off -= op.off % 512;
		op.len = cow_max(512, op.len - op.len % 512);
		if (op.kind == RIG_RESIZE)
			op.kind = RIG_FLUSH;
		else
			op.len = cow_min(op.len, model_size(r->m) - op.off);
		(void)rig_do(r, &op);
	}
}

bool image_fail_nth(const struct image_shape *s, uint64_t seed, uint64_t nth, bool forever,
		    void (*requests)(struct rig *r))
{
	struct cow_sim_fault none = { 0 }, fault = { .nth = nth, .error = nth % 3 ? -EIO : -ENOSPC,
						     .persistent = forever };
	struct cow_err why = { 0 };
	bool reached;
	struct rig r;
	int rc;

	image_init(&r, s, seed);
	image_open(&r);
	cow_sim_set_fault(r.sim, &fault);
	requests(&r);
	(void)cow_chain_close(r.c);
	r.c = NULL;
	reached = cow_sim_op_count(r.sim) >= nth;
	cow_sim_set_fault(r.sim, &none);
	rc = image_judge(&r, RIG_OVER, MODEL_NOW, &why);
	/* What was not flushed may be lost when the end failed, so only soundness is judged then. */
	if (rc && rc != -EIO)
		FAIL("%s: operation %llu failed (seed %llu): %s", s->name, (unsigned long long)nth,
		     (unsigned long long)seed, cow_err_text(&why, rc));
	rig_free(&r);
	return reached;
}

void image_failing_disk(void)
{
	uint64_t seed = test_rand();

	cow_log_set_level((enum cow_log_level)0);
	for (size_t i = 0; i < image_kind.n; i++) {
		const struct image_shape *s = &image_kind.shapes[i];

		for (uint64_t nth = 1; image_fail_nth(s, seed, nth, false, random_requests);
		     nth += rig_full() ? 1 : 5)
			;
		for (uint64_t nth = 1; image_fail_nth(s, seed, nth, true, random_requests);
		     nth += rig_full() ? 1 : 11)
			;
	}
}

/* The base has it all: whatever a power cut leaves of the overlay, the pair reads the same. */
static void cut_emptying(const struct image_shape *s)
{
	struct cow_err err = { 0 };
	struct rig r;

	image_init(&r, s, test_rand());
	image_open(&r);
	work(&r, 40);
	CHECK_EQ(cow_chain_flush(r.c), 0);
	rig_log_start(&r);
	if (cow_chain_commit(r.c, NULL, NULL, &err))
		FAIL("commit: %s", err.msg);
	image_close(&r);
	for (size_t pos = 0; pos <= rig_now(&r); pos++) {
		rig_crash(&r, pos, COW_SIM_RANDOM, rig_rand(&r, UINT64_MAX), IMAGE_CRASH);
		/* What was not touched shows the base, as before: only the contents are judged. */
		CHECK_EQ(image_try_open(&r, IMAGE_CRASH, 0, &r.c, &err), 0);
		for (uint64_t at = 0; at < s->size; at += RIG_MAX) {
			uint64_t n = cow_min(RIG_MAX, s->size - at);

			CHECK_EQ(cow_chain_pread(r.c, r.buf, n, at), 0);
			if (memcmp(r.buf, model_bytes(r.m) + at, n))
				FAIL("emptying cut at %zu: bytes from %llu on differ", pos,
				     (unsigned long long)at);
		}
		image_close(&r);
	}
	rig_free(&r);
}

void image_interrupted_emptying(void)
{
	for (size_t i = 0; i < image_kind.n; i++) {
		const struct image_shape *s = &image_kind.shapes[i];

		if (image_commits(s) && !s->cap)
			cut_emptying(s);
	}
}

/* ---- growing ---- */

/* At no moment does an image that grows show what a longer base has there. */
static void cut_growth(const struct image_shape *s)
{
	struct rig r;

	image_init(&r, s, test_rand());
	image_open(&r);
	image_work(&r, 8);
	rig_must(&r, &(struct rig_op){ .kind = RIG_RESIZE, .len = cow_max(model_size(r.m), s->base_size) + 512 });
	image_close(&r);
	for (size_t pos = 0; pos <= rig_now(&r); pos++) {
		image_cut(&r, s, pos, COW_SIM_PREFIX);
		image_cut(&r, s, pos, COW_SIM_RANDOM);
	}
	rig_free(&r);
}

void image_growth_hides_base(void)
{
	for (size_t i = 0; i < image_kind.n; i++) {
		const struct image_shape *s = &image_kind.shapes[i];

		if (s->base_size > s->size && s->cap > s->base_size)
			cut_growth(s);
	}
}

/* ---- another base is recorded, or none ---- */

static bool names(const struct cow_backing *b, const struct cow_backing *want)
{
	return !strcmp(b->path, want->path) && (!*b->path || !strcmp(b->format, want->format));
}

/* Whatever a cut leaves can be opened, and names the one or the other. */
static void cut_rebase(const struct image_shape *s, const struct cow_backing *other)
{
	struct cow_err err = { 0 };
	struct cow_backing old;
	struct cow_image *img;
	unsigned named = 0;
	struct rig r;
	size_t n;

	image_init(&r, s, test_rand());
	image_open(&r);
	image_work(&r, 30);
	CHECK_EQ(cow_chain_flush(r.c), 0);
	img = cow_chain_image(r.c, 0);
	old = img->backing;
	rig_log_start(&r);
	if (img->fmt->rebase(img, other, NULL, false, &err))
		FAIL("%s: rebase to '%s': %s", s->name, other->path, err.msg);
	if (*other->path)
		image_work(&r, 5);
	CHECK_EQ(model_verify(r.m, r.c, MODEL_NOW, true, &err), 0);
	image_close(&r);
	n = rig_now(&r);
	for (size_t pos = 0; pos <= n; pos++) {
		rig_crash(&r, pos, COW_SIM_RANDOM, rig_rand(&r, UINT64_MAX), IMAGE_CRASH);
		if (try_open(&r, IMAGE_CRASH, 0, args_for(s, s->open_options), true, &r.c, &err))
			FAIL("%s: rebase to '%s' cut at %zu: %s", s->name, other->path, pos, err.msg);
		img = cow_chain_image(r.c, 0);
		if (names(&img->backing, other))
			named++;
		else
			CHECK(names(&img->backing, &old));
		image_close(&r);
		rig_uncrash(&r);
	}
	CHECK(named > 0 && named <= n);
	rig_free(&r);
}

void image_interrupted_rebase(void)
{
	static const struct cow_backing others[] = {
		{ "a longer name", "raw" }, { "b", "letters" }, { "", "" },
	};

	for (size_t i = 0; i < image_kind.n; i++) {
		const struct image_shape *s = &image_kind.shapes[i];

		for (size_t k = 0; k < COW_ARRAY_SIZE(others) && s->base_size && !s->cap; k++) {
			if (s->open_options && strstr(s->open_options, "backing_format=raw") &&
			    strcmp(others[k].format, "raw"))
				continue;
			cut_rebase(s, &others[k]);
		}
	}
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

/* Writes that share clusters and tables but no sector, in random order and in pieces. */
static void all_at_once(const struct image_shape *s)
{
	static struct job jobs[JOBS];
	struct cow_err err = { 0 };
	struct rig r;

	image_init(&r, s, test_rand());
	image_open(&r);
	cow_sim_set_async(r.sim, true);
	for (unsigned round = 0; round < (rig_full() ? 200 : 20); round++) {
		uint64_t span = model_size(r.m) / 512 / JOBS, left = JOBS;

		model_begin(r.m, rig_now(&r), 0);
		for (unsigned i = 0; i < JOBS; i++) {
			bool near = round % 2;	/* all in few clusters, or all over the disk */
			uint64_t off = 512 * (near ? round * 40 + i * 3 : i * span + rig_rand(&r, span));
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
		model_end(r.m, rig_now(&r), true);
	}
	image_close(&r);
	cow_sim_set_async(r.sim, false);
	if (image_judge(&r, RIG_OVER, MODEL_NOW, &err))
		FAIL("%s: %s", s->name, err.msg);
	rig_free(&r);
}

void image_many_at_once(void)
{
	for (size_t i = 0; i < image_kind.n; i++)
		all_at_once(&image_kind.shapes[i]);
}

/* Every lookup of metadata misses at first: map() must have changed nothing then. */
void image_restartable_map(void)
{
	cow_meta_test_miss = true;
	for (size_t i = 0; i < image_kind.n; i++) {
		struct cow_err err = { 0 };
		struct rig r;

		image_init(&r, &image_kind.shapes[i], test_rand());
		image_open(&r);
		work(&r, 60);
		image_close(&r);
		if (image_judge(&r, RIG_OVER, MODEL_NOW, &err))
			FAIL("%s: %s", image_kind.shapes[i].name, err.msg);
		rig_free(&r);
	}
	cow_meta_test_miss = false;
}

void image_syncs_of_flush(unsigned first)
{
	struct cow_chain_stats before, after;
	struct rig r;

	image_init(&r, &image_kind.shapes[0], test_rand());
	image_open(&r);
	for (unsigned i = 0; i < 20; i++) {
		cow_chain_get_stats(r.c, &before);
		rig_must(&r, &(struct rig_op){ .kind = RIG_WRITE, .off = i * 3 * 65536ULL % COW_MIB(4),
					       .len = 5000 });
		rig_must(&r, &(struct rig_op){ .kind = RIG_FLUSH });
		cow_chain_get_stats(r.c, &after);
		CHECK_EQ(after.meta_syncs - before.meta_syncs, i == 0 ? first : 1);
		CHECK_EQ(after.data_syncs - before.data_syncs, 1);
	}
	cow_chain_get_stats(r.c, &before);
	rig_must(&r, &(struct rig_op){ .kind = RIG_WRITE, .off = 0, .len = 5000 });	/* in place */
	rig_must(&r, &(struct rig_op){ .kind = RIG_FLUSH });
	cow_chain_get_stats(r.c, &after);
	CHECK_EQ(after.meta_syncs, before.meta_syncs);
	rig_free(&r);
}
