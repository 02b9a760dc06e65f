/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The qcow2 plugin's own state. qcow2-header.c is the only file that touches
 * header bytes, qcow2-refcount.c the only one that changes refcounts while the
 * image is in use, qcow2-map.c the only one that changes L1 and L2 entries then.
 *
 * While an image is in use refcounts only go up: clusters are reserved in
 * batches ahead of need, and what is no longer referred to is remembered and
 * let go at the end. So nothing is used twice, and after a crash the refcounts
 * are at worst too high (leaks). The one order that matters is refcount before
 * the entry that points to the cluster; a batch pays for it once.
 */
#ifndef QCOW2_PRIV_H
#define QCOW2_PRIV_H

#include "../luks.h"
#include "cow/format.h"
#include "qcow2.h"

/* Host clusters [start, start + count). */
struct qcow2_run {
	uint64_t start, count;
};

struct qcow2_runs {
	struct qcow2_run *v;
	size_t n, cap;
};

/* A set of host clusters, by hash. */
struct qcow2_set {
	uint64_t *slots;	/* cluster + 1; 0: free */
	size_t used, cap;	/* cap: power of two, or 0 */
};

/* What exists only while the image is open for writing. */
struct qcow2_writer {
	bool loaded;
	uint64_t *reftable;		/* offsets of refcount blocks, native order */
	uint64_t reftable_n;
	struct qcow2_set meta;		/* clusters that hold metadata: never data */
	unsigned tables_pending;	/* new tables whose commit is still to come */
	struct qcow2_runs holes;	/* clusters with refcount 0 below the tail */
	size_t hole_at;			/* the first of them with room */
	uint64_t tail;			/* no cluster from here on has a refcount */
	uint64_t high;			/* highest cluster that may be referred to, + 1 */
	struct qcow2_run reserve;	/* have refcount 1, nobody refers to them yet */
	struct qcow2_runs spare;	/* the same, given back by writes that failed */
	struct qcow2_runs unref;	/* one reference fewer each, at the end */
	bool new_refblocks;		/* some were made in this session, */
	uint64_t new_from;		/* the lowest here: its table entry may not be durable yet */
	bool lost;			/* no memory to remember some of those: leaks */
	uint64_t pack_at, pack_end;	/* host offsets: of the next encoded cluster, if it goes
					   behind the last one, and of the end of that's last cluster */
};

/*
 * A cluster that others (the kernel) may be filling for cluster @guest of the disk. It has refcount 1;
 * nobody refers to it before it is written.
 */
struct qcow2_place {
	uint64_t guest, host;
};

#define QCOW2_PLACES	1024u	/* at a time: those that others were told of and have not reported */

struct qcow2 {
	/* header */
	unsigned version, cluster_bits, refcount_order;
	uint32_t header_length;
	uint64_t size;
	uint64_t l1_off, reftable_off, snapshots_off;
	uint32_t l1_size, reftable_clusters, nb_snapshots;
	uint64_t incompat, compat, autoclear;
	uint8_t compression;		/* 0 zlib, 1 zstd */
	char data_file[1024];		/* name of the file that has the data; empty: the image has it */
	struct cow_backing backing;
	uint64_t backing_off;		/* of the name of the base; 0: none */
	uint64_t format_off;		/* of the extension with its format; 0: none */
	uint64_t format_room_at;	/* of one that means nothing, where that would fit in; 0: none */
	uint64_t ext_end;		/* behind the last extension */
	uint64_t session_off;		/* of the session's number; 0: the image has no place for it */
	uint64_t session;		/* the number found there */
	uint32_t crypt;			/* QCOW2_CRYPT_* */
	uint64_t luks_off, luks_bytes;	/* of the LUKS header; 0: none */
	uint64_t bitmapdir_off, bitmapdir_bytes;
	uint32_t nb_bitmaps;		/* valid ones */
	uint64_t bitmaps_at;		/* of their extension, or of the place kept for one; 0: none */
	uint64_t end_at;		/* of the mark behind the last extension; 0: there is none */

	/* derived */
	uint64_t cluster;		/* bytes */
	unsigned l2_bits;		/* log2 of entries in an L2 table */
	unsigned entry_bytes;		/* 8 or 16 */
	unsigned sub_bits;		/* log2 of a subcluster's bytes; cluster_bits without them */
	unsigned cmp_shift;		/* bits of a compressed descriptor's offset */
	bool extl2, corrupt_found;
	char snapshot[64];		/* opened; empty: the active disk */
	void *unzstd;			/* zstd's decoder, from the first use on */
	struct luks luks;
	struct cipher *cipher;		/* NULL: not encrypted, or opened without the key */

