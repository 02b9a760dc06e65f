// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A frontend's queues (see xen-conn.h).
 *
 * A turn of the loop ends in xen_conn_run(): all rings take and answer, a bounded number
 * of rounds; if there is more to do, an eventfd wakes the loop at once, after other sources
 * had their turn. Otherwise the rings rest, and the guest sends an event when it goes on.
 *
 * Events. A channel that fired is masked until its ring rests, so that a guest cannot
 * make us run more often than we can work. One that fires and fires with nothing in the
 * ring is unmasked only after a pause: the guest is slowed down then, nobody else.
 *
 * Watching. To sleep and to be woken costs more than a small request does. So rings that have
 * run dry are watched for a moment before they rest, if the last time requests came within such
 * a moment. It is measured by the work before it: what a guest makes us spend on watching is a
 * dozen times what it makes us work, at most, and nothing when it sends requests seldom. (For its
 * next request a guest takes about four times as long as we did: a moment that is not well above
 * that is spent in vain, and we sleep as well.)
 *
 * Holding. A notification costs both sides about as much as a small request, so a guest that
 * sends many of them gets answers several at a time: those at hand wait for more requests, a few
 * times as long as a notification takes. That begins when a request is seen before the guest can
 * know of an answer to another one; and when nothing came meanwhile, the answers at hand are as
 * many as it sends at once: that many do not wait again.
 *
 * Both are measured in ticks that are only compared with each other: in domain 0, the clock may
 * be a system call, which takes longer than many a request.
 */
#include "xen-conn.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#ifdef __x86_64__
#include <x86intrin.h>
#endif

#include "cow/log.h"
#include "xen-grants.h"
#include "xen-keep.h"

#define POOL_BYTES (16u << 20)	/* for the data of all requests of a guest's disk */
#define ROUNDS 16		/* of the rings before other sources of the loop get their turn */
#define WATCH_TIMES 12u		/* the time of work before: so long the rings are watched */
#define WATCH_MOST 64u		/* the time of a notification, at most */
#define HOLD_TIMES 6u		/* the time of a notification: so long answers wait for others */
#define HOLD_MAX 16u		/* answers that wait */
/* A ring of a page has 32 requests; Linux sends up to 32 segments, and a page that lists them. */
#define KEPT_PAGES (32u * 33u)	/* of the guest's, mapped, for each queue */
#define IDLE_EVENTS 8		/* events without a request that are not held against the guest */
#define IDLE_PAUSE_MS 2
#define PORT_MAX UINT32_MAX

struct queue {
	struct xen_conn *conn;
	struct xen_ring *ring;
	void *shared;
	int port;			/* ours; -1: not bound */
	bool masked;			/* fired; to be unmasked when the ring rests */
	bool pausing;			/* unmasked by the timer */
	bool taken;			/* requests were found since it rested */
	unsigned idle_events;		/* in a row */
	char name[32];
};

struct xen_conn {
	struct xen_conn_cfg cfg;
	struct xen_params params;
	struct xen_grants *grants;
	void *events;
	struct xen_pool *pool;
	struct xen_keep *keep;
	struct cow_source *event_src, *again_src, *pause;
	int again_fd;
	bool fired;			/* one of the channels, or more */
	uint64_t work_at;		/* ticks: when there was something in the rings again */
	bool dry;			/* there is nothing */
	uint64_t dry_at;		/* since then */
	uint64_t watch_for;		/* how long they are watched then */
	bool soon;			/* the last time, something came within that */
	uint64_t request_ticks;		/* what a request took last */
	uint64_t notify_ticks;		/* and what a notification took */
	unsigned crowd;			/* requests that the guest sends at once; not above HOLD_MAX */
	struct queue queue[XEN_QUEUES_MAX];
};

/* ---- what the frontend says ---- */

static int read_abi(struct xen_store *s, const char *dir, uint32_t *ret, struct cow_err *err)
{
	char protocol[32];
	int rc = xen_store_read(s, dir, "protocol", protocol, sizeof(protocol));

	*ret = XEN_ABI_NATIVE;
	if (rc == -ENOENT)
		return 0;
	for (uint32_t i = 0; !rc && i < XEN_ABIS; i++)
		if (!strcmp(protocol, xen_layouts[i].protocol)) {
			*ret = i;
			return 0;
		}
	return cow_err_set(err, rc ? rc : -EINVAL, "%s/protocol is none that we know", dir);
}

