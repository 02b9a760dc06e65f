// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A Xen ring (cowd/xen-ring.h) with the guest played here: its pages, what it granted of
 * them, and what it writes where it should not. Each hostile request gets the answer that
 * the protocol has for it, and nothing else happens: disk, pages, other requests, memory.
 */
#include "cowd/xen-ring.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "cow/log.h"
#include "io-sim.h"
#include "test.h"

#define DISK "disk.raw"
#define SECTORS 16384u		/* 8 MiB */
#define POOL COW_MIB(2)
#define GRANTS 2048u
#define FOREIGN 7000u		/* a reference of another domain */
#define TURNS 100000u

struct grant {
	uint8_t page[XEN_PAGE] __attribute__((aligned(8)));
	bool valid, writable;
};

static struct {
	struct cow_sim *sim;
	struct cow_loop *loop;
	struct cow_dev *dev;
	struct xen_pool *pool;
	struct xen_ring *ring;
	struct xen_kept *kept;
	uint8_t *shared;
	unsigned pages;
	enum xen_abi abi;
	uint32_t prod, cons;		/* the guest's indexes */
	unsigned notified, copies;
	unsigned fail_copy;		/* that one fails; 0: none */
	void (*on_copy)(void);
	unsigned logged;
	struct grant *grants;
	uint8_t *model;			/* of the disk */
} g;

/* ---- the hypervisor ---- */

static bool copy_one(struct xen_copy *c)
{
	struct grant *gr = c->ref < GRANTS ? &g.grants[c->ref] : NULL;

	g.copies++;
	CHECK(c->len > 0 && c->offset + c->len <= (int)XEN_PAGE);
	if (!gr || !gr->valid || (c->to_guest && !gr->writable) || g.copies == g.fail_copy)
		return false;
	if (c->to_guest)
		memcpy(gr->page + c->offset, c->ours, c->len);
	else
		memcpy(c->ours, gr->page + c->offset, c->len);
	return true;
}

static void copy(void *opaque, struct xen_copy *c, unsigned n)
{
	(void)opaque;
	CHECK(n > 0);
	if (g.on_copy)
		g.on_copy();
	for (unsigned i = 0; i < n; i++)
		c[i].ok = copy_one(&c[i]);
}

static void notify(void *opaque)
{
	(void)opaque;
	g.notified++;
}

static const struct xen_ring_ops ops = { .copy = copy, .notify = notify };

static bool count_log(enum cow_log_level level, const char *message)
{
	g.logged += level <= COW_LOG_WARN && strstr(message, "no more answers");
	return true;
}

/* ---- the guest ---- */

static uint32_t get(unsigned offset)
{
	return *(volatile uint32_t *)(g.shared + offset);
}

static void set(unsigned offset, uint32_t v)
{
	*(volatile uint32_t *)(g.shared + offset) = v;
}

static unsigned entries(void)
{
	return xen_ring_entries(g.abi, g.pages);
}

static uint8_t *entry(uint32_t index)
{
	return g.shared + XEN_RING_ENTRIES + (index & (entries() - 1)) * xen_layouts[g.abi].entry;
}

struct what {
	uint8_t op, n;			/* operation; segments, flag, or operation behind an indirect one */
	uint16_t indirect_n;
	uint16_t handle;
	uint64_t id, sector, count;	/* count: of a discard */
	uint32_t ref;			/* of the page of an indirect one */
	struct xen_seg seg[XEN_SEGS];
};

/* Puts it into the ring, not yet pushed. */
static void put(const struct what *w)
{
	const struct xen_layout *l = &xen_layouts[g.abi];
	uint8_t raw[XEN_ENTRY_MAX] = { 0 };

	raw[0] = w->op;
	raw[1] = w->n;
	memcpy(raw + 2, w->op == XEN_OP_INDIRECT ? &w->indirect_n : &w->handle, 2);
	memcpy(raw + l->id, &w->id, 8);
	memcpy(raw + l->sector, &w->sector, 8);
	if (w->op == XEN_OP_DISCARD)
		memcpy(raw + l->discard_count, &w->count, 8);
	else if (w->op == XEN_OP_INDIRECT)
		memcpy(raw + l->indirect_refs, &w->ref, 4);
	else
		memcpy(raw + l->segs, w->seg, sizeof(w->seg));
	memcpy(entry(g.prod++), raw, l->entry);
}

static void push(void)
{
	atomic_thread_fence(memory_order_release);
	set(XEN_RING_REQ_PROD, g.prod);
}

struct reply {
	uint64_t id;
	uint8_t op;
	int16_t status;
};

/* The next answer; it must be whole, with zeroes where nothing is said. */
static struct reply take_reply(void)
{
	const uint8_t *e = entry(g.cons++);
	struct reply r;

	memcpy(&r.id, e, 8);
	r.op = e[8];
	CHECK_EQ(e[9], 0);
	memcpy(&r.status, e + 10, 2);
	for (unsigned i = 12; i < xen_layouts[g.abi].response; i++)
		CHECK_EQ(e[i], 0);
	return r;
}

/* Runs the ring until it waits and the device has nothing in hand. */
static enum xen_ring_todo run(void)
{
	enum xen_ring_todo todo;
	unsigned taken, turns = 0;

	do {
		todo = xen_ring_run(g.ring, &taken);
		xen_ring_publish(g.ring);
		CHECK(taken <= entries());
		if (todo == XEN_RING_WAITS && xen_ring_inflight(g.ring)) {
			while (cow_chain_poll(cow_dev_chain(g.dev), false))
				;
			todo = XEN_RING_MORE;
		}
		CHECK(todo != XEN_RING_WAITS || !xen_ring_has_new(g.ring));
		if (todo == XEN_RING_WAITS && !xen_ring_rest(g.ring))
			todo = XEN_RING_MORE;
		CHECK(++turns < TURNS);
	} while (todo == XEN_RING_MORE);
	return todo;
}

/* ---- rig ---- */

static struct xen_ring_cfg ring_cfg(void)
{
	return (struct xen_ring_cfg){
		.dev = g.dev, .pool = g.pool, .ops = &ops, .name = "ring", .shared = g.shared,
		.pages = g.pages, .abi = g.abi, .sector = XEN_SECTOR, .discard = true,
		.kept = g.kept,
	};
}

