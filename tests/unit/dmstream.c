// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The conversation with the kernel target (dmstream.h), held with a kernel that this
 * test plays, over a socket that keeps records together. Questions, changes, what
 * was written and commits in any order and number; errors of the image; refusals by
 * the kernel cannot be played here, since a socket takes everything.
 */
#include "cowd/dmstream.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cow/log.h"
#include "io-sim.h"
#include "test.h"

#define OVER "over.dscow"
#define BASE "base.raw"
#define GRANULE 4096u
#define TURNS 20000u		/* of the loop without an answer are a hang */

struct rig {
	struct cow_sim *sim;
	struct cow_loop *loop;
	struct cow_dev *dev;
	struct mapreq map;
	struct dmstream *s;
	int fd;			/* the kernel's end */
	pthread_t ear;		/* takes what the daemon says: a socket holds little, the kernel anything */
	pthread_mutex_t lock;
	struct heard *first, **last;
	unsigned infos, gone, grown;
	int gone_error;
	uint32_t info_devices;
};

static struct rig rig;

struct heard {
	struct heard *next;
	ssize_t size;
	uint8_t bytes[];
};

/* One answer of the daemon, room for the longest. */
static union {
	struct dmu_head head;
	struct dmu_hello hello;
	struct dmu_section section;
	struct dmu_blocks blocks;
	struct dmu_data data;
	struct dmu_result result;
	struct dmu_range range;
	uint8_t bytes[DMU_RECORD_MAX];
} got;

static void on_info(void *opaque, const struct dmu_info *info, const struct dmu_device *devices)
{
	(void)opaque;
	(void)devices;
	rig.infos++;
	rig.info_devices = info->devices;
}

static void on_gone(void *opaque, int error)
{
	(void)opaque;
	rig.gone++;
	rig.gone_error = error;
}

static void stop_loop(void *opaque, uint32_t events)
{
	(void)events;
	cow_loop_stop(opaque, 0);
}

/* One turn of the loop. */
static void turn(void)
{
	struct cow_source *t = cow_loop_timer(rig.loop, 1, false, stop_loop, rig.loop);

	CHECK(t);
	cow_loop_run(rig.loop);
	cow_source_free(t);
	/* The simulator has nothing that a loop could watch. */
	while (cow_chain_poll(cow_dev_chain(rig.dev), false))
		;
}

static void *listen_always(void *arg)
{
	static uint8_t buf[DMU_RECORD_MAX];
	struct pollfd p = { .fd = rig.fd, .events = POLLIN };
	ssize_t n;

	(void)arg;
	while (poll(&p, 1, -1) > 0 && (n = recv(rig.fd, buf, sizeof(buf), 0)) > 0) {
		struct heard *h = malloc(sizeof(*h) + (size_t)n);

		if (!h)
			abort();
		h->next = NULL;
		h->size = n;
		memcpy(h->bytes, buf, (size_t)n);
		pthread_mutex_lock(&rig.lock);
		*rig.last = h;
		rig.last = &h->next;
		pthread_mutex_unlock(&rig.lock);
	}
	return NULL;
}

static const char *cluster_size;	/* of qcow2; NULL: the default */

static void make_chain(const char *format, uint64_t base_size, uint64_t size)
{
	static uint8_t buf[COW_KIB(64)];
	struct cow_args *args = cluster_size ? cow_args_new() : NULL;
	struct cow_create_cfg cfg = {
		.format = format, .path = OVER, .size = size, .args = args, .backing = BASE,
		.backing_format = "raw", .io = &cow_io_sim_ops, .io_arg = rig.sim,
	};
	struct cow_err err = { 0 };

	if (cluster_size)
		CHECK(args && cow_args_set(args, "cluster_size", cluster_size) == 0);
	CHECK_EQ(cow_sim_add(rig.sim, BASE, base_size, false), 0);
	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = (uint8_t)test_rand();
	CHECK_EQ(cow_sim_write(rig.sim, BASE, buf, cow_min(base_size, sizeof(buf)), 0), 0);
	CHECK_EQ(cow_sim_write(rig.sim, BASE, buf, 1000, base_size - 1000), 0);
	if (cow_image_create(&cfg, NULL, &err))
		FAIL("%s", err.msg);
	cow_args_free(args);
}

static int on_grow(void *opaque, uint64_t size)
{
	(void)opaque;
	rig.map.size[0] = size;
	rig.grown++;
	return 0;
}

