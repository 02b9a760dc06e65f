// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg write: puts bytes from standard input, a file or a repeated byte into
 * an image. The image is flushed before success is reported.
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
	{ 's', "offset", "OFFSET", "first byte to write (default: 0)" },
	{ 'l', "length", "LENGTH", "bytes to write (default: all the input has)" },
	{ IMG_OPT_PATTERN, "pattern", "BYTE", "write this byte LENGTH times; reads no input" },
	IMG_CLI_PROGRESS,
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg write",
	.synopsis = "-f FORMAT [OPTION]... IMAGE [FILE]",
	.summary = "Writes standard input, FILE or a repeated byte into an image.",
	.opts = opts,
};

struct writing {
	struct img_cmd *cmd;
	struct img_progress progress;
	struct cow_chain *c;
	const char *path, *in_path;
	uint64_t off, len;
	bool len_known;
	int pattern;		/* -1: none */
	int in;			/* -1: none */
	uint8_t *buf;
};

/* Fills the buffer with up to @want bytes; fewer only at the end of the input. */
static int get(struct writing *w, size_t want, size_t *ret_len)
{
	if (w->pattern < 0)
		return img_get_stream(&w->progress, w->in, w->buf, want, ret_len);
	*ret_len = want;	/* the buffer holds the pattern already */
	return 0;
}

/* *@done: bytes that are in the image. -ENODATA: the input ended early; -EFBIG: it goes on too long. */
static int copy(struct writing *w, uint64_t *done)
{
	uint64_t room = cow_chain_size(w->c) - w->off;
	uint64_t limit = w->len_known ? w->len : UINT64_MAX;
	size_t n = 0;
	int r;

	while (*done < limit) {
		size_t want = (size_t)cow_min(limit - *done, IMG_BUFFER);

		if (img_progress_tick(&w->progress, *done, w->len_known ? w->len : 0))
			return -ECANCELED;
		r = get(w, want, &n);
		if (r)
			return r;
		if (n > room - *done)
			return -EFBIG;
		if (n)
			r = cow_chain_pwrite(w->c, w->buf, n, w->off + *done);
		if (r)
			return r;
		*done += n;
		if (n < want)
			return w->len_known ? -ENODATA : 0;
	}
	return 0;
}

static int explain(const struct writing *w, int r, uint64_t done)
{
	const char *why = strerror(-r);

	if (r == -ECANCELED)
		why = img_progress_why(&w->progress);
	else if (r == -ENODATA)
		why = "the input ended";
	else if (r == -EFBIG)
		why = "no room for the rest of the input";
	return img_fail_msg(w->cmd, "%s: %s after %" PRIu64 " bytes", w->path,
			    why, done);
}

static int run(struct writing *w)
{
	uint64_t size = cow_chain_size(w->c), done = 0;
	int r, status;

	status = img_in_bounds(w->cmd, w->path, w->off, w->len_known ? w->len : 0, size);
	if (status)
		return status;
	w->buf = cow_memalign(4096, IMG_BUFFER);
	if (!w->buf)
		return img_fail(w->cmd, -ENOMEM, NULL);
	if (w->pattern >= 0)
		memset(w->buf, w->pattern, IMG_BUFFER);
	img_progress_begin(&w->progress, w->cmd);
	r = copy(w, &done);
	if (!r)
		img_progress_tick(&w->progress, done, done);
	img_progress_end(&w->progress);
	cow_free(w->buf);
	return r ? explain(w, r, done) : IMG_OK;
}

/* A regular file says how long it is: then a range that does not fit is refused beforehand. */
static int open_input(struct writing *w)
{
	struct stat st;

	w->in = STDIN_FILENO;
	if (w->in_path) {
		w->in = open(w->in_path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
		if (w->in < 0)
			return img_fail_msg(w->cmd, "cannot read %s: %s", w->in_path,
					    strerror(errno));
	}
	if (!w->in_path || fstat(w->in, &st))
		return IMG_OK;
	if (S_ISDIR(st.st_mode))
		return img_fail_msg(w->cmd, "cannot read %s: %s", w->in_path, strerror(EISDIR));
	if (S_ISREG(st.st_mode) && !w->len_known) {
		w->len = (uint64_t)st.st_size;
		w->len_known = true;
	}
	return IMG_OK;
}

static int check_args(struct writing *w, int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE", "FILE", NULL };
	int status = img_operands(w->cmd, argc, argv, operands, 1);

	if (status)
		return status;
	w->path = argv[optind];
	w->in_path = img_file_arg(argv[optind + 1]);
	if (w->pattern >= 0 && w->in_path)
		return cow_cli_misuse(&cli, "--pattern is the input: FILE is one too many");
	if (w->pattern >= 0 && !w->len_known)
		return cow_cli_misuse(&cli, "--pattern needs -l LENGTH");
	return img_need_format(w->cmd, w->path);
}

int cowimg_write(int argc, char **argv)
{
	struct img_cmd cmd = { .cli = &cli };
	struct writing w = { .cmd = &cmd, .pattern = -1, .in = -1 };
	int c, status = 0;

	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1) {
		if (c == 's') {
			status = img_size_arg(&cmd, "OFFSET", optarg, &w.off);
		} else if (c == 'l') {
			status = img_size_arg(&cmd, "LENGTH", optarg, &w.len);
			w.len_known = true;
		} else if (c == IMG_OPT_PATTERN) {
			status = img_pattern_arg(&cmd, optarg, &w.pattern);
		} else {
			status = img_common_opt(&cmd, c);
		}
	}
	if (!status)
		status = check_args(&w, argc, argv);
	if (!status && w.pattern < 0)
		status = open_input(&w);
	if (!status)
		status = img_open(&cmd, w.path, COW_OPEN_WRITE, &w.c) ? IMG_FAILED : run(&w);
	status = img_close(&cmd, w.c, w.path, status);
	if (w.in > STDIN_FILENO)
		close(w.in);
	return img_finish(&cmd, status);
}
