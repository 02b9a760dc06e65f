/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The inside of a chain, shared by chain.c (opening), req.c (requests), flush.c
 * and ops.c (offline work). Nothing outside daemon/lib sees it.
 */
#ifndef COW_LIB_ENGINE_H
#define COW_LIB_ENGINE_H

#include <assert.h>
#include <pthread.h>

#include "cow/chain.h"
#include "io.h"
#include "meta.h"

#define ENGINE_FETCHES 128	/* data reads in flight at once; more wait */
#define CRYPT_CHUNK (1u << 20)	/* bytes that are enciphered into a buffer at once */

struct cow_layer {
	struct cow_image img;
	struct cow_chain *chain;
	unsigned index;
	struct cow_file file;		/* io NULL: a format without a file */
	struct cow_file data;		/* its data file; io NULL: none */
	struct cow_meta meta;
	struct encoded *encoded;	/* the extents decoded last, or NULL */
	struct cow_args *base_args;	/* options for the layer below, or NULL */
	char *path;
	char *beneath, *name;		/* where its file was found, as in cow_open_spec; NULL without one */
};

/* A data operation of a read, and what it takes to decipher what comes. */
struct cow_fetch {
	struct cow_iocb cb;
	struct cow_layer *cipher;	/* whose; NULL: the bytes are plain */
	uint8_t *to;
	uint64_t virt, phys, n;		/* of the bytes that go there */
	bool ragged;			/* they are a part of one unit, which is read into @unit */
	uint8_t unit[COW_CRYPT_UNIT];
};

/* A read of a range from a layer down; part of a request, or the fill of a first write. */
struct cow_rd {
	struct cow_chain *c;
	uint64_t virt, len;
	uint8_t *buf;
	uint64_t pos;			/* bytes whose operations have been started */
	uint64_t seg;			/* bytes that the descent has narrowed to */
	unsigned first, layer;
	unsigned pending;
	int err;
	bool waiting;			/* in somebody's list of waiters */
	struct cow_pins pins;
	struct cow_waiter wait;
	void (*done)(struct cow_rd *rd, int err);	/* not called when rd_start() returned 1 */
};

enum wr_state { WR_MAP, WR_HEAD, WR_TAIL, WR_IO, WR_TABLE, WR_TABLE_OUT, WR_COMMIT };

/* Any change in flight. */
struct cow_wr {
	enum wr_state state;
	uint64_t pos;			/* bytes of the request done */
	uint64_t n;			/* bytes of it in the current step */
	uint64_t lo, hi;		/* granules locked */
	/*
	 * Old contents around the step's bytes: head, then tail; between them room for those, if
	 * they are to be enciphered. Or a table.
	 */
	uint8_t *bounce;
	uint64_t head, tail;
	bool own_head, own_tail;	/* the rest of a unit of an encrypted image, already in place */
	const uint8_t *data;
	bool punch;
	uint64_t written_to;		/* zeroes are not punched before here, see COW_ZERO of map() */
	struct cow_map map;
	struct cow_pins pins;
	struct cow_waiter wait;
	struct cow_iocb cb;
	struct cow_list lock;		/* in chain->writers or ->lock_waiters */
};

struct cow_req_priv {
	struct cow_chain *c;
	struct cow_list node;		/* flush: in chain->flush.joined or .next */
	union {
		struct cow_rd rd;
		struct {
			struct cow_wr wr;
			struct cow_rd fill;
		};
	};
};
static_assert(sizeof(struct cow_req_priv) <= sizeof(((struct cow_req *)0)->priv),
	      "cow_req.priv holds the engine's state");

static inline struct cow_req_priv *req_priv(struct cow_req *r)
{
	return (struct cow_req_priv *)r->priv;
}

static inline struct cow_req *priv_req(struct cow_req_priv *p)
{
	return cow_container_of(p, struct cow_req, priv);
}

enum flush_state { FLUSH_IDLE, FLUSH_DATA_FILE, FLUSH_DATA, FLUSH_WRITE, FLUSH_SYNC };

struct cow_flush {
	enum flush_state state;
	struct cow_list joined, next;	/* requests this flush ends; requests for the one after */
	int last;			/* result of the last one */
	struct cow_iocb cb;
	struct meta_flush meta;
};

struct cow_chain {
	struct cow_io *io;
	pthread_t thread;
	struct cow_layer *layers[COW_CHAIN_DEPTH];	/* n of them */
	unsigned n;
	bool writable;
	bool begun;			/* the top image is marked in use */
	bool persist;
	bool (*keeps)(void *opaque, uint64_t dev, uint64_t ino);
	void *keeps_opaque;
	bool data_dirty;		/* data was written that no fdatasync has covered */
	enum cow_chain_mode mode;
	int sticky;			/* why the mode is not RW */

	struct cow_list writers;	/* struct cow_wr.lock, active */
	struct cow_list lock_waiters;	/* in order of arrival */
	struct cow_list stalled;	/* struct cow_waiter: an iocb, slot or edge is missing */
	struct cow_fetch *fetches;
	struct cow_list fetch_free;	/* their cb.node */
	struct cow_flush flush;
	unsigned inflight;

