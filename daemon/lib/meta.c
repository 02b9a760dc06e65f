// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The metadata cache, and the one place where it is decided in which order
 * metadata becomes durable. Knows blocks, not what is in them.
 *
 * A block's contents and its place live in the volatile map (vmap.h), where a
 * killed process leaves them; pins, edges and queues are private. A change is:
 * the plugin stores bits, then cow_meta_dirty() raises dirty_seq. A kill between
 * the two loses a change that nobody was told of.
 *
 * Flush: copy what is dirty (so that changes made while the data is being
 * synced cannot overtake their own data), fdatasync the data, then write the
 * copies, earlier blocks of an edge before later ones with an fdatasync
 * between, then fdatasync. req.c drives that.
 */
#include "meta.h"

#include <errno.h>
#include <stdatomic.h>

#include "cow/log.h"

#define META_SLOTS_MIN 64u
#define AFTER_LIMIT 64		/* blocks looked at before a circle is assumed */

bool cow_meta_test_miss;

static struct vmap_slot *slot_of(const struct cow_mblk *b)
{
	return &b->meta->vmap.slots[b->index];
}

static uint32_t bucket(const struct cow_meta *m, uint16_t file, uint64_t off)
{
	uint64_t h = (off / COW_META_BLOCK + file) * 0x9e3779b97f4a7c15ULL;

	return (uint32_t)(h >> 32) & (m->nbuckets - 1);
}

int meta_init(struct cow_meta *m, struct cow_image *img, struct cow_file *files, uint64_t bytes,
	      bool persist, struct cow_err *err)
{
	uint32_t n = (uint32_t)cow_max(cow_min(bytes / COW_META_BLOCK, 1u << 21), META_SLOTS_MIN);
	int rc;

	*m = (struct cow_meta){ .img = img, .files = files, .nbuckets = META_SLOTS_MIN };
	while (m->nbuckets < n)
		m->nbuckets *= 2;
	rc = vmap_create(&m->vmap, n, persist, files[0].dev, files[0].ino, err);
	if (rc)
		return rc;
	m->blks = cow_zalloc((size_t)n * sizeof(*m->blks));
	m->buckets = cow_zalloc(m->nbuckets * sizeof(*m->buckets));
	if (!m->blks || !m->buckets) {
		meta_fini(m, true);
		return cow_err_sys(err, -ENOMEM, "%s", img->path);
	}
	return 0;
}

void meta_fini(struct cow_meta *m, bool forget)
{
	vmap_destroy(&m->vmap, forget);
	cow_free(m->blks);
	cow_free(m->buckets);
	m->blks = NULL;
	m->buckets = NULL;
	m->ndirty = 0;
	m->used = 0;
}

static struct cow_mblk *lookup(struct cow_meta *m, uint16_t file, uint64_t off)
{
	for (uint32_t i = m->buckets[bucket(m, file, off)]; i; i = m->blks[i - 1].hash_next) {
		const struct vmap_slot *s = &m->vmap.slots[i - 1];

		if (s->off == off && s->file == file)
			return &m->blks[i - 1];
	}
	return NULL;
}

static void hash_remove(struct cow_mblk *b)
{
	struct vmap_slot *s = slot_of(b);
	uint32_t *link = &b->meta->buckets[bucket(b->meta, s->file, s->off)];

	while (*link != b->index + 1)
		link = &b->meta->blks[*link - 1].hash_next;
	*link = b->hash_next;
}

static void forget_block(struct cow_mblk *b)
{
	cow_assert(b->pins == 0 && !vmap_dirty(slot_of(b)));
	hash_remove(b);
	slot_of(b)->used = 0;
	b->state = MBLK_EMPTY;
	b->ndeps = 0;
}

/* The block of a slot that was never used; NULL when there is none or no memory for it. */
static struct cow_mblk *new_block(struct cow_meta *m)
{
	struct cow_mblk *b = &m->blks[m->used];

	if (m->used == m->vmap.nslots || vmap_reserve(&m->vmap, m->used))
		return NULL;
	b->meta = m;
	b->index = m->used++;
	cow_list_init(&b->waiters);
	return b;
}

/* A free slot's block: never used, emptied, or the next clean one not lately used. */
static struct cow_mblk *take_block(struct cow_meta *m)
{
	struct cow_mblk *fresh = new_block(m);

