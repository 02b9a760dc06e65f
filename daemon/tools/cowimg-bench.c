// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg bench: how fast requests to an image are answered, many at a time, without
 * anything above the engine. Each is timed by itself; what is told of the times comes
 * from buckets, so that memory does not grow with the number of requests.
 */
#include "cowimg.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#define COUNT_DEFAULT	75000u
#define DEPTH_DEFAULT	64u
#define BYTES_DEFAULT	4096u		/* these three are qemu-img's */
#define DEPTH_MAX	1024u		/* far more than a device takes at once */
#define BUFFERS_MAX	COW_GIB(1)	/* of all requests that are on their way */
#define TICK_REQUESTS	256u		/* between two looks at the signals: too few to be felt */

/*
 * Times in nanoseconds: exact ones up to LAT_STEPS, then as many buckets for each doubling, of
 * which none is wider than 1/64 of what it holds.
 */
#define LAT_BITS	6u
#define LAT_STEPS	(1u << LAT_BITS)
#define LAT_BUCKETS	((64 - LAT_BITS + 1) * LAT_STEPS)

static const struct cow_cli_opt opts[] = {
	IMG_CLI_OPEN,
	{ 'c', "count", "N", "requests to make (default: 75000)" },
	{ 'd', "depth", "N", "how many are on their way at once (default: 64)" },
	{ 's', "buffer-size", "SIZE", "bytes of a request (default: 4096)" },
	{ 'S', "step-size", "SIZE", "from the start of one to that of the next (default: its size)" },
	{ IMG_OPT_OFFSET, "offset", "OFFSET", "where the first one starts (default: 0)" },
	{ IMG_OPT_RANDOM, "random", "[=SEED]", "at random places instead of one after the other" },
	{ 'w', "write", NULL, "write: what the image holds there is lost" },
	{ IMG_OPT_PATTERN, "pattern", "BYTE", "write this byte (default: 0)" },
	{ IMG_OPT_FLUSH_INTERVAL, "flush-interval", "N", "flush after each N writes, when they are done" },
	{ IMG_OPT_NO_DRAIN, "no-drain", NULL, "flush while others are on their way" },
	{ IMG_OPT_DIRECT, "direct", NULL, "past the page cache, where the files can" },
	IMG_CLI_OUTPUT,
	IMG_CLI_PROGRESS,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg bench",
	.synopsis = "-f FORMAT [OPTION]... IMAGE",
	.summary = "Tells how fast an image answers requests.",
	.opts = opts,
};

struct bench;

/* A request with its buffer, used again and again. */
struct slot {
	struct cow_req req;
	struct bench *b;
	struct slot *next_free;
	uint64_t start_ns;
};

struct bench {
	struct img_cmd *cmd;
	const char *path;
	struct cow_chain *c;
	struct img_progress progress;

	/* what to do */
	uint64_t count, depth, bytes, step, offset;
	uint64_t flush_interval;	/* 0: no flushes */
	bool write, random, no_drain, direct;
	int pattern;			/* -1: not given */
	uint64_t seed;

	uint64_t places;		/* where a request can start: @offset and every @step from there */
	struct slot *slots, *free;
	uint8_t *bufs;
	uint64_t started, finished;	/* reads or writes */
	uint64_t flushes, unflushed;	/* @unflushed: writes started since the last one */
	uint64_t inflight;
	bool flushing;

	int failed;			/* the first error, and where it was met */
	uint64_t failed_at;
	bool failed_flush;

	uint64_t elapsed_ns, cpu_ns, longest_ns;
	uint64_t lat[LAT_BUCKETS];
};

static uint64_t cpu_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- times ---- */

static unsigned bucket_of(uint64_t ns)
{
	unsigned doublings;

	if (ns < LAT_STEPS)
		return (unsigned)ns;
	doublings = 63 - LAT_BITS - (unsigned)__builtin_clzll(ns);
	return (doublings + 1) * LAT_STEPS + (unsigned)(ns >> doublings & (LAT_STEPS - 1));
}

