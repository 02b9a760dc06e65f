/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Loop devices over the disk file that this daemon serves. All of it may wait
 * for I/O on that file, so while the daemon serves it must run in a child process.
 */
#ifndef COWD_LOOPDEV_H
#define COWD_LOOPDEV_H

#include "cow/err.h"

/*
 * Attaches a loop device to @disk. @prefer: the device to try first, or NULL.
 * 0 and its path in @ret; -errno and a sentence; -ENODEV: none can be had here.
 */
int loopdev_attach(const char *disk, bool read_only, const char *prefer, char *ret, size_t size,
		   struct cow_err *err);

/* Is @dev attached to the file @disk? @recorded: what our state file says, "" for nothing. */
bool loopdev_is_ours(const char *dev, const char *disk, const char *recorded);

/* -EBUSY and a sentence when @dev or a partition of it is mounted or otherwise claimed. */
int loopdev_claimed(const char *dev, struct cow_err *err);

/* Is @dir (absolute, no links) on a file system that is mounted from @dev? */
bool loopdev_carries(const char *dev, const char *dir);

/* Writes back the file systems mounted from @dev. */
void loopdev_sync(const char *dev);

/*
 * Detaches @dev and waits until it is. While somebody else has it open: -EBUSY, a
 * sentence, and it stays attached; with @force it is then detached when the
 * last one closes it, and the result is 0.
 */
int loopdev_detach(const char *dev, bool force, struct cow_err *err);

/* The disk file changed its size: tell the device. */
int loopdev_resize(const char *dev, const char *disk);

#endif
