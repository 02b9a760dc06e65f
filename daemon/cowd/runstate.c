// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Taking and giving back a name in the run directory, and cleaning up behind
 * a daemon that was killed. Runs before anything is served, so it may wait for
 * devices; the mounts of a dead daemon answer with an error at once.
 */
#include "runstate.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <mntent.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cow/log.h"
#include "cow/proc.h"
#include "loopdev.h"

#define MOUNTS_STACKED 64	/* times a mount point is unmounted before we give up */

extern char **environ;

/* ---- the lock ---- */

/* Opens and locks @path, and makes sure that it is still the file of that name. */
static int lock_file(const char *path)
{
	struct stat a, b;
	int fd, rc;

	for (;;) {
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd < 0)
			return -errno;
		if (flock(fd, LOCK_EX | LOCK_NB)) {
			rc = -errno;
			close(fd);
			return rc;
		}
		if (fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_ino == b.st_ino &&
		    a.st_dev == b.st_dev)
			return fd;
		close(fd);	/* its last owner removed it between our open and our lock */
	}
}

/* A killed daemon's last threads and children hold the lock a little longer than it lives. */
static int lock_file_patiently(const char *path)
{
	unsigned wait_ms = 0;
	int fd = lock_file(path);

	while (fd == -EWOULDBLOCK && cow_patience(&wait_ms))
		fd = lock_file(path);
	return fd;
}

static void free_runstate(struct runstate *rs)
{
	cow_free(rs->dir);
	cow_free(rs->name);
	cow_free(rs->mount);
	cow_free(rs->disk);
	cow_free(rs);
}

int runstate_acquire(const char *name, struct runstate **ret, struct cow_err *err)
{
	COW_CLEANUP_FREE char *lock = NULL;
	struct runstate *rs;
	int rc;

	rc = run_name_check(name, err);
	if (rc)
		return rc;
	rs = cow_zalloc(sizeof(*rs));
	if (!rs)
		return cow_err_set(err, -ENOMEM, "%s: not enough memory", name);
	rc = run_dir(true, &rs->dir, err);
	if (rc)
		goto fail;
	rs->name = cow_strdup(name);
	rs->mount = run_path(rs->dir, name, "");
	rs->disk = run_path(rs->dir, name, "/disk");
	lock = run_path(rs->dir, name, ".lock");
	if (!rs->name || !rs->mount || !rs->disk || !lock) {
		rc = cow_err_set(err, -ENOMEM, "%s: not enough memory", name);
		goto fail;
	}
	rs->lock_fd = lock_file_patiently(lock);
	if (rs->lock_fd < 0) {
		rc = rs->lock_fd;
		if (rc == -EWOULDBLOCK)
			rc = cow_err_set(err, -EBUSY, "%s: the name is in use by a running cowd",
					 name);
		else
			cow_err_sys(err, rc, "%s", lock);
		goto fail;
	}
	*ret = rs;
	return 0;
fail:
	free_runstate(rs);
	return rc;
}

/* ---- what a killed daemon left ---- */

int run_unmount(const char *path, bool lazy)
{
	char a0[] = "fusermount3", a1[] = "-uq", a1_lazy[] = "-uzq", a2[] = "--";
	COW_CLEANUP_FREE char *arg = NULL;
	char *argv[5] = { a0, lazy ? a1_lazy : a1, a2 };
	pid_t pid;
	int rc, status;

	if (umount2(path, (lazy ? MNT_DETACH : 0) | UMOUNT_NOFOLLOW) == 0)
		return 0;
	if (errno != EPERM)
		return -errno;
	arg = cow_strdup(path);
	if (!arg)
		return -ENOMEM;
	argv[3] = arg;
	rc = posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ);
	if (rc)
		return -rc;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EBUSY;
}

/* Is a FUSE file system mounted at @path, as the topmost? */
static bool is_fuse_mount(const char *path)
{
	char buf[2 * PATH_MAX + 512];
	struct mntent ent;
	bool fuse = false;
	FILE *f = setmntent("/proc/self/mounts", "re");

	if (!f)
		return false;
	while (getmntent_r(f, &ent, buf, sizeof(buf)))
		if (!strcmp(ent.mnt_dir, path))
			fuse = !strncmp(ent.mnt_type, "fuse", 4);
	endmntent(f);
	return fuse;
}

