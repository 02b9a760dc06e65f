// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * From virtual to host offsets and back to L2 entries: the hot path. An answer
 * stays within one block of the metadata cache: 512 entries of an L2 table, 256
 * with subclusters. Entries are decoded where they lie.
 *
 * What needs new room is answered with clusters of the reserve (see
 * qcow2-refcount.c); commit() then writes the entries. What becomes zeroes
 * keeps its cluster where that is the image's own: the engine punches it, unless
 * the image is encrypted: then the entry says it, as far as it can.
 */
#include <errno.h>

#include "cow/log.h"
#include "qcow2-priv.h"

/* What an L2 entry is to a request. */
enum type {
	T_ABSENT,		/* shows the base */
	T_ZERO,			/* zeroes, no cluster */
	T_ZERO_HOST,		/* zeroes, with a cluster that can be used again */
	T_DATA,			/* in a cluster of this disk alone */
	T_SHARED,		/* in a cluster that others may refer to as well */
	T_ENCODED,
	T_MIXED,		/* subclusters differ; the cluster is this disk's alone */
	T_BAD,
};

/* The part of an L2 table that a query falls into. */
struct span {
	const struct qcow2 *q;
	struct cow_mblk *l1, *l2;
	const uint8_t *l1_entry;
	uint8_t *data;			/* the block of the L2 table; NULL: there is no table */
	uint64_t virt;			/* of its first entry */
	unsigned n;			/* entries */
};

static uint64_t entry_at(const struct span *s, unsigned i)
{
	return cow_get_be64(s->data + (size_t)i * s->q->entry_bytes);
}

static uint64_t bitmap_at(const struct span *s, unsigned i)
{
	return cow_get_be64(s->data + (size_t)i * s->q->entry_bytes + 8);
}

/* Is there an L2 table, of this image alone? Only such a one is changed. */
static bool own_table(const struct span *s)
{
	return s->l2 && (cow_get_be64(s->l1_entry) & QCOW2_COPIED);
}

static void put_entry(const struct span *s, unsigned i, uint64_t entry, uint64_t bitmap)
{
	uint8_t *p = s->data + (size_t)i * s->q->entry_bytes;

	cow_put_be64(p, entry);
	if (s->q->extl2)
		cow_put_be64(p + 8, bitmap);
}

/* Is the offset of an entry possible? */
static bool host_bad(const struct qcow2 *q, uint64_t entry)
{
	return (entry & QCOW2_OFFSET_MASK) & (q->cluster - 1);
}

static enum type type_extended(const struct qcow2 *q, uint64_t e, uint64_t bitmap)
{
	uint32_t alloc = (uint32_t)bitmap, zero = (uint32_t)(bitmap >> 32);
	bool host = e & QCOW2_OFFSET_MASK;

	if ((e & QCOW2_ZERO) || (alloc & zero) || (alloc && !host) || host_bad(q, e))
		return T_BAD;
	if (!host)
		return zero == UINT32_MAX ? T_ZERO : zero ? T_MIXED : T_ABSENT;
	if (!(e & QCOW2_COPIED))
		return T_SHARED;
	if (alloc == UINT32_MAX)
		return T_DATA;
	return zero == UINT32_MAX ? T_ZERO_HOST : T_MIXED;
}

/* Of an entry whose cluster, if it has one, lies in the data file, at its own offset. */
static enum type type_external(const struct span *s, unsigned i)
{
	uint64_t e = entry_at(s, i), bitmap = s->q->extl2 ? bitmap_at(s, i) : 0;
	uint32_t alloc = (uint32_t)bitmap, zero = (uint32_t)(bitmap >> 32);
	bool host = e & (QCOW2_OFFSET_MASK | QCOW2_COPIED);

	if ((e & QCOW2_COMPRESSED) || (alloc & zero) || (alloc && !host) ||
	    (host && (e & QCOW2_OFFSET_MASK) != s->virt + ((uint64_t)i << s->q->cluster_bits)) ||
	    (s->q->extl2 && (e & QCOW2_ZERO)))
		return T_BAD;
	if (s->q->extl2 && alloc != UINT32_MAX && zero != UINT32_MAX && (host || zero))
		return T_MIXED;
	if (zero == UINT32_MAX || (e & QCOW2_ZERO))
		return host ? T_ZERO_HOST : T_ZERO;
	return host ? T_DATA : T_ABSENT;
}

static enum type type_at(const struct span *s, unsigned i)
{
	const struct qcow2 *q = s->q;
	uint64_t e = entry_at(s, i);

