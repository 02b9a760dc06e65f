// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What no daemon should say: each wrong record to the control node gets its errno and changes
 * nothing, each right one after it is taken.
 *
 *	dmu-evil KEY NODE	its target: 163840 sectors or more; blocks of 64 KiB; device 0
 *				writable and larger, device 1 not writable, 81920 sectors or more
 */
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "dmuchan.h"

#define SECTION DMU_SECTION_SECTORS

static int chan;
static unsigned int checks;

static void expect(const char *what, int got, int want)
{
	checks++;
	if (got != want)
		die("dmu-evil: %s: %s, not %s", what, got ? strerror(-got) : "taken",
		    want ? strerror(-want) : "taken");
}

/* ---- records that are right, to be made wrong ---- */

struct section {
	struct dmu_section s;
	struct dmu_plane pl[2];
	uint64_t bits[128];
};

static struct section good_section(void)
{
	struct section r = {
		.s = { .head = { DMU_SECTION, sizeof(r), 0 }, .sectors = SECTION, .planes = 2,
		       .granule_shift = 3, .flags = DMU_SECTION_WRITE },
		.pl = { { .limit = SECTION, .flags = DMU_PLANE_BITS },
			{ .limit = SECTION, .dev = 1 } },
	};

	return r;
}

static struct dmu_blocks good_blocks(void)
{
	struct dmu_blocks b = {
		.head = { DMU_BLOCKS, sizeof(b), 0 }, .start = SECTION, .sectors = 128,
		.flags = DMU_BLOCKS_READ | DMU_BLOCKS_WRITE, .position = SECTION,
	};

	return b;
}

static int put_section(struct section r)
{
	return dmu_put(chan, &r, sizeof(r));
}

static int put_blocks(struct dmu_blocks b)
{
	return dmu_put(chan, &b, sizeof(b));
}

struct data {
	struct dmu_data d;
	uint8_t bytes[8 * 512];
};

/* The bytes that the question @a needs. */
static int put_data(struct data r)
{
	return dmu_put(chan, &r, sizeof(r));
}

#define DATA_WITH(want, a, ...) do { \
	struct data r = { { { DMU_DATA, sizeof(r), (a).head.id }, .start = (a).at, .sectors = 8 }, { 0 } }; \
	__VA_ARGS__; \
	expect("data: " #__VA_ARGS__, put_data(r), want); \
} while (0)

#define SECTION_WITH(want, ...) do { \
	struct section r = good_section(); \
	__VA_ARGS__; \
	expect("section: " #__VA_ARGS__, put_section(r), want); \
} while (0)

#define BLOCKS_WITH(want, ...) do { \
	struct dmu_blocks b = good_blocks(); \
	__VA_ARGS__; \
	expect("blocks: " #__VA_ARGS__, put_blocks(b), want); \
} while (0)

/* ---- the stream ---- */

static void hello_checks(const char *key)
{
	struct dmu_hello h = {
		.head = { DMU_HELLO, sizeof(h), 9 }, .abi = DMU_ABI, .features = DMU_FEATURES,
	};
	struct dmu_hello bad;
	char buf[64];

	expect("read before HELLO", read(chan, buf, sizeof(buf)) < 0 ? -errno : 0, -ENOTCONN);
	expect("ACK before HELLO", dmu_simple(chan, DMU_ACK, 1), -ENOTCONN);
	expect("LEAVE before HELLO", dmu_simple(chan, DMU_LEAVE, 1), -ENOTCONN);
	expect("section before HELLO", put_section(good_section()), -ENOTCONN);
	snprintf(h.key, sizeof(h.key), "%s", key);
	bad = h; bad.abi = 2;
	expect("abi", dmu_put(chan, &bad, sizeof(bad)), -EPROTO);
	bad = h; bad.features |= 0x80000000;
	expect("features", dmu_put(chan, &bad, sizeof(bad)), -EPROTO);
	bad = h; bad.flags = 2;
	expect("flags", dmu_put(chan, &bad, sizeof(bad)), -EINVAL);
	bad = h; bad.pad = 1;
	expect("pad", dmu_put(chan, &bad, sizeof(bad)), -EINVAL);
	bad = h; memset(bad.key, 'x', sizeof(bad.key));
	expect("endless key", dmu_put(chan, &bad, sizeof(bad)), -EINVAL);
	bad = h; bad.key[0] ^= 1;
	expect("other key", dmu_put(chan, &bad, sizeof(bad)), -ENODEV);
	expect("hello", dmu_put(chan, &h, sizeof(h)), 0);
	expect("hello again", dmu_put(chan, &h, sizeof(h)), -EISCONN);
}