static void rig_start_as(const char *format, uint64_t base_size, uint64_t size, uint32_t flags)
{
	struct dmstream_cfg cfg = { .map = &rig.map, .info = on_info, .grow = on_grow, .gone = on_gone };
	struct cow_chain_cfg chain = {
		.format = format, .path = OVER, .flags = flags, .io = &cow_io_sim_ops,
	};
	struct cow_dev_cfg dev = { .name = "unit" };
	struct mapreq_file files[2] = { { .unit = 512 }, { .dev = 1, .unit = 512 } };
	struct cow_err err = { 0 };
	struct cow_chain *c;
	int fds[2];

	memset(&rig, 0, sizeof(rig));
	rig.sim = cow_sim_new(test_rand());
	CHECK(rig.sim);
	make_chain(format, base_size, size);
	chain.io_arg = rig.sim;
	if (cow_chain_open(&chain, &c, &err))
		FAIL("%s", err.msg);
	rig.loop = cow_loop_new();
	CHECK(rig.loop);
	CHECK_EQ(cow_dev_new(rig.loop, c, &dev, &rig.dev), 0);
	files[0].size = cow_round_down(cow_sim_size(rig.sim, OVER), 512);
	files[1].size = cow_round_down(base_size, 512);
	if (mapreq_init(&rig.map, c, files, &err))
		FAIL("%s", err.msg);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
	rig.fd = fds[0];
	rig.last = &rig.first;
	CHECK_EQ(pthread_mutex_init(&rig.lock, NULL), 0);
	CHECK_EQ(pthread_create(&rig.ear, NULL, listen_always, NULL), 0);
	cfg.loop = rig.loop;
	cfg.dev = rig.dev;
	CHECK_EQ(dmstream_new(&cfg, fds[1], &rig.s), 0);
}

static void rig_start(uint64_t base_size, uint64_t size, uint32_t flags)
{
	rig_start_as("dscow", base_size, size, flags);
}

static void rig_end(void)
{
	dmstream_free(rig.s);
	CHECK_EQ(pthread_join(rig.ear, NULL), 0);
	close(rig.fd);
	while (rig.first) {
		struct heard *h = rig.first;

		rig.first = h->next;
		free(h);
	}
	/* A failing flush is the business of some cases. */
	cow_dev_free(rig.dev);
	cow_loop_free(rig.loop);
	cow_sim_free(rig.sim);
}

/* ---- the kernel's side ---- */

static void say(const void *rec, size_t size)
{
	struct pollfd p = { .fd = rig.fd, .events = POLLOUT };

	while (send(rig.fd, rec, size, 0) < 0) {
		CHECK_EQ(errno, EAGAIN);
		turn();
		poll(&p, 1, 1);
	}
}

static bool hear_now(void)
{
	struct heard *h;

	pthread_mutex_lock(&rig.lock);
	h = rig.first;
	if (h)
		rig.first = h->next;
	if (h && !rig.first)
		rig.last = &rig.first;
	pthread_mutex_unlock(&rig.lock);
	if (!h)
		return false;
	CHECK(h->size >= (ssize_t)sizeof(struct dmu_head) && h->size <= (ssize_t)sizeof(got));
	memcpy(&got, h->bytes, (size_t)h->size);
	CHECK_EQ(got.head.size, h->size);
	free(h);
	return true;
}

static void hear(uint32_t type, uint64_t id)
{
	unsigned turns = 0;

	while (!hear_now()) {
		turn();
		CHECK(++turns < TURNS);
	}
	CHECK_EQ(got.head.type, type);
	CHECK_EQ(got.head.id, id);
}

static void hear_nothing(void)
{
	for (unsigned i = 0; i < 5; i++)
		turn();
	CHECK(!hear_now());
}

static struct dmu_ask ask_of(uint32_t type, uint64_t id, uint32_t op, uint64_t start, uint32_t n)
{
	return (struct dmu_ask){
		.head = { .type = type, .size = sizeof(struct dmu_ask), .id = id }, .op = op,
		.start = start, .sectors = n, .at = start, .need = n,
	};
}

static void say_ask(uint32_t type, uint64_t id, uint32_t op, uint64_t start, uint32_t n)
{
	struct dmu_ask a = ask_of(type, id, op, start, n);

	say(&a, sizeof(a));
}

static void say_commit(uint64_t id)
{
	struct dmu_commit c = { .head = { .type = DMU_COMMIT, .size = sizeof(c), .id = id } };

	say(&c, sizeof(c));
}

/* Granules of the device, @n from @first on, those of them that are in @pattern (mod 64). */
static size_t written_of(void *buf, uint64_t id, uint64_t first, uint32_t n, uint64_t pattern)
{
	struct dmu_written *w = buf;
	uint64_t *bits = (uint64_t *)(w + 1);
	uint32_t words = (n + 63) / 64;

	CHECK_EQ(first % 64, 0);
	memset(w, 0, sizeof(*w) + words * 8);
	*w = (struct dmu_written){
		.head = { .type = DMU_WRITTEN, .size = (uint32_t)(sizeof(*w) + words * 8), .id = id },
		.start = first * 8, .sectors = n * 8, .granule_shift = 3,
	};
	for (uint32_t i = 0; i < n; i++)
		if (pattern >> i % 64 & 1)
			bits[i / 64] |= htole64(1ull << i % 64);
	return w->head.size;
}

