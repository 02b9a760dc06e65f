// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Requests of a Xen guest (see xen-ring.h). A slot for each entry of the ring; one with a
 * request is in one of these lists, or in the device's hands:
 *
 *	fresh		copied and checked; an indirect one has no segments yet
 *	waiting		in the order taken, for a buffer, or for a barrier
 *	copying		a write whose data is to be copied from the guest
 *	ready		for its next step on the device
 *	finished	for its answer; a read's data is to be copied to the guest before
 *
 * The device calls back from anywhere; all else happens in xen_ring_run(), stage by stage
 * for all requests at hand, so that copies, answers and notifications go in batches.
 *
 * A barrier is begun when nothing before it is under way, and nothing behind it is begun
 * before it is finished.
 *
 * What is kept for the next process. A request counts as taken from the moment that
 * kept->taken is behind it, and as answered from the moment that kept->answered is behind
 * its answer. A process can be killed between any two stores; whichever those are, a slot
 * can be told apart: taken, its index is below kept->taken; answered, its answer's index is
 * below kept->answered. The answer itself is in the ring by then, where the guest does not
 * look before rsp_prod says so, and the next process says it again. To carry a request
 * out twice is right, as none of the operations depends on what was there before, and no
 * guest may rely on an order between what was not answered.
 */
#include "xen-ring.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>

#include "cow/log.h"

#define BUDGET 64u			/* requests taken in one run */
#define BATCH 512u			/* copies at a time; at least those of one request */
#define DISCARD_BYTES (256u << 20)	/* at a time: one takes the thread for a moment */

static_assert(BATCH >= XEN_RING_SEGS_MAX, "a request's copies fit in a batch");
static_assert(XEN_RING_SEGS_MAX <= XEN_PAGE_SEGS, "its segments fit in one page");
static_assert(sizeof(struct xen_seg) == 8, "segments are copied as they are");

/* Of struct xen_kept_slot; the numbers are read by another process. */
enum kept_state { KEPT_FREE = 0, KEPT_TAKEN = 1, KEPT_ANSWERED = 2 };

struct slot {
	struct cow_req req;
	struct xen_ring *ring;
	struct cow_list node;
	uint64_t id;
	uint8_t op;			/* to be carried out and answered: of an indirect one that behind it */
	bool indirect;
	bool flush;			/* still to be done, before the rest */
	bool begun;
	uint64_t at, left;		/* of the device: where the rest begins, and its bytes */
	int result;			/* 0 or -errno */
	uint16_t n_segs;
	uint32_t bytes;			/* of @buf */
	void *buf;
	struct xen_seg *segs;
};

struct xen_ring {
	struct xen_ring_cfg cfg;
	const struct xen_layout *layout;
	uint8_t *shared;
	unsigned entries;
	uint32_t taken, answered;	/* indexes as in struct xen_kept */
	uint32_t published;		/* the last rsp_prod of ours */
	bool publish_again;		/* nobody knows whether the guest was notified */
	bool dead, stopped;
	bool barrier;			/* one is under way */
	unsigned begun;			/* slots */
	unsigned inflight;		/* in the device's hands */
	struct cow_list free, fresh, waiting, copying, ready, finished;
	struct xen_ring_stats stats;
	struct xen_copy batch[BATCH];
	struct xen_seg *segs;		/* of all slots */
	struct slot slots[];
};

#define LAYOUT_64(name) { name, 112, 16, 8, 16, 24, 24, 28 }

const struct xen_layout xen_layouts[XEN_ABIS] = {
	[XEN_ABI_X86_32] = { "x86_32-abi", 108, 12, 4, 12, 20, 20, 24 },
	[XEN_ABI_X86_64] = LAYOUT_64("x86_64-abi"),
	[XEN_ABI_ARM] = LAYOUT_64("arm-abi"),
};

/* ---- shared memory: all that reads or writes it is here ---- */

static uint32_t shared_get(const struct xen_ring *r, unsigned offset)
{
	const volatile uint32_t *p = (const volatile uint32_t *)(r->shared + offset);
	uint32_t v = *p;

	atomic_thread_fence(memory_order_acquire);
	return v;
}

