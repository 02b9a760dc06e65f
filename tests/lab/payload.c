// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Load for a block device, that knows at every moment what each sector may hold.
 * Each sector says what it is: {number of the write, place, filling, checksum};
 * threads own their sectors, sectors of a granule belong to different threads. Direct
 * I/O (on a file: buffered). It judges contents and errors; who kills, suspends or cuts
 * what is below is the script that runs it.
 *
 *   payload fill   [-s SEED] [-l BYTES] FILE
 *	writes number 0 everywhere: what the base of an overlay holds
 *   payload zero   FILE
 *	zeroes all of it
 *   payload run    [OPTION]... FILE
 *	writes, zeroes, discards, flushes and reads back until SIGTERM
 *   payload verify [-F] [-S STATE] FILE
 *	every sector holds what the state says; -F: or anything since the last flush;
 *	without STATE: number 0, a base that nobody wrote to
 *   payload crash  [-F] -H HISTORY -m MARK [-l BYTES] FILE
 *	FILE is what a power cut between the marks MARK and MARK + 1 left: everything
 *	that was flushed before MARK is there, or what was written later
 *
 * -s SEED  of the payload, as in fill (default 1)	-t THREADS (4)
 * -T SECONDS, -n OPERATIONS  an end before SIGTERM
 * -f FROM, -l BYTES  the part of FILE to use		-w BYTES  of it, use a window at a time:
 *							   SIGUSR1 goes on to the next one
 * -e  errors are expected: count them			-r  only read (and verify)
 * -z  reads and plain writes alone			-k SECONDS  without progress are a failure (120)
 * -x  injected faults that the kernel keeps for marked tasks may hit the threads
 * -S STATE  go on from what this file says if it is there; written at the end
 * -H HISTORY  written at the end			-M NAME  a dm-log-writes node: gets a mark
 *							   "flush-N" after each flush
 * run prints "running" first; the last line says what was done.
 * Exit status 1 and a sentence: wrong contents, or an error without -e. 2: wrong use.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include "dmcall.h"
#include "stamp.h"

#define SECTOR STAMP_SECTOR
#define THREADS_MAX 32u
#define UNIT 6u			/* sectors of one owner in the mixed part: never a granule's */
#define OP_MAX (128u << 10)
#define CHUNK (1u << 20)
#define STATE_MAGIC 0x7061796c6f616431u
#define READ_PER_MILLE 250u
#define FLUSH_PER_MILLE 20u
#define ZERO_PER_MILLE 50u

enum { R_ISSUE, R_ISSUE_ZERO, R_ACK, R_ACK_DURABLE, R_FLUSH_BEGIN, R_FLUSH_END, R_MARKED };

struct record {			/* of the history */
	uint32_t type, number;
	uint64_t lo, n;
};

/* What may be in a sector: numbers of writes grow. */
struct sector {
	uint32_t acked;		/* last write (or zeroing) that succeeded */
	uint32_t flushed;	/* the same, as of the last successful flush */
	uint32_t issued;	/* last one that was started, failed ones too */
	uint32_t zero;		/* last one that may have left zeroes */
};

struct header {			/* of a state file */
	uint64_t magic, seed, from, sectors;
	uint32_t number, pad;
};

struct op {
	uint64_t lo, n;
	uint32_t number;
};

struct thread {
	pthread_t id;
	unsigned index;
	uint64_t rnd;
	uint8_t *buf;
	atomic_ulong progress;
	uint64_t writes, reads, changes, flushes, bad_writes, bad_reads, bad_flushes;
};

