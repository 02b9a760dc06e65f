// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The presence map: is a granule here? The hot path of the format. A block of
 * the metadata cache holds eight map sectors, which cover 31,744 granules in a
 * row; no answer reaches beyond one block.
 */
#include <errno.h>
#include <xxhash.h>

#include "dscow-priv.h"

#define BLOCK_SECTORS	(COW_META_BLOCK / DSCOW_SECTOR)
#define BLOCK_GRANULES	(BLOCK_SECTORS * DSCOW_SEC_GRANULES)

/* Granules of the metadata block that a query falls into. */
struct span {
	uint8_t *data;			/* the block */
	struct cow_mblk *blk;
	uint64_t first;			/* granule of its first bit */
};

uint64_t dscow_sector_off(const struct dscow *d, uint64_t sector)
{
	uint64_t fits = dscow_main_sectors(d);

	if (sector < fits)
		return DSCOW_MAP_OFF + sector * DSCOW_SECTOR;
	return d->ext_off + (sector - fits) * DSCOW_SECTOR;
}

/* Index of the map sector at file offset @off. */
static uint64_t sector_at(const struct dscow *d, uint64_t off)
{
	if (off < d->first_block)
		return (off - DSCOW_MAP_OFF) / DSCOW_SECTOR;
	return d->ext_first + (off - d->ext_off) / DSCOW_SECTOR;
}

static uint64_t sector_hash(const struct dscow *d, const void *sec, uint64_t index)
{
	return XXH3_64bits_withSeed(sec, offsetof(struct dscow_mapsec, hash),
				    cow_get_le64(d->uuid) ^ index);
}

