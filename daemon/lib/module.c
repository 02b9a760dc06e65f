// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Where shared objects of this package are, and the loading of those that are
 * parts of a program. The rules for format plugins, which others may write, are in
 * format.c.
 */
#include "cow/module.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "cow/opt.h"

char *cow_module_dir(void)
{
	const char *env = secure_getenv("COW_PLUGIN_DIR");
	Dl_info info;
	const char *slash;

	if (env)
		return cow_strdup(env);
	if (!dladdr((void *)(uintptr_t)cow_module_dir, &info) || !info.dli_fname)
		return NULL;
	slash = strrchr(info.dli_fname, '/');
	if (!slash)
		return cow_strdup("cow");
	return cow_asprintf("%.*s/cow", (int)(slash - info.dli_fname), info.dli_fname);
}

int cow_module_load(const char *name, size_t size, const struct cow_module **ret,
		    struct cow_err *err)
{
	COW_CLEANUP_FREE char *dir = cow_module_dir();
	COW_CLEANUP_FREE char *path = dir ? cow_asprintf("%s/%s.so", dir, name) : NULL;
	const struct cow_module *(*reg)(void);
	const struct cow_module *m;
	void *dl;

	if (!path)
		return cow_err_sys(err, -ENOMEM, "module %s", name);
	if (access(path, F_OK))
		return cow_err_set(err, -ENOENT, "%s is not installed", path);
	dl = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!dl)
		return cow_err_set(err, -ELIBACC, "%s", dlerror());
	*(void **)&reg = dlsym(dl, "cow_module_register");
	m = reg ? reg() : NULL;
	if (!m || m->size != size || strcmp(m->version, cow_version)) {
		dlclose(dl);
		return cow_err_set(err, -ELIBBAD, "%s does not belong to this version (%s)", path,
				   cow_version);
	}
	*ret = m;
	return 0;
}
