// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The keeper of a queue's ring, for kernels whose ublk driver cannot bear that its
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
 * If the keeper is killed together with the daemon, it was of no use.
 */
#include "fe-ublk.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOOK_MS 2
#define LOOK_TRIES 30000	/* then whatever happens must happen */

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

/* Nothing but the two may be kept: locks, the device itself, somebody's standard output. */
static void close_others(int a, int b)
{
	int low = a < b ? a : b, high = a < b ? b : a, fd, null = open("/dev/null", O_RDWR);

	for (fd = 0; fd <= STDERR_FILENO; fd++)
		dup2(null, fd);
	if (low > STDERR_FILENO + 1)
		close_range(STDERR_FILENO + 1, (unsigned)low - 1, 0);
	if (high > low + 1)
		close_range((unsigned)low + 1, (unsigned)high - 1, 0);
	close_range((unsigned)high + 1, ~0u, 0);
}

static _Noreturn void keep(uint32_t id, int ring_fd, int life)
{
	static const int fatal[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE };
	unsigned i;
	char c;

	/* A service manager stops all of a service; this one ends when the daemon has. */
	for (i = 0; i < COW_ARRAY_SIZE(fatal); i++)
		signal(fatal[i], SIG_IGN);
	prctl(PR_SET_NAME, "cowd-keep", 0, 0, 0);
	close_others(ring_fd, life);
	while (read(life, &c, 1) < 0 && errno == EINTR)
		;
	wait_quiesced(id);
	_exit(0);
}

int ublk_keeper_start(uint32_t id, int ring_fd, struct ublk_keeper *ret)
{
	int life[2];

	/* The daemon's end is closed by its end. */
	if (pipe2(life, O_CLOEXEC))
		return -errno;
	ret->pid = fork();
	if (ret->pid == 0)
		keep(id, ring_fd, life[0]);
	close(life[0]);
	if (ret->pid < 0) {
		int rc = -errno;

		close(life[1]);
		return rc;
	}
	ret->life = life[1];
	return 0;
}

void ublk_keeper_end(struct ublk_keeper *k)
{
	if (k->pid <= 0)
		return;
	kill(k->pid, SIGKILL);
	while (waitpid(k->pid, NULL, 0) < 0)
		if (errno != EINTR)
			break;
	close(k->life);
	k->pid = 0;
}
