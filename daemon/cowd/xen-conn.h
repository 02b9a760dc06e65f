/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The connection to a guest's frontend: its queues, each a ring and an event channel, from
 * what it wrote in xenstore; taken down, or taken up again after a kill. Who may connect
 * when is not decided here (fe-xen.c).
 */
#ifndef COWD_XEN_CONN_H
#define COWD_XEN_CONN_H

#include "cow/dev.h"
#include "cow/kv.h"
#include "xen-store.h"

#define XEN_QUEUES_MAX 4u	/* one thread serves them all: more would not be faster */
#define XEN_RING_ORDER_MAX 4u

/* What the frontend says about its queues; also in the file of what is kept. */
struct xen_params {
	uint32_t abi;		/* enum xen_abi */
	uint32_t pages;		/* of each ring */
	uint32_t queues;
	uint32_t persistent;	/* 1: it uses the same pages again and again */
	struct {
		uint32_t port;
		uint32_t refs[XEN_RING_PAGES_MAX];
	} queue[XEN_QUEUES_MAX];
};

/* Reads @ret from the frontend's folder @dir, checking all. -errno and a sentence. */
int xen_params_read(struct xen_store *s, const char *dir, struct xen_params *ret,
		    struct cow_err *err);

struct xen_conn_cfg {
	struct cow_loop *loop;
	struct cow_dev *dev;
	const struct xen_lib *lib;
	const char *name;	/* of the device; stays the caller's, as do all strings */
	const char *dir;	/* the backend's folder */
	uint32_t domain;
	unsigned sector;	/* bytes */
	bool read_only, discard, forget;	/* as for rings */
};

struct xen_conn;

/*
 * Maps and binds what @params say. @adopt: what a killed daemon left of this very
 * connection is gone on with; without such, a ring that is not idle is refused.
 */
int xen_conn_new(const struct xen_conn_cfg *cfg, const struct xen_params *params, bool adopt,
		 struct xen_conn **ret, struct cow_err *err);
/* Nothing is in flight. @leave: the guest stays connected, for the next daemon. NULL is allowed. */
void xen_conn_free(struct xen_conn *c, bool leave);

/* Takes and answers requests; to be called at the end of each turn of the loop. */
void xen_conn_run(struct xen_conn *c);
/* No more requests are taken; those in flight are still answered. */
void xen_conn_stop(struct xen_conn *c);
unsigned xen_conn_inflight(const struct xen_conn *c);

/* Members of a status: queues, pages, requests ... */
void xen_conn_status(const struct xen_conn *c, struct cow_kv *kv);

#endif
