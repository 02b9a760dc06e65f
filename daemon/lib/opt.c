// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Options: sets of key=value pairs for formats and front ends, and command
 * lines from tables. Only this file prints usage and exits; the rest of libcow
 * never does.
 */
#include "cow/opt.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>

#define CLI_OPTS_MAX 64		/* of one table; ours have at most twenty */
#define HELP_COLUMN 28

/* Added to every table; outside of what a table may use. */
enum { VAL_HELP = 0x10000, VAL_VERSION, VAL_LONG_OPTIONS };

static const struct cow_cli_opt common_opts[] = {
	{ VAL_HELP, "help", NULL, "show this help" },
	{ VAL_VERSION, "version", NULL, "show the version" },
};

const char cow_version[] = COW_VERSION;

/* ---- key=value ---- */

struct pair {
	char *key, *value;
};

struct cow_args {
	struct pair *pairs;
	size_t n, room;
};

struct cow_args *cow_args_new(void)
{
	return cow_zalloc(sizeof(struct cow_args));
}

void cow_args_free(struct cow_args *args)
{
	if (!args)
		return;
	for (size_t i = 0; i < args->n; i++) {
		cow_free(args->pairs[i].key);
		cow_free(args->pairs[i].value);
	}
	cow_free(args->pairs);
	cow_free(args);
}

static struct pair *find(const struct cow_args *args, const char *key)
{
	for (size_t i = 0; args && i < args->n; i++)
		if (!strcmp(args->pairs[i].key, key))
			return &args->pairs[i];
	return NULL;
}

static int grow(struct cow_args *args)
{
	size_t room = args->room ? args->room * 2 : 8;
	struct pair *p;

	if (args->n < args->room)
		return 0;
	p = cow_zalloc(room * sizeof(*p));
	if (!p)
		return -ENOMEM;
	if (args->n)
		memcpy(p, args->pairs, args->n * sizeof(*p));
	cow_free(args->pairs);
	args->pairs = p;
	args->room = room;
	return 0;
}

int cow_args_set(struct cow_args *args, const char *key, const char *value)
{
	struct pair *p = find(args, key);
	char *k, *v = cow_strdup(value);

	if (!v)
		return -ENOMEM;
	if (p) {
		cow_free(p->value);
		p->value = v;
		return 0;
	}
	k = cow_strdup(key);
	if (!k || grow(args)) {
		cow_free(k);
		cow_free(v);
		return -ENOMEM;
	}
	args->pairs[args->n++] = (struct pair){ k, v };
	return 0;
}

/* Copies up to the next single comma to @out, ",," as ','. Returns where it stopped. */
static const char *take_item(const char *s, char *out)
{
	for (; *s; s++) {
		if (*s == ',') {
			if (s[1] != ',')
				break;
			s++;
		}
		*out++ = *s;
	}
	*out = '\0';
	return s;
}

int cow_args_parse(struct cow_args *args, const char *text, struct cow_err *err)
{
	COW_CLEANUP_FREE char *item = cow_zalloc(strlen(text) + 1);
	const char *s = text;
	int r;

	if (!item)
		return cow_err_sys(err, -ENOMEM, "options \"%s\"", text);
	if (!*text)
		return 0;
	for (;;) {
		char *eq;

		s = take_item(s, item);
		eq = strchr(item, '=');
		if (eq)
			*eq = '\0';
		if (!*item)
			return cow_err_set(err, -EINVAL, "options \"%s\": an option without a name",
					   text);
		r = cow_args_set(args, item, eq ? eq + 1 : "on");
		if (r)
			return cow_err_sys(err, r, "options \"%s\"", text);
		if (!*s)
			return 0;
		s++;
	}
}

static int parse_bool(const char *s, bool *ret)
{
	static const char *const yes[] = { "on", "yes", "true", "1" };
	static const char *const no[] = { "off", "no", "false", "0" };

	for (size_t i = 0; i < COW_ARRAY_SIZE(yes); i++) {
		if (!strcmp(s, yes[i]) || !strcmp(s, no[i])) {
			*ret = !strcmp(s, yes[i]);
			return 0;
		}
	}
	return -EINVAL;
}

static bool all_digits(const char *s)
{
	return s[strspn(s, "0123456789")] == '\0';
}

static int check_value(const struct cow_opt *o, const char *value, const char *who,
		       struct cow_err *err)
{
	uint64_t v;
	bool b;
	int r = 0;

