// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The queue of a ublk device: takes requests out of an io_uring, hands them to
 * the device, and gives the answers back. Does not create or end the device.
 *
 * A tag is either the kernel's (its FETCH waits in the ring), or ours from the
 * completion of that to the COMMIT_AND_FETCH that answers. Each has a buffer of
 * its own, which the kernel fills before it hands over a write and reads from
 * when a read is answered. That costs a copy, but no system call. To take the
 * data by pread() on /dev/ublkcN would cost the same copy and one call more; a
 * buffer registered with the ring (zero copy) can only be read and written by
 * requests in that ring, while this engine answers most requests by a plain
 * system call out of the page cache, at a fraction of the price.
 *
 * The last tag has a ring of its own, and it is not used: tune() in fe-ublk.c keeps
 * the block layer from it. See fe-ublk-keep.c for what it is good for.
 *
 * Sleeping. A turn of the event loop ends in before_wait(): answers go out and
 * new requests come in by one system call; it lingers in that call for a moment,
 * because the next request of somebody who waits for each of his is not far. Only
 * then the thread sleeps in the loop, and an eventfd tells of the next request.
 */
#include "fe-ublk.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/capability.h>
#include <poll.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cow/log.h"

#define ROUNDS 64		/* of batches before other sources of the loop get their turn */
#define BATCH 64
#define LINGER_NS 100000	/* other sources may be kept waiting so long */
#define APPEAR_TRIES 500	/* a new device file appears when devtmpfs or udev got to it */
#define APPEAR_MS 10

struct slot {
	struct cow_req req;
	struct ublk_queue *q;
	uint16_t tag;
	bool ours;
	uint32_t bytes;		/* the answer if all goes well */
};

struct ublk_queue {
	struct ublk_queue_cfg cfg;
	int fd, event_fd;
	bool ring_up, last_up, awake;
	struct io_uring ring;	/* of all tags but the last */
	struct io_uring last;
	struct ublk_keeper keeper;
	struct cow_source *src;
	const volatile struct ublksrv_io_desc *descs;
	size_t descs_bytes;
	uint8_t *bufs;
	unsigned inflight;	/* tags that are ours */
	unsigned live;		/* tags that were not taken back */
	struct slot slots[];
};

/* ---- what a descriptor says ---- */

int ublk_translate(const struct ublksrv_io_desc *desc, uint32_t max_bytes, uint64_t size,
		   struct ublk_todo *ret)
{
	struct ublk_todo t = { 0 };
	uint64_t end;

	switch (desc->op_flags & UBLK_IO_OP_MASK) {
	case UBLK_IO_OP_READ:
		t.op = COW_OP_READ;
		break;
	case UBLK_IO_OP_WRITE:
		t.op = COW_OP_WRITE;
		break;
	case UBLK_IO_OP_FLUSH:
		*ret = (struct ublk_todo){ .op = COW_OP_FLUSH };
		return 0;
	case UBLK_IO_OP_DISCARD:
		t.op = COW_OP_DISCARD;
		break;
	case UBLK_IO_OP_WRITE_ZEROES:
		t.op = COW_OP_ZERO;
		break;
	default:
		return -EOPNOTSUPP;
	}
	if (t.op != COW_OP_READ && (desc->op_flags & UBLK_IO_F_FUA))
		t.flags = COW_REQ_FUA;
	t.len = (uint64_t)desc->nr_sectors << UBLK_SECTOR_SHIFT;
	if (!cow_mul_ok(desc->start_sector, 1u << UBLK_SECTOR_SHIFT, &t.virt) ||
	    !cow_add_ok(t.virt, t.len, &end) || end > size || !t.len)
		return -EINVAL;
	if ((t.op == COW_OP_READ || t.op == COW_OP_WRITE) && t.len > max_bytes)
		return -EINVAL;
	*ret = t;
	return 0;
}

/* ---- requests ---- */

