// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Blocks for the kernel (mapreq.h, mapblk.c): this test is the kernel, which remembers
 * what it was told for as long as it likes, reads and writes the files itself, completes blocks
 * whose place is new and reports them some time later, and has
 * places made, ranges zeroed and discarded. Whatever it does must agree with a plain copy
 * of the disk. Chains are those that planes cannot show: qcow2 of many shapes, over raw, dscow
 * or qcow2.
 */
#include "cowd/mapreq.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io-sim.h"
#include "rig.h"
#include "test.h"

#define SECTOR MAPREQ_SECTOR
#define LAYERS 3u
#define DEV0 10u			/* index of the top's device; those below follow */

struct entry {
	bool read, write, zero;
	bool unreported;		/* written to a place that the daemon gave for that */
	unsigned layer;
	uint64_t at;			/* byte of its device */
};

static struct {
	struct cow_sim *sim;
	struct cow_chain *c;
	struct mapreq m;
	struct mapreq_answer a;
	struct entry *known;		/* of each block */
	uint8_t *shadow;
	uint64_t size, block;
	unsigned made, sent, grown, split, reported;
} bed;

static const char *const names[LAYERS] = { "top", "mid", "base" };

static uint64_t rnd(uint64_t below)
{
	return test_rand() % below;
}

static void fill(uint8_t *buf, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		buf[i] = (uint8_t)test_rand();
}

/* ---- chains ---- */

static void set(struct cow_args *args, const char *key, uint64_t value)
{
	char num[24];

	snprintf(num, sizeof(num), "%llu", (unsigned long long)value);
	CHECK_EQ(cow_args_set(args, key, num), 0);
}

static void add(unsigned i, const char *format, const char *base_format, uint64_t size, uint64_t cluster,
		bool extended)
{
	struct cow_args *args = cow_args_new();
	struct cow_create_cfg cfg = {
		.format = format, .path = names[i], .size = size, .args = args, .backing = names[i + 1],
		.backing_format = base_format, .io = &cow_io_sim_ops, .io_arg = bed.sim,
	};
	struct cow_err err = { 0 };

	CHECK(args);
	if (!strcmp(format, "qcow2"))
		set(args, "cluster_size", cluster);
	if (extended)
		CHECK_EQ(cow_args_set(args, "extended_l2", "on"), 0);
	if (cow_image_create(&cfg, NULL, &err))
		FAIL("%s", err.msg);
	cow_args_free(args);
}

static struct cow_chain *open_named(const char *name, const char *format, uint32_t flags)
{
	struct cow_chain_cfg cfg = {
		.format = format, .path = name, .flags = flags, .io = &cow_io_sim_ops, .io_arg = bed.sim,
	};
	struct cow_err err = { 0 };
	struct cow_chain *c;
	int rc = cow_chain_open(&cfg, &c, &err);

	if (rc)
		FAIL("%s: %s", name, cow_err_text(&err, rc));
	return c;
}

static void scribble(const char *name, const char *format, unsigned ops)
{
	struct cow_chain *c = open_named(name, format, COW_OPEN_WRITE);
	static uint8_t buf[COW_KIB(100)];
	uint64_t size = cow_chain_size(c);

	while (ops--) {
		uint64_t len = 1 + rnd(rnd(3) ? 9000 : sizeof(buf)), off = rnd(size - len + 1);

		fill(buf, len);
		CHECK_EQ(rnd(5) ? cow_chain_pwrite(c, buf, len, off) : cow_chain_zero(c, off, len), 0);
	}
	CHECK_EQ(cow_chain_close(c), 0);
}

