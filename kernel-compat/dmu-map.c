// SPDX-License-Identifier: GPL-2.0
/*
 * Where a bio goes: map() and the way of bios that had to wait. What happens to
 * those that make new granules, discard or flush is in dmu-io.c.
 *
 * map() of a remembered place takes no lock, allocates nothing and writes to one counter of
 * this CPU. A bio that is longer than what one place holds is cut: by
 * dm_accept_partial_bio() in map(), which alone may call it; afterwards by splitting
 * off the front. Only fronts that wait for nothing but the bottom devices
 * are split off, so the reserve of splits always comes back.
 */
#include "dmu.h"

/*
 * The first plane, counted from @from, that has sector @at of the section; -1: none, it
 * is zeroes. @sectors is cut to how many from there on have the same answer.
 */
static __always_inline int layer_find(const struct dmu_place *p, unsigned int from, u32 at,
				      u32 *sectors)
{
	u32 shift = p->granule_shift, granule = at >> shift, len = *sectors, last, next;
	unsigned int i;

	for (i = from; i < p->planes; i++) {
		const struct dmu_layer *l = &p->plane[i];
		const unsigned long *bits;

		if (at >= l->limit)
			continue;
		if (len > l->limit - at)
			len = l->limit - at;
		bits = READ_ONCE(l->bits);
		if (!bits)
			break;
		last = (at + len - 1) >> shift;
		if (test_bit(granule, bits)) {
			if (last != granule) {
				next = find_next_zero_bit(bits, last + 1, granule + 1);
				len = min(len, (next << shift) - at);
			}
			break;
		}
		if (last != granule) {
			next = find_next_bit(bits, last + 1, granule + 1);
			len = min(len, (next << shift) - at);
		}
	}
	*sectors = len;
	return i < p->planes ? i : -1;
}

int dmu_layer_find(const struct dmu_place *p, unsigned int from, u32 at, u32 *sectors)
{
	return layer_find(p, from, at, sectors);
}

/* Under RCU, after @pc->gate was loaded. */
void dmu_count_in(struct dmu_object *o, struct dmu_piece *pc)
{
	this_cpu_inc(o->cpu->in[pc->gate]);
}

/* ---- tables of blocks ---- */

static void entry_place(u64 e, struct dmu_piece *pc)
{
	pc->dev = (e & DMU_ENTRY_DEV) >> DMU_ENTRY_DEV_SHIFT;
	pc->at = e & DMU_ENTRY_AT;
}

/* Looks a bio up in a table of blocks; DMU_MISS also when the entry does not permit it. */
static void look_entry(const struct dmu_place *p, u32 at, bool write, struct dmu_piece *pc)
{
	u64 need = write ? DMU_ENTRY_WRITE : DMU_ENTRY_READ, e, first;
	u32 shift = p->granule_shift, block = at >> shift, len;

	first = atomic64_read(&p->entry[block]);
	pc->verdict = !(first & need) ? DMU_MISS : first & DMU_ENTRY_ZERO ? DMU_ZEROES : DMU_GO;
	for (len = ((block + 1) << shift) - at; len < pc->sectors; len += 1u << shift) {
		e = atomic64_read(&p->entry[++block]);
		if (pc->verdict == DMU_MISS) {
			if (e & need)
				break;
			continue;
		}
		if (!(e & need) || ((e ^ first) & (DMU_ENTRY_ZERO | DMU_ENTRY_DEV)))
			break;
		if (!(e & DMU_ENTRY_ZERO) && (e & DMU_ENTRY_AT) !=
		    (first & DMU_ENTRY_AT) + ((u64)(block - (at >> shift)) << shift))
			break;
	}
	pc->sectors = min(pc->sectors, len);
	entry_place(first, pc);
	pc->at += at & ((1u << shift) - 1);
}

/* The first block of [@block, @stop) that can be written already. */
static u32 unwritable(const struct dmu_place *p, u32 block, u32 stop)
{
	while (block < stop && !(atomic64_read(&p->entry[block]) & DMU_ENTRY_WRITE))
		block++;
	return block;
}

