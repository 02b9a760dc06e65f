// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * qcow-create: the way blktap made a qcow image. A thin face on cowimg create.
 */
#include "cowimg.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

static const struct cow_cli_opt opts[] = {
	{ 'r', "reserve", NULL, "keep the room that the image takes when it is full" },
	{ 'F', "base-format", "FORMAT", "format of BACKING_FILENAME (default: raw)" },
	{ IMG_OPT_OVERWRITE, "overwrite", NULL, "FILENAME may exist" },
	IMG_CLI_QUIET,
	{ 'h', "usage", NULL, "the same as --help" },
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "qcow-create",
	.synopsis = "[-r] [-F FORMAT] [OPTION]... SIZE FILENAME [BACKING_FILENAME]",
	.summary = "Makes a qcow image of SIZE megabytes.",
	.opts = opts,
};

static int size_arg(const char *text, uint64_t *ret)
{
	char *end;
	uint64_t mb = strtoull(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || !mb)
		return cow_cli_misuse(&cli, "SIZE is a number of megabytes, not '%s'", text);
	if (mb > UINT64_MAX >> 20)
		return cow_cli_misuse(&cli, "%s megabytes are too many", text);
	*ret = mb << 20;
	return 0;
}

/* blktap looked at the base for its format. What only looks like one is not taken for it here. */
static int base_format(struct img_create *what)
{
	const char *like = what->base_format || !what->base ? NULL : img_looks_like(what->base);

	if (like && strcmp(like, "raw"))
		return cow_cli_misuse(&cli, "'%s' looks like %s: say with -F whether it is that, or raw",
				      what->base, like);
	if (what->base && !what->base_format)
		what->base_format = "raw";
	if (what->base_format && !what->base)
		return cow_cli_misuse(&cli, "-F is the format of a base, but BACKING_FILENAME is missing");
	return 0;
}

static int create(struct img_cmd *cmd, struct img_create *what, char **operands)
{
	uint64_t size;
	int status = size_arg(operands[0], &what->size);

	what->base = operands[2];
	if (!status)
		status = base_format(what);
	if (!status)
		status = img_do_create(cmd, operands[1], what, &size);
	if (!status && !cmd->quiet)
		printf("Created %s: qcow, %" PRIu64 " bytes\n", operands[1], size);
	return status;
}

int main(int argc, char **argv)
{
	static const char *const operands[] = { "SIZE", "FILENAME", "BACKING_FILENAME", NULL };
	struct img_cmd cmd = { .cli = &cli, .format = "qcow", .creates = true };
	struct img_create what = { 0 };
	bool usage = false;
	int c, status = 0;

	img_begin("qcow-create");
	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1) {
		if (c == 'r')
			what.reserve = true;
		else if (c == 'F')
			what.base_format = optarg;
		else if (c == IMG_OPT_OVERWRITE)
			what.overwrite = true;
		else if (c == 'h')
			usage = true;
		else
			status = img_common_opt(&cmd, c);
	}
	if (!status && usage) {
		cow_cli_help(stdout, &cli);
		return img_finish(&cmd, IMG_OK);
	}
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 2);
	if (!status)
		status = create(&cmd, &what, argv + optind);
	return img_finish(&cmd, status);
}
