// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What of the file is in use. The format has no record of that, so before the
 * first write all tables are looked at for the highest place that anything refers
 * to; new things go behind it, and behind the end of the file. That also heals
 * what other programs leave after a power cut: entries that point behind the end.
 */
#include <errno.h>
#include <stdlib.h>

#include "../deflate.h"
#include "qcow-priv.h"

#define ZERO_TRIES 16u	/* compressed clusters that are compared with one of zeroes */

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* ---- the tables ---- */

/* The entries of one piece of the L1 table. */
static void add_keys(const struct qcow *q, const uint8_t *buf, uint64_t first, uint64_t n, uint64_t *v,
		     size_t *ret_n, qcow_bad_l1 *bad, void *opaque)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t off = qcow_l1_get(q, buf + i * 8);

		if (off == 0)
			continue;
		if (qcow_table_ok(q, off))
			v[(*ret_n)++] = qcow_key(off, first + i);
		else if (bad)
			bad(opaque, first + i);
	}
}

int qcow_tables_read(struct cow_image *img, uint64_t **ret, size_t *ret_n, qcow_bad_l1 *bad,
		     void *opaque)
{
	const struct qcow *q = img->priv;
	uint8_t *buf COW_CLEANUP_FREE = cow_zalloc(COW_KIB(64));
	uint64_t *v = cow_zalloc(q->l1_n * sizeof(*v));
	int rc = buf && v ? 0 : -ENOMEM;

	*ret_n = 0;
	for (uint64_t at = 0; at < q->l1_n && rc == 0; at += COW_KIB(8)) {
		uint64_t n = cow_min(COW_KIB(8), q->l1_n - at);

		rc = cow_img_pread(img, 0, buf, n * 8, q->l1_off + at * 8);
		if (rc == 0)
			add_keys(q, buf, at, n, v, ret_n, bad, opaque);
	}
	if (rc) {
		cow_free(v);
		return rc;
	}
	qsort(v, *ret_n, sizeof(*v), by_value);
	*ret = v;
	return 0;
}

int qcow_reader_next(struct qcow_reader *r, uint64_t off)
{
	const struct qcow *q = r->img->priv;
	int rc;

	if (off + q->l2_bytes <= r->data_from || off >= r->eof)
		return 0;
	if (off >= r->data_from) {
		rc = cow_img_seek(r->img, 0, off, true, &r->data_from);
		if (rc)		/* none; or a device, which cannot tell */
			r->data_from = rc == -ENXIO ? UINT64_MAX : off;
		if (off + q->l2_bytes <= r->data_from)
			return 0;
	}
	rc = cow_img_pread(r->img, 0, r->buf, q->l2_bytes, off);
	return rc ? rc : 1;
}

/* ---- a cluster of zeroes ---- */

bool qcow_zero_make(struct qcow *q)
{
	uint8_t *plain COW_CLEANUP_FREE = cow_zalloc(q->cluster);
	int rc = plain ? deflate_raw(plain, q->cluster, q->w.zero,
				     cow_min(sizeof(q->w.zero), q->cluster - 1), &q->w.zero_len) : -ENOMEM;

	cow_assert(rc != -ENOSPC);
	return rc == 0;
}

/* Is the stored form at @off? Then no other is needed. */
static void try_zero(struct cow_image *img, uint64_t off)
{
	struct qcow *q = img->priv;
	uint8_t got[QCOW_ZERO_MAX];

	if (cow_img_pread(img, 0, got, q->w.zero_len, off) == 0 &&
	    !memcmp(got, q->w.zero, q->w.zero_len))
		q->w.zero_entry = qcow_compressed(q, off, q->w.zero_len);
}

/* ---- finding the end ---- */

struct scan {
	struct cow_image *img;
	struct qcow *q;
	struct qcow_reader r;
	uint64_t top;
	uint64_t first;			/* of an earlier look in this session */
	unsigned zero_tries;
	bool bad_l1, upon_l1;
	uint64_t bad_index;
};

