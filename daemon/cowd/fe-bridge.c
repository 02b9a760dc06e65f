// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The bridge: a node /dev/mapper/NAME on any kernel with device-mapper, loop
 * devices and FUSE. The file and the loop device are fe-fuse.c's; here is only
 * what the node adds.
 *
 * A node that a killed daemon left is taken up again: who had it open, or mounted, saw
 * errors in between and goes on.
 */
#include <errno.h>
#include <unistd.h>

#include "dmnode.h"
#include "fe-fuse.h"
#include "linear.h"

static const struct fuse_top node = {
	.attach = linear_attach,
	.resize = linear_resize,
	.detach = linear_detach,
	.path = dmnode_path,
};

static int bridge_probe(struct cow_err *why)
{
	int rc = fe_fuse_probe(why);

	if (!rc && access("/dev/loop-control", R_OK | W_OK))
		rc = cow_err_sys(why, -errno, "/dev/loop-control");
	return rc ? rc : linear_probe(why);
}

static bool bridge_alive(const char *name, const char *device)
{
	(void)device;
	return linear_exists(name);
}

/* The loop device and the mount are the business of whoever cleans up a name: runstate.c. */
static int bridge_clean(const char *name, const char *device, struct cow_err *err)
{
	(void)device;
	return linear_detach(name, true, err);
}

static int bridge_start(const struct fe_cfg *cfg, struct fe **ret, struct cow_err *err)
{
	return fe_fuse_start(cfg, &node, ret, err);
}

const struct fe_ops fe_bridge = {
	.name = "bridge",
	.desc = "a FUSE file, a loop device over it, a node over that",
	.has_file = true,
	.probe = bridge_probe,
	.alive = bridge_alive,
	.clean = bridge_clean,
	.start = bridge_start,
	.stop = fe_fuse_stop,
	.free = fe_fuse_free,
	.resized = fe_fuse_resized,
	.path = fe_fuse_path,
	.block_device = fe_fuse_block_device,
};
