// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Records of the kernel target "userspace", see dmstream.h.
 *
 *	DMU_ASK		answered at once from metadata (mapreq.c). Kept, and tried again,
 *			while a ragged granule is copied up, a place is made (dmfetch.c),
 *			memory is short, or the device is being resized
 *	DMU_WRITTEN	a COW_OP_WRITTEN for each run of bits, one after the other; then DMU_ACK
 *	DMU_CHANGE	a COW_OP_ZERO or COW_OP_DISCARD, once what was written before it is
 *			recorded; then DMU_RESULT
 *	DMU_COMMIT	a COW_OP_FLUSH, once all that came before it is done; then DMU_RESULT
 *
 * The last three are jobs, in one list in order of arrival, which is how a
 * commit or a change knows what came before it. When all jobs are in use, or all places for
 * questions that wait, nothing more is read: nothing is allocated here while it runs.
 *
 * What was written and could not be recorded is never acknowledged, and from
 * then on no commit succeeds: the kernel is the one who has it, and it knows.
 */
#include "dmstream.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "cow/log.h"
#include "dmfetch.h"

#define JOBS 64u
#define ASKS 128u		/* that wait */
#define READ_BYTES (4u * DMU_RECORD_MAX)
/* Of our own requests, so that their answers can be told apart. */
enum { HELLO_ID = 1, REVOKE_HELD, REVOKE_FORGET };

#define RETRY_MS 10		/* after the kernel had no memory for an answer */

struct job {
	struct cow_list node;		/* dmstream.free_jobs, or .jobs */
	struct dmstream *s;
	struct cow_req req;
	uint32_t type;			/* DMU_WRITTEN, DMU_CHANGE, DMU_COMMIT */
	uint64_t id;
	bool submitted;			/* COMMIT, CHANGE: its request is under way */
	bool running, waiting;		/* WRITTEN: in written_drive(); its request is in flight */
	int error;
	/* WRITTEN: */
	uint64_t start;			/* byte of the first bit */
	uint64_t granule;
	uint32_t at, count;		/* bits done; bits */
	uint8_t bits[DMU_BITS_BYTES_MAX];
	uint32_t place;			/* with map->blocks: that of the next bit that is set */
	uint64_t places[DMU_PLACES_MAX];
};

struct ask {
	struct cow_list node;		/* dmstream.free_asks, .asks or .fetched */
	struct dmu_ask rec;
};

/* Granules of one section that are copied to the top image, because no plane can show them. */
struct ragged {
	bool running;			/* from the answer that found them to the last one's end */
	bool driving, waiting;		/* in ragged_drive(); its request is in flight */
	int error;
	uint64_t start;			/* byte of the section */
	uint32_t at;			/* granule under way */
	uint8_t bits[DMU_BITS_BYTES_MAX];
	struct cow_req req;
};

struct dmstream {
	struct dmstream_cfg cfg;
	int fd;
	struct cow_source *src, *retry;
	struct mapreq_answer answer;
	struct job *job_mem;
	struct cow_list free_jobs, jobs;
	struct ask *ask_mem;
	struct cow_list free_asks, asks, fetched;
	struct dmfetch *fetch;		/* NULL: not needed */
	bool asking, ask_again;
	struct ragged ragged;
	uint8_t *in;			/* READ_BYTES, of which [in_at, in_len) is not worked on yet */
	size_t in_at, in_len;
	bool pumping, ended, choked;
	int broken;			/* why no commit can succeed any more */
	bool held;
	uint64_t hold_from;		/* sector */
	bool revoking;			/* what is held, is being forgotten */
	void (*hold_done)(void *opaque);
	void *hold_opaque;
	struct dmstream_stats st;
};

static void pump(struct dmstream *s);

/* ---- to the kernel ---- */

/* The kernel takes a record or says why not. 0 or -errno. */
static int send_record(struct dmstream *s, const void *rec, size_t size)
{
	struct pollfd p = { .fd = s->fd, .events = POLLOUT };
	ssize_t n;

	do {
		n = write(s->fd, rec, size);
	} while (n < 0 && (errno == EINTR || (errno == EAGAIN && poll(&p, 1, -1) >= 0)));
	if (n < 0)
		return -errno;
	return (size_t)n == size ? 0 : -EPROTO;
}

