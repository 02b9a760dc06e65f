// SPDX-License-Identifier: GPL-2.0
/*
 * What the daemon is asked, who waits for it, and its answers. The records
 * themselves go through dmu-ctl.c.
 *
 * The first bio that misses makes a request; later ones that begin in its scope
 * wait for the same answer and look again then. The scope is a section, until that
 * section is known as a table of blocks. An answer is checked against everything
 * before it changes anything: the daemon is trusted with the data, not with this kernel.
 */
#include "dmu.h"

static const gfp_t DMU_NOWAIT = GFP_NOWAIT | __GFP_NOWARN;

/* What a bio may end with; other errors would mean something to the core that is not meant. */
blk_status_t dmu_status(int error)
{
	switch (error) {
	case -ENOSPC:
	case -EOPNOTSUPP:
	case -ETIMEDOUT:
	case -ENODATA:
	case -EILSEQ:
		return errno_to_blk_status(error);
	default:
		return BLK_STS_IOERR;
	}
}

/* ---- requests ---- */

/* Without memory: the bio is tried again when some may have come back. Under object.lock. */
void dmu_starve(struct dmu_object *o, struct bio *bio)
{
	bio_list_add(&o->starved, bio);
	queue_delayed_work(o->wq, &o->starved_work, msecs_to_jiffies(DMU_STARVED_DELAY_MS));
}

/* A request in the queue; NULL without memory. Under object.lock. */
struct dmu_request *dmu_request_new(struct dmu_object *o, u32 type, u32 op, u64 start, u32 sectors)
{
	struct dmu_request *rq = mempool_alloc(&o->request_pool, DMU_NOWAIT);

	if (!rq)
		return NULL;
	memset(rq, 0, sizeof(*rq));
	bio_list_init(&rq->bios);
	rq->id = ++o->last_id;
	rq->type = type;
	rq->op = op;
	rq->start = rq->at = rq->scope = start;
	rq->sectors = rq->need = rq->scope_sectors = sectors;
	list_add_tail(&rq->node, &o->queue);
	hash_add(o->requests, &rq->by_id, rq->id);
	dmu_kick(o);
	return rq;
}

/* The request that the daemon has under this id. Under object.lock. */
struct dmu_request *dmu_request_find(struct dmu_object *o, u64 id)
{
	struct dmu_request *rq;

	hash_for_each_possible(o->requests, rq, by_id, id)
		if (rq->id == id && rq->asked)
			return rq;
	return NULL;
}

/* Under object.lock. Its bios must be elsewhere. */
void dmu_request_free(struct dmu_object *o, struct dmu_request *rq)
{
	hash_del(&rq->by_id);
	list_del(&rq->node);
	mempool_free(rq, &o->request_pool);
	if (!bio_list_empty(&o->starved))
		mod_delayed_work(o->wq, &o->starved_work, 0);
}

/*
 * The request that a bio at @pos can wait for: any for its place, since most answers
 * are good for writing too; else it is asked again. Under object.lock.
 */
static struct dmu_request *find_scope(struct dmu_object *o, u64 pos)
{
	struct dmu_request *rq;
	struct list_head *lists[] = { &o->asked, &o->queue };
	unsigned int i;

	/* Few at a time: one per section or block that is touched for the first time. */
	for (i = 0; i < ARRAY_SIZE(lists); i++)
		list_for_each_entry(rq, lists[i], node)
			if (rq->type == DMU_ASK && pos >= rq->scope &&
			    pos - rq->scope < rq->scope_sectors)
				return rq;
	return NULL;
}

