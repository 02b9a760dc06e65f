// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Format "qcow2": QEMU's image format, versions 2 and 3. This file: life cycle
 * and registration. The layout is in qcow2.h, the state and the rules of
 * writing in qcow2-priv.h.
 */
#include <errno.h>

#include "cow/log.h"
#include "qcow2-priv.h"

#define WRITE_BITS_MIN 12u	/* clusters of a block of the cache or more */

static const struct cow_opt opts[] = {
	{ "snapshot", COW_OPT_STR, NULL, "open this internal snapshot (its ID or name), read-only" },
	{ "data_file", COW_OPT_STR, NULL, "write to the data file that the image names so" },
	COW_OPTS_KEY,
	{ NULL, 0, NULL, NULL },
};

static int qcow2_probe(const uint8_t *head, size_t len, uint64_t file_size)
{
	uint32_t version;

	(void)file_size;
	if (len < 8 || cow_get_be32(head) != QCOW2_MAGIC)
		return 0;
	version = cow_get_be32(head + QCOW2_H_VERSION);
	return version == 2 || version == 3 ? 100 : 0;
}

/* Metadata of the image when it is full: L1, L2 and refcounts. */
static uint64_t table_bytes(const struct qcow2 *q)
{
	uint64_t clusters = cow_div_up(q->size, q->cluster);

	return (uint64_t)q->l1_size * 8 + clusters * q->entry_bytes +
	       (clusters << q->refcount_order >> 3) + q->cluster;
}

/* What libcow sees of the header. */
static void publish(struct cow_image *img, const struct qcow2 *q)
{
	img->size = q->size;
	img->below_limit = q->size;
	img->granule = (uint32_t)q->cluster;
	img->block = (uint32_t)q->cluster;
	if (qcow2_external(q))
		memcpy(img->data_file, q->data_file, sizeof(img->data_file));
	img->backing = q->backing;
	img->encrypted = q->crypt;
	/* A place whose refcount a kill took back could be used for something else by the next process. */
	if (qcow2_header_session_fits(q) && !q->crypt && !qcow2_external(q))
		img->place = 1u << q->sub_bits;
	img->table_bytes = table_bytes(q);
	img->session = q->autoclear & QCOW2_AUTOCLEAR_SESSION ? q->session : 0;
}

/*
 * May it be written to? What a dirty image or a killed session has is not what the tables
 * say yet: begin() looks at those.
 */
static int check_writable(struct cow_image *img, const struct qcow2 *q, struct cow_err *err)
{
	int rc;

	if (q->snapshot[0])
		return cow_err_set(err, -EROFS, "%s: an internal snapshot can only be read", img->path);
	if (q->cluster_bits < WRITE_BITS_MIN)
		return cow_err_set(err, -EROFS, "%s: has clusters of %llu bytes; those below 4 KiB can "
				   "only be read", img->path, (unsigned long long)q->cluster);
	if (img->open_flags & COW_OPEN_CHECK)
		return 0;
	if (q->incompat & QCOW2_INCOMPAT_CORRUPT)
		return cow_err_set(err, -EUCLEAN, "%s: is marked as damaged: repair it before writing",
				   img->path);
	rc = qcow2_track_open(img, err);
	if (rc)
		return rc;
	if ((q->incompat & QCOW2_INCOMPAT_DIRTY) || (q->autoclear & QCOW2_AUTOCLEAR_SESSION))
		return 0;
	return qcow2_writer_load(img, err);
}

/*
 * The name comes with the image, from who knows where: that file may be another disk. To
 * read it is as harmless as a base; to write there takes somebody's word.
 */
static int check_data_file(struct cow_image *img, const struct qcow2 *q, const char *said,
			   struct cow_err *err)
{
	if (!qcow2_external(q))
		return said ? cow_err_set(err, -EINVAL, "%s: has no data file", img->path) : 0;
	if (said && strcmp(said, q->data_file))
		return cow_err_set(err, -EINVAL, "%s: its data file is '%.256s', not '%.256s'", img->path,
				   q->data_file, said);
	if (!said && (img->open_flags & COW_OPEN_WRITE))
		return cow_err_set(err, -EPERM, "%s: its data is in the file '%.256s': to write there, "
				   "allow it by -o data_file=NAME", img->path, q->data_file);
	return 0;
}

static int qcow2_open(struct cow_image *img, const struct cow_args *args, struct cow_err *err)
{
	struct qcow2 *q = img->priv;
	const char *snapshot = cow_args_str(args, "snapshot", NULL);
	int rc = qcow2_header_read(img, q, err);

	if (rc == 0 && snapshot)
		rc = qcow2_snapshot_use(img, q, snapshot, err);
	if (rc == 0)
		rc = check_data_file(img, q, cow_args_str(args, "data_file", NULL), err);
	if (rc == 0)
		rc = qcow2_crypt_open(img, q, err);
	if (rc == 0 && (img->open_flags & COW_OPEN_WRITE))
		rc = check_writable(img, q, err);
	if (rc) {
		cipher_free(q->cipher);
		return rc;
	}
	publish(img, q);
	return 0;
}

