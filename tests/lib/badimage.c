// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What is done to crafted images (badimage.h).
 */
#include "badimage.h"

#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "cow/log.h"
#include "test.h"

#define HEADER_MAX 128u
#define LOOK_MAX COW_GIB(1)	/* virtual bytes: a check of more takes longer than a test may */

#define BYTES_MAX COW_MIB(64)
#define CPU_MAX_MS 1000u
#define HANG_S 60u		/* of processor time, where the bounds do not hold */

static struct cow_sim *sim;
static unsigned images, refused;

/* ---- bounds ---- */

static struct {
	char name[200];		/* empty: none are kept now */
	uint64_t begun_ms;
} bounds;
static struct {
	uint64_t cpu_ms;
	char name[sizeof(bounds.name)];
} dearest;

static bool instrumented(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
	return true;
#endif
#endif
	return getenv("TEST_WRAP") && *getenv("TEST_WRAP");
}

static uint64_t cpu_ms(void)
{
	struct timespec t;

	CHECK_EQ(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t), 0);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Private memory that was asked for, touched or not. */
static uint64_t data_bytes(void)
{
	FILE *f = fopen("/proc/self/status", "re");
	unsigned long long kib = 0;
	char line[256];

	CHECK(f);
	while (fgets(line, sizeof(line), f) && sscanf(line, "VmData: %llu kB", &kib) != 1)
		;
	fclose(f);
	CHECK(kib);
	return COW_KIB(kib);
}

static void limit(int what, uint64_t to)
{
	struct rlimit lim;

	CHECK_EQ(getrlimit(what, &lim), 0);
	lim.rlim_cur = cow_min(to, (uint64_t)lim.rlim_max);
	CHECK_EQ(setrlimit(what, &lim), 0);
}

static void hung(int sig)
{
	static const char said[] = ": does not come to an end\n";

	(void)sig;
	if (write(STDERR_FILENO, bounds.name, strlen(bounds.name)) < 0 ||
	    write(STDERR_FILENO, said, sizeof(said) - 1) < 0)
		_exit(2);
	_exit(1);
}

void bad_bounds_begin(const char *name)
{
	/* Memory that was given back is not to count: none is kept for later. */
	mallopt(M_MMAP_THRESHOLD, 128 << 10);
	mallopt(M_TRIM_THRESHOLD, 128 << 10);
	malloc_trim(0);
	snprintf(bounds.name, sizeof(bounds.name), "%s", name);
	signal(SIGXCPU, hung);
	bounds.begun_ms = cpu_ms();
	limit(RLIMIT_CPU, bounds.begun_ms / 1000 + HANG_S);
	if (!instrumented())
		limit(RLIMIT_DATA, data_bytes() + BYTES_MAX);
}

static void bounds_lift(void)
{
	limit(RLIMIT_DATA, RLIM_INFINITY);
	limit(RLIMIT_CPU, RLIM_INFINITY);
	bounds.name[0] = '\0';
}

static uint64_t cpu_max_ms(void)
{
	const char *patience = getenv("TEST_PATIENCE");

	return CPU_MAX_MS * (patience ? strtoull(patience, NULL, 10) : 1);
}

/* A call has ended. */
static void step(void)
{
	uint64_t now = cpu_ms(), took = now - bounds.begun_ms;

	bounds.begun_ms = now;
	if (took >= dearest.cpu_ms) {
		dearest.cpu_ms = took;
		memcpy(dearest.name, bounds.name, sizeof(bounds.name));
	}
	if (took > cpu_max_ms() && !instrumented())
		FAIL("%s: took %llu ms of the processor", bounds.name, (unsigned long long)took);
}

void bad_bounds_end(void)
{
	step();
	bounds_lift();
}

int bad_within(int rc)
{
	if (!bounds.name[0])
		return rc;
	step();
	if (rc == -ENOMEM)
		FAIL("%s: wants more than %llu MiB", bounds.name, (unsigned long long)(BYTES_MAX >> 20));
	return rc;
}

/* ---- images ---- */

struct cow_sim *bad_machine(void)
{
	return sim;
}

void bad_put(uint64_t off, unsigned bytes, uint64_t value)
{
	uint8_t b[8];

	cow_put_be64(b, value);
	CHECK_EQ(cow_sim_write(sim, BAD_IMG, b + 8 - bytes, bytes, off), 0);
}

