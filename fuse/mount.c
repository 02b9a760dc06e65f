// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Getting mounted: the mount point, the mount options, and an explanation in
 * one sentence when it does not work. Takes away what a dead process left; never
 * the mount of a living one, nor somebody else's.
 */
#include "fuse/view.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cow/log.h"

#define REPLY_TRIES 1000
#define REPLY_PAUSE_MS 1

static void __attribute__((format(printf, 2, 0)))
to_our_log(enum fuse_log_level level, const char *fmt, va_list ap)
{
	char line[256];

	vsnprintf(line, sizeof(line), fmt, ap);
	line[strcspn(line, "\n")] = '\0';
	cow_log_limited(level <= FUSE_LOG_ERR ? COW_LOG_ERR : COW_LOG_DEBUG, "%s", line);
}

/* @text escaped for a comma separated list of mount options. */
static char *escape_opt(const char *text)
{
	char *out = cow_zalloc(2 * strlen(text) + 1), *p = out;

	for (; out && *text; text++) {
		if (*text == ',' || *text == '\\')
			*p++ = '\\';
		*p++ = *text;
	}
	return out;
}

static char *mount_options(const struct cow_fuse_cfg *cfg)
{
	COW_CLEANUP_FREE char *name =
		escape_opt(cfg->source ? cfg->source : cow_dev_name(cfg->dev));

	if (!name)
		return NULL;
	return cow_asprintf("fsname=%s,subtype=cowfuse,default_permissions,nosuid,nodev,%s%s%s",
			    name, cfg->writable ? "rw" : "ro", cfg->mount_opts ? "," : "",
			    cfg->mount_opts ? cfg->mount_opts : "");
}

/* libfuse and fusermount3 explain failures on stderr only: catch what they say. */
static int catch_stderr(int *ret_saved)
{
	int fd = memfd_create("cow-mount", MFD_CLOEXEC);

	*ret_saved = fd < 0 ? -1 : fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
	if (*ret_saved >= 0)
		dup2(fd, STDERR_FILENO);
	return fd;
}

/* Puts stderr back. @why gets the first line, without "PROGRAM: " in front. */
static void release_stderr(int fd, int saved, char *why, size_t len)
{
	ssize_t n = 0;
	char *p;

	if (saved >= 0) {
		dup2(saved, STDERR_FILENO);
		close(saved);
	}
	if (fd >= 0) {
		n = pread(fd, why, len - 1, 0);
		close(fd);
	}
	why[n > 0 ? n : 0] = '\0';
	why[strcspn(why, "\n")] = '\0';
	for (const char *const *pre = (const char *const[]){ "fuse: ", "fusermount3: ", NULL };
	     *pre; pre++) {
		p = strncmp(why, *pre, strlen(*pre)) ? NULL : why + strlen(*pre);
		if (p)
			memmove(why, p, strlen(p) + 1);
	}
}

/* Is @escaped, as the mount table writes it ("\040" for a blank), @path? */
static bool same_path(const char *escaped, const char *path)
{
	for (; *escaped && *path; path++) {
		unsigned char c = (unsigned char)*escaped++;

		if (c == '\\' && escaped[0] && escaped[1] && escaped[2]) {
			c = (unsigned char)((escaped[0] - '0') * 64 + (escaped[1] - '0') * 8 +
					    escaped[2] - '0');
			escaped += 3;
		}
		if (c != (unsigned char)*path)
			return false;
	}
	return !*escaped && !*path;
}

/* Is the mount on @path one of ours? Its process is dead: only the mount table can tell. */
static bool ours_in_mountinfo(const char *path)
{
	FILE *in = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t cap = 0;
	bool ours = false;

	while (in && getline(&line, &cap, in) > 0) {
		char where[4096];
		const char *type = strstr(line, " - ");

		/* The last line for a path is the topmost mount. */
		if (type && sscanf(line, "%*s %*s %*s %*s %4095s", where) == 1 &&
		    same_path(where, path))
			ours = !strncmp(type, " - fuse.cowfuse ", 16);
	}
	free(line);
	if (in)
		fclose(in);
	return ours;
}

static int detach(const char *path)
{
	char *argv[] = { (char[]){ "fusermount3" }, (char[]){ "-u" }, (char[]){ "-z" }, NULL,
			 NULL };
	int status;
	pid_t pid;

	if (!umount2(path, MNT_DETACH))
		return 0;
	if (errno != EPERM)
		return -errno;
	argv[3] = cow_strdup(path);
	pid = argv[3] ? fork() : -1;
	if (!pid) {
		execvp(argv[0], argv);
		_exit(127);
	}
	cow_free(argv[3]);
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return -errno;
	return status ? -EPERM : 0;
}

