// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg amend: changes options of an image that is there. What there is to change, and
 * how, is the format's.
 */
#include "cowimg.h"

#include <getopt.h>
#include <stdio.h>

static const struct cow_cli_opt opts[] = {
	IMG_CLI_FORMAT,
	{ 'o', "options", "KEY=VALUE,...", "what the options are to be; '-o help' lists them" },
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg amend",
	.synopsis = "-f FORMAT -o KEY=VALUE,... [OPTION]... IMAGE",
	.summary = "Changes options of an image; those that are not named stay.",
	.opts = opts,
};

static int amend(const struct img_cmd *cmd, const char *path)
{
	struct img_cmd alone = *cmd;
	struct cow_err err = { 0 };
	struct cow_chain *c;
	int r;

	alone.no_backing = true;
	alone.args = NULL;
	if (img_open(&alone, path, COW_OPEN_WRITE | COW_OPEN_NODATA, &c))
		return IMG_FAILED;
	r = cow_chain_amend(c, cmd->args, &err);
	r = img_close(cmd, c, path, r ? img_fail(cmd, r, &err) : IMG_OK);
	if (!r && !cmd->quiet)
		printf("Image amended.\n");
	return r;
}

int cowimg_amend(int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE", NULL };
	struct img_cmd cmd = { .cli = &cli, .amends = true };
	int c, status = 0;

	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1)
		status = img_common_opt(&cmd, c);
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 1);
	if (!status)
		status = img_need_format(&cmd, argv[optind]);
	if (!status && !cmd.args)
		status = cow_cli_misuse(&cli, "-o is missing: nothing is to be changed");
	if (!status)
		status = amend(&cmd, argv[optind]);
	return img_finish(&cmd, status);
}
