// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowd-xen.so: Xen's libraries behind struct xen_lib, which says what each function
 * promises. The only file that knows libxenstore, libxengnttab and libxenevtchn, and the
 * one where our own table of the protocol is held against Xen's headers.
 */
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <xenevtchn.h>
#include <xengnttab.h>
#include <xenstore.h>
#include <xentoollog.h>

#define xen_mb()
#define xen_rmb()
#define xen_wmb()
#include <xen/io/blkif.h>
#include <xen/io/protocols.h>
#include <xen/io/xenbus.h>

#include "cow/log.h"
#include "cow/opt.h"
#include "cowd/xen-lib.h"

#define COPIES 512u	/* at a time */

/* ---- our table and Xen's ---- */

static_assert(XEN_OP_READ == BLKIF_OP_READ && XEN_OP_WRITE == BLKIF_OP_WRITE &&
	      XEN_OP_BARRIER == BLKIF_OP_WRITE_BARRIER && XEN_OP_FLUSH == BLKIF_OP_FLUSH_DISKCACHE &&
	      XEN_OP_DISCARD == BLKIF_OP_DISCARD && XEN_OP_INDIRECT == BLKIF_OP_INDIRECT, "operations");
static_assert(XEN_RSP_OKAY == BLKIF_RSP_OKAY && XEN_RSP_ERROR == BLKIF_RSP_ERROR &&
	      XEN_RSP_EOPNOTSUPP == BLKIF_RSP_EOPNOTSUPP, "answers");
static_assert(XEN_SEGS == BLKIF_MAX_SEGMENTS_PER_REQUEST &&
	      XEN_DISCARD_SECURE == BLKIF_DISCARD_SECURE, "limits and flags");
static_assert(XEN_INFO_CDROM == VDISK_CDROM && XEN_INFO_REMOVABLE == VDISK_REMOVABLE &&
	      XEN_INFO_READONLY == VDISK_READONLY, "info");
static_assert(XEN_INITIALISING == (int)XenbusStateInitialising &&
	      XEN_INIT_WAIT == (int)XenbusStateInitWait &&
	      XEN_INITIALISED == (int)XenbusStateInitialised &&
	      XEN_CONNECTED == (int)XenbusStateConnected && XEN_CLOSING == (int)XenbusStateClosing &&
	      XEN_CLOSED == (int)XenbusStateClosed, "states");
static_assert(XEN_RING_REQ_PROD == offsetof(struct blkif_sring, req_prod) &&
	      XEN_RING_REQ_EVENT == offsetof(struct blkif_sring, req_event) &&
	      XEN_RING_RSP_PROD == offsetof(struct blkif_sring, rsp_prod) &&
	      XEN_RING_RSP_EVENT == offsetof(struct blkif_sring, rsp_event) &&
	      XEN_RING_ENTRIES == offsetof(struct blkif_sring, ring), "the ring's head");
static_assert(sizeof(struct xen_seg) == sizeof(struct blkif_request_segment) &&
	      offsetof(struct xen_seg, first) == offsetof(struct blkif_request_segment, first_sect) &&
	      offsetof(struct xen_seg, last) == offsetof(struct blkif_request_segment, last_sect),
	      "segments");

/* The layout of this machine's own frontends; those of others differ in alignment alone. */
#if defined(__x86_64__) || defined(__aarch64__)
#define OWN_ENTRY 112
#define OWN_RESPONSE 16
#define OWN_ID 8
#define OWN_SECTOR 16
#define OWN_SEGS 24
#define OWN_REFS 28
#elif defined(__i386__)
#define OWN_ENTRY 108
#define OWN_RESPONSE 12
#define OWN_ID 4
#define OWN_SECTOR 12
#define OWN_SEGS 20
#define OWN_REFS 24
#endif
#ifdef OWN_ENTRY
static_assert(sizeof(union blkif_sring_entry) == OWN_ENTRY &&
	      sizeof(struct blkif_response) == OWN_RESPONSE &&
	      offsetof(struct blkif_request, id) == OWN_ID &&
	      offsetof(struct blkif_request, sector_number) == OWN_SECTOR &&
	      offsetof(struct blkif_request, seg) == OWN_SEGS &&
	      offsetof(struct blkif_request_discard, id) == OWN_ID &&
	      offsetof(struct blkif_request_discard, nr_sectors) == OWN_SEGS &&
	      offsetof(struct blkif_request_indirect, nr_segments) == 2 &&
	      offsetof(struct blkif_request_indirect, id) == OWN_ID &&
	      offsetof(struct blkif_request_indirect, indirect_grefs) == OWN_REFS &&
	      offsetof(struct blkif_response, operation) == 8 &&
	      offsetof(struct blkif_response, status) == 10, "requests and responses");
