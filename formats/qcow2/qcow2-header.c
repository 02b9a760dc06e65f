// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The qcow2 header on disk: decoding, every limit, encoding. Its extensions
 * are walked here too; what an extension points at is read by others.
 */
#include <errno.h>
#include <stdio.h>

#include "qcow2-priv.h"

#define NAMED_FEATURES 8u	/* unknown features that a message names */
#define SECTOR 512u		/* a power cut leaves one as it was, or as it was to be */
#define SESSION_BYTES 8u	/* of the number of a session */
#define FORMAT_ROOM 8u		/* for the name of a format: all that there are fit in */

struct header {
	struct cow_image *img;
	struct qcow2 *q;
	uint8_t raw[QCOW2_H_BYTES];
	uint8_t *area;			/* the first cluster, as far as extensions reach */
	size_t area_bytes;
	uint32_t backing_len;
	uint32_t features_off, features_len;	/* the feature name table, in area */
	bool bitmaps_ext;
};

void qcow2_derive(struct qcow2 *q)
{
	q->cluster = 1ULL << q->cluster_bits;
	q->extl2 = q->incompat & QCOW2_INCOMPAT_EXTL2;
	q->entry_bytes = q->extl2 ? 16 : 8;
	q->l2_bits = q->cluster_bits - (q->extl2 ? 4 : 3);
	q->sub_bits = q->cluster_bits - (q->extl2 ? 5 : 0);
	q->cmp_shift = 62 - (q->cluster_bits - 8);
}

static void decode(struct header *h)
{
	const uint8_t *p = h->raw;
	struct qcow2 *q = h->q;

	q->version = cow_get_be32(p + QCOW2_H_VERSION);
	q->cluster_bits = cow_get_be32(p + QCOW2_H_CLUSTER_BITS);
	q->size = cow_get_be64(p + QCOW2_H_SIZE);
	q->crypt = cow_get_be32(p + QCOW2_H_CRYPT);
	q->backing_off = cow_get_be64(p + QCOW2_H_BACKING_OFF);
	h->backing_len = cow_get_be32(p + QCOW2_H_BACKING_LEN);
	q->l1_size = cow_get_be32(p + QCOW2_H_L1_SIZE);
	q->l1_off = cow_get_be64(p + QCOW2_H_L1_OFF);
	q->reftable_off = cow_get_be64(p + QCOW2_H_REFTABLE_OFF);
	q->reftable_clusters = cow_get_be32(p + QCOW2_H_REFTABLE_CLS);
	q->nb_snapshots = cow_get_be32(p + QCOW2_H_NB_SNAPSHOTS);
	q->snapshots_off = cow_get_be64(p + QCOW2_H_SNAPSHOTS_OFF);
	q->refcount_order = 4;
	q->header_length = QCOW2_H_V2_BYTES;
	if (q->version < 3)
		return;
	q->incompat = cow_get_be64(p + QCOW2_H_INCOMPAT);
	q->compat = cow_get_be64(p + QCOW2_H_COMPAT);
	q->autoclear = cow_get_be64(p + QCOW2_H_AUTOCLEAR);
	q->refcount_order = cow_get_be32(p + QCOW2_H_REFCOUNT_ORDER);
	q->header_length = cow_get_be32(p + QCOW2_H_LENGTH);
	if (q->header_length > QCOW2_H_COMPRESSION)
		q->compression = p[QCOW2_H_COMPRESSION];
}

