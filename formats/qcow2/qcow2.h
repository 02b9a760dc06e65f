/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qcow2 on disk, versions 2 and 3, as QEMU's docs/interop/qcow2 describes it.
 * Numbers only; what they mean to the plugin is in qcow2-priv.h. All integers
 * are big endian.
 */
#ifndef QCOW2_H
#define QCOW2_H

#include <stdint.h>

#define QCOW2_MAGIC		0x514649fbu	/* "QFI\xfb" */

/* Offsets of header fields */
#define QCOW2_H_MAGIC		0
#define QCOW2_H_VERSION		4
#define QCOW2_H_BACKING_OFF	8
#define QCOW2_H_BACKING_LEN	16
#define QCOW2_H_CLUSTER_BITS	20
#define QCOW2_H_SIZE		24
#define QCOW2_H_CRYPT		32	/* one of QCOW2_CRYPT_ */
#define QCOW2_H_L1_SIZE		36
#define QCOW2_H_L1_OFF		40
#define QCOW2_H_REFTABLE_OFF	48
#define QCOW2_H_REFTABLE_CLS	56
#define QCOW2_H_NB_SNAPSHOTS	60
#define QCOW2_H_SNAPSHOTS_OFF	64
#define QCOW2_H_V2_BYTES	72	/* version 2 ends here */
#define QCOW2_H_INCOMPAT	72
#define QCOW2_H_COMPAT		80
#define QCOW2_H_AUTOCLEAR	88
#define QCOW2_H_REFCOUNT_ORDER	96
#define QCOW2_H_LENGTH		100
#define QCOW2_H_V3_BYTES	104	/* the least of version 3 */
#define QCOW2_H_COMPRESSION	104
#define QCOW2_H_BYTES		112	/* as we write it */

#define QCOW2_INCOMPAT_DIRTY	(1ULL << 0)	/* refcounts may be wrong */
#define QCOW2_INCOMPAT_CORRUPT	(1ULL << 1)	/* not to be written before a repair */
#define QCOW2_INCOMPAT_DATAFILE	(1ULL << 2)
#define QCOW2_INCOMPAT_COMPTYPE	(1ULL << 3)
#define QCOW2_INCOMPAT_EXTL2	(1ULL << 4)
#define QCOW2_INCOMPAT_KNOWN	0x1fULL
#define QCOW2_COMPAT_LAZY	(1ULL << 0)
#define QCOW2_AUTOCLEAR_BITMAPS	(1ULL << 0)
#define QCOW2_AUTOCLEAR_RAW	(1ULL << 1)	/* the data file alone reads as the disk */
/*
 * Ours: a session of writing is going on, or was killed; its number is in the
 * extension below. Any other program clears this bit before it writes.
 */
#define QCOW2_AUTOCLEAR_SESSION	(1ULL << 63)

/* Methods of encryption. The number of a sector is that in the disk for AES, that in the file for LUKS. */
#define QCOW2_CRYPT_NONE	0u
#define QCOW2_CRYPT_AES		1u
#define QCOW2_CRYPT_LUKS	2u

/* Header extensions: type, length, data, padded to 8 bytes */
#define QCOW2_EXT_END		0x00000000u
#define QCOW2_EXT_BACKING_FMT	0xe2792acau
#define QCOW2_EXT_FEATURES	0x6803f857u
#define QCOW2_EXT_BITMAPS	0x23852875u
#define QCOW2_EXT_DATA_FILE	0x44415441u	/* its name */
#define QCOW2_EXT_LUKS		0x0537be77u	/* place and length of a LUKS header */
#define QCOW2_EXT_SESSION	0x636f7764u	/* "cowd": 8 bytes; put there by create */
#define QCOW2_EXT_FREE		0x636f7766u	/* "cowf": means nothing, and is the place of one to come */
#define QCOW2_EXT_BITMAPS_BYTES	24u
#define QCOW2_FEATURE_BYTES	48u		/* type, bit, name[46] */

/* Entries */
#define QCOW2_OFFSET_MASK	0x00fffffffffffe00ULL	/* of L1, L2 and refcount table entries */
#define QCOW2_L1_RESERVED	0x7f000000000001ffULL	/* bits without a meaning */
#define QCOW2_L2_RESERVED	0x3f000000000001feULL	/* of entries that are not compressed */
#define QCOW2_COPIED		(1ULL << 63)		/* refcount is exactly 1 */
#define QCOW2_COMPRESSED	(1ULL << 62)
#define QCOW2_ZERO		(1ULL << 0)		/* not with extended entries */
#define QCOW2_SUBCLUSTERS	32u

/* Limits: those of QEMU, so that neither program makes what the other refuses. */
#define QCOW2_CLUSTER_BITS_MIN	9u
#define QCOW2_CLUSTER_BITS_MAX	21u
#define QCOW2_EXTL2_BITS_MIN	14u
#define QCOW2_L1_BYTES_MAX	(32u << 20)
#define QCOW2_REFTABLE_BYTES_MAX (8u << 20)
#define QCOW2_REFCOUNT_ORDER_MAX 6u
#define QCOW2_SNAPSHOTS_MAX	65536u
#define QCOW2_SNAPTABLE_MAX	(64u << 20)
#define QCOW2_SNAP_EXTRA_MAX	1024u
#define QCOW2_BITMAPS_MAX	65535u
#define QCOW2_BITMAPDIR_MAX	(64u << 20)
#define QCOW2_BITMAP_NAME_MAX	1023u
#define QCOW2_BITMAP_TABLE_MAX	(64u << 20)	/* bytes */
#define QCOW2_LUKS_MAX		(16u << 20)	/* bytes of the LUKS header; QEMU makes 2 MiB at most */
#define QCOW2_BACKING_MAX	1023u		/* of a data file's name, too */
#define QCOW2_HOST_MAX		(1ULL << 56)	/* host offsets are below */
#define QCOW2_SIZE_UNIT		512u		/* QEMU does not see the rest of an image of another size */

/* Snapshot table entry: fixed part */
#define QCOW2_SNAP_L1_OFF	0
#define QCOW2_SNAP_L1_SIZE	8
#define QCOW2_SNAP_ID_LEN	12
#define QCOW2_SNAP_NAME_LEN	14
#define QCOW2_SNAP_DATE		16
#define QCOW2_SNAP_VMSTATE	32
#define QCOW2_SNAP_EXTRA_LEN	36
#define QCOW2_SNAP_BYTES	40
#define QCOW2_SNAP_EXTRA_SIZE	8	/* in the extra data: virtual size */

/* Bitmap directory entry: fixed part; extra data, the name, and padding to 8 bytes follow */
#define QCOW2_BM_TABLE_OFF	0
#define QCOW2_BM_TABLE_SIZE	8		/* entries: places of clusters, as those of L1 tables */
#define QCOW2_BM_FLAGS		12
#define QCOW2_BM_TYPE		16
#define QCOW2_BM_GRANULARITY	17		/* log2 of bytes */
#define QCOW2_BM_NAME_LEN	18
#define QCOW2_BM_EXTRA_LEN	20
#define QCOW2_BM_BYTES		24

#define QCOW2_BM_IN_USE		(1u << 0)	/* what is stored may be wrong */
#define QCOW2_BM_AUTO		(1u << 1)	/* whoever writes to the disk has to record it */
#define QCOW2_BM_EXTRA_OK	(1u << 2)	/* may be used without knowing its extra data */
#define QCOW2_BM_DIRTY_TRACKING	1u		/* type */
#define QCOW2_BM_ONES		(1ULL << 0)	/* table entry without a place: all bits are set */

#endif
