/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The pages that a guest granted us. Data is copied: by the hypervisor; or by us, from and to
 * pages that stay mapped, when the guest promised to use the same ones again (persistent
 * grants). What the guest does with a page meanwhile is its own affair: nothing is read from
 * one twice, and none is handed on to the kernel.
 */
#ifndef COWD_XEN_GRANTS_H
#define COWD_XEN_GRANTS_H

#include "xen-lib.h"

struct xen_grants;

/* @keep: so many pages at most stay mapped; 0: none. -errno. */
int xen_grants_new(const struct xen_lib *lib, uint32_t domain, unsigned keep,
		   struct xen_grants **ret);
void xen_grants_free(struct xen_grants *g);	/* all mapped ones go; NULL is allowed */

/* For a ring: @n pages in a row, until they are unmapped. -errno. */
int xen_grants_map(struct xen_grants *g, const uint32_t *refs, unsigned n, void **ret);
void xen_grants_unmap(struct xen_grants *g, void *mem, unsigned n);

/* Makes all copies that can be made, and says of each whether it was. */
void xen_grants_copy(struct xen_grants *g, struct xen_copy *copies, unsigned n);

unsigned xen_grants_kept(const struct xen_grants *g);

#endif
