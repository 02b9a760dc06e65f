// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Refcounts past the metadata cache, many at a time: offline work and the end
 * of a session. Pieces of refcount blocks are held in memory while an edit
 * goes on, so that clusters in any order cost few reads and writes. Nothing
 * here syncs, and nothing decides which refcounts change.
 */
#include <errno.h>

#include "qcow2-priv.h"

#define SLOTS	256u		/* 16 MiB of refcounts: of 512 GiB with the usual sizes */
#define CHUNK	COW_KIB(64)

struct qcow2_refslot {
	uint64_t off;		/* in the file; 0: free */
	uint8_t *buf;
	bool dirty;
};

static uint64_t chunk_bytes(const struct qcow2 *q)
{
	return cow_min(CHUNK, q->cluster);
}

int qcow2_refedit_begin(struct qcow2_refedit *e, struct cow_image *img, struct qcow2_runs *freed)
{
	*e = (struct qcow2_refedit){ .img = img, .freed = freed };
	e->slots = cow_zalloc(SLOTS * sizeof(*e->slots));
	return e->slots ? 0 : -ENOMEM;
}

static int write_back(struct qcow2_refedit *e, struct qcow2_refslot *s)
{
	int rc = 0;

	if (s->dirty)
		rc = cow_img_pwrite(e->img, 0, s->buf, chunk_bytes(e->img->priv), s->off);
	if (rc == 0)
		s->dirty = false;
	return rc;
}

/* Holds the refcount of @cluster: entry *ret_index of *ret->buf. -ENOENT: no refcount block has it. */
static int hold(struct qcow2_refedit *e, uint64_t cluster, struct qcow2_refslot **ret, uint64_t *ret_index)
{
	const struct qcow2 *q = e->img->priv;
	uint64_t per = qcow2_ref_per_block(q), in_chunk = chunk_bytes(q) << 3 >> q->refcount_order, off;
	struct qcow2_refslot *s;
	int rc;

	if (cluster / per >= q->w.reftable_n || !q->w.reftable[cluster / per])
		return -ENOENT;
	off = q->w.reftable[cluster / per] + cluster % per / in_chunk * chunk_bytes(q);
	s = &e->slots[off / chunk_bytes(q) % SLOTS];
	if (s->off != off) {
		rc = write_back(e, s);
		if (rc)
			return rc;
		s->off = 0;
		if (!s->buf)
			s->buf = cow_zalloc(chunk_bytes(q));
		rc = s->buf ? cow_img_pread(e->img, 0, s->buf, chunk_bytes(q), off) : -ENOMEM;
		if (rc)
			return rc;
		s->off = off;
	}
	*ret = s;
	*ret_index = cluster % in_chunk;
	return 0;
}

int qcow2_refedit_get(struct qcow2_refedit *e, uint64_t cluster, uint64_t *ret)
{
	const struct qcow2 *q = e->img->priv;
	struct qcow2_refslot *s;
	uint64_t index;
	int rc = hold(e, cluster, &s, &index);

	*ret = rc ? 0 : qcow2_ref_get(s->buf, index, q->refcount_order);
	return rc == -ENOENT ? 0 : rc;
}

static int add_one(struct qcow2_refedit *e, uint64_t cluster, int delta)
{
	const struct qcow2 *q = e->img->priv;
	struct qcow2_refslot *s;
	uint64_t index, v;
	int rc = hold(e, cluster, &s, &index);

	if (rc == -ENOENT)
		return delta > 0 ? -EIO : 0;
	if (rc)
		return rc;
	v = qcow2_ref_get(s->buf, index, q->refcount_order);
	if (delta > 0 && v == qcow2_ref_max(q))
		return -EMLINK;
	if (delta < 0 && v == 0)
		return 0;
	qcow2_ref_set(s->buf, index, q->refcount_order, delta > 0 ? v + 1 : v - 1);
	s->dirty = true;
	if (e->freed && delta < 0 && v == 1)
		(void)qcow2_runs_add(e->freed, cluster, 1);	/* no memory: its space stays with the file */
	return 0;
}

int qcow2_refedit_add(struct qcow2_refedit *e, uint64_t start, uint64_t count, int delta)
{
	int rc = 0;

	for (uint64_t c = start; c < start + count && rc == 0; c++)
		rc = add_one(e, c, delta);
	return rc;
}

int qcow2_refedit_end(struct qcow2_refedit *e)
{
	int rc = 0, one;

	for (unsigned i = 0; e->slots && i < SLOTS; i++) {
		one = write_back(e, &e->slots[i]);
		rc = rc ? rc : one;
		cow_free(e->slots[i].buf);
	}
	cow_free(e->slots);
	e->slots = NULL;
	return rc;
}

int qcow2_ref_add_sync(struct cow_image *img, uint64_t start, uint64_t count, int delta)
{
	struct qcow2_run run = { start, count };

	return qcow2_runs_ref_sync(img, &(struct qcow2_runs){ &run, 1, 1 }, delta);
}

int qcow2_runs_ref_sync(struct cow_image *img, const struct qcow2_runs *r, int delta)
{
	struct qcow2_refedit e;
	int rc, ended;

	if (r->n == 0)
		return 0;
	rc = qcow2_refedit_begin(&e, img, NULL);
	for (size_t i = 0; i < r->n && rc == 0; i++)
		rc = qcow2_refedit_add(&e, r->v[i].start, r->v[i].count, delta);
	ended = qcow2_refedit_end(&e);
	return rc ? rc : ended;
}
