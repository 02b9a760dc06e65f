// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Sections for the kernel (mapreq.h): chains of random shape and contents, read
 * the way the kernel would, sector by sector through planes and bits from the
 * files themselves, must give what the chain reads. Then what the kernel does when
 * it writes: complete a granule, put it to plane 0, report it.
 */
#include "cowd/mapreq.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io-sim.h"
#include "rig.h"
#include "test.h"

#define SECTOR MAPREQ_SECTOR
#define LAYERS_MAX 4u
#define SECTION ((uint64_t)DMU_SECTION_SECTORS * SECTOR)

struct bed {
	struct cow_sim *sim;
	struct rig rng;			/* its random numbers only */
	struct cow_chain *c;
	struct mapreq m;
	struct mapreq_answer a;
	unsigned layers;
	char name[LAYERS_MAX][16];	/* 0: the top */
	uint32_t unit;
	uint64_t copied;		/* ragged granules made present */
};

static struct bed bed;

static uint64_t rnd(uint64_t below)
{
	return rig_rand(&bed.rng, below);
}

/* ---- chains ---- */

static void add_raw(const char *name, uint64_t size)
{
	static uint8_t buf[COW_KIB(64)];

	CHECK_EQ(cow_sim_add(bed.sim, name, size, false), 0);
	for (unsigned i = 0; i < 40; i++) {
		uint64_t len = 1 + rnd(cow_min(sizeof(buf), size)), off = rnd(size - len + 1);

		for (uint64_t k = 0; k < len; k += 8)
			memcpy(buf + k, &(uint64_t){ rnd(UINT64_MAX) }, cow_min(8, len - k));
		CHECK_EQ(cow_sim_write(bed.sim, name, buf, len, off), 0);
	}
}

static struct cow_chain *open_named(const char *name, const char *format, uint32_t flags)
{
	struct cow_chain_cfg cfg = {
		.format = format, .path = name, .flags = flags, .io = &cow_io_sim_ops,
		.io_arg = bed.sim,
	};
	struct cow_err err = { 0 };
	struct cow_chain *c;
	int rc = cow_chain_open(&cfg, &c, &err);

	if (rc)
		FAIL("%s: %s", name, cow_err_text(&err, rc));
	return c;
}

static void add_dscow(const char *name, const char *base, const char *base_format, uint64_t size,
		      uint32_t granule, uint32_t block)
{
	struct cow_args *args = cow_args_new();
	struct cow_create_cfg cfg = {
		.format = "dscow", .path = name, .size = size, .args = args, .backing = base,
		.backing_format = base_format, .io = &cow_io_sim_ops, .io_arg = bed.sim,
	};
	struct cow_err err = { 0 };
	char num[16];

	CHECK(args);
	snprintf(num, sizeof(num), "%u", granule);
	CHECK_EQ(cow_args_set(args, "granule_size", num), 0);
	snprintf(num, sizeof(num), "%u", block);
	CHECK_EQ(cow_args_set(args, "block_size", num), 0);
	if (cow_image_create(&cfg, NULL, &err))
		FAIL("%s", err.msg);
	cow_args_free(args);
}

/* Changes of any kind, most of them in the first mebibyte. */
static void scribble(struct cow_chain *c, unsigned ops)
{
	static uint8_t buf[COW_KIB(200)];
	uint64_t size = cow_chain_size(c);

	while (ops--) {
		uint64_t within = rnd(4) ? cow_min(size, COW_MIB(1)) : size;
		uint64_t len = 1 + rnd(cow_min(rnd(3) ? 9000 : sizeof(buf), within));
		uint64_t off = rnd(within - len + 1);

		for (uint64_t k = 0; k < len; k++)
			buf[k] = (uint8_t)rnd(256);
		if (rnd(5) == 0)
			CHECK_EQ(cow_chain_zero(c, off, len), 0);
		else if (rnd(8) == 0)
			CHECK_EQ(cow_chain_discard(c, off, len), 0);
		else
			CHECK_EQ(cow_chain_pwrite(c, buf, len, off), 0);
	}
}

/* Cut and grown again: what shows of the base ends earlier than the base. */
static void cut(struct cow_chain *c, uint64_t unit)
{
	uint64_t size = cow_chain_size(c), less = cow_round_up(1 + rnd(size - 1), unit);
	struct cow_err err = { 0 };

	CHECK_EQ(cow_chain_resize(c, less, true, &err), 0);
	CHECK_EQ(cow_chain_resize(c, size, false, &err), 0);
}

