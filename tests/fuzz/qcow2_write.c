// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Hostile qcow2 images (fuzzimage.h): written to.
 */
#include "fuzzimage.h"

FUZZIMAGE_TARGET(fuzzimage_qcow2, FUZZIMAGE_WRITE)