uint64_t bad_get(uint64_t off, unsigned bytes)
{
	uint8_t b[8] = { 0 };

	CHECK_EQ(cow_sim_read(sim, BAD_IMG, b + 8 - bytes, bytes, off), 0);
	return cow_get_be64(b);
}

void bad_tell(void)
{
	printf("%u images, %u refused; at most %llu ms of the processor (%s)\n", images, refused,
	       (unsigned long long)dearest.cpu_ms, dearest.name);
}

void bad_enough(unsigned least)
{
	if (!images)
		test_skip("no image was judged before");
	if (images < least)
		FAIL("%u images were judged, %u are to be", images, least);
	printf("in all ");
	bad_tell();
}

const char *bad_open_options = "";

struct cow_chain *bad_open(uint32_t flags, const char *options, struct cow_err *err)
{
	struct cow_args *args = cow_args_new();
	struct cow_chain_cfg cfg = {
		.format = bad_kind.format, .path = BAD_IMG, .flags = flags, .args = args,
		.no_backing = true, .cache_bytes = COW_KIB(256), .io = &cow_io_sim_ops, .io_arg = sim,
	};
	struct cow_chain *c = NULL;
	int rc;

	CHECK(args);
	CHECK_EQ(cow_args_parse(args, options, err), 0);
	CHECK_EQ(cow_args_parse(args, bad_open_options, err), 0);
	*err = (struct cow_err){ 0 };
	rc = bad_within(cow_chain_open(&cfg, &c, err));
	cow_args_free(args);
	if (rc == 0)
		return c;
	CHECK(rc < 0 && err->code == rc && err->msg[0] && !strchr(err->msg, '\n'));
	CHECK(strstr(err->msg, BAD_IMG));
	CHECK_EQ(cow_sim_open_files(sim), 0);
	return NULL;
}

void bad_make(const char *options)
{
	struct cow_args *args = cow_args_new();
	struct cow_create_cfg cfg = {
		.format = bad_kind.format, .path = BAD_IMG, .size = bad_kind.size, .args = args,
		.exist_ok = true, .io = &cow_io_sim_ops,
	};
	const struct cow_format *fmt;
	struct cow_err err = { 0 };
	struct cow_chain *c;
	uint8_t data[8192];

	if (cow_format_find(bad_kind.format, &fmt, &err))
		test_skip("built without zlib and zstd");
	bounds_lift();		/* a case that failed left them */
	if (sim)
		cow_sim_free(sim);
	cow_log_set_level((enum cow_log_level)0);
	sim = cow_sim_new(1);
	cfg.io_arg = sim;
	CHECK(sim && args && cow_args_parse(args, options, &err) == 0);
	if (cow_image_create(&cfg, NULL, &err))
		FAIL("create: %s", err.msg);
	cow_args_free(args);
	c = bad_open(COW_OPEN_WRITE, "", &err);
	CHECK(c);
	memset(data, 0x5a, sizeof(data));
	CHECK_EQ(cow_chain_pwrite(c, data, sizeof(data), 0), 0);
	CHECK_EQ(cow_chain_pwrite(c, data, sizeof(data), bad_kind.size / 2), 0);
	CHECK_EQ(cow_chain_close(c), 0);
}

uint64_t bad_look(struct cow_chain *c)
{
	static uint8_t buf[COW_KIB(256)];
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };
	uint64_t size = cow_chain_size(c), virt = 0;

	for (unsigned i = 0; i < 8; i++)
		(void)bad_within(cow_chain_pread(c, buf, cow_min(sizeof(buf), size - size / 8 * i),
						 size / 8 * i));
	for (unsigned i = 0; i < 64 && virt < size; i++) {
		struct cow_extent e;

		if (bad_within(cow_chain_extent(c, 0, virt, size - virt, &e, NULL)))
			break;
		CHECK(e.virt == virt && e.len > 0 && e.len <= size - virt);
		virt += e.len;
	}
	if (size > LOOK_MAX || bad_within(cow_chain_check(c, &rep, 0, &err)))
		return UINT64_MAX;
	return rep.corruptions;
}