static void make(void)
{
	static const char *const formats[] = { "dscow", "qcow2" };
	const char *mid = formats[rnd(2)];
	bool extended = rnd(3) == 0;
	uint64_t base = COW_MIB(1) + rnd(COW_MIB(1)), cluster = 4096u << rnd(5);
	uint8_t *buf = malloc(base);

	CHECK(buf);
	fill(buf, base);
	memset(buf + base / 4, 0, base / 4);
	CHECK_EQ(cow_sim_add(bed.sim, names[2], base, false), 0);
	CHECK_EQ(cow_sim_write(bed.sim, names[2], buf, base, 0), 0);
	free(buf);
	add(1, mid, "raw", cow_round_up(base / 2 + rnd(base), SECTOR), 4096u << rnd(5), false);
	scribble(names[1], mid, 20);
	bed.size = cow_round_up(base / 2 + rnd(base), SECTOR);
	add(0, "qcow2", mid, bed.size, extended ? cow_max(cluster, COW_KIB(16)) : cluster, extended);
	scribble(names[0], "qcow2", 20);
}

static void start(uint64_t seed, bool write)
{
	struct mapreq_file files[LAYERS];
	struct cow_err err = { 0 };
	uint32_t unit = rnd(2) ? 512 : 4096;

	memset(&bed, 0, sizeof(bed));
	bed.sim = cow_sim_new(seed);
	CHECK(bed.sim);
	make();
	if (unit == 4096 && bed.size % unit)
		unit = 512;
	bed.c = open_named(names[0], "qcow2", write ? COW_OPEN_WRITE : 0);
	for (unsigned i = 0; i < LAYERS; i++)
		files[i] = (struct mapreq_file){
			.dev = (uint16_t)(DEV0 + i), .unit = unit,
			.size = cow_round_down(cow_sim_size(bed.sim, names[i]), unit),
		};
	if (mapreq_init(&bed.m, bed.c, files, &err))
		FAIL("%s", err.msg);
	CHECK(bed.m.blocks);
	bed.block = (uint64_t)SECTOR << bed.m.granule_shift;
	bed.known = calloc(bed.size / bed.block + 1, sizeof(*bed.known));
	bed.shadow = malloc(bed.size);
	CHECK(bed.known && bed.shadow);
	CHECK_EQ(cow_chain_pread(bed.c, bed.shadow, bed.size, 0), 0);
}

static void end(void)
{
	CHECK_EQ(cow_chain_close(bed.c), 0);
	cow_sim_free(bed.sim);
	free(bed.known);
	free(bed.shadow);
}

/* ---- the kernel's side ---- */

/* A block is completed at its new place: all of it is what the disk reads as. */
static void fill_block(const struct dmu_blocks *b, uint64_t virt)
{
	uint64_t off = virt - b->start * SECTOR, len = cow_min(bed.block, bed.size - virt);
	struct entry *e = &bed.known[virt / bed.block];
	static uint8_t buf[COW_MIB(2)];

	memset(buf, 0, len);
	if (b->from_dev != DMU_DEV_ZERO)
		CHECK_EQ(cow_sim_read(bed.sim, names[b->from_dev - DEV0], buf, len, b->from * SECTOR + off), 0);
	if (memcmp(buf, bed.shadow + virt, len))
		FAIL("byte %llu: what is to be copied is something else", (unsigned long long)virt);
	cow_sim_write_other(bed.sim, names[0], buf, len, b->position * SECTOR + off);
	*e = (struct entry){ .read = true, .write = true, .unreported = true, .at = b->position * SECTOR + off };
}

/* The kernel makes those blocks that it writes to; of the others it remembers nothing. */
static void take_split(const struct dmu_blocks *b, uint64_t virt, uint64_t asked)
{
	uint64_t first = b->start * SECTOR, end = first + (uint64_t)b->sectors * SECTOR;
	bool all = rnd(2);

	CHECK(b->flags == (DMU_BLOCKS_READ | DMU_BLOCKS_WRITE | DMU_BLOCKS_COPY) && b->dev == DEV0);
	CHECK((uint64_t)b->sectors * SECTOR <= asked && first == cow_round_down(virt, bed.block));
	CHECK(b->position * SECTOR % bed.m.unit == 0 && b->position * SECTOR + (end - first) <= bed.m.size[0]);
	CHECK(b->from_dev != DMU_DEV_ZERO || b->from == 0);
	CHECK(b->from * SECTOR % bed.m.unit == 0);
	CHECK(b->from_dev != b->dev || b->from + b->sectors <= b->position || b->position + b->sectors <= b->from);
	for (uint64_t at = first; at < end; at += bed.block)
		if ((all || at == first) && !bed.known[at / bed.block].write)
			fill_block(b, at);
	bed.split++;
}

