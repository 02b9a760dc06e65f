/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Crafted images: bytes are put into one that the library made, then it is opened
 * in every way and used. Each is refused in one sentence, or used soundly: no
 * crash, the header is not written over, what was written reads back, and nothing
 * becomes worse that was well. That takes at most 64 MiB of memory, counted as it is
 * asked for, and each call one second of the processor; under sanitizers and valgrind
 * only what hangs is noticed.
 */
#ifndef COW_TEST_BADIMAGE_H
#define COW_TEST_BADIMAGE_H

#include "cow/chain.h"
#include "io-sim.h"

#define BAD_IMG "img.cow"

enum bad_expect { BAD_REFUSED, BAD_OPENS, BAD_ANY };

/* The program says what it is about. */
struct bad_kind {
	const char *format;
	uint64_t size;			/* virtual bytes of the images */
	unsigned header_bytes;		/* must stay as they are while data is written, */
	void (*may_change)(uint8_t *head, const uint8_t *before);	/* but what this puts back; or NULL */
};

extern const struct bad_kind bad_kind;

/* A fresh machine with a fresh image, and data at 0 and in its middle. Skips where the format is not built. */
void bad_make(const char *options);
void bad_put(uint64_t off, unsigned bytes, uint64_t value);	/* big endian */
uint64_t bad_get(uint64_t off, unsigned bytes);
struct cow_sim *bad_machine(void);
/* Options with which images are opened, besides; "" at first. */
extern const char *bad_open_options;
/* NULL, and the sentence was looked at. */
struct cow_chain *bad_open(uint32_t flags, const char *options, struct cow_err *err);
/* Reads all over, asks for maps, checks. Any error may come, nothing else. Corruptions, or UINT64_MAX. */
uint64_t bad_look(struct cow_chain *c);
/* The image as it stands now, in all ways. */
void bad_judge(const char *name, enum bad_expect expect);
/* A fresh one with one number changed. */
void bad_with(const char *options, const char *name, uint64_t off, unsigned bytes, uint64_t value,
	      enum bad_expect expect);
/* Prints how many were judged so far, how many of them were refused, and what the dearest took. */
void bad_tell(void);
/* At the end: at least @least were judged. */
void bad_enough(unsigned least);
/* The bounds for what comes in between; bad_judge() keeps them by itself. */
void bad_bounds_begin(const char *name);
void bad_bounds_end(void);
/* @rc of a call that ended; with lack of memory, which the bounds make, the case has failed. */
int bad_within(int rc);

#endif
