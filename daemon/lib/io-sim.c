// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The simulated disk (io-sim.h): a machine of sparse files in memory, a seeded
 * order of completion, faults on demand, a log of changes, and the states that
 * a power cut could leave behind. It models what the page cache and the disk
 * may do with unsynced changes; it does not model timing, and it never touches
 * a real file.
 *
 * Three ideas. A file is a hash of pages that copies share until one of them
 * writes, so that a crash image costs pointers, not data. A change that is not
 * synced may reach the disk at any time, a sector at a time: what a sector
 * holds after a crash is what it held at *some* moment since the last sync, so
 * a crash state is one cut-off time for each sector. And the machine itself
 * never runs out of memory: it is not what is tested, so it does not use
 * cow_zalloc(), whose failures tests inject.
 */
#include "io-sim.h"

#include <errno.h>

#define SIM_PAGE 4096u
#define SIM_SECTOR 512u
#define SIM_FILE_MAX (1ULL << 62)	/* keeps every sum of offsets in range */
#define SIM_SLOTS_MIN 64u
#define SIM_INLINE_CHANCE 8u		/* in async mode one in so many completes at once */
#define SIM_DEV 0x51d0u

/* ---- sparse contents ---- */

struct sim_page {
	unsigned refs;
	uint8_t data[SIM_PAGE];
};

struct sim_slot {
	uint64_t key;		/* page index + 1; 0: free */
	struct sim_page *page;	/* NULL: punched */
};

struct sim_state {
	struct sim_slot *slots;
	size_t cap, used;	/* cap is a power of two, used counts keys */
	uint64_t size;
};

static void *sim_alloc(size_t n, size_t size)
{
	void *p = calloc(n, size);

	cow_assert(p);
	return p;
}

static uint64_t sim_mix(uint64_t v)
{
	v += 0x9e3779b97f4a7c15ULL;
	v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9ULL;
	v = (v ^ (v >> 27)) * 0x94d049bb133111ebULL;
	return v ^ (v >> 31);
}

static void page_put(struct sim_page *p)
{
	if (p && --p->refs == 0)
		free(p);
}

static void state_clear(struct sim_state *st)
{
	for (size_t i = 0; i < st->cap; i++)
		page_put(st->slots[i].page);
	free(st->slots);
	memset(st, 0, sizeof(*st));
}

static struct sim_slot *state_slot(const struct sim_state *st, uint64_t idx)
{
	size_t i = sim_mix(idx) & (st->cap - 1);

	while (st->slots[i].key && st->slots[i].key != idx + 1)
		i = (i + 1) & (st->cap - 1);
	return &st->slots[i];
}

static const struct sim_page *state_page(const struct sim_state *st, uint64_t idx)
{
	return st->cap ? state_slot(st, idx)->page : NULL;
}

static void state_grow(struct sim_state *st)
{
	struct sim_state old = *st;

	st->cap = old.cap ? old.cap * 2 : SIM_SLOTS_MIN;
	st->slots = sim_alloc(st->cap, sizeof(*st->slots));
	st->used = 0;
	for (size_t i = 0; i < old.cap; i++) {
		if (!old.slots[i].page)
			continue;
		*state_slot(st, old.slots[i].key - 1) = old.slots[i];
		st->used++;
	}
	free(old.slots);
}

/* The page at @idx, private to @st. */
static struct sim_page *state_own(struct sim_state *st, uint64_t idx)
{
	struct sim_slot *slot;
	struct sim_page *p;

	if (st->used * 2 >= st->cap)
		state_grow(st);
	slot = state_slot(st, idx);
	if (!slot->key) {
		slot->key = idx + 1;
		st->used++;
	}
	if (slot->page && slot->page->refs == 1)
		return slot->page;
	p = sim_alloc(1, sizeof(*p));
	p->refs = 1;
	if (slot->page)
		memcpy(p->data, slot->page->data, SIM_PAGE);
	page_put(slot->page);
	slot->page = p;
	return p;
}

static void state_copy(struct sim_state *to, const struct sim_state *from)
{
	state_clear(to);
	to->size = from->size;
	to->cap = from->cap;
	to->used = from->used;
	if (!from->cap)
		return;
	to->slots = sim_alloc(from->cap, sizeof(*to->slots));
	memcpy(to->slots, from->slots, from->cap * sizeof(*to->slots));
	for (size_t i = 0; i < to->cap; i++)
		if (to->slots[i].page)
			to->slots[i].page->refs++;
}

