// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The life of a device, from its name to its end:
 *
 *	take the name, open the images (nothing was changed up to here), clean up
 *	behind a killed daemon, listen, mount, attach, READY
 *	... serve ...
 *	front end lets go of its users (may be refused), drain, unmount, flush and
 *	close the images, give the name back, answer who asked for it
 */
#include "cowd.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "cow/log.h"
#include "dmnode.h"
#include "notify.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

/* Under memory pressure the kernel must not wait for us while we wait for memory. */
static void protect_from_pressure(void)
{
	int fd;

	/* Both need a privilege; without it there is only less protection. */
	if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0))
		cow_log(COW_LOG_DEBUG, "PR_SET_IO_FLUSHER: %s", strerror(errno));
	fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, "-900", 4) != 4)
		cow_log(COW_LOG_DEBUG, "oom_score_adj: %s", strerror(errno));
	close(fd);
}

void cowd_save_state(struct cowd *d)
{
	struct run_state *st = &d->run->st;

	snprintf(st->frontend, sizeof(st->frontend), "%s", d->ops->name);
	snprintf(st->path, sizeof(st->path), "%s", d->fe ? d->ops->path(d->fe) : "");
	snprintf(st->device, sizeof(st->device), "%s", d->fe ? d->ops->block_device(d->fe) : "");
	/* Until it has been taken up, it is what a successor would have to know of. */
	if (!st->device[0])
		memcpy(st->device, d->left, sizeof(st->device));
	views_state(d, st);
	runstate_save(d->run);
}

/* ---- the end ---- */

static void on_drained(void *opaque)
{
	struct cowd *d = opaque;

	cow_loop_stop(d->loop, d->failed);
}

static void refuse_stop(struct cowd *d, int rc, const char *sentence)
{
	struct client *who = d->stopper;

	d->stopping = false;
	d->stopper = NULL;
	if (who)
		client_done(who, rc, sentence);
	if (d->terminate)	/* it came meanwhile */
		cowd_stop(d, true, NULL);
}

static void on_released(void *opaque, int result, const char *sentence)
{
	struct cowd *d = opaque;

	if (result && !d->terminate) {
		refuse_stop(d, result, sentence);
		return;
	}
	if (result)
		cow_log(COW_LOG_WARN, "stopping all the same: %s", sentence);
	notify("STOPPING=1");
	cow_dev_drain(d->dev, on_drained, d);
}

void cowd_stop(struct cowd *d, bool force, struct client *who)
{
	if (d->stopping || !d->ready) {
		if (who)
			client_done(who, d->ready ? -EALREADY : -EAGAIN,
				    d->ready ? "the device is being stopped already"
					     : "the device is still being started");
		return;
	}
	if (!force && cow_dev_paused(d->dev)) {
		client_done(who, -EBUSY, cow_dev_nospace(d->dev)
			    ? "writes are waiting for space: make room and resume, or use --force"
			    : "the device is paused: resume it first, or use --force");
		return;
	}
	d->stopping = true;
	d->stopper = who;
	if (force) {
		/* What the kernel still holds must get an answer, even "no space". */
		cow_dev_set_enospc(d->dev, COW_ENOSPC_REPORT);
		cow_dev_retry(d->dev);
		if (d->paused) {
			d->paused = false;
			cow_dev_resume(d->dev);
		}
		d->terminate = true;
	}
	if (d->leave)
		d->ops->leave(d->fe, on_released, d);
	else
		d->ops->stop(d->fe, force, on_released, d);
}

static void on_signal(void *opaque, uint32_t sig)
{
	struct cowd *d = opaque;

	cow_log(COW_LOG_INFO, "stopping on %s", strsignal((int)sig));
	d->terminate = true;
	d->leave = d->ops && d->ops->leave;
	cowd_stop(d, true, NULL);	/* before READY: on_ready() looks at terminate */
}