static int bad_node(struct cow_err *err, int rc, const char *dir, const char *key)
{
	return cow_err_sys(err, rc, "%s/%s", dir, key);
}

static int read_queue(struct xen_store *s, const char *dir, struct xen_params *p, unsigned queue,
		      bool multi_page, struct cow_err *err)
{
	uint64_t v;
	char key[24];
	int rc = xen_store_read_number(s, dir, "event-channel", PORT_MAX, &v);

	if (rc)
		return bad_node(err, rc, dir, "event-channel");
	p->queue[queue].port = (uint32_t)v;
	for (uint32_t i = 0; i < p->pages; i++) {
		if (multi_page)
			snprintf(key, sizeof(key), "ring-ref%u", i);
		else
			snprintf(key, sizeof(key), "ring-ref");
		rc = xen_store_read_number(s, dir, key, UINT32_MAX, &v);
		if (rc)
			return bad_node(err, rc, dir, key);
		p->queue[queue].refs[i] = (uint32_t)v;
	}
	return 0;
}

int xen_params_read(struct xen_store *s, const char *dir, struct xen_params *ret,
		    struct cow_err *err)
{
	char sub[XEN_PATH_MAX + 16];
	bool multi_page;
	uint64_t order, queues, persistent;
	int rc = 0;

	memset(ret, 0, sizeof(*ret));
	rc = read_abi(s, dir, &ret->abi, err);
	if (rc)
		return rc;
	/* A ring of one page can be told of in both ways. */
	rc = xen_store_read_number(s, dir, "ring-page-order", XEN_RING_ORDER_MAX, &order);
	multi_page = !rc;
	if (rc == -ENOENT)
		rc = order = 0;
	if (rc)
		return bad_node(err, rc, dir, "ring-page-order");
	rc = xen_store_read_number_or(s, dir, "multi-queue-num-queues", XEN_QUEUES_MAX, 1, &queues);
	if (rc || !queues)
		return bad_node(err, rc ? rc : -EINVAL, dir, "multi-queue-num-queues");
	rc = xen_store_read_number_or(s, dir, "feature-persistent", 1, 0, &persistent);
	if (rc)
		return bad_node(err, rc, dir, "feature-persistent");
	ret->pages = 1u << order;
	ret->queues = (uint32_t)queues;
	ret->persistent = (uint32_t)persistent;
	if (queues == 1)
		return read_queue(s, dir, ret, 0, multi_page, err);
	for (unsigned i = 0; i < queues && !rc; i++) {
		snprintf(sub, sizeof(sub), "%s/queue-%u", dir, i);
		rc = read_queue(s, sub, ret, i, multi_page, err);
	}
	return rc;
}

/* ---- of the rings ---- */

static void ring_copy(void *opaque, struct xen_copy *copies, unsigned n)
{
	struct queue *q = opaque;

	xen_grants_copy(q->conn->grants, copies, n);
}

static uint64_t ticks(void)
{
#ifdef __x86_64__
	return __rdtsc();
#else
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
#endif
}

static void ring_notify(void *opaque)
{
	struct queue *q = opaque;
	struct xen_conn *c = q->conn;
	uint64_t begin = ticks(), took;

	c->cfg.lib->events_notify(c->events, q->port);
	took = ticks() - begin;
	/* One that was interrupted says nothing of the next. */
	c->notify_ticks = c->notify_ticks ? cow_min(took, 2 * c->notify_ticks) : took;
}

static const struct xen_ring_ops ring_ops = { .copy = ring_copy, .notify = ring_notify };

/* ---- events ---- */

static void unmask(struct queue *q)
{
	q->masked = q->pausing = false;
	q->conn->cfg.lib->events_unmask(q->conn->events, q->port);
}

static void on_pause_over(void *opaque, uint32_t events)
{
	struct xen_conn *c = opaque;

	(void)events;
	cow_source_free(c->pause);
	c->pause = NULL;
	for (unsigned i = 0; i < c->params.queues; i++)
		if (c->queue[i].pausing)
			unmask(&c->queue[i]);
}

