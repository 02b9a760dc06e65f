// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Sections of a chain for the kernel (mapreq.h). Layer by layer, from the top
 * down, the runs of what a layer has become bits of its plane. Two ends matter:
 *
 *   - behind below_limit of a layer, or behind its own end, nothing of the layers
 *     below shows: the limit of their planes, which only ever gets smaller;
 *   - a layer may have a part of a granule only: when its granules are smaller
 *     than ours, or when it ends within one. A limit that the device can address
 *     says the latter; anything else has to be copied up first ("ragged").
 *
 * Those who write have the granule of the top image, since that is what the
 * kernel can complete and report. A read-only device has the smallest of all.
 */
#include "mapreq.h"

#include <errno.h>

#define GRANULE_MIN (MAPREQ_SECTOR << DMU_GRANULE_SHIFT_MIN)
#define SECTION_BYTES ((uint64_t)MAPREQ_SECTOR << DMU_SECTION_SHIFT)

/* ---- bits ---- */

static bool bit_get(const uint8_t *bits, uint32_t i)
{
	return bits[i / 8] >> (i % 8) & 1;
}

static void bits_set(uint8_t *bits, uint32_t first, uint32_t n)
{
	while (n > 0) {
		uint32_t shift = first % 8, part = (uint32_t)cow_min(n, 8 - shift);

		if (part == 8 && n >= 16) {
			memset(bits + first / 8, 0xff, n / 8);
			part = n / 8 * 8;
		} else {
			bits[first / 8] |= (uint8_t)(((1u << part) - 1) << shift);
		}
		first += part;
		n -= part;
	}
}

int mapreq_each_run(const uint8_t *bits, uint32_t count,
		    int (*fn)(void *opaque, uint32_t first, uint32_t n), void *opaque)
{
	uint32_t i = 0;
	int rc = 0;

	while (i < count && rc == 0) {
		uint32_t first;

		while (i < count && !bit_get(bits, i))
			i += i % 8 == 0 && bits[i / 8] == 0 ? 8 : 1;
		first = i;
		while (i < count && bit_get(bits, i))
			i++;
		if (i > first)
			rc = fn(opaque, first, i - first);
	}
	return rc;
}

static uint32_t bits_bytes(uint32_t granules)
{
	return (granules + 63) / 64 * 8;
}

/* ---- what suits ---- */

static int refuse(struct cow_err *why, const struct cow_image *img, const char *reason)
{
	return cow_err_set(why, -EOPNOTSUPP, "%s: %s", img->path, reason);
}

/* Is the end of what shows of a layer one that the kernel can be told? */
static int suits_end(const struct cow_image *img, uint64_t end, uint64_t size, uint32_t unit,
		     bool writable, struct cow_err *why)
{
	if (writable || end % unit == 0 || end >= size)
		return 0;
	return refuse(why, img, "ends within a block of its device, and the device on top is read-only");
}

/* Data in order, as planes have it. */
static int suits_planes(struct cow_chain *c, unsigned n, uint32_t unit, struct cow_err *why)
{
	bool writable = !cow_chain_readonly(c);
	uint64_t size = cow_chain_size(c), limit = size;
	int rc = 0;

	for (unsigned i = 0; i < n && rc == 0; i++) {
		const struct cow_image *img = cow_chain_image(c, i);

		if (img->linear_shift % unit)
			return refuse(why, img, "its data begins within a block of its device");
		if (img->granule > SECTION_BYTES || (img->granule > 1 && img->granule < GRANULE_MIN))
			return refuse(why, img, "its granules are of no size that the kernel knows");
		limit = cow_min(limit, img->size);
		rc = suits_end(img, limit, size, unit, writable, why);
		limit = cow_min(limit, img->below_limit);
	}
	return rc;
}

