// SPDX-License-Identifier: GPL-2.0-or-later
/* cow/opt.h: key=value sets and command lines. */
#include "cow/opt.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

static const struct cow_opt table[] = {
	{ "block", COW_OPT_SIZE, "64K", "size of a block" },
	{ "name", COW_OPT_STR, NULL, "a name" },
	{ "sync", COW_OPT_BOOL, "off", "write through" },
	{ "depth", COW_OPT_U64, NULL, "how deep" },
	{ NULL, 0, NULL, NULL },
};

TEST(args_parse)
{
	struct cow_args *a = cow_args_new();
	const char *k, *v;
	size_t it = 0;

	CHECK_EQ(cow_args_parse(a, "", NULL), 0);
	CHECK(!cow_args_next(a, &it, &k, &v));
	CHECK_EQ(cow_args_parse(a, "block=4K,sync,name=a,,b=c,depth=", NULL), 0);
	CHECK(cow_args_next(a, &it, &k, &v));
	CHECK_STR(k, "block");
	CHECK_STR(v, "4K");
	CHECK(cow_args_next(a, &it, &k, &v));
	CHECK_STR(k, "sync");
	CHECK_STR(v, "on");
	CHECK(cow_args_next(a, &it, &k, &v));
	CHECK_STR(k, "name");
	CHECK_STR(v, "a,b=c");
	CHECK(cow_args_next(a, &it, &k, &v));
	CHECK_STR(v, "");
	CHECK(!cow_args_next(a, &it, &k, &v));
	CHECK_EQ(cow_args_set(a, "block", "8K"), 0);	/* replaces in place */
	CHECK_EQ(cow_args_size(a, "block", 1), 8192);
	CHECK(cow_args_bool(a, "sync", false));
	CHECK_STR(cow_args_str(a, "nothing", "default"), "default");
	cow_args_free(a);
}

TEST(args_null_is_empty)
{
	const char *k, *v;
	size_t it = 0;

	CHECK_EQ(cow_args_check(NULL, table, "t", NULL), 0);
	CHECK_EQ(cow_args_size(NULL, "block", 5), 5);
	CHECK(cow_args_bool(NULL, "sync", true));
	CHECK(!cow_args_str(NULL, "name", NULL));
	CHECK(!cow_args_next(NULL, &it, &k, &v));
	cow_args_free(NULL);
}

TEST(args_parse_bad)
{
	static const char *const bad[] = { "=1", ",", "a,", ",a=1", "a=1,=2" };

	for (size_t i = 0; i < COW_ARRAY_SIZE(bad); i++) {
		struct cow_args *a = cow_args_new();
		struct cow_err e = { 0 };

		if (cow_args_parse(a, bad[i], &e) != -EINVAL)
			FAIL("\"%s\" is not refused", bad[i]);
		CHECK(strstr(e.msg, bad[i]));
		cow_args_free(a);
	}
}

static int check_text(const char *text, struct cow_err *e)
{
	struct cow_args *a = cow_args_new();
	int r;

	CHECK_EQ(cow_args_parse(a, text, NULL), 0);
	*e = (struct cow_err){ 0 };
	r = cow_args_check(a, table, "fmt", e);
	cow_args_free(a);
	return r;
}

TEST(args_check)
{
	static const struct {
		const char *text, *says;
	} bad[] = {
		{ "colour=red", "fmt: there is no option \"colour\"" },
		{ "block=big", "fmt: option block must be a size such as 65536 or 64K, not \"big\"" },
		{ "block", "fmt: option block must be a size such as 65536 or 64K, not \"on\"" },
		{ "block=99E", "fmt: option block: \"99E\" is too large" },
		{ "sync=maybe", "fmt: option sync must be on or off, not \"maybe\"" },
		{ "depth=1K", "fmt: option depth must be a number, not \"1K\"" },
		{ "depth=", "fmt: option depth must be a number, not \"\"" },
	};
	struct cow_err e;

	CHECK_EQ(check_text("block=64K,name=x,sync=off,depth=12", &e), 0);
	for (size_t i = 0; i < COW_ARRAY_SIZE(bad); i++) {
		CHECK_EQ(check_text(bad[i].text, &e), -EINVAL);
		CHECK_STR(e.msg, bad[i].says);
	}
}

TEST(args_bool_words)
{
	static const char *const yes[] = { "s=on", "s=yes", "s=true", "s=1", "s" };
	static const char *const no[] = { "s=off", "s=no", "s=false", "s=0" };

	for (size_t i = 0; i < COW_ARRAY_SIZE(yes) + COW_ARRAY_SIZE(no); i++) {
		bool want = i < COW_ARRAY_SIZE(yes);
		struct cow_args *a = cow_args_new();

		CHECK_EQ(cow_args_parse(a, want ? yes[i] : no[i - COW_ARRAY_SIZE(yes)], NULL), 0);
		CHECK_EQ(cow_args_bool(a, "s", !want), want);
		cow_args_free(a);
	}
}

static int allocations, fail_at;

static bool fail_nth(void)
{
	return ++allocations == fail_at;
}

