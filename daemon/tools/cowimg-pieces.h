/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pieces of a disk image on their way from one image to another: what can be done
 * to several at once. Worker threads read, look for zeroes, compare with a base,
 * hash and encode; whoever fills and empties the queue, one thread, sees them
 * in the order in which they were submitted.
 */
#ifndef COWIMG_PIECES_H
#define COWIMG_PIECES_H

#include "cow/chain.h"

#define PIECE_BYTES	(1u << 20)	/* of a piece: large enough to hide what it costs to hand it over */
#define PIECE_UNIT	4096u		/* zeroes shorter than this are data */

/* What becomes of a unit. */
enum piece_fate {
	PIECE_READ,	/* to be read: a worker makes it one of those below */
	PIECE_ZERO,
	PIECE_SAME,	/* the base of the new image has it */
	PIECE_DATA,
	PIECE_ENCODED,	/* data, whose stored form is there */
	PIECE_PLACED,	/* data that is in the new image's file */
};

struct piece {
	uint64_t virt, len;	/* but at the ends of what is copied, starts and ends at a unit */
	bool zero;		/* all of it, of any length: there is nothing but @virt and @len */
	uint8_t *fate;		/* enum piece_fate of each unit */
	uint8_t *buf;		/* what was read; undefined in units that were not */
	uint8_t *stored;	/* of encoded units: at the unit's place */
	size_t *stored_len;
	uint64_t read_bytes, hash;
	int result;
	bool placing;		/* it failed at the new image, not at the source */
	bool done;
};

struct pieces_cfg {
	const struct cow_chain_cfg *source;
	uint64_t source_shift;			/* what is to be at @virt is in the source at @virt + this, modulo 2^64 */
	const struct cow_chain_cfg *base;	/* NULL: units are not compared */
	size_t unit;				/* divides PIECE_BYTES, or is more */
	bool hash;				/* of all bytes, XXH3 */
	const struct cow_image *encode_for;	/* NULL: data stays plain */
	/*
	 * File of the new image, which is linear (struct cow_image): what need not be looked at
	 * may be put there at once, at its virtual offset and this. -1: not.
	 */
	int out_fd;
	uint64_t out_shift;
};

struct pieces;

/* The chains are opened by the workers; failure of that is the result of each piece. */
int pieces_start(const struct pieces_cfg *cfg, struct pieces **ret);
/* A free one to be filled in; NULL: enough are on their way. */
struct piece *pieces_free(struct pieces *q);
void pieces_submit(struct pieces *q);
/* The oldest on its way, when it is done; NULL: there is none. */
struct piece *pieces_oldest(struct pieces *q);
void pieces_release(struct pieces *q);
/* Why chains could not be opened, for the result of a piece. */
const struct cow_err *pieces_error(struct pieces *q);
/* What is on its way is given up. */
void pieces_stop(struct pieces *q);

/*
 * Units of @p that are to be read: puts into cfg->out_fd what the kernel can copy there. 0, and
 * those are PIECE_PLACED; 1: the kernel does not do it between these files; -errno.
 */
int piece_offload(const struct pieces_cfg *cfg, struct cow_chain *source, struct piece *p);

bool piece_all_zero(const uint8_t *p, size_t len);
/* The hash in struct piece. */
uint64_t piece_hash(const void *p, size_t len);

#endif
