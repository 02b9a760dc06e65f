// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reads of encoded extents: the stored form is read whole, the format decodes
 * it, and the bytes asked for are copied. The extent decoded last stays with its
 * layer, so that small reads in a row decode once. What an extent's place in the
 * file holds does not change while the chain is open: a change gives it another.
 */
#include <errno.h>

#include "engine.h"

struct encoded {
	struct cow_iocb cb;
	struct cow_rd *rd;
	struct cow_layer *layer;
	struct cow_map map;
	uint8_t *to;			/* in the buffer of @rd */
	uint64_t skip, n;		/* bytes of the extent that go there */
	uint8_t *raw;
	uint8_t plain[];
};

void encoded_forget(struct cow_layer *l)
{
	cow_free(l->encoded);
	l->encoded = NULL;
}

/* The stored form is there (@rc 0): decodes and copies. The result; @e is kept or released. */
static int finish(struct encoded *e, int rc)
{
	struct cow_image *img = &e->layer->img;

	if (rc == 0)
		rc = img->fmt->decode(img, &e->map, e->raw, e->plain);
	cow_free(e->raw);
	e->raw = NULL;
	if (rc) {
		cow_free(e);
		return rc;
	}
	memcpy(e->to, e->plain + e->skip, e->n);
	encoded_forget(e->layer);
	e->layer->encoded = e;
	return 0;
}

static void io_done(struct cow_iocb *cb, int result)
{
	struct encoded *e = cow_container_of(cb, struct encoded, cb);
	struct cow_rd *rd = e->rd;

	rd_io_ended(rd, finish(e, result));
}

static bool sane(const struct cow_layer *l, const struct cow_map *map)
{
	return l->img.fmt->decode && map->src.len && map->src.len <= COW_ENCODED_MAX &&
	       map->dst.len <= COW_ENCODED_MAX && l->img.block <= COW_ENCODED_MAX;
}

static struct encoded *encoded_new(struct cow_layer *l, const struct cow_map *map)
{
	struct encoded *e = cow_zalloc(sizeof(*e) + cow_max(l->img.block, map->dst.len));

	if (!e)
		return NULL;
	e->raw = cow_memalign(4096, cow_round_up(map->src.len, 4096));
	if (!e->raw) {
		cow_free(e);
		return NULL;
	}
	e->layer = l;
	e->map = *map;
	e->cb = (struct cow_iocb){
		.file = &l->file, .op = COW_IO_READ, .off = map->src.phys, .len = map->src.len,
		.iov[0] = { e->raw, map->src.len }, .iovcnt = 1, .done = io_done,
	};
	return e;
}

static bool is_last(const struct encoded *e, const struct cow_map *map)
{
	return e && e->map.gen == map->gen && e->map.dst.virt == map->dst.virt &&
	       e->map.dst.len == map->dst.len && e->map.src.phys == map->src.phys &&
	       e->map.src.len == map->src.len;
}

void encoded_read(struct cow_rd *rd, struct cow_layer *l, const struct cow_map *map, uint64_t v,
		  uint64_t n)
{
	struct encoded *e = l->encoded;
	int rc;

	if (is_last(e, map)) {
		memcpy(rd->buf + rd->pos, e->plain + (v - map->dst.virt), n);
		return;
	}
	if (!sane(l, map)) {
		rd->err = -EOPNOTSUPP;
		return;
	}
	e = encoded_new(l, map);
	if (!e) {
		rd->err = -ENOMEM;
		return;
	}
	e->rd = rd;
	e->to = rd->buf + rd->pos;
	e->skip = v - map->dst.virt;
	e->n = n;
	rd->pending++;
	if (!cow_io_start(&e->cb, &rc))
		return;
	rd->pending--;
	rc = finish(e, rc);
	if (rc && !rd->err)
		rd->err = rc;
}
