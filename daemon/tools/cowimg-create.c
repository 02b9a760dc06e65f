// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg create: makes an image, on a base or without one. The file appears
 * under its name when it is complete, which is libcow's doing.
 */
#include "cowimg.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

static const struct cow_cli_opt opts[] = {
	IMG_CLI_FORMAT,
	{ 'b', "base", "BASE", "make an overlay of this image, which stays as it is" },
	{ 'F', "base-format", "FORMAT", "format of the base; required with -b" },
	IMG_CLI_OPTIONS,
	IMG_CLI_BACKING,
	{ IMG_OPT_OVERWRITE, "overwrite", NULL, "the file or block device may exist" },
	{ IMG_OPT_RESERVE, "reserve", NULL, "keep the room that the image takes when it is full" },
	IMG_CLI_OUTPUT,
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg create",
	.synopsis = "-f FORMAT [OPTION]... IMAGE SIZE\n"
		    "-f FORMAT -b BASE -F FORMAT [OPTION]... IMAGE [SIZE]",
	.summary = "Makes an image.",
	.opts = opts,
};

/* Asks the file system for the room of a full image; what the image reads as stays as it is. */
static int reserve(struct cow_chain *draft, const struct cow_measure *m, struct cow_err *err)
{
	uint64_t size = cow_chain_size(draft), bytes;
	struct cow_chain_file file;
	int r = cow_chain_file(draft, 0, &file);

	if (r || file.blkdev)
		return r;
	bytes = m->tables + (m->unit ? cow_round_up(size, m->unit) : size);
	if (!fallocate(file.fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes))
		return 0;
	return cow_err_sys(err, -errno, "%s: cannot reserve %" PRIu64 " bytes", file.path, bytes);
}

static int create_reserved(const struct cow_create_cfg *cfg, uint64_t *ret_size, struct cow_err *err)
{
	struct cow_chain *draft;
	struct cow_measure m;
	int r = cow_image_draft(cfg, &draft, err);

	if (r)
		return r;
	*ret_size = cow_chain_size(draft);
	r = cow_image_measure(cfg, &m, err);
	if (!r)
		r = reserve(draft, &m, err);
	if (!r)
		return cow_image_publish(draft, err);
	cow_chain_close(draft);
	return r;
}

int img_do_create(const struct img_cmd *cmd, const char *path, const struct img_create *what,
		  uint64_t *ret_size)
{
	struct cow_create_cfg cfg = {
		.format = cmd->format,
		.path = path,
		.size = what->size,
		.args = cmd->args,
		.backing = what->base,
		.backing_format = what->base_format,
		.base_backing = cmd->n_backing ? cmd->backing : NULL,
		.backing_dirs = cmd->n_dirs ? cmd->backing_dirs : NULL,
		.force = cmd->force,
		.exist_ok = what->overwrite,
	};
	struct img_progress hold;
	struct cow_err err = { 0 };
	int r;

	/* It takes no time; a signal in the middle waits so that nothing half stays behind. */
	img_progress_begin(&hold, cmd);
	r = what->reserve ? create_reserved(&cfg, ret_size, &err) :
		cow_image_create(&cfg, ret_size, &err);
	img_progress_end(&hold);
	return r ? img_fail(cmd, r, &err) : IMG_OK;
}

static int report(const struct img_cmd *cmd, const char *path, const struct img_create *what,
		  uint64_t size)
{
	struct cow_kv *kv;
	int r;

	if (!cmd->json) {
		printf("Created %s: %s, %" PRIu64 " bytes", path, cmd->format, size);
		if (what->base)
			printf(", over %s (%s)", what->base, what->base_format);
		printf("\n");
		return IMG_OK;
	}
	kv = cow_kv_new(stdout, COW_KV_JSON, IMG_SCHEMA);
	if (!kv)
		return img_fail(cmd, -ENOMEM, NULL);
	cow_kv_str(kv, "path", path);
	cow_kv_str(kv, "format", cmd->format);
	cow_kv_u64(kv, "size", size);
	if (what->base) {
		cow_kv_str(kv, "base", what->base);
		cow_kv_str(kv, "base_format", what->base_format);
	}
	r = cow_kv_end(kv);
	return r ? img_fail(cmd, r, NULL) : IMG_OK;
}

static int check_args(struct img_cmd *cmd, int argc, char **argv, struct img_create *what)
{
	static const char *const operands[] = { "IMAGE", "SIZE", NULL };
	int status = img_operands(cmd, argc, argv, operands, 1);

	if (status)
		return status;
	if (!cmd->format)
		return cow_cli_misuse(&cli, "-f FORMAT is missing");
	if (what->base && !what->base_format)
		return cow_cli_misuse(&cli, "-b needs -F: the format of a base is never guessed");
	if (what->base_format && !what->base)
		return cow_cli_misuse(&cli, "-F is the format of a base, but -b BASE is missing");
	if (argc - optind < 2)
		return what->base ? 0 : cow_cli_misuse(&cli, "SIZE is missing");
	status = img_size_arg(cmd, "SIZE", argv[optind + 1], &what->size);
	if (!status && !what->size)
		status = cow_cli_misuse(&cli, "an image of 0 bytes is of no use");
	return status;
}

int cowimg_create(int argc, char **argv)
{
	struct img_cmd cmd = { .cli = &cli, .creates = true };
	struct img_create what = { 0 };
	uint64_t size = 0;
	int c, status = 0;

	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1) {
		if (c == 'b')
			what.base = optarg;
		else if (c == 'F')
			what.base_format = optarg;
		else if (c == IMG_OPT_OVERWRITE)
			what.overwrite = true;
		else if (c == IMG_OPT_RESERVE)
			what.reserve = true;
		else
			status = img_common_opt(&cmd, c);
	}
	if (!status)
		status = check_args(&cmd, argc, argv, &what);
	if (!status)
		status = img_do_create(&cmd, argv[optind], &what, &size);
	if (!status && !cmd.quiet)
		status = report(&cmd, argv[optind], &what, size);
	return img_finish(&cmd, status);
}
