// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Encoded clusters among other changes, under power cuts and failing disks, for the
 * format that image_kind names: what tools write at once may as well be changed
 * piece by piece.
 */
#include "image.h"

#include <errno.h>

#include "cow/log.h"

/* A cluster of which nearly nothing to nine tenths is left when it is compressed. */
static void make_plain(struct rig *r, uint8_t *plain, uint64_t len, uint64_t cluster)
{
	uint64_t noise = rig_rand(r, 2) ? 16 : cluster * (1 + rig_rand(r, 9)) / 10;

	memset(plain, (int)rig_rand(r, 256), cluster);
	for (uint64_t i = 0; i < cow_min(noise, len); i++)
		plain[i] = (uint8_t)rig_rand(r, 256);
	memset(plain + len, 0, cluster - len);
}

/* The cluster in r->buf, in its stored form. Returns the result of the engine. */
static int store(struct rig *r, uint64_t virt, uint64_t len)
{
	struct cow_image *img = cow_chain_image(r->c, 0);
	uint64_t cluster = img->block;
	uint8_t *plain = r->buf, *stored = r->buf + cluster;
	size_t n = 0;
	int rc = img->fmt->encode(img, plain, stored, &n);

	if (rc)
		return rc == -ENOSPC ? 0 : rc;
	CHECK(n > 0 && n < cluster);
	model_begin(r->m, rig_now(r), 0);
	model_write(r->m, virt, len, plain);
	rc = cow_chain_pwrite_encoded(r->c, stored, n, virt);
	model_end(r->m, rig_now(r), rc == 0);
	r->failures += rc != 0;
	return rc;
}

static int put_at(struct rig *r, uint64_t virt)
{
	const struct cow_image *img = cow_chain_image(r->c, 0);
	uint64_t len = cow_min(img->block, img->size - virt);

	make_plain(r, r->buf, len, img->block);
	return store(r, virt, len);
}

int image_put_encoded(struct rig *r)
{
	const struct cow_image *img = cow_chain_image(r->c, 0);

	return put_at(r, rig_rand(r, cow_div_up(img->size, img->block)) * img->block);
}

void image_with_encoded(struct rig *r)
{
	image_open(r);
	for (uint64_t virt = 0; virt < model_size(r->m); virt += r->cfg.granule)
		CHECK_EQ(put_at(r, virt), 0);
	rig_must(r, &(struct rig_op){ .kind = RIG_FLUSH });
	image_close(r);
}

/* Encoded clusters among other changes. Many flushes: each has few reasons for its order. */
void image_work_encoded(struct rig *r, unsigned ops)
{
	for (unsigned i = 0; i < ops; i++) {
		if (rig_rand(r, 3)) {
			int rc = image_put_encoded(r);

			if (rc)
				FAIL("an encoded cluster: %s", strerror(-rc));
			if (rig_rand(r, 3) == 0)
				rig_must(r, &(struct rig_op){ .kind = RIG_FLUSH });
		} else {
			image_work(r, 1);
		}
	}
}

static void power_cuts(const struct image_shape *s)
{
	struct rig r;
	size_t n;

	image_init(&r, s, test_rand());
	image_open(&r);
	image_work_encoded(&r, rig_full() ? 600 : 60);
	image_close(&r);
	n = rig_now(&r);
	for (size_t pos = 0; pos < n; pos++) {
		/* Just before a sync the most is undecided. */
		if (!rig_full() && !cow_sim_log_is_sync(r.sim, RIG_OVER, pos))
			continue;
		image_cut(&r, s, pos, COW_SIM_PREFIX);
		for (unsigned i = 0; i < (rig_full() ? 8 : 4); i++)
			image_cut(&r, s, pos, COW_SIM_RANDOM);
	}
	image_cut(&r, s, n, COW_SIM_PREFIX);
	rig_free(&r);
}

void image_encoded_power_cuts(void)
{
	for (size_t i = 0; i < image_kind.n; i++)
		power_cuts(&image_kind.shapes[i]);
}

/* Any of them may fail; the rest goes on. */
static void requests(struct rig *r)
{
	for (unsigned i = 0; i < 25; i++) {
		(void)image_put_encoded(r);
		if (i % 8 == 7)
			(void)rig_do(r, &(struct rig_op){ .kind = RIG_FLUSH });
	}
}

