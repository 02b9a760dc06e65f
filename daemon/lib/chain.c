// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Opening and closing a chain: which files belong to it, whether they may be
 * opened, that nobody else uses them, and that a base is still what its overlay
 * was made over. What an image says of its base is a hint from a stranger: only
 * what the caller allowed is opened. Requests are in req.c.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <sys/random.h>
#include <xxhash.h>

#include "cow/log.h"
#include "engine.h"

#define CACHE_DEFAULT	COW_MIB(8)	/* metadata of 248 GiB of dscow; of a layer below: less is used */
#define ADOPT_BYTES	COW_MIB(64)	/* dirty metadata of a killed writer that a reader can take over */
#define SAMPLES		16u		/* spread evenly over a base, first and last bytes included */
#define SAMPLE_BYTES	4096u

void chain_assert_thread(const struct cow_chain *c)
{
	cow_assert(pthread_equal(c->thread, pthread_self()));
}

void chain_fail(struct cow_chain *c, enum cow_chain_mode mode, int why, const char *what)
{
	if (mode <= c->mode)
		return;
	c->mode = mode;
	c->sticky = why;
	vmap_spoil(&c->layers[0]->meta.vmap);
	cow_log(COW_LOG_ERR, "%s: %s failed (%s): %s until it is opened again", c->layers[0]->path,
		what, strerror(-why), mode == COW_MODE_RO ? "no more writes" : "no more I/O");
}

int chain_begin(struct cow_chain *c)
{
	struct cow_layer *top = c->layers[0];
	uint64_t session = 0;
	int rc;

	if (c->begun)
		return 0;
	while (session == 0) {
		if (getrandom(&session, sizeof(session), 0) != sizeof(session))
			return -EIO;
	}
	rc = vmap_name(&top->meta.vmap, session);
	if (rc == 0 && top->img.fmt->begin)
		rc = top->img.fmt->begin(&top->img, session);
	if (rc) {
		cow_log_limited(COW_LOG_ERR, "%s: cannot begin to write: %s", top->path,
				strerror(-rc));
		return rc;
	}
	top->img.session = session;
	c->begun = true;
	return 0;
}

/* ---- what a base is ---- */

static int sample_hash(struct cow_chain *c, unsigned layer, uint64_t size, uint64_t *ret)
{
	size_t bytes = (size_t)cow_min(size, (uint64_t)SAMPLES * SAMPLE_BYTES);
	uint8_t *buf COW_CLEANUP_FREE = cow_zalloc(bytes);
	int rc = 0;

	if (!buf)
		return -ENOMEM;
	if (bytes < SAMPLES * SAMPLE_BYTES) {
		rc = cow_chain_pread_layer(c, layer, buf, bytes, 0);
	} else {
		for (uint64_t i = 0; i < SAMPLES && rc == 0; i++) {
			uint64_t off = (size - SAMPLE_BYTES) / (SAMPLES - 1) * i;

			if (i == SAMPLES - 1)
				off = size - SAMPLE_BYTES;
			rc = cow_chain_pread_layer(c, layer, buf + i * SAMPLE_BYTES, SAMPLE_BYTES,
						   off);
		}
	}
	if (rc == 0)
		*ret = XXH3_64bits(buf, bytes);
	return rc;
}

int cow_chain_identity(struct cow_chain *c, unsigned layer, struct cow_identity *ret)
{
	struct cow_layer *l;
	uint64_t sample = 0;
	int rc;

	if (layer >= c->n)
		return -EINVAL;
	l = c->layers[layer];
	rc = sample_hash(c, layer, l->img.size, &sample);
	if (rc)
		return rc;
	*ret = (struct cow_identity){
		.size = l->img.size,
		.mtime_ns = l->file.io ? l->file.mtime_ns : 0,
		.sample = sample,
	};
	return 0;
}

