// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * From virtual to host offsets and back to L2 entries: the hot path. An answer
 * stays within one block of the metadata cache: at most 512 entries of an L2
 * table. Entries are decoded where they lie.
 *
 * What becomes zeroes keeps its cluster, and the engine punches that, or writes them
 * if the image is encrypted; over a base, an entry says it (see struct qcow_writer).
 */
#include <errno.h>

#include "../deflate.h"
#include "cow/log.h"
#include "qcow-priv.h"

/* What an L2 entry is to a request. */
enum type {
	T_ABSENT,	/* shows the base */
	T_ZERO,		/* the cluster of zeroes */
	T_DATA,
	T_ENCODED,
	T_BAD,
};

/* What kind of answer a cookie belongs to: the low bits of the pointer in it. */
enum { COOKIE_DATA, COOKIE_ZERO, COOKIE_TABLE, COOKIE_ENCODED, COOKIE_MASK = 7 };

/* The part of an L2 table that a query falls into. */
struct span {
	const struct qcow *q;
	struct cow_mblk *l1, *l2;
	const uint8_t *l1_entry;
	uint64_t table;			/* its place; 0: there is none */
	uint8_t *data;			/* the first entry of the part */
	uint64_t virt;			/* of that */
	unsigned n;			/* entries */
};

static uint64_t entry_at(const struct span *s, unsigned i)
{
	return cow_get_be64(s->data + (size_t)i * 8);
}

static enum type type_at(const struct span *s, unsigned i)
{
	uint64_t e = entry_at(s, i), off, len;

	if (e == 0)
		return T_ABSENT;
	if (!qcow_entry_place(s->q, e, &off, &len))
		return T_BAD;
	if (!(e & QCOW_COMPRESSED))
		return T_DATA;
	return e == s->q->w.zero_entry ? T_ZERO : T_ENCODED;
}

static int damaged(struct cow_image *img, const char *what, uint64_t where)
{
	cow_log_limited(COW_LOG_ERR, "%s: %s %llu is damaged: check the image", img->path, what,
			(unsigned long long)where);
	return -EIO;
}

/* Finds the blocks of @virt. */
static int get_span(struct cow_image *img, uint64_t virt, struct span *s)
{
	const struct qcow *q = img->priv;
	uint64_t index = virt / qcow_l1_span(q), l1_at = q->l1_off + index * 8, at, block, first, end;
	int rc;

	*s = (struct span){ .q = q };
	rc = cow_meta_get(img, 0, cow_round_down(l1_at, COW_META_BLOCK), 0, &s->l1);
	if (rc)
		return rc;
	s->l1_entry = (const uint8_t *)cow_meta_data(s->l1) + l1_at % COW_META_BLOCK;
	s->table = qcow_l1_get(q, s->l1_entry);
	if (s->table == 0)
		return 0;
	if (!qcow_table_ok(q, s->table))
		return damaged(img, "L1 entry", index);
	at = s->table + (virt >> q->cluster_bits & ((1ULL << q->l2_bits) - 1)) * 8;
	block = cow_round_down(at, COW_META_BLOCK);
	rc = cow_meta_get(img, 0, block, 0, &s->l2);
	if (rc)
		return rc;
	/* A table may begin and end anywhere in a block. */
	first = cow_max(s->table, block);
	end = cow_min(s->table + q->l2_bytes, block + COW_META_BLOCK);
	s->n = (unsigned)((end - first) / 8);
	s->data = (uint8_t *)cow_meta_data(s->l2) + (first - block);
	s->virt = index * qcow_l1_span(q) + ((first - s->table) / 8 << q->cluster_bits);
	return 0;
}

static unsigned index_of(const struct span *s, uint64_t virt)
{
	return (unsigned)((virt - s->virt) >> s->q->cluster_bits);
}

/* Does the table have the blocks of the cache that it is in for itself? */
static bool is_own(const struct span *s)
{
	return s->table && s->table % COW_META_BLOCK == 0;
}

/* ---- reading ---- */

