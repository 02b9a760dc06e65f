/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Runs another program and keeps what it says. No shell: a program and its words.
 * It knows nothing of Xen.
 */
#ifndef COW_XEN_RUN_H
#define COW_XEN_RUN_H

#include "cow/err.h"

#define RUN_WORDS 48		/* of a command; the longest of ours has about 40 */

/* A command under construction; too many words are remembered and refused by run_program(). */
struct run_args {
	const char *argv[RUN_WORDS + 1];
	unsigned n;
};

void run_add(struct run_args *a, const char *word);

/*
 * Runs it without standard input. 0: it ended with status 0; *@ret_out (may be
 * NULL), for cow_free(), is what it printed. Otherwise -errno, and the last line
 * it wrote to standard error, or a sentence of ours. What has not ended
 * after @limit_ms is killed: -ETIMEDOUT.
 */
int run_program(const struct run_args *a, unsigned limit_ms, char **ret_out, struct cow_err *err);

#endif
