/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The harness of the C tests: cases that register themselves, checks that name
 * what they saw, and one seeded random number generator whose seed is printed
 * when a case fails. main() is in tests/lib/main.c; a test may bring its own.
 *
 *	TEST(size_suffixes)
 *	{
 *		uint64_t v;
 *
 *		CHECK_EQ(cow_parse_size("64K", &v), 0);
 *		CHECK_EQ(v, 65536);
 *	}
 *
 * SEED=n repeats a run, `TEST-PROGRAM name...` runs only these cases.
 */
#ifndef COW_TEST_H
#define COW_TEST_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct test_case {
	const char *name;
	void (*fn)(void);
	struct test_case *next;
};

void test_register(struct test_case *t);

#define TEST(n)                                                               \
	static void test_fn_##n(void);                                        \
	static struct test_case test_case_##n = { #n, test_fn_##n, NULL };    \
	__attribute__((constructor)) static void test_reg_##n(void)           \
	{                                                                     \
		test_register(&test_case_##n);                                \
	}                                                                     \
	static void test_fn_##n(void)

/* Ends the case as failed. */
_Noreturn void test_fail(const char *file, int line, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Ends the case as skipped. */
_Noreturn void test_skip(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#define CHECK(cond) ((cond) ? (void)0 : test_fail(__FILE__, __LINE__, "%s", #cond))
#define CHECK_EQ(a, b) test_check_eq((int64_t)(a), (int64_t)(b), #a, #b, __FILE__, __LINE__)
#define CHECK_STR(a, b) test_check_str((a), (b), #a, __FILE__, __LINE__)
#define FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)

static inline void test_check_eq(int64_t a, int64_t b, const char *as, const char *bs,
				 const char *file, int line)
{
	if (a != b)
		test_fail(file, line, "%s is %" PRId64 ", not %s = %" PRId64, as, a, bs, b);
}

static inline void test_check_str(const char *a, const char *b, const char *as, const char *file,
				  int line)
{
	if (!a || strcmp(a, b))
		test_fail(file, line, "%s is \"%s\", not \"%s\"", as, a ? a : "(null)", b);
}

/* Seeded anew for each case, from SEED or a fixed default. */
uint64_t test_rand(void);
uint64_t test_rand_below(uint64_t n);	/* 0 .. n-1, n > 0 */
uint64_t test_seed(void);
/* States of a disk that a power cut could have left, and that were judged: told as "IMAGES: n". */
extern uint64_t test_images;
/* The scratch folder of this run ($TMP, else /tmp). */
const char *test_tmp(void);

#endif
