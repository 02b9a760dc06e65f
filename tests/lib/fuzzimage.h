/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Hostile images of a format, for its fuzz targets: a copy of one that the library
 * made, which is then patched, or raw bytes. A target opens it, reads, writes, checks
 * or repairs it, or makes snapshots. None may crash, hang, take memory without
 * measure, or be changed by reading. Not for dscow, whose hostile images fuzz.h makes.
 *
 * Speed is the measure of a fuzz target. So images are made once in a process, and
 * shared by all inputs until one changes a page; and a target does one thing to an image.
 */
#ifndef COW_TEST_FUZZIMAGE_H
#define COW_TEST_FUZZIMAGE_H

#include "fuzz.h"

#define FUZZIMAGE "img.cow"
#define FUZZIMAGE_OPTIONS_MAX 12u

struct fuzzimage_kind {
	const char *format;
	const char *const *options;	/* of create, one of them for an image */
	size_t n;			/* <= FUZZIMAGE_OPTIONS_MAX */
	const char *read_options;	/* with which reading may open it as well, or NULL */
	uint32_t magic, version;	/* raw bytes begin with these; version 0: with the magic only */
	/* One number where it hurts: in the header, or an entry of a table. */
	void (*patch)(struct cow_sim *sim, struct fuzz_in *in);
	/* Whether a check ends soon, whatever the virtual size; NULL: it does. */
	bool (*small_enough)(struct cow_sim *sim);
	/* What works on whole trees of tables; NULL: nothing does. */
	void (*whole)(struct cow_chain *c, struct fuzz_in *in);
};

extern const struct fuzzimage_kind fuzzimage_qcow, fuzzimage_qcow2;

enum fuzzimage_what {
	FUZZIMAGE_OPEN,		/* in every way, and told about */
	FUZZIMAGE_READ,		/* read and mapped */
	FUZZIMAGE_WRITE,	/* written to, zeroed, discarded, flushed */
	FUZZIMAGE_CHECK,
	FUZZIMAGE_REPAIR,	/* then checked again, and used */
	FUZZIMAGE_WHOLE,	/* snapshots and other sizes */
};

/* Makes the image from the front of @in: the file FUZZIMAGE of @sim. */
void fuzzimage_make(const struct fuzzimage_kind *kind, struct cow_sim *sim, struct fuzz_in *in);

/* All of it, for one input. Returns what libFuzzer's entry point does. */
int fuzzimage_run(const struct fuzzimage_kind *kind, enum fuzzimage_what what, const uint8_t *data,
		  size_t size);

/* A whole target. */
#define FUZZIMAGE_TARGET(kind, what)					\
	int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)	\
	{								\
		return fuzzimage_run(&(kind), (what), data, size);	\
	}

#endif
