// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The queue of pieces, and the worker threads. The queue is a ring: pieces are taken
 * by workers in order, and handed back in order; in between they are done in any. Each
 * worker has its own chains, for one thread owns a chain.
 */
#include "cowimg-pieces.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <xxhash.h>

#define WORKERS_MAX	16u
#define QUEUE(workers)	(4 * (workers))	/* no more: caches hold what is on its way */
#define QUEUE_MAX	QUEUE(WORKERS_MAX)

struct worker {
	struct pieces *q;
	pthread_t thread;
	struct cow_chain *source, *base;
	uint64_t source_size, base_size;
	uint8_t *base_buf;
	bool offload;
};

struct pieces {
	struct pieces_cfg cfg;
	size_t piece_bytes, units;	/* of a piece */
	struct piece ring[QUEUE_MAX];
	unsigned n_ring;
	bool filling;			/* the ring is being filled; else it waits to be half empty */
	struct worker workers[WORKERS_MAX];
	unsigned n_workers;

	pthread_mutex_t lock;		/* of what follows, and of piece.done */
	pthread_cond_t submitted, finished;
	uint64_t first, taken, last;	/* numbers of pieces: oldest, next for a worker, next to be filled */
	bool stop;
	struct cow_err err;
};

bool piece_all_zero(const uint8_t *p, size_t len)
{
	static const uint8_t zeroes[PIECE_UNIT];

	while (len > sizeof(zeroes)) {
		if (memcmp(p, zeroes, sizeof(zeroes)))
			return false;
		p += sizeof(zeroes);
		len -= sizeof(zeroes);
	}
	return !memcmp(p, zeroes, len);
}

uint64_t piece_hash(const void *p, size_t len)
{
	return XXH3_64bits(p, len);
}

/* ---- what a worker does ---- */

/* [virt, virt + len) of an image that has @size bytes, zeroes behind them. */
static int read_clipped(struct cow_chain *c, uint64_t size, uint8_t *buf, uint64_t virt, uint64_t len)
{
	uint64_t there = virt < size ? cow_min(len, size - virt) : 0;

	memset(buf + there, 0, len - there);
	return cow_chain_pread(c, buf, there, virt);
}

/* Bytes of unit @i that belong to the piece. */
static size_t unit_len(const struct pieces *q, const struct piece *p, size_t i)
{
	return (size_t)cow_min(q->cfg.unit, p->len - i * q->cfg.unit);
}

/* Reads what has to be read; what is known to be zero becomes that in the buffer if it is looked at. */
static int read_units(struct worker *w, struct piece *p)
{
	size_t unit = w->q->cfg.unit, n = cow_div_up(p->len, unit);
	bool fill = w->q->cfg.hash || w->q->cfg.base;
	int r = 0;

	for (size_t i = 0, end; i < n && !r; i = end) {
		uint64_t from = i * unit, len;

		for (end = i + 1; end < n && p->fate[end] == p->fate[i]; end++)
			;
		len = cow_min(end * unit, p->len) - from;
		if (p->fate[i] == PIECE_READ) {
			r = read_clipped(w->source, w->source_size, p->buf + from,
					 p->virt + from + w->q->cfg.source_shift, len);
			p->read_bytes += len;
		} else if (fill) {
			memset(p->buf + from, 0, len);
		}
	}
	return r;
}

static void find_zeroes(const struct pieces *q, struct piece *p)
{
	for (size_t i = 0; i * q->cfg.unit < p->len; i++) {
		if (p->fate[i] == PIECE_READ)
			p->fate[i] = piece_all_zero(p->buf + i * q->cfg.unit, unit_len(q, p, i)) ?
				PIECE_ZERO : PIECE_DATA;
	}
}

static int compare_with_base(struct worker *w, struct piece *p)
{
	size_t unit = w->q->cfg.unit;
	int r = read_clipped(w->base, w->base_size, w->base_buf, p->virt, p->len);

	for (size_t i = 0; !r && i * unit < p->len; i++) {
		if (!memcmp(p->buf + i * unit, w->base_buf + i * unit, unit_len(w->q, p, i)))
			p->fate[i] = PIECE_SAME;
	}
	return r;
}

