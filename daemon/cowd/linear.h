/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A dm-linear node /dev/mapper/NAME over the whole of a block device that this
 * daemon serves: the front ends whose own device has a name of the kernel's
 * choosing give theirs with it. Knows neither loop devices nor ublk.
 *
 * Everything but linear_probe() may wait for I/O on that device: while this
 * process serves it they belong into a child process.
 */
#ifndef COWD_LINEAR_H
#define COWD_LINEAR_H

#include "cow/err.h"

/* 0; or -errno and why this machine cannot give a device a name. Quick, for any thread. */
int linear_probe(struct cow_err *why);

/* Is there a node @name of ours, with or without users? What a killed daemon may have left. */
bool linear_exists(const char *name);

/*
 * Makes the node over the whole of @blockdev. A node of ours that a killed daemon left
 * under this name is kept for its users and gets the new table (the same one: nothing
 * happens to it). A node that is not ours: -EEXIST and a sentence.
 */
int linear_attach(const char *name, const char *blockdev, bool read_only, struct cow_err *err);

/* @blockdev has a new size, in the kernel too: the node gets the same. */
int linear_resize(const char *name, const char *blockdev, bool read_only, struct cow_err *err);

/*
 * Removes the node. None there: 0. In use: -EBUSY and a sentence, changing nothing;
 * with @force its users get errors from now on, it goes when the last one closes it, and
 * the result is 0. @blockdev is free of it after 0.
 */
int linear_detach(const char *name, bool force, struct cow_err *err);

#endif