static void say_written(uint64_t id, uint64_t first, uint32_t n, uint64_t pattern)
{
	static uint64_t buf[256];

	say(buf, written_of(buf, id, first, n, pattern));
}

static bool present(uint64_t granule)
{
	struct cow_extent e;

	CHECK_EQ(cow_chain_layer_extent(cow_dev_chain(rig.dev), 0, granule * GRANULE, GRANULE, &e), 0);
	return e.kind == COW_DATA;
}

/* ---- cases ---- */

TEST(hello)
{
	struct {
		struct dmu_info info;
		struct dmu_device dev[2];
	} rec = { .info = { .head = { .type = DMU_INFO, .size = sizeof(rec), .id = 1 },
			    .abi = DMU_ABI, .devices = 2 } };

	rig_start(COW_MIB(1), 0, COW_OPEN_WRITE);
	CHECK_EQ(dmstream_hello(rig.s, "some-name"), 0);
	hear(DMU_HELLO, 1);
	CHECK_EQ(got.hello.abi, DMU_ABI);
	CHECK_EQ(got.hello.features, DMU_F_SECTIONS | DMU_F_CHANGES | DMU_F_PLACES);
	CHECK_STR(got.hello.key, "some-name");
	CHECK_EQ(got.hello.pad, 0);
	say(&rec, sizeof(rec));
	while (!rig.infos)
		turn();
	CHECK_EQ(rig.info_devices, 2);
	/* A record that says more devices than it has ends it. */
	rec.info.devices = 3;
	say(&rec, sizeof(rec));
	while (!rig.gone)
		turn();
	CHECK_EQ(rig.infos, 1);
	CHECK_EQ(rig.gone_error, -EPROTO);
	rig_end();
}

TEST(questions)
{
	rig_start(COW_MIB(40), 0, COW_OPEN_WRITE);
	say_ask(DMU_ASK, 7, DMU_OP_READ, 16, 8);
	hear(DMU_SECTION, 7);
	CHECK_EQ(got.section.start, 0);
	CHECK_EQ(got.section.planes, 2);
	CHECK_EQ(got.section.flags, DMU_SECTION_WRITE);
	say_ask(DMU_ASK, 8, DMU_OP_WRITE, DMU_SECTION_SECTORS + 128, 128);
	hear(DMU_SECTION, 8);
	CHECK_EQ(got.section.start, DMU_SECTION_SECTORS);
	CHECK_EQ(got.section.sectors, COW_MIB(8) / 512);
	/* Behind the end: an error, not silence. */
	cow_log_set_level(COW_LOG_ERR - 1);
	say_ask(DMU_ASK, 9, DMU_OP_READ, 2 * DMU_SECTION_SECTORS, 8);
	hear(DMU_RESULT, 9);
	CHECK_EQ(got.result.error, -EINVAL);
	rig_end();
}

TEST(read_only)
{
	rig_start(COW_MIB(1), 0, 0);
	say_ask(DMU_ASK, 1, DMU_OP_READ, 0, 8);
	hear(DMU_SECTION, 1);
	CHECK_EQ(got.section.flags, 0);
	cow_log_set_level(COW_LOG_ERR - 1);
	say_ask(DMU_ASK, 2, DMU_OP_WRITE, 0, 8);
	hear(DMU_RESULT, 2);
	CHECK_EQ(got.result.error, -EROFS);
	say_ask(DMU_CHANGE, 3, DMU_OP_DISCARD, 0, 8);
	hear(DMU_RESULT, 3);
	CHECK_EQ(got.result.error, -EROFS);
	rig_end();
}

TEST(written)
{
	rig_start(COW_MIB(2), 0, COW_OPEN_WRITE);
	say_written(5, 64, 130, 0xf0f0f0f0f0f0f0f5ull);
	hear(DMU_ACK, 5);
	for (uint64_t g = 0; g < 512; g++)
		CHECK_EQ(present(g), g >= 64 && g < 64 + 130 && 0xf0f0f0f0f0f0f0f5ull >> g % 64 & 1);
	/* What is behind the end of the device cannot be missed. */
	say_written(6, 512 - 64, 128, UINT64_MAX);
	hear(DMU_ACK, 6);
	CHECK(present(511));
	/* The worst: every second granule of a section. */
	rig_end();
	rig_start(COW_MIB(32), 0, COW_OPEN_WRITE);
	say_written(7, 0, 8192, 0x5555555555555555ull);
	hear(DMU_ACK, 7);
	CHECK(present(8190) && !present(8191));
	rig_end();
}