/* Widens what is asked to whole blocks, and the scope to the section. Under RCU and object.lock. */
static void set_scope(struct dmu_object *o, struct dmu_request *rq)
{
	u64 block = 1ull << o->block_shift, index = rq->start >> DMU_SECTION_SHIFT;
	u64 base = index << DMU_SECTION_SHIFT;
	u64 end = base + dmu_section_sectors(o->sectors, index);
	u64 start = round_down(rq->start, block);
	struct dmu_place *p = xa_load(&o->sections, index);

	end = min(end, round_up(rq->start + rq->sectors, block));
	rq->start = rq->scope = start;
	rq->sectors = rq->scope_sectors = end - start;
	if ((!p || p->planes) && (!o->channel || (o->features & DMU_F_SECTIONS))) {
		rq->scope = base;
		rq->scope_sectors = DMU_SECTION_SECTORS;
	}
}

/* Lets the bio wait for an answer about @pos. A DM_MAPIO_ value; the bio is not ours any more. */
int dmu_ask(struct dmu_io *io, u64 pos, u32 sectors, u32 op)
{
	struct dmu_object *o = io->t->o;
	blk_status_t status = BLK_STS_OK;
	struct dmu_request *rq;
	unsigned long flags;

	rcu_read_lock();
	spin_lock_irqsave(&o->lock, flags);
	rq = find_scope(o, pos);
	if (io->t->requeue) {
		status = BLK_STS_DM_REQUEUE;
	} else if (dmu_hopeless(o) || pos >= o->sectors || (!rq && io->asks >= DMU_ASKS_MAX)) {
		status = BLK_STS_IOERR;
	} else {
		if (!rq) {
			rq = dmu_request_new(o, DMU_ASK, op, pos, sectors);
			if (rq) {
				set_scope(o, rq);
				io->asks++;
			}
		}
		if (rq) {
			bio_list_add(&rq->bios, io->bio);
			o->pending++;
			o->misses++;
		} else {
			dmu_starve(o, io->bio);
		}
	}
	spin_unlock_irqrestore(&o->lock, flags);
	rcu_read_unlock();
	if (status)
		dmu_finish(io->bio, status);
	return DM_MAPIO_SUBMITTED;
}

/* Ends a request: who waited is the caller's to resume. */
static void request_end(struct dmu_object *o, struct dmu_request *rq, struct bio_list *ret)
{
	unsigned long flags;

	bio_list_init(ret);
	spin_lock_irqsave(&o->lock, flags);
	bio_list_merge(ret, &rq->bios);
	o->pending -= bio_list_size(ret);
	dmu_request_free(o, rq);
	spin_unlock_irqrestore(&o->lock, flags);
}

/* The request that a record answers. NULL and 0: unasked. Stays: only answers end it. */
static int answered(struct dmu_object *o, u64 id, struct dmu_request **ret)
{
	unsigned long flags;

	*ret = NULL;
	if (!id)
		return 0;
	spin_lock_irqsave(&o->lock, flags);
	*ret = dmu_request_find(o, id);
	spin_unlock_irqrestore(&o->lock, flags);
	return *ret ? 0 : -ENOENT;
}

/* ---- DMU_SECTION ---- */

static bool in_device(const struct dmu_object *o, u32 dev, u64 position, u64 sectors)
{
	return dev < o->bottoms && position <= o->bottom[dev].sectors &&
	       sectors <= o->bottom[dev].sectors - position;
}

static int check_plane(struct dmu_object *o, const struct dmu_section *s,
		       const struct dmu_plane *pl)
{
	if ((pl->flags & ~DMU_PLANE_BITS) || pl->limit > s->sectors)
		return -EINVAL;
	if (pl->dev == DMU_DEV_ZERO)
		return pl->position ? -EINVAL : 0;
	if (pl->dev >= o->bottoms || pl->position & (o->bottom[pl->dev].align - 1))
		return -EINVAL;
	return in_device(o, pl->dev, pl->position, pl->limit) ? 0 : -ERANGE;
}

static bool overlap(u32 dev, u64 at, u64 sectors, u32 dev2, u64 at2, u64 sectors2)
{
	return dev == dev2 && dev != DMU_DEV_ZERO && at < at2 + sectors2 && at2 < at + sectors;
}

