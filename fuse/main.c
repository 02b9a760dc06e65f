// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowfuse: opens an image and shows it under a folder, for as long as it is
 * mounted. Also what "mount -t fuse.cowfuse" and a line in fstab end up
 * calling. The work is done by the library in this folder and by libcow; here
 * are the command line, the way into the background and the way out.
 *
 * The first process forks at once, because a chain belongs to the thread that
 * opened it. It waits until the second one has mounted, looks at the mount with
 * its own eyes and only then reports success.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cow/log.h"
#include "cow/opt.h"
#include "cow/proc.h"
#include "fuse/fuse.h"

#define BACKING_DIRS 16		/* more would be a mistake in a script */

struct config {
	const char *format, *image, *dir;
	struct cow_args *all;		/* what -o said */
	struct cow_args *format_args;	/* the part of it that is the format's */
	const char *backing[COW_CHAIN_DEPTH + 1];
	unsigned n_backing;
	const char *backing_dirs[BACKING_DIRS + 1];
	unsigned n_dirs;
	bool write, foreground, force;
	uint64_t cache_bytes;
	char *mount_opts;
};

struct app {
	const struct config *cfg;
	struct cow_loop *loop;
	struct cow_dev *dev;
	struct cow_fuse *view;
	struct cow_source *signals[3];
	bool leaving;
};

enum { OPT_BACKING_DIR = 0x100, OPT_FORCE };

static const struct cow_cli_opt opts[] = {
	{ 'p', "format", "FORMAT", "format of IMAGE; required: formats are never guessed" },
	{ 'r', "read-only", NULL, "mount read-only (the default)" },
	{ 'o', "options", "OPTION,...",
	  "mount options: ro, rw, format=FORMAT, backing=PATH,\n"
	  "backing_dir=DIR, cache=SIZE, force, allow_other,\n"
	  "the usual ones of mount, and those of the format" },
	{ 'b', "backing", "PATH", "the base, instead of what IMAGE says; once per level" },
	{ OPT_BACKING_DIR, "backing-dir", "DIR", "a folder in which a base may be found, too" },
	{ OPT_FORCE, "force", NULL, "accept a base that was changed" },
	{ 'f', "foreground", NULL, "stay in the foreground" },
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowfuse",
	.synopsis = "-p FORMAT [OPTION]... IMAGE DIR\nIMAGE DIR -o format=FORMAT[,OPTION]...",
	.summary = "Shows a disk image, its partitions and its layers as files under DIR.",
	.opts = opts,
};

static int fail(int code, const struct cow_err *err)
{
	fprintf(stderr, "cowfuse: %s\n", cow_err_text(err, code));
	return 1;
}

/* ---- options ---- */

static bool in_list(const char *const *list, const char *word)
{
	for (; *list; list++)
		if (!strcmp(*list, word))
			return true;
	return false;
}

/* What mount(8) hands to every mount program: it has acted on them, or nothing needs doing. */
static bool is_for_mount(const char *key)
{
	static const char *const ignored[] = {
		"defaults", "auto", "noauto", "nofail", "_netdev", "comment",
		"user", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup",
		"dev", "nodev", "suid", "nosuid", "exec", "async", "atime", "diratime",
		"relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime",
		"iversion", "noiversion", "mand", "nomand", "loud", "silent", NULL
	};

	/* A view never honours devices and set-id programs: "dev" and "suid" change nothing. */
	return in_list(ignored, key) || !strncmp(key, "x-", 2) || !strncmp(key, "X-", 2);
}

/* Those libfuse and the kernel understand. */
static bool is_for_kernel(const char *key)
{
	static const char *const passed[] = {
		"allow_other", "allow_root", "auto_unmount", "noexec", "sync", "dirsync", "noatime",
		"nodiratime", NULL
	};

	return in_list(passed, key);
}

static int add_path(const char *opt, const char *path, const char **list, unsigned *n, unsigned max)
{
	if (!*path)
		return cow_cli_misuse(&cli, "%s: the path is empty", opt);
	if (*n == max)
		return cow_cli_misuse(&cli, "%s: at most %u can be given", opt, max);
	list[(*n)++] = path;
	return 0;
}

static int add_mount_opt(struct config *c, const char *key)
{
	char *longer = cow_asprintf("%s%s%s", c->mount_opts ? c->mount_opts : "",
				    c->mount_opts ? "," : "", key);

	if (!longer)
		return fail(-ENOMEM, NULL);
	cow_free(c->mount_opts);
	c->mount_opts = longer;
	return 0;
}

