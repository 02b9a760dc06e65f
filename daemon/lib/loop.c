// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The event loop: one epoll; timers and signals are file descriptors in it.
 * A turn is: before_wait, one epoll_wait, the handlers of what it returned. It
 * allocates nothing; a descriptor's event costs no other system call of ours.
 *
 * A source freed by a handler may have an event waiting in the same turn. So
 * it is only marked then, and released at the end of the turn.
 */
#include "cow/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_PER_TURN 64
#define CHILD_OUT_MAX (64u << 10)
#define CHILD_LOOK_MS 20	/* where no descriptor tells of a child's end */

enum source_kind { SOURCE_FD, SOURCE_TIMER, SOURCE_SIGNAL };

struct cow_source {
	struct cow_loop *loop;
	void (*fn)(void *opaque, uint32_t events);
	void *opaque;
	int fd;
	enum source_kind kind;
	bool dead;
	struct cow_list node;	/* in loop->dead */
};

struct cow_loop {
	int epfd;
	unsigned sources;
	bool dispatching, stop;
	int status;
	void (*before_wait)(void *opaque);
	void *before_wait_opaque;
	struct cow_list dead;		/* freed during this turn */
	struct cow_list children;
};

struct child {
	struct cow_loop *loop;
	pid_t pid;
	int pidfd, out_fd;
	struct cow_source *exit_src, *out_src;
	void (*done)(void *opaque, int status, const char *out, size_t len);
	void *opaque;
	struct cow_list node;
	size_t len;
	char out[CHILD_OUT_MAX + 1];
};

struct cow_loop *cow_loop_new(void)
{
	struct cow_loop *l = cow_zalloc(sizeof(*l));

	if (!l) {
		errno = ENOMEM;
		return NULL;
	}
	cow_list_init(&l->dead);
	cow_list_init(&l->children);
	l->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (l->epfd < 0) {
		cow_free(l);
		return NULL;
	}
	return l;
}

/* ---- sources ---- */

static struct cow_source *source_new(struct cow_loop *l, enum source_kind kind, int fd,
				     uint32_t events, void (*fn)(void *, uint32_t), void *opaque)
{
	struct cow_source *s = cow_zalloc(sizeof(*s));
	struct epoll_event ev = { .events = events };

	if (!s) {
		errno = ENOMEM;
		return NULL;
	}
	*s = (struct cow_source){ .loop = l, .fn = fn, .opaque = opaque, .fd = fd, .kind = kind };
	ev.data.ptr = s;
	if (epoll_ctl(l->epfd, EPOLL_CTL_ADD, fd, &ev)) {
		cow_free(s);
		return NULL;
	}
	l->sources++;
	return s;
}

/* As source_new() for a descriptor that is the source's own. */
static struct cow_source *source_own(struct cow_loop *l, enum source_kind kind, int fd,
				     void (*fn)(void *, uint32_t), void *opaque)
{
	struct cow_source *s;

	if (fd < 0)
		return NULL;
	s = source_new(l, kind, fd, EPOLLIN, fn, opaque);
	if (!s) {
		int saved = errno;

		close(fd);
		errno = saved;
	}
	return s;
}

struct cow_source *cow_loop_fd(struct cow_loop *l, int fd, uint32_t events,
			       void (*fn)(void *opaque, uint32_t events), void *opaque)
{
	return source_new(l, SOURCE_FD, fd, events, fn, opaque);
}

int cow_source_events(struct cow_source *s, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = s };

	return epoll_ctl(s->loop->epfd, EPOLL_CTL_MOD, s->fd, &ev) ? -errno : 0;
}

struct cow_source *cow_loop_timer(struct cow_loop *l, unsigned ms, bool repeat,
				  void (*fn)(void *opaque, uint32_t events), void *opaque)
{
	/* All zero would disarm the timer; "at once" is a nanosecond. */
	struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = ms ? ms % 1000 * 1000000L : 1 };
	struct itimerspec it = { .it_value = t };
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);

	if (repeat)
		it.it_interval = t;
	if (fd >= 0 && timerfd_settime(fd, 0, &it, NULL)) {
		int saved = errno;

		close(fd);
		errno = saved;
		return NULL;
	}
	return source_own(l, SOURCE_TIMER, fd, fn, opaque);
}

