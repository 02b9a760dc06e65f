// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * qcow2 images with an external data file under power cuts, which hit both
 * files at the same moment. What is left must have no corruption, and each of its
 * sectors a value that was flushed last or written later.
 *
 * Short unless FAULT=full.
 */
#include <stdlib.h>

#include "image.h"
#include "test.h"

#define DATA "data.raw"
#define SECTOR 512u
#define OPS_MAX 256u

static const struct image_shape shapes[] = {
	{ .name = "plain", .options = "cluster_size=4K,data_file=" DATA, .open_options = "data_file=" DATA, .cluster = 4096,
	  .size = COW_MIB(1) },
	{ .name = "over a base", .options = "cluster_size=16K,data_file=" DATA, .open_options = "data_file=" DATA, .cluster = 16384,
	  .base_size = COW_KIB(700), .size = COW_MIB(1) },
	{ .name = "raw", .options = "cluster_size=4K,data_file_raw=on,data_file=" DATA, .open_options = "data_file=" DATA, .cluster = 4096,
	  .size = COW_MIB(1) },
	{ .name = "subclusters", .options = "cluster_size=16K,extended_l2=on,data_file=" DATA, .open_options = "data_file=" DATA, .cluster = 16384,
	  .base_size = COW_KIB(500), .size = COW_MIB(1) },
	{ .name = "raw subclusters", .cluster = 16384, .size = COW_MIB(1),
	  .options = "cluster_size=16K,extended_l2=on,data_file_raw=on,data_file=" DATA, .open_options = "data_file=" DATA },
};

const struct image_kind image_kind = { .format = "qcow2", .shapes = shapes, .n = COW_ARRAY_SIZE(shapes) };

/* What the disk read as after each operation. */
struct history {
	struct rig r;
	uint64_t size;
	unsigned n;
	uint8_t *bytes[OPS_MAX];
	uint64_t begun[OPS_MAX];	/* moment */
	uint64_t flushed[OPS_MAX];	/* moment from which on it is durable; UINT64_MAX: not */
};

/* Entries of the log of @name before the moment @t. */
static size_t entries_before(struct rig *r, const char *name, uint64_t t)
{
	size_t n = cow_sim_log_len(r->sim, name);

	while (n && cow_sim_log_seq(r->sim, name, n - 1) >= t)
		n--;
	return n;
}

static uint64_t last_moment(struct rig *r, const char *name)
{
	size_t n = cow_sim_log_len(r->sim, name);

	return n ? cow_sim_log_seq(r->sim, name, n - 1) + 1 : 0;
}

static uint64_t now(struct rig *r)
{
	return cow_max(last_moment(r, RIG_OVER), last_moment(r, DATA));
}

static void record(struct history *h, uint64_t begun)
{
	CHECK(h->n < OPS_MAX);
	h->begun[h->n] = begun;
	h->flushed[h->n] = UINT64_MAX;
	h->bytes[h->n] = malloc(h->size);
	CHECK(h->bytes[h->n]);
	CHECK_EQ(cow_chain_pread(h->r.c, h->bytes[h->n], h->size, 0), 0);
	h->n++;
}

static void one_op(struct history *h)
{
	struct rig *r = &h->r;
	uint64_t len = SECTOR * (1 + rig_rand(r, 80)), off = SECTOR * rig_rand(r, (h->size - len) / SECTOR);
	uint64_t t = now(r);

	for (uint64_t i = 0; i < len; i++)
		r->buf[i] = (uint8_t)rig_rand(r, 256);
	switch (rig_rand(r, 6)) {
	case 0:
		CHECK_EQ(cow_chain_zero(r->c, off, len), 0);
		break;
	case 1:
		CHECK_EQ(cow_chain_discard(r->c, off, len), 0);
		break;
	case 2:
		CHECK_EQ(cow_chain_flush(r->c), 0);
		h->flushed[h->n - 1] = now(r);
		return;
	default:
		CHECK_EQ(cow_chain_pwrite(r->c, r->buf, len, off), 0);
	}
	record(h, t);
}

