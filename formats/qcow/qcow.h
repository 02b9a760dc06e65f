/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qcow version 1 on disk, as QEMU and Xen's blktap write it. Numbers only; what
 * they mean to the plugin is in qcow-priv.h. All integers are big endian, but
 * for the L1 table of old images of Xen.
 *
 *	header (48 bytes) | Xen's extended header or the name of the base | L1 table
 *
 * then L2 tables and clusters in any order. Nothing says which parts of the file
 * are in use but the tables.
 */
#ifndef QCOW_H
#define QCOW_H

#include <stdint.h>

#define QCOW_MAGIC		0x514649fbu	/* "QFI\xfb" */
#define QCOW_VERSION		1u

/* Offsets of header fields */
#define QCOW_H_MAGIC		0
#define QCOW_H_VERSION		4
#define QCOW_H_BACKING_OFF	8
#define QCOW_H_BACKING_LEN	16
#define QCOW_H_SIZE		24
#define QCOW_H_CLUSTER_BITS	32
#define QCOW_H_L2_BITS		33	/* two bytes of padding behind it */
#define QCOW_H_CRYPT		36
#define QCOW_CRYPT_AES		1	/* the only method */
#define QCOW_H_L1_OFF		40
#define QCOW_H_BYTES		48

/* Xen's extended header, where the L1 table begins at a multiple of 4096 */
#define QCOW_XEN_OFF		48
#define QCOW_XEN_MAGIC		0x58454efbu	/* "XEN\xfb" */
#define QCOW_XEN_FLAGS		60
#define QCOW_XEN_BYTES		16
#define QCOW_XEN_L1_BE		(1u << 1)	/* missing: the L1 table is little endian */
#define QCOW_XEN_L1_UNIT	4096u

/*
 * Ours, right before the name of the base: which format that has; and right behind
 * it the stored form of a compressed cluster of zeroes. Other programs neither look
 * there nor move a name. A rebase writes all of it to a new place.
 */
#define QCOW_RECORD_MAGIC	0x636f7764u	/* "cowd", then four zero bytes */
#define QCOW_RECORD_FORMAT	8		/* a name, filled up with zeroes */
#define QCOW_RECORD_BYTES	24u

/*
 * L2 entries: a place of a cluster; or, compressed, the length of the stored form
 * in bytes at bit 63 - cluster_bits and its place below. 0: not in this image.
 */
#define QCOW_COMPRESSED		(1ULL << 63)
#define QCOW_HOST_UNIT		512u	/* clusters and tables begin at multiples of it */

/* Limits: those of QEMU, but for the last three. */
#define QCOW_CLUSTER_BITS_MIN	9u
#define QCOW_CLUSTER_BITS_MAX	16u
#define QCOW_L2_BITS_MIN	6u
#define QCOW_L2_BITS_MAX	13u
#define QCOW_BACKING_MAX	1023u
#define QCOW_L1_MAX		(4u << 20)	/* entries: 32 MiB */
#define QCOW_SIZE_MAX		(1ULL << 56)
#define QCOW_HOST_MAX		(1ULL << 47)	/* what entries of the largest clusters can say */

#endif
