// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * "cowctl xen-attach" and "xen-detach": a disk for a running guest of Xen, without a
 * toolstack. What a toolstack would write into xenstore is written here, and a cowd is
 * started for it, which serves the guest and ends with the disk.
 *
 * The folders are of type "dmu", that no toolstack knows: who attached the disk here
 * detaches it here. When the guest ends, cowd takes the folders away. One that was killed
 * is started again for that, by xen-detach.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cow/chain.h"
#include "cowctl.h"
#include "cowd/proto.h"
#include "cowd/rundir.h"
#include "cowd/xen-store.h"
#include "cowd/xen-vdev.h"

#define TYPE "dmu"
#define DOMAINS "/local/domain"
#define DOMAIN_MAX 0x7fefu
#define DETACH_MS 10000		/* for the guest to let go, and for the daemon to end */
#define LOOK_MS 20
#define OWN_FD "/proc/self/fd/"	/* an overlay without a name is in there, for cowd */
#define NO_FORMAT "zero"	/* of a disk without an image */
#define NO_IMAGE "null"

/* What is about to be attached or detached. */
struct disk {
	struct xen_store *store;
	struct xen_path path;
	char front[XEN_PATH_MAX];
	char name[RUN_NAME_MAX + 1];	/* of the device */
	const struct ctl_xen *x;	/* what is to be attached; NULL: it is being detached */
	bool read_only;
};

static int complain(const struct cow_err *err, int rc)
{
	fprintf(stderr, "cowctl: %s\n", cow_err_text(err, rc));
	return 1;
}

/* ---- who and what ---- */

struct search {
	struct xen_store *store;
	const char *name;
	uint64_t found;
	unsigned n;
};

static void look_at_domain(void *opaque, const char *id)
{
	char dir[XEN_PATH_MAX], name[256];
	struct search *s = opaque;
	uint64_t domain;

	snprintf(dir, sizeof(dir), DOMAINS "/%.16s", id);
	if (!xen_parse_number(id, DOMAIN_MAX, &domain) ||
	    xen_store_read(s->store, dir, "name", name, sizeof(name)) || strcmp(name, s->name))
		return;
	s->found = domain;
	s->n++;
}

/* A number or a name. */
static int find_domain(struct xen_store *store, const char *text, uint64_t *ret, struct cow_err *err)
{
	struct search s = { .store = store, .name = text };
	int rc;

	if (xen_parse_number(text, DOMAIN_MAX, ret))
		return 0;
	rc = xen_store_list(store, DOMAINS, look_at_domain, &s);
	if (rc)
		return cow_err_sys(err, rc, DOMAINS);
	if (s.n != 1)
		return cow_err_set(err, -ENOENT, s.n ? "several domains are called \"%.64s\""
						     : "there is no domain \"%.64s\"", text);
	*ret = s.found;
	return 0;
}

static int domain_lives(const struct disk *d, struct cow_err *err)
{
	char dir[XEN_PATH_MAX], id[16];
	int rc;

	snprintf(dir, sizeof(dir), DOMAINS "/%u", d->path.domain);
	rc = xen_store_read(d->store, dir, "domid", id, sizeof(id));
	if (rc == -ENOENT)
		return cow_err_set(err, rc, "there is no domain %u", d->path.domain);
	return rc ? cow_err_sys(err, rc, "%s", dir) : 0;
}

static int open_disk(struct disk *d, const char *domain, const char *vdev, struct cow_err *err)
{
	const struct xen_lib *lib;
	uint64_t front, back;
	uint32_t dev;
	int rc = xen_vdev_parse(vdev, &dev, err);

	memset(d, 0, sizeof(*d));
	if (!rc)
		rc = xen_lib_probe(err);
	if (!rc)
		rc = xen_lib_load(&lib, err);
	if (!rc)
		rc = xen_store_open(lib, &d->store, err);
	if (!rc)
		rc = find_domain(d->store, domain, &front, err);
	/* Not absolute: of the domain we are in. */
	if (!rc && (rc = xen_store_read_number(d->store, "domid", NULL, DOMAIN_MAX, &back)))
		cow_err_sys(err, rc, "the number of this domain");
	if (rc)
		return rc;
	xen_path_make(&d->path, (uint32_t)back, TYPE, (uint32_t)front, dev);
	snprintf(d->front, sizeof(d->front), DOMAINS "/%u/device/vbd/%u", d->path.domain, dev);
	snprintf(d->name, sizeof(d->name), "xen-%u-%u", d->path.domain, dev);
	return 0;
}

