// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * kill -9 of the daemon, again and again, over one image of each kind that has to
 * survive all of it. Threads write to the FUSE file, the daemon is killed after a random
 * number of operations, now and then the image is checked as it is, the next one (cowd or cowfuse, by
 * lot) is started, and every write that had been acknowledged must be there, flushed or
 * not; of formats without a place for the mark of a session, every one that was flushed.
 * Not about power cuts: the machine stays up (tests/fault has those).
 *
 * Every sector says what it is: {number of the write, place, filling, checksum};
 * the base carries number 0. Each thread owns its sectors, so what a sector may
 * hold is always known: the last acknowledged write, or the one in flight when
 * the daemon died; else the one that was flushed last, or any later. Sectors of a
 * granule belong to different threads.
 *
 * Presence of a granule changes only once, so each kill gets a fresh window of
 * the disk; windows lie far apart, that different metadata blocks are in play.
 * Windows of earlier kills are written to as well, and verified again.
 *
 * usage: kill9 [KILLS [KIND]]      default: a few of each kind, with FAULT=full many
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
#define STEPS_MAX 600u			/* operations before a kill */
#define STEPS_FLUSHED 150u		/* at least, of kinds that forget: some thread has flushed then */
#define FLUSH_AFTER 20u			/* writes of a thread, where it flushes at all */
#define LATER_US_MAX 2000u		/* the kill comes that long after the last of them */
#define EARLY_US_MAX 12000u		/* kills while it starts */
#define READY_TRIES 40000u		/* of half a millisecond */
#define CHECK_LEAKS 3			/* cowimg check: no damage, but unused data */
#define NAME "kill9"
#define DATA "data.raw"
#define KEY "key_file=/proc/sys/kernel/ostype"	/* any file that is there, and stays as it is */
#define ARGS_MAX 20u

enum start {
	OVERLAY,	/* over the base */
	COPY,		/* holds what the base does, and has none */
	COMPRESSED,	/* the same, all of it compressed */
	EMPTY,
};

struct kind {
	const char *name, *format;
	const char *options, *open_options;	/* of creation, and of whoever opens it; NULL: none */
	enum start start;
	bool forgets;			/* what was not flushed, when its daemon is killed */
	const char *inside[2];		/* cowimg VERB OPTION: makes something inside, before each kill */
	const char *maker;		/* NULL: cowimg */
	unsigned kills, kills_full;
};

static const struct kind kinds[] = {
	{ "dscow", "dscow", .kills = 30, .kills_full = 1000 },
	{ "qcow2", "qcow2", .kills = 6, .kills_full = 1000 },
	{ "qcow2, lazy refcounts", "qcow2", "lazy_refcounts=on,cluster_size=4K", .kills = 3, .kills_full = 100 },
	{ "qcow2, subclusters", "qcow2", "extended_l2=on,cluster_size=16K", .kills = 3, .kills_full = 100 },
	{ "qcow2, data file", "qcow2", "data_file=" DATA, "data_file=" DATA, .kills = 3, .kills_full = 100 },
	{ "qcow2, raw data file", "qcow2", "data_file_raw=on,data_file=" DATA, "data_file=" DATA, EMPTY,
	  .kills = 3, .kills_full = 100 },
	{ "qcow2, compressed", "qcow2", .start = COMPRESSED, .kills = 3, .kills_full = 100 },
	{ "qcow2, snapshots", "qcow2", .start = COPY, .inside = { "snapshot", "-c" },
	  .kills = 3, .kills_full = 100 },
	{ "qcow2, bitmaps", "qcow2", .inside = { "bitmap", "-a" }, .kills = 3, .kills_full = 100 },
	{ "qcow2, version 2", "qcow2", "compat=0.10", .forgets = true, .kills = 3, .kills_full = 100 },
	{ "qcow2, of QEMU", "qcow2", .maker = "qemu-img", .kills = 3, .kills_full = 100 },
	{ "qcow, overlay", "qcow", .forgets = true, .kills = 4, .kills_full = 1000 },
	{ "qcow, alone", "qcow", .start = EMPTY, .forgets = true, .kills = 3, .kills_full = 100 },
	{ "qcow, compressed", "qcow", .start = COMPRESSED, .forgets = true, .kills = 3, .kills_full = 100 },
#ifdef HAVE_GCRYPT
	{ "qcow2, LUKS", "qcow2", "encrypt.format=luks,encrypt.iter-time=1," KEY, KEY,
	  .kills = 3, .kills_full = 100 },
	{ "qcow, AES", "qcow", "encrypt.format=aes," KEY, KEY, .forgets = true,
	  .kills = 3, .kills_full = 100 },
#endif
};

