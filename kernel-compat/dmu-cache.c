// SPDX-License-Identifier: GPL-2.0
/*
 * Remembered sections: making, dropping and revoking them, and the work that goes on
 * in them. Finding places in them is in dmu-map.c, taking the daemon's answers in dmu-ask.c.
 *
 * Everything here can be asked for again, so a section without work may be
 * dropped at any time: the bios that used it do not look at it any more.
 */
#include "dmu.h"

#include <linux/module.h>

static atomic_long_t dmu_bytes;
static unsigned long cache_limit;
module_param(cache_limit, ulong, 0644);
MODULE_PARM_DESC(cache_limit, "Bytes that all targets may remember (0: a twentieth of the memory)");

/* Presence bits that nobody needs any more. */
struct dmu_retired {
	struct rcu_head rcu;
	unsigned long *bits;
};

static unsigned long dmu_cache_limit(void)
{
	unsigned long limit = READ_ONCE(cache_limit);

	return limit ? limit : (totalram_pages() / 20) << PAGE_SHIFT;
}

u64 dmu_cache_total(void)
{
	return atomic_long_read(&dmu_bytes);
}

u32 dmu_place_granules(const struct dmu_place *p)
{
	return ((p->sectors - 1) >> p->granule_shift) + 1;
}

static size_t bits_bytes(const struct dmu_place *p)
{
	return BITS_TO_LONGS(dmu_place_granules(p)) * sizeof(long);
}

static void place_free(struct dmu_place *p)
{
	unsigned int i;

	for (i = 0; i < p->planes; i++)
		kfree(p->plane[i].bits);
	kvfree(p);
}

static void place_free_rcu(struct rcu_head *rcu)
{
	place_free(container_of(rcu, struct dmu_place, rcu));
}

void dmu_place_put(struct dmu_place *p)
{
	if (refcount_dec_and_test(&p->refs))
		call_rcu(&p->rcu, place_free_rcu);
}

/* A section with @planes (0: a table of blocks), to be filled in by the caller. May sleep. */
struct dmu_place *dmu_place_new(struct dmu_object *o, u64 index, u32 sectors, u8 shift, u8 planes)
{
	struct dmu_place *p;
	size_t size = sizeof(*p);
	unsigned int noio;

	if (planes)
		size += planes * sizeof(p->plane[0]);
	else
		size += (((sectors - 1) >> shift) + 1) * sizeof(p->entry[0]);
	noio = memalloc_noio_save();
	p = kvzalloc(size, GFP_KERNEL | __GFP_NOWARN);
	memalloc_noio_restore(noio);
	if (!p)
		return NULL;
	BUILD_BUG_ON(IS_ENABLED(CONFIG_64BIT) && offsetof(struct dmu_place, sectors) != 64);
	INIT_LIST_HEAD(&p->clock);
	refcount_set(&p->refs, 1);
	p->index = index;
	p->sectors = sectors;
	p->granule_shift = shift;
	p->planes = planes;
	p->referenced = true;
	p->bytes = size;
	return p;
}

/*
 * 0: remembered from now on, and owned by the object. -EEXIST: another one is.
 * -EBUSY: it is being revoked. May sleep.
 */
int dmu_place_insert(struct dmu_object *o, struct dmu_place *p)
{
	unsigned long flags;
	unsigned int i;
	int r;

	/* The memory first, so that the store below needs none. */
	r = xa_err(xa_cmpxchg_irq(&o->sections, p->index, NULL, XA_ZERO_ENTRY, GFP_NOIO));
	if (r)
		return r;
	spin_lock_irqsave(&o->lock, flags);
	if (xa_load(&o->sections, p->index))
		r = -EEXIST;
	else if (dmu_being_revoked(o, p->index) ||
		 p->sectors != dmu_section_sectors(o->sectors, p->index))
		r = -EBUSY;
	else
		r = xa_err(xa_store(&o->sections, p->index, p, GFP_NOWAIT | __GFP_NOWARN));
	if (!r) {
		for (i = 0; i < p->planes; i++)
			if (p->plane[i].bits)
				p->bytes += bits_bytes(p);
		list_add_tail(&p->clock, &o->clock);
		o->bytes += p->bytes;
		o->places++;
		atomic_long_add(p->bytes, &dmu_bytes);
	} else if (r != -EEXIST) {
		xa_release(&o->sections, p->index);
	}
	spin_unlock_irqrestore(&o->lock, flags);
	return r;
}

