// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Format "zero": a read-only disk of zeroes without any file, as a base for
 * tests and as the smallest plugin to read.
 */
#include <errno.h>

#include "cow/format.h"

static const struct cow_opt opts[] = {
	{ "size", COW_OPT_SIZE, "1G", "virtual size in bytes" },
	{ NULL, 0, NULL, NULL },
};

static int zero_probe(const uint8_t *head, size_t len, uint64_t file_size)
{
	(void)head;
	(void)len;
	(void)file_size;
	return 0;
}

static int zero_open(struct cow_image *img, const struct cow_args *args, struct cow_err *err)
{
	img->size = cow_args_size(args, "size", COW_GIB(1));
	img->below_limit = img->size;
	if (img->size == 0 || img->size > INT64_MAX)
		return cow_err_set(err, -EINVAL, "%s: size must be 1 to %lld bytes", img->path,
				   (long long)INT64_MAX);
	return 0;
}

static void zero_close(struct cow_image *img)
{
	(void)img;
}

static int zero_map(struct cow_image *img, const struct cow_query *q, struct cow_map *ret)
{
	*ret = (struct cow_map){
		.dst = { .len = img->size, .kind = COW_HOLE },
		.gen = img->gen,
	};
	(void)q;
	return 0;
}

static struct cow_format zero_format = {
	.name = "zero",
	.desc = "reads as zeroes, holds nothing",
	.version = "1",
	.caps = COW_CAP_NOFILE,
	.opts = opts,
	.probe = zero_probe,
	.open = zero_open,
	.close = zero_close,
	.map = zero_map,
};

COW_FORMAT_REGISTER(zero_format)
