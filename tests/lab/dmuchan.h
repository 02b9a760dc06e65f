/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control node of the target "userspace", for the programs of this folder that play
 * the daemon themselves: nothing of cowd is in it, so the kernel's side is tested alone.
 */
#ifndef TESTS_LAB_DMUCHAN_H
#define TESTS_LAB_DMUCHAN_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "kernel-compat/uapi/linux/dm-userspace.h"

static inline void __attribute__((format(printf, 1, 2), noreturn)) die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

static inline uint64_t parse_number(const char *s)
{
	char *end;
	uint64_t v = strtoull(s, &end, 0);

	if (end == s || *end)
		die("not a number: %s", s);
	return v;
}

static inline int dmu_open(int flags)
{
	return open("/dev/" DMU_NODE, O_RDWR | O_CLOEXEC | flags);
}

/* 0 or -errno. */
static inline int dmu_put(int fd, const void *record, size_t size)
{
	ssize_t n = write(fd, record, size);

	if (n < 0)
		return -errno;
	return (size_t)n == size ? 0 : -EIO;
}

static inline int dmu_hello(int fd, const char *key, uint32_t flags)
{
	struct dmu_hello h = {
		.head = { DMU_HELLO, sizeof(h), 1 }, .abi = DMU_ABI, .features = DMU_FEATURES,
		.flags = flags,
	};

	snprintf(h.key, sizeof(h.key), "%s", key);
	return dmu_put(fd, &h, sizeof(h));
}

static inline int dmu_result(int fd, uint64_t id, int error)
{
	struct dmu_result r = { .head = { DMU_RESULT, sizeof(r), id }, .error = error };

	return dmu_put(fd, &r, sizeof(r));
}

static inline int dmu_simple(int fd, uint32_t type, uint64_t id)
{
	struct dmu_head h = { type, sizeof(h), id };

	return dmu_put(fd, &h, sizeof(h));
}

#endif
