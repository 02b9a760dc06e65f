// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The client's side of the control protocol: one request, its reply, over one
 * connection. The words themselves are made and read by cowd/proto.c.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "cowctl.h"
#include "cowd/proto.h"
#include "cowd/rundir.h"

static int connect_to(const char *dir, const char *name, struct cow_err *err)
{
	struct sockaddr_un addr;
	int dir_fd = run_socket_address(dir, name, &addr);
	int fd, rc = 0;

	if (dir_fd < 0)
		return cow_err_sys(err, dir_fd, "%s", dir);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		rc = -errno;
	close(dir_fd);
	if (!rc)
		return fd;
	if (fd >= 0)
		close(fd);
	if (rc == -ENOENT)
		return cow_err_set(err, rc, "no device \"%s\" is running", name);
	if (rc == -ECONNREFUSED)
		return cow_err_set(
			err, rc, "the daemon of \"%s\" is dead; start it again to clean up", name);
	return cow_err_sys(err, rc, "%s", name);
}

static int set_timeout(int fd, unsigned ms)
{
	struct timeval tv = { ms / 1000, (long)(ms % 1000) * 1000 };

	return setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)) ||
	       setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) ? -errno : 0;
}

/* One packet, NUL-terminated; its length, 0 at the end, or -errno. */
static ssize_t receive(int fd, char *buf)
{
	ssize_t n;

	do {
		n = recv(fd, buf, PROTO_PACKET, 0);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	buf[n] = '\0';
	return n;
}

int ctl_talk(const char *dir, const char *name, const char *packet, unsigned timeout_ms,
	     int (*text)(void *arg, const char *text, size_t len), void *arg, struct cow_err *err)
{
	COW_CLEANUP_CLOSE int fd = connect_to(dir, name, err);
	char buf[PROTO_PACKET + 1];
	const char *sentence = NULL;
	ssize_t n;
	int rc;

	if (fd < 0)
		return fd;
	rc = timeout_ms ? set_timeout(fd, timeout_ms) : 0;
	if (!rc && send(fd, packet, strlen(packet), MSG_NOSIGNAL) < 0)
		rc = -errno;
	if (rc)
		return cow_err_sys(err, rc, "%s: send to the daemon", name);
	while ((n = receive(fd, buf)) > 0 && buf[0] == '+') {
		rc = text(arg, buf + 1, (size_t)n - 1);
		if (rc)
			return cow_err_sys(err, rc, "standard output");
	}
	if (n < 0)
		return cow_err_sys(err, (int)n, "%s: no answer from the daemon", name);
	if (n == 0)
		return cow_err_set(err, -EPIPE, "%s: the daemon ended before it answered", name);
	rc = proto_final(buf, &sentence);
	if (rc < 0)
		return cow_err_set(err, rc, "%s: the daemon's answer makes no sense", name);
	return rc ? cow_err_set(err, -rc, "%s: %s", name, sentence) : 0;
}
