/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the fuzz targets share: bytes become numbers, and numbers become a
 * simulated machine with a base and a dscow image that is hostile behind its
 * checksums, not in front of them.
 */
#ifndef COW_TEST_FUZZ_H
#define COW_TEST_FUZZ_H

#include "cow/chain.h"
#include "io-sim.h"

#define FUZZ_IMAGE "img.dscow"
#define FUZZ_BASE "base.raw"
#define FUZZ_BASE_SIZE 100000u

/* The rest of an input; at its end everything is 0. */
struct fuzz_in {
	const uint8_t *p;
	size_t n;
};

uint64_t fuzz_num(struct fuzz_in *in, unsigned bytes);
size_t fuzz_bytes(struct fuzz_in *in, void *buf, size_t len);	/* how many there were */

/*
 * Builds the machine from the front of @in: a mode byte, then either the bytes
 * of an image or a recipe for one and patches to it. Bits of the mode:
 */
#define FUZZ_RECIPE	(1u << 0)	/* created by the library, then patched; else raw bytes */
#define FUZZ_HEADER	(1u << 1)	/* put the right magic and hash into the header */
#define FUZZ_MAP	(1u << 2)	/* put the right hashes into map sectors with contents */
#define FUZZ_SIZE	(1u << 3)	/* make the file as long as the header wants it */
#define FUZZ_NO_BASE	(1u << 4)	/* recipe: without a base */
#define FUZZ_MIRROR	(1u << 5)	/* copy the header over its backup */
#define FUZZ_BLKDEV	(1u << 6)	/* the image is on a block device */
struct cow_sim *fuzz_machine(struct fuzz_in *in);

/* Opens an image, with @options if not NULL. NULL: refused, which must have come with a sentence. */
struct cow_chain *fuzz_open_as(struct cow_sim *sim, const char *format, const char *path,
			       const char *options, uint32_t flags, bool no_backing);
/* The same for the image of fuzz_machine(). */
struct cow_chain *fuzz_open(struct cow_sim *sim, uint32_t flags, bool no_backing);

/* Ends the run as a finding. */
#define FUZZ_CHECK(cond) ((cond) ? (void)0 : fuzz_failed(#cond, __FILE__, __LINE__))
_Noreturn void fuzz_failed(const char *cond, const char *file, int line);

/* libFuzzer's entry point. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
