// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Facts that the man pages must tell, asked from the code. As a test: every
 * installed format loads and describes itself and its options. With an
 * argument it is the source of the shell tests man-*.sh:
 *
 *	man-facts formats	"NAME cap CAP..." and "NAME key KEY" lines
 *	man-facts openmetrics	the counters of a device
 *	man-facts stats		the same as JSON
 *	man-facts status	what a device tells of itself, as JSON
 */
#include "test.h"

#include <stdlib.h>

#include "cow/dev.h"
#include "run.h"

static const struct {
	uint32_t cap;
	const char *name;
} caps[] = {
	{ COW_CAP_WRITE, "write" }, { COW_CAP_CREATE, "create" }, { COW_CAP_BACKING, "backing" },
};

static void check_opts(const char *format, const struct cow_opt *opts)
{
	for (; opts && opts->key; opts++) {
		struct cow_args *args = cow_args_new();
		struct cow_err err = { 0 };

		if (!opts->help || !*opts->help)
			FAIL("%s: option %s has no help", format, opts->key);
		CHECK(args);
		if (opts->def) {
			CHECK_EQ(cow_args_set(args, opts->key, opts->def), 0);
			if (cow_args_check(args, opts, format, &err))
				FAIL("%s: the default of %s: %s", format, opts->key, err.msg);
		}
		cow_args_free(args);
	}
}

TEST(formats_describe_themselves)
{
	char **names = cow_format_list();
	const struct cow_format *fmt;
	struct cow_err err = { 0 };

	CHECK(names && names[0]);
	for (char **n = names; *n; n++) {
		if (cow_format_find(*n, &fmt, &err))
			FAIL("%s: %s", *n, err.msg);
		CHECK(*fmt->desc && *fmt->version);
		check_opts(*n, fmt->opts);
		check_opts(*n, fmt->create_opts);
		check_opts(*n, fmt->amend_opts);
	}
	cow_free(names);
}

static void print_keys(const char *format, const struct cow_opt *opts)
{
	for (; opts && opts->key; opts++)
		printf("%s key %s\n", format, opts->key);
}

static int print_formats(void)
{
	char **names = cow_format_list();
	const struct cow_format *fmt;

	for (char **n = names; n && *n; n++) {
		if (cow_format_find(*n, &fmt, NULL))
			return 1;
		printf("%s cap read", *n);
		if (fmt->decode)
			printf(" encoded");
		if (fmt->snapshot)
			printf(" snapshot");
		for (size_t i = 0; i < COW_ARRAY_SIZE(caps); i++)
			if (fmt->caps & caps[i].cap)
				printf(" %s", caps[i].name);
		printf("\n");
		print_keys(*n, fmt->opts);
		print_keys(*n, fmt->create_opts);
		print_keys(*n, fmt->amend_opts);
	}
	cow_free(names);
	return 0;
}

/* A device over the format that needs no file. */
static int print_device(const char *what)
{
	struct cow_chain_cfg chain_cfg = { .format = "zero", .path = "none" };
	struct cow_dev_cfg dev_cfg = { .name = "none" };
	struct cow_loop *loop = cow_loop_new();
	struct cow_chain *chain;
	struct cow_dev *dev;
	struct cow_kv *kv;

	if (!loop || cow_chain_open(&chain_cfg, &chain, NULL) ||
	    cow_dev_new(loop, chain, &dev_cfg, &dev))
		return 1;
	if (!strcmp(what, "openmetrics")) {
		cow_dev_stats_openmetrics(dev, stdout);
	} else {
		kv = cow_kv_new(stdout, COW_KV_JSON, 1);
		if (!kv)
			return 1;
		if (!strcmp(what, "stats"))
			cow_dev_stats_kv(dev, kv);
		else
			cow_dev_status(dev, kv);
		cow_kv_end(kv);
	}
	cow_dev_free(dev);
	cow_loop_free(loop);
	return 0;
}

int main(int argc, char **argv)
{
	setenv("COW_PLUGIN_DIR", TEST_BUILD "/lib/cow", 0);
	if (argc == 2 && !strcmp(argv[1], "formats"))
		return print_formats();
	if (argc == 2 && (!strcmp(argv[1], "openmetrics") || !strcmp(argv[1], "stats") ||
			  !strcmp(argv[1], "status")))
		return print_device(argv[1]);
	return test_run(argc, argv);
}
