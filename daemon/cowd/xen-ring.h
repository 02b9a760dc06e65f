/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One queue of requests that a Xen guest shares with us: takes requests out, carries them
 * out on the device, puts answers in. Knows neither xenstore nor the library for grants
 * and events: those are behind struct xen_ring_ops.
 *
 * Everything in the shared pages is hostile. A request is copied once, to memory of ours,
 * and only the copy is looked at. Data is copied from and to the guest's pages, behind
 * struct xen_ring_ops too: the device never works on memory that a guest can change.
 *
 * What was taken and not answered yet is kept in memory that can outlive the process
 * (struct xen_kept): the next one carries out exactly that, since in the ring itself an
 * answer to one request may already lie over another one.
 */
#ifndef COWD_XEN_RING_H
#define COWD_XEN_RING_H

#include "cow/dev.h"
#include "xen-abi.h"
#include "xen-pool.h"

#define XEN_RING_PAGES_MAX 16u
#define XEN_RING_SEGS_MAX 256u	/* of an indirect request: 1 MiB of data */

/* One copy between our memory and a page that the guest granted. */
struct xen_copy {
	void *ours;
	uint32_t ref;
	uint16_t offset, len;		/* inside the page */
	bool to_guest;
	bool ok;			/* the answer */
};

struct xen_ring_ops {
	/* Makes all @n copies, or as many as can be made, and says of each whether it was. */
	void (*copy)(void *opaque, struct xen_copy *copies, unsigned n);
	/* Answers are in the ring. */
	void (*notify)(void *opaque);
};

/* ---- what outlives the process ---- */

struct xen_kept_slot {
	uint32_t state;			/* enum in xen-ring.c; 0: free */
	uint32_t index;			/* of the request */
	uint32_t answer;		/* index of the answer to it */
	uint32_t pad;
	uint8_t raw[XEN_ENTRY_MAX];	/* the request as it was copied */
};

struct xen_kept {
	uint32_t entries;		/* of the ring */
	uint32_t taken;			/* index behind the last request taken */
	uint32_t answered;		/* index behind the last answer put into the ring */
	uint32_t pad;
	struct xen_kept_slot slots[];	/* one an entry */
};

/* Entries of a ring of @pages; bytes of what is kept of it. */
unsigned xen_ring_entries(enum xen_abi abi, unsigned pages);
size_t xen_kept_bytes(unsigned entries);

/* ---- the ring ---- */

struct xen_ring_cfg {
	struct cow_dev *dev;
	struct xen_pool *pool;		/* of the guest; holds at least one largest request */
	const struct xen_ring_ops *ops;
	void *opaque;			/* of @ops */
	const char *name;		/* of the ring in messages; stays the caller's */
	void *shared;			/* the ring's pages */
	unsigned pages;			/* a power of two up to XEN_RING_PAGES_MAX */
	enum xen_abi abi;
	unsigned sector;		/* bytes: XEN_SECTOR or XEN_SECTOR_LARGE */
	bool read_only;
	bool discard;			/* was offered */
	bool forget;			/* changes are taken, and the device does not hear of them */
	struct xen_kept *kept;		/* zeroes; or with @adopt what a killed process left */
	bool adopt;
};

struct xen_ring;

/*
 * -EPROTO and a sentence: the ring or what is kept of it makes no sense. Nothing is
 * carried out before xen_ring_run().
 */
int xen_ring_new(const struct xen_ring_cfg *cfg, struct xen_ring **ret, struct cow_err *err);
/* Nothing is in flight. NULL is allowed. What is kept stays as it is. */
void xen_ring_free(struct xen_ring *r);

enum xen_ring_todo {
	XEN_RING_WAITS,		/* for requests of the guest, or for the device */
	XEN_RING_MORE,		/* there is more to be done now */
	XEN_RING_DEAD,		/* the guest broke the ring: it is not looked at any more */
};

/*
 * Takes a bounded number of requests, goes on with those under way, and answers those that
 * are done. To be called at the end of each turn of the loop. *@ret_taken: requests found in
 * the ring.
 */
enum xen_ring_todo xen_ring_run(struct xen_ring *r, unsigned *ret_taken);
/* Shows the answers to the guest, and notifies it once if it wants that. */
void xen_ring_publish(struct xen_ring *r);
unsigned xen_ring_unpublished(const struct xen_ring *r);	/* answers */
/* A look from outside: has the guest put in something that was not taken? */
bool xen_ring_has_new(const struct xen_ring *r);
/* For a ring that waits: the guest shall send an event with its next request. False: there is one. */
bool xen_ring_rest(struct xen_ring *r);

/* From now on nothing is taken or begun; what the device has in hand is still answered. */
void xen_ring_stop(struct xen_ring *r);
/* Requests the device has in hand. */
unsigned xen_ring_inflight(const struct xen_ring *r);

struct xen_ring_stats {
	uint64_t requests;		/* taken */
	uint64_t replayed;		/* of a killed process */
	uint64_t refused;		/* made no sense, or could not be copied */
	uint64_t notified;
};
void xen_ring_get_stats(const struct xen_ring *r, struct xen_ring_stats *ret);

#endif