TEST(changes)
{
	static const uint8_t zero[8 * GRANULE];
	static uint8_t buf[8 * GRANULE];
	struct cow_chain *c;

	rig_start(COW_MIB(1), COW_MIB(2), COW_OPEN_WRITE);
	c = cow_dev_chain(rig.dev);
	say_ask(DMU_CHANGE, 1, DMU_OP_ZERO, 0, 64);
	hear(DMU_RESULT, 1);
	CHECK_EQ(got.result.error, 0);
	CHECK_EQ(cow_chain_pread(c, buf, sizeof(buf), 0), 0);
	CHECK(!memcmp(buf, zero, sizeof(buf)));
	/* Behind the base, too, the granules are there afterwards. */
	say_ask(DMU_CHANGE, 2, DMU_OP_DISCARD, COW_MIB(1) / 512, 64);
	hear(DMU_RESULT, 2);
	CHECK_EQ(got.result.error, 0);
	for (uint64_t g = 0; g < 8; g++)
		CHECK(present(g) && present(256 + g) && !present(264 + g));
	say_ask(DMU_CHANGE, 3, DMU_OP_READ, 0, 64);
	hear(DMU_RESULT, 3);
	CHECK_EQ(got.result.error, -EOPNOTSUPP);
	say_ask(DMU_CHANGE, 4, DMU_OP_ZERO, COW_MIB(2) / 512, 64);
	hear(DMU_RESULT, 4);
	CHECK_EQ(got.result.error, -EINVAL);
	rig_end();
}

/* Nothing is answered out of turn: a commit waits for what came before it, and not for what came after. */
TEST(commits)
{
	struct cow_chain_stats st;

	rig_start(COW_MIB(32), 0, COW_OPEN_WRITE);
	cow_sim_set_async(rig.sim, true);
	for (uint64_t round = 0; round < 30; round++) {
		uint64_t left = 0, id = 1 + round * 100, commit;

		for (unsigned i = 0; i < 40; i++) {
			uint64_t first = test_rand_below(100) * 64;

			left |= 1ull << i;
			if (test_rand_below(4))
				say_written(id + i, first, 64, test_rand() | 1);
			else
				say_ask(DMU_CHANGE, id + i, DMU_OP_ZERO, first * 8, 512);
		}
		commit = id + 40;
		say_commit(commit);
		say_written(id + 41, 0, 64, 1);
		left |= 3ull << 40;
		while (left) {
			unsigned turns = 0;

			while (!hear_now()) {
				turn();
				CHECK(++turns < TURNS);
			}
			CHECK(got.head.id >= id && got.head.id <= id + 41);
			CHECK(left >> (got.head.id - id) & 1);
			left &= ~(1ull << (got.head.id - id));
			if (got.head.id == commit)
				CHECK_EQ(left & ((1ull << 40) - 1), 0);
			if (got.head.type == DMU_RESULT)
				CHECK_EQ(got.result.error, 0);
		}
	}
	cow_chain_get_stats(cow_dev_chain(rig.dev), &st);
	CHECK(st.meta_syncs > 0);
	cow_sim_set_async(rig.sim, false);
	rig_end();
}

/* More than there is room for: nothing is lost, nothing answered twice. */
TEST(flood)
{
	enum { N = 3000 };
	static uint8_t answered[N + 1];
	unsigned left = N, next = 1, turns = 0;

	memset(answered, 0, sizeof(answered));
	rig_start(COW_MIB(64), 0, COW_OPEN_WRITE);
	cow_sim_set_async(rig.sim, true);
	while (left) {
		while (next <= N) {
			static uint64_t buf[256];
			struct dmu_ask a = ask_of(next % 3 ? DMU_CHANGE : DMU_ASK, next, next % 3 ?
						  DMU_OP_ZERO : DMU_OP_READ, next % 7 * 4096, 64);
			size_t size = sizeof(a);

			memcpy(buf, &a, size);
			if (next % 5 == 0)
				size = written_of(buf, next, next % 200 * 64, 64, UINT64_MAX);
			if (send(rig.fd, buf, size, 0) < 0)
				break;
			next++;
		}
		while (hear_now()) {
			CHECK(got.head.id >= 1 && got.head.id <= N);
			CHECK(!answered[got.head.id]);
			answered[got.head.id] = 1;
			left--;
		}
		turn();
		CHECK(++turns < TURNS);
	}
	cow_sim_set_async(rig.sim, false);
	rig_end();
}

