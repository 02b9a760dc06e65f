/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The target "userspace" from inside: its objects, who owns them and which lock
 * guards what. What is said to the daemon is in uapi/linux/dm-userspace.h.
 *
 * One dmu_object per key, shared by every table that names the key (a reload makes
 * the new target before it destroys the old one). It owns the remembered sections,
 * the requests that wait for the daemon, and what the daemon was not told yet.
 *
 *	map() --> section remembered? --yes--> bottom device   (lockless, dmu-map.c)
 *	              |                 new granule: dmu-io.c
 *	              no
 *	              v
 *	          dmu_request --> read() by the daemon --> write(): answer   (dmu-ask.c,
 *	              ^                                         |             dmu-ctl.c)
 *	              +----------- bios resumed <---------------+
 *
 * Locks, outermost first:
 *	dmu_channel.read_lock	one reader at a time builds records
 *	dmu_channel.write_lock	one record at a time is taken from the daemon
 *	dmu_mutex		list of objects, targets and channels of an object
 *	dmu_object.targets_lock	its targets, for events
 *	dmu_object.lock		a spinlock, taken in any context: everything else
 *	xa_lock of .sections	inside dmu_object.lock, or alone with interrupts off
 *
 * RCU: a section is found and read without a lock. Its presence bits are set and
 * never cleared while it is remembered; it is freed after a grace period.
 *
 * The gate: a bio that goes where a section told it counts itself in on one of two
 * sides, and out when it ended. A revocation removes sections, turns the gate to the other side
 * and waits until the old side is even. map() loads the gate before the section:
 * a bio on the new side cannot have seen what was removed before the turn.
 */
#ifndef DMU_H
#define DMU_H

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/dm-kcopyd.h>
#include <linux/hashtable.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mempool.h>
#include <linux/mutex.h>
#include <linux/refcount.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "compat.h"
#include "uapi/linux/dm-userspace.h"

#define DM_MSG_PREFIX "userspace"

#define DMU_WRITTEN_DELAY_MS	5	/* new granules are collected so long before the daemon is woken */
#define DMU_ASKS_MAX		3	/* answers that did not help, before a bio fails */
#define DMU_STARVED_DELAY_MS	10	/* until an allocation that failed is tried again */
#define DMU_RESERVE_REQUESTS	64
#define DMU_RESERVE_WORKS	4
#define DMU_RESERVE_SPLITS	64
#define DMU_ID_BITS		8	/* hash tables of ids */
#define DMU_TIMEOUT_MAX		86400	/* seconds */

/* One of the table's devices, as the daemon is told. */
struct dmu_bottom {
	dev_t dev;
	u64 diskseq;		/* a loop device that has another file now has another number */
	sector_t sectors;
	u32 align;		/* sectors of a logical block */
	bool writable;
};

/* A plane, as map() wants it. */
struct dmu_layer {
	sector_t position;
	unsigned long *bits;	/* RCU; NULL: has all up to @limit */
	u32 limit;
	u16 dev;
};

/*
 * A remembered section: planes, or a table of blocks. What map() reads is together
 * in one cache line for up to two planes.
 */
struct dmu_place {
	struct dmu_work *work;		/* object.lock; a section with work is not dropped */
	struct list_head clock;		/* object.clock, or dmu_revocation.places */
	struct rcu_head rcu;
	u64 index;
	refcount_t refs;		/* being remembered or revoked; each DMU_CHANGE */
	u32 bytes;
	bool dead;			/* object.lock: not in .sections any more */

	u32 sectors __aligned(8);
	u8 granule_shift;
	u8 planes;			/* 0: a table of blocks */
	bool write;			/* plane 0 takes writes */
	bool referenced;		/* since the eviction hand passed */
	union {
		DECLARE_FLEX_ARRAY(struct dmu_layer, plane);
		DECLARE_FLEX_ARRAY(atomic64_t, entry);
	};
};

/* dmu_place.entry: unknown without READ and WRITE */
#define DMU_ENTRY_AT		GENMASK_ULL(47, 0)
#define DMU_ENTRY_DEV_SHIFT	48
#define DMU_ENTRY_DEV		GENMASK_ULL(53, 48)
#define DMU_ENTRY_READ		BIT_ULL(61)
#define DMU_ENTRY_WRITE		BIT_ULL(62)
#define DMU_ENTRY_ZERO		BIT_ULL(63)

/* A DMU_WRITTEN that waits for its DMU_ACK. */
struct dmu_unacked {
	struct hlist_node node;		/* object.unacked */
	struct dmu_work *work;
	u64 id;				/* 0: free */
};