#endif

/* 0, or -errno of a call that said false; a library that says no more is an -EIO. */
static int failure(void)
{
	return errno ? -errno : -EIO;
}

static int result(bool ok)
{
	return ok ? 0 : failure();
}

/* ---- what the libraries tell of ---- */

/* A guest can make them complain, of references that it did not grant for one. */
static void __attribute__((format(printf, 5, 0)))
on_message(struct xentoollog_logger *logger, xentoollog_level level, int errnoval,
	   const char *context, const char *format, va_list al)
{
	char text[256];

	(void)logger;
	(void)level;
	vsnprintf(text, sizeof(text), format, al);
	cow_log_limited(COW_LOG_DEBUG, "%s: %s%s%s", context ? context : "xen", text,
			errnoval > 0 ? ": " : "", errnoval > 0 ? strerror(errnoval) : "");
}

static void on_destroy(struct xentoollog_logger *logger)
{
	(void)logger;
}

static struct xentoollog_logger logger_of_ours = {
	.vmessage = on_message, .destroy = on_destroy,
};

/* ---- xenstore ---- */

static int store_open(void **ret)
{
	struct xs_handle *xs;

	errno = 0;
	xs = xs_open(0);
	if (!xs)
		return failure();
	*ret = xs;
	return 0;
}

static void store_close(void *store)
{
	xs_close(store);
}

static int store_fd(void *store)
{
	return xs_fileno(store);
}

static int store_read(void *store, uint32_t tx, const char *path, char *buf, size_t size)
{
	unsigned len = 0;
	char *value;
	int rc = 0;

	errno = 0;
	value = xs_read(store, tx, path, &len);
	if (!value)
		return failure();
	if (len >= size)
		rc = -ERANGE;
	else
		snprintf(buf, size, "%s", value);
	free(value);
	return rc;
}

static int store_write(void *store, uint32_t tx, const char *path, const char *value)
{
	errno = 0;
	return result(xs_write(store, tx, path, value, (unsigned)strlen(value)));
}

static int store_remove(void *store, uint32_t tx, const char *path)
{
	errno = 0;
	return result(xs_rm(store, tx, path));
}

static int store_permit(void *store, uint32_t tx, const char *path, uint32_t owner, uint32_t reader)
{
	struct xs_permissions perms[2] = {
		{ .id = owner, .perms = XS_PERM_NONE }, { .id = reader, .perms = XS_PERM_READ },
	};

	errno = 0;
	return result(xs_set_permissions(store, tx, path, perms, COW_ARRAY_SIZE(perms)));
}

static int store_list(void *store, uint32_t tx, const char *path,
		      void (*fn)(void *opaque, const char *name), void *opaque)
{
	unsigned n = 0;
	char **names;

	errno = 0;
	names = xs_directory(store, tx, path, &n);
	if (!names)
		return failure();
	for (unsigned i = 0; i < n; i++)
		fn(opaque, names[i]);
	free(names);
	return 0;
}

static int store_watch(void *store, const char *path, const char *token)
{
	errno = 0;
	return result(xs_watch(store, path, token));
}

static int store_event(void *store)
{
	char **event;

	errno = 0;
	event = xs_check_watch(store);
	if (!event)
		return errno == EAGAIN ? 0 : failure();
	free(event);
	return 1;
}

static int store_begin(void *store, uint32_t *ret_tx)
{
	xs_transaction_t tx;

	errno = 0;
	tx = xs_transaction_start(store);
	if (tx == XBT_NULL)
		return failure();
	*ret_tx = tx;
	return 0;
}

static int store_end(void *store, uint32_t tx, bool abort)
{
	errno = 0;
	return result(xs_transaction_end(store, tx, abort));
}

/* ---- grants ---- */

static int grants_open(void **ret)
{
	xengnttab_handle *h;

	errno = 0;
	h = xengnttab_open(&logger_of_ours, 0);
	if (!h)
		return failure();
	*ret = h;
	return 0;
}

static void grants_close(void *grants)
{
	xengnttab_close(grants);
}

