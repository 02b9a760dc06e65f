// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The dscow header on disk: decoding, every limit, encoding. The header is one
 * sector and so changes atomically; its backup is for sectors that rot.
 */
#include <errno.h>
#include <stdio.h>
#include <xxhash.h>

#include "dscow-priv.h"

static uint64_t header_hash(const struct dscow_header *h)
{
	return XXH3_64bits(h, offsetof(struct dscow_header, hash));
}

static bool header_whole(const struct dscow_header *h)
{
	return memcmp(h->magic, DSCOW_MAGIC, sizeof(h->magic)) == 0 &&
	       cow_get_le64(&h->hash) == header_hash(h);
}

static void decode(const struct dscow_header *h, struct dscow *d)
{
	d->compat = cow_get_le64(&h->compat);
	d->incompat = cow_get_le64(&h->incompat);
	memcpy(d->uuid, h->uuid, sizeof(d->uuid));
	memcpy(d->reserved, h->reserved, sizeof(d->reserved));
	d->size = cow_get_le64(&h->size);
	d->below_limit = cow_get_le64(&h->below_limit);
	d->first_block = cow_get_le64(&h->first_block);
	d->ext_off = cow_get_le64(&h->ext_off);
	d->ext_first = cow_get_le64(&h->ext_first);
	d->ext_count = cow_get_le64(&h->ext_count);
	d->block_bits = h->block_bits;
	d->granule_bits = h->granule_bits;
	d->state = cow_get_le16(&h->state);
	d->session = cow_get_le64(&h->session);
	d->text_off = cow_get_le32(&h->text_off);
	d->identity.size = cow_get_le64(&h->base_size);
	d->identity.mtime_ns = (int64_t)cow_get_le64(&h->base_mtime_ns);
	d->identity.sample = cow_get_le64(&h->base_sample);
}

static const char *bad_geometry(const struct dscow *d)
{
	uint64_t block;

	if (d->block_bits < 12 || d->block_bits > 24)
		return "block size is not between 4 KiB and 16 MiB";
	if (d->granule_bits < 12 || d->granule_bits > d->block_bits)
		return "granule size is not between 4 KiB and the block size";
	if (d->size == 0 || d->size > DSCOW_SIZE_MAX)
		return "size is not between 1 byte and 64 PiB";
	if (d->below_limit > d->size)
		return "more of the base shows than the image has";
	block = 1ULL << d->block_bits;
	if (d->first_block < DSCOW_MAP_OFF + DSCOW_SECTOR || d->first_block % block ||
	    d->first_block > DSCOW_SIZE_MAX)
		return "first block is misplaced";
	if (d->text_off && d->text_off != DSCOW_TEXT_OFF_A && d->text_off != DSCOW_TEXT_OFF_B)
		return "text area is misplaced";
	return NULL;
}

/* The map must cover every granule, and nothing may lie upon anything else. */
static const char *bad_map(const struct dscow *d)
{
	uint64_t need = dscow_sectors(d, d->size), fits = dscow_main_sectors(d);

	if (!(d->incompat & DSCOW_INCOMPAT_EXTMAP)) {
		if (d->ext_off || d->ext_first || d->ext_count)
			return "map extension without its feature bit";
		return need > fits ? "map is too small for the size" : NULL;
	}
	if (d->ext_off % (1ULL << d->granule_bits) || d->ext_off < d->first_block + d->size ||
	    d->ext_off > DSCOW_SIZE_MAX * 2)
		return "map extension is misplaced";
	if (d->ext_first != fits || d->ext_count > DSCOW_SIZE_MAX / DSCOW_SECTOR ||
	    d->ext_first + d->ext_count < need)
		return "map extension has a wrong length";
	return NULL;
}

static uint64_t file_needed(const struct dscow *d)
{
	if (d->incompat & DSCOW_INCOMPAT_EXTMAP)
		return d->ext_off + d->ext_count * DSCOW_SECTOR;
	return d->first_block + d->size;
}

