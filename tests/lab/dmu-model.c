// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Random reads, writes, zeroing, discards and flushes of all sizes and alignments
 * on a block device, against what it must hold: a shadow in a file that is mapped.
 * The kernel is the only thing between: direct I/O, and what was read is compared byte by byte.
 *
 *	dmu-model fill DEVICE SEED		every sector holds its number and SEED
 *	dmu-model shadow SHADOW SECTORS BASE_SECTORS SEED
 *						what a fresh overlay of such a base must hold
 *	dmu-model run DEVICE SHADOW SEED OPERATIONS THREADS
 *	dmu-model verify DEVICE SHADOW
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "dmuchan.h"

#define SECTOR 512u
#define LONGEST 1024u		/* sectors of an operation, at most */

static int dev;
static uint8_t *shadow;
static uint64_t sectors;
static volatile sig_atomic_t stop;

struct part {
	pthread_t thread;
	uint64_t start, count;	/* sectors that are this thread's */
	unsigned int seed;
	unsigned long todo, done;
	uint8_t *buf;
};

static void on_term(int sig)
{
	(void)sig;
	stop = 1;
}

static void sector_pattern(uint8_t *to, uint64_t sector, uint64_t seed)
{
	uint64_t *w = (uint64_t *)(void *)to;
	unsigned int i;

	for (i = 0; i < SECTOR / sizeof(*w); i++)
		w[i] = sector * 0x9e3779b97f4a7c15ull + seed + i;
}

static void *alloc_buf(void)
{
	void *p;

	if (posix_memalign(&p, 4096, (size_t)LONGEST * SECTOR))
		die("dmu-model: no memory");
	return p;
}

static void map_shadow(const char *path, uint64_t want)
{
	struct stat st;
	int fd = open(path, O_RDWR | (want ? O_CREAT : 0) | O_CLOEXEC, 0600);

	if (fd < 0 || (want && ftruncate(fd, (off_t)(want * SECTOR))) || fstat(fd, &st))
		die("dmu-model: %s: %s", path, strerror(errno));
	sectors = (uint64_t)st.st_size / SECTOR;
	shadow = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shadow == MAP_FAILED)
		die("dmu-model: mmap: %s", strerror(errno));
}

static void open_dev(const char *path)
{
	dev = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (dev < 0)
		die("dmu-model: %s: %s", path, strerror(errno));
}

static void compare(struct part *p, uint64_t at, uint32_t count)
{
	uint32_t i;

	if (pread(dev, p->buf, (size_t)count * SECTOR, (off_t)(at * SECTOR)) !=
	    (ssize_t)(count * SECTOR))
		die("dmu-model: read of %u sectors at %llu: %s", count, (unsigned long long)at,
		    strerror(errno));
	for (i = 0; i < count; i++)
		if (memcmp(p->buf + i * SECTOR, shadow + (at + i) * SECTOR, SECTOR))
			die("dmu-model: sector %llu is wrong after %lu operations (%02x%02x, not %02x%02x)",
			    (unsigned long long)(at + i), p->done, p->buf[i * SECTOR],
			    p->buf[i * SECTOR + 1], shadow[(at + i) * SECTOR],
			    shadow[(at + i) * SECTOR + 1]);
}

static void do_write(struct part *p, uint64_t at, uint32_t count, int flags)
{
	struct iovec iov = { p->buf, (size_t)count * SECTOR };
	uint32_t i;

	for (i = 0; i < count; i++)
		sector_pattern(p->buf + i * SECTOR, at + i, (uint64_t)p->seed * 131071 + p->done);
	if (pwritev2(dev, &iov, 1, (off_t)(at * SECTOR), flags) != (ssize_t)iov.iov_len)
		die("dmu-model: write of %u sectors at %llu: %s", count, (unsigned long long)at,
		    strerror(errno));
	memcpy(shadow + at * SECTOR, p->buf, iov.iov_len);
}

static void do_zero(struct part *p, uint64_t at, uint32_t count)
{
	uint64_t range[2] = { at * SECTOR, (uint64_t)count * SECTOR };

	(void)p;
	if (ioctl(dev, BLKZEROOUT, range))
		die("dmu-model: zeroing: %s", strerror(errno));
	memset(shadow + at * SECTOR, 0, (size_t)count * SECTOR);
}

/* Afterwards a sector is as before, or zero. */
static void do_discard(struct part *p, uint64_t at, uint32_t count)
{
	static const uint8_t zero[SECTOR];
	uint64_t range[2] = { at * SECTOR, (uint64_t)count * SECTOR };
	uint32_t i;

	if (ioctl(dev, BLKDISCARD, range)) {
		if (errno == EOPNOTSUPP)
			return;
		die("dmu-model: discard: %s", strerror(errno));
	}
	if (pread(dev, p->buf, (size_t)range[1], (off_t)range[0]) != (ssize_t)range[1])
		die("dmu-model: read after discard: %s", strerror(errno));
	for (i = 0; i < count; i++)
		if (!memcmp(p->buf + i * SECTOR, zero, SECTOR))
			memset(shadow + (at + i) * SECTOR, 0, SECTOR);
	compare(p, at, count);
}

