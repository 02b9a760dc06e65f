/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The FUSE file and its loop device, for a front end that puts something on
 * top: the bridge. All but the start is the same for both.
 */
#ifndef COWD_FE_FUSE_H
#define COWD_FE_FUSE_H

#include "fe.h"

/* What stands on the loop device; called in child processes. As in linear.h. */
struct fuse_top {
	int (*attach)(const char *name, const char *blockdev, bool read_only, struct cow_err *err);
	int (*resize)(const char *name, const char *blockdev, bool read_only, struct cow_err *err);
	int (*detach)(const char *name, bool force, struct cow_err *err);
	void (*path)(const char *name, char *ret, size_t size);
};

int fe_fuse_probe(struct cow_err *why);
/* @top: NULL for none. With one there must be a loop device. */
int fe_fuse_start(const struct fe_cfg *cfg, const struct fuse_top *top, struct fe **ret,
		  struct cow_err *err);
void fe_fuse_stop(struct fe *fe, bool force, fe_done_fn *done, void *opaque);
void fe_fuse_free(struct fe *fe);
void fe_fuse_resized(struct fe *fe, fe_done_fn *done, void *opaque);
const char *fe_fuse_path(const struct fe *fe);
const char *fe_fuse_block_device(const struct fe *fe);

#endif
