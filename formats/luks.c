// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The LUKS1 header. Offsets and rules are those of the LUKS On-Disk Format
 * Specification, version 1.2.3; numbers in comments are its sections. All integers
 * are big endian.
 *
 * A header comes from a stranger: what it can make us do is bounded before the
 * first of it is done.
 */
#include "luks.h"

#include <errno.h>
#include <stdio.h>
#include <sys/random.h>
#include <time.h>

#define SECTOR		512u

/* 2.1, figure 1: the partition header */
#define L_MAGIC		0	/* "LUKS", 0xba, 0xbe */
#define L_VERSION	6
#define L_CIPHER	8	/* name, filled up with zeroes, as the next two */
#define L_MODE		40
#define L_HASH		72
#define L_PAYLOAD	104	/* sectors before the data */
#define L_KEY_BYTES	108
#define L_DIGEST	112
#define L_DIGEST_SALT	132
#define L_DIGEST_ITER	164
#define L_UUID		168
#define L_SLOTS		208
#define L_BYTES		592
#define L_NAME_BYTES	32u
/* 2.1, figure 2: a key slot */
#define S_ACTIVE	0
#define S_ITERATIONS	4
#define S_SALT		8
#define S_OFFSET	40
#define S_STRIPES	44
#define S_BYTES		48
#define SLOT_ENABLED	0x00ac71f3u
#define SLOT_DISABLED	0x0000deadu
/* 2.1: key material begins at multiples of this, and the first where it does */
#define ALIGN_BYTES	4096u

/*
 * Hashes that trying all slots may take: some ten seconds, 15 times what QEMU makes a slot take by
 * default. Without a limit the 32-bit numbers of a header could stand for hours.
 */
#define HASHES_MAX	(1u << 26)
#define ITERATIONS_MIN	1000u		/* 2.1 and section 6: the least of a new header */

static const uint8_t magic[] = { 'L', 'U', 'K', 'S', 0xba, 0xbe };

/* ---- names ---- */

static bool name_get(const uint8_t *p, char *ret)
{
	memcpy(ret, p, L_NAME_BYTES);
	ret[L_NAME_BYTES] = '\0';
	for (char *c = ret; *c; c++)
		*c = *c < ' ' || *c > '~' ? '?' : *c;
	return ret[0] && strlen(ret) < L_NAME_BYTES;
}

static const struct {
	const char *name;
	enum cipher_mode mode;
	enum cipher_iv iv;
} modes[] = {
	{ "xts-plain64", CIPHER_XTS, CIPHER_PLAIN64 },
	{ "xts-plain", CIPHER_XTS, CIPHER_PLAIN },
	{ "xts-essiv:sha256", CIPHER_XTS, CIPHER_ESSIV_SHA256 },
	{ "cbc-plain64", CIPHER_CBC, CIPHER_PLAIN64 },
	{ "cbc-plain", CIPHER_CBC, CIPHER_PLAIN },
	{ "cbc-essiv:sha256", CIPHER_CBC, CIPHER_ESSIV_SHA256 },
	{ "ecb-plain64", CIPHER_ECB, CIPHER_PLAIN64 },	/* the vector is not used */
	{ "ecb-plain", CIPHER_ECB, CIPHER_PLAIN },
	{ "ecb-essiv:sha256", CIPHER_ECB, CIPHER_ESSIV_SHA256 },
	{ "ecb", CIPHER_ECB, CIPHER_PLAIN64 },
};

static const char *mode_name(const struct cipher_spec *spec)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(modes); i++) {
		if (modes[i].mode == spec->mode && modes[i].iv == spec->iv)
			return modes[i].name;
	}
	return "";
}

static size_t split_bytes(const struct cipher_spec *spec)
{
	return spec->key_bytes * LUKS_STRIPES;
}

/* ---- reading ---- */

static int bad(const struct cow_image *img, struct cow_err *err, const char *what)
{
	return cow_err_set(err, -EINVAL, "%s: its LUKS header is damaged: %s", img->path, what);
}

