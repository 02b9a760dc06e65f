/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Names of virtual disks, as administrators of Xen write them, and the numbers that
 * frontends are told: the encoding of Xen's vbd-interface. Needs no library.
 *
 *	xvda, xvda1 ... xvdp15		202 << 8 | disk << 4 | partition
 *	xvdq ..., xvda16 ...		1 << 28 | disk << 8 | partition
 *	hda ... hdb63			3 << 8 | disk << 6 | partition
 *	hdc ... hdd63			22 << 8 | (disk - 2) << 6 | partition
 *	sda ... sdp15			8 << 8 | disk << 4 | partition
 *
 * d0, d16p3 are other spellings of xvda, xvdq3. A number stands for itself.
 */
#ifndef COWD_XEN_VDEV_H
#define COWD_XEN_VDEV_H

#include "cow/err.h"

#define XEN_VDEV_NAME_MAX 24	/* bytes of a name, terminating zero included */

/* 0, or -EINVAL and a sentence. */
int xen_vdev_parse(const char *name, uint32_t *ret, struct cow_err *err);

/* The name of the number @vdev, of one that has no name the number itself. Returns @buf. */
const char *xen_vdev_name(uint32_t vdev, char buf[XEN_VDEV_NAME_MAX]);

#endif
