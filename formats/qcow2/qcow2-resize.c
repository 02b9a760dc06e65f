// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Another virtual size. The header's size is what counts: it is written when a
 * larger image has all it needs, zeroes over what its base has there included, and
 * before a smaller one loses anything, so an interrupted change leaves the one or
 * the other. What is behind the end then is let go afterwards, and, should that have
 * been interrupted, before the image grows again.
 */
#include <errno.h>

#include "qcow2-priv.h"

/* A cluster with the contents @data, durable; as data of the disk they belong to *@virt. */
static int new_cluster(struct cow_image *img, uint8_t *data, const uint64_t *virt, uint64_t *ret_off)
{
	const struct qcow2 *q = img->priv;
	uint64_t cluster;
	int rc = qcow2_alloc_sync(img, 1, &cluster);

	if (rc == 0 && virt)
		rc = qcow2_crypt_buffer(img, true, *virt, cluster << q->cluster_bits, data, q->cluster);
	if (rc == 0)
		rc = cow_img_pwrite(img, 0, data, q->cluster, cluster << q->cluster_bits);
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	if (rc == 0)
		*ret_off = cluster << q->cluster_bits;
	return rc;
}

static int write_u64(struct cow_image *img, uint64_t off, uint64_t value)
{
	uint8_t b[8];
	int rc;

	cow_put_be64(b, value);
	rc = cow_img_pwrite(img, 0, b, sizeof(b), off);
	return rc ? rc : cow_img_sync(img, 0);
}

/* ---- the last table and cluster ---- */

/* The L2 table that the end of the disk falls into, in memory. */
struct last {
	uint64_t l1_at;			/* place of its L1 entry */
	uint64_t l1_entry;		/* without a table: 0 */
	uint8_t *l2;			/* to be freed */
	uint64_t keep;			/* entries that belong to the disk */
	struct qcow2_runs gone;		/* clusters with a reference less; to be freed */
};

static int last_read(struct cow_image *img, struct last *t)
{
	const struct qcow2 *q = img->priv;
	uint64_t clusters = cow_div_up(q->size, q->cluster);
	uint8_t e[8];
	int rc;

	*t = (struct last){ .l1_at = q->l1_off + ((clusters - 1) >> q->l2_bits) * 8,
			    .keep = ((clusters - 1) & ((1ULL << q->l2_bits) - 1)) + 1 };
	rc = cow_img_pread(img, 0, e, sizeof(e), t->l1_at);
	if (rc)
		return rc;
	t->l1_entry = cow_get_be64(e);
	if ((t->l1_entry & QCOW2_OFFSET_MASK) == 0)
		return 0;
	t->l2 = cow_zalloc(q->cluster);
	if (!t->l2)
		return -ENOMEM;
	if (!qcow2_host_ok(q, t->l1_entry & QCOW2_OFFSET_MASK))
		return -EUCLEAN;
	return cow_img_pread(img, 0, t->l2, q->cluster, t->l1_entry & QCOW2_OFFSET_MASK);
}

/* The disk gets the table for itself, if a snapshot shares it. */
static int last_own(struct cow_image *img, struct last *t)
{
	const struct qcow2 *q = img->priv;
	uint64_t off, old = t->l1_entry & QCOW2_OFFSET_MASK;
	int rc;

	if (t->l1_entry & QCOW2_COPIED)
		return 0;
	rc = new_cluster(img, t->l2, NULL, &off);
	if (rc == 0)
		rc = write_u64(img, t->l1_at, off | QCOW2_COPIED);
	if (rc)
		return rc;
	t->l1_entry = off | QCOW2_COPIED;
	return qcow2_ref_add_sync(img, old >> q->cluster_bits, 1, -1);
}

/* What the last cluster, which is stored in any form, reads as. */
static int read_cluster(struct cow_image *img, uint64_t entry, uint8_t *out)
{
	const struct qcow2 *q = img->priv;
	uint64_t host = entry & QCOW2_OFFSET_MASK;
	struct cow_map map = { .src.len = qcow2_cmp_bytes(q, entry), .dst.phys = qcow2_cmp_off(q, entry) };
	uint8_t *raw COW_CLEANUP_FREE = NULL;
	int rc;

	if (!(entry & QCOW2_COMPRESSED)) {
		rc = cow_img_pread(img, 0, out, q->cluster, host);
		return rc ? rc : qcow2_crypt_buffer(img, false, cow_round_down(q->size, q->cluster), host,
						    out, q->cluster);
	}
	raw = cow_zalloc(map.src.len);
	rc = raw ? cow_img_pread(img, 0, raw, map.src.len, map.dst.phys) : -ENOMEM;
	return rc ? rc : qcow2_decode(img, &map, raw, out);
}

