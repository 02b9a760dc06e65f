/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the verbs of cowimg and dscow_tool share: how a command says which
 * image it means, opening it, explaining failures, progress, and the work of
 * each verb apart from its command line. Tools see libcow through include/cow
 * only.
 */
#ifndef COWIMG_H
#define COWIMG_H

#include "cow/chain.h"

#define IMG_SCHEMA 1u		/* of everything printed by --output=json */
#define IMG_BACKING_DIRS 16	/* --backing-dir options of one command; more is a mistake */
#define IMG_BUFFER (1u << 20)	/* bytes moved at a time: large enough to hide the call, small in memory */
#define IMG_CLEAR_STEP COW_GIB(1)	/* zeroed or discarded between two looks at the signals */

/* Exit statuses, those of qemu-img where it has the verb. */
enum {
	IMG_OK = 0,
	IMG_FAILED = 1,
	IMG_MISUSE = 2,
	IMG_DIFFERS = 1,	/* compare */
	IMG_COMPARE_FAILED = 2,
	IMG_CORRUPT = 2,	/* check */
	IMG_LEAKS = 3,
};

/* Long options without a letter. */
enum {
	IMG_OPT_BACKING = 256,
	IMG_OPT_BACKING_DIR,
	IMG_OPT_FORCE,
	IMG_OPT_OUTPUT,
	IMG_OPT_BACKING_CHAIN,
	IMG_OPT_OVERWRITE,
	IMG_OPT_SHRINK,
	IMG_OPT_REPAIR,
	IMG_OPT_LAYER,
	IMG_OPT_PATTERN,
	IMG_OPT_REBASE,
	IMG_OPT_VERIFY,
	IMG_OPT_SIZE,
	IMG_OPT_SOURCE_OPTIONS,
	IMG_OPT_SECOND_OPTIONS,
	IMG_OPT_BASE_OPTIONS,
	IMG_OPT_OFFSET,
	IMG_OPT_RANDOM,
	IMG_OPT_FLUSH_INTERVAL,
	IMG_OPT_NO_DRAIN,
	IMG_OPT_DIRECT,
	IMG_OPT_RESERVE,
	IMG_OPT_RESUME,
	IMG_OPT_PROGRESS_FD,
};

/* One command: its name, and the options that mean the same for every verb. */
struct img_cmd {
	const struct cow_cli *cli;
	const char *format;		/* -f */
	struct cow_args *args;		/* -o */
	struct cow_args *second_args;	/* the same for a second image */
	const char *backing[COW_CHAIN_DEPTH + 1];
	const char *backing_dirs[IMG_BACKING_DIRS + 1];
	unsigned n_backing, n_dirs;
	bool force, no_backing;
	bool quiet, progress, json;
	int progress_fd;		/* 0: none */
	bool creates, amends;		/* -o means the format's options of create(), or of amend() */
	bool list_options;		/* -o help */
};

/* Lines for the option tables. */
#define IMG_CLI_FORMAT \
	{ 'f', "format", "FORMAT", "format of the image; required, formats are never guessed" }
#define IMG_CLI_OPTIONS \
	{ 'o', "options", "KEY=VALUE,...", "options of the format; '-o help' lists them" }
#define IMG_CLI_BACKING							\
	{ IMG_OPT_BACKING, "backing", "PATH",				\
	  "use PATH as the base, whatever the image says; again for the base's base" },	\
	{ IMG_OPT_BACKING_DIR, "backing-dir", "DIR",			\
	  "allow bases in and below DIR; may be given several times" },	\
	{ IMG_OPT_FORCE, "force", NULL, "accept a base that changed since it was recorded" }
#define IMG_CLI_OPEN IMG_CLI_FORMAT, IMG_CLI_OPTIONS, IMG_CLI_BACKING
#define IMG_CLI_OUTPUT \
	{ IMG_OPT_OUTPUT, "output", "human|json", "for people (default) or for programs" }
#define IMG_CLI_PROGRESS \
	{ 'p', "progress", NULL, "show a bar on a terminal; SIGUSR1 prints a line in any case" }, \
	{ IMG_OPT_PROGRESS_FD, "progress-fd", "FD",				\
	  "write a line of JSON there now and then, a file descriptor" }
