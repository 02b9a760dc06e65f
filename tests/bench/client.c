// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The client of the speed comparison. Times every operation by itself, so that
 * a percentile is a real one, and reads the CPU clock of the server's process
 * right around the operations, so that neither side's start-up counts. It adds
 * less than a microsecond to an operation. Measures; judges nothing.
 *
 *   client lat   [-w] [-1] [-B] [-b BYTES] [-t MS] [-p PID] FILE OFFSETS
 *   client depth [-w] [-d DEPTH] [-e uring|aio] ...the same...
 *	    direct I/O (-B: buffered) of BYTES at the offsets in the file OFFSETS (64-bit numbers,
 *	    native), for MS milliseconds, again from the start; -1: each just once
 *   client seq   [-B] [-t MS] [-p PID] FILE
 *	    1 MiB after the other, direct; -B: buffered, the whole file, once
 *   client start TIMEOUT_MS FILE SIZE CMD...
 *	    runs CMD, which goes on running; time until FILE has SIZE bytes and 4 KiB of it are read
 *   client run   CMD...		time from start to end of CMD, and the most memory that it had
 *   client copy  FROM TO	a thread for each CPU reads and writes: what moving the data alone takes
 *
 * Prints one line of JSON, but for copy. Exit status 1 and a sentence when anything fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/aio_abi.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <liburing.h>

#define DEPTH_MAX 64
#define SEQ_BYTES (1u << 20)
#define COPY_BYTES (256u << 10)	/* at a time: stays in the cache of a CPU */
#define COPIERS_MAX 16
#define BUF_ALIGN 4096u
#define SAMPLES_MAX (4u << 20)	/* 32 MiB; a run that makes more keeps the first ones */
#define POLL_NS 20000		/* of "start": short against what is measured */

extern char **environ;

struct opts {
	bool write, once, buffered, aio;
	unsigned bytes, depth;
	uint64_t run_ns;
	bool have_server;
	clockid_t server;		/* CPU clock of its process: all threads, ended ones too */
	const char *file;
	const uint64_t *offsets;
	uint64_t n_offsets;
};

struct result {
	uint64_t *lat;		/* ns of each operation */
	uint64_t n_lat;
	uint64_t ops, elapsed_ns, cpu_ns;
};

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "client: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t clock_ns(clockid_t c)
{
	struct timespec ts;

	if (clock_gettime(c, &ts))
		die("clock");
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

static uint64_t server_cpu(const struct opts *o)
{
	return o->have_server ? clock_ns(o->server) : 0;
}

static void begin(const struct opts *o, struct result *r)
{
	r->cpu_ns = server_cpu(o);
	r->elapsed_ns = now_ns();
}

static void end(const struct opts *o, struct result *r)
{
	r->elapsed_ns = now_ns() - r->elapsed_ns;
	r->cpu_ns = server_cpu(o) - r->cpu_ns;
}

static void sample(struct result *r, uint64_t ns)
{
	if (r->n_lat < SAMPLES_MAX)
		r->lat[r->n_lat++] = ns;
	r->ops++;
}

static void *buffer(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("memory");
	memset(p, 0x5a, bytes);		/* no page fault while the clock runs */
	return p;
}

static int open_file(const struct opts *o)
{
	int flags = O_CLOEXEC | (o->write ? O_RDWR : O_RDONLY) | (o->buffered ? 0 : O_DIRECT);
	int fd = open(o->file, flags);

	if (fd < 0)
		die(o->file);
	return fd;
}

/* What is written differs from place to place, so that images can be compared afterwards. */
static void stamp(char *buf, uint64_t off)
{
	memcpy(buf, &off, sizeof(off));
}

/* ---- one at a time ---- */

static void run_lat(const struct opts *o, struct result *r)
{
	char *buf = buffer(o->bytes);
	int fd = open_file(o);
	uint64_t i = 0, t0, t1, stop;

	begin(o, r);
	t0 = now_ns();
	stop = t0 + o->run_ns;
	do {
		off_t off = (off_t)o->offsets[i];
		ssize_t n;

		stamp(buf, o->offsets[i]);
		n = o->write ? pwrite(fd, buf, o->bytes, off) : pread(fd, buf, o->bytes, off);

		if (n != (ssize_t)o->bytes)
			die(o->file);
		t1 = now_ns();
		sample(r, t1 - t0);
		t0 = t1;
		if (++i == o->n_offsets) {
			i = 0;
			if (o->once)
				break;
		}
	} while (o->once || t0 < stop);
	end(o, r);
	close(fd);
}

/* ---- several at a time ---- */

struct queue {
	const struct opts *o;
	struct io_uring ring;
	aio_context_t aio;
	char *bufs;
	uint64_t began[DEPTH_MAX];
	uint64_t next;		/* of o->offsets */
	int fd;
};

static void put_uring(struct queue *q, unsigned i, uint64_t off)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&q->ring);
	char *buf = q->bufs + (size_t)i * q->o->bytes;

	if (q->o->write)
		io_uring_prep_write(sqe, q->fd, buf, q->o->bytes, off);
	else
		io_uring_prep_read(sqe, q->fd, buf, q->o->bytes, off);
	io_uring_sqe_set_data64(sqe, i);
}

