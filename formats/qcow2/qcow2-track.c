// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Changes of the disk, recorded in the bitmaps that want to know of them ("auto").
 *
 * Before the first change of a session these bitmaps are marked as in use, durably.
 * From then on map() says here what is about to change; that is kept in memory. At the
 * end it is added to what was stored (qcow2-bitmap-edit.c), and the mark goes away with
 * the directory that it stood in. So a bitmap without the mark misses nothing; one of a
 * session that was killed or cut off has it, and is never used again.
 */
#include <errno.h>

#include "cow/log.h"
#include "qcow2-priv.h"

struct tracked {
	struct qcow2_bitmap b;
	uint8_t *bits;			/* what this session changed */
	bool any;
};

struct qcow2_track {
	bool resume;			/* held: some of these recorded, and are to go on */
	size_t n;
	struct tracked v[];
};

/* ---- which ---- */

static bool records(const struct qcow2_bitmap *b)
{
	return (b->flags & (QCOW2_BM_AUTO | QCOW2_BM_IN_USE)) == QCOW2_BM_AUTO;
}

struct opening {
	struct cow_image *img;
	struct cow_err *err;
};

static int look_at(void *opaque, const struct qcow2_bitmap *b)
{
	struct opening *o = opaque;

	if (!records(b))
		return 0;
	if (b->state == QCOW2_BITMAP_UNKNOWN)
		return cow_err_set(o->err, -EROFS, "%s: the bitmap '%.100s' is to know of every change, and is "
				   "of a kind that this program does not know: remove it before writing",
				   o->img->path, b->name);
	o->img->sees_all |= b->state == QCOW2_BITMAP_GOOD;
	return 0;
}

int qcow2_track_open(struct cow_image *img, struct cow_err *err)
{
	struct cow_err why = { 0 };
	struct opening o = { img, &why };
	int rc;

	img->sees_all = false;
	rc = qcow2_bitmaps_walk(img, img->priv, look_at, &o, &why);
	if (rc == 0 || rc == -EUCLEAN)		/* damaged: none is valid any more, see begin() */
		return 0;
	return cow_err_set(err, rc, "%s", cow_err_text(&why, rc));
}

static int nothing(void *opaque, const struct qcow2_bitmap *b)
{
	(void)opaque;
	(void)b;
	return 0;
}

int qcow2_track_can(struct cow_image *img)
{
	struct cow_err err = { 0 };
	int rc = qcow2_bitmaps_walk(img, img->priv, nothing, NULL, &err);

	if (rc == 0)
		return 1;
	if (rc == -EUCLEAN)
		cow_log(COW_LOG_WARN, "%s: its bitmaps are declared stale", cow_err_text(&err, rc));
	return rc == -EUCLEAN ? 0 : rc;
}

/* ---- begin ---- */

struct beginning {
	struct cow_image *img;
	struct qcow2_track *track;	/* NULL: counts */
	size_t n, marked;
};

static int take(void *opaque, const struct qcow2_bitmap *b)
{
	struct beginning *t = opaque;
	struct tracked *v = t->track ? &t->track->v[t->track->n] : NULL;

	if (!records(b) || b->state == QCOW2_BITMAP_UNKNOWN)
		return 0;
	t->n += b->state == QCOW2_BITMAP_GOOD;
	if (!v)
		return 0;
	t->marked++;
	if (b->state == QCOW2_BITMAP_GOOD) {
		v->b = *b;
		v->bits = cow_zalloc(qcow2_bitmap_room(t->img->priv, b->bits));
		t->track->n += v->bits != NULL;
	}
	if (b->state != QCOW2_BITMAP_GOOD || !v->bits)
		cow_log(COW_LOG_WARN, "%s: the bitmap '%.100s' cannot be kept up to date: it is stale from "
			"now on", t->img->path, b->name);
	return qcow2_bitmap_flags(t->img, b, b->flags | QCOW2_BM_IN_USE);
}

static void track_free(struct qcow2_track *t)
{
	for (size_t i = 0; t && i < t->n; i++)
		cow_free(t->v[i].bits);
	cow_free(t);
}

void qcow2_track_free(struct qcow2 *q)
{
	track_free(q->track);
	track_free(q->held);
	q->track = q->held = NULL;
}

