// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Hostile qcow images (fuzzimage.h): what is special is where a patch lands.
 */
#include "fuzzimage.h"
#include "qcow/qcow-priv.h"

static const char *const options[] = {
	"", "cluster_size=512", "cluster_size=1K", "cluster_size=8K", "cluster_size=64K",
};

static void patch(struct cow_sim *sim, struct fuzz_in *in)
{
	uint64_t how = fuzz_num(in, 1), where = fuzz_num(in, 1), value = fuzz_num(in, 8);
	uint64_t l1, off = where;
	uint8_t b[8];

	FUZZ_CHECK(cow_sim_read(sim, FUZZIMAGE, b, sizeof(b), QCOW_H_L1_OFF) == 0);
	l1 = cow_get_be64(b);
	FUZZ_CHECK(cow_sim_read(sim, FUZZIMAGE, b, sizeof(b), l1) == 0);
	if (how % 4 == 1)
		off = l1 + where % 8 * 8;
	if (how % 4 >= 2)
		off = cow_get_be64(b) + where * 8;
	if (how & 16)	/* an entry that can be */
		value = (value & QCOW_COMPRESSED) | (value & 0xfff) << 9;
	cow_put_be64(b, value);
	if (off < cow_sim_size(sim, FUZZIMAGE))
		FUZZ_CHECK(cow_sim_write(sim, FUZZIMAGE, b, how & 64 ? 1 : how & 128 ? 4 : 8, off) == 0);
}

const struct fuzzimage_kind fuzzimage_qcow = {
	.format = "qcow", .options = options, .n = COW_ARRAY_SIZE(options),
	.magic = QCOW_MAGIC, .version = QCOW_VERSION, .patch = patch,
};