/* -ENOENT: nobody waits for it any more. Anything else must not be. */
static void send_or_log(struct dmstream *s, const void *rec, size_t size)
{
	int rc = send_record(s, rec, size);

	if (rc && rc != -ENOENT)
		cow_log_limited(COW_LOG_ERR, "%s: the kernel refuses a record of type %u: %s",
				cow_dev_name(s->cfg.dev), ((const struct dmu_head *)rec)->type,
				strerror(-rc));
}

static void send_result(struct dmstream *s, uint64_t id, int error)
{
	struct dmu_result r = {
		.head = { .type = DMU_RESULT, .size = sizeof(r), .id = id }, .error = error,
	};

	send_or_log(s, &r, sizeof(r));
}

static void send_ack(struct dmstream *s, uint64_t id)
{
	struct dmu_head h = { .type = DMU_ACK, .size = sizeof(h), .id = id };

	send_or_log(s, &h, sizeof(h));
}

/* ---- questions ---- */

static bool must_hold(const struct dmstream *s, uint64_t start)
{
	return s->held && cow_round_down(start, DMU_SECTION_SECTORS) + DMU_SECTION_SECTORS >
	       s->hold_from;
}

static void on_retry(void *opaque, uint32_t events);

static void retry_later(struct dmstream *s)
{
	if (!s->retry)
		s->retry = cow_loop_timer(s->cfg.loop, RETRY_MS, false, on_retry, s);
	/* Without memory for a timer, the next thing that happens tries again. */
}

/* The kernel knows another layout of the section that begins at @start. */
static void forget(struct dmstream *s, uint64_t start)
{
	struct dmu_range r = {
		.head = { .type = DMU_REVOKE, .size = sizeof(r), .id = REVOKE_FORGET },
		.start = start, .sectors = DMU_SECTION_SECTORS,
	};

	send_or_log(s, &r, sizeof(r));
}

/* The caller queues the question, then calls ragged_drive(). */
static void ragged_init(struct dmstream *s, uint64_t start)
{
	struct ragged *r = &s->ragged;

	r->running = true;
	r->error = 0;
	r->start = start * MAPREQ_SECTOR;
	r->at = 0;
	memcpy(r->bits, s->answer.ragged_bits, sizeof(r->bits));
}

/* What the chain as it is now does not permit at all. */
static int refused(const struct dmstream *s, const struct dmu_ask *a)
{
	struct cow_chain *c = cow_dev_chain(s->cfg.dev);

	if (cow_chain_mode(c) == COW_MODE_FAIL)
		return -EIO;
	if (a->op == DMU_OP_READ)
		return 0;
	if (cow_dev_readonly(s->cfg.dev))
		return -EROFS;
	return cow_chain_mode(c) == COW_MODE_RW ? 0 : -EIO;
}

/* What became of a question. */
enum asked {
	ANSWERED,
	WAITS,			/* to be tried again */
	FETCHED,		/* on_fetched() goes on */
};

/* The kernel cannot keep it just now: the answer has to be given again. */
static bool refuses(int rc)
{
	return rc == -EEXIST || rc == -EBUSY || rc == -ENOMEM;
}

static enum asked answer_section(struct dmstream *s, const struct dmu_ask *a, int *ret)
{
	uint64_t start = cow_round_down(a->start, DMU_SECTION_SECTORS);
	struct mapreq_answer *ans = &s->answer;

	*ret = mapreq_section(s->cfg.map, start, ans);
	if (*ret)
		return ANSWERED;
	if (ans->ragged) {
		ragged_init(s, start);
		return WAITS;
	}
	/* Who cannot record new granules does not let any be made. */
	if (cow_chain_mode(cow_dev_chain(s->cfg.dev)) != COW_MODE_RW)
		ans->record.section.flags = 0;
	ans->record.section.head.id = a->head.id;
	*ret = send_record(s, ans->record.bytes, ans->size);
	if (*ret == -EEXIST)
		forget(s, start);
	return ANSWERED;
}

/* @a stays where it is until on_fetched(). */
static enum asked answer_blocks(struct dmstream *s, struct ask *a, int *ret)
{
	struct mapreq_answer *ans = &s->answer;
	int rc = mapreq_blocks(s->cfg.map, &a->rec, ans);

