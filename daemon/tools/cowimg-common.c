// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What every verb does the same way: the common options, opening and closing
 * an image, explaining failures, and reading single facts about an image.
 */
#include "cowimg.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cow/log.h"

#define HEAD_BYTES 4096u	/* enough for every format's magic number */

/* What libcow said of the first error, where it has more to say than the errno it returned. */
static char reason[COW_ERR_MAX];

/* Called from any thread; the reason is read when only the main thread is left, or at rest. */
static bool keep_reason(enum cow_log_level level, const char *message)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

	if (level != COW_LOG_ERR)
		return false;
	pthread_mutex_lock(&lock);
	if (!*reason)
		snprintf(reason, sizeof(reason), "%s", message);
	pthread_mutex_unlock(&lock);
	return true;
}

void img_begin(const char *ident)
{
	cow_log_open(ident, false);
	cow_log_set_level(COW_LOG_WARN);
	cow_log_hook(keep_reason);
}

static int say(const struct img_cmd *cmd, const char *sentence, const char *why)
{
	fflush(stdout);		/* what was printed so far stands before the reason it ends */
	fprintf(stderr, *why ? "%s: %s (%s)\n" : "%s: %s\n", cmd->cli->prog, sentence, why);
	*reason = '\0';
	return IMG_FAILED;
}

int img_fail(const struct img_cmd *cmd, int code, const struct cow_err *err)
{
	bool explained = err && err->code;

	if (!explained && *reason)
		return say(cmd, reason, "");
	return say(cmd, cow_err_text(err, code), "");
}

int img_fail_msg(const struct img_cmd *cmd, const char *fmt, ...)
{
	struct cow_err err = { 0 };
	va_list ap;

	va_start(ap, fmt);
	cow_err_vset(&err, -EIO, fmt, ap);
	va_end(ap);
	return say(cmd, err.msg, reason);
}

static int set_output(struct img_cmd *cmd, const char *style)
{
	if (!strcmp(style, "json"))
		cmd->json = true;
	else if (!strcmp(style, "human"))
		cmd->json = false;
	else
		return cow_cli_misuse(cmd->cli, "--output is 'human' or 'json', not '%s'", style);
	return 0;
}

static int set_progress_fd(struct img_cmd *cmd, const char *text)
{
	char *end;
	long v;

	errno = 0;
	v = strtol(text, &end, 10);
	if (errno || end == text || *end || v < 1 || v > INT_MAX || fcntl((int)v, F_GETFD) < 0)
		return cow_cli_misuse(cmd->cli, "--progress-fd is an open file descriptor from 1 on, not '%s'",
				      text);
	cmd->progress_fd = (int)v;
	return 0;
}

int img_add_args(const struct img_cmd *cmd, const char *opt, const char *text, struct cow_args **args)
{
	struct cow_err err = { 0 };
	int r;

	if (!*args)
		*args = cow_args_new();
	r = *args ? cow_args_parse(*args, text, &err) : -ENOMEM;
	return r ? cow_cli_misuse(cmd->cli, "%s: %s", opt, cow_err_text(&err, r)) : 0;
}

static int add_options(struct img_cmd *cmd, const char *text)
{
	if (!strcmp(text, "help")) {
		cmd->list_options = true;
		return 0;
	}
	return img_add_args(cmd, "-o", text, &cmd->args);
}

static int add_path(struct img_cmd *cmd, const char *opt, const char **list, unsigned *n,
		    unsigned max)
{
	if (!*optarg)
		return cow_cli_misuse(cmd->cli, "--%s: the path is empty", opt);
	if (*n == max)
		return cow_cli_misuse(cmd->cli, "--%s: at most %u can be given", opt, max);
	list[(*n)++] = optarg;
	return 0;
}

