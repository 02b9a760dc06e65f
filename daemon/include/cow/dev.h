/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A running device: a chain behind an event loop, with what every front end
 * shares: bounds and permission checks, pause and resume, the out-of-space
 * policy, live resize, counters. Front ends turn their protocol into
 * cow_dev_submit(); any number of them can serve one device.
 */
#ifndef COW_DEV_H
#define COW_DEV_H

#include "cow/chain.h"
#include "cow/loop.h"

struct cow_dev;

enum cow_enospc { COW_ENOSPC_REPORT, COW_ENOSPC_PAUSE };

struct cow_dev_cfg {
	const char *name;
	enum cow_enospc enospc;
};

/*
 * Takes over @c, which must have been opened on this thread; closes it in cow_dev_free().
 * On failure @c stays the caller's.
 */
COW_EXPORT int cow_dev_new(struct cow_loop *l, struct cow_chain *c, const struct cow_dev_cfg *cfg,
			   struct cow_dev **ret);
/* No request in flight (cow_dev_drain()). Returns the result of closing the chain. */
COW_EXPORT int cow_dev_free(struct cow_dev *d);

COW_EXPORT const char *cow_dev_name(const struct cow_dev *d);
COW_EXPORT struct cow_chain *cow_dev_chain(struct cow_dev *d);
COW_EXPORT uint64_t cow_dev_size(const struct cow_dev *d);
COW_EXPORT bool cow_dev_readonly(const struct cow_dev *d);

/*
 * As cow_req_submit(), with: -EINVAL for a range outside the device (nothing is
 * clipped), -EROFS for a change of a read-only one, waiting while paused, and
 * counting. @req->layer must be 0. All calls on the loop's thread.
 */
COW_EXPORT void cow_dev_submit(struct cow_dev *d, struct cow_req *req);
/* In cow_req.flags, of a FLUSH: goes ahead while paused or out of space, not during a resize. */
#define COW_DEV_THROUGH (1u << 31)

/* After using the chain directly: makes sure that what became asynchronous is attended to. */
COW_EXPORT void cow_dev_attend(struct cow_dev *d);

/* Raised at each completed change (write, zero, discard, written, resize): lets views know they are stale. */
COW_EXPORT uint64_t cow_dev_changes(struct cow_dev *d);
/* Somebody else changes data without our knowledge: cow_dev_changes() never says the same twice. */
COW_EXPORT void cow_dev_set_external(struct cow_dev *d);

/*
 * Requests that arrive wait; @done(opaque) once none is in flight, from the loop, never
 * before this returns. Pauses nest.
 */
COW_EXPORT void cow_dev_pause(struct cow_dev *d, void (*done)(void *opaque), void *opaque);
COW_EXPORT void cow_dev_resume(struct cow_dev *d);
COW_EXPORT bool cow_dev_paused(const struct cow_dev *d);	/* for any reason, out of space included */
/*
 * With COW_ENOSPC_PAUSE, a change or flush that fails for lack of space waits, and with it
 * all that come later, until cow_dev_retry(), which submits them again.
 */
COW_EXPORT bool cow_dev_nospace(const struct cow_dev *d);
COW_EXPORT void cow_dev_retry(struct cow_dev *d);
COW_EXPORT void cow_dev_set_enospc(struct cow_dev *d, enum cow_enospc policy);
/*
 * @done(opaque) once no request is in flight or parked; new ones fail with -ESHUTDOWN.
 * What is parked goes ahead, pauses and lack of space notwithstanding.
 */
COW_EXPORT void cow_dev_drain(struct cow_dev *d, void (*done)(void *opaque), void *opaque);

/* Pauses, flushes, resizes, resumes; then tells the watchers. @done with 0 or -errno and a sentence. */
COW_EXPORT void cow_dev_resize(struct cow_dev *d, uint64_t size, bool shrink,
			       void (*done)(void *opaque, int result, const char *sentence),
			       void *opaque);

/* A front end that wants to know of size changes; node storage is the caller's. */
struct cow_dev_watch {
	struct cow_list node;
	void (*resized)(struct cow_dev_watch *w, uint64_t size);
};
COW_EXPORT void cow_dev_watch(struct cow_dev *d, struct cow_dev_watch *w);
COW_EXPORT void cow_dev_unwatch(struct cow_dev_watch *w);

/* ---- counters ---- */

#define COW_LAT_BUCKETS 24	/* bucket i: up to 2^i microseconds; the last: all above */

struct cow_op_stats {
	uint64_t ops, bytes, errors;
	uint64_t total_ns;
	uint64_t lat[COW_LAT_BUCKETS];
};

struct cow_dev_stats {
	struct cow_op_stats op[COW_OPS];
	struct cow_chain_stats chain;
	uint64_t inflight, parked;
	uint64_t uptime_ms;
};

COW_EXPORT const char *cow_op_name(enum cow_op op);	/* "read", "write", ... */
COW_EXPORT void cow_dev_get_stats(const struct cow_dev *d, struct cow_dev_stats *ret);
/* Members: size, read_only, state (running, paused, no-space), mode, and format facts of each layer. */
COW_EXPORT void cow_dev_status(struct cow_dev *d, struct cow_kv *kv);
/* The counters as a tree. */
COW_EXPORT void cow_dev_stats_kv(struct cow_dev *d, struct cow_kv *kv);
/* The counters as OpenMetrics text, ending with "# EOF". */
COW_EXPORT void cow_dev_stats_openmetrics(struct cow_dev *d, FILE *out);

/* ---- the map as a listing ---- */

/* Extents of layer @first and below over the whole device, merged, as "map" list members of @kv. */
COW_EXPORT int cow_map_kv(struct cow_chain *c, unsigned first, struct cow_kv *kv);

#endif