static int encode_units(const struct pieces *q, struct piece *p)
{
	const struct cow_image *img = q->cfg.encode_for;
	size_t unit = q->cfg.unit;
	int r = 0;

	for (size_t i = 0; !r && i * unit < p->len; i++) {
		size_t len = unit_len(q, p, i);

		if (p->fate[i] != PIECE_DATA)
			continue;
		memset(p->buf + i * unit + len, 0, unit - len);
		r = img->fmt->encode(img, p->buf + i * unit, p->stored + i * unit, &p->stored_len[i]);
		if (!r)
			p->fate[i] = PIECE_ENCODED;
		else if (r == -ENOSPC)
			r = 0;
	}
	return r;
}

static int work(struct worker *w, struct piece *p)
{
	struct pieces *q = w->q;
	int r = w->offload ? piece_offload(&q->cfg, w->source, p) : 0;

	if (r > 0)
		w->offload = false;
	if (r >= 0)
		r = read_units(w, p);
	if (r)
		return r;
	if (q->cfg.hash)
		p->hash = piece_hash(p->buf, p->len);
	find_zeroes(q, p);
	if (w->base)
		r = compare_with_base(w, p);
	if (!r && q->cfg.encode_for)
		r = encode_units(q, p);
	return r;
}

/* ---- the queue ---- */

static struct piece *slot(struct pieces *q, uint64_t number)
{
	return &q->ring[number % q->n_ring];
}

static int worker_open(struct worker *w, struct cow_err *err)
{
	const struct pieces_cfg *cfg = &w->q->cfg;
	int r = cow_chain_open(cfg->source, &w->source, err);

	if (!r && cfg->base) {
		w->base_buf = cow_memalign(PIECE_UNIT, w->q->piece_bytes);
		r = w->base_buf ? cow_chain_open(cfg->base, &w->base, err) : -ENOMEM;
	}
	if (r)
		return r;
	w->source_size = cow_chain_size(w->source);
	w->base_size = w->base ? cow_chain_size(w->base) : 0;
	return 0;
}

static void worker_close(struct worker *w)
{
	if (w->source)
		cow_chain_close(w->source);
	if (w->base)
		cow_chain_close(w->base);
	cow_free(w->base_buf);
}

/* The next piece that is nobody's; NULL: it is over. Locked. */
static struct piece *take(struct pieces *q)
{
	for (;;) {
		while (q->taken < q->last && slot(q, q->taken)->zero)
			q->taken++;
		if (q->stop)
			return NULL;
		if (q->taken < q->last)
			return slot(q, q->taken++);
		pthread_cond_wait(&q->submitted, &q->lock);
	}
}

static void *run(void *arg)
{
	struct worker *w = arg;
	struct pieces *q = w->q;
	struct cow_err err = { 0 };
	struct piece *p;
	int opened = worker_open(w, &err), r;

	pthread_mutex_lock(&q->lock);
	if (opened && !q->err.code)
		q->err = err;
	while ((p = take(q))) {
		pthread_mutex_unlock(&q->lock);
		r = opened ? opened : work(w, p);
		pthread_mutex_lock(&q->lock);
		p->result = r;
		p->done = true;
		if (p == slot(q, q->first))
			pthread_cond_signal(&q->finished);
	}
	pthread_mutex_unlock(&q->lock);
	worker_close(w);
	return NULL;
}

/* Many at a time, so that workers that sleep are not woken for each. */
struct piece *pieces_free(struct pieces *q)
{
	unsigned n = (unsigned)(q->last - q->first);
	struct piece *p;

	if (n == q->n_ring)
		q->filling = false;
	else if (n <= q->n_ring / 2)
		q->filling = true;
	if (!q->filling)
		return NULL;
	p = slot(q, q->last);
	p->zero = p->done = p->placing = false;
	p->read_bytes = 0;
	p->result = 0;
	return p;
}

