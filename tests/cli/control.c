// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A running cowd against clients that mean no good: packets that are no
 * request, clients that do not read, hang up or come in crowds, descriptors
 * nobody asked for, other users. And its datagrams to a service manager.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

#define NOBODY 65534
#define PACKET 4096
#define PATIENCE 30		/* seconds until silence counts as a hang */

static struct {
	pid_t pid;
	int dir;		/* fd of the run directory, which is the current folder */
	char notify[300];	/* NOTIFY_SOCKET; empty: none */
} d;

/* ---- the daemon ---- */

static void run_cowd(int out)
{
	static const char exe[] = TEST_BUILD "/bin/cowd";

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(out, STDOUT_FILENO);
	if (d.notify[0])
		setenv("NOTIFY_SOCKET", d.notify, 1);
	execl(exe, "cowd", "-f", "--no-loop", "-r", "-p", "zero", "-o", "size=1M", "ctl", "x",
	      NULL);
	_exit(127);
}

static void start(void)
{
	char dir[200], line[256];
	const char *env = getenv("COW_RUN_DIR");
	ssize_t n;
	int p[2];

	if (d.pid) {		/* a case failed before its stop() */
		kill(d.pid, SIGKILL);
		waitpid(d.pid, NULL, 0);
	}
	if (access("/dev/fuse", R_OK | W_OK))
		test_skip("no access to /dev/fuse");
	if (access(TEST_BUILD "/bin/cowd", X_OK))
		test_skip("cowd was not built");
	snprintf(dir, sizeof(dir), "%s", env ? env : "/tmp/cow-control-test");
	if (!env)
		setenv("COW_RUN_DIR", dir, 1);
	CHECK(mkdir(dir, 0755) == 0 || errno == EEXIST);
	d.dir = open(dir, O_PATH | O_CLOEXEC);
	CHECK(d.dir >= 0);
	CHECK_EQ(fchdir(d.dir), 0);
	CHECK_EQ(pipe2(p, O_CLOEXEC), 0);
	d.pid = fork();
	CHECK(d.pid >= 0);
	if (!d.pid)
		run_cowd(p[1]);
	close(p[1]);
	n = read(p[0], line, sizeof(line));
	close(p[0]);
	if (n <= 0)
		FAIL("cowd did not start");
}

/* Stops it, which shows that it still lives, and that it ends well. */
static void stop(void)
{
	int status;

	CHECK_EQ(kill(d.pid, SIGTERM), 0);
	CHECK_EQ(waitpid(d.pid, &status, 0), d.pid);
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), 0);
	d.pid = 0;
	CHECK(access("ctl.sock", F_OK));
	close(d.dir);
	CHECK_EQ(chdir("/"), 0);
}

static unsigned open_fds(void)
{
	char path[64];
	unsigned n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)d.pid);
	dir = opendir(path);
	CHECK(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static unsigned long rss_kib(void)
{
	char path[64], line[256];
	unsigned long kib = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)d.pid);
	f = fopen(path, "r");
	CHECK(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "VmRSS: %lu", &kib) == 1)
			break;
	fclose(f);
	CHECK(kib > 0);
	return kib;
}

/* ---- a client ---- */

static int connect_now(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX, .sun_path = "ctl.sock" };
	struct timeval patience = { PATIENCE, 0 };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	CHECK(fd >= 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
		close(fd);
		return -errno;
	}
	return fd;
}

static int dial(void)
{
	int fd = connect_now();

	CHECK(fd >= 0);
	return fd;
}

/* The final packet's number; -1: the connection was closed. *@text: bytes of text before it. */
static int reply(int fd, size_t *text)
{
	char buf[PACKET + 1];
	ssize_t n;

	if (text)
		*text = 0;
	for (;;) {
		n = recv(fd, buf, PACKET, 0);
		if (n == 0 || (n < 0 && errno == ECONNRESET))
			return -1;
		if (n < 0)
			FAIL("no answer: %s", strerror(errno));
		buf[n] = '\0';
		if (buf[0] == '.')
			break;
		CHECK_EQ(buf[0], '+');
		if (text)
			*text += (size_t)n - 1;
	}
	if (strcmp(buf, ".0"))
		CHECK(strchr(buf, ' ') && strchr(buf, ' ')[1]);
	return atoi(buf + 1);
}

static int ask(int fd, const void *packet, size_t len)
{
	CHECK_EQ(send(fd, packet, len, MSG_NOSIGNAL), len);
	return reply(fd, NULL);
}

