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

/* How many layers, from the first one on, have options. */
static unsigned with_options(const struct cow_args *args)
{
	struct cow_args *below;
	unsigned n;

	if (!args)
		return 0;
	if (cow_args_of_base(args, &below))
		return COW_CHAIN_DEPTH;		/* no memory: none is known not to */
	n = 1 + with_options(below);
	cow_args_free(below);
	return n;
}

static unsigned layers_without(struct cow_chain *c, const struct cow_args *args)
{
	unsigned depth = cow_chain_depth(c), n = with_options(args);

	return n < depth ? depth - n : 0;
}

void pair_find_shared(struct pair *p, const struct cow_args *a_args, const struct cow_args *b_args)
{
	unsigned na, nb, n;

	p->a.shared_from = p->b.shared_from = UINT_MAX;
	if (!p->b.c)
		return;
	na = cow_chain_depth(p->a.c);
	nb = cow_chain_depth(p->b.c);
	n = cow_min(layers_without(p->a.c, a_args), layers_without(p->b.c, b_args));
	for (; n > 0; n--) {
		if (img_same_layers(p->a.c, na - n, p->b.c, nb - n)) {
			p->a.shared_from = na - n;
			p->b.shared_from = nb - n;
			return;
		}
	}
}