static int check_writable(struct dmu_object *o, const struct dmu_section *s,
			  const struct dmu_plane *pl)
{
	unsigned int i;

	if (pl[0].dev == DMU_DEV_ZERO || pl[0].limit != s->sectors)
		return -EINVAL;
	if (!o->bottom[pl[0].dev].writable)
		return -EROFS;
	for (i = 1; i < s->planes; i++)
		if (overlap(pl[0].dev, pl[0].position, s->sectors, pl[i].dev, pl[i].position,
			    pl[i].limit))
			return -EINVAL;
	return 0;
}

static u32 section_granules(const struct dmu_section *s)
{
	return ((s->sectors - 1) >> s->granule_shift) + 1;
}

static int check_section(struct dmu_object *o, const struct dmu_section *s, u32 size)
{
	const struct dmu_plane *pl = (const void *)(s + 1);
	u64 want = sizeof(*s) + (u64)s->planes * sizeof(*pl);
	unsigned int i;
	int r;

	if (s->start % DMU_SECTION_SECTORS || !s->planes || s->planes > DMU_PLANES_MAX ||
	    s->granule_shift < DMU_GRANULE_SHIFT_MIN || s->granule_shift > DMU_SECTION_SHIFT ||
	    (s->flags & ~DMU_SECTION_WRITE) || size < want)
		return -EINVAL;
	if (s->start >= o->sectors)
		return -ERANGE;
	if (s->sectors != dmu_section_sectors(o->sectors, s->start >> DMU_SECTION_SHIFT))
		return -EINVAL;
	for (i = 0; i < s->planes; i++) {
		r = check_plane(o, s, &pl[i]);
		if (r)
			return r;
		if (pl[i].flags & DMU_PLANE_BITS)
			want += BITS_TO_U64(section_granules(s)) * sizeof(u64);
	}
	if (size != want)
		return -EINVAL;
	return s->flags & DMU_SECTION_WRITE ? check_writable(o, s, pl) : 0;
}

/* Presence bits as the kernel keeps them; NULL when they are all set, or an error pointer. */
static unsigned long *bits_from(const __le64 *from, u32 granules)
{
	unsigned long *bits = kcalloc(BITS_TO_U64(granules), sizeof(u64), GFP_NOIO | __GFP_NOWARN);
	u32 i;

	if (!bits)
		return ERR_PTR(-ENOMEM);
	for (i = 0; i < granules; i++)
		if (le64_to_cpu(from[i / 64]) & BIT_ULL(i % 64))
			__set_bit(i, bits);
	if (!bitmap_full(bits, granules))
		return bits;
	kfree(bits);
	return NULL;
}

static struct dmu_place *place_from(struct dmu_object *o, const struct dmu_section *s)
{
	const struct dmu_plane *pl = (const void *)(s + 1);
	const __le64 *from = (const void *)(pl + s->planes);
	struct dmu_place *p = dmu_place_new(o, s->start >> DMU_SECTION_SHIFT, s->sectors,
					    s->granule_shift, s->planes);
	unsigned long *bits;
	unsigned int i;

	if (!p)
		return ERR_PTR(-ENOMEM);
	p->write = s->flags & DMU_SECTION_WRITE;
	for (i = 0; i < s->planes; i++) {
		p->plane[i].position = pl[i].position;
		p->plane[i].limit = pl[i].limit;
		p->plane[i].dev = pl[i].dev;
		if (!(pl[i].flags & DMU_PLANE_BITS))
			continue;
		bits = bits_from(from, section_granules(s));
		if (IS_ERR(bits)) {
			dmu_place_put(p);
			return ERR_CAST(bits);
		}
		p->plane[i].bits = bits;
		from += BITS_TO_U64(section_granules(s));
	}
	return p;
}

