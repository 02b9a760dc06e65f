// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The daemon's I/O: what the page cache can answer is answered at once by a
 * plain system call, what would wait for a device goes through io_uring. The
 * ring is set up when first needed; where the kernel refuses one, everything
 * is done inline.
 *
 * Writes are always inline. Buffered ones io_uring would hand to a worker thread,
 * which costs more than the copy into the page cache. Direct ones (metadata only,
 * in flushes) could be under way still when this process has been killed and its
 * successor writes the same block.
 */
#include <errno.h>
#include <liburing.h>
#include <poll.h>

#include "cow/log.h"
#include "io.h"

#define RING_ENTRIES 64

struct uring {
	struct cow_io io;
	struct io_uring ring;
	enum { RING_UNTRIED, RING_UP, RING_REFUSED } state;
	unsigned in_ring;		/* submitted, no completion seen */
	struct cow_list waiting;	/* struct cow_iocb.node: more than the ring holds */
};

static int uring_init(void *arg, struct cow_io **ret)
{
	struct uring *u = cow_zalloc(sizeof(*u));

	(void)arg;
	if (!u)
		return -ENOMEM;
	u->io.ops = &cow_io_uring_ops;
	cow_list_init(&u->waiting);
	*ret = &u->io;
	return 0;
}

static void uring_fini(struct cow_io *io)
{
	struct uring *u = cow_container_of(io, struct uring, io);

	if (u->state == RING_UP)
		io_uring_queue_exit(&u->ring);
	cow_free(u);
}

static bool ring_up(struct uring *u)
{
	int rc;

	if (u->state == RING_UNTRIED) {
		rc = io_uring_queue_init(RING_ENTRIES, &u->ring, IORING_SETUP_CLAMP);
		u->state = rc == 0 ? RING_UP : RING_REFUSED;
		if (rc)
			cow_log(COW_LOG_INFO, "io_uring is not available (%s), using plain system calls",
				strerror(-rc));
	}
	return u->state == RING_UP;
}

/* Can @cb be done here and now without waiting for a device? */
static bool try_inline(struct cow_iocb *cb)
{
	struct cow_file *f = cb->file;

	if (f->memory || cb->op == COW_IO_WRITE || cb->op == COW_IO_PUNCH || !cow_file_fits(cb)) {
		cb->raw = cow_file_primitive(cb, false);
		return true;
	}
	if (cb->op != COW_IO_READ || !f->nowait || cb->may_block)
		return false;
	cb->raw = cow_file_primitive(cb, true);
	return cb->raw != -EAGAIN;
}

static bool ring_queue(struct uring *u, struct cow_iocb *cb)
{
	struct io_uring_sqe *sqe;

	if (u->in_ring == RING_ENTRIES)
		return false;
	sqe = io_uring_get_sqe(&u->ring);
	if (!sqe)
		return false;
	if (cb->op == COW_IO_SYNC)
		io_uring_prep_fsync(sqe, cb->file->fd, IORING_FSYNC_DATASYNC);
	else
		io_uring_prep_readv(sqe, cb->file->fd, cb->iov, (unsigned)cb->iovcnt, cb->off);
	io_uring_sqe_set_data(sqe, cb);
	u->in_ring++;
	while (io_uring_submit(&u->ring) < 0)	/* the kernel is short of memory: nobody else would try again */
		poll(NULL, 0, 1);
	return true;
}

static int uring_submit(struct cow_io *io, struct cow_iocb *cb, bool must_finish)
{
	struct uring *u = cow_container_of(io, struct uring, io);

	if (try_inline(cb))
		return 1;
	if (must_finish || !ring_up(u)) {
		cb->raw = cow_file_primitive(cb, false);
		return 1;
	}
	if (!ring_queue(u, cb))
		cow_list_add_tail(&u->waiting, &cb->node);
	return 0;
}

static void uring_poll(struct cow_io *io, bool wait)
{
	struct uring *u = cow_container_of(io, struct uring, io);
	struct io_uring_cqe *cqe;

	if (u->state != RING_UP)
		return;
	if (wait && u->in_ring && io->dispatched == 0)
		io_uring_submit_and_wait(&u->ring, 1);
	else
		io_uring_submit(&u->ring);	/* what an interrupted submit left behind */
	while (io_uring_peek_cqe(&u->ring, &cqe) == 0) {
		struct cow_iocb *cb = io_uring_cqe_get_data(cqe);

		cb->raw = cqe->res;
		io_uring_cqe_seen(&u->ring, cqe);
		u->in_ring--;
		cow_io_complete(cb);
		while (!cow_list_empty(&u->waiting)) {
			struct cow_iocb *next =
				cow_list_entry(u->waiting.next, struct cow_iocb, node);

			cow_list_del(&next->node);
			if (!ring_queue(u, next)) {
				cow_list_add_tail(&u->waiting, &next->node);
				break;
			}
		}
	}
}

static int uring_fd(struct cow_io *io)
{
	struct uring *u = cow_container_of(io, struct uring, io);

	return u->state == RING_UP ? u->ring.ring_fd : -1;
}

const struct cow_io_ops cow_io_uring_ops = {
	.name = "uring",
	.init = uring_init,
	.fini = uring_fini,
	COW_FILE_OPS,
	.submit = uring_submit,
	.poll = uring_poll,
	.fd = uring_fd,
};
