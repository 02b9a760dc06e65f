// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Flush: what makes acknowledged changes durable. One runs at a time and serves
 * everybody who asked before it started; who asks later waits for the next.
 *
 *   copy the dirty metadata  ->  fdatasync (data)  ->  write the copies  ->  fdatasync
 *
 * with one more write and fdatasync for each level of write-order edges, and one
 * more fdatasync of data where an image has a data file. When nothing was
 * allocated one fdatasync is all; when nothing changed, none.
 *
 * A failed fdatasync is final: the kernel may have dropped the pages, so no
 * later success could be believed. The chain goes read-only.
 */
#include <errno.h>

#include "cow/log.h"
#include "engine.h"

static void flush_run(struct cow_chain *c, int rc);
static void flush_start(struct cow_chain *c);

/* Errors after which trying again is honest: nothing was lost, there was only no room. */
static bool passing(int err)
{
	return err == -ENOSPC || err == -EDQUOT || err == -ENOMEM;
}

static void flush_finish(struct cow_chain *c, int rc)
{
	struct cow_flush *f = &c->flush;
	struct cow_list ended;

	meta_flush_end(&f->meta);
	f->state = FLUSH_IDLE;
	f->last = rc;
	cow_list_init(&ended);
	cow_list_splice(&f->joined, &ended);
	if (!cow_list_empty(&f->next)) {
		cow_list_splice(&f->next, &f->joined);
		flush_start(c);
	}
	while (!cow_list_empty(&ended)) {
		struct cow_req_priv *p = cow_list_entry(ended.next, struct cow_req_priv, node);

		cow_list_del(&p->node);
		req_end(priv_req(p), rc);
	}
	if (!cow_list_empty(&c->stalled))
		chain_wake_stalled(c, rc);
}

static void sync_done(struct cow_iocb *cb, int result)
{
	flush_run(cb->opaque, result);
}

/* 1: synced, *ret; 0: sync_done() goes on. */
static int sync_start(struct cow_chain *c, struct cow_file *file, int *ret)
{
	c->flush.cb = (struct cow_iocb){
		.file = file,
		.op = COW_IO_SYNC,
		.done = sync_done,
		.opaque = c,
	};
	return cow_io_start(&c->flush.cb, ret);
}

static void round_done(struct meta_flush *m, int err)
{
	flush_run(cow_container_of(m, struct cow_chain, flush.meta), err);
}

/* @rc: result of the step that just ended. */
static void flush_run(struct cow_chain *c, int rc)
{
	struct cow_flush *f = &c->flush;

	for (;;) {
		if (f->state == FLUSH_WRITE) {
			if (rc && !passing(rc))
				chain_fail(c, COW_MODE_RO, rc, "writing metadata");
			if (rc) {
				flush_finish(c, rc);
				return;
			}
			f->state = FLUSH_SYNC;
			c->meta_syncs++;
			if (!sync_start(c, &c->layers[0]->file, &rc))
				return;
			continue;
		}
		if (rc)
			chain_fail(c, COW_MODE_RO, rc, "fdatasync");
		if (rc == 0 && f->state == FLUSH_DATA_FILE) {
			f->state = FLUSH_DATA;
			if (!sync_start(c, &c->layers[0]->file, &rc))
				return;
			continue;
		}
		if (rc || f->meta.round == f->meta.rounds) {
			flush_finish(c, rc);
			return;
		}
		f->state = FLUSH_WRITE;
		f->meta.round_done = round_done;
		if (!meta_flush_round(&f->meta))
			return;
		rc = f->meta.err;
	}
}

static void flush_start(struct cow_chain *c)
{
	struct cow_flush *f = &c->flush;
	int rc;

	f->state = FLUSH_DATA;
	rc = c->mode == COW_MODE_RW ? 0 : c->sticky;
	if (rc == 0)
		rc = meta_flush_prepare(&c->layers[0]->meta, &f->meta);
	if (rc) {
		flush_finish(c, rc);
		return;
	}
	if (c->data_dirty) {
		c->data_dirty = false;
		c->data_syncs++;
		if (c->layers[0]->data.io)
			f->state = FLUSH_DATA_FILE;
		if (!sync_start(c, c->layers[0]->data.io ? &c->layers[0]->data : &c->layers[0]->file, &rc))
			return;
	}
	flush_run(c, rc);
}

void flush_submit(struct cow_chain *c, struct cow_req *req)
{
	struct cow_req_priv *p = req_priv(req);

	if (!c->writable) {
		req_end(req, 0);
		return;
	}
	if (c->flush.state != FLUSH_IDLE) {
		cow_list_add_tail(&c->flush.next, &p->node);
		return;
	}
	cow_list_add_tail(&c->flush.joined, &p->node);
	flush_start(c);
}

int flush_kick(struct cow_chain *c)
{
	if (c->mode != COW_MODE_RW)
		return c->sticky;
	if (c->flush.state == FLUSH_IDLE) {
		flush_start(c);
		if (c->flush.state == FLUSH_IDLE)
			return c->flush.last;
	}
	return 1;
}
