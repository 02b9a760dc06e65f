// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The bytes: turns reads, writes, flushes, zeroing and seeks of a file into
 * requests of the device, and their completion into the reply. No cache, no
 * copy: a read is answered from the buffer the engine filled, a write is
 * carried out from the buffer it was received in.
 *
 * Most requests complete inside the submit call. Only one that does not keeps
 * its buffer, and the receive buffer is replaced when it was a write's.
 */
#include "fuse/view.h"

#include <errno.h>
#include <linux/falloc.h>
#include <time.h>
#include <unistd.h>

#define SEEK_BATCH 64	/* extents between two looks at the clock */

/* Reads through layers/1 and below; layers/0 is the disk itself. */
static unsigned read_layer(const struct view_node *n)
{
	return n->kind == VIEW_LAYER ? n->index : 0;
}

static bool is_data(const struct view_handle *h)
{
	return h->fd < 0;
}

/* ---- completion ---- */

static void reply(struct view_slot *s, int result)
{
	if (s->f->dead)
		fuse_reply_none(s->freq);
	else if (result)
		fuse_reply_err(s->freq, -result);
	else if (s->op == VIEW_OP_READ)
		fuse_reply_buf(s->freq, s->req.buf, s->req.len);
	else if (s->op == VIEW_OP_WRITE)
		fuse_reply_write(s->freq, s->req.len);
	else
		fuse_reply_err(s->freq, 0);
}

static void on_done(struct cow_req *req, int result)
{
	struct view_slot *s = cow_container_of(req, struct view_slot, req);
	struct cow_fuse *f = s->f;

	if (f->submitting == s)
		f->submitting = NULL;
	f->inflight--;
	if (s->op != VIEW_OP_PLAIN)
		f->bytes -= req->len;
	if (req->layer)
		f->layer_reads--;
	reply(s, result);
	view_slot_put(f, s);
	view_receive_again(f);
	view_put(f);
}

static void submit_layer(struct cow_fuse *f, struct view_slot *s)
{
	f->layer_reads++;
	cow_req_submit(f->chain, &s->req);
	cow_dev_attend(f->dev);
}

/* s->op and the request are set. Replies, now or later. */
static void submit(fuse_req_t freq, struct cow_fuse *f, struct view_slot *s)
{
	s->freq = freq;
	s->req.done = on_done;
	view_get(f);
	f->inflight++;
	if (s->op != VIEW_OP_PLAIN)
		f->bytes += s->req.len;
	f->submitting = s;
	if (s->req.layer)
		submit_layer(f, s);
	else
		cow_dev_submit(f->dev, &s->req);
	/* Not complete: the data of a write has to outlive the receive buffer's next use. */
	if (f->submitting == s && s->op == VIEW_OP_WRITE)
		s->buf = view_rx_take(f);
	f->submitting = NULL;
}

static struct view_slot *new_slot(struct cow_fuse *f, enum cow_op op, uint64_t virt, uint64_t len)
{
	struct view_slot *s = view_slot_get(f);

	if (!s)
		return NULL;
	s->op = op == COW_OP_READ    ? VIEW_OP_READ
		: op == COW_OP_WRITE ? VIEW_OP_WRITE
				     : VIEW_OP_PLAIN;
	s->req.op = op;
	s->req.flags = 0;
	s->req.virt = virt;
	s->req.len = len;
	s->req.buf = NULL;
	s->req.layer = 0;
	return s;
}

/* ---- read and write ---- */

static void read_text(fuse_req_t req, struct cow_fuse *f, const struct view_handle *h, size_t size,
		      off_t off)
{
	struct view_buf *b = view_buf_get(f);
	ssize_t n;

	if (!b) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	n = pread(h->fd, b->mem, size, off);
	if (n < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_buf(req, (char *)b->mem, (size_t)n);
	view_buf_put(f, b, n > 0 ? (uint64_t)n : 0);
}

void view_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct cow_fuse *f = view_of(req);
	const struct view_handle *h = view_handle(fi);
	const struct view_node *n = h->file;
	struct view_slot *s;
	uint64_t end;

	(void)ino;
	if (size > VIEW_IO_MAX || off < 0) {
		fuse_reply_err(req, EINVAL);
		return;
	}
	if (!is_data(h)) {
		read_text(req, f, h, size, off);
		return;
	}
	end = view_node_size(f, n);
	if ((uint64_t)off >= end || !size) {
		fuse_reply_buf(req, NULL, 0);
		return;
	}
	s = new_slot(f, COW_OP_READ, n->start + (uint64_t)off, cow_min(size, end - (uint64_t)off));
	if (s)
		s->buf = view_buf_get(f);
	if (!s || !s->buf) {
		fuse_reply_err(req, ENOMEM);
		if (s)
			view_slot_put(f, s);
		return;
	}
	s->req.buf = s->buf->mem;
	s->req.layer = read_layer(n);
	submit(req, f, s);
}

/* A change of @n is on its way. */
static void note_change(struct cow_fuse *f, struct view_node *n)
{
	n->own++;
	f->changes++;
	clock_gettime(CLOCK_REALTIME_COARSE, &f->mtime);
}

void view_op_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t off,
		   struct fuse_file_info *fi)
{
	struct cow_fuse *f = view_of(req);
	struct view_handle *h = view_handle(fi);
	struct view_slot *s;
	uint64_t end;

