// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Names, attributes and opens: what exists in a view and who may open it how.
 *
 * Files that show the same bytes. `disk`, each partition and `layers/0` are
 * separate files with separate page caches in the kernel. On a writable view
 * the rules are those of a Linux disk and its partitions, made safe:
 *
 *  - Two files that overlap are not open for writing at the same time (EBUSY).
 *  - Opening for reading while an overlapping file is open for writing gets
 *    direct I/O: every read comes to us.
 *  - Otherwise pages cached earlier are kept only if nothing was changed
 *    through another file since this one was last opened. That is counted, not
 *    guessed from times: view->changes counts all changes, node->own those
 *    through the file.
 *  - A file that is open for reading when somebody begins to write to an
 *    overlapping one may go on showing its cached pages until it is opened anew.
 *
 * On a read-only device cached pages are always kept. When others write to the
 * device too (shared), never: every open gets direct I/O.
 */
#include "fuse/view.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define LONG_S 86400.0	/* names and attributes that cannot change */
#define SHORT_S 1.0	/* attributes that can; the size is pushed when it does */

/* ---- nodes ---- */

static bool is_dir(const struct view_node *n)
{
	return n->kind == VIEW_ROOT || n->kind == VIEW_LAYERS;
}

static bool is_text(const struct view_node *n)
{
	return n->kind == VIEW_INFO || n->kind == VIEW_MAP || n->kind == VIEW_STATS;
}

static bool may_write(const struct cow_fuse *f, const struct view_node *n)
{
	return f->writable && (n->kind == VIEW_DISK || n->kind == VIEW_PART);
}

int view_tree_init(struct cow_fuse *f)
{
	static const struct {
		fuse_ino_t ino;
		const char *name;
	} fixed[] = {	/* in order of enum view_kind */
		{ VIEW_INO_ROOT, "" },
		{ VIEW_INO_DISK, "disk" },
		{ VIEW_INO_INFO, "info.json" },
		{ VIEW_INO_MAP, "map.json" },
		{ VIEW_INO_STATS, "stats" },
		{ VIEW_INO_LAYERS, "layers" },
	};

	clock_gettime(CLOCK_REALTIME, &f->mounted);
	f->mtime = f->mounted;
	for (unsigned i = 0; i < COW_ARRAY_SIZE(fixed); i++) {
		f->fixed[i].ino = fixed[i].ino;
		f->fixed[i].kind = (enum view_kind)i;
		snprintf(f->fixed[i].name, sizeof(f->fixed[i].name), "%s", fixed[i].name);
	}
	f->n_layers = cow_chain_depth(f->chain);
	f->layers = cow_zalloc(f->n_layers * sizeof(*f->layers));
	if (!f->layers)
		return -ENOMEM;
	for (unsigned i = 0; i < f->n_layers; i++) {
		struct view_node *n = &f->layers[i];

		n->ino = VIEW_INO_LAYER0 + i;
		n->kind = VIEW_LAYER;
		n->index = i;
		snprintf(n->name, sizeof(n->name), "%u", i);
	}
	return 0;
}

void view_tree_free(struct cow_fuse *f)
{
	cow_free(f->layers);
	cow_free(f->parts.nodes);
}

/* NULL: a partition of an earlier table. */
static struct view_node *node_of(struct cow_fuse *f, fuse_ino_t ino)
{
	if (ino >= VIEW_INO_ROOT && ino <= VIEW_INO_LAYERS)
		return &f->fixed[ino - VIEW_INO_ROOT];
	if (ino >= VIEW_INO_LAYER0 && ino - VIEW_INO_LAYER0 < f->n_layers)
		return &f->layers[ino - VIEW_INO_LAYER0];
	for (unsigned i = 0; i < f->parts.n; i++)
		if (f->parts.nodes[i].ino == ino)
			return &f->parts.nodes[i];
	return NULL;
}

uint64_t view_node_size(const struct cow_fuse *f, const struct view_node *n)
{
	uint64_t disk = cow_dev_size(f->dev);

	switch (n->kind) {
	case VIEW_DISK:
		return disk;
	case VIEW_PART:	/* the device may have shrunk since the table was read */
		return n->start >= disk ? 0 : cow_min(n->len, disk - n->start);
	case VIEW_LAYER:
		return n->index ? cow_chain_image(f->chain, n->index)->size : disk;
	default:
		return 0;
	}
}

