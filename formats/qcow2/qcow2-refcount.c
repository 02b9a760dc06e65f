// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Refcounts, and which host clusters are free. qcow2-priv.h says why counts only
 * go up while the image is in use. What is free is found once, when the image
 * is opened for writing, and kept in memory: holes, and everything behind the
 * tail. A batch of them at a time gets refcount 1 and is handed out from the
 * reserve; so only the first flush after a batch has to wait for refcounts.
 *
 * Refcounts are changed through the metadata cache between begin() and the end
 * (qcow2_reserve() and qcow2_take()), and past it only when nothing is cached
 * (the functions named _sync).
 */
#include <errno.h>

#include "cow/log.h"
#include "qcow2-priv.h"

#define BATCH_BYTES	COW_MIB(16)	/* reserved at once: leaked, unwritten, by a crash */
#define BATCH_MIN	8u		/* clusters */
#define HOLES_MAX	4096u		/* runs of free clusters that are remembered */
#define UNREF_MAX	(1u << 20)	/* runs remembered until the end: 16 MiB */

uint64_t qcow2_ref_get(const void *block, uint64_t index, unsigned order)
{
	const uint8_t *p = block;

	switch (order) {
	case 3:
		return p[index];
	case 4:
		return cow_get_be16(p + index * 2);
	case 5:
		return cow_get_be32(p + index * 4);
	case 6:
		return cow_get_be64(p + index * 8);
	default:	/* the first entry has the lowest bits */
		return p[index << order >> 3] >> (index << order & 7) & ((1u << (1u << order)) - 1);
	}
}

void qcow2_ref_set(void *block, uint64_t index, unsigned order, uint64_t value)
{
	uint8_t *p = block, mask;
	unsigned shift;

	switch (order) {
	case 3:
		p[index] = (uint8_t)value;
		return;
	case 4:
		cow_put_be16(p + index * 2, (uint16_t)value);
		return;
	case 5:
		cow_put_be32(p + index * 4, (uint32_t)value);
		return;
	case 6:
		cow_put_be64(p + index * 8, value);
		return;
	default:
		shift = (unsigned)(index << order & 7);
		mask = (uint8_t)(((1u << (1u << order)) - 1) << shift);
		p += index << order >> 3;
		*p = (uint8_t)((*p & ~mask) | (value << shift & mask));
	}
}

/* ---- sets and runs of clusters ---- */

static size_t set_slot(const struct qcow2_set *s, uint64_t cluster)
{
	size_t i = (size_t)((cluster + 1) * 0x9e3779b97f4a7c15ULL >> 20) & (s->cap - 1);

	while (s->slots[i] && s->slots[i] != cluster + 1)
		i = (i + 1) & (s->cap - 1);
	return i;
}

bool qcow2_set_has(const struct qcow2_set *s, uint64_t cluster)
{
	return s->cap && s->slots[set_slot(s, cluster)];
}

int qcow2_set_room(struct qcow2_set *s, size_t more)
{
	struct qcow2_set grown = { .cap = s->cap ? s->cap : 64, .used = s->used };

	while (grown.cap < 2 * (s->used + more + 1))
		grown.cap *= 2;
	if (grown.cap == s->cap)
		return 0;
	grown.slots = cow_zalloc(grown.cap * sizeof(*grown.slots));
	if (!grown.slots)
		return -ENOMEM;
	for (size_t i = 0; i < s->cap; i++) {
		if (s->slots[i])
			grown.slots[set_slot(&grown, s->slots[i] - 1)] = s->slots[i];
	}
	cow_free(s->slots);
	*s = grown;
	return 0;
}

bool qcow2_set_add(struct qcow2_set *s, uint64_t cluster)
{
	size_t i = set_slot(s, cluster);

	if (s->slots[i])
		return false;
	s->slots[i] = cluster + 1;
	s->used++;
	return true;
}