/* ---- writes to granules that are not there yet ---- */

/*
 * Takes the granules at @at that a write may make present now: a run of whole
 * ones (DMU_NEW), or one in part (DMU_FILL). Sets @pc->verdict; false when the bio
 * has to wait (DMU_KEPT, it is not ours any more). Under object.lock.
 */
bool dmu_begin_fill(struct dmu_object *o, struct dmu_place *p, u32 at, struct bio *bio,
		    struct dmu_piece *pc)
{
	u32 shift = p->granule_shift, size = 1u << shift, granule = at >> shift;
	u32 start = granule << shift, end = at + pc->sectors, stop, last;
	struct dmu_work *w = dmu_work_get(o, p);

	pc->verdict = DMU_KEPT;
	if (!w) {
		dmu_starve(o, bio);
		return false;
	}
	if (test_bit(granule, dmu_busy(w))) {
		dmu_work_wait(o, w, bio);
		return false;
	}
	last = end >= p->sectors ? dmu_place_granules(p) : end >> shift;
	pc->place = p;
	pc->first = granule;
	if (at == start && last > granule) {
		pc->verdict = DMU_NEW;
		stop = find_next_bit(dmu_busy(w), last, granule + 1);
		if (p->planes)
			stop = find_next_bit(p->plane[0].bits, stop, granule + 1);
		else
			stop = unwritable(p, granule + 1, stop);
		pc->count = stop - granule;
		pc->sectors = min(pc->sectors, pc->count << shift);
	} else {
		pc->verdict = DMU_FILL;
		pc->count = 1;
		stop = min(start + size, p->sectors);
		pc->sectors = min(pc->sectors, stop - at);
		/* Copy what the write leaves: before it, behind it. */
		pc->copy = at == start ? at + pc->sectors : start;
		pc->copy_end = at + pc->sectors == stop ? at : stop;
	}
	bitmap_set(dmu_busy(w), pc->first, pc->count);
	w->busy_count += pc->count;
	return true;
}

/* A write to a granule that plane 0 lacks, under RCU. */
static void look_new(struct dmu_object *o, struct dmu_place *p, u32 at, struct bio *bio,
		     struct dmu_piece *pc)
{
	unsigned long flags;

	spin_lock_irqsave(&o->lock, flags);
	if (p->dead || !p->plane[0].bits || test_bit(at >> p->granule_shift, p->plane[0].bits)) {
		pc->verdict = DMU_AGAIN;
	} else if (dmu_begin_fill(o, p, at, bio, pc)) {
		pc->dev = p->plane[0].dev;
		pc->at = p->plane[0].position + at;
		pc->granule_at = p->plane[0].position + (pc->first << p->granule_shift);
	}
	spin_unlock_irqrestore(&o->lock, flags);
}

/* A block whose place is not known: being made or zeroed, or to be asked for. Under RCU. */
static void look_busy(struct dmu_object *o, struct dmu_place *p, u32 at, struct bio *bio,
		      struct dmu_piece *pc)
{
	u64 need = bio_op(bio) == REQ_OP_WRITE ? DMU_ENTRY_WRITE : DMU_ENTRY_READ;
	unsigned long flags;
	u32 block = at >> p->granule_shift;

	spin_lock_irqsave(&o->lock, flags);
	if (p->dead || (atomic64_read(&p->entry[block]) & need)) {
		pc->verdict = DMU_AGAIN;
	} else if (p->work && test_bit(block, dmu_busy(p->work))) {
		dmu_work_wait(o, p->work, bio);
		pc->verdict = DMU_KEPT;
	}
	spin_unlock_irqrestore(&o->lock, flags);
}