	if (rc == MAPREQ_GROW) {
		rc = s->cfg.grow(s->cfg.opaque, ans->grow);
		if (!rc)
			rc = mapreq_blocks(s->cfg.map, &a->rec, ans);
		if (rc == MAPREQ_GROW)
			rc = -EIO;
	}
	*ret = 0;
	if (rc == MAPREQ_DATA)
		return dmfetch_data(s->fetch, &a->rec, a) ? FETCHED : WAITS;
	if (rc == MAPREQ_PRESENT || rc == MAPREQ_PLACE)
		return dmfetch_make(s->fetch, rc == MAPREQ_PLACE ? COW_OP_PLACE : COW_OP_PRESENT, &a->rec,
				    ans->sectors, a) ? FETCHED : WAITS;
	*ret = rc ? rc : send_record(s, ans->record.bytes, ans->size);
	return ANSWERED;
}

static void refuse_ask(struct dmstream *s, const struct dmu_ask *a, int error)
{
	cow_log_limited(COW_LOG_ERR, "%s: question about sector %llu: %s", cow_dev_name(s->cfg.dev),
			(unsigned long long)a->start, strerror(-error));
	send_result(s, a->head.id, error);
}

/* Is a place being made for some of what @a asks for? It must not get another one meanwhile. */
static bool being_made(struct dmstream *s, const struct ask *a)
{
	struct cow_list *n;

	cow_list_for_each(n, &s->fetched) {
		const struct ask *other = cow_list_entry(n, struct ask, node);

		if (other != a && a->rec.op != DMU_OP_READ && other->rec.op != DMU_OP_READ &&
		    a->rec.start < other->rec.start + other->rec.sectors &&
		    other->rec.start < a->rec.start + a->rec.sectors)
			return true;
	}
	return false;
}

static enum asked answer(struct dmstream *s, struct ask *a)
{
	enum asked how = ANSWERED;
	int rc;

	if (must_hold(s, a->rec.start) || s->ragged.running || being_made(s, a))
		return WAITS;
	rc = refused(s, &a->rec);
	if (!rc)
		how = s->cfg.map->blocks ? answer_blocks(s, a, &rc) : answer_section(s, &a->rec, &rc);
	if (how != ANSWERED)
		return how;
	if (refuses(rc)) {
		retry_later(s);
		return WAITS;
	}
	s->st.told += rc == 0;
	if (rc && rc != -ENOENT)
		refuse_ask(s, &a->rec, rc);
	return ANSWERED;
}

/* Answers @a, which is in no list, or puts it where it waits. */
static void settle(struct dmstream *s, struct ask *a)
{
	struct cow_list *to = &s->free_asks;
	enum asked how;

	cow_list_add_tail(&s->fetched, &a->node);	/* before: what is fetched may be there at once */
	how = answer(s, a);
	if (how == FETCHED)
		return;
	if (how == WAITS)
		to = &s->asks;
	cow_list_del(&a->node);
	cow_list_add_tail(to, &a->node);
}

static void asks_again(struct dmstream *s);

static void on_fetched(void *opaque, void *ask, int result, const struct dmu_data *data)
{
	struct dmstream *s = opaque;
	struct ask *a = ask;

	s->st.made += !result && !data;
	s->st.sent += !result && data;
	if (result)
		refuse_ask(s, &a->rec, result);
	else if (data)
		send_or_log(s, data, data->head.size);
	cow_list_del(&a->node);
	cow_list_add_tail(result || data ? &s->free_asks : &s->asks, &a->node);
	asks_again(s);
}

static void ragged_drive(struct dmstream *s);

/* All that wait, once more. */
static void asks_again(struct dmstream *s)
{
	struct cow_list todo;

	s->ask_again = true;
	if (s->asking)
		return;
	s->asking = true;
	while (s->ask_again) {
		s->ask_again = false;
		cow_list_init(&todo);
		cow_list_splice(&s->asks, &todo);
		while (!cow_list_empty(&todo)) {
			struct ask *a = cow_list_entry(todo.next, struct ask, node);

			cow_list_del(&a->node);
			settle(s, a);
		}
		ragged_drive(s);
	}
	s->asking = false;
	pump(s);
}

static void on_retry(void *opaque, uint32_t events)
{
	struct dmstream *s = opaque;

	(void)events;
	cow_source_free(s->retry);
	s->retry = NULL;
	asks_again(s);
}

/* ---- ragged granules ---- */