static struct {
	uint64_t seed, from, len, window, limit_ops;
	unsigned threads, seconds, stuck, mark;
	bool errors, read_only, plain, flushed_only, inject;
	const char *file, *state, *history, *mark_name;
	int fd, dsync_fd;
	unsigned align;		/* sectors of a logical block */
	uint64_t n;		/* sectors in use */
	struct sector *s;
	uint32_t *acked;	/* what do_flush() works with: nothing is allocated once it runs */
	atomic_uint number, window_index, flush_id;
	atomic_ulong ops;
	atomic_bool stop, failing;
	pthread_mutex_t lock;
	struct record *rec;
	size_t n_rec, cap_rec;
	pthread_mutex_t turn;	/* one flush at a time: a mark then stands for all before it */
	struct thread th[THREADS_MAX];
} t = {
	.seed = 1, .threads = 4, .stuck = 120, .mark = UINT_MAX, .lock = PTHREAD_MUTEX_INITIALIZER,
	.turn = PTHREAD_MUTEX_INITIALIZER,
};

static _Noreturn void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static _Noreturn void fail(const char *fmt, ...)
{
	va_list ap;

	if (atomic_exchange(&t.failing, true))
		for (;;)
			pause();	/* another thread has more to say */
	fprintf(stderr, "payload: %s: ", t.file);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, " (seed %" PRIu64 ")\n", t.seed);
	_exit(1);
}

static _Noreturn void usage(void)
{
	fprintf(stderr, "payload: see the head of tests/lab/payload.c\n");
	exit(2);
}

static void *need(void *p)
{
	if (!p)
		fail("not enough memory");
	return p;
}

/* ---- sectors ---- */

static uint64_t place(uint64_t sector)
{
	return t.from + sector * SECTOR;
}

static void stamp(void *to, uint64_t sector, uint32_t number)
{
	stamp_put(to, t.seed, place(sector), number);
}

/* May the sector hold the write @got, if write @least must not be lost? */
static bool allowed(const struct sector *s, uint32_t least, uint32_t got)
{
	if (got == STAMP_ZERO)
		return s->zero && s->zero >= least;
	return got >= least && got <= s->issued;
}

static void check_sector(const void *data, uint64_t i, uint32_t least, const char *where)
{
	const struct sector *s = &t.s[i];
	uint32_t got;
	bool whole = stamp_get(data, t.seed, place(i), &got);

	if (whole && allowed(s, least, got))
		return;
	if (!whole)
		fail("%s, at %" PRIu64 ": damaged or of another place (it says: write %" PRIu32
		     " at %" PRIu64 "); write %" PRIu32 " must be there, or up to %" PRIu32, where,
		     place(i), got, ((const uint64_t *)data)[1], least, s->issued);
	if (got == STAMP_ZERO)
		fail("%s, at %" PRIu64 ": zeroes; write %" PRIu32 " must be there, or up to %" PRIu32,
		     where, place(i), least, s->issued);
	fail("%s, at %" PRIu64 ": write %" PRIu32 "; write %" PRIu32 " must be there, or up to %"
	     PRIu32, where, place(i), got, least, s->issued);
}

/* ---- history ---- */

static void note(uint32_t type, uint32_t number, uint64_t lo, uint64_t n)
{
	if (!t.history)
		return;
	pthread_mutex_lock(&t.lock);
	if (t.n_rec == t.cap_rec) {
		t.cap_rec = t.cap_rec ? t.cap_rec * 2 : 65536;
		t.rec = need(realloc(t.rec, t.cap_rec * sizeof(*t.rec)));
	}
	t.rec[t.n_rec++] = (struct record){ type, number, lo, n };
	pthread_mutex_unlock(&t.lock);
}

static void write_file(const char *path, const void *a, size_t na, const void *b, size_t nb)
{
	FILE *f = fopen(path, "we");

	if (!f || (na && fwrite(a, na, 1, f) != 1) || (nb && fwrite(b, nb, 1, f) != 1) || fclose(f))
		fail("%s: %s", path, strerror(errno));
}

static void *read_file(const char *path, size_t *ret_bytes)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char *p;
	size_t at = 0;

	if (fd < 0 || fstat(fd, &st))
		fail("%s: %s", path, strerror(errno));
	p = need(malloc((size_t)st.st_size + 1));
	while (at < (size_t)st.st_size) {
		ssize_t n = read(fd, p + at, (size_t)st.st_size - at);

		if (n <= 0)
			fail("%s: cannot be read", path);
		at += (size_t)n;
	}
	close(fd);
	*ret_bytes = at;
	return p;
}

