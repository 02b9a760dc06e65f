// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * COW_OP_WRITTEN: somebody else (the kernel) writes the data to where the top
 * image has it and reports that afterwards. What is refused; that saying it
 * twice changes nothing; that it works when the cache of metadata is too small;
 * and power cuts with reports that arrive while a flush is under way, where a
 * granule may read as before or as written, never as anything else, and as
 * written once a flush that began after its report has ended.
 *
 * The same operation among others, one at a time, is in powercut.c, histories.c
 * and nthfail.c; kill -9 is in adopt.c.
 */
#include <errno.h>
#include <string.h>

#include "cow/log.h"
#include "rig.h"
#include "test.h"

#define GRANULE 4096u
#define CRASH "crash.dscow"
#define POLL_LIMIT 100000u

static int written(struct cow_chain *c, uint64_t off, uint64_t len)
{
	return rig_request(c, COW_OP_WRITTEN, 0, off, len, NULL);
}

static void write_other(struct rig *r, uint64_t virt, const void *buf, uint64_t len)
{
	cow_sim_write_other(r->sim, RIG_OVER, buf, len,
			    virt + cow_chain_image(r->c, 0)->linear_shift);
}

TEST(refused)
{
	struct rig_cfg cfg = { .seed = 1, .base_size = 10 * GRANULE + 512, .no_model = true };
	struct rig r;

	rig_init(&r, &cfg);
	r.c = rig_open(&r, RIG_OVER, COW_OPEN_WRITE);
	CHECK_EQ(written(r.c, 512, GRANULE), -EINVAL);
	CHECK_EQ(written(r.c, 0, GRANULE - 512), -EINVAL);
	CHECK_EQ(written(r.c, GRANULE, GRANULE + 1), -EINVAL);
	CHECK_EQ(written(r.c, 10 * GRANULE, 1024), -EINVAL);
	CHECK_EQ(written(r.c, 11 * GRANULE, GRANULE), -EINVAL);
	/* The image's end is the end of its last granule. */
	CHECK_EQ(written(r.c, 10 * GRANULE, 512), 0);
	CHECK_EQ(written(r.c, 0, 10 * GRANULE + 512), 0);
	CHECK_EQ(cow_chain_close(r.c), 0);
	r.c = rig_open(&r, RIG_OVER, 0);
	CHECK_EQ(written(r.c, 0, GRANULE), -EROFS);
	rig_free(&r);
}

static struct cow_chain *open_format(struct rig *r, const char *format, const char *path,
				     const char *option, const char *value)
{
	struct cow_args *args = cow_args_new();
	struct cow_chain_cfg cfg = {
		.format = format, .path = path, .flags = COW_OPEN_WRITE, .args = args,
		.io = &cow_io_sim_ops, .io_arg = r->sim,
	};
	struct cow_err err = { 0 };
	struct cow_chain *c;
	int rc;

	CHECK(args);
	if (option)
		CHECK_EQ(cow_args_set(args, option, value), 0);
	rc = cow_chain_open(&cfg, &c, &err);
	if (rc)
		FAIL("%s", cow_err_text(&err, rc));
	cow_args_free(args);
	return c;
}

/* A raw image has everything: there is nothing to record, and nothing to be aligned to. */
TEST(raw)
{
	struct rig_cfg cfg = { .seed = 1, .base_size = COW_KIB(64), .no_model = true };
	char in[512], out[512];
	struct cow_chain *c;
	struct rig r;

	rig_init(&r, &cfg);
	c = open_format(&r, "raw", RIG_BASE, "offset", "8192");
	CHECK(cow_chain_image(c, 0)->linear);
	CHECK_EQ(cow_chain_image(c, 0)->linear_shift, 8192);
	memset(in, 'x', sizeof(in));
	cow_sim_write_other(r.sim, RIG_BASE, in, sizeof(in), 8192 + 1024);
	CHECK_EQ(written(c, 1024, 512), 0);
	CHECK_EQ(cow_chain_pread(c, out, sizeof(out), 1024), 0);
	CHECK(!memcmp(in, out, sizeof(in)));
	CHECK_EQ(cow_chain_close(c), 0);
	rig_free(&r);
}

