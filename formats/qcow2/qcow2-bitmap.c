// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Persistent bitmaps, read: the directory and what it says of each, their bits,
 * and telling both. qcow2-track.c keeps them up to date, qcow2-bitmap-edit.c makes,
 * changes and removes them.
 *
 * A bitmap that its user did not store ("in use"), or that does not fit the disk, is
 * kept and listed, and neither believed nor extended; so is one of an unknown kind.
 */
#include <errno.h>

#include "qcow2-priv.h"

#define BITS_BYTES_MAX	COW_MIB(128)	/* of all good bitmaps of an image: 64 TiB in pieces of 64 KiB */

#define BITS_BYTES_MIN	COW_KIB(64)	/* counted for each: at most 2048 of them are kept up to date */

struct walk {
	struct cow_image *img;
	const struct qcow2 *q;
	uint64_t at;
	uint64_t room;			/* bytes of bits that may be kept in memory yet */
};

/* ---- the directory ---- */

static uint64_t bits_of(uint64_t size, unsigned granularity_bits)
{
	return granularity_bits > 63 ? 0 : ((size - 1) >> granularity_bits) + 1;
}

static enum qcow2_bitmap_state judge(struct walk *w, const struct qcow2_bitmap *b, uint32_t extra)
{
	const uint32_t known = QCOW2_BM_IN_USE | QCOW2_BM_AUTO | QCOW2_BM_EXTRA_OK;
	uint64_t bytes = cow_div_up(b->bits, 8), end;

	if (b->type != QCOW2_BM_DIRTY_TRACKING || b->bits == 0 || (b->flags & ~known) ||
	    (extra && !(b->flags & QCOW2_BM_EXTRA_OK)))
		return QCOW2_BITMAP_UNKNOWN;
	if ((b->flags & QCOW2_BM_IN_USE) || b->table_n != cow_div_up(bytes, w->q->cluster) ||
	    !qcow2_host_ok(w->q, b->table_off) ||
	    !cow_add_ok(b->table_off, b->table_n * 8ULL, &end) || end > QCOW2_HOST_MAX)
		return QCOW2_BITMAP_STALE;
	bytes = cow_max(bytes, BITS_BYTES_MIN);
	if (bytes > w->room)
		return QCOW2_BITMAP_LARGE;
	w->room -= bytes;
	return QCOW2_BITMAP_GOOD;
}

/* Decodes the entry at w->at and moves on. 0, -EUCLEAN, or -errno of a read. */
static int next_entry(struct walk *w, struct qcow2_bitmap *b)
{
	const struct qcow2 *q = w->q;
	uint64_t left = q->bitmapdir_bytes - w->at, place = q->bitmapdir_off + w->at;
	uint8_t p[QCOW2_BM_BYTES];
	uint32_t name_len, extra;
	int rc;

	if (left < sizeof(p))
		return -EUCLEAN;
	rc = cow_img_pread(w->img, 0, p, sizeof(p), place);
	if (rc)
		return rc;
	name_len = cow_get_be16(p + QCOW2_BM_NAME_LEN);
	extra = cow_get_be32(p + QCOW2_BM_EXTRA_LEN);
	*b = (struct qcow2_bitmap){
		.at = w->at,
		.bytes = cow_round_up((uint64_t)QCOW2_BM_BYTES + extra + name_len, 8),
		.table_off = cow_get_be64(p + QCOW2_BM_TABLE_OFF),
		.table_n = cow_get_be32(p + QCOW2_BM_TABLE_SIZE),
		.flags = cow_get_be32(p + QCOW2_BM_FLAGS),
		.type = p[QCOW2_BM_TYPE],
		.granularity_bits = p[QCOW2_BM_GRANULARITY],
		.bits = bits_of(q->size, p[QCOW2_BM_GRANULARITY]),
	};
	if (b->bytes > left || name_len == 0)
		return -EUCLEAN;
	rc = cow_img_pread(w->img, 0, b->name, cow_min(name_len, QCOW2_BITMAP_NAME_MAX),
			   place + sizeof(p) + extra);
	b->state = judge(w, b, extra);
	w->at += b->bytes;
	return rc;
}

