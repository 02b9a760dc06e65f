/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The simulated disk: files in memory behind struct cow_io_ops, with a write
 * log, faults on demand, and crash images. One seed decides everything.
 *
 * For tests. Not in a release path, but part of libcow so that every build of
 * the engine runs on it.
 */
#ifndef COW_LIB_IO_SIM_H
#define COW_LIB_IO_SIM_H

#include "cow/util.h"
#include "io.h"

struct cow_sim;		/* a machine: named disks, an RNG, a fault plan. init()'s arg */

COW_EXPORT struct cow_sim *cow_sim_new(uint64_t seed);
COW_EXPORT void cow_sim_free(struct cow_sim *s);

/* A file of @size zero bytes; replaces an existing one. 0 or -ENOMEM. Sparse inside. */
COW_EXPORT int cow_sim_add(struct cow_sim *s, const char *name, uint64_t size, bool blkdev);
COW_EXPORT int cow_sim_read(struct cow_sim *s, const char *name, void *buf, size_t len,
			    uint64_t off);
COW_EXPORT int cow_sim_write(struct cow_sim *s, const char *name, const void *buf, size_t len,
			     uint64_t off);	/* durable at once, not logged */
/* The same by somebody else who has the file: logged, durable with its next sync. Never fails. */
COW_EXPORT void cow_sim_write_other(struct cow_sim *s, const char *name, const void *buf,
				    size_t len, uint64_t off);
COW_EXPORT uint64_t cow_sim_size(struct cow_sim *s, const char *name);
COW_EXPORT void cow_sim_remove(struct cow_sim *s, const char *name);	/* unknown: no-op */
/* It keeps its log; who has it open has it still. Replaces a file that is there already. */
COW_EXPORT void cow_sim_rename(struct cow_sim *s, const char *name, const char *to);
COW_EXPORT unsigned cow_sim_open_files(struct cow_sim *s);	/* 0 when nothing leaked */

/* Queue operations and complete them in random order in poll(), instead of at once. */
COW_EXPORT void cow_sim_set_async(struct cow_sim *s, bool on);

/* Fault plan: operation number @nth (counted from 1, over every primitive and open/truncate/...) */
struct cow_sim_fault {
	uint64_t nth;		/* 0: none */
	int error;		/* -EIO, -ENOSPC ...; 0: a short count (half) instead */
	bool persistent;	/* every operation from nth on */
	unsigned ops;		/* mask of (1 << enum cow_io_op); 0: all. Others do not count. */
};
COW_EXPORT void cow_sim_set_fault(struct cow_sim *s, const struct cow_sim_fault *f);
COW_EXPORT uint64_t cow_sim_op_count(struct cow_sim *s);	/* since the last set_fault */

/*
 * The log of @name's writes, punches, truncates and syncs since cow_sim_log_start().
 * A crash state is: what was durable at the start, all logged changes before
 * the last sync that precedes position @pos, and any subset of those between
 * that sync and @pos, in any order, torn at 512 bytes.
 */
COW_EXPORT void cow_sim_log_start(struct cow_sim *s, const char *name);
COW_EXPORT size_t cow_sim_log_len(struct cow_sim *s, const char *name);
COW_EXPORT bool cow_sim_log_is_sync(struct cow_sim *s, const char *name, size_t i);
/* Position in time among all logs of the machine: for power cuts that hit several files at once. */
COW_EXPORT uint64_t cow_sim_log_seq(struct cow_sim *s, const char *name, size_t i);
/* A tag the test sets; each log entry records the tag current when it was made. */
COW_EXPORT void cow_sim_set_tag(struct cow_sim *s, uint64_t tag);
COW_EXPORT uint64_t cow_sim_log_tag(struct cow_sim *s, const char *name, size_t i);

enum cow_sim_crash {
	COW_SIM_PREFIX,		/* exactly the first @pos entries, whole */
	COW_SIM_SYNCED,		/* only what a sync before @pos covers */
	COW_SIM_RANDOM,		/* random subset, order and tears of the unsynced tail */
};
/*
 * Builds the crash state of @name as a new file @as (not logged) in the machine @to (may be @s).
 * Its modification time is one that the file had; a sync makes it durable, too.
 */
COW_EXPORT int cow_sim_crash(struct cow_sim *s, const char *name, size_t pos,
			     enum cow_sim_crash how, uint64_t seed, struct cow_sim *to,
			     const char *as);

#endif