	/* A new image that has no name yet; what it will replace is locked (io set). */
	bool draft, draft_exist_ok;
	struct cow_file replaced;

	/* How it was opened, for reopening the base. */
	char **backing, **backing_dirs;
	uint64_t cache_bytes;

	uint64_t copied_bytes, allocated_bytes, data_syncs, meta_syncs;
};

/* The file that an answer means. */
static inline struct cow_file *layer_file(struct cow_layer *l, uint16_t file)
{
	cow_assert(file == 0 || (file == 1 && l->data.io));
	return file ? &l->data : &l->file;
}

static inline struct cow_layer *img_layer(struct cow_image *img)
{
	return cow_container_of(img, struct cow_layer, img);
}

void chain_assert_thread(const struct cow_chain *c);
/* Down the failure ladder, never up; says so once. */
void chain_fail(struct cow_chain *c, enum cow_chain_mode mode, int why, const char *what);
/* First change of a session: header, nonce, volatile map. 0 or -errno. */
int chain_begin(struct cow_chain *c);
/* As cow_chain_open(), but for the image's file, which is looked for as @spec says. */
int chain_open_spec(const struct cow_chain_cfg *cfg, const struct cow_open_spec *spec,
		    struct cow_chain **ret, struct cow_err *err);

/* flush.c */
void flush_submit(struct cow_chain *c, struct cow_req *req);
/* Room is needed. 1: a flush is under way and will wake the stalled; 0: one just ended; -errno. */
int flush_kick(struct cow_chain *c);

/* encoded.c */
/* Starts to read @n bytes of the encoded extent @map of @l, from virtual byte @v on, for @rd. */
void encoded_read(struct cow_rd *rd, struct cow_layer *l, const struct cow_map *map, uint64_t v,
		  uint64_t n);
void encoded_forget(struct cow_layer *l);

/* crypt.c: all of encrypted images, and all of whole units but for those that make them so */
/* In place. 0 or -errno. */
int crypt_run(struct cow_layer *l, bool encrypt, uint64_t virt, uint64_t phys, void *buf, uint64_t len);
/* Bytes of @len at @virt that are whole units, or a part of one. */
uint64_t crypt_read_step(uint64_t virt, uint64_t len);
/* Bytes from @virt on that are written in one step: to the end of a granule. */
uint64_t crypt_write_step(const struct cow_image *img, uint64_t virt);
/* Sets up the operation of @f, whose cipher is set, to read @n bytes for @to; of an encrypted image a read step. */
void fetch_aim(struct cow_fetch *f, uint8_t *to, uint64_t virt, uint64_t phys, uint64_t n);
/* The operation ended with @result. The result. */
int fetch_end(struct cow_fetch *f, int result);
/* Extends the step at @virt to whole units. */
void crypt_edges(struct cow_wr *w, uint64_t virt);
/* Makes w->bounce, which has the head and the tail, what goes to @phys; it begins at @virt. */
int crypt_write(struct cow_layer *l, struct cow_wr *w, uint64_t virt, uint64_t phys);

/* key.c */
/* What the options key_file and key_fd mean: img->key, if there is one of them, until key_drop() wipes it. */
int key_take(struct cow_image *img, const struct cow_args *args, struct cow_err *err);
void key_drop(struct cow_image *img);

/* req.c */
/* An operation of @rd that was pending has ended. */
void rd_io_ended(struct cow_rd *rd, int result);
int rd_start(struct cow_rd *rd, int *ret);	/* 1: done, *ret; 0: rd->done will be called */
int chain_map(struct cow_layer *l, const struct cow_query *q, struct cow_pins *pins,
	      struct cow_map *ret);
/* After chain_map() said -EAGAIN. 1: @w is woken when it is worth calling again; 0: call it now; -errno. */
int chain_wait(struct cow_layer *l, struct cow_waiter *w);
void chain_wake_stalled(struct cow_chain *c, int result);
void req_end(struct cow_req *req, int result);

/* chain.c */
int chain_open_file(struct cow_chain *c, const struct cow_open_spec *spec, struct cow_file *ret,
		    struct cow_err *err);
int chain_alloc(const struct cow_chain_cfg *cfg, struct cow_chain **ret);
void chain_free(struct cow_chain *c, bool forget);
/*
 * The top layer is the new image in @file, which it takes over; of @args, with which it was created,
 * the key counts, and what the base is opened with.
 */
int chain_open_new(struct cow_chain *c, const struct cow_format *fmt, struct cow_file *file,
		   const struct cow_args *args, struct cow_err *err);
/* Makes all changes durable, and marks the image cleanly closed. */
int chain_end(struct cow_chain *c, bool *ret_forget);
int chain_open_lower(struct cow_chain *c, uint32_t flags, struct cow_err *err);
void chain_close_lower(struct cow_chain *c);

#endif
