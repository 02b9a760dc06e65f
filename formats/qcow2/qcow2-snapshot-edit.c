// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Making, applying and deleting internal snapshots. All three have the same
 * course, with a sync after each step but the first:
 *
 *	1. new tables are written where nothing was
 *	2. refcounts of what will be shared go up
 *	3. COPIED flags of what will be shared are taken away
 *	4. the header names the new tables: one sector, it was or it was not
 *	5. COPIED flags of what is shared no more are set
 *	6. refcounts of what nothing refers to any more go down; its space is given back
 *
 * Before 4 the image is what it was, after it what it is to be; interrupted
 * anywhere, it has leaks at worst. Up to 2 an error takes everything back.
 *
 * The state of a virtual machine in a snapshot, behind the end of its disk, is
 * let go with the snapshot, and left alone otherwise.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "qcow2-priv.h"

#define EXTRA_BYTES 16u		/* of the entries that are written: the least of version 3 */
#define NAME_BYTES_MAX 255u	/* as much as QEMU's tools and our own show */

struct edit {
	struct cow_image *img;
	struct qcow2 *q;
	struct qcow2 next;		/* header fields after step 4 */
	struct qcow2_runs fresh;	/* clusters of new tables */
	struct qcow2_runs old;		/* clusters of tables that are replaced */
	uint64_t table_bytes;		/* of the snapshot table as it is */
	const char *failed;		/* what did not work, for a sentence */
};

/* ---- steps ---- */

/* The wish makes sense: from here on the image is changed. */
static int start(struct edit *ed, struct cow_err *err)
{
	int rc = qcow2_begin_offline(ed->img, err);

	if (rc == 0)
		rc = qcow2_writer_settle(ed->img);
	if (rc == 0)
		rc = qcow2_reftable_fit(ed->img, ed->q->size);
	ed->next = *ed->q;
	return rc;
}

/* Clusters for @bytes of a table. */
static int place(struct edit *ed, uint64_t bytes, uint64_t *ret_off)
{
	const struct qcow2 *q = ed->q;
	uint64_t n = cow_div_up(bytes, q->cluster), cluster;
	int rc = qcow2_alloc_sync(ed->img, n, &cluster);

	if (rc == 0)
		rc = qcow2_runs_add(&ed->fresh, cluster, n);
	if (rc == 0)
		*ret_off = cluster << q->cluster_bits;
	return rc;
}

/* Step 1 for an L1 table: a copy of @l1 without flags. */
static int write_l1(struct edit *ed, uint64_t *l1, uint64_t n, uint64_t *ret_off)
{
	int rc = place(ed, n * sizeof(*l1), ret_off);

	for (uint64_t i = 0; i < n; i++)
		l1[i] &= QCOW2_OFFSET_MASK;
	if (rc == 0)
		rc = qcow2_l1_write(ed->img, *ret_off, l1, n, cow_round_up(n * sizeof(*l1), ed->q->cluster));
	return rc;
}

/* Step 2. What was added before a failure is taken away again. */
static int raise(struct edit *ed, const uint64_t *l1, uint64_t n)
{
	struct qcow2_refedit e;
	uint64_t done = UINT64_MAX;
	int rc = qcow2_refedit_begin(&e, ed->img, NULL), ended;

	if (rc == 0)
		rc = qcow2_tree_ref(&e, l1, n, 1, &done);
	if (rc && e.slots)
		(void)qcow2_tree_ref(&e, l1, n, -1, &done);
	if (rc == -EMLINK)
		ed->failed = "its refcounts are too narrow for one more reference";
	if (rc == -EUCLEAN)
		ed->failed = "it is damaged, repair it first";
	ended = qcow2_refedit_end(&e);
	return rc ? rc : ended;
}

/* Steps 1 and 2 end here. On failure, the new tables are let go. */
static int prepared(struct edit *ed, int rc)
{
	if (rc == 0)
		rc = cow_img_sync(ed->img, 0);
	if (rc && qcow2_runs_ref_sync(ed->img, &ed->fresh, -1) == 0)
		(void)cow_img_sync(ed->img, 0);
	return rc;
}