void image_encoded_failing_disk(void)
{
	uint64_t seed = test_rand();

	cow_log_set_level((enum cow_log_level)0);
	for (size_t i = 0; i < image_kind.n; i++) {
		for (uint64_t nth = 1; image_fail_nth(&image_kind.shapes[i], seed, nth, false, requests);
		     nth += rig_full() ? 1 : 4)
			;
	}
}

void image_encoded_refused(void)
{
	const struct image_shape *s = &image_kind.shapes[0];
	uint8_t some[65536] = { 0 };
	struct rig r;

	image_init(&r, s, 1);
	image_open(&r);
	CHECK_EQ(cow_chain_pwrite_encoded(r.c, some, 0, 0), -EINVAL);
	CHECK_EQ(cow_chain_pwrite_encoded(r.c, some, s->cluster, 0), -EINVAL);
	CHECK_EQ(cow_chain_pwrite_encoded(r.c, some, 100, 512), -EINVAL);
	CHECK_EQ(cow_chain_pwrite_encoded(r.c, some, 100, cow_round_up(s->size, s->cluster)), -EINVAL);
	image_close(&r);
	CHECK_EQ(rig_now(&r), 0);
	rig_free(&r);
}

/* ---- reads ---- */

#define STORED 12u	/* clusters; more than are kept */
#define PARTS 6u	/* that one of them is read in */

struct part {
	struct cow_req req;
	uint8_t buf[64];
	int result;
};

static void part_done(struct cow_req *req, int result)
{
	struct part *p = cow_container_of(req, struct part, req);

	p->result = result;
}

/* Of @n clusters from @first on, all parts at once; cluster k holds the byte k + 1. Each ends with @want. */
static void read_parts(struct rig *r, uint64_t first, unsigned n, int want)
{
	uint64_t cluster = cow_chain_image(r->c, 0)->block;
	static struct part parts[STORED * PARTS];

	for (unsigned i = 0; i < n * PARTS; i++) {
		struct part *p = &parts[i];

		p->result = 1;
		p->req = (struct cow_req){ .op = COW_OP_READ, .buf = p->buf, .len = sizeof(p->buf),
					   .virt = (first + i % n) * cluster + i / n * (cluster / 8),
					   .done = part_done };
		cow_req_submit(r->c, &p->req);
	}
	while (cow_chain_inflight(r->c))
		cow_chain_poll(r->c, true);
	for (unsigned i = 0; i < n * PARTS; i++) {
		CHECK_EQ(parts[i].result, want);
		for (size_t k = 0; k < sizeof(parts[i].buf) && !want; k++)
			CHECK_EQ(parts[i].buf[k], first + i % n + 1);
	}
}

/* How often the file is read for that. */
static uint64_t reads_for(struct rig *r, uint64_t first, unsigned n, const struct cow_sim_fault *f, int want)
{
	cow_sim_set_fault(r->sim, f);
	read_parts(r, first, n, want);
	return cow_sim_op_count(r->sim);
}

static void read_at_once(const struct image_shape *s)
{
	const struct cow_sim_fault none = { 0 }, fault = { .nth = 1, .error = -EIO };
	struct rig r;

	image_init(&r, s, 1);
	image_open(&r);
	for (unsigned k = 0; k < STORED; k++) {
		memset(r.buf, (int)k + 1, s->cluster);
		CHECK_EQ(store(&r, (uint64_t)k * s->cluster, s->cluster), 0);
	}
	image_close(&r);
	image_open(&r);
	read_parts(&r, 0, 1, 0);	/* the tables are in the cache then */
	cow_sim_set_async(r.sim, true);
	CHECK_EQ(reads_for(&r, 1, 1, &none, 0), 1);
	CHECK_EQ(reads_for(&r, 2, 1, &fault, -EIO), 1);
	CHECK_EQ(reads_for(&r, 2, 1, &none, 0), 1);
	CHECK_EQ(reads_for(&r, 0, 3, &none, 0), 0);
	CHECK_EQ(reads_for(&r, 3, STORED - 3, &none, 0), STORED - 3);
	read_parts(&r, 0, STORED, 0);
	cow_sim_set_async(r.sim, false);
	read_parts(&r, 0, STORED, 0);
	CHECK_EQ(reads_for(&r, 0, 2, &none, 0), 2);
	CHECK_EQ(reads_for(&r, 0, 2, &none, 0), 0);
	image_close(&r);
	rig_free(&r);
}

void image_encoded_read_at_once(void)
{
	cow_log_set_level((enum cow_log_level)0);
	for (size_t i = 0; i < image_kind.n; i++)
		read_at_once(&image_kind.shapes[i]);
}
