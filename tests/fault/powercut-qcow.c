// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * qcow under power cuts, failing disks and many requests at once (image.h), in the
 * layouts of all who make such images: ours; QEMU's overlays, where tables and
 * clusters share blocks of 4 KiB; Xen's with its L1 table in little endian.
 *
 * Short unless FAULT=full.
 */
#include "image.h"
#include "qcow/qcow-priv.h"
#include "test.h"

#define HEAD_NAME 48u		/* as QEMU places the name of the base */
#define PIECES 40u		/* clusters that a foreign image has */

/* An image that is put together here, byte by byte, as another program does. */
struct foreign {
	struct rig *r;
	uint64_t eof, l1_off;
	uint64_t l2[4];		/* 0: not made yet */
	unsigned cluster_bits, l2_bits;
	bool l1_le;
};

static void put(struct rig *r, uint64_t off, unsigned bytes, uint64_t value)
{
	uint8_t b[8];

	cow_put_be64(b, value);
	CHECK_EQ(cow_sim_write(r->sim, RIG_OVER, b + 8 - bytes, bytes, off), 0);
}

static uint64_t append(struct foreign *f, const void *data, uint64_t len)
{
	uint64_t off = cow_round_up(f->eof, 1ULL << f->cluster_bits);

	CHECK_EQ(cow_sim_write(f->r->sim, RIG_OVER, data, len, off), 0);
	f->eof = off + len;
	return off;
}

/* A cluster at random, as its owner allocates: tables in between, all at the end. */
static void add_cluster(struct foreign *f)
{
	static const uint8_t none[64 << 10];
	uint64_t cluster = 1ULL << f->cluster_bits, span = cluster << f->l2_bits, off, virt;
	uint8_t data[8192], e[8];

	virt = rig_rand(f->r, model_size(f->r->m) / cluster) * cluster;
	if (f->l2[virt / span]) {
		CHECK_EQ(cow_sim_read(f->r->sim, RIG_OVER, e, sizeof(e),
				      f->l2[virt / span] + virt % span / cluster * 8), 0);
		if (cow_get_be64(e))
			return;
	}
	for (uint64_t i = 0; i < cluster; i++)
		data[i] = (uint8_t)rig_rand(f->r, 256);
	model_begin(f->r->m, 0, MODEL_FUA);
	model_write(f->r->m, virt, cluster, data);
	model_end(f->r->m, 0, true);
	if (!f->l2[virt / span]) {
		f->l2[virt / span] = append(f, none, 8ULL << f->l2_bits);
		off = f->l2[virt / span];
		put(f->r, f->l1_off + virt / span * 8, 8, f->l1_le ? __builtin_bswap64(off) : off);
	}
	off = append(f, data, cluster);
	cow_put_be64(e, off);
	CHECK_EQ(cow_sim_write(f->r->sim, RIG_OVER, e, sizeof(e),
			       f->l2[virt / span] + virt % span / cluster * 8), 0);
}

static void make_foreign(struct foreign *f)
{
	struct rig *r = f->r;
	uint64_t size = model_size(r->m), n = cow_div_up(size, 1ULL << (f->cluster_bits + f->l2_bits));

	CHECK(n <= COW_ARRAY_SIZE(f->l2));
	cow_sim_remove(r->sim, RIG_OVER);
	CHECK_EQ(cow_sim_add(r->sim, RIG_OVER, cow_round_up(f->l1_off + n * 8, 512), false), 0);
	put(r, QCOW_H_MAGIC, 4, QCOW_MAGIC);
	put(r, QCOW_H_VERSION, 4, QCOW_VERSION);
	put(r, QCOW_H_SIZE, 8, size);
	put(r, QCOW_H_CLUSTER_BITS, 1, f->cluster_bits);
	put(r, QCOW_H_L2_BITS, 1, f->l2_bits);
	put(r, QCOW_H_L1_OFF, 8, f->l1_off);
	f->eof = cow_sim_size(r->sim, RIG_OVER);
	for (unsigned i = 0; i < PIECES; i++)
		add_cluster(f);
}

static void by_qemu(struct rig *r)
{
	struct foreign f = { .r = r, .l1_off = 56, .cluster_bits = 9, .l2_bits = 12 };

	make_foreign(&f);
	put(r, QCOW_H_BACKING_OFF, 8, HEAD_NAME);
	put(r, QCOW_H_BACKING_LEN, 4, 8);
	CHECK_EQ(cow_sim_write(r->sim, RIG_OVER, RIG_BASE, 8, HEAD_NAME), 0);
}

