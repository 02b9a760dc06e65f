// SPDX-License-Identifier: GPL-2.0
/*
 * The device-mapper target "userspace": its table line, status, messages and
 * suspension. Where bios go is in dmu-map.c; the conversation with the daemon is in
 * dmu-ctl.c. See dm-userspace.rst.
 *
 *	START LEN userspace KEY BLOCK [FEATURE...] DEV...
 */
#include "dmu.h"

#include <linux/ctype.h>
#include <linux/module.h>

/* ---- table line ---- */

enum {
	GIVEN_ERROR, GIVEN_TIMEOUT, GIVEN_CACHE, GIVEN_GRANULE, GIVEN_WRITABLE, GIVEN_READ_ONLY,
	GIVEN_COUNT
};

static const char * const feature_names[GIVEN_COUNT] = {
	[GIVEN_ERROR] = "error_if_no_daemon",
	[GIVEN_TIMEOUT] = "no_daemon_timeout:",
	[GIVEN_CACHE] = "cache_bytes:",
	[GIVEN_GRANULE] = "granule:",
	[GIVEN_WRITABLE] = "writable:",
	[GIVEN_READ_ONLY] = "read_only",
};

static u64 feature_value(const struct dmu_target *t, unsigned int f)
{
	switch (f) {
	case GIVEN_TIMEOUT: return t->policy.timeout;
	case GIVEN_CACHE: return t->policy.cache_bytes;
	case GIVEN_GRANULE: return t->granule;
	default: return t->writable_devs;
	}
}

static int set_feature(struct dmu_target *t, unsigned int f, u64 value)
{
	switch (f) {
	case GIVEN_ERROR:
		t->policy.error_if_no_daemon = true;
		return 0;
	case GIVEN_READ_ONLY:
		t->policy.read_only = true;
		return 0;
	case GIVEN_TIMEOUT:
		t->policy.timeout = value;
		return value > DMU_TIMEOUT_MAX ? -EINVAL : 0;
	case GIVEN_CACHE:
		t->policy.cache_bytes = value;
		return 0;
	case GIVEN_GRANULE:
		t->granule = value;
		return value < SECTOR_SIZE << DMU_GRANULE_SHIFT_MIN || value > t->block ||
		       !is_power_of_2(value) ? -EINVAL : 0;
	default:
		t->writable_devs = value;
		return value > DMU_DEVICES_MAX ? -EINVAL : 0;
	}
}

static int parse_feature(struct dmu_target *t, const char *word)
{
	unsigned int f;
	size_t n;
	u64 value = 0;

	for (f = 0; f < GIVEN_COUNT; f++) {
		n = strlen(feature_names[f]);
		if (feature_names[f][n - 1] == ':') {
			if (strncmp(word, feature_names[f], n))
				continue;
			if (!isdigit(word[n]) || kstrtou64(word + n, 10, &value))
				return -EINVAL;
		} else if (strcmp(word, feature_names[f])) {
			continue;
		}
		if (t->given & (1u << f))
			return -EINVAL;
		t->given |= 1u << f;
		return set_feature(t, f, value);
	}
	return -EINVAL;
}

static int parse_key(struct dmu_target *t, const char *key)
{
	const char *c;

	for (c = key; *c; c++)
		if (!isgraph(*c) || !isascii(*c))
			return -EINVAL;
	return c == key || strscpy(t->key, key, sizeof(t->key)) < 0 ? -EINVAL : 0;
}

