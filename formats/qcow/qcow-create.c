// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Making a qcow image, and what changes the whole of one: growing it, emptying it
 * after a commit, recording another base. A new image is
 *
 *	header, name of the base | L1 table | space up to the first cluster
 *
 * with the L1 table at 4096. Whatever moves is written to a new place, made
 * durable, and then shown by one write of the header.
 */
#include <errno.h>

#include "qcow-priv.h"

#define SIZE_UNIT	512u	/* QEMU does not see the rest of an image of another size */
#define L1_OFF		4096u	/* before it: header, record, name, zeroes: 1607 bytes at most */
#define CLUSTER_DEFAULT	4096u
#define CLUSTER_OVERLAY	512u	/* see cow-qcow(5): QEMU does not carry over the rest of a cluster */
#define L2_BITS_SMALL	12u	/* as QEMU has it with clusters of 512 bytes */

const struct cow_opt qcow_create_opts[] = {
	{ "cluster_size", COW_OPT_SIZE, NULL,
	  "unit of allocation: a power of two, 512 to 64K (default: 4K, over a base 512)" },
	{ "encrypt.format", COW_OPT_STR, NULL, "aes: encrypt it, which protects little; see cow-qcow(5)" },
	COW_OPTS_KEY,
	{ NULL, 0, NULL, NULL },
};

static int create_geometry(struct cow_image *img, const struct cow_create *c, struct qcow *q,
			   struct cow_err *err)
{
	uint64_t cluster = cow_args_size(c->args, "cluster_size", c->backing ? CLUSTER_OVERLAY :
					 CLUSTER_DEFAULT);

	if (!cow_is_pow2(cluster) || cluster < 1u << QCOW_CLUSTER_BITS_MIN ||
	    cluster > 1u << QCOW_CLUSTER_BITS_MAX)
		return cow_err_set(err, -EINVAL, "%s: cluster_size is not a power of two between 512 "
				   "and 64K", img->path);
	if (strcmp(cow_args_str(c->args, "encrypt.format", "aes"), "aes"))
		return cow_err_set(err, -EINVAL, "%s: encrypt.format is not aes", img->path);
	q->encrypted = cow_args_str(c->args, "encrypt.format", NULL);
	q->cluster_bits = (unsigned)__builtin_ctzll(cluster);
	/* A table fills a cluster, or where those are small, some of them. */
	q->l2_bits = cluster < COW_META_BLOCK ? L2_BITS_SMALL : q->cluster_bits - 3;
	q->size = cow_round_up(cow_min(c->size, QCOW_SIZE_MAX + 1), SIZE_UNIT);
	qcow_derive(q);
	if (q->size > QCOW_SIZE_MAX || q->l1_n > QCOW_L1_MAX)
		return cow_err_set(err, -EFBIG, "%s: %llu bytes are more than clusters of this size "
				   "can hold", img->path, (unsigned long long)c->size);
	return 0;
}

/* Everything before the first cluster of a new image. */
static uint64_t head_bytes(const struct qcow *q)
{
	return cow_round_up(L1_OFF + q->l1_n * 8, cow_max(COW_META_BLOCK, q->cluster));
}

int qcow_measure(struct cow_image *img, const struct cow_create *c, struct cow_measure *ret,
		 struct cow_err *err)
{
	struct qcow *q = img->priv;
	int rc = create_geometry(img, c, q, err);

	if (rc)
		return rc;
	*ret = (struct cow_measure){ .tables = head_bytes(q) + q->l1_n * q->l2_bytes,
				     .unit = q->cluster };
	return 0;
}