int qcow2_runs_add(struct qcow2_runs *r, uint64_t start, uint64_t count)
{
	struct qcow2_run *last = r->n ? &r->v[r->n - 1] : NULL, *grown;
	size_t cap = r->cap ? r->cap * 2 : 16;

	if (last && last->start + last->count == start) {
		last->count += count;
		return 0;
	}
	if (r->n == r->cap) {
		grown = r->n < UNREF_MAX ? cow_zalloc(cap * sizeof(*grown)) : NULL;
		if (!grown)
			return -ENOMEM;
		if (r->n)
			memcpy(grown, r->v, r->n * sizeof(*grown));
		cow_free(r->v);
		r->v = grown;
		r->cap = cap;
	}
	r->v[r->n++] = (struct qcow2_run){ start, count };
	return 0;
}

static void runs_free(struct qcow2_runs *r)
{
	cow_free(r->v);
	*r = (struct qcow2_runs){ 0 };
}

void qcow2_writer_free(struct qcow2 *q)
{
	struct qcow2_writer *w = &q->w;

	cow_free(w->reftable);
	cow_free(w->meta.slots);
	runs_free(&w->holes);
	runs_free(&w->spare);
	runs_free(&w->unref);
	*w = (struct qcow2_writer){ 0 };
}

/* ---- what the image has: loaded once ---- */

struct loading {
	struct cow_image *img;
	struct qcow2 *q;
	struct qcow2_set l2;
	uint64_t meta_end;		/* highest cluster with metadata, + 1 */
	struct cow_err *err;
};

static int overlapping(struct loading *l, uint64_t off)
{
	return cow_err_set(l->err, -EUCLEAN, "%s: two tables lie upon each other at %llu: repair the "
			   "image before writing", l->img->path, (unsigned long long)off);
}

/* @fixed: the place of a table that nothing else may share. */
static int add_meta(struct loading *l, struct qcow2_set *s, uint64_t off, uint64_t bytes, bool fixed)
{
	struct qcow2 *q = l->q;
	uint64_t n = cow_div_up(bytes, q->cluster), first = off >> q->cluster_bits;
	int rc = qcow2_set_room(s, n);

	if (rc)
		return cow_err_sys(l->err, rc, "%s", l->img->path);
	for (uint64_t i = 0; i < n; i++) {
		if (!qcow2_set_add(s, first + i) && fixed)
			return overlapping(l, off);
	}
	l->meta_end = cow_max(l->meta_end, first + n);
	return 0;
}

static int load_reftable(struct loading *l)
{
	struct qcow2 *q = l->q;
	struct qcow2_writer *w = &q->w;
	uint64_t bytes = (uint64_t)q->reftable_clusters << q->cluster_bits;
	int rc;

	w->reftable_n = bytes / 8;
	w->reftable = cow_zalloc(bytes);
	rc = w->reftable ? cow_img_pread(l->img, 0, w->reftable, bytes, q->reftable_off) : -ENOMEM;
	if (rc)
		return cow_err_sys(l->err, rc, "%s: refcount table", l->img->path);
	for (uint64_t i = 0; i < w->reftable_n && rc == 0; i++) {
		w->reftable[i] = be64toh(w->reftable[i]) & QCOW2_OFFSET_MASK;
		if (w->reftable[i] == 0)
			continue;
		if (!qcow2_host_ok(q, w->reftable[i]))
			return cow_err_set(l->err, -EUCLEAN, "%s: entry %llu of the refcount table is "
					   "damaged: repair the image before writing", l->img->path,
					   (unsigned long long)i);
		rc = add_meta(l, &w->meta, w->reftable[i], q->cluster, true);
	}
	return rc;
}

