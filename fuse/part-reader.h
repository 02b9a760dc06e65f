/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What cowfuse-blkid.so gives to part.c: the reading of a partition table, by
 * libblkid. A module, since most views are never asked for their partitions.
 */
#ifndef COW_FUSE_PART_READER_H
#define COW_FUSE_PART_READER_H

#include "cow/module.h"

#define PART_READER "cowfuse-blkid"

struct part_reader {
	struct cow_module module;
	/* Prepares for the disk @fd, asking for its size and nothing more. NULL: failed. */
	void *(*open)(int fd);
	/* Calls @found for each partition, in sectors of 512 bytes, until it returns not 0. */
	int (*read)(void *disk, int (*found)(int number, int64_t start, int64_t sectors));
};

#endif
