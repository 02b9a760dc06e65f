// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The Xen front end (cowd/fe-xen.c) with a xenstore, grants and event channels played
 * here: the handshake, everything a frontend can write instead of it, ends of all kinds,
 * and random transitions by the thousand.
 */
#include "cowd/fe.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cow/log.h"
#include "cowd/xen-conn.h"
#include "io-sim.h"
#include "test.h"

#define DISK "disk.raw"
#define SIZE COW_MIB(1)
#define NODES 256
#define PAGES 64u		/* references 1 ... 63 */
#define DOMAIN 7
#define DEV 51712
#define BACK "/local/domain/0/backend/vbd/7/51712"
#define BACK_OWN "/local/domain/0/backend/dmu/7/51712"
#define FRONT "/local/domain/7/device/vbd/51712"
#define TURNS 200

static struct {
	struct {
		char path[XEN_PATH_MAX + 32], value[512];
	} node[NODES];
	unsigned events;		/* of watches, not taken yet */
	unsigned watches, opened, mapped, bound;
	int store_fd, event_fd;
	bool pending[64];
	bool bind_fails;
	bool promise;			/* of persistent grants */
	bool vanishes;			/* the backend's folder, before the next change */
	uint8_t *pages;
	struct cow_sim *sim;
	struct cow_loop *loop;
	struct cow_dev *dev;
	struct fe *fe;
	const char *back;
	bool ready, gone, stopped;
	int stop_rc;
} t;

/* ---- xenstore ---- */

static void poke(int fd)
{
	uint64_t one = 1;

	CHECK(write(fd, &one, sizeof(one)) == sizeof(one));
}

static void calm(int fd)
{
	uint64_t n;

	if (read(fd, &n, sizeof(n)) < 0)
		CHECK_EQ(errno, EAGAIN);
}

static int find(const char *path)
{
	for (int i = 0; i < NODES; i++)
		if (!strcmp(t.node[i].path, path))
			return i;
	return -1;
}

static void put(const char *path, const char *value)
{
	int i = find(path);

	if (i < 0)
		i = find("");
	CHECK(i >= 0);
	snprintf(t.node[i].path, sizeof(t.node[i].path), "%s", path);
	snprintf(t.node[i].value, sizeof(t.node[i].value), "%s", value);
	t.events++;
	poke(t.store_fd);
}

static void put_at(const char *dir, const char *key, const char *value)
{
	char path[XEN_PATH_MAX + 256];

	snprintf(path, sizeof(path), "%s/%s", dir, key);
	put(path, value);
}

static const char *value_at(const char *dir, const char *key)
{
	char path[XEN_PATH_MAX + 256];
	int i;

	snprintf(path, sizeof(path), "%s/%s", dir, key);
	i = find(path);
	return i < 0 ? NULL : t.node[i].value;
}

static int remove_tree(const char *path)
{
	size_t n = strlen(path);
	bool any = false;

	for (int i = 0; i < NODES; i++)
		if (!strncmp(t.node[i].path, path, n) && (!t.node[i].path[n] || t.node[i].path[n] == '/')) {
			t.node[i].path[0] = '\0';
			any = true;
		}
	t.events++;
	poke(t.store_fd);
	return any ? 0 : -ENOENT;
}

static int store_open(void **ret)
{
	t.opened++;
	*ret = &t;
	return 0;
}

static void store_close(void *s)
{
	(void)s;
	t.opened--;
}

static int store_fd(void *s)
{
	(void)s;
	return t.store_fd;
}

static int store_read(void *s, uint32_t tx, const char *path, char *buf, size_t size)
{
	int i = find(path);

	(void)s;
	(void)tx;
	if (i < 0)
		return -ENOENT;
	if (strlen(t.node[i].value) >= size)
		return -ERANGE;
	snprintf(buf, size, "%s", t.node[i].value);
	return 0;
}

static int store_write(void *s, uint32_t tx, const char *path, const char *value)
{
	(void)s;
	(void)tx;
	put(path, value);
	return 0;
}

static int store_remove(void *s, uint32_t tx, const char *path)
{
	(void)s;
	(void)tx;
	return remove_tree(path);
}

static int store_list(void *s, uint32_t tx, const char *path, void (*fn)(void *, const char *),
		      void *opaque)
{
	(void)s;
	(void)tx;
	(void)path;
	(void)fn;
	(void)opaque;
	return 0;
}

static int store_watch(void *s, const char *path, const char *token)
{
	(void)s;
	(void)path;
	(void)token;
	t.watches++;
	t.events++;
	poke(t.store_fd);
	return 0;
}