static void save_state(void)
{
	struct header h = { STATE_MAGIC, t.seed, t.from, t.n, atomic_load(&t.number), 0 };

	if (t.state)
		write_file(t.state, &h, sizeof(h), t.s, t.n * sizeof(*t.s));
}

/* The seed and the part in use are those of the state. */
static void load_state(void)
{
	size_t bytes;
	char *p = read_file(t.state, &bytes);
	struct header h;

	memcpy(&h, p, bytes < sizeof(h) ? 0 : sizeof(h));
	if (bytes < sizeof(h) || h.magic != STATE_MAGIC || (bytes - sizeof(h)) / sizeof(*t.s) != h.sectors)
		fail("%s: not a state file", t.state);
	t.seed = h.seed;
	t.from = h.from;
	t.n = h.sectors;
	atomic_store(&t.number, h.number);
	t.s = need(malloc(t.n * sizeof(*t.s)));
	memcpy(t.s, p + sizeof(h), t.n * sizeof(*t.s));
	free(p);
}

/* ---- operations ---- */

/*
 * A range that belongs to the thread, in the window: in its first half units of 3 KiB are
 * dealt out in turn, of the second each thread has one piece.
 */
static void pick(struct thread *th, struct op *op)
{
	uint64_t size = t.window ? t.window / SECTOR : t.n, windows = t.n / size;
	/* In an order that jumps about, so that different metadata is in play. */
	uint64_t w = atomic_load(&t.window_index) * (windows / 3 * 2 + 1) % windows;
	uint64_t first, unit = UNIT * t.align, units, part, at;

	if (windows > 1 && rnd_below(&th->rnd, 4) == 0)	/* places used before go on being used */
		w = rnd_below(&th->rnd, windows);
	first = w * size;
	units = size / 2 / unit / t.threads;
	part = size / 2 / t.threads / t.align * t.align;
	if (rnd_below(&th->rnd, 4)) {
		at = rnd_below(&th->rnd, UNIT) * t.align;
		op->lo = first + (rnd_below(&th->rnd, units) * t.threads + th->index) * unit + at;
		op->n = t.align * (1 + rnd_below(&th->rnd, (unit - at) / t.align));
		return;
	}
	at = rnd_below(&th->rnd, part / t.align) * t.align;
	op->n = t.align * (1 + rnd_below(&th->rnd, OP_MAX / SECTOR / t.align));
	if (rnd_below(&th->rnd, 2)) {	/* whole granules */
		at = at / 8 * 8;
		op->n = (op->n + 7) / 8 * 8;
	}
	if (op->n > OP_MAX / SECTOR)
		op->n = OP_MAX / SECTOR;
	if (op->n > part - at)
		op->n = part - at;
	op->lo = first + size / 2 + th->index * part + at;
}

/* True: it went well. False: an error, which was expected. */
static bool good(struct thread *th, bool ok, uint64_t *bad, const char *what, const struct op *op)
{
	int err = errno;

	atomic_fetch_add(&th->progress, 1);
	if (ok)
		return true;
	if (!t.errors)
		fail("%s of %" PRIu64 " bytes at %" PRIu64 ": %s", what, op->n * SECTOR, place(op->lo),
		     strerror(err));
	++*bad;
	return false;
}

static void do_read(struct thread *th, const struct op *op)
{
	size_t bytes = op->n * SECTOR;
	ssize_t got = pread(t.fd, th->buf, bytes, (off_t)place(op->lo));

	if (!good(th, got == (ssize_t)bytes, &th->bad_reads, "read", op))
		return;
	for (uint64_t i = 0; i < op->n; i++)
		check_sector(th->buf + i * SECTOR, op->lo + i, t.s[op->lo + i].acked, "read back");
	th->reads++;
}

static void issue(struct op *op, bool zero)
{
	op->number = atomic_fetch_add(&t.number, 1);
	note(zero ? R_ISSUE_ZERO : R_ISSUE, op->number, op->lo, op->n);
	for (uint64_t i = op->lo; i < op->lo + op->n; i++) {
		t.s[i].issued = op->number;
		if (zero)
			t.s[i].zero = op->number;
	}
}