static void note(struct scan *s, uint64_t off, uint64_t len)
{
	const struct qcow *q = s->q;
	uint64_t l1 = cow_round_down(q->l1_off, COW_META_BLOCK);
	uint64_t l1_end = cow_round_up(q->l1_off + q->l1_n * 8, COW_META_BLOCK);

	s->top = cow_max(s->top, off + len);
	if (qcow_overlap(off, len, l1, l1_end - l1))
		s->q->w.l1_shared = true;
	if (qcow_overlap(off, len, q->l1_off, q->l1_n * 8))
		s->upon_l1 = true;
}

static void note_entry(struct scan *s, uint64_t e)
{
	struct qcow_writer *w = &s->q->w;
	uint64_t off, len;

	if (!qcow_entry_place(s->q, e, &off, &len))
		return;
	note(s, off, len);
	if (e & QCOW_COMPRESSED && w->zero_len && !w->zero_entry && len == w->zero_len &&
	    s->zero_tries < ZERO_TRIES) {
		s->zero_tries++;
		try_zero(s->img, off);
	}
}

static void bad_l1(void *opaque, uint64_t index)
{
	struct scan *s = opaque;

	s->bad_index = s->bad_l1 ? s->bad_index : index;
	s->bad_l1 = true;
}

/* Tables that lie upon each other, or upon the header, the L1 table or the name of the base. */
static bool tables_collide(const struct qcow *q)
{
	const struct qcow_writer *w = &q->w;

	for (size_t i = 0; i < w->n; i++) {
		uint64_t off = qcow_key_off(w->tables[i]);

		if (i && off < qcow_key_off(w->tables[i - 1]) + q->l2_bytes)
			return true;
		if (qcow_upon_fixed(q, off, q->l2_bytes))
			return true;
	}
	return false;
}

static int scan_tables(struct scan *s)
{
	struct qcow *q = s->q;

	for (size_t i = 0; i < q->w.n; i++) {
		uint64_t off = qcow_key_off(q->w.tables[i]);
		int rc = qcow_reader_next(&s->r, off);

		if (rc < 0)
			return rc;
		note(s, off, q->l2_bytes);
		for (uint64_t k = 0; rc && k < q->l2_bytes; k += 8) {
			uint64_t e = cow_get_be64(s->r.buf + k);

			if (e)
				note_entry(s, e);
		}
	}
	return 0;
}

/* From here on everything is new. */
static void set_tail(struct scan *s)
{
	struct qcow *q = s->q;
	struct qcow_writer *w = &q->w;
	bool dev = cow_img_is_blkdev(s->img, 0);

	w->limit = dev ? cow_min(cow_img_file_size(s->img, 0), QCOW_HOST_MAX) : QCOW_HOST_MAX;
	w->tail = cow_max(s->top, q->l1_off + q->l1_n * 8);
	w->tail = cow_max(w->tail, q->backing_off + q->backing_len);
	if (!dev)
		w->tail = cow_max(w->tail, s->r.eof);
	w->tail = cow_round_up(w->tail, COW_META_BLOCK);
	w->first = cow_min(s->first, w->tail);
	if (!w->zero_len || w->zero_entry)
		return;
	if (qcow_space_take(q, COW_META_BLOCK, 1, COW_META_BLOCK, &w->zero_block))
		w->zero_entry = qcow_compressed(q, w->zero_block, w->zero_len);
}

static int load(struct scan *s, struct cow_err *err)
{
	struct cow_image *img = s->img;
	struct qcow *q = s->q;
	int rc = qcow_tables_read(img, &q->w.tables, &q->w.n, bad_l1, s);

	if (rc)
		return cow_err_sys(err, rc, "%s: L1 table", img->path);
	q->w.cap = q->l1_n;
	if (s->bad_l1)
		return cow_err_set(err, -EUCLEAN, "%s: L1 entry %llu is damaged: it can only be read",
				   img->path, (unsigned long long)s->bad_index);
	if (tables_collide(q))
		return cow_err_set(err, -EUCLEAN, "%s: its tables lie upon each other: it can only be "
				   "read", img->path);
	if (q->backing_off && !qcow_zero_make(q))
		return cow_err_sys(err, -ENOMEM, "%s", img->path);
	if (q->has_record)
		try_zero(img, q->backing_off + q->backing_len);
	rc = scan_tables(s);
	if (rc)
		return cow_err_sys(err, rc, "%s: L2 table", img->path);
	if (s->upon_l1)
		return cow_err_set(err, -EUCLEAN, "%s: a cluster lies upon the L1 table: it can only be "
				   "read", img->path);
	set_tail(s);
	q->w.loaded = true;
	return 0;
}

