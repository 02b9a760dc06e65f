// SPDX-License-Identifier: GPL-2.0-or-later
/* cow/loop.h: every kind of source, removal from within handlers, children. */
#include "cow/loop.h"

#include <errno.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "test.h"

static struct cow_loop *loop;
static int calls;

static void start(void)
{
	loop = cow_loop_new();
	CHECK(loop);
	calls = 0;
}

static void stop_handler(void *opaque, uint32_t events)
{
	(void)events;
	calls++;
	cow_loop_stop(loop, *(int *)opaque);
}

static struct cow_source *slots[8];

struct pipe_end {
	int fd[2], quota;
	struct cow_source *src;
};

static void drain(void *opaque, uint32_t events)
{
	struct pipe_end *p = opaque;
	char c;

	CHECK(events & EPOLLIN);
	CHECK_EQ(read(p->fd[0], &c, 1), 1);
	if (++calls == p->quota)
		cow_loop_stop(loop, 42);
}

TEST(fd_level_triggered)
{
	struct pipe_end p = { .quota = 5 };

	start();
	CHECK(!pipe(p.fd));
	p.src = cow_loop_fd(loop, p.fd[0], EPOLLIN, drain, &p);
	CHECK(p.src);
	CHECK_EQ(write(p.fd[1], "12345", 5), 5);
	CHECK_EQ(cow_loop_run(loop), 42);
	CHECK_EQ(calls, 5);
	cow_source_free(p.src);
	close(p.fd[0]);
	close(p.fd[1]);
	cow_loop_free(loop);
}

static void never(void *opaque, uint32_t events)
{
	(void)opaque;
	FAIL("a handler ran that must not (events %x)", events);
}

TEST(fd_events_can_change)
{
	struct pipe_end p = { .quota = 1 };
	struct cow_source *t;
	int status = 7;

	start();
	CHECK(!pipe(p.fd));
	p.src = cow_loop_fd(loop, p.fd[0], EPOLLIN, never, &p);
	CHECK_EQ(write(p.fd[1], "x", 1), 1);
	CHECK_EQ(cow_source_events(p.src, 0), 0);
	t = cow_loop_timer(loop, 5, false, stop_handler, &status);
	CHECK_EQ(cow_loop_run(loop), 7);
	cow_source_free(t);
	cow_source_free(p.src);
	close(p.fd[0]);
	close(p.fd[1]);
	cow_loop_free(loop);
}

TEST(refused_fd)
{
	FILE *f = tmpfile();

	start();
	errno = 0;
	CHECK(!cow_loop_fd(loop, fileno(f), EPOLLIN, never, NULL));	/* a file has no readiness */
	CHECK_EQ(errno, EPERM);
	CHECK(!cow_loop_fd(loop, -1, EPOLLIN, never, NULL));
	CHECK_EQ(errno, EBADF);
	cow_source_free(NULL);
	fclose(f);
	cow_loop_free(loop);
}

/* The first handler to run frees all eight, its own included: the others must not run. */
static void free_all(void *opaque, uint32_t events)
{
	(void)opaque;
	(void)events;
	calls++;
	for (int i = 0; i < 8; i++) {
		cow_source_free(slots[i]);
		slots[i] = NULL;
	}
	cow_loop_stop(loop, 0);
}

TEST(free_within_a_handler)
{
	int fd[2];

	start();
	CHECK(!pipe(fd));
	CHECK_EQ(write(fd[1], "x", 1), 1);
	for (int i = 0; i < 8; i++) {
		int copy = dup(fd[0]);	/* one registration a descriptor */

		CHECK(copy >= 0);
		slots[i] = cow_loop_fd(loop, copy, EPOLLIN, free_all, NULL);
		CHECK(slots[i]);
	}
	cow_loop_run(loop);
	CHECK_EQ(calls, 1);
	cow_loop_free(loop);
	/* The descriptors stayed the caller's. */
	for (int i = fd[1] + 1; i <= fd[1] + 8; i++)
		close(i);
	close(fd[0]);
	close(fd[1]);
}

static void tick(void *opaque, uint32_t events)
{
	(void)events;
	if (++calls == *(int *)opaque)
		cow_loop_stop(loop, calls);
}

TEST(timers)
{
	struct cow_source *once, *often;
	int n = 4, status = 9;

	start();
	often = cow_loop_timer(loop, 1, true, tick, &n);
	CHECK_EQ(cow_loop_run(loop), 4);
	cow_source_free(often);
	once = cow_loop_timer(loop, 0, false, stop_handler, &status);	/* at once, not never */
	CHECK_EQ(cow_loop_run(loop), 9);
	cow_source_free(once);
	cow_loop_free(loop);
}

static void got_signal(void *opaque, uint32_t sig)
{
	CHECK_EQ(sig, SIGUSR1);
	(*(int *)opaque)++;
	cow_loop_stop(loop, 1);
}