static void ragged_end(struct dmstream *s)
{
	struct ragged *r = &s->ragged;
	struct cow_list *n, *tmp;

	r->running = false;
	cow_list_for_each_safe(n, tmp, &s->asks) {
		struct ask *a = cow_list_entry(n, struct ask, node);

		if (!r->error || cow_round_down(a->rec.start, DMU_SECTION_SECTORS) !=
		    r->start / MAPREQ_SECTOR)
			continue;
		send_result(s, a->rec.head.id, r->error);
		cow_list_del(&a->node);
		cow_list_add_tail(&s->free_asks, &a->node);
	}
	asks_again(s);
}

static void ragged_done(struct cow_req *req, int result)
{
	struct dmstream *s = req->opaque;
	struct ragged *r = &s->ragged;

	r->waiting = false;
	if (result) {
		r->error = result;
	} else {
		s->st.ragged++;
		r->at++;
	}
	ragged_drive(s);
}

static void ragged_submit(struct dmstream *s)
{
	struct ragged *r = &s->ragged;
	uint64_t granule = (uint64_t)MAPREQ_SECTOR << s->cfg.map->granule_shift;
	uint64_t virt = r->start + r->at * granule;

	r->waiting = true;
	r->req = (struct cow_req){
		.op = COW_OP_PRESENT, .virt = virt,
		.len = cow_min(granule, cow_dev_size(s->cfg.dev) - virt),
		.done = ragged_done, .opaque = s,
	};
	cow_dev_submit(s->cfg.dev, &r->req);
}

/* One granule after the other, until something has to be waited for. */
static void ragged_drive(struct dmstream *s)
{
	struct ragged *r = &s->ragged;

	if (!r->running || r->driving)
		return;
	r->driving = true;
	while (!r->waiting && !r->error) {
		while (r->at < DMU_BITS_BYTES_MAX * 8 &&
		       !(r->bits[r->at / 8] >> (r->at % 8) & 1))
			r->at++;
		if (r->at == DMU_BITS_BYTES_MAX * 8)
			break;
		ragged_submit(s);
	}
	r->driving = false;
	if (!r->waiting)
		ragged_end(s);
}

/* ---- jobs ---- */

static void jobs_go(struct dmstream *s);

static void job_end(struct job *j)
{
	struct dmstream *s = j->s;

	cow_list_del(&j->node);
	cow_list_add_tail(&s->free_jobs, &j->node);
	jobs_go(s);
	pump(s);
}

static void commit_done(struct cow_req *req, int result)
{
	struct job *j = req->opaque;
	struct dmstream *s = j->s;

	send_result(s, j->id, result ? result : s->broken);
	job_end(j);
}

static void change_done(struct cow_req *req, int result)
{
	struct job *j = req->opaque;

	send_result(j->s, j->id, result);
	job_end(j);
}

/* The first job whose turn has come: a commit that is the oldest, a change with no written data before it. */
static struct job *job_due(struct dmstream *s)
{
	struct cow_list *n;

	cow_list_for_each(n, &s->jobs) {
		struct job *j = cow_list_entry(n, struct job, node);

		if (j->type == DMU_WRITTEN)
			return NULL;
		if (!j->submitted && (j->type == DMU_CHANGE || n == s->jobs.next))
			return j;
	}
	return NULL;
}

static void jobs_go(struct dmstream *s)
{
	struct job *j;

	while ((j = job_due(s))) {
		j->submitted = true;
		cow_dev_submit(s->cfg.dev, &j->req);
	}
}

static void written_end(struct job *j)
{
	struct dmstream *s = j->s;

	if (!j->error) {
		send_ack(s, j->id);
	} else if (!s->broken) {
		s->broken = j->error;
		cow_log(COW_LOG_ERR, "%s: what the kernel wrote cannot be recorded (%s): flushes fail "
			"until the device is started again", cow_dev_name(s->cfg.dev),
			strerror(-j->error));
	}
	job_end(j);
}

static void written_drive(struct job *j);

static void written_done(struct cow_req *req, int result)
{
	struct job *j = req->opaque;

	/* Cut off meanwhile: then nobody can miss it. */
	if (result && !(result == -EINVAL && req->virt + req->len > cow_dev_size(j->s->cfg.dev)))
		j->error = j->error ? j->error : result;
	j->waiting = false;
	if (!j->running)
		written_drive(j);
}

static bool bit(const struct job *j, uint32_t i)
{
	return j->bits[i / 8] >> (i % 8) & 1;
}

