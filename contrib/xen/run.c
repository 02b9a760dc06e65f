// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Running a program, see run.h. Waiting is for the process itself, not for the
 * end of its output: a daemon that it leaves behind may hold the pipes longer.
 */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define OUTPUT_MAX COW_MIB(1)	/* bytes kept of the end of a stream: a long list */

extern char **environ;

#define BLOCK 4096

struct stream {
	int fd;			/* -1: at its end */
	char *text;		/* with a terminator */
	size_t len, size;
};

struct child {
	const char *name;
	pid_t pid;
	int pidfd;
	struct stream out, err;
};

void run_add(struct run_args *a, const char *word)
{
	if (a->n < RUN_WORDS)
		a->argv[a->n] = word;
	a->n++;
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- what it says ---- */

static void keep(struct stream *s, const char *block, size_t n)
{
	size_t size = s->size ? 2 * s->size : 4 * BLOCK;
	char *larger;

	if (s->len + n >= s->size && size <= OUTPUT_MAX) {
		larger = realloc(s->text, size);
		if (larger) {
			s->text = larger;
			s->size = size;
		}
	}
	if (!s->size)
		return;
	if (s->len + n >= s->size) {
		size_t half = s->len / 2;

		s->len -= half;
		memmove(s->text, s->text + half, s->len);
	}
	memcpy(s->text + s->len, block, n);
	s->len += n;
	s->text[s->len] = '\0';
}

/* All that is there now. */
static void drain(struct stream *s)
{
	char block[BLOCK];
	ssize_t n = 1;

	while (s->fd >= 0 && n > 0) {
		n = read(s->fd, block, sizeof(block));
		if (n > 0) {
			keep(s, block, (size_t)n);
		} else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
			close(s->fd);
			s->fd = -1;
		}
	}
}

/* The last line with anything in it. */
static const char *last_line(struct stream *s)
{
	char *nl;

	while (s->len && s->text[s->len - 1] == '\n')
		s->text[--s->len] = '\0';
	if (!s->len)
		return "";
	nl = strrchr(s->text, '\n');
	return nl ? nl + 1 : s->text;
}

/* ---- the process ---- */

static int open_stream(struct stream *s, int *ret_write)
{
	int p[2];

	if (pipe2(p, O_CLOEXEC))
		return -errno;
	s->fd = p[0];
	*ret_write = p[1];
	return fcntl(p[0], F_SETFL, O_NONBLOCK) ? -errno : 0;
}

static int spawn(struct child *c, char *const *argv, int out, int err)
{
	posix_spawn_file_actions_t fa;
	posix_spawnattr_t attr;
	sigset_t none;
	int rc;

	sigemptyset(&none);
	posix_spawn_file_actions_init(&fa);
	posix_spawnattr_init(&attr);
	rc = posix_spawn_file_actions_addopen(&fa, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	if (!rc)
		rc = posix_spawn_file_actions_adddup2(&fa, out, STDOUT_FILENO);
	if (!rc)
		rc = posix_spawn_file_actions_adddup2(&fa, err, STDERR_FILENO);
	if (!rc)
		rc = posix_spawnattr_setsigmask(&attr, &none);
	if (!rc)
		rc = posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
	if (!rc)
		rc = posix_spawn(&c->pid, argv[0], &fa, &attr, argv, environ);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&fa);
	return -rc;
}

static int start(struct child *c, char *const *argv)
{
	int out = -1, err = -1;
	int rc = open_stream(&c->out, &out);

	if (!rc)
		rc = open_stream(&c->err, &err);
	if (!rc)
		rc = spawn(c, argv, out, err);
	if (out >= 0)
		close(out);
	if (err >= 0)
		close(err);
	if (rc)
		return rc;
	c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	return c->pidfd < 0 ? -errno : 0;
}

/* Until it ends. False: not in time. */
static bool wait_end(struct child *c, unsigned limit_ms)
{
	uint64_t end = now_ms() + limit_ms, now;

	while ((now = now_ms()) < end) {
		struct pollfd p[] = {
			{ .fd = c->pidfd, .events = POLLIN },
			{ .fd = c->out.fd, .events = POLLIN },
			{ .fd = c->err.fd, .events = POLLIN },
		};

		if (poll(p, COW_ARRAY_SIZE(p), (int)(end - now)) <= 0)
			continue;
		drain(&c->out);
		drain(&c->err);
		if (p[0].revents)
			return true;
	}
	return false;
}

static int reap(struct child *c, bool ended, struct cow_err *err)
{
	const char *said;
	int status;

	if (!ended)
		kill(c->pid, SIGKILL);
	while (waitpid(c->pid, &status, 0) < 0)
		if (errno != EINTR)
			return cow_err_sys(err, -errno, "%s", c->name);
	drain(&c->out);
	drain(&c->err);
	if (!ended)
		return cow_err_set(err, -ETIMEDOUT, "%s did not end in time and was killed",
				   c->name);
	if (WIFSIGNALED(status))
		return cow_err_set(err, -EINTR, "%s was killed by a signal (%s)", c->name,
				   strsignal(WTERMSIG(status)));
	if (!WEXITSTATUS(status))
		return 0;
	said = last_line(&c->err);
	if (*said)
		return cow_err_set(err, -EIO, "%s", said);
	return cow_err_set(err, -EIO, "%s failed (status %d) and did not say why", c->name,
			   WEXITSTATUS(status));
}

static void free_child(struct child *c)
{
	if (c->out.fd >= 0)
		close(c->out.fd);
	if (c->err.fd >= 0)
		close(c->err.fd);
	if (c->pidfd >= 0)
		close(c->pidfd);
	free(c->out.text);
	free(c->err.text);
}

int run_program(const struct run_args *a, unsigned limit_ms, char **ret_out, struct cow_err *err)
{
	struct child c = { .pidfd = -1, .out = { .fd = -1 }, .err = { .fd = -1 } };
	char *argv[RUN_WORDS + 1];
	unsigned i;
	int rc;

	if (a->n > RUN_WORDS)
		return cow_err_set(err, -E2BIG, "%s: more than %d words", a->argv[0], RUN_WORDS);
	for (i = 0; i < a->n; i++)
		argv[i] = (char *)(uintptr_t)a->argv[i];
	argv[i] = NULL;
	c.name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
	rc = start(&c, argv);
	if (c.pid)
		rc = reap(&c, !rc && wait_end(&c, limit_ms), err);
	else
		cow_err_sys(err, rc, "%s cannot be run", argv[0]);
	if (!rc && ret_out) {
		*ret_out = cow_strdup(c.out.text ? c.out.text : "");
		if (!*ret_out)
			rc = cow_err_set(err, -ENOMEM, "not enough memory");
	}
	free_child(&c);
	return rc;
}
