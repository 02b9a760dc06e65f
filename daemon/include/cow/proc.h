/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Small things that every serving process does as a process.
 */
#ifndef COW_PROC_H
#define COW_PROC_H

#include "cow/util.h"

/* No terminal from now on, and no signals meant for the shell's job. */
COW_EXPORT void cow_leave_terminal(void);

/*
 * For trying again what a process that was just killed still holds: waits 1, 2, 4 ... 256 ms,
 * 511 ms in all, and returns true; false when it has been long enough. *@wait_ms is 0 at first.
 */
COW_EXPORT bool cow_patience(unsigned *wait_ms);

#endif
