/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a Xen block frontend and its backend agree on, as numbers and offsets: the
 * ring's layout for each kind of frontend, operations, answers, states. Facts of Xen's
 * public headers, which module/xen.c holds them against; here they are written down so
 * that everything but that module is built and tested without Xen.
 */
#ifndef COWD_XEN_ABI_H
#define COWD_XEN_ABI_H

#include <stdint.h>

#define XEN_PAGE 4096u
#define XEN_SECTOR 512u
#define XEN_SECTOR_LARGE 4096u	/* for frontends that say that they know larger ones */

/* Offsets in the first page of a ring; entries follow, as many as fit, a power of two. */
#define XEN_RING_REQ_PROD 0
#define XEN_RING_REQ_EVENT 4
#define XEN_RING_RSP_PROD 8
#define XEN_RING_RSP_EVENT 12
#define XEN_RING_ENTRIES 64

enum xen_op {
	XEN_OP_READ = 0,
	XEN_OP_WRITE = 1,
	XEN_OP_BARRIER = 2,
	XEN_OP_FLUSH = 3,
	XEN_OP_DISCARD = 5,
	XEN_OP_INDIRECT = 6,
};

#define XEN_RSP_OKAY 0
#define XEN_RSP_ERROR (-1)
#define XEN_RSP_EOPNOTSUPP (-2)

#define XEN_DISCARD_SECURE 1u

#define XEN_SEGS 11		/* in a request itself */
#define XEN_PAGE_SEGS (XEN_PAGE / sizeof(struct xen_seg))	/* in a page of an indirect one */

/* The same for all frontends. */
struct xen_seg {
	uint32_t ref;
	uint8_t first, last;	/* sectors of the page, both included */
	uint16_t pad;
};

/*
 * Offsets in a request; the operation is at 0 and the count of segments, the flag of a
 * discard or the operation behind an indirect request at 1, an indirect count at 2.
 */
struct xen_layout {
	const char *protocol;	/* as the frontend names it */
	uint8_t entry;		/* bytes of an entry of the ring */
	uint8_t response;	/* bytes of a response: id 8, operation 1, pad 1, status 2 */
	uint8_t id, sector;
	uint8_t segs;
	uint8_t discard_count;
	uint8_t indirect_refs;
};

#define XEN_ENTRY_MAX 112

enum xen_abi { XEN_ABI_X86_32, XEN_ABI_X86_64, XEN_ABI_ARM, XEN_ABIS };

extern const struct xen_layout xen_layouts[XEN_ABIS];	/* xen-ring.c */

#if defined(__i386__)
#define XEN_ABI_NATIVE XEN_ABI_X86_32
#elif defined(__arm__) || defined(__aarch64__)
#define XEN_ABI_NATIVE XEN_ABI_ARM
#else
#define XEN_ABI_NATIVE XEN_ABI_X86_64
#endif

/* Of the node "state" of either end. */
enum xen_state {
	XEN_ABSENT = 0,
	XEN_INITIALISING = 1,
	XEN_INIT_WAIT = 2,
	XEN_INITIALISED = 3,
	XEN_CONNECTED = 4,
	XEN_CLOSING = 5,
	XEN_CLOSED = 6,
	XEN_RECONFIGURING = 7,
	XEN_RECONFIGURED = 8,
};

/* Bits of the node "info". */
#define XEN_INFO_CDROM 1u
#define XEN_INFO_REMOVABLE 2u
#define XEN_INFO_READONLY 4u

#endif