	if (qcow2_external(q))
		return type_external(s, i);
	if (e & QCOW2_COMPRESSED)
		return e & QCOW2_COPIED ? T_BAD : T_ENCODED;
	if (q->extl2)
		return type_extended(q, e, bitmap_at(s, i));
	if (host_bad(q, e))
		return T_BAD;
	if (e & QCOW2_ZERO) {
		if (q->version < 3)
			return T_BAD;
		return !(e & QCOW2_OFFSET_MASK) ? T_ZERO : e & QCOW2_COPIED ? T_ZERO_HOST : T_SHARED;
	}
	if (!(e & QCOW2_OFFSET_MASK))
		return T_ABSENT;
	return e & QCOW2_COPIED ? T_DATA : T_SHARED;
}

static int damaged(struct cow_image *img, const char *what, uint64_t where)
{
	cow_log_limited(COW_LOG_ERR, "%s: %s %llu is damaged: repair the image", img->path, what,
			(unsigned long long)where);
	return -EIO;
}

/* Finds the blocks of @virt. s->l2 stays NULL where L1 has no table. */
static int get_span(struct cow_image *img, uint64_t virt, struct span *s)
{
	const struct qcow2 *q = img->priv;
	uint64_t l1_index = virt >> (q->l2_bits + q->cluster_bits);
	uint64_t l1_at = q->l1_off + l1_index * 8, l2_off, at;
	int rc;

	*s = (struct span){ .q = q };
	rc = cow_meta_get(img, 0, cow_round_down(l1_at, COW_META_BLOCK), 0, &s->l1);
	if (rc)
		return rc;
	s->l1_entry = (const uint8_t *)cow_meta_data(s->l1) + l1_at % COW_META_BLOCK;
	l2_off = cow_get_be64(s->l1_entry) & QCOW2_OFFSET_MASK;
	if (l2_off == 0)
		return 0;
	if (!qcow2_host_ok(q, l2_off))
		return damaged(img, "L1 entry", l1_index);
	at = l2_off + (virt >> q->cluster_bits & ((1ULL << q->l2_bits) - 1)) * q->entry_bytes;
	rc = cow_meta_get(img, 0, cow_round_down(at, COW_META_BLOCK), 0, &s->l2);
	if (rc)
		return rc;
	/* A table shorter than a block of the cache begins somewhere in it. */
	l2_off = cow_max(l2_off, cow_round_down(at, COW_META_BLOCK));
	s->n = (unsigned)(cow_min(COW_META_BLOCK, q->cluster) / q->entry_bytes);
	s->data = (uint8_t *)cow_meta_data(s->l2) + l2_off % COW_META_BLOCK;
	s->virt = cow_round_down(virt, (uint64_t)s->n << q->cluster_bits);
	return 0;
}

static unsigned index_of(const struct span *s, uint64_t virt)
{
	return (unsigned)((virt - s->virt) >> s->q->cluster_bits);
}

/* ---- reading ---- */

/* Several L1 entries without a table are one answer. */
static void read_no_table(struct cow_image *img, const struct span *s, const struct cow_query *qu,
			  struct cow_map *ret)
{
	const struct qcow2 *q = s->q;
	uint64_t unit = qcow2_l1_span(q), virt = cow_round_down(qu->virt, unit);
	uint64_t end = virt + unit, last = cow_min(qu->virt + qu->len, img->size);
	const uint8_t *block = cow_meta_data(s->l1), *e = s->l1_entry + 8;

	while (end < last && e < block + COW_META_BLOCK && !(cow_get_be64(e) & QCOW2_OFFSET_MASK)) {
		end += unit;
		e += 8;
	}
	ret->dst.virt = virt;
	ret->dst.len = cow_min(end, img->size) - virt;
	ret->dst.kind = COW_BELOW;
}

static void read_encoded(const struct span *s, unsigned i, struct cow_map *ret)
{
	uint64_t e = entry_at(s, i);

	ret->dst.virt = s->virt + ((uint64_t)i << s->q->cluster_bits);
	ret->dst.len = s->q->cluster;
	ret->dst.kind = COW_ENCODED;
	ret->dst.phys = qcow2_cmp_off(s->q, e);
	ret->src.phys = ret->dst.phys;
	ret->src.len = qcow2_cmp_bytes(s->q, e);
}

/* Kind and place of the run of like subclusters from @sub of entry @i on; how many there are in it. */
static unsigned sub_run(const struct span *s, unsigned i, unsigned sub, uint8_t *kind, uint64_t *phys)
{
	uint64_t e = entry_at(s, i), bitmap = bitmap_at(s, i);
	uint32_t alloc = (uint32_t)bitmap >> sub, zero = (uint32_t)(bitmap >> 32) >> sub, differ;

	*phys = 0;
	if (alloc & 1) {
		*kind = COW_DATA;
		*phys = (e & QCOW2_OFFSET_MASK) + ((uint64_t)sub << s->q->sub_bits);
		differ = ~alloc;
	} else if (zero & 1) {
		*kind = COW_HOLE;
		differ = ~zero;
	} else {
		*kind = COW_BELOW;
		differ = alloc | zero;
	}
	sub = QCOW2_SUBCLUSTERS - sub;
	return differ ? (unsigned)cow_min((unsigned)__builtin_ctz(differ), sub) : sub;
}

