// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A block frontend that breaks the rules, as a program in a guest of Xen: it connects to the
 * backend of a virtual disk that no driver has taken, and does what a driver never would.
 * What the backend answers is held against what the protocol says; that the backend lives on
 * is seen by an honest read after each breach. For tests/xenlab/ring-hostile.sh.
 *
 *   hostile DEVICE requests    malformed requests, each with the answer it must get
 *   hostile DEVICE readonly    what must not be done to a disk that is read-only
 *   hostile DEVICE indexes     the ring's indexes scribbled over
 *   hostile DEVICE setup       nonsense in xenstore before connecting, and after
 *   hostile DEVICE states N    N random values of the frontend's state
 *   hostile DEVICE rewrites N  the state written N times, always the same
 *   hostile DEVICE large       sectors of 4096 bytes, on a disk that shall have them
 *   hostile DEVICE race N      N requests that change while the backend looks at them
 *   hostile DEVICE storm S     events without requests for S seconds
 *   hostile DEVICE die         ends with a full ring
 *   hostile DEVICE unknown     state 0 while requests are under way: the disk is gone by that
 *
 * Sectors 0 to 7 are written to, by honest requests; with large, 24 to 31; with race, any.
 * Exit status 1: an answer was wrong or did not come; each is printed.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <xenevtchn.h>
#include <xengnttab.h>
#include <xenstore.h>

#include <xen/io/blkif.h>

#define RING 32u		/* entries of a page */
#define PAGE 4096u
#define PAGES 16u		/* of data */
#define ANSWER_MS 8000.0	/* emulated, on a busy machine */
#define NO_REF UINT32_MAX
#define OKAY (1u << 0)
#define ERROR (1u << 1)
#define NOTSUPP (1u << 2)
#define SILENCE 99		/* as a status: no answer came */
#define END (1ull << 40)	/* as a sector: the disk's size; END - 1 its last sector */

enum { INITIALISING = 1, INIT_WAIT = 2, INITIALISED = 3, CONNECTED = 4, CLOSING = 5, CLOSED = 6 };

struct front {
	struct xs_handle *xs;
	xengntshr_handle *share;
	xenevtchn_handle *events;
	char dir[32], back[128];
	uint32_t backend;
	blkif_sring_t *ring;
	uint32_t ring_ref;
	int port;
	uint32_t prod, cons;
	uint64_t sectors;
	uint8_t *data;
	uint32_t refs[PAGES];
	uint32_t read_only_ref, other_ref, revoked_ref;
};

static unsigned failures;
static uint64_t seed = 88172645463325252ull;

static uint32_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)(seed >> 16);
}

static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void nap(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "hostile: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void wrong(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void wrong(const char *fmt, ...)
{
	va_list ap;

	failures++;
	printf("wrong: ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
}

/* ---- xenstore ---- */

static long get_number(struct front *f, const char *dir, const char *key)
{
	char path[256], *text;
	long v = -1;

	snprintf(path, sizeof(path), "%s/%s", dir, key);
	text = xs_read(f->xs, XBT_NULL, path, NULL);
	if (text)
		v = atol(text);
	free(text);
	return v;
}

/* NULL: removes it. */
static void set(struct front *f, const char *key, const char *value)
{
	char path[64];

	snprintf(path, sizeof(path), "%s/%s", f->dir, key);
	if (value ? !xs_write(f->xs, XBT_NULL, path, value, (unsigned)strlen(value))
		  : !xs_rm(f->xs, XBT_NULL, path) && errno != ENOENT)
		die(path);
}

static void set_number(struct front *f, const char *key, uint64_t v)
{
	char text[24];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)v);
	set(f, key, text);
}

static bool wait_state(struct front *f, long from, long to)
{
	double end = now_ms() + ANSWER_MS;
	long state;

	do {
		state = get_number(f, f->back, "state");
		if (state >= from && state <= to)
			return true;
		nap();
	} while (now_ms() < end);
	return false;
}

/* ---- what is shared ---- */

static void *share(struct front *f, uint32_t domain, uint32_t n, uint32_t *refs, bool writable)
{
	void *p = xengntshr_share_pages(f->share, domain, (int)n, refs, writable);

	if (!p)
		die("sharing pages");
	return p;
}