static void size_checks(void)
{
	struct { struct dmu_head h; uint8_t rest[DMU_RECORD_MAX + 64]; } r;
	uint32_t type, sizes[] = { 0, 8, 15, 17, 24, 48, 4096, DMU_RECORD_MAX, DMU_RECORD_MAX + 8,
				   0x7ffffff8, 0xfffffff8 };
	unsigned int i;
	void *nowhere;

	memset(&r, 0xff, sizeof(r));
	expect("no bytes", dmu_put(chan, &r, 0), 0);
	expect("half a header", dmu_put(chan, &r, 8), -EINVAL);
	for (type = 0; type < 100; type++) {
		for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
			/* Right sizes of their types, with wrong contents, are tried below. */
			if (type == DMU_SECTION || (type == DMU_RESULT && sizes[i] == 24))
				continue;
			r.h.type = type;
			r.h.size = sizes[i];
			r.h.id = 1;
			expect("wrong size", dmu_put(chan, &r, sizeof(r)), -EINVAL);
		}
		if (type < DMU_HELLO || type > DMU_LEAVE) {
			r.h.size = 16;
			expect("wrong type", dmu_put(chan, &r, 16), -EINVAL);
		}
	}
	nowhere = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	expect("bad address", dmu_put(chan, nowhere, 64), -EFAULT);
}

static void section_checks(void)
{
	SECTION_WITH(-EINVAL, r.s.start = 8);
	SECTION_WITH(-ERANGE, r.s.start = 1ull << 40);
	SECTION_WITH(-ERANGE, r.s.start = ~0ull << DMU_SECTION_SHIFT);
	SECTION_WITH(-EINVAL, r.s.sectors = SECTION - 1);
	SECTION_WITH(-EINVAL, r.s.sectors = 0);
	SECTION_WITH(-EINVAL, r.s.planes = 0);
	SECTION_WITH(-EINVAL, r.s.planes = 9);
	SECTION_WITH(-EINVAL, r.s.planes = 0xffff);
	SECTION_WITH(-EINVAL, r.s.planes = 1);
	SECTION_WITH(-EINVAL, r.s.planes = 3);
	SECTION_WITH(-EINVAL, r.s.granule_shift = 2);
	SECTION_WITH(-EINVAL, r.s.granule_shift = 4);
	SECTION_WITH(-EINVAL, r.s.granule_shift = 17);
	SECTION_WITH(-EINVAL, r.s.granule_shift = 255);
	SECTION_WITH(-EINVAL, r.s.flags = 2);
	SECTION_WITH(-EINVAL, r.s.head.size = 32);
	SECTION_WITH(-EINVAL, r.s.head.size = 64);
	SECTION_WITH(-EINVAL, r.s.head.size -= 8);
	SECTION_WITH(-EINVAL, r.pl[0].flags = 0);
	SECTION_WITH(-EINVAL, r.pl[0].flags = 3);
	SECTION_WITH(-EINVAL, r.pl[1].flags = DMU_PLANE_BITS);
	SECTION_WITH(-EINVAL, r.pl[1].dev = 2);
	SECTION_WITH(-EINVAL, r.pl[1].dev = 63);
	SECTION_WITH(-EINVAL, r.pl[1].dev = 0xfffe);
	SECTION_WITH(-EINVAL, r.pl[1].dev = DMU_DEV_ZERO, r.pl[1].position = 8);
	SECTION_WITH(-EINVAL, r.pl[1].limit = SECTION + 1);
	SECTION_WITH(-EINVAL, r.pl[1].limit = ~0u);
	SECTION_WITH(-ERANGE, r.pl[1].position = 1ull << 40);
	SECTION_WITH(-ERANGE, r.pl[1].position = ~0ull);
	SECTION_WITH(-ERANGE, r.pl[1].position = 81920 - SECTION + 8192);
	SECTION_WITH(-EINVAL, r.pl[0].limit = SECTION - 8);
	SECTION_WITH(-EROFS, r.pl[0].dev = 1);
	SECTION_WITH(-EINVAL, r.pl[0].dev = DMU_DEV_ZERO);
	SECTION_WITH(-EINVAL, r.pl[1].dev = 0);
	SECTION_WITH(-EINVAL, r.pl[1].dev = 0, r.pl[1].position = SECTION - 8);
	SECTION_WITH(-ENOENT, r.s.head.id = 12345);
	SECTION_WITH(0, r.bits[5] = 3);
	SECTION_WITH(0, r.bits[5] = 4);
	SECTION_WITH(-EEXIST, r.pl[0].position = SECTION);
	SECTION_WITH(-EEXIST, r.pl[1].limit = 8);
	SECTION_WITH(-EEXIST, r.s.granule_shift = 4, r.s.head.size -= 512);
	BLOCKS_WITH(-EEXIST, b.start = 0);
}