/* Adds to the remembered @old what the daemon says now. Under object.lock. */
static int place_merge(struct dmu_place *old, const struct dmu_place *new)
{
	u32 granules = dmu_place_granules(old), i, j;

	if (old->planes != new->planes || old->sectors != new->sectors ||
	    old->granule_shift != new->granule_shift || old->dead)
		return -EEXIST;
	for (i = 0; i < old->planes; i++)
		if (old->plane[i].dev != new->plane[i].dev ||
		    old->plane[i].limit != new->plane[i].limit ||
		    old->plane[i].position != new->plane[i].position)
			return -EEXIST;
	for (i = 0; i < old->planes; i++)
		for (j = 0; old->plane[i].bits && j < granules; j++)
			if (!new->plane[i].bits || test_bit(j, new->plane[i].bits))
				dmu_bits_set(old->plane[i].bits, j, 1);
	if (new->write)
		WRITE_ONCE(old->write, true);
	return 0;
}

static int remember(struct dmu_object *o, struct dmu_place *p)
{
	struct dmu_place *old;
	unsigned long flags;
	int r;

	do {
		r = dmu_place_insert(o, p);
		if (r != -EEXIST)
			break;
		rcu_read_lock();
		spin_lock_irqsave(&o->lock, flags);
		old = xa_load(&o->sections, p->index);
		r = old ? place_merge(old, p) : -EAGAIN;
		if (!r)
			dmu_place_trim(o, old);
		spin_unlock_irqrestore(&o->lock, flags);
		rcu_read_unlock();
		if (!r) {
			dmu_place_put(p);
			return 0;
		}
	} while (r == -EAGAIN);
	if (r)
		dmu_place_put(p);
	return r;
}

/* Whether nothing may be remembered there now. */
static bool revoked_now(struct dmu_object *o, u64 start)
{
	unsigned long flags;
	bool ret;

	spin_lock_irqsave(&o->lock, flags);
	ret = dmu_being_revoked(o, start >> DMU_SECTION_SHIFT);
	spin_unlock_irqrestore(&o->lock, flags);
	return ret;
}

int dmu_take_section(struct dmu_object *o, const void *record, u32 size)
{
	const struct dmu_section *s = record;
	struct dmu_request *rq;
	struct dmu_place *p;
	struct bio_list bios;
	int r;

	if (size < sizeof(*s))
		return -EINVAL;
	r = answered(o, s->head.id, &rq);
	if (r)
		return r;
	if (rq && (rq->type != DMU_ASK || rq->start >> DMU_SECTION_SHIFT != s->start >> DMU_SECTION_SHIFT))
		return -EINVAL;
	r = check_section(o, s, size);
	if (r)
		return r;
	if (revoked_now(o, s->start))
		return -EBUSY;
	p = place_from(o, s);
	if (IS_ERR(p))
		return PTR_ERR(p);
	r = remember(o, p);
	if (r)
		return r;
	if (rq) {
		request_end(o, rq, &bios);
		dmu_resume_list(&bios);
	}
	dmu_cache_bound(o);
	return 0;
}

/* ---- DMU_BLOCKS ---- */

#define BLOCKS_FLAGS (DMU_BLOCKS_READ | DMU_BLOCKS_WRITE | DMU_BLOCKS_COPY | DMU_BLOCKS_TEMPORARY | \
		      DMU_BLOCKS_CHANGED)

static int check_blocks_place(struct dmu_object *o, const struct dmu_blocks *b)
{
	if (b->dev == DMU_DEV_ZERO)
		return b->position || (b->flags & DMU_BLOCKS_WRITE) ? -EINVAL : 0;
	if (b->dev >= o->bottoms || b->position & (o->bottom[b->dev].align - 1))
		return -EINVAL;
	if (!in_device(o, b->dev, b->position, b->sectors) ||
	    (b->position + b->sectors) & ~DMU_ENTRY_AT)
		return -ERANGE;
	return (b->flags & DMU_BLOCKS_WRITE) && !o->bottom[b->dev].writable ? -EROFS : 0;
}

