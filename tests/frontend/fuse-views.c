// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Several views of one running device, driven through the library as cowd does
 * it: what is written through one is seen in the other, sizes follow a resize,
 * a pause holds requests, and every way to unmount ends in a clean close. Also
 * when cached pages are kept and when they must not be.
 *
 * The device lives in a child process that obeys one-letter commands; the test
 * itself is the client of the mounts.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fuse/fuse.h"
#include "test.h"

#define MIB (1ull << 20)

static char img[300], dir_a[300], dir_b[300];
static int ctl = -1;
static pid_t server_pid;

/* ---- the child: a device with view A (writable) and view B (shared, read-only) ---- */

struct server {
	struct cow_loop *loop;
	struct cow_dev *dev;
	struct cow_fuse *a, *b;
	struct cow_source *src;
	int fd;
	bool b_gone;
};

static void answer(struct server *s, char c)
{
	if (write(s->fd, &c, 1) != 1)
		_exit(20);
}

static void b_unmounted(void *opaque)
{
	struct server *s = opaque;

	cow_fuse_unmount(s->b);
	s->b = NULL;
	s->b_gone = true;
}

static void resized(void *opaque, int result, const char *sentence)
{
	if (result)
		fprintf(stderr, "resize: %s\n", sentence);
	answer(opaque, result ? 'x' : '+');
}

static void paused(void *opaque)
{
	answer(opaque, 'p');
}

static void drained(void *opaque)
{
	struct server *s = opaque;

	cow_loop_stop(s->loop, 0);
}

static void on_command(void *opaque, uint32_t events)
{
	struct server *s = opaque;
	char c;

	(void)events;
	if (read(s->fd, &c, 1) != 1)
		_exit(21);
	switch (c) {
	case '+':
		cow_dev_resize(s->dev, cow_dev_size(s->dev) + MIB, false, resized, s);
		break;
	case '-':
		cow_dev_resize(s->dev, cow_dev_size(s->dev) - MIB, true, resized, s);
		break;
	case 'p':
		cow_dev_pause(s->dev, paused, s);
		break;
	case 'r':
		cow_dev_resume(s->dev);
		answer(s, 'r');
		break;
	case 'b':
		answer(s, s->b_gone ? 'g' : 'h');
		break;
	case 'q':
		cow_fuse_unmount(s->a);
		cow_fuse_unmount(s->b);
		cow_dev_drain(s->dev, drained, s);
		break;
	}
}

static struct cow_fuse *view(struct server *s, const char *dir, bool writable, void (*gone)(void *))
{
	struct cow_fuse_cfg cfg = { .loop = s->loop,
				    .dev = s->dev,
				    .mountpoint = dir,
				    .writable = writable,
				    .shared = !writable,
				    .unmounted = gone,
				    .opaque = s };
	struct cow_err err = { 0 };
	struct cow_fuse *f;

	if (cow_fuse_mount(&cfg, &f, &err)) {
		fprintf(stderr, "%s\n", err.msg);
		_exit(22);
	}
	return f;
}

static _Noreturn void server_main(int fd)
{
	struct server s = { .fd = fd, .loop = cow_loop_new() };
	struct cow_chain_cfg chain = { .format = "raw", .path = img, .flags = COW_OPEN_WRITE };
	struct cow_dev_cfg dev = { .name = "views, \\odd" };
	struct cow_err err = { 0 };
	struct cow_chain *c;
	int rc;

	if (!s.loop || cow_chain_open(&chain, &c, &err)) {
		fprintf(stderr, "%s\n", err.msg);
		_exit(23);
	}
	if (cow_dev_new(s.loop, c, &dev, &s.dev))
		_exit(24);
	s.a = view(&s, dir_a, true, NULL);
	s.b = view(&s, dir_b, false, b_unmounted);
	s.src = cow_loop_fd(s.loop, fd, EPOLLIN, on_command, &s);
	if (!s.src)
		_exit(25);
	answer(&s, 'k');
	cow_loop_run(s.loop);
	cow_source_free(s.src);
	rc = cow_dev_free(s.dev);
	cow_loop_free(s.loop);
	exit(rc ? 26 : 0);
}

/* ---- the client ---- */

static char tell(char c)
{
	if (c && write(ctl, &c, 1) != 1)
		FAIL("the server is gone");
	if (read(ctl, &c, 1) != 1)
		FAIL("the server is gone");
	return c;
}

static void clean_up(void)
{
	if (server_pid > 0)
		kill(server_pid, SIGKILL);
	umount2(dir_a, MNT_DETACH);
	umount2(dir_b, MNT_DETACH);
}