static void on_gone(void *opaque)
{
	struct cowd *d = opaque;

	cow_log(d->ops->ends ? COW_LOG_INFO : COW_LOG_WARN, "%s was taken away%s, stopping",
		d->ops->has_file ? d->run->mount : d->ops->path(d->fe),
		d->ops->ends ? "" : " by somebody else");
	d->terminate = true;
	cowd_stop(d, true, NULL);
}

/* ---- the beginning ---- */

/* What on_ready() hands to cowd_serve(), out of the loop. */
struct start {
	struct cowd *d;
	struct cow_err *err;
};

static void on_ready(void *opaque, int result, const char *sentence)
{
	struct start *s = opaque;
	struct cowd *d = s->d;
	const char *path;
	char status[256];

	if (result) {
		d->failed = cow_err_set(s->err, result, "%s: %s", d->cfg->name, sentence);
		cow_dev_drain(d->dev, on_drained, d);
		return;
	}
	d->ready = true;
	if (d->terminate) {
		d->failed =
			cow_err_set(s->err, -EINTR, "%s: stopped by a signal before it was usable",
				    d->cfg->name);
		cowd_stop(d, true, NULL);
		return;
	}
	path = d->ops->path(d->fe);
	cow_log(COW_LOG_DEBUG, "ready: %s", path);
	snprintf(status, sizeof(status), "READY=1\nSTATUS=serving %.200s", path);
	notify(status);
	if (d->cfg->ready(path))
		cowd_stop(d, true, NULL);
}

static void on_changed(void *opaque)
{
	struct start *s = opaque;

	cowd_save_state(s->d);
}

static void on_fe_gone(void *opaque)
{
	struct start *s = opaque;

	on_gone(s->d);
}

/* For the images: what a killed daemon's device holds of them is ours. */
static bool keeps(void *opaque, uint64_t dev, uint64_t ino)
{
	struct cowd *d = opaque;
	const struct fe_ops *old = frontend_find(d->run->st.frontend);

	return old && old->keeps && old->keeps(d->cfg->name, dev, ino);
}

static int open_device(struct cowd *d, struct cow_err *err)
{
	struct cow_dev_cfg cfg = { .name = d->cfg->name, .enospc = d->cfg->enospc };
	struct cow_chain *chain;
	struct cow_chain_cfg chain_cfg = d->cfg->chain;
	int rc;

	chain_cfg.keeps = keeps;
	chain_cfg.keeps_opaque = d;
	rc = cow_chain_open(&chain_cfg, &chain, err);
	cow_keys_close(chain_cfg.args);
	if (rc)
		return rc;
	rc = cow_dev_new(d->loop, chain, &cfg, &d->dev);
	if (rc) {
		cow_chain_close(chain);
		return cow_err_sys(err, rc, "%s", d->cfg->name);
	}
	return 0;
}

static int catch_signals(struct cowd *d, struct cow_err *err)
{
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	d->sigterm = cow_loop_signal(d->loop, SIGTERM, on_signal, d);
	d->sigint = cow_loop_signal(d->loop, SIGINT, on_signal, d);
	if (!d->sigterm || !d->sigint)
		return cow_err_sys(err, -errno, "%s: signals", d->cfg->name);
	return 0;
}

/*
 * Which front end, and what becomes of that which a killed daemon left: taken up if it is
 * alive and of the same front end, removed otherwise.
 */
