// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Examining and repairing a qcow2 image: every reference to a host cluster is
 * counted, and compared with its refcount and its COPIED flag.
 *
 *	1. where metadata lies; what lies twice, or under data, which no repair puts right
 *	2. refcount blocks that are missing or not to be believed are replaced
 *	3. window by window of host clusters: count, raise refcounts that are too
 *	   low, put COPIED flags right, lower refcounts that are too high
 *	4. the marks "dirty" and "corrupt" go when nothing is left
 *
 * Step 1 reads all L2 tables, and counts the first window by the way. Of most images that
 * is all there is; and where it met no cluster twice and no flag that was missing, all
 * flags are right, and the tables need not be read again for them.
 *
 * Each step is synced before the next, so that an interrupted repair leaves no
 * refcount lower than it was. Memory: 68 MiB for a window, and 32 bytes for
 * each cluster of metadata. What entries point to is never changed.
 */
#include <errno.h>
#include <stdio.h>

#include "qcow2-priv.h"

#define SOME 1024u			/* counters to skip at a time */
#define WINDOW_CLUSTERS	(32u << 20)	/* 2 TiB of clusters of 64 KiB */
#define COUNT_MAX	UINT16_MAX	/* counters stop there: as many snapshots there can be */

/* BLOCK: a refcount block, TABLE: an L2 table, META: the rest of what has one place that refers to it. */
enum kind { KIND_META, KIND_BLOCK, KIND_TABLE, KIND_DATA };

/* Of a refcount block: something in its range is referred to; there was one that could not be believed. */
enum { WANTED = 1, DROPPED = 2 };

struct check {
	struct cow_image *img;
	struct qcow2 *q;
	struct cow_report *rep;
	struct cow_err *err;
	bool repair;
	uint64_t left;			/* corruptions that were not repaired */

	void (*outside)(struct check *ck, uint64_t cluster, enum kind kind);	/* NULL: nothing to do */
	bool deep;			/* look into L2 tables */
	bool report;			/* tell what is wrong with entries: in one walk only */

	uint64_t *reftable;		/* offsets, native order; 0: none, or not to be believed */
	uint64_t reftable_n;
	uint8_t *wanted;		/* of each refcount block: 0, WANTED, or DROPPED as well */
	uint64_t beyond;		/* references that no refcount table entry can cover */
	uint64_t top;			/* highest cluster referred to, + 1 */
	struct qcow2_set meta, multi;	/* metadata but for refcount blocks; what of it has several references */
	struct qcow2_set tables;	/* of these, L2 tables */
	struct qcow2_set odd;		/* of metadata, what is something else as well */
	struct qcow2_set blocks, upon;	/* refcount blocks; which of them lie upon something else */

	uint16_t *counts;		/* of [base, base + n); in the window behind, nothing is referred to */
	uint8_t *high;			/* a bit each: the refcount is higher than that */
	uint64_t base, n, end;		/* the window: [base, end) */
	bool fresh;			/* nothing was counted: the counters are all 0 */
	bool counted;			/* the window of step 1 is still true */
	bool twice;			/* a cluster of the window is referred to more than once */
	bool uncopied;			/* there are entries without their COPIED flag, or damaged ones */
	bool any_high;			/* of the window */
	uint8_t *l2, *block;		/* a cluster each */
	bool no_memory;
};

/* A corruption that no repair of ours puts right. */
static void bad_entry(struct check *ck, const char *what, uint64_t where)
{
	ck->uncopied = true;
	if (!ck->report)
		return;
	ck->rep->corruptions++;
	ck->left++;
	cow_report_say(ck->rep, false, "%s %llu is damaged", what, (unsigned long long)where);
}

/* Bits that mean nothing there: the rest of the entry means what it always does. */
static void odd_bits(struct check *ck, uint64_t bits, const char *what, uint64_t where)
{
	if (!bits || !ck->report)
		return;
	ck->rep->corruptions++;
	ck->left++;
	cow_report_say(ck->rep, false, "%s %llu has bits set that mean nothing", what, (unsigned long long)where);
}

static int read_failed(struct check *ck, int rc, const char *what)
{
	return cow_err_sys(ck->err, rc, "%s: %s", ck->img->path, what);
}

/* ---- the walk: every reference to a host cluster ---- */