static void state_write(struct sim_state *st, uint64_t off, const uint8_t *data, uint64_t len)
{
	while (len) {
		uint64_t in = off % SIM_PAGE, n = cow_min(len, SIM_PAGE - in);

		memcpy(state_own(st, off / SIM_PAGE)->data + in, data, n);
		off += n;
		data += n;
		len -= n;
	}
}

static void state_read(const struct sim_state *st, uint64_t off, uint8_t *data, uint64_t len)
{
	while (len) {
		uint64_t in = off % SIM_PAGE, n = cow_min(len, SIM_PAGE - in);
		const struct sim_page *p = state_page(st, off / SIM_PAGE);

		if (p)
			memcpy(data, p->data + in, n);
		else
			memset(data, 0, n);
		off += n;
		data += n;
		len -= n;
	}
}

static void state_drop_pages(struct sim_state *st, uint64_t first, uint64_t end)
{
	if (end - first > st->cap) {
		for (size_t i = 0; i < st->cap; i++) {
			struct sim_slot *s = &st->slots[i];

			if (s->key > first && s->key <= end) {
				page_put(s->page);
				s->page = NULL;
			}
		}
		return;
	}
	for (uint64_t idx = first; st->cap && idx < end; idx++) {
		struct sim_slot *s = state_slot(st, idx);

		page_put(s->page);
		s->page = NULL;
	}
}

static void state_zero(struct sim_state *st, uint64_t off, uint64_t len)
{
	uint64_t end = off + len;
	uint64_t in = off % SIM_PAGE;

	if (in && len) {
		uint64_t n = cow_min(len, SIM_PAGE - in);

		if (state_page(st, off / SIM_PAGE))
			memset(state_own(st, off / SIM_PAGE)->data + in, 0, n);
		off += n;
	}
	if (off < end && end % SIM_PAGE) {
		if (state_page(st, end / SIM_PAGE))
			memset(state_own(st, end / SIM_PAGE)->data, 0, end % SIM_PAGE);
		end -= end % SIM_PAGE;
	}
	if (off < end)
		state_drop_pages(st, off / SIM_PAGE, end / SIM_PAGE);
}

static void state_resize(struct sim_state *st, uint64_t size)
{
	if (size < st->size)
		state_zero(st, size, st->size - size);
	st->size = size;
}

static uint64_t state_pages(const struct sim_state *st)
{
	uint64_t n = 0;

	for (size_t i = 0; i < st->cap; i++)
		n += st->slots[i].page != NULL;
	return n;
}

/* Index of the first page with data at or behind @idx, UINT64_MAX: none. */
static uint64_t state_next_data(const struct sim_state *st, uint64_t idx)
{
	uint64_t best = UINT64_MAX;

	for (size_t i = 0; i < st->cap; i++)
		if (st->slots[i].page && st->slots[i].key - 1 >= idx)
			best = cow_min(best, st->slots[i].key - 1);
	return best;
}

/* ---- the log ---- */

enum sim_kind { SIM_WRITE, SIM_PUNCH, SIM_RESIZE, SIM_SYNC };

struct sim_entry {
	enum sim_kind kind;
	uint64_t off, len;	/* WRITE, PUNCH; RESIZE: len is the new size */
	uint8_t *data;		/* WRITE */
	uint64_t tag, seq;
	int64_t mtime_ns;	/* of the file behind this entry */
	size_t covers;		/* SYNC: entries before this one became durable */
};

/* A replay of the log that goes on where it was left, as long as positions only rise. */
struct sim_replay {
	struct sim_state st;
	size_t pos;
	bool valid;
};

struct sim_disk {
	struct cow_list node;
	char *name;
	bool blkdev;
	bool nameless;		/* not published, or replaced: goes with its last handle */
	struct sim_state st;
	uint64_t ino;
	int64_t mtime_ns;
	unsigned handles, readers, writers;	/* locks held */

	bool logging;
	struct sim_state start;
	int64_t start_mtime_ns;
	struct sim_entry *log;
	size_t n, cap;
	struct sim_replay prefix, durable;
};

struct cow_sim {
	struct cow_list disks;
	uint64_t rng, clock, tag, seq, next_ino;
	bool async;
	unsigned handles;
	struct cow_sim_fault fault;
	uint64_t counted;
};

/* An open file: what cow_file.sim points at. */
struct sim_handle {
	struct sim_disk *disk;
	struct cow_sim *sim;
	bool reads, writes;	/* locks held through this handle */
};

struct sim_io {
	struct cow_io io;
	struct cow_sim *sim;
	struct cow_list queue;
	unsigned queued;
};

