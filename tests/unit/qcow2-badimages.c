// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Crafted qcow2 images, one for each field and boundary. Each is refused in one
 * sentence, or opened and used soundly: no crash, no data over metadata, what
 * was written reads back, and nothing becomes worse that was well.
 */
#include <errno.h>
#include <stdlib.h>

#include "cow/chain.h"
#include "cow/log.h"
#include "io-sim.h"
#include "qcow2/qcow2-priv.h"
#include "test.h"

#define IMG "img.qcow2"
#define SIZE COW_MIB(1)
#define CLUSTER 4096u
#define REFTABLE 4096u			/* the layout that create makes */
#define REFBLOCK 8192u
#define L1 12288u
#define HUGE_FILE (1ULL << 50)

enum expect { REFUSED, OPENS, ANY };

struct patch {
	uint64_t off;
	unsigned bytes;
	uint64_t value;
};

static struct cow_sim *sim;
static unsigned images, refused;

static void put(uint64_t off, unsigned bytes, uint64_t value)
{
	uint8_t b[8];

	cow_put_be64(b, value);
	CHECK_EQ(cow_sim_write(sim, IMG, b + 8 - bytes, bytes, off), 0);
}

static uint64_t get(uint64_t off, unsigned bytes)
{
	uint8_t b[8] = { 0 };

	CHECK_EQ(cow_sim_read(sim, IMG, b + 8 - bytes, bytes, off), 0);
	return cow_get_be64(b);
}

static struct cow_chain *open_it(uint32_t flags, const char *snapshot, struct cow_err *err)
{
	struct cow_args *args = cow_args_new();
	struct cow_chain_cfg cfg = {
		.format = "qcow2", .path = IMG, .flags = flags, .args = args, .no_backing = true,
		.cache_bytes = COW_KIB(256), .io = &cow_io_sim_ops, .io_arg = sim,
	};
	struct cow_chain *c = NULL;
	int rc;

	CHECK(args);
	if (snapshot)
		CHECK_EQ(cow_args_set(args, "snapshot", snapshot), 0);
	*err = (struct cow_err){ 0 };
	rc = cow_chain_open(&cfg, &c, err);
	cow_args_free(args);
	if (rc == 0)
		return c;
	CHECK(rc < 0 && err->code == rc && err->msg[0] && !strchr(err->msg, '\n'));
	CHECK(strstr(err->msg, IMG));
	CHECK_EQ(cow_sim_open_files(sim), 0);
	return NULL;
}

/* A fresh image with data at 0 and at 512 KiB; its first L2 table is at *@ret_l2. */
static void make(const char *options, uint64_t *ret_l2)
{
	struct cow_args *args = cow_args_new();
	struct cow_create_cfg cfg = {
		.format = "qcow2", .path = IMG, .size = SIZE, .args = args, .exist_ok = true,
		.io = &cow_io_sim_ops,
	};
	const struct cow_format *fmt;
	struct cow_err err = { 0 };
	struct cow_chain *c;
	uint8_t data[2 * CLUSTER];

	if (cow_format_find("qcow2", &fmt, &err))
		test_skip("built without zlib and zstd");

	if (sim)
		cow_sim_free(sim);
	cow_log_set_level((enum cow_log_level)0);
	sim = cow_sim_new(1);
	cfg.io_arg = sim;
	CHECK(sim && args && cow_args_parse(args, options, &err) == 0);
	if (cow_image_create(&cfg, NULL, &err))
		FAIL("create: %s", err.msg);
	cow_args_free(args);
	c = open_it(COW_OPEN_WRITE, NULL, &err);
	CHECK(c);
	memset(data, 0x5a, sizeof(data));
	CHECK_EQ(cow_chain_pwrite(c, data, sizeof(data), 0), 0);
	CHECK_EQ(cow_chain_pwrite(c, data, sizeof(data), SIZE / 2), 0);
	CHECK_EQ(cow_chain_close(c), 0);
	*ret_l2 = get(get(QCOW2_H_L1_OFF, 8), 8) & QCOW2_OFFSET_MASK;
}

