/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Parts of a program that need a library most runs do not: each is a shared
 * object of its own beside the format plugins, loaded when it is first needed and
 * kept. Formats are not loaded by this; see format.h.
 */
#ifndef COW_MODULE_H
#define COW_MODULE_H

#include "cow/err.h"

/* What a module's table of functions begins with. It belongs to one build of the program. */
struct cow_module {
	const char *version;	/* cow_version */
	size_t size;		/* bytes of the whole table */
};

/* The one symbol a module exports. */
COW_EXPORT const struct cow_module *cow_module_register(void);

/*
 * Loads the module @name (file NAME.so) and gives its table, which must have @size bytes
 * and be of this version. 0, or -errno and a sentence; -ENOENT: it is not installed.
 */
COW_EXPORT int cow_module_load(const char *name, size_t size, const struct cow_module **ret,
			       struct cow_err *err);

/*
 * The folder of plugins and modules, for cow_free(): $COW_PLUGIN_DIR (ignored in set-id programs),
 * else the folder "cow" beside libcow. NULL: no memory.
 */
COW_EXPORT char *cow_module_dir(void);

#endif
