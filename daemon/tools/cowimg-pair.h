/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Two chains side by side: where it is known that they read the same, without reading.
 */
#ifndef COWIMG_PAIR_H
#define COWIMG_PAIR_H

#include "cowimg.h"

struct pair_side {
	struct cow_chain_cfg cfg;	/* for those who open it once more */
	struct cow_chain *c;
	unsigned first;			/* the layer from which on it is compared */
	uint64_t size;			/* of that */
	unsigned shared_from;		/* layers from here on are the other's, too */
	struct cow_extent ext;		/* at the current position; len 0: none yet */
	unsigned layer;
};

struct pair {
	struct pair_side a, b;		/* b.c NULL, its size 0: an image of zeroes */
	uint64_t end;
};

/*
 * Which layers they have in common. Layers that the options @a_args and @b_args are about (they
 * may be NULL) count as different ones: options can tell what of a file is read.
 */
void pair_find_shared(struct pair *p, const struct cow_args *a_args, const struct cow_args *b_args);
/* From @virt to *ret_end: is it known that both read the same? 0 or -errno. */
int pair_look(struct pair *p, uint64_t virt, bool *ret_same, uint64_t *ret_end);

#endif