static int check_identity(struct cow_chain *c, unsigned over, uint32_t flags, struct cow_err *err)
{
	struct cow_layer *l = c->layers[over], *base = c->layers[over + 1];
	const struct cow_identity *rec = &l->img.identity;
	struct cow_identity now;
	const char *what = NULL;
	int rc;

	if (rec->size == 0)
		return 0;
	rc = cow_chain_identity(c, over + 1, &now);
	if (rc)
		return cow_err_sys(err, rc, "%s: cannot read the base", base->path);
	if (now.size < rec->size)
		what = "became shorter";
	else if (now.size > rec->size)
		what = "became longer";
	else if (rec->mtime_ns && now.mtime_ns && now.mtime_ns != rec->mtime_ns)
		what = "was modified";
	else if (now.sample != rec->sample)
		what = "has changed contents";
	if (!what)
		return 0;
	if (flags & COW_OPEN_FORCE) {
		cow_log(COW_LOG_WARN, "%s: its base %s %s since the overlay was made, used because of --force",
			l->path, base->path, what);
		return 0;
	}
	return cow_err_set(err, -ESTALE, "%s: its base %s %s since the overlay was made; "
			   "--force opens it all the same", l->path, base->path, what);
}

/* ---- files ---- */

int chain_open_file(struct cow_chain *c, const struct cow_open_spec *spec, struct cow_file *ret,
		    struct cow_err *err)
{
	int rc = c->io->ops->open(c->io, spec, ret, err);

	if (rc == 0)
		ret->io = c->io;
	return rc;
}

static bool same_file(const struct cow_file *a, const struct cow_file *b)
{
	return a != b && a->io && b->io && a->dev == b->dev && a->ino == b->ino;
}

/* Is @f, of layer @i, one that is in the chain already? */
static bool is_loop(const struct cow_chain *c, unsigned i, const struct cow_file *f)
{
	for (unsigned j = 0; j <= i; j++) {
		if (same_file(&c->layers[j]->file, f) || same_file(&c->layers[j]->data, f))
			return true;
	}
	return false;
}

/* One behind those that are open, with nothing in it yet. NULL: no memory. */
static struct cow_layer *new_layer(struct cow_chain *c)
{
	struct cow_layer *l = cow_zalloc(sizeof(*l));

	if (l)
		*l = (struct cow_layer){ .chain = c, .index = c->n, .file.fd = -1, .meta.vmap.fd = -1 };
	c->layers[c->n] = l;
	return l;
}

static void close_layer(struct cow_layer *l, bool forget)
{
	if (l->img.priv) {
		l->img.fmt->close(&l->img);
		cow_free(l->img.priv);
	}
	encoded_forget(l);
	cow_args_free(l->base_args);
	meta_fini(&l->meta, forget);
	if (l->file.io)
		l->file.io->ops->close(&l->file);
	if (l->data.io)
		l->data.io->ops->close(&l->data);
	cow_free(l->path);
	cow_free(l->beneath);
	cow_free(l->name);
	l->chain->layers[l->index] = NULL;
	cow_free(l);
}

static int open_data(struct cow_chain *c, struct cow_layer *l, bool write, struct cow_err *err);

/* What the engine relies on for data that is enciphered. */
static int check_encrypted(const struct cow_image *img, struct cow_err *err)
{
	if (!img->encrypted)
		return 0;
	if (img->size % COW_CRYPT_UNIT)
		return cow_err_set(err, -EINVAL, "%s: is encrypted, and its size is no multiple of %u bytes",
				   img->path, COW_CRYPT_UNIT);
	cow_assert(img->fmt->crypt && img->granule % COW_CRYPT_UNIT == 0 && !img->linear);
	return 0;
}

static int format_open(struct cow_image *img, const struct cow_args *args, struct cow_err *err)
{
	int rc = key_take(img, args, err);

	if (rc)
		return rc;
	rc = img->fmt->open(img, args, err);
	key_drop(img);
	return rc;
}