static void shared_set(struct xen_ring *r, unsigned offset, uint32_t v)
{
	volatile uint32_t *p = (volatile uint32_t *)(r->shared + offset);

	atomic_thread_fence(memory_order_release);
	*p = v;
	/* What is looked at next must not have been looked at before. */
	atomic_thread_fence(memory_order_seq_cst);
}

static volatile uint32_t *entry(struct xen_ring *r, uint32_t index)
{
	return (volatile uint32_t *)(r->shared + XEN_RING_ENTRIES +
				     (size_t)(index & (r->entries - 1)) * r->layout->entry);
}

/* Each word once: the guest may change it while we look. */
static void ring_copy_request(struct xen_ring *r, uint32_t index, uint8_t raw[XEN_ENTRY_MAX])
{
	const volatile uint32_t *from = entry(r, index);

	for (unsigned i = 0; i < r->layout->entry / sizeof(*from); i++) {
		uint32_t word = from[i];

		memcpy(raw + i * sizeof(word), &word, sizeof(word));
	}
}

static void ring_put_response(struct xen_ring *r, uint32_t index, const uint32_t *response)
{
	volatile uint32_t *to = entry(r, index);

	for (unsigned i = 0; i < r->layout->response / sizeof(*to); i++)
		to[i] = response[i];
}

/* ---- what is kept ---- */

static struct xen_kept_slot *kept_of(struct slot *s)
{
	return &s->ring->cfg.kept->slots[s - s->ring->slots];
}

/* A kill comes between two instructions: order of the stores is all that is needed. */
static void keep(uint32_t *where, uint32_t v)
{
	atomic_thread_fence(memory_order_release);
	*(volatile uint32_t *)where = v;
	atomic_signal_fence(memory_order_seq_cst);
}

static void keep_taken(struct slot *s)
{
	struct xen_ring *r = s->ring;
	struct xen_kept_slot *k = kept_of(s);

	k->index = r->taken;
	keep(&k->state, KEPT_TAKEN);
	keep(&r->cfg.kept->taken, ++r->taken);
}

static void keep_answered(struct slot *s)
{
	struct xen_ring *r = s->ring;
	struct xen_kept_slot *k = kept_of(s);

	k->answer = r->answered;
	keep(&k->state, KEPT_ANSWERED);
	keep(&r->cfg.kept->answered, ++r->answered);
	keep(&k->state, KEPT_FREE);
}

/* Is index @a before @b? They are never far apart. */
static bool before(uint32_t a, uint32_t b)
{
	return (int32_t)(a - b) < 0;
}

static bool is_open(const struct xen_kept *kept, const struct xen_kept_slot *k)
{
	if (k->state == KEPT_FREE || !before(k->index, kept->taken))
		return false;
	return k->state == KEPT_TAKEN || !before(k->answer, kept->answered);
}

unsigned xen_ring_entries(enum xen_abi abi, unsigned pages)
{
	unsigned n = (pages * XEN_PAGE - XEN_RING_ENTRIES) / xen_layouts[abi].entry, entries = 1;

	while (entries * 2 <= n)
		entries *= 2;
	return entries;
}

size_t xen_kept_bytes(unsigned entries)
{
	return sizeof(struct xen_kept) + entries * sizeof(struct xen_kept_slot);
}

/* ---- what a request says ---- */

static uint64_t field64(const uint8_t *raw, unsigned offset)
{
	uint64_t v;

	memcpy(&v, raw + offset, sizeof(v));
	return v;
}

static uint16_t field16(const uint8_t *raw, unsigned offset)
{
	uint16_t v;

	memcpy(&v, raw + offset, sizeof(v));
	return v;
}

/* Is [sector, sector + n) on the device? Then its place in bytes. */
static bool place(const struct xen_ring *r, uint64_t sector, uint64_t n, struct slot *s)
{
	uint64_t at, bytes, end;

	if (!n || !cow_mul_ok(sector, r->cfg.sector, &at) || !cow_mul_ok(n, r->cfg.sector, &bytes) ||
	    !cow_add_ok(at, bytes, &end) || end > cow_dev_size(r->cfg.dev))
		return false;
	s->at = at;
	s->left = bytes;
	return true;
}

