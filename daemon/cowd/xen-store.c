// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reading and writing of xenstore's nodes (see xen-store.h). Watches carry no meaning but
 * "look again": who looks, looks at all he wants to know, so that events neither pile up
 * nor tell him stale news.
 */
#include "xen-store.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#define TRIES 64		/* of a transaction; others do not change what we change for long */
#define EVENTS 4096		/* taken at a time, so that other things get their turn */
#define DOMAIN_MAX 0x7fefu	/* the last number of a domain that can have devices */
#define STATE_MAX XEN_RECONFIGURED
#define NUMBER_MAX 24		/* bytes of a number, terminating zero included */

struct xen_store {
	const struct xen_lib *lib;
	void *handle;
	uint32_t tx;		/* 0: no transaction is under way */
};

/* ---- paths and numbers ---- */

bool xen_parse_number(const char *text, uint64_t max, uint64_t *ret)
{
	const char *p = text;
	uint64_t v = 0;

	if (*p == '0' && p[1])
		return false;
	for (; *p >= '0' && *p <= '9'; p++)
		if (!cow_mul_ok(v, 10, &v) || !cow_add_ok(v, (uint64_t)(*p - '0'), &v))
			return false;
	if (p == text || *p || v > max)
		return false;
	*ret = v;
	return true;
}

void xen_path_make(struct xen_path *p, uint32_t backend, const char *type, uint32_t domain,
		   uint32_t dev)
{
	*p = (struct xen_path){ .backend = backend, .domain = domain, .dev = dev };
	snprintf(p->type, sizeof(p->type), "%s", type);
	snprintf(p->dir, sizeof(p->dir), "/local/domain/%u/backend/%s/%u/%u", backend, p->type, domain,
		 dev);
}

static bool split_path(const char *text, char words[4][16])
{
	int end = -1;

	sscanf(text, "/local/domain/%15[0-9]/backend/%15[a-z0-9_]/%15[0-9]/%15[0-9]%n", words[0],
	       words[1], words[2], words[3], &end);
	return end > 0 && !text[end];
}

int xen_path_parse(const char *text, struct xen_path *ret, struct cow_err *err)
{
	uint64_t backend, domain, dev;
	char words[4][16];

	if (!split_path(text, words) || !xen_parse_number(words[0], DOMAIN_MAX, &backend) ||
	    !xen_parse_number(words[2], DOMAIN_MAX, &domain) ||
	    !xen_parse_number(words[3], UINT32_MAX, &dev))
		return cow_err_set(err, -EINVAL, "\"%.64s\" is not a backend's folder in xenstore: "
				   "/local/domain/BACKEND/backend/TYPE/DOMAIN/DEVICE", text);
	xen_path_make(ret, (uint32_t)backend, words[1], (uint32_t)domain, (uint32_t)dev);
	return 0;
}

/* "DIR/KEY", or DIR without a key. False: too long for xenstore. */
static bool join(char path[XEN_VALUE_MAX], const char *dir, const char *key)
{
	int n = key ? snprintf(path, XEN_VALUE_MAX, "%s/%s", dir, key)
		    : snprintf(path, XEN_VALUE_MAX, "%s", dir);

	return n > 0 && n < (int)XEN_VALUE_MAX;
}

/* ---- nodes ---- */

int xen_store_read(struct xen_store *s, const char *dir, const char *key, char *buf, size_t size)
{
	char path[XEN_VALUE_MAX];

	return join(path, dir, key) ? s->lib->store_read(s->handle, s->tx, path, buf, size)
				    : -ENAMETOOLONG;
}

int xen_store_read_number(struct xen_store *s, const char *dir, const char *key, uint64_t max,
			  uint64_t *ret)
{
	char text[NUMBER_MAX];
	int rc = xen_store_read(s, dir, key, text, sizeof(text));

	if (rc)
		return rc == -ERANGE ? -EINVAL : rc;
	return xen_parse_number(text, max, ret) ? 0 : -EINVAL;
}