static void prepare(struct ublk_queue *q, uint32_t op, unsigned tag, int32_t result)
{
	struct ublksrv_io_cmd cmd = { .tag = (uint16_t)tag, .result = result };
	struct io_uring *ring = tag == q->cfg.depth - 1 ? &q->last : &q->ring;
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	cow_assert(sqe);	/* the ring holds one for each tag */
	cmd.addr = (uintptr_t)(q->bufs + (size_t)tag * q->cfg.max_bytes);
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->flags = IOSQE_FIXED_FILE;
	sqe->fd = 0;
	sqe->cmd_op = op;
	sqe->user_data = tag;
	memcpy(sqe->cmd, &cmd, sizeof(cmd));
}

static void answer(struct slot *s, int result)
{
	struct ublk_queue *q = s->q;

	s->ours = false;
	q->inflight--;
	q->awake = true;
	prepare(q, UBLK_U_IO_COMMIT_AND_FETCH_REQ, s->tag, result ? result : (int32_t)s->bytes);
}

static void on_done(struct cow_req *req, int result)
{
	answer(cow_container_of(req, struct slot, req), result);
}

static void take_request(struct ublk_queue *q, struct slot *s)
{
	const struct ublksrv_io_desc desc = q->descs[s->tag];	/* once */
	uint64_t size = cow_dev_size(q->cfg.dev);
	struct ublk_todo todo;
	int rc;

	s->ours = true;
	q->inflight++;
	rc = ublk_translate(&desc, q->cfg.max_bytes, size, &todo);
	if (rc) {
		cow_log_limited(COW_LOG_WARN,
				"/dev/ublkb%u: request 0x%x of %u sectors at %llu refused: %s",
				q->cfg.id, desc.op_flags, desc.nr_sectors,
				(unsigned long long)desc.start_sector, strerror(-rc));
		answer(s, rc);
		return;
	}
	s->bytes = todo.op == COW_OP_READ || todo.op == COW_OP_WRITE ? (uint32_t)todo.len : 0;
	s->req.op = todo.op;
	s->req.flags = todo.flags;
	s->req.virt = todo.virt;
	s->req.len = todo.len;
	s->req.buf = q->bufs + (size_t)s->tag * q->cfg.max_bytes;
	s->req.layer = 0;
	s->req.done = on_done;
	cow_dev_submit(q->cfg.dev, &s->req);
}

static void take(struct ublk_queue *q, uint64_t tag, int res)
{
	if (tag >= q->cfg.depth || q->slots[tag].ours) {
		cow_log_limited(COW_LOG_ERR, "/dev/ublkc%u: the kernel hands over tag %llu twice",
				q->cfg.id, (unsigned long long)tag);
		return;
	}
	if (res == UBLK_IO_RES_OK) {
		take_request(q, &q->slots[tag]);
		return;
	}
	if (res != UBLK_IO_RES_ABORT)
		cow_log_limited(COW_LOG_ERR, "/dev/ublkc%u: tag %llu is lost: %s", q->cfg.id,
				(unsigned long long)tag, strerror(-res));
	if (--q->live == 0)
		q->cfg.gone(q->cfg.opaque);
}

struct completed {
	uint64_t tag;
	int res;
};

static unsigned collect(struct io_uring *ring, struct completed *ret, unsigned max)
{
	struct io_uring_cqe *cqe;
	unsigned n = 0, head;

	io_uring_for_each_cqe(ring, head, cqe) {
		if (n == max)
			break;
		ret[n].tag = cqe->user_data;
		ret[n++].res = cqe->res;
	}
	io_uring_cq_advance(ring, n);
	return n;
}

/* What completed; false: nothing. */
static bool reap(struct ublk_queue *q)
{
	struct completed got[BATCH + 1];
	/* Out of the rings first: what is done with them puts answers in. */
	unsigned i, n = collect(&q->ring, got, BATCH);

	n += collect(&q->last, got + n, 1);
	for (i = 0; i < n; i++)
		take(q, got[i].tag, got[i].res);
	return n > 0;
}

