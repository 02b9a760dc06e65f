// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * AES over sectors, by libgcrypt. Everything that is known of a key is in its
 * handles, which wipe it when they are closed.
 */
#include "cipher.h"

#include <errno.h>
#include <string.h>

#define SECTOR 512u
#define BLOCK 16u

int cipher_key_given(const struct cow_image *img, bool encrypted, struct cow_err *err)
{
	if (img->key && !encrypted)
		return cow_err_set(err, -EINVAL, "%s: is not encrypted, a key is of no use", img->path);
	if (!img->key && encrypted && !(img->open_flags & (COW_OPEN_CHECK | COW_OPEN_NODATA)))
		return cow_err_set(err, -ENOKEY, "%s: is encrypted, and no key was given: the option key_file "
				   "names a file with it", img->path);
	return 0;
}

static const struct {
	const char *name;
	size_t bytes;
} hashes[] = {
	[CIPHER_SHA1] = { "sha1", 20 }, [CIPHER_SHA256] = { "sha256", 32 }, [CIPHER_SHA384] = { "sha384", 48 },
	[CIPHER_SHA512] = { "sha512", 64 }, [CIPHER_RIPEMD160] = { "ripemd160", 20 },
};

bool cipher_hash_find(const char *name, enum cipher_hash *ret)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(hashes); i++) {
		if (!strcmp(hashes[i].name, name)) {
			*ret = (enum cipher_hash)i;
			return true;
		}
	}
	return false;
}

const char *cipher_hash_name(enum cipher_hash hash)
{
	return hashes[hash].name;
}

size_t cipher_hash_bytes(enum cipher_hash hash)
{
	return hashes[hash].bytes;
}

#ifdef HAVE_GCRYPT

#include <gcrypt.h>
#include <pthread.h>

struct cipher {
	gcry_cipher_hd_t data, essiv;
	enum cipher_mode mode;
	enum cipher_iv iv;
};

static bool ready;

static void library_init(void)
{
	ready = gcry_control(GCRYCTL_INITIALIZATION_FINISHED_P) || gcry_check_version(NULL);
	if (!ready)
		return;
	gcry_control(GCRYCTL_DISABLE_SECMEM, 0);
	gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
}

int cipher_library(const struct cow_image *img, struct cow_err *err)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, library_init);
	return ready ? 0 : cow_err_set(err, -EOPNOTSUPP, "%s: libgcrypt cannot be used", img->path);
}

static const int hash_algos[] = {
	[CIPHER_SHA1] = GCRY_MD_SHA1, [CIPHER_SHA256] = GCRY_MD_SHA256, [CIPHER_SHA384] = GCRY_MD_SHA384,
	[CIPHER_SHA512] = GCRY_MD_SHA512, [CIPHER_RIPEMD160] = GCRY_MD_RMD160,
};

int cipher_digest(enum cipher_hash hash, const void *data, size_t len, uint8_t *ret)
{
	gcry_md_hash_buffer(hash_algos[hash], ret, data, len);
	return 0;
}

int cipher_pbkdf2(enum cipher_hash hash, const uint8_t *key, size_t key_len, const uint8_t *salt,
		  uint32_t iterations, uint8_t *ret, size_t ret_len)
{
	return gcry_kdf_derive(key, key_len, GCRY_KDF_PBKDF2, hash_algos[hash], salt, 32, iterations, ret_len,
			       ret) ? -EIO : 0;
}

static int open_handle(gcry_cipher_hd_t *ret, int mode, const uint8_t *key, size_t bytes)
{
	size_t one = mode == GCRY_CIPHER_MODE_XTS ? bytes / 2 : bytes;
	int algo = one == 16 ? GCRY_CIPHER_AES128 : one == 24 ? GCRY_CIPHER_AES192 :
		one == 32 ? GCRY_CIPHER_AES256 : 0;

	if (!algo || (mode == GCRY_CIPHER_MODE_XTS && bytes % 2))
		return -EINVAL;
	if (gcry_cipher_open(ret, algo, mode, 0)) {
		*ret = NULL;
		return -ENOMEM;
	}
	return gcry_cipher_setkey(*ret, key, bytes) ? -EINVAL : 0;
}

