/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Device-mapper nodes /dev/mapper/NAME, through libdevmapper. The library and
 * all that it needs is linked to one module, cowd-dm.so, which is loaded at the
 * first call: front ends without a node start without it.
 *
 * Calls block, and may wait for I/O on the device: while this process serves it
 * they belong into a child process (removal, suspension, table changes).
 */
#ifndef COWD_DMNODE_H
#define COWD_DMNODE_H

#include "cow/err.h"

#define DMNODE_UUID_PREFIX "COWD-"	/* then the device's name; udev rules know it */

struct dmnode_table {
	uint64_t sectors;	/* of the one target, which starts at 0 */
	const char *type;	/* "linear", "userspace" */
	const char *params;
	bool read_only;
};

struct dmnode_info {
	bool ours;		/* its UUID is what we give to this name */
	bool suspended, read_only, live_table;
	int32_t open_count;
	uint32_t major, minor;
	char type[32];		/* of its first target; "" without a table */
	uint64_t sectors;
};

/* 0; or -errno and why nodes cannot be made here: no module, no device-mapper, no privilege. */
int dmnode_probe(struct cow_err *why);
/* 0 and the version when the kernel has this target (loading its module if that helps); else -ENOENT etc. */
int dmnode_target(const char *type, uint32_t version[3], struct cow_err *why);

/* 0; -ENOENT: no such node; other -errno and a sentence. */
int dmnode_info(const char *name, struct dmnode_info *ret, struct cow_err *err);
/* The parameters of its target, as in the kernel: for cow_free(). */
int dmnode_params(const char *name, char **ret, struct cow_err *err);
/* The status line of its target (without start, length and type): for cow_free(). */
int dmnode_status(const char *name, char **ret, struct cow_err *err);

/*
 * Makes the node with a live table and waits until its file is there. -EEXIST and
 * a sentence when NAME exists, ours or not. Nothing is left after a failure.
 */
int dmnode_create(const char *name, const struct dmnode_table *table, struct cow_err *err);
/* Loads a table, suspends (@flush: and lets I/O end, else it is held back), resumes. */
int dmnode_replace(const char *name, const struct dmnode_table *table, bool flush,
		   struct cow_err *err);
int dmnode_suspend(const char *name, bool flush, struct cow_err *err);
int dmnode_resume(const char *name, struct cow_err *err);
int dmnode_message(const char *name, const char *message, struct cow_err *err);
/*
 * Removes the node if it is ours. -EBUSY and a sentence while somebody has it open;
 * with @force its table becomes "error" and it goes when the last user closes it: 0.
 */
int dmnode_remove(const char *name, bool force, struct cow_err *err);

/*
 * May udev, and what hangs on it, look at what is in the nodes made from now on? At first: no.
 * A guest writes there, and blkid, LVM and md would act on what they read.
 */
void dmnode_set_scan(bool scan);

/* "/dev/mapper/NAME" */
void dmnode_path(const char *name, char *ret, size_t size);

#endif
