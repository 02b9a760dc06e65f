// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * All that an L1 table refers to, as a whole: what snapshots, shrinking and
 * emptying count, share and let go. For work past the metadata cache. Which
 * table the header names, and when what must be durable, is the caller's.
 */
#include <errno.h>

#include "qcow2-priv.h"

int qcow2_l1_read(struct cow_image *img, uint64_t off, uint64_t n, uint64_t **ret)
{
	uint64_t *l1 = cow_zalloc(cow_max(n, 1) * sizeof(*l1));
	int rc = l1 ? 0 : -ENOMEM;

	if (rc == 0 && n)
		rc = cow_img_pread(img, 0, l1, n * sizeof(*l1), off);
	if (rc) {
		cow_free(l1);
		return rc;
	}
	for (uint64_t i = 0; i < n; i++)
		l1[i] = be64toh(l1[i]);
	*ret = l1;
	return 0;
}

int qcow2_l1_write(struct cow_image *img, uint64_t off, const uint64_t *l1, uint64_t n, uint64_t room)
{
	uint64_t *be COW_CLEANUP_FREE = cow_zalloc(room);

	cow_assert(n * sizeof(*l1) <= room);
	if (!be)
		return -ENOMEM;
	for (uint64_t i = 0; i < n; i++)
		be[i] = htobe64(l1[i]);
	return cow_img_pwrite(img, 0, be, room, off);
}

/* The L2 table of an L1 entry. -EUCLEAN: it cannot be one. */
static int read_l2(struct cow_image *img, uint64_t l1_entry, uint8_t *l2)
{
	const struct qcow2 *q = img->priv;

	if (!qcow2_host_ok(q, l1_entry & QCOW2_OFFSET_MASK))
		return -EUCLEAN;
	return cow_img_pread(img, 0, l2, q->cluster, l1_entry & QCOW2_OFFSET_MASK);
}

static uint64_t entry_at(const struct qcow2 *q, const uint8_t *l2, uint64_t i)
{
	return cow_get_be64(l2 + i * q->entry_bytes);
}

/* The cluster of an entry that has one and can have a COPIED flag; else 0. */
static uint64_t plain_host(const struct qcow2 *q, uint64_t e)
{
	uint64_t host = e & QCOW2_OFFSET_MASK;

	return (e & QCOW2_COMPRESSED) || (host & (q->cluster - 1)) ? 0 : host;
}

/* ---- counting ---- */

struct count {
	struct qcow2_refedit *e;
	int delta;
	uint64_t done, limit;
};

/* 1: as many as were asked for. */
static int count_one(struct count *n, uint64_t cluster)
{
	int rc;

	if (n->done == n->limit)
		return 1;
	rc = qcow2_refedit_add(n->e, cluster, 1, n->delta);
	n->done += rc == 0;
	return rc;
}

/* The clusters that an L2 entry refers to. False: none that it could. */
static bool clusters_of(const struct qcow2 *q, uint64_t entry, struct qcow2_run *ret)
{
	uint64_t off = entry & QCOW2_OFFSET_MASK, bytes = off ? q->cluster : 0;

	*ret = (struct qcow2_run){ 0 };
	if (qcow2_external(q))
		return true;
	if (entry & QCOW2_COMPRESSED) {
		off = qcow2_cmp_off(q, entry);
		bytes = qcow2_cmp_bytes(q, entry);
		if (off == 0 || off > QCOW2_HOST_MAX - bytes)
			return false;
	} else if (off & (q->cluster - 1)) {
		return false;
	}
	ret->start = off >> q->cluster_bits;
	ret->count = bytes ? ((off + bytes - 1) >> q->cluster_bits) - ret->start + 1 : 0;
	for (uint64_t i = 0; i < ret->count; i++) {
		if (qcow2_set_has(&q->w.meta, ret->start + i))	/* metadata stays what it is */
			return false;
	}
	return true;
}

int qcow2_entry_runs(const struct qcow2 *q, uint64_t entry, struct qcow2_runs *to)
{
	struct qcow2_run r;

	if (!clusters_of(q, entry, &r) || r.count == 0)
		return 0;
	return qcow2_runs_add(to, r.start, r.count);
}

static int count_entry(struct count *n, const struct qcow2 *q, uint64_t entry)
{
	struct qcow2_run r;
	int rc = 0;

	if (!clusters_of(q, entry, &r))
		return n->delta > 0 ? -EUCLEAN : 0;
	for (uint64_t i = 0; i < r.count && rc == 0; i++)
		rc = count_one(n, r.start + i);
	return rc;
}

int qcow2_tree_ref(struct qcow2_refedit *e, const uint64_t *l1, uint64_t n, int delta, uint64_t *done)
{
	const struct qcow2 *q = e->img->priv;
	struct count count = { .e = e, .delta = delta, .limit = *done };
	uint8_t *l2 COW_CLEANUP_FREE = cow_zalloc(q->cluster);
	int rc = l2 ? 0 : -ENOMEM;

	for (uint64_t i = 0; i < n && rc == 0; i++) {
		if ((l1[i] & QCOW2_OFFSET_MASK) == 0)
			continue;
		rc = count_one(&count, (l1[i] & QCOW2_OFFSET_MASK) >> q->cluster_bits);
		if (rc == 0 && count.done < count.limit)
			rc = read_l2(e->img, l1[i], l2);
		for (uint64_t k = 0; k < 1ULL << q->l2_bits && rc == 0; k++)
			rc = count_entry(&count, q, entry_at(q, l2, k));
	}
	*done = count.done;
	return rc > 0 ? 0 : rc;
}

