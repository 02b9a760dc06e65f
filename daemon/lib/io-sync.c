// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * I/O by plain system calls, each complete when it returns: for offline tools
 * and for kernels without io_uring. Never queues.
 */
#include <errno.h>

#include "io.h"

static int sync_init(void *arg, struct cow_io **ret)
{
	struct cow_io *io = cow_zalloc(sizeof(*io));

	(void)arg;
	if (!io)
		return -ENOMEM;
	io->ops = &cow_io_sync_ops;
	*ret = io;
	return 0;
}

static void sync_fini(struct cow_io *io)
{
	cow_free(io);
}

static int sync_submit(struct cow_io *io, struct cow_iocb *cb, bool must_finish)
{
	(void)io;
	(void)must_finish;
	cb->raw = cow_file_primitive(cb, false);
	return 1;
}

static void sync_poll(struct cow_io *io, bool wait)
{
	(void)io;
	(void)wait;
}

static int sync_fd(struct cow_io *io)
{
	(void)io;
	return -1;
}

const struct cow_io_ops cow_io_sync_ops = {
	.name = "sync",
	.init = sync_init,
	.fini = sync_fini,
	COW_FILE_OPS,
	.submit = sync_submit,
	.poll = sync_poll,
	.fd = sync_fd,
};