/* Nothing but this very file can change its bytes. */
static bool is_constant(const struct cow_fuse *f, const struct view_node *n)
{
	return cow_dev_readonly(f->dev) || (n->kind == VIEW_LAYER && n->index);
}

static double attr_timeout(const struct cow_fuse *f, const struct view_node *n)
{
	if (is_text(n))
		return 0;
	return is_dir(n) || is_constant(f, n) ? LONG_S : SHORT_S;
}

/* @h: the handle asked about, or NULL. */
static void fill_attr(struct cow_fuse *f, struct view_node *n, const struct view_handle *h,
		      struct stat *st)
{
	mode_t mode = may_write(f, n) ? 0600 : 0400;

	*st = (struct stat){ .st_ino = n->ino,
			     .st_nlink = 1,
			     .st_uid = geteuid(),
			     .st_gid = getegid(),
			     .st_blksize = 4096 };
	st->st_atim = st->st_mtim = st->st_ctim =
		is_constant(f, n) || is_dir(n) ? f->mounted : f->mtime;
	if (is_dir(n)) {
		st->st_mode = S_IFDIR | 0500;
		st->st_nlink = n->kind == VIEW_ROOT ? 3 : 2;
		return;
	}
	st->st_mode = S_IFREG | mode;
	if (is_text(n)) {
		st->st_size = (off_t)(h && h->fd >= 0 ? h->size : view_text_size(f, n));
		clock_gettime(CLOCK_REALTIME, &st->st_mtim);
		st->st_ctim = st->st_mtim;
	} else {
		/* An upper bound; the engine counts per image, not per partition or layer. */
		st->st_size = (off_t)view_node_size(f, n);
		st->st_blocks = (blkcnt_t)cow_min(cow_chain_sectors_used(f->chain),
						  cow_div_up((uint64_t)st->st_size, 512));
	}
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct cow_fuse *f = view_of(req);
	struct view_node *n = node_of(f, ino);
	struct stat st;

	if (!n) {
		fuse_reply_err(req, ESTALE);
		return;
	}
	fill_attr(f, n, fi && !is_dir(n) ? view_handle(fi) : NULL, &st);
	fuse_reply_attr(req, &st, attr_timeout(f, n));
}

/*
 * Times may be "set" (a copy program does so at its end) but are ours to tell.
 * The size, owner and mode stay: truncating a disk by accident is one typing
 * error away.
 */
static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
		       struct fuse_file_info *fi)
{
	struct cow_fuse *f = view_of(req);
	const struct view_node *n = node_of(f, ino);

	if (!n) {
		fuse_reply_err(req, ESTALE);
		return;
	}
	if ((to_set & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) ||
	    ((to_set & FUSE_SET_ATTR_SIZE) && (uint64_t)attr->st_size != view_node_size(f, n))) {
		fuse_reply_err(req, EPERM);
		return;
	}
	op_getattr(req, ino, fi);
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct cow_fuse *f = view_of(req);
	uint64_t size = cow_dev_size(f->dev), used = cow_chain_sectors_used(f->chain) * 512;
	struct statvfs st = { .f_bsize = 4096, .f_frsize = 4096, .f_namemax = 255 };

	(void)ino;
	st.f_blocks = cow_div_up(size, 4096);
	st.f_bfree = st.f_bavail = used < size ? (size - used) / 4096 : 0;
	st.f_files = VIEW_LAYERS + 1 + f->n_layers + f->parts.n;
	fuse_reply_statfs(req, &st);
}

/* ---- names ---- */

void view_reply_entry(fuse_req_t req, struct cow_fuse *f, struct view_node *n)
{
	struct fuse_entry_param e = { .generation = 1 };

	if (!n) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	e.ino = n->ino;
	e.attr_timeout = attr_timeout(f, n);
	/* A partition may belong to another table the next time somebody opens it. */
	e.entry_timeout = n->kind == VIEW_PART && !cow_dev_readonly(f->dev) ? 0 : LONG_S;
	fill_attr(f, n, NULL, &e.attr);
	fuse_reply_entry(req, &e);
}

