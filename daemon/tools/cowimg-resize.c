// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg resize: changes the virtual size of an image that nobody uses. A
 * running device is resized by cowctl.
 */
#include "cowimg.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

static const struct cow_cli_opt opts[] = {
	IMG_CLI_OPEN,
	{ IMG_OPT_SHRINK, "shrink", NULL, "a smaller size is meant: what lies beyond it is lost" },
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg resize",
	.synopsis = "-f FORMAT [OPTION]... IMAGE [+|-]SIZE",
	.summary = "Changes the virtual size of an image.",
	.opts = opts,
};

/* "10G" is a size, "+1G" and "-1G" are relative to @old. */
static int new_size(const struct img_cmd *cmd, const char *text, uint64_t old, uint64_t *ret)
{
	bool plus = *text == '+', minus = *text == '-';
	uint64_t v;
	int status;

	status = img_size_arg(cmd, "SIZE", text + (plus || minus), &v);
	if (status)
		return status;
	if (plus && !cow_add_ok(old, v, &v))
		return cow_cli_misuse(cmd->cli, "SIZE '%s' is too large", text);
	if (minus && v >= old)
		return img_fail_msg(cmd, "the image has only %" PRIu64 " bytes to shrink", old);
	if (minus)
		v = old - v;
	if (!v)
		return cow_cli_misuse(cmd->cli, "an image of 0 bytes is of no use");
	*ret = v;
	return 0;
}

int img_do_resize(const struct img_cmd *cmd, const char *path, const char *text, bool shrink)
{
	struct cow_err err = { 0 };
	struct cow_chain *c;
	uint64_t size, old;
	int r, status;

	/* A malformed size is found before the image is touched. */
	status = new_size(cmd, text, UINT64_MAX >> 1, &size);
	if (status)
		return status;
	if (img_open(cmd, path, COW_OPEN_WRITE, &c))
		return IMG_FAILED;
	old = cow_chain_size(c);
	status = new_size(cmd, text, old, &size);
	if (!status && size < old && !shrink)
		status = img_fail_msg(cmd, "%s: %" PRIu64 " bytes are less than the %" PRIu64
				      " it has; give --shrink if the end may be lost", path, size,
				      old);
	if (!status) {
		r = cow_chain_resize(c, size, shrink, &err);
		if (r)
			status = img_fail(cmd, r, &err);
	}
	status = img_close(cmd, c, path, status);
	if (status == IMG_OK && !cmd->quiet)
		printf("Image resized.\n");
	return status;
}

/* "-1G" is an operand, not a bundle of options: getopt must not see it. */
static bool is_relative(const char *arg)
{
	return arg[0] == '-' && arg[1] >= '0' && arg[1] <= '9';
}

int cowimg_resize(int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE", "SIZE", NULL };
	static const char *const operand[] = { "IMAGE", NULL };
	struct img_cmd cmd = { .cli = &cli };
	const char *size = NULL;
	bool shrink = false;
	int c, status = 0;

	if (argc > 1 && is_relative(argv[argc - 1])) {
		size = argv[--argc];
		argv[argc] = NULL;
	}
	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1) {
		if (c == IMG_OPT_SHRINK)
			shrink = true;
		else
			status = img_common_opt(&cmd, c);
	}
	if (!status)
		status = size ? img_operands(&cmd, argc, argv, operand, 1) :
				img_operands(&cmd, argc, argv, operands, 2);
	if (!status)
		status = img_need_format(&cmd, argv[optind]);
	if (!status)
		status = img_do_resize(&cmd, argv[optind], size ? size : argv[optind + 1], shrink);
	return img_finish(&cmd, status);
}