/* The same for an entry of either kind: bytes of the run from @off in the cluster on; 0: T_BAD, T_ENCODED. */
static uint64_t run_at(const struct span *s, unsigned i, uint64_t off, uint8_t *kind, uint64_t *phys)
{
	const struct qcow2 *q = s->q;
	enum type t = type_at(s, i);

	if (t == T_BAD || t == T_ENCODED)
		return 0;
	if (q->extl2)
		return (uint64_t)sub_run(s, i, (unsigned)(off >> q->sub_bits), kind, phys) << q->sub_bits;
	*phys = 0;
	*kind = COW_DATA;
	if (t == T_ABSENT)
		*kind = COW_BELOW;
	else if (entry_at(s, i) & QCOW2_ZERO)
		*kind = COW_HOLE;
	else
		*phys = entry_at(s, i) & QCOW2_OFFSET_MASK;
	return q->cluster;
}

static int map_read(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		    struct cow_map *ret)
{
	const struct qcow2 *q = s->q;
	uint64_t last = qu->virt + qu->len, start = cow_round_down(qu->virt, 1ULL << q->sub_bits);
	uint64_t end = start, phys, n;
	unsigned i = index_of(s, start);
	uint8_t kind;

	if (type_at(s, i) == T_BAD)
		return damaged(img, "L2 entry of byte", qu->virt);
	n = run_at(s, i, start & (q->cluster - 1), &ret->dst.kind, &ret->dst.phys);
	ret->dst.file = qcow2_external(q) && ret->dst.kind == COW_DATA;
	if (n == 0) {
		read_encoded(s, i, ret);
		ret->dst.len = cow_min(ret->dst.len, img->size - ret->dst.virt);
		return 0;
	}
	for (end += n; end < last && (end & (q->cluster - 1)) == 0 && ++i < s->n; end += n) {
		n = run_at(s, i, 0, &kind, &phys);
		if (n == 0 || kind != ret->dst.kind ||
		    (kind == COW_DATA && phys != ret->dst.phys + (end - start)))
			break;
	}
	ret->dst.virt = start;
	ret->dst.len = cow_min(end, img->size) - start;
	return 0;
}

/* ---- changing ---- */

/* Entries [first, first + n) that one answer treats alike. */
struct group {
	unsigned first, n;
	enum type type;			/* of the first */
	bool same_type;
	uint64_t promised;		/* host cluster of the first if it needs room; 0: any */
	uint64_t virt, end;		/* of its clusters, end at most the image's */
};

/* Does writing to a cluster of this type need another one? */
static bool needs_room(enum type t)
{
	return t == T_ABSENT || t == T_ZERO || t == T_SHARED || t == T_ENCODED;
}

static bool joins(const struct span *s, const struct group *g, unsigned i, enum type t)
{
	uint64_t first = entry_at(s, g->first) & QCOW2_OFFSET_MASK;
	uint64_t here = entry_at(s, i) & QCOW2_OFFSET_MASK;

	if (needs_room(g->type))
		return needs_room(t) && (!s->q->extl2 || t == g->type);
	return t == g->type && t != T_MIXED && here == first + ((uint64_t)(i - g->first) << s->q->cluster_bits);
}

/* Where entry @i would go if it needs room and others were told so; 0: nowhere yet. */
static uint64_t promised(const struct span *s, unsigned i)
{
	return s->q->places ? qcow2_place_of(s->q, (s->virt >> s->q->cluster_bits) + i) : 0;
}

/* Of entries that need room: does @i, the @n-th, go on where the first does? */
static bool place_joins(const struct span *s, uint64_t first, unsigned i, unsigned n)
{
	return promised(s, i) == (first ? first + n : 0);
}

static int get_group(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		     struct group *g)
{
	const struct qcow2 *q = s->q;
	unsigned last = index_of(s, cow_min(qu->virt + qu->len - 1,
					    s->virt + ((uint64_t)s->n << q->cluster_bits) - 1));

	g->first = index_of(s, qu->virt);
	g->type = type_at(s, g->first);
	g->n = 1;
	g->same_type = true;
	g->promised = promised(s, g->first);
	if (g->type == T_BAD)
		return damaged(img, "L2 entry of byte", qu->virt);
	while (g->first + g->n <= last) {
		enum type t = type_at(s, g->first + g->n);

		if (!joins(s, g, g->first + g->n, t) ||
		    (needs_room(t) && !place_joins(s, g->promised, g->first + g->n, g->n)))
			break;
		g->same_type &= t == g->type;
		g->n++;
	}
	g->virt = s->virt + ((uint64_t)g->first << q->cluster_bits);
	g->end = cow_min(g->virt + ((uint64_t)g->n << q->cluster_bits), img->size);
	return 0;
}

