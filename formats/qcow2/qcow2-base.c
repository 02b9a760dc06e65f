// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What an overlay does about its base: recording another one, and forgetting
 * all data after that was written into the base. The format has no place for
 * the base's identity, nor for a mark that the base is changing.
 */
#include <errno.h>

#include "qcow2-priv.h"

int qcow2_rebase(struct cow_image *img, const struct cow_backing *backing,
		 const struct cow_identity *identity, bool committing, struct cow_err *err)
{
	struct qcow2 *q = img->priv;
	int rc = 0;

	(void)identity;
	(void)committing;
	if (strcmp(q->backing.path, backing->path) || strcmp(q->backing.format, backing->format))
		rc = qcow2_header_rebase(img, backing, err);
	img->backing = q->backing;
	return rc;
}

/* Lets go what the L2 table at @off refers to, and itself. */
static int drop_table(struct cow_image *img, uint64_t off, uint8_t *l2)
{
	struct qcow2 *q = img->priv;
	const struct qcow2_runs *r = &q->w.unref;
	int rc = cow_img_pread(img, 0, l2, q->cluster, off);

	for (uint64_t i = 0; i < 1ULL << q->l2_bits && rc == 0; i++)
		qcow2_unref_entry(q, cow_get_be64(l2 + i * q->entry_bytes));
	qcow2_unref(q, off >> q->cluster_bits, 1);
	for (size_t i = 0; i < r->n && rc == 0; i++) {
		/* Metadata that damaged entries point at stays. */
		for (uint64_t c = r->v[i].start; c < r->v[i].start + r->v[i].count && rc == 0; c++) {
			if (!qcow2_set_has(&q->w.meta, c) || c == off >> q->cluster_bits)
				rc = cow_img_punch(img, 0, c << q->cluster_bits, q->cluster);
		}
	}
	return rc ? rc : qcow2_unref_sync(img);
}

/*
 * The L1 table is emptied first: whichever of its entries a crash leaves, what they
 * show reads the same from the base. Then what it referred to is let go.
 */
static int empty(struct cow_image *img)
{
	struct qcow2 *q = img->priv;
	uint64_t bytes = (uint64_t)q->l1_size * 8;
	uint64_t *l1 COW_CLEANUP_FREE = cow_zalloc(bytes);
	uint8_t *l2 COW_CLEANUP_FREE = cow_zalloc(q->cluster);
	int rc = l1 && l2 ? qcow2_writer_settle(img) : -ENOMEM;

	if (rc == 0)
		rc = cow_img_pread(img, 0, l1, bytes, q->l1_off);
	if (rc == 0)
		rc = cow_img_punch(img, 0, q->l1_off, bytes);
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	for (uint64_t i = 0; i < q->l1_size && rc == 0; i++) {
		uint64_t off = be64toh(l1[i]) & QCOW2_OFFSET_MASK;

		if (off)
			rc = drop_table(img, off, l2);
	}
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	cow_img_drop_cache(img);
	return rc ? rc : qcow2_writer_load(img, NULL);
}

int qcow2_make_empty(struct cow_image *img, struct cow_err *err)
{
	const struct qcow2 *q = img->priv;
	int rc;

	if (q->nb_snapshots)
		return cow_err_set(err, -EOPNOTSUPP, "%s: has internal snapshots, and cannot be emptied",
				   img->path);
	rc = empty(img);
	return rc ? cow_err_sys(err, rc, "%s: cannot be emptied", img->path) : 0;
}
