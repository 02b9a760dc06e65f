// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Table operations on a device-mapper node, in random order and many a second, while
 * others use it: suspend (with and without flush), resume, the same table again,
 * status, messages; and a second node with the same table that comes, is read and goes.
 * Judges what each call returns, and that it returns at all; not contents (payload.c).
 *
 *   dmops [-n CALLS] [-s SEED] [-k SECONDS] [-2 NAME2] NODE [MESSAGE]...
 *
 * MESSAGE: one of them, by lot, is sent to the node's target. -k: a call that takes longer is
 * stuck (120). Prints a line of counts; exit status 1 and a sentence on any surprise.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#include "dmcall.h"
#include "stamp.h"

#define READ_BYTES 65536u

enum what { SUSPEND, SUSPEND_NOFLUSH, RELOAD, CLEAR, STATUS, MESSAGE, SECOND, WHATS };

static const char *const names[WHATS] = {
	"suspend", "suspend-noflush", "reload", "load-and-clear", "status", "message", "second"
};

static struct {
	const char *node, *second;
	char **messages;
	unsigned n_messages, stuck;
	uint64_t rnd, seed, sectors;
	char type[DM_MAX_TYPE_NAME];
	char params[DMCALL_DATA];
	unsigned long count[WHATS], call;
	/* What the alarm says when a call does not return. */
	const char *volatile now;
} d = { .stuck = 120, .seed = 1 };

static _Noreturn void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static _Noreturn void fail(const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "dmops: %s: call %lu: ", d.node, d.call);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, " (seed %" PRIu64 ")\n", d.seed);
	_exit(1);
}

static void on_alarm(int sig)
{
	(void)sig;
	fail("%s does not return", d.now);
}

static uint64_t below(uint64_t n)
{
	return rnd_below(&d.rnd, n);
}

/* Makes the call, which must succeed in time. */
static void must(struct dmcall *c, unsigned long request, const char *what)
{
	int r;

	d.now = what;
	alarm(d.stuck);
	r = dmcall(c, request);
	alarm(0);
	if (r)
		fail("%s: %s", what, strerror(-r));
}

static void simple(const char *name, unsigned long request, uint32_t flags, const char *what)
{
	struct dmcall c;

	dmcall_init(&c, name, flags);
	must(&c, request, what);
}

static void nap(void)
{
	struct timespec ts = { 0, (long)below(4) * (long)below(1000000) };

	nanosleep(&ts, NULL);
}

static void suspend(uint32_t flags)
{
	if (below(3) == 0)
		flags |= DM_SKIP_LOCKFS_FLAG;
	simple(d.node, DM_DEV_SUSPEND, DM_SUSPEND_FLAG | flags, "suspend");
	if (below(4) == 0)	/* suspending what is suspended is fine */
		simple(d.node, DM_DEV_SUSPEND, DM_SUSPEND_FLAG, "suspend again");
	nap();
	simple(d.node, DM_DEV_SUSPEND, 0, "resume");
}

static void load(const char *name)
{
	struct dmcall c;

	dmcall_init(&c, name, 0);
	if (!dmcall_target(&c, d.sectors, d.type, d.params))
		fail("the table is too long");
	must(&c, DM_TABLE_LOAD, "load");
}

static void status(uint32_t flags)
{
	struct dmcall c;
	struct dm_target_spec spec;

	dmcall_init(&c, d.node, flags);
	must(&c, DM_TABLE_STATUS, "status");
	memcpy(&spec, (char *)&c + c.io.data_start, sizeof(spec));
	if (c.io.target_count != 1 || strcmp(spec.target_type, d.type))
		fail("status: %u targets, the first is %s", c.io.target_count, spec.target_type);
	if (!(flags & DM_STATUS_TABLE_FLAG))
		return;
	if (!d.sectors) {
		d.sectors = spec.length;
		snprintf(d.params, sizeof(d.params), "%s",
			 (char *)&c + c.io.data_start + sizeof(spec));
	} else if (strcmp(d.params, (char *)&c + c.io.data_start + sizeof(spec))) {
		fail("the table became %s", (char *)&c + c.io.data_start + sizeof(spec));
	}
}

static void message(void)
{
	const char *text = d.messages[below(d.n_messages)];
	int r;

	d.now = text;
	alarm(d.stuck);
	r = dmcall_message(d.node, 0, text);
	alarm(0);
	if (r)
		fail("message %s: %s", text, strerror(-r));
}

