// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg info: what an image is. Without --backing-chain its base is not
 * opened, so that an image whose base is lost still tells what it misses.
 */
#include "cowimg.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>

static const struct cow_cli_opt opts[] = {
	IMG_CLI_OPEN,
	{ IMG_OPT_BACKING_CHAIN, "backing-chain", NULL, "show the bases too" },
	IMG_CLI_OUTPUT,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg info",
	.synopsis = "-f FORMAT [OPTION]... IMAGE",
	.summary = "Shows what an image is.",
	.opts = opts,
};

static int show(const struct img_cmd *cmd, const char *path)
{
	struct cow_chain *c;
	struct cow_kv *kv;
	int r, status;

	if (img_open(cmd, path, COW_OPEN_NODATA, &c))
		return IMG_FAILED;
	kv = cow_kv_new(stdout, cmd->json ? COW_KV_JSON : COW_KV_TEXT, IMG_SCHEMA);
	if (!kv) {
		status = img_fail(cmd, -ENOMEM, NULL);
		return img_close(cmd, c, path, status);
	}
	cow_chain_info(c, kv);
	r = cow_kv_end(kv);
	status = r ? img_fail(cmd, r, NULL) : IMG_OK;
	return img_close(cmd, c, path, status);
}

int cowimg_info(int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE", NULL };
	struct img_cmd cmd = { .cli = &cli, .no_backing = true };
	int c, status = 0;

	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1) {
		if (c == IMG_OPT_BACKING_CHAIN)
			cmd.no_backing = false;
		else
			status = img_common_opt(&cmd, c);
	}
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 1);
	if (!status)
		status = img_need_format(&cmd, argv[optind]);
	if (!status)
		status = show(&cmd, argv[optind]);
	return img_finish(&cmd, status);
}
