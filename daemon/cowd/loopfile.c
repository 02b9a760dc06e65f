// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Loop devices over image files, see loopfile.h. Direct I/O, because a second copy
 * in the page cache is of no use to a disk and its writeback needs memory when there is
 * none: asked for with the block size that the file system wants. Where the
 * kernel refuses, the device works through the page cache, and says so.
 */
#include "loopfile.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define ATTACH_TRIES 64		/* another process may take the free device first */
#define APPEAR_MS 10
#define LOCK_TRIES 10		/* udevd itself holds the lock for a moment */
#define LOCK_MS 5

int loopfile_geometry(int fd, uint32_t *ret_unit, uint64_t *ret_size)
{
	int unit;

	if (ioctl(fd, BLKSSZGET, &unit) || ioctl(fd, BLKGETSIZE64, ret_size))
		return -errno;
	if (unit <= 0 || !cow_is_pow2((uint64_t)unit))
		return -EINVAL;
	*ret_unit = (uint32_t)unit;
	return 0;
}

/* Fills @l from the device that l->fd is. */
static int learn(struct loopfile *l)
{
	struct loop_info64 info;
	struct stat st;

	if (ioctl(l->fd, LOOP_GET_STATUS64, &info) || fstat(l->fd, &st))
		return -errno;
	l->rdev = st.st_rdev;
	l->direct = info.lo_flags & LO_FLAGS_DIRECT_IO;
	return loopfile_geometry(l->fd, &l->unit, &l->size);
}

static int open_again(const struct cow_chain_file *f)
{
	char proc[64];
	int fd;

	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", f->fd);
	fd = open(proc, (f->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/*
 * udevd leaves a device alone while somebody else has it locked: what is in an image is
 * nobody's business on this machine.
 */
static void keep_udev_off(int fd)
{
	for (unsigned i = 0; i < LOCK_TRIES && flock(fd, LOCK_EX | LOCK_NB); i++)
		cow_sleep_ms(LOCK_MS);
}

/* 0: configured, *ret_fd is open. 1: try another device. */
static int configure(const char *dev, int file, const struct cow_chain_file *f, int *ret_fd)
{
	struct loop_config cfg = { .fd = (uint32_t)file, .block_size = f->unit ? f->unit : 512 };
	int fd = open(dev, (f->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	int rc;

	if (fd < 0)
		return errno == EBUSY || errno == ENXIO ? 1 : -errno;
	cfg.info.lo_flags = LO_FLAGS_AUTOCLEAR | (f->unit ? LO_FLAGS_DIRECT_IO : 0) |
			    (f->writable ? 0 : LO_FLAGS_READ_ONLY);
	keep_udev_off(fd);
	/* For people; truncated, as losetup does. */
	snprintf((char *)cfg.info.lo_file_name, sizeof(cfg.info.lo_file_name), "%s", f->path);
	if (ioctl(fd, LOOP_CONFIGURE, &cfg)) {
		rc = errno == EBUSY || errno == EAGAIN ? 1 : -errno;
		close(fd);
		return rc;
	}
	*ret_fd = fd;
	return 0;
}

static int attach_free(int file, const struct cow_chain_file *f, int *ret_fd)
{
	COW_CLEANUP_CLOSE int ctl = open(LOOP_CONTROL, O_RDWR | O_CLOEXEC);
	char dev[32];
	int n, rc = 1;

	if (ctl < 0)
		return -errno;
	for (unsigned i = 0; i < ATTACH_TRIES && rc == 1; i++) {
		n = ioctl(ctl, LOOP_CTL_GET_FREE);
		if (n < 0)
			return -errno;
		snprintf(dev, sizeof(dev), "/dev/loop%d", n);
		/* A device that GET_FREE has just made appears when devtmpfs or udev got to it. */
		if (access(dev, F_OK))
			cow_sleep_ms(APPEAR_MS);
		rc = configure(dev, file, f, ret_fd);
		if (rc == -ENOENT && i < ATTACH_TRIES - 1)
			rc = 1;
	}
	return rc == 1 ? -EBUSY : rc;
}

int loopfile_attach(const struct cow_chain_file *f, struct loopfile *ret, struct cow_err *err)
{
	COW_CLEANUP_CLOSE int file = open_again(f);
	int rc;

	*ret = (struct loopfile){ .fd = -1 };
	if (file < 0)
		return cow_err_sys(err, file, "%s: cannot be opened again", f->path);
	/* The device keeps this opening, and its locks, as long as it is attached. */
	rc = cow_lock_too(file, f->writable);
	if (rc == 0)
		rc = attach_free(file, f, &ret->fd);
	if (rc == 0)
		rc = learn(ret);
	if (rc) {
		loopfile_close(ret);
		return cow_err_sys(err, rc, "%s: no loop device for it", f->path);
	}
	return 0;
}

/* Is @fd a loop device over exactly @f? */
static bool is_over(int fd, const struct cow_chain_file *f)
{
	struct loop_info64 info;

	if (ioctl(fd, LOOP_GET_STATUS64, &info))
		return false;
	return info.lo_device == f->dev && info.lo_inode == f->ino && !info.lo_offset &&
	       !info.lo_sizelimit && !(f->writable && info.lo_flags & LO_FLAGS_READ_ONLY);
}

/* The file of the block device @rdev in /dev, which has the kernel's name. */
static int find_device(dev_t rdev, char *ret, size_t size)
{
	char link[64], target[256];
	const char *name;
	ssize_t n;

	snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(rdev), minor(rdev));
	n = readlink(link, target, sizeof(target) - 1);
	if (n < 0)
		return -errno;
	target[n] = '\0';
	name = strrchr(target, '/');
	snprintf(ret, size, "/dev/%s", name ? name + 1 : target);
	return 0;
}

int loopfile_adopt(const struct cow_chain_file *f, dev_t rdev, struct loopfile *ret,
		   struct cow_err *err)
{
	char dev[300];
	struct stat st;
	int rc = find_device(rdev, dev, sizeof(dev));

	*ret = (struct loopfile){ .fd = -1 };
	if (rc)
		return cow_err_sys(err, rc, "device %u:%u", major(rdev), minor(rdev));
	ret->fd = open(dev, (f->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	if (ret->fd < 0 || fstat(ret->fd, &st))
		rc = -errno;
	else if (st.st_rdev != rdev || !is_over(ret->fd, f))
		rc = cow_err_set(err, -ESTALE, "%s is not over %s", dev, f->path);
	else
		rc = learn(ret);
	if (rc) {
		loopfile_close(ret);
		return cow_err_sys(err, rc, "%s", dev);
	}
	keep_udev_off(ret->fd);
	return 0;
}

bool loopfile_uses(dev_t rdev, uint64_t dev, uint64_t ino)
{
	struct loop_info64 info;
	char path[300];
	int fd = find_device(rdev, path, sizeof(path));
	bool ret;

	if (fd == 0)
		fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return false;
	ret = !ioctl(fd, LOOP_GET_STATUS64, &info) && info.lo_device == dev && info.lo_inode == ino;
	close(fd);
	return ret;
}

int loopfile_resize(struct loopfile *l)
{
	if (ioctl(l->fd, LOOP_SET_CAPACITY, 0))
		return -errno;
	return loopfile_geometry(l->fd, &l->unit, &l->size);
}

void loopfile_close(struct loopfile *l)
{
	if (l->fd >= 0)
		close(l->fd);
	l->fd = -1;
}