/*
 * What goes on in a section: granules being completed, and completed ones that the daemon
 * has not acknowledged. Exists only while there is any. All under object.lock.
 */
struct dmu_work {
	struct dmu_place *place;
	struct list_head all;		/* object.works */
	struct list_head due;		/* object.due, .blocked or .gathered while dirty */
	struct bio_list waiting;	/* for busy granules */
	struct dmu_unacked unacked[2];	/* two: a commit does not wait for the first to be acknowledged */
	u32 busy_count;
	u32 longs;			/* of each bitmap */
	bool dirty;
	bool gathered;			/* its dirty granules go before the next DMU_COMMIT */
	bool pooled;			/* its bitmaps have room for any granule */
	unsigned long map[];		/* busy, dirty, sent */
};

static inline unsigned long *dmu_busy(struct dmu_work *w)
{
	return w->map;
}

static inline unsigned long *dmu_dirty(struct dmu_work *w)
{
	return w->map + w->longs;
}

static inline unsigned long *dmu_sent(struct dmu_work *w)
{
	return w->map + 2 * w->longs;
}

static inline bool dmu_acked(const struct dmu_work *w)
{
	return !w->unacked[0].id && !w->unacked[1].id;
}

/* Something that the daemon is asked: DMU_ASK or DMU_CHANGE. Under object.lock. */
struct dmu_request {
	struct list_head node;		/* object.queue, or object.asked when the daemon has it */
	struct hlist_node by_id;	/* object.requests */
	struct bio_list bios;		/* DMU_CHANGE: one, or none after a noflush suspend */
	u64 id;
	u64 start, at;			/* the daemon is told of whole blocks around what is needed */
	u32 sectors, need;
	u32 type;			/* DMU_ASK, DMU_CHANGE */
	u32 op;
	bool asked;
	u64 scope;			/* bios that begin in this range wait for the same answer */
	u32 scope_sectors;
	struct dmu_place *place;	/* DMU_CHANGE: whose granules are busy meanwhile */
	u32 first, count;
};

struct dmu_revocation {
	struct list_head node;		/* object.revocations, then object.revoked */
	struct list_head places;
	u64 id;				/* 0: nobody waits to hear of it */
	u64 first, last;		/* sections */
	enum { DMU_REVOKE_NEW, DMU_REVOKE_DRAINING, DMU_REVOKE_DRAINED } state;
};

/* How far one bio, or its front, can go at once. */
enum dmu_verdict {
	DMU_GO,			/* to where @dev and @at say */
	DMU_NEW,		/* the same, and makes granules present */
	DMU_FILL,		/* part of a granule: the rest has to be copied first */
	DMU_ZEROES,		/* reads as zeroes */
	DMU_MISS,		/* the daemon has to be asked */
	DMU_AGAIN,		/* the section went away just now: look again */
	DMU_KEPT,		/* the bio waits on a list and is not ours any more */
};

struct dmu_piece {
	enum dmu_verdict verdict;
	u32 sectors;
	u16 dev;
	u16 from_dev;
	u8 gate;
	u32 first, count;		/* granules it makes present */
	u32 copy, copy_end;		/* sectors of the section still to be copied */
	sector_t at;			/* device position of its first sector */
	sector_t granule_at;		/* of the first granule */
	sector_t from;			/* table of blocks: where the first granule is copied from */
	struct dmu_place *place;
};

/*
 * Per bio. One that just passes has only the first two bits of its state, in bio->bi_private;
 * the others have a pointer to their struct dmu_io there.
 */
#define DMU_IO_IN	(1u << 0)	/* counted in at the gate */
#define DMU_IO_SIDE	(1u << 1)	/* which side */
#define DMU_IO_NEW	(1u << 2)	/* makes granules present */
#define DMU_IO_FUA	(1u << 3)	/* to be durable when done */
#define DMU_IO_HELD	(1u << 4)	/* was held for a commit */
struct dmu_io {
	u8 state;
	u8 asks;
	struct dmu_target *t;
	struct bio *bio;
	struct dmu_piece piece;
};

/* The front of a bio that waited, cut off because it can go already. */
struct dmu_split {
	struct dmu_io io;
	struct bio bio;			/* last: the bioset allocates it */
};

struct dmu_cpu {
	unsigned long in[2], out[2];
};

struct dmu_policy {
	bool error_if_no_daemon;
	bool read_only;
	u32 timeout;			/* seconds without a daemon; 0: no limit */
	u64 cache_bytes;		/* 0: no limit of its own */
};