	struct qcow2_writer w;
	struct qcow2_place *place;	/* QCOW2_PLACES; NULL until the first */
	unsigned places;
	struct qcow2_track *track;	/* of the session; NULL: no bitmap wants to know of changes */
	struct qcow2_track *held;	/* all good bitmaps, while the size changes */
};

/* The cached blocks with the refcounts of clusters to be handed out. */
struct qcow2_refs {
	struct cow_mblk *counts;
	struct cow_mblk *table;		/* of the refcount table, where it matters; else NULL */
};

/* Refcounts that are being changed past the cache, see qcow2-refedit.c. */
struct qcow2_refedit {
	struct cow_image *img;
	struct qcow2_refslot *slots;
	struct qcow2_runs *freed;
};

/* One entry of the snapshot table, bounded and checked. */
struct qcow2_snap {
	uint64_t at, bytes;		/* its place in the table */
	uint64_t l1_off, disk_size, vmstate_size;
	uint32_t l1_size;
	uint32_t date_sec;
	char id[64], name[256];		/* cut off where longer */
};

enum qcow2_bitmap_state {
	QCOW2_BITMAP_GOOD,		/* stored, and right */
	QCOW2_BITMAP_STALE,		/* in use by who did not store it, or not of the size of the disk */
	QCOW2_BITMAP_UNKNOWN,		/* of a kind that this program does not know */
	QCOW2_BITMAP_LARGE,		/* more than is kept in memory */
};

/* One entry of the bitmap directory, bounded and checked. */
struct qcow2_bitmap {
	uint64_t at, bytes;		/* its place in the directory */
	uint64_t table_off;
	uint32_t table_n;		/* entries */
	uint32_t flags;
	uint8_t type, granularity_bits;
	uint64_t bits;			/* that a disk of this size takes; 0: unknown granularity */
	enum qcow2_bitmap_state state;
	char name[QCOW2_BITMAP_NAME_MAX + 1];	/* cut off where longer */
};

/* Bitmaps that are being changed, see qcow2-bitmap-edit.c. */
struct qcow2_bmedit {
	struct cow_image *img;
	uint8_t *dir;			/* the new directory */
	uint64_t bytes;
	uint32_t n;			/* entries */
	struct qcow2_runs fresh, old;	/* clusters: taken; to be let go */
	bool published;
};

static inline uint64_t qcow2_l1_span(const struct qcow2 *q)	/* virtual bytes of an L1 entry */
{
	return 1ULL << (q->l2_bits + q->cluster_bits);
}

static inline uint64_t qcow2_l1_needed(const struct qcow2 *q, uint64_t size)
{
	return cow_div_up(size, qcow2_l1_span(q));
}

/* Its clusters lie in a file of their own, each at its virtual offset, and have no refcounts. */
static inline bool qcow2_external(const struct qcow2 *q)
{
	return q->incompat & QCOW2_INCOMPAT_DATAFILE;
}

/* That file alone is to read as the disk. */
static inline bool qcow2_external_raw(const struct qcow2 *q)
{
	return qcow2_external(q) && (q->autoclear & QCOW2_AUTOCLEAR_RAW);
}

static inline bool qcow2_can_hold(const struct qcow2 *q, uint64_t size)
{
	return size <= QCOW2_HOST_MAX && qcow2_l1_needed(q, size) <= QCOW2_L1_BYTES_MAX / 8;
}

static inline uint64_t qcow2_ref_per_block(const struct qcow2 *q)	/* clusters of a refcount block */
{
	return q->cluster << 3 >> q->refcount_order;
}

static inline uint64_t qcow2_ref_max(const struct qcow2 *q)
{
	return q->refcount_order == QCOW2_REFCOUNT_ORDER_MAX ? UINT64_MAX :
		(1ULL << (1u << q->refcount_order)) - 1;
}

/* Bytes of memory for a bitmap: whole clusters. */
static inline uint64_t qcow2_bitmap_room(const struct qcow2 *q, uint64_t bits)
{
	return cow_round_up(cow_div_up(bits, 8), q->cluster);
}

/* May @off be the place of a cluster? */
static inline bool qcow2_host_ok(const struct qcow2 *q, uint64_t off)
{
	return off && (off & (q->cluster - 1)) == 0 && off < QCOW2_HOST_MAX;
}