/* Does the place of the next bit go on where the run's, of @n bits, ends? */
static bool place_goes_on(const struct job *j, uint64_t place, uint32_t n)
{
	return !j->s->cfg.map->blocks || j->places[j->place] == place + n * (j->granule / MAPREQ_SECTOR);
}

/* Submits the next run of bits. False: there is none. */
static bool written_next(struct job *j)
{
	uint64_t size = cow_dev_size(j->s->cfg.dev), virt, place;
	uint32_t first;

	while (j->at < j->count && !bit(j, j->at))
		j->at += j->at % 8 == 0 && j->bits[j->at / 8] == 0 ? 8 : 1;
	if (j->at >= j->count)
		return false;
	first = j->at;
	place = j->places[j->place];
	while (j->at < j->count && bit(j, j->at) && place_goes_on(j, place, j->at - first)) {
		j->place += j->s->cfg.map->blocks;
		j->at++;
	}
	j->s->st.granules += j->at - first;
	virt = j->start + first * j->granule;
	if (virt >= size)
		return true;
	j->waiting = true;
	j->req = (struct cow_req){
		.op = COW_OP_WRITTEN, .virt = virt, .done = written_done, .opaque = j,
		.phys = place * MAPREQ_SECTOR, .len = cow_min((j->at - first) * j->granule, size - virt),
	};
	cow_dev_submit(j->s->cfg.dev, &j->req);
	return true;
}

static void written_drive(struct job *j)
{
	bool more = true;

	j->running = true;
	while (more && !j->waiting && !j->error)
		more = written_next(j);
	j->running = false;
	if (!j->waiting)
		written_end(j);
}

static struct job *job_new(struct dmstream *s, const struct dmu_head *h)
{
	struct job *j = cow_list_entry(s->free_jobs.next, struct job, node);

	cow_list_del(&j->node);
	cow_list_add_tail(&s->jobs, &j->node);
	j->s = s;
	j->type = h->type;
	j->id = h->id;
	j->submitted = j->running = j->waiting = false;
	j->error = 0;
	return j;
}

/* ---- records ---- */

static int take_ask(struct dmstream *s, const struct dmu_ask *rec)
{
	struct ask *a = cow_list_entry(s->free_asks.next, struct ask, node);

	s->st.asks++;
	cow_list_del(&a->node);
	a->rec = *rec;
	settle(s, a);
	ragged_drive(s);
	return 0;
}

static int take_change(struct dmstream *s, const struct dmu_ask *rec)
{
	struct job *j;

	s->st.changes++;
	if (rec->op != DMU_OP_ZERO && rec->op != DMU_OP_DISCARD) {
		send_result(s, rec->head.id, -EOPNOTSUPP);
		return 0;
	}
	j = job_new(s, &rec->head);
	j->req = (struct cow_req){
		.op = rec->op == DMU_OP_ZERO ? COW_OP_ZERO : COW_OP_DISCARD,
		/* Blocks are asked for anew. */
		.flags = s->cfg.map->blocks ? 0 : COW_REQ_PRESENT, .virt = rec->start * MAPREQ_SECTOR,
		.len = (uint64_t)rec->sectors * MAPREQ_SECTOR, .done = change_done, .opaque = j,
	};
	jobs_go(s);
	return 0;
}

/* The places behind the bits of @rec, one for each that is set; all on the top image's device. */
static int take_places(const struct dmstream *s, const struct dmu_written *rec, uint32_t bits, struct job *j)
{
	const uint8_t *at = (const uint8_t *)(rec + 1) + bits;
	uint32_t n = (rec->head.size - (uint32_t)sizeof(*rec) - bits) / 8, set = 0, i;

	for (i = 0; i < j->count; i++)
		set += bit(j, i);
	if (n != set || n > DMU_PLACES_MAX)
		return -EPROTO;
	memcpy(j->places, at, n * sizeof(j->places[0]));
	for (i = 0; i < n; i++) {
		if (j->places[i] >> DMU_PLACE_DEV_SHIFT != s->cfg.map->dev[0])
			return -EPROTO;
		j->places[i] &= DMU_PLACE_AT;
	}
	return 0;
}

