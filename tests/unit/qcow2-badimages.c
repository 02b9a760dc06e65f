// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Crafted qcow2 images, one for each field and boundary. Each is refused in one
 * sentence, or opened and used soundly: no crash, no data over metadata, what
 * was written reads back, and nothing becomes worse that was well.
 */
#include <errno.h>

#include "badimage.h"
#include "qcow2/qcow2-priv.h"
#include "test.h"

#define SIZE COW_MIB(1)
#define CLUSTER 4096u
#define REFTABLE 4096u			/* the layout that create makes */
#define REFBLOCK 8192u
#define L1 12288u
#define HUGE_FILE (1ULL << 50)
#define KEPT_BYTES 72u			/* of the header: what version 2 has */

/* The refcount table may have moved. */
static void reftable_may_move(uint8_t *head, const uint8_t *before)
{
	memcpy(head + QCOW2_H_REFTABLE_OFF, before + QCOW2_H_REFTABLE_OFF, 12);
}

const struct bad_kind bad_kind = {
	.format = "qcow2", .size = SIZE, .header_bytes = KEPT_BYTES, .may_change = reftable_may_move,
};

static const char plain[] = "cluster_size=4K";
static const char sub[] = "cluster_size=16K,extended_l2=on";
static const char old[] = "cluster_size=4K,compat=0.10";

struct field_case {
	const char *name;
	unsigned off, bytes;
	uint64_t value;
	enum bad_expect expect;
};