/* Reads all over, asks for maps, checks. Any error may come, nothing else. */
static uint64_t look(struct cow_chain *c)
{
	static uint8_t buf[COW_KIB(256)];
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };
	uint64_t size = cow_chain_size(c), virt = 0;

	for (unsigned i = 0; i < 8; i++)
		(void)cow_chain_pread(c, buf, cow_min(sizeof(buf), size - size / 8 * i), size / 8 * i);
	for (unsigned i = 0; i < 64 && virt < size; i++) {
		struct cow_extent e;

		if (cow_chain_extent(c, 0, virt, size - virt, &e, NULL))
			break;
		CHECK(e.virt == virt && e.len > 0 && e.len <= size - virt);
		virt += e.len;
	}
	if (size > COW_GIB(1) || cow_chain_check(c, &rep, 0, &err))
		return UINT64_MAX;
	return rep.corruptions;
}

/* Writes; in a @sound image what was accepted reads back; never is the header written over. */
static void scribble(struct cow_chain *c, const char *name, bool sound)
{
	static const uint64_t at[] = { 0, 4000, SIZE / 2 + 100, SIZE / 4, SIZE - 5000 };
	uint8_t data[5000], got[5000], before[72], after[72];

	CHECK_EQ(cow_sim_read(sim, IMG, before, sizeof(before), 0), 0);
	for (unsigned i = 0; i < COW_ARRAY_SIZE(at); i++) {
		if (at[i] + sizeof(data) > cow_chain_size(c))
			continue;
		memset(data, (int)i + 1, sizeof(data));
		if (cow_chain_pwrite(c, data, sizeof(data), at[i]))
			continue;
		if (cow_chain_pread(c, got, sizeof(got), at[i]))
			FAIL("%s: what was written at %llu cannot be read", name,
			     (unsigned long long)at[i]);
		if (sound && memcmp(got, data, sizeof(data)))
			FAIL("%s: what was written at %llu does not read back", name,
			     (unsigned long long)at[i]);
	}
	(void)cow_chain_zero(c, 8192, 16384);
	(void)cow_chain_discard(c, SIZE / 2, 8192);
	(void)cow_chain_flush(c);
	CHECK_EQ(cow_sim_read(sim, IMG, after, sizeof(after), 0), 0);
	memcpy(after + QCOW2_H_REFTABLE_OFF, before + QCOW2_H_REFTABLE_OFF, 12);	/* may have moved */
	if (memcmp(before, after, sizeof(before)))
		FAIL("%s: the header was written over", name);
}

static void use(const char *name, uint32_t flags)
{
	uint64_t before = UINT64_MAX;
	struct cow_err err;
	struct cow_chain *c = open_it(flags, NULL, &err);

	if (!c)
		return;
	before = look(c);
	if (flags == COW_OPEN_WRITE)
		scribble(c, name, before == 0);
	if (flags & COW_OPEN_CHECK && flags & COW_OPEN_WRITE) {
		struct cow_report rep = { 0 };

		(void)cow_chain_check(c, &rep, COW_CHECK_REPAIR, &err);
	}
	(void)cow_chain_close(c);
	if (before != 0)
		return;
	c = open_it(0, NULL, &err);
	if (!c)
		FAIL("%s: cannot be opened after it was used: %s", name, err.msg);
	if (look(c) != 0)
		FAIL("%s: was sound, and is not after it was used (flags %u)", name, flags);
	(void)cow_chain_close(c);
}

/* The image as it stands now. */
static void judge(const char *name, enum expect expect)
{
	static const uint32_t flags[] = {
		0, COW_OPEN_CHECK, COW_OPEN_WRITE, COW_OPEN_WRITE | COW_OPEN_CHECK,
	};
	struct cow_err err;
	struct cow_chain *c = open_it(0, NULL, &err);

	images++;
	refused += !c;
	if (expect == REFUSED && c)
		FAIL("%s: was opened", name);
	if (expect == OPENS && !c)
		FAIL("%s: was refused: %s", name, err.msg);
	if (c)
		(void)cow_chain_close(c);
	for (size_t i = 0; i < COW_ARRAY_SIZE(flags); i++)
		use(name, flags[i]);
}

static void with(const char *options, const char *name, struct patch p, enum expect expect)
{
	char full[128];
	uint64_t l2;

	make(options, &l2);
	put(p.off, p.bytes, p.value);
	snprintf(full, sizeof(full), "%s = %#llx (%s)", name, (unsigned long long)p.value, options);
	judge(full, expect);
}

static const char plain[] = "cluster_size=4K";
static const char sub[] = "cluster_size=16K,extended_l2=on";
static const char old[] = "cluster_size=4K,compat=0.10";

