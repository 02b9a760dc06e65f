/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The conversation between the device-mapper target "userspace" and the daemon
 * that answers for it, over the control node /dev/dm-userspace.
 *
 * Both directions carry a stream of records, each beginning with struct
 * dmu_head and a multiple of 8 bytes long. A read() returns whole records only,
 * as many as fit; a write() takes whole records only and either takes a record
 * or, on a bad one, stops before it (the result is what was taken before, or
 * -errno if that is nothing). Structures have the same layout for 32 and 64 bit
 * processes; integers are of the machine's byte order; padding must be zero.
 *
 * Units are sectors of 512 bytes throughout. "Device position" is a sector of
 * one of the table's devices, which are named by their index in the table.
 * Errors are negative errno values.
 *
 * An opening of the node needs CAP_SYS_ADMIN. It first says DMU_HELLO with the
 * key of a target, and from then on talks about that target alone.
 */
#ifndef _LINUX_DM_USERSPACE_H
#define _LINUX_DM_USERSPACE_H

#include <linux/types.h>

#define DMU_ABI			1
#define DMU_NODE		"dm-userspace"	/* below /dev */
#define DMU_KEY_MAX		128		/* bytes, terminating zero included */
#define DMU_DEVICES_MAX		64
#define DMU_PLANES_MAX		8
#define DMU_SECTION_SHIFT	16		/* a section: 2^16 sectors, 32 MiB, naturally aligned */
#define DMU_SECTION_SECTORS	(1u << DMU_SECTION_SHIFT)
#define DMU_GRANULE_SHIFT_MIN	3		/* 4 KiB: at most 8192 presence bits a section */
#define DMU_BITS_BYTES_MAX	(DMU_SECTION_SECTORS >> DMU_GRANULE_SHIFT_MIN >> 3)	/* 1024 */
#define DMU_RECORD_MAX		16384		/* bytes; a read() with less room may fail with EMSGSIZE */
#define DMU_DEV_ZERO		0xffffu		/* device index: reads as zeroes, nothing stored */

struct dmu_head {
	__u32 type;		/* DMU_* */
	__u32 size;		/* bytes of the record, this header included */
	__u64 id;		/* of the request that this is or answers; 0: unasked */
};

/* ---- from the daemon ---- */

#define DMU_HELLO	1	/* struct dmu_hello; answered by DMU_INFO */
#define DMU_SECTION	2	/* struct dmu_section: answers DMU_ASK, or unasked */
#define DMU_BLOCKS	3	/* struct dmu_blocks: answers DMU_ASK, or unasked */
#define DMU_RESULT	4	/* struct dmu_result: ends DMU_ASK with an error, DMU_CHANGE, DMU_COMMIT */
#define DMU_ACK		5	/* struct dmu_head: the DMU_WRITTEN of this id is recorded */
#define DMU_REVOKE	6	/* struct dmu_range: forget it; answered by DMU_REVOKED with the same id */
#define DMU_LEAVE	7	/* struct dmu_head: planned hand-over. No new requests for this opening; what
				 * it has not answered goes to the next one. DMU_LEFT follows */
#define DMU_DATA	8	/* struct dmu_data: answers DMU_ASK of a read with the bytes themselves */

/* ---- from the kernel ---- */

#define DMU_INFO	65	/* struct dmu_info and its devices */
#define DMU_ASK		66	/* struct dmu_ask: where does this live? */
#define DMU_CHANGE	67	/* struct dmu_ask: zero or discard it; answered by DMU_RESULT */
#define DMU_WRITTEN	68	/* struct dmu_written: became present; answered by DMU_ACK */
#define DMU_COMMIT	69	/* struct dmu_commit: make durable; answered by DMU_RESULT */
#define DMU_REVOKED	70	/* struct dmu_head: nothing in the kernel uses that range any more */
#define DMU_LEFT	71	/* struct dmu_head: last record of this opening; then read() returns 0 */
#define DMU_CHANGED	72	/* struct dmu_info again: the table was reloaded */

#define DMU_F_SECTIONS	(1u << 0)	/* features */
#define DMU_F_BLOCKS	(1u << 1)
#define DMU_F_CHANGES	(1u << 2)
#define DMU_F_PLACES	(1u << 3)	/* DMU_WRITTEN of blocks says where they are */
#define DMU_FEATURES	(DMU_F_SECTIONS | DMU_F_BLOCKS | DMU_F_CHANGES | DMU_F_PLACES)

