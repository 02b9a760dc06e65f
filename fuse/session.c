// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * One view: its life, the handler that receives requests, and the buffers and
 * slots they use. What a request means is in data.c and tree.c; how the mount
 * comes about, in mount.c.
 *
 * Receiving. /dev/fuse is read here instead of by fuse_session_receive_buf():
 * the payload of a write then starts on a page, and the buffer can change hands
 * without a copy. A wake-up reads until there is nothing more. Even with one
 * client that waits for each answer that is the faster way: on another CPU it
 * has often sent its next request by the time our reply call returns, and a
 * read that finds nothing costs less than a sleep that was not needed.
 *
 * While too much is in flight nothing is received, not even a question for a
 * size: a paused device with VIEW_SLOTS requests waiting answers nobody until it
 * is resumed.
 *
 * Memory. Buffers are large but only touched where used. They are handed out
 * last in, first out, so that small requests stay on few warm pages; a timer
 * gives the pages of a rush back. Nothing is allocated per request in a steady
 * state except libfuse's own request.
 */
#include "fuse/view.h"

#include <errno.h>
#include <linux/fuse.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "cow/log.h"

/* A write's payload starts on the page behind its headers. */
#define RX_HEADERS (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))
#define BUF_HEAD 4096u
#define BUF_KEEP 16384u		/* stays resident in an idle buffer, for small requests */
#define SLOTS_AT_START 8
#define DRAIN_MAX 64		/* requests per wake-up, at most: other sources want their turn */
#define TRIM_MS 1000
#define JOB_PAUSE_MS 1

uint64_t view_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- buffers and slots ---- */

struct view_buf *view_buf_get(struct cow_fuse *f)
{
	struct view_buf *b = f->free_bufs;

	if (b) {
		f->free_bufs = b->next;
		return b;
	}
	b = cow_zalloc(sizeof(*b));
	if (!b)
		return NULL;
	b->mem = cow_memalign(BUF_HEAD, BUF_HEAD + VIEW_IO_MAX);
	if (!b->mem) {
		cow_free(b);
		return NULL;
	}
	return b;
}

static void buf_free(struct view_buf *b)
{
	if (b)
		cow_free(b->mem);
	cow_free(b);
}

static void buf_trim(struct view_buf *b)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	uintptr_t from = (uintptr_t)b->mem + BUF_HEAD + BUF_KEEP;
	uintptr_t to = (uintptr_t)b->mem + BUF_HEAD + VIEW_IO_MAX;

	if (!b->big)
		return;
	b->big = false;
	from = cow_round_up(from, page);
	to = cow_round_down(to, page);
	if (from < to)
		(void)madvise((void *)from, to - from, MADV_DONTNEED);	/* only advice */
}

static void on_trim(void *opaque, uint32_t events)
{
	struct cow_fuse *f = opaque;
	struct view_buf *b;

	(void)events;
	cow_source_free(f->trim);
	f->trim = NULL;
	for (b = f->free_bufs; b; b = b->next)
		buf_trim(b);
	if (f->rx)
		buf_trim(f->rx);
}

/* @used bytes of @b were touched. */
static void note_use(struct cow_fuse *f, struct view_buf *b, uint64_t used)
{
	if (used <= BUF_KEEP)
		return;
	b->big = true;
	if (!f->trim && !f->dead)
		f->trim = cow_loop_timer(f->loop, TRIM_MS, false, on_trim, f);
}

void view_buf_put(struct cow_fuse *f, struct view_buf *b, uint64_t used)
{
	note_use(f, b, used);
	b->next = f->free_bufs;
	f->free_bufs = b;
}

struct view_buf *view_rx_take(struct cow_fuse *f)
{
	struct view_buf *b = f->rx;

	f->rx = NULL;
	return b;
}

struct view_slot *view_slot_get(struct cow_fuse *f)
{
	struct view_slot *s = f->free_slots;

	if (s) {
		f->free_slots = s->next;
		return s;
	}
	s = cow_zalloc(sizeof(*s));
	if (s)
		s->f = f;
	return s;
}

