// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Persistent bitmaps, changed. Whatever changes, all of it is written anew where
 * nothing was, with a sync after each step:
 *
 *	1. bits and tables of those that change, and the directory
 *	2. the header names the new directory
 *	3. what nothing refers to any more is let go
 *
 * Before 2 the bitmaps are what they were, after it what they are to be; interrupted
 * anywhere, the image has leaks at worst. Only flags change in place: four bytes of
 * one sector.
 *
 * Offline, or at the end of a session: nothing is cached and dirty.
 */
#include <errno.h>

#include "qcow2-priv.h"

#define GRANULARITY_BITS	16u	/* unless said otherwise: 64 KiB */
#define GRANULARITY_BITS_MIN	9u	/* of new ones: as QEMU can have them */
#define GRANULARITY_BITS_MAX	31u

/* ---- the steps ---- */

int qcow2_bmedit_begin(struct qcow2_bmedit *ed, struct cow_image *img, uint64_t more)
{
	struct qcow2 *q = img->priv;
	int rc = 0;

	*ed = (struct qcow2_bmedit){ .img = img, .n = q->nb_bitmaps };
	ed->bytes = ed->n ? q->bitmapdir_bytes : 0;
	ed->dir = cow_zalloc(ed->bytes + more);
	if (!ed->dir)
		return -ENOMEM;
	if (ed->bytes)
		rc = cow_img_pread(img, 0, ed->dir, ed->bytes, q->bitmapdir_off);
	return rc;
}

/* Clusters for @bytes; their refcounts become durable with what goes there. */
static int place(struct qcow2_bmedit *ed, uint64_t bytes, uint64_t *ret_off)
{
	const struct qcow2 *q = ed->img->priv;
	uint64_t n = cow_div_up(bytes, q->cluster), cluster;
	int rc = qcow2_alloc(ed->img, n, &cluster);

	if (rc == 0)
		rc = qcow2_runs_add(&ed->fresh, cluster, n);
	if (rc == 0)
		*ret_off = cluster << q->cluster_bits;
	return rc;
}

/* Step 1 for the bits of one, of which the entry at @at of the directory is told. */
static int store(struct qcow2_bmedit *ed, uint64_t at, const uint8_t *bits, uint64_t n_bits)
{
	const struct qcow2 *q = ed->img->priv;
	uint64_t n = qcow2_bitmap_room(q, n_bits) >> q->cluster_bits, need = 0, off = 0, next;
	uint64_t table_room = cow_round_up(n * sizeof(off), q->cluster);
	uint64_t *table COW_CLEANUP_FREE = cow_zalloc(n * sizeof(*table));
	int rc;

	for (uint64_t i = 0; i < n; i++)
		need += cow_is_zero(bits + (i << q->cluster_bits), q->cluster) ? 0 : q->cluster;
	rc = table ? place(ed, table_room + need, &off) : -ENOMEM;
	next = off + table_room;
	for (uint64_t i = 0; i < n && rc == 0; i++) {
		const uint8_t *p = bits + (i << q->cluster_bits);

		if (cow_is_zero(p, q->cluster))
			continue;
		rc = cow_img_pwrite(ed->img, 0, p, q->cluster, next);
		table[i] = next;
		next += q->cluster;
	}
	if (rc == 0)
		rc = qcow2_l1_write(ed->img, off, table, n, table_room);
	if (rc)
		return rc;
	cow_put_be64(ed->dir + at + QCOW2_BM_TABLE_OFF, off);
	cow_put_be32(ed->dir + at + QCOW2_BM_TABLE_SIZE, (uint32_t)n);
	return 0;
}

/*
 * Step 3 is to let go the table of @b and all that it refers to; nothing of a damaged one.
 * That a good one shares no cluster with other tables was seen when the writer was loaded.
 */
