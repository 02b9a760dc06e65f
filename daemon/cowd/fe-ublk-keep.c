// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The keeper of a queue's rings, for kernels whose ublk driver cannot bear that its
 * server is killed under load (before Linux 6.16, Debian's 6.12 among them).
 *
 * When the last one closes a ring, the kernel cancels the commands in it. That
 * driver then completes commands to which a request is just on its way, and the kernel
 * trips over the request's remains. So the ring of the tags in use is kept open, by
 * a process that does nothing else; the ring of the one tag that is never in use is
 * not. At the end of the daemon that one is canceled, safely. The driver learns from it
 * that there is no server, lets no request through any more, waits until those on
 * their way have come back, says that the device is quiesced, and cancels the other
 * commands itself. Then there is nothing left to keep.
 *
 * The driver learns it once. If that is before the command that makes the device live,
 * whose end a killed daemon does not wait for, then the device is live without a server and
 * nobody can take it up any more. So that command is the keeper's to send, and until
 * it is answered the keeper holds the other ring, too.
 *
 * If the keeper is killed together with the daemon, it was of no use.
 */
#include "fe-ublk.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOOK_MS 2
#define LOOK_TRIES 30000	/* then whatever happens must happen */

/* ---- in the keeper ---- */

static void wait_quiesced(uint32_t id)
{
	struct ublksrv_ctrl_dev_info info;
	struct ublk_ctl *ctl;
	unsigned i;

	if (ublk_ctl_open(&ctl, NULL))
		return;
	for (i = 0; i < LOOK_TRIES; i++) {
		if (ublk_ctl_cmd(ctl, UBLK_U_CMD_GET_DEV_INFO, id, &info, sizeof(info), 0) ||
		    info.state != UBLK_S_DEV_LIVE)
			break;
		poll(NULL, 0, LOOK_MS);
	}
	ublk_ctl_close(ctl);
}

static int command(uint32_t id, uint32_t op, pid_t daemon)
{
	struct ublk_ctl *ctl;
	int rc = ublk_ctl_open(&ctl, NULL);

	if (rc)
		return rc;
	rc = ublk_ctl_cmd(ctl, op, id, NULL, 0, (uint64_t)daemon);
	ublk_ctl_close(ctl);
	return rc;
}

enum { RING, LAST, TALK, KEPT };

/* The fds of @fd are moved to where they are out of the way; nothing else stays open. */
static void close_others(int fd[KEPT])
{
	int first = STDERR_FILENO + 1, null = open("/dev/null", O_RDWR), i;

	for (i = 0; i <= STDERR_FILENO; i++)
		dup2(null, i);
	for (i = 0; i < KEPT; i++)
		fd[i] = fcntl(fd[i], F_DUPFD, first + KEPT);
	for (i = 0; i < KEPT; i++)
		fd[i] = dup2(fd[i], first + i);
	close_range((unsigned)(first + KEPT), ~0u, 0);
}

static ssize_t hear(int fd, uint32_t *ret)
{
	ssize_t n;

	do {
		n = read(fd, ret, sizeof(*ret));
	} while (n < 0 && errno == EINTR);
	return n;
}

static _Noreturn void keep(uint32_t id, pid_t daemon, int fd[KEPT])
{
	static const int fatal[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE };
	uint32_t op;
	unsigned i;
	int answer;

	/* A service manager stops all of a service; this one ends when the daemon has. */
	for (i = 0; i < COW_ARRAY_SIZE(fatal); i++)
		signal(fatal[i], SIG_IGN);
	prctl(PR_SET_NAME, "cowd-keep", 0, 0, 0);
	close_others(fd);
	if (hear(fd[TALK], &op) == sizeof(op)) {
		answer = command(id, op, daemon);
		close(fd[LAST]);
		if (write(fd[TALK], &answer, sizeof(answer)) == sizeof(answer))
			hear(fd[TALK], &op);	/* its end */
	} else {
		close(fd[LAST]);
	}
	wait_quiesced(id);
	_exit(0);
}

/* ---- in the daemon ---- */

int ublk_keeper_start(uint32_t id, int ring_fd, int last_fd, struct ublk_keeper *ret)
{
	pid_t daemon = getpid();
	int talk[2];

	/* The daemon's end is closed by its end. */
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, talk))
		return -errno;
	ret->pid = fork();
	if (ret->pid == 0)
		keep(id, daemon, (int[KEPT]){ ring_fd, last_fd, talk[1] });
	close(talk[1]);
	if (ret->pid < 0) {
		int rc = -errno;

		close(talk[0]);
		return rc;
	}
	ret->talk = talk[0];
	return 0;
}

static void on_answer(void *opaque, uint32_t events)
{
	struct ublk_keeper *k = opaque;
	uint32_t answer;
	ssize_t n = hear(k->talk, &answer);

	(void)events;
	cow_source_free(k->src);
	k->src = NULL;
	k->done(k->opaque, n == sizeof(answer) ? (int)answer : -ESRCH);
}

int ublk_keeper_go_live(struct ublk_keeper *k, struct cow_loop *loop, uint32_t op,
			void (*done)(void *opaque, int answer), void *opaque)
{
	k->src = cow_loop_fd(loop, k->talk, EPOLLIN, on_answer, k);
	if (!k->src)
		return -errno;
	k->done = done;
	k->opaque = opaque;
	if (send(k->talk, &op, sizeof(op), MSG_NOSIGNAL) == sizeof(op))
		return 0;
	cow_source_free(k->src);
	k->src = NULL;
	return -ESRCH;
}

void ublk_keeper_end(struct ublk_keeper *k)
{
	if (k->pid <= 0)
		return;
	cow_source_free(k->src);
	kill(k->pid, SIGKILL);
	while (waitpid(k->pid, NULL, 0) < 0)
		if (errno != EINTR)
			break;
	close(k->talk);
	k->pid = 0;
}
