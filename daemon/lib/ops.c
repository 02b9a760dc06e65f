// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Work on a whole image that is offline, or quiesced: create, resize, check,
 * snapshot, amend, commit, rebase, and the description of its extents; and the synchronous file
 * access that a format's control-path callbacks use. The order of the steps of
 * commit is what makes it safe to interrupt.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>

#include "engine.h"

#define COPY_CHUNK (1u << 20)

/* ---- file access for formats ---- */

static struct cow_file *img_file(struct cow_image *img, uint16_t file)
{
	return layer_file(img_layer(img), file);
}

int cow_img_pread(struct cow_image *img, uint16_t file, void *buf, size_t len, uint64_t off)
{
	return cow_io_run(img_file(img, file), COW_IO_READ, buf, len, off);
}

int cow_img_pwrite(struct cow_image *img, uint16_t file, const void *buf, size_t len, uint64_t off)
{
	struct cow_file *f = img_file(img, file);
	int rc = cow_io_run(f, COW_IO_WRITE, (void *)(uintptr_t)buf, len, off);

	if (rc == 0)
		f->size = cow_max(f->size, off + len);
	return rc;
}

int cow_img_sync(struct cow_image *img, uint16_t file)
{
	int rc = cow_io_run(img_file(img, file), COW_IO_SYNC, NULL, 0, 0);

	if (rc)
		cow_img_fail(img, rc, "fdatasync");
	return rc;
}

void cow_img_fail(struct cow_image *img, int why, const char *what)
{
	if (img_layer(img)->chain)
		chain_fail(img_layer(img)->chain, COW_MODE_RO, why, what);
}

int cow_img_punch(struct cow_image *img, uint16_t file, uint64_t off, uint64_t len)
{
	return len ? cow_io_run(img_file(img, file), COW_IO_PUNCH, NULL, len, off) : 0;
}

int cow_img_truncate(struct cow_image *img, uint16_t file, uint64_t size)
{
	struct cow_file *f = img_file(img, file);

	return f->io->ops->truncate(f, size);
}

uint64_t cow_img_file_size(struct cow_image *img, uint16_t file)
{
	return img_file(img, file)->size;
}

bool cow_img_is_blkdev(struct cow_image *img, uint16_t file)
{
	return img_file(img, file)->blkdev;
}

int cow_img_seek(struct cow_image *img, uint16_t file, uint64_t off, bool data, uint64_t *ret_off)
{
	struct cow_file *f = img_file(img, file);

	return f->io->ops->seek(f, off, data, ret_off);
}

void cow_img_drop_cache(struct cow_image *img)
{
	if (img->meta)
		meta_drop(img->meta);
}

/* ---- extents ---- */

struct map_wait {
	struct cow_waiter w;
	bool woken;
	int result;
};

static void map_wake(struct cow_waiter *w, int result)
{
	struct map_wait *mw = cow_container_of(w, struct map_wait, w);

	mw->woken = true;
	mw->result = result;
}

/* Waits for metadata where a request would go to sleep. */
static int map_blocking(struct cow_layer *l, const struct cow_query *q, struct cow_map *ret)
{
	struct cow_pins pins = { 0 };
	int rc;

	while ((rc = chain_map(l, q, &pins, ret)) == -EAGAIN) {
		struct map_wait mw = { .w.wake = map_wake };

		rc = chain_wait(l, &mw.w);
		while (rc == 1 && !mw.woken)
			cow_chain_poll(l->chain, true);
		if (rc < 0 || mw.result) {
			rc = rc < 0 ? rc : mw.result;
			break;
		}
	}
	meta_unpin(&pins);
	return rc;
}

/* A punched range of the file is a hole of the image, as far as the file system tells. */
static void refine(struct cow_layer *l, struct cow_extent *e)
{
	struct cow_file *f = layer_file(l, e->file);
	const struct cow_io_ops *ops = f->io->ops;
	uint64_t next;
	int rc;

	if (e->phys >= f->data_from && e->phys < f->data_to) {
		e->len = cow_min(e->len, f->data_to - e->phys);
		return;
	}
	rc = ops->seek(f, e->phys, true, &next);
	if (rc == -ENXIO) {
		e->kind = COW_HOLE;
		return;
	}
	if (rc)
		return;
	if (next > e->phys) {
		e->kind = COW_HOLE;
		e->len = cow_min(e->len, next - e->phys);
	} else if (ops->seek(f, e->phys, false, &next) == 0 && next > e->phys) {
		e->len = cow_min(e->len, next - e->phys);
		/* Some file systems look at every page up to there: not again for each piece of it. */
		f->data_from = f->writable ? 0 : e->phys;
		f->data_to = f->writable ? 0 : next;
	}
}

