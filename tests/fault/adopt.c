// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * kill -9: a child writes to a chain that keeps its volatile map, tells through
 * a pipe what was acknowledged, and is killed at a random operation. Whoever
 * opens the image next must find every acknowledged write, flushed or not; over
 * one image that survives all the kills. And a volatile map that does not
 * belong to the image as it is now must not be believed.
 *
 * Some writes are made past the chain and then reported to it (COW_OP_WRITTEN), as
 * the kernel does: a report that was not answered before the kill is sent again to
 * whoever opens the image next, and now and then one that was.
 *
 * Real files and real processes; what decides is what was acknowledged, never
 * how long something took.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cow/chain.h"
#include "cow/log.h"
#include "rig.h"
#include "test.h"

#define SECTOR 512u
#define GRANULE 4096u
#define DISK COW_MIB(24)		/* two map sectors */
#define SECTORS (DISK / SECTOR)
#define RUN_SECTORS 64u			/* longest operation */
#define BASE_ID (1ULL << 62)
#define ZERO_ID 0ULL
#define COMMIT_EVERY 20u
#define BOOT_ID_LEN 36u
#define LOCK_TRIES 60u

/* What the child says before and after each operation. */
enum said { BEGUN, ACKED, STORED };	/* STORED: its data is in the file, the report comes next */

struct note {
	uint32_t said;		/* enum said */
	uint32_t first, n;	/* sectors that get @id */
	uint32_t others;	/* written past the chain, then reported */
	uint64_t id;
};

#define REPORTS 4u	/* newest reports kept, to be sent again */

struct bench {
	char dir[512], base[600], over[600], run[600];
	uint64_t acked[SECTORS];
	struct note pending;	/* begun, not acknowledged; n 0: none */
	struct note reports[REPORTS];	/* a ring; n 0: none */
	uint64_t nreports, again;
	uint64_t next_id;
	bool sync_io;
	bool die_stored;	/* children end by their own hand before a report */
	uint64_t lost_ok;	/* sectors that got the pending value */
	uint64_t adopted;
};

static void fill_sector(uint64_t *w, uint64_t sector, uint64_t id)
{
	for (unsigned i = 0; i < SECTOR / 8; i++)
		w[i] = id == ZERO_ID ? 0 : id * 0x9e3779b97f4a7c15ULL + sector * 64 + i;
	if (id != ZERO_ID)
		w[0] = id;
}

static bool sector_is(const uint64_t *got, uint64_t sector, uint64_t id)
{
	uint64_t want[SECTOR / 8];

	fill_sector(want, sector, id);
	return !memcmp(got, want, SECTOR);
}

static void make_base(struct bench *b)
{
	FILE *f = fopen(b->base, "wb");

	CHECK(f);
	for (uint64_t s = 0; s < SECTORS; s++) {
		uint64_t w[SECTOR / 8];

		fill_sector(w, s, BASE_ID);
		CHECK_EQ(fwrite(w, SECTOR, 1, f), 1);
		b->acked[s] = BASE_ID;
	}
	CHECK_EQ(fclose(f), 0);
}

static void make_overlay(struct bench *b)
{
	struct cow_create_cfg cfg = {
		.format = "dscow", .path = b->over, .backing = b->base, .backing_format = "raw",
	};
	struct cow_err err = { 0 };
	int rc = cow_image_create(&cfg, NULL, &err);

	if (rc)
		FAIL("%s", cow_err_text(&err, rc));
}

static void bench_init(struct bench *b)
{
	memset(b, 0, sizeof(*b));
	snprintf(b->dir, sizeof(b->dir), "%s/adopt-XXXXXX", test_tmp());
	CHECK(mkdtemp(b->dir));
	snprintf(b->base, sizeof(b->base), "%s/base.raw", b->dir);
	snprintf(b->over, sizeof(b->over), "%s/over.dscow", b->dir);
	snprintf(b->run, sizeof(b->run), "%s/vmap", b->dir);
	CHECK_EQ(setenv("COW_VMAP_DIR", b->run, 1), 0);
	b->next_id = 1;
	make_base(b);
	make_overlay(b);
}

