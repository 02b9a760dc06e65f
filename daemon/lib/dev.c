// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A running device: what stands between every front end and the chain. Checks
 * requests, lets them wait while the device is paused, out of space or being
 * resized, times them, and tells when the device is quiet. It moves no data.
 *
 * A request is in one of three places: in the chain (inflight), parked, or done.
 * Nothing is allocated per request: what is needed to remember is in struct
 * cow_req.
 *
 * Waiters, the resize and the end of a drain run from the event loop (kick), never
 * from inside a completion: the chain is not in the middle of anything then.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "cow/log.h"
#include "dev-impl.h"

uint64_t dev_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static bool is_change(enum cow_op op)
{
	return op == COW_OP_WRITE || op == COW_OP_ZERO || op == COW_OP_DISCARD ||
	       op == COW_OP_WRITTEN || op == COW_OP_PRESENT || op == COW_OP_PLACE;
}

/* ---- the hot path ---- */

static void kick(struct cow_dev *d)
{
	uint64_t one = 1;

	/* Cannot fail: the counter of an eventfd that is read to zero does not overflow. */
	if (write(d->kick_fd, &one, sizeof(one)) < 0)
		cow_log(COW_LOG_ERR, "eventfd: %s", strerror(errno));
}

static void kick_if_awaited(struct cow_dev *d)
{
	if (!d->inflight && (d->n_waiters || d->resizing))
		kick(d);
}

/* Bucket i holds up to 2^i microseconds. */
static unsigned lat_bucket(uint64_t ns)
{
	uint64_t us = cow_div_up(ns, 1000);
	unsigned i = us <= 1 ? 0 : 64 - (unsigned)__builtin_clzll(us - 1);

	return i < COW_LAT_BUCKETS ? i : COW_LAT_BUCKETS - 1;
}

static void park(struct cow_dev *d, struct cow_req *req)
{
	cow_list_add_tail(&d->parked, &req->dev_node);
	d->n_parked++;
}

static void enter_nospace(struct cow_dev *d)
{
	if (d->nospace)
		return;
	d->nospace = true;
	cow_log_limited(COW_LOG_WARN,
			"%s: no space left for a write, the device waits for \"resume\"", d->name);
}

static void finish(struct cow_dev *d, struct cow_req *req, int result)
{
	struct cow_op_stats *st = &d->op[req->op];
	uint64_t ns = dev_now_ns() - req->dev_start_ns;

	st->ops++;
	st->total_ns += ns;
	st->lat[lat_bucket(ns)]++;
	if (result)
		st->errors++;
	else if (req->op != COW_OP_FLUSH)
		st->bytes += req->len;
	if (!result && is_change(req->op))
		d->changes++;
	req->done = req->dev_done;
	req->done(req, result);
}

/* A flush, too, may need room, for metadata; trying it again is as good as new. */
static bool waits_for_space(const struct cow_req *req, int result)
{
	if (result != -ENOSPC && result != -EDQUOT)
		return false;
	return req->op != COW_OP_READ && !(req->flags & COW_DEV_THROUGH);
}

/* The chain is done with @req. */
static void on_done(struct cow_req *req, int result)
{
	struct cow_dev *d = req->dev;

	d->inflight--;
	kick_if_awaited(d);
	if (d->enospc == COW_ENOSPC_PAUSE && waits_for_space(req, result)) {
		enter_nospace(d);
		park(d, req);
		return;
	}
	finish(d, req, result);
}

static void on_chain_ready(void *opaque, uint32_t events)
{
	struct cow_dev *d = opaque;

	(void)events;
	cow_chain_poll(d->chain, false);
}

/* The chain has no fd before something became asynchronous. */
static void watch_chain(struct cow_dev *d)
{
	int fd = cow_chain_fd(d->chain);

	if (fd < 0)
		return;
	d->chain_src = cow_loop_fd(d->loop, fd, EPOLLIN, on_chain_ready, d);
	if (d->chain_src)
		return;
	/* Without it nothing would wake us: finish by waiting here, and try again next time. */
	cow_log_limited(COW_LOG_WARN, "%s: cannot watch the I/O ring: %s", d->name,
			strerror(errno));
	while (cow_chain_inflight(d->chain))
		cow_chain_poll(d->chain, true);
}

void cow_dev_attend(struct cow_dev *d)
{
	if (!d->chain_src)
		watch_chain(d);
}