static void unmask_later(struct queue *q)
{
	struct xen_conn *c = q->conn;

	if (!c->pause)
		c->pause = cow_loop_timer(c->cfg.loop, IDLE_PAUSE_MS, false, on_pause_over, c);
	if (c->pause)
		q->pausing = true;
	else
		unmask(q);
}

static bool is_readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, 0) > 0;
}

/* Which it was is found out when the rings rest: until then it does not matter. */
static void on_event(void *opaque, uint32_t events)
{
	struct xen_conn *c = opaque;

	(void)events;
	c->fired = true;
}

static void take_events(struct xen_conn *c)
{
	const struct xen_lib *lib = c->cfg.lib;
	unsigned n = 0;

	c->fired = false;
	/* Masked ports do not fire again: there are no more than these. */
	do {
		int port = lib->events_pending(c->events);

		for (unsigned i = 0; i < c->params.queues; i++)
			if (c->queue[i].port == port)
				c->queue[i].masked = true;
	} while (++n < c->params.queues && is_readable(lib->events_fd(c->events)));
}

static void on_again(void *opaque, uint32_t events)
{
	struct xen_conn *c = opaque;
	uint64_t count;

	(void)events;
	if (read(c->again_fd, &count, sizeof(count)) < 0)
		cow_log(COW_LOG_DEBUG, "eventfd: %s", strerror(errno));
}

static void run_again(struct xen_conn *c)
{
	uint64_t one = 1;

	if (write(c->again_fd, &one, sizeof(one)) < 0)
		cow_log(COW_LOG_ERR, "eventfd: %s", strerror(errno));
}

/* ---- a turn ---- */

/* True: there is more to be done. */
static bool run_queue(struct queue *q, unsigned *taken_all)
{
	unsigned taken;
	enum xen_ring_todo todo = xen_ring_run(q->ring, &taken);

	q->taken |= taken > 0;
	*taken_all += taken;
	return todo == XEN_RING_MORE;
}

static void note_times(struct xen_conn *c, uint64_t begin, unsigned taken)
{
	c->request_ticks = (ticks() - begin) / taken;
	if (!c->dry)
		return;
	c->soon = begin - c->dry_at < c->watch_for;
	c->work_at = begin;
	c->dry = false;
}

/* All rings, once. */
static bool run_queues(struct xen_conn *c)
{
	uint64_t begin = ticks();
	unsigned taken = 0;
	bool more = false;

	for (unsigned i = 0; i < c->params.queues; i++)
		more |= run_queue(&c->queue[i], &taken);
	if (taken)
		note_times(c, begin, taken);
	return more | xen_pool_freed(c->pool);
}

static bool have_new(const struct xen_conn *c)
{
	bool any = false;

	for (unsigned i = 0; i < c->params.queues; i++)
		any |= xen_ring_has_new(c->queue[i].ring);
	return any;
}

/* The rings are dry. True: not any more. */
static bool watch(struct xen_conn *c)
{
	if (!c->dry) {
		c->dry = true;
		c->dry_at = ticks();
		c->watch_for = cow_min(WATCH_TIMES * (c->dry_at - c->work_at),
				       WATCH_MOST * c->notify_ticks);
	}
	if (!c->soon || xen_conn_inflight(c))
		return false;
	do {
		if (have_new(c))
			return true;
	} while (ticks() - c->dry_at < c->watch_for);
	c->soon = false;
	return false;
}

/* False: there is something in the ring. */
static bool rest_queue(struct queue *q)
{
	if (!xen_ring_rest(q->ring))
		return false;
	if (q->taken)
		q->idle_events = 0;
	if (q->masked && !q->pausing) {
		q->idle_events += !q->taken;
		if (q->idle_events > IDLE_EVENTS)
			unmask_later(q);
		else
			unmask(q);
	}
	q->taken = false;
	return true;
}

static bool rest(struct xen_conn *c)
{
	bool all = true;

	if (c->fired)
		take_events(c);
	for (unsigned i = 0; i < c->params.queues; i++)
		all &= rest_queue(&c->queue[i]);
	return all;
}

static unsigned unpublished(const struct xen_conn *c)
{
	unsigned n = 0;

	for (unsigned i = 0; i < c->params.queues; i++)
		n += xen_ring_unpublished(c->queue[i].ring);
	return n;
}

