/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * LUKS version 1 as part of an image: the header, and how a key that a user has
 * opens a slot of it, which gives the master key, which is the key of the data. The
 * header's own data area, its payload, is not used.
 */
#ifndef COW_FORMATS_LUKS_H
#define COW_FORMATS_LUKS_H

#include "cipher.h"

#define LUKS_SLOTS 8u
#define LUKS_STRIPES 4000u	/* the only number that is in use, and that we take */
#define LUKS_KEY_MAX 64u
#define LUKS_DIGEST_BYTES 20u
#define LUKS_SALT_BYTES 32u

struct luks_slot {
	bool active;
	uint32_t iterations, offset;	/* offset: of the key material, in sectors of the header */
	uint8_t salt[LUKS_SALT_BYTES];
};

/* A header, bounded and checked. */
struct luks {
	uint64_t off, bytes;		/* its place in the file */
	char cipher[72];		/* "aes-xts-plain64" */
	struct cipher_spec spec;
	enum cipher_hash hash;
	uint8_t digest[LUKS_DIGEST_BYTES], digest_salt[LUKS_SALT_BYTES];
	uint32_t digest_iterations;
	struct luks_slot slot[LUKS_SLOTS];
};

/* What a new header is to be. */
struct luks_new {
	struct cipher_spec spec;
	enum cipher_hash hash;
	uint64_t iter_ms;		/* how long opening a slot shall take on this machine */
};

/* The header in [@off, @off + @bytes) of file 0. Refuses by name what is not supported. */
int luks_read(struct cow_image *img, uint64_t off, uint64_t bytes, struct luks *ret, struct cow_err *err);
/* The cipher of the data, with img->key. -EACCES and a sentence: it opens no slot. */
int luks_unlock(struct cow_image *img, const struct luks *l, struct cipher **ret, struct cow_err *err);
/* Bytes of a new header with its key material. */
uint64_t luks_bytes(const struct luks_new *n);
/* Writes one at @off, with a new master key, that img->key opens. No sync. */
int luks_create(struct cow_image *img, const struct luks_new *n, uint64_t off, struct cow_err *err);

#endif
