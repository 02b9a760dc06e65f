// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Other options for an image that is there: its version, lazy refcounts, the width
 * of refcounts. Each is one step that a power cut leaves undone or done; what has to
 * be so that none is refused halfway is looked at first.
 */
#include <errno.h>

#include "qcow2-priv.h"

const struct cow_opt qcow2_amend_opts[] = {
	{ "compat", COW_OPT_STR, NULL, "version 3 (1.1 or v3) or 2 (0.10 or v2)" },
	{ "lazy_refcounts", COW_OPT_BOOL, NULL, "allow QEMU to write refcounts late" },
	{ "refcount_bits", COW_OPT_U64, NULL, "width of a refcount: 1, 2, 4, 8, 16, 32 or 64" },
	{ NULL, 0, NULL, NULL },
};

/* What the image is to be. */
struct amend {
	struct cow_image *img;
	struct qcow2 *q;
	unsigned version, order;
	bool lazy;
};

static int refuse(const struct amend *a, struct cow_err *err, const char *what)
{
	return cow_err_set(err, -EINVAL, "%s: %s", a->img->path, what);
}

static int plan(struct amend *a, const struct cow_args *args, struct cow_err *err)
{
	const struct qcow2 *q = a->q;
	const char *compat = cow_args_str(args, "compat", NULL);
	uint64_t bits = cow_args_size(args, "refcount_bits", 1u << q->refcount_order);

	a->version = compat ? qcow2_compat_version(compat) : q->version;
	if (a->version == 0)
		return refuse(a, err, "compat is neither 1.1 nor 0.10");
	if (!cow_is_pow2(bits) || bits > 64)
		return refuse(a, err, "refcount_bits is not 1, 2, 4, 8, 16, 32 or 64");
	a->order = (unsigned)__builtin_ctzll(bits);
	a->lazy = cow_args_bool(args, "lazy_refcounts", a->version >= 3 && (q->compat & QCOW2_COMPAT_LAZY));
	if (a->version < 3 && a->order != 4)
		return refuse(a, err, "compat=0.10 has refcounts of 16 bits: say refcount_bits=16, too");
	if (a->version < 3 && a->lazy)
		return refuse(a, err, "compat=0.10 has no lazy_refcounts");
	return 0;
}

/* ---- may it become version 2? ---- */

/* 1: the tables of @l1 have a cluster that only reads as zeroes. */
static int find_zero(struct cow_image *img, const uint64_t *l1, uint64_t n)
{
	const struct qcow2 *q = img->priv;
	uint8_t *l2 COW_CLEANUP_FREE = cow_zalloc(q->cluster);
	int rc = l2 ? 0 : -ENOMEM;

	for (uint64_t i = 0; i < n && rc == 0; i++) {
		uint64_t off = l1[i] & QCOW2_OFFSET_MASK;

		if (off == 0)
			continue;
		rc = qcow2_host_ok(q, off) ? cow_img_pread(img, 0, l2, q->cluster, off) : -EUCLEAN;
		for (uint64_t k = 0; k < 1ULL << q->l2_bits && rc == 0; k++) {
			uint64_t e = cow_get_be64(l2 + k * q->entry_bytes);

			rc = !(e & QCOW2_COMPRESSED) && (e & QCOW2_ZERO);
		}
	}
	return rc;
}

static int find_zero_below(struct cow_image *img, uint64_t l1_off, uint64_t l1_size)
{
	uint64_t *l1 = NULL;
	int rc = qcow2_l1_read(img, l1_off, l1_size, &l1);

	if (rc == 0)
		rc = find_zero(img, l1, l1_size);
	cow_free(l1);
	return rc;
}

static int find_zero_snapshot(void *opaque, const struct qcow2_snap *s)
{
	return find_zero_below(opaque, s->l1_off, s->l1_size);
}