/* The L2 tables of an L1 table. Those of snapshots may be shared, whatever their flags say. */
static int load_l1(struct loading *l, uint64_t l1_off, uint64_t l1_size, bool active)
{
	struct qcow2 *q = l->q;
	uint64_t buf[512];
	int rc = 0;

	for (uint64_t at = 0; at < l1_size && rc == 0; at += COW_ARRAY_SIZE(buf)) {
		uint64_t n = cow_min(COW_ARRAY_SIZE(buf), l1_size - at);

		rc = cow_img_pread(l->img, 0, buf, n * 8, l1_off + at * 8);
		if (rc)
			return cow_err_sys(l->err, rc, "%s: L1 table", l->img->path);
		for (uint64_t i = 0; i < n && rc == 0; i++) {
			uint64_t e = be64toh(buf[i]), off = e & QCOW2_OFFSET_MASK;

			if (off == 0)
				continue;
			if (!qcow2_host_ok(q, off) || off >= QCOW2_HOST_MAX - q->cluster)
				return cow_err_set(l->err, -EUCLEAN, "%s: entry %llu of an L1 table is "
						   "damaged: repair the image before writing",
						   l->img->path, (unsigned long long)(at + i));
			if (qcow2_set_has(&q->w.meta, off >> q->cluster_bits))
				return overlapping(l, off);
			rc = add_meta(l, &l->l2, off, q->cluster, active && (e & QCOW2_COPIED));
		}
	}
	return rc;
}

static int fix_snapshot(void *opaque, const struct qcow2_snap *s)
{
	struct loading *l = opaque;

	return add_meta(l, &l->q->w.meta, s->l1_off, (uint64_t)s->l1_size * 8, true);
}

static int load_snapshot(void *opaque, const struct qcow2_snap *s)
{
	struct loading *l = opaque;

	return load_l1(l, s->l1_off, s->l1_size, false);
}

/* The bits and the table of a good bitmap. What a damaged one refers to is not looked for. */
static int fix_bitmap(void *opaque, const struct qcow2_bitmap *b)
{
	struct loading *l = opaque;
	uint64_t *table = NULL;
	int rc;

	if (b->state != QCOW2_BITMAP_GOOD)
		return 0;
	rc = add_meta(l, &l->q->w.meta, b->table_off, b->table_n * sizeof(*table), true);
	if (rc)
		return rc;
	rc = qcow2_bitmap_table(l->img, b, &table);
	if (rc)
		return rc == -EUCLEAN ? 0 : cow_err_sys(l->err, rc, "%s: bitmap table", l->img->path);
	for (uint32_t i = 0; i < b->table_n && rc == 0; i++) {
		if (table[i] & QCOW2_OFFSET_MASK)
			rc = add_meta(l, &l->q->w.meta, table[i] & QCOW2_OFFSET_MASK, l->q->cluster, true);
	}
	cow_free(table);
	return rc;
}

static int fix_bitmaps(struct loading *l)
{
	struct cow_err err = { 0 };
	int rc = qcow2_bitmaps_walk(l->img, l->q, fix_bitmap, l, &err);

	if (rc == 0 || !err.msg[0])		/* fix_bitmap() said why */
		return rc;
	/* A damaged directory is given up by the first change. */
	return rc == -EUCLEAN ? 0 : cow_err_set(l->err, rc, "%s", err.msg);
}

static int merge_l2(struct loading *l)
{
	int rc = qcow2_set_room(&l->q->w.meta, l->l2.used);

	if (rc)
		return cow_err_sys(l->err, rc, "%s", l->img->path);
	for (size_t i = 0; i < l->l2.cap; i++) {
		if (l->l2.slots[i])
			qcow2_set_add(&l->q->w.meta, l->l2.slots[i] - 1);
	}
	return 0;
}

/* Where metadata lies; refuses tables upon tables. */
static int load_meta(struct loading *l)
{
	struct qcow2 *q = l->q;
	struct qcow2_set *meta = &q->w.meta;
	uint64_t snaps = 0;
	int rc = add_meta(l, meta, 0, q->cluster, true);

	if (rc == 0)
		rc = add_meta(l, meta, q->l1_off, (uint64_t)q->l1_size * 8, true);
	if (rc == 0)
		rc = add_meta(l, meta, q->reftable_off,
			      (uint64_t)q->reftable_clusters << q->cluster_bits, true);
	if (rc == 0)
		rc = load_reftable(l);
	if (rc == 0 && q->luks_off)
		rc = add_meta(l, meta, q->luks_off, q->luks_bytes, true);
	if (rc == 0 && q->nb_bitmaps)
		rc = add_meta(l, meta, q->bitmapdir_off, q->bitmapdir_bytes, true);
	if (rc == 0 && q->nb_bitmaps)
		rc = fix_bitmaps(l);
	if (rc == 0)
		rc = qcow2_snapshots_walk(l->img, q, fix_snapshot, l, &snaps, l->err);
	if (rc == 0 && snaps)
		rc = add_meta(l, meta, q->snapshots_off, snaps, true);
	if (rc == 0)
		rc = load_l1(l, q->l1_off, q->l1_size, true);
	if (rc == 0)
		rc = qcow2_snapshots_walk(l->img, q, load_snapshot, l, &snaps, l->err);
	return rc ? rc : merge_l2(l);
}