static int let_go(struct qcow2_bmedit *ed, const struct qcow2_bitmap *b)
{
	const struct qcow2 *q = ed->img->priv;
	bool good = b->state == QCOW2_BITMAP_GOOD;
	uint64_t *table = NULL, first = b->table_off >> q->cluster_bits;
	int rc;

	if (b->table_n > QCOW2_BITMAP_TABLE_MAX / sizeof(*table) || !qcow2_host_ok(q, b->table_off) ||
	    (!good && qcow2_set_has(&q->w.meta, first)))
		return 0;
	rc = qcow2_bitmap_table(ed->img, b, &table);
	if (rc)
		return rc == -EUCLEAN ? 0 : rc;
	for (uint32_t i = 0; i < b->table_n && rc == 0; i++) {
		uint64_t c = (table[i] & QCOW2_OFFSET_MASK) >> q->cluster_bits;

		if (c && (good || !qcow2_set_has(&q->w.meta, c)))
			rc = qcow2_runs_add(&ed->old, c, 1);
	}
	for (uint64_t i = 0; i < cow_div_up(b->table_n * sizeof(*table), q->cluster) && rc == 0; i++)
		rc = good || !qcow2_set_has(&q->w.meta, first + i) ? qcow2_runs_add(&ed->old, first + i, 1) : 0;
	cow_free(table);
	return rc;
}

int qcow2_bmedit_replace(struct qcow2_bmedit *ed, const struct qcow2_bitmap *b, const uint8_t *bits,
			 uint64_t n_bits)
{
	int rc = store(ed, b->at, bits, n_bits);

	return rc ? rc : let_go(ed, b);
}

void qcow2_bmedit_stored(struct qcow2_bmedit *ed, const struct qcow2_bitmap *b)
{
	cow_put_be32(ed->dir + b->at + QCOW2_BM_FLAGS, b->flags & ~QCOW2_BM_IN_USE);
}

/* The directory at its new place, and steps 2 and 3. */
static int publish(struct qcow2_bmedit *ed)
{
	struct qcow2 *q = ed->img->priv;
	uint64_t off = 0;
	int rc = 0;

	if (q->nb_bitmaps)
		rc = qcow2_runs_add(&ed->old, q->bitmapdir_off >> q->cluster_bits,
				    cow_div_up(q->bitmapdir_bytes, q->cluster));
	if (rc == 0 && ed->n)
		rc = place(ed, ed->bytes, &off);
	if (rc == 0 && ed->n)
		rc = cow_img_pwrite(ed->img, 0, ed->dir, ed->bytes, off);
	if (rc == 0)
		rc = cow_img_sync(ed->img, 0);
	if (rc)
		return rc;
	ed->published = true;
	rc = qcow2_header_bitmaps(ed->img, off, ed->bytes, ed->n);
	return rc ? rc : qcow2_tree_drop(ed->img, NULL, 0, &ed->old);
}

int qcow2_bmedit_end(struct qcow2_bmedit *ed, int rc)
{
	const struct qcow2 *q = ed->img->priv;

	if (rc == 0)
		rc = publish(ed);
	if (rc && !ed->published && q->w.loaded && qcow2_runs_ref_sync(ed->img, &ed->fresh, -1) == 0)
		(void)cow_img_sync(ed->img, 0);
	cow_free(ed->dir);
	cow_free(ed->fresh.v);
	cow_free(ed->old.v);
	return rc;
}

int qcow2_bitmap_flags(struct cow_image *img, const struct qcow2_bitmap *b, uint32_t flags)
{
	const struct qcow2 *q = img->priv;
	uint8_t p[4];

	cow_put_be32(p, flags);
	return cow_img_pwrite(img, 0, p, sizeof(p), q->bitmapdir_off + b->at + QCOW2_BM_FLAGS);
}

/* ---- what can be done ---- */

static int bad_name(struct cow_image *img, const char *name, struct cow_err *err)
{
	const struct qcow2 *q = img->priv;
	struct qcow2_bitmap b;
	struct cow_err none = { 0 };
	int rc;

	if (*name == 0 || strlen(name) > QCOW2_BITMAP_NAME_MAX)
		return cow_err_set(err, -EINVAL, "%s: the name of a bitmap has 1 to %u bytes", img->path,
				   QCOW2_BITMAP_NAME_MAX);
	rc = qcow2_bitmap_find(img, q, name, &b, &none);
	if (rc == 0)
		return cow_err_set(err, -EEXIST, "%s: has a bitmap '%.100s' already", img->path, name);
	return rc == -ENOENT ? 0 : cow_err_set(err, rc, "%s", cow_err_text(&none, rc));
}

