// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * First writes that are split: the image hands out a place (COW_OP_PLACE), somebody else (the
 * kernel) completes and writes it, and reports it some time later (COW_OP_WRITTEN with its
 * place). Under power cuts, failing disks, lookups that miss, flushes that are under way, and
 * kill -9 between any two of these: a cluster reads as before or as written, as written when a
 * flush covered its report, and no place is ever used for two.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cow/log.h"
#include "image.h"

#define PENDING 6u

static const struct image_shape shapes[] = {
	{ .name = "plain", .options = "cluster_size=4K", .cluster = 4096,
	  .base_size = COW_MIB(2) + 700, .size = COW_MIB(3) },
	{ .name = "large clusters", .options = "cluster_size=64K", .cluster = 65536,
	  .base_size = COW_MIB(3), .size = COW_MIB(4) },
	{ .name = "no base", .options = "cluster_size=8K,refcount_bits=64", .cluster = 8192,
	  .size = COW_MIB(3) },
	{ .name = "one-bit refcounts", .options = "cluster_size=4K,refcount_bits=1", .cluster = 4096,
	  .size = COW_MIB(2) },
	{ .name = "subclusters", .options = "cluster_size=16K,extended_l2=on", .cluster = 16384,
	  .base_size = COW_MIB(2), .size = COW_MIB(3) },
};

static void work(struct rig *r, unsigned ops);

const struct image_kind image_kind = {
	.format = "qcow2", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes), .work = work,
};

/* ---- the kernel's part ---- */

/* Completed at their places, and not reported. */
static struct {
	uint64_t virt, phys;
} pending[PENDING];
static unsigned n_pending, n_reports;

static uint64_t unit_of(struct rig *r)
{
	return cow_chain_image(r->c, 0)->place;
}

/* Takes a place for a unit that is not there yet, if there is one, and completes it there. */
static void fill(struct rig *r)
{
	uint64_t unit = unit_of(r), virt = rig_rand(r, model_size(r->m) / unit) * unit, at = rig_rand(r, unit);
	struct cow_extent e;

	for (unsigned i = 0; i < n_pending; i++)
		if (pending[i].virt == virt)
			return;
	if (n_pending == PENDING || rig_request(r->c, COW_OP_PLACE, 0, virt, unit, NULL) ||
	    cow_chain_in_place(r->c, virt, unit, &e) || cow_chain_pread(r->c, r->buf, unit, virt))
		return;
	if (e.kind != COW_DATA || !(e.flags & COW_EXT_NEW))
		return;
	CHECK_EQ(e.len, unit);
	for (uint64_t n = cow_min(unit - at, 1 + rig_rand(r, 5000)); n > 0; n--)
		r->buf[at++] = (uint8_t)rig_rand(r, 256);
	cow_sim_write_other(r->sim, RIG_OVER, r->buf, unit, e.phys);
	pending[n_pending].virt = virt;
	pending[n_pending++].phys = e.phys;
}

static int report(struct rig *r, unsigned i, bool again)
{
	struct cow_req req = {
		.op = COW_OP_WRITTEN, .virt = pending[i].virt, .len = unit_of(r), .phys = pending[i].phys,
	};
	int rc;

	CHECK_EQ(cow_sim_read(r->sim, RIG_OVER, r->buf, req.len, req.phys), 0);
	model_begin(r->m, cow_sim_log_len(r->sim, RIG_OVER), 0);
	model_write(r->m, req.virt, req.len, r->buf);
	rc = rig_run(r->c, &req);
	if (rc == 0 && again)
		rc = rig_run(r->c, &req);
	model_end(r->m, cow_sim_log_len(r->sim, RIG_OVER), rc == 0);
	r->failures += rc != 0;
	n_reports += rc == 0;
	pending[i] = pending[--n_pending];
	return rc;
}

/* One of its own or one of the daemon's, which waits for what was reported before it. 0 or -errno. */
static int step(struct rig *r, uint64_t align)
{
	struct rig_op op;
	uint64_t dice = rig_rand(r, 8);
	int rc = 0;

	if (dice < 3) {
		fill(r);
		return 0;
	}
	if (dice < 5)
		return n_pending ? report(r, (unsigned)rig_rand(r, n_pending), rig_rand(r, 3) == 0) : 0;
	rig_random(r, &op, align);
	if (op.kind == RIG_WRITTEN)
		op.kind = RIG_WRITE;
	for (unsigned i = n_pending; i-- > 0 && op.kind != RIG_READ && op.kind != RIG_FLUSH;)
		if (op.off < pending[i].virt + unit_of(r) && pending[i].virt < op.off + op.len)
			rc = rc ? rc : report(r, i, false);
	return rc ? rc : rig_do(r, &op);
}