struct cow_source *cow_loop_signal(struct cow_loop *l, int sig,
				   void (*fn)(void *opaque, uint32_t sig), void *opaque)
{
	sigset_t set;

	sigemptyset(&set);
	if (sigaddset(&set, sig))
		return NULL;
	/* Stays blocked after the source is freed: a late signal must not kill the process. */
	if (sigprocmask(SIG_BLOCK, &set, NULL))
		return NULL;
	return source_own(l, SOURCE_SIGNAL, signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), fn,
			  opaque);
}

static void source_release(struct cow_source *s)
{
	if (s->kind != SOURCE_FD)
		close(s->fd);
	cow_free(s);
}

void cow_source_free(struct cow_source *s)
{
	struct cow_loop *l;

	if (!s)
		return;
	l = s->loop;
	cow_assert(!s->dead);
	s->dead = true;
	l->sources--;
	epoll_ctl(l->epfd, EPOLL_CTL_DEL, s->fd, NULL);
	if (l->dispatching)
		cow_list_add_tail(&l->dead, &s->node);
	else
		source_release(s);
}

/* ---- a turn ---- */

static void dispatch(struct cow_source *s, uint32_t events)
{
	struct signalfd_siginfo si;
	uint64_t expirations;

	switch (s->kind) {
	case SOURCE_FD:
		s->fn(s->opaque, events);
		break;
	case SOURCE_TIMER:
		if (read(s->fd, &expirations, sizeof(expirations)) == sizeof(expirations))
			s->fn(s->opaque, EPOLLIN);
		break;
	case SOURCE_SIGNAL:
		while (!s->dead && read(s->fd, &si, sizeof(si)) == sizeof(si))
			s->fn(s->opaque, si.ssi_signo);
		break;
	}
}

static void bury(struct cow_loop *l)
{
	while (!cow_list_empty(&l->dead)) {
		struct cow_source *s = cow_list_entry(l->dead.next, struct cow_source, node);

		cow_list_del(&s->node);
		source_release(s);
	}
}

int cow_loop_run(struct cow_loop *l)
{
	struct epoll_event ev[EVENTS_PER_TURN];

	cow_assert(!l->dispatching);
	while (!l->stop) {
		int n;

		if (l->before_wait)
			l->before_wait(l->before_wait_opaque);
		if (l->stop)
			break;
		n = epoll_wait(l->epfd, ev, EVENTS_PER_TURN, -1);
		if (n < 0) {
			cow_assert(errno == EINTR);
			continue;
		}
		l->dispatching = true;
		for (int i = 0; i < n; i++) {
			struct cow_source *s = ev[i].data.ptr;

			if (!s->dead)
				dispatch(s, ev[i].events);
		}
		l->dispatching = false;
		if (!cow_list_empty(&l->dead))
			bury(l);
	}
	/* What the last handlers queued, an answer to "stop" for one, goes out too. */
	if (l->before_wait)
		l->before_wait(l->before_wait_opaque);
	l->stop = false;
	return l->status;
}

void cow_loop_stop(struct cow_loop *l, int status)
{
	l->stop = true;
	l->status = status;
}

void cow_loop_before_wait(struct cow_loop *l, void (*fn)(void *opaque), void *opaque)
{
	l->before_wait = fn;
	l->before_wait_opaque = opaque;
}

/* ---- children ---- */

static void child_free(struct child *c)
{
	cow_list_del(&c->node);
	cow_source_free(c->exit_src);
	cow_source_free(c->out_src);
	if (c->pidfd >= 0)
		close(c->pidfd);
	if (c->out_fd >= 0)
		close(c->out_fd);
	cow_free(c);
}