TEST(args_without_memory)
{
	bool done = false;
	int bad = 0;

	for (fail_at = 1; !done && fail_at < 100; fail_at++) {
		struct cow_args *a = cow_args_new();
		int r;

		allocations = 0;
		cow_alloc_should_fail = fail_nth;
		r = cow_args_parse(a, "a,b,c,d,e,f,g,h,i=1,a=2", NULL);
		cow_alloc_should_fail = NULL;
		done = allocations < fail_at;
		bad += r != (done ? 0 : -ENOMEM);
		cow_args_free(a);
	}
	CHECK(done);
	CHECK_EQ(bad, 0);
}

TEST(opt_help)
{
	char *s;
	size_t n;
	FILE *f = open_memstream(&s, &n);

	cow_opt_help(f, table);
	fclose(f);
	CHECK(strstr(s, "  block=SIZE") && strstr(s, "size of a block (default: 64K)\n"));
	CHECK(strstr(s, "  sync=on|off") && strstr(s, "  depth=NUMBER") && strstr(s, "a name\n"));
	free(s);
}

/* ---- command lines ---- */

static const struct cow_cli_opt cli_opts[] = {
	{ 'b', "block-size", "SIZE", "bytes of a block" },
	{ 'f', "force", NULL, "do it\nanyway" },
	{ 300, "only-long", "TEXT", "no letter" },
	{ 0, NULL, NULL, NULL },
};
static const struct cow_cli cli = {
	"tool verb", "[OPTION]... A B\n--special", "Does what a tool does.", cli_opts,
};

struct outcome {
	int status;
	char out[4096], err[4096];
};

/* In a child: parses, prints what it got to stdout, exits with 2 after an error. */
static struct outcome run_cli(int argc, char **argv)
{
	struct outcome o = { 0 };
	int po[2], pe[2], st, c;
	pid_t pid;

	CHECK(!pipe(po) && !pipe(pe));
	fflush(NULL);
	pid = fork();
	if (!pid) {
		dup2(po[1], 1);
		dup2(pe[1], 2);
		while ((c = cow_cli_next(&cli, argc, argv)) != -1) {
			if (c == '?')
				exit(2);
			printf("%d:%s ", c, optarg ? optarg : "-");
		}
		for (int i = optind; i < argc; i++)
			printf("%s ", argv[i]);
		exit(0);
	}
	close(po[1]);
	close(pe[1]);
	CHECK(read(po[0], o.out, sizeof(o.out) - 1) >= 0);
	CHECK(read(pe[0], o.err, sizeof(o.err) - 1) >= 0);
	close(po[0]);
	close(pe[0]);
	CHECK(waitpid(pid, &st, 0) == pid && WIFEXITED(st));
	o.status = WEXITSTATUS(st);
	return o;
}

static struct outcome cli1(const char *a, const char *b)
{
	char *argv[] = { cow_strdup("tool"), cow_strdup(a), b ? cow_strdup(b) : NULL, NULL };
	struct outcome o = run_cli(b ? 3 : 2, argv);

	cow_free(argv[0]);
	cow_free(argv[1]);
	cow_free(argv[2]);
	return o;
}

TEST(cli_options)
{
	CHECK_STR(cli1("-b", "4K").out, "98:4K ");
	CHECK_STR(cli1("-fb4K", "x").out, "102:- 98:4K x ");
	CHECK_STR(cli1("--block-size=4K", "-f").out, "98:4K 102:- ");
	CHECK_STR(cli1("--only-long", "t").out, "300:t ");
	CHECK_STR(cli1("--", "-f").out, "-f ");
	CHECK_EQ(cli1("a", "b").status, 0);
}

TEST(cli_misuse)
{
	static const struct {
		const char *arg, *says;
	} bad[] = {
		{ "-x", "tool verb: unknown option -x (see tool verb --help)\n" },
		{ "-b", "tool verb: option --block-size needs an argument (see tool verb --help)\n" },
		{ "--only-long",
		  "tool verb: option --only-long needs an argument (see tool verb --help)\n" },
		{ "--force=yes",
		  "tool verb: option --force takes no argument (see tool verb --help)\n" },
		{ "--colour",
		  "tool verb: unknown or ambiguous option --colour (see tool verb --help)\n" },
		{ "--evil\nline",
		  "tool verb: unknown or ambiguous option --evil?line (see tool verb --help)\n" },
	};

	for (size_t i = 0; i < COW_ARRAY_SIZE(bad); i++) {
		struct outcome o = cli1(bad[i].arg, NULL);

		CHECK_EQ(o.status, 2);
		CHECK_STR(o.err, bad[i].says);
		CHECK_STR(o.out, "");
	}
}

TEST(cli_help)
{
	struct outcome o = cli1("--help", NULL);

	CHECK_EQ(o.status, 0);
	CHECK_STR(o.err, "");
	CHECK_STR(o.out,
		  "Usage: tool verb [OPTION]... A B\n"
		  "       tool verb --special\n"
		  "Does what a tool does.\n"
		  "\n"
		  "Options:\n"
		  "  -b, --block-size=SIZE     bytes of a block\n"
		  "  -f, --force               do it\n"
		  "                            anyway\n"
		  "      --only-long=TEXT      no letter\n"
		  "      --help                show this help\n"
		  "      --version             show the version\n");
	CHECK_STR(cli1("--long-options", NULL).out,
		  "--block-size\n--force\n--only-long\n--help\n--version\n");
	o = cli1("--version", NULL);
	CHECK(!strncmp(o.out, "tool verb ", 10) && strstr(o.out, cow_version));
}
