// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What clients of the control socket can ask for: one table, one function a
 * verb. A function answers at once or, when something must happen first, from
 * the callback of that. Arguments are checked here; what they do is done elsewhere.
 */
#include <errno.h>
#include <unistd.h>

#include "cow/log.h"
#include "cow/opt.h"
#include "cowd.h"

#define STATUS_SCHEMA 1
#define STATS_SCHEMA 1

struct verb {
	const char *name;
	int min, max;			/* words behind the verb */
	const char *usage;		/* these words */
	void (*fn)(struct cowd *d, struct client *c, int argc, char **argv);
};

static bool is_json(int argc, char **argv)
{
	return argc > 1 && !strcmp(argv[1], "--json");
}

static void bad_usage(struct client *c, const char *sentence)
{
	client_done(c, -EINVAL, sentence);
}

/* ---- asking ---- */

static void verb_status(struct cowd *d, struct client *c, int argc, char **argv)
{
	struct cow_kv *kv;
	unsigned i;

	if (argc > 1 && !is_json(argc, argv)) {
		bad_usage(c, "status takes only --json");
		return;
	}
	kv = cow_kv_new(client_out(c), argc > 1 ? COW_KV_JSON : COW_KV_TEXT, STATUS_SCHEMA);
	if (!kv) {
		client_done(c, -ENOMEM, NULL);
		return;
	}
	cow_kv_str(kv, "name", d->cfg->name);
	cow_kv_i64(kv, "pid", getpid());
	cow_kv_str(kv, "version", cow_version);
	cow_kv_str(kv, "format", d->cfg->chain.format);
	cow_kv_str(kv, "image", d->cfg->chain.path);
	cow_kv_str(kv, "frontend", d->ops->name);
	cow_kv_list(kv, "passed_over");
	for (i = 0; i < d->choice.n_passed; i++) {
		const struct frontend_passed *p = &d->choice.passed[i];
		COW_CLEANUP_FREE char *text = cow_asprintf("%s: %s", p->ops->name, p->why);

		cow_kv_str(kv, NULL, text ? text : p->ops->name);
	}
	cow_kv_close(kv);
	cow_kv_str(kv, "device", d->ready ? d->ops->path(d->fe) : "");
	cow_kv_str(kv, "block_device", d->fe ? d->ops->block_device(d->fe) : "");
	cow_kv_str(kv, "file", d->ops->has_file ? d->run->disk : "");
	cow_kv_bool(kv, "ready", d->ready);
	cow_kv_bool(kv, "stopping", d->stopping);
	views_status(d, kv);
	cow_dev_status(d->dev, kv);
	if (d->fe && d->ops->status)
		d->ops->status(d->fe, kv);
	client_done(c, cow_kv_end(kv), NULL);
}

static void verb_state(struct cowd *d, struct client *c, int argc, char **argv)
{
	const char *state = "running";

	(void)argc;
	(void)argv;
	if (!d->ready)
		state = "starting";
	else if (cow_dev_nospace(d->dev))
		state = "no-space";
	else if (cow_dev_paused(d->dev))
		state = "paused";
	fprintf(client_out(c), "%s\n%s\n", state, d->ready ? d->ops->path(d->fe) : "");
	client_done(c, 0, NULL);
}

static void verb_stats(struct cowd *d, struct client *c, int argc, char **argv)
{
	struct cow_kv *kv;

	if (argc > 1 && !strcmp(argv[1], "--openmetrics")) {
		cow_dev_stats_openmetrics(d->dev, client_out(c));
		client_done(c, 0, NULL);
		return;
	}
	if (argc > 1 && !is_json(argc, argv)) {
		bad_usage(c, "stats takes only --json or --openmetrics");
		return;
	}
	kv = cow_kv_new(client_out(c), argc > 1 ? COW_KV_JSON : COW_KV_TEXT, STATS_SCHEMA);
	if (!kv) {
		client_done(c, -ENOMEM, NULL);
		return;
	}
	cow_kv_str(kv, "name", d->cfg->name);
	cow_dev_stats_kv(d->dev, kv);
	client_done(c, cow_kv_end(kv), NULL);
}