int qcow2_bitmaps_walk(struct cow_image *img, const struct qcow2 *q,
		       int (*fn)(void *opaque, const struct qcow2_bitmap *b), void *opaque,
		       struct cow_err *err)
{
	struct walk w = { .img = img, .q = q, .room = BITS_BYTES_MAX };
	struct qcow2_bitmap b;
	int rc = 0;

	for (uint32_t i = 0; i < q->nb_bitmaps && rc == 0; i++) {
		rc = next_entry(&w, &b);
		if (rc == -EUCLEAN)
			return cow_err_set(err, rc, "%s: entry %u of the bitmap directory is damaged",
					   img->path, i + 1);
		if (rc)
			return cow_err_sys(err, rc, "%s: bitmap directory", img->path);
		rc = fn(opaque, &b);
	}
	return rc;
}

static int count_good(void *opaque, const struct qcow2_bitmap *b)
{
	uint64_t *sum = opaque;

	if (b->state == QCOW2_BITMAP_GOOD)
		*sum += cow_max(cow_div_up(b->bits, 8), BITS_BYTES_MIN);
	return 0;
}

bool qcow2_bitmaps_fit(struct cow_image *img, uint64_t bits)
{
	uint64_t sum = cow_max(cow_div_up(bits, 8), BITS_BYTES_MIN);

	return qcow2_bitmaps_walk(img, img->priv, count_good, &sum, NULL) == 0 && sum <= BITS_BYTES_MAX;
}

struct find {
	const char *name;
	struct qcow2_bitmap *ret;
};

static int look(void *opaque, const struct qcow2_bitmap *b)
{
	const struct find *f = opaque;

	if (strcmp(b->name, f->name))
		return 0;
	*f->ret = *b;
	return 1;
}

int qcow2_bitmap_find(struct cow_image *img, const struct qcow2 *q, const char *name,
		      struct qcow2_bitmap *ret, struct cow_err *err)
{
	struct find f = { name, ret };
	int rc = qcow2_bitmaps_walk(img, q, look, &f, err);

	if (rc == 0)
		return cow_err_set(err, -ENOENT, "%s: has no bitmap '%.100s'", img->path, name);
	return rc < 0 ? rc : 0;
}

static const char *why_not(enum qcow2_bitmap_state state)
{
	return state == QCOW2_BITMAP_STALE ? "was not stored by who used it last, or does not fit the disk" :
		state == QCOW2_BITMAP_UNKNOWN ? "is of a kind that this program does not know" :
		"is larger than this program keeps in memory";
}

int qcow2_bitmap_find_good(struct cow_image *img, const struct qcow2 *q, const char *name,
			   struct qcow2_bitmap *ret, struct cow_err *err)
{
	int rc = qcow2_bitmap_find(img, q, name, ret, err);

	if (rc || ret->state == QCOW2_BITMAP_GOOD)
		return rc;
	return cow_err_set(err, -EINVAL, "%s: the bitmap '%.100s' %s", img->path, name, why_not(ret->state));
}

/* ---- bits ---- */

int qcow2_bitmap_table(struct cow_image *img, const struct qcow2_bitmap *b, uint64_t **ret)
{
	const struct qcow2 *q = img->priv;
	uint64_t known = QCOW2_OFFSET_MASK | QCOW2_BM_ONES, *table = NULL;
	int rc = qcow2_l1_read(img, b->table_off, b->table_n, &table);

	for (uint32_t i = 0; i < b->table_n && rc == 0; i++) {
		uint64_t host = table[i] & QCOW2_OFFSET_MASK;

		if ((table[i] & ~known) || (host && (table[i] & QCOW2_BM_ONES)) ||
		    (host && !qcow2_host_ok(q, host)))
			rc = -EUCLEAN;
	}
	if (rc)
		cow_free(table);
	else
		*ret = table;
	return rc;
}

/* Adds what one entry of the table stands for to the @n bytes at @to. @buf: of a cluster. */
static int add_piece(struct cow_image *img, uint64_t entry, uint8_t *to, uint64_t n, uint8_t *buf)
{
	uint64_t host = entry & QCOW2_OFFSET_MASK;
	int rc = host ? cow_img_pread(img, 0, buf, n, host) : 0;

	if (entry & QCOW2_BM_ONES)
		memset(to, 0xff, n);
	for (uint64_t i = 0; host && i < n && rc == 0; i++)
		to[i] |= buf[i];
	return rc;
}

