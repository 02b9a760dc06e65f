// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Direct I/O (cow_chain_go_direct(), cow_file_direct()): whatever the offset, length
 * and place in memory, the bytes are those that buffered I/O would move, on both
 * real backends, and a file ends where it ended.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cow/chain.h"
#include "io.h"
#include "test.h"

#define SIZE (COW_KIB(900) + 700)	/* the end fits nothing */
#define ROUNDS 400u

static char path[512];

static void make_file(uint8_t *model)
{
	int fd;

	snprintf(path, sizeof(path), "%s/direct-XXXXXX", test_tmp());
	fd = mkstemp(path);
	CHECK(fd >= 0);
	for (uint64_t i = 0; i < SIZE; i++)
		model[i] = (uint8_t)test_rand();
	CHECK_EQ(write(fd, model, SIZE), SIZE);
	close(fd);
}

static void read_back(uint8_t *buf)
{
	int fd = open(path, O_RDONLY);
	struct stat st;

	CHECK(fd >= 0);
	CHECK_EQ(fstat(fd, &st), 0);
	CHECK_EQ(st.st_size, SIZE);
	CHECK_EQ(read(fd, buf, SIZE), SIZE);
	close(fd);
}

static void random_io(struct cow_file *f, uint8_t *model, uint8_t *mem)
{
	static const uint32_t units[] = { 1, 8, 512, 4096 };
	uint64_t unit = units[test_rand_below(4)];
	uint64_t len = cow_max(unit, test_rand_below(test_rand_below(8) ? 9000 : COW_KIB(600)));
	uint64_t off = test_rand_below(SIZE - len);
	uint8_t *buf = mem + test_rand_below(4096 / unit) * unit;

	off = cow_round_down(off, unit);
	len = cow_max(unit, cow_round_down(len, unit));
	switch (test_rand_below(5)) {
	case 0:
	case 1:
		for (uint64_t i = 0; i < len; i++)
			buf[i] = (uint8_t)test_rand();
		memcpy(model + off, buf, len);
		CHECK_EQ(cow_io_run(f, COW_IO_WRITE, buf, len, off), 0);
		break;
	case 2:
		memset(model + off, 0, len);
		CHECK_EQ(cow_io_run(f, COW_IO_PUNCH, NULL, len, off), 0);
		break;
	default:
		/* Now and then over the end, which reads as zeroes. */
		if (test_rand_below(8) == 0)
			off = SIZE - len / 2;
		memset(buf, 0xaa, len);
		CHECK_EQ(cow_io_run(f, COW_IO_READ, buf, len, off), 0);
		for (uint64_t i = 0; i < len; i++)
			if (buf[i] != (off + i < SIZE ? model[off + i] : 0))
				FAIL("byte %llu of a read of %llu at %llu", (unsigned long long)i,
				     (unsigned long long)len, (unsigned long long)off);
	}
}

static void run(const struct cow_io_ops *ops)
{
	struct cow_open_spec spec = { .path = path, .write = true };
	static uint8_t model[SIZE], got[SIZE];
	uint8_t *mem = cow_memalign(4096, COW_MIB(1));
	struct cow_err err = { 0 };
	struct cow_file f;
	struct cow_io *io;
	int rc;

	CHECK(mem);
	make_file(model);
	CHECK_EQ(ops->init(NULL, &io), 0);
	CHECK_EQ(ops->open(io, &spec, &f, &err), 0);
	f.io = io;
	rc = ops->direct(&f);
	if (rc == -EOPNOTSUPP) {
		unlink(path);
		test_skip("the file system of %s has no direct I/O", test_tmp());
	}
	CHECK_EQ(rc, 0);
	CHECK(f.direct >= 512 && cow_is_pow2(f.direct));
	CHECK(fcntl(f.fd, F_GETFL) & O_DIRECT);
	CHECK_EQ(ops->direct(&f), 0);
	for (unsigned i = 0; i < ROUNDS; i++)
		random_io(&f, model, mem);
	CHECK(fcntl(f.fd, F_GETFL) & O_DIRECT);
	CHECK_EQ(cow_io_run(&f, COW_IO_SYNC, NULL, 0, 0), 0);
	read_back(got);
	CHECK(!memcmp(got, model, SIZE));
	ops->close(&f);
	ops->fini(io);
	unlink(path);
	cow_free(mem);
}

TEST(system_calls)
{
	run(&cow_io_sync_ops);
}

#ifdef HAVE_URING
TEST(ring)
{
	run(&cow_io_uring_ops);
}
#endif

/* A whole chain: what was written before and behind the switch is there, requests of any shape work. */
TEST(chain)
{
	static uint8_t model[SIZE], got[SIZE];
	struct cow_chain_cfg cfg = { .format = "raw", .flags = COW_OPEN_WRITE };
	struct cow_err err = { 0 };
	struct cow_chain *c;

	make_file(model);
	cfg.path = path;
	CHECK_EQ(cow_chain_open(&cfg, &c, &err), 0);
	CHECK_EQ(cow_chain_pwrite(c, "before", 6, 5000), 0);
	memcpy(model + 5000, "before", 6);
	CHECK_EQ(cow_chain_go_direct(c, &err), 0);
	CHECK_EQ(cow_chain_pwrite(c, "behind", 6, 4093), 0);
	memcpy(model + 4093, "behind", 6);
	CHECK_EQ(cow_chain_zero(c, 8000, 20000), 0);
	memset(model + 8000, 0, 20000);
	CHECK_EQ(cow_chain_pread(c, got, SIZE - 1, 1), 0);
	CHECK(!memcmp(got, model + 1, SIZE - 1));
	CHECK_EQ(cow_chain_close(c), 0);
	read_back(got);
	CHECK(!memcmp(got, model, SIZE));
	unlink(path);
}
