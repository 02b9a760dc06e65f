// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The table of internal snapshots: reading it, and opening one of them
 * read-only. qcow2-snapshot-edit.c makes and removes them.
 */
#include <errno.h>

#include "qcow2-priv.h"

#define L1_SUM_MAX COW_GIB(1)	/* of all snapshots' L1 tables: thousands for large images */
#define WINDOW 4096u		/* bytes of the table read at once, unless an entry is longer */

struct walk {
	struct cow_image *img;
	const struct qcow2 *q;
	uint8_t *buf;			/* the @len bytes of the file from @start on */
	uint64_t start, len;
	uint64_t at, l1_sum;
};

/* The next @bytes of the table at *ret. 0 or -errno. */
static int see(struct walk *w, uint64_t bytes, const uint8_t **ret)
{
	uint64_t len = cow_max(bytes, WINDOW);
	int rc;

	if (w->at - w->start > w->len || bytes > w->len - (w->at - w->start)) {
		if (len > w->len) {
			cow_free(w->buf);
			w->len = 0;
			w->buf = cow_zalloc(len);
			if (!w->buf)
				return -ENOMEM;
		}
		w->len = cow_max(len, w->len);
		w->start = w->at;
		rc = cow_img_pread(w->img, 0, w->buf, w->len, w->at);
		if (rc)
			return rc;
	}
	*ret = w->buf + (w->at - w->start);
	return 0;
}

static void copy_text(char *to, size_t size, const uint8_t *from, size_t len)
{
	len = cow_min(len, size - 1);
	memcpy(to, from, len);
	to[len] = 0;
}

static const char *bad_snapshot(struct walk *w, struct qcow2_snap *s)
{
	uint64_t bytes = (uint64_t)s->l1_size * 8;

	if (bytes > QCOW2_L1_BYTES_MAX)
		return "has an L1 table larger than 32 MiB";
	if (!qcow2_host_ok(w->q, s->l1_off) || s->l1_off > QCOW2_HOST_MAX - bytes)
		return "has a misplaced L1 table";
	w->l1_sum += bytes;
	if (w->l1_sum > L1_SUM_MAX)
		return "brings the L1 tables of snapshots above 1 GiB";
	return NULL;
}

/* Decodes the entry at w->at and moves on. 0 or -errno; *ret_bad: what is wrong with it, or NULL. */
static int next_entry(struct walk *w, struct qcow2_snap *s, const char **ret_bad)
{
	const uint8_t *p;
	uint32_t extra;
	size_t id, name;
	int rc = see(w, QCOW2_SNAP_BYTES, &p);

	if (rc)
		return rc;
	extra = cow_get_be32(p + QCOW2_SNAP_EXTRA_LEN);
	id = cow_get_be16(p + QCOW2_SNAP_ID_LEN);
	name = cow_get_be16(p + QCOW2_SNAP_NAME_LEN);
	*ret_bad = extra > QCOW2_SNAP_EXTRA_MAX ? "has extra data of more than 1024 bytes" :
		   w->q->version >= 3 && extra < 16 ? "lacks its virtual size" : NULL;
	if (*ret_bad)
		return 0;
	rc = see(w, QCOW2_SNAP_BYTES + extra + id + name, &p);
	if (rc)
		return rc;
	*s = (struct qcow2_snap){
		.at = w->at - w->q->snapshots_off,
		.bytes = cow_round_up(QCOW2_SNAP_BYTES + extra + id + name, 8),
		.l1_off = cow_get_be64(p + QCOW2_SNAP_L1_OFF),
		.l1_size = cow_get_be32(p + QCOW2_SNAP_L1_SIZE),
		.date_sec = cow_get_be32(p + QCOW2_SNAP_DATE),
		.vmstate_size = cow_get_be32(p + QCOW2_SNAP_VMSTATE),
		.disk_size = w->q->size,
	};
	if (extra >= 8)
		s->vmstate_size = cow_get_be64(p + QCOW2_SNAP_BYTES);
	if (extra >= 16)
		s->disk_size = cow_get_be64(p + QCOW2_SNAP_BYTES + QCOW2_SNAP_EXTRA_SIZE);
	p += QCOW2_SNAP_BYTES + extra;
	copy_text(s->id, sizeof(s->id), p, id);
	copy_text(s->name, sizeof(s->name), p + id, name);
	w->at += s->bytes;
	if (w->at - w->q->snapshots_off > QCOW2_SNAPTABLE_MAX)
		*ret_bad = "makes the snapshot table larger than 64 MiB";
	else
		*ret_bad = bad_snapshot(w, s);
	return 0;
}

int qcow2_snapshots_walk(struct cow_image *img, const struct qcow2 *q,
			 int (*fn)(void *opaque, const struct qcow2_snap *s), void *opaque,
			 uint64_t *ret_bytes, struct cow_err *err)
{
	struct walk w = { .img = img, .q = q, .at = q->snapshots_off };
	struct qcow2_snap s;
	int rc = 0;

	*ret_bytes = 0;
	for (uint32_t i = 0; i < q->nb_snapshots && rc == 0; i++) {
		const char *bad;

		rc = next_entry(&w, &s, &bad);
		if (rc) {
			cow_err_sys(err, rc, "%s: snapshot table", img->path);
			break;
		}
		if (bad)
			rc = cow_err_set(err, -EINVAL, "%s: snapshot %u %s", img->path, i + 1, bad);
		else
			rc = fn(opaque, &s);
	}
	cow_free(w.buf);
	*ret_bytes = w.at - q->snapshots_off;
	return rc;
}

struct find {
	const char *id;
	struct qcow2_snap found;
	int how;			/* 0: no; 1: by name; 2: by identifier */
};

static int look(void *opaque, const struct qcow2_snap *s)
{
	struct find *f = opaque;
	int how = !strcmp(s->id, f->id) ? 2 : !strcmp(s->name, f->id) ? 1 : 0;

	if (how > f->how) {
		f->found = *s;
		f->how = how;
	}
	return 0;
}

int qcow2_snapshot_find(struct cow_image *img, const struct qcow2 *q, const char *id,
			struct qcow2_snap *ret, struct cow_err *err)
{
	struct find f = { .id = id };
	uint64_t bytes;
	int rc = qcow2_snapshots_walk(img, q, look, &f, &bytes, err);

	if (rc)
		return rc;
	if (!f.how)
		return cow_err_set(err, -ENOENT, "%s: has no snapshot '%.100s'", img->path, id);
	if (f.found.disk_size == 0 || f.found.disk_size > QCOW2_HOST_MAX ||
	    f.found.l1_size < qcow2_l1_needed(q, f.found.disk_size))
		return cow_err_set(err, -EINVAL, "%s: the L1 table of snapshot '%.100s' is too small for "
				   "its size", img->path, id);
	*ret = f.found;
	return 0;
}

int qcow2_snapshot_use(struct cow_image *img, struct qcow2 *q, const char *id, struct cow_err *err)
{
	struct qcow2_snap s;
	int rc = qcow2_snapshot_find(img, q, id, &s, err);

	if (rc)
		return rc;
	q->size = s.disk_size;
	q->l1_off = s.l1_off;
	q->l1_size = s.l1_size;
	memcpy(q->snapshot, s.id, sizeof(q->snapshot));
	return 0;
}