	(void)ino;
	if (!h->write || off < 0) {
		fuse_reply_err(req, EBADF);
		return;
	}
	end = view_node_size(f, h->file);
	if (!size) {
		fuse_reply_write(req, 0);
		return;
	}
	/* All or nothing: as on a full disk, and no half-written structure at the end of it. */
	if ((uint64_t)off > end || size > end - (uint64_t)off) {
		fuse_reply_err(req, ENOSPC);
		return;
	}
	s = new_slot(f, COW_OP_WRITE, h->file->start + (uint64_t)off, size);
	if (!s) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	/* The receive buffer is ours to lend, const or not; see view_rx_take(). */
	s->req.buf = (void *)(uintptr_t)data;
	note_change(f, h->file);
	submit(req, f, s);
}

/* ---- flush, zero ---- */

void view_op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	struct cow_fuse *f = view_of(req);
	struct view_slot *s;

	(void)ino;
	(void)datasync;
	if (!f->writable || !is_data(view_handle(fi))) {
		fuse_reply_err(req, 0);
		return;
	}
	s = new_slot(f, COW_OP_FLUSH, 0, 0);
	if (!s)
		fuse_reply_err(req, ENOMEM);
	else
		submit(req, f, s);
}

/* 0 and the bytes to zero (none: nothing to do), or an errno. */
static int zero_range(int mode, uint64_t off, uint64_t len, uint64_t size, uint64_t *ret_len)
{
	if (mode != (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) &&
	    (mode & ~FALLOC_FL_KEEP_SIZE) != FALLOC_FL_ZERO_RANGE)
		return EOPNOTSUPP;
	/* Only ZERO_RANGE without KEEP_SIZE asks for a larger file. */
	if (!(mode & FALLOC_FL_KEEP_SIZE) && (off > size || len > size - off))
		return ENOSPC;
	*ret_len = off >= size ? 0 : cow_min(len, size - off);
	return 0;
}

/*
 * Plain allocation is refused: reserving space in a sparse image is not
 * something every format can promise, and claiming it would be a lie.
 * Programs fall back to writing.
 */
void view_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
		       struct fuse_file_info *fi)
{
	struct cow_fuse *f = view_of(req);
	struct view_handle *h = view_handle(fi);
	struct view_slot *s;
	uint64_t bytes;
	int e;

	(void)ino;
	e = !h->write ? EBADF : off < 0 || len <= 0 ? EINVAL :
		zero_range(mode, (uint64_t)off, (uint64_t)len, view_node_size(f, h->file), &bytes);
	if (e || !bytes) {
		fuse_reply_err(req, e);
		return;
	}
	s = new_slot(f, COW_OP_ZERO, h->file->start + (uint64_t)off, bytes);
	if (!s) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	note_change(f, h->file);
	submit(req, f, s);
}

/* ---- SEEK_DATA, SEEK_HOLE ---- */

struct seek_job {
	struct view_job job;
	unsigned layer;
	uint64_t start;			/* of the file, in the disk */
	uint64_t pos, end;		/* in the file */
	bool hole;			/* what is looked for */
};

/* One extent further. 0: not found yet, 1: found, or -errno. */
static int seek_step(struct seek_job *j)
{
	struct cow_extent ext;
	unsigned layer;
	int rc;

	if (j->pos >= j->end)
		return j->hole ? 1 : -ENXIO;	/* every file ends in a hole */
	rc = cow_chain_extent(j->job.f->chain, j->layer, j->start + j->pos, j->end - j->pos, &ext,
			      &layer);
	if (rc)
		return rc;
	if ((ext.kind == COW_HOLE) == j->hole)
		return 1;
	if (!ext.len)
		return -EIO;
	j->pos += cow_min(ext.len, j->end - j->pos);
	return 0;
}

static bool seek_slice(struct view_job *job)
{
	struct seek_job *j = cow_container_of(job, struct seek_job, job);
	uint64_t until = view_now_ns() + VIEW_SLICE_NS;
	int rc = 0;

	do {
		for (unsigned i = 0; i < SEEK_BATCH && !rc; i++)
			rc = seek_step(j);
	} while (!rc && view_now_ns() < until);
	if (!rc)
		return false;
	if (rc > 0)
		fuse_reply_lseek(job->req, (off_t)j->pos);
	else
		fuse_reply_err(job->req, -rc);
	return true;
}

static void seek_release(struct view_job *job)
{
	cow_free(cow_container_of(job, struct seek_job, job));
}

void view_op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
	struct cow_fuse *f = view_of(req);
	const struct view_handle *h = view_handle(fi);
	uint64_t end = is_data(h) ? view_node_size(f, h->file) : h->size;
	struct seek_job *j;

	(void)ino;
	if (whence != SEEK_DATA && whence != SEEK_HOLE) {
		fuse_reply_err(req, EINVAL);
		return;
	}
	if (off < 0 || (uint64_t)off >= end) {
		fuse_reply_err(req, ENXIO);
		return;
	}
	if (!is_data(h)) {
		fuse_reply_lseek(req, whence == SEEK_DATA ? off : (off_t)end);
		return;
	}
	j = cow_zalloc(sizeof(*j));
	if (!j) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	j->job = (struct view_job){
		.f = f, .req = req, .step = seek_slice, .release = seek_release
	};
	j->layer = read_layer(h->file);
	j->start = h->file->start;
	j->pos = (uint64_t)off;
	j->end = end;
	j->hole = whence == SEEK_HOLE;
	view_job_run(f, &j->job);
}