static void open_front(struct front *f, const char *device)
{
	char *back;
	void *revoked;

	snprintf(f->dir, sizeof(f->dir), "device/vbd/%s", device);
	f->xs = xs_open(0);
	f->share = xengntshr_open(NULL, 0);
	f->events = xenevtchn_open(NULL, 0);
	if (!f->xs || !f->share || !f->events)
		die("xenstore, gntalloc or evtchn");
	f->backend = (uint32_t)get_number(f, f->dir, "backend-id");
	snprintf(f->back, sizeof(f->back), "%s/backend", f->dir);
	back = xs_read(f->xs, XBT_NULL, f->back, NULL);
	if (!back)
		die(f->back);
	snprintf(f->back, sizeof(f->back), "%s", back);
	free(back);
	f->ring = share(f, f->backend, 1, &f->ring_ref, true);
	f->data = share(f, f->backend, PAGES, f->refs, true);
	share(f, f->backend, 1, &f->read_only_ref, false);
	share(f, f->backend + 7, 1, &f->other_ref, true);
	revoked = share(f, f->backend, 1, &f->revoked_ref, true);
	xengntshr_unshare(f->share, revoked, 1);
	f->port = xenevtchn_bind_unbound_port(f->events, f->backend);
	if (f->port < 0)
		die("event channel");
}

/* ---- connecting ---- */

static void offer(struct front *f)
{
	memset(f->ring, 0, PAGE);
	f->ring->req_event = f->ring->rsp_event = 1;
	f->prod = f->cons = 0;
	set_number(f, "ring-ref", f->ring_ref);
	set_number(f, "event-channel", (uint64_t)f->port);
	set(f, "protocol", "x86_64-abi");
}

/* Back to the beginning, whatever was before. False: the backend does not come along. */
static bool reset(struct front *f)
{
	if (get_number(f, f->back, "state") == INIT_WAIT)
		return true;
	set_number(f, "state", CLOSING);
	if (!wait_state(f, CLOSING, CLOSED))
		return false;
	set_number(f, "state", CLOSED);
	if (!wait_state(f, CLOSED, CLOSED))
		return false;
	/* The backend let go of the event channel; it cannot be bound a second time. */
	xenevtchn_unbind(f->events, (uint32_t)f->port);
	f->port = xenevtchn_bind_unbound_port(f->events, f->backend);
	if (f->port < 0)
		die("event channel");
	set_number(f, "state", INITIALISING);
	return wait_state(f, INIT_WAIT, INIT_WAIT);
}

static void connect(struct front *f)
{
	if (!reset(f)) {
		wrong("the backend is not reset, its state is %ld", get_number(f, f->back, "state"));
		exit(1);
	}
	offer(f);
	set_number(f, "state", INITIALISED);
	if (!wait_state(f, CONNECTED, CONNECTED)) {
		wrong("an honest frontend is not connected");
		exit(1);
	}
	set_number(f, "state", CONNECTED);
	f->sectors = (uint64_t)get_number(f, f->back, "sectors");
}

/* ---- requests ---- */

static blkif_request_t *put(struct front *f)
{
	blkif_request_t *r = &f->ring->ring[f->prod++ & (RING - 1)].req;

	memset(r, 0, sizeof(*r));
	return r;
}

static void publish(struct front *f)
{
	atomic_thread_fence(memory_order_release);
	*(volatile uint32_t *)&f->ring->req_prod = f->prod;
	atomic_thread_fence(memory_order_seq_cst);
	xenevtchn_notify(f->events, (uint32_t)f->port);
}

/* The next answer's status; SILENCE when none comes in time. */
static int take(struct front *f, uint64_t *ret_id, double ms)
{
	double end = now_ms() + ms;
	blkif_response_t *a;

	while (*(volatile uint32_t *)&f->ring->rsp_prod == f->cons) {
		if (now_ms() > end)
			return SILENCE;
		nap();
	}
	atomic_thread_fence(memory_order_acquire);
	a = &f->ring->ring[f->cons++ & (RING - 1)].rsp;
	*ret_id = a->id;
	return a->status;
}

static unsigned as_mask(int status)
{
	switch (status) {
	case BLKIF_RSP_OKAY: return OKAY;
	case BLKIF_RSP_ERROR: return ERROR;
	case BLKIF_RSP_EOPNOTSUPP: return NOTSUPP;
	default: return 0;
	}
}

static void expect(struct front *f, const char *name, uint64_t id, unsigned wanted)
{
	uint64_t got_id = 0;
	int status = take(f, &got_id, ANSWER_MS);

	if (status == SILENCE)
		wrong("%s: no answer", name);
	else if (got_id != id)
		wrong("%s: the answer is to request %llx", name, (unsigned long long)got_id);
	else if (!(as_mask(status) & wanted))
		wrong("%s: answered %d", name, status);
}

