/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The parts of the ublk front end, for each other: control commands
 * (fe-ublk-ctl.c), the queue of requests (fe-ublk-queue.c), and the life of a
 * device made of both (fe-ublk.c). Nobody else includes this, but tests.
 */
#ifndef COWD_FE_UBLK_H
#define COWD_FE_UBLK_H

#include <sys/types.h>

#include "cow/dev.h"
#include "ublk-abi.h"

/* ---- control commands ---- */

struct ublk_ctl;

/*
 * Opens /dev/ublk-control, loading the module if need be, and asks what the driver
 * can do. -errno and a sentence: no driver, one that is too old, no io_uring.
 */
int ublk_ctl_open(struct ublk_ctl **ret, struct cow_err *err);
void ublk_ctl_close(struct ublk_ctl *ctl);	/* NULL is allowed */
uint64_t ublk_ctl_features(const struct ublk_ctl *ctl);	/* UBLK_F_* */

/* Sends a command to device @id and waits for its end. The kernel's answer: 0 or -errno. */
int ublk_ctl_cmd(struct ublk_ctl *ctl, uint32_t op, uint32_t id, void *buf, uint16_t len,
		 uint64_t data);
/*
 * Sends a command without a buffer; @done(opaque, answer) from the loop. One at a time.
 * For what ends only when the device's queue is served, or may. 0 or -errno: not sent.
 */
int ublk_ctl_send(struct ublk_ctl *ctl, struct cow_loop *loop, uint32_t op, uint32_t id,
		  uint64_t data, void (*done)(void *opaque, int answer), void *opaque);

/* ---- the queue ---- */

#define UBLK_SECTOR_SHIFT 9

/* What a descriptor asks for. */
struct ublk_todo {
	enum cow_op op;
	uint32_t flags;			/* of the request: COW_REQ_FUA */
	uint64_t virt, len;		/* both 0 for FLUSH */
};

/* 0; -EOPNOTSUPP; -EINVAL: more than @max_bytes of data, or not inside @size. */
int ublk_translate(const struct ublksrv_io_desc *desc, uint32_t max_bytes, uint64_t size,
		   struct ublk_todo *ret);

struct ublk_queue_cfg {
	struct cow_loop *loop;
	struct cow_dev *dev;
	uint32_t id;
	unsigned depth;
	uint32_t max_bytes;		/* of data in a request */
	bool keep;			/* with a keeper, see fe-ublk-keep.c */
	void (*gone)(void *opaque);	/* the kernel took all requests back */
	void *opaque;
};

struct ublk_queue;

/* Opens /dev/ublkcN and asks for requests: with every tag when it returns. */
int ublk_queue_new(const struct ublk_queue_cfg *cfg, struct ublk_queue **ret,
		   struct cow_err *err);
/*
 * Makes the device live by @op, START_DEV or END_USER_RECOVERY; @done(opaque, answer) from
 * the loop. Once. 0 or -errno: not sent.
 */
int ublk_queue_go_live(struct ublk_queue *q, struct ublk_ctl *ctl, uint32_t op,
		       void (*done)(void *opaque, int answer), void *opaque);
/* No request is in flight; @stopped: nor will be. NULL is allowed. */
void ublk_queue_free(struct ublk_queue *q, bool stopped);

/* ---- the keeper ---- */

struct ublk_keeper {
	pid_t pid;	/* 0: there is none */
	int talk;	/* open for as long as it has to keep */
	struct cow_source *src;	/* while a command is under way */
	void (*done)(void *opaque, int answer);
	void *opaque;
};

/*
 * A process that keeps two rings of device @id: @ring_fd until this process has ended and the
 * kernel has taken the device back, @last_fd until the device is live. 0 or -errno.
 */
int ublk_keeper_start(uint32_t id, int ring_fd, int last_fd, struct ublk_keeper *ret);
/* ublk_queue_go_live() by the keeper. */
int ublk_keeper_go_live(struct ublk_keeper *k, struct cow_loop *loop, uint32_t op,
			void (*done)(void *opaque, int answer), void *opaque);
/* At once, if there is one. */
void ublk_keeper_end(struct ublk_keeper *k);

#endif
