// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A running device on a simulated disk: what it refuses, what it counts, and
 * that requests wait, go on and end exactly when they should around pauses,
 * lack of space, resizes and the drain before the end.
 */
#include <errno.h>
#include <stdlib.h>

#include "cow/dev.h"
#include "io-sim.h"
#include "test.h"

#define SIZE COW_MIB(1)
#define TURNS 20000		/* of the loop before we call it a hang; not a measure of time */

static struct rig {
	struct cow_sim *sim;
	struct cow_loop *loop;
	struct cow_dev *dev;
	struct cow_source *tick;
	bool (*until)(void);
	unsigned turns;
} r;

struct io {
	struct cow_req req;
	bool done;
	int result;
	uint8_t buf[4096];
};

static struct io io[64];
static unsigned quiet;		/* calls of on_quiet */

static void on_done(struct cow_req *req, int result)
{
	struct io *i = cow_container_of(req, struct io, req);

	CHECK(!i->done);
	CHECK(req->opaque == i);
	i->done = true;
	i->result = result;
}

static void submit(struct io *i, enum cow_op op, uint64_t virt, uint64_t len)
{
	memset(i, 0, sizeof(*i));
	i->req = (struct cow_req){ .op = op, .virt = virt, .len = len, .buf = i->buf,
				   .done = on_done, .opaque = i };
	cow_dev_submit(r.dev, &i->req);
}

static void on_quiet(void *opaque)
{
	struct cow_dev_stats st;

	CHECK(opaque == &r);
	cow_dev_get_stats(r.dev, &st);
	CHECK_EQ(st.inflight, 0);
	quiet++;
}

/* The simulated disk has no fd: its completions are fetched here. */
static void on_tick(void *opaque, uint32_t events)
{
	(void)opaque;
	(void)events;
	cow_chain_poll(cow_dev_chain(r.dev), false);
	if (r.until() || ++r.turns == TURNS)
		cow_loop_stop(r.loop, 0);
}

static void run_until(bool (*until)(void))
{
	r.until = until;
	r.turns = 0;
	r.tick = cow_loop_timer(r.loop, 1, true, on_tick, NULL);
	CHECK(r.tick);
	cow_loop_run(r.loop);
	cow_source_free(r.tick);
	CHECK(until());
}

static unsigned turns_left;

static bool some_turns(void)
{
	return turns_left == 0 || --turns_left == 0;
}

/* For "nothing happens": gives what must not happen the chance to. */
static void run_a_while(void)
{
	turns_left = 20;
	run_until(some_turns);
}

static bool first_done(void)
{
	return io[0].done;
}

static bool both_done(void)
{
	return io[0].done && io[1].done;
}

static bool is_quiet(void)
{
	return quiet > 0;
}

static void start(enum cow_enospc enospc, uint32_t flags)
{
	struct cow_chain_cfg cfg = { .format = "raw", .path = "disk", .flags = flags,
				     .io = &cow_io_sim_ops };
	struct cow_dev_cfg dev = { .name = "unit", .enospc = enospc };
	struct cow_err err = { 0 };
	struct cow_chain *c;

	quiet = 0;
	r.sim = cow_sim_new(test_seed());
	r.loop = cow_loop_new();
	CHECK(r.sim && r.loop);
	CHECK_EQ(cow_sim_add(r.sim, "disk", SIZE, false), 0);
	cfg.io_arg = r.sim;
	if (cow_chain_open(&cfg, &c, &err))
		FAIL("%s", err.msg);
	CHECK_EQ(cow_dev_new(r.loop, c, &dev, &r.dev), 0);
}

static void end(void)
{
	if (!quiet) {		/* a test may have drained it */
		cow_dev_drain(r.dev, on_quiet, &r);
		run_until(is_quiet);
	}
	CHECK_EQ(cow_dev_free(r.dev), 0);
	cow_loop_free(r.loop);
	cow_sim_free(r.sim);
}

static void fail_writes(int error)
{
	struct cow_sim_fault f = { .nth = error ? 1 : 0, .error = error, .persistent = true,
				   .ops = 1u << COW_IO_WRITE };

	cow_sim_set_fault(r.sim, &f);
}

static const char *state(void)
{
	if (cow_dev_nospace(r.dev))
		return "no-space";
	return cow_dev_paused(r.dev) ? "paused" : "running";
}