static bool must_wait(const struct cow_dev *d, const struct cow_req *req)
{
	if (d->resizing)
		return true;
	if (d->draining || (req->flags & COW_DEV_THROUGH))
		return false;
	return d->pauses || d->nospace;
}

static void dispatch(struct cow_dev *d, struct cow_req *req)
{
	if (must_wait(d, req)) {
		park(d, req);
		return;
	}
	d->inflight++;
	cow_req_submit(d->chain, req);
	cow_dev_attend(d);
}

static int check(const struct cow_dev *d, const struct cow_req *req)
{
	uint64_t size;

	if (req->op == COW_OP_FLUSH)
		return 0;
	if ((unsigned)req->op >= COW_OPS || req->layer)
		return -EINVAL;
	size = cow_chain_size(d->chain);
	if (!req->len || req->virt > size || req->len > size - req->virt)
		return -EINVAL;
	if (is_change(req->op) && cow_chain_readonly(d->chain))
		return -EROFS;
	return 0;
}

void cow_dev_submit(struct cow_dev *d, struct cow_req *req)
{
	int rc = d->draining ? -ESHUTDOWN : check(d, req);

	if (rc) {
		if ((unsigned)req->op < COW_OPS)
			d->op[req->op].errors++;
		req->done(req, rc);
		return;
	}
	req->dev = d;
	req->dev_done = req->done;
	req->dev_start_ns = dev_now_ns();
	req->done = on_done;
	dispatch(d, req);
}

/* ---- pause, drain, resize ---- */

/* What waited goes on, as far as nothing else holds it. */
static void unpark(struct cow_dev *d)
{
	struct cow_list go;
	struct cow_req *req;

	cow_list_init(&go);
	cow_list_splice(&d->parked, &go);
	d->n_parked = 0;
	while (!cow_list_empty(&go)) {
		req = cow_list_entry(go.next, struct cow_req, dev_node);
		cow_list_del(&req->dev_node);
		/* If the device shrank meanwhile, the chain refuses it. */
		dispatch(d, req);
	}
}

static void do_resize(struct cow_dev *d)
{
	struct cow_list *n, *tmp;
	struct cow_err err = { 0 };
	int rc;

	rc = cow_chain_readonly(d->chain) ? -EROFS : cow_chain_flush(d->chain);
	if (rc)
		cow_err_sys(&err, rc, "%s: flush before the resize", d->name);
	else
		rc = cow_chain_resize(d->chain, d->resize_to, d->resize_shrink, &err);
	if (!rc) {
		d->changes++;
		cow_list_for_each_safe(n, tmp, &d->watches) {
			struct cow_dev_watch *w = cow_list_entry(n, struct cow_dev_watch, node);

			w->resized(w, cow_chain_size(d->chain));
		}
	}
	d->resizing = false;
	d->resize_done(d->resize_opaque, rc, rc ? cow_err_text(&err, rc) : NULL);
	unpark(d);
}

static bool waiter_ready(const struct cow_dev *d, const struct dev_waiter *w)
{
	if (w->drain)
		return !d->inflight && !d->n_parked && !d->resizing;
	return !d->inflight || !d->pauses;	/* resumed before it became quiet: do not wait on */
}

static void on_kick(void *opaque, uint32_t events)
{
	struct cow_dev *d = opaque;
	struct dev_waiter w;
	uint64_t count;
	unsigned i = 0;

	(void)events;
	if (read(d->kick_fd, &count, sizeof(count)) < 0)
		return;
	/* Front ends read single layers behind our back; let those finish. */
	while (!d->inflight && cow_chain_inflight(d->chain))
		cow_chain_poll(d->chain, true);
	if (d->resizing && !d->inflight)
		do_resize(d);
	while (i < d->n_waiters) {
		if (!waiter_ready(d, &d->waiters[i])) {
			i++;
			continue;
		}
		/* Out of the table before the call: it may add another one. */
		w = d->waiters[i];
		memmove(&d->waiters[i], &d->waiters[i + 1],
			(--d->n_waiters - i) * sizeof(d->waiters[0]));
		w.done(w.opaque);
	}
}

static void add_waiter(struct cow_dev *d, void (*done)(void *opaque), void *opaque, bool drain)
{
	cow_assert(d->n_waiters < DEV_WAITERS);
	d->waiters[d->n_waiters++] = (struct dev_waiter){ done, opaque, drain };
	kick_if_awaited(d);
}