static int check_blocks_copy(struct dmu_object *o, const struct dmu_blocks *b,
			     const struct dmu_request *rq)
{
	if (!(b->flags & DMU_BLOCKS_COPY))
		return b->from || b->from_dev ? -EINVAL : 0;
	if (!(b->flags & DMU_BLOCKS_WRITE) || (b->flags & DMU_BLOCKS_TEMPORARY) || !rq ||
	    rq->op != DMU_OP_WRITE || b->start < rq->start ||
	    b->start + b->sectors > rq->start + rq->sectors)
		return -EINVAL;
	if (b->from_dev == DMU_DEV_ZERO)
		return b->from ? -EINVAL : 0;
	if (b->from_dev >= o->bottoms || b->from & (o->bottom[b->from_dev].align - 1))
		return -EINVAL;
	if (!in_device(o, b->from_dev, b->from, b->sectors))
		return -ERANGE;
	return overlap(b->dev, b->position, b->sectors, b->from_dev, b->from, b->sectors) ?
		-EINVAL : 0;
}

static int check_blocks(struct dmu_object *o, const struct dmu_blocks *b,
			const struct dmu_request *rq)
{
	u64 mask = (1ull << o->block_shift) - 1, end = b->start + b->sectors;
	int r;

	if (b->pad || (b->flags & ~BLOCKS_FLAGS) || !b->sectors || (b->start & mask) ||
	    !(b->flags & (DMU_BLOCKS_READ | DMU_BLOCKS_WRITE)) ||
	    ((b->flags & DMU_BLOCKS_TEMPORARY) && !rq))
		return -EINVAL;
	if (b->start >= o->sectors || b->sectors > o->sectors - b->start)
		return -ERANGE;
	if (((end & mask) && end != o->sectors) ||
	    b->start >> DMU_SECTION_SHIFT != (end - 1) >> DMU_SECTION_SHIFT)
		return -EINVAL;
	if (rq && (rq->type != DMU_ASK || rq->start < b->start || rq->start >= end))
		return -EINVAL;
	r = check_blocks_place(o, b);
	return r ? r : check_blocks_copy(o, b, rq);
}

/* The table of blocks that this section is known by. Its blocks are the object's. */
static int need_table(struct dmu_object *o, u64 start)
{
	u64 index = start >> DMU_SECTION_SHIFT;
	struct dmu_place *p;
	bool table;
	int r;

	do {
		rcu_read_lock();
		p = xa_load(&o->sections, index);
		table = p && !p->planes;
		rcu_read_unlock();
		if (p)
			return table ? 0 : -EEXIST;
		p = dmu_place_new(o, index, dmu_section_sectors(o->sectors, index),
				  o->block_shift, 0);
		if (!p)
			return -ENOMEM;
		r = dmu_place_insert(o, p);
		if (r)
			dmu_place_put(p);
	} while (r == -EEXIST);
	return r;
}

/* The block is being made, or was, and the answer may be from before the daemon heard of it. Under object.lock. */
static bool block_ahead(const struct dmu_place *p, u32 block)
{
	struct dmu_work *w = p->work;

	if (!w || test_bit(block, dmu_busy(w)))
		return w;
	return (test_bit(block, dmu_dirty(w)) || test_bit(block, dmu_sent(w))) &&
	       (atomic64_read(&p->entry[block]) & DMU_ENTRY_WRITE);
}