static int store_event(void *s)
{
	(void)s;
	if (!t.events) {
		calm(t.store_fd);
		return 0;
	}
	t.events--;
	return 1;
}

static int store_begin(void *s, uint32_t *ret)
{
	(void)s;
	if (t.vanishes)
		remove_tree(t.back);
	*ret = 1;
	return 0;
}

static int store_end(void *s, uint32_t tx, bool abort)
{
	(void)s;
	(void)tx;
	(void)abort;
	/* Somebody else was there first, now and then. */
	return !abort && test_rand_below(8) == 0 ? -EAGAIN : 0;
}

/* ---- grants and events ---- */

static int open_any(void **ret)
{
	t.opened++;
	*ret = &t;
	return 0;
}

static int open_events(uint32_t domain, void **ret)
{
	CHECK_EQ(domain, DOMAIN);
	return open_any(ret);
}

static void close_any(void *h)
{
	(void)h;
	t.opened--;
}

static int grants_map(void *g, uint32_t domain, const uint32_t *refs, unsigned n, void **ret)
{
	(void)g;
	CHECK_EQ(domain, DOMAIN);
	for (unsigned i = 0; i < n; i++)
		if (!refs[i] || refs[i] >= PAGES || refs[i] != refs[0] + i)
			return -EINVAL;
	t.mapped += n;
	*ret = t.pages + refs[0] * XEN_PAGE;
	return 0;
}

static void grants_unmap(void *g, void *mem, unsigned n)
{
	(void)g;
	CHECK(mem);
	t.mapped -= n;
}

static void grants_copy(void *g, uint32_t domain, struct xen_copy *c, unsigned n)
{
	(void)g;
	CHECK_EQ(domain, DOMAIN);
	for (unsigned i = 0; i < n; i++) {
		c[i].ok = c[i].ref && c[i].ref < PAGES;
		if (c[i].ok && c[i].to_guest)
			memcpy(t.pages + c[i].ref * XEN_PAGE + c[i].offset, c[i].ours, c[i].len);
		else if (c[i].ok)
			memcpy(c[i].ours, t.pages + c[i].ref * XEN_PAGE + c[i].offset, c[i].len);
	}
}

static int events_fd(void *e)
{
	(void)e;
	return t.event_fd;
}

static int events_bind(void *e, uint32_t domain, uint32_t port)
{
	(void)e;
	CHECK_EQ(domain, DOMAIN);
	if (t.bind_fails || !port || port >= 64)
		return -EINVAL;
	t.bound++;
	return (int)port;
}

static int events_unbind(void *e, int port)
{
	(void)e;
	CHECK(port > 0);
	t.bound--;
	return 0;
}

static int events_notify(void *e, int port)
{
	(void)e;
	CHECK(port > 0);
	return 0;
}

static int events_pending(void *e)
{
	(void)e;
	calm(t.event_fd);
	for (int i = 0; i < 64; i++)
		if (t.pending[i]) {
			t.pending[i] = false;
			return i;
		}
	return -EAGAIN;
}

static int events_unmask(void *e, int port)
{
	(void)e;
	(void)port;
	return 0;
}

static const struct xen_lib fake = {
	.store_open = store_open, .store_close = store_close, .store_fd = store_fd,
	.store_read = store_read, .store_write = store_write, .store_remove = store_remove,
	.store_list = store_list, .store_watch = store_watch, .store_event = store_event,
	.store_begin = store_begin, .store_end = store_end, .grants_open = open_any,
	.grants_close = close_any, .grants_map = grants_map, .grants_unmap = grants_unmap,
	.grants_copy = grants_copy, .events_open = open_events, .events_close = close_any,
	.events_fd = events_fd, .events_bind = events_bind, .events_unbind = events_unbind,
	.events_notify = events_notify, .events_pending = events_pending,
	.events_unmask = events_unmask,
};

/* ---- the daemon around it ---- */

static void on_ready(void *opaque, int result, const char *sentence)
{
	(void)opaque;
	if (result)
		FAIL("%s", sentence);
	t.ready = true;
}

static void on_changed(void *opaque)
{
	(void)opaque;
}

static void on_gone(void *opaque)
{
	(void)opaque;
	CHECK(!t.gone);
	t.gone = true;
}

static void on_stopped(void *opaque, int result, const char *sentence)
{
	(void)opaque;
	(void)sentence;
	t.stopped = true;
	t.stop_rc = result;
}

static void stop_loop(void *opaque, uint32_t events)
{
	(void)events;
	cow_loop_stop(opaque, 0);
}

