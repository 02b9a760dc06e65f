// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What each system call on a mounted view does: bounds, refusals, zeroing,
 * seeks, flushes, sizes, generated files. Every case serves a raw image by its
 * own cowfuse, so that the result can be looked at in the image itself. Random
 * mixtures are fsx.c's business.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)

static char img[300], mnt[300], over[300];
static bool mounted;

/* A path below the mount; good until the eighth call after. */
static const char *in(const char *name)
{
	static char p[8][400];
	static unsigned i;
	char *out = p[i++ % 8];

	snprintf(out, sizeof(p[0]), "%s/%s", mnt, name);
	return out;
}

static int shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static int shell(const char *fmt, ...)
{
	char cmd[2000];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	fflush(NULL);
	return system(cmd);
}

/* The image stays locked until its server is through, a moment after the mount is gone. */
static void wait_until_unlocked(void)
{
	struct flock lk = { .l_type = F_WRLCK, .l_whence = SEEK_SET };	/* all of it */
	int fd = open(img, O_RDWR | O_CLOEXEC);

	CHECK(fd >= 0);
	for (unsigned i = 0; i < 400 && fcntl(fd, F_OFD_SETLK, &lk); i++)
		usleep(25000);
	CHECK_EQ(fcntl(fd, F_OFD_SETLK, &lk), 0);
	close(fd);
}

static void unmount(void)
{
	if (!mounted)
		return;
	mounted = false;
	CHECK_EQ(shell("fusermount3 -u '%s'", mnt), 0);
	/* The image is locked until its server is through. */
	wait_until_unlocked();
}

static void clean_up(void)
{
	if (mounted)
		(void)!shell("fusermount3 -u -z '%s'", mnt);
}

/* Folders and, of @size bytes, all holes, the image. */
static void prepare(uint64_t size)
{
	static bool registered;

	if (access("/dev/fuse", R_OK | W_OK))
		test_skip("no access to /dev/fuse");
	if (access(TEST_BUILD "/bin/cowfuse", X_OK))
		test_skip("built without FUSE");
	if (!registered)
		atexit(clean_up);
	registered = true;
	unmount();
	snprintf(img, sizeof(img), "%s/ops.img", test_tmp());
	snprintf(over, sizeof(over), "%s/ops.over", test_tmp());
	snprintf(mnt, sizeof(mnt), "%s/ops.mnt", test_tmp());
	mkdir(mnt, 0700);
	unlink(img);
	unlink(over);
	CHECK_EQ(shell("truncate -s %llu '%s'", (unsigned long long)size, img), 0);
}

static void serve(uint64_t size, const char *opts)
{
	prepare(size);
	CHECK_EQ(shell(TEST_BUILD "/bin/cowfuse -p raw -o '%s' '%s' '%s' >'%s.log' 2>&1", opts, img,
		       mnt, img),
		 0);
	mounted = true;
}

static int open_in(const char *name, int flags)
{
	int fd = open(in(name), flags | O_CLOEXEC);

	if (fd < 0)
		FAIL("open %s: %s", name, strerror(errno));
	return fd;
}

static uint8_t *pattern(size_t len, unsigned with)
{
	uint8_t *p = aligned_alloc(4096, (len + 4095) / 4096 * 4096);

	CHECK(p);
	for (size_t i = 0; i < len; i++)
		p[i] = (uint8_t)(with + i * 7 + i / 251);
	return p;
}

/* Does the image, read without the mount, hold @want at @off? */
static bool image_has(uint64_t off, const void *want, size_t len)
{
	char *got = malloc(len);
	int fd = open(img, O_RDONLY | O_CLOEXEC);
	bool same;

	CHECK(got && fd >= 0);
	CHECK_EQ(pread(fd, got, len, (off_t)off), len);
	same = !memcmp(got, want, len);
	close(fd);
	free(got);
	return same;
}