/* The answer of one layer for exactly [virt, virt + some). */
static int layer_extent(struct cow_layer *l, uint64_t virt, uint64_t len, struct cow_extent *ret)
{
	struct cow_query q = { .virt = virt, .len = len, .intent = COW_REPORT };
	struct cow_map map;
	int rc = map_blocking(l, &q, &map);

	if (rc)
		return rc;
	*ret = map.dst;
	ret->virt = virt;
	ret->len = cow_min(len, map.dst.len - (virt - map.dst.virt));
	ret->phys += virt - map.dst.virt;
	if (ret->kind == COW_DATA && l->img.encrypted)
		ret->kind = COW_ENCODED;	/* what is there is of no use to others */
	if (ret->kind == COW_BELOW && virt < l->img.below_limit)
		ret->len = cow_min(ret->len, l->img.below_limit - virt);
	else if (ret->kind == COW_BELOW)
		ret->kind = COW_HOLE;
	return 0;
}

int cow_chain_layer_extent(struct cow_chain *c, unsigned layer, uint64_t virt, uint64_t len,
			   struct cow_extent *ret)
{
	uint64_t end;

	chain_assert_thread(c);
	if (layer >= c->n || len == 0 || !cow_add_ok(virt, len, &end) ||
	    end > c->layers[layer]->img.size)
		return -EINVAL;
	return layer_extent(c->layers[layer], virt, len, ret);
}

/* By COW_PLACE if the image knows that and has one; else by COW_WRITE, as @q says then. */
static int map_for_others(struct cow_layer *l, struct cow_query *q, struct cow_map *ret)
{
	int rc = -EOPNOTSUPP;

	q->intent = COW_PLACE;
	if (l->img.place)
		rc = map_blocking(l, q, ret);
	if (rc != -EOPNOTSUPP)
		return rc;
	q->intent = COW_WRITE;
	return map_blocking(l, q, ret);
}

int cow_chain_in_place(struct cow_chain *c, uint64_t virt, uint64_t len, struct cow_extent *ret)
{
	struct cow_query q = { .virt = virt, .len = len };
	struct cow_image *img = &c->layers[0]->img;
	struct cow_map map;
	uint64_t end;
	int rc;

	chain_assert_thread(c);
	if (len == 0 || !cow_add_ok(virt, len, &end) || end > img->size)
		return -EINVAL;
	if (!c->writable || img->encrypted)
		return c->writable ? -EOPNOTSUPP : -EROFS;
	rc = c->mode == COW_MODE_RW ? chain_begin(c) : -EIO;
	if (rc == 0)
		rc = map_for_others(c->layers[0], &q, &map);
	if (rc)
		return rc;
	*ret = map.dst;
	if ((map.dst.flags & COW_EXT_TABLE) || (q.intent == COW_WRITE && (map.dst.flags & COW_EXT_NEW))) {
		img->fmt->commit(img, &map, -ECANCELED);
		ret->kind = COW_BELOW;
		if (map.dst.flags & COW_EXT_TABLE)
			ret->len = virt - ret->virt + 1;
		if (q.intent == COW_WRITE)
			ret->flags = 0;
	}
	ret->phys += virt - ret->virt;
	ret->len = cow_min(len, ret->len - (virt - ret->virt));
	ret->virt = virt;
	return 0;
}

bool cow_chain_unflushed(const struct cow_chain *c)
{
	return c->data_dirty || c->layers[0]->meta.ndirty || c->flush.state != FLUSH_IDLE;
}

int cow_chain_stored(struct cow_chain *c, unsigned first, uint64_t virt, uint64_t len,
		     struct cow_extent *ret, unsigned *ret_layer)
{
	struct cow_extent e = { .virt = virt, .len = len, .kind = COW_BELOW };
	unsigned i;
	int rc;

	chain_assert_thread(c);
	if (first >= c->n || len == 0 || virt >= c->layers[first]->img.size)
		return -EINVAL;
	for (i = first; i < c->n && e.kind == COW_BELOW; i++) {
		struct cow_layer *l = c->layers[i];

		if (virt >= l->img.size) {	/* shorter base */
			e.kind = COW_HOLE;
			i++;
			break;
		}
		rc = layer_extent(l, virt, cow_min(e.len, l->img.size - virt), &e);
		if (rc)
			return rc;
	}
	if (e.kind == COW_BELOW)
		e.kind = COW_HOLE;
	if (e.kind == COW_HOLE)
		e.phys = 0;
	*ret = e;
	*ret_layer = i - 1;
	return 0;
}

int cow_chain_extent(struct cow_chain *c, unsigned first, uint64_t virt, uint64_t len,
		     struct cow_extent *ret, unsigned *ret_layer)
{
	unsigned layer;
	int rc = cow_chain_stored(c, first, virt, len, ret, &layer);

	if (rc)
		return rc;
	if (ret->kind == COW_DATA)
		refine(c->layers[layer], ret);
	if (ret->kind == COW_HOLE)
		ret->phys = 0;
	if (ret_layer)
		*ret_layer = layer;
	return 0;
}

/* ---- resize, check, rebase ---- */