/* What a new one is to be; not what it is called. */
static int plan(struct cow_image *img, const struct cow_bitmap_change *ch, struct qcow2_bitmap *b,
		struct cow_err *err)
{
	const struct qcow2 *q = img->priv;
	uint64_t g = ch->granularity ? ch->granularity : 1ULL << GRANULARITY_BITS;

	if (!cow_is_pow2(g) || g < 1ULL << GRANULARITY_BITS_MIN || g > 1ULL << GRANULARITY_BITS_MAX)
		return cow_err_set(err, -EINVAL, "%s: the granularity of a bitmap is a power of two between 512 "
				   "and 2G", img->path);
	*b = (struct qcow2_bitmap){
		.at = q->nb_bitmaps ? q->bitmapdir_bytes : 0,
		.bytes = cow_round_up(QCOW2_BM_BYTES + strlen(ch->name), 8),
		.granularity_bits = (uint8_t)__builtin_ctzll(g),
		.flags = ch->disabled ? 0 : QCOW2_BM_AUTO,
	};
	b->bits = ((q->size - 1) >> b->granularity_bits) + 1;
	if (q->nb_bitmaps == QCOW2_BITMAPS_MAX || b->at + b->bytes > QCOW2_BITMAPDIR_MAX)
		return cow_err_set(err, -EFBIG, "%s: has as many bitmaps as it can have", img->path);
	if (!qcow2_bitmaps_fit(img, b->bits))
		return cow_err_set(err, -EFBIG, "%s: its bitmaps would take more memory than they may: take a "
				   "larger granularity", img->path);
	return 0;
}

static int add(struct qcow2_bmedit *ed, const struct cow_bitmap_change *ch, struct cow_err *err)
{
	const struct qcow2 *q = ed->img->priv;
	uint8_t *none COW_CLEANUP_FREE = NULL, *e;
	struct qcow2_bitmap b = { 0 };
	int rc = bad_name(ed->img, ch->name, err);

	if (rc == 0)
		rc = plan(ed->img, ch, &b, err);
	if (rc)
		return rc;
	none = cow_zalloc(qcow2_bitmap_room(q, b.bits));
	rc = none ? qcow2_header_bitmaps_room(ed->img) : -ENOMEM;
	if (rc == -ENOSPC)
		return cow_err_set(err, rc, "%s: its header has no room for bitmaps", ed->img->path);
	if (rc)
		return rc;
	e = ed->dir + b.at;
	cow_put_be32(e + QCOW2_BM_FLAGS, b.flags);
	e[QCOW2_BM_TYPE] = QCOW2_BM_DIRTY_TRACKING;
	e[QCOW2_BM_GRANULARITY] = b.granularity_bits;
	cow_put_be16(e + QCOW2_BM_NAME_LEN, (uint16_t)strlen(ch->name));
	memcpy(e + QCOW2_BM_BYTES, ch->name, strlen(ch->name));
	ed->bytes = b.at + b.bytes;
	ed->n++;
	return store(ed, b.at, none, b.bits);
}

static int drop(struct qcow2_bmedit *ed, const struct cow_bitmap_change *ch, struct cow_err *err)
{
	struct qcow2_bitmap b;
	int rc = qcow2_bitmap_find(ed->img, ed->img->priv, ch->name, &b, err);

	if (rc)
		return rc;
	memmove(ed->dir + b.at, ed->dir + b.at + b.bytes, ed->bytes - b.at - b.bytes);
	ed->bytes -= b.bytes;
	ed->n--;
	return let_go(ed, &b);
}

struct marking {
	const struct qcow2_bitmap *b;
	uint64_t size;
	uint8_t *bits;
};

static int mark(void *to, uint64_t virt, uint64_t len)
{
	struct marking *m = to;

	if (virt < m->size)	/* another image may be longer */
		qcow2_bits_set(m->bits, virt >> m->b->granularity_bits,
			       (cow_min(virt + len, m->size) - 1) >> m->b->granularity_bits);
	return 0;
}

