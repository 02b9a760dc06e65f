// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The floor of the FUSE comparison: one raw file served by one thread with
 * libfuse3's low-level interface and nothing else. No format, no map, no locks,
 * no control socket: what is slower than this is the price of those. Not a
 * server for anybody's data.
 *
 * usage: floor FILE MOUNTPOINT      MOUNTPOINT is a regular file; stays in the foreground
 */
#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define IO_MAX (1u << 20)	/* the kernel's own limit of a request */

static int image_fd;
static off_t image_size;
static char *io_buf;		/* one thread: one buffer is enough */

static void fill_stat(struct stat *st)
{
	memset(st, 0, sizeof(*st));
	st->st_ino = FUSE_ROOT_ID;
	st->st_mode = S_IFREG | 0600;
	st->st_nlink = 1;
	st->st_size = image_size;
	st->st_blksize = 4096;
	st->st_blocks = image_size / 512;
}

static void op_init(void *opaque, struct fuse_conn_info *c)
{
	(void)opaque;
	c->max_write = IO_MAX;
	c->max_readahead = IO_MAX;
	c->max_background = 64;
	/* Splicing is slower than a copy at both ends of the sizes measured here. */
	c->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;

	(void)ino;
	(void)fi;
	fill_stat(&st);
	fuse_reply_attr(req, &st, 3600);
}

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
		       struct fuse_file_info *fi)
{
	(void)attr;
	(void)to_set;
	op_getattr(req, ino, fi);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	fi->keep_cache = 1;
	fuse_reply_open(req, fi);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	ssize_t n = pread(image_fd, io_buf, size < IO_MAX ? size : IO_MAX, off);

	(void)ino;
	(void)fi;
	if (n < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_buf(req, io_buf, (size_t)n);
}

static void op_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t off,
		     struct fuse_file_info *fi)
{
	ssize_t n = pwrite(image_fd, data, size, off);

	(void)ino;
	(void)fi;
	if (n < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_write(req, (size_t)n);
}

static void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	(void)ino;
	(void)datasync;
	(void)fi;
	fuse_reply_err(req, fdatasync(image_fd) ? errno : 0);
}

int main(int argc, char **argv)
{
	static const struct fuse_lowlevel_ops ops = {
		.init = op_init,
		.getattr = op_getattr,
		.setattr = op_setattr,
		.open = op_open,
		.read = op_read,
		.write = op_write,
		.fsync = op_fsync,
	};
	char o[] = "-o", opts[] = "fsname=floor,default_permissions";
	char *fuse_argv[] = { argv[0], o, opts, NULL };
	struct fuse_args args = FUSE_ARGS_INIT(3, fuse_argv);
	struct fuse_session *se;
	struct stat st;
	int rc;

	if (argc != 3) {
		fprintf(stderr, "usage: floor FILE MOUNTPOINT\n");
		return 2;
	}
	image_fd = open(argv[1], O_RDWR | O_CLOEXEC);
	if (image_fd < 0 || fstat(image_fd, &st)) {
		perror(argv[1]);
		return 1;
	}
	image_size = st.st_size;
	io_buf = aligned_alloc(4096, IO_MAX);
	se = io_buf ? fuse_session_new(&args, &ops, sizeof(ops), NULL) : NULL;
	if (!se || fuse_set_signal_handlers(se) || fuse_session_mount(se, argv[2]))
		return 1;
	rc = fuse_session_loop(se);
	fuse_session_unmount(se);
	fuse_remove_signal_handlers(se);
	fuse_session_destroy(se);
	fuse_opt_free_args(&args);
	free(io_buf);
	return rc < 0;
}