static void new_ring(const struct xen_ring_cfg *cfg)
{
	struct cow_err err = { 0 };

	if (xen_ring_new(cfg, &g.ring, &err))
		FAIL("%s", err.msg);
}

static void open_disk(bool read_only)
{
	struct cow_chain_cfg chain = {
		.format = "raw", .path = DISK, .flags = read_only ? 0 : COW_OPEN_WRITE,
		.io = &cow_io_sim_ops, .io_arg = g.sim,
	};
	struct cow_dev_cfg dev = { .name = "unit" };
	struct cow_err err = { 0 };
	struct cow_chain *c;

	if (cow_chain_open(&chain, &c, &err))
		FAIL("%s", err.msg);
	CHECK_EQ(cow_dev_new(g.loop, c, &dev, &g.dev), 0);
}

static void start(enum xen_abi abi, unsigned pages, bool read_only)
{
	struct xen_ring_cfg cfg;

	memset(&g, 0, sizeof(g));
	cow_log_hook(count_log);
	g.sim = cow_sim_new(test_rand());
	g.loop = cow_loop_new();
	g.model = malloc(SECTORS * XEN_SECTOR);
	g.grants = calloc(GRANTS, sizeof(*g.grants));
	g.shared = aligned_alloc(XEN_PAGE, pages * XEN_PAGE);
	CHECK(g.sim && g.loop && g.model && g.grants && g.shared);
	for (unsigned i = 0; i < SECTORS * XEN_SECTOR; i++)
		g.model[i] = (uint8_t)(i / 512 + i % 512 * 3);
	for (unsigned i = 0; i < GRANTS; i++) {
		g.grants[i].valid = g.grants[i].writable = i > 0;
		memset(g.grants[i].page, (int)(i * 5 + 1), XEN_PAGE);
	}
	/* What is not written would be seen. */
	memset(g.shared, 0xa5, pages * XEN_PAGE);
	memset(g.shared, 0, XEN_RING_ENTRIES);
	g.abi = abi;
	g.pages = pages;
	set(XEN_RING_REQ_EVENT, 1);
	set(XEN_RING_RSP_EVENT, 1);
	CHECK_EQ(cow_sim_add(g.sim, DISK, SECTORS * XEN_SECTOR, false), 0);
	CHECK_EQ(cow_sim_write(g.sim, DISK, g.model, SECTORS * XEN_SECTOR, 0), 0);
	open_disk(read_only);
	CHECK_EQ(xen_pool_new(POOL, &g.pool), 0);
	g.kept = calloc(1, xen_kept_bytes(entries()));
	CHECK(g.kept);
	cfg = ring_cfg();
	cfg.read_only = read_only;
	new_ring(&cfg);
}

static void check_disk(void)
{
	static uint8_t now[SECTORS * XEN_SECTOR];
	size_t i = 0;

	CHECK_EQ(cow_sim_read(g.sim, DISK, now, sizeof(now), 0), 0);
	if (!memcmp(now, g.model, sizeof(now)))
		return;
	while (now[i] == g.model[i])
		i++;
	FAIL("byte %zu of the disk is %02x, not %02x", i, now[i], g.model[i]);
}

static void check_nothing_held(void)
{
	CHECK_EQ(xen_pool_used(g.pool), 0);
	CHECK_EQ(xen_ring_inflight(g.ring), 0);
	for (unsigned i = 0; i < entries(); i++)
		CHECK_EQ(g.kept->slots[i].state, 0);
	CHECK_EQ(g.kept->taken, g.kept->answered);
}

static void end(void)
{
	xen_ring_free(g.ring);
	CHECK_EQ(xen_pool_used(g.pool), 0);
	xen_pool_free(g.pool);
	CHECK_EQ(cow_dev_free(g.dev), 0);
	cow_loop_free(g.loop);
	CHECK_EQ(cow_sim_open_files(g.sim), 0);
	cow_sim_free(g.sim);
	free(g.kept);
	free(g.shared);
	free(g.grants);
	free(g.model);
	cow_log_hook(NULL);
}

/* ---- one request, one answer ---- */

static struct xen_seg seg(uint32_t ref, uint8_t from, uint8_t to)
{
	return (struct xen_seg){ .ref = ref, .first = from, .last = to };
}

static void send_and_check(const struct what *w, const char *what, uint8_t op, int status)
{
	struct reply r;

	put(w);
	push();
	CHECK_EQ(run(), XEN_RING_WAITS);
	if (get(XEN_RING_RSP_PROD) != g.prod)
		FAIL("%s: %u answers, not 1", what, get(XEN_RING_RSP_PROD) - g.cons);
	r = take_reply();
	if (r.id != w->id || r.op != op || r.status != status)
		FAIL("%s: id %llx, operation %u, status %d; not %llx, %u, %d", what,
		     (unsigned long long)r.id, r.op, r.status, (unsigned long long)w->id, op, status);
}

#define S1 { { .ref = 5, .first = 0, .last = 0 } }
#define S2 { { .ref = 5, .first = 0, .last = 7 }, { .ref = 6, .first = 0, .last = 7 } }
#define OK XEN_RSP_OKAY
#define BAD XEN_RSP_ERROR
#define NOT XEN_RSP_EOPNOTSUPP
#define R XEN_OP_READ
#define W XEN_OP_WRITE
#define B XEN_OP_BARRIER
#define F XEN_OP_FLUSH
#define D XEN_OP_DISCARD
#define I XEN_OP_INDIRECT