/* What is pending at the end is never reported: those writes failed. */
static void work(struct rig *r, unsigned ops)
{
	CHECK(unit_of(r));
	n_pending = 0;
	while (ops--)
		CHECK_EQ(step(r, 1), 0);
}

TEST(power_cuts)
{
	n_reports = 0;
	image_power_cuts();
	CHECK(n_reports > 20);
}

TEST(no_leaks_after_close)
{
	image_no_leaks_after_close(6, 30);
}

TEST(restartable_map)
{
	image_restartable_map();
}

static void requests(struct rig *r)
{
	n_pending = 0;
	for (unsigned i = 0; i < 40; i++)
		(void)step(r, 512);
}

TEST(failing_disk)
{
	uint64_t seed = test_rand();

	cow_log_set_level((enum cow_log_level)0);
	for (size_t i = 0; i < COW_ARRAY_SIZE(shapes); i++) {
		for (uint64_t nth = 1; image_fail_nth(&shapes[i], seed, nth, false, requests);
		     nth += rig_full() ? 1 : 5)
			;
		for (uint64_t nth = 1; image_fail_nth(&shapes[i], seed, nth, true, requests);
		     nth += rig_full() ? 1 : 11)
			;
	}
}

/* ---- what is refused ---- */

static int written(struct cow_chain *c, uint64_t virt, uint64_t len, uint64_t phys)
{
	struct cow_req req = { .op = COW_OP_WRITTEN, .virt = virt, .len = len, .phys = phys };

	return rig_run(c, &req);
}

TEST(refused)
{
	const uint64_t unit = 4096;
	struct cow_extent e, other;
	struct rig r;

	image_init(&r, &shapes[0], 1);
	image_open(&r);
	CHECK_EQ(unit_of(&r), unit);
	CHECK_EQ(rig_request(r.c, COW_OP_PLACE, 0, 512, unit, NULL), -EINVAL);
	CHECK_EQ(rig_request(r.c, COW_OP_PLACE, 0, 0, 3 * unit, NULL), 0);
	CHECK_EQ(cow_chain_in_place(r.c, 0, unit, &e), 0);
	CHECK(e.kind == COW_DATA && e.flags & COW_EXT_NEW);
	CHECK_EQ(cow_chain_in_place(r.c, unit, unit, &other), 0);
	CHECK(other.phys != e.phys);
	CHECK_EQ(written(r.c, 512, unit, e.phys), -EINVAL);
	CHECK_EQ(written(r.c, 0, unit - 512, e.phys), -EINVAL);
	CHECK_EQ(written(r.c, 0, unit, e.phys + 512), -EIO);
	CHECK_EQ(written(r.c, 0, unit, 0), -EIO);			/* the header */
	CHECK_EQ(written(r.c, 0, unit, COW_GIB(1)), -EIO);		/* has no refcount */
	CHECK_EQ(written(r.c, 0, unit, e.phys), 0);
	CHECK_EQ(written(r.c, 0, unit, e.phys), 0);
	CHECK_EQ(written(r.c, 0, unit, other.phys), -EIO);		/* it is somewhere else */
	CHECK_EQ(written(r.c, 3 * unit, unit, other.phys + 5 * unit), -EIO);	/* nobody was told of it */
	CHECK_EQ(cow_chain_in_place(r.c, 0, unit, &e), 0);
	CHECK(e.kind == COW_DATA && !(e.flags & COW_EXT_NEW));
	image_close(&r);
	rig_free(&r);

	/* Its refcount exists, and is 0. */
	image_init(&r, &shapes[1], 1);
	image_open(&r);
	CHECK_EQ(rig_request(r.c, COW_OP_PLACE, 0, 0, unit_of(&r), NULL), 0);
	CHECK_EQ(written(r.c, 0, unit_of(&r), 1000 * unit_of(&r)), -EIO);
	image_close(&r);
	rig_free(&r);
}

