// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowd's command line, and its way to the background: the parent stays until
 * the child has a usable device, and says where it is or why there is none. What
 * the daemon then does is in serve.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cow/log.h"
#include "cow/opt.h"
#include "cow/proc.h"
#include "cowd.h"
#include "notify.h"
#include "xen-store.h"

#define PATHS_MAX COW_CHAIN_DEPTH	/* of -b, of --backing-dir */
#define CACHE_MIN COW_KIB(64)		/* a few map blocks, without which nothing moves */
#define CACHE_MAX COW_GIB(64)

enum {
	OPT_BACKING_DIR = 256,
	OPT_FORCE,
	OPT_CACHE,
	OPT_FRONTEND,
	OPT_XENBUS,
	OPT_NO_LOOP,
	OPT_SCAN,
	OPT_PROBE,
	OPT_ENOSPC,
	OPT_LOG_LEVEL,
	OPT_IO,
};

static const struct cow_cli_opt options[] = {
	{ 'p', "format", "FORMAT", "format of IMAGE; always needed, never guessed" },
	{ 'o', "options", "KEY=VALUE,...",
	  "options of the format (cowimg info -f FORMAT -o help lists them)" },
	{ 'b', "backing", "PATH",
	  "the base instead of the recorded one; again for the base's base" },
	{ OPT_BACKING_DIR, "backing-dir", "DIR",
	  "look for recorded bases below DIR, too; repeatable" },
	{ 'r', "read-only", NULL, "open the image for reading only" },
	{ 'f', "foreground", NULL, "do not go to the background; tells $NOTIFY_SOCKET when ready" },
	{ OPT_FORCE, "force", NULL, "accept a base that has changed since it was recorded" },
	{ OPT_CACHE, "cache", "SIZE",
	  "at most this much memory for metadata, per layer (default 8M)" },
	{ OPT_FRONTEND, "frontend", "FE",
	  "how to serve the device: dm, ublk, bridge or fuse (default: the\n"
	  "first of them that can run), or xen" },
	{ OPT_XENBUS, "xenbus", "PATH",
	  "the virtual disk to serve (front end xen): its backend's folder in xenstore" },
	{ OPT_NO_LOOP, "no-loop", NULL, "only the file (front end fuse), no loop device over it" },
	{ OPT_SCAN, "scan", NULL, "let udev, LVM and their like act on what is in the device" },
	{ OPT_PROBE, "probe", "[=FE]",
	  "say which front ends this machine can run, and why not the others; with FE,\n"
	  "exit with 0 if it can run that one, else with 77" },
	{ OPT_ENOSPC, "enospc", "report|pause",
	  "when space runs out: fail the write (default), or wait" },
	{ OPT_LOG_LEVEL, "log-level", "LEVEL", "error, warning, info (default) or debug" },
	{ OPT_IO, "io", "uring|sync",
	  "kernel interface for disk I/O (default uring where possible)" },
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowd",
	.synopsis = "-p FORMAT [options] NAME IMAGE\n--probe[=FE]",
	.summary = "Serves the disk image IMAGE as a block device called NAME.",
	.opts = options,
};

struct settings {
	struct cowd_config cfg;
	struct cow_args *args;
	const char *backing[PATHS_MAX + 1], *backing_dirs[PATHS_MAX + 1];
	unsigned n_backing, n_backing_dirs;
	const char *probe;		/* NULL with @probing: all */
	bool probing;
	char *image;			/* absolute */
	bool foreground;
};

/* In the background: where the parent waits for the device's path. */
static int ready_fd = -1;
/* Of messages about the running device. */
static char log_ident[sizeof("cowd-") + RUN_NAME_MAX];

/* ---- parsing ---- */

/* The daemon leaves the current folder. NULL: no memory. */
static char *absolute(const char *path)
{
	COW_CLEANUP_FREE char *cwd = NULL;

	if (path[0] == '/' || !path[0])
		return cow_strdup(path);
	cwd = getcwd(NULL, 0);
	return cwd ? cow_asprintf("%s/%s", strcmp(cwd, "/") ? cwd : "", path) : NULL;
}

static int add_path(const char **list, unsigned *n, const char *option, const char *path)
{
	if (*n == PATHS_MAX)
		return cow_cli_misuse(&cli, "%s can be given %d times at most", option, PATHS_MAX);
	if (!*path)
		return cow_cli_misuse(&cli, "%s needs a path", option);
	list[*n] = absolute(path);
	if (!list[*n])
		return cow_cli_misuse(&cli, "%s %s: the current folder is gone", option, path);
	++*n;
	return 0;
}

/* Paths of keys, whichever image of the chain they are for. */
static int absolute_keys(struct cow_args *args)
{
	const char *key, *value;
	size_t i = 0;

	while (cow_args_next(args, &i, &key, &value)) {
		const char *dot = strrchr(key, '.');
		char *path COW_CLEANUP_FREE = NULL;

		if (strcmp(dot ? dot + 1 : key, "key_file"))
			continue;
		path = absolute(value);
		if (!path || cow_args_set(args, key, path))
			return cow_cli_misuse(&cli, "key_file=%s: the current folder is gone", value);
	}
	return 0;
}