/* Calls @fn for each volatile map that lies around. Returns how many. */
static unsigned each_map(struct bench *b, void (*fn)(const char *path, void *opaque), void *opaque)
{
	DIR *d = opendir(b->run);
	struct dirent *e;
	unsigned n = 0;

	while (d && (e = readdir(d))) {
		char path[1024];

		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", b->run, e->d_name);
		n++;
		if (fn)
			fn(path, opaque);
	}
	if (d)
		closedir(d);
	return n;
}

static void remove_map(const char *path, void *opaque)
{
	(void)opaque;
	CHECK_EQ(unlink(path), 0);
}

static void bench_free(struct bench *b)
{
	each_map(b, remove_map, NULL);
	rmdir(b->run);
	unlink(b->base);
	unlink(b->over);
	CHECK_EQ(rmdir(b->dir), 0);
	unsetenv("COW_VMAP_DIR");
}

static struct cow_chain *open_chain(const struct bench *b, uint32_t flags)
{
	struct cow_chain_cfg cfg = {
		.format = "dscow", .path = b->over, .flags = flags, .persist = true,
		.io_sync = b->sync_io,
	};
	struct cow_err err = { 0 };
	struct cow_chain *c;
	int rc;

	/*
	 * The kernel takes down a dead process's ring, and with it the locks, a moment after its
	 * death. The library waits half a second for that; a busy machine may need longer.
	 */
	for (unsigned i = 0; i < LOCK_TRIES; i++) {
		err = (struct cow_err){ 0 };
		rc = cow_chain_open(&cfg, &c, &err);
		if (rc != -EAGAIN)
			break;
		usleep(10000);
	}
	if (rc)
		FAIL("%s", cow_err_text(&err, rc));
	return c;
}

/* ---- the child ---- */

static void say(int fd, const struct note *n)
{
	if (write(fd, n, sizeof(*n)) != sizeof(*n))
		_exit(3);
}

static int report(struct cow_chain *c, const struct note *n)
{
	return rig_request(c, COW_OP_WRITTEN, 0, (uint64_t)n->first * SECTOR,
			   (uint64_t)n->n * SECTOR, NULL);
}

/* As the kernel does it: the data goes to its place in the file, then the chain hears of it. */
static int child_other(struct cow_chain *c, struct note *n, int file, int fd, const void *buf,
		       bool die)
{
	uint64_t shift = cow_chain_image(c, 0)->linear_shift;
	uint64_t off = (uint64_t)n->first * SECTOR, len = (uint64_t)n->n * SECTOR;

	if (pwrite(file, buf, len, (off_t)(shift + off)) != (ssize_t)len)
		_exit(7);
	n->said = STORED;
	say(fd, n);
	if (die)
		raise(SIGKILL);
	return report(c, n);
}

static int child_op(struct cow_chain *c, struct note *n, uint64_t kind, int file, int fd, bool die)
{
	static uint64_t buf[RUN_SECTORS * SECTOR / 8];
	uint64_t off = (uint64_t)n->first * SECTOR, len = (uint64_t)n->n * SECTOR;

	if (kind == 0)
		return cow_chain_zero(c, off, len);
	if (kind == 1)
		return cow_chain_discard(c, off, len);
	for (uint32_t i = 0; i < n->n; i++)
		fill_sector(buf + i * SECTOR / 8, n->first + i, n->id);
	return n->others ? child_other(c, n, file, fd, buf, die) :
			   cow_chain_pwrite(c, buf, len, off);
}

/* Writes until it is killed, or @ops operations long, and then closes when @close. */
static void child(struct bench *b, int fd, uint64_t seed, uint64_t ops, bool close_it)
{
	struct rig rng = { .rng = seed };
	struct cow_chain *c = open_chain(b, COW_OPEN_WRITE);
	uint32_t per = GRANULE / SECTOR;
	int file = open(b->over, O_WRONLY);

	if (file < 0)
		_exit(8);
	for (uint64_t i = 0; i < ops; i++) {
		uint64_t kind = rig_rand(&rng, 16);
		struct note n = { .id = b->next_id + i };

		n.n = 1 + (uint32_t)rig_rand(&rng, RUN_SECTORS);
		n.first = (uint32_t)rig_rand(&rng, SECTORS - n.n);
		n.others = kind >= 10;
		/* A discard becomes zeroes only in whole granules, and others write nothing else. */
		if (kind == 1 || n.others) {
			n.first -= n.first % per;
			n.n = per * (1 + n.n / per % 4);
			n.first = (uint32_t)cow_min(n.first, SECTORS - n.n);
		}
		if (kind < 2)
			n.id = ZERO_ID;
		say(fd, &n);
		if (child_op(c, &n, kind, file, fd, b->die_stored && i >= ops / 2))
			_exit(4);
		n.said = ACKED;
		say(fd, &n);
		if (rig_rand(&rng, 40) == 0 && cow_chain_flush(c))
			_exit(5);
	}
	if (!close_it)
		raise(SIGKILL);
	_exit(cow_chain_close(c) ? 6 : 0);
}