#define M1 UINT64_MAX
static const struct field_case fields[] = {
	{ "magic", 0, 4, 0, BAD_REFUSED }, { "magic", 0, 4, 0x514649fa, BAD_REFUSED },
	{ "version", 4, 4, 0, BAD_REFUSED }, { "version", 4, 4, 1, BAD_REFUSED },
	{ "version", 4, 4, 4, BAD_REFUSED }, { "version", 4, 4, M1, BAD_REFUSED },
	{ "version", 4, 4, 2, BAD_ANY },
	{ "backing offset", 8, 8, 1, BAD_REFUSED }, { "backing offset", 8, 8, 111, BAD_REFUSED },
	{ "backing offset", 8, 8, 4096, BAD_REFUSED },
	{ "backing offset", 8, 8, 4095, BAD_REFUSED }, { "backing offset", 8, 8, M1, BAD_REFUSED },
	{ "backing offset", 8, 8, 1ULL << 63, BAD_REFUSED },
	{ "backing offset", 8, 8, 104, BAD_REFUSED },
	{ "backing length", 16, 4, 1024, BAD_OPENS },
	{ "cluster bits", 20, 4, 0, BAD_REFUSED }, { "cluster bits", 20, 4, 8, BAD_REFUSED },
	{ "cluster bits", 20, 4, 9, BAD_ANY }, { "cluster bits", 20, 4, 11, BAD_ANY },
	{ "cluster bits", 20, 4, 13, BAD_ANY }, { "cluster bits", 20, 4, 16, BAD_REFUSED },
	{ "cluster bits", 20, 4, 21, BAD_REFUSED }, { "cluster bits", 20, 4, 22, BAD_REFUSED },
	{ "cluster bits", 20, 4, 63, BAD_REFUSED }, { "cluster bits", 20, 4, M1, BAD_REFUSED },
	{ "size", 24, 8, 0, BAD_REFUSED }, { "size", 24, 8, 1, BAD_OPENS },
	{ "size", 24, 8, 511, BAD_OPENS }, { "size", 24, 8, SIZE + 1, BAD_ANY },
	{ "size", 24, 8, COW_MIB(2), BAD_OPENS }, { "size", 24, 8, COW_MIB(2) + 1, BAD_REFUSED },
	{ "size", 24, 8, 1ULL << 56, BAD_REFUSED },
	{ "size", 24, 8, (1ULL << 56) + 1, BAD_REFUSED },
	{ "size", 24, 8, 1ULL << 63, BAD_REFUSED }, { "size", 24, 8, M1, BAD_REFUSED },
	{ "size", 24, 8, M1 - 4095, BAD_REFUSED },
	{ "crypt", 32, 4, 1, BAD_REFUSED }, { "crypt", 32, 4, 2, BAD_REFUSED },
	{ "crypt", 32, 4, 3, BAD_REFUSED }, { "crypt", 32, 4, M1, BAD_REFUSED },
	{ "L1 size", 36, 4, 0, BAD_REFUSED }, { "L1 size", 36, 4, 2, BAD_ANY },
	{ "L1 size", 36, 4, 512, BAD_ANY }, { "L1 size", 36, 4, 4u << 20, BAD_ANY },
	{ "L1 size", 36, 4, (4u << 20) + 1, BAD_REFUSED }, { "L1 size", 36, 4, M1, BAD_REFUSED },
	{ "L1 size", 36, 4, 0x80000000, BAD_REFUSED },
	{ "L1 offset", 40, 8, 0, BAD_REFUSED }, { "L1 offset", 40, 8, 1, BAD_REFUSED },
	{ "L1 offset", 40, 8, L1 + 8, BAD_REFUSED }, { "L1 offset", 40, 8, L1 + 512, BAD_REFUSED },
	{ "L1 offset", 40, 8, REFTABLE, BAD_REFUSED }, { "L1 offset", 40, 8, REFBLOCK, BAD_ANY },
	{ "L1 offset", 40, 8, 1ULL << 40, BAD_REFUSED },
	{ "L1 offset", 40, 8, 1ULL << 56, BAD_REFUSED },
	{ "L1 offset", 40, 8, M1 - 4095, BAD_REFUSED }, { "L1 offset", 40, 8, M1, BAD_REFUSED },
	{ "refcount table offset", 48, 8, 0, BAD_REFUSED },
	{ "refcount table offset", 48, 8, 8, BAD_REFUSED },
	{ "refcount table offset", 48, 8, REFTABLE + 512, BAD_REFUSED },
	{ "refcount table offset", 48, 8, L1, BAD_REFUSED },
	{ "refcount table offset", 48, 8, REFBLOCK, BAD_ANY },
	{ "refcount table offset", 48, 8, 1ULL << 41, BAD_REFUSED },
	{ "refcount table offset", 48, 8, 1ULL << 56, BAD_REFUSED },
	{ "refcount table offset", 48, 8, M1, BAD_REFUSED },
	{ "refcount table clusters", 56, 4, 0, BAD_REFUSED },
	{ "refcount table clusters", 56, 4, 2, BAD_ANY },
	{ "refcount table clusters", 56, 4, 3, BAD_REFUSED },
	{ "refcount table clusters", 56, 4, 2048, BAD_REFUSED },
	{ "refcount table clusters", 56, 4, 2049, BAD_REFUSED },
	{ "refcount table clusters", 56, 4, M1, BAD_REFUSED },
	{ "snapshots", 60, 4, 1, BAD_REFUSED }, { "snapshots", 60, 4, 65536, BAD_REFUSED },
	{ "snapshots", 60, 4, 65537, BAD_REFUSED }, { "snapshots", 60, 4, M1, BAD_REFUSED },
	{ "snapshot offset", 64, 8, M1, BAD_OPENS }, { "snapshot offset", 64, 8, 7, BAD_OPENS },
	{ "incompatible", 72, 8, 1, BAD_OPENS }, { "incompatible", 72, 8, 2, BAD_OPENS },
	{ "incompatible", 72, 8, 3, BAD_OPENS }, { "incompatible", 72, 8, 4, BAD_REFUSED },
	{ "incompatible", 72, 8, 8, BAD_REFUSED }, { "incompatible", 72, 8, 16, BAD_REFUSED },
	{ "incompatible", 72, 8, 32, BAD_REFUSED },
	{ "incompatible", 72, 8, 1ULL << 63, BAD_REFUSED },
	{ "incompatible", 72, 8, M1, BAD_REFUSED },
	{ "compatible", 80, 8, 1, BAD_OPENS }, { "compatible", 80, 8, 2, BAD_OPENS },
	{ "compatible", 80, 8, M1, BAD_OPENS },
	{ "autoclear", 88, 8, 1, BAD_OPENS }, { "autoclear", 88, 8, 2, BAD_OPENS },
	{ "autoclear", 88, 8, 1ULL << 63, BAD_OPENS }, { "autoclear", 88, 8, M1, BAD_OPENS },
	{ "refcount order", 96, 4, 0, BAD_ANY }, { "refcount order", 96, 4, 3, BAD_ANY },
	{ "refcount order", 96, 4, 5, BAD_ANY }, { "refcount order", 96, 4, 6, BAD_ANY },
	{ "refcount order", 96, 4, 7, BAD_REFUSED }, { "refcount order", 96, 4, 31, BAD_REFUSED },
	{ "refcount order", 96, 4, 32, BAD_REFUSED }, { "refcount order", 96, 4, M1, BAD_REFUSED },
	{ "header length", 100, 4, 0, BAD_REFUSED }, { "header length", 100, 4, 72, BAD_REFUSED },
	{ "header length", 100, 4, 103, BAD_REFUSED }, { "header length", 100, 4, 104, BAD_ANY },
	{ "header length", 100, 4, 105, BAD_REFUSED }, { "header length", 100, 4, 4096, BAD_OPENS },
	{ "header length", 100, 4, 4104, BAD_REFUSED },
	{ "header length", 100, 4, M1, BAD_REFUSED },
	{ "header length", 100, 4, M1 - 7, BAD_REFUSED },
	{ "header length", 100, 4, 0x80000000, BAD_REFUSED },
	{ "compression", 104, 1, 1, BAD_REFUSED }, { "compression", 104, 1, 2, BAD_REFUSED },
	{ "compression", 104, 1, 255, BAD_REFUSED },
	{ "extension type", 112, 4, 0xe2792aca, BAD_ANY },
	{ "extension type", 112, 4, 0x23852875, BAD_ANY },
	{ "extension type", 112, 4, 0x0537be77, BAD_OPENS },
	{ "extension type", 112, 4, 1, BAD_OPENS }, { "extension type", 112, 4, M1, BAD_OPENS },
	{ "extension type", 112, 4, 0x44415441, BAD_REFUSED },
	{ "extension length", 116, 4, 0, BAD_ANY }, { "extension length", 116, 4, 1, BAD_ANY },
	{ "extension length", 116, 4, 4096, BAD_REFUSED },
	{ "extension length", 116, 4, 3977, BAD_REFUSED },
	{ "extension length", 116, 4, 3976, BAD_OPENS },
	{ "extension length", 116, 4, M1, BAD_REFUSED },
	{ "extension length", 116, 4, 0x80000000, BAD_REFUSED },
	{ "extension length", 116, 4, M1 - 7, BAD_REFUSED },
};

