// SPDX-License-Identifier: GPL-2.0-or-later
/* cow/kv.h: the bytes of both styles, and hostile strings. */
#include "cow/kv.h"

#include <errno.h>

#include "test.h"

static char *out;
static size_t out_len;

static struct cow_kv *begin(FILE **f, enum cow_kv_style style)
{
	*f = open_memstream(&out, &out_len);
	CHECK(*f);
	return cow_kv_new(*f, style, 3);
}

static void finish(FILE *f, struct cow_kv *kv, const char *want)
{
	CHECK_EQ(cow_kv_end(kv), 0);
	fclose(f);
	CHECK_STR(out, want);
	free(out);
}

static void fill(struct cow_kv *kv)
{
	cow_kv_str(kv, "name", "disk");
	cow_kv_size(kv, "size", 65536);
	cow_kv_i64(kv, "min", INT64_MIN);
	cow_kv_u64(kv, "max", UINT64_MAX);
	cow_kv_bool(kv, "ro", true);
	cow_kv_list(kv, "map");
	for (int i = 0; i < 2; i++) {
		cow_kv_object(kv, NULL);
		cow_kv_u64(kv, "virt", (uint64_t)i);
		cow_kv_bool(kv, "data", false);
		cow_kv_close(kv);
	}
	cow_kv_close(kv);
	cow_kv_object(kv, "empty");
	cow_kv_close(kv);
	cow_kv_list(kv, "names");
	cow_kv_str(kv, NULL, "a");
	cow_kv_str(kv, NULL, "b");
	cow_kv_close(kv);
	cow_kv_object(kv, "deep");
	cow_kv_size(kv, "x", 7);
	cow_kv_close(kv);
}

TEST(json)
{
	FILE *f;
	struct cow_kv *kv = begin(&f, COW_KV_JSON);

	fill(kv);
	finish(f, kv, "{\"schema\": 3, \"name\": \"disk\", \"size\": 65536, "
	       "\"min\": -9223372036854775808, \"max\": 18446744073709551615, \"ro\": true, "
	       "\"map\": [{\"virt\": 0, \"data\": false}, {\"virt\": 1, \"data\": false}], "
	       "\"empty\": {}, \"names\": [\"a\", \"b\"], \"deep\": {\"x\": 7}}\n");
}

TEST(text)
{
	FILE *f;
	struct cow_kv *kv = begin(&f, COW_KV_TEXT);

	fill(kv);
	finish(f, kv, "name: disk\nsize: 65536 (64 KiB)\nmin: -9223372036854775808\n"
	       "max: 18446744073709551615\nro: yes\nmap:\n  - virt: 0\n    data: no\n"
	       "  - virt: 1\n    data: no\nempty:\nnames:\n  - a\n  - b\ndeep:\n  x: 7\n");
}

/* A string that an image could hold, and how each style must show it. */
static const struct {
	const char *raw, *json, *text;
} strings[] = {
	{ "", "", "" },
	{ "a\"b\\c", "a\\\"b\\\\c", "a\"b\\c" },
	{ "l1\nl2\tx\r", "l1\\nl2\\tx\\r", "l1\\nl2\\tx\\r" },
	{ "\x01\x1b[2J\x7f", "\\u0001\\u001b[2J\\u007f", "\\u0001\\u001b[2J\\u007f" },
	{ "\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x84", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x84",
	  "\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x84" },
	{ "\xc2\x9b" "1m", "\\u009b1m", "\\u009b1m" },			/* C1: a terminal obeys it */
	{ "\xff", "\xef\xbf\xbd", "\xef\xbf\xbd" },
	{ "\x80", "\xef\xbf\xbd", "\xef\xbf\xbd" },
	{ "\xc3", "\xef\xbf\xbd", "\xef\xbf\xbd" },			/* cut off */
	{ "\xe2\x82", "\xef\xbf\xbd\xef\xbf\xbd", "\xef\xbf\xbd\xef\xbf\xbd" },
	{ "\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd", "\xef\xbf\xbd\xef\xbf\xbd" },	/* overlong '/' */
	{ "\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd",
	  "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" },			/* surrogate */
	{ "\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd",
	  "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" },		/* beyond U+10FFFF */
	{ "ok\xfe" "ok", "ok\xef\xbf\xbdok", "ok\xef\xbf\xbdok" },
};

TEST(hostile_strings)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(strings); i++) {
		char want[256];
		FILE *f;
		struct cow_kv *kv = begin(&f, COW_KV_JSON);

		cow_kv_str(kv, "s", strings[i].raw);
		snprintf(want, sizeof(want), "{\"schema\": 3, \"s\": \"%s\"}\n", strings[i].json);
		finish(f, kv, want);

		kv = begin(&f, COW_KV_TEXT);
		cow_kv_str(kv, "s", strings[i].raw);
		snprintf(want, sizeof(want), "s: %s\n", strings[i].text);
		finish(f, kv, want);
	}
}

/* Whatever the bytes, the JSON is plain: no raw control byte, no quote unescaped. */
TEST(random_strings)
{
	for (int round = 0; round < 2000; round++) {
		char s[33];
		size_t n = test_rand_below(sizeof(s));
		bool escaped = false;
		FILE *f;
		struct cow_kv *kv;
		const char *p;

		for (size_t i = 0; i < n; i++)
			s[i] = (char)(1 + test_rand_below(255));
		s[n] = '\0';
		kv = begin(&f, COW_KV_JSON);
		cow_kv_str(kv, "s", s);
		CHECK_EQ(cow_kv_end(kv), 0);
		fclose(f);
		p = out + strlen("{\"schema\": 3, \"s\": \"");
		for (; *p && (escaped || *p != '"'); p++) {
			CHECK((unsigned char)*p >= 0x20 && *p != 0x7f);
			escaped = !escaped && *p == '\\';
		}
		CHECK_STR(p, "\"}\n");
		free(out);
	}
}

TEST(full_device_is_an_error)
{
	FILE *f = fopen("/dev/full", "w");
	struct cow_kv *kv;

	CHECK(f);
	kv = cow_kv_new(f, COW_KV_JSON, 1);
	cow_kv_str(kv, "a", "b");
	CHECK_EQ(cow_kv_end(kv), -ENOSPC);
	fclose(f);
	f = fopen("/dev/full", "w");
	CHECK(f);
	kv = cow_kv_new(f, COW_KV_TEXT, 1);
	for (int i = 0; i < 10000; i++)	/* fails long before the end */
		cow_kv_u64(kv, "number", 1);
	CHECK_EQ(cow_kv_end(kv), -ENOSPC);
	fclose(f);
}
