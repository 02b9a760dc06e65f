// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Questions of the kernel target about a chain whose data lies anywhere, answered block by
 * block (mapreq.h). A read is told the place of the first layer that has the block; a write
 * only a place of the block in the top image. Where there is none yet, the answer is
 * split: a place to be, and where the rest of the block is to be copied from; the kernel does that, and
 * says afterwards that it did. What is in several pieces, or encoded, has no place: of a read the
 * kernel gets the bytes, for a write the daemon makes the block first.
 *
 * Holes of files are not looked for: a write to such a place may be on its way.
 */
#include "mapreq.h"

#include <errno.h>

#define SECTION_BYTES ((uint64_t)MAPREQ_SECTOR << DMU_SECTION_SHIFT)

/* Bytes of @len at @virt that are whole blocks; the device's end counts as the end of one. */
static uint64_t whole(const struct mapreq *m, uint64_t virt, uint64_t len)
{
	uint64_t block = (uint64_t)MAPREQ_SECTOR << m->granule_shift;

	return virt + len == cow_chain_size(m->chain) ? len : cow_round_down(len, block);
}

static void fill(struct mapreq_answer *ret, const struct dmu_ask *ask, uint64_t len, uint32_t flags)
{
	ret->record.blocks = (struct dmu_blocks){
		.head = { .type = DMU_BLOCKS, .size = sizeof(ret->record.blocks), .id = ask->head.id },
		.start = ask->start, .sectors = (uint32_t)(len / MAPREQ_SECTOR), .flags = flags,
		.dev = DMU_DEV_ZERO,
	};
	ret->size = sizeof(ret->record.blocks);
}

/* The record for data of @layer at @phys. */
static enum mapreq_need place(struct mapreq *m, const struct dmu_ask *ask, unsigned layer, uint64_t phys,
			      uint64_t len, uint32_t flags, struct mapreq_answer *ret)
{
	uint64_t end = cow_round_up(phys + len, m->unit);

	if (layer == 0 && end > m->size[0]) {
		ret->grow = end;
		return MAPREQ_GROW;
	}
	fill(ret, ask, len, flags);
	ret->record.blocks.dev = m->dev[layer];
	ret->record.blocks.position = phys / MAPREQ_SECTOR;
	return MAPREQ_READY;
}

static int for_read(struct mapreq *m, const struct dmu_ask *ask, uint64_t virt, uint64_t len,
		    struct mapreq_answer *ret)
{
	struct cow_extent e;
	unsigned layer;
	int rc = cow_chain_stored(m->chain, 0, virt, len, &e, &layer);

	if (rc)
		return rc;
	len = whole(m, virt, e.len);
	if (len == 0 || e.kind == COW_ENCODED)
		return MAPREQ_DATA;
	if (e.kind == COW_HOLE) {
		fill(ret, ask, len, DMU_BLOCKS_READ);
		return MAPREQ_READY;
	}
	if (e.phys % m->unit || (layer && cow_round_up(e.phys + len, m->unit) > m->size[layer]))
		return MAPREQ_DATA;
	return (int)place(m, ask, layer, e.phys, len, DMU_BLOCKS_READ, ret);
}

/* What was asked, but no more than @len bytes; at least a block. */
static int make(enum mapreq_need how, struct mapreq *m, const struct dmu_ask *ask, uint64_t len,
		struct mapreq_answer *ret)
{
	uint64_t block = 1ULL << m->granule_shift;

	ret->sectors = (uint32_t)cow_min(ask->sectors, cow_max(block, len / MAPREQ_SECTOR));
	return (int)how;
}

/*
 * Can the kernel copy from @e of @layer? Says the same of a block each time, for as long as it has no other
 * contents: what the kernel may be copying is never made here as well.
 */
static bool can_copy(const struct mapreq *m, const struct cow_extent *e, unsigned layer, uint64_t len)
{
	if (len == 0 || e->kind == COW_ENCODED)
		return false;
	if (e->kind != COW_DATA)
		return true;
	return e->phys % m->unit == 0 && cow_round_up(e->phys + len, m->unit) <= m->size[layer];
}