TEST(header_fields)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(fields); i++) {
		const struct field_case *f = &fields[i];

		bad_with(plain, f->name, f->off, f->bytes, f->value, f->expect);
	}
	bad_tell();
}

/* The same positions mean nothing in version 2, or the same. */
TEST(header_fields_of_version_2)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(fields); i++) {
		const struct field_case *f = &fields[i];

		if (f->off >= 20 && f->off < 72 && f->expect == BAD_REFUSED)
			bad_with(old, f->name, f->off, f->bytes, f->value, BAD_REFUSED);
		if (f->off >= 104)
			continue;
		if (f->off >= 72)
			bad_with(old, f->name, f->off, f->bytes, f->value, BAD_ANY);
	}
	bad_with(old, "version", 4, 4, 3, BAD_REFUSED);
	bad_tell();
}

/* Offsets that an entry of a table can have. */
static const uint64_t offsets[] = {
	0, 1, 512, 4095, REFTABLE, REFBLOCK, L1, L1 + 512, L1 + 4096, 16384, 65536, 1ULL << 30,
	HUGE_FILE, (1ULL << 56) - 4096, (1ULL << 56) - 512, 1ULL << 56, 1ULL << 61,
};
static const uint64_t flags_of_entries[] = { 0, QCOW2_COPIED, QCOW2_COMPRESSED, QCOW2_COPIED | 1, 1 };

/* Images made with the same options are the same, so what lies at @where does in all of them. */
static void entries(const char *options, const char *name, uint64_t (*where)(void))
{
	uint64_t at;

	bad_make(options);
	at = where();
	for (size_t i = 0; i < COW_ARRAY_SIZE(offsets); i++) {
		for (size_t k = 0; k < COW_ARRAY_SIZE(flags_of_entries); k++)
			bad_with(options, name, at, 8, offsets[i] | flags_of_entries[k], BAD_OPENS);
	}
}

static uint64_t at_l1(void)
{
	return bad_get(QCOW2_H_L1_OFF, 8);
}

static uint64_t at_l2(void)
{
	return bad_get(at_l1(), 8) & QCOW2_OFFSET_MASK;
}

static uint64_t at_reftable(void)
{
	return bad_get(QCOW2_H_REFTABLE_OFF, 8);
}

/* Of a range where nothing is. */
static uint64_t at_reftable_spare(void)
{
	return at_reftable() + 8;
}

TEST(table_entries)
{
	entries(plain, "L1 entry", at_l1);
	entries(plain, "L2 entry", at_l2);
	entries(old, "L2 entry", at_l2);
	entries(sub, "L2 entry", at_l2);
	entries(plain, "refcount table entry", at_reftable);
	entries(plain, "spare refcount table entry", at_reftable_spare);
	bad_tell();
}