/* The segments are there: do they make sense? Then s->bytes, and the place on the device. */
static int check_segs(struct slot *s, uint64_t sector)
{
	unsigned in_page = XEN_PAGE / s->ring->cfg.sector;
	uint64_t sectors = 0;

	for (unsigned i = 0; i < s->n_segs; i++) {
		const struct xen_seg *seg = &s->segs[i];

		if (seg->first > seg->last || seg->last >= in_page)
			return -EINVAL;
		sectors += (uint64_t)seg->last - seg->first + 1;
	}
	if (!place(s->ring, sector, sectors, s))
		return -EINVAL;
	s->bytes = (uint32_t)(sectors * s->ring->cfg.sector);
	return 0;
}

static int parse_discard(struct slot *s, const uint8_t *raw)
{
	const struct xen_layout *l = s->ring->layout;

	/* A hole says nothing about what was there: nobody shall believe that it is gone. */
	if (!s->ring->cfg.discard || (raw[1] & XEN_DISCARD_SECURE))
		return -EOPNOTSUPP;
	if (s->ring->cfg.read_only)
		return -EROFS;
	return place(s->ring, field64(raw, l->sector), field64(raw, l->discard_count), s) ? 0
											  : -EINVAL;
}

/* The segments' page is fetched with those of other requests. */
static int parse_indirect(struct slot *s, const uint8_t *raw)
{
	s->indirect = true;
	s->op = raw[1];
	s->n_segs = field16(raw, 2);
	if ((s->op != XEN_OP_READ && s->op != XEN_OP_WRITE) || !s->n_segs ||
	    s->n_segs > XEN_RING_SEGS_MAX)
		return -EINVAL;
	return s->op == XEN_OP_WRITE && s->ring->cfg.read_only ? -EROFS : 0;
}

static int parse_data(struct slot *s, const uint8_t *raw)
{
	const struct xen_layout *l = s->ring->layout;
	bool may_be_empty = s->op == XEN_OP_FLUSH || s->op == XEN_OP_BARRIER;

	s->n_segs = raw[1];
	s->flush = may_be_empty;
	if (s->n_segs > XEN_SEGS || (!s->n_segs && !may_be_empty))
		return -EINVAL;
	if (!s->n_segs)
		return 0;
	if (s->op != XEN_OP_READ && s->ring->cfg.read_only)
		return -EROFS;
	memcpy(s->segs, raw + l->segs, s->n_segs * sizeof(s->segs[0]));
	return check_segs(s, field64(raw, l->sector));
}

/* Fills @s from the copy that is kept. 0; -EOPNOTSUPP, -EROFS, -EINVAL. */
static int parse(struct slot *s)
{
	const uint8_t *raw = kept_of(s)->raw;

	s->id = field64(raw, s->ring->layout->id);
	s->op = raw[0];
	s->indirect = s->flush = s->begun = false;
	s->left = 0;
	s->bytes = 0;
	s->n_segs = 0;
	s->result = 0;
	s->buf = NULL;
	switch (s->op) {
	case XEN_OP_READ:
	case XEN_OP_WRITE:
	case XEN_OP_BARRIER:
	case XEN_OP_FLUSH:
		return parse_data(s, raw);
	case XEN_OP_DISCARD:
		return parse_discard(s, raw);
	case XEN_OP_INDIRECT:
		return parse_indirect(s, raw);
	default:
		return -EOPNOTSUPP;
	}
}

/* ---- taking requests ---- */

static void move(struct slot *s, struct cow_list *to)
{
	cow_list_del(&s->node);
	cow_list_add_tail(to, &s->node);
}

static struct slot *first(struct cow_list *list)
{
	return cow_list_entry(list->next, struct slot, node);
}

static void finish(struct slot *s, int result)
{
	s->result = result;
	move(s, &s->ring->finished);
}

static void refuse(struct slot *s, int result)
{
	cow_log_limited(COW_LOG_WARN, "%s: request refused (operation %u, %u segments): %s",
			s->ring->cfg.name, s->op, s->n_segs, strerror(-result));
	s->ring->stats.refused++;
	finish(s, result);
}

static void admit(struct slot *s)
{
	int rc = parse(s);

	if (rc)
		refuse(s, rc);
	else
		move(s, &s->ring->fresh);
}