/* The stored form of a compressed cluster. */
static inline uint64_t qcow2_cmp_off(const struct qcow2 *q, uint64_t entry)
{
	return entry & ((1ULL << q->cmp_shift) - 1);
}

static inline uint64_t qcow2_cmp_bytes(const struct qcow2 *q, uint64_t entry)
{
	uint64_t more = entry >> q->cmp_shift & ((1ULL << (62 - q->cmp_shift)) - 1);

	return (more + 1) * 512 - qcow2_cmp_off(q, entry) % 512;
}

/* qcow2-header.c */
int qcow2_header_read(struct cow_image *img, struct qcow2 *q, struct cow_err *err);
/* The fields that change while an image lives, in place: one sector, no sync. */
int qcow2_header_update(struct cow_image *img, const struct qcow2 *q);
int qcow2_header_update_sync(struct cow_image *img, const struct qcow2 *q);
/* Is there a place for the number of a session, or room for one in the header? */
bool qcow2_header_session_fits(const struct qcow2 *q);
/* Makes that place, of which there is none; durable. A power cut leaves it, or the header as it was. */
int qcow2_header_session_room(struct cow_image *img);
/* Writes the number of a session to its place; no sync. */
int qcow2_header_session(struct cow_image *img, const struct qcow2 *q, uint64_t session);
/* Another name or format of the base, durable; a power cut leaves the one or the other. */
int qcow2_header_rebase(struct cow_image *img, const struct cow_backing *backing, struct cow_err *err);
int qcow2_header_no_base(struct cow_image *img, struct cow_err *err);
/*
 * Makes it a header of @version, durable, by one write of a sector. What only the other version has
 * must not be in use.
 */
int qcow2_header_convert(struct cow_image *img, unsigned version, struct cow_err *err);
/* A whole first cluster, for create. -ENAMETOOLONG when it does not fit. */
int qcow2_header_build(const struct qcow2 *q, uint8_t *cluster);
void qcow2_derive(struct qcow2 *q);
/* Makes sure that the header can name a directory of bitmaps. -ENOSPC: it cannot. */
int qcow2_header_bitmaps_room(struct cow_image *img);
/* It names this one, durably; @n 0: none. Interrupted, it may be none. */
int qcow2_header_bitmaps(struct cow_image *img, uint64_t off, uint64_t bytes, uint32_t n);

/* qcow2.c */
/* Before a change that bitmaps need not know of, past the cache: marks, repairs, loads the writer. */
int qcow2_begin_offline(struct cow_image *img, struct cow_err *err);

/* qcow2-map.c */
int qcow2_map(struct cow_image *img, const struct cow_query *qu, struct cow_map *ret);
void qcow2_commit(struct cow_image *img, const struct cow_map *map, int io);

/* qcow2-place.c: clusters that were handed out before anything refers to them */
/* The host cluster that @guest has this way; 0: none. */
uint64_t qcow2_place_of(const struct qcow2 *q, uint64_t guest);
/* How many more can be remembered. */
unsigned qcow2_place_room(struct qcow2 *q);
/* @n clusters in a row from @guest on get those from @host on. There is room. */
void qcow2_place_add(struct qcow2 *q, uint64_t guest, uint64_t host, uint64_t n);
/* The entry of @guest refers to @host now. */
void qcow2_place_done(struct qcow2 *q, uint64_t guest, uint64_t host);
/* Could others have been told to write there? Pins what says so. 0, -EAGAIN, -EIO. */
int qcow2_place_check(struct cow_image *img, uint64_t host, struct qcow2_refs *refs);
/* Nobody writes there any more: they are let go with what else is unused. */
void qcow2_places_drop(struct qcow2 *q);

/* Pins the L2 entry of a cluster that is to be another one. 1: @ret is a table that is needed first. */
int qcow2_entry_pin(struct cow_image *img, const struct cow_query *qu, struct cow_map *ret,
		    struct cow_mblk **l2);
/* In commit(): the entry that an answer with the cookie of its block is about. */
void qcow2_entry_replace(struct cow_image *img, const struct cow_map *map, uint64_t entry);

/* qcow2-encode.c */
int qcow2_encode(const struct cow_image *img, const void *plain, void *out, size_t *ret_len);
int qcow2_put_encoded(struct cow_image *img, const struct cow_query *qu, uint64_t len,
		      struct cow_map *ret);