static void turn(void)
{
	struct cow_source *timer = cow_loop_timer(t.loop, 0, false, stop_loop, t.loop);

	CHECK(timer);
	cow_loop_run(t.loop);
	cow_source_free(timer);
	while (cow_chain_poll(cow_dev_chain(t.dev), false))
		;
}

static void turns(unsigned n)
{
	while (n-- > 0)
		turn();
}

static void wait_state(int state)
{
	for (unsigned i = 0; i < TURNS; i++) {
		if (value_at(t.back, "state") && atoi(value_at(t.back, "state")) == state)
			return;
		turn();
	}
	FAIL("the backend's state is %s, not %d", value_at(t.back, "state"), state);
}

static bool silent(enum cow_log_level level, const char *message)
{
	(void)level;
	(void)message;
	return true;
}

/* What a toolstack writes. */
static void make_nodes(void)
{
	put_at(t.back, "frontend", FRONT);
	put_at(t.back, "frontend-id", "7");
	put_at(t.back, "online", "1");
	put_at(t.back, "mode", "w");
	put_at(t.back, "state", "1");
	put_at(FRONT, "backend", t.back);
	put_at(FRONT, "state", "1");
}

static void set_up(const char *back)
{
	struct cow_chain_cfg chain = { .format = "raw", .path = DISK, .flags = COW_OPEN_WRITE,
				       .io = &cow_io_sim_ops };
	struct cow_dev_cfg dev = { .name = "unit" };
	struct cow_chain *c;
	char dir[512];

	memset(&t, 0, sizeof(t));
	/* The runner has set one; this is for a test started by hand. */
	snprintf(dir, sizeof(dir), "%s/fe-xen.run", test_tmp());
	if (!getenv("COW_RUN_DIR"))
		CHECK(!mkdir(dir, 0700) || errno == EEXIST);
	setenv("COW_RUN_DIR", dir, 0);
	cow_log_hook(silent);
	xen_lib_fake = &fake;
	t.back = back;
	t.store_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	t.event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	t.pages = aligned_alloc(XEN_PAGE, PAGES * XEN_PAGE);
	t.sim = cow_sim_new(test_rand());
	t.loop = cow_loop_new();
	CHECK(t.store_fd >= 0 && t.event_fd >= 0 && t.pages && t.sim && t.loop);
	memset(t.pages, 0, PAGES * XEN_PAGE);
	CHECK_EQ(cow_sim_add(t.sim, DISK, SIZE, false), 0);
	chain.io_arg = t.sim;
	CHECK_EQ(cow_chain_open(&chain, &c, NULL), 0);
	CHECK_EQ(cow_dev_new(t.loop, c, &dev, &t.dev), 0);
	make_nodes();
}

static int try_start(struct cow_err *err)
{
	struct fe_cfg cfg = { .loop = t.loop, .dev = t.dev, .name = "unit", .left = "",
			      .xenbus = t.back, .ready = on_ready, .changed = on_changed,
			      .gone = on_gone };

	t.ready = t.gone = t.stopped = false;
	return fe_xen.start(&cfg, &t.fe, err);
}

static void start(void)
{
	struct cow_err err = { 0 };

	if (try_start(&err))
		FAIL("%s", err.msg);
	for (unsigned i = 0; i < TURNS && !t.ready; i++)
		turn();
	CHECK(t.ready);
}

static void nothing_held(void)
{
	CHECK_EQ(t.mapped, 0);
	CHECK_EQ(t.bound, 0);
	CHECK_EQ(t.opened, 0);
}

/* As a killed process does, for the kernel: nothing of it is left. */
static void die(void)
{
	fe_xen.free(t.fe);
	t.fe = NULL;
	nothing_held();
}

static void end(void)
{
	if (t.fe)
		die();
	CHECK_EQ(cow_dev_free(t.dev), 0);
	cow_loop_free(t.loop);
	cow_sim_free(t.sim);
	free(t.pages);
	close(t.store_fd);
	close(t.event_fd);
	cow_log_hook(NULL);
	xen_lib_fake = NULL;
}

/* ---- a frontend ---- */

static void rings(unsigned order, unsigned queues)
{
	char dir[XEN_PATH_MAX], key[32], text[16];
	unsigned ref = 1;

	snprintf(text, sizeof(text), "%u", order);
	if (order)
		put_at(FRONT, "ring-page-order", text);
	snprintf(text, sizeof(text), "%u", queues);
	if (queues > 1)
		put_at(FRONT, "multi-queue-num-queues", text);
	for (unsigned q = 0; q < queues; q++) {
		snprintf(dir, sizeof(dir), queues > 1 ? FRONT "/queue-%u" : FRONT, q);
		snprintf(text, sizeof(text), "%u", q + 10);
		put_at(dir, "event-channel", text);
		for (unsigned i = 0; i < 1u << order; i++) {
			snprintf(key, sizeof(key), order ? "ring-ref%u" : "ring-ref", i);
			snprintf(text, sizeof(text), "%u", ref++);
			put_at(dir, key, text);
		}
	}
	put_at(FRONT, "protocol", "x86_64-abi");
	put_at(FRONT, "feature-persistent", t.promise ? "1" : "0");
}