static void shorten(struct cow_image *img, const struct qcow2 *q, struct group *g, unsigned n)
{
	g->n = n;
	g->end = cow_min(g->virt + ((uint64_t)n << q->cluster_bits), img->size);
}

/*
 * Data must never be written over metadata, whatever the entries say. On the
 * first that would be, the image is marked.
 */
static int check_in_place(struct cow_image *img, const struct span *s, struct group *g)
{
	struct qcow2 *q = img->priv;
	uint64_t host = entry_at(s, g->first) & QCOW2_OFFSET_MASK;
	struct cow_mblk *blk;
	unsigned n = 0;
	int rc;

	if (qcow2_external(q))
		return 0;
	while (n < g->n && !qcow2_set_has(&q->w.meta, (host >> q->cluster_bits) + n))
		n++;
	if (n) {
		shorten(img, q, g, n);
		return 0;
	}
	if (q->version >= 3 && !(q->incompat & QCOW2_INCOMPAT_CORRUPT)) {
		uint8_t *p;

		rc = cow_meta_get(img, 0, 0, 0, &blk);
		if (rc)
			return rc;
		q->incompat |= QCOW2_INCOMPAT_CORRUPT;
		p = cow_meta_data(blk);
		cow_put_be64(p + QCOW2_H_INCOMPAT, q->incompat);
		cow_meta_dirty(blk, COW_META_HEADER);
	}
	q->corrupt_found = true;
	cow_log_limited(COW_LOG_ERR, "%s: the data of byte %llu would lie upon metadata: refused; "
			"repair the image", img->path, (unsigned long long)g->virt);
	return -EIO;
}

static uint64_t cookie(const struct cow_mblk *blk, unsigned what)
{
	return (uintptr_t)blk | what;
}

/* The L1 entry has no table, or one that a snapshot shares: a new one first. */
static int map_table(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		     struct cow_map *ret)
{
	struct qcow2 *q = img->priv;
	struct qcow2_refs refs;
	struct qcow2_run r;
	int rc = qcow2_reserve(img, qu->virt, ret, &refs);

	if (rc)
		return rc < 0 ? rc : 0;
	rc = qcow2_set_room(&q->w.meta, q->w.tables_pending + 1);
	if (rc == 0)
		rc = qcow2_after_refs(s->l1, &refs);
	if (rc)
		return rc;
	q->w.tables_pending++;
	r = qcow2_take(q, &refs, 1);
	ret->dst = (struct cow_extent){
		.virt = qu->virt, .len = q->cluster, .phys = r.start << q->cluster_bits,
		.kind = COW_DATA, .flags = COW_EXT_NEW | COW_EXT_TABLE,
	};
	ret->src.kind = s->l2 ? COW_DATA : COW_HOLE;
	ret->src.phys = cow_get_be64(s->l1_entry) & QCOW2_OFFSET_MASK;
	ret->src.virt = (uint64_t)(s->l1_entry - (const uint8_t *)cow_meta_data(s->l1));
	ret->cookie = cookie(s->l1, QCOW2_COOKIE_L2);
	return 0;
}

/* Clusters for the first entries of a group. 1: @ret is a table that is needed first. */
static int take_room(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		     const struct group *g, struct cow_map *ret, struct qcow2_run *r)
{
	struct qcow2 *q = img->priv;
	struct qcow2_refs refs;
	int rc;

	if (qcow2_external(q)) {
		*r = (struct qcow2_run){ g->virt >> q->cluster_bits, g->n };
		return 0;
	}
	if (g->promised) {
		*r = (struct qcow2_run){ g->promised, g->n };
		rc = qcow2_refs_pin(img, g->promised, &refs);
		return rc ? rc : qcow2_after_refs(s->l2, &refs);
	}
	rc = qcow2_reserve(img, qu->virt, ret, &refs);
	if (rc == 0)
		rc = qcow2_after_refs(s->l2, &refs);
	if (rc == 0)
		*r = qcow2_take(q, &refs, g->n);
	return rc;
}

/* New clusters for a group that needs room. */
static int map_room(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		    struct group *g, struct cow_map *ret)
{
	struct qcow2 *q = img->priv;
	uint64_t unit = 1ULL << q->sub_bits, last = qu->virt + qu->len;
	struct qcow2_run r;
	int rc = take_room(img, s, qu, g, ret, &r);

	if (rc)
		return rc < 0 ? rc : 0;
	shorten(img, q, g, (unsigned)r.count);
	/* What the old cluster has must go along; of what shows the base, only ragged subclusters. */
	if (g->type == T_SHARED || g->type == T_ENCODED || !g->same_type)
		unit = q->cluster;
	ret->dst.virt = cow_round_down(qu->virt, unit);
	ret->dst.len = cow_min(cow_round_up(last, unit), g->end) - ret->dst.virt;
	ret->dst.phys = (r.start << q->cluster_bits) + (ret->dst.virt - g->virt);
	ret->dst.kind = COW_DATA;
	ret->dst.file = qcow2_external(q);
	ret->dst.flags = COW_EXT_NEW;
	ret->src.kind = !g->same_type ? COW_DATA : g->type == T_ABSENT ? COW_BELOW :
		g->type == T_ZERO ? COW_HOLE : COW_DATA;
	ret->cookie = cookie(s->l2, QCOW2_COOKIE_DATA);
	return 0;
}