/* Counts what lies in the window, and tells of the rest. */
static void ref_cluster(struct check *ck, uint64_t cluster, enum kind kind)
{
	if (cluster - ck->base < ck->n) {
		uint16_t *counter = &ck->counts[cluster - ck->base];

		ck->fresh = false;
		ck->twice |= *counter != 0;
		*counter = (uint16_t)(*counter + (*counter < COUNT_MAX));
	} else if (ck->outside) {
		ck->outside(ck, cluster, kind);
	}
}

static void ref_bytes(struct check *ck, uint64_t off, uint64_t bytes, enum kind kind)
{
	uint64_t first = off >> ck->q->cluster_bits;

	for (uint64_t c = first; bytes && c <= (off + bytes - 1) >> ck->q->cluster_bits; c++)
		ref_cluster(ck, c, kind);
}

static bool bitmap_ok(uint64_t e, uint64_t bitmap)
{
	uint32_t alloc = (uint32_t)bitmap, zero = (uint32_t)(bitmap >> 32);

	return !(e & QCOW2_ZERO) && !(alloc & zero) && !(alloc && !(e & QCOW2_OFFSET_MASK));
}

/* Data in another file has its place, and no refcounts. */
static void walk_external(struct check *ck, const uint8_t *p, uint64_t virt)
{
	const struct qcow2 *q = ck->q;
	uint64_t e = cow_get_be64(p), off = e & QCOW2_OFFSET_MASK, bitmap = q->extl2 ? cow_get_be64(p + 8) : 0;
	bool host = e & (QCOW2_OFFSET_MASK | QCOW2_COPIED);
	uint32_t alloc = (uint32_t)bitmap, zero = (uint32_t)(bitmap >> 32);

	if ((e & QCOW2_COMPRESSED) || (host && off != virt) || (q->extl2 && (e & QCOW2_ZERO)) ||
	    (alloc & zero) || (alloc && !host)) {
		bad_entry(ck, "L2 entry of byte", virt);
		return;
	}
	odd_bits(ck, e & QCOW2_L2_RESERVED, "L2 entry of byte", virt);
	if (host && ck->report)
		ck->rep->data_bytes += q->cluster;
}

static void walk_entry(struct check *ck, const uint8_t *p, uint64_t virt, bool active)
{
	const struct qcow2 *q = ck->q;
	uint64_t e = cow_get_be64(p), off = e & QCOW2_OFFSET_MASK, odd = e & QCOW2_L2_RESERVED, bytes;

	if (qcow2_external(q)) {
		walk_external(ck, p, virt);
		return;
	}
	if (e & QCOW2_COMPRESSED) {
		off = qcow2_cmp_off(q, e);
		bytes = qcow2_cmp_bytes(q, e);
		if ((e & QCOW2_COPIED) || off == 0 || off > QCOW2_HOST_MAX - bytes) {
			bad_entry(ck, "L2 entry of byte", virt);
			return;
		}
		ref_bytes(ck, off, bytes, KIND_DATA);
		odd = q->extl2 ? cow_get_be64(p + 8) : 0;	/* it has no subclusters */
	} else if ((off & (q->cluster - 1)) || ((e & QCOW2_ZERO) && q->version < 3) ||
		   (q->extl2 && !bitmap_ok(e, cow_get_be64(p + 8)))) {
		bad_entry(ck, "L2 entry of byte", virt);
		return;
	} else if (off) {
		ck->uncopied |= active && !(e & QCOW2_COPIED);
		ref_cluster(ck, off >> q->cluster_bits, KIND_DATA);
	}
	odd_bits(ck, odd, "L2 entry of byte", virt);
	if (off && active && ck->report)
		ck->rep->data_bytes += q->cluster;
}

static int walk_l2(struct check *ck, uint64_t off, uint64_t virt, bool active)
{
	const struct qcow2 *q = ck->q;
	int rc = cow_img_pread(ck->img, 0, ck->l2, q->cluster, off);

	if (rc)
		return read_failed(ck, rc, "L2 table");
	for (uint64_t i = 0; i < 1ULL << q->l2_bits; i++) {
		const uint8_t *p = ck->l2 + i * q->entry_bytes;

		if (cow_get_be64(p) || q->extl2)
			walk_entry(ck, p, virt + (i << q->cluster_bits), active);
	}
	return 0;
}