void cow_dev_pause(struct cow_dev *d, void (*done)(void *opaque), void *opaque)
{
	d->pauses++;
	add_waiter(d, done, opaque, false);
}

void cow_dev_resume(struct cow_dev *d)
{
	cow_assert(d->pauses > 0);
	d->pauses--;
	if (d->n_waiters)
		kick(d);
	unpark(d);
}

void cow_dev_retry(struct cow_dev *d)
{
	d->nospace = false;
	unpark(d);
}

void cow_dev_set_enospc(struct cow_dev *d, enum cow_enospc policy)
{
	d->enospc = policy;
}

void cow_dev_drain(struct cow_dev *d, void (*done)(void *opaque), void *opaque)
{
	d->draining = true;
	d->enospc = COW_ENOSPC_REPORT;
	d->nospace = false;
	unpark(d);
	add_waiter(d, done, opaque, true);
}

void cow_dev_resize(struct cow_dev *d, uint64_t size, bool shrink,
		    void (*done)(void *opaque, int result, const char *sentence), void *opaque)
{
	if (d->resizing) {
		done(opaque, -EBUSY, "another resize of this device is running");
		return;
	}
	if (d->draining) {
		done(opaque, -ESHUTDOWN, "the device is being stopped");
		return;
	}
	if (cow_chain_readonly(d->chain)) {
		done(opaque, -EROFS, "the device is read-only");
		return;
	}
	d->resizing = true;
	d->resize_to = size;
	d->resize_shrink = shrink;
	d->resize_done = done;
	d->resize_opaque = opaque;
	kick_if_awaited(d);
}

void cow_dev_watch(struct cow_dev *d, struct cow_dev_watch *w)
{
	cow_list_add_tail(&d->watches, &w->node);
}

void cow_dev_unwatch(struct cow_dev_watch *w)
{
	cow_list_del(&w->node);
}

/* ---- life ---- */

int cow_dev_new(struct cow_loop *l, struct cow_chain *c, const struct cow_dev_cfg *cfg,
		struct cow_dev **ret)
{
	struct cow_dev *d = cow_zalloc(sizeof(*d));
	int rc;

	if (!d)
		return -ENOMEM;
	d->loop = l;
	d->enospc = cfg->enospc;
	d->start_ns = dev_now_ns();
	cow_list_init(&d->parked);
	cow_list_init(&d->watches);
	d->name = cow_strdup(cfg->name);
	d->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!d->name || d->kick_fd < 0) {
		rc = d->name ? -errno : -ENOMEM;
		goto fail;
	}
	d->kick_src = cow_loop_fd(l, d->kick_fd, EPOLLIN, on_kick, d);
	if (!d->kick_src) {
		rc = -errno;
		goto fail;
	}
	d->chain = c;
	watch_chain(d);
	*ret = d;
	return 0;
fail:
	if (d->kick_fd >= 0)
		close(d->kick_fd);
	cow_free(d->name);
	cow_free(d);
	return rc;
}

int cow_dev_free(struct cow_dev *d)
{
	int rc;

	if (!d)
		return 0;
	cow_assert(!d->inflight && !d->n_parked && cow_list_empty(&d->watches));
	cow_source_free(d->chain_src);
	cow_source_free(d->kick_src);
	close(d->kick_fd);
	rc = cow_chain_close(d->chain);
	cow_free(d->name);
	cow_free(d);
	return rc;
}

/* ---- facts ---- */

const char *cow_dev_name(const struct cow_dev *d)
{
	return d->name;
}

struct cow_chain *cow_dev_chain(struct cow_dev *d)
{
	return d->chain;
}

uint64_t cow_dev_size(const struct cow_dev *d)
{
	return cow_chain_size(d->chain);
}

bool cow_dev_readonly(const struct cow_dev *d)
{
	return cow_chain_readonly(d->chain);
}

uint64_t cow_dev_changes(struct cow_dev *d)
{
	d->changes += d->external;
	return d->changes;
}

void cow_dev_set_external(struct cow_dev *d)
{
	d->external = true;
}

bool cow_dev_paused(const struct cow_dev *d)
{
	return d->pauses || d->nospace || d->resizing;
}

bool cow_dev_nospace(const struct cow_dev *d)
{
	return d->nospace;
}