/* Several L1 entries without a table are one answer. */
static void read_no_table(struct cow_image *img, const struct span *s, const struct cow_query *qu,
			  struct cow_map *ret)
{
	const struct qcow *q = s->q;
	uint64_t unit = qcow_l1_span(q), virt = cow_round_down(qu->virt, unit);
	uint64_t end = virt + unit, last = cow_min(qu->virt + qu->len, img->size);
	const uint8_t *block = cow_meta_data(s->l1), *e = s->l1_entry + 8;

	while (end < last && e < block + COW_META_BLOCK && !qcow_l1_get(q, e)) {
		end += unit;
		e += 8;
	}
	ret->dst.virt = virt;
	ret->dst.len = cow_min(end, img->size) - virt;
	ret->dst.kind = COW_BELOW;
}

static int map_read(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		    struct cow_map *ret)
{
	static const uint8_t kinds[] = {
		[T_ABSENT] = COW_BELOW, [T_ZERO] = COW_HOLE, [T_DATA] = COW_DATA,
		[T_ENCODED] = COW_ENCODED,
	};
	const struct qcow *q = s->q;
	unsigned first = index_of(s, qu->virt), n = 1, most;
	enum type t = type_at(s, first);
	uint64_t e = entry_at(s, first), len;

	if (t == T_BAD)
		return damaged(img, "L2 entry of byte", qu->virt);
	most = (unsigned)cow_min(s->n - first, cow_div_up(qu->virt + qu->len, q->cluster) -
				 (qu->virt >> q->cluster_bits));
	while (n < most && t != T_ENCODED && type_at(s, first + n) == t &&
	       (t != T_DATA || entry_at(s, first + n) == e + ((uint64_t)n << q->cluster_bits)))
		n++;
	ret->dst.virt = s->virt + ((uint64_t)first << q->cluster_bits);
	ret->dst.len = cow_min((uint64_t)n << q->cluster_bits, img->size - ret->dst.virt);
	ret->dst.kind = kinds[t];
	if (t == T_DATA)
		ret->dst.phys = e;
	if (t == T_ENCODED) {
		qcow_entry_place(q, e, &ret->src.phys, &len);
		ret->src.len = len;
		ret->dst.phys = ret->src.phys;
	}
	return 0;
}

int qcow_decode(struct cow_image *img, const struct cow_map *map, const void *raw, void *out)
{
	const struct qcow *q = img->priv;
	int rc = inflate_raw(raw, map->src.len, out, q->cluster);

	if (rc == -EIO)
		cow_log_limited(COW_LOG_ERR, "%s: the compressed cluster at %llu is damaged", img->path,
				(unsigned long long)map->src.phys);
	return rc;
}

int qcow_encode(const struct cow_image *img, const void *plain, void *out, size_t *ret_len)
{
	const struct qcow *q = img->priv;

	return deflate_raw(plain, q->cluster, out, q->cluster - 1, ret_len);
}

int qcow_crypt(struct cow_image *img, const struct cow_crypt *c)
{
	const struct qcow *q = img->priv;

	if (!q->cipher)
		return -ENOKEY;
	return cipher_run(q->cipher, c->encrypt, c->virt / COW_CRYPT_UNIT, c->in, c->out, c->len);
}

/* ---- changing ---- */

/* Entries [first, first + n) that one answer treats alike. */
struct group {
	unsigned first, n;
	enum type type;			/* of the first */
	bool same_type;
	uint64_t virt, end;		/* of its clusters, end at most the image's */
};

static void shorten(struct cow_image *img, const struct qcow *q, struct group *g, unsigned n)
{
	g->n = n;
	g->end = cow_min(g->virt + ((uint64_t)n << q->cluster_bits), img->size);
}

static bool joins(const struct span *s, const struct group *g, unsigned i, enum type t)
{
	uint64_t next = entry_at(s, g->first) + ((uint64_t)(i - g->first) << s->q->cluster_bits);

	if (g->type != T_DATA)
		return t != T_DATA && t != T_BAD;
	return t == T_DATA && entry_at(s, i) == next;
}