	if (fresh)
		return fresh;
	for (uint64_t i = 0; i < 2ULL * m->used; i++) {
		struct cow_mblk *b = &m->blks[m->hand];

		m->hand = (m->hand + 1) % m->used;
		if (b->state == MBLK_EMPTY)
			return b;
		if (b->state != MBLK_VALID || b->pins || vmap_dirty(slot_of(b)))
			continue;
		if (b->referenced) {
			b->referenced = 0;
			continue;
		}
		forget_block(b);
		m->evictions++;
		return b;
	}
	return NULL;
}

static struct cow_mblk *insert(struct cow_meta *m, uint16_t file, uint64_t off)
{
	struct cow_mblk *b = take_block(m);
	struct vmap_slot *s;
	uint32_t *head;

	if (!b)
		return NULL;
	s = slot_of(b);
	*s = (struct vmap_slot){ .off = off, .file = file };
	atomic_signal_fence(memory_order_seq_cst);
	s->used = 1;
	head = &m->buckets[bucket(m, file, off)];
	b->hash_next = *head;
	*head = b->index + 1;
	b->pins = 0;
	b->ndeps = 0;
	b->referenced = 0;
	return b;
}

static int verify(struct cow_mblk *b)
{
	struct cow_meta *m = b->meta;
	const struct vmap_slot *s = slot_of(b);
	struct cow_err err = { 0 };
	int rc;

	if (!m->img->fmt->verify)
		return 0;
	rc = m->img->fmt->verify(m->img, s->file, s->off, vmap_block(&m->vmap, b->index), &err);
	if (rc)
		cow_log_limited(COW_LOG_ERR, "%s", cow_err_text(&err, rc));
	return rc;
}

struct meta_load {
	struct cow_iocb cb;
	struct cow_mblk *blk;
};

static void wake_all(struct cow_list *waiters, int result)
{
	struct cow_list ready;

	cow_list_init(&ready);
	cow_list_splice(waiters, &ready);
	while (!cow_list_empty(&ready)) {
		struct cow_waiter *w = cow_list_entry(ready.next, struct cow_waiter, node);

		cow_list_del(&w->node);
		w->wake(w, result);
	}
}

static int load_end(struct cow_mblk *b, int rc)
{
	if (rc == 0)
		rc = verify(b);
	b->state = MBLK_VALID;
	if (rc) {
		b->pins = 0;	/* waiters are told to fail, they do not unpin it */
		forget_block(b);
	}
	return rc;
}

static void load_done(struct cow_iocb *cb, int result)
{
	struct meta_load *l = cow_container_of(cb, struct meta_load, cb);
	struct cow_mblk *b = l->blk;

	cow_free(l);
	result = load_end(b, result);
	wake_all(&b->waiters, result);
}

static int load(struct cow_mblk *b)
{
	struct cow_meta *m = b->meta;
	struct meta_load *l = cow_zalloc(sizeof(*l));
	const struct vmap_slot *s = slot_of(b);
	int rc;

	if (!l) {
		b->state = MBLK_VALID;
		forget_block(b);
		return -ENOMEM;
	}
	l->blk = b;
	l->cb = (struct cow_iocb){
		.file = &m->files[s->file],
		.op = COW_IO_READ,
		.off = s->off,
		.len = COW_META_BLOCK,
		.iov[0] = { vmap_block(&m->vmap, b->index), COW_META_BLOCK },
		.iovcnt = 1,
		.done = load_done,
	};
	b->state = MBLK_LOADING;
	if (!cow_io_start(&l->cb, &rc))
		return -EAGAIN;
	cow_free(l);
	return load_end(b, rc);
}

static bool pinned_here(const struct cow_pins *p, const struct cow_mblk *b)
{
	for (unsigned i = 0; i < p->n; i++) {
		if (p->blk[i] == b)
			return true;
	}
	return false;
}

static void pin(struct cow_meta *m, struct cow_mblk *b)
{
	if (pinned_here(m->pins, b))
		return;
	cow_assert(m->pins->n < COW_META_PINS);
	m->pins->blk[m->pins->n++] = b;
	b->pins++;
	b->referenced = 1;
}