static void read_some(const char *path)
{
	uint8_t *buf = aligned_alloc(4096, READ_BYTES);
	int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);

	if (!buf || fd < 0)
		fail("%s: %s", path, strerror(errno));
	d.now = "read of the second node";
	alarm(d.stuck);
	for (unsigned i = 0; i < 4; i++) {
		uint64_t at = below(d.sectors * 512 / READ_BYTES) * READ_BYTES;

		if (pread(fd, buf, READ_BYTES, (off_t)at) != READ_BYTES)
			fail("%s: read at %" PRIu64 ": %s", path, at, strerror(errno));
	}
	alarm(0);
	close(fd);
	free(buf);
}

/* It comes with the same table, and so the same key; is used; goes. */
static void second(void)
{
	struct dmcall c;
	char path[256];

	dmcall_init(&c, d.second, 0);
	must(&c, DM_DEV_CREATE, "create the second");
	snprintf(path, sizeof(path), "/dev/mapper/.%s", d.second);
	unlink(path);
	if (mknod(path, S_IFBLK | 0600, makedev(major(c.io.dev), minor(c.io.dev))))
		fail("%s: %s", path, strerror(errno));
	load(d.second);
	simple(d.second, DM_DEV_SUSPEND, 0, "resume the second");
	if (below(4))
		read_some(path);
	if (below(2))
		simple(d.second, DM_DEV_SUSPEND, DM_SUSPEND_FLAG | (below(2) ? DM_NOFLUSH_FLAG : 0),
		       "suspend the second");
	unlink(path);
	simple(d.second, DM_DEV_REMOVE, 0, "remove the second");
}

static void one_call(void)
{
	enum what what = (enum what)below(WHATS);

	if ((what == MESSAGE && !d.n_messages) || (what == SECOND && !d.second))
		what = SUSPEND;
	switch (what) {
	case SUSPEND:
		suspend(0);
		break;
	case SUSPEND_NOFLUSH:
		suspend(DM_NOFLUSH_FLAG);
		break;
	case RELOAD:
		load(d.node);
		nap();
		if (below(2))	/* a resume alone suspends first, too */
			simple(d.node, DM_DEV_SUSPEND, DM_SUSPEND_FLAG | (below(2) ? DM_NOFLUSH_FLAG : 0),
			       "suspend");
		simple(d.node, DM_DEV_SUSPEND, 0, "resume");
		break;
	case CLEAR:
		load(d.node);
		if (below(2))
			load(d.node);
		simple(d.node, DM_TABLE_CLEAR, 0, "clear");
		break;
	case STATUS:
		status(below(2) ? DM_STATUS_TABLE_FLAG : below(2) ? DM_NOFLUSH_FLAG : 0);
		break;
	case MESSAGE:
		message();
		break;
	default:
		second();
	}
	d.count[what]++;
}

static void find_type(void)
{
	struct dmcall c;
	struct dm_target_spec spec;

	dmcall_init(&c, d.node, DM_STATUS_TABLE_FLAG);
	must(&c, DM_TABLE_STATUS, "status");
	memcpy(&spec, (char *)&c + c.io.data_start, sizeof(spec));
	snprintf(d.type, sizeof(d.type), "%s", spec.target_type);
	status(DM_STATUS_TABLE_FLAG);
}

int main(int argc, char **argv)
{
	unsigned long calls = 1000;
	int c;

	while ((c = getopt(argc, argv, "n:s:k:2:")) != -1) {
		switch (c) {
		case 'n': calls = strtoul(optarg, NULL, 10); break;
		case 's': d.seed = strtoull(optarg, NULL, 10); break;
		case 'k': d.stuck = (unsigned)strtoul(optarg, NULL, 10); break;
		case '2': d.second = optarg; break;
		default: return 2;
		}
	}
	if (optind >= argc) {
		fprintf(stderr, "dmops: no node\n");
		return 2;
	}
	d.node = argv[optind];
	d.messages = argv + optind + 1;
	d.n_messages = (unsigned)(argc - optind - 1);
	d.rnd = d.seed;
	signal(SIGALRM, on_alarm);
	find_type();
	for (d.call = 1; d.call <= calls; d.call++)
		one_call();
	for (unsigned i = 0; i < WHATS; i++)
		printf("%s=%lu ", names[i], d.count[i]);
	printf("seed=%" PRIu64 "\n", d.seed);
	return 0;
}
