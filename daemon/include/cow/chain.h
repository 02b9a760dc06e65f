/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A chain: an image, its base, the base's base ..., opened once, locked, and
 * immutable while open; and the requests that move data through it.
 *
 * One thread owns a chain (the one that opened it); every call is made there,
 * which is asserted.
 *
 * Volatile map. Mapping changes that are acknowledged but not yet flushed are
 * kept in a file on tmpfs, mapped shared: it outlives the process but not the
 * machine. Whoever opens the image next on this machine, under whatever name,
 * finds it by the image's device and inode and the session nonce in the image.
 */
#ifndef COW_CHAIN_H
#define COW_CHAIN_H

#include "cow/err.h"
#include "cow/format.h"

#define COW_CHAIN_DEPTH 64	/* layers; deeper chains are a mistake or an attack */

struct cow_chain;
struct cow_dev;
struct cow_io_ops;

struct cow_chain_cfg {
	const char *format;		/* of the image; required: formats are never guessed */
	const char *path;
	/* The format's open options, and "backing.KEY" those of its base, and so on; may be NULL. */
	const struct cow_args *args;
	uint32_t flags;			/* COW_OPEN_* */

	/*
	 * Where the base is. @backing: the path to use instead of what the image
	 * says (one per level, NULL-terminated array; may be NULL). Without it a
	 * recorded plain name is looked up below the image's own folder only,
	 * or below one of @backing_dirs (NULL-terminated; may be NULL).
	 */
	const char *const *backing;
	const char *const *backing_dirs;
	bool no_backing;		/* open the top layer alone, e.g. to check it; not to let it grow */

	/*
	 * Is the file (a block device: its number, and 0) used by a device that a killed
	 * process left with the kernel, and that is the caller's to take up? Then what the kernel
	 * holds of it is no conflict. May be NULL.
	 */
	bool (*keeps)(void *opaque, uint64_t dev, uint64_t ino);
	void *keeps_opaque;

	uint64_t cache_bytes;		/* cap of the metadata cache of a layer; 0: default (8 MiB) */
	bool persist;			/* keep the volatile map on tmpfs (daemons); else memory */
	const struct cow_io_ops *io;	/* NULL: the real one; tests pass the simulator */
	void *io_arg;			/* handed to io->init() */
	bool io_sync;			/* the real one without io_uring */
};

/*
 * Opens and locks everything or nothing. Errors: a sentence that names the
 * image or base. The chain is released with cow_chain_close().
 */
COW_EXPORT int cow_chain_open(const struct cow_chain_cfg *cfg, struct cow_chain **ret,
			      struct cow_err *err);
/* The images that @args are for are open for good: closes what their options key_fd name, at any depth. */
COW_EXPORT void cow_keys_close(const struct cow_args *args);
/*
 * No request may be in flight. Flushes a writable chain and marks its image
 * cleanly closed; the result of that is returned, the chain is gone either way.
 */
COW_EXPORT int cow_chain_close(struct cow_chain *c);

COW_EXPORT uint64_t cow_chain_size(const struct cow_chain *c);		/* virtual bytes */
COW_EXPORT bool cow_chain_readonly(const struct cow_chain *c);
COW_EXPORT unsigned cow_chain_depth(const struct cow_chain *c);		/* layers, >= 1 */
COW_EXPORT struct cow_image *cow_chain_image(struct cow_chain *c, unsigned layer);	/* 0: top */
/* Sum of what the layers' files occupy, in 512-byte units, at most the size: an upper bound. */
COW_EXPORT uint64_t cow_chain_sectors_used(const struct cow_chain *c);
/* Identity of the virtual disk of @layer and below, as an overlay over it records it. */
COW_EXPORT int cow_chain_identity(struct cow_chain *c, unsigned layer, struct cow_identity *ret);
/* The file of a layer, as the chain has it open; for those who hand it to the kernel. */
struct cow_chain_file {
	int fd;			/* -1: it is none that the kernel knows */
	bool blkdev, writable;
	uint64_t dev, ino;	/* of a block device its number and 0 */
	uint32_t unit;		/* bytes: of direct I/O; 0: it goes through the page cache */
	const char *path;
};
/* 0; -ENOENT: the layer has no file. */
COW_EXPORT int cow_chain_file(struct cow_chain *c, unsigned layer, struct cow_chain_file *ret);
/*
 * Holds the locks of a file that the chain has open through @fd as well, another opening of it:
 * for one that is handed to the kernel, and keeps others off when this process is gone. 0 or -errno.
 */
COW_EXPORT int cow_lock_too(int fd, bool write);
/*
 * From now on past the page cache, where the files can: for chains whose files somebody
 * else (the kernel) reads and writes past it, and for little memory. Nothing may be in
 * flight. 0; -errno and a sentence when a block device in the chain cannot.
 */
