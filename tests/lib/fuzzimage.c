// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What is done to hostile images (fuzzimage.h).
 *
 * An input: how the image is made (a byte, a multiple of 8 means raw bytes), its
 * options, its size, how many patches, the patches; then operations.
 */
#include "fuzzimage.h"

#include <stdlib.h>

#include "cow/kv.h"
#include "cow/log.h"

#define RAW_MAX 16384u
#define PATCHES_MAX 12u
#define OPS_MAX 12u
#define LEN_MAX 20000u
#define SIZE_MAX_LOOK COW_MIB(256)	/* virtual bytes: a check looks at all tables */
#define NAME_MAX_LEN 32

/* Virtual bytes: less than a cluster, a ragged end, several tables. */
static const uint64_t sizes[] = { 1024, COW_KIB(300) + 512, COW_MIB(3), COW_MIB(40) };

static void pristine_name(char *name, unsigned option, unsigned size)
{
	snprintf(name, NAME_MAX_LEN, "%u-%u", option, size);
}

/* The whole block at @virt in its stored form, where the format has one. */
static void store_encoded(struct cow_chain *c, uint64_t virt)
{
	const struct cow_image *img = cow_chain_image(c, 0);
	uint8_t *plain = cow_zalloc(img->block), *stored = cow_zalloc(img->block);
	size_t n;

	FUZZ_CHECK(plain && stored);
	memset(plain, 0x5a, img->block / 2);
	if (img->fmt->encode && virt + img->block <= img->size &&
	    img->fmt->encode(cow_chain_image(c, 0), plain, stored, &n) == 0)
		FUZZ_CHECK(cow_chain_pwrite_encoded(c, stored, n, virt) == 0);
	cow_free(plain);
	cow_free(stored);
}

/* Clusters of every kind: written, stored in another form, zeroes; shared with a snapshot if it can be. */
static void fill(struct cow_chain *c)
{
	uint64_t size = cow_chain_size(c), block = cow_chain_image(c, 0)->block;
	uint8_t data[9000];

	memset(data, 0xa5, sizeof(data));
	for (uint64_t at = 0; at < size; at += size / 3 + 1)
		FUZZ_CHECK(cow_chain_pwrite(c, data, cow_min(sizeof(data), size - at), at) == 0);
	store_encoded(c, 4 * block);
	store_encoded(c, 5 * block);
	(void)cow_chain_snapshot(c, COW_SNAPSHOT_CREATE, "a", NULL);
	FUZZ_CHECK(cow_chain_pwrite(c, data, cow_min(600, size), 0) == 0);
	if (size > 8 * block)
		FUZZ_CHECK(cow_chain_zero(c, 7 * block, block) == 0);
}

static void make_pristine(const struct fuzzimage_kind *kind, struct cow_sim *store, unsigned option,
			  uint64_t size, const char *name)
{
	struct cow_args *args = cow_args_new();
	struct cow_create_cfg cfg = {
		.format = kind->format, .path = name, .args = args, .size = size,
		.io = &cow_io_sim_ops, .io_arg = store,
	};
	struct cow_chain *c;

	FUZZ_CHECK(args);
	FUZZ_CHECK(cow_args_parse(args, kind->options[option], NULL) == 0);
	FUZZ_CHECK(cow_image_create(&cfg, NULL, NULL) == 0);
	cow_args_free(args);
	c = fuzz_open_as(store, kind->format, name, NULL, COW_OPEN_WRITE, true);
	FUZZ_CHECK(c);
	fill(c);
	FUZZ_CHECK(cow_chain_close(c) == 0);
	cow_sim_log_start(store, name);
}

