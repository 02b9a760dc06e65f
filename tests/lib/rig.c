// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The machine, base and overlay of the fault tests (rig.h).
 */
#include "rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "test.h"

#define CACHE_BYTES COW_KIB(512)	/* 128 blocks: opening thousands of chains costs less */
#define FINDINGS_MAX 256u	/* bytes */
#define DATA_ASIDE "data file of the running image"
#define POLL_LIMIT 100000u	/* polls without an answer are a hang: no request needs 1000 */

bool rig_full(void)
{
	const char *s = getenv("FAULT");

	return s && !strcmp(s, "full");
}

uint64_t rig_rand(struct rig *r, uint64_t below)
{
	uint64_t z = r->rng += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return (z ^ (z >> 31)) % below;
}

static void fill_random(struct rig *r, uint8_t *p, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		p[i] = (uint8_t)rig_rand(r, 256);
}

static unsigned hot_places(const struct rig *r)
{
	return r->cfg.hot_len ? RIG_HOT : 1;
}

static void hot_range(const struct rig *r, unsigned i, uint64_t limit, uint64_t *off, uint64_t *len)
{
	*off = r->cfg.hot_len ? cow_min(r->cfg.hot[i], limit) : 0;
	*len = r->cfg.hot_len ? cow_min(r->cfg.hot_len, limit - *off) : limit;
}

/* Most of a hot place is data, some of it is left as zeroes. */
static void fill_base(struct rig *r)
{
	uint8_t *model = r->m ? model_bytes(r->m) : NULL;
	uint64_t shown = r->m ? cow_min(model_size(r->m), r->cfg.base_size) : 0;

	for (unsigned i = 0; i < hot_places(r); i++) {
		uint64_t off, len;

		hot_range(r, i, r->cfg.base_size, &off, &len);
		for (uint64_t at = off; at < off + len;) {
			uint64_t n = cow_min(off + len - at, 1 + rig_rand(r, 4 * RIG_MAX / 16));

			n = cow_min(n, RIG_MAX);
			if (rig_rand(r, 8)) {
				fill_random(r, r->buf, n);
				CHECK_EQ(cow_sim_write(r->sim, RIG_BASE, r->buf, n, at), 0);
				if (at < shown)
					memcpy(model + at, r->buf, cow_min(n, shown - at));
			}
			at += n;
		}
	}
}

static void create_overlay(struct rig *r)
{
	struct cow_args *args = cow_args_new();
	struct cow_err err = { 0 };
	struct cow_create_cfg cfg = {
		.format = "dscow",
		.path = RIG_OVER,
		.size = r->cfg.size,
		.args = args,
		.backing = RIG_BASE,
		.backing_format = "raw",
		.exist_ok = r->cfg.blkdev,
		.io = &cow_io_sim_ops,
		.io_arg = r->sim,
	};
	char num[32];
	int rc;

	CHECK(args);
	snprintf(num, sizeof(num), "%u", r->cfg.block);
	CHECK_EQ(cow_args_set(args, "block_size", num), 0);
	snprintf(num, sizeof(num), "%u", r->cfg.granule);
	CHECK_EQ(cow_args_set(args, "granule_size", num), 0);
	rc = cow_image_create(&cfg, NULL, &err);
	cow_args_free(args);
	if (rc)
		FAIL("create: %s", cow_err_text(&err, rc));
}

void rig_init(struct rig *r, const struct rig_cfg *cfg)
{
	*r = (struct rig){ .cfg = *cfg, .rng = cfg->seed, .base = RIG_BASE };
	r->cfg.block = cfg->block ? cfg->block : 65536;
	r->cfg.granule = cfg->granule ? cfg->granule : 4096;
	r->cfg.size = cfg->size ? cfg->size : cfg->base_size;
	r->cfg.cache_bytes = cfg->cache_bytes ? cfg->cache_bytes : CACHE_BYTES;
	r->sim = cow_sim_new(cfg->seed);
	r->m = cfg->no_model ? NULL : model_new(r->cfg.size, cfg->cap, r->cfg.granule);
	r->buf = malloc(RIG_MAX);
	CHECK(r->sim && r->buf);
	CHECK_EQ(cow_sim_add(r->sim, RIG_BASE, cfg->base_size, false), 0);
	if (cfg->blkdev)
		CHECK_EQ(cow_sim_add(r->sim, RIG_OVER, cow_max(r->cfg.size, cfg->cap) + (8u << 20),
				     true), 0);
	if (r->m)
		model_below(r->m, cfg->base_size);
	fill_base(r);
	create_overlay(r);
	rig_log_start(r);
}

void rig_free(struct rig *r)
{
	if (r->c)
		cow_chain_close(r->c);
	cow_sim_free(r->sim);
	model_free(r->m);
	free(r->buf);
	*r = (struct rig){ 0 };
}