void view_slot_put(struct cow_fuse *f, struct view_slot *s)
{
	if (s->buf)
		view_buf_put(f, s->buf, s->req.len);
	s->buf = NULL;
	s->next = f->free_slots;
	f->free_slots = s;
}

/* ---- life ---- */

void view_get(struct cow_fuse *f)
{
	f->refs++;
}

static void release(struct cow_fuse *f)
{
	struct view_slot *s;
	struct view_buf *b;

	while (!cow_list_empty(&f->handles))
		view_handle_free(cow_list_entry(f->handles.next, struct view_handle, node));
	while ((s = f->free_slots)) {
		f->free_slots = s->next;
		cow_free(s);
	}
	while ((b = f->free_bufs)) {
		f->free_bufs = b->next;
		buf_free(b);
	}
	buf_free(f->rx);
	view_tree_free(f);
	if (f->se)
		fuse_session_destroy(f->se);
	cow_free(f->mountpoint);
	cow_free(f);
}

void view_put(struct cow_fuse *f)
{
	if (!--f->refs)
		release(f);
}

/* ---- receiving ---- */

static bool can_receive(struct cow_fuse *f)
{
	if (f->inflight >= VIEW_SLOTS || f->bytes >= VIEW_BYTES)
		return false;
	if (!f->rx)
		f->rx = view_buf_get(f);
	return f->rx;
}

void view_receive_again(struct cow_fuse *f)
{
	if (!f->stopped || !f->src || !can_receive(f))
		return;
	f->stopped = false;
	cow_source_events(f->src, EPOLLIN);
}

static void stop_receiving(struct cow_fuse *f)
{
	if (f->stopped || !f->src)
		return;
	f->stopped = true;
	cow_source_events(f->src, 0);
}

static void session_ended(struct cow_fuse *f)
{
	if (f->ended || f->dead)
		return;
	f->ended = true;
	cow_source_free(f->src);
	f->src = NULL;
	if (f->unmounted)
		f->unmounted(f->opaque);
}

/* Takes one request and starts it. 1: did; 0: none there; -1: no more to come. */
static int receive_one(struct cow_fuse *f)
{
	struct fuse_buf buf = { .mem = f->rx->mem + BUF_HEAD - RX_HEADERS };
	ssize_t n;

	/*
	 * ENOENT: a request was taken back while the kernel copied it. ENOMEM: it could not be
	 * copied, and the kernel has failed it.
	 */
	do {
		n = read(f->fd, buf.mem, RX_HEADERS + VIEW_IO_MAX);
	} while (n < 0 && (errno == EINTR || errno == ENOENT || errno == ENOMEM));
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < (ssize_t)sizeof(struct fuse_in_header)) {
		if (n >= 0 || errno != ENODEV)
			cow_log(COW_LOG_ERR, "%s: reading from /dev/fuse: %s", f->mountpoint,
				n < 0 ? strerror(errno) : "short read");
		return -1;
	}
	note_use(f, f->rx, (uint64_t)n);
	buf.size = (size_t)n;
	fuse_session_process_buf(f->se, &buf);
	if (fuse_session_exited(f->se))
		return -1;
	if (f->greeted && f->ready) {
		void (*ready)(void *opaque) = f->ready;

		f->ready = NULL;
		ready(f->opaque);
	}
	return 1;
}

static void on_request(void *opaque, uint32_t events)
{
	struct cow_fuse *f = opaque;
	int rc = 1;

	view_get(f);
	for (unsigned n = 0; n < DRAIN_MAX && rc > 0 && !f->dead; n++) {
		/* EPOLLERR comes whatever we asked for: read on to see ENODEV. */
		if (!can_receive(f) && !(f->rx && (events & EPOLLERR))) {
			stop_receiving(f);
			break;
		}
		rc = receive_one(f);
	}
	if (rc < 0)
		session_ended(f);
	view_put(f);
}

/* ---- work in slices ---- */

static void jobs_again(struct cow_fuse *f);