/* @n free clusters were seen. */
static int note_free(struct loading *l, uint64_t cluster, uint64_t n, struct qcow2_run *run)
{
	struct qcow2_writer *w = &l->q->w;

	for (uint64_t c = cluster; c < cluster + n && c < l->meta_end; c++) {
		if (qcow2_set_has(&w->meta, c))
			return cow_err_set(l->err, -EUCLEAN, "%s: the table at %llu has refcount 0: "
					   "repair the image before writing", l->img->path,
					   (unsigned long long)(c << l->q->cluster_bits));
	}
	if (run->count && run->start + run->count == cluster)
		run->count += n;
	else
		*run = (struct qcow2_run){ cluster, n };
	return 0;
}

/* A cluster in use ends a run of free ones. */
static void end_hole(struct qcow2_writer *w, uint64_t cluster, struct qcow2_run *run)
{
	/* No memory for it, or too many: that room is found another time. */
	if (run->count && w->holes.n < HOLES_MAX)
		(void)qcow2_runs_add(&w->holes, run->start, run->count);
	run->count = 0;
	w->tail = cluster + 1;
}

static int scan_refblock(struct loading *l, const uint8_t *block, uint64_t first, struct qcow2_run *run)
{
	struct qcow2 *q = l->q;
	uint64_t per_word = 64 >> q->refcount_order, n = qcow2_ref_per_block(q);
	int rc = 0;

	for (uint64_t i = 0; i < n && rc == 0; i += per_word) {
		if (cow_get_be64(block + (i << q->refcount_order >> 3)) == 0) {
			rc = note_free(l, first + i, per_word, run);
			continue;
		}
		for (uint64_t k = i; k < i + per_word && rc == 0; k++) {
			if (qcow2_ref_get(block, k, q->refcount_order) == 0)
				rc = note_free(l, first + k, 1, run);
			else
				end_hole(&q->w, first + k, run);
		}
	}
	return rc;
}

/* Finds holes and tail. A metadata cluster that no refcount block covers has refcount 0, too. */
static int scan_refcounts(struct loading *l)
{
	struct qcow2 *q = l->q;
	struct qcow2_writer *w = &q->w;
	uint8_t *block COW_CLEANUP_FREE = cow_zalloc(q->cluster);
	uint64_t per = qcow2_ref_per_block(q);
	struct qcow2_run run = { 0 };
	int rc = block ? 0 : cow_err_sys(l->err, -ENOMEM, "%s", l->img->path);

	for (uint64_t i = 0; i < w->reftable_n && rc == 0; i++) {
		if (w->reftable[i] == 0)
			continue;
		rc = cow_img_pread(l->img, 0, block, q->cluster, w->reftable[i]);
		if (rc)
			return cow_err_sys(l->err, rc, "%s: refcounts", l->img->path);
		rc = scan_refblock(l, block, i * per, &run);
	}
	for (size_t i = 0; i < w->meta.cap && rc == 0; i++) {
		uint64_t cluster = w->meta.slots[i] - 1;

		if (w->meta.slots[i] && (cluster / per >= w->reftable_n || !w->reftable[cluster / per])) {
			run.count = 0;
			rc = note_free(l, cluster, 1, &run);
		}
	}
	w->high = w->tail;
	return rc;
}