struct shape {
	uint64_t base, size;		/* of the raw base, of the device */
	unsigned layers;
	uint32_t granule[LAYERS_MAX];	/* 0: the top */
	bool odd;			/* bases end at any byte */
	bool cut;
};

static void make(const struct shape *sh)
{
	const char *format = "raw";
	unsigned i = sh->layers - 1;

	bed.layers = sh->layers;
	snprintf(bed.name[i], sizeof(bed.name[i]), "l%u", i);
	add_raw(bed.name[i], sh->base);
	while (i-- > 0) {
		uint64_t size = i ? sh->base + rnd(COW_MIB(1)) : sh->size;
		struct cow_chain *c;

		if (!sh->odd)
			size = cow_round_up(size, SECTOR);
		snprintf(bed.name[i], sizeof(bed.name[i]), "l%u", i);
		add_dscow(bed.name[i], bed.name[i + 1], format, size, sh->granule[i],
			  (uint32_t)cow_max(sh->granule[i], 4096u << rnd(5)));
		c = open_named(bed.name[i], "dscow", COW_OPEN_WRITE);
		scribble(c, 30);
		if (sh->cut && (i == 0 || rnd(2))) {
			cut(c, sh->odd ? 1 : SECTOR);
			scribble(c, 10);
		}
		CHECK_EQ(cow_chain_close(c), 0);
		format = "dscow";
	}
}

static void open_bed(bool write, uint32_t unit)
{
	struct mapreq_file files[LAYERS_MAX] = { 0 };
	struct cow_err err = { 0 };
	int rc;

	bed.unit = unit;
	bed.c = open_named(bed.name[0], bed.layers > 1 ? "dscow" : "raw", write ? COW_OPEN_WRITE : 0);
	CHECK_EQ(cow_chain_depth(bed.c), bed.layers);
	for (unsigned i = 0; i < bed.layers; i++)
		files[i] = (struct mapreq_file){
			.dev = (uint16_t)(10 + i), .unit = unit,
			.size = cow_round_down(cow_sim_size(bed.sim, bed.name[i]), unit),
		};
	rc = mapreq_init(&bed.m, bed.c, files, &err);
	if (rc)
		FAIL("%s", cow_err_text(&err, rc));
}

static void bed_start(uint64_t seed)
{
	memset(&bed, 0, sizeof(bed));
	bed.rng.rng = seed;
	bed.sim = cow_sim_new(seed);
	CHECK(bed.sim);
}

static void bed_end(void)
{
	CHECK_EQ(cow_chain_close(bed.c), 0);
	cow_sim_free(bed.sim);
}

/* ---- the kernel's side ---- */

static const struct dmu_plane *planes(void)
{
	return (const struct dmu_plane *)(bed.a.record.bytes + sizeof(struct dmu_section));
}

static uint32_t granules(void)
{
	const struct dmu_section *s = &bed.a.record.section;

	return (s->sectors + (1u << s->granule_shift) - 1) >> s->granule_shift;
}

static uint32_t bits_bytes(void)
{
	return (granules() + 63) / 64 * 8;
}

static const uint8_t *bits_of(unsigned plane)
{
	const uint8_t *at = (const uint8_t *)(planes() + bed.a.record.section.planes);

	for (unsigned i = 0; i < plane; i++)
		if (planes()[i].flags & DMU_PLANE_BITS)
			at += bits_bytes();
	return at;
}

/* The section, with ragged granules made present as the front end does it. */
static void ask(uint64_t start)
{
	for (unsigned round = 0;; round++) {
		uint64_t granule = (uint64_t)SECTOR << bed.m.granule_shift;

		CHECK_EQ(mapreq_section(&bed.m, start, &bed.a), 0);
		if (!bed.a.ragged)
			return;
		CHECK_EQ(round, 0);
		for (uint64_t i = 0; i < DMU_BITS_BYTES_MAX * 8; i++) {
			uint64_t virt = start * SECTOR + i * granule;

			if (!(bed.a.ragged_bits[i / 8] >> i % 8 & 1))
				continue;
			CHECK(virt < cow_chain_size(bed.c));
			CHECK_EQ(rig_request(bed.c, COW_OP_PRESENT, 0, virt,
					     cow_min(granule, cow_chain_size(bed.c) - virt), NULL), 0);
			bed.copied++;
		}
	}
}