static uint64_t sim_rand(struct cow_sim *s, uint64_t below)
{
	s->rng++;
	return sim_mix(s->rng) % below;
}

static struct sim_disk *sim_find(struct cow_sim *s, const char *name)
{
	struct cow_list *it;

	cow_list_for_each(it, &s->disks) {
		struct sim_disk *d = cow_list_entry(it, struct sim_disk, node);

		if (!d->nameless && !strcmp(d->name, name))
			return d;
	}
	return NULL;
}

static struct sim_disk *sim_need(struct cow_sim *s, const char *name)
{
	struct sim_disk *d = sim_find(s, name);

	cow_assert(d);		/* a test that misspells a name */
	return d;
}

static void log_clear(struct sim_disk *d)
{
	for (size_t i = 0; i < d->n; i++)
		free(d->log[i].data);
	free(d->log);
	d->log = NULL;
	d->n = d->cap = 0;
	state_clear(&d->start);
	state_clear(&d->prefix.st);
	state_clear(&d->durable.st);
	d->prefix.valid = d->durable.valid = false;
}

static void disk_free(struct sim_disk *d)
{
	log_clear(d);
	state_clear(&d->st);
	cow_list_del(&d->node);
	free(d->name);
	free(d);
}

static struct sim_entry *log_add(struct cow_sim *s, struct sim_disk *d, enum sim_kind kind)
{
	struct sim_entry *e;

	if (!d->logging)
		return NULL;
	if (d->n == d->cap) {
		d->cap = d->cap ? d->cap * 2 : 256;
		d->log = realloc(d->log, d->cap * sizeof(*d->log));
		cow_assert(d->log);
	}
	e = &d->log[d->n++];
	memset(e, 0, sizeof(*e));
	e->kind = kind;
	e->mtime_ns = d->mtime_ns;
	e->tag = s->tag;
	e->seq = s->seq++;
	return e;
}

static void disk_touched(struct cow_sim *s, struct sim_disk *d)
{
	d->mtime_ns = (int64_t)++s->clock;
}

static void disk_write(struct cow_sim *s, struct sim_disk *d, uint64_t off, const void *data,
		       uint64_t len)
{
	struct sim_entry *e;

	if (!len)
		return;
	state_write(&d->st, off, data, len);
	d->st.size = cow_max(d->st.size, off + len);
	disk_touched(s, d);
	e = log_add(s, d, SIM_WRITE);
	if (!e)
		return;
	e->off = off;
	e->len = len;
	e->data = sim_alloc(1, len);
	memcpy(e->data, data, len);
}

/* As fallocate(PUNCH_HOLE | KEEP_SIZE): nothing happens behind the end, but that its page can go. */
static void disk_punch(struct cow_sim *s, struct sim_disk *d, uint64_t off, uint64_t len)
{
	struct sim_entry *e;

	if (off >= d->st.size)
		return;
	len = cow_min(len, cow_round_up(d->st.size, SIM_PAGE) - off);
	state_zero(&d->st, off, len);
	disk_touched(s, d);
	e = log_add(s, d, SIM_PUNCH);
	if (e) {
		e->off = off;
		e->len = len;
	}
}

static void disk_resize(struct cow_sim *s, struct sim_disk *d, uint64_t size)
{
	struct sim_entry *e;

	state_resize(&d->st, size);
	disk_touched(s, d);
	e = log_add(s, d, SIM_RESIZE);
	if (e)
		e->len = size;
}

static void disk_sync(struct cow_sim *s, struct sim_disk *d, size_t covers)
{
	struct sim_entry *e = log_add(s, d, SIM_SYNC);

	if (e)
		e->covers = cow_min(covers, d->n - 1);
}

/* ---- faults ---- */

enum sim_verdict { SIM_OK, SIM_SHORT, SIM_FAIL };

/* Counts one operation; @mask is its bit, or 0 for those outside enum cow_io_op. */
static enum sim_verdict sim_count(struct cow_sim *s, unsigned mask)
{
	const struct cow_sim_fault *f = &s->fault;

	if (f->ops && !(f->ops & mask))
		return SIM_OK;
	s->counted++;
	if (!f->nth || s->counted < f->nth || (s->counted > f->nth && !f->persistent))
		return SIM_OK;
	return f->error ? SIM_FAIL : SIM_SHORT;
}

/* For operations that cannot be short. */
static int sim_count_ctl(struct cow_sim *s)
{
	return sim_count(s, 0) == SIM_FAIL ? s->fault.error : 0;
}

/* ---- primitives ---- */

