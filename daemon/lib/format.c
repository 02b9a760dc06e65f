// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The format loader: finds plugins by name, checks their ABI, keeps them. It
 * never guesses which format a file has: whoever opens one says so.
 */
#include "cow/format.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "cow/log.h"
#include "cow/module.h"

#define PREFIX "cow-"
#define SUFFIX ".so"
#define NAME_MAX_LEN 15		/* fits cow_backing.format */
#define FORMATS_MAX 64

#define SAY_MAX 200u		/* findings that are told one by one */

static struct cow_format *loaded[FORMATS_MAX];
static unsigned nloaded;

static bool name_ok(const char *name)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_");

	return n > 0 && n <= NAME_MAX_LEN && name[n] == 0;
}

static const char *missing_member(const struct cow_format *f)
{
	if (!f->name || !f->desc || !f->version)
		return "name, desc or version";
	if (!f->probe)
		return "probe";
	if (!f->open)
		return "open";
	if (!f->close)
		return "close";
	if (!f->map)
		return "map";
	if ((f->caps & COW_CAP_WRITE) && !f->commit)
		return "commit";
	if ((f->caps & COW_CAP_CREATE) && !f->create)
		return "create";
	if ((f->caps & COW_CAP_RESIZE) && !f->resize)
		return "resize";
	if ((f->caps & COW_CAP_CHECK) && !f->check)
		return "check";
	if ((f->caps & COW_CAP_COMMIT) && (!f->make_empty || !f->rebase))
		return "make_empty or rebase";
	if (!f->encode != !f->put_encoded)
		return "encode or put_encoded";
	if (!f->snapshot != !f->snapshots)
		return "snapshot or snapshots";
	if (!f->amend != !f->amend_opts)
		return "amend or amend_opts";
	if (!f->bitmaps != !f->bitmap_ranges || !f->bitmaps != !f->bitmap)
		return "bitmaps, bitmap_ranges or bitmap";
	return NULL;
}

/* Our own copy, so that an older plugin's shorter struct reads as zeroes behind its end. */
static int adopt(const struct cow_format *theirs, const char *name, const char *path,
		 struct cow_format **ret, struct cow_err *err)
{
	struct cow_format *f;
	const char *what;

	if (theirs->abi != COW_FORMAT_ABI)
		return cow_err_set(err, -EINVAL, "%s: plugin ABI %u, this program has %u", path,
				   theirs->abi, COW_FORMAT_ABI);
	f = cow_zalloc(sizeof(*f));
	if (!f)
		return cow_err_sys(err, -ENOMEM, "%s", path);
	memcpy(f, theirs, cow_min(theirs->size, sizeof(*f)));
	what = missing_member(f);
	if (what) {
		cow_free(f);
		return cow_err_set(err, -EINVAL, "%s: the plugin lacks %s", path, what);
	}
	if (strcmp(f->name, name)) {
		cow_free(f);
		return cow_err_set(err, -EINVAL, "%s: the plugin does not call itself '%s'", path,
				   name);
	}
	*ret = f;
	return 0;
}

static int load(const char *name, const char *path, struct cow_format **ret, struct cow_err *err)
{
	const struct cow_format *(*reg)(void);
	void *dl = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	int rc;

	if (!dl)
		return cow_err_set(err, -ENOENT, "format '%s': %s", name, dlerror());
	*(void **)&reg = dlsym(dl, "cow_format_register");
	if (!reg)
		rc = cow_err_set(err, -EINVAL, "%s: not a format plugin", path);
	else
		rc = adopt(reg(), name, path, ret, err);
	if (rc)
		dlclose(dl);
	return rc;
}