struct dmu_object {
	/* read by every map() */
	struct xarray sections;
	struct dmu_cpu __percpu *cpu;
	u8 gate;
	bool failed;			/* a commit failed: nothing is written any more */
	u8 block_shift;

	spinlock_t lock ____cacheline_aligned_in_smp;
	/* requests */
	struct list_head queue, asked;
	DECLARE_HASHTABLE(requests, DMU_ID_BITS);
	u64 last_id;
	u32 pending;			/* bios that wait for answers */
	u64 misses;
	struct bio_list starved;	/* wait for memory */
	struct bio_list retry;		/* to be resumed by resume_work */
	/* new granules */
	struct list_head works, due, blocked, gathered;
	DECLARE_HASHTABLE(unacked, DMU_ID_BITS);
	bool due_armed, due_now;
	/* commit */
	enum { DMU_COMMIT_IDLE, DMU_COMMIT_WANTED, DMU_COMMIT_GATHER, DMU_COMMIT_SENT } commit;
	struct bio_list commit_next, commit_now;
	u64 commit_id, commit_change;
	u64 changes, committed;		/* equal: nothing to commit */
	u64 epoch;			/* of the last commit that succeeded */
	/* cache */
	struct list_head clock;
	u64 bytes, places;
	/* revocations */
	struct list_head revocations, revoked;
	bool draining;
	/* daemon */
	struct dmu_channel *channel;
	struct list_head channels;	/* that wait for their turn; dmu_mutex */
	u32 features;
	bool expired;			/* no daemon for longer than the policy allows */
	bool gone;			/* no target has this key any more */
	bool dead;			/* and all is said: it cannot be found any more */
	struct dmu_policy policy;
	sector_t sectors;

	/* set once */
	char key[DMU_KEY_MAX];
	u32 bottoms;
	struct dmu_bottom *bottom;
	struct workqueue_struct *wq;
	struct work_struct resume_work, event_work;
	struct delayed_work due_work, starved_work, revoke_work, expire_work;
	struct dm_kcopyd_client *kcopyd;
	struct bio_set splits;
	mempool_t request_pool, work_pool;

	struct list_head node;		/* dmu_mutex */
	struct list_head targets;	/* dmu_mutex and targets_lock */
	struct mutex targets_lock;
	struct kref kref;
};

struct dmu_target {
	struct dmu_object *o;
	struct block_device *bdev[DMU_DEVICES_MAX];
	bool writable;
	bool requeue;			/* suspended without flushing: nothing may wait */
	struct dm_target *ti;
	struct list_head node;		/* object.targets */
	struct dm_dev *dev[DMU_DEVICES_MAX];
	struct dmu_bottom bottom[DMU_DEVICES_MAX];
	u32 devs;
	u32 flush_devs;
	u8 flush_dev[DMU_DEVICES_MAX];	/* the writable ones */
	struct dmu_policy policy;
	u32 given;			/* features of the table line, in bits */
	u32 writable_devs;
	u32 granule;			/* bytes; 0: not given */
	u32 block;			/* bytes */
	char key[DMU_KEY_MAX];
};

/* An opening of the control node. */
struct dmu_channel {
	struct mutex read_lock, write_lock;
	struct dmu_object *o;		/* NULL before DMU_HELLO; set once */
	struct list_head node;		/* object.channels while it waits */
	wait_queue_head_t wait;
	u64 hello_id;
	u32 features;
	/* object.lock from here on */
	bool attached, info_due, changed_due, leaving, left;
	u64 leave_id;
	void *in, *out;			/* DMU_RECORD_MAX bytes each */
};

extern struct mutex dmu_mutex;

/* dmu-object.c */
struct dmu_object *dmu_object_get(struct dmu_target *t, char **error);
void dmu_object_put_target(struct dmu_target *t);
struct dmu_object *dmu_object_find(const char *key);
void dmu_object_release(struct kref *kref);
void dmu_object_settle(struct dmu_object *o);
void dmu_object_measure(struct dmu_object *o);
void dmu_objects_free(void);
int dmu_shrinker_init(void);
void dmu_shrinker_exit(void);
u64 dmu_objects_evict(u64 bytes);
u64 dmu_hits(struct dmu_object *o);
bool dmu_side_even(struct dmu_object *o, unsigned int side);
void dmu_kick(struct dmu_object *o);

