/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The inside of struct cow_dev, shared by dev.c (what it does) and dev-stats.c
 * (what it tells). Nobody else includes this.
 */
#ifndef COW_LIB_DEV_IMPL_H
#define COW_LIB_DEV_IMPL_H

#include "cow/dev.h"

/* Who can wait for a quiet device: each of 64 control clients once, and a few front ends. */
#define DEV_WAITERS 128

struct dev_waiter {
	void (*done)(void *opaque);
	void *opaque;
	bool drain;			/* also waits for what is parked */
};

struct cow_dev {
	struct cow_loop *loop;
	struct cow_chain *chain;
	char *name;
	enum cow_enospc enospc;

	struct cow_source *chain_src;	/* NULL until the chain has an fd */
	struct cow_source *kick_src;
	int kick_fd;			/* eventfd: look at the waiters, from the loop */

	unsigned inflight;		/* handed to the chain */
	unsigned n_parked;
	struct cow_list parked;		/* struct cow_req.dev_node, in order of arrival */

	/* Why requests wait. Any of them may hold at the same time. */
	unsigned pauses;
	bool nospace;			/* a write met -ENOSPC under COW_ENOSPC_PAUSE */
	bool resizing;			/* the only one that holds while draining, too */
	bool draining;

	struct dev_waiter waiters[DEV_WAITERS];
	unsigned n_waiters;

	uint64_t resize_to;
	bool resize_shrink;
	void (*resize_done)(void *opaque, int result, const char *sentence);
	void *resize_opaque;

	struct cow_list watches;
	uint64_t changes;
	bool external;

	struct cow_op_stats op[COW_OPS];
	uint64_t start_ns;
};

/* CLOCK_MONOTONIC */
uint64_t dev_now_ns(void);
const char *dev_state(const struct cow_dev *d);

#endif