/* Opens a device: for writing where the table allows it and the device, too. */
static int open_device(struct dmu_target *t, const char *path)
{
	u32 i = t->devs;
	dmu_mode_t mode = dm_table_get_mode(t->ti->table);
	struct dmu_bottom *b = &t->bottom[i];
	int r;

	b->writable = (mode & DMU_MODE_WRITE) && !t->policy.read_only && i < t->writable_devs;
	if (!b->writable)
		mode &= ~DMU_MODE_WRITE;
	r = dm_get_device(t->ti, path, mode, &t->dev[i]);
	if (b->writable && (r == -EACCES || r == -EROFS || r == -EPERM)) {
		b->writable = false;
		r = dm_get_device(t->ti, path, mode & ~DMU_MODE_WRITE, &t->dev[i]);
	}
	if (r)
		return r;
	t->devs++;
	t->bdev[i] = t->dev[i]->bdev;
	b->dev = t->bdev[i]->bd_dev;
	b->diskseq = t->bdev[i]->bd_disk->diskseq;
	b->sectors = bdev_nr_sectors(t->bdev[i]);
	b->align = bdev_logical_block_size(t->bdev[i]) >> SECTOR_SHIFT;
	if (b->writable)
		t->flush_dev[t->flush_devs++] = i;
	return 0;
}

static int parse_table(struct dmu_target *t, unsigned int argc, char **argv)
{
	struct dm_target *ti = t->ti;
	unsigned int i;
	int r;

	if (argc < 3) {
		ti->error = "Usage: KEY BLOCK_BYTES [FEATURE...] DEVICE...";
		return -EINVAL;
	}
	if (parse_key(t, argv[0])) {
		ti->error = "The key must be 1 to 127 printable characters";
		return -EINVAL;
	}
	if (!isdigit(argv[1][0]) || kstrtou32(argv[1], 10, &t->block) || !is_power_of_2(t->block) ||
	    t->block < SECTOR_SIZE << DMU_GRANULE_SHIFT_MIN ||
	    t->block > SECTOR_SIZE << DMU_SECTION_SHIFT) {
		ti->error = "The block size must be a power of two, 4096 to 33554432";
		return -EINVAL;
	}
	for (i = 2; i < argc && isalpha(argv[i][0]); i++)
		if (parse_feature(t, argv[i])) {
			ti->error = "Unknown feature, or a bad value";
			return -EINVAL;
		}
	if (i == argc || argc - i > DMU_DEVICES_MAX) {
		ti->error = "1 to 64 devices are needed";
		return -EINVAL;
	}
	for (; i < argc; i++) {
		r = open_device(t, argv[i]);
		if (r) {
			ti->error = "Cannot open a device";
			return r;
		}
	}
	return 0;
}

static void target_free(struct dmu_target *t)
{
	while (t->devs)
		dm_put_device(t->ti, t->dev[--t->devs]);
	kfree(t);
}

static int dmu_ctr(struct dm_target *ti, unsigned int argc, char **argv)
{
	struct dmu_target *t = kzalloc(sizeof(*t), GFP_KERNEL);
	int r;

	if (!t) {
		ti->error = "Cannot allocate the target";
		return -ENOMEM;
	}
	t->ti = ti;
	t->writable_devs = DMU_DEVICES_MAX;
	r = parse_table(t, argc, argv);
	if (r)
		goto bad;
	t->policy.read_only |= !(dm_table_get_mode(ti->table) & DMU_MODE_WRITE);
	t->writable = !t->policy.read_only;
	t->o = dmu_object_get(t, &ti->error);
	if (IS_ERR(t->o)) {
		r = PTR_ERR(t->o);
		goto bad;
	}
	ti->num_flush_bios = t->flush_devs;
	ti->flush_supported = true;
	ti->num_discard_bios = 1;
	ti->discards_supported = true;
	ti->num_write_zeroes_bios = 1;
	ti->limit_swap_bios = true;
	ti->per_io_data_size = sizeof(struct dmu_io);
	ti->private = t;
	return 0;
bad:
	target_free(t);
	return r;
}

static void dmu_dtr(struct dm_target *ti)
{
	struct dmu_target *t = ti->private;

	dmu_object_put_target(t);
	target_free(t);
}

/* ---- suspension ---- */

