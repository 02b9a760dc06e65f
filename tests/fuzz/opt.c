// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Sizes and key=value options, as they come from command lines and units.
 */
#include <stdio.h>

#include "cow/opt.h"
#include "fuzz.h"

static const struct cow_opt opts[] = {
	{ "name", COW_OPT_STR, NULL, "a string" },
	{ "size", COW_OPT_SIZE, "64K", "a size" },
	{ "on", COW_OPT_BOOL, "off", "a switch" },
	{ "n", COW_OPT_U64, "0", "a number" },
	{ 0 },
};

static void one_size(const char *text)
{
	uint64_t v, again;
	char num[32];

	if (cow_parse_size(text, &v))
		return;
	snprintf(num, sizeof(num), "%llu", (unsigned long long)v);
	FUZZ_CHECK(cow_parse_size(num, &again) == 0 && again == v);
	FUZZ_CHECK(strlen(cow_human_size(v, num, sizeof(num))) < sizeof(num));
}

static void one_set(const char *text)
{
	struct cow_args *args = cow_args_new();
	struct cow_err err = { 0 };
	const char *key, *value;
	size_t iter = 0;
	int rc;

	FUZZ_CHECK(args);
	rc = cow_args_parse(args, text, &err);
	FUZZ_CHECK(rc == 0 || (rc < 0 && err.msg[0]));
	while (cow_args_next(args, &iter, &key, &value)) {
		FUZZ_CHECK(key && value && *key);
		if (rc == 0)
			FUZZ_CHECK(strcmp(cow_args_str(args, key, ""), value) == 0);
	}
	if (rc == 0 && cow_args_check(args, opts, "fuzz", &err) == 0) {
		(void)cow_args_str(args, "name", NULL);
		(void)cow_args_size(args, "size", 1);
		(void)cow_args_bool(args, "on", false);
		(void)cow_args_size(args, "n", 1);
	}
	cow_args_free(args);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);

	FUZZ_CHECK(text);
	memcpy(text, data, size);
	text[size] = 0;
	one_size(text);
	one_set(text);
	free(text);
	return 0;
}