int qcow_create(struct cow_image *img, const struct cow_create *c, struct cow_err *err)
{
	struct qcow *q = img->priv;
	uint8_t block[L1_OFF] = { 0 };
	uint64_t end;
	int rc = create_geometry(img, c, q, err);

	if (rc == 0)
		rc = cipher_key_given(img, q->encrypted, err);
	if (rc == 0 && q->encrypted)
		rc = cipher_library(img, err);
	if (rc)
		return rc;
	if (c->backing && strlen(c->backing->path) > QCOW_BACKING_MAX)
		return cow_err_set(err, -ENAMETOOLONG, "%s: the name of the base does not fit into the "
				   "header", img->path);
	if (c->backing) {
		if (!qcow_zero_make(q))
			return cow_err_sys(err, -ENOMEM, "%s", img->path);
		q->backing = *c->backing;
		q->backing_off = QCOW_H_BYTES + QCOW_RECORD_BYTES;
		q->backing_len = (uint32_t)strlen(c->backing->path);
	}
	q->l1_off = L1_OFF;
	end = head_bytes(q);
	if (cow_img_is_blkdev(img, 0) && cow_img_file_size(img, 0) < end)
		return cow_err_set(err, -ENOSPC, "%s: is too small for the tables of the image",
				   img->path);
	qcow_header_build(q, block);
	rc = cow_img_is_blkdev(img, 0) ? cow_img_punch(img, 0, 0, end) : cow_img_truncate(img, 0, end);
	if (rc == 0)
		rc = cow_img_pwrite(img, 0, block, sizeof(block), 0);
	return rc ? cow_err_sys(err, rc, "%s", img->path) : 0;
}

/* ---- growing ---- */

/* Enciphered ones: @virt of the disk is at @off of the file. */
static int write_zeroes(struct cow_image *img, uint64_t virt, uint64_t off, uint64_t len)
{
	uint8_t *buf COW_CLEANUP_FREE = cow_zalloc(len);
	struct cow_crypt c = { .encrypt = true, .virt = virt, .phys = off, .in = buf, .out = buf, .len = len };
	int rc = buf ? qcow_crypt(img, &c) : -ENOMEM;

	return rc ? rc : cow_img_pwrite(img, 0, buf, len, off);
}

/* Zeroes what the last cluster has behind the end, where it is stored as it is. */
static int clear_tail(struct cow_image *img)
{
	const struct qcow *q = img->priv;
	uint64_t from = q->size & (q->cluster - 1), last = q->size >> q->cluster_bits, l2, e, len;
	uint8_t p[8];
	int rc;

	if (from == 0)
		return 0;
	rc = cow_img_pread(img, 0, p, sizeof(p), q->l1_off + (last >> q->l2_bits) * 8);
	l2 = qcow_l1_get(q, p);
	if (rc || l2 == 0)
		return rc;
	if (!qcow_table_ok(q, l2))
		return -EIO;
	rc = cow_img_pread(img, 0, p, sizeof(p), l2 + (last & ((1ULL << q->l2_bits) - 1)) * 8);
	e = cow_get_be64(p);
	if (rc || e == 0 || (e & QCOW_COMPRESSED))
		return rc;
	if (!qcow_entry_place(q, e, &e, &len) || qcow_space_is_meta(q, e, len))
		return -EIO;
	len = q->cluster - from;
	rc = q->encrypted ? write_zeroes(img, q->size, e + from, len) : cow_img_punch(img, 0, e + from, len);
	return rc ? rc : cow_img_sync(img, 0);
}

/* All but the size in the header. */
static int grow(struct cow_image *img, const struct qcow *next)
{
	struct qcow *q = img->priv;
	struct qcow longer = *next;
	int rc = clear_tail(img);

	longer.size = q->size;
	if (rc == 0 && next->l1_n > q->l1_n)
		rc = qcow_move_l1(img, &longer);
	return rc;
}

int qcow_resize(struct cow_image *img, uint64_t size, struct cow_err *err)
{
	struct qcow *q = img->priv;
	struct qcow next = *q;
	int rc = 0;

	if (size < q->size)
		return cow_err_set(err, -EOPNOTSUPP, "%s: a qcow image cannot be made smaller by this "
				   "program", img->path);
	next.size = cow_round_up(cow_min(size, QCOW_SIZE_MAX + 1), SIZE_UNIT);
	qcow_derive(&next);
	if (next.size > QCOW_SIZE_MAX || next.l1_n > QCOW_L1_MAX)
		return cow_err_set(err, -EFBIG, "%s: %llu bytes are more than its clusters can hold",
				   img->path, (unsigned long long)size);
	if (next.size > q->size)
		rc = grow(img, &next);
	cow_img_drop_cache(img);
	img->size = img->below_limit = rc ? q->size : next.size;
	return rc ? cow_err_sys(err, rc, "%s: resize to %llu bytes", img->path,
				(unsigned long long)size) : 0;
}