static int walk_l1(struct check *ck, uint64_t l1_off, uint64_t l1_size, bool active)
{
	uint64_t buf[512];
	int rc = 0;

	ref_bytes(ck, l1_off, l1_size * 8, KIND_META);
	for (uint64_t at = 0; at < l1_size && rc == 0; at += COW_ARRAY_SIZE(buf)) {
		uint64_t n = cow_min(COW_ARRAY_SIZE(buf), l1_size - at);

		rc = cow_img_pread(ck->img, 0, buf, n * 8, l1_off + at * 8);
		if (rc)
			return read_failed(ck, rc, "L1 table");
		if (cow_is_zero(buf, n * 8))
			continue;
		for (uint64_t i = 0; i < n && rc == 0; i++) {
			uint64_t off = be64toh(buf[i]) & QCOW2_OFFSET_MASK;

			odd_bits(ck, be64toh(buf[i]) & (off ? QCOW2_L1_RESERVED : UINT64_MAX), "L1 entry",
				 at + i);
			if (off == 0)
				continue;
			if (!qcow2_host_ok(ck->q, off)) {
				bad_entry(ck, "L1 entry", at + i);
				continue;
			}
			ck->uncopied |= active && !(be64toh(buf[i]) & QCOW2_COPIED);
			ref_bytes(ck, off, ck->q->cluster, KIND_TABLE);
			if (ck->deep)
				rc = walk_l2(ck, off, (at + i) * qcow2_l1_span(ck->q), active);
			if (ck->rep->progress && ck->deep &&
			    ck->rep->progress(ck->rep, at + i, l1_size))
				return -ECANCELED;
		}
	}
	return rc;
}

static int walk_snapshot(void *opaque, const struct qcow2_snap *s)
{
	return walk_l1(opaque, s->l1_off, s->l1_size, false);
}

static int walk_bitmap(void *opaque, const struct qcow2_bitmap *b)
{
	struct check *ck = opaque;
	uint64_t buf[512], off = b->table_off;
	int rc = 0;

	if (!qcow2_host_ok(ck->q, off) || b->table_n > QCOW2_BITMAP_TABLE_MAX / 8) {
		bad_entry(ck, "bitmap table at", off);
		return 0;
	}
	ref_bytes(ck, off, b->table_n * 8ULL, KIND_META);
	for (uint64_t at = 0; at < b->table_n && rc == 0; at += COW_ARRAY_SIZE(buf)) {
		uint64_t n = cow_min(COW_ARRAY_SIZE(buf), b->table_n - at);

		rc = cow_img_pread(ck->img, 0, buf, n * 8, off + at * 8);
		if (rc)
			return read_failed(ck, rc, "bitmap table");
		for (uint64_t i = 0; i < n; i++) {
			uint64_t host = be64toh(buf[i]) & QCOW2_OFFSET_MASK;

			if (host & (ck->q->cluster - 1))
				bad_entry(ck, "bitmap table entry", at + i);
			else if (host)
				ref_bytes(ck, host, ck->q->cluster, KIND_DATA);
		}
	}
	return 0;
}

static int walk_bitmaps(struct check *ck)
{
	const struct qcow2 *q = ck->q;
	struct cow_err err = { 0 };
	int rc;

	if (q->nb_bitmaps == 0)
		return 0;
	ref_bytes(ck, q->bitmapdir_off, q->bitmapdir_bytes, KIND_META);
	rc = qcow2_bitmaps_walk(ck->img, q, walk_bitmap, ck, &err);
	if (rc != -EUCLEAN)
		return rc ? cow_err_set(ck->err, rc, "%s", cow_err_text(&err, rc)) : 0;
	bad_entry(ck, "bitmap directory at", q->bitmapdir_off);
	return 0;
}

/* Everything that is referred to. */
static int walk(struct check *ck)
{
	const struct qcow2 *q = ck->q;
	uint64_t bytes;
	int rc;

	ref_cluster(ck, 0, KIND_META);
	ref_bytes(ck, q->luks_off, q->luks_bytes, KIND_META);
	ref_bytes(ck, q->reftable_off, (uint64_t)q->reftable_clusters << q->cluster_bits, KIND_META);
	for (uint64_t i = 0; i < ck->reftable_n; i++) {
		if (ck->reftable[i])
			ref_bytes(ck, ck->reftable[i], q->cluster, KIND_BLOCK);
	}
	rc = walk_l1(ck, q->l1_off, q->l1_size, true);
	if (rc == 0)
		rc = qcow2_snapshots_walk(ck->img, q, walk_snapshot, ck, &bytes, ck->err);
	if (rc == 0 && q->nb_snapshots)
		ref_bytes(ck, q->snapshots_off, bytes, KIND_META);
	return rc ? rc : walk_bitmaps(ck);
}