	switch (o->type) {
	case COW_OPT_STR:
		return 0;
	case COW_OPT_BOOL:
		if (parse_bool(value, &b))
			return cow_err_set(err, -EINVAL, "%s: option %s must be on or off, not \"%s\"",
					   who, o->key, value);
		return 0;
	case COW_OPT_SIZE:
		r = cow_parse_size(value, &v);
		break;
	case COW_OPT_U64:
		r = all_digits(value) ? cow_parse_size(value, &v) : -EINVAL;
		break;
	}
	if (r == -ERANGE)
		return cow_err_set(err, -EINVAL, "%s: option %s: \"%s\" is too large", who, o->key,
				   value);
	if (r)
		return cow_err_set(err, -EINVAL, "%s: option %s must be a %s, not \"%s\"", who, o->key,
				   o->type == COW_OPT_SIZE ? "size such as 65536 or 64K" : "number",
				   value);
	return 0;
}

/* The rest of a key that is an option of the base; NULL: it is none. */
static const char *of_base(const char *key)
{
	size_t n = strlen(COW_OPT_OF_BASE);

	return !strncmp(key, COW_OPT_OF_BASE, n) && key[n] ? key + n : NULL;
}

int cow_args_of_base(const struct cow_args *args, struct cow_args **ret)
{
	int rc = 0;

	*ret = NULL;
	for (size_t i = 0; args && i < args->n && rc == 0; i++) {
		const char *key = of_base(args->pairs[i].key);

		if (!key)
			continue;
		if (!*ret)
			*ret = cow_args_new();
		rc = *ret ? cow_args_set(*ret, key, args->pairs[i].value) : -ENOMEM;
	}
	if (rc) {
		cow_args_free(*ret);
		*ret = NULL;
	}
	return rc;
}

int cow_args_check(const struct cow_args *args, const struct cow_opt *opts, const char *who,
		   struct cow_err *err)
{
	for (size_t i = 0; args && i < args->n; i++) {
		const struct pair *p = &args->pairs[i];
		const struct cow_opt *o = opts;
		int r;

		if (of_base(p->key))
			continue;
		while (o && o->key && strcmp(o->key, p->key))
			o++;
		if (!o || !o->key)
			return cow_err_set(err, -EINVAL, "%s: there is no option \"%s\"", who, p->key);
		r = check_value(o, p->value, who, err);
		if (r)
			return r;
	}
	return 0;
}

const char *cow_args_str(const struct cow_args *args, const char *key, const char *def)
{
	const struct pair *p = find(args, key);

	return p ? p->value : def;
}

uint64_t cow_args_size(const struct cow_args *args, const char *key, uint64_t def)
{
	const struct pair *p = find(args, key);
	uint64_t v;

	return p && !cow_parse_size(p->value, &v) ? v : def;
}

bool cow_args_bool(const struct cow_args *args, const char *key, bool def)
{
	const struct pair *p = find(args, key);
	bool v;

	return p && !parse_bool(p->value, &v) ? v : def;
}

bool cow_args_next(const struct cow_args *args, size_t *iter, const char **ret_key,
		   const char **ret_value)
{
	if (!args || *iter >= args->n)
		return false;
	*ret_key = args->pairs[*iter].key;
	*ret_value = args->pairs[*iter].value;
	(*iter)++;
	return true;
}

static const char *type_name(enum cow_opt_type t)
{
	switch (t) {
	case COW_OPT_SIZE:
		return "SIZE";
	case COW_OPT_BOOL:
		return "on|off";
	case COW_OPT_U64:
		return "NUMBER";
	case COW_OPT_STR:
		break;
	}
	return "TEXT";
}

/* Label, then the help from HELP_COLUMN on; on the next line when the label is long. */
static void help_line(FILE *out, int label_len, const char *help)
{
	if (label_len + 2 > HELP_COLUMN)
		fprintf(out, "\n%*s", HELP_COLUMN, "");
	else
		fprintf(out, "%*s", HELP_COLUMN - label_len, "");
	for (; *help; help++) {
		fputc(*help, out);
		if (*help == '\n')
			fprintf(out, "%*s", HELP_COLUMN, "");
	}
}

void cow_opt_help(FILE *out, const struct cow_opt *opts)
{
	for (; opts && opts->key; opts++) {
		help_line(out, fprintf(out, "  %s=%s", opts->key, type_name(opts->type)), opts->help);
		if (opts->def)
			fprintf(out, " (default: %s)", opts->def);
		fputc('\n', out);
	}
}

/* ---- command lines ---- */

static size_t table_len(const struct cow_cli_opt *opts)
{
	size_t n = 0;

	while (opts && opts[n].name)
		n++;
	cow_assert(n <= CLI_OPTS_MAX);
	return n;
}