/* The number behind "KEY:" in the section "SECTION:" of stats. */
static uint64_t stat_of(const char *section, const char *key)
{
	char line[256];
	FILE *f = fopen(in("stats"), "r");
	bool inside = false;
	unsigned long long v = 0, got = 0;

	CHECK(f);
	while (fgets(line, sizeof(line), f)) {
		char *p = line + strspn(line, " "), *colon = strchr(p, ':');

		if (!colon)
			continue;
		*colon = '\0';
		if (!strcmp(p, section))
			inside = true;
		else if (inside && !strcmp(p, key) && !got++)
			v = strtoull(colon + 1, NULL, 10);
	}
	fclose(f);
	CHECK_EQ(got > 0, 1);
	return v;
}

TEST(reads_end_where_the_disk_ends)
{
	uint8_t buf[8192];
	int fd;

	serve(MIB + 1000, "ro");
	fd = open_in("disk", O_RDONLY);
	CHECK_EQ(pread(fd, buf, sizeof(buf), (off_t)MIB), 1000);
	CHECK_EQ(pread(fd, buf, sizeof(buf), (off_t)MIB + 999), 1);
	CHECK_EQ(pread(fd, buf, sizeof(buf), (off_t)MIB + 1000), 0);
	CHECK_EQ(pread(fd, buf, sizeof(buf), (off_t)(5 * GIB)), 0);
	close(fd);
	unmount();
}

TEST(writes_past_the_end_change_nothing)
{
	uint8_t *p = pattern(8192, 3), zero[8192] = { 0 };
	int fd, direct;

	serve(MIB, "rw");
	fd = open_in("disk", O_RDWR);
	CHECK(pwrite(fd, p, 4096, (off_t)MIB) < 0 && errno == ENOSPC);
	CHECK(pwrite(fd, p, 1, (off_t)(1ull << 40)) < 0 && errno == ENOSPC);
	/* Direct, it is one request; half of it would fit. */
	direct = open_in("disk", O_RDWR | O_DIRECT);
	CHECK(pwrite(direct, p, 8192, (off_t)(MIB - 4096)) < 0 && errno == ENOSPC);
	CHECK(image_has(MIB - 8192, zero, 8192));
	CHECK_EQ(pwrite(fd, p, 4096, (off_t)(MIB - 4096)), 4096);
	CHECK(image_has(MIB - 4096, p, 4096));
	close(fd);
	close(direct);
	free(p);
	unmount();
}

TEST(size_owner_and_names_are_fixed)
{
	uint8_t *p = pattern(4096, 9);
	struct stat st;
	int fd;

	serve(MIB, "rw");
	fd = open_in("disk", O_RDWR);
	CHECK_EQ(pwrite(fd, p, 4096, 0), 4096);
	CHECK(ftruncate(fd, 0) && errno == EPERM);
	CHECK(ftruncate(fd, (off_t)(2 * MIB)) && errno == EPERM);
	CHECK_EQ(ftruncate(fd, (off_t)MIB), 0);
	CHECK(open(in("disk"), O_WRONLY | O_TRUNC) < 0 && errno == EPERM);
	CHECK(image_has(0, p, 4096));
	CHECK(fchmod(fd, 0666) && errno == EPERM);
	CHECK(open(in("new"), O_WRONLY | O_CREAT, 0600) < 0 && errno == EPERM);
	CHECK(mkdir(in("new"), 0700) && errno == EPERM);
	CHECK(unlink(in("disk")) && errno == EPERM);
	CHECK(rename(in("disk"), in("disc")) && errno == EPERM);
	CHECK(symlink("x", in("new")) && errno == EPERM);
	CHECK(link(in("disk"), in("new")) && errno == EPERM);
	CHECK(open(in("p0"), O_RDONLY) < 0 && errno == ENOENT);
	CHECK(open(in("p01"), O_RDONLY) < 0 && errno == ENOENT);
	CHECK(open(in("p257"), O_RDONLY) < 0 && errno == ENOENT);
	CHECK(open(in("layers/1"), O_RDONLY) < 0 && errno == ENOENT);
	CHECK(open(in("layers/0"), O_RDWR) < 0 && errno == EROFS);
	CHECK_EQ(fstat(fd, &st), 0);
	CHECK_EQ(st.st_mode, S_IFREG | 0600);
	CHECK_EQ(st.st_uid, geteuid());
	CHECK_EQ(st.st_size, MIB);
	CHECK_EQ(stat(in("layers/0"), &st), 0);
	CHECK_EQ(st.st_mode, S_IFREG | 0400);
	close(fd);
	free(p);
	unmount();
}

