// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Format "raw": a file or block device as it is, or a window of it. Every
 * byte is where it says; nothing is allocated, so there is nothing to commit.
 * Holes are the file system's business: libcow asks it where that matters.
 */
#include <errno.h>

#include "cow/format.h"

struct raw {
	uint64_t offset;	/* of the window in the file */
	bool window;		/* offset or size was given: the file is not ours to resize */
};

static const struct cow_opt opts[] = {
	{ "offset", COW_OPT_SIZE, "0", "first byte of the file that belongs to the disk" },
	{ "size", COW_OPT_SIZE, NULL, "bytes of the file that belong to the disk (default: all behind offset)" },
	{ NULL, 0, NULL, NULL },
};

static const struct cow_opt create_opts[] = {
	{ NULL, 0, NULL, NULL },
};

static int raw_probe(const uint8_t *head, size_t len, uint64_t file_size)
{
	(void)head;
	(void)len;
	(void)file_size;
	return 1;	/* anything can be raw */
}

static int raw_open(struct cow_image *img, const struct cow_args *args, struct cow_err *err)
{
	struct raw *r = img->priv;
	uint64_t file = cow_img_file_size(img, 0);
	uint64_t size, end;

	r->offset = cow_args_size(args, "offset", 0);
	if (r->offset >= file)
		return cow_err_set(err, -EINVAL, "%s: %s", img->path,
				   file == 0 ? "is empty" : "offset lies behind its end");
	size = cow_args_size(args, "size", file - r->offset);
	if (size == 0 || !cow_add_ok(r->offset, size, &end) || end > file)
		return cow_err_set(err, -EINVAL, "%s: offset and size reach behind its end of %llu bytes",
				   img->path, (unsigned long long)file);
	r->window = cow_args_str(args, "offset", NULL) || cow_args_str(args, "size", NULL);
	img->size = size;
	img->below_limit = size;
	img->linear = true;
	img->linear_shift = r->offset;
	return 0;
}

static void raw_close(struct cow_image *img)
{
	(void)img;
}

static int raw_map(struct cow_image *img, const struct cow_query *q, struct cow_map *ret)
{
	struct raw *r = img->priv;

	(void)q;
	*ret = (struct cow_map){
		.dst = { .len = img->size, .phys = r->offset, .kind = COW_DATA },
		.gen = img->gen,
	};
	return 0;
}

static void raw_commit(struct cow_image *img, const struct cow_map *map, int io)
{
	(void)img;
	(void)map;
	(void)io;
}

static int raw_create(struct cow_image *img, const struct cow_create *c, struct cow_err *err)
{
	int rc = cow_img_truncate(img, 0, c->size);

	return rc ? cow_err_sys(err, rc, "%s: %llu bytes", img->path, (unsigned long long)c->size) : 0;
}

static int raw_measure(struct cow_image *img, const struct cow_create *c, struct cow_measure *ret,
		       struct cow_err *err)
{
	(void)img;
	(void)c;
	(void)err;
	*ret = (struct cow_measure){ 0 };
	return 0;
}

static int raw_resize(struct cow_image *img, uint64_t size, struct cow_err *err)
{
	struct raw *r = img->priv;
	int rc;

	if (r->window)
		return cow_err_set(err, -EINVAL, "%s: opened with offset or size, cannot be resized",
				   img->path);
	if (cow_img_is_blkdev(img, 0))
		return cow_err_set(err, -EOPNOTSUPP, "%s: a block device is resized by its own tools",
				   img->path);
	if (size == 0)
		return cow_err_set(err, -EINVAL, "%s: an image of 0 bytes is of no use", img->path);
	rc = cow_img_truncate(img, 0, size);
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	if (rc)
		return cow_err_sys(err, rc, "%s: %llu bytes", img->path, (unsigned long long)size);
	img->size = size;
	img->below_limit = size;
	return 0;
}

static struct cow_format raw_format = {
	.name = "raw",
	.desc = "plain file or block device",
	.version = "1",
	.caps = COW_CAP_WRITE | COW_CAP_DISCARD | COW_CAP_RESIZE | COW_CAP_CREATE,
	.priv_size = sizeof(struct raw),
	.opts = opts,
	.create_opts = create_opts,
	.probe = raw_probe,
	.open = raw_open,
	.close = raw_close,
	.map = raw_map,
	.commit = raw_commit,
	.create = raw_create,
	.resize = raw_resize,
	.measure = raw_measure,
};

COW_FORMAT_REGISTER(raw_format)