/* DMU_WRITTEN of a block, if there is one due. */
static void report(uint64_t block)
{
	struct entry *e = &bed.known[block];
	struct cow_req req = { .op = COW_OP_WRITTEN, .virt = block * bed.block, .phys = e->at };

	if (!e->unreported)
		return;
	req.len = cow_min(bed.block, bed.size - req.virt);
	CHECK_EQ(rig_run(bed.c, &req), 0);
	if (rnd(4) == 0)
		CHECK_EQ(rig_run(bed.c, &req), 0);
	e->unreported = false;
	bed.reported++;
}

static void report_all(void)
{
	for (uint64_t b = 0; b * bed.block < bed.size; b++)
		report(b);
}

static void remember(const struct dmu_blocks *b, uint32_t op)
{
	uint64_t virt = b->start * SECTOR, stop = virt + (uint64_t)b->sectors * SECTOR;
	uint64_t at = b->position * SECTOR;

	CHECK(b->sectors && stop <= bed.size && (stop % bed.block == 0 || stop == bed.size));
	CHECK(b->flags & DMU_BLOCKS_READ);
	CHECK(op != DMU_OP_WRITE || b->flags & DMU_BLOCKS_WRITE);
	if (b->dev == DMU_DEV_ZERO) {
		CHECK_EQ(b->position, 0);
	} else {
		CHECK(b->dev >= DEV0 && b->dev < DEV0 + LAYERS);
		CHECK(at % bed.m.unit == 0 && at + (stop - virt) <= cow_round_up(bed.m.size[b->dev - DEV0], SECTOR));
		CHECK(!(b->flags & DMU_BLOCKS_WRITE) || b->dev == DEV0);
	}
	for (; virt < stop; virt += bed.block, at += bed.block) {
		if (bed.known[virt / bed.block].unreported)	/* the kernel knows better */
			continue;
		bed.known[virt / bed.block] = (struct entry){
			.read = true, .write = b->flags & DMU_BLOCKS_WRITE, .at = at,
			.zero = b->dev == DMU_DEV_ZERO, .layer = b->dev - DEV0,
		};
	}
}

/* Asks for the block of @virt, up to @blocks of them. False: only the bytes are to be had. */
static bool ask(uint64_t virt, uint64_t blocks, uint32_t op)
{
	uint64_t first = cow_round_down(virt, bed.block);
	struct dmu_ask a = {
		.head.id = 7, .op = op, .start = first / SECTOR, .at = virt / SECTOR, .need = 1,
		.sectors = (uint32_t)(cow_min(blocks * bed.block, bed.size - first) / SECTOR),
	};

	for (unsigned round = 0; round < 4; round++) {
		int rc = mapreq_blocks(&bed.m, &a, &bed.a);

		if (rc == MAPREQ_READY) {
			CHECK_EQ(bed.a.record.blocks.start, a.start);
			CHECK_EQ(bed.a.size, sizeof(bed.a.record.blocks));
			if (bed.a.record.blocks.flags & DMU_BLOCKS_COPY)
				take_split(&bed.a.record.blocks, virt, (uint64_t)a.sectors * SECTOR);
			else
				remember(&bed.a.record.blocks, op);
			return true;
		}
		if (rc == MAPREQ_DATA) {
			CHECK_EQ(op, DMU_OP_READ);
			bed.sent++;
			return false;
		}
		if (rc == MAPREQ_GROW) {
			CHECK(bed.a.grow > bed.m.size[0]);
			bed.m.size[0] = bed.a.grow;
			bed.grown++;
			continue;
		}
		CHECK(rc == MAPREQ_PRESENT || rc == MAPREQ_PLACE);
		CHECK_EQ(op, DMU_OP_WRITE);
		CHECK(bed.a.sectors && bed.a.sectors <= a.sectors);
		CHECK_EQ(rig_request(bed.c, rc == MAPREQ_PLACE ? COW_OP_PLACE : COW_OP_PRESENT, 0, first,
				     (uint64_t)bed.a.sectors * SECTOR, NULL), 0);
		bed.made += rc == MAPREQ_PRESENT;
	}
	FAIL("no end of asking for byte %llu", (unsigned long long)virt);
}