struct dmu_hello {
	struct dmu_head head;
	__u32 abi;		/* DMU_ABI; others: -EPROTO */
	__u32 features;		/* what the daemon can answer; unknown bits: -EPROTO */
	__u32 flags;		/* DMU_HELLO_* */
	__u32 pad;
	char key[DMU_KEY_MAX];	/* no such target: -ENODEV. Another daemon has it: -EBUSY */
};
#define DMU_HELLO_WAIT	(1u << 0)	/* another daemon has it: take over when it says DMU_LEAVE or dies */

struct dmu_device {
	__u32 major, minor;
	__u32 flags;		/* DMU_DEVICE_WRITABLE */
	__u32 pad;
	__u64 sectors;
};
#define DMU_DEVICE_WRITABLE	(1u << 0)

struct dmu_info {
	struct dmu_head head;
	__u32 abi, features;	/* features: what both sides know */
	__u32 devices;		/* struct dmu_device that follow */
	__u32 block;		/* sectors; a power of two */
	__u64 sectors;		/* of the target */
	__u64 epoch;		/* of the last DMU_COMMIT that was answered with success */
	__u32 flags;		/* DMU_INFO_* */
	__u32 pad;
};
#define DMU_INFO_READONLY	(1u << 0)	/* the node is read-only */
#define DMU_INFO_UNCOMMITTED	(1u << 1)	/* something was written since that epoch */

/*
 * DMU_ASK: @op is DMU_OP_READ or DMU_OP_WRITE; the range is whole blocks (the end of the
 * target aside) and does not cross a section. The answer must cover @start, and
 * should cover as much of its section as is known. @at, @need: what the first bio that waits wants
 * of it.
 * DMU_CHANGE: DMU_OP_ZERO must read as zeroes afterwards; DMU_OP_DISCARD as well, or
 * may keep what is not whole granules. The range does not cross a section; when
 * the section is remembered the range is whole granules of it, which are present
 * once the answer is 0. When none is remembered, the kernel asks for it first. What was written
 * in the range before is reported by DMU_WRITTEN before it.
 */
struct dmu_ask {
	struct dmu_head head;
	__u32 op;		/* DMU_OP_* */
	__u32 sectors;
	__u64 start;
	__u64 at;
	__u32 need;		/* sectors */
	__u32 pad;
};
#define DMU_OP_READ	0
#define DMU_OP_WRITE	1
#define DMU_OP_ZERO	2
#define DMU_OP_DISCARD	3

/*
 * DMU_SECTION: where everything in one section is, as planes on top of one
 * another. A granule is read from the first plane that has it: that is not
 * behind @limit, and has no bits or the granule's bit set. What no plane has reads as
 * zeroes. With DMU_SECTION_WRITE, plane 0 takes all writes: granules that it
 * lacks are completed from the planes below by the kernel, become present in it,
 * and are reported by DMU_WRITTEN. Without it, each write is asked for by DMU_ASK.
 *
 * Followed by a struct dmu_plane each, then by the bits of those with
 * DMU_PLANE_BITS, in order: bit i of the section's granule i is bit i % 8 of byte i / 8,
 * (granules + 63) / 64 * 8 bytes each, where granules are @sectors / granule, rounded up. A section
 * at the target's end is described as far as it goes; its last granule may be shorter.
 * With DMU_SECTION_WRITE, plane 0 is on a writable device, its @limit is @sectors, and no other
 * plane overlaps it there.
 *
 * An answer for a section that is remembered already is ignored where it is older than the
 * kernel's knowledge: bits only grow, planes of the same device and position are kept. A different
 * layout needs DMU_REVOKE first (-EEXIST). While a section is being revoked nothing can be
 * remembered for it (-EBUSY): the answer has to be given after DMU_REVOKED.
 */
struct dmu_section {
	struct dmu_head head;
	__u64 start;		/* a multiple of DMU_SECTION_SECTORS */
	__u32 sectors;		/* DMU_SECTION_SECTORS, or up to the target's end */
	__u16 planes;		/* 1 .. DMU_PLANES_MAX */
	__u8  granule_shift;	/* 2^n sectors; DMU_GRANULE_SHIFT_MIN .. DMU_SECTION_SHIFT */
	__u8  flags;		/* DMU_SECTION_* */
};
#define DMU_SECTION_WRITE	(1u << 0)