/* Step 3, and step 4. */
static int share_and_switch(struct edit *ed, const uint64_t *l1, uint64_t n)
{
	struct qcow2 *q = ed->q;
	int rc = qcow2_tree_share(ed->img, l1, n);

	if (rc == 0)
		rc = cow_img_sync(ed->img, 0);
	if (rc == 0)
		rc = qcow2_header_update_sync(ed->img, &ed->next);
	if (rc)
		return rc;
	q->size = ed->next.size;
	q->l1_off = ed->next.l1_off;
	q->l1_size = ed->next.l1_size;
	q->nb_snapshots = ed->next.nb_snapshots;
	q->snapshots_off = ed->next.snapshots_off;
	return 0;
}

static int replaced(struct edit *ed, uint64_t off, uint64_t bytes)
{
	const struct qcow2 *q = ed->q;

	return bytes ? qcow2_runs_add(&ed->old, off >> q->cluster_bits, cow_div_up(bytes, q->cluster)) : 0;
}

/* ---- the table of snapshots ---- */

struct names {
	struct edit *ed;
	const char *name;
	struct cow_err *err;
	unsigned long highest;		/* identifier that is a number */
};

static int look_at(void *opaque, const struct qcow2_snap *s)
{
	struct names *n = opaque;
	char *end;
	unsigned long id = strtoul(s->id, &end, 10);

	if (*end == 0 && id > n->highest)
		n->highest = id;
	if (n->name && (!strcmp(s->name, n->name) || !strcmp(s->id, n->name)))
		return cow_err_set(n->err, -EEXIST, "%s: has a snapshot '%.100s' already",
				   n->ed->img->path, n->name);
	return 0;
}

/* An entry for what the disk is now, at @p; 0: only how long it is. */
static uint64_t encode_entry(const struct edit *ed, uint8_t *p, uint64_t l1_off, const char *name,
			     const char *id)
{
	const struct qcow2 *q = ed->q;
	size_t id_len = strlen(id), name_len = strlen(name);
	struct timespec now;

	if (!p)
		return cow_round_up(QCOW2_SNAP_BYTES + EXTRA_BYTES + id_len + name_len, 8);
	clock_gettime(CLOCK_REALTIME, &now);
	cow_put_be64(p + QCOW2_SNAP_L1_OFF, l1_off);
	cow_put_be32(p + QCOW2_SNAP_L1_SIZE, (uint32_t)qcow2_l1_needed(q, q->size));
	cow_put_be16(p + QCOW2_SNAP_ID_LEN, (uint16_t)id_len);
	cow_put_be16(p + QCOW2_SNAP_NAME_LEN, (uint16_t)name_len);
	cow_put_be32(p + QCOW2_SNAP_DATE, (uint32_t)now.tv_sec);
	cow_put_be32(p + QCOW2_SNAP_DATE + 4, (uint32_t)now.tv_nsec);
	cow_put_be32(p + QCOW2_SNAP_EXTRA_LEN, EXTRA_BYTES);
	cow_put_be64(p + QCOW2_SNAP_BYTES + QCOW2_SNAP_EXTRA_SIZE, q->size);
	memcpy(p + QCOW2_SNAP_BYTES + EXTRA_BYTES, id, id_len);
	memcpy(p + QCOW2_SNAP_BYTES + EXTRA_BYTES + id_len, name, name_len);
	return 0;
}

/* The new table's place and contents; the old one's clusters are noted. @bytes 0: no table any more. */
static int write_table(struct edit *ed, uint8_t *table, uint64_t bytes)
{
	int rc = replaced(ed, ed->q->snapshots_off, ed->table_bytes);

	ed->next.snapshots_off = 0;
	if (rc || bytes == 0)
		return rc;
	rc = place(ed, bytes, &ed->next.snapshots_off);
	return rc ? rc : cow_img_pwrite(ed->img, 0, table, bytes, ed->next.snapshots_off);
}

/* ---- create ---- */