/* A copy of a sound image, which shares its pages. */
static void copy_pristine(const struct fuzzimage_kind *kind, struct cow_sim *sim, struct fuzz_in *in)
{
	static struct cow_sim *store;
	static const struct fuzzimage_kind *of;
	static bool made[FUZZIMAGE_OPTIONS_MAX][COW_ARRAY_SIZE(sizes)];
	unsigned option = (unsigned)(fuzz_num(in, 1) % kind->n);
	unsigned size = (unsigned)(fuzz_num(in, 1) % COW_ARRAY_SIZE(sizes));
	char name[NAME_MAX_LEN];

	if (of != kind) {	/* hardly ever: a target has one */
		if (store)
			cow_sim_free(store);
		store = cow_sim_new(1);
		memset(made, 0, sizeof(made));
		of = kind;
	}
	FUZZ_CHECK(store && kind->n <= FUZZIMAGE_OPTIONS_MAX);
	pristine_name(name, option, size);
	if (!made[option][size])
		make_pristine(kind, store, option, sizes[size], name);
	made[option][size] = true;
	FUZZ_CHECK(cow_sim_crash(store, name, 0, COW_SIM_PREFIX, 0, sim, FUZZIMAGE) == 0);
}

void fuzzimage_make(const struct fuzzimage_kind *kind, struct cow_sim *sim, struct fuzz_in *in)
{
	static uint8_t buf[RAW_MAX];
	size_t len;

	if (fuzz_num(in, 1) % 8) {
		copy_pristine(kind, sim, in);
		for (uint64_t n = fuzz_num(in, 1) % PATCHES_MAX; n; n--)
			kind->patch(sim, in);
		return;
	}
	len = fuzz_bytes(in, buf, fuzz_num(in, 2) % (RAW_MAX + 1));
	cow_put_be32(buf, kind->magic);
	if (kind->version)
		cow_put_be32(buf + 4, kind->version);
	FUZZ_CHECK(cow_sim_add(sim, FUZZIMAGE, 0, false) == 0);
	FUZZ_CHECK(cow_sim_write(sim, FUZZIMAGE, buf, cow_max(len, kind->version ? 8 : 4), 0) == 0);
}

/* ---- what is done to it ---- */

/* Requests of all sorts, as the input says. */
static void ops(struct cow_chain *c, struct fuzz_in *in, bool write)
{
	static uint8_t buf[LEN_MAX];

	for (unsigned i = 0; i < OPS_MAX && in->n; i++) {
		uint64_t size = cow_chain_size(c);
		uint64_t how = fuzz_num(in, 1), off = fuzz_num(in, 3) * 64 % size;
		uint64_t len = cow_min(1 + fuzz_num(in, 2) % LEN_MAX, size - off);
		struct cow_extent e;

		if (how % 5 == 0)
			(void)cow_chain_pread(c, buf, len, off);
		else if (how % 5 == 1 && cow_chain_extent(c, 0, off, size - off, &e, NULL) == 0)
			FUZZ_CHECK(e.virt == off && e.len > 0 && e.len <= size - off);
		else if (how % 5 == 2 && write)
			(void)cow_chain_pwrite(c, buf, len, off);
		else if (how % 5 == 3 && write)
			(void)(how & 64 ? cow_chain_zero(c, off, len) : cow_chain_discard(c, off, len));
		else if (write)
			(void)cow_chain_flush(c);
	}
}

static int ignore(void *opaque, const struct cow_snapshot *s)
{
	FUZZ_CHECK(s->id && s->name);
	return opaque != NULL;
}

static void tell(struct cow_chain *c)
{
	static FILE *nowhere;
	struct cow_kv *kv;

	if (!nowhere)
		nowhere = fopen("/dev/null", "w");
	FUZZ_CHECK(nowhere);
	kv = cow_kv_new(nowhere, COW_KV_JSON, 1);
	FUZZ_CHECK(kv);
	cow_chain_info(c, kv);
	FUZZ_CHECK(cow_kv_end(kv) == 0);
	(void)cow_chain_snapshots(c, ignore, NULL, NULL);
}