/* Takes it out of what is remembered. Under object.lock; the caller has the reference then. */
void dmu_place_forget(struct dmu_object *o, struct dmu_place *p)
{
	xa_erase(&o->sections, p->index);
	p->dead = true;
	if (!list_empty(&p->clock)) {
		list_del_init(&p->clock);
		o->bytes -= p->bytes;
		o->places--;
		atomic_long_sub(p->bytes, &dmu_bytes);
	}
}

static void retired_free(struct rcu_head *rcu)
{
	struct dmu_retired *d = container_of(rcu, struct dmu_retired, rcu);

	kfree(d->bits);
	kfree(d);
}

/* A plane that has everything needs no bits. Under object.lock. */
void dmu_place_trim(struct dmu_object *o, struct dmu_place *p)
{
	struct dmu_retired *d;
	unsigned int i;
	u32 granules = dmu_place_granules(p);

	for (i = 0; i < p->planes; i++) {
		unsigned long *bits = p->plane[i].bits;

		if (!bits || !bitmap_full(bits, granules))
			continue;
		d = kmalloc(sizeof(*d), GFP_NOWAIT | __GFP_NOWARN);
		if (!d)
			return;
		d->bits = bits;
		WRITE_ONCE(p->plane[i].bits, NULL);
		call_rcu(&d->rcu, retired_free);
		p->bytes -= bits_bytes(p);
		if (!list_empty(&p->clock) && !p->dead) {
			o->bytes -= bits_bytes(p);
			atomic_long_sub(bits_bytes(p), &dmu_bytes);
		}
	}
}

/* Readers look without a lock: the data was written before its bit is seen. */
void dmu_bits_set(unsigned long *bits, u32 first, u32 count)
{
	smp_mb__before_atomic();
	for (; count && (first % BITS_PER_LONG || count < BITS_PER_LONG); first++, count--)
		set_bit(first, bits);
	for (; count >= BITS_PER_LONG; first += BITS_PER_LONG, count -= BITS_PER_LONG)
		WRITE_ONCE(bits[first / BITS_PER_LONG], ~0UL);
	for (; count; first++, count--)
		set_bit(first, bits);
}

/* ---- eviction ---- */

/* Drops up to @bytes of sections that were not used since the hand passed (@all: or were). */
u64 dmu_evict(struct dmu_object *o, u64 bytes, bool all)
{
	struct dmu_place *p;
	unsigned long flags;
	u64 done = 0, steps;

	spin_lock_irqsave(&o->lock, flags);
	for (steps = all ? o->places : 2 * o->places; steps && done < bytes; steps--) {
		if (list_empty(&o->clock))
			break;
		p = list_first_entry(&o->clock, struct dmu_place, clock);
		if (p->work || (p->referenced && !all)) {
			p->referenced = false;
			list_move_tail(&p->clock, &o->clock);
		} else {
			done += p->bytes;
			dmu_place_forget(o, p);
			dmu_place_put(p);
		}
		if (!(steps & 255)) {	/* let others in */
			spin_unlock_irqrestore(&o->lock, flags);
			spin_lock_irqsave(&o->lock, flags);
		}
	}
	spin_unlock_irqrestore(&o->lock, flags);
	return done;
}

/* Keeps to the caps; a single section may be larger than they are. */
void dmu_cache_bound(struct dmu_object *o)
{
	u64 cap = READ_ONCE(o->policy.cache_bytes), bytes = READ_ONCE(o->bytes);
	u64 total = dmu_cache_total(), limit = dmu_cache_limit();
	u64 over = 0;

	if (cap && bytes > cap)
		over = bytes - cap;
	if (total > limit)
		over = max(over, total - limit);
	if (over && READ_ONCE(o->places) > 1)
		dmu_evict(o, over, false);
}

/* ---- work in a section ---- */

static size_t work_bytes(u32 longs)
{
	return sizeof(struct dmu_work) + 3 * longs * sizeof(long);
}

/* Its work, made when there is none yet; NULL without memory. Under object.lock. */
struct dmu_work *dmu_work_get(struct dmu_object *o, struct dmu_place *p)
{
	struct dmu_work *w = p->work;
	u32 longs = BITS_TO_LONGS(dmu_place_granules(p));
	bool pooled = false;