TEST(bounds)
{
	static const struct {
		uint64_t virt, len;
	} bad[] = {
		{ 0, 0 }, { SIZE, 0 }, { SIZE, 1 }, { SIZE - 1, 2 }, { 0, SIZE + 1 },
		{ UINT64_MAX, 1 }, { UINT64_MAX - 1, UINT64_MAX }, { 4096, UINT64_MAX - 4095 },
	};
	enum cow_op op;
	unsigned i;

	start(COW_ENOSPC_REPORT, COW_OPEN_WRITE);
	for (op = COW_OP_READ; op < COW_OP_FLUSH; op++) {
		for (i = 0; i < COW_ARRAY_SIZE(bad); i++) {
			submit(&io[0], op, bad[i].virt, bad[i].len);
			CHECK(io[0].done);
			CHECK_EQ(io[0].result, -EINVAL);
		}
	}
	submit(&io[0], COW_OPS, 0, 512);
	CHECK_EQ(io[0].result, -EINVAL);
	submit(&io[0], COW_OP_READ, SIZE - 512, 512);
	run_until(first_done);
	CHECK_EQ(io[0].result, 0);
	CHECK_EQ(cow_dev_changes(r.dev), 0);
	end();
}

TEST(read_only)
{
	start(COW_ENOSPC_REPORT, 0);
	CHECK(cow_dev_readonly(r.dev));
	submit(&io[0], COW_OP_WRITE, 0, 512);
	CHECK_EQ(io[0].result, -EROFS);
	submit(&io[0], COW_OP_DISCARD, 0, 512);
	CHECK_EQ(io[0].result, -EROFS);
	submit(&io[0], COW_OP_READ, 0, 512);
	run_until(first_done);
	CHECK_EQ(io[0].result, 0);
	end();
}

TEST(counters)
{
	struct cow_dev_stats st;
	uint64_t sum = 0;
	unsigned i;

	start(COW_ENOSPC_REPORT, COW_OPEN_WRITE);
	for (i = 0; i < 3; i++) {
		submit(&io[0], COW_OP_WRITE, i * 4096, 4096);
		run_until(first_done);
	}
	fail_writes(-EIO);
	submit(&io[0], COW_OP_WRITE, 0, 512);
	run_until(first_done);
	CHECK_EQ(io[0].result, -EIO);
	fail_writes(0);
	submit(&io[0], COW_OP_FLUSH, 0, 0);
	run_until(first_done);
	cow_dev_get_stats(r.dev, &st);
	CHECK_EQ(st.op[COW_OP_WRITE].ops, 4);
	CHECK_EQ(st.op[COW_OP_WRITE].bytes, 3 * 4096);
	CHECK_EQ(st.op[COW_OP_WRITE].errors, 1);
	CHECK_EQ(st.op[COW_OP_READ].ops, 0);
	CHECK_EQ(st.op[COW_OP_FLUSH].ops, 1);
	CHECK_EQ(st.op[COW_OP_FLUSH].bytes, 0);
	for (i = 0; i < COW_LAT_BUCKETS; i++)
		sum += st.op[COW_OP_WRITE].lat[i];
	CHECK_EQ(sum, 4);
	CHECK(st.op[COW_OP_WRITE].total_ns > 0);
	CHECK_EQ(cow_dev_changes(r.dev), 3);
	end();
}

/* One request: the bucket must be the one its time belongs to. */
TEST(latency_bucket)
{
	struct cow_dev_stats st;
	uint64_t us;
	unsigned i;

	start(COW_ENOSPC_REPORT, COW_OPEN_WRITE);
	cow_dev_pause(r.dev, on_quiet, &r);
	submit(&io[0], COW_OP_READ, 0, 4096);
	run_a_while();			/* 20 turns of a millisecond at least */
	cow_dev_resume(r.dev);
	run_until(first_done);
	cow_dev_get_stats(r.dev, &st);
	us = cow_div_up(st.op[COW_OP_READ].total_ns, 1000);
	CHECK(us >= 10000);
	for (i = 0; i < COW_LAT_BUCKETS && !st.op[COW_OP_READ].lat[i]; i++)
		;
	CHECK(i > 0 && i < COW_LAT_BUCKETS - 1);
	CHECK(us <= 1ull << i);
	CHECK(us > 1ull << (i - 1));
	quiet = 0;
	end();
}

TEST(pauses_nest)
{
	struct cow_dev_stats st;

	start(COW_ENOSPC_REPORT, COW_OPEN_WRITE);
	cow_dev_pause(r.dev, on_quiet, &r);
	CHECK_EQ(quiet, 0);		/* never before it returns */
	cow_dev_pause(r.dev, on_quiet, &r);
	submit(&io[0], COW_OP_WRITE, 0, 4096);
	submit(&io[1], COW_OP_READ, 0, 4096);
	run_a_while();
	CHECK_EQ(quiet, 2);
	CHECK(!io[0].done && !io[1].done);
	CHECK_STR(state(), "paused");
	cow_dev_get_stats(r.dev, &st);
	CHECK_EQ(st.parked, 2);
	cow_dev_resume(r.dev);
	run_a_while();
	CHECK(!io[0].done);
	cow_dev_resume(r.dev);
	run_until(both_done);
	CHECK_EQ(io[0].result, 0);
	CHECK_EQ(io[1].result, 0);
	CHECK_STR(state(), "running");
	quiet = 0;
	end();
}