static uint64_t iov_bytes(const struct cow_iocb *cb)
{
	uint64_t n = 0;

	for (int i = 0; i < cb->iovcnt; i++)
		n += cb->iov[i].iov_len;
	return n;
}

/* Moves bytes [from, to) of @cb between its buffers and the disk. */
static void sim_move(struct cow_sim *s, struct sim_disk *d, struct cow_iocb *cb, uint64_t from,
		     uint64_t to)
{
	uint64_t at = 0;

	for (int i = 0; i < cb->iovcnt && at < to; i++) {
		uint64_t len = cb->iov[i].iov_len;
		uint64_t lo = cow_max(from, at), hi = cow_min(to, at + len);
		uint8_t *p = cb->iov[i].iov_base;

		if (lo < hi && cb->op == COW_IO_WRITE)
			disk_write(s, d, cb->off + lo, p + (lo - at), hi - lo);
		else if (lo < hi)
			state_read(&d->st, cb->off + lo, p + (lo - at), hi - lo);
		at += len;
	}
}

/* How many bytes a READ or WRITE can move at all. */
static int64_t sim_room(const struct sim_disk *d, const struct cow_iocb *cb)
{
	uint64_t len = iov_bytes(cb), end;

	if (!cow_add_ok(cb->off, len, &end) || end > SIM_FILE_MAX)
		return -EFBIG;
	if (cb->op == COW_IO_WRITE && !d->blkdev)
		return (int64_t)len;
	if (cb->off >= d->st.size)
		return cb->op == COW_IO_WRITE && len ? -ENOSPC : 0;
	return (int64_t)cow_min(len, d->st.size - cb->off);
}

/* Shortens @n bytes at @off to end between two sectors of the disk. */
static uint64_t whole_sectors(uint64_t off, uint64_t n)
{
	uint64_t end = cow_round_down(off + n, SIM_SECTOR);

	return end > off ? end - off : 0;
}

/*
 * Finishes a READ or WRITE of which cb->tag bytes moved already. A failed write
 * leaves some leading sectors behind, as a disk may.
 */
static ssize_t sim_transfer(struct cow_sim *s, struct sim_disk *d, struct cow_iocb *cb,
			    enum sim_verdict v)
{
	int64_t room = sim_room(d, cb);
	uint64_t done = cb->tag, to, part;

	if (room < 0)
		return room;
	to = (uint64_t)room;
	if (v == SIM_SHORT && to > 1) {
		part = whole_sectors(cb->off, to / 2);
		to = cow_max(done, part ? part : to / 2);
	}
	if (v == SIM_FAIL) {
		to = whole_sectors(cb->off, sim_rand(s, to + 1));
		if (cb->op == COW_IO_WRITE && to > done)
			sim_move(s, d, cb, done, to);
		return s->fault.error;
	}
	if (to > done)
		sim_move(s, d, cb, done, to);
	return (ssize_t)cow_max(to, done);
}

/* Performs @cb (what is left of it) and sets cb->raw. */
static void sim_exec(struct cow_sim *s, struct cow_iocb *cb)
{
	struct sim_handle *h = cb->file->sim;
	struct sim_disk *d = h->disk;
	enum sim_verdict v = sim_count(s, 1u << cb->op);

	if (cb->op != COW_IO_READ && !cb->file->writable) {
		cb->raw = cb->op == COW_IO_SYNC ? 0 : -EBADF;
		return;
	}
	if (cb->op == COW_IO_READ || cb->op == COW_IO_WRITE) {
		cb->raw = sim_transfer(s, d, cb, v);
		return;
	}
	if (v == SIM_FAIL) {
		cb->raw = s->fault.error;
		return;
	}
	if (cb->op == COW_IO_PUNCH)
		disk_punch(s, d, cb->off, cb->len);
	else
		disk_sync(s, d, (size_t)cb->tag);
	cb->raw = 0;
}

static int sim_submit(struct cow_io *io, struct cow_iocb *cb, bool must_finish)
{
	struct sim_io *sio = cow_container_of(io, struct sim_io, io);
	struct cow_sim *s = sio->sim;
	const struct sim_handle *h = cb->file->sim;

	/* A sync covers what was complete when it was asked for, and no more. */
	cb->tag = cb->op == COW_IO_SYNC ? h->disk->n : 0;
	if (!s->async || must_finish || sim_rand(s, SIM_INLINE_CHANCE) == 0) {
		sim_exec(s, cb);
		return 1;
	}
	cow_list_add_tail(&sio->queue, &cb->node);
	sio->queued++;
	return 0;
}

