// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Format "dscow": a sparse overlay in which every granule keeps its place, a
 * constant shift behind that of the original, and one bit says whether it is
 * there. This file: life cycle and registration. The layout is in dscow.h.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/random.h>

#include "dscow-priv.h"

static const struct cow_opt opts[] = {
	{ NULL, 0, NULL, NULL },
};

static const struct cow_opt create_opts[] = {
	{ "block_size", COW_OPT_SIZE, "64K", "unit of the layout: a power of two, 4K to 16M" },
	{ "granule_size", COW_OPT_SIZE, "4K", "unit of presence: a power of two, 4K to the block size" },
	{ NULL, 0, NULL, NULL },
};

static int dscow_probe(const uint8_t *head, size_t len, uint64_t file_size)
{
	(void)file_size;
	return len >= 8 && memcmp(head, DSCOW_MAGIC, 8) == 0 ? 100 : 0;
}

/* What libcow sees of the header. */
static void publish(struct cow_image *img, const struct dscow *d)
{
	img->size = d->size;
	img->below_limit = d->below_limit;
	img->granule = 1u << d->granule_bits;
	img->block = 1u << d->block_bits;
	img->linear = true;
	img->linear_shift = d->first_block;
	img->session = d->state & DSCOW_STATE_DIRTY ? d->session : 0;
	img->backing = d->backing;
	img->identity = d->identity;
	if (d->state & DSCOW_STATE_COMMITTING)
		img->identity.size = 0;		/* the base changes on purpose: nothing to compare */
}

static int dscow_open(struct cow_image *img, const struct cow_args *args, struct cow_err *err)
{
	struct dscow *d = img->priv;
	int rc = dscow_header_read(img, d, err);

	(void)args;
	if (rc)
		return rc;
	if ((d->state & DSCOW_STATE_NEEDS_CHECK) && (img->open_flags & COW_OPEN_WRITE) &&
	    !(img->open_flags & COW_OPEN_CHECK))
		return cow_err_set(err, -EUCLEAN, "%s: is marked as damaged: repair it before writing",
				   img->path);
	publish(img, d);
	return 0;
}

static void dscow_close(struct cow_image *img)
{
	(void)img;
}

static int dscow_begin(struct cow_image *img, uint64_t session)
{
	struct dscow *d = img->priv;
	struct dscow next = *d;
	int rc;

	next.state |= DSCOW_STATE_DIRTY;
	next.session = session;
	rc = dscow_header_write(img, &next);
	if (rc == 0)
		*d = next;
	return rc;
}

static int dscow_end(struct cow_image *img)
{
	struct dscow *d = img->priv;

	d->state &= (uint16_t)~DSCOW_STATE_DIRTY;
	if (d->damaged)
		d->state |= DSCOW_STATE_NEEDS_CHECK;
	return dscow_header_write_sync(img, d);
}

/* ---- create ---- */

static int log2_of(uint64_t v)
{
	return __builtin_ctzll(v);
}

static int create_geometry(struct cow_image *img, const struct cow_create *c, struct dscow *d,
			   struct cow_err *err)
{
	uint64_t block = cow_args_size(c->args, "block_size", DSCOW_BLOCK_DEFAULT);
	uint64_t granule = cow_args_size(c->args, "granule_size", DSCOW_GRANULE_DEFAULT);

	if (!cow_is_pow2(block) || block < DSCOW_BLOCK_MIN || block > DSCOW_BLOCK_MAX)
		return cow_err_set(err, -EINVAL, "%s: block size %llu is not a power of two between "
				   "4 KiB and 16 MiB", img->path, (unsigned long long)block);
	if (!cow_is_pow2(granule) || granule < DSCOW_GRANULE_MIN || granule > block)
		return cow_err_set(err, -EINVAL, "%s: granule size %llu is not a power of two between "
				   "4 KiB and the block size", img->path, (unsigned long long)granule);
	if (c->size > DSCOW_SIZE_MAX)
		return cow_err_set(err, -EFBIG, "%s: %llu bytes are more than the 64 PiB of the format",
				   img->path, (unsigned long long)c->size);
	d->size = c->size;
	d->block_bits = (unsigned)log2_of(block);
	d->granule_bits = (unsigned)log2_of(granule);
	d->first_block = cow_round_up(DSCOW_MAP_OFF + dscow_sectors(d, c->size) * DSCOW_SECTOR, block);
	return 0;
}

static int dscow_measure(struct cow_image *img, const struct cow_create *c, struct cow_measure *ret,
			 struct cow_err *err)
{
	struct dscow *d = img->priv;
	int rc = create_geometry(img, c, d, err);

	*ret = (struct cow_measure){ .tables = d->first_block };
	return rc;
}

static int create_file(struct cow_image *img, const struct dscow *d)
{
	int rc;

	if (cow_img_is_blkdev(img, 0))
		rc = cow_img_punch(img, 0, DSCOW_MAP_OFF, d->first_block - DSCOW_MAP_OFF);
	else
		rc = cow_img_truncate(img, 0, d->first_block + d->size);
	return rc;
}

/* RFC 9562 version 4. */
static int make_uuid(uint8_t uuid[16])
{
	if (getrandom(uuid, 16, 0) != 16)
		return -EIO;
	uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40);
	uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
	return 0;
}