struct dmu_plane {
	__u64 position;		/* device position of the section's first sector */
	__u32 limit;		/* sectors of the section that this plane can have */
	__u16 dev;		/* index, or DMU_DEV_ZERO */
	__u16 flags;		/* DMU_PLANE_* */
};
#define DMU_PLANE_BITS	(1u << 0)	/* has the granules whose bits follow; else all up to @limit */

/*
 * DMU_BLOCKS: where a run of blocks is, side by side at one place. The range is
 * whole blocks (the target's end aside) within one section that is not known as DMU_SECTION.
 * DMU_BLOCKS_READ and _WRITE say what the answer is valid for; a write to blocks with only _READ asks
 * again. DMU_BLOCKS_COPY (with _WRITE, for an answer to a write): before the block is usable, what the
 * write does not cover is copied from @from_dev; then it is reported by DMU_WRITTEN. Such an
 * answer stays within what was asked. Blocks of it that in the end are not written stay unknown.
 * DMU_BLOCKS_TEMPORARY: good for the request only, not remembered; not with _COPY. It may be given
 * for a section that is known as DMU_SECTION, too.
 * DMU_BLOCKS_CHANGED: what the daemon did for this answer is not durable yet, so the next flush
 * asks for a DMU_COMMIT even if nothing else changes.
 * A device may have grown since the table was loaded: its size now is what counts.
 */
struct dmu_blocks {
	struct dmu_head head;
	__u64 start;
	__u32 sectors;
	__u32 flags;		/* DMU_BLOCKS_* */
	__u64 position;		/* device position of @start */
	__u64 from;		/* DMU_BLOCKS_COPY: the same in @from_dev */
	__u16 dev, from_dev;	/* index, or DMU_DEV_ZERO (@dev: only with _READ) */
	__u32 pad;
};
#define DMU_BLOCKS_READ		(1u << 0)
#define DMU_BLOCKS_WRITE	(1u << 1)
#define DMU_BLOCKS_COPY		(1u << 2)
#define DMU_BLOCKS_TEMPORARY	(1u << 3)
#define DMU_BLOCKS_CHANGED	(1u << 4)

/*
 * DMU_DATA: what @sectors from @start on read as; they follow. For places that no device has as
 * they are read: compressed ones, or a block of several pieces. Covers dmu_ask.at, for a
 * question about reading; a bio that goes on behind it asks again. Nothing is remembered.
 */
struct dmu_data {
	struct dmu_head head;
	__u64 start;
	__u32 sectors;		/* 1 .. DMU_DATA_SECTORS_MAX */
	__u32 pad;
};
#define DMU_DATA_SECTORS_MAX	((DMU_RECORD_MAX - 32) / 512)

struct dmu_result {
	struct dmu_head head;
	__s32 error;		/* 0 or -errno */
	__u32 pad;
};

struct dmu_range {
	struct dmu_head head;
	__u64 start, sectors;	/* any; whole sections are affected */
};

/*
 * DMU_WRITTEN: granules (blocks, where the section is known by DMU_BLOCKS) that the
 * kernel completed. Their bits follow as in struct dmu_section, the first for @start.
 * Repeated to the next daemon until DMU_ACK; recording it twice must do no harm. A DMU_SECTION that is
 * written after DMU_ACK must have the granules.
 *
 * With DMU_F_PLACES, of a section known by DMU_BLOCKS: the bits are followed by a __u64 for each that is
 * set, in order, which says where the block is: DMU_PLACE_AT, the device position, and from
 * DMU_PLACE_DEV_SHIFT on the device's index. Such a record is about DMU_PLACES_MAX blocks at most.
 */
struct dmu_written {
	struct dmu_head head;
	__u64 start;		/* a multiple of 64 granules */
	__u32 sectors;
	__u8  granule_shift;
	__u8  pad[3];
};
#define DMU_PLACES_MAX		256u	/* a multiple of 64 */
#define DMU_PLACE_DEV_SHIFT	48
#define DMU_PLACE_AT		((1ull << DMU_PLACE_DEV_SHIFT) - 1)

/*
 * DMU_COMMIT: everything that DMU_WRITTEN and DMU_CHANGE reported before it in the stream, and
 * its data, must be durable before the answer. Flushes of the node wait for it.
 */
struct dmu_commit {
	struct dmu_head head;
	__u64 epoch;
};

#endif