/* What has to hold before anything else of the header can be used. */
static const char *bad_geometry(const struct header *h)
{
	const struct qcow2 *q = h->q;

	if (q->cluster_bits < QCOW2_CLUSTER_BITS_MIN || q->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
		return "cluster size is not between 512 bytes and 2 MiB";
	if (q->version >= 3 &&
	    (q->header_length < QCOW2_H_V3_BYTES || q->header_length % 8 ||
	     q->header_length > 1ULL << q->cluster_bits))
		return "header length is not possible";
	if (q->refcount_order > QCOW2_REFCOUNT_ORDER_MAX)
		return "refcounts are wider than 64 bits";
	if (q->backing_off == 0)
		return NULL;
	if (h->backing_len > QCOW2_BACKING_MAX)
		return "name of the base is longer than 1023 bytes";
	if (q->backing_off < q->header_length ||
	    q->backing_off > (1ULL << q->cluster_bits) - h->backing_len)
		return "name of the base lies outside of the first cluster";
	return NULL;
}

/* Appends the names of unknown features (from the table in the image) to @text. */
static void name_features(const struct header *h, uint64_t unknown, char *text, size_t len)
{
	const uint8_t *e = h->area + h->features_off;
	unsigned n = 0;

	for (unsigned bit = 0; bit < 64 && n < NAMED_FEATURES; bit++) {
		char name[QCOW2_FEATURE_BYTES - 1] = "";
		size_t used = strlen(text);

		if (!(unknown >> bit & 1))
			continue;
		for (uint32_t at = 0; at + QCOW2_FEATURE_BYTES <= h->features_len;
		     at += QCOW2_FEATURE_BYTES) {
			if (e[at] == 0 && e[at + 1] == bit)
				memcpy(name, e + at + 2, QCOW2_FEATURE_BYTES - 2);
		}
		for (char *c = name; *c; c++)
			*c = *c < ' ' || *c > '~' ? '?' : *c;
		if (name[0])
			snprintf(text + used, len - used, "%s%s", n ? ", " : "", name);
		else
			snprintf(text + used, len - used, "%sbit %u", n ? ", " : "", bit);
		n++;
	}
}

static int check_features(struct header *h, struct cow_err *err)
{
	const struct qcow2 *q = h->q;
	uint64_t unknown = q->incompat & ~QCOW2_INCOMPAT_KNOWN;
	char names[NAMED_FEATURES * 64] = "";

	if (unknown) {
		name_features(h, unknown, names, sizeof(names));
		return cow_err_set(err, -ENOTSUP, "%s: uses features that this program does not "
				   "know: %s", h->img->path, names);
	}
	if (q->crypt > QCOW2_CRYPT_LUKS)
		return cow_err_set(err, -ENOTSUP, "%s: is encrypted by method %u, which this program does "
				   "not know", h->img->path, q->crypt);
	if (!q->luks_off != (q->crypt != QCOW2_CRYPT_LUKS))
		return cow_err_set(err, -EINVAL, "%s: has %s", h->img->path, q->luks_off ?
				   "a LUKS header, and is not encrypted by LUKS" : "no LUKS header, which "
				   "its encryption needs");
	if (qcow2_external(q) && !q->data_file[0])
		return cow_err_set(err, -EINVAL, "%s: keeps its data in an external data file, "
				   "which it does not name", h->img->path);
	if (qcow2_external(q) && q->nb_snapshots)
		return cow_err_set(err, -EINVAL, "%s: has both an external data file and snapshots",
				   h->img->path);
	if (qcow2_external_raw(q) && q->backing_off)
		return cow_err_set(err, -EINVAL, "%s: has both a raw external data file and a base",
				   h->img->path);
	if (!!(q->incompat & QCOW2_INCOMPAT_COMPTYPE) != !!q->compression || q->compression > 1)
		return cow_err_set(err, -EINVAL, "%s: the compression type %u is unknown, or does not "
				   "fit the feature bits", h->img->path, q->compression);
	if ((q->incompat & QCOW2_INCOMPAT_EXTL2) && q->cluster_bits < QCOW2_EXTL2_BITS_MIN)
		return cow_err_set(err, -EINVAL, "%s: subclusters need clusters of 16 KiB or more",
				   h->img->path);
	return 0;
}

/* [@off, @off + @bytes) as whole clusters: may it be a table? */
static bool place_ok(const struct qcow2 *q, uint64_t off, uint64_t bytes)
{
	uint64_t end;

	return qcow2_host_ok(q, off) && cow_add_ok(off, bytes, &end) && end <= QCOW2_HOST_MAX;
}

static bool overlap(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
	return a < b + b_bytes && b < a + a_bytes;
}

static const char *bad_tables(const struct header *h)
{
	const struct qcow2 *q = h->q;
	uint64_t l1_bytes = (uint64_t)q->l1_size * 8;
	uint64_t ref_bytes = (uint64_t)q->reftable_clusters << q->cluster_bits;
	uint64_t file = cow_round_up(cow_img_file_size(h->img, 0), q->cluster);

	if (q->size == 0 || q->size > QCOW2_HOST_MAX)
		return "size is not between 1 byte and 64 PiB";
	if (l1_bytes > QCOW2_L1_BYTES_MAX)
		return "L1 table is larger than 32 MiB";
	if (q->l1_size < qcow2_l1_needed(q, q->size))
		return "L1 table is too small for the size";
	if (!place_ok(q, q->l1_off, l1_bytes) || q->l1_off >= file)
		return "L1 table is misplaced";
	if (q->reftable_clusters == 0 || ref_bytes > QCOW2_REFTABLE_BYTES_MAX)
		return "refcount table is empty or larger than 8 MiB";
	if (!place_ok(q, q->reftable_off, ref_bytes) || q->reftable_off >= file)
		return "refcount table is misplaced";
	if (overlap(q->l1_off, l1_bytes, q->reftable_off, ref_bytes))
		return "L1 table and the refcount table overlap";
	if (q->nb_snapshots > QCOW2_SNAPSHOTS_MAX)
		return "number of snapshots is above 65536";
	if (q->nb_snapshots && (!place_ok(q, q->snapshots_off, QCOW2_SNAP_BYTES) ||
				q->snapshots_off >= file))
		return "snapshot table is misplaced";
	if (q->nb_snapshots && (overlap(q->snapshots_off, 1, q->l1_off, l1_bytes) ||
				overlap(q->snapshots_off, 1, q->reftable_off, ref_bytes)))
		return "snapshot table overlaps another table";
	if (q->luks_off && (q->luks_bytes > QCOW2_LUKS_MAX || !place_ok(q, q->luks_off, q->luks_bytes) ||
			    q->luks_off >= file))
		return "LUKS header is misplaced";
	if (q->luks_off && (overlap(q->luks_off, q->luks_bytes, q->l1_off, l1_bytes) ||
			    overlap(q->luks_off, q->luks_bytes, q->reftable_off, ref_bytes)))
		return "LUKS header overlaps a table";
	return NULL;
}

static int take_bitmaps(struct header *h, const uint8_t *data, uint32_t len, struct cow_err *err)
{
	struct qcow2 *q = h->q;
	const char *bad = NULL;

	if (h->bitmaps_ext || len != QCOW2_EXT_BITMAPS_BYTES)
		bad = "bitmaps extension is doubled or has a wrong length";
	h->bitmaps_ext = true;
	if (!bad) {
		q->nb_bitmaps = cow_get_be32(data);
		q->bitmapdir_bytes = cow_get_be64(data + 8);
		q->bitmapdir_off = cow_get_be64(data + 16);
		if (q->nb_bitmaps == 0 || q->nb_bitmaps > QCOW2_BITMAPS_MAX)
			bad = "number of bitmaps is not between 1 and 65535";
		else if (q->bitmapdir_bytes == 0 || q->bitmapdir_bytes > QCOW2_BITMAPDIR_MAX ||
			 !place_ok(q, q->bitmapdir_off, q->bitmapdir_bytes))
			bad = "bitmap directory is misplaced";
	}
	/* Without the autoclear bit it means nothing, however it looks. */
	if (bad && (q->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return cow_err_set(err, -EINVAL, "%s: the %s", h->img->path, bad);
	if (bad || !(q->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		q->nb_bitmaps = 0;
	return 0;
}

static bool name_ok(const char *s)
{
	return s[strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789_")] == 0;
}

static int take_extension(struct header *h, uint32_t type, const uint8_t *data, uint32_t len,
			  struct cow_err *err)
{
	struct cow_backing *b = &h->q->backing;

	switch (type) {
	case QCOW2_EXT_BACKING_FMT:
		if (len >= sizeof(b->format))
			return cow_err_set(err, -EINVAL, "%s: the format name of its base is too long",
					   h->img->path);
		memset(b->format, 0, sizeof(b->format));
		memcpy(b->format, data, len);
		if (strlen(b->format) != len || !name_ok(b->format))
			return cow_err_set(err, -EINVAL, "%s: the format of its base is not a name",
					   h->img->path);
		return 0;
	case QCOW2_EXT_FEATURES:
		h->features_off = (uint32_t)(data - h->area);
		h->features_len = len;
		return 0;
	case QCOW2_EXT_DATA_FILE:
		if (len > QCOW2_BACKING_MAX)
			return cow_err_set(err, -EINVAL, "%s: the name of its data file is longer than 1023 "
					   "bytes", h->img->path);
		memset(h->q->data_file, 0, sizeof(h->q->data_file));
		memcpy(h->q->data_file, data, len);
		if (strlen(h->q->data_file) != len)
			return cow_err_set(err, -EINVAL, "%s: the name of its data file is not a path",
					   h->img->path);
		return 0;
	case QCOW2_EXT_SESSION:
		if (len == SESSION_BYTES) {
			h->q->session_off = (uint64_t)(data - h->area);
			h->q->session = cow_get_be64(data);
		}
		return 0;
	case QCOW2_EXT_LUKS:
		h->q->luks_off = len == 16 ? cow_get_be64(data) : 0;
		h->q->luks_bytes = len == 16 ? cow_get_be64(data + 8) : 0;
		return 0;
	case QCOW2_EXT_BITMAPS:
		return take_bitmaps(h, data, len, err);
	default:
		return 0;	/* unknown ones are to be kept, and are: nothing here moves them */
	}
}

static int walk_extensions(struct header *h, struct cow_err *err)
{
	uint64_t at = h->q->header_length, end = h->area_bytes;

	while (at + 8 <= end) {
		uint32_t type = cow_get_be32(h->area + at), len = cow_get_be32(h->area + at + 4);
		int rc;

		if (type == QCOW2_EXT_END) {
			h->q->end_at = at;
			h->q->ext_end = at + 8;
			return 0;
		}
		if (type == QCOW2_EXT_BACKING_FMT)
			h->q->format_off = at;
		if (type == QCOW2_EXT_FREE && len == FORMAT_ROOM)
			h->q->format_room_at = at;
		if ((type == QCOW2_EXT_BITMAPS || type == QCOW2_EXT_FREE) && len == QCOW2_EXT_BITMAPS_BYTES)
			h->q->bitmaps_at = at;
		at += 8;
		if (len > end - at)
			return cow_err_set(err, -EINVAL, "%s: a header extension reaches behind the "
					   "header", h->img->path);
		rc = take_extension(h, type, h->area + at, len, err);
		if (rc)
			return rc;
		at += cow_round_up(len, 8);
	}
	h->q->ext_end = cow_min(at, end);
	return 0;
}

/* What stands between the header's fields and the end of the first cluster. */
static int read_area(struct header *h, struct cow_err *err)
{
	struct qcow2 *q = h->q;
	char *path = q->backing.path;
	int rc;

	h->area = cow_zalloc(q->cluster);
	if (!h->area)
		return cow_err_sys(err, -ENOMEM, "%s", h->img->path);
	rc = cow_img_pread(h->img, 0, h->area, q->cluster, 0);
	if (rc)
		return cow_err_sys(err, rc, "%s", h->img->path);
	h->area_bytes = q->backing_off ? q->backing_off : q->cluster;
	rc = walk_extensions(h, err);
	if (rc || q->backing_off == 0)
		return rc;
	memcpy(path, h->area + q->backing_off, h->backing_len);
	if (h->backing_len == 0 || strlen(path) != h->backing_len)
		return cow_err_set(err, -EINVAL, "%s: the name of its base is not a path", h->img->path);
	return 0;
}

static int check(struct header *h, struct cow_err *err)
{
	struct qcow2 *q = h->q;
	const char *bad = bad_geometry(h);
	int rc;

	if (bad)
		return cow_err_set(err, -EINVAL, "%s: the %s", h->img->path, bad);
	qcow2_derive(q);
	rc = read_area(h, err);
	if (rc == 0)
		rc = check_features(h, err);
	if (rc)
		return rc;
	bad = bad_tables(h);
	return bad ? cow_err_set(err, -EINVAL, "%s: the %s", h->img->path, bad) : 0;
}

int qcow2_header_read(struct cow_image *img, struct qcow2 *q, struct cow_err *err)
{
	struct header h = { .img = img, .q = q };
	int rc = cow_img_pread(img, 0, h.raw, sizeof(h.raw), 0);

	if (rc)
		return cow_err_sys(err, rc, "%s", img->path);
	memset(q, 0, sizeof(*q));
	if (cow_get_be32(h.raw) != QCOW2_MAGIC)
		return cow_err_set(err, -EINVAL, "%s: is not a qcow2 image", img->path);
	decode(&h);
	if (q->version != 2 && q->version != 3)
		return cow_err_set(err, -ENOTSUP, "%s: is qcow version %u, this program knows qcow2 "
				   "versions 2 and 3", img->path, q->version);
	rc = check(&h, err);
	cow_free(h.area);
	return rc;
}

static void encode(const struct qcow2 *q, uint8_t *p)
{
	cow_put_be64(p + QCOW2_H_SIZE, q->size);
	cow_put_be32(p + QCOW2_H_L1_SIZE, q->l1_size);
	cow_put_be64(p + QCOW2_H_L1_OFF, q->l1_off);
	cow_put_be64(p + QCOW2_H_REFTABLE_OFF, q->reftable_off);
	cow_put_be32(p + QCOW2_H_REFTABLE_CLS, q->reftable_clusters);
	cow_put_be32(p + QCOW2_H_NB_SNAPSHOTS, q->nb_snapshots);
	cow_put_be64(p + QCOW2_H_SNAPSHOTS_OFF, q->snapshots_off);
	if (q->version < 3)
		return;
	cow_put_be64(p + QCOW2_H_INCOMPAT, q->incompat);
	cow_put_be64(p + QCOW2_H_COMPAT, q->compat);
	cow_put_be64(p + QCOW2_H_AUTOCLEAR, q->autoclear);
	cow_put_be32(p + QCOW2_H_REFCOUNT_ORDER, q->refcount_order);
}

int qcow2_header_update(struct cow_image *img, const struct qcow2 *q)
{
	uint8_t p[QCOW2_H_V3_BYTES];
	size_t bytes = q->version < 3 ? QCOW2_H_V2_BYTES : QCOW2_H_V3_BYTES;
	int rc = cow_img_pread(img, 0, p, bytes, 0);

	if (rc)
		return rc;
	encode(q, p);
	return cow_img_pwrite(img, 0, p, bytes, 0);
}

int qcow2_header_update_sync(struct cow_image *img, const struct qcow2 *q)
{
	int rc = qcow2_header_update(img, q);

	return rc ? rc : cow_img_sync(img, 0);
}

/* ---- room for extensions ---- */

static int write_sync(struct cow_image *img, const void *p, size_t len, uint64_t off)
{
	int rc = cow_img_pwrite(img, 0, p, len, off);

	return rc ? rc : cow_img_sync(img, 0);
}

/* Where the name of the base, if it has one, stands with @bytes more of extensions; 0: they have no room. */
static uint64_t name_beside(const struct qcow2 *q, uint64_t bytes)
{
	uint64_t end = q->ext_end + bytes, at = q->backing_off;
	size_t len = strlen(q->backing.path);

	if (end > at)
		at = cow_max(end, at + len);
	return q->end_at && at + len <= q->cluster ? at : 0;
}

/* The name of the base goes where it leaves room for @bytes more of extensions. */
static int move_name(struct cow_image *img, uint64_t bytes)
{
	struct qcow2 *q = img->priv;
	size_t len = strlen(q->backing.path);
	uint64_t at = name_beside(q, bytes);
	uint8_t p[8];
	int rc;

	if (q->backing_off == 0 || q->backing_off == at)
		return 0;
	rc = write_sync(img, q->backing.path, len, at);
	cow_put_be64(p, at);
	if (rc == 0)
		rc = write_sync(img, p, sizeof(p), QCOW2_H_BACKING_OFF);
	if (rc == 0)
		q->backing_off = at;
	return rc;
}

/*
 * Adds an extension of @len bytes, at most QCOW2_EXT_BITMAPS_BYTES. What is behind the mark of the end
 * is written before the mark becomes an extension. -ENOSPC: no room.
 */
static int add_extension(struct cow_image *img, uint32_t type, const void *data, uint32_t len,
			 uint64_t *ret_at)
{
	struct qcow2 *q = img->priv;
	uint8_t body[QCOW2_EXT_BITMAPS_BYTES + 8] = { 0 }, head[8];
	size_t bytes = cow_round_up(len, 8) + 8;	/* and the new mark */
	uint64_t at = q->end_at;
	int rc;

	if (bytes > sizeof(body) || !name_beside(q, bytes))
		return -ENOSPC;
	memcpy(body, data, len);
	rc = move_name(img, bytes);
	if (rc == 0)
		rc = write_sync(img, body, bytes, at + sizeof(head));
	cow_put_be32(head, type);
	cow_put_be32(head + 4, len);
	if (rc == 0)
		rc = write_sync(img, head, sizeof(head), at);
	if (rc)
		return rc;
	*ret_at = at;
	q->end_at += bytes;
	q->ext_end += bytes;
	return 0;
}

/* ---- the number of a session ---- */

bool qcow2_header_session_fits(const struct qcow2 *q)
{
	return q->session_off || (q->version >= 3 && name_beside(q, SESSION_BYTES + 8));
}

int qcow2_header_session_room(struct cow_image *img)
{
	static const uint8_t none[SESSION_BYTES];
	struct qcow2 *q = img->priv;
	uint64_t at;
	int rc = add_extension(img, QCOW2_EXT_SESSION, none, sizeof(none), &at);

	if (rc == 0)
		q->session_off = at + 8;
	return rc;
}

int qcow2_header_session(struct cow_image *img, const struct qcow2 *q, uint64_t session)
{
	uint8_t p[SESSION_BYTES];

	cow_put_be64(p, session);
	return cow_img_pwrite(img, 0, p, sizeof(p), q->session_off);
}

/* ---- another base ---- */

/* A place for a name of @len bytes that does not touch the old one; 0: none. */
static uint64_t place_for_name(const struct qcow2 *q, size_t len)
{
	uint64_t old_end = q->backing_off + strlen(q->backing.path);

	if (q->backing_off == 0 || q->ext_end + len <= q->backing_off)
		return q->ext_end + len <= q->cluster ? q->ext_end : 0;
	return old_end + len <= q->cluster ? old_end : 0;
}

/* Where the name of the format will be: in the extension that has it, if it fits in there. */
static int place_for_format(struct cow_image *img, const char *format, uint64_t *ret_at)
{
	struct qcow2 *q = img->priv;
	uint32_t len = (uint32_t)strlen(format);
	char padded[FORMAT_ROOM] = "";

	*ret_at = q->format_off;
	if (q->format_off && cow_round_up(len, 8) == cow_round_up(strlen(q->backing.format), 8))
		return 0;
	*ret_at = q->format_room_at;
	if (q->format_room_at && len <= FORMAT_ROOM) {
		memcpy(padded, format, len);
		return cow_img_pwrite(img, 0, padded, sizeof(padded), q->format_room_at + 8);
	}
	return add_extension(img, QCOW2_EXT_FREE, format, len, ret_at);
}

/* In the first sector, together with the place of the base's name, or not at all. */
static bool put_format(const struct qcow2 *q, uint8_t *sector, const char *format, uint64_t at)
{
	size_t len = strlen(format), room = cow_round_up(len, 8);

	if (at == q->format_off && !strcmp(format, q->backing.format))
		return true;
	if (at != q->format_off) {	/* the name stands there, and becomes one */
		if (at + 8 > SECTOR || q->format_off + 4 > SECTOR)
			return false;
		if (q->format_off)
			cow_put_be32(sector + q->format_off, QCOW2_EXT_FREE);
		cow_put_be32(sector + at, QCOW2_EXT_BACKING_FMT);
		cow_put_be32(sector + at + 4, (uint32_t)len);
		return true;
	}
	if (at + 8 + room > SECTOR)
		return false;
	cow_put_be32(sector + at + 4, (uint32_t)len);
	memset(sector + at + 8, 0, room);
	memcpy(sector + at + 8, format, len);
	return true;
}

static int record_base(struct cow_image *img, const struct cow_backing *backing)
{
	struct qcow2 *q = img->priv;
	size_t len = strlen(backing->path);
	uint8_t sector[SECTOR];
	uint64_t at, format_at;
	int rc = len > QCOW2_BACKING_MAX ? -ENOSPC : place_for_format(img, backing->format, &format_at);

	if (rc == 0)
		rc = cow_img_pread(img, 0, sector, sizeof(sector), 0);
	at = place_for_name(q, len);
	if (rc == 0 && (at == 0 || !put_format(q, sector, backing->format, format_at)))
		rc = -ENOSPC;
	if (rc == 0)
		rc = write_sync(img, backing->path, len, at);
	if (rc)
		return rc;
	if (at < sizeof(sector))
		memcpy(sector + at, backing->path, cow_min(len, sizeof(sector) - at));
	cow_put_be64(sector + QCOW2_H_BACKING_OFF, at);
	cow_put_be32(sector + QCOW2_H_BACKING_LEN, (uint32_t)len);
	rc = write_sync(img, sector, sizeof(sector), 0);
	if (rc)
		return rc;
	q->backing = *backing;
	q->backing_off = at;
	if (q->format_room_at == format_at)
		q->format_room_at = 0;
	q->format_off = format_at;
	return 0;
}

int qcow2_header_rebase(struct cow_image *img, const struct cow_backing *backing, struct cow_err *err)
{
	int rc = record_base(img, backing);

	if (rc == -ENOSPC)
		return cow_err_set(err, rc, "%s: its header has no room for the name of this base", img->path);
	return rc ? cow_err_sys(err, rc, "%s: cannot record the base", img->path) : 0;
}

/* Its name and format stay where they are, and mean nothing. */
int qcow2_header_no_base(struct cow_image *img, struct cow_err *err)
{
	struct qcow2 *q = img->priv;
	uint8_t sector[SECTOR];
	int rc = cow_img_pread(img, 0, sector, sizeof(sector), 0);

	memset(sector + QCOW2_H_BACKING_OFF, 0, 8);
	memset(sector + QCOW2_H_BACKING_LEN, 0, 4);
	if (rc == 0 && q->end_at == 0) {	/* where the name began was the end of the extensions */
		if (q->ext_end + 8 > sizeof(sector))
			return cow_err_set(err, -ENOSPC, "%s: its header has no room for a mark behind its "
					   "extensions", img->path);
		memset(sector + q->ext_end, 0, 8);
	}
	if (rc == 0)
		rc = write_sync(img, sector, sizeof(sector), 0);
	if (rc)
		return cow_err_sys(err, rc, "%s: cannot record that it has no base", img->path);
	if (q->end_at == 0) {
		q->end_at = q->ext_end;
		q->ext_end += 8;
	}
	q->backing.path[0] = '\0';
	q->backing_off = 0;
	return 0;
}

/* ---- bitmaps ---- */

int qcow2_header_bitmaps_room(struct cow_image *img)
{
	static const uint8_t none[QCOW2_EXT_BITMAPS_BYTES];
	struct qcow2 *q = img->priv;

	return q->bitmaps_at ? 0 : add_extension(img, QCOW2_EXT_FREE, none, sizeof(none), &q->bitmaps_at);
}

static int set_autoclear(struct cow_image *img, uint64_t bits)
{
	struct qcow2 *q = img->priv;

	if (q->autoclear == bits)
		return 0;
	q->autoclear = bits;
	return qcow2_header_update_sync(img, q);
}

static int put_type(struct cow_image *img, uint32_t type)
{
	uint8_t p[4];

	cow_put_be32(p, type);
	return write_sync(img, p, sizeof(p), ((const struct qcow2 *)img->priv)->bitmaps_at);
}

int qcow2_header_bitmaps(struct cow_image *img, uint64_t off, uint64_t bytes, uint32_t n)
{
	struct qcow2 *q = img->priv;
	uint64_t at = q->bitmaps_at + 8, valid = QCOW2_AUTOCLEAR_BITMAPS;
	bool one_sector = at / 512 == (at + QCOW2_EXT_BITMAPS_BYTES - 1) / 512;
	uint8_t p[QCOW2_EXT_BITMAPS_BYTES] = { 0 };
	int rc = 0;

	cow_put_be32(p, n);
	cow_put_be64(p + 8, bytes);
	cow_put_be64(p + 16, off);
	if (n == 0 || !one_sector)
		rc = set_autoclear(img, q->autoclear & ~valid);
	if (rc == 0)
		rc = write_sync(img, p, sizeof(p), at);
	if (rc == 0 && !(q->autoclear & valid))
		rc = put_type(img, n ? QCOW2_EXT_BITMAPS : QCOW2_EXT_FREE);
	if (rc == 0 && n)
		rc = set_autoclear(img, q->autoclear | valid);
	if (rc)
		return rc;
	q->nb_bitmaps = n;
	q->bitmapdir_bytes = bytes;
	q->bitmapdir_off = off;
	return 0;
}

/* ---- a new one ---- */

static const struct {
	uint8_t type, bit;
	const char *name;
} feature_names[] = {
	{ 0, 0, "dirty bit" }, { 0, 1, "corrupt bit" }, { 0, 2, "external data file" },
	{ 0, 3, "compression type" }, { 0, 4, "extended L2 entries" }, { 1, 0, "lazy refcounts" },
	{ 2, 0, "bitmaps" }, { 2, 1, "raw external data" },
};

/* Puts an extension at @at, if it fits before @end. Returns where the next one goes; 0: it does not fit. */
static uint64_t put_extension(uint8_t *p, uint64_t at, uint64_t end, uint32_t type, const void *data,
			      uint32_t len)
{
	if (at == 0 || at + 8 + cow_round_up(len, 8) > end)
		return 0;
	cow_put_be32(p + at, type);
	cow_put_be32(p + at + 4, len);
	memcpy(p + at + 8, data, len);
	return at + 8 + cow_round_up(len, 8);
}

int qcow2_header_build(const struct qcow2 *q, uint8_t *p)
{
	uint8_t names[COW_ARRAY_SIZE(feature_names) * QCOW2_FEATURE_BYTES] = { 0 };
	size_t path = strlen(q->backing.path), format = strlen(q->backing.format);
	uint64_t at = q->header_length;
	uint8_t luks[16];

	memset(p, 0, q->cluster);
	cow_put_be32(p + QCOW2_H_MAGIC, QCOW2_MAGIC);
	cow_put_be32(p + QCOW2_H_VERSION, q->version);
	cow_put_be32(p + QCOW2_H_CLUSTER_BITS, q->cluster_bits);
	cow_put_be32(p + QCOW2_H_CRYPT, q->crypt);
	encode(q, p);
	if (q->version >= 3) {
		cow_put_be32(p + QCOW2_H_LENGTH, q->header_length);
		p[QCOW2_H_COMPRESSION] = q->compression;
		for (size_t i = 0; i < COW_ARRAY_SIZE(feature_names); i++) {
			uint8_t *e = names + i * QCOW2_FEATURE_BYTES;

			e[0] = feature_names[i].type;
			e[1] = feature_names[i].bit;
			memcpy(e + 2, feature_names[i].name, strlen(feature_names[i].name));
		}
	}
	if (format)
		at = put_extension(p, at, q->cluster, QCOW2_EXT_BACKING_FMT, q->backing.format,
				   (uint32_t)format);
	else if (q->version >= 3)	/* for a base that it gets later */
		at = put_extension(p, at, q->cluster, QCOW2_EXT_FREE, names, FORMAT_ROOM);
	cow_put_be64(luks, q->luks_off);
	cow_put_be64(luks + 8, q->luks_bytes);
	if (q->crypt == QCOW2_CRYPT_LUKS)
		at = put_extension(p, at, q->cluster, QCOW2_EXT_LUKS, luks, sizeof(luks));
	if (qcow2_external(q))
		at = put_extension(p, at, q->cluster, QCOW2_EXT_DATA_FILE, q->data_file,
				   (uint32_t)strlen(q->data_file));
	if (q->version >= 3)
		at = put_extension(p, at, q->cluster, QCOW2_EXT_SESSION, names, SESSION_BYTES);	/* zeroes */
	if (q->version >= 3)
		at = put_extension(p, at, q->cluster, QCOW2_EXT_FEATURES, names, sizeof(names));
	at = put_extension(p, at, q->cluster, QCOW2_EXT_END, "", 0);
	if (at == 0 || path > QCOW2_BACKING_MAX || at + path > q->cluster)
		return -ENAMETOOLONG;
	if (path) {
		memcpy(p + at, q->backing.path, path);
		cow_put_be64(p + QCOW2_H_BACKING_OFF, at);
		cow_put_be32(p + QCOW2_H_BACKING_LEN, (uint32_t)path);
	}
	return 0;
}

/* ---- another version ---- */

/*
 * The extensions that a header of q->version has, from @area, where q->ext_end says how far there
 * are some. Returns where the last one ends; 0: there is no room in the sector.
 */
static uint64_t keep_extensions(const struct qcow2 *q, const uint8_t *area, uint64_t from, uint8_t *sector)
{
	static const uint8_t none[SESSION_BYTES];
	uint64_t at = q->header_length, len;

	for (; from + 8 <= q->ext_end; from += 8 + cow_round_up(len, 8)) {
		uint32_t type = cow_get_be32(area + from);

		len = cow_get_be32(area + from + 4);
		if (type == QCOW2_EXT_END)
			break;
		if (q->version < 3 && (type == QCOW2_EXT_FEATURES || type == QCOW2_EXT_SESSION))
			continue;
		at = put_extension(sector, at, SECTOR, type, area + from + 8, (uint32_t)len);
	}
	if (q->version >= 3 && !q->session_off)
		at = put_extension(sector, at, SECTOR, QCOW2_EXT_SESSION, none, sizeof(none));
	return put_extension(sector, at, SECTOR, QCOW2_EXT_END, "", 0);
}

/* The base's name: behind @end in the sector, or where it is if that is behind it, or moved there first. */
static int keep_name(struct cow_image *img, struct qcow2 *q, uint64_t end, uint8_t *sector)
{
	const char *path = q->backing.path;
	size_t len = strlen(path);
	uint64_t off = cow_max(SECTOR, q->backing_off + len);

	if (q->backing_off == 0 || (end + len > SECTOR && q->backing_off >= SECTOR))
		return 0;
	if (end + len <= SECTOR) {
		memcpy(sector + end, path, len);
		q->backing_off = end;
		return 0;
	}
	if (off + len > q->cluster)
		return -ENOSPC;
	q->backing_off = off;
	return write_sync(img, path, len, off);
}

static int convert(struct cow_image *img, struct qcow2 *next)
{
	struct qcow2 *q = img->priv;
	uint8_t *area COW_CLEANUP_FREE = cow_zalloc(q->cluster);
	uint8_t sector[SECTOR] = { 0 };
	uint64_t end;
	int rc = area ? cow_img_pread(img, 0, area, q->cluster, 0) : -ENOMEM;

	if (rc)
		return rc;
	memcpy(sector, area, QCOW2_H_V2_BYTES);
	end = keep_extensions(next, area, q->header_length, sector);
	rc = end ? keep_name(img, next, end, sector) : -ENOSPC;
	if (rc)
		return rc;
	cow_put_be32(sector + QCOW2_H_VERSION, next->version);
	cow_put_be64(sector + QCOW2_H_BACKING_OFF, next->backing_off);
	encode(next, sector);
	if (next->version >= 3)
		cow_put_be32(sector + QCOW2_H_LENGTH, next->header_length);
	return write_sync(img, sector, sizeof(sector), 0);
}

int qcow2_header_convert(struct cow_image *img, unsigned version, struct cow_err *err)
{
	struct qcow2 *q = img->priv;
	struct qcow2 next = *q, now;
	int rc;

	next.version = version;
	next.header_length = version < 3 ? QCOW2_H_V2_BYTES : QCOW2_H_BYTES;
	next.incompat = next.compat = next.autoclear = 0;
	rc = convert(img, &next);
	if (rc == -ENOSPC)
		return cow_err_set(err, rc, "%s: its header has no room for what version %u has there",
				   img->path, version);
	if (rc)
		return cow_err_sys(err, rc, "%s: cannot change the version", img->path);
	rc = qcow2_header_read(img, &now, err);
	if (rc)
		return rc;
	now.w = q->w;
	*q = now;
	return 0;
}