static void submit(struct io_uring *ring)
{
	while (io_uring_sq_ready(ring))
		/* Short of memory, the kernel refuses: nobody else would try again. */
		if (io_uring_submit(ring) < 0)
			poll(NULL, 0, 1);
}

/* Sends answers and lets requests come in; with @linger waits a moment for one. */
static void enter(struct ublk_queue *q, bool linger)
{
	struct __kernel_timespec ts = { .tv_nsec = LINGER_NS };
	struct io_uring_cqe *cqe;

	submit(&q->last);
	if (linger)
		io_uring_submit_and_wait_timeout(&q->ring, &cqe, 1, &ts, NULL);
	submit(&q->ring);
}

static void before_wait(void *opaque)
{
	struct ublk_queue *q = opaque;
	unsigned round;

	for (round = 0; q->awake && round < ROUNDS; round++) {
		/* While the engine waits for a disk, its completions are in the loop. */
		enter(q, !q->inflight);
		q->awake = reap(q);
	}
	enter(q, false);
}

static void on_event(void *opaque, uint32_t events)
{
	struct ublk_queue *q = opaque;

	(void)events;
	q->awake = true;
}

/* ---- setting up ---- */

static int open_char(uint32_t id, struct cow_err *err)
{
	char path[32];
	unsigned i;
	int fd, rc = -ENOENT;

	snprintf(path, sizeof(path), "/dev/ublkc%u", id);
	/* -EBUSY: after a kill, until the kernel is done with the one before us. */
	for (i = 0; i < APPEAR_TRIES && (rc == -ENOENT || rc == -EBUSY); i++) {
		if (i)
			cow_sleep_ms(APPEAR_MS);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd >= 0)
			return fd;
		rc = -errno;
	}
	return cow_err_sys(err, rc, "%s", path);
}

static int reserve_buffers(struct ublk_queue *q)
{
	size_t bytes = (size_t)q->cfg.depth * q->cfg.max_bytes;
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return -errno;
	q->bufs = p;
	/* Memory is used as far as requests are long, not in huge pages. */
	madvise(p, bytes, MADV_NOHUGEPAGE);
	return madvise(p, bytes, MADV_DONTFORK) ? -errno : 0;
}

static int map_descriptors(struct ublk_queue *q)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	void *p;

	q->descs_bytes = cow_round_up(q->cfg.depth * sizeof(struct ublksrv_io_desc), page);
	p = mmap(NULL, q->descs_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, q->fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	q->descs = p;
	/* A child that holds it would keep the device from being taken up after a kill. */
	return madvise(p, q->descs_bytes, MADV_DONTFORK) ? -errno : 0;
}

static int set_up_ring(struct ublk_queue *q, struct io_uring *ring, bool *ret_up)
{
	struct io_uring_params p = { .flags = IORING_SETUP_SINGLE_ISSUER |
					      IORING_SETUP_COOP_TASKRUN | IORING_SETUP_CLAMP };
	int rc = io_uring_queue_init_params(q->cfg.depth, ring, &p);

	if (rc)
		return rc;
	*ret_up = true;
	io_uring_ring_dontfork(ring);
	rc = io_uring_register_files(ring, &q->fd, 1);
	return rc ? rc : io_uring_register_eventfd(ring, q->event_fd);
}

static int set_up_rings(struct ublk_queue *q)
{
	int rc;

	q->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->event_fd < 0)
		return -errno;
	rc = set_up_ring(q, &q->ring, &q->ring_up);
	if (!rc)
		rc = set_up_ring(q, &q->last, &q->last_up);
	if (!rc && q->cfg.keep)
		rc = ublk_keeper_start(q->cfg.id, q->ring.ring_fd, q->last.ring_fd, &q->keeper);
	if (rc)
		return rc;
	/* Each event wakes once, so nobody needs to read the counter. */
	q->src = cow_loop_fd(q->cfg.loop, q->event_fd, EPOLLIN | EPOLLET, on_event, q);
	return q->src ? 0 : -errno;
}