int xen_store_read_number_or(struct xen_store *s, const char *dir, const char *key, uint64_t max,
			     uint64_t def, uint64_t *ret)
{
	int rc = xen_store_read_number(s, dir, key, max, ret);

	if (rc != -ENOENT)
		return rc;
	*ret = def;
	return 0;
}

int xen_store_read_state(struct xen_store *s, const char *dir)
{
	uint64_t state;
	int rc = xen_store_read_number(s, dir, "state", STATE_MAX, &state);

	if (rc)
		return rc == -ENOENT ? XEN_ABSENT : rc;
	return (int)state;
}

int xen_store_write(struct xen_store *s, const char *dir, const char *key, const char *fmt, ...)
{
	char path[XEN_VALUE_MAX], value[XEN_VALUE_MAX];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(value, sizeof(value), fmt, ap);
	va_end(ap);
	if (n < 0 || n >= (int)sizeof(value) || !join(path, dir, key))
		return -ENAMETOOLONG;
	return s->lib->store_write(s->handle, s->tx, path, value);
}

int xen_store_remove(struct xen_store *s, const char *path)
{
	return s->lib->store_remove(s->handle, s->tx, path);
}

static void note_name(void *opaque, const char *name)
{
	bool *any = opaque;

	*any |= name[0] != '\0';
}

static int remove_backend(struct xen_store *s, void *opaque)
{
	const struct xen_path *path = opaque;
	char domain[XEN_PATH_MAX];
	bool any = false;
	int rc = xen_store_remove(s, path->dir);

	if (rc)
		return rc;
	snprintf(domain, sizeof(domain), "/local/domain/%u/backend/%s/%u", path->backend, path->type,
		 path->domain);
	rc = s->lib->store_list(s->handle, s->tx, domain, note_name, &any);
	return rc || any ? rc : xen_store_remove(s, domain);
}

int xen_store_remove_backend(struct xen_store *s, const struct xen_path *path)
{
	struct xen_path copy = *path;

	return xen_store_transact(s, remove_backend, &copy);
}

int xen_store_permit(struct xen_store *s, const char *path, uint32_t owner, uint32_t reader)
{
	return s->lib->store_permit(s->handle, s->tx, path, owner, reader);
}

int xen_store_list(struct xen_store *s, const char *path,
		   void (*fn)(void *opaque, const char *name), void *opaque)
{
	return s->lib->store_list(s->handle, s->tx, path, fn, opaque);
}

int xen_store_transact(struct xen_store *s, int (*fn)(struct xen_store *s, void *opaque),
		       void *opaque)
{
	int rc = -EAGAIN, end;

	cow_assert(!s->tx);
	for (unsigned i = 0; i < TRIES && rc == -EAGAIN; i++) {
		rc = s->lib->store_begin(s->handle, &s->tx);
		if (rc)
			break;
		rc = fn(s, opaque);
		end = s->lib->store_end(s->handle, s->tx, rc != 0);
		s->tx = 0;
		if (!rc)
			rc = end;
	}
	return rc;
}

/* ---- watches ---- */

int xen_store_watch(struct xen_store *s, const char *dir, const char *key)
{
	char path[XEN_VALUE_MAX];

	return join(path, dir, key) ? s->lib->store_watch(s->handle, path, "") : -ENAMETOOLONG;
}

int xen_store_events(struct xen_store *s)
{
	int n = 0, rc = 1;

	while (n < EVENTS && (rc = s->lib->store_event(s->handle)) > 0)
		n++;
	return rc < 0 ? rc : n;
}

int xen_store_fd(struct xen_store *s)
{
	return s->lib->store_fd(s->handle);
}

/* ---- life ---- */

int xen_store_open(const struct xen_lib *lib, struct xen_store **ret, struct cow_err *err)
{
	struct xen_store *s = cow_zalloc(sizeof(*s));
	int rc = s ? lib->store_open(&s->handle) : -ENOMEM;

	if (rc) {
		cow_free(s);
		return cow_err_sys(err, rc, "xenstore");
	}
	s->lib = lib;
	*ret = s;
	return 0;
}

void xen_store_close(struct xen_store *s)
{
	if (!s)
		return;
	s->lib->store_close(s->handle);
	cow_free(s);
}