int qcow2_writer_load(struct cow_image *img, struct cow_err *err)
{
	struct qcow2 *q = img->priv;
	struct loading l = { .img = img, .q = q, .err = err };
	int rc;

	qcow2_writer_free(q);
	rc = load_meta(&l);
	if (rc == 0)
		rc = scan_refcounts(&l);
	cow_free(l.l2.slots);
	if (rc)
		qcow2_writer_free(q);
	else
		q->w.loaded = true;
	return rc;
}

int qcow2_writer_reload(struct cow_image *img, struct cow_err *err)
{
	int rc = qcow2_writer_load(img, err);

	if (rc)
		cow_img_fail(img, rc, "reading its refcounts again");
	return rc;
}

/* ---- while requests run ---- */

/* Cache block with the refcount of @cluster, whose refcount block exists. */
static uint64_t ref_at(const struct qcow2 *q, uint64_t cluster)
{
	uint64_t per = qcow2_ref_per_block(q);

	return q->w.reftable[cluster / per] +
	       cow_round_down(cluster % per << q->refcount_order >> 3, COW_META_BLOCK);
}

/* Clusters from @cluster on whose refcounts are in the same cache block. */
static uint64_t ref_same_block(const struct qcow2 *q, uint64_t cluster)
{
	uint64_t per = (uint64_t)COW_META_BLOCK << 3 >> q->refcount_order;

	return per - cluster % per;
}

/* A refcount block for @cluster: in that cluster itself, so that it can say its own refcount. */
static int need_refblock(struct cow_image *img, uint64_t cluster, struct cow_map *ret)
{
	struct qcow2 *q = img->priv;
	uint64_t per = qcow2_ref_per_block(q), at = q->reftable_off + cluster / per * 8;
	uint64_t own = (cluster << q->cluster_bits) +
		       cow_round_down(cluster % per << q->refcount_order >> 3, COW_META_BLOCK);
	struct cow_mblk *table, *refs;
	int rc = cow_meta_get(img, 0, cow_round_down(at, COW_META_BLOCK), 0, &table);

	if (rc == 0)
		rc = cow_meta_get(img, 0, own, COW_META_NEW, &refs);
	if (rc == 0)
		rc = qcow2_set_room(&q->w.meta, q->w.tables_pending + 1);
	if (rc == 0)
		rc = cow_meta_after(table, refs);
	if (rc)
		return rc;
	q->w.tables_pending++;
	q->w.tail = cluster + 1;
	ret->dst.len = q->cluster;
	ret->dst.phys = cluster << q->cluster_bits;
	ret->dst.kind = COW_DATA;
	ret->dst.flags = COW_EXT_NEW | COW_EXT_TABLE;
	ret->src.kind = COW_HOLE;
	ret->src.virt = at % COW_META_BLOCK;
	ret->src.phys = (uintptr_t)refs;	/* of a hole it has no meaning to the engine */
	ret->cookie = (uintptr_t)table | QCOW2_COOKIE_REFBLOCK;
	return 1;
}

void qcow2_refblock_commit(struct cow_image *img, const struct cow_map *map, int io)
{
	struct qcow2 *q = img->priv;
	struct cow_mblk *table = (struct cow_mblk *)(uintptr_t)(map->cookie & ~(uint64_t)QCOW2_COOKIE_MASK);
	struct cow_mblk *refs = (struct cow_mblk *)(uintptr_t)map->src.phys;
	uint64_t cluster = map->dst.phys >> q->cluster_bits, per = qcow2_ref_per_block(q);
	uint64_t in_block = (uint64_t)COW_META_BLOCK << 3 >> q->refcount_order;

	q->w.tables_pending--;
	if (io || q->w.reftable[cluster / per])
		return;		/* its refcount is still 0: it is free, and found again later */
	qcow2_ref_set(cow_meta_data(refs), cluster % in_block, q->refcount_order, 1);
	cow_meta_dirty(refs, COW_META_REFCOUNT);
	cow_put_be64((uint8_t *)cow_meta_data(table) + map->src.virt, map->dst.phys);
	cow_meta_dirty(table, COW_META_REFCOUNT);
	q->w.reftable[cluster / per] = map->dst.phys;
	if (!q->w.new_refblocks || cluster / per < q->w.new_from)
		q->w.new_from = cluster / per;
	q->w.new_refblocks = true;
	qcow2_set_add(&q->w.meta, cluster);
	q->w.high = cow_max(q->w.high, cluster + 1);
}