int qcow2_track_begin(struct cow_image *img)
{
	struct qcow2 *q = img->priv;
	struct beginning t = { .img = img };
	int rc = qcow2_bitmaps_walk(img, q, take, &t, NULL);

	if (rc == 0) {
		t.track = cow_zalloc(sizeof(*t.track) + t.n * sizeof(t.track->v[0]));
		rc = t.track ? qcow2_bitmaps_walk(img, q, take, &t, NULL) : -ENOMEM;
	}
	if (rc == 0 && t.marked)
		rc = cow_img_sync(img, 0);
	if (rc || t.track->n == 0) {
		track_free(t.track);
		return rc;
	}
	q->track = t.track;
	return 0;
}

int qcow2_track_resume(struct cow_image *img, bool tracking)
{
	int rc = tracking ? qcow2_track_begin(img) : 0;

	if (rc)		/* what cannot be recorded must not happen */
		cow_img_fail(img, rc, "marking its bitmaps as in use");
	return rc;
}

/* ---- changes ---- */

void qcow2_track_answer(struct qcow2 *q, const struct cow_query *qu, const struct cow_map *map)
{
	uint64_t from = qu->virt, to = cow_min(qu->virt + qu->len, map->dst.virt + map->dst.len) - 1;

	/* After a table it is asked again. */
	for (size_t i = 0; q->track && i < q->track->n && !(map->dst.flags & COW_EXT_TABLE); i++) {
		struct tracked *t = &q->track->v[i];

		qcow2_bits_set(t->bits, from >> t->b.granularity_bits, to >> t->b.granularity_bits);
		t->any = true;
	}
}

/* ---- end ---- */

/* What was stored and what was changed, together, for the new directory. */
static int renew(struct qcow2_bmedit *ed, struct tracked *t)
{
	int rc = t->any ? qcow2_bitmap_load(ed->img, &t->b, t->bits) : 0;

	if (rc == -EUCLEAN) {
		cow_log(COW_LOG_WARN, "%s: the bitmap '%.100s' is damaged: it stays stale", ed->img->path,
			t->b.name);
		return 0;
	}
	if (rc == 0 && t->any)
		rc = qcow2_bmedit_replace(ed, &t->b, t->bits, t->b.bits);
	if (rc == 0)
		qcow2_bmedit_stored(ed, &t->b);
	return rc;
}

/* Nothing was changed: the marks go away where they are. */
static int unmark(struct cow_image *img, const struct qcow2_track *track)
{
	int rc = 0;

	for (size_t i = 0; i < track->n && rc == 0; i++)
		rc = qcow2_bitmap_flags(img, &track->v[i].b, track->v[i].b.flags & ~QCOW2_BM_IN_USE);
	return rc ? rc : cow_img_sync(img, 0);
}

/* Only for want of room: the disk itself is as it is to be. */
static int forgive(struct cow_image *img, int rc)
{
	if (rc != -ENOSPC && rc != -EDQUOT && rc != -ENOMEM)
		return rc;
	cow_log(COW_LOG_WARN, "%s: its bitmaps could not be stored and stay stale: %s", img->path,
		strerror(-rc));
	return 0;
}

int qcow2_track_end(struct cow_image *img)
{
	struct qcow2 *q = img->priv;
	struct qcow2_track *track = q->track;
	struct qcow2_bmedit ed;
	bool any = false;
	int rc;

	q->track = NULL;
	for (size_t i = 0; track && i < track->n; i++)
		any |= track->v[i].any;
	if (!track)
		return 0;
	if (!any) {
		rc = unmark(img, track);
	} else {
		rc = qcow2_bmedit_begin(&ed, img, 0);
		for (size_t i = 0; i < track->n && rc == 0; i++)
			rc = renew(&ed, &track->v[i]);
		rc = qcow2_bmedit_end(&ed, rc);
	}
	track_free(track);
	return forgive(img, rc);
}

/* ---- another size ---- */

