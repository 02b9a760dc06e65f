// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * dscow_tool: the old name's short way to work on dscow overlays. A thin face
 * on the verbs of cowimg: it only maps its options to them, and prints a
 * dscow image's geometry in its own five lines.
 */
#include "cowimg.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

static const struct cow_cli_opt opts[] = {
	{ 'c', "create", NULL, "make OVERLAY over BASE, and show its geometry" },
	{ 's', "show", NULL, "show what an overlay is" },
	{ 'k', "check", NULL, "examine an overlay; exit status 0 sound, 1 failed, 2 damaged" },
	{ 'R', "repair", NULL, "the same, and repair what can be repaired" },
	{ 'm', "map", NULL, "list where each range is stored" },
	{ 'r', "resize", "SIZE", "change the virtual size, [+|-]SIZE" },
	{ 'C', "commit", NULL, "write the overlay's data into its base, and empty it" },
	{ IMG_OPT_REBASE, "rebase", NULL, "record the base anew, or another BASE" },
	{ 'b', "block-size", "BYTES", "of -c: unit of allocation (default: 64K)" },
	{ 'F', "base-format", "FORMAT", "of -c and --rebase: format of BASE (default: raw)" },
	IMG_CLI_OPTIONS,
	{ IMG_OPT_SHRINK, "shrink", NULL, "of -r: a smaller size is meant, the end is lost" },
	IMG_CLI_BACKING,
	IMG_CLI_OUTPUT,
	IMG_CLI_PROGRESS,
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "dscow_tool",
	.synopsis = "-c OVERLAY BASE [-b BYTES] [-F FORMAT] [-o KEY=VALUE,...]\n"
		    "-s|-k|-R|-m|-C [OPTION]... OVERLAY\n"
		    "-r [+|-]SIZE [--shrink] [OPTION]... OVERLAY\n"
		    "--rebase [-F FORMAT] [OPTION]... OVERLAY [BASE]",
	.summary = "Makes and manages dscow overlays.",
	.opts = opts,
};

struct job {
	struct img_cmd cmd;
	int verb;			/* its option's value; 0: none yet */
	const char *size, *base_format;
	bool shrink;
};

/* "Size: 1234", the value in column 15. */
static void line_u64(const char *label, uint64_t v)
{
	printf("%-13s %" PRIu64 "\n", label, v);
}

/* What comes from an image is shown without control characters. */
static void line_str(const char *label, const char *value)
{
	struct cow_err clean = { 0 };

	cow_err_set(&clean, -EIO, "%s", value);
	printf("%-13s %s\n", label, clean.msg);
}

static int print_geometry(const struct img_cmd *cmd, struct cow_image *img, const char *facts)
{
	uint64_t first;

	if (!img->block || !img_fact_u64(facts, "first_block", &first))
		return img_fail_msg(cmd, "%s: the format does not tell its geometry", img->path);
	line_u64("Size:", img->size);
	line_u64("First block:", first);
	line_u64("Block size:", img->block);
	line_u64("Blocks:", cow_div_up(img->size, img->block));
	line_u64("Bitmap count:", cow_div_up(cow_div_up(img->size, img->block), 32));
	return IMG_OK;
}

static int print_details(const struct img_cmd *cmd, struct cow_chain *c, const char *facts)
{
	struct cow_image *img = cow_chain_image(c, 0);
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };
	char text[1100];
	uint64_t v;
	int r;

	if (img_fact_str(facts, "uuid", text, sizeof(text)))
		line_str("UUID:", text);
	if (img_fact_u64(facts, "granule_size", &v))
		line_u64("Granule size:", v);
	line_str("Base:", *img->backing.path ? img->backing.path : "none");
	if (*img->backing.format)
		line_str("Base format:", img->backing.format);
	if (img->identity.size)
		line_u64("Base size:", img->identity.size);
	if (img_fact_str(facts, "state", text, sizeof(text)))
		line_str("State:", *text ? text : "clean");
	/* Counted by the check: a map cannot tell a present zero block from an absent one. */
	r = cow_chain_check(c, &rep, 0, &err);
	if (r)
		return img_fail(cmd, r, &err);
	line_u64("Present:", rep.data_bytes);
	return IMG_OK;
}

static int print_json(const struct img_cmd *cmd, struct cow_chain *c)
{
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };
	struct cow_kv *kv;
	int r;

	r = cow_chain_check(c, &rep, 0, &err);
	if (r)
		return img_fail(cmd, r, &err);
	kv = cow_kv_new(stdout, COW_KV_JSON, IMG_SCHEMA);
	if (!kv)
		return img_fail(cmd, -ENOMEM, NULL);
	cow_kv_u64(kv, "present_bytes", rep.data_bytes);
	cow_chain_info(c, kv);
	r = cow_kv_end(kv);
	return r ? img_fail(cmd, r, NULL) : IMG_OK;
}