static void help_opt(FILE *out, const struct cow_cli_opt *o)
{
	int len;

	if (o->val < 256)
		len = fprintf(out, "  -%c, --%s", o->val, o->name);
	else
		len = fprintf(out, "      --%s", o->name);
	if (o->arg)
		len += fprintf(out, "%s%s", o->arg[0] == '[' ? "" : "=", o->arg);
	help_line(out, len, o->help);
	fputc('\n', out);
}

void cow_cli_help(FILE *out, const struct cow_cli *cli)
{
	const char *s = cli->synopsis;

	fprintf(out, "Usage: %s ", cli->prog);
	for (; *s; s++) {
		if (*s == '\n')
			fprintf(out, "\n       %s ", cli->prog);
		else
			fputc(*s, out);
	}
	fprintf(out, "\n%s\n\nOptions:\n", cli->summary);
	for (const struct cow_cli_opt *o = cli->opts; o && o->name; o++)
		help_opt(out, o);
	for (size_t i = 0; i < COW_ARRAY_SIZE(common_opts); i++)
		help_opt(out, &common_opts[i]);
}

int cow_cli_misuse(const struct cow_cli *cli, const char *fmt, ...)
{
	struct cow_err err = { 0 };
	va_list ap;

	va_start(ap, fmt);
	cow_err_vset(&err, -EINVAL, fmt, ap);
	va_end(ap);
	fprintf(stderr, "%s: %s (see %s --help)\n", cli->prog, err.msg, cli->prog);
	return 2;
}

static _Noreturn void show(const struct cow_cli *cli, int what)
{
	if (what == VAL_HELP) {
		cow_cli_help(stdout, cli);
	} else if (what == VAL_VERSION) {
		printf("%s %s\n", cli->prog, cow_version);
	} else {
		for (const struct cow_cli_opt *o = cli->opts; o && o->name; o++)
			printf("--%s\n", o->name);
		for (size_t i = 0; i < COW_ARRAY_SIZE(common_opts); i++)
			printf("--%s\n", common_opts[i].name);
	}
	exit(fflush(stdout) ? 1 : 0);
}

/* getopt_long() returned @c, '?' or ':', for argv[optind - 1] or a letter in it. */
static void explain(const struct cow_cli *cli, int c, const struct option *lo, char **argv)
{
	const char *word = optind > 0 ? argv[optind - 1] : "";

	for (; lo->name && optopt; lo++) {
		if (lo->val != optopt)
			continue;
		if (c == ':')
			cow_cli_misuse(cli, "option --%s needs an argument", lo->name);
		else
			cow_cli_misuse(cli, "option --%s takes no argument", lo->name);
		return;
	}
	if (optopt)
		cow_cli_misuse(cli, "unknown option -%c", optopt);
	else
		cow_cli_misuse(cli, "unknown or ambiguous option %s", word);
}

static int takes_argument(const struct cow_cli_opt *o)
{
	if (!o->arg)
		return no_argument;
	return o->arg[0] == '[' ? optional_argument : required_argument;
}

int cow_cli_next(const struct cow_cli *cli, int argc, char **argv)
{
	size_t n = table_len(cli->opts), s = 0;
	struct option lo[CLI_OPTS_MAX + 4];
	char so[2 * CLI_OPTS_MAX + 2];
	size_t l = 0;
	int c;

	so[s++] = ':';	/* tell a missing argument from an unknown option */
	for (size_t i = 0; i < n; i++) {
		const struct cow_cli_opt *o = &cli->opts[i];

		lo[l++] = (struct option){ o->name, takes_argument(o), NULL, o->val };
		if (o->val < 256) {
			so[s++] = (char)o->val;
			if (o->arg)
				so[s++] = ':';
		}
	}
	so[s] = '\0';
	for (size_t i = 0; i < COW_ARRAY_SIZE(common_opts); i++)
		lo[l++] = (struct option){ common_opts[i].name, no_argument, NULL,
					   common_opts[i].val };
	lo[l++] = (struct option){ "long-options", no_argument, NULL, VAL_LONG_OPTIONS };
	lo[l] = (struct option){ 0 };

	opterr = 0;
	c = getopt_long(argc, argv, so, lo, NULL);
	switch (c) {
	case VAL_HELP:
	case VAL_VERSION:
	case VAL_LONG_OPTIONS:
		show(cli, c);
	case '?':
	case ':':
		explain(cli, c, lo, argv);
		return '?';
	default:
		return c;
	}
}