/* How far the bio can go from its beginning, which is at @pos of the target. */
static void look(struct dmu_object *o, struct bio *bio, u64 pos, struct dmu_piece *pc)
{
	bool write = bio_op(bio) == REQ_OP_WRITE;
	u32 at = pos & (DMU_SECTION_SECTORS - 1);
	struct dmu_place *p;
	int i;

	pc->sectors = min(bio_sectors(bio), DMU_SECTION_SECTORS - at);
	pc->verdict = DMU_MISS;
	rcu_read_lock();
	pc->gate = smp_load_acquire(&o->gate);
	p = xa_load(&o->sections, pos >> DMU_SECTION_SHIFT);
	if (!p || at >= p->sectors)
		goto out;
	p->referenced = true;
	pc->sectors = min(pc->sectors, p->sectors - at);
	if (!p->planes) {
		look_entry(p, at, write, pc);
		if (pc->verdict == DMU_MISS)
			look_busy(o, p, at, bio, pc);
	} else if (!write || p->write) {
		i = dmu_layer_find(p, 0, at, &pc->sectors);
		if (write && i)
			look_new(o, p, at, bio, pc);
		else if (i < 0 || p->plane[i].dev == DMU_DEV_ZERO)
			pc->verdict = DMU_ZEROES;
		else {
			pc->verdict = DMU_GO;
			pc->dev = p->plane[i].dev;
			pc->at = p->plane[i].position + at;
		}
	}
	if (pc->verdict == DMU_GO || pc->verdict == DMU_NEW || pc->verdict == DMU_FILL)
		dmu_count_in(o, pc);
out:
	rcu_read_unlock();
}

/* ---- going ---- */

void dmu_finish(struct bio *bio, blk_status_t status)
{
	if (status)
		bio->bi_status = status;
	bio_endio(bio);
}

/* Points the bio, which is all of the piece, to its place; true: it can be submitted at once. */
static bool aim(struct dmu_io *io, const struct dmu_piece *pc)
{
	io->asks = 0;
	io->state &= DMU_IO_FUA;
	io->state |= DMU_IO_IN | (pc->gate ? DMU_IO_SIDE : 0);
	if (pc->verdict != DMU_GO) {
		io->state |= DMU_IO_NEW;
		io->piece = *pc;
	}
	bio_set_dev(io->bio, io->t->bdev[pc->dev]);
	io->bio->bi_iter.bi_sector = pc->at;
	return pc->verdict != DMU_FILL;
}

static void split_end_io(struct bio *bio)
{
	struct dmu_split *split = container_of(bio, struct dmu_split, bio);
	struct bio *whole = bio->bi_private;
	blk_status_t status = bio->bi_status;

	dmu_piece_done(split->io.t->o, &split->io, split->io.state, !status);
	if (status && !whole->bi_status)
		whole->bi_status = status;
	bio_put(bio);
	bio_endio(whole);
}

/* Sends the front of a bio on its way; what is left of it is ours still. */
static int split_off(struct dmu_io *io, const struct dmu_piece *pc)
{
	struct bio *front = bio_split(io->bio, pc->sectors, GFP_NOIO, &io->t->o->splits);
	struct dmu_split *split;

	if (IS_ERR_OR_NULL(front))
		return -EIO;
	split = container_of(front, struct dmu_split, bio);
	split->io.state = 0;
	split->io.t = io->t;
	split->io.bio = front;
	front->bi_private = io->bio;
	front->bi_end_io = split_end_io;
	bio_inc_remaining(io->bio);
	io->asks = 0;
	if (aim(&split->io, pc))
		submit_bio_noacct(front);
	else
		dmu_fill(&split->io);
	return 0;
}

static void zero_front(struct bio *bio, u32 sectors)
{
	u32 bytes = sectors << SECTOR_SHIFT, left = bio->bi_iter.bi_size - bytes;

	bio->bi_iter.bi_size = bytes;
	zero_fill_bio(bio);
	bio->bi_iter.bi_size = bytes + left;
	if (left)
		bio_advance(bio, bytes);
	else
		bio->bi_iter.bi_size = 0;
}