/* What must be refused, on a writable disk; the answer bears @op, 255: that of the request. */
static const struct row {
	const char *name;
	struct what w;
	int status;
	uint8_t op;
} refused[] = {
	{ "read of no segments", { .op = R, .n = 0 }, BAD, 255 },
	{ "write of no segments", { .op = W, .n = 0 }, BAD, 255 },
	{ "read of 12 segments", { .op = R, .n = 12, .seg = S2 }, BAD, 255 },
	{ "write of 12 segments", { .op = W, .n = 12, .seg = S2 }, BAD, 255 },
	{ "read of 255 segments", { .op = R, .n = 255, .seg = S2 }, BAD, 255 },
	{ "write of 255 segments", { .op = W, .n = 255, .seg = S2 }, BAD, 255 },
	{ "barrier of 12 segments", { .op = B, .n = 12, .seg = S2 }, BAD, 255 },
	{ "flush of 255 segments", { .op = F, .n = 255, .seg = S2 }, BAD, 255 },
	{ "first behind last", { .op = R, .n = 1, .seg = { { 5, 3, 2, 0 } } }, BAD, 255 },
	{ "first behind last, write", { .op = W, .n = 1, .seg = { { 5, 7, 0, 0 } } }, BAD, 255 },
	{ "last 8", { .op = R, .n = 1, .seg = { { 5, 0, 8, 0 } } }, BAD, 255 },
	{ "last 255", { .op = W, .n = 1, .seg = { { 5, 0, 255, 0 } } }, BAD, 255 },
	{ "first and last 8", { .op = W, .n = 1, .seg = { { 5, 8, 8, 0 } } }, BAD, 255 },
	{ "first and last 255", { .op = R, .n = 1, .seg = { { 5, 255, 255, 0 } } }, BAD, 255 },
	{ "second segment bad", { .op = W, .n = 2, .seg = { { 5, 0, 7, 0 }, { 6, 4, 3, 0 } } }, BAD, 255 },
	{ "behind the end by one", { .op = R, .n = 1, .sector = SECTORS, .seg = S1 }, BAD, 255 },
	{ "over the end by one", { .op = W, .n = 2, .sector = SECTORS - 15, .seg = S2 }, BAD, 255 },
	{ "sector 2^64-1", { .op = R, .n = 1, .sector = UINT64_MAX, .seg = S1 }, BAD, 255 },
	{ "sector 2^63", { .op = W, .n = 1, .sector = 1ull << 63, .seg = S1 }, BAD, 255 },
	{ "sector 2^55: 0 in bytes", { .op = W, .n = 1, .sector = 1ull << 55, .seg = S1 }, BAD, 255 },
	{ "sum 2^64 bytes", { .op = W, .n = 1, .sector = (1ull << 55) - 1, .seg = S1 }, BAD, 255 },
	{ "barrier over the end", { .op = B, .n = 1, .sector = SECTORS, .seg = S1 }, BAD, 255 },
	{ "flush with data over the end", { .op = F, .n = 1, .sector = SECTORS, .seg = S1 }, BAD, 255 },
	{ "reference 0", { .op = W, .n = 1, .seg = { { 0, 0, 7, 0 } } }, BAD, 255 },
	{ "reference 2^32-1", { .op = W, .n = 1, .seg = { { UINT32_MAX, 0, 7, 0 } } }, BAD, 255 },
	{ "reference of another domain", { .op = R, .n = 1, .seg = { { FOREIGN, 0, 7, 0 } } }, BAD, 255 },
	{ "one of two references bad", { .op = W, .n = 2, .seg = { { 5, 0, 7, 0 }, { 0, 0, 7, 0 } } }, BAD, 255 },
	{ "discard of nothing", { .op = D, .count = 0 }, BAD, 255 },
	{ "discard of 2^64-1", { .op = D, .count = UINT64_MAX }, BAD, 255 },
	{ "discard behind the end", { .op = D, .sector = SECTORS, .count = 1 }, BAD, 255 },
	{ "discard over the end", { .op = D, .sector = 1, .count = SECTORS }, BAD, 255 },
	{ "discard, sum 0", { .op = D, .sector = UINT64_MAX, .count = 1 }, BAD, 255 },
	{ "discard, bytes 0", { .op = D, .sector = 1ull << 55, .count = 8 }, BAD, 255 },
	{ "secure discard", { .op = D, .n = XEN_DISCARD_SECURE, .count = 8 }, NOT, 255 },
	{ "secure discard, other flags", { .op = D, .n = 255, .count = 8 }, NOT, 255 },
	{ "indirect of none", { .op = I, .n = R, .indirect_n = 0, .ref = 9 }, BAD, R },
	{ "indirect of 257", { .op = I, .n = R, .indirect_n = 257, .ref = 9 }, BAD, R },
	{ "indirect of 512", { .op = I, .n = W, .indirect_n = 512, .ref = 9 }, BAD, W },
	{ "indirect of 65535", { .op = I, .n = W, .indirect_n = 65535, .ref = 9 }, BAD, W },
	{ "indirect in indirect", { .op = I, .n = I, .indirect_n = 1, .ref = 9 }, BAD, I },
	{ "indirect barrier", { .op = I, .n = B, .indirect_n = 1, .ref = 9 }, BAD, B },
	{ "indirect flush", { .op = I, .n = F, .indirect_n = 1, .ref = 9 }, BAD, F },
	{ "indirect discard", { .op = I, .n = D, .indirect_n = 1, .ref = 9 }, BAD, D },
	{ "indirect unknown", { .op = I, .n = 200, .indirect_n = 1, .ref = 9 }, BAD, 200 },
	{ "indirect page 0", { .op = I, .n = W, .indirect_n = 1, .ref = 0 }, BAD, W },
	{ "indirect page 2^32-1", { .op = I, .n = R, .indirect_n = 256, .ref = UINT32_MAX }, BAD, R },
	/* Page 9 is full of 46, as reference and sectors. */
	{ "indirect page of nonsense", { .op = I, .n = W, .indirect_n = 1, .ref = 9 }, BAD, W },
};

static void no_other_effect(void)
{
	check_disk();
	check_nothing_held();
	for (unsigned i = 0; i < GRANTS; i++) {
		uint8_t page[XEN_PAGE];

		memset(page, (int)(i * 5 + 1), sizeof(page));
		CHECK(!memcmp(g.grants[i].page, page, sizeof(page)));
	}
}

static void refuse_all(enum xen_abi abi)
{
	start(abi, 1, false);
	for (unsigned i = 0; i < COW_ARRAY_SIZE(refused); i++) {
		struct what w = refused[i].w;
		uint8_t op = refused[i].op == 255 ? w.op : refused[i].op;

		w.id = i % 2 ? UINT64_MAX : 0x1122334455667788u + i;
		w.handle = (uint16_t)(i * 7919);
		send_and_check(&w, refused[i].name, op, refused[i].status);
	}
	no_other_effect();
	CHECK_EQ(g.logged, 0);
	end();
}