static void put_aio(struct queue *q, unsigned i, uint64_t off)
{
	struct iocb cb = {
		.aio_data = i,
		.aio_lio_opcode = q->o->write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
		.aio_fildes = (uint32_t)q->fd,
		.aio_buf = (uintptr_t)(q->bufs + (size_t)i * q->o->bytes),
		.aio_nbytes = q->o->bytes,
		.aio_offset = (int64_t)off,
	}, *list[] = { &cb };

	if (syscall(SYS_io_submit, q->aio, 1L, list) != 1)
		die("io_submit");
}

/* Starts operation @i anew; false: there is none left. */
static bool put(struct queue *q, unsigned i)
{
	uint64_t off;

	if (q->next == q->o->n_offsets) {
		if (q->o->once)
			return false;
		q->next = 0;
	}
	off = q->o->offsets[q->next++];
	stamp(q->bufs + (size_t)i * q->o->bytes, off);
	q->began[i] = now_ns();
	if (q->o->aio)
		put_aio(q, i, off);
	else
		put_uring(q, i, off);
	return true;
}

static void check_result(const struct queue *q, int64_t res)
{
	if (res == (int64_t)q->o->bytes)
		return;
	errno = res < 0 ? (int)-res : EIO;
	die(q->o->file);
}

/* Waits for one at least. Returns how many finished and which in @done. */
static unsigned reap(struct queue *q, unsigned *done)
{
	struct io_event ev[DEPTH_MAX];
	struct io_uring_cqe *cqe;
	unsigned n = 0, head;
	long got;

	if (q->o->aio) {
		got = syscall(SYS_io_getevents, q->aio, 1L, (long)DEPTH_MAX, ev, NULL);
		if (got < 1)
			die("io_getevents");
		for (; n < (unsigned)got; n++) {
			check_result(q, ev[n].res);
			done[n] = (unsigned)ev[n].data;
		}
		return n;
	}
	if (io_uring_submit_and_wait(&q->ring, 1) < 0)
		die("io_uring");
	io_uring_for_each_cqe(&q->ring, head, cqe) {
		check_result(q, cqe->res);
		done[n++] = (unsigned)cqe->user_data;
	}
	io_uring_cq_advance(&q->ring, n);
	return n;
}

static void run_depth(const struct opts *o, struct result *r)
{
	struct queue q = { .o = o, .bufs = buffer((size_t)o->bytes * o->depth), .fd = open_file(o) };
	unsigned i, n, inflight = 0, done[DEPTH_MAX];
	uint64_t stop, t;

	if (o->aio ? syscall(SYS_io_setup, (unsigned long)DEPTH_MAX, &q.aio) :
		     io_uring_queue_init(DEPTH_MAX, &q.ring, 0))
		die("queue");
	begin(o, r);
	stop = now_ns() + o->run_ns;
	for (i = 0; i < o->depth; i++)
		inflight += put(&q, i);
	while (inflight) {
		n = reap(&q, done);
		t = now_ns();
		for (i = 0; i < n; i++) {
			inflight--;
			sample(r, t - q.began[done[i]]);
			if (o->once || t < stop)
				inflight += put(&q, done[i]);
		}
	}
	end(o, r);
	close(q.fd);
}