/*
 * The cluster is there, its subclusters from the query on are not all. Others than those that are written to
 * are left alone: somebody may be filling them.
 */
static void map_mixed(const struct span *s, const struct cow_query *qu, const struct group *g,
		      struct cow_map *ret)
{
	const struct qcow2 *q = s->q;
	uint32_t alloc = (uint32_t)bitmap_at(s, g->first);
	uint64_t unit = 1ULL << q->sub_bits, start = qu->virt, end = cow_min(qu->virt + qu->len, g->end);
	unsigned a = (unsigned)((start - g->virt) >> q->sub_bits);
	unsigned b = (unsigned)((end - 1 - g->virt) >> q->sub_bits);
	uint32_t range = (uint32_t)(UINT32_MAX << a & UINT32_MAX >> (31 - b));

	ret->dst.flags = (alloc & range) == range ? 0 : COW_EXT_NEW;
	if (ret->dst.flags && !(alloc >> a & 1))
		start = cow_round_down(start, unit);
	if (ret->dst.flags && !(alloc >> b & 1))
		end = cow_min(cow_round_up(end, unit), g->end);
	ret->dst.virt = start;
	ret->dst.len = end - start;
	ret->dst.phys = (entry_at(s, g->first) & QCOW2_OFFSET_MASK) + (start - g->virt);
	ret->dst.kind = COW_DATA;
	ret->dst.file = qcow2_external(q);
	ret->src.kind = COW_DATA;
	ret->cookie = cookie(s->l2, QCOW2_COOKIE_DATA);
}

/* The group's clusters as they are. @flags: COW_EXT_NEW when entries have to change. */
static void map_in_place(const struct span *s, const struct cow_query *qu, const struct group *g,
			 uint32_t flags, struct cow_map *ret)
{
	ret->dst.virt = g->virt;
	ret->dst.len = g->end - g->virt;
	if (flags)
		ret->dst.len = cow_min(cow_round_up(qu->virt + qu->len, s->q->cluster), g->end) - g->virt;
	ret->dst.phys = entry_at(s, g->first) & QCOW2_OFFSET_MASK;
	ret->dst.kind = COW_DATA;
	ret->dst.file = qcow2_external(s->q);
	ret->dst.flags = flags;
	ret->src.kind = COW_HOLE;
	ret->cookie = cookie(s->l2, QCOW2_COOKIE_DATA);
}

/* Mixed subclusters without a cluster: none of them is stored. */
static bool has_host(const struct span *s, const struct group *g)
{
	uint64_t bits = qcow2_external(s->q) ? QCOW2_OFFSET_MASK | QCOW2_COPIED : QCOW2_OFFSET_MASK;

	return entry_at(s, g->first) & bits;
}

static int map_write(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		     struct cow_map *ret)
{
	struct group g;
	int rc;

	if (!own_table(s))
		return map_table(img, s, qu, ret);
	rc = get_group(img, s, qu, &g);
	if (rc)
		return rc;
	if (needs_room(g.type) || !has_host(s, &g))
		return map_room(img, s, qu, &g, ret);
	rc = check_in_place(img, s, &g);
	if (rc)
		return rc;
	if (g.type != T_DATA && s->q->extl2) {
		shorten(img, img->priv, &g, 1);
		map_mixed(s, qu, &g, ret);
	} else {
		map_in_place(s, qu, &g, g.type == T_DATA ? 0 : COW_EXT_NEW, ret);
	}
	return 0;
}

/*
 * Others want to write whole subclusters. The entry gets a cluster of which it shows nothing yet, so
 * that each of them is placed, and later shown, by itself.
 */
static int map_place_sub(struct cow_image *img, const struct span *s, const struct cow_query *qu,
			 struct group *g, struct cow_map *ret)
{
	struct qcow2 *q = img->priv;
	uint64_t off = qu->virt - g->virt, end = cow_min(qu->virt + qu->len, img->size), phys, n;
	struct qcow2_run r;
	uint8_t kind;
	int rc;