/* Half of the time a queued transfer does only a part, so that neighbours can come in between. */
static bool sim_partial(struct cow_sim *s, struct cow_iocb *cb)
{
	struct sim_handle *h = cb->file->sim;
	uint64_t to;
	int64_t room;

	if ((cb->op != COW_IO_READ && cb->op != COW_IO_WRITE) || sim_rand(s, 2))
		return false;
	if (cb->op == COW_IO_WRITE && !cb->file->writable)
		return false;
	room = sim_room(h->disk, cb);
	if (room <= (int64_t)SIM_SECTOR)
		return false;
	to = cow_round_down(cb->off + sim_rand(s, (uint64_t)room), SIM_SECTOR);
	if (to <= cb->off + cb->tag)
		return false;
	sim_move(s, h->disk, cb, cb->tag, to - cb->off);
	cb->tag = to - cb->off;
	return true;
}

static void sim_poll(struct cow_io *io, bool wait)
{
	struct sim_io *sio = cow_container_of(io, struct sim_io, io);
	struct cow_sim *s = sio->sim;
	uint64_t todo = sim_rand(s, sio->queued + 1ULL);

	if (wait && !todo)
		todo = 1;
	while (todo && sio->queued) {
		uint64_t pick = sim_rand(s, sio->queued);
		struct cow_list *it = sio->queue.next;
		struct cow_iocb *cb;

		while (pick--)
			it = it->next;
		cb = cow_list_entry(it, struct cow_iocb, node);
		if (sim_partial(s, cb))
			continue;
		cow_list_del(it);
		sio->queued--;
		todo--;
		sim_exec(s, cb);
		cow_io_complete(cb);
	}
}

static int sim_init(void *arg, struct cow_io **ret)
{
	struct sim_io *sio = cow_zalloc(sizeof(*sio));

	if (!sio)
		return -ENOMEM;
	sio->io.ops = &cow_io_sim_ops;
	sio->io.arg = arg;
	sio->sim = arg;
	cow_list_init(&sio->queue);
	*ret = &sio->io;
	return 0;
}

static void sim_fini(struct cow_io *io)
{
	struct sim_io *sio = cow_container_of(io, struct sim_io, io);

	cow_assert(cow_list_empty(&sio->queue));
	cow_free(sio);
}

static int sim_fd(struct cow_io *io)
{
	(void)io;
	return -1;
}

/* ---- files ---- */

static struct sim_disk *disk_new(struct cow_sim *s, const char *name, uint64_t size, bool blkdev)
{
	struct sim_disk *d = sim_alloc(1, sizeof(*d));

	d->name = strdup(name);
	cow_assert(d->name);
	d->blkdev = blkdev;
	d->st.size = size;
	d->ino = s->next_ino++;
	disk_touched(s, d);
	cow_list_add_tail(&s->disks, &d->node);
	return d;
}

static void sim_fill(struct cow_file *f)
{
	const struct sim_handle *h = f->sim;
	const struct sim_disk *d = h->disk;

	f->size = d->st.size;
	f->dev = d->blkdev ? SIM_DEV + d->ino : SIM_DEV;
	f->ino = d->blkdev ? 0 : d->ino;
	f->mtime_ns = d->blkdev ? 0 : d->mtime_ns;
}

static int sim_open(struct cow_io *io, const struct cow_open_spec *spec, struct cow_file *ret,
		    struct cow_err *err)
{
	struct cow_sim *s = cow_container_of(io, struct sim_io, io)->sim;
	const char *slash = strrchr(spec->path, '/');
	const char *name = spec->beneath && slash ? slash + 1 : spec->path;
	struct sim_disk *d = sim_find(s, name);
	struct sim_handle *h;
	int r = sim_count_ctl(s);

	if (!r && !spec->create && !d)
		r = -ENOENT;
	if (r)
		return cow_err_sys(err, r, "%s", spec->path);
	*ret = (struct cow_file){ .io = io, .fd = -1, .writable = spec->write };
	h = cow_zalloc(sizeof(*h));
	ret->path = cow_strdup(spec->path);
	if (!h || !ret->path) {
		cow_free(h);
		cow_free(ret->path);
		ret->path = NULL;
		return cow_err_sys(err, -ENOMEM, "%s", spec->path);
	}
	if (spec->create && !(spec->exist_ok && d && d->blkdev)) {
		d = disk_new(s, name, 0, false);
		d->nameless = true;
	}
	h->disk = d;
	h->sim = s;
	d->handles++;
	s->handles++;
	ret->sim = h;
	ret->blkdev = d->blkdev;
	sim_fill(ret);
	return 0;
}