static void kernel_read(uint64_t virt, uint8_t *buf)
{
	const struct entry *e = &bed.known[virt / bed.block];

	if (!e->read && !ask(virt, 1 + rnd(3), DMU_OP_READ))
		CHECK_EQ(cow_chain_pread(bed.c, buf, SECTOR, virt), 0);
	else if (e->zero)
		memset(buf, 0, SECTOR);
	else
		CHECK_EQ(cow_sim_read(bed.sim, names[e->layer], buf, SECTOR, e->at + virt % bed.block), 0);
}

static void check_sector(uint64_t virt)
{
	uint8_t buf[SECTOR];

	kernel_read(virt, buf);
	if (memcmp(buf, bed.shadow + virt, SECTOR))
		FAIL("byte %llu, blocks of %llu", (unsigned long long)virt, (unsigned long long)bed.block);
}

static void check_all(void)
{
	for (uint64_t virt = 0; virt < bed.size; virt += SECTOR)
		check_sector(virt);
}

static void kernel_write(uint64_t virt)
{
	struct entry *e = &bed.known[virt / bed.block];

	if (!e->write)
		CHECK(ask(virt, 1 + rnd(4), DMU_OP_WRITE));
	CHECK(e->write && !e->zero && e->layer == 0);
	fill(bed.shadow + virt, SECTOR);
	cow_sim_write_other(bed.sim, names[0], bed.shadow + virt, SECTOR, e->at + virt % bed.block);
}

/* Zeroes sectors, or discards granules; the kernel asks for them anew afterwards. */
static void change(void)
{
	bool discard = rnd(2);
	uint64_t unit = discard ? cow_chain_image(bed.c, 0)->granule : SECTOR;
	uint64_t from = cow_round_down(rnd(bed.size), unit);
	uint64_t len = cow_min(cow_round_up(1 + rnd(cow_max(unit, bed.block) * 3), unit), bed.size - from);

	for (uint64_t b = from / bed.block; b * bed.block < from + len; b++) {
		report(b);
		bed.known[b] = (struct entry){ 0 };
	}
	CHECK_EQ(discard ? cow_chain_discard(bed.c, from, len) : cow_chain_zero(bed.c, from, len), 0);
	memset(bed.shadow + from, 0, len);
}

static uint64_t any_sector(void)
{
	uint64_t within = rnd(3) ? cow_min(bed.size, COW_KIB(256)) : bed.size;

	return cow_round_down(rnd(within), SECTOR);
}

static void one(void)
{
	uint64_t at;

	switch (rnd(16)) {
	case 0:
		change();
		break;
	case 1:
		at = rnd(bed.size) / bed.block;
		report(at);
		bed.known[at] = (struct entry){ 0 };
		break;
	case 2:
		if (rnd(4) == 0)
			report_all();
		CHECK_EQ(cow_chain_flush(bed.c), 0);
		break;
	case 3 ... 8:
		kernel_write(any_sector());
		break;
	default:
		check_sector(any_sector());
	}
}

