// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg snapshot: the snapshots inside an image that nobody uses. The image's
 * base is not opened: snapshots are about what the image itself has.
 */
#include "cowimg.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

static const struct cow_cli_opt opts[] = {
	{ 'l', "list", NULL, "list the snapshots (the default)" },
	{ 'c', "create", "NAME", "keep what the disk is now, under this name" },
	{ 'a', "apply", "SNAPSHOT", "make the disk what it was; what it is now is lost" },
	{ 'd', "delete", "SNAPSHOT", "forget a snapshot" },
	IMG_CLI_FORMAT,
	IMG_CLI_OPTIONS,
	IMG_CLI_OUTPUT,
	IMG_CLI_QUIET,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg snapshot",
	.synopsis = "-f FORMAT [-l | -c NAME | -a SNAPSHOT | -d SNAPSHOT] [OPTION]... IMAGE",
	.summary = "Handles the snapshots inside an image. SNAPSHOT is an ID or a name.",
	.opts = opts,
};

static int list_json(void *opaque, const struct cow_snapshot *s)
{
	struct cow_kv *kv = opaque;

	cow_kv_object(kv, NULL);
	cow_kv_str(kv, "id", s->id);
	cow_kv_str(kv, "name", s->name);
	cow_kv_u64(kv, "date_seconds", s->date_sec);
	cow_kv_u64(kv, "virtual_size", s->size);
	cow_kv_u64(kv, "vm_state_size", s->vm_state_bytes);
	cow_kv_close(kv);
	return 0;
}

static int list_human(void *opaque, const struct cow_snapshot *s)
{
	time_t when = (time_t)s->date_sec;
	char date[32] = "";
	bool *any = opaque;
	struct tm tm;

	if (!*any)
		printf("%-6s %-19s %15s %15s  %s\n", "ID", "DATE", "SIZE", "VM STATE", "NAME");
	*any = true;
	if (localtime_r(&when, &tm))
		strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
	img_print_name(s->id);
	for (size_t n = strlen(s->id); n < 6; n++)
		putchar(' ');
	printf(" %-19s %15" PRIu64 " %15" PRIu64 "  ", date, s->size, s->vm_state_bytes);
	img_print_name(s->name);
	putchar('\n');
	return 0;
}

static int list(const struct img_cmd *cmd, const char *path)
{
	struct cow_err err = { 0 };
	struct cow_kv *kv = NULL;
	struct cow_chain *c;
	bool any = false;
	int r, ended;

	if (img_open(cmd, path, COW_OPEN_NODATA, &c))
		return IMG_FAILED;
	if (!cmd->json) {
		r = cow_chain_snapshots(c, list_human, &any, &err);
		return img_close(cmd, c, path, r ? img_fail(cmd, r, &err) : IMG_OK);
	}
	kv = cow_kv_new(stdout, COW_KV_JSON, IMG_SCHEMA);
	r = kv ? 0 : -ENOMEM;
	if (kv) {
		cow_kv_list(kv, "snapshots");
		r = cow_chain_snapshots(c, list_json, kv, &err);
		cow_kv_close(kv);
		ended = cow_kv_end(kv);
		r = r ? r : ended;
	}
	return img_close(cmd, c, path, r ? img_fail(cmd, r, &err) : IMG_OK);
}

static int change(const struct img_cmd *cmd, const char *path, enum cow_snapshot_op op, const char *name)
{
	static const char *const done[] = { "made", "applied", "deleted" };
	struct img_progress hold;
	struct cow_err err = { 0 };
	struct cow_chain *c;
	int r, status;

	if (img_open(cmd, path, COW_OPEN_WRITE | COW_OPEN_NODATA, &c))
		return IMG_FAILED;
	/* A signal in the middle waits: stopped there, space would be lost until a repair. */
	img_progress_begin(&hold, cmd);
	r = cow_chain_snapshot(c, op, name, &err);
	img_progress_end(&hold);
	status = img_close(cmd, c, path, r ? img_fail(cmd, r, &err) : IMG_OK);
	if (status == IMG_OK && !cmd->quiet)
		printf("Snapshot %s.\n", done[op]);
	return status;
}

int cowimg_snapshot(int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE", NULL };
	struct img_cmd cmd = { .cli = &cli, .no_backing = true };
	enum cow_snapshot_op op = COW_SNAPSHOT_CREATE;
	const char *name = NULL;
	int c, status = 0, wishes = 0;

	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1) {
		wishes += c == 'l' || c == 'c' || c == 'a' || c == 'd';
		if (c == 'c' || c == 'a' || c == 'd') {
			name = optarg;
			op = c == 'c' ? COW_SNAPSHOT_CREATE : c == 'a' ? COW_SNAPSHOT_APPLY :
				COW_SNAPSHOT_DELETE;
		} else if (c != 'l') {
			status = img_common_opt(&cmd, c);
		}
	}
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 1);
	if (!status && wishes > 1)
		status = cow_cli_misuse(&cli, "-l, -c, -a and -d exclude each other");
	if (!status && name && cmd.json)
		status = cow_cli_misuse(&cli, "--output is for the list");
	if (!status)
		status = img_need_format(&cmd, argv[optind]);
	if (!status)
		status = name ? change(&cmd, argv[optind], op, name) : list(&cmd, argv[optind]);
	return img_finish(&cmd, status);
}