static void die(struct xen_ring *r, uint32_t prod)
{
	r->dead = true;
	cow_log_limited(COW_LOG_ERR, "%s: the guest says it has put in requests up to %u, where %u are "
			"answered and %u fit: it gets no more answers", r->cfg.name, prod, r->published,
			r->entries);
}

/* Returns how many it took. */
static unsigned take(struct xen_ring *r)
{
	uint32_t prod = shared_get(r, XEN_RING_REQ_PROD);
	unsigned n = 0;

	if (prod - r->published > r->entries || before(prod, r->taken)) {
		die(r, prod);
		return 0;
	}
	for (; r->taken != prod && n < BUDGET; n++) {
		struct slot *s = first(&r->free);

		ring_copy_request(r, r->taken, kept_of(s)->raw);
		keep_taken(s);
		admit(s);
	}
	r->stats.requests += n;
	return n;
}

/* ---- copies ---- */

static void add_copy(struct xen_ring *r, unsigned at, void *ours, const struct xen_seg *seg,
		     bool to_guest)
{
	r->batch[at] = (struct xen_copy){
		.ours = ours,
		.ref = seg->ref,
		.offset = (uint16_t)(seg->first * r->cfg.sector),
		.len = (uint16_t)((seg->last - seg->first + 1u) * r->cfg.sector),
		.to_guest = to_guest,
	};
}

static void add_data(struct slot *s, unsigned at, bool to_guest)
{
	uint8_t *ours = s->buf;

	for (unsigned i = 0; i < s->n_segs; i++) {
		add_copy(s->ring, at + i, ours, &s->segs[i], to_guest);
		ours += s->ring->batch[at + i].len;
	}
}

/* An indirect request's page of segments. */
static void add_segs(struct slot *s, unsigned at)
{
	uint32_t ref;

	memcpy(&ref, kept_of(s)->raw + s->ring->layout->indirect_refs, sizeof(ref));
	s->ring->batch[at] = (struct xen_copy){
		.ours = s->segs, .ref = ref, .len = (uint16_t)(s->n_segs * sizeof(s->segs[0])),
	};
}

static void run_batch(struct xen_ring *r, unsigned n)
{
	if (n)
		r->cfg.ops->copy(r->cfg.opaque, r->batch, n);
}

static bool all_copied(const struct xen_ring *r, unsigned at, unsigned n)
{
	for (unsigned i = at; i < at + n; i++)
		if (!r->batch[i].ok)
			return false;
	return true;
}

/*
 * Copies the data of the first slots of @list, as many as fit in a batch, and hands each
 * to @then. The list is shorter afterwards.
 */
static void copy_data(struct xen_ring *r, struct cow_list *list, bool to_guest,
		      void (*then)(struct slot *s, bool ok))
{
	unsigned n = 0, slots = 0, at = 0;
	struct cow_list *node;

	cow_list_for_each(node, list) {
		struct slot *s = cow_list_entry(node, struct slot, node);

		if (n + s->n_segs > BATCH)
			break;
		add_data(s, n, to_guest);
		n += s->n_segs;
		slots++;
	}
	run_batch(r, n);
	while (slots-- > 0) {
		struct slot *s = first(list);

		n = s->n_segs;
		then(s, all_copied(r, at, n));
		at += n;
	}
}

static void got_segs(struct slot *s, bool ok)
{
	uint64_t sector = field64(kept_of(s)->raw, s->ring->layout->sector);
	int rc = ok ? check_segs(s, sector) : -EFAULT;

	if (rc)
		refuse(s, rc);
	else
		move(s, &s->ring->waiting);
}

/* In the order taken; BUDGET of them at most, and those of a killed process. */
static void fetch_segs(struct xen_ring *r)
{
	while (!cow_list_empty(&r->fresh)) {
		unsigned n = 0, at = 0, slots = 0;
		struct cow_list *node;

		cow_list_for_each(node, &r->fresh) {
			struct slot *s = cow_list_entry(node, struct slot, node);

			if (n == BATCH)
				break;
			if (s->indirect)
				add_segs(s, n++);
			slots++;
		}
		run_batch(r, n);
		while (slots-- > 0) {
			struct slot *s = first(&r->fresh);

			if (s->indirect)
				got_segs(s, all_copied(r, at++, 1));
			else
				move(s, &r->waiting);
		}
	}
}

