/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What fe-ublk says to the kernel's ublk driver and hears from it: the numbers
 * and structures of linux/ublk_cmd.h that it uses, by the names they have there.
 * Carried because the header of the kernel that is built against may be older
 * than the kernel that is run on. Nothing of cowd's own.
 */
#ifndef COWD_UBLK_ABI_H
#define COWD_UBLK_ABI_H

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

/* ---- commands on /dev/ublk-control: in the 80 bytes at the end of a 128 byte SQE ---- */

struct ublksrv_ctrl_cmd {
	uint32_t dev_id;
	uint16_t queue_id;		/* 0xffff: not for a queue */
	uint16_t len;			/* of the buffer */
	uint64_t addr;			/* the buffer, in or out */
	uint64_t data[1];
	uint16_t dev_path_len;		/* of unprivileged devices */
	uint16_t pad;
	uint32_t reserved;
};
static_assert(sizeof(struct ublksrv_ctrl_cmd) == 32, "as the kernel's");

struct ublksrv_ctrl_dev_info {
	uint16_t nr_hw_queues;
	uint16_t queue_depth;
	uint16_t state;			/* UBLK_S_DEV_* */
	uint16_t pad0;
	uint32_t max_io_buf_bytes;
	uint32_t dev_id;
	int32_t ublksrv_pid;
	uint32_t pad1;
	uint64_t flags;			/* UBLK_F_* */
	uint64_t ublksrv_flags;		/* the server's own: the kernel only keeps it */
	uint32_t owner_uid;
	uint32_t owner_gid;
	uint64_t reserved1;
	uint64_t reserved2;
};
static_assert(sizeof(struct ublksrv_ctrl_dev_info) == 64, "as the kernel's");

#define UBLK_CTRL(dir, nr) _IOC(dir, 'u', nr, sizeof(struct ublksrv_ctrl_cmd))
#define UBLK_U_CMD_GET_DEV_INFO		UBLK_CTRL(_IOC_READ, 0x02)
#define UBLK_U_CMD_ADD_DEV		UBLK_CTRL(_IOC_READ | _IOC_WRITE, 0x04)
#define UBLK_U_CMD_START_DEV		UBLK_CTRL(_IOC_READ | _IOC_WRITE, 0x06)
#define UBLK_U_CMD_STOP_DEV		UBLK_CTRL(_IOC_READ | _IOC_WRITE, 0x07)
#define UBLK_U_CMD_SET_PARAMS		UBLK_CTRL(_IOC_READ | _IOC_WRITE, 0x08)
#define UBLK_U_CMD_GET_PARAMS		UBLK_CTRL(_IOC_READ, 0x09)
#define UBLK_U_CMD_START_USER_RECOVERY	UBLK_CTRL(_IOC_READ | _IOC_WRITE, 0x10)
#define UBLK_U_CMD_END_USER_RECOVERY	UBLK_CTRL(_IOC_READ | _IOC_WRITE, 0x11)
#define UBLK_U_CMD_GET_FEATURES		UBLK_CTRL(_IOC_READ, 0x13)	/* Linux 6.5 */
#define UBLK_U_CMD_DEL_DEV_ASYNC	UBLK_CTRL(_IOC_READ, 0x14)	/* Linux 6.9 */
#define UBLK_U_CMD_UPDATE_SIZE		UBLK_CTRL(_IOC_READ | _IOC_WRITE, 0x15)	/* Linux 6.16 */

#define UBLK_F_USER_RECOVERY		(1ull << 3)
#define UBLK_F_USER_RECOVERY_REISSUE	(1ull << 4)
#define UBLK_F_CMD_IOCTL_ENCODE		(1ull << 6)
#define UBLK_F_USER_COPY		(1ull << 7)
#define UBLK_F_UPDATE_SIZE		(1ull << 10)
#define UBLK_F_NO_AUTO_PART_SCAN	(1ull << 18)

#define UBLK_S_DEV_DEAD		0
#define UBLK_S_DEV_LIVE		1
#define UBLK_S_DEV_QUIESCED	2

/* ---- parameters ---- */

#define UBLK_ATTR_READ_ONLY		(1u << 0)
#define UBLK_ATTR_VOLATILE_CACHE	(1u << 2)
#define UBLK_ATTR_FUA			(1u << 3)

struct ublk_param_basic {
	uint32_t attrs;
	uint8_t logical_bs_shift;
	uint8_t physical_bs_shift;
	uint8_t io_opt_shift;
	uint8_t io_min_shift;
	uint32_t max_sectors;
	uint32_t chunk_sectors;
	uint64_t dev_sectors;
	uint64_t virt_boundary_mask;
};
static_assert(sizeof(struct ublk_param_basic) == 32, "as the kernel's");

struct ublk_param_discard {
	uint32_t discard_alignment;
	uint32_t discard_granularity;
	uint32_t max_discard_sectors;
	uint32_t max_write_zeroes_sectors;
	uint16_t max_discard_segments;
	uint16_t reserved0;
};
static_assert(sizeof(struct ublk_param_discard) == 20, "as the kernel's");

#define UBLK_PARAM_TYPE_BASIC	(1u << 0)
#define UBLK_PARAM_TYPE_DISCARD	(1u << 1)

/* The kernel's is longer: it takes and gives @len bytes of it. */
struct ublk_params {
	uint32_t len;
	uint32_t types;
	struct ublk_param_basic basic;
	struct ublk_param_discard discard;
	uint32_t pad;
};
static_assert(offsetof(struct ublk_params, basic) == 8, "as the kernel's");
static_assert(offsetof(struct ublk_params, discard) == 40, "as the kernel's");
#define UBLK_PARAMS_LEN offsetof(struct ublk_params, pad)

/* ---- commands on /dev/ublkcN: in the 16 bytes at the end of a 64 byte SQE ---- */

struct ublksrv_io_cmd {
	uint16_t q_id;
	uint16_t tag;
	int32_t result;			/* bytes, or -errno */
	uint64_t addr;			/* the buffer for the tag's next request */
};
static_assert(sizeof(struct ublksrv_io_cmd) == 16, "as the kernel's");

#define UBLK_U_IO_FETCH_REQ	       _IOWR('u', 0x20, struct ublksrv_io_cmd)
#define UBLK_U_IO_COMMIT_AND_FETCH_REQ _IOWR('u', 0x21, struct ublksrv_io_cmd)

#define UBLK_IO_RES_OK	  0
#define UBLK_IO_RES_ABORT (-ENODEV)

/* ---- descriptors of requests: an array by tag, mapped from /dev/ublkcN at offset 0 ---- */

struct ublksrv_io_desc {
	uint32_t op_flags;		/* 8 bits of UBLK_IO_OP_*, then UBLK_IO_F_* */
	uint32_t nr_sectors;
	uint64_t start_sector;
	uint64_t addr;
};
static_assert(sizeof(struct ublksrv_io_desc) == 24, "as the kernel's");

#define UBLK_IO_OP_MASK		0xffu
#define UBLK_IO_OP_READ		0
#define UBLK_IO_OP_WRITE	1
#define UBLK_IO_OP_FLUSH	2
#define UBLK_IO_OP_DISCARD	3
#define UBLK_IO_OP_WRITE_ZEROES	5
#define UBLK_IO_F_FUA		(1u << 13)

#endif