void meta_unpin(struct cow_pins *pins)
{
	for (unsigned i = 0; i < pins->n; i++) {
		cow_assert(pins->blk[i]->pins > 0);
		pins->blk[i]->pins--;
	}
	pins->n = 0;
}

static int get_miss(struct cow_meta *m, uint16_t file, uint64_t off, uint32_t flags,
		    struct cow_mblk **ret)
{
	struct cow_mblk *b = insert(m, file, off);
	int rc = 0;

	m->misses++;
	if (!b && m->used < META_SLOTS_MIN)
		return -ENOSPC;		/* no memory even for the least: tmpfs is full */
	if (!b) {
		m->stalled = true;
		return -EAGAIN;
	}
	if (flags & COW_META_NEW) {
		memset(vmap_block(&m->vmap, b->index), 0, COW_META_BLOCK);
		b->state = MBLK_VALID;
	} else {
		rc = load(b);
	}
	if (rc == -EAGAIN)
		m->missing = b;
	if (rc)
		return rc;
	pin(m, b);
	*ret = b;
	return cow_meta_test_miss ? -EAGAIN : 0;
}

int cow_meta_get(struct cow_image *img, uint16_t file, uint64_t off, uint32_t flags,
		 struct cow_mblk **ret)
{
	struct cow_meta *m = img->meta;
	struct cow_mblk *b;

	cow_assert(m->pins && off % COW_META_BLOCK == 0);
	b = lookup(m, file, off);
	if (!b)
		return get_miss(m, file, off, flags, ret);
	if (b->state == MBLK_LOADING) {
		m->missing = b;
		return -EAGAIN;
	}
	m->hits++;
	if (cow_meta_test_miss && !pinned_here(m->pins, b)) {
		pin(m, b);
		return -EAGAIN;
	}
	pin(m, b);
	*ret = b;
	return 0;
}

void *cow_meta_data(struct cow_mblk *blk)
{
	return vmap_block(&blk->meta->vmap, blk->index);
}

void cow_meta_dirty(struct cow_mblk *blk, enum cow_meta_class cls)
{
	struct vmap_slot *s = slot_of(blk);

	cow_assert(blk->pins > 0);
	if (!vmap_dirty(s))
		blk->meta->ndirty++;
	atomic_signal_fence(memory_order_seq_cst);
	s->cls = (uint8_t)cls;
	s->dirty_seq++;
}

/* Does @from have to wait for @target, directly or not? -1: too long to tell. */
static int depends_on(const struct cow_meta *m, uint32_t from, uint32_t target)
{
	uint32_t todo[AFTER_LIMIT];
	unsigned n = 0, seen = 0;

	todo[n++] = from;
	while (n > 0) {
		const struct cow_mblk *b = &m->blks[todo[--n]];

		if (b->index == target)
			return 1;
		if (++seen > AFTER_LIMIT || n + b->ndeps > AFTER_LIMIT)
			return -1;
		for (unsigned i = 0; i < b->ndeps; i++)
			todo[n++] = b->deps[i];
	}
	return 0;
}

/*
 * Edges to blocks that have been written are kept; the others still have to be. A pinned
 * one may be about to change: the edge was said before.
 */
static void drop_kept_edges(struct cow_mblk *b)
{
	const struct cow_meta *m = b->meta;
	unsigned n = 0;

	for (unsigned i = 0; i < b->ndeps; i++) {
		if (vmap_dirty(&m->vmap.slots[b->deps[i]]) || m->blks[b->deps[i]].pins)
			b->deps[n++] = b->deps[i];
	}
	b->ndeps = (uint8_t)n;
}

int cow_meta_after(struct cow_mblk *later, struct cow_mblk *earlier)
{
	struct cow_meta *m = later->meta;

	for (unsigned i = 0; i < later->ndeps; i++) {
		if (later->deps[i] == earlier->index)
			return 0;
	}
	if (later->ndeps == META_DEPS)
		drop_kept_edges(later);
	if (later->ndeps == META_DEPS || depends_on(m, earlier->index, later->index) != 0) {
		m->stalled = true;
		return -EAGAIN;
	}
	later->deps[later->ndeps++] = earlier->index;
	return 0;
}

uint32_t meta_cached(const struct cow_meta *m)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < m->used; i++)
		n += m->blks[i].state == MBLK_VALID;
	return n;
}