/* Writes the blocks down, those aside of which more is known. */
static void remember_blocks(struct dmu_object *o, const struct dmu_blocks *b)
{
	u32 shift = o->block_shift, i, first, count = ((b->sectors - 1) >> shift) + 1;
	struct dmu_place *p;
	unsigned long flags;
	u64 e = 0;

	if (b->flags & DMU_BLOCKS_READ)
		e |= DMU_ENTRY_READ;
	if (b->flags & DMU_BLOCKS_WRITE)
		e |= DMU_ENTRY_WRITE;
	if (b->dev == DMU_DEV_ZERO)
		e |= DMU_ENTRY_ZERO;
	else
		e |= (u64)b->dev << DMU_ENTRY_DEV_SHIFT | b->position;
	first = (b->start & (DMU_SECTION_SECTORS - 1)) >> shift;
	rcu_read_lock();
	spin_lock_irqsave(&o->lock, flags);
	p = xa_load(&o->sections, b->start >> DMU_SECTION_SHIFT);
	for (i = 0; p && !p->planes && i < count; i++) {
		if (!block_ahead(p, first + i))
			atomic64_set(&p->entry[first + i], e);
		if (!(e & DMU_ENTRY_ZERO))
			e += 1ull << shift;
	}
	spin_unlock_irqrestore(&o->lock, flags);
	rcu_read_unlock();
}

/* The next flush has to ask, whatever becomes of the answer. */
static void note_change(struct dmu_object *o)
{
	unsigned long flags;

	spin_lock_irqsave(&o->lock, flags);
	WRITE_ONCE(o->changes, o->changes + 1);
	spin_unlock_irqrestore(&o->lock, flags);
}

/* Bios that waited: by the answer itself where it is not remembered. */
static void blocks_resume(struct bio_list *bios, const struct dmu_blocks *b, bool apply)
{
	struct blk_plug plug;
	struct bio *bio;

	if (!apply) {
		dmu_resume_list(bios);
		return;
	}
	blk_start_plug(&plug);
	while ((bio = bio_list_pop(bios))) {
		if (bio_op(bio) == REQ_OP_READ || bio_op(bio) == REQ_OP_WRITE)
			dmu_apply_blocks(dmu_io(bio), b);
		else
			dmu_resume(bio);
	}
	blk_finish_plug(&plug);
}

int dmu_take_blocks(struct dmu_object *o, const struct dmu_blocks *b)
{
	bool once = b->flags & DMU_BLOCKS_TEMPORARY, copy = b->flags & DMU_BLOCKS_COPY;
	struct dmu_request *rq;
	struct bio_list bios;
	int r;

	r = answered(o, b->head.id, &rq);
	if (!r)
		r = check_blocks(o, b, rq);
	if (r == -ERANGE) {
		dmu_object_measure(o);
		r = check_blocks(o, b, rq);
	}
	if (r)
		return r;
	if (!once && revoked_now(o, b->start))
		return -EBUSY;
	if (!once) {
		r = need_table(o, b->start);
		if (r == -ENOMEM && rq && !copy)
			once = true;		/* not remembered, but good for who waits */
		else if (r)
			return r;
	}
	if (b->flags & DMU_BLOCKS_CHANGED)
		note_change(o);
	if (!once && !copy)
		remember_blocks(o, b);
	if (rq) {
		request_end(o, rq, &bios);
		blocks_resume(&bios, b, once || copy);
	}
	dmu_cache_bound(o);
	return 0;
}

/* ---- DMU_DATA ---- */

int dmu_take_data(struct dmu_object *o, const void *record, u32 size)
{
	const struct dmu_data *d = record;
	struct dmu_request *rq;
	struct blk_plug plug;
	struct bio_list bios;
	struct bio *bio;
	int r;

	if (size < sizeof(*d) || d->pad || !d->sectors || d->sectors > DMU_DATA_SECTORS_MAX ||
	    size != sizeof(*d) + (d->sectors << SECTOR_SHIFT) || !d->head.id)
		return -EINVAL;
	r = answered(o, d->head.id, &rq);
	if (r)
		return r;
	if (rq->type != DMU_ASK || rq->op != DMU_OP_READ || rq->at < d->start ||
	    rq->at - d->start >= d->sectors)
		return -EINVAL;
	request_end(o, rq, &bios);
	blk_start_plug(&plug);
	while ((bio = bio_list_pop(&bios)))
		dmu_apply_data(dmu_io(bio), d);
	blk_finish_plug(&plug);
	return 0;
}