/* Undoes what look() took, when the piece cannot go. */
static void drop_piece(struct dmu_io *io, const struct dmu_piece *pc)
{
	io->piece = *pc;
	dmu_piece_done(io->t->o, io, DMU_IO_IN | (pc->gate ? DMU_IO_SIDE : 0) |
		       (pc->verdict == DMU_GO ? 0 : DMU_IO_NEW), false);
}

/* Outside map(): one piece on its way. True: there is more of the bio to look up. */
static bool send_piece(struct dmu_io *io, const struct dmu_piece *pc)
{
	struct bio *bio = io->bio;

	if (pc->verdict == DMU_ZEROES) {
		io->asks = 0;
		zero_front(bio, pc->sectors);
		if (bio->bi_iter.bi_size)
			return true;
		dmu_finish(bio, 0);
		return false;
	}
	if (pc->sectors < bio_sectors(bio)) {
		if (!split_off(io, pc))
			return true;
		drop_piece(io, pc);
		dmu_finish(bio, BLK_STS_IOERR);
		return false;
	}
	if (aim(io, pc))
		submit_bio_noacct(bio);
	else
		dmu_fill(io);
	return false;
}

/* In map(): the piece is what this bio will be. */
static int map_piece(struct dmu_io *io, const struct dmu_piece *pc)
{
	struct bio *bio = io->bio;

	if (pc->sectors < bio_sectors(bio))
		dm_accept_partial_bio(bio, pc->sectors);
	if (pc->verdict == DMU_ZEROES) {
		zero_fill_bio(bio);
		dmu_finish(bio, 0);
		return DM_MAPIO_SUBMITTED;
	}
	if (aim(io, pc))
		return DM_MAPIO_REMAPPED;
	dmu_fill(io);
	return DM_MAPIO_SUBMITTED;
}

/* A read or write, from map() or when it waited long enough. May sleep. */
int dmu_route(struct dmu_io *io, bool mapping)
{
	struct dmu_target *t = io->t;
	struct bio *bio = io->bio;
	bool write = bio_op(bio) == REQ_OP_WRITE;
	struct dmu_piece pc;
	u64 pos;

	for (;;) {
		if (READ_ONCE(t->requeue)) {
			dmu_finish(bio, BLK_STS_DM_REQUEUE);
			return DM_MAPIO_SUBMITTED;
		}
		if (write && (!t->writable || READ_ONCE(t->o->failed))) {
			dmu_finish(bio, BLK_STS_IOERR);
			return DM_MAPIO_SUBMITTED;
		}
		pos = dm_target_offset(t->ti, bio->bi_iter.bi_sector);
		look(t->o, bio, pos, &pc);
		switch (pc.verdict) {
		case DMU_AGAIN:
			break;
		case DMU_KEPT:
			return DM_MAPIO_SUBMITTED;
		case DMU_MISS:
			return dmu_ask(io, pos, pc.sectors, write ? DMU_OP_WRITE : DMU_OP_READ);
		default:
			if (mapping)
				return map_piece(io, &pc);
			if (!send_piece(io, &pc))
				return DM_MAPIO_SUBMITTED;
		}
	}
}

/* A bio that waited. Not in map(), may sleep. */
void dmu_resume(struct bio *bio)
{
	struct dmu_io *io = dmu_io(bio);

	if (bio_op(bio) == REQ_OP_READ || bio_op(bio) == REQ_OP_WRITE)
		dmu_route(io, false);
	else
		dmu_change(io);
}

void dmu_resume_list(struct bio_list *bios)
{
	struct blk_plug plug;
	struct bio *bio;

	blk_start_plug(&plug);
	while ((bio = bio_list_pop(bios)))
		dmu_resume(bio);
	blk_finish_plug(&plug);
}

/* ---- answers that hold for one request only, or need a copy first ---- */

