// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Attaching, detaching and asking about loop devices by the kernel's ioctls
 * and sysfs. Does not know the daemon; see loopdev.h for where it may run.
 */
#include "loopdev.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR 512		/* what of a file is no whole one has no place on the device */
#define ATTACH_TRIES 64		/* another process may take the free device first */
#define APPEAR_MS 10
#define DETACH_TRIES 20
#define FORCED_TRIES 4		/* then it goes when its user does */
#define DETACH_MS 50
#define REFRESH_TRIES 1000
#define REFRESH_MS 1

/* Path of @dev's backing file as the kernel tells it; false when it has none. */
static bool backing(const char *dev, char *buf, size_t size)
{
	COW_CLEANUP_CLOSE int fd = -1;
	char path[128];
	ssize_t n;

	if (strncmp(dev, "/dev/", 5))
		return false;
	snprintf(path, sizeof(path), "/sys/block/%.64s/loop/backing_file", dev + 5);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, buf, size - 1);
	if (n <= 0)
		return false;
	if (buf[n - 1] == '\n')
		n--;
	buf[n] = '\0';
	return true;
}

bool loopdev_is_ours(const char *dev, const char *disk, const char *recorded)
{
	char path[PATH_MAX];

	if (!backing(dev, path, sizeof(path)))
		return false;
	if (!strcmp(path, disk))
		return true;
	/* After its mount was detached, the path starts at the root of that mount. */
	return !strcmp(dev, recorded) && !strcmp(path, "/disk");
}

/* ---- attach ---- */

/* 1: try another device. */
static int configure(const char *dev, const char *disk, int disk_fd, unsigned flags)
{
	bool read_only = flags & LOOPDEV_READONLY;
	struct loop_config cfg = { .fd = (uint32_t)disk_fd, .block_size = SECTOR };
	COW_CLEANUP_CLOSE int fd = open(dev, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);

	if (fd < 0)
		return errno == EBUSY ? 1 : -errno;
	cfg.info.lo_flags = LO_FLAGS_DIRECT_IO | (read_only ? LO_FLAGS_READ_ONLY : 0) |
			    (flags & LOOPDEV_SCAN ? LO_FLAGS_PARTSCAN : 0);
	/* For people; truncated, as losetup does. */
	snprintf((char *)cfg.info.lo_file_name, sizeof(cfg.info.lo_file_name), "%s", disk);
	if (ioctl(fd, LOOP_CONFIGURE, &cfg) == 0)
		return 0;
	return errno == EBUSY || errno == EAGAIN ? 1 : -errno;
}

static int attach_free(const char *disk, int disk_fd, unsigned flags, char *ret, size_t size,
		       struct cow_err *err)
{
	COW_CLEANUP_CLOSE int ctl = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	unsigned i;
	int n, rc = 1;

	if (ctl < 0)
		return cow_err_sys(err, -ENODEV, "/dev/loop-control");
	for (i = 0; i < ATTACH_TRIES && rc == 1; i++) {
		n = ioctl(ctl, LOOP_CTL_GET_FREE);
		if (n < 0)
			return cow_err_sys(err, -errno, "no free loop device");
		snprintf(ret, size, "/dev/loop%d", n);
		/* A device that GET_FREE has just made appears when devtmpfs or udev got to it. */
		if (access(ret, F_OK))
			cow_sleep_ms(APPEAR_MS);
		rc = configure(ret, disk, disk_fd, flags);
		if (rc == -ENOENT && i < ATTACH_TRIES - 1)
			rc = 1;
	}
	if (rc == 1)
		return cow_err_set(err, -EBUSY, "no free loop device in %d attempts", ATTACH_TRIES);
	if (rc == -EACCES || rc == -EPERM || rc == -ENOENT)
		return cow_err_sys(err, -ENODEV, "%s (%s)", ret, strerror(-rc));
	return rc ? cow_err_sys(err, rc, "attach %s to %s", ret, disk) : 0;
}

int loopdev_attach(const char *disk, unsigned flags, const char *prefer, char *ret, size_t size,
		   struct cow_err *err)
{
	bool read_only = flags & LOOPDEV_READONLY;
	COW_CLEANUP_CLOSE int fd = open(disk, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);

	if (fd < 0)
		return cow_err_sys(err, -errno, "%s", disk);
	if (prefer && configure(prefer, disk, fd, flags) == 0) {
		snprintf(ret, size, "%s", prefer);
		return 0;
	}
	return attach_free(disk, fd, flags, ret, size, err);
}

/* ---- detach, resize ---- */

/* The kernel put the detaching off until the last one closes the device: take that back. */
static void undo_autoclear(int fd, struct loop_info64 *info)
{
	info->lo_flags &= ~(uint32_t)LO_FLAGS_AUTOCLEAR;
	ioctl(fd, LOOP_SET_STATUS64, info);
}

/* 0: it goes when we close it; -EBUSY: somebody else has it open. */
static int clear(const char *dev, bool force)
{
	COW_CLEANUP_CLOSE int fd = open(dev, O_RDONLY | O_CLOEXEC);
	struct loop_info64 info;

	if (fd < 0)
		return -errno;
	if (ioctl(fd, LOOP_CLR_FD))
		return errno == ENXIO ? 0 : -errno;
	/* Still there to be asked: then we are not the only one. */
	if (ioctl(fd, LOOP_GET_STATUS64, &info))
		return 0;
	if (!force)
		undo_autoclear(fd, &info);
	return -EBUSY;
}

int loopdev_detach(const char *dev, bool force, struct cow_err *err)
{
	char path[PATH_MAX];
	unsigned i, tries = force ? FORCED_TRIES : DETACH_TRIES;
	int rc = -EBUSY;

	/* udev and its like open every device for a moment. */
	for (i = 0; i < tries && rc == -EBUSY; i++) {
		if (i)
			cow_sleep_ms(DETACH_MS);
		rc = clear(dev, force);
	}
	if (rc == -EBUSY)
		return force ? 0 : cow_err_set(err, rc, "%s is in use: a process has it open", dev);
	if (rc)
		return cow_err_sys(err, rc, "detach %s", dev);
	for (i = 0; i < DETACH_TRIES && backing(dev, path, sizeof(path)); i++)
		cow_sleep_ms(DETACH_MS);
	return 0;
}

/*
 * The kernel takes the size that it remembers of the file, so it has to ask for it again. It
 * forgets an answer that a write to the file overtook, though statx() tells it: only the
 * device shows which size was taken.
 */
static int take_size(int fd, const char *disk, uint64_t size)
{
	uint64_t taken = UINT64_MAX;
	struct statx stx;
	unsigned i;

	for (i = 0; i < REFRESH_TRIES && taken != size; i++) {
		if (i)
			cow_sleep_ms(REFRESH_MS);
		if (statx(AT_FDCWD, disk, AT_STATX_FORCE_SYNC, STATX_SIZE, &stx) ||
		    ioctl(fd, LOOP_SET_CAPACITY, 0) || ioctl(fd, BLKGETSIZE64, &taken))
			return -errno;
	}
	return taken == size ? 0 : -EAGAIN;
}

int loopdev_resize(const char *dev, const char *disk, uint64_t size)
{
	COW_CLEANUP_CLOSE int fd = open(dev, O_RDONLY | O_CLOEXEC);

	return fd < 0 ? -errno : take_size(fd, disk, cow_round_down(size, SECTOR));
}
