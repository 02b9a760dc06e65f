// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg compare: do two images read the same? Ranges that both maps call zero
 * are not read.
 */
#include "cowimg.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

static const struct cow_cli_opt opts[] = {
	IMG_CLI_FORMAT,
	{ 'F', "second-format", "FORMAT", "format of the second image (default: that of -f)" },
	{ IMG_OPT_SECOND_OPTIONS, "second-options", "KEY=VALUE,...", "options of the second image's format" },
	{ 'o', "options", "KEY=VALUE,...", "options of the format, for the first image" },
	{ IMG_OPT_BACKING, "backing", "PATH", "where the base of the first image is" },
	{ IMG_OPT_BACKING_DIR, "backing-dir", "DIR",
	  "allow bases in and below DIR; may be given several times" },
	{ IMG_OPT_FORCE, "force", NULL, "accept a base that changed since it was recorded" },
	{ 's', "strict", NULL, "sizes and what is stored must be equal too" },
	IMG_CLI_OUTPUT,
	IMG_CLI_PROGRESS,
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg compare",
	.synopsis = "-f FORMAT [-F FORMAT] [OPTION]... IMAGE1 IMAGE2",
	.summary = "Tells whether two images read the same. "
		   "Exit status: 0 the same, 1 different, 2 failed.",
	.opts = opts,
};

struct side {
	const char *path;
	struct cow_chain *c;
	uint64_t size;
	struct cow_extent ext;	/* the one that holds the current position; len 0: none yet */
	uint8_t *buf;
};

enum difference { SAME, CONTENT, SIZE, ALLOCATION };

struct comparison {
	const struct img_cmd *cmd;
	struct img_progress progress;
	struct side a, b;
	bool strict;
	enum difference difference;
	uint64_t at;		/* offset of the difference */
};

static bool stored(const struct side *s)
{
	return s->ext.kind == COW_DATA || s->ext.kind == COW_ENCODED;
}

/* Makes s->ext the extent that holds @virt; behind the end of the image all is zero. */
static int advance(struct side *s, uint64_t virt, uint64_t end)
{
	unsigned layer;

	if (s->ext.len && virt - s->ext.virt < s->ext.len)
		return 0;
	if (virt >= s->size) {
		s->ext = (struct cow_extent){ .virt = virt, .len = end - virt, .kind = COW_HOLE };
		return 0;
	}
	return cow_chain_next_extent(s->c, 0, virt, cow_min(end, s->size), &s->ext, &layer);
}

static int fetch(struct side *s, uint64_t virt, size_t len)
{
	if (stored(s))
		return cow_chain_pread(s->c, s->buf, len, virt);
	memset(s->buf, 0, len);
	return 0;
}

/* Compares [virt, virt + len), which is one extent on both sides. */
static int compare_range(struct comparison *cmp, uint64_t virt, uint64_t len)
{
	uint64_t total = cow_max(cmp->a.size, cmp->b.size);

	while (len) {
		size_t n = (size_t)cow_min(len, IMG_BUFFER);
		int r = fetch(&cmp->a, virt, n);

		if (!r)
			r = fetch(&cmp->b, virt, n);
		if (r)
			return r;
		for (size_t i = 0; memcmp(cmp->a.buf, cmp->b.buf, n) && i < n; i++) {
			if (cmp->a.buf[i] == cmp->b.buf[i])
				continue;
			cmp->difference = CONTENT;
			cmp->at = virt + i;
			return 0;
		}
		virt += n;
		len -= n;
		if (img_progress_tick(&cmp->progress, virt, total))
			return -ECANCELED;
	}
	return 0;
}

static int walk(struct comparison *cmp)
{
	uint64_t end = cow_max(cmp->a.size, cmp->b.size), virt = 0, stop;
	int r;

	if (cmp->strict && cmp->a.size != cmp->b.size) {
		cmp->difference = SIZE;
		cmp->at = cow_min(cmp->a.size, cmp->b.size);
		return 0;
	}
	while (virt < end && cmp->difference == SAME) {
		r = advance(&cmp->a, virt, end);
		if (!r)
			r = advance(&cmp->b, virt, end);
		if (r)
			return r;
		stop = cow_min(cmp->a.ext.virt + cmp->a.ext.len, cmp->b.ext.virt + cmp->b.ext.len);
		if (cmp->strict && stored(&cmp->a) != stored(&cmp->b)) {
			cmp->difference = ALLOCATION;
			cmp->at = virt;
			return 0;
		}
		if (stored(&cmp->a) || stored(&cmp->b))
			r = compare_range(cmp, virt, stop - virt);
		else if (img_progress_tick(&cmp->progress, stop, end))
			r = -ECANCELED;
		if (r)
			return r;
		virt = stop;
	}
	return 0;
}