uint64_t qcow_space_eof(struct cow_image *img)
{
	const struct qcow *q = img->priv;
	uint64_t size = cow_img_file_size(img, 0);

	return q->w.loaded && !cow_img_is_blkdev(img, 0) ? cow_max(size, q->w.tail) : size;
}

bool qcow_space_behind(struct cow_image *img, uint64_t off)
{
	const struct qcow_writer *w = &((const struct qcow *)img->priv)->w;

	return off >= cow_img_file_size(img, 0) && !(w->loaded && off >= w->first && off < w->tail);
}

void qcow_space_cut(struct qcow *q, uint64_t end)
{
	q->w.first = cow_min(q->w.first, end);
	q->w.tail = cow_min(q->w.tail, end);
}

int qcow_space_load(struct cow_image *img, struct cow_err *err)
{
	struct qcow *q = img->priv;
	struct scan s = { .img = img, .q = q };
	int rc;

	s.r = (struct qcow_reader){ .img = img, .buf = cow_zalloc(q->l2_bytes),
				    .eof = qcow_space_eof(img) };
	s.first = q->w.loaded ? q->w.first : UINT64_MAX;
	qcow_space_free(q);
	rc = s.r.buf ? load(&s, err) : cow_err_sys(err, -ENOMEM, "%s", img->path);
	cow_free(s.r.buf);
	if (rc)
		qcow_space_free(q);
	return rc;
}

int qcow_space_reload(struct cow_image *img, struct cow_err *err)
{
	int rc = qcow_space_load(img, err);

	if (rc)
		cow_img_fail(img, rc, "reading its tables again");
	return rc;
}

void qcow_space_free(struct qcow *q)
{
	cow_free(q->w.tables);
	q->w = (struct qcow_writer){ 0 };
}

/* ---- in use ---- */

bool qcow_upon_fixed(const struct qcow *q, uint64_t off, uint64_t len)
{
	return off < QCOW_H_BYTES || qcow_overlap(off, len, q->l1_off, q->l1_n * 8) ||
	       (q->backing_off && qcow_overlap(off, len, qcow_name_start(q), qcow_name_bytes(q)));
}