static void on_job_timer(void *opaque, uint32_t events)
{
	struct cow_fuse *f = opaque;
	struct cow_list *n, *tmp;

	(void)events;
	cow_source_free(f->job_timer);
	f->job_timer = NULL;
	cow_list_for_each_safe(n, tmp, &f->jobs) {
		struct view_job *job = cow_list_entry(n, struct view_job, node);

		if (!job->step(job))
			continue;
		cow_list_del(&job->node);
		job->release(job);
	}
	jobs_again(f);
}

static void jobs_again(struct cow_fuse *f)
{
	if (cow_list_empty(&f->jobs) || f->job_timer)
		return;
	f->job_timer = cow_loop_timer(f->loop, JOB_PAUSE_MS, false, on_job_timer, f);
	if (f->job_timer)
		return;
	/* Without a timer nothing would go on: fail what waits. */
	while (!cow_list_empty(&f->jobs)) {
		struct view_job *job = cow_list_entry(f->jobs.next, struct view_job, node);

		cow_list_del(&job->node);
		fuse_reply_err(job->req, ENOMEM);
		job->release(job);
	}
}

void view_job_run(struct cow_fuse *f, struct view_job *job)
{
	if (job->step(job)) {
		job->release(job);
		return;
	}
	cow_list_add_tail(&f->jobs, &job->node);
	jobs_again(f);
}

static void jobs_stop(struct cow_fuse *f)
{
	cow_source_free(f->job_timer);
	f->job_timer = NULL;
	while (!cow_list_empty(&f->jobs)) {
		struct view_job *job = cow_list_entry(f->jobs.next, struct view_job, node);

		cow_list_del(&job->node);
		fuse_reply_none(job->req);
		job->release(job);
	}
}

/* ---- the size changed ---- */

struct resize_note {
	struct cow_fuse *f;
	off_t from;
};

/* In a child: drops the pages from the old or new end on, whichever is lower. */
static int drop_pages(void *arg, int out_fd)
{
	const struct resize_note *note = arg;

	(void)out_fd;
	for (unsigned i = 0; i < 2; i++)
		fuse_lowlevel_notify_inval_inode(note->f->se, i ? VIEW_INO_LAYER0 : VIEW_INO_DISK,
						 note->from, 0);
	return 0;
}

static void pages_dropped(void *opaque, int status, const char *out, size_t len)
{
	(void)status;
	(void)out;
	(void)len;
	view_put(opaque);
}

/*
 * Notifications and deadlock. The kernel carries out a notification inside our
 * write() to /dev/fuse, so this thread, the only one that answers requests,
 * must not send one that can wait for an answer.
 *
 * Dropping attributes only (negative offset) waits for nothing: it looks the
 * inode up and marks it. It is sent at once, so that whoever asks for the size
 * after a resize gets the new one.
 *
 * Dropping pages waits for pages that are locked for a read or write in
 * flight, which we would have to answer. That is left to a child, while this
 * process goes on serving.
 */
static void on_resized(struct cow_dev_watch *w, uint64_t size)
{
	struct cow_fuse *f = cow_container_of(w, struct cow_fuse, watch);
	struct resize_note note = { f, (off_t)cow_round_down(cow_min(f->size, size), 4096) };

	f->size = size;
	f->changes++;	/* no file's cached pages are trusted at its next open */
	if (f->ended)
		return;
	fuse_lowlevel_notify_inval_inode(f->se, VIEW_INO_DISK, -1, 0);
	fuse_lowlevel_notify_inval_inode(f->se, VIEW_INO_LAYER0, -1, 0);
	view_get(f);
	if (cow_loop_child(f->loop, drop_pages, &note, pages_dropped, f)) {
		cow_log(COW_LOG_WARN,
			"%s: cached pages behind the old end stay until the next open",
			f->mountpoint);
		view_put(f);
	}
}

/* ---- mount ---- */

