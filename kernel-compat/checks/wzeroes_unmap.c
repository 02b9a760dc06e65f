// SPDX-License-Identifier: GPL-2.0
/* Is there a limit for write-zeroes that unmaps, which has to agree with the plain one? */
#include <linux/blkdev.h>

unsigned int dmu_check(struct queue_limits *limits);
unsigned int dmu_check(struct queue_limits *limits)
{
	return limits->max_hw_wzeroes_unmap_sectors;
}
