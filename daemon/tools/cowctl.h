/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of cowctl share: one conversation with a daemon, the list, and Xen. */
#ifndef COWCTL_H
#define COWCTL_H

#include "cow/err.h"

/*
 * Sends @packet to the daemon of @name in the run directory @dir, and gives the text of
 * the reply to @text as it comes. @timeout_ms 0: waits for ever. 0, or -errno and a
 * sentence: the daemon's own, or that there is none (-ENOENT), that it is dead (-ECONNREFUSED).
 */
int ctl_talk(const char *dir, const char *name, const char *packet, unsigned timeout_ms,
	     int (*text)(void *arg, const char *text, size_t len), void *arg, struct cow_err *err);

/* "cowctl xen-attach" and "xen-detach", for what the command line said; the exit status. */
struct ctl_xen {
	const char *format;	/* NULL: not said */
	const char *size;	/* of a disk without an image */
	const char *sector_size;	/* NULL: as always */
	bool read_only, private, force;
	bool null;		/* without an image: reads zeroes, forgets what is written */
};
/* @image: NULL with @x->null. */
int ctl_xen_attach(const struct ctl_xen *x, const char *domain, const char *image,
		   const char *vdev);
int ctl_xen_detach(const struct ctl_xen *x, const char *domain, const char *vdev);

/* "cowctl list"; returns the exit status. */
int ctl_list(bool json);

#endif