static void set_front(int state)
{
	char text[8];

	snprintf(text, sizeof(text), "%d", state);
	put_at(FRONT, "state", text);
}

static void connect_front(void)
{
	rings(0, 1);
	set_front(XEN_INITIALISED);
	wait_state(XEN_CONNECTED);
	set_front(XEN_CONNECTED);
	turn();
}

static uint8_t *ring_of(unsigned queue, unsigned order)
{
	return t.pages + (1 + (queue << order)) * XEN_PAGE;
}

static void write_word(uint8_t *ring, unsigned offset, uint32_t v)
{
	memcpy(ring + offset, &v, sizeof(v));
}

static uint32_t read_word(const uint8_t *ring, unsigned offset)
{
	uint32_t v;

	memcpy(&v, ring + offset, sizeof(v));
	return v;
}

/* A write of one page, 60, to the sector. */
static void ask(uint8_t *ring, uint64_t sector)
{
	uint32_t prod = read_word(ring, XEN_RING_REQ_PROD), ref = 60;
	uint8_t *e = ring + XEN_RING_ENTRIES + prod % 32 * 112;
	uint64_t id = prod;

	memset(e, 0, 112);
	e[0] = XEN_OP_WRITE;
	e[1] = 1;
	memcpy(e + 8, &id, 8);
	memcpy(e + 16, &sector, 8);
	memcpy(e + 24, &ref, 4);
	e[29] = 7;
	write_word(ring, XEN_RING_REQ_PROD, prod + 1);
}

static void fire(int port)
{
	t.pending[port] = true;
	poke(t.event_fd);
}

static void wait_answers(const uint8_t *ring, uint32_t n)
{
	for (unsigned i = 0; i < TURNS && read_word(ring, XEN_RING_RSP_PROD) != n; i++)
		turn();
	CHECK_EQ(read_word(ring, XEN_RING_RSP_PROD), n);
}

static void check_written(uint64_t sector)
{
	uint8_t buf[XEN_PAGE];

	CHECK_EQ(cow_sim_read(t.sim, DISK, buf, sizeof(buf), sector * XEN_SECTOR), 0);
	CHECK(!memcmp(buf, t.pages + 60 * XEN_PAGE, XEN_PAGE));
}

/* ---- cases ---- */

TEST(handshake_and_data)
{
	static const struct {
		unsigned order, queues;
	} shapes[] = { { 0, 1 }, { 1, 1 }, { 4, 1 }, { 0, 2 }, { 0, 4 }, { 2, 4 } };

	for (unsigned i = 0; i < COW_ARRAY_SIZE(shapes); i++) {
		set_up(BACK);
		memset(t.pages + 60 * XEN_PAGE, 0x33 + (int)i, XEN_PAGE);
		start();
		CHECK_STR(value_at(BACK, "state"), "2");
		CHECK_STR(value_at(BACK, "max-ring-page-order"), "4");
		CHECK_STR(value_at(BACK, "multi-queue-max-queues"), "4");
		CHECK_STR(value_at(BACK, "feature-discard"), "1");
		rings(shapes[i].order, shapes[i].queues);
		set_front(XEN_INITIALISED);
		wait_state(XEN_CONNECTED);
		CHECK_STR(value_at(BACK, "sectors"), "2048");
		CHECK_STR(value_at(BACK, "sector-size"), "512");
		set_front(XEN_CONNECTED);
		for (unsigned q = 0; q < shapes[i].queues; q++) {
			uint8_t *ring = ring_of(q, shapes[i].order);

			ask(ring, 8 * q);
			fire(10 + (int)q);
			wait_answers(ring, 1);
			check_written(8 * q);
		}
		CHECK_EQ(t.bound, shapes[i].queues);
		set_front(XEN_CLOSING);
		wait_state(XEN_CLOSING);
		set_front(XEN_CLOSED);
		wait_state(XEN_CLOSED);
		CHECK_EQ(t.mapped, 0);
		CHECK(!t.gone);
		end();
	}
}

