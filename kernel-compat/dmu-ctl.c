// SPDX-License-Identifier: GPL-2.0
/*
 * The control node: openings, records in both directions, and which daemon speaks
 * for an object. What the answers mean is in dmu-ask.c.
 *
 * read() makes records when they are read, from the object's lists: there is no queue
 * of bytes, nothing that could overflow, and what no daemon has read yet is as fresh as it can be.
 */
#include "dmu.h"

#include <linux/bitmap.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/uio.h>

/* ---- records to the daemon; under object.lock ---- */

static void put_head(void *record, u32 type, u32 size, u64 id)
{
	struct dmu_head *h = record;

	memset(record, 0, size);
	h->type = type;
	h->size = size;
	h->id = id;
}

static int make_head(struct dmu_channel *ch, u32 room, u32 type, u64 id)
{
	if (room < sizeof(struct dmu_head))
		return -EMSGSIZE;
	put_head(ch->out, type, sizeof(struct dmu_head), id);
	return sizeof(struct dmu_head);
}

static int make_info(struct dmu_channel *ch, u32 room, u32 type, u64 id)
{
	struct dmu_object *o = ch->o;
	struct dmu_info *info = ch->out;
	struct dmu_device *d = (void *)(info + 1);
	u32 size = sizeof(*info) + o->bottoms * sizeof(*d), i;

	if (room < size)
		return -EMSGSIZE;
	put_head(info, type, size, id);
	info->abi = DMU_ABI;
	info->features = ch->features;
	info->devices = o->bottoms;
	info->block = 1u << o->block_shift;
	info->sectors = o->sectors;
	info->epoch = o->epoch;
	info->flags = (o->policy.read_only || o->failed ? DMU_INFO_READONLY : 0) |
		      (dmu_uncommitted(o) ? DMU_INFO_UNCOMMITTED : 0);
	for (i = 0; i < o->bottoms; i++) {
		d[i].major = MAJOR(o->bottom[i].dev);
		d[i].minor = MINOR(o->bottom[i].dev);
		d[i].flags = o->bottom[i].writable ? DMU_DEVICE_WRITABLE : 0;
		d[i].sectors = o->bottom[i].sectors;
	}
	return size;
}

static int make_revoked(struct dmu_channel *ch, u32 room)
{
	struct dmu_revocation *rv;
	int r;

	rv = list_first_entry(&ch->o->revoked, struct dmu_revocation, node);
	r = make_head(ch, room, DMU_REVOKED, rv->id);
	if (r > 0) {
		list_del(&rv->node);
		kfree(rv);
	}
	return r;
}

static int make_request(struct dmu_channel *ch, u32 room, struct dmu_request *rq)
{
	struct dmu_ask *a = ch->out;

	if (room < sizeof(*a))
		return -EMSGSIZE;
	put_head(a, rq->type, sizeof(*a), rq->id);
	a->op = rq->op;
	a->start = rq->start;
	a->sectors = rq->sectors;
	a->at = rq->at;
	a->need = rq->need;
	rq->asked = true;
	list_move_tail(&rq->node, &ch->o->asked);
	return sizeof(*a);
}

/* Where the dirty blocks of [@first, @end) are, at @to. */
static void put_places(struct dmu_work *w, u32 first, u32 end, u64 *to)
{
	u32 i;

	for (i = find_next_bit(dmu_dirty(w), end, first); i < end;
	     i = find_next_bit(dmu_dirty(w), end, i + 1)) {
		u64 e = atomic64_read(&w->place->entry[i]);

		*to++ = (e & DMU_ENTRY_AT) |
			(e & DMU_ENTRY_DEV) >> DMU_ENTRY_DEV_SHIFT << DMU_PLACE_DEV_SHIFT;
	}
}

/* The granules of [@first, @end) were put into a record. */
static void written_sent(struct dmu_object *o, struct dmu_work *w, u32 first, u32 end)
{
	unsigned long *sent = dmu_sent(w) + BIT_WORD(first);

	bitmap_or(sent, sent, dmu_dirty(w) + BIT_WORD(first), end - first);
	bitmap_clear(dmu_dirty(w), first, end - first);
	w->dirty = !bitmap_empty(dmu_dirty(w), dmu_place_granules(w->place));
	if (!w->dirty) {
		w->gathered = false;
		list_del_init(&w->due);
	} else if (!w->gathered) {
		list_move_tail(&w->due, &o->blocked);
	}
}

