// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg measure: how much room a new image takes, before it is made. The format
 * tells what its tables take; how much data there is, the source's map.
 */
#include "cowimg.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

static const struct cow_cli_opt opts[] = {
	IMG_CLI_FORMAT,
	{ 'O', "output-format", "FORMAT", "format of the new image (default: raw)" },
	{ 'o', "options", "KEY=VALUE,...",
	  "options of that format for creating; '-o help' lists them" },
	{ IMG_OPT_SIZE, "size", "SIZE", "measure an image of this size without data" },
	IMG_CLI_BACKING,
	IMG_CLI_OUTPUT,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg measure",
	.synopsis = "-f FORMAT [-O FORMAT] [OPTION]... IMAGE\n"
		    "--size SIZE [-O FORMAT] [OPTION]...",
	.summary = "Tells how much room a new image takes.",
	.opts = opts,
};

/* Units of the new image that have data. */
static int count_units(struct cow_chain *c, uint64_t unit, uint64_t *ret)
{
	uint64_t size = cow_chain_size(c), next = 0, n = 0;	/* @next: not counted yet */
	struct cow_extent e;
	unsigned layer;
	int r;

	for (uint64_t virt = 0; virt < size; virt += e.len) {
		uint64_t first, last;

		r = cow_chain_next_extent(c, 0, virt, size, &e, &layer);
		if (r)
			return r;
		if (e.kind != COW_DATA && e.kind != COW_ENCODED)
			continue;
		first = cow_max(virt / unit, next);
		last = (virt + e.len - 1) / unit;
		if (first <= last)
			n += last - first + 1;
		next = last + 1;
	}
	*ret = n;
	return 0;
}

static int report(const struct img_cmd *cmd, uint64_t required, uint64_t full)
{
	struct cow_kv *kv;
	int r;

	if (!cmd->json) {
		printf("required size: %" PRIu64 "\nfully allocated size: %" PRIu64 "\n", required, full);
		return IMG_OK;
	}
	kv = cow_kv_new(stdout, COW_KV_JSON, IMG_SCHEMA);
	if (!kv)
		return img_fail(cmd, -ENOMEM, NULL);
	cow_kv_u64(kv, "required_bytes", required);
	cow_kv_u64(kv, "fully_allocated_bytes", full);
	r = cow_kv_end(kv);
	return r ? img_fail(cmd, r, NULL) : IMG_OK;
}

/* @c NULL: there is no data. */
static int measure(const struct img_cmd *cmd, const struct img_cmd *target, struct cow_chain *c,
		   uint64_t size)
{
	struct cow_create_cfg cfg = { .format = target->format, .path = "the new image", .size = size,
				      .args = target->args };
	struct cow_measure m;
	struct cow_err err = { 0 };
	uint64_t units = 0;
	int r = cow_image_measure(&cfg, &m, &err);

	if (r)
		return img_fail(cmd, r, &err);
	if (!m.unit)
		return report(cmd, m.tables + size, m.tables + size);
	r = c ? count_units(c, m.unit, &units) : 0;
	if (r)
		return img_fail(cmd, r, NULL);
	return report(cmd, m.tables + units * m.unit, m.tables + cow_div_up(size, m.unit) * m.unit);
}

static int measure_image(const struct img_cmd *cmd, const struct img_cmd *target, const char *path)
{
	struct cow_chain *c;

	if (img_open(cmd, path, 0, &c))
		return IMG_FAILED;
	return img_close(cmd, c, path, measure(cmd, target, c, cow_chain_size(c)));
}

static int check_args(struct img_cmd *cmd, struct img_cmd *target, uint64_t size, int argc,
		      char **argv)
{
	static const char *const operands[] = { "IMAGE", NULL };
	int status = img_operands(target, argc, argv, operands, size ? 0 : 1);

	if (status)
		return status;
	if (!size)
		return img_need_format(cmd, argv[optind]);
	if (argc > optind)
		return cow_cli_misuse(&cli, "--size is instead of an image: '%s' is one operand too many",
				      argv[optind]);
	if (cmd->format)
		return cow_cli_misuse(&cli, "-f is the format of an image, but --size needs none");
	return 0;
}

int cowimg_measure(int argc, char **argv)
{
	struct img_cmd cmd = { .cli = &cli };
	struct img_cmd target = { .cli = &cli, .creates = true, .format = "raw" };
	uint64_t size = 0;
	int c, status = 0;

	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1) {
		if (c == 'O') {
			target.format = optarg;
		} else if (c == IMG_OPT_SIZE) {
			status = img_size_arg(&cmd, "SIZE", optarg, &size);
			if (!status && !size)
				status = cow_cli_misuse(&cli, "an image of 0 bytes is of no use");
		} else {
			status = img_common_opt(c == 'o' ? &target : &cmd, c);
		}
	}
	if (!status)
		status = check_args(&cmd, &target, size, argc, argv);
	if (!status)
		status = size ? measure(&cmd, &target, NULL, size) :
			measure_image(&cmd, &target, argv[optind]);
	cow_args_free(target.args);
	return img_finish(&cmd, status);
}
