// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The FUSE front end: the library in fuse/ serves the tree at RUNDIR/NAME, and
 * a loop device over its file "disk" makes it a block device, on which the bridge
 * puts a node. Here is only what ties these to the daemon's life; no FUSE protocol.
 *
 * The kernel asks this process for everything below the mount point. So nothing
 * below it is ever opened here: jobs do that, in child processes. A job answers
 * with two lines: the loop device it leaves attached (or "-"), and a sentence.
 */
#include "fe-fuse.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <unistd.h>

#include "blkdev.h"
#include "cow/log.h"
#include "fuse/fuse.h"
#include "loopdev.h"
#include "runstate.h"

struct job {
	struct fe *fe;
	bool running, force;
	fe_done_fn *done;
	void *opaque;
};

struct fe {
	struct fe_cfg cfg;
	const struct fuse_top *top;	/* NULL: none */
	struct cow_fuse *fuse;
	char loop[64];			/* "" */
	char path[256];			/* of what is on top; "": nothing is */
	bool read_only, stopping, unmounted;
	bool ready;
	struct job start, stop, resize;
};

void fe_child_begin(int out_fd)
{
	if (out_fd > 3)
		close_range(3, (unsigned)out_fd - 1, 0);
	close_range((unsigned)out_fd + 1, ~0u, 0);
}

/* ---- in the child ---- */

static int answer(int out_fd, int rc, const char *loop, const struct cow_err *err)
{
	dprintf(out_fd, "%s\n%s\n", *loop ? loop : "-",
		rc || err->code ? cow_err_text(err, rc) : "");
	return rc ? 1 : 0;
}

static int attach_loop(struct fe *fe, const char *prefer, char *ret, size_t size,
		       struct cow_err *err)
{
	unsigned flags = fe->read_only ? LOOPDEV_READONLY : 0;

	/* With something on top, that is what may be looked at. */
	if (fe->cfg.scan && !fe->top)
		flags |= LOOPDEV_SCAN;
	return loopdev_attach(fe->cfg.disk, flags, prefer, ret, size, err);
}

/* What is on top of @loop now no longer uses what a killed daemon left. */
static void drop_left(struct fe *fe, const char *loop)
{
	const char *left = fe->cfg.left;
	struct cow_err err = { 0 };
	int rc;

	if (!left[0] || !strcmp(left, loop) || !loopdev_is_ours(left, fe->cfg.disk, left))
		return;
	rc = loopdev_detach(left, true, &err);
	if (rc)
		cow_log(COW_LOG_WARN, "%s, left by a killed daemon: %s", left,
			cow_err_text(&err, rc));
}

static int child_start(void *arg, int out_fd)
{
	struct fe *fe = ((struct job *)arg)->fe;
	struct cow_err err = { 0 };
	char loop[64] = "";
	int rc;

	fe_child_begin(out_fd);
	rc = attach_loop(fe, NULL, loop, sizeof(loop), &err);
	if (rc)
		loop[0] = '\0';
	/* No loop here: the file is still good, and the sentence says why there is no device. */
	if (rc == -ENODEV && !fe->top)
		return answer(out_fd, 0, "", &err);
	if (!rc && fe->top) {
		rc = fe->top->attach(fe->cfg.name, loop, fe->read_only, &err);
		if (rc)
			loopdev_detach(loop, true, NULL);
		else
			drop_left(fe, loop);
	}
	return answer(out_fd, rc, rc ? "" : loop, &err);
}

/* Puts back what a refused stop has taken away already. Returns the loop device, or "". */
static const char *put_back(struct fe *fe, bool attach, char *loop, size_t size)
{
	struct cow_err err = { 0 };
	int rc = 0;

	if (attach)
		rc = attach_loop(fe, fe->loop, loop, size, &err);
	else
		snprintf(loop, size, "%s", fe->loop);
	if (rc)
		loop[0] = '\0';
	else if (fe->top)
		rc = fe->top->attach(fe->cfg.name, loop, fe->read_only, &err);
	if (rc)
		cow_log(COW_LOG_WARN, "after a refused stop: %s", cow_err_text(&err, rc));
	return loop;
}