TEST(pause_waits_for_what_is_under_way)
{
	unsigned i, done = 0;

	start(COW_ENOSPC_REPORT, COW_OPEN_WRITE);
	cow_sim_set_async(r.sim, true);
	for (i = 0; i < 32; i++)
		submit(&io[i], COW_OP_WRITE, i * 4096, 4096);
	for (i = 0; i < 32; i++)
		done += io[i].done;
	CHECK(done < 32);
	cow_dev_pause(r.dev, on_quiet, &r);
	submit(&io[32], COW_OP_READ, 0, 4096);
	run_until(is_quiet);
	for (i = 0; i < 32; i++)
		CHECK(io[i].done && io[i].result == 0);
	CHECK(!io[32].done);
	cow_dev_resume(r.dev);
	quiet = 0;
	end();
	CHECK(io[32].done && io[32].result == 0);
}

/* Something starts between the moment of quiet and its announcement. */
TEST(quiet_is_looked_at_twice)
{
	start(COW_ENOSPC_REPORT, COW_OPEN_WRITE);
	submit(&io[0], COW_OP_WRITE, 0, 4096);
	run_until(first_done);
	cow_sim_set_async(r.sim, true);
	cow_dev_pause(r.dev, on_quiet, &r);
	memset(&io[0], 0, sizeof(io[0]));
	io[0].req = (struct cow_req){ .op = COW_OP_FLUSH, .flags = COW_DEV_THROUGH, .done = on_done,
				      .opaque = &io[0] };
	cow_dev_submit(r.dev, &io[0].req);
	CHECK(!io[0].done);
	run_until(is_quiet);		/* on_quiet() checks that it is */
	CHECK(io[0].done);
	cow_dev_resume(r.dev);
	quiet = 0;
	end();
}

TEST(flush_through_a_pause)
{
	start(COW_ENOSPC_REPORT, COW_OPEN_WRITE);
	cow_dev_pause(r.dev, on_quiet, &r);
	memset(&io[0], 0, sizeof(io[0]));
	io[0].req = (struct cow_req){ .op = COW_OP_FLUSH, .flags = COW_DEV_THROUGH, .done = on_done,
				      .opaque = &io[0] };
	cow_dev_submit(r.dev, &io[0].req);
	run_until(first_done);
	CHECK_EQ(io[0].result, 0);
	submit(&io[1], COW_OP_FLUSH, 0, 0);
	run_a_while();
	CHECK(!io[1].done);
	cow_dev_resume(r.dev);
	run_until(both_done);
	quiet = 0;
	end();
}

TEST(no_space_reported)
{
	start(COW_ENOSPC_REPORT, COW_OPEN_WRITE);
	fail_writes(-ENOSPC);
	submit(&io[0], COW_OP_WRITE, 0, 4096);
	run_until(first_done);
	CHECK_EQ(io[0].result, -ENOSPC);
	CHECK_STR(state(), "running");
	fail_writes(0);
	end();
}

TEST(no_space_pauses)
{
	start(COW_ENOSPC_PAUSE, COW_OPEN_WRITE);
	fail_writes(-ENOSPC);
	submit(&io[0], COW_OP_WRITE, 0, 4096);
	run_a_while();
	CHECK(!io[0].done);
	CHECK_STR(state(), "no-space");
	submit(&io[1], COW_OP_READ, 0, 4096);
	cow_dev_retry(r.dev);		/* still none */
	run_a_while();
	CHECK(!io[0].done && !io[1].done);
	CHECK_STR(state(), "no-space");
	fail_writes(0);
	cow_dev_retry(r.dev);
	run_until(both_done);
	CHECK_EQ(io[0].result, 0);
	CHECK_EQ(io[1].result, 0);
	CHECK_STR(state(), "running");
	/* Another error is reported in any case. */
	fail_writes(-EIO);
	submit(&io[0], COW_OP_WRITE, 0, 4096);
	run_until(first_done);
	CHECK_EQ(io[0].result, -EIO);
	fail_writes(0);
	end();
}