TEST(subcluster_bitmaps)
{
	static const uint64_t values[] = {
		0, 1, 1ULL << 32, 1ULL << 32 | 1, UINT32_MAX, (uint64_t)UINT32_MAX << 32, UINT64_MAX,
		1ULL << 63, 1ULL << 31, 0xffff0000ffffULL, 0xffff00000000ffffULL, 0x5555555555555555ULL,
	};

	for (size_t i = 0; i < COW_ARRAY_SIZE(values); i++) {
		bad_make(sub);
		bad_put(at_l2() + 8, 8, values[i]);
		bad_judge("bitmap", BAD_OPENS);
		bad_make(sub);
		bad_put(at_l2() + 16 * 5 + 8, 8, values[i]);
		bad_judge("bitmap without a cluster", BAD_OPENS);
	}
}

TEST(refcounts)
{
	for (unsigned cluster = 0; cluster < 12; cluster++) {
		static const uint64_t values[] = { 0, 2, 65535 };

		for (size_t i = 0; i < COW_ARRAY_SIZE(values); i++) {
			bad_make(plain);
			bad_put(REFBLOCK + cluster * 2, 2, values[i]);
			bad_judge("refcount", BAD_OPENS);
		}
	}
}

/* A snapshot table at the end of the file, and the active L1 table as that of its one snapshot. */
static void make_snapshot(void)
{
	uint64_t at;

	bad_make(plain);
	at = cow_round_up(cow_sim_size(bad_machine(), BAD_IMG), CLUSTER);
	bad_put(60, 4, 1);
	bad_put(64, 8, at);
	bad_put(at, 8, L1);
	bad_put(at + 8, 4, 1);
	bad_put(at + 12, 2, 1);
	bad_put(at + 14, 2, 4);
	bad_put(at + 36, 4, 16);
	bad_put(at + 40, 8, 0);
	bad_put(at + 48, 8, SIZE);
	bad_put(at + 56, 1, '1');
	bad_put(at + 57, 4, 0x6e616d65);
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
		struct cow_err err = { 0 };
		struct cow_chain *c;
		uint64_t at;

		make_snapshot();
		at = bad_get(64, 8);
		bad_put(at + cases[i].off, cases[i].bytes, cases[i].value);
		c = bad_open(0, i < 10 ? "snapshot=1" : "snapshot=name", &err);
		if (c) {
			(void)bad_look(c);
			(void)cow_chain_close(c);
		}
		if (c && !cases[i].opens)
			FAIL("snapshot %u = %#llx was opened", cases[i].off,
			     (unsigned long long)cases[i].value);
		CHECK(!bad_open(COW_OPEN_WRITE, "snapshot=1", &err));
		bad_judge("snapshot table", BAD_OPENS);
	}
	make_snapshot();
	CHECK(!bad_open(0, "snapshot=none", &(struct cow_err){ 0 }));
	bad_put(60, 4, 65536);
	bad_judge("many snapshots", BAD_OPENS);
}

/* An image with two bitmaps that record, and changes in them. *ret: of their extension's data. */
static void make_bitmaps(uint64_t *ret)
{
	static const char *const names[] = { "one", "two" };
	uint64_t at;
	struct cow_err err = { 0 };
	struct cow_chain *c;

	bad_make(plain);
	c = bad_open(COW_OPEN_WRITE, "", &err);
	for (unsigned i = 0; i < 2; i++) {
		struct cow_bitmap_change ch = { .op = COW_BITMAP_ADD, .name = names[i],
						.granularity = 4096 };

		CHECK(c && cow_chain_bitmap(c, &ch, &err) == 0);
	}
	CHECK_EQ(cow_chain_pwrite(c, "changed", 7, SIZE / 2), 0);
	CHECK_EQ(cow_chain_close(c), 0);
	for (at = bad_get(100, 4); bad_get(at, 4) != QCOW2_EXT_BITMAPS; )
		at += 8 + cow_round_up(bad_get(at + 4, 4), 8);
	*ret = at + 8;
}