static int get_group(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		     struct group *g)
{
	const struct qcow *q = s->q;
	unsigned last = index_of(s, cow_min(qu->virt + qu->len - 1,
					    s->virt + ((uint64_t)s->n << q->cluster_bits) - 1));
	unsigned n = 1;

	g->first = index_of(s, qu->virt);
	g->type = type_at(s, g->first);
	g->same_type = true;
	if (g->type == T_BAD)
		return damaged(img, "L2 entry of byte", qu->virt);
	for (; g->first + n <= last; n++) {
		enum type t = type_at(s, g->first + n);

		if (!joins(s, g, g->first + n, t))
			break;
		g->same_type &= t == g->type;
	}
	g->virt = s->virt + ((uint64_t)g->first << q->cluster_bits);
	shorten(img, q, g, n);
	return 0;
}

/* Data must never be written over metadata, whatever the entries say. */
static int map_in_place(struct cow_image *img, const struct span *s, struct group *g,
			struct cow_map *ret)
{
	struct qcow *q = img->priv;
	uint64_t host = entry_at(s, g->first);
	unsigned n = 0;

	while (n < g->n && !qcow_space_is_meta(q, host + ((uint64_t)n << q->cluster_bits), q->cluster))
		n++;
	if (n == 0) {
		q->corrupt_found = true;
		cow_log_limited(COW_LOG_ERR, "%s: the data of byte %llu would lie upon metadata: "
				"refused, as is every write from now on", img->path,
				(unsigned long long)g->virt);
		return -EIO;
	}
	shorten(img, q, g, n);
	ret->dst.virt = g->virt;
	ret->dst.len = g->end - g->virt;
	ret->dst.phys = host;
	ret->dst.kind = COW_DATA;
	ret->src.kind = COW_HOLE;
	return 0;
}

static uint64_t cookie(const struct cow_mblk *blk, unsigned what)
{
	return (uintptr_t)blk | what;
}

/* A table is missing, or is to be moved to blocks of its own. */
static int map_table(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		     struct cow_map *ret)
{
	struct qcow *q = img->priv;
	int rc = qcow_space_room(q);
	uint64_t off;

	if (rc)
		return rc;
	off = qcow_space_take_table(q, qu->virt / qcow_l1_span(q));
	if (off == 0)
		return -ENOSPC;
	ret->dst = (struct cow_extent){
		.virt = qu->virt, .len = q->l2_bytes, .phys = off,
		.kind = COW_DATA, .flags = COW_EXT_NEW | COW_EXT_TABLE,
	};
	ret->src.kind = s->table ? COW_DATA : COW_HOLE;
	ret->src.phys = s->table;
	ret->src.virt = (uint64_t)(s->l1_entry - (const uint8_t *)cow_meta_data(s->l1));
	ret->cookie = cookie(s->l1, COOKIE_TABLE);
	return 0;
}

/* New clusters: whole ones, so what the query does not write of them goes along. */
static int map_room(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		    struct group *g, struct cow_map *ret)
{
	struct qcow *q = img->priv;
	uint64_t host, n = qcow_space_take(q, q->cluster, g->n, q->cluster, &host);

	if (n == 0)
		return -ENOSPC;
	shorten(img, q, g, (unsigned)n);
	ret->dst.virt = g->virt;
	ret->dst.len = cow_min(cow_round_up(qu->virt + qu->len, q->cluster), g->end) - g->virt;
	ret->dst.phys = host;
	ret->dst.kind = COW_DATA;
	ret->dst.flags = COW_EXT_NEW;
	ret->src.kind = !g->same_type || g->type == T_ENCODED ? COW_DATA :
		g->type == T_ABSENT ? COW_BELOW : COW_HOLE;
	ret->cookie = cookie(s->l2, COOKIE_DATA);
	return 0;
}