static int report(const struct comparison *cmp)
{
	static const char *const names[] = { "none", "content", "size", "allocation" };
	const struct img_cmd *cmd = cmp->cmd;
	struct cow_kv *kv;
	int r;

	if (cmd->json) {
		kv = cow_kv_new(stdout, COW_KV_JSON, IMG_SCHEMA);
		if (!kv)
			return -ENOMEM;
		cow_kv_bool(kv, "identical", cmp->difference == SAME);
		cow_kv_str(kv, "difference", names[cmp->difference]);
		if (cmp->difference != SAME)
			cow_kv_u64(kv, "offset", cmp->at);
		cow_kv_u64(kv, "size1", cmp->a.size);
		cow_kv_u64(kv, "size2", cmp->b.size);
		r = cow_kv_end(kv);
		return r;
	}
	if (cmd->quiet)
		return 0;
	if (cmp->a.size != cmp->b.size && cmp->difference != SIZE)
		printf("The sizes differ: %" PRIu64 " and %" PRIu64 " bytes.\n", cmp->a.size,
		       cmp->b.size);
	if (cmp->difference == SAME)
		printf("Images are identical.\n");
	else if (cmp->difference == CONTENT)
		printf("Content mismatch at offset %" PRIu64 "!\n", cmp->at);
	else if (cmp->difference == SIZE)
		printf("Strict mode: the sizes differ: %" PRIu64 " and %" PRIu64 " bytes!\n",
		       cmp->a.size, cmp->b.size);
	else
		printf("Strict mode: offset %" PRIu64 " is stored in one image only!\n", cmp->at);
	return 0;
}

static int compare(struct comparison *cmp)
{
	int r;

	cmp->a.size = cow_chain_size(cmp->a.c);
	cmp->b.size = cow_chain_size(cmp->b.c);
	cmp->a.buf = cow_memalign(4096, IMG_BUFFER);
	cmp->b.buf = cow_memalign(4096, IMG_BUFFER);
	img_progress_begin(&cmp->progress, cmp->cmd);
	r = cmp->a.buf && cmp->b.buf ? walk(cmp) : -ENOMEM;
	img_progress_end(&cmp->progress);
	cow_free(cmp->a.buf);
	cow_free(cmp->b.buf);
	if (!r)
		r = report(cmp);
	if (!r)
		return cmp->difference == SAME ? IMG_OK : IMG_DIFFERS;
	if (r == -ECANCELED && cmp->progress.stopped_by)
		img_fail_msg(cmp->cmd, "%s before a difference was found",
			     img_progress_why(&cmp->progress));
	else
		img_fail_msg(cmp->cmd, "cannot compare %s with %s: %s", cmp->a.path, cmp->b.path,
			     strerror(-r));
	return IMG_COMPARE_FAILED;
}

static int open_and_compare(const struct img_cmd *cmd, const char *format2, char **paths,
			    bool strict)
{
	struct comparison cmp = { .cmd = cmd, .strict = strict };
	struct img_cmd second = img_second(cmd, format2);
	int status = IMG_COMPARE_FAILED;

	cmp.a.path = paths[0];
	cmp.b.path = paths[1];
	if (!img_open(cmd, cmp.a.path, 0, &cmp.a.c) &&
	    !img_open(&second, cmp.b.path, 0, &cmp.b.c))
		status = compare(&cmp);
	img_close(cmd, cmp.b.c, cmp.b.path, status);
	img_close(cmd, cmp.a.c, cmp.a.path, status);
	return status;
}

int cowimg_compare(int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE1", "IMAGE2", NULL };
	struct img_cmd cmd = { .cli = &cli };
	const char *format2 = NULL;
	bool strict = false;
	int c, status = 0;

	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1) {
		if (c == 'F')
			format2 = optarg;
		else if (c == 's')
			strict = true;
		else
			status = img_common_opt(&cmd, c);
	}
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 2);
	if (!status)
		status = img_need_format(&cmd, argv[optind]);
	if (!status)
		status = open_and_compare(&cmd, format2, argv + optind, strict);
	/* 1 means "different", so a lost message is the other kind of failure. */
	c = img_finish(&cmd, IMG_OK);
	return c ? IMG_COMPARE_FAILED : status;
}