#define IMG_CLI_RANGE \
	{ 's', "offset", "OFFSET", "first byte (default: 0)" }, \
	{ 'l', "length", "LENGTH", "bytes; required" }
#define IMG_CLI_QUIET { 'q', "quiet", NULL, "print nothing but errors" }

/* First in main(): messages of libcow become part of the one sentence of img_fail(). */
void img_begin(const char *ident);

/* Adds to @args what @text says, "KEY=VALUE,...", given to option @opt. 0, or IMG_MISUSE after a sentence. */
int img_add_args(const struct img_cmd *cmd, const char *opt, const char *text, struct cow_args **args);
/*
 * Handles option @c if it is a common one. Returns 0, IMG_MISUSE after an error
 * that has been printed (@c == '?' included), or -1 when @c is not common.
 */
int img_common_opt(struct img_cmd *cmd, int c);
/* Last: releases what the options hold; output that could not be written makes IMG_OK IMG_FAILED. */
int img_finish(struct img_cmd *cmd, int status);
/*
 * Checks the number of operands left from argv[optind]: @names are what each is called, NULL-
 * terminated, the first @min are required. Returns 0 or IMG_MISUSE after a sentence. Exits after
 * "-o help".
 */
int img_operands(struct img_cmd *cmd, int argc, char **argv, const char *const *names, int min);
/* -f was given, else IMG_MISUSE and a sentence that says what @path looks like. */
int img_need_format(const struct img_cmd *cmd, const char *path);
/* Parses a size argument of @what. 0, or IMG_MISUSE after a sentence. */
int img_size_arg(const struct img_cmd *cmd, const char *what, const char *text, uint64_t *ret);

/* Prints "PROG: sentence"; returns IMG_FAILED. */
int img_fail(const struct img_cmd *cmd, int code, const struct cow_err *err);
int img_fail_msg(const struct img_cmd *cmd, const char *fmt, ...) COW_PRINTF(2, 3);

/* How the command says that @path is opened, with @flags (COW_OPEN_*) added. */
struct cow_chain_cfg img_chain_cfg(const struct img_cmd *cmd, const char *path, uint32_t flags);
/* The same command for a second image: in @format, or that of the first; its own options, no named base. */
struct img_cmd img_second(const struct img_cmd *cmd, const char *format);
/* Opens @path like that; failures are printed. */
int img_open(const struct img_cmd *cmd, const char *path, uint32_t flags, struct cow_chain **ret);
/*
 * Snapshots inside an image read from its base, whichever it is and whatever is written there. IMG_OK,
 * or IMG_FAILED after a sentence when the top of @c has some, unless the command says --force.
 */
int img_spare_snapshots(const struct img_cmd *cmd, const char *path, struct cow_chain *c);
/* Are layers [@from_a, ...) of @a and [@from_b, ...) of @b, which were opened without options, the same files? */
bool img_same_layers(struct cow_chain *a, unsigned from_a, struct cow_chain *b, unsigned from_b);
/* Closes @c (may be NULL); a failed flush is printed and makes an IMG_OK status IMG_FAILED. */
int img_close(const struct img_cmd *cmd, struct cow_chain *c, const char *path, int status);
/* [off, off + len) lies inside @size, else IMG_FAILED and a sentence. */
int img_in_bounds(const struct img_cmd *cmd, const char *path, uint64_t off, uint64_t len,
		  uint64_t size);
/* A name that comes from an image, on standard output: it must not forge a line. */
void img_print_name(const char *name);
/* A guess at what @path is, from its first bytes, for messages; NULL: none. */
const char *img_looks_like(const char *path);

/*
 * To a pipe in pieces that a poll() says will fit, so that a reader who is stuck does not hold
 * up the signals. 0 or -errno.
 */
struct img_progress;
int img_put_stream(struct img_progress *p, int fd, const uint8_t *data, size_t len);
/* The other way, until @want bytes or the end are there. */
int img_get_stream(struct img_progress *p, int fd, uint8_t *buf, size_t want, size_t *ret_len);

/* NULL for "-": standard input or output. */
const char *img_file_arg(const char *arg);
bool img_is_blkdev(const char *path);
/* "7", "0x41": a byte value, else IMG_MISUSE after a sentence. */
int img_pattern_arg(const struct img_cmd *cmd, const char *text, int *ret);