static void qcow2_close(struct cow_image *img)
{
	struct qcow2 *q = img->priv;

	cipher_free(q->cipher);
	qcow2_track_free(q);
	qcow2_writer_free(q);
	cow_free(q->place);
	qcow2_decode_end(q);
}

/* A writer that delays refcounts was interrupted: count anew. */
static int repair_dirty(struct cow_image *img, struct cow_err *err)
{
	struct qcow2 *q = img->priv;
	struct cow_report rep = { 0 };
	int rc;

	cow_log(COW_LOG_INFO, "%s: was not closed by who delayed its refcounts: repairing them",
		img->path);
	rc = qcow2_check(img, &rep, COW_CHECK_REPAIR, err);
	if (rc == 0 && (q->incompat & QCOW2_INCOMPAT_DIRTY))
		rc = cow_err_set(err, -EUCLEAN, "%s: could not be repaired", img->path);
	return rc;
}

/* What open() could not look at yet. */
static int load_late(struct cow_image *img, struct cow_err *err)
{
	struct qcow2 *q = img->priv;
	int rc = q->incompat & QCOW2_INCOMPAT_DIRTY ? repair_dirty(img, err) : 0;

	return rc || q->w.loaded ? rc : qcow2_writer_load(img, err);
}

/* Marks the session, if the image has a place for its number. @keep: autoclear bits that stay. */
static int mark(struct cow_image *img, uint64_t session, uint64_t keep)
{
	struct qcow2 *q = img->priv;
	uint64_t old = q->autoclear, stale = old & ~keep & ~QCOW2_AUTOCLEAR_SESSION;
	int rc = 0;

	q->autoclear &= keep;
	if (!(keep & QCOW2_AUTOCLEAR_BITMAPS))
		q->nb_bitmaps = 0;
	if (session && q->session_off) {
		q->autoclear |= QCOW2_AUTOCLEAR_SESSION;
		rc = qcow2_header_session(img, q, session);
	}
	if (rc == 0 && q->autoclear != old)
		rc = qcow2_header_update(img, q);
	return rc || !stale ? rc : cow_img_sync(img, 0);
}

/* In an image that another program made there is none for its number yet. */
static int place_for_session(struct cow_image *img, uint64_t keep)
{
	const struct qcow2 *q = img->priv;
	int rc;

	if (q->session_off || !qcow2_header_session_fits(q))
		return 0;
	rc = mark(img, 0, keep);
	return rc ? rc : qcow2_header_session_room(img);
}

/*
 * What this program does not know, or cannot keep up to date, is declared
 * stale before the first change is made.
 */
static int qcow2_begin(struct cow_image *img, uint64_t session)
{
	struct qcow2 *q = img->priv;
	struct cow_err err = { 0 };
	/* A repair changes nothing that bitmaps are about. */
	bool check = img->open_flags & COW_OPEN_CHECK;
	uint64_t keep = qcow2_external(q) ? QCOW2_AUTOCLEAR_RAW : 0;
	int rc = check ? 1 : qcow2_track_can(img);

	if (rc < 0)
		return rc;
	if (rc)
		keep |= QCOW2_AUTOCLEAR_BITMAPS;
	rc = check ? 0 : place_for_session(img, keep);
	if (rc == 0)
		rc = mark(img, check ? 0 : session, keep);
	if (rc || check)
		return rc;
	rc = load_late(img, &err);
	if (rc)
		cow_log(COW_LOG_ERR, "%s", cow_err_text(&err, rc));
	if (rc == 0)
		rc = qcow2_reftable_fit(img, q->size);
	return rc ? rc : qcow2_track_begin(img);
}

int qcow2_begin_offline(struct cow_image *img, struct cow_err *err)
{
	int rc = mark(img, 0, QCOW2_AUTOCLEAR_BITMAPS | QCOW2_AUTOCLEAR_RAW | QCOW2_AUTOCLEAR_SESSION);

	return rc ? cow_err_sys(err, rc, "%s", img->path) : load_late(img, err);
}

static int qcow2_end(struct cow_image *img)
{
	struct qcow2 *q = img->priv;
	int rc;

	qcow2_places_drop(q);
	rc = q->w.loaded ? qcow2_writer_settle(img) : 0;
	if (rc == 0)
		rc = qcow2_track_end(img);
	if (rc || !(q->autoclear & QCOW2_AUTOCLEAR_SESSION))
		return rc;
	q->autoclear &= ~QCOW2_AUTOCLEAR_SESSION;
	return qcow2_header_update_sync(img, q);
}

/* ---- facts ---- */

struct telling {
	int (*fn)(void *opaque, const struct cow_snapshot *s);
	void *opaque;
};