/* ---- 1: where metadata lies ---- */

static bool room_for_one(struct check *ck)
{
	struct qcow2_set *const sets[] = { &ck->meta, &ck->multi, &ck->tables, &ck->odd, &ck->blocks,
					   &ck->upon };

	for (size_t i = 0; i < COW_ARRAY_SIZE(sets) && !ck->no_memory; i++)
		ck->no_memory = qcow2_set_room(sets[i], 1);
	return !ck->no_memory;
}

/* Metadata is referred to once more. That is as it should be for the tables that snapshots share. */
static void refer_again(struct check *ck, uint64_t cluster, enum kind kind)
{
	qcow2_set_add(&ck->multi, cluster);
	if (kind != KIND_TABLE || !qcow2_set_has(&ck->tables, cluster))
		qcow2_set_add(&ck->odd, cluster);
}

/* Without a window. What a refcount block lies upon is what it would be without, as that can be made anew. */
static void collect_meta(struct check *ck, uint64_t cluster, enum kind kind)
{
	if (kind == KIND_DATA || !room_for_one(ck))
		return;
	if (kind == KIND_BLOCK) {
		if (!qcow2_set_add(&ck->blocks, cluster) || qcow2_set_has(&ck->meta, cluster))
			qcow2_set_add(&ck->upon, cluster);
		return;
	}
	if (qcow2_set_has(&ck->blocks, cluster))
		qcow2_set_add(&ck->upon, cluster);
	if (!qcow2_set_add(&ck->meta, cluster))
		refer_again(ck, cluster, kind);
	if (kind == KIND_TABLE)
		qcow2_set_add(&ck->tables, cluster);
}

/* There is data: maybe upon metadata, or under a refcount block. */
static void collect_data(struct check *ck, uint64_t cluster)
{
	bool meta = qcow2_set_has(&ck->meta, cluster);

	if ((!meta && !qcow2_set_has(&ck->blocks, cluster)) || !room_for_one(ck))
		return;
	if (meta)
		refer_again(ck, cluster, KIND_DATA);
	else
		qcow2_set_add(&ck->upon, cluster);
}

/* Behind the first window. */
static void collect_far(struct check *ck, uint64_t cluster, enum kind kind)
{
	uint64_t per = qcow2_ref_per_block(ck->q);

	if (cluster / per >= ck->reftable_n) {
		ck->beyond++;
		return;
	}
	ck->wanted[cluster / per] |= WANTED;
	ck->top = cow_max(ck->top, cluster + 1);
	if (kind == KIND_DATA)
		collect_data(ck, cluster);
}

/* Behind the last counter that is not 0, of those of clusters from @from up to @end of the window. */
static uint64_t counted_end(const struct check *ck, uint64_t from, uint64_t end)
{
	while (end - from >= SOME && cow_is_zero(ck->counts + end - SOME, SOME * sizeof(*ck->counts)))
		end -= SOME;
	while (end > from && !ck->counts[end - 1])
		end--;
	return end;
}

/* What of @set is referred to as data too, by the counters of the first window. */
static void counted_twice(struct check *ck, const struct qcow2_set *set)
{
	for (size_t i = 0; i < set->cap && ck->twice; i++) {
		uint64_t c = set->slots[i] - 1;

		if (set->slots[i] && c < ck->n && ck->counts[c] > 1 && !qcow2_set_has(&ck->multi, c))
			collect_data(ck, c);
	}
}

/*
 * What the counters of the first window tell: where refcount blocks are needed, what data lies on
 * (but for tables that are shared: of those only collect_meta() knows).
 */
static void collect_counted(struct check *ck)
{
	uint64_t per = qcow2_ref_per_block(ck->q), end;

	for (uint64_t from = 0; from < ck->n; from += per) {
		end = counted_end(ck, from, from + per);
		if (end == from)
			continue;
		ck->wanted[from / per] |= WANTED;
		ck->top = cow_max(ck->top, end);
	}
	if (!room_for_one(ck))	/* and so for any number, in the sets that are looked through */
		return;
	counted_twice(ck, &ck->meta);
	counted_twice(ck, &ck->blocks);
	ck->counted = true;
}

/* Counters for @n clusters, all 0. */
static int make_window(struct check *ck, uint64_t n)
{
	cow_free(ck->counts);
	cow_free(ck->high);
	ck->counts = cow_zalloc(n * sizeof(*ck->counts));
	ck->high = cow_zalloc(n / 8 + 1);
	ck->n = n;
	ck->fresh = true;
	ck->counted = ck->any_high = false;
	return ck->counts && ck->high ? 0 : read_failed(ck, -ENOMEM, "check");
}