/* The longest time that the bucket holds. */
static uint64_t bucket_end(unsigned bucket)
{
	unsigned doublings = bucket / LAT_STEPS;

	if (doublings <= 1)
		return bucket;
	doublings--;
	return (((uint64_t)LAT_STEPS + bucket % LAT_STEPS + 1) << doublings) - 1;
}

/* Of a hundred requests, @percent did not take longer. */
static uint64_t percentile(const struct bench *b, unsigned percent)
{
	uint64_t want = cow_div_up(b->finished * percent, 100), seen = 0;
	unsigned i = 0;

	for (; i < LAT_BUCKETS - 1; i++) {
		seen += b->lat[i];
		if (seen >= want)
			break;
	}
	return cow_min(bucket_end(i), b->longest_ns);
}

/* ---- requests ---- */

/* splitmix64 */
static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

static void note(struct bench *b, const struct slot *s, int result)
{
	uint64_t ns;

	if (result && !b->failed) {
		b->failed = result;
		b->failed_at = s->req.virt;
		b->failed_flush = s->req.op == COW_OP_FLUSH;
	}
	if (s->req.op == COW_OP_FLUSH) {
		b->flushing = false;
		b->flushes += !result;
		return;
	}
	ns = img_now_ns() - s->start_ns;
	b->lat[bucket_of(ns)]++;
	b->longest_ns = cow_max(b->longest_ns, ns);
	b->finished++;
}

static void slot_done(struct cow_req *req, int result)
{
	struct slot *s = cow_container_of(req, struct slot, req);
	struct bench *b = s->b;

	note(b, s, result);
	b->inflight--;
	s->next_free = b->free;
	b->free = s;
}

static void submit(struct bench *b, enum cow_op op)
{
	struct slot *s = b->free;
	uint64_t place = b->random ? next_random(&b->seed) : b->started;

	b->free = s->next_free;
	b->inflight++;
	s->req.op = op;
	if (op == COW_OP_FLUSH) {
		b->flushing = true;
		b->unflushed = 0;
	} else {
		s->req.virt = b->offset + place % b->places * b->step;
		b->started++;
		b->unflushed++;
		s->start_ns = img_now_ns();
	}
	cow_req_submit(b->c, &s->req);
}

/* Starts what can be started now. False: nothing. */
static bool start_one(struct bench *b)
{
	bool due = b->flush_interval && b->unflushed == b->flush_interval;

	if (!b->free || b->failed || (b->flushing && (due || !b->no_drain)))
		return false;
	if (due) {
		if (b->inflight && !b->no_drain)
			return false;
		submit(b, COW_OP_FLUSH);
		return true;
	}
	if (b->started == b->count)
		return false;
	submit(b, b->write ? COW_OP_WRITE : COW_OP_READ);
	return true;
}

static void run_requests(struct bench *b)
{
	uint64_t ticked = 0;

	for (;;) {
		if (b->finished - ticked >= TICK_REQUESTS) {
			ticked = b->finished;
			if (!b->failed && img_progress_tick(&b->progress, b->finished * b->bytes,
							    b->count * b->bytes))
				b->failed = -ECANCELED;
		}
		if (start_one(b))
			continue;
		if (!b->inflight)
			break;
		cow_chain_poll(b->c, true);
	}
}

static int make_slots(struct bench *b)
{
	b->slots = cow_zalloc(b->depth * sizeof(*b->slots));
	b->bufs = cow_memalign(4096, b->depth * b->bytes);
	if (!b->slots || !b->bufs)
		return -ENOMEM;
	/* Written to in any case, so that no page of it is met for the first time while the clock runs. */
	memset(b->bufs, b->pattern < 0 ? 0 : b->pattern, b->depth * b->bytes);
	for (uint64_t i = 0; i < b->depth; i++) {
		struct slot *s = &b->slots[i];

		s->b = b;
		s->req.buf = b->bufs + i * b->bytes;
		s->req.len = b->bytes;
		s->req.done = slot_done;
		s->next_free = b->free;
		b->free = s;
	}
	return 0;
}

/* ---- what is said ---- */