int cipher_new(const struct cipher_spec *spec, const uint8_t *key, struct cipher **ret)
{
	static const int modes[] = {
		[CIPHER_XTS] = GCRY_CIPHER_MODE_XTS, [CIPHER_CBC] = GCRY_CIPHER_MODE_CBC,
		[CIPHER_ECB] = GCRY_CIPHER_MODE_ECB,
	};
	struct cipher *c = cow_zalloc(sizeof(*c));
	uint8_t hash[32];
	int rc;

	if (!c)
		return -ENOMEM;
	c->mode = spec->mode;
	c->iv = spec->iv;
	rc = open_handle(&c->data, modes[spec->mode], key, spec->key_bytes);
	if (rc == 0 && spec->iv == CIPHER_ESSIV_SHA256) {
		gcry_md_hash_buffer(GCRY_MD_SHA256, hash, key, spec->key_bytes);
		rc = open_handle(&c->essiv, GCRY_CIPHER_MODE_ECB, hash, sizeof(hash));
		explicit_bzero(hash, sizeof(hash));
	}
	if (rc)
		cipher_free(c);
	else
		*ret = c;
	return rc;
}

void cipher_free(struct cipher *c)
{
	if (!c)
		return;
	gcry_cipher_close(c->data);
	gcry_cipher_close(c->essiv);
	cow_free(c);
}

static int set_iv(struct cipher *c, uint64_t sector)
{
	uint8_t iv[BLOCK] = { 0 };

	if (c->mode == CIPHER_ECB)
		return 0;
	cow_put_le64(iv, c->iv == CIPHER_PLAIN ? (uint32_t)sector : sector);
	if (c->essiv && gcry_cipher_encrypt(c->essiv, iv, sizeof(iv), NULL, 0))
		return -EIO;
	return gcry_cipher_setiv(c->data, iv, sizeof(iv)) ? -EIO : 0;
}

int cipher_run(struct cipher *c, bool encrypt, uint64_t sector, const void *in, void *out, size_t len)
{
	const uint8_t *from = in;
	uint8_t *to = out;

	while (len > 0) {
		size_t n = cow_min(len, SECTOR);
		gcry_error_t rc;

		if (set_iv(c, sector++))
			return -EIO;
		if (encrypt)
			rc = gcry_cipher_encrypt(c->data, to, n, from == to ? NULL : from, from == to ? 0 : n);
		else
			rc = gcry_cipher_decrypt(c->data, to, n, from == to ? NULL : from, from == to ? 0 : n);
		if (rc)
			return -EIO;
		from += n;
		to += n;
		len -= n;
	}
	return 0;
}

#else /* HAVE_GCRYPT */

int cipher_library(const struct cow_image *img, struct cow_err *err)
{
	return cow_err_set(err, -EOPNOTSUPP, "%s: is encrypted, and this program was built without libgcrypt",
			   img->path);
}

int cipher_new(const struct cipher_spec *spec, const uint8_t *key, struct cipher **ret)
{
	(void)spec;
	(void)key;
	(void)ret;
	return -EOPNOTSUPP;
}

void cipher_free(struct cipher *c)
{
	(void)c;
}

int cipher_run(struct cipher *c, bool encrypt, uint64_t sector, const void *in, void *out, size_t len)
{
	(void)c;
	(void)encrypt;
	(void)sector;
	(void)in;
	(void)out;
	(void)len;
	return -EOPNOTSUPP;
}

int cipher_digest(enum cipher_hash hash, const void *data, size_t len, uint8_t *ret)
{
	(void)hash;
	(void)data;
	(void)len;
	(void)ret;
	return -EOPNOTSUPP;
}

int cipher_pbkdf2(enum cipher_hash hash, const uint8_t *key, size_t key_len, const uint8_t *salt,
		  uint32_t iterations, uint8_t *ret, size_t ret_len)
{
	(void)hash;
	(void)key;
	(void)key_len;
	(void)salt;
	(void)iterations;
	(void)ret;
	(void)ret_len;
	return -EOPNOTSUPP;
}

#endif

int cipher_new_legacy(const struct cow_image *img, struct cipher **ret, struct cow_err *err)
{
	const struct cipher_spec spec = { CIPHER_CBC, CIPHER_PLAIN64, 16 };
	uint8_t key[16] = { 0 };
	int rc = cipher_library(img, err);

	if (rc || !img->key)
		return rc;
	memcpy(key, img->key, cow_min(img->key_len, sizeof(key)));
	rc = cipher_new(&spec, key, ret);
	explicit_bzero(key, sizeof(key));
	return rc ? cow_err_sys(err, rc, "%s: AES", img->path) : 0;
}