static int tell_snapshot(void *opaque, const struct qcow2_snap *s)
{
	const struct telling *t = opaque;
	struct cow_snapshot told = { .id = s->id, .name = s->name, .date_sec = s->date_sec,
				     .size = s->disk_size, .vm_state_bytes = s->vmstate_size };

	return t->fn(t->opaque, &told);
}

static int qcow2_snapshots(struct cow_image *img, int (*fn)(void *opaque, const struct cow_snapshot *s),
			   void *opaque, struct cow_err *err)
{
	struct telling t = { fn, opaque };
	uint64_t bytes;

	return qcow2_snapshots_walk(img, img->priv, tell_snapshot, &t, &bytes, err);
}

static int info_snapshot(void *opaque, const struct qcow2_snap *s)
{
	struct cow_kv *kv = opaque;

	cow_kv_object(kv, NULL);
	cow_kv_str(kv, "id", s->id);
	cow_kv_str(kv, "name", s->name);
	cow_kv_u64(kv, "date_seconds", s->date_sec);
	cow_kv_u64(kv, "virtual_size", s->disk_size);
	cow_kv_u64(kv, "vm_state_size", s->vmstate_size);
	cow_kv_close(kv);
	return 0;
}

static int info_bitmap(void *opaque, const struct cow_bitmap *b)
{
	struct cow_kv *kv = opaque;

	cow_kv_object(kv, NULL);
	cow_bitmap_kv(b, kv);
	cow_kv_close(kv);
	return 0;
}

static void qcow2_info(struct cow_image *img, struct cow_kv *kv)
{
	const struct qcow2 *q = img->priv;
	uint64_t bytes;

	cow_kv_u64(kv, "version", q->version);
	cow_kv_u64(kv, "cluster_size", q->cluster);
	cow_kv_u64(kv, "refcount_bits", 1u << q->refcount_order);
	cow_kv_str(kv, "compression_type", q->compression ? "zstd" : "zlib");
	cow_kv_bool(kv, "extended_l2", q->extl2);
	cow_kv_bool(kv, "lazy_refcounts", q->compat & QCOW2_COMPAT_LAZY);
	cow_kv_bool(kv, "dirty", q->incompat & QCOW2_INCOMPAT_DIRTY);
	cow_kv_bool(kv, "corrupt", q->incompat & QCOW2_INCOMPAT_CORRUPT);
	if (qcow2_external(q))
		cow_kv_bool(kv, "data_file_raw", qcow2_external_raw(q));
	cow_kv_list(kv, "bitmaps");
	(void)qcow2_bitmaps(img, info_bitmap, kv, NULL);
	cow_kv_close(kv);
	if (q->crypt)
		cow_kv_str(kv, "encryption", qcow2_crypt_names[q->crypt]);
	if (q->crypt == QCOW2_CRYPT_LUKS) {
		cow_kv_str(kv, "cipher", q->luks.cipher);
		cow_kv_u64(kv, "key_bits", q->luks.spec.key_bytes * 8);
	}
	if (q->snapshot[0])
		cow_kv_str(kv, "snapshot", q->snapshot);
	cow_kv_list(kv, "snapshots");
	(void)qcow2_snapshots_walk(img, q, info_snapshot, kv, &bytes, NULL);
	cow_kv_close(kv);
}

static struct cow_format qcow2_format = {
	.name = "qcow2",
	.desc = "QEMU's copy-on-write format, versions 2 and 3",
	.version = "1",
	.caps = COW_CAP_WRITE | COW_CAP_DISCARD | COW_CAP_RESIZE | COW_CAP_BACKING | COW_CAP_CREATE |
		COW_CAP_CHECK | COW_CAP_COMMIT | COW_CAP_REMAP,
	.priv_size = sizeof(struct qcow2),
	.opts = opts,
	.create_opts = qcow2_create_opts,
	.probe = qcow2_probe,
	.open = qcow2_open,
	.close = qcow2_close,
	.map = qcow2_map,
	.commit = qcow2_commit,
	.begin = qcow2_begin,
	.end = qcow2_end,
	.create = qcow2_create,
	.resize = qcow2_resize,
	.grown = qcow2_grown,
	.check = qcow2_check,
	.make_empty = qcow2_make_empty,
	.rebase = qcow2_rebase,
	.info = qcow2_info,
	.decode = qcow2_decode,
	.encode = qcow2_encode,
	.put_encoded = qcow2_put_encoded,
	.measure = qcow2_measure,
	.snapshot = qcow2_snapshot,
	.snapshots = qcow2_snapshots,
	.bitmaps = qcow2_bitmaps,
	.bitmap_ranges = qcow2_bitmap_ranges,
	.amend_opts = qcow2_amend_opts,
	.amend = qcow2_amend,
	.bitmap = qcow2_bitmap,
	.crypt = qcow2_crypt,
};

COW_FORMAT_REGISTER(qcow2_format)