static void hear(struct bench *b, const struct note *n)
{
	if (n->id != ZERO_ID && n->id >= b->next_id)
		b->next_id = n->id + 1;
	if (n->said != ACKED) {
		b->pending = *n;
		return;
	}
	if (n->others)
		b->reports[b->nreports++ % REPORTS] = *n;
	for (uint32_t i = 0; i < n->n; i++)
		b->acked[n->first + i] = n->id;
	b->pending.n = 0;
}

/* Starts a child and kills it when it has said @notes notes. Returns operations acknowledged. */
static uint64_t life(struct bench *b, uint64_t notes, uint64_t ops, bool close_it)
{
	uint64_t seed = test_rand(), heard = 0, acks = 0;
	int fds[2], status;
	struct note n;
	pid_t pid;

	CHECK_EQ(pipe(fds), 0);
	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		close(fds[0]);
		child(b, fds[1], seed, ops, close_it);
	}
	close(fds[1]);
	if (notes == 0)
		kill(pid, SIGKILL);
	b->pending.n = 0;
	while (read(fds[0], &n, sizeof(n)) == (ssize_t)sizeof(n)) {
		hear(b, &n);
		acks += n.said == ACKED;
		if (++heard == notes)
			kill(pid, SIGKILL);
	}
	close(fds[0]);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (!(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) &&
	    !(WIFEXITED(status) && WEXITSTATUS(status) == 0))
		FAIL("the child ended with status %#x", (unsigned)status);
	return acks;
}

/* ---- what is there afterwards ---- */

static void judge_sector(struct bench *b, uint64_t s, const uint64_t *got, bool lossy)
{
	bool may_pend = b->pending.n && s >= b->pending.first &&
			s < (uint64_t)b->pending.first + b->pending.n;

	if (sector_is(got, s, b->acked[s]))
		return;
	if (may_pend && sector_is(got, s, b->pending.id)) {
		b->acked[s] = b->pending.id;
		b->lost_ok++;
		return;
	}
	if (lossy)
		return;
	FAIL("sector %llu: acknowledged value %llu is lost, found %llu", (unsigned long long)s,
	     (unsigned long long)b->acked[s], (unsigned long long)got[0]);
}

/* What the kernel does when the next daemon is there: reports without an answer come again. */
static void report_again(struct bench *b, struct cow_chain *c)
{
	if (b->pending.n && b->pending.said == STORED) {
		CHECK_EQ(report(c, &b->pending), 0);
		for (uint32_t i = 0; i < b->pending.n; i++)
			b->acked[b->pending.first + i] = b->pending.id;
		b->pending.n = 0;
		b->again++;
	}
	for (unsigned i = 0; i < REPORTS; i++) {
		if (b->reports[i].n && test_rand_below(2))
			CHECK_EQ(report(c, &b->reports[i]), 0);
		b->reports[i].n = 0;
	}
}

/* Opens, checks, compares. @lossy: unflushed writes may be gone. Returns blocks adopted. */
static uint64_t judge(struct bench *b, uint32_t flags, bool lossy)
{
	static uint64_t buf[COW_MIB(1) / 8];
	struct cow_chain *c = open_chain(b, flags);
	struct cow_chain_stats st;
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };

	if (flags & COW_OPEN_WRITE && !lossy)
		report_again(b, c);
	for (uint64_t off = 0; off < DISK; off += sizeof(buf)) {
		CHECK_EQ(cow_chain_pread(c, buf, sizeof(buf), off), 0);
		for (uint64_t i = 0; i < sizeof(buf) / SECTOR; i++)
			judge_sector(b, off / SECTOR + i, buf + i * SECTOR / 8, lossy);
	}
	CHECK_EQ(cow_chain_check(c, &rep, 0, &err), 0);
	CHECK_EQ(rep.corruptions, 0);
	cow_chain_get_stats(c, &st);
	CHECK_EQ(cow_chain_close(c), 0);
	return st.adopted_blocks;
}