static uint64_t place(const struct front *f, uint64_t sector)
{
	return sector > END / 2 && sector < END * 2 ? f->sectors + (sector - END) : sector;
}

static blkif_request_t *put_data(struct front *f, uint8_t op, uint8_t n, uint32_t ref, uint64_t id,
				 uint64_t sector)
{
	blkif_request_t *r = put(f);

	r->operation = op;
	r->nr_segments = n;
	r->id = id;
	r->sector_number = place(f, sector);
	for (unsigned i = 0; i < n && i < BLKIF_MAX_SEGMENTS_PER_REQUEST; i++)
		r->seg[i] = (struct blkif_request_segment){ .gref = ref, .last_sect = 7 };
	return r;
}

/* Does the backend still serve? Sectors 0 to 7 hold what was written to them. */
static void honest(struct front *f, const char *after, bool may_write)
{
	static uint8_t mark;

	if (may_write) {
		memset(f->data, ++mark, PAGE);
		put_data(f, BLKIF_OP_WRITE, 1, f->refs[0], 1, 0);
		publish(f);
		expect(f, after, 1, OKAY);
		memset(f->data, 0, PAGE);
	}
	put_data(f, BLKIF_OP_READ, 1, f->refs[0], 2, 0);
	publish(f);
	expect(f, after, 2, OKAY);
	for (unsigned i = 0; may_write && i < PAGE; i++) {
		if (f->data[i] == mark)
			continue;
		wrong("%s: an honest read gives %02x instead of %02x", after, f->data[i], mark);
		return;
	}
}

/* ---- requests, row by row ---- */

enum ref { GOOD, UNUSED, HIGHEST, REVOKED, READ_ONLY, ANOTHERS };

static const struct row {
	const char *name;
	uint8_t op, n;
	enum ref ref;
	uint8_t first, last;
	uint64_t sector;
	unsigned wanted;
} rows[] = {
	{ "read", BLKIF_OP_READ, 1, GOOD, 0, 7, 0, OKAY },
	{ "read of 11 segments in one page", BLKIF_OP_READ, 11, GOOD, 0, 7, 0, OKAY },
	{ "read of the last sector", BLKIF_OP_READ, 1, GOOD, 7, 7, END - 1, OKAY },
	{ "read without segments", BLKIF_OP_READ, 0, GOOD, 0, 7, 0, ERROR },
	{ "read of 12 segments", BLKIF_OP_READ, 12, GOOD, 0, 7, 0, ERROR },
	{ "read of 255 segments", BLKIF_OP_READ, 255, GOOD, 0, 7, 0, ERROR },
	{ "write without segments", BLKIF_OP_WRITE, 0, GOOD, 0, 7, 8, ERROR },
	{ "write of 12 segments", BLKIF_OP_WRITE, 12, GOOD, 0, 7, 8, ERROR },
	{ "write of 255 segments", BLKIF_OP_WRITE, 255, GOOD, 0, 7, 8, ERROR },
	{ "first behind last", BLKIF_OP_WRITE, 1, GOOD, 5, 4, 8, ERROR },
	{ "last sector 8", BLKIF_OP_WRITE, 1, GOOD, 0, 8, 8, ERROR },
	{ "last sector 255", BLKIF_OP_READ, 1, GOOD, 0, 255, 8, ERROR },
	{ "first sector 255", BLKIF_OP_READ, 1, GOOD, 255, 255, 8, ERROR },
	{ "read over the end", BLKIF_OP_READ, 1, GOOD, 0, 7, END - 7, ERROR },
	{ "write over the end", BLKIF_OP_WRITE, 1, GOOD, 0, 7, END - 7, ERROR },
	{ "write at the end", BLKIF_OP_WRITE, 1, GOOD, 0, 0, END, ERROR },
	{ "sector 2^64 - 1", BLKIF_OP_WRITE, 1, GOOD, 0, 0, UINT64_MAX, ERROR },
	{ "sectors around 2^64", BLKIF_OP_WRITE, 1, GOOD, 0, 7, UINT64_MAX - 3, ERROR },
	{ "sector 2^55, whose byte is 2^64", BLKIF_OP_WRITE, 1, GOOD, 0, 7, 1ull << 55, ERROR },
	{ "read to a grant that is none", BLKIF_OP_READ, 1, UNUSED, 0, 7, 0, ERROR },
	{ "write from a grant that is none", BLKIF_OP_WRITE, 1, UNUSED, 0, 7, 8, ERROR },
	{ "write from grant 2^32 - 1", BLKIF_OP_WRITE, 1, HIGHEST, 0, 7, 8, ERROR },
	{ "read to a revoked grant", BLKIF_OP_READ, 1, REVOKED, 0, 7, 0, ERROR },
	{ "read to a read-only grant", BLKIF_OP_READ, 1, READ_ONLY, 0, 7, 0, ERROR },
	{ "read to another domain's grant", BLKIF_OP_READ, 1, ANOTHERS, 0, 7, 0, ERROR },
	{ "write from another domain's grant", BLKIF_OP_WRITE, 1, ANOTHERS, 0, 7, 8, ERROR },
	{ "flush", BLKIF_OP_FLUSH_DISKCACHE, 0, GOOD, 0, 0, 0, OKAY },
	{ "flush of 12 segments", BLKIF_OP_FLUSH_DISKCACHE, 12, GOOD, 0, 7, 8, ERROR },
	{ "flush over the end", BLKIF_OP_FLUSH_DISKCACHE, 1, GOOD, 0, 7, END, ERROR },
	{ "barrier over the end", BLKIF_OP_WRITE_BARRIER, 1, GOOD, 0, 7, END, ERROR },
};

