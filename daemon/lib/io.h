/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * File I/O behind one vtable, so that the same engine runs on io_uring, on
 * plain system calls, and on a simulated disk that fails on demand.
 *
 * Two layers: the ops below are primitive (may be short, may be late); the
 * cow_io_*() functions on top of them (io.c) finish short transfers, zero-fill
 * reads past the end, and are what the engine calls. One thread owns a cow_io.
 */
#ifndef COW_LIB_IO_H
#define COW_LIB_IO_H

#include <sys/types.h>
#include <sys/uio.h>

#include "cow/err.h"

struct cow_io;
struct cow_io_ops;

/* An open file of a chain. Members are set by ops->open() and kept by io.c. */
struct cow_file {
	struct cow_io *io;
	char *path;		/* as opened, for messages and for reopening */
	int fd;			/* -1 in the simulator */
	int lock_fd;		/* a second opening that holds the locks, see cow_file_lock(); or -1 */
	void *sim;		/* the simulator's disk */
	bool blkdev, writable;
	bool kept;		/* what the kernel has of it is ours: see cow_chain_cfg.keeps */
	bool nowait;		/* RWF_NOWAIT reads work */
	bool memory;		/* lives in memory (tmpfs): reads never wait for a device */
	uint32_t direct;	/* past the page cache, in units of this many bytes; 0: through it */
	uint64_t size;		/* bytes; of a block device its capacity */
	uint64_t dev, ino;	/* identity; of a block device rdev and 0 */
	int64_t mtime_ns;	/* 0 for a block device */
	uint64_t data_from, data_to;	/* of a file that is only read: a range without a hole */
};

struct cow_open_spec {
	const char *path;
	const char *beneath;	/* folder that @path (relative) must stay in, no links out; NULL: any path */
	bool write;
	bool create;		/* a new nameless file for @path, mode 0600; publish() names it */
	bool exist_ok;		/* with create: a block device at @path is opened instead */
};

enum cow_io_op { COW_IO_READ, COW_IO_WRITE, COW_IO_SYNC, COW_IO_PUNCH };

#define COW_IO_IOVS 3	/* head, data, tail of a first write */

/*
 * One operation. The owner keeps it and its buffers in place until it is
 * complete.
 */
struct cow_iocb {
	struct cow_file *file;
	enum cow_io_op op;
	struct iovec iov[COW_IO_IOVS];	/* READ, WRITE; consumed by continuation of short transfers */
	int iovcnt;
	uint64_t off, len;	/* bytes; PUNCH, READ, WRITE */
	void (*done)(struct cow_iocb *cb, int result);	/* 0 or -errno; only for queued operations */
	void *opaque;

	ssize_t raw;		/* backend: primitive result: bytes, 0, or -errno */
	bool may_block;		/* backend: not tried with RWF_NOWAIT again */
	struct cow_list node;	/* backend's queue */
	uint64_t tag;		/* backend's */
};

struct cow_io {
	const struct cow_io_ops *ops;
	void *arg;		/* init()'s, for opening another chain on the same backend */
	uint64_t n_inline, n_async;
	unsigned outstanding;	/* queued, not complete */
	int dispatched;		/* completions run in this poll */
};

struct cow_io_ops {
	const char *name;
	/* Backends embed struct cow_io first. */
	int (*init)(void *arg, struct cow_io **ret);
	void (*fini)(struct cow_io *io);

	/* Control path, blocking. 0 or -errno. open() fills all of *ret but io and path. */
	int (*open)(struct cow_io *io, const struct cow_open_spec *spec, struct cow_file *ret,
		    struct cow_err *err);
	void (*close)(struct cow_file *f);
	/* A created file is complete: make it durable and give it its name. */
	int (*publish)(struct cow_file *f, bool exist_ok, struct cow_err *err);
	/* Takes QEMU's lock bytes for reading or writing; see file.c. -EAGAIN and a sentence when busy. */
	int (*lock)(struct cow_file *f, bool write, struct cow_err *err);
	int (*truncate)(struct cow_file *f, uint64_t size);
	int (*seek)(struct cow_file *f, uint64_t off, bool data, uint64_t *ret);	/* as cow_img_seek() */
	int (*refresh)(struct cow_file *f);	/* size and mtime anew, both durable */
	uint64_t (*allocated)(struct cow_file *f);	/* bytes the file occupies */
	/* Past the page cache from now on. -EOPNOTSUPP: not with this file. NULL: never. */
	int (*direct)(struct cow_file *f);

	/*
	 * Starts @cb. 1: complete, cb->raw is its result. 0: queued; later poll()
	 * calls cow_io_complete() with cb->raw set. @must_finish: complete it now,
	 * blocking.
	 */
	int (*submit)(struct cow_io *io, struct cow_iocb *cb, bool must_finish);
	/* Runs ready completions; @wait: blocks for one if any is outstanding. */
	void (*poll)(struct cow_io *io, bool wait);
	int (*fd)(struct cow_io *io);	/* readable when poll() has work; -1 */
};

extern const struct cow_io_ops cow_io_uring_ops;	/* inline where nothing waits, io_uring for the rest */
extern const struct cow_io_ops cow_io_sync_ops;
extern const struct cow_io_ops cow_io_sim_ops;

/* Starts @cb. 1: complete, *ret is 0 or -errno and done is not called. 0: done will be called. */
int cow_io_start(struct cow_iocb *cb, int *ret);
/* Backends: the primitive behind @cb finished with cb->raw; continues or calls done. */
void cow_io_complete(struct cow_iocb *cb);
/* Blocking whole operations for the control path: 0 or -errno. */
int cow_io_run(struct cow_file *f, enum cow_io_op op, void *buf, uint64_t len, uint64_t off);
int cow_io_poll(struct cow_io *io, bool wait);	/* completions run */

/* file.c: the one place that opens paths (real files), shared by both real backends. */
int cow_file_open(struct cow_io *io, const struct cow_open_spec *spec, struct cow_file *ret,
		  struct cow_err *err);
void cow_file_close(struct cow_file *f);
int cow_file_publish(struct cow_file *f, bool exist_ok, struct cow_err *err);
int cow_file_lock(struct cow_file *f, bool write, struct cow_err *err);
int cow_file_truncate(struct cow_file *f, uint64_t size);
/* At least @size bytes long, nearly all of what is new sparse. No block device. */
int cow_file_extend(struct cow_file *f, uint64_t size);
int cow_file_seek(struct cow_file *f, uint64_t off, bool data, uint64_t *ret);
int cow_file_refresh(struct cow_file *f);
uint64_t cow_file_allocated(struct cow_file *f);
int cow_file_direct(struct cow_file *f);
/* What every backend on real files has in common. */
#define COW_FILE_OPS                                                         \
	.open = cow_file_open, .close = cow_file_close,                      \
	.publish = cow_file_publish, .lock = cow_file_lock,                  \
	.truncate = cow_file_truncate, .seek = cow_file_seek,                \
	.refresh = cow_file_refresh, .allocated = cow_file_allocated,        \
	.direct = cow_file_direct
/* Can @cb go to its file as it is, or must it be copied to fit (cow_file_primitive() does)? */
bool cow_file_fits(const struct cow_iocb *cb);
/* The primitive of @cb by system call; @nowait: -EAGAIN rather than wait for a device. */
ssize_t cow_file_primitive(struct cow_iocb *cb, bool nowait);

#endif