/* All that stands in the extension, in a directory entry and in a table. */
TEST(bitmaps)
{
	static const struct {
		enum { EXT, ENTRY, TABLE } where;
		unsigned off, bytes;
		uint64_t values[16];
	} cases[] = {
		{ EXT, 0, 4, { 0, 1, 2, 3, 65535, 65536, M1 } },
		{ EXT, 8, 8, { 0, 1, 24, 32, 63, 64, 65, 4096, 64u << 20, (64u << 20) + 1, 1ULL << 63, M1 } },
		{ EXT, 16, 8, { 0, 1, L1, REFTABLE, REFBLOCK, 512, 1ULL << 40, 1ULL << 56, M1 - 4095, M1 } },
		{ ENTRY, 0, 8, { 0, 1, L1, REFTABLE, REFBLOCK, 512, 1ULL << 40, 1ULL << 56, M1 - 4095, M1 } },
		{ ENTRY, 8, 4, { 0, 2, 512, 8u << 20, (8u << 20) + 1, 0x8000000, M1 } },
		{ ENTRY, 12, 4, { 0, 1, 2, 3, 4, 6, 7, 8, 10, 1u << 31, M1 } },
		{ ENTRY, 16, 1, { 0, 1, 2, 255 } },
		{ ENTRY, 17, 1, { 0, 1, 8, 9, 13, 16, 31, 32, 55, 56, 62, 63, 64, 128, 255 } },
		{ ENTRY, 18, 2, { 0, 1, 2, 8, 9, 1023, 1024, 65535 } },
		{ ENTRY, 20, 4, { 0, 1, 4, 5, 8, 4096, 1u << 31, M1 } },
		{ TABLE, 0, 8, { 0, 1, 2, 512, L1, L1 + 1, REFTABLE, REFBLOCK, 1ULL << 40, 1ULL << 55,
				 1ULL << 56, 1ULL << 63, M1 - 4095, M1 } },
	};

	for (size_t i = 0; i < COW_ARRAY_SIZE(cases); i++) {
		for (size_t k = 0; k < COW_ARRAY_SIZE(cases[i].values); k++) {
			uint64_t ext, dir, at;

			if (k && cases[i].values[k] == 0)
				break;
			make_bitmaps(&ext);
			dir = bad_get(ext + 16, 8);
			at = cases[i].where == EXT ? ext : cases[i].where == ENTRY ? dir : bad_get(dir, 8);
			bad_put(at + cases[i].off, cases[i].bytes, cases[i].values[k]);
			bad_judge("bitmaps", BAD_ANY);
		}
	}
	bad_tell();
}

TEST(compressed_entries)
{
	static const uint64_t where[] = { 1, 512, 4096, 65536, 100000, 1ULL << 40, (1ULL << 58) - 1 };

	for (size_t i = 0; i < COW_ARRAY_SIZE(where); i++) {
		for (uint64_t sectors = 0; sectors < 16; sectors += 5) {
			bad_make(plain);
			bad_put(at_l2(), 8, QCOW2_COMPRESSED | sectors << 58 | where[i]);
			bad_judge("compressed entry", BAD_OPENS);
			bad_make("cluster_size=4K,compression_type=zstd");
			bad_put(at_l2(), 8, QCOW2_COMPRESSED | sectors << 58 | where[i]);
			bad_judge("compressed entry (zstd)", BAD_OPENS);
		}
	}
	bad_tell();
}

/* ---- entries that point at metadata: it does not change by a byte ---- */

/* With a snapshot, of which the active tables are no part, and a spare cluster for each of its own. */
static void make_areas(const char *options)
{
	struct cow_err err = { 0 };
	uint8_t data[512] = { 7 };
	struct cow_chain *c;

	bad_make(options);
	c = bad_open(COW_OPEN_WRITE, "", &err);
	CHECK(c);
	if (cow_chain_snapshot(c, COW_SNAPSHOT_CREATE, "s", &err))
		FAIL("snapshot: %s", err.msg);
	CHECK_EQ(cow_chain_pwrite(c, data, sizeof(data), 0), 0);
	CHECK_EQ(cow_chain_close(c), 0);
}

static uint64_t header_area(void)
{
	return 0;
}

static uint64_t refblock_area(void)
{
	return bad_get(at_reftable(), 8);
}

static uint64_t snapshot_table_area(void)
{
	return bad_get(QCOW2_H_SNAPSHOTS_OFF, 8);
}

static uint64_t snapshot_l1_area(void)
{
	return bad_get(snapshot_table_area(), 8);
}

static uint64_t snapshot_l2_area(void)
{
	return bad_get(snapshot_l1_area(), 8) & QCOW2_OFFSET_MASK;
}

static const struct {
	const char *name;
	uint64_t (*where)(void);
} areas[] = {
	{ "header", header_area }, { "refcount table", at_reftable }, { "refcount block", refblock_area },
	{ "L1 table", at_l1 }, { "L2 table", at_l2 }, { "snapshot table", snapshot_table_area },
	{ "L1 table of a snapshot", snapshot_l1_area }, { "L2 table of a snapshot", snapshot_l2_area },
};