TEST(read_only_is_read_only)
{
	struct statvfs vfs;
	struct stat st;

	serve(MIB, "ro");
	CHECK(open(in("disk"), O_RDWR) < 0 && errno == EROFS);
	CHECK(open(in("disk"), O_WRONLY) < 0 && errno == EROFS);
	CHECK(truncate(in("disk"), 5) && errno == EROFS);
	CHECK(unlink(in("disk")) && errno == EROFS);
	CHECK_EQ(statvfs(mnt, &vfs), 0);
	CHECK(vfs.f_flag & ST_RDONLY);
	CHECK_EQ(vfs.f_blocks * vfs.f_frsize, MIB);
	CHECK_EQ(stat(in("disk"), &st), 0);
	CHECK_EQ(st.st_mode, S_IFREG | 0400);
	unmount();
}

TEST(punched_and_zeroed_ranges)
{
	const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	uint8_t *p = pattern(4 * MIB, 1);
	struct stat empty, full, punched, base;
	int fd;

	serve(16 * MIB, "rw");
	fd = open_in("disk", O_RDWR);
	CHECK_EQ(fstat(fd, &empty), 0);
	CHECK_EQ(pwrite(fd, p, 4 * MIB, (off_t)MIB), 4 * MIB);
	CHECK_EQ(fsync(fd), 0);
	CHECK_EQ(fstat(fd, &full), 0);
	CHECK(full.st_blocks >= empty.st_blocks + (blkcnt_t)(4 * MIB / 512));
	CHECK_EQ(fallocate(fd, punch, (off_t)MIB, (off_t)MIB), 0);
	CHECK_EQ(fallocate(fd, FALLOC_FL_ZERO_RANGE, (off_t)(2 * MIB) + 100, 1000), 0);
	CHECK_EQ(fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)(3 * MIB) - 1, 2),
		 0);
	memset(p, 0, MIB);
	memset(p + MIB + 100, 0, 1000);
	memset(p + 2 * MIB - 1, 0, 2);
	CHECK(image_has(MIB, p, 4 * MIB));
	CHECK_EQ(fsync(fd), 0);
	CHECK_EQ(fstat(fd, &punched), 0);
	CHECK(punched.st_blocks <= full.st_blocks - (blkcnt_t)(MIB / 512));
	CHECK_EQ(stat(img, &base), 0);
	CHECK_EQ(punched.st_blocks, base.st_blocks);
	/* Over the end: a hole there is nothing, zeroes there would be growth. */
	CHECK_EQ(fallocate(fd, punch, (off_t)(16 * MIB), (off_t)MIB), 0);
	CHECK_EQ(fallocate(fd, punch, (off_t)(15 * MIB), (off_t)(2 * MIB)), 0);
	CHECK(fallocate(fd, FALLOC_FL_ZERO_RANGE, (off_t)(15 * MIB), (off_t)(2 * MIB)) &&
	      errno == ENOSPC);
	/* What is not offered. */
	CHECK(fallocate(fd, 0, 0, 4096) && errno == EOPNOTSUPP);
	CHECK(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 4096) && errno == EOPNOTSUPP);
	CHECK(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 65536) && errno == EOPNOTSUPP);
	CHECK(fallocate(fd, FALLOC_FL_INSERT_RANGE, 0, 65536) && errno == EOPNOTSUPP);
	CHECK_EQ(fstat(fd, &base), 0);
	CHECK_EQ(base.st_size, 16 * MIB);
	close(fd);
	free(p);
	unmount();
}

