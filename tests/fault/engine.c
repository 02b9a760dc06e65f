// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Many requests in flight at once, overlapping, completed by the simulator in
 * random order and in pieces. Two promises are held against a model of bytes:
 * what a granule holds afterwards is what its changes give one after the other
 * in some order (that respects which ended before which began), never a
 * mixture; and a read returns, for each byte, a value that it had at some
 * moment of the read.
 *
 * Disks are a few small places far apart, so that a large disk with a small
 * metadata cache costs no memory here.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cow/log.h"
#include "meta.h"
#include "rig.h"
#include "test.h"

#define PLACE (64u << 10)
#define PLACES_MAX 256u
#define BATCH 32u
#define PER_GRANULE 5u		/* changes of one granule in a batch: 120 orders to try */
#define GRANULE 4096u
#define POLL_LIMIT 1000000u

struct job {
	struct cow_req req;
	unsigned place;
	uint64_t lo, hi;		/* bytes of the place that it changes or reads */
	uint8_t *data;
	uint64_t submitted, ended;	/* ticks */
	bool done;
	int result;
};

struct bed {
	struct rig_cfg cfg;
	struct rig r;			/* its rng and helpers; the machine is made here */
	unsigned places;
	uint64_t stride;
	uint8_t *bytes[PLACES_MAX];	/* what each place holds between batches */
	struct job jobs[BATCH];
	unsigned njobs, left;
	uint64_t tick;
};

static struct bed *the_bed;

static uint64_t place_off(const struct bed *b, unsigned place)
{
	return place * b->stride;
}

static void bed_init(struct bed *b, uint64_t seed, unsigned places, uint64_t stride)
{
	memset(b, 0, sizeof(*b));
	b->places = places;
	b->stride = stride;
	b->cfg = (struct rig_cfg){
		.seed = seed, .base_size = (places - 1) * stride + PLACE, .block = 16384,
		.granule = GRANULE, .hot_len = PLACE, .cache_bytes = 1, .no_model = true,
	};
	for (unsigned i = 0; i < RIG_HOT; i++)
		b->cfg.hot[i] = place_off(b, cow_min(i, places - 1));
	rig_init(&b->r, &b->cfg);
	for (unsigned i = 0; i < places; i++) {
		b->bytes[i] = malloc(PLACE);
		CHECK(b->bytes[i]);
		CHECK_EQ(cow_sim_read(b->r.sim, RIG_BASE, b->bytes[i], PLACE, place_off(b, i)), 0);
	}
	the_bed = b;
}

static void bed_free(struct bed *b)
{
	for (unsigned i = 0; i < b->places; i++)
		free(b->bytes[i]);
	rig_free(&b->r);
}

static void job_done(struct cow_req *req, int result)
{
	struct job *j = req->opaque;

	CHECK(!j->done);
	j->done = true;
	j->result = result;
	j->ended = ++the_bed->tick;
	the_bed->left--;
}

static bool changes(const struct job *j)
{
	return j->req.op == COW_OP_WRITE || j->req.op == COW_OP_ZERO || j->req.op == COW_OP_DISCARD;
}

static unsigned changes_of(const struct bed *b, unsigned place, uint64_t granule)
{
	unsigned n = 0;

	for (unsigned i = 0; i < b->njobs; i++) {
		const struct job *j = &b->jobs[i];

		n += changes(j) && j->place == place && j->lo < (granule + 1) * GRANULE &&
		     j->hi > granule * GRANULE;
	}
	return n;
}

static bool too_crowded(const struct bed *b, const struct job *j)
{
	for (uint64_t g = j->lo / GRANULE; g * GRANULE < j->hi; g++)
		if (changes_of(b, j->place, g) >= PER_GRANULE)
			return true;
	return false;
}

