// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The C test harness, see test.h. A failed check leaves its case by longjmp()
 * and the next case runs; a crash ends the program, which the runner counts.
 */
#include "test.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include "run.h"

#define DEFAULT_SEED 20060501u

enum { FAILED = 1, SKIPPED = 2 };

static struct test_case *first, **last = &first;
static const struct test_case *current;
static jmp_buf leave;
static uint64_t rng;
uint64_t test_images;
static pid_t runner;	/* the process that runs the cases, not one that a case forked */

void test_register(struct test_case *t)
{
	*last = t;
	last = &t->next;
}

/* A forked child must not go on with the next case: its parent sees it fail. */
static _Noreturn void leave_case(int how)
{
	if (getpid() != runner) {
		fflush(stdout);
		_exit(1);
	}
	longjmp(leave, how);
}

void test_fail(const char *file, int line, const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fprintf(stderr, "%s:%d: %s: ", file, line, current ? current->name : "outside a case");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, " (SEED=%" PRIu64 ")\n", test_seed());
	if (!current)
		abort();
	leave_case(FAILED);
}

void test_skip(const char *fmt, ...)
{
	va_list ap;

	printf("SKIP: %s: ", current ? current->name : "all");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	if (!current)
		exit(77);
	leave_case(SKIPPED);
}

uint64_t test_seed(void)
{
	const char *s = getenv("SEED");

	return s ? strtoull(s, NULL, 0) : DEFAULT_SEED;
}

/* splitmix64 */
uint64_t test_rand(void)
{
	uint64_t z = rng += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

uint64_t test_rand_below(uint64_t n)
{
	return test_rand() % n;
}

const char *test_tmp(void)
{
	const char *s = getenv("TMP");

	return s ? s : "/tmp";
}

static bool wanted(const char *name, int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], name))
			return true;
	return argc < 2;
}

int test_run(int argc, char **argv)
{
	static unsigned passed, failed, skipped;	/* kept across longjmp() */

	runner = getpid();
	for (current = first; current; current = current->next) {
		if (!wanted(current->name, argc, argv))
			continue;
		rng = test_seed();
		switch (setjmp(leave)) {
		case 0:
			current->fn();
			passed++;
			break;
		case SKIPPED:
			skipped++;
			break;
		default:
			failed++;
		}
	}
	if (test_images)
		printf("IMAGES: %" PRIu64 "\n", test_images);
	printf("COUNT: %u %u %u\n", passed, failed, skipped);
	if (!passed && !failed && !skipped) {
		fprintf(stderr, "no such case\n");
		return 1;
	}
	return failed ? 1 : 0;
}