/* A base that ends within a sector: the granule there is copied up before it is told, once. */
TEST(ragged)
{
	struct dmstream_stats st;

	for (int async = 0; async < 2; async++) {
		rig_start(COW_MIB(1) + 1000, COW_MIB(2), COW_OPEN_WRITE);
		cow_sim_set_async(rig.sim, async);
		say_ask(DMU_ASK, 1, DMU_OP_READ, 0, 8);
		say_ask(DMU_ASK, 2, DMU_OP_WRITE, 64, 8);
		hear(DMU_SECTION, 1);
		hear(DMU_SECTION, 2);
		CHECK(present(256) && !present(255));
		dmstream_get_stats(rig.s, &st);
		CHECK_EQ(st.ragged, 1);
		cow_sim_set_async(rig.sim, false);
		rig_end();
	}
}

TEST(ragged_fails)
{
	struct cow_sim_fault f = { .nth = 1, .error = -EIO, .persistent = true,
				   .ops = 1u << COW_IO_WRITE };

	cow_log_set_level(COW_LOG_ERR - 1);
	rig_start(COW_MIB(1) + 1000, COW_MIB(2), COW_OPEN_WRITE);
	cow_sim_set_fault(rig.sim, &f);
	say_ask(DMU_ASK, 1, DMU_OP_READ, 0, 8);
	hear(DMU_RESULT, 1);
	CHECK_EQ(got.result.error, -EIO);
	cow_sim_set_fault(rig.sim, NULL);
	say_ask(DMU_ASK, 2, DMU_OP_READ, 0, 8);
	hear(DMU_SECTION, 2);
	rig_end();
}

/* What cannot be recorded is not acknowledged, and no commit succeeds any more. */
TEST(not_recorded)
{
	struct cow_sim_fault f = { .nth = 1, .error = -EIO, .ops = 1u << COW_IO_SYNC };

	cow_log_set_level(COW_LOG_ERR - 1);
	rig_start(COW_MIB(1), 0, COW_OPEN_WRITE);
	say_written(1, 0, 64, 1);
	hear(DMU_ACK, 1);
	cow_sim_set_fault(rig.sim, &f);
	say_commit(2);
	hear(DMU_RESULT, 2);
	CHECK_EQ(got.result.error, -EIO);
	cow_sim_set_fault(rig.sim, NULL);
	say_written(3, 64, 64, 1);
	say_commit(4);
	hear(DMU_RESULT, 4);
	CHECK(got.result.error < 0);
	/* Nothing new is to be made; reading goes on. */
	say_ask(DMU_ASK, 5, DMU_OP_WRITE, 0, 8);
	hear(DMU_RESULT, 5);
	CHECK_EQ(got.result.error, -EIO);
	say_ask(DMU_ASK, 6, DMU_OP_READ, 0, 8);
	hear(DMU_SECTION, 6);
	CHECK_EQ(got.section.flags, 0);
	rig_end();
}

static unsigned held;

static void on_held(void *opaque)
{
	(void)opaque;
	held++;
}

TEST(hold)
{
	struct dmu_head revoked = { .type = DMU_REVOKED, .size = sizeof(revoked) };

	held = 0;
	rig_start(COW_MIB(100), 0, COW_OPEN_WRITE);
	CHECK_EQ(dmstream_hold(rig.s, DMU_SECTION_SECTORS + 4096, on_held, NULL), 0);
	CHECK_EQ(dmstream_hold(rig.s, 0, on_held, NULL), -EBUSY);
	hear(DMU_REVOKE, 2);
	CHECK_EQ(got.range.start, DMU_SECTION_SECTORS + 4096);
	CHECK_EQ(got.range.start + got.range.sectors, UINT64_MAX);
	/* The section in which it begins, and those behind, wait; the one before does not. */
	say_ask(DMU_ASK, 10, DMU_OP_READ, DMU_SECTION_SECTORS, 8);
	say_ask(DMU_ASK, 11, DMU_OP_READ, 2 * DMU_SECTION_SECTORS, 8);
	say_ask(DMU_ASK, 12, DMU_OP_READ, 0, 8);
	hear(DMU_SECTION, 12);
	hear_nothing();
	CHECK_EQ(held, 0);
	revoked.id = 77;
	say(&revoked, sizeof(revoked));
	hear_nothing();
	CHECK_EQ(held, 0);
	revoked.id = 2;
	say(&revoked, sizeof(revoked));
	hear_nothing();
	CHECK_EQ(held, 1);
	dmstream_release(rig.s);
	hear(DMU_SECTION, 10);
	hear(DMU_SECTION, 11);
	rig_end();
}

TEST(paused)
{
	rig_start(COW_MIB(1), 0, COW_OPEN_WRITE);
	cow_dev_pause(rig.dev, on_held, NULL);
	turn();
	/* Reports and commits wait; questions are answered, they change nothing. */
	say_written(1, 0, 64, 1);
	say_commit(2);
	say_ask(DMU_ASK, 3, DMU_OP_WRITE, 0, 8);
	hear(DMU_SECTION, 3);
	hear_nothing();
	cow_dev_resume(rig.dev);
	hear(DMU_ACK, 1);
	hear(DMU_RESULT, 2);
	rig_end();
}