TEST(refused_x86_64)
{
	refuse_all(XEN_ABI_X86_64);
}

TEST(refused_x86_32)
{
	refuse_all(XEN_ABI_X86_32);
}

TEST(unknown_operations)
{
	for (enum xen_abi abi = 0; abi < XEN_ABIS; abi++) {
		start(abi, 1, false);
		for (unsigned op = 0; op < 256; op++) {
			struct what w = { .op = (uint8_t)op, .n = 1, .id = op, .seg = S1 };

			if (op > 3 && op != D && op != I)
				send_and_check(&w, "unknown", (uint8_t)op, NOT);
		}
		no_other_effect();
		end();
	}
}

TEST(read_only)
{
	static const struct what w[] = {
		{ .op = W, .n = 1, .seg = S1 }, { .op = W, .n = 2, .seg = S2 }, { .op = B, .n = 1, .seg = S1 },
		{ .op = F, .n = 1, .seg = S1 }, { .op = D, .count = 8 },
		{ .op = I, .n = W, .indirect_n = 1, .ref = 9 },
	};
	static const struct what fine[] = { { .op = F }, { .op = B }, { .op = R, .n = 1, .seg = S1 } };

	start(XEN_ABI_X86_64, 1, true);
	for (unsigned i = 0; i < COW_ARRAY_SIZE(w); i++)
		send_and_check(&w[i], "a change", w[i].op == I ? W : w[i].op, BAD);
	no_other_effect();
	for (unsigned i = 0; i < COW_ARRAY_SIZE(fine); i++)
		send_and_check(&fine[i], "no change", fine[i].op, OK);
	check_disk();
	end();
}

/* Read-only for the guest alone: nothing below would keep it from writing. */
TEST(read_only_by_the_ring)
{
	static const struct what w[] = {
		{ .op = W, .n = 1, .seg = S1 }, { .op = B, .n = 1, .seg = S1 }, { .op = F, .n = 1, .seg = S1 },
		{ .op = D, .count = 8 }, { .op = I, .n = W, .indirect_n = 2, .ref = 9 },
	};
	struct xen_seg segs[2] = S2;
	struct xen_ring_cfg cfg;

	start(XEN_ABI_X86_64, 1, false);
	xen_ring_free(g.ring);
	cfg = ring_cfg();
	cfg.read_only = true;
	new_ring(&cfg);
	memcpy(g.grants[9].page, segs, sizeof(segs));
	for (unsigned i = 0; i < COW_ARRAY_SIZE(w); i++)
		send_and_check(&w[i], "a change", w[i].op == I ? W : w[i].op, BAD);
	check_disk();
	check_nothing_held();
	end();
}

TEST(discard_that_was_not_offered)
{
	struct what w = { .op = D, .count = 8 };
	struct xen_ring_cfg cfg;

	start(XEN_ABI_X86_64, 1, false);
	xen_ring_free(g.ring);
	cfg = ring_cfg();
	cfg.discard = false;
	new_ring(&cfg);
	send_and_check(&w, "discard", D, NOT);
	no_other_effect();
	end();
}

/* Every number of sectors is of large ones: places, parts of pages, discards. */
TEST(large_sectors)
{
	static const struct {
		const char *name;
		struct what w;
		int status;
	} rows[] = {
		{ "last page", { .op = R, .n = 1, .sector = SECTORS / 8 - 1, .seg = { { 7, 0, 0, 0 } } }, OK },
		{ "behind the end by one", { .op = R, .n = 1, .sector = SECTORS / 8, .seg = S1 }, BAD },
		{ "over the end by one", { .op = W, .n = 2, .sector = SECTORS / 8 - 1,
					   .seg = { { 5, 0, 0, 0 }, { 6, 0, 0, 0 } } }, BAD },
		{ "second sector of a page", { .op = W, .n = 1, .seg = { { 5, 0, 1, 0 } } }, BAD },
		{ "only the second", { .op = R, .n = 1, .seg = { { 5, 1, 1, 0 } } }, BAD },
		{ "last 255", { .op = R, .n = 1, .seg = { { 5, 0, 255, 0 } } }, BAD },
		{ "sector 2^52: 0 in bytes", { .op = W, .n = 1, .sector = 1ull << 52, .seg = S1 }, BAD },
		{ "sum 2^64 bytes", { .op = W, .n = 1, .sector = (1ull << 52) - 1, .seg = S1 }, BAD },
		{ "discard over the end", { .op = D, .sector = 1, .count = SECTORS / 8 }, BAD },
		{ "discard, bytes 0", { .op = D, .sector = 1ull << 52, .count = 8 }, BAD },
		{ "discard", { .op = D, .sector = 2, .count = 3 }, OK },
		{ "write", { .op = W, .n = 2, .sector = 9, .seg = { { 5, 0, 0, 0 }, { 6, 0, 0, 0 } } }, OK },
	};
	struct xen_ring_cfg cfg;

	start(XEN_ABI_X86_64, 1, false);
	xen_ring_free(g.ring);
	cfg = ring_cfg();
	cfg.sector = XEN_SECTOR_LARGE;
	new_ring(&cfg);
	for (unsigned i = 0; i < COW_ARRAY_SIZE(rows); i++)
		send_and_check(&rows[i].w, rows[i].name, rows[i].w.op, rows[i].status);
	memset(g.model + 2 * XEN_PAGE, 0, 3 * XEN_PAGE);
	memset(g.model + 9 * XEN_PAGE, 5 * 5 + 1, XEN_PAGE);
	memset(g.model + 10 * XEN_PAGE, 6 * 5 + 1, XEN_PAGE);
	check_disk();
	CHECK(!memcmp(g.grants[7].page, g.model + (SECTORS / 8 - 1) * XEN_PAGE, XEN_PAGE));
	check_nothing_held();
	end();
}

