// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Real files and block devices: the one place that opens paths, takes locks
 * and makes system calls on images. Which path may be opened is decided in
 * chain.c; how a request becomes operations, in req.c.
 *
 * Locks are open-file-description locks on the bytes QEMU uses, so that cowd
 * and QEMU keep each other out: a user holds byte 100 + n for each permission n
 * it uses, and byte 200 + n for each permission it does not want others to use.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "cow/chain.h"
#include "cow/proc.h"
#include "io.h"

#define LOCK_USES	100	/* QEMU: RAW_LOCK_PERM_BASE */
#define LOCK_DENIES	200	/* QEMU: RAW_LOCK_SHARED_BASE */
#define PERM_READ	(1u << 0)
#define PERM_WRITE	(1u << 1)
#define PERM_RESIZE	(1u << 3)
#define PERM_BITS	4
#define LOCK_DENIED	(PERM_WRITE | PERM_RESIZE)	/* to others, by who reads as by who writes */

#define ZERO_CHUNK (256u << 10)	/* bytes written at once where holes cannot be punched */
#define DIRECT_MAX 4096u	/* no device wants more than a page of alignment */
#define BOUNCE_CHUNK (256u << 10)	/* bytes copied at once that do not fit direct I/O */

static int open_path(const struct cow_open_spec *spec, int flags)
{
	struct open_how how = { .flags = (uint64_t)flags };
	int dir, fd;

	if (!spec->beneath) {
		fd = open(spec->path, flags, 0);
		return fd < 0 ? -errno : fd;
	}
	dir = open(spec->beneath, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return -errno;
	how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
	do {
		fd = (int)syscall(SYS_openat2, dir, spec->path, &how, sizeof(how));
	} while (fd < 0 && errno == EAGAIN);
	fd = fd < 0 ? -errno : fd;
	close(dir);
	return fd;
}

static char *parent_dir(const char *path)
{
	const char *slash = strrchr(path, '/');

	if (!slash)
		return cow_strdup(".");
	if (slash == path)
		return cow_strdup("/");
	return cow_asprintf("%.*s", (int)(slash - path), path);
}

static int open_nameless(const char *path)
{
	char *dir COW_CLEANUP_FREE = parent_dir(path);
	int fd;

	if (!dir)
		return -ENOMEM;
	fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	return fd < 0 ? -errno : fd;
}

static bool is_blkdev(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISBLK(st.st_mode);
}

static int read_facts(struct cow_file *f)
{
	struct stat st;

	if (fstat(f->fd, &st))
		return -errno;
	if (S_ISBLK(st.st_mode)) {
		f->blkdev = true;
		if (ioctl(f->fd, BLKGETSIZE64, &f->size))
			return -errno;
		f->dev = st.st_rdev;
		f->ino = 0;
		f->mtime_ns = 0;
		return 0;
	}
	if (S_ISDIR(st.st_mode))
		return -EISDIR;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	f->blkdev = false;
	f->size = (uint64_t)st.st_size;
	f->dev = st.st_dev;
	f->ino = st.st_ino;
	f->mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
	return 0;
}

/* fdatasync() may leave the time of the last write behind; who records that time needs it durable. */
int cow_file_refresh(struct cow_file *f)
{
	if (fsync(f->fd))
		return -errno;
	return read_facts(f);
}

/* Learns which reads can be answered at once: RWF_NOWAIT is refused by some file systems. */
static void probe_nowait(struct cow_file *f)
{
	struct statfs sfs;
	char byte;
	struct iovec iov = { &byte, 1 };

	f->memory = !f->blkdev && fstatfs(f->fd, &sfs) == 0 && sfs.f_type == TMPFS_MAGIC;
	f->nowait = !f->memory &&
		    (preadv2(f->fd, &iov, 1, 0, RWF_NOWAIT) >= 0 || errno == EAGAIN);
}

int cow_file_open(struct cow_io *io, const struct cow_open_spec *spec, struct cow_file *ret,
		  struct cow_err *err)
{
	/* O_NONBLOCK so that a FIFO cannot hold us; cleared below, io_uring would honour it. */
	int flags = (spec->write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	int rc;

	*ret = (struct cow_file){ .io = io, .fd = -1, .lock_fd = -1, .writable = spec->write };
	ret->path = spec->beneath && spec->path[0] != '/' ?
		cow_asprintf("%s/%s", spec->beneath, spec->path) : cow_strdup(spec->path);
	if (!ret->path)
		return cow_err_sys(err, -ENOMEM, "%s", spec->path);
	if (spec->create && !(spec->exist_ok && is_blkdev(spec->path)))
		rc = open_nameless(spec->path);
	else
		rc = open_path(spec, flags);
	if (rc >= 0) {
		ret->fd = rc;
		rc = read_facts(ret);
	}
	if (rc == 0 && fcntl(ret->fd, F_SETFL, 0))
		rc = -errno;
	if (rc) {
		cow_file_close(ret);
		if (rc == -EINVAL)
			return cow_err_set(err, rc, "%s: not a regular file or block device",
					   spec->path);
		return cow_err_sys(err, rc, "%s", spec->path);
	}
	probe_nowait(ret);
	return 0;
}

void cow_file_close(struct cow_file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	if (f->lock_fd >= 0)
		close(f->lock_fd);
	f->fd = f->lock_fd = -1;
	cow_free(f->path);
	f->path = NULL;
}

static int sync_parent(const char *path)
{
	char *dir COW_CLEANUP_FREE = parent_dir(path);
	int fd, rc = 0;

	if (!dir)
		return -ENOMEM;
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fsync(fd) && errno != EINVAL)
		rc = -errno;
	close(fd);
	return rc;
}

/* Replacing needs a name to rename from: linkat() never replaces. */
static int link_over(const char *proc, const char *path)
{
	char *tmp COW_CLEANUP_FREE = cow_asprintf("%s.new-%ld", path, (long)getpid());
	int rc = 0;

	if (!tmp)
		return -ENOMEM;
	if (linkat(AT_FDCWD, proc, AT_FDCWD, tmp, AT_SYMLINK_FOLLOW))
		return -errno;
	if (rename(tmp, path)) {
		rc = -errno;
		unlink(tmp);
	}
	return rc;
}

int cow_file_publish(struct cow_file *f, bool exist_ok, struct cow_err *err)
{
	char proc[64];
	int rc = 0;

	if (fsync(f->fd))
		return cow_err_sys(err, -errno, "%s", f->path);
	if (f->blkdev)
		return 0;
	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", f->fd);
	if (exist_ok)
		rc = link_over(proc, f->path);
	else if (linkat(AT_FDCWD, proc, AT_FDCWD, f->path, AT_SYMLINK_FOLLOW))
		rc = -errno;
	if (rc == 0)
		rc = sync_parent(f->path);
	return rc ? cow_err_sys(err, rc, "%s", f->path) : 0;
}

static int lock_byte(int fd, off_t byte)
{
	struct flock fl = { .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };

	return fcntl(fd, F_OFD_SETLK, &fl) ? -errno : 0;
}

/* Does somebody else hold @byte? */
static int byte_taken(int fd, off_t byte, bool *ret)
{
	struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };

	if (fcntl(fd, F_OFD_GETLK, &fl))
		return -errno;
	*ret = fl.l_type != F_UNLCK;
	return 0;
}