static void check_record(uint64_t start)
{
	const struct dmu_section *s = &bed.a.record.section;
	uint32_t size = sizeof(*s);

	CHECK_EQ(s->head.type, DMU_SECTION);
	CHECK_EQ(s->head.id, 0);
	CHECK_EQ(s->start, start);
	CHECK_EQ(s->sectors, cow_min(DMU_SECTION_SECTORS, cow_chain_size(bed.c) / SECTOR - start));
	CHECK_EQ(s->flags, cow_chain_readonly(bed.c) ? 0 : DMU_SECTION_WRITE);
	CHECK(s->planes >= 1 && s->planes <= bed.layers);
	CHECK(s->granule_shift >= DMU_GRANULE_SHIFT_MIN && s->granule_shift <= DMU_SECTION_SHIFT);
	for (unsigned i = 0; i < s->planes; i++) {
		const struct dmu_plane *p = &planes()[i];
		unsigned layer = p->dev - 10u;

		CHECK(layer < bed.layers && (i == 0) == (layer == 0));
		CHECK(p->limit > 0 && p->limit <= s->sectors);
		CHECK_EQ(p->position * SECTOR % bed.unit, 0);
		CHECK(p->limit == s->sectors || p->limit * SECTOR % bed.unit == 0);
		CHECK_EQ(p->position * SECTOR, cow_chain_image(bed.c, layer)->linear_shift + start * SECTOR);
		size += (uint32_t)sizeof(*p) + (p->flags & DMU_PLANE_BITS ? bits_bytes() : 0);
		for (uint32_t g = granules(); p->flags & DMU_PLANE_BITS && g < bits_bytes() * 8; g++)
			CHECK(!(bits_of(i)[g / 8] >> g % 8 & 1));
	}
	CHECK_EQ(planes()[0].limit, s->sectors);
	CHECK_EQ(s->head.size, size);
	CHECK_EQ(bed.a.size, size);
	CHECK_EQ(size % 8, 0);
}

static void kernel_read(uint64_t sector, uint8_t *buf)
{
	const struct dmu_section *s = &bed.a.record.section;
	uint32_t g = (uint32_t)(sector - s->start) >> s->granule_shift;

	memset(buf, 0, SECTOR);
	for (unsigned i = 0; i < s->planes; i++) {
		const struct dmu_plane *p = &planes()[i];

		if (sector - s->start >= p->limit)
			continue;
		if (p->flags & DMU_PLANE_BITS && !(bits_of(i)[g / 8] >> g % 8 & 1))
			continue;
		CHECK_EQ(cow_sim_read(bed.sim, bed.name[p->dev - 10u], buf, SECTOR,
				      (p->position + (sector - s->start)) * SECTOR), 0);
		return;
	}
}

static void compare_section(uint64_t start)
{
	static uint8_t want[COW_MIB(1)];
	const struct dmu_section *s = &bed.a.record.section;
	uint8_t got[SECTOR];

	for (uint64_t at = 0; at < s->sectors; at += sizeof(want) / SECTOR) {
		uint64_t n = cow_min(s->sectors - at, sizeof(want) / SECTOR);

		CHECK_EQ(cow_chain_pread(bed.c, want, n * SECTOR, (start + at) * SECTOR), 0);
		for (uint64_t i = 0; i < n; i++) {
			kernel_read(start + at + i, got);
			if (memcmp(got, want + i * SECTOR, SECTOR))
				FAIL("sector %llu reads otherwise by its planes",
				     (unsigned long long)(start + at + i));
		}
	}
}

static void compare_all(void)
{
	for (uint64_t start = 0; start < cow_chain_size(bed.c) / SECTOR; start += DMU_SECTION_SECTORS) {
		ask(start);
		check_record(start);
		compare_section(start);
	}
}

/* One granule the way the kernel writes it: completed from the planes, stored, reported. */
static void kernel_write(uint64_t sector)
{
	const struct dmu_section *s = &bed.a.record.section;
	uint64_t first = cow_round_down(sector, 1u << s->granule_shift);
	uint64_t n = cow_min(1u << s->granule_shift, s->start + s->sectors - first);
	uint8_t *buf = malloc(n * SECTOR);

	CHECK(buf && planes()[0].dev == 10);
	for (uint64_t i = 0; i < n; i++)
		kernel_read(first + i, buf + i * SECTOR);
	for (unsigned i = 0; i < SECTOR; i++)
		buf[(sector - first) * SECTOR + i] = (uint8_t)rnd(256);
	cow_sim_write_other(bed.sim, bed.name[0], buf, n * SECTOR,
			    (planes()[0].position + (first - s->start)) * SECTOR);
	CHECK_EQ(rig_request(bed.c, COW_OP_WRITTEN, 0, first * SECTOR, n * SECTOR, NULL), 0);
	free(buf);
}