/* Writes; in a @sound image what was accepted reads back; never is the header written over. */
static void scribble(struct cow_chain *c, const char *name, bool sound)
{
	const uint64_t size = bad_kind.size, at[] = { 0, 4000, size / 2 + 100, size / 4, size - 5000 };
	uint8_t data[5000], got[5000], before[HEADER_MAX], after[HEADER_MAX];

	CHECK(bad_kind.header_bytes <= HEADER_MAX);
	CHECK_EQ(cow_sim_read(sim, BAD_IMG, before, bad_kind.header_bytes, 0), 0);
	for (unsigned i = 0; i < COW_ARRAY_SIZE(at); i++) {
		if (at[i] + sizeof(data) > cow_chain_size(c))
			continue;
		memset(data, (int)i + 1, sizeof(data));
		if (bad_within(cow_chain_pwrite(c, data, sizeof(data), at[i])))
			continue;
		if (cow_chain_pread(c, got, sizeof(got), at[i]))
			FAIL("%s: what was written at %llu cannot be read", name,
			     (unsigned long long)at[i]);
		if (sound && memcmp(got, data, sizeof(data)))
			FAIL("%s: what was written at %llu does not read back", name,
			     (unsigned long long)at[i]);
	}
	(void)bad_within(cow_chain_zero(c, 8192, 16384));
	(void)bad_within(cow_chain_discard(c, size / 2, 8192));
	(void)bad_within(cow_chain_flush(c));
	CHECK_EQ(cow_sim_read(sim, BAD_IMG, after, bad_kind.header_bytes, 0), 0);
	if (bad_kind.may_change)
		bad_kind.may_change(after, before);
	if (memcmp(before, after, bad_kind.header_bytes))
		FAIL("%s: the header was written over", name);
}

/* A repair that says it is done leaves nothing for another. */
static void repair(struct cow_chain *c, const char *name)
{
	struct cow_report rep = { 0 }, after = { 0 };
	struct cow_err err = { 0 };

	if (bad_within(cow_chain_check(c, &rep, COW_CHECK_REPAIR, &err)) ||
	    rep.repaired < rep.leaks + rep.corruptions)
		return;
	if (bad_within(cow_chain_check(c, &after, 0, &err)) || after.leaks + after.corruptions)
		FAIL("%s: was repaired, and there is more to repair", name);
}

static void use(const char *name, uint32_t flags)
{
	uint64_t before;
	struct cow_err err = { 0 };
	struct cow_chain *c = bad_open(flags, "", &err);

	if (!c)
		return;
	before = bad_look(c);
	if (flags == COW_OPEN_WRITE)
		scribble(c, name, before == 0);
	if (flags & COW_OPEN_CHECK && flags & COW_OPEN_WRITE)
		repair(c, name);
	(void)bad_within(cow_chain_close(c));
	if (before != 0)
		return;
	c = bad_open(flags & COW_OPEN_CHECK, "", &err);
	if (!c)
		FAIL("%s: cannot be opened after it was used: %s", name, err.msg);
	if (bad_look(c) != 0)
		FAIL("%s: was sound, and is not after it was used (flags %u)", name, flags);
	(void)cow_chain_close(c);
}

void bad_judge(const char *name, enum bad_expect expect)
{
	static const uint32_t flags[] = {
		0, COW_OPEN_CHECK, COW_OPEN_WRITE, COW_OPEN_WRITE | COW_OPEN_CHECK,
	};
	struct cow_err err = { 0 };
	struct cow_chain *c;

	bad_bounds_begin(name);
	c = bad_open(0, "", &err);
	images++;
	refused += !c;
	if (expect == BAD_REFUSED && c)
		FAIL("%s: was opened", name);
	if (expect == BAD_OPENS && !c)
		FAIL("%s: was refused: %s", name, err.msg);
	if (c)
		(void)cow_chain_close(c);
	for (size_t i = 0; i < COW_ARRAY_SIZE(flags); i++)
		use(name, flags[i]);
	bad_bounds_end();
}

void bad_with(const char *options, const char *name, uint64_t off, unsigned bytes, uint64_t value,
	      enum bad_expect expect)
{
	char full[160];

	bad_make(options);
	bad_put(off, bytes, value);
	snprintf(full, sizeof(full), "%s = %#llx (%s)", name, (unsigned long long)value, options);
	bad_judge(full, expect);
}
