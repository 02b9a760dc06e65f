/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What Xen's libraries do for us: xenstore, grants, event channels, as a table of
 * functions that cowd-xen.so gives (module/xen.c, the only file that knows the libraries),
 * or a test. All return 0 or more, or -errno.
 */
#ifndef COWD_XEN_LIB_H
#define COWD_XEN_LIB_H

#include "cow/module.h"
#include "xen-ring.h"

#define XEN_VALUE_MAX 4096u	/* bytes of a node, terminating zero included */

struct xen_lib {
	struct cow_module module;

	/* ---- xenstore; @tx 0: outside of transactions ---- */
	int (*store_open)(void **ret);
	void (*store_close)(void *store);
	int (*store_fd)(void *store);			/* readable: there may be events */
	/* -ERANGE: does not fit. What is in the node is a string afterwards, whatever it was. */
	int (*store_read)(void *store, uint32_t tx, const char *path, char *buf, size_t size);
	int (*store_write)(void *store, uint32_t tx, const char *path, const char *value);
	int (*store_remove)(void *store, uint32_t tx, const char *path);
	/* For @owner everything; for @reader reading; for others nothing. */
	int (*store_permit)(void *store, uint32_t tx, const char *path, uint32_t owner,
			    uint32_t reader);
	/* Names below @path: for each @fn. */
	int (*store_list)(void *store, uint32_t tx, const char *path,
			  void (*fn)(void *opaque, const char *name), void *opaque);
	int (*store_watch)(void *store, const char *path, const char *token);
	int (*store_event)(void *store);		/* takes one; 0: there is none */
	int (*store_begin)(void *store, uint32_t *ret_tx);
	int (*store_end)(void *store, uint32_t tx, bool abort);	/* -EAGAIN: all over again */

	/* ---- grants ---- */
	int (*grants_open)(void **ret);
	void (*grants_close)(void *grants);
	int (*grants_map)(void *grants, uint32_t domain, const uint32_t *refs, unsigned n,
			  void **ret);
	void (*grants_unmap)(void *grants, void *mem, unsigned n);
	void (*grants_copy)(void *grants, uint32_t domain, struct xen_copy *copies, unsigned n);

	/* ---- event channels ---- */
	int (*events_open)(uint32_t domain, void **ret);	/* with this domain alone */
	void (*events_close)(void *events);
	int (*events_fd)(void *events);			/* readable: a port is pending */
	int (*events_bind)(void *events, uint32_t domain, uint32_t port);	/* our port */
	int (*events_unbind)(void *events, int port);
	int (*events_notify)(void *events, int port);
	int (*events_pending)(void *events);		/* our port, masked now; reads events_fd() */
	int (*events_unmask)(void *events, int port);
};

/* Is this a machine under Xen where a backend can run? 0, or -errno and why not. */
int xen_lib_probe(struct cow_err *why);
int xen_lib_load(const struct xen_lib **ret, struct cow_err *err);

/* Test hook: taken instead of the module. */
extern const struct xen_lib *xen_lib_fake;

#endif
