// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The map of a chain as a listing: a walk that joins what the engine answers
 * piece by piece, and its form as a key/value list. It knows nothing of how a
 * range is resolved (ops.c) and of no format.
 */
#include "cow/chain.h"

#include <errno.h>

#include "cow/dev.h"

const char *cow_extent_kind_name(const struct cow_extent *ext)
{
	switch (ext->kind) {
	case COW_DATA:
		return "data";
	case COW_ENCODED:
		return "encoded";
	default:
		return "zero";	/* a hole, or nothing in any layer */
	}
}

bool cow_extent_joins(const struct cow_extent *a, unsigned a_layer, const struct cow_extent *b,
		      unsigned b_layer)
{
	if (a_layer != b_layer || a->kind != b->kind)
		return false;
	switch (a->kind) {
	case COW_DATA:
		return a->file == b->file && a->phys + a->len == b->phys;
	case COW_ENCODED:
		return a->file == b->file;	/* where one unit lies says nothing of the next */
	default:
		return true;
	}
}

int cow_chain_next_extent(struct cow_chain *c, unsigned first, uint64_t virt, uint64_t end,
			  struct cow_extent *ret, unsigned *ret_layer)
{
	struct cow_extent ext, more;
	unsigned layer, more_layer;
	int r;

	if (first >= cow_chain_depth(c) || virt >= end || end > cow_chain_image(c, first)->size)
		return -EINVAL;
	r = cow_chain_extent(c, first, virt, end - virt, &ext, &layer);
	if (r)
		return r;
	cow_assert(ext.virt == virt && ext.len && ext.len <= end - virt);
	while (virt + ext.len < end) {
		uint64_t next = virt + ext.len;

		r = cow_chain_extent(c, first, next, end - next, &more, &more_layer);
		if (r)
			return r;
		cow_assert(more.virt == next && more.len && more.len <= end - next);
		if (!cow_extent_joins(&ext, layer, &more, more_layer))
			break;
		ext.len += more.len;
	}
	*ret = ext;
	*ret_layer = layer;
	return 0;
}

void cow_chain_extent_kv(struct cow_chain *c, const struct cow_extent *ext, unsigned layer,
			 struct cow_kv *kv)
{
	cow_kv_u64(kv, "start", ext->virt);
	cow_kv_u64(kv, "length", ext->len);
	cow_kv_u64(kv, "depth", layer);
	cow_kv_str(kv, "kind", cow_extent_kind_name(ext));
	if (ext->kind == COW_DATA)
		cow_kv_u64(kv, "offset", ext->phys);
	if (ext->kind == COW_DATA || ext->kind == COW_ENCODED) {
		cow_kv_str(kv, "file", ext->file ? cow_chain_image(c, layer)->data_file :
			   cow_chain_image(c, layer)->path);
		if (ext->file)
			cow_kv_u64(kv, "file_index", ext->file);
	}
}

int cow_map_kv(struct cow_chain *c, unsigned first, struct cow_kv *kv)
{
	uint64_t virt = 0, end;
	struct cow_extent ext;
	unsigned layer;
	int r = 0;

	if (first >= cow_chain_depth(c))
		return -EINVAL;
	end = cow_chain_image(c, first)->size;	/* a base can be shorter than what lies over it */
	cow_kv_list(kv, "map");
	while (virt < end) {
		r = cow_chain_next_extent(c, first, virt, end, &ext, &layer);
		if (r)
			break;
		cow_kv_object(kv, NULL);
		cow_chain_extent_kv(c, &ext, layer, kv);
		cow_kv_close(kv);
		virt += ext.len;
	}
	cow_kv_close(kv);
	return r;
}