/* Nothing dirty, nothing cached: what a format's offline callbacks expect. */
static int quiesce(struct cow_chain *c, struct cow_err *err)
{
	int rc = 0;

	chain_assert_thread(c);
	cow_assert(c->inflight == 0);
	if (c->writable && c->mode != COW_MODE_RW)
		return cow_err_set(err, c->sticky, "%s: an earlier error made it read-only",
				   c->layers[0]->path);
	if (c->writable)
		rc = cow_chain_flush(c);
	if (rc)
		return cow_err_sys(err, rc, "%s: flush", c->layers[0]->path);
	if (c->writable)
		cow_img_drop_cache(&c->layers[0]->img);
	return 0;
}

static int need_writable(const struct cow_chain *c, struct cow_err *err)
{
	if (c->writable)
		return 0;
	return cow_err_set(err, -EROFS, "%s: opened read-only", c->layers[0]->path);
}

/* What the base has in [@old, below_limit) is covered by zeroes. */
static int hide_base(struct cow_chain *c, uint64_t old)
{
	uint64_t end = cow_min(c->layers[0]->img.below_limit, c->n > 1 ? c->layers[1]->img.size : 0);
	int rc;

	if (end <= old)
		return 0;
	rc = cow_chain_zero(c, old, end - old);
	return rc ? rc : cow_chain_flush(c);
}

/*
 * The image grew from @old: what its base has there must not appear. Formats that
 * remember how far the base shows (below_limit) need no help.
 */
static int end_growing(struct cow_chain *c, uint64_t old, struct cow_err *err)
{
	struct cow_image *img = &c->layers[0]->img;
	int rc = hide_base(c, old);

	if (!img->fmt->grown)
		return rc;
	if (rc == 0)
		rc = img->fmt->grown(img, err);
	if (rc) {
		img->size = old;
		img->below_limit = cow_min(img->below_limit, old);
		img->gen++;
	}
	return rc;
}

int cow_chain_resize(struct cow_chain *c, uint64_t size, bool shrink, struct cow_err *err)
{
	struct cow_image *img = &c->layers[0]->img;
	uint64_t old = img->size;
	int rc = need_writable(c, err);

	if (rc)
		return rc;
	if (!(img->fmt->caps & COW_CAP_RESIZE))
		return cow_err_set(err, -EOPNOTSUPP, "%s: format %s cannot be resized", img->path,
				   img->fmt->name);
	if (size == img->size)
		return 0;
	if (size < img->size && !shrink)
		return cow_err_set(err, -EINVAL, "%s: %llu bytes is smaller than its %llu; "
				   "say --shrink to lose what is behind", img->path,
				   (unsigned long long)size, (unsigned long long)img->size);
	rc = quiesce(c, err);
	if (rc == 0)
		rc = chain_begin(c);
	if (rc == 0)
		rc = img->fmt->resize(img, size, err);
	img->gen++;
	if (rc == 0 && size > old)
		rc = end_growing(c, old, err);
	return rc ? cow_err_set(err, rc, "%s: resize: %s", img->path, strerror(-rc)) : 0;
}

int cow_chain_check(struct cow_chain *c, struct cow_report *rep, uint32_t flags, struct cow_err *err)
{
	struct cow_image *img = &c->layers[0]->img;
	int rc = flags & COW_CHECK_REPAIR ? need_writable(c, err) : 0;

	if (rc)
		return rc;
	if (!(img->fmt->caps & COW_CAP_CHECK))
		return cow_err_set(err, -EOPNOTSUPP, "%s: format %s has nothing to check", img->path,
				   img->fmt->name);
	rep->said = 0;
	rc = quiesce(c, err);
	if (rc == 0 && (flags & COW_CHECK_REPAIR))
		rc = chain_begin(c);
	if (rc == 0)
		rc = img->fmt->check(img, rep, flags, err);
	return rc ? cow_err_set(err, rc, "%s: check: %s", img->path, strerror(-rc)) : 0;
}

static int need_snapshots(const struct cow_image *img, struct cow_err *err)
{
	if (img->fmt->snapshot)
		return 0;
	return cow_err_set(err, -EOPNOTSUPP, "%s: format %s has no snapshots inside an image", img->path,
			   img->fmt->name);
}

int cow_chain_snapshot(struct cow_chain *c, enum cow_snapshot_op op, const char *name,
		       struct cow_err *err)
{
	struct cow_image *img = &c->layers[0]->img;
	int rc = need_snapshots(img, err);

	if (rc == 0)
		rc = need_writable(c, err);
	if (rc == 0)
		rc = quiesce(c, err);
	if (rc == 0)
		rc = img->fmt->snapshot(img, op, name, err);
	img->gen++;
	return rc ? cow_err_set(err, rc, "%s: snapshot: %s", img->path, strerror(-rc)) : 0;
}

int cow_chain_snapshots(struct cow_chain *c, int (*fn)(void *, const struct cow_snapshot *), void *opaque,
			struct cow_err *err)
{
	struct cow_image *img = &c->layers[0]->img;
	int rc = need_snapshots(img, err);

	chain_assert_thread(c);
	return rc ? rc : img->fmt->snapshots(img, fn, opaque, err);
}

static int need_bitmaps(const struct cow_image *img, struct cow_err *err)
{
	if (img->fmt->bitmaps)
		return 0;
	return cow_err_set(err, -EOPNOTSUPP, "%s: format %s has no bitmaps inside an image", img->path,
			   img->fmt->name);
}