/* Large sectors: only where the disk shall have them, its size is right and the frontend can. */
TEST(sectors_of_4096)
{
	static const struct {
		const char *wanted, *said, *sectors, *size;
	} rows[] = {
		{ "4096", "1", "256", "4096" },
		{ "4096", "2", "256", "4096" },
		{ "4096", "0", "2048", "512" },
		{ "4096", NULL, "2048", "512" },
		{ "512", "1", "2048", "512" },
		{ NULL, "1", "2048", "512" },
	};

	for (unsigned i = 0; i < COW_ARRAY_SIZE(rows); i++) {
		set_up(BACK);
		memset(t.pages + 60 * XEN_PAGE, 0x51 + (int)i, XEN_PAGE);
		if (rows[i].wanted)
			put_at(BACK, "logical-sector-size", rows[i].wanted);
		start();
		CHECK_STR(value_at(BACK, "sector-size"), "512");
		if (rows[i].said)
			put_at(FRONT, "feature-large-sector-size", rows[i].said);
		connect_front();
		CHECK_STR(value_at(BACK, "sectors"), rows[i].sectors);
		CHECK_STR(value_at(BACK, "sector-size"), rows[i].size);
		CHECK_STR(value_at(BACK, "physical-sector-size"), "4096");
		if (!strcmp(rows[i].size, "4096")) {
			uint8_t *ring = ring_of(0, 0);

			/* What the frontend says later is not heard, not even by the next daemon. */
			put_at(FRONT, "feature-large-sector-size", "0");
			fe_xen.leave(t.fe, on_stopped, NULL);
			turn();
			die();
			start();
			ask(ring, 3);
			ring[XEN_RING_ENTRIES + 29] = 0;	/* one sector is the page */
			fire(10);
			wait_answers(ring, 1);
			check_written(3 * 8);
			CHECK_STR(value_at(BACK, "sector-size"), "4096");
		}
		end();
	}
}

/* A disk without an image, as "cowctl xen-attach --backend=null" makes it. */
TEST(changes_are_forgotten)
{
	uint8_t *ring, zero[XEN_PAGE] = { 0 };

	set_up(BACK);
	put_at(BACK, "forget", "1");
	memset(t.pages + 60 * XEN_PAGE, 0x44, XEN_PAGE);
	start();
	connect_front();
	ring = ring_of(0, 0);
	ask(ring, 8);
	fire(10);
	wait_answers(ring, 1);
	CHECK_EQ(read_word(ring, XEN_RING_ENTRIES + 8) >> 16, XEN_RSP_OKAY);
	CHECK_EQ(cow_sim_read(t.sim, DISK, t.pages + 61 * XEN_PAGE, XEN_PAGE, 8 * XEN_SECTOR), 0);
	CHECK(!memcmp(t.pages + 61 * XEN_PAGE, zero, XEN_PAGE));
	end();
}

TEST(guest_restarts)
{
	set_up(BACK);
	start();
	for (unsigned i = 0; i < 20; i++) {
		connect_front();
		set_front(XEN_CLOSING);
		turn();
		set_front(XEN_CLOSED);
		wait_state(XEN_CLOSED);
		CHECK_EQ(t.mapped + t.bound, 0);
		memset(t.pages, 0, PAGES * XEN_PAGE);
		set_front(XEN_INITIALISING);
		wait_state(XEN_INIT_WAIT);
	}
	CHECK(!t.gone);
	end();
}

/* Pages that it promises to use again stay mapped until it closes. */
TEST(persistent_pages)
{
	uint8_t *ring;

	for (unsigned promise = 0; promise < 2; promise++) {
		set_up(BACK);
		start();
		CHECK_STR(value_at(BACK, "feature-persistent"), "1");
		t.promise = promise;
		connect_front();
		ring = ring_of(0, 0);
		for (uint32_t i = 0; i < 4; i++) {
			memset(t.pages + 60 * XEN_PAGE, 0x41 + (int)i, XEN_PAGE);
			ask(ring, 8 * i);
			fire(10);
			wait_answers(ring, i + 1);
			check_written(8 * i);
			CHECK_EQ(t.mapped, 1 + promise);
		}
		set_front(XEN_CLOSING);
		turn();
		set_front(XEN_CLOSED);
		wait_state(XEN_CLOSED);
		CHECK_EQ(t.mapped, 0);
		end();
	}
}

static void wait_gone(void)
{
	for (unsigned i = 0; i < TURNS && !t.gone; i++)
		turn();
	CHECK(t.gone);
	CHECK_EQ(t.mapped + t.bound, 0);
}