/* What a kind of entry is when it points at @where; 0: it cannot. */
static uint64_t entry_of(unsigned kind, uint64_t where)
{
	switch (kind) {
	case 0:
		return where ? where | QCOW2_COPIED : 0;
	case 1:
		return where ? where | QCOW2_COPIED | QCOW2_ZERO : 0;
	case 2:
		return where;			/* shared, it says */
	default:
		return QCOW2_COMPRESSED | (where + 600);
	}
}

static const char *const entry_kinds[] = { "data", "preallocated zeroes", "shared data", "compressed" };

/* All kinds of change of the cluster at @virt. True: one of them was refused. */
static bool change(struct cow_chain *c, uint64_t virt, uint64_t cluster)
{
	uint8_t data[512] = { 1 };
	bool refused = cow_chain_pwrite(c, data, sizeof(data), virt + 512) == -EIO;

	refused |= cow_chain_zero(c, virt, cluster) == -EIO;
	refused |= cow_chain_discard(c, virt, cluster) == -EIO;
	(void)cow_chain_flush(c);
	return refused;
}

/* What of an area writing may change for other reasons: refcounts of data, marks in the header. */
static void leave_out(unsigned area, uint8_t *bytes, uint64_t cluster)
{
	if (areas[area].where == header_area)
		memset(bytes + KEPT_BYTES, 0, 512 - KEPT_BYTES);
	if (areas[area].where != refblock_area)
		return;
	for (size_t i = 0; i < COW_ARRAY_SIZE(areas); i++)	/* the areas' own stay */
		bytes[areas[i].where() / cluster * 2] |= 0x80;
	for (uint64_t i = 0; i < cluster; i += 2) {
		if (!(bytes[i] & 0x80))
			bytes[i + 1] = 0;
	}
}

static void entry_upon_area(const char *options, uint64_t cluster, unsigned area, unsigned kind)
{
	static uint8_t before[16384], after[16384];
	uint64_t where, entry, at, victim = 40;
	struct cow_err err = { 0 };
	struct cow_chain *c;
	bool refused;

	make_areas(options);
	where = areas[area].where();
	entry = entry_of(kind, where);
	at = at_l2() + victim * (options == sub ? 16 : 8);
	if (!entry || (options == sub && kind == 1))
		return;
	bad_put(at, 8, entry);
	if (options == sub && kind != 3)
		bad_put(at + 8, 8, UINT32_MAX);
	CHECK_EQ(cow_sim_read(bad_machine(), BAD_IMG, before, cluster, where), 0);
	c = bad_open(COW_OPEN_WRITE, "", &err);
	if (!c)
		FAIL("%s at the %s: %s", entry_kinds[kind], areas[area].name, err.msg);
	refused = change(c, victim * cluster, cluster);
	(void)cow_chain_close(c);
	CHECK_EQ(cow_sim_read(bad_machine(), BAD_IMG, after, cluster, where), 0);
	if (areas[area].where == at_l2) {	/* the entry itself is there */
		memcpy(after + (at - where), before + (at - where), options == sub ? 16 : 8);
	}
	leave_out(area, before, cluster);
	leave_out(area, after, cluster);
	if (memcmp(before, after, cluster))
		FAIL("%s at the %s (%s): the area changed", entry_kinds[kind], areas[area].name, options);
	if (kind > 1)
		return;		/* those get a cluster of their own */
	if (!refused || !(bad_get(QCOW2_H_INCOMPAT, 8) & QCOW2_INCOMPAT_CORRUPT))
		FAIL("%s at the %s (%s): not refused, or the image not marked", entry_kinds[kind],
		     areas[area].name, options);
	CHECK(!bad_open(COW_OPEN_WRITE, "", &err));
	CHECK(strstr(err.msg, "marked as damaged"));
}

/* Where data would lie upon metadata nothing is written, and the image is marked. */
TEST(data_over_metadata)
{
	unsigned n = 0;

	for (unsigned area = 0; area < COW_ARRAY_SIZE(areas); area++) {
		for (unsigned kind = 0; kind < COW_ARRAY_SIZE(entry_kinds); kind++) {
			entry_upon_area(plain, 4096, area, kind);
			entry_upon_area(sub, 16384, area, kind);
			n += 2;
		}
	}
	printf("%u pairs of an area and an entry\n", n);
}