/* A mount whose server is gone answers so at once. */
static bool is_dead(const char *path)
{
	struct stat st;

	return stat(path, &st) && (errno == ENOTCONN || errno == ECONNABORTED);
}

static void detach_loops(const struct runstate *rs, const char *keep)
{
	DIR *dir = opendir("/sys/block");
	struct dirent *e;
	struct cow_err err = { 0 };
	char dev[64];
	int rc;

	if (!dir)
		return;
	while ((e = readdir(dir))) {
		if (strncmp(e->d_name, "loop", 4) || strlen(e->d_name) > 16)
			continue;
		snprintf(dev, sizeof(dev), "/dev/%.16s", e->d_name);
		if (!strcmp(dev, keep) || !loopdev_is_ours(dev, rs->disk, rs->st.device))
			continue;
		rc = loopdev_detach(dev, true, &err);
		cow_log(rc ? COW_LOG_WARN : COW_LOG_INFO, "%s, left by a killed daemon: %s", dev,
			rc ? cow_err_text(&err, rc) : "detached");
	}
	closedir(dir);
}

static int unmount_all(const struct runstate *rs, struct cow_err *err)
{
	unsigned i;
	int rc;

	for (i = 0; i < RUN_VIEWS; i++) {
		const char *view = rs->st.views[i];

		if (!view[0] || !is_fuse_mount(view) || !is_dead(view))
			continue;
		rc = run_unmount(view, true);
		if (rc)
			cow_log(COW_LOG_WARN, "%s, mounted by a killed daemon: %s", view,
				strerror(-rc));
	}
	for (i = 0; i < MOUNTS_STACKED && is_fuse_mount(rs->mount); i++) {
		rc = run_unmount(rs->mount, true);
		if (rc)
			return cow_err_sys(err, rc, "%s, mounted by a killed daemon", rs->mount);
	}
	return 0;
}

static void unlink_suffix(const struct runstate *rs, const char *suffix)
{
	COW_CLEANUP_FREE char *path = run_path(rs->dir, rs->name, suffix);

	if (path)
		unlink(path);
}

void runstate_read(struct runstate *rs)
{
	int rc = run_state_read(rs->dir, rs->name, &rs->st);

	if (rc && rc != -ENOENT)
		cow_log(COW_LOG_WARN, "%s/%s.state: %s", rs->dir, rs->name, strerror(-rc));
}

int runstate_clean(struct runstate *rs, const char *keep, struct cow_err *err)
{
	int rc;

	if (rs->st.pid)
		cow_log(COW_LOG_INFO, "cleaning up behind process %ld, which did not stop orderly",
			rs->st.pid);
	/* The loop device first: while the mount is there it can be told by its file's path. */
	detach_loops(rs, keep);
	rc = unmount_all(rs, err);
	if (rc)
		return rc;
	unlink_suffix(rs, ".sock");
	memset(&rs->st, 0, sizeof(rs->st));
	if (mkdir(rs->mount, 0755) && errno != EEXIST)
		return cow_err_sys(err, -errno, "mount point %s", rs->mount);
	return 0;
}

/* ---- ours ---- */

void runstate_save(struct runstate *rs)
{
	int rc = run_state_write(rs->dir, rs->name, &rs->st);

	if (rc)
		cow_log(COW_LOG_WARN, "%s/%s.state: %s", rs->dir, rs->name, strerror(-rc));
}

void runstate_release(struct runstate *rs, bool keep_state)
{
	if (!rs)
		return;
	rmdir(rs->mount);
	unlink_suffix(rs, ".sock");
	if (!keep_state)
		unlink_suffix(rs, ".state");
	runstate_abandon(rs);
}

void runstate_abandon(struct runstate *rs)
{
	if (!rs)
		return;
	/* While it is locked: see lock_file(). */
	unlink_suffix(rs, ".lock");
	close(rs->lock_fd);
	free_runstate(rs);
}
