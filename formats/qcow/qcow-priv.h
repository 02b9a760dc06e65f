/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The qcow plugin's own state. qcow-header.c is the only file that touches
 * header bytes, qcow-space.c the only one that says what of the file is in use,
 * qcow-map.c the only one that changes entries while the image is in use.
 *
 * Nothing is ever used twice: new clusters and tables go behind everything that
 * is referred to, and a compressed cluster that is no longer referred to stays
 * where it is until a repair gives it back. So a crash leaves leaks at worst.
 *
 * The cache of metadata writes whole blocks, clusters and tables may be smaller
 * than one: a table that shares a block with anything else is moved to blocks of
 * its own before it changes for the first time, and data is never put into the
 * same block as a table.
 */
#ifndef QCOW_PRIV_H
#define QCOW_PRIV_H

#include "../cipher.h"
#include "cow/format.h"
#include "qcow.h"

#define QCOW_WRITE_L2_BITS_MIN	9u	/* tables of whole blocks of the cache */
#define QCOW_ZERO_MAX		512u	/* stored bytes of a cluster of zeroes: 64 KiB need 80 */

/* What exists only while the image is open for writing. */
struct qcow_writer {
	bool loaded;
	uint64_t *tables;	/* keys of the L2 tables, ascending: see qcow_key() */
	size_t n, cap;
	uint64_t first;		/* what was put into the file is from here on, */
	uint64_t tail;		/* and nothing is referred to from here on */
	uint64_t limit;		/* of the file */
	bool moved;		/* some tables were */
	bool l1_shared;		/* other things lie in the blocks of the L1 table */

	/*
	 * Zeroes over a base: a compressed cluster of zeroes, to which any number of
	 * entries may refer, for no program writes to the place of a compressed one.
	 * It is behind the name of the base if we wrote that.
	 */
	uint8_t zero[QCOW_ZERO_MAX];
	size_t zero_len;
	uint64_t zero_entry;	/* 0: the image has no base */
	uint64_t zero_block;	/* where its stored form is put when needed; 0: it is in the file */
	bool zero_put;		/* it was put there */
};

struct qcow {
	/* header */
	unsigned cluster_bits, l2_bits;
	uint64_t size, l1_off;
	uint64_t backing_off;		/* 0: no base */
	uint32_t backing_len;
	bool xen, l1_le;
	bool has_record;		/* the format of the base is recorded in the image */
	bool encrypted;
	struct cow_backing backing;

	/* derived */
	uint64_t cluster, l2_bytes, l1_n;
	bool corrupt_found;
	struct cipher *cipher;		/* NULL: not encrypted, or opened without the key */

	struct qcow_writer w;
};

/* Calls for each L1 entry that is not the place of a table. */
typedef void qcow_bad_l1(void *opaque, uint64_t index);

/* Reads L2 tables in the order of their places, without touching holes of the file. */
struct qcow_reader {
	struct cow_image *img;
	uint8_t *buf;			/* a table */
	uint64_t eof;
	uint64_t data_from;		/* the file has no data between the last table and here */
};

static inline uint64_t qcow_l1_span(const struct qcow *q)	/* virtual bytes of an L1 entry */
{
	return 1ULL << (q->l2_bits + q->cluster_bits);
}

static inline uint64_t qcow_l1_get(const struct qcow *q, const void *p)
{
	return q->l1_le ? cow_get_le64(p) : cow_get_be64(p);
}

static inline void qcow_l1_put(const struct qcow *q, void *p, uint64_t off)
{
	if (q->l1_le)
		cow_put_le64(p, off);
	else
		cow_put_be64(p, off);
}

/* May @off be the place of an L2 table? */
static inline bool qcow_table_ok(const struct qcow *q, uint64_t off)
{
	return off && off % QCOW_HOST_UNIT == 0 && off <= QCOW_HOST_MAX - q->l2_bytes;
}

/* Where the bytes of an entry other than 0 are. False: it is impossible. */
static inline bool qcow_entry_place(const struct qcow *q, uint64_t e, uint64_t *off, uint64_t *len)
{
	unsigned shift = 63 - q->cluster_bits;

	*off = e;
	*len = q->cluster;
	if (e & QCOW_COMPRESSED) {
		*off = e & ((1ULL << shift) - 1);
		*len = e >> shift & (q->cluster - 1);
		return *off >= QCOW_H_BYTES && *len && *off <= QCOW_HOST_MAX - *len;
	}
	return *off % QCOW_HOST_UNIT == 0 && *off <= QCOW_HOST_MAX - *len;
}

/* The entry of a compressed cluster, whose stored form is less than one. */
static inline uint64_t qcow_compressed(const struct qcow *q, uint64_t off, uint64_t len)
{
	return QCOW_COMPRESSED | len << (63 - q->cluster_bits) | off;
}

/* An L2 table's place and the index of its L1 entry in one number; sorts by place. */
static inline uint64_t qcow_key(uint64_t off, uint64_t index)
{
	return off / QCOW_HOST_UNIT << 24 | index;
}

