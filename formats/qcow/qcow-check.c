// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Examining and repairing a qcow image. There are no refcounts to compare with:
 *
 *	1. tables that lie upon each other or upon the header, impossible entries
 *	2. window by window of the file: what clusters lie upon something else, and
 *	   which space has data and nobody who refers to it (a leak)
 *
 * A repair clears entries that point behind the end of the file, which programs
 * leave that write an entry before what it points to: nothing was ever stored
 * there, and the base shows again. Then, if nothing else is wrong, it gives leaks
 * back. Space is looked at in sectors, and leaks in whole blocks of 4 KiB: less
 * than that no file system gives back.
 *
 * Memory: 32 MiB for a window of 64 GiB, and 8 bytes for each L2 table.
 */
#include <errno.h>
#include <stdio.h>

#include "qcow-priv.h"

#define SECTOR		QCOW_HOST_UNIT
#define WINDOW_SECTORS	(128ULL << 20)
#define WINDOWS		(QCOW_HOST_MAX / SECTOR / WINDOW_SECTORS)

enum kind {
	KIND_OWN,	/* table or cluster: nothing else in its sectors */
	KIND_PACKED,	/* header, L1 table, name, compressed cluster: they may share a sector */
};

struct check {
	struct cow_image *img;
	struct qcow *q;
	struct cow_report *rep;
	struct cow_err *err;
	struct qcow_reader r;
	bool repair;
	uint64_t left;			/* corruptions that were not repaired */
	uint64_t eof;			/* before the repair */

	uint64_t *tables;		/* keys of those that lie upon nothing */
	size_t n_tables;
	bool used[WINDOWS];		/* something begins or ends there */

	uint64_t *own, *packed;		/* bits of the sectors [base, base + n) */
	uint64_t base, n;
};

static void corrupt(struct check *ck, bool repaired)
{
	ck->rep->corruptions++;
	ck->left += !repaired;
}

static int failed(struct check *ck, int rc, const char *what)
{
	return rc == -ECANCELED ? rc : cow_err_sys(ck->err, rc, "%s: %s", ck->img->path, what);
}

/* ---- 1: tables and entries ---- */

static void bad_l1(void *opaque, uint64_t index)
{
	struct check *ck = opaque;

	corrupt(ck, false);
	cow_report_say(ck->rep, false, "L1 entry %llu is damaged", (unsigned long long)index);
}

static int clear_entry(struct check *ck, uint64_t at)
{
	static const uint8_t none[8];

	return cow_img_pwrite(ck->img, 0, none, sizeof(none), at);
}

static void use(struct check *ck, uint64_t off, uint64_t len)
{
	ck->used[off / SECTOR / WINDOW_SECTORS] = true;
	ck->used[(off + len - 1) / SECTOR / WINDOW_SECTORS] = true;
}

/* Keeps of the tables those that can be looked into. */
static int judge_tables(struct check *ck)
{
	const struct qcow *q = ck->q;
	uint64_t end = 0;
	size_t n = 0;
	int rc = 0;

	for (size_t i = 0; i < ck->n_tables && rc == 0; i++) {
		uint64_t off = qcow_key_off(ck->tables[i]), index = qcow_key_index(ck->tables[i]);

		if (qcow_space_behind(ck->img, off)) {
			corrupt(ck, ck->repair);
			cow_report_say(ck->rep, ck->repair,
				       "the L2 table of L1 entry %llu lies behind the end of the file",
			    (unsigned long long)index);
			rc = ck->repair ? clear_entry(ck, q->l1_off + index * 8) : 0;
		} else if (off < end || qcow_upon_fixed(q, off, q->l2_bytes)) {
			corrupt(ck, false);
			cow_report_say(ck->rep, false,
				       "the L2 table of L1 entry %llu lies upon something else",
			    (unsigned long long)index);
		} else {
			end = off + q->l2_bytes;
			use(ck, off, q->l2_bytes);
			ck->tables[n++] = ck->tables[i];
		}
	}
	ck->n_tables = n;
	use(ck, 0, QCOW_H_BYTES);
	use(ck, q->l1_off, q->l1_n * 8);
	if (q->backing_off)
		use(ck, q->backing_off, q->backing_len);
	return rc ? failed(ck, rc, "L1 table") : 0;
}

