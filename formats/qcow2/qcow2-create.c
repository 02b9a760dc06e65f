// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Making a qcow2 image. A new one is
 *
 *	header | refcount table | refcount blocks | L1 table
 *
 * with a refcount table for all that the image can come to hold, so that it
 * need not move later unless the image grows or has snapshots.
 */
#include <errno.h>

#include "qcow2-priv.h"

#define CREATE_BITS_MIN 12u	/* smaller clusters share a block of the cache: they are only read */

const struct cow_opt qcow2_create_opts[] = {
	{ "cluster_size", COW_OPT_SIZE, "64K", "unit of allocation: a power of two, 4K to 2M" },
	{ "refcount_bits", COW_OPT_U64, "16", "width of a refcount: 1, 2, 4, 8, 16, 32 or 64" },
	{ "compat", COW_OPT_STR, "1.1", "version 3 (1.1 or v3) or 2 (0.10 or v2)" },
	{ "lazy_refcounts", COW_OPT_BOOL, "off", "allow QEMU to write refcounts late" },
	{ "extended_l2", COW_OPT_BOOL, "off", "32 subclusters in a cluster; clusters of 16K or more" },
	{ "compression_type", COW_OPT_STR, "zlib", "what clusters are compressed with: zlib or zstd" },
	{ "data_file", COW_OPT_STR, NULL, "keep the data in this file beside the image, which is made, too" },
	{ "data_file_raw", COW_OPT_BOOL, "off", "that file alone reads as the disk" },
	{ "preallocation", COW_OPT_STR, "off", "off" },
	{ "encrypt.format", COW_OPT_STR, NULL, "encrypt what the image holds: luks, or aes as old programs did" },
	{ "encrypt.cipher-alg", COW_OPT_STR, "aes-256", "of LUKS: aes-128, aes-192 or aes-256" },
	{ "encrypt.cipher-mode", COW_OPT_STR, "xts", "xts, cbc or ecb" },
	{ "encrypt.ivgen-alg", COW_OPT_STR, "plain64", "plain64, plain or essiv" },
	{ "encrypt.ivgen-hash-alg", COW_OPT_STR, NULL, "of essiv: sha256" },
	{ "encrypt.hash-alg", COW_OPT_STR, "sha256", "sha256, sha384, sha512, sha1 or ripemd160" },
	{ "encrypt.iter-time", COW_OPT_U64, "2000", "milliseconds that opening the image takes here" },
	COW_OPTS_KEY,
	{ NULL, 0, NULL, NULL },
};

static bool is(const char *s, const char *a, const char *b)
{
	return !strcmp(s, a) || !strcmp(s, b);
}

unsigned qcow2_compat_version(const char *text)
{
	return is(text, "1.1", "v3") ? 3 : is(text, "0.10", "v2") ? 2 : 0;
}

static int option_error(struct cow_image *img, struct cow_err *err, const char *what)
{
	return cow_err_set(err, -EINVAL, "%s: %s", img->path, what);
}

static int create_data_file(struct cow_image *img, const struct cow_args *args, struct qcow2 *q,
			    struct cow_err *err)
{
	const char *name = cow_args_str(args, "data_file", "");
	bool raw = cow_args_bool(args, "data_file_raw", false);

	if (raw && !*name)
		return option_error(img, err, "data_file_raw needs a data_file");
	if (strlen(name) > QCOW2_BACKING_MAX)
		return option_error(img, err, "the name of the data file is longer than 1023 bytes");
	if (!*name)
		return 0;
	strcpy(q->data_file, name);
	strcpy(img->data_file, name);
	q->incompat |= QCOW2_INCOMPAT_DATAFILE;
	if (raw)
		q->autoclear |= QCOW2_AUTOCLEAR_RAW;
	return 0;
}

static int create_features(struct cow_image *img, const struct cow_args *args, struct qcow2 *q,
			   struct cow_err *err)
{
	const char *compat = cow_args_str(args, "compat", "1.1");
	const char *type = cow_args_str(args, "compression_type", "zlib");
	int rc;

