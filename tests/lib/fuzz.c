// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Machines out of bytes, for the fuzz targets (fuzz.h).
 */
#include "fuzz.h"

#include <errno.h>
#include <stdio.h>
#include <xxhash.h>

#include "cow/log.h"
#include "dscow/dscow.h"

#define PATCHES_MAX 16u
#define LARGE_BLOCKS 250u	/* rare: room for 32,000 map sectors, which a check looks at */
#define RAW_MAX 65536u
#define DEVICE_BYTES COW_MIB(64)	/* no holes to be told: a check reads the whole map */
#define FILE_MAX (1ULL << 58)	/* above what any header may ask for */
#define MAP_FIX_MAX 128u	/* map sectors whose hashes are put right */

_Noreturn void fuzz_failed(const char *cond, const char *file, int line)
{
	fprintf(stderr, "%s:%d: not true: %s\n", file, line, cond);
	abort();
}

uint64_t fuzz_num(struct fuzz_in *in, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes && in->n; i++, in->p++, in->n--)
		v |= (uint64_t)*in->p << (8 * i);
	return v;
}

size_t fuzz_bytes(struct fuzz_in *in, void *buf, size_t len)
{
	size_t n = cow_min(len, in->n);

	memcpy(buf, in->p, n);
	in->p += n;
	in->n -= n;
	return n;
}

static void make_base(struct cow_sim *sim)
{
	uint8_t buf[4096];

	FUZZ_CHECK(cow_sim_add(sim, FUZZ_BASE, FUZZ_BASE_SIZE, false) == 0);
	for (unsigned i = 0; i < sizeof(buf); i++)
		buf[i] = (uint8_t)(i * 7 + 1);
	FUZZ_CHECK(cow_sim_write(sim, FUZZ_BASE, buf, sizeof(buf), 0) == 0);
	FUZZ_CHECK(cow_sim_write(sim, FUZZ_BASE, buf, 1000, FUZZ_BASE_SIZE - 1000) == 0);
}

/* False: the recipe is for an image that is refused. */
static bool cook(struct cow_sim *sim, struct fuzz_in *in, unsigned mode)
{
	unsigned pick = (unsigned)fuzz_num(in, 1);
	unsigned block = 12 + pick % (pick < LARGE_BLOCKS ? 6 : 13);
	unsigned granule = 12 + (unsigned)fuzz_num(in, 1) % (block - 11);
	uint64_t size = fuzz_num(in, 3);
	struct cow_args *args = cow_args_new();
	struct cow_create_cfg cfg = {
		.format = "dscow", .path = FUZZ_IMAGE, .args = args, .exist_ok = true,
		.io = &cow_io_sim_ops, .io_arg = sim,
	};
	char num[32];
	int rc;

	FUZZ_CHECK(args);
	cfg.size = (size + 1) << fuzz_num(in, 1) % 30;
	if (!(mode & FUZZ_NO_BASE)) {
		cfg.backing = FUZZ_BASE;
		cfg.backing_format = "raw";
	}
	snprintf(num, sizeof(num), "%u", 1u << block);
	FUZZ_CHECK(cow_args_set(args, "block_size", num) == 0);
	snprintf(num, sizeof(num), "%u", 1u << granule);
	FUZZ_CHECK(cow_args_set(args, "granule_size", num) == 0);
	rc = cow_image_create(&cfg, NULL, NULL);
	cow_args_free(args);
	return rc == 0;
}

/* A patch lands in the header, the texts, or the map, rarely elsewhere. */
static void patch(struct cow_sim *sim, struct fuzz_in *in)
{
	uint64_t n = fuzz_num(in, 1) % PATCHES_MAX, limit = cow_sim_size(sim, FUZZ_IMAGE);

	while (n--) {
		uint64_t where = fuzz_num(in, 2);
		uint8_t buf[8] = { 0 };
		size_t len = 1 + fuzz_num(in, 1) % sizeof(buf);

		where = where & 0x8000 ? where & 0x1ff : where & 0x7fff;
		fuzz_bytes(in, buf, len);
		if (where + len <= limit)
			FUZZ_CHECK(cow_sim_write(sim, FUZZ_IMAGE, buf, len, where) == 0);
	}
}

static void raw(struct cow_sim *sim, struct fuzz_in *in)
{
	static uint8_t buf[RAW_MAX];
	size_t len = fuzz_bytes(in, buf, fuzz_num(in, 2));

	FUZZ_CHECK(cow_sim_write(sim, FUZZ_IMAGE, buf, len, 0) == 0);
}

