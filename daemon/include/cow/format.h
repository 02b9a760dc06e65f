/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The plugin ABI: what an image format must answer. A plugin is a pure
 * translator: it never does data I/O, opens no path, blocks nowhere, starts no
 * thread. It is one shared object, cow-NAME.so, that exports one symbol,
 * cow_format_register (see COW_FORMAT_REGISTER). cow-format(7) is the manual.
 */
#ifndef COW_FORMAT_H
#define COW_FORMAT_H

#include "cow/err.h"
#include "cow/kv.h"
#include "cow/map.h"
#include "cow/meta.h"
#include "cow/opt.h"

#define COW_FORMAT_ABI 1u	/* raised when an existing member changes its meaning */

/* Capabilities */
#define COW_CAP_WRITE	(1u << 0)
#define COW_CAP_DISCARD	(1u << 1)	/* map() answers ZERO and DISCARD; else zeroes are written */
#define COW_CAP_RESIZE	(1u << 2)
#define COW_CAP_BACKING	(1u << 3)	/* can have a base */
#define COW_CAP_CREATE	(1u << 4)
#define COW_CAP_CHECK	(1u << 5)
#define COW_CAP_COMMIT	(1u << 6)	/* has make_empty() and rebase() */
#define COW_CAP_NOFILE	(1u << 7)	/* opens no file: the "image" is only a name */
/*
 * As long as the image is open, a place of the file that map() answered with COW_DATA keeps the
 * bytes of that range, or is used for no other: others (the kernel) may remember it.
 */
#define COW_CAP_REMAP	(1u << 8)

/* How an image is opened */
#define COW_OPEN_WRITE	(1u << 0)
#define COW_OPEN_FORCE	(1u << 1)	/* accept a base that changed; say so in a warning */
#define COW_OPEN_CHECK	(1u << 2)	/* for check and repair: accept what can be repaired */
#define COW_OPEN_NODATA	(1u << 3)	/* nobody asks for data: an encrypted image needs no key */

#define COW_CRYPT_UNIT	512u	/* bytes that are enciphered by themselves */

/* For the opts and create_opts of a format with crypt(): libcow acts on them, see cow_image.key. */
#define COW_OPTS_KEY							\
	{ "key_file", COW_OPT_STR, NULL, "the file with the key of the encrypted image" },	\
	{ "key_fd", COW_OPT_U64, NULL, "the same, as the number of an open file descriptor" }

struct cow_file;
struct cow_meta;

/* What stands in the image about its base: hints, never opened by a format. */
struct cow_backing {
	char path[1024];	/* empty: none */
	char format[16];	/* name of the base's format; empty: not recorded */
};

/* What a base was when it was recorded; libcow fills it in from the opened base. */
struct cow_identity {
	uint64_t size;		/* virtual bytes */
	int64_t mtime_ns;	/* of the base's first file; 0 for a block device */
	uint64_t sample;	/* XXH3 over samples of its contents, see chain.c */
};

struct cow_image {
	const struct cow_format *fmt;
	void *priv;		/* fmt->priv_size zeroed bytes, the plugin's own */
	const char *path;	/* for messages only */
	uint32_t open_flags;	/* COW_OPEN_* */

	/* Set by open(), changed by resize(): */
	uint64_t size;		/* virtual bytes */
	uint32_t granule;	/* power of two: unit in which NEW answers are aligned; 1 for none */
	uint32_t block;		/* power of two: the format's allocation unit, for reports; 0 for none */
	uint64_t below_limit;	/* virtual bytes up to which the layer below shows; set to size if unsure */
	uint64_t session;	/* nonce of an unclean session found in the image, 0: cleanly closed */
	uint64_t gen;		/* raised whenever an answer given earlier stops being true */
	struct cow_backing backing;
	struct cow_identity identity;	/* recorded identity of the base; size 0: none recorded */
	/*
	 * Every byte that this image has, now or later, is in file 0 at its virtual
	 * offset plus @linear_shift, and map(WRITE) of whole granules reserves nothing:
	 * they may be written before it is asked.
	 */
	bool linear;
	uint64_t linear_shift;

