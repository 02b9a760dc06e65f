// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Compressed clusters, written: the stored form, and its place. They lie back to
 * back at any byte, over the edges of host clusters too where those follow each
 * other; a host cluster's refcount is the number of compressed ones that it has a
 * part of. Reading them is qcow2-decode.c's.
 */
#include <errno.h>
#include <pthread.h>
#include <zstd.h>

#include "../deflate.h"
#include "qcow2-priv.h"

/*
 * Against zstd's level 3 as it is, its default, on clusters of 64 KiB of the same: 1.3 times as
 * fast, 0.3% larger, for the same reason. Shorter matches make up for the smaller tables.
 */
#define ZSTD_LEVEL	3
#define ZSTD_SMALL	COW_KIB(64)
#define ZSTD_HASH_LOG	13
#define ZSTD_CHAIN_LOG	12
#define ZSTD_MATCH	4

static pthread_key_t zstd_key;
static bool zstd_key_made;

static void zstd_free(void *z)
{
	ZSTD_freeCCtx(z);
}

static void zstd_key_make(void)
{
	zstd_key_made = !pthread_key_create(&zstd_key, zstd_free);
}

/* Each thread keeps its own: to make one takes a seventh of what compressing a cluster does. */
static ZSTD_CCtx *zstd_context(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	ZSTD_CCtx *z;

	pthread_once(&once, zstd_key_make);
	z = zstd_key_made ? pthread_getspecific(zstd_key) : NULL;
	if (z || !zstd_key_made)
		return z;
	z = ZSTD_createCCtx();
	if (z && pthread_setspecific(zstd_key, z)) {
		ZSTD_freeCCtx(z);
		z = NULL;
	}
	return z;
}

static int zstd_one(const void *plain, size_t len, void *out, size_t room, size_t *ret_len)
{
	ZSTD_CCtx *z = zstd_context();
	bool small = len <= ZSTD_SMALL;		/* 0 below: what zstd thinks best */

	if (!z)
		return -ENOMEM;
	ZSTD_CCtx_setParameter(z, ZSTD_c_compressionLevel, ZSTD_LEVEL);
	ZSTD_CCtx_setParameter(z, ZSTD_c_hashLog, small ? ZSTD_HASH_LOG : 0);
	ZSTD_CCtx_setParameter(z, ZSTD_c_chainLog, small ? ZSTD_CHAIN_LOG : 0);
	ZSTD_CCtx_setParameter(z, ZSTD_c_minMatch, small ? ZSTD_MATCH : 0);
	*ret_len = ZSTD_compress2(z, out, room, plain, len);
	return ZSTD_isError(*ret_len) ? -ENOSPC : 0;
}

int qcow2_encode(const struct cow_image *img, const void *plain, void *out, size_t *ret_len)
{
	const struct qcow2 *q = img->priv;

	if (q->compression)
		return zstd_one(plain, q->cluster, out, q->cluster - 1, ret_len);
	return deflate_raw(plain, q->cluster, out, q->cluster - 1, ret_len);
}

/* The blocks with refcounts that placing a cluster needs. */
struct packing {
	struct qcow2_refs last;		/* of the host cluster that the one before ended in */
	struct qcow2_refs fresh;	/* of one to be taken */
	bool follows;			/* goes behind the one before, as far as that depends on @last */
	bool fits;			/* and needs no cluster more */
};

static uint64_t count_index(const struct qcow2 *q, uint64_t cluster)
{
	return cluster % ((uint64_t)COW_META_BLOCK << 3 >> q->refcount_order);
}

/* Finds and orders everything, changes nothing. 1: @ret is a table that is needed first. */
static int prepare(struct cow_image *img, const struct cow_query *qu, uint64_t len, struct cow_mblk *l2,
		   struct packing *p, struct cow_map *ret)
{
	struct qcow2 *q = img->priv;
	uint64_t room = q->w.pack_end - q->w.pack_at, cluster;
	int rc;

	*p = (struct packing){ 0 };
	if (room) {
		cluster = (q->w.pack_end >> q->cluster_bits) - 1;
		rc = qcow2_refs_pin(img, cluster, &p->last);
		if (rc)
			return rc;
		p->follows = qcow2_ref_get(cow_meta_data(p->last.counts), count_index(q, cluster),
					   q->refcount_order) < qcow2_ref_max(q);
	}
	p->fits = p->follows && room >= len;
	rc = p->fits ? 0 : qcow2_reserve(img, qu->virt, ret, &p->fresh);
	if (rc == 0 && !p->fits)
		rc = qcow2_after_refs(l2, &p->fresh);
	if (rc == 0 && p->follows)
		rc = qcow2_after_refs(l2, &p->last);
	return rc;
}

/* One reference more to the host cluster that the one before ended in. */
static void refer_to_last(struct qcow2 *q, const struct packing *p)
{
	uint64_t i = count_index(q, (q->w.pack_end >> q->cluster_bits) - 1);
	void *counts = cow_meta_data(p->last.counts);

	qcow2_ref_set(counts, i, q->refcount_order, qcow2_ref_get(counts, i, q->refcount_order) + 1);
	cow_meta_dirty(p->last.counts, COW_META_REFCOUNT);
}

/* Takes the place of @len bytes, less than a cluster. Cannot fail. */
static uint64_t place(struct qcow2 *q, const struct packing *p, uint64_t len)
{
	struct qcow2_writer *w = &q->w;
	uint64_t at = w->pack_at, fresh;

	if (p->fits) {
		refer_to_last(q, p);
	} else {
		fresh = qcow2_take(q, &p->fresh, 1).start << q->cluster_bits;
		if (p->follows && fresh == w->pack_end)
			refer_to_last(q, p);
		else
			at = fresh;
		w->pack_end = fresh + q->cluster;
	}
	w->pack_at = at + len;
	return at;
}

int qcow2_put_encoded(struct cow_image *img, const struct cow_query *qu, uint64_t len,
		      struct cow_map *ret)
{
	struct qcow2 *q = img->priv;
	struct cow_mblk *l2;
	struct packing p;
	int rc;

	if (q->incompat & QCOW2_INCOMPAT_DATAFILE)	/* which has plain data alone */
		return -EOPNOTSUPP;
	rc = qcow2_entry_pin(img, qu, ret, &l2);
	if (rc == 0)
		rc = prepare(img, qu, len, l2, &p, ret);
	if (rc)
		return rc < 0 ? rc : 0;
	ret->dst.virt = qu->virt;
	ret->dst.len = qu->len;
	ret->dst.phys = place(q, &p, len);
	ret->dst.kind = COW_ENCODED;
	ret->dst.flags = COW_EXT_NEW;
	ret->src.kind = COW_HOLE;
	ret->src.len = len;
	ret->cookie = (uintptr_t)l2 | QCOW2_COOKIE_ENCODED;
	qcow2_track_answer(q, qu, ret);
	return 0;
}

void qcow2_commit_encoded(struct cow_image *img, const struct cow_map *map, int io)
{
	struct qcow2 *q = img->priv;
	uint64_t at = map->dst.phys, last = at + map->src.len - 1;
	uint64_t entry = QCOW2_COMPRESSED | (last / 512 - at / 512) << q->cmp_shift | at;

	if (io)
		qcow2_unref_entry(q, entry);
	else
		qcow2_entry_replace(img, map, entry);
}