COW_EXPORT int cow_chain_go_direct(struct cow_chain *c, struct cow_err *err);
/* Makes the top image's file @size bytes long, sparse, unless it is longer. No block device. 0 or -errno. */
COW_EXPORT int cow_chain_extend(struct cow_chain *c, uint64_t size);
/* Facts about every layer ("info"). */
COW_EXPORT void cow_chain_info(struct cow_chain *c, struct cow_kv *kv);

/* The failure ladder; it never goes up while the chain is open. */
enum cow_chain_mode { COW_MODE_RW, COW_MODE_RO, COW_MODE_FAIL };
COW_EXPORT enum cow_chain_mode cow_chain_mode(const struct cow_chain *c);
COW_EXPORT const char *cow_chain_mode_name(enum cow_chain_mode m);

/* ---- requests ---- */

enum cow_op {
	COW_OP_READ, COW_OP_WRITE, COW_OP_ZERO, COW_OP_DISCARD, COW_OP_FLUSH,
	/*
	 * Whole granules (the image's end counts as the end of one) were written by
	 * somebody else (the kernel) to where the top image has them (cow_image.linear), or whole
	 * units of cow_image.place to @phys; -EOPNOTSUPP without either: record that. Harmless when
	 * it was recorded before. No buffer. Counts as a change: the next flush makes it durable, its
	 * data first.
	 */
	COW_OP_WRITTEN,
	/*
	 * Gives the range a place of its own in the top image, with what it reads as: nothing
	 * changes but that somebody else may write there then (cow_chain_in_place()). No buffer.
	 */
	COW_OP_PRESENT,
	/*
	 * Gives the range (whole units of cow_image.place) a place where somebody else may write it,
	 * with the rest of each unit, and then say COW_OP_WRITTEN; cow_chain_in_place() tells
	 * where. Shows nothing. -EOPNOTSUPP: COW_OP_PRESENT is the only way.
	 */
	COW_OP_PLACE,
	COW_OPS
};

#define COW_REQ_FUA	(1u << 0)	/* all but READ and FLUSH: durable when done */
/*
 * ZERO, DISCARD: what becomes zeroes has its place in the top image afterwards, even
 * where it read as zeroes without one: for those who go to the file themselves.
 */
#define COW_REQ_PRESENT	(1u << 1)
/* WRITE: one whole block of the top image, whose stored form, made by its format's encode(), is at @buf. */
#define COW_REQ_ENCODED	(1u << 2)

/*
 * A request. The caller owns it and @buf until @done was called; @done may be
 * called before cow_req_submit() returns. @done runs on the chain's thread,
 * with 0 or -errno, once.
 *
 * Order: requests in flight together are in no order, but overlapping writes
 * never mix within a granule. A FLUSH covers what was completed before it was
 * submitted.
 */
struct cow_req {
	/* caller */
	enum cow_op op;
	uint32_t flags;		/* COW_REQ_* */
	uint64_t virt, len;	/* in bounds, len > 0; unused for FLUSH */
	void *buf;		/* READ, WRITE: len bytes */
	uint64_t stored;	/* with COW_REQ_ENCODED: bytes at @buf instead of @len */
	uint64_t phys;		/* WRITTEN, of an image that is not linear: where in its file */
	unsigned layer;		/* READ: first layer to look at; 0: the whole chain */
	void (*done)(struct cow_req *req, int result);
	void *opaque;

	/* cow_dev's */
	struct cow_dev *dev;
	struct cow_list dev_node;
	void (*dev_done)(struct cow_req *req, int result);
	uint64_t dev_start_ns;

	/* libcow's */
	void *priv[96];
};

COW_EXPORT void cow_req_submit(struct cow_chain *c, struct cow_req *req);

/*
 * Runs completions that are ready; with @wait, blocks until at least one ran
 * or none is outstanding. Returns the number of completions run. Call it when
 * cow_chain_fd() becomes readable.
 */
COW_EXPORT int cow_chain_poll(struct cow_chain *c, bool wait);
/* An fd for epoll, readable when cow_chain_poll() has work; -1 while nothing is asynchronous. */
COW_EXPORT int cow_chain_fd(struct cow_chain *c);
COW_EXPORT unsigned cow_chain_inflight(const struct cow_chain *c);	/* requests not yet done */

/* Blocking forms, for tools. Return 0 or -errno. */
COW_EXPORT int cow_chain_pread(struct cow_chain *c, void *buf, size_t len, uint64_t virt);
COW_EXPORT int cow_chain_pread_layer(struct cow_chain *c, unsigned layer, void *buf, size_t len,
				     uint64_t virt);