struct op {
	uint64_t lo, n;			/* sectors of the whole disk's windows, in order of window */
	uint32_t value;
};

/* What a sector may hold. */
struct sector {
	uint32_t acked;			/* the last write acknowledged */
	uint32_t flushed, floor;	/* the last one flushed; numbers from @floor on came later */
	bool zeroed;			/* since then */
};

struct writer {
	pthread_t thread;
	unsigned index;
	uint64_t rnd;
	struct op inflight;		/* n > 0: started and not acknowledged */
	struct op *unflushed;		/* acknowledged since the last flush */
	size_t n_unflushed, room;
	uint64_t acked, flushed, read;
	uint8_t *buf;
};

static struct {
	uint64_t seed, rnd;
	const struct kind *kind;
	unsigned kills;
	char *dir, *image, *base, *mnt, *log, *disk[2];
	struct sector *state;		/* of each sector of all windows */
	unsigned window;		/* of this round */
	bool flush, direct;		/* in this round */
	int fd;
	atomic_uint number, steps;
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
	fprintf(stderr, " (%s, seed %" PRIu64 ", kill %u)\n", t.kind->name, t.seed, t.window);
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

		if (!stamp_get(w->buf + i * SECTOR, t.seed, place(s), &got) || got != t.state[s].acked)
			fail("read back at %" PRIu64 ": write %" PRIu32 " is not there, but %" PRIu32,
			     place(s), t.state[s].acked, got);
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

static void settle(struct sector *s, uint32_t value, uint32_t floor)
{
	*s = (struct sector){ .acked = value, .flushed = value, .floor = floor };
}

static void acknowledged(struct writer *w, const struct op *op)
{
	for (uint64_t i = 0; i < op->n; i++) {
		t.state[op->lo + i].acked = op->value;
		t.state[op->lo + i].zeroed |= op->value == STAMP_ZERO;
	}
	w->acked++;
	if (w->n_unflushed == w->room) {
		w->room = w->room ? 2 * w->room : 1024;
		w->unflushed = realloc(w->unflushed, w->room * sizeof(*w->unflushed));
		if (!w->unflushed)
			fail("not enough memory");
	}
	w->unflushed[w->n_unflushed++] = *op;
}

/* Makes all durable that this thread wrote. */
static bool flush(struct writer *w)
{
	uint32_t floor = atomic_load(&t.number);

	if (fdatasync(t.fd))
		return false;
	for (size_t k = 0; k < w->n_unflushed; k++) {
		for (uint64_t i = 0; i < w->unflushed[k].n; i++) {
			struct sector *s = &t.state[w->unflushed[k].lo + i];

			settle(s, s->acked, floor);
		}
	}
	w->n_unflushed = 0;
	w->flushed++;
	return true;
}

/* Most go to this round's. What may be lost goes only to those that are looked at after the kill. */
static unsigned pick_window(struct writer *w)
{
	unsigned back = t.window;

	if (rnd_below(&w->rnd, 10))
		return t.window;
	if (t.kind->forgets && back > RECHECK)
		back = RECHECK;
	return t.window - (unsigned)rnd_below(&w->rnd, back + 1);
}

/* One operation. False: the daemon is gone. */
static bool step(struct writer *w)
{
	unsigned what = (unsigned)rnd_below(&w->rnd, 100);
	struct op op;

	atomic_fetch_add(&t.steps, 1);
	if (t.flush && (what < 3 || w->n_unflushed >= FLUSH_AFTER))
		return flush(w);
	pick(w, pick_window(w), &op);
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
	acknowledged(w, &op);
	w->inflight.n = 0;
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

/* A command line in the making. */
struct line {
	const char *argv[ARGS_MAX + 1];
	unsigned n;
};

/* The arguments up to NULL. */
static void add(struct line *l, ...)
{
	const char *arg;
	va_list ap;

	va_start(ap, l);
	while ((arg = va_arg(ap, const char *)) && l->n < ARGS_MAX)
		l->argv[l->n++] = arg;
	va_end(ap);
}

static void add_options(struct line *l, const char *options)
{
	if (options)
		add(l, "-o", options, NULL);
}

/* @how 0: cowd, 1: cowfuse; with @more options, which only lets read. */
static void start_server(unsigned how, const char *more)
{
	struct line l = { 0 };

	if (how)
		add(&l, "cowfuse", "-f", "-p", t.kind->format, "-o", more ? more : "rw", NULL);
	else
		add(&l, "cowd", "-f", "--no-loop", "--log-level=error", "-p", t.kind->format, NULL);
	add_options(&l, t.kind->open_options);
	if (how)
		add(&l, t.image, t.mnt, NULL);
	else
		add(&l, NAME, t.image, NULL);
	t.pid = spawn(l.argv);
}

static void nap(uint64_t us)
{
	struct timespec ts = { (time_t)(us / 1000000), (long)(us % 1000000) * 1000 };

	nanosleep(&ts, NULL);
}

static void open_disk(unsigned how, bool readonly)
{
	struct stat st;
	int status;

	for (unsigned i = 0; i < READY_TRIES; i++) {
		if (waitpid(t.pid, &status, WNOHANG) == t.pid) {
			t.pid = 0;
			fail("%s did not start: status %#x", how ? "cowfuse" : "cowd",
			     (unsigned)status);
		}
		t.fd = open(t.disk[how], (readonly ? O_RDONLY : O_RDWR) | (t.direct ? O_DIRECT : 0) | O_CLOEXEC);
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

static bool may_hold(uint64_t sector, uint32_t got)
{
	const struct sector *s = &t.state[sector];
	const struct op *op = maybe(sector);

	if (got == s->acked || (op && op->value == got))
		return true;
	return t.kind->forgets && (got == s->flushed || (got == STAMP_ZERO ? s->zeroed : got >= s->floor));
}

/* Every sector of @window holds what was acknowledged or in flight, or what else its kind permits. */
static void verify(int fd, unsigned window, uint8_t *buf)
{
	uint64_t first = (uint64_t)window * SECTORS;
	uint32_t got;

	if (pread(fd, buf, WINDOW, (off_t)place(first)) != (ssize_t)WINDOW)
		fail("window %u cannot be read: %s", window, strerror(errno));
	for (unsigned i = 0; i < SECTORS; i++) {
		struct sector *s = &t.state[first + i];
		bool ok = stamp_get(buf + i * SECTOR, t.seed, place(first + i), &got);

		if (!ok || !may_hold(first + i, got))
			fail("lost: at %" PRIu64 ", write %" PRIu32 " was acknowledged, %" PRIu32
			     " flushed, %s %" PRIu32 " is there", place(first + i), s->acked, s->flushed,
			     ok ? "write" : "damaged", got);
		settle(s, got, atomic_load(&t.number));
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
		t.writers[i].inflight.n = t.writers[i].n_unflushed = 0;
	}
}

static void settle_all(uint32_t value, uint32_t floor)
{
	for (uint64_t i = 0; i < (uint64_t)t.kills * SECTORS; i++)
		settle(&t.state[i], value, floor);
}

/* All of @fd reads as the base did at first. */
static void verify_first(int fd, uint8_t *buf)
{
	settle_all(0, STAMP_ZERO);
	for (unsigned i = 0; i < t.kills; i++)
		verify(fd, i, buf);
	close(fd);
}

/* ---- the test ---- */

static void run_writers(void)
{
	unsigned least = t.kind->forgets ? STEPS_FLUSHED : 0;
	unsigned steps = least + (unsigned)rnd_below(&t.rnd, STEPS_MAX - least);

	atomic_store(&t.killed, false);
	atomic_store(&t.steps, 0);
	for (unsigned i = 0; i < THREADS; i++)
		if (pthread_create(&t.writers[i].thread, NULL, writer_main, &t.writers[i]))
			fail("no thread");
	while (atomic_load(&t.steps) < steps)
		nap(100);
	nap(rnd_below(&t.rnd, LATER_US_MAX));
	atomic_store(&t.killed, true);
	stop_server(SIGKILL);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(t.writers[i].thread, NULL);
	close(t.fd);
}

static int run(const char *const *argv)
{
	int status = -1;
	pid_t pid = spawn(argv);

	waitpid(pid, &status, 0);
	return status;
}

static int cowimg_check(bool repair)
{
	struct line l = { 0 };
	int status;

	add(&l, "cowimg", "check", "-q", "-f", t.kind->format, NULL);
	add_options(&l, t.kind->open_options);
	add(&l, repair ? "--repair" : t.image, repair ? t.image : NULL, NULL);
	status = run(l.argv);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

/*
 * A write that was cut off may leave data that nothing refers to, which is no
 * damage and goes away with a repair. Anything else is.
 */
static void check_image(bool repair)
{
	int status = cowimg_check(false);

	if (status == CHECK_LEAKS && repair) {
		cowimg_check(true);
		status = cowimg_check(false);
	}
	if (status && (repair || status != CHECK_LEAKS))
		fail("the image does not check clean: status %d", status);
}

/* Something new inside of the image, named after the round. */
static void make_inside(void)
{
	struct line l = { 0 };
	char name[16];

	if (!t.kind->inside[0])
		return;
	snprintf(name, sizeof(name), "n%u", t.window);
	add(&l, "cowimg", t.kind->inside[0], "-q", "-f", t.kind->format, t.kind->inside[1], name, t.image,
	    NULL);
	if (run(l.argv))
		fail("cowimg %s failed", t.kind->inside[0]);
}

static unsigned kill_round(uint8_t *buf)
{
	unsigned how = (unsigned)rnd_below(&t.rnd, 2), early = 0;

	t.direct = rnd_below(&t.rnd, 4);
	t.flush = rnd_below(&t.rnd, 2) || t.kind->forgets;
	make_inside();
	start_server(how, NULL);
	open_disk(how, false);
	run_writers();
	/* Now and then a second one dies while it takes over. */
	while (rnd_below(&t.rnd, 4) == 0) {
		start_server((unsigned)rnd_below(&t.rnd, 2), NULL);
		nap(rnd_below(&t.rnd, EARLY_US_MAX));
		stop_server(SIGKILL);
		early++;
	}
	if (rnd_below(&t.rnd, 2))
		check_image(false);
	how = (unsigned)rnd_below(&t.rnd, 2);
	start_server(how, NULL);
	open_disk(how, false);
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

/* What all kinds have in common. */
static void set_up(void)
{
	const char *tmp = getenv("TMP"), *rundir = getenv("COW_RUN_DIR"), *seed = getenv("SEED");

	t.dir = path(tmp ? tmp : "/tmp", "kill9");
	t.seed = seed ? strtoull(seed, NULL, 10) : (uint64_t)time(NULL);
	if (!rundir || mkdir(t.dir, 0700)) {
		fprintf(stderr, "kill9: needs COW_RUN_DIR, and no %s\n", t.dir);
		exit(2);
	}
	t.image = path(t.dir, "image");
	t.base = path(t.dir, "base");
	t.mnt = path(t.dir, "mnt");
	t.log = path(t.dir, "log");
	t.disk[0] = path(rundir, NAME "/disk");
	t.disk[1] = path(t.mnt, "disk");
	mkdir(t.mnt, 0700);
	for (unsigned i = 0; i < THREADS; i++) {
		t.writers[i].index = i;
		t.writers[i].buf = aligned_alloc(4096, OP_MAX);
		if (!t.writers[i].buf)
			fail("not enough memory");
	}
}

static void begin(const struct kind *kind, unsigned kills)
{
	t.kind = kind;
	t.kills = kills;
	t.window = 0;
	t.rnd = rnd_mix(t.seed ^ (uint64_t)(kind - kinds) << 32);
	t.state = calloc((size_t)kills * SECTORS, sizeof(*t.state));
	if (!t.state)
		fail("not enough memory");
	settle_all(kind->start == EMPTY ? STAMP_ZERO : 0, 1);
	atomic_store(&t.number, 1);
	for (unsigned i = 0; i < THREADS; i++) {
		struct writer *w = &t.writers[i];

		w->rnd = rnd_mix(t.rnd + i + 1);
		w->acked = w->flushed = w->read = 0;
	}
}

static void end(void)
{
	char *data = path(t.dir, DATA);

	unlink(t.image);
	unlink(t.base);
	unlink(data);
	free(data);
	free(t.state);
}

static void make_image(void)
{
	const struct kind *k = t.kind;
	bool copy = k->start == COPY || k->start == COMPRESSED;
	struct line l = { 0 };
	struct stat st;
	char size[24];

	if (k->start != EMPTY)
		make_base();
	snprintf(size, sizeof(size), "%" PRIu64, place((uint64_t)t.kills * SECTORS));
	add(&l, k->maker ? k->maker : "cowimg", copy ? "convert" : "create", "-q", NULL);
	add_options(&l, k->options);
	if (copy)
		add(&l, "-f", "raw", "-O", k->format, k->start == COMPRESSED ? "-c" : "-q", t.base, t.image, NULL);
	else if (k->start == OVERLAY)
		add(&l, "-f", k->format, "-b", t.base, "-F", "raw", t.image, NULL);
	else
		add(&l, "-f", k->format, t.image, size, NULL);
	if (run(l.argv) || stat(t.image, &st))
		fail("no image was made");
	if (k->start == COMPRESSED && (uint64_t)st.st_blocks * 512 > (uint64_t)t.kills * WINDOW / 2)
		fail("the image is not compressed");
}

static void report(unsigned kills)
{
	uint64_t acked = 0, flushed = 0, back = 0;

	for (unsigned i = 0; i < THREADS; i++) {
		acked += t.writers[i].acked;
		flushed += t.writers[i].flushed;
		back += t.writers[i].read;
	}
	if (t.kind->forgets && !flushed)
		fail("nothing was flushed");
	printf("%s: %s writes lost: 0 of %" PRIu64 " in %u kills (%" PRIu64 " flushes, %" PRIu64
	       " read back); seed %" PRIu64 "\n", t.kind->name, t.kind->forgets ? "flushed" : "acknowledged",
	       acked, kills, flushed, back, t.seed);
	fflush(stdout);
}

/* Serves the image once more; everything must be there. Ends with an orderly stop. */
static void verify_all(uint8_t *buf)
{
	unsigned how = (unsigned)rnd_below(&t.rnd, 2);

	start_server(how, NULL);
	open_disk(how, false);
	for (unsigned i = 0; i < t.kills; i++)
		verify(t.fd, i, buf);
	close(t.fd);
	stop_server(SIGTERM);
}

/* The base, and the first snapshot, are what they were. */
static void verify_kept(uint8_t *buf)
{
	if (t.kind->start != EMPTY)
		verify_first(open(t.base, O_RDONLY | O_CLOEXEC), buf);
	if (!t.kind->inside[0] || strcmp(t.kind->inside[0], "snapshot"))
		return;
	start_server(1, "snapshot=n0");
	open_disk(1, true);
	verify_first(t.fd, buf);
	stop_server(SIGTERM);
}

static void kill_kind(const struct kind *kind, unsigned count, uint8_t *buf)
{
	unsigned kills = 0;

	begin(kind, count);
	make_image();
	for (; t.window < t.kills; t.window++)
		kills += kill_round(buf);
	t.window = t.kills - 1;
	verify_all(buf);
	check_image(true);
	verify_all(buf);
	report(kills);
	verify_kept(buf);
	unmount();
	end();
}

int main(int argc, char **argv)
{
	uint8_t *buf = aligned_alloc(4096, WINDOW);
	const char *fault = getenv("FAULT");
	bool full = fault && !strcmp(fault, "full");
	unsigned done = 0;

	if (access("/dev/fuse", R_OK | W_OK) || geteuid()) {
		printf("SKIP: frontend/kill9: no access to /dev/fuse, or not root\n");
		return 77;
	}
	set_up();
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		const struct kind *k = &kinds[i];
		unsigned n = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : full ? k->kills_full : k->kills;

		if (argc > 2 && strcmp(argv[2], k->name))
			continue;
		kill_kind(k, n, buf);
		done++;
	}
	printf("COUNT: %u 0 0\n", done);
	free(buf);
	return 0;
}