/* Index of the first table that ends behind @off. */
static size_t first_table(const struct qcow *q, uint64_t off)
{
	size_t lo = 0, hi = q->w.n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (qcow_key_off(q->w.tables[mid]) + q->l2_bytes > off)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

bool qcow_space_is_meta(const struct qcow *q, uint64_t off, uint64_t len)
{
	size_t i = first_table(q, off);
	uint64_t zero, zero_len;

	if (qcow_upon_fixed(q, off, len))
		return true;
	if (q->w.zero_entry && qcow_entry_place(q, q->w.zero_entry, &zero, &zero_len) &&
	    qcow_overlap(off, len, zero, zero_len))
		return true;
	return i < q->w.n && qcow_key_off(q->w.tables[i]) < off + len;
}

uint64_t qcow_space_take(struct qcow *q, uint64_t bytes, uint64_t want, uint64_t align, uint64_t *ret)
{
	struct qcow_writer *w = &q->w;
	uint64_t off = cow_round_up(w->tail, align), n;

	if (off >= w->limit)
		return 0;
	n = cow_min(want, (w->limit - off) / bytes);
	if (n == 0)
		return 0;
	w->tail = off + n * bytes;
	*ret = off;
	return n;
}

void qcow_space_give_back(struct qcow *q, uint64_t off, uint64_t len)
{
	if (off + len == q->w.tail)
		q->w.tail = off;
}

int qcow_space_room(struct qcow *q)
{
	struct qcow_writer *w = &q->w;
	size_t cap = w->cap * 2;
	uint64_t *v;

	if (w->n < w->cap)
		return 0;
	v = cow_zalloc(cap * sizeof(*v));	/* tables that were moved count twice */
	if (!v)
		return -ENOMEM;
	memcpy(v, w->tables, w->n * sizeof(*v));
	cow_free(w->tables);
	w->tables = v;
	w->cap = cap;
	return 0;
}

uint64_t qcow_space_take_table(struct qcow *q, uint64_t l1_index)
{
	uint64_t off;

	if (!qcow_space_take(q, q->l2_bytes, 1, cow_max(q->cluster, COW_META_BLOCK), &off))
		return 0;
	cow_assert(q->w.n < q->w.cap);
	q->w.tables[q->w.n++] = qcow_key(off, l1_index);
	return off;
}

/* ---- the L1 table ---- */

static int copy_l1(struct cow_image *img, const struct qcow *from, const struct qcow *to)
{
	uint8_t *buf COW_CLEANUP_FREE = cow_zalloc(COW_KIB(64));
	uint64_t bytes = cow_round_up(to->l1_n * 8, COW_META_BLOCK), old = from->l1_n * 8;
	int rc = buf ? 0 : -ENOMEM;

	for (uint64_t at = 0; at < bytes && rc == 0; at += COW_KIB(64)) {
		uint64_t n = cow_min(COW_KIB(64), bytes - at);
		uint64_t has = at < old ? cow_min(n, old - at) : 0;

		memset(buf + has, 0, n - has);
		if (has)
			rc = cow_img_pread(img, 0, buf, has, from->l1_off + at);
		if (rc == 0)
			rc = cow_img_pwrite(img, 0, buf, n, to->l1_off + at);
	}
	return rc ? rc : cow_img_sync(img, 0);
}

/* Gives back the whole blocks of a place: its edges may be in use. */
static int punch_blocks(struct cow_image *img, uint64_t off, uint64_t len)
{
	uint64_t from = cow_round_up(off, COW_META_BLOCK);
	uint64_t to = cow_round_down(off + len, COW_META_BLOCK);

	return from < to ? cow_img_punch(img, 0, from, to - from) : 0;
}

/* Bytes of the L1 table, and of what is free behind it up to the end of its last block. */
static uint64_t l1_room(const struct qcow *q)
{
	uint64_t bytes = q->l1_n * 8, end = cow_round_up(q->l1_off + bytes, COW_META_BLOCK);
	bool name = q->backing_off >= q->l1_off && q->backing_off < end;

	return q->w.l1_shared || name ? bytes : end - q->l1_off;
}

int qcow_move_l1(struct cow_image *img, const struct qcow *next)
{
	struct qcow *q = img->priv, to = *next, from = *q;
	uint64_t bytes = cow_round_up(to.l1_n * 8, COW_META_BLOCK);
	int rc;

	if (!qcow_space_take(q, bytes, 1, COW_META_BLOCK, &to.l1_off))
		return -ENOSPC;
	to.w = q->w;
	rc = copy_l1(img, q, &to);
	if (rc == 0)
		rc = qcow_header_update(img, &to);
	if (rc)
		return rc;
	*q = to;
	q->w.l1_shared = false;
	return punch_blocks(img, from.l1_off, l1_room(&from));
}

/* ---- the end of a session ---- */

/* Tables that were moved are in the list with both places. */
int qcow_space_settle(struct cow_image *img)
{
	struct qcow *q = img->priv;
	int rc = 0;

	for (size_t i = 0; q->w.moved && i < q->w.n && rc == 0; i++) {
		uint64_t off = qcow_key_off(q->w.tables[i]), index = qcow_key_index(q->w.tables[i]);
		uint8_t p[8];

		if (off % COW_META_BLOCK == 0)
			continue;
		rc = cow_img_pread(img, 0, p, sizeof(p), q->l1_off + index * 8);
		if (rc == 0 && qcow_l1_get(q, p) != off)
			rc = punch_blocks(img, off, q->l2_bytes);
	}
	q->w.moved = false;
	return rc;
}
