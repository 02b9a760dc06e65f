// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg map: where each range of an image is stored, through all its layers
 * or from one of them down.
 */
#include "cowimg.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

static const struct cow_cli_opt opts[] = {
	IMG_CLI_OPEN,
	{ 's', "start-offset", "OFFSET", "first byte to list (default: 0)" },
	{ 'l', "max-length", "LENGTH", "bytes to list (default: to the end)" },
	{ IMG_OPT_LAYER, "layer", "N", "list layer N (0 is the image, 1 its base) and those below" },
	IMG_CLI_OUTPUT,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg map",
	.synopsis = "-f FORMAT [OPTION]... IMAGE",
	.summary = "Lists where each range of an image is stored.",
	.opts = opts,
};

static int walk(struct cow_chain *c, unsigned first, uint64_t virt, uint64_t end,
		struct cow_kv *kv)
{
	struct cow_extent ext;
	unsigned layer;
	int r;

	if (!kv)
		printf("%-18s %-18s %-5s %-8s %-18s %s\n", "Start", "Length", "Depth", "Kind",
		       "Offset", "File");
	for (; virt < end; virt += ext.len) {
		r = cow_chain_next_extent(c, first, virt, end, &ext, &layer);
		if (r)
			return r;
		if (kv) {
			cow_kv_object(kv, NULL);
			cow_chain_extent_kv(c, &ext, layer, kv);
			cow_kv_close(kv);
			continue;
		}
		printf("%-18" PRIu64 " %-18" PRIu64 " %-5u ", ext.virt, ext.len, layer);
		if (ext.kind == COW_DATA)
			printf("%-8s %-18" PRIu64 " %s\n", cow_extent_kind_name(&ext), ext.phys,
			       cow_chain_image(c, layer)->path);
		else
			printf("%s\n", cow_extent_kind_name(&ext));
	}
	return 0;
}

static int print_map(const struct img_cmd *cmd, struct cow_chain *c, unsigned layer,
		     uint64_t start, uint64_t end)
{
	struct cow_kv *kv;
	int r, ended;

	if (!cmd->json) {
		r = walk(c, layer, start, end, NULL);
		return r ? img_fail(cmd, r, NULL) : IMG_OK;
	}
	kv = cow_kv_new(stdout, COW_KV_JSON, IMG_SCHEMA);
	if (!kv)
		return img_fail(cmd, -ENOMEM, NULL);
	cow_kv_u64(kv, "size", cow_chain_image(c, layer)->size);
	cow_kv_list(kv, "map");
	r = walk(c, layer, start, end, kv);
	cow_kv_close(kv);
	ended = cow_kv_end(kv);
	if (!r)
		r = ended;
	return r ? img_fail(cmd, r, NULL) : IMG_OK;
}

int img_do_map(const struct img_cmd *cmd, const char *path, unsigned layer, uint64_t start,
	       uint64_t len)
{
	struct cow_chain *c;
	uint64_t size;
	int status;

	if (img_open(cmd, path, COW_OPEN_NODATA, &c))
		return IMG_FAILED;
	size = layer < cow_chain_depth(c) ? cow_chain_image(c, layer)->size : 0;
	if (layer >= cow_chain_depth(c))
		status = img_fail_msg(cmd, "%s: there is no layer %u, only 0 to %u", path, layer,
				      cow_chain_depth(c) - 1);
	else if (start > size)
		status = img_fail_msg(cmd, "%s: offset %" PRIu64 " is past the end (size %" PRIu64
				      ")", path, start, size);
	else
		status = print_map(cmd, c, layer, start, start + cow_min(len, size - start));
	return img_close(cmd, c, path, status);
}

int cowimg_map(int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE", NULL };
	struct img_cmd cmd = { .cli = &cli };
	uint64_t start = 0, len = UINT64_MAX, layer = 0;
	int c, status = 0;

	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1) {
		if (c == 's')
			status = img_size_arg(&cmd, "OFFSET", optarg, &start);
		else if (c == 'l')
			status = img_size_arg(&cmd, "LENGTH", optarg, &len);
		else if (c == IMG_OPT_LAYER)
			status = img_size_arg(&cmd, "layer", optarg, &layer);
		else
			status = img_common_opt(&cmd, c);
	}
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 1);
	if (!status)
		status = img_need_format(&cmd, argv[optind]);
	if (!status)
		status = img_do_map(&cmd, argv[optind], (unsigned)cow_min(layer, COW_CHAIN_DEPTH),
				    start, len);
	return img_finish(&cmd, status);
}