static uint32_t ref_of(const struct front *f, enum ref ref)
{
	switch (ref) {
	case UNUSED: return 3000;
	case HIGHEST: return NO_REF;
	case REVOKED: return f->revoked_ref;
	case READ_ONLY: return f->read_only_ref;
	case ANOTHERS: return f->other_ref;
	default: return f->refs[1];
	}
}

static void one_row(struct front *f, const struct row *row)
{
	blkif_request_t *r = put_data(f, row->op, row->n, ref_of(f, row->ref), 77, row->sector);

	for (unsigned i = 0; i < BLKIF_MAX_SEGMENTS_PER_REQUEST; i++) {
		r->seg[i].first_sect = row->first;
		r->seg[i].last_sect = row->last;
	}
	publish(f);
	expect(f, row->name, 77, row->wanted);
}

static void operations(struct front *f)
{
	char name[32];

	for (unsigned op = 0; op < 256; op++) {
		if (op <= BLKIF_OP_FLUSH_DISKCACHE || op == BLKIF_OP_DISCARD || op == BLKIF_OP_INDIRECT)
			continue;
		snprintf(name, sizeof(name), "operation %u", op);
		put_data(f, (uint8_t)op, 1, f->refs[1], op, 8);
		publish(f);
		expect(f, name, op, NOTSUPP);
	}
}

static void discards(struct front *f)
{
	static const struct {
		const char *name;
		uint8_t flag;
		uint64_t sector, count;
		unsigned wanted;
	} discard[] = {
		{ "discard of nothing", 0, 0, 0, ERROR },
		{ "discard at the end", 0, END, 1, ERROR },
		{ "discard over the end", 0, END - 8, 9, ERROR },
		{ "discard of 2^64 - 1 sectors", 0, 0, UINT64_MAX, ERROR },
		{ "discard of 2^55 sectors", 0, 0, 1ull << 55, ERROR },
		{ "discard around 2^64", 0, UINT64_MAX, 2, ERROR },
		{ "secure discard that was not offered", BLKIF_DISCARD_SECURE, 0, 8, NOTSUPP },
		{ "odd discard", 0, 1, 3, OKAY },
	};

	for (unsigned i = 0; i < sizeof(discard) / sizeof(*discard); i++) {
		blkif_request_discard_t *d = (blkif_request_discard_t *)put(f);

		d->operation = BLKIF_OP_DISCARD;
		d->flag = discard[i].flag;
		d->id = 78;
		d->sector_number = place(f, discard[i].sector);
		d->nr_sectors = discard[i].count;
		publish(f);
		expect(f, discard[i].name, 78, discard[i].wanted);
	}
}