static void pick_job(struct bed *b, struct job *j, unsigned place)
{
	static const enum cow_op ops[] = {
		COW_OP_WRITE, COW_OP_WRITE, COW_OP_WRITE, COW_OP_WRITE, COW_OP_READ, COW_OP_READ,
		COW_OP_ZERO, COW_OP_DISCARD,
	};
	struct rig *r = &b->r;
	uint64_t len = 1 + rig_rand(r, rig_rand(r, 2) ? 3 * GRANULE : 600);

	*j = (struct job){ .place = place };
	j->req.op = rig_rand(r, 24) ? ops[rig_rand(r, COW_ARRAY_SIZE(ops))] : COW_OP_FLUSH;
	j->req.done = job_done;
	j->req.opaque = j;
	if (j->req.op == COW_OP_FLUSH)
		return;
	if (changes(j) && rig_rand(r, 16) == 0)
		j->req.flags = COW_REQ_FUA;
	j->lo = rig_rand(r, PLACE - len);
	if (rig_rand(r, 2)) {
		j->lo -= j->lo % GRANULE;
		len = cow_min(cow_round_up(len, GRANULE), PLACE - j->lo);
	}
	j->hi = j->lo + len;
	j->req.virt = place_off(b, place) + j->lo;
	j->req.len = len;
	if (j->req.op == COW_OP_DISCARD) {
		/* the ragged edges keep their contents; the disk ends aligned */
		j->lo = cow_round_up(j->lo, GRANULE);
		j->hi = cow_max(j->lo, cow_round_down(j->hi, GRANULE));
	}
}

static void batch_make(struct bed *b)
{
	unsigned first = (unsigned)rig_rand(&b->r, b->places);

	b->njobs = 0;
	while (b->njobs < BATCH) {
		struct job *j = &b->jobs[b->njobs];

		pick_job(b, j, (first + (unsigned)rig_rand(&b->r, 4)) % b->places);
		if (changes(j) && too_crowded(b, j))
			continue;
		if (j->req.op == COW_OP_WRITE || j->req.op == COW_OP_READ) {
			j->data = malloc(j->req.len);
			CHECK(j->data);
			for (uint64_t i = 0; i < j->req.len; i++)
				j->data[i] = (uint8_t)rig_rand(&b->r, 256);
			j->req.buf = j->data;
		}
		b->njobs++;
	}
}

static void batch_run(struct bed *b)
{
	unsigned polls = 0;

	b->left = b->njobs;
	for (unsigned i = 0; i < b->njobs; i++) {
		b->jobs[i].submitted = ++b->tick;
		cow_req_submit(b->r.c, &b->jobs[i].req);
		while (rig_rand(&b->r, 3) == 0)
			cow_chain_poll(b->r.c, false);
	}
	while (b->left) {
		cow_chain_poll(b->r.c, true);
		if (++polls > POLL_LIMIT)
			FAIL("%u requests hang", b->left);
	}
	CHECK_EQ(cow_chain_inflight(b->r.c), 0);
}

static void batch_free(struct bed *b)
{
	for (unsigned i = 0; i < b->njobs; i++) {
		free(b->jobs[i].data);
		b->jobs[i].data = NULL;
	}
}

/* ---- what a granule may hold ---- */

static void apply(const struct job *j, uint64_t base, uint8_t *granule)
{
	uint64_t lo = cow_max(j->lo, base), hi = cow_min(j->hi, base + GRANULE);

	if (lo >= hi)
		return;
	if (j->req.op == COW_OP_WRITE)
		memcpy(granule + (lo - base), j->data + (lo - j->lo), hi - lo);
	else
		memset(granule + (lo - base), 0, hi - lo);
}