/* Its table was dropped from the cache meanwhile: the refcount becomes durable before the entry all the same. */
TEST(table_read_again)
{
	const uint64_t cluster = 65536, block = COW_MIB(32), blocks = 80, n = 300;
	const struct image_shape s = {
		.name = "large", .options = "cluster_size=64K", .cluster = 65536, .size = block * blocks,
	};
	struct cow_err err = { 0 };
	struct cow_extent e;
	uint8_t byte = 1;
	struct rig r;
	size_t pos;

	image_init(&r, &s, test_rand());
	r.cfg.cache_bytes = 1;
	image_open(&r);
	for (uint64_t i = 0; i < blocks; i++)
		CHECK_EQ(cow_chain_pwrite(r.c, &byte, 1, i * block), 0);
	CHECK_EQ(cow_chain_flush(r.c), 0);
	/* So many that a new batch begins. */
	CHECK_EQ(rig_request(r.c, COW_OP_PLACE, 0, cluster, n * cluster, NULL), 0);
	CHECK_EQ(cow_chain_in_place(r.c, n * cluster, cluster, &e), 0);
	CHECK(e.flags & COW_EXT_NEW);
	for (uint64_t i = 1; i < blocks; i++)
		CHECK_EQ(cow_chain_pread(r.c, &byte, 1, i * block), 0);
	pos = cow_sim_log_len(r.sim, RIG_OVER);
	CHECK_EQ(written(r.c, n * cluster, cluster, e.phys), 0);
	CHECK_EQ(cow_chain_flush(r.c), 0);
	for (; pos <= cow_sim_log_len(r.sim, RIG_OVER); pos++) {
		for (unsigned i = 0; i < 24; i++) {
			struct cow_report rep = { 0 };
			struct cow_chain *c;

			CHECK_EQ(cow_sim_crash(r.sim, RIG_OVER, pos, COW_SIM_RANDOM, rig_rand(&r, UINT64_MAX),
					       r.sim, IMAGE_CRASH), 0);
			CHECK_EQ(image_try_open(&r, IMAGE_CRASH, 0, &c, &err), 0);
			CHECK_EQ(cow_chain_check(c, &rep, 0, &err), 0);
			CHECK_EQ(rep.corruptions, 0);
			CHECK_EQ(cow_chain_close(c), 0);
		}
	}
	image_close(&r);
	rig_free(&r);
}

/* ---- reports and flushes in flight together ---- */

#define CLUSTERS 256u
#define EVENTS 160u
#define CLUSTER 4096u

struct event {
	struct cow_req req;
	uint32_t first, n;		/* clusters; n 0: a flush */
	uint64_t begun, ended;		/* ticks; 0: not yet */
	size_t log_end;
};

static struct {
	struct rig r;
	struct event ev[EVENTS];
	uint64_t tick, place[CLUSTERS];
	size_t stored[CLUSTERS];	/* length of the log when the cluster was written; 0: it was not */
	unsigned left;
	uint8_t base[CLUSTERS][CLUSTER];
} mix;

static void pattern(uint32_t i, uint8_t *buf)
{
	for (uint32_t k = 0; k < CLUSTER; k += 8)
		cow_put_be64(buf + k, (i + 1) * 0x9e3779b97f4a7c15ULL + k);
}

static void event_done(struct cow_req *req, int result)
{
	struct event *e = req->opaque;

	CHECK_EQ(result, 0);
	e->ended = ++mix.tick;
	e->log_end = cow_sim_log_len(mix.r.sim, RIG_OVER);
	mix.left--;
}

static uint32_t event_start(struct event *e, uint32_t next)
{
	uint8_t buf[CLUSTER];

	*e = (struct event){ .req = { .op = COW_OP_FLUSH, .done = event_done, .opaque = e }, .first = next };
	if (rig_rand(&mix.r, 3) && next < CLUSTERS)
		e->n = 1;
	while (e->n && e->n < 4 && next + e->n < CLUSTERS && rig_rand(&mix.r, 2) &&
	       mix.place[next + e->n] == mix.place[next] + e->n * CLUSTER)
		e->n++;
	for (uint32_t i = next; i < next + e->n; i++) {
		pattern(i, buf);
		cow_sim_write_other(mix.r.sim, RIG_OVER, buf, CLUSTER, mix.place[i]);
		mix.stored[i] = cow_sim_log_len(mix.r.sim, RIG_OVER);
	}
	if (e->n) {
		e->req.op = COW_OP_WRITTEN;
		e->req.virt = (uint64_t)next * CLUSTER;
		e->req.len = (uint64_t)e->n * CLUSTER;
		e->req.phys = mix.place[next];
	}
	e->begun = ++mix.tick;
	mix.left++;
	cow_req_submit(mix.r.c, &e->req);
	return next + e->n;
}

/* Had a flush that covers the report of cluster @i ended when the log was @pos long? */
static bool must_be_there(uint32_t i, size_t pos)
{
	const struct event *report = NULL;

	for (unsigned k = 0; k < EVENTS; k++) {
		const struct event *e = &mix.ev[k];

		if (e->n && i >= e->first && i < e->first + e->n)
			report = e;
		else if (report && !e->n && e->begun > report->ended && e->log_end <= pos)
			return true;
	}
	return false;
}