static int sim_publish(struct cow_file *f, bool exist_ok, struct cow_err *err)
{
	struct sim_handle *h = f->sim;
	struct sim_disk *d = h->disk, *old;
	int r = sim_count_ctl(h->sim);

	if (r)
		return cow_err_sys(err, r, "%s", f->path);
	disk_sync(h->sim, d, d->n);
	if (!d->nameless)
		return 0;
	old = sim_find(h->sim, d->name);
	if (old && !exist_ok)
		return cow_err_sys(err, -EEXIST, "%s", f->path);
	if (old && old->handles)
		old->nameless = true;
	else if (old)
		disk_free(old);
	d->nameless = false;
	return 0;
}

static void sim_unlock(struct sim_handle *h)
{
	h->disk->readers -= h->reads;
	h->disk->writers -= h->writes;
	h->reads = h->writes = false;
}

static void sim_close(struct cow_file *f)
{
	struct sim_handle *h = f->sim;

	cow_free(f->path);
	f->path = NULL;
	if (!h)
		return;
	sim_unlock(h);
	h->disk->handles--;
	h->sim->handles--;
	if (h->disk->nameless && !h->disk->handles)
		disk_free(h->disk);
	cow_free(h);
	f->sim = NULL;
}

static int sim_lock(struct cow_file *f, bool write, struct cow_err *err)
{
	struct sim_handle *h = f->sim;
	struct sim_disk *d = h->disk;
	int r = sim_count_ctl(h->sim);

	if (r)
		return cow_err_sys(err, r, "%s: cannot lock", d->name);
	if (d->writers > h->writes || (write && d->readers > h->reads))
		return cow_err_set(err, -EAGAIN, "%s: in use by another process", d->name);
	sim_unlock(h);
	h->reads = !write;
	h->writes = write;
	d->readers += h->reads;
	d->writers += h->writes;
	return 0;
}

static int sim_truncate(struct cow_file *f, uint64_t size)
{
	struct sim_handle *h = f->sim;
	int r = sim_count_ctl(h->sim);

	if (r)
		return r;
	if (!f->writable)
		return -EINVAL;
	if (h->disk->blkdev)
		return size <= h->disk->st.size ? 0 : -ENOSPC;
	if (size > SIM_FILE_MAX)
		return -EFBIG;
	disk_resize(h->sim, h->disk, size);
	f->size = size;
	return 0;
}

static int sim_seek(struct cow_file *f, uint64_t off, bool data, uint64_t *ret)
{
	struct sim_handle *h = f->sim;
	const struct sim_disk *d = h->disk;
	uint64_t idx = off / SIM_PAGE;
	int r = sim_count_ctl(h->sim);

	if (r)
		return r;
	if (d->blkdev)
		return -EOPNOTSUPP;
	if (off >= d->st.size)
		return -ENXIO;
	if (data) {
		idx = state_next_data(&d->st, idx);
		if (idx == UINT64_MAX || idx * SIM_PAGE >= d->st.size)
			return -ENXIO;
	} else {
		while (state_page(&d->st, idx))
			idx++;
	}
	*ret = cow_min(cow_max(idx * SIM_PAGE, off), d->st.size);
	return 0;
}

static int sim_refresh(struct cow_file *f)
{
	struct sim_handle *h = f->sim;
	int r = sim_count_ctl(h->sim);

	if (!r)
		sim_fill(f);
	return r;
}

static uint64_t sim_allocated(struct cow_file *f)
{
	const struct sim_handle *h = f->sim;

	if (h->disk->blkdev)
		return h->disk->st.size;
	return state_pages(&h->disk->st) * SIM_PAGE;
}

const struct cow_io_ops cow_io_sim_ops = {
	.name = "sim",
	.init = sim_init,
	.fini = sim_fini,
	.open = sim_open,
	.close = sim_close,
	.publish = sim_publish,
	.lock = sim_lock,
	.truncate = sim_truncate,
	.seek = sim_seek,
	.refresh = sim_refresh,
	.allocated = sim_allocated,
	.submit = sim_submit,
	.poll = sim_poll,
	.fd = sim_fd,
};

/* ---- the machine ---- */

struct cow_sim *cow_sim_new(uint64_t seed)
{
	struct cow_sim *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	cow_list_init(&s->disks);
	s->rng = sim_mix(seed);
	s->next_ino = 1;
	return s;
}

void cow_sim_free(struct cow_sim *s)
{
	if (!s)
		return;
	cow_assert(!s->handles);	/* a chain that is still open, or a leaked file */
	while (!cow_list_empty(&s->disks))
		disk_free(cow_list_entry(s->disks.next, struct sim_disk, node));
	free(s);
}

