// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Copies from and to a guest's pages (cowd/xen-grants.h), with a hypervisor played here that
 * counts what is mapped: which pages stay mapped, which make room, what happens to each copy
 * of a batch when others fail, and that nothing is mapped in the end.
 */
#include "cowd/xen-grants.h"

#include <errno.h>
#include <stdlib.h>

#include "test.h"

#define DOMAIN 9
#define REFS 512u		/* references 1 ... 511 */
#define KEEP 8u
#define LONG (16u * KEEP)	/* copies until a page makes room */

static struct {
	uint8_t page[REFS][XEN_PAGE];
	uint8_t model[REFS][XEN_PAGE];
	bool readonly[REFS], gone[REFS];
	unsigned mapped_refs[REFS];
	unsigned opened, mapped, maps, by_xen, calls;
	unsigned fail_map, fail_copy;	/* that one, counted from 1; 0: none */
	struct xen_grants *g;
} t;

static int grants_open(void **ret)
{
	t.opened++;
	*ret = &t;
	return 0;
}

static void grants_close(void *h)
{
	CHECK(h == &t);
	CHECK_EQ(t.mapped, 0);
	t.opened--;
}

static bool is_good(uint32_t ref, bool write)
{
	return ref && ref < REFS && !t.gone[ref] && !(write && t.readonly[ref]);
}

static int grants_map(void *h, uint32_t domain, const uint32_t *refs, unsigned n, void **ret)
{
	CHECK(h == &t);
	CHECK_EQ(domain, DOMAIN);
	CHECK_EQ(n, 1);
	if (++t.maps == t.fail_map || !is_good(refs[0], true))
		return -EINVAL;
	t.mapped++;
	t.mapped_refs[refs[0]]++;
	CHECK_EQ(t.mapped_refs[refs[0]], 1);
	*ret = t.page[refs[0]];
	return 0;
}

static void grants_unmap(void *h, void *mem, unsigned n)
{
	size_t ref = (size_t)((uint8_t *)mem - t.page[0]) / XEN_PAGE;

	CHECK(h == &t);
	CHECK_EQ(n, 1);
	CHECK_EQ(t.mapped_refs[ref], 1);
	t.mapped_refs[ref]--;
	t.mapped--;
}

static void grants_copy(void *h, uint32_t domain, struct xen_copy *c, unsigned n)
{
	CHECK(h == &t && n > 0);
	CHECK_EQ(domain, DOMAIN);
	t.calls++;
	for (unsigned i = 0; i < n; i++) {
		c[i].ok = ++t.by_xen != t.fail_copy && is_good(c[i].ref, c[i].to_guest);
		if (c[i].ok && c[i].to_guest)
			memcpy(t.page[c[i].ref] + c[i].offset, c[i].ours, c[i].len);
		else if (c[i].ok)
			memcpy(c[i].ours, t.page[c[i].ref] + c[i].offset, c[i].len);
	}
}

static const struct xen_lib fake = {
	.grants_open = grants_open, .grants_close = grants_close, .grants_map = grants_map,
	.grants_unmap = grants_unmap, .grants_copy = grants_copy,
};

static void start(unsigned keep)
{
	memset(&t, 0, sizeof(t));
	for (unsigned i = 0; i < REFS; i++)
		memset(t.page[i], (int)i + 1, XEN_PAGE);
	memcpy(t.model, t.page, sizeof(t.model));
	CHECK_EQ(xen_grants_new(&fake, DOMAIN, keep, &t.g), 0);
}

static void end(void)
{
	CHECK(!memcmp(t.page, t.model, sizeof(t.model)));
	xen_grants_free(t.g);
	CHECK_EQ(t.mapped, 0);
	CHECK_EQ(t.opened, 0);
}

/* One copy of some bytes; what the hypervisor would say of it comes out, and what is copied. */
static bool copy(uint32_t ref, bool to_guest, bool expected)
{
	uint8_t ours[XEN_PAGE];
	struct xen_copy c = { .ours = ours, .ref = ref, .offset = 512, .len = 1024,
			      .to_guest = to_guest };

	memset(ours, (int)ref * 7 + 3, sizeof(ours));
	xen_grants_copy(t.g, &c, 1);
	CHECK_EQ(c.ok, expected);
	if (c.ok && to_guest)
		memset(t.model[ref] + 512, (int)ref * 7 + 3, 1024);
	else if (c.ok)
		CHECK(!memcmp(ours, t.model[ref] + 512, 1024));
	return c.ok;
}

TEST(nothing_is_mapped_without_a_promise)
{
	start(0);
	for (unsigned i = 0; i < 3; i++) {
		copy(5, true, true);
		copy(5, false, true);
		copy(0, false, false);
	}
	CHECK_EQ(t.maps, 0);
	CHECK_EQ(t.by_xen, 9);
	end();
}