static int set_cache(struct config *c, const char *value)
{
	if (cow_parse_size(value, &c->cache_bytes) || !c->cache_bytes)
		return cow_cli_misuse(&cli, "-o cache: '%s' is not a size such as 8M", value);
	return 0;
}

/* One of ours, of mount's, or (kept for later) of the format's. */
static int take_option(struct config *c, const char *key, const char *value)
{
	if (!strcmp(key, "rw") || !strcmp(key, "ro"))
		return 0;	/* see take_options() */
	if (!strcmp(key, "format")) {
		c->format = c->format ? c->format : value;
		return 0;
	}
	if (!strcmp(key, "backing"))
		return add_path("-o backing", value, c->backing, &c->n_backing, COW_CHAIN_DEPTH);
	if (!strcmp(key, "backing_dir"))
		return add_path("-o backing_dir", value, c->backing_dirs, &c->n_dirs, BACKING_DIRS);
	if (!strcmp(key, "cache"))
		return set_cache(c, value);
	if (!strcmp(key, "force")) {
		c->force = true;
		return 0;
	}
	if (is_for_kernel(key))
		return add_mount_opt(c, key);
	if (is_for_mount(key))
		return 0;
	return cow_args_set(c->format_args, key, value) ? fail(-ENOMEM, NULL) : 0;
}

static int take_options(struct config *c, bool read_only)
{
	const char *key, *value;
	size_t i = 0;
	int status = 0;
	bool write = false;

	while (!status && cow_args_next(c->all, &i, &key, &value)) {
		status = take_option(c, key, value);
		/* The pairs are in order of first addition; each is there once. */
		if (!strcmp(key, "rw"))
			write = true;
	}
	if (!status && write && (read_only || cow_args_str(c->all, "ro", NULL)))
		return cow_cli_misuse(&cli, "both read-only and rw were asked for");
	c->write = write;
	return status;
}

/* An option nobody knows must not be taken for one of the format's. */
static int check_format(const struct config *c)
{
	const struct cow_format *fmt;
	struct cow_err err = { 0 };
	const char *key, *value;
	size_t i = 0;
	int rc;

	if (!c->format)
		return cow_cli_misuse(&cli, "-p FORMAT is missing, and formats are never guessed");
	rc = cow_format_find(c->format, &fmt, &err);
	if (rc)
		return fail(rc, &err);
	while (cow_args_next(c->format_args, &i, &key, &value)) {
		const struct cow_opt *o = fmt->opts;

		while (o && o->key && strcmp(o->key, key))
			o++;
		if ((!o || !o->key) && strncmp(key, COW_OPT_OF_BASE, strlen(COW_OPT_OF_BASE)))
			return cow_cli_misuse(
				&cli, "-o: '%s' is not an option of cowfuse, mount or format %s",
				key, c->format);
	}
	rc = cow_args_check(c->format_args, fmt->opts, c->format, &err);
	return rc ? fail(rc, &err) : 0;
}

static int parse_options(struct config *c, int argc, char **argv)
{
	struct cow_err err = { 0 };
	bool read_only = false;
	int opt, rc, status = 0;

	while (!status && (opt = cow_cli_next(&cli, argc, argv)) != -1) {
		switch (opt) {
		case 'p':
			c->format = optarg;
			break;
		case 'r':
			read_only = true;
			break;
		case 'o':
			rc = cow_args_parse(c->all, optarg, &err);
			if (rc)
				status = cow_cli_misuse(&cli, "-o: %s", cow_err_text(&err, rc));
			break;
		case 'b':
			status = add_path("--backing", optarg, c->backing, &c->n_backing,
					  COW_CHAIN_DEPTH);
			break;
		case OPT_BACKING_DIR:
			status = add_path("--backing-dir", optarg, c->backing_dirs, &c->n_dirs,
					  BACKING_DIRS);
			break;
		case OPT_FORCE:
			c->force = true;
			break;
		case 'f':
			c->foreground = true;
			break;
		default:
			return 2;
		}
	}
	return status ? status : take_options(c, read_only);
}

