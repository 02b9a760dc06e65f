// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg zero: makes a range read as zeroes. The work is shared with discard,
 * which differs only at the ragged edges of a range (see cow/map.h).
 */
#include "cowimg.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

static const struct cow_cli_opt opts[] = {
	IMG_CLI_OPEN,
	IMG_CLI_RANGE,
	IMG_CLI_PROGRESS,
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg zero",
	.synopsis = "-f FORMAT -l LENGTH [OPTION]... IMAGE",
	.summary = "Makes a range of an image read as zeroes.",
	.opts = opts,
};

static int clear(const struct img_cmd *cmd, struct cow_chain *c, bool discard, uint64_t off,
		 uint64_t len)
{
	uint64_t virt = off, end = off + len, next;
	struct img_progress p;
	int r = 0;

	img_progress_begin(&p, cmd);
	while (!r && virt < end) {
		if (img_progress_tick(&p, virt - off, len)) {
			r = -ECANCELED;
			break;
		}
		/* Steps end at aligned offsets: no new ragged edge inside the range. */
		next = cow_min(end, cow_round_down(virt, IMG_CLEAR_STEP) + IMG_CLEAR_STEP);
		r = discard ? cow_chain_discard(c, virt, next - virt) :
			      cow_chain_zero(c, virt, next - virt);
		if (!r)
			virt = next;
	}
	if (!r)
		img_progress_tick(&p, len, len);
	img_progress_end(&p);
	if (!r)
		return IMG_OK;
	return img_fail_msg(cmd, "%s after %" PRIu64 " of %" PRIu64 " bytes",
			    r == -ECANCELED ? img_progress_why(&p) : strerror(-r), virt - off,
			    len);
}

int img_do_clear(const struct img_cmd *cmd, const char *path, bool discard, uint64_t off,
		 uint64_t len)
{
	struct cow_chain *c;
	int status;

	if (img_open(cmd, path, COW_OPEN_WRITE, &c))
		return IMG_FAILED;
	status = img_in_bounds(cmd, path, off, len, cow_chain_size(c));
	if (!status)
		status = clear(cmd, c, discard, off, len);
	return img_close(cmd, c, path, status);
}

int img_clear_main(const struct cow_cli *verb, bool discard, int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE", NULL };
	struct img_cmd cmd = { .cli = verb };
	uint64_t off = 0, len = 0;
	int c, status = 0;

	while (!status && (c = cow_cli_next(verb, argc, argv)) != -1) {
		if (c == 's')
			status = img_size_arg(&cmd, "OFFSET", optarg, &off);
		else if (c == 'l')
			status = img_size_arg(&cmd, "LENGTH", optarg, &len);
		else
			status = img_common_opt(&cmd, c);
	}
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 1);
	if (!status)
		status = img_need_format(&cmd, argv[optind]);
	if (!status && !len)
		status = cow_cli_misuse(verb, "-l LENGTH, above 0, is missing");
	if (!status)
		status = img_do_clear(&cmd, argv[optind], discard, off, len);
	return img_finish(&cmd, status);
}

int cowimg_zero(int argc, char **argv)
{
	return img_clear_main(&cli, false, argc, argv);
}