COW_EXPORT int cow_chain_pwrite(struct cow_chain *c, const void *buf, size_t len, uint64_t virt);
/* The block at @virt, from its stored form of @len bytes: see COW_REQ_ENCODED. */
COW_EXPORT int cow_chain_pwrite_encoded(struct cow_chain *c, const void *buf, size_t len,
					uint64_t virt);
COW_EXPORT int cow_chain_zero(struct cow_chain *c, uint64_t virt, uint64_t len);
COW_EXPORT int cow_chain_discard(struct cow_chain *c, uint64_t virt, uint64_t len);
COW_EXPORT int cow_chain_flush(struct cow_chain *c);

/*
 * Describes [virt, virt + some): the answer starts at @virt, is not longer
 * than @len, and is resolved down the chain from layer @first: COW_DATA,
 * COW_HOLE or COW_ENCODED (compressed or encrypted: the file does not have the
 * plain bytes), and in *ret_layer the layer that holds it (the lowest one looked
 * at, for a hole). Punched holes of files are reported as
 * COW_HOLE where the file system tells. Blocking.
 */
COW_EXPORT int cow_chain_extent(struct cow_chain *c, unsigned first, uint64_t virt, uint64_t len,
				struct cow_extent *ret, unsigned *ret_layer);

/*
 * The same as the images' own metadata tells it, with no look at holes of files: those may be
 * about to be written to by somebody else, and to ask for them takes longer than to copy.
 */
COW_EXPORT int cow_chain_stored(struct cow_chain *c, unsigned first, uint64_t virt, uint64_t len,
				struct cow_extent *ret, unsigned *ret_layer);

/*
 * What @layer alone says about [virt, virt + some), in bounds of it: COW_DATA, COW_HOLE,
 * COW_BELOW (the next layer shows through; never behind the layer's below_limit) or
 * COW_ENCODED. The answer is as long as the metadata at hand tells and does not look at
 * holes of files. Blocking.
 */
COW_EXPORT int cow_chain_layer_extent(struct cow_chain *c, unsigned layer, uint64_t virt,
				      uint64_t len, struct cow_extent *ret);

/*
 * Where [virt, virt + some) of the top image can be written in place, by others as well
 * (COW_CAP_REMAP, cow_image.linear): COW_DATA. With COW_EXT_NEW it has to be completed there first and then
 * recorded, see COW_OP_PLACE. COW_BELOW: it has to be made present first, all of what the answer covers;
 * with COW_EXT_TABLE, given a place.
 * Changes nothing that is seen, but marks the image as in use. Blocking.
 * -EOPNOTSUPP: it is encrypted.
 */
COW_EXPORT int cow_chain_in_place(struct cow_chain *c, uint64_t virt, uint64_t len,
				  struct cow_extent *ret);
/* Is there something that the next flush makes durable, or one under way? */
COW_EXPORT bool cow_chain_unflushed(const struct cow_chain *c);

/*
 * The merged walk over a chain: as cow_chain_extent() for [virt, end), with
 * neighbours joined while kind, layer and file stay the same and, for COW_DATA,
 * the file offset goes on. A walk starts at 0 and goes on at ret->virt +
 * ret->len until that is @end, at most the size of layer @first. Blocking.
 */
COW_EXPORT int cow_chain_next_extent(struct cow_chain *c, unsigned first, uint64_t virt,
				     uint64_t end, struct cow_extent *ret, unsigned *ret_layer);
/* Does @b, which starts where @a ends, continue it? For walks in pieces. */
COW_EXPORT bool cow_extent_joins(const struct cow_extent *a, unsigned a_layer,
				 const struct cow_extent *b, unsigned b_layer);
/* An answer of that walk as members of @kv: start, length, depth, kind, and offset, file of data. */
COW_EXPORT void cow_chain_extent_kv(struct cow_chain *c, const struct cow_extent *ext,
				    unsigned layer, struct cow_kv *kv);
/* "data", "zero" (holes) or "encoded". */
COW_EXPORT const char *cow_extent_kind_name(const struct cow_extent *ext);

/* ---- offline work, or on a running device with nothing in flight ---- */

COW_EXPORT int cow_chain_resize(struct cow_chain *c, uint64_t size, bool shrink, struct cow_err *err);
COW_EXPORT int cow_chain_check(struct cow_chain *c, struct cow_report *rep, uint32_t flags,
			       struct cow_err *err);
/*
 * Writes the top layer's data into the layer below it, which is reopened for
 * writing (and grown if smaller), then empties the top. Crash-safe at every
 * point: the pair reads the same before, during and after. @progress as in
 * cow_report; may be NULL.
 */
COW_EXPORT int cow_chain_commit(struct cow_chain *c,
				bool (*progress)(void *opaque, uint64_t done, uint64_t total),
				void *opaque, struct cow_err *err);

