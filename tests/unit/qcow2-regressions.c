// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Mistakes that other programs which write qcow2 have made, one test each, named
 * after the mistake: whoever takes away what guards us against it sees the name.
 */
#include <errno.h>

#include "cow/log.h"
#include "image.h"
#include "qcow2/qcow2-priv.h"
#include "test.h"

#define CLUSTER 4096u

static const struct image_shape shapes[] = {
	{ .name = "small clusters", .options = "cluster_size=4K,refcount_bits=64", .cluster = CLUSTER,
	  .size = COW_MIB(8) },
};

const struct image_kind image_kind = { .format = "qcow2", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes) };

static uint64_t field(struct rig *r, uint64_t off)
{
	uint8_t b[8];

	CHECK_EQ(cow_sim_read(r->sim, RIG_OVER, b, sizeof(b), off), 0);
	return cow_get_be64(b);
}

static void put(struct rig *r, uint64_t off, uint64_t value)
{
	uint8_t b[8];

	cow_put_be64(b, value);
	CHECK_EQ(cow_sim_write(r->sim, RIG_OVER, b, sizeof(b), off), 0);
}

static void write_cluster(struct rig *r, uint64_t cluster)
{
	rig_must(r, &(struct rig_op){ .kind = RIG_WRITE, .off = cluster * CLUSTER, .len = CLUSTER });
}

static void flush(struct rig *r)
{
	rig_must(r, &(struct rig_op){ .kind = RIG_FLUSH });
}

/* As it is now: no corruption, contents as the model has them, clean after a repair. */
static void judge(struct rig *r)
{
	struct cow_err why = { 0 };

	if (image_judge(r, RIG_OVER, MODEL_NOW, &why))
		FAIL("%s", why.msg);
}

/* Cluster @cluster has refcount 0, but it is in use: nothing is written before a repair. */
static void in_use_with_refcount_0(struct rig *r, uint64_t cluster)
{
	uint64_t refblock = field(r, field(r, QCOW2_H_REFTABLE_OFF));
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };
	size_t written;

	CHECK_EQ(field(r, refblock + cluster * 8), 1);
	put(r, refblock + cluster * 8, 0);
	written = cow_sim_log_len(r->sim, RIG_OVER);
	if (image_try_open(r, RIG_OVER, COW_OPEN_WRITE, &r->c, &err) == 0)
		FAIL("a table with refcount 0 does not keep the image from being written");
	CHECK(strstr(err.msg, "has refcount 0") && strstr(err.msg, "repair"));
	CHECK_EQ(cow_sim_log_len(r->sim, RIG_OVER), written);
	CHECK_EQ(image_try_open(r, RIG_OVER, COW_OPEN_WRITE | COW_OPEN_CHECK, &r->c, &err), 0);
	CHECK_EQ(cow_chain_check(r->c, &rep, COW_CHECK_REPAIR, &err), 0);
	CHECK_EQ(rep.repaired, 1);
	image_close(r);
	image_open(r);
	for (unsigned i = 0; i < 40; i++)
		write_cluster(r, 100 + i);
	image_close(r);
	judge(r);
}

static void start(struct rig *r)
{
	image_init(r, &shapes[0], test_rand());
	image_open(r);
	for (unsigned i = 0; i < 20; i++)
		write_cluster(r, i);
	image_close(r);
}

TEST(live_l2_reallocated)
{
	struct rig r;

	start(&r);
	in_use_with_refcount_0(&r, (field(&r, field(&r, QCOW2_H_L1_OFF)) & QCOW2_OFFSET_MASK) / CLUSTER);
	rig_free(&r);
}

TEST(header_cluster_overwritten)
{
	struct rig r;

	start(&r);
	in_use_with_refcount_0(&r, 0);
	rig_free(&r);
}

