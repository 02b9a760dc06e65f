// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Names, paths and the state file of the run directory; see rundir.h. It takes
 * no lock and cleans nothing up: that is runstate.c.
 */
#include "rundir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto.h"

#define STATE_MAX 65536		/* bytes of a state file; a written one is far smaller */

int run_name_check(const char *name, struct cow_err *err)
{
	static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				      "0123456789._+-";
	size_t len = strlen(name);

	if (!len || len > RUN_NAME_MAX)
		return cow_err_set(err, -EINVAL, "a device name has 1 to %d characters",
				   RUN_NAME_MAX);
	if (strspn(name, allowed) != len)
		return cow_err_set(
			err, -EINVAL,
			"device name \"%s\": only letters, digits and . _ + - are allowed", name);
	if (name[0] == '.' || name[0] == '-')
		return cow_err_set(err, -EINVAL, "device name \"%s\" starts with '%c'", name,
				   name[0]);
	return 0;
}

static char *run_dir_path(struct cow_err *err)
{
	const char *env = secure_getenv("COW_RUN_DIR");
	char *path = NULL;

	if (env && *env) {
		if (*env != '/') {
			cow_err_set(err, -EINVAL, "COW_RUN_DIR is \"%s\", not an absolute path",
				    env);
			return NULL;
		}
		path = cow_strdup(env);
	} else if (geteuid() == 0) {
		path = cow_strdup("/run/cowd");
	} else {
		env = secure_getenv("XDG_RUNTIME_DIR");
		if (!env || *env != '/') {
			cow_err_set(
				err, -ENOENT,
				"neither COW_RUN_DIR nor XDG_RUNTIME_DIR says where to keep sockets");
			return NULL;
		}
		path = cow_asprintf("%s/cowd", env);
	}
	if (!path)
		cow_err_set(err, -ENOMEM, "not enough memory");
	return path;
}

int run_dir(bool create, char **ret, struct cow_err *err)
{
	COW_CLEANUP_FREE char *path = run_dir_path(err);
	struct stat st;

	if (!path)
		return err->code;
	/* /proc/mounts and sysfs show the real path, and we compare with what they show. */
	if (create && mkdir(path, 0755) && errno != EEXIST)
		return cow_err_sys(err, -errno, "run directory %s", path);
	*ret = realpath(path, NULL);
	if (!*ret)
		return cow_err_sys(err, -errno, "run directory %s", path);
	if (stat(*ret, &st) || !S_ISDIR(st.st_mode)) {
		cow_err_set(err, -ENOTDIR, "run directory %s is not a directory", path);
	} else if ((st.st_uid != geteuid() && st.st_uid != 0) || (st.st_mode & 022)) {
		cow_err_set(err, -EPERM, "run directory %s: others may write to it", path);
	} else if (strlen(*ret) > PATH_MAX - 2 * RUN_NAME_MAX) {
		cow_err_set(err, -ENAMETOOLONG, "run directory %s: path too long", path);
	} else {
		return 0;
	}
	free(*ret);
	*ret = NULL;
	return err->code;
}

char *run_path(const char *dir, const char *name, const char *suffix)
{
	return cow_asprintf("%s/%s%s", dir, name, suffix);
}

/* ---- state file: lines of two words, as the control protocol writes words ---- */

static int put(FILE *f, const char *key, const char *value)
{
	char line[PROTO_PACKET] = "";

	if (!*value || proto_join(line, sizeof(line), key) || proto_join(line, sizeof(line), value))
		return 0;	/* a path that does not fit is left out: nothing depends on it */
	return fprintf(f, "%s\n", line) < 0 ? -EIO : 0;
}

static int put_all(FILE *f, const struct run_state *st)
{
	char pid[32];
	unsigned i;
	int rc;

	snprintf(pid, sizeof(pid), "%ld", st->pid);
	rc = put(f, "pid", pid);
	if (!rc)
		rc = put(f, "format", st->format);
	if (!rc)
		rc = put(f, "image", st->image);
	if (!rc)
		rc = put(f, "mount", st->mount);
	if (!rc)
		rc = put(f, "frontend", st->frontend);
	if (!rc)
		rc = put(f, "device", st->device);
	if (!rc)
		rc = put(f, "path", st->path);
	for (i = 0; !rc && i < RUN_VIEWS; i++)
		rc = put(f, "view", st->views[i]);
	return rc;
}

int run_state_write(const char *dir, const char *name, const struct run_state *st)
{
	COW_CLEANUP_FREE char *path = run_path(dir, name, ".state");
	COW_CLEANUP_FREE char *tmp = run_path(dir, name, ".state~");
	FILE *f;
	int rc;

	if (!path || !tmp)
		return -ENOMEM;
	f = fopen(tmp, "we");
	if (!f)
		return -errno;
	rc = put_all(f, st);
	if (fclose(f) && !rc)
		rc = -errno;
	if (!rc && rename(tmp, path))
		rc = -errno;
	if (rc)
		unlink(tmp);
	return rc;
}

static void take(struct run_state *st, const char *key, const char *value)
{
	unsigned i;

	if (!strcmp(key, "pid"))
		st->pid = strtol(value, NULL, 10);
	else if (!strcmp(key, "format"))
		snprintf(st->format, sizeof(st->format), "%s", value);
	else if (!strcmp(key, "image"))
		snprintf(st->image, sizeof(st->image), "%s", value);
	else if (!strcmp(key, "mount"))
		snprintf(st->mount, sizeof(st->mount), "%s", value);
	else if (!strcmp(key, "frontend"))
		snprintf(st->frontend, sizeof(st->frontend), "%s", value);
	else if (!strcmp(key, "device"))
		snprintf(st->device, sizeof(st->device), "%s", value);
	else if (!strcmp(key, "path"))
		snprintf(st->path, sizeof(st->path), "%s", value);
	else if (!strcmp(key, "view"))
		for (i = 0; i < RUN_VIEWS; i++)
			if (!st->views[i][0]) {
				snprintf(st->views[i], sizeof(st->views[i]), "%s", value);
				break;
			}
}

int run_state_read(const char *dir, const char *name, struct run_state *st)
{
	COW_CLEANUP_FREE char *path = run_path(dir, name, ".state");
	COW_CLEANUP_FREE struct proto_words *w = cow_zalloc(sizeof(*w));
	COW_CLEANUP_FREE char *text = cow_zalloc(STATE_MAX);
	COW_CLEANUP_CLOSE int fd = -1;
	const char *why;
	char *line, *nl;
	ssize_t n;

	memset(st, 0, sizeof(*st));
	if (!path || !w || !text)
		return -ENOMEM;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	n = read(fd, text, STATE_MAX);
	if (n < 0)
		return -errno;
	if (n == STATE_MAX || memchr(text, '\0', (size_t)n))
		return -EBADMSG;
	for (line = text; (nl = strchr(line, '\n')); line = nl + 1)
		if (!proto_split(line, (size_t)(nl - line), w, &why) && w->argc == 2)
			take(st, w->argv[0], w->argv[1]);
	return 0;
}

int run_socket_address(const char *dir, const char *name, struct sockaddr_un *ret)
{
	int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	memset(ret, 0, sizeof(*ret));
	ret->sun_family = AF_UNIX;
	/* At most 14 + 10 + 1 + 64 + 5 bytes: fits. */
	snprintf(ret->sun_path, sizeof(ret->sun_path), "/proc/self/fd/%d/%s.sock", fd, name);
	return fd;
}
