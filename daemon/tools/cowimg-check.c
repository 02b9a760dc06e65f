// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg check: examines one image, without its base, and repairs it when
 * asked. The exit status says what is left afterwards.
 */
#include "cowimg.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

#define CHECK_NOT_OFFERED 63	/* qemu-img's, for a format without a check */

static const struct cow_cli_opt opts[] = {
	IMG_CLI_FORMAT,
	IMG_CLI_OPTIONS,
	{ 'r', "repair-mode", "leaks|all", "repair leaks if there is nothing else, or what can be repaired" },
	{ IMG_OPT_REPAIR, "repair", NULL, "the same as '-r all'" },
	IMG_CLI_OUTPUT,
	IMG_CLI_PROGRESS,
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg check",
	.synopsis = "-f FORMAT [OPTION]... IMAGE",
	.summary = "Examines an image. Exit status: 0 sound, 1 the check failed, 2 damaged, 3 leaks.",
	.opts = opts,
};

struct checking {
	struct cow_report rep;
	const struct img_cmd *cmd;
	struct img_progress progress;
	struct cow_kv *kv;
};

static void say(struct cow_report *rep, const char *sentence)
{
	struct checking *ck = cow_container_of(rep, struct checking, rep);

	if (ck->kv)
		cow_kv_str(ck->kv, NULL, sentence);
	else if (!ck->cmd->quiet)
		printf("%s\n", sentence);
}

static bool progress(struct cow_report *rep, uint64_t done, uint64_t total)
{
	struct checking *ck = cow_container_of(rep, struct checking, rep);

	return img_progress_tick(&ck->progress, done, total);
}

/*
 * One pass; after repairs a second, silent one counts what is left. A repair of leaks alone is a
 * repair of an image that has nothing else, which a silent pass before tells.
 */
static int run(struct checking *ck, struct cow_chain *c, enum img_repair repair, struct cow_err *err)
{
	uint64_t repaired;
	int r = 0;

	ck->rep = (struct cow_report){ .progress = progress };
	if (repair == IMG_REPAIR_LEAKS)
		r = cow_chain_check(c, &ck->rep, 0, err);
	if (r)
		return r;
	if (ck->rep.corruptions)
		repair = IMG_REPAIR_NONE;
	ck->rep = (struct cow_report){ .say = say, .progress = progress };
	r = cow_chain_check(c, &ck->rep, repair ? COW_CHECK_REPAIR : 0, err);
	repaired = ck->rep.repaired;
	if (r || !repaired)
		return r;
	ck->rep = (struct cow_report){ .progress = progress };
	r = cow_chain_check(c, &ck->rep, 0, err);
	ck->rep.repaired = repaired;
	return r;
}

static void print_result(const struct checking *ck, int r)
{
	const struct cow_report *rep = &ck->rep;

	if (ck->kv) {
		cow_kv_u64(ck->kv, "corruptions", rep->corruptions);
		cow_kv_u64(ck->kv, "leaks", rep->leaks);
		cow_kv_u64(ck->kv, "repaired", rep->repaired);
		cow_kv_u64(ck->kv, "blocks_checked", rep->blocks_checked);
		cow_kv_u64(ck->kv, "data_bytes", rep->data_bytes);
		cow_kv_bool(ck->kv, "complete", !r);
		return;
	}
	if (r || ck->cmd->quiet)
		return;
	if (rep->repaired)
		printf("%" PRIu64 " problem%s repaired.\n", rep->repaired,
		       rep->repaired == 1 ? "" : "s");
	if (rep->corruptions || rep->leaks)
		printf("%" PRIu64 " corruptions and %" PRIu64 " leaks %s.\n", rep->corruptions,
		       rep->leaks, rep->repaired ? "are left" : "were found");
	else
		printf("No errors %s in the image.\n", rep->repaired ? "are left" : "were found");
}

static int status_of(const struct checking *ck, int r, const struct cow_err *err)
{
	if (r == -ECANCELED && ck->progress.stopped_by)
		return img_fail_msg(ck->cmd, "%s; the check is not complete",
				    img_progress_why(&ck->progress));
	if (r) {
		img_fail(ck->cmd, r, err);
		return r == -EOPNOTSUPP ? CHECK_NOT_OFFERED : IMG_FAILED;
	}
	if (ck->rep.corruptions)
		return IMG_CORRUPT;
	return ck->rep.leaks ? IMG_LEAKS : IMG_OK;
}

int img_do_check(const struct img_cmd *cmd, const char *path, enum img_repair repair)
{
	struct checking ck = { .cmd = cmd };
	struct img_cmd alone = *cmd;
	struct cow_err err = { 0 };
	struct cow_chain *c;
	int r, status;

	alone.no_backing = true;
	if (img_open(&alone, path, COW_OPEN_CHECK | (repair ? COW_OPEN_WRITE : 0), &c))
		return IMG_FAILED;
	if (cmd->json) {
		ck.kv = cow_kv_new(stdout, COW_KV_JSON, IMG_SCHEMA);
		if (!ck.kv)
			return img_close(cmd, c, path, img_fail(cmd, -ENOMEM, NULL));
		cow_kv_str(ck.kv, "path", path);
		cow_kv_str(ck.kv, "format", cmd->format);
		cow_kv_list(ck.kv, "findings");
	}
	img_progress_begin(&ck.progress, cmd);
	r = run(&ck, c, repair, &err);
	img_progress_end(&ck.progress);
	if (ck.kv)
		cow_kv_close(ck.kv);
	print_result(&ck, r);
	status = status_of(&ck, r, &err);
	if (ck.kv && cow_kv_end(ck.kv) && status == IMG_OK)
		status = IMG_FAILED;
	return img_close(cmd, c, path, status);
}

int cowimg_check(int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE", NULL };
	struct img_cmd cmd = { .cli = &cli };
	enum img_repair repair = IMG_REPAIR_NONE;
	int c, status = 0;

	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1) {
		if (c == 'r' && !strcmp(optarg, "leaks"))
			repair = IMG_REPAIR_LEAKS;
		else if (c == 'r' && strcmp(optarg, "all"))
			status = cow_cli_misuse(&cli, "-r is 'leaks' or 'all', not '%s'", optarg);
		else if (c == 'r' || c == IMG_OPT_REPAIR)
			repair = IMG_REPAIR_ALL;
		else
			status = img_common_opt(&cmd, c);
	}
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 1);
	if (!status)
		status = img_need_format(&cmd, argv[optind]);
	if (!status)
		status = img_do_check(&cmd, argv[optind], repair);
	return img_finish(&cmd, status);
}