	struct cow_meta *meta;	/* libcow's */

	/*
	 * Set by open(): bytes of metadata of the image when it is full; the cache is
	 * not made larger. 0: formats with verify() or seal() as much as the file has.
	 */
	uint64_t table_bytes;

	/*
	 * Set by open() and create(): the name of a second file, for data alone, as it stands in the
	 * image; empty: none. A hint as that of a base. libcow opens it after open(), or creates it
	 * with @size bytes, in or below the folder of the image. Answers of map() name it by file 1.
	 */
	char data_file[1024];

	/*
	 * Set by open(): each change has to come by map() or put_encoded(), even where it was
	 * answered before; others (the kernel) must not remember a place to write to.
	 */
	bool sees_all;

	/*
	 * During open() and create(): what the user's key file holds, @key_len bytes, wiped
	 * afterwards. NULL: none was given.
	 */
	const uint8_t *key;
	size_t key_len;
	/*
	 * Set by open(): power of two, bytes. map() answers COW_PLACE and COW_PLACED for such units: others
	 * (the kernel) complete and write them before they are shown. 0: it does not.
	 */
	uint32_t place;

	/*
	 * Set by open(): what map() answers with COW_DATA is stored enciphered, see crypt(), but for
	 * tables. @size, @granule and places of data are multiples of COW_CRYPT_UNIT; not with @linear.
	 */
	bool encrypted;
};

/* crypt() */
struct cow_crypt {
	bool encrypt;		/* else decipher */
	uint64_t virt, phys;	/* of the first byte: in the image, in its file */
	const void *in;
	void *out;		/* may be @in; else they do not overlap */
	size_t len;		/* whole units of COW_CRYPT_UNIT */
};

/* create() */
struct cow_create {
	uint64_t size;			/* virtual bytes */
	const struct cow_args *args;	/* checked against create_opts */
	const struct cow_backing *backing;	/* NULL: no base */
	const struct cow_identity *identity;	/* of the base; NULL: no base */
};

/* snapshot() */
enum cow_snapshot_op { COW_SNAPSHOT_CREATE, COW_SNAPSHOT_APPLY, COW_SNAPSHOT_DELETE };

/* A snapshot inside an image, as snapshots() tells it. */
struct cow_snapshot {
	const char *id, *name;
	uint64_t date_sec;		/* when it was made, since 1970 */
	uint64_t size;			/* virtual bytes */
	uint64_t vm_state_bytes;	/* of the state of a virtual machine kept with it; 0: none */
};

/* A bitmap inside an image, as bitmaps() tells it: which ranges of the disk were changed. */
struct cow_bitmap {
	const char *name;
	uint64_t granularity;	/* bytes of the disk that one bit is about; 0: unknown */
	const char *type;	/* "dirty": of changes; else "unknown" */
	bool enabled;		/* changes are recorded */
	bool in_use;		/* who used it last did not store it */
	const char *state;	/* "good"; else not to be used: "inconsistent", "unknown", "too large" */
};

/* bitmap() */
enum cow_bitmap_op {
	COW_BITMAP_ADD, COW_BITMAP_REMOVE, COW_BITMAP_CLEAR, COW_BITMAP_ENABLE, COW_BITMAP_DISABLE,
	COW_BITMAP_MERGE,
};

struct cow_bitmap_change {
	enum cow_bitmap_op op;
	const char *name;
	uint64_t granularity;	/* ADD: bytes, a power of two; 0: the format's choice */
	bool disabled;		/* ADD: changes are not recorded yet */
	/*
	 * MERGE: calls @mark for each range of the disk that is to be set, in order, until it
	 * returns other than 0; returns that.
	 */
	int (*ranges)(void *opaque, int (*mark)(void *to, uint64_t virt, uint64_t len), void *to,
		      struct cow_err *err);
	void *opaque;
};

/* measure() */
struct cow_measure {
	uint64_t tables;	/* bytes of everything but data in an image that is full */
	uint64_t unit;		/* bytes that data takes up at once; 0: all of it has its place from the start */
};