static void acknowledge(const struct op *op, bool durable)
{
	note(durable ? R_ACK_DURABLE : R_ACK, op->number, op->lo, op->n);
	for (uint64_t i = op->lo; i < op->lo + op->n; i++) {
		t.s[i].acked = op->number;
		if (durable) {
			pthread_mutex_lock(&t.lock);
			t.s[i].flushed = op->number;
			pthread_mutex_unlock(&t.lock);
		}
	}
}

/*
 * Is all that was done to these sectors flushed? dm-log-writes has a durable write in its log
 * when it ends, but others only at the next flush: played back, an older one would come later.
 */
static bool all_flushed(const struct op *op)
{
	bool all = true;

	pthread_mutex_lock(&t.lock);
	for (uint64_t i = op->lo; i < op->lo + op->n; i++)
		all = all && t.s[i].issued <= t.s[i].flushed;
	pthread_mutex_unlock(&t.lock);
	return all;
}

/*
 * Of two flushes that overlap, dm-log-writes gives all that ended before to the first, and
 * has it in its log when that one ends: if the second is faster, what is written after it
 * stands in the log before what it made durable. So there they take turns.
 */
static ssize_t write_durable(const void *data, size_t bytes, uint64_t at)
{
	ssize_t put;
	int err;

	if (t.mark_name)
		pthread_mutex_lock(&t.turn);
	put = pwrite(t.dsync_fd, data, bytes, (off_t)at);
	err = errno;
	if (t.mark_name)
		pthread_mutex_unlock(&t.turn);
	errno = err;
	return put;
}

static void do_write(struct thread *th, struct op *op)
{
	size_t bytes = op->n * SECTOR;
	bool durable = !t.plain && rnd_below(&th->rnd, 20) == 0 && all_flushed(op);
	ssize_t put;

	issue(op, false);
	for (uint64_t i = 0; i < op->n; i++)
		stamp(th->buf + i * SECTOR, op->lo + i, op->number);
	put = durable ? write_durable(th->buf, bytes, place(op->lo)) :
			pwrite(t.fd, th->buf, bytes, (off_t)place(op->lo));
	if (!good(th, put == (ssize_t)bytes, &th->bad_writes, "write", op))
		return;
	acknowledge(op, durable);
	th->writes++;
}

/* A discard may leave what is there: so it is no more than a write that may have happened. */
static void do_zero(struct thread *th, struct op *op)
{
	uint64_t range[2] = { place(op->lo), op->n * SECTOR };
	bool discard = rnd_below(&th->rnd, 2);

	issue(op, true);
	if (!good(th, !ioctl(t.fd, discard ? BLKDISCARD : BLKZEROOUT, range) || errno == EOPNOTSUPP ||
		  errno == ENOTTY, &th->bad_writes, discard ? "discard" : "zeroing", op))
		return;
	if (!discard && !errno)
		acknowledge(op, false);
	th->changes++;
}

static void do_flush(struct thread *th)
{
	static const struct op none;
	uint32_t id;
	char mark[32];
	bool ok;
	int r;

	pthread_mutex_lock(&t.turn);
	id = atomic_fetch_add(&t.flush_id, 1);
	for (uint64_t i = 0; i < t.n; i++)
		t.acked[i] = __atomic_load_n(&t.s[i].acked, __ATOMIC_RELAXED);
	note(R_FLUSH_BEGIN, id, 0, 0);
	ok = good(th, !fdatasync(t.fd), &th->bad_flushes, "flush", &none);
	if (ok) {
		pthread_mutex_lock(&t.lock);
		for (uint64_t i = 0; i < t.n; i++)
			if (t.acked[i] > t.s[i].flushed)
				t.s[i].flushed = t.acked[i];
		pthread_mutex_unlock(&t.lock);
		note(R_FLUSH_END, id, 0, 0);
		snprintf(mark, sizeof(mark), "mark flush-%" PRIu32, id);
		if (t.mark_name && (r = dmcall_message(t.mark_name, 0, mark)))
			fail("no mark in %s: %s", t.mark_name, strerror(-r));
		note(R_MARKED, id, 0, 0);
		th->flushes++;
	}
	pthread_mutex_unlock(&t.turn);
}