static int lock_take(int fd, unsigned uses)
{
	int rc = 0;

	for (int n = 0; n < PERM_BITS && rc == 0; n++) {
		if (uses & (1u << n))
			rc = lock_byte(fd, LOCK_USES + n);
		if (rc == 0 && (LOCK_DENIED & (1u << n)))
			rc = lock_byte(fd, LOCK_DENIES + n);
	}
	return rc;
}

/* After taking ours, so that of two openers at least one sees the other. */
static int lock_conflict(int fd, unsigned uses, bool *ret)
{
	int rc = 0;

	*ret = false;
	for (int n = 0; n < PERM_BITS && rc == 0 && !*ret; n++) {
		if (uses & (1u << n))
			rc = byte_taken(fd, LOCK_DENIES + n, ret);
		if (rc == 0 && !*ret && (LOCK_DENIED & (1u << n)))
			rc = byte_taken(fd, LOCK_USES + n, ret);
	}
	return rc;
}

static void lock_drop(int fd)
{
	struct flock fl = { .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = LOCK_USES,
			    .l_len = LOCK_DENIES + PERM_BITS - LOCK_USES };

	fcntl(fd, F_OFD_SETLK, &fl);
}

/*
 * Does the kernel use the block device, for a device over it, a file system or to swap on? Asked
 * by claiming it for a moment: a descriptor keeps others off only as long as it is open.
 */
