/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Nodes of xenstore, read with care: what a guest wrote is short, of the form it must
 * have, and within its bounds, or it is an error. On top of struct xen_lib.
 */
#ifndef COWD_XEN_STORE_H
#define COWD_XEN_STORE_H

#include "xen-lib.h"

#define XEN_PATH_MAX 128u

/* A device's folder of its backend: /local/domain/BACKEND/backend/TYPE/DOMAIN/DEV */
struct xen_path {
	char dir[XEN_PATH_MAX];
	uint32_t backend, domain, dev;
	char type[16];
};

/* 0, or -EINVAL and a sentence. */
int xen_path_parse(const char *text, struct xen_path *ret, struct cow_err *err);
void xen_path_make(struct xen_path *p, uint32_t backend, const char *type, uint32_t domain,
		   uint32_t dev);

/* Only decimal digits without leading zeros, at most @max. */
bool xen_parse_number(const char *text, uint64_t max, uint64_t *ret);

struct xen_store;

int xen_store_open(const struct xen_lib *lib, struct xen_store **ret, struct cow_err *err);
void xen_store_close(struct xen_store *s);	/* NULL is allowed */
int xen_store_fd(struct xen_store *s);
/* Takes all events there are, within reason. How many; -errno: xenstore is gone. */
int xen_store_events(struct xen_store *s);
int xen_store_watch(struct xen_store *s, const char *dir, const char *key);

/* The node DIR/KEY. -ENOENT; -ERANGE: does not fit in @size; other -errno. */
int xen_store_read(struct xen_store *s, const char *dir, const char *key, char *buf, size_t size);
/* A number up to @max. -EINVAL: it is not one. */
int xen_store_read_number(struct xen_store *s, const char *dir, const char *key, uint64_t max,
			  uint64_t *ret);
/* The same, but @def where there is none. */
int xen_store_read_number_or(struct xen_store *s, const char *dir, const char *key, uint64_t max,
			     uint64_t def, uint64_t *ret);
/* The node "state": enum xen_state; XEN_ABSENT where there is none, or 0; -EINVAL: nonsense. */
int xen_store_read_state(struct xen_store *s, const char *dir);
int xen_store_write(struct xen_store *s, const char *dir, const char *key, const char *fmt, ...)
	COW_PRINTF(4, 5);
int xen_store_remove(struct xen_store *s, const char *path);
/* The backend's folder, and the one of the domain if it was the last in there. */
int xen_store_remove_backend(struct xen_store *s, const struct xen_path *path);
/* See struct xen_lib. */
int xen_store_permit(struct xen_store *s, const char *path, uint32_t owner, uint32_t reader);
int xen_store_list(struct xen_store *s, const char *path,
		   void (*fn)(void *opaque, const char *name), void *opaque);

/*
 * All that @fn reads and writes at once, or nothing if it fails; tried again when others
 * were in between. 0, or the first error.
 */
int xen_store_transact(struct xen_store *s, int (*fn)(struct xen_store *s, void *opaque),
		       void *opaque);

#endif