/* check() */
#define COW_CHECK_REPAIR (1u << 0)

struct cow_report {
	uint64_t corruptions, leaks, repaired;
	uint64_t blocks_checked;
	uint64_t data_bytes;		/* bytes present in this layer */
	/* Called for each finding, a sentence without newline; may be NULL. */
	void (*say)(struct cow_report *, const char *sentence);
	/* Called now and then with the part done; returning true stops with -ECANCELED; may be NULL. */
	bool (*progress)(struct cow_report *, uint64_t done, uint64_t total);
	void *opaque;
	uint32_t said;			/* cow_report_say()'s */
};

/*
 * A finding of check(), in one sentence; counts it when it was @repaired. Beyond some hundred they
 * are not told one by one.
 */
COW_EXPORT void cow_report_say(struct cow_report *rep, bool repaired, const char *fmt, ...) COW_PRINTF(3, 4);

/* Its facts, as members of the object that is open in @kv. */
COW_EXPORT void cow_bitmap_kv(const struct cow_bitmap *b, struct cow_kv *kv);

/*
 * One format. "Required" members must be set; the rest may be NULL. Return 0 or
 * -errno unless said otherwise; everything runs on the thread that owns the
 * chain. New members are only ever added at the end.
 */
struct cow_format {
	uint32_t abi, size;		/* set by COW_FORMAT_REGISTER */
	const char *name, *desc, *version;	/* Required. name as in cow-NAME.so */
	uint32_t caps;			/* COW_CAP_* */
	uint32_t priv_size;
	const struct cow_opt *opts;		/* of open() */
	const struct cow_opt *create_opts;	/* of create() */

	/*
	 * How sure (0..100) that @head, the first @len bytes of a file of
	 * @file_size bytes, is this format. Required. No I/O. Only used for
	 * messages ("this looks like qcow2"), never to choose a format.
	 */
	int (*probe)(const uint8_t *head, size_t len, uint64_t file_size);

	/*
	 * Required. Reads the header with cow_img_pread(), validates every
	 * limit, sets the members of @img. Must not write. On failure fills @err
	 * and leaves nothing behind.
	 */
	int (*open)(struct cow_image *img, const struct cow_args *args, struct cow_err *err);
	void (*close)(struct cow_image *img);	/* Required. Releases priv's contents; no I/O; cannot fail. */

	/*
	 * Required. Answers @q. 0; -EAGAIN when cow_meta_get() or
	 * cow_meta_after() said so, having changed nothing; -EIO for damaged
	 * metadata; other -errno. Called again with the same query after -EAGAIN.
	 */
	int (*map)(struct cow_image *img, const struct cow_query *q, struct cow_map *ret);

	/*
	 * Required with COW_CAP_WRITE. Ends each WRITE, ZERO, DISCARD or PLACED answer
	 * of kind COW_DATA that has COW_EXT_NEW, and each that has COW_EXT_TABLE. @io 0: the data was written, show it;
	 * < 0: it was not, give the reservation back. Does no I/O, cannot fail.
	 */
	void (*commit)(struct cow_image *img, const struct cow_map *map, int io);

	/*
	 * First change of a session (request, resize, repair, commit): mark the
	 * image in use with the nonce @session in its header, by
	 * cow_img_pwrite(), no sync. Optional.
	 */
	int (*begin)(struct cow_image *img, uint64_t session);
	/* Everything is flushed: mark the image cleanly closed, and sync. Optional. */
	int (*end)(struct cow_image *img);

	/* A metadata block was read: is it whole? 0 or -EIO, with a sentence. Optional. */
	int (*verify)(struct cow_image *img, uint16_t file, uint64_t off, const void *data,
		      struct cow_err *err);
	/* @data is a copy about to be written: put checksums in. Optional. */
	void (*seal)(struct cow_image *img, uint16_t file, uint64_t off, void *data);

	/* ---- offline, or with the device quiesced and flushed; all optional ---- */