TEST(seek_finds_data_and_holes)
{
	uint8_t *p = pattern(65536, 5);
	int fd, other;

	serve(6 * GIB, "rw");
	fd = open_in("disk", O_RDWR);
	CHECK(lseek(fd, 0, SEEK_DATA) < 0 && errno == ENXIO);
	CHECK_EQ(lseek(fd, 12345, SEEK_HOLE), 12345);
	CHECK_EQ(pwrite(fd, p, 65536, (off_t)MIB), 65536);
	CHECK_EQ(pwrite(fd, p, 65536, (off_t)(5 * GIB)), 65536);
	CHECK_EQ(lseek(fd, 0, SEEK_DATA), MIB);
	CHECK_EQ(lseek(fd, (off_t)MIB + 5, SEEK_DATA), MIB + 5);
	CHECK_EQ(lseek(fd, (off_t)MIB, SEEK_HOLE), MIB + 65536);
	CHECK_EQ(lseek(fd, (off_t)MIB + 65536, SEEK_DATA), 5 * GIB);
	CHECK_EQ(lseek(fd, (off_t)(5 * GIB), SEEK_HOLE), 5 * GIB + 65536);
	CHECK(lseek(fd, (off_t)(5 * GIB + 65536), SEEK_DATA) < 0 && errno == ENXIO);
	CHECK(lseek(fd, (off_t)(6 * GIB), SEEK_HOLE) < 0 && errno == ENXIO);
	CHECK_EQ(lseek(fd, (off_t)(6 * GIB) - 1, SEEK_HOLE), 6 * GIB - 1);
	other = open_in("layers/0", O_RDONLY);
	CHECK_EQ(lseek(other, (off_t)MIB + 65536, SEEK_DATA), 5 * GIB);
	close(other);
	/* The last byte is data: the end of the file is the hole behind it. */
	CHECK_EQ(pwrite(fd, p, 4096, (off_t)(6 * GIB) - 4096), 4096);
	CHECK_EQ(lseek(fd, (off_t)(6 * GIB) - 4096, SEEK_HOLE), 6 * GIB);
	close(fd);
	free(p);
	unmount();
}

TEST(offsets_beyond_four_gib)
{
	static const uint64_t at[] = { 4 * GIB - 2048, 4 * GIB + 123, 5 * GIB - 1, 6 * GIB - 4096 };
	uint8_t *p, buf[4096];
	int fd;

	serve(6 * GIB, "rw");
	fd = open_in("disk", O_RDWR);
	for (unsigned i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
		p = pattern(4096, 20 + i);
		CHECK_EQ(pwrite(fd, p, 4096, (off_t)at[i]), 4096);
		CHECK_EQ(pread(fd, buf, 4096, (off_t)at[i]), 4096);
		CHECK(!memcmp(buf, p, 4096));
		CHECK(image_has(at[i], p, 4096));
		free(p);
	}
	/* Nothing of it went to the same place modulo 2^32. */
	CHECK_EQ(pread(fd, buf, 4096, 123), 4096);
	for (unsigned i = 0; i < 4096; i++)
		CHECK_EQ(buf[i], 0);
	CHECK_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(4 * GIB),
			   (off_t)GIB),
		 0);
	CHECK_EQ(pread(fd, buf, 4096, (off_t)(4 * GIB + 123)), 4096);
	for (unsigned i = 0; i < 4096; i++)
		CHECK_EQ(buf[i], 0);
	close(fd);
	unmount();
}