TEST(mapped_once)
{
	start(KEEP);
	for (unsigned i = 0; i < 100; i++)
		for (uint32_t ref = 1; ref <= KEEP; ref++)
			copy(ref, test_rand_below(2), true);
	CHECK_EQ(t.maps, KEEP);
	CHECK_EQ(t.by_xen, 0);
	CHECK_EQ(xen_grants_kept(t.g), KEEP);
	end();
}

/* What cannot be mapped is the hypervisor's to judge: it may be read, or not at all. */
TEST(what_cannot_be_mapped)
{
	start(KEEP);
	t.readonly[3] = t.gone[4] = true;
	copy(3, false, true);
	copy(3, true, false);
	copy(4, false, false);
	copy(0xffffffff, false, false);
	/* Nobody tries again at once. */
	CHECK_EQ(t.maps, 1);
	for (unsigned i = 0; i < LONG; i++)
		copy(3, false, true);
	CHECK_EQ(t.maps, 2);
	t.readonly[3] = false;
	for (unsigned i = 0; i <= LONG; i++)
		copy(3, true, true);
	CHECK_EQ(t.mapped, 1);
	end();
}

TEST(the_one_not_used_for_long_makes_room)
{
	start(KEEP);
	for (uint32_t ref = 1; ref <= KEEP; ref++)
		copy(ref, true, true);
	copy(100, true, true);
	CHECK_EQ(t.mapped_refs[100], 0);
	/* All but page 3 are used on. */
	for (unsigned i = 0; i < LONG; i++)
		copy(i % KEEP + 1 == 3 ? 1 : i % KEEP + 1, true, true);
	copy(100, true, true);
	CHECK_EQ(t.mapped_refs[100], 1);
	CHECK_EQ(t.mapped_refs[3], 0);
	CHECK_EQ(xen_grants_kept(t.g), KEEP);
	/* The next one has no room: all are in use. */
	copy(101, true, true);
	CHECK_EQ(t.mapped_refs[101], 0);
	end();
}

/* References with the same bucket, coming and going. */
TEST(same_bucket)
{
	start(KEEP);
	for (unsigned round = 0; round < 20; round++)
		for (unsigned i = 0; i < 2 * LONG; i++)
			copy((1 + (i + round) % 6) * 32 + round % 3 * KEEP, true, true);
	CHECK_EQ(t.mapped, xen_grants_kept(t.g));
	CHECK(t.mapped <= KEEP);
	end();
}

/* In a batch of mapped pages and others, each copy has its own answer. */
static void batch(unsigned n, unsigned bad)
{
	static uint8_t ours[256][XEN_PAGE];
	struct xen_copy c[256];

	for (unsigned i = 0; i < n; i++) {
		c[i] = (struct xen_copy){ .ours = ours[i], .ref = 1 + i, .len = XEN_PAGE,
					  .to_guest = i % 2, .ok = i % 3 };
		memset(ours[i], (int)i, XEN_PAGE);
	}
	xen_grants_copy(t.g, c, n);
	for (unsigned i = 0; i < n; i++) {
		CHECK_EQ(c[i].ok, i + 1 != bad);
		if (!c[i].ok)
			continue;
		if (c[i].to_guest)
			memset(t.model[1 + i], (int)i, XEN_PAGE);
		else
			CHECK(!memcmp(ours[i], t.model[1 + i], XEN_PAGE));
	}
}

TEST(each_of_a_batch_fails_once)
{
	for (unsigned k = 1; k <= 256; k++) {
		/* The hypervisor's copy. */
		start(0);
		t.fail_copy = k;
		batch(256, k);
		CHECK_EQ(t.calls, 1);
		end();
		/* Mapping it: the hypervisor makes the rest. */
		start(256);
		t.fail_map = k;
		batch(256, 0);
		CHECK_EQ(t.mapped, k - 1);
		CHECK_EQ(t.by_xen, 257 - k);
		CHECK_EQ(t.calls, 1);
		end();
		/* The page is not there, of some that are mapped and some that are not. */
		start(KEEP);
		t.gone[k] = true;
		batch(256, k);
		CHECK(t.mapped <= KEEP && t.mapped == xen_grants_kept(t.g));
		end();
	}
}

TEST(at_random)
{
	start(KEEP);
	for (unsigned i = 0; i < 100000; i++) {
		uint32_t ref = (uint32_t)test_rand_below(test_rand_below(4) ? KEEP + 2 : REFS + 8);
		bool write = test_rand_below(2);

		if (ref < REFS && !t.mapped_refs[ref] && !test_rand_below(20))
			t.gone[ref] = !t.gone[ref];
		copy(ref, write, is_good(ref, write));
		CHECK(t.mapped <= KEEP && t.mapped == xen_grants_kept(t.g));
	}
	end();
}

TEST(rings_are_mapped_apart)
{
	uint32_t ref = 77;
	void *mem;

	start(KEEP);
	CHECK_EQ(xen_grants_map(t.g, &ref, 1, &mem), 0);
	CHECK(mem == t.page[77]);
	CHECK_EQ(xen_grants_kept(t.g), 0);
	xen_grants_unmap(t.g, mem, 1);
	end();
}