static int open_image(struct cow_chain *c, struct cow_layer *l, const struct cow_args *args,
		      bool write, struct cow_err *err)
{
	const struct cow_format *fmt = l->img.fmt;
	uint64_t bytes;
	int rc;

	l->img.path = l->path;
	l->img.priv = cow_zalloc(fmt->priv_size ? fmt->priv_size : 1);
	if (!l->img.priv)
		return cow_err_sys(err, -ENOMEM, "%s", l->path);
	l->img.granule = 1;
	rc = cow_args_of_base(args, &l->base_args);
	if (rc == 0)
		rc = format_open(&l->img, args, err);
	if (rc) {
		cow_free(l->img.priv);
		l->img.priv = NULL;
		return rc;
	}
	rc = check_encrypted(&l->img, err);
	if (rc)
		return rc;
	cow_assert(cow_is_pow2(l->img.granule) && l->img.below_limit <= l->img.size);
	if (!l->file.io)
		return 0;
	rc = open_data(c, l, write, err);
	if (rc)
		return rc;
	/* No more than there is; the least, META_SLOTS_MIN, where a format has no metadata. */
	bytes = l->img.table_bytes;
	if (bytes == 0 && (fmt->verify || fmt->seal))
		bytes = l->file.size;
	bytes = cow_min(bytes, c->cache_bytes);
	if (!write)
		bytes = cow_max(bytes, cow_min(meta_adopt_bytes(&l->img, &l->file), ADOPT_BYTES));
	rc = meta_init(&l->meta, &l->img, &l->file, bytes, c->persist && write && fmt->begin, err);
	l->img.meta = &l->meta;
	return rc ? rc : meta_adopt(&l->meta, write, err);
}

static int lock_file(struct cow_chain *c, struct cow_file *f, bool write, struct cow_err *err)
{
	f->kept = c->keeps && c->keeps(c->keeps_opaque, f->dev, f->ino);
	return f->io->ops->lock(f, write, err);
}

/* For who opens the file again: it is to be looked for in the same place. */
static int keep_spec(struct cow_layer *l, const struct cow_open_spec *spec)
{
	l->name = cow_strdup(spec->path);
	l->beneath = spec->beneath ? cow_strdup(spec->beneath) : NULL;
	return l->name && (l->beneath || !spec->beneath) ? 0 : -ENOMEM;
}

/* Opens layer @c->n; on success the chain is one deeper. */
static int open_layer(struct cow_chain *c, const char *format, const struct cow_open_spec *spec,
		      const struct cow_args *args, uint32_t flags, struct cow_err *err)
{
	struct cow_layer *l = new_layer(c);
	bool write = flags & COW_OPEN_WRITE;
	int rc;

	if (!l)
		return -ENOMEM;
	l->img.open_flags = flags;
	l->path = cow_strdup(spec->path);
	rc = l->path ? cow_format_find(format, &l->img.fmt, err) : -ENOMEM;
	if (rc == 0 && write && !(l->img.fmt->caps & COW_CAP_WRITE))
		rc = cow_err_set(err, -EROFS, "%s: format %s cannot be written", l->path, format);
	if (rc == 0)
		rc = cow_args_check(args, l->img.fmt->opts, format, err);
	if (rc == 0 && !(l->img.fmt->caps & COW_CAP_NOFILE)) {
		rc = chain_open_file(c, spec, &l->file, err);
		if (rc)
			l->file.io = NULL;
		else if (is_loop(c, c->n, &l->file))
			rc = cow_err_set(err, -ELOOP, "%s: is in the chain already", l->path);
		else
			rc = lock_file(c, &l->file, write, err);
		if (rc == 0) {
			cow_free(l->path);
			l->path = cow_strdup(l->file.path);
			rc = l->path ? keep_spec(l, spec) : -ENOMEM;
		}
	}
	if (rc == 0)
		rc = open_image(c, l, args, write, err);
	if (rc) {
		close_layer(l, true);
		return rc;
	}
	c->n++;
	return 0;
}

int chain_open_new(struct cow_chain *c, const struct cow_format *fmt, struct cow_file *file,
		   const struct cow_args *args, struct cow_err *err)
{
	struct cow_layer *l = new_layer(c);
	int rc;

	if (!l)
		return -ENOMEM;
	l->file = *file;
	file->io = NULL;
	l->img.fmt = fmt;
	l->img.open_flags = COW_OPEN_WRITE;
	l->path = cow_strdup(l->file.path);
	rc = l->path ? open_image(c, l, args, true, err) : -ENOMEM;
	if (rc)
		close_layer(l, true);
	else
		c->n = 1;
	return rc;
}

/* ---- the base ---- */

static char *dir_of(const char *path)
{
	const char *slash = strrchr(path, '/');

	if (!slash)
		return cow_strdup(".");
	return slash == path ? cow_strdup("/") : cow_asprintf("%.*s", (int)(slash - path), path);
}