/* The next clusters to reserve: a hole, or at the tail. */
static struct qcow2_run next_batch(const struct qcow2 *q)
{
	const struct qcow2_writer *w = &q->w;
	struct qcow2_run r = { w->tail, UINT64_MAX };

	if (w->spare.n)
		r = w->spare.v[w->spare.n - 1];
	else if (w->hole_at < w->holes.n)
		r = w->holes.v[w->hole_at];
	r.count = cow_min(r.count, ref_same_block(q, r.start));
	r.count = cow_min(r.count, cow_max(BATCH_BYTES >> q->cluster_bits, BATCH_MIN));
	return r;
}

int qcow2_refs_pin(struct cow_image *img, uint64_t cluster, struct qcow2_refs *refs)
{
	const struct qcow2 *q = img->priv;
	uint64_t index = cluster / qcow2_ref_per_block(q);
	int rc = cow_meta_get(img, 0, ref_at(q, cluster), 0, &refs->counts);

	refs->table = NULL;
	if (rc == 0 && q->w.new_refblocks && index >= q->w.new_from)
		rc = cow_meta_get(img, 0, cow_round_down(q->reftable_off + index * 8, COW_META_BLOCK), 0,
				  &refs->table);
	return rc;
}

int qcow2_reserve(struct cow_image *img, uint64_t virt, struct cow_map *ret, struct qcow2_refs *refs)
{
	struct qcow2 *q = img->priv;
	struct qcow2_writer *w = &q->w;
	struct qcow2_run r = w->reserve.count ? w->reserve : next_batch(q);
	uint64_t index = r.start / qcow2_ref_per_block(q);

	if (index >= w->reftable_n || r.start >= QCOW2_HOST_MAX >> q->cluster_bits)
		return -ENOSPC;
	if (w->reftable[index] == 0) {
		ret->dst.virt = virt;
		return need_refblock(img, r.start, ret);
	}
	return qcow2_refs_pin(img, r.start, refs);
}

int qcow2_after_refs(struct cow_mblk *later, const struct qcow2_refs *refs)
{
	int rc = cow_meta_after(later, refs->counts);

	return rc || !refs->table ? rc : cow_meta_after(later, refs->table);
}

/* The reserve is empty: the next batch gets refcount 1. */
static void refill(struct qcow2 *q, const struct qcow2_refs *refs)
{
	struct qcow2_writer *w = &q->w;
	uint64_t in_block = (uint64_t)COW_META_BLOCK << 3 >> q->refcount_order;
	struct qcow2_run *hole;

	w->reserve = next_batch(q);
	if (w->spare.n) {		/* these have it already */
		hole = &w->spare.v[w->spare.n - 1];
		hole->start += w->reserve.count;
		hole->count -= w->reserve.count;
		w->spare.n -= hole->count == 0;
		return;
	}
	if (w->hole_at < w->holes.n) {
		hole = &w->holes.v[w->hole_at];
		hole->start += w->reserve.count;
		hole->count -= w->reserve.count;
		w->hole_at += hole->count == 0;
	} else {
		w->tail += w->reserve.count;
	}
	for (uint64_t i = 0; i < w->reserve.count; i++)
		qcow2_ref_set(cow_meta_data(refs->counts), (w->reserve.start + i) % in_block,
			      q->refcount_order, 1);
	cow_meta_dirty(refs->counts, COW_META_REFCOUNT);
}

struct qcow2_run qcow2_take(struct qcow2 *q, const struct qcow2_refs *refs, uint64_t want)
{
	struct qcow2_writer *w = &q->w;
	struct qcow2_run r;

