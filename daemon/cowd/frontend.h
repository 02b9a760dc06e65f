/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The list of front ends, and the choice of one for a device.
 */
#ifndef COWD_FRONTEND_H
#define COWD_FRONTEND_H

#include <stdio.h>

#include "fe.h"

#define FRONTENDS 5
#define FRONTENDS_CHOSEN 4	/* the first of them are chosen from, the others have to be named */

/* One that was not taken, and why. */
struct frontend_passed {
	const struct fe_ops *ops;
	char why[COW_ERR_MAX];
};

struct frontend_choice {
	const struct fe_ops *ops;
	unsigned n_passed;
	struct frontend_passed passed[FRONTENDS_CHOSEN];	/* those before it in the order of preference */
};

/* NULL: there is none of that name. */
const struct fe_ops *frontend_find(const char *name);
/* "dm, ublk, bridge, fuse, xen" */
const char *frontend_names(void);

/*
 * The one for @dev: @forced if that is not NULL, else @prefer if it can, else the first that
 * can. 0; or -errno and the sentence of @forced, or of the last one.
 */
int frontend_choose(const struct fe_ops *forced, const struct fe_ops *prefer, struct cow_dev *dev,
		    struct frontend_choice *ret, struct cow_err *err);

/* One line each: name, yes or no, and why. Returns how many can run here. */
unsigned frontend_list(FILE *out);

#endif
