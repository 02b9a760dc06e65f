// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Messages for the administrator: one write(2) a line to standard error, so
 * that lines of several processes never mix. No files, no syslog: a service
 * manager collects standard error.
 */
#include "cow/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 2048	/* two err sentences; longer lines are cut */
#define LIMIT_PER_SECOND 10

static const char *log_ident = "cow";
static bool log_prefix;
static enum cow_log_level log_level = COW_LOG_INFO;
static bool (*log_hook)(enum cow_log_level level, const char *message);

/* Per thread, so that the limiter needs no lock. */
static _Thread_local struct {
	time_t second;
	unsigned shown;
	uint64_t dropped;
} limit;

static const struct {
	enum cow_log_level level;
	const char *name;
} levels[] = {
	{ COW_LOG_ERR, "error" },
	{ COW_LOG_WARN, "warning" },
	{ COW_LOG_INFO, "info" },
	{ COW_LOG_DEBUG, "debug" },
};

void cow_log_open(const char *ident, bool prefix)
{
	log_ident = ident;
	log_prefix = prefix;
}

void cow_log_set_level(enum cow_log_level level)
{
	log_level = level;
}

void cow_log_hook(bool (*fn)(enum cow_log_level level, const char *message))
{
	log_hook = fn;
}

enum cow_log_level cow_log_get_level(void)
{
	return log_level;
}

int cow_log_parse_level(const char *name, enum cow_log_level *ret)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(levels); i++) {
		if (!strcmp(name, levels[i].name)) {
			*ret = levels[i].level;
			return 0;
		}
	}
	return -EINVAL;
}

const char *cow_log_level_name(enum cow_log_level level)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(levels); i++)
		if (levels[i].level == level)
			return levels[i].name;
	return "unknown";
}

static void emit(enum cow_log_level level, const char *fmt, va_list ap) COW_PRINTF(2, 0);
static void emit(enum cow_log_level level, const char *fmt, va_list ap)
{
	char line[LINE_MAX_BYTES];
	size_t start, len;
	int saved = errno, n;

	n = log_prefix ? snprintf(line, sizeof(line), "<%d>%s: ", (int)level, log_ident)
		       : snprintf(line, sizeof(line), "%s: ", log_ident);
	len = n > 0 ? cow_min((uint64_t)n, sizeof(line) / 2) : 0;
	/* An error is the sentence alone; what needs no action says so. */
	if (!log_prefix && (level == COW_LOG_WARN || level == COW_LOG_DEBUG))
		len += (size_t)snprintf(line + len, sizeof(line) - len, "%s: ",
					cow_log_level_name(level));
	start = len;
	n = vsnprintf(line + len, sizeof(line) - len - 1, fmt, ap);
	if (n > 0)
		len += cow_min((uint64_t)n, sizeof(line) - len - 2);
	for (size_t i = start; i < len; i++)
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = '?';
	line[len] = '\0';
	if (log_hook && log_hook(level, line + start)) {
		errno = saved;
		return;
	}
	line[len++] = '\n';
	/* Nobody is left to tell when standard error does not take it. */
	if (write(STDERR_FILENO, line, len) < 0)
		errno = saved;
	errno = saved;
}

static void emit_f(enum cow_log_level level, const char *fmt, ...) COW_PRINTF(2, 3);
static void emit_f(enum cow_log_level level, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	emit(level, fmt, ap);
	va_end(ap);
}

static time_t now_second(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	return ts.tv_sec;
}

/* A new second: says what the last one dropped. */
static void limit_turn(time_t now)
{
	uint64_t dropped = limit.dropped;

	if (limit.second == now)
		return;
	limit.second = now;
	limit.shown = 0;
	limit.dropped = 0;
	if (dropped)
		emit_f(COW_LOG_WARN, "%llu more messages of this kind were dropped",
		       (unsigned long long)dropped);
}

void cow_log(enum cow_log_level level, const char *fmt, ...)
{
	va_list ap;

	if (level > log_level)
		return;
	if (limit.dropped)
		limit_turn(now_second());
	va_start(ap, fmt);
	emit(level, fmt, ap);
	va_end(ap);
}

void cow_log_limited(enum cow_log_level level, const char *fmt, ...)
{
	va_list ap;

	if (level > log_level)
		return;
	limit_turn(now_second());
	if (limit.shown == LIMIT_PER_SECOND) {
		limit.dropped++;
		return;
	}
	limit.shown++;
	va_start(ap, fmt);
	emit(level, fmt, ap);
	va_end(ap);
}
