// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The part of file I/O that every backend shares: short transfers are
 * continued, interrupted ones repeated, reads past the end filled with zeroes.
 * Backends (io-*.c) only ever do one primitive.
 */
#include "io.h"

#include <errno.h>

/* Takes @n transferred bytes off the front of @cb. */
static void iocb_consume(struct cow_iocb *cb, uint64_t n)
{
	cb->off += n;
	cb->len -= n;
	while (n > 0) {
		uint64_t part = cow_min(n, cb->iov[0].iov_len);

		cb->iov[0].iov_base = (uint8_t *)cb->iov[0].iov_base + part;
		cb->iov[0].iov_len -= part;
		n -= part;
		if (cb->iov[0].iov_len == 0 && cb->iovcnt > 1) {
			memmove(&cb->iov[0], &cb->iov[1],
				(size_t)(cb->iovcnt - 1) * sizeof(cb->iov[0]));
			cb->iovcnt--;
		}
	}
}

static int read_end_of_file(struct cow_iocb *cb)
{
	if (cb->off < cb->file->size)
		return -EIO;	/* the file was cut under us: never pass that off as zeroes */
	for (int i = 0; i < cb->iovcnt; i++)
		memset(cb->iov[i].iov_base, 0, cb->iov[i].iov_len);
	return 0;
}

/* Looks at cb->raw. True: the operation is over with *ret. False: submit the rest. */
static bool iocb_advance(struct cow_iocb *cb, int *ret)
{
	if (cb->raw == -EINTR || cb->raw == -EAGAIN) {
		cb->may_block = true;
		return false;
	}
	if (cb->raw < 0) {
		*ret = (int)cb->raw;
		return true;
	}
	if (cb->op == COW_IO_SYNC || cb->op == COW_IO_PUNCH) {
		*ret = 0;
		return true;
	}
	if (cb->raw == 0) {
		*ret = cb->op == COW_IO_READ ? read_end_of_file(cb) : -EIO;
		return true;
	}
	cow_assert((uint64_t)cb->raw <= cb->len);
	iocb_consume(cb, (uint64_t)cb->raw);
	*ret = 0;
	return cb->len == 0;
}

int cow_io_start(struct cow_iocb *cb, int *ret)
{
	struct cow_io *io = cb->file->io;

	cb->may_block = false;
	do {
		if (!io->ops->submit(io, cb, false)) {
			io->outstanding++;
			io->n_async++;
			return 0;
		}
	} while (!iocb_advance(cb, ret));
	io->n_inline++;
	return 1;
}

void cow_io_complete(struct cow_iocb *cb)
{
	struct cow_io *io = cb->file->io;
	int ret;

	while (!iocb_advance(cb, &ret)) {
		if (!io->ops->submit(io, cb, false))
			return;
	}
	io->outstanding--;
	io->dispatched++;
	cb->done(cb, ret);
}

int cow_io_run(struct cow_file *f, enum cow_io_op op, void *buf, uint64_t len, uint64_t off)
{
	struct cow_iocb cb = { .file = f, .op = op, .off = off, .len = len, .may_block = true };
	int ret;

	if (buf) {
		cb.iov[0] = (struct iovec){ buf, len };
		cb.iovcnt = 1;
	}
	do {
		if (!f->io->ops->submit(f->io, &cb, true))
			cow_assert(!"must_finish was ignored");
	} while (!iocb_advance(&cb, &ret));
	return ret;
}

int cow_io_poll(struct cow_io *io, bool wait)
{
	io->dispatched = 0;
	if (io->outstanding)
		io->ops->poll(io, wait);
	return io->dispatched;
}