static void publish(struct xen_conn *c)
{
	if (!unpublished(c))
		return;
	if (have_new(c))
		c->crowd = HOLD_MAX;
	for (unsigned i = 0; i < c->params.queues; i++)
		xen_ring_publish(c->queue[i].ring);
}

/* True: more comes while answers wait; they go on waiting. */
static bool hold(struct xen_conn *c, bool more)
{
	uint64_t begin = ticks(), limit = HOLD_TIMES * c->notify_ticks;
	unsigned n = unpublished(c);

	if (!n || n >= c->crowd || c->request_ticks > limit || xen_conn_inflight(c))
		return false;
	do {
		if (more || have_new(c))
			return true;
	} while (ticks() - begin < limit);
	c->crowd = n;
	return false;
}

void xen_conn_run(struct xen_conn *c)
{
	bool more;

	for (unsigned round = 0; round < ROUNDS; round++) {
		more = run_queues(c);
		if (hold(c, more))
			continue;
		publish(c);
		if (!more && !watch(c) && rest(c))
			return;
	}
	publish(c);
	run_again(c);
}

void xen_conn_stop(struct xen_conn *c)
{
	for (unsigned i = 0; i < c->params.queues; i++)
		xen_ring_stop(c->queue[i].ring);
}

unsigned xen_conn_inflight(const struct xen_conn *c)
{
	unsigned n = 0;

	for (unsigned i = 0; i < c->params.queues; i++)
		n += xen_ring_inflight(c->queue[i].ring);
	return n;
}

void xen_conn_status(const struct xen_conn *c, struct cow_kv *kv)
{
	struct xen_ring_stats sum = { 0 }, one;

	for (unsigned i = 0; i < c->params.queues; i++) {
		xen_ring_get_stats(c->queue[i].ring, &one);
		sum.requests += one.requests;
		sum.replayed += one.replayed;
		sum.refused += one.refused;
		sum.notified += one.notified;
	}
	cow_kv_str(kv, "protocol", xen_layouts[c->params.abi].protocol);
	cow_kv_u64(kv, "queues", c->params.queues);
	cow_kv_u64(kv, "ring_pages", c->params.pages);
	cow_kv_u64(kv, "requests", sum.requests);
	cow_kv_u64(kv, "replayed", sum.replayed);
	cow_kv_u64(kv, "refused", sum.refused);
	cow_kv_u64(kv, "notifications", sum.notified);
	cow_kv_u64(kv, "mapped_pages", xen_grants_kept(c->grants));
}

/* ---- connecting ---- */

static int open_devices(struct xen_conn *c, struct cow_err *err)
{
	const struct xen_lib *lib = c->cfg.lib;
	unsigned keep = c->params.persistent ? c->params.queues * KEPT_PAGES : 0;
	int rc = xen_pool_new(POOL_BYTES, &c->pool);

	if (!rc)
		rc = xen_grants_new(lib, c->cfg.domain, keep, &c->grants);
	if (rc)
		return cow_err_sys(err, rc, "%s: grants of other domains", c->cfg.name);
	rc = lib->events_open(c->cfg.domain, &c->events);
	if (rc)
		return cow_err_sys(err, rc, "%s: event channels", c->cfg.name);
	c->again_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->again_fd >= 0)
		c->again_src = cow_loop_fd(c->cfg.loop, c->again_fd, EPOLLIN, on_again, c);
	if (c->again_src)
		c->event_src = cow_loop_fd(c->cfg.loop, lib->events_fd(c->events), EPOLLIN,
					   on_event, c);
	return c->event_src ? 0 : cow_err_sys(err, -errno, "%s: event channels", c->cfg.name);
}

static int open_ring(struct queue *q, unsigned i, bool adopt, struct cow_err *err)
{
	struct xen_conn *c = q->conn;
	struct xen_ring_cfg cfg = {
		.dev = c->cfg.dev, .pool = c->pool, .ops = &ring_ops, .opaque = q, .name = q->name,
		.shared = q->shared, .pages = c->params.pages, .abi = (enum xen_abi)c->params.abi,
		.sector = c->cfg.sector, .read_only = c->cfg.read_only,
		.discard = c->cfg.discard, .forget = c->cfg.forget,
		.kept = xen_keep_queue(c->keep, i), .adopt = adopt,
	};

	return xen_ring_new(&cfg, &q->ring, err);
}

