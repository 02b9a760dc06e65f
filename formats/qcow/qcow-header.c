// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The qcow header on disk: decoding, every limit, encoding; Xen's extended
 * header; the name of the base and the record of its format.
 */
#include <errno.h>

#include "qcow-priv.h"

struct header {
	struct cow_image *img;
	struct qcow *q;
	uint8_t raw[QCOW_XEN_OFF + QCOW_XEN_BYTES];
	uint32_t crypt;
};

void qcow_derive(struct qcow *q)
{
	q->cluster = 1ULL << q->cluster_bits;
	q->l2_bytes = 8ULL << q->l2_bits;
	q->l1_n = cow_div_up(q->size, qcow_l1_span(q));
}

static void decode(struct header *h)
{
	const uint8_t *p = h->raw;
	struct qcow *q = h->q;

	q->backing_off = cow_get_be64(p + QCOW_H_BACKING_OFF);
	q->backing_len = cow_get_be32(p + QCOW_H_BACKING_LEN);
	q->size = cow_get_be64(p + QCOW_H_SIZE);
	q->cluster_bits = p[QCOW_H_CLUSTER_BITS];
	q->l2_bits = p[QCOW_H_L2_BITS];
	h->crypt = cow_get_be32(p + QCOW_H_CRYPT);
	q->l1_off = cow_get_be64(p + QCOW_H_L1_OFF);
	q->xen = q->l1_off % QCOW_XEN_L1_UNIT == 0 && cow_get_be32(p + QCOW_XEN_OFF) == QCOW_XEN_MAGIC;
	q->l1_le = q->xen && !(cow_get_be32(p + QCOW_XEN_FLAGS) & QCOW_XEN_L1_BE);
	if (q->backing_len == 0)	/* both other programs take that for no base */
		q->backing_off = 0;
}

/* The file as far as it has sectors: the last one may be cut off. */
static uint64_t file_end(const struct header *h)
{
	return cow_min(cow_round_up(cow_img_file_size(h->img, 0), QCOW_HOST_UNIT), QCOW_HOST_MAX);
}

static const char *bad_geometry(const struct header *h)
{
	const struct qcow *q = h->q;

	if (q->cluster_bits < QCOW_CLUSTER_BITS_MIN || q->cluster_bits > QCOW_CLUSTER_BITS_MAX)
		return "cluster size is not between 512 bytes and 64 KiB";
	if (q->l2_bits < QCOW_L2_BITS_MIN || q->l2_bits > QCOW_L2_BITS_MAX)
		return "number of entries of an L2 table is not between 64 and 8192";
	if (q->size < 2 || q->size > QCOW_SIZE_MAX)
		return "size is not between 2 bytes and 64 PiB";
	return NULL;
}

static const char *bad_places(const struct header *h)
{
	const struct qcow *q = h->q;
	uint64_t l1_bytes = q->l1_n * 8, end = file_end(h);

	if (q->l1_n > QCOW_L1_MAX)
		return "L1 table would be larger than 32 MiB";
	if (q->l1_off < QCOW_H_BYTES || q->l1_off % 8 || q->l1_off > end || l1_bytes > end - q->l1_off)
		return "L1 table is misplaced";
	if (q->backing_off == 0)
		return NULL;
	if (q->backing_len > QCOW_BACKING_MAX)
		return "name of the base is longer than 1023 bytes";
	if (q->backing_off < QCOW_H_BYTES || q->backing_off > end ||
	    q->backing_len > end - q->backing_off ||
	    qcow_overlap(q->backing_off, q->backing_len, q->l1_off, l1_bytes))
		return "name of the base is misplaced";
	return NULL;
}

