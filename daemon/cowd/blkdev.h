/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who uses a block device: file systems mounted from it, partitions and other
 * devices built on it. Asks the mount table and sysfs, whatever kind of device it is.
 */
#ifndef COWD_BLKDEV_H
#define COWD_BLKDEV_H

#include <sys/types.h>

#include "cow/err.h"

/*
 * Its size and number. Opens it, which can make the kernel read from it: while this
 * process serves it, only in a child process.
 */
int blkdev_facts(const char *dev, uint64_t *ret_bytes, dev_t *ret_rdev, struct cow_err *err);

/*
 * -EBUSY and a sentence when @dev, or what is built on it, is mounted or otherwise claimed.
 * Opens it, too.
 */
int blkdev_claimed(const char *dev, struct cow_err *err);

/* Is @dir (absolute, no links) on a file system that is mounted from @dev, or from what is built on it? */
bool blkdev_carries(const char *dev, const char *dir);

/* Writes back the file systems mounted from @dev and from what is built on it. */
void blkdev_sync(const char *dev);

#endif