/* Whatever the kernel may say one day, or says wrongly: no crash, and it ends where it makes no sense. */
TEST(nonsense)
{
	static const uint32_t types[] = {
		DMU_INFO, DMU_ASK, DMU_CHANGE, DMU_WRITTEN, DMU_COMMIT, DMU_REVOKED, DMU_LEFT,
		DMU_CHANGED, 0, 1000, UINT32_MAX,
	};

	cow_log_set_level(COW_LOG_ERR - 1);
	for (unsigned i = 0; i < 400; i++) {
		uint64_t buf[200];
		struct dmu_head *h = (struct dmu_head *)buf;
		size_t size = 8 * (1 + test_rand_below(COW_ARRAY_SIZE(buf) - 1));
		unsigned turns = 0;

		rig_start(COW_MIB(1), 0, COW_OPEN_WRITE);
		for (unsigned k = 0; k < COW_ARRAY_SIZE(buf); k++)
			buf[k] = test_rand_below(2) ? test_rand() : test_rand_below(64);
		h->type = types[test_rand_below(COW_ARRAY_SIZE(types))];
		h->size = test_rand_below(8) ? (uint32_t)size : (uint32_t)test_rand();
		say(buf, size);
		say_ask(DMU_ASK, 4242, DMU_OP_READ, 0, 8);
		while (!rig.gone) {
			turn();
			while (!rig.gone && hear_now() && got.head.id != 4242)
				;
			if (got.head.id == 4242)
				break;
			CHECK(++turns < TURNS);
		}
		got.head.id = 0;
		rig_end();
	}
}

TEST(end)
{
	rig_start(COW_MIB(1), 0, COW_OPEN_WRITE);
	shutdown(rig.fd, SHUT_WR);
	while (!rig.gone)
		turn();
	CHECK_EQ(rig.gone, 1);
	CHECK_EQ(rig.gone_error, 0);
	for (unsigned i = 0; i < 3; i++)
		turn();
	CHECK_EQ(rig.gone, 1);
	rig_end();
}

/* ---- data that lies anywhere ---- */

#define BLOCK 128u			/* sectors */
#define BLOCKS 48u

static uint64_t place[BLOCKS];		/* of each block, in sectors */

static void hear_any(void)
{
	unsigned turns = 0;

	while (!hear_now()) {
		turn();
		CHECK(++turns < TURNS);
	}
}

/* Asks for all of them at once, to write. */
static void ask_blocks(void)
{
	uint8_t seen[BLOCKS] = { 0 };

	for (uint32_t i = 0; i < BLOCKS; i++)
		say_ask(DMU_ASK, 100 + i, DMU_OP_WRITE, (uint64_t)i * BLOCK, BLOCK);
	for (uint32_t i = 0; i < BLOCKS; i++) {
		const struct dmu_blocks *b = &got.blocks;
		uint64_t n;

		hear_any();
		CHECK_EQ(b->head.type, DMU_BLOCKS);
		n = b->head.id - 100;
		CHECK(n < BLOCKS && !seen[n]++);
		CHECK_EQ(b->flags, DMU_BLOCKS_READ | DMU_BLOCKS_WRITE | DMU_BLOCKS_COPY);
		CHECK(b->dev == 0 && b->start == n * BLOCK && b->sectors == BLOCK);
		CHECK(b->from_dev == 1 && b->from == b->start);
		place[n] = b->position;
		for (uint32_t k = 0; k < BLOCKS; k++)
			CHECK(k == n || !seen[k] || place[k] != place[n]);
	}
}

/* Blocks of the first 64 whose bits are in @bits, at their places but for the @wrong first ones. */
static void say_made(uint64_t id, uint64_t bits, unsigned wrong)
{
	struct {
		struct dmu_written w;
		uint64_t bits, places[BLOCKS];
	} rec = { .bits = htole64(bits) };
	unsigned n = 0;

	for (uint32_t i = 0; i < BLOCKS; i++) {
		if (!(bits >> i & 1))
			continue;
		rec.places[n] = place[i] + (n < wrong ? (uint64_t)BLOCK << 20 : 0);
		n++;
	}
	rec.w = (struct dmu_written){
		.head = { .type = DMU_WRITTEN, .size = (uint32_t)offsetof(__typeof__(rec), places) + n * 8,
			  .id = id },
		.sectors = BLOCKS * BLOCK, .granule_shift = 7,
	};
	say(&rec, rec.w.head.size);
}

