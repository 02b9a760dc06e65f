// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Crafted qcow images, one for each field and boundary (badimage.h).
 */
#include <errno.h>

#include "badimage.h"
#include "qcow/qcow-priv.h"
#include "test.h"

#define SIZE COW_MIB(5)		/* three L2 tables of 2 MiB each */
#define L1 4096u		/* the layout that create makes: clusters of 4 KiB, tables of 512 entries */
#define L2 8192u
#define DATA 12288u		/* the cluster of byte 0 */
#define EOF_OFF 65536u		/* behind everything */
#define M1 UINT64_MAX

/* The L1 table may have moved, for blocks of its own. */
static void l1_may_move(uint8_t *head, const uint8_t *before)
{
	memcpy(head + QCOW_H_L1_OFF, before + QCOW_H_L1_OFF, 8);
}

const struct bad_kind bad_kind = {
	.format = "qcow", .size = SIZE, .header_bytes = QCOW_H_BYTES, .may_change = l1_may_move,
};

static const struct {
	const char *name;
	unsigned off, bytes;
	uint64_t value;
	enum bad_expect expect;
} fields[] = {
	{ "magic", 0, 4, 0, BAD_REFUSED }, { "magic", 0, 4, 0x514649fa, BAD_REFUSED },
	{ "magic", 0, 4, M1, BAD_REFUSED },
	{ "version", 4, 4, 0, BAD_REFUSED }, { "version", 4, 4, 2, BAD_REFUSED },
	{ "version", 4, 4, 3, BAD_REFUSED }, { "version", 4, 4, 4, BAD_REFUSED },
	{ "version", 4, 4, M1, BAD_REFUSED },
	{ "backing offset without a length", 8, 8, 48, BAD_OPENS },
	{ "backing offset without a length", 8, 8, M1, BAD_OPENS },
	{ "backing length without an offset", 16, 4, 8, BAD_OPENS },
	{ "backing length without an offset", 16, 4, M1, BAD_OPENS },
	{ "mtime", 20, 4, M1, BAD_OPENS },
	{ "size", 24, 8, 0, BAD_REFUSED }, { "size", 24, 8, 1, BAD_REFUSED },
	{ "size", 24, 8, 2, BAD_OPENS }, { "size", 24, 8, 511, BAD_OPENS },
	{ "size", 24, 8, 4097, BAD_OPENS }, { "size", 24, 8, SIZE + 1, BAD_OPENS },
	{ "size", 24, 8, COW_MIB(6), BAD_OPENS }, { "size", 24, 8, COW_MIB(6) + 1, BAD_OPENS },
	{ "size", 24, 8, COW_GIB(1) + 1, BAD_OPENS }, { "size", 24, 8, COW_GIB(40), BAD_REFUSED },
	{ "size", 24, 8, 8ULL << 40, BAD_REFUSED }, { "size", 24, 8, (8ULL << 40) + 1, BAD_REFUSED },
	{ "size", 24, 8, 1ULL << 56, BAD_REFUSED }, { "size", 24, 8, (1ULL << 56) + 1, BAD_REFUSED },
	{ "size", 24, 8, 1ULL << 63, BAD_REFUSED }, { "size", 24, 8, M1, BAD_REFUSED },
	{ "size", 24, 8, M1 - 4095, BAD_REFUSED }, { "size", 24, 8, M1 - (2ULL << 20), BAD_REFUSED },
	{ "cluster bits", 32, 1, 0, BAD_REFUSED }, { "cluster bits", 32, 1, 8, BAD_REFUSED },
	{ "cluster bits", 32, 1, 9, BAD_OPENS }, { "cluster bits", 32, 1, 11, BAD_OPENS },
	{ "cluster bits", 32, 1, 13, BAD_OPENS }, { "cluster bits", 32, 1, 16, BAD_OPENS },
	{ "cluster bits", 32, 1, 17, BAD_REFUSED }, { "cluster bits", 32, 1, 31, BAD_REFUSED },
	{ "cluster bits", 32, 1, 32, BAD_REFUSED }, { "cluster bits", 32, 1, 63, BAD_REFUSED },
	{ "cluster bits", 32, 1, 64, BAD_REFUSED }, { "cluster bits", 32, 1, 128, BAD_REFUSED },
	{ "cluster bits", 32, 1, 255, BAD_REFUSED },
	{ "L2 bits", 33, 1, 0, BAD_REFUSED }, { "L2 bits", 33, 1, 5, BAD_REFUSED },
	{ "L2 bits", 33, 1, 6, BAD_OPENS }, { "L2 bits", 33, 1, 8, BAD_OPENS },
	{ "L2 bits", 33, 1, 10, BAD_OPENS }, { "L2 bits", 33, 1, 13, BAD_OPENS },
	{ "L2 bits", 33, 1, 14, BAD_REFUSED }, { "L2 bits", 33, 1, 32, BAD_REFUSED },
	{ "L2 bits", 33, 1, 63, BAD_REFUSED }, { "L2 bits", 33, 1, 128, BAD_REFUSED },
	{ "L2 bits", 33, 1, 255, BAD_REFUSED },
	{ "padding", 34, 2, 65535, BAD_OPENS },
	{ "crypt", 36, 4, 1, BAD_REFUSED }, { "crypt", 36, 4, 2, BAD_REFUSED },
	{ "crypt", 36, 4, 0x80000000, BAD_REFUSED }, { "crypt", 36, 4, M1, BAD_REFUSED },
	{ "L1 offset", 40, 8, 0, BAD_REFUSED }, { "L1 offset", 40, 8, 1, BAD_REFUSED },
	{ "L1 offset", 40, 8, 40, BAD_REFUSED }, { "L1 offset", 40, 8, 47, BAD_REFUSED },
	{ "L1 offset", 40, 8, 48, BAD_OPENS }, { "L1 offset", 40, 8, 56, BAD_OPENS },
	{ "L1 offset", 40, 8, L1 + 4, BAD_REFUSED }, { "L1 offset", 40, 8, L1 + 8, BAD_OPENS },
	{ "L1 offset", 40, 8, L1 + 512, BAD_OPENS }, { "L1 offset", 40, 8, L2, BAD_OPENS },
	{ "L1 offset", 40, 8, L2 + 8, BAD_OPENS }, { "L1 offset", 40, 8, DATA, BAD_OPENS },
	{ "L1 offset", 40, 8, EOF_OFF, BAD_REFUSED }, { "L1 offset", 40, 8, 1ULL << 40, BAD_REFUSED },
	{ "L1 offset", 40, 8, 1ULL << 47, BAD_REFUSED }, { "L1 offset", 40, 8, 1ULL << 63, BAD_REFUSED },
	{ "L1 offset", 40, 8, M1 - 7, BAD_REFUSED }, { "L1 offset", 40, 8, M1, BAD_REFUSED },
	{ "Xen's magic", 48, 4, QCOW_XEN_MAGIC, BAD_OPENS },
};

