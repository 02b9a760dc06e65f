// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Hostile qcow images (fuzzimage.h): repaired, and used then.
 */
#include "fuzzimage.h"

FUZZIMAGE_TARGET(fuzzimage_qcow, FUZZIMAGE_REPAIR)