	/* Formats the empty file behind @img (cow_img_*); img->size etc. are not set, close() is not called. */
	int (*create)(struct cow_image *img, const struct cow_create *c, struct cow_err *err);
	/* New virtual size. The cache holds no dirty block. Crash-safe. */
	int (*resize)(struct cow_image *img, uint64_t size, struct cow_err *err);
	/* Examines the image, repairs with COW_CHECK_REPAIR. Findings are not errors: 0. */
	int (*check)(struct cow_image *img, struct cow_report *rep, uint32_t flags, struct cow_err *err);
	/* Forget all data of this layer (it has been committed below). Crash-safe. */
	int (*make_empty)(struct cow_image *img, struct cow_err *err);
	/*
	 * Record another base or identity; one without a path: the image has none from now on.
	 * @committing: the base is about to change on purpose.
	 */
	int (*rebase)(struct cow_image *img, const struct cow_backing *backing,
		      const struct cow_identity *identity, bool committing, struct cow_err *err);
	/* Facts for "info", beyond the members of cow_image. */
	void (*info)(struct cow_image *img, struct cow_kv *kv);

	/*
	 * Required of a format that answers COW_ENCODED. Makes the plain bytes of
	 * map->dst at @out, which has room for img->block bytes or map->dst.len if that
	 * is more, from the map->src.len stored ones at @raw. 0 or -errno. No I/O.
	 */
	int (*decode)(struct cow_image *img, const struct cow_map *map, const void *raw, void *out);

	/*
	 * Optional, both or none: writing what decode() reads. encode() makes the stored form of
	 * a block (@plain: img->block bytes, zeroes behind the end of the image) at @out, which
	 * has room for a block; *ret_len is less than that. -ENOSPC: it does not become smaller.
	 * No I/O, and no change of anything: called from any thread, several at once.
	 */
	int (*encode)(const struct cow_image *img, const void *plain, void *out, size_t *ret_len);
	/*
	 * As map() of a WRITE, for one whole block (the end of the image counts as the end of
	 * one) whose stored form has @len bytes: @ret->dst is COW_ENCODED and COW_EXT_NEW, and
	 * @ret->dst.phys where they go, or a table that is to be made first. commit() ends it.
	 */
	int (*put_encoded)(struct cow_image *img, const struct cow_query *q, uint64_t len,
			   struct cow_map *ret);

	/* What create() would come to take. Optional. @img has a path and no file. */
	int (*measure)(struct cow_image *img, const struct cow_create *c, struct cow_measure *ret,
		       struct cow_err *err);

	/*
	 * Optional, both or none: snapshots inside the image. CREATE keeps what the disk is under
	 * @name; APPLY makes the disk what a snapshot kept, its size included; DELETE forgets a
	 * snapshot. @name of those two: its ID, else its name. The cache holds no dirty block.
	 * begin() was called only if there were other changes before: what has to be marked in the
	 * image first is up to this. Crash-safe.
	 */
	int (*snapshot)(struct cow_image *img, enum cow_snapshot_op op, const char *name,
			struct cow_err *err);
	/* Calls @fn for each, oldest first, until it returns other than 0; returns that. */
	int (*snapshots)(struct cow_image *img, int (*fn)(void *opaque, const struct cow_snapshot *s),
			 void *opaque, struct cow_err *err);

	/*
	 * Optional, all or none: bitmaps inside the image. bitmaps() calls @fn for each until it
	 * returns other than 0, and returns that. They know of all changes by map(), put_encoded()
	 * and resize().
	 */
	int (*bitmaps)(struct cow_image *img, int (*fn)(void *opaque, const struct cow_bitmap *b),
		       void *opaque, struct cow_err *err);
	/* The same for the ranges of the disk that are set in bitmap @name, in order, none next to another. */
	int (*bitmap_ranges)(struct cow_image *img, const char *name,
			     int (*fn)(void *opaque, uint64_t virt, uint64_t len), void *opaque,
			     struct cow_err *err);
	/* Changes them, as snapshot() changes snapshots: the cache holds no dirty block. Crash-safe. */
	int (*bitmap)(struct cow_image *img, const struct cow_bitmap_change *ch, struct cow_err *err);