/* ---- one after the other ---- */

static void run_seq(const struct opts *o, struct result *r)
{
	char *buf = buffer(SEQ_BYTES);
	int fd = open_file(o);
	struct stat st;
	uint64_t off = 0, t0, t1, stop, size;

	if (fstat(fd, &st))
		die(o->file);
	size = (uint64_t)st.st_size / SEQ_BYTES * SEQ_BYTES;
	begin(o, r);
	t0 = now_ns();
	stop = t0 + o->run_ns;
	do {
		if (pread(fd, buf, SEQ_BYTES, (off_t)off) != (ssize_t)SEQ_BYTES)
			die(o->file);
		t1 = now_ns();
		sample(r, t1 - t0);
		t0 = t1;
		off += SEQ_BYTES;
		if (off == size) {
			off = 0;
			if (o->buffered)
				break;
		}
	} while (o->buffered || t0 < stop);
	end(o, r);
	close(fd);
}

/* ---- programs ---- */

static pid_t spawn(char **cmd)
{
	posix_spawn_file_actions_t fa;
	pid_t pid;
	int rc;

	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&fa, 1, "/dev/null", O_WRONLY, 0);
	rc = posix_spawnp(&pid, cmd[0], &fa, NULL, cmd, environ);
	if (rc) {
		errno = rc;
		die(cmd[0]);
	}
	posix_spawn_file_actions_destroy(&fa);
	return pid;
}

static bool first_read(const char *file, uint64_t size, void *buf)
{
	struct stat st;
	bool ok = false;
	int fd;

	if (stat(file, &st) || (uint64_t)st.st_size != size)
		return false;
	fd = open(file, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		ok = pread(fd, buf, 4096, 0) == 4096;
		close(fd);
	}
	return ok;
}

static int cmd_start(char **argv)
{
	uint64_t limit = strtoull(argv[0], NULL, 10) * 1000000u, t0, t;
	uint64_t size = strtoull(argv[2], NULL, 10);
	struct timespec pause = { 0, POLL_NS };
	void *buf = buffer(4096);
	int status;
	pid_t pid;

	t0 = now_ns();
	pid = spawn(argv + 3);
	while (!first_read(argv[1], size, buf)) {
		if (now_ns() - t0 > limit) {
			errno = ETIMEDOUT;
			kill(pid, SIGTERM);
			die(argv[1]);
		}
		if (waitpid(pid, &status, WNOHANG) == pid && status) {
			errno = ECHILD;
			die(argv[3]);
		}
		nanosleep(&pause, NULL);
	}
	t = now_ns() - t0;
	printf("{\"ns\": %" PRIu64 ", \"pid\": %ld}\n", t, (long)pid);
	return 0;
}

static int cmd_run(char **argv)
{
	uint64_t t = now_ns();
	pid_t pid = spawn(argv);
	struct rusage used;
	int status;

	if (wait4(pid, &status, 0, &used) != pid || status) {
		errno = ECHILD;
		die(argv[0]);
	}
	t = now_ns() - t;
	printf("{\"ns\": %" PRIu64 ", \"rss_kib\": %ld}\n", t, used.ru_maxrss);
	return 0;
}

/* ---- copy ---- */

struct copy {
	const char *from, *to;
	int in, out;
	uint64_t bytes;
	atomic_ullong next;		/* offset of what nobody copies yet */
};

static void *copy_thread(void *arg)
{
	struct copy *c = arg;
	uint8_t *buf = buffer(COPY_BYTES);
	uint64_t at;

	while ((at = atomic_fetch_add(&c->next, COPY_BYTES)) < c->bytes) {
		size_t n = c->bytes - at < COPY_BYTES ? c->bytes - at : COPY_BYTES;

		if (pread(c->in, buf, n, (off_t)at) != (ssize_t)n)
			die(c->from);
		if (pwrite(c->out, buf, n, (off_t)at) != (ssize_t)n)
			die(c->to);
	}
	return NULL;
}