static int grants_map(void *grants, uint32_t domain, const uint32_t *refs, unsigned n, void **ret)
{
	uint32_t copy[XEN_RING_PAGES_MAX];
	void *mem;

	cow_assert(n <= XEN_RING_PAGES_MAX);
	memcpy(copy, refs, n * sizeof(copy[0]));
	errno = 0;
	mem = xengnttab_map_domain_grant_refs(grants, n, domain, copy, PROT_READ | PROT_WRITE);
	if (!mem)
		return failure();
	*ret = mem;
	return 0;
}

static void grants_unmap(void *grants, void *mem, unsigned n)
{
	xengnttab_unmap(grants, mem, n);
}

static void to_segment(const struct xen_copy *c, uint16_t domain, xengnttab_grant_copy_segment_t *seg)
{
	union xengnttab_copy_ptr ours = { .virt = c->ours };
	union xengnttab_copy_ptr theirs = {
		.foreign = { .ref = c->ref, .offset = c->offset, .domid = domain },
	};

	*seg = (xengnttab_grant_copy_segment_t){
		.source = c->to_guest ? ours : theirs,
		.dest = c->to_guest ? theirs : ours,
		.len = c->len,
		.flags = c->to_guest ? GNTCOPY_dest_gref : GNTCOPY_source_gref,
		/* Those behind one that the kernel does not like keep this. */
		.status = GNTST_general_error,
	};
}

static void grants_copy(void *grants, uint32_t domain, struct xen_copy *copies, unsigned n)
{
	static xengnttab_grant_copy_segment_t segs[COPIES];
	unsigned done, part, i;
	bool ok;

	for (done = 0; done < n; done += part) {
		part = (unsigned)cow_min(n - done, COPIES);
		for (i = 0; i < part; i++)
			to_segment(&copies[done + i], (uint16_t)domain, &segs[i]);
		ok = xengnttab_grant_copy(grants, part, segs) == 0;
		for (i = 0; i < part; i++)
			copies[done + i].ok = ok && segs[i].status == GNTST_okay;
	}
}

/* ---- event channels ---- */

static int events_open(uint32_t domain, void **ret)
{
	xenevtchn_handle *h;

	errno = 0;
	h = xenevtchn_open(&logger_of_ours, 0);
	if (!h)
		return failure();
	/* A precaution that old kernels do not know. */
	xenevtchn_restrict(h, (domid_t)domain);
	*ret = h;
	return 0;
}

static void events_close(void *events)
{
	xenevtchn_close(events);
}

static int events_fd(void *events)
{
	return xenevtchn_fd(events);
}

static int events_bind(void *events, uint32_t domain, uint32_t port)
{
	int ours;

	errno = 0;
	ours = xenevtchn_bind_interdomain(events, domain, port);
	return ours < 0 ? failure() : ours;
}

static int events_unbind(void *events, int port)
{
	errno = 0;
	return result(xenevtchn_unbind(events, (evtchn_port_t)port) == 0);
}

static int events_notify(void *events, int port)
{
	errno = 0;
	return result(xenevtchn_notify(events, (evtchn_port_t)port) == 0);
}

static int events_pending(void *events)
{
	int port;

	errno = 0;
	port = xenevtchn_pending(events);
	return port < 0 ? failure() : port;
}

static int events_unmask(void *events, int port)
{
	errno = 0;
	return result(xenevtchn_unmask(events, (evtchn_port_t)port) == 0);
}

/* ---- the table ---- */

const struct cow_module *cow_module_register(void)
{
	static struct xen_lib lib = {
		.module = { .size = sizeof(lib) },
		.store_open = store_open,
		.store_close = store_close,
		.store_fd = store_fd,
		.store_read = store_read,
		.store_write = store_write,
		.store_remove = store_remove,
		.store_permit = store_permit,
		.store_list = store_list,
		.store_watch = store_watch,
		.store_event = store_event,
		.store_begin = store_begin,
		.store_end = store_end,
		.grants_open = grants_open,
		.grants_close = grants_close,
		.grants_map = grants_map,
		.grants_unmap = grants_unmap,
		.grants_copy = grants_copy,
		.events_open = events_open,
		.events_close = events_close,
		.events_fd = events_fd,
		.events_bind = events_bind,
		.events_unbind = events_unbind,
		.events_notify = events_notify,
		.events_pending = events_pending,
		.events_unmask = events_unmask,
	};

	lib.module.version = cow_version;
	return &lib.module;
}