static uint64_t host_of(struct rig *r, uint64_t cluster)
{
	uint64_t l2 = field(r, field(r, QCOW2_H_L1_OFF)) & QCOW2_OFFSET_MASK;

	return field(r, l2 + cluster * 8) & QCOW2_OFFSET_MASK;
}

/*
 * What is discarded is punched, maybe later than others get clusters: so it is not given up with
 * that, but stays where it is, and nobody else has it. The power goes on the way.
 */
TEST(punch_hole_after_reuse)
{
	struct rig r;

	image_init(&r, &shapes[0], test_rand());
	image_open(&r);
	for (unsigned i = 0; i < 60; i++) {
		uint64_t host;

		write_cluster(&r, i);
		flush(&r);
		host = host_of(&r, i);
		CHECK(host);
		rig_must(&r, &(struct rig_op){ .kind = RIG_DISCARD, .off = i * CLUSTER, .len = CLUSTER });
		write_cluster(&r, 100 + i);
		write_cluster(&r, 300 + i);
		flush(&r);
		if (host_of(&r, i) != host || host_of(&r, 100 + i) == host || host_of(&r, 300 + i) == host)
			FAIL("a cluster that was discarded was given up");
		for (unsigned k = 0; k < 9; k++)
			image_cut(&r, &shapes[0], cow_sim_log_len(r.sim, RIG_OVER) - k, COW_SIM_RANDOM);
	}
	image_close(&r);
	judge(&r);
	rig_free(&r);
}

/* A new L2 table is to be shown while the disk is full: the entry never comes before its refcount. */
TEST(l1_published_before_its_refcount)
{
	uint64_t span = (uint64_t)CLUSTER / 8, seed = test_rand(), total = 1;

	cow_log_set_level((enum cow_log_level)0);
	for (uint64_t nth = 1; nth <= total; nth++) {
		struct cow_sim_fault full = { .nth = nth, .error = -ENOSPC, .persistent = true,
					      .ops = 1u << COW_IO_WRITE };
		struct rig r;

		image_init(&r, &shapes[0], seed);
		image_open(&r);
		write_cluster(&r, 0);
		flush(&r);
		cow_sim_set_fault(r.sim, &full);
		for (unsigned i = 1; i < 4; i++) {	/* each in the range of another table */
			struct rig_op op = { .kind = RIG_WRITE, .off = i * span * CLUSTER, .len = CLUSTER };

			(void)rig_do(&r, &op);
			(void)rig_do(&r, &(struct rig_op){ .kind = RIG_FLUSH });
		}
		total = cow_max(total, cow_sim_op_count(r.sim));
		(void)cow_chain_close(r.c);
		r.c = NULL;
		cow_sim_set_fault(r.sim, NULL);
		for (size_t pos = 1; pos <= cow_sim_log_len(r.sim, RIG_OVER); pos++) {
			image_cut(&r, &shapes[0], pos, COW_SIM_PREFIX);
			image_cut(&r, &shapes[0], pos, COW_SIM_RANDOM);
		}
		rig_free(&r);
	}
	CHECK(total > 10);
}

/* As many refcount blocks as the clusters need, however often is flushed. */
TEST(refblocks_leaked_per_flush)
{
	uint64_t table, clusters, blocks = 0;
	struct rig r;

	image_init(&r, &shapes[0], test_rand());
	image_open(&r);
	for (unsigned i = 0; i < 1500; i++) {
		write_cluster(&r, i);
		flush(&r);
	}
	image_close(&r);
	table = field(&r, QCOW2_H_REFTABLE_OFF);
	for (unsigned i = 0; i < CLUSTER / 8; i++)
		blocks += field(&r, table + i * 8) != 0;
	clusters = cow_sim_size(r.sim, RIG_OVER) / CLUSTER;
	CHECK_EQ(blocks, cow_div_up(clusters, CLUSTER / 8));
	/* Header, both tables, three L2 tables. */
	CHECK_EQ(clusters, 1500 + blocks + 6);
	judge(&r);
	rig_free(&r);
}
