/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the fault tests stand on: a simulated machine with a base and a dscow
 * overlay, the model of what the overlay must read as, and one way to send an
 * operation to both. Failures of the rig itself end the test case.
 */
#ifndef COW_TEST_RIG_H
#define COW_TEST_RIG_H

#include "cow/chain.h"
#include "io-sim.h"
#include "model.h"

#define RIG_BASE "base.raw"
#define RIG_OVER "over.dscow"
#define RIG_HOT 4	/* places that the workload prefers */

struct rig_cfg {
	uint64_t seed;
	uint64_t base_size, size;	/* size 0: the base's */
	uint64_t cap;			/* how far it may grow; 0: not at all */
	uint32_t block, granule;	/* 0: 64 KiB, 4 KiB */
	uint64_t hot[RIG_HOT];		/* offsets; the base has random data there */
	uint64_t hot_len;		/* 0: the whole disk is one place */
	uint64_t cache_bytes;
	bool blkdev;			/* the overlay is on a block device */
	bool no_model;			/* for tests with a model of their own */
};

struct rig {
	struct rig_cfg cfg;
	struct cow_sim *sim;
	const char *base;		/* name of the base to open with */
	const char *data;		/* name of the overlay's data file; NULL: it has none */
	struct cow_chain *c;
	struct model *m;
	uint64_t rng;
	unsigned failures;		/* changes that failed: with any, use whole sectors only */
	uint8_t *buf;			/* RIG_MAX bytes of data to write */
};

#define RIG_MAX (256u << 10)	/* longest write */

enum rig_kind {
	RIG_WRITE, RIG_READ, RIG_ZERO, RIG_DISCARD, RIG_FLUSH, RIG_RESIZE,
	RIG_WRITTEN,	/* whole granules are written past the engine, then reported to it */
	RIG_KINDS
};

struct rig_op {
	enum rig_kind kind;
	bool fua;
	uint64_t off, len;	/* RESIZE: len is the new size */
};

/* Makes machine, base, overlay and model; starts the overlay's log; opens nothing. */
void rig_init(struct rig *r, const struct rig_cfg *cfg);
void rig_free(struct rig *r);

/* Opens @name of the rig's machine over the rig's base. 0 or -errno. */
int rig_try_open(struct rig *r, const char *name, uint32_t flags, struct cow_chain **ret,
		 struct cow_err *err);
/* The same, and a failure ends the case. */
struct cow_chain *rig_open(struct rig *r, const char *name, uint32_t flags);

uint64_t rig_rand(struct rig *r, uint64_t below);
/* A random operation. @unit: alignment of offsets and lengths (1: any). */
void rig_random(struct rig *r, struct rig_op *op, uint64_t unit);
/* Sends @op to r->c and to the model; a READ is compared. Returns the result of the engine. */
int rig_do(struct rig *r, const struct rig_op *op);
/* The same, and a failure ends the case. */
void rig_must(struct rig *r, const struct rig_op *op);

/* Begins the log of the overlay, and of its data file: positions count from here. */
void rig_log_start(struct rig *r);
/* The position that has been reached: how many entries were logged, of both files in order of time. */
size_t rig_now(const struct rig *r);
/*
 * The state in which a power cut at @pos could leave the overlay, as a file @as to be judged. The data
 * file in that state has the name that the image knows, until rig_uncrash().
 */
void rig_crash(struct rig *r, size_t pos, enum cow_sim_crash how, uint64_t seed, const char *as);
void rig_uncrash(struct rig *r);

/* One request, waited for within bounds. */
int rig_request(struct cow_chain *c, enum cow_op op, uint32_t flags, uint64_t off, uint64_t len,
		void *buf);
/* The same for one that is filled in but for its end. */
int rig_run(struct cow_chain *c, struct cow_req *req);

/*
 * Opens crash image @name read-only and writable, checks it, compares it with
 * what a crash at @pos may show. 0, or -errno and a sentence.
 */
int rig_judge(struct rig *r, const char *name, size_t pos, bool full, struct cow_err *why);

/* FAULT=full */
bool rig_full(void);

#endif
