/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One running cowd: one device, its front end, its control socket. main.c
 * fills in the configuration, serve.c brings it up and takes it down, verbs.c
 * and views.c do what clients ask for.
 */
#ifndef COWD_COWD_H
#define COWD_COWD_H

#include "control.h"
#include "cow/dev.h"
#include "frontend.h"
#include "runstate.h"

struct cowd_config {
	const char *name;
	struct cow_chain_cfg chain;
	enum cow_enospc enospc;
	const struct fe_ops *fe;	/* this front end and no other; NULL: the best that can */
	const char *xenbus;		/* for the front end xen; NULL: none */
	bool no_loop;
	bool scan;
	/* Called once when the device is usable, with its path. -errno: nobody wants it, stop. */
	int (*ready)(const char *path);
};

struct view;

struct cowd {
	const struct cowd_config *cfg;
	struct cow_loop *loop;
	struct runstate *run;
	struct cow_dev *dev;
	struct control *ctl;
	struct frontend_choice choice;
	const struct fe_ops *ops;	/* the chosen one */
	struct fe *fe;
	/* What a killed daemon left alive for this front end: its block_device(). */
	bool has_left;
	char left[64];
	struct cow_source *sigterm, *sigint;
	bool paused;			/* by a client; once, however often it is asked for */
	bool holding;			/* the front end is being held for that */
	bool ready;
	bool stopping;			/* the front end is being asked to let go, or has */
	bool terminate;			/* by a signal: cannot be refused */
	bool leave;			/* the users are to wait for the next daemon */
	int failed;			/* why it is over before it began */
	struct client *stopper;		/* is told when it is over */
	struct client *resizer;		/* one at a time */
	struct view *views[RUN_VIEWS];
};

/* Runs the device to its end. 0, or -errno and a sentence why it did not start or end well. */
int cowd_serve(const struct cowd_config *cfg, struct cow_err *err);

/* Ends the device. @who (NULL only with @force) is answered when it is over, or refused. */
void cowd_stop(struct cowd *d, bool force, struct client *who);
/* The device of the front end, or the views, changed. */
void cowd_save_state(struct cowd *d);

/* verbs.c: a client's request. */
void verbs_request(void *opaque, struct client *c, int argc, char **argv);

/* views.c */
void views_mount(struct cowd *d, struct client *c, const char *dir);
void views_unmount(struct cowd *d, struct client *c, const char *dir);
void views_free(struct cowd *d);
void views_status(struct cowd *d, struct cow_kv *kv);
void views_state(struct cowd *d, struct run_state *st);

#endif
