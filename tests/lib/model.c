// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The oracle (model.h). Values are kept as hashes: a hash that matches by
 * accident would hide one bad sector in 2^64.
 */
#include "model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define INITIAL UINT32_MAX	/* "operation" that gave a sector its first value */
#define RUN_SECTORS 128u	/* sectors compared at once */

struct version {
	uint32_t op;
	uint64_t hash;
};

struct sector {
	struct version *v;	/* [0] is the initial value once there is any */
	uint32_t n, cap;
};

struct op {
	size_t begin, end;
	uint32_t flags;
	bool ok, done, resize;
	uint64_t from, size;	/* of the disk before a resize, and behind any operation */
};

struct model {
	uint64_t size, first_size, cap;
	uint64_t below;		/* size of the base */
	uint32_t granule;
	uint8_t *bytes;
	struct sector *sectors;
	struct op *ops;
	uint32_t nops, cap_ops;
	uint32_t settled;	/* operations before this one came before the log */
};

static void *need(void *p)
{
	cow_assert(p);
	return p;
}

struct model *model_new(uint64_t size, uint64_t cap, uint32_t granule)
{
	struct model *m = need(calloc(1, sizeof(*m)));

	cap = cow_round_up(cow_max(size, cap), MODEL_SECTOR);
	m->size = m->first_size = size;
	m->below = UINT64_MAX;
	m->cap = cap;
	m->granule = granule;
	m->bytes = need(calloc(1, cap));
	m->sectors = need(calloc(cap / MODEL_SECTOR, sizeof(*m->sectors)));
	return m;
}

void model_free(struct model *m)
{
	if (!m)
		return;
	for (uint64_t i = 0; i < m->cap / MODEL_SECTOR; i++)
		free(m->sectors[i].v);
	free(m->sectors);
	free(m->bytes);
	free(m->ops);
	free(m);
}

uint8_t *model_bytes(struct model *m)
{
	return m->bytes;
}

uint64_t model_size(const struct model *m)
{
	return m->size;
}

uint64_t model_least(const struct model *m)
{
	uint64_t least = m->first_size;

	for (uint32_t i = 0; i < m->nops; i++)
		least = cow_min(least, m->ops[i].size);
	return least;
}

void model_below(struct model *m, uint64_t size)
{
	m->below = size;
}

void model_settle(struct model *m)
{
	m->settled = m->nops;
}

static uint64_t hash_sector(const struct model *m, uint64_t i)
{
	return XXH3_64bits(m->bytes + i * MODEL_SECTOR, MODEL_SECTOR);
}

static void add_version(struct sector *s, uint32_t op, uint64_t hash)
{
	if (s->n == s->cap) {
		s->cap = s->cap ? s->cap * 2 : 4;
		s->v = need(realloc(s->v, s->cap * sizeof(*s->v)));
	}
	s->v[s->n++] = (struct version){ op, hash };
}

void model_begin(struct model *m, size_t pos, uint32_t flags)
{
	if (m->nops == m->cap_ops) {
		m->cap_ops = m->cap_ops ? m->cap_ops * 2 : 256;
		m->ops = need(realloc(m->ops, m->cap_ops * sizeof(*m->ops)));
	}
	m->ops[m->nops++] = (struct op){
		.begin = pos, .end = SIZE_MAX, .flags = flags, .size = m->size,
	};
}

void model_end(struct model *m, size_t pos, bool ok)
{
	struct op *o = &m->ops[m->nops - 1];

	o->end = pos;
	o->done = true;
	o->ok = ok;
}

/* Before and after the bytes of [@off, @off + @len) change. */
static void note(struct model *m, uint64_t off, uint64_t len, bool before)
{
	for (uint64_t i = off / MODEL_SECTOR; i * MODEL_SECTOR < off + len; i++) {
		struct sector *s = &m->sectors[i];

		if (!before)
			add_version(s, m->nops - 1, hash_sector(m, i));
		else if (!s->n)
			add_version(s, INITIAL, hash_sector(m, i));
	}
}