static void check_alive(void)
{
	int fd = dial();

	CHECK_EQ(ask(fd, "state", 5), 0);
	close(fd);
}

/* ---- the cases ---- */

TEST(packets_that_are_no_request)
{
	static const char *const words[] = {
		"stop now",
		"stop --force --force",
		"status x",
		"resize",
		"resize 1G 2G 3G",
		"resize 1G",
		"resize --shrink",
		"resize 0",
		"mount",
		"mount relative",
		"mount \"\"",
		"umount /nowhere",
		"log-level x",
		"stats --json --json",
		"STATUS",
		"nosuch",
		"\"\"",
		"a b c d e f g h",
		"1 2 3 4 5 6 7 8 9 a b c d e f g h",
		"flush \"",
		"flush \\",
		"\x01",
		"flush\nflush",
		" ",
		"\t",
		"\n",
	};
	char big[2 * PACKET];
	size_t i;
	int fd;

	start();
	fd = dial();
	for (i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (ask(fd, words[i], strlen(words[i])) <= 0)
			FAIL("\"%s\" was not refused", words[i]);
	memset(big, 'a', sizeof(big));
	CHECK(ask(fd, big, PACKET) > 0);
	CHECK_EQ(ask(fd, big, PACKET + 1), E2BIG);
	memset(big, ' ', sizeof(big));
	memcpy(big, "state", 5);
	CHECK_EQ(ask(fd, big, PACKET), 0);
	CHECK_EQ(ask(fd, big, PACKET + 1), E2BIG);	/* not taken for its beginning */
	CHECK(ask(fd, big, sizeof(big)) > 0);
	memset(big, 0, sizeof(big));
	CHECK(ask(fd, big, 1) > 0);
	CHECK(ask(fd, big, PACKET) > 0);
	memset(big, '\\', sizeof(big));
	CHECK(ask(fd, big, PACKET) > 0);
	memset(big, '/', sizeof(big));
	memcpy(big, "mount ", 6);
	CHECK(ask(fd, big, PACKET) > 0);
	CHECK_EQ(ask(fd, "  \"state\"\t\n", 11), 0);
	close(fd);
	check_alive();
	stop();
}

TEST(random_packets)
{
	unsigned char packet[300];
	size_t len, i;
	int fd, round;

	start();
	fd = dial();
	for (round = 0; round < 5000; round++) {
		len = 1 + test_rand_below(sizeof(packet) - 1);
		for (i = 0; i < len; i++)
			packet[i] = (unsigned char)test_rand();
		CHECK(ask(fd, packet, len) > 0);
	}
	close(fd);
	stop();
}

TEST(answers_come_in_order)
{
	size_t text;
	int fd, i;

	start();
	fd = dial();
	for (i = 0; i < 8; i++) {
		CHECK_EQ(send(fd, "version", 7, MSG_NOSIGNAL), 7);
		CHECK_EQ(send(fd, "nosuch", 6, MSG_NOSIGNAL), 6);
	}
	for (i = 0; i < 8; i++) {
		CHECK_EQ(reply(fd, &text), 0);
		CHECK(text > 0);
		CHECK_EQ(reply(fd, &text), EINVAL);
		CHECK_EQ(text, 0);
	}
	close(fd);
	stop();
}

/* What a sanitizer keeps of freed memory is not what is looked at here. */
static void keep_nothing_freed(void)
{
	const char *given = getenv("ASAN_OPTIONS");
	char options[512];

	snprintf(options, sizeof(options), "%s%squarantine_size_mb=1", given ? given : "", given ? ":" : "");
	CHECK_EQ(setenv("ASAN_OPTIONS", options, 1), 0);
}

TEST(clients_that_do_not_read)
{
	unsigned long before;
	int fd[32], i, sent;

	keep_nothing_freed();
	start();
	check_alive();
	before = rss_kib();
	for (i = 0; i < 32; i++) {
		fd[i] = dial();
		for (sent = 0; sent < 10000; sent++)
			if (send(fd[i], "stats --openmetrics", 19, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
				break;
		CHECK(sent < 10000);	/* it stops taking more */
	}
	check_alive();
	if (rss_kib() > before + 16 * 1024)
		FAIL("it grew from %lu to %lu KiB", before, rss_kib());
	/* One of them reads at last and gets everything it asked for that was taken. */
	CHECK_EQ(reply(fd[31], NULL), 0);
	CHECK_EQ(reply(fd[31], NULL), 0);
	for (i = 0; i < 32; i++)
		close(fd[i]);
	check_alive();
	stop();
}

TEST(crowds)
{
	unsigned before;
	int fd[300], i, gone = 0;

	start();
	check_alive();
	before = open_fds();
	for (i = 0; i < 300; i++) {
		fd[i] = dial();
		if (i % 50 == 49) {
			CHECK_EQ(ask(fd[i], "state", 5), 0);
			CHECK(open_fds() <= before + 64 + 1);
		}
	}
	for (i = 0; i < 300; i++) {
		if (send(fd[i], "state", 5, MSG_NOSIGNAL) < 0 || reply(fd[i], NULL) < 0)
			gone++;
		close(fd[i]);
	}
	CHECK(gone >= 300 - 64);	/* the oldest had to make room */
	check_alive();
	stop();
}

TEST(hanging_up)
{
	static const char *const words[] = { "flush", "stats --json", "status", "nosuch", "" };
	unsigned before;
	int fd, i;

	start();
	check_alive();
	before = open_fds();
	for (i = 0; i < 500; i++) {
		const char *w = words[i % 5];

		fd = dial();
		CHECK_EQ(send(fd, w, strlen(w), MSG_NOSIGNAL), strlen(w));
		if (i & 1)
			shutdown(fd, SHUT_WR);
		close(fd);
	}
	check_alive();
	for (i = 0; open_fds() > before && i < PATIENCE * 100; i++)
		usleep(10000);
	CHECK(open_fds() <= before);
	stop();
}

TEST(descriptors_nobody_asked_for)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 }, word[] = "state";
	struct iovec iov = { word, 5 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
			      .msg_controllen = sizeof(control) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	unsigned before;
	int fd, i;

	start();
	fd = dial();
	CHECK_EQ(ask(fd, "state", 5), 0);
	before = open_fds();
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &d.dir, sizeof(int));
	for (i = 0; i < 100; i++) {
		CHECK_EQ(sendmsg(fd, &msg, MSG_NOSIGNAL), 5);
		CHECK_EQ(reply(fd, NULL), 0);
	}
	CHECK_EQ(open_fds(), before);
	close(fd);
	stop();
}

/* In a child: what another user is told. */
static int as_nobody(void)
{
	char buf[PACKET + 1];
	ssize_t n;
	int fd;

	if (setegid(NOBODY) || seteuid(NOBODY))
		return 10;
	fd = connect_now();
	if (fd < 0)
		return 11;
	n = recv(fd, buf, PACKET, 0);
	if (n <= 0)
		return 12;
	buf[n] = '\0';
	return strncmp(buf, ".1 ", 3) ? 13 : 0;
}

TEST(other_users)
{
	struct stat st;
	int status;
	pid_t pid;

	if (geteuid())
		test_skip("not root");
	start();
	CHECK_EQ(stat("ctl.sock", &st), 0);
	CHECK_EQ(st.st_mode & 0777, 0600);
	/* Even where the file's mode was opened up. */
	CHECK_EQ(chmod("ctl.sock", 0666), 0);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid)
		_exit(as_nobody());
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), 0);
	check_alive();
	stop();
}