/* A device that is read-only, and a guest that may believe it is not. */
TEST(changes_that_are_forgotten)
{
	static const struct what fine[] = {
		{ .op = W, .n = 2, .seg = S2 }, { .op = B, .n = 1, .seg = S1 }, { .op = F },
		{ .op = D, .count = 8 }, { .op = I, .n = W, .indirect_n = 2, .ref = 9 },
	};
	struct what r = { .op = R, .n = 1, .seg = S1 }, bad = { .op = W, .n = 1, .seg = { { 0, 0, 7, 0 } } };
	struct what over = { .op = W, .n = 1, .sector = SECTORS, .seg = S1 };
	struct xen_seg segs[2] = S2;
	struct xen_ring_cfg cfg;

	start(XEN_ABI_X86_64, 1, true);
	xen_ring_free(g.ring);
	cfg = ring_cfg();
	cfg.forget = true;
	new_ring(&cfg);
	memcpy(g.grants[9].page, segs, sizeof(segs));
	for (unsigned i = 0; i < COW_ARRAY_SIZE(fine); i++)
		send_and_check(&fine[i], "a change", fine[i].op == I ? W : fine[i].op, OK);
	send_and_check(&bad, "a page that is not granted", W, BAD);
	send_and_check(&over, "over the end", W, BAD);
	send_and_check(&r, "read", R, OK);
	CHECK(!memcmp(g.grants[5].page, g.model, XEN_SECTOR));
	check_disk();
	check_nothing_held();
	end();
}

TEST(grants_for_the_wrong_direction)
{
	struct what r = { .op = R, .n = 1, .seg = S1 }, w = { .op = W, .n = 1, .seg = S1 };

	start(XEN_ABI_X86_64, 1, false);
	g.grants[5].writable = false;
	send_and_check(&r, "read into a read-only page", R, BAD);
	no_other_effect();
	send_and_check(&w, "write from a read-only page", W, OK);
	memset(g.model, 26, 512);
	check_disk();
	end();
}

static void revoke(void)
{
	g.grants[5].valid = false;
}

TEST(grant_revoked_meanwhile)
{
	struct what r = { .op = R, .n = 2, .seg = S2 }, i = { .op = I, .n = W, .indirect_n = 2, .ref = 9 };
	struct xen_seg segs[2] = S2;

	start(XEN_ABI_X86_64, 1, false);
	g.on_copy = revoke;
	send_and_check(&r, "read", R, BAD);
	g.grants[5].valid = true;
	memcpy(g.grants[9].page, segs, sizeof(segs));
	g.on_copy = revoke;
	send_and_check(&i, "indirect write", W, BAD);
	check_disk();
	check_nothing_held();
	end();
}

TEST(every_copy_can_fail)
{
	struct what w = { .op = W, .n = 2, .sector = 64, .seg = S2 }, r = { .op = R, .n = 2, .seg = S2 };
	struct what i = { .op = I, .n = R, .indirect_n = 250, .ref = 9 };
	struct xen_seg *segs;

	start(XEN_ABI_X86_64, 1, false);
	segs = (struct xen_seg *)g.grants[9].page;
	for (unsigned k = 0; k < 250; k++)
		segs[k] = seg(100 + k, 0, 7);
	for (unsigned k = 1; k <= 2; k++) {
		g.copies = 0;
		g.fail_copy = k;
		send_and_check(&w, "write", W, BAD);
		g.copies = 0;
		send_and_check(&r, "read", R, BAD);
	}
	for (unsigned k = 1; k <= 251; k += k == 1 ? 1 : 7) {
		g.copies = 0;
		g.fail_copy = k;
		send_and_check(&i, "indirect", R, BAD);
	}
	g.fail_copy = 0;
	send_and_check(&i, "indirect", R, OK);
	check_disk();
	check_nothing_held();
	end();
}

/* ---- what is fine ---- */

TEST(odd_but_fine)
{
	struct what same = { .op = W, .n = 11, .sector = 100, .handle = 4711, .id = 0 };
	struct what d = { .op = D, .sector = 1, .count = 3 };

	start(XEN_ABI_X86_32, 1, false);
	for (unsigned i = 0; i < 11; i++)
		same.seg[i] = seg(5, (uint8_t)(i % 8), 7);
	send_and_check(&same, "one page in all segments", W, OK);
	memset(g.model + 100 * 512, 26, (36 + 8 + 7 + 6) * 512);
	check_disk();
	send_and_check(&d, "unaligned discard", D, OK);
	end();
}

TEST(same_id_in_all)
{
	struct what w = { .op = W, .n = 1, .id = 42, .seg = S1 };

	start(XEN_ABI_X86_64, 1, false);
	for (unsigned i = 0; i < 32; i++) {
		w.sector = i;
		put(&w);
	}
	push();
	CHECK_EQ(run(), XEN_RING_WAITS);
	CHECK_EQ(get(XEN_RING_RSP_PROD), 32);
	for (unsigned i = 0; i < 32; i++) {
		struct reply r = take_reply();

		CHECK(r.id == 42 && r.op == W && r.status == OK);
	}
	memset(g.model, 26, 32 * 512);
	check_disk();
	check_nothing_held();
	end();
}

TEST(flush_and_barrier_with_data)
{
	struct what f = { .op = F, .n = 1, .sector = 10, .seg = S1 };
	struct what b = { .op = B, .n = 2, .sector = 20, .seg = S2 };

	start(XEN_ABI_X86_64, 1, false);
	cow_sim_log_start(g.sim, DISK);
	send_and_check(&f, "flush with data", F, OK);
	send_and_check(&b, "barrier with data", B, OK);
	memset(g.model + 10 * 512, 26, 512);
	memset(g.model + 20 * 512, 26, 4096);
	memset(g.model + 28 * 512, 31, 4096);
	check_disk();
	/* A barrier's data is durable when it is answered. */
	CHECK(cow_sim_log_is_sync(g.sim, DISK, cow_sim_log_len(g.sim, DISK) - 1));
	end();
}

/* ---- indexes ---- */