static void start(void)
{
	static bool registered;
	int sp[2], fd;

	if (geteuid())
		test_skip("not root");
	if (access("/dev/fuse", R_OK | W_OK))
		test_skip("no access to /dev/fuse");
	if (server_pid)		/* an earlier case failed */
		clean_up();
	snprintf(img, sizeof(img), "%s/views.img", test_tmp());
	snprintf(dir_a, sizeof(dir_a), "%s/views.a", test_tmp());
	snprintf(dir_b, sizeof(dir_b), "%s/views.b", test_tmp());
	mkdir(dir_a, 0700);
	mkdir(dir_b, 0700);
	unlink(img);
	fd = open(img, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK(fd >= 0);
	CHECK_EQ(ftruncate(fd, 8 * MIB + 100), 0);
	close(fd);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sp), 0);
	fflush(NULL);
	server_pid = fork();
	CHECK(server_pid >= 0);
	if (!server_pid) {
		close(sp[0]);
		server_main(sp[1]);
	}
	close(sp[1]);
	ctl = sp[0];
	CHECK_EQ(tell(0), 'k');
	if (!registered)
		atexit(clean_up);
	registered = true;
}

static void stop(void)
{
	char c = 'q';
	int st;

	CHECK_EQ(write(ctl, &c, 1), 1);
	CHECK_EQ(waitpid(server_pid, &st, 0), server_pid);
	server_pid = 0;
	close(ctl);
	CHECK_EQ(st, 0);
}

static int open_at(const char *dir, const char *name, int flags)
{
	char path[400];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, flags | O_CLOEXEC);
	if (fd < 0)
		FAIL("%s: %s", path, strerror(errno));
	return fd;
}

static void put(int fd, char c, uint64_t off)
{
	char page[4096];

	memset(page, c, sizeof(page));
	CHECK_EQ(pwrite(fd, page, sizeof(page), (off_t)off), sizeof(page));
}

/* The page at @off holds nothing but @c. */
static bool holds(int fd, char c, uint64_t off)
{
	char page[4096];

	CHECK_EQ(pread(fd, page, sizeof(page), (off_t)off), sizeof(page));
	for (unsigned i = 0; i < sizeof(page); i++)
		if (page[i] != c)
			return false;
	return true;
}

static bool holds_fresh(const char *dir, const char *name, char c, uint64_t off)
{
	int fd = open_at(dir, name, O_RDONLY);
	bool yes = holds(fd, c, off);

	close(fd);
	return yes;
}

static uint64_t size_at(const char *dir, const char *name)
{
	char path[400];
	struct stat st;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	CHECK_EQ(stat(path, &st), 0);
	return (uint64_t)st.st_size;
}

/* Reads that reached the device so far. */
static uint64_t reads(void)
{
	int fd = open_at(dir_b, "stats", O_RDONLY);
	char text[16384], *p;
	ssize_t n = read(fd, text, sizeof(text) - 1);

	CHECK(n > 0);
	text[n] = '\0';
	close(fd);
	p = strstr(text, "  read:");
	p = p ? strstr(p, "ops:") : NULL;
	CHECK(p);
	return strtoull(p + 4, NULL, 10);
}

TEST(other_views_see_every_write)
{
	int a, b;

	start();
	a = open_at(dir_a, "disk", O_RDWR);
	b = open_at(dir_b, "disk", O_RDONLY);
	for (char c = 'a'; c < 'k'; c++) {
		put(a, c, 65536);
		CHECK(holds(b, c, 65536));
		CHECK(holds_fresh(dir_b, "disk", c, 65536));
		CHECK(holds_fresh(dir_b, "layers/0", c, 65536));
	}
	close(a);
	close(b);
	CHECK(open(dir_b, O_RDONLY | O_TMPFILE | O_WRONLY, 0600) < 0);
	stop();
}

/* A partition table with one entry, [1 MiB, 5 MiB), and one behind it. */
static void write_table(int fd)
{
	uint8_t mbr[512] = { 0 };
	const uint32_t start_lba[] = { 2048, 10240 }, len[] = { 8192, 2048 };

	for (unsigned i = 0; i < 2; i++) {
		uint8_t *e = mbr + 446 + 16 * i;

		e[4] = 0x83;
		memcpy(e + 8, &start_lba[i], 4);
		memcpy(e + 12, &len[i], 4);
	}
	mbr[510] = 0x55;
	mbr[511] = 0xaa;
	CHECK_EQ(pwrite(fd, mbr, sizeof(mbr), 0), sizeof(mbr));
}

