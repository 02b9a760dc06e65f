// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Hostile qcow2 images (fuzzimage.h), which are given snapshots and other sizes
 * as well.
 */
#include "fuzzimage.h"
#include "qcow2/qcow2-priv.h"

#define WHOLE_MAX 6u
#define L1_MAX_LOOK (1u << 16)
#define SNAPSHOTS_MAX_LOOK 15u

static const char *const options[] = {
	"cluster_size=4K", "cluster_size=16K", "cluster_size=4K,refcount_bits=1",
	"cluster_size=8K,refcount_bits=64", "cluster_size=16K,extended_l2=on",
	"cluster_size=4K,compat=0.10", "cluster_size=4K,compression_type=zstd", "cluster_size=32K",
};

static void patch(struct cow_sim *sim, struct fuzz_in *in)
{
	uint64_t how = fuzz_num(in, 1), where = fuzz_num(in, 1), value = fuzz_num(in, 8);
	uint8_t head[QCOW2_H_BYTES], b[8];
	uint64_t l1, off;

	FUZZ_CHECK(cow_sim_read(sim, FUZZIMAGE, head, sizeof(head), 0) == 0);
	l1 = cow_get_be64(head + QCOW2_H_L1_OFF);
	FUZZ_CHECK(cow_sim_read(sim, FUZZIMAGE, b, sizeof(b), l1) == 0);
	switch (how % 6) {
	case 0:
		off = where;
		break;
	case 1:
		off = l1 + where % 8 * 8;
		break;
	case 2:
		off = (cow_get_be64(b) & QCOW2_OFFSET_MASK) + where * 8;
		break;
	case 3:
		off = cow_get_be64(head + QCOW2_H_REFTABLE_OFF) + where % 8 * 8;
		break;
	default:
		off = cow_get_be64(head + QCOW2_H_REFTABLE_OFF) + (how % 6 - 3) * 4096 + where * 2;
	}
	cow_put_be64(b, value);
	if (off < cow_sim_size(sim, FUZZIMAGE))
		FUZZ_CHECK(cow_sim_write(sim, FUZZIMAGE, b, how & 64 ? 2 : how & 128 ? 4 : 8, off) == 0);
}

static bool small_enough(struct cow_sim *sim)
{
	uint8_t head[QCOW2_H_BYTES];

	FUZZ_CHECK(cow_sim_read(sim, FUZZIMAGE, head, sizeof(head), 0) == 0);
	return cow_get_be32(head + QCOW2_H_L1_SIZE) <= L1_MAX_LOOK &&
	       cow_get_be32(head + QCOW2_H_NB_SNAPSHOTS) <= SNAPSHOTS_MAX_LOOK;
}

static void whole(struct cow_chain *c, struct fuzz_in *in)
{
	static const char *const names[] = { "a", "1", "2" };

	for (unsigned i = 0; i < WHOLE_MAX && in->n; i++) {
		uint64_t how = fuzz_num(in, 1);

		if (how % 4 == 3)
			(void)cow_chain_resize(c, 512 + fuzz_num(in, 3) * 64, true, NULL);
		else
			(void)cow_chain_snapshot(c, (enum cow_snapshot_op)(how % 4), names[how / 4 % 3], NULL);
	}
	fuzzimage_ops(c, in, true);
}

static const struct fuzzimage_kind kind = {
	.format = "qcow2", .options = options, .n = COW_ARRAY_SIZE(options), .min_size = 1,
	.magic = QCOW2_MAGIC, .patch = patch, .small_enough = small_enough, .whole = whole,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	return fuzzimage_run(&kind, data, size);
}
