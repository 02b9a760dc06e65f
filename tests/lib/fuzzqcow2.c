// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Hostile qcow2 images (fuzzimage.h): where a patch lands, and what is put there;
 * snapshots and other sizes.
 */
#include "fuzzimage.h"
#include "qcow2/qcow2-priv.h"

#define WHOLE_MAX 6u
#define L1_MAX_LOOK 4096u
#define SNAPSHOTS_MAX_LOOK 15u

static const char *const options[] = {
	"cluster_size=4K", "cluster_size=16K", "cluster_size=4K,refcount_bits=1",
	"cluster_size=8K,refcount_bits=64", "cluster_size=16K,extended_l2=on",
	"cluster_size=4K,compat=0.10", "cluster_size=4K,compression_type=zstd", "cluster_size=32K",
	"cluster_size=4K,lazy_refcounts=on",
};

/* Where the tables of the image are, as its header says. */
struct places {
	uint64_t l1, l2, reftable, refblock, snapshots, cluster_bits;
};

static uint64_t get(struct cow_sim *sim, uint64_t off, unsigned bytes)
{
	uint8_t b[8] = { 0 };

	FUZZ_CHECK(cow_sim_read(sim, FUZZIMAGE, b + 8 - bytes, bytes, off) == 0);
	return cow_get_be64(b);
}

static void find_places(struct cow_sim *sim, uint64_t l1_index, struct places *p)
{
	p->cluster_bits = get(sim, QCOW2_H_CLUSTER_BITS, 4) % 24;
	p->l1 = get(sim, QCOW2_H_L1_OFF, 8);
	p->l2 = get(sim, p->l1 + l1_index * 8, 8) & QCOW2_OFFSET_MASK;
	p->reftable = get(sim, QCOW2_H_REFTABLE_OFF, 8);
	p->refblock = get(sim, p->reftable, 8) & QCOW2_OFFSET_MASK;
	p->snapshots = get(sim, QCOW2_H_SNAPSHOTS_OFF, 8);
}

static uint64_t place(const struct places *p, uint64_t how, uint64_t where)
{
	switch (how) {
	case 0:
		return where % QCOW2_H_BYTES;
	case 1:
		return where;		/* extensions of the header */
	case 2:
		return p->l1 + where % 8 * 8;
	case 3:
		return p->reftable + where % 8 * 8;
	case 4:
		return p->refblock + where * 2;
	case 5:
		return p->snapshots + where;
	default:
		return p->l2 + where * 8;
	}
}

/* As it is, or made from it and what stands there now: an entry that could be. */
static uint64_t worth(const struct places *p, uint64_t how, uint64_t value, uint64_t now)
{
	switch (how) {
	case 0:
		return value;
	case 1:
		return (value & (QCOW2_COPIED | QCOW2_COMPRESSED | QCOW2_ZERO)) |
		       (value >> 8 & 0xff) << p->cluster_bits;
	case 2:
		return now ^ 1ULL << value % 64;
	default:
		return now + ((uint64_t)(value & 0xf) << p->cluster_bits);
	}
}

static void patch(struct cow_sim *sim, struct fuzz_in *in)
{
	static const unsigned lengths[] = { 8, 4, 2, 1 };
	uint64_t how = fuzz_num(in, 1), where = fuzz_num(in, 1), value = fuzz_num(in, 8), off;
	struct places p;
	uint8_t b[8];

	find_places(sim, value >> 56 & 3, &p);
	off = place(&p, how % 8, where);
	cow_put_be64(b, worth(&p, how >> 3 & 3, value, off < QCOW2_HOST_MAX ? get(sim, off, 8) : 0));
	if (off < cow_sim_size(sim, FUZZIMAGE))
		FUZZ_CHECK(cow_sim_write(sim, FUZZIMAGE, b, lengths[how >> 6], off) == 0);
}

static bool small_enough(struct cow_sim *sim)
{
	return get(sim, QCOW2_H_L1_SIZE, 4) <= L1_MAX_LOOK &&
	       get(sim, QCOW2_H_NB_SNAPSHOTS, 4) <= SNAPSHOTS_MAX_LOOK;
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
}

const struct fuzzimage_kind fuzzimage_qcow2 = {
	.format = "qcow2", .options = options, .n = COW_ARRAY_SIZE(options), .read_options = "snapshot=1",
	.magic = QCOW2_MAGIC, .patch = patch, .small_enough = small_enough, .whole = whole,
};
