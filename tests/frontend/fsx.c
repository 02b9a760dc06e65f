// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Random operations on a file that a FUSE server shows, against a model in
 * memory: buffered, direct and mapped reads and writes, punched holes, zeroed
 * ranges, fsync, SEEK_DATA and SEEK_HOLE, closing and opening, and restarts of
 * the server, orderly or with kill -9. The file's size never changes.
 *
 * usage: fsx [-n OPS] [-s SEED] [-r RESTARTS] [-x OP] [-c COMMAND]
 *
 * COMMAND is called with one more word: "start" prints two lines, the file and
 * a file with its initial contents; "stop" ends the server in order; "kill"
 * kills it; "end" ends it and checks what is left. -x spoils one byte behind
 * the model's back before operation OP: the run must then fail, which is how
 * the test is tested. Without -c: tests/frontend/fsx-cycle cowfuse.
 *
 * A failure prints the seed and the last operations; -s and -n repeat it.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEFAULT_OPS 100000u
#define DEFAULT_SEED 20060501u
#define DEFAULT_RESTARTS 12u
#define DEFAULT_COMMAND "tests/frontend/fsx-cycle cowfuse"
#define HISTORY 40u
#define IO_MAX (1u << 20)
#define PAGE 4096u
#define SKIPPED 77

static uint64_t rng, seed = DEFAULT_SEED, op_no;
static const char *command = DEFAULT_COMMAND;
static char path[4096], initial[4096];
static int fd = -1, direct_fd = -1;
static uint8_t *model, *buf;
static uint64_t size;
static uint64_t holes_seen;
static char history[HISTORY][96];

/* splitmix64 */
static uint64_t rnd(void)
{
	uint64_t z = rng += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static uint64_t below(uint64_t n)
{
	return rnd() % n;
}

static void __attribute__((format(printf, 1, 2))) note(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(history[op_no % HISTORY], sizeof(history[0]), fmt, ap);
	va_end(ap);
}

static _Noreturn void __attribute__((format(printf, 1, 2))) fail(const char *fmt, ...)
{
	va_list ap;

	for (uint64_t i = op_no < HISTORY ? 0 : op_no - HISTORY + 1; i <= op_no; i++)
		fprintf(stderr, "  %" PRIu64 ": %s\n", i, history[i % HISTORY]);
	fprintf(stderr, "fsx: operation %" PRIu64 ": ", op_no);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, " (-s %" PRIu64 ")\n", seed);
	exit(1);
}

/* ---- the server ---- */

/* Runs the command with @word; up to two lines of its output go to @a and @b. */
static void run(const char *word, char *a, char *b)
{
	char line[4096];
	FILE *p;
	int st;

	snprintf(line, sizeof(line), "%s %s", command, word);
	fflush(NULL);
	p = popen(line, "r");
	if (!p)
		fail("%s: %s", line, strerror(errno));
	while (fgets(line, sizeof(line), p)) {
		line[strcspn(line, "\n")] = '\0';
		if (!strncmp(line, "SKIP:", 5)) {
			puts(line);
			exit(SKIPPED);
		}
		if (a)
			snprintf(a, 4096, "%s", line);
		else
			puts(line);
		a = b;
		b = NULL;
	}
	st = pclose(p);
	if (st)
		fail("%s %s: exit status %d", command, word, WIFEXITED(st) ? WEXITSTATUS(st) : -1);
}

static void open_file(void)
{
	struct stat st;

	fd = open(path, O_RDWR | O_CLOEXEC);
	direct_fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (fd < 0 || direct_fd < 0)
		fail("%s: %s", path, strerror(errno));
	if (fstat(fd, &st))
		fail("fstat: %s", strerror(errno));
	if (size && (uint64_t)st.st_size != size)
		fail("the size became %lld", (long long)st.st_size);
	size = (uint64_t)st.st_size;
}

static void close_file(void)
{
	if (close(fd) || close(direct_fd))
		fail("close: %s", strerror(errno));
}

static void load_model(void)
{
	int in = open(initial, O_RDONLY | O_CLOEXEC);
	uint64_t at = 0;

	model = calloc(1, size + PAGE);
	buf = aligned_alloc(PAGE, IO_MAX + PAGE);
	if (in < 0 || !model || !buf)
		fail("%s: %s", initial, strerror(errno));
	while (at < size) {
		ssize_t n = read(in, model + at, size - at);

		if (n < 0)
			fail("%s: %s", initial, strerror(errno));
		if (!n)
			break;	/* the rest is zeroes */
		at += (uint64_t)n;
	}
	close(in);
}

/* ---- operations ---- */

/* Mostly small, sometimes a page or many, at most what fits behind @off. */
static uint64_t some_len(uint64_t off)
{
	static const unsigned bits[] = { 9, 12, 12, 13, 14, 16, 16, 18, 20 };
	uint64_t len = below(1ull << bits[below(sizeof(bits) / sizeof(bits[0]))]) + 1;

	if (below(4) == 0)
		len = (len + PAGE - 1) / PAGE * PAGE;
	return len < size - off ? len : size - off;
}