static bool name_ok(const char *s)
{
	return s[strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789_")] == 0;
}

static int read_text(struct cow_image *img, struct dscow *d, const struct dscow_header *h,
		     struct cow_err *err)
{
	unsigned path = cow_get_le16(&h->path_len), format = cow_get_le16(&h->format_len);
	char text[DSCOW_TEXT_BYTES];
	int rc;

	if (d->text_off == 0)
		return 0;
	if (path == 0 || path > DSCOW_PATH_MAX || format >= sizeof(d->backing.format))
		return cow_err_set(err, -EINVAL, "%s: the recorded base has a bad length", img->path);
	rc = cow_img_pread(img, 0, text, path + format, d->text_off);
	if (rc)
		return cow_err_sys(err, rc, "%s", img->path);
	if (XXH3_64bits(text, path + format) != cow_get_le64(&h->text_hash))
		return cow_err_set(err, -EIO, "%s: the recorded base is damaged", img->path);
	memcpy(d->backing.path, text, path);
	memcpy(d->backing.format, text + path, format);
	if (strlen(d->backing.path) != path || strlen(d->backing.format) != format ||
	    !name_ok(d->backing.format))
		return cow_err_set(err, -EINVAL, "%s: the recorded base is not a path", img->path);
	return 0;
}

static int check_header(struct cow_image *img, const struct dscow_header *h, struct dscow *d,
			struct cow_err *err)
{
	uint32_t version = cow_get_le32(&h->version);
	uint64_t unknown;
	const char *bad;

	if (version != DSCOW_VERSION)
		return cow_err_set(err, -ENOTSUP, "%s: dscow version %u, this program knows %u",
				   img->path, version, DSCOW_VERSION);
	decode(h, d);
	unknown = d->incompat & ~(uint64_t)DSCOW_INCOMPAT_KNOWN;
	if (unknown)
		return cow_err_set(err, -ENOTSUP, "%s: uses feature bits %#llx that this program "
				   "does not know", img->path, (unsigned long long)unknown);
	bad = bad_geometry(d);
	if (!bad)
		bad = bad_map(d);
	if (bad)
		return cow_err_set(err, -EINVAL, "%s: the %s", img->path, bad);
	if (cow_img_file_size(img, 0) < file_needed(d))
		return cow_err_set(err, -EINVAL, "%s: is cut off: %llu bytes, its header speaks of %llu",
				   img->path, (unsigned long long)cow_img_file_size(img, 0),
				   (unsigned long long)file_needed(d));
	return read_text(img, d, h, err);
}

int dscow_header_read(struct cow_image *img, struct dscow *d, struct cow_err *err)
{
	struct dscow_header h[2];
	int rc;

	static_assert(DSCOW_BACKUP_OFF == sizeof(h[0]), "backup follows the header");
	rc = cow_img_pread(img, 0, h, sizeof(h), DSCOW_HEADER_OFF);
	if (rc)
		return cow_err_sys(err, rc, "%s", img->path);
	*d = (struct dscow){ .main_bad = !header_whole(&h[0]), .backup_bad = !header_whole(&h[1]) };
	if (!d->main_bad)
		return check_header(img, &h[0], d, err);
	if (d->backup_bad)
		return memcmp(h[0].magic, DSCOW_MAGIC, sizeof(h[0].magic)) ?
			cow_err_set(err, -EINVAL, "%s: is not a dscow image", img->path) :
			cow_err_set(err, -EIO, "%s: the header and its backup are damaged", img->path);
	if (!(img->open_flags & COW_OPEN_CHECK))
		return cow_err_set(err, -EIO, "%s: the header is damaged, its backup is whole: repair it",
				   img->path);
	return check_header(img, &h[1], d, err);
}

static void encode(const struct dscow *d, struct dscow_header *h)
{
	size_t path = strlen(d->backing.path), format = strlen(d->backing.format);
	char text[sizeof(d->backing.path) + sizeof(d->backing.format)];

	memset(h, 0, sizeof(*h));
	memcpy(h->magic, DSCOW_MAGIC, sizeof(h->magic));
	cow_put_le32(&h->version, DSCOW_VERSION);
	cow_put_le32(&h->header_bytes, sizeof(*h));
	cow_put_le64(&h->compat, d->compat);
	cow_put_le64(&h->incompat, d->incompat);
	memcpy(h->uuid, d->uuid, sizeof(h->uuid));
	memcpy(h->reserved, d->reserved, sizeof(h->reserved));
	cow_put_le64(&h->size, d->size);
	cow_put_le64(&h->below_limit, d->below_limit);
	cow_put_le64(&h->first_block, d->first_block);
	cow_put_le64(&h->ext_off, d->ext_off);
	cow_put_le64(&h->ext_first, d->ext_first);
	cow_put_le64(&h->ext_count, d->ext_count);
	h->block_bits = (uint8_t)d->block_bits;
	h->granule_bits = (uint8_t)d->granule_bits;
	cow_put_le16(&h->state, d->state);
	cow_put_le64(&h->session, d->session);
	if (d->text_off) {
		memcpy(text, d->backing.path, path);
		memcpy(text + path, d->backing.format, format);
		cow_put_le32(&h->text_off, d->text_off);
		cow_put_le16(&h->path_len, (uint16_t)path);
		cow_put_le16(&h->format_len, (uint16_t)format);
		cow_put_le64(&h->text_hash, XXH3_64bits(text, path + format));
	}
	cow_put_le64(&h->base_size, d->identity.size);
	cow_put_le64(&h->base_mtime_ns, (uint64_t)d->identity.mtime_ns);
	cow_put_le64(&h->base_sample, d->identity.sample);
	cow_put_le64(&h->hash, header_hash(h));
}

int dscow_header_write(struct cow_image *img, const struct dscow *d)
{
	struct dscow_header h[2];

	encode(d, &h[0]);
	h[1] = h[0];
	return cow_img_pwrite(img, 0, h, sizeof(h), DSCOW_HEADER_OFF);
}

int dscow_header_write_sync(struct cow_image *img, const struct dscow *d)
{
	int rc = dscow_header_write(img, d);

	return rc ? rc : cow_img_sync(img, 0);
}

int dscow_text_write(struct cow_image *img, struct dscow *d)
{
	char text[DSCOW_TEXT_BYTES] = "";
	size_t path = strlen(d->backing.path);

	if (path == 0) {
		d->text_off = 0;
		return 0;
	}
	if (path > DSCOW_PATH_MAX)
		return -ENAMETOOLONG;
	memcpy(text, d->backing.path, path);
	memcpy(text + path, d->backing.format, strlen(d->backing.format));
	d->text_off = d->text_off == DSCOW_TEXT_OFF_A ? DSCOW_TEXT_OFF_B : DSCOW_TEXT_OFF_A;
	return cow_img_pwrite(img, 0, text, sizeof(text), d->text_off);
}