static int unknown(const char *name, struct cow_err *err)
{
	char **names = cow_format_list();
	char list[256] = "";
	size_t used = 0;

	for (char **n = names; n && *n; n++) {
		int len = snprintf(list + used, sizeof(list) - used, "%s%s", used ? ", " : "", *n);

		if (len < 0 || (size_t)len >= sizeof(list) - used)
			break;
		used += (size_t)len;
	}
	cow_free(names);
	return cow_err_set(err, -ENOENT, "unknown format '%.32s' (installed: %s)", name,
			   used ? list : "none");
}

int cow_format_find(const char *name, const struct cow_format **ret, struct cow_err *err)
{
	char *dir COW_CLEANUP_FREE = NULL;
	char *path COW_CLEANUP_FREE = NULL;
	struct cow_format *f = NULL;
	FILE *probe;
	int rc;

	for (unsigned i = 0; i < nloaded; i++) {
		if (!strcmp(loaded[i]->name, name)) {
			*ret = loaded[i];
			return 0;
		}
	}
	if (!name_ok(name))
		return unknown(name, err);
	if (nloaded == FORMATS_MAX)
		return cow_err_sys(err, -EMFILE, "format '%s'", name);
	dir = cow_module_dir();
	path = dir ? cow_asprintf("%s/" PREFIX "%s" SUFFIX, dir, name) : NULL;
	if (!path)
		return cow_err_sys(err, -ENOMEM, "format '%s'", name);
	probe = fopen(path, "re");
	if (!probe)
		return unknown(name, err);
	fclose(probe);
	rc = load(name, path, &f, err);
	if (rc)
		return rc;
	loaded[nloaded++] = f;
	*ret = f;
	return 0;
}

static bool plugin_name(const char *file, const char **ret, size_t *ret_len)
{
	size_t len = strlen(file), fix = strlen(PREFIX) + strlen(SUFFIX);

	if (len <= fix || strncmp(file, PREFIX, strlen(PREFIX)) ||
	    strcmp(file + len - strlen(SUFFIX), SUFFIX))
		return false;
	*ret = file + strlen(PREFIX);
	*ret_len = len - fix;
	return *ret_len <= NAME_MAX_LEN;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* One block: the pointers, then the text, so that one cow_free() releases all. */
char **cow_format_list(void)
{
	size_t head = (FORMATS_MAX + 1) * sizeof(char *);
	char *dir COW_CLEANUP_FREE = cow_module_dir();
	char **names = cow_zalloc(head + FORMATS_MAX * (NAME_MAX_LEN + 1));
	DIR *d = dir ? opendir(dir) : NULL;
	struct dirent *e;
	unsigned n = 0;

	while (names && d && n < FORMATS_MAX && (e = readdir(d))) {
		const char *name;
		size_t len;

		if (!plugin_name(e->d_name, &name, &len))
			continue;
		names[n] = (char *)names + head + n * (NAME_MAX_LEN + 1);
		memcpy(names[n++], name, len);
	}
	if (d)
		closedir(d);
	if (names)
		qsort(names, n, sizeof(*names), by_name);
	return names;
}

void cow_report_say(struct cow_report *rep, bool repaired, const char *fmt, ...)
{
	char text[256];
	va_list ap;
	int len;

	rep->repaired += repaired;
	if (!rep->say || rep->said++ > SAY_MAX)
		return;
	if (rep->said > SAY_MAX) {
		rep->say(rep, "more findings are counted, but not listed");
		return;
	}
	va_start(ap, fmt);
	len = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (repaired && len > 0 && (size_t)len < sizeof(text))
		snprintf(text + len, sizeof(text) - (size_t)len, " (repaired)");
	rep->say(rep, text);
}

void cow_bitmap_kv(const struct cow_bitmap *b, struct cow_kv *kv)
{
	cow_kv_str(kv, "name", b->name);
	cow_kv_u64(kv, "granularity", b->granularity);
	cow_kv_str(kv, "type", b->type);
	cow_kv_bool(kv, "enabled", b->enabled);
	cow_kv_bool(kv, "in_use", b->in_use);
	cow_kv_str(kv, "state", b->state);
}