TEST(toolstack_takes_it_back)
{
	set_up(BACK);
	start();
	connect_front();
	put_at(BACK, "online", "0");
	put_at(BACK, "state", "5");
	turns(5);
	CHECK(!t.gone);
	set_front(XEN_CLOSING);
	turn();
	set_front(XEN_CLOSED);
	wait_gone();
	CHECK_STR(value_at(BACK, "state"), "6");
	/* And then it is as good as stopped. */
	fe_xen.stop(t.fe, false, on_stopped, NULL);
	CHECK(t.stopped && !t.stop_rc);
	end();
}

TEST(toolstack_takes_it_back_unused)
{
	set_up(BACK);
	start();
	put_at(BACK, "online", "0");
	put_at(BACK, "state", "5");
	wait_gone();
	CHECK_STR(value_at(BACK, "state"), "6");
	end();
}

TEST(domain_destroyed)
{
	set_up(BACK);
	start();
	connect_front();
	ask(ring_of(0, 0), 0);
	remove_tree(FRONT);
	wait_gone();
	CHECK_STR(value_at(BACK, "state"), "6");
	end();
}

TEST(folder_removed)
{
	set_up(BACK);
	start();
	connect_front();
	remove_tree(BACK);
	wait_gone();
	/* It does not come to be again. */
	turns(5);
	CHECK(!value_at(BACK, "state"));
	end();
}

TEST(folder_removed_while_we_write)
{
	set_up(BACK);
	start();
	rings(0, 1);
	t.vanishes = true;
	set_front(XEN_INITIALISED);
	wait_gone();
	CHECK(!value_at(BACK, "state") && !value_at(BACK, "sectors"));
	end();
}

TEST(own_folders_are_taken_away)
{
	set_up(BACK_OWN);
	start();
	connect_front();
	remove_tree(FRONT);
	wait_gone();
	CHECK(!value_at(BACK_OWN, "state"));
	end();
}

/* Nobody but the next daemon of the same name takes folders of our own type away. */
TEST(next_daemon_takes_own_folders_away)
{
	char kept[512];

	set_up(BACK_OWN);
	start();
	connect_front();
	die();
	remove_tree(FRONT);
	snprintf(kept, sizeof(kept), "%s/unit.ring", getenv("COW_RUN_DIR"));
	CHECK_EQ(access(kept, F_OK), 0);
	start();
	wait_gone();
	CHECK(!value_at(BACK_OWN, "state"));
	CHECK_EQ(access(kept, F_OK), -1);
	end();

	/* The disk was taken back while no daemon was there to hear it, and the guest still has it. */
	set_up(BACK_OWN);
	start();
	connect_front();
	die();
	put_at(BACK_OWN, "online", "0");
	put_at(BACK_OWN, "state", "5");
	start();
	turns(3);
	CHECK(!t.gone);
	set_front(XEN_CLOSING);
	turn();
	set_front(XEN_CLOSED);
	wait_gone();
	CHECK(!value_at(BACK_OWN, "state"));
	end();
}

TEST(bad_parameters)
{
	static const struct {
		const char *key, *value;
	} bad[] = {
		{ "ring-page-order", "5" }, { "ring-page-order", "9" }, { "ring-page-order", "17" },
		{ "ring-page-order", "-1" }, { "ring-page-order", "" }, { "ring-page-order", "1" },
		{ "ring-page-order", "4294967296" }, { "ring-page-order", "0x1" },
		{ "multi-queue-num-queues", "0" }, { "multi-queue-num-queues", "5" },
		{ "multi-queue-num-queues", "1025" }, { "multi-queue-num-queues", "2" },
		{ "multi-queue-num-queues", "99999999999999999999999" },
		{ "feature-persistent", "2" }, { "feature-persistent", "yes" },
		{ "feature-large-sector-size", "yes" }, { "feature-large-sector-size", "-1" },
		{ "protocol", "x86_65-abi" }, { "protocol", "" }, { "protocol", "x86_64-abi " },
		{ "protocol", "a very long name of a protocol that is longer than any buffer for one" },
		{ "ring-ref", "" }, { "ring-ref", "0" }, { "ring-ref", "1 " }, { "ring-ref", "01" },
		{ "ring-ref", "4294967296" }, { "ring-ref", "4294967295" }, { "ring-ref", "one" },
		{ "event-channel", "0" }, { "event-channel", "-3" }, { "event-channel", "77" },
		{ "event-channel", "18446744073709551617" }, { "event-channel", "10\n" },
	};

	for (unsigned i = 0; i < COW_ARRAY_SIZE(bad); i++) {
		set_up(BACK);
		start();
		rings(0, 1);
		put_at(FRONT, bad[i].key, bad[i].value);
		set_front(XEN_INITIALISED);
		wait_state(XEN_CLOSING);
		CHECK_EQ(t.mapped + t.bound, 0);
		/* Not tried again and again ... */
		set_front(XEN_CONNECTED);
		turns(3);
		CHECK_STR(value_at(BACK, "state"), "5");
		/* ... but from the beginning. */
		set_front(XEN_CLOSED);
		wait_state(XEN_CLOSED);
		set_front(XEN_INITIALISING);
		wait_state(XEN_INIT_WAIT);
		remove_tree(FRONT "/multi-queue-num-queues");
		remove_tree(FRONT "/ring-page-order");
		remove_tree(FRONT "/feature-large-sector-size");
		connect_front();
		end();
	}
}

