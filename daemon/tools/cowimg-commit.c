// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg commit: writes an overlay's data into its base and empties the
 * overlay. Stopping in the middle is harmless: overlay and base together read
 * the same at every point, and commit can be run again.
 */
#include "cowimg.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>

static const struct cow_cli_opt opts[] = {
	IMG_CLI_OPEN,
	IMG_CLI_PROGRESS,
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg commit",
	.synopsis = "-f FORMAT [OPTION]... IMAGE",
	.summary = "Writes an overlay's data into its base, and empties the overlay.",
	.opts = opts,
};

static bool progress(void *opaque, uint64_t done, uint64_t total)
{
	return img_progress_tick(opaque, done, total);
}

static int commit(const struct img_cmd *cmd, const char *path, struct cow_chain *c)
{
	struct img_progress p;
	struct cow_err err = { 0 };
	int r;

	img_progress_begin(&p, cmd);
	r = cow_chain_commit(c, progress, &p, &err);
	img_progress_end(&p);
	if (r == -ECANCELED && p.stopped_by)
		return img_fail_msg(cmd, "%s: %s; the image reads the same as before, and commit "
				    "can be run again", path, img_progress_why(&p));
	return r ? img_fail(cmd, r, &err) : IMG_OK;
}

int img_do_commit(const struct img_cmd *cmd, const char *path)
{
	struct cow_chain *c;
	int status;

	if (img_open(cmd, path, COW_OPEN_WRITE, &c))
		return IMG_FAILED;
	status = img_spare_snapshots(cmd, path, c);
	if (status == IMG_OK)
		status = commit(cmd, path, c);
	status = img_close(cmd, c, path, status);
	if (status == IMG_OK && !cmd->quiet)
		printf("Image committed.\n");
	return status;
}

int cowimg_commit(int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE", NULL };
	struct img_cmd cmd = { .cli = &cli };
	int c, status = 0;

	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1)
		status = img_common_opt(&cmd, c);
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 1);
	if (!status)
		status = img_need_format(&cmd, argv[optind]);
	if (!status)
		status = img_do_commit(&cmd, argv[optind]);
	return img_finish(&cmd, status);
}
