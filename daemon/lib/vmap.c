// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The volatile map's file: where it lies, how it is named, and whether one that
 * was found may be believed. What is in it is meta.c's business.
 */
#include "vmap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "cow/log.h"

#define VMAP_MAGIC	0x31504d56574f43ULL	/* "COWVMP1"; change with the layout */
#define VMAP_SLOTS_OFF	4096u
#define VMAP_CHUNK	16u			/* blocks that memory is reserved for at once */
#define BOOT_ID_LEN	36
#define VMAP_SLOTS_MAX	(1u << 22)		/* 16 GiB of metadata */

struct vmap_header {
	uint64_t magic;
	uint64_t session;
	uint64_t dev, ino;
	uint32_t nslots;
	uint32_t slot_bytes;
	char boot_id[BOOT_ID_LEN + 4];
};

/* After a reboot page caches are gone and so is the truth of a volatile map. */
static void read_boot_id(char out[BOOT_ID_LEN + 4])
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);

	memset(out, 0, BOOT_ID_LEN + 4);
	if (fd < 0)
		return;
	if (read(fd, out, BOOT_ID_LEN) != BOOT_ID_LEN)
		memset(out, 0, BOOT_ID_LEN);
	close(fd);
}

static bool on_tmpfs(const char *dir)
{
	struct statfs sfs;

	return statfs(dir, &sfs) == 0 && sfs.f_type == TMPFS_MAGIC;
}

/*
 * One answer for every process of a user on a machine, whatever its run
 * directory: an image is found by what it is. /run is tmpfs on most systems;
 * where it is not, /dev/shm. COW_VMAP_DIR is for tests and odd machines.
 */
static char *vmap_dir(void)
{
	const char *env = secure_getenv("COW_VMAP_DIR");

	if (env)
		return cow_strdup(env);
	if (geteuid() == 0 && on_tmpfs("/run"))
		return cow_strdup("/run/cowd-vmap");
	return cow_asprintf("/dev/shm/cowd-vmap-%u", (unsigned)geteuid());
}

/* Opens the folder, makes it if needed; refuses one that others could have prepared. */
static int open_dir(bool make, char **ret_path)
{
	char *path COW_CLEANUP_FREE = vmap_dir();
	struct stat st;
	int fd;

	if (!path)
		return -ENOMEM;
	if (make && mkdir(path, 0700) && errno != EEXIST)
		return -errno;
	fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) || st.st_uid != geteuid() || (st.st_mode & 022)) {
		close(fd);
		return -EPERM;
	}
	if (ret_path) {
		*ret_path = path;
		path = NULL;
	}
	return fd;
}

static void file_name(char *buf, size_t len, uint64_t dev, uint64_t ino)
{
	snprintf(buf, len, "%llx-%llx", (unsigned long long)dev, (unsigned long long)ino);
}

static size_t data_offset(uint32_t nslots)
{
	return cow_round_up(VMAP_SLOTS_OFF + (size_t)nslots * sizeof(struct vmap_slot),
			    COW_META_BLOCK);
}

static int map_memory(struct vmap *v, int prot)
{
	size_t off = data_offset(v->nslots);

	v->bytes = off + (size_t)v->nslots * COW_META_BLOCK;
	if (v->fd >= 0)
		v->base = mmap(NULL, v->bytes, prot, MAP_SHARED, v->fd, 0);
	else
		v->base = mmap(NULL, v->bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			       -1, 0);
	if (v->base == MAP_FAILED) {
		v->base = NULL;
		return -errno;
	}
	v->slots = (struct vmap_slot *)((uint8_t *)v->base + VMAP_SLOTS_OFF);
	v->data = (uint8_t *)v->base + off;
	return 0;
}

static int open_nameless(struct cow_err *err)
{
	char *path COW_CLEANUP_FREE = NULL;
	int dir = open_dir(true, &path);
	int fd;

	if (dir < 0) {
		char *wanted COW_CLEANUP_FREE = vmap_dir();
		const char *name = wanted ? wanted : "run folder";

		if (dir == -EPERM)
			return cow_err_set(err, dir, "%s: the volatile map cannot be kept there: it "
					   "must be yours, and writable by nobody else", name);
		return cow_err_sys(err, dir, "%s: cannot keep the volatile map there", name);
	}
	fd = openat(dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0)
		fd = cow_err_sys(err, -errno, "%s: cannot keep the volatile map there", path);
	close(dir);
	return fd;
}

/* tmpfs may be full, and a store into a page it cannot give would be a SIGBUS. */
static int reserve(const struct vmap *v, size_t off, size_t len)
{
	int rc;

	do {
		rc = fallocate(v->fd, 0, (off_t)off, (off_t)len) ? -errno : 0;
	} while (rc == -EINTR);
	return rc;
}

int vmap_reserve(struct vmap *v, uint32_t slot)
{
	size_t from = VMAP_SLOTS_OFF + (size_t)slot * sizeof(struct vmap_slot);
	uint32_t n = (uint32_t)cow_min(VMAP_CHUNK, v->nslots - slot);
	int rc;

	if (v->fd < 0 || slot % VMAP_CHUNK)
		return 0;
	rc = reserve(v, from, (size_t)n * sizeof(struct vmap_slot));
	if (rc == 0)
		rc = reserve(v, data_offset(v->nslots) + (size_t)slot * COW_META_BLOCK,
			     (size_t)n * COW_META_BLOCK);
	return rc;
}