void qcow2_commit_encoded(struct cow_image *img, const struct cow_map *map, int io);

/* qcow2-decode.c */
int qcow2_decode(struct cow_image *img, const struct cow_map *map, const void *raw, void *out);
void qcow2_decode_end(struct qcow2 *q);		/* releases what it keeps from one to the next */

/* qcow2-crypt.c */
extern const char qcow2_crypt_names[][8];
/* Reads what there is about encryption, and takes the key that was given. */
int qcow2_crypt_open(struct cow_image *img, struct qcow2 *q, struct cow_err *err);
int qcow2_crypt(struct cow_image *img, const struct cow_crypt *c);
/* The same for a buffer in place; does nothing to an image without encryption. */
int qcow2_crypt_buffer(struct cow_image *img, bool encrypt, uint64_t virt, uint64_t phys, void *buf,
		       uint64_t len);
/* What the options of create() say: q->crypt, and @ret if that is LUKS. */
int qcow2_crypt_options(struct cow_image *img, const struct cow_args *args, struct qcow2 *q,
			struct luks_new *ret, struct cow_err *err);

/* qcow2-refcount.c */
uint64_t qcow2_ref_get(const void *block, uint64_t index, unsigned order);
void qcow2_ref_set(void *block, uint64_t index, unsigned order, uint64_t value);
bool qcow2_set_has(const struct qcow2_set *s, uint64_t cluster);
bool qcow2_set_add(struct qcow2_set *s, uint64_t cluster);	/* false: it was there */
int qcow2_set_room(struct qcow2_set *s, size_t more);		/* for @more additions that cannot fail */
int qcow2_runs_add(struct qcow2_runs *r, uint64_t start, uint64_t count);
/* Reads tables and refcounts, refuses what cannot be written to soundly. */
int qcow2_writer_load(struct cow_image *img, struct cow_err *err);
/* The same within a session: when it fails, there are no more writes. */
int qcow2_writer_reload(struct cow_image *img, struct cow_err *err);
void qcow2_writer_free(struct qcow2 *q);
/* Gives back what was reserved, lets go what is unused. Nothing may be dirty. Syncs. */
int qcow2_writer_settle(struct cow_image *img);
/*
 * For map(): finds clusters to hand out, and pins the blocks with their refcounts.
 * 0; -EAGAIN, -ENOSPC ...; 1: a refcount block is needed first, @ret is the answer for @virt.
 * Then qcow2_after_refs() for what will refer to them, and only then qcow2_take().
 */
int qcow2_reserve(struct cow_image *img, uint64_t virt, struct cow_map *ret, struct qcow2_refs *refs);
int qcow2_after_refs(struct cow_mblk *later, const struct qcow2_refs *refs);
/* Pins the blocks with the refcount of @cluster, which has one. */
int qcow2_refs_pin(struct cow_image *img, uint64_t cluster, struct qcow2_refs *refs);
/* Up to @want clusters in a row. Cannot fail. */
struct qcow2_run qcow2_take(struct qcow2 *q, const struct qcow2_refs *refs, uint64_t want);
void qcow2_give_back(struct qcow2 *q, uint64_t start, uint64_t count);
void qcow2_unref(struct qcow2 *q, uint64_t start, uint64_t count);
void qcow2_unref_entry(struct qcow2 *q, uint64_t entry);	/* what an L2 entry refers to */
void qcow2_refblock_commit(struct cow_image *img, const struct cow_map *map, int io);
/* Offline: @n clusters in a row, in a hole or at the end, with refcount 1; durable. */
int qcow2_alloc(struct cow_image *img, uint64_t n, uint64_t *ret_cluster);	/* ... by the next sync */
int qcow2_alloc_sync(struct cow_image *img, uint64_t n, uint64_t *ret_cluster);
/* Offline: a refcount table large enough for everything that an image of @size can hold. */
int qcow2_reftable_fit(struct cow_image *img, uint64_t size);

/* qcow2-refedit.c: offline; none of these syncs */
int qcow2_ref_add_sync(struct cow_image *img, uint64_t start, uint64_t count, int delta);	/* 1, -1 */
int qcow2_runs_ref_sync(struct cow_image *img, const struct qcow2_runs *r, int delta);
/* The same for clusters in any order. @freed (may be NULL) takes those whose refcount came to 0. */
int qcow2_refedit_begin(struct qcow2_refedit *e, struct cow_image *img, struct qcow2_runs *freed);
/* -EMLINK: the width of refcounts does not allow it; what was added before stays. */
int qcow2_refedit_add(struct qcow2_refedit *e, uint64_t start, uint64_t count, int delta);
int qcow2_refedit_get(struct qcow2_refedit *e, uint64_t cluster, uint64_t *ret);
int qcow2_refedit_end(struct qcow2_refedit *e);		/* writes what is held, in any case */

