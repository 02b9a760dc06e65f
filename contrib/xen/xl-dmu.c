// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * xl-dmu: runs xl, after disks "dmu:..." among its arguments and in the guest's
 * configuration file were rewritten (config.c). The rewritten file is memory
 * without a name that xl opens as /proc/self/fd/N, so nothing is left behind.
 * What it does not know goes to xl as it is.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "config.h"
#include "cow/opt.h"

#define CONFIG_MAX COW_MIB(16)	/* bytes of a configuration file: one that is larger is none */

enum { OPT_PRINT = 256 };

static const struct cow_cli_opt options[] = {
	{ OPT_PRINT, "print", "CONFIG", "print the configuration file as xl would get it" },
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "xl-dmu",
	.synopsis = "[XL-OPTION]... COMMAND [ARG]...\n--print=CONFIG",
	.summary = "Runs xl for guests whose disks are written \"dmu:FORMAT:OVERLAY[:BASE],VDEV,ACCESS\".",
	.opts = options,
};

/* ---- files ---- */

static int read_file(const char *path, char **ret, size_t *ret_len, struct cow_err *err)
{
	char *text = NULL, block[4096];
	FILE *in = fopen(path, "re"), *out;
	size_t n, len = 0;
	int rc = 0;

	if (!in)
		return cow_err_sys(err, -errno, "%s", path);
	out = open_memstream(&text, ret_len);
	while (out && len <= CONFIG_MAX && (n = fread(block, 1, sizeof(block), in)) > 0)
		len += fwrite(block, 1, n, out);
	if (ferror(in))
		rc = cow_err_sys(err, errno ? -errno : -EIO, "%s", path);
	else if (len > CONFIG_MAX)
		rc = cow_err_set(err, -EFBIG, "%s: larger than 16 MiB", path);
	fclose(in);
	if ((!out || fclose(out)) && !rc)
		rc = cow_err_set(err, -ENOMEM, "%s: not enough memory", path);
	if (rc)
		cow_free(text);
	else
		*ret = text;
	return rc;
}

/* The text of the file at @path for xl. */
static int rewrite_file(const char *path, char **ret, size_t *ret_len, struct cow_err *err)
{
	COW_CLEANUP_FREE char *text = NULL;
	struct cow_err why = { 0 };
	size_t len;
	int rc = read_file(path, &text, &len, err);

	if (!rc && config_text(text, len, ret, ret_len, &why))
		rc = cow_err_set(err, why.code, "%s: %s", path, why.msg);
	return rc;
}

static int write_all(int fd, const char *text, size_t len)
{
	ssize_t n;

	for (; len; text += n, len -= (size_t)n) {
		n = write(fd, text, len);
		if (n < 0)
			return -errno;
	}
	return 0;
}

/* Replaces the path *@arg by one where xl finds the text rewritten. */
static int replace_file(char **arg, struct cow_err *err)
{
	COW_CLEANUP_FREE char *text = NULL;
	const char *path = *arg;
	size_t len;
	int fd, rc = rewrite_file(path, &text, &len, err);

	if (rc)
		return rc;
	fd = memfd_create("xl-dmu", 0);		/* open across exec */
	if (fd < 0)
		return cow_err_sys(err, -errno, "memfd_create");
	rc = write_all(fd, text, len);
	if (rc)
		return cow_err_sys(err, rc, "%s: copy for xl", path);
	*arg = cow_asprintf("/proc/self/fd/%d", fd);
	return *arg ? 0 : cow_err_set(err, -ENOMEM, "not enough memory");
}

/* ---- the arguments of xl's commands ---- */

static int replace_text(char **arg, struct cow_err *err)
{
	struct cow_err why = { 0 };
	size_t len;

	if (config_text(*arg, strlen(*arg), arg, &len, &why))
		return cow_err_set(err, why.code, "%s: %s", *arg, why.msg);
	return 0;
}

/* Does @arg, a word of single letters, take the next one as the value of -f? */
static bool wants_file(const char *arg, char **ret_value)
{
	const char *f = arg[0] == '-' && arg[1] != '-' ? strchr(arg, 'f') : NULL;
	size_t len = strlen(arg);
	bool is_long = len > 4 && !strncmp(arg, "--defconfig", len);

	*ret_value = NULL;
	if (f && f[1])
		*ret_value = (char *)(uintptr_t)(f + 1);
	return (f && !f[1]) || is_long;
}

/* -fFILE and --defconfig=FILE in one word: only what is behind is replaced. */
static int replace_tail(char **arg, const char *tail, struct cow_err *err)
{
	char *path = (char *)(uintptr_t)tail, *whole;
	int rc = replace_file(&path, err);

	if (rc)
		return rc;
	whole = cow_asprintf("%.*s%s", (int)(tail - *arg), *arg, path);
	cow_free(path);
	if (!whole)
		return cow_err_set(err, -ENOMEM, "not enough memory");
	*arg = whole;
	return 0;
}