/* @path, absolute and without links, not asking what is mounted there. NULL: errno. */
static char *resolve(const char *path)
{
	COW_CLEANUP_FREE char *copy = cow_strdup(path);
	char *slash, *parent, *out;
	size_t len = strlen(path);

	if (!copy) {
		errno = ENOMEM;
		return NULL;
	}
	while (len > 1 && copy[len - 1] == '/')
		copy[--len] = '\0';
	slash = strrchr(copy, '/');
	if (slash)
		*slash = '\0';
	parent = realpath(!slash ? "." : slash == copy ? "/" : copy, NULL);
	if (!parent)
		return NULL;
	out = cow_asprintf("%s/%s", strcmp(parent, "/") ? parent : "", slash ? slash + 1 : copy);
	free(parent);
	errno = ENOMEM;
	return out;
}

static int take_away_dead_mount(const char *path, struct cow_err *err)
{
	COW_CLEANUP_FREE char *where = NULL;
	struct statfs fs;
	int rc;

	/* Not stat(): of a dead mount, too, the kernel may still know the attributes. */
	if (!statfs(path, &fs) || errno != ENOTCONN)
		return 0;
	where = resolve(path);
	if (!where || !ours_in_mountinfo(where))
		return 0;
	rc = detach(where);
	if (rc)
		return cow_err_sys(err, rc, "%s: cannot take away the mount a dead cowfuse left",
				   path);
	cow_log(COW_LOG_INFO, "%s: took away the mount of a dead process", path);
	return 0;
}

/* Sets f->mountpoint: absolute, since the process may change its folder later. */
static int prepare_mountpoint(struct cow_fuse *f, const char *path, struct cow_err *err)
{
	struct stat st;
	char *real;
	int rc = take_away_dead_mount(path, err);

	if (rc)
		return rc;
	if (stat(path, &st))
		return cow_err_sys(err, -errno, "%s: cannot mount here", path);
	if (!S_ISDIR(st.st_mode))
		return cow_err_set(err, -ENOTDIR, "%s: cannot mount here: not a folder", path);
	real = realpath(path, NULL);
	f->mountpoint = real ? cow_strdup(real) : NULL;
	free(real);
	if (!f->mountpoint)
		return cow_err_sys(err, -ENOMEM, "%s: cannot mount here", path);
	return 0;
}

/*
 * libfuse sends a reply once, and nobody else answers that request: one that the kernel has no
 * memory for just now is sent again. Whoever waits for it would wait for ever.
 */
static ssize_t send_reply(int fd, struct iovec *iov, int count, void *opaque)
{
	ssize_t n = writev(fd, iov, count);

	(void)opaque;
	for (unsigned i = 0; n < 0 && errno == ENOMEM && i < REPLY_TRIES; i++) {
		cow_sleep_ms(REPLY_PAUSE_MS);
		n = writev(fd, iov, count);
	}
	return n;
}

static ssize_t receive(int fd, void *buf, size_t len, void *opaque)
{
	(void)opaque;
	return read(fd, buf, len);
}

static const struct fuse_custom_io session_io = { .writev = send_reply, .read = receive };

int view_mount(struct cow_fuse *f, const struct cow_fuse_cfg *cfg,
	       const struct fuse_lowlevel_ops *ops, struct cow_err *err)
{
	COW_CLEANUP_FREE char *opts = mount_options(cfg);
	char prog[] = "cowfuse", dash_o[] = "-o", why[256];
	char *argv[] = { prog, dash_o, opts, NULL };
	struct fuse_args args = FUSE_ARGS_INIT(3, argv);
	int caught, saved, rc;

	rc = opts ? prepare_mountpoint(f, cfg->mountpoint, err) :
		cow_err_sys(err, -ENOMEM, "%s: cannot mount", cfg->mountpoint);
	if (rc)
		return rc;
	fuse_set_log_func(NULL);	/* an earlier mount has set it */
	caught = catch_stderr(&saved);
	f->se = fuse_session_new(&args, ops, sizeof(*ops), f);
	rc = f->se ? fuse_session_mount(f->se, f->mountpoint) : -1;
	release_stderr(caught, saved, why, sizeof(why));
	fuse_opt_free_args(&args);
	fuse_set_log_func(to_our_log);
	if (rc)
		return cow_err_set(err, -EIO, "%s: cannot mount: %s", f->mountpoint,
				   *why ? why : "libfuse gave no reason");
	f->fd = fuse_session_fd(f->se);
	if (fcntl(f->fd, F_SETFD, FD_CLOEXEC) || fcntl(f->fd, F_SETFL, O_RDWR | O_NONBLOCK))
		return cow_err_sys(err, -errno, "%s: /dev/fuse", f->mountpoint);
	if (fuse_session_custom_io(f->se, &session_io, f->fd))
		return cow_err_sys(err, -EIO, "%s: /dev/fuse", f->mountpoint);
	return 0;
}