static int unknown(const struct cow_image *img, struct cow_err *err, const char *what, const char *name)
{
	return cow_err_set(err, -ENOTSUP, "%s: is encrypted with the %s '%s', which is not supported",
			   img->path, what, name);
}

static int read_cipher(const struct cow_image *img, const uint8_t *p, struct luks *l, struct cow_err *err)
{
	char cipher[L_NAME_BYTES + 1], mode[L_NAME_BYTES + 1], hash[L_NAME_BYTES + 1];
	size_t i = 0, aes;

	if (!name_get(p + L_CIPHER, cipher) || !name_get(p + L_MODE, mode) || !name_get(p + L_HASH, hash))
		return bad(img, err, "a name is empty or too long");
	if (strcmp(cipher, "aes"))
		return unknown(img, err, "cipher", cipher);
	while (i < COW_ARRAY_SIZE(modes) && strcmp(modes[i].name, mode))
		i++;
	if (i == COW_ARRAY_SIZE(modes))
		return unknown(img, err, "cipher mode", mode);
	if (!cipher_hash_find(hash, &l->hash))
		return unknown(img, err, "hash", hash);
	snprintf(l->cipher, sizeof(l->cipher), "%s-%s", cipher, mode);
	l->spec = (struct cipher_spec){ modes[i].mode, modes[i].iv, cow_get_be32(p + L_KEY_BYTES) };
	aes = l->spec.mode == CIPHER_XTS ? l->spec.key_bytes / 2 : l->spec.key_bytes;
	if ((aes != 16 && aes != 24 && aes != 32) || (l->spec.mode == CIPHER_XTS && l->spec.key_bytes % 2))
		return bad(img, err, "no key of the cipher has this length");
	return 0;
}

static int read_slot(const struct cow_image *img, const uint8_t *p, const struct luks *l,
		     struct luks_slot *s, struct cow_err *err)
{
	uint32_t state = cow_get_be32(p + S_ACTIVE);
	uint64_t at;

	if (state != SLOT_ENABLED && state != SLOT_DISABLED)
		return bad(img, err, "a key slot is neither in use nor free");
	s->active = state == SLOT_ENABLED;
	s->iterations = cow_get_be32(p + S_ITERATIONS);
	s->offset = cow_get_be32(p + S_OFFSET);
	memcpy(s->salt, p + S_SALT, sizeof(s->salt));
	if (!s->active)
		return 0;
	at = (uint64_t)s->offset * SECTOR;
	if (s->iterations == 0 || cow_get_be32(p + S_STRIPES) != LUKS_STRIPES)
		return bad(img, err, "the numbers of a key slot are not possible");
	if (at < L_BYTES || at > l->bytes || split_bytes(&l->spec) > l->bytes - at)
		return bad(img, err, "key material lies outside of it");
	return 0;
}

/* Hashes that it takes to find out that a key opens no slot. */
static uint64_t hashes(const struct luks *l)
{
	uint64_t per = cow_div_up(l->spec.key_bytes, cipher_hash_bytes(l->hash)), n = 0;

	for (unsigned i = 0; i < LUKS_SLOTS; i++) {
		if (l->slot[i].active)
			n += l->slot[i].iterations * per + l->digest_iterations;
	}
	return n;
}