static void indirect(struct front *f)
{
	static const struct {
		const char *name;
		uint8_t op;
		uint16_t n;
		enum ref page, ref;
		uint8_t last;
		uint64_t sector;
		unsigned wanted;
	} row[] = {
		{ "indirect read", BLKIF_OP_READ, 20, GOOD, GOOD, 7, 0, OKAY },
		{ "indirect read of 256 segments", BLKIF_OP_READ, 256, GOOD, GOOD, 0, 0, OKAY },
		{ "indirect without segments", BLKIF_OP_READ, 0, GOOD, GOOD, 7, 0, ERROR },
		{ "indirect of 257 segments", BLKIF_OP_READ, 257, GOOD, GOOD, 0, 0, ERROR },
		{ "indirect of 65535 segments", BLKIF_OP_WRITE, 65535, GOOD, GOOD, 0, 8, ERROR },
		{ "indirect in indirect", BLKIF_OP_INDIRECT, 8, GOOD, GOOD, 7, 8, ERROR },
		{ "indirect flush", BLKIF_OP_FLUSH_DISKCACHE, 8, GOOD, GOOD, 7, 8, ERROR },
		{ "indirect discard", BLKIF_OP_DISCARD, 8, GOOD, GOOD, 7, 8, ERROR },
		{ "indirect operation 200", 200, 8, GOOD, GOOD, 7, 8, ERROR },
		{ "indirect page not granted", BLKIF_OP_WRITE, 8, UNUSED, GOOD, 7, 8, ERROR },
		{ "indirect page of another", BLKIF_OP_WRITE, 8, ANOTHERS, GOOD, 7, 8, ERROR },
		{ "indirect segment not granted", BLKIF_OP_WRITE, 8, GOOD, UNUSED, 7, 8, ERROR },
		{ "indirect last sector 8", BLKIF_OP_WRITE, 8, GOOD, GOOD, 8, 8, ERROR },
		{ "indirect write over the end", BLKIF_OP_WRITE, 8, GOOD, GOOD, 7, END - 63, ERROR },
	};

	for (unsigned i = 0; i < sizeof(row) / sizeof(*row); i++) {
		blkif_request_indirect_t *r = (blkif_request_indirect_t *)put(f);
		struct blkif_request_segment *segs = (void *)(f->data + 2 * PAGE);

		for (unsigned k = 0; k < PAGE / sizeof(*segs); k++)
			segs[k] = (struct blkif_request_segment){ .gref = ref_of(f, row[i].ref),
								  .last_sect = row[i].last };
		r->operation = BLKIF_OP_INDIRECT;
		r->indirect_op = row[i].op;
		r->nr_segments = row[i].n;
		r->id = 79;
		r->sector_number = place(f, row[i].sector);
		r->indirect_grefs[0] = row[i].page == GOOD ? f->refs[2] : ref_of(f, row[i].page);
		publish(f);
		expect(f, row[i].name, 79, row[i].wanted);
	}
}

static void ids(struct front *f)
{
	for (unsigned i = 0; i < RING; i++)
		put_data(f, BLKIF_OP_READ, 1, f->refs[1], 7, 0);
	publish(f);
	for (unsigned i = 0; i < RING; i++)
		expect(f, "one of 32 requests of one number", 7, OKAY);
	put_data(f, BLKIF_OP_READ, 1, f->refs[1], UINT64_MAX, 0)->handle = 65535;
	publish(f);
	expect(f, "number 2^64 - 1, handle 65535", UINT64_MAX, OKAY);
}

static void requests(struct front *f)
{
	memset(f->data + PAGE, 0xee, PAGE);
	for (unsigned i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
		one_row(f, &rows[i]);
		/* What reads left in it must not look like what bad writes would write. */
		memset(f->data + PAGE, 0xee, PAGE);
	}
	operations(f);
	discards(f);
	honest(f, "honest request after discards", true);
	indirect(f);
	ids(f);
	honest(f, "honest request after malformed ones", true);
}

static void read_only(struct front *f)
{
	static const struct row row[] = {
		{ "write", BLKIF_OP_WRITE, 1, GOOD, 0, 7, 0, ERROR },
		{ "flush with data", BLKIF_OP_FLUSH_DISKCACHE, 1, GOOD, 0, 7, 0, ERROR },
		{ "barrier with data", BLKIF_OP_WRITE_BARRIER, 1, GOOD, 0, 7, 0, ERROR | NOTSUPP },
	};
	blkif_request_discard_t *d;
	blkif_request_indirect_t *r;

	for (unsigned i = 0; i < sizeof(row) / sizeof(*row); i++)
		one_row(f, &row[i]);
	d = (blkif_request_discard_t *)put(f);
	*d = (blkif_request_discard_t){ .operation = BLKIF_OP_DISCARD, .id = 78, .nr_sectors = 8 };
	publish(f);
	expect(f, "discard", 78, ERROR | NOTSUPP);
	r = (blkif_request_indirect_t *)put(f);
	*r = (blkif_request_indirect_t){ .operation = BLKIF_OP_INDIRECT, .indirect_op = BLKIF_OP_WRITE,
					 .nr_segments = 1, .id = 79, .indirect_grefs = { f->refs[2] } };
	*(struct blkif_request_segment *)(void *)(f->data + 2 * PAGE) =
		(struct blkif_request_segment){ .gref = f->refs[1], .last_sect = 7 };
	publish(f);
	expect(f, "indirect write", 79, ERROR);
	honest(f, "honest read", false);
}