static void bad_prod(uint32_t prod)
{
	struct what w = { .op = W, .n = 1, .sector = 3, .seg = S1 };
	unsigned taken;

	start(XEN_ABI_X86_64, 1, false);
	send_and_check(&w, "write", W, OK);
	memset(g.model + 3 * 512, 26, 512);
	g.logged = g.notified = 0;
	set(XEN_RING_REQ_PROD, prod);
	CHECK_EQ(run(), XEN_RING_DEAD);
	/* For good, and without a word. */
	set(XEN_RING_REQ_PROD, 2);
	CHECK_EQ(xen_ring_run(g.ring, &taken), XEN_RING_DEAD);
	CHECK_EQ(taken, 0);
	CHECK(g.logged <= 1);
	CHECK_EQ(g.notified, 0);
	CHECK_EQ(get(XEN_RING_RSP_PROD), 1);
	check_disk();
	check_nothing_held();
	end();
}

TEST(req_prod_that_cannot_be)
{
	bad_prod(1 + 33);
	bad_prod(0);
	bad_prod(1 + (1u << 31));
	bad_prod(UINT32_MAX);
}

TEST(scribbled_indexes)
{
	struct what w = { .op = W, .n = 1, .seg = S1 };

	start(XEN_ABI_X86_64, 1, false);
	for (unsigned i = 0; i < 200; i++) {
		set(XEN_RING_RSP_PROD, (uint32_t)test_rand());
		set(XEN_RING_RSP_EVENT, (uint32_t)test_rand());
		set(XEN_RING_REQ_EVENT, (uint32_t)test_rand());
		w.id = i;
		send_and_check(&w, "write", W, OK);
		CHECK_EQ(get(XEN_RING_REQ_EVENT), g.prod + 1);
	}
	check_nothing_held();
	end();
}

TEST(indexes_wrap_around)
{
	struct what w = { .op = R, .n = 1, .seg = S1 };
	struct xen_ring_cfg cfg;

	start(XEN_ABI_X86_64, 1, false);
	xen_ring_free(g.ring);
	g.prod = g.cons = UINT32_MAX - 40;
	set(XEN_RING_REQ_PROD, g.prod);
	set(XEN_RING_RSP_PROD, g.prod);
	cfg = ring_cfg();
	new_ring(&cfg);
	for (unsigned i = 0; i < 100; i++) {
		w.id = i;
		send_and_check(&w, "read", R, OK);
	}
	check_nothing_held();
	end();
}

TEST(notified_when_asked_for)
{
	struct what w = { .op = R, .n = 1, .seg = S1 };

	start(XEN_ABI_X86_64, 1, false);
	for (unsigned i = 0; i < 8; i++)
		put(&w);
	push();
	set(XEN_RING_RSP_EVENT, 8);
	CHECK_EQ(run(), XEN_RING_WAITS);
	CHECK_EQ(g.notified, 1);
	/* Not wanted yet. */
	set(XEN_RING_RSP_EVENT, 11);
	put(&w);
	push();
	CHECK_EQ(run(), XEN_RING_WAITS);
	CHECK_EQ(g.notified, 1);
	put(&w);
	put(&w);
	push();
	CHECK_EQ(run(), XEN_RING_WAITS);
	CHECK_EQ(g.notified, 2);
	end();
}

TEST(impossible_new_ring)
{
	struct xen_ring *r = NULL;
	struct xen_ring_cfg cfg;
	struct cow_err err = { 0 };

	start(XEN_ABI_X86_64, 1, false);
	set(XEN_RING_REQ_PROD, 40);
	set(XEN_RING_RSP_PROD, 1);
	cfg = ring_cfg();
	CHECK_EQ(xen_ring_new(&cfg, &r, &err), -EPROTO);
	CHECK(err.msg[0] && !r);
	end();
}

TEST(sizes_of_rings)
{
	CHECK_EQ(xen_ring_entries(XEN_ABI_X86_64, 1), 32);
	CHECK_EQ(xen_ring_entries(XEN_ABI_X86_32, 1), 32);
	CHECK_EQ(xen_ring_entries(XEN_ABI_X86_64, 2), 64);
	CHECK_EQ(xen_ring_entries(XEN_ABI_X86_64, 4), 128);
	CHECK_EQ(xen_ring_entries(XEN_ABI_X86_64, 16), 512);
	CHECK_EQ(xen_ring_entries(XEN_ABI_X86_32, 16), 512);
}

/* ---- data ---- */

/* A request of @n segments with random sectors, its pages filled or to be filled. */
static void fill_segs(struct xen_seg *segs, unsigned n, unsigned ref, uint64_t *sectors)
{
	*sectors = 0;
	for (unsigned i = 0; i < n; i++) {
		uint8_t from = (uint8_t)test_rand_below(8), to = (uint8_t)(from + test_rand_below(8 - from));

		segs[i] = seg(ref + i, from, to);
		*sectors += to - from + 1u;
	}
}

static void guest_data(const struct xen_seg *segs, unsigned n, uint64_t sector, bool write)
{
	uint8_t *at = g.model + sector * 512;

	for (unsigned i = 0; i < n; i++) {
		uint8_t *p = g.grants[segs[i].ref].page + segs[i].first * 512;
		size_t len = (segs[i].last - segs[i].first + 1u) * 512;

		if (!write) {
			if (memcmp(p, at, len))
				FAIL("segment %u of %u at sector %llu reads something else", i, n,
				     (unsigned long long)sector);
		} else {
			for (size_t k = 0; k < len; k++)
				p[k] = (uint8_t)test_rand();
			memcpy(at, p, len);
		}
		at += len;
	}
}

static void random_request(unsigned n)
{
	bool write = test_rand_below(2), indirect = n > XEN_SEGS || test_rand_below(4) == 0;
	struct xen_seg segs[XEN_RING_SEGS_MAX];
	struct what w = { .op = write ? W : R, .id = test_rand(), .ref = 20 };
	uint64_t sectors;

	fill_segs(segs, n, 100 + (unsigned)test_rand_below(500), &sectors);
	w.sector = test_rand_below(SECTORS - sectors + 1);
	if (indirect) {
		w.n = w.op;
		w.op = I;
		w.indirect_n = (uint16_t)n;
		memcpy(g.grants[20].page, segs, n * sizeof(segs[0]));
	} else {
		w.n = (uint8_t)n;
		memcpy(w.seg, segs, n * sizeof(segs[0]));
	}
	if (write)
		guest_data(segs, n, w.sector, true);
	send_and_check(&w, "data", write ? W : R, OK);
	if (!write)
		guest_data(segs, n, w.sector, false);
}