/* Once it is marked, its open() and write() may be what fails. */
static void mark_for_faults(const char *yes)
{
	bool ok;
	int fd, err;

	do {
		fd = open("/proc/thread-self/make-it-fail", O_WRONLY | O_CLOEXEC);
		ok = fd >= 0 && write(fd, yes, 1) == 1;
		err = errno;
		if (fd >= 0)
			close(fd);
	} while (!ok && err == ENOMEM);
	if (!ok)
		fail("faults cannot be injected into it: %s", strerror(err));
}

static void *thread_main(void *arg)
{
	struct thread *th = arg;

	if (t.inject)
		mark_for_faults("1");
	while (!atomic_load(&t.stop)) {
		uint64_t what = rnd_below(&th->rnd, 1000);
		struct op op;

		if (t.limit_ops && atomic_fetch_add(&t.ops, 1) >= t.limit_ops)
			break;
		pick(th, &op);
		errno = 0;
		if (t.read_only || what < READ_PER_MILLE)
			do_read(th, &op);
		else if (t.plain || what >= READ_PER_MILLE + FLUSH_PER_MILLE + ZERO_PER_MILLE)
			do_write(th, &op);
		else if (what < READ_PER_MILLE + FLUSH_PER_MILLE)
			do_flush(th);
		else
			do_zero(th, &op);
	}
	if (t.inject)
		mark_for_faults("0");
	return NULL;
}

/* ---- verbs ---- */

static void open_file(int flags)
{
	int size = (int)SECTOR;
	struct stat st;
	uint64_t bytes;

	t.fd = open(t.file, flags | O_CLOEXEC, 0600);
	if (t.fd < 0 || fstat(t.fd, &st))
		fail("%s", strerror(errno));
	bytes = (uint64_t)st.st_size;
	if (S_ISBLK(st.st_mode) && (fcntl(t.fd, F_SETFL, O_DIRECT) || ioctl(t.fd, BLKSSZGET, &size) ||
				    ioctl(t.fd, BLKGETSIZE64, &bytes)))
		fail("%s", strerror(errno));
	t.align = (unsigned)size / SECTOR;
	if (t.from % SECTOR || t.len % SECTOR || (bytes && t.from >= bytes))
		usage();
	if (!t.n)
		t.n = (t.len ? t.len : bytes - t.from) / SECTOR;
}

static void fill(bool zeroes)
{
	uint8_t *buf = need(aligned_alloc(4096, CHUNK));

	open_file(O_WRONLY | O_CREAT);
	for (uint64_t i = 0; i < t.n;) {
		uint64_t k = t.n - i < CHUNK / SECTOR ? t.n - i : CHUNK / SECTOR;

		memset(buf, 0, CHUNK);
		for (uint64_t j = 0; j < k && !zeroes; j++)
			stamp(buf + j * SECTOR, i + j, 0);
		if (pwrite(t.fd, buf, k * SECTOR, (off_t)place(i)) != (ssize_t)(k * SECTOR))
			fail("write at %" PRIu64 ": %s", place(i), strerror(errno));
		i += k;
	}
	if (fsync(t.fd))
		fail("%s", strerror(errno));
	free(buf);
}

/* Reads all of it and compares. */
static void compare(const char *where)
{
	uint8_t *buf = need(aligned_alloc(4096, CHUNK));

	open_file(O_RDONLY);
	if (!t.s)
		t.s = need(calloc(t.n, sizeof(*t.s)));
	for (uint64_t i = 0; i < t.n;) {
		uint64_t k = t.n - i < CHUNK / SECTOR ? t.n - i : CHUNK / SECTOR;

		if (pread(t.fd, buf, k * SECTOR, (off_t)place(i)) != (ssize_t)(k * SECTOR))
			fail("%s: read at %" PRIu64 ": %s", where, place(i), strerror(errno));
		for (uint64_t j = 0; j < k; j++)
			check_sector(buf + j * SECTOR, i + j,
				     t.flushed_only ? t.s[i + j].flushed : t.s[i + j].acked, where);
		i += k;
	}
	free(buf);
}

