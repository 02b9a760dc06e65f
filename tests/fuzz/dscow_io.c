// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Requests to hostile dscow images: a script of reads, writes, zeroes,
 * discards, flushes and resizes. What was written reads back, the base is never
 * touched, and an image that could be opened can be opened afterwards.
 */
#include "fuzz.h"

#define OPS_MAX 48u
#define LEN_MAX 70000u
#define SIZE_MAX_RESIZE COW_GIB(1)

enum op { READ, WRITE, ZERO, DISCARD, FLUSH, RESIZE, REOPEN, EXTENT, OPS };

struct run {
	struct cow_sim *sim;
	struct cow_chain *c;
	uint8_t buf[LEN_MAX], got[LEN_MAX];
};

/* A place near the start, near the end, or anywhere. */
static uint64_t place(struct fuzz_in *in, uint64_t size)
{
	uint64_t how = fuzz_num(in, 1), off = fuzz_num(in, 3);

	if (how & 1)
		off = size - 1 - off % size;
	else if (how & 2)
		off <<= how >> 2 & 31;
	return off % size;
}

static void write_back(struct run *r, uint64_t off, uint64_t len, bool zero)
{
	int rc = zero ? cow_chain_zero(r->c, off, len) : cow_chain_pwrite(r->c, r->buf, len, off);

	if (rc)
		return;
	rc = cow_chain_pread(r->c, r->got, len, off);
	FUZZ_CHECK(rc == 0);
	if (zero)
		memset(r->buf, 0, len);
	FUZZ_CHECK(memcmp(r->got, r->buf, len) == 0);
}

/* Damage that was met may forbid writing from now on, but never reading. */
static void reopen(struct run *r)
{
	bool well = cow_chain_close(r->c) == 0;

	r->c = fuzz_open(r->sim, COW_OPEN_WRITE | COW_OPEN_FORCE, false);
	if (!r->c)
		r->c = fuzz_open(r->sim, COW_OPEN_FORCE, false);
	FUZZ_CHECK(r->c || !well);
}

/* Returns false when there is no chain any more. */
static bool step(struct run *r, struct fuzz_in *in)
{
	enum op op = (enum op)(fuzz_num(in, 1) % OPS);
	uint64_t size = cow_chain_size(r->c), off = place(in, size);
	uint64_t len = 1 + fuzz_num(in, 2);
	struct cow_err err = { 0 };
	struct cow_extent e;
	unsigned layer;

	len = cow_min(len, size - off);
	switch (op) {
	case READ:
		(void)cow_chain_pread(r->c, r->got, len, off);
		break;
	case WRITE:
		memset(r->buf, (int)fuzz_num(in, 1), len);
		write_back(r, off, len, false);
		break;
	case ZERO:
		write_back(r, off, len, true);
		break;
	case DISCARD:
		(void)cow_chain_discard(r->c, off, len);
		break;
	case FLUSH:
		(void)cow_chain_flush(r->c);
		break;
	case RESIZE:
		(void)cow_chain_resize(r->c, off + len <= SIZE_MAX_RESIZE ? off + len : size + len,
				       true, &err);
		break;
	case REOPEN:
		reopen(r);
		break;
	default:
		if (cow_chain_extent(r->c, 0, off, len, &e, &layer) == 0)
			FUZZ_CHECK(e.virt == off && e.len > 0 && e.len <= len);
	}
	return r->c != NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct run r;
	struct fuzz_in in = { data, size };

	r.sim = fuzz_machine(&in);
	r.c = fuzz_open(r.sim, COW_OPEN_WRITE | COW_OPEN_FORCE, false);
	for (unsigned i = 0; r.c && i < OPS_MAX && in.n; i++)
		if (!step(&r, &in))
			break;
	if (r.c)
		(void)cow_chain_close(r.c);
	FUZZ_CHECK(cow_sim_log_len(r.sim, FUZZ_BASE) == 0);
	cow_sim_free(r.sim);
	return 0;
}