/* How far the bio, which begins in the range of @b, goes by it. Under RCU. */
static void look_blocks(struct dmu_object *o, struct bio *bio, u64 pos, const struct dmu_blocks *b,
			struct dmu_piece *pc)
{
	u32 shift = o->block_shift, at = pos & (DMU_SECTION_SECTORS - 1);
	struct dmu_place *p = NULL;
	unsigned long flags;

	pc->sectors = min_t(u64, bio_sectors(bio), b->start + b->sectors - pos);
	pc->dev = b->dev;
	pc->at = b->position + (pos - b->start);
	pc->verdict = b->dev == DMU_DEV_ZERO ? DMU_ZEROES : DMU_GO;
	if (!(b->flags & DMU_BLOCKS_COPY))
		return;
	p = xa_load(&o->sections, pos >> DMU_SECTION_SHIFT);
	pc->verdict = DMU_AGAIN;
	if (!p || p->planes)
		return;
	spin_lock_irqsave(&o->lock, flags);
	if (!p->dead && !(atomic64_read(&p->entry[at >> shift]) & DMU_ENTRY_WRITE) &&
	    dmu_begin_fill(o, p, at, bio, pc)) {
		u64 granule = (pos - at) + ((u64)pc->first << shift) - b->start;

		pc->granule_at = b->position + granule;
		pc->from_dev = b->from_dev;
		pc->from = b->from + granule;
	}
	spin_unlock_irqrestore(&o->lock, flags);
}

/* Sends a bio that waited for this answer where it says, and on what is beyond it. May sleep. */
void dmu_apply_blocks(struct dmu_io *io, const struct dmu_blocks *b)
{
	struct dmu_target *t = io->t;
	struct dmu_object *o = t->o;
	struct bio *bio = io->bio;
	bool write = bio_op(bio) == REQ_OP_WRITE;
	struct dmu_piece pc;
	u64 pos;

	while (!READ_ONCE(o->failed) || !write) {
		pos = dm_target_offset(t->ti, bio->bi_iter.bi_sector);
		if (pos < b->start || pos - b->start >= b->sectors ||
		    !(b->flags & (write ? DMU_BLOCKS_WRITE : DMU_BLOCKS_READ)) ||
		    (!write && (b->flags & DMU_BLOCKS_COPY)))	/* not copied yet */
			break;
		rcu_read_lock();
		pc.gate = smp_load_acquire(&o->gate);
		look_blocks(o, bio, pos, b, &pc);
		if (pc.verdict == DMU_GO || pc.verdict == DMU_NEW || pc.verdict == DMU_FILL)
			dmu_count_in(o, &pc);
		rcu_read_unlock();
		if (pc.verdict == DMU_KEPT)
			return;
		if (pc.verdict == DMU_AGAIN)
			break;
		if (!send_piece(io, &pc))
			return;
	}
	dmu_route(io, false);
}

/* Fills the front of the bio from the bytes that the daemon sent; what is left asks again. May sleep. */
void dmu_apply_data(struct dmu_io *io, const struct dmu_data *d)
{
	u64 pos = dm_target_offset(io->t->ti, io->bio->bi_iter.bi_sector);
	const u8 *data = (const u8 *)(d + 1);
	struct bio *bio = io->bio;
	struct bvec_iter iter;
	struct bio_vec bv;
	u32 bytes;

	if (bio_op(bio) != REQ_OP_READ || pos < d->start || pos - d->start >= d->sectors) {
		dmu_resume(bio);
		return;
	}
	data += (pos - d->start) << SECTOR_SHIFT;
	bytes = min_t(u64, bio_sectors(bio), d->start + d->sectors - pos) << SECTOR_SHIFT;
	iter = bio->bi_iter;
	iter.bi_size = bytes;
	__bio_for_each_segment(bv, bio, iter, iter) {
		memcpy_to_bvec(&bv, data);
		data += bv.bv_len;
	}
	io->asks = 0;
	if (bytes == bio->bi_iter.bi_size) {
		dmu_finish(bio, 0);
		return;
	}
	bio_advance(bio, bytes);
	dmu_route(io, false);
}

/* ---- map() ---- */

