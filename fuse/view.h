/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the files of the FUSE front end share. One struct cow_fuse is one mount,
 * called a view here; everything runs on the loop's thread.
 *
 *	session.c  life of a view, receiving requests, buffers and slots
 *	mount.c    the mount point and the mount itself
 *	data.c     read, write, flush, zeroing, SEEK_DATA and SEEK_HOLE
 *	tree.c     names, attributes, open and the rules for aliases
 *	part.c     the partition table, read by a child without privileges
 *	text.c     the generated files
 */
#ifndef COW_FUSE_VIEW_H
#define COW_FUSE_VIEW_H

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include "fuse/fuse.h"

#define VIEW_IO_MAX (1u << 20)		/* largest read or write: the kernel's 256 pages */
#define VIEW_SLOTS 128			/* requests in flight; more stay queued in the kernel */
#define VIEW_BYTES (16u << 20)		/* bytes in flight, likewise: a bound for memory */
#define VIEW_PARTS 256			/* partitions shown; GPT tables have 128 entries */
#define VIEW_SLICE_NS 2000000u		/* longest walk of a map in one turn of the loop */

/* Inode numbers. A new partition table gets new ones: old cached pages must not show in it. */
enum {
	VIEW_INO_ROOT = FUSE_ROOT_ID,
	VIEW_INO_DISK,
	VIEW_INO_INFO,
	VIEW_INO_MAP,
	VIEW_INO_STATS,
	VIEW_INO_LAYERS,
	VIEW_INO_LAYER0 = 0x100,	/* + layer */
	VIEW_INO_PART0 = 0x1000,	/* + table * VIEW_INO_TABLE + index */
	VIEW_INO_TABLE = 0x200,
};

enum view_kind {
	VIEW_ROOT,
	VIEW_DISK,
	VIEW_INFO,
	VIEW_MAP,
	VIEW_STATS,
	VIEW_LAYERS,
	VIEW_LAYER,
	VIEW_PART
};

struct view_node {
	fuse_ino_t ino;
	enum view_kind kind;
	unsigned index;			/* of a layer or partition */
	uint64_t start, len;		/* PART: bytes of the disk */
	char name[16];
	unsigned opens, writers;
	uint64_t own;			/* changes made through this file */
	uint64_t seen;			/* changes elsewhere when its cached pages were last good */
	uint64_t text_size;		/* INFO, MAP, STATS: bytes of the last one made */
};

struct view_handle {
	struct cow_list node;		/* cow_fuse.handles */
	struct view_node *file;
	bool write;
	int fd;				/* contents of a generated file, else -1 */
	uint64_t size;			/* its bytes */
};

/* A large buffer. @mem is page-aligned; its pages are touched by use only. */
struct view_buf {
	struct view_buf *next;
	uint8_t *mem;
	bool big;			/* more than VIEW_BUF_KEEP of it is resident */
};

enum view_op { VIEW_OP_READ, VIEW_OP_WRITE, VIEW_OP_PLAIN };

/* A request in flight. */
struct view_slot {
	struct cow_req req;
	struct cow_fuse *f;
	fuse_req_t freq;
	struct view_buf *buf;		/* owned; NULL: none, or the receive buffer */
	struct view_slot *next;
	enum view_op op;
};

/* Work in slices that must not hold up the loop. */
struct view_job {
	struct cow_list node;
	struct cow_fuse *f;
	fuse_req_t req;
	bool (*step)(struct view_job *job);	/* true: has replied and is done */
	void (*release)(struct view_job *job);
};

struct view_parts {
	struct view_node *nodes;	/* in order of index */
	unsigned n;
	unsigned table;			/* number of the table, for inode numbers */
	bool scanned, running;
	const char *problem;		/* why the last scan found nothing; NULL: it worked */
	uint64_t at;			/* cow_dev_changes() when the last scan began */
	struct cow_list waiters;
	struct cow_source *timer;
};

struct cow_fuse {
	struct cow_loop *loop;
	struct cow_dev *dev;
	struct cow_chain *chain;
	char *mountpoint;
	bool writable, shared;
	void (*ready)(void *opaque);	/* NULL: told, or nobody wants to know */
	bool greeted;			/* the kernel has said which protocol it speaks */
	void (*unmounted)(void *opaque);
	void *opaque;