struct field_case {
	const char *name;
	unsigned off, bytes;
	uint64_t value;
	enum expect expect;
};

#define M1 UINT64_MAX
static const struct field_case fields[] = {
	{ "magic", 0, 4, 0, REFUSED }, { "magic", 0, 4, 0x514649fa, REFUSED },
	{ "version", 4, 4, 0, REFUSED }, { "version", 4, 4, 1, REFUSED },
	{ "version", 4, 4, 4, REFUSED }, { "version", 4, 4, M1, REFUSED },
	{ "version", 4, 4, 2, ANY },
	{ "backing offset", 8, 8, 1, REFUSED }, { "backing offset", 8, 8, 111, REFUSED },
	{ "backing offset", 8, 8, 4096, REFUSED }, { "backing offset", 8, 8, 4095, REFUSED },
	{ "backing offset", 8, 8, M1, REFUSED }, { "backing offset", 8, 8, 1ULL << 63, REFUSED },
	{ "backing offset", 8, 8, 104, REFUSED }, { "backing length", 16, 4, 1024, OPENS },
	{ "cluster bits", 20, 4, 0, REFUSED }, { "cluster bits", 20, 4, 8, REFUSED },
	{ "cluster bits", 20, 4, 9, ANY }, { "cluster bits", 20, 4, 11, ANY },
	{ "cluster bits", 20, 4, 13, ANY }, { "cluster bits", 20, 4, 16, REFUSED },
	{ "cluster bits", 20, 4, 21, REFUSED }, { "cluster bits", 20, 4, 22, REFUSED },
	{ "cluster bits", 20, 4, 63, REFUSED }, { "cluster bits", 20, 4, M1, REFUSED },
	{ "size", 24, 8, 0, REFUSED }, { "size", 24, 8, 1, OPENS }, { "size", 24, 8, 511, OPENS },
	{ "size", 24, 8, SIZE + 1, ANY }, { "size", 24, 8, COW_MIB(2), OPENS },
	{ "size", 24, 8, COW_MIB(2) + 1, REFUSED }, { "size", 24, 8, 1ULL << 56, REFUSED },
	{ "size", 24, 8, (1ULL << 56) + 1, REFUSED }, { "size", 24, 8, 1ULL << 63, REFUSED },
	{ "size", 24, 8, M1, REFUSED }, { "size", 24, 8, M1 - 4095, REFUSED },
	{ "crypt", 32, 4, 1, REFUSED }, { "crypt", 32, 4, 2, REFUSED }, { "crypt", 32, 4, 3, REFUSED },
	{ "crypt", 32, 4, M1, REFUSED },
	{ "L1 size", 36, 4, 0, REFUSED }, { "L1 size", 36, 4, 2, ANY }, { "L1 size", 36, 4, 512, ANY },
	{ "L1 size", 36, 4, 4u << 20, ANY }, { "L1 size", 36, 4, (4u << 20) + 1, REFUSED },
	{ "L1 size", 36, 4, M1, REFUSED }, { "L1 size", 36, 4, 0x80000000, REFUSED },
	{ "L1 offset", 40, 8, 0, REFUSED }, { "L1 offset", 40, 8, 1, REFUSED },
	{ "L1 offset", 40, 8, L1 + 8, REFUSED }, { "L1 offset", 40, 8, L1 + 512, REFUSED },
	{ "L1 offset", 40, 8, REFTABLE, REFUSED }, { "L1 offset", 40, 8, REFBLOCK, ANY },
	{ "L1 offset", 40, 8, 1ULL << 40, REFUSED }, { "L1 offset", 40, 8, 1ULL << 56, REFUSED },
	{ "L1 offset", 40, 8, M1 - 4095, REFUSED }, { "L1 offset", 40, 8, M1, REFUSED },
	{ "refcount table offset", 48, 8, 0, REFUSED }, { "refcount table offset", 48, 8, 8, REFUSED },
	{ "refcount table offset", 48, 8, REFTABLE + 512, REFUSED },
	{ "refcount table offset", 48, 8, L1, REFUSED },
	{ "refcount table offset", 48, 8, REFBLOCK, ANY },
	{ "refcount table offset", 48, 8, 1ULL << 41, REFUSED },
	{ "refcount table offset", 48, 8, 1ULL << 56, REFUSED },
	{ "refcount table offset", 48, 8, M1, REFUSED },
	{ "refcount table clusters", 56, 4, 0, REFUSED }, { "refcount table clusters", 56, 4, 2, ANY },
	{ "refcount table clusters", 56, 4, 3, REFUSED },
	{ "refcount table clusters", 56, 4, 2048, REFUSED },
	{ "refcount table clusters", 56, 4, 2049, REFUSED },
	{ "refcount table clusters", 56, 4, M1, REFUSED },
	{ "snapshots", 60, 4, 1, REFUSED }, { "snapshots", 60, 4, 65536, REFUSED },
	{ "snapshots", 60, 4, 65537, REFUSED }, { "snapshots", 60, 4, M1, REFUSED },
	{ "snapshot offset", 64, 8, M1, OPENS }, { "snapshot offset", 64, 8, 7, OPENS },
	{ "incompatible", 72, 8, 1, OPENS }, { "incompatible", 72, 8, 2, OPENS },
	{ "incompatible", 72, 8, 3, OPENS }, { "incompatible", 72, 8, 4, REFUSED },
	{ "incompatible", 72, 8, 8, REFUSED }, { "incompatible", 72, 8, 16, REFUSED },
	{ "incompatible", 72, 8, 32, REFUSED }, { "incompatible", 72, 8, 1ULL << 63, REFUSED },
	{ "incompatible", 72, 8, M1, REFUSED },
	{ "compatible", 80, 8, 1, OPENS }, { "compatible", 80, 8, 2, OPENS },
	{ "compatible", 80, 8, M1, OPENS },
	{ "autoclear", 88, 8, 1, OPENS }, { "autoclear", 88, 8, 2, OPENS },
	{ "autoclear", 88, 8, 1ULL << 63, OPENS }, { "autoclear", 88, 8, M1, OPENS },
	{ "refcount order", 96, 4, 0, ANY }, { "refcount order", 96, 4, 3, ANY },
	{ "refcount order", 96, 4, 5, ANY }, { "refcount order", 96, 4, 6, ANY },
	{ "refcount order", 96, 4, 7, REFUSED }, { "refcount order", 96, 4, 31, REFUSED },
	{ "refcount order", 96, 4, 32, REFUSED }, { "refcount order", 96, 4, M1, REFUSED },
	{ "header length", 100, 4, 0, REFUSED }, { "header length", 100, 4, 72, REFUSED },
	{ "header length", 100, 4, 103, REFUSED }, { "header length", 100, 4, 104, ANY },
	{ "header length", 100, 4, 105, REFUSED }, { "header length", 100, 4, 4096, OPENS },
	{ "header length", 100, 4, 4104, REFUSED }, { "header length", 100, 4, M1, REFUSED },
	{ "header length", 100, 4, M1 - 7, REFUSED }, { "header length", 100, 4, 0x80000000, REFUSED },
	{ "compression", 104, 1, 1, REFUSED }, { "compression", 104, 1, 2, REFUSED },
	{ "compression", 104, 1, 255, REFUSED },
	{ "extension type", 112, 4, 0xe2792aca, ANY }, { "extension type", 112, 4, 0x23852875, ANY },
	{ "extension type", 112, 4, 0x0537be77, OPENS }, { "extension type", 112, 4, 1, OPENS },
	{ "extension type", 112, 4, M1, OPENS }, { "extension type", 112, 4, 0x44415441, OPENS },
	{ "extension length", 116, 4, 0, ANY }, { "extension length", 116, 4, 1, ANY },
	{ "extension length", 116, 4, 4096, REFUSED }, { "extension length", 116, 4, 3977, REFUSED },
	{ "extension length", 116, 4, 3976, OPENS }, { "extension length", 116, 4, M1, REFUSED },
	{ "extension length", 116, 4, 0x80000000, REFUSED }, { "extension length", 116, 4, M1 - 7, REFUSED },
};

