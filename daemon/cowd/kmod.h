/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Loading a module of the kernel that a front end needs.
 */
#ifndef COWD_KMOD_H
#define COWD_KMOD_H

/*
 * With the program that the kernel itself would use, and waits for its end. Whether it
 * helped is for the caller to see. Costs nothing in a kernel without modules.
 */
void kmod_load(const char *module);

#endif
