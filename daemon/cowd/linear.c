// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A dm-linear node over the whole of a block device; see linear.h. What a node
 * is made with is in dmnode.c.
 */
#include "linear.h"

#include <errno.h>
#include <stdio.h>
#include <sys/sysmacros.h>

#include "blkdev.h"
#include "dmnode.h"

#define SECTOR 512
#define PARAMS_MAX 64

/* The table for @name; @params is where its parameters are kept. */
static int make_table(const char *blockdev, bool read_only, char *params,
		      struct dmnode_table *ret, struct cow_err *err)
{
	uint64_t bytes;
	dev_t rdev;
	int rc = blkdev_facts(blockdev, &bytes, &rdev, err);

	if (rc)
		return rc;
	if (bytes < SECTOR)
		return cow_err_set(err, -EINVAL, "%s is smaller than a sector: it can have no node",
				   blockdev);
	snprintf(params, PARAMS_MAX, "%u:%u 0", major(rdev), minor(rdev));
	*ret = (struct dmnode_table){ .sectors = bytes / SECTOR, .type = "linear",
				      .params = params, .read_only = read_only };
	return 0;
}

static bool same_table(const char *name, const struct dmnode_info *info,
		       const struct dmnode_table *table)
{
	COW_CLEANUP_FREE char *params = NULL;

	return info->live_table && !info->suspended && info->read_only == table->read_only &&
	       info->sectors == table->sectors && !strcmp(info->type, table->type) &&
	       !dmnode_params(name, &params, NULL) && !strcmp(params, table->params);
}

int linear_probe(struct cow_err *why)
{
	return dmnode_probe(why);
}

bool linear_exists(const char *name)
{
	struct dmnode_info info;

	return dmnode_info(name, &info, NULL) == 0 && info.ours;
}

int linear_attach(const char *name, const char *blockdev, bool read_only, struct cow_err *err)
{
	char params[PARAMS_MAX];
	struct dmnode_table table;
	struct dmnode_info info;
	int rc = make_table(blockdev, read_only, params, &table, err);

	if (rc)
		return rc;
	rc = dmnode_info(name, &info, err);
	if (rc == -ENOENT || (!rc && !info.ours))
		return dmnode_create(name, &table, err);	/* which refuses what is not ours */
	if (rc)
		return rc;
	/* It may have been told to go when its last user does. */
	dmnode_message(name, "@cancel_deferred_remove", NULL);
	return same_table(name, &info, &table) ? 0 : dmnode_replace(name, &table, false, err);
}

int linear_resize(const char *name, const char *blockdev, bool read_only, struct cow_err *err)
{
	char params[PARAMS_MAX];
	struct dmnode_table table;
	int rc = make_table(blockdev, read_only, params, &table, err);

	return rc ? rc : dmnode_replace(name, &table, true, err);
}

int linear_detach(const char *name, bool force, struct cow_err *err)
{
	struct dmnode_info info;
	char path[256];
	int rc = dmnode_info(name, &info, err);

	if (rc == -ENOENT || (!rc && !info.ours))
		return 0;
	dmnode_path(name, path, sizeof(path));
	/* Says who uses it, which the removal cannot. */
	if (!rc && !force)
		rc = blkdev_claimed(path, err);
	if (!rc)
		rc = dmnode_remove(name, force, err);
	return rc == -ENOENT ? 0 : rc;
}