int vmap_create(struct vmap *v, uint32_t nslots, bool persist, uint64_t dev, uint64_t ino,
		struct cow_err *err)
{
	int rc;

	*v = (struct vmap){ .fd = -1, .nslots = nslots, .dev = dev, .ino = ino };
	if (persist) {
		v->fd = open_nameless(err);
		if (v->fd < 0)
			return v->fd;
		rc = ftruncate(v->fd, (off_t)(data_offset(nslots) +
					      (size_t)nslots * COW_META_BLOCK)) ? -errno : 0;
		if (rc == 0)
			rc = reserve(v, 0, VMAP_SLOTS_OFF);
		if (rc) {
			vmap_destroy(v, true);
			return cow_err_sys(err, rc, "volatile map");
		}
	}
	rc = map_memory(v, PROT_READ | PROT_WRITE);
	if (rc) {
		vmap_destroy(v, true);
		return cow_err_sys(err, rc, "volatile map");
	}
	return 0;
}

int vmap_name(struct vmap *v, uint64_t session)
{
	struct vmap_header *h = v->base;
	char proc[64], name[64];
	int dir, rc = 0;

	if (v->fd < 0)
		return 0;
	*h = (struct vmap_header){
		.magic = VMAP_MAGIC,
		.session = session,
		.dev = v->dev,
		.ino = v->ino,
		.nslots = v->nslots,
		.slot_bytes = sizeof(struct vmap_slot),
	};
	read_boot_id(h->boot_id);
	if (!h->boot_id[0])
		return -EIO;	/* without it nobody could believe the map later */
	if (v->name)
		return 0;
	dir = open_dir(true, NULL);
	if (dir < 0)
		return dir;
	file_name(name, sizeof(name), v->dev, v->ino);
	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", v->fd);
	unlinkat(dir, name, 0);
	if (linkat(AT_FDCWD, proc, dir, name, AT_SYMLINK_FOLLOW))
		rc = -errno;
	close(dir);
	if (rc == 0) {
		v->name = cow_strdup(name);
		rc = v->name ? 0 : -ENOMEM;
	}
	return rc;
}

void vmap_spoil(struct vmap *v)
{
	if (v->fd >= 0 && v->base)
		((struct vmap_header *)v->base)->session = 0;
}

static bool believable(const struct vmap *v, uint64_t file_bytes, uint64_t session)
{
	const struct vmap_header *h = v->base;
	char boot[BOOT_ID_LEN + 4];

	read_boot_id(boot);
	return h->magic == VMAP_MAGIC && h->slot_bytes == sizeof(struct vmap_slot) &&
	       h->session == session && h->dev == v->dev && h->ino == v->ino &&
	       boot[0] && memcmp(h->boot_id, boot, sizeof(boot)) == 0 &&
	       h->nslots > 0 && h->nslots <= VMAP_SLOTS_MAX &&
	       file_bytes == data_offset(h->nslots) + (size_t)h->nslots * COW_META_BLOCK;
}

static int find_in(struct vmap *v, int dir, const char *name, uint64_t session)
{
	struct stat st;
	int rc;

	v->fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (v->fd < 0)
		return -errno;
	if (fstat(v->fd, &st) || !S_ISREG(st.st_mode) || st.st_uid != geteuid() ||
	    (uint64_t)st.st_size < data_offset(1))
		return -ENOENT;
	v->bytes = VMAP_SLOTS_OFF;
	v->base = mmap(NULL, v->bytes, PROT_READ, MAP_SHARED, v->fd, 0);
	if (v->base == MAP_FAILED) {
		v->base = NULL;
		return -errno;
	}
	if (!believable(v, (uint64_t)st.st_size, session))
		return -ENOENT;
	v->nslots = ((const struct vmap_header *)v->base)->nslots;
	munmap(v->base, v->bytes);
	rc = map_memory(v, PROT_READ);
	return rc;
}

int vmap_find(struct vmap *v, uint64_t dev, uint64_t ino, uint64_t session)
{
	char name[64];
	int dir, rc;

	*v = (struct vmap){ .fd = -1, .dev = dev, .ino = ino };
	dir = open_dir(false, NULL);
	if (dir < 0)
		return dir;
	file_name(name, sizeof(name), dev, ino);
	rc = find_in(v, dir, name, session);
	close(dir);
	if (rc)
		vmap_destroy(v, false);
	else
		v->name = cow_strdup(name);
	return rc;
}

void vmap_destroy(struct vmap *v, bool forget)
{
	int dir;

	if (forget && v->name) {
		dir = open_dir(false, NULL);
		if (dir >= 0) {
			unlinkat(dir, v->name, 0);
			close(dir);
		}
	}
	if (v->base)
		munmap(v->base, v->bytes);
	if (v->fd >= 0)
		close(v->fd);
	cow_free(v->name);
	*v = (struct vmap){ .fd = -1 };
}
