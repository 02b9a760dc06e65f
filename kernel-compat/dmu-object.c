// SPDX-License-Identifier: GPL-2.0
/*
 * Objects: what the targets of one key share. Made by the first target of the key; gone
 * with the last one, unless there are granules that no daemon was told of: then it
 * stays for the next target of that key and the same devices. After a commit that failed
 * there is nothing worth waiting for.
 */
#include "dmu.h"

#include <linux/module.h>
#include <linux/percpu.h>

DEFINE_MUTEX(dmu_mutex);
static LIST_HEAD(objects);		/* dmu_mutex */

DECLARE_DM_KCOPYD_THROTTLE_WITH_MODULE_PARM(copy_throttle,
		"Percentage of time that copying may take");

u64 dmu_hits(struct dmu_object *o)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu) {
		const struct dmu_cpu *c = per_cpu_ptr(o->cpu, cpu);

		sum += READ_ONCE(c->in[0]) + READ_ONCE(c->in[1]);
	}
	return sum;
}

/* Whether all bios that went in on that side came out. Nobody goes in there any more. */
bool dmu_side_even(struct dmu_object *o, unsigned int side)
{
	unsigned long in = 0, out = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		out += READ_ONCE(per_cpu_ptr(o->cpu, cpu)->out[side]);
	smp_mb();	/* a bio that came out is seen going in, too */
	for_each_possible_cpu(cpu)
		in += READ_ONCE(per_cpu_ptr(o->cpu, cpu)->in[side]);
	return in == out;
}

/* There may be something to read. Under object.lock. */
void dmu_kick(struct dmu_object *o)
{
	if (o->channel)
		wake_up_interruptible(&o->channel->wait);
}

/* ---- work ---- */

static void resume_work(struct work_struct *work)
{
	struct dmu_object *o = container_of(work, struct dmu_object, resume_work);
	struct bio_list bios;

	spin_lock_irq(&o->lock);
	bios = o->retry;
	bio_list_init(&o->retry);
	spin_unlock_irq(&o->lock);
	dmu_resume_list(&bios);
}

static void starved_work(struct work_struct *work)
{
	struct dmu_object *o = container_of(to_delayed_work(work), struct dmu_object, starved_work);
	struct bio_list bios;

	spin_lock_irq(&o->lock);
	bios = o->starved;
	bio_list_init(&o->starved);
	spin_unlock_irq(&o->lock);
	dmu_resume_list(&bios);
}

static void due_work(struct work_struct *work)
{
	struct dmu_object *o = container_of(to_delayed_work(work), struct dmu_object, due_work);

	spin_lock_irq(&o->lock);
	o->due_armed = false;
	o->due_now = true;
	dmu_kick(o);
	spin_unlock_irq(&o->lock);
}

static void expire_work(struct work_struct *work)
{
	struct dmu_object *o = container_of(to_delayed_work(work), struct dmu_object, expire_work);

	spin_lock_irq(&o->lock);
	if (!o->channel && o->policy.timeout)
		o->expired = true;
	spin_unlock_irq(&o->lock);
	dmu_requests_fail(o);
}

static void event_work(struct work_struct *work)
{
	struct dmu_object *o = container_of(work, struct dmu_object, event_work);
	struct dmu_target *t;

	mutex_lock(&o->targets_lock);
	list_for_each_entry(t, &o->targets, node)
		dm_table_event(t->ti->table);
	mutex_unlock(&o->targets_lock);
}

/* ---- making and freeing ---- */

static void object_free(struct dmu_object *o)
{
	if (o->wq)
		destroy_workqueue(o->wq);
	if (!IS_ERR_OR_NULL(o->kcopyd))
		dm_kcopyd_client_destroy(o->kcopyd);
	bioset_exit(&o->splits);
	mempool_exit(&o->request_pool);
	mempool_exit(&o->work_pool);
	free_percpu(o->cpu);
	xa_destroy(&o->sections);
	kfree(o->bottom);
	kfree(o);
}

static void object_init(struct dmu_object *o)
{
	xa_init_flags(&o->sections, XA_FLAGS_LOCK_IRQ);
	mutex_init(&o->targets_lock);
	spin_lock_init(&o->lock);
	INIT_LIST_HEAD(&o->queue);
	INIT_LIST_HEAD(&o->asked);
	hash_init(o->requests);
	bio_list_init(&o->starved);
	bio_list_init(&o->retry);
	INIT_LIST_HEAD(&o->works);
	INIT_LIST_HEAD(&o->due);
	INIT_LIST_HEAD(&o->blocked);
	INIT_LIST_HEAD(&o->gathered);
	hash_init(o->unacked);
	bio_list_init(&o->commit_next);
	bio_list_init(&o->commit_now);
	INIT_LIST_HEAD(&o->clock);
	INIT_LIST_HEAD(&o->revocations);
	INIT_LIST_HEAD(&o->revoked);
	INIT_LIST_HEAD(&o->channels);
	INIT_LIST_HEAD(&o->node);
	INIT_LIST_HEAD(&o->targets);
	kref_init(&o->kref);
	INIT_WORK(&o->resume_work, resume_work);
	INIT_WORK(&o->event_work, event_work);
	INIT_DELAYED_WORK(&o->due_work, due_work);
	INIT_DELAYED_WORK(&o->starved_work, starved_work);
	INIT_DELAYED_WORK(&o->revoke_work, dmu_revoke_work);
	INIT_DELAYED_WORK(&o->expire_work, expire_work);
}

