// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Loading what talks to Xen (module/xen.c), after a look whether there is any.
 */
#include "xen-lib.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "kmod.h"

#define MODULE "cowd-xen"
#define HYPERVISOR "/sys/hypervisor/type"
#define CAPABILITIES "/proc/xen/capabilities"
#define XENSTORED "/run/xenstored/socket"

const struct xen_lib *xen_lib_fake;

static bool file_says(const char *path, const char *word)
{
	COW_CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
	char buf[64] = "";

	return fd >= 0 && read(fd, buf, sizeof(buf) - 1) > 0 && strstr(buf, word);
}

static int check_node(const char *path, const char *module, struct cow_err *why)
{
	if (access(path, F_OK))
		kmod_load(module);
	return access(path, R_OK | W_OK) ? cow_err_sys(why, -errno, "%s", path) : 0;
}

int xen_lib_probe(struct cow_err *why)
{
	const struct xen_lib *lib;
	int rc;

	if (xen_lib_fake)
		return 0;
	if (!file_says(HYPERVISOR, "xen"))
		return cow_err_set(why, -ENODEV, "this machine does not run under Xen");
	rc = check_node("/dev/xen/gntdev", "xen_gntdev", why);
	if (!rc)
		rc = check_node("/dev/xen/evtchn", "xen_evtchn", why);
	/* In domain 0, who talks to a xenstored that is not there waits for it for ever. */
	if (!rc && file_says(CAPABILITIES, "control_d") && access(XENSTORED, F_OK))
		rc = cow_err_set(why, -ENOENT, "xenstored is not running (no " XENSTORED ")");
	return rc ? rc : xen_lib_load(&lib, why);
}

int xen_lib_load(const struct xen_lib **ret, struct cow_err *err)
{
#ifdef HAVE_XEN
	const struct cow_module *module;
	int rc = 0;
#endif

	if (xen_lib_fake) {
		*ret = xen_lib_fake;
		return 0;
	}
#ifdef HAVE_XEN
	rc = cow_module_load(MODULE, sizeof(**ret), &module, err);
	if (!rc)
		*ret = (const struct xen_lib *)module;
	return rc;
#else
	return cow_err_set(err, -ENOSYS, "this cowd was built without Xen's libraries");
#endif
}