/* A repair that says it is done leaves nothing for another. */
static void repair(struct cow_chain *c)
{
	struct cow_report rep = { 0 }, after = { 0 };
	struct cow_err err = { 0 };
	int rc = cow_chain_check(c, &rep, COW_CHECK_REPAIR, &err);

	FUZZ_CHECK(rc == 0 || err.msg[0]);
	if (rc || rep.repaired < rep.leaks + rep.corruptions)
		return;
	FUZZ_CHECK(cow_chain_check(c, &after, 0, &err) == 0);
	FUZZ_CHECK(after.leaks + after.corruptions == 0);
}

static void use(const struct fuzzimage_kind *kind, enum fuzzimage_what what, struct cow_chain *c,
		struct fuzz_in *in)
{
	switch (what) {
	case FUZZIMAGE_OPEN:
		tell(c);
		break;
	case FUZZIMAGE_READ:
		ops(c, in, false);
		break;
	case FUZZIMAGE_WRITE:
		ops(c, in, true);
		break;
	case FUZZIMAGE_CHECK:
		(void)cow_chain_check(c, &(struct cow_report){ 0 }, 0, NULL);
		break;
	case FUZZIMAGE_REPAIR:
		repair(c);
		ops(c, in, true);
		break;
	case FUZZIMAGE_WHOLE:
		kind->whole(c, in);
		ops(c, in, true);
		break;
	}
}

static bool small_enough(const struct fuzzimage_kind *kind, struct cow_sim *sim, struct cow_chain *c)
{
	return cow_chain_size(c) <= SIZE_MAX_LOOK && (!kind->small_enough || kind->small_enough(sim));
}

static void look(const struct fuzzimage_kind *kind, enum fuzzimage_what what, struct cow_sim *sim,
		 struct fuzz_in *in, uint32_t flags, const char *options)
{
	struct cow_chain *c = fuzz_open_as(sim, kind->format, FUZZIMAGE, options, flags, true);

	if (!c)
		return;
	if (what < FUZZIMAGE_CHECK || small_enough(kind, sim, c))
		use(kind, what, c, in);
	(void)cow_chain_close(c);
}

static void look_only(const struct fuzzimage_kind *kind, enum fuzzimage_what what, struct cow_sim *sim,
		      struct fuzz_in *in)
{
	uint64_t how = what == FUZZIMAGE_READ && kind->read_options ? fuzz_num(in, 1) % 4 : 1;

	cow_sim_log_start(sim, FUZZIMAGE);
	look(kind, what, sim, in, 0, how ? NULL : kind->read_options);
	for (size_t i = 0; i < cow_sim_log_len(sim, FUZZIMAGE); i++)
		FUZZ_CHECK(cow_sim_log_is_sync(sim, FUZZIMAGE, i));
}

int fuzzimage_run(const struct fuzzimage_kind *kind, enum fuzzimage_what what, const uint8_t *data,
		  size_t size)
{
	struct fuzz_in in = { data, size };
	struct cow_sim *sim = cow_sim_new(1);
	const struct cow_format *fmt;

	FUZZ_CHECK(sim);
	setenv("COW_PLUGIN_DIR", TEST_BUILD "/lib/cow", 0);
	cow_log_set_level((enum cow_log_level)0);
	if (cow_format_find(kind->format, &fmt, NULL)) {	/* built without zlib and zstd */
		cow_sim_free(sim);
		return 0;
	}
	fuzzimage_make(kind, sim, &in);
	if (what == FUZZIMAGE_OPEN || what == FUZZIMAGE_READ || what == FUZZIMAGE_CHECK)
		look_only(kind, what, sim, &in);
	if (what == FUZZIMAGE_OPEN || what == FUZZIMAGE_WRITE || what == FUZZIMAGE_WHOLE)
		look(kind, what, sim, &in, COW_OPEN_WRITE, NULL);
	if (what == FUZZIMAGE_OPEN || what == FUZZIMAGE_REPAIR)
		look(kind, what, sim, &in, COW_OPEN_WRITE | COW_OPEN_CHECK, NULL);
	cow_sim_free(sim);
	return 0;
}
