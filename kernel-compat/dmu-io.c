// SPDX-License-Identifier: GPL-2.0
/*
 * Bios that change what is known: new granules, zeroing and discarding, flushes
 * and commits. Nothing here allocates except kcopyd's jobs, which have a reserve.
 *
 * A granule of a section is absent, busy, or present:
 *
 *	absent --write of all of it---> busy --written--------> present, dirty
 *	absent --write of a part------> busy --rest copied, written--> present, dirty
 *	absent --zero, discard--------> busy --answered by the daemon--> present
 *	busy   --any error------------> absent, as if nothing had been
 *
 * Bios for a busy granule wait; reads of an absent or busy one go to the planes
 * below. Dirty granules are reported by DMU_WRITTEN. Every change is counted in
 * object.changes; a commit that succeeded sets object.committed to what the count
 * was before its DMU_WRITTEN records were made. While both are equal, a flush asks nobody.
 */
#include "dmu.h"

/* ---- new granules ---- */

static u64 entry_made(const struct dmu_piece *pc, u32 i, u32 shift)
{
	return (pc->granule_at + ((u64)i << shift)) | ((u64)pc->dev << DMU_ENTRY_DEV_SHIFT) |
	       DMU_ENTRY_READ | DMU_ENTRY_WRITE;
}

/* The granules of a piece are written (@ok), or not. In any context. */
static void new_done(struct dmu_object *o, const struct dmu_piece *pc, bool ok)
{
	struct dmu_place *p = pc->place;
	unsigned long flags;
	u32 i;

	spin_lock_irqsave(&o->lock, flags);
	if (ok) {
		for (i = 0; !p->planes && i < pc->count; i++)
			atomic64_set(&p->entry[pc->first + i], entry_made(pc, i, p->granule_shift));
		if (p->planes && p->plane[0].bits)
			dmu_bits_set(p->plane[0].bits, pc->first, pc->count);
		WRITE_ONCE(o->changes, o->changes + 1);
		dmu_work_dirty(o, p->work, pc->first, pc->count);
	}
	dmu_work_unbusy(o, p->work, pc->first, pc->count);
	spin_unlock_irqrestore(&o->lock, flags);
}

/* What was taken for a bio or a part of it is given back. In any context. */
void dmu_piece_done(struct dmu_object *o, struct dmu_io *io, u8 state, bool ok)
{
	if (state & DMU_IO_NEW)
		new_done(o, &io->piece, ok);
	if (state & DMU_IO_IN)
		this_cpu_inc(o->cpu->out[!!(state & DMU_IO_SIDE)]);
}

static void commit_want(struct dmu_object *o, struct bio *bio)
{
	bio_list_add(&o->commit_next, bio);
	if (o->commit == DMU_COMMIT_IDLE) {
		o->commit = DMU_COMMIT_WANTED;
		dmu_kick(o);
	}
}

/* Nobody will commit: it has to fail rather than wait. Under object.lock. */
static bool commit_hopeless(struct dmu_object *o)
{
	return o->failed || dmu_hopeless(o);
}

/* Holds a bio until what it needs is durable: 1 held, 0 it is already, -EIO it will not be. */
static int commit_hold(struct dmu_target *t, struct bio *bio)
{
	struct dmu_object *o = t->o;
	unsigned long flags;
	int r = 1;

	spin_lock_irqsave(&o->lock, flags);
	if (!dmu_uncommitted(o))
		r = 0;
	else if (commit_hopeless(o))
		r = -EIO;
	else if (t->requeue)
		r = -EAGAIN;
	else
		commit_want(o, bio);
	spin_unlock_irqrestore(&o->lock, flags);
	return r;
}

static int end_io_slow(struct dmu_target *t, struct dmu_io *io, blk_status_t *error)
{
	u8 state = io->state;
	int r;

	if (state & DMU_IO_HELD)
		return DM_ENDIO_DONE;
	dmu_piece_done(t->o, io, state, !*error);
	io->state = 0;
	if (!(state & DMU_IO_FUA) || *error || !dmu_uncommitted(t->o))
		return DM_ENDIO_DONE;
	io->state = DMU_IO_HELD;
	r = commit_hold(t, io->bio);
	if (r > 0)
		return DM_ENDIO_INCOMPLETE;
	if (r)
		*error = r == -EAGAIN ? BLK_STS_DM_REQUEUE : BLK_STS_IOERR;
	return DM_ENDIO_DONE;
}