/*
 * Records in the top layer what its base is, copying nothing. @base NULL: the
 * layer below it, as this chain was opened (with COW_OPEN_FORCE when the record
 * does not fit it). Else another chain, opened by the caller, and @path where it
 * is; it is written down as cow_image_create() would, and @c can be open without
 * its base. A base whose contents differ from the record is refused (-ESTALE)
 * unless @force. @base NULL and @path "": from now on it has none; what it showed
 * of it reads as zeroes.
 */
COW_EXPORT int cow_chain_rebase(struct cow_chain *c, struct cow_chain *base, const char *path,
				bool force, struct cow_err *err);

/*
 * Snapshots inside the top image, see cow_format.snapshot(). Its base is not needed. What
 * cow_chain_size() says can be another afterwards. -EOPNOTSUPP: the format has none.
 */
COW_EXPORT int cow_chain_snapshot(struct cow_chain *c, enum cow_snapshot_op op, const char *name,
				  struct cow_err *err);
/* Calls @fn for each until it returns other than 0; returns that. */
COW_EXPORT int cow_chain_snapshots(struct cow_chain *c,
				   int (*fn)(void *opaque, const struct cow_snapshot *s), void *opaque,
				   struct cow_err *err);

/*
 * Bitmaps inside the top image, see cow_format.bitmaps(). Its base is not needed. -EOPNOTSUPP: the
 * format has none.
 */
COW_EXPORT int cow_chain_bitmaps(struct cow_chain *c, int (*fn)(void *opaque, const struct cow_bitmap *b),
				 void *opaque, struct cow_err *err);
COW_EXPORT int cow_chain_bitmap_ranges(struct cow_chain *c, const char *name,
				       int (*fn)(void *opaque, uint64_t virt, uint64_t len), void *opaque,
				       struct cow_err *err);
COW_EXPORT int cow_chain_bitmap(struct cow_chain *c, const struct cow_bitmap_change *ch,
				struct cow_err *err);
/* Sets in the bitmap @name what is set in @from_name of @from, which may be the same chain. */
COW_EXPORT int cow_chain_bitmap_merge(struct cow_chain *c, const char *name, struct cow_chain *from,
				      const char *from_name, struct cow_err *err);

/*
 * Other options for the top image, see cow_format.amend(). Its base is not needed. -EINVAL: one is
 * unknown, or not possible; -EOPNOTSUPP: the format has none.
 */
COW_EXPORT int cow_chain_amend(struct cow_chain *c, const struct cow_args *args, struct cow_err *err);

struct cow_create_cfg {
	const char *format, *path;
	uint64_t size;			/* 0: the base's */
	const struct cow_args *args;	/* the format's, and "backing.KEY" those with which the base is opened */
	const char *backing, *backing_format;	/* NULL: none. The format is required with a base */
	const char *const *base_backing, *const *backing_dirs;	/* where the base's own base is, as in
								   cow_chain_cfg; may be NULL */
	bool force;			/* accept a base of the base that changed, as COW_OPEN_FORCE */
	bool exist_ok;			/* block devices and existing files are overwritten */
	const struct cow_io_ops *io;
	void *io_arg;
};

/*
 * Creates an image. The file appears under its name only when it is complete
 * and durable. -EEXIST unless exist_ok. *ret_size (may be NULL) is its virtual size.
 */
COW_EXPORT int cow_image_create(const struct cow_create_cfg *cfg, uint64_t *ret_size,
				struct cow_err *err);
/*
 * The same for an image that is filled before it appears: *ret is open for writing, with its
 * base. cow_image_publish() closes it and gives it its name, durable; cow_chain_close() leaves
 * nothing of it, but on a block device. What an existing file is replaced by stays locked
 * until then.
 */
COW_EXPORT int cow_image_draft(const struct cow_create_cfg *cfg, struct cow_chain **ret,
			       struct cow_err *err);
/* How much room such an image takes. -EOPNOTSUPP: its format does not say. Nothing is made. */
COW_EXPORT int cow_image_measure(const struct cow_create_cfg *cfg, struct cow_measure *ret,
				 struct cow_err *err);
/* The chain is gone either way. */
COW_EXPORT int cow_image_publish(struct cow_chain *draft, struct cow_err *err);

/* ---- counters ---- */

struct cow_chain_stats {
	uint64_t meta_hits, meta_misses, meta_writes, meta_evictions;
	uint64_t meta_cached_bytes, meta_dirty_bytes;
	uint64_t copied_bytes;		/* old contents carried over by first writes */
	uint64_t allocated_bytes;	/* granules that became present since open */
	uint64_t data_syncs, meta_syncs;
	uint64_t io_inline, io_async;	/* file operations answered at once / by the kernel later */
	uint64_t adopted_blocks;	/* metadata blocks taken over from a killed process at open */
};
COW_EXPORT void cow_chain_get_stats(const struct cow_chain *c, struct cow_chain_stats *ret);

#endif
