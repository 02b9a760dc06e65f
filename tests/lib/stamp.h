/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Sectors that say of themselves which write of which place they are, and the random
 * numbers of the programs that write them. For programs without libcow, too.
 */
#ifndef COW_TEST_STAMP_H
#define COW_TEST_STAMP_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define STAMP_SECTOR 512u
#define STAMP_WORDS (STAMP_SECTOR / 8)
#define STAMP_ZERO UINT32_MAX	/* the number of a sector of zeroes */

static inline uint64_t rnd_mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* The next one, below @n. */
static inline uint64_t rnd_below(uint64_t *rnd, uint64_t n)
{
	*rnd = rnd_mix(*rnd);
	return *rnd % n;
}

static inline uint64_t stamp_checksum(const uint64_t *w, uint64_t seed)
{
	uint64_t h = seed;

	for (unsigned i = 0; i < STAMP_WORDS - 1; i++)
		h = (h ^ w[i]) * 0x100000001b3u + (h >> 29);
	return h;
}

/* Makes at @to, which is aligned, what write @number puts at byte @place. */
static inline void stamp_put(void *to, uint64_t seed, uint64_t place, uint32_t number)
{
	uint64_t *w = to, fill = rnd_mix(seed ^ place << 20 ^ number);

	if (number == STAMP_ZERO) {
		memset(to, 0, STAMP_SECTOR);
		return;
	}
	w[0] = number;
	w[1] = place;
	for (unsigned i = 2; i < STAMP_WORDS - 1; i++)
		w[i] = fill + i;	/* can be compressed */
	w[STAMP_WORDS - 1] = stamp_checksum(w, seed);
}

/* The number that the sector at @from carries. False: it is damaged, or of another place. */
static inline bool stamp_get(const void *from, uint64_t seed, uint64_t place, uint32_t *ret)
{
	static const uint8_t zero[STAMP_SECTOR];
	const uint64_t *w = from;

	*ret = STAMP_ZERO;
	if (!memcmp(from, zero, STAMP_SECTOR))
		return true;
	*ret = (uint32_t)w[0];
	return w[0] < STAMP_ZERO && w[1] == place && w[STAMP_WORDS - 1] == stamp_checksum(w, seed);
}

#endif
