/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * AES over sectors of 512 bytes, as the encrypted images of several formats have
 * it: the part of an image's encryption that does not depend on where its key and
 * its sector numbers come from. One thread at a time uses a cipher.
 */
#ifndef COW_FORMATS_CIPHER_H
#define COW_FORMATS_CIPHER_H

#include "cow/format.h"

enum cipher_mode { CIPHER_XTS, CIPHER_CBC, CIPHER_ECB };

/* How the number of a sector becomes an initialization vector. */
enum cipher_iv {
	CIPHER_PLAIN,		/* the low 32 bits, little endian */
	CIPHER_PLAIN64,
	CIPHER_ESSIV_SHA256,	/* 64 bits, enciphered with the SHA-256 of the key */
};

struct cipher_spec {
	enum cipher_mode mode;
	enum cipher_iv iv;
	size_t key_bytes;	/* 16, 24 or 32; with XTS twice that */
};

struct cipher;

/* 0; -ENOMEM; -EINVAL: no such key length; -EOPNOTSUPP: built without libgcrypt. */
int cipher_new(const struct cipher_spec *spec, const uint8_t *key, struct cipher **ret);
void cipher_free(struct cipher *c);	/* wipes what it knows; NULL is allowed */
/*
 * @len bytes that begin with sector number @sector; the last one may be shorter, in blocks of 16.
 * @out may be @in. 0 or -EIO.
 */
int cipher_run(struct cipher *c, bool encrypt, uint64_t sector, const void *in, void *out, size_t len);

enum cipher_hash { CIPHER_SHA1, CIPHER_SHA256, CIPHER_SHA384, CIPHER_SHA512, CIPHER_RIPEMD160 };
#define CIPHER_HASH_MAX 64u	/* bytes of the longest */

bool cipher_hash_find(const char *name, enum cipher_hash *ret);
const char *cipher_hash_name(enum cipher_hash hash);
size_t cipher_hash_bytes(enum cipher_hash hash);
int cipher_digest(enum cipher_hash hash, const void *data, size_t len, uint8_t *ret);
/* @salt: 32 bytes. */
int cipher_pbkdf2(enum cipher_hash hash, const uint8_t *key, size_t key_len, const uint8_t *salt,
		  uint32_t iterations, uint8_t *ret, size_t ret_len);

/*
 * The cipher of QEMU's old encryption, which qcow and qcow2 have: AES-128 in CBC mode, the key is
 * the first 16 bytes of the password, filled up with zeroes. A wrong one cannot be told from a right
 * one.
 */
int cipher_new_legacy(const struct cow_image *img, struct cipher **ret, struct cow_err *err);
/* What is wrong with the options: a key for an image that is not encrypted, or none for one that is. 0 or -errno. */
int cipher_key_given(const struct cow_image *img, bool encrypted, struct cow_err *err);
/* Libgcrypt is there, and ready to be used. -EOPNOTSUPP and a sentence: the build is without it. */
int cipher_library(const struct cow_image *img, struct cow_err *err);

#endif
