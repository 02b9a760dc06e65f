/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A front end: what carries a device to its users. Each has one table of
 * functions, in fe-NAME.c, and is listed in frontend.c.
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
	const char *name;	/* of the device */
	const char *mount;	/* an empty folder to mount on */
	const char *disk;	/* the disk's file below it */
	/*
	 * What a killed daemon with this front end left alive, to be taken up again:
	 * its block_device(). "": nothing, make it anew.
	 */
	const char *left;
	const char *xenbus;	/* the backend's folder in xenstore; NULL: not for Xen */
	bool no_loop;
	bool scan;		/* the kernel and udev may look at the contents */
	fe_done_fn *ready;	/* once, after start(): usable, or why not */
	void (*changed)(void *opaque);	/* block_device() changed: record it for after a kill */
	void (*gone)(void *opaque);	/* ended by somebody else */
	void *opaque;
};

struct fe_ops {
	const char *name;
	const char *desc;
	bool has_file;		/* the disk is a file at cfg->disk, too */
	bool ends;		/* that its users give it back, by cfg->gone(), is its usual end */
	/* 0 when this machine can run it, else -errno and the reason. */
	int (*probe)(struct cow_err *why);
	/* 0 when it can carry this chain, else -errno and the reason. NULL: any chain. */
	int (*suits)(struct cow_dev *dev, struct cow_err *why);
	/*
	 * What a killed daemon of @name left (@device was its block_device()): true when it
	 * is alive, so that start() with cfg->left can take it up without an I/O error.
	 * NULL: never.
	 */
	bool (*alive)(const char *name, const char *device);
	/*
	 * Does what a killed daemon of @name left use the file @dev, @ino (of a block device its
	 * number and 0)? Then its locks are not in the way. NULL: it never uses files by itself.
	 */
	bool (*keeps)(const char *name, uint64_t dev, uint64_t ino);
	/*
	 * Removes it. In the process that starts, before anything is served; NULL: nothing to do.
	 * -EBUSY: that would lose acknowledged writes, so the start is refused.
	 */
	int (*clean)(const char *name, const char *device, struct cow_err *err);
	int (*start)(const struct fe_cfg *cfg, struct fe **ret, struct cow_err *err);
	/*
	 * Takes the device from its users. Without @force it fails with -EBUSY and a
	 * sentence, changing nothing, when there are any. The device answers until free().
	 */
	void (*stop)(struct fe *fe, bool force, fe_done_fn *done, void *opaque);
	/*
	 * Instead of stop() at a signal: lets its users wait for the next daemon of this name.
	 * NULL: it cannot.
	 */
	void (*leave)(struct fe *fe, fe_done_fn *done, void *opaque);
	/* Nothing is in flight. */
	void (*free)(struct fe *fe);
	/* The device has a new size: pass it on. */
	void (*resized)(struct fe *fe, fe_done_fn *done, void *opaque);
	/* May the device become smaller while it runs? 0, or -errno and a sentence. NULL: it may. */
	int (*may_shrink)(struct fe *fe, struct cow_err *why);
	/* What to tell the user: a block device where there is one, else the file. */
	const char *(*path)(const struct fe *fe);
	const char *(*block_device)(const struct fe *fe);	/* "": none */
	/* Adds members to @kv for the status; NULL: none. */
	void (*status)(struct fe *fe, struct cow_kv *kv);
	/*
	 * For a pause, before the device is paused (@on), and after it goes on: what does not go
	 * through the device waits, too. NULL: there is nothing like that.
	 */
	void (*hold)(struct fe *fe, bool on, fe_done_fn *done, void *opaque);
};

/* In the order of preference. */
extern const struct fe_ops fe_dm;	/* the kernel target "userspace" */
extern const struct fe_ops fe_ublk;	/* ublk under a dm-linear node */
extern const struct fe_ops fe_bridge;	/* FUSE file, loop device, dm-linear node */
extern const struct fe_ops fe_fuse;	/* FUSE file, loop device where there is one */
/* Only when asked for: its users are elsewhere. */
extern const struct fe_ops fe_xen;	/* the rings of a Xen guest */

/*
 * For the functions that run in a child: closes every descriptor above 2 but
 * @out_fd. Else the child would keep the connection of the device open that it
 * waits for, and could never end if the daemon is killed.
 */
void fe_child_begin(int out_fd);

#endif