int cow_chain_bitmaps(struct cow_chain *c, int (*fn)(void *, const struct cow_bitmap *), void *opaque,
		      struct cow_err *err)
{
	struct cow_image *img = &c->layers[0]->img;
	int rc = need_bitmaps(img, err);

	chain_assert_thread(c);
	return rc ? rc : img->fmt->bitmaps(img, fn, opaque, err);
}

int cow_chain_bitmap_ranges(struct cow_chain *c, const char *name, int (*fn)(void *, uint64_t, uint64_t),
			    void *opaque, struct cow_err *err)
{
	struct cow_image *img = &c->layers[0]->img;
	int rc = need_bitmaps(img, err);

	chain_assert_thread(c);
	return rc ? rc : img->fmt->bitmap_ranges(img, name, fn, opaque, err);
}

int cow_chain_amend(struct cow_chain *c, const struct cow_args *args, struct cow_err *err)
{
	struct cow_image *img = &c->layers[0]->img;
	int rc = need_writable(c, err);

	if (rc)
		return rc;
	if (!img->fmt->amend)
		return cow_err_set(err, -EOPNOTSUPP, "%s: format %s has no options that can be amended",
				   img->path, img->fmt->name);
	rc = cow_args_check(args, img->fmt->amend_opts, img->fmt->name, err);
	if (rc == 0)
		rc = quiesce(c, err);
	if (rc == 0)
		rc = img->fmt->amend(img, args, err);
	img->gen++;
	return rc ? cow_err_set(err, rc, "%s: amend: %s", img->path, strerror(-rc)) : 0;
}

int cow_chain_bitmap(struct cow_chain *c, const struct cow_bitmap_change *ch, struct cow_err *err)
{
	struct cow_image *img = &c->layers[0]->img;
	int rc = need_bitmaps(img, err);

	if (rc == 0)
		rc = need_writable(c, err);
	if (rc == 0)
		rc = quiesce(c, err);
	if (rc == 0)
		rc = img->fmt->bitmap(img, ch, err);
	return rc ? cow_err_set(err, rc, "%s: bitmap: %s", img->path, strerror(-rc)) : 0;
}

struct merge {
	struct cow_chain *from;
	const char *name;
};

static int merge_ranges(void *opaque, int (*mark)(void *, uint64_t, uint64_t), void *to,
			struct cow_err *err)
{
	const struct merge *m = opaque;

	return cow_chain_bitmap_ranges(m->from, m->name, mark, to, err);
}

int cow_chain_bitmap_merge(struct cow_chain *c, const char *name, struct cow_chain *from,
			   const char *from_name, struct cow_err *err)
{
	struct merge m = { from, from_name };
	struct cow_bitmap_change ch = { .op = COW_BITMAP_MERGE, .name = name, .ranges = merge_ranges,
					.opaque = &m };

	return cow_chain_bitmap(c, &ch, err);
}

/*
 * How @base is recorded in an image in @dir: relative when it lies below, so
 * that the pair can be moved together; absolute otherwise.
 */
static int record_path(const char *base, const char *image, struct cow_backing *ret,
		       struct cow_err *err)
{
	char base_real[PATH_MAX], dir_real[PATH_MAX];
	const char *slash = strrchr(image, '/');
	char *dir COW_CLEANUP_FREE = !slash ? cow_strdup(".") :
		cow_asprintf("%.*s", slash == image ? 1 : (int)(slash - image), image);
	const char *rec = base_real;
	size_t n;

	if (!dir)
		return cow_err_sys(err, -ENOMEM, "%s", image);
	if (!realpath(base, base_real))
		return cow_err_sys(err, -errno, "%s", base);
	if (!realpath(dir, dir_real))
		return cow_err_sys(err, -errno, "%s", dir);
	n = strlen(dir_real);
	if (strncmp(base_real, dir_real, n) == 0 && base_real[n] == '/')
		rec = base_real + n + 1;
	else if (n == 1)	/* the root folder */
		rec = base_real + 1;
	if (strlen(rec) >= sizeof(ret->path))
		return cow_err_set(err, -ENAMETOOLONG, "%s: the path is longer than an image can record",
				   base);
	strcpy(ret->path, rec);
	return 0;
}

/* For cow_chain_rebase(): the base that is to be recorded. */
static int base_to_record(struct cow_chain *c, struct cow_chain *base, const char *path, bool force,
			  struct cow_backing *backing, struct cow_identity *now, struct cow_err *err)
{
	const struct cow_image *img = &c->layers[0]->img;
	int rc = 0;

	if (path)
		rc = record_path(path, img->path, backing, err);
	if (rc == 0)
		rc = base ? cow_chain_identity(base, 0, now) : cow_chain_identity(c, 1, now);
	if (rc == 0 && !force && img->identity.size &&
	    (img->identity.size != now->size || img->identity.sample != now->sample))
		rc = cow_err_set(err, -ESTALE, "%s: the contents of the base are not those recorded; "
				 "--force records it all the same", img->path);
	if (rc == 0 && base)
		snprintf(backing->format, sizeof(backing->format), "%s", base->layers[0]->img.fmt->name);
	return rc;
}

