// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Examining and repairing a dscow image. The header's limits were checked at
 * open; here: both header copies, every map sector, bits behind the end, and
 * data that no bit speaks of (left by a power cut; harmless, but it takes room).
 *
 * A map sector that is not whole is rebuilt from where the file has data: what
 * was written is found again, what was zeroed shows the base again.
 */
#include <errno.h>
#include <stdio.h>

#include "dscow-priv.h"

#define PROGRESS_SECTORS 4096u

struct check {
	struct cow_image *img;
	struct dscow *d;
	struct cow_report *rep;
	bool repair;
	uint64_t granules;		/* of the image */
};

static void say(struct check *ck, const char *what, uint64_t where, bool repaired)
{
	char text[256];

	if (repaired)
		ck->rep->repaired++;
	if (!ck->rep->say)
		return;
	snprintf(text, sizeof(text), "%s %llu%s", what, (unsigned long long)where,
		 repaired ? " (repaired)" : "");
	ck->rep->say(ck->rep, text);
}

static bool test_bit(const struct dscow_mapsec *sec, uint32_t n)
{
	return sec->bits[n / 8] >> (n % 8) & 1;
}

/* Granule range of map sector @index that lies in the image: how many, 0 for a sector behind it. */
static uint32_t sector_granules(const struct check *ck, uint64_t index)
{
	uint64_t first = index * DSCOW_SEC_GRANULES;

	return first >= ck->granules ? 0 :
		(uint32_t)cow_min(ck->granules - first, DSCOW_SEC_GRANULES);
}

/* Calls @fn for each granule run of the sector's range in which the file has data. */
static int each_data_run(struct check *ck, uint64_t index,
			 int (*fn)(struct check *, struct dscow_mapsec *, uint32_t from, uint32_t to),
			 struct dscow_mapsec *sec)
{
	const struct dscow *d = ck->d;
	uint64_t virt = (index * DSCOW_SEC_GRANULES) << d->granule_bits;
	uint64_t start = d->first_block + virt, off = start, data, hole;
	uint64_t end = d->first_block +
		cow_min(virt + ((uint64_t)sector_granules(ck, index) << d->granule_bits), d->size);
	int rc = 0;

	while (off < end && rc == 0) {
		rc = cow_img_seek(ck->img, 0, off, true, &data);
		if (rc || data >= end)
			return rc == -ENXIO ? 0 : rc;
		rc = cow_img_seek(ck->img, 0, data, false, &hole);
		if (rc)
			return rc;
		hole = cow_min(cow_max(hole, data + 1), end);
		rc = fn(ck, sec, (uint32_t)((data - start) >> d->granule_bits),
			(uint32_t)(((hole - 1 - start) >> d->granule_bits) + 1));
		off = hole;
	}
	return rc;
}

static int set_run(struct check *ck, struct dscow_mapsec *sec, uint32_t from, uint32_t to)
{
	(void)ck;
	for (uint32_t n = from; n < to; n++)
		sec->bits[n / 8] |= (uint8_t)(1u << n % 8);
	return 0;
}

static int write_sector(struct check *ck, struct dscow_mapsec *sec, uint64_t index)
{
	dscow_sector_seal(ck->d, sec, index);
	return cow_img_pwrite(ck->img, 0, sec, sizeof(*sec), dscow_sector_off(ck->d, index));
}

static int bad_sector(struct check *ck, struct dscow_mapsec *sec, uint64_t index)
{
	int rc = 0;

	ck->rep->corruptions++;
	if (ck->repair) {
		memset(sec, 0, sizeof(*sec));
		rc = each_data_run(ck, index, set_run, sec);
		if (rc == -EOPNOTSUPP)
			return -EOPNOTSUPP;
		if (rc == 0)
			rc = write_sector(ck, sec, index);
	} else {
		memset(sec, 0xff, sizeof(*sec));	/* unknown: no leak can be told */
	}
	say(ck, "damaged map sector", index, ck->repair && rc == 0);
	return rc;
}