static void fix_map(struct cow_sim *sim, const struct dscow_header *h)
{
	uint64_t first = cow_get_le64(&h->first_block), uuid = cow_get_le64(h->uuid);
	uint64_t n = first > DSCOW_MAP_OFF ? (first - DSCOW_MAP_OFF) / DSCOW_SECTOR : 0;

	for (uint64_t i = 0; i < cow_min(n, MAP_FIX_MAX); i++) {
		uint64_t off = DSCOW_MAP_OFF + i * DSCOW_SECTOR;
		struct dscow_mapsec s, zero = { 0 };

		FUZZ_CHECK(cow_sim_read(sim, FUZZ_IMAGE, &s, sizeof(s), off) == 0);
		if (!memcmp(&s, &zero, sizeof(s)))
			continue;
		cow_put_le64(&s.hash, XXH3_64bits_withSeed(&s, offsetof(struct dscow_mapsec, hash),
							   uuid ^ i));
		FUZZ_CHECK(cow_sim_write(sim, FUZZ_IMAGE, &s, sizeof(s), off) == 0);
	}
}

static void fix(struct cow_sim *sim, unsigned mode)
{
	struct dscow_header h;
	char text[DSCOW_TEXT_BYTES];
	uint64_t end, len;

	FUZZ_CHECK(cow_sim_read(sim, FUZZ_IMAGE, &h, sizeof(h), 0) == 0);
	if (mode & FUZZ_MAP)
		fix_map(sim, &h);
	if (mode & FUZZ_HEADER) {
		len = (uint64_t)cow_get_le16(&h.path_len) + cow_get_le16(&h.format_len);
		memcpy(h.magic, DSCOW_MAGIC, sizeof(h.magic));
		if (len <= sizeof(text)) {
			FUZZ_CHECK(cow_sim_read(sim, FUZZ_IMAGE, text, len,
						cow_get_le32(&h.text_off)) == 0);
			cow_put_le64(&h.text_hash, XXH3_64bits(text, len));
		}
		cow_put_le64(&h.hash, XXH3_64bits(&h, offsetof(struct dscow_header, hash)));
		FUZZ_CHECK(cow_sim_write(sim, FUZZ_IMAGE, &h, sizeof(h), 0) == 0);
	}
	if (mode & FUZZ_MIRROR)
		FUZZ_CHECK(cow_sim_write(sim, FUZZ_IMAGE, &h, sizeof(h), DSCOW_BACKUP_OFF) == 0);
	if ((mode & FUZZ_SIZE) && !(mode & FUZZ_BLKDEV) &&
	    cow_add_ok(cow_get_le64(&h.first_block), cow_get_le64(&h.size), &end) &&
	    end <= FILE_MAX && end > cow_sim_size(sim, FUZZ_IMAGE)) {
		char last = 0;

		FUZZ_CHECK(cow_sim_write(sim, FUZZ_IMAGE, &last, 1, end - 1) == 0);
	}
}

struct cow_sim *fuzz_machine(struct fuzz_in *in)
{
	unsigned mode = (unsigned)fuzz_num(in, 1);
	struct cow_sim *sim = cow_sim_new(1);

	FUZZ_CHECK(sim);
	setenv("COW_PLUGIN_DIR", TEST_BUILD "/lib/cow", 0);
	cow_log_set_level((enum cow_log_level)0);
	make_base(sim);
	if (mode & FUZZ_BLKDEV)
		FUZZ_CHECK(cow_sim_add(sim, FUZZ_IMAGE, DEVICE_BYTES, true) == 0);
	if (!(mode & FUZZ_RECIPE) || !cook(sim, in, mode)) {
		if (!(mode & FUZZ_BLKDEV))
			FUZZ_CHECK(cow_sim_add(sim, FUZZ_IMAGE, 0, false) == 0);
		raw(sim, in);
	} else {
		patch(sim, in);
	}
	fix(sim, mode);
	cow_sim_log_start(sim, FUZZ_BASE);
	cow_sim_log_start(sim, FUZZ_IMAGE);
	return sim;
}

struct cow_chain *fuzz_open_as(struct cow_sim *sim, const char *format, const char *path,
			       const char *options, uint32_t flags, bool no_backing)
{
	struct cow_args *args = options ? cow_args_new() : NULL;
	struct cow_chain_cfg cfg = {
		.format = format, .path = path, .args = args, .flags = flags, .no_backing = no_backing,
		.cache_bytes = COW_KIB(256), .io = &cow_io_sim_ops, .io_arg = sim,
	};
	struct cow_err err = { 0 };
	struct cow_chain *c = NULL;
	int rc;

	FUZZ_CHECK(!options || (args && cow_args_parse(args, options, NULL) == 0));
	rc = cow_chain_open(&cfg, &c, &err);
	cow_args_free(args);
	if (rc == 0)
		return c;
	FUZZ_CHECK(rc < 0 && err.code == rc && err.msg[0]);
	FUZZ_CHECK(cow_sim_open_files(sim) == 0);
	return NULL;
}

struct cow_chain *fuzz_open(struct cow_sim *sim, uint32_t flags, bool no_backing)
{
	return fuzz_open_as(sim, "dscow", FUZZ_IMAGE, NULL, flags, no_backing);
}
