/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The remap query and its answer: "where does this range live, for read or
 * for write, and must something be copied first?" All values are bytes.
 */
#ifndef COW_MAP_H
#define COW_MAP_H

#include "cow/util.h"

enum cow_intent {
	COW_READ,
	COW_WRITE,
	COW_ZERO,	/* must read as zeroes afterwards */
	COW_DISCARD,	/* as COW_ZERO for whole granules; ragged edges keep their contents */
	COW_REPORT,	/* describe, for map listings; same answer as COW_READ */
	COW_PLACE,	/* where could others write it, and say so afterwards? Only with cow_image.place */
	COW_PLACED,	/* others wrote it to cow_query.phys, which COW_PLACE had answered */
};

enum cow_kind {
	COW_HOLE,	/* reads as zeroes, nothing stored, do not look lower */
	COW_DATA,	/* stored in file[@file] at @phys; verbatim, unless cow_image.encrypted */
	COW_BELOW,	/* not in this layer: ask the next one (zeroes if none) */
	COW_ENCODED,	/* compressed: only the format's decode() can read it; cannot be remapped */
};

#define COW_EXT_NEW	(1u << 0)	/* reserved by this answer; commit() makes it visible */
#define COW_EXT_SHARED	(1u << 1)	/* must be unshared before a write */
#define COW_EXT_TABLE	(1u << 2)	/* with NEW: a table is to be made first, see struct cow_map */

#define COW_ENCODED_MAX	(4u << 20)	/* bytes of an encoded extent, stored or plain */

struct cow_extent {
	uint64_t virt, len;	/* virtual range described; always covers query.virt; len > 0 */
	uint64_t phys;		/* valid for COW_DATA, COW_ENCODED */
	uint16_t file;		/* index in the layer's file table */
	uint8_t kind;		/* enum cow_kind */
	uint8_t pad;
	uint32_t flags;		/* COW_EXT_* */
};

struct cow_query {
	uint64_t virt, len;	/* in bounds of the image, len > 0 */
	uint32_t intent;	/* enum cow_intent */
	uint32_t flags;		/* 0 */
	uint64_t phys;		/* COW_PLACED */
};

/*
 * The answer.
 *
 * READ, REPORT: @dst says where the bytes are; it may end before or after the
 * query's end, and starts at or before its start. Of COW_ENCODED, @dst is what
 * decode() makes at once, and src.len bytes from src.phys on are its stored form.
 *
 * WRITE: @dst is COW_DATA and covers query.virt. Without COW_EXT_NEW the bytes
 * can be written in place. With it, @dst starts and ends either at the query's
 * own edge or at a granule boundary beyond it: the bytes of @dst outside the
 * query must be filled with old contents first, from the layers below when
 * @src.kind is COW_BELOW, with zeroes when it is COW_HOLE, with what this layer
 * reads as when it is COW_DATA.
 *
 * ZERO, DISCARD: the query is whole granules (the end of the image counts as a
 * granule boundary). COW_DATA: give the file range back (punch), then commit().
 * COW_HOLE: reads as zeroes already, nothing to do; with COW_EXT_NEW it will as
 * soon as commit() was called, no data is touched. A punched place of an encrypted
 * image does not read as zeroes: there COW_HOLE is the only answer, or -EOPNOTSUPP for
 * a granule that cannot be said to be zeroes without data. Then they are written.
 *
 * PLACE: as WRITE, for whole units of cow_image.place: nothing is filled, and without
 * COW_EXT_TABLE nothing is committed. A NEW place shows nothing, and stays that of these units until the
 * image is closed: asked again, the answer is the same. -EOPNOTSUPP: there is none but by a WRITE.
 *
 * PLACED: whole units, as PLACE answered them in this session, or in one whose process was killed: then it
 * is not this image that remembers. @dst is at query.phys, and covers no more than the query; with
 * COW_EXT_NEW commit() shows it. -EIO: it cannot have been the place.
 *
 * All but READ and REPORT may be answered with COW_EXT_NEW | COW_EXT_TABLE instead: @dst.phys,
 * @dst.len is a place in the file for a table of the format. It is filled, with
 * zeroes when @src.kind is COW_HOLE, with the bytes at @src.phys of the file when
 * it is COW_DATA; then commit() is called, then the same query is asked again.
 */
struct cow_map {
	struct cow_extent dst;
	struct cow_extent src;
	uint64_t cookie;	/* the plugin's reservation, for commit() */
	uint64_t gen;		/* image->gen at the time of the answer */
};

#endif