static int bits_behind_end(struct check *ck, struct dscow_mapsec *sec, uint64_t index)
{
	uint32_t keep = sector_granules(ck, index), whole = keep / 8;
	struct dscow_mapsec kept = { 0 };

	memcpy(kept.bits, sec->bits, whole);
	if (keep % 8)
		kept.bits[whole] = (uint8_t)(sec->bits[whole] & ((1u << keep % 8) - 1));
	if (memcmp(kept.bits, sec->bits, sizeof(kept.bits)) == 0)
		return 0;
	memcpy(sec->bits, kept.bits, sizeof(kept.bits));
	ck->rep->leaks++;
	say(ck, "bits behind the end in map sector", index, ck->repair);
	return ck->repair ? write_sector(ck, sec, index) : 0;
}

static uint64_t bits_word(const struct dscow_mapsec *sec, uint32_t i)
{
	return cow_get_le64(sec->bits + (size_t)i * 8);
}

/* Data without a bit in granules [from, to). */
static int leaked_run(struct check *ck, struct dscow_mapsec *sec, uint32_t from, uint32_t to)
{
	(void)ck;
	while (from < to) {
		uint32_t shift = from % 64, n = (uint32_t)cow_min(64 - shift, to - from);
		uint64_t mask = (n == 64 ? ~0ULL : (1ULL << n) - 1) << shift;

		if ((bits_word(sec, from / 64) & mask) != mask)
			return 1;
		from += n;
	}
	return 0;
}

static int punch_leaks(struct check *ck, const struct dscow_mapsec *sec, uint64_t index)
{
	const struct dscow *d = ck->d;
	uint64_t start = d->first_block + ((index * DSCOW_SEC_GRANULES) << d->granule_bits);
	uint32_t n = 0, keep = sector_granules(ck, index), run;
	int rc = 0;

	while (n < keep && rc == 0) {
		for (run = n; run < keep && !test_bit(sec, run); run++)
			;
		if (run > n) {
			uint64_t from = start + ((uint64_t)n << d->granule_bits);
			/* All of the last granule, too: nothing is behind, and a part of a block stays. */
			uint64_t to = start + ((uint64_t)run << d->granule_bits);

			rc = cow_img_punch(ck->img, 0, from, to - from);
		}
		for (n = run; n < keep && test_bit(sec, n); n++)
			;
	}
	return rc;
}

static int data_without_bits(struct check *ck, struct dscow_mapsec *sec, uint64_t index)
{
	int rc = each_data_run(ck, index, leaked_run, sec);

	if (rc <= 0)
		return rc == -EOPNOTSUPP ? 0 : rc;	/* a block device cannot tell */
	ck->rep->leaks++;
	rc = ck->repair ? punch_leaks(ck, sec, index) : 0;
	say(ck, "unused data in the range of map sector", index, ck->repair && rc == 0);
	return rc;
}

static uint64_t count_present(const struct check *ck, const struct dscow_mapsec *sec, uint64_t index)
{
	const struct dscow *d = ck->d;
	uint64_t n = 0, last = ck->granules - 1, bytes;

	for (uint32_t i = 0; i < DSCOW_SEC_BITS_BYTES / 8; i++)
		n += (uint64_t)__builtin_popcountll(bits_word(sec, i));
	bytes = n << d->granule_bits;
	if (last / DSCOW_SEC_GRANULES == index && test_bit(sec, (uint32_t)(last % DSCOW_SEC_GRANULES)))
		bytes -= (ck->granules << d->granule_bits) - d->size;
	return bytes;
}

