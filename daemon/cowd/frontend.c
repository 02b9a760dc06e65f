// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Which front ends there are, and which one a device gets. What a killed daemon
 * left is looked at in serve.c.
 */
#include "frontend.h"

#include <errno.h>

#include "cow/log.h"

static const struct fe_ops *const front_ends[FRONTENDS] = {
	&fe_dm, &fe_ublk, &fe_bridge, &fe_fuse, &fe_xen,
};

const struct fe_ops *frontend_find(const char *name)
{
	unsigned i;

	for (i = 0; i < FRONTENDS; i++)
		if (!strcmp(front_ends[i]->name, name))
			return front_ends[i];
	return NULL;
}

const char *frontend_names(void)
{
	static char names[64];
	unsigned i;

	names[0] = '\0';
	for (i = 0; i < FRONTENDS; i++) {
		size_t n = strlen(names);

		snprintf(names + n, sizeof(names) - n, "%s%s", n ? ", " : "", front_ends[i]->name);
	}
	return names;
}

static int can_serve(const struct fe_ops *ops, struct cow_dev *dev, struct cow_err *why)
{
	int rc = ops->probe(why);

	return !rc && ops->suits ? ops->suits(dev, why) : rc;
}

static void pass_over(struct frontend_choice *c, const struct fe_ops *ops, const char *why)
{
	struct frontend_passed *p = &c->passed[c->n_passed++];

	p->ops = ops;
	snprintf(p->why, sizeof(p->why), "%s", why);
	cow_log(COW_LOG_DEBUG, "not front end %s: %s", ops->name, why);
}

int frontend_choose(const struct fe_ops *forced, const struct fe_ops *prefer, struct cow_dev *dev,
		    struct frontend_choice *ret, struct cow_err *err)
{
	struct cow_err why = { 0 };
	const struct fe_ops *one = forced ? forced : prefer;
	unsigned i;
	int rc = one ? can_serve(one, dev, &why) : -ENODEV;

	ret->n_passed = 0;
	ret->ops = one;
	if (forced && rc)
		return cow_err_set(err, rc, "front end %s: %s", one->name, cow_err_text(&why, rc));
	for (i = 0; rc && i < FRONTENDS_CHOSEN; i++) {
		ret->ops = front_ends[i];
		why.code = 0;
		rc = can_serve(ret->ops, dev, &why);
		if (rc && i < FRONTENDS_CHOSEN - 1)
			pass_over(ret, ret->ops, cow_err_text(&why, rc));
	}
	if (rc)
		return cow_err_set(err, rc, "no front end can run here, and not even %s: %s",
				   ret->ops->name, cow_err_text(&why, rc));
	return 0;
}

unsigned frontend_list(FILE *out)
{
	unsigned i, n = 0;

	for (i = 0; i < FRONTENDS; i++) {
		const struct fe_ops *ops = front_ends[i];
		struct cow_err why = { 0 };
		int rc = ops->probe(&why);

		fprintf(out, "%-8s%-5s%s\n", ops->name, rc ? "no" : "yes",
			rc ? cow_err_text(&why, rc) : ops->desc);
		n += !rc;
	}
	return n;
}