	/*
	 * Optional, both or none: other options for an image that is there. @args were checked against
	 * amend_opts; those that are not given stay as they are. Conditions as of snapshot(). Crash-safe:
	 * what was amended before an interruption stays.
	 */
	const struct cow_opt *amend_opts;
	int (*amend)(struct cow_image *img, const struct cow_args *args, struct cow_err *err);

	/*
	 * Of a format without a below_limit of its own: resize() to a larger size sets img->size, and
	 * leaves it to this to record it. In between libcow hides what the base has behind the old end,
	 * so that an image whose growing was interrupted never shows it. Optional.
	 */
	int (*grown)(struct cow_image *img, struct cow_err *err);

	/*
	 * Required of a format that sets cow_image.encrypted. Between plain bytes and those in the
	 * file, of the same length. 0; -ENOKEY: opened without a key; other -errno. No I/O.
	 */
	int (*crypt)(struct cow_image *img, const struct cow_crypt *c);
};

/*
 * File access for the control-path callbacks above: begin, end, open, create, resize, check,
 * make_empty, rebase, snapshot, snapshots, bitmap, bitmaps, bitmap_ranges, amend, grown. Never from
 * map, commit, verify or seal. Synchronous.
 * file 0 is the image itself, 1 its data file, which is not there yet in open and create.
 * Return 0 or -errno; a read past the end of the file gives zeroes.
 */
COW_EXPORT int cow_img_pread(struct cow_image *img, uint16_t file, void *buf, size_t len, uint64_t off);
COW_EXPORT int cow_img_pwrite(struct cow_image *img, uint16_t file, const void *buf, size_t len,
			      uint64_t off);
COW_EXPORT int cow_img_sync(struct cow_image *img, uint16_t file);
/*
 * After a failure (-errno, and what failed) the format cannot write soundly until the image is
 * opened again: says so, and lets no request write any more.
 */
COW_EXPORT void cow_img_fail(struct cow_image *img, int why, const char *what);
/* The range reads as zeroes afterwards, its space is given back where the file can. */
COW_EXPORT int cow_img_punch(struct cow_image *img, uint16_t file, uint64_t off, uint64_t len);
COW_EXPORT int cow_img_truncate(struct cow_image *img, uint16_t file, uint64_t size);
COW_EXPORT uint64_t cow_img_file_size(struct cow_image *img, uint16_t file);
COW_EXPORT bool cow_img_is_blkdev(struct cow_image *img, uint16_t file);
/* Next data (@data) or hole at or after @off: 0 and the offset; -ENXIO: none; other -errno: unknown. */
COW_EXPORT int cow_img_seek(struct cow_image *img, uint16_t file, uint64_t off, bool data,
			    uint64_t *ret_off);
/* Forgets every cached clean block; dirty ones must not exist. For resize, check, make_empty, snapshot, amend. */
COW_EXPORT void cow_img_drop_cache(struct cow_image *img);

/* Fills @fmt->abi and ->size and exports it. */
#define COW_FORMAT_REGISTER(f)                                               \
	COW_EXPORT const struct cow_format *cow_format_register(void);       \
	const struct cow_format *cow_format_register(void)                   \
	{                                                                    \
		(f).abi = COW_FORMAT_ABI;                                    \
		(f).size = sizeof(f);                                        \
		return &(f);                                                 \
	}

/* ---- the loader ---- */

/*
 * Finds a format by name, loading cow-NAME.so from $COW_PLUGIN_DIR (ignored in
 * set-id programs) or the folder "cow" beside libcow. -ENOENT, -EINVAL (ABI,
 * missing callback, wrong name) with a sentence. The format stays loaded.
 */
COW_EXPORT int cow_format_find(const char *name, const struct cow_format **ret, struct cow_err *err);
/* Names of the formats installed, for messages and --help; NULL-terminated, free with cow_free(). */
COW_EXPORT char **cow_format_list(void);

#endif