/* Reported twice, and before and after other changes: shown once, counted once, never undone. */
TEST(twice)
{
	struct rig_cfg cfg = { .seed = 1, .base_size = 16 * GRANULE, .no_model = true };
	static uint8_t in[2 * GRANULE], out[2 * GRANULE], zero[GRANULE];
	struct cow_chain_stats st;
	struct rig r;

	rig_init(&r, &cfg);
	r.c = rig_open(&r, RIG_OVER, COW_OPEN_WRITE);
	memset(in, 0x5a, sizeof(in));
	write_other(&r, 4 * GRANULE, in, sizeof(in));
	CHECK_EQ(cow_chain_pread(r.c, out, sizeof(out), 4 * GRANULE), 0);
	CHECK(memcmp(in, out, sizeof(in)));
	CHECK_EQ(written(r.c, 4 * GRANULE, 2 * GRANULE), 0);
	CHECK_EQ(written(r.c, 4 * GRANULE, GRANULE), 0);
	CHECK_EQ(cow_chain_pread(r.c, out, sizeof(out), 4 * GRANULE), 0);
	CHECK(!memcmp(in, out, sizeof(in)));
	cow_chain_get_stats(r.c, &st);
	CHECK_EQ(st.allocated_bytes, 2 * GRANULE);
	CHECK_EQ(st.copied_bytes, 0);
	/* An older report that comes again does not bring back what was discarded since. */
	CHECK_EQ(cow_chain_discard(r.c, 4 * GRANULE, GRANULE), 0);
	CHECK_EQ(written(r.c, 4 * GRANULE, 2 * GRANULE), 0);
	CHECK_EQ(cow_chain_pread(r.c, out, sizeof(out), 4 * GRANULE), 0);
	CHECK(!memcmp(out, zero, GRANULE) && !memcmp(out + GRANULE, in, GRANULE));
	rig_free(&r);
}

/* One flush more than nothing: the data that others wrote is synced although we wrote none. */
TEST(synced)
{
	struct rig_cfg cfg = { .seed = 1, .base_size = 16 * GRANULE, .no_model = true };
	struct cow_chain_stats before, after;
	struct rig r;

	rig_init(&r, &cfg);
	r.c = rig_open(&r, RIG_OVER, COW_OPEN_WRITE);
	CHECK_EQ(written(r.c, 0, GRANULE), 0);
	CHECK_EQ(cow_chain_flush(r.c), 0);
	cow_chain_get_stats(r.c, &before);
	/* The same again: its bit is there, its data may be new. */
	CHECK_EQ(written(r.c, 0, GRANULE), 0);
	CHECK_EQ(cow_chain_flush(r.c), 0);
	cow_chain_get_stats(r.c, &after);
	CHECK_EQ(after.data_syncs, before.data_syncs + 1);
	CHECK_EQ(after.meta_syncs, before.meta_syncs);
	CHECK_EQ(cow_chain_flush(r.c), 0);
	cow_chain_get_stats(r.c, &after);
	CHECK_EQ(after.data_syncs, before.data_syncs + 1);
	rig_free(&r);
}

/* Zeroes that need a place: what lies there is no longer what anybody wrote before. */
TEST(zeroes_with_a_place)
{
	/* Behind the base's end nothing shows through: there a zero needs no place by itself. */
	struct rig_cfg cfg = { .seed = 1, .base_size = 4 * GRANULE, .size = 64 * GRANULE + 512,
			       .no_model = true };
	static uint8_t junk[8 * GRANULE], out[8 * GRANULE], zero[8 * GRANULE];
	struct cow_extent e;
	struct rig r;

	rig_init(&r, &cfg);
	r.c = rig_open(&r, RIG_OVER, COW_OPEN_WRITE);
	memset(junk, 0xee, sizeof(junk));
	for (int op = COW_OP_ZERO; op <= COW_OP_DISCARD; op++) {
		uint64_t off = op == COW_OP_ZERO ? 8 * GRANULE : 24 * GRANULE;

		write_other(&r, off, junk, sizeof(junk));
		CHECK_EQ(rig_request(r.c, (enum cow_op)op, 0, off, sizeof(junk), NULL), 0);
		CHECK_EQ(cow_chain_layer_extent(r.c, 0, off, sizeof(junk), &e), 0);
		CHECK_EQ(e.kind, COW_HOLE);
		CHECK_EQ(written(r.c, off + GRANULE, GRANULE), 0);
		CHECK_EQ(rig_request(r.c, (enum cow_op)op, COW_REQ_PRESENT, off, sizeof(junk), NULL),
			 0);
		CHECK_EQ(cow_chain_layer_extent(r.c, 0, off, sizeof(junk), &e), 0);
		CHECK_EQ(e.kind, COW_DATA);
		CHECK_EQ(e.len, sizeof(junk));
		CHECK_EQ(cow_sim_read(r.sim, RIG_OVER, out, sizeof(out), e.phys), 0);
		CHECK(!memcmp(out, zero, sizeof(out)));
	}
	CHECK_EQ(rig_request(r.c, COW_OP_ZERO, COW_REQ_PRESENT, 60 * GRANULE, 4 * GRANULE + 512,
			     NULL), 0);
	CHECK_EQ(cow_chain_layer_extent(r.c, 0, 64 * GRANULE, 512, &e), 0);
	CHECK_EQ(e.kind, COW_DATA);
	rig_free(&r);
}

