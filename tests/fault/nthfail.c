// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Nth failure of dscow images (image.h); that a failed fdatasync is final; and that an
 * image is created as a whole or not at all.
 */
#include <errno.h>
#include <string.h>

#include "cow/log.h"
#include "image.h"

#define REQUESTS 200u

static const struct image_shape shapes[] = {
	{ .name = "overlay", .options = "block_size=16K,granule_size=4K", .block = 16384, .cluster = 4096,
	  .base_size = COW_KIB(768) + 512, .size = COW_KIB(700) - 1024, .cap = COW_KIB(900) },
};

const struct image_kind image_kind = { .format = "dscow", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes) };

NTHFAIL_TESTS

/* ---- a failed fdatasync is final ---- */

static void after_failed_sync(struct rig *r, uint64_t nth)
{
	struct rig_op write = { .kind = RIG_WRITE, .off = 0, .len = 4096 };
	struct rig_op flush = { .kind = RIG_FLUSH };
	struct rig_op read = { .kind = RIG_READ, .off = 0, .len = 65536 };

	cow_sim_set_fault(r->sim, NULL);
	for (int i = 0; i < 3; i++) {
		if (!rig_do(r, &flush))
			FAIL("fdatasync %llu failed, but a later flush succeeds",
			     (unsigned long long)nth);
		if (!rig_do(r, &write))
			FAIL("fdatasync %llu failed, but a later write succeeds",
			     (unsigned long long)nth);
	}
	CHECK(cow_chain_mode(r->c) != COW_MODE_RW);
	CHECK_EQ(rig_do(r, &read), 0);
	if (!cow_chain_close(r->c))
		FAIL("fdatasync %llu failed, but close succeeds", (unsigned long long)nth);
	r->c = NULL;
}

/* Returns false when the session has no fdatasync number @nth. */
static bool sticky_case(uint64_t seed, uint64_t nth, int error)
{
	struct cow_sim_fault f = { .nth = nth, .error = error, .ops = 1u << COW_IO_SYNC };
	struct rig_cfg cfg = { .seed = seed, .base_size = COW_KIB(768) };
	struct cow_err why = { 0 };
	struct rig r;
	bool struck;
	int rc = 0;

	rig_init(&r, &cfg);
	r.c = rig_open(&r, RIG_OVER, COW_OPEN_WRITE);
	cow_sim_set_fault(r.sim, &f);
	for (unsigned i = 0; i < REQUESTS && !rc; i++) {
		struct rig_op op;

		rig_random(&r, &op, MODEL_SECTOR);
		if (i % 50 == 49)
			op = (struct rig_op){ .kind = RIG_RESIZE, .len = cfg.base_size - 512 * i };
		rc = rig_do(&r, &op);
	}
	struck = cow_sim_op_count(r.sim) >= nth;
	if (struck != (rc != 0))
		FAIL("fdatasync %llu: %s", (unsigned long long)nth,
		     struck ? "its failure was not reported" : "an error without a cause");
	if (struck) {
		after_failed_sync(&r, nth);
		rc = rig_judge(&r, RIG_OVER, cow_sim_log_len(r.sim, RIG_OVER), true, &why);
		if (rc)
			FAIL("after failed fdatasync %llu: %s", (unsigned long long)nth,
			     cow_err_text(&why, rc));
	}
	rig_free(&r);
	return struck;
}

TEST(failed_sync_stays_failed)
{
	static const int errors[] = { -EIO, -ENOSPC, -EDQUOT };
	uint64_t seed = test_rand();

	cow_log_set_level(COW_LOG_ERR - 1);
	for (unsigned i = 0; i < COW_ARRAY_SIZE(errors); i++) {
		uint64_t n = 0;

		while (sticky_case(seed, n + 1, errors[i]))
			n++;
		CHECK(n > 5);
		printf("fdatasync %s: %llu/%llu stay failed\n", strerror(-errors[i]),
		       (unsigned long long)n, (unsigned long long)n);
	}
}

/* ---- creating ---- */

static int create(struct cow_sim *sim, struct cow_err *err)
{
	struct cow_create_cfg cfg = {
		.format = "dscow", .path = "new.dscow", .backing = RIG_BASE,
		.backing_format = "raw", .io = &cow_io_sim_ops, .io_arg = sim,
	};

	return cow_image_create(&cfg, NULL, err);
}

static bool opens(struct cow_sim *sim)
{
	struct cow_chain_cfg cfg = {
		.format = "dscow", .path = "new.dscow", .io = &cow_io_sim_ops, .io_arg = sim,
	};
	struct cow_err err = { 0 };
	struct cow_report rep = { 0 };
	struct cow_chain *c;
	int rc = cow_chain_open(&cfg, &c, &err);

	if (rc == -ENOENT)
		return false;
	if (rc)
		FAIL("a half-made image appeared: %s", cow_err_text(&err, rc));
	CHECK_EQ(cow_chain_check(c, &rep, 0, &err), 0);
	CHECK_EQ(rep.corruptions, 0);
	CHECK_EQ(cow_chain_close(c), 0);
	return true;
}

/* A new image appears complete, or not at all. */
TEST(every_operation_of_create)
{
	uint64_t total = 1, failed = 0;

	for (uint64_t k = 1; k <= total + 1; k++) {
		struct cow_sim *sim = cow_sim_new(k);
		struct cow_err err = { 0 };
		int rc;

		CHECK_EQ(cow_sim_add(sim, RIG_BASE, 1 << 20, false), 0);
		cow_sim_set_fault(sim, &(struct cow_sim_fault){ .nth = k, .error = -EIO });
		rc = create(sim, &err);
		total = cow_max(total, cow_sim_op_count(sim));
		cow_sim_set_fault(sim, NULL);
		if (rc && !err.msg[0])
			FAIL("create failed without a sentence");
		CHECK_EQ(opens(sim), rc == 0);
		CHECK_EQ(cow_sim_open_files(sim), 0);
		failed += rc != 0;
		cow_sim_free(sim);
	}
	CHECK(failed > 3);
	printf("create: %llu/%llu operations\n", (unsigned long long)total,
	       (unsigned long long)total);
}