static int explain(const struct bench *b)
{
	if (b->failed == -ECANCELED)
		return img_fail_msg(b->cmd, "%s after %" PRIu64 " of %" PRIu64 " requests",
				    img_progress_why(&b->progress), b->finished, b->count);
	if (b->failed_flush)
		return img_fail_msg(b->cmd, "%s: cannot flush: %s", b->path, strerror(-b->failed));
	return img_fail_msg(b->cmd, "%s: cannot %s at offset %" PRIu64 ": %s", b->path,
			    b->write ? "write" : "read", b->failed_at, strerror(-b->failed));
}

static double seconds(const struct bench *b)
{
	return (double)cow_max(b->elapsed_ns, 1) / 1e9;
}

static int report_json(const struct bench *b)
{
	struct cow_kv *kv = cow_kv_new(stdout, COW_KV_JSON, IMG_SCHEMA);
	int r;

	if (!kv)
		return img_fail(b->cmd, -ENOMEM, NULL);
	cow_kv_str(kv, "path", b->path);
	cow_kv_str(kv, "format", b->cmd->format);
	cow_kv_str(kv, "operation", b->write ? "write" : "read");
	cow_kv_u64(kv, "requests", b->finished);
	cow_kv_u64(kv, "depth", b->depth);
	cow_kv_u64(kv, "request_bytes", b->bytes);
	cow_kv_u64(kv, "step_bytes", b->step);
	cow_kv_bool(kv, "random", b->random);
	cow_kv_u64(kv, "flushes", b->flushes);
	cow_kv_u64(kv, "elapsed_ns", b->elapsed_ns);
	cow_kv_u64(kv, "iops", (uint64_t)((double)b->finished / seconds(b)));
	cow_kv_u64(kv, "bytes_per_second", (uint64_t)((double)(b->finished * b->bytes) / seconds(b)));
	cow_kv_u64(kv, "latency_p50_ns", percentile(b, 50));
	cow_kv_u64(kv, "latency_p99_ns", percentile(b, 99));
	cow_kv_u64(kv, "latency_max_ns", b->longest_ns);
	cow_kv_u64(kv, "cpu_ns_per_request", b->cpu_ns / b->finished);
	r = cow_kv_end(kv);
	return r ? img_fail(b->cmd, r, NULL) : IMG_OK;
}

static int report(const struct bench *b)
{
	if (b->cmd->json)
		return report_json(b);
	printf("%" PRIu64 " %s of %" PRIu64 " bytes, at most %" PRIu64 " at once, in %.3f s", b->finished,
	       b->write ? "writes" : "reads", b->bytes, b->depth, seconds(b));
	if (b->flush_interval)
		printf(", with %" PRIu64 " flushes", b->flushes);
	printf("\n%.0f IOPS, %.1f MB/s, %.2f us of CPU each\n", (double)b->finished / seconds(b),
	       (double)(b->finished * b->bytes) / seconds(b) / 1e6,
	       (double)b->cpu_ns / (double)b->finished / 1e3);
	printf("latency: p50 %.2f us, p99 %.2f us, longest %.2f us\n", (double)percentile(b, 50) / 1e3,
	       (double)percentile(b, 99) / 1e3, (double)b->longest_ns / 1e3);
	return IMG_OK;
}

/* ---- the command ---- */

static int measure(struct bench *b)
{
	struct cow_err err = { 0 };
	int r = b->direct ? cow_chain_go_direct(b->c, &err) : 0;

	if (!r)
		r = make_slots(b);
	if (r)
		return img_fail(b->cmd, r, &err);
	img_progress_begin(&b->progress, b->cmd);
	b->cpu_ns = cpu_now_ns();
	b->elapsed_ns = img_now_ns();
	run_requests(b);
	b->elapsed_ns = img_now_ns() - b->elapsed_ns;
	b->cpu_ns = cpu_now_ns() - b->cpu_ns;
	if (!b->failed)
		img_progress_tick(&b->progress, b->count * b->bytes, b->count * b->bytes);
	img_progress_end(&b->progress);
	return b->failed ? explain(b) : IMG_OK;
}