TEST(aliases_never_show_old_bytes_after_open)
{
	int disk, p1, p2, n;
	char path[400];

	start();
	disk = open_at(dir_a, "disk", O_RDWR);
	write_table(disk);
	put(disk, 'a', MIB);
	close(disk);
	CHECK_EQ(size_at(dir_a, "p1"), 4 * MIB);
	CHECK_EQ(size_at(dir_a, "p2"), MIB);
	CHECK(holds_fresh(dir_a, "p1", 'a', 0));
	CHECK(holds_fresh(dir_a, "layers/0", 'a', MIB));

	/* Through the disk, then looked at through the partition, and back. */
	disk = open_at(dir_a, "disk", O_RDWR);
	put(disk, 'b', MIB);
	CHECK(holds_fresh(dir_a, "p1", 'b', 0));
	/* Opened under a writer, a file follows it without being opened again. */
	p1 = open_at(dir_a, "p1", O_RDONLY);
	CHECK(holds(p1, 'b', 0));
	put(disk, 'c', MIB);
	CHECK(holds(p1, 'c', 0));
	close(p1);
	/* While the disk is open for writing nothing that overlaps may be. */
	snprintf(path, sizeof(path), "%s/p1", dir_a);
	n = open(path, O_RDWR);
	CHECK(n < 0 && errno == EBUSY);
	close(disk);
	p1 = open_at(dir_a, "p1", O_RDWR);
	CHECK(holds(p1, 'c', 0));
	put(p1, 'd', 0);
	snprintf(path, sizeof(path), "%s/disk", dir_a);
	n = open(path, O_WRONLY);
	CHECK(n < 0 && errno == EBUSY);
	/* Partitions that do not overlap are independent. */
	p2 = open_at(dir_a, "p2", O_RDWR);
	put(p2, 'z', 0);
	close(p2);
	CHECK(holds_fresh(dir_a, "disk", 'd', MIB));
	CHECK(holds_fresh(dir_a, "layers/0", 'd', MIB));
	put(p1, 'e', 0);
	CHECK(holds_fresh(dir_a, "disk", 'e', MIB));
	close(p1);
	CHECK(holds_fresh(dir_a, "disk", 'e', MIB));
	CHECK(holds_fresh(dir_a, "disk", 'z', 5 * MIB));
	disk = open_at(dir_a, "disk", O_RDWR);
	CHECK_EQ(fallocate(disk, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)MIB, 65536), 0);
	close(disk);
	CHECK(holds_fresh(dir_a, "p1", 0, 0));
	stop();
}

TEST(cached_pages_are_kept_while_nothing_changed)
{
	uint64_t before;
	int fd;

	start();
	fd = open_at(dir_a, "disk", O_RDWR);
	put(fd, 'q', 3 * MIB);
	CHECK(holds(fd, 'q', 3 * MIB));
	close(fd);
	before = reads();
	for (unsigned i = 0; i < 5; i++)
		CHECK(holds_fresh(dir_a, "disk", 'q', 3 * MIB));
	CHECK_EQ(reads(), before);
	/* The other view may not trust its pages: every read arrives. */
	for (unsigned i = 0; i < 5; i++)
		CHECK(holds_fresh(dir_b, "disk", 'q', 3 * MIB));
	CHECK(reads() >= before + 5);
	stop();
}

TEST(sizes_follow_a_resize)
{
	const uint64_t size = 8 * MIB + 100;
	char buf[4096], *map;
	int a, b;

	start();
	a = open_at(dir_a, "disk", O_RDWR);
	b = open_at(dir_b, "disk", O_RDONLY);
	CHECK_EQ(size_at(dir_a, "disk"), size);
	CHECK_EQ(pread(a, buf, sizeof(buf), (off_t)(8 * MIB)), 100);
	CHECK_EQ(tell('+'), '+');
	CHECK_EQ(size_at(dir_a, "disk"), size + MIB);
	CHECK_EQ(size_at(dir_b, "disk"), size + MIB);
	CHECK_EQ(size_at(dir_a, "layers/0"), size + MIB);
	CHECK_EQ(lseek(a, 0, SEEK_END), size + MIB);
	CHECK_EQ(pread(a, buf, sizeof(buf), (off_t)(8 * MIB)), sizeof(buf));
	for (unsigned i = 0; i < sizeof(buf); i++)
		CHECK_EQ(buf[i], 0);
	put(a, 'n', 9 * MIB - 4096);
	CHECK(holds(b, 'n', 9 * MIB - 4096));
	/* What is cut off does not come back when it grows again. */
	map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, a, (off_t)(9 * MIB - 4096));
	CHECK(map != MAP_FAILED);
	CHECK_EQ(map[0], 'n');
	munmap(map, 4096);
	CHECK_EQ(tell('-'), '+');
	CHECK_EQ(tell('-'), '+');
	CHECK_EQ(size_at(dir_a, "disk"), size - MIB);
	CHECK_EQ(tell('+'), '+');
	CHECK_EQ(tell('+'), '+');
	CHECK_EQ(size_at(dir_a, "disk"), size + MIB);
	close(a);
	a = open_at(dir_a, "disk", O_RDWR);
	CHECK(holds(a, 0, 9 * MIB - 4096));
	close(a);
	close(b);
	stop();
}

