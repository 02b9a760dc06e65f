// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reads of encoded extents: the stored form is read whole, the format decodes
 * it, and the bytes asked for are copied. The extents decoded last stay with their
 * layer, so that small reads in a row, of a few streams at a time, decode once; and
 * who asks for what is on its way already waits for that. What an extent's place in the
 * file holds does not change while the chain is open: a change gives it another.
 */
#include <errno.h>

#include "engine.h"

#define KEPT_BYTES (1u << 20)	/* a layer keeps as many extents as fit, at least one, */
#define KEPT_MAX 8u		/* at most so many: as there may be readers in a row */

struct reader {
	struct cow_list node;		/* in extent.others */
	struct cow_rd *rd;
	uint8_t *to;			/* in the buffer of @rd */
	uint64_t skip, n;		/* bytes of the extent that go there */
};

struct extent {
	struct cow_list node;		/* in encoded.ready or .coming */
	struct cow_layer *layer;
	struct cow_map map;
	struct cow_iocb cb;
	struct reader first;		/* while it is coming: who wants it */
	struct cow_list others;
	uint8_t *raw;
	size_t raw_room, room;
	uint8_t plain[];
};

/* What a layer has of them. */
struct encoded {
	struct cow_list ready;		/* the one used last is the last */
	struct cow_list coming;
	unsigned n_ready;
	uint8_t *raw;			/* a buffer for the next one's stored form, or NULL */
	size_t raw_room;
};

static struct encoded *of_layer(struct cow_layer *l)
{
	struct encoded *en = l->encoded ? l->encoded : cow_zalloc(sizeof(*en));

	if (en && !l->encoded) {
		cow_list_init(&en->ready);
		cow_list_init(&en->coming);
		l->encoded = en;
	}
	return en;
}

void encoded_forget(struct cow_layer *l)
{
	struct cow_list *node, *next;

	if (!l->encoded)
		return;
	cow_assert(cow_list_empty(&l->encoded->coming));
	cow_list_for_each_safe(node, next, &l->encoded->ready)
		cow_free(cow_list_entry(node, struct extent, node));
	cow_free(l->encoded->raw);
	cow_free(l->encoded);
	l->encoded = NULL;
}

static struct extent *find(struct cow_list *list, const struct cow_map *map)
{
	struct cow_list *node;

	cow_list_for_each(node, list) {
		struct extent *x = cow_list_entry(node, struct extent, node);

		if (x->map.gen == map->gen && x->map.dst.virt == map->dst.virt &&
		    x->map.dst.len == map->dst.len && x->map.src.phys == map->src.phys &&
		    x->map.src.len == map->src.len)
			return x;
	}
	return NULL;
}

/* ---- buffers ---- */

static unsigned kept(uint64_t room)
{
	return (unsigned)cow_max(cow_min(KEPT_BYTES / room, KEPT_MAX), 1);
}

/* One of those kept that may be given up, or a new one. */
static struct extent *take(struct encoded *en, size_t room)
{
	struct extent *x = NULL;

	if (en->n_ready >= kept(room)) {
		x = cow_list_entry(en->ready.next, struct extent, node);
		cow_list_del(&x->node);
		en->n_ready--;
	}
	if (x && x->room < room) {
		cow_free(x);
		x = NULL;
	}
	if (!x)
		x = cow_memalign(_Alignof(struct extent), sizeof(*x) + room);
	if (x)
		x->room = room;
	return x;
}

static bool take_raw(struct encoded *en, struct extent *x, size_t room)
{
	if (en->raw_room < room) {
		cow_free(en->raw);
		en->raw = cow_memalign(4096, room);
		en->raw_room = en->raw ? room : 0;
	}
	x->raw = en->raw;
	x->raw_room = en->raw_room;
	en->raw = NULL;
	en->raw_room = 0;
	return x->raw;
}

static void give_raw(struct encoded *en, struct extent *x)
{
	if (x->raw_room > en->raw_room) {
		cow_free(en->raw);
		en->raw = x->raw;
		en->raw_room = x->raw_room;
	} else {
		cow_free(x->raw);
	}
}

/* The one used last. Those used longest ago go where there are too many. */
static void keep(struct encoded *en, struct extent *x)
{
	cow_list_add_tail(&en->ready, &x->node);
	for (en->n_ready++; en->n_ready > kept(x->room); en->n_ready--) {
		struct extent *old = cow_list_entry(en->ready.next, struct extent, node);

		cow_list_del(&old->node);
		cow_free(old);
	}
}

