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
	{ 'a', "add", "BITMAP", "make an empty bitmap that records changes" },
	{ 'r', "remove", "BITMAP", "remove a bitmap" },
	{ 'c', "clear", "BITMAP", "forget what a bitmap recorded" },
	{ 'e', "enable", "BITMAP", "record changes from now on" },
	{ 'd', "disable", "BITMAP", "record none any more" },
	{ 'm', "merge", "BITMAP", "add to it what another has, see -s" },
	{ 'g', "granularity", "SIZE", "of a new one: bytes for one bit (default: the format's choice)" },
	{ 'n', "disabled", NULL, "a new one does not record yet" },
	{ 's', "source", "BITMAP", "what is merged in" },
	{ 'S', "source-image", "IMAGE", "the image that has it (default: the same)" },
	{ 'F', "source-format", "FORMAT", "format of that image (default: that of -f)" },
	IMG_CLI_FORMAT,
	IMG_CLI_OPTIONS,
	IMG_CLI_OUTPUT,
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg bitmap",
	.synopsis = "-f FORMAT [-l | -D BITMAP | -a BITMAP | -r BITMAP | -c BITMAP | -e BITMAP | -d BITMAP | "
		    "-m BITMAP -s BITMAP] [OPTION]... IMAGE",
	.summary = "Handles the bitmaps inside an image, which say what of it was changed.",
	.opts = opts,
};

/* What the command line says. */
struct wish {
	int what;			/* letter of the option; 0: the list */
	const char *name;
	uint64_t granularity;
	bool disabled;
	const char *source, *source_image, *source_format;
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

	if (img_open(cmd, path, COW_OPEN_NODATA, &c))
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

/* ---- changes ---- */

static int merge(const struct img_cmd *cmd, struct cow_chain *c, const struct wish *w)
{
	struct img_cmd second = img_second(cmd, w->source_format);
	struct cow_chain *from = c;
	struct cow_err err = { 0 };
	int r;

	second.no_backing = true;
	if (w->source_image && img_open(&second, w->source_image, 0, &from))
		return IMG_FAILED;
	r = cow_chain_bitmap_merge(c, w->name, from, w->source, &err);
	r = r ? img_fail(cmd, r, &err) : IMG_OK;
	return from == c ? r : img_close(&second, from, w->source_image, r);
}

static int change_one(const struct img_cmd *cmd, struct cow_chain *c, const struct wish *w)
{
	struct cow_bitmap_change ch = {
		.op = w->what == 'a' ? COW_BITMAP_ADD : w->what == 'r' ? COW_BITMAP_REMOVE :
			w->what == 'c' ? COW_BITMAP_CLEAR : w->what == 'e' ? COW_BITMAP_ENABLE :
			COW_BITMAP_DISABLE,
		.name = w->name, .granularity = w->granularity, .disabled = w->disabled,
	};
	struct cow_err err = { 0 };
	int r = cow_chain_bitmap(c, &ch, &err);

	return r ? img_fail(cmd, r, &err) : IMG_OK;
}

static int change(const struct img_cmd *cmd, const char *path, const struct wish *w)
{
	/* One that forbids to write can be removed. */
	uint32_t flags = COW_OPEN_WRITE | (w->what == 'r' ? COW_OPEN_CHECK : 0);
	struct img_progress hold;
	struct cow_chain *c;
	int status;

	if (img_open(cmd, path, flags, &c))
		return IMG_FAILED;
	/* A signal in the middle waits: stopped there, space would be lost until a repair. */
	img_progress_begin(&hold, cmd);
	status = w->what == 'm' ? merge(cmd, c, w) : change_one(cmd, c, w);
	img_progress_end(&hold);
	status = img_close(cmd, c, path, status);
	if (status == IMG_OK && !cmd->quiet)
		printf("Bitmap %s.\n", w->what == 'a' ? "made" : w->what == 'r' ? "removed" :
		       w->what == 'c' ? "cleared" : w->what == 'e' ? "enabled" :
		       w->what == 'd' ? "disabled" : "merged");
	return status;
}

/* ---- the command line ---- */

static int take_option(struct img_cmd *cmd, struct wish *w, int c)
{
	if (c == 'g')
		return img_size_arg(cmd, "granularity", optarg, &w->granularity);
	if (c == 'n')
		w->disabled = true;
	else if (c == 's')
		w->source = optarg;
	else if (c == 'S')
		w->source_image = optarg;
	else if (c == 'F')
		w->source_format = optarg;
	else
		return img_common_opt(cmd, c);
	return 0;
}

static int check_wish(const struct img_cmd *cmd, const struct wish *w)
{
	if (w->what != 'a' && (w->granularity || w->disabled))
		return cow_cli_misuse(&cli, "-g and -n are for a new bitmap, -a");
	if ((w->what == 'm') != !!w->source)
		return cow_cli_misuse(&cli, "-m and -s belong together");
	if (!w->source && (w->source_image || w->source_format))
		return cow_cli_misuse(&cli, "-S and -F are for -m");
	if (w->source_format && !w->source_image)
		return cow_cli_misuse(&cli, "-F is for -S");
	if (w->what && w->what != 'D' && cmd->json)
		return cow_cli_misuse(&cli, "--output is for lists");
	return 0;
}

int cowimg_bitmap(int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE", NULL };
	struct img_cmd cmd = { .cli = &cli, .no_backing = true };
	struct wish w = { 0 };
	int c, status = 0, wishes = 0;

	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1) {
		if (c < 256 && c != '?' && strchr("lDarcedm", c)) {
			wishes++;
			w.what = c == 'l' ? 0 : c;
			w.name = optarg;
		} else {
			status = take_option(&cmd, &w, c);
		}
	}
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 1);
	if (!status && wishes > 1)
		status = cow_cli_misuse(&cli, "only one thing can be done at a time");
	if (!status)
		status = check_wish(&cmd, &w);
	if (!status)
		status = img_need_format(&cmd, argv[optind]);
	if (!status)
		status = w.what && w.what != 'D' ? change(&cmd, argv[optind], &w) :
			list(&cmd, argv[optind], w.what ? w.name : NULL);
	return img_finish(&cmd, status);
}
