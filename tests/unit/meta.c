// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The metadata cache: write-order edges become rounds, circles are refused,
 * what is dirty is never evicted, and a change made while a flush is on its way
 * does not travel with it. On a real file, without a format's help.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "meta.h"
#include "test.h"

#define BLOCKS 256u

struct rig {
	char path[256];
	struct cow_io *io;
	struct cow_file file;
	struct cow_format fmt;
	struct cow_image img;
	struct cow_meta m;
};

static void rig_up(struct rig *r, uint64_t cache)
{
	struct cow_open_spec spec = { .path = r->path, .write = true };
	struct cow_err err = { 0 };
	int fd;

	*r = (struct rig){ .img.path = "rig" };
	snprintf(r->path, sizeof(r->path), "%s/meta-XXXXXX", test_tmp());
	spec.path = r->path;
	fd = mkstemp(r->path);
	CHECK(fd >= 0 && ftruncate(fd, BLOCKS * COW_META_BLOCK) == 0);
	close(fd);
	r->img.fmt = &r->fmt;
	CHECK_EQ(cow_io_sync_ops.init(NULL, &r->io), 0);
	CHECK_EQ(r->io->ops->open(r->io, &spec, &r->file, &err), 0);
	CHECK_EQ(meta_init(&r->m, &r->img, &r->file, cache, false, &err), 0);
	r->img.meta = &r->m;
}

static void rig_down(struct rig *r)
{
	meta_fini(&r->m, true);
	r->io->ops->close(&r->file);
	r->io->ops->fini(r->io);
	unlink(r->path);
}

/* A block, pinned by @pins. */
static struct cow_mblk *get(struct rig *r, struct cow_pins *pins, unsigned n)
{
	struct cow_mblk *b = NULL;

	meta_begin(&r->m, pins);
	CHECK_EQ(cow_meta_get(&r->img, 0, (uint64_t)n * COW_META_BLOCK, 0, &b), 0);
	return b;
}

static void change(struct rig *r, unsigned n, uint8_t value)
{
	struct cow_pins pins = { 0 };
	struct cow_mblk *b = get(r, &pins, n);

	*(uint8_t *)cow_meta_data(b) = value;
	cow_meta_dirty(b, COW_META_TABLE);
	meta_unpin(&pins);
}

static uint8_t on_disk(struct rig *r, unsigned n)
{
	uint8_t byte;

	CHECK_EQ(pread(r->file.fd, &byte, 1, (off_t)n * COW_META_BLOCK), 1);
	return byte;
}

static int edge(struct rig *r, unsigned later, unsigned earlier)
{
	struct cow_pins pins = { 0 };
	struct cow_mblk *a = get(r, &pins, later), *b = get(r, &pins, earlier);
	int rc = cow_meta_after(a, b);

	meta_unpin(&pins);
	return rc;
}

TEST(edges_become_rounds)
{
	struct meta_flush f;
	struct rig r;

	rig_up(&r, 0);
	CHECK_EQ(edge(&r, 1, 2), 0);	/* 2 before 1 before 0 */
	CHECK_EQ(edge(&r, 0, 1), 0);
	for (unsigned n = 0; n < 4; n++)
		change(&r, n, 9);
	CHECK_EQ(meta_flush_prepare(&r.m, &f), 0);
	CHECK_EQ(f.n, 4);
	CHECK_EQ(f.rounds, 3);
	CHECK_EQ(meta_flush_round(&f), 1);
	CHECK_EQ(on_disk(&r, 2), 9);
	CHECK_EQ(on_disk(&r, 3), 9);
	CHECK_EQ(on_disk(&r, 1), 0);
	CHECK_EQ(on_disk(&r, 0), 0);
	CHECK_EQ(meta_flush_round(&f), 1);
	CHECK_EQ(on_disk(&r, 1), 9);
	CHECK_EQ(on_disk(&r, 0), 0);
	CHECK_EQ(meta_flush_round(&f), 1);
	CHECK_EQ(on_disk(&r, 0), 9);
	meta_flush_end(&f);
	CHECK_EQ(r.m.ndirty, 0);
	/* The edges are spent: the other way round is possible now. */
	CHECK_EQ(edge(&r, 2, 1), 0);
	rig_down(&r);
}