static void next_window(int sig)
{
	(void)sig;
	atomic_fetch_add(&t.window_index, 1);
}

static void end_run(int sig)
{
	(void)sig;
	atomic_store(&t.stop, true);
}

/* Until the threads end; a thread that makes no progress for long hangs in the kernel. */
static void watch(void)
{
	unsigned long seen[THREADS_MAX] = { 0 };
	unsigned still[THREADS_MAX] = { 0 }, seconds = 0;

	for (unsigned i = 0; i < t.threads;) {
		struct timespec until;

		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec++;
		if (!pthread_timedjoin_np(t.th[i].id, NULL, &until)) {
			i++;
			continue;
		}
		if (t.seconds && ++seconds >= t.seconds)
			atomic_store(&t.stop, true);
		for (unsigned j = i; j < t.threads; j++) {
			unsigned long now = atomic_load(&t.th[j].progress);

			still[j] = now == seen[j] ? still[j] + 1 : 0;
			seen[j] = now;
			if (still[j] >= t.stuck && pthread_tryjoin_np(t.th[j].id, NULL) == EBUSY)
				fail("thread %u: an operation did not end in %u s", j, still[j]);
		}
	}
}

static void report(void)
{
	struct thread all = { .index = 0 };

	for (unsigned i = 0; i < t.threads; i++) {
		all.writes += t.th[i].writes;
		all.reads += t.th[i].reads;
		all.changes += t.th[i].changes;
		all.flushes += t.th[i].flushes;
		all.bad_writes += t.th[i].bad_writes;
		all.bad_reads += t.th[i].bad_reads;
		all.bad_flushes += t.th[i].bad_flushes;
	}
	printf("writes=%" PRIu64 " reads=%" PRIu64 " zeroed=%" PRIu64 " flushes=%" PRIu64
	       " errors: writes=%" PRIu64 " reads=%" PRIu64 " flushes=%" PRIu64 " seed=%" PRIu64 "\n",
	       all.writes, all.reads, all.changes, all.flushes, all.bad_writes, all.bad_reads,
	       all.bad_flushes, t.seed);
}

static void load_or_begin(void)
{
	atomic_store(&t.number, 1);
	if (t.state && !access(t.state, F_OK))
		load_state();
	open_file(t.read_only ? O_RDONLY : O_RDWR);
	if (!t.read_only) {
		t.dsync_fd = open(t.file, O_RDWR | O_DSYNC | O_CLOEXEC |
					  (fcntl(t.fd, F_GETFL) & O_DIRECT));
		if (t.dsync_fd < 0)
			fail("%s", strerror(errno));
	}
	if (!t.s)
		t.s = need(calloc(t.n, sizeof(*t.s)));
	t.acked = need(calloc(t.n, sizeof(*t.acked)));
	if ((t.window ? t.window / SECTOR : t.n) / 2 / (UNIT * t.align) < t.threads ||
	    t.window / SECTOR > t.n)
		usage();
}

static void run(void)
{
	struct sigaction next = { .sa_handler = next_window, .sa_flags = SA_RESTART };
	struct sigaction end = { .sa_handler = end_run, .sa_flags = SA_RESTART };

	sigaction(SIGUSR1, &next, NULL);
	sigaction(SIGTERM, &end, NULL);
	printf("running\n");	/* from now on signals mean what they should */
	fflush(stdout);
	load_or_begin();
	for (unsigned i = 0; i < t.threads; i++) {
		struct thread *th = &t.th[i];

		th->index = i;
		th->rnd = rnd_mix(t.seed + i * 7919u + atomic_load(&t.number));
		th->buf = need(aligned_alloc(4096, OP_MAX));
		if (pthread_create(&th->id, NULL, thread_main, th))
			fail("no thread");
	}
	watch();
	save_state();
	if (t.history)
		write_file(t.history, NULL, 0, t.rec, t.n_rec * sizeof(*t.rec));
	report();
}