int qcow_grown(struct cow_image *img, struct cow_err *err)
{
	struct qcow *q = img->priv, next = *q;
	int rc;

	next.size = img->size;
	rc = qcow_header_update(img, &next);
	if (rc)
		return cow_err_sys(err, rc, "%s: resize to %llu bytes", img->path,
				   (unsigned long long)img->size);
	q->size = next.size;
	return 0;
}

/* ---- the base ---- */

/*
 * The L1 table is emptied first: whichever of its entries a crash leaves, what they
 * show reads the same from the base. Then nothing refers to all that space.
 */
int qcow_make_empty(struct cow_image *img, struct cow_err *err)
{
	const struct qcow *q = img->priv;
	uint8_t *none COW_CLEANUP_FREE = cow_zalloc(COW_KIB(64));
	uint64_t bytes = q->l1_n * 8;
	struct cow_report rep = { 0 };
	int rc = none ? 0 : -ENOMEM;

	for (uint64_t at = 0; at < bytes && rc == 0; at += COW_KIB(64))
		rc = cow_img_pwrite(img, 0, none, cow_min(COW_KIB(64), bytes - at), q->l1_off + at);
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	cow_img_drop_cache(img);
	if (rc)
		return cow_err_sys(err, rc, "%s: cannot be emptied", img->path);
	return qcow_check(img, &rep, COW_CHECK_REPAIR, err);
}

static int forget_base(struct cow_image *img, struct cow_err *err)
{
	struct qcow *q = img->priv, next = *q;
	int rc;

	next.backing_off = next.backing_len = 0;
	memset(&next.backing, 0, sizeof(next.backing));
	next.has_record = false;
	rc = qcow_header_update(img, &next);
	if (rc)
		return cow_err_sys(err, rc, "%s: cannot record that it has no base", img->path);
	*q = next;
	img->backing = next.backing;
	return qcow_space_reload(img, err);
}

/*
 * The name goes to a new block at the end, and the L1 table behind it: QEMU, when it
 * empties an image, cuts the file off behind the L1 table. One write of the header
 * shows both.
 */
int qcow_rebase(struct cow_image *img, const struct cow_backing *backing,
		const struct cow_identity *identity, bool committing, struct cow_err *err)
{
	struct qcow *q = img->priv;
	uint8_t block[COW_META_BLOCK] = { 0 };
	struct qcow next;
	uint64_t off;
	int rc;

	(void)identity;
	(void)committing;
	if (!*backing->path)
		return forget_base(img, err);
	if (q->has_record && !strcmp(q->backing.path, backing->path) &&
	    !strcmp(q->backing.format, backing->format))
		return 0;
	if (strlen(backing->path) > QCOW_BACKING_MAX ||
	    !qcow_space_take(q, sizeof(block), 1, COW_META_BLOCK, &off))
		return cow_err_set(err, -ENOSPC, "%s: has no room for the name of this base",
				   img->path);
	if (!q->w.zero_len && !qcow_zero_make(q))
		return cow_err_sys(err, -ENOMEM, "%s", img->path);
	qcow_put_name(q, block, backing);
	next = *q;
	next.backing_off = off + QCOW_RECORD_BYTES;
	next.backing_len = (uint32_t)strlen(backing->path);
	next.backing = *backing;
	next.has_record = true;
	rc = cow_img_pwrite(img, 0, block, sizeof(block), off);
	if (rc == 0)
		rc = qcow_move_l1(img, &next);
	if (rc)
		return cow_err_sys(err, rc, "%s: cannot record the base", img->path);
	cow_img_drop_cache(img);
	img->backing = *backing;
	return qcow_space_reload(img, err);
}