static bool block_is(uint32_t i, uint8_t byte, uint32_t sectors)
{
	static uint8_t got_bytes[BLOCK * 512], want[BLOCK * 512];

	memset(want, byte, sizeof(want));
	CHECK_EQ(cow_chain_pread(cow_dev_chain(rig.dev), got_bytes, sectors * 512, (uint64_t)i * BLOCK * 512), 0);
	return !memcmp(got_bytes, want, sectors * 512);
}

/* The kernel completes a block. */
static void make_block(uint32_t i, uint8_t byte)
{
	static uint8_t bytes[BLOCK * 512];

	memset(bytes, byte, sizeof(bytes));
	cow_sim_write_other(rig.sim, OVER, bytes, sizeof(bytes), place[i] * 512);
}

/* More questions at once than there are places for what they need. */
TEST(blocks)
{
	struct dmstream_stats before, st;
	uint8_t bytes[24 * 512];

	rig_start_as("qcow2", COW_MIB(4) + 1000, COW_MIB(8), COW_OPEN_WRITE);
	CHECK(rig.map.blocks);
	say_ask(DMU_ASK, 1, DMU_OP_READ, 0, BLOCK);
	hear(DMU_BLOCKS, 1);
	CHECK(got.blocks.dev == 1 && got.blocks.position == 0 && got.blocks.flags == DMU_BLOCKS_READ);
	/* The block in which the base ends is in two pieces. */
	say_ask(DMU_ASK, 2, DMU_OP_READ, COW_MIB(4) / 512, BLOCK);
	hear(DMU_DATA, 2);
	CHECK(got.data.start == COW_MIB(4) / 512 && got.data.sectors == 24);
	CHECK_EQ(cow_chain_pread(cow_dev_chain(rig.dev), bytes, sizeof(bytes), COW_MIB(4)), 0);
	CHECK(!memcmp(bytes, got.bytes + sizeof(got.data), sizeof(bytes)));
	ask_blocks();
	/* To write to that one, the daemon makes it, once; behind the base there is nothing to copy. */
	dmstream_get_stats(rig.s, &before);
	cow_sim_set_async(rig.sim, true);
	say_ask(DMU_ASK, 3, DMU_OP_WRITE, COW_MIB(4) / 512, 2 * BLOCK);
	say_ask(DMU_ASK, 7, DMU_OP_WRITE, COW_MIB(4) / 512, BLOCK);
	for (unsigned i = 0; i < 2; i++) {
		hear_any();
		CHECK_EQ(got.head.type, DMU_BLOCKS);
		CHECK_EQ(got.blocks.flags, DMU_BLOCKS_READ | DMU_BLOCKS_WRITE | DMU_BLOCKS_CHANGED);
		CHECK_EQ(got.blocks.sectors, BLOCK);
	}
	cow_sim_set_async(rig.sim, false);
	dmstream_get_stats(rig.s, &st);
	CHECK_EQ(st.made, before.made + 1);
	say_ask(DMU_ASK, 4, DMU_OP_WRITE, COW_MIB(4) / 512 + BLOCK, 2 * BLOCK);
	hear(DMU_BLOCKS, 4);
	CHECK_EQ(got.blocks.flags, DMU_BLOCKS_READ | DMU_BLOCKS_WRITE | DMU_BLOCKS_COPY);
	CHECK(got.blocks.sectors >= BLOCK && got.blocks.from_dev == DMU_DEV_ZERO && !got.blocks.from);
	say_ask(DMU_CHANGE, 5, DMU_OP_ZERO, 8, 8);
	hear(DMU_RESULT, 5);
	CHECK_EQ(got.result.error, 0);
	say_commit(6);
	hear(DMU_RESULT, 6);
	CHECK_EQ(got.result.error, 0);
	dmstream_get_stats(rig.s, &st);
	CHECK(st.sent == 1 && rig.grown);
	rig_end();
}