/* The feature that version 2 does not have, for a sentence; NULL: none is in use. */
static const char *only_version_3(const struct qcow2 *q)
{
	if (q->extl2)
		return "subclusters";
	if (qcow2_external(q))
		return "an external data file";
	if (q->compression)
		return "clusters compressed by zstd";
	if (q->incompat & QCOW2_INCOMPAT_CORRUPT)
		return "the mark of a damaged image";
	if (q->nb_bitmaps)
		return "persistent bitmaps";
	return q->compat & ~QCOW2_COMPAT_LAZY ? "features that this program does not know" : NULL;
}

static int check_downgrade(const struct amend *a, struct cow_err *err)
{
	const struct qcow2 *q = a->q;
	const char *what = only_version_3(q);
	uint64_t bytes;
	int rc;

	if (what)
		return cow_err_set(err, -EOPNOTSUPP, "%s: has %s, which compat=0.10 does not have",
				   a->img->path, what);
	rc = find_zero_below(a->img, q->l1_off, q->l1_size);
	if (rc == 0)
		rc = qcow2_snapshots_walk(a->img, q, find_zero_snapshot, a->img, &bytes, err);
	if (rc == 1)
		return cow_err_set(err, -EOPNOTSUPP, "%s: has clusters that only read as zeroes, which "
				   "compat=0.10 does not have: convert it instead", a->img->path);
	return rc ? cow_err_sys(err, rc, "%s: its tables cannot be read", a->img->path) : 0;
}

/* ---- may it become version 3? ---- */

static int just_look(void *opaque, const struct qcow2_snap *s)
{
	(void)opaque;
	(void)s;
	return 0;
}

/* Entries of snapshots that old programs made are too short for it. */
static int check_upgrade(const struct amend *a, struct cow_err *err)
{
	struct qcow2 next = *a->q;
	uint64_t bytes;

	next.version = a->version;
	return qcow2_snapshots_walk(a->img, &next, just_look, NULL, &bytes, err);
}

/* ---- doing it ---- */

static int set_lazy(const struct amend *a, struct cow_err *err)
{
	struct qcow2 *q = a->q, next = *q;
	int rc = 0;

	next.compat = a->lazy ? q->compat | QCOW2_COMPAT_LAZY : q->compat & ~QCOW2_COMPAT_LAZY;
	if (next.compat != q->compat)
		rc = qcow2_header_update_sync(a->img, &next);
	if (rc)
		return cow_err_sys(err, rc, "%s: cannot change lazy_refcounts", a->img->path);
	q->compat = next.compat;
	return 0;
}

/* Version 3 comes first and version 2 last, for only the former has the rest. */
static int change(const struct amend *a, struct cow_err *err)
{
	struct qcow2 *q = a->q;
	int rc = 0;

	if (a->version > q->version)
		rc = qcow2_header_convert(a->img, a->version, err);
	if (rc == 0 && a->order != q->refcount_order)
		rc = qcow2_rewidth(a->img, a->order, err);
	if (rc == 0 && q->version >= 3)
		rc = set_lazy(a, err);
	if (rc == 0 && a->version < q->version)
		rc = qcow2_header_convert(a->img, a->version, err);
	return rc;
}

int qcow2_amend(struct cow_image *img, const struct cow_args *args, struct cow_err *err)
{
	struct amend a = { .img = img, .q = img->priv };
	int rc = plan(&a, args, err);

	if (rc == 0)
		rc = qcow2_begin_offline(img, err);
	if (rc == 0 && a.version < a.q->version)
		rc = check_downgrade(&a, err);
	if (rc == 0 && a.version > a.q->version)
		rc = check_upgrade(&a, err);
	if (rc == 0 && a.order != a.q->refcount_order)
		rc = qcow2_rewidth_check(img, a.order, err);
	if (rc)
		return rc;
	rc = qcow2_writer_settle(img);
	if (rc)
		return cow_err_sys(err, rc, "%s", img->path);
	rc = change(&a, err);
	cow_img_drop_cache(img);
	return rc;
}
