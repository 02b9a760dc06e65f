// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg dd: copies a range of an image into a new image, or into one that is there.
 * Its command line, with operands as dd has them; the work is done by cowimg-copy.c.
 */
#include "cowimg-copy.h"

#include <getopt.h>

#define DD_BLOCK 512u	/* dd's, and qemu-img's */

static const struct cow_cli_opt opts[] = {
	IMG_CLI_FORMAT,
	{ 'O', "output-format", "FORMAT", "format of OUT (default: raw)" },
	{ 'o', "options", "KEY=VALUE,...",
	  "options of OUT's format, for creating unless conv=notrunc; '-o help' lists them" },
	{ IMG_OPT_SOURCE_OPTIONS, "source-options", "KEY=VALUE,...",
	  "options of IMAGE's format, such as its snapshot" },
	IMG_CLI_BACKING,
	{ IMG_OPT_OVERWRITE, "overwrite", NULL, "OUT may exist, and is replaced" },
	IMG_CLI_OUTPUT,
	IMG_CLI_PROGRESS,
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg dd",
	.synopsis = "-f FORMAT [-O FORMAT] [OPTION]... if=IMAGE of=OUT [bs=SIZE] [count=N] [skip=N] "
		    "[seek=N] [conv=notrunc]",
	.summary = "Copies N blocks of an image, from block 'skip' on, to block 'seek' of OUT: a new "
		   "image,\nor with conv=notrunc one that is there. 'of=-' is a pipe, for raw images.",
	.opts = opts,
};

enum { DD_IF, DD_OF, DD_BS, DD_COUNT, DD_SKIP, DD_SEEK, DD_CONV, DD_OPERANDS };

static const char *const names[DD_OPERANDS] = { "if", "of", "bs", "count", "skip", "seek", "conv" };

/* Values by name; NULL where one is not given. */
static int split_operands(int argc, char **argv, const char *values[DD_OPERANDS])
{
	for (int i = optind; i < argc; i++) {
		const char *eq = strchr(argv[i], '=');
		size_t n = eq ? (size_t)(eq - argv[i]) : 0, k = 0;

		while (k < DD_OPERANDS && (strncmp(argv[i], names[k], n) || names[k][n] || !n))
			k++;
		if (k == DD_OPERANDS)
			return cow_cli_misuse(&cli, "'%s' is not if=, of=, bs=, count=, skip=, seek= or conv=",
					      argv[i]);
		if (values[k])
			return cow_cli_misuse(&cli, "%s= is given twice", names[k]);
		if (!eq[1])
			return cow_cli_misuse(&cli, "%s= has no value", names[k]);
		values[k] = eq + 1;
	}
	return 0;
}

/* @operand blocks of @bs bytes. */
static int blocks_arg(const struct img_cmd *cmd, const char *const *values, int operand, uint64_t bs,
		      uint64_t *ret)
{
	int status = values[operand] ? img_size_arg(cmd, names[operand], values[operand], ret) : 0;

	if (!status && values[operand] && !cow_mul_ok(*ret, bs, ret))
		status = cow_cli_misuse(&cli, "%s=%s is too large", names[operand], values[operand]);
	return status;
}

static int set_range(struct convert *cv, const char *const *values)
{
	uint64_t bs = DD_BLOCK;
	int status = values[DD_BS] ? img_size_arg(cv->cmd, "bs", values[DD_BS], &bs) : 0;

	cv->ranged = true;
	cv->len = UINT64_MAX;
	if (!status && !bs)
		status = cow_cli_misuse(&cli, "blocks of 0 bytes are of no use");
	if (!status)
		status = blocks_arg(cv->cmd, values, DD_COUNT, bs, &cv->len);
	if (!status)
		status = blocks_arg(cv->cmd, values, DD_SKIP, bs, &cv->from);
	if (!status)
		status = blocks_arg(cv->cmd, values, DD_SEEK, bs, &cv->begin);
	if (!status && !cv->len)
		status = cow_cli_misuse(&cli, "count=0 copies nothing");
	return status;
}

static int check_out(const struct convert *cv, const struct convert_target *t)
{
	if (cv->into && t->overwrite)
		return cow_cli_misuse(&cli, "conv=notrunc writes into OUT, --overwrite replaces it: not both");
	if (cv->out_path && !cv->into && img_is_blkdev(cv->out_path))
		return cow_cli_misuse(&cli, "'%s' is a block device, and there: say conv=notrunc",
				      cv->out_path);
	if (cv->out_path)
		return 0;
	if (strcmp(t->cmd.format, "raw") || t->cmd.args)
		return cow_cli_misuse(&cli, "only a plain raw image can go through a pipe");
	if (cv->into || cv->begin)
		return cow_cli_misuse(&cli, "a pipe has no place for seek= and conv=notrunc");
	if (cv->cmd->json)
		return cow_cli_misuse(&cli, "--output=json would go into the image");
	return 0;
}

static int check_args(struct convert *cv, struct convert_target *t, int argc, char **argv)
{
	static const char *const none[] = { NULL };
	const char *values[DD_OPERANDS] = { NULL };
	int status = t->cmd.list_options ? img_operands(&t->cmd, optind, argv, none, 0) : 0;

	if (!status)
		status = split_operands(argc, argv, values);
	if (status)
		return status;
	if (!values[DD_IF] || !img_file_arg(values[DD_IF]))
		return cow_cli_misuse(&cli, "if=IMAGE is missing; what comes through a pipe is put into an "
				      "image by 'cowimg write'");
	if (!values[DD_OF])
		return cow_cli_misuse(&cli, "of=OUT is missing; 'of=-' is standard output");
	if (values[DD_CONV] && strcmp(values[DD_CONV], "notrunc"))
		return cow_cli_misuse(&cli, "conv= knows only 'notrunc', not '%s'", values[DD_CONV]);
	cv->path = values[DD_IF];
	cv->out_path = img_file_arg(values[DD_OF]);
	cv->into = values[DD_CONV];
	t->cmd.creates = !cv->into;
	status = img_need_format(cv->cmd, cv->path);
	if (!status)
		status = set_range(cv, values);
	return status ? status : check_out(cv, t);
}

int cowimg_dd(int argc, char **argv)
{
	return convert_verb(&cli, check_args, argc, argv);
}