static void write_some(unsigned n)
{
	uint64_t sectors = cow_chain_size(bed.c) / SECTOR;

	while (n--) {
		uint64_t sector = rnd(3) ? rnd(cow_min(sectors, 2048)) : rnd(sectors);

		if (rnd(10) == 0)
			sector = sectors - 1;
		ask(cow_round_down(sector, DMU_SECTION_SECTORS));
		kernel_write(sector);
	}
}

static void random_shape(struct shape *sh, uint32_t unit)
{
	static const uint32_t sizes[] = { 4096, 4096, 8192, 16384, 65536 };

	*sh = (struct shape){ .layers = 1 + (unsigned)rnd(LAYERS_MAX), .odd = rnd(2), .cut = rnd(2) };
	sh->base = COW_KIB(300) + rnd(rnd(8) ? COW_MIB(2) : COW_MIB(40));
	if (!sh->odd || sh->layers == 1)
		sh->base = cow_round_up(sh->base, unit);
	sh->size = cow_round_up(sh->base / 2 + rnd(sh->base), unit);
	for (unsigned i = 0; i < LAYERS_MAX; i++)
		sh->granule[i] = sizes[rnd(COW_ARRAY_SIZE(sizes))];
}

TEST(reads_as_the_chain)
{
	unsigned rounds = rig_full() ? 400 : 60, ragged = 0;

	for (unsigned i = 0; i < rounds; i++) {
		struct shape sh;

		bed_start(test_rand());
		bed.unit = rnd(3) ? 512 : 4096;
		random_shape(&sh, bed.unit);
		make(&sh);
		open_bed(true, bed.unit);
		compare_all();
		write_some(20);
		compare_all();
		ragged += bed.copied != 0;
		bed_end();
	}
	CHECK(ragged > rounds / 8);
	printf("%u chains, %u of them with ragged granules\n", rounds, ragged);
}

/* Read-only: the granule is the smallest of all layers, nothing is ever copied. */
TEST(read_only)
{
	unsigned rounds = rig_full() ? 200 : 40;

	for (unsigned i = 0; i < rounds; i++) {
		struct shape sh;

		bed_start(test_rand());
		random_shape(&sh, 512);
		sh.odd = false;
		sh.base = cow_round_up(sh.base, 512);
		make(&sh);
		open_bed(false, 512);
		compare_all();
		CHECK_EQ(bed.copied, 0);
		bed_end();
	}
}

/* Every second granule in two layers: the largest record, and it fits. */
TEST(alternating)
{
	const uint64_t size = COW_MIB(40);
	uint8_t buf[4096];

	bed_start(test_rand());
	bed.layers = 3;
	for (unsigned layer = 3; layer-- > 0;) {
		struct cow_chain *c;

		snprintf(bed.name[layer], sizeof(bed.name[layer]), "l%u", layer);
		if (layer == 2) {
			add_raw(bed.name[2], size);
			continue;
		}
		add_dscow(bed.name[layer], bed.name[layer + 1], layer ? "raw" : "dscow", size, 4096,
			  65536);
		c = open_named(bed.name[layer], "dscow", COW_OPEN_WRITE);
		memset(buf, 1 + (int)layer, sizeof(buf));
		for (uint64_t at = layer * sizeof(buf); at < size; at += 4 * sizeof(buf))
			CHECK_EQ(cow_chain_pwrite(c, buf, sizeof(buf), at), 0);
		CHECK_EQ(cow_chain_close(c), 0);
	}
	open_bed(true, 512);
	ask(0);
	check_record(0);
	CHECK_EQ(bed.a.record.section.planes, 3);
	CHECK_EQ(bed.a.size, sizeof(struct dmu_section) + 3 * sizeof(struct dmu_plane) + 2 * 1024);
	compare_section(0);
	bed_end();
}