void pieces_submit(struct pieces *q)
{
	struct piece *p = slot(q, q->last);

	pthread_mutex_lock(&q->lock);
	p->done = p->zero;
	q->last++;
	if (!p->zero)
		pthread_cond_signal(&q->submitted);
	pthread_mutex_unlock(&q->lock);
}

struct piece *pieces_oldest(struct pieces *q)
{
	struct piece *p;

	if (q->first == q->last)
		return NULL;
	p = slot(q, q->first);
	pthread_mutex_lock(&q->lock);
	while (!p->done)
		pthread_cond_wait(&q->finished, &q->lock);
	pthread_mutex_unlock(&q->lock);
	return p;
}

void pieces_release(struct pieces *q)
{
	pthread_mutex_lock(&q->lock);
	q->first++;
	q->taken = cow_max(q->taken, q->first);
	pthread_mutex_unlock(&q->lock);
}

const struct cow_err *pieces_error(struct pieces *q)
{
	return &q->err;
}

static int alloc_piece(const struct pieces *q, struct piece *p)
{
	p->buf = cow_memalign(PIECE_UNIT, q->piece_bytes);
	p->fate = cow_zalloc(q->units);
	if (q->cfg.encode_for) {
		p->stored = cow_memalign(PIECE_UNIT, q->piece_bytes);
		p->stored_len = cow_zalloc(q->units * sizeof(*p->stored_len));
	}
	return p->buf && p->fate && (!q->cfg.encode_for || (p->stored && p->stored_len)) ? 0 : -ENOMEM;
}

/* One for each CPU that may be used. Without any, pieces could not be done: at least one. */
static unsigned worker_count(void)
{
	cpu_set_t set;
	int n = sched_getaffinity(0, sizeof(set), &set) ? 1 : CPU_COUNT(&set);

	return (unsigned)cow_min(cow_max((uint64_t)n, 1), WORKERS_MAX);
}

int pieces_start(const struct pieces_cfg *cfg, struct pieces **ret)
{
	struct pieces *q = cow_zalloc(sizeof(*q));
	unsigned want = worker_count();
	int r = 0;

	if (!q)
		return -ENOMEM;
	q->cfg = *cfg;
	q->piece_bytes = (size_t)cow_max(cfg->unit, PIECE_BYTES);
	q->units = q->piece_bytes / cfg->unit;
	pthread_mutex_init(&q->lock, NULL);
	pthread_cond_init(&q->submitted, NULL);
	pthread_cond_init(&q->finished, NULL);
	q->n_ring = QUEUE(want);
	for (unsigned i = 0; i < q->n_ring && !r; i++)
		r = alloc_piece(q, &q->ring[i]);
	while (!r && q->n_workers < want) {
		struct worker *w = &q->workers[q->n_workers];

		w->q = q;
		w->offload = cfg->out_fd >= 0;
		r = -pthread_create(&w->thread, NULL, run, w);
		q->n_workers += !r;
	}
	if (r && !q->n_workers) {
		pieces_stop(q);
		return r;
	}
	*ret = q;
	return 0;
}

void pieces_stop(struct pieces *q)
{
	pthread_mutex_lock(&q->lock);
	q->stop = true;
	pthread_cond_broadcast(&q->submitted);
	pthread_mutex_unlock(&q->lock);
	for (unsigned i = 0; i < q->n_workers; i++)
		pthread_join(q->workers[i].thread, NULL);
	for (unsigned i = 0; i < q->n_ring; i++) {
		cow_free(q->ring[i].buf);
		cow_free(q->ring[i].fate);
		cow_free(q->ring[i].stored);
		cow_free(q->ring[i].stored_len);
	}
	pthread_mutex_destroy(&q->lock);
	pthread_cond_destroy(&q->submitted);
	pthread_cond_destroy(&q->finished);
	cow_free(q);
}
