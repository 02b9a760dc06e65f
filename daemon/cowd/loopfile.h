/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Loop devices over image files that the kernel is to read and write itself. They
 * go by themselves when the last one closes them: device-mapper while a table
 * names them, and whoever holds the descriptor from here. Nothing is left of one
 * when this process is killed before the table was loaded.
 *
 * Not for files that this process serves: that is loopdev.h.
 */
#ifndef COWD_LOOPFILE_H
#define COWD_LOOPFILE_H

#include <sys/types.h>

#include "cow/chain.h"

#define LOOP_CONTROL "/dev/loop-control"

struct loopfile {
	int fd;			/* keeps it */
	dev_t rdev;
	uint32_t unit;		/* bytes of its logical block */
	bool direct;		/* else the kernel goes through the page cache */
	uint64_t size;		/* bytes */
};

/*
 * A new one over the whole of @f, which is opened again by its descriptor: no path can
 * lead elsewhere. @path: for people. 0, or -errno and a sentence.
 */
int loopfile_attach(const struct cow_chain_file *f, struct loopfile *ret, struct cow_err *err);

/*
 * The one that a killed process left: is block device @rdev a loop device over the
 * whole of @f, writable if that is? 0, or -errno and a sentence.
 */
int loopfile_adopt(const struct cow_chain_file *f, dev_t rdev, struct loopfile *ret,
		   struct cow_err *err);

/* Is block device @rdev a loop device over the file @dev, @ino? */
bool loopfile_uses(dev_t rdev, uint64_t dev, uint64_t ino);

/* The file has a new size: so has the device then. */
int loopfile_resize(struct loopfile *l);

/* Lets go of it. */
void loopfile_close(struct loopfile *l);

/* Of any block device: logical block and size. 0 or -errno. */
int loopfile_geometry(int fd, uint32_t *ret_unit, uint64_t *ret_size);

#endif