/* The node and the loop device. Refused without @force: as before. */
static int release_devices(struct fe *fe, bool force, struct cow_err *err)
{
	char loop[64];
	int rc = 0;

	if (force)
		blkdev_sync(fe->loop);
	if (fe->top)
		rc = fe->top->detach(fe->cfg.name, force, err);
	if (rc && !force)
		return rc;
	if (rc)
		cow_log(COW_LOG_WARN, "%s", cow_err_text(err, rc));
	rc = force ? 0 : blkdev_claimed(fe->loop, err);
	if (!rc)
		rc = loopdev_detach(fe->loop, force, err);
	if (rc && !force && fe->top)
		put_back(fe, false, loop, sizeof(loop));
	return rc;
}

static int child_stop(void *arg, int out_fd)
{
	struct job *job = arg;
	struct fe *fe = job->fe;
	struct cow_err err = { 0 };
	char loop[64] = "";
	int rc;

	fe_child_begin(out_fd);
	if (fe->loop[0]) {
		rc = release_devices(fe, job->force, &err);
		if (rc && !job->force)
			return answer(out_fd, rc, fe->loop, &err);
	}
	if (job->force) {
		err.code = 0;
		rc = run_unmount(fe->cfg.mount, true);
		return answer(out_fd, rc, "", &err);
	}
	/* An ordinary user may not: then the library unmounts it in the end. */
	if (umount2(fe->cfg.mount, UMOUNT_NOFOLLOW) == 0 || errno != EBUSY)
		return answer(out_fd, 0, "", &err);
	cow_err_set(&err, -EBUSY, "%s is in use: a process has a file below it open",
		    fe->cfg.mount);
	if (fe->loop[0])
		put_back(fe, true, loop, sizeof(loop));
	return answer(out_fd, -EBUSY, loop, &err);
}

static int child_resize(void *arg, int out_fd)
{
	struct fe *fe = ((struct job *)arg)->fe;
	struct cow_err err = { 0 };
	int rc;

	fe_child_begin(out_fd);
	rc = loopdev_resize(fe->loop, fe->cfg.disk, cow_dev_size(fe->cfg.dev));
	if (rc)
		cow_err_sys(&err, rc, "the device is resized, but %s is not", fe->loop);
	else if (fe->top)
		rc = fe->top->resize(fe->cfg.name, fe->loop, fe->read_only, &err);
	return answer(out_fd, rc, fe->loop, &err);
}

/* ---- in the daemon ---- */

/* Takes the job's answer apart and keeps the loop device it names. */
static void job_done(void *opaque, int status, const char *out, size_t len)
{
	struct job *job = opaque;
	struct fe *fe = job->fe;
	char loop[64] = "", sentence[COW_ERR_MAX] = "";
	int rc = status ? -EIO : 0;

	job->running = false;
	if (len && sscanf(out, "%63[^\n]\n%767[^\n]", loop, sentence) >= 1) {
		if (!strcmp(loop, "-"))
			loop[0] = '\0';
		if (strcmp(loop, fe->loop)) {
			memcpy(fe->loop, loop, sizeof(loop));
			fe->cfg.changed(fe->cfg.opaque);
		}
	}
	if (job == &fe->stop) {
		fe->stopping = !rc;
		rc = rc ? -EBUSY : 0;
	}
	if (!rc && sentence[0] && job == &fe->start)
		cow_log(COW_LOG_INFO, "no loop device: %s", sentence);
	if (rc && !sentence[0])
		snprintf(sentence, sizeof(sentence),
			 "a helper process of the front end failed (%d)", status);
	job->done(job->opaque, rc, sentence);
	/* While it was being stopped somebody else unmounted it, which stopping hid. */
	if (job == &fe->stop && rc && fe->unmounted)
		fe->cfg.gone(fe->cfg.opaque);
}

