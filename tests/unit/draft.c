// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Images that are filled before they get their name (cow_image_draft()), on a disk
 * that fails anywhere: under the name there is what was there before, or all of it.
 */
#include <errno.h>

#include "cow/chain.h"
#include "cow/log.h"
#include "io-sim.h"
#include "test.h"

#define NAME	"new.img"
#define BASE	"base.raw"
#define SIZE	COW_KIB(512)
#define WRITTEN	COW_KIB(200)

static const char *const formats[] = { "raw", "dscow" };

static int open_it(struct cow_sim *sim, const char *format, struct cow_chain **ret)
{
	const char *const backing[] = { BASE, NULL };
	struct cow_chain_cfg cfg = { .format = format, .path = NAME, .io = &cow_io_sim_ops,
				     .io_arg = sim, .backing = strcmp(format, "raw") ? backing : NULL };
	struct cow_err err = { 0 };

	return cow_chain_open(&cfg, ret, &err);
}

static int draft(struct cow_sim *sim, const char *format, bool exist_ok, struct cow_chain **ret)
{
	struct cow_create_cfg cfg = { .format = format, .path = NAME, .size = SIZE, .exist_ok = exist_ok,
				      .backing = strcmp(format, "raw") ? BASE : NULL,
				      .backing_format = "raw", .io = &cow_io_sim_ops, .io_arg = sim };
	struct cow_err err = { 0 };

	return cow_image_draft(&cfg, ret, &err);
}

static struct cow_sim *machine(void)
{
	static uint8_t base[SIZE];
	struct cow_sim *sim = cow_sim_new(1);

	memset(base, 'b', sizeof(base));
	CHECK(sim);
	CHECK_EQ(cow_sim_add(sim, BASE, SIZE, false), 0);
	CHECK_EQ(cow_sim_write(sim, BASE, base, SIZE, 0), 0);
	return sim;
}

/* The image under the name has @byte, then what its base has. */
static void check_contents(struct cow_sim *sim, const char *format, int byte)
{
	static uint8_t buf[SIZE];
	struct cow_chain *c;

	CHECK_EQ(open_it(sim, format, &c), 0);
	CHECK_EQ(cow_chain_size(c), SIZE);
	CHECK_EQ(cow_chain_pread(c, buf, SIZE, 0), 0);
	for (size_t i = 0; i < SIZE; i++)
		CHECK_EQ(buf[i], i < WRITTEN ? byte : strcmp(format, "raw") ? 'b' : 0);
	CHECK_EQ(cow_chain_close(c), 0);
}

/* All of it, as a tool does; 0 or -errno of the first step that failed. */
static int make(struct cow_sim *sim, const char *format, int byte, bool exist_ok)
{
	static uint8_t buf[WRITTEN];
	struct cow_err err = { 0 };
	struct cow_chain *c;
	int rc = draft(sim, format, exist_ok, &c);

	if (rc)
		return rc;
	memset(buf, byte, sizeof(buf));
	rc = cow_chain_pwrite(c, buf, sizeof(buf), 0);
	if (rc == 0)
		return cow_image_publish(c, &err);
	cow_chain_close(c);
	return rc;
}

TEST(a_name_when_all_is_there)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(formats); i++) {
		struct cow_sim *sim = machine();
		struct cow_err err = { 0 };
		struct cow_chain *c, *other;
		uint8_t byte = 0;

		CHECK_EQ(draft(sim, formats[i], false, &c), 0);
		CHECK_EQ(cow_chain_pwrite(c, "x", 1, 1000), 0);
		CHECK_EQ(cow_chain_pread(c, &byte, 1, 999), 0);	/* through to its base */
		CHECK_EQ(byte, i ? 'b' : 0);
		CHECK_EQ(cow_chain_flush(c), 0);
		CHECK_EQ(open_it(sim, formats[i], &other), -ENOENT);
		CHECK_EQ(cow_chain_close(c), 0);
		CHECK_EQ(open_it(sim, formats[i], &other), -ENOENT);
		CHECK_EQ(make(sim, formats[i], 'a', false), 0);
		check_contents(sim, formats[i], 'a');
		CHECK_EQ(draft(sim, formats[i], false, &c), -EEXIST);
		CHECK_EQ(draft(sim, formats[i], true, &c), 0);
		CHECK_EQ(draft(sim, formats[i], true, &other), -EAGAIN);	/* is about to be replaced */
		CHECK_EQ(cow_image_publish(c, &err), 0);
		cow_sim_free(sim);
	}
}

/* The @nth operation fails. False: there were fewer. */
static bool fail_one(const char *format, uint64_t nth, bool replace)
{
	struct cow_sim_fault none = { 0 }, fault = { .nth = nth, .error = nth % 2 ? -EIO : -ENOSPC };
	struct cow_sim *sim = machine();
	struct cow_chain *c;
	bool reached;
	int rc;

	if (replace)
		CHECK_EQ(make(sim, format, 'o', false), 0);
	cow_sim_set_fault(sim, &fault);
	rc = make(sim, format, 'n', replace);
	reached = cow_sim_op_count(sim) >= nth;
	cow_sim_set_fault(sim, &none);
	if (rc == 0)
		check_contents(sim, format, 'n');
	else if (replace)
		check_contents(sim, format, 'o');
	else
		CHECK_EQ(open_it(sim, format, &c), -ENOENT);
	CHECK_EQ(cow_sim_open_files(sim), 0);
	cow_sim_free(sim);
	return reached;
}

TEST(all_or_nothing_on_a_failing_disk)
{
	unsigned failures = 0;

	cow_log_set_level((enum cow_log_level)0);
	for (size_t i = 0; i < COW_ARRAY_SIZE(formats); i++) {
		for (unsigned replace = 0; replace < 2; replace++) {
			for (uint64_t nth = 1; fail_one(formats[i], nth, replace); nth++)
				failures++;
		}
	}
	CHECK(failures > 20);
}
