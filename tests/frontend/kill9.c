// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * kill -9 of the daemon, again and again, over one image that has to survive all of
 * it. Threads write to the FUSE file, the daemon is killed at a random moment, the
 * next one (cowd or cowfuse, by lot) is started, and every write that had been
 * acknowledged must be there, flushed or not. Not about power cuts: the machine
 * stays up (tests/fault has those).
 *
 * Every sector says what it is: {number of the write, place, filling, checksum};
 * the base carries number 0. Each thread owns its sectors, so what a sector may
 * hold is always known: the last acknowledged write, or the one in flight when
 * the daemon died. Sectors of a granule belong to different threads.
 *
 * Presence of a granule changes only once, so each kill gets a fresh window of
 * the disk; windows lie far apart, that different metadata blocks are in play.
 * Windows of earlier kills are written to as well, and verified again.
 *
 * usage: kill9 [KILLS]      default: 60, with FAULT=full 1000
 * environment: SEED, BUILD/bin in PATH, TMP, COW_RUN_DIR
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "stamp.h"

#define SECTOR STAMP_SECTOR
#define WINDOW (2u << 20)
#define SECTORS (WINDOW / SECTOR)	/* of a window */
#define SPACING 16u			/* a window in so many of its size */
#define THREADS 4u
#define UNIT 6u				/* sectors of one owner in the mixed half: never a granule's */
#define OP_MAX (128u << 10)
#define RECHECK 8u			/* windows verified after each kill: the latest, and random ones */
#define RUN_US_MAX 60000u
#define EARLY_US_MAX 12000u		/* kills while it starts */
#define READY_TRIES 40000u		/* of half a millisecond */
#define CHECK_LEAKS 3			/* dscow_tool -k: no damage, but unused data */
#define NAME "kill9"

struct op {
	uint64_t lo, n;			/* sectors of the whole disk's windows, in order of window */
	uint32_t value;
};

struct writer {
	pthread_t thread;
	unsigned index;
	uint64_t rnd;
	struct op inflight;		/* n > 0: started and not acknowledged */
	uint64_t acked, flushed, read;
	uint8_t *buf;
};

static struct {
	uint64_t seed, rnd;
	unsigned kills;
	char *image, *base, *mnt, *log, *disk[2];
	uint32_t *state;		/* of each sector of all windows: last write acknowledged */
	unsigned window;		/* of this round */
	bool flush, direct;		/* in this round */
	int fd;
	atomic_uint number;
	atomic_bool killed, failing;
	pid_t pid;
	struct writer writers[THREADS];
} t;

static _Noreturn void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static void stop_server(int sig)
{
	int status;

	if (t.pid <= 0)
		return;
	kill(t.pid, sig);
	waitpid(t.pid, &status, 0);
	t.pid = 0;
	if (sig == SIGTERM && status)
		fail("the server ended with status %#x after SIGTERM", (unsigned)status);
}

static void unmount(void)
{
	char dir[4096];

	if (!t.disk[0])
		return;
	snprintf(dir, sizeof(dir), "%s", t.disk[0]);
	*strrchr(dir, '/') = '\0';
	umount2(dir, MNT_DETACH);
	umount2(t.mnt, MNT_DETACH);
}

/* The last of what the programs said. */
static void show_log(void)
{
	char buf[2048];
	int fd = open(t.log, O_RDONLY | O_CLOEXEC);
	off_t end = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
	off_t from = end > (off_t)sizeof(buf) ? end - (off_t)sizeof(buf) : 0;
	ssize_t n = fd < 0 ? 0 : pread(fd, buf, sizeof(buf), from);

	if (n > 0)
		fprintf(stderr, "...%.*s", (int)n, buf);
}

static _Noreturn void fail(const char *fmt, ...)
{
	va_list ap;

	if (atomic_exchange(&t.failing, true))
		pause();	/* another thread has more to say: this one saw the consequences */
	stop_server(SIGKILL);
	unmount();
	fprintf(stderr, "kill9: ");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, " (seed %" PRIu64 ", kill %u)\n", t.seed, t.window);
	show_log();
	_exit(1);
}

/* ---- sectors ---- */

/* Where the sector with this index is on the disk: windows are spread out. */
static uint64_t place(uint64_t sector)
{
	return (sector / SECTORS * SPACING * SECTORS + sector % SECTORS) * SECTOR;
}

static void stamp(void *to, uint64_t sector, uint32_t number)
{
	stamp_put(to, t.seed, place(sector), number);
}