int dmu_end_io(struct dm_target *ti, struct bio *bio, blk_status_t *error)
{
	struct dmu_target *t = ti->private;
	unsigned long state = (unsigned long)bio->bi_private;

	if (unlikely(state & ~(unsigned long)(DMU_IO_IN | DMU_IO_SIDE)))
		return end_io_slow(t, bio->bi_private, error);
	if (likely(state))
		this_cpu_inc(t->o->cpu->out[state >> 1]);
	return DM_ENDIO_DONE;
}

/* ---- granules written in part ---- */

static void fill_copied(int read_error, unsigned long write_error, void *context);

static void region(struct dm_io_region *r, struct dmu_target *t, u32 dev, sector_t at, u32 sectors)
{
	r->bdev = t->bdev[dev];
	r->sector = at;
	r->count = sectors;
}

/* Copies the next part that the bio does not write itself. */
static void fill_copy(struct dmu_io *io)
{
	struct dmu_piece *pc = &io->piece;
	struct dmu_place *p = pc->place;
	u32 granule = pc->first << p->granule_shift;
	u32 own = granule + (u32)(pc->at - pc->granule_at);	/* what the bio writes itself */
	u32 at = pc->copy == own ? own + pc->sectors : pc->copy;
	u32 sectors = (at < own ? own : pc->copy_end) - at;
	struct dm_kcopyd_client *kc = io->t->o->kcopyd;
	struct dm_io_region from, to;
	u32 dev = pc->from_dev;
	sector_t from_at = pc->from + (at - granule);
	int i;

	if (p->planes) {
		i = dmu_layer_find(p, 1, at, &sectors);
		dev = i < 0 ? DMU_DEV_ZERO : p->plane[i].dev;
		from_at = i < 0 ? 0 : p->plane[i].position + at;
	}
	pc->copy = at + sectors;
	region(&to, io->t, pc->dev, pc->granule_at + (at - granule), sectors);
	if (dev == DMU_DEV_ZERO) {
		dm_kcopyd_zero(kc, 1, &to, 0, fill_copied, io);
	} else {
		region(&from, io->t, dev, from_at, sectors);
		dm_kcopyd_copy(kc, &from, 1, &to, 0, fill_copied, io);
	}
}

/* What a zeroing bio covers of a granule. */
static void fill_zero(struct dmu_io *io)
{
	struct dmu_piece *pc = &io->piece;
	struct dm_io_region to;

	region(&to, io->t, pc->dev, pc->at, pc->sectors);
	pc->sectors = 0;
	dm_kcopyd_zero(io->t->o->kcopyd, 1, &to, 0, fill_copied, io);
}

/* A piece of zeroing is done: the next one. */
static void zero_done(struct dmu_io *io, bool ok)
{
	u8 state = io->state;

	io->state &= DMU_IO_FUA;
	dmu_piece_done(io->t->o, io, state, ok);
	if (ok)
		dmu_change(io);
	else
		dmu_finish(io->bio, BLK_STS_IOERR);
}

/* The next step of a piece that makes, or zeroes, a part of a granule. May sleep. */
void dmu_fill(struct dmu_io *io)
{
	struct dmu_piece *pc = &io->piece;

	if (pc->copy < pc->copy_end)
		fill_copy(io);
	else if (bio_op(io->bio) == REQ_OP_WRITE)
		submit_bio_noacct(io->bio);
	else if (pc->sectors)
		fill_zero(io);
	else
		zero_done(io, true);
}

static void fill_copied(int read_error, unsigned long write_error, void *context)
{
	struct dmu_io *io = context;

	if (!read_error && !write_error)
		dmu_fill(io);
	else if (bio_op(io->bio) == REQ_OP_WRITE)
		dmu_finish(io->bio, BLK_STS_IOERR);	/* its end gives back the piece */
	else
		zero_done(io, false);
}

/* ---- zeroing and discarding ---- */