/* Clusters of a window, whole refcount blocks. */
static uint64_t window_size(const struct check *ck)
{
	uint64_t per = qcow2_ref_per_block(ck->q);

	return cow_max(WINDOW_CLUSTERS / per, 1) * per;
}

/* The first window, as far as the file goes. */
static int first_window(struct check *ck)
{
	uint64_t per = qcow2_ref_per_block(ck->q);
	uint64_t there = cow_div_up(cow_img_file_size(ck->img, 0), per << ck->q->cluster_bits);

	return make_window(ck, cow_min(window_size(ck), cow_min(there, ck->reftable_n) * per));
}

/* Refcount blocks that lie upon something else are no longer there. */
static void drop_refblocks(struct check *ck)
{
	for (uint64_t i = 0; i < ck->reftable_n; i++) {
		uint64_t cluster = ck->reftable[i] >> ck->q->cluster_bits;

		if (!ck->reftable[i] || !qcow2_set_has(&ck->upon, cluster))
			continue;
		ck->top = cow_max(ck->top, cluster + 1);	/* until there are new ones it is in use */
		ck->reftable[i] = 0;
		ck->wanted[i] = WANTED | DROPPED;
		ck->counted = false;
	}
}

/* From metadata alone, and then with all else: what data lies upon can be told when no such block counts. */
static int collect(struct check *ck)
{
	int rc;

	ck->outside = collect_meta;
	rc = walk(ck);
	drop_refblocks(ck);
	ck->outside = collect_far;
	ck->deep = ck->report = true;
	if (rc == 0)
		rc = first_window(ck);
	if (rc == 0)
		rc = walk(ck);
	ck->report = false;
	if (rc == 0) {
		collect_counted(ck);
		drop_refblocks(ck);
	}
	if (rc == 0 && ck->no_memory)
		rc = read_failed(ck, -ENOMEM, "check");
	if (rc == 0 && ck->beyond) {
		ck->rep->corruptions += ck->beyond;
		ck->left += ck->beyond;
		cow_report_say(ck->rep, false,
			       "%llu references lie behind what the refcount table can cover",
		    (unsigned long long)ck->beyond);
	}
	return rc;
}

/*
 * No repair knows which of two things a cluster is. With header or refcount table among them there
 * is none at all: what is put right in the one is wrong in the other.
 */
static void judge_overlaps(struct check *ck)
{
	const struct qcow2 *q = ck->q;
	uint64_t first = q->reftable_off >> q->cluster_bits;

	for (size_t i = 0; i < ck->odd.cap; i++) {
		uint64_t cluster = ck->odd.slots[i] - 1;

		if (!ck->odd.slots[i])
			continue;
		ck->rep->corruptions++;
		ck->left++;
		ck->repair &= cluster && (cluster < first || cluster - first >= q->reftable_clusters);
		cow_report_say(ck->rep, false, "cluster %llu is metadata and something else as well",
			       (unsigned long long)cluster);
	}
}

/* ---- 2: refcount blocks ---- */

static int load_reftable(struct check *ck)
{
	struct qcow2 *q = ck->q;
	uint64_t bytes = (uint64_t)q->reftable_clusters << q->cluster_bits;
	int rc;

	ck->reftable_n = bytes / 8;
	ck->reftable = cow_zalloc(bytes);
	ck->wanted = cow_zalloc(ck->reftable_n);
	ck->l2 = cow_zalloc(q->cluster);
	ck->block = cow_zalloc(q->cluster);
	if (!ck->reftable || !ck->wanted || !ck->l2 || !ck->block)
		return read_failed(ck, -ENOMEM, "check");
	rc = cow_img_pread(ck->img, 0, ck->reftable, bytes, q->reftable_off);
	if (rc)
		return read_failed(ck, rc, "refcount table");
	for (uint64_t i = 0; i < ck->reftable_n; i++)
		ck->reftable[i] = be64toh(ck->reftable[i]);
	return 0;
}

static int write_reftable_entry(struct check *ck, uint64_t i)
{
	uint8_t e[8];

	cow_put_be64(e, ck->reftable[i]);
	return cow_img_pwrite(ck->img, 0, e, sizeof(e), ck->q->reftable_off + i * 8);
}