static void verb_version(struct cowd *d, struct client *c, int argc, char **argv)
{
	(void)d;
	(void)argc;
	(void)argv;
	fprintf(client_out(c), "%s\n", cow_version);
	client_done(c, 0, NULL);
}

static void verb_log_level(struct cowd *d, struct client *c, int argc, char **argv)
{
	enum cow_log_level level;

	(void)d;
	if (argc == 1) {
		fprintf(client_out(c), "%s\n", cow_log_level_name(cow_log_get_level()));
	} else if (cow_log_parse_level(argv[1], &level)) {
		bad_usage(c, "the log level is one of error, warning, info, debug");
		return;
	} else {
		cow_log_set_level(level);
	}
	client_done(c, 0, NULL);
}

/* ---- doing ---- */

static void flush_done(struct cow_req *req, int result)
{
	client_done(req->opaque, result, result ? "the flush failed" : NULL);
}

/* Also while paused: to make what is on disk complete is what a pause may be for. */
static void submit_flush(struct cowd *d, struct client *c,
			 void (*done)(struct cow_req *req, int result))
{
	struct cow_req *req = client_req(c);

	memset(req, 0, sizeof(*req));
	req->op = COW_OP_FLUSH;
	req->flags = COW_DEV_THROUGH;
	req->done = done;
	req->opaque = c;
	cow_dev_submit(d->dev, req);
}

static void verb_flush(struct cowd *d, struct client *c, int argc, char **argv)
{
	(void)argc;
	(void)argv;
	submit_flush(d, c, flush_done);
}

static void pause_flushed(struct cow_req *req, int result)
{
	client_done(req->opaque, result,
		    result ? "the device is paused, but the flush failed" : NULL);
}

static void on_paused(void *opaque)
{
	struct client *c = opaque;

	submit_flush(client_opaque(c), c, pause_flushed);
}

static void on_unheld(void *opaque, int result, const char *sentence)
{
	client_done(opaque, result, sentence);
}

static void on_held(void *opaque, int result, const char *sentence)
{
	struct client *c = opaque;
	struct cowd *d = client_opaque(c);

	d->holding = false;
	if (result) {
		client_done(c, result, sentence);
	} else if (d->stopping) {
		d->ops->hold(d->fe, false, on_unheld, c);
	} else {
		d->paused = true;
		cow_dev_pause(d->dev, on_paused, c);
	}
}

static void verb_pause(struct cowd *d, struct client *c, int argc, char **argv)
{
	(void)argc;
	(void)argv;
	if (d->paused || d->holding) {
		client_done(c, -EALREADY, "the device is paused already");
		return;
	}
	if (d->stopping) {
		client_done(c, -ESHUTDOWN, "the device is being stopped");
		return;
	}
	if (d->ready && d->ops->hold) {
		d->holding = true;
		d->ops->hold(d->fe, true, on_held, c);
	} else {
		d->paused = true;
		cow_dev_pause(d->dev, on_paused, c);
	}
}

static void verb_resume(struct cowd *d, struct client *c, int argc, char **argv)
{
	bool held = d->paused && d->ops->hold && d->ready;

	(void)argc;
	(void)argv;
	if (d->holding) {
		client_done(c, -EAGAIN, "the device is still being paused");
		return;
	}
	if (!d->paused && !cow_dev_nospace(d->dev)) {
		client_done(c, -EALREADY, "the device is not paused");
		return;
	}
	if (d->paused) {
		d->paused = false;
		cow_dev_resume(d->dev);
	}
	if (cow_dev_nospace(d->dev))
		cow_dev_retry(d->dev);
	if (held)
		d->ops->hold(d->fe, false, on_unheld, c);
	else
		client_done(c, 0, NULL);
}

static void resize_end(struct cowd *d, int rc, const char *sentence)
{
	struct client *c = d->resizer;

	d->resizer = NULL;
	client_done(c, rc, sentence);
}

static void on_fe_resized(void *opaque, int result, const char *sentence)
{
	resize_end(opaque, result, sentence);
}