TEST(event_channel_of_another)
{
	set_up(BACK);
	start();
	t.bind_fails = true;
	rings(0, 1);
	set_front(XEN_INITIALISED);
	wait_state(XEN_CLOSING);
	CHECK_EQ(t.mapped + t.bound, 0);
	end();
}

TEST(nonsense_states)
{
	static const char *const text[] = { "", "x", "-1", "9", "4 ", "04", "4294967300", "\n",
					    "44444444444444444444444444444444444444444444444" };

	set_up(BACK);
	start();
	connect_front();
	for (unsigned i = 0; i < COW_ARRAY_SIZE(text); i++) {
		put_at(FRONT, "state", text[i]);
		turns(2);
		CHECK_STR(value_at(BACK, "state"), "4");
		CHECK_EQ(t.bound, 1);
	}
	/* Of the ring that is connected nobody asks where it is. */
	put_at(FRONT, "ring-ref", "3");
	put_at(FRONT, "event-channel", "11");
	set_front(XEN_CONNECTED);
	ask(ring_of(0, 0), 16);
	fire(10);
	wait_answers(ring_of(0, 0), 1);
	end();
}

TEST(stopped_by_the_administrator)
{
	set_up(BACK);
	start();
	fe_xen.stop(t.fe, false, on_stopped, NULL);
	for (unsigned i = 0; i < TURNS && !t.stopped; i++)
		turn();
	CHECK(t.stopped && !t.stop_rc);
	CHECK_STR(value_at(BACK, "state"), "6");
	CHECK(!t.gone);
	end();

	set_up(BACK);
	start();
	connect_front();
	fe_xen.stop(t.fe, false, on_stopped, NULL);
	CHECK(t.stopped);
	CHECK_EQ(t.stop_rc, -EBUSY);
	CHECK_STR(value_at(BACK, "state"), "4");
	t.stopped = false;
	fe_xen.stop(t.fe, true, on_stopped, NULL);
	turns(3);
	CHECK_STR(value_at(BACK, "state"), "5");
	CHECK(!t.stopped);
	set_front(XEN_CLOSING);
	turn();
	set_front(XEN_CLOSED);
	for (unsigned i = 0; i < TURNS && !t.stopped; i++)
		turn();
	CHECK(t.stopped && !t.stop_rc);
	CHECK_STR(value_at(BACK, "state"), "6");
	end();
}

TEST(next_daemon_goes_on)
{
	uint8_t *ring;

	set_up(BACK);
	memset(t.pages + 60 * XEN_PAGE, 0x77, XEN_PAGE);
	start();
	connect_front();
	ring = ring_of(0, 0);
	for (unsigned i = 0; i < 5; i++) {
		ask(ring, 8 * i);
		fire(10);
		wait_answers(ring, i + 1);
		fe_xen.leave(t.fe, on_stopped, NULL);
		CHECK(t.stopped);
		turn();
		die();
		CHECK_STR(value_at(BACK, "state"), "4");
		start();
	}
	for (unsigned i = 0; i < 5; i++)
		check_written(8 * i);
	/* What was asked meanwhile is answered without being told of. */
	fe_xen.leave(t.fe, on_stopped, NULL);
	turn();
	die();
	ask(ring, 80);
	start();
	wait_answers(ring, 6);
	check_written(80);
	end();
}

TEST(what_was_in_hand_is_not_known)
{
	struct cow_err err = { 0 };
	char path[512];

	set_up(BACK);
	start();
	connect_front();
	fe_xen.leave(t.fe, on_stopped, NULL);
	turn();
	die();
	ask(ring_of(0, 0), 0);
	snprintf(path, sizeof(path), "%s/unit.ring", getenv("COW_RUN_DIR"));
	CHECK_EQ(unlink(path), 0);
	CHECK_EQ(try_start(&err), -ESTALE);
	CHECK(err.msg[0]);
	nothing_held();
	/* An idle ring holds no secrets. */
	write_word(ring_of(0, 0), XEN_RING_REQ_PROD, 0);
	start();
	ask(ring_of(0, 0), 0);
	fire(10);
	wait_answers(ring_of(0, 0), 1);
	end();
}