static int choose_front_end(struct cowd *d, struct cow_err *err)
{
	const struct run_state *st = &d->run->st;
	const struct fe_ops *old;
	struct cow_err why = { 0 };
	bool alive;
	int rc;

	old = frontend_find(st->frontend);
	/* Not recorded: it was made a moment ago, and nobody has been told of it. */
	alive = old && old->alive && st->device[0] && old->alive(d->cfg->name, st->device);
	rc = frontend_choose(d->cfg->fe, alive ? old : NULL, d->dev, &d->choice, err);
	if (rc)
		return rc;
	d->ops = d->choice.ops;
	d->has_left = alive && old == d->ops;
	if (d->has_left) {
		snprintf(d->left, sizeof(d->left), "%s", st->device);
		return 0;
	}
	rc = old && old->clean ? old->clean(d->cfg->name, st->device, &why) : 0;
	if (rc == -EBUSY)
		return cow_err_set(err, rc, "%s: what a killed daemon left (front end %s) is alive: %s",
				   d->cfg->name, old->name, cow_err_text(&why, rc));
	if (rc)
		cow_log(COW_LOG_WARN, "front end %s of a killed daemon: %s", old->name,
			cow_err_text(&why, rc));
	return 0;
}

/* Everything up to the loop; after a failure, take_down() undoes what was done. */
static int bring_up(struct cowd *d, struct start *s, struct cow_err *err)
{
	struct fe_cfg fe = { .ready = on_ready, .changed = on_changed, .gone = on_fe_gone,
			     .opaque = s, .xenbus = d->cfg->xenbus, .no_loop = d->cfg->no_loop,
			     .scan = d->cfg->scan };
	struct run_state *st;
	int rc;

	rc = catch_signals(d, err);
	if (rc)
		return rc;
	runstate_read(d->run);
	rc = open_device(d, err);
	dmnode_set_scan(d->cfg->scan);
	if (!rc)
		rc = choose_front_end(d, err);
	if (!rc)
		rc = runstate_clean(d->run, d->left, err);
	if (rc)
		return rc;
	protect_from_pressure();
	st = &d->run->st;
	st->pid = getpid();
	snprintf(st->format, sizeof(st->format), "%s", d->cfg->chain.format);
	snprintf(st->image, sizeof(st->image), "%s", d->cfg->chain.path);
	snprintf(st->mount, sizeof(st->mount), "%s", d->run->mount);
	cowd_save_state(d);
	rc = control_new(d->loop, d->run->dir, d->cfg->name, verbs_request, d, &d->ctl, err);
	if (rc)
		return rc;
	fe.loop = d->loop;
	fe.dev = d->dev;
	fe.name = d->cfg->name;
	fe.left = d->left;
	fe.mount = d->run->mount;
	fe.disk = d->run->disk;
	return d->ops->start(&fe, &d->fe, err);
}

/* Returns the result of closing the images. */
static int take_down(struct cowd *d, bool cleaned)
{
	int rc;

	views_free(d);
	if (d->fe)
		d->ops->free(d->fe);
	rc = cow_dev_free(d->dev);
	cow_source_free(d->sigterm);
	cow_source_free(d->sigint);
	if (cleaned)
		runstate_release(d->run, d->has_left && !d->ready);
	else
		runstate_abandon(d->run);
	return rc;
}

int cowd_serve(const struct cowd_config *cfg, struct cow_err *err)
{
	struct cowd *d = cow_zalloc(sizeof(*d));
	struct start s = { d, err };
	int rc, closed;

	if (!d)
		return cow_err_set(err, -ENOMEM, "%s: not enough memory", cfg->name);
	d->cfg = cfg;
	d->loop = cow_loop_new();
	if (!d->loop) {
		rc = cow_err_sys(err, -errno, "%s: event loop", cfg->name);
		goto out;
	}
	rc = runstate_acquire(cfg->name, &d->run, err);
	if (rc)
		goto out;
	rc = bring_up(d, &s, err);
	if (!rc)
		rc = cow_loop_run(d->loop);
	/* The state names us once the traces of a predecessor are gone. */
	closed = take_down(d, d->run->st.pid == getpid());
	if (!rc && closed)
		rc = cow_err_sys(err, closed, "%s was not closed cleanly", cfg->chain.path);
	if (d->stopper)
		client_done(d->stopper, rc, rc ? cow_err_text(err, rc) : NULL);
	control_free(d->ctl);
out:
	cow_loop_free(d->loop);
	cow_free(d);
	return rc;
}