/* ---- DMU_RESULT, DMU_ACK ---- */

/* An error ends the bios that begin in what was asked; those that waited along ask themselves. */
static void ask_failed(struct dmu_object *o, struct dmu_request *rq, int error)
{
	u64 start = rq->start, sectors = rq->sectors, pos;
	struct bio_list bios;
	struct bio *bio;

	request_end(o, rq, &bios);
	while ((bio = bio_list_pop(&bios))) {
		pos = dm_target_offset(dmu_io(bio)->t->ti, bio->bi_iter.bi_sector);
		if (pos >= start && pos - start < sectors)
			dmu_finish(bio, dmu_status(error));
		else
			dmu_resume(bio);
	}
}

int dmu_take_result(struct dmu_object *o, const struct dmu_result *res)
{
	struct dmu_request *rq;
	unsigned long flags;
	bool commit;
	int r;

	if (res->pad || res->error > 0 || res->error < -MAX_ERRNO || !res->head.id)
		return -EINVAL;
	spin_lock_irqsave(&o->lock, flags);
	commit = o->commit == DMU_COMMIT_SENT && o->commit_id == res->head.id;
	spin_unlock_irqrestore(&o->lock, flags);
	if (commit) {
		dmu_commit_done(o, res->error);
		return 0;
	}
	r = answered(o, res->head.id, &rq);
	if (r)
		return r;
	if (rq->type == DMU_CHANGE)
		dmu_change_done(o, rq, res->error);
	else if (!res->error)
		return -EINVAL;
	else
		ask_failed(o, rq, res->error);
	return 0;
}

int dmu_take_ack(struct dmu_object *o, u64 id)
{
	struct dmu_unacked *u;
	struct dmu_work *w = NULL;
	unsigned long flags;

	spin_lock_irqsave(&o->lock, flags);
	hash_for_each_possible(o->unacked, u, node, id)
		if (u->id == id) {
			w = u->work;
			hash_del(&u->node);
			u->id = 0;
			break;
		}
	if (w && dmu_acked(w)) {
		bitmap_zero(dmu_sent(w), w->longs * BITS_PER_LONG);
		if (w->dirty && !w->gathered) {
			list_move_tail(&w->due, &o->due);
			dmu_work_arm(o);
		}
		if (w->place->dead)
			mod_delayed_work(o->wq, &o->revoke_work, 0);
	}
	if (w && (w->dirty || o->gone))
		dmu_kick(o);
	if (w)
		dmu_work_put(o, w);
	spin_unlock_irqrestore(&o->lock, flags);
	return w ? 0 : -ENOENT;
}

/* ---- without a daemon ---- */

/* What the last daemon had and did not answer goes to the next one. Under object.lock. */
void dmu_requests_again(struct dmu_object *o)
{
	struct dmu_request *rq, *next;
	struct dmu_work *w;
	int i;

	list_for_each_entry_safe(rq, next, &o->asked, node) {
		rq->asked = false;
		if (rq->type == DMU_ASK && bio_list_empty(&rq->bios))
			dmu_request_free(o, rq);
	}
	list_splice_init(&o->asked, &o->queue);
	list_for_each_entry(w, &o->works, all) {
		if (dmu_acked(w))
			continue;
		for (i = 0; i < 2; i++) {
			if (w->unacked[i].id)
				hash_del(&w->unacked[i].node);
			w->unacked[i].id = 0;
		}
		bitmap_or(dmu_dirty(w), dmu_dirty(w), dmu_sent(w), w->longs * BITS_PER_LONG);
		bitmap_zero(dmu_sent(w), w->longs * BITS_PER_LONG);
		if (!w->dirty)
			list_add_tail(&w->due, &o->due);
		w->dirty = true;
	}
	list_for_each_entry(w, &o->gathered, due)
		w->gathered = false;
	list_splice_tail_init(&o->blocked, &o->due);
	list_splice_tail_init(&o->gathered, &o->due);
	o->due_now = !list_empty(&o->due);
	if (o->commit != DMU_COMMIT_IDLE)
		o->commit = DMU_COMMIT_WANTED;
}