/* @path without the folder @dir (and the slashes between), NULL when it is not below it. */
static const char *below(const char *path, const char *dir)
{
	size_t n = strlen(dir);

	while (n > 0 && dir[n - 1] == '/')
		n--;
	if (strncmp(path, dir, n) || path[n] != '/')
		return NULL;
	path += n + strspn(path + n, "/");
	return *path ? path : NULL;
}

static bool missing_there(int rc)
{
	return rc == -ENOENT || rc == -ENOTDIR;
}

/* How the recorded name @rec is opened below @dir. False: it is not to be looked for there. */
static bool spec_below(const char *dir, const char *rec, struct cow_open_spec *ret)
{
	char real[PATH_MAX];

	*ret = (struct cow_open_spec){ .beneath = dir, .path = rec };
	if (rec[0] == '/') {
		ret->path = below(rec, dir);
		if (!ret->path && realpath(dir, real))
			ret->path = below(rec, real);
	}
	return ret->path;
}

/* Tries the recorded base below @dir. 1: not to be looked for there. */
static int try_dir(struct cow_chain *c, const char *dir, const struct cow_layer *over, uint32_t flags,
		   struct cow_err *err)
{
	const struct cow_backing *b = &over->img.backing;
	struct cow_open_spec spec;

	if (!spec_below(dir, b->path, &spec))
		return 1;
	return open_layer(c, b->format, &spec, over->base_args, flags, err);
}

/* The same for a data file. */
static int try_data(struct cow_chain *c, struct cow_layer *l, const char *dir, bool write,
		    struct cow_err *err)
{
	struct cow_open_spec spec;
	int rc;

	if (!spec_below(dir, l->img.data_file, &spec))
		return 1;
	spec.write = write;
	rc = chain_open_file(c, &spec, &l->data, err);
	if (rc)
		l->data.io = NULL;
	return rc;
}

/* The data file of layer @l, if it has one: looked for where its base would be. */
static int open_data(struct cow_chain *c, struct cow_layer *l, bool write, struct cow_err *err)
{
	const char *rec = l->img.data_file;
	char *own COW_CLEANUP_FREE = dir_of(l->path);
	struct cow_err first = { 0 };
	int rc;

	if (!rec[0])
		return 0;
	rc = own ? try_data(c, l, own, write, &first) : -ENOMEM;
	for (char **dir = c->backing_dirs; dir && *dir && (rc == 1 || missing_there(rc)); dir++) {
		int other = try_data(c, l, *dir, write, &first);

		rc = other == 1 ? rc : other;
	}
	if (rc == 1 || rc == -EXDEV)
		return cow_err_set(err, -EPERM, "%s: its data file '%.256s' lies outside the image's folder; "
				   "name its folder with --backing-dir", l->path, rec);
	if (missing_there(rc))
		return cow_err_set(err, -ENOENT, "%s: its data file '%.256s' does not exist", l->path, rec);
	if (rc)
		return cow_err_set(err, rc, "%s: its data file: %s", l->path, cow_err_text(&first, rc));
	if (is_loop(c, l->index, &l->data))
		return cow_err_set(err, -ELOOP, "%s: its data file '%.256s' is in the chain already", l->path,
				   rec);
	rc = lock_file(c, &l->data, write, err);
	if (rc == 0 && write && l->img.session)	/* what a killed writer left there, before what refers to it */
		rc = cow_io_run(&l->data, COW_IO_SYNC, NULL, 0, 0);
	return rc ? cow_err_sys(err, rc, "%s", l->data.path) : 0;
}