static void judge(size_t pos, enum cow_sim_crash how)
{
	uint64_t seed = rig_rand(&mix.r, UINT64_MAX);
	uint8_t got[CLUSTER], want[CLUSTER];
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };
	struct cow_chain *c;

	CHECK_EQ(cow_sim_crash(mix.r.sim, RIG_OVER, pos, how, seed, mix.r.sim, IMAGE_CRASH), 0);
	CHECK_EQ(image_try_open(&mix.r, IMAGE_CRASH, 0, &c, &err), 0);
	CHECK_EQ(cow_chain_check(c, &rep, 0, &err), 0);
	CHECK_EQ(rep.corruptions, 0);
	for (uint32_t i = 0; i < CLUSTERS; i++) {
		bool is_new, is_old;

		CHECK_EQ(cow_chain_pread(c, got, CLUSTER, (uint64_t)i * CLUSTER), 0);
		pattern(i, want);
		is_new = !memcmp(got, want, CLUSTER);
		is_old = !memcmp(got, mix.base[i], CLUSTER);
		if (is_new ? !mix.stored[i] || mix.stored[i] > pos : !is_old || must_be_there(i, pos))
			FAIL("cut at %zu (mode %d, image seed %llu): cluster %u is %s", pos, (int)how,
			     (unsigned long long)seed, i,
			     is_new ? "there too early" : is_old ? "lost" : "neither old nor new");
	}
	CHECK_EQ(cow_chain_close(c), 0);
}

TEST(during_flushes)
{
	uint32_t next = 0;
	size_t end;

	memset(&mix, 0, sizeof(mix));
	image_init(&mix.r, &shapes[0], test_rand());
	image_open(&mix.r);
	for (uint32_t i = 0; i < CLUSTERS; i++) {
		struct cow_extent e;

		CHECK_EQ(rig_request(mix.r.c, COW_OP_PLACE, 0, (uint64_t)i * CLUSTER, CLUSTER, NULL), 0);
		CHECK_EQ(cow_chain_in_place(mix.r.c, (uint64_t)i * CLUSTER, CLUSTER, &e), 0);
		mix.place[i] = e.phys;
		CHECK_EQ(cow_chain_pread(mix.r.c, mix.base[i], CLUSTER, (uint64_t)i * CLUSTER), 0);
	}
	cow_sim_set_async(mix.r.sim, true);
	for (unsigned i = 0; i < EVENTS; i++) {
		next = event_start(&mix.ev[i], next);
		while (mix.left > 12 || (mix.left && rig_rand(&mix.r, 3) == 0))
			cow_chain_poll(mix.r.c, mix.left > 12);
	}
	while (mix.left)
		cow_chain_poll(mix.r.c, true);
	cow_sim_set_async(mix.r.sim, false);
	CHECK(next > 60);
	end = cow_sim_log_len(mix.r.sim, RIG_OVER);
	for (size_t pos = 0; pos <= end; pos += rig_full() ? 1 : 3) {
		judge(pos, COW_SIM_PREFIX);
		judge(pos, COW_SIM_SYNCED);
		judge(pos, COW_SIM_RANDOM);
	}
	judge(end, COW_SIM_SYNCED);
	rig_free(&mix.r);
}

/* ---- kill -9 ---- */

#define LIVES 8u
#define DISK COW_MIB(4)

struct note {
	uint32_t cluster, reported;
	uint64_t phys;
};

static char path[600];
static uint64_t phys_of[DISK / CLUSTER];	/* 0: not written */
static bool shown[DISK / CLUSTER];

static struct cow_chain *open_real(void)
{
	struct cow_chain_cfg cfg = { .format = "qcow2", .path = path, .flags = COW_OPEN_WRITE, .persist = true };
	struct cow_err err = { 0 };
	struct cow_chain *c;
	int rc;

	/* The locks of a killed process go a moment after it. */
	while ((rc = cow_chain_open(&cfg, &c, &err)) == -EAGAIN)
		usleep(10000);
	if (rc)
		FAIL("%s", cow_err_text(&err, rc));
	return c;
}