static int dscow_create(struct cow_image *img, const struct cow_create *c, struct cow_err *err)
{
	struct dscow *d = img->priv;
	int rc = create_geometry(img, c, d, err);

	if (rc)
		return rc;
	if (c->backing) {
		d->backing = *c->backing;
		d->identity = *c->identity;
		d->below_limit = cow_min(d->size, d->identity.size);
	}
	if (cow_img_is_blkdev(img, 0) && cow_img_file_size(img, 0) < d->first_block + d->size)
		return cow_err_set(err, -ENOSPC, "%s: has %llu bytes, the overlay needs %llu", img->path,
				   (unsigned long long)cow_img_file_size(img, 0),
				   (unsigned long long)(d->first_block + d->size));
	rc = make_uuid(d->uuid);
	if (rc == 0)
		rc = create_file(img, d);
	if (rc == 0)
		rc = dscow_text_write(img, d);
	if (rc == 0)
		rc = dscow_header_write(img, d);
	return rc ? cow_err_sys(err, rc, "%s", img->path) : 0;
}

/* ---- commit's last steps ---- */

static int clear_map(struct cow_image *img, const struct dscow *d)
{
	int rc = cow_img_punch(img, 0, DSCOW_MAP_OFF, d->first_block - DSCOW_MAP_OFF);

	if (rc == 0 && d->ext_count)
		rc = cow_img_punch(img, 0, d->ext_off, d->ext_count * DSCOW_SECTOR);
	return rc;
}

/* The map must be durably empty before the data goes: a bit over a hole would read as zeroes. */
static int dscow_make_empty(struct cow_image *img, struct cow_err *err)
{
	struct dscow *d = img->priv;
	int rc;

	d->below_limit = d->size;
	rc = dscow_header_write_sync(img, d);
	if (rc == 0)
		rc = clear_map(img, d);
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	if (rc == 0)
		rc = cow_img_punch(img, 0, d->first_block, d->size);
	if (rc == 0)
		rc = cow_img_sync(img, 0);
	cow_img_drop_cache(img);
	publish(img, d);
	return rc ? cow_err_sys(err, rc, "%s: cannot be emptied", img->path) : 0;
}

static int dscow_rebase(struct cow_image *img, const struct cow_backing *backing,
			const struct cow_identity *identity, bool committing, struct cow_err *err)
{
	struct dscow *d = img->priv;
	struct dscow next = *d;
	int rc = 0;

	if (strcmp(next.backing.path, backing->path) || strcmp(next.backing.format, backing->format)) {
		next.backing = *backing;
		rc = dscow_text_write(img, &next);
		if (rc == 0)
			rc = cow_img_sync(img, 0);
	}
	if (committing) {
		next.state |= DSCOW_STATE_COMMITTING;
	} else {
		next.state &= (uint16_t)~DSCOW_STATE_COMMITTING;
		next.identity = *identity;
		/* Without a base there was nothing to hide. */
		next.below_limit = cow_min(d->backing.path[0] ? next.below_limit : next.size, identity->size);
	}
	if (rc == 0)
		rc = dscow_header_write_sync(img, &next);
	if (rc)
		return cow_err_sys(err, rc, "%s: cannot record the base", img->path);
	*d = next;
	publish(img, d);
	return 0;
}

/* ---- facts ---- */

static void info_state(const struct dscow *d, struct cow_kv *kv)
{
	cow_kv_list(kv, "state");
	if (d->state & DSCOW_STATE_DIRTY)
		cow_kv_str(kv, NULL, "dirty");
	if (d->state & DSCOW_STATE_NEEDS_CHECK)
		cow_kv_str(kv, NULL, "needs-check");
	if (d->state & DSCOW_STATE_COMMITTING)
		cow_kv_str(kv, NULL, "committing");
	cow_kv_close(kv);
}

static void dscow_info(struct cow_image *img, struct cow_kv *kv)
{
	const struct dscow *d = img->priv;
	const uint8_t *u = d->uuid;
	uint64_t blocks = cow_div_up(d->size, 1ULL << d->block_bits);
	char uuid[40];

	snprintf(uuid, sizeof(uuid),
		 "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1],
		 u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14],
		 u[15]);
	cow_kv_str(kv, "uuid", uuid);
	cow_kv_u64(kv, "version", DSCOW_VERSION);
	cow_kv_u64(kv, "block_size", 1ULL << d->block_bits);
	cow_kv_u64(kv, "granule_size", 1ULL << d->granule_bits);
	cow_kv_u64(kv, "first_block", d->first_block);
	cow_kv_u64(kv, "blocks", blocks);
	cow_kv_u64(kv, "bitmap_words", cow_div_up(blocks, 32));
	cow_kv_u64(kv, "base_visible_bytes", d->below_limit);
	if (d->backing.path[0]) {
		cow_kv_str(kv, "base_path", d->backing.path);
		cow_kv_str(kv, "base_format", d->backing.format);
		cow_kv_u64(kv, "base_size", d->identity.size);
	}
	cow_kv_u64(kv, "compatible_features", d->compat);
	cow_kv_u64(kv, "incompatible_features", d->incompat);
	info_state(d, kv);
}

static struct cow_format dscow_format = {
	.name = "dscow",
	.desc = "sparse copy-on-write overlay, every granule at its own place",
	.version = "1",
	.caps = COW_CAP_WRITE | COW_CAP_DISCARD | COW_CAP_RESIZE | COW_CAP_BACKING | COW_CAP_CREATE |
		COW_CAP_CHECK | COW_CAP_COMMIT,
	.priv_size = sizeof(struct dscow),
	.opts = opts,
	.create_opts = create_opts,
	.probe = dscow_probe,
	.open = dscow_open,
	.close = dscow_close,
	.map = dscow_map,
	.commit = dscow_commit,
	.begin = dscow_begin,
	.end = dscow_end,
	.verify = dscow_verify,
	.seal = dscow_seal,
	.create = dscow_create,
	.measure = dscow_measure,
	.resize = dscow_resize,
	.check = dscow_check,
	.make_empty = dscow_make_empty,
	.rebase = dscow_rebase,
	.info = dscow_info,
};

COW_FORMAT_REGISTER(dscow_format)