static int take_written(struct dmstream *s, const struct dmu_written *rec)
{
	bool places = s->cfg.map->blocks;
	uint32_t count, bytes;
	struct job *j;

	if (rec->granule_shift > DMU_SECTION_SHIFT || !rec->sectors ||
	    rec->sectors > DMU_SECTION_SECTORS)
		return -EPROTO;
	count = ((rec->sectors - 1) >> rec->granule_shift) + 1;
	bytes = (count + 63) / 64 * 8;
	if (bytes > DMU_BITS_BYTES_MAX || rec->head.size < sizeof(*rec) + bytes ||
	    (!places && rec->head.size != sizeof(*rec) + bytes))
		return -EPROTO;
	s->st.written++;
	j = job_new(s, &rec->head);
	j->start = rec->start * MAPREQ_SECTOR;
	j->granule = (uint64_t)MAPREQ_SECTOR << rec->granule_shift;
	j->at = j->place = 0;
	j->count = count;
	memcpy(j->bits, rec + 1, bytes);
	j->error = places ? take_places(s, rec, bytes, j) : 0;
	written_drive(j);
	return 0;
}

static int take_commit(struct dmstream *s, const struct dmu_commit *rec)
{
	struct job *j = job_new(s, &rec->head);

	s->st.commits++;
	j->req = (struct cow_req){ .op = COW_OP_FLUSH, .done = commit_done, .opaque = j };
	jobs_go(s);
	return 0;
}

static int take_info(struct dmstream *s, const struct dmu_info *rec)
{
	const struct dmu_device *devices = (const struct dmu_device *)(rec + 1);

	if (rec->abi != DMU_ABI || rec->devices > DMU_DEVICES_MAX ||
	    rec->head.size != sizeof(*rec) + rec->devices * sizeof(*devices))
		return -EPROTO;
	s->cfg.info(s->cfg.opaque, rec, devices);
	return 0;
}

static int take_revoked(struct dmstream *s, uint64_t id)
{
	if (!s->revoking || id != REVOKE_HELD)
		return 0;
	s->revoking = false;
	s->hold_done(s->hold_opaque);
	return 0;
}

static int take(struct dmstream *s, const struct dmu_head *h)
{
	static const struct {
		uint32_t type, size;
	} least[] = {
		{ DMU_INFO, sizeof(struct dmu_info) }, { DMU_CHANGED, sizeof(struct dmu_info) },
		{ DMU_ASK, sizeof(struct dmu_ask) }, { DMU_CHANGE, sizeof(struct dmu_ask) },
		{ DMU_WRITTEN, sizeof(struct dmu_written) },
		{ DMU_COMMIT, sizeof(struct dmu_commit) },
	};

	for (unsigned i = 0; i < COW_ARRAY_SIZE(least); i++)
		if (h->type == least[i].type && h->size < least[i].size)
			return -EPROTO;
	switch (h->type) {
	case DMU_INFO:
	case DMU_CHANGED:
		return take_info(s, (const struct dmu_info *)h);
	case DMU_ASK:
		return take_ask(s, (const struct dmu_ask *)h);
	case DMU_CHANGE:
		return take_change(s, (const struct dmu_ask *)h);
	case DMU_WRITTEN:
		return take_written(s, (const struct dmu_written *)h);
	case DMU_COMMIT:
		return take_commit(s, (const struct dmu_commit *)h);
	case DMU_REVOKED:
		return take_revoked(s, h->id);
	default:
		return 0;	/* of a newer kernel, which knows by our hello that we do not know it */
	}
}

/* ---- from the kernel ---- */

static void end(struct dmstream *s, int error)
{
	if (s->ended)
		return;
	s->ended = true;
	cow_source_free(s->src);
	s->src = NULL;
	s->cfg.gone(s->cfg.opaque, error);
}

/* Works on what was read, as far as there is room for it. False: there is none now. */
static bool work(struct dmstream *s)
{
	while (s->in_at < s->in_len && !s->ended) {
		const struct dmu_head *h = (const struct dmu_head *)(s->in + s->in_at);
		size_t left = s->in_len - s->in_at;
		int rc = 0;

		if (cow_list_empty(&s->free_jobs) || cow_list_empty(&s->free_asks))
			return false;
		if (left < sizeof(*h) || h->size < sizeof(*h) || h->size > left || h->size % 8)
			rc = -EPROTO;
		s->in_at += rc ? left : h->size;
		if (!rc)
			rc = take(s, h);
		if (rc)
			end(s, rc);
	}
	return true;
}