/* Takes the good bitmaps, recording or not, with all their bits, and marks them as in use. */
static int hold(void *opaque, const struct qcow2_bitmap *b)
{
	struct beginning *t = opaque;
	struct tracked *v;
	int rc;

	if (b->state != QCOW2_BITMAP_GOOD)
		return 0;
	t->n++;
	if (!t->track)
		return 0;
	v = &t->track->v[t->track->n];
	v->b = *b;
	v->bits = cow_zalloc(qcow2_bitmap_room(t->img->priv, b->bits));
	rc = v->bits ? qcow2_bitmap_load(t->img, b, v->bits) : -ENOMEM;
	if (rc == -EUCLEAN) {
		cow_free(v->bits);
		return 0;
	}
	t->track->n++;
	return rc ? rc : qcow2_bitmap_flags(t->img, b, b->flags | QCOW2_BM_IN_USE);
}

/* The bits of @t for a disk of the size that it has now. */
static int fit(struct qcow2_bmedit *ed, struct tracked *t)
{
	const struct qcow2 *q = ed->img->priv;
	uint64_t n = ((q->size - 1) >> t->b.granularity_bits) + 1;
	uint8_t *bits COW_CLEANUP_FREE = NULL;
	int rc;

	if (!qcow2_bitmaps_fit(ed->img, n)) {
		cow_log(COW_LOG_WARN, "%s: the bitmap '%.100s' is too large for the disk now: it is stale from "
			"now on", ed->img->path, t->b.name);
		return 0;
	}
	bits = cow_zalloc(qcow2_bitmap_room(q, n));
	if (!bits)
		return -ENOMEM;
	memcpy(bits, t->bits, cow_div_up(cow_min(n, t->b.bits), 8));
	if (n % 8 && n < t->b.bits)
		bits[n / 8] &= (uint8_t)((1u << n % 8) - 1);
	rc = qcow2_bmedit_replace(ed, &t->b, bits, n);
	if (rc == 0)
		qcow2_bmedit_stored(ed, &t->b);
	return rc;
}

static int fit_all(struct cow_image *img, struct qcow2_track *held)
{
	struct qcow2_bmedit ed;
	int rc = qcow2_writer_settle(img), ended;

	if (rc)
		return rc;
	cow_img_drop_cache(img);
	rc = qcow2_bmedit_begin(&ed, img, 0);
	for (size_t i = 0; i < held->n && rc == 0; i++)
		rc = fit(&ed, &held->v[i]);
	ended = qcow2_bmedit_end(&ed, rc);
	rc = qcow2_writer_reload(img, NULL);
	return ended ? ended : rc;
}

/* What goes wrong here leaves bitmaps stale, and the disk as it is to be. */
void qcow2_track_resized(struct cow_image *img)
{
	struct qcow2 *q = img->priv;
	struct qcow2_track *held = q->held;
	int rc = 0, resumed;

	if (!held)
		return;
	q->held = NULL;
	if (held->n)
		rc = fit_all(img, held);
	resumed = qcow2_track_resume(img, held->resume);
	track_free(held);
	rc = rc ? rc : resumed;
	if (rc)
		cow_log(COW_LOG_WARN, "%s: its bitmaps stay stale: %s", img->path, strerror(-rc));
}

static int hold_all(struct cow_image *img, bool resume)
{
	struct qcow2 *q = img->priv;
	struct beginning t = { .img = img };
	int rc = qcow2_bitmaps_walk(img, q, hold, &t, NULL);

	if (rc || t.n == 0)
		return rc;
	q->held = t.track = cow_zalloc(sizeof(*t.track) + t.n * sizeof(t.track->v[0]));
	if (!t.track)
		return -ENOMEM;
	t.track->resume = resume;
	rc = qcow2_bitmaps_walk(img, q, hold, &t, NULL);
	return rc ? rc : cow_img_sync(img, 0);
}

int qcow2_track_resize(struct cow_image *img, uint64_t size,
		       int (*change)(struct cow_image *img, uint64_t size))
{
	struct qcow2 *q = img->priv;
	bool tracking = q->track;
	int rc = qcow2_writer_settle(img);

	if (rc == 0)
		rc = qcow2_track_end(img);
	if (rc == 0)
		rc = hold_all(img, tracking);
	if (rc == 0)
		rc = change(img, size);
	if (rc && !q->held)
		(void)qcow2_track_resume(img, tracking && !q->track);
	if (rc || size == q->size)
		qcow2_track_resized(img);
	return rc;
}