TEST(header_fields)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(fields); i++)
		bad_with("", fields[i].name, fields[i].off, fields[i].bytes, fields[i].value,
			 fields[i].expect);
	bad_tell();
}

/* Name of the base: offset, length, and what stands there. */
TEST(names_of_the_base)
{
	static const struct {
		uint64_t off, len;
		const char *text;
		enum bad_expect expect;
	} cases[] = {
		{ 48, 4, "base", BAD_OPENS }, { 47, 4, "base", BAD_REFUSED }, { 0, 4, "base", BAD_OPENS },
		{ 1, 4, "base", BAD_REFUSED }, { 40, 16, "base", BAD_REFUSED },
		{ 100, 1023, "", BAD_REFUSED }, { 100, 1024, "base", BAD_REFUSED },
		{ 100, UINT32_MAX, "base", BAD_REFUSED }, { 100, 5, "base", BAD_REFUSED },
		{ 100, 0, "base", BAD_OPENS }, { L1 - 4, 4, "base", BAD_OPENS },
		{ L1 - 3, 4, "base", BAD_REFUSED }, { L1, 4, "base", BAD_REFUSED },
		{ L1 + 16, 8, "the base", BAD_REFUSED }, { L1 + 24, 8, "the base", BAD_OPENS },
		{ EOF_OFF, 4, "", BAD_REFUSED }, { 1ULL << 47, 4, "", BAD_REFUSED },
		{ 1ULL << 63, 4, "", BAD_REFUSED }, { M1, 4, "", BAD_REFUSED }, { M1 - 3, 4, "", BAD_REFUSED },
		{ 100, 4, "a/\n", BAD_REFUSED }, { L2 + 8, 4, "base", BAD_OPENS },
	};

	for (size_t i = 0; i < COW_ARRAY_SIZE(cases); i++) {
		char name[64];

		bad_make("");
		bad_put(QCOW_H_BACKING_OFF, 8, cases[i].off);
		bad_put(QCOW_H_BACKING_LEN, 4, cases[i].len);
		if (cases[i].off < EOF_OFF && cases[i].off >= QCOW_H_BYTES)
			CHECK_EQ(cow_sim_write(bad_machine(), BAD_IMG, cases[i].text, strlen(cases[i].text),
					       cases[i].off), 0);
		snprintf(name, sizeof(name), "base's name, case %zu", i);
		bad_judge(name, cases[i].expect);
	}
	bad_tell();
}

