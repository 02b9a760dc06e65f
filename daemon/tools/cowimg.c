// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg: offline work on disk images. This file only finds the verb; each
 * verb is a file of its own. Images that a daemon serves are cowctl's.
 */
#include "cowimg.h"

#include <stdio.h>

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *summary;
} verbs[] = {
	{ "amend", cowimg_amend, "change options of an image" },
	{ "bench", cowimg_bench, "tell how fast an image answers requests" },
	{ "bitmap", cowimg_bitmap, "list and handle the bitmaps of changes inside an image" },
	{ "check", cowimg_check, "examine an image, and repair it" },
	{ "commit", cowimg_commit, "write an overlay's data into its base" },
	{ "compare", cowimg_compare, "tell whether two images read the same" },
	{ "convert", cowimg_convert, "copy an image into a new one, of any format" },
	{ "create", cowimg_create, "make an image" },
	{ "dd", cowimg_dd, "copy a range of an image into another" },
	{ "diff", cowimg_diff, "list the ranges in which two images differ" },
	{ "discard", cowimg_discard, "give a range's space back; it reads as zeroes" },
	{ "info", cowimg_info, "show what an image is" },
	{ "map", cowimg_map, "list where each range of an image is stored" },
	{ "measure", cowimg_measure, "tell how much room a new image takes" },
	{ "read", cowimg_read, "copy a range of an image out" },
	{ "rebase", cowimg_rebase, "give an overlay another base" },
	{ "resize", cowimg_resize, "change the virtual size" },
	{ "snapshot", cowimg_snapshot, "list, make, apply and delete the snapshots inside an image" },
	{ "write", cowimg_write, "write bytes into an image" },
	{ "zero", cowimg_zero, "make a range read as zeroes" },
};

static const struct cow_cli_opt opts[] = {
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg",
	.synopsis = "VERB [OPTION]... IMAGE...",
	.summary = "Offline work on disk images. 'cowimg VERB --help' explains a verb.",
	.opts = opts,
};

static void help(void)
{
	cow_cli_help(stdout, &cli);
	printf("\nVerbs:\n");
	for (size_t i = 0; i < COW_ARRAY_SIZE(verbs); i++)
		printf("  %-10s %s\n", verbs[i].name, verbs[i].summary);
}

int main(int argc, char **argv)
{
	img_begin("cowimg");
	if (argc < 2)
		return cow_cli_misuse(&cli, "a VERB is missing");
	if (!strcmp(argv[1], "--help")) {
		struct img_cmd cmd = { .cli = &cli };

		help();
		return img_finish(&cmd, IMG_OK);
	}
	if (argv[1][0] == '-') {
		if (cow_cli_next(&cli, argc, argv) == -1)
			return cow_cli_misuse(&cli, "the VERB comes first");
		return IMG_MISUSE;
	}
	for (size_t i = 0; i < COW_ARRAY_SIZE(verbs); i++)
		if (!strcmp(argv[1], verbs[i].name))
			return verbs[i].run(argc - 1, argv + 1);
	return cow_cli_misuse(&cli, "'%s' is not a verb", argv[1]);
}
