// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A Xen ring whose other end is hostile (cowd/xen-ring.h): bytes become entries of the
 * ring, indexes, grants that come and go, and what a killed daemon is said to have left.
 * Whatever the guest does, copies stay inside pages, answers are no more than requests, a
 * dead ring stays dead, and no buffer is lost.
 */
#include "cowd/xen-ring.h"
#include "fuzz.h"

#include "cow/log.h"

#define DISK_BYTES (1u << 20)
#define POOL_BYTES COW_MIB(2)
#define REFS 8u			/* references 1 ... 7 are granted, if they are */
#define STEPS 64u
#define PAGES_MAX 2u

static struct {
	struct cow_dev *dev[2];		/* writable, read-only */
	struct xen_pool *pool;
	uint8_t page[REFS][XEN_PAGE];
	uint8_t granted, writable;	/* masks */
	uint8_t shared[PAGES_MAX * XEN_PAGE] __attribute__((aligned(XEN_PAGE)));
	uint64_t requests;		/* taken from the rings of all inputs */
} g;

static void copy(void *opaque, struct xen_copy *c, unsigned n)
{
	(void)opaque;
	for (unsigned i = 0; i < n; i++) {
		uint8_t bit = c[i].ref && c[i].ref < REFS ? (uint8_t)(1u << c[i].ref) : 0;

		FUZZ_CHECK(c[i].len && c[i].offset + c[i].len <= (int)XEN_PAGE);
		c[i].ok = (g.granted & bit) && (!c[i].to_guest || (g.writable & bit));
		if (c[i].ok && c[i].to_guest)
			memcpy(g.page[c[i].ref] + c[i].offset, c[i].ours, c[i].len);
		else if (c[i].ok)
			memcpy(c[i].ours, g.page[c[i].ref] + c[i].offset, c[i].len);
	}
}

static void notify(void *opaque)
{
	++*(unsigned *)opaque;
}

static const struct xen_ring_ops ops = { .copy = copy, .notify = notify };

static struct cow_dev *open_disk(struct cow_loop *loop, struct cow_sim *sim, const char *name,
				 uint32_t flags)
{
	struct cow_chain_cfg cfg = { .format = "raw", .path = name, .flags = flags,
				     .io = &cow_io_sim_ops, .io_arg = sim };
	struct cow_dev_cfg dev_cfg = { .name = "fuzz" };
	struct cow_chain *c;
	struct cow_dev *dev;

	FUZZ_CHECK(cow_sim_add(sim, name, DISK_BYTES, false) == 0);
	FUZZ_CHECK(cow_chain_open(&cfg, &c, NULL) == 0);
	FUZZ_CHECK(cow_dev_new(loop, c, &dev_cfg, &dev) == 0);
	return dev;
}

/* One input is many requests: those are what is counted (tests/lib/fuzz.sh tells it). */
static void tell_requests(void)
{
	fprintf(stderr, "fuzz: %llu requests\n", (unsigned long long)g.requests);
}

/* Once: what is on the disk does not matter here. */
static void set_up(void)
{
	struct cow_loop *loop = cow_loop_new();
	struct cow_sim *sim = cow_sim_new(1);

	FUZZ_CHECK(loop && sim);
	setenv("COW_PLUGIN_DIR", TEST_BUILD "/lib/cow", 0);
	cow_log_set_level((enum cow_log_level)0);
	cow_sim_set_async(sim, true);
	g.dev[0] = open_disk(loop, sim, "w.raw", COW_OPEN_WRITE);
	g.dev[1] = open_disk(loop, sim, "r.raw", 0);
	FUZZ_CHECK(xen_pool_new(POOL_BYTES, &g.pool) == 0);
	FUZZ_CHECK(atexit(tell_requests) == 0);
}

static void set_word(unsigned offset, uint32_t v)
{
	memcpy(g.shared + offset, &v, sizeof(v));
}

static uint32_t get_word(unsigned offset)
{
	uint32_t v;

	memcpy(&v, g.shared + offset, sizeof(v));
	return v;
}

/* What is kept is ours, but may be of another version, or of another ring. */
static void forge_kept(struct xen_kept *kept, unsigned entries, struct fuzz_in *in)
{
	kept->entries = entries + !(fuzz_num(in, 1) % 16);
	kept->answered = (uint32_t)fuzz_num(in, 1);
	kept->taken = kept->answered + (uint32_t)fuzz_num(in, 1);
	for (unsigned i = 0; i < entries && in->n; i++) {
		struct xen_kept_slot *s = &kept->slots[i];

		s->state = (uint32_t)fuzz_num(in, 1) % 4;
		s->index = kept->taken - (uint32_t)fuzz_num(in, 1);
		s->answer = kept->answered + (uint32_t)fuzz_num(in, 1) % 4 - 2;
		fuzz_bytes(in, s->raw, fuzz_num(in, 1) % (sizeof(s->raw) + 1));
	}
}