static int map_write(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		     struct cow_map *ret)
{
	struct group g;
	int rc;

	if (!s->table)
		return map_table(img, s, qu, ret);
	rc = get_group(img, s, qu, &g);
	if (rc)
		return rc;
	if (g.type == T_DATA)
		return map_in_place(img, s, &g, ret);
	return is_own(s) ? map_room(img, s, qu, &g, ret) : map_table(img, s, qu, ret);
}

/* The stored form of zeroes is in the file before an entry refers to it. */
static int need_zero(struct cow_image *img, const struct span *s)
{
	struct qcow_writer *w = &((struct qcow *)img->priv)->w;
	struct cow_mblk *blk;
	int rc;

	if (w->zero_block == 0)
		return 0;
	rc = cow_meta_get(img, 0, w->zero_block, w->zero_put ? 0 : COW_META_NEW, &blk);
	if (rc == 0)
		rc = cow_meta_after(s->l2, blk);
	if (rc || w->zero_put)
		return rc;
	memcpy(cow_meta_data(blk), w->zero, w->zero_len);
	cow_meta_dirty(blk, COW_META_TABLE);
	w->zero_put = true;
	return 0;
}

/* An answer of zeroes, that are there or (@flags) will be after commit(). */
static void map_hole(struct cow_image *img, uint64_t virt, uint64_t end, uint32_t flags,
		     struct cow_map *ret)
{
	ret->dst.virt = virt;
	ret->dst.len = cow_min(end, img->size) - virt;
	ret->dst.kind = COW_HOLE;
	ret->dst.flags = flags;
}

/* Whole clusters are to read as zeroes. */
static int map_zero(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		    struct cow_map *ret)
{
	const struct qcow *q = s->q;
	bool base = q->backing_off;
	struct group g;
	int rc;

	if (!s->table && !base) {
		map_hole(img, qu->virt, cow_round_down(qu->virt, qcow_l1_span(q)) + qcow_l1_span(q), 0,
			 ret);
		return 0;
	}
	if (!s->table)
		return map_table(img, s, qu, ret);
	rc = get_group(img, s, qu, &g);
	if (rc)
		return rc;
	if (g.type == T_DATA && q->encrypted)
		return -EOPNOTSUPP;
	if (g.type == T_DATA)
		return map_in_place(img, s, &g, ret);
	if (!g.same_type)
		shorten(img, q, &g, 1);
	if (g.type == T_ZERO || (g.type == T_ABSENT && !base)) {
		map_hole(img, g.virt, g.end, 0, ret);
		return 0;
	}
	if (!is_own(s))
		return map_table(img, s, qu, ret);
	if (base && !q->w.zero_entry)
		return -ENOSPC;
	rc = base ? need_zero(img, s) : 0;
	if (rc)
		return rc;
	map_hole(img, g.virt, g.end, COW_EXT_NEW, ret);
	ret->cookie = cookie(s->l2, COOKIE_ZERO);
	return 0;
}

int qcow_map(struct cow_image *img, const struct cow_query *qu, struct cow_map *ret)
{
	struct qcow *q = img->priv;
	bool change = qu->intent != COW_READ && qu->intent != COW_REPORT;
	struct span s;
	int rc;

	if (change && (q->corrupt_found || !q->w.loaded))
		return -EIO;
	rc = get_span(img, qu->virt, &s);
	if (rc)
		return rc;
	*ret = (struct cow_map){ .gen = img->gen };
	if (change)
		return qu->intent == COW_WRITE ? map_write(img, &s, qu, ret) :
			map_zero(img, &s, qu, ret);
	if (!s.table) {
		read_no_table(img, &s, qu, ret);
		return 0;
	}
	return map_read(img, &s, qu, ret);
}

/*
 * Stored forms lie back to back, at any byte: what is behind the last one is in no
 * block of the cache until a table takes whole ones. A plain cluster that one
 * replaces is a leak, as is what a write makes of a compressed one.
 */
int qcow_put_encoded(struct cow_image *img, const struct cow_query *qu, uint64_t len,
		     struct cow_map *ret)
{
	struct qcow *q = img->priv;
	uint64_t host;
	struct span s;
	int rc;