static int open_queue(struct xen_conn *c, unsigned i, bool adopt, struct cow_err *err)
{
	struct queue *q = &c->queue[i];
	int rc;

	snprintf(q->name, sizeof(q->name), "domain %u, ring %u", c->cfg.domain, i);
	rc = xen_grants_map(c->grants, c->params.queue[i].refs, c->params.pages, &q->shared);
	if (rc) {
		q->shared = NULL;
		return cow_err_sys(err, rc, "%s cannot be mapped", q->name);
	}
	rc = c->cfg.lib->events_bind(c->events, c->cfg.domain, c->params.queue[i].port);
	if (rc < 0)
		return cow_err_sys(err, rc, "%s: event channel %u cannot be bound (another backend, "
				   "such as the kernel's, may have it)", q->name,
				   c->params.queue[i].port);
	q->port = rc;
	return open_ring(q, i, adopt, err);
}

/* Nobody knows which requests of a ring in use are answered, but who kept count of them. */
static bool is_idle(const struct xen_conn *c)
{
	for (unsigned i = 0; i < c->params.queues; i++) {
		struct xen_kept *kept = xen_keep_queue(c->keep, i);
		uint32_t prod;

		memcpy(&prod, (char *)c->queue[i].shared + XEN_RING_REQ_PROD, sizeof(prod));
		if (prod != kept->answered)
			return false;
	}
	return true;
}

static int connect(struct xen_conn *c, bool adopt, struct cow_err *err)
{
	bool found = adopt && !xen_keep_find(c->cfg.name, c->cfg.dir, &c->params, &c->keep);
	int rc = found ? 0 : xen_keep_create(c->cfg.name, c->cfg.dir, &c->params, &c->keep, err);

	if (!rc)
		rc = open_devices(c, err);
	for (unsigned i = 0; i < c->params.queues && !rc; i++)
		rc = open_queue(c, i, found, err);
	if (!rc && adopt && !found && !is_idle(c))
		rc = cow_err_set(err, -ESTALE, "domain %u waits for a daemon that was killed, but what "
				 "that one had in hand is not known any more", c->cfg.domain);
	if (!rc)
		xen_keep_validate(c->keep);
	return rc;
}

int xen_conn_new(const struct xen_conn_cfg *cfg, const struct xen_params *params, bool adopt,
		 struct xen_conn **ret, struct cow_err *err)
{
	struct xen_conn *c = cow_zalloc(sizeof(*c));
	int rc;

	if (!c)
		return cow_err_set(err, -ENOMEM, "%s: not enough memory", cfg->name);
	c->cfg = *cfg;
	c->params = *params;
	c->again_fd = -1;
	c->crowd = 1;
	for (unsigned i = 0; i < XEN_QUEUES_MAX; i++) {
		c->queue[i].conn = c;
		c->queue[i].port = -1;
	}
	rc = connect(c, adopt, err);
	if (rc) {
		/* What a killed daemon left may be of use to the next attempt. */
		xen_conn_free(c, adopt);
		return rc;
	}
	/* What happened before there was anybody to hear of it. */
	for (unsigned i = 0; i < c->params.queues; i++)
		ring_notify(&c->queue[i]);
	run_again(c);
	*ret = c;
	return 0;
}

static void close_queue(struct queue *q)
{
	struct xen_conn *c = q->conn;

	xen_ring_free(q->ring);
	if (q->port >= 0)
		c->cfg.lib->events_unbind(c->events, q->port);
	if (q->shared)
		xen_grants_unmap(c->grants, q->shared, c->params.pages);
}

void xen_conn_free(struct xen_conn *c, bool leave)
{
	if (!c)
		return;
	cow_source_free(c->event_src);
	cow_source_free(c->again_src);
	cow_source_free(c->pause);
	for (unsigned i = 0; i < XEN_QUEUES_MAX; i++)
		close_queue(&c->queue[i]);
	if (c->events)
		c->cfg.lib->events_close(c->events);
	xen_grants_free(c->grants);
	if (c->again_fd >= 0)
		close(c->again_fd);
	xen_pool_free(c->pool);
	xen_keep_close(c->keep, !leave);
	cow_free(c);
}