int qcow2_bitmap_load(struct cow_image *img, const struct qcow2_bitmap *b, uint8_t *bits)
{
	const struct qcow2 *q = img->priv;
	uint8_t *buf COW_CLEANUP_FREE = cow_zalloc(q->cluster);
	uint64_t bytes = cow_div_up(b->bits, 8), *table = NULL;
	int rc = buf ? qcow2_bitmap_table(img, b, &table) : -ENOMEM;

	for (uint64_t at = 0; at < bytes && rc == 0; at += q->cluster)
		rc = add_piece(img, table[at >> q->cluster_bits], bits + at, cow_min(q->cluster, bytes - at),
			       buf);
	if (b->bits % 8)	/* behind the end of the disk */
		bits[bytes - 1] &= (uint8_t)((1u << b->bits % 8) - 1);
	cow_free(table);
	return rc;
}

void qcow2_bits_set(uint8_t *bits, uint64_t first, uint64_t last)
{
	while (first <= last && first % 8) {
		bits[first / 8] |= (uint8_t)(1u << first % 8);
		first++;
	}
	if (first + 7 <= last) {
		memset(bits + first / 8, 0xff, (last + 1 - first) / 8);
		first += (last + 1 - first) / 8 * 8;
	}
	for (; first <= last; first++)
		bits[first / 8] |= (uint8_t)(1u << first % 8);
}

/* ---- telling ---- */

struct telling {
	int (*fn)(void *opaque, const struct cow_bitmap *b);
	void *opaque;
};

static int tell(void *opaque, const struct qcow2_bitmap *b)
{
	static const char *const states[] = {
		[QCOW2_BITMAP_GOOD] = "good", [QCOW2_BITMAP_STALE] = "inconsistent",
		[QCOW2_BITMAP_UNKNOWN] = "unknown", [QCOW2_BITMAP_LARGE] = "too large",
	};
	const struct telling *t = opaque;
	struct cow_bitmap told = {
		.name = b->name, .granularity = b->bits ? 1ULL << b->granularity_bits : 0,
		.type = b->type == QCOW2_BM_DIRTY_TRACKING ? "dirty" : "unknown",
		.enabled = b->flags & QCOW2_BM_AUTO, .in_use = b->flags & QCOW2_BM_IN_USE,
		.state = states[b->state],
	};

	return t->fn(t->opaque, &told);
}

int qcow2_bitmaps(struct cow_image *img, int (*fn)(void *opaque, const struct cow_bitmap *b),
		  void *opaque, struct cow_err *err)
{
	struct telling t = { fn, opaque };

	return qcow2_bitmaps_walk(img, img->priv, tell, &t, err);
}

int qcow2_bitmap_ranges(struct cow_image *img, const char *name,
			int (*fn)(void *opaque, uint64_t virt, uint64_t len), void *opaque,
			struct cow_err *err)
{
	const struct qcow2 *q = img->priv;
	uint8_t *bits COW_CLEANUP_FREE = NULL;
	struct qcow2_bitmap b;
	int rc = qcow2_bitmap_find_good(img, q, name, &b, err);

	if (rc)
		return rc;
	bits = cow_zalloc(cow_div_up(b.bits, 8));
	rc = bits ? qcow2_bitmap_load(img, &b, bits) : -ENOMEM;
	if (rc)
		return cow_err_sys(err, rc, "%s: the bitmap '%.100s'", img->path, name);
	for (uint64_t i = 0, end; i < b.bits && rc == 0; i = end) {
		bool set = bits[i / 8] >> i % 8 & 1;

		for (end = i + 1; end < b.bits && (bits[end / 8] >> end % 8 & 1) == set; )
			end += end % 8 == 0 && bits[end / 8] == (set ? 0xff : 0) && b.bits - end >= 8 ? 8 : 1;
		if (set)
			rc = fn(opaque, i << b.granularity_bits,
				cow_min(end << b.granularity_bits, q->size) - (i << b.granularity_bits));
	}
	return rc;
}