static int make_written(struct dmu_channel *ch, u32 room, struct dmu_work *w)
{
	struct dmu_object *o = ch->o;
	struct dmu_place *p = w->place;
	struct dmu_written *rec = ch->out;
	struct dmu_unacked *u = w->unacked[0].id ? &w->unacked[1] : &w->unacked[0];
	bool places = !p->planes && (ch->features & DMU_F_PLACES);
	u32 shift = p->granule_shift, granules = dmu_place_granules(p), i;
	u32 first = round_down(find_first_bit(dmu_dirty(w), granules), 64);
	u32 end = places ? min(granules, first + DMU_PLACES_MAX) : granules;
	u32 words = (find_last_bit(dmu_dirty(w), end) - first) / 64 + 1, size;
	u64 *bits = (void *)(rec + 1);

	size = sizeof(*rec) + words * sizeof(u64);
	end = min(end, first + words * 64);
	if (places)
		size += bitmap_weight(dmu_dirty(w) + BIT_WORD(first), end - first) * sizeof(u64);
	if (room < size)
		return -EMSGSIZE;
	u->id = ++o->last_id;
	hash_add(o->unacked, &u->node, u->id);
	put_head(rec, DMU_WRITTEN, size, u->id);
	rec->start = (p->index << DMU_SECTION_SHIFT) + ((u64)first << shift);
	rec->sectors = min_t(u64, (u64)words * 64 << shift, p->sectors - (first << shift));
	rec->granule_shift = shift;
	bitmap_to_arr64(bits, dmu_dirty(w) + BIT_WORD(first), min(words * 64, granules - first));
	for (i = 0; i < words; i++)
		bits[i] = (__force u64)cpu_to_le64(bits[i]);
	if (places)
		put_places(w, first, end, bits + words);
	written_sent(o, w, first, end);
	return size;
}

static int make_commit(struct dmu_channel *ch, u32 room)
{
	struct dmu_object *o = ch->o;
	struct dmu_commit *c = ch->out;

	if (room < sizeof(*c))
		return -EMSGSIZE;
	o->commit_id = ++o->last_id;
	o->commit = DMU_COMMIT_SENT;
	put_head(c, DMU_COMMIT, sizeof(*c), o->commit_id);
	c->epoch = o->epoch + 1;
	return sizeof(*c);
}

/* All that was written until now goes before the DMU_COMMIT. */
static void commit_gather(struct dmu_object *o)
{
	struct dmu_work *w;

	list_splice_tail_init(&o->due, &o->gathered);
	list_splice_tail_init(&o->blocked, &o->gathered);
	list_for_each_entry(w, &o->gathered, due)
		w->gathered = true;
	bio_list_merge(&o->commit_now, &o->commit_next);
	bio_list_init(&o->commit_next);
	o->commit_change = o->changes;
	o->commit = DMU_COMMIT_GATHER;
}

static bool work_has_room(const struct dmu_work *w)
{
	return !w->unacked[0].id || !w->unacked[1].id;
}

/* One that can be told now: with room for another record under way. */
static struct dmu_work *pick_gathered(struct dmu_object *o)
{
	struct dmu_work *w;

	list_for_each_entry(w, &o->gathered, due)
		if (work_has_room(w))
			return w;
	return NULL;
}

static struct dmu_work *pick_due(struct dmu_object *o)
{
	struct dmu_work *w;

	if (o->due_now)
		list_for_each_entry(w, &o->due, due)
			if (dmu_acked(w))
				return w;
	return NULL;
}

/*
 * The work whose DMU_WRITTEN goes before the request, or NULL: who is to zero a part of a
 * block has to know that it is there, or would complete it from the base again.
 */
static struct dmu_work *told_first(const struct dmu_request *rq)
{
	struct dmu_work *w = rq->type == DMU_CHANGE ? rq->place->work : NULL;
	u32 end = rq->first + rq->count;

	return w && find_next_bit(dmu_dirty(w), end, rq->first) < end ? w : NULL;
}

/* Not about what is being revoked: the answer would be of yesterday. */
static struct dmu_request *pick_request(struct dmu_object *o)
{
	struct dmu_request *rq;
	struct dmu_work *w;

	list_for_each_entry(rq, &o->queue, node) {
		if (!list_empty(&o->revocations) &&
		    dmu_being_revoked(o, rq->start >> DMU_SECTION_SHIFT))
			continue;
		w = told_first(rq);
		if (!w || work_has_room(w))
			return rq;
	}
	return NULL;
}