unsigned cow_sim_open_files(struct cow_sim *s)
{
	return s->handles;
}

int cow_sim_add(struct cow_sim *s, const char *name, uint64_t size, bool blkdev)
{
	cow_sim_remove(s, name);
	disk_new(s, name, size, blkdev);
	return 0;
}

void cow_sim_remove(struct cow_sim *s, const char *name)
{
	struct sim_disk *d = sim_find(s, name);

	if (!d)
		return;
	cow_assert(!d->handles);
	disk_free(d);
}

void cow_sim_rename(struct cow_sim *s, const char *name, const char *to)
{
	struct sim_disk *d = sim_need(s, name);

	cow_sim_remove(s, to);
	free(d->name);
	d->name = strdup(to);
	cow_assert(d->name);
}

int cow_sim_read(struct cow_sim *s, const char *name, void *buf, size_t len, uint64_t off)
{
	state_read(&sim_need(s, name)->st, off, buf, len);
	return 0;
}

int cow_sim_write(struct cow_sim *s, const char *name, const void *buf, size_t len, uint64_t off)
{
	struct sim_disk *d = sim_need(s, name);
	bool logging = d->logging;

	d->logging = false;
	disk_write(s, d, off, buf, len);
	d->logging = logging;
	return 0;
}

void cow_sim_write_other(struct cow_sim *s, const char *name, const void *buf, size_t len,
			 uint64_t off)
{
	disk_write(s, sim_need(s, name), off, buf, len);
}

uint64_t cow_sim_size(struct cow_sim *s, const char *name)
{
	return sim_need(s, name)->st.size;
}

void cow_sim_set_async(struct cow_sim *s, bool on)
{
	s->async = on;
}

void cow_sim_set_fault(struct cow_sim *s, const struct cow_sim_fault *f)
{
	s->fault = f ? *f : (struct cow_sim_fault){ 0 };
	s->counted = 0;
}

uint64_t cow_sim_op_count(struct cow_sim *s)
{
	return s->counted;
}

void cow_sim_log_start(struct cow_sim *s, const char *name)
{
	struct sim_disk *d = sim_need(s, name);

	log_clear(d);
	state_copy(&d->start, &d->st);
	d->start_mtime_ns = d->mtime_ns;
	d->logging = true;
}

size_t cow_sim_log_len(struct cow_sim *s, const char *name)
{
	return sim_need(s, name)->n;
}

static const struct sim_entry *log_at(struct cow_sim *s, const char *name, size_t i)
{
	struct sim_disk *d = sim_need(s, name);

	cow_assert(i < d->n);
	return &d->log[i];
}

bool cow_sim_log_is_sync(struct cow_sim *s, const char *name, size_t i)
{
	return log_at(s, name, i)->kind == SIM_SYNC;
}

uint64_t cow_sim_log_seq(struct cow_sim *s, const char *name, size_t i)
{
	return log_at(s, name, i)->seq;
}

void cow_sim_set_tag(struct cow_sim *s, uint64_t tag)
{
	s->tag = tag;
}

uint64_t cow_sim_log_tag(struct cow_sim *s, const char *name, size_t i)
{
	return log_at(s, name, i)->tag;
}

/* ---- power cuts ---- */

static void entry_apply(struct sim_state *st, const struct sim_entry *e)
{
	switch (e->kind) {
	case SIM_WRITE:
		state_write(st, e->off, e->data, e->len);
		st->size = cow_max(st->size, e->off + e->len);
		break;
	case SIM_PUNCH:
		state_zero(st, e->off, e->len);
		break;
	case SIM_RESIZE:
		state_resize(st, e->len);
		break;
	case SIM_SYNC:
		break;
	}
}

/* The state after the first @pos entries of @d's log. */
static const struct sim_state *replay_to(const struct sim_disk *d, struct sim_replay *r, size_t pos)
{
	if (!r->valid || r->pos > pos) {
		state_copy(&r->st, &d->start);
		r->pos = 0;
		r->valid = true;
	}
	for (; r->pos < pos; r->pos++)
		entry_apply(&r->st, &d->log[r->pos]);
	return &r->st;
}

static size_t log_durable(const struct sim_disk *d, size_t pos)
{
	size_t best = 0;

	for (size_t i = 0; i < pos; i++)
		if (d->log[i].kind == SIM_SYNC && d->log[i].covers > best)
			best = d->log[i].covers;
	return best;
}

