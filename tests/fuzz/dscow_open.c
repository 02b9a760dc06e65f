// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Opening hostile dscow images, read-only and writable, with every question
 * that can be asked of an image: none may crash, hang, or take memory without
 * measure, and looking must not change a byte of image or base.
 */
#include <stdio.h>

#include "fuzz.h"

#define EXTENTS_MAX 24u		/* a listing of a huge image is long, not interesting */
#define CHECK_MAX COW_GIB(64)	/* virtual bytes: a check looks at each map sector */

static void ask(struct cow_chain *c)
{
	static FILE *null;
	uint64_t size = cow_chain_size(c), virt = 0;
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };
	uint8_t buf[512];
	struct cow_kv *kv;

	if (!null)
		null = fopen("/dev/null", "w");
	kv = cow_kv_new(null, COW_KV_JSON, 1);
	FUZZ_CHECK(null && kv);
	cow_chain_info(c, kv);
	FUZZ_CHECK(cow_kv_end(kv) == 0);
	for (unsigned i = 0; i < EXTENTS_MAX && virt < size; i++) {
		struct cow_extent e;
		unsigned layer;

		if (cow_chain_extent(c, 0, virt, size - virt, &e, &layer))
			break;
		FUZZ_CHECK(e.virt == virt && e.len > 0 && e.len <= size - virt);
		FUZZ_CHECK(layer < cow_chain_depth(c));
		virt += e.len;
	}
	(void)cow_chain_pread(c, buf, cow_min(size, sizeof(buf)), 0);
	(void)cow_chain_pread(c, buf, 1, size - 1);
	if (size <= CHECK_MAX)
		(void)cow_chain_check(c, &rep, 0, &err);
}

static bool unchanged(struct cow_sim *sim, const char *name)
{
	for (size_t i = 0; i < cow_sim_log_len(sim, name); i++)
		if (!cow_sim_log_is_sync(sim, name, i))
			return false;
	return true;
}

static void look(struct cow_sim *sim, uint32_t flags)
{
	struct cow_chain *c = fuzz_open(sim, flags, flags & COW_OPEN_CHECK);

	if (!c)
		return;
	ask(c);
	FUZZ_CHECK(cow_chain_close(c) == 0);
	/* A writable one may be marked as cleanly closed. */
	FUZZ_CHECK((flags & COW_OPEN_WRITE) || unchanged(sim, FUZZ_IMAGE));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint32_t readers[] = { 0, COW_OPEN_FORCE, COW_OPEN_CHECK };
	static const uint32_t writers[] = { COW_OPEN_WRITE, COW_OPEN_WRITE | COW_OPEN_FORCE };
	struct fuzz_in in = { data, size };
	struct cow_sim *sim = fuzz_machine(&in);
	uint64_t pick = fuzz_num(&in, 1);

	look(sim, readers[pick % COW_ARRAY_SIZE(readers)]);
	look(sim, writers[pick / 8 % COW_ARRAY_SIZE(writers)]);
	FUZZ_CHECK(unchanged(sim, FUZZ_BASE));
	cow_sim_free(sim);
	return 0;
}