/* More blocks of metadata than the cache has: reports wait for a flush to make room. */
TEST(small_cache)
{
	const uint64_t stride = COW_MIB(124), places = 200;
	struct rig_cfg cfg = {
		.seed = test_rand(), .base_size = stride * places, .hot_len = GRANULE,
		.cache_bytes = 1, .no_model = true,
	};
	uint8_t in[GRANULE], out[GRANULE];
	struct cow_chain_stats st;
	struct rig r;

	rig_init(&r, &cfg);
	for (int async = 0; async < 2; async++) {
		r.c = rig_open(&r, RIG_OVER, COW_OPEN_WRITE);
		cow_sim_set_async(r.sim, async);
		for (uint64_t i = 0; i < places; i++) {
			memset(in, 1 + (int)(i % 250) + async, sizeof(in));
			write_other(&r, i * stride + (uint64_t)async * GRANULE, in, sizeof(in));
			CHECK_EQ(written(r.c, i * stride + (uint64_t)async * GRANULE, GRANULE), 0);
		}
		cow_chain_get_stats(r.c, &st);
		CHECK(st.meta_evictions > places / 2);
		cow_sim_set_async(r.sim, false);
		CHECK_EQ(cow_chain_close(r.c), 0);
	}
	r.c = rig_open(&r, RIG_OVER, 0);
	for (uint64_t i = 0; i < places; i++) {
		for (int async = 0; async < 2; async++) {
			CHECK_EQ(cow_chain_pread(r.c, out, GRANULE,
						 i * stride + (uint64_t)async * GRANULE), 0);
			CHECK_EQ(out[0], 1 + (int)(i % 250) + async);
			CHECK_EQ(out[GRANULE - 1], 1 + (int)(i % 250) + async);
		}
	}
	rig_free(&r);
}

/* ---- reports and flushes in flight together ---- */

#define GRANULES 512u
#define EVENTS 300u
#define IN_FLIGHT 24u

enum kind { REPORT, AGAIN, FLUSH };

struct event {
	struct cow_req req;
	enum kind kind;
	uint32_t first, n;	/* granules */
	uint64_t submitted, ended;	/* ticks */
	size_t log_end;		/* length of the log when it ended */
	bool done;
};

struct mix {
	struct rig r;
	struct event ev[EVENTS];
	uint64_t tick;
	unsigned left;
	uint32_t next;		/* granules below have been written */
	size_t stored[GRANULES];	/* log position behind the write of the granule */
	uint8_t base[GRANULES][GRANULE];
};

static struct mix mix;

static void pattern(uint64_t granule, uint8_t *buf)
{
	for (uint32_t i = 0; i < GRANULE; i += 8) {
		uint64_t v = (granule + 1) * 0x9e3779b97f4a7c15ULL + i;

		memcpy(buf + i, &v, 8);
	}
}

static void event_done(struct cow_req *req, int result)
{
	struct event *e = req->opaque;

	CHECK_EQ(result, 0);
	e->done = true;
	e->ended = ++mix.tick;
	e->log_end = cow_sim_log_len(mix.r.sim, RIG_OVER);
	mix.left--;
}

static void event_start(struct event *e)
{
	struct rig *r = &mix.r;
	uint8_t buf[GRANULE];
	uint64_t dice = rig_rand(r, 10);

	*e = (struct event){ .req = { .op = COW_OP_WRITTEN, .done = event_done, .opaque = e } };
	e->kind = dice < 3 ? FLUSH : dice < 5 && mix.next ? AGAIN : REPORT;
	if (e->kind == REPORT && mix.next == GRANULES)
		e->kind = FLUSH;
	if (e->kind == FLUSH) {
		e->req.op = COW_OP_FLUSH;
	} else if (e->kind == AGAIN) {
		e->first = (uint32_t)rig_rand(r, mix.next);
		e->n = 1;
	} else {
		e->first = mix.next;
		e->n = 1 + (uint32_t)rig_rand(r, cow_min(4, GRANULES - mix.next));
		for (uint32_t g = e->first; g < e->first + e->n; g++) {
			pattern(g, buf);
			write_other(r, (uint64_t)g * GRANULE, buf, GRANULE);
			mix.stored[g] = cow_sim_log_len(r->sim, RIG_OVER);
		}
		mix.next += e->n;
	}
	e->req.virt = (uint64_t)e->first * GRANULE;
	e->req.len = (uint64_t)e->n * GRANULE;
	e->submitted = ++mix.tick;
	mix.left++;
	cow_req_submit(r->c, &e->req);
}