/* A request that nobody waits for and nobody has to answer. May sleep. */
void dmu_request_drop(struct dmu_object *o, struct dmu_request *rq)
{
	unsigned long flags;

	if (rq->type == DMU_CHANGE) {
		dmu_change_done(o, rq, -EIO);
		return;
	}
	spin_lock_irqsave(&o->lock, flags);
	dmu_request_free(o, rq);
	spin_unlock_irqrestore(&o->lock, flags);
}

/* Nobody will answer: who waits fails. Not when a daemon is there. May sleep. */
void dmu_requests_fail(struct dmu_object *o)
{
	struct bio_list bios, changes;
	struct dmu_request *rq, *next;
	unsigned long flags;
	struct bio *bio;
	LIST_HEAD(list);

	bio_list_init(&bios);
	bio_list_init(&changes);
	spin_lock_irqsave(&o->lock, flags);
	if (!dmu_hopeless(o)) {
		spin_unlock_irqrestore(&o->lock, flags);
		return;
	}
	list_for_each_entry_safe(rq, next, &o->queue, node) {
		if (rq->type == DMU_CHANGE) {
			list_move_tail(&rq->node, &list);
			hash_del(&rq->by_id);
			continue;
		}
		o->pending -= bio_list_size(&rq->bios);
		bio_list_merge(&bios, &rq->bios);
		dmu_request_free(o, rq);
	}
	dmu_commit_abort(o, &bios);
	spin_unlock_irqrestore(&o->lock, flags);
	list_for_each_entry_safe(rq, next, &list, node)
		dmu_change_done(o, rq, -EIO);
	while ((bio = bio_list_pop(&bios)))
		dmu_finish(bio, BLK_STS_IOERR);
}

/* Takes the bios of a target from a list. */
static void take_bios(struct dmu_target *t, struct bio_list *from, struct bio_list *ret)
{
	struct bio_list keep;
	struct bio *bio;

	bio_list_init(&keep);
	while ((bio = bio_list_pop(from)))
		bio_list_add(dmu_io(bio)->t == t ? ret : &keep, bio);
	*from = keep;
}

/*
 * A suspension that does not flush: everything that waits goes back to the core. A
 * request that the daemon has stays until it is answered, for nobody.
 */
void dmu_requeue_target(struct dmu_target *t)
{
	struct dmu_object *o = t->o;
	struct dmu_request *rq, *next;
	struct bio_list bios;
	unsigned long flags;
	struct dmu_work *w;
	struct bio *bio;
	u32 before;

	bio_list_init(&bios);
	spin_lock_irqsave(&o->lock, flags);
	t->requeue = true;
	list_splice_tail_init(&o->asked, &o->queue);
	list_for_each_entry_safe(rq, next, &o->queue, node) {
		before = bio_list_size(&rq->bios);
		take_bios(t, &rq->bios, &bios);
		o->pending -= before - bio_list_size(&rq->bios);
		if (rq->asked)
			list_move_tail(&rq->node, &o->asked);
		else if (rq->type == DMU_ASK && bio_list_empty(&rq->bios))
			dmu_request_free(o, rq);
	}
	list_for_each_entry(w, &o->works, all)
		take_bios(t, &w->waiting, &bios);
	take_bios(t, &o->starved, &bios);
	take_bios(t, &o->retry, &bios);
	take_bios(t, &o->commit_next, &bios);
	take_bios(t, &o->commit_now, &bios);
	spin_unlock_irqrestore(&o->lock, flags);
	while ((bio = bio_list_pop(&bios)))
		dmu_finish(bio, BLK_STS_DM_REQUEUE);
}