/* Some more records. False: none are there, or the end. */
static bool fill(struct dmstream *s)
{
	ssize_t n = read(s->fd, s->in, READ_BYTES);

	s->in_at = s->in_len = 0;
	if (n > 0) {
		s->in_len = (size_t)n;
		return true;
	}
	if (n == 0)
		end(s, 0);
	else if (errno != EAGAIN && errno != EINTR)
		end(s, errno == ENODEV ? 0 : -errno);
	return false;
}

/* Called wherever room appears; what it calls may come back here. */
static void pump(struct dmstream *s)
{
	bool room;

	if (s->pumping || s->ended)
		return;
	s->pumping = true;
	do {
		room = work(s);
	} while (room && !s->ended && fill(s));
	s->pumping = false;
	if (!s->ended && room == s->choked) {
		s->choked = !room;
		cow_source_events(s->src, room ? EPOLLIN : 0);
	}
}

static void on_ready(void *opaque, uint32_t events)
{
	struct dmstream *s = opaque;

	(void)events;
	pump(s);
}

/* ---- outside ---- */

int dmstream_hello(struct dmstream *s, const char *key)
{
	struct dmu_hello h = {
		.head = { .type = DMU_HELLO, .size = sizeof(h), .id = HELLO_ID },
		.abi = DMU_ABI, .features = DMU_F_SECTIONS | DMU_F_CHANGES | DMU_F_PLACES,
		.flags = DMU_HELLO_WAIT,
	};

	snprintf(h.key, sizeof(h.key), "%s", key);
	return send_record(s, &h, sizeof(h));
}

int dmstream_hold(struct dmstream *s, uint64_t start, void (*done)(void *opaque), void *opaque)
{
	struct dmu_range r = {
		.head = { .type = DMU_REVOKE, .size = sizeof(r), .id = REVOKE_HELD },
		.start = start, .sectors = UINT64_MAX - start,
	};
	int rc;

	if (s->held)
		return -EBUSY;
	s->held = true;
	s->hold_from = start;
	s->hold_done = done;
	s->hold_opaque = opaque;
	rc = send_record(s, &r, sizeof(r));
	if (rc)
		dmstream_release(s);
	else
		s->revoking = true;
	return rc;
}

void dmstream_release(struct dmstream *s)
{
	s->held = false;
	s->revoking = false;
	if (!s->ended)
		asks_again(s);
}

void dmstream_get_stats(const struct dmstream *s, struct dmstream_stats *ret)
{
	*ret = s->st;
}

static int alloc_pools(struct dmstream *s)
{
	s->job_mem = cow_zalloc(JOBS * sizeof(*s->job_mem));
	s->ask_mem = cow_zalloc(ASKS * sizeof(*s->ask_mem));
	s->in = cow_memalign(sizeof(uint64_t), READ_BYTES);
	if (!s->job_mem || !s->ask_mem || !s->in)
		return -ENOMEM;
	for (unsigned i = 0; i < JOBS; i++)
		cow_list_add_tail(&s->free_jobs, &s->job_mem[i].node);
	for (unsigned i = 0; i < ASKS; i++)
		cow_list_add_tail(&s->free_asks, &s->ask_mem[i].node);
	return 0;
}

int dmstream_new(const struct dmstream_cfg *cfg, int fd, struct dmstream **ret)
{
	struct dmstream *s = cow_zalloc(sizeof(*s));
	int rc;

	if (!s)
		return -ENOMEM;
	s->cfg = *cfg;
	s->fd = -1;
	cow_list_init(&s->free_jobs);
	cow_list_init(&s->jobs);
	cow_list_init(&s->free_asks);
	cow_list_init(&s->asks);
	cow_list_init(&s->fetched);
	rc = alloc_pools(s);
	if (!rc && cfg->map->blocks)
		rc = dmfetch_new(cfg->dev, on_fetched, s, &s->fetch);
	if (!rc) {
		s->src = cow_loop_fd(cfg->loop, fd, EPOLLIN, on_ready, s);
		rc = s->src ? 0 : -errno;
	}
	if (rc) {
		dmstream_free(s);
		return rc;
	}
	s->fd = fd;
	*ret = s;
	return 0;
}

void dmstream_free(struct dmstream *s)
{
	if (!s)
		return;
	cow_assert(cow_list_empty(&s->jobs));
	cow_source_free(s->src);
	cow_source_free(s->retry);
	dmfetch_free(s->fetch);
	if (s->fd >= 0)
		close(s->fd);
	cow_free(s->job_mem);
	cow_free(s->ask_mem);
	cow_free(s->in);
	cow_free(s);
}