static int object_reserves(struct dmu_object *o)
{
	/* Room for the bitmaps of the smallest granule. */
	size_t work = sizeof(struct dmu_work) + 3 * DMU_BITS_BYTES_MAX;
	int r;

	o->cpu = alloc_percpu(struct dmu_cpu);
	o->wq = alloc_workqueue("dmu-%s", DMU_WQ_FLAGS, 0, o->key);
	if (!o->cpu || !o->wq)
		return -ENOMEM;
	r = mempool_init_kmalloc_pool(&o->request_pool, DMU_RESERVE_REQUESTS,
				      sizeof(struct dmu_request));
	if (!r)
		r = mempool_init_kmalloc_pool(&o->work_pool, DMU_RESERVE_WORKS, work);
	if (!r)
		r = bioset_init(&o->splits, DMU_RESERVE_SPLITS, offsetof(struct dmu_split, bio), 0);
	if (r)
		return r;
	o->kcopyd = dm_kcopyd_client_create(&dm_kcopyd_throttle);
	return PTR_ERR_OR_ZERO(o->kcopyd);
}

static struct dmu_object *object_new(struct dmu_target *t)
{
	struct dmu_object *o = kzalloc(sizeof(*o), GFP_KERNEL);
	int r = -ENOMEM;

	if (!o)
		return ERR_PTR(-ENOMEM);
	object_init(o);
	strscpy(o->key, t->key, sizeof(o->key));
	o->block_shift = ilog2(t->block >> SECTOR_SHIFT);
	o->sectors = t->ti->len;
	o->policy = t->policy;
	o->bottoms = t->devs;
	o->bottom = kmemdup(t->bottom, t->devs * sizeof(t->bottom[0]), GFP_KERNEL);
	if (o->bottom)
		r = object_reserves(o);
	if (r) {
		object_free(o);
		return ERR_PTR(r);
	}
	return o;
}

/* Everything remembered, and every work: no bio is in flight. */
static void object_empty(struct dmu_object *o)
{
	struct dmu_revocation *rv, *next_rv;
	struct dmu_request *rq, *next_rq;
	struct dmu_place *p, *next;
	struct dmu_work *w, *next_w;
	unsigned long index;

	list_splice_init(&o->asked, &o->queue);
	list_for_each_entry_safe(rq, next_rq, &o->queue, node) {
		if (rq->place)
			dmu_place_put(rq->place);
		dmu_request_free(o, rq);
	}
	list_for_each_entry_safe(w, next_w, &o->works, all) {
		list_del(&w->all);
		w->place->work = NULL;
		if (w->pooled)
			mempool_free(w, &o->work_pool);
		else
			kfree(w);
	}
	list_splice_init(&o->revoked, &o->revocations);
	list_for_each_entry_safe(rv, next_rv, &o->revocations, node) {
		list_for_each_entry_safe(p, next, &rv->places, clock)
			dmu_place_put(p);
		kfree(rv);
	}
	xa_for_each(&o->sections, index, p) {
		spin_lock_irq(&o->lock);
		dmu_place_forget(o, p);
		spin_unlock_irq(&o->lock);
		dmu_place_put(p);
	}
}

void dmu_object_release(struct kref *kref)
{
	struct dmu_object *o = container_of(kref, struct dmu_object, kref);

	cancel_work_sync(&o->resume_work);
	cancel_work_sync(&o->event_work);
	cancel_delayed_work_sync(&o->due_work);
	cancel_delayed_work_sync(&o->expire_work);
	cancel_delayed_work_sync(&o->revoke_work);
	cancel_delayed_work_sync(&o->starved_work);
	object_empty(o);
	cancel_delayed_work_sync(&o->starved_work);
	cancel_delayed_work_sync(&o->revoke_work);
	object_free(o);
}

/* ---- finding ---- */

/* Under dmu_mutex. */
struct dmu_object *dmu_object_find(const char *key)
{
	struct dmu_object *o;

	list_for_each_entry(o, &objects, node)
		if (!strcmp(o->key, key))
			return o;
	return NULL;
}

/* The devices may have grown since the table was loaded. May sleep. */
void dmu_object_measure(struct dmu_object *o)
{
	struct dmu_target *t;
	u32 i;

	mutex_lock(&o->targets_lock);
	t = list_first_entry_or_null(&o->targets, struct dmu_target, node);
	spin_lock_irq(&o->lock);
	for (i = 0; t && i < o->bottoms; i++)
		o->bottom[i].sectors = bdev_nr_sectors(t->bdev[i]);
	spin_unlock_irq(&o->lock);
	mutex_unlock(&o->targets_lock);
}

