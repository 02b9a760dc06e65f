/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The volatile map: memory for metadata blocks that outlives the process but
 * not the machine. A file on tmpfs, mapped shared: killed, the next opener
 * finds every change that was acknowledged; after a power cut it is gone,
 * together with the unflushed data that it spoke of.
 *
 * The file is nameless until the first change of a session (vmap_name()), so
 * that openers which only read leave nothing behind. It is bound to one image
 * (device, inode), one session (nonce in the image's header) and one boot.
 */
#ifndef COW_LIB_VMAP_H
#define COW_LIB_VMAP_H

#include "cow/err.h"
#include "cow/meta.h"

/* Shared with a later process on the same machine and build; the magic carries a layout version. */
struct vmap_slot {
	uint64_t off;
	uint16_t file;
	uint8_t cls;		/* enum cow_meta_class */
	uint8_t used;
	uint32_t pad;
	uint64_t dirty_seq;	/* raised by each change */
	uint64_t written_seq;	/* dirty_seq whose contents are in the image's file */
};

struct vmap {
	struct vmap_slot *slots;
	uint8_t *data;		/* slots * COW_META_BLOCK */
	uint32_t nslots;
	void *base;
	size_t bytes;
	int fd;			/* -1: private memory, nothing to adopt */
	char *name;		/* once named */
	uint64_t dev, ino;
};

static inline bool vmap_dirty(const struct vmap_slot *s)
{
	return s->used && s->dirty_seq != s->written_seq;
}

static inline uint8_t *vmap_block(struct vmap *v, uint32_t i)
{
	return v->data + (size_t)i * COW_META_BLOCK;
}

/* @persist: on tmpfs, for the image (@dev, @ino). Else private memory. */
int vmap_create(struct vmap *v, uint32_t nslots, bool persist, uint64_t dev, uint64_t ino,
		struct cow_err *err);
/* Before @slot is used for the first time, in order: makes sure that its memory exists. 0 or -errno. */
int vmap_reserve(struct vmap *v, uint32_t slot);
/* Gives the file its name, for @session. Replaces a stale one. 0 or -errno. */
int vmap_name(struct vmap *v, uint64_t session);
/* What it holds must not be believed by a later opener: the data behind it may be lost. */
void vmap_spoil(struct vmap *v);
/* Releases the memory. @forget: the name too, nothing in it matters any more. */
void vmap_destroy(struct vmap *v, bool forget);

/*
 * Maps what a killed process left for the image (@dev, @ino) in @session.
 * -ENOENT: nothing, or not of this boot and session. Release with vmap_destroy().
 */
int vmap_find(struct vmap *v, uint64_t dev, uint64_t ino, uint64_t session);

#endif