	if (w)
		return w;
	w = kmalloc(work_bytes(longs), GFP_NOWAIT | __GFP_NOWARN);
	if (!w) {
		w = mempool_alloc(&o->work_pool, GFP_NOWAIT | __GFP_NOWARN);
		pooled = true;
	}
	if (!w)
		return NULL;
	memset(w, 0, work_bytes(longs));
	w->pooled = pooled;
	w->longs = longs;
	w->place = p;
	INIT_LIST_HEAD(&w->due);
	bio_list_init(&w->waiting);
	w->unacked[0].work = w->unacked[1].work = w;
	list_add_tail(&w->all, &o->works);
	p->work = w;
	return w;
}

/* Frees it when nothing goes on any more. Under object.lock. */
void dmu_work_put(struct dmu_object *o, struct dmu_work *w)
{
	struct dmu_place *p = w->place;

	if (w->busy_count || w->dirty || !dmu_acked(w) || !bio_list_empty(&w->waiting))
		return;
	p->work = NULL;
	list_del(&w->all);
	if (w->pooled)
		mempool_free(w, &o->work_pool);
	else
		kfree(w);
	if (p->planes)
		dmu_place_trim(o, p);
	if (!bio_list_empty(&o->starved))
		mod_delayed_work(o->wq, &o->starved_work, 0);
	if (p->dead)
		mod_delayed_work(o->wq, &o->revoke_work, 0);
}

/* The daemon is to read what is due, a little later. Under object.lock. */
void dmu_work_arm(struct dmu_object *o)
{
	if (o->due_armed || o->due_now)
		return;
	o->due_armed = true;
	queue_delayed_work(o->wq, &o->due_work, msecs_to_jiffies(DMU_WRITTEN_DELAY_MS));
}

/* Granules became present: the daemon will hear of it. Under object.lock. */
void dmu_work_dirty(struct dmu_object *o, struct dmu_work *w, u32 first, u32 count)
{
	bitmap_set(dmu_dirty(w), first, count);
	if (!w->dirty) {
		w->dirty = true;
		list_add_tail(&w->due, dmu_acked(w) ? &o->due : &o->blocked);
	}
	dmu_work_arm(o);
}

/* The bio waits for granules that are busy. Under object.lock. */
void dmu_work_wait(struct dmu_object *o, struct dmu_work *w, struct bio *bio)
{
	if (!dmu_io(bio)->t->requeue) {
		bio_list_add(&w->waiting, bio);
	} else {	/* not now: it goes back to the core when it is resumed */
		bio_list_add(&o->retry, bio);
		queue_work(o->wq, &o->resume_work);
	}
}

/* The granules are not being worked on any more; who waited looks again. Under object.lock. */
void dmu_work_unbusy(struct dmu_object *o, struct dmu_work *w, u32 first, u32 count)
{
	bitmap_clear(dmu_busy(w), first, count);
	w->busy_count -= count;
	if (!bio_list_empty(&w->waiting)) {
		bio_list_merge(&o->retry, &w->waiting);
		bio_list_init(&w->waiting);
		queue_work(o->wq, &o->resume_work);
	}
	dmu_work_put(o, w);
}

/* ---- revocation ---- */

/* Nothing is asked about, or remembered for, a section that is being revoked. Under object.lock. */
bool dmu_being_revoked(struct dmu_object *o, u64 index)
{
	struct dmu_revocation *rv;

	list_for_each_entry(rv, &o->revocations, node)
		if (index >= rv->first && index <= rv->last)
			return true;
	return false;
}

/* Forgets the sections and waits, in revoke_work, until nothing uses them. May sleep. */
int dmu_revoke(struct dmu_object *o, u64 id, u64 first, u64 last)
{
	struct dmu_revocation *rv = kmalloc(sizeof(*rv), GFP_NOIO);
	struct dmu_place *p;
	unsigned long flags, index = first;

	if (!rv)
		return -ENOMEM;
	INIT_LIST_HEAD(&rv->places);
	rv->id = id;
	rv->first = first;
	rv->last = last;
	rv->state = DMU_REVOKE_NEW;
	spin_lock_irqsave(&o->lock, flags);
	list_add_tail(&rv->node, &o->revocations);
	for (p = xa_find(&o->sections, &index, last, XA_PRESENT); p;
	     p = xa_find_after(&o->sections, &index, last, XA_PRESENT)) {
		dmu_place_forget(o, p);
		list_add_tail(&p->clock, &rv->places);
		if (p->work && !bio_list_empty(&p->work->waiting)) {
			bio_list_merge(&o->retry, &p->work->waiting);
			bio_list_init(&p->work->waiting);
			queue_work(o->wq, &o->resume_work);
		}
	}
	spin_unlock_irqrestore(&o->lock, flags);
	mod_delayed_work(o->wq, &o->revoke_work, 0);
	return 0;
}

