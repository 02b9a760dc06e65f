// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Data that goes from file to file without being looked at: the kernel
 * copies it once instead of twice, and file systems that can only refer to it again.
 * That needs bytes stored as they are on both sides, and nothing to be done to
 * them. What could be zero is left to be read: of each stretch only the first
 * bytes are looked at.
 */
#include "cowimg-pieces.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#define STRETCH		(64u << 10)	/* zeroes that fill one, aligned, are found; fewer may be copied */
#define CACHED_STEP	(128u << 10)	/* of a copy by way of the processor's cache, which holds that */

/* Does the kernel refuse this kind of copying, rather than fail at it? */
static bool refused(int err)
{
	return err == EXDEV || err == EINVAL || err == EOPNOTSUPP || err == ENOSYS || err == EPERM ||
	       err == EBADF || err == ETXTBSY;
}

/* 0; 1: it cannot be done here; -errno. */
static int copy_range(int from, uint64_t at, int to, uint64_t dst, uint64_t len)
{
	off_t in = (off_t)at, out = (off_t)dst;

	while (len) {
		ssize_t n = copy_file_range(from, &in, to, &out, len, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return refused(errno) ? 1 : -errno;
		if (!n)
			return -EIO;	/* the file was cut under us */
		len -= (uint64_t)n;
	}
	return 0;
}

/*
 * The same by way of @buf, into a file in memory. There the copy is all there is to do, and the
 * kernel does all of copy_range() under the lock of the new file: workers would take turns.
 * This way they do for the second half only, from bytes that are at hand.
 */
static int copy_cached(uint8_t *buf, int from, uint64_t at, int to, uint64_t dst, uint64_t len)
{
	while (len) {
		ssize_t n = pread(from, buf, cow_min(len, CACHED_STEP), (off_t)at);

		if (!n)
			return -EIO;	/* the file was cut under us */
		if (n > 0)
			n = pwrite(to, buf, (size_t)n, (off_t)dst);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		at += (uint64_t)n;
		dst += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

static bool in_memory(int fd)
{
	struct statfs sfs;

	return fstatfs(fd, &sfs) == 0 && sfs.f_type == TMPFS_MAGIC;
}

/* Could the stretch at @at of the file be zeroes? */
static bool maybe_zero(int fd, uint64_t at, uint64_t len)
{
	uint8_t first[512];
	size_t n = (size_t)cow_min(len, sizeof(first));

	return pread(fd, first, n, (off_t)at) != (ssize_t)n || piece_all_zero(first, n);
}

struct offload {
	const struct pieces_cfg *cfg;
	struct piece *p;
	int fd;			/* of the extent's file */
	bool in_memory;		/* the new image's file */
	struct cow_extent ext;	/* where the piece counts from */
};

/* Units [@i, @end), which are in the extent, and hold no stretch that could be zero. */
static int copy_units(struct offload *o, size_t i, size_t end)
{
	size_t unit = o->cfg->unit;
	uint64_t virt = o->p->virt + i * unit, len = cow_min(end * unit, o->p->len) - i * unit;
	uint64_t from = o->ext.phys + (virt - o->ext.virt), to = virt + o->cfg->out_shift;
	int r = o->in_memory ? copy_cached(o->p->buf, o->fd, from, o->cfg->out_fd, to, len) :
			       copy_range(o->fd, from, o->cfg->out_fd, to, len);

	o->p->placing = r == -ENOSPC || r == -EDQUOT || r == -EFBIG;
	if (r)
		return r;
	memset(o->p->fate + i, PIECE_PLACED, end - i);
	o->p->read_bytes += len;
	return 0;
}

/* All of the extent that is whole units, in runs that end where zeroes may be. */
static int copy_extent(struct offload *o)
{
	size_t unit = o->cfg->unit, step = cow_max(STRETCH / unit, 1), run, at, next;
	uint64_t from = o->ext.virt - o->p->virt, to = from + o->ext.len;
	size_t end = to == o->p->len ? cow_div_up(to, unit) : to / unit;
	int r = 0;

	posix_fadvise(o->fd, (off_t)o->ext.phys, (off_t)o->ext.len, POSIX_FADV_WILLNEED);
	for (run = at = cow_div_up(from, unit); at < end && !r; at = next) {
		next = cow_min((at / step + 1) * step, end);
		if (!maybe_zero(o->fd, o->ext.phys + (at * unit - from), to - at * unit))
			continue;
		if (at > run)
			r = copy_units(o, run, at);
		run = next;
	}
	return !r && end > run ? copy_units(o, run, end) : r;
}

int piece_offload(const struct pieces_cfg *cfg, struct cow_chain *source, struct piece *p)
{
	uint64_t start = p->virt + cfg->source_shift;
	uint64_t end = cow_min(start + p->len, cow_chain_size(source));
	struct offload o = { .cfg = cfg, .p = p, .in_memory = in_memory(cfg->out_fd) };
	struct cow_chain_file file;
	unsigned layer = 0;
	int r = 0;

	for (uint64_t virt = start; virt < end && !r; virt += o.ext.len) {
		r = cow_chain_stored(source, 0, virt, end - virt, &o.ext, &layer);
		o.ext.virt -= cfg->source_shift;
		/* Of a layer's files, cow_chain_file() tells the first. */
		if (r || o.ext.kind != COW_DATA || o.ext.file ||
		    cow_chain_file(source, layer, &file) || file.fd < 0)
			continue;
		o.fd = file.fd;
		r = copy_extent(&o);
	}
	return r;
}