TEST(data_of_all_lengths)
{
	static const unsigned pages[] = { 1, 2, 4, 16 };

	for (unsigned i = 0; i < 8; i++) {
		start(i % 2 ? XEN_ABI_X86_32 : XEN_ABI_X86_64, pages[i / 2], false);
		cow_sim_set_async(g.sim, i & 1);
		for (unsigned n = 1; n <= XEN_RING_SEGS_MAX; n += n < 30 ? 1 : 13)
			random_request(n);
		random_request(XEN_RING_SEGS_MAX);
		check_disk();
		check_nothing_held();
		end();
	}
}

/* Rings full of the longest requests, with memory for two of them. */
TEST(more_asked_for_than_memory)
{
	struct what w = { .op = I, .n = W, .indirect_n = 256, .ref = 20 };
	struct xen_seg *segs;

	start(XEN_ABI_X86_64, 1, false);
	cow_sim_set_async(g.sim, true);
	segs = (struct xen_seg *)g.grants[20].page;
	for (unsigned i = 0; i < 256; i++)
		segs[i] = seg(100 + i, 0, 7);
	for (unsigned i = 0; i < 32; i++) {
		w.sector = i % 8 * 2048;
		w.id = i;
		put(&w);
	}
	push();
	CHECK_EQ(run(), XEN_RING_WAITS);
	CHECK_EQ(get(XEN_RING_RSP_PROD), 32);
	for (unsigned i = 0; i < SECTORS; i++)
		memset(g.model + i * 512, (int)((100 + i / 8 % 256) * 5 + 1), 512);
	check_disk();
	check_nothing_held();
	end();
}

/* What is in the log of the disk between two syncs around the barrier. */
TEST(barrier_parts_what_is_around_it)
{
	for (unsigned round = 0; round < 20; round++) {
		struct what w = { .op = W, .n = 1, .seg = S1 }, b = { .op = B };
		size_t i, len, syncs = 0;
		unsigned early = 0;

		start(XEN_ABI_X86_64, 1, false);
		cow_sim_set_async(g.sim, true);
		cow_sim_log_start(g.sim, DISK);
		for (i = 0; i < 10; i++) {
			w.sector = i;
			put(&w);
		}
		put(&b);
		for (; i < 20; i++) {
			w.sector = i;
			put(&w);
		}
		push();
		CHECK_EQ(run(), XEN_RING_WAITS);
		CHECK_EQ(get(XEN_RING_RSP_PROD), 21);
		len = cow_sim_log_len(g.sim, DISK);
		for (i = 0; i < len; i++) {
			syncs += cow_sim_log_is_sync(g.sim, DISK, i);
			early += !syncs;
		}
		CHECK(syncs > 0);
		CHECK_EQ(early, 10);
		end();
	}
}

TEST(device_errors_are_told)
{
	struct cow_sim_fault fault = { .nth = 1, .error = -EIO, .persistent = true };
	struct what w = { .op = W, .n = 1, .seg = S1 }, r = { .op = R, .n = 1, .seg = S1 };
	struct what f = { .op = F };

	start(XEN_ABI_X86_64, 1, false);
	cow_sim_set_fault(g.sim, &fault);
	send_and_check(&r, "read", R, BAD);
	send_and_check(&w, "write", W, BAD);
	fault.nth = 0;
	cow_sim_set_fault(g.sim, &fault);
	send_and_check(&f, "flush", F, OK);
	check_nothing_held();
	end();
}

TEST(stopped_takes_no_more)
{
	struct what w = { .op = W, .n = 1, .seg = S1 };
	unsigned taken, turns = 0;

	start(XEN_ABI_X86_64, 1, false);
	cow_sim_set_async(g.sim, true);
	put(&w);
	push();
	xen_ring_run(g.ring, &taken);
	CHECK_EQ(taken, 1);
	CHECK_EQ(xen_ring_inflight(g.ring), 1);
	xen_ring_stop(g.ring);
	put(&w);
	push();
	while (xen_ring_inflight(g.ring) && ++turns < TURNS)
		cow_chain_poll(cow_dev_chain(g.dev), false);
	CHECK_EQ(xen_ring_run(g.ring, &taken), XEN_RING_WAITS);
	CHECK_EQ(taken, 0);
	CHECK_EQ(xen_ring_unpublished(g.ring), 1);
	CHECK_EQ(get(XEN_RING_RSP_PROD), 0);
	xen_ring_publish(g.ring);
	CHECK_EQ(xen_ring_unpublished(g.ring), 0);
	CHECK_EQ(get(XEN_RING_RSP_PROD), 1);
	check_nothing_held();
	end();
}

/* ---- a racer ---- */

static atomic_bool racing;

static void *race(void *arg)
{
	uint64_t x = 88172645463325252ull;

	(void)arg;
	while (atomic_load(&racing)) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		((volatile uint8_t *)g.shared)[XEN_RING_ENTRIES + x % (XEN_PAGE - XEN_RING_ENTRIES)] = (uint8_t)(x >> 32);
		/* Page 20: segments of indirect requests. */
		((volatile uint8_t *)g.grants[20].page)[(x >> 40) % 64] = (uint8_t)(x >> 24);
	}
	return NULL;
}

/*
 * Whatever the guest writes into the ring while we look, the number of answers is that of
 * its requests, no more than the pool is used, and no copy leaves a page (checked in copy_one()).
 */
TEST(racer)
{
	struct what w = { .op = W, .n = 3, .seg = { { 5, 0, 7, 0 }, { 6, 0, 7, 0 }, { 7, 0, 3, 0 } } };
	unsigned requests = getenv("FAULT") && !strcmp(getenv("FAULT"), "full") ? 1000000 : 20000;
	pthread_t t;

	start(XEN_ABI_X86_64, 1, false);
	atomic_store(&racing, true);
	CHECK_EQ(pthread_create(&t, NULL, race, NULL), 0);
	for (unsigned i = 0; i < requests; i += 32) {
		for (unsigned k = 0; k < 32; k++) {
			w.op = k % 4 == 3 ? I : k % 2;
			w.n = w.op == I ? W : 3;
			w.indirect_n = (uint16_t)(k + 1);
			w.ref = 20;
			put(&w);
		}
		push();
		CHECK_EQ(run(), XEN_RING_WAITS);
		CHECK_EQ(get(XEN_RING_RSP_PROD), g.prod);
	}
	atomic_store(&racing, false);
	CHECK_EQ(pthread_join(t, NULL), 0);
	check_nothing_held();
	end();
}