TEST(fsync_is_a_flush_and_close_is_not)
{
	uint8_t *p = pattern(4096, 8);
	uint64_t before;
	int fd;

	serve(MIB, "rw");
	before = stat_of("flush", "ops");
	fd = open_in("disk", O_RDWR);
	CHECK_EQ(pwrite(fd, p, 4096, 0), 4096);
	close(fd);
	CHECK_EQ(stat_of("flush", "ops"), before);
	fd = open_in("disk", O_RDWR);
	CHECK_EQ(pwrite(fd, p, 4096, 8192), 4096);
	CHECK_EQ(fdatasync(fd), 0);
	CHECK_EQ(stat_of("flush", "ops"), before + 1);
	CHECK_EQ(fsync(fd), 0);
	CHECK_EQ(stat_of("flush", "ops"), before + 2);
	close(fd);
	free(p);
	unmount();
}

TEST(mapped_writes_reach_the_image)
{
	uint8_t *p = pattern(10000, 4), *map;
	int fd;

	serve(MIB, "rw");
	fd = open_in("disk", O_RDWR);
	map = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED);
	memcpy(map + 5000, p, 10000);
	close(fd);
	munmap(map, MIB);
	/* With the last mapping gone everything has been written, fsync or not. */
	CHECK(image_has(5000, p, 10000));
	free(p);
	unmount();
}

/* Reads all of @fd; the caller frees. */
static char *slurp(int fd, size_t *ret_len)
{
	size_t len = 0, room = 1 << 16;
	char *text = malloc(room);
	ssize_t n;

	CHECK(text);
	while ((n = pread(fd, text + len, room - len, (off_t)len)) > 0) {
		len += (size_t)n;
		if (len == room)
			text = realloc(text, room *= 2);
		CHECK(text);
	}
	CHECK_EQ(n, 0);
	*ret_len = len;
	return text;
}

static unsigned occurrences(const char *text, size_t len, const char *what)
{
	const char *end = text + len, *p = text;
	unsigned n = 0;

	while ((p = memmem(p, (size_t)(end - p), what, strlen(what)))) {
		n++;
		p++;
	}
	return n;
}

TEST(generated_files_are_snapshots_of_true_size)
{
	static const char *const names[] = { "info.json", "stats", "map.json" };
	uint8_t *page = pattern(4096, 0);
	char *a, *b, byte;
	size_t la, lb;
	struct stat st;
	int fd, disk;

	serve(MIB, "rw");
	for (unsigned i = 0; i < 3; i++) {
		fd = open_in(names[i], O_RDONLY);
		a = slurp(fd, &la);
		CHECK(la > 20);
		CHECK_EQ(fstat(fd, &st), 0);
		CHECK_EQ(st.st_size, la);
		CHECK_EQ(lseek(fd, 0, SEEK_HOLE), la);
		/* Something happens meanwhile, more often than a decimal digit can hide. */
		for (unsigned k = 0; k < 20; k++) {
			disk = open_in("disk", O_RDWR | O_DIRECT);
			CHECK_EQ(pread(disk, page, 4096, 0), 4096);
			close(disk);
		}
		b = slurp(fd, &lb);
		CHECK(la == lb && !memcmp(a, b, la));
		free(b);
		free(a);
		close(fd);
		CHECK(open(in(names[i]), O_RDWR) < 0 && errno == EROFS);
	}
	CHECK(stat_of("read", "ops") >= 60);
	CHECK_EQ(stat(in("info.json"), &st), 0);
	CHECK(st.st_size > 20);
	/* A reader that trusts the size of a closed file for its first read still gets it all. */
	fd = open_in("stats", O_RDONLY);
	CHECK_EQ(pread(fd, &byte, 1, 0), 1);
	close(fd);
	free(page);
	unmount();
}