static int create(struct edit *ed, uint8_t *table, const char *name, unsigned long highest)
{
	struct qcow2 *q = ed->q;
	uint64_t n = qcow2_l1_needed(q, q->size), l1_off = 0, *l1 = NULL;
	char id[32];
	int rc = qcow2_l1_read(ed->img, q->l1_off, n, &l1);

	snprintf(id, sizeof(id), "%lu", highest + 1);
	if (rc == 0)
		rc = write_l1(ed, l1, n, &l1_off);
	if (rc == 0) {
		encode_entry(ed, table + ed->table_bytes, l1_off, name, id);
		rc = write_table(ed, table, ed->table_bytes + encode_entry(ed, NULL, 0, name, id));
	}
	ed->next.nb_snapshots++;
	if (rc == 0)
		rc = raise(ed, l1, n);
	rc = prepared(ed, rc);
	if (rc == 0)	/* the disk's own table, in place: without flags, too */
		rc = qcow2_l1_write(ed->img, q->l1_off, l1, n, n * sizeof(*l1));
	if (rc == 0)
		rc = share_and_switch(ed, l1, n);
	cow_free(l1);
	return rc ? rc : qcow2_tree_drop(ed->img, NULL, 0, &ed->old);
}

static int do_create(struct edit *ed, const char *name, struct cow_err *err)
{
	const struct qcow2 *q = ed->q;
	struct names names = { .ed = ed, .name = name, .err = err };
	uint64_t room = QCOW2_SNAP_BYTES + EXTRA_BYTES + sizeof(((struct qcow2_snap *)0)->id) + NAME_BYTES_MAX;
	uint8_t *table COW_CLEANUP_FREE = NULL;
	int rc = qcow2_snapshots_walk(ed->img, q, look_at, &names, &ed->table_bytes, err);

	if (rc)
		return rc;
	if (*name == 0 || strlen(name) > NAME_BYTES_MAX)
		return cow_err_set(err, -EINVAL, "%s: the name of a snapshot has 1 to %u bytes",
				   ed->img->path, NAME_BYTES_MAX);
	if (q->nb_snapshots == QCOW2_SNAPSHOTS_MAX || ed->table_bytes + room > QCOW2_SNAPTABLE_MAX)
		return cow_err_set(err, -EFBIG, "%s: has as many snapshots as it can have", ed->img->path);
	table = cow_zalloc(ed->table_bytes + room);
	rc = table ? start(ed, err) : -ENOMEM;
	if (rc == 0 && ed->table_bytes)
		rc = cow_img_pread(ed->img, 0, table, ed->table_bytes, q->snapshots_off);
	return rc ? rc : create(ed, table, name, names.highest);
}

/* ---- apply ---- */

static int apply(struct edit *ed, const struct qcow2_snap *s)
{
	struct qcow2 *q = ed->q;
	uint64_t n = qcow2_l1_needed(q, s->disk_size), old_n = q->l1_size;
	uint64_t *l1 = NULL, *old = NULL;
	int rc = qcow2_l1_read(ed->img, s->l1_off, n, &l1);

	if (rc == 0)
		rc = qcow2_l1_read(ed->img, q->l1_off, old_n, &old);
	if (rc == 0)
		rc = replaced(ed, q->l1_off, old_n * sizeof(*old));
	if (rc == 0)
		rc = write_l1(ed, l1, n, &ed->next.l1_off);
	if (rc == 0)
		rc = raise(ed, l1, n);
	rc = prepared(ed, rc);
	ed->next.l1_size = (uint32_t)n;
	ed->next.size = s->disk_size;
	if (rc == 0)
		rc = share_and_switch(ed, l1, n);
	if (rc == 0)
		rc = qcow2_tree_drop(ed->img, old, old_n, &ed->old);
	cow_free(l1);
	cow_free(old);
	return rc;
}

static int do_apply(struct edit *ed, const char *name, struct cow_err *err)
{
	struct qcow2_snap s;
	int rc = qcow2_snapshot_find(ed->img, ed->q, name, &s, err);

	if (rc == 0)
		rc = start(ed, err);
	return rc ? rc : apply(ed, &s);
}

/* ---- delete ---- */