static bool has_record(struct dmu_channel *ch)
{
	struct dmu_object *o = ch->o;

	return ch->info_due || ch->changed_due || !list_empty(&o->revoked) ||
	       o->commit == DMU_COMMIT_WANTED ||
	       (o->commit == DMU_COMMIT_GATHER && (list_empty(&o->gathered) || pick_gathered(o))) ||
	       pick_request(o) || pick_due(o);
}

/* Makes the next record in @ch->out: its size, 0 when there is none, or -EMSGSIZE. */
static int next_record(struct dmu_channel *ch, u32 room)
{
	struct dmu_object *o = ch->o;
	struct dmu_request *rq;
	struct dmu_work *w;
	int r;

	if (ch->info_due || ch->changed_due) {
		r = ch->info_due ? make_info(ch, room, DMU_INFO, ch->hello_id)
				 : make_info(ch, room, DMU_CHANGED, 0);
		if (r > 0 && !ch->info_due)
			ch->changed_due = false;
		if (r > 0)
			ch->info_due = false;
		return r;
	}
	if (!list_empty(&o->revoked))
		return make_revoked(ch, room);
	if (o->commit == DMU_COMMIT_WANTED)
		commit_gather(o);
	if (o->commit == DMU_COMMIT_GATHER) {
		w = pick_gathered(o);
		if (w)
			return make_written(ch, room, w);
		if (list_empty(&o->gathered))
			return make_commit(ch, room);
	}
	rq = pick_request(o);
	if (rq) {
		w = told_first(rq);
		return w ? make_written(ch, room, w) : make_request(ch, room, rq);
	}
	w = pick_due(o);
	if (w)
		return make_written(ch, room, w);
	o->due_now = false;
	if (!list_empty(&o->due))
		dmu_work_arm(o);
	return 0;
}

/* ---- which daemon ---- */

/* Under dmu_mutex. */
static void attach(struct dmu_channel *ch)
{
	struct dmu_object *o = ch->o;

	spin_lock_irq(&o->lock);
	o->channel = ch;
	o->features = ch->features;
	o->expired = false;
	ch->attached = true;
	ch->info_due = true;
	wake_up_interruptible(&ch->wait);
	spin_unlock_irq(&o->lock);
	queue_work(o->wq, &o->event_work);
}

/* The daemon goes, or hands over: what it has not answered is for the next one. Under dmu_mutex. */
static void detach(struct dmu_channel *ch)
{
	struct dmu_object *o = ch->o;
	struct dmu_revocation *rv, *next;

	spin_lock_irq(&o->lock);
	o->channel = NULL;
	ch->attached = false;
	dmu_requests_again(o);
	list_for_each_entry(rv, &o->revocations, node)
		rv->id = 0;
	list_for_each_entry_safe(rv, next, &o->revoked, node) {
		list_del(&rv->node);
		kfree(rv);
	}
	spin_unlock_irq(&o->lock);
	queue_work(o->wq, &o->event_work);
	if (!list_empty(&o->channels)) {
		ch = list_first_entry(&o->channels, struct dmu_channel, node);
		list_del_init(&ch->node);
		attach(ch);
		return;
	}
	if (o->policy.timeout)
		mod_delayed_work(o->wq, &o->expire_work, o->policy.timeout * HZ);
	dmu_requests_fail(o);
}

static int take_hello(struct dmu_channel *ch, const struct dmu_hello *h)
{
	struct dmu_object *o;
	int r = 0;

	if (ch->o)
		return -EISCONN;
	if (h->abi != DMU_ABI || (h->features & ~DMU_FEATURES))
		return -EPROTO;
	if (h->pad || (h->flags & ~DMU_HELLO_WAIT) || !memchr(h->key, 0, sizeof(h->key)))
		return -EINVAL;
	mutex_lock(&dmu_mutex);
	o = dmu_object_find(h->key);
	if (!o || o->gone) {	/* what is left of a disk may be of another one than this daemon's */
		r = -ENODEV;
	} else if (o->channel && !(h->flags & DMU_HELLO_WAIT)) {
		r = -EBUSY;
	} else {
		kref_get(&o->kref);
		ch->hello_id = h->head.id;
		ch->features = h->features;
		smp_store_release(&ch->o, o);
		if (o->channel)
			list_add_tail(&ch->node, &o->channels);
		else
			attach(ch);
	}
	mutex_unlock(&dmu_mutex);
	return r;
}