/* Moves everything into the base: else soon all is present and no map changes any more. */
static void empty_overlay(struct bench *b)
{
	struct cow_chain *c = open_chain(b, COW_OPEN_WRITE);
	struct cow_err err = { 0 };
	int rc = cow_chain_commit(c, NULL, NULL, &err);

	if (rc)
		FAIL("%s", cow_err_text(&err, rc));
	CHECK_EQ(cow_chain_close(c), 0);
	/* What was reported of the overlay before is no longer true. */
	memset(b->reports, 0, sizeof(b->reports));
}

TEST(nothing_acknowledged_is_lost)
{
	static struct bench b;
	unsigned kills = rig_full() ? 1000 : 60, closes = 0;
	uint64_t acks = 0;

	cow_log_set_level(COW_LOG_WARN);
	bench_init(&b);
	for (unsigned i = 0; i < kills; i++) {
		uint64_t mode = test_rand_below(8);

		b.sync_io = test_rand_below(2);
		if (mode == 0) {	/* by its own hand, between operations; or a clean end */
			bool clean = test_rand_below(2);

			acks += life(&b, UINT64_MAX, test_rand_below(200), clean);
			closes += clean;
		} else {
			acks += life(&b, test_rand_below(mode == 1 ? 3 : 400), UINT64_MAX, false);
		}
		/* An operation that was cut off may show or not; looking settles which, once. */
		if (b.pending.n || test_rand_below(2))
			b.adopted += judge(&b, b.pending.said == STORED ? COW_OPEN_WRITE : 0,
					   false);
		if (test_rand_below(2))
			b.adopted += judge(&b, COW_OPEN_WRITE, false);
		if (i % COMMIT_EVERY == COMMIT_EVERY - 1)
			empty_overlay(&b);
	}
	judge(&b, COW_OPEN_WRITE, false);
	CHECK(b.adopted > kills / 4);
	CHECK(b.nreports > kills);
	printf("kill -9: seed %llu, %u kills (%u clean ends among them), %llu writes acknowledged, "
	       "%llu reported, 0 lost; %llu reports came again, %llu blocks adopted\n",
	       (unsigned long long)test_seed(), kills, closes, (unsigned long long)acks,
	       (unsigned long long)b.nreports, (unsigned long long)b.again,
	       (unsigned long long)b.adopted);
	bench_free(&b);
}

/* Each life ends between the data of a report and the report itself. */
TEST(reports_come_again)
{
	static struct bench b;
	unsigned kills = rig_full() ? 200 : 20;

	cow_log_set_level(COW_LOG_WARN);
	bench_init(&b);
	b.die_stored = true;
	for (unsigned i = 0; i < kills; i++) {
		b.sync_io = test_rand_below(2);
		life(&b, UINT64_MAX, 100, false);
		CHECK_EQ(b.pending.said, STORED);
		judge(&b, COW_OPEN_WRITE, false);
		if (i % COMMIT_EVERY == COMMIT_EVERY - 1)
			empty_overlay(&b);
	}
	CHECK_EQ(b.again, kills);
	bench_free(&b);
}

/* ---- maps that must not be believed ---- */

static void copy_file(const char *from, const char *to)
{
	static char buf[1 << 16];
	int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	ssize_t n;

	CHECK(in >= 0 && out >= 0);
	while ((n = read(in, buf, sizeof(buf))) > 0)
		CHECK_EQ(write(out, buf, (size_t)n), n);
	CHECK_EQ(n, 0);
	close(in);
	close(out);
}

static void keep_path(const char *path, void *opaque)
{
	snprintf(opaque, 1024, "%s", path);
}

/* A killed writer with something unflushed; its map's path. */
static void leave_map(struct bench *b, char path[1024])
{
	life(b, 100, UINT64_MAX, false);
	CHECK_EQ(each_map(b, keep_path, path), 1);
}

