// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Hostile qcow images (fuzzimage.h): opened in every way, and described.
 */
#include "fuzzimage.h"

FUZZIMAGE_TARGET(fuzzimage_qcow, FUZZIMAGE_OPEN)