static void put_entry(struct fuzz_in *in, unsigned entry_bytes, unsigned entries)
{
	uint32_t prod = get_word(XEN_RING_REQ_PROD);
	uint8_t *e = g.shared + XEN_RING_ENTRIES + (prod & (entries - 1)) * entry_bytes;

	fuzz_bytes(in, e, cow_min(fuzz_num(in, 1), entry_bytes));
	set_word(XEN_RING_REQ_PROD, prod + 1);
}

static void guest_step(struct fuzz_in *in, unsigned entry_bytes, unsigned entries)
{
	uint8_t *page = g.page[fuzz_num(in, 1) % REFS];

	switch (fuzz_num(in, 1) % 8) {
	case 0:
		set_word(4 * (fuzz_num(in, 1) % 4), (uint32_t)fuzz_num(in, 4));
		break;
	case 1:
		set_word(XEN_RING_REQ_PROD, get_word(XEN_RING_REQ_PROD) + (uint32_t)fuzz_num(in, 1) - 2);
		break;
	case 2:
		g.granted = (uint8_t)fuzz_num(in, 1);
		g.writable = (uint8_t)fuzz_num(in, 1);
		break;
	case 3:
		fuzz_bytes(in, page, fuzz_num(in, 2) % (XEN_PAGE + 1));
		break;
	case 4:
		fuzz_bytes(in, g.shared + fuzz_num(in, 2) % XEN_PAGE, fuzz_num(in, 1) % 64);
		break;
	default:
		put_entry(in, entry_bytes, entries);
	}
}

static void drain(struct xen_ring *r, struct cow_dev *dev)
{
	while (xen_ring_inflight(r))
		cow_chain_poll(cow_dev_chain(dev), false);
}

static void play(struct xen_ring *r, const struct xen_ring_cfg *cfg, unsigned entry_bytes,
		 struct fuzz_in *in)
{
	unsigned entries = xen_ring_entries(cfg->abi, cfg->pages), steps = 0, taken;
	uint32_t taken_all = cfg->kept->taken - cfg->kept->answered, first = cfg->kept->answered;
	bool dead = false;

	while (in->n && steps++ < STEPS) {
		enum xen_ring_todo todo;

		guest_step(in, entry_bytes, entries);
		if (fuzz_num(in, 1) % 2)
			continue;
		todo = xen_ring_run(r, &taken);
		FUZZ_CHECK(!dead || (todo == XEN_RING_DEAD && !taken));
		dead = todo == XEN_RING_DEAD;
		taken_all += taken;
		g.requests += taken;
		if (fuzz_num(in, 1) % 4)
			xen_ring_publish(r);
		if (todo == XEN_RING_WAITS)
			FUZZ_CHECK(xen_ring_rest(r) == !xen_ring_has_new(r));
		FUZZ_CHECK(xen_ring_unpublished(r) <= entries + 1);
		if (fuzz_num(in, 1) % 2)
			cow_chain_poll(cow_dev_chain(cfg->dev), false);
		FUZZ_CHECK(cfg->kept->answered - first <= taken_all);
		FUZZ_CHECK(cfg->kept->taken - cfg->kept->answered <= entries);
	}
	drain(r, cfg->dev);
	xen_ring_run(r, &taken);
	xen_ring_stop(r);
	drain(r, cfg->dev);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = { data, size };
	unsigned mode, notified = 0;
	struct xen_ring_cfg cfg = { .ops = &ops, .opaque = &notified, .name = "fuzz", .shared = g.shared };
	struct cow_err err = { 0 };
	struct xen_ring *r = NULL;

	if (!g.pool)
		set_up();
	mode = (unsigned)fuzz_num(&in, 1);
	memset(g.shared, 0, sizeof(g.shared));
	g.granted = g.writable = 0xfe;
	cfg.pool = g.pool;
	cfg.abi = mode & 1 ? XEN_ABI_X86_32 : XEN_ABI_X86_64;
	cfg.pages = mode & 2 ? PAGES_MAX : 1;
	cfg.read_only = mode & 4;
	cfg.dev = g.dev[cfg.read_only];
	cfg.discard = mode & 8;
	cfg.sector = mode & 64 ? XEN_SECTOR_LARGE : XEN_SECTOR;
	cfg.forget = mode & 128;
	cfg.adopt = mode & 16;
	cfg.kept = cow_zalloc(xen_kept_bytes(xen_ring_entries(cfg.abi, cfg.pages)));
	FUZZ_CHECK(cfg.kept);
	if (cfg.adopt)
		forge_kept(cfg.kept, xen_ring_entries(cfg.abi, cfg.pages), &in);
	set_word(XEN_RING_REQ_PROD, cfg.kept->taken + (mode & 32 ? (uint32_t)fuzz_num(&in, 1) : 0));
	set_word(XEN_RING_RSP_PROD, cfg.kept->answered);
	if (xen_ring_new(&cfg, &r, &err) == 0)
		play(r, &cfg, xen_layouts[cfg.abi].entry, &in);
	else
		FUZZ_CHECK(err.code && err.msg[0] && !r);
	xen_ring_free(r);
	FUZZ_CHECK(xen_pool_used(g.pool) == 0);
	cow_free(cfg.kept);
	return 0;
}
