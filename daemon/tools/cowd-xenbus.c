// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowd-xenbus: answers for backends that are not there yet. Xen's toolstack writes a
 * virtual disk into xenstore and waits until somebody has taken its backend to InitWait;
 * only then it runs the hotplug script, block-dmu, which starts the cowd of that disk. So
 * for disks with that script this program says InitWait.
 *
 * In the same way the toolstack waits for Closed when it takes a disk back, which the cowd
 * says. If that has been killed, nobody would: a disk that stays in Closing is given to
 * block-dmu to be brought in order, and then this program says Closed.
 *
 * Disks of "cowctl xen-attach" have no toolstack. Their cowd takes them away when the guest is
 * gone; where that has been killed, "cowctl xen-detach" is run.
 *
 * Disks of type vbd are the kernel's while its driver xen-blkback is loaded, and this is for
 * them only when asked for, where that is not.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cow/log.h"
#include "cow/opt.h"
#include "cowd/notify.h"
#include "cowd/xen-store.h"

#define SCRIPT "/block-dmu"
#define OWN_TYPE "dmu"		/* of disks that "cowctl xen-attach" made */
#define OWN_DIR "backend/" OWN_TYPE "/"
#define TYPES_MAX 4
#define CLOSING_MAX 64		/* disks at a time; others have their turn when these are done */
#define GRACE_S 2		/* for the cowd that is alive */
#define CLEARED_S 10		/* a domain's folder goes somewhat later than the domain */
#define TICK_MS 500

extern char **environ;

static const struct cow_cli_opt options[] = {
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowd-xenbus",
	.synopsis = "[TYPE]...",
	.summary = "Lets Xen's toolstack go on to run block-dmu for disks without a kernel backend.",
	.opts = options,
};

/* A folder that is being looked through: backend/TYPE, then backend/TYPE/DOMAIN. */
struct level {
	struct xen_store *store;
	const char *dir;
	bool domains;
};

/* A disk that its toolstack wants back, or whose guest is gone. */
static struct closing {
	char dir[XEN_PATH_MAX];		/* empty: this one is free */
	time_t since;
	pid_t pid;			/* block-dmu or cowctl at work; 0: not yet */
} closings[CLOSING_MAX];

/* ---- what is said ---- */

struct change {
	const char *dir;
	enum xen_state from, to;
};

static int write_change(struct xen_store *s, void *opaque)
{
	const struct change *c = opaque;

	/* Looked at in one go with the writing: the folder must not come to be by it. */
	if (xen_store_read_state(s, c->dir) != (int)c->from)
		return -ESTALE;
	return xen_store_write(s, c->dir, "state", "%d", c->to);
}

static void say(struct xen_store *s, const char *dir, enum xen_state from, enum xen_state to)
{
	struct change c = { dir, from, to };
	int rc = xen_store_transact(s, write_change, &c);

	if (rc && rc != -ESTALE)
		cow_log_limited(COW_LOG_ERR, "%s: %s", dir, strerror(-rc));
	else if (!rc)
		cow_log(COW_LOG_DEBUG, "%s: state %d", dir, to);
}

static bool read_script(struct xen_store *s, const char *dir, char script[XEN_VALUE_MAX])
{
	size_t len, tail = strlen(SCRIPT);

	if (xen_store_read(s, dir, "script", script, XEN_VALUE_MAX))
		return false;
	len = strlen(script);
	return len >= tail && !strcmp(script + len - tail, SCRIPT);
}

/* ---- disks whose cowd may have been killed ---- */

static time_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec;
}

static bool is_own(const char *dir)
{
	return !strncmp(dir, OWN_DIR, strlen(OWN_DIR));
}

static bool is_taken_back(struct xen_store *s, const char *dir)
{
	char front[XEN_PATH_MAX];
	uint64_t online = 1;

	if (is_own(dir))
		return !xen_store_read(s, dir, "frontend", front, sizeof(front)) &&
		       xen_store_read_state(s, front) == XEN_ABSENT;
	return xen_store_read_state(s, dir) == XEN_CLOSING &&
	       !xen_store_read_number_or(s, dir, "online", 1, 1, &online) && !online;
}

static void note_closing(const char *dir)
{
	struct closing *place = NULL;

	for (unsigned i = 0; i < CLOSING_MAX; i++) {
		if (!strcmp(closings[i].dir, dir))
			return;
		if (!place && !closings[i].dir[0])
			place = &closings[i];
	}
	if (!place)
		return;
	snprintf(place->dir, sizeof(place->dir), "%s", dir);
	place->since = now();
	place->pid = 0;
}

/* The toolstack's own script, called as the toolstack would. */
static pid_t run_remove(struct xen_store *s, const char *dir)
{
	char script[XEN_VALUE_MAX], remove[] = "remove";
	char *argv[] = { script, remove, NULL };
	pid_t pid;
	int rc;

	if (!read_script(s, dir, script) || setenv("XENBUS_PATH", dir, 1))
		return -1;
	cow_log(COW_LOG_INFO, "%s: no cowd lets go of it: %s remove", dir, script);
	rc = posix_spawn(&pid, script, NULL, NULL, argv, environ);
	if (rc)
		cow_log(COW_LOG_ERR, "%s: %s", script, strerror(rc));
	return rc ? -1 : pid;
}