TEST(circles_and_too_many_edges_are_refused)
{
	struct rig r;

	rig_up(&r, 0);
	CHECK_EQ(edge(&r, 0, 1), 0);
	CHECK_EQ(edge(&r, 0, 1), 0);	/* once more is the same edge */
	CHECK_EQ(edge(&r, 1, 2), 0);
	CHECK_EQ(edge(&r, 2, 0), -EAGAIN);
	CHECK(r.m.stalled);
	CHECK_EQ(edge(&r, 1, 0), -EAGAIN);
	for (unsigned n = 11; n < 11 + META_DEPS; n++) {
		change(&r, n, 1);
		CHECK_EQ(edge(&r, 10, n), 0);
	}
	CHECK_EQ(edge(&r, 10, 30), -EAGAIN);
	rig_down(&r);
}

TEST(change_during_flush_waits_for_the_next)
{
	struct meta_flush f;
	struct rig r;

	rig_up(&r, 0);
	change(&r, 5, 1);
	CHECK_EQ(meta_flush_prepare(&r.m, &f), 0);
	change(&r, 5, 2);
	change(&r, 6, 2);
	CHECK_EQ(meta_flush_round(&f), 1);
	meta_flush_end(&f);
	CHECK_EQ(on_disk(&r, 5), 1);
	CHECK_EQ(on_disk(&r, 6), 0);
	CHECK_EQ(r.m.ndirty, 2);
	CHECK_EQ(meta_flush_prepare(&r.m, &f), 0);
	CHECK_EQ(meta_flush_round(&f), 1);
	meta_flush_end(&f);
	CHECK_EQ(on_disk(&r, 5), 2);
	CHECK_EQ(on_disk(&r, 6), 2);
	rig_down(&r);
}

TEST(edge_to_a_later_change_outlives_the_flush)
{
	struct meta_flush f;
	struct rig r;

	rig_up(&r, 0);
	change(&r, 0, 1);
	CHECK_EQ(meta_flush_prepare(&r.m, &f), 0);
	CHECK_EQ(edge(&r, 0, 1), 0);
	change(&r, 1, 3);
	change(&r, 0, 3);
	CHECK_EQ(meta_flush_round(&f), 1);
	meta_flush_end(&f);
	CHECK_EQ(meta_flush_prepare(&r.m, &f), 0);
	CHECK_EQ(f.rounds, 2);
	CHECK_EQ(meta_flush_round(&f), 1);
	CHECK_EQ(on_disk(&r, 1), 3);
	CHECK_EQ(on_disk(&r, 0), 1);
	CHECK_EQ(meta_flush_round(&f), 1);
	CHECK_EQ(on_disk(&r, 0), 3);
	meta_flush_end(&f);
	rig_down(&r);
}

TEST(failed_write_stays_dirty)
{
	struct meta_flush f;
	struct rig r;
	int fd;

	rig_up(&r, 0);
	change(&r, 7, 4);
	fd = r.file.fd;
	r.file.fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
	CHECK_EQ(meta_flush_prepare(&r.m, &f), 0);
	CHECK_EQ(meta_flush_round(&f), 1);
	CHECK_EQ(f.err, -ENOSPC);
	meta_flush_end(&f);
	close(r.file.fd);
	r.file.fd = fd;
	CHECK_EQ(r.m.ndirty, 1);
	CHECK_EQ(meta_flush_prepare(&r.m, &f), 0);
	CHECK_EQ(meta_flush_round(&f), 1);
	CHECK_EQ(f.err, 0);
	meta_flush_end(&f);
	CHECK_EQ(on_disk(&r, 7), 4);
	rig_down(&r);
}

/* The smallest cache has 64 slots: clean blocks give way, dirty and pinned ones do not. */
TEST(eviction)
{
	struct cow_pins pins = { 0 }, other = { 0 };
	struct cow_mblk *b;
	struct rig r;
	unsigned n;

	rig_up(&r, 1);
	for (n = 0; n < 40; n++)
		change(&r, n, (uint8_t)(n + 1));
	get(&r, &pins, 40);
	for (n = 41; n < BLOCKS; n++) {
		get(&r, &other, n);
		meta_unpin(&other);
	}
	CHECK(r.m.evictions >= BLOCKS - 64 - 41);
	CHECK(meta_cached(&r.m) <= 64);
	for (n = 0; n < 40; n++) {
		b = get(&r, &other, n);
		CHECK_EQ(*(uint8_t *)cow_meta_data(b), n + 1);
		meta_unpin(&other);
	}
	CHECK(r.m.blks[pins.blk[0]->index].state == MBLK_VALID);
	meta_unpin(&pins);
	for (; n < 64; n++)
		change(&r, n, 1);
	meta_begin(&r.m, &other);
	CHECK_EQ(cow_meta_get(&r.img, 0, 200 * COW_META_BLOCK, 0, &b), -EAGAIN);
	CHECK(r.m.stalled && !r.m.missing);
	rig_down(&r);
}
