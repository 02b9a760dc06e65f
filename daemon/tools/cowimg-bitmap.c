// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg bitmap: the bitmaps inside an image that nobody uses, which say what of
 * the disk was changed. The image's base is not opened: bitmaps are about the disk
 * as a whole, and are the image's own.
 */
#include "cowimg.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

static const struct cow_cli_opt opts[] = {
	{ 'l', "list", NULL, "list the bitmaps (the default)" },
	{ 'D', "dump", "BITMAP", "list the ranges that a bitmap says were changed" },
	IMG_CLI_FORMAT,
	IMG_CLI_OPTIONS,
	IMG_CLI_OUTPUT,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg bitmap",
	.synopsis = "-f FORMAT [-l | -D BITMAP] [OPTION]... IMAGE",
	.summary = "Lists the bitmaps inside an image, and what of it they say was changed.",
	.opts = opts,
};

/* ---- what there is ---- */

struct listing {
	struct cow_kv *kv;		/* NULL: for people */
	bool any;
};

static int list_one(void *opaque, const struct cow_bitmap *b)
{
	struct listing *l = opaque;

	if (l->kv) {
		cow_kv_object(l->kv, NULL);
		cow_bitmap_kv(b, l->kv);
		cow_kv_close(l->kv);
		return 0;
	}
	if (!l->any)
		printf("%-12s %-8s %-12s %s\n", "GRANULARITY", "RECORDS", "STATE", "NAME");
	l->any = true;
	printf("%-12" PRIu64 " %-8s %-12s ", b->granularity, b->enabled ? "yes" : "no", b->state);
	img_print_name(b->name);
	putchar('\n');
	return 0;
}

static int dump_one(void *opaque, uint64_t virt, uint64_t len)
{
	struct listing *l = opaque;

	if (l->kv) {
		cow_kv_object(l->kv, NULL);
		cow_kv_u64(l->kv, "start", virt);
		cow_kv_u64(l->kv, "length", len);
		cow_kv_close(l->kv);
		return 0;
	}
	if (!l->any)
		printf("%-18s %s\n", "Start", "Length");
	l->any = true;
	printf("%-18" PRIu64 " %" PRIu64 "\n", virt, len);
	return 0;
}

/* @name NULL: all bitmaps; else what of the disk this one has. */
static int walk(struct cow_chain *c, const char *name, struct listing *l, struct cow_err *err)
{
	int r;

	if (l->kv && name) {
		cow_kv_u64(l->kv, "size", cow_chain_size(c));
		cow_kv_str(l->kv, "bitmap", name);
	}
	if (l->kv)
		cow_kv_list(l->kv, name ? "changed" : "bitmaps");
	r = name ? cow_chain_bitmap_ranges(c, name, dump_one, l, err) :
		cow_chain_bitmaps(c, list_one, l, err);
	if (l->kv)
		cow_kv_close(l->kv);
	return r;
}

static int list(const struct img_cmd *cmd, const char *path, const char *name)
{
	struct listing l = { 0 };
	struct cow_err err = { 0 };
	struct cow_chain *c;
	int r = 0, ended = 0;

	if (img_open(cmd, path, 0, &c))
		return IMG_FAILED;
	if (cmd->json) {
		l.kv = cow_kv_new(stdout, COW_KV_JSON, IMG_SCHEMA);
		r = l.kv ? 0 : -ENOMEM;
	}
	if (r == 0)
		r = walk(c, name, &l, &err);
	if (l.kv)
		ended = cow_kv_end(l.kv);
	r = r ? r : ended;
	return img_close(cmd, c, path, r ? img_fail(cmd, r, &err) : IMG_OK);
}

int cowimg_bitmap(int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE", NULL };
	struct img_cmd cmd = { .cli = &cli, .no_backing = true };
	const char *name = NULL;
	int c, status = 0, wishes = 0;

	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1) {
		wishes += c == 'l' || c == 'D';
		if (c == 'D')
			name = optarg;
		else if (c != 'l')
			status = img_common_opt(&cmd, c);
	}
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 1);
	if (!status && wishes > 1)
		status = cow_cli_misuse(&cli, "only one thing can be done at a time");
	if (!status)
		status = img_need_format(&cmd, argv[optind]);
	if (!status)
		status = list(&cmd, argv[optind], name);
	return img_finish(&cmd, status);
}