static void dmu_presuspend(struct dm_target *ti)
{
	struct dmu_target *t = ti->private;

	/* Without flushing: the core takes back all that waits; otherwise the daemon answers it. */
	if (dm_noflush_suspending(ti))
		dmu_requeue_target(t);
}

static void resume_waiting(struct dm_target *ti)
{
	struct dmu_target *t = ti->private;

	WRITE_ONCE(t->requeue, false);
}

/* The table becomes the live one: its length, devices' sizes and policy hold from now on. */
static int dmu_preresume(struct dm_target *ti)
{
	struct dmu_target *t = ti->private;
	struct dmu_object *o = t->o;
	sector_t old;
	u32 i;
	int r = 0;

	WRITE_ONCE(t->requeue, false);
	spin_lock_irq(&o->lock);
	old = o->sectors;
	o->sectors = ti->len;
	for (i = 0; i < o->bottoms; i++)	/* they may have grown, too */
		o->bottom[i].sectors = t->bottom[i].sectors;
	if (o->channel && (old != ti->len || o->policy.read_only != t->policy.read_only)) {
		o->channel->changed_due = true;
		dmu_kick(o);
	}
	o->policy = t->policy;
	if (!o->channel && o->policy.timeout && !o->expired)
		mod_delayed_work(o->wq, &o->expire_work, o->policy.timeout * HZ);
	spin_unlock_irq(&o->lock);
	/* A section at the end has another length now, and some may not be there any more. */
	if (old != ti->len)
		r = dmu_revoke(o, 0, min_t(u64, old, ti->len) >> DMU_SECTION_SHIFT, ULONG_MAX);
	dmu_requests_fail(o);
	return r;
}

/* ---- status and messages ---- */

static void emit_table(struct dmu_target *t, char *result, unsigned int maxlen, size_t sz)
{
	unsigned int i;

	DMEMIT("%s %u", t->key, t->block);
	for (i = 0; i < GIVEN_COUNT; i++) {
		const char *name = feature_names[i];

		if (!(t->given & (1u << i)))
			continue;
		DMEMIT(" %s", name);
		if (name[strlen(name) - 1] == ':')
			DMEMIT("%llu", feature_value(t, i));
	}
	for (i = 0; i < t->devs; i++)
		DMEMIT(" %s", t->dev[i]->name);
}

static void emit_ima(struct dmu_target *t, char *result, unsigned int maxlen)
{
	size_t sz = 0;
	unsigned int i;

	DMEMIT_TARGET_NAME_VERSION(t->ti->type);
	DMEMIT(",key=%s,block=%u,read_only=%c", t->key, t->block, t->policy.read_only ? 'y' : 'n');
	for (i = 0; i < t->devs; i++)
		DMEMIT(",device_%u=%s", i, t->dev[i]->name);
	DMEMIT(";");
}

static void dmu_status_text(struct dm_target *ti, status_type_t type, unsigned int flags,
			    char *result, unsigned int maxlen)
{
	struct dmu_target *t = ti->private;
	struct dmu_object *o = t->o;
	u64 hits = dmu_hits(o), misses, places, bytes, epoch;
	bool attached, uncommitted;
	size_t sz = 0;
	u32 pending;

	switch (type) {
	case STATUSTYPE_INFO:
		spin_lock_irq(&o->lock);
		misses = o->misses;
		places = o->places;
		bytes = o->bytes;
		epoch = o->epoch;
		attached = o->channel;
		uncommitted = dmu_uncommitted(o);
		pending = o->pending;
		spin_unlock_irq(&o->lock);
		DMEMIT("%s %s %s %llu %llu %llu %llu %u %u %llu", t->key,
		       o->failed ? "fail" : t->writable ? "rw" : "ro",
		       attached ? "attached" : "none", hits, misses, places, bytes, pending,
		       uncommitted, epoch);
		break;
	case STATUSTYPE_TABLE:
		emit_table(t, result, maxlen, sz);
		break;
	case STATUSTYPE_IMA:
		emit_ima(t, result, maxlen);
		break;
	}
}