TEST(reads_and_writes_as_the_disk)
{
	unsigned rounds = rig_full() ? 300 : 40, made = 0, sent = 0, grown = 0, split = 0;

	for (unsigned i = 0; i < rounds; i++) {
		struct cow_report rep = { 0 };
		struct cow_err err = { 0 };
		uint8_t *all;

		start(test_rand(), true);
		for (unsigned n = 0; n < 400; n++)
			one();
		check_all();
		report_all();
		CHECK_EQ(cow_chain_flush(bed.c), 0);
		CHECK(!cow_chain_unflushed(bed.c));
		CHECK_EQ(cow_chain_close(bed.c), 0);
		/* What the image itself says, and that it is sound. */
		bed.c = open_named(names[0], "qcow2", 0);
		all = malloc(bed.size);
		CHECK(all);
		CHECK_EQ(cow_chain_pread(bed.c, all, bed.size, 0), 0);
		CHECK(!memcmp(all, bed.shadow, bed.size));
		free(all);
		CHECK_EQ(cow_chain_check(bed.c, &rep, 0, &err), 0);
		CHECK_EQ(rep.corruptions, 0);
		CHECK_EQ(rep.leaks, 0);
		made += bed.made;
		sent += bed.sent;
		grown += bed.grown;
		split += bed.split;
		end();
	}
	CHECK(made && sent && grown && split);
	printf("%u chains: %u places made, %u split answers, %u answers by bytes, grown %u times\n", rounds,
	       made, split, sent, grown);
}

/* Nothing is marked, made or grown by those who only read. */
TEST(read_only)
{
	for (unsigned i = 0; i < 10; i++) {
		start(test_rand(), false);
		check_all();
		CHECK_EQ(bed.made, 0);
		end();
	}
}

/* What is present, and not durable, is said with the answer: the kernel's flush would not ask. */
TEST(unflushed)
{
	start(test_rand(), true);
	CHECK_EQ(cow_chain_flush(bed.c), 0);
	while (!bed.made)
		kernel_write(any_sector());
	CHECK(bed.a.record.blocks.flags & DMU_BLOCKS_CHANGED);
	CHECK_EQ(cow_chain_flush(bed.c), 0);
	memset(bed.known, 0, (bed.size / bed.block + 1) * sizeof(*bed.known));
	bed.a.record.blocks.flags = 0;
	for (uint64_t virt = 0; virt < bed.size; virt += bed.block) {
		struct cow_extent e;

		CHECK_EQ(cow_chain_in_place(bed.c, virt, cow_min(bed.block, bed.size - virt), &e), 0);
		if (e.kind != COW_DATA || (e.flags & COW_EXT_NEW) || e.len < cow_min(bed.block, bed.size - virt) ||
		    cow_chain_unflushed(bed.c))
			continue;
		CHECK(ask(virt, 1, DMU_OP_WRITE));
		CHECK(!(bed.a.record.blocks.flags & DMU_BLOCKS_CHANGED));
		break;
	}
	end();
}

/* A kernel that remembers where to write would keep changes from the bitmaps of the image. */
TEST(bitmaps_see_every_write)
{
	struct cow_bitmap_change ch = { .op = COW_BITMAP_ADD, .name = "bits" };
	struct cow_err why = { 0 };
	struct cow_chain *c;

	start(test_rand(), true);
	c = bed.c;
	CHECK_EQ(mapreq_suits(c, SECTOR, &why), 0);
	CHECK_EQ(cow_chain_bitmap(c, &ch, &why), 0);
	CHECK_EQ(cow_chain_close(c), 0);
	bed.c = open_named("top", "qcow2", COW_OPEN_WRITE);
	CHECK_EQ(mapreq_suits(bed.c, SECTOR, &why), -EOPNOTSUPP);
	CHECK(strstr(why.msg, "its bitmaps record every write"));
	CHECK_EQ(cow_chain_close(bed.c), 0);
	bed.c = open_named("top", "qcow2", 0);
	CHECK_EQ(mapreq_suits(bed.c, SECTOR, &(struct cow_err){ 0 }), 0);
	end();
}