static int set_admin(bool on)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	if (syscall(SYS_capget, &head, data))
		return -errno;
	if (on)
		data[0].effective |= 1u << CAP_SYS_ADMIN;
	else
		data[0].effective &= ~(1u << CAP_SYS_ADMIN);
	return syscall(SYS_capset, &head, data) ? -errno : 0;
}

/*
 * Without the capability: then the kernel never looks for partitions on the
 * device. They are a guest's, not for this machine to parse; and the kernel would
 * look while it starts the device, holding a lock that taking up the device after
 * a kill needs.
 */
static int fetch_all(struct ublk_queue *q)
{
	unsigned tag;
	int rc = set_admin(false);

	if (rc)
		return rc;
	/* In one call: a kill comes before all of it or after. */
	for (tag = 0; tag < q->cfg.depth; tag++)
		prepare(q, UBLK_U_IO_FETCH_REQ, tag, 0);
	enter(q, false);
	q->live = q->cfg.depth;
	return set_admin(true);
}

int ublk_queue_new(const struct ublk_queue_cfg *cfg, struct ublk_queue **ret,
		   struct cow_err *err)
{
	struct ublk_queue *q = cow_zalloc(sizeof(*q) + cfg->depth * sizeof(q->slots[0]));
	unsigned tag;
	int rc;

	if (!q)
		return cow_err_set(err, -ENOMEM, "/dev/ublkc%u: not enough memory", cfg->id);
	q->cfg = *cfg;
	q->event_fd = -1;
	for (tag = 0; tag < cfg->depth; tag++) {
		q->slots[tag].q = q;
		q->slots[tag].tag = (uint16_t)tag;
	}
	q->fd = open_char(cfg->id, err);
	if (q->fd < 0) {
		rc = q->fd;
		goto fail;
	}
	rc = reserve_buffers(q);
	if (!rc)
		rc = set_up_rings(q);
	/*
	 * The driver binds the queue to the process that maps the descriptors. Before Linux
	 * 6.16 it can only be taken up again from one that has fetched, too: in this order.
	 */
	if (!rc)
		rc = fetch_all(q);
	if (!rc)
		rc = map_descriptors(q);
	if (rc) {
		cow_err_sys(err, rc, "/dev/ublkc%u: queue of requests", cfg->id);
		goto fail;
	}
	cow_loop_before_wait(cfg->loop, before_wait, q);
	*ret = q;
	return 0;
fail:
	ublk_queue_free(q, true);
	return rc;
}

int ublk_queue_go_live(struct ublk_queue *q, struct ublk_ctl *ctl, uint32_t op,
		       void (*done)(void *opaque, int answer), void *opaque)
{
	return q->cfg.keep ? ublk_keeper_go_live(&q->keeper, q->cfg.loop, op, done, opaque)
			   : ublk_ctl_send(ctl, q->cfg.loop, op, q->cfg.id, (uint64_t)getpid(),
					   done, opaque);
}

void ublk_queue_free(struct ublk_queue *q, bool stopped)
{
	if (!q)
		return;
	cow_assert(!q->inflight);
	cow_loop_before_wait(q->cfg.loop, NULL, NULL);
	cow_source_free(q->src);
	if (stopped)
		ublk_keeper_end(&q->keeper);
	if (q->ring_up)
		io_uring_queue_exit(&q->ring);
	if (q->last_up)
		io_uring_queue_exit(&q->last);
	if (q->event_fd >= 0)
		close(q->event_fd);
	if (q->bufs)
		munmap(q->bufs, (size_t)q->cfg.depth * q->cfg.max_bytes);
	if (q->descs)
		munmap((void *)(uintptr_t)q->descs, q->descs_bytes);
	if (q->fd >= 0)
		close(q->fd);
	cow_free(q);
}