static struct view_node *layer_named(struct cow_fuse *f, const char *name)
{
	for (unsigned i = 0; i < f->n_layers; i++)
		if (!strcmp(name, f->layers[i].name))
			return &f->layers[i];
	return NULL;
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct cow_fuse *f = view_of(req);
	unsigned index;

	if (parent == VIEW_INO_LAYERS) {
		view_reply_entry(req, f, layer_named(f, name));
		return;
	}
	if (parent != VIEW_INO_ROOT) {
		fuse_reply_err(req, ENOTDIR);
		return;
	}
	for (unsigned i = VIEW_DISK; i <= VIEW_LAYERS; i++) {
		if (!strcmp(name, f->fixed[i].name)) {
			view_reply_entry(req, f, &f->fixed[i]);
			return;
		}
	}
	/* Only now is the partition table of interest. */
	if (!view_part_name(name, &index))
		fuse_reply_err(req, ENOENT);
	else if (!view_parts_wait(f, req, NULL, index))
		view_reply_entry(req, f, view_part_find(f, index));
}

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct cow_fuse *f = view_of(req);

	/* The scan waits here, not in readdir: there the kernel would hold the folder's lock. */
	if (ino != VIEW_INO_ROOT || !view_parts_wait(f, req, fi, 0))
		fuse_reply_open(req, fi);
}

/*
 * Entry number @i of folder @dir: ".", "..", then its files. Partitions have
 * numbers of their own, so that a new table does not shift the others.
 */
static const struct view_node *dir_entry(struct cow_fuse *f, fuse_ino_t dir, uint64_t i,
					 const char **ret_name)
{
	const struct view_node *n = NULL;

	if (i < 2) {
		*ret_name = i ? ".." : ".";
		return &f->fixed[i || dir == VIEW_INO_ROOT ? VIEW_ROOT : VIEW_LAYERS];
	}
	i -= 2;
	if (dir == VIEW_INO_LAYERS)
		n = i < f->n_layers ? &f->layers[i] : NULL;
	else if (i < VIEW_LAYERS)
		n = &f->fixed[VIEW_DISK + i];
	else if (i - VIEW_LAYERS < f->parts.n)
		n = &f->parts.nodes[i - VIEW_LAYERS];
	if (n)
		*ret_name = n->name;
	return n;
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		       struct fuse_file_info *fi)
{
	struct cow_fuse *f = view_of(req);
	struct view_buf *b = view_buf_get(f);
	const struct view_node *n;
	const char *name;
	size_t used = 0, len;
	uint64_t i = (uint64_t)off;

	(void)fi;
	if (!b) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	size = cow_min(size, VIEW_IO_MAX);
	while ((n = dir_entry(f, ino, i, &name))) {
		struct stat st = { .st_ino = n->ino, .st_mode = is_dir(n) ? S_IFDIR : S_IFREG };

		len = fuse_add_direntry(req, (char *)b->mem + used, size - used, name, &st,
					(off_t)++i);
		if (len > size - used)
			break;
		used += len;
	}
	fuse_reply_buf(req, (char *)b->mem, used);
	view_buf_put(f, b, used);
}

/* ---- open ---- */

static bool overlap(const struct cow_fuse *f, const struct view_node *a, const struct view_node *b)
{
	return a->start < b->start + view_node_size(f, b) &&
	       b->start < a->start + view_node_size(f, a);
}

/* Is a file other than @n that shows some of the same bytes open for writing? */
static bool written_elsewhere(const struct cow_fuse *f, const struct view_node *n)
{
	const struct view_node *disk = &f->fixed[VIEW_DISK];

	if (n->kind == VIEW_LAYER && n->index)
		return false;
	if (n != disk && disk->writers && overlap(f, n, disk))
		return true;
	for (unsigned i = 0; i < f->parts.n; i++) {
		const struct view_node *p = &f->parts.nodes[i];

		if (p != n && p->writers && overlap(f, n, p))
			return true;
	}
	return false;
}