/* qcow2-tree.c: what an L1 table refers to; offline, nothing may be cached; only the last syncs */
/* The table in native order, to be freed. */
int qcow2_l1_read(struct cow_image *img, uint64_t off, uint64_t n, uint64_t **ret);
int qcow2_l1_write(struct cow_image *img, uint64_t off, const uint64_t *l1, uint64_t n, uint64_t room);
/*
 * Adds @delta to the refcounts of all L2 tables and of all that they refer to, for at most *done
 * references; *done becomes how many there were. Damaged entries: -EUCLEAN, or left out when
 * @delta is -1.
 */
int qcow2_tree_ref(struct qcow2_refedit *e, const uint64_t *l1, uint64_t n, int delta, uint64_t *done);
/* Adds what an L2 entry refers to; nothing of a damaged one. */
int qcow2_entry_runs(const struct qcow2 *q, uint64_t entry, struct qcow2_runs *to);
/* Takes the COPIED flag from all entries of the L2 tables. */
int qcow2_tree_share(struct cow_image *img, const uint64_t *l1, uint64_t n);
/* Sets it where only @l1 will refer to what @l1 and @other refer to when @other is let go; in @l1, too. */
int qcow2_tree_claim(struct qcow2_refedit *e, uint64_t *l1, uint64_t n, const uint64_t *other,
		     uint64_t other_n);
/* Lets go all that @l1 refers to, and the @more clusters. Syncs, then gives the space back. */
int qcow2_tree_drop(struct cow_image *img, const uint64_t *l1, uint64_t n, const struct qcow2_runs *more);

/* What kind of answer a cookie belongs to: the low bits of the pointer in it. */
enum { QCOW2_COOKIE_DATA, QCOW2_COOKIE_ZERO, QCOW2_COOKIE_L2, QCOW2_COOKIE_REFBLOCK,
       QCOW2_COOKIE_ENCODED, QCOW2_COOKIE_MASK = 7 };

/* qcow2-snapshot.c */
/* Calls @fn for each snapshot until it returns other than 0. */
int qcow2_snapshots_walk(struct cow_image *img, const struct qcow2 *q,
			 int (*fn)(void *opaque, const struct qcow2_snap *s), void *opaque,
			 uint64_t *ret_bytes, struct cow_err *err);
/* By its ID, else by its name. -ENOENT and a sentence. */
int qcow2_snapshot_find(struct cow_image *img, const struct qcow2 *q, const char *id,
			struct qcow2_snap *ret, struct cow_err *err);
int qcow2_snapshot_use(struct cow_image *img, struct qcow2 *q, const char *id, struct cow_err *err);

/* qcow2-snapshot-edit.c */
int qcow2_snapshot(struct cow_image *img, enum cow_snapshot_op op, const char *name, struct cow_err *err);

/* qcow2-bitmap.c */
/* Calls @fn for each bitmap until it returns other than 0. -EUCLEAN: the directory is damaged. */
int qcow2_bitmaps_walk(struct cow_image *img, const struct qcow2 *q,
		       int (*fn)(void *opaque, const struct qcow2_bitmap *b), void *opaque,
		       struct cow_err *err);
/* -ENOENT and a sentence. */
int qcow2_bitmap_find(struct cow_image *img, const struct qcow2 *q, const char *name,
		      struct qcow2_bitmap *ret, struct cow_err *err);
/* The same for one that is good, else -EINVAL. */
int qcow2_bitmap_find_good(struct cow_image *img, const struct qcow2 *q, const char *name,
			   struct qcow2_bitmap *ret, struct cow_err *err);
/* Is there memory for a good one more, of @bits bits? */
bool qcow2_bitmaps_fit(struct cow_image *img, uint64_t bits);
void qcow2_bits_set(uint8_t *bits, uint64_t first, uint64_t last);
/* The table of a good one in native order, to be freed. */
int qcow2_bitmap_table(struct cow_image *img, const struct qcow2_bitmap *b, uint64_t **ret);
/* Sets at @bits, which has qcow2_bitmap_room(), what is set in a good one. -EUCLEAN: it is damaged. */
int qcow2_bitmap_load(struct cow_image *img, const struct qcow2_bitmap *b, uint8_t *bits);
int qcow2_bitmaps(struct cow_image *img, int (*fn)(void *opaque, const struct cow_bitmap *b),
		  void *opaque, struct cow_err *err);