/* ---- an extent comes ---- */

static void copy_out(const struct extent *x, const struct reader *r)
{
	memcpy(r->to, x->plain + r->skip, r->n);
}

/* The stored form is there (@rc 0): decodes it, and gives all readers their bytes. @x is gone, or kept. */
static int arrived(struct extent *x, struct cow_list *others, int rc)
{
	struct encoded *en = x->layer->encoded;
	struct cow_image *img = &x->layer->img;
	struct cow_list *node;

	if (rc == 0)
		rc = img->fmt->decode(img, &x->map, x->raw, x->plain);
	give_raw(en, x);
	if (rc) {
		cow_free(x);
		return rc;
	}
	copy_out(x, &x->first);
	cow_list_for_each(node, others)
		copy_out(x, cow_list_entry(node, struct reader, node));
	keep(en, x);
	return 0;
}

static void io_done(struct cow_iocb *cb, int result)
{
	struct extent *x = cow_container_of(cb, struct extent, cb);
	struct cow_rd *first = x->first.rd;
	struct cow_list others;

	cow_list_init(&others);
	cow_list_splice(&x->others, &others);
	cow_list_del(&x->node);
	result = arrived(x, &others, result);
	rd_io_ended(first, result);
	while (!cow_list_empty(&others)) {
		struct reader *r = cow_list_entry(others.next, struct reader, node);
		struct cow_rd *rd = r->rd;

		cow_list_del(&r->node);
		cow_free(r);
		rd_io_ended(rd, result);
	}
}

static bool sane(const struct cow_layer *l, const struct cow_map *map)
{
	return l->img.fmt->decode && map->src.len && map->src.len <= COW_ENCODED_MAX &&
	       map->dst.len <= COW_ENCODED_MAX && l->img.block <= COW_ENCODED_MAX;
}

/* With its buffers. */
static struct extent *extent_new(struct cow_layer *l, const struct cow_map *map)
{
	struct encoded *en = of_layer(l);
	uint64_t block = l->img.block;
	struct extent *x = en ? take(en, cow_max(block, map->dst.len)) : NULL;

	if (!x)
		return NULL;
	if (!take_raw(en, x, cow_round_up(cow_max(block, map->src.len), 4096))) {
		cow_free(x);
		return NULL;
	}
	x->layer = l;
	x->map = *map;
	cow_list_init(&x->others);
	x->cb = (struct cow_iocb){
		.file = &l->file, .op = COW_IO_READ, .off = map->src.phys, .len = map->src.len,
		.iov[0] = { x->raw, map->src.len }, .iovcnt = 1, .done = io_done,
	};
	return x;
}

/* 0: its bytes are there; 1: they come; -errno. */
static int fetch(struct cow_layer *l, const struct cow_map *map, const struct reader *r)
{
	struct extent *x = extent_new(l, map);
	struct cow_list none;
	int rc;

	if (!x)
		return -ENOMEM;
	x->first = *r;
	if (!cow_io_start(&x->cb, &rc)) {
		cow_list_add_tail(&l->encoded->coming, &x->node);
		return 1;
	}
	cow_list_init(&none);
	return arrived(x, &none, rc);
}

/* The same of an extent that is known. */
static int join(struct encoded *en, const struct cow_map *map, const struct reader *r)
{
	struct extent *x = find(&en->ready, map);
	struct reader *other;

	if (x) {
		cow_list_del(&x->node);
		cow_list_add_tail(&en->ready, &x->node);
		copy_out(x, r);
		return 0;
	}
	x = find(&en->coming, map);
	if (!x)
		return -ENOENT;
	other = cow_zalloc(sizeof(*other));
	if (!other)
		return -ENOMEM;
	*other = *r;
	cow_list_add_tail(&x->others, &other->node);
	return 1;
}

void encoded_read(struct cow_rd *rd, struct cow_layer *l, const struct cow_map *map, uint64_t v,
		  uint64_t n)
{
	struct reader r = { .rd = rd, .to = rd->buf + rd->pos, .skip = v - map->dst.virt, .n = n };
	int rc = l->encoded ? join(l->encoded, map, &r) : -ENOENT;

	if (rc == -ENOENT)
		rc = sane(l, map) ? fetch(l, map, &r) : -EOPNOTSUPP;
	if (rc == 1)
		rd->pending++;
	else if (rc && !rd->err)
		rd->err = rc;
}
