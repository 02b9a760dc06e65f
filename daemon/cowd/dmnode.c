// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Device-mapper nodes, the part without libdevmapper: is there a driver to talk
 * to at all, and the loading of the module that talks to it (module/dm.c).
 */
#include "dmnode.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "dmnode-ops.h"
#include "kmod.h"
#include "rundir.h"

#define MODULE "cowd-dm"
#define CONTROL "/dev/mapper/control"

/* The kernel's limits, terminating zero included, are 128 for a name and 129 for a UUID. */
static_assert(sizeof(DMNODE_UUID_PREFIX) + RUN_NAME_MAX <= 128, "names of nodes fit");

static const struct dmnode_ops *ops;
static bool may_scan;

/* ---- the driver ---- */

/* Does the kernel list the driver? Its control node can be missing all the same. */
static bool driver_is_listed(void)
{
	char line[128];
	bool found = false;
	FILE *f = fopen("/proc/misc", "re");

	while (f && !found && fgets(line, sizeof(line), f))
		found = strstr(line, " device-mapper\n") != NULL;
	if (f)
		fclose(f);
	return found;
}

static int check_driver(struct cow_err *why)
{
	COW_CLEANUP_CLOSE int fd = open(CONTROL, O_RDWR | O_CLOEXEC);

	if (fd >= 0)
		return 0;
	if (errno == EACCES || errno == EPERM || geteuid())
		return cow_err_set(why, -EPERM, "only root may make device-mapper nodes");
	if (driver_is_listed())
		return 0;	/* the library makes the control node */
	kmod_load("dm_mod");
	if (driver_is_listed())
		return 0;
	return cow_err_set(why, -ENODEV, "this kernel has no device-mapper (" CONTROL ")");
}

/* ---- the module ---- */

static int load(struct cow_err *err)
{
#ifdef HAVE_DEVMAPPER
	const struct cow_module *module;
	int rc;

	if (ops)
		return 0;
	rc = check_driver(err);
	if (!rc)
		rc = cow_module_load(MODULE, sizeof(*ops), &module, err);
	if (!rc)
		ops = (const struct dmnode_ops *)module;
	return rc;
#else
	(void)check_driver;
	return cow_err_set(err, -ENOSYS, "this cowd was built without libdevmapper");
#endif
}

int dmnode_probe(struct cow_err *why)
{
	int rc = load(why);

	return rc ? rc : ops->probe(why);
}

int dmnode_target(const char *type, uint32_t version[3], struct cow_err *why)
{
	int rc = load(why);

	return rc ? rc : ops->target(type, version, why);
}

int dmnode_info(const char *name, struct dmnode_info *ret, struct cow_err *err)
{
	int rc = load(err);

	return rc ? rc : ops->info(name, ret, err);
}

int dmnode_params(const char *name, char **ret, struct cow_err *err)
{
	int rc = load(err);

	return rc ? rc : ops->params(name, ret, err);
}

int dmnode_status(const char *name, char **ret, struct cow_err *err)
{
	int rc = load(err);

	return rc ? rc : ops->status(name, ret, err);
}

int dmnode_create(const char *name, const struct dmnode_table *table, struct cow_err *err)
{
	int rc = load(err);

	return rc ? rc : ops->create(name, table, may_scan, err);
}

int dmnode_replace(const char *name, const struct dmnode_table *table, bool flush,
		   struct cow_err *err)
{
	int rc = load(err);

	return rc ? rc : ops->replace(name, table, flush, may_scan, err);
}

int dmnode_suspend(const char *name, bool flush, struct cow_err *err)
{
	int rc = load(err);

	return rc ? rc : ops->suspend(name, flush, err);
}

int dmnode_resume(const char *name, struct cow_err *err)
{
	int rc = load(err);

	return rc ? rc : ops->resume(name, may_scan, err);
}

int dmnode_message(const char *name, const char *message, struct cow_err *err)
{
	int rc = load(err);

	return rc ? rc : ops->message(name, message, err);
}

int dmnode_remove(const char *name, bool force, struct cow_err *err)
{
	int rc = load(err);

	return rc ? rc : ops->remove(name, force, err);
}

void dmnode_set_scan(bool scan)
{
	may_scan = scan;
}

void dmnode_path(const char *name, char *ret, size_t size)
{
	snprintf(ret, size, "/dev/mapper/%s", name);
}