static void one(struct part *p)
{
	uint32_t dice = (uint32_t)rand_r(&p->seed), count;
	uint64_t at;

	switch (dice >> 8 & 3) {
	case 0: count = 1 + (uint32_t)rand_r(&p->seed) % 8; break;
	case 1: count = 8; break;
	case 2: count = 1 + (uint32_t)rand_r(&p->seed) % 64; break;
	default: count = 1 + (uint32_t)rand_r(&p->seed) % LONGEST; break;
	}
	at = p->start + ((uint64_t)rand_r(&p->seed) << 16 ^ (uint64_t)rand_r(&p->seed)) % p->count;
	if (dice & 0x1000)
		at = at & ~7ull;
	if (at < p->start)
		at = p->start;
	if (count > p->start + p->count - at)
		count = (uint32_t)(p->start + p->count - at);
	switch (dice % 32) {
	case 0: case 4: do_zero(p, at, count); break;
	case 1: do_discard(p, at, count); break;
	case 2: if (fsync(dev)) die("dmu-model: fsync: %s", strerror(errno)); break;
	case 3: do_write(p, at, count, RWF_DSYNC); break;
	default:
		if (dice & 0x10000)
			do_write(p, at, count, 0);
		else
			compare(p, at, count);
	}
}

static void *part_run(void *arg)
{
	struct part *p = arg;

	for (; p->done < p->todo && !stop; p->done++)
		one(p);
	return NULL;
}

static void run(unsigned int seed, unsigned long todo, unsigned int threads)
{
	struct part *parts = calloc(threads, sizeof(*parts));
	unsigned long done = 0;
	unsigned int i;
	uint64_t each = sectors / threads;

	if (!parts)
		die("dmu-model: no memory");
	for (i = 0; i < threads; i++) {
		parts[i].start = i * each;
		parts[i].count = i + 1 == threads ? sectors - i * each : each;
		parts[i].seed = seed + i * 7919;
		parts[i].todo = todo / threads;
		parts[i].buf = alloc_buf();
		if (pthread_create(&parts[i].thread, NULL, part_run, &parts[i]))
			die("dmu-model: no thread");
	}
	for (i = 0; i < threads; i++) {
		pthread_join(parts[i].thread, NULL);
		done += parts[i].done;
	}
	printf("%lu operations\n", done);
}

static void verify(void)
{
	struct part p = { .buf = alloc_buf() };
	uint64_t at;

	for (at = 0; at < sectors; at += LONGEST)
		compare(&p, at, sectors - at < LONGEST ? (uint32_t)(sectors - at) : LONGEST);
}

static void fill(const char *path, uint64_t seed)
{
	uint8_t *buf = alloc_buf();
	uint64_t bytes, at;
	uint32_t n, i;

	open_dev(path);
	if (ioctl(dev, BLKGETSIZE64, &bytes))
		die("dmu-model: %s: %s", path, strerror(errno));
	for (at = 0; at < bytes / SECTOR; at += n) {
		n = bytes / SECTOR - at < LONGEST ? (uint32_t)(bytes / SECTOR - at) : LONGEST;
		for (i = 0; i < n; i++)
			sector_pattern(buf + i * SECTOR, at + i, seed);
		if (pwrite(dev, buf, (size_t)n * SECTOR, (off_t)(at * SECTOR)) != (ssize_t)(n * SECTOR))
			die("dmu-model: %s: %s", path, strerror(errno));
	}
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_term };
	uint64_t at, base, seed;

	sigaction(SIGTERM, &sa, NULL);
	if (argc == 4 && !strcmp(argv[1], "fill")) {
		fill(argv[2], parse_number(argv[3]));
	} else if (argc == 6 && !strcmp(argv[1], "shadow")) {
		map_shadow(argv[2], parse_number(argv[3]));
		base = parse_number(argv[4]);
		seed = parse_number(argv[5]);
		for (at = 0; at < sectors; at++)
			if (at < base)
				sector_pattern(shadow + at * SECTOR, at, seed);
			else
				memset(shadow + at * SECTOR, 0, SECTOR);
	} else if (argc == 7 && !strcmp(argv[1], "run")) {
		open_dev(argv[2]);
		map_shadow(argv[3], 0);
		run((unsigned int)parse_number(argv[4]), parse_number(argv[5]),
		    (unsigned int)parse_number(argv[6]));
	} else if (argc == 4 && !strcmp(argv[1], "verify")) {
		open_dev(argv[2]);
		map_shadow(argv[3], 0);
		verify();
	} else {
		die("dmu-model: see its source for the arguments");
	}
	return 0;
}