static int take_leave(struct dmu_channel *ch, u64 id)
{
	struct dmu_object *o = ch->o;

	mutex_lock(&dmu_mutex);
	ch->leave_id = id;
	detach(ch);
	spin_lock_irq(&o->lock);
	ch->leaving = true;
	wake_up_interruptible(&ch->wait);
	spin_unlock_irq(&o->lock);
	mutex_unlock(&dmu_mutex);
	return 0;
}

static int take_revoke(struct dmu_object *o, const struct dmu_range *rg)
{
	if (!rg->head.id || !rg->sectors || rg->start + rg->sectors < rg->start)
		return -EINVAL;
	return dmu_revoke(o, rg->head.id, rg->start >> DMU_SECTION_SHIFT,
			  (rg->start + rg->sectors - 1) >> DMU_SECTION_SHIFT);
}

/* ---- records from the daemon ---- */

/* The size that a record of this type has; 0: varies; UINT_MAX: there is no such type. */
static u32 record_size(u32 type)
{
	switch (type) {
	case DMU_HELLO: return sizeof(struct dmu_hello);
	case DMU_SECTION:
	case DMU_DATA: return 0;
	case DMU_BLOCKS: return sizeof(struct dmu_blocks);
	case DMU_RESULT: return sizeof(struct dmu_result);
	case DMU_ACK:
	case DMU_LEAVE: return sizeof(struct dmu_head);
	case DMU_REVOKE: return sizeof(struct dmu_range);
	default: return U32_MAX;
	}
}

static int take_record(struct dmu_channel *ch)
{
	const struct dmu_head *h = ch->in;
	struct dmu_object *o = ch->o;
	int r;

	if (h->type == DMU_HELLO)
		return take_hello(ch, ch->in);
	if (!o || !READ_ONCE(ch->attached))
		return -ENOTCONN;
	if (READ_ONCE(o->dead))
		return -ENODEV;
	switch (h->type) {
	case DMU_SECTION:
		return dmu_take_section(o, ch->in, h->size);
	case DMU_BLOCKS:
		return dmu_take_blocks(o, ch->in);
	case DMU_DATA:
		return dmu_take_data(o, ch->in, h->size);
	case DMU_RESULT:
		return dmu_take_result(o, ch->in);
	case DMU_ACK:
		r = dmu_take_ack(o, h->id);
		if (!r && READ_ONCE(o->gone))
			dmu_object_settle(o);
		return r;
	case DMU_REVOKE:
		return take_revoke(o, ch->in);
	default:
		return take_leave(ch, h->id);
	}
}

/* Takes one record; its size, or -errno and nothing of it was taken. */
static int write_one(struct dmu_channel *ch, struct iov_iter *from)
{
	struct dmu_head *h = ch->in;
	size_t got = iov_iter_count(from);
	u32 size;
	int r;

	if (got < sizeof(*h))
		return -EINVAL;
	if (!copy_from_iter_full(h, sizeof(*h), from))
		return -EFAULT;
	size = record_size(h->type);
	if (h->size < sizeof(*h) || h->size > DMU_RECORD_MAX || h->size % 8 || h->size > got ||
	    size == U32_MAX || (size && size != h->size))
		return -EINVAL;
	if (!copy_from_iter_full(h + 1, h->size - sizeof(*h), from))
		return -EFAULT;
	r = take_record(ch);
	return r ? r : h->size;
}

static ssize_t ctl_write_iter(struct kiocb *iocb, struct iov_iter *from)
{
	struct dmu_channel *ch = iocb->ki_filp->private_data;
	ssize_t done = 0;
	int r = 0;

	if (mutex_lock_interruptible(&ch->write_lock))
		return -ERESTARTSYS;
	while (iov_iter_count(from)) {
		r = write_one(ch, from);
		if (r < 0)
			break;
		done += r;
		cond_resched();
	}
	mutex_unlock(&ch->write_lock);
	return done ? done : r;
}

/* ---- reading ---- */

/* Whether a read would return, with records or otherwise. */
static bool readable(struct dmu_channel *ch)
{
	struct dmu_object *o = smp_load_acquire(&ch->o);
	unsigned long flags;
	bool ret;

	if (!o)
		return true;
	spin_lock_irqsave(&o->lock, flags);
	ret = o->dead || ch->leaving || ch->left || (ch->attached && has_record(ch));
	spin_unlock_irqrestore(&o->lock, flags);
	return ret;
}