	if (w->reserve.count == 0)
		refill(q, refs);
	r = (struct qcow2_run){ w->reserve.start, cow_min(want, w->reserve.count) };
	w->reserve.start += r.count;
	w->reserve.count -= r.count;
	w->high = cow_max(w->high, r.start + r.count);
	return r;
}

void qcow2_give_back(struct qcow2 *q, uint64_t start, uint64_t count)
{
	if (qcow2_runs_add(&q->w.spare, start, count))
		q->w.lost = true;
}

void qcow2_unref(struct qcow2 *q, uint64_t start, uint64_t count)
{
	if (qcow2_runs_add(&q->w.unref, start, count))
		q->w.lost = true;
}

void qcow2_unref_entry(struct qcow2 *q, uint64_t e)
{
	uint64_t off = e & QCOW2_OFFSET_MASK, first = off >> q->cluster_bits, n = 1;

	if (qcow2_external(q))
		return;
	if (e & QCOW2_COMPRESSED) {
		off = qcow2_cmp_off(q, e);
		first = off >> q->cluster_bits;
		n = ((off + qcow2_cmp_bytes(q, e) - 1) >> q->cluster_bits) - first + 1;
	}
	for (uint64_t i = 0; off && i < n; i++) {
		if (!qcow2_set_has(&q->w.meta, first + i))	/* metadata stays what it is */
			qcow2_unref(q, first + i, 1);
	}
}

/* ---- past the cache ---- */

/* Clusters that were never written may lie behind the end of the file, others see them as damage. */
static int extend_file(struct cow_image *img)
{
	struct qcow2 *q = img->priv;
	uint64_t end = q->w.high << q->cluster_bits;

	if (cow_img_is_blkdev(img, 0) || cow_img_file_size(img, 0) >= end)
		return 0;
	return cow_img_truncate(img, 0, end);
}

int qcow2_writer_settle(struct cow_image *img)
{
	struct qcow2 *q = img->priv;
	struct qcow2_writer *w = &q->w;
	int rc = qcow2_ref_add_sync(img, w->reserve.start, w->reserve.count, -1);

	if (rc == 0)
		rc = qcow2_runs_ref_sync(img, &w->spare, -1);
	if (rc == 0)
		rc = qcow2_runs_ref_sync(img, &w->unref, -1);
	if (rc == 0)
		rc = extend_file(img);
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	if (w->lost)
		cow_log(COW_LOG_WARN, "%s: some clusters that are unused could not be let go: "
			"a repair gives them back", img->path);
	if (rc == 0 && w->reserve.start + w->reserve.count == w->tail)
		w->tail = w->reserve.start;
	else if (rc == 0 && w->reserve.count)
		(void)qcow2_runs_add(&w->holes, w->reserve.start, w->reserve.count);
	w->reserve.count = w->spare.n = w->unref.n = 0;
	w->pack_at = w->pack_end = 0;
	w->lost = false;
	return rc;
}

/* A refcount block for range @index, in the cluster at the tail, which is in another range or its own. */
static int add_refblock_sync(struct cow_image *img, uint64_t index)
{
	struct qcow2 *q = img->priv;
	struct qcow2_writer *w = &q->w;
	uint64_t per = qcow2_ref_per_block(q), cluster = w->tail, off = cluster << q->cluster_bits;
	uint8_t *block COW_CLEANUP_FREE = cow_zalloc(q->cluster);
	uint8_t entry[8];
	int rc = block ? qcow2_set_room(&w->meta, 1) : -ENOMEM;

	if (rc)
		return rc;
	if (cluster / per == index)
		qcow2_ref_set(block, cluster % per, q->refcount_order, 1);
	else
		rc = qcow2_ref_add_sync(img, cluster, 1, 1);
	if (rc == 0)
		rc = cow_img_pwrite(img, 0, block, q->cluster, off);
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	cow_put_be64(entry, off);
	if (rc == 0)
		rc = cow_img_pwrite(img, 0, entry, sizeof(entry), q->reftable_off + index * 8);
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	if (rc)
		return rc;
	w->reftable[index] = off;
	w->tail++;
	w->high = cow_max(w->high, w->tail);
	qcow2_set_add(&w->meta, cluster);
	return 0;
}