TEST(long_maps)
{
	uint8_t *p = pattern(4096, 6);
	struct stat st;
	char *text;
	size_t len;
	int fd;

	serve(64 * MIB, "rw");
	fd = open_in("disk", O_RDWR | O_DIRECT);
	for (uint64_t off = 0; off < 64 * MIB; off += 16384)
		CHECK_EQ(pwrite(fd, p, 4096, (off_t)off), 4096);
	close(fd);
	fd = open_in("map.json", O_RDONLY);
	text = slurp(fd, &len);
	CHECK_EQ(fstat(fd, &st), 0);
	CHECK_EQ(st.st_size, len);
	CHECK_EQ(occurrences(text, len, "\"kind\": \"data\""), 4096);
	CHECK_EQ(occurrences(text, len, "\"kind\": \"zero\""), 4096);
	CHECK(memmem(text + len - 8, 8, "]}", 2));
	free(text);
	close(fd);
	/* The walk of a long map for a seek goes on in slices. */
	fd = open_in("disk", O_RDWR);
	CHECK_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)(63 * MIB)),
		 0);
	CHECK_EQ(lseek(fd, 0, SEEK_DATA), 63 * MIB);
	close(fd);
	free(p);
	unmount();
}

/* One of many clients at once: its own region, every byte checked. */
static _Noreturn void client(unsigned me, unsigned rounds)
{
	const uint64_t region = MIB, base = me * region;
	int fd = open(in("disk"), O_RDWR | (me % 2 ? O_DIRECT : 0));
	uint8_t *p = aligned_alloc(4096, 65536), *q = aligned_alloc(4096, 65536);
	uint64_t x = me * 77 + 1;

	if (fd < 0 || !p || !q)
		_exit(2);
	for (unsigned i = 0; i < rounds; i++) {
		uint64_t off, len;

		x = x * 6364136223846793005u + 1442695040888963407u;
		len = ((x >> 33) % 16 + 1) * 4096;
		off = base + (x >> 40) % ((region - len) / 4096 + 1) * 4096;
		memset(p, (int)(x >> 56), len);
		memcpy(p, &x, sizeof(x));
		if (pwrite(fd, p, len, (off_t)off) != (ssize_t)len ||
		    pread(fd, q, len, (off_t)off) != (ssize_t)len || memcmp(p, q, len))
			_exit(1);
		if (i % 16 == 0 && fdatasync(fd))
			_exit(3);
	}
	_exit(0);
}

TEST(many_clients_at_once)
{
	enum { CLIENTS = 24 };
	pid_t pids[CLIENTS];
	int st;

	serve(CLIENTS * MIB, "rw");
	for (unsigned i = 0; i < CLIENTS; i++) {
		pids[i] = fork();
		CHECK(pids[i] >= 0);
		if (!pids[i])
			client(i, 60);
	}
	for (unsigned i = 0; i < CLIENTS; i++) {
		CHECK_EQ(waitpid(pids[i], &st, 0), pids[i]);
		CHECK_EQ(st, 0);
	}
	unmount();
}

/* Drops the image from the page cache: reads have to wait for the device then (not on tmpfs). */
static void make_cold(void)
{
	int fd = open(img, O_RDWR | O_CLOEXEC);

	CHECK(fd >= 0);
	CHECK_EQ(fdatasync(fd), 0);
	CHECK_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	close(fd);
}

/* Reads everything in large direct pieces, in an order of its own, and compares. */
static _Noreturn void cold_reader(unsigned me, const uint8_t *want, uint64_t size)
{
	int fd = open(in("disk"), O_RDONLY | O_DIRECT);
	uint8_t *p = aligned_alloc(4096, MIB);
	uint64_t pieces = size / MIB;

	if (fd < 0 || !p)
		_exit(2);
	for (uint64_t i = 0; i < pieces; i++) {
		uint64_t off = (i * 7 + me * 5) % pieces * MIB;

		if (pread(fd, p, MIB, (off_t)off) != (ssize_t)MIB || memcmp(p, want + off, MIB))
			_exit(1);
		if (pread(fd, p, 4096, (off_t)(off + 4096 * me)) != 4096 ||
		    memcmp(p, want + off + 4096 * me, 4096))
			_exit(1);
	}
	_exit(0);
}