/* Completes clusters, reports some of them, and dies. */
static void child(int out, uint64_t seed)
{
	struct rig rng = { .rng = seed };
	struct cow_chain *c = open_real();
	int file = open(path, O_WRONLY);
	uint8_t buf[CLUSTER];

	for (unsigned n = 0; n < 40; n++) {
		struct note note = { .cluster = (uint32_t)rig_rand(&rng, DISK / CLUSTER) };
		uint64_t virt = (uint64_t)note.cluster * CLUSTER;
		struct cow_extent e;

		if (rig_request(c, COW_OP_PLACE, 0, virt, CLUSTER, NULL) ||
		    cow_chain_in_place(c, virt, CLUSTER, &e) || e.kind != COW_DATA)
			_exit(1);
		if (!(e.flags & COW_EXT_NEW) || phys_of[note.cluster])
			continue;
		pattern(note.cluster, buf);
		note.phys = phys_of[note.cluster] = e.phys;
		if (pwrite(file, buf, CLUSTER, (off_t)e.phys) != CLUSTER)
			_exit(2);
		note.reported = rig_rand(&rng, 2) && written(c, virt, CLUSTER, e.phys) == 0;
		if (write(out, &note, sizeof(note)) != sizeof(note))
			_exit(3);
		if (rig_rand(&rng, 16) == 0 && cow_chain_flush(c))
			_exit(4);
	}
	raise(SIGKILL);
}

/* What the kernel still had to report comes to the next process, some of it after other first writes. */
static void next_life(unsigned *late)
{
	struct cow_chain *c = open_real();
	uint8_t got[CLUSTER], want[CLUSTER];
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };

	for (uint32_t i = 0; i < DISK / CLUSTER; i++) {
		uint64_t virt = (uint64_t)i * CLUSTER;
		struct cow_extent e;

		if (!phys_of[i] || shown[i]) {
			if (phys_of[i] || test_rand_below(8))
				continue;
			CHECK_EQ(rig_request(c, COW_OP_PLACE, 0, virt, CLUSTER, NULL), 0);
			CHECK_EQ(cow_chain_in_place(c, virt, CLUSTER, &e), 0);
			for (uint32_t k = 0; k < DISK / CLUSTER; k++)
				if (phys_of[k] == e.phys)
					FAIL("the place of cluster %u is given to %u, too", k, i);
			continue;
		}
		/* Asked about it meanwhile, it gives another place, of which the report makes nothing. */
		if (test_rand_below(2))
			CHECK_EQ(rig_request(c, COW_OP_PLACE, 0, virt, CLUSTER, NULL), 0);
		CHECK_EQ(written(c, virt, CLUSTER, phys_of[i]), 0);
		shown[i] = true;
		(*late)++;
	}
	for (uint32_t i = 0; i < DISK / CLUSTER; i++) {
		pattern(i, want);
		CHECK_EQ(cow_chain_pread(c, got, CLUSTER, (uint64_t)i * CLUSTER), 0);
		if (phys_of[i] && memcmp(got, want, CLUSTER))
			FAIL("cluster %u is lost", i);
	}
	CHECK_EQ(cow_chain_check(c, &rep, 0, &err), 0);
	CHECK_EQ(rep.corruptions, 0);
	CHECK_EQ(cow_chain_close(c), 0);
}

TEST(killed)
{
	struct cow_args *args = cow_args_new();
	struct cow_create_cfg cfg = { .format = "qcow2", .path = path, .size = DISK, .args = args };
	struct cow_err err = { 0 };
	char dir[512], run[600];
	unsigned late = 0;

	snprintf(dir, sizeof(dir), "%s/placed-XXXXXX", test_tmp());
	CHECK(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/image", dir);
	snprintf(run, sizeof(run), "%s/vmap", dir);
	CHECK_EQ(setenv("COW_VMAP_DIR", run, 1), 0);
	CHECK(args && cow_args_set(args, "cluster_size", "4K") == 0);
	if (cow_image_create(&cfg, NULL, &err))
		test_skip("%s", err.msg);
	cow_args_free(args);
	for (unsigned i = 0; i < LIVES; i++) {
		uint64_t seed = test_rand();
		struct note n;
		int fds[2], status;
		pid_t pid;

		CHECK_EQ(pipe(fds), 0);
		fflush(NULL);
		pid = fork();
		CHECK(pid >= 0);
		if (pid == 0)
			child(fds[1], seed);
		close(fds[1]);
		while (read(fds[0], &n, sizeof(n)) == (ssize_t)sizeof(n)) {
			phys_of[n.cluster] = n.phys;
			shown[n.cluster] = n.reported;
		}
		close(fds[0]);
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		next_life(&late);
	}
	CHECK(late > LIVES);
	printf("%u lives, %u reports came to the next one\n", LIVES, late);
	unlink(path);
	rmdir(run);
	CHECK_EQ(rmdir(dir), 0);
	unsetenv("COW_VMAP_DIR");
}
