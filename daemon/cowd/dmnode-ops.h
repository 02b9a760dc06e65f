/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What cowd-dm.so gives to dmnode.c: the functions of dmnode.h, after the checks
 * that need no library.
 */
#ifndef COWD_DMNODE_OPS_H
#define COWD_DMNODE_OPS_H

#include "cow/module.h"
#include "dmnode.h"

struct dmnode_ops {
	struct cow_module module;
	int (*probe)(struct cow_err *why);
	int (*target)(const char *type, uint32_t version[3], struct cow_err *why);
	int (*info)(const char *name, struct dmnode_info *ret, struct cow_err *err);
	int (*params)(const char *name, char **ret, struct cow_err *err);
	int (*status)(const char *name, char **ret, struct cow_err *err);
	/* @scan: as dmnode_set_scan() said. */
	int (*create)(const char *name, const struct dmnode_table *table, bool scan,
		      struct cow_err *err);
	int (*replace)(const char *name, const struct dmnode_table *table, bool flush, bool scan,
		       struct cow_err *err);
	int (*suspend)(const char *name, bool flush, struct cow_err *err);
	int (*resume)(const char *name, bool scan, struct cow_err *err);
	int (*message)(const char *name, const char *message, struct cow_err *err);
	int (*remove)(const char *name, bool force, struct cow_err *err);
};

#endif