static int set_word(struct settings *s, int opt, const char *word)
{
	enum cow_log_level level;
	struct cow_err err = { 0 };
	struct xen_path path;

	switch (opt) {
	case OPT_ENOSPC:
		if (strcmp(word, "report") && strcmp(word, "pause"))
			return cow_cli_misuse(&cli, "--enospc is report or pause, not \"%s\"",
					      word);
		s->cfg.enospc = !strcmp(word, "pause") ? COW_ENOSPC_PAUSE : COW_ENOSPC_REPORT;
		return 0;
	case OPT_IO:
		if (strcmp(word, "uring") && strcmp(word, "sync"))
			return cow_cli_misuse(&cli, "--io is uring or sync, not \"%s\"", word);
		s->cfg.chain.io_sync = !strcmp(word, "sync");
		return 0;
	case OPT_LOG_LEVEL:
		if (cow_log_parse_level(word, &level))
			return cow_cli_misuse(
				&cli, "--log-level is error, warning, info or debug, not \"%s\"",
				word);
		cow_log_set_level(level);
		return 0;
	case OPT_CACHE:
		if (cow_parse_size(word, &s->cfg.chain.cache_bytes) ||
		    s->cfg.chain.cache_bytes < CACHE_MIN || s->cfg.chain.cache_bytes > CACHE_MAX)
			return cow_cli_misuse(&cli, "--cache is a size from 64K to 64G, not \"%s\"",
					      word);
		return 0;
	case OPT_XENBUS:
		if (xen_path_parse(word, &path, &err))
			return cow_cli_misuse(&cli, "--xenbus: %s", err.msg);
		s->cfg.xenbus = word;
		return 0;
	default:
		s->cfg.fe = frontend_find(word);
		if (!s->cfg.fe)
			return cow_cli_misuse(&cli, "there is no front end \"%s\"; there are %s",
					      word, frontend_names());
		return 0;
	}
}

static int set_option(struct settings *s, int opt)
{
	struct cow_err err = { 0 };

	switch (opt) {
	case 'p':
		s->cfg.chain.format = optarg;
		return 0;
	case 'o':
		if (cow_args_parse(s->args, optarg, &err))
			return cow_cli_misuse(&cli, "%s", err.msg);
		return 0;
	case 'b':
		return add_path(s->backing, &s->n_backing, "--backing", optarg);
	case OPT_BACKING_DIR:
		return add_path(s->backing_dirs, &s->n_backing_dirs, "--backing-dir", optarg);
	case 'r':
		s->cfg.chain.flags &= ~COW_OPEN_WRITE;
		return 0;
	case 'f':
		s->foreground = true;
		return 0;
	case OPT_FORCE:
		s->cfg.chain.flags |= COW_OPEN_FORCE;
		return 0;
	case OPT_NO_LOOP:
		s->cfg.no_loop = true;
		return 0;
	case OPT_SCAN:
		s->cfg.scan = true;
		return 0;
	case OPT_PROBE:
		s->probing = true;
		s->probe = optarg;
		return 0;
	default:
		return set_word(s, opt, optarg);
	}
}

/* 0, or the exit status. */
static int parse(struct settings *s, int argc, char **argv)
{
	struct cow_err err = { 0 };
	int opt, rc;

	while ((opt = cow_cli_next(&cli, argc, argv)) != -1) {
		rc = opt == '?' ? 2 : set_option(s, opt);
		if (rc)
			return rc;
	}
	if (s->probing)
		return optind == argc ? 0 : cow_cli_misuse(&cli, "--probe takes no NAME and IMAGE");
	if (!s->cfg.xenbus != (s->cfg.fe != &fe_xen))
		return cow_cli_misuse(&cli, "--frontend=xen and --xenbus go together");
	if (s->cfg.no_loop && s->cfg.fe && s->cfg.fe != &fe_fuse)
		return cow_cli_misuse(&cli, "--no-loop is for the front end fuse, not %s",
				      s->cfg.fe->name);
	if (s->cfg.no_loop)
		s->cfg.fe = &fe_fuse;
	if (!s->cfg.chain.format)
		return cow_cli_misuse(&cli, "the format of the image must be given with -p");
	if (argc - optind != 2)
		return cow_cli_misuse(&cli, "a NAME and an IMAGE are needed");
	s->cfg.name = argv[optind];
	s->cfg.chain.path = argv[optind + 1];
	if (run_name_check(s->cfg.name, &err))
		return cow_cli_misuse(&cli, "%s", err.msg);
	snprintf(log_ident, sizeof(log_ident), "cowd-%s", s->cfg.name);
	if (!s->cfg.chain.path[0])
		return cow_cli_misuse(&cli, "the IMAGE is an empty string");
	return absolute_keys(s->args);
}

/* Which format it is decides whether IMAGE is a path at all. */
static int check_format(struct settings *s, struct cow_err *err)
{
	const struct cow_format *fmt;
	int rc = cow_format_find(s->cfg.chain.format, &fmt, err);

	if (rc || (fmt->caps & COW_CAP_NOFILE))
		return rc;
	s->image = absolute(s->cfg.chain.path);
	if (!s->image)
		return cow_err_set(err, -ENOENT, "the current folder is gone");
	s->cfg.chain.path = s->image;
	return 0;
}

