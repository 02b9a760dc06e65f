/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The dscow plugin's own state: the header decoded and checked, and where a
 * map sector lies. dscow-header.c is the only file that touches header bytes,
 * dscow-map.c the only one that touches map sectors.
 */
#ifndef DSCOW_PRIV_H
#define DSCOW_PRIV_H

#include "cow/format.h"
#include "dscow.h"

struct dscow {
	uint64_t size, below_limit, first_block;
	uint64_t ext_off, ext_first, ext_count;
	uint64_t compat, incompat;
	uint8_t uuid[16];
	unsigned block_bits, granule_bits;
	uint16_t state;
	uint64_t session;
	uint32_t text_off;
	struct cow_backing backing;
	struct cow_identity identity;
	uint8_t reserved[sizeof(((struct dscow_header *)0)->reserved)];
	bool main_bad, backup_bad;	/* header copies that were not whole at open */
	bool damaged;			/* a map sector was not whole */
};

/* dscow-header.c */
int dscow_header_read(struct cow_image *img, struct dscow *d, struct cow_err *err);
int dscow_header_write(struct cow_image *img, const struct dscow *d);	/* both copies, no sync */
int dscow_header_write_sync(struct cow_image *img, const struct dscow *d);
/* Writes d->backing to the text area not in use and points d there; no header write. */
int dscow_text_write(struct cow_image *img, struct dscow *d);

/* dscow-map.c */
static inline uint64_t dscow_granules(const struct dscow *d, uint64_t bytes)
{
	return cow_div_up(bytes, 1ULL << d->granule_bits);
}

static inline uint64_t dscow_sectors(const struct dscow *d, uint64_t bytes)
{
	return cow_div_up(dscow_granules(d, bytes), DSCOW_SEC_GRANULES);
}

/* Map sectors that fit before first_block. */
static inline uint64_t dscow_main_sectors(const struct dscow *d)
{
	return (d->first_block - DSCOW_MAP_OFF) / DSCOW_SECTOR;
}

uint64_t dscow_sector_off(const struct dscow *d, uint64_t sector);	/* in the file */
int dscow_map(struct cow_image *img, const struct cow_query *q, struct cow_map *ret);
void dscow_commit(struct cow_image *img, const struct cow_map *map, int io);
int dscow_verify(struct cow_image *img, uint16_t file, uint64_t off, const void *data,
		 struct cow_err *err);
void dscow_seal(struct cow_image *img, uint16_t file, uint64_t off, void *data);
bool dscow_sector_whole(const struct dscow *d, const void *sec, uint64_t index);
void dscow_sector_seal(const struct dscow *d, void *sec, uint64_t index);

/* dscow-check.c */
int dscow_check(struct cow_image *img, struct cow_report *rep, uint32_t flags, struct cow_err *err);

/* dscow-resize.c */
int dscow_resize(struct cow_image *img, uint64_t size, struct cow_err *err);

#endif