static void blocks_checks(void)
{
	BLOCKS_WITH(-EINVAL, b.start = SECTION + 8);
	BLOCKS_WITH(-EINVAL, b.sectors = 0);
	BLOCKS_WITH(-EINVAL, b.sectors = 8);
	BLOCKS_WITH(-EINVAL, b.sectors = SECTION, b.start += 128);
	BLOCKS_WITH(-ERANGE, b.sectors = ~0u);
	BLOCKS_WITH(-ERANGE, b.start = 1ull << 40);
	BLOCKS_WITH(-ERANGE, b.start = ~127ull);
	BLOCKS_WITH(-EINVAL, b.flags = 0);
	BLOCKS_WITH(-EINVAL, b.flags = DMU_BLOCKS_COPY);
	BLOCKS_WITH(-EINVAL, b.flags |= 32);
	BLOCKS_WITH(-EINVAL, b.flags |= DMU_BLOCKS_COPY);
	BLOCKS_WITH(-EINVAL, b.flags |= DMU_BLOCKS_TEMPORARY);
	BLOCKS_WITH(-EINVAL, b.pad = 1);
	BLOCKS_WITH(-EINVAL, b.from = 8);
	BLOCKS_WITH(-EINVAL, b.from_dev = 1);
	BLOCKS_WITH(-EINVAL, b.dev = 2);
	BLOCKS_WITH(-EINVAL, b.dev = DMU_DEV_ZERO);
	BLOCKS_WITH(-EINVAL, b.dev = DMU_DEV_ZERO, b.position = 0);
	BLOCKS_WITH(-EROFS, b.dev = 1, b.position = 0);
	BLOCKS_WITH(-ERANGE, b.position = 1ull << 40);
	BLOCKS_WITH(-ERANGE, b.position = 1ull << 60);
	BLOCKS_WITH(-ERANGE, b.position = ~0ull);
	BLOCKS_WITH(-ENOENT, b.head.id = 12345);
	BLOCKS_WITH(0, b.dev = 1, b.flags = DMU_BLOCKS_READ, b.position = 0);
	BLOCKS_WITH(0, b.dev = DMU_DEV_ZERO, b.flags = DMU_BLOCKS_READ, b.position = 0);
	BLOCKS_WITH(0, b.position += 0);
	SECTION_WITH(-EEXIST, r.s.start = SECTION, r.pl[0].position = 1 << 17, r.pl[1].position = 0);
}

static void range_checks(void)
{
	struct dmu_range g = { .head = { DMU_REVOKE, sizeof(g), 5 }, .sectors = 1 }, bad;
	struct dmu_result r = { .head = { DMU_RESULT, sizeof(r), 77 } }, wrong;

	bad = g; bad.head.id = 0;
	expect("revoke of no id", dmu_put(chan, &bad, sizeof(bad)), -EINVAL);
	bad = g; bad.sectors = 0;
	expect("revoke of nothing", dmu_put(chan, &bad, sizeof(bad)), -EINVAL);
	bad = g; bad.start = 8; bad.sectors = ~0ull;
	expect("revoke around the end", dmu_put(chan, &bad, sizeof(bad)), -EINVAL);
	expect("ack of nothing", dmu_simple(chan, DMU_ACK, 0), -ENOENT);
	expect("ack never asked", dmu_simple(chan, DMU_ACK, 3), -ENOENT);
	expect("result never asked", dmu_put(chan, &r, sizeof(r)), -ENOENT);
	wrong = r; wrong.head.id = 0;
	expect("result of no id", dmu_put(chan, &wrong, sizeof(wrong)), -EINVAL);
	wrong = r; wrong.error = 1;
	expect("positive error", dmu_put(chan, &wrong, sizeof(wrong)), -EINVAL);
	wrong = r; wrong.error = -5000;
	expect("no such error", dmu_put(chan, &wrong, sizeof(wrong)), -EINVAL);
	wrong = r; wrong.error = -2147483647 - 1;
	expect("least error", dmu_put(chan, &wrong, sizeof(wrong)), -EINVAL);
	wrong = r; wrong.pad = 1;
	expect("result with padding", dmu_put(chan, &wrong, sizeof(wrong)), -EINVAL);
}