/* One record to the reader: its size, 0 when there is none now, or -errno. */
static int read_one(struct dmu_channel *ch, struct iov_iter *to)
{
	struct dmu_object *o = ch->o;
	u32 room = min_t(size_t, iov_iter_count(to), DMU_RECORD_MAX);
	int r = 0;

	spin_lock_irq(&o->lock);
	if (ch->leaving) {
		r = make_head(ch, room, DMU_LEFT, ch->leave_id);
		if (r > 0) {
			ch->leaving = false;
			ch->left = true;
		}
	} else if (ch->attached && !o->dead) {
		r = next_record(ch, room);
	}
	spin_unlock_irq(&o->lock);
	if (r <= 0 || copy_to_iter(ch->out, r, to) == r)
		return r;
	/* Nobody got it: all that is not answered is told again. */
	spin_lock_irq(&o->lock);
	if (ch->attached) {
		dmu_requests_again(o);
		ch->info_due = true;
	}
	spin_unlock_irq(&o->lock);
	return -EFAULT;
}

static ssize_t read_some(struct dmu_channel *ch, struct iov_iter *to)
{
	ssize_t done = 0;
	int r;

	if (mutex_lock_interruptible(&ch->read_lock))
		return -ERESTARTSYS;
	do {
		r = read_one(ch, to);
		if (r > 0)
			done += r;
	} while (r > 0 && iov_iter_count(to));
	mutex_unlock(&ch->read_lock);
	return done ? done : r;
}

static ssize_t ctl_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct dmu_channel *ch = iocb->ki_filp->private_data;
	bool wait = !(iocb->ki_filp->f_flags & O_NONBLOCK) && !(iocb->ki_flags & IOCB_NOWAIT);
	ssize_t r;

	if (!smp_load_acquire(&ch->o))
		return -ENOTCONN;
	for (;;) {
		r = read_some(ch, to);
		if (r)
			return r;
		if (READ_ONCE(ch->left))
			return 0;
		if (READ_ONCE(ch->o->gone))
			dmu_object_settle(ch->o);
		if (READ_ONCE(ch->o->dead))
			return -ENODEV;
		if (!wait)
			return -EAGAIN;
		if (wait_event_interruptible(ch->wait, readable(ch)))
			return -ERESTARTSYS;
	}
}

static __poll_t ctl_poll(struct file *file, poll_table *wait)
{
	struct dmu_channel *ch = file->private_data;
	__poll_t mask = EPOLLOUT | EPOLLWRNORM;

	poll_wait(file, &ch->wait, wait);
	if (!smp_load_acquire(&ch->o))
		return mask;
	if (readable(ch))
		mask |= EPOLLIN | EPOLLRDNORM;
	if (READ_ONCE(ch->o->dead) || READ_ONCE(ch->left))
		mask |= EPOLLHUP;
	return mask;
}

/* ---- opening ---- */

static int ctl_open(struct inode *inode, struct file *file)
{
	struct dmu_channel *ch;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	ch = kzalloc(sizeof(*ch), GFP_KERNEL);
	if (!ch)
		return -ENOMEM;
	ch->in = kmalloc(DMU_RECORD_MAX, GFP_KERNEL);
	ch->out = kmalloc(DMU_RECORD_MAX, GFP_KERNEL);
	if (!ch->in || !ch->out) {
		kfree(ch->in);
		kfree(ch->out);
		kfree(ch);
		return -ENOMEM;
	}
	mutex_init(&ch->read_lock);
	mutex_init(&ch->write_lock);
	INIT_LIST_HEAD(&ch->node);
	init_waitqueue_head(&ch->wait);
	file->private_data = ch;
	return nonseekable_open(inode, file);
}

static int ctl_release(struct inode *inode, struct file *file)
{
	struct dmu_channel *ch = file->private_data;
	struct dmu_object *o = ch->o;

	if (o) {
		mutex_lock(&dmu_mutex);
		list_del_init(&ch->node);
		if (ch->attached)
			detach(ch);
		mutex_unlock(&dmu_mutex);
		kref_put(&o->kref, dmu_object_release);
	}
	kfree(ch->in);
	kfree(ch->out);
	kfree(ch);
	return 0;
}

static const struct file_operations ctl_fops = {
	.owner = THIS_MODULE,
	.open = ctl_open,
	.release = ctl_release,
	.read_iter = ctl_read_iter,
	.write_iter = ctl_write_iter,
	.poll = ctl_poll,
};

static struct miscdevice ctl_node = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = DMU_NODE,
	.mode = 0600,
	.fops = &ctl_fops,
};

int dmu_ctl_init(void)
{
	return misc_register(&ctl_node);
}

void dmu_ctl_exit(void)
{
	misc_deregister(&ctl_node);
}