static void on_resized(void *opaque, int result, const char *sentence)
{
	struct cowd *d = opaque;

	if (result || d->stopping)
		resize_end(d, result, sentence);
	else
		d->ops->resized(d->fe, on_fe_resized, d);
}

static void verb_resize(struct cowd *d, struct client *c, int argc, char **argv)
{
	const char *size_word = argv[1];
	struct cow_err why = { 0 };
	bool shrink = false;
	uint64_t size;
	int i, rc = 0;

	for (i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--shrink"))
			shrink = true;
		else
			size_word = argv[i];
	}
	if (argc - 1 != 1 + (int)shrink || cow_parse_size(size_word, &size) || !size) {
		bad_usage(c, "resize takes a size above zero such as 10G, and --shrink");
		return;
	}
	if (!d->ready || d->stopping) {
		client_done(c, -EAGAIN, "the device is being started or stopped");
		return;
	}
	if (d->resizer) {
		client_done(c, -EBUSY, "another resize of this device is running");
		return;
	}
	if (size < cow_dev_size(d->dev) && d->ops->may_shrink)
		rc = d->ops->may_shrink(d->fe, &why);
	if (rc) {
		client_done(c, rc, cow_err_text(&why, rc));
		return;
	}
	d->resizer = c;
	cow_dev_resize(d->dev, size, shrink, on_resized, d);
}

static void verb_mount(struct cowd *d, struct client *c, int argc, char **argv)
{
	(void)argc;
	if (!d->ready || d->stopping)
		client_done(c, -EAGAIN, "the device is being started or stopped");
	else
		views_mount(d, c, argv[1]);
}

static void verb_umount(struct cowd *d, struct client *c, int argc, char **argv)
{
	(void)argc;
	views_unmount(d, c, argv[1]);
}

static void stop_flushed(struct cow_req *req, int result)
{
	struct client *c = req->opaque;
	struct cow_err err = { 0 };

	if (!result) {
		cowd_stop(client_opaque(c), false, c);
		return;
	}
	cow_err_set(&err, result, "the flush failed (%s): make that good, or use --force",
		    strerror(-result));
	client_done(c, result, err.msg);
}

/* What cannot be written yet is better found while the device still runs. */
static void verb_stop(struct cowd *d, struct client *c, int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "--force"))
		bad_usage(c, "stop takes only --force");
	else if (argc > 1 || d->stopping || cow_dev_paused(d->dev))
		cowd_stop(d, argc > 1, c);
	else
		submit_flush(d, c, stop_flushed);
}

/* ---- the table ---- */

static const struct verb verbs[] = {
	{ "status", 0, 1, "[--json]", verb_status },
	{ "state", 0, 0, "", verb_state },
	{ "stats", 0, 1, "[--json|--openmetrics]", verb_stats },
	{ "flush", 0, 0, "", verb_flush },
	{ "pause", 0, 0, "", verb_pause },
	{ "resume", 0, 0, "", verb_resume },
	{ "resize", 1, 2, "SIZE [--shrink]", verb_resize },
	{ "mount", 1, 1, "DIR", verb_mount },
	{ "umount", 1, 1, "DIR", verb_umount },
	{ "stop", 0, 1, "[--force]", verb_stop },
	{ "log-level", 0, 1, "[LEVEL]", verb_log_level },
	{ "version", 0, 0, "", verb_version },
};

void verbs_request(void *opaque, struct client *c, int argc, char **argv)
{
	struct cow_err err = { 0 };
	const struct verb *v;

	for (v = verbs; v < verbs + COW_ARRAY_SIZE(verbs); v++)
		if (!strcmp(argv[0], v->name))
			break;
	if (v == verbs + COW_ARRAY_SIZE(verbs)) {
		cow_err_set(&err, -EINVAL, "unknown verb \"%.64s\"", argv[0]);
		client_done(c, -EINVAL, err.msg);
	} else if (argc - 1 < v->min || argc - 1 > v->max) {
		cow_err_set(&err, -EINVAL, "usage: %s %s", v->name, v->usage);
		client_done(c, -EINVAL, err.msg);
	} else {
		v->fn(opaque, c, argc, argv);
	}
}
