/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Raw deflate, as the compressed clusters of qcow and qcow2 have it. Linked into
 * the plugins that use it.
 */
#ifndef COW_DEFLATE_H
#define COW_DEFLATE_H

#include <stddef.h>

#define DEFLATE_WINDOW (-12)	/* raw, 4 KiB: what both formats prescribe */

/* Exactly @len bytes out of @raw; what follows their end there is anything. 0, -EIO or -ENOMEM. */
int inflate_raw(const void *raw, size_t raw_len, void *out, size_t len);
/* The @len bytes at @plain into at most @room at @out. 0; -ENOSPC: they do not fit; -ENOMEM. */
int deflate_raw(const void *plain, size_t len, void *out, size_t room, size_t *ret_len);

#endif