TEST(places)
{
	struct shape sh = { .base = COW_MIB(70), .size = COW_MIB(70), .layers = 1 };

	bed_start(1);
	make(&sh);
	open_bed(true, 512);
	/* Raw: one plane, no bits; three sections, the last one shorter. */
	ask(2 * DMU_SECTION_SECTORS);
	CHECK_EQ(bed.a.record.section.planes, 1);
	CHECK_EQ(planes()[0].flags, 0);
	CHECK_EQ(bed.a.record.section.sectors, COW_MIB(6) / SECTOR);
	CHECK_EQ(mapreq_section(&bed.m, 3 * DMU_SECTION_SECTORS, &bed.a), -EINVAL);
	CHECK_EQ(mapreq_section(&bed.m, 8, &bed.a), -EINVAL);
	bed_end();
}

/* ---- what does not suit ---- */

static void expect_refusal(struct cow_chain *c, uint32_t unit, const char *words)
{
	struct cow_err err = { 0 };

	CHECK_EQ(mapreq_suits(c, unit, &err), -EOPNOTSUPP);
	if (!strstr(err.msg, words))
		FAIL("\"%s\" does not say \"%s\"", err.msg, words);
	CHECK_EQ(cow_chain_close(c), 0);
}

TEST(refused)
{
	struct mapreq_file files[2] = { { .unit = 512, .size = COW_MIB(9) },
					{ .unit = 512, .size = COW_KIB(300) } };
	struct cow_chain *c;
	struct cow_err err = { 0 };

	bed_start(1);
	add_raw("odd", COW_KIB(300) + 100);
	add_raw("sector", COW_KIB(300) + 512);
	add_raw("even", COW_MIB(1));
	expect_refusal(open_named("odd", "raw", 0), 512, "odd: its size is no multiple");
	expect_refusal(open_named("sector", "raw", 0), 4096, "sector: its size is no multiple");
	add_dscow("top", "odd", "raw", COW_MIB(1), 4096, 65536);
	expect_refusal(open_named("top", "dscow", 0), 512, "odd: ends within a block");
	c = open_named("top", "dscow", COW_OPEN_WRITE);
	CHECK_EQ(mapreq_suits(c, 512, &err), 0);
	CHECK_EQ(cow_chain_close(c), 0);
	add_dscow("top2", "even", "raw", COW_MIB(1), 4096, 65536);
	c = open_named("top2", "dscow", 0);
	CHECK_EQ(mapreq_suits(c, 512, &err), 0);
	CHECK_EQ(mapreq_init(&bed.m, c, files, &err), -EOPNOTSUPP);
	CHECK(strstr(err.msg, "even: its file is shorter"));
	CHECK_EQ(cow_chain_close(c), 0);
	cow_sim_free(bed.sim);
}

TEST(too_deep)
{
	char name[16], base[16] = "base";
	const char *format = "raw";

	bed_start(1);
	add_raw(base, COW_KIB(64));
	for (unsigned i = 0; i < DMU_PLANES_MAX; i++) {
		snprintf(name, sizeof(name), "o%u", i);
		add_dscow(name, base, format, COW_KIB(64), 4096, 4096);
		memcpy(base, name, sizeof(base));
		format = "dscow";
	}
	expect_refusal(open_named(base, "dscow", 0), 512, "chain of 9 images");
	cow_sim_free(bed.sim);
}

/* ---- runs of bits ---- */

static uint8_t rebuilt[128];
static int runs_left;

static int take(void *opaque, uint32_t first, uint32_t n)
{
	uint32_t *end = opaque;

	CHECK(n > 0 && (first > *end || *end == 0));
	for (uint32_t i = first; i < first + n; i++)
		rebuilt[i / 8] |= (uint8_t)(1u << i % 8);
	*end = first + n;
	return --runs_left ? 0 : -EINTR;
}

TEST(runs)
{
	for (unsigned round = 0; round < 500; round++) {
		uint32_t count = 1 + (uint32_t)test_rand_below(1024), end = 0;
		uint8_t bits[128] = { 0 };

		for (unsigned i = 0; i < sizeof(bits); i++)
			bits[i] = test_rand_below(3) ? (uint8_t)-(int)test_rand_below(2)
						     : (uint8_t)test_rand();
		memset(rebuilt, 0, sizeof(rebuilt));
		runs_left = -1;
		CHECK_EQ(mapreq_each_run(bits, count, take, &end), 0);
		for (uint32_t i = 0; i < 1024; i++)
			CHECK_EQ(rebuilt[i / 8] >> i % 8 & 1, i < count && bits[i / 8] >> i % 8 & 1);
		runs_left = 1;
		end = 0;
		if (rebuilt[0])
			CHECK_EQ(mapreq_each_run(bits, count, take, &end), -EINTR);
	}
}