/* Shown when they are reported, not before; and where the kernel says they are. */
TEST(blocks_written)
{
	const uint64_t all = (1ull << BLOCKS) - 1, odd = 0xaaaaaaaaaaaaull;

	rig_start_as("qcow2", COW_MIB(4), COW_MIB(8), COW_OPEN_WRITE);
	ask_blocks();
	for (uint32_t i = 0; i < BLOCKS; i++) {
		make_block(i, (uint8_t)(i + 1));
		CHECK(!block_is(i, (uint8_t)(i + 1), BLOCK));
	}
	say_made(1, odd, 0);
	hear(DMU_ACK, 1);
	for (uint32_t i = 0; i < BLOCKS; i++)
		CHECK_EQ(block_is(i, (uint8_t)(i + 1), BLOCK), odd >> i & 1);
	/* Asked once more, what is not shown yet has the same place. */
	say_ask(DMU_ASK, 2, DMU_OP_WRITE, 0, BLOCK);
	hear(DMU_BLOCKS, 2);
	CHECK(got.blocks.flags & DMU_BLOCKS_COPY && got.blocks.position == place[0]);
	say_ask(DMU_ASK, 3, DMU_OP_WRITE, BLOCK, BLOCK);
	hear(DMU_BLOCKS, 3);
	CHECK(!(got.blocks.flags & DMU_BLOCKS_COPY) && got.blocks.position == place[1]);
	/* What was reported before a change is recorded before it, however many pieces that takes. */
	cow_sim_set_async(rig.sim, true);
	say_made(4, all, 0);
	say_ask(DMU_CHANGE, 5, DMU_OP_ZERO, 46 * BLOCK, BLOCK / 2);
	say_commit(6);
	hear(DMU_ACK, 4);
	hear(DMU_RESULT, 5);
	CHECK_EQ(got.result.error, 0);
	hear(DMU_RESULT, 6);
	CHECK_EQ(got.result.error, 0);
	cow_sim_set_async(rig.sim, false);
	for (uint32_t i = 0; i < BLOCKS; i++)
		CHECK(block_is(i, i == 46 ? 0 : (uint8_t)(i + 1), i == 46 ? BLOCK / 2 : BLOCK));
	CHECK(!block_is(46, 0, BLOCK));
	rig_end();
}

/* Two blocks of different tables, of which the second is to be zeroed in part afterwards. */
static void change_one_that_is_reported(void)
{
	const uint32_t block[2] = { 500, 520 };
	struct {
		struct dmu_written w;
		uint64_t bits[2], places[2];
	} rec = { .bits = { htole64(1ull << (500 - 448)), htole64(1ull << (520 - 512)) } };
	static uint8_t bytes[GRANULE], want[GRANULE];
	struct cow_chain *c = cow_dev_chain(rig.dev);

	memset(bytes, 0x77, sizeof(bytes));
	for (unsigned i = 0; i < 2; i++) {
		say_ask(DMU_ASK, 1, DMU_OP_WRITE, block[i] * 8, 8);
		hear(DMU_BLOCKS, 1);
		CHECK(got.blocks.flags & DMU_BLOCKS_COPY);
		rec.places[i] = got.blocks.position;
		cow_sim_write_other(rig.sim, OVER, bytes, sizeof(bytes), rec.places[i] * 512);
	}
	rec.w = (struct dmu_written){
		.head = { .type = DMU_WRITTEN, .size = sizeof(rec), .id = 2 },
		.start = 448 * 8, .sectors = 128 * 8, .granule_shift = 3,
	};
	/* Both tables have to be read. */
	CHECK_EQ(cow_chain_flush(c), 0);
	cow_img_drop_cache(cow_chain_image(c, 0));
	cow_sim_set_async(rig.sim, true);
	say(&rec, sizeof(rec));
	say_ask(DMU_CHANGE, 3, DMU_OP_ZERO, block[1] * 8, 4);
	hear(DMU_ACK, 2);
	hear(DMU_RESULT, 3);
	CHECK_EQ(got.result.error, 0);
	cow_sim_set_async(rig.sim, false);
	memcpy(want, bytes, sizeof(want));
	CHECK_EQ(cow_chain_pread(c, bytes, sizeof(bytes), block[0] * GRANULE), 0);
	CHECK(!memcmp(bytes, want, sizeof(want)));
	memset(want, 0, 4 * 512);
	CHECK_EQ(cow_chain_pread(c, bytes, sizeof(bytes), block[1] * GRANULE), 0);
	CHECK(!memcmp(bytes, want, sizeof(want)));
}

TEST(blocks_changed_after_written)
{
	cluster_size = "4K";
	for (unsigned i = 0; i < 12; i++) {
		rig_start_as("qcow2", COW_MIB(4), COW_MIB(8), COW_OPEN_WRITE);
		change_one_that_is_reported();
		rig_end();
	}
	cluster_size = NULL;
}

/* What cannot be true is not recorded, and no commit says that it was. */
TEST(blocks_written_elsewhere)
{
	for (unsigned bad = 0; bad < 3; bad++) {
		cow_log_set_level((enum cow_log_level)0);
		rig_start_as("qcow2", COW_MIB(4), COW_MIB(8), COW_OPEN_WRITE);
		ask_blocks();
		if (bad == 1)
			place[0] = 0;		/* the header */
		if (bad == 2)
			place[0] |= 1ull << DMU_PLACE_DEV_SHIFT;
		say_made(1, 1, bad == 0);
		say_commit(2);
		hear(DMU_RESULT, 2);
		CHECK(got.result.error < 0);
		rig_end();
	}
}
