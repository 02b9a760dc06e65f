/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The daemon's half of the conversation with the kernel target "userspace"
 * (kernel-compat/uapi/linux/dm-userspace.h): answers what is asked of one device
 * and records what was written to it. Works on any descriptor that reads and
 * writes whole records; knows neither device-mapper nor loop devices.
 */
#ifndef COWD_DMSTREAM_H
#define COWD_DMSTREAM_H

#include "cow/dev.h"
#include "mapreq.h"

struct dmstream;

struct dmstream_cfg {
	struct cow_loop *loop;
	struct cow_dev *dev;
	struct mapreq *map;	/* for as long as the stream lives */
	/*
	 * The kernel told what it has: the table's devices. Once after each
	 * dmstream_hello(), and when the table was reloaded.
	 */
	void (*info)(void *opaque, const struct dmu_info *info, const struct dmu_device *devices);
	/*
	 * The top image's device has to have @size bytes (map->size[0] then): 0 or -errno. Only
	 * with map->blocks.
	 */
	int (*grow)(void *opaque, uint64_t size);
	/* The target is gone, or the conversation broke off (@error). Once. */
	void (*gone)(void *opaque, int error);
	void *opaque;
};

struct dmstream_stats {
	uint64_t asks, told;		/* questions, and answers that were taken */
	uint64_t written, granules;	/* records, granules in them */
	uint64_t changes, commits;
	uint64_t ragged;		/* granules that were copied up to be told */
	uint64_t made, sent;		/* with map->blocks: places made, and answers by the bytes themselves */
};

/* Takes over @fd, non-blocking. On failure it stays the caller's. 0 or -errno. */
int dmstream_new(const struct dmstream_cfg *cfg, int fd, struct dmstream **ret);
/* None of its requests may be in flight. NULL is allowed. */
void dmstream_free(struct dmstream *s);

/*
 * Says which target it is about. 0: cfg->info will be called. -ENODEV: no such
 * target (yet). Waits its turn behind another daemon.
 */
int dmstream_hello(struct dmstream *s, const char *key);

/*
 * Holds what is asked about @start (a sector) and behind, and makes the kernel forget
 * what it knows of it; @done, once nothing uses that any more. Until
 * dmstream_release(), after which such questions are answered again.
 */
int dmstream_hold(struct dmstream *s, uint64_t start, void (*done)(void *opaque), void *opaque);
void dmstream_release(struct dmstream *s);

void dmstream_get_stats(const struct dmstream *s, struct dmstream_stats *ret);

#endif