/* Does some order of @n jobs turn @old into @got? Tried without recursion, by Heap's algorithm. */
static bool order_exists(struct job **jobs, unsigned n, uint64_t base, const uint8_t *old,
			 const uint8_t *got)
{
	unsigned c[PER_GRANULE] = { 0 }, i = 0;

	for (;;) {
		uint8_t buf[GRANULE];
		bool legal = true;

		memcpy(buf, old, GRANULE);
		for (unsigned k = 0; k < n; k++) {
			for (unsigned l = k + 1; l < n; l++)
				legal &= jobs[l]->ended > jobs[k]->submitted;
			apply(jobs[k], base, buf);
		}
		if (legal && !memcmp(buf, got, GRANULE))
			return true;
		while (i < n && c[i] >= i)
			c[i++] = 0;
		if (i >= n)
			return false;
		struct job **a = &jobs[i % 2 ? c[i] : 0], *tmp = *a;

		*a = jobs[i];
		jobs[i] = tmp;
		c[i]++;
		i = 0;
	}
}

static void judge_granule(struct bed *b, unsigned place, uint64_t g, const uint8_t *got)
{
	struct job *jobs[PER_GRANULE];
	uint64_t base = g * GRANULE;
	unsigned n = 0;

	for (unsigned i = 0; i < b->njobs; i++) {
		struct job *j = &b->jobs[i];

		if (changes(j) && j->place == place && j->lo < base + GRANULE && j->hi > base)
			jobs[n++] = j;
	}
	if (!order_exists(jobs, n, base, b->bytes[place] + base, got))
		FAIL("place %u granule %llu: no order of its %u changes gives its contents", place,
		     (unsigned long long)g, n);
}

/* Could the byte at @at have been @value at some moment of @read? */
static bool byte_ok(const struct bed *b, const struct job *read, uint64_t at, uint8_t value)
{
	bool old = true;

	for (unsigned i = 0; i < b->njobs; i++) {
		const struct job *w = &b->jobs[i];
		bool hidden = false;

		if (!changes(w) || w->place != read->place || at < w->lo || at >= w->hi)
			continue;
		if (w->ended < read->submitted)
			old = false;
		if (w->submitted > read->ended ||
		    (w->req.op == COW_OP_WRITE ? w->data[at - w->lo] : 0) != value)
			continue;
		/* ... unless another change hid it before the read began. */
		for (unsigned k = 0; k < b->njobs; k++) {
			const struct job *v = &b->jobs[k];

			hidden |= changes(v) && v->place == w->place && at >= v->lo && at < v->hi &&
				  v->ended < read->submitted && w->ended < v->submitted;
		}
		if (!hidden)
			return true;
	}
	return old && b->bytes[read->place][at] == value;
}

static void judge_read(const struct bed *b, const struct job *j)
{
	for (uint64_t i = 0; i < j->req.len; i++)
		if (!byte_ok(b, j, j->lo + i, j->data[i]))
			FAIL("place %u: a read of %llu at %llu returned what byte %llu never held",
			     j->place, (unsigned long long)j->req.len, (unsigned long long)j->lo,
			     (unsigned long long)(j->lo + i));
}

static void batch_judge(struct bed *b)
{
	for (unsigned i = 0; i < b->njobs; i++) {
		CHECK_EQ(b->jobs[i].result, 0);
		if (b->jobs[i].req.op == COW_OP_READ)
			judge_read(b, &b->jobs[i]);
	}
	for (unsigned p = 0; p < b->places; p++) {
		uint8_t got[PLACE];
		bool touched = false;

		for (unsigned i = 0; i < b->njobs; i++)
			touched |= changes(&b->jobs[i]) && b->jobs[i].place == p;
		if (!touched)
			continue;
		CHECK_EQ(rig_request(b->r.c, COW_OP_READ, 0, place_off(b, p), PLACE, got), 0);
		for (uint64_t g = 0; g < PLACE / GRANULE; g++)
			judge_granule(b, p, g, got + g * GRANULE);
		memcpy(b->bytes[p], got, PLACE);
	}
}