/* ---- attach ---- */

/* A folder that both ends can look into, and @owner write. */
static int make_folder(struct xen_store *s, const char *dir, uint32_t owner, uint32_t reader)
{
	int rc = xen_store_write(s, dir, NULL, "%s", "");

	return rc ? rc : xen_store_permit(s, dir, owner, reader);
}

static int write_front(struct xen_store *s, const struct disk *d)
{
	int rc = make_folder(s, d->front, d->path.domain, d->path.backend);

	if (!rc)
		rc = xen_store_write(s, d->front, "backend", "%s", d->path.dir);
	if (!rc)
		rc = xen_store_write(s, d->front, "backend-id", "%u", d->path.backend);
	if (!rc)
		rc = xen_store_write(s, d->front, "virtual-device", "%u", d->path.dev);
	if (!rc)
		rc = xen_store_write(s, d->front, "device-type", "disk");
	return rc ? rc : xen_store_write(s, d->front, "state", "%d", XEN_INITIALISING);
}

static int write_back(struct xen_store *s, const struct disk *d)
{
	char vdev[XEN_VDEV_NAME_MAX];
	int rc = make_folder(s, d->path.dir, d->path.backend, d->path.domain);

	if (!rc)
		rc = xen_store_write(s, d->path.dir, "frontend", "%s", d->front);
	if (!rc)
		rc = xen_store_write(s, d->path.dir, "frontend-id", "%u", d->path.domain);
	if (!rc)
		rc = xen_store_write(s, d->path.dir, "dev", "%s", xen_vdev_name(d->path.dev, vdev));
	if (!rc)
		rc = xen_store_write(s, d->path.dir, "mode", d->read_only ? "r" : "w");
	if (!rc)
		rc = xen_store_write(s, d->path.dir, "device-type", "disk");
	if (!rc && d->x->null)
		rc = xen_store_write(s, d->path.dir, "forget", "1");
	if (!rc && d->x->sector_size)
		rc = xen_store_write(s, d->path.dir, "logical-sector-size", "%s",
				     d->x->sector_size);
	if (!rc)
		rc = xen_store_write(s, d->path.dir, "online", "1");
	return rc ? rc : xen_store_write(s, d->path.dir, "state", "%d", XEN_INITIALISING);
}

static int write_both(struct xen_store *s, void *opaque)
{
	const struct disk *d = opaque;
	int rc;

	if (xen_store_read_state(s, d->front) != XEN_ABSENT ||
	    xen_store_read_state(s, d->path.dir) != XEN_ABSENT)
		return -EEXIST;
	rc = write_back(s, d);
	return rc ? rc : write_front(s, d);
}

static void remove_both(const struct disk *d)
{
	xen_store_remove(d->store, d->front);
	xen_store_remove_backend(d->store, &d->path);
}

/*
 * An overlay that only its descriptor leads to: gone when the last process that has it
 * open has ended. *@ret_path leads to it for who inherits the descriptor.
 */
static int make_private(const struct disk *d, const char *format, const char *image, char *path,
			size_t size, struct cow_err *err)
{
	COW_CLEANUP_FREE char *dir = NULL, *file = NULL;
	struct cow_create_cfg cfg = { .format = "dscow", .backing = image, .backing_format = format };
	int rc = run_dir(true, &dir, err), fd;

	if (!rc && !(file = run_path(dir, d->name, ".private")))
		rc = cow_err_set(err, -ENOMEM, "not enough memory");
	if (rc)
		return rc;
	cfg.path = file;
	unlink(file);
	rc = cow_image_create(&cfg, NULL, err);
	if (rc)
		return rc;
	fd = open(file, O_RDWR);
	rc = fd < 0 ? cow_err_sys(err, -errno, "%s", file) : 0;
	unlink(file);
	snprintf(path, size, OWN_FD "%d", fd);
	return rc;
}