/* Several records in one write: those before the bad one are taken. */
static void batch_checks(void)
{
	struct { struct dmu_blocks good[2], bad; } b = { { good_blocks(), good_blocks() }, good_blocks() };
	ssize_t n;

	b.bad.pad = 1;
	n = write(chan, &b, sizeof(b));
	expect("batch", n == (ssize_t)sizeof(b.good) ? 0 : -EIO, 0);
}

/* ---- questions and their answers ---- */

static const char *node;

/*
 * Reads a block of the node, in a process of its own: a thread that waits for this daemon would
 * keep it from ending. Its exit status is the errno.
 */
static pid_t start_reader(uint64_t at)
{
	pid_t pid = fork();
	void *buf;
	int fd;

	if (pid < 0)
		die("dmu-evil: fork: %s", strerror(errno));
	if (pid)
		return pid;
	close(chan);
	fd = open(node, O_RDONLY | O_DIRECT);
	if (fd < 0 || posix_memalign(&buf, 4096, 4096))
		_exit(255);
	_exit(pread(fd, buf, 4096, (off_t)(at * 512)) < 0 ? errno : 0);
}

/* The errno, or -1 while it is not done and @wait is false. */
static int reader_end(pid_t pid, bool wait)
{
	int status;
	pid_t r = waitpid(pid, &status, wait ? 0 : WNOHANG);

	if (!r)
		return -1;
	if (r != pid || !WIFEXITED(status))
		die("dmu-evil: the reader died");
	return WEXITSTATUS(status);
}

/* Where the reader is, for a question that does not come. */
static _Noreturn void no_question(pid_t reader)
{
	char path[64], stack[2048] = "";
	int end = reader_end(reader, false), fd;

	snprintf(path, sizeof(path), "/proc/%d/stack", (int)reader);
	fd = open(path, O_RDONLY);
	if (end < 0 && fd >= 0 && read(fd, stack, sizeof(stack) - 1) < 0)
		stack[0] = '\0';
	die("dmu-evil: no question comes, after %u records; the reader %s %d\n%s", checks,
	    end < 0 ? "waits:" : "ended:", end, stack);
}

/* One record: no more than fits is read, or a question behind it would be lost. */
static ssize_t read_record(void *to, size_t max)
{
	size_t room = sizeof(struct dmu_ask);
	ssize_t n;

	while ((n = read(chan, to, room)) < 0 && errno == EMSGSIZE && room < max)
		room += sizeof(uint64_t);
	return n;
}

static struct dmu_ask next_ask(pid_t reader)
{
	union { struct dmu_head h; struct dmu_ask a; uint64_t raw[DMU_RECORD_MAX / 8]; } r;
	struct pollfd p = { chan, POLLIN, 0 };

	for (;;) {
		if (poll(&p, 1, 100000) != 1)
			no_question(reader);
		if (read_record(&r, sizeof(r)) <= 0)
			die("dmu-evil: read: %s", strerror(errno));
		if (r.h.type == DMU_ASK)
			return r.a;
	}
}

static void data_checks(void)
{
	pid_t reader = start_reader(2 * SECTION + 1024);
	struct dmu_ask a = next_ask(reader);
	int got;

	if (a.at != 2 * SECTION + 1024 || a.need < 8)
		die("dmu-evil: a question that does not say what is needed");
	DATA_WITH(-ENOENT, a, r.d.head.id = 12345);
	DATA_WITH(-EINVAL, a, r.d.head.id = 0);
	DATA_WITH(-EINVAL, a, r.d.sectors = 0);
	DATA_WITH(-EINVAL, a, r.d.sectors = 7);
	DATA_WITH(-EINVAL, a, r.d.sectors = 9);
	DATA_WITH(-EINVAL, a, r.d.sectors = 1u << 23);
	DATA_WITH(-EINVAL, a, r.d.sectors = ~0u);
	DATA_WITH(-EINVAL, a, r.d.pad = 1);
	DATA_WITH(-EINVAL, a, r.d.start += 8);
	DATA_WITH(-EINVAL, a, r.d.start -= 8);
	DATA_WITH(-EINVAL, a, r.d.start = ~7ull);
	DATA_WITH(0, a, (void)0);
	while ((got = reader_end(reader, false)) < 0) {
		struct pollfd p = { chan, POLLIN, 0 };

		if (poll(&p, 1, 50) != 1)
			continue;
		a = next_ask(reader);		/* for what is behind that */
		DATA_WITH(0, a, (void)0);
	}
	if (got)
		die("dmu-evil: a read that was answered by its bytes: %s", strerror(got));
	DATA_WITH(-ENOENT, a, (void)0);
}

