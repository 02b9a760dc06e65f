// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * qcow2 under power cuts, failing disks and many requests at once (image.h); and
 * what only this format has: refcounts, and repairs of them.
 *
 * Short unless FAULT=full.
 */

#include "image.h"
#include "qcow2/qcow2-priv.h"
#include "test.h"

/* Without what only this program puts there, the base's name close behind the rest. */
static void as_others_make_it(struct rig *r)
{
	uint8_t old[1024], new[sizeof(old)] = { 0 };
	uint32_t from, to, bytes;

	CHECK_EQ(cow_sim_read(r->sim, RIG_OVER, old, sizeof(old), 0), 0);
	from = to = cow_get_be32(old + QCOW2_H_LENGTH);
	memcpy(new, old, from);
	for (; cow_get_be32(old + from) != QCOW2_EXT_END; from += bytes) {
		uint32_t type = cow_get_be32(old + from);

		bytes = 8 + (uint32_t)cow_round_up(cow_get_be32(old + from + 4), 8);
		if (type == QCOW2_EXT_SESSION || type == QCOW2_EXT_FREE)
			continue;
		memcpy(new + to, old + from, bytes);
		to += bytes;
	}
	CHECK(to < from);
	to += 8;	/* the end of the extensions */
	bytes = cow_get_be32(old + QCOW2_H_BACKING_LEN);
	memcpy(new + to, old + cow_get_be64(old + QCOW2_H_BACKING_OFF), bytes);
	cow_put_be64(new + QCOW2_H_BACKING_OFF, to);
	CHECK_EQ(cow_sim_write(r->sim, RIG_OVER, new, sizeof(new), 0), 0);
}

static const struct image_shape shapes[] = {
	{ .name = "plain", .options = "cluster_size=64K", .cluster = 65536,
	  .base_size = COW_MIB(3) + 700, .size = COW_MIB(4) },
	{ .name = "small clusters", .options = "cluster_size=4K,refcount_bits=64", .cluster = 4096,
	  .base_size = COW_MIB(2), .size = COW_MIB(8), .fill = COW_MIB(3) },
	{ .name = "one-bit refcounts", .options = "cluster_size=4K,refcount_bits=1", .cluster = 4096,
	  .size = COW_MIB(6) - 512 },
	{ .name = "lazy", .options = "cluster_size=16K,lazy_refcounts=on", .cluster = 16384,
	  .base_size = COW_MIB(2), .size = COW_MIB(3) },
	{ .name = "subclusters", .options = "cluster_size=16K,extended_l2=on,refcount_bits=64",
	  .cluster = 16384, .base_size = COW_MIB(2), .size = COW_MIB(4) },
	{ .name = "version 2", .options = "compat=0.10,cluster_size=8K", .cluster = 8192,
	  .base_size = COW_MIB(1), .size = COW_MIB(2) },
	{ .name = "of another program", .options = "cluster_size=8K", .cluster = 8192,
	  .base_size = COW_KIB(700), .size = COW_MIB(1), .prepare = as_others_make_it },
#ifdef HAVE_GCRYPT
	{ .name = "LUKS", .options = "cluster_size=16K,encrypt.format=luks,encrypt.iter-time=1,"
	  IMAGE_KEY, .open_options = IMAGE_KEY,
	  .cluster = 16384, .base_size = COW_MIB(1), .size = COW_MIB(2) },
	{ .name = "AES, version 2", .options = "cluster_size=8K,compat=0.10,encrypt.format=aes,"
	  IMAGE_KEY, .open_options = IMAGE_KEY,
	  .cluster = 8192, .base_size = COW_MIB(1), .size = COW_MIB(2) },
#endif
	{ .name = "data file", .options = "cluster_size=16K", .data = IMAGE_DATA, .cluster = 16384,
	  .base_size = COW_KIB(700), .size = COW_MIB(1), .cap = COW_MIB(2) },
	{ .name = "raw data file", .options = "cluster_size=4K,data_file_raw=on", .data = IMAGE_DATA,
	  .cluster = 4096, .size = COW_MIB(1), .cap = COW_MIB(2) },
	{ .name = "data file, subclusters", .options = "cluster_size=16K,extended_l2=on", .data = IMAGE_DATA,
	  .cluster = 16384, .base_size = COW_KIB(500), .size = COW_MIB(1) },
	{ .name = "raw data file, subclusters", .options = "cluster_size=16K,extended_l2=on,data_file_raw=on",
	  .data = IMAGE_DATA, .cluster = 16384, .size = COW_MIB(1) },
	{ .name = "snapshot", .options = "cluster_size=4K", .cluster = 4096, .base_size = COW_KIB(700),
	  .size = COW_MIB(1), .cap = COW_MIB(2), .prepare = image_with_snapshot,
	  .judge = image_snapshot_kept },
	{ .name = "snapshot, subclusters", .options = "cluster_size=16K,extended_l2=on", .cluster = 16384,
	  .base_size = COW_KIB(700), .size = COW_MIB(1), .prepare = image_with_snapshot,
	  .judge = image_snapshot_kept },
	{ .name = "growing", .options = "cluster_size=4K,refcount_bits=64", .cluster = 4096,
	  .base_size = COW_MIB(2), .size = COW_MIB(1), .cap = COW_MIB(9) },
};

