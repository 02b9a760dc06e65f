// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The file behind struct xen_kept (see xen-keep.h): a head that says which connection it
 * is of, and then the queues. What is in them is xen-ring.c's business.
 */
#include "xen-keep.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rundir.h"

#define MAGIC 0x32524e58574f43ull	/* "COWXNR2"; change with the layout */
#define BOOT_ID "/proc/sys/kernel/random/boot_id"
#define BOOT_ID_LEN 36
#define SUFFIX ".ring"

struct head {
	uint64_t magic;
	uint32_t valid;
	char boot_id[BOOT_ID_LEN + 4];
	char dir[XEN_PATH_MAX];
	struct xen_params params;
};

struct xen_keep {
	struct head *head;
	size_t bytes, queue_bytes;
	char *path;
};

/* Without it nobody could believe the file later. */
static int read_boot_id(char ret[BOOT_ID_LEN + 4])
{
	COW_CLEANUP_CLOSE int fd = open(BOOT_ID, O_RDONLY | O_CLOEXEC);

	memset(ret, 0, BOOT_ID_LEN + 4);
	if (fd < 0)
		return -errno;
	return read(fd, ret, BOOT_ID_LEN) == BOOT_ID_LEN ? 0 : -EIO;
}

static int fill_head(struct head *h, const char *dir, const struct xen_params *params)
{
	memset(h, 0, sizeof(*h));
	h->magic = MAGIC;
	snprintf(h->dir, sizeof(h->dir), "%s", dir);
	h->params = *params;
	return read_boot_id(h->boot_id);
}

static size_t head_bytes(void)
{
	return cow_round_up(sizeof(struct head), XEN_PAGE);
}

static struct xen_keep *keep_new(const char *name, const struct xen_params *params)
{
	COW_CLEANUP_FREE char *dir = NULL;
	struct xen_keep *k = cow_zalloc(sizeof(*k));

	if (!k || run_dir(false, &dir, NULL) || !(k->path = run_path(dir, name, SUFFIX))) {
		cow_free(k);
		return NULL;
	}
	k->queue_bytes = cow_round_up(
		xen_kept_bytes(xen_ring_entries((enum xen_abi)params->abi, params->pages)), XEN_PAGE);
	k->bytes = head_bytes() + params->queues * k->queue_bytes;
	return k;
}

static int map(struct xen_keep *k, int fd)
{
	void *p = mmap(NULL, k->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED)
		return -errno;
	k->head = p;
	return 0;
}

/* With its memory: a store into a page that the file system cannot give would be a SIGBUS. */
static int make_file(struct xen_keep *k)
{
	int rc;

	unlink(k->path);
	COW_CLEANUP_CLOSE int fd = open(k->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0)
		return -errno;
	rc = posix_fallocate(fd, 0, (off_t)k->bytes);
	return rc ? -rc : map(k, fd);
}

int xen_keep_create(const char *name, const char *dir, const struct xen_params *params,
		    struct xen_keep **ret, struct cow_err *err)
{
	struct xen_keep *k = keep_new(name, params);
	int rc = k ? make_file(k) : -ENOMEM;

	if (!rc)
		rc = fill_head(k->head, dir, params);
	if (rc) {
		cow_err_sys(err, rc, "%s: the file for what a killed daemon leaves",
			    k ? k->path : name);
		xen_keep_close(k, true);
		return rc;
	}
	*ret = k;
	return 0;
}

static int open_file(struct xen_keep *k)
{
	COW_CLEANUP_CLOSE int fd = open(k->path, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_uid != geteuid() ||
	    (uint64_t)st.st_size != k->bytes)
		return -ENOENT;
	return map(k, fd);
}

int xen_keep_find(const char *name, const char *dir, const struct xen_params *params,
		  struct xen_keep **ret)
{
	struct xen_keep *k = keep_new(name, params);
	struct head wanted;
	int rc = k ? open_file(k) : -ENOMEM;

	if (!rc)
		rc = fill_head(&wanted, dir, params);
	wanted.valid = 1;
	if (!rc && memcmp(k->head, &wanted, sizeof(wanted)))
		rc = -ENOENT;
	if (rc) {
		xen_keep_close(k, false);
		return rc;
	}
	*ret = k;
	return 0;
}

struct xen_kept *xen_keep_queue(struct xen_keep *k, unsigned queue)
{
	return (struct xen_kept *)((char *)k->head + head_bytes() + queue * k->queue_bytes);
}

void xen_keep_validate(struct xen_keep *k)
{
	__atomic_store_n(&k->head->valid, 1, __ATOMIC_RELEASE);
}

void xen_keep_forget(const char *name)
{
	COW_CLEANUP_FREE char *dir = NULL;
	COW_CLEANUP_FREE char *path = NULL;

	if (!run_dir(false, &dir, NULL) && (path = run_path(dir, name, SUFFIX)))
		unlink(path);
}

void xen_keep_close(struct xen_keep *k, bool forget)
{
	if (!k)
		return;
	if (forget)
		unlink(k->path);
	if (k->head)
		munmap(k->head, k->bytes);
	cow_free(k->path);
	cow_free(k);
}