	if (q->corrupt_found || !q->w.loaded)
		return -EIO;
	rc = get_span(img, qu->virt, &s);
	if (rc)
		return rc;
	*ret = (struct cow_map){ .gen = img->gen };
	if (!is_own(&s))
		return map_table(img, &s, qu, ret);
	if (type_at(&s, index_of(&s, qu->virt)) == T_BAD)
		return damaged(img, "L2 entry of byte", qu->virt);
	if (!qcow_space_take(q, len, 1, 1, &host))
		return -ENOSPC;
	ret->dst.virt = qu->virt;
	ret->dst.len = qu->len;
	ret->dst.phys = host;
	ret->dst.kind = COW_ENCODED;
	ret->dst.flags = COW_EXT_NEW;
	ret->src.kind = COW_HOLE;
	ret->src.len = len;
	ret->cookie = cookie(s.l2, COOKIE_ENCODED);
	return 0;
}

/* ---- commit ---- */

static struct cow_mblk *block_of(const struct cow_map *map)
{
	return (struct cow_mblk *)(uintptr_t)(map->cookie & ~(uint64_t)COOKIE_MASK);
}

/* The entries of an answer; the table has its blocks for itself. */
static uint8_t *entry_of(const struct qcow *q, const struct cow_map *map)
{
	uint64_t index = map->dst.virt >> q->cluster_bits;

	return (uint8_t *)cow_meta_data(block_of(map)) + index % (COW_META_BLOCK / 8) * 8;
}

static void commit_data(struct qcow *q, const struct cow_map *map, int io)
{
	uint64_t n = cow_div_up(map->dst.len, q->cluster);
	uint8_t *p = entry_of(q, map);

	if (io) {
		qcow_space_give_back(q, map->dst.phys, n << q->cluster_bits);
		return;
	}
	for (uint64_t i = 0; i < n; i++)
		cow_put_be64(p + i * 8, map->dst.phys + (i << q->cluster_bits));
	cow_meta_dirty(block_of(map), COW_META_TABLE);
}

static void commit_zero(const struct qcow *q, const struct cow_map *map)
{
	uint64_t n = cow_div_up(map->dst.len, q->cluster);
	uint8_t *p = entry_of(q, map);

	for (uint64_t i = 0; i < n; i++)
		cow_put_be64(p + i * 8, q->backing_off ? q->w.zero_entry : 0);
	cow_meta_dirty(block_of(map), COW_META_TABLE);
}

static void commit_encoded(struct qcow *q, const struct cow_map *map, int io)
{
	if (io) {
		qcow_space_give_back(q, map->dst.phys, map->src.len);
		return;
	}
	cow_put_be64(entry_of(q, map), qcow_compressed(q, map->dst.phys, map->src.len));
	cow_meta_dirty(block_of(map), COW_META_TABLE);
}

/* The table is written: L1 shows it, unless another request was first. */
static void commit_table(struct qcow *q, const struct cow_map *map, int io)
{
	uint8_t *p = (uint8_t *)cow_meta_data(block_of(map)) + map->src.virt;

	/* It stays in the list of tables: no data will ever be there. */
	if (io || qcow_l1_get(q, p) != map->src.phys)
		return;
	qcow_l1_put(q, p, map->dst.phys);
	q->w.moved |= map->src.phys != 0;
	cow_meta_dirty(block_of(map), COW_META_TABLE);
}

void qcow_commit(struct cow_image *img, const struct cow_map *map, int io)
{
	struct qcow *q = img->priv;

	switch (map->cookie & COOKIE_MASK) {
	case COOKIE_TABLE:
		commit_table(q, map, io);
		break;
	case COOKIE_ZERO:
		if (io == 0)
			commit_zero(q, map);
		break;
	case COOKIE_ENCODED:
		commit_encoded(q, map, io);
		break;
	default:
		commit_data(q, map, io);
	}
}
