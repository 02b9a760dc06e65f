// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Hostile qcow images (fuzzimage.h): written to.
 */
#include "fuzzimage.h"

FUZZIMAGE_TARGET(fuzzimage_qcow, FUZZIMAGE_WRITE)
