// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowd-xenbus: answers for backends that are not there yet. Xen's toolstack writes a
 * virtual disk into xenstore and waits until somebody has taken its backend to InitWait;
 * only then it runs the hotplug script, block-dmu, which starts the cowd of that disk. So
 * for disks with that script this program says InitWait, and nothing else ever.
 *
 * Disks of type vbd are the kernel's while its driver xen-blkback is loaded, and this is for
 * them only when asked for, where that is not.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#include "cow/log.h"
#include "cow/opt.h"
#include "cowd/notify.h"
#include "cowd/xen-store.h"

#define SCRIPT "/block-dmu"
#define TYPES_MAX 4

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

static int take_to_init_wait(struct xen_store *s, void *opaque)
{
	const char *dir = opaque;

	/* Looked at in one go with the writing: the folder must not come to be by it. */
	if (xen_store_read_state(s, dir) != XEN_INITIALISING)
		return -ESTALE;
	return xen_store_write(s, dir, "state", "%d", XEN_INIT_WAIT);
}

static bool is_ours(struct xen_store *s, const char *dir)
{
	char script[XEN_VALUE_MAX];
	size_t len, tail = strlen(SCRIPT);

	if (xen_store_read(s, dir, "script", script, sizeof(script)))
		return false;
	len = strlen(script);
	return len >= tail && !strcmp(script + len - tail, SCRIPT);
}

static void look_at_disk(struct xen_store *s, char *dir)
{
	int rc;

	if (xen_store_read_state(s, dir) != XEN_INITIALISING || !is_ours(s, dir))
		return;
	rc = xen_store_transact(s, take_to_init_wait, dir);
	if (rc && rc != -ESTALE)
		cow_log_limited(COW_LOG_ERR, "%s: %s", dir, strerror(-rc));
	else if (!rc)
		cow_log(COW_LOG_DEBUG, "%s: InitWait", dir);
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

/* Events only say that something changed: then everything is looked at. */
static void look(struct xen_store *s, char **types, int n)
{
	for (int i = 0; i < n; i++) {
		char dir[XEN_PATH_MAX];
		struct level top = { s, dir, true };

		snprintf(dir, sizeof(dir), "backend/%.16s", types[i]);
		xen_store_list(s, dir, look_below, &top);
	}
}

static int watch(struct xen_store *s, char **types, int n, struct cow_err *err)
{
	for (int i = 0; i < n; i++) {
		int rc = xen_store_watch(s, "backend", types[i]);

		if (rc)
			return cow_err_sys(err, rc, "backend/%.16s: watch", types[i]);
	}
	return 0;
}

static int serve(struct xen_store *s, char **types, int n, struct cow_err *err)
{
	struct pollfd p = { .fd = xen_store_fd(s), .events = POLLIN };
	int rc;

	for (;;) {
		if (poll(&p, 1, -1) < 0 && errno != EINTR)
			return cow_err_sys(err, -errno, "poll");
		rc = xen_store_events(s);
		if (rc < 0)
			return cow_err_sys(err, rc, "xenstore");
		if (rc)
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