/* Tables that would lie upon metadata: the image is not opened for writing, and stays as it is. */
TEST(tables_over_metadata)
{
	static const struct {
		const char *name;
		uint64_t (*where)(void);
	} tables[] = {
		{ "L1 entry", at_l1 }, { "refcount table entry", at_reftable },
		{ "spare refcount table entry", at_reftable_spare },
		{ "L1 entry of a snapshot", snapshot_l1_area }, { "L1 table of a snapshot", snapshot_table_area },
	};
	static uint8_t before[1 << 18], after[1 << 18];

	for (unsigned area = 0; area < COW_ARRAY_SIZE(areas); area++) {
		for (unsigned i = 0; i < COW_ARRAY_SIZE(tables); i++) {
			struct cow_err err = { 0 };
			uint64_t at, where, size;

			make_areas(plain);
			at = tables[i].where();
			where = areas[area].where();
			size = cow_sim_size(bad_machine(), BAD_IMG);
			CHECK(size <= sizeof(before));
			/* What an entry has already, what says that there is none, what is shared by right. */
			if ((bad_get(at, 8) & QCOW2_OFFSET_MASK) == where || where == 0 ||
			    (tables[i].where == snapshot_l1_area && areas[area].where == at_l2) ||
			    (tables[i].where == snapshot_table_area && areas[area].where == snapshot_l2_area) ||
			    (tables[i].where == at_l1 && areas[area].where == snapshot_l2_area))
				continue;
			bad_put(at, 8, where | (tables[i].where == at_l1 ? QCOW2_COPIED : 0));
			CHECK_EQ(cow_sim_read(bad_machine(), BAD_IMG, before, size, 0), 0);
			if (bad_open(COW_OPEN_WRITE, "", &err))
				FAIL("%s at the %s: was opened for writing", tables[i].name, areas[area].name);
			CHECK(strstr(err.msg, "repair"));
			CHECK_EQ(cow_sim_size(bad_machine(), BAD_IMG), size);
			CHECK_EQ(cow_sim_read(bad_machine(), BAD_IMG, after, size, 0), 0);
			CHECK(memcmp(before, after, size) == 0);
		}
	}
}

#ifdef HAVE_GCRYPT

#define KEY "key_file=/proc/sys/kernel/ostype"	/* any file that is there, and stays as it is */
#define EXT (QCOW2_H_BYTES + 16)		/* of LUKS, behind the place of the one with the base's format */
#define LUKS 16384u				/* behind the L1 table: the header, */
#define LUKS_BYTES 2052096u
#define SLOT0 (LUKS + 208)			/* its slots, of which the first is in use */
#define SLOT1 (SLOT0 + 48)