static uint64_t some_off(void)
{
	uint64_t off = below(size);

	switch (below(8)) {
	case 0:		/* the end, where odd sizes hurt */
		off = size - 1 - below(size < 3 * PAGE ? size : 3 * PAGE);
		break;
	case 1:
	case 2:
		off = off / PAGE * PAGE;
		break;
	case 3:		/* block edges */
		off = off / 65536 * 65536;
		off = off && below(2) ? off - below(600) % off : off;
		break;
	}
	return off;
}

/* @got are the bytes at @off. */
static void compare(const uint8_t *got, uint64_t off, uint64_t len, const char *how)
{
	if (!memcmp(got, model + off, len))
		return;
	for (uint64_t i = 0; i < len; i++)
		if (got[i] != model[off + i])
			fail("%s at %" PRIu64 "+%" PRIu64 ": byte %" PRIu64
			     " is %02x, must be %02x",
			     how, off, len, off + i, got[i], model[off + i]);
}

static void op_read(uint64_t off, uint64_t len)
{
	/* Past the end: short. */
	uint64_t ask = below(16) ? len : IO_MAX;
	uint64_t want = ask < size - off ? ask : size - off;
	ssize_t n;

	note("read %" PRIu64 " +%" PRIu64, off, ask);
	n = pread(fd, buf, ask, (off_t)off);
	if (n != (ssize_t)want)
		fail("read gave %zd, not %" PRIu64 ": %s", n, want,
		     n < 0 ? strerror(errno) : "short");
	compare(buf, off, want, "read");
}

static void fill(uint64_t len)
{
	uint64_t r = rnd();

	if (below(12) == 0) {
		memset(buf, 0, len);
		return;
	}
	for (uint64_t i = 0; i < len; i += 8, r = r * 6364136223846793005u + 1442695040888963407u)
		memcpy(buf + i, &r, 8);
}

static void op_write(uint64_t off, uint64_t len)
{
	ssize_t n;

	note("write %" PRIu64 " +%" PRIu64, off, len);
	fill(len);
	n = pwrite(fd, buf, len, (off_t)off);
	if (n != (ssize_t)len)
		fail("write gave %zd: %s", n, n < 0 ? strerror(errno) : "short");
	memcpy(model + off, buf, len);
}

static void op_direct(uint64_t off, uint64_t len)
{
	bool write = below(2);
	ssize_t n;

	off = off / PAGE * PAGE;
	len = (len + 511) / 512 * 512;
	if (off + len > size / 512 * 512)
		len = size / 512 * 512 - off;
	note("direct %s %" PRIu64 " +%" PRIu64, write ? "write" : "read", off, len);
	if (!len)
		return;
	if (write)
		fill(len);
	n = write ? pwrite(direct_fd, buf, len, (off_t)off)
		  : pread(direct_fd, buf, len, (off_t)off);
	if (n != (ssize_t)len)
		fail("direct I/O gave %zd: %s", n, n < 0 ? strerror(errno) : "short");
	if (write)
		memcpy(model + off, buf, len);
	else
		compare(buf, off, len, "direct read");
}