static void change_boot_id(const char *path)
{
	char boot[BOOT_ID_LEN], head[4096];
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY);
	char *at;

	CHECK(fd >= 0);
	CHECK_EQ(read(fd, boot, sizeof(boot)), sizeof(boot));
	close(fd);
	fd = open(path, O_RDWR);
	CHECK(fd >= 0);
	CHECK_EQ(pread(fd, head, sizeof(head), 0), sizeof(head));
	at = memmem(head, sizeof(head), boot, sizeof(boot));
	CHECK(at);
	*at = *at == '0' ? '1' : '0';
	CHECK_EQ(pwrite(fd, head, sizeof(head), 0), sizeof(head));
	close(fd);
}

TEST(not_of_this_boot)
{
	static struct bench b;
	char map[1024];

	cow_log_set_level(COW_LOG_ERR);
	bench_init(&b);
	leave_map(&b, map);
	change_boot_id(map);
	CHECK_EQ(judge(&b, 0, true), 0);
	CHECK_EQ(judge(&b, COW_OPEN_WRITE, true), 0);
	bench_free(&b);
}

TEST(not_of_this_session)
{
	static struct bench b;
	char map[1024], old[1024];

	cow_log_set_level(COW_LOG_ERR);
	bench_init(&b);
	leave_map(&b, map);
	snprintf(old, sizeof(old), "%s/old-map", b.dir);
	copy_file(map, old);
	/* Taken over, used again, and closed: the old map speaks of nothing any more. */
	CHECK(judge(&b, COW_OPEN_WRITE, false) > 0);
	life(&b, UINT64_MAX, 50, true);
	CHECK_EQ(each_map(&b, NULL, NULL), 0);
	copy_file(old, map);
	CHECK_EQ(judge(&b, 0, false), 0);
	CHECK_EQ(judge(&b, COW_OPEN_WRITE, false), 0);
	/* In place of the map of a later session that was killed. */
	leave_map(&b, map);
	copy_file(old, map);
	CHECK_EQ(judge(&b, 0, true), 0);
	CHECK_EQ(judge(&b, COW_OPEN_WRITE, true), 0);
	unlink(old);
	bench_free(&b);
}

TEST(not_of_this_image)
{
	static struct bench b;
	char map[1024], copy[1024], other[1024];
	struct stat st;

	cow_log_set_level(COW_LOG_ERR);
	bench_init(&b);
	leave_map(&b, map);
	/* A copy: same header and session, another inode; with and without a map by its name. */
	snprintf(copy, sizeof(copy), "%s/copy", b.dir);
	copy_file(b.over, copy);
	CHECK_EQ(rename(copy, b.over), 0);
	CHECK_EQ(judge(&b, 0, true), 0);
	CHECK_EQ(stat(b.over, &st), 0);
	snprintf(other, sizeof(other), "%s/%llx-%llx", b.run, (unsigned long long)st.st_dev,
		 (unsigned long long)st.st_ino);
	copy_file(map, other);
	CHECK_EQ(judge(&b, 0, true), 0);
	CHECK_EQ(judge(&b, COW_OPEN_WRITE, true), 0);
	bench_free(&b);
}

/* Cut short or scribbled over: refused or ignored, never a crash. */
TEST(damaged)
{
	static struct bench b;

	cow_log_set_level(COW_LOG_ERR);
	bench_init(&b);
	for (unsigned i = 0; i < 40; i++) {
		char map[1024];
		struct stat st;
		uint8_t junk[64];
		int fd;

		leave_map(&b, map);
		fd = open(map, O_RDWR);
		CHECK(fd >= 0);
		CHECK_EQ(fstat(fd, &st), 0);
		if (i % 2) {
			CHECK_EQ(ftruncate(fd, (off_t)test_rand_below(i % 4 == 1 ? 8192 :
						(uint64_t)st.st_size)), 0);
		} else {
			for (unsigned k = 0; k < sizeof(junk); k++)
				junk[k] = (uint8_t)test_rand();
			/* the header, where sizes stand */
			CHECK_EQ(pwrite(fd, junk, 1 + test_rand_below(16),
					(off_t)test_rand_below(64)) > 0, 1);
		}
		close(fd);
		judge(&b, 0, true);
		judge(&b, COW_OPEN_WRITE, true);
		each_map(&b, remove_map, NULL);
		/* What survived is the truth of the next round. */
		unlink(b.over);
		make_overlay(&b);
		for (uint64_t s = 0; s < SECTORS; s++)
			b.acked[s] = BASE_ID;
	}
	bench_free(&b);
}
