// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Repair of hostile dscow images: after a repair that says it succeeded, a check
 * finds nothing, and the image opens.
 */
#include "fuzz.h"

#define CHECK_MAX COW_GIB(64)	/* virtual bytes: a check looks at each map sector */

static bool clean(struct cow_chain *c)
{
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };

	FUZZ_CHECK(cow_chain_check(c, &rep, 0, &err) == 0);
	return rep.corruptions == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = { data, size };
	struct cow_sim *sim = fuzz_machine(&in);
	struct cow_chain *c = fuzz_open(sim, COW_OPEN_WRITE | COW_OPEN_CHECK, true);
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };
	int rc;

	if (c && cow_chain_size(c) > CHECK_MAX) {
		FUZZ_CHECK(cow_chain_close(c) == 0);
		c = NULL;
	}
	if (c) {
		rc = cow_chain_check(c, &rep, COW_CHECK_REPAIR, &err);
		FUZZ_CHECK(rc == 0 || err.msg[0]);
		FUZZ_CHECK(rc || clean(c));
		FUZZ_CHECK(cow_chain_close(c) == 0);
		if (rc == 0) {
			c = fuzz_open(sim, COW_OPEN_WRITE, true);
			FUZZ_CHECK(c && clean(c));
			FUZZ_CHECK(cow_chain_close(c) == 0);
		}
	}
	FUZZ_CHECK(cow_sim_log_len(sim, FUZZ_BASE) == 0);
	cow_sim_free(sim);
	return 0;
}
