/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Options from one table each: the command line of a tool, and the
 * "key=value,key=value" options of a format or front end. The tables are the
 * single source for parsing, --help and the tests that hold the man pages
 * against them.
 */
#ifndef COW_OPT_H
#define COW_OPT_H

#include <stdio.h>

#include "cow/err.h"

/* ---- key=value options ---- */

enum cow_opt_type { COW_OPT_STR, COW_OPT_SIZE, COW_OPT_BOOL, COW_OPT_U64 };

struct cow_opt {	/* tables end with key == NULL */
	const char *key;
	enum cow_opt_type type;
	const char *def;	/* shown in help; NULL: none */
	const char *help;
};

struct cow_args;	/* a set of key=value pairs; NULL is a valid empty set */

COW_EXPORT struct cow_args *cow_args_new(void);
COW_EXPORT void cow_args_free(struct cow_args *args);
/* Adds one pair, replacing an earlier one. Returns 0 or -ENOMEM. */
COW_EXPORT int cow_args_set(struct cow_args *args, const char *key, const char *value);
/* Adds "k=v,k2,k3=v"; a key alone means "on"; ",," is a literal comma. 0, -EINVAL, -ENOMEM. */
COW_EXPORT int cow_args_parse(struct cow_args *args, const char *text, struct cow_err *err);
#define COW_OPT_OF_BASE "backing."
/*
 * Every key known to @opts and every value of its type, else -EINVAL and a sentence naming @who.
 * "backing.KEY" is an option of the base, whose turn comes later, and any will do.
 */
COW_EXPORT int cow_args_check(const struct cow_args *args, const struct cow_opt *opts,
			      const char *who, struct cow_err *err);
/* The value or @def. The typed ones expect cow_args_check() to have passed. */
COW_EXPORT const char *cow_args_str(const struct cow_args *args, const char *key, const char *def);
COW_EXPORT uint64_t cow_args_size(const struct cow_args *args, const char *key, uint64_t def);
COW_EXPORT bool cow_args_bool(const struct cow_args *args, const char *key, bool def);
/* Those for the base, to be freed: "backing.KEY" of @args as KEY. NULL: none. 0 or -ENOMEM. */
COW_EXPORT int cow_args_of_base(const struct cow_args *args, struct cow_args **ret);
/* Walks the pairs in order of addition: *@iter starts at 0. Returns false at the end. */
COW_EXPORT bool cow_args_next(const struct cow_args *args, size_t *iter, const char **ret_key,
			      const char **ret_value);
/* One "  key=TYPE  help (default: def)" line an option. */
COW_EXPORT void cow_opt_help(FILE *out, const struct cow_opt *opts);

/* ---- command lines ---- */

struct cow_cli_opt {	/* tables end with name == NULL */
	int val;		/* the short option's character, or >= 256 where there is none */
	const char *name;	/* long name without "--" */
	const char *arg;	/* name of the argument in help; NULL: takes none; "[=ARG]": may have one */
	const char *help;
};

struct cow_cli {
	const char *prog;		/* "cowd", "cowimg create" */
	const char *synopsis;		/* lines "usage" shows after the program's name; '\n' between several */
	const char *summary;		/* one sentence */
	const struct cow_cli_opt *opts;	/* --help and --version are added to every table */
};

/*
 * Next option, as getopt_long(): its val (optarg set), -1 at the end (optind is
 * the first operand), '?' after an error that has been printed with a hint.
 * --help, --version and --long-options print to stdout and exit 0.
 */
COW_EXPORT int cow_cli_next(const struct cow_cli *cli, int argc, char **argv);
COW_EXPORT void cow_cli_help(FILE *out, const struct cow_cli *cli);
/* Prints "PROG: sentence" to stderr and a hint at --help; returns 2, the exit status of misuse. */
COW_EXPORT int cow_cli_misuse(const struct cow_cli *cli, const char *fmt, ...) COW_PRINTF(2, 3);

COW_EXPORT extern const char cow_version[];

#endif