void model_write(struct model *m, uint64_t off, uint64_t len, const void *data)
{
	cow_assert(off + len <= m->size);
	note(m, off, len, true);
	memcpy(m->bytes + off, data, len);
	note(m, off, len, false);
}

void model_zero(struct model *m, uint64_t off, uint64_t len)
{
	cow_assert(off + len <= m->size);
	note(m, off, len, true);
	memset(m->bytes + off, 0, len);
	note(m, off, len, false);
}

void model_discard(struct model *m, uint64_t off, uint64_t len)
{
	uint64_t end = off + len;

	off = cow_round_up(off, m->granule);
	if (end < m->size)
		end = cow_round_down(end, m->granule);
	if (off < end)
		model_zero(m, off, end - off);
}

void model_resize(struct model *m, uint64_t size)
{
	struct op *o = &m->ops[m->nops - 1];

	cow_assert(size <= m->cap);
	if (size < m->size)
		model_zero(m, size, m->size - size);
	o->from = m->size;
	o->size = m->size = size;
	o->resize = true;
}

/* ---- what a crash may show ---- */

/* Operations before this one are durable if acknowledged. */
static uint32_t durable_before(const struct model *m, size_t pos)
{
	if (pos == MODEL_NOW)
		return m->nops;
	for (uint32_t i = m->nops; i > 0; i--) {
		const struct op *o = &m->ops[i - 1];

		if ((o->flags & MODEL_FLUSH) && o->done && o->ok && o->end <= pos)
			return i;
	}
	return 0;
}

/* Had it begun? */
static bool op_begun(const struct model *m, uint32_t op, size_t pos)
{
	return op == INITIAL || op < m->settled || m->ops[op].begin < pos;
}

static bool op_durable(const struct model *m, uint32_t op, uint32_t before, size_t pos)
{
	const struct op *o;

	if (op == INITIAL || op < m->settled)
		return true;
	o = &m->ops[op];
	if (!o->done || !o->ok)
		return false;
	return op < before || (((o->flags & MODEL_FUA) || o->resize) && o->end <= pos);
}

static bool sector_ok(const struct model *m, uint64_t i, uint32_t before, size_t pos, uint64_t hash)
{
	const struct sector *s = &m->sectors[i];

	if (!s->n)
		return hash == hash_sector(m, i);
	for (uint32_t k = s->n; k > 0; k--) {
		const struct version *v = &s->v[k - 1];

		if (!op_begun(m, v->op, pos))
			continue;
		if (v->hash == hash)
			return true;
		if (op_durable(m, v->op, before, pos))
			return false;
	}
	return false;
}

void model_size_is(struct model *m, uint64_t size)
{
	cow_assert(size <= m->cap);
	m->size = size;
}

bool model_may_read(const struct model *m, uint64_t off, uint64_t len, const void *data)
{
	cow_assert(off % MODEL_SECTOR == 0 && len % MODEL_SECTOR == 0);
	for (uint64_t at = 0; at < len; at += MODEL_SECTOR) {
		uint64_t hash = XXH3_64bits((const uint8_t *)data + at, MODEL_SECTOR);

		if (!sector_ok(m, (off + at) / MODEL_SECTOR, m->nops, MODEL_NOW, hash))
			return false;
	}
	return true;
}

static bool size_ok(const struct model *m, size_t pos, uint64_t size)
{
	for (uint32_t k = m->nops; k > 0; k--) {
		const struct op *o = &m->ops[k - 1];

		if (!o->resize || !op_begun(m, k - 1, pos))
			continue;
		if (o->size == size)
			return true;
		if (k <= m->settled || (o->done && o->ok && o->end <= pos))
			return false;
	}
	return size == m->first_size;
}