/* ---- on the device ---- */

static bool has_data_to_write(const struct slot *s)
{
	return s->n_segs && s->op != XEN_OP_READ;
}

/* False: not now, and nothing behind it either. */
static bool begin(struct slot *s)
{
	struct xen_ring *r = s->ring;
	bool barrier = s->op == XEN_OP_BARRIER;

	if (r->barrier || (barrier && r->begun))
		return false;
	if (s->bytes) {
		s->buf = xen_pool_get(r->cfg.pool, s->bytes);
		if (!s->buf)
			return false;
	}
	r->barrier = barrier;
	r->begun++;
	s->begun = true;
	move(s, has_data_to_write(s) ? &r->copying : &r->ready);
	return true;
}

static void begin_waiting(struct xen_ring *r)
{
	while (!cow_list_empty(&r->waiting) && begin(first(&r->waiting)))
		;
}

static void copied_in(struct slot *s, bool ok)
{
	if (ok)
		move(s, &s->ring->ready);
	else
		refuse(s, -EFAULT);
}

static void on_done(struct cow_req *req, int result)
{
	struct slot *s = cow_container_of(req, struct slot, req);

	s->ring->inflight--;
	if (result || (!s->flush && !s->left))
		finish(s, result);
	else
		move(s, &s->ring->ready);
}

static enum cow_op device_op(const struct slot *s)
{
	if (s->op == XEN_OP_READ)
		return COW_OP_READ;
	return s->op == XEN_OP_DISCARD ? COW_OP_DISCARD : COW_OP_WRITE;
}

static void step(struct slot *s)
{
	struct cow_req *req = &s->req;

	if (s->ring->cfg.forget && s->op != XEN_OP_READ) {
		finish(s, 0);
		return;
	}
	*req = (struct cow_req){ .done = on_done };
	if (s->flush) {
		req->op = COW_OP_FLUSH;
		s->flush = false;
	} else {
		req->op = device_op(s);
		req->flags = s->op == XEN_OP_BARRIER ? COW_REQ_FUA : 0;
		req->virt = s->at;
		req->len = s->op == XEN_OP_DISCARD ? cow_min(s->left, DISCARD_BYTES) : s->left;
		req->buf = s->buf;
		s->at += req->len;
		s->left -= req->len;
	}
	cow_list_del(&s->node);
	s->ring->inflight++;
	cow_dev_submit(s->ring->cfg.dev, req);
}

/* One step each: what becomes ready by that has its turn in the next run. */
static void step_ready(struct xen_ring *r)
{
	struct cow_list now;

	cow_list_init(&now);
	cow_list_splice(&r->ready, &now);
	while (!cow_list_empty(&now))
		step(first(&now));
}

/* ---- answers ---- */

static void release(struct slot *s)
{
	struct xen_ring *r = s->ring;

	if (s->buf)
		xen_pool_put(r->cfg.pool, s->buf, s->bytes);
	s->buf = NULL;
	if (s->begun) {
		r->begun--;
		if (s->op == XEN_OP_BARRIER)
			r->barrier = false;
	}
	move(s, &r->free);
}

static int16_t status_of(int result)
{
	if (!result)
		return XEN_RSP_OKAY;
	return result == -EOPNOTSUPP ? XEN_RSP_EOPNOTSUPP : XEN_RSP_ERROR;
}

static void answer(struct slot *s)
{
	struct xen_ring *r = s->ring;
	struct {
		uint64_t id;
		uint8_t op, pad;
		int16_t status;
		uint32_t pad_more;
	} response = { .id = s->id, .op = s->op, .status = status_of(s->result) };
	uint32_t words[sizeof(response) / sizeof(uint32_t)];

	memcpy(words, &response, sizeof(words));
	ring_put_response(r, r->answered, words);
	keep_answered(s);
	release(s);
}

static void copied_out(struct slot *s, bool ok)
{
	if (!ok) {
		s->ring->stats.refused++;
		cow_log_limited(COW_LOG_WARN, "%s: data cannot be copied to the guest", s->ring->cfg.name);
		s->result = -EFAULT;
	}
	answer(s);
}

