/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Loop devices over the disk file that this daemon serves. All of it may wait
 * for I/O on that file, so while the daemon serves it must run in a child process.
 */
#ifndef COWD_LOOPDEV_H
#define COWD_LOOPDEV_H

#include "cow/err.h"

#define LOOPDEV_READONLY (1u << 0)
#define LOOPDEV_SCAN (1u << 1)	/* the kernel reads its partition table; udev takes it for a leave */

/*
 * Attaches a loop device to @disk. @flags: LOOPDEV_*. @prefer: the device to try first,
 * or NULL. 0 and its path in @ret; -errno and a sentence; -ENODEV: none can be had here.
 */
int loopdev_attach(const char *disk, unsigned flags, const char *prefer, char *ret, size_t size,
		   struct cow_err *err);

/* Is @dev attached to the file @disk? @recorded: what our state file says, "" for nothing. */
bool loopdev_is_ours(const char *dev, const char *disk, const char *recorded);

/*
 * Detaches @dev and waits until it is. While somebody else has it open: -EBUSY, a
 * sentence, and it stays attached; with @force it is then detached when the
 * last one closes it, and the result is 0.
 */
int loopdev_detach(const char *dev, bool force, struct cow_err *err);

/* The disk file has @size bytes now: tell the device. 0 or -errno. */
int loopdev_resize(const char *dev, const char *disk, uint64_t size);

#endif