/* The record of the base's format, before its name. */
TEST(records)
{
	static const struct {
		const char *format;
		enum bad_expect expect;
	} cases[] = {
		{ "raw", BAD_OPENS }, { "", BAD_OPENS }, { "qcow2", BAD_OPENS }, { "Raw", BAD_REFUSED },
		{ "../raw", BAD_REFUSED }, { "raw\n", BAD_REFUSED }, { "sixteen_chars_xx", BAD_REFUSED },
		{ "fifteen_chars_x", BAD_OPENS }, { "json:", BAD_REFUSED }, { " ", BAD_REFUSED },
	};

	for (size_t i = 0; i < COW_ARRAY_SIZE(cases); i++) {
		bad_make("");
		bad_put(QCOW_H_BACKING_OFF, 8, 200);
		bad_put(QCOW_H_BACKING_LEN, 4, 4);
		bad_put(176, 4, QCOW_RECORD_MAGIC);
		CHECK_EQ(cow_sim_write(bad_machine(), BAD_IMG, cases[i].format,
				       cow_min(strlen(cases[i].format), 16), 184), 0);
		bad_put(200, 4, 0x62617365);
		bad_judge(cases[i].format, cases[i].expect);
	}
	bad_tell();
}

/* Places that an entry of a table can say. */
static const uint64_t places[] = {
	1, 8, 47, 48, 511, 512, L1 - 512, L1, L1 + 512, L2, L2 + 512, L2 + 4088, DATA, DATA + 512, DATA + 1,
	4 * 4096, EOF_OFF, 1ULL << 30, 1ULL << 40, (1ULL << 47) - 65536, (1ULL << 47) - 4096,
	(1ULL << 47) - 512, 1ULL << 47, 1ULL << 56, 1ULL << 62, (1ULL << 63) - 512, 1ULL << 63, M1, M1 - 511,
};

static void entries(const char *options, const char *name, uint64_t at)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(places); i++)
		bad_with(options, name, at, 8, places[i], BAD_OPENS);
}

TEST(table_entries)
{
	entries("", "L1 entry", L1);
	entries("", "L1 entry that is not in use", L1 + 8);
	entries("", "L2 entry", L2);
	entries("", "L2 entry that is not in use", L2 + 8 * 100);
	bad_tell();
}

/* Lengths of the stored form, at places that there are and that there are not. */
TEST(compressed_entries)
{
	static const uint64_t where[] = { 0, 1, 48, 512, L1 + 3, L2, DATA, DATA + 100, EOF_OFF, 1ULL << 40,
					  (1ULL << 47) - 1, (1ULL << 51) - 1 };
	static const uint64_t lengths[] = { 0, 1, 100, 4095 };

	for (size_t i = 0; i < COW_ARRAY_SIZE(where); i++) {
		for (size_t k = 0; k < COW_ARRAY_SIZE(lengths); k++)
			bad_with("", "compressed entry", L2, 8,
				 QCOW_COMPRESSED | lengths[k] << 51 | where[i], BAD_OPENS);
	}
	bad_tell();
}

/* With Xen's header, and its L1 table in both byte orders. */
TEST(headers_of_xen)
{
	static const struct {
		uint64_t flags, l1;
		bool sound;
	} cases[] = {
		{ 2, L2, true }, { 3, L2, true }, { 0, L2, false }, { 1, 0x0020000000000000, true },
		{ 0, 0x0020000000000000, true }, { 2, 0x0020000000000000, false }, { UINT32_MAX, L2, true },
	};

	for (size_t i = 0; i < COW_ARRAY_SIZE(cases); i++) {
		struct cow_err err = { 0 };
		struct cow_chain *c;
		uint8_t byte = 0;

		bad_make("");
		bad_put(QCOW_XEN_OFF, 4, QCOW_XEN_MAGIC);
		bad_put(QCOW_XEN_FLAGS, 4, cases[i].flags);
		bad_put(L1, 8, cases[i].l1);
		bad_put(L1 + 8, 8, 0);
		c = bad_open(0, "", &err);
		CHECK(c);
		CHECK_EQ(cow_chain_pread(c, &byte, 1, 100) == 0 && byte == 0x5a, cases[i].sound);
		CHECK_EQ(cow_chain_close(c), 0);
		bad_judge("Xen's header", BAD_OPENS);
	}
	bad_tell();
}

