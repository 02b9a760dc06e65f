/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A chain as the kernel target "userspace" sees it. Asks only the chain's metadata; moves
 * no data, talks to no kernel.
 *
 * Where every image has its data in order (cow_image.linear), one section of the device
 * is a struct dmu_section, planes and presence bits: plane 0 is the top image, which
 * takes all writes; each layer below that has anything in the section and can be seen
 * there is one more plane. Else each question gets a struct dmu_blocks, the run of blocks that
 * lie side by side (mapblk.c).
 */
#ifndef COWD_MAPREQ_H
#define COWD_MAPREQ_H

#include "cow/chain.h"
#include "kernel-compat/uapi/linux/dm-userspace.h"

#define MAPREQ_SECTOR 512u

/* The block device that carries a layer's file from its first byte on. */
struct mapreq_file {
	uint16_t dev;		/* its index in the table */
	uint32_t unit;		/* bytes of its logical block */
	uint64_t size;		/* bytes that it has */
};

struct mapreq {
	struct cow_chain *chain;
	bool writable;
	bool blocks;		/* data lies anywhere: mapreq_blocks() instead of mapreq_section() */
	uint32_t unit;		/* the largest of the files' */
	uint8_t granule_shift;	/* 2^n sectors */
	uint16_t dev[DMU_PLANES_MAX];	/* of each layer */
	uint64_t size[DMU_PLANES_MAX];	/* bytes of each */
	/* Of the section being looked at; here, so that nothing is allocated for one. */
	uint8_t bits[DMU_PLANES_MAX][DMU_BITS_BYTES_MAX];
	uint8_t covered[DMU_BITS_BYTES_MAX];	/* what the planes so far show */
};

/*
 * Can the kernel be shown this chain at all, on devices with logical blocks of @unit
 * bytes? 0; or -EOPNOTSUPP and a sentence that names the layer and the reason.
 */
int mapreq_suits(struct cow_chain *c, uint32_t unit, struct cow_err *why);

/* @files: one of each layer that has a file, by its number. As mapreq_suits(). */
int mapreq_init(struct mapreq *m, struct cow_chain *c, const struct mapreq_file *files,
		struct cow_err *err);

#define MAPREQ_RECORD_MAX (sizeof(struct dmu_section) + \
			   DMU_PLANES_MAX * (sizeof(struct dmu_plane) + DMU_BITS_BYTES_MAX))

struct mapreq_answer {
	union {
		struct dmu_section section;
		struct dmu_blocks blocks;
		uint64_t align;
		uint8_t bytes[MAPREQ_RECORD_MAX];
	} record;
	uint32_t size;		/* bytes of the record */
	/* Granules that no plane can show, because a layer has only a part of them: */
	uint32_t ragged;	/* how many; 0: the record is good */
	uint8_t ragged_bits[DMU_BITS_BYTES_MAX];
	uint64_t grow;		/* mapreq_blocks(): see MAPREQ_GROW */
	uint32_t sectors;	/* mapreq_blocks(): see MAPREQ_PRESENT, MAPREQ_PLACE */
};

/*
 * Describes the section that starts at sector @start (a multiple of
 * DMU_SECTION_SECTORS within the device); the record's id is 0. With ret->ragged,
 * which only a writable chain has, there is no record: make those granules present
 * in the top image and ask again. Blocks for metadata. 0 or -errno.
 */
int mapreq_section(struct mapreq *m, uint64_t start, struct mapreq_answer *ret);

enum mapreq_need {
	MAPREQ_READY,		/* the record is good */
	MAPREQ_DATA,		/* no device has it as it is read: send the bytes */
	MAPREQ_PRESENT,		/* make the first ret->sectors present in the top image, then ask again */
	MAPREQ_PLACE,		/* the same by COW_OP_PLACE */
	MAPREQ_GROW,		/* the top image's device has to have ret->grow bytes first */
};

/*
 * Answers a DMU_ASK of a chain with m->blocks. enum mapreq_need; or -errno: -EIO for damaged
 * metadata. Blocks for metadata.
 */
int mapreq_blocks(struct mapreq *m, const struct dmu_ask *ask, struct mapreq_answer *ret);

/* Calls @fn for each run of set bits below @count, in order, while it returns 0. Returns what it did. */
int mapreq_each_run(const uint8_t *bits, uint32_t count,
		    int (*fn)(void *opaque, uint32_t first, uint32_t n), void *opaque);

#endif
