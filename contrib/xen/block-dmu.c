// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * block-dmu: what Xen's toolstack runs as the script of a disk that cowd serves.
 * Here are its face and its connection to xenstore; what it does is in hotplug.c.
 *
 * It is linked with the few parts of libcow that it needs, since it lies in a
 * folder of Xen's, from where libcow would not be found.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <xenstore.h>

#include "cow/opt.h"
#include "hotplug.h"

/* libxl kills a script after 40 seconds: it is to hear our sentence before that. */
#define START_MS 30000
#define STOP_MS 5000
#define OOM_SCORE "-900"		/* as in cowd@.service */
#define TRANSACTIONS 100	/* tries of one that others disturb */

static const struct cow_cli_opt options[] = { { 0, NULL, NULL, NULL } };

static const struct cow_cli cli = {
	.prog = "block-dmu",
	.synopsis = "add|remove",
	.summary = "Adds or removes the disk of a guest; run by Xen's toolstack.",
	.opts = options,
};

/* ---- xenstore ---- */

static char *store_read(void *arg, const char *path)
{
	return xs_read(arg, XBT_NULL, path, NULL);
}

static int write_nodes(struct xs_handle *xs, xs_transaction_t t, const char *dir,
		       const struct hotplug_node *nodes, unsigned n)
{
	unsigned i;

	for (i = 0; i < n; i++) {
		COW_CLEANUP_FREE char *path = cow_asprintf("%s/%s", dir, nodes[i].name);

		if (!path)
			return -ENOMEM;
		if (!xs_write(xs, t, path, nodes[i].value, (unsigned)strlen(nodes[i].value)))
			return -errno;
	}
	return 0;
}

static int store_write(void *arg, const char *dir, const struct hotplug_node *nodes, unsigned n)
{
	xs_transaction_t t;
	char *folder;
	int i, rc;

	for (i = 0; i < TRANSACTIONS; i++) {
		t = xs_transaction_start(arg);
		if (t == XBT_NULL)
			return -errno;
		/* A folder that is gone must not appear again. */
		folder = xs_read(arg, t, dir, NULL);
		rc = folder ? write_nodes(arg, t, dir, nodes, n) : -errno;
		free(folder);
		if (xs_transaction_end(arg, t, rc != 0) || rc)
			return rc;
		if (errno != EAGAIN)
			return -errno;
	}
	return -EAGAIN;
}

static bool store_alive(void *arg, unsigned domain)
{
	return xs_is_domain_introduced(arg, domain);
}

/* ---- the machine ---- */

static bool numbers(const char *path, unsigned *ret_major, unsigned *ret_minor)
{
	struct stat st;

	if (stat(path, &st) || !S_ISBLK(st.st_mode))
		return false;
	*ret_major = major(st.st_rdev);
	*ret_minor = minor(st.st_rdev);
	return true;
}

/* Where a program of cowd is; *@ret is never freed. */
static const char *program(const char *dir, const char *name, struct cow_err *err)
{
	const char *own = getenv("COW_BIN_DIR");
	char *path = cow_asprintf("%s/%s", own ? own : dir, name);

	if (!path)
		cow_err_set(err, -ENOMEM, "not enough memory");
	return path;
}

/*
 * What the daemon gets from us: a guest's disk is the last to go when memory is
 * short, and it has nothing to do with the service that runs the toolstack.
 */
static void prepare_environment(void)
{
	FILE *f = fopen("/proc/self/oom_score_adj", "we");

	if (f) {
		fputs(OOM_SCORE, f);
		fclose(f);
	}
	unsetenv("NOTIFY_SOCKET");
	unsetenv("JOURNAL_STREAM");
}

static int run(const struct hotplug *h, const char *verb, const char *path, struct cow_err *err)
{
	int rc;

	if (!path)
		return cow_err_set(err, -EINVAL,
				   "XENBUS_PATH is not set: Xen's toolstack runs this program");
	if (strcmp(verb, "add"))
		return hotplug_remove(h, path, err);
	rc = hotplug_add(h, path, err);
	if (rc) {
		struct hotplug_node said[] = { { "hotplug-error", err->msg },
					       { "hotplug-status", "error" } };

		/* libxl shows it; a second time on standard error is for nobody. */
		if (!store_write(h->store.arg, path, said, COW_ARRAY_SIZE(said)))
			err->msg[0] = '\0';
	}
	return rc;
}

int main(int argc, char **argv)
{
	struct cow_err err = { 0 };
	struct hotplug h = {
		.store = { store_read, store_write, store_alive, NULL },
		.sysfs = "/sys",
		.start_ms = START_MS,
		.stop_ms = STOP_MS,
		.numbers = numbers,
	};
	int rc = 0;

	if (cow_cli_next(&cli, argc, argv) != -1)
		return 2;
	if (argc - optind != 1 || (strcmp(argv[optind], "add") && strcmp(argv[optind], "remove")))
		return cow_cli_misuse(&cli, "one word is needed, add or remove");
	prepare_environment();
	h.cowd = program(SBINDIR, "cowd", &err);
	h.cowctl = program(SBINDIR, "cowctl", &err);
	h.cowimg = program(BINDIR, "cowimg", &err);
	if (access("/run/systemd/system", F_OK) == 0 && access(SYSTEMD_RUN, X_OK) == 0)
		h.systemd_run = SYSTEMD_RUN;
	h.store.arg = xs_open(0);
	if (!h.store.arg)
		rc = cow_err_sys(&err, -errno, "xenstore cannot be reached");
	else if (!err.code)
		rc = run(&h, argv[optind], getenv("XENBUS_PATH"), &err);
	if ((rc || err.code) && err.msg[0])
		fprintf(stderr, "block-dmu: %s\n", cow_err_text(&err, err.code));
	xs_close(h.store.arg);
	return rc || err.code ? 1 : 0;
}