/* ---- facts a format tells about an image, as values ---- */

/* Asks @img's format. NULL when memory is short. Release with free(). */
char *img_facts(struct cow_image *img);
bool img_fact_u64(const char *facts, const char *key, uint64_t *ret);
/* A string, or a list of strings joined by ", ". */
bool img_fact_str(const char *facts, const char *key, char *buf, size_t len);

/* ---- progress, and being stopped ---- */

struct img_progress {
	const struct img_cmd *cmd;
	int sigfd;			/* the signals that were waiting, as a file; -1 */
	int stopped_by;			/* signal; 0: none */
	bool bar;			/* stderr is a terminal and -p was given */
	int width;			/* characters of the line drawn */
	uint64_t start_ns, drawn_ns, told_ns;	/* begun, bar drawn, line written to cmd->progress_fd */
	uint64_t done, total;		/* bytes; total 0: unknown */
};

/*
 * From here on SIGINT, SIGTERM and SIGHUP do not kill but stop at the next
 * tick, and SIGUSR1 prints a line.
 */
void img_progress_begin(struct img_progress *p, const struct img_cmd *cmd);
/* True: stop. */
bool img_progress_tick(struct img_progress *p, uint64_t done, uint64_t total);
/* Waits until @fd is ready for @events (POLLIN, POLLOUT), ticking. 0, or -ECANCELED. */
int img_progress_wait(struct img_progress *p, int fd, short events);
/* Of the clock that it is all timed by. */
uint64_t img_now_ns(void);
/* Takes the bar away. */
void img_progress_end(struct img_progress *p);
/* "interrupted by SIGINT", for sentences. */
const char *img_progress_why(const struct img_progress *p);

/* ---- the work of the verbs; all return an exit status and explain failures ---- */

struct img_create {
	const char *base, *base_format;	/* NULL: none */
	uint64_t size;			/* 0: the base's */
	bool overwrite, reserve;
};
/* Creates without a word; *ret_size is the virtual size. */
int img_do_create(const struct img_cmd *cmd, const char *path, const struct img_create *what,
		  uint64_t *ret_size);
int img_do_map(const struct img_cmd *cmd, const char *path, unsigned layer, uint64_t start,
	       uint64_t len);
enum img_repair { IMG_REPAIR_NONE, IMG_REPAIR_LEAKS, IMG_REPAIR_ALL };
int img_do_check(const struct img_cmd *cmd, const char *path, enum img_repair repair);
int img_do_commit(const struct img_cmd *cmd, const char *path);
int img_do_resize(const struct img_cmd *cmd, const char *path, const char *size, bool shrink);
/* @base NULL: the recorded one, wherever --backing says it is now. */
int img_do_rebase(const struct img_cmd *cmd, const char *path, const char *base,
		  const char *base_format);
int img_do_clear(const struct img_cmd *cmd, const char *path, bool discard, uint64_t off,
		 uint64_t len);
/* zero and discard as commands: the same but for their names and edges. */
int img_clear_main(const struct cow_cli *verb, bool discard, int argc, char **argv);

/* ---- the verbs as commands: argv[0] is the verb ---- */

int cowimg_amend(int argc, char **argv);
int cowimg_bench(int argc, char **argv);
int cowimg_bitmap(int argc, char **argv);
int cowimg_check(int argc, char **argv);
int cowimg_commit(int argc, char **argv);
int cowimg_compare(int argc, char **argv);
int cowimg_convert(int argc, char **argv);
int cowimg_create(int argc, char **argv);
int cowimg_dd(int argc, char **argv);
int cowimg_diff(int argc, char **argv);
int cowimg_discard(int argc, char **argv);
int cowimg_info(int argc, char **argv);
int cowimg_map(int argc, char **argv);
int cowimg_measure(int argc, char **argv);
int cowimg_read(int argc, char **argv);
int cowimg_rebase(int argc, char **argv);
int cowimg_resize(int argc, char **argv);
int cowimg_snapshot(int argc, char **argv);
int cowimg_write(int argc, char **argv);
int cowimg_zero(int argc, char **argv);

#endif