TEST(signals)
{
	struct cow_source *s;
	int got = 0;

	start();
	s = cow_loop_signal(loop, SIGUSR1, got_signal, &got);
	CHECK(s);
	kill(getpid(), SIGUSR1);
	CHECK_EQ(cow_loop_run(loop), 1);
	CHECK_EQ(got, 1);
	cow_source_free(s);
	kill(getpid(), SIGUSR1);	/* late: must not end the process */
	CHECK(!cow_loop_signal(loop, 4711, got_signal, &got));
	cow_loop_free(loop);
}

static int waits;

static void before(void *opaque)
{
	(void)opaque;
	waits++;
}

TEST(before_wait)
{
	struct cow_source *t;
	int n = 3;

	start();
	waits = 0;
	cow_loop_before_wait(loop, before, NULL);
	t = cow_loop_timer(loop, 1, true, tick, &n);
	cow_loop_run(loop);
	/* Before each of the waits, and once behind the last handlers. */
	CHECK(waits >= 4);
	cow_source_free(t);
	cow_loop_free(loop);
}

/* ---- children ---- */

struct result {
	int status, runs;
	size_t len;
	char first[64];
};

static void child_done(void *opaque, int status, const char *text, size_t len)
{
	struct result *r = opaque;

	CHECK_EQ(strlen(text), len);	/* ends with a NUL */
	r->status = status;
	r->len = len;
	r->runs++;
	snprintf(r->first, sizeof(r->first), "%.63s", text);
	cow_loop_stop(loop, 0);
}

static int says_hello(void *arg, int out_fd)
{
	return dprintf(out_fd, "hello %s", (const char *)arg) > 0 ? 3 : 1;
}

TEST(child)
{
	struct result r = { 0 };
	char name[] = "world";

	start();
	CHECK_EQ(cow_loop_child(loop, says_hello, name, child_done, &r), 0);
	cow_loop_run(loop);
	CHECK_EQ(r.status, 3);
	CHECK_STR(r.first, "hello world");
	cow_loop_free(loop);
}

static int says_much(void *arg, int out_fd)
{
	char buf[1000];

	(void)arg;
	memset(buf, 'x', sizeof(buf));
	for (int i = 0; i < 1000; i++)
		if (write(out_fd, buf, sizeof(buf)) != sizeof(buf))
			return 1;
	return 0;
}

TEST(child_talks_too_much)
{
	struct result r = { 0 };

	start();
	CHECK_EQ(cow_loop_child(loop, says_much, NULL, child_done, &r), 0);
	cow_loop_run(loop);
	CHECK_EQ(r.status, 0);		/* it was never blocked */
	CHECK_EQ(r.len, 65536);
	cow_loop_free(loop);
}

static int killed(void *arg, int out_fd)
{
	(void)arg;
	(void)out_fd;
	raise(SIGTERM);		/* which the parent blocks and the child does not */
	return 0;
}

TEST(child_killed_by_a_signal)
{
	struct result r = { 0 };
	struct cow_source *s;
	int got = 0;

	start();
	s = cow_loop_signal(loop, SIGTERM, got_signal, &got);
	CHECK_EQ(cow_loop_child(loop, killed, NULL, child_done, &r), 0);
	cow_loop_run(loop);
	CHECK_EQ(r.status, 128 + SIGTERM);
	CHECK_EQ(got, 0);
	cow_source_free(s);
	cow_loop_free(loop);
}

/* A grandchild keeps the pipe open: the child's end is what counts. */
static int leaves_a_grandchild(void *arg, int out_fd)
{
	const int *block = arg;
	char c;

	if (fork() == 0) {
		close(block[1]);
		_exit(read(block[0], &c, 1) < 0);	/* until the test closes the other end */
	}
	return dprintf(out_fd, "done") == 4 ? 0 : 1;
}

TEST(child_with_a_grandchild)
{
	struct result r = { 0 };
	int block[2];

	start();
	CHECK(!pipe(block));
	CHECK_EQ(cow_loop_child(loop, leaves_a_grandchild, block, child_done, &r), 0);
	cow_loop_run(loop);
	CHECK_EQ(r.status, 0);
	CHECK_STR(r.first, "done");
	close(block[0]);
	close(block[1]);
	cow_loop_free(loop);
}

static int waits_for_ever(void *arg, int out_fd)
{
	(void)arg;
	(void)out_fd;
	pause();
	return 0;
}

TEST(loop_freed_with_a_child_running)
{
	struct result r = { 0 };

	start();
	CHECK_EQ(cow_loop_child(loop, waits_for_ever, NULL, child_done, &r), 0);
	cow_loop_free(loop);
	CHECK_EQ(r.runs, 0);
}