/* Looks for what layer @over recorded, only where the caller allows it. */
static int open_recorded(struct cow_chain *c, unsigned over, uint32_t flags, struct cow_err *err)
{
	struct cow_layer *l = c->layers[over];
	const char *rec = l->img.backing.path;
	char *own COW_CLEANUP_FREE = dir_of(l->path);
	struct cow_err first = { 0 };
	int rc;

	if (!own)
		return -ENOMEM;
	rc = try_dir(c, own, l, flags, &first);
	for (char **dir = c->backing_dirs; dir && *dir && (rc == 1 || missing_there(rc)); dir++) {
		struct cow_err ignored = { 0 };
		int other = try_dir(c, *dir, l, flags, &ignored);

		if (other != 1 && !missing_there(other)) {
			rc = other;
			first = ignored;
		}
	}
	if (rc == 1 || rc == -EXDEV)
		return cow_err_set(err, -EPERM, "%s: its base '%.256s' lies outside the image's folder; "
				   "name it with --backing, or its folder with --backing-dir",
				   l->path, rec);
	if (missing_there(rc))
		return cow_err_set(err, -ENOENT, "%s: its base '%.256s' does not exist", l->path, rec);
	if (rc)
		return cow_err_set(err, rc, "%s: its base: %s", l->path, cow_err_text(&first, rc));
	return 0;
}

static int open_base(struct cow_chain *c, unsigned over, uint32_t flags, struct cow_err *err)
{
	const struct cow_layer *l = c->layers[over];
	const struct cow_backing *b = &l->img.backing;
	uint32_t base_flags = flags & (COW_OPEN_FORCE | COW_OPEN_NODATA);
	const char *explicit = NULL;
	int rc;

	for (unsigned i = 0; c->backing && c->backing[i] && !explicit; i++)
		explicit = i == over ? c->backing[i] : NULL;
	if (!b->path[0] && explicit)
		return cow_err_set(err, -EINVAL, "%s: has no base, --backing %s is of no use", l->path,
				   explicit);
	if (!b->path[0] && l->base_args)
		return cow_err_set(err, -EINVAL, "%s: has no base, options that begin with backing. are of "
				   "no use", l->path);
	if (!b->path[0])
		return 0;
	if (!b->format[0])
		return cow_err_set(err, -EINVAL, "%s: does not say which format its base has", l->path);
	if (c->n == COW_CHAIN_DEPTH)
		return cow_err_set(err, -ELOOP, "%s: more than %d images in the chain",
				   c->layers[0]->path, COW_CHAIN_DEPTH);
	if (explicit) {
		struct cow_open_spec spec = { .path = explicit };

		rc = open_layer(c, b->format, &spec, l->base_args, base_flags, err);
	} else {
		rc = open_recorded(c, over, base_flags, err);
	}
	return rc;
}

/* Opens every layer below the top, then checks each base from the lowest up. */
int chain_open_lower(struct cow_chain *c, uint32_t flags, struct cow_err *err)
{
	unsigned before;
	int rc;

	do {
		before = c->n;
		rc = open_base(c, c->n - 1, flags, err);
	} while (rc == 0 && c->n > before);
	for (unsigned over = c->n - 1; over-- > 0 && rc == 0; )
		rc = check_identity(c, over, flags, err);
	return rc;
}

void chain_close_lower(struct cow_chain *c)
{
	while (c->n > 1)
		close_layer(c->layers[--c->n], false);
}

/* ---- open and close ---- */

static void free_strings(char **s)
{
	for (char **p = s; p && *p; p++)
		cow_free(*p);
	cow_free(s);
}

static int copy_strings(const char *const *from, char ***ret)
{
	size_t n = 0;

	*ret = NULL;
	if (!from)
		return 0;
	while (from[n])
		n++;
	*ret = cow_zalloc((n + 1) * sizeof(char *));
	if (!*ret)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		(*ret)[i] = cow_strdup(from[i]);
		if (!(*ret)[i])
			return -ENOMEM;
	}
	return 0;
}

void chain_free(struct cow_chain *c, bool forget)
{
	while (c->n > 0) {
		c->n--;
		close_layer(c->layers[c->n], c->n == 0 && forget);
	}
	if (c->replaced.io)
		c->replaced.io->ops->close(&c->replaced);
	if (c->io)
		c->io->ops->fini(c->io);
	free_strings(c->backing);
	free_strings(c->backing_dirs);
	cow_free(c->fetches);
	cow_free(c);
}