/* Calls @fn for each entry of each table that is not 0. */
static int each_entry(struct check *ck,
		      int (*fn)(struct check *, uint64_t e, uint64_t virt, uint64_t at))
{
	const struct qcow *q = ck->q;
	int rc = 0;

	ck->r.data_from = 0;
	for (size_t i = 0; i < ck->n_tables && rc == 0; i++) {
		uint64_t off = qcow_key_off(ck->tables[i]);
		uint64_t virt = qcow_key_index(ck->tables[i]) * qcow_l1_span(q);
		int has = qcow_reader_next(&ck->r, off);

		rc = has < 0 ? has : 0;
		for (uint64_t k = 0; has > 0 && k < q->l2_bytes && rc == 0; k += 8) {
			uint64_t e = cow_get_be64(ck->r.buf + k);

			if (e)
				rc = fn(ck, e, virt + (k / 8 << q->cluster_bits), off + k);
		}
		if (rc == 0 && ck->rep->progress && ck->rep->progress(ck->rep, i, ck->n_tables))
			rc = -ECANCELED;
	}
	return rc ? failed(ck, rc, "L2 table") : 0;
}

static int judge_entry(struct check *ck, uint64_t e, uint64_t virt, uint64_t at)
{
	uint64_t off, len;

	ck->rep->blocks_checked++;
	if (!qcow_entry_place(ck->q, e, &off, &len)) {
		corrupt(ck, false);
		cow_report_say(ck->rep, false,
			       "L2 entry of byte %llu is damaged", (unsigned long long)virt);
		return 0;
	}
	if (qcow_space_behind(ck->img, off)) {
		corrupt(ck, ck->repair);
		cow_report_say(ck->rep, ck->repair,
			       "the cluster of byte %llu lies behind the end of the file",
		    (unsigned long long)virt);
		return ck->repair ? clear_entry(ck, at) : 0;
	}
	ck->rep->data_bytes += ck->q->cluster;
	use(ck, off, len);
	return 0;
}

static int entries(struct check *ck)
{
	int rc = qcow_tables_read(ck->img, &ck->tables, &ck->n_tables, bad_l1, ck);

	if (rc)
		return failed(ck, rc, "L1 table");
	rc = judge_tables(ck);
	if (rc == 0)
		rc = each_entry(ck, judge_entry);
	if (rc == 0 && ck->repair)
		rc = cow_img_sync(ck->img, 0);
	return rc;
}

/* ---- 2: space ---- */

static bool get(const uint64_t *bits, uint64_t i)
{
	return bits[i / 64] >> (i % 64) & 1;
}

static void set(uint64_t *bits, uint64_t i)
{
	bits[i / 64] |= 1ULL << (i % 64);
}

/* Marks a place as far as it is in the window. False: it lies upon something else. */
static bool mark(struct check *ck, uint64_t off, uint64_t len, enum kind kind)
{
	uint64_t first = cow_max(off / SECTOR, ck->base);
	uint64_t end = cow_min((off + len - 1) / SECTOR + 1, ck->base + ck->n);
	bool alone = true;

	for (uint64_t s = first; s < end; s++) {
		uint64_t i = s - ck->base;

		if (get(ck->own, i) || (kind == KIND_OWN && get(ck->packed, i)))
			alone = false;
		set(kind == KIND_PACKED ? ck->packed : ck->own, i);
	}
	return alone;
}

static int mark_entry(struct check *ck, uint64_t e, uint64_t virt, uint64_t at)
{
	uint64_t off, len;

	(void)at;
	if (!qcow_entry_place(ck->q, e, &off, &len))
		return 0;
	if (mark(ck, off, len, e & QCOW_COMPRESSED ? KIND_PACKED : KIND_OWN) &&
	    !qcow_upon_fixed(ck->q, off, len))
		return 0;
	corrupt(ck, false);
	cow_report_say(ck->rep, false,
		       "the cluster of byte %llu lies upon something else",
		       (unsigned long long)virt);
	return 0;
}

/* First sector from @i of the window on that is in use (@used) or not; ck->n: none. */
static uint64_t next_sector(const struct check *ck, uint64_t i, bool used)
{
	while (i < ck->n) {
		uint64_t word = ck->own[i / 64] | ck->packed[i / 64];

		word = (used ? word : ~word) >> (i % 64);
		if (word)
			return cow_min(i + (uint64_t)__builtin_ctzll(word), ck->n);
		i = cow_round_down(i, 64) + 64;
	}
	return ck->n;
}