static void notified(int fd, const char *what)
{
	char buf[1024];
	ssize_t n = recv(fd, buf, sizeof(buf) - 1, 0);

	if (n < 0)
		FAIL("no datagram: %s", strerror(errno));
	buf[n] = '\0';
	if (strncmp(buf, what, strlen(what)))
		FAIL("got \"%s\", not \"%s\"", buf, what);
}

TEST(service_manager)
{
	struct timeval patience = { PATIENCE, 0 };
	int round;

	for (round = 0; round < 2; round++) {
		struct sockaddr_un addr = { .sun_family = AF_UNIX };
		socklen_t len;
		int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

		CHECK(fd >= 0);
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
		snprintf(d.notify, sizeof(d.notify), "%s/cow-notify-%d", round ? "@" : test_tmp(),
			 (int)getpid());
		CHECK(strlen(d.notify) < sizeof(addr.sun_path));
		memcpy(addr.sun_path, d.notify, strlen(d.notify));
		if (round)
			addr.sun_path[0] = '\0';
		len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(d.notify));
		CHECK_EQ(bind(fd, (struct sockaddr *)&addr, len), 0);
		start();
		notified(fd, "READY=1\nSTATUS=");
		check_alive();
		stop();
		notified(fd, "STOPPING=1");
		close(fd);
		if (!round)
			CHECK_EQ(unlink(d.notify), 0);
		d.notify[0] = '\0';
	}
}