/* ---- after a kill ---- */

/*
 * A process that is killed leaves its ring, and what it kept, as they are between two
 * stores. Here: after any run of the ring with the device slow, so that requests are taken
 * and answered in any order; and with the kept state put back by one store.
 */
static unsigned again[64];	/* answers by id */

static void collect(void)
{
	while (g.cons != get(XEN_RING_RSP_PROD)) {
		struct reply r = take_reply();

		CHECK_EQ(r.status, OK);
		CHECK(r.id < COW_ARRAY_SIZE(again));
		again[r.id]++;
	}
}

static void kill_and_adopt(void)
{
	struct xen_ring_cfg cfg = ring_cfg();
	struct xen_ring *dead = g.ring;
	struct xen_kept *kept = calloc(1, xen_kept_bytes(entries()));

	/* The dead one's memory goes on to be its own. */
	CHECK(kept);
	memcpy(kept, g.kept, xen_kept_bytes(entries()));
	xen_ring_stop(dead);
	while (xen_ring_inflight(dead))
		cow_chain_poll(cow_dev_chain(g.dev), false);
	xen_ring_free(dead);
	free(g.kept);
	g.kept = kept;
	cfg.kept = kept;
	cfg.adopt = true;
	new_ring(&cfg);
}

/* The stores of taking and answering one request that a kill may have kept from being made. */
static void tear(unsigned which)
{
	struct xen_kept *k = g.kept;

	for (unsigned i = 0; i < entries(); i++) {
		struct xen_kept_slot *s = &k->slots[i];

		if (which == 1 && s->state == 1 && s->index == k->taken - 1) {
			k->taken--;	/* in its slot, but not counted */
			return;
		}
		if (which == 2 && s->state == 0 && s->answer == k->answered - 1) {
			s->state = 2;	/* counted, but not free yet */
			return;
		}
	}
}

TEST(killed_and_taken_up)
{
	unsigned rounds = getenv("FAULT") && !strcmp(getenv("FAULT"), "full") ? 1000 : 60;

	for (unsigned round = 0; round < rounds; round++) {
		enum xen_abi abi = round % 2 ? XEN_ABI_X86_32 : XEN_ABI_X86_64;
		unsigned ids = 0, taken, i;
		struct what w = { .op = W, .n = 1, .seg = S1 };

		start(abi, 1, false);
		cow_sim_set_async(g.sim, true);
		memset(again, 0, sizeof(again));
		while (ids < COW_ARRAY_SIZE(again)) {
			unsigned n = 1 + (unsigned)test_rand_below(12);

			for (; n && ids < COW_ARRAY_SIZE(again) && g.prod - g.cons < entries(); n--) {
				w.id = ids;
				w.op = ids % 7 == 6 ? B : ids % 5 == 4 ? F : W;
				w.sector = ids++;
				put(&w);
			}
			push();
			for (n = (unsigned)test_rand_below(4); n; n--) {
				xen_ring_run(g.ring, &taken);
				if (test_rand_below(2))
					xen_ring_publish(g.ring);
				cow_chain_poll(cow_dev_chain(g.dev), false);
			}
			if (test_rand_below(2)) {
				tear((unsigned)test_rand_below(3));
				kill_and_adopt();
			} else {
				xen_ring_run(g.ring, &taken);
				xen_ring_publish(g.ring);
			}
			collect();
		}
		kill_and_adopt();
		CHECK_EQ(run(), XEN_RING_WAITS);
		collect();
		for (i = 0; i < COW_ARRAY_SIZE(again); i++)
			CHECK_EQ(again[i], 1);
		memset(g.model, 26, COW_ARRAY_SIZE(again) * 512);
		check_disk();
		check_nothing_held();
		end();
	}
}

/* Killed when the answer was in the ring, and the guest had not been shown it. */
TEST(answers_that_were_not_shown)
{
	struct what w = { .op = W, .n = 1, .id = 7, .seg = S1 };
	struct reply r;

	start(XEN_ABI_X86_64, 1, false);
	put(&w);
	push();
	CHECK_EQ(run(), XEN_RING_WAITS);
	set(XEN_RING_RSP_PROD, 0);
	g.notified = 0;
	kill_and_adopt();
	CHECK_EQ(run(), XEN_RING_WAITS);
	CHECK_EQ(get(XEN_RING_RSP_PROD), 1);
	CHECK_EQ(g.notified, 1);
	r = take_reply();
	CHECK(r.id == 7 && r.status == OK);
	end();
}

TEST(taken_up_only_what_fits)
{
	struct what w = { .op = W, .n = 1, .seg = S1 };
	struct xen_ring *r = NULL;
	struct xen_ring_cfg cfg;
	unsigned taken;

	for (unsigned i = 0; i < 5; i++) {
		struct cow_err err = { 0 };

		start(XEN_ABI_X86_64, 1, false);
		cow_sim_set_async(g.sim, true);
		put(&w);
		push();
		xen_ring_run(g.ring, &taken);
		xen_ring_stop(g.ring);
		while (xen_ring_inflight(g.ring))
			cow_chain_poll(cow_dev_chain(g.dev), false);
		xen_ring_free(g.ring);
		g.ring = NULL;
		cfg = ring_cfg();
		cfg.adopt = true;
		if (i == 0)
			g.kept->entries = 64;
		else if (i == 1)
			g.kept->taken += 40;
		else if (i == 2)
			g.kept->answered -= 1;
		else if (i == 3)
			set(XEN_RING_REQ_PROD, 0);
		else
			set(XEN_RING_REQ_PROD, 34);
		CHECK_EQ(xen_ring_new(&cfg, &r, &err), -EPROTO);
		CHECK(err.msg[0] && !r);
		end();
	}
}