/* ---- foreground and background ---- */

static int ready_foreground(const char *path)
{
	puts(path);
	if (fflush(stdout))
		cow_log(COW_LOG_DEBUG, "standard output: %s", strerror(errno));
	cow_log_open(log_ident, getenv("JOURNAL_STREAM") != NULL);
	return 0;
}

static int ready_background(const char *path)
{
	size_t len = strlen(path);
	bool told = write(ready_fd, path, len) == (ssize_t)len;

	close(ready_fd);
	ready_fd = -1;
	if (!told)
		return -EPIPE;	/* the parent was interrupted: nobody knows of this device */
	notify_detach_stdio();
	cow_log_open(log_ident, true);
	return 0;
}

static int serve(struct settings *s)
{
	struct cow_err err = { 0 };
	int rc = cowd_serve(&s->cfg, &err);

	if (rc)
		cow_log(COW_LOG_ERR, "%s", cow_err_text(&err, rc));
	return rc ? 1 : 0;
}

/* What the child writes before it ends or closes the pipe, as a string. */
static void read_all(int fd, char *buf, size_t size)
{
	size_t len = 0;
	ssize_t n;

	while (len < size - 1) {
		n = read(fd, buf + len, size - 1 - len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		len += (size_t)n;
	}
	buf[len] = '\0';
}

static int wait_ready(pid_t pid, int fd)
{
	char path[PATH_MAX];
	int status;

	read_all(fd, path, sizeof(path));
	close(fd);
	if (path[0]) {
		puts(path);
		return fflush(stdout) ? 1 : 0;
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return 1;
	if (WIFSIGNALED(status))
		cow_log(COW_LOG_ERR, "the daemon was killed by a signal (%s)",
			strsignal(WTERMSIG(status)));
	return WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : 1;
}

static int go_background(struct settings *s)
{
	int p[2];
	pid_t pid;

	if (pipe2(p, O_CLOEXEC)) {
		cow_log(COW_LOG_ERR, "pipe: %s", strerror(errno));
		return 1;
	}
	pid = fork();
	if (pid < 0) {
		cow_log(COW_LOG_ERR, "fork: %s", strerror(errno));
		return 1;
	}
	if (pid) {
		close(p[1]);
		return wait_ready(pid, p[0]);
	}
	close(p[0]);
	ready_fd = p[1];
	s->cfg.ready = ready_background;
	cow_leave_terminal();
	if (chdir("/"))
		cow_log(COW_LOG_DEBUG, "chdir /: %s", strerror(errno));
	return serve(s);
}

static int run(struct settings *s)
{
	struct cow_err err = { 0 };
	int rc = check_format(s, &err);

	if (rc) {
		cow_log(COW_LOG_ERR, "%s", cow_err_text(&err, rc));
		return 1;
	}
	return s->foreground ? serve(s) : go_background(s);
}

static int probe(const char *name)
{
	const struct fe_ops *fe = name ? frontend_find(name) : NULL;
	struct cow_err why = { 0 };
	int rc;

	if (!name)
		return frontend_list(stdout) ? 0 : 77;
	if (fe)
		rc = fe->probe(&why);
	else
		rc = cow_err_set(&why, -ENOENT, "this cowd has no front end \"%s\"", name);
	if (!rc)
		return 0;
	puts(cow_err_text(&why, rc));
	return 77;
}

static void free_settings(struct settings *s)
{
	unsigned i;

	for (i = 0; i < s->n_backing; i++)
		cow_free((char *)(uintptr_t)s->backing[i]);
	for (i = 0; i < s->n_backing_dirs; i++)
		cow_free((char *)(uintptr_t)s->backing_dirs[i]);
	cow_free(s->image);
	cow_args_free(s->args);
}

int main(int argc, char **argv)
{
	struct settings s = {
		.cfg = {
			.chain = { .flags = COW_OPEN_WRITE, .persist = true },
			.enospc = COW_ENOSPC_REPORT,
			.ready = ready_foreground,
		},
	};
	int rc;

	cow_log_open("cowd", getenv("JOURNAL_STREAM") != NULL);
	/* 0, 1 and 2 must be taken, or the first file opened would become one of them. */
	while ((rc = open("/dev/null", O_RDWR)) >= 0 && rc <= STDERR_FILENO)
		;
	if (rc >= 0)
		close(rc);
	umask(022);
	s.args = cow_args_new();
	if (!s.args) {
		cow_log(COW_LOG_ERR, "not enough memory");
		return 1;
	}
	rc = parse(&s, argc, argv);
	s.cfg.chain.args = s.args;
	s.cfg.chain.backing = s.n_backing ? s.backing : NULL;
	s.cfg.chain.backing_dirs = s.n_backing_dirs ? s.backing_dirs : NULL;
	if (!rc && s.probing)
		rc = probe(s.probe);
	else if (!rc)
		rc = run(&s);
	free_settings(&s);
	return rc;
}
