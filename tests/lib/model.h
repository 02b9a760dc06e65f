/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The oracle of the fault tests: what a virtual disk must read as, now and
 * after a power cut at any position of the simulator's log.
 *
 * Grain: the 512-byte sector. The model keeps, for each sector, the hash of
 * every value it ever had and the operation that gave it. A crash may show the
 * last value that was durable, or any value written later by an operation that
 * had begun; nothing else. Operations must not overlap in time.
 */
#ifndef COW_TEST_MODEL_H
#define COW_TEST_MODEL_H

#include "cow/chain.h"

#define MODEL_SECTOR 512u

struct model;

/* A disk of @size bytes that may grow to @cap. Never fails. */
struct model *model_new(uint64_t size, uint64_t cap, uint32_t granule);
void model_free(struct model *m);
/* The base ends at @size: what lies behind is nobody's. */
void model_below(struct model *m, uint64_t size);

/* The bytes expected now: [0, model_size()). Before the first operation it may be written to. */
uint8_t *model_bytes(struct model *m);
uint64_t model_size(const struct model *m);
uint64_t model_least(const struct model *m);	/* the smallest size that it had, or was to get */

/* What was done so far came before the log: no cut undoes it. */
void model_settle(struct model *m);

/* Flags of an operation */
#define MODEL_FLUSH	(1u << 0)	/* makes everything acknowledged before it durable */
#define MODEL_FUA	(1u << 1)	/* is durable itself when it ends */

/*
 * One operation: begin, at most one of the changes, end. @pos is the length of
 * the log at that moment. @ok: it was acknowledged; else each of its sectors
 * may be old or new from now on.
 */
void model_begin(struct model *m, size_t pos, uint32_t flags);
void model_write(struct model *m, uint64_t off, uint64_t len, const void *data);
void model_zero(struct model *m, uint64_t off, uint64_t len);
void model_discard(struct model *m, uint64_t off, uint64_t len);	/* whole granules only */
void model_resize(struct model *m, uint64_t size);
void model_end(struct model *m, size_t pos, bool ok);
/* A resize failed, and this is the size all the same. */
void model_size_is(struct model *m, uint64_t size);
/* May [@off, @off + @len), whole sectors, read as @data now? Failed operations leave a choice. */
bool model_may_read(const struct model *m, uint64_t off, uint64_t len, const void *data);

/*
 * Everything acknowledged so far is as good as durable (the process ended, the
 * machine did not).
 */
#define MODEL_NOW SIZE_MAX

/*
 * Compares @c with what a crash at @pos may show (MODEL_NOW: with the newest
 * acknowledged values). Looks at each sector ever changed; of the others, that
 * the top layer does not claim them, or with @full that they read as they were.
 * Returns 0, or -EIO and a sentence in @why.
 */
int model_verify(struct model *m, struct cow_chain *c, size_t pos, bool full, struct cow_err *why);

#endif
