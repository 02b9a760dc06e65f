// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Format "qcow": QEMU's first copy-on-write format, and that of old Xen. This
 * file: life cycle and registration. The layout is in qcow.h, the state and the
 * rules of writing in qcow-priv.h.
 */
#include <errno.h>
#include <stdio.h>

#include "qcow-priv.h"

static const struct cow_opt opts[] = {
	{ "backing_format", COW_OPT_STR, NULL, "format of the base, where the image does not say it" },
	COW_OPTS_KEY,
	{ NULL, 0, NULL, NULL },
};

static int qcow_probe(const uint8_t *head, size_t len, uint64_t file_size)
{
	(void)file_size;
	if (len < 8 || cow_get_be32(head) != QCOW_MAGIC)
		return 0;
	return cow_get_be32(head + QCOW_H_VERSION) == QCOW_VERSION ? 100 : 0;
}

/* What libcow sees of the header. */
static void publish(struct cow_image *img, const struct qcow *q)
{
	img->size = q->size;
	img->below_limit = q->size;
	img->granule = (uint32_t)q->cluster;
	img->block = (uint32_t)q->cluster;
	img->backing = q->backing;
	img->encrypted = q->encrypted;
	img->table_bytes = q->l1_n * (8 + q->l2_bytes) + 3 * COW_META_BLOCK;
}

static int use_option(struct cow_image *img, struct qcow *q, const char *format, struct cow_err *err)
{
	if (!format)
		return 0;
	if (!q->backing_off)
		return cow_err_set(err, -EINVAL, "%s: has no base, the option backing_format is of no use",
				   img->path);
	if (q->has_record && strcmp(format, q->backing.format))
		return cow_err_set(err, -EINVAL, "%s: says that the format of its base is %s", img->path,
				   q->backing.format);
	if (strlen(format) >= sizeof(q->backing.format))
		return cow_err_set(err, -EINVAL, "%s: '%.64s' is not a format", img->path, format);
	snprintf(q->backing.format, sizeof(q->backing.format), "%s", format);
	return 0;
}

static int check_writable(struct cow_image *img, const struct qcow *q, struct cow_err *err)
{
	if (q->l2_bits < QCOW_WRITE_L2_BITS_MIN)
		return cow_err_set(err, -EROFS, "%s: has L2 tables of %llu bytes; those below 4 KiB can "
				   "only be read", img->path, (unsigned long long)q->l2_bytes);
	if (img->open_flags & COW_OPEN_CHECK)
		return 0;
	return qcow_space_load(img, err);
}

static int qcow_open(struct cow_image *img, const struct cow_args *args, struct cow_err *err)
{
	struct qcow *q = img->priv;
	int rc = qcow_header_read(img, q, err);

	if (rc == 0)
		rc = use_option(img, q, cow_args_str(args, "backing_format", NULL), err);
	if (rc == 0)
		rc = cipher_key_given(img, q->encrypted, err);
	if (rc == 0 && q->encrypted)
		rc = cipher_new_legacy(img, &q->cipher, err);
	if (rc == 0 && (img->open_flags & COW_OPEN_WRITE))
		rc = check_writable(img, q, err);
	if (rc) {
		cipher_free(q->cipher);
		return rc;
	}
	publish(img, q);
	return 0;
}

static void qcow_close(struct cow_image *img)
{
	struct qcow *q = img->priv;

	cipher_free(q->cipher);
	qcow_space_free(q);
}

/* The format has no mark for a session. The L1 table gets its blocks of the cache for itself. */
static int qcow_begin(struct cow_image *img, uint64_t session)
{
	struct qcow *q = img->priv;

	(void)session;
	return q->w.loaded && q->w.l1_shared ? qcow_move_l1(img, q) : 0;
}

static int qcow_end(struct cow_image *img)
{
	return qcow_space_settle(img);
}

static void qcow_info(struct cow_image *img, struct cow_kv *kv)
{
	const struct qcow *q = img->priv;

	cow_kv_u64(kv, "cluster_size", q->cluster);
	cow_kv_u64(kv, "l2_entries", 1ULL << q->l2_bits);
	cow_kv_bool(kv, "xen_header", q->xen);
	cow_kv_str(kv, "l1_byte_order", q->l1_le ? "little" : "big");
	if (q->encrypted)
		cow_kv_str(kv, "encryption", "aes");
}

static struct cow_format qcow_format = {
	.name = "qcow",
	.desc = "QEMU's and Xen's copy-on-write format, version 1",
	.version = "1",
	.caps = COW_CAP_WRITE | COW_CAP_DISCARD | COW_CAP_RESIZE | COW_CAP_BACKING | COW_CAP_CREATE |
		COW_CAP_CHECK | COW_CAP_COMMIT | COW_CAP_REMAP,
	.priv_size = sizeof(struct qcow),
	.opts = opts,
	.create_opts = qcow_create_opts,
	.probe = qcow_probe,
	.open = qcow_open,
	.close = qcow_close,
	.map = qcow_map,
	.commit = qcow_commit,
	.begin = qcow_begin,
	.end = qcow_end,
	.create = qcow_create,
	.measure = qcow_measure,
	.resize = qcow_resize,
	.grown = qcow_grown,
	.check = qcow_check,
	.make_empty = qcow_make_empty,
	.rebase = qcow_rebase,
	.info = qcow_info,
	.decode = qcow_decode,
	.encode = qcow_encode,
	.put_encoded = qcow_put_encoded,
	.crypt = qcow_crypt,
};

COW_FORMAT_REGISTER(qcow_format)