TEST(header_fields)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(fields); i++) {
		const struct field_case *f = &fields[i];

		with(plain, f->name, (struct patch){ f->off, f->bytes, f->value }, f->expect);
	}
	printf("%u images, %u refused\n", images, refused);
}

/* The same positions mean nothing in version 2, or the same. */
TEST(header_fields_of_version_2)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(fields); i++) {
		const struct field_case *f = &fields[i];

		if (f->off >= 20 && f->off < 72 && f->expect == REFUSED)
			with(old, f->name, (struct patch){ f->off, f->bytes, f->value }, REFUSED);
		if (f->off >= 104)
			continue;
		if (f->off >= 72)
			with(old, f->name, (struct patch){ f->off, f->bytes, f->value }, ANY);
	}
	with(old, "version", (struct patch){ 4, 4, 3 }, REFUSED);
	printf("%u images, %u refused\n", images, refused);
}

/* Offsets that an entry of a table can have. */
static const uint64_t offsets[] = {
	0, 1, 512, 4095, REFTABLE, REFBLOCK, L1, L1 + 512, L1 + 4096, 16384, 65536, 1ULL << 30,
	HUGE_FILE, (1ULL << 56) - 4096, (1ULL << 56) - 512, 1ULL << 56, 1ULL << 61,
};
static const uint64_t flags_of_entries[] = { 0, QCOW2_COPIED, QCOW2_COMPRESSED, QCOW2_COPIED | 1, 1 };