int luks_read(struct cow_image *img, uint64_t off, uint64_t bytes, struct luks *l, struct cow_err *err)
{
	uint8_t p[L_BYTES];
	int rc = cow_img_pread(img, 0, p, sizeof(p), off);

	if (rc)
		return cow_err_sys(err, rc, "%s", img->path);
	*l = (struct luks){ .off = off, .bytes = bytes };
	if (bytes < L_BYTES || memcmp(p + L_MAGIC, magic, sizeof(magic)))
		return bad(img, err, "it does not begin as one");
	if (p[L_VERSION] != 0 || p[L_VERSION + 1] != 1)
		return cow_err_set(err, -ENOTSUP, "%s: has a LUKS header of version %u, only 1 is known",
				   img->path, p[L_VERSION] << 8 | p[L_VERSION + 1]);
	rc = read_cipher(img, p, l, err);
	memcpy(l->digest, p + L_DIGEST, sizeof(l->digest));
	memcpy(l->digest_salt, p + L_DIGEST_SALT, sizeof(l->digest_salt));
	l->digest_iterations = cow_get_be32(p + L_DIGEST_ITER);
	if (rc == 0 && l->digest_iterations == 0)
		rc = bad(img, err, "the numbers of the digest are not possible");
	for (unsigned i = 0; i < LUKS_SLOTS && rc == 0; i++)
		rc = read_slot(img, p + L_SLOTS + i * S_BYTES, l, &l->slot[i], err);
	if (rc == 0 && hashes(l) > HASHES_MAX)
		rc = cow_err_set(err, -EINVAL, "%s: opening it would take up to %llu hashes, more than the "
				 "limit of %u", img->path, (unsigned long long)hashes(l), HASHES_MAX);
	return rc;
}

/* ---- the anti-forensic splitter, 2.4 ---- */

/* 2.4, H1: each digest-sized part of @d is replaced by the hash of its number and itself. */
static int diffuse(enum cipher_hash hash, uint8_t *d, size_t len)
{
	uint8_t in[4 + CIPHER_HASH_MAX], out[CIPHER_HASH_MAX];
	size_t step = cipher_hash_bytes(hash);
	int rc = 0;

	for (size_t at = 0; at < len && rc == 0; at += step) {
		size_t n = cow_min(step, len - at);

		cow_put_be32(in, (uint32_t)(at / step));
		memcpy(in + 4, d + at, n);
		rc = cipher_digest(hash, in, 4 + n, out);
		memcpy(d + at, out, n);
	}
	explicit_bzero(in, sizeof(in));
	explicit_bzero(out, sizeof(out));
	return rc;
}

/* All stripes but the last into @d, then its difference to the last into that or into @key. */
static int stripes(enum cipher_hash hash, uint8_t *split, size_t key_bytes, uint8_t *key, bool merge)
{
	uint8_t d[LUKS_KEY_MAX] = { 0 }, *last = split + (LUKS_STRIPES - 1) * key_bytes;
	int rc = 0;

	for (unsigned i = 0; i < LUKS_STRIPES - 1 && rc == 0; i++) {
		for (size_t k = 0; k < key_bytes; k++)
			d[k] ^= split[i * key_bytes + k];
		rc = diffuse(hash, d, key_bytes);
	}
	for (size_t k = 0; k < key_bytes && rc == 0; k++) {
		if (merge)
			key[k] = d[k] ^ last[k];
		else
			last[k] = d[k] ^ key[k];
	}
	explicit_bzero(d, sizeof(d));
	return rc;
}

/* ---- opening ---- */

static int master_digest(enum cipher_hash hash, const uint8_t *key, size_t len, const uint8_t *salt,
			 uint32_t iterations, uint8_t *ret)
{
	return cipher_pbkdf2(hash, key, len, salt, iterations, ret, LUKS_DIGEST_BYTES);
}

/* What the user's key makes of a slot's material, with the slot's salt: in place. */
static int slot_cipher(const struct cow_image *img, const struct luks_slot *s, const struct cipher_spec *spec,
		       enum cipher_hash hash, bool encrypt, uint8_t *split)
{
	uint8_t key[LUKS_KEY_MAX];
	struct cipher *c = NULL;
	int rc = cipher_pbkdf2(hash, img->key, img->key_len, s->salt, s->iterations, key, spec->key_bytes);

	if (rc == 0)
		rc = cipher_new(spec, key, &c);
	if (rc == 0)
		rc = cipher_run(c, encrypt, 0, split, split, split_bytes(spec));
	cipher_free(c);
	explicit_bzero(key, sizeof(key));
	return rc;
}

