// SPDX-License-Identifier: GPL-2.0-or-later
/* cowd/fe-ublk.h: what descriptors of requests say, of good ones and of impossible ones. */
#include "cowd/fe-ublk.h"

#include <errno.h>

#include "test.h"

#ifdef HAVE_URING

#define SIZE (1ull << 30)
#define MOST (64u << 10)

static struct ublk_todo todo;

static int translate(uint32_t op_flags, uint64_t start_sector, uint32_t nr_sectors)
{
	struct ublksrv_io_desc d = { .op_flags = op_flags, .nr_sectors = nr_sectors,
				     .start_sector = start_sector, .addr = UINT64_MAX };

	todo = (struct ublk_todo){ .op = COW_OPS, .virt = 1, .len = 1 };
	return ublk_translate(&d, MOST, SIZE, &todo);
}

static void untouched(void)
{
	CHECK_EQ(todo.op, COW_OPS);
	CHECK_EQ(todo.len, 1);
}

TEST(every_operation)
{
	static const struct {
		uint32_t theirs;
		enum cow_op ours;
	} ops[] = {
		{ UBLK_IO_OP_READ, COW_OP_READ },
		{ UBLK_IO_OP_WRITE, COW_OP_WRITE },
		{ UBLK_IO_OP_DISCARD, COW_OP_DISCARD },
		{ UBLK_IO_OP_WRITE_ZEROES, COW_OP_ZERO },
	};

	for (unsigned i = 0; i < COW_ARRAY_SIZE(ops); i++) {
		CHECK_EQ(translate(ops[i].theirs, 7, 3), 0);
		CHECK_EQ(todo.op, ops[i].ours);
		CHECK_EQ(todo.virt, 7 * 512);
		CHECK_EQ(todo.len, 3 * 512);
		CHECK_EQ(todo.flags, 0);
	}
	CHECK_EQ(translate(UBLK_IO_OP_FLUSH, UINT64_MAX, UINT32_MAX), 0);
	CHECK_EQ(todo.op, COW_OP_FLUSH);
	CHECK_EQ(todo.virt, 0);
	CHECK_EQ(todo.len, 0);
}

TEST(unknown_operations_are_refused)
{
	for (uint32_t op = 0; op < 256; op++) {
		bool known = op <= UBLK_IO_OP_DISCARD || op == UBLK_IO_OP_WRITE_ZEROES;

		CHECK_EQ(translate(op, 0, 1), known ? 0 : -EOPNOTSUPP);
		if (!known)
			untouched();
	}
}

TEST(flags)
{
	uint32_t all = ~UBLK_IO_OP_MASK;

	CHECK_EQ(translate(UBLK_IO_OP_WRITE | UBLK_IO_F_FUA, 0, 1), 0);
	CHECK_EQ(todo.flags, COW_REQ_FUA);
	CHECK_EQ(translate(UBLK_IO_OP_WRITE_ZEROES | all, 0, 1), 0);
	CHECK_EQ(todo.flags, COW_REQ_FUA);
	CHECK_EQ(translate(UBLK_IO_OP_WRITE | (all & ~UBLK_IO_F_FUA), 0, 1), 0);
	CHECK_EQ(todo.flags, 0);
	CHECK_EQ(translate(UBLK_IO_OP_READ | all, 0, 1), 0);
	CHECK_EQ(todo.flags, 0);
}

TEST(ends_of_the_device)
{
	uint64_t sectors = SIZE / 512;

	CHECK_EQ(translate(UBLK_IO_OP_READ, sectors - 1, 1), 0);
	CHECK_EQ(todo.virt + todo.len, SIZE);
	CHECK_EQ(translate(UBLK_IO_OP_READ, sectors - 1, 2), -EINVAL);
	untouched();
	CHECK_EQ(translate(UBLK_IO_OP_READ, sectors, 1), -EINVAL);
	CHECK_EQ(translate(UBLK_IO_OP_DISCARD, 0, (uint32_t)sectors), 0);
	CHECK_EQ(todo.len, SIZE);
	CHECK_EQ(translate(UBLK_IO_OP_DISCARD, 1, (uint32_t)sectors), -EINVAL);
}

TEST(sums_that_do_not_fit)
{
	static const uint64_t starts[] = { UINT64_MAX, UINT64_MAX >> 9, (UINT64_MAX >> 9) + 1,
					   1ull << 55, (1ull << 55) - 1, 1ull << 63 };

	for (unsigned i = 0; i < COW_ARRAY_SIZE(starts); i++) {
		CHECK_EQ(translate(UBLK_IO_OP_WRITE, starts[i], 1), -EINVAL);
		CHECK_EQ(translate(UBLK_IO_OP_DISCARD, starts[i], UINT32_MAX), -EINVAL);
		untouched();
	}
}

TEST(no_more_data_than_the_buffer_holds)
{
	CHECK_EQ(translate(UBLK_IO_OP_WRITE, 0, MOST / 512), 0);
	CHECK_EQ(translate(UBLK_IO_OP_WRITE, 0, MOST / 512 + 1), -EINVAL);
	CHECK_EQ(translate(UBLK_IO_OP_READ, 0, MOST / 512 + 1), -EINVAL);
	CHECK_EQ(translate(UBLK_IO_OP_READ, 0, UINT32_MAX), -EINVAL);
	CHECK_EQ(translate(UBLK_IO_OP_WRITE_ZEROES, 0, MOST / 512 + 1), 0);
	CHECK_EQ(translate(UBLK_IO_OP_READ, 0, 0), -EINVAL);
	CHECK_EQ(translate(UBLK_IO_OP_DISCARD, 0, 0), -EINVAL);
}

#else

TEST(ublk)
{
	test_skip("built without liburing");
}

#endif
