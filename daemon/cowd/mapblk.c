// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Questions of the kernel target about a chain whose data lies anywhere, answered block by
 * block (mapreq.h). A read is told the place of the first layer that has the block; a write
 * only a place of the block in the top image, which is made first where there is none. What is
 * in several pieces, or encoded, has no place: the kernel gets the bytes.
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

static int for_write(struct mapreq *m, const struct dmu_ask *ask, uint64_t virt, uint64_t len,
		     struct mapreq_answer *ret)
{
	uint32_t flags = DMU_BLOCKS_READ | DMU_BLOCKS_WRITE;
	struct cow_extent e;
	int rc = cow_chain_in_place(m->chain, virt, len, &e);

	if (rc)
		return rc;
	len = whole(m, virt, e.len);
	if (e.kind != COW_DATA || len == 0)
		return MAPREQ_PRESENT;
	if (e.phys % m->unit)
		return -EIO;
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