/* How one power cut chooses, for each sector, the last moment that reached the disk. */
struct sim_cut {
	const struct sim_disk *d;
	size_t lo, hi;		/* moments to choose from: [lo, hi] entries of the log applied */
	uint64_t seed;
	unsigned mode;
	uint64_t border;	/* CUT_SPLIT: file offset */
};

enum {
	CUT_SECTORS,	/* each sector by itself */
	CUT_PAGES,	/* each page by itself: how write-back works */
	CUT_ALL_NONE,	/* each sector newest or oldest */
	CUT_LOW_LATE,	/* all of what is below the border (metadata), nothing above */
	CUT_HIGH_LATE,	/* the other way round */
	CUT_TEAR,	/* everything but the last few sectors' newest changes */
	CUT_MODES,
};

static size_t cut_of(const struct sim_cut *c, uint64_t sector)
{
	uint64_t n = c->hi - c->lo + 1;
	uint64_t h = sim_mix(c->seed ^ sim_mix(sector));
	bool low = sector * SIM_SECTOR < c->border;

	switch (c->mode) {
	case CUT_SECTORS:
		return c->lo + h % n;
	case CUT_PAGES:
		return c->lo + sim_mix(c->seed ^ sim_mix(sector / (SIM_PAGE / SIM_SECTOR))) % n;
	case CUT_ALL_NONE:
		return h & 1 ? c->hi : c->lo;
	case CUT_LOW_LATE:
		return low ? c->hi : c->lo;
	case CUT_HIGH_LATE:
		return low ? c->lo : c->hi;
	default:
		return h % 8 ? c->hi : c->lo + h / 8 % n;
	}
}

/* Applies entry number @i to those sectors that still took it. */
static void cut_apply(const struct sim_cut *c, struct sim_state *st, size_t i)
{
	const struct sim_entry *e = &c->d->log[i];
	uint64_t off = e->off, end = e->off + e->len;

	while (off < end) {
		uint64_t sector = off / SIM_SECTOR;
		uint64_t n = cow_min(end - off, (sector + 1) * SIM_SECTOR - off);

		if (cut_of(c, sector) > i) {
			if (e->kind == SIM_WRITE)
				state_write(st, off, e->data + (off - e->off), n);
			else
				state_zero(st, off, n);
		}
		off += n;
	}
}

/*
 * Sizes have a moment of their own, and a file system orders them: if the size
 * is of a moment behind a shrink, what the shrink cut off is gone.
 */
static void cut_build(const struct sim_cut *c, struct sim_state *st, size_t when)
{
	uint64_t size = st->size;

	for (size_t i = c->lo; i < c->hi; i++) {
		const struct sim_entry *e = &c->d->log[i];

		if (e->kind == SIM_WRITE || e->kind == SIM_PUNCH) {
			cut_apply(c, st, i);
			if (e->kind == SIM_WRITE && i < when)
				size = cow_max(size, e->off + e->len);
		} else if (e->kind == SIM_RESIZE && i < when) {
			if (e->len < size)
				state_zero(st, e->len, SIM_FILE_MAX - e->len);
			size = e->len;
		}
	}
	if (c->d->blkdev)
		return;
	state_zero(st, size, SIM_FILE_MAX - size);
	st->size = size;
}

int cow_sim_crash(struct cow_sim *s, const char *name, size_t pos, enum cow_sim_crash how,
		  uint64_t seed, struct cow_sim *to, const char *as)
{
	struct sim_disk *d = sim_need(s, name), *n;
	size_t lo = log_durable(d, pos);
	struct sim_cut cut = { .d = d, .lo = lo, .hi = pos, .seed = sim_mix(seed) };
	size_t when = pos;	/* moment of size and time */

	cow_assert(d->logging && pos <= d->n && strcmp(name, as));
	cow_sim_add(to, as, 0, d->blkdev);
	n = sim_need(to, as);
	if (how == COW_SIM_PREFIX) {
		state_copy(&n->st, replay_to(d, &d->prefix, pos));
	} else {
		when = lo;
		state_copy(&n->st, replay_to(d, &d->durable, lo));
	}
	if (how == COW_SIM_RANDOM && lo < pos) {
		when = lo + sim_mix(cut.seed ^ 0x517e) % (pos - lo + 1);
		cut.mode = (unsigned)(cut.seed % CUT_MODES);
		cut.border = d->log[lo + cut.seed / CUT_MODES % (pos - lo)].off;
		cut_build(&cut, &n->st, when);
	}
	n->mtime_ns = when ? d->log[when - 1].mtime_ns : d->start_mtime_ns;
	return 0;
}
