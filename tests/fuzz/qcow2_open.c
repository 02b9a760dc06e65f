// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Hostile qcow2 images (fuzzimage.h): opened in every way, and described.
 */
#include "fuzzimage.h"

FUZZIMAGE_TARGET(fuzzimage_qcow2, FUZZIMAGE_OPEN)