/* Entries that cannot be true, before anything is collected. */
static int judge_reftable(struct check *ck)
{
	int rc = 0;

	for (uint64_t i = 0; i < ck->reftable_n && rc == 0; i++) {
		uint64_t off = ck->reftable[i];

		if (off == 0 || (qcow2_host_ok(ck->q, off) && !(off & ~QCOW2_OFFSET_MASK)))
			continue;
		ck->reftable[i] = 0;
		ck->rep->corruptions++;
		ck->left += !ck->repair;
		cow_report_say(ck->rep, ck->repair,
			       "refcount table entry %llu is damaged", (unsigned long long)i);
		if (ck->repair)
			rc = write_reftable_entry(ck, i);
	}
	return rc ? read_failed(ck, rc, "refcount table") : 0;
}

/* An empty refcount block for range @i behind everything; its own refcount is raised with all others. */
static int new_refblock(struct check *ck, uint64_t i)
{
	struct qcow2 *q = ck->q;
	uint64_t per = qcow2_ref_per_block(q), cluster = ck->top;
	int rc;

	if (cluster / per >= ck->reftable_n)
		return read_failed(ck, -ENOSPC, "refcount table");
	memset(ck->block, 0, q->cluster);
	rc = cow_img_pwrite(ck->img, 0, ck->block, q->cluster, cluster << q->cluster_bits);
	if (rc == 0)
		rc = cow_img_sync(ck->img, 0);
	ck->reftable[i] = cluster << q->cluster_bits;
	ck->counted = false;
	if (rc == 0)
		rc = write_reftable_entry(ck, i);
	if (rc)
		return read_failed(ck, rc, "refcount block");
	ck->wanted[cluster / per] |= WANTED;
	ck->top = cluster + 1;
	return 0;
}

/* Blocks that are missing, or were dropped. */
static int fix_refblocks(struct check *ck)
{
	bool again = true;
	int rc = 0;

	for (uint64_t i = 0; i < ck->reftable_n; i++) {
		if (ck->reftable[i] || !ck->wanted[i])
			continue;
		ck->rep->corruptions++;
		ck->left += !ck->repair;
		cow_report_say(ck->rep, ck->repair, "refcount block %llu %s", (unsigned long long)i,
			       ck->wanted[i] & DROPPED ? "lies upon something else" : "is missing");
	}
	while (again && ck->repair && rc == 0) {	/* a new one may lie in a range without one */
		again = false;
		for (uint64_t i = 0; i < ck->reftable_n && rc == 0; i++) {
			if (ck->wanted[i] && !ck->reftable[i]) {
				rc = new_refblock(ck, i);
				again = true;
			}
		}
	}
	return rc ? rc : ck->repair ? cow_img_sync(ck->img, 0) : 0;
}

/* ---- 3: refcounts and flags, window by window ---- */

enum phase { RAISE, LOWER };

/* One refcount. True: it was changed in ck->block. */
static bool compare_one(struct check *ck, uint64_t cluster, uint64_t index, enum phase phase)
{
	struct qcow2 *q = ck->q;
	uint64_t is = qcow2_ref_get(ck->block, index, q->refcount_order);
	uint64_t want = cluster - ck->base < ck->n ? ck->counts[cluster - ck->base] : 0;
	bool fix = ck->repair && want <= qcow2_ref_max(q);

	if (want == COUNT_MAX && is > want)
		want = is;
	ck->any_high |= is > want;
	if (is > want && cluster - ck->base < ck->n)
		ck->high[(cluster - ck->base) / 8] |= (uint8_t)(1u << (cluster - ck->base) % 8);
	if (phase == RAISE ? is >= want : is <= want)
		return false;
	if (phase == RAISE)
		ck->rep->corruptions++;
	else
		ck->rep->leaks++;
	ck->left += phase == RAISE && !fix;
	cow_report_say(ck->rep, fix, "%s: cluster %llu has refcount %llu, but %llu references",
	    phase == RAISE ? "corrupt" : "leaked", (unsigned long long)cluster, (unsigned long long)is,
	    (unsigned long long)want);
	if (fix)
		qcow2_ref_set(ck->block, index, q->refcount_order, want);
	return fix;
}

/* @n refcounts from @index of ck->block on. True: one was changed. */
static bool compare_word(struct check *ck, uint64_t cluster, uint64_t index, uint64_t n, enum phase phase)
{
	bool used = cow_get_be64(ck->block + (index << ck->q->refcount_order >> 3)), changed = false;
	uint64_t at = cluster - ck->base, counted = at < ck->n ? cow_min(n, ck->n - at) : 0;

	used = used || (counted && !cow_is_zero(ck->counts + at, counted * sizeof(*ck->counts)));
	for (uint64_t i = 0; i < n && used; i++)
		changed |= compare_one(ck, cluster + i, index + i, phase);
	return changed;
}