	struct fuse_session *se;
	int fd;				/* /dev/fuse; the session's */
	struct cow_source *src;
	unsigned refs;			/* owner, requests in flight, children, running handler */
	bool dead;			/* cow_fuse_unmount() was called */
	bool ended;			/* the kernel ended the session */
	bool stopped;			/* not receiving: too much in flight */

	struct view_buf *rx;		/* receives the next request */
	struct view_buf *free_bufs;
	struct view_slot *free_slots;
	struct view_slot *submitting;	/* set while its submit call runs and it is not complete */
	unsigned inflight, layer_reads;
	uint64_t bytes;			/* of requests in flight */
	struct cow_source *trim;	/* gives memory back when the rush is over */

	struct cow_dev_watch watch;
	uint64_t size;			/* of the device, as the kernel was last told */
	uint64_t changes;		/* changes submitted through this view */
	struct timespec mtime, mounted;

	struct view_node fixed[VIEW_LAYERS + 1];
	struct view_node *layers;
	unsigned n_layers;
	struct view_parts parts;
	struct cow_list handles;
	struct cow_list jobs;
	struct cow_source *job_timer;
};

static inline struct cow_fuse *view_of(fuse_req_t req)
{
	return fuse_req_userdata(req);
}

static inline struct view_handle *view_handle(const struct fuse_file_info *fi)
{
	return (struct view_handle *)(uintptr_t)fi->fh;
}

/* ---- session.c ---- */

void view_get(struct cow_fuse *f);
void view_put(struct cow_fuse *f);	/* may release @f */
struct view_slot *view_slot_get(struct cow_fuse *f);	/* NULL: no memory */
void view_slot_put(struct cow_fuse *f, struct view_slot *s);	/* and its buffer */
struct view_buf *view_buf_get(struct cow_fuse *f);	/* NULL: no memory */
void view_buf_put(struct cow_fuse *f, struct view_buf *b, uint64_t used);
/* The current request's bytes now belong to a slot: the next one needs another buffer. */
struct view_buf *view_rx_take(struct cow_fuse *f);
void view_receive_again(struct cow_fuse *f);	/* after a completion: room for more? */
/* Runs the first slice; queues @job if that was not all. */
void view_job_run(struct cow_fuse *f, struct view_job *job);
uint64_t view_now_ns(void);	/* monotonic */

/* ---- mount.c ---- */

/* Sets f->mountpoint, ->se, ->fd; after a failure, too, the caller releases what is set. */
int view_mount(struct cow_fuse *f, const struct cow_fuse_cfg *cfg,
	       const struct fuse_lowlevel_ops *ops, struct cow_err *err);

/* ---- data.c ---- */

void view_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		  struct fuse_file_info *fi);
void view_op_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t off,
		   struct fuse_file_info *fi);
void view_op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void view_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
		       struct fuse_file_info *fi);
void view_op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence,
		   struct fuse_file_info *fi);

/* ---- tree.c ---- */

int view_tree_init(struct cow_fuse *f);
void view_tree_free(struct cow_fuse *f);
uint64_t view_node_size(const struct cow_fuse *f, const struct view_node *n);
void view_reply_entry(fuse_req_t req, struct cow_fuse *f, struct view_node *n);	/* NULL: ENOENT */
/* Ends an open. On failure, also of the reply itself, @h is released. */
void view_reply_open(fuse_req_t req, struct view_handle *h, uint32_t open_flags);
void view_handle_free(struct view_handle *h);
void view_tree_ops(struct fuse_lowlevel_ops *ops);	/* fills in what tree.c answers */

/* ---- part.c ---- */

bool view_part_name(const char *name, unsigned *ret_index);	/* "p1".."p256" */
struct view_node *view_part_find(struct cow_fuse *f, unsigned index);
/* A scan is due or running: @req is answered when it is over. False: answer it now. */
bool view_parts_wait(struct cow_fuse *f, fuse_req_t req, const struct fuse_file_info *opendir_fi,
		     unsigned lookup_index);
void view_parts_stop(struct cow_fuse *f);	/* forgets who waits */
void view_parts_kv(struct cow_fuse *f, struct cow_kv *kv);

/* ---- text.c ---- */

/* Takes over @h; replies, now or later. */
void view_text_open(fuse_req_t req, struct cow_fuse *f, struct view_handle *h);
/* Size that stat() shows while no handle is at hand. */
uint64_t view_text_size(struct cow_fuse *f, struct view_node *n);

#endif