/* Whether the whole bio is done with; else @ret is where it is and goes on. */
static bool change_next(struct dmu_io *io, u64 *ret)
{
	struct bio *bio = io->bio;

	if (!bio->bi_iter.bi_size) {
		dmu_finish(bio, 0);
		return true;
	}
	if (READ_ONCE(io->t->requeue)) {
		dmu_finish(bio, BLK_STS_DM_REQUEUE);
		return true;
	}
	if (!io->t->writable || READ_ONCE(io->t->o->failed)) {
		dmu_finish(bio, BLK_STS_IOERR);
		return true;
	}
	*ret = dm_target_offset(io->t->ti, bio->bi_iter.bi_sector);
	return false;
}

/*
 * Sends DMU_CHANGE for whole granules, which are busy until it is answered; or the bio
 * waits until that can be done. Under object.lock.
 */
static void change_ask(struct dmu_io *io, struct dmu_place *p, u64 pos, u32 sectors, u32 first,
		       u32 count)
{
	struct dmu_object *o = io->t->o;
	u32 op = bio_op(io->bio) == REQ_OP_DISCARD ? DMU_OP_DISCARD : DMU_OP_ZERO;
	struct dmu_work *w = dmu_work_get(o, p);
	struct dmu_request *rq;
	u32 i;

	if (!w) {
		dmu_starve(o, io->bio);
		return;
	}
	if (find_next_bit(dmu_busy(w), first + count, first) < first + count) {
		dmu_work_wait(o, w, io->bio);
		return;
	}
	rq = dmu_request_new(o, DMU_CHANGE, op, pos, sectors);
	if (!rq) {
		dmu_work_put(o, w);
		dmu_starve(o, io->bio);
		return;
	}
	refcount_inc(&p->refs);
	rq->place = p;
	rq->first = first;
	rq->count = count;
	bio_list_add(&rq->bios, io->bio);
	o->pending++;
	bitmap_set(dmu_busy(w), first, count);
	w->busy_count += count;
	/* Unknown from now on; where it was the daemon may still have to be told. */
	for (i = 0; !p->planes && i < count; i++)
		atomic64_and(~(s64)(DMU_ENTRY_READ | DMU_ENTRY_WRITE), &p->entry[first + i]);
}

/* One edge of zeroing, within a granule of planes. True: it is under way. Under object.lock. */
static bool change_edge(struct dmu_io *io, struct dmu_place *p, u32 at, u32 sectors)
{
	struct dmu_piece *pc = &io->piece;
	u32 granule = at >> p->granule_shift;

	pc->sectors = sectors;
	pc->copy = pc->copy_end = 0;
	if (!p->plane[0].bits || test_bit(granule, p->plane[0].bits))
		pc->verdict = DMU_GO;
	else if (!dmu_begin_fill(io->t->o, p, at, io->bio, pc))
		return false;
	pc->dev = p->plane[0].dev;
	pc->at = p->plane[0].position + at;
	pc->granule_at = p->plane[0].position + ((u64)granule << p->granule_shift);
	io->state &= DMU_IO_FUA;
	io->state |= DMU_IO_IN | (pc->gate ? DMU_IO_SIDE : 0) |
		     (pc->verdict == DMU_GO ? 0 : DMU_IO_NEW);
	dmu_count_in(io->t->o, pc);
	return true;
}

enum change {
	CHANGE_MISS, CHANGE_KEPT, CHANGE_EDGE, CHANGE_SKIP, CHANGE_AGAIN, CHANGE_REFUSED,
	CHANGE_HOPELESS,
};

/*
 * One step in a section with planes: an edge, or its whole granules. @ret_sectors:
 * how much of the bio that is. Under RCU and object.lock.
 */
static enum change change_planes(struct dmu_io *io, struct dmu_place *p, u64 pos, u32 *ret_sectors)
{
	u32 at = pos & (DMU_SECTION_SECTORS - 1), size = 1u << p->granule_shift;
	u32 sectors = min(*ret_sectors, p->sectors - at), end = at + sectors;
	u32 edge = round_up(at, size), last = end == p->sectors ? end : round_down(end, size);
	u32 first = at >> p->granule_shift;