TEST(resized)
{
	set_up(BACK);
	start();
	fe_xen.resized(t.fe, on_stopped, NULL);
	CHECK(t.stopped && !t.stop_rc);
	connect_front();
	put_at(BACK, "sectors", "1");
	t.stopped = false;
	fe_xen.resized(t.fe, on_stopped, NULL);
	CHECK(t.stopped && !t.stop_rc);
	CHECK_STR(value_at(BACK, "sectors"), "2048");
	CHECK_STR(value_at(BACK, "state"), "4");
	end();
}

TEST(refused_to_start)
{
	static const struct {
		const char *key, *value;
		int rc;
	} bad[] = {
		{ "frontend-id", "8", -EINVAL }, { "frontend-id", "", -EINVAL },
		{ "state", "6", 0 }, { "state", "5", -ESHUTDOWN }, { "state", "nonsense", -ENOENT },
		{ "discard-enable", "2", -EINVAL }, { "forget", "2", -EINVAL },
		{ "logical-sector-size", "2048", -EINVAL }, { "logical-sector-size", "", -EINVAL },
	};
	struct cow_err err = { 0 };

	for (unsigned i = 0; i < COW_ARRAY_SIZE(bad); i++) {
		set_up(BACK);
		put_at(BACK, bad[i].key, bad[i].value);
		set_front(XEN_CONNECTED);
		err.code = 0;
		CHECK_EQ(try_start(&err), bad[i].rc);
		if (bad[i].rc) {
			CHECK(err.msg[0]);
			nothing_held();
		}
		end();
	}
	set_up(BACK);
	remove_tree(BACK);
	err.code = 0;
	CHECK_EQ(try_start(&err), -ENOENT);
	end();
}

/* ---- anything ---- */

static void random_step(void)
{
	static const char *const keys[] = { "ring-ref", "event-channel", "protocol", "ring-page-order",
					    "multi-queue-num-queues", "feature-persistent" };
	static const char *const values[] = { "1", "2", "3", "10", "11", "0", "x86_64-abi", "x86_32-abi", "no" };

	switch (test_rand_below(8)) {
	case 0:
		put_at(FRONT, keys[test_rand_below(COW_ARRAY_SIZE(keys))],
		       values[test_rand_below(COW_ARRAY_SIZE(values))]);
		break;
	case 1:
		rings((unsigned)test_rand_below(3), 1 + (unsigned)test_rand_below(4));
		break;
	case 2:
		for (unsigned i = 0; i < 16; i++)
			write_word(ring_of(0, 0), 4 * i, (uint32_t)test_rand_below(40));
		break;
	case 3:
		ask(ring_of((unsigned)test_rand_below(4), 0), test_rand_below(2100));
		fire(10 + (int)test_rand_below(4));
		break;
	case 4:
		cow_sim_set_async(t.sim, test_rand_below(2));
		break;
	default:
		set_front((int)test_rand_below(9));
	}
}

static bool is_full(void)
{
	return getenv("FAULT") && !strcmp(getenv("FAULT"), "full");
}

TEST(random_transitions)
{
	unsigned steps = is_full() ? 100000 : 10000;
	unsigned connected = 0, ended = 0;

	set_up(BACK);
	start();
	for (unsigned i = 0; i < steps; i++) {
		random_step();
		if (test_rand_below(3))
			turn();
		CHECK(t.mapped <= XEN_QUEUES_MAX * XEN_RING_PAGES_MAX + PAGES && t.bound <= XEN_QUEUES_MAX);
		connected += t.bound > 0;
		if (!t.gone && test_rand_below(500))
			continue;
		/* Now and then the toolstack takes it back. */
		if (!t.gone) {
			put_at(BACK, "online", "0");
			put_at(BACK, "state", "5");
			set_front(XEN_CLOSED);
			wait_gone();
		}
		ended++;
		die();
		make_nodes();
		memset(t.pages, 0, PAGES * XEN_PAGE);
		start();
	}
	CHECK(connected > steps / 20 && ended > 0);
	end();
}

/* A storm of events costs no memory, and one look. */
TEST(storm_of_states)
{
	unsigned n = is_full() ? 1000000 : 20000;

	set_up(BACK);
	start();
	connect_front();
	for (unsigned i = 0; i < n; i++) {
		set_front(i % 2 ? XEN_CONNECTED : XEN_INITIALISED);
		if (i % 1000 == 0)
			turn();
	}
	turns(10);
	CHECK_EQ(t.events, 0);
	CHECK_EQ(t.bound, 1);
	CHECK_STR(value_at(BACK, "state"), "4");
	end();
}