/* ---- the ring's indexes ---- */

static void indexes(struct front *f)
{
	static const struct { const char *name; uint32_t by; } jump[] = {
		{ "requests up to 33 further", RING + 1 }, { "requests backwards", UINT32_MAX },
		{ "requests 2^31 further", 1u << 31 }, { "requests 2^31 - 1 further", INT32_MAX },
	};
	volatile blkif_sring_t *ring = f->ring;
	uint64_t id;

	for (unsigned i = 0; i < 8; i++) {
		ring->rsp_event = rnd();
		ring->req_event = rnd();
		honest(f, "honest request, both events scribbled over", true);
	}
	/* Answers go where the backend knows they must, not where the guest says. */
	ring->rsp_prod = 12345;
	put_data(f, BLKIF_OP_READ, 1, f->refs[0], 5, 0);
	publish(f);
	for (double end = now_ms() + ANSWER_MS; ring->rsp_prod == 12345 && now_ms() < end;)
		nap();
	expect(f, "request with the answers' index scribbled over", 5, OKAY);
	for (unsigned i = 0; i < sizeof(jump) / sizeof(*jump); i++) {
		connect(f);
		honest(f, "honest request before a jump", true);
		ring->req_prod = f->prod + jump[i].by;
		xenevtchn_notify(f->events, (uint32_t)f->port);
		if (take(f, &id, 500) != SILENCE)
			wrong("%s: there was an answer", jump[i].name);
		connect(f);
		honest(f, jump[i].name, true);
	}
}

/* ---- nonsense in xenstore ---- */

static void refused(struct front *f, const char *name)
{
	set_number(f, "state", INITIALISED);
	if (!wait_state(f, CONNECTED, CLOSED) || get_number(f, f->back, "state") == CONNECTED)
		wrong("%s: the backend's state is %ld", name, get_number(f, f->back, "state"));
}

static void setup(struct front *f)
{
	static char huge[2000];
	static const struct { const char *key, *value; } row[] = {
		{ "ring-ref", "4294967295" }, { "ring-ref", "4294967296" }, { "ring-ref", "-1" },
		{ "ring-ref", "0x8" }, { "ring-ref", "8 " }, { "ring-ref", "" }, { "ring-ref", NULL },
		{ "ring-ref", huge }, { "ring-ref", "3000" },
		{ "event-channel", "0" }, { "event-channel", "4294967295" }, { "event-channel", "no" },
		{ "event-channel", "" }, { "event-channel", NULL }, { "event-channel", "1" },
		{ "protocol", "x86_65-abi" }, { "protocol", "" }, { "protocol", huge },
		{ "ring-page-order", "5" }, { "ring-page-order", "17" }, { "ring-page-order", "-1" },
		{ "ring-page-order", "1" }, { "ring-page-order", "4294967297" },
		{ "multi-queue-num-queues", "0" }, { "multi-queue-num-queues", "2" },
		{ "multi-queue-num-queues", "1025" }, { "multi-queue-num-queues", "x" },
	};
	char name[128];
	uint32_t good = f->ring_ref;

	memset(huge, '7', sizeof(huge) - 1);
	for (unsigned i = 0; i < sizeof(row) / sizeof(*row); i++) {
		snprintf(name, sizeof(name), "%s = %.20s", row[i].key, row[i].value ? row[i].value : "(none)");
		if (!reset(f))
			wrong("%s: no reset before it", name);
		offer(f);
		set(f, row[i].key, row[i].value);
		refused(f, name);
		set(f, "ring-page-order", NULL);
		set(f, "multi-queue-num-queues", NULL);
	}
	f->ring_ref = f->read_only_ref;
	if (!reset(f))
		wrong("no reset before a read-only ring");
	offer(f);
	refused(f, "a ring that is granted read-only");
	f->ring_ref = good;
	connect(f);
	set_number(f, "ring-ref", f->refs[3]);
	set_number(f, "event-channel", 1);
	honest(f, "another ring in xenstore after connecting", true);
	connect(f);
	honest(f, "honest request after nonsense in xenstore", true);
}