static void op_init(void *opaque, struct fuse_conn_info *c)
{
	struct cow_fuse *f = opaque;

	f->greeted = true;
	c->max_write = (unsigned)cow_min(c->max_write, VIEW_IO_MAX);
	c->max_readahead = (unsigned)cow_min(c->max_readahead, VIEW_IO_MAX);
	c->max_background = VIEW_SLOTS;
	c->congestion_threshold = VIEW_SLOTS * 3 / 4;
	/*
	 * Not wanted: splice (slower than a copy at 4 KiB), write-back cache (an
	 * acknowledged write must be ours), O_TRUNC in open (refused by setattr),
	 * invalidation by mtime (tree.c knows better what changed).
	 */
	c->want =
		c->capable & (FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO | FUSE_CAP_PARALLEL_DIROPS);
}

static struct fuse_lowlevel_ops view_ops(void)
{
	struct fuse_lowlevel_ops ops = {
		.init = op_init,
		.read = view_op_read,
		.write = view_op_write,
		.fsync = view_op_fsync,
		.fallocate = view_op_fallocate,
		.lseek = view_op_lseek,
	};

	view_tree_ops(&ops);
	return ops;
}

static int prepare_memory(struct cow_fuse *f)
{
	struct view_slot *s;

	f->rx = view_buf_get(f);
	f->free_bufs = f->rx ? view_buf_get(f) : NULL;
	if (!f->free_bufs)
		return -ENOMEM;
	f->free_bufs->next = NULL;
	for (unsigned i = 0; i < SLOTS_AT_START; i++) {
		s = cow_zalloc(sizeof(*s));
		if (!s)
			return -ENOMEM;
		s->f = f;
		view_slot_put(f, s);
	}
	return view_tree_init(f);
}

int cow_fuse_mount(const struct cow_fuse_cfg *cfg, struct cow_fuse **ret, struct cow_err *err)
{
	const struct fuse_lowlevel_ops ops = view_ops();
	struct cow_fuse *f = cow_zalloc(sizeof(*f));
	int rc;

	if (!f)
		return cow_err_sys(err, -ENOMEM, "%s: cannot mount", cfg->mountpoint);
	f->refs = 1;
	f->fd = -1;
	f->loop = cfg->loop;
	f->dev = cfg->dev;
	f->chain = cow_dev_chain(cfg->dev);
	f->size = cow_dev_size(cfg->dev);
	f->writable = cfg->writable;
	f->shared = cfg->shared;
	f->ready = cfg->ready;
	f->unmounted = cfg->unmounted;
	f->opaque = cfg->opaque;
	cow_list_init(&f->handles);
	cow_list_init(&f->jobs);
	cow_list_init(&f->parts.waiters);
	f->watch.resized = on_resized;
	cow_list_init(&f->watch.node);

	rc = cfg->writable && cow_dev_readonly(cfg->dev) ?
		cow_err_set(err, -EROFS, "%s: cannot mount for writing: the device is read-only",
			    cfg->mountpoint) : 0;
	if (!rc && prepare_memory(f))
		rc = cow_err_sys(err, -ENOMEM, "%s: cannot mount", cfg->mountpoint);
	if (!rc)
		rc = view_mount(f, cfg, &ops, err);
	if (!rc) {
		f->src = cow_loop_fd(f->loop, f->fd, EPOLLIN, on_request, f);
		if (!f->src)
			rc = cow_err_sys(err, -errno, "%s: cannot watch /dev/fuse", f->mountpoint);
	}
	if (rc) {
		cow_fuse_unmount(f);
		return rc;
	}
	cow_dev_watch(f->dev, &f->watch);
	*ret = f;
	return 0;
}

void cow_fuse_unmount(struct cow_fuse *f)
{
	if (!f || f->dead)
		return;
	f->dead = true;
	cow_source_free(f->src);
	f->src = NULL;
	cow_source_free(f->trim);
	f->trim = NULL;
	cow_dev_unwatch(&f->watch);
	jobs_stop(f);
	view_parts_stop(f);
	/* Reads of one layer go past the device, which therefore does not wait for them. */
	while (f->layer_reads && cow_chain_inflight(f->chain))
		cow_chain_poll(f->chain, true);
	if (f->se)
		fuse_session_unmount(f->se);
	f->fd = -1;
	view_put(f);
}

const char *cow_fuse_mountpoint(const struct cow_fuse *f)
{
	return f->mountpoint;
}