static int dmu_message(struct dm_target *ti, unsigned int argc, char **argv, char *result,
		       unsigned int maxlen)
{
	struct dmu_target *t = ti->private;
	struct dmu_object *o = t->o;
	u32 seconds;

	if (argc == 1 && !strcmp(argv[0], "invalidate")) {
		dmu_evict(o, U64_MAX, true);
		return 0;
	}
	if (argc == 2 && !strcmp(argv[0], "no_daemon_timeout")) {
		if (!isdigit(argv[1][0]) || kstrtou32(argv[1], 10, &seconds) ||
		    seconds > DMU_TIMEOUT_MAX)
			return -EINVAL;
		spin_lock_irq(&o->lock);
		t->policy.timeout = seconds;	/* for when it is resumed */
		o->policy.timeout = seconds;
		o->expired = false;
		if (!o->channel && seconds)
			mod_delayed_work(o->wq, &o->expire_work, seconds * HZ);
		spin_unlock_irq(&o->lock);
		return 0;
	}
	DMERR("%s: unknown message", t->key);
	return -EINVAL;
}

/* ---- devices ---- */

static int dmu_iterate_devices(struct dm_target *ti, iterate_devices_callout_fn fn, void *data)
{
	struct dmu_target *t = ti->private;
	int r = 0;
	u32 i;

	for (i = 0; !r && i < t->devs; i++)
		r = fn(ti, t->dev[i], 0, t->bottom[i].sectors, data);
	return r;
}

/*
 * The core does not cut discarding and zeroing at max_io_len: the block layer is
 * told to. Those that cross a section nevertheless are walked in pieces.
 */
static void dmu_io_hints(struct dm_target *ti, struct queue_limits *limits)
{
	struct dmu_target *t = ti->private;

	limits->discard_granularity = t->granule ? t->granule : t->block;
	limits->discard_alignment = 0;
	limits->max_discard_sectors = DMU_SECTION_SECTORS;
	limits->max_hw_discard_sectors = DMU_SECTION_SECTORS;
	limits->max_write_zeroes_sectors = DMU_SECTION_SECTORS;
#ifdef DMU_HAVE_WZEROES_UNMAP
	limits->max_hw_wzeroes_unmap_sectors = 0;
#endif
}

static struct target_type dmu_target_type = {
	.name = "userspace",
	.version = { 1, 0, 0 },
	.module = THIS_MODULE,
	.ctr = dmu_ctr,
	.dtr = dmu_dtr,
	.map = dmu_map,
	.end_io = dmu_end_io,
	.presuspend = dmu_presuspend,
	.presuspend_undo = resume_waiting,
	.postsuspend = resume_waiting,
	.preresume = dmu_preresume,
	.status = dmu_status_text,
	.message = dmu_message,
	.iterate_devices = dmu_iterate_devices,
	.io_hints = dmu_io_hints,
};

static int __init dmu_init(void)
{
	int r = dmu_shrinker_init();

	if (r)
		return r;
	r = dmu_ctl_init();
	if (r)
		goto bad_ctl;
	r = dm_register_target(&dmu_target_type);
	if (r < 0)
		goto bad_target;
	return 0;
bad_target:
	dmu_ctl_exit();
bad_ctl:
	dmu_shrinker_exit();
	return r;
}

static void __exit dmu_exit(void)
{
	dm_unregister_target(&dmu_target_type);
	dmu_ctl_exit();
	dmu_objects_free();
	dmu_shrinker_exit();
	rcu_barrier();	/* freed sections */
}

module_init(dmu_init);
module_exit(dmu_exit);

MODULE_DESCRIPTION(DM_NAME " target whose mapping a daemon answers for");
MODULE_AUTHOR("The cowd developers");
MODULE_LICENSE("GPL");
