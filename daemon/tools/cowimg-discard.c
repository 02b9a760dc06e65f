// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg discard: gives the space of a range back. Whole granules read as
 * zeroes afterwards; ragged edges keep their contents. The work is in
 * cowimg-zero.c.
 */
#include "cowimg.h"

static const struct cow_cli_opt opts[] = {
	IMG_CLI_OPEN,
	IMG_CLI_RANGE,
	IMG_CLI_PROGRESS,
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg discard",
	.synopsis = "-f FORMAT -l LENGTH [OPTION]... IMAGE",
	.summary = "Gives the space of a range back; whole blocks of it read as zeroes then.",
	.opts = opts,
};

int cowimg_discard(int argc, char **argv)
{
	return img_clear_main(&cli, true, argc, argv);
}