static void mix_run(void)
{
	unsigned polls = 0;

	for (unsigned i = 0; i < EVENTS; i++) {
		event_start(&mix.ev[i]);
		while (mix.left > IN_FLIGHT || rig_rand(&mix.r, 3) == 0) {
			cow_chain_poll(mix.r.c, mix.left > IN_FLIGHT);
			CHECK(++polls < POLL_LIMIT);
		}
	}
	while (mix.left) {
		cow_chain_poll(mix.r.c, true);
		CHECK(++polls < POLL_LIMIT);
	}
}

/* Had a flush that covers the first report of granule @g ended when the log was @pos long? */
static bool must_be_there(uint32_t g, size_t pos)
{
	const struct event *report = NULL;

	for (unsigned i = 0; i < EVENTS; i++) {
		const struct event *e = &mix.ev[i];

		if (e->kind == REPORT && g >= e->first && g < e->first + e->n)
			report = e;
		if (report && e->kind == FLUSH && e->submitted > report->ended && e->done &&
		    e->log_end <= pos)
			return true;
	}
	return false;
}

static void judge(size_t pos, enum cow_sim_crash how, uint64_t seed)
{
	uint8_t got[GRANULE], want[GRANULE];
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };
	struct cow_chain *c;

	rig_crash(&mix.r, pos, how, seed, CRASH);
	c = rig_open(&mix.r, CRASH, 0);
	CHECK_EQ(cow_chain_check(c, &rep, 0, &err), 0);
	CHECK_EQ(rep.corruptions, 0);
	for (uint32_t g = 0; g < GRANULES; g++) {
		bool is_new, is_old;

		CHECK_EQ(cow_chain_pread(c, got, GRANULE, (uint64_t)g * GRANULE), 0);
		pattern(g, want);
		is_new = !memcmp(got, want, GRANULE);
		is_old = !memcmp(got, mix.base[g], GRANULE);
		if (!is_new && !is_old)
			FAIL("cut at %zu (mode %d, image seed %llu): granule %u is neither old nor new",
			     pos, (int)how, (unsigned long long)seed, g);
		if (is_old && must_be_there(g, pos))
			FAIL("cut at %zu (mode %d, image seed %llu): granule %u was flushed and is lost",
			     pos, (int)how, (unsigned long long)seed, g);
		if (is_new && (!mix.stored[g] || mix.stored[g] > pos))
			FAIL("cut at %zu: granule %u is there before it was written", pos, g);
	}
	CHECK_EQ(cow_chain_close(c), 0);
}

TEST(during_flushes)
{
	unsigned rounds = rig_full() ? 12 : 2, images = 0, overlaps = 0;

	for (unsigned round = 0; round < rounds; round++) {
		struct rig_cfg cfg = {
			.seed = test_rand(), .base_size = GRANULES * GRANULE, .no_model = true,
		};
		size_t end;

		memset(&mix, 0, sizeof(mix));
		rig_init(&mix.r, &cfg);
		for (uint32_t g = 0; g < GRANULES; g++)
			CHECK_EQ(cow_sim_read(mix.r.sim, RIG_BASE, mix.base[g], GRANULE,
					      (uint64_t)g * GRANULE), 0);
		mix.r.c = rig_open(&mix.r, RIG_OVER, COW_OPEN_WRITE);
		cow_sim_set_async(mix.r.sim, true);
		mix_run();
		cow_sim_set_async(mix.r.sim, false);
		for (unsigned i = 0; i < EVENTS; i++)
			for (unsigned k = 0; k < i && mix.ev[i].kind == REPORT; k++)
				overlaps += mix.ev[k].kind == FLUSH &&
					    mix.ev[k].ended > mix.ev[i].submitted;
		end = cow_sim_log_len(mix.r.sim, RIG_OVER);
		for (size_t pos = 0; pos <= end; pos++) {
			judge(pos, COW_SIM_PREFIX, 0);
			judge(pos, COW_SIM_SYNCED, 0);
			judge(pos, COW_SIM_RANDOM, rig_rand(&mix.r, UINT64_MAX));
			images += 3;
		}
		rig_free(&mix.r);
	}
	CHECK(overlaps > rounds * 20);
	printf("reports during flushes: seed %llu, %u images, %u reports met a flush, 0 failures\n",
	       (unsigned long long)test_seed(), images, overlaps);
}
