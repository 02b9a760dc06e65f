// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Commands to the ublk driver. They are io_uring commands, and a kernel thread
 * carries them out; so even those that end only when the queue is served can
 * be sent from the thread that serves it. Knows nothing of devices and queues.
 */
#include "fe-ublk.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "kmod.h"

#define CONTROL "/dev/ublk-control"
#define RING_ENTRIES 4		/* one that is waited for, one that is not */
#define APPEAR_TRIES 50		/* a new device file appears when devtmpfs or udev got to it */
#define APPEAR_MS 10

/* What we cannot do without. */
#define NEEDED (UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE | UBLK_F_CMD_IOCTL_ENCODE)

enum { WAITED_FOR, SENT };	/* user_data */

struct ublk_ctl {
	int fd;
	bool ring_up;
	struct io_uring ring;
	uint64_t features;
	struct cow_source *src;		/* while a sent command is under way */
	void (*done)(void *opaque, int answer);
	void *opaque;
};

/* ---- commands ---- */

static int queue_cmd(struct ublk_ctl *ctl, uint32_t op, const struct ublksrv_ctrl_cmd *cmd,
		     uint64_t user_data)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ctl->ring);
	int rc;

	if (!sqe)
		return -EBUSY;
	memset(sqe, 0, 2 * sizeof(*sqe));
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = ctl->fd;
	sqe->cmd_op = op;
	sqe->user_data = user_data;
	memcpy(sqe->cmd, cmd, sizeof(*cmd));
	do {
		rc = io_uring_submit(&ctl->ring);
	} while (rc == -EINTR || rc == -EAGAIN);
	return rc < 0 ? rc : 0;
}

static struct ublksrv_ctrl_cmd command(uint32_t id, uint64_t data)
{
	return (struct ublksrv_ctrl_cmd){ .dev_id = id, .queue_id = UINT16_MAX, .data = { data } };
}

static void sent_ended(struct ublk_ctl *ctl, int answer)
{
	cow_source_free(ctl->src);
	ctl->src = NULL;
	ctl->done(ctl->opaque, answer);
}

int ublk_ctl_cmd(struct ublk_ctl *ctl, uint32_t op, uint32_t id, void *buf, uint16_t len,
		 uint64_t data)
{
	struct ublksrv_ctrl_cmd cmd = command(id, data);
	int rc, answer = 0, sent_answer = 0;
	bool ended = false, sent = false;
	struct io_uring_cqe *cqe;

	cmd.addr = (uintptr_t)buf;
	cmd.len = len;
	rc = queue_cmd(ctl, op, &cmd, WAITED_FOR);
	while (!rc && !ended) {
		rc = io_uring_wait_cqe(&ctl->ring, &cqe);
		if (rc == -EINTR) {
			rc = 0;
			continue;
		}
		if (rc)
			break;
		if (cqe->user_data == SENT) {
			sent = true;
			sent_answer = cqe->res;
		} else {
			ended = true;
			answer = cqe->res;
		}
		io_uring_cqe_seen(&ctl->ring, cqe);
	}
	if (sent)
		sent_ended(ctl, sent_answer);
	if (rc)
		return rc;
	return answer < 0 ? answer : 0;
}

static void on_answer(void *opaque, uint32_t events)
{
	struct ublk_ctl *ctl = opaque;
	struct io_uring_cqe *cqe;
	int answer;

	(void)events;
	if (io_uring_peek_cqe(&ctl->ring, &cqe))
		return;
	answer = cqe->res;
	io_uring_cqe_seen(&ctl->ring, cqe);
	sent_ended(ctl, answer < 0 ? answer : 0);
}

int ublk_ctl_send(struct ublk_ctl *ctl, struct cow_loop *loop, uint32_t op, uint32_t id,
		  uint64_t data, void (*done)(void *opaque, int answer), void *opaque)
{
	struct ublksrv_ctrl_cmd cmd = command(id, data);
	int rc;

	if (ctl->src)
		return -EBUSY;
	ctl->src = cow_loop_fd(loop, ctl->ring.ring_fd, EPOLLIN, on_answer, ctl);
	if (!ctl->src)
		return -errno;
	ctl->done = done;
	ctl->opaque = opaque;
	rc = queue_cmd(ctl, op, &cmd, SENT);
	if (rc) {
		cow_source_free(ctl->src);
		ctl->src = NULL;
	}
	return rc;
}

/* ---- opening ---- */

static int open_control(void)
{
	int fd = open(CONTROL, O_RDWR | O_CLOEXEC);
	unsigned i;

	if (fd >= 0 || errno != ENOENT)
		return fd < 0 ? -errno : fd;
	kmod_load("ublk_drv");
	for (i = 0; i < APPEAR_TRIES && !access("/sys/class/misc/ublk-control", F_OK); i++) {
		fd = open(CONTROL, O_RDWR | O_CLOEXEC);
		if (fd >= 0 || errno != ENOENT)
			return fd < 0 ? -errno : fd;
		cow_sleep_ms(APPEAR_MS);
	}
	return -ENOENT;
}

static int ask_features(struct ublk_ctl *ctl, struct cow_err *err)
{
	int rc = ublk_ctl_cmd(ctl, UBLK_U_CMD_GET_FEATURES, UINT32_MAX, &ctl->features,
			      sizeof(ctl->features), 0);

	if (rc == -EPERM || rc == -EACCES)
		return cow_err_sys(err, rc, "%s", CONTROL);
	if (rc)
		return cow_err_set(err, -EOPNOTSUPP,
				   "the kernel's ublk driver is too old: it cannot tell its features (%s)",
				   strerror(-rc));
	if ((ctl->features & NEEDED) != NEEDED)
		return cow_err_set(err, -EOPNOTSUPP,
				   "the kernel's ublk driver lacks features: it has 0x%llx of 0x%llx",
				   (unsigned long long)(ctl->features & NEEDED),
				   (unsigned long long)NEEDED);
	return 0;
}

int ublk_ctl_open(struct ublk_ctl **ret, struct cow_err *err)
{
	struct ublk_ctl *ctl = cow_zalloc(sizeof(*ctl));
	int rc;

	if (!ctl)
		return cow_err_set(err, -ENOMEM, "not enough memory");
	ctl->fd = open_control();
	if (ctl->fd == -ENOENT) {
		rc = cow_err_set(err, -ENOENT,
				 "no %s: this kernel has no module ublk_drv, or it cannot be loaded",
				 CONTROL);
		goto fail;
	}
	if (ctl->fd < 0) {
		rc = cow_err_sys(err, ctl->fd, "%s", CONTROL);
		goto fail;
	}
	rc = io_uring_queue_init(RING_ENTRIES, &ctl->ring, IORING_SETUP_SQE128);
	if (rc) {
		cow_err_sys(err, rc, "ublk needs io_uring, which this system refuses");
		goto fail;
	}
	ctl->ring_up = true;
	io_uring_ring_dontfork(&ctl->ring);
	rc = ask_features(ctl, err);
	if (rc)
		goto fail;
	*ret = ctl;
	return 0;
fail:
	ublk_ctl_close(ctl);
	return rc;
}

void ublk_ctl_close(struct ublk_ctl *ctl)
{
	if (!ctl)
		return;
	cow_source_free(ctl->src);
	if (ctl->ring_up)
		io_uring_queue_exit(&ctl->ring);
	if (ctl->fd >= 0)
		close(ctl->fd);
	cow_free(ctl);
}

uint64_t ublk_ctl_features(const struct ublk_ctl *ctl)
{
	return ctl->features;
}
