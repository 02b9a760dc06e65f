/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Buffers for requests of one guest, out of memory of a fixed size: what a guest can
 * make its backend hold has an end. Not for several threads.
 */
#ifndef COWD_XEN_POOL_H
#define COWD_XEN_POOL_H

#include <stdbool.h>
#include <stddef.h>

struct xen_pool;

/* @bytes in all; touched only as far as it is used. 0 or -errno. */
int xen_pool_new(size_t bytes, struct xen_pool **ret);
/* Everything has been given back. NULL is allowed. */
void xen_pool_free(struct xen_pool *p);

/* A page-aligned buffer; NULL: there is no room for it now. @bytes: 1 to those of the pool. */
void *xen_pool_get(struct xen_pool *p, size_t bytes);
/* @bytes as it was got. */
void xen_pool_put(struct xen_pool *p, void *buf, size_t bytes);

/* Was something given back since somebody went away without a buffer? Says so once. */
bool xen_pool_freed(struct xen_pool *p);

size_t xen_pool_used(const struct xen_pool *p);

#endif