int cow_chain_rebase(struct cow_chain *c, struct cow_chain *base, const char *path, bool force,
		     struct cow_err *err)
{
	struct cow_image *img = &c->layers[0]->img;
	bool none = !base && path && !*path;
	struct cow_backing backing = img->backing;
	struct cow_identity now = { 0 };
	int rc = need_writable(c, err);

	if (rc)
		return rc;
	if (!img->fmt->rebase)
		return cow_err_set(err, -EOPNOTSUPP, "%s: format %s cannot have a base", img->path,
				   img->fmt->name);
	if (none ? !*img->backing.path : !base && c->n < 2)
		return cow_err_set(err, -EINVAL, "%s: has no base", img->path);
	rc = quiesce(c, err);
	if (none)
		backing = (struct cow_backing){ 0 };
	else if (rc == 0)
		rc = base_to_record(c, base, path, force, &backing, &now, err);
	if (rc == 0)
		rc = img->fmt->rebase(img, &backing, &now, false, err);
	return rc ? cow_err_set(err, rc, "%s: rebase: %s", img->path, strerror(-rc)) : 0;
}

/* ---- commit ---- */

struct commit {
	struct cow_chain *top, *base;
	bool (*progress)(void *opaque, uint64_t done, uint64_t total);
	void *opaque;
	uint8_t *buf;
};

static int commit_data(struct commit *m, uint64_t virt, uint64_t len)
{
	int rc = 0;

	while (len > 0 && rc == 0) {
		uint64_t n = cow_min(len, COPY_CHUNK);

		rc = cow_chain_pread(m->top, m->buf, n, virt);
		if (rc == 0)
			rc = cow_chain_pwrite(m->base, m->buf, n, virt);
		virt += n;
		len -= n;
	}
	return rc;
}

/* Every range that the top layer holds or hides, into the base. */
static int commit_extents(struct commit *m)
{
	struct cow_layer *l = m->top->layers[0];
	uint64_t virt = 0;
	int rc = 0;

	while (virt < l->img.size && rc == 0) {
		struct cow_extent e;

		if (m->progress && m->progress(m->opaque, virt, l->img.size))
			return -ECANCELED;
		rc = layer_extent(l, virt, l->img.size - virt, &e);
		if (rc)
			return rc;
		if (e.kind == COW_DATA)
			refine(l, &e);
		if (e.kind == COW_DATA || e.kind == COW_ENCODED)
			rc = commit_data(m, virt, e.len);
		else if (e.kind == COW_HOLE)
			rc = cow_chain_zero(m->base, virt, e.len);
		else if (e.kind != COW_BELOW)
			rc = -EOPNOTSUPP;
		virt += e.len;
	}
	return rc;
}

static int commit_into(struct commit *m, struct cow_err *err)
{
	uint64_t size = cow_chain_size(m->top);
	int rc = 0;

	if (cow_chain_size(m->base) < size)
		rc = cow_chain_resize(m->base, size, false, err);
	if (rc == 0) {
		m->buf = cow_memalign(4096, COPY_CHUNK);
		rc = m->buf ? commit_extents(m) : -ENOMEM;
		cow_free(m->buf);
	}
	return rc ? rc : cow_chain_flush(m->base);
}

/* What is known of the base while it is closed. */
struct commit_base {
	char *path, *beneath, *name;
	const char *format;
	uint64_t dev, ino;
};

static int note_base(const struct cow_layer *l, struct commit_base *ret)
{
	ret->path = cow_strdup(l->path);
	ret->name = l->name ? cow_strdup(l->name) : NULL;
	ret->beneath = l->beneath ? cow_strdup(l->beneath) : NULL;
	ret->format = l->img.fmt->name;
	ret->dev = l->file.dev;
	ret->ino = l->file.ino;
	return ret->path && !ret->name == !l->name && !ret->beneath == !l->beneath ? 0 : -ENOMEM;
}

static void forget_base(struct commit_base *b)
{
	cow_free(b->path);
	cow_free(b->beneath);
	cow_free(b->name);
}

/*
 * The base as a chain of its own, for writing, found where it was found for reading: a link that
 * came into its place leads nowhere else. The top's own layers below are closed.
 */
static int open_base_for_commit(struct cow_chain *c, const struct commit_base *b,
				struct cow_chain **ret, struct cow_err *err)
{
	struct cow_open_spec spec = {
		.path = b->name ? b->name : b->path, .beneath = b->beneath, .write = true,
	};
	struct cow_chain_cfg cfg = {
		.format = b->format,
		.path = b->path,
		.args = c->layers[0]->base_args,
		.flags = COW_OPEN_WRITE,
		.backing = c->backing && c->backing[0] ? (const char *const *)c->backing + 1 : NULL,
		.backing_dirs = (const char *const *)c->backing_dirs,
		.cache_bytes = c->cache_bytes,
		.io = c->io->ops,
		.io_arg = c->io->arg,
	};

