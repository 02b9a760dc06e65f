/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A front end: what carries a device to its users. Each has one table of
 * functions, in fe-NAME.c, and is listed in serve.c.
 *
 * All calls on the loop's thread. What would wait for the device that this
 * process serves is done in a child process; its result comes to done().
 */
#ifndef COWD_FE_H
#define COWD_FE_H

#include "cow/dev.h"

struct fe;

typedef void fe_done_fn(void *opaque, int result, const char *sentence);

struct fe_cfg {
	struct cow_loop *loop;
	struct cow_dev *dev;
	const char *mount;	/* an empty folder to mount on */
	const char *disk;	/* the disk's file below it */
	bool no_loop;
	fe_done_fn *ready;	/* once, after start(): usable, or why not */
	void (*changed)(void *opaque);	/* block_device() changed: record it for after a kill */
	void (*gone)(void *opaque);	/* ended by somebody else */
	void *opaque;
};

struct fe_ops {
	const char *name;
	const char *desc;
	/* 0 when this machine can run it, else -errno and the reason. */
	int (*probe)(struct cow_err *why);
	int (*start)(const struct fe_cfg *cfg, struct fe **ret, struct cow_err *err);
	/*
	 * Takes the device from its users. Without @force it fails with -EBUSY and a
	 * sentence, changing nothing, when there are any. The device answers until free().
	 */
	void (*stop)(struct fe *fe, bool force, fe_done_fn *done, void *opaque);
	/* Nothing is in flight. */
	void (*free)(struct fe *fe);
	/* The device has a new size: pass it on. */
	void (*resized)(struct fe *fe, fe_done_fn *done, void *opaque);
	/* What to tell the user: a block device where there is one, else the file. */
	const char *(*path)(const struct fe *fe);
	const char *(*block_device)(const struct fe *fe);	/* "": none */
};

extern const struct fe_ops fe_fuse;

/*
 * For the functions that run in a child: closes every descriptor above 2 but
 * @out_fd. Else the child would keep the connection of the device open that it
 * waits for, and could never end if the daemon is killed.
 */
void fe_child_begin(int out_fd);

#endif