/* Steps 5 and 6: what the snapshot's table @old referred to. */
static int forget(struct edit *ed, const uint64_t *old, uint64_t old_n)
{
	const struct qcow2 *q = ed->q;
	struct qcow2_refedit e;
	uint64_t *l1 = NULL;
	int rc = qcow2_refedit_begin(&e, ed->img, NULL);

	if (rc == 0)
		rc = qcow2_l1_read(ed->img, q->l1_off, q->l1_size, &l1);
	if (rc == 0)
		rc = qcow2_tree_claim(&e, l1, q->l1_size, old, old_n);
	if (rc == 0)
		rc = qcow2_l1_write(ed->img, q->l1_off, l1, q->l1_size, (uint64_t)q->l1_size * sizeof(*l1));
	(void)qcow2_refedit_end(&e);		/* it only looked */
	cow_free(l1);
	if (rc == 0)
		rc = cow_img_sync(ed->img, 0);
	return rc ? rc : qcow2_tree_drop(ed->img, old, old_n, &ed->old);
}

static int delete(struct edit *ed, const struct qcow2_snap *s, uint8_t *table)
{
	uint64_t end = s->at + s->bytes, *l1 = NULL;
	int rc = qcow2_l1_read(ed->img, s->l1_off, s->l1_size, &l1);

	if (rc == 0)
		rc = replaced(ed, s->l1_off, (uint64_t)s->l1_size * sizeof(*l1));
	memmove(table + s->at, table + end, ed->table_bytes - end);
	ed->next.nb_snapshots--;
	if (rc == 0)
		rc = write_table(ed, table, ed->next.nb_snapshots ? ed->table_bytes - s->bytes : 0);
	rc = prepared(ed, rc);
	if (rc == 0)
		rc = share_and_switch(ed, NULL, 0);
	if (rc == 0)
		rc = forget(ed, l1, s->l1_size);
	cow_free(l1);
	return rc;
}

static int do_delete(struct edit *ed, const char *name, struct cow_err *err)
{
	struct names names = { .ed = ed };
	struct qcow2_snap s;
	uint8_t *table COW_CLEANUP_FREE = NULL;
	int rc = qcow2_snapshot_find(ed->img, ed->q, name, &s, err);

	if (rc == 0)
		rc = qcow2_snapshots_walk(ed->img, ed->q, look_at, &names, &ed->table_bytes, err);
	if (rc)
		return rc;
	table = cow_zalloc(ed->table_bytes);
	rc = table ? start(ed, err) : -ENOMEM;
	if (rc == 0)
		rc = cow_img_pread(ed->img, 0, table, ed->table_bytes, ed->q->snapshots_off);
	return rc ? rc : delete(ed, &s, table);
}

/* ---- all three ---- */

static int run(struct edit *ed, enum cow_snapshot_op op, const char *name, struct cow_err *err)
{
	switch (op) {
	case COW_SNAPSHOT_CREATE:
		return do_create(ed, name, err);
	case COW_SNAPSHOT_APPLY:
		return do_apply(ed, name, err);
	case COW_SNAPSHOT_DELETE:
		return do_delete(ed, name, err);
	}
	return -EINVAL;
}

static const char *verb(enum cow_snapshot_op op)
{
	return op == COW_SNAPSHOT_CREATE ? "make" : op == COW_SNAPSHOT_APPLY ? "apply" : "delete";
}

int qcow2_snapshot(struct cow_image *img, enum cow_snapshot_op op, const char *name, struct cow_err *err)
{
	struct qcow2 *q = img->priv;
	struct edit ed = { .img = img, .q = q };
	int rc, loaded;

	if (qcow2_external(q))
		return cow_err_set(err, -EOPNOTSUPP, "%s: has an external data file, and so no snapshots",
				   img->path);
	if (op == COW_SNAPSHOT_APPLY && q->nb_bitmaps && (q->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return cow_err_set(err, -EOPNOTSUPP, "%s: has persistent bitmaps, which would be wrong for "
				   "the disk of a snapshot: remove them first", img->path);
	rc = run(&ed, op, name, err);
	cow_free(ed.fresh.v);
	cow_free(ed.old.v);
	cow_img_drop_cache(img);
	loaded = q->w.loaded ? qcow2_writer_reload(img, NULL) : 0;
	rc = rc ? rc : loaded;
	img->size = img->below_limit = q->size;
	if (rc && ed.failed)
		return cow_err_set(err, rc, "%s: cannot %s the snapshot '%.100s': %s", img->path, verb(op),
				   name, ed.failed);
	return rc ? cow_err_sys(err, rc, "%s: cannot %s the snapshot '%.100s'", img->path, verb(op), name) : 0;
}
