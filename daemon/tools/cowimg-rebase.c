// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg rebase: records an overlay's base anew, after the base was moved,
 * copied, or its time stamp changed. No data is copied, so only a base with
 * the same contents makes sense; -u says that this is understood, as it does
 * for qemu-img.
 */
#include "cowimg.h"

#include <getopt.h>
#include <stdio.h>

static const struct cow_cli_opt opts[] = {
	IMG_CLI_OPEN,
	{ 'u', "unsafe", NULL, "record only, copy nothing; required" },
	{ 'b', "base", "BASE", "the base from now on (default: the recorded one)" },
	{ 'F', "base-format", "FORMAT", "format of the base; required with -b" },
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg rebase",
	.synopsis = "-u -f FORMAT [-b BASE -F FORMAT] [OPTION]... IMAGE",
	.summary = "Records an overlay's base anew. With --force even one whose contents differ.",
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

static int rebase_other(const struct img_cmd *cmd, const char *path, const char *base,
			const char *base_format)
{
	struct img_cmd top = *cmd, below = *cmd;
	struct cow_chain *c = NULL, *b = NULL;
	struct cow_err err = { 0 };
	int r, status = IMG_FAILED;

	top.no_backing = true;
	below.format = base_format;
	below.args = NULL;
	if (!img_open(&below, base, 0, &b) && !img_open(&top, path, COW_OPEN_WRITE, &c)) {
		r = cow_chain_rebase(c, b, base, cmd->force, &err);
		status = r ? img_fail(cmd, r, &err) : IMG_OK;
	}
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
		else
			status = img_common_opt(&cmd, c);
	}
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 1);
	if (!status && !unsafe)
		status = cow_cli_misuse(&cli, "only -u is offered: the base is recorded, and no "
					"data copied");
	if (!status && !base != !base_format)
		status = cow_cli_misuse(&cli, "-b BASE and -F FORMAT go together");
	if (!status)
		status = img_need_format(&cmd, argv[optind]);
	if (!status)
		status = img_do_rebase(&cmd, argv[optind], base, base_format);
	return img_finish(&cmd, status);
}