/* The top image must be able to give a whole block of the device one place. */
static int suits_blocks(struct cow_chain *c, unsigned n, uint32_t unit, struct cow_err *why)
{
	const struct cow_image *top = cow_chain_image(c, 0);

	for (unsigned i = 0; i < n; i++) {
		const struct cow_image *img = cow_chain_image(c, i);

		if (!img->linear && !(img->fmt->caps & COW_CAP_REMAP))
			return refuse(why, img, "the kernel cannot be told where its data is");
		if (img->data_file[0])
			return refuse(why, img, "its data is in a second file, which the kernel is not shown");
	}
	if (!cow_chain_readonly(c) && !top->linear && top->block < cow_max(GRANULE_MIN, unit))
		return refuse(why, top, "its clusters are smaller than the kernel's blocks");
	return 0;
}

/* Layers that have a file: one without is the last, it reads as zeroes. */
static unsigned layers(struct cow_chain *c)
{
	unsigned n = cow_chain_depth(c);

	return n > 1 && cow_chain_image(c, n - 1)->fmt->caps & COW_CAP_NOFILE ? n - 1 : n;
}

static bool all_linear(struct cow_chain *c, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (!cow_chain_image(c, i)->linear)
			return false;
	return true;
}

int mapreq_suits(struct cow_chain *c, uint32_t unit, struct cow_err *why)
{
	unsigned n = layers(c);

	if (cow_chain_depth(c) > DMU_PLANES_MAX)
		return cow_err_set(why, -EOPNOTSUPP, "%s: a chain of %u images is longer than the %u "
				   "that the kernel can be shown", cow_chain_image(c, 0)->path,
				   cow_chain_depth(c), DMU_PLANES_MAX);
	if (!cow_chain_readonly(c) && cow_chain_image(c, 0)->sees_all)
		return refuse(why, cow_chain_image(c, 0),
			      "its bitmaps record every write, and the kernel would not tell of all");
	if (cow_chain_size(c) % unit)
		return refuse(why, cow_chain_image(c, 0),
			      "its size is no multiple of its device's block");
	for (unsigned i = 0; i < n; i++) {
		if (cow_chain_image(c, i)->encrypted)
			return refuse(why, cow_chain_image(c, i),
				      "is encrypted, and the kernel would have to decipher it");
	}
	return all_linear(c, n) ? suits_planes(c, n, unit, why) : suits_blocks(c, n, unit, why);
}

/* The same for blocks: what the top image can be told of by itself, or give a place. */
static uint8_t pick_block(const struct mapreq *m)
{
	const struct cow_image *top = cow_chain_image(m->chain, 0);
	uint32_t block = m->writable && top->place ? top->place : top->granule;

	block = (uint32_t)cow_max(block, cow_max(GRANULE_MIN, m->unit));
	return (uint8_t)__builtin_ctz(block / MAPREQ_SECTOR);
}

/* log2 of the granule in sectors. Images without granules have everything: any will do. */
static uint8_t pick_granule(struct cow_chain *c, bool writable)
{
	uint32_t granule = cow_chain_image(c, 0)->granule;
	unsigned i;

	for (i = 1; i < cow_chain_depth(c) && !writable; i++) {
		uint32_t g = cow_chain_image(c, i)->granule;

		if (g > 1 && (granule == 1 || g < granule))
			granule = g;
	}
	granule = (uint32_t)cow_max(granule, GRANULE_MIN);
	return (uint8_t)__builtin_ctz(granule / MAPREQ_SECTOR);
}

int mapreq_init(struct mapreq *m, struct cow_chain *c, const struct mapreq_file *files,
		struct cow_err *err)
{
	unsigned n = cow_chain_depth(c), i;
	int rc;