int rig_try_open(struct rig *r, const char *name, uint32_t flags, struct cow_chain **ret,
		 struct cow_err *err)
{
	const char *const backing[] = { r->base, NULL };
	struct cow_chain_cfg cfg = {
		.format = "dscow",
		.path = name,
		.flags = flags,
		.backing = backing,
		.cache_bytes = r->cfg.cache_bytes,
		.io = &cow_io_sim_ops,
		.io_arg = r->sim,
	};

	return cow_chain_open(&cfg, ret, err);
}

struct cow_chain *rig_open(struct rig *r, const char *name, uint32_t flags)
{
	struct cow_err err = { 0 };
	struct cow_chain *c = NULL;
	int rc = rig_try_open(r, name, flags, &c, &err);

	if (rc)
		FAIL("open %s: %s", name, cow_err_text(&err, rc));
	return c;
}

/* ---- operations ---- */

static uint64_t random_len(struct rig *r)
{
	switch (rig_rand(r, 8)) {
	case 0:
		return 1 + rig_rand(r, 600);
	case 1:
		return 1 + rig_rand(r, 3 * (uint64_t)r->cfg.granule);
	case 2:
		return 1 + rig_rand(r, 2 * (uint64_t)r->cfg.block);
	case 3:
		return r->cfg.block;
	default:
		return r->cfg.granule * (1 + rig_rand(r, 3));
	}
}

static void random_range(struct rig *r, struct rig_op *op, uint64_t unit)
{
	uint64_t size = model_size(r->m), off, len, align = unit;

	hot_range(r, (unsigned)rig_rand(r, hot_places(r)), size, &off, &len);
	if (!len) {
		off = 0;
		len = size;
	}
	op->len = cow_min(cow_min(random_len(r), RIG_MAX), len);
	if (rig_rand(r, 2))
		align = cow_max(unit, r->cfg.granule);
	op->off = off + rig_rand(r, len - op->len + 1);
	op->off -= op->off % align;
	op->len = cow_max(unit, op->len - op->len % unit);
	op->len = cow_min(op->len, size - op->off);
}

void rig_random(struct rig *r, struct rig_op *op, uint64_t unit)
{
	uint64_t dice = rig_rand(r, 100);

	*op = (struct rig_op){ .kind = RIG_WRITE, .fua = rig_rand(r, 32) == 0 };
	if (dice >= 96)
		op->kind = RIG_FLUSH;
	else if (dice >= 84)
		op->kind = RIG_DISCARD;
	else if (dice >= 72)
		op->kind = RIG_ZERO;
	else if (dice >= 66)
		op->kind = RIG_READ;
	else if (dice >= 54)
		op->kind = RIG_WRITTEN;
	if (op->kind == RIG_FLUSH || op->kind == RIG_READ)
		op->fua = false;
	if (op->kind != RIG_FLUSH)
		random_range(r, op, unit);
	if (op->kind == RIG_WRITTEN) {
		uint64_t end = cow_round_up(op->off + op->len, r->cfg.granule);

		op->off = cow_round_down(op->off, r->cfg.granule);
		op->len = cow_min(cow_min(end, model_size(r->m)) - op->off, RIG_MAX);
	}
}

struct wait {
	bool done;
	int result;
};

static void request_done(struct cow_req *req, int result)
{
	struct wait *w = req->opaque;

	CHECK(!w->done);
	w->done = true;
	w->result = result;
}

int rig_run(struct cow_chain *c, struct cow_req *req)
{
	struct wait w = { 0 };
	unsigned polls = 0;

	req->done = request_done;
	req->opaque = &w;
	cow_req_submit(c, req);
	while (!w.done) {
		cow_chain_poll(c, true);
		if (++polls > POLL_LIMIT)
			FAIL("operation %d at %llu hangs", (int)req->op, (unsigned long long)req->virt);
	}
	return w.result;
}

int rig_request(struct cow_chain *c, enum cow_op op, uint32_t flags, uint64_t off, uint64_t len,
		void *buf)
{
	struct cow_req req = { .op = op, .flags = flags, .virt = off, .len = len, .buf = buf };

	return rig_run(c, &req);
}

static int do_read(struct rig *r, const struct rig_op *op)
{
	uint8_t *got = malloc(op->len);
	int rc;

	CHECK(got);
	rc = rig_request(r->c, COW_OP_READ, 0, op->off, op->len, got);
	if (!rc && memcmp(got, model_bytes(r->m) + op->off, op->len) &&
	    !(r->failures && model_may_read(r->m, op->off, op->len, got)))
		FAIL("read of %llu bytes at %llu differs from what was written",
		     (unsigned long long)op->len, (unsigned long long)op->off);
	free(got);
	return rc;
}

static void tell_model(struct rig *r, const struct rig_op *op)
{
	switch (op->kind) {
	case RIG_WRITE:
	case RIG_WRITTEN:
		model_write(r->m, op->off, op->len, r->buf);
		break;
	case RIG_ZERO:
		model_zero(r->m, op->off, op->len);
		break;
	case RIG_DISCARD:
		model_discard(r->m, op->off, op->len);
		break;
	case RIG_RESIZE:
		model_resize(r->m, op->len);
		break;
	default:
		break;
	}
}

