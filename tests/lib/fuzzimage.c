// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What is done to hostile images (fuzzimage.h).
 */
#include "fuzzimage.h"

#include <stdlib.h>

#include "cow/log.h"

#define RAW_MAX 65536u
#define PATCHES_MAX 12u
#define OPS_MAX 12u
#define LEN_MAX 20000u
#define SIZE_MAX_LOOK COW_GIB(4)	/* virtual bytes: a check looks at all tables */

static void cook(const struct fuzzimage_kind *kind, struct cow_sim *sim, struct fuzz_in *in)
{
	struct cow_args *args = cow_args_new();
	struct cow_create_cfg cfg = {
		.format = kind->format, .path = FUZZIMAGE, .args = args,
		.size = kind->min_size + fuzz_num(in, 3) * 64, .io = &cow_io_sim_ops, .io_arg = sim,
	};
	uint8_t data[9000];
	struct cow_chain *c;

	FUZZ_CHECK(args);
	FUZZ_CHECK(cow_args_parse(args, kind->options[fuzz_num(in, 1) % kind->n], NULL) == 0);
	FUZZ_CHECK(cow_image_create(&cfg, NULL, NULL) == 0);
	cow_args_free(args);
	c = fuzz_open_as(sim, kind->format, FUZZIMAGE, COW_OPEN_WRITE, true);
	FUZZ_CHECK(c);
	memset(data, 0xa5, sizeof(data));
	for (uint64_t at = 0; at < cow_chain_size(c); at += cow_chain_size(c) / 3 + 1)
		FUZZ_CHECK(cow_chain_pwrite(c, data, cow_min(sizeof(data), cow_chain_size(c) - at), at) == 0);
	FUZZ_CHECK(cow_chain_close(c) == 0);
}

static void make_image(const struct fuzzimage_kind *kind, struct cow_sim *sim, struct fuzz_in *in)
{
	static uint8_t buf[RAW_MAX];
	size_t len;

	if (fuzz_num(in, 1) % 8) {
		cook(kind, sim, in);
		for (uint64_t n = fuzz_num(in, 1) % PATCHES_MAX; n; n--)
			kind->patch(sim, in);
		return;
	}
	len = fuzz_bytes(in, buf, fuzz_num(in, 2));
	cow_put_be32(buf, kind->magic);
	if (kind->version)
		cow_put_be32(buf + 4, kind->version);
	FUZZ_CHECK(cow_sim_add(sim, FUZZIMAGE, 0, false) == 0);
	FUZZ_CHECK(cow_sim_write(sim, FUZZIMAGE, buf, cow_max(len, kind->version ? 8 : 4), 0) == 0);
}

void fuzzimage_ops(struct cow_chain *c, struct fuzz_in *in, bool write)
{
	static uint8_t buf[LEN_MAX];
	uint64_t size = cow_chain_size(c);

	for (unsigned i = 0; i < OPS_MAX && in->n; i++) {
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

static bool small_enough(const struct fuzzimage_kind *kind, struct cow_sim *sim, struct cow_chain *c)
{
	return cow_chain_size(c) <= SIZE_MAX_LOOK && (!kind->small_enough || kind->small_enough(sim));
}

static void look(const struct fuzzimage_kind *kind, struct cow_sim *sim, struct fuzz_in *in,
		 uint32_t flags)
{
	struct cow_chain *c = fuzz_open_as(sim, kind->format, FUZZIMAGE, flags, true);
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };

	if (!c)
		return;
	fuzzimage_ops(c, in, flags == COW_OPEN_WRITE);
	if (small_enough(kind, sim, c))
		(void)cow_chain_check(c, &rep, flags & COW_OPEN_WRITE && flags & COW_OPEN_CHECK ?
				      COW_CHECK_REPAIR : 0, &err);
	if (kind->whole && flags == COW_OPEN_WRITE && small_enough(kind, sim, c))
		kind->whole(c, in);
	(void)cow_chain_close(c);
	if (flags & COW_OPEN_WRITE)
		return;
	for (size_t i = 0; i < cow_sim_log_len(sim, FUZZIMAGE); i++)
		FUZZ_CHECK(cow_sim_log_is_sync(sim, FUZZIMAGE, i));
}

int fuzzimage_run(const struct fuzzimage_kind *kind, const uint8_t *data, size_t size)
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
	make_image(kind, sim, &in);
	cow_sim_log_start(sim, FUZZIMAGE);
	look(kind, sim, &in, 0);
	look(kind, sim, &in, COW_OPEN_WRITE);
	look(kind, sim, &in, COW_OPEN_WRITE | COW_OPEN_CHECK);
	cow_sim_free(sim);
	return 0;
}