	if (!p->write)
		return CHANGE_MISS;
	if (at != edge || last <= at) {		/* not a granule's beginning, or less than one */
		*ret_sectors = min(end, at == edge ? end : edge) - at;
		if (bio_op(io->bio) == REQ_OP_DISCARD)
			return CHANGE_SKIP;
		return change_edge(io, p, at, *ret_sectors) ? CHANGE_EDGE : CHANGE_KEPT;
	}
	*ret_sectors = last - at;
	change_ask(io, p, pos, last - at, first, ((last - 1) >> p->granule_shift) - first + 1);
	return CHANGE_KEPT;
}

/* The same in a table of blocks: the daemon zeroes edges, too; places are asked for anew. */
static enum change change_table(struct dmu_io *io, struct dmu_place *p, u64 pos, u32 *ret_sectors)
{
	u32 at = pos & (DMU_SECTION_SECTORS - 1), shift = p->granule_shift, size = 1u << shift;
	u32 end = at + min(*ret_sectors, p->sectors - at), first = at >> shift;

	if (bio_op(io->bio) == REQ_OP_DISCARD) {
		u32 start = round_up(at, size);
		u32 last = end == p->sectors ? end : round_down(end, size);

		if (at != start || last <= at) {
			*ret_sectors = min(end, at == start ? end : start) - at;
			return CHANGE_SKIP;
		}
		end = last;
	}
	*ret_sectors = end - at;
	change_ask(io, p, pos, end - at, first, ((end - 1) >> shift) - first + 1);
	return CHANGE_KEPT;
}

static enum change change_step(struct dmu_io *io, u64 pos, u32 *ret_sectors)
{
	struct dmu_object *o = io->t->o;
	enum change c = CHANGE_MISS;
	struct dmu_place *p;
	unsigned long flags;

	rcu_read_lock();
	io->piece.gate = smp_load_acquire(&o->gate);
	p = xa_load(&o->sections, pos >> DMU_SECTION_SHIFT);
	if (p && (pos & (DMU_SECTION_SECTORS - 1)) < p->sectors) {
		spin_lock_irqsave(&o->lock, flags);
		if (p->dead)
			c = CHANGE_AGAIN;
		else if (o->channel && !(o->features & DMU_F_CHANGES))
			c = CHANGE_REFUSED;
		else if (dmu_hopeless(o))
			c = CHANGE_HOPELESS;
		else
			c = p->planes ? change_planes(io, p, pos, ret_sectors)
				      : change_table(io, p, pos, ret_sectors);
		spin_unlock_irqrestore(&o->lock, flags);
	}
	rcu_read_unlock();
	return c;
}

/* The next piece of a zeroing or discarding bio. May sleep. */
void dmu_change(struct dmu_io *io)
{
	struct bio *bio = io->bio;
	u32 sectors;
	u64 pos;

	while (!change_next(io, &pos)) {
		sectors = min_t(u32, bio_sectors(bio),
				DMU_SECTION_SECTORS - (pos & (DMU_SECTION_SECTORS - 1)));
		switch (change_step(io, pos, &sectors)) {
		case CHANGE_MISS:
			dmu_ask(io, pos, sectors, DMU_OP_WRITE);
			return;
		case CHANGE_REFUSED:
			dmu_finish(bio, BLK_STS_NOTSUPP);
			return;
		case CHANGE_HOPELESS:
			dmu_finish(bio, BLK_STS_IOERR);
			return;
		case CHANGE_EDGE:
			/* Before dmu_fill(): the bio goes on from there when this is done. */
			bio_advance(bio, sectors << SECTOR_SHIFT);
			dmu_fill(io);
			return;
		case CHANGE_SKIP:
			bio_advance(bio, sectors << SECTOR_SHIFT);
			break;
		case CHANGE_KEPT:
			return;
		case CHANGE_AGAIN:
			break;
		}
	}
}

