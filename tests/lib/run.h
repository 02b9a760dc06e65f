/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Between main.c and test.c: runs the registered cases. Not for tests. */
#ifndef COW_TEST_RUN_H
#define COW_TEST_RUN_H

/* Runs the cases named in @argv, or all, and prints the COUNT line. Returns the exit status. */
int test_run(int argc, char **argv);

#endif