TEST(reads_that_have_to_wait)
{
	enum { READERS = 40 };		/* more bytes at once than a view takes in */
	const uint64_t size = 24 * MIB;
	uint8_t *p = pattern(size, 11);
	pid_t pids[READERS];
	int fd, st;

	serve(size, "rw");
	fd = open_in("disk", O_RDWR | O_DIRECT);
	for (uint64_t off = 0; off < size; off += MIB)
		CHECK_EQ(pwrite(fd, p + off, MIB, (off_t)off), MIB);
	close(fd);
	make_cold();
	for (unsigned i = 0; i < READERS; i++) {
		pids[i] = fork();
		CHECK(pids[i] >= 0);
		if (!pids[i])
			cold_reader(i, p, size);
	}
	for (unsigned i = 0; i < READERS; i++) {
		CHECK_EQ(waitpid(pids[i], &st, 0), pids[i]);
		CHECK_EQ(st, 0);
	}
	free(p);
	unmount();
}

/*
 * First writes of parts of a granule: the rest comes from the base, and has to
 * be waited for. By asynchronous I/O, for the kernel lets only such writes of
 * one file run at the same time.
 */
static void cold_writes(int fd, uint64_t size)
{
	enum { DEPTH = 32 };
	static uint8_t page[DEPTH][4096] __attribute__((aligned(4096)));
	struct iocb cb[DEPTH], *list[DEPTH];
	struct io_event ev[DEPTH];
	aio_context_t ctx = 0;

	CHECK_EQ(syscall(SYS_io_setup, DEPTH, &ctx), 0);
	for (uint64_t base = 0; base < size; base += DEPTH * 8192ull) {
		for (unsigned i = 0; i < DEPTH; i++) {
			uint64_t off = base + i * 8192ull;

			memset(page[i], (int)(off >> 13 & 0xff), 512);
			cb[i] = (struct iocb){ .aio_lio_opcode = IOCB_CMD_PWRITE,
					       .aio_fildes = (uint32_t)fd,
					       .aio_buf = (uintptr_t)page[i],
					       .aio_nbytes = 512,
					       .aio_offset = (int64_t)off + 1024 };
			list[i] = &cb[i];
		}
		CHECK_EQ(syscall(SYS_io_submit, ctx, DEPTH, list), DEPTH);
		CHECK_EQ(syscall(SYS_io_getevents, ctx, DEPTH, DEPTH, ev, NULL), DEPTH);
		for (unsigned i = 0; i < DEPTH; i++)
			CHECK_EQ(ev[i].res, 512);
	}
	CHECK_EQ(syscall(SYS_io_destroy, ctx), 0);
}

TEST(writes_that_have_to_wait)
{
	const uint64_t size = 8 * MIB;
	uint8_t *p = pattern(size, 31), *q = pattern(MIB, 0);
	int fd;

	prepare(size);
	fd = open(img, O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0);
	CHECK_EQ(pwrite(fd, p, size, 0), size);
	close(fd);
	CHECK_EQ(shell(TEST_BUILD "/bin/dscow_tool -c '%s' '%s' >/dev/null", over, img), 0);
	make_cold();
	CHECK_EQ(shell(TEST_BUILD "/bin/cowfuse -p dscow -o rw '%s' '%s' >'%s.log' 2>&1", over, mnt,
		       img),
		 0);
	mounted = true;
	fd = open_in("disk", O_RDWR | O_DIRECT);
	cold_writes(fd, size);
	close(fd);
	for (uint64_t off = 0; off + 8192 <= size; off += 8192)
		memset(p + off + 1024, (int)(off >> 13 & 0xff), 512);
	fd = open_in("disk", O_RDONLY);
	for (uint64_t off = 0; off < size; off += MIB) {
		CHECK_EQ(pread(fd, q, MIB, (off_t)off), MIB);
		CHECK(!memcmp(q, p + off, MIB));
	}
	close(fd);
	free(p);
	free(q);
	unmount();
}