static int claim(const struct cow_file *f)
{
	char proc[64];
	int fd;

	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", f->fd);
	fd = open(proc, O_RDONLY | O_EXCL | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

/* One attempt; a conflict leaves nothing locked. */
static int lock_try(int fd, unsigned uses, bool *ret_taken)
{
	int rc = lock_take(fd, uses);

	if (rc == 0)
		rc = lock_conflict(fd, uses, ret_taken);
	if (rc || *ret_taken)
		lock_drop(fd);
	return rc;
}

static unsigned lock_uses(bool write)
{
	return PERM_READ | (write ? LOCK_DENIED : 0);
}

int cow_lock_too(int fd, bool write)
{
	return lock_take(fd, lock_uses(write));
}

static int open_lock_fd(const struct cow_file *f)
{
	char proc[64];
	int fd;

	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", f->fd);
	fd = open(proc, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/*
 * A lock lives as long as the opening it was taken through. An fdatasync that
 * io_uring still has under way keeps the opening it works on, for seconds after
 * its process was killed; so the locks are taken through another one, which
 * nobody works on. Children of a killed process may hold that for a moment: its
 * successor tries more than once.
 */
int cow_file_lock(struct cow_file *f, bool write, struct cow_err *err)
{
	unsigned uses = lock_uses(write);
	unsigned wait_ms = 0;
	bool taken = false;
	int rc;

	f->lock_fd = open_lock_fd(f);
	if (f->lock_fd < 0)
		return cow_err_sys(err, f->lock_fd, "%s: cannot lock", f->path);
	if (f->kept)
		rc = lock_take(f->lock_fd, uses);
	else
		rc = lock_try(f->lock_fd, uses, &taken);
	while (rc == 0 && taken && cow_patience(&wait_ms))
		rc = lock_try(f->lock_fd, uses, &taken);
	if (rc)
		return cow_err_sys(err, rc, "%s: cannot lock", f->path);
	if (taken)
		return cow_err_set(err, -EAGAIN, "%s: in use by another process, cannot open it for %s",
				   f->path, write ? "writing" : "reading");
	if (f->blkdev && write && !f->kept && claim(f) == -EBUSY)
		return cow_err_set(err, -EBUSY, "%s: in use by the kernel (a device over it, a mounted file "
				   "system, swap), cannot open it for writing", f->path);
	rc = read_facts(f);	/* who held it until now may have changed them */
	return rc ? cow_err_sys(err, rc, "%s", f->path) : 0;
}

int cow_file_truncate(struct cow_file *f, uint64_t size)
{
	if (f->blkdev)
		return size <= f->size ? 0 : -ENOSPC;
	if (size > INT64_MAX)
		return -EFBIG;
	if (ftruncate(f->fd, (off_t)size))
		return -errno;
	f->size = size;
	return 0;
}

/* Not by truncating: writes on their way may have made it longer than that by then. */
int cow_file_extend(struct cow_file *f, uint64_t size)
{
	if (f->blkdev || size == 0 || size > INT64_MAX)
		return -EINVAL;
	if (fallocate(f->fd, 0, (off_t)size - 1, 1))
		return -errno;
	f->size = cow_max(f->size, size);
	return 0;
}

int cow_file_seek(struct cow_file *f, uint64_t off, bool data, uint64_t *ret)
{
	off_t r;

	if (f->blkdev || off > INT64_MAX)
		return -EOPNOTSUPP;
	r = lseek(f->fd, (off_t)off, data ? SEEK_DATA : SEEK_HOLE);
	if (r < 0)
		return -errno;
	*ret = (uint64_t)r;
	return 0;
}

uint64_t cow_file_allocated(struct cow_file *f)
{
	struct stat st;

	if (f->blkdev || fstat(f->fd, &st))
		return f->size;
	return (uint64_t)st.st_blocks * 512;
}

/* ---- direct I/O ---- */

/* The unit that direct I/O on @fd asks for; 0 when there is none. */
static uint32_t direct_unit(int fd, bool blkdev, uint64_t size)
{
	uint32_t unit = 512;
	void *buf COW_CLEANUP_FREE = cow_memalign(DIRECT_MAX, DIRECT_MAX);
	int sector;

	if (!buf)
		return 0;
	if (blkdev && !ioctl(fd, BLKSSZGET, &sector))
		unit = (uint32_t)sector;
	/* Behind the end of a file nothing is checked: there the largest has to do. */
	if (!cow_is_pow2(unit) || size < 2 * DIRECT_MAX)
		unit = DIRECT_MAX;
	while (unit <= DIRECT_MAX && pread(fd, buf, unit, (off_t)unit) < 0)
		unit = errno == EINVAL ? unit * 2 : DIRECT_MAX + 1;
	return unit <= DIRECT_MAX ? unit : 0;
}

int cow_file_direct(struct cow_file *f)
{
	if (f->direct)
		return 0;
	if (f->memory)
		return -EOPNOTSUPP;
	if (f->writable && fsync(f->fd))
		return -errno;
	if (f->blkdev)
		ioctl(f->fd, BLKFLSBUF, 0);	/* needs a privilege; direct reads wait for what is dirty */
	if (fcntl(f->fd, F_SETFL, O_DIRECT))
		return errno == EINVAL ? -EOPNOTSUPP : -errno;
	f->direct = direct_unit(f->fd, f->blkdev, f->size);
	if (!f->direct) {
		fcntl(f->fd, F_SETFL, 0);
		return -EOPNOTSUPP;
	}
	f->nowait = false;	/* a direct read waits for the device, whatever it is told */
	return 0;
}

bool cow_file_fits(const struct cow_iocb *cb)
{
	uint64_t bits = cb->off | cb->len;

	if (!cb->file->direct || cb->op == COW_IO_SYNC || cb->op == COW_IO_PUNCH)
		return true;
	for (int i = 0; i < cb->iovcnt; i++)
		bits |= (uintptr_t)cb->iov[i].iov_base | cb->iov[i].iov_len;
	return (bits & (cb->file->direct - 1)) == 0;
}

/* Copies the first @n bytes between the pieces of @cb and @buf. */
static void bounce_copy(const struct cow_iocb *cb, uint8_t *buf, uint64_t n, bool out)
{
	for (int i = 0; i < cb->iovcnt && n > 0; i++) {
		uint64_t part = cow_min(n, cb->iov[i].iov_len);

		if (out)
			memcpy(cb->iov[i].iov_base, buf, part);
		else
			memcpy(buf, cb->iov[i].iov_base, part);
		buf += part;
		n -= part;
	}
}

/* Fills @buf from @off on; what lies behind the file's end stays as it is. -errno or bytes. */
static ssize_t read_whole(int fd, uint8_t *buf, uint64_t len, uint64_t off)
{
	ssize_t n;

	do {
		n = pread(fd, buf, len, (off_t)off);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

/*
 * A write of less than the unit. A file system does that through its page cache, and
 * keeps it in step with direct I/O; the end of a file stays where it is that way.
 */
static ssize_t write_buffered(struct cow_iocb *cb)
{
	int fd = cb->file->fd;
	ssize_t n;

	if (fcntl(fd, F_SETFL, 0))
		return -errno;
	n = pwritev(fd, cb->iov, cb->iovcnt, (off_t)cb->off);
	n = n < 0 ? -errno : n;
	fcntl(fd, F_SETFL, O_DIRECT);
	return n;
}

/* A read or write that does not fit, or the first part of it. */
static ssize_t bounce(struct cow_iocb *cb)
{
	uint64_t unit = cb->file->direct, lo = cow_round_down(cb->off, unit);
	uint64_t len = cow_min(cb->len, BOUNCE_CHUNK - unit);
	uint64_t span = cow_round_up(cb->off + len, unit) - lo;
	bool ragged = lo != cb->off || span != len;
	uint8_t *buf COW_CLEANUP_FREE = NULL;
	ssize_t n;

	if (cb->op == COW_IO_WRITE && ragged && !cb->file->blkdev)
		return write_buffered(cb);
	buf = cow_memalign(DIRECT_MAX, span);
	if (!buf)
		return -ENOMEM;
	if (cb->op == COW_IO_READ || ragged) {
		n = read_whole(cb->file->fd, buf, span, lo);
		if (n < 0)
			return n;
		memset(buf + n, 0, span - (uint64_t)n);
		n = (ssize_t)cow_min((uint64_t)n - cow_min((uint64_t)n, cb->off - lo), len);
		if (cb->op == COW_IO_READ) {
			bounce_copy(cb, buf + (cb->off - lo), (uint64_t)n, true);
			return n;
		}
	}
	bounce_copy(cb, buf + (cb->off - lo), len, false);
	n = pwrite(cb->file->fd, buf, span, (off_t)lo);
	if (n < 0)
		return -errno;
	return (uint64_t)n == span ? (ssize_t)len : -EIO;
}

static ssize_t transfer(struct cow_iocb *cb, bool nowait)
{
	int fd = cb->file->fd;
	ssize_t n;

	if (!cow_file_fits(cb))
		return bounce(cb);
	if (cb->op == COW_IO_WRITE)
		n = pwritev(fd, cb->iov, cb->iovcnt, (off_t)cb->off);
	else
		n = preadv2(fd, cb->iov, cb->iovcnt, (off_t)cb->off, nowait ? RWF_NOWAIT : 0);
	return n < 0 ? -errno : n;
}

/* ---- primitives ---- */

static ssize_t write_zeroes(struct cow_file *f, uint64_t off, uint64_t len)
{
	static uint8_t zero[ZERO_CHUNK] __attribute__((aligned(DIRECT_MAX)));

	while (len > 0) {
		struct cow_iocb cb = {
			.file = f, .op = COW_IO_WRITE, .off = off,
			.len = cow_min(len, sizeof(zero)), .iovcnt = 1,
		};
		ssize_t n;

		cb.iov[0] = (struct iovec){ zero, cb.len };
		n = transfer(&cb, false);
		if (n == -EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? n : -EIO;
		off += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

static ssize_t punch(struct cow_iocb *cb)
{
	int fd = cb->file->fd, rc;

	do {
		rc = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)cb->off,
			       (off_t)cb->len);
	} while (rc && errno == EINTR);
	if (!rc)
		return 0;
	if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL)
		return -errno;
	return write_zeroes(cb->file, cb->off, cb->len);
}

ssize_t cow_file_primitive(struct cow_iocb *cb, bool nowait)
{
	switch (cb->op) {
	case COW_IO_READ:
	case COW_IO_WRITE:
		return transfer(cb, nowait);
	case COW_IO_SYNC:
		return fdatasync(cb->file->fd) ? -errno : 0;
	case COW_IO_PUNCH:
		return punch(cb);
	default:
		return -EINVAL;
	}
}