	*m = (struct mapreq){ .chain = c, .writable = !cow_chain_readonly(c), .unit = MAPREQ_SECTOR };
	for (i = 0; i < n && i < DMU_PLANES_MAX; i++)
		if (!(cow_chain_image(c, i)->fmt->caps & COW_CAP_NOFILE))
			m->unit = (uint32_t)cow_max(m->unit, files[i].unit);
	rc = mapreq_suits(c, m->unit, err);
	if (rc)
		return rc;
	m->blocks = !all_linear(c, layers(c));
	for (i = 0; i < n; i++) {
		const struct cow_image *img = cow_chain_image(c, i);

		m->dev[i] = files[i].dev;
		m->size[i] = files[i].size;
		if (m->blocks || img->fmt->caps & COW_CAP_NOFILE)
			continue;
		/* What is cut off below a whole block of the device is ragged. */
		if (cow_round_down(img->linear_shift + img->size, m->unit) > files[i].size)
			return refuse(err, img, "its file is shorter than its data");
	}
	m->granule_shift = m->blocks ? pick_block(m) : pick_granule(c, m->writable);
	return 0;
}

/* ---- one section ---- */

struct section {
	struct mapreq *m;
	struct mapreq_answer *ret;
	uint64_t virt, end;		/* bytes of the device */
	uint64_t granule;
	uint32_t granules;
	unsigned planes;
	struct dmu_plane plane[DMU_PLANES_MAX];
};

/* The layer has a part only of granule @i. Does that matter? */
static void note_ragged(struct section *s, uint32_t i)
{
	if (bit_get(s->m->covered, i) || bit_get(s->ret->ragged_bits, i))
		return;
	bits_set(s->ret->ragged_bits, i, 1);
	s->ret->ragged++;
}

/* The layer has [@from, @to); nothing of it is seen from @limit on. */
static void take_run(struct section *s, uint8_t *bits, uint64_t from, uint64_t to, uint64_t limit)
{
	uint32_t first = (uint32_t)((from - s->virt) / s->granule);
	uint32_t last = (uint32_t)((to - s->virt) / s->granule);	/* not whole, if it is anything */
	bool tail = (to - s->virt) % s->granule != 0;

	if ((from - s->virt) % s->granule)
		note_ragged(s, first++);
	/* The end of the device, and a limit that can be told, are as good as a granule's end. */
	if (tail && (to == s->end || (to == limit && to % s->m->unit == 0)) && last >= first)
		last++;
	else if (tail)
		note_ragged(s, last);
	if (last > first)
		bits_set(bits, first, last - first);
}

/* Walks what @layer has below @limit. 0 or -errno. */
static int layer_bits(struct section *s, unsigned layer, uint64_t limit, uint8_t *bits)
{
	uint64_t virt = s->virt, from = 0;
	bool in_run = false;

	while (virt < limit) {
		struct cow_extent e;
		int rc = cow_chain_layer_extent(s->m->chain, layer, virt, limit - virt, &e);

		if (rc)
			return rc;
		if (e.kind == COW_DATA &&
		    e.phys != e.virt + cow_chain_image(s->m->chain, layer)->linear_shift)
			return -EIO;
		if (e.kind == COW_DATA && !in_run)
			from = virt;
		if (e.kind != COW_DATA && in_run)
			take_run(s, bits, from, virt, limit);
		in_run = e.kind == COW_DATA;
		virt += e.len;
	}
	if (in_run)
		take_run(s, bits, from, limit, limit);
	return 0;
}

static bool all_set(const struct section *s, const uint8_t *bits, uint64_t limit)
{
	uint32_t n = (uint32_t)((limit - s->virt) / s->granule), i;

	for (i = 0; i < n / 8; i++)
		if (bits[i] != 0xff)
			return false;
	for (i = n / 8 * 8; i < n; i++)
		if (!bit_get(bits, i))
			return false;
	return (limit - s->virt) % s->granule == 0 || bit_get(bits, n);
}

static bool any_set(const struct section *s, const uint8_t *bits)
{
	for (uint32_t i = 0; i < bits_bytes(s->granules); i++)
		if (bits[i])
			return true;
	return false;
}