/* ---- flags ---- */

int qcow2_tree_share(struct cow_image *img, const uint64_t *l1, uint64_t n)
{
	const struct qcow2 *q = img->priv;
	uint8_t *l2 COW_CLEANUP_FREE = cow_zalloc(q->cluster);
	int rc = l2 ? 0 : -ENOMEM;

	for (uint64_t i = 0; i < n && rc == 0; i++) {
		bool changed = false;

		if ((l1[i] & QCOW2_OFFSET_MASK) == 0)
			continue;
		rc = read_l2(img, l1[i], l2);
		for (uint64_t k = 0; k < 1ULL << q->l2_bits && rc == 0; k++) {
			uint64_t e = entry_at(q, l2, k);

			if (!(e & QCOW2_COPIED) || (e & QCOW2_COMPRESSED))
				continue;
			cow_put_be64(l2 + k * q->entry_bytes, e & ~QCOW2_COPIED);
			changed = true;
		}
		if (rc == 0 && changed)
			rc = cow_img_pwrite(img, 0, l2, q->cluster, l1[i] & QCOW2_OFFSET_MASK);
	}
	return rc;
}

/* Is the flag of an entry for @host to be set? @other: for what the tree that goes has there. */
static int claims(struct qcow2_refedit *e, uint64_t entry, uint64_t host, uint64_t other, bool *ret)
{
	const struct qcow2 *q = e->img->priv;
	uint64_t refs = 0;
	int rc = 0;

	if (host && host == other && !(entry & QCOW2_COPIED))
		rc = qcow2_refedit_get(e, host >> q->cluster_bits, &refs);
	*ret = refs == 2;
	return rc;
}

/* The tables of one L1 entry in both trees. */
static int claim_table(struct qcow2_refedit *e, uint64_t mine, uint64_t theirs, uint8_t *a, uint8_t *b)
{
	const struct qcow2 *q = e->img->priv;
	bool changed = false, set;
	int rc = read_l2(e->img, mine, a);

	if (rc == 0)
		rc = read_l2(e->img, theirs, b);
	for (uint64_t k = 0; k < 1ULL << q->l2_bits && rc == 0; k++) {
		uint64_t entry = entry_at(q, a, k);

		rc = claims(e, entry, plain_host(q, entry), plain_host(q, entry_at(q, b, k)), &set);
		if (rc || !set)
			continue;
		cow_put_be64(a + k * q->entry_bytes, entry | QCOW2_COPIED);
		changed = true;
	}
	return rc || !changed ? rc : cow_img_pwrite(e->img, 0, a, q->cluster, mine & QCOW2_OFFSET_MASK);
}

int qcow2_tree_claim(struct qcow2_refedit *e, uint64_t *l1, uint64_t n, const uint64_t *other,
		     uint64_t other_n)
{
	const struct qcow2 *q = e->img->priv;
	uint8_t *a COW_CLEANUP_FREE = cow_zalloc(q->cluster);
	uint8_t *b COW_CLEANUP_FREE = cow_zalloc(q->cluster);
	int rc = a && b ? 0 : -ENOMEM;
	bool set;

	for (uint64_t i = 0; i < cow_min(n, other_n) && rc == 0; i++) {
		uint64_t mine = l1[i] & QCOW2_OFFSET_MASK, theirs = other[i] & QCOW2_OFFSET_MASK;

		if (!mine || !theirs)
			continue;
		rc = claim_table(e, mine, theirs, a, b);
		if (rc == 0)
			rc = claims(e, l1[i], mine, theirs, &set);
		if (rc == 0 && set)
			l1[i] |= QCOW2_COPIED;
	}
	return rc;
}

/* ---- letting go ---- */

int qcow2_tree_drop(struct cow_image *img, const uint64_t *l1, uint64_t n, const struct qcow2_runs *more)
{
	const struct qcow2 *q = img->priv;
	struct qcow2_runs freed = { 0 };
	struct qcow2_refedit e;
	uint64_t all = UINT64_MAX;
	int rc = qcow2_refedit_begin(&e, img, &freed), ended;

	if (rc == 0)
		rc = qcow2_tree_ref(&e, l1, n, -1, &all);
	for (size_t i = 0; i < more->n && rc == 0; i++)
		rc = qcow2_refedit_add(&e, more->v[i].start, more->v[i].count, -1);
	ended = qcow2_refedit_end(&e);
	rc = rc ? rc : ended;
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	for (size_t i = 0; i < freed.n && rc == 0; i++)
		rc = cow_img_punch(img, 0, freed.v[i].start << q->cluster_bits,
				   freed.v[i].count << q->cluster_bits);
	cow_free(freed.v);
	return rc;
}
