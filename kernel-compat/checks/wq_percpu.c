// SPDX-License-Identifier: GPL-2.0
/* Do workqueues want to be told that they are per CPU? */
#include <linux/workqueue.h>

int dmu_check(void);
int dmu_check(void)
{
	return WQ_PERCPU;
}
