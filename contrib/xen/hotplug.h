/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What happens when Xen's toolstack adds or removes a disk: from the nodes of
 * xenstore to a running cowd and back. xenstore itself, the programs and /sys are
 * given by the caller, so that a test can give others.
 */
#ifndef COW_XEN_HOTPLUG_H
#define COW_XEN_HOTPLUG_H

#include "cow/err.h"

struct hotplug_node {
	const char *name, *value;
};

struct hotplug_store {
	/* The value at @path, for cow_free(), or NULL with errno. */
	char *(*read)(void *arg, const char *path);
	/* Writes nodes below @dir, all or none. 0 or -errno. */
	int (*write)(void *arg, const char *dir, const struct hotplug_node *nodes, unsigned n);
	/* Can the guest still use its disks? */
	bool (*alive)(void *arg, unsigned domain);
	void *arg;
};

struct hotplug {
	struct hotplug_store store;
	const char *cowd, *cowctl, *cowimg;	/* paths */
	const char *systemd_run;		/* path; NULL: there is no systemd */
	const char *sysfs;
	unsigned start_ms;	/* to make an overlay and start cowd */
	unsigned stop_ms;	/* for who uses the device to let go of it */
	/* Numbers of the block device at @path. False: it is none. */
	bool (*numbers)(const char *path, unsigned *ret_major, unsigned *ret_minor);
};

/*
 * @path is that of the backend's nodes: .../backend/TYPE/DOMAIN/DEVICE, absolute or
 * from the own domain's. 0, or -errno and a sentence; a failed add leaves
 * neither a daemon nor an image behind that it made.
 */
int hotplug_add(const struct hotplug *h, const char *path, struct cow_err *err);
int hotplug_remove(const struct hotplug *h, const char *path, struct cow_err *err);

#endif
