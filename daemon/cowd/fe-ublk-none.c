// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * In place of the ublk front end where there is no liburing to build it with.
 */
#include <errno.h>

#include "fe.h"

static int no_uring(struct cow_err *why)
{
	return cow_err_set(why, -ENOSYS, "this cowd was built without liburing");
}

static int no_start(const struct fe_cfg *cfg, struct fe **ret, struct cow_err *err)
{
	(void)cfg;
	(void)ret;
	return no_uring(err);
}

const struct fe_ops fe_ublk = {
	.name = "ublk",
	.desc = "a ublk device, and a dm-linear node over it",
	.probe = no_uring,
	.start = no_start,
};
