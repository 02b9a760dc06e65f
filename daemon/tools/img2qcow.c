// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * img2qcow: the way blktap made a qcow image of a plain one. A thin face on cowimg
 * convert: the new image comes first, and the bar needs no option.
 */
#include "cowimg-copy.h"

static const struct cow_cli_opt opts[] = {
	{ IMG_OPT_OVERWRITE, "overwrite", NULL, "QCOW_FILENAME may exist" },
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "img2qcow",
	.synopsis = "[OPTION]... QCOW_FILENAME SRC_IMAGE",
	.summary = "Makes a qcow image of a raw one.",
	.opts = opts,
};

int main(int argc, char **argv)
{
	static const char *const operands[] = { "QCOW_FILENAME", "SRC_IMAGE", NULL };

	img_begin("img2qcow");
	return convert_face(&cli, "raw", "qcow", operands, argc, argv);
}
