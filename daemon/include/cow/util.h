/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Small helpers every part of cowd shares: checked arithmetic, alignment,
 * little/big-endian access, an intrusive list, and the one allocator.
 *
 * Nothing here knows about images.
 */
#ifndef COW_UTIL_H
#define COW_UTIL_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define COW_EXPORT __attribute__((visibility("default")))
#define COW_PRINTF(f, a) __attribute__((format(printf, f, a)))

#define COW_KIB(n) ((uint64_t)(n) << 10)
#define COW_MIB(n) ((uint64_t)(n) << 20)
#define COW_GIB(n) ((uint64_t)(n) << 30)
#define COW_TIB(n) ((uint64_t)(n) << 40)

#define COW_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define cow_container_of(ptr, type, member) \
	((type *)((char *)(ptr) - offsetof(type, member)))

static inline uint64_t cow_min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t cow_max(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static inline bool cow_is_pow2(uint64_t v)
{
	return v && !(v & (v - 1));
}

/* Are all of @n bytes zeroes? */
static inline bool cow_is_zero(const void *p, size_t n)
{
	const uint8_t *bytes = (const uint8_t *)p;

	return n == 0 || (bytes[0] == 0 && !memcmp(bytes, bytes + 1, n - 1));
}

/* @unit is a power of two. */
static inline uint64_t cow_round_down(uint64_t v, uint64_t unit)
{
	return v & ~(unit - 1);
}

/* @unit is a power of two; the caller knows that the result fits. */
static inline uint64_t cow_round_up(uint64_t v, uint64_t unit)
{
	return (v + unit - 1) & ~(unit - 1);
}

static inline uint64_t cow_div_up(uint64_t v, uint64_t unit)
{
	return v / unit + (v % unit != 0);
}

/* Checked arithmetic: true when the result fits, as every sum over untrusted input must. */
static inline bool cow_add_ok(uint64_t a, uint64_t b, uint64_t *ret)
{
	return !__builtin_add_overflow(a, b, ret);
}

static inline bool cow_mul_ok(uint64_t a, uint64_t b, uint64_t *ret)
{
	return !__builtin_mul_overflow(a, b, ret);
}

/* On-disk integers: unaligned, explicit byte order. */
static inline uint16_t cow_get_le16(const void *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return le16toh(v);
}

static inline uint32_t cow_get_le32(const void *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return le32toh(v);
}

static inline uint64_t cow_get_le64(const void *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return le64toh(v);
}

static inline void cow_put_le16(void *p, uint16_t v)
{
	v = htole16(v);
	memcpy(p, &v, sizeof(v));
}

static inline void cow_put_le32(void *p, uint32_t v)
{
	v = htole32(v);
	memcpy(p, &v, sizeof(v));
}

static inline void cow_put_le64(void *p, uint64_t v)
{
	v = htole64(v);
	memcpy(p, &v, sizeof(v));
}

static inline uint16_t cow_get_be16(const void *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return be16toh(v);
}

static inline uint32_t cow_get_be32(const void *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

static inline uint64_t cow_get_be64(const void *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return be64toh(v);
}

static inline void cow_put_be16(void *p, uint16_t v)
{
	v = htobe16(v);
	memcpy(p, &v, sizeof(v));
}

static inline void cow_put_be32(void *p, uint32_t v)
{
	v = htobe32(v);
	memcpy(p, &v, sizeof(v));
}

static inline void cow_put_be64(void *p, uint64_t v)
{
	v = htobe64(v);
	memcpy(p, &v, sizeof(v));
}

/* Intrusive doubly linked list; a head points at itself when empty. */
struct cow_list {
	struct cow_list *next, *prev;
};

static inline void cow_list_init(struct cow_list *head)
{
	head->next = head->prev = head;
}

static inline bool cow_list_empty(const struct cow_list *head)
{
	return head->next == head;
}

static inline void cow_list_add_tail(struct cow_list *head, struct cow_list *node)
{
	node->prev = head->prev;
	node->next = head;
	head->prev->next = node;
	head->prev = node;
}

static inline void cow_list_del(struct cow_list *node)
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
	node->next = node->prev = node;
}

/* Moves every node of @from to the end of @to. */
static inline void cow_list_splice(struct cow_list *from, struct cow_list *to)
{
	if (cow_list_empty(from))
		return;
	from->next->prev = to->prev;
	to->prev->next = from->next;
	from->prev->next = to;
	to->prev = from->prev;
	cow_list_init(from);
}

#define cow_list_entry(node, type, member) cow_container_of(node, type, member)
#define cow_list_for_each(node, head) \
	for ((node) = (head)->next; (node) != (head); (node) = (node)->next)
#define cow_list_for_each_safe(node, tmp, head)                              \
	for ((node) = (head)->next, (tmp) = (node)->next; (node) != (head);  \
	     (node) = (tmp), (tmp) = (node)->next)

/*
 * The only allocator of libcow, its formats and its front ends, so that a test
 * can fail any one allocation. All return NULL when memory is short; release
 * with cow_free().
 */
COW_EXPORT void *cow_zalloc(size_t bytes);
COW_EXPORT void *cow_memalign(size_t align, size_t bytes);	/* contents undefined */
COW_EXPORT char *cow_strdup(const char *s);
COW_EXPORT char *cow_asprintf(const char *fmt, ...) COW_PRINTF(1, 2);
COW_EXPORT void cow_free(void *p);

/*
 * Test hook: called before each allocation; returning true makes it fail.
 * Not thread-safe; set it before anything runs.
 */
COW_EXPORT extern bool (*cow_alloc_should_fail)(void);

static inline void cow_freep(void *pp)
{
	cow_free(*(void **)pp);
}

static inline void cow_closep(const int *fd)
{
	extern int close(int);

	if (*fd >= 0)
		close(*fd);
}

#define COW_CLEANUP_FREE __attribute__((cleanup(cow_freep)))
#define COW_CLEANUP_CLOSE __attribute__((cleanup(cow_closep)))

/* Checked in release builds too: a broken invariant must stop before it reaches the disk. */
COW_EXPORT _Noreturn void cow_assert_failed(const char *expr, const char *file, int line);
#define cow_assert(e) ((e) ? (void)0 : cow_assert_failed(#e, __FILE__, __LINE__))

/*
 * Parses "4096", "64K", "1.5G"-free sizes: digits and one optional suffix
 * b, k/K, M, G, T, P, E (powers of 1024). Returns 0, -EINVAL or -ERANGE.
 */
COW_EXPORT int cow_parse_size(const char *s, uint64_t *ret_bytes);

/* Waits so long, or until a signal comes. Any thread; not one that runs a loop others wait for. */
COW_EXPORT void cow_sleep_ms(unsigned ms);

/* "64 KiB", "1.5 GiB": for people only. @buf holds at least 32 bytes; returns it. */
COW_EXPORT const char *cow_human_size(uint64_t bytes, char *buf, size_t len);

#endif