/* Nobody refers to [@from, @to), whole blocks: is there anything? */
static int unused(struct check *ck, uint64_t from, uint64_t to)
{
	bool fix = ck->repair && !ck->left;
	uint64_t data;
	int rc = cow_img_seek(ck->img, 0, from, true, &data);

	if (rc || data >= to)
		return rc == -ENXIO || rc == -EOPNOTSUPP ? 0 : rc;
	ck->rep->leaks++;
	if (fix && to == ck->eof) {
		rc = cow_img_truncate(ck->img, 0, from);
		qcow_space_cut(ck->q, from);
	} else if (fix) {
		rc = cow_img_punch(ck->img, 0, from, to - from);
	}
	cow_report_say(ck->rep, fix && rc == 0, "leaked: nothing refers to the %llu bytes at %llu",
	    (unsigned long long)(to - from), (unsigned long long)from);
	return rc;
}

static int leaks(struct check *ck)
{
	uint64_t from, to;
	int rc = 0;

	for (uint64_t i = 0; rc == 0 && (i = next_sector(ck, i, false)) < ck->n; ) {
		from = cow_round_up((ck->base + i) * SECTOR, COW_META_BLOCK);
		i = next_sector(ck, i, true);
		to = (ck->base + i) * SECTOR;
		to = to >= ck->eof ? ck->eof : cow_round_down(to, COW_META_BLOCK);
		if (from < to)
			rc = unused(ck, from, to);
	}
	return rc ? failed(ck, rc, "leaks") : 0;
}

static int window(struct check *ck)
{
	const struct qcow *q = ck->q;
	int rc;

	memset(ck->own, 0, ck->n / 8 + 8);
	memset(ck->packed, 0, ck->n / 8 + 8);
	mark(ck, 0, QCOW_H_BYTES, KIND_PACKED);
	if (q->xen)
		mark(ck, QCOW_XEN_OFF, QCOW_XEN_BYTES, KIND_PACKED);
	mark(ck, q->l1_off, q->l1_n * 8, KIND_PACKED);
	if (q->backing_off)
		mark(ck, qcow_name_start(q), qcow_name_bytes(q), KIND_PACKED);
	for (size_t i = 0; i < ck->n_tables; i++)
		mark(ck, qcow_key_off(ck->tables[i]), q->l2_bytes, KIND_OWN);
	rc = each_entry(ck, mark_entry);
	return rc ? rc : leaks(ck);
}

/* All places are known to begin before the end of the file. */
static int windows(struct check *ck)
{
	uint64_t sectors = cow_div_up(ck->eof, SECTOR), size = cow_min(sectors, WINDOW_SECTORS);
	int rc = 0;

	ck->own = cow_zalloc(size / 8 + 8);
	ck->packed = cow_zalloc(size / 8 + 8);
	if (!ck->own || !ck->packed)
		return failed(ck, -ENOMEM, "check");
	for (uint64_t i = 0; i < WINDOWS && i * WINDOW_SECTORS < sectors && rc == 0; i++) {
		uint64_t from = i * WINDOW_SECTORS * SECTOR;

		ck->base = i * WINDOW_SECTORS;
		ck->n = cow_min(size, sectors - ck->base);
		if (ck->used[i])
			rc = window(ck);
		else
			rc = unused(ck, from, cow_min(from + ck->n * SECTOR, ck->eof));
	}
	if (rc == 0 && ck->repair)
		rc = cow_img_sync(ck->img, 0);
	return rc;
}

/* ---- all of it ---- */

int qcow_check(struct cow_image *img, struct cow_report *rep, uint32_t flags, struct cow_err *err)
{
	struct qcow *q = img->priv;
	struct check ck = { .img = img, .q = q, .rep = rep, .err = err,
			    .repair = flags & COW_CHECK_REPAIR, .eof = qcow_space_eof(img) };
	bool writing = q->w.loaded;
	int rc;

	ck.r = (struct qcow_reader){ .img = img, .buf = cow_zalloc(q->l2_bytes), .eof = ck.eof };
	rc = ck.r.buf ? entries(&ck) : failed(&ck, -ENOMEM, "check");
	if (rc == 0)
		rc = windows(&ck);
	cow_free(ck.r.buf);
	cow_free(ck.tables);
	cow_free(ck.own);
	cow_free(ck.packed);
	if (ck.repair)
		cow_img_drop_cache(img);
	if (rc == 0 && writing && ck.repair)
		rc = qcow_space_reload(img, err);
	return rc;
}