static int parse(struct config *c, int argc, char **argv)
{
	int status = parse_options(c, argc, argv);

	if (status)
		return status;
	if (argc - optind > 2)
		return cow_cli_misuse(&cli, "'%s' is one operand too many", argv[optind + 2]);
	if (argc - optind < 2)
		return cow_cli_misuse(&cli, "%s is missing", argc == optind ? "IMAGE" : "DIR");
	c->image = argv[optind];
	c->dir = argv[optind + 1];
	if (!*c->image || !*c->dir)
		return cow_cli_misuse(&cli, "%s is empty", *c->image ? "DIR" : "IMAGE");
	return check_format(c);
}

/* ---- the way out ---- */

static void on_drained(void *opaque)
{
	struct app *a = opaque;

	cow_loop_stop(a->loop, 0);
}

/* The mount is gone, or goes now; then what is in flight, then the loop. */
static void leave(struct app *a)
{
	struct cow_fuse *view = a->view;

	if (!view)
		return;
	a->view = NULL;
	cow_fuse_unmount(view);
	cow_dev_drain(a->dev, on_drained, a);
}

static void on_unmounted(void *opaque)
{
	leave(opaque);
}

/* In a child, for the kernel may want something from us first (pages of a mapped file, say). */
static int child_unmount(void *arg, int out_fd)
{
	const struct app *a = arg;
	const char *dir = cow_fuse_mountpoint(a->view);
	int null;

	(void)out_fd;
	if (!umount2(dir, UMOUNT_NOFOLLOW))
		return 0;
	if (errno != EPERM)
		return 1;
	null = open("/dev/null", O_WRONLY);
	if (null >= 0)
		dup2(null, STDERR_FILENO);
	execlp("fusermount3", "fusermount3", "-u", dir, (char *)NULL);
	return 1;
}

static void child_unmounted(void *opaque, int status, const char *out, size_t len)
{
	struct app *a = opaque;

	(void)out;
	(void)len;
	if (!a->view)
		return;
	if (status)
		cow_log(COW_LOG_WARN, "%s is in use; it is taken away all the same",
			cow_fuse_mountpoint(a->view));
	leave(a);
}

static void on_signal(void *opaque, uint32_t sig)
{
	struct app *a = opaque;

	(void)sig;
	if (a->leaving || !a->view)
		return;
	a->leaving = true;
	if (cow_loop_child(a->loop, child_unmount, a, child_unmounted, a))
		leave(a);
}

/* ---- the way in ---- */

static int open_device(struct app *a, struct cow_err *err)
{
	const struct config *c = a->cfg;
	struct cow_chain_cfg chain = {
		.format = c->format,
		.path = c->image,
		.args = c->format_args,
		.flags = (c->write ? COW_OPEN_WRITE : 0) | (c->force ? COW_OPEN_FORCE : 0),
		.backing = c->n_backing ? c->backing : NULL,
		.backing_dirs = c->n_dirs ? c->backing_dirs : NULL,
		.cache_bytes = c->cache_bytes,
		.persist = c->write,
	};
	struct cow_dev_cfg dev = { .name = c->image, .enospc = COW_ENOSPC_REPORT };
	struct cow_chain *chain_open = NULL;
	int rc;

	rc = cow_chain_open(&chain, &chain_open, err);
	cow_keys_close(c->format_args);
	if (rc)
		return rc;
	if (c->write && cow_chain_readonly(chain_open)) {
		rc = cow_err_set(err, -EROFS, "%s: this image cannot be written to", c->image);
		cow_chain_close(chain_open);
		return rc;
	}
	rc = cow_dev_new(a->loop, chain_open, &dev, &a->dev);
	if (rc) {
		cow_chain_close(chain_open);
		return cow_err_sys(err, rc, "%s: cannot make a device of it", c->image);
	}
	return 0;
}

static int mount_view(struct app *a, struct cow_err *err)
{
	COW_CLEANUP_FREE char *source = NULL;
	char *real = realpath(a->cfg->image, NULL);	/* as fstab and umount know it */
	struct cow_fuse_cfg cfg = {
		.loop = a->loop,
		.dev = a->dev,
		.mountpoint = a->cfg->dir,
		.writable = a->cfg->write,
		.mount_opts = a->cfg->mount_opts,
		.unmounted = on_unmounted,
		.opaque = a,
	};

	source = cow_strdup(real ? real : a->cfg->image);
	free(real);
	cfg.source = source;
	return cow_fuse_mount(&cfg, &a->view, err);
}