static void entries(const char *options, const char *name, uint64_t (*where)(uint64_t l2))
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(offsets); i++) {
		for (size_t k = 0; k < COW_ARRAY_SIZE(flags_of_entries); k++) {
			char full[128];
			uint64_t l2;

			make(options, &l2);
			put(where(l2), 8, offsets[i] | flags_of_entries[k]);
			snprintf(full, sizeof(full), "%s = %#llx (%s)", name,
				 (unsigned long long)(offsets[i] | flags_of_entries[k]), options);
			judge(full, OPENS);
		}
	}
}

static uint64_t at_l1(uint64_t l2)
{
	(void)l2;
	return get(QCOW2_H_L1_OFF, 8);
}

static uint64_t at_l2(uint64_t l2)
{
	return l2;
}

static uint64_t at_reftable(uint64_t l2)
{
	(void)l2;
	return get(QCOW2_H_REFTABLE_OFF, 8);
}

TEST(table_entries)
{
	entries(plain, "L1 entry", at_l1);
	entries(plain, "L2 entry", at_l2);
	entries(old, "L2 entry", at_l2);
	entries(sub, "L2 entry", at_l2);
	entries(plain, "refcount table entry", at_reftable);
	printf("%u images, %u refused\n", images, refused);
}

TEST(subcluster_bitmaps)
{
	static const uint64_t values[] = {
		0, 1, 1ULL << 32, 1ULL << 32 | 1, UINT32_MAX, (uint64_t)UINT32_MAX << 32, UINT64_MAX,
		1ULL << 63, 1ULL << 31, 0xffff0000ffffULL, 0xffff00000000ffffULL, 0x5555555555555555ULL,
	};
	uint64_t l2;

	for (size_t i = 0; i < COW_ARRAY_SIZE(values); i++) {
		make(sub, &l2);
		put(l2 + 8, 8, values[i]);
		judge("bitmap", OPENS);
		make(sub, &l2);
		put(l2 + 16 * 5 + 8, 8, values[i]);
		judge("bitmap without a cluster", OPENS);
	}
}

TEST(refcounts)
{
	for (unsigned cluster = 0; cluster < 12; cluster++) {
		static const uint64_t values[] = { 0, 2, 65535 };

		for (size_t i = 0; i < COW_ARRAY_SIZE(values); i++) {
			uint64_t l2;

			make(plain, &l2);
			put(REFBLOCK + cluster * 2, 2, values[i]);
			judge("refcount", OPENS);
		}
	}
}

/* A snapshot table at the end of the file, and the active L1 table as that of its one snapshot. */
static void make_snapshot(void)
{
	uint64_t l2, at;

	make(plain, &l2);
	at = cow_round_up(cow_sim_size(sim, IMG), CLUSTER);
	put(60, 4, 1);
	put(64, 8, at);
	put(at, 8, L1);
	put(at + 8, 4, 1);
	put(at + 12, 2, 1);
	put(at + 14, 2, 4);
	put(at + 36, 4, 16);
	put(at + 40, 8, 0);
	put(at + 48, 8, SIZE);
	put(at + 56, 1, '1');
	put(at + 57, 4, 0x6e616d65);
}