	shorten(img, q, g, 1);
	end = cow_min(g->virt + q->cluster, cow_round_down(end, 1ULL << q->sub_bits));
	if (g->type == T_SHARED || g->type == T_ENCODED || end <= qu->virt)
		return -EOPNOTSUPP;
	if (has_host(s, g)) {
		rc = check_in_place(img, s, g);
		if (rc)
			return rc;
	} else {
		rc = take_room(img, s, qu, g, ret, &r);
		if (rc)
			return rc < 0 ? rc : 0;
		put_entry(s, g->first, r.start << q->cluster_bits | QCOW2_COPIED, bitmap_at(s, g->first));
		cow_meta_dirty(s->l2, COW_META_TABLE);
	}
	/* A run of those that are shown, or of those that are not. */
	n = run_at(s, g->first, off, &kind, &phys);
	while (kind != COW_DATA && off + n < q->cluster) {
		uint64_t more = run_at(s, g->first, off + n, &kind, &phys);

		if (kind == COW_DATA)
			break;
		n += more;
	}
	run_at(s, g->first, off, &kind, &phys);
	ret->dst = (struct cow_extent){
		.virt = qu->virt, .len = cow_min(n, end - qu->virt), .kind = COW_DATA,
		.phys = (entry_at(s, g->first) & QCOW2_OFFSET_MASK) + off,
		.flags = kind == COW_DATA ? 0 : COW_EXT_NEW,
	};
	return 0;
}

/* Others want to write whole clusters: in place, or where an entry will refer to once they did. */
static int map_place_whole(struct cow_image *img, const struct span *s, const struct cow_query *qu,
			   struct group *g, struct cow_map *ret)
{
	struct qcow2 *q = img->priv;
	unsigned whole = (unsigned)cow_min(g->n, (img->size - g->virt) >> q->cluster_bits);
	struct qcow2_run r;
	int rc;

	if (!needs_room(g->type)) {		/* T_ZERO_HOST */
		shorten(img, q, g, whole);
		rc = whole ? check_in_place(img, s, g) : -EOPNOTSUPP;
		if (rc == 0)
			map_in_place(s, qu, g, COW_EXT_NEW, ret);
		return rc;
	}
	if (!g->promised)
		whole = (unsigned)cow_min(whole, qcow2_place_room(q));
	if (whole == 0)
		return -EOPNOTSUPP;
	g->n = whole;
	rc = take_room(img, s, qu, g, ret, &r);
	if (rc)
		return rc < 0 ? rc : 0;
	shorten(img, q, g, (unsigned)r.count);
	if (!g->promised)
		qcow2_place_add(q, g->virt >> q->cluster_bits, r.start, g->n);
	ret->dst = (struct cow_extent){
		.virt = g->virt, .len = g->end - g->virt, .phys = r.start << q->cluster_bits,
		.kind = COW_DATA, .flags = COW_EXT_NEW,
	};
	return 0;
}

/* What the image ends in is not completed by others: it may grow meanwhile. */
static int map_place(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		     struct cow_map *ret)
{
	struct group g;
	int rc;

	if (!own_table(s))
		return map_table(img, s, qu, ret);
	rc = get_group(img, s, qu, &g);
	if (rc)
		return rc;
	if (g.type != T_DATA)
		return s->q->extl2 ? map_place_sub(img, s, qu, &g, ret) : map_place_whole(img, s, qu, &g, ret);
	rc = check_in_place(img, s, &g);
	if (rc == 0)
		map_in_place(s, qu, &g, 0, ret);
	return rc;
}

