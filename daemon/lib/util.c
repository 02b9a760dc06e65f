// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What of cow/util.h is not inline: sizes as people write them, a pause, and the end
 * of a process whose invariants broke. Memory is in mem.c.
 */
#include "cow/util.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

void cow_assert_failed(const char *expr, const char *file, int line)
{
	fprintf(stderr, "cow: %s:%d: this must be true and is not: %s\n", file, line, expr);
	abort();
}

void cow_sleep_ms(unsigned ms)
{
	const struct timespec ts = { ms / 1000, (long)(ms % 1000) * 1000000 };

	nanosleep(&ts, NULL);
}

static int suffix_shift(char c)
{
	switch (c) {
	case 'b': case 'B':
		return 0;
	case 'k': case 'K':
		return 10;
	case 'm': case 'M':
		return 20;
	case 'g': case 'G':
		return 30;
	case 't': case 'T':
		return 40;
	case 'p': case 'P':
		return 50;
	case 'e': case 'E':
		return 60;
	default:
		return -1;
	}
}

int cow_parse_size(const char *s, uint64_t *ret_bytes)
{
	uint64_t v = 0;
	bool range = false;

	if (*s < '0' || *s > '9')
		return -EINVAL;
	for (; *s >= '0' && *s <= '9'; s++)
		if (!cow_mul_ok(v, 10, &v) || !cow_add_ok(v, (uint64_t)(*s - '0'), &v))
			range = true;
	if (*s) {
		int shift = suffix_shift(*s);

		if (shift < 0 || s[1])
			return -EINVAL;
		if (!cow_mul_ok(v, 1ULL << shift, &v))
			range = true;
	}
	if (range)
		return -ERANGE;
	*ret_bytes = v;
	return 0;
}

const char *cow_human_size(uint64_t bytes, char *buf, size_t len)
{
	static const char units[][4] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	unsigned u = 0, shift;
	uint64_t tenths;

	while (u + 1 < COW_ARRAY_SIZE(units) && bytes >> (10 * (u + 1)))
		u++;
	shift = 10 * u;
	/* Tenths of the rest below the unit; rounded down, so that 1023.99 never shows as 1024.0. */
	tenths = shift ? ((bytes & ((1ULL << shift) - 1)) >> (shift - 10)) * 10 >> 10 : 0;
	if (tenths)
		snprintf(buf, len, "%llu.%llu %s", (unsigned long long)(bytes >> shift),
			 (unsigned long long)tenths, units[u]);
	else
		snprintf(buf, len, "%llu %s", (unsigned long long)(bytes >> shift), units[u]);
	return buf;
}