/* Data entries that point at metadata: nothing is written there, and nothing else from then on. */
TEST(data_over_metadata)
{
	static const uint64_t areas[] = { L1, L1 - 512, L2, L2 + 512, 512 };

	for (size_t i = 0; i < COW_ARRAY_SIZE(areas); i++) {
		uint8_t before[4096], after[4096], data[512] = { 1 };
		struct cow_err err = { 0 };
		struct cow_chain *c;

		bad_make("");
		bad_put(L2 + 8 * 9, 8, areas[i]);
		CHECK_EQ(cow_sim_read(bad_machine(), BAD_IMG, before, 4096, areas[i]), 0);
		c = bad_open(COW_OPEN_WRITE, "", &err);
		if (areas[i] < L2) {	/* the L1 table would have to move, for something lies in its block */
			CHECK(!c && strstr(err.msg, "upon the L1 table"));
			continue;
		}
		CHECK(c);
		CHECK_EQ(cow_chain_pwrite(c, data, sizeof(data), 9 * 4096), -EIO);
		CHECK_EQ(cow_chain_zero(c, 9 * 4096, 4096), -EIO);
		CHECK_EQ(cow_chain_pwrite(c, data, sizeof(data), 0), -EIO);
		CHECK_EQ(cow_chain_close(c), 0);
		CHECK_EQ(cow_sim_read(bad_machine(), BAD_IMG, after, 4096, areas[i]), 0);
		CHECK(memcmp(before, after, sizeof(before)) == 0);
	}
}

/* Entries behind the end of the file, as QEMU leaves them after a power cut, are cleared by a repair. */
TEST(entries_behind_the_end)
{
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };
	struct cow_chain *c;
	uint8_t data[512] = { 7 }, got[512];

	bad_make("");
	bad_put(L1 + 16, 8, COW_MIB(1));
	bad_put(L2 + 8 * 9, 8, COW_MIB(2));
	c = bad_open(COW_OPEN_WRITE, "", &err);	/* can be written to all the same, and is not mixed up */
	CHECK(c);
	for (unsigned i = 0; i < 300; i++)
		CHECK_EQ(cow_chain_pwrite(c, data, sizeof(data), COW_MIB(2) + i * 4096), 0);
	CHECK_EQ(cow_chain_pread(c, got, sizeof(got), COW_MIB(4)), 0);
	CHECK(got[0] == 0);
	CHECK_EQ(cow_chain_close(c), 0);
	bad_make("");
	bad_put(L1 + 16, 8, COW_MIB(1));
	bad_put(L2 + 8 * 9, 8, COW_MIB(2));
	c = bad_open(COW_OPEN_WRITE | COW_OPEN_CHECK, "", &err);
	CHECK(c);
	CHECK_EQ(cow_chain_check(c, &rep, COW_CHECK_REPAIR, &err), 0);
	CHECK_EQ(rep.corruptions, 2);
	CHECK_EQ(rep.repaired, 2);
	rep = (struct cow_report){ 0 };
	CHECK_EQ(cow_chain_check(c, &rep, 0, &err), 0);
	CHECK_EQ(rep.corruptions + rep.leaks, 0);
	CHECK_EQ(cow_chain_close(c), 0);
	CHECK_EQ(bad_get(L1 + 16, 8), 0);
	CHECK_EQ(bad_get(L2 + 8 * 9, 8), 0);
}

/* The largest table, of which every entry is the same place: bounded in time and memory. */
TEST(bombs)
{
	static const uint64_t same[] = { 0, 1, 2 };

	for (size_t i = 0; i < COW_ARRAY_SIZE(same); i++) {
		uint64_t n = 4u << 20, *table = cow_zalloc(COW_KIB(64));
		struct cow_err err = { 0 };
		struct cow_chain *c;
		uint8_t byte;

		CHECK(table);
		bad_make("");
		bad_put(QCOW_H_SIZE, 8, n << 21);
		for (uint64_t at = 0; at < n; at += 8192) {
			for (uint64_t k = 0; k < 8192; k++)
				table[k] = htobe64(same[i] == 0 ? L2 : COW_GIB(1) + (at + k) * 4096 * same[i]);
			CHECK_EQ(cow_sim_write(bad_machine(), BAD_IMG, table, COW_KIB(64),
					       COW_MIB(1) + at * 8), 0);
		}
		cow_free(table);
		bad_put(QCOW_H_L1_OFF, 8, COW_MIB(1));
		bad_bounds_begin("bomb");
		c = bad_open(0, "", &err);
		CHECK(c);
		CHECK_EQ(bad_within(cow_chain_pread(c, &byte, 1, COW_GIB(3))), 0);
		CHECK_EQ(bad_within(cow_chain_check(c, &(struct cow_report){ 0 }, 0, &err)), 0);
		CHECK_EQ(cow_chain_close(c), 0);
		c = bad_open(COW_OPEN_WRITE, "", &err);
		CHECK(same[i] == 0 ? !c && strstr(err.msg, "upon each other") : c != NULL);
		if (c)
			CHECK_EQ(cow_chain_close(c), 0);
		bad_bounds_end();
	}
	bad_tell();
}

TEST(images_enough)
{
	bad_enough(100);
}
