/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How control-path functions explain a failure: an errno plus one sentence
 * that names the object, filled in where the failure is understood best.
 */
#ifndef COW_ERR_H
#define COW_ERR_H

#include <stdarg.h>

#include "cow/util.h"

#define COW_ERR_MAX 768	/* bytes of a sentence: a path (truncated beyond) and a reason */

struct cow_err {
	int code;		/* -errno, 0 while unset */
	char msg[COW_ERR_MAX];	/* one sentence without a final full stop or newline */
};

/*
 * Records @code (a -errno) and the sentence, and returns @code. The first
 * sentence stays: a caller farther out knows less. @err may be NULL.
 */
COW_EXPORT int cow_err_set(struct cow_err *err, int code, const char *fmt, ...) COW_PRINTF(3, 4);
COW_EXPORT int cow_err_vset(struct cow_err *err, int code, const char *fmt, va_list ap)
	COW_PRINTF(3, 0);

/* As cow_err_set(), with ": " and the text of @code behind the sentence. */
COW_EXPORT int cow_err_sys(struct cow_err *err, int code, const char *fmt, ...) COW_PRINTF(3, 4);

/* The sentence, or the text of @code where none was recorded. */
COW_EXPORT const char *cow_err_text(const struct cow_err *err, int code);

#endif