int qcow2_bitmap_ranges(struct cow_image *img, const char *name,
			int (*fn)(void *opaque, uint64_t virt, uint64_t len), void *opaque,
			struct cow_err *err);

/* qcow2-bitmap-edit.c */
/* The directory as it is, with @more bytes of room. Called or not, qcow2_bmedit_end() is next. */
int qcow2_bmedit_begin(struct qcow2_bmedit *ed, struct cow_image *img, uint64_t more);
/* Other bits for one that is good, or was when this session began. */
int qcow2_bmedit_replace(struct qcow2_bmedit *ed, const struct qcow2_bitmap *b, const uint8_t *bits,
			 uint64_t n_bits);
/* In the new directory it is not in use. */
void qcow2_bmedit_stored(struct qcow2_bmedit *ed, const struct qcow2_bitmap *b);
/* @rc 0: makes it so, durably; else, and on failure, takes everything back. The result of all. */
int qcow2_bmedit_end(struct qcow2_bmedit *ed, int rc);
/* In place, no sync. */
int qcow2_bitmap_flags(struct cow_image *img, const struct qcow2_bitmap *b, uint32_t flags);

int qcow2_bitmap(struct cow_image *img, const struct cow_bitmap_change *ch, struct cow_err *err);

/* qcow2-track.c */
/*
 * For open(): may the image be written to, as far as bitmaps go? Some may want to know of all
 * changes, or of none when they are damaged (img->sees_all).
 */
int qcow2_track_open(struct cow_image *img, struct cow_err *err);
/* 1: the bitmaps can be kept valid; 0: the directory is damaged, and that was said; -errno. */
int qcow2_track_can(struct cow_image *img);
/* Before the first change: bitmaps that record are marked as in use, durably. */
int qcow2_track_begin(struct cow_image *img);
/* What of @qu this answer is about will change. Cannot fail. */
void qcow2_track_answer(struct qcow2 *q, const struct cow_query *qu, const struct cow_map *map);
/* Everything is flushed and settled: stores what was recorded. */
int qcow2_track_end(struct cow_image *img);
/* After that, within a session: goes on, if it was @tracking; else there are no more changes. */
int qcow2_track_resume(struct cow_image *img, bool tracking);
void qcow2_track_free(struct qcow2 *q);
/*
 * The image becomes @size bytes by @change, and so do its bitmaps: a larger one when
 * qcow2_track_resized() says that it is recorded.
 */
int qcow2_track_resize(struct cow_image *img, uint64_t size,
		       int (*change)(struct cow_image *img, uint64_t size));
void qcow2_track_resized(struct cow_image *img);

/* qcow2-check.c */
int qcow2_check(struct cow_image *img, struct cow_report *rep, uint32_t flags, struct cow_err *err);

/* qcow2-base.c */
int qcow2_make_empty(struct cow_image *img, struct cow_err *err);
int qcow2_rebase(struct cow_image *img, const struct cow_backing *backing,
		 const struct cow_identity *identity, bool committing, struct cow_err *err);

/* qcow2-create.c */
extern const struct cow_opt qcow2_create_opts[];
int qcow2_create(struct cow_image *img, const struct cow_create *c, struct cow_err *err);
int qcow2_measure(struct cow_image *img, const struct cow_create *c, struct cow_measure *ret,
		  struct cow_err *err);
unsigned qcow2_compat_version(const char *text);	/* the value of an option; 0: it makes no sense */

/* qcow2-amend.c */
extern const struct cow_opt qcow2_amend_opts[];
int qcow2_amend(struct cow_image *img, const struct cow_args *args, struct cow_err *err);

/* qcow2-rewidth.c: refcounts of 2^@order bits; nothing may be cached or reserved */
int qcow2_rewidth(struct cow_image *img, unsigned order, struct cow_err *err);
/* Would it, as far as the counts are concerned? */
int qcow2_rewidth_check(struct cow_image *img, unsigned order, struct cow_err *err);

/* qcow2-resize.c */
int qcow2_resize(struct cow_image *img, uint64_t size, struct cow_err *err);
int qcow2_grown(struct cow_image *img, struct cow_err *err);

#endif
