/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The metadata cache: the only I/O that a format's map() and commit() see.
 *
 * Blocks are COW_META_BLOCK bytes of one of the image's files, aligned. Dirty
 * blocks are written by libcow, at flush, behind the data they describe. Until
 * then they live in memory that the kernel holds (see chain.h, "volatile map"),
 * so that killing the process loses nothing it acknowledged.
 *
 * All calls: on the thread that owns the chain, from map() or commit() only.
 */
#ifndef COW_META_H
#define COW_META_H

#include "cow/util.h"

#define COW_META_BLOCK 4096u
#define COW_META_PINS 8	/* blocks one map() may hold: the depth of the deepest table plus its refcounts */

struct cow_image;
struct cow_mblk;

/* What a block holds; after a kill, blocks are written in this order. */
enum cow_meta_class { COW_META_REFCOUNT, COW_META_TABLE, COW_META_HEADER, COW_META_CLASSES };

#define COW_META_NEW (1u << 0)	/* contents on disk do not matter: start from zeroes, no read */

/*
 * Finds the block at @off (a multiple of COW_META_BLOCK) of file[@file] and
 * pins it until the running map() has succeeded (WRITE, ZERO, DISCARD: until
 * its commit() returned). Returns 0, -EAGAIN (not here yet: return -EAGAIN
 * from map() having changed nothing; it is called again), or -errno.
 */
COW_EXPORT int cow_meta_get(struct cow_image *img, uint16_t file, uint64_t off, uint32_t flags,
			    struct cow_mblk **ret);

/* The COW_META_BLOCK bytes. Writable, but say cow_meta_dirty() in the same call. */
COW_EXPORT void *cow_meta_data(struct cow_mblk *blk);

/*
 * The block was changed. It becomes durable no earlier than the next fdatasync
 * of the data written so far. Cannot fail.
 */
COW_EXPORT void cow_meta_dirty(struct cow_mblk *blk, enum cow_meta_class cls);

/*
 * Write-order edge: @later must not become durable before @earlier is. Say it
 * before changing either block. Returns 0, or -EAGAIN when the edge would close
 * a circle or a block has too many: return -EAGAIN from map(); libcow flushes
 * and calls map() again.
 */
COW_EXPORT int cow_meta_after(struct cow_mblk *later, struct cow_mblk *earlier);

#endif