static int send_op(struct rig *r, const struct rig_op *op)
{
	static const enum cow_op to[] = {
		[RIG_WRITE] = COW_OP_WRITE, [RIG_ZERO] = COW_OP_ZERO,
		[RIG_DISCARD] = COW_OP_DISCARD, [RIG_FLUSH] = COW_OP_FLUSH,
		[RIG_WRITTEN] = COW_OP_WRITTEN,
	};
	struct cow_err err = { 0 };

	if (op->kind == RIG_RESIZE)
		return cow_chain_resize(r->c, op->len, true, &err);
	if (op->kind == RIG_WRITTEN)
		cow_sim_write_other(r->sim, RIG_OVER, r->buf, op->len,
				    op->off + cow_chain_image(r->c, 0)->linear_shift);
	return rig_request(r->c, to[op->kind], op->fua ? COW_REQ_FUA : 0, op->off, op->len, r->buf);
}

int rig_do(struct rig *r, const struct rig_op *op)
{
	uint32_t flags = op->fua ? MODEL_FUA : 0;
	int rc;

	if (op->kind == RIG_READ)
		return do_read(r, op);
	if (op->kind == RIG_WRITE || op->kind == RIG_WRITTEN)
		fill_random(r, r->buf, op->len);
	if (op->kind == RIG_FLUSH)
		flags |= MODEL_FLUSH;
	model_begin(r->m, rig_now(r), flags);
	tell_model(r, op);
	rc = send_op(r, op);
	model_end(r->m, rig_now(r), rc == 0);
	r->failures += rc != 0;
	if (rc && op->kind == RIG_RESIZE)
		model_size_is(r->m, cow_chain_size(r->c));
	return rc;
}

void rig_must(struct rig *r, const struct rig_op *op)
{
	int rc = rig_do(r, op);

	if (rc)
		FAIL("operation %d of %llu bytes at %llu: %s", (int)op->kind,
		     (unsigned long long)op->len, (unsigned long long)op->off, strerror(-rc));
}

/* ---- crash images ---- */

void rig_log_start(struct rig *r)
{
	cow_sim_log_start(r->sim, RIG_OVER);
	if (r->data)
		cow_sim_log_start(r->sim, r->data);
}

size_t rig_now(const struct rig *r)
{
	return cow_sim_log_len(r->sim, RIG_OVER) + (r->data ? cow_sim_log_len(r->sim, r->data) : 0);
}

/* How many of the first @pos entries are the data file's. Nothing else is logged. */
static size_t data_entries(const struct rig *r, size_t pos)
{
	size_t lo = 0, hi = cow_sim_log_len(r->sim, r->data);
	uint64_t start = hi ? cow_sim_log_seq(r->sim, r->data, 0) : 0;

	if (hi && cow_sim_log_len(r->sim, RIG_OVER))
		start = cow_min(start, cow_sim_log_seq(r->sim, RIG_OVER, 0));
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (cow_sim_log_seq(r->sim, r->data, mid) < start + pos)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

void rig_crash(struct rig *r, size_t pos, enum cow_sim_crash how, uint64_t seed, const char *as)
{
	size_t data = r->data ? data_entries(r, pos) : 0;

	CHECK_EQ(cow_sim_crash(r->sim, RIG_OVER, pos - data, how, seed, r->sim, as), 0);
	if (r->data) {
		cow_sim_rename(r->sim, r->data, DATA_ASIDE);
		CHECK_EQ(cow_sim_crash(r->sim, DATA_ASIDE, data, how, seed + 1, r->sim, r->data), 0);
	}
	test_images++;
}

void rig_uncrash(struct rig *r)
{
	if (r->data)
		cow_sim_rename(r->sim, DATA_ASIDE, r->data);
}

/* Leaks come as findings, too: all are kept, and told if there was a corruption. */
static void finding(struct cow_report *rep, const char *sentence)
{
	char *all = rep->opaque;
	size_t used = strlen(all);

	snprintf(all + used, FINDINGS_MAX - used, "; %s", sentence);
}

static int judge_open(struct rig *r, const char *name, uint32_t flags, size_t pos, bool full,
		      struct cow_err *why)
{
	char findings[FINDINGS_MAX] = "";
	struct cow_report rep = { .say = finding, .opaque = findings };
	struct cow_chain *c;
	int rc = rig_try_open(r, name, flags, &c, why), rc2;

	if (rc)
		return rc;
	rc = cow_chain_check(c, &rep, 0, why);
	if (!rc && rep.corruptions)
		rc = cow_err_set(why, -EUCLEAN, "check finds%s", findings);
	if (!rc)
		rc = model_verify(r->m, c, pos, full, why);
	rc2 = cow_chain_close(c);
	if (!rc && rc2)
		rc = cow_err_sys(why, rc2, "close");
	return rc;
}

int rig_judge(struct rig *r, const char *name, size_t pos, bool full, struct cow_err *why)
{
	int rc = judge_open(r, name, 0, pos, full, why);

	return rc ? rc : judge_open(r, name, COW_OPEN_WRITE, pos, full, why);
}