	q->version = qcow2_compat_version(compat);
	if (q->version == 0)
		return option_error(img, err, "compat is neither 1.1 nor 0.10");
	if (strcmp(cow_args_str(args, "preallocation", "off"), "off"))
		return option_error(img, err, "preallocation other than off is not supported");
	if (!is(type, "zlib", "zstd"))
		return option_error(img, err, "compression_type is neither zlib nor zstd");
	if (cow_args_bool(args, "lazy_refcounts", false))
		q->compat |= QCOW2_COMPAT_LAZY;
	if (cow_args_bool(args, "extended_l2", false))
		q->incompat |= QCOW2_INCOMPAT_EXTL2;
	if (!strcmp(type, "zstd")) {
		q->compression = 1;
		q->incompat |= QCOW2_INCOMPAT_COMPTYPE;
	}
	rc = create_data_file(img, args, q, err);
	if (rc)
		return rc;
	q->header_length = q->version < 3 ? QCOW2_H_V2_BYTES : QCOW2_H_BYTES;
	if (q->version < 3 && (q->compat || q->incompat || q->refcount_order != 4))
		return option_error(img, err, "compat=0.10 has neither lazy_refcounts, extended_l2, zstd, "
				    "data_file, nor refcounts of other than 16 bits");
	return 0;
}

static int create_geometry(struct cow_image *img, const struct cow_create *c, struct qcow2 *q,
			   struct luks_new *luks, struct cow_err *err)
{
	uint64_t cluster = cow_args_size(c->args, "cluster_size", COW_KIB(64));
	uint64_t bits = cow_args_size(c->args, "refcount_bits", 16);
	int rc;

	if (!cow_is_pow2(cluster) || cluster < 1u << CREATE_BITS_MIN ||
	    cluster > 1u << QCOW2_CLUSTER_BITS_MAX)
		return option_error(img, err, "cluster_size is not a power of two between 4K and 2M");
	if (!cow_is_pow2(bits) || bits > 64)
		return option_error(img, err, "refcount_bits is not 1, 2, 4, 8, 16, 32 or 64");
	q->cluster_bits = (unsigned)__builtin_ctzll(cluster);
	q->refcount_order = (unsigned)__builtin_ctzll(bits);
	rc = create_features(img, c->args, q, err);
	if (rc == 0)
		rc = qcow2_crypt_options(img, c->args, q, luks, err);
	if (rc)
		return rc;
	if (q->crypt && qcow2_external_raw(q))
		return option_error(img, err, "data_file_raw does not go with encryption");
	if (q->crypt == QCOW2_CRYPT_LUKS)
		q->luks_bytes = luks_bytes(luks);
	if ((q->incompat & QCOW2_INCOMPAT_EXTL2) && q->cluster_bits < QCOW2_EXTL2_BITS_MIN)
		return option_error(img, err, "extended_l2 needs clusters of 16K or more");
	qcow2_derive(q);
	if (!qcow2_can_hold(q, c->size))
		return cow_err_set(err, -EFBIG, "%s: %llu bytes are more than clusters of this size can "
				   "hold", img->path, (unsigned long long)c->size);
	q->size = cow_round_up(c->size, QCOW2_SIZE_UNIT);
	q->l1_size = (uint32_t)qcow2_l1_needed(q, q->size);
	return 0;
}

struct layout {
	uint64_t table, blocks, l1, luks;	/* clusters of each */
};

/* Everything that the image can come to hold decides on the table; what it has now, on the blocks. */
static int plan(struct cow_image *img, struct qcow2 *q, struct layout *lay, struct cow_err *err)
{
	uint64_t per = qcow2_ref_per_block(q), all, n = 0;

	lay->l1 = cow_div_up((uint64_t)q->l1_size * 8, q->cluster);
	lay->luks = cow_div_up(q->luks_bytes, q->cluster);
	all = cow_div_up(q->size, q->cluster) + q->l1_size + lay->l1 + lay->luks + 2;
	all += cow_div_up(all, per) + 1;
	lay->table = cow_div_up(cow_div_up(all, per) * 8 + 8, q->cluster);
	lay->table = cow_min(lay->table, QCOW2_REFTABLE_BYTES_MAX >> q->cluster_bits);
	do {
		lay->blocks = cow_max(n, 1);
		n = cow_div_up(1 + lay->table + lay->blocks + lay->l1 + lay->luks, per);
	} while (n > lay->blocks);
	q->reftable_off = q->cluster;
	q->reftable_clusters = (uint32_t)lay->table;
	q->l1_off = (1 + lay->table + lay->blocks) << q->cluster_bits;
	if (lay->luks)
		q->luks_off = q->l1_off + (lay->l1 << q->cluster_bits);
	if (cow_img_is_blkdev(img, 0) &&
	    cow_img_file_size(img, 0) < q->l1_off + ((lay->l1 + lay->luks) << q->cluster_bits))
		return cow_err_set(err, -ENOSPC, "%s: is too small for the tables of the image",
				   img->path);
	return 0;
}