	return chain_open_spec(&cfg, &spec, ret, err);
}

/*
 * 0. open the base for writing: in use by others, and all stays as it is
 * 1. mark the overlay: its base is about to change on purpose (durable)
 * 2. copy into the base, make that durable. Interrupted here, the overlay still
 *    hides every range that was copied, so the pair reads the same.
 * 3. record what the base is now, take the mark away (durable)
 * 4. empty the overlay. Interrupted here, what is left in it equals the base.
 */
int cow_chain_commit(struct cow_chain *c, bool (*progress)(void *, uint64_t, uint64_t), void *opaque,
		     struct cow_err *err)
{
	struct cow_image *img = &c->layers[0]->img;
	struct commit m = { .top = c, .progress = progress, .opaque = opaque };
	struct cow_identity now;
	struct commit_base b;
	int rc = need_writable(c, err), closed, lower;

	if (rc)
		return rc;
	if (c->n < 2 || !(img->fmt->caps & COW_CAP_COMMIT))
		return cow_err_set(err, -EINVAL, "%s: has no base to commit into", img->path);
	rc = note_base(c->layers[1], &b);
	if (rc == 0)
		rc = quiesce(c, err);
	if (rc) {
		forget_base(&b);
		return cow_err_set(err, rc, "%s: commit: %s", img->path, strerror(-rc));
	}
	chain_close_lower(c);
	rc = open_base_for_commit(c, &b, &m.base, err);
	if (rc == 0) {
		if (m.base->layers[0]->file.dev != b.dev || m.base->layers[0]->file.ino != b.ino)
			rc = cow_err_set(err, -ESTALE, "%s: is another file than a moment ago", b.path);
		if (rc == 0)
			rc = chain_begin(c);
		if (rc == 0)
			rc = img->fmt->rebase(img, &img->backing, &img->identity, true, err);
		if (rc == 0)
			rc = commit_into(&m, err);
		closed = cow_chain_close(m.base);
		rc = rc ? rc : closed;
	}
	forget_base(&b);
	lower = chain_open_lower(c, COW_OPEN_FORCE, err);
	if (lower)
		chain_fail(c, COW_MODE_FAIL, lower, "opening the base again");
	rc = rc ? rc : lower;
	if (rc == 0 && c->layers[1]->file.io)
		rc = c->io->ops->refresh(&c->layers[1]->file);
	if (rc == 0)
		rc = cow_chain_identity(c, 1, &now);
	if (rc == 0)
		rc = img->fmt->rebase(img, &img->backing, &now, false, err);
	if (rc == 0)
		rc = img->fmt->make_empty(img, err);
	img->gen++;
	return rc ? cow_err_set(err, rc, "%s: commit: %s", img->path, strerror(-rc)) : 0;
}

/* ---- create ---- */

struct create {
	const struct cow_create_cfg *cfg;
	const struct cow_format *fmt;
	struct cow_create c;
	struct cow_backing backing;
	struct cow_identity identity;
	bool draft;
};

static int create_base(struct create *cr, const struct cow_args *args, struct cow_err *err)
{
	const struct cow_create_cfg *cfg = cr->cfg;
	struct cow_chain_cfg base = {
		.format = cfg->backing_format,
		.path = cfg->backing,
		.args = args,
		.flags = cfg->force ? COW_OPEN_FORCE : 0,
		.backing = cfg->base_backing,
		.backing_dirs = cfg->backing_dirs,
		.io = cfg->io,
		.io_arg = cfg->io_arg,
		.io_sync = true,
	};
	struct cow_chain *c;
	int rc;

	if (!cfg->backing && args)
		return cow_err_set(err, -EINVAL, "%s: without a base, options that begin with backing. are "
				   "of no use", cfg->path);
	if (!cfg->backing)
		return 0;
	if (!(cr->fmt->caps & COW_CAP_BACKING))
		return cow_err_set(err, -EINVAL, "%s: format %s cannot have a base", cfg->path,
				   cr->fmt->name);
	if (!cfg->backing_format)
		return cow_err_set(err, -EINVAL, "%s: the base's format must be said", cfg->backing);
	rc = cow_chain_open(&base, &c, err);
	if (rc)
		return rc;
	if (cr->c.size == 0)
		cr->c.size = cow_chain_size(c);
	if (cow_chain_depth(c) == COW_CHAIN_DEPTH)
		rc = cow_err_set(err, -ELOOP, "%s: would be image %d of a chain, %d are the limit",
				 cfg->path, COW_CHAIN_DEPTH + 1, COW_CHAIN_DEPTH);
	else
		rc = cow_chain_identity(c, 0, &cr->identity);
	cow_chain_close(c);
	if (rc)
		return cow_err_set(err, rc, "%s: %s", cfg->backing, strerror(-rc));
	snprintf(cr->backing.format, sizeof(cr->backing.format), "%s", cfg->backing_format);
	if (cfg->io == &cow_io_sim_ops)
		snprintf(cr->backing.path, sizeof(cr->backing.path), "%s", cfg->backing);
	else
		rc = record_path(cfg->backing, cfg->path, &cr->backing, err);
	cr->c.backing = &cr->backing;
	cr->c.identity = &cr->identity;
	return rc;
}