static inline uint64_t qcow_key_off(uint64_t key)
{
	return (key >> 24) * QCOW_HOST_UNIT;
}

static inline uint64_t qcow_key_index(uint64_t key)
{
	return key & ((1u << 24) - 1);
}

static inline bool qcow_overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a < b + b_len && b < a + a_len;
}

/* First byte of the record, or of the name; and from there to the end of the name. */
static inline uint64_t qcow_name_start(const struct qcow *q)
{
	return q->backing_off - (q->has_record ? QCOW_RECORD_BYTES : 0);
}

static inline uint64_t qcow_name_bytes(const struct qcow *q)
{
	return q->backing_off + q->backing_len - qcow_name_start(q);
}

/* qcow-header.c */
int qcow_header_read(struct cow_image *img, struct qcow *q, struct cow_err *err);
void qcow_derive(struct qcow *q);
/* Size, place of the L1 table, place and length of the base's name: durable, at once. */
int qcow_header_update(struct cow_image *img, const struct qcow *q);
/* Header, record and name of a new image, in a block. */
void qcow_header_build(const struct qcow *q, uint8_t *block);
/* Record and name of a base at @p, and behind them the stored form of a cluster of zeroes. */
void qcow_put_name(const struct qcow *q, uint8_t *p, const struct cow_backing *backing);

/* qcow-space.c */
/* Makes the stored form of a cluster of zeroes. False: no memory. */
bool qcow_zero_make(struct qcow *q);
/* The keys of all L2 tables, sorted; those that are possible. 0 or -errno. */
int qcow_tables_read(struct cow_image *img, uint64_t **ret, size_t *ret_n, qcow_bad_l1 *bad,
		     void *opaque);
/* 1: r->buf has the table at @off; 0: all its entries are 0; -errno. */
int qcow_reader_next(struct qcow_reader *r, uint64_t off);
/* The end of the file, or a place behind it: libcow knows the size as it was at open. */
uint64_t qcow_space_eof(struct cow_image *img);
/* Was the file shorter than @off, and has nothing been put there since? */
bool qcow_space_behind(struct cow_image *img, uint64_t off);
/* The file was cut off at @end. */
void qcow_space_cut(struct qcow *q, uint64_t end);
/* Finds what is in use. Refuses what cannot be written to soundly. */
int qcow_space_load(struct cow_image *img, struct cow_err *err);
/* The same within a session: when it fails, there are no more writes. */
int qcow_space_reload(struct cow_image *img, struct cow_err *err);
void qcow_space_free(struct qcow *q);
/* Is the header, the L1 table or the name of the base in [@off, @off + @len)? */
bool qcow_upon_fixed(const struct qcow *q, uint64_t off, uint64_t len);
/* Is any metadata there? */
bool qcow_space_is_meta(const struct qcow *q, uint64_t off, uint64_t len);
/* Room at the end. How many of @want units of @bytes bytes there are in a row from *@ret on. */
uint64_t qcow_space_take(struct qcow *q, uint64_t bytes, uint64_t want, uint64_t align, uint64_t *ret);
void qcow_space_give_back(struct qcow *q, uint64_t off, uint64_t len);
/* Room for one more table in memory. 0 or -ENOMEM. */
int qcow_space_room(struct qcow *q);
/* The same for the file; qcow_space_room() was called. 0: there is none. */
uint64_t qcow_space_take_table(struct qcow *q, uint64_t l1_index);
/* Offline: the L1 table at a new place, for the size of @next, which the header then has, too. */
int qcow_move_l1(struct cow_image *img, const struct qcow *next);
/* Everything is flushed: gives back where moved tables were. */
int qcow_space_settle(struct cow_image *img);

/* qcow-map.c */
int qcow_map(struct cow_image *img, const struct cow_query *qu, struct cow_map *ret);
void qcow_commit(struct cow_image *img, const struct cow_map *map, int io);
int qcow_decode(struct cow_image *img, const struct cow_map *map, const void *raw, void *out);
int qcow_encode(const struct cow_image *img, const void *plain, void *out, size_t *ret_len);
int qcow_put_encoded(struct cow_image *img, const struct cow_query *qu, uint64_t len,
		     struct cow_map *ret);
int qcow_crypt(struct cow_image *img, const struct cow_crypt *c);

/* qcow-check.c */
int qcow_check(struct cow_image *img, struct cow_report *rep, uint32_t flags, struct cow_err *err);

/* qcow-create.c */
extern const struct cow_opt qcow_create_opts[];
int qcow_create(struct cow_image *img, const struct cow_create *c, struct cow_err *err);
int qcow_measure(struct cow_image *img, const struct cow_create *c, struct cow_measure *ret,
		 struct cow_err *err);
int qcow_resize(struct cow_image *img, uint64_t size, struct cow_err *err);
int qcow_grown(struct cow_image *img, struct cow_err *err);
int qcow_make_empty(struct cow_image *img, struct cow_err *err);
int qcow_rebase(struct cow_image *img, const struct cow_backing *backing,
		const struct cow_identity *identity, bool committing, struct cow_err *err);

#endif