/* The end of the first hole with room for @n clusters. */
static bool take_hole(struct qcow2_writer *w, uint64_t n, uint64_t *ret_cluster)
{
	for (size_t i = w->hole_at; i < w->holes.n; i++) {
		struct qcow2_run *hole = &w->holes.v[i];

		if (hole->count < n)
			continue;
		hole->count -= n;
		*ret_cluster = hole->start + hole->count;
		if (hole->count == 0)
			memmove(hole, hole + 1, (--w->holes.n - i) * sizeof(*hole));
		return true;
	}
	return false;
}

int qcow2_alloc(struct cow_image *img, uint64_t n, uint64_t *ret_cluster)
{
	struct qcow2 *q = img->priv;
	struct qcow2_writer *w = &q->w;
	uint64_t per = qcow2_ref_per_block(q), index = w->tail / per;
	int rc = 0;

	if (take_hole(w, n, ret_cluster))
		return qcow2_ref_add_sync(img, *ret_cluster, n, 1);
	while (index <= (w->tail + n - 1) / per && rc == 0) {
		if (index >= w->reftable_n)
			return -ENOSPC;
		if (w->reftable[index])
			index++;
		else
			rc = add_refblock_sync(img, index);
	}
	if (rc == 0)
		rc = qcow2_ref_add_sync(img, w->tail, n, 1);
	if (rc)
		return rc;
	*ret_cluster = w->tail;
	w->tail += n;
	w->high = cow_max(w->high, w->tail);
	return 0;
}

int qcow2_alloc_sync(struct cow_image *img, uint64_t n, uint64_t *ret_cluster)
{
	int rc = qcow2_alloc(img, n, ret_cluster);

	return rc ? rc : cow_img_sync(img, 0);
}

/* Host clusters that the image can come to need, refcounts included. */
static uint64_t clusters_needed(const struct qcow2 *q, uint64_t size)
{
	uint64_t n = q->w.tail + cow_div_up(size, q->cluster) + qcow2_l1_needed(q, size) +
		     cow_div_up(qcow2_l1_needed(q, size) * 8, q->cluster);

	return n + cow_div_up(n, qcow2_ref_per_block(q)) + 2;
}

int qcow2_reftable_fit(struct cow_image *img, uint64_t size)
{
	struct qcow2 *q = img->priv;
	struct qcow2_writer *w = &q->w;
	struct qcow2 next = *q;
	uint64_t want = cow_div_up(clusters_needed(q, size), qcow2_ref_per_block(q)), cluster;
	uint64_t bytes = cow_min(cow_round_up(want * 8, q->cluster), QCOW2_REFTABLE_BYTES_MAX);
	uint64_t old = q->reftable_off >> q->cluster_bits, old_n = q->reftable_clusters;
	uint64_t *table;
	int rc;

	if (bytes / 8 <= w->reftable_n)
		return 0;
	rc = qcow2_alloc_sync(img, bytes >> q->cluster_bits, &cluster);
	table = rc ? NULL : cow_zalloc(bytes);
	if (!table)
		return rc ? rc : -ENOMEM;
	for (uint64_t i = 0; i < w->reftable_n; i++)
		cow_put_be64(&table[i], w->reftable[i]);
	rc = cow_img_pwrite(img, 0, table, bytes, cluster << q->cluster_bits);
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	next.reftable_off = cluster << q->cluster_bits;
	next.reftable_clusters = (uint32_t)(bytes >> q->cluster_bits);
	if (rc == 0)
		rc = qcow2_header_update_sync(img, &next);
	cow_free(table);
	if (rc)
		return rc;
	q->reftable_off = next.reftable_off;
	q->reftable_clusters = next.reftable_clusters;
	rc = qcow2_ref_add_sync(img, old, old_n, -1);
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	return rc ? rc : qcow2_writer_load(img, NULL);
}
