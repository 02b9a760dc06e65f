// SPDX-License-Identifier: GPL-2.0-or-later
/* cow/util.h: sizes, checked arithmetic, byte order, lists, the allocator. */
#include "cow/util.h"

#include <errno.h>

#include "test.h"

TEST(parse_size_good)
{
	static const struct {
		const char *s;
		uint64_t v;
	} t[] = {
		{ "0", 0 }, { "1", 1 }, { "512b", 512 }, { "4096", 4096 }, { "64K", 65536 },
		{ "64k", 65536 }, { "3M", 3 << 20 }, { "1G", COW_GIB(1) }, { "64T", COW_TIB(64) },
		{ "2P", 2ULL << 50 }, { "15E", 15ULL << 60 }, { "007", 7 },
		{ "18446744073709551615", UINT64_MAX },
	};

	for (size_t i = 0; i < COW_ARRAY_SIZE(t); i++) {
		uint64_t v = 12345;

		if (cow_parse_size(t[i].s, &v) || v != t[i].v)
			FAIL("\"%s\" gives %" PRIu64, t[i].s, v);
	}
}

TEST(parse_size_bad)
{
	static const char *const bad[] = {
		"", " 1", "1 ", "-1", "+1", "K", "1.5G", "0x10", "1KK", "1Ki", "1KiB", "1,0", "one",
		"99999999999999999999x",
	};
	static const char *const range[] = {
		"18446744073709551616", "16E", "16777216T", "99999999999999999999999999",
	};
	uint64_t v = 12345;

	for (size_t i = 0; i < COW_ARRAY_SIZE(bad); i++)
		if (cow_parse_size(bad[i], &v) != -EINVAL)
			FAIL("\"%s\" is not refused", bad[i]);
	for (size_t i = 0; i < COW_ARRAY_SIZE(range); i++)
		if (cow_parse_size(range[i], &v) != -ERANGE)
			FAIL("\"%s\" is not out of range", range[i]);
	CHECK_EQ(v, 12345);
}

TEST(human_size)
{
	char b[32];

	CHECK_STR(cow_human_size(0, b, sizeof(b)), "0 B");
	CHECK_STR(cow_human_size(1023, b, sizeof(b)), "1023 B");
	CHECK_STR(cow_human_size(1024, b, sizeof(b)), "1 KiB");
	CHECK_STR(cow_human_size(65536, b, sizeof(b)), "64 KiB");
	CHECK_STR(cow_human_size(COW_GIB(3) / 2, b, sizeof(b)), "1.5 GiB");
	CHECK_STR(cow_human_size(COW_MIB(1) - 1, b, sizeof(b)), "1023.9 KiB");
	CHECK_STR(cow_human_size(537919488, b, sizeof(b)), "513 MiB");
	CHECK_STR(cow_human_size(UINT64_MAX, b, sizeof(b)), "15.9 EiB");
}

TEST(arithmetic)
{
	uint64_t v = 7;

	CHECK(cow_add_ok(UINT64_MAX - 1, 1, &v));
	CHECK(v == UINT64_MAX);
	CHECK(!cow_add_ok(UINT64_MAX, 1, &v));
	CHECK(cow_mul_ok(1ULL << 32, (1ULL << 32) - 1, &v));
	CHECK(!cow_mul_ok(1ULL << 32, 1ULL << 32, &v));
	CHECK_EQ(cow_round_down(8191, 4096), 4096);
	CHECK_EQ(cow_round_up(4097, 4096), 8192);
	CHECK_EQ(cow_round_up(0, 4096), 0);
	CHECK(cow_div_up(UINT64_MAX, 2) == 1ULL << 63);
	CHECK_EQ(cow_div_up(0, 4096), 0);
	CHECK(!cow_is_pow2(0) && cow_is_pow2(1) && !cow_is_pow2(3) && cow_is_pow2(1ULL << 63));
}

TEST(byte_order)
{
	uint8_t b[9] = { 0 };

	cow_put_le64(b + 1, 0x0123456789abcdefULL);	/* unaligned on purpose */
	CHECK_EQ(b[1], 0xef);
	CHECK_EQ(b[8], 0x01);
	CHECK(cow_get_le64(b + 1) == 0x0123456789abcdefULL);
	CHECK_EQ(cow_get_le32(b + 1), 0x89abcdef);
	CHECK_EQ(cow_get_le16(b + 1), 0xcdef);
	cow_put_le32(b + 1, 1);
	cow_put_le16(b + 1, 2);
	CHECK_EQ(cow_get_le32(b + 1), 2);
}

struct item {
	int n;
	struct cow_list node;
};

TEST(lists)
{
	struct cow_list a, b, *p, *tmp;
	struct item it[6];
	int seen = 0;

	cow_list_init(&a);
	cow_list_init(&b);
	for (int i = 0; i < 6; i++) {
		it[i].n = i;
		cow_list_add_tail(i < 3 ? &a : &b, &it[i].node);
	}
	cow_list_splice(&b, &a);
	CHECK(cow_list_empty(&b));
	cow_list_splice(&b, &a);	/* of nothing */
	cow_list_for_each_safe(p, tmp, &a) {
		CHECK_EQ(cow_list_entry(p, struct item, node)->n, seen++);
		cow_list_del(p);
	}
	CHECK_EQ(seen, 6);
	CHECK(cow_list_empty(&a));
	cow_list_del(&it[0].node);	/* twice is harmless */
}

static int allocations, fail_at;

static bool fail_nth(void)
{
	return ++allocations == fail_at;
}

TEST(allocator_fails_on_demand)
{
	char *s[4] = { NULL };
	int ok = 0;

	cow_alloc_should_fail = fail_nth;
	for (fail_at = 1; fail_at <= 4; fail_at++) {
		allocations = 0;
		s[0] = cow_zalloc(0);
		s[1] = cow_memalign(4096, 10);
		s[2] = cow_strdup("x");
		s[3] = cow_asprintf("%d", 5);
		for (int i = 0; i < 4; i++) {
			ok += (s[i] == NULL) == (i + 1 == fail_at);
			cow_free(s[i]);
		}
	}
	cow_alloc_should_fail = NULL;
	CHECK_EQ(ok, 16);
}

TEST(allocations)
{
	COW_CLEANUP_FREE char *z = cow_zalloc(100), *s = cow_asprintf("%s-%d", "a", 42);
	COW_CLEANUP_FREE void *m = cow_memalign(4096, 1);
	COW_CLEANUP_FREE char *long_one = cow_asprintf("%5000d", 7);

	for (int i = 0; i < 100; i++)
		CHECK_EQ(z[i], 0);
	CHECK_STR(s, "a-42");
	CHECK_EQ((uintptr_t)m % 4096, 0);
	CHECK_EQ(strlen(long_one), 5000);
}