static void op_map(uint64_t off, uint64_t len)
{
	uint64_t from = off / PAGE * PAGE;
	bool write = below(2);
	uint8_t *p;

	note("map %s %" PRIu64 " +%" PRIu64, write ? "write" : "read", off, len);
	p = mmap(NULL, off - from + len, PROT_READ | (write ? PROT_WRITE : 0), MAP_SHARED, fd,
		 (off_t)from);
	if (p == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	compare(p + (off - from), off, len, "mapped read");
	if (write) {
		fill(len);
		memcpy(p + (off - from), buf, len);
		memcpy(model + off, buf, len);
		/* Not ours before it left the page cache: seeks and kills do not count it. */
		if (msync(p, off - from + len, MS_SYNC))
			fail("msync: %s", strerror(errno));
	}
	munmap(p, off - from + len);
}

static void op_zero(uint64_t off, uint64_t len, bool punch)
{
	int mode = punch ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE :
		FALLOC_FL_ZERO_RANGE | (below(2) ? FALLOC_FL_KEEP_SIZE : 0);

	note("%s %" PRIu64 " +%" PRIu64, punch ? "punch" : "zero", off, len);
	if (fallocate(fd, mode, (off_t)off, (off_t)len))
		fail("fallocate: %s", strerror(errno));
	memset(model + off, 0, len);
}

static void op_sync(void)
{
	bool data = below(2);

	note("%s", data ? "fdatasync" : "fsync");
	if (data ? fdatasync(fd) : fsync(fd))
		fail("sync: %s", strerror(errno));
}

static void must_be_zero(uint64_t from, uint64_t to, const char *what)
{
	for (uint64_t i = from; i < to; i++)
		if (model[i])
			fail("%s: [%" PRIu64 ", %" PRIu64 ") is told to be a hole, but %" PRIu64
			     " holds data",
			     what, from, to, i);
}

static void op_seek(uint64_t off)
{
	off_t data, hole;

	note("seek %" PRIu64, off);
	data = lseek(fd, (off_t)off, SEEK_DATA);
	if (data < 0 && errno != ENXIO)
		fail("SEEK_DATA: %s", strerror(errno));
	if (data >= 0 && ((uint64_t)data < off || (uint64_t)data >= size))
		fail("SEEK_DATA from %" PRIu64 " gave %lld", off, (long long)data);
	must_be_zero(off, data < 0 ? size : (uint64_t)data, "SEEK_DATA");
	hole = lseek(fd, (off_t)off, SEEK_HOLE);
	if (hole < (off_t)off || (uint64_t)hole > size)
		fail("SEEK_HOLE from %" PRIu64 " gave %lld: %s", off, (long long)hole,
		     strerror(errno));
	if ((uint64_t)hole < size) {
		holes_seen++;
		must_be_zero((uint64_t)hole, (uint64_t)hole + 1, "SEEK_HOLE");
	}
	if (data != (off_t)off && hole != (off_t)off)
		fail("%" PRIu64 " is neither data (next at %lld) nor a hole (next at %lld)", off,
		     (long long)data, (long long)hole);
}

static void op_reopen(void)
{
	note("close and open");
	close_file();
	open_file();
}

static void op_restart(bool force)
{
	note(force ? "kill -9 and restart" : "stop and restart");
	if (!force)
		close_file();
	run(force ? "kill" : "stop", NULL, NULL);
	if (force) {	/* whatever close says: the server is gone */
		close(fd);
		close(direct_fd);
	}
	run("start", path, initial);
	open_file();
}

static void op_random(void)
{
	uint64_t off = some_off(), len = some_len(off);
	uint64_t what = below(100);

	if (what < 30)
		op_read(off, len);
	else if (what < 60)
		op_write(off, len);
	else if (what < 72)
		op_direct(off, len);
	else if (what < 80)
		op_map(off, len);
	else if (what < 85)
		op_zero(off, len, true);
	else if (what < 90)
		op_zero(off, len, false);
	else if (what < 93)
		op_sync();
	else if (what < 98)
		op_seek(off);
	else
		op_reopen();
}

static void verify_all(void)
{
	uint64_t off, len;

	for (off = 0; off < size; off += len) {
		len = size - off < IO_MAX ? size - off : IO_MAX;
		if (pread(fd, buf, len, (off_t)off) != (ssize_t)len)
			fail("read of everything at %" PRIu64, off);
		compare(buf, off, len, "read of everything");
	}
}

static void spoil(void)
{
	uint64_t off = size / 2 / 8192 * 8192 + 77;
	uint8_t byte = (uint8_t)(model[off] ^ 0x40);

	if (pwrite(fd, &byte, 1, (off_t)off) != 1)
		fail("spoil: %s", strerror(errno));
}

static uint64_t number(const char *s)
{
	char *end;
	unsigned long long v = strtoull(s, &end, 0);

	if (*end || !*s) {
		fprintf(stderr, "fsx: not a number: %s\n", s);
		exit(2);
	}
	return v;
}

int main(int argc, char **argv)
{
	uint64_t ops = DEFAULT_OPS, restarts = DEFAULT_RESTARTS, spoil_at = UINT64_MAX, every;
	int c;

	if (getenv("SEED"))
		seed = number(getenv("SEED"));
	if (getenv("FSX_OPS"))
		ops = number(getenv("FSX_OPS"));
	while ((c = getopt(argc, argv, "n:s:r:x:c:")) != -1) {
		switch (c) {
		case 'n':
			ops = number(optarg);
			break;
		case 's':
			seed = number(optarg);
			break;
		case 'r':
			restarts = number(optarg);
			break;
		case 'x':
			spoil_at = number(optarg);
			break;
		case 'c':
			command = optarg;
			break;
		default:
			return 2;
		}
	}
	rng = seed;
	printf("fsx: seed %" PRIu64 ", %" PRIu64 " operations, %" PRIu64 " restarts\n", seed, ops,
	       restarts);
	run("start", path, initial);
	open_file();
	load_model();
	verify_all();
	every = restarts ? ops / (restarts + 1) + 1 : UINT64_MAX;
	for (op_no = 0; op_no < ops; op_no++) {
		if (op_no == spoil_at)
			spoil();
		if (op_no && op_no % every == 0)
			op_restart(op_no / every % 2);
		else
			op_random();
	}
	verify_all();
	if (ops >= 1000 && !holes_seen)
		fail("holes were punched, and SEEK_HOLE never found one");
	close_file();
	run("end", NULL, NULL);
	printf("fsx: %" PRIu64 " operations, %" PRIu64 " holes seen, size %" PRIu64 "\n", ops,
	       holes_seen, size);
	free(model);
	free(buf);
	return 0;
}
