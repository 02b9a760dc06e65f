/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What differs between the kernels that this builds on. DMU_HAVE_* come from
 * checks/, which are tried with the kernel's own compiler flags: stable and
 * distribution kernels carry backports, so version numbers say little.
 */
#ifndef DMU_COMPAT_H
#define DMU_COMPAT_H

#include <linux/blkdev.h>
#include <linux/fs.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/stddef.h>
#include <linux/workqueue.h>

#ifdef BLK_OPEN_WRITE
typedef blk_mode_t dmu_mode_t;
#define DMU_MODE_READ BLK_OPEN_READ
#define DMU_MODE_WRITE BLK_OPEN_WRITE
#else
typedef fmode_t dmu_mode_t;
#define DMU_MODE_READ FMODE_READ
#define DMU_MODE_WRITE FMODE_WRITE
#endif

#ifndef DECLARE_FLEX_ARRAY
#define DECLARE_FLEX_ARRAY(type, name) \
	struct { struct { } __empty_ ## name; type name[]; }
#endif

#ifdef DMU_HAVE_WQ_PERCPU
#define DMU_WQ_FLAGS (WQ_MEM_RECLAIM | WQ_PERCPU)
#else
#define DMU_WQ_FLAGS WQ_MEM_RECLAIM
#endif

#endif
