// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * qcow2raw: the way blktap made a plain image of a qcow one. A thin face on cowimg
 * convert: the new image comes first, and the bar needs no option.
 */
#include "cowimg-copy.h"

static const struct cow_cli_opt opts[] = {
	IMG_CLI_OPTIONS,
	IMG_CLI_BACKING,
	{ IMG_OPT_OVERWRITE, "overwrite", NULL, "DEST may exist, as a file or block device" },
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "qcow2raw",
	.synopsis = "[OPTION]... DEST QCOW_IMAGE",
	.summary = "Makes a raw image of a qcow one, with its bases.",
	.opts = opts,
};

int main(int argc, char **argv)
{
	static const char *const operands[] = { "DEST", "QCOW_IMAGE", NULL };

	img_begin("qcow2raw");
	return convert_face(&cli, "qcow", "raw", operands, argc, argv);
}