static void by_old_xen(struct rig *r)
{
	struct foreign f = { .r = r, .l1_off = 4096, .cluster_bits = 12, .l2_bits = 9, .l1_le = true };

	make_foreign(&f);
	put(r, QCOW_XEN_OFF, 4, QCOW_XEN_MAGIC);
	put(r, QCOW_XEN_FLAGS, 4, 1);
}

static const struct image_shape shapes[] = {
	{ .name = "alone", .options = "", .cluster = 4096, .size = COW_MIB(5) - 512, .fill = COW_MIB(2) },
	{ .name = "overlay", .options = "", .cluster = 512, .base_size = COW_MIB(2) + 700,
	  .size = COW_MIB(4) },
	{ .name = "large clusters", .options = "cluster_size=64K", .cluster = 65536,
	  .base_size = COW_MIB(3), .size = COW_MIB(4) + 512 },
#ifdef HAVE_GCRYPT
	{ .name = "encrypted overlay", .options = "encrypt.format=aes,cluster_size=4K,"
	  IMAGE_KEY, .open_options = IMAGE_KEY,
	  .cluster = 4096, .base_size = COW_MIB(1), .size = COW_MIB(2), .cap = COW_MIB(3) },
#endif
	{ .name = "overlay that grows", .options = "cluster_size=4K", .cluster = 4096,
	  .base_size = COW_MIB(2), .size = COW_MIB(1), .cap = COW_MIB(9) },
	{ .name = "on a device", .options = "", .cluster = 512, .base_size = COW_MIB(2),
	  .size = COW_MIB(2) + 512, .device = COW_MIB(12) },
	{ .name = "QEMU's overlay", .options = "", .cluster = 512, .base_size = COW_MIB(1),
	  .size = COW_MIB(3), .open_options = "backing_format=raw", .prepare = by_qemu },
	{ .name = "QEMU's overlay that grows", .options = "", .cluster = 512, .base_size = COW_MIB(1),
	  .size = COW_MIB(1), .cap = COW_MIB(5), .open_options = "backing_format=raw", .prepare = by_qemu },
	{ .name = "Xen's, little endian", .options = "", .cluster = 4096, .size = COW_MIB(4),
	  .prepare = by_old_xen },
};

const struct image_kind image_kind = {
	.format = "qcow", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes),
};

IMAGE_TESTS

/* No refcounts, no marks: a sync of data and one of entries; none of entries where none changes. */
TEST(a_flush_costs_two_syncs)
{
	image_syncs_of_flush(1);
}

/* Checks, repairs and an emptying between writes of one session take nothing for free that is not. */
TEST(checks_within_a_session)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(shapes); i++) {
		struct cow_err err = { 0 };
		struct rig r;

		image_init(&r, &shapes[i], test_rand());
		image_open(&r);
		for (unsigned k = 0; k < 6; k++) {
			struct cow_report rep = { 0 };

			image_work(&r, 15);
			CHECK_EQ(cow_chain_check(r.c, &rep, k % 2 ? COW_CHECK_REPAIR : 0, &err), 0);
			CHECK_EQ(rep.corruptions, 0);
			if (k == 3 && shapes[i].base_size && cow_chain_commit(r.c, NULL, NULL, &err))
				FAIL("commit: %s", err.msg);
		}
		CHECK_EQ(model_verify(r.m, r.c, MODEL_NOW, true, &err), 0);
		image_close(&r);
		if (image_judge(&r, RIG_OVER, MODEL_NOW, &err))
			FAIL("%s: %s", shapes[i].name, err.msg);
		rig_free(&r);
	}
}

/* Zeroes over a base are entries that share one compressed cluster: they take no space. */
TEST(zeroes_over_a_base)
{
	struct cow_err err = { 0 };
	struct rig r;
	uint64_t size;

	image_init(&r, &shapes[2], test_rand());
	for (unsigned i = 0; i < 2; i++) {
		image_open(&r);
		rig_must(&r, &(struct rig_op){ .kind = RIG_ZERO, .off = i * COW_MIB(1), .len = COW_MIB(1) });
		image_close(&r);
		if (i == 0)
			size = cow_sim_size(r.sim, RIG_OVER);
	}
	CHECK_EQ(cow_sim_size(r.sim, RIG_OVER), size);	/* the second session found that of the first */
	CHECK(size < COW_KIB(256));
	if (image_judge(&r, RIG_OVER, MODEL_NOW, &err))
		FAIL("%s", err.msg);
	rig_free(&r);
}