static void make_base(void)
{
	int fd = open(t.base, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	uint8_t *buf = malloc(WINDOW);

	if (fd < 0 || !buf || ftruncate(fd, (off_t)place((uint64_t)t.kills * SECTORS)))
		fail("%s: %s", t.base, strerror(errno));
	for (unsigned i = 0; i < t.kills; i++) {
		uint64_t first = (uint64_t)i * SECTORS;

		for (unsigned s = 0; s < SECTORS; s++)
			stamp(buf + s * SECTOR, first + s, 0);
		if (pwrite(fd, buf, WINDOW, (off_t)place(first)) != (ssize_t)WINDOW)
			fail("%s: %s", t.base, strerror(errno));
	}
	free(buf);
	close(fd);
}

/* ---- the writers ---- */

/*
 * A range that belongs to @w, in @window. The first half of a window is dealt out in
 * units of 3 KiB, the second in one piece to each thread.
 */
static void pick(struct writer *w, unsigned window, struct op *op)
{
	uint64_t first = (uint64_t)window * SECTORS, units = SECTORS / 2 / UNIT / THREADS;
	uint64_t part = SECTORS / 2 / THREADS, at;

	if (rnd_below(&w->rnd, 4)) {
		at = rnd_below(&w->rnd, UNIT);
		op->lo = first + (rnd_below(&w->rnd, units) * THREADS + w->index) * UNIT + at;
		op->n = 1 + rnd_below(&w->rnd, UNIT - at);
		return;
	}
	at = rnd_below(&w->rnd, part);
	op->n = 1 + rnd_below(&w->rnd, OP_MAX / SECTOR);
	if (rnd_below(&w->rnd, 2)) {	/* whole granules */
		at = at / 8 * 8;
		op->n = (op->n + 7) / 8 * 8;
	}
	if (op->n > part - at)
		op->n = part - at;
	op->lo = first + SECTORS / 2 + w->index * part + at;
}

static void check_own(struct writer *w, const struct op *op)
{
	uint32_t got;

	for (uint64_t i = 0; i < op->n; i++) {
		uint64_t s = op->lo + i;

		if (!stamp_get(w->buf + i * SECTOR, t.seed, place(s), &got) || got != t.state[s])
			fail("read back at %" PRIu64 ": write %" PRIu32 " is not there, but %" PRIu32,
			     place(s), t.state[s], got);
	}
	w->read++;
}

/* False: it failed, as it may once the daemon is killed. */
static bool change(struct writer *w, const struct op *op)
{
	size_t bytes = op->n * SECTOR;
	off_t at = (off_t)place(op->lo);

	if (op->value == STAMP_ZERO)
		return !fallocate(t.fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, at, (off_t)bytes);
	for (uint64_t i = 0; i < op->n; i++)
		stamp(w->buf + i * SECTOR, op->lo + i, op->value);
	return pwrite(t.fd, w->buf, bytes, at) == (ssize_t)bytes;
}

/* One operation. False: the daemon is gone. */
static bool step(struct writer *w)
{
	unsigned what = (unsigned)rnd_below(&w->rnd, 100);
	unsigned window = rnd_below(&w->rnd, 10) ? t.window : (unsigned)rnd_below(&w->rnd, t.window + 1);
	struct op op;

	if (what < 3 && t.flush) {
		if (fdatasync(t.fd))
			return false;
		w->flushed++;
		return true;
	}
	pick(w, window, &op);
	if (what < 12) {
		if (pread(t.fd, w->buf, op.n * SECTOR, (off_t)place(op.lo)) != (ssize_t)(op.n * SECTOR))
			return false;
		check_own(w, &op);
		return true;
	}
	op.value = what < 16 ? STAMP_ZERO : atomic_fetch_add(&t.number, 1);
	w->inflight = op;
	if (!change(w, &op))
		return false;
	for (uint64_t i = 0; i < op.n; i++)
		t.state[op.lo + i] = op.value;
	w->inflight.n = 0;
	w->acked++;
	return true;
}

static void *writer_main(void *arg)
{
	struct writer *w = arg;

	while (step(w))
		;
	if (!atomic_load(&t.killed))
		fail("thread %u: an operation failed although nothing was killed: %s", w->index,
		     strerror(errno));
	return NULL;
}

/* ---- the daemon ---- */

/* Runs a program. What it says goes to our log, which is shown when the test fails. */
static pid_t spawn(const char *const *argv)
{
	pid_t pid = fork();
	int fd;

	if (pid < 0)
		fail("fork: %s", strerror(errno));
	if (pid)
		return pid;
	fd = open(t.log, O_WRONLY | O_CREAT | O_APPEND, 0600);
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	execvp(argv[0], (char *const *)(uintptr_t)argv);
	dprintf(fd, "%s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

/* @how 0: cowd, 1: cowfuse. */
static void start_server(unsigned how)
{
	const char *const cowd[] = {
		"cowd", "-f", "--no-loop", "--log-level=error", "-p", "dscow", NAME, t.image, NULL
	};
	const char *const cowfuse[] = {
		"cowfuse", "-f", "-p", "dscow", "-o", "rw", t.image, t.mnt, NULL
	};

	t.pid = spawn(how ? cowfuse : cowd);
}

static void nap(uint64_t us)
{
	struct timespec ts = { (time_t)(us / 1000000), (long)(us % 1000000) * 1000 };

	nanosleep(&ts, NULL);
}

static void open_disk(unsigned how)
{
	struct stat st;
	int status;

	for (unsigned i = 0; i < READY_TRIES; i++) {
		if (waitpid(t.pid, &status, WNOHANG) == t.pid) {
			t.pid = 0;
			fail("%s did not start: status %#x", how ? "cowfuse" : "cowd",
			     (unsigned)status);
		}
		t.fd = open(t.disk[how], O_RDWR | (t.direct ? O_DIRECT : 0) | O_CLOEXEC);
		if (t.fd >= 0 && !fstat(t.fd, &st) &&
		    (uint64_t)st.st_size == place((uint64_t)t.kills * SECTORS))
			return;
		if (t.fd >= 0)
			close(t.fd);
		nap(500);
	}
	fail("%s is not there after a long time", t.disk[how]);
}

/* ---- verification ---- */

static const struct op *maybe(uint64_t sector)
{
	for (unsigned i = 0; i < THREADS; i++) {
		const struct op *op = &t.writers[i].inflight;

		if (op->n && sector - op->lo < op->n)
			return op;
	}
	return NULL;
}

/* Every sector of @window holds what was acknowledged, or what was in flight. */
static void verify(int fd, unsigned window, uint8_t *buf)
{
	uint64_t first = (uint64_t)window * SECTORS;
	uint32_t got;

	if (pread(fd, buf, WINDOW, (off_t)place(first)) != (ssize_t)WINDOW)
		fail("window %u cannot be read: %s", window, strerror(errno));
	for (unsigned i = 0; i < SECTORS; i++) {
		const struct op *op;
		bool ok = stamp_get(buf + i * SECTOR, t.seed, place(first + i), &got);

		if (ok && got == t.state[first + i])
			continue;
		op = maybe(first + i);
		if (!ok || !op || op->value != got)
			fail("lost: at %" PRIu64 ", write %" PRIu32 " was acknowledged, %s %" PRIu32
			     " is there", place(first + i), t.state[first + i],
			     ok ? "write" : "damaged", got);
		t.state[first + i] = got;
	}
}

static void verify_some(uint8_t *buf)
{
	for (unsigned i = 0; i <= RECHECK && i <= t.window; i++)
		verify(t.fd, t.window - i, buf);
	for (unsigned i = 0; i < RECHECK; i++)
		verify(t.fd, (unsigned)rnd_below(&t.rnd, t.window + 1), buf);
	/* What was in flight when the daemon died must be settled before the next one does. */
	for (unsigned i = 0; i < THREADS; i++) {
		if (t.writers[i].inflight.n)
			verify(t.fd, (unsigned)(t.writers[i].inflight.lo / SECTORS), buf);
		t.writers[i].inflight.n = 0;
	}
}

static void verify_base(uint8_t *buf)
{
	int fd = open(t.base, O_RDONLY | O_CLOEXEC);

	memset(t.state, 0, (size_t)t.kills * SECTORS * sizeof(*t.state));
	for (unsigned i = 0; i < t.kills; i++)
		verify(fd, i, buf);
	close(fd);
}

/* ---- the test ---- */

static void run_writers(void)
{
	atomic_store(&t.killed, false);
	for (unsigned i = 0; i < THREADS; i++)
		if (pthread_create(&t.writers[i].thread, NULL, writer_main, &t.writers[i]))
			fail("no thread");
	nap(rnd_below(&t.rnd, RUN_US_MAX));
	atomic_store(&t.killed, true);
	stop_server(SIGKILL);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(t.writers[i].thread, NULL);
	close(t.fd);
}

static unsigned kill_round(uint8_t *buf)
{
	unsigned how = (unsigned)rnd_below(&t.rnd, 2), early = 0;

	t.direct = rnd_below(&t.rnd, 4);
	t.flush = rnd_below(&t.rnd, 2);
	start_server(how);
	open_disk(how);
	run_writers();
	/* Now and then a second one dies while it takes over. */
	while (rnd_below(&t.rnd, 4) == 0) {
		start_server((unsigned)rnd_below(&t.rnd, 2));
		nap(rnd_below(&t.rnd, EARLY_US_MAX));
		stop_server(SIGKILL);
		early++;
	}
	how = (unsigned)rnd_below(&t.rnd, 2);
	start_server(how);
	open_disk(how);
	verify_some(buf);
	close(t.fd);
	/* The next round goes on with this image in this state: dirty, not closed. */
	stop_server(SIGKILL);
	return 2 + early;
}

static char *path(const char *dir, const char *name)
{
	char *p;

	if (asprintf(&p, "%s/%s", dir, name) < 0)
		exit(1);
	return p;
}

static int run(const char *const *argv)
{
	int status = -1;
	pid_t pid = spawn(argv);

	waitpid(pid, &status, 0);
	return status;
}

static void set_up(int argc, char **argv)
{
	const char *tmp = getenv("TMP"), *rundir = getenv("COW_RUN_DIR"), *fault = getenv("FAULT");
	const char *seed = getenv("SEED");
	char *own = path(tmp ? tmp : "/tmp", "kill9");

	t.kills = fault && !strcmp(fault, "full") ? 1000 : 60;
	if (argc > 1)
		t.kills = (unsigned)strtoul(argv[1], NULL, 10);
	t.seed = seed ? strtoull(seed, NULL, 10) : (uint64_t)time(NULL);
	t.rnd = rnd_mix(t.seed);
	if (!t.kills || !rundir || mkdir(own, 0700)) {
		fprintf(stderr, "kill9: needs KILLS > 0, COW_RUN_DIR and no %s\n", own);
		exit(2);
	}
	t.image = path(own, "over");
	t.base = path(own, "base");
	t.mnt = path(own, "mnt");
	t.log = path(own, "log");
	t.disk[0] = path(rundir, NAME "/disk");
	t.disk[1] = path(t.mnt, "disk");
	free(own);
	mkdir(t.mnt, 0700);
	t.state = calloc((size_t)t.kills * SECTORS, sizeof(*t.state));
	atomic_store(&t.number, 1);
	for (unsigned i = 0; i < THREADS; i++) {
		t.writers[i].index = i;
		t.writers[i].rnd = rnd_mix(t.seed + i + 1);
		t.writers[i].buf = aligned_alloc(4096, OP_MAX);
		if (!t.writers[i].buf || !t.state)
			fail("not enough memory");
	}
}

static void report(unsigned kills)
{
	uint64_t acked = 0, flushed = 0, back = 0;

	for (unsigned i = 0; i < THREADS; i++) {
		acked += t.writers[i].acked;
		flushed += t.writers[i].flushed;
		back += t.writers[i].read;
	}
	printf("acknowledged writes lost: 0 of %" PRIu64 " in %u kills (%" PRIu64 " flushes, %" PRIu64
	       " read back); seed %" PRIu64 "\n", acked, kills, flushed, back, t.seed);
}

/* Serves the image once more; everything must be there. Ends with an orderly stop. */
static void verify_all(uint8_t *buf)
{
	unsigned how = (unsigned)rnd_below(&t.rnd, 2);

	start_server(how);
	open_disk(how);
	for (unsigned i = 0; i < t.kills; i++)
		verify(t.fd, i, buf);
	close(t.fd);
	stop_server(SIGTERM);
}

static int dscow_tool(const char *verb)
{
	return run((const char *const[]){ "dscow_tool", verb, t.image, NULL });
}

/*
 * A write that was cut off may leave data that nothing refers to, which is no
 * damage and goes away with a repair. Anything else is.
 */
static void check_image(void)
{
	int status = dscow_tool("-k");

	if (WIFEXITED(status) && WEXITSTATUS(status) == CHECK_LEAKS) {
		dscow_tool("-R");
		status = dscow_tool("-k");
	}
	if (status)
		fail("the image does not check clean: status %#x", (unsigned)status);
}

int main(int argc, char **argv)
{
	uint8_t *buf = aligned_alloc(4096, WINDOW);
	unsigned kills = 0;

	if (access("/dev/fuse", R_OK | W_OK) || geteuid()) {
		printf("SKIP: frontend/kill9: no access to /dev/fuse, or not root\n");
		return 77;
	}
	set_up(argc, argv);
	make_base();
	if (run((const char *const[]){ "dscow_tool", "-c", t.image, t.base, NULL }))
		fail("no overlay was made");
	for (t.window = 0; t.window < t.kills; t.window++)
		kills += kill_round(buf);
	t.window = t.kills - 1;
	verify_all(buf);
	check_image();
	verify_all(buf);
	unmount();
	verify_base(buf);
	report(kills);
	free(buf);
	return 0;
}