/* Are all of a block's refcounts what was counted? Only of the usual width, 16 bits: false else. */
static bool all_equal(const struct check *ck, uint64_t cluster, uint64_t per)
{
	const uint16_t *counts = ck->counts + (cluster - ck->base);
	uint16_t differ = 0;

	if (ck->q->refcount_order != 4 || cluster - ck->base + per > ck->n)
		return false;
	for (uint64_t k = 0; k < per; k++)
		differ |= cow_get_be16(ck->block + 2 * k) ^ counts[k];
	return !differ;
}

static int compare(struct check *ck, enum phase phase)
{
	struct qcow2 *q = ck->q;
	uint64_t per = qcow2_ref_per_block(q), word = 64 >> q->refcount_order;
	int rc = 0;

	for (uint64_t i = ck->base / per; i * per < ck->end && rc == 0; i++) {
		bool changed = false, equal;

		if (!ck->reftable[i])
			continue;
		rc = cow_img_pread(ck->img, 0, ck->block, q->cluster, ck->reftable[i]);
		equal = rc == 0 && all_equal(ck, i * per, per);
		for (uint64_t k = 0; k < per && rc == 0 && !equal; k += word)
			changed |= compare_word(ck, i * per + k, k, word, phase);
		if (phase == RAISE)
			ck->rep->blocks_checked += per;
		if (rc == 0 && changed)
			rc = cow_img_pwrite(ck->img, 0, ck->block, q->cluster, ck->reftable[i]);
	}
	if (rc == 0 && ck->repair)
		rc = cow_img_sync(ck->img, 0);
	return rc ? read_failed(ck, rc, "refcount block") : 0;
}

/*
 * Is the COPIED flag of an entry for @host wrong, as far as the window tells? Then *e is put right.
 * Missing where the refcount is too high, it fits that: it belongs to the leak.
 */
static bool wrong_flag(struct check *ck, uint8_t *p, uint64_t host, bool fixable, const char *what,
		       uint64_t where)
{
	uint64_t cluster = host >> ck->q->cluster_bits, e = cow_get_be64(p);
	bool single;

	if (cluster < ck->base || cluster - ck->base >= ck->n)
		return false;
	single = ck->counts[cluster - ck->base] == 1;
	if (single == !!(e & QCOW2_COPIED))
		return false;
	if (!single || !(ck->high[(cluster - ck->base) / 8] >> (cluster - ck->base) % 8 & 1)) {
		ck->rep->corruptions++;
		ck->left += !(ck->repair && fixable);
		cow_report_say(ck->rep, ck->repair && fixable,
			       "the COPIED flag of %s %llu is wrong", what,
		    (unsigned long long)where);
	}
	cow_put_be64(p, e ^ QCOW2_COPIED);
	return ck->repair && fixable;
}

static int flags_of_l2(struct check *ck, uint64_t off, uint64_t virt)
{
	const struct qcow2 *q = ck->q;
	bool fixable = !qcow2_set_has(&ck->odd, off >> q->cluster_bits), changed = false;
	int rc = cow_img_pread(ck->img, 0, ck->l2, q->cluster, off);

	for (uint64_t i = 0; i < 1ULL << q->l2_bits && rc == 0 && !qcow2_external(q); i++) {
		uint8_t *p = ck->l2 + i * q->entry_bytes;
		uint64_t e = cow_get_be64(p), host = e & QCOW2_OFFSET_MASK;

		if (!(e & QCOW2_COMPRESSED) && host && !(host & (q->cluster - 1)))
			changed |= wrong_flag(ck, p, host, fixable, "the L2 entry of byte",
					      virt + (i << q->cluster_bits));
	}
	if (rc == 0 && changed)
		rc = cow_img_pwrite(ck->img, 0, ck->l2, q->cluster, off);
	return rc ? read_failed(ck, rc, "L2 table") : 0;
}