static bool same(const uint8_t *a, const uint8_t *b, size_t n)
{
	uint8_t differ = 0;

	for (size_t i = 0; i < n; i++)
		differ |= a[i] ^ b[i];
	return !differ;
}

/* 4.2: the master key by slot @i. 0: there; 1: not with this key; -errno. */
static int try_slot(struct cow_image *img, const struct luks *l, unsigned i, uint8_t *split, uint8_t *key)
{
	const struct luks_slot *s = &l->slot[i];
	uint8_t digest[LUKS_DIGEST_BYTES];
	int rc = cow_img_pread(img, 0, split, split_bytes(&l->spec), l->off + (uint64_t)s->offset * SECTOR);

	if (rc == 0)
		rc = slot_cipher(img, s, &l->spec, l->hash, false, split);
	if (rc == 0)
		rc = stripes(l->hash, split, l->spec.key_bytes, key, true);
	if (rc == 0)
		rc = master_digest(l->hash, key, l->spec.key_bytes, l->digest_salt, l->digest_iterations,
				   digest);
	return rc ? rc : !same(digest, l->digest, sizeof(digest));
}

int luks_unlock(struct cow_image *img, const struct luks *l, struct cipher **ret, struct cow_err *err)
{
	size_t bytes = split_bytes(&l->spec);
	uint8_t *split = cow_zalloc(bytes), key[LUKS_KEY_MAX];
	int rc = split ? 1 : -ENOMEM;

	for (unsigned i = 0; i < LUKS_SLOTS && rc == 1; i++) {
		if (l->slot[i].active)
			rc = try_slot(img, l, i, split, key);
	}
	if (rc == 0)
		rc = cipher_new(&l->spec, key, ret);
	explicit_bzero(key, sizeof(key));
	if (split)
		explicit_bzero(split, bytes);
	cow_free(split);
	if (rc == 1)
		return cow_err_set(err, -EACCES, "%s: the key is wrong%s", img->path,
				   img->key[img->key_len - 1] == '\n' ? " (it ends with a newline)" : "");
	return rc ? cow_err_sys(err, rc, "%s: LUKS", img->path) : 0;
}

/* ---- a new one ---- */