void meta_drop(struct cow_meta *m)
{
	for (uint32_t i = 0; i < m->used; i++) {
		if (m->blks[i].state == MBLK_VALID)
			forget_block(&m->blks[i]);
	}
}

/* ---- flush ---- */

/* A block's round is one above that of every dirty block it must come after. */
static void assign_rounds(struct meta_flush *f)
{
	struct cow_meta *m = f->meta;
	bool again = true;

	f->rounds = f->n ? 1 : 0;
	while (again) {
		again = false;
		for (uint32_t i = 0; i < f->n; i++) {
			const struct cow_mblk *b = &m->blks[f->out[i].index];

			for (unsigned d = 0; d < b->ndeps; d++) {
				for (uint32_t j = 0; j < f->n; j++) {
					if (f->out[j].index == b->deps[d] &&
					    f->out[i].round <= f->out[j].round) {
						f->out[i].round = f->out[j].round + 1;
						f->rounds = (uint32_t)cow_max(f->rounds,
							f->out[i].round + 1ULL);
						again = true;
					}
				}
			}
		}
	}
}

int meta_flush_prepare(struct cow_meta *m, struct meta_flush *f)
{
	uint32_t n = 0;

	f->meta = m;
	f->n = f->round = f->rounds = f->pending = 0;
	f->err = 0;
	f->copies = NULL;
	f->out = NULL;
	if (m->ndirty == 0)
		return 0;
	f->copies = cow_memalign(COW_META_BLOCK, (size_t)m->ndirty * COW_META_BLOCK);
	f->out = cow_zalloc(m->ndirty * sizeof(*f->out));
	if (!f->copies || !f->out) {
		meta_flush_end(f);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < m->used && n < m->ndirty; i++) {
		const struct vmap_slot *s = &m->vmap.slots[i];

		if (!vmap_dirty(s))
			continue;
		memcpy(f->copies + (size_t)n * COW_META_BLOCK, vmap_block(&m->vmap, i),
		       COW_META_BLOCK);
		if (m->img->fmt->seal)
			m->img->fmt->seal(m->img, s->file, s->off,
					  f->copies + (size_t)n * COW_META_BLOCK);
		f->out[n].flush = f;
		f->out[n].index = i;
		f->out[n].seq = s->dirty_seq;
		m->blks[i].pins++;	/* stays in the cache until it is written */
		n++;
	}
	cow_assert(n == m->ndirty);
	f->n = n;
	assign_rounds(f);
	return 0;
}

static void out_end(struct meta_out *o, int result)
{
	struct cow_meta *m = o->flush->meta;
	struct vmap_slot *s = &m->vmap.slots[o->index];

	m->writes++;
	if (result) {
		o->flush->err = o->flush->err ? o->flush->err : result;
		return;
	}
	s->written_seq = o->seq;
	if (!vmap_dirty(s))
		m->ndirty--;
}

static void out_done(struct cow_iocb *cb, int result)
{
	struct meta_out *o = cow_container_of(cb, struct meta_out, cb);
	struct meta_flush *f = o->flush;

	out_end(o, result);
	if (--f->pending == 0)
		f->round_done(f, f->err);
}

int meta_flush_round(struct meta_flush *f)
{
	struct cow_meta *m = f->meta;
	int rc;

	f->pending = 1;		/* ours: completions must not end the round before all are started */
	for (uint32_t i = 0; i < f->n; i++) {
		struct meta_out *o = &f->out[i];
		const struct vmap_slot *s = &m->vmap.slots[o->index];

		if (o->round != f->round)
			continue;
		o->cb = (struct cow_iocb){
			.file = &m->files[s->file],
			.op = COW_IO_WRITE,
			.off = s->off,
			.len = COW_META_BLOCK,
			.iov[0] = { f->copies + (size_t)i * COW_META_BLOCK, COW_META_BLOCK },
			.iovcnt = 1,
			.done = out_done,
		};
		f->pending++;
		if (cow_io_start(&o->cb, &rc)) {
			f->pending--;
			out_end(o, rc);
		}
	}
	f->round++;
	return --f->pending == 0;
}

