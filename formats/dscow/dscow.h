/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dscow on disk, version 1. dscow(5) is the description for people; this is
 * the same for the compiler. All integers are little endian.
 *
 *      0  header sector (struct dscow_header)
 *    512  backup of the header sector, written together with it
 *   1024  text area A: base path and base format name
 *   2560  text area B: the other one is written when the text changes
 *   4096  presence map: sectors of struct dscow_mapsec
 *   first_block (a multiple of the block size)
 *         data: virtual byte v of a present granule is at first_block + v
 *   ext_off (only with DSCOW_INCOMPAT_EXTMAP) rest of the presence map, for an
 *         image that outgrew the space before first_block
 *
 * A granule is present when its bit is set; it then hides the base. Presence
 * only ever goes from 0 to 1 while the image is in use, so a map sector that is
 * torn between two versions at a 512-byte boundary is one or the other, and
 * both are true: no journal is needed. Data first, then bits, is the only
 * order that matters. A present granule over a hole reads as zeroes.
 */
#ifndef DSCOW_H
#define DSCOW_H

#include <assert.h>
#include <stdint.h>

#define DSCOW_MAGIC		"DSCOW\r\n\x1a"	/* 8 bytes, spoilt by text-mode copies */
#define DSCOW_VERSION		1u
#define DSCOW_SECTOR		512u	/* atomic unit of the disk below */
#define DSCOW_HEADER_OFF	0u
#define DSCOW_BACKUP_OFF	512u
#define DSCOW_TEXT_OFF_A	1024u
#define DSCOW_TEXT_OFF_B	2560u
#define DSCOW_TEXT_BYTES	1536u
#define DSCOW_MAP_OFF		4096u
#define DSCOW_PATH_MAX		1023u	/* bytes of the base path */

#define DSCOW_BLOCK_MIN		4096u
#define DSCOW_BLOCK_MAX		(16u << 20)
#define DSCOW_BLOCK_DEFAULT	65536u
#define DSCOW_GRANULE_MIN	4096u	/* a page: what the kernel target and the page cache move */
#define DSCOW_GRANULE_DEFAULT	4096u
#define DSCOW_SIZE_MAX		(1ULL << 56)	/* bytes; first_block + size stays far from overflow */

/* Feature words. Unknown incompat bits: refuse. Unknown compat bits: ignore. */
#define DSCOW_INCOMPAT_EXTMAP	(1u << 0)
#define DSCOW_INCOMPAT_KNOWN	(DSCOW_INCOMPAT_EXTMAP)

/* state */
#define DSCOW_STATE_DIRTY	(1u << 0)	/* in use, or not closed: session says by whom */
#define DSCOW_STATE_NEEDS_CHECK	(1u << 1)	/* an error was met: refuse to write before a repair */
#define DSCOW_STATE_COMMITTING	(1u << 2)	/* being committed: the base may differ from its record */

struct dscow_header {
	uint8_t magic[8];
	uint32_t version;
	uint32_t header_bytes;		/* sizeof(struct dscow_header) when written */
	uint64_t compat;
	uint64_t incompat;
	uint8_t uuid[16];
	uint64_t size;			/* virtual bytes, > 0, any number */
	uint64_t below_limit;		/* base bytes at or above this read as zeroes; <= size */
	uint64_t first_block;		/* the constant shift */
	uint64_t ext_off;		/* file offset of the map's extension, 0: none */
	uint64_t ext_first;		/* index of the extension's first map sector */
	uint64_t ext_count;		/* map sectors in the extension */
	uint8_t block_bits;		/* 12..24 */
	uint8_t granule_bits;		/* 12..block_bits */
	uint16_t state;			/* DSCOW_STATE_* */
	uint32_t text_off;		/* DSCOW_TEXT_OFF_A or _B; 0: no base */
	uint16_t path_len;		/* bytes at text_off */
	uint16_t format_len;		/* bytes behind the path */
	uint32_t reserved0;		/* 0 */
	uint64_t text_hash;		/* XXH3 of path and format, seed 0 */
	uint64_t base_size;
	int64_t base_mtime_ns;
	uint64_t base_sample;
	uint64_t session;		/* nonce of the session that set DIRTY */
	uint8_t reserved[352];		/* 0 when created; kept as found: for compatible features */
	uint64_t hash;			/* XXH3 of all bytes before, seed 0 */
} __attribute__((packed));
static_assert(sizeof(struct dscow_header) == DSCOW_SECTOR, "header is one sector");

#define DSCOW_SEC_BITS_BYTES	496u
#define DSCOW_SEC_GRANULES	(DSCOW_SEC_BITS_BYTES * 8u)	/* 3968 */

/*
 * One sector of the presence map. Bit n of byte n/8 (least significant first)
 * stands for granule index * DSCOW_SEC_GRANULES + n. A sector of 512 zero bytes
 * (a hole) is valid and empty.
 */
struct dscow_mapsec {
	uint8_t bits[DSCOW_SEC_BITS_BYTES];
	uint64_t reserved;		/* 0 */
	uint64_t hash;			/* XXH3 of all bytes before, seed: first 8 bytes of uuid ^ sector index */
} __attribute__((packed));
static_assert(sizeof(struct dscow_mapsec) == DSCOW_SECTOR, "map sector is one sector");

#endif
