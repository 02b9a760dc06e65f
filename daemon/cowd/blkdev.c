// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Block devices as the mount table and sysfs show them. Devices are told apart
 * by their numbers: /dev/mapper/NAME and /dev/dm-3 are one.
 */
#include "blkdev.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <mntent.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define DEPTH_MAX 8	/* of devices built on devices; the kernel has no name for more either */

int blkdev_facts(const char *dev, uint64_t *ret_bytes, dev_t *ret_rdev, struct cow_err *err)
{
	COW_CLEANUP_CLOSE int fd = open(dev, O_RDONLY | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		return cow_err_sys(err, -errno, "%s", dev);
	if (!S_ISBLK(st.st_mode))
		return cow_err_set(err, -ENOTBLK, "%s is not a block device", dev);
	if (ioctl(fd, BLKGETSIZE64, ret_bytes))
		return cow_err_sys(err, -errno, "%s: size", dev);
	*ret_rdev = st.st_rdev;
	return 0;
}

/* The number of the block device at @path; 0: there is none. */
static dev_t number_of(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISBLK(st.st_mode) ? st.st_rdev : 0;
}

/* ---- what is built on what ---- */

static dev_t read_number(const char *path)
{
	FILE *f = fopen(path, "re");
	unsigned maj, min;
	dev_t ret = 0;

	if (f && fscanf(f, "%u:%u", &maj, &min) == 2)
		ret = makedev(maj, min);
	if (f)
		fclose(f);
	return ret;
}

static bool stands_on(dev_t upper, dev_t lower, unsigned depth);

static bool slave_stands_on(const char *dir_path, dev_t lower, unsigned depth)
{
	DIR *dir = opendir(dir_path);
	struct dirent *e;
	char path[512];
	bool found = false;

	while (dir && !found && (e = readdir(dir))) {
		dev_t slave;

		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%.200s/dev", dir_path, e->d_name);
		slave = read_number(path);
		found = slave && stands_on(slave, lower, depth + 1);
	}
	if (dir)
		closedir(dir);
	return found;
}

/* Is @upper the device @lower, a partition of it, or built on it? */
static bool stands_on(dev_t upper, dev_t lower, unsigned depth)
{
	char path[128];
	size_t n;

	if (upper == lower)
		return true;
	if (depth == DEPTH_MAX)
		return false;
	n = (size_t)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u", major(upper),
			     minor(upper));
	snprintf(path + n, sizeof(path) - n, "/partition");
	if (access(path, F_OK) == 0) {
		dev_t whole;

		/* The folder of a partition is in that of its disk. */
		snprintf(path + n, sizeof(path) - n, "/../dev");
		whole = read_number(path);
		return whole && stands_on(whole, lower, depth + 1);
	}
	snprintf(path + n, sizeof(path) - n, "/slaves");
	return slave_stands_on(path, lower, depth);
}

/* ---- mounts ---- */

/*
 * The device that @ent is mounted from, or 0. Not asked of FUSE: any user can mount it from
 * whatever path he likes, and looking there could wait for him.
 */
static dev_t source_of(const struct mntent *ent)
{
	if (strncmp(ent->mnt_fsname, "/dev/", 5) || !strcmp(ent->mnt_type, "fuse") ||
	    !strncmp(ent->mnt_type, "fuse.", 5))
		return 0;
	return number_of(ent->mnt_fsname);
}

/* Calls @fn for each place where @dev is mounted, until it returns true. */
static bool each_mount(const char *dev, bool (*fn)(const char *dir, void *arg), void *arg)
{
	char buf[2 * PATH_MAX + 512];
	dev_t lower = number_of(dev), upper;
	struct mntent ent;
	bool stop = false;
	FILE *f = lower ? setmntent("/proc/self/mounts", "re") : NULL;

	if (!f)
		return false;
	while (!stop && getmntent_r(f, &ent, buf, sizeof(buf))) {
		upper = source_of(&ent);
		if (upper && stands_on(upper, lower, 0))
			stop = fn(ent.mnt_dir, arg);
	}
	endmntent(f);
	return stop;
}

static bool take_dir(const char *dir, void *arg)
{
	snprintf(arg, PATH_MAX, "%s", dir);
	return true;
}

int blkdev_claimed(const char *dev, struct cow_err *err)
{
	COW_CLEANUP_CLOSE int fd = open(dev, O_RDONLY | O_EXCL | O_CLOEXEC);
	char dir[PATH_MAX];

	if (fd >= 0 || errno != EBUSY)
		return 0;
	if (each_mount(dev, take_dir, dir))
		return cow_err_set(err, -EBUSY, "%s is in use: mounted on %s", dev, dir);
	return cow_err_set(err, -EBUSY, "%s is in use", dev);
}

static bool is_above(const char *mount, void *arg)
{
	const char *dir = arg;
	size_t n = strlen(mount);

	return !strncmp(dir, mount, n) && (dir[n] == '/' || dir[n] == '\0' || n == 1);
}

bool blkdev_carries(const char *dev, const char *dir)
{
	char copy[PATH_MAX];

	snprintf(copy, sizeof(copy), "%s", dir);
	return each_mount(dev, is_above, copy);
}

static bool sync_dir(const char *dir, void *arg)
{
	COW_CLEANUP_CLOSE int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	(void)arg;
	if (fd >= 0)
		syncfs(fd);
	return false;
}

void blkdev_sync(const char *dev)
{
	each_mount(dev, sync_dir, NULL);
}
