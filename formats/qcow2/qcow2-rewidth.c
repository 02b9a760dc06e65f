// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Refcounts of another width. A second refcount table with its blocks is written behind
 * everything that has a refcount,
 *
 *	all that there is | new refcount table | new refcount blocks
 *
 * and made durable; then one write of the header's sector shows it. The new counts
 * are what the old ones were, but for the tables themselves: the old ones have none there.
 * So at no moment is there a leak, and before the header changes nothing has happened.
 */
#include <errno.h>

#include "qcow2-priv.h"

struct rewidth {
	struct cow_image *img;
	struct qcow2 next;
	struct qcow2_set gone;		/* clusters of the old table and blocks */
	struct qcow2_refedit old;	/* only looked into */
	uint64_t first, table, blocks;	/* clusters of the new ones */
	uint8_t *block;
};

/* Where the new table and blocks go, which count themselves. */
static int place(struct rewidth *w, struct cow_err *err)
{
	uint64_t per = qcow2_ref_per_block(&w->next), n = 1;

	w->first = w->next.w.tail;
	do {
		w->blocks = n;
		w->table = cow_div_up(n * 8, w->next.cluster);
		n = cow_div_up(w->first + w->table + w->blocks, per);
	} while (n > w->blocks);
	if (w->table << w->next.cluster_bits > QCOW2_REFTABLE_BYTES_MAX)
		return cow_err_set(err, -EFBIG, "%s: is too large for refcounts of %u bits", w->img->path,
				   1u << w->next.refcount_order);
	w->next.reftable_off = w->first << w->next.cluster_bits;
	w->next.reftable_clusters = (uint32_t)w->table;
	return 0;
}

static int collect_old(struct rewidth *w)
{
	const struct qcow2 *q = w->img->priv;
	int rc = qcow2_set_room(&w->gone, q->reftable_clusters + q->w.reftable_n);

	for (uint64_t i = 0; i < q->reftable_clusters && rc == 0; i++)
		qcow2_set_add(&w->gone, (q->reftable_off >> q->cluster_bits) + i);
	for (uint64_t i = 0; i < q->w.reftable_n && rc == 0; i++) {
		if (q->w.reftable[i])
			qcow2_set_add(&w->gone, q->w.reftable[i] >> q->cluster_bits);
	}
	return rc;
}

static int count_of(struct rewidth *w, uint64_t cluster, uint64_t *ret)
{
	*ret = cluster >= w->first && cluster < w->first + w->table + w->blocks;
	if (cluster >= w->first || qcow2_set_has(&w->gone, cluster))
		return 0;
	return qcow2_refedit_get(&w->old, cluster, ret);
}

/* New refcount block @i, in w->block. */
static int fill(struct rewidth *w, uint64_t i, struct cow_err *err)
{
	uint64_t per = qcow2_ref_per_block(&w->next), v;
	int rc = 0;

	memset(w->block, 0, w->next.cluster);
	for (uint64_t k = 0; k < per && rc == 0; k++) {
		rc = count_of(w, i * per + k, &v);
		if (rc == 0 && v > qcow2_ref_max(&w->next))
			return cow_err_set(err, -ERANGE, "%s: cluster %llu has %llu references, which "
					   "refcounts of %u bits cannot count", w->img->path,
					   (unsigned long long)(i * per + k), (unsigned long long)v,
					   1u << w->next.refcount_order);
		if (rc == 0 && v)
			qcow2_ref_set(w->block, k, w->next.refcount_order, v);
	}
	return rc;
}

/* @really: else it is only tried whether all counts fit. */
static int write_blocks(struct rewidth *w, bool really, struct cow_err *err)
{
	int rc = 0;

	for (uint64_t i = 0; i < w->blocks && rc == 0; i++) {
		rc = fill(w, i, err);
		if (rc == 0 && really)
			rc = cow_img_pwrite(w->img, 0, w->block, w->next.cluster,
					    (w->first + w->table + i) << w->next.cluster_bits);
	}
	return rc;
}

static int write_table(struct rewidth *w)
{
	uint64_t bytes = w->table << w->next.cluster_bits;
	uint64_t *table COW_CLEANUP_FREE = cow_zalloc(bytes);

	if (!table)
		return -ENOMEM;
	for (uint64_t i = 0; i < w->blocks; i++)
		cow_put_be64(&table[i], (w->first + w->table + i) << w->next.cluster_bits);
	return cow_img_pwrite(w->img, 0, table, bytes, w->next.reftable_off);
}

/* What is behind the end of what there was is nobody's until the header says so. */
static int write_new(struct rewidth *w, struct cow_err *err)
{
	uint64_t size = cow_img_file_size(w->img, 0);
	int rc = write_table(w);

	if (rc == 0)
		rc = write_blocks(w, true, err);
	if (rc == 0)
		rc = cow_img_sync(w->img, 0);
	if (rc && !cow_img_is_blkdev(w->img, 0))
		(void)cow_img_truncate(w->img, 0, size);
	return rc;
}

/* Their space; what is not given back is free all the same. */
static void punch_old(struct rewidth *w)
{
	for (size_t i = 0; i < w->gone.cap; i++) {
		if (w->gone.slots[i])
			(void)cow_img_punch(w->img, 0, (w->gone.slots[i] - 1) << w->next.cluster_bits,
					    w->next.cluster);
	}
}

/* @really: else it is only tried. */
static int change(struct rewidth *w, bool really, struct cow_err *err)
{
	struct qcow2 *q = w->img->priv;
	int rc = place(w, err);

	if (rc == 0)
		rc = collect_old(w);
	if (rc == 0 && !really)
		return write_blocks(w, false, err);
	if (rc == 0)
		rc = write_new(w, err);
	if (rc == 0)
		rc = qcow2_header_update_sync(w->img, &w->next);
	if (rc)
		return rc;
	q->refcount_order = w->next.refcount_order;
	q->reftable_off = w->next.reftable_off;
	q->reftable_clusters = w->next.reftable_clusters;
	punch_old(w);
	cow_img_drop_cache(w->img);
	return qcow2_writer_reload(w->img, err);
}

static int rewidth(struct cow_image *img, unsigned order, bool really, struct cow_err *err)
{
	const struct qcow2 *q = img->priv;
	struct rewidth w = { .img = img, .next = *q };
	int rc = qcow2_refedit_begin(&w.old, img, NULL);

	w.next.refcount_order = order;
	w.block = cow_zalloc(q->cluster);
	if (rc == 0)
		rc = w.block ? change(&w, really, err) : -ENOMEM;
	(void)qcow2_refedit_end(&w.old);	/* it only looked */
	cow_free(w.gone.slots);
	cow_free(w.block);
	return rc ? cow_err_sys(err, rc, "%s: cannot change the width of refcounts", img->path) : 0;
}

int qcow2_rewidth_check(struct cow_image *img, unsigned order, struct cow_err *err)
{
	return rewidth(img, order, false, err);
}

int qcow2_rewidth(struct cow_image *img, unsigned order, struct cow_err *err)
{
	return rewidth(img, order, true, err);
}