int chain_alloc(const struct cow_chain_cfg *cfg, struct cow_chain **ret)
{
	struct cow_chain *c = cow_zalloc(sizeof(*c));
	const struct cow_io_ops *ops = cfg->io;
	int rc;

	if (!c)
		return -ENOMEM;
	if (!ops)
#ifdef HAVE_URING
		ops = cfg->io_sync ? &cow_io_sync_ops : &cow_io_uring_ops;
#else
		ops = &cow_io_sync_ops;
#endif
	c->thread = pthread_self();
	c->writable = cfg->flags & COW_OPEN_WRITE;
	c->persist = cfg->persist;
	c->keeps = cfg->keeps;
	c->keeps_opaque = cfg->keeps_opaque;
	c->data_dirty = c->writable;	/* a killed predecessor's writes may still be in the page cache */
	c->cache_bytes = cfg->cache_bytes ? cfg->cache_bytes : CACHE_DEFAULT;
	cow_list_init(&c->writers);
	cow_list_init(&c->lock_waiters);
	cow_list_init(&c->stalled);
	cow_list_init(&c->fetch_free);
	cow_list_init(&c->flush.joined);
	cow_list_init(&c->flush.next);
	c->fetches = cow_zalloc(ENGINE_FETCHES * sizeof(*c->fetches));
	rc = c->fetches ? ops->init(cfg->io_arg, &c->io) : -ENOMEM;
	if (rc == 0)
		c->io->arg = cfg->io_arg;
	if (rc == 0)
		rc = copy_strings(cfg->backing, &c->backing);
	if (rc == 0)
		rc = copy_strings(cfg->backing_dirs, &c->backing_dirs);
	if (rc) {
		chain_free(c, true);
		return rc;
	}
	for (unsigned i = 0; i < ENGINE_FETCHES; i++)
		cow_list_add_tail(&c->fetch_free, &c->fetches[i].cb.node);
	*ret = c;
	return 0;
}

int chain_open_spec(const struct cow_chain_cfg *cfg, const struct cow_open_spec *spec,
		    struct cow_chain **ret, struct cow_err *err)
{
	struct cow_chain *c;
	int rc = chain_alloc(cfg, &c);

	if (rc)
		return cow_err_sys(err, rc, "%s", cfg->path);
	rc = open_layer(c, cfg->format, spec, cfg->args, cfg->flags, err);
	if (rc == 0 && !cfg->no_backing)
		rc = chain_open_lower(c, cfg->flags, err);
	if (rc) {
		chain_free(c, false);
		return cow_err_set(err, rc, "%s: %s", cfg->path, strerror(-rc));
	}
	*ret = c;
	return 0;
}

int cow_chain_open(const struct cow_chain_cfg *cfg, struct cow_chain **ret, struct cow_err *err)
{
	struct cow_open_spec spec = { .path = cfg->path, .write = cfg->flags & COW_OPEN_WRITE };

	return chain_open_spec(cfg, &spec, ret, err);
}

int chain_end(struct cow_chain *c, bool *ret_forget)
{
	struct cow_layer *top = c->layers[0];
	int rc;

	chain_assert_thread(c);
	cow_assert(c->inflight == 0);
	*ret_forget = true;
	if (!c->writable || (!c->begun && !top->img.session))
		return 0;
	rc = cow_chain_flush(c);
	while (c->flush.state != FLUSH_IDLE)
		cow_chain_poll(c, true);
	if (rc == 0 && top->img.fmt->end)
		rc = top->img.fmt->end(&top->img);
	/* What could not be written is left to the next opener, unless its data may be lost. */
	*ret_forget = rc == 0 || c->mode != COW_MODE_RW;
	return rc;
}

int cow_chain_close(struct cow_chain *c)
{
	bool forget = true;
	int rc = c->draft ? 0 : chain_end(c, &forget);

	chain_free(c, forget);
	return rc;
}

/* ---- facts ---- */

uint64_t cow_chain_size(const struct cow_chain *c)
{
	return c->layers[0]->img.size;
}

bool cow_chain_readonly(const struct cow_chain *c)
{
	return !c->writable;
}

unsigned cow_chain_depth(const struct cow_chain *c)
{
	return c->n;
}

struct cow_image *cow_chain_image(struct cow_chain *c, unsigned layer)
{
	return layer < c->n ? &c->layers[layer]->img : NULL;
}

int cow_chain_file(struct cow_chain *c, unsigned layer, struct cow_chain_file *ret)
{
	const struct cow_file *f;

	if (layer >= c->n || !c->layers[layer]->file.io)
		return -ENOENT;
	f = &c->layers[layer]->file;
	*ret = (struct cow_chain_file){
		.fd = f->fd, .blkdev = f->blkdev, .writable = f->writable, .dev = f->dev,
		.ino = f->ino, .unit = f->direct, .path = f->path,
	};
	return 0;
}