/* cowd lies beside this program. */
static _Noreturn void exec_cowd(char **argv)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - sizeof("cowd"));
	char *slash;

	path[n > 0 ? n : 0] = '\0';
	slash = strrchr(path, '/');
	if (slash)
		strcpy(slash + 1, "cowd");
	execv(path, argv);
	fprintf(stderr, "cowctl: %s: %s\n", path, strerror(errno));
	_exit(1);
}

/* Returns when the disk can be used, or not: 0, or cowd's exit status. */
static int run_cowd(const struct disk *d, char **argv)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		/* Where the disk is tells somebody who attaches it, and nobody else. */
		if (!d->x && !freopen("/dev/null", "w", stdout))
			_exit(1);
		exec_cowd(argv);
	}
	if (pid < 0) {
		fprintf(stderr, "cowctl: fork: %s\n", strerror(errno));
		return 1;
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return 1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

/* @option and its @value go before the image; NULL: there is none. */
static int start_cowd(const struct disk *d, const char *format, const char *option,
		      const char *value, const char *image)
{
	char xenbus[XEN_PATH_MAX + 16];
	const char *argv[12] = { "cowd", "--frontend=xen", xenbus, "-p", format };
	int n = 5;

	snprintf(xenbus, sizeof(xenbus), "--xenbus=%s", d->path.dir);
	if (option) {
		argv[n++] = option;
		argv[n++] = value;
	}
	if (d->read_only)
		argv[n++] = "-r";
	argv[n++] = "--";
	argv[n++] = d->name;
	argv[n] = image;
	return run_cowd(d, (char **)(uintptr_t)argv);
}

static int start_private(const struct disk *d, const char *image)
{
	char own[PATH_MAX], base[PATH_MAX];
	struct cow_err err = { 0 };
	int rc = realpath(image, base) ? 0 : cow_err_sys(&err, -errno, "%s", image);

	if (!rc)
		rc = make_private(d, d->x->format, base, own, sizeof(own), &err);
	return rc ? complain(&err, rc) : start_cowd(d, "dscow", "-b", base, own);
}

static int start_null(const struct disk *d, const char *size)
{
	char option[64];

	snprintf(option, sizeof(option), "size=%.48s", size);
	return start_cowd(d, NO_FORMAT, "-ro", option, NO_IMAGE);
}

static int start(const struct disk *d, const char *image)
{
	if (d->x->null)
		return start_null(d, d->x->size);
	if (d->x->private)
		return start_private(d, image);
	return start_cowd(d, d->x->format, NULL, NULL, image);
}

int ctl_xen_attach(const struct ctl_xen *x, const char *domain, const char *image, const char *vdev)
{
	struct cow_err err = { 0 };
	struct disk d;
	int rc = open_disk(&d, domain, vdev, &err), status = 1;

	d.x = x;
	d.read_only = x->read_only;
	if (!rc)
		rc = domain_lives(&d, &err);
	if (!rc) {
		rc = xen_store_transact(d.store, write_both, &d);
		if (rc == -EEXIST)
			cow_err_set(&err, rc, "domain %u has a disk %s already", d.path.domain, vdev);
		else if (rc)
			cow_err_sys(&err, rc, "%s", d.path.dir);
	}
	if (rc) {
		complain(&err, rc);
	} else {
		status = start(&d, image);
		if (status)
			remove_both(&d);
	}
	xen_store_close(d.store);
	return status;
}

/* ---- detach ---- */

static int ask_back(struct xen_store *s, void *opaque)
{
	const struct disk *d = opaque;
	int rc = xen_store_read_state(s, d->path.dir);

	if (rc == XEN_ABSENT)
		return -ENOENT;
	rc = xen_store_write(s, d->path.dir, "online", "0");
	return rc ? rc : xen_store_write(s, d->path.dir, "state", "%d", XEN_CLOSING);
}

static int ignore(void *arg, const char *text, size_t len)
{
	(void)arg;
	(void)text;
	(void)len;
	return 0;
}

static bool is_served(const struct disk *d)
{
	COW_CLEANUP_FREE char *dir = NULL;
	struct cow_err err = { 0 };

	return !run_dir(false, &dir, NULL) &&
	       !ctl_talk(dir, d->name, "state", DETACH_MS, ignore, NULL, &err);
}

/* Its end is the sign that the image is closed. */
static bool wait_for_end(const struct disk *d)
{
	for (unsigned ms = 0; ms < DETACH_MS; ms += LOOK_MS) {
		if (!is_served(d))
			return true;
		cow_sleep_ms(LOOK_MS);
	}
	return false;
}

static void stop_cowd(const struct disk *d, struct cow_err *err)
{
	COW_CLEANUP_FREE char *dir = NULL;
	char packet[PROTO_PACKET] = "";

	if (!run_dir(false, &dir, err) && !proto_join(packet, sizeof(packet), "stop") &&
	    !proto_join(packet, sizeof(packet), "--force"))
		ctl_talk(dir, d->name, packet, 0, ignore, NULL, err);
}

/*
 * A cowd that was killed left its name, and perhaps a guest that waits. So there is one again
 * for a moment, which goes on, or finds that the guest is gone and ends by itself. @lost: the
 * disk is one whose contents went with the killed one; then it comes after the guest was told
 * that the disk goes.
 */
static void revive(struct disk *d, bool lost)
{
	COW_CLEANUP_FREE struct run_state *st = cow_zalloc(sizeof(*st));
	COW_CLEANUP_FREE char *dir = NULL;
	bool has_image;
	char mode[8];

	if (!st || is_served(d) || run_dir(false, &dir, NULL) || run_state_read(dir, d->name, st))
		return;
	has_image = strncmp(st->image, OWN_FD, strlen(OWN_FD)) && strcmp(st->format, NO_FORMAT);
	if (has_image == lost)
		return;
	if (lost) {
		start_null(d, "512");
		return;
	}
	d->read_only = !xen_store_read(d->store, d->path.dir, "mode", mode, sizeof(mode)) &&
		       !strcmp(mode, "r");
	start_cowd(d, st->format, NULL, NULL, st->image);
}

static int take_back(struct disk *d, const char *vdev, struct cow_err *err)
{
	int rc;

	if (xen_store_read_state(d->store, d->path.dir) == XEN_ABSENT)
		return cow_err_set(err, -ENOENT, "domain %u has no disk %s that \"cowctl xen-attach\" "
				   "made", d->path.domain, vdev);
	revive(d, false);
	rc = xen_store_transact(d->store, ask_back, d);
	if (rc)		/* or it is over already */
		return rc == -ENOENT ? 0 : cow_err_sys(err, rc, "%s", d->path.dir);
	revive(d, true);
	return 0;
}

int ctl_xen_detach(const struct ctl_xen *x, const char *domain, const char *vdev)
{
	struct cow_err err = { 0 };
	struct disk d;
	int rc = open_disk(&d, domain, vdev, &err);

	if (!rc)
		rc = take_back(&d, vdev, &err);
	if (!rc && !wait_for_end(&d)) {
		if (x->force)
			stop_cowd(&d, &err);
		else
			rc = cow_err_set(&err, -EBUSY, "domain %u does not let go of %s yet; it is "
					 "detached when it does, or with --force", d.path.domain, vdev);
	}
	/* What a killed daemon, or one that was forced, left. */
	if (!rc)
		remove_both(&d);
	xen_store_close(d.store);
	return rc ? complain(&err, rc) : 0;
}
