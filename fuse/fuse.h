/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The FUSE front end as a library: shows a running device as a small tree of
 * files under a mount point. Used by cowd and cowfuse. It opens no image and
 * knows no format; everything goes through struct cow_dev.
 *
 *	disk            the whole virtual disk
 *	p1 .. pN        its partitions (GPT, MBR), when there is a table
 *	layers/N        what layer N and those below it hold; 0 is the top; read-only
 *	info.json       facts about the image and the device
 *	map.json        where every range of the disk is stored
 *	stats           counters, as indented text
 */
#ifndef COW_FUSE_H
#define COW_FUSE_H

#include "cow/dev.h"

struct cow_fuse;

struct cow_fuse_cfg {
	struct cow_loop *loop;
	struct cow_dev *dev;
	const char *mountpoint;		/* an existing folder */
	bool writable;			/* else the mount is read-only */
	bool shared;			/* others change the device too: trust no cached page */
	const char *source;		/* for the mount table; NULL: the device's name */
	const char *mount_opts;		/* more "-o" options, comma separated; may be NULL */

	/* Files can be opened: the kernel has agreed on the protocol. Once. May be NULL. */
	void (*ready)(void *opaque);
	/*
	 * The kernel ended the session ("umount", "fusermount3 -u", abort). May
	 * call cow_fuse_unmount() on the spot. May be NULL.
	 */
	void (*unmounted)(void *opaque);
	void *opaque;
};

/*
 * Mounts and starts serving from @cfg->loop. Several can serve one device. A
 * dead mount that an earlier process left on the mount point is taken away
 * first. On failure nothing stays behind.
 */
int cow_fuse_mount(const struct cow_fuse_cfg *cfg, struct cow_fuse **ret, struct cow_err *err);

/*
 * Takes the mount away, busy or not; who still has a file open gets ENOTCONN.
 * Requests in flight go on to their end in the device, so call it before
 * cow_dev_free(), and run the loop (cow_dev_drain()) in between. NULL is allowed.
 */
void cow_fuse_unmount(struct cow_fuse *f);

/* Absolute. */
const char *cow_fuse_mountpoint(const struct cow_fuse *f);

#endif