int img_common_opt(struct img_cmd *cmd, int c)
{
	switch (c) {
	case 'f':
		cmd->format = optarg;
		return 0;
	case 'o':
		return add_options(cmd, optarg);
	case 'p':
		cmd->progress = true;
		return 0;
	case 'q':
		cmd->quiet = true;
		return 0;
	case IMG_OPT_PROGRESS_FD:
		return set_progress_fd(cmd, optarg);
	case IMG_OPT_BACKING:
		return add_path(cmd, "backing", cmd->backing, &cmd->n_backing, COW_CHAIN_DEPTH);
	case IMG_OPT_BACKING_DIR:
		return add_path(cmd, "backing-dir", cmd->backing_dirs, &cmd->n_dirs,
				IMG_BACKING_DIRS);
	case IMG_OPT_SECOND_OPTIONS:
		return img_add_args(cmd, "--second-options", optarg, &cmd->second_args);
	case IMG_OPT_FORCE:
		cmd->force = true;
		return 0;
	case IMG_OPT_OUTPUT:
		return set_output(cmd, optarg);
	case '?':
		return IMG_MISUSE;	/* cow_cli_next() has said why */
	default:
		return -1;
	}
}

int img_finish(struct img_cmd *cmd, int status)
{
	bool failed;

	cow_args_free(cmd->args);
	cow_args_free(cmd->second_args);
	cmd->args = cmd->second_args = NULL;
	if (*reason)	/* an error that no verb met, such as one while closing */
		say(cmd, reason, "");
	errno = 0;
	failed = fflush(stdout) != 0;
	if (status != IMG_OK || (!failed && !ferror(stdout)))
		return status;
	return img_fail_msg(cmd, "cannot write to standard output%s%s", errno ? ": " : "",
			    errno ? strerror(errno) : "");
}

/* "-o help": as for --help, the rest of the command line does not matter. */
static _Noreturn void list_options(struct img_cmd *cmd)
{
	const struct cow_format *fmt;
	struct cow_err err = { 0 };
	int r, status = IMG_OK;

	if (!cmd->format)
		exit(cow_cli_misuse(cmd->cli, "-o help needs -f FORMAT"));
	r = cow_format_find(cmd->format, &fmt, &err);
	if (r)
		status = img_fail(cmd, r, &err);
	else
		cow_opt_help(stdout, cmd->amends ? fmt->amend_opts :
			     cmd->creates ? fmt->create_opts : fmt->opts);
	exit(img_finish(cmd, status));
}

int img_operands(struct img_cmd *cmd, int argc, char **argv, const char *const *names, int min)
{
	int n = argc - optind, max = 0;

	if (cmd->list_options)
		list_options(cmd);
	while (names[max])
		max++;
	if (n < min)
		return cow_cli_misuse(cmd->cli, "%s is missing", names[n]);
	if (n > max)
		return cow_cli_misuse(cmd->cli, "'%s' is one operand too many", argv[optind + max]);
	for (int i = 0; i < n; i++)
		if (!*argv[optind + i])
			return cow_cli_misuse(cmd->cli, "%s is empty", names[i]);
	return 0;
}

void img_print_name(const char *name)
{
	for (; *name; name++)
		putchar((unsigned char)*name < ' ' || *name == 0x7f ? '?' : *name);
}

/* The best answer of the installed formats to @path's first bytes. */
const char *img_looks_like(const char *path)
{
	COW_CLEANUP_FREE char **names = NULL;
	const struct cow_format *fmt;
	const char *best = NULL;
	uint8_t head[HEAD_BYTES];
	int best_score = 50;	/* raw says "could be" to anything; that is no help */
	struct stat st;
	ssize_t n;
	int fd;

	/* Non-blocking: a pipe under this name must not hold up a message. */
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		return NULL;
	n = fstat(fd, &st) || !(S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)) ? -1 :
		pread(fd, head, sizeof(head), 0);
	close(fd);
	if (n <= 0)
		return NULL;
	names = cow_format_list();
	for (size_t i = 0; names && names[i]; i++) {
		int score;

		if (cow_format_find(names[i], &fmt, NULL))
			continue;
		score = fmt->probe(head, (size_t)n, (uint64_t)st.st_size);
		if (score > best_score) {
			best_score = score;
			best = fmt->name;
		}
	}
	return best;
}

int img_need_format(const struct img_cmd *cmd, const char *path)
{
	const char *like;

	if (cmd->format)
		return 0;
	like = img_looks_like(path);
	if (like)
		return cow_cli_misuse(cmd->cli, "-f FORMAT is missing, and formats are never "
				      "guessed ('%s' looks like %s)", path, like);
	return cow_cli_misuse(cmd->cli, "-f FORMAT is missing, and formats are never guessed");
}