static bool name_ok(const char *s)
{
	return s[strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789_")] == 0;
}

/* The record before the name of the base, if there is one. */
static int read_record(struct header *h, struct cow_err *err)
{
	struct qcow *q = h->q;
	uint8_t p[QCOW_RECORD_BYTES];
	uint64_t off = q->backing_off - QCOW_RECORD_BYTES;
	int rc;

	if (q->backing_off < QCOW_H_BYTES + QCOW_RECORD_BYTES ||
	    qcow_overlap(off, sizeof(p), q->l1_off, q->l1_n * 8))
		return 0;
	rc = cow_img_pread(h->img, 0, p, sizeof(p), off);
	if (rc)
		return cow_err_sys(err, rc, "%s", h->img->path);
	if (cow_get_be32(p) != QCOW_RECORD_MAGIC || cow_get_be32(p + 4))
		return 0;
	memcpy(q->backing.format, p + QCOW_RECORD_FORMAT, sizeof(q->backing.format));
	if (q->backing.format[sizeof(q->backing.format) - 1] || !name_ok(q->backing.format))
		return cow_err_set(err, -EINVAL, "%s: the format of its base is not a name",
				   h->img->path);
	q->has_record = q->backing.format[0];
	return 0;
}

static int read_name(struct header *h, struct cow_err *err)
{
	struct qcow *q = h->q;
	int rc;

	if (q->backing_off == 0)
		return 0;
	rc = cow_img_pread(h->img, 0, q->backing.path, q->backing_len, q->backing_off);
	if (rc)
		return cow_err_sys(err, rc, "%s", h->img->path);
	if (strlen(q->backing.path) != q->backing_len)
		return cow_err_set(err, -EINVAL, "%s: the name of its base is not a path",
				   h->img->path);
	return read_record(h, err);
}

int qcow_header_read(struct cow_image *img, struct qcow *q, struct cow_err *err)
{
	struct header h = { .img = img, .q = q };
	const char *bad;
	uint32_t version;
	int rc = cow_img_pread(img, 0, h.raw, sizeof(h.raw), 0);

	if (rc)
		return cow_err_sys(err, rc, "%s", img->path);
	memset(q, 0, sizeof(*q));
	if (cow_get_be32(h.raw) != QCOW_MAGIC)
		return cow_err_set(err, -EINVAL, "%s: is not a qcow image", img->path);
	version = cow_get_be32(h.raw + QCOW_H_VERSION);
	if (version == 2 || version == 3)
		return cow_err_set(err, -EINVAL, "%s: is an image of qcow version %u: its format is qcow2",
				   img->path, version);
	if (version != QCOW_VERSION)
		return cow_err_set(err, -ENOTSUP, "%s: is qcow version %u, which this program does not "
				   "know", img->path, version);
	decode(&h);
	bad = bad_geometry(&h);
	if (bad)
		return cow_err_set(err, -EINVAL, "%s: the %s", img->path, bad);
	if (h.crypt > QCOW_CRYPT_AES)
		return cow_err_set(err, -ENOTSUP, "%s: is encrypted by method %u, which this program does "
				   "not know", img->path, h.crypt);
	q->encrypted = h.crypt;
	qcow_derive(q);
	bad = bad_places(&h);
	if (bad)
		return cow_err_set(err, -EINVAL, "%s: the %s", img->path, bad);
	return read_name(&h, err);
}

static void encode(const struct qcow *q, uint8_t *p)
{
	cow_put_be64(p + QCOW_H_BACKING_OFF, q->backing_off);
	cow_put_be32(p + QCOW_H_BACKING_LEN, q->backing_len);
	cow_put_be64(p + QCOW_H_SIZE, q->size);
	cow_put_be64(p + QCOW_H_L1_OFF, q->l1_off);
}

int qcow_header_update(struct cow_image *img, const struct qcow *q)
{
	uint8_t p[QCOW_H_BYTES];	/* all in one sector: old or new */
	int rc = cow_img_pread(img, 0, p, sizeof(p), 0);

	if (rc)
		return rc;
	encode(q, p);
	rc = cow_img_pwrite(img, 0, p, sizeof(p), 0);
	return rc ? rc : cow_img_sync(img, 0);
}

void qcow_put_name(const struct qcow *q, uint8_t *p, const struct cow_backing *backing)
{
	size_t len = strlen(backing->path);

	memset(p, 0, QCOW_RECORD_BYTES);
	cow_put_be32(p, QCOW_RECORD_MAGIC);
	memcpy(p + QCOW_RECORD_FORMAT, backing->format, strlen(backing->format));
	memcpy(p + QCOW_RECORD_BYTES, backing->path, len);
	memcpy(p + QCOW_RECORD_BYTES + len, q->w.zero, q->w.zero_len);
}

void qcow_header_build(const struct qcow *q, uint8_t *block)
{
	cow_put_be32(block + QCOW_H_MAGIC, QCOW_MAGIC);
	cow_put_be32(block + QCOW_H_VERSION, QCOW_VERSION);
	encode(q, block);
	block[QCOW_H_CLUSTER_BITS] = (uint8_t)q->cluster_bits;
	block[QCOW_H_L2_BITS] = (uint8_t)q->l2_bits;
	cow_put_be32(block + QCOW_H_CRYPT, q->encrypted ? QCOW_CRYPT_AES : 0);
	if (q->backing_off)
		qcow_put_name(q, block + q->backing_off - QCOW_RECORD_BYTES, &q->backing);
}