/* Others wrote to query.phys: what is to be changed for that to show. */
static int map_placed(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		      struct cow_map *ret)
{
	struct qcow2 *q = img->priv;
	uint64_t off = qu->virt & (q->cluster - 1), host = qu->phys - off, unit = 1ULL << q->sub_bits;
	struct qcow2_refs refs;
	enum type type;
	unsigned i;
	int rc = 0;

	if (!own_table(s))
		return map_table(img, s, qu, ret);
	i = index_of(s, qu->virt);
	type = type_at(s, i);
	if (type == T_BAD)
		return damaged(img, "L2 entry of byte", qu->virt);
	ret->dst = (struct cow_extent){
		.virt = qu->virt, .len = cow_min(qu->len, q->cluster - off), .phys = qu->phys,
		.kind = COW_DATA, .flags = type == T_DATA ? 0 : COW_EXT_NEW,
	};
	ret->cookie = cookie(s->l2, QCOW2_COOKIE_DATA);
	if (off % unit || ret->dst.len % unit || !qcow2_host_ok(q, host))
		return -EIO;
	if (needs_room(type) && !q->extl2) {
		rc = qcow2_place_check(img, host >> q->cluster_bits, &refs);
		return rc ? rc : qcow2_after_refs(s->l2, &refs);
	}
	return !needs_room(type) && (entry_at(s, i) & QCOW2_OFFSET_MASK) == host ? 0 : -EIO;
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

/*
 * Whole clusters are to read as zeroes. What is the disk's own is punched and
 * stays; of the rest the entry says it. Version 2 has no such entry: there,
 * over a base, a cluster is taken and punched.
 */
static int map_zero(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		    struct cow_map *ret)
{
	const struct qcow2 *q = s->q;
	bool base = q->backing.path[0];
	struct group g;
	int rc;

	if (!s->l2 && !base) {
		map_hole(img, qu->virt, cow_round_down(qu->virt, qcow2_l1_span(q)) + qcow2_l1_span(q), 0,
			 ret);
		return 0;
	}
	if (!own_table(s))
		return map_table(img, s, qu, ret);
	rc = get_group(img, s, qu, &g);
	if (rc)
		return rc;
	if (g.type == T_DATA && !q->crypt) {
		rc = check_in_place(img, s, &g);
		if (rc == 0)
			map_in_place(s, qu, &g, 0, ret);
		return rc;
	}
	if (!g.same_type)
		shorten(img, q, &g, 1);
	if (g.type == T_MIXED && qcow2_external_raw(q) && !q->crypt) {
		if (!has_host(s, &g))
			return map_room(img, s, qu, &g, ret);
		map_in_place(s, qu, &g, COW_EXT_NEW, ret);
		return 0;
	}
	if (g.type == T_ZERO || g.type == T_ZERO_HOST || (g.type == T_ABSENT && !base)) {
		map_hole(img, g.virt, g.end, 0, ret);
		return 0;
	}
	if (q->version < 3 && q->crypt && (base || g.type == T_DATA))
		return -EOPNOTSUPP;
	if (q->version < 3 && base)
		return map_room(img, s, qu, &g, ret);
	map_hole(img, g.virt, g.end, COW_EXT_NEW, ret);
	ret->cookie = cookie(s->l2, QCOW2_COOKIE_ZERO);
	return 0;
}

static int map_change(struct cow_image *img, const struct span *s, const struct cow_query *qu,
		      struct cow_map *ret)
{
	switch (qu->intent) {
	case COW_WRITE:
		return map_write(img, s, qu, ret);
	case COW_PLACE:
		return map_place(img, s, qu, ret);
	case COW_PLACED:
		return map_placed(img, s, qu, ret);
	default:
		return map_zero(img, s, qu, ret);
	}
}

int qcow2_map(struct cow_image *img, const struct cow_query *qu, struct cow_map *ret)
{
	struct qcow2 *q = img->priv;
	bool change = qu->intent != COW_READ && qu->intent != COW_REPORT;
	struct span s;
	int rc;

	if (change && (q->corrupt_found || !q->w.loaded))
		return -EIO;
	rc = get_span(img, qu->virt, &s);
	if (rc)
		return rc;
	*ret = (struct cow_map){ .gen = img->gen };
	if (change) {
		rc = map_change(img, &s, qu, ret);
		if (rc == 0)
			qcow2_track_answer(q, qu, ret);
		return rc;
	}
	if (!s.l2) {
		read_no_table(img, &s, qu, ret);
		return 0;
	}
	return map_read(img, &s, qu, ret);
}

int qcow2_entry_pin(struct cow_image *img, const struct cow_query *qu, struct cow_map *ret,
		    struct cow_mblk **l2)
{
	struct qcow2 *q = img->priv;
	struct span s;
	int rc;

	if (q->corrupt_found || !q->w.loaded)
		return -EIO;
	if (qcow2_external(q))
		return -EOPNOTSUPP;
	rc = get_span(img, qu->virt, &s);
	if (rc)
		return rc;
	*ret = (struct cow_map){ .gen = img->gen };
	if (!own_table(&s)) {
		rc = map_table(img, &s, qu, ret);
		return rc ? rc : 1;
	}
	if (type_at(&s, index_of(&s, qu->virt)) == T_BAD)
		return damaged(img, "L2 entry of byte", qu->virt);
	*l2 = s.l2;
	return 0;
}

/* ---- commit ---- */

/* The L2 entries of an answer: found again from its cookie. */
static void span_of(const struct cow_image *img, const struct cow_map *map, struct span *s)
{
	const struct qcow2 *q = img->priv;

	s->q = q;
	s->l2 = (struct cow_mblk *)(uintptr_t)(map->cookie & ~(uint64_t)QCOW2_COOKIE_MASK);
	s->data = cow_meta_data(s->l2);		/* clusters of an image that is written fill blocks */
	s->n = COW_META_BLOCK / q->entry_bytes;
	s->virt = cow_round_down(map->dst.virt, (uint64_t)s->n << q->cluster_bits);
}

/* Entry @i now has what the answer wrote: [@from, @to) of its cluster, at @host. */
static void commit_one(struct qcow2 *q, const struct span *s, unsigned i, uint64_t host, uint64_t from,
		       uint64_t to)
{
	uint64_t old = entry_at(s, i), bitmap = q->extl2 ? bitmap_at(s, i) : 0;
	unsigned a = (unsigned)(from >> q->sub_bits), b = (unsigned)((to - 1) >> q->sub_bits);
	uint32_t range, zero = (uint32_t)(bitmap >> 32), alloc = (uint32_t)bitmap;

	if ((old & QCOW2_COMPRESSED) || (old & QCOW2_OFFSET_MASK) != host) {
		qcow2_unref_entry(q, old);
		alloc = 0;
		if (old & QCOW2_COMPRESSED)
			zero = 0;
	}
	if (q->extl2) {
		range = (uint32_t)(UINT32_MAX << a & UINT32_MAX >> (31 - b));
		bitmap = (uint64_t)(zero & ~range) << 32 | (alloc | range);
	}
	put_entry(s, i, host | QCOW2_COPIED, bitmap);
}

static void commit_data(struct cow_image *img, const struct cow_map *map, int io)
{
	struct qcow2 *q = img->priv;
	uint64_t virt = map->dst.virt, end = virt + map->dst.len, phys = map->dst.phys;
	struct span s = { 0 };

	span_of(img, map, &s);
	while (virt < end) {
		uint64_t off = virt & (q->cluster - 1), n = cow_min(q->cluster - off, end - virt);
		uint64_t host = phys - off;
		unsigned i = index_of(&s, virt);
		bool fresh = (entry_at(&s, i) & QCOW2_COMPRESSED) ||
			     (entry_at(&s, i) & QCOW2_OFFSET_MASK) != host;

		if (io == 0) {
			commit_one(q, &s, i, host, off, off + n);
			qcow2_place_done(q, virt >> q->cluster_bits, host >> q->cluster_bits);
		} else if (fresh && !qcow2_external(q) && !promised(&s, i)) {
			qcow2_give_back(q, host >> q->cluster_bits, 1);
		}
		virt += n;
		phys += n;
	}
	if (io == 0)
		cow_meta_dirty(s.l2, COW_META_TABLE);
}

static void commit_zero(struct cow_image *img, const struct cow_map *map)
{
	struct qcow2 *q = img->priv;
	uint64_t zero = (uint64_t)UINT32_MAX << 32;
	struct span s = { 0 };

	span_of(img, map, &s);
	for (uint64_t virt = map->dst.virt; virt < map->dst.virt + map->dst.len; virt += q->cluster) {
		unsigned i = index_of(&s, virt);
		uint64_t old = entry_at(&s, i);
		bool own = !(old & QCOW2_COMPRESSED) && (old & QCOW2_COPIED);

		if (!own)
			qcow2_unref_entry(q, old);
		if (q->extl2)
			put_entry(&s, i, own ? old : 0, zero);
		else
			put_entry(&s, i, q->version < 3 ? 0 : own ? old | QCOW2_ZERO : QCOW2_ZERO, 0);
	}
	cow_meta_dirty(s.l2, COW_META_TABLE);
}

void qcow2_entry_replace(struct cow_image *img, const struct cow_map *map, uint64_t entry)
{
	struct span s = { 0 };
	unsigned i;

	span_of(img, map, &s);
	i = index_of(&s, map->dst.virt);
	qcow2_unref_entry(img->priv, entry_at(&s, i));
	put_entry(&s, i, entry, 0);
	cow_meta_dirty(s.l2, COW_META_TABLE);
}

/* The new table is written: L1 shows it, unless another request was first. */
static void commit_table(struct cow_image *img, const struct cow_map *map, int io)
{
	struct qcow2 *q = img->priv;
	struct cow_mblk *l1 = (struct cow_mblk *)(uintptr_t)(map->cookie & ~(uint64_t)QCOW2_COOKIE_MASK);
	uint8_t *p = (uint8_t *)cow_meta_data(l1) + map->src.virt;
	uint64_t old = cow_get_be64(p), cluster = map->dst.phys >> q->cluster_bits;

	q->w.tables_pending--;
	if (io || ((old & QCOW2_COPIED) && (old & QCOW2_OFFSET_MASK))) {
		qcow2_give_back(q, cluster, 1);
		return;
	}
	cow_put_be64(p, map->dst.phys | QCOW2_COPIED);
	cow_meta_dirty(l1, COW_META_TABLE);
	qcow2_set_add(&q->w.meta, cluster);
	if (old & QCOW2_OFFSET_MASK)
		qcow2_unref(q, (old & QCOW2_OFFSET_MASK) >> q->cluster_bits, 1);
}

void qcow2_commit(struct cow_image *img, const struct cow_map *map, int io)
{
	switch (map->cookie & QCOW2_COOKIE_MASK) {
	case QCOW2_COOKIE_L2:
		commit_table(img, map, io);
		break;
	case QCOW2_COOKIE_REFBLOCK:
		qcow2_refblock_commit(img, map, io);
		break;
	case QCOW2_COOKIE_ZERO:
		if (io == 0)
			commit_zero(img, map);
		break;
	case QCOW2_COOKIE_ENCODED:
		qcow2_commit_encoded(img, map, io);
		break;
	default:
		commit_data(img, map, io);
	}
}