static void states(struct front *f, unsigned long n)
{
	static const char *const value[] = { "1", "2", "3", "4", "5", "6", "7", "8", "9", "-1",
					     "", "junk", "18446744073709551617", "4 " };

	for (unsigned long i = 0; i < n; i++) {
		/* Often with a ring that may be connected to, or is changed while it is. */
		if (rnd() % 4 == 0)
			set_number(f, "ring-ref", rnd() % 2 ? f->ring_ref : rnd());
		if (rnd() % 16 == 0)
			publish(f);
		set(f, "state", value[rnd() % (sizeof(value) / sizeof(*value))]);
	}
	/* It may be about to see any of them: be honest once it has seen the last one. */
	set_number(f, "state", CLOSING);
	wait_state(f, CLOSING, CLOSED);
	connect(f);
	honest(f, "honest request after all states", true);
}

/* Each makes an event for the backend, of which none means anything. */
static void rewrites(struct front *f, unsigned long n)
{
	for (unsigned long i = 0; i < n; i++)
		set_number(f, "state", CONNECTED);
	honest(f, "honest request after the state was written again and again", true);
}

/* ---- larger sectors ---- */

static blkif_request_t *put_large(struct front *f, uint8_t op, uint64_t id, uint64_t sector)
{
	blkif_request_t *r = put_data(f, op, 1, f->refs[0], id, sector);

	r->seg[0].last_sect = 0;
	return r;
}

static void large(struct front *f)
{
	uint64_t small = f->sectors;

	if (get_number(f, f->back, "sector-size") != 512)
		wrong("sectors are not of 512 bytes for a frontend that did not ask");
	set(f, "feature-large-sector-size", "1");
	connect(f);
	if (get_number(f, f->back, "sector-size") != 4096 || f->sectors * 8 != small)
		wrong("%llu sectors of %ld bytes", (unsigned long long)f->sectors,
		      get_number(f, f->back, "sector-size"));
	memset(f->data, 0xa7, PAGE);
	put_large(f, BLKIF_OP_WRITE, 1, 3);
	publish(f);
	expect(f, "write of a large sector", 1, OKAY);
	put_large(f, BLKIF_OP_READ, 2, END - 1);
	publish(f);
	expect(f, "read of the last large sector", 2, OKAY);
	put_large(f, BLKIF_OP_READ, 3, END);
	publish(f);
	expect(f, "read behind the last large sector", 3, ERROR);
	put_data(f, BLKIF_OP_WRITE, 1, f->refs[0], 4, 3);
	publish(f);
	expect(f, "write of eight large sectors from a page", 4, ERROR);
	/* The same bytes lie where small sectors say. */
	set(f, "feature-large-sector-size", NULL);
	connect(f);
	memset(f->data, 0, PAGE);
	put_data(f, BLKIF_OP_READ, 1, f->refs[0], 5, 3 * 8);
	publish(f);
	expect(f, "read of small sectors", 5, OKAY);
	for (unsigned i = 0; i < PAGE; i++)
		if (f->data[i] != 0xa7) {
			wrong("byte %u of the large sector is %02x", i, f->data[i]);
			break;
		}
}

/* ---- requests that change ---- */

static atomic_bool race_on;

static void flip_request(struct front *f, uint64_t *s)
{
	volatile blkif_request_t *r = &f->ring->ring[*s >> 8 & (RING - 1)].req;

	switch (*s >> 16 & 7) {
	case 0: r->operation = (uint8_t)(*s >> 24 & 7); break;
	case 1: r->nr_segments = (uint8_t)(*s >> 24); break;
	case 2: r->sector_number = *s >> 24; break;
	case 3: r->seg[*s >> 24 & 7].first_sect = (uint8_t)(*s >> 32); break;
	case 4: r->seg[*s >> 24 & 7].last_sect = (uint8_t)(*s >> 32); break;
	case 5: r->seg[*s >> 24 & 7].gref = *s >> 32 & 1 ? NO_REF : f->refs[*s >> 33 & 7]; break;
	case 6: r->id = *s; break;
	default: ((volatile struct blkif_request_segment *)(void *)(f->data + 2 * PAGE))
			 [*s >> 24 & 255].last_sect = (uint8_t)(*s >> 32);
	}
}