/* Takes what the pipe holds; beyond the limit it is dropped, so that the child never blocks. */
static void child_read(void *opaque, uint32_t events)
{
	struct child *c = opaque;
	char spill[4096];
	ssize_t n;

	(void)events;
	for (;;) {
		if (c->len < CHILD_OUT_MAX) {
			n = read(c->out_fd, c->out + c->len, CHILD_OUT_MAX - c->len);
			if (n > 0)
				c->len += (size_t)n;
		} else {
			n = read(c->out_fd, spill, sizeof(spill));
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
	}
	if (n == 0) {	/* all writers are gone: nothing more to wait for */
		cow_source_free(c->out_src);
		c->out_src = NULL;
	}
}

static void child_exited(void *opaque, uint32_t events)
{
	struct child *c = opaque;
	int st, status;
	pid_t pid;

	(void)events;
	do {
		pid = waitpid(c->pid, &st, WNOHANG);
	} while (pid < 0 && errno == EINTR);
	if (pid == 0)
		return;
	/* A grandchild may hold the pipe open for ever: its output does not count. */
	if (c->out_src)
		child_read(c, 0);
	if (pid < 0)
		status = 255;	/* somebody else reaped it */
	else
		status = WIFEXITED(st) ? WEXITSTATUS(st) : 128 + WTERMSIG(st);
	c->out[c->len] = '\0';
	c->done(c->opaque, status, c->out, c->len);
	child_free(c);
}

static _Noreturn void child_main(int (*fn)(void *arg, int out_fd), void *arg, int out_fd)
{
	sigset_t none;

	/* It holds what the parent has open, locks too: it must not outlive it. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* The parent takes signals through the loop; the child has none. */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	_exit(fn(arg, out_fd) & 0xff);
}

static int child_start(struct child *c, int (*fn)(void *arg, int out_fd), void *arg)
{
	int p[2];

	if (pipe2(p, O_CLOEXEC))
		return -errno;
	c->out_fd = p[0];
	if (fcntl(p[0], F_SETFL, O_NONBLOCK) < 0) {
		close(p[1]);
		return -EIO;
	}
	c->out_src = cow_loop_fd(c->loop, p[0], EPOLLIN, child_read, c);
	if (!c->out_src) {
		int r = -errno;

		close(p[1]);
		return r;
	}
	c->pid = fork();
	if (c->pid == 0)
		child_main(fn, arg, p[1]);
	if (c->pid < 0) {
		int r = -errno;

		close(p[1]);
		return r;
	}
	close(p[1]);
	c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	if (c->pidfd >= 0)
		c->exit_src = cow_loop_fd(c->loop, c->pidfd, EPOLLIN, child_exited, c);
	else	/* no pidfd: a sandbox, or valgrind */
		c->exit_src = cow_loop_timer(c->loop, CHILD_LOOK_MS, true, child_exited, c);
	if (!c->exit_src) {
		int r = -errno;

		kill(c->pid, SIGKILL);
		return r;
	}
	return 0;
}

int cow_loop_child(struct cow_loop *l, int (*fn)(void *arg, int out_fd), void *arg,
		   void (*done)(void *opaque, int status, const char *out, size_t len),
		   void *opaque)
{
	struct child *c = cow_zalloc(sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->loop = l;
	c->done = done;
	c->opaque = opaque;
	c->pidfd = c->out_fd = -1;
	cow_list_add_tail(&l->children, &c->node);
	r = child_start(c, fn, arg);
	if (r)
		child_free(c);
	return r;
}

void cow_loop_free(struct cow_loop *l)
{
	if (!l)
		return;
	/* Not waited for: one may be stuck on a device this process served. */
	while (!cow_list_empty(&l->children)) {
		struct child *c = cow_list_entry(l->children.next, struct child, node);

		kill(c->pid, SIGKILL);
		child_free(c);
	}
	cow_assert(!l->sources && !l->dispatching);
	close(l->epfd);
	cow_free(l);
}
