// SPDX-License-Identifier: GPL-2.0
/*
 * A module that does what a kernel module must not, once, when it is loaded: to show
 * that the lab notices (tests/lab/self.sh). Nothing else uses it.
 *
 *	insmod bad.ko what=warn | uaf | abba | leak
 */
#include <linux/bug.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>

static char *what = "";
module_param(what, charp, 0444);

static DEFINE_MUTEX(lock_a);
static DEFINE_MUTEX(lock_b);

static int use_after_free(void)
{
	volatile char *p = kmalloc(64, GFP_KERNEL);

	if (!p)
		return -ENOMEM;
	kfree((void *)p);
	p[8] = 1;
	return 0;
}

/* Two orders of two locks: no deadlock here, but lockdep sees that one is possible. */
static int lock_order(void)
{
	mutex_lock(&lock_a);
	mutex_lock(&lock_b);
	mutex_unlock(&lock_b);
	mutex_unlock(&lock_a);
	mutex_lock(&lock_b);
	mutex_lock(&lock_a);
	mutex_unlock(&lock_a);
	mutex_unlock(&lock_b);
	return 0;
}

/* Several, since a stale copy of one pointer on a stack would hide it. */
static int leak(void)
{
	int i;

	for (i = 0; i < 16; i++)
		if (!kmalloc(320, GFP_KERNEL))
			return -ENOMEM;
	return 0;
}

static int __init bad_init(void)
{
	if (!strcmp(what, "uaf"))
		return use_after_free();
	if (!strcmp(what, "abba"))
		return lock_order();
	if (!strcmp(what, "leak"))
		return leak();
	if (!strcmp(what, "warn")) {
		WARN(1, "asked for\n");
		return 0;
	}
	return -EINVAL;
}

static void __exit bad_exit(void)
{
}

module_init(bad_init);
module_exit(bad_exit);
MODULE_DESCRIPTION("Misbehaves when loaded, for the lab's own test");
MODULE_LICENSE("GPL");