static bool has_data_to_read(const struct slot *s)
{
	return s->op == XEN_OP_READ && !s->result;
}

static void answer_finished(struct xen_ring *r)
{
	struct cow_list reads;

	cow_list_init(&reads);
	while (!cow_list_empty(&r->finished)) {
		struct slot *s = first(&r->finished);

		if (has_data_to_read(s))
			move(s, &reads);
		else
			answer(s);
	}
	while (!cow_list_empty(&reads))
		copy_data(r, &reads, true, copied_out);
}

unsigned xen_ring_unpublished(const struct xen_ring *r)
{
	return r->dead ? 0 : r->answered - r->published + r->publish_again;
}

void xen_ring_publish(struct xen_ring *r)
{
	uint32_t old = r->published, event;

	if (r->dead || (old == r->answered && !r->publish_again))
		return;
	shared_set(r, XEN_RING_RSP_PROD, r->answered);
	r->published = r->answered;
	event = shared_get(r, XEN_RING_RSP_EVENT);
	if (r->answered - event < r->answered - old || r->publish_again) {
		r->cfg.ops->notify(r->cfg.opaque);
		r->stats.notified++;
	}
	r->publish_again = false;
}

/* ---- the ring ---- */

bool xen_ring_has_new(const struct xen_ring *r)
{
	return !r->dead && !r->stopped && shared_get(r, XEN_RING_REQ_PROD) != r->taken;
}

bool xen_ring_rest(struct xen_ring *r)
{
	if (r->dead || r->stopped)
		return true;
	shared_set(r, XEN_RING_REQ_EVENT, r->taken + 1);
	return !xen_ring_has_new(r);
}

/* Nothing is at hand that could be done now. */
static bool is_idle(const struct xen_ring *r)
{
	return cow_list_empty(&r->copying) && cow_list_empty(&r->ready) &&
	       cow_list_empty(&r->finished) && !xen_ring_has_new(r);
}

static void drop_finished(struct xen_ring *r)
{
	while (!cow_list_empty(&r->finished))
		release(first(&r->finished));
}

enum xen_ring_todo xen_ring_run(struct xen_ring *r, unsigned *ret_taken)
{
	*ret_taken = 0;
	if (!r->dead && !r->stopped)
		*ret_taken = take(r);
	if (r->dead) {
		drop_finished(r);
		return XEN_RING_DEAD;
	}
	if (!r->stopped) {
		fetch_segs(r);
		begin_waiting(r);
		while (!cow_list_empty(&r->copying))
			copy_data(r, &r->copying, false, copied_in);
		step_ready(r);
	}
	answer_finished(r);
	/* Answers made room: for a buffer, behind a barrier. */
	if (!r->stopped)
		begin_waiting(r);
	if (r->stopped)
		return XEN_RING_WAITS;
	return is_idle(r) ? XEN_RING_WAITS : XEN_RING_MORE;
}

void xen_ring_stop(struct xen_ring *r)
{
	r->stopped = true;
}

unsigned xen_ring_inflight(const struct xen_ring *r)
{
	return r->inflight;
}

void xen_ring_get_stats(const struct xen_ring *r, struct xen_ring_stats *ret)
{
	*ret = r->stats;
}

/* ---- life ---- */

/* At the places that a new ring begins with, whatever it was used for before. */
static int start_fresh(struct xen_ring *r, struct cow_err *err)
{
	struct xen_kept *kept = r->cfg.kept;
	uint32_t done = shared_get(r, XEN_RING_RSP_PROD);
	uint32_t prod = shared_get(r, XEN_RING_REQ_PROD);

	if (prod - done > r->entries)
		return cow_err_set(err, -EPROTO, "%s: a ring of %u entries cannot have requests from %u to %u",
				   r->cfg.name, r->entries, done, prod);
	r->taken = r->answered = r->published = done;
	kept->entries = r->entries;
	kept->taken = kept->answered = done;
	return 0;
}

/*
 * The open slot whose request was taken next after the one that was taken @age requests
 * ago; NULL: none. One that the device held for long can be far behind the others.
 */