const struct image_kind image_kind = {
	.format = "qcow2", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes),
};

IMAGE_TESTS

/* Refcounts are reserved ahead: a flush after new clusters costs a sync of data and one of entries. */
TEST(a_flush_costs_two_syncs)
{
	image_syncs_of_flush(2);	/* the first brings a batch, and the L2 table */
}

/* ---- repairs ---- */

static uint64_t field(struct rig *r, uint64_t off)
{
	uint8_t b[8];

	CHECK_EQ(cow_sim_read(r->sim, RIG_OVER, b, sizeof(b), off), 0);
	return cow_get_be64(b);
}

/* Refcounts too low, too high and missing altogether. */
static void damage(struct rig *r)
{
	uint64_t table = field(r, QCOW2_H_REFTABLE_OFF), block = field(r, table);
	uint8_t b[64], none[8] = { 0 };

	for (unsigned i = 0; i < 3; i++) {
		uint64_t at = block + rig_rand(r, 8) * sizeof(b);

		CHECK_EQ(cow_sim_read(r->sim, RIG_OVER, b, sizeof(b), at), 0);
		for (size_t k = 0; k < sizeof(b); k++)
			b[k] ^= rig_rand(r, 4) ? 0 : 1;
		CHECK_EQ(cow_sim_write(r->sim, RIG_OVER, b, sizeof(b), at), 0);
	}
	if (rig_rand(r, 2))
		CHECK_EQ(cow_sim_write(r->sim, RIG_OVER, none, sizeof(none), table), 0);
}

/* A repair is cut at each of its steps: the next one finishes it, and no data is lost. */
static void cut_repair(const struct image_shape *s)
{
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };
	struct rig r;

	image_init(&r, s, test_rand());
	image_open(&r);
	image_work(&r, 40);
	CHECK_EQ(cow_chain_close(r.c), 0);
	damage(&r);
	rig_log_start(&r);
	CHECK_EQ(image_try_open(&r, RIG_OVER, COW_OPEN_WRITE | COW_OPEN_CHECK, &r.c, &err), 0);
	CHECK_EQ(cow_chain_check(r.c, &rep, COW_CHECK_REPAIR, &err), 0);
	image_close(&r);
	CHECK(rep.repaired > 0);
	for (size_t pos = 0; pos <= rig_now(&r); pos++) {
		rig_crash(&r, pos, COW_SIM_RANDOM, rig_rand(&r, UINT64_MAX), IMAGE_CRASH);
		CHECK_EQ(image_try_open(&r, IMAGE_CRASH, COW_OPEN_WRITE | COW_OPEN_CHECK, &r.c, &err), 0);
		rep = (struct cow_report){ 0 };
		CHECK_EQ(cow_chain_check(r.c, &rep, COW_CHECK_REPAIR, &err), 0);
		image_close(&r);
		if (image_judge(&r, IMAGE_CRASH, MODEL_NOW, &err))
			FAIL("%s: repair cut at %zu (seed %llu): %s", s->name, pos,
			     (unsigned long long)r.cfg.seed, err.msg);
		rig_uncrash(&r);
	}
	rig_free(&r);
}

TEST(interrupted_repairs)
{
	for (unsigned n = 0; n < (rig_full() ? 20 : 3); n++) {
		for (size_t i = 0; i < COW_ARRAY_SIZE(shapes); i++)
			cut_repair(&shapes[i]);
	}
}
