/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The file in the run directory that holds what a killed daemon had taken from its rings
 * and not answered: DIR/NAME.ring, mapped shared. It belongs to one connection of one
 * guest on one boot of the machine.
 */
#ifndef COWD_XEN_KEEP_H
#define COWD_XEN_KEEP_H

#include "xen-conn.h"

struct xen_keep;

/* Made anew for this connection, not valid yet. @dir: the backend's folder. */
int xen_keep_create(const char *name, const char *dir, const struct xen_params *params,
		    struct xen_keep **ret, struct cow_err *err);
/* What is there for this connection, if it is valid. -ENOENT: nothing. */
int xen_keep_find(const char *name, const char *dir, const struct xen_params *params,
		  struct xen_keep **ret);
struct xen_kept *xen_keep_queue(struct xen_keep *k, unsigned queue);
/* From now on it counts. */
void xen_keep_validate(struct xen_keep *k);
/* What a killed daemon left, of whatever connection, is of no use any more. */
void xen_keep_forget(const char *name);
/* Lets go of it; @forget: the connection is over, the file goes. NULL is allowed. */
void xen_keep_close(struct xen_keep *k, bool forget);

#endif