/* cowctl lies beside this program. */
static pid_t run_detach(const char *dir)
{
	char path[PATH_MAX], domain[16], dev[16], verb[] = "xen-detach";
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - sizeof("cowctl"));
	char *argv[] = { path, verb, domain, dev, NULL }, *slash;
	pid_t pid;
	int rc;

	path[n > 0 ? n : 0] = '\0';
	slash = strrchr(path, '/');
	if (!slash || sscanf(dir, OWN_DIR "%15[0-9]/%15[0-9]", domain, dev) != 2)
		return -1;
	strcpy(slash + 1, "cowctl");
	cow_log(COW_LOG_INFO, "%s: the guest is gone, and no cowd takes it away: cowctl %s", dir, verb);
	rc = posix_spawn(&pid, path, NULL, NULL, argv, environ);
	if (rc)
		cow_log(COW_LOG_ERR, "%s: %s", path, strerror(rc));
	return rc ? -1 : pid;
}

static void tend_one(struct xen_store *s, struct closing *c)
{
	int status;

	if (c->pid) {
		if (!waitpid(c->pid, &status, WNOHANG))
			return;
		say(s, c->dir, XEN_CLOSING, XEN_CLOSED);
		c->dir[0] = '\0';
	} else if (!is_taken_back(s, c->dir)) {
		c->dir[0] = '\0';
	} else if (now() - c->since > GRACE_S) {
		c->pid = is_own(c->dir) ? run_detach(c->dir) : run_remove(s, c->dir);
		if (c->pid < 0)
			c->dir[0] = '\0';
	}
}

/* True: there are some. */
static bool tend_closing(struct xen_store *s)
{
	bool any = false;

	for (unsigned i = 0; i < CLOSING_MAX; i++) {
		if (closings[i].dir[0])
			tend_one(s, &closings[i]);
		any |= closings[i].dir[0] != '\0';
	}
	return any;
}

/* ---- looking ---- */

static void look_at_disk(struct xen_store *s, const char *dir)
{
	char script[XEN_VALUE_MAX];
	int state = xen_store_read_state(s, dir);

	if (is_own(dir)) {
		if (is_taken_back(s, dir))
			note_closing(dir);
		return;
	}
	if ((state != XEN_INITIALISING && state != XEN_CLOSING) || !read_script(s, dir, script))
		return;
	if (state == XEN_INITIALISING)
		say(s, dir, XEN_INITIALISING, XEN_INIT_WAIT);
	else if (is_taken_back(s, dir))
		note_closing(dir);
}

static void look_below(void *opaque, const char *name)
{
	const struct level *l = opaque;
	char dir[XEN_PATH_MAX];
	struct level below = { l->store, dir, false };
	uint64_t number;

	if (!xen_parse_number(name, UINT32_MAX, &number))
		return;
	snprintf(dir, sizeof(dir), "%s/%s", l->dir, name);
	if (l->domains)
		xen_store_list(l->store, dir, look_below, &below);
	else
		look_at_disk(l->store, dir);
}

static void look_at_type(struct xen_store *s, const char *type)
{
	char dir[XEN_PATH_MAX];
	struct level top = { s, dir, true };

	snprintf(dir, sizeof(dir), "backend/%.16s", type);
	xen_store_list(s, dir, look_below, &top);
}

/* Events only say that something changed: then everything is looked at. */
static void look(struct xen_store *s, char **types, int n)
{
	for (int i = 0; i < n; i++)
		look_at_type(s, types[i]);
	look_at_type(s, OWN_TYPE);
}

static int watch(struct xen_store *s, char **types, int n, struct cow_err *err)
{
	int rc;

	for (int i = 0; i < n; i++) {
		rc = xen_store_watch(s, "backend", types[i]);
		if (rc)
			return cow_err_sys(err, rc, "backend/%.16s: watch", types[i]);
	}
	rc = xen_store_watch(s, "@releaseDomain", NULL);
	return rc ? cow_err_sys(err, rc, "watch of domains that end") : 0;
}

static int serve(struct xen_store *s, char **types, int n, struct cow_err *err)
{
	struct pollfd p = { .fd = xen_store_fd(s), .events = POLLIN };
	time_t until = now() + CLEARED_S;
	bool busy;
	int rc;

	for (;;) {
		busy = tend_closing(s) || now() < until;
		if (poll(&p, 1, busy ? TICK_MS : -1) < 0 && errno != EINTR)
			return cow_err_sys(err, -errno, "poll");
		rc = xen_store_events(s);
		if (rc < 0)
			return cow_err_sys(err, rc, "xenstore");
		if (rc)
			until = now() + CLEARED_S;
		if (rc || busy)
			look(s, types, n);
	}
}

static bool is_type(const char *text)
{
	size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789_");

	return n > 0 && n < 16 && !text[n];
}

int main(int argc, char **argv)
{
	char vbd3[] = "vbd3", *usual[] = { vbd3 }, **types = usual;
	const struct xen_lib *lib;
	struct xen_store *s = NULL;
	struct cow_err err = { 0 };
	int n = 1, rc;

	if (cow_cli_next(&cli, argc, argv) != -1)
		return 2;
	if (optind < argc) {
		types = argv + optind;
		n = argc - optind;
	}
	if (n > TYPES_MAX)
		return cow_cli_misuse(&cli, "%d types at most", TYPES_MAX);
	for (int i = 0; i < n; i++)
		if (!is_type(types[i]))
			return cow_cli_misuse(&cli, "\"%.32s\" is not a type of backends", types[i]);
	cow_log_open("cowd-xenbus", getenv("JOURNAL_STREAM") != NULL);
	rc = xen_lib_probe(&err);
	if (!rc)
		rc = xen_lib_load(&lib, &err);
	if (!rc)
		rc = xen_store_open(lib, &s, &err);
	if (!rc)
		rc = watch(s, types, n, &err);
	if (!rc) {
		notify("READY=1");
		rc = serve(s, types, n, &err);
	}
	cow_log(COW_LOG_ERR, "%s", cow_err_text(&err, rc));
	xen_store_close(s);
	return 1;
}