/* Compares sectors [@first, @first + @n). */
static int verify_run(struct model *m, struct cow_chain *c, uint64_t first, uint64_t n,
		      uint32_t before, size_t pos, struct cow_err *why)
{
	static uint8_t buf[RUN_SECTORS * MODEL_SECTOR];
	uint64_t off = first * MODEL_SECTOR;
	uint64_t len = cow_min(n * MODEL_SECTOR, cow_chain_size(c) - off);
	int r;

	memset(buf, 0, n * MODEL_SECTOR);
	r = cow_chain_pread(c, buf, len, off);
	if (r)
		return cow_err_sys(why, r, "read of %llu bytes at %llu", (unsigned long long)len,
				   (unsigned long long)off);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t hash = XXH3_64bits(buf + i * MODEL_SECTOR, MODEL_SECTOR);

		if (!sector_ok(m, first + i, before, pos, hash))
			return cow_err_set(why, -EIO, "sector %llu (byte %llu, %u versions) holds a "
					   "value that it must not hold",
					   (unsigned long long)(first + i),
					   (unsigned long long)((first + i) * MODEL_SECTOR),
					   m->sectors[first + i].n);
	}
	return 0;
}

/* The top layer must not say anything about [@off, @end), which nothing ever changed. */
static int verify_unclaimed(struct cow_chain *c, uint64_t off, uint64_t end, struct cow_err *why)
{
	while (off < end) {
		struct cow_extent e;
		unsigned layer;
		int r = cow_chain_extent(c, 0, off, end - off, &e, &layer);

		if (r)
			return cow_err_sys(why, r, "map at %llu", (unsigned long long)off);
		if (layer == 0)
			return cow_err_set(why, -EIO, "byte %llu is claimed by the overlay, but "
					   "was never written", (unsigned long long)off);
		if (!e.len || e.len > end - off)
			return cow_err_set(why, -EIO, "map at %llu answers a bad length",
					   (unsigned long long)off);
		off += e.len;
	}
	return 0;
}

/*
 * Up to where the base has shown all the time before @pos: there the top layer claims only what
 * was changed. Growing hides what a longer base has behind the old end; for that, a format that does
 * not record how far the base shows claims the granule that the end is in.
 */
static uint64_t shown_to(const struct model *m, struct cow_chain *c, size_t pos)
{
	bool records = !cow_chain_image(c, 0)->fmt->grown;
	uint64_t below = m->below, low = cow_min(m->first_size, below);

	for (uint32_t i = 0; i < m->nops; i++) {
		const struct op *o = &m->ops[i];

		if (!o->resize || o->size <= o->from || o->from >= below || !op_begun(m, i, pos))
			continue;
		below = o->from;
		low = cow_min(low, records ? below : cow_round_down(below, m->granule));
	}
	return low;
}

int model_verify(struct model *m, struct cow_chain *c, size_t pos, bool full, struct cow_err *why)
{
	uint32_t before = durable_before(m, pos), per = m->granule / MODEL_SECTOR;
	uint64_t size = cow_chain_size(c), sectors = cow_div_up(size, MODEL_SECTOR);
	uint64_t low = shown_to(m, c, pos), i = 0;

	if (!size_ok(m, pos, size))
		return cow_err_set(why, -EIO, "the size is %llu", (unsigned long long)size);
	while (i < sectors) {
		uint64_t n = 0;
		bool touched = false;
		int r;

		/* Presence is a matter of whole granules: look at all of one or at none. */
		do {
			uint64_t g = i + n, end = cow_min(g + per - g % per, sectors);
			bool t = false;

			for (uint64_t k = g; k < end; k++)
				t |= m->sectors[k].n != 0;
			if (n && t != touched)
				break;
			touched = t;
			n = end - i;
		} while (i + n < sectors && !(touched && n >= RUN_SECTORS));
		for (uint64_t k = 0; (touched || full) && k < n; k += RUN_SECTORS) {
			r = verify_run(m, c, i + k, cow_min(RUN_SECTORS, n - k), before, pos, why);
			if (r)
				return r;
		}
		if (!touched && cow_chain_depth(c) > 1) {
			r = verify_unclaimed(c, i * MODEL_SECTOR,
					     cow_min((i + n) * MODEL_SECTOR, low), why);
			if (r)
				return r;
		}
		i += n;
	}
	return 0;
}