static int start(struct app *a, struct cow_err *err)
{
	static const int sigs[] = { SIGINT, SIGTERM, SIGHUP };
	int rc;

	a->loop = cow_loop_new();
	if (!a->loop)
		return cow_err_sys(err, -errno, "cannot start");
	for (unsigned i = 0; i < COW_ARRAY_SIZE(sigs); i++) {
		a->signals[i] = cow_loop_signal(a->loop, sigs[i], on_signal, a);
		if (!a->signals[i])
			return cow_err_sys(err, -errno, "cannot start");
	}
	rc = open_device(a, err);
	return rc ? rc : mount_view(a, err);
}

/* 0, or why the image could not be closed cleanly. */
static int stop(struct app *a)
{
	int rc;

	for (unsigned i = 0; i < COW_ARRAY_SIZE(a->signals); i++)
		cow_source_free(a->signals[i]);
	rc = cow_dev_free(a->dev);
	cow_loop_free(a->loop);
	return rc;
}

/* Messages go to the system log from now on: one datagram each, as cow_log writes them. */
static void to_background(void)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX, .sun_path = "/dev/log" };
	int null = open("/dev/null", O_RDWR);
	int log = socket(AF_UNIX, SOCK_DGRAM, 0);

	if (log >= 0 && connect(log, (const struct sockaddr *)&to, sizeof(to))) {
		close(log);
		log = -1;
	}
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	dup2(log >= 0 ? log : null, STDERR_FILENO);
	if (null > STDERR_FILENO)
		close(null);
	if (log > STDERR_FILENO)
		close(log);
	cow_log_open("cowfuse", true);
	cow_leave_terminal();
	if (chdir("/"))
		cow_log(COW_LOG_WARN, "/: %s", strerror(errno));
}

/* Serves until unmounted. @ready_fd: tell the first process there; -1: stay in the foreground. */
static int serve(const struct config *c, int ready_fd)
{
	struct app a = { .cfg = c };
	struct cow_err err = { 0 };
	int rc;

	rc = start(&a, &err);
	if (rc) {
		fail(rc, &err);
		stop(&a);
		return 1;
	}
	if (ready_fd >= 0) {
		to_background();
		if (write(ready_fd, "", 1) < 0)
			cow_log(COW_LOG_WARN, "%s: the process that started this one is gone",
				c->image);
		close(ready_fd);
	}
	cow_loop_run(a.loop);
	rc = stop(&a);
	if (rc)
		cow_log(COW_LOG_ERR, "%s: not closed cleanly: %s", c->image, strerror(-rc));
	else if (c->write)
		cow_log(COW_LOG_INFO, "%s: flushed and closed", c->image);
	return rc ? 1 : 0;
}

/* Does the mount answer? Errors: a sentence on stderr, and the serving process is told to go. */
static int look(const struct config *c, pid_t pid)
{
	COW_CLEANUP_FREE char *disk = cow_asprintf("%s/disk", c->dir);
	struct cow_err err = { 0 };
	struct stat st;

	if (disk && !stat(disk, &st))
		return 0;
	fail(cow_err_sys(&err, disk ? -errno : -ENOMEM, "%s: mounted, but it does not answer",
			 c->dir),
	     &err);
	kill(pid, SIGTERM);
	return 1;
}

static int serve_in_background(const struct config *c)
{
	struct cow_err err = { 0 };
	int p[2], status;
	char byte;
	pid_t pid;

	if (pipe2(p, O_CLOEXEC))
		return fail(cow_err_sys(&err, -errno, "cannot start"), &err);
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return fail(cow_err_sys(&err, -errno, "cannot start"), &err);
	if (!pid) {
		close(p[0]);
		exit(serve(c, p[1]));
	}
	close(p[1]);
	if (read(p[0], &byte, 1) == 1)
		return look(c, pid);
	if (waitpid(pid, &status, 0) == pid && WIFEXITED(status))
		return WEXITSTATUS(status) ? WEXITSTATUS(status) : 1;
	return fail(cow_err_set(&err, -EIO, "%s: the serving process was killed", c->image), &err);
}

int main(int argc, char **argv)
{
	struct config c = { .all = cow_args_new(), .format_args = cow_args_new() };
	int status;

	cow_log_open("cowfuse", false);
	status = c.all && c.format_args ? parse(&c, argc, argv) : fail(-ENOMEM, NULL);
	if (!status)
		status = c.foreground ? serve(&c, -1) : serve_in_background(&c);
	cow_args_free(c.all);
	cow_args_free(c.format_args);
	cow_free(c.mount_opts);
	return status;
}