/* Who is to be replaced must not be in use. *ret stays locked (io set) until the new one has its name. */
static int lock_replaced(struct create *cr, struct cow_io *io, struct cow_file *ret,
			 struct cow_err *err)
{
	struct cow_open_spec spec = { .path = cr->cfg->path, .write = true };
	struct cow_err ignored = { 0 };
	int rc;

	if (!cr->cfg->exist_ok)
		return 0;
	rc = io->ops->open(io, &spec, ret, &ignored);
	ret->io = rc ? NULL : io;
	if (rc == -ENOENT)
		return 0;
	if (rc)
		return cow_err_set(err, rc, "%s", cow_err_text(&ignored, rc));
	if (ret->blkdev) {	/* written in place: it is locked as the new image */
		io->ops->close(ret);
		ret->io = NULL;
		return 0;
	}
	return io->ops->lock(ret, true, err);
}

/* Does @name stay in or below the folder that it is looked for in? */
static bool stays_below(const char *name)
{
	for (const char *p = name; p; p = strchr(p, '/')) {
		p += *p == '/';
		if (!strncmp(p, "..", 2) && (p[2] == '/' || !p[2]))
			return false;
	}
	return name[0] != '/';
}

/* Would the new image not get its name? */
static bool name_taken(const struct create *cr, struct cow_io *io)
{
	struct cow_open_spec spec = { .path = cr->cfg->path };
	struct cow_err ignored = { 0 };
	struct cow_file f;

	if (cr->cfg->exist_ok || io->ops->open(io, &spec, &f, &ignored))
		return false;
	f.io = io;
	io->ops->close(&f);
	return true;
}

/* The data file of a new image: it is there before the image has its name. */
static int create_data(struct create *cr, struct cow_io *io, const struct cow_image *img,
		       struct cow_err *err)
{
	const char *slash = strrchr(img->path, '/');
	char *path COW_CLEANUP_FREE = cow_asprintf("%.*s%s", slash ? (int)(slash - img->path) + 1 : 0,
						   img->path, img->data_file);
	struct cow_open_spec spec = { .path = path, .write = true, .create = true,
				      .exist_ok = cr->cfg->exist_ok };
	struct cow_file f;
	int rc;

	if (!path)
		return -ENOMEM;
	if (cr->draft)
		return cow_err_set(err, -EOPNOTSUPP, "%s: an image with a data file is made empty, then "
				   "filled", img->path);
	if (!stays_below(img->data_file) || !strcmp(path, img->path))
		return cow_err_set(err, -EINVAL, "%s: the data file '%.256s' is no other file in or below "
				   "its folder", img->path, img->data_file);
	if (name_taken(cr, io))
		return cow_err_sys(err, -EEXIST, "%s", img->path);
	rc = io->ops->open(io, &spec, &f, err);
	if (rc)
		return rc;
	f.io = io;
	rc = io->ops->truncate(&f, img->size);
	if (rc)
		cow_err_sys(err, rc, "%s", path);
	else
		rc = io->ops->publish(&f, cr->cfg->exist_ok, err);
	io->ops->close(&f);
	return rc;
}

/* The nameless file of the new image, with its metadata; locked. *old: as lock_replaced(). */
static int create_file(struct create *cr, struct cow_io *io, struct cow_file *ret, struct cow_file *old,
		       struct cow_err *err)
{
	struct cow_open_spec spec = { .path = cr->cfg->path, .write = true, .create = true,
				      .exist_ok = cr->cfg->exist_ok };
	struct cow_layer l = { .img = { .fmt = cr->fmt, .path = cr->cfg->path } };
	int rc = lock_replaced(cr, io, old, err);

	if (rc == 0)
		rc = io->ops->open(io, &spec, &l.file, err);
	if (rc)
		return rc;
	l.file.io = io;
	rc = io->ops->lock(&l.file, true, err);
	l.img.priv = rc == 0 ? cow_zalloc(cr->fmt->priv_size ? cr->fmt->priv_size : 1) : NULL;
	if (rc == 0 && !l.img.priv)
		rc = -ENOMEM;
	if (rc == 0)
		rc = key_take(&l.img, cr->cfg->args, err);
	if (rc == 0)
		rc = cr->fmt->create(&l.img, &cr->c, err);
	key_drop(&l.img);
	if (rc == 0 && l.img.data_file[0])
		rc = create_data(cr, io, &l.img, err);
	cow_free(l.img.priv);
	if (rc)
		io->ops->close(&l.file);
	else
		*ret = l.file;
	return rc;
}

static int create_and_publish(struct create *cr, struct cow_io *io, struct cow_err *err)
{
	struct cow_file file, old = { .fd = -1, .lock_fd = -1 };
	int rc = create_file(cr, io, &file, &old, err);

	if (rc == 0) {
		rc = io->ops->publish(&file, cr->cfg->exist_ok, err);
		io->ops->close(&file);
	}
	if (old.io)
		io->ops->close(&old);
	return rc;
}