TEST(a_pause_holds_requests_and_nothing_else)
{
	pid_t pid;
	int a, st;

	start();
	a = open_at(dir_a, "disk", O_RDWR);
	put(a, '1', 0);
	CHECK_EQ(tell('p'), 'p');
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		char page[4096];

		memset(page, '2', sizeof(page));
		_exit(pwrite(a, page, sizeof(page), 0) == sizeof(page) ? 0 : 1);
	}
	/* Names and sizes are answered meanwhile. */
	CHECK_EQ(size_at(dir_b, "disk"), 8 * MIB + 100);
	CHECK_EQ(reads() < 1000, 1);
	CHECK_EQ(waitpid(pid, &st, WNOHANG), 0);
	CHECK_EQ(tell('r'), 'r');
	CHECK_EQ(waitpid(pid, &st, 0), pid);
	CHECK_EQ(st, 0);
	CHECK(holds(a, '2', 0));
	close(a);
	stop();
}

TEST(one_view_can_go_before_the_other)
{
	int a, b;
	char c;

	start();
	a = open_at(dir_a, "disk", O_RDWR);
	CHECK_EQ(umount2(dir_b, 0), 0);
	/* The server hears of it through /dev/fuse, which no test can wait for but by asking. */
	for (unsigned i = 0; i < 400 && tell('b') != 'g'; i++)
		usleep(10000);
	CHECK_EQ(tell('b'), 'g');
	put(a, 'x', 0);
	CHECK(holds(a, 'x', 0));
	/* Busy or not, the library takes the mount away; the open file is dead then. */
	stop();
	CHECK(pread(a, &c, 1, 4096 * 100) < 0 && errno == ENOTCONN);
	close(a);
	b = open(img, O_RDONLY | O_CLOEXEC);
	CHECK(holds(b, 'x', 0));
	close(b);
}

TEST(mounting_fails_with_one_sentence)
{
	struct cow_chain_cfg chain = { .format = "raw", .path = img };
	struct cow_dev_cfg dev_cfg = { .name = "d" };
	struct cow_fuse_cfg cfg = { 0 };
	struct cow_err err = { 0 };
	struct cow_chain *c;
	struct cow_fuse *f = NULL;
	char file[400];

	start();
	stop();
	cfg.loop = cow_loop_new();
	CHECK(cfg.loop);
	CHECK_EQ(cow_chain_open(&chain, &c, &err), 0);
	CHECK_EQ(cow_dev_new(cfg.loop, c, &dev_cfg, &cfg.dev), 0);
	snprintf(file, sizeof(file), "%s/nowhere", test_tmp());
	cfg.mountpoint = file;
	CHECK_EQ(cow_fuse_mount(&cfg, &f, &err), -ENOENT);
	CHECK(strstr(err.msg, "nowhere"));
	memset(&err, 0, sizeof(err));
	cfg.mountpoint = img;
	CHECK_EQ(cow_fuse_mount(&cfg, &f, &err), -ENOTDIR);
	memset(&err, 0, sizeof(err));
	cfg.mountpoint = dir_a;
	cfg.writable = true;
	CHECK_EQ(cow_fuse_mount(&cfg, &f, &err), -EROFS);
	memset(&err, 0, sizeof(err));
	cfg.writable = false;
	cfg.mount_opts = "no_such_option";
	CHECK(cow_fuse_mount(&cfg, &f, &err) < 0);
	CHECK(strstr(err.msg, "no_such_option"));
	CHECK(!f);
	CHECK_EQ(cow_dev_free(cfg.dev), 0);
	cow_loop_free(cfg.loop);
}