/* Entry @i, of the last cluster, gets one of its own, with the contents @data. */
static int replace_cluster(struct cow_image *img, struct last *t, uint64_t i, uint8_t *data)
{
	const struct qcow2 *q = img->priv;
	uint8_t *e = t->l2 + i * q->entry_bytes;
	uint64_t old = cow_get_be64(e), virt = cow_round_down(q->size, q->cluster), at, off;
	int rc = new_cluster(img, data, &virt, &off);

	if (rc == 0)
		rc = last_own(img, t);
	if (rc)
		return rc;
	at = (t->l1_entry & QCOW2_OFFSET_MASK) + i * q->entry_bytes;
	cow_put_be64(e, off | QCOW2_COPIED);
	if (q->extl2 && (old & QCOW2_COMPRESSED))
		cow_put_be64(e + 8, UINT32_MAX);
	rc = cow_img_pwrite(img, 0, e, q->entry_bytes, at);
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	return rc ? rc : qcow2_entry_runs(q, old, &t->gone);
}

/* The cluster at @host is the disk's own: its bytes from @from on become zeroes. */
static int clear_own(struct cow_image *img, uint64_t host, uint64_t from, uint8_t *buf)
{
	const struct qcow2 *q = img->priv;
	uint64_t len = q->cluster - from;
	int rc = q->crypt ? qcow2_crypt_buffer(img, true, q->size, host + from, buf, len) : 0;

	if (rc == 0)
		rc = q->crypt ? cow_img_pwrite(img, 0, buf, len, host + from) :
			cow_img_punch(img, 0, host + from, len);
	return rc ? rc : cow_img_sync(img, 0);
}

/* Bytes of the last cluster behind the end must be zeroes before they come into view. */
static int clear_tail(struct cow_image *img, struct last *t)
{
	const struct qcow2 *q = img->priv;
	uint64_t from = q->size & (q->cluster - 1), i = t->keep - 1;
	uint64_t e = t->l2 ? cow_get_be64(t->l2 + i * q->entry_bytes) : 0, host = e & QCOW2_OFFSET_MASK;
	uint8_t *data COW_CLEANUP_FREE = NULL;
	bool plain = !(e & QCOW2_COMPRESSED);
	int rc;

	if (from == 0 || qcow2_external(q) || (plain && (host == 0 || (!q->extl2 && (e & QCOW2_ZERO)))))
		return 0;
	if (plain && (!qcow2_host_ok(q, host) || qcow2_set_has(&q->w.meta, host >> q->cluster_bits)))
		return -EUCLEAN;
	data = cow_zalloc(q->cluster);
	if (data && plain && (e & QCOW2_COPIED))
		return clear_own(img, host, from, data);
	rc = data ? read_cluster(img, e, data) : -ENOMEM;
	if (rc || cow_is_zero(data + from, q->cluster - from))
		return rc;
	memset(data + from, 0, q->cluster - from);
	return replace_cluster(img, t, i, data);
}

/* ---- what lies behind the end ---- */

/* The data file, which then has nothing behind @size. */
static int fit_data_file(struct cow_image *img, uint64_t size)
{
	int rc;

	if (!qcow2_external(img->priv))
		return 0;
	rc = cow_img_truncate(img, 1, size);
	return rc ? rc : cow_img_sync(img, 1);
}

/* Entries of the last table behind the end: emptied; what they referred to is remembered. */
static int trim_table(struct cow_image *img, struct last *t)
{
	const struct qcow2 *q = img->priv;
	uint64_t all = 1ULL << q->l2_bits;
	int rc;

	if (!t->l2 || cow_is_zero(t->l2 + t->keep * q->entry_bytes, (all - t->keep) * q->entry_bytes))
		return 0;
	rc = last_own(img, t);
	for (uint64_t i = t->keep; i < all && rc == 0; i++)
		rc = qcow2_entry_runs(q, cow_get_be64(t->l2 + i * q->entry_bytes), &t->gone);
	if (rc)
		return rc;
	memset(t->l2 + t->keep * q->entry_bytes, 0, (all - t->keep) * q->entry_bytes);
	return cow_img_pwrite(img, 0, t->l2, q->cluster, t->l1_entry & QCOW2_OFFSET_MASK);
}