/* Whether the daemon knows all that was written there. Under object.lock. */
static bool place_settled(const struct dmu_place *p)
{
	const struct dmu_work *w = p->work;

	return !w || (!w->dirty && dmu_acked(w));
}

static void revocation_end(struct dmu_object *o, struct dmu_revocation *rv)
{
	struct dmu_place *p, *next;

	list_for_each_entry_safe(p, next, &rv->places, clock) {
		if (!place_settled(p))
			continue;
		list_del_init(&p->clock);
		dmu_place_put(p);
	}
	if (!list_empty(&rv->places))
		return;
	list_del(&rv->node);
	if (rv->id)
		list_add_tail(&rv->node, &o->revoked);
	else
		kfree(rv);
	dmu_kick(o);
}

/* Turns the gate for what was revoked since; true while bios are still on the other side. */
static bool revoke_drain(struct dmu_object *o)
{
	struct dmu_revocation *rv;
	unsigned long flags;
	bool fresh = false;

	if (o->draining) {
		if (!dmu_side_even(o, !o->gate))
			return true;
		spin_lock_irqsave(&o->lock, flags);
		list_for_each_entry(rv, &o->revocations, node)
			if (rv->state == DMU_REVOKE_DRAINING)
				rv->state = DMU_REVOKE_DRAINED;
		spin_unlock_irqrestore(&o->lock, flags);
		o->draining = false;
	}
	spin_lock_irqsave(&o->lock, flags);
	list_for_each_entry(rv, &o->revocations, node)
		if (rv->state == DMU_REVOKE_NEW) {
			rv->state = DMU_REVOKE_DRAINING;
			fresh = true;
		}
	if (fresh)
		smp_store_release(&o->gate, !o->gate);
	spin_unlock_irqrestore(&o->lock, flags);
	if (!fresh)
		return false;
	synchronize_rcu();	/* nobody counts itself in on the old side any more */
	o->draining = true;
	return true;
}

void dmu_revoke_work(struct work_struct *work)
{
	struct dmu_object *o = container_of(to_delayed_work(work), struct dmu_object, revoke_work);
	struct dmu_revocation *rv, *next;
	unsigned long flags;
	bool more = revoke_drain(o);

	spin_lock_irqsave(&o->lock, flags);
	list_for_each_entry_safe(rv, next, &o->revocations, node)
		if (rv->state == DMU_REVOKE_DRAINED)
			revocation_end(o, rv);
	spin_unlock_irqrestore(&o->lock, flags);
	if (more)
		mod_delayed_work(o->wq, &o->revoke_work, 1);
}

/* ---- shrinker ---- */

static unsigned long shrink_count(struct shrinker *s, struct shrink_control *sc)
{
	return (dmu_cache_total() >> 10) ?: SHRINK_EMPTY;	/* objects of a KiB */
}

static unsigned long shrink_scan(struct shrinker *s, struct shrink_control *sc)
{
	u64 want = (u64)sc->nr_to_scan << 10, done;

	done = dmu_objects_evict(want);
	return done == U64_MAX ? SHRINK_STOP : done >> 10;
}

#ifdef DMU_HAVE_SHRINKER_ALLOC
static struct shrinker *dmu_shrinker;

int dmu_shrinker_init(void)
{
	dmu_shrinker = shrinker_alloc(0, "dm-userspace");
	if (!dmu_shrinker)
		return -ENOMEM;
	dmu_shrinker->count_objects = shrink_count;
	dmu_shrinker->scan_objects = shrink_scan;
	shrinker_register(dmu_shrinker);
	return 0;
}

void dmu_shrinker_exit(void)
{
	shrinker_free(dmu_shrinker);
}
#else
static struct shrinker dmu_shrinker = {
	.count_objects = shrink_count,
	.scan_objects = shrink_scan,
	.seeks = DEFAULT_SEEKS,
};

int dmu_shrinker_init(void)
{
	return register_shrinker(&dmu_shrinker, "dm-userspace");
}

void dmu_shrinker_exit(void)
{
	unregister_shrinker(&dmu_shrinker);
}
#endif