static int fill_random(void *buf, size_t len)
{
	uint8_t *p = buf;

	while (len > 0) {
		ssize_t n = getrandom(p, len, 0);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			p += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

static double cpu_seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* Iterations that take about @n->iter_ms. */
static int calibrate(const struct luks_new *n, uint32_t *ret)
{
	uint64_t most = HASHES_MAX / 4 / cow_div_up(n->spec.key_bytes, cipher_hash_bytes(n->hash));
	const uint8_t salt[LUKS_SALT_BYTES] = { 0 };
	uint8_t out[LUKS_KEY_MAX];
	uint32_t tried = 1 << 12;
	double took = 0, want;
	int rc = 0;

	while (took < 0.05 && tried < most && rc == 0 && n->iter_ms > 1) {
		double start = cpu_seconds();

		tried *= 2;
		rc = cipher_pbkdf2(n->hash, salt, sizeof(salt), salt, tried, out, n->spec.key_bytes);
		took = cpu_seconds() - start;
	}
	want = took > 0 ? tried * ((double)n->iter_ms / 1000 / took) : 0;
	*ret = want < ITERATIONS_MIN ? ITERATIONS_MIN : want > (double)most ? (uint32_t)most : (uint32_t)want;
	return rc;
}

static uint32_t slot_sectors(const struct luks_new *n)
{
	return (uint32_t)(cow_round_up(split_bytes(&n->spec), ALIGN_BYTES) / SECTOR);
}

uint64_t luks_bytes(const struct luks_new *n)
{
	return ALIGN_BYTES + (uint64_t)LUKS_SLOTS * slot_sectors(n) * SECTOR;
}

static void put_uuid(uint8_t *p, const uint8_t *r)
{
	snprintf((char *)p, 40, "%02x%02x%02x%02x-%02x%02x-4%x%02x-%x%x%02x-%02x%02x%02x%02x%02x%02x",
		 r[0], r[1], r[2], r[3], r[4], r[5], r[6] & 15, r[7], 8 + (r[8] & 3), r[8] >> 4, r[9], r[10],
		 r[11], r[12], r[13], r[14], r[15]);
}

static void put_slots(const struct luks_new *n, const struct luks_slot *first, uint8_t *p)
{
	for (unsigned i = 0; i < LUKS_SLOTS; i++, p += S_BYTES) {
		cow_put_be32(p + S_ACTIVE, i ? SLOT_DISABLED : SLOT_ENABLED);
		cow_put_be32(p + S_OFFSET, first->offset + i * slot_sectors(n));
		cow_put_be32(p + S_STRIPES, LUKS_STRIPES);
		if (i)
			continue;
		cow_put_be32(p + S_ITERATIONS, first->iterations);
		memcpy(p + S_SALT, first->salt, sizeof(first->salt));
	}
}

/* The header for @key. 4.1 */
static int build(const struct luks_new *n, const uint8_t *key, const struct luks_slot *slot, uint8_t *p)
{
	uint32_t iterations = (uint32_t)cow_max(slot->iterations / 8, ITERATIONS_MIN);
	uint8_t r[16];
	int rc = fill_random(r, sizeof(r));

	memcpy(p + L_MAGIC, magic, sizeof(magic));
	p[L_VERSION + 1] = 1;
	strcpy((char *)p + L_CIPHER, "aes");
	strcpy((char *)p + L_MODE, mode_name(&n->spec));
	strcpy((char *)p + L_HASH, cipher_hash_name(n->hash));
	cow_put_be32(p + L_PAYLOAD, (uint32_t)(luks_bytes(n) / SECTOR));
	cow_put_be32(p + L_KEY_BYTES, (uint32_t)n->spec.key_bytes);
	cow_put_be32(p + L_DIGEST_ITER, iterations);
	put_uuid(p + L_UUID, r);
	put_slots(n, slot, p + L_SLOTS);
	if (rc == 0)
		rc = fill_random(p + L_DIGEST_SALT, LUKS_SALT_BYTES);
	return rc ? rc : master_digest(n->hash, key, n->spec.key_bytes, p + L_DIGEST_SALT, iterations,
				       p + L_DIGEST);
}

/* 4.1 and 4.3: slot 0 gets the master key. */
static int create(struct cow_image *img, const struct luks_new *n, uint64_t off, uint8_t *split, uint8_t *key)
{
	struct luks_slot slot = { .active = true, .offset = ALIGN_BYTES / SECTOR };
	uint8_t head[L_BYTES] = { 0 };
	size_t bytes = split_bytes(&n->spec);
	int rc = calibrate(n, &slot.iterations);

	if (rc == 0)
		rc = fill_random(slot.salt, sizeof(slot.salt));
	if (rc == 0)
		rc = fill_random(key, n->spec.key_bytes);
	if (rc == 0)
		rc = fill_random(split, bytes);
	if (rc == 0)
		rc = stripes(n->hash, split, n->spec.key_bytes, key, false);
	if (rc == 0)
		rc = slot_cipher(img, &slot, &n->spec, n->hash, true, split);
	if (rc == 0)
		rc = build(n, key, &slot, head);
	if (rc == 0)
		rc = cow_img_pwrite(img, 0, split, bytes, off + ALIGN_BYTES);
	return rc ? rc : cow_img_pwrite(img, 0, head, sizeof(head), off);
}

int luks_create(struct cow_image *img, const struct luks_new *n, uint64_t off, struct cow_err *err)
{
	size_t bytes = split_bytes(&n->spec);
	uint8_t *split = cow_zalloc(bytes), key[LUKS_KEY_MAX];
	int rc = split ? create(img, n, off, split, key) : -ENOMEM;

	explicit_bzero(key, sizeof(key));
	if (split)
		explicit_bzero(split, bytes);
	cow_free(split);
	return rc ? cow_err_sys(err, rc, "%s: LUKS", img->path) : 0;
}
