// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reads a log of the device-mapper target log-writes (its format: the kernel's
 * Documentation/admin-guide/device-mapper/log-writes.rst) and makes what a power cut at a
 * point of it leaves. The log has writes in the order in which flushes made them
 * durable; behind the last flush before the point, any of them may be missing.
 *
 * A FUA write is in the log when it ended, a plain one not before the next flush: a plain
 * write that ended before a FUA write to the same place stands after it. No disk puts the old
 * one over the new one. So where a FUA write was, a sector of payload.c does not give way
 * to one of its place with a lower number. (Whether one that really came too late destroyed
 * a newer one, payload.c itself sees when it reads back.)
 *
 *   logreplay LOG			one line an entry: index, kind, sector, sectors, mark
 *   logreplay -n POINT [-l SEED] LOG TARGET
 *	writes the entries before POINT to TARGET, an existing file that reads as zeroes.
 *	-l: of the writes after the last flush keeps some by lot, and some of those only in
 *	part (whole sectors); and what was discarded since has any contents
 *
 * Exit status 1 and a sentence: the log is not one, is cut off, or does not fit TARGET.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stamp.h"

#define MAGIC 0x6a736677736872u
#define VERSION 1u
#define BIO_SECTOR 512u
#define TEXT_MAX 64
#define LOSE_PERCENT 40u
#define TEAR_PERCENT 10u

enum { FLUSH = 1, FUA = 2, DISCARD = 4, MARK = 8 };

struct super {
	uint64_t magic, version, entries;
	uint32_t sector_size;
};

struct entry {
	uint64_t sector, sectors, flags, data_len;	/* in units of the log's sector size */
};

static struct {
	const char *path;
	const uint8_t *map;
	uint64_t bytes;
	uint32_t unit;		/* bytes of a sector of the log */
	uint64_t n;
	struct entry *e;	/* flags and lengths in machine order */
	uint64_t *data;		/* where the data of each is */
} lg;

static _Noreturn void die(const char *what, const char *why)
{
	fprintf(stderr, "logreplay: %s: %s\n", what, why);
	exit(1);
}

static void open_log(const char *path)
{
	struct stat st;
	struct super s;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	lg.path = path;
	if (fd < 0 || fstat(fd, &st))
		die(path, strerror(errno));
	lg.bytes = (uint64_t)st.st_size;
	if (lg.bytes < sizeof(s))
		die(path, "too short for a log");
	lg.map = mmap(NULL, lg.bytes, PROT_READ, MAP_PRIVATE, fd, 0);
	if (lg.map == MAP_FAILED)
		die(path, strerror(errno));
	close(fd);
	memcpy(&s, lg.map, sizeof(s));
	lg.unit = le32toh(s.sector_size);
	lg.n = le64toh(s.entries);
	if (le64toh(s.magic) != MAGIC || le64toh(s.version) != VERSION || lg.unit < BIO_SECTOR ||
	    lg.unit > 65536 || lg.unit % BIO_SECTOR)
		die(path, "not a log of log-writes");
	if (lg.n > lg.bytes / lg.unit)
		die(path, "cut off");
}

/* Finds all entries. */
static void index_log(void)
{
	uint64_t at = lg.unit;

	lg.e = calloc(lg.n + 1, sizeof(*lg.e));
	lg.data = calloc(lg.n + 1, sizeof(*lg.data));
	if (!lg.e || !lg.data)
		die(lg.path, "not enough memory");
	for (uint64_t i = 0; i < lg.n; i++) {
		struct entry *e = &lg.e[i];

		if (at > lg.bytes || lg.bytes - at < lg.unit)
			die(lg.path, "cut off");
		memcpy(e, lg.map + at, sizeof(*e));
		e->sector = le64toh(e->sector);
		e->sectors = le64toh(e->sectors);
		e->flags = le64toh(e->flags);
		e->data_len = le64toh(e->data_len);
		/* Of a mark, the text stands behind the numbers, in the same sector. */
		lg.data[i] = e->flags & MARK ? at + sizeof(*e) : at + lg.unit;
		at += lg.unit;
		if (e->flags & MARK && e->data_len > lg.unit - sizeof(*e))
			die(lg.path, "a mark of impossible length");
		if (e->flags & DISCARD)
			continue;
		if (e->sectors > (lg.bytes - at) / lg.unit)
			die(lg.path, "cut off");
		at += e->sectors * lg.unit;
	}
}

static void list(void)
{
	for (uint64_t i = 0; i < lg.n; i++) {
		const struct entry *e = &lg.e[i];
		int text = e->data_len > TEXT_MAX ? TEXT_MAX : (int)e->data_len;

		printf("%" PRIu64 " %s%s%s %" PRIu64 " %" PRIu64 " %.*s\n", i,
		       e->flags & MARK ? "mark" : e->flags & DISCARD ? "discard" :
		       e->sectors ? "write" : "", e->flags & FLUSH ? "flush" : "",
		       e->flags & FUA ? "+fua" : "", e->sector, e->sectors,
		       e->flags & MARK ? text : 0, (const char *)lg.map + lg.data[i]);
	}
}