static bool all_zero(const uint8_t *p, size_t len)
{
	return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

bool dscow_sector_whole(const struct dscow *d, const void *sec, uint64_t index)
{
	const struct dscow_mapsec *m = sec;

	if (all_zero(sec, DSCOW_SECTOR))
		return true;
	return cow_get_le64(&m->reserved) == 0 &&
	       cow_get_le64(&m->hash) == sector_hash(d, sec, index);
}

void dscow_sector_seal(const struct dscow *d, void *sec, uint64_t index)
{
	struct dscow_mapsec *m = sec;

	cow_put_le64(&m->reserved, 0);
	if (all_zero(m->bits, sizeof(m->bits)))
		cow_put_le64(&m->hash, 0);
	else
		cow_put_le64(&m->hash, sector_hash(d, sec, index));
}

int dscow_verify(struct cow_image *img, uint16_t file, uint64_t off, const void *data,
		 struct cow_err *err)
{
	struct dscow *d = img->priv;
	uint64_t index = sector_at(d, off);

	(void)file;
	for (unsigned i = 0; i < BLOCK_SECTORS; i++) {
		if (dscow_sector_whole(d, (const uint8_t *)data + i * DSCOW_SECTOR, index + i))
			continue;
		d->damaged = true;
		return cow_err_set(err, -EIO, "%s: map sector %llu is damaged: repair the image",
				   img->path, (unsigned long long)(index + i));
	}
	return 0;
}

void dscow_seal(struct cow_image *img, uint16_t file, uint64_t off, void *data)
{
	const struct dscow *d = img->priv;
	uint64_t index = sector_at(d, off);

	(void)file;
	for (unsigned i = 0; i < BLOCK_SECTORS; i++)
		dscow_sector_seal(d, (uint8_t *)data + i * DSCOW_SECTOR, index + i);
}

/* Bits of @n granules from bit @bit of a block on as one little-endian word; @ret_n says how many. */
static uint64_t load_bits(const uint8_t *data, uint32_t bit, uint32_t *ret_n)
{
	uint32_t in_sec = bit % DSCOW_SEC_GRANULES;
	const uint8_t *sec = data + bit / DSCOW_SEC_GRANULES * DSCOW_SECTOR;
	uint32_t shift = in_sec % 64;

	*ret_n = 64 - shift;
	return cow_get_le64(sec + in_sec / 64 * 8) >> shift;
}

/* Length of the run of granules like the one at @bit, at most @max; and what they are. */
static uint32_t run_length(const uint8_t *data, uint32_t bit, uint32_t max, bool *ret_present)
{
	uint32_t n = 0, part;
	uint64_t word = load_bits(data, bit, &part);

	*ret_present = word & 1;
	while (n < max) {
		uint64_t other = *ret_present ? ~word : word;
		uint32_t same = other ? (uint32_t)__builtin_ctzll(other) : 64;

		n += same < part ? same : part;
		if (same < part || bit + n >= BLOCK_GRANULES)
			break;
		word = load_bits(data, bit + n, &part);
	}
	return n < max ? n : max;
}

static bool present_at(const struct span *s, uint64_t granule)
{
	uint32_t part;

	return load_bits(s->data, (uint32_t)(granule - s->first), &part) & 1;
}

/* Are @n granules from @granule on all present (or all absent)? */
static bool all_are(const struct span *s, uint64_t granule, uint64_t n, bool present)
{
	bool is;
	uint32_t run = run_length(s->data, (uint32_t)(granule - s->first), (uint32_t)n, &is);

	return is == present && run == n;
}

static void set_bits(uint8_t *data, uint32_t bit, uint32_t n)
{
	while (n > 0) {
		uint32_t in_sec = bit % DSCOW_SEC_GRANULES, shift = in_sec % 8;
		uint8_t *byte = data + bit / DSCOW_SEC_GRANULES * DSCOW_SECTOR + in_sec / 8;
		uint32_t part = n < 8 - shift ? n : 8 - shift;

		*byte = (uint8_t)(*byte | (((1u << part) - 1) << shift));
		bit += part;
		n -= part;
	}
}

static int get_span(struct cow_image *img, uint64_t granule, struct span *ret)
{
	const struct dscow *d = img->priv;
	uint64_t sector = granule / BLOCK_GRANULES * BLOCK_SECTORS;
	int rc = cow_meta_get(img, 0, dscow_sector_off(d, sector), 0, &ret->blk);

	if (rc)
		return rc;
	ret->data = cow_meta_data(ret->blk);
	ret->first = granule / BLOCK_GRANULES * BLOCK_GRANULES;
	return 0;
}

static void map_read(struct cow_image *img, const struct span *s, uint64_t g0, uint64_t g1,
		     struct cow_map *ret)
{
	const struct dscow *d = img->priv;
	bool present;
	uint32_t n = run_length(s->data, (uint32_t)(g0 - s->first), (uint32_t)(g1 - g0), &present);

	ret->dst.virt = g0 << d->granule_bits;
	ret->dst.len = cow_min((uint64_t)n << d->granule_bits, img->size - ret->dst.virt);
	ret->dst.kind = present ? COW_DATA : COW_BELOW;
	ret->dst.phys = d->first_block + ret->dst.virt;
}

static void map_write(struct cow_image *img, const struct span *s, const struct cow_query *q,
		      uint64_t g0, uint64_t g1, struct cow_map *ret)
{
	const struct dscow *d = img->priv;
	uint64_t start = q->virt;
	uint64_t end = cow_min(q->virt + q->len, g1 << d->granule_bits);
	uint64_t g = 1ULL << d->granule_bits;

	ret->src.kind = d->text_off ? COW_BELOW : COW_HOLE;
	if (!all_are(s, g0, g1 - g0, true)) {
		ret->dst.flags = COW_EXT_NEW;
		if (!present_at(s, g0))
			start = cow_round_down(start, g);
		if (!present_at(s, g1 - 1))
			end = cow_min(cow_round_up(end, g), img->size);
	}
	ret->dst.virt = start;
	ret->dst.len = end - start;
	ret->dst.kind = COW_DATA;
	ret->dst.phys = d->first_block + start;
}

static void map_zero(struct cow_image *img, const struct span *s, uint64_t g0, uint64_t g1,
		     struct cow_map *ret)
{
	const struct dscow *d = img->priv;
	uint64_t virt = g0 << d->granule_bits;
	bool shows_base = d->text_off && virt < img->below_limit;

	ret->dst.virt = virt;
	ret->dst.len = cow_min(g1 << d->granule_bits, img->size) - virt;
	ret->dst.phys = d->first_block + virt;
	ret->dst.kind = COW_DATA;
	if (!shows_base && all_are(s, g0, g1 - g0, false))
		ret->dst.kind = COW_HOLE;
	else if (!all_are(s, g0, g1 - g0, true))
		ret->dst.flags = COW_EXT_NEW;
}

int dscow_map(struct cow_image *img, const struct cow_query *q, struct cow_map *ret)
{
	const struct dscow *d = img->priv;
	uint64_t g0 = q->virt >> d->granule_bits;
	uint64_t g1 = ((q->virt + q->len - 1) >> d->granule_bits) + 1;
	struct span s;
	int rc = get_span(img, g0, &s);

	if (rc)
		return rc;
	*ret = (struct cow_map){ .gen = img->gen, .cookie = (uintptr_t)s.blk };
	g1 = cow_min(g1, s.first + BLOCK_GRANULES);
	switch (q->intent) {
	case COW_READ:
	case COW_REPORT:
		map_read(img, &s, g0, g1, ret);
		break;
	case COW_WRITE:
		map_write(img, &s, q, g0, g1, ret);
		break;
	default:
		map_zero(img, &s, g0, g1, ret);
		break;
	}
	return 0;
}

void dscow_commit(struct cow_image *img, const struct cow_map *map, int io)
{
	const struct dscow *d = img->priv;
	struct cow_mblk *blk = (struct cow_mblk *)(uintptr_t)map->cookie;
	uint64_t g0 = map->dst.virt >> d->granule_bits;
	uint64_t g1 = ((map->dst.virt + map->dst.len - 1) >> d->granule_bits) + 1;

	if (io)
		return;		/* nothing was reserved: a granule's place is its own */
	set_bits(cow_meta_data(blk), (uint32_t)(g0 % BLOCK_GRANULES), (uint32_t)(g1 - g0));
	cow_meta_dirty(blk, COW_META_TABLE);
}