/* DMU_CHANGE was answered, or will not be. Frees @rq. May sleep. */
void dmu_change_done(struct dmu_object *o, struct dmu_request *rq, int error)
{
	struct dmu_place *p = rq->place;
	struct bio *bio = bio_list_pop(&rq->bios);
	u32 sectors = rq->sectors;
	unsigned long flags;

	spin_lock_irqsave(&o->lock, flags);
	if (!error) {
		if (p->planes && p->plane[0].bits)
			dmu_bits_set(p->plane[0].bits, rq->first, rq->count);
		WRITE_ONCE(o->changes, o->changes + 1);
	}
	if (bio)
		o->pending--;
	dmu_work_unbusy(o, p->work, rq->first, rq->count);
	dmu_request_free(o, rq);
	spin_unlock_irqrestore(&o->lock, flags);
	dmu_place_put(p);
	if (!bio)
		return;
	dmu_io(bio)->asks = 0;
	if (error) {
		dmu_finish(bio, dmu_status(error));
		return;
	}
	bio_advance(bio, sectors << SECTOR_SHIFT);
	dmu_change(dmu_io(bio));
}

/* ---- flush ---- */

static int map_flush(struct dmu_target *t, struct bio *bio)
{
	u32 nr = dm_bio_get_target_bio_nr(bio);
	int r;

	bio_set_dev(bio, t->bdev[t->flush_dev[nr]]);
	if (READ_ONCE(t->o->failed))
		return DM_MAPIO_KILL;
	/* One of them waits for the commit: all have to end before the flush does. */
	r = nr ? 0 : commit_hold(t, bio);
	if (r > 0)
		return DM_MAPIO_SUBMITTED;
	if (r)
		return r == -EAGAIN ? DM_MAPIO_REQUEUE : DM_MAPIO_KILL;
	return DM_MAPIO_REMAPPED;
}

/* In map(): everything but reads and writes. */
int dmu_map_special(struct dmu_target *t, struct dmu_io *io, struct bio *bio)
{
	if (bio->bi_opf & REQ_PREFLUSH)
		return map_flush(t, bio);
	switch (bio_op(bio)) {
	case REQ_OP_DISCARD:
	case REQ_OP_WRITE_ZEROES:
		if (bio->bi_opf & REQ_FUA)
			io->state = DMU_IO_FUA;
		dmu_change(io);
		return DM_MAPIO_SUBMITTED;
	default:
		return DM_MAPIO_KILL;
	}
}

/* Lets go what waited for a commit. */
static void commit_release(struct dmu_object *o, struct bio_list *bios, blk_status_t status)
{
	struct bio *bio;

	while ((bio = bio_list_pop(bios))) {
		if (!status && !(dmu_io(bio)->state & DMU_IO_HELD))
			submit_bio_noacct(bio);		/* a flush: the device as well */
		else
			dmu_finish(bio, status);
	}
}

/* DMU_COMMIT was answered. May sleep. */
void dmu_commit_done(struct dmu_object *o, int error)
{
	struct bio_list bios;
	unsigned long flags;

	bio_list_init(&bios);
	spin_lock_irqsave(&o->lock, flags);
	bio_list_merge(&bios, &o->commit_now);
	bio_list_init(&o->commit_now);
	o->commit = DMU_COMMIT_IDLE;
	if (error) {
		o->failed = true;
	} else {
		WRITE_ONCE(o->committed, o->commit_change);
		o->epoch++;
	}
	if (error || !dmu_uncommitted(o)) {	/* those that came meanwhile need no other one */
		bio_list_merge(&bios, &o->commit_next);
		bio_list_init(&o->commit_next);
	} else if (!bio_list_empty(&o->commit_next)) {
		o->commit = DMU_COMMIT_WANTED;
		dmu_kick(o);
	}
	spin_unlock_irqrestore(&o->lock, flags);
	if (error) {
		DMERR("%s: the daemon could not commit (%d): read-only from now on", o->key, error);
		queue_work(o->wq, &o->event_work);
	}
	commit_release(o, &bios, error ? dmu_status(error) : BLK_STS_OK);
}

/* Nobody will commit: takes the bios that wait for it. Under object.lock. */
void dmu_commit_abort(struct dmu_object *o, struct bio_list *ret)
{
	struct dmu_work *w;

	bio_list_merge(ret, &o->commit_now);
	bio_list_merge(ret, &o->commit_next);
	bio_list_init(&o->commit_now);
	bio_list_init(&o->commit_next);
	list_for_each_entry(w, &o->gathered, due)
		w->gathered = false;
	list_splice_init(&o->gathered, &o->due);
	o->commit = DMU_COMMIT_IDLE;
}
