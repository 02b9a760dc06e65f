// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg rebase: gives an overlay another base. What it shows of the old one, and the
 * new one has otherwise, is first copied into it; at every moment it reads the same. With
 * -u nothing is copied: the base is recorded anew, after it was moved, copied, or its
 * time stamp changed; so only one with the same contents makes sense.
 */
#include "cowimg-pair.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>

#include "cowimg-pieces.h"

static const struct cow_cli_opt opts[] = {
	IMG_CLI_OPEN,
	{ 'u', "unsafe", NULL, "record only, copy nothing" },
	{ 'b', "base", "BASE", "the base from now on; '': none (default, with -u: the recorded one)" },
	{ 'F', "base-format", "FORMAT", "format of the base; required with -b" },
	{ IMG_OPT_BASE_OPTIONS, "base-options", "KEY=VALUE,...", "options of the base's format" },
	IMG_CLI_PROGRESS,
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg rebase",
	.synopsis = "-f FORMAT -b BASE -F FORMAT [OPTION]... IMAGE\n"
		    "-f FORMAT -b '' [OPTION]... IMAGE\n"
		    "-u -f FORMAT [-b BASE -F FORMAT] [OPTION]... IMAGE",
	.summary = "Gives an overlay another base, or none, and it reads the same; with -u records it only.",
	.opts = opts,
};

static int rebase_recorded(const struct img_cmd *cmd, const char *path)
{
	struct cow_err err = { 0 };
	struct cow_chain *c;
	int r, status = IMG_OK;

	if (img_open(cmd, path, COW_OPEN_WRITE | COW_OPEN_FORCE, &c))
		return IMG_FAILED;
	/* A --backing path is where the base is from now on. */
	r = cow_chain_rebase(c, NULL, cmd->n_backing ? cmd->backing[0] : NULL, cmd->force, &err);
	if (r)
		status = img_fail(cmd, r, &err);
	return img_close(cmd, c, path, status);
}

/* @base "": none. */
static int rebase_other(const struct img_cmd *cmd, const char *path, const char *base,
			const char *base_format)
{
	struct img_cmd top = *cmd, below = *cmd;
	struct cow_chain *c = NULL, *b = NULL;
	struct cow_err err = { 0 };
	int r, status;

	top.no_backing = true;
	below.format = base_format;
	below.args = cmd->second_args;
	if ((*base && img_open(&below, base, 0, &b)) || img_open(&top, path, COW_OPEN_WRITE, &c))
		return img_close(cmd, b, base, IMG_FAILED);
	/* The same contents are meant, but not where there are none any more. */
	status = *base ? IMG_OK : img_spare_snapshots(cmd, path, c);
	r = status == IMG_OK ? cow_chain_rebase(c, b, base, cmd->force, &err) : 0;
	if (r)
		status = img_fail(cmd, r, &err);
	status = img_close(cmd, c, path, status);
	return img_close(cmd, b, base, status);
}

int img_do_rebase(const struct img_cmd *cmd, const char *path, const char *base,
		  const char *base_format)
{
	int status;

	status = base ? rebase_other(cmd, path, base, base_format) : rebase_recorded(cmd, path);
	if (status == IMG_OK && !cmd->quiet)
		printf("Base recorded.\n");
	return status;
}

/* ---- the safe one ---- */

struct rebase {
	const struct img_cmd *cmd;
	const char *path, *base;
	struct img_progress progress;
	struct pair pair;		/* what is below the image now, and the new base, or none */
	uint8_t *old, *new;		/* PIECE_BYTES each */
};

static int read_side(const struct pair_side *s, uint8_t *buf, uint64_t virt, uint64_t len)
{
	uint64_t there = virt < s->size ? cow_min(len, s->size - virt) : 0;

	memset(buf + there, 0, len - there);
	return there ? cow_chain_pread_layer(s->c, s->first, buf, there, virt) : 0;
}

/* The image gets what it shows of the old base, in the units that the new one has otherwise. */
static int keep_differing(struct rebase *rb, uint64_t virt, uint64_t len)
{
	struct cow_chain *c = rb->pair.a.c;
	int r = read_side(&rb->pair.a, rb->old, virt, len);

	if (!r)
		r = read_side(&rb->pair.b, rb->new, virt, len);
	for (uint64_t at = 0, n; at < len && !r; at += n) {
		n = cow_min(PIECE_UNIT - (virt + at) % PIECE_UNIT, len - at);
		if (!memcmp(rb->old + at, rb->new + at, n))
			continue;
		if (piece_all_zero(rb->old + at, n))
			r = cow_chain_zero(c, virt + at, n);
		else
			r = cow_chain_pwrite(c, rb->old + at, n, virt + at);
	}
	return r;
}