/*
 * What the history says about a power cut after mark @t.mark and before the next one: what was
 * acknowledged before that flush began (or durable by itself) is flushed; what was
 * issued before the next mark was made may have happened.
 */
static void play_history(void)
{
	size_t bytes, n, begin = 0, end = 0, i;
	struct record *r = read_file(t.history, &bytes);
	struct stat st;

	n = bytes / sizeof(*r);
	while (end < n && !(r[end].type == R_FLUSH_END && r[end].number == t.mark))
		end++;
	for (i = 0; i < end; i++)
		if (r[i].type == R_FLUSH_BEGIN && r[i].number == t.mark)
			begin = i;
	if (end == n)
		fail("%s: no flush %u", t.history, t.mark);
	if (!t.len && !stat(t.file, &st))
		t.len = (uint64_t)st.st_size;
	t.n = t.len / SECTOR;
	t.s = need(calloc(t.n, sizeof(*t.s)));
	for (i = 0; i < n; i++) {
		if (i > end && r[i].type == R_MARKED && r[i].number > t.mark)
			break;
		for (uint64_t s = r[i].lo; s < r[i].lo + r[i].n && s < t.n; s++) {
			if (r[i].type == R_ISSUE || r[i].type == R_ISSUE_ZERO)
				t.s[s].issued = r[i].number;
			if (r[i].type == R_ISSUE_ZERO)
				t.s[s].zero = r[i].number;
			if (i < begin ? r[i].type == R_ACK || r[i].type == R_ACK_DURABLE :
					i < end && r[i].type == R_ACK_DURABLE)
				t.s[s].flushed = r[i].number;
		}
	}
	free(r);
}

static uint64_t number(const char *s)
{
	char *end;
	uint64_t v = strtoull(s, &end, 10);

	if (*end == 'K' || *end == 'M' || *end == 'G')
		v <<= *end == 'K' ? 10 : *end == 'M' ? 20 : 30, end++;
	if (end == s || *end)
		usage();
	return v;
}

static void options(int argc, char **argv)
{
	int c;

	while ((c = getopt(argc, argv, "s:t:T:n:f:l:w:k:S:H:M:m:erxzF")) != -1) {
		switch (c) {
		case 's': t.seed = number(optarg); break;
		case 't': t.threads = (unsigned)number(optarg); break;
		case 'T': t.seconds = (unsigned)number(optarg); break;
		case 'n': t.limit_ops = number(optarg); break;
		case 'f': t.from = number(optarg); break;
		case 'l': t.len = number(optarg); break;
		case 'w': t.window = number(optarg); break;
		case 'k': t.stuck = (unsigned)number(optarg); break;
		case 'm': t.mark = (unsigned)number(optarg); break;
		case 'S': t.state = optarg; break;
		case 'H': t.history = optarg; break;
		case 'M': t.mark_name = optarg; break;
		case 'e': t.errors = true; break;
		case 'r': t.read_only = true; break;
		case 'x': t.inject = true; break;
		case 'z': t.plain = true; break;
		case 'F': t.flushed_only = true; break;
		default: usage();
		}
	}
	if (optind != argc - 1 || !t.threads || t.threads > THREADS_MAX || t.window % (64 * SECTOR))
		usage();
	t.file = argv[optind];
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";

	if (argc < 3)
		usage();
	options(argc - 1, argv + 1);
	if (!strcmp(verb, "fill") || !strcmp(verb, "zero")) {
		fill(verb[0] == 'z');
	} else if (!strcmp(verb, "run")) {
		run();
	} else if (!strcmp(verb, "verify")) {
		if (t.state)
			load_state();
		compare("afterwards");
	} else if (!strcmp(verb, "crash") && t.history && t.mark != UINT_MAX) {
		t.flushed_only = true;
		play_history();
		compare("after the cut");
	} else {
		usage();
	}
	return 0;
}