static int cmd_copy(const char *from, const char *to)
{
	struct copy c = { .from = from, .to = to, .in = open(from, O_RDONLY | O_CLOEXEC) };
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	pthread_t id[COPIERS_MAX];
	struct stat st;

	if (c.in < 0 || fstat(c.in, &st))
		die(from);
	c.bytes = (uint64_t)st.st_size;
	c.out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (c.out < 0)
		die(to);
	if (cpus > COPIERS_MAX)
		cpus = COPIERS_MAX;
	for (long i = 0; i < cpus; i++) {
		errno = pthread_create(&id[i], NULL, copy_thread, &c);
		if (errno)
			die("thread");
	}
	for (long i = 0; i < cpus; i++)
		pthread_join(id[i], NULL);
	return 0;
}

/* ---- main ---- */

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t percentile(const struct result *r, unsigned per_mille)
{
	return r->lat[(r->n_lat - 1) * per_mille / 1000];
}

static void print(struct result *r)
{
	qsort(r->lat, r->n_lat, sizeof(*r->lat), by_value);
	printf("{\"ops\": %" PRIu64 ", \"elapsed_ns\": %" PRIu64 ", \"cpu_ns\": %" PRIu64
	       ", \"p50_ns\": %" PRIu64 ", \"p99_ns\": %" PRIu64 ", \"p999_ns\": %" PRIu64 "}\n",
	       r->ops, r->elapsed_ns, r->cpu_ns, percentile(r, 500), percentile(r, 990),
	       percentile(r, 999));
}

static void load_offsets(struct opts *o, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		die(path);
	o->n_offsets = (uint64_t)st.st_size / sizeof(uint64_t);
	errno = EINVAL;
	if (!o->n_offsets)
		die(path);
	o->offsets = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	if (o->offsets == MAP_FAILED)
		die(path);
	close(fd);
}

static int usage(void)
{
	fprintf(stderr, "usage: client lat|depth|seq|start|run|copy ..., see the head of client.c\n");
	return 2;
}

int main(int argc, char **argv)
{
	struct opts o = { .bytes = 4096, .depth = 16, .run_ns = 1000000000u };
	struct result r = { 0 };
	const char *what = argc > 1 ? argv[1] : "";
	int c;

	if (!strcmp(what, "start") && argc > 5)
		return cmd_start(argv + 2);
	if (!strcmp(what, "run") && argc > 2)
		return cmd_run(argv + 2);
	if (!strcmp(what, "copy") && argc == 4)
		return cmd_copy(argv[2], argv[3]);
	argc--, argv++;
	while ((c = getopt(argc, argv, "w1Bb:d:e:t:p:")) != -1) {
		switch (c) {
		case 'w': o.write = true; break;
		case '1': o.once = true; break;
		case 'B': o.buffered = true; break;
		case 'b': o.bytes = (unsigned)atoi(optarg); break;
		case 'd': o.depth = (unsigned)atoi(optarg); break;
		case 'e': o.aio = !strcmp(optarg, "aio"); break;
		case 't': o.run_ns = strtoull(optarg, NULL, 10) * 1000000u; break;
		case 'p':
			errno = clock_getcpuclockid((pid_t)atoi(optarg), &o.server);
			if (errno)
				die(optarg);
			o.have_server = true;
			break;
		default: return usage();
		}
	}
	if (argc - optind != (strcmp(what, "seq") ? 2 : 1) || !o.depth || o.depth > DEPTH_MAX ||
	    o.bytes % 512 || !o.bytes)
		return usage();
	o.file = argv[optind];
	if (argc - optind == 2)
		load_offsets(&o, argv[optind + 1]);
	r.lat = buffer(SAMPLES_MAX * sizeof(*r.lat));
	if (!strcmp(what, "lat"))
		run_lat(&o, &r);
	else if (!strcmp(what, "depth"))
		run_depth(&o, &r);
	else if (!strcmp(what, "seq"))
		run_seq(&o, &r);
	else
		return usage();
	print(&r);
	return 0;
}