static int check_sector(struct check *ck, uint64_t index)
{
	struct dscow_mapsec sec;
	bool whole;
	int rc = cow_img_pread(ck->img, 0, &sec, sizeof(sec), dscow_sector_off(ck->d, index));

	if (rc)
		return rc;
	whole = dscow_sector_whole(ck->d, &sec, index);
	if (!whole)
		rc = bad_sector(ck, &sec, index);
	if (rc == 0 && (whole || ck->repair))
		rc = bits_behind_end(ck, &sec, index);
	if (rc == 0)
		rc = data_without_bits(ck, &sec, index);
	if (rc == 0 && (whole || ck->repair))
		ck->rep->data_bytes += count_present(ck, &sec, index);
	ck->rep->blocks_checked++;
	return rc;
}

static int check_headers(struct check *ck)
{
	struct dscow *d = ck->d;
	int rc = 0;

	if (!d->main_bad && !d->backup_bad)
		return 0;
	ck->rep->corruptions++;
	if (ck->repair)
		rc = dscow_header_write(ck->img, d);
	if (rc == 0 && ck->repair)
		d->main_bad = d->backup_bad = false;
	say(ck, d->main_bad ? "damaged header copy" : "damaged header backup", d->main_bad ? 0 : 1,
	    ck->repair && rc == 0);
	return rc;
}

/* All is whole again, or nothing was found: take the mark away. */
static int clear_mark(struct check *ck)
{
	struct dscow *d = ck->d;
	int rc = cow_img_sync(ck->img, 0);

	d->damaged = false;
	d->state &= (uint16_t)~DSCOW_STATE_NEEDS_CHECK;
	return rc ? rc : dscow_header_write_sync(ck->img, d);
}

/* Sector of the first data at or after @off, given as one every @unit bytes from @off on; else @none. */
static uint64_t first_data(struct check *ck, uint64_t off, uint64_t index, uint64_t unit, uint64_t none)
{
	uint64_t data;
	int rc = cow_img_seek(ck->img, 0, off, true, &data);

	if (rc == -ENXIO)
		return none;
	return rc ? index : index + (data - off) / unit;
}

/*
 * Next map sector that matters: one that is not in a hole, or whose range of the image has data.
 * A sparse image is checked in the time its contents take, whatever size it claims.
 */
static uint64_t skip_hole(struct check *ck, uint64_t index, uint64_t total)
{
	const struct dscow *d = ck->d;
	uint64_t fits = dscow_main_sectors(d), end = index < fits ? cow_min(fits, total) : total;
	uint64_t covers = (uint64_t)DSCOW_SEC_GRANULES << d->granule_bits;
	uint64_t next = cow_min(first_data(ck, dscow_sector_off(d, index), index, DSCOW_SECTOR, end),
				end);

	if (next == index || index >= cow_div_up(d->size, covers))
		return next;
	return cow_min(next, first_data(ck, d->first_block + index * covers, index, covers, end));
}

int dscow_check(struct cow_image *img, struct cow_report *rep, uint32_t flags, struct cow_err *err)
{
	struct dscow *d = img->priv;
	struct check ck = {
		.img = img,
		.d = d,
		.rep = rep,
		.repair = flags & COW_CHECK_REPAIR,
		.granules = dscow_granules(d, d->size),
	};
	/* Where holes cannot be told apart, what lies behind the last sector in use is not looked at. */
	uint64_t total = cow_img_is_blkdev(img, 0) ? dscow_sectors(d, d->size) :
		dscow_main_sectors(d) + d->ext_count, i = 0, shown = 0;
	int rc = check_headers(&ck);

	while (i < total && rc == 0) {
		uint64_t next = skip_hole(&ck, i, total);

		if (next == i) {
			rc = check_sector(&ck, i);
			next++;
		}
		i = next;
		if (rc == 0 && rep->progress && i - shown >= PROGRESS_SECTORS) {
			shown = i;
			if (rep->progress(rep, i, total))
				rc = -ECANCELED;
		}
	}
	if (rc == 0 && ck.repair)
		rc = clear_mark(&ck);
	if (ck.repair)
		cow_img_drop_cache(img);
	return rc ? cow_err_sys(err, rc, "%s: check", img->path) : 0;
}