static int run(struct bench *b)
{
	int status;

	if (img_open(b->cmd, b->path, b->write ? COW_OPEN_WRITE : 0, &b->c))
		return IMG_FAILED;
	status = img_in_bounds(b->cmd, b->path, b->offset, b->bytes, cow_chain_size(b->c));
	if (!status) {
		b->places = (cow_chain_size(b->c) - b->offset - b->bytes) / b->step + 1;
		status = measure(b);
	}
	status = img_close(b->cmd, b->c, b->path, status);
	cow_free(b->slots);
	cow_free(b->bufs);
	return status ? status : report(b);
}

/* A number that is not 0. */
static int number_arg(const struct bench *b, const char *what, uint64_t *ret)
{
	int status = img_size_arg(b->cmd, what, optarg, ret);

	if (!status && !*ret)
		return cow_cli_misuse(&cli, "%s is above 0", what);
	return status;
}

static int seed_arg(struct bench *b)
{
	b->random = true;
	return optarg ? img_size_arg(b->cmd, "SEED", optarg, &b->seed) : 0;
}

static int parse(struct bench *b, int c)
{
	switch (c) {
	case 'c':
		return number_arg(b, "--count", &b->count);
	case 'd':
		return number_arg(b, "--depth", &b->depth);
	case 's':
		return number_arg(b, "--buffer-size", &b->bytes);
	case 'S':
		return number_arg(b, "--step-size", &b->step);
	case IMG_OPT_OFFSET:
		return img_size_arg(b->cmd, "OFFSET", optarg, &b->offset);
	case IMG_OPT_RANDOM:
		return seed_arg(b);
	case 'w':
		b->write = true;
		return 0;
	case IMG_OPT_PATTERN:
		return img_pattern_arg(b->cmd, optarg, &b->pattern);
	case IMG_OPT_FLUSH_INTERVAL:
		return number_arg(b, "--flush-interval", &b->flush_interval);
	case IMG_OPT_NO_DRAIN:
		b->no_drain = true;
		return 0;
	case IMG_OPT_DIRECT:
		b->direct = true;
		return 0;
	default:
		return img_common_opt(b->cmd, c);
	}
}

static int check_args(struct bench *b, int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE", NULL };
	uint64_t all;
	int status = img_operands(b->cmd, argc, argv, operands, 1);

	if (status)
		return status;
	b->path = argv[optind];
	if (b->depth > DEPTH_MAX)
		return cow_cli_misuse(&cli, "--depth is at most %u", DEPTH_MAX);
	if (!cow_mul_ok(b->depth, b->bytes, &all) || all > BUFFERS_MAX)
		return cow_cli_misuse(&cli, "--depth times --buffer-size is at most %" PRIu64 " MiB",
				      BUFFERS_MAX >> 20);
	if (!cow_mul_ok(b->count, b->bytes, &all) || b->count > UINT64_MAX / 100)
		return cow_cli_misuse(&cli, "--count is too large");
	if (b->pattern >= 0 && !b->write)
		return cow_cli_misuse(&cli, "--pattern is what is written, but --write is missing");
	if (b->flush_interval && !b->write)
		return cow_cli_misuse(&cli, "--flush-interval counts writes, but --write is missing");
	if (b->no_drain && !b->flush_interval)
		return cow_cli_misuse(&cli, "--no-drain needs --flush-interval");
	if (!b->step)
		b->step = b->bytes;
	return img_need_format(b->cmd, b->path);
}

int cowimg_bench(int argc, char **argv)
{
	static struct bench b = { .count = COUNT_DEFAULT, .depth = DEPTH_DEFAULT, .bytes = BYTES_DEFAULT,
				  .pattern = -1 };
	struct img_cmd cmd = { .cli = &cli };
	int c, status = 0;

	b.cmd = &cmd;
	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1)
		status = parse(&b, c);
	if (!status)
		status = check_args(&b, argc, argv);
	if (!status)
		status = run(&b);
	return img_finish(&cmd, status);
}
