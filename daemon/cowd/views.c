// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * "mount" and "umount": read-only views of the running device for inspection,
 * mounted where the client wants them. Looking at the client's folder, and
 * unmounting, happen in child processes: both can need an answer from this very
 * daemon.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blkdev.h"
#include "cow/log.h"
#include "cowd.h"
#include "fuse/fuse.h"

struct view {
	struct cowd *d;
	unsigned slot;
	struct cow_fuse *fuse;		/* NULL: not mounted yet */
	struct client *client;		/* a job runs for it */
	bool gone;			/* the kernel ended it meanwhile */
	char dir[PATH_MAX];
};

static void view_free(struct view *v)
{
	struct cowd *d = v->d;

	cow_fuse_unmount(v->fuse);
	d->views[v->slot] = NULL;
	cow_free(v);
}

static struct view *find(struct cowd *d, const char *dir)
{
	unsigned i;

	for (i = 0; i < RUN_VIEWS; i++)
		if (d->views[i] && !strcmp(d->views[i]->dir, dir))
			return d->views[i];
	return NULL;
}

static struct view *view_new(struct cowd *d, const char *dir)
{
	struct view *v;
	unsigned i;

	for (i = 0; i < RUN_VIEWS && d->views[i]; i++)
		;
	if (i == RUN_VIEWS)
		return NULL;
	v = cow_zalloc(sizeof(*v));
	if (!v)
		return NULL;
	v->d = d;
	v->slot = i;
	snprintf(v->dir, sizeof(v->dir), "%s", dir);
	d->views[i] = v;
	return v;
}

/* Starts a job for @c; answers it when that fails. */
static int view_job(struct view *v, struct client *c, int (*fn)(void *arg, int out_fd),
		    void (*done)(void *opaque, int status, const char *out, size_t len))
{
	int rc = cow_loop_child(v->d->loop, fn, v, done, v);

	if (rc)
		client_done(c, rc, "cannot start a helper process");
	else
		v->client = c;
	return rc;
}

static void answer(struct view *v, int rc, const char *sentence)
{
	struct client *c = v->client;

	v->client = NULL;
	client_done(c, rc, sentence);
}

/* A job's only line of output. */
static const char *first_line(const char *out, char *buf, size_t size)
{
	snprintf(buf, size, "%.*s", (int)strcspn(out, "\n"), out);
	return buf[0] ? buf : "a helper process failed";
}

/* The kernel ended it: "umount DIR" by hand, or our own job. */
static void on_unmounted(void *opaque)
{
	struct view *v = opaque;
	struct cowd *d = v->d;

	v->gone = true;
	if (v->client)
		return;		/* the job's end sees to it */
	view_free(v);
	cowd_save_state(d);
}

/* ---- mount ---- */

static int child_check(void *arg, int out_fd)
{
	struct view *v = arg;
	const char *device = v->d->ops->block_device(v->d->fe);
	size_t n = strlen(v->d->run->mount);
	char dir[PATH_MAX];
	struct stat st;

	fe_child_begin(out_fd);
	if (!realpath(v->dir, dir) || stat(dir, &st)) {
		dprintf(out_fd, "%s: %s\n", v->dir, strerror(errno));
		return 1;
	}
	if (!S_ISDIR(st.st_mode)) {
		dprintf(out_fd, "%s is not a folder\n", dir);
		return 1;
	}
	if ((!strncmp(dir, v->d->run->mount, n) && (dir[n] == '/' || !dir[n])) ||
	    (*device && blkdev_carries(device, dir))) {
		dprintf(out_fd, "%s is on this very device\n", dir);
		return 1;
	}
	dprintf(out_fd, "%s\n", dir);
	return 0;
}

static void on_checked(void *opaque, int status, const char *out, size_t len)
{
	struct view *v = opaque;
	struct cowd *d = v->d;
	struct cow_err err = { 0 };
	char line[PATH_MAX];
	struct cow_fuse_cfg cfg = { .loop = d->loop, .dev = d->dev, .shared = true,
				    .unmounted = on_unmounted, .opaque = v };
	int rc = -EINVAL;

	(void)len;
	first_line(out, line, sizeof(line));
	if (status) {
		cow_err_set(&err, rc, "%s", line);
	} else if (d->stopping) {
		rc = cow_err_set(&err, -ESHUTDOWN, "the device is being stopped");
	} else if (strcmp(line, v->dir)) {
		/* cowctl sends what realpath() gave: a link has been put in its way since. */
		cow_err_set(&err, rc, "%s leads to %s: give that folder itself", v->dir, line);
	} else {
		cfg.mountpoint = v->dir;
		rc = cow_fuse_mount(&cfg, &v->fuse, &err);
	}
	/* Recorded before it is answered: it counts from then on. */
	if (!rc)
		cowd_save_state(d);
	answer(v, rc, rc ? cow_err_text(&err, rc) : NULL);
	if (rc)
		view_free(v);
}

void views_mount(struct cowd *d, struct client *c, const char *dir)
{
	struct view *v;

	if (dir[0] != '/' || strlen(dir) >= PATH_MAX) {
		client_done(c, -EINVAL, "the folder must be given as an absolute path");
		return;
	}
	if (find(d, dir)) {
		client_done(c, -EBUSY, "a view is mounted there already");
		return;
	}
	v = view_new(d, dir);
	if (!v) {
		client_done(c, -ENOSPC, "too many views of this device are mounted");
		return;
	}
	if (view_job(v, c, child_check, on_checked))
		view_free(v);
}

/* ---- umount ---- */

static int child_unmount(void *arg, int out_fd)
{
	struct view *v = arg;
	int rc;

	fe_child_begin(out_fd);
	rc = run_unmount(v->dir, false);
	if (rc == -EBUSY)
		dprintf(out_fd, "%s is in use\n", v->dir);
	else if (rc)
		dprintf(out_fd, "%s: %s\n", v->dir, strerror(-rc));
	return rc ? 1 : 0;
}

static void on_child_unmounted(void *opaque, int status, const char *out, size_t len)
{
	struct view *v = opaque;
	struct cowd *d = v->d;
	struct client *c;
	char line[PATH_MAX];

	(void)len;
	if (status && !v->gone) {
		answer(v, -EBUSY, first_line(out, line, sizeof(line)));
		return;
	}
	c = v->client;
	view_free(v);
	cowd_save_state(d);
	client_done(c, 0, NULL);
}

void views_unmount(struct cowd *d, struct client *c, const char *dir)
{
	struct view *v = find(d, dir);

	if (!v || !v->fuse)
		client_done(c, -ENOENT, "no view of this device is mounted there");
	else if (v->client)
		client_done(c, -EALREADY, "that is being done already");
	else
		view_job(v, c, child_unmount, on_child_unmounted);
}

/* ---- all of them ---- */

void views_free(struct cowd *d)
{
	unsigned i;

	for (i = 0; i < RUN_VIEWS; i++)
		if (d->views[i])
			view_free(d->views[i]);
}

void views_status(struct cowd *d, struct cow_kv *kv)
{
	unsigned i;

	cow_kv_list(kv, "views");
	for (i = 0; i < RUN_VIEWS; i++)
		if (d->views[i] && d->views[i]->fuse)
			cow_kv_str(kv, NULL, d->views[i]->dir);
	cow_kv_close(kv);
}

void views_state(struct cowd *d, struct run_state *st)
{
	unsigned i;

	for (i = 0; i < RUN_VIEWS; i++)
		snprintf(st->views[i], sizeof(st->views[i]), "%s",
			 d->views[i] && d->views[i]->fuse ? d->views[i]->dir : "");
}
