// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Encryption of a qcow2 image's data: by LUKS, whose header lies in clusters of its
 * own, or by QEMU's older method. Tables and compressed clusters are never encrypted.
 */
#include <errno.h>

#include "qcow2-priv.h"

#define ITER_MS 2000u	/* QEMU's */

const char qcow2_crypt_names[][8] = {
	[QCOW2_CRYPT_NONE] = "", [QCOW2_CRYPT_AES] = "aes", [QCOW2_CRYPT_LUKS] = "luks",
};

int qcow2_crypt_open(struct cow_image *img, struct qcow2 *q, struct cow_err *err)
{
	int rc = cipher_key_given(img, q->crypt, err);

	if (rc == 0 && q->crypt == QCOW2_CRYPT_AES)
		return cipher_new_legacy(img, &q->cipher, err);
	if (rc == 0 && q->crypt == QCOW2_CRYPT_LUKS) {
		rc = luks_read(img, q->luks_off, q->luks_bytes, &q->luks, err);
		if (rc == 0)
			rc = cipher_library(img, err);
		if (rc == 0 && img->key)
			rc = luks_unlock(img, &q->luks, &q->cipher, err);
	}
	return rc;
}

int qcow2_crypt(struct cow_image *img, const struct cow_crypt *c)
{
	const struct qcow2 *q = img->priv;
	uint64_t at = q->crypt == QCOW2_CRYPT_LUKS ? c->phys : c->virt;

	if (!q->cipher)
		return -ENOKEY;
	return cipher_run(q->cipher, c->encrypt, at / COW_CRYPT_UNIT, c->in, c->out, c->len);
}

int qcow2_crypt_buffer(struct cow_image *img, bool encrypt, uint64_t virt, uint64_t phys, void *buf,
		       uint64_t len)
{
	struct cow_crypt c = { .encrypt = encrypt, .virt = virt, .phys = phys, .in = buf, .out = buf, .len = len };

	return ((struct qcow2 *)img->priv)->crypt ? qcow2_crypt(img, &c) : 0;
}

/* ---- options of create ---- */

static int option_error(const struct cow_image *img, struct cow_err *err, const char *what)
{
	return cow_err_set(err, -EINVAL, "%s: %s", img->path, what);
}

/* The index of @word in @list; -1: it is not there. */
static int find(const char *const *list, const char *word)
{
	for (int i = 0; list[i]; i++) {
		if (!strcmp(list[i], word))
			return i;
	}
	return -1;
}

static int luks_options(const struct cow_image *img, const struct cow_args *args, struct luks_new *n,
			struct cow_err *err)
{
	static const char *const algs[] = { "aes-128", "aes-192", "aes-256", NULL };
	static const char *const modes[] = { [CIPHER_XTS] = "xts", [CIPHER_CBC] = "cbc", [CIPHER_ECB] = "ecb",
					     NULL };
	static const char *const ivs[] = { [CIPHER_PLAIN] = "plain", [CIPHER_PLAIN64] = "plain64",
					   [CIPHER_ESSIV_SHA256] = "essiv", NULL };
	int alg = find(algs, cow_args_str(args, "encrypt.cipher-alg", "aes-256"));
	int mode = find(modes, cow_args_str(args, "encrypt.cipher-mode", "xts"));
	int iv = find(ivs, cow_args_str(args, "encrypt.ivgen-alg", "plain64"));
	const char *iv_hash = cow_args_str(args, "encrypt.ivgen-hash-alg", NULL);

	if (alg < 0)
		return option_error(img, err, "encrypt.cipher-alg is not aes-128, aes-192 or aes-256");
	if (mode < 0)
		return option_error(img, err, "encrypt.cipher-mode is not xts, cbc or ecb");
	if (iv < 0)
		return option_error(img, err, "encrypt.ivgen-alg is not plain64, plain or essiv");
	if (iv_hash && (iv != CIPHER_ESSIV_SHA256 || strcmp(iv_hash, "sha256")))
		return option_error(img, err, "encrypt.ivgen-hash-alg is sha256, with encrypt.ivgen-alg=essiv");
	if (!cipher_hash_find(cow_args_str(args, "encrypt.hash-alg", "sha256"), &n->hash))
		return option_error(img, err, "encrypt.hash-alg is not sha256, sha384, sha512, sha1 or ripemd160");
	n->iter_ms = cow_args_size(args, "encrypt.iter-time", ITER_MS);
	if (n->iter_ms == 0 || n->iter_ms > 60000)
		return option_error(img, err, "encrypt.iter-time is not between 1 and 60000 milliseconds");
	n->spec = (struct cipher_spec){ (enum cipher_mode)mode, (enum cipher_iv)iv, 16 + 8 * (size_t)alg };
	if (mode == CIPHER_XTS)
		n->spec.key_bytes *= 2;
	return 0;
}

/* Options that are about LUKS alone. */
static bool has_luks_options(const struct cow_args *args)
{
	const char *key, *value;
	size_t i = 0;

	while (cow_args_next(args, &i, &key, &value)) {
		if (!strncmp(key, "encrypt.", 8) && strcmp(key, "encrypt.format"))
			return true;
	}
	return false;
}

int qcow2_crypt_options(struct cow_image *img, const struct cow_args *args, struct qcow2 *q,
			struct luks_new *ret, struct cow_err *err)
{
	const char *format = cow_args_str(args, "encrypt.format", "");

	*ret = (struct luks_new){ 0 };
	if (!strcmp(format, "luks"))
		q->crypt = QCOW2_CRYPT_LUKS;
	else if (!strcmp(format, "aes"))
		q->crypt = QCOW2_CRYPT_AES;
	else if (*format)
		return option_error(img, err, "encrypt.format is neither luks nor aes");
	if (q->crypt == QCOW2_CRYPT_LUKS)
		return luks_options(img, args, ret, err);
	return has_luks_options(args) ?
		option_error(img, err, "options of encryption need encrypt.format=luks") : 0;
}
