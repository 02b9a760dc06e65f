// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Hostile qcow2 images (fuzzimage.h): given snapshots and other sizes.
 */
#include "fuzzimage.h"

FUZZIMAGE_TARGET(fuzzimage_qcow2, FUZZIMAGE_WHOLE)