/* create [OPTION|CONFIG|NAME=VALUE]... */
static int create_args(int argc, char **argv, struct cow_err *err)
{
	bool have_file = false, words = false;
	char *value;
	int i, rc = 0;

	for (i = 1; i < argc && !rc; i++) {
		char *arg = argv[i];

		if (!words && !strcmp(arg, "--")) {
			words = true;
		} else if (!words && !strncmp(arg, "--def", 5) && strchr(arg, '=')) {
			rc = replace_tail(&argv[i], strchr(arg, '=') + 1, err);
			have_file = true;
		} else if (!words && arg[0] == '-' && arg[1]) {
			if (wants_file(arg, &value) && i + 1 < argc)
				rc = replace_file(&argv[++i], err);
			else if (value)
				rc = replace_tail(&argv[i], value, err);
			else
				continue;
			have_file = true;
		} else if (strchr(arg, '=')) {
			rc = replace_text(&argv[i], err);
		} else if (!have_file) {
			rc = replace_file(&argv[i], err);
			have_file = true;
		}
	}
	return rc;
}

/* restore [OPTION]... [CONFIG] CHECKPOINT */
static int restore_args(int argc, char **argv, struct cow_err *err)
{
	int i, first = 0, n = 0;

	for (i = 1; i < argc; i++) {
		if (argv[i][0] == '-')
			continue;
		if (!n++)
			first = i;
	}
	return n == 2 ? replace_file(&argv[first], err) : 0;
}

/* block-attach DOMAIN WORD...: the words of one disk, each with commas in it perhaps. */
static int attach_args(int argc, char **argv, struct cow_err *err)
{
	COW_CLEANUP_FREE char *disk = NULL;
	struct cow_err why = { 0 };
	size_t len;
	FILE *f;
	int i;

	if (argc < 3 || !config_is_dmu(argv[2]))
		return 0;
	f = open_memstream(&disk, &len);
	for (i = 2; i < argc && f; i++)
		fprintf(f, "%s%s", i > 2 ? "," : "", argv[i]);
	if (!f || fclose(f))
		return cow_err_set(err, -ENOMEM, "not enough memory");
	if (config_disk(disk, &argv[2], &why))
		return cow_err_set(err, why.code, "%s: %s", disk, why.msg);
	argv[3] = NULL;
	return 0;
}

struct command {
	const char *name;
	size_t least;		/* letters by which xl knows it */
	int (*args)(int argc, char **argv, struct cow_err *err);
};

static const struct command commands[] = {
	{ "create", 2, create_args },
	{ "restore", 4, restore_args },
	{ "block-attach", 7, attach_args },
};

static int rewrite_args(int argc, char **argv, struct cow_err *err)
{
	const struct command *c;
	size_t len;
	int i;

	for (i = 1; i < argc && argv[i][0] == '-'; i++)
		;
	if (i == argc)
		return 0;
	len = strlen(argv[i]);
	for (c = commands; c < commands + COW_ARRAY_SIZE(commands); c++)
		if (len >= c->least && !strncmp(argv[i], c->name, len))
			return c->args(argc - i, argv + i, err);
	return 0;
}

/* ---- */

static int print(const char *path)
{
	COW_CLEANUP_FREE char *text = NULL;
	struct cow_err err = { 0 };
	size_t len;
	int rc = rewrite_file(path, &text, &len, &err);

	if (!rc && (fwrite(text, 1, len, stdout) != len || fflush(stdout)))
		rc = cow_err_sys(&err, -EIO, "standard output");
	if (rc)
		fprintf(stderr, "xl-dmu: %s\n", cow_err_text(&err, rc));
	return rc ? 1 : 0;
}

static int own_options(int argc, char **argv)
{
	int opt = cow_cli_next(&cli, argc, argv);

	if (opt == '?')
		return 2;
	if (opt != OPT_PRINT || argc != optind)
		return cow_cli_misuse(&cli, "--print takes one file and nothing else");
	return print(optarg);
}

int main(int argc, char **argv)
{
	static char xl[] = "xl";
	struct cow_err err = { 0 };
	int rc;

	if (argc < 2)
		return cow_cli_misuse(&cli, "a command of xl is needed");
	if (!strncmp(argv[1], "--", 2))
		return own_options(argc, argv);
	rc = rewrite_args(argc, argv, &err);
	if (!rc) {
		argv[0] = xl;
		execvp(xl, argv);
		rc = cow_err_sys(&err, -errno, "xl cannot be run");
	}
	fprintf(stderr, "xl-dmu: %s\n", cow_err_text(&err, rc));
	return 1;
}