/* Adds the plane of @layer, of which nothing is seen from @limit on. 0 or -errno. */
static int add_plane(struct section *s, unsigned layer, uint64_t limit)
{
	const struct cow_image *img = cow_chain_image(s->m->chain, layer);
	struct dmu_plane *p = &s->plane[s->planes];
	uint8_t *bits = s->m->bits[s->planes];
	int rc = layer_bits(s, layer, limit, bits);

	if (rc)
		return rc;
	if (layer && !any_set(s, bits))
		return 0;
	/* A last granule that is not whole and cannot be told was noted as ragged. */
	limit = limit == s->end ? limit : cow_round_down(limit, s->m->unit);
	*p = (struct dmu_plane){
		.position = (img->linear_shift + s->virt) / MAPREQ_SECTOR,
		.limit = (uint32_t)((limit - s->virt) / MAPREQ_SECTOR),
		.dev = s->m->dev[layer],
	};
	/* What can become present has bits, even if everything is; else they only cost memory. */
	if ((layer == 0 && img->granule > 1 && s->m->writable) || !all_set(s, bits, limit))
		p->flags = DMU_PLANE_BITS;
	for (uint32_t i = 0; i < bits_bytes(s->granules); i++)
		s->m->covered[i] |= bits[i];
	s->planes++;
	return 0;
}

/*
 * Which planes there are depends on the layers below the top only, which do not change:
 * the kernel merges a section that it is told again if the planes are the same.
 */
static int add_planes(struct section *s)
{
	struct cow_chain *c = s->m->chain;
	uint64_t limit = s->end;
	int rc = 0;

	for (unsigned i = 0; i < cow_chain_depth(c) && rc == 0; i++) {
		const struct cow_image *img = cow_chain_image(c, i);

		limit = cow_min(limit, img->size);
		if (limit <= s->virt || img->fmt->caps & COW_CAP_NOFILE)
			break;
		rc = add_plane(s, i, limit);
		limit = cow_min(limit, img->below_limit);
	}
	return rc;
}

static void write_record(const struct section *s)
{
	struct mapreq_answer *ret = s->ret;
	uint8_t *at = ret->record.bytes + sizeof(struct dmu_section);
	unsigned i;

	ret->record.section = (struct dmu_section){
		.head.type = DMU_SECTION,
		.start = s->virt / MAPREQ_SECTOR,
		.sectors = (uint32_t)((s->end - s->virt) / MAPREQ_SECTOR),
		.planes = (uint16_t)s->planes,
		.granule_shift = s->m->granule_shift,
		.flags = s->m->writable ? DMU_SECTION_WRITE : 0,
	};
	memcpy(at, s->plane, s->planes * sizeof(s->plane[0]));
	at += s->planes * sizeof(s->plane[0]);
	for (i = 0; i < s->planes; i++) {
		if (!(s->plane[i].flags & DMU_PLANE_BITS))
			continue;
		memcpy(at, s->m->bits[i], bits_bytes(s->granules));
		at += bits_bytes(s->granules);
	}
	ret->size = (uint32_t)(at - ret->record.bytes);
	ret->record.section.head.size = ret->size;
}

int mapreq_section(struct mapreq *m, uint64_t start, struct mapreq_answer *ret)
{
	uint64_t size = cow_chain_size(m->chain);
	struct section s = { .m = m, .ret = ret };
	int rc;

	if (start % DMU_SECTION_SECTORS || start >= size / MAPREQ_SECTOR)
		return -EINVAL;
	s.virt = start * MAPREQ_SECTOR;
	s.end = cow_min(s.virt + SECTION_BYTES, size);
	s.granule = (uint64_t)MAPREQ_SECTOR << m->granule_shift;
	s.granules = (uint32_t)cow_div_up(s.end - s.virt, s.granule);
	memset(m->bits, 0, sizeof(m->bits));
	memset(m->covered, 0, sizeof(m->covered));
	ret->ragged = 0;
	memset(ret->ragged_bits, 0, sizeof(ret->ragged_bits));
	rc = add_planes(&s);
	if (rc == 0 && ret->ragged && !m->writable)
		rc = -EOPNOTSUPP;
	if (rc == 0 && !ret->ragged)
		write_record(&s);
	return rc;
}