void meta_flush_end(struct meta_flush *f)
{
	struct cow_meta *m = f->meta;

	for (uint32_t i = 0; i < f->n; i++)
		m->blks[f->out[i].index].pins--;
	for (uint32_t i = 0; i < f->n; i++)
		drop_kept_edges(&m->blks[f->out[i].index]);
	cow_free(f->copies);
	cow_free(f->out);
	f->copies = NULL;
	f->out = NULL;
	f->n = 0;
}

/* ---- adoption ---- */

/* Rewrites one class of a dead process's changes into the image. */
static int replay_class(struct cow_meta *m, const struct vmap *dead, enum cow_meta_class cls)
{
	uint8_t block[COW_META_BLOCK];
	int rc = 0;

	for (uint32_t i = 0; i < dead->nslots && rc == 0; i++) {
		const struct vmap_slot *s = &dead->slots[i];

		if (!vmap_dirty(s) || s->cls != cls)
			continue;
		if (s->file != 0 || s->off % COW_META_BLOCK)
			return -EIO;
		memcpy(block, dead->data + (size_t)i * COW_META_BLOCK, COW_META_BLOCK);
		if (m->img->fmt->seal)
			m->img->fmt->seal(m->img, s->file, s->off, block);
		rc = cow_io_run(&m->files[s->file], COW_IO_WRITE, block, COW_META_BLOCK, s->off);
		m->adopted++;
	}
	return rc;
}

static int replay(struct cow_meta *m, const struct vmap *dead)
{
	int rc = cow_io_run(&m->files[0], COW_IO_SYNC, NULL, 0, 0);

	for (int cls = 0; cls < COW_META_CLASSES && rc == 0; cls++) {
		rc = replay_class(m, dead, (enum cow_meta_class)cls);
		if (rc == 0)
			rc = cow_io_run(&m->files[0], COW_IO_SYNC, NULL, 0, 0);
	}
	return rc;
}

/* For a reader: the changes go into the cache and stay there. */
static int cache_dead(struct cow_meta *m, const struct vmap *dead)
{
	for (uint32_t i = 0; i < dead->nslots; i++) {
		const struct vmap_slot *s = &dead->slots[i];
		struct cow_mblk *b;

		if (!vmap_dirty(s))
			continue;
		if (s->file != 0 || s->off % COW_META_BLOCK)
			return -EIO;
		b = insert(m, s->file, s->off);
		if (!b)
			return -ENOMEM;
		memcpy(vmap_block(&m->vmap, b->index), dead->data + (size_t)i * COW_META_BLOCK,
		       COW_META_BLOCK);
		b->state = MBLK_VALID;
		b->pins++;	/* for good: the file does not have it */
		m->adopted++;
	}
	return 0;
}

static uint32_t count_dirty(const struct vmap *v)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < v->nslots; i++)
		n += vmap_dirty(&v->slots[i]);
	return n;
}

uint64_t meta_adopt_bytes(const struct cow_image *img, const struct cow_file *file)
{
	struct vmap dead;
	uint64_t n;

	if (img->session == 0 || file->fd < 0 || vmap_find(&dead, file->dev, file->ino, img->session))
		return 0;
	n = count_dirty(&dead);
	vmap_destroy(&dead, false);
	return (n + META_SLOTS_MIN) * COW_META_BLOCK;
}

int meta_adopt(struct cow_meta *m, bool write, struct cow_err *err)
{
	uint64_t session = m->img->session;
	struct vmap dead;
	uint32_t n;
	int rc;

	if (session == 0 || m->files[0].fd < 0)
		return 0;
	rc = vmap_find(&dead, m->files[0].dev, m->files[0].ino, session);
	if (rc == -ENOENT)
		return 0;
	if (rc)
		return cow_err_sys(err, rc, "%s: cannot look for the changes of a killed process",
				   m->img->path);
	n = count_dirty(&dead);
	if (write)
		rc = n ? replay(m, &dead) : 0;
	else if (n + META_SLOTS_MIN > m->vmap.nslots)
		rc = -ENOMEM;
	else
		rc = cache_dead(m, &dead);
	vmap_destroy(&dead, write && rc == 0);
	if (rc)
		return cow_err_sys(err, rc, "%s: cannot take over the changes of a killed process",
				   m->img->path);
	if (n)
		cow_log(COW_LOG_INFO, "%s: took over %u metadata blocks of a killed process",
			m->img->path, n);
	return 0;
}