int img_size_arg(const struct img_cmd *cmd, const char *what, const char *text, uint64_t *ret)
{
	int r = cow_parse_size(text, ret);

	if (!r)
		return 0;
	return cow_cli_misuse(cmd->cli, r == -ERANGE ? "%s '%s' is too large" :
			      "%s '%s' is not a size such as 4096, 64K or 10G", what, text);
}

int img_pattern_arg(const struct img_cmd *cmd, const char *text, int *ret)
{
	char *end;
	long v;

	errno = 0;
	v = strtol(text, &end, 0);
	if (errno || end == text || *end || v < 0 || v > 255)
		return cow_cli_misuse(cmd->cli, "--pattern is a byte, 0 to 255, not '%s'", text);
	*ret = (int)v;
	return 0;
}

const char *img_file_arg(const char *arg)
{
	return arg && strcmp(arg, "-") ? arg : NULL;
}

bool img_is_blkdev(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISBLK(st.st_mode);
}

int img_put_stream(struct img_progress *p, int fd, const uint8_t *data, size_t len)
{
	while (len) {
		ssize_t done;
		int r = img_progress_wait(p, fd, POLLOUT);

		if (r)
			return r;
		done = write(fd, data, cow_min(len, PIPE_BUF));
		if (done < 0 && errno != EINTR && errno != EAGAIN)
			return -errno;
		if (done > 0) {
			data += done;
			len -= (size_t)done;
		}
	}
	return 0;
}

int img_get_stream(struct img_progress *p, int fd, uint8_t *buf, size_t want, size_t *ret_len)
{
	size_t n = 0;

	while (n < want) {
		int r = img_progress_wait(p, fd, POLLIN);
		ssize_t got;

		if (r)
			return r;
		got = read(fd, buf + n, want - n);
		if (got < 0 && errno != EINTR && errno != EAGAIN)
			return -errno;
		if (!got)
			break;
		if (got > 0)
			n += (size_t)got;
	}
	*ret_len = n;
	return 0;
}

struct cow_chain_cfg img_chain_cfg(const struct img_cmd *cmd, const char *path, uint32_t flags)
{
	return (struct cow_chain_cfg){
		.format = cmd->format,
		.path = path,
		.args = cmd->args,
		.flags = flags | (cmd->force ? COW_OPEN_FORCE : 0),
		.backing = cmd->n_backing ? cmd->backing : NULL,
		.backing_dirs = cmd->n_dirs ? cmd->backing_dirs : NULL,
		.no_backing = cmd->no_backing,
	};
}

struct img_cmd img_second(const struct img_cmd *cmd, const char *format)
{
	struct img_cmd second = *cmd;

	second.format = format ? format : cmd->format;
	second.args = cmd->second_args;
	second.n_backing = 0;
	return second;
}

static int count_snapshot(void *opaque, const struct cow_snapshot *s)
{
	unsigned *n = opaque;

	(void)s;
	(*n)++;
	return 0;
}

int img_spare_snapshots(const struct img_cmd *cmd, const char *path, struct cow_chain *c)
{
	struct cow_err err = { 0 };
	unsigned n = 0;
	int r;

	if (cmd->force || !cow_chain_image(c, 0)->fmt->snapshots)
		return IMG_OK;
	r = cow_chain_snapshots(c, count_snapshot, &n, &err);
	if (r)
		return img_fail(cmd, r, &err);
	if (n == 0)
		return IMG_OK;
	return img_fail_msg(cmd, "%s: has snapshots, and would change what they show of the base; --force "
			    "accepts it", path);
}

int img_open(const struct img_cmd *cmd, const char *path, uint32_t flags, struct cow_chain **ret)
{
	struct cow_chain_cfg cfg = img_chain_cfg(cmd, path, flags);
	struct cow_err err = { 0 };
	const char *like;
	int r;

	r = cow_chain_open(&cfg, ret, &err);
	if (!r)
		return 0;
	like = r == -EINVAL || r == -EMEDIUMTYPE ? img_looks_like(path) : NULL;
	if (like && strcmp(like, cmd->format))
		img_fail_msg(cmd, "%s (it looks like %s)", cow_err_text(&err, r), like);
	else
		img_fail(cmd, r, &err);
	return r;
}