static void job_run(struct fe *fe, struct job *job, int (*fn)(void *arg, int out_fd),
		    fe_done_fn *done, void *opaque)
{
	int rc;

	if (job->running) {
		done(opaque, -EALREADY, "the same is already being done");
		return;
	}
	job->fe = fe;
	job->done = done;
	job->opaque = opaque;
	job->running = true;
	rc = cow_loop_child(fe->cfg.loop, fn, job, job_done, job);
	if (rc) {
		job->running = false;
		if (job == &fe->stop)
			fe->stopping = false;
		done(opaque, rc, "cannot start a helper process");
	}
}

int fe_fuse_probe(struct cow_err *why)
{
	COW_CLEANUP_CLOSE int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);

	return fd < 0 ? cow_err_sys(why, -errno, "/dev/fuse") : 0;
}

static void on_unmounted(void *opaque)
{
	struct fe *fe = opaque;

	fe->unmounted = true;
	if (fe->cfg.no_loop && !fe->ready)
		fe->cfg.ready(fe->cfg.opaque, -ECONNABORTED, "unmounted before it was usable");
	else if (!fe->stopping)
		fe->cfg.gone(fe->cfg.opaque);
}

static void on_mounted(void *opaque)
{
	struct fe *fe = opaque;

	fe->ready = true;
	fe->cfg.ready(fe->cfg.opaque, 0, "");
}

int fe_fuse_start(const struct fe_cfg *cfg, const struct fuse_top *top, struct fe **ret,
		  struct cow_err *err)
{
	struct fe *fe = cow_zalloc(sizeof(*fe));
	struct cow_fuse_cfg fuse = { .loop = cfg->loop, .dev = cfg->dev, .mountpoint = cfg->mount };
	int rc;

	if (!fe)
		return cow_err_set(err, -ENOMEM, "%s: not enough memory", cfg->mount);
	fe->cfg = *cfg;
	fe->top = top;
	fe->read_only = cow_dev_readonly(cfg->dev);
	fuse.writable = !fe->read_only;
	fuse.ready = cfg->no_loop ? on_mounted : NULL;
	fuse.unmounted = on_unmounted;
	fuse.opaque = fe;
	if (top)
		top->path(cfg->name, fe->path, sizeof(fe->path));
	rc = cow_fuse_mount(&fuse, &fe->fuse, err);
	if (rc) {
		cow_free(fe);
		return rc;
	}
	*ret = fe;
	if (!cfg->no_loop)
		job_run(fe, &fe->start, child_start, cfg->ready, cfg->opaque);
	return 0;
}

void fe_fuse_stop(struct fe *fe, bool force, fe_done_fn *done, void *opaque)
{
	fe->stopping = true;
	fe->stop.force = force;
	job_run(fe, &fe->stop, child_stop, done, opaque);
}

void fe_fuse_free(struct fe *fe)
{
	fe->stopping = true;
	cow_fuse_unmount(fe->fuse);
	cow_free(fe);
}

void fe_fuse_resized(struct fe *fe, fe_done_fn *done, void *opaque)
{
	if (fe->loop[0])
		job_run(fe, &fe->resize, child_resize, done, opaque);
	else
		done(opaque, 0, "");
}

const char *fe_fuse_path(const struct fe *fe)
{
	if (fe->path[0])
		return fe->path;
	return fe->loop[0] ? fe->loop : fe->cfg.disk;
}

const char *fe_fuse_block_device(const struct fe *fe)
{
	return fe->loop;
}

static int fuse_start(const struct fe_cfg *cfg, struct fe **ret, struct cow_err *err)
{
	return fe_fuse_start(cfg, NULL, ret, err);
}

const struct fe_ops fe_fuse = {
	.name = "fuse",
	.desc = "a FUSE file, and a loop device over it",
	.has_file = true,
	.probe = fe_fuse_probe,
	.start = fuse_start,
	.stop = fe_fuse_stop,
	.free = fe_fuse_free,
	.resized = fe_fuse_resized,
	.path = fe_fuse_path,
	.block_device = fe_fuse_block_device,
};