TEST(drain_lets_everything_end)
{
	start(COW_ENOSPC_PAUSE, COW_OPEN_WRITE);
	fail_writes(-ENOSPC);
	submit(&io[0], COW_OP_WRITE, 0, 4096);
	run_a_while();
	cow_dev_pause(r.dev, on_quiet, &r);
	submit(&io[1], COW_OP_READ, 0, 4096);
	run_until(is_quiet);
	CHECK(!io[0].done && !io[1].done);
	quiet = 0;
	cow_dev_drain(r.dev, on_quiet, &r);
	submit(&io[2], COW_OP_READ, 0, 4096);
	CHECK(io[2].done);
	CHECK_EQ(io[2].result, -ESHUTDOWN);
	run_until(is_quiet);
	CHECK(both_done());
	CHECK_EQ(io[0].result, -ENOSPC);
	CHECK_EQ(io[1].result, 0);
	fail_writes(0);
	end();
}

/* ---- resize ---- */

static struct {
	unsigned told, done;
	uint64_t size;
	int result;
	char sentence[COW_ERR_MAX];
} rs;

static void on_told(struct cow_dev_watch *w, uint64_t size)
{
	(void)w;
	rs.told++;
	rs.size = size;
}

static void on_resized(void *opaque, int result, const char *sentence)
{
	(void)opaque;
	rs.done++;
	rs.result = result;
	snprintf(rs.sentence, sizeof(rs.sentence), "%s", sentence ? sentence : "");
}

static bool resized(void)
{
	return rs.done > 0;
}

static void resize(uint64_t size, bool shrink)
{
	memset(&rs, 0, sizeof(rs));
	cow_dev_resize(r.dev, size, shrink, on_resized, NULL);
}

TEST(resize_tells_everybody)
{
	struct cow_dev_watch w = { .resized = on_told };

	start(COW_ENOSPC_REPORT, COW_OPEN_WRITE);
	cow_dev_watch(r.dev, &w);
	resize(2 * SIZE, false);
	submit(&io[0], COW_OP_READ, 0, 4096);	/* waits */
	CHECK(!io[0].done);
	cow_dev_resize(r.dev, 3 * SIZE, false, on_resized, NULL);
	CHECK_EQ(rs.result, -EBUSY);
	CHECK_EQ(rs.done, 1);
	run_until(first_done);
	CHECK_EQ(rs.done, 2);
	CHECK_EQ(rs.result, 0);
	CHECK_EQ(rs.told, 1);
	CHECK_EQ(rs.size, 2 * SIZE);
	CHECK_EQ(cow_dev_size(r.dev), 2 * SIZE);
	CHECK_EQ(cow_dev_changes(r.dev), 1);
	submit(&io[0], COW_OP_WRITE, 2 * SIZE - 4096, 4096);
	run_until(first_done);
	CHECK_EQ(io[0].result, 0);

	resize(SIZE, false);		/* smaller only when asked for */
	run_until(resized);
	CHECK(rs.result < 0);
	CHECK(rs.sentence[0]);
	CHECK_EQ(rs.told, 0);
	CHECK_EQ(cow_dev_size(r.dev), 2 * SIZE);

	cow_dev_unwatch(&w);
	end();
}

TEST(shrink_under_a_waiting_request)
{
	start(COW_ENOSPC_REPORT, COW_OPEN_WRITE);
	resize(SIZE / 2, true);
	submit(&io[0], COW_OP_READ, SIZE - 4096, 4096);
	submit(&io[1], COW_OP_READ, 0, 4096);
	run_until(both_done);
	CHECK_EQ(rs.result, 0);
	CHECK_EQ(io[0].result, -EINVAL);
	CHECK_EQ(io[1].result, 0);
	end();
}

TEST(resize_refused)
{
	start(COW_ENOSPC_REPORT, 0);
	resize(2 * SIZE, false);
	CHECK_EQ(rs.done, 1);
	CHECK_EQ(rs.result, -EROFS);
	CHECK_EQ(cow_dev_size(r.dev), SIZE);
	end();
}

/* ---- OpenMetrics ---- */

TEST(openmetrics)
{
	char *text = NULL;
	size_t len = 0;
	FILE *f;

	start(COW_ENOSPC_REPORT, COW_OPEN_WRITE);
	submit(&io[0], COW_OP_WRITE, 0, 4096);
	run_until(first_done);
	f = open_memstream(&text, &len);
	CHECK(f);
	cow_dev_stats_openmetrics(r.dev, f);
	CHECK_EQ(fclose(f), 0);
	CHECK(strstr(text, "\ncowd_ops_total{device=\"unit\",op=\"write\"} 1\n"));
	CHECK(strstr(text, "\ncowd_bytes_total{device=\"unit\",op=\"write\"} 4096\n"));
	CHECK(strstr(text, "op=\"write\",le=\"+Inf\"} 1\n"));
	CHECK(strstr(text, "\ncowd_size_bytes{device=\"unit\"} 1048576\n"));
	CHECK(len > 6 && !strcmp(text + len - 6, "# EOF\n"));
	free(text);
	end();
}