TEST(snapshot_table)
{
	static const struct {
		unsigned off, bytes;
		uint64_t value;
		bool opens;		/* as a snapshot */
	} cases[] = {
		{ 0, 8, L1, true }, { 0, 8, 0, false }, { 0, 8, L1 + 8, false }, { 0, 8, M1, false },
		{ 0, 8, 1ULL << 56, false }, { 0, 8, (1ULL << 56) - 4096, true },
		{ 8, 4, 0, false }, { 8, 4, 2, true }, { 8, 4, (4u << 20) + 1, false }, { 8, 4, M1, false },
		{ 12, 2, 0, true }, { 12, 2, 65535, true }, { 14, 2, 0, true }, { 14, 2, 65535, true },
		{ 36, 4, 0, false }, { 36, 4, 15, false }, { 36, 4, 1024, true }, { 36, 4, 1025, false },
		{ 36, 4, M1, false }, { 48, 8, 0, false }, { 48, 8, 1, true }, { 48, 8, COW_MIB(2), true },
		{ 48, 8, COW_MIB(2) + 1, false }, { 48, 8, M1, false }, { 48, 8, 1ULL << 56, false },
	};

	for (size_t i = 0; i < COW_ARRAY_SIZE(cases); i++) {
		struct cow_err err;
		struct cow_chain *c;
		uint64_t at;

		make_snapshot();
		at = get(64, 8);
		put(at + cases[i].off, cases[i].bytes, cases[i].value);
		c = open_it(0, i < 10 ? "1" : "name", &err);
		if (c) {
			look(c);
			(void)cow_chain_close(c);
		}
		if (c && !cases[i].opens)
			FAIL("snapshot %u = %#llx was opened", cases[i].off,
			     (unsigned long long)cases[i].value);
		CHECK(!open_it(COW_OPEN_WRITE, "1", &err));
		judge("snapshot table", OPENS);
	}
	make_snapshot();
	CHECK(!open_it(0, "none", &(struct cow_err){ 0 }));
	put(60, 4, 65536);
	judge("many snapshots", OPENS);
}

TEST(compressed_entries)
{
	static const uint64_t where[] = { 1, 512, 4096, 65536, 100000, 1ULL << 40, (1ULL << 58) - 1 };

	for (size_t i = 0; i < COW_ARRAY_SIZE(where); i++) {
		for (uint64_t sectors = 0; sectors < 16; sectors += 5) {
			uint64_t l2;

			make(plain, &l2);
			put(l2, 8, QCOW2_COMPRESSED | sectors << 58 | where[i]);
			judge("compressed entry", OPENS);
			make("cluster_size=4K,compression_type=zstd", &l2);
			put(l2, 8, QCOW2_COMPRESSED | sectors << 58 | where[i]);
			judge("compressed entry (zstd)", OPENS);
		}
	}
	printf("%u images, %u refused\n", images, refused);
}

/* Data entries that point at metadata: nothing is written there, and the image is marked. */
TEST(data_over_metadata)
{
	static const uint64_t areas[] = { REFTABLE, REFBLOCK, L1, L1 + CLUSTER };

	for (size_t i = 0; i < COW_ARRAY_SIZE(areas); i++) {
		uint8_t before[CLUSTER], after[CLUSTER], data[512] = { 1 };
		struct cow_err err;
		struct cow_chain *c;
		uint64_t l2;

		make(plain, &l2);
		CHECK_EQ(l2, L1 + CLUSTER);
		put(l2 + 8 * 9, 8, areas[i] | QCOW2_COPIED);
		CHECK_EQ(cow_sim_read(sim, IMG, before, CLUSTER, areas[i]), 0);
		c = open_it(COW_OPEN_WRITE, NULL, &err);
		CHECK(c);
		CHECK_EQ(cow_chain_pwrite(c, data, sizeof(data), 9 * CLUSTER), -EIO);
		CHECK_EQ(cow_chain_zero(c, 9 * CLUSTER, CLUSTER), -EIO);
		CHECK_EQ(cow_chain_pwrite(c, data, sizeof(data), 0), -EIO);
		CHECK_EQ(cow_chain_close(c), 0);
		CHECK_EQ(cow_sim_read(sim, IMG, after, CLUSTER, areas[i]), 0);
		CHECK(memcmp(before, after, CLUSTER) == 0);
		CHECK(get(72, 8) & QCOW2_INCOMPAT_CORRUPT);
		CHECK(!open_it(COW_OPEN_WRITE, NULL, &err));
		CHECK(strstr(err.msg, "marked as damaged"));
	}
}