static struct slot *next_open(struct xen_ring *r, uint32_t *age)
{
	const struct xen_kept *kept = r->cfg.kept;
	struct slot *next = NULL;
	uint32_t best = 0;

	for (unsigned i = 0; i < r->entries; i++) {
		uint32_t a = kept->taken - kept->slots[i].index;

		if (is_open(kept, &kept->slots[i]) && a < *age && a > best) {
			best = a;
			next = &r->slots[i];
		}
	}
	*age = best;
	return next;
}

/* The requests of a killed process, in the order it took them. Returns how many. */
static unsigned adopt_slots(struct xen_ring *r)
{
	uint32_t age = UINT32_MAX;
	struct slot *s;
	unsigned n = 0;

	for (; (s = next_open(r, &age)); n++)
		admit(s);
	return n;
}

static int adopt(struct xen_ring *r, struct cow_err *err)
{
	struct xen_kept *kept = r->cfg.kept;
	uint32_t prod = shared_get(r, XEN_RING_REQ_PROD);
	unsigned n;

	if (kept->entries != r->entries || kept->taken - kept->answered > r->entries)
		return cow_err_set(err, -EPROTO, "%s: what a killed daemon left makes no sense",
				   r->cfg.name);
	if (prod - kept->answered > r->entries || before(prod, kept->taken))
		return cow_err_set(err, -EPROTO, "%s: not the ring that a killed daemon left",
				   r->cfg.name);
	r->taken = kept->taken;
	r->answered = r->published = kept->answered;
	r->publish_again = true;
	n = adopt_slots(r);
	if (n != r->taken - r->answered)
		return cow_err_set(err, -EPROTO, "%s: %u requests are open, but a killed daemon left %u",
				   r->cfg.name, r->taken - r->answered, n);
	for (unsigned i = 0; i < r->entries; i++)
		if (!is_open(kept, &kept->slots[i]))
			kept->slots[i].state = KEPT_FREE;
	r->stats.replayed = n;
	return 0;
}

static void init(struct xen_ring *r)
{
	cow_list_init(&r->free);
	cow_list_init(&r->fresh);
	cow_list_init(&r->waiting);
	cow_list_init(&r->copying);
	cow_list_init(&r->ready);
	cow_list_init(&r->finished);
	for (unsigned i = 0; i < r->entries; i++) {
		r->slots[i].ring = r;
		r->slots[i].segs = r->segs + (size_t)i * XEN_RING_SEGS_MAX;
		cow_list_add_tail(&r->free, &r->slots[i].node);
	}
}

int xen_ring_new(const struct xen_ring_cfg *cfg, struct xen_ring **ret, struct cow_err *err)
{
	unsigned entries = xen_ring_entries(cfg->abi, cfg->pages);
	struct xen_ring *r = cow_zalloc(sizeof(*r) + entries * sizeof(r->slots[0]));
	int rc;

	cow_assert(cow_is_pow2(cfg->pages) && cfg->pages <= XEN_RING_PAGES_MAX);
	cow_assert(cfg->sector == XEN_SECTOR || cfg->sector == XEN_SECTOR_LARGE);
	if (r)
		r->segs = cow_zalloc((size_t)entries * XEN_RING_SEGS_MAX * sizeof(r->segs[0]));
	if (!r || !r->segs) {
		cow_free(r);
		return cow_err_set(err, -ENOMEM, "%s: not enough memory", cfg->name);
	}
	r->cfg = *cfg;
	r->layout = &xen_layouts[cfg->abi];
	r->shared = cfg->shared;
	r->entries = entries;
	init(r);
	rc = cfg->adopt ? adopt(r, err) : start_fresh(r, err);
	if (rc) {
		xen_ring_free(r);
		return rc;
	}
	*ret = r;
	return 0;
}

static void give_back(struct cow_list *list)
{
	while (!cow_list_empty(list))
		release(first(list));
}

void xen_ring_free(struct xen_ring *r)
{
	if (!r)
		return;
	cow_assert(!r->inflight);
	give_back(&r->copying);
	give_back(&r->ready);
	give_back(&r->finished);
	cow_free(r->segs);
	cow_free(r);
}
