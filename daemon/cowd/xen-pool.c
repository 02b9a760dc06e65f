// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * One mapping cut into units, and a bit for each that is taken. A buffer is a run of
 * units, the first that fits: memory that was in use a moment ago is used again.
 */
#include "xen-pool.h"

#include <errno.h>
#include <sys/mman.h>

#include "cow/util.h"

#define UNIT (32u << 10)
#define WORD 64u

struct xen_pool {
	uint8_t *mem;
	unsigned units, used;
	bool wanted, freed;
	uint64_t taken[];
};

int xen_pool_new(size_t bytes, struct xen_pool **ret)
{
	unsigned units = (unsigned)cow_div_up(bytes, UNIT);
	struct xen_pool *p = cow_zalloc(sizeof(*p) + cow_div_up(units, WORD) * sizeof(p->taken[0]));
	void *mem;

	if (!p)
		return -ENOMEM;
	mem = mmap(NULL, (size_t)units * UNIT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		   -1, 0);
	if (mem == MAP_FAILED) {
		cow_free(p);
		return -ENOMEM;
	}
	/* Children of the daemon have no use for it, and huge pages would be touched whole. */
	madvise(mem, (size_t)units * UNIT, MADV_NOHUGEPAGE);
	madvise(mem, (size_t)units * UNIT, MADV_DONTFORK);
	p->mem = mem;
	p->units = units;
	*ret = p;
	return 0;
}

void xen_pool_free(struct xen_pool *p)
{
	if (!p)
		return;
	cow_assert(!p->used);
	munmap(p->mem, (size_t)p->units * UNIT);
	cow_free(p);
}

static bool is_taken(const struct xen_pool *p, unsigned unit)
{
	return p->taken[unit / WORD] >> unit % WORD & 1;
}

static void mark(struct xen_pool *p, unsigned first, unsigned n)
{
	for (unsigned i = first; i < first + n; i++)
		p->taken[i / WORD] ^= 1ull << i % WORD;
}

void *xen_pool_get(struct xen_pool *p, size_t bytes)
{
	unsigned n = (unsigned)cow_div_up(bytes, UNIT), run = 0;

	cow_assert(n && n <= p->units);
	for (unsigned i = 0; i < p->units; i++) {
		if (i % WORD == 0 && p->taken[i / WORD] == UINT64_MAX) {
			i += WORD - 1;
			run = 0;
			continue;
		}
		run = is_taken(p, i) ? 0 : run + 1;
		if (run == n) {
			mark(p, i + 1 - n, n);
			p->used += n;
			return p->mem + (size_t)(i + 1 - n) * UNIT;
		}
	}
	p->wanted = true;
	return NULL;
}

void xen_pool_put(struct xen_pool *p, void *buf, size_t bytes)
{
	unsigned n = (unsigned)cow_div_up(bytes, UNIT);
	unsigned first = (unsigned)(((uint8_t *)buf - p->mem) / UNIT);

	cow_assert(first + n <= p->units && is_taken(p, first) && is_taken(p, first + n - 1));
	mark(p, first, n);
	p->used -= n;
	p->freed = p->wanted;
}

bool xen_pool_freed(struct xen_pool *p)
{
	bool freed = p->freed;

	if (freed)
		p->wanted = p->freed = false;
	return freed;
}

size_t xen_pool_used(const struct xen_pool *p)
{
	return (size_t)p->used * UNIT;
}