/* Everything behind the end of the disk, snapshots' share excepted. */
static int trim(struct cow_image *img)
{
	const struct qcow2 *q = img->priv;
	uint64_t keep = qcow2_l1_needed(q, q->size), n = q->l1_size - keep, at = q->l1_off + keep * 8;
	uint64_t *gone = NULL;
	struct last t;
	int rc = last_read(img, &t);

	if (rc == 0)
		rc = qcow2_l1_read(img, at, n, &gone);
	if (rc == 0)
		rc = trim_table(img, &t);
	if (rc == 0)
		rc = clear_tail(img, &t);
	if (rc == 0 && !cow_is_zero((const uint8_t *)gone, n * 8))
		rc = cow_img_punch(img, 0, at, n * 8);
	if (rc == 0)
		rc = fit_data_file(img, q->size);
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	if (rc == 0)
		rc = qcow2_tree_drop(img, gone, n, &t.gone);
	cow_free(gone);
	cow_free(t.gone.v);
	cow_free(t.l2);
	return rc;
}

/* ---- growing ---- */

/* A larger L1 table: written whole, then the header switches, then the old one is let go. */
static int grow_l1(struct cow_image *img, uint64_t need)
{
	struct qcow2 *q = img->priv;
	struct qcow2 next = *q;
	uint64_t old_n = cow_div_up((uint64_t)q->l1_size * 8, q->cluster), cluster;
	uint64_t n = cow_div_up(need * 8, q->cluster), *l1 = NULL;
	int rc;

	if (need <= q->l1_size)
		return 0;
	rc = qcow2_alloc_sync(img, n, &cluster);
	if (rc)
		return rc;
	next.l1_off = cluster << q->cluster_bits;
	next.l1_size = (uint32_t)need;
	rc = qcow2_l1_read(img, q->l1_off, q->l1_size, &l1);
	if (rc == 0)
		rc = qcow2_l1_write(img, next.l1_off, l1, q->l1_size, n << q->cluster_bits);
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	if (rc == 0)
		rc = qcow2_header_update_sync(img, &next);
	cow_free(l1);
	if (rc)
		return rc;
	rc = qcow2_ref_add_sync(img, q->l1_off >> q->cluster_bits, old_n, -1);
	q->l1_off = next.l1_off;
	q->l1_size = next.l1_size;
	return rc ? rc : cow_img_sync(img, 0);
}

static int set_size(struct cow_image *img, uint64_t size)
{
	struct qcow2 *q = img->priv;
	struct qcow2 next = *q;
	int rc;

	next.size = size;
	rc = qcow2_header_update_sync(img, &next);
	if (rc == 0)
		q->size = size;
	return rc;
}

static int change(struct cow_image *img, uint64_t size)
{
	struct qcow2 *q = img->priv;
	bool grows = size > q->size;
	int rc = qcow2_writer_settle(img), loaded;

	if (rc == 0)
		rc = qcow2_reftable_fit(img, size);
	if (rc == 0 && !grows)
		rc = set_size(img, size);
	if (rc == 0)
		rc = trim(img);
	if (rc == 0 && grows)
		rc = grow_l1(img, qcow2_l1_needed(q, size));
	if (rc == 0 && grows)
		rc = fit_data_file(img, size);
	cow_img_drop_cache(img);
	loaded = qcow2_writer_reload(img, NULL);
	return rc ? rc : loaded;
}

int qcow2_resize(struct cow_image *img, uint64_t size, struct cow_err *err)
{
	struct qcow2 *q = img->priv;
	int rc;

	if (q->nb_snapshots && q->version < 3)
		return cow_err_set(err, -EOPNOTSUPP, "%s: has internal snapshots, which do not record their "
				   "size in version 2: it cannot be resized", img->path);
	if (qcow2_external(q) && q->crypt)
		return cow_err_set(err, -EOPNOTSUPP, "%s: is encrypted and has a data file: it cannot be "
				   "resized", img->path);
	if (qcow2_external(q) && cow_img_is_blkdev(img, 1))
		return cow_err_set(err, -EOPNOTSUPP, "%s: its data file is a block device: it cannot be "
				   "resized", img->path);
	if (!qcow2_can_hold(q, size))
		return cow_err_set(err, -EFBIG, "%s: %llu bytes are more than its clusters can hold",
				   img->path, (unsigned long long)size);
	size = cow_round_up(size, QCOW2_SIZE_UNIT);
	rc = size != q->size ? qcow2_track_resize(img, size, change) : 0;
	/* A larger one is recorded by qcow2_grown(). */
	img->size = img->below_limit = rc ? q->size : size;
	return rc ? cow_err_sys(err, rc, "%s: resize to %llu bytes", img->path,
				(unsigned long long)size) : 0;
}

int qcow2_grown(struct cow_image *img, struct cow_err *err)
{
	int rc = set_size(img, img->size);

	if (rc == 0)
		qcow2_track_resized(img);
	return rc ? cow_err_sys(err, rc, "%s: resize to %llu bytes", img->path,
				(unsigned long long)img->size) : 0;
}
