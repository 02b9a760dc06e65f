// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg read: copies a range of an image to standard output or to a new file
 * (kept sparse), or compares it with one repeated byte.
 */
#include "cowimg.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct cow_cli_opt opts[] = {
	IMG_CLI_OPEN,
	{ 's', "offset", "OFFSET", "first byte (default: 0)" },
	{ 'l', "length", "LENGTH", "bytes (default: to the end)" },
	{ IMG_OPT_PATTERN, "pattern", "BYTE", "write nothing; fail unless every byte is BYTE" },
	IMG_CLI_PROGRESS,
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg read",
	.synopsis = "-f FORMAT [OPTION]... IMAGE [FILE]",
	.summary = "Copies a range of an image to standard output or to a new FILE.",
	.opts = opts,
};

struct reading {
	const struct img_cmd *cmd;
	struct img_progress progress;
	struct cow_chain *c;
	const char *path, *out_path;
	uint64_t off, len;
	int pattern;		/* -1: none */
	int out;
	bool created;		/* out_path is ours, to be removed on failure */
	bool sparse;		/* zeroes are left out */
	uint8_t *buf;
};

static int open_output(struct reading *rd)
{
	struct stat st;

	rd->out = STDOUT_FILENO;
	if (!rd->out_path || rd->pattern >= 0)
		return IMG_OK;
	rd->out = open(rd->out_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	rd->created = rd->sparse = rd->out >= 0;
	/* What exists is written to only where nothing can be lost: a pipe, a null device. */
	if (rd->out < 0 && errno == EEXIST && !stat(rd->out_path, &st)) {
		if (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode))
			errno = EEXIST;
		else
			rd->out = open(rd->out_path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
	}
	if (rd->out < 0)
		return img_fail_msg(rd->cmd, "cannot create %s: %s", rd->out_path,
				    strerror(errno));
	return IMG_OK;
}

static int put_file(int fd, const uint8_t *data, size_t len)
{
	while (len) {
		ssize_t done = write(fd, data, len);

		if (done < 0 && errno != EINTR)
			return -errno;
		if (done > 0) {
			data += done;
			len -= (size_t)done;
		}
	}
	return 0;
}

/* -EILSEQ: @virt of the range is not the pattern; the position is kept for the message. */
static int consume(struct reading *rd, size_t len, uint64_t *virt)
{
	if (rd->pattern < 0)
		return rd->created ? put_file(rd->out, rd->buf, len) :
			img_put_stream(&rd->progress, rd->out, rd->buf, len);
	for (size_t i = 0; i < len; i++) {
		if (rd->buf[i] != rd->pattern) {
			*virt += i;
			return -EILSEQ;
		}
	}
	return 0;
}

static int copy_extent(struct reading *rd, const struct cow_extent *ext, uint64_t *virt)
{
	uint64_t end = ext->virt + ext->len;
	bool zero = ext->kind != COW_DATA && ext->kind != COW_ENCODED;
	int r = 0;

	if (zero && rd->sparse) {
		if (lseek(rd->out, (off_t)(end - *virt), SEEK_CUR) < 0)
			return -errno;
		*virt = end;
	}
	if (zero)
		memset(rd->buf, 0, IMG_BUFFER);
	while (!r && *virt < end) {
		size_t n = (size_t)cow_min(end - *virt, IMG_BUFFER);

		if (img_progress_tick(&rd->progress, *virt - rd->off, rd->len))
			return -ECANCELED;
		if (!zero)
			r = cow_chain_pread(rd->c, rd->buf, n, *virt);
		if (!r)
			r = consume(rd, n, virt);
		if (!r)
			*virt += n;
	}
	return r;
}

static int copy(struct reading *rd)
{
	uint64_t virt = rd->off, end = rd->off + rd->len;
	struct cow_extent ext;
	unsigned layer;
	int r = 0;

	img_progress_begin(&rd->progress, rd->cmd);
	while (!r && virt < end) {
		r = cow_chain_next_extent(rd->c, 0, virt, end, &ext, &layer);
		if (!r)
			r = copy_extent(rd, &ext, &virt);
	}
	/* A hole at the end leaves the file short of it. */
	if (!r && rd->sparse && ftruncate(rd->out, (off_t)rd->len))
		r = -errno;
	if (!r && rd->created && fsync(rd->out))
		r = -errno;
	if (!r)
		img_progress_tick(&rd->progress, rd->len, rd->len);
	img_progress_end(&rd->progress);
	if (!r)
		return IMG_OK;
	if (r == -EILSEQ)
		return img_fail_msg(rd->cmd, "%s: the byte at offset %" PRIu64 " is not 0x%02x",
				    rd->path, virt, (unsigned)rd->pattern);
	return img_fail_msg(rd->cmd, "%s: %s after %" PRIu64 " of %" PRIu64 " bytes%s%s%s",
			    rd->path,
			    r == -ECANCELED ? img_progress_why(&rd->progress) : strerror(-r),
			    virt - rd->off, rd->len, rd->created ? "; " : "",
			    rd->created ? rd->out_path : "", rd->created ? " was removed" : "");
}

static int run(struct reading *rd, bool to_end)
{
	uint64_t size = cow_chain_size(rd->c);
	int status;

	if (to_end && rd->off <= size)
		rd->len = size - rd->off;
	status = img_in_bounds(rd->cmd, rd->path, rd->off, rd->len, size);
	if (!status)
		status = open_output(rd);
	if (status)
		return status;
	rd->buf = cow_memalign(4096, IMG_BUFFER);
	status = rd->buf ? copy(rd) : img_fail(rd->cmd, -ENOMEM, NULL);
	cow_free(rd->buf);
	if (rd->out != STDOUT_FILENO && close(rd->out) && !status)
		status = img_fail_msg(rd->cmd, "cannot write %s: %s", rd->out_path,
				      strerror(errno));
	if (status && rd->created)
		unlink(rd->out_path);
	return status;
}

int cowimg_read(int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE", "FILE", NULL };
	struct img_cmd cmd = { .cli = &cli };
	struct reading rd = { .cmd = &cmd, .pattern = -1 };
	bool to_end = true;
	int c, status = 0;

	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1) {
		if (c == 's') {
			status = img_size_arg(&cmd, "OFFSET", optarg, &rd.off);
		} else if (c == 'l') {
			status = img_size_arg(&cmd, "LENGTH", optarg, &rd.len);
			to_end = false;
		} else if (c == IMG_OPT_PATTERN) {
			status = img_pattern_arg(&cmd, optarg, &rd.pattern);
		} else {
			status = img_common_opt(&cmd, c);
		}
	}
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 1);
	if (!status && rd.pattern >= 0 && argc - optind > 1)
		status = cow_cli_misuse(&cli, "--pattern writes nothing: FILE is one too many");
	if (!status)
		status = img_need_format(&cmd, argv[optind]);
	if (!status) {
		rd.path = argv[optind];
		rd.out_path = img_file_arg(argv[optind + 1]);
		status = img_open(&cmd, rd.path, 0, &rd.c) ? IMG_FAILED : run(&rd, to_end);
	}
	status = img_close(&cmd, rd.c, rd.path, status);
	return img_finish(&cmd, status);
}