/* What is to be made, from what the caller said. */
static int create_plan(struct create *cr, struct cow_err *err)
{
	const struct cow_create_cfg *cfg = cr->cfg;
	struct cow_args *of_base = NULL;
	int rc = cow_format_find(cfg->format, &cr->fmt, err);

	if (rc)
		return rc;
	if (!(cr->fmt->caps & COW_CAP_CREATE))
		return cow_err_set(err, -EOPNOTSUPP, "format %s cannot be created", cfg->format);
	cr->c.size = cfg->size;
	cr->c.args = cfg->args;
	rc = cow_args_check(cfg->args, cr->fmt->create_opts, cfg->format, err);
	if (rc == 0)
		rc = cow_args_of_base(cfg->args, &of_base);
	if (rc == 0)
		rc = create_base(cr, of_base, err);
	cow_args_free(of_base);
	if (rc == 0 && cr->c.size == 0)
		rc = cow_err_set(err, -EINVAL, "%s: an image of 0 bytes is of no use", cfg->path);
	return rc;
}

int cow_image_create(const struct cow_create_cfg *cfg, uint64_t *ret_size, struct cow_err *err)
{
	struct create cr = { .cfg = cfg };
	const struct cow_io_ops *ops = cfg->io ? cfg->io : &cow_io_sync_ops;
	struct cow_io *io;
	int rc = create_plan(&cr, err);

	if (rc == 0) {
		rc = ops->init(cfg->io_arg, &io);
		if (rc == 0) {
			rc = create_and_publish(&cr, io, err);
			ops->fini(io);
		}
	}
	if (rc == 0 && ret_size)
		*ret_size = cr.c.size;
	return rc ? cow_err_set(err, rc, "%s: %s", cfg->path, strerror(-rc)) : 0;
}

/* The new image as a chain; its base, and where the base's own base is, are what the caller said. */
static int draft_open(struct create *cr, struct cow_chain *c, struct cow_err *err)
{
	struct cow_file file;
	int rc;

	if (name_taken(cr, c->io))	/* before all the work, not after it */
		return cow_err_sys(err, -EEXIST, "%s", cr->cfg->path);
	rc = create_file(cr, c->io, &file, &c->replaced, err);
	if (rc == 0)
		rc = chain_open_new(c, cr->fmt, &file, cr->cfg->args, err);
	if (rc == 0 && cr->cfg->backing)
		rc = chain_open_lower(c, cr->cfg->force ? COW_OPEN_FORCE : 0, err);
	return rc;
}

int cow_image_draft(const struct cow_create_cfg *cfg, struct cow_chain **ret, struct cow_err *err)
{
	struct create cr = { .cfg = cfg, .draft = true };
	const char *backing[COW_CHAIN_DEPTH + 1] = { cfg->backing };
	struct cow_chain_cfg as = { .flags = COW_OPEN_WRITE, .backing = cfg->backing ? backing : NULL,
				    .backing_dirs = cfg->backing_dirs, .io = cfg->io,
				    .io_arg = cfg->io_arg };
	struct cow_chain *c = NULL;
	int rc = create_plan(&cr, err);

	for (unsigned i = 0; cfg->base_backing && cfg->base_backing[i] && i + 1 < COW_CHAIN_DEPTH; i++)
		backing[i + 1] = cfg->base_backing[i];
	if (rc == 0)
		rc = chain_alloc(&as, &c);
	if (rc == 0)
		rc = draft_open(&cr, c, err);
	if (rc) {
		if (c)
			chain_free(c, true);
		return cow_err_set(err, rc, "%s: %s", cfg->path, strerror(-rc));
	}
	c->draft = true;
	c->draft_exist_ok = cfg->exist_ok;
	*ret = c;
	return 0;
}

int cow_image_measure(const struct cow_create_cfg *cfg, struct cow_measure *ret, struct cow_err *err)
{
	struct create cr = { .cfg = cfg };
	int rc = create_plan(&cr, err);
	struct cow_layer l = { .img = { .fmt = cr.fmt, .path = cfg->path } };

	if (rc)
		return rc;
	if (!cr.fmt->measure)
		return cow_err_set(err, -EOPNOTSUPP, "format %s cannot be measured", cfg->format);
	l.img.priv = cow_zalloc(cr.fmt->priv_size ? cr.fmt->priv_size : 1);
	rc = l.img.priv ? cr.fmt->measure(&l.img, &cr.c, ret, err) : -ENOMEM;
	cow_free(l.img.priv);
	return rc ? cow_err_set(err, rc, "%s: %s", cfg->path, strerror(-rc)) : 0;
}

int cow_image_publish(struct cow_chain *c, struct cow_err *err)
{
	struct cow_file *f = &c->layers[0]->file;
	bool forget;
	int rc = chain_end(c, &forget);

	cow_assert(c->draft);
	if (rc)
		rc = cow_err_sys(err, rc, "%s: cannot finish writing", f->path);
	else
		rc = f->io->ops->publish(f, c->draft_exist_ok, err);
	chain_free(c, true);
	return rc;
}