static int flags(struct check *ck)
{
	const struct qcow2 *q = ck->q;
	uint8_t p[8];
	int rc = 0;

	for (uint64_t i = 0; i < q->l1_size && rc == 0; i++) {
		uint64_t off;

		rc = cow_img_pread(ck->img, 0, p, sizeof(p), q->l1_off + i * 8);
		off = cow_get_be64(p) & QCOW2_OFFSET_MASK;
		if (rc || !qcow2_host_ok(q, off))
			continue;
		if (wrong_flag(ck, p, off, !qcow2_set_has(&ck->odd, q->l1_off >> q->cluster_bits),
			       "L1 entry", i))
			rc = cow_img_pwrite(ck->img, 0, p, sizeof(p), q->l1_off + i * 8);
		if (rc == 0)
			rc = flags_of_l2(ck, off, i * qcow2_l1_span(q));
	}
	if (rc == 0 && ck->repair)
		rc = cow_img_sync(ck->img, 0);
	return rc;
}

/* Is anything in the window referred to, or has refcounts? */
static bool window_used(const struct check *ck, uint64_t per)
{
	for (uint64_t i = ck->base / per; i * per < ck->end; i++) {
		if (ck->reftable[i] || ck->wanted[i])
			return true;
	}
	return false;
}

/* New counters are zeroes that take no memory until they count: most of a window may stay so. */
static int count_window(struct check *ck)
{
	int rc = 0;

	if (ck->counted || ck->n == 0)
		return 0;
	if (!ck->fresh || ck->any_high)
		rc = make_window(ck, ck->n);
	ck->twice = false;
	return rc ? rc : walk(ck);
}

static int window(struct check *ck)
{
	int rc = count_window(ck);

	ck->any_high = false;
	if (rc == 0)
		rc = compare(ck, RAISE);
	if (rc == 0 && ck->n && (ck->twice || ck->uncopied))
		rc = flags(ck);
	if (rc == 0 && ck->any_high)
		rc = compare(ck, LOWER);
	return rc;
}

static int windows(struct check *ck)
{
	uint64_t per = qcow2_ref_per_block(ck->q), end = ck->reftable_n, size = window_size(ck), used;
	int rc = 0;

	while (end > 0 && !ck->reftable[end - 1] && !ck->wanted[end - 1])
		end--;
	end *= per;
	used = cow_round_up(ck->top, per);
	if (cow_min(size, used) > ck->n)
		rc = make_window(ck, cow_min(size, used));
	ck->outside = NULL;
	for (ck->base = 0; ck->base < end && rc == 0; ck->base += size) {
		ck->end = cow_min(ck->base + size, end);
		ck->n = ck->base < used ? cow_min(size, used - ck->base) : 0;
		if (window_used(ck, per))
			rc = window(ck);
		ck->counted = false;
	}
	return rc;
}

/* ---- all of it ---- */

static int clear_marks(struct check *ck)
{
	struct qcow2 *q = ck->q;
	int rc = 0;

	if (!ck->repair || ck->left)
		return 0;
	if (q->incompat & (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT)) {
		q->incompat &= ~(QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
		rc = qcow2_header_update_sync(ck->img, q);
	}
	q->corrupt_found = false;
	return rc;
}

static int run(struct check *ck)
{
	int rc = load_reftable(ck);

	if (rc)
		return rc;
	rc = judge_reftable(ck);
	if (rc == 0)
		rc = collect(ck);
	if (rc)
		return rc;
	judge_overlaps(ck);
	rc = fix_refblocks(ck);
	if (rc == 0)
		rc = windows(ck);
	return rc ? rc : clear_marks(ck);
}

int qcow2_check(struct cow_image *img, struct cow_report *rep, uint32_t flag, struct cow_err *err)
{
	struct qcow2 *q = img->priv;
	struct check ck = { .img = img, .q = q, .rep = rep, .err = err,
			    .repair = flag & COW_CHECK_REPAIR };
	bool writing = q->w.loaded;
	int rc;

	if (q->snapshot[0])
		return cow_err_set(err, -EOPNOTSUPP, "%s: is checked without the option snapshot", img->path);
	rc = writing ? qcow2_writer_settle(img) : 0;
	if (rc == 0)
		rc = run(&ck);
	cow_free(ck.reftable);
	cow_free(ck.wanted);
	cow_free(ck.l2);
	cow_free(ck.block);
	cow_free(ck.counts);
	cow_free(ck.high);
	cow_free(ck.meta.slots);
	cow_free(ck.multi.slots);
	cow_free(ck.tables.slots);
	cow_free(ck.blocks.slots);
	cow_free(ck.upon.slots);
	cow_free(ck.odd.slots);
	if (writing && rc == 0)
		rc = qcow2_writer_reload(img, err);
	return rc;
}
