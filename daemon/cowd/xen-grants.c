// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Copies from and to a guest's pages (see xen-grants.h).
 *
 * With persistent grants, a page is mapped when it is first seen, and found by its reference
 * from then on; memory for as many as may stay mapped is there from the beginning. When all of
 * it is in use, one that was not needed for long makes room. If there is none, the hypervisor
 * copies; so it does where a page cannot be mapped, and says what is wrong with it. The guest
 * finds out by itself which pages we let go.
 *
 * A reference that the guest took back and gave to another page still leads to the page that
 * is mapped: the guest breaks its promise then, and it is its own page all the same.
 */
#include "xen-grants.h"

#include <errno.h>
#include <stdatomic.h>

#define LONG_AGO 16u	/* times all pages: so many copies later, a page makes room for another */

struct page {
	struct cow_list lru;
	struct page *next;	/* of the same bucket */
	uint32_t ref;
	uint64_t used;		/* the number of the last copy */
	uint8_t *mem;		/* NULL: this one is not in use yet */
};

struct xen_grants {
	const struct xen_lib *lib;
	void *handle;
	uint32_t domain;
	unsigned keep, kept;
	uint64_t copies;	/* numbers them */
	uint64_t map_again;	/* not before this one, since mapping failed */
	struct cow_list lru;	/* of all pages: the one to be used next first */
	unsigned buckets;	/* a power of two */
	struct page **bucket;
	struct page pages[];
};

static struct page **bucket_of(struct xen_grants *g, uint32_t ref)
{
	return &g->bucket[ref & (g->buckets - 1)];
}

static struct page *find(struct xen_grants *g, uint32_t ref)
{
	struct page *p = *bucket_of(g, ref);

	while (p && p->ref != ref)
		p = p->next;
	return p;
}

static void touch(struct xen_grants *g, struct page *p)
{
	p->used = g->copies;
	cow_list_del(&p->lru);
	cow_list_add_tail(&g->lru, &p->lru);
}

static void drop(struct xen_grants *g, struct page *p)
{
	struct page **at = bucket_of(g, p->ref);

	while (*at != p)
		at = &(*at)->next;
	*at = p->next;
	g->lib->grants_unmap(g->handle, p->mem, 1);
	p->mem = NULL;
	g->kept--;
}

/* NULL: the hypervisor has to copy. */
static struct page *map_page(struct xen_grants *g, uint32_t ref)
{
	struct page *p = g->keep ? cow_list_entry(g->lru.next, struct page, lru) : NULL;
	void *mem;

	if (!p || g->copies < g->map_again)
		return NULL;
	if (p->mem && g->copies - p->used < (uint64_t)LONG_AGO * g->keep)
		return NULL;
	if (p->mem)
		drop(g, p);
	if (g->lib->grants_map(g->handle, g->domain, &ref, 1, &mem)) {
		g->map_again = g->copies + (uint64_t)LONG_AGO * g->keep;
		return NULL;
	}
	p->mem = mem;
	p->ref = ref;
	p->next = *bucket_of(g, ref);
	*bucket_of(g, ref) = p;
	g->kept++;
	return p;
}

/*
 * By words, and by one instruction where there is one: for a page that is at least as fast as
 * what memcpy() chooses, for a MiB a fourth faster, and more under emulation. @len: a multiple of 8.
 */
static void copy_sectors(void *to, const void *from, size_t len)
{
#ifdef __x86_64__
	size_t words = len / sizeof(uint64_t);

	__asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
#else
	memcpy(to, from, len);
#endif
}

/* Once: what the guest changes while, or after, it is copied is not seen. */
static void copy_here(const struct page *p, struct xen_copy *c)
{
	if (c->to_guest)
		copy_sectors(p->mem + c->offset, c->ours, c->len);
	else
		copy_sectors(c->ours, p->mem + c->offset, c->len);
	atomic_signal_fence(memory_order_seq_cst);
	c->ok = true;
}

void xen_grants_copy(struct xen_grants *g, struct xen_copy *copies, unsigned n)
{
	unsigned done = 0;	/* those from here to @i are the hypervisor's */

	for (unsigned i = 0; i < n; i++) {
		struct page *p = find(g, copies[i].ref);

		g->copies++;
		if (!p)
			p = map_page(g, copies[i].ref);
		if (!p)
			continue;
		touch(g, p);
		copy_here(p, &copies[i]);
		if (i > done)
			g->lib->grants_copy(g->handle, g->domain, copies + done, i - done);
		done = i + 1;
	}
	if (n > done)
		g->lib->grants_copy(g->handle, g->domain, copies + done, n - done);
}

int xen_grants_map(struct xen_grants *g, const uint32_t *refs, unsigned n, void **ret)
{
	return g->lib->grants_map(g->handle, g->domain, refs, n, ret);
}

void xen_grants_unmap(struct xen_grants *g, void *mem, unsigned n)
{
	g->lib->grants_unmap(g->handle, mem, n);
}

unsigned xen_grants_kept(const struct xen_grants *g)
{
	return g->kept;
}

int xen_grants_new(const struct xen_lib *lib, uint32_t domain, unsigned keep,
		   struct xen_grants **ret)
{
	struct xen_grants *g = cow_zalloc(sizeof(*g) + keep * sizeof(g->pages[0]));
	int rc = -ENOMEM;

	if (!g)
		return -ENOMEM;
	g->lib = lib;
	g->domain = domain;
	g->keep = keep;
	for (g->buckets = 1; g->buckets < keep; g->buckets *= 2)
		;
	cow_list_init(&g->lru);
	for (unsigned i = 0; i < keep; i++)
		cow_list_add_tail(&g->lru, &g->pages[i].lru);
	g->bucket = cow_zalloc(g->buckets * sizeof(g->bucket[0]));
	if (g->bucket)
		rc = lib->grants_open(&g->handle);
	if (rc) {
		cow_free(g->bucket);
		cow_free(g);
		return rc;
	}
	*ret = g;
	return 0;
}

void xen_grants_free(struct xen_grants *g)
{
	if (!g)
		return;
	for (unsigned i = 0; i < g->keep; i++)
		if (g->pages[i].mem)
			drop(g, &g->pages[i]);
	g->lib->grants_close(g->handle);
	cow_free(g->bucket);
	cow_free(g);
}