bool img_same_layers(struct cow_chain *a, unsigned from_a, struct cow_chain *b, unsigned from_b)
{
	unsigned n = cow_chain_depth(b) - from_b;

	if (cow_chain_depth(a) - from_a != n)
		return false;
	for (unsigned i = 0; i < n; i++) {
		const struct cow_image *ia = cow_chain_image(a, from_a + i);
		const struct cow_image *ib = cow_chain_image(b, from_b + i);
		struct cow_chain_file fa, fb;

		if (ia->fmt != ib->fmt || ia->size != ib->size ||
		    cow_chain_file(a, from_a + i, &fa) || cow_chain_file(b, from_b + i, &fb) ||
		    fa.dev != fb.dev || fa.ino != fb.ino)
			return false;
	}
	return true;
}

int img_close(const struct img_cmd *cmd, struct cow_chain *c, const char *path, int status)
{
	int r;

	if (!c)
		return status;
	r = cow_chain_close(c);
	if (!r)
		return status;
	img_fail_msg(cmd, "%s: cannot finish writing: %s", path, strerror(-r));
	return status == IMG_OK ? IMG_FAILED : status;
}

int img_in_bounds(const struct img_cmd *cmd, const char *path, uint64_t off, uint64_t len,
		  uint64_t size)
{
	uint64_t end;

	if (cow_add_ok(off, len, &end) && end <= size)
		return IMG_OK;
	return img_fail_msg(cmd, "%s: %" PRIu64 " bytes at offset %" PRIu64
			    " go past the end (size %" PRIu64 ")", path, len, off, size);
}

/* ---- facts ---- */

/*
 * Facts are kept as the JSON text our own writer makes: a key is found as
 * "KEY": and cannot be confused with the inside of a string, where every quote
 * stands behind a backslash.
 */
char *img_facts(struct cow_image *img)
{
	char *text = NULL;
	struct cow_kv *kv;
	size_t len = 0;
	FILE *f;
	int r;

	f = open_memstream(&text, &len);
	if (!f)
		return NULL;
	kv = cow_kv_new(f, COW_KV_JSON, IMG_SCHEMA);
	if (kv && img->fmt->info)
		img->fmt->info(img, kv);
	r = kv ? cow_kv_end(kv) : -ENOMEM;
	if (fclose(f) || r) {
		free(text);
		return NULL;
	}
	return text;
}

static const char *fact(const char *facts, const char *key)
{
	char quoted[64];
	const char *at;
	int n;

	n = snprintf(quoted, sizeof(quoted), "\"%s\":", key);
	if (n < 0 || (size_t)n >= sizeof(quoted))
		return NULL;
	at = strstr(facts, quoted);
	return at ? at + n + strspn(at + n, " \t\n") : NULL;
}

bool img_fact_u64(const char *facts, const char *key, uint64_t *ret)
{
	const char *at = fact(facts, key);
	char *end;
	uint64_t v;

	if (!at || *at < '0' || *at > '9')
		return false;
	errno = 0;
	v = strtoull(at, &end, 10);
	if (errno || end == at)
		return false;
	*ret = v;
	return true;
}

bool img_fact_str(const char *facts, const char *key, char *buf, size_t len)
{
	const char *at = fact(facts, key);
	bool list = at && *at == '[', inside = false;
	size_t n = 0;

	if (!at || (!list && *at != '"'))
		return false;
	for (at += list; *at; at++) {
		if (!inside && *at == ']')
			break;
		if (*at == '"') {
			inside = !inside;
			if (!inside && !list)
				break;
			continue;
		}
		if (inside && *at == '\\' && at[1])
			at++;
		if (!inside && *at != ',')
			continue;	/* white space between the members */
		if (n + 2 >= len)
			return false;
		buf[n++] = *at;
		if (!inside)
			buf[n++] = ' ';
	}
	buf[n] = '\0';
	return true;
}
