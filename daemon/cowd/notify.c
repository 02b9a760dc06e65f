// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The two ways in which a daemon speaks to the system around it: one datagram
 * for a service manager, and the system log once its terminal is gone. Neither
 * ever waits: who listens may be on a disk that we serve.
 */
#include "notify.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "cow/log.h"

/* Connected to the datagram socket @path ('@': abstract); -1 if nobody listens. */
static int datagram_to(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	size_t len = strlen(path);
	int fd;

	if (!len || len >= sizeof(addr.sun_path) || (path[0] != '/' && path[0] != '@'))
		return -1;
	memcpy(addr.sun_path, path, len);
	if (path[0] == '@')
		addr.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -1;
	if (connect(fd, (struct sockaddr *)&addr,
		    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len))) {
		close(fd);
		return -1;
	}
	return fd;
}

void notify(const char *state)
{
	const char *path = getenv("NOTIFY_SOCKET");
	int fd;

	if (!path)
		return;
	fd = datagram_to(path);
	if (fd < 0 || send(fd, state, strlen(state), MSG_NOSIGNAL) < 0)
		cow_log(COW_LOG_WARN, "NOTIFY_SOCKET %s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

void notify_detach_stdio(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int log = datagram_to("/dev/log");

	if (null >= 0) {
		dup2(null, STDIN_FILENO);
		dup2(null, STDOUT_FILENO);
	}
	if (log >= 0 || null >= 0)
		dup2(log >= 0 ? log : null, STDERR_FILENO);
	if (log >= 0)
		close(log);
	if (null > STDERR_FILENO)
		close(null);
}
