// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The one allocator. It exists so that a test can make any single allocation
 * fail (cow_alloc_should_fail); it keeps no pools and counts nothing.
 */
#include "cow/util.h"

#include <stdarg.h>
#include <stdio.h>

bool (*cow_alloc_should_fail)(void);

static bool fail_now(void)
{
	return cow_alloc_should_fail && cow_alloc_should_fail();
}

void *cow_zalloc(size_t bytes)
{
	if (fail_now())
		return NULL;
	/* NULL must mean "no memory", whatever the size. */
	return calloc(1, bytes ? bytes : 1);
}

void *cow_memalign(size_t align, size_t bytes)
{
	void *p;

	if (fail_now() || posix_memalign(&p, align, bytes ? bytes : 1))
		return NULL;
	return p;
}

char *cow_strdup(const char *s)
{
	size_t bytes = strlen(s) + 1;
	char *p = cow_zalloc(bytes);

	if (p)
		memcpy(p, s, bytes);
	return p;
}

char *cow_asprintf(const char *fmt, ...)
{
	va_list ap;
	char *p;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (n < 0)
		return NULL;
	p = cow_zalloc((size_t)n + 1);
	if (!p)
		return NULL;
	va_start(ap, fmt);
	vsnprintf(p, (size_t)n + 1, fmt, ap);
	va_end(ap);
	return p;
}

void cow_free(void *p)
{
	free(p);
}