/* xa_load() without its own, second, hold on RCU. */
static __always_inline struct dmu_place *place_at(struct dmu_object *o, u64 pos)
{
	XA_STATE(xas, &o->sections, pos >> DMU_SECTION_SHIFT);
	struct dmu_place *p;

	do {
		p = xas_load(&xas);
		if (xa_is_zero(p))
			p = NULL;
	} while (xas_retry(&xas, p));
	return p;
}

/* Of a table of blocks: points a bio within one block to its place; false: the long way. Under RCU. */
static __always_inline bool entry_go(struct dmu_target *t, struct dmu_place *p, u32 at, u64 need, struct bio *bio)
{
	u32 shift = p->granule_shift, block = at >> shift, end = at + bio_sectors(bio);
	u64 e;

	if (end > p->sectors || (end - 1) >> shift != block)
		return false;
	e = atomic64_read(&p->entry[block]);
	if (!(e & need) || (e & DMU_ENTRY_ZERO))
		return false;
	bio_set_dev(bio, t->bdev[(e & DMU_ENTRY_DEV) >> DMU_ENTRY_DEV_SHIFT]);
	bio->bi_iter.bi_sector = (e & DMU_ENTRY_AT) + (at & ((1u << shift) - 1));
	return true;
}

int dmu_map(struct dm_target *ti, struct bio *bio)
{
	struct dmu_target *t = ti->private;
	struct dmu_object *o = t->o;
	struct dmu_io *io;
	u64 pos = dm_target_offset(ti, bio->bi_iter.bi_sector);
	u32 at = pos & (DMU_SECTION_SECTORS - 1), sectors = bio_sectors(bio);
	u32 op = (__force u32)(bio->bi_opf & (REQ_OP_MASK | REQ_PREFLUSH | REQ_FUA));
	const struct dmu_layer *l;
	struct dmu_place *p;
	u8 gate;
	int i;

	if (unlikely(op > (__force u32)REQ_OP_WRITE))
		goto slow;
	if (op && unlikely(!t->writable || READ_ONCE(o->failed)))
		goto slow;
	rcu_read_lock();
	gate = smp_load_acquire(&o->gate);
	p = place_at(o, pos);
	if (unlikely(!p))
		goto miss;
	if (unlikely(!p->planes)) {
		if (!entry_go(t, p, at, op ? DMU_ENTRY_WRITE : DMU_ENTRY_READ, bio))
			goto miss;
		sectors = bio_sectors(bio);
		goto go;
	}
	if (unlikely(op && !p->write))
		goto miss;
	i = layer_find(p, 0, at, &sectors);
	if (unlikely(op ? i : i < 0))
		goto miss;
	l = &p->plane[i];
	if (unlikely(l->dev == DMU_DEV_ZERO))
		goto miss;
	bio_set_dev(bio, t->bdev[l->dev]);
	bio->bi_iter.bi_sector = l->position + at;
go:
	if (!READ_ONCE(p->referenced))
		WRITE_ONCE(p->referenced, true);
	this_cpu_inc(o->cpu->in[gate]);
	rcu_read_unlock();
	bio->bi_private = (void *)(gate ? DMU_IO_IN | DMU_IO_SIDE : (unsigned long)DMU_IO_IN);
	if (unlikely(sectors < bio_sectors(bio)))
		dm_accept_partial_bio(bio, sectors);
	return DM_MAPIO_REMAPPED;
miss:
	rcu_read_unlock();
slow:
	io = dmu_io(bio);
	bio->bi_private = io;
	io->t = t;
	io->bio = bio;
	io->asks = 0;
	io->state = 0;
	if ((bio->bi_opf & REQ_PREFLUSH) ||
	    (bio_op(bio) != REQ_OP_READ && bio_op(bio) != REQ_OP_WRITE))
		return dmu_map_special(t, io, bio);
	if (bio->bi_opf & REQ_FUA)
		io->state = DMU_IO_FUA;
	return dmu_route(io, true);
}
