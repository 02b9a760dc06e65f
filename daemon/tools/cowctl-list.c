// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * "cowctl list": the devices in the run directory, alive or left behind by a
 * daemon that was killed. It asks each daemon for its state, and takes the rest
 * from the state files, so that a dead one can be told of too.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>

#include "cow/kv.h"
#include "cowctl.h"
#include "cowd/rundir.h"

#define LIST_SCHEMA 1
#define LIST_MAX 65536		/* names; a run directory with more is not ours */
#define ASK_MS 5000	/* a daemon that is stuck must not keep the others from being listed */

struct answer {
	char text[1024];
	size_t len;
};

static int keep(void *arg, const char *text, size_t len)
{
	struct answer *a = arg;
	size_t n = cow_min(len, sizeof(a->text) - 1 - a->len);

	memcpy(a->text + a->len, text, n);
	a->len += n;
	a->text[a->len] = '\0';
	return 0;
}

struct row {
	const char *state;
	const char *device;
	struct answer answer;
	struct run_state st;
};

/* Fills @r. False: there is no such device any more. */
static bool inspect(const char *dir, const char *name, struct row *r)
{
	struct cow_err err = { 0 };
	char *nl;
	int rc = run_state_read(dir, name, &r->st);

	r->answer.len = 0;
	r->answer.text[0] = '\0';
	r->device = r->st.path;
	if (ctl_talk(dir, name, "state", ASK_MS, keep, &r->answer, &err) == 0) {
		nl = strchr(r->answer.text, '\n');
		r->state = r->answer.text;
		if (nl) {
			*nl = '\0';
			r->device = nl + 1;
			nl = strchr(nl + 1, '\n');
			if (nl)
				*nl = '\0';
		}
		return true;
	}
	if (err.code == -ENOENT && rc)
		return false;
	if (err.code == -ECONNREFUSED || err.code == -ENOENT)
		r->state = "dead";
	else if (err.code == -EPERM || err.code == -EACCES)
		r->state = "unknown";
	else
		r->state = "no-answer";
	return true;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The name of a device with a socket or a state file, in @buf; false for other files. */
static bool device_name(const char *file, char *buf, size_t size)
{
	const char *dot = strrchr(file, '.');
	size_t len;

	if (!dot || (strcmp(dot, ".sock") && strcmp(dot, ".state")))
		return false;
	len = (size_t)(dot - file);
	if (len >= size)
		return false;
	memcpy(buf, file, len);
	buf[len] = '\0';
	return run_name_check(buf, NULL) == 0;
}

/* Sorted, each once. */
static int scan(const char *dir, char ***ret, size_t *ret_n, struct cow_err *err)
{
	char name[RUN_NAME_MAX + 1];
	char **names = cow_zalloc(LIST_MAX * sizeof(*names));
	size_t n = 0, i, out = 0;
	struct dirent *e;
	DIR *d = opendir(dir);

	if (!d || !names) {
		int rc = d ? -ENOMEM : -errno;

		if (d)
			closedir(d);
		cow_free(names);
		return cow_err_sys(err, rc, "%s", dir);
	}
	while (n < LIST_MAX && (e = readdir(d)))
		if (device_name(e->d_name, name, sizeof(name)) && (names[n] = cow_strdup(name)))
			n++;
	closedir(d);
	qsort(names, n, sizeof(*names), by_name);
	for (i = 0; i < n; i++) {
		if (out && !strcmp(names[out - 1], names[i]))
			cow_free(names[i]);
		else
			names[out++] = names[i];
	}
	*ret = names;
	*ret_n = out;
	return 0;
}

static void show(const char *name, const struct row *r, struct cow_kv *kv)
{
	if (!kv) {
		printf("%-16s %-9s %-5s %-16s %s\n", name, r->state,
		       r->st.format[0] ? r->st.format : "-", r->device[0] ? r->device : "-",
		       r->st.image[0] ? r->st.image : "-");
		return;
	}
	cow_kv_object(kv, NULL);
	cow_kv_str(kv, "name", name);
	cow_kv_str(kv, "state", r->state);
	cow_kv_str(kv, "device", r->device);
	cow_kv_str(kv, "format", r->st.format);
	cow_kv_str(kv, "image", r->st.image);
	cow_kv_i64(kv, "pid", r->st.pid);
	cow_kv_close(kv);
}

int ctl_list(bool json)
{
	COW_CLEANUP_FREE char *dir = NULL;
	COW_CLEANUP_FREE struct row *row = cow_zalloc(sizeof(*row));
	struct cow_kv *kv = json ? cow_kv_new(stdout, COW_KV_JSON, LIST_SCHEMA) : NULL;
	struct cow_err err = { 0 };
	char **names = NULL;
	size_t n = 0, i;
	int rc = row && (kv || !json) ? run_dir(false, &dir, &err)
				      : cow_err_set(&err, -ENOMEM, "not enough memory");

	if (!rc)
		rc = scan(dir, &names, &n, &err);
	if (rc == -ENOENT)
		rc = 0;		/* no run directory yet: no devices */
	if (kv)
		cow_kv_list(kv, "devices");
	for (i = 0; i < n; i++) {
		if (inspect(dir, names[i], row))
			show(names[i], row, kv);
		cow_free(names[i]);
	}
	cow_free(names);
	if (kv) {
		cow_kv_close(kv);
		if (cow_kv_end(kv) && !rc)
			rc = cow_err_set(&err, -EIO, "standard output cannot be written");
	} else if (fflush(stdout) && !rc) {
		rc = cow_err_sys(&err, -errno, "standard output");
	}
	if (rc)
		fprintf(stderr, "cowctl: %s\n", cow_err_text(&err, rc));
	return rc ? 1 : 0;
}