int cow_chain_go_direct(struct cow_chain *c, struct cow_err *err)
{
	chain_assert_thread(c);
	for (unsigned i = 0; i < 2 * c->n; i++) {
		struct cow_file *f = i < c->n ? &c->layers[i]->file : &c->layers[i - c->n]->data;
		int rc = f->io && f->io->ops->direct ? f->io->ops->direct(f) : 0;

		/* A file system keeps its page cache and direct I/O of others in step, a device does not. */
		if (rc && (rc != -EOPNOTSUPP || f->blkdev))
			return cow_err_sys(err, rc, "%s: direct I/O", f->path);
	}
	return 0;
}

int cow_chain_extend(struct cow_chain *c, uint64_t size)
{
	struct cow_file *f = &c->layers[0]->file;

	chain_assert_thread(c);
	return cow_file_extend(f, size);
}

enum cow_chain_mode cow_chain_mode(const struct cow_chain *c)
{
	return c->mode;
}

const char *cow_chain_mode_name(enum cow_chain_mode m)
{
	static const char *const names[] = { "read-write", "read-only", "failed" };

	return names[m];
}

uint64_t cow_chain_sectors_used(const struct cow_chain *c)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < 2 * c->n; i++) {
		struct cow_file *f = i < c->n ? &c->layers[i]->file : &c->layers[i - c->n]->data;

		if (f->io)
			sum += f->io->ops->allocated(f) / 512;
	}
	return cow_min(sum, cow_div_up(c->layers[0]->img.size, 512));
}

static void layer_info(const struct cow_chain *c, struct cow_layer *l, struct cow_kv *kv)
{
	cow_kv_object(kv, NULL);
	cow_kv_str(kv, "path", l->path);
	cow_kv_str(kv, "format", l->img.fmt->name);
	cow_kv_size(kv, "virtual_size", l->img.size);
	if (l->file.io)
		cow_kv_size(kv, "allocated_size", l->file.io->ops->allocated(&l->file));
	if (l->data.io) {
		cow_kv_str(kv, "data_file", l->data.path);
		cow_kv_size(kv, "data_allocated_size", l->data.io->ops->allocated(&l->data));
	}
	cow_kv_bool(kv, "read_only", l->index > 0 || !c->writable);
	if (l->img.backing.path[0]) {
		cow_kv_str(kv, "base_path", l->img.backing.path);
		cow_kv_str(kv, "base_format", l->img.backing.format);
	}
	if (l->img.fmt->info) {
		cow_kv_object(kv, "format_specific");
		l->img.fmt->info(&l->img, kv);
		cow_kv_close(kv);
	}
	cow_kv_close(kv);
}

void cow_chain_info(struct cow_chain *c, struct cow_kv *kv)
{
	cow_kv_size(kv, "size", c->layers[0]->img.size);
	cow_kv_list(kv, "layers");
	for (unsigned i = 0; i < c->n; i++)
		layer_info(c, c->layers[i], kv);
	cow_kv_close(kv);
}

void cow_chain_get_stats(const struct cow_chain *c, struct cow_chain_stats *ret)
{
	*ret = (struct cow_chain_stats){
		.copied_bytes = c->copied_bytes,
		.allocated_bytes = c->allocated_bytes,
		.data_syncs = c->data_syncs,
		.meta_syncs = c->meta_syncs,
		.io_inline = c->io->n_inline,
		.io_async = c->io->n_async,
	};
	for (unsigned i = 0; i < c->n; i++) {
		const struct cow_meta *m = &c->layers[i]->meta;

		ret->meta_hits += m->hits;
		ret->meta_misses += m->misses;
		ret->meta_writes += m->writes;
		ret->meta_evictions += m->evictions;
		ret->meta_cached_bytes += (uint64_t)meta_cached(m) * COW_META_BLOCK;
		ret->meta_dirty_bytes += (uint64_t)m->ndirty * COW_META_BLOCK;
		ret->adopted_blocks += m->adopted;
	}
}
