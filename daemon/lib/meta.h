/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The metadata cache of one layer, as the engine sees it; plugins see
 * cow/meta.h. Also the one place of crash ordering: cow_meta_flush_*().
 */
#ifndef COW_LIB_META_H
#define COW_LIB_META_H

#include "cow/format.h"
#include "io.h"
#include "vmap.h"

/* Somebody to be told when what they wait for is there. */
struct cow_waiter {
	struct cow_list node;
	void (*wake)(struct cow_waiter *w, int result);
};

struct cow_pins {
	unsigned n;
	struct cow_mblk *blk[COW_META_PINS];
};

#define META_DEPS 4	/* write-order edges of one block; more cause a flush */

enum mblk_state { MBLK_EMPTY, MBLK_LOADING, MBLK_VALID };

/* Process-private half of a cached block; the other half is its vmap slot. */
struct cow_mblk {
	struct cow_meta *meta;
	uint32_t index;			/* of the slot */
	uint32_t hash_next;		/* index + 1; 0: end */
	uint32_t pins;
	uint8_t state;			/* enum mblk_state */
	uint8_t referenced;		/* second chance */
	uint8_t ndeps;
	uint32_t deps[META_DEPS];	/* slots that must be durable before this one */
	struct cow_list waiters;	/* struct cow_waiter, while loading */
};

struct cow_meta {
	struct cow_image *img;
	struct cow_file *files;
	struct vmap vmap;
	struct cow_mblk *blks;		/* one a slot */
	uint32_t *buckets;		/* index + 1 */
	uint32_t nbuckets;		/* power of two */
	uint32_t used;			/* slots ever used */
	uint32_t hand;			/* second chance */
	uint32_t ndirty;
	struct cow_pins *pins;		/* of the running map() */

	/* Why the running map() was told -EAGAIN: */
	struct cow_mblk *missing;	/* loading; or */
	bool stalled;			/* no slot or no edge free: flush, then try again */

	uint64_t hits, misses, writes, evictions, adopted;
};

/* Tests: the first lookup of every block by every map() answers -EAGAIN. */
extern COW_EXPORT bool cow_meta_test_miss;

/* @bytes: cap of the cache. @persist: keep it in a volatile map bound to files[0]. */
int meta_init(struct cow_meta *m, struct cow_image *img, struct cow_file *files, uint64_t bytes,
	      bool persist, struct cow_err *err);
void meta_fini(struct cow_meta *m, bool forget);
/* Bytes of cache that meta_adopt() needs of a reader. */
uint64_t meta_adopt_bytes(const struct cow_image *img, const struct cow_file *file);
/* Changes of session @img->session that a killed process left: written to the file, or only cached. */
int meta_adopt(struct cow_meta *m, bool write, struct cow_err *err);

/* Around one map(): which pins to use. meta_unpin() when its answer is no longer needed. */
static inline void meta_begin(struct cow_meta *m, struct cow_pins *pins)
{
	m->pins = pins;
	m->missing = NULL;
	m->stalled = false;
}
void meta_unpin(struct cow_pins *pins);
void meta_drop(struct cow_meta *m);	/* all clean blocks; none may be dirty or pinned */
uint32_t meta_cached(const struct cow_meta *m);

/*
 * The write-out half of a flush: what is dirty now is copied, sealed, and
 * written in rounds that respect the edges. Between rounds, and after the last,
 * the caller makes the file durable.
 */
struct meta_out {
	struct cow_iocb cb;
	struct meta_flush *flush;
	uint32_t index;
	uint64_t seq;
	uint32_t round;
};

struct meta_flush {
	struct cow_meta *meta;
	uint8_t *copies;
	struct meta_out *out;
	uint32_t n, round, rounds;
	uint32_t pending;
	int err;
	void (*round_done)(struct meta_flush *f, int err);
};

/* Copies what is dirty. 0 (f->n blocks in f->rounds rounds) or -ENOMEM. */
int meta_flush_prepare(struct cow_meta *m, struct meta_flush *f);
/* Writes round f->round and raises it. 1: done, f->err is the result. 0: round_done will be called. */
int meta_flush_round(struct meta_flush *f);
void meta_flush_end(struct meta_flush *f);	/* releases the copies */

#endif