/* dmu-map.c */
int dmu_map(struct dm_target *ti, struct bio *bio);
int dmu_route(struct dmu_io *io, bool mapping);
void dmu_resume(struct bio *bio);
void dmu_resume_list(struct bio_list *bios);
void dmu_finish(struct bio *bio, blk_status_t status);
void dmu_apply_blocks(struct dmu_io *io, const struct dmu_blocks *b);
void dmu_apply_data(struct dmu_io *io, const struct dmu_data *d);
int dmu_layer_find(const struct dmu_place *p, unsigned int from, u32 at, u32 *sectors);
void dmu_count_in(struct dmu_object *o, struct dmu_piece *pc);
bool dmu_begin_fill(struct dmu_object *o, struct dmu_place *p, u32 at, struct bio *bio,
		    struct dmu_piece *pc);

/* dmu-cache.c: remembered sections */
struct dmu_place *dmu_place_new(struct dmu_object *o, u64 index, u32 sectors, u8 shift, u8 planes);
int dmu_place_insert(struct dmu_object *o, struct dmu_place *p);
void dmu_place_forget(struct dmu_object *o, struct dmu_place *p);
void dmu_place_put(struct dmu_place *p);
void dmu_place_trim(struct dmu_object *o, struct dmu_place *p);
u32 dmu_place_granules(const struct dmu_place *p);
void dmu_bits_set(unsigned long *bits, u32 first, u32 count);
u64 dmu_evict(struct dmu_object *o, u64 bytes, bool all);
void dmu_cache_bound(struct dmu_object *o);
u64 dmu_cache_total(void);
struct dmu_work *dmu_work_get(struct dmu_object *o, struct dmu_place *p);
void dmu_work_put(struct dmu_object *o, struct dmu_work *w);
void dmu_work_arm(struct dmu_object *o);
void dmu_work_dirty(struct dmu_object *o, struct dmu_work *w, u32 first, u32 count);
void dmu_work_wait(struct dmu_object *o, struct dmu_work *w, struct bio *bio);
void dmu_work_unbusy(struct dmu_object *o, struct dmu_work *w, u32 first, u32 count);
int dmu_revoke(struct dmu_object *o, u64 id, u64 first, u64 last);
void dmu_revoke_work(struct work_struct *work);
bool dmu_being_revoked(struct dmu_object *o, u64 index);

/* dmu-io.c */
int dmu_map_special(struct dmu_target *t, struct dmu_io *io, struct bio *bio);
int dmu_end_io(struct dm_target *ti, struct bio *bio, blk_status_t *error);
void dmu_piece_done(struct dmu_object *o, struct dmu_io *io, u8 state, bool ok);
void dmu_fill(struct dmu_io *io);
void dmu_change(struct dmu_io *io);
void dmu_change_done(struct dmu_object *o, struct dmu_request *rq, int error);
void dmu_commit_done(struct dmu_object *o, int error);
void dmu_commit_abort(struct dmu_object *o, struct bio_list *ret);

/* dmu-ask.c: requests to the daemon */
int dmu_ask(struct dmu_io *io, u64 pos, u32 sectors, u32 op);
void dmu_starve(struct dmu_object *o, struct bio *bio);
struct dmu_request *dmu_request_new(struct dmu_object *o, u32 type, u32 op, u64 start, u32 sectors);
struct dmu_request *dmu_request_find(struct dmu_object *o, u64 id);
void dmu_request_drop(struct dmu_object *o, struct dmu_request *rq);
void dmu_request_free(struct dmu_object *o, struct dmu_request *rq);
int dmu_take_section(struct dmu_object *o, const void *record, u32 size);
int dmu_take_blocks(struct dmu_object *o, const struct dmu_blocks *b);
int dmu_take_data(struct dmu_object *o, const void *record, u32 size);
int dmu_take_result(struct dmu_object *o, const struct dmu_result *r);
int dmu_take_ack(struct dmu_object *o, u64 id);
void dmu_requests_again(struct dmu_object *o);
void dmu_requests_fail(struct dmu_object *o);
void dmu_requeue_target(struct dmu_target *t);
blk_status_t dmu_status(int error);

/* dmu-ctl.c */
int dmu_ctl_init(void);
void dmu_ctl_exit(void);

static inline struct dmu_io *dmu_io(struct bio *bio)
{
	return dm_per_bio_data(bio, sizeof(struct dmu_io));
}

static inline bool dmu_uncommitted(struct dmu_object *o)
{
	return READ_ONCE(o->changes) != READ_ONCE(o->committed);
}

/* No daemon, and the policy is not to wait for one. */
static inline bool dmu_hopeless(struct dmu_object *o)
{
	return !o->channel && (o->policy.error_if_no_daemon || o->expired);
}

static inline u32 dmu_section_sectors(sector_t total, u64 index)
{
	return min_t(u64, DMU_SECTION_SECTORS, total - (index << DMU_SECTION_SHIFT));
}

#endif