struct target {
	const char *path;
	int fd;
	uint64_t bytes;
	uint8_t *fua;		/* by sector of the log: the last write to it was FUA */
};

static void put(const struct target *to, uint64_t sector, const void *data, uint64_t bytes)
{
	uint64_t at = sector * lg.unit;

	if (at > to->bytes || bytes > to->bytes - at)
		die(to->path, "the log writes behind its end");
	while (bytes) {
		ssize_t n = pwrite(to->fd, data, bytes, (off_t)at);

		if (n <= 0)
			die(to->path, strerror(errno));
		data = (const uint8_t *)data + n;
		at += (uint64_t)n;
		bytes -= (uint64_t)n;
	}
}

/* Does the target hold the same sector of payload, written later? */
static bool holds_newer(const struct target *to, uint64_t sector, const uint8_t *data)
{
	uint64_t old[2], new[2];	/* number and place */

	if (!to->fua[sector])
		return false;
	memcpy(new, data, sizeof(new));
	if (pread(to->fd, old, sizeof(old), (off_t)(sector * lg.unit)) != sizeof(old))
		die(to->path, "cannot be read");
	return old[1] && old[1] == new[1] && old[0] > new[0];
}

static void put_entry(const struct target *to, const struct entry *e, const uint8_t *data, uint64_t *tear)
{
	if (e->sector > to->bytes / lg.unit || e->sectors > to->bytes / lg.unit - e->sector)
		die(to->path, "the log writes behind its end");
	for (uint64_t i = 0; i < e->sectors; i++) {
		uint64_t s = e->sector + i;

		if ((tear && rnd_below(tear, 100) < 50) || holds_newer(to, s, data + i * lg.unit))
			continue;
		put(to, s, data + i * lg.unit, lg.unit);
		to->fua[s] = e->flags & FUA ? 1 : 0;
	}
}

static void forget(const struct target *to, const struct entry *e, uint64_t *rnd)
{
	uint8_t *buf = calloc(1, lg.unit);
	unsigned how = rnd ? rnd_below(rnd, 100) : 0;

	/* Anything, as nothing promises zeroes; before it is durable perhaps those, or the old. */
	for (uint64_t i = 0; buf && i < e->sectors && how < 66; i++) {
		if (how < 33)
			memset(buf, (int)(rnd_mix(i) & 0xff), lg.unit);
		put(to, e->sector + i, buf, lg.unit);
	}
	free(buf);
}

/* @rnd: it was not flushed. */
static void replay_one(const struct target *to, uint64_t i, uint64_t *rnd)
{
	const struct entry *e = &lg.e[i];
	const uint8_t *data = lg.map + lg.data[i];

	if (e->flags & FUA || e->flags & MARK)
		rnd = NULL;
	if (e->flags & MARK || (rnd && rnd_below(rnd, 100) < LOSE_PERCENT))
		return;
	if (e->flags & DISCARD) {
		forget(to, e, rnd);
		return;
	}
	put_entry(to, e, data, rnd && rnd_below(rnd, 100) < TEAR_PERCENT ? rnd : NULL);
}

static void replay(const char *path, uint64_t point, bool lose, uint64_t seed)
{
	struct target to = { .path = path, .fd = open(path, O_RDWR | O_CLOEXEC) };
	uint64_t rnd = rnd_mix(seed), durable = point;
	struct stat st;

	if (to.fd < 0 || fstat(to.fd, &st))
		die(path, strerror(errno));
	to.bytes = (uint64_t)st.st_size;
	to.fua = calloc(1, to.bytes / lg.unit + 1);
	if (!to.fua)
		die(path, "not enough memory");
	if (point > lg.n)
		die(lg.path, "has not so many entries");
	while (lose && durable > 0 && !(lg.e[durable - 1].flags & FLUSH))
		durable--;
	for (uint64_t i = 0; i < point; i++)
		replay_one(&to, i, i < durable ? NULL : &rnd);
	free(to.fua);
	if (close(to.fd))
		die(path, strerror(errno));
}

static uint64_t number(const char *s)
{
	char *end;
	uint64_t v = strtoull(s, &end, 10);

	if (end == s || *end)
		die(s, "not a number");
	return v;
}

int main(int argc, char **argv)
{
	bool have_point = false, lose = false;
	uint64_t point = 0, seed = 0;
	int c;

	while ((c = getopt(argc, argv, "n:l:")) != -1) {
		switch (c) {
		case 'n':
			have_point = true;
			point = number(optarg);
			break;
		case 'l':
			lose = true;
			seed = number(optarg);
			break;
		default:
			return 2;
		}
	}
	if (argc - optind != (have_point ? 2 : 1)) {
		fprintf(stderr, "usage: logreplay [-n POINT [-l SEED]] LOG [TARGET]\n");
		return 2;
	}
	open_log(argv[optind]);
	index_log();
	if (have_point)
		replay(argv[optind + 1], point, lose, seed);
	else
		list();
	return 0;
}
