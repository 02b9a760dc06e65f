/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Messages for the administrator. They go to standard error; under a service
 * manager each line carries the "<n>" priority prefix that journald reads.
 */
#ifndef COW_LOG_H
#define COW_LOG_H

#include "cow/util.h"

enum cow_log_level {	/* values are syslog's */
	COW_LOG_ERR = 3,
	COW_LOG_WARN = 4,
	COW_LOG_INFO = 6,
	COW_LOG_DEBUG = 7,
};

/* @ident stays referenced; it stands before each message. @prefix: write "<n>". */
COW_EXPORT void cow_log_open(const char *ident, bool prefix);
COW_EXPORT void cow_log_set_level(enum cow_log_level level);
COW_EXPORT enum cow_log_level cow_log_get_level(void);
/* "error", "warning", "info", "debug"; returns 0 or -EINVAL. */
COW_EXPORT int cow_log_parse_level(const char *name, enum cow_log_level *ret);
COW_EXPORT const char *cow_log_level_name(enum cow_log_level level);
COW_EXPORT void cow_log(enum cow_log_level level, const char *fmt, ...) COW_PRINTF(2, 3);

/*
 * Shows each message to @fn first, which may keep it from being written by
 * returning true: for a tool that says everything in one sentence. NULL: none.
 * Set it before threads run.
 */
COW_EXPORT void cow_log_hook(bool (*fn)(enum cow_log_level level, const char *message));

/*
 * For messages that a guest or an image can cause: at most ten a second, then
 * one line that says how many were dropped.
 */
COW_EXPORT void cow_log_limited(enum cow_log_level level, const char *fmt, ...) COW_PRINTF(2, 3);

#endif