static const struct field_case luks_fields[] = {
	{ "crypt", 32, 4, 0, BAD_REFUSED }, { "crypt", 32, 4, 1, BAD_REFUSED },
	{ "crypt", 32, 4, 3, BAD_REFUSED },
	{ "extension", EXT, 4, 0x12345678, BAD_REFUSED }, { "extension", EXT, 4, 0, BAD_REFUSED },
	{ "its length", EXT + 4, 4, 8, BAD_REFUSED }, { "its length", EXT + 4, 4, 24, BAD_REFUSED },
	{ "place", EXT + 8, 8, 0, BAD_REFUSED }, { "place", EXT + 8, 8, LUKS + 512, BAD_REFUSED },
	{ "place", EXT + 8, 8, REFTABLE, BAD_REFUSED }, { "place", EXT + 8, 8, L1, BAD_REFUSED },
	{ "place", EXT + 8, 8, LUKS + 4096, BAD_REFUSED }, { "place", EXT + 8, 8, HUGE_FILE, BAD_REFUSED },
	{ "place", EXT + 8, 8, M1 - 4095, BAD_REFUSED },
	{ "bytes", EXT + 16, 8, 0, BAD_REFUSED }, { "bytes", EXT + 16, 8, 591, BAD_REFUSED },
	{ "bytes", EXT + 16, 8, 592, BAD_REFUSED }, { "bytes", EXT + 16, 8, 4096 + 255999, BAD_REFUSED },
	{ "bytes", EXT + 16, 8, 4096 + 256000, BAD_OPENS },
	{ "bytes", EXT + 16, 8, (16u << 20) + 1, BAD_REFUSED }, { "bytes", EXT + 16, 8, M1, BAD_REFUSED },
	{ "magic", LUKS, 4, 0, BAD_REFUSED }, { "magic", LUKS + 4, 2, 0xbabf, BAD_REFUSED },
	{ "version", LUKS + 6, 2, 0, BAD_REFUSED }, { "version", LUKS + 6, 2, 2, BAD_REFUSED },
	{ "cipher", LUKS + 8, 1, 0, BAD_REFUSED }, { "cipher", LUKS + 8, 1, 7, BAD_REFUSED },
	{ "cipher", LUKS + 11, 8, M1, BAD_REFUSED },
	{ "mode", LUKS + 40, 1, 0, BAD_REFUSED }, { "mode", LUKS + 40, 4, 0x63626300, BAD_REFUSED },
	{ "mode", LUKS + 43, 1, ':', BAD_REFUSED },
	{ "hash", LUKS + 72, 1, 0, BAD_REFUSED }, { "hash", LUKS + 77, 1, '4', BAD_REFUSED },
	{ "payload", LUKS + 104, 4, M1, BAD_OPENS },
	{ "key bytes", LUKS + 108, 4, 0, BAD_REFUSED }, { "key bytes", LUKS + 108, 4, 16, BAD_REFUSED },
	{ "key bytes", LUKS + 108, 4, 32, BAD_REFUSED }, { "key bytes", LUKS + 108, 4, 63, BAD_REFUSED },
	{ "key bytes", LUKS + 108, 4, 65, BAD_REFUSED }, { "key bytes", LUKS + 108, 4, 128, BAD_REFUSED },
	{ "key bytes", LUKS + 108, 4, M1, BAD_REFUSED },
	{ "digest", LUKS + 112, 8, 0, BAD_REFUSED }, { "digest's salt", LUKS + 132, 8, 0, BAD_REFUSED },
	{ "digest's iterations", LUKS + 164, 4, 0, BAD_REFUSED },
	{ "digest's iterations", LUKS + 164, 4, 1, BAD_REFUSED },
	{ "digest's iterations", LUKS + 164, 4, 1 << 26, BAD_REFUSED },
	{ "digest's iterations", LUKS + 164, 4, M1, BAD_REFUSED },
	{ "UUID", LUKS + 168, 8, M1, BAD_OPENS },
	{ "slot 0", SLOT0, 4, 0, BAD_REFUSED }, { "slot 0", SLOT0, 4, 0xdead, BAD_REFUSED },
	{ "its iterations", SLOT0 + 4, 4, 0, BAD_REFUSED }, { "its iterations", SLOT0 + 4, 4, 1, BAD_REFUSED },
	{ "its iterations", SLOT0 + 4, 4, 1 << 25, BAD_REFUSED },
	{ "its iterations", SLOT0 + 4, 4, M1, BAD_REFUSED },
	{ "its salt", SLOT0 + 8, 8, 0, BAD_REFUSED },
	{ "its material", SLOT0 + 40, 4, 0, BAD_REFUSED }, { "its material", SLOT0 + 40, 4, 1, BAD_REFUSED },
	{ "its material", SLOT0 + 40, 4, 2, BAD_REFUSED },
	{ "its material", SLOT0 + 40, 4, LUKS_BYTES / 512 - 500, BAD_REFUSED },
	{ "its material", SLOT0 + 40, 4, LUKS_BYTES / 512 - 499, BAD_REFUSED },
	{ "its material", SLOT0 + 40, 4, M1, BAD_REFUSED },
	{ "its stripes", SLOT0 + 44, 4, 0, BAD_REFUSED }, { "its stripes", SLOT0 + 44, 4, 1, BAD_REFUSED },
	{ "its stripes", SLOT0 + 44, 4, 4001, BAD_REFUSED }, { "its stripes", SLOT0 + 44, 4, M1, BAD_REFUSED },
	{ "slot 1", SLOT1, 4, 0xac71f3, BAD_REFUSED }, { "slot 1", SLOT1, 4, 1, BAD_REFUSED },
	{ "its iterations", SLOT1 + 4, 4, M1, BAD_OPENS }, { "its material", SLOT1 + 40, 4, M1, BAD_OPENS },
	{ "its stripes", SLOT1 + 44, 4, 0, BAD_OPENS },
	{ "size", 24, 8, SIZE - 1, BAD_REFUSED },
};

TEST(encryption)
{
	bad_open_options = KEY;
	for (size_t i = 0; i < COW_ARRAY_SIZE(luks_fields); i++)
		bad_with("cluster_size=4K,encrypt.format=luks,encrypt.iter-time=1," KEY, luks_fields[i].name,
			 luks_fields[i].off, luks_fields[i].bytes, luks_fields[i].value,
			 luks_fields[i].expect);
	bad_tell();
	bad_open_options = "";
}

#endif

TEST(images_enough)
{
	bad_enough(300);
}