/* The oldest state that a cut at @t may show. */
static unsigned oldest(const struct history *h, uint64_t t)
{
	unsigned i = h->n - 1;

	while (i > 0 && h->flushed[i] > t)
		i--;
	return i;
}

static void compare(struct history *h, const uint8_t *got, uint64_t t)
{
	for (uint64_t at = 0; at < h->size; at += SECTOR) {
		unsigned i = oldest(h, t);
		bool ok = false;

		for (; i < h->n && (h->begun[i] < t || i == oldest(h, t)) && !ok; i++)
			ok = !memcmp(got + at, h->bytes[i] + at, SECTOR);
		if (!ok)
			FAIL("cut at %llu (seed %llu): byte %llu is nothing that it may be",
			     (unsigned long long)t, (unsigned long long)h->r.cfg.seed,
			     (unsigned long long)at);
	}
}

static void copy_file(struct cow_sim *from, const char *name, struct cow_sim *to, const char *as)
{
	uint64_t size = cow_sim_size(from, name);
	uint8_t *bytes = malloc(size);

	CHECK(bytes);
	CHECK_EQ(cow_sim_read(from, name, bytes, size, 0), 0);
	CHECK_EQ(cow_sim_add(to, as, size, false), 0);
	CHECK_EQ(cow_sim_write(to, as, bytes, size, 0), 0);
	free(bytes);
}

/* Both files as a power cut at @t leaves them, on a machine of their own. */
static void cut(struct history *h, uint64_t t, enum cow_sim_crash how)
{
	struct rig *r = &h->r, left = h->r;
	char findings[IMAGE_FINDINGS] = "";
	struct cow_report rep = { .say = image_finding, .opaque = findings };
	struct cow_err err = { 0 };
	uint8_t *got = malloc(h->size);

	CHECK(got);
	left.sim = cow_sim_new(rig_rand(r, UINT64_MAX));
	CHECK_EQ(cow_sim_crash(r->sim, RIG_OVER, entries_before(r, RIG_OVER, t), how, rig_rand(r, UINT64_MAX),
			       left.sim, IMAGE_CRASH), 0);
	CHECK_EQ(cow_sim_crash(r->sim, DATA, entries_before(r, DATA, t), how, rig_rand(r, UINT64_MAX),
			       left.sim, "left"), 0);
	copy_file(left.sim, "left", left.sim, DATA);	/* the name that the image knows */
	if (r->cfg.base_size)
		copy_file(r->sim, RIG_BASE, left.sim, RIG_BASE);
	if (image_try_open(&left, IMAGE_CRASH, 0, &left.c, &err))
		FAIL("cut at %llu: %s", (unsigned long long)t, err.msg);
	CHECK_EQ(cow_chain_check(left.c, &rep, 0, &err), 0);
	if (rep.corruptions)
		FAIL("cut at %llu: check finds%s", (unsigned long long)t, findings);
	CHECK_EQ(cow_chain_pread(left.c, got, h->size, 0), 0);
	compare(h, got, t);
	CHECK_EQ(cow_chain_close(left.c), 0);
	free(got);
	cow_sim_free(left.sim);
}

static void cut_history(const struct image_shape *s)
{
	struct history h = { .size = s->size };
	unsigned images = 0;
	uint64_t end;

	image_init(&h.r, s, test_rand());
	cow_sim_log_start(h.r.sim, DATA);
	image_open(&h.r);
	record(&h, 0);
	h.flushed[0] = 0;
	for (unsigned i = 0; i < (rig_full() ? 200 : 40); i++)
		one_op(&h);
	image_close(&h.r);
	end = now(&h.r);
	for (uint64_t t = 0; t <= end; t++, images++)
		cut(&h, t, t % 4 ? COW_SIM_RANDOM : t % 8 ? COW_SIM_PREFIX : COW_SIM_SYNCED);
	printf("%s: %u images\n", s->name, images);
	for (unsigned i = 0; i < h.n; i++)
		free(h.bytes[i]);
	rig_free(&h.r);
}

TEST(power_cuts_of_both_files)
{
	for (size_t i = 0; i < COW_ARRAY_SIZE(shapes); i++)
		cut_history(&shapes[i]);
}
