/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Calls of /dev/mapper/control for the programs of this folder, directly: a dmsetup
 * process takes longer in an emulator than what it asks for, and what is wanted
 * here are many calls in odd orders, each with its errno. Not for production: no udev.
 */
#ifndef TESTS_LAB_DMCALL_H
#define TESTS_LAB_DMCALL_H

#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define DMCALL_DATA 16384

struct dmcall {
	struct dm_ioctl io;
	char data[DMCALL_DATA];
};

static inline void dmcall_init(struct dmcall *c, const char *name, uint32_t flags)
{
	memset(c, 0, sizeof(*c));
	c->io.version[0] = DM_VERSION_MAJOR;
	c->io.data_size = sizeof(*c);
	c->io.data_start = offsetof(struct dmcall, data);
	c->io.flags = flags;
	snprintf(c->io.name, sizeof(c->io.name), "%s", name);
}

/* 0 or -errno. */
static inline int dmcall(struct dmcall *c, unsigned long request)
{
	static int fd = -1;

	if (fd < 0)
		fd = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	return ioctl(fd, request, c) ? -errno : 0;
}

/* Puts one target into @c, for DM_TABLE_LOAD. False: too long. */
static inline int dmcall_target(struct dmcall *c, uint64_t sectors, const char *type,
				const char *params)
{
	struct dm_target_spec spec = { .length = sectors };
	size_t n = strlen(params) + 1;

	if (n > DMCALL_DATA - sizeof(spec))
		return 0;
	snprintf(spec.target_type, sizeof(spec.target_type), "%s", type);
	spec.next = (uint32_t)((sizeof(spec) + n + 7) & ~7u);
	memcpy(c->data, &spec, sizeof(spec));
	memcpy(c->data + sizeof(spec), params, n);
	c->io.target_count = 1;
	return 1;
}

/* 0 or -errno. @sector: of the target that the message is for. */
static inline int dmcall_message(const char *name, uint64_t sector, const char *text)
{
	struct dmcall c;
	struct dm_target_msg *msg = (struct dm_target_msg *)(void *)c.data;

	dmcall_init(&c, name, 0);
	if (strlen(text) >= DMCALL_DATA - sizeof(*msg))
		return -E2BIG;
	msg->sector = sector;
	memcpy(msg->message, text, strlen(text) + 1);
	return dmcall(&c, DM_TARGET_MSG);
}

#endif
