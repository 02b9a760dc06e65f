// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Resizing a dscow image. Bits and bytes behind the end of the image are of no
 * meaning, so shrinking is one header write; growing first makes sure that what
 * comes into view reads as zeroes. A map that outgrows the space before the
 * first block continues behind the data.
 */
#include <errno.h>

#include "dscow-priv.h"

static int clear_sectors(struct cow_image *img, const struct dscow *d, uint64_t from, uint64_t to)
{
	uint64_t fits = dscow_main_sectors(d);
	int rc = 0;

	if (from < cow_min(to, fits))
		rc = cow_img_punch(img, 0, dscow_sector_off(d, from),
				   (cow_min(to, fits) - from) * DSCOW_SECTOR);
	from = cow_max(from, fits);
	if (rc == 0 && from < to)
		rc = cow_img_punch(img, 0, dscow_sector_off(d, from), (to - from) * DSCOW_SECTOR);
	return rc;
}

/* Clears the bits of every granule behind the present end. */
static int clear_behind(struct cow_image *img, const struct dscow *d)
{
	uint64_t granules = dscow_granules(d, d->size);
	uint64_t sector = granules / DSCOW_SEC_GRANULES;
	uint32_t keep = (uint32_t)(granules % DSCOW_SEC_GRANULES);
	struct dscow_mapsec sec;
	int rc;

	if (keep) {
		rc = cow_img_pread(img, 0, &sec, sizeof(sec), dscow_sector_off(d, sector));
		if (rc)
			return rc;
		if (!dscow_sector_whole(d, &sec, sector))
			return -EIO;
		if (keep % 8)
			sec.bits[keep / 8] &= (uint8_t)((1u << keep % 8) - 1);
		memset(sec.bits + (keep + 7) / 8, 0, sizeof(sec.bits) - (keep + 7) / 8);
		dscow_sector_seal(d, &sec, sector);
		rc = cow_img_pwrite(img, 0, &sec, sizeof(sec), dscow_sector_off(d, sector));
		if (rc)
			return rc;
		sector++;
	}
	return clear_sectors(img, d, sector, dscow_main_sectors(d) + d->ext_count);
}

/* The rest of a last granule that is not full comes into view as zeroes. */
static int clear_tail(struct cow_image *img, const struct dscow *d)
{
	uint64_t end = cow_round_up(d->size, 1ULL << d->granule_bits);
	uint64_t file = cow_img_file_size(img, 0);
	uint64_t from = d->first_block + d->size;

	end = cow_min(d->first_block + end, d->ext_count ? d->ext_off : file);
	return from < end ? cow_img_punch(img, 0, from, end - from) : 0;
}

/*
 * Copies the map's extension to its new place, which is empty; the old one still counts until the
 * header says so. Its holes, most of it, are skipped.
 */
static int move_extension(struct cow_image *img, const struct dscow *d, const struct dscow *next)
{
	uint8_t buf[COW_META_BLOCK];
	uint64_t end = d->ext_off + d->ext_count * DSCOW_SECTOR, off = d->ext_off, data;
	int rc = 0;

	while (off < end && rc == 0) {
		rc = cow_img_seek(img, 0, off, true, &data);
		if (rc == -ENXIO)
			return 0;
		if (rc == 0)	/* else a block device, which cannot tell: every block is copied */
			off = cow_max(off, cow_round_down(data, COW_META_BLOCK));
		rc = 0;
		if (off >= end)
			break;
		rc = cow_img_pread(img, 0, buf, cow_min(end - off, sizeof(buf)), off);
		if (rc == 0)
			rc = cow_img_pwrite(img, 0, buf, cow_min(end - off, sizeof(buf)),
					    off - d->ext_off + next->ext_off);
		off += sizeof(buf);
	}
	return rc;
}

/* Room in the file for the new size, and in the map. Nothing that counts is overwritten. */
static int make_room(struct cow_image *img, const struct dscow *d, struct dscow *next)
{
	uint64_t need = dscow_sectors(d, next->size), fits = dscow_main_sectors(d);
	uint64_t file = cow_img_file_size(img, 0), end = next->first_block + next->size, from;
	int rc;

	if (need <= fits && !d->ext_count)
		return file < end ? cow_img_truncate(img, 0, end) : 0;
	next->incompat |= DSCOW_INCOMPAT_EXTMAP;
	next->ext_first = fits;
	next->ext_count = cow_round_up(need > fits ? need - fits : 1, COW_META_BLOCK / DSCOW_SECTOR);
	/* Behind the new data and, so that both can exist, behind the old extension. */
	from = cow_max(end, d->ext_count ? d->ext_off + d->ext_count * DSCOW_SECTOR : 0);
	/* Not within the last granule: its tail is cleared when the image grows again. */
	next->ext_off = cow_round_up(from, 1ULL << d->granule_bits);
	end = next->ext_off + next->ext_count * DSCOW_SECTOR;
	rc = file < end ? cow_img_truncate(img, 0, end) : 0;
	if (rc == 0)
		rc = cow_img_punch(img, 0, next->ext_off, next->ext_count * DSCOW_SECTOR);
	if (rc == 0)
		rc = move_extension(img, d, next);
	return rc;
}

static int grow(struct cow_image *img, struct dscow *d, uint64_t size)
{
	struct dscow next = *d;
	int rc = clear_behind(img, d);

	next.size = size;
	if (rc == 0)
		rc = clear_tail(img, d);
	if (rc == 0)
		rc = make_room(img, d, &next);
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	if (rc == 0)
		rc = dscow_header_write_sync(img, &next);
	if (rc)
		return rc;
	if (d->ext_count)	/* its old place is data now, of absent granules */
		cow_img_punch(img, 0, d->ext_off, d->ext_count * DSCOW_SECTOR);
	*d = next;
	return 0;
}

/* What is given back after the header changed is only room: failing there is no error. */
static int shrink(struct cow_image *img, struct dscow *d, uint64_t size)
{
	struct dscow next = *d;
	int rc;

	next.size = size;
	next.below_limit = cow_min(next.below_limit, size);
	rc = dscow_header_write_sync(img, &next);
	if (rc)
		return rc;
	if (d->ext_count)
		cow_img_punch(img, 0, next.first_block + size, d->size - size);
	else if (!cow_img_is_blkdev(img, 0))
		cow_img_truncate(img, 0, next.first_block + size);
	*d = next;
	clear_behind(img, d);
	return 0;
}

int dscow_resize(struct cow_image *img, uint64_t size, struct cow_err *err)
{
	struct dscow *d = img->priv;
	int rc;

	if (size == 0 || size > DSCOW_SIZE_MAX)
		return cow_err_set(err, -EINVAL, "%s: %llu bytes is not between 1 byte and 64 PiB",
				   img->path, (unsigned long long)size);
	rc = size > d->size ? grow(img, d, size) : shrink(img, d, size);
	cow_img_drop_cache(img);
	img->size = d->size;
	img->below_limit = d->below_limit;
	return rc ? cow_err_sys(err, rc, "%s: resize to %llu bytes", img->path,
				(unsigned long long)size) : 0;
}