/* [virt, end), where the image has nothing of its own. */
static int keep_range(struct rebase *rb, uint64_t virt, uint64_t end)
{
	uint64_t next;
	bool same;
	int r = 0;

	for (; virt < end && !r; virt = next) {
		if (img_progress_tick(&rb->progress, virt, rb->pair.end))
			return -ECANCELED;
		r = pair_look(&rb->pair, virt, &same, &next);
		next = cow_min(next, end);
		if (r || same)
			continue;
		next = cow_min(next, virt + PIECE_BYTES);
		r = keep_differing(rb, virt, next - virt);
	}
	return r;
}

static int keep_all(struct rebase *rb)
{
	uint64_t end = rb->pair.end;
	struct cow_extent e;
	int r = 0;

	for (uint64_t virt = 0; virt < end && !r; virt = e.virt + e.len) {
		r = cow_chain_layer_extent(rb->pair.a.c, 0, virt, end - virt, &e);
		if (!r && e.kind == COW_BELOW)
			r = keep_range(rb, virt, virt + e.len);
	}
	return r ? r : cow_chain_flush(rb->pair.a.c);
}

static int keep_and_record(struct rebase *rb)
{
	struct cow_err err = { 0 };
	int r;

	if (cow_chain_depth(rb->pair.a.c) < 2)
		return img_fail_msg(rb->cmd, "%s: has no base", rb->path);
	if (img_spare_snapshots(rb->cmd, rb->path, rb->pair.a.c))
		return IMG_FAILED;
	rb->pair.a.first = 1;
	rb->pair.a.size = cow_chain_image(rb->pair.a.c, 1)->size;
	rb->pair.b.size = rb->pair.b.c ? cow_chain_size(rb->pair.b.c) : 0;
	rb->pair.end = cow_chain_size(rb->pair.a.c);
	pair_find_shared(&rb->pair, rb->cmd->args, rb->cmd->second_args);
	rb->old = cow_memalign(PIECE_UNIT, PIECE_BYTES);
	rb->new = cow_memalign(PIECE_UNIT, PIECE_BYTES);
	img_progress_begin(&rb->progress, rb->cmd);
	r = rb->old && rb->new ? keep_all(rb) : -ENOMEM;
	img_progress_end(&rb->progress);
	if (r)
		return img_fail_msg(rb->cmd, "%s: %s; it has its old base, and reads the same as before", rb->path,
				    r == -ECANCELED ? img_progress_why(&rb->progress) : strerror(-r));
	r = cow_chain_rebase(rb->pair.a.c, rb->pair.b.c, rb->base, true, &err);
	return r ? img_fail(rb->cmd, r, &err) : IMG_OK;
}

static int rebase_safely(const struct img_cmd *cmd, const char *path, const char *base,
			 const char *base_format)
{
	struct img_cmd below = img_second(cmd, base_format);
	struct rebase rb = { .cmd = cmd, .path = path, .base = base };
	int status = IMG_FAILED;

	if ((!*base || !img_open(&below, base, 0, &rb.pair.b.c)) &&
	    !img_open(cmd, path, COW_OPEN_WRITE, &rb.pair.a.c))
		status = keep_and_record(&rb);
	cow_free(rb.old);
	cow_free(rb.new);
	status = img_close(cmd, rb.pair.a.c, path, status);
	status = img_close(cmd, rb.pair.b.c, base, status);
	if (status == IMG_OK && !cmd->quiet)
		printf(*base ? "Base changed.\n" : "It needs no base any more.\n");
	return status;
}

int cowimg_rebase(int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE", NULL };
	struct img_cmd cmd = { .cli = &cli };
	const char *base = NULL, *base_format = NULL;
	bool unsafe = false;
	int c, status = 0;

	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1) {
		if (c == 'b')
			base = optarg;
		else if (c == 'F')
			base_format = optarg;
		else if (c == 'u')
			unsafe = true;
		else if (c == IMG_OPT_BASE_OPTIONS)
			status = img_add_args(&cmd, "--base-options", optarg, &cmd.second_args);
		else
			status = img_common_opt(&cmd, c);
	}
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 1);
	if (!status && !unsafe && !base)
		status = cow_cli_misuse(&cli, "-b BASE is missing; only with -u, the recorded one is meant");
	if (!status && (base && *base) != !!base_format)
		status = cow_cli_misuse(&cli, "-b BASE and -F FORMAT go together");
	if (!status && cmd.second_args && !base_format)
		status = cow_cli_misuse(&cli, "--base-options goes with -b BASE");
	if (!status)
		status = img_need_format(&cmd, argv[optind]);
	if (!status)
		status = unsafe ? img_do_rebase(&cmd, argv[optind], base, base_format) :
			rebase_safely(&cmd, argv[optind], base, base_format);
	return img_finish(&cmd, status);
}
