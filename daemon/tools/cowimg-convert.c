// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg convert: copies an image into a new one. Its command line, and that of the
 * programs that are a face of it; the work is done by cowimg-copy.c.
 */
#include "cowimg-copy.h"

#include <getopt.h>

static const struct cow_cli_opt opts[] = {
	IMG_CLI_FORMAT,
	{ 'O', "output-format", "FORMAT", "format of OUT (default: raw)" },
	{ 'o', "options", "KEY=VALUE,...",
	  "options of OUT's format for creating; '-o help' lists them" },
	{ 'b', "base", "BASE", "make OUT an overlay of BASE that holds only what differs" },
	{ 'F', "base-format", "FORMAT", "format of the base; required with -b" },
	{ 'c', "compress", NULL, "compress what OUT holds" },
	{ IMG_OPT_SOURCE_OPTIONS, "source-options", "KEY=VALUE,...",
	  "options of IMAGE's format, such as its snapshot" },
	IMG_CLI_BACKING,
	{ IMG_OPT_OVERWRITE, "overwrite", NULL, "OUT may exist, as a file or block device" },
	{ IMG_OPT_RESUME, "resume", NULL, "keep what is interrupted, in OUT.part, and go on from it" },
	{ IMG_OPT_VERIFY, "verify", NULL, "read OUT again and compare before it gets its name" },
	IMG_CLI_OUTPUT,
	IMG_CLI_PROGRESS,
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg convert",
	.synopsis = "-f FORMAT [-O FORMAT] [-b BASE -F FORMAT] [OPTION]... IMAGE OUT",
	.summary = "Copies an image into a new one. '-' is a pipe, for raw images.",
	.opts = opts,
};

/* What can go through a pipe, and what cannot. */
static int check_pipes(const struct convert *cv, const struct convert_target *t)
{
	bool raw = !strcmp(t->cmd.format, "raw");

	if (!cv->path && strcmp(cv->cmd->format, "raw"))
		return cow_cli_misuse(&cli, "only a raw image can come through a pipe");
	if (!cv->path && !raw && img_is_blkdev(cv->out_path))
		return cow_cli_misuse(&cli,
				      "what comes through a pipe can go to a block device as raw only");
	if (cv->out_path)
		return 0;
	if (!raw || t->base || cv->compress || t->cmd.args)
		return cow_cli_misuse(&cli, "only a plain raw image can go through a pipe");
	if (cv->verify)
		return cow_cli_misuse(&cli, "--verify cannot read a pipe again");
	if (cv->cmd->json)
		return cow_cli_misuse(&cli, "--output=json would go into the image");
	return cv->path ? 0 : cow_cli_misuse(&cli, "from a pipe to a pipe there is nothing to convert");
}

static int check_resume(const struct convert *cv, const struct convert_target *t)
{
	if (!cv->resumable)
		return 0;
	if (!cv->path || !cv->out_path)
		return cow_cli_misuse(&cli, "--resume cannot go on with a pipe");
	if (img_is_blkdev(cv->out_path) || t->overwrite)
		return cow_cli_misuse(&cli, "--resume makes a new file");
	if (cow_args_str(t->cmd.args, "data_file", NULL))
		return cow_cli_misuse(&cli, "--resume does not make an image with a data file");
	if (cv->verify)
		return cow_cli_misuse(&cli, "--verify knows only what was read at once: after --resume, "
				      "use 'cowimg compare'");
	return 0;
}

static int check_args(struct convert *cv, struct convert_target *t, int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE", "OUT", NULL };
	int status = img_operands(&t->cmd, argc, argv, operands, 2);

	if (status)
		return status;
	cv->path = img_file_arg(argv[optind]);
	cv->out_path = img_file_arg(argv[optind + 1]);
	if (t->base && !t->base_format)
		return cow_cli_misuse(&cli, "-b needs -F: the format of a base is never guessed");
	if (t->base_format && !t->base)
		return cow_cli_misuse(&cli, "-F is the format of a base, but -b BASE is missing");
	status = img_need_format(cv->cmd, argv[optind]);
	if (!status)
		status = check_resume(cv, t);
	return status ? status : check_pipes(cv, t);
}

int convert_verb(const struct cow_cli *verb,
		 int (*check)(struct convert *cv, struct convert_target *t, int argc, char **argv),
		 int argc, char **argv)
{
	struct img_cmd cmd = { .cli = verb };
	struct convert_target t = { .cmd = { .cli = verb, .creates = true, .format = "raw" } };
	struct convert cv = { .cmd = &cmd };
	int c, status = 0;

	while (!status && (c = cow_cli_next(verb, argc, argv)) != -1)
		status = convert_opt(&cv, &t, c);
	if (!status)
		status = check(&cv, &t, argc, argv);
	if (!status)
		status = convert_image(&cv, &t);
	cow_args_free(t.cmd.args);
	return img_finish(&cmd, status);
}

int cowimg_convert(int argc, char **argv)
{
	return convert_verb(&cli, check_args, argc, argv);
}

int convert_face(const struct cow_cli *face, const char *from, const char *to,
		 const char *const *operands, int argc, char **argv)
{
	struct img_cmd cmd = { .cli = face, .format = from, .progress = true };
	struct convert_target t = { .cmd = { .cli = face, .creates = true, .format = to } };
	struct convert cv = { .cmd = &cmd };
	int c, status = 0;

	while (!status && (c = cow_cli_next(face, argc, argv)) != -1) {
		if (c == IMG_OPT_OVERWRITE)
			t.overwrite = true;
		else
			status = img_common_opt(&cmd, c);
	}
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 2);
	if (!status) {
		cv.out_path = argv[optind];
		cv.path = argv[optind + 1];
		status = convert_image(&cv, &t);
	}
	return img_finish(&cmd, status);
}