/* Clears one, or adds to it. */
static int fill(struct qcow2_bmedit *ed, const struct cow_bitmap_change *ch, struct cow_err *err)
{
	const struct qcow2 *q = ed->img->priv;
	uint8_t *bits COW_CLEANUP_FREE = NULL;
	struct qcow2_bitmap b;
	int rc = qcow2_bitmap_find_good(ed->img, q, ch->name, &b, err);

	if (rc)
		return rc;
	bits = cow_zalloc(qcow2_bitmap_room(q, b.bits));
	if (!bits)
		return -ENOMEM;
	if (ch->op == COW_BITMAP_MERGE) {
		struct marking m = { &b, q->size, bits };

		rc = qcow2_bitmap_load(ed->img, &b, bits);
		if (rc == 0)
			rc = ch->ranges(ch->opaque, mark, &m, err);
	}
	return rc ? rc : qcow2_bmedit_replace(ed, &b, bits, b.bits);
}

/* Only a flag changes: in place. */
static int enable(struct cow_image *img, const struct cow_bitmap_change *ch, struct cow_err *err)
{
	struct qcow2_bitmap b;
	int rc = qcow2_bitmap_find_good(img, img->priv, ch->name, &b, err);

	if (rc)
		return rc;
	rc = qcow2_bitmap_flags(img, &b, ch->op == COW_BITMAP_ENABLE ? b.flags | QCOW2_BM_AUTO :
				b.flags & ~QCOW2_BM_AUTO);
	return rc ? rc : cow_img_sync(img, 0);
}

static int run(struct cow_image *img, const struct cow_bitmap_change *ch, struct cow_err *err)
{
	uint64_t more = cow_round_up(QCOW2_BM_BYTES + strlen(ch->name), 8);
	struct qcow2_bmedit ed;
	int rc;

	if (ch->op == COW_BITMAP_ENABLE || ch->op == COW_BITMAP_DISABLE)
		return enable(img, ch, err);
	rc = qcow2_bmedit_begin(&ed, img, more);
	if (rc == 0)
		rc = ch->op == COW_BITMAP_ADD ? add(&ed, ch, err) :
			ch->op == COW_BITMAP_REMOVE ? drop(&ed, ch, err) : fill(&ed, ch, err);
	return qcow2_bmedit_end(&ed, rc);
}

/* What the session recorded so far is stored before, and it goes on afterwards. */
static int run_between(struct cow_image *img, const struct cow_bitmap_change *ch, struct cow_err *err)
{
	struct qcow2 *q = img->priv;
	bool tracking = q->track;
	int rc = qcow2_begin_offline(img, err), loaded, resumed;

	if (rc == 0)
		rc = qcow2_writer_settle(img);
	if (rc == 0)
		rc = qcow2_track_end(img);
	if (rc == 0)
		rc = qcow2_reftable_fit(img, q->size);
	if (rc == 0)
		rc = run(img, ch, err);
	cow_img_drop_cache(img);
	loaded = q->w.loaded ? qcow2_writer_reload(img, NULL) : 0;
	resumed = qcow2_track_resume(img, tracking);
	rc = rc ? rc : loaded;
	return rc ? rc : resumed;
}

int qcow2_bitmap(struct cow_image *img, const struct cow_bitmap_change *ch, struct cow_err *err)
{
	const struct qcow2 *q = img->priv;
	int rc;

	if (q->version < 3)
		return cow_err_set(err, -EOPNOTSUPP, "%s: images of version 2 have no bitmaps", img->path);
	if (q->incompat & QCOW2_INCOMPAT_CORRUPT)
		return cow_err_set(err, -EUCLEAN, "%s: is marked as damaged: repair it before writing",
				   img->path);
	if (q->snapshot[0])
		return cow_err_set(err, -EROFS, "%s: an internal snapshot can only be read", img->path);
	rc = run_between(img, ch, err);
	return rc ? cow_err_sys(err, rc, "%s: cannot change the bitmap '%.100s'", img->path, ch->name) : 0;
}
