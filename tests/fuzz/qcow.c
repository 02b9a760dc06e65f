// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Hostile qcow images: one made by the library and then patched, or raw bytes;
 * opened in every way, read, mapped, checked, written to and repaired. None may
 * crash, hang, take memory without measure, or be changed by reading.
 */
#include <stdio.h>

#include "cow/log.h"
#include "fuzz.h"
#include "qcow/qcow-priv.h"

#define IMG "img.qcow"
#define RAW_MAX 65536u
#define PATCHES_MAX 12u
#define OPS_MAX 12u
#define LEN_MAX 20000u
#define SIZE_MAX_LOOK COW_GIB(4)	/* virtual bytes: a check looks at all tables */

static const char *const options[] = {
	"", "cluster_size=512", "cluster_size=1K", "cluster_size=8K", "cluster_size=64K",
};

static struct cow_chain *open_it(struct cow_sim *sim, uint32_t flags)
{
	return fuzz_open_as(sim, "qcow", IMG, flags, true);
}

static void cook(struct cow_sim *sim, struct fuzz_in *in)
{
	struct cow_args *args = cow_args_new();
	struct cow_create_cfg cfg = {
		.format = "qcow", .path = IMG, .args = args, .size = 2 + fuzz_num(in, 3) * 64,
		.io = &cow_io_sim_ops, .io_arg = sim,
	};
	uint8_t data[9000];
	struct cow_chain *c;

	FUZZ_CHECK(args);
	FUZZ_CHECK(cow_args_parse(args, options[fuzz_num(in, 1) % COW_ARRAY_SIZE(options)], NULL) == 0);
	FUZZ_CHECK(cow_image_create(&cfg, NULL, NULL) == 0);
	cow_args_free(args);
	c = open_it(sim, COW_OPEN_WRITE);
	FUZZ_CHECK(c);
	memset(data, 0xa5, sizeof(data));
	for (uint64_t at = 0; at < cow_chain_size(c); at += cow_chain_size(c) / 3 + 1)
		FUZZ_CHECK(cow_chain_pwrite(c, data, cow_min(sizeof(data), cow_chain_size(c) - at), at) == 0);
	FUZZ_CHECK(cow_chain_close(c) == 0);
}

/* A number where it hurts: in the header, or the first entries of a table. */
static void patch(struct cow_sim *sim, struct fuzz_in *in)
{
	uint64_t n = fuzz_num(in, 1) % PATCHES_MAX;
	uint8_t b[8];

	while (n--) {
		uint64_t how = fuzz_num(in, 1), where = fuzz_num(in, 1), value = fuzz_num(in, 8);
		uint64_t l1, off = where;

		FUZZ_CHECK(cow_sim_read(sim, IMG, b, sizeof(b), QCOW_H_L1_OFF) == 0);
		l1 = cow_get_be64(b);
		FUZZ_CHECK(cow_sim_read(sim, IMG, b, sizeof(b), l1) == 0);
		if (how % 4 == 1)
			off = l1 + where % 8 * 8;
		if (how % 4 >= 2)
			off = cow_get_be64(b) + where * 8;
		if (how & 16)	/* an entry that can be */
			value = (value & QCOW_COMPRESSED) | (value & 0xfff) << 9;
		cow_put_be64(b, value);
		if (off < cow_sim_size(sim, IMG))
			FUZZ_CHECK(cow_sim_write(sim, IMG, b, how & 64 ? 1 : how & 128 ? 4 : 8, off) == 0);
	}
}

static void make_image(struct cow_sim *sim, struct fuzz_in *in)
{
	static uint8_t buf[RAW_MAX];
	size_t len;

	if (fuzz_num(in, 1) % 8) {
		cook(sim, in);
		patch(sim, in);
		return;
	}
	len = fuzz_bytes(in, buf, fuzz_num(in, 2));
	cow_put_be32(buf, QCOW_MAGIC);
	cow_put_be32(buf + QCOW_H_VERSION, QCOW_VERSION);
	FUZZ_CHECK(cow_sim_add(sim, IMG, 0, false) == 0);
	FUZZ_CHECK(cow_sim_write(sim, IMG, buf, cow_max(len, 8), 0) == 0);
}

static void ops(struct cow_chain *c, struct fuzz_in *in, bool write)
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

static void look(struct cow_sim *sim, struct fuzz_in *in, uint32_t flags)
{
	struct cow_chain *c = open_it(sim, flags);
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };

	if (!c)
		return;
	ops(c, in, flags == COW_OPEN_WRITE);
	if (cow_chain_size(c) <= SIZE_MAX_LOOK)
		(void)cow_chain_check(c, &rep, flags & COW_OPEN_WRITE && flags & COW_OPEN_CHECK ?
				      COW_CHECK_REPAIR : 0, &err);
	(void)cow_chain_close(c);
	if (flags & COW_OPEN_WRITE)
		return;
	for (size_t i = 0; i < cow_sim_log_len(sim, IMG); i++)
		FUZZ_CHECK(cow_sim_log_is_sync(sim, IMG, i));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = { data, size };
	struct cow_sim *sim = cow_sim_new(1);
	const struct cow_format *fmt;

	FUZZ_CHECK(sim);
	setenv("COW_PLUGIN_DIR", TEST_BUILD "/lib/cow", 0);
	cow_log_set_level((enum cow_log_level)0);
	if (cow_format_find("qcow", &fmt, NULL)) {	/* built without zlib and zstd */
		cow_sim_free(sim);
		return 0;
	}
	make_image(sim, &in);
	cow_sim_log_start(sim, IMG);
	look(sim, &in, 0);
	look(sim, &in, COW_OPEN_WRITE);
	look(sim, &in, COW_OPEN_WRITE | COW_OPEN_CHECK);
	cow_sim_free(sim);
	return 0;
}
