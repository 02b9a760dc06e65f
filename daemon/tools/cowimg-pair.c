// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Two chains side by side. What both maps call zero, and what comes from layers that
 * both have, reads the same in both.
 */
#include "cowimg-pair.h"

#include <limits.h>

static int advance(struct pair_side *s, uint64_t virt, uint64_t end)
{
	if (s->ext.len && virt - s->ext.virt < s->ext.len)
		return 0;
	s->layer = 0;
	s->ext = (struct cow_extent){ .virt = virt, .len = end - virt, .kind = COW_HOLE };
	if (virt >= s->size)
		return 0;
	return cow_chain_next_extent(s->c, s->first, virt, s->size, &s->ext, &s->layer);
}

int pair_look(struct pair *p, uint64_t virt, bool *ret_same, uint64_t *ret_end)
{
	int r = advance(&p->a, virt, p->end);

	if (!r)
		r = advance(&p->b, virt, p->end);
	if (r) {
		p->a.ext.len = p->b.ext.len = 0;
		return r;
	}
	*ret_same = (p->a.ext.kind == COW_HOLE && p->b.ext.kind == COW_HOLE) ||
		    (p->a.layer >= p->a.shared_from && p->b.layer >= p->b.shared_from);
	*ret_end = cow_min(p->a.ext.virt + p->a.ext.len, p->b.ext.virt + p->b.ext.len);
	return 0;
}

void pair_find_shared(struct pair *p, bool by_options)
{
	unsigned na = cow_chain_depth(p->a.c), nb = cow_chain_depth(p->b.c);

	p->a.shared_from = p->b.shared_from = UINT_MAX;
	for (unsigned n = cow_min(na, nb); n > 0; n--) {
		if (n == na && by_options)
			continue;
		if (img_same_layers(p->a.c, na - n, p->b.c, nb - n)) {
			p->a.shared_from = na - n;
			p->b.shared_from = nb - n;
			return;
		}
	}
}