/* The refcount of each cluster that a new image has is 1. */
static int write_refcounts(struct cow_image *img, const struct qcow2 *q, const struct layout *lay)
{
	uint64_t per = qcow2_ref_per_block(q), total = 1 + lay->table + lay->blocks + lay->l1 + lay->luks;
	uint8_t *block COW_CLEANUP_FREE = cow_zalloc(q->cluster);
	uint8_t entry[8];
	int rc = block ? 0 : -ENOMEM;

	for (uint64_t i = 0; i < lay->blocks && rc == 0; i++) {
		uint64_t n = cow_min(per, total - cow_min(total, i * per));
		uint64_t off = (1 + lay->table + i) << q->cluster_bits;

		memset(block, 0, q->cluster);
		for (uint64_t k = 0; k < n; k++)
			qcow2_ref_set(block, k, q->refcount_order, 1);
		rc = cow_img_pwrite(img, 0, block, q->cluster, off);
		cow_put_be64(entry, off);
		if (rc == 0)
			rc = cow_img_pwrite(img, 0, entry, sizeof(entry), q->reftable_off + i * 8);
	}
	return rc;
}

static int write_image(struct cow_image *img, const struct qcow2 *q, const struct layout *lay,
		       const struct luks_new *luks, struct cow_err *err)
{
	uint8_t *head COW_CLEANUP_FREE = cow_zalloc(q->cluster);
	uint64_t end = q->l1_off + ((lay->l1 + lay->luks) << q->cluster_bits);
	int rc = head ? qcow2_header_build(q, head) : -ENOMEM;

	if (rc == -ENAMETOOLONG)
		return cow_err_set(err, rc, "%s: the name of the base does not fit into the header",
				   img->path);
	if (rc == 0)
		rc = cow_img_is_blkdev(img, 0) ? cow_img_punch(img, 0, 0, end) :
			cow_img_truncate(img, 0, end);
	if (rc == 0)
		rc = write_refcounts(img, q, lay);
	if (rc == 0)
		rc = cow_img_pwrite(img, 0, head, q->cluster, 0);
	if (rc)
		return cow_err_sys(err, rc, "%s", img->path);
	return q->luks_off ? luks_create(img, luks, q->luks_off, err) : 0;
}

/* Everything that refers to data counts as if the image was full, as QEMU counts it. */
int qcow2_measure(struct cow_image *img, const struct cow_create *c, struct cow_measure *ret,
		  struct cow_err *err)
{
	struct qcow2 *q = img->priv;
	struct luks_new luks;
	struct layout lay;
	uint64_t fixed, all, per, refs = 0, n = 1;
	int rc = create_geometry(img, c, q, &luks, err);

	if (rc == 0)
		rc = plan(img, q, &lay, err);
	if (rc)
		return rc;
	per = qcow2_ref_per_block(q);
	fixed = 1 + lay.table + lay.l1 + lay.luks + q->l1_size;
	all = fixed + cow_div_up(q->size, q->cluster);
	while (n > refs) {
		refs = n;
		n = cow_div_up(all + refs, per);
	}
	*ret = (struct cow_measure){ .tables = (fixed + refs) << q->cluster_bits, .unit = q->cluster };
	return 0;
}

int qcow2_create(struct cow_image *img, const struct cow_create *c, struct cow_err *err)
{
	struct qcow2 *q = img->priv;
	struct luks_new luks;
	struct layout lay;
	int rc = create_geometry(img, c, q, &luks, err);

	if (rc == 0)
		rc = cipher_key_given(img, q->crypt, err);
	if (rc == 0 && q->crypt)
		rc = cipher_library(img, err);
	if (rc)
		return rc;
	if (c->backing && qcow2_external_raw(q))
		return option_error(img, err, "data_file_raw does not go with a base");
	if (c->backing)
		q->backing = *c->backing;
	img->size = q->size;
	rc = plan(img, q, &lay, err);
	return rc ? rc : write_image(img, q, &lay, &luks, err);
}