static uint32_t open_flags(const struct cow_fuse *f, struct view_node *n, bool write)
{
	uint64_t elsewhere = f->changes - n->own;
	bool keep = n->seen == elsewhere;

	if (is_constant(f, n))
		return FOPEN_KEEP_CACHE;
	if (f->shared)	/* parallel writes: the engine keeps overlapping ones apart */
		return FOPEN_DIRECT_IO | (write ? FOPEN_PARALLEL_DIRECT_WRITES : 0);
	if (!write && written_elsewhere(f, n))
		return FOPEN_DIRECT_IO;
	n->seen = elsewhere;
	return keep ? FOPEN_KEEP_CACHE : 0;
}

void view_handle_free(struct view_handle *h)
{
	cow_list_del(&h->node);
	h->file->opens--;
	if (h->write)
		h->file->writers--;
	if (h->fd >= 0)
		close(h->fd);
	cow_free(h);
}

void view_reply_open(fuse_req_t req, struct view_handle *h, uint32_t flags)
{
	/* Not fuse_reply_open(): libfuse 3.14 has no name for some of the flags. */
	struct fuse_open_out out = { .fh = (uintptr_t)h, .open_flags = flags };

	/* An interrupted open gets no release. */
	if (fuse_reply_buf(req, (const char *)&out, sizeof(out)))
		view_handle_free(h);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct cow_fuse *f = view_of(req);
	struct view_node *n = node_of(f, ino);
	bool write = (fi->flags & O_ACCMODE) != O_RDONLY;
	struct view_handle *h;
	int e = 0;

	/* Of fi->flags only the access mode counts; O_DIRECT is the kernel's affair. */
	if (!n)
		e = ESTALE;
	else if (is_dir(n))
		e = EISDIR;
	else if (write && !may_write(f, n))
		e = EROFS;
	else if (write && written_elsewhere(f, n))
		e = EBUSY;
	h = e ? NULL : cow_zalloc(sizeof(*h));
	if (!h) {
		fuse_reply_err(req, e ? e : ENOMEM);
		return;
	}
	h->file = n;
	h->fd = -1;
	h->write = write;
	n->opens++;
	n->writers += write;
	cow_list_add_tail(&f->handles, &h->node);
	if (is_text(n))
		view_text_open(req, f, h);
	else
		view_reply_open(req, h, open_flags(f, n, write));
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	view_handle_free(view_handle(fi));
	fuse_reply_err(req, 0);
}

/* ---- the set of files is ours: EPERM, where libfuse alone would say "not implemented" ---- */

static void deny_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
			struct fuse_file_info *fi)
{
	(void)parent, (void)name, (void)mode, (void)fi;
	fuse_reply_err(req, EPERM);
}

static void deny_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	(void)parent, (void)name, (void)mode, (void)rdev;
	fuse_reply_err(req, EPERM);
}

static void deny_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	(void)parent, (void)name, (void)mode;
	fuse_reply_err(req, EPERM);
}

static void deny_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	(void)parent, (void)name;
	fuse_reply_err(req, EPERM);
}

static void deny_symlink(fuse_req_t req, const char *link, fuse_ino_t parent, const char *name)
{
	(void)link, (void)parent, (void)name;
	fuse_reply_err(req, EPERM);
}

static void deny_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
			const char *newname, unsigned int flags)
{
	(void)parent, (void)name, (void)newparent, (void)newname, (void)flags;
	fuse_reply_err(req, EPERM);
}

static void deny_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname)
{
	(void)ino, (void)newparent, (void)newname;
	fuse_reply_err(req, EPERM);
}

void view_tree_ops(struct fuse_lowlevel_ops *ops)
{
	ops->lookup = op_lookup;
	ops->getattr = op_getattr;
	ops->setattr = op_setattr;
	ops->statfs = op_statfs;
	ops->opendir = op_opendir;
	ops->readdir = op_readdir;
	ops->open = op_open;
	ops->release = op_release;
	ops->create = deny_create;
	ops->mknod = deny_mknod;
	ops->mkdir = deny_mkdir;
	ops->unlink = deny_unlink;
	ops->rmdir = deny_unlink;
	ops->symlink = deny_symlink;
	ops->rename = deny_rename;
	ops->link = deny_link;
}
