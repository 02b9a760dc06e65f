// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What an overlay does about its base: recording another one, or none, and forgetting
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
	if (committing && qcow2_external(q))
		return cow_err_set(err, -EOPNOTSUPP, "%s: has an external data file, and cannot be emptied by "
				   "a commit", img->path);
	if (!*backing->path)
		rc = qcow2_header_no_base(img, err);
	else if (strcmp(q->backing.path, backing->path) || strcmp(q->backing.format, backing->format))
		rc = qcow2_header_rebase(img, backing, err);
	img->backing = q->backing;
	return rc;
}

/*
 * The L1 table is emptied first: whichever of its entries a crash leaves, what they
 * show reads the same from the base. Then what it referred to is let go.
 */
static int empty(struct cow_image *img)
{
	static const struct qcow2_runs none;
	struct qcow2 *q = img->priv;
	uint64_t *l1 = NULL;
	int rc = qcow2_writer_settle(img);

	if (rc == 0)
		rc = qcow2_l1_read(img, q->l1_off, q->l1_size, &l1);
	if (rc == 0)
		rc = cow_img_punch(img, 0, q->l1_off, q->l1_size * sizeof(*l1));
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	if (rc == 0)
		rc = qcow2_tree_drop(img, l1, q->l1_size, &none);
	cow_free(l1);
	cow_img_drop_cache(img);
	return rc ? rc : qcow2_writer_reload(img, NULL);
}

int qcow2_make_empty(struct cow_image *img, struct cow_err *err)
{
	int rc = empty(img);

	return rc ? cow_err_sys(err, rc, "%s: cannot be emptied", img->path) : 0;
}
