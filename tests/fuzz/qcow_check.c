// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Hostile qcow images (fuzzimage.h): checked, and not changed by that.
 */
#include "fuzzimage.h"

FUZZIMAGE_TARGET(fuzzimage_qcow, FUZZIMAGE_CHECK)