static void ask_checks(void)
{
	pid_t reader = start_reader(2 * SECTION + 256);
	struct dmu_ask a = next_ask(reader);
	uint64_t first_id;
	int got;

	first_id = a.head.id;
	if (a.start != 2 * SECTION + 256 || a.op != DMU_OP_READ || a.sectors != 128 || a.head.size != sizeof(a))
		die("dmu-evil: a strange question");
	SECTION_WITH(-EINVAL, r.s.head.id = first_id);
	BLOCKS_WITH(-EINVAL, b.head.id = first_id);
	BLOCKS_WITH(-EINVAL, b.head.id = first_id, b.start = 2 * SECTION + 128, b.position = 0);
	BLOCKS_WITH(-EINVAL, b.head.id = first_id, b.start = a.start, b.position = 1 << 17,
		    b.from_dev = 1, b.flags |= DMU_BLOCKS_COPY);
	expect("error 0", dmu_result(chan, first_id, 0), -EINVAL);
	expect("ack of a question", dmu_simple(chan, DMU_ACK, first_id), -ENOENT);
	/* Good for writing alone: no help for a read, asked again, until that is enough. */
	BLOCKS_WITH(0, b.head.id = first_id, b.start = a.start, b.position = 1 << 17,
		    b.flags = DMU_BLOCKS_WRITE | DMU_BLOCKS_TEMPORARY);
	while ((got = reader_end(reader, false)) < 0) {
		struct pollfd p = { chan, POLLIN, 0 };

		if (poll(&p, 1, 50) != 1)
			continue;
		a = next_ask(reader);
		BLOCKS_WITH(0, b.head.id = a.head.id, b.start = a.start, b.position = 1 << 17,
			    b.flags = DMU_BLOCKS_WRITE);
	}
	if (got != EIO)
		die("dmu-evil: useless answers end with %s", strerror(got));
	data_checks();
	expect("answer once more", dmu_result(chan, first_id, -EIO), -ENOENT);
}

static void error_checks(void)
{
	static const struct { int said, got; } e[] = {
		{ ENOSPC, ENOSPC }, { EIO, EIO }, { EREMCHG, EIO }, { EAGAIN, EIO }, { 4095, EIO },
		{ ENODATA, ENODATA },
	};
	struct dmu_ask a;
	unsigned int i;
	pid_t reader;
	int got;

	for (i = 0; i < sizeof(e) / sizeof(e[0]); i++) {
		reader = start_reader(2 * SECTION + 2048 + i * 128);
		a = next_ask(reader);
		expect("error", dmu_result(chan, a.head.id, -e[i].said), 0);
		got = reader_end(reader, true);
		if (got != e[i].got)
			die("dmu-evil: error %d ends as %s", e[i].said, strerror(got));
	}
}

int main(int argc, char **argv)
{
	int other;

	if (argc != 3)
		die("dmu-evil: KEY NODE are needed");
	node = argv[2];
	chan = dmu_open(O_NONBLOCK);
	other = dmu_open(O_NONBLOCK);
	if (chan < 0 || other < 0)
		die("dmu-evil: /dev/" DMU_NODE ": %s", strerror(errno));
	hello_checks(argv[1]);
	expect("second daemon", dmu_hello(other, argv[1], 0), -EBUSY);
	expect("third in line", dmu_hello(other, argv[1], DMU_HELLO_WAIT), 0);
	expect("not its turn", dmu_simple(other, DMU_ACK, 1), -ENOTCONN);
	close(other);
	size_checks();
	section_checks();
	blocks_checks();
	range_checks();
	batch_checks();
	ask_checks();
	error_checks();
	printf("%u records\n", checks);
	return 0;
}