/* @all: everything, else the five lines. The base is not needed. */
static int show(const struct img_cmd *cmd, const char *path, bool all)
{
	struct img_cmd alone = *cmd;
	struct cow_chain *c;
	char *facts;
	int status;

	alone.no_backing = true;
	alone.args = NULL;
	if (img_open(&alone, path, all ? COW_OPEN_CHECK : 0, &c))
		return IMG_FAILED;
	facts = img_facts(cow_chain_image(c, 0));
	if (!facts)
		status = img_fail(cmd, -ENOMEM, NULL);
	else if (all && cmd->json)
		status = print_json(cmd, c);
	else
		status = print_geometry(cmd, cow_chain_image(c, 0), facts);
	if (!status && all && !cmd->json)
		status = print_details(cmd, c, facts);
	free(facts);
	return img_close(cmd, c, path, status);
}

static int create(const struct job *job, char **operands)
{
	struct img_create what = {
		.base = operands[1],
		.base_format = job->base_format ? job->base_format : "raw",
	};
	uint64_t size;
	int status;

	status = img_do_create(&job->cmd, operands[0], &what, &size);
	return status || job->cmd.quiet ? status : show(&job->cmd, operands[0], false);
}

static int run(struct job *job, char **operands)
{
	const char *path = operands[0];

	switch (job->verb) {
	case 'c':
		return create(job, operands);
	case 's':
		return show(&job->cmd, path, true);
	case 'k':
		return img_do_check(&job->cmd, path, IMG_REPAIR_NONE);
	case 'R':
		return img_do_check(&job->cmd, path, IMG_REPAIR_ALL);
	case 'm':
		return img_do_map(&job->cmd, path, 0, 0, UINT64_MAX);
	case 'r':
		return img_do_resize(&job->cmd, path, job->size, job->shrink);
	case 'C':
		return img_do_commit(&job->cmd, path);
	default:
		return img_do_rebase(&job->cmd, path, operands[1],
				     job->base_format ? job->base_format : "raw");
	}
}

static int set_block_size(struct img_cmd *cmd, const char *text)
{
	uint64_t v;
	int status = img_size_arg(cmd, "block size", text, &v);

	if (status)
		return status;
	if (!cmd->args)
		cmd->args = cow_args_new();
	if (!cmd->args || cow_args_set(cmd->args, "block_size", text))
		return img_fail(cmd, -ENOMEM, NULL);
	return 0;
}

static int set_verb(struct job *job, int verb)
{
	if (job->verb && job->verb != verb)
		return cow_cli_misuse(&cli, "only one of -c, -s, -k, -R, -m, -r, -C and --rebase "
				      "at a time");
	job->verb = verb;
	job->cmd.creates = verb == 'c';
	if (verb == 'r')
		job->size = optarg;
	return 0;
}

static int take_option(struct job *job, int c)
{
	switch (c) {
	case 'c':
	case 's':
	case 'k':
	case 'R':
	case 'm':
	case 'r':
	case 'C':
	case IMG_OPT_REBASE:
		return set_verb(job, c);
	case 'b':
		return set_block_size(&job->cmd, optarg);
	case 'F':
		job->base_format = optarg;
		return 0;
	case IMG_OPT_SHRINK:
		job->shrink = true;
		return 0;
	default:
		return img_common_opt(&job->cmd, c);
	}
}

static int check_operands(struct job *job, int argc, char **argv)
{
	static const char *const one[] = { "OVERLAY", NULL };
	static const char *const two[] = { "OVERLAY", "BASE", NULL };

	switch (job->verb) {
	case 0:
		return cow_cli_misuse(&cli, "one of -c, -s, -k, -R, -m, -r, -C and --rebase is "
				      "missing");
	case 'c':
		return img_operands(&job->cmd, argc, argv, two, 2);
	case IMG_OPT_REBASE:
		return img_operands(&job->cmd, argc, argv, two, 1);
	default:
		return img_operands(&job->cmd, argc, argv, one, 1);
	}
}

int main(int argc, char **argv)
{
	struct job job = { .cmd = { .cli = &cli, .format = "dscow" } };
	int c, status = 0;

	img_begin("dscow_tool");
	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1)
		status = take_option(&job, c);
	if (!status)
		status = check_operands(&job, argc, argv);
	if (!status)
		status = run(&job, argv + optind);
	return img_finish(&job.cmd, status);
}