static bool same_bottoms(const struct dmu_object *o, const struct dmu_target *t)
{
	u32 i;

	if (o->bottoms != t->devs || 1ull << o->block_shift != t->block >> SECTOR_SHIFT)
		return false;
	for (i = 0; i < t->devs; i++)
		if (o->bottom[i].dev != t->bottom[i].dev ||
		    o->bottom[i].diskseq != t->bottom[i].diskseq ||
		    o->bottom[i].writable != t->bottom[i].writable)
			return false;
	return true;
}

/* Takes it off the list; the list's reference is dropped. Under dmu_mutex. */
static void object_unlist(struct dmu_object *o)
{
	struct dmu_channel *ch;

	list_del_init(&o->node);
	spin_lock_irq(&o->lock);
	o->dead = true;
	list_for_each_entry(ch, &o->channels, node)
		wake_up_interruptible(&ch->wait);
	dmu_kick(o);
	spin_unlock_irq(&o->lock);
	kref_put(&o->kref, dmu_object_release);
}

/* The object of the target's key, found or made; or an error pointer and @error. */
struct dmu_object *dmu_object_get(struct dmu_target *t, char **error)
{
	struct dmu_object *o;

	mutex_lock(&dmu_mutex);
	o = dmu_object_find(t->key);
	if (o && !same_bottoms(o, t)) {
		if (!o->gone) {
			*error = "The key is in use with other devices or another block size";
			mutex_unlock(&dmu_mutex);
			return ERR_PTR(-EBUSY);
		}
		DMWARN("%s: made anew with other devices: forgets writes that no daemon recorded",
		       o->key);
		object_unlist(o);
		o = NULL;
	}
	if (!o) {
		o = object_new(t);
		if (IS_ERR(o)) {
			*error = "Cannot allocate the object of the key";
			mutex_unlock(&dmu_mutex);
			return o;
		}
		list_add(&o->node, &objects);
	}
	mutex_lock(&o->targets_lock);
	list_add_tail(&t->node, &o->targets);
	mutex_unlock(&o->targets_lock);
	kref_get(&o->kref);
	spin_lock_irq(&o->lock);
	o->gone = false;
	spin_unlock_irq(&o->lock);
	mutex_unlock(&dmu_mutex);
	return o;
}

/* No target and nothing to tell, or nobody who could record it: the object goes. Under dmu_mutex. */
static void object_settle(struct dmu_object *o)
{
	bool idle;

	spin_lock_irq(&o->lock);
	idle = o->gone && (list_empty(&o->works) || o->failed);
	spin_unlock_irq(&o->lock);
	if (idle && !list_empty(&o->node))
		object_unlist(o);
}

void dmu_object_settle(struct dmu_object *o)
{
	mutex_lock(&dmu_mutex);
	object_settle(o);
	mutex_unlock(&dmu_mutex);
}

/* The target goes; with the last one the daemon is told at once what it does not know yet. */
void dmu_object_put_target(struct dmu_target *t)
{
	struct dmu_object *o = t->o;
	struct dmu_request *rq, *next;
	LIST_HEAD(orphans);

	mutex_lock(&dmu_mutex);
	mutex_lock(&o->targets_lock);
	list_del(&t->node);
	mutex_unlock(&o->targets_lock);
	if (list_empty(&o->targets)) {
		spin_lock_irq(&o->lock);
		o->gone = true;
		o->due_now = true;
		list_splice_init(&o->asked, &orphans);
		list_splice_init(&o->queue, &orphans);
		list_for_each_entry(rq, &orphans, node)
			hash_del(&rq->by_id);
		dmu_kick(o);
		spin_unlock_irq(&o->lock);
		/* Only those whose bios went back to the core are left. */
		list_for_each_entry_safe(rq, next, &orphans, node)
			dmu_request_drop(o, rq);
		object_settle(o);
	}
	mutex_unlock(&dmu_mutex);
	kref_put(&o->kref, dmu_object_release);
}

/* For the end of the module: objects that nobody came for. */
void dmu_objects_free(void)
{
	struct dmu_object *o, *next;

	mutex_lock(&dmu_mutex);
	list_for_each_entry_safe(o, next, &objects, node)
		object_unlist(o);
	mutex_unlock(&dmu_mutex);
}

/* For the shrinker; U64_MAX: not now. */
u64 dmu_objects_evict(u64 bytes)
{
	struct dmu_object *o;
	u64 done = 0;

	if (!mutex_trylock(&dmu_mutex))
		return U64_MAX;
	list_for_each_entry(o, &objects, node)
		if (done < bytes)
			done += dmu_evict(o, bytes - done, false);
	mutex_unlock(&dmu_mutex);
	return done;
}