/* Reopened, every place still holds what it held. */
static void bed_reopen(struct bed *b)
{
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };

	CHECK_EQ(cow_chain_close(b->r.c), 0);
	b->r.c = rig_open(&b->r, RIG_OVER, COW_OPEN_WRITE);
	CHECK_EQ(cow_chain_check(b->r.c, &rep, 0, &err), 0);
	CHECK_EQ(rep.corruptions, 0);
	for (unsigned p = 0; p < b->places; p++) {
		uint8_t got[PLACE];

		CHECK_EQ(rig_request(b->r.c, COW_OP_READ, 0, place_off(b, p), PLACE, got), 0);
		CHECK(!memcmp(got, b->bytes[p], PLACE));
	}
}

static void run(const char *what, unsigned places, uint64_t stride, unsigned batches)
{
	struct cow_chain_stats st;
	uint64_t seed = test_rand();
	struct bed b;

	bed_init(&b, seed, places, stride);
	cow_sim_set_async(b.r.sim, true);
	b.r.c = rig_open(&b.r, RIG_OVER, COW_OPEN_WRITE);
	for (unsigned i = 0; i < batches; i++) {
		batch_make(&b);
		batch_run(&b);
		batch_judge(&b);
		batch_free(&b);
		if (i % 64 == 63)
			bed_reopen(&b);
	}
	bed_reopen(&b);
	cow_chain_get_stats(b.r.c, &st);
	printf("%s: seed %llu, %u batches of %u requests; %llu evictions in the last life\n", what,
	       (unsigned long long)seed, batches, BATCH, (unsigned long long)st.meta_evictions);
	CHECK_EQ(cow_chain_close(b.r.c), 0);
	b.r.c = NULL;
	bed_free(&b);
}

TEST(overlapping_requests)
{
	run("one cache block", 4, 2 * PLACE, rig_full() ? 4000 : 400);
}

TEST(first_lookup_always_misses)
{
	cow_meta_test_miss = true;
	run("first lookup always misses", 4, COW_MIB(130), rig_full() ? 2000 : 200);
	cow_meta_test_miss = false;
}

/* 200 cache blocks of map for a cache of 64. */
TEST(small_cache)
{
	run("small cache", 200, COW_MIB(124), rig_full() ? 2000 : 300);
}

/* Whatever fails while many are in flight: everybody gets an answer, the image stays whole. */
TEST(failing_disk)
{
	unsigned runs = rig_full() ? 2000 : 200, errors = 0;

	cow_log_set_level(COW_LOG_ERR - 1);
	for (unsigned n = 0; n < runs; n++) {
		struct cow_sim_fault f = {
			.nth = 1 + test_rand_below(200), .persistent = test_rand_below(2),
			.error = test_rand_below(2) ? -EIO : -ENOSPC,
		};
		struct cow_report rep = { 0 };
		struct cow_err err = { 0 };
		struct bed b;

		bed_init(&b, test_rand(), 4, COW_MIB(130));
		cow_sim_set_async(b.r.sim, true);
		b.r.c = rig_open(&b.r, RIG_OVER, COW_OPEN_WRITE);
		cow_sim_set_fault(b.r.sim, &f);
		for (unsigned i = 0; i < 4; i++) {
			batch_make(&b);
			batch_run(&b);
			for (unsigned k = 0; k < b.njobs; k++)
				errors += b.jobs[k].result != 0;
			batch_free(&b);
		}
		cow_chain_close(b.r.c);
		cow_sim_set_fault(b.r.sim, NULL);
		CHECK_EQ(cow_sim_open_files(b.r.sim), 0);
		b.r.c = rig_open(&b.r, RIG_OVER, COW_OPEN_WRITE);
		CHECK_EQ(cow_chain_check(b.r.c, &rep, 0, &err), 0);
		CHECK_EQ(rep.corruptions, 0);
		CHECK_EQ(cow_chain_close(b.r.c), 0);
		b.r.c = NULL;
		bed_free(&b);
	}
	CHECK(errors > runs);
	printf("failing disk: %u runs, %u requests failed, all answered\n", runs, errors);
}