/* Blocks, from @virt on within @len bytes, that the kernel cannot copy: bytes of them, or -errno. */
static int64_t in_pieces(struct mapreq *m, uint64_t virt, uint64_t len)
{
	uint64_t block = (uint64_t)MAPREQ_SECTOR << m->granule_shift, n = 0;
	struct cow_extent e;
	unsigned layer;

	while (n < len) {
		uint64_t step = cow_min(block, len - n);
		int rc = cow_chain_stored(m->chain, 0, virt + n, step, &e, &layer);

		if (rc)
			return rc;
		if (can_copy(m, &e, layer, whole(m, virt + n, e.len)))
			break;
		n += step;
	}
	return (int64_t)n;
}

/* The kernel is to complete @len bytes at @phys, which others do not see yet. */
static int for_first_write(struct mapreq *m, const struct dmu_ask *ask, uint64_t virt,
			   const struct cow_extent *to, struct mapreq_answer *ret)
{
	uint64_t len = whole(m, virt, cow_min(to->len, (uint64_t)ask->sectors * MAPREQ_SECTOR));
	struct cow_extent e;
	unsigned layer;
	int64_t n;
	int rc;

	if (len == 0)
		return make(MAPREQ_PRESENT, m, ask, 0, ret);
	rc = cow_chain_stored(m->chain, 0, virt, len, &e, &layer);
	if (rc)
		return rc;
	if (!can_copy(m, &e, layer, whole(m, virt, e.len))) {
		n = in_pieces(m, virt, len);
		return n < 0 ? (int)n : make(MAPREQ_PRESENT, m, ask, (uint64_t)n, ret);
	}
	rc = (int)place(m, ask, 0, to->phys, whole(m, virt, e.len),
			DMU_BLOCKS_READ | DMU_BLOCKS_WRITE | DMU_BLOCKS_COPY, ret);
	if (rc == MAPREQ_READY) {
		ret->record.blocks.from_dev = e.kind == COW_DATA ? m->dev[layer] : DMU_DEV_ZERO;
		ret->record.blocks.from = e.kind == COW_DATA ? e.phys / MAPREQ_SECTOR : 0;
	}
	return rc;
}

static int for_write(struct mapreq *m, const struct dmu_ask *ask, uint64_t virt, uint64_t len,
		     struct mapreq_answer *ret)
{
	bool places = cow_chain_image(m->chain, 0)->place;
	uint32_t flags = DMU_BLOCKS_READ | DMU_BLOCKS_WRITE;
	struct cow_extent e;
	int rc;

	/* More than was asked is good to know where it is there, but not to be given a place. */
	rc = cow_chain_in_place(m->chain, virt, cow_min(len, (uint64_t)ask->sectors * MAPREQ_SECTOR), &e);
	if (!rc && e.kind == COW_DATA && !(e.flags & COW_EXT_NEW))
		rc = cow_chain_in_place(m->chain, virt, len, &e);
	if (rc)
		return rc;
	if (e.kind == COW_DATA && e.phys % m->unit)
		return -EIO;
	if (e.kind == COW_DATA && (e.flags & COW_EXT_NEW))
		return for_first_write(m, ask, virt, &e, ret);
	len = whole(m, virt, e.len);
	if (e.kind != COW_DATA && (e.flags & COW_EXT_TABLE))
		return make(MAPREQ_PLACE, m, ask, e.len, ret);
	if (e.kind != COW_DATA || len == 0)
		return make(MAPREQ_PRESENT, m, ask, places ? e.len : UINT64_MAX, ret);
	if (cow_chain_unflushed(m->chain))
		flags |= DMU_BLOCKS_CHANGED;
	return (int)place(m, ask, 0, e.phys, len, flags, ret);
}

int mapreq_blocks(struct mapreq *m, const struct dmu_ask *ask, struct mapreq_answer *ret)
{
	uint64_t size = cow_chain_size(m->chain), virt, end;

	if (ask->start >= size / MAPREQ_SECTOR)
		return -EINVAL;
	virt = ask->start * MAPREQ_SECTOR;
	end = cow_min(cow_round_down(virt, SECTION_BYTES) + SECTION_BYTES, size);
	if (ask->op == DMU_OP_READ)
		return for_read(m, ask, virt, end - virt, ret);
	return for_write(m, ask, virt, end - virt, ret);
}