static void *racer(void *arg)
{
	struct front *f = arg;
	uint64_t s = 362436069362436069ull;

	while (atomic_load(&race_on)) {
		for (unsigned i = 0; i < 1000; i++) {
			s ^= s << 13;
			s ^= s >> 7;
			s ^= s << 17;
			flip_request(f, &s);
		}
		sched_yield();
	}
	return NULL;
}

static void race_request(struct front *f)
{
	blkif_request_indirect_t *r;

	if (rnd() % 4) {
		put_data(f, rnd() % 2, (uint8_t)(1 + rnd() % 11), f->refs[rnd() % 8], rnd(),
			 rnd() % f->sectors);
		return;
	}
	r = (blkif_request_indirect_t *)put(f);
	r->operation = BLKIF_OP_INDIRECT;
	r->indirect_op = rnd() % 2;
	r->nr_segments = (uint16_t)(1 + rnd() % 64);
	r->sector_number = rnd() % f->sectors;
	r->indirect_grefs[0] = f->refs[2];
}

/* Every request taken gets one answer, whatever it was when it was taken. */
static void race(struct front *f, unsigned long n)
{
	struct blkif_request_segment *segs = (void *)(f->data + 2 * PAGE);
	pthread_t thread;
	uint64_t id;

	for (unsigned i = 0; i < PAGE / sizeof(*segs); i++)
		segs[i] = (struct blkif_request_segment){ .gref = f->refs[3 + i % 8], .last_sect = 7 };
	atomic_store(&race_on, true);
	if (pthread_create(&thread, NULL, racer, f))
		die("thread");
	for (unsigned long done = 0; done < n; done += RING) {
		for (unsigned i = 0; i < RING; i++)
			race_request(f);
		publish(f);
		for (unsigned i = 0; i < RING; i++) {
			if (take(f, &id, ANSWER_MS) != SILENCE)
				continue;
			wrong("racing: no answer to request %lu", done + i);
			done = n;
			break;
		}
	}
	atomic_store(&race_on, false);
	pthread_join(thread, NULL);
	connect(f);
	honest(f, "honest request after racing", true);
}

/* ---- the rest ---- */

static void storm(struct front *f, unsigned long seconds)
{
	double end = now_ms() + (double)seconds * 1e3;
	unsigned long kicks = 0;

	for (; now_ms() < end; kicks++)
		xenevtchn_notify(f->events, (uint32_t)f->port);
	honest(f, "honest request after a storm of events", true);
	printf("%lu events in %lu s\n", kicks, seconds);
}

static void full_ring(struct front *f)
{
	for (unsigned i = 0; i < RING; i++)
		put_data(f, i % 2, i % 2 ? 1 : 11, f->refs[i % 8], i, 0);
	publish(f);
}

/* Unknown: blkback too gives up a disk whose frontend says so. */
static void unknown(struct front *f)
{
	double end = now_ms() + ANSWER_MS;

	full_ring(f);
	set_number(f, "state", 0);
	while (get_number(f, f->back, "state") != -1 && now_ms() < end)
		nap();
	if (get_number(f, f->back, "state") != -1)
		wrong("the disk is still there");
}

int main(int argc, char **argv)
{
	struct front *f = calloc(1, sizeof(*f));
	const char *what = argc > 2 ? argv[2] : "";
	unsigned long n = argc > 3 ? strtoul(argv[3], NULL, 10) : 0;

	if (!f || argc < 3 || argc > 4) {
		fprintf(stderr, "usage: hostile DEVICE WHAT [N]\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	open_front(f, argv[1]);
	connect(f);
	if (!strcmp(what, "requests"))
		requests(f);
	else if (!strcmp(what, "readonly"))
		read_only(f);
	else if (!strcmp(what, "indexes"))
		indexes(f);
	else if (!strcmp(what, "setup"))
		setup(f);
	else if (!strcmp(what, "states"))
		states(f, n);
	else if (!strcmp(what, "rewrites"))
		rewrites(f, n);
	else if (!strcmp(what, "large"))
		large(f);
	else if (!strcmp(what, "race"))
		race(f, n);
	else if (!strcmp(what, "storm"))
		storm(f, n);
	else if (!strcmp(what, "die"))
		full_ring(f);
	else if (!strcmp(what, "unknown"))
		unknown(f);
	else
		return 2;
	if (strcmp(what, "die") && strcmp(what, "unknown") && !reset(f))
		wrong("the backend is not reset at the end");
	printf("%u wrong\n", failures);
	return failures ? 1 : 0;
}
