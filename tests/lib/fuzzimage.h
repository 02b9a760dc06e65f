/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Hostile images of a format, for its fuzz target: one made by the library and
 * then patched, or raw bytes; opened in every way, read, mapped, checked, written
 * to and repaired. None may crash, hang, take memory without measure, or be
 * changed by reading. Not for dscow, whose hostile images fuzz.h makes.
 */
#ifndef COW_TEST_FUZZIMAGE_H
#define COW_TEST_FUZZIMAGE_H

#include "fuzz.h"

#define FUZZIMAGE "img.cow"

struct fuzzimage_kind {
	const char *format;
	const char *const *options;	/* of create, one of them for an image */
	size_t n;
	uint64_t min_size;		/* virtual bytes */
	uint32_t magic, version;	/* raw bytes begin with these; version 0: with the magic only */
	/* One number where it hurts: in the header, or the first entries of a table. */
	void (*patch)(struct cow_sim *sim, struct fuzz_in *in);
	/* Whether a check ends soon, whatever the virtual size; NULL: it does. */
	bool (*small_enough)(struct cow_sim *sim);
	/* What works on whole trees of tables, after the rest; NULL: nothing does. */
	void (*whole)(struct cow_chain *c, struct fuzz_in *in);
};

/* All of it, for one input. Returns what libFuzzer's entry point does. */
int fuzzimage_run(const struct fuzzimage_kind *kind, const uint8_t *data, size_t size);
/* Requests of all sorts, as the input says. */
void fuzzimage_ops(struct cow_chain *c, struct fuzz_in *in, bool write);

#endif
