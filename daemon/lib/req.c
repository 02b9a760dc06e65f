// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Requests: the executor that moves data itself. A read walks down the layers;
 * a write asks the top layer for a place, fills what the place needs around its
 * bytes, writes, and only then commits the answer. Formats decide where; this
 * file never knows which format it is talking to.
 *
 * Everything is a small state machine that runs until something has to wait:
 * rd_drive() and wr_drive() return then, and are called again by whatever they
 * wait for (an operation's completion, a metadata block, a range lock). What
 * the page cache can answer completes within cow_req_submit().
 */
#include <errno.h>

#include "cow/log.h"
#include "engine.h"

#define ZERO_CHUNK (64u << 10)
#define PRESENT_CHUNK (1u << 20)

static const uint8_t zeroes[ZERO_CHUNK];

/* ---- waiting ---- */

void chain_wake_stalled(struct cow_chain *c, int result)
{
	struct cow_list ready;

	cow_list_init(&ready);
	cow_list_splice(&c->stalled, &ready);
	while (!cow_list_empty(&ready)) {
		struct cow_waiter *w = cow_list_entry(ready.next, struct cow_waiter, node);

		cow_list_del(&w->node);
		w->wake(w, result);
	}
}

/* @stored: bytes of a block in encoded form, which is what is to be placed; 0: plain ones. */
static int ask(struct cow_layer *l, const struct cow_query *q, uint64_t stored, struct cow_pins *pins,
	       struct cow_map *ret)
{
	uint64_t dirty = l->meta.ndirty;
	int rc;

	meta_begin(&l->meta, pins);
	rc = stored ? l->img.fmt->put_encoded(&l->img, q, stored, ret) : l->img.fmt->map(&l->img, q, ret);
	if (rc == -EAGAIN)
		cow_assert(l->meta.ndirty == dirty);
	if (rc == 0)
		cow_assert(ret->dst.virt <= q->virt && ret->dst.len > q->virt - ret->dst.virt);
	return rc;
}

int chain_map(struct cow_layer *l, const struct cow_query *q, struct cow_pins *pins,
	      struct cow_map *ret)
{
	return ask(l, q, 0, pins, ret);
}

int chain_wait(struct cow_layer *l, struct cow_waiter *w)
{
	int rc;

	if (l->meta.missing) {
		cow_list_add_tail(&l->meta.missing->waiters, &w->node);
		return 1;
	}
	if (!l->meta.stalled)
		return 0;
	rc = l->meta.ndirty ? flush_kick(l->chain) : 1;	/* all pinned: a request's end helps */
	if (rc == 1)
		cow_list_add_tail(&l->chain->stalled, &w->node);
	return rc;
}

static struct cow_fetch *fetch_get(struct cow_chain *c)
{
	struct cow_list *node = c->fetch_free.next;

	if (node == &c->fetch_free)
		return NULL;
	cow_list_del(node);
	return cow_list_entry(node, struct cow_fetch, cb.node);
}

static void fetch_put(struct cow_chain *c, struct cow_fetch *f)
{
	cow_list_add_tail(&c->fetch_free, &f->cb.node);
	if (!cow_list_empty(&c->stalled))
		chain_wake_stalled(c, 0);
}

/* ---- reads ---- */

static void rd_drive(struct cow_rd *rd);

static void rd_wake(struct cow_waiter *w, int result)
{
	struct cow_rd *rd = cow_container_of(w, struct cow_rd, wait);

	rd->pending--;
	rd->waiting = false;
	if (result && !rd->err)
		rd->err = result;
	rd_drive(rd);
}

/* It waited for an operation to be free: how the flush that woke it ended is not its business. */
static void rd_wake_for_fetch(struct cow_waiter *w, int result)
{
	(void)result;
	rd_wake(w, 0);
}

void rd_io_ended(struct cow_rd *rd, int result)
{
	if (result && !rd->err)
		rd->err = result;
	rd->pending--;
	if (!rd->waiting)
		rd_drive(rd);
}

static void rd_io_done(struct cow_iocb *cb, int result)
{
	struct cow_fetch *f = cow_container_of(cb, struct cow_fetch, cb);
	struct cow_rd *rd = cb->opaque;
	struct cow_chain *c = rd->c;

	rd_io_ended(rd, fetch_end(f, result));
	fetch_put(c, f);
}

/* Starts to read @n bytes of @ext of @l, from @v on. False: no operation is free, the read was queued for one. */
static bool rd_data(struct cow_rd *rd, struct cow_layer *l, const struct cow_extent *ext, uint64_t v,
		    uint64_t n)
{
	struct cow_fetch *f = fetch_get(rd->c);
	int rc;

	if (!f) {
		rd->pending++;
		rd->waiting = true;
		rd->wait.wake = rd_wake_for_fetch;
		cow_list_add_tail(&rd->c->stalled, &rd->wait.node);
		return false;
	}
	f->cipher = l->img.encrypted ? l : NULL;
	fetch_aim(f, rd->buf + rd->pos, v, ext->phys + (v - ext->virt), n);
	f->cb.file = layer_file(l, ext->file);
	f->cb.op = COW_IO_READ;
	f->cb.done = rd_io_done;
	f->cb.opaque = rd;
	rd->pending++;
	if (cow_io_start(&f->cb, &rc)) {
		rd->pending--;
		rc = fetch_end(f, rc);
		cow_list_add_tail(&rd->c->fetch_free, &f->cb.node);
		if (rc && !rd->err)
			rd->err = rc;
	}
	return true;
}

static void rd_next(struct cow_rd *rd, uint64_t n)
{
	rd->pos += n;
	rd->layer = rd->first;
	rd->seg = rd->len - rd->pos;
}

/* The layer's answer for the next bytes has come. False: wait. */
static bool rd_answer(struct cow_rd *rd, struct cow_layer *l, const struct cow_map *map)
{
	uint64_t v = rd->virt + rd->pos;
	uint64_t n = cow_min(rd->seg, map->dst.len - (v - map->dst.virt));

	switch (map->dst.kind) {
	case COW_DATA:
		if (l->img.encrypted)
			n = crypt_read_step(v, n);
		if (!rd_data(rd, l, &map->dst, v, n))
			return false;
		break;
	case COW_BELOW:
		if (l->index + 1 < rd->c->n && v < l->img.below_limit) {
			rd->seg = cow_min(n, l->img.below_limit - v);
			rd->layer++;
			return true;
		}
		if (v < l->img.below_limit)
			n = cow_min(n, l->img.below_limit - v);
		/* fall through */
	case COW_HOLE:
		memset(rd->buf + rd->pos, 0, n);
		break;
	case COW_ENCODED:
		encoded_read(rd, l, map, v, n);
		break;
	default:
		rd->err = -EOPNOTSUPP;
		return true;
	}
	rd_next(rd, n);
	return true;
}

/* One step of the descent. False: something has to be waited for. */
static bool rd_step(struct cow_rd *rd)
{
	struct cow_layer *l = rd->c->layers[rd->layer];
	uint64_t v = rd->virt + rd->pos;
	struct cow_query q = { .virt = v, .len = rd->seg, .intent = COW_READ };
	struct cow_map map;
	bool go;
	int rc;

	if (v >= l->img.size) {		/* a shorter base reads as zeroes behind its end */
		memset(rd->buf + rd->pos, 0, rd->seg);
		rd_next(rd, rd->seg);
		return true;
	}
	q.len = rd->seg = cow_min(rd->seg, l->img.size - v);
	rc = chain_map(l, &q, &rd->pins, &map);
	if (rc == -EAGAIN) {
		rd->wait.wake = rd_wake;
		rc = chain_wait(l, &rd->wait);
		if (rc == 0)
			return true;
	}
	if (rc > 0) {
		rd->waiting = true;
		rd->pending++;
		return false;
	}
	if (rc) {
		meta_unpin(&rd->pins);
		rd->err = rc;
		return true;
	}
	go = rd_answer(rd, l, &map);
	meta_unpin(&rd->pins);
	return go;
}

/* Runs the read as far as it goes. True: over. */
static bool rd_run(struct cow_rd *rd)
{
	while (rd->pos < rd->len && !rd->err) {
		if (!rd_step(rd))
			break;
	}
	return rd->pending == 0;
}

static void rd_drive(struct cow_rd *rd)
{
	if (rd_run(rd)) {
		meta_unpin(&rd->pins);
		rd->done(rd, rd->err);
	}
}

/* @rd: c, virt, len, buf, first and done are set. */
int rd_start(struct cow_rd *rd, int *ret)
{
	rd->pos = 0;
	rd->seg = rd->len;
	rd->layer = rd->first;
	rd->pending = 0;
	rd->err = 0;
	rd->waiting = false;
	rd->pins.n = 0;
	if (!rd_run(rd))
		return 0;
	meta_unpin(&rd->pins);
	*ret = rd->err;
	return 1;
}

/* ---- range locks: changes that share a granule run one after the other ---- */

static void wr_drive(struct cow_req_priv *p);

static bool wr_overlap(const struct cow_wr *a, const struct cow_wr *b)
{
	return a->lo < b->hi && b->lo < a->hi;
}

/* Is there one in @list, before @end, that shares a granule with @w? */
static bool wr_blocked(const struct cow_wr *w, struct cow_list *list, struct cow_list *end)
{
	struct cow_list *node;

	for (node = list->next; node != list && node != end; node = node->next) {
		if (wr_overlap(w, cow_list_entry(node, struct cow_wr, lock)))
			return true;
	}
	return false;
}

/* True: locked. False: it runs when those before it are done. */
static bool wr_lock(struct cow_chain *c, struct cow_wr *w)
{
	if (wr_blocked(w, &c->writers, NULL) || wr_blocked(w, &c->lock_waiters, NULL)) {
		cow_list_add_tail(&c->lock_waiters, &w->lock);
		return false;
	}
	cow_list_add_tail(&c->writers, &w->lock);
	return true;
}

static struct cow_wr *lock_next(struct cow_chain *c)
{
	struct cow_list *node;

	cow_list_for_each(node, &c->lock_waiters) {
		struct cow_wr *w = cow_list_entry(node, struct cow_wr, lock);

		if (!wr_blocked(w, &c->writers, NULL) && !wr_blocked(w, &c->lock_waiters, node))
			return w;
	}
	return NULL;
}

static void wr_unlock(struct cow_chain *c, struct cow_wr *w)
{
	struct cow_wr *next;

	cow_list_del(&w->lock);
	while ((next = lock_next(c))) {
		cow_list_del(&next->lock);
		cow_list_add_tail(&c->writers, &next->lock);
		wr_drive(cow_container_of(next, struct cow_req_priv, wr));
	}
}

/* ---- writes, zeroes, discards, and what others wrote ---- */

/*
 * What the next step of the request covers. Zeroes and discards: whole granules
 * are punched if the format can, the ragged edges of a zero are written, those of
 * a discard skipped.
 */
static void wr_plan(struct cow_req *req, struct cow_wr *w, const struct cow_image *img)
{
	uint64_t v = req->virt + w->pos, end = req->virt + req->len;
	uint64_t g = img->granule, lo, hi;

	w->punch = false;
	w->n = end - v;
	w->data = req->op == COW_OP_WRITE ? (const uint8_t *)req->buf + w->pos : NULL;
	if (req->op == COW_OP_PRESENT)
		w->n = cow_min(w->n, PRESENT_CHUNK);
	if (req->op == COW_OP_WRITE && img->encrypted)
		w->n = cow_min(w->n, crypt_write_step(img, v));
	if (req->op != COW_OP_ZERO && req->op != COW_OP_DISCARD)
		return;
	if (v < w->written_to)
		end = cow_min(end, w->written_to);
	lo = cow_round_up(v, g);
	hi = end == img->size ? end : cow_round_down(end, g);
	if (lo == v && hi > v && (img->fmt->caps & COW_CAP_DISCARD) && v >= w->written_to) {
		w->punch = true;
		w->n = hi - v;
		return;
	}
	w->data = zeroes;
	w->n = (lo < end && lo > v && (img->fmt->caps & COW_CAP_DISCARD) ? lo : end) - v;
	if (req->op == COW_OP_ZERO || v < w->written_to)
		w->n = cow_min(w->n, ZERO_CHUNK);
}

static void wr_finish(struct cow_req_priv *p, int result)
{
	struct cow_req *req = priv_req(p);
	struct cow_chain *c = p->c;

	meta_unpin(&p->wr.pins);
	cow_free(p->wr.bounce);
	p->wr.bounce = NULL;
	wr_unlock(c, &p->wr);
	if (result == 0 && (req->flags & COW_REQ_FUA)) {
		flush_submit(c, req);
		return;
	}
	req_end(req, result);
}

static void wr_wake(struct cow_waiter *w, int result)
{
	struct cow_req_priv *p = cow_container_of(w, struct cow_req_priv, wr.wait);

	if (result)
		wr_finish(p, result);
	else
		wr_drive(p);
}

/* Bytes at the request's buffer that are a block in encoded form; 0: they are plain. */
static uint64_t wr_stored(struct cow_req_priv *p)
{
	return priv_req(p)->flags & COW_REQ_ENCODED ? priv_req(p)->stored : 0;
}

/* Bytes of the step that the request itself has. */
static uint64_t wr_given(struct cow_req_priv *p)
{
	if (priv_req(p)->op == COW_OP_PRESENT)
		return 0;
	return wr_stored(p) ? wr_stored(p) : p->wr.n;
}

/* Does the step write what has to be enciphered? */
static bool wr_enciphers(struct cow_req_priv *p)
{
	return p->c->layers[0]->img.encrypted && p->wr.map.dst.kind == COW_DATA && !p->wr.punch;
}

/* Asks the top layer for the step's place. 0: answered; 1: waiting; -errno. */
static int wr_map(struct cow_req_priv *p)
{
	struct cow_req *req = priv_req(p);
	struct cow_layer *top = p->c->layers[0];
	struct cow_wr *w = &p->wr;
	struct cow_query q = { .virt = req->virt + w->pos };
	struct cow_extent *dst = &w->map.dst;
	uint64_t end;
	int rc;

	q.len = w->n;
	q.intent = COW_WRITE;
	if (w->punch && !(req->flags & COW_REQ_PRESENT))
		q.intent = req->op == COW_OP_ZERO ? COW_ZERO : COW_DISCARD;
	if (req->op == COW_OP_PLACE)
		q.intent = COW_PLACE;
	if (req->op == COW_OP_WRITTEN && !top->img.linear) {
		q.intent = COW_PLACED;
		q.phys = req->phys + w->pos;
	}
	do {
		rc = ask(top, &q, wr_stored(p), &w->pins, &w->map);
		if (rc == -EAGAIN) {
			rc = chain_wait(top, &w->wait);
			if (rc == 0)
				rc = -EAGAIN;
		}
	} while (rc == -EAGAIN);
	if (rc)
		return rc;
	end = dst->virt + dst->len;
	w->n = cow_min(w->n, end - q.virt);
	w->head = w->tail = 0;
	w->own_head = w->own_tail = false;
	if (dst->flags & COW_EXT_TABLE) {
		w->n = 0;
		return 0;
	}
	if (!w->punch && (dst->flags & COW_EXT_NEW)) {
		w->head = q.virt - dst->virt;
		w->tail = end - (q.virt + w->n);
		if (req->op == COW_OP_PRESENT) {	/* nothing of it is given: all is filled */
			w->head = dst->len;
			w->tail = 0;
		}
	}
	if (wr_enciphers(p))
		crypt_edges(w, q.virt);
	return 0;
}

/* The step fails before it wrote anything. */
static void wr_give_back(struct cow_req_priv *p, int err)
{
	struct cow_image *img = &p->c->layers[0]->img;

	if (p->wr.map.dst.flags & COW_EXT_NEW)
		img->fmt->commit(img, &p->wr.map, err);
}

static void fill_done(struct cow_rd *rd, int err)
{
	struct cow_req_priv *p = cow_container_of(rd, struct cow_req_priv, fill);

	if (err) {
		wr_give_back(p, err);
		wr_finish(p, err);
		return;
	}
	p->wr.state++;
	wr_drive(p);
}

/* Old contents of [@virt, @virt + @len) into @buf, this layer's @own. 1: there, *ret; 0: fill_done() goes on. */
static int wr_fill_range(struct cow_req_priv *p, uint8_t *buf, uint64_t virt, uint64_t len, bool own,
			 int *ret)
{
	struct cow_image *img = &p->c->layers[0]->img;
	uint64_t shown = virt < img->below_limit ? cow_min(len, img->below_limit - virt) : 0;

	*ret = 0;
	if (len == 0)
		return 1;
	if (own)
		shown = len;
	else if (p->wr.map.src.kind != COW_BELOW || p->c->n == 1)
		shown = 0;
	memset(buf + shown, 0, len - shown);
	if (shown == 0)
		return 1;
	p->c->copied_bytes += shown;
	p->fill.c = p->c;
	p->fill.first = own ? 0 : 1;
	p->fill.virt = virt;
	p->fill.len = shown;
	p->fill.buf = buf;
	p->fill.done = fill_done;
	return rd_start(&p->fill, ret);
}

/* First byte that the step writes. */
static uint64_t wr_from(struct cow_req_priv *p)
{
	const struct cow_wr *w = &p->wr;
	uint64_t v = priv_req(p)->virt + w->pos;

	return w->own_head ? v - w->head : w->head ? w->map.dst.virt : v;
}

/* Where the tail is in the bounce buffer. */
static uint8_t *wr_tail(struct cow_req_priv *p)
{
	return p->wr.bounce + p->wr.head + (wr_enciphers(p) ? p->wr.n : 0);
}

/* The head, or the tail. */
static int wr_fill(struct cow_req_priv *p, int *ret)
{
	struct cow_wr *w = &p->wr;
	bool own = w->map.src.kind == COW_DATA;

	if (w->state == WR_HEAD)
		return wr_fill_range(p, w->bounce, wr_from(p), w->head, own || w->own_head, ret);
	return wr_fill_range(p, wr_tail(p), priv_req(p)->virt + w->pos + w->n, w->tail, own || w->own_tail,
			     ret);
}

static void wr_io_done(struct cow_iocb *cb, int result)
{
	struct cow_req_priv *p = cow_container_of(cb, struct cow_req_priv, wr.cb);

	p->wr.cb.raw = result;
	p->wr.state = WR_COMMIT;
	wr_drive(p);
}

/* 1: done, *ret; 0: wr_io_done() goes on. */
static int wr_io(struct cow_req_priv *p, int *ret)
{
	struct cow_layer *top = p->c->layers[0];
	struct cow_wr *w = &p->wr;
	const struct cow_extent *dst = &w->map.dst;
	uint64_t bytes = wr_given(p);
	struct cow_iocb *cb = &w->cb;

	cb->file = layer_file(top, dst->file);
	cb->off = dst->phys + wr_from(p) - dst->virt;
	cb->len = w->head + bytes + w->tail;
	cb->op = w->punch ? COW_IO_PUNCH : COW_IO_WRITE;
	cb->done = wr_io_done;
	cb->iovcnt = 0;
	if (wr_enciphers(p)) {
		*ret = crypt_write(top, w, wr_from(p), cb->off);
		if (*ret)
			return 1;
		cb->iov[cb->iovcnt++] = (struct iovec){ w->bounce, cb->len };
	} else if (!w->punch) {
		if (w->head)
			cb->iov[cb->iovcnt++] = (struct iovec){ w->bounce, w->head };
		if (bytes)
			cb->iov[cb->iovcnt++] = (struct iovec){ (void *)(uintptr_t)w->data, bytes };
		if (w->tail)
			cb->iov[cb->iovcnt++] = (struct iovec){ wr_tail(p), w->tail };
	}
	return cow_io_start(cb, ret);
}

/* ---- a table that the format needs first ---- */

static void wr_table_done(struct cow_iocb *cb, int result)
{
	struct cow_req_priv *p = cow_container_of(cb, struct cow_req_priv, wr.cb);

	p->wr.cb.raw = result;
	p->wr.state = result ? WR_COMMIT : WR_TABLE_OUT;
	wr_drive(p);
}

static int wr_table_begin(struct cow_req_priv *p)
{
	struct cow_wr *w = &p->wr;
	const struct cow_image *img = &p->c->layers[0]->img;

	w->bounce = cow_zalloc(w->map.dst.len);
	if (!w->bounce) {
		img->fmt->commit(&p->c->layers[0]->img, &w->map, -ENOMEM);
		return -ENOMEM;
	}
	w->state = w->map.src.kind == COW_DATA ? WR_TABLE : WR_TABLE_OUT;
	return 0;
}

/* Reads the old table, or writes the new one. 1: done, *ret; 0: waiting. */
static int wr_table_io(struct cow_req_priv *p, int *ret)
{
	struct cow_wr *w = &p->wr;
	bool out = w->state == WR_TABLE_OUT;

	w->cb.file = &p->c->layers[0]->file;
	w->cb.op = out ? COW_IO_WRITE : COW_IO_READ;
	w->cb.off = out ? w->map.dst.phys : w->map.src.phys;
	w->cb.len = w->map.dst.len;
	w->cb.iov[0] = (struct iovec){ w->bounce, w->map.dst.len };
	w->cb.iovcnt = 1;
	w->cb.done = out ? wr_io_done : wr_table_done;
	return cow_io_start(&w->cb, ret);
}

/* The step's data operation ended with @io. Returns the request's result so far. */
static int wr_commit(struct cow_req_priv *p, int io)
{
	struct cow_image *img = &p->c->layers[0]->img;
	struct cow_wr *w = &p->wr;

	p->c->data_dirty = true;	/* now, not at the start: an fdatasync in between did not cover it */
	if (w->map.dst.flags & COW_EXT_NEW) {
		img->fmt->commit(img, &w->map, io);
		if (io == 0 && w->map.dst.kind == COW_DATA)
			p->c->allocated_bytes += w->map.dst.len;
	}
	meta_unpin(&w->pins);
	cow_free(w->bounce);
	w->bounce = NULL;
	w->pos += w->n;
	w->state = WR_MAP;
	return io;
}

/* The data is there already: only where it was promised to be can it be found again. */
static void wr_check_written(const struct cow_image *img, struct cow_req *req)
{
	const struct cow_wr *w = &req_priv(req)->wr;
	const struct cow_extent *dst = &w->map.dst;
	uint64_t at = img->linear ? req->virt + img->linear_shift : req->phys;

	cow_assert(dst->kind == COW_DATA && dst->file == 0 && !w->head && !w->tail);
	cow_assert(dst->phys - dst->virt == at - req->virt);
}

/* Maps the next step; decides what it needs. 0: go on; 1: waiting; -errno. */
static int wr_step_map(struct cow_req_priv *p)
{
	struct cow_wr *w = &p->wr;
	int rc;

	for (;;) {
		wr_plan(priv_req(p), w, &p->c->layers[0]->img);
		if (priv_req(p)->op != COW_OP_DISCARD || w->punch ||
		    priv_req(p)->virt + w->pos < w->written_to)
			break;
		w->pos += w->n;		/* the ragged edge of a discard stays as it is */
		if (w->pos == priv_req(p)->len)
			return 0;
	}
	rc = wr_map(p);
	if (rc == -EOPNOTSUPP && w->punch && p->c->layers[0]->img.encrypted) {
		meta_unpin(&w->pins);
		w->written_to = priv_req(p)->virt + w->pos + p->c->layers[0]->img.granule;
		return 0;
	}
	if (rc)
		return rc;
	if (w->map.dst.flags & COW_EXT_TABLE)
		return wr_table_begin(p);
	if (w->map.dst.kind == COW_HOLE && w->punch) {
		if (w->map.dst.flags & COW_EXT_NEW) {
			w->cb.raw = 0;
			w->state = WR_COMMIT;
			return 0;
		}
		meta_unpin(&w->pins);
		w->pos += w->n;
		return 0;
	}
	if (w->map.dst.kind != (wr_stored(p) ? COW_ENCODED : COW_DATA))
		return -EIO;
	if (priv_req(p)->op == COW_OP_PLACE ||
	    (priv_req(p)->op == COW_OP_PRESENT && !(w->map.dst.flags & COW_EXT_NEW))) {
		meta_unpin(&w->pins);
		w->pos += w->n;
		return 0;
	}
	if (priv_req(p)->op == COW_OP_WRITTEN) {
		wr_check_written(&p->c->layers[0]->img, priv_req(p));
		w->cb.raw = 0;
		w->state = WR_COMMIT;
		return 0;
	}
	cow_assert(!w->punch || !p->c->layers[0]->img.encrypted);
	w->state = WR_IO;
	if (w->head || w->tail || wr_enciphers(p)) {
		w->bounce = cow_memalign(sizeof(void *), w->head + w->tail + (wr_enciphers(p) ? w->n : 0));
		if (!w->bounce) {
			wr_give_back(p, -ENOMEM);
			return -ENOMEM;
		}
		w->state = WR_HEAD;
	}
	return 0;
}

/* One state of the machine. 0: go on; 1: waiting; -errno: over. */
static int wr_step(struct cow_req_priv *p)
{
	struct cow_wr *w = &p->wr;
	int rc;

	switch (w->state) {
	case WR_MAP:
		return wr_step_map(p);
	case WR_HEAD:
	case WR_TAIL:
		if (wr_fill(p, &p->fill.err) == 0)
			return 1;
		if (p->fill.err) {
			wr_give_back(p, p->fill.err);
			return p->fill.err;
		}
		w->state++;
		return 0;
	case WR_IO:
		if (wr_io(p, &rc) == 0)
			return 1;
		return wr_commit(p, rc);
	case WR_TABLE:
	case WR_TABLE_OUT:
		if (wr_table_io(p, &rc) == 0)
			return 1;
		if (rc || w->state == WR_TABLE_OUT)
			return wr_commit(p, rc);
		w->state = WR_TABLE_OUT;
		return 0;
	case WR_COMMIT:
		return wr_commit(p, (int)w->cb.raw);
	}
	return -EINVAL;
}

static void wr_drive(struct cow_req_priv *p)
{
	int rc = 0;

	while (rc == 0 && (p->wr.state != WR_MAP || p->wr.pos < priv_req(p)->len))
		rc = wr_step(p);
	if (rc != 1)
		wr_finish(p, rc);
}

/* A whole block that the format can store encoded, in less than its bytes. 0 or -errno. */
static int wr_check_encoded(const struct cow_image *img, const struct cow_req *req)
{
	if (req->op != COW_OP_WRITE || !img->fmt->put_encoded || !img->block || img->encrypted)
		return -EOPNOTSUPP;	/* the stored form of an encoded block is never enciphered */
	if (req->virt % img->block || req->len != cow_min(img->block, img->size - req->virt) ||
	    req->stored == 0 || req->stored >= img->block)
		return -EINVAL;
	return 0;
}

/* May this change be tried at all? 0 or -errno. */
static int wr_check(struct cow_chain *c, const struct cow_req *req)
{
	const struct cow_image *img = &c->layers[0]->img;
	uint32_t unit = req->op == COW_OP_WRITTEN && img->linear ? img->granule : img->place;
	uint64_t end = req->virt + req->len;

	if (!c->writable || c->mode != COW_MODE_RW)
		return c->writable ? -EIO : -EROFS;
	if (req->flags & COW_REQ_ENCODED)
		return wr_check_encoded(img, req);
	if (img->encrypted && (req->op == COW_OP_WRITTEN || req->op == COW_OP_PRESENT ||
			       (req->flags & COW_REQ_PRESENT)))
		return -EOPNOTSUPP;
	if (req->op != COW_OP_WRITTEN && req->op != COW_OP_PLACE)
		return 0;
	if (!unit)
		return -EOPNOTSUPP;
	if (req->virt % unit || (end % unit && end != img->size))
		return -EINVAL;
	return 0;
}

static void wr_submit(struct cow_chain *c, struct cow_req *req)
{
	struct cow_req_priv *p = req_priv(req);
	uint64_t g = c->layers[0]->img.granule;
	int rc = wr_check(c, req);

	if (rc == 0)
		rc = chain_begin(c);
	if (rc) {
		req_end(req, rc);
		return;
	}
	p->wr.state = WR_MAP;
	p->wr.pos = 0;
	p->wr.bounce = NULL;
	p->wr.written_to = 0;
	p->wr.pins.n = 0;
	p->wr.wait.wake = wr_wake;
	p->wr.lo = cow_round_down(req->virt, g);
	p->wr.hi = cow_round_up(req->virt + req->len, g);
	if (wr_lock(c, &p->wr))
		wr_drive(p);
}

/* ---- the public side ---- */

void req_end(struct cow_req *req, int result)
{
	struct cow_chain *c = req_priv(req)->c;

	c->inflight--;
	if (!cow_list_empty(&c->stalled))
		chain_wake_stalled(c, 0);
	req->done(req, result);
}

static void req_rd_done(struct cow_rd *rd, int err)
{
	req_end(priv_req(cow_container_of(rd, struct cow_req_priv, rd)), err);
}

static void rd_submit(struct cow_chain *c, struct cow_req *req)
{
	struct cow_rd *rd = &req_priv(req)->rd;
	int rc;

	if (c->mode == COW_MODE_FAIL) {
		req_end(req, -EIO);
		return;
	}
	rd->c = c;
	rd->virt = req->virt;
	rd->len = req->len;
	rd->buf = req->buf;
	rd->first = req->layer;
	rd->done = req_rd_done;
	if (rd_start(rd, &rc))
		req_end(req, rc);
}

void cow_req_submit(struct cow_chain *c, struct cow_req *req)
{
	uint64_t end;

	chain_assert_thread(c);
	req_priv(req)->c = c;
	c->inflight++;
	if (req->op == COW_OP_FLUSH) {
		flush_submit(c, req);
		return;
	}
	if (req->len == 0 || req->layer >= c->n || (req->layer && req->op != COW_OP_READ) ||
	    !cow_add_ok(req->virt, req->len, &end) || end > c->layers[req->layer]->img.size) {
		req_end(req, -EINVAL);
		return;
	}
	if (req->op == COW_OP_READ)
		rd_submit(c, req);
	else
		wr_submit(c, req);
}

struct sync_wait {
	int result;
	bool done;
};

static void sync_done(struct cow_req *req, int result)
{
	struct sync_wait *w = req->opaque;

	w->result = result;
	w->done = true;
}

static int run_req(struct cow_chain *c, struct cow_req *req)
{
	struct sync_wait w = { 0 };

	req->done = sync_done;
	req->opaque = &w;
	cow_req_submit(c, req);
	while (!w.done)
		cow_chain_poll(c, true);
	return w.result;
}

static int run(struct cow_chain *c, enum cow_op op, void *buf, uint64_t virt, uint64_t len,
	       unsigned layer)
{
	struct cow_req req = { .op = op, .virt = virt, .len = len, .buf = buf, .layer = layer };

	return op != COW_OP_FLUSH && len == 0 ? 0 : run_req(c, &req);
}

int cow_chain_pread(struct cow_chain *c, void *buf, size_t len, uint64_t virt)
{
	return run(c, COW_OP_READ, buf, virt, len, 0);
}

int cow_chain_pread_layer(struct cow_chain *c, unsigned layer, void *buf, size_t len, uint64_t virt)
{
	return run(c, COW_OP_READ, buf, virt, len, layer);
}

int cow_chain_pwrite(struct cow_chain *c, const void *buf, size_t len, uint64_t virt)
{
	return run(c, COW_OP_WRITE, (void *)(uintptr_t)buf, virt, len, 0);
}

int cow_chain_pwrite_encoded(struct cow_chain *c, const void *buf, size_t len, uint64_t virt)
{
	const struct cow_image *img = &c->layers[0]->img;
	struct cow_req req = { .op = COW_OP_WRITE, .flags = COW_REQ_ENCODED, .virt = virt, .stored = len,
			       .buf = (void *)(uintptr_t)buf };

	if (virt >= img->size)
		return -EINVAL;
	req.len = cow_min(img->block, img->size - virt);
	return run_req(c, &req);
}

int cow_chain_zero(struct cow_chain *c, uint64_t virt, uint64_t len)
{
	return run(c, COW_OP_ZERO, NULL, virt, len, 0);
}

int cow_chain_discard(struct cow_chain *c, uint64_t virt, uint64_t len)
{
	return run(c, COW_OP_DISCARD, NULL, virt, len, 0);
}

int cow_chain_flush(struct cow_chain *c)
{
	return run(c, COW_OP_FLUSH, NULL, 0, 0, 0);
}

int cow_chain_poll(struct cow_chain *c, bool wait)
{
	chain_assert_thread(c);
	return cow_io_poll(c->io, wait);
}

int cow_chain_fd(struct cow_chain *c)
{
	return c->io->ops->fd(c->io);
}

unsigned cow_chain_inflight(const struct cow_chain *c)
{
	return c->inflight;
}
