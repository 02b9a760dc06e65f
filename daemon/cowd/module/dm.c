// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowd-dm.so: device-mapper nodes by libdevmapper. The only file that knows the
 * library; what it promises is in dmnode.h. It keeps nothing open between calls:
 * the daemon's child processes close every descriptor, and the library would go on
 * to use the number of one.
 *
 * Where udevd runs, it makes the files of /dev/mapper and we wait for it; elsewhere the
 * library makes them.
 */
#include <errno.h>
#include <libdevmapper.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#include "cow/log.h"
#include "cow/opt.h"
#include "cowd/dmnode-ops.h"

#define LEVEL_MASK 7		/* of the library's levels, which are syslog's, and flags */
#define LEVEL_ERR 3
#define LEVEL_NOTICE 5
#define UDEVD "/run/udev/control"	/* its socket, which can outlive it */
#define UDEV_MS 30000		/* an event takes milliseconds; longer means that nobody works on it */
#define UDEV_POLL_MS 2
#define FILE_TRIES 200		/* until the node's file is there: 2 s */
#define FILE_MS 10
#define REMOVE_TRIES 20		/* who opens a device only to look at it has gone by then: 1 s */
#define REMOVE_MS 50

/* Known to contrib/udev/11-dm-cowd.rules: the contents may be looked at. */
#define UDEV_SCAN DM_SUBSYSTEM_UDEV_FLAG0
#define UDEV_KEEP_OFF (DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG | DM_UDEV_DISABLE_DISK_RULES_FLAG | \
		       DM_UDEV_DISABLE_OTHER_RULES_FLAG)

/* The first error that the library told of since a call began. */
static char told[256];

static void __attribute__((format(printf, 5, 6)))
on_log(int level, const char *file, int line, int dm_errno, const char *fmt, ...)
{
	char text[sizeof(told)];
	va_list ap;

	(void)file;
	(void)line;
	(void)dm_errno;
	level &= LEVEL_MASK;
	if (level > LEVEL_NOTICE)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	text[strcspn(text, "\n")] = '\0';
	if (level <= LEVEL_ERR && !told[0])
		memcpy(told, text, sizeof(told));
	cow_log(COW_LOG_DEBUG, "libdevmapper: %s", text);
}

/* ---- one task ---- */

static void task_free(struct dm_task *t)
{
	if (t)
		dm_task_destroy(t);
	dm_lib_release();	/* closes the control node */
}

/* NULL: said why. */
static struct dm_task *task_new(int type, const char *name, struct cow_err *err)
{
	struct dm_task *t;

	told[0] = '\0';
	t = dm_task_create(type);
	if (t && (!name || dm_task_set_name(t, name)))
		return t;
	cow_err_set(err, -EIO, "device-mapper: %s", told[0] ? told : "libdevmapper failed");
	task_free(t);
	return NULL;
}

/* What the library said where the kernel gave no reason. */
static int task_error(struct dm_task *t, struct cow_err *err, const char *what, const char *name)
{
	int code = dm_task_get_errno(t);

	if (!code)
		return cow_err_set(err, -EIO, "cannot %s /dev/mapper/%s: %s", what, name,
				   told[0] ? told : "libdevmapper failed");
	return cow_err_sys(err, -code, "cannot %s /dev/mapper/%s", what, name);
}

static int task_run(struct dm_task *t, struct cow_err *err, const char *what, const char *name)
{
	return dm_task_run(t) ? 0 : task_error(t, err, what, name);
}

/* The library looks for its socket only, and once in the life of the process. */
static bool udevd_listens(void)
{
	const struct sockaddr_un addr = { .sun_family = AF_UNIX, .sun_path = UDEVD };
	COW_CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	return fd >= 0 && (!connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) ||
			   errno == EAGAIN);
}

/* Not by dm_udev_wait() alone: a udevd that was stopped meanwhile would have us wait for ever. */
static void wait_for_udev(uint32_t cookie, const char *name)
{
	unsigned waited = 0;
	int ready = 0;

	while (cookie && dm_udev_wait_immediate(cookie, &ready) && !ready) {
		if (waited >= UDEV_MS) {
			cow_log(COW_LOG_WARN, "/dev/mapper/%s: udevd does not answer, going on without",
				name);
			dm_udev_complete(cookie);
			dm_udev_wait(cookie);
			dm_udev_set_sync_support(0);
			return;
		}
		poll(NULL, 0, UDEV_POLL_MS);
		waited += UDEV_POLL_MS;
	}
}

/* For tasks that udev hears of: waits until it is done with it, or does its work. */
static int task_run_synced(struct dm_task *t, bool scan, struct cow_err *err, const char *what,
			   const char *name)
{
	uint32_t cookie = 0;
	uint16_t flags = scan ? UDEV_SCAN : UDEV_KEEP_OFF;
	int rc;

	if (!udevd_listens())
		dm_udev_set_sync_support(0);
	/* A kernel without semaphores, or all of them taken: do without udev. */
	if (!dm_task_set_cookie(t, &cookie, flags)) {
		dm_udev_set_sync_support(0);
		if (!dm_task_set_cookie(t, &cookie, flags))
			return task_error(t, err, what, name);
	}
	rc = task_run(t, err, what, name);
	wait_for_udev(cookie, name);
	dm_task_update_nodes();
	return rc;
}

/* A task without arguments beyond the name. */
static int simple(int type, const char *what, const char *name, struct cow_err *err)
{
	struct dm_task *t = task_new(type, name, err);
	int rc;

	if (!t)
		return -EIO;
	rc = task_run(t, err, what, name);
	task_free(t);
	return rc;
}

static int add_table(struct dm_task *t, const struct dmnode_table *table)
{
	if (table->read_only && !dm_task_set_ro(t))
		return -EIO;
	return dm_task_add_target(t, 0, table->sectors, table->type, table->params) ? 0 : -EIO;
}

/* ---- asking ---- */

static int dm_probe(struct cow_err *why)
{
	char version[64];
	struct dm_task *t = task_new(DM_DEVICE_VERSION, NULL, why);
	int rc = 0;

	if (!t)
		return -EIO;
	if (!dm_task_run(t) || !dm_task_get_driver_version(t, version, sizeof(version)))
		rc = cow_err_set(why, -ENODEV, "device-mapper does not answer: %s",
				 told[0] ? told : "libdevmapper failed");
	task_free(t);
	return rc;
}

static int dm_target(const char *type, uint32_t version[3], struct cow_err *why)
{
	struct dm_task *t = task_new(DM_DEVICE_GET_TARGET_VERSION, type, why);
	struct dm_versions *v = NULL;
	int rc = 0;

	if (!t)
		return -EIO;
	if (dm_task_run(t))
		v = dm_task_get_versions(t);
	if (v)
		memcpy(version, v->version, sizeof(v->version));
	else
		rc = cow_err_set(why, -ENOENT, "this kernel has no device-mapper target \"%s\"",
				 type);
	task_free(t);
	return rc;
}

/*
 * A task of type TABLE or STATUS, run. The node's facts are in @ret; its first target's
 * line in @ret_line (NULL without a table), valid until task_free(@ret_task).
 */
static int ask(int type, const char *name, struct dmnode_info *ret, struct dm_task **ret_task,
	       char **ret_line, struct cow_err *err)
{
	struct dm_task *t = task_new(type, name, err);
	uint64_t start = 0, length = 0;
	char *target = NULL, *line = NULL, *uuid;
	struct dm_info info;
	const char *u;
	int rc;

	if (!t)
		return -EIO;
	/* A status must not make the target write anything. */
	dm_task_no_flush(t);
	rc = task_run(t, err, "ask for", name);
	if (!rc && !dm_task_get_info(t, &info))
		rc = task_error(t, err, "ask for", name);
	if (!rc && !info.exists)
		rc = -ENXIO;
	if (rc) {
		task_free(t);
		return rc == -ENXIO ? -ENOENT : rc;
	}
	u = dm_task_get_uuid(t);
	uuid = cow_asprintf("%s%s", DMNODE_UUID_PREFIX, name);
	*ret = (struct dmnode_info){
		.ours = u && uuid && !strcmp(u, uuid),
		.suspended = info.suspended,
		.read_only = info.read_only,
		.live_table = info.live_table,
		.open_count = info.open_count,
		.major = info.major,
		.minor = info.minor,
	};
	cow_free(uuid);
	dm_get_next_target(t, NULL, &start, &length, &target, &line);
	snprintf(ret->type, sizeof(ret->type), "%s", target ? target : "");
	ret->sectors = length;
	*ret_line = line;
	*ret_task = t;
	return 0;
}

static int dm_node_info(const char *name, struct dmnode_info *ret, struct cow_err *err)
{
	struct cow_err own = { 0 };
	struct dm_task *t;
	char *line;
	int rc = ask(DM_DEVICE_TABLE, name, ret, &t, &line, &own);

	/* Not being there is an answer, and needs no sentence. */
	if (rc && rc != -ENOENT)
		return cow_err_set(err, rc, "%s", cow_err_text(&own, rc));
	if (!rc)
		task_free(t);
	return rc;
}

static int line_of(int type, const char *name, char **ret, struct cow_err *err)
{
	struct dmnode_info info;
	struct dm_task *t;
	char *line;
	int rc = ask(type, name, &info, &t, &line, err);

	if (rc)
		return cow_err_sys(err, rc, "/dev/mapper/%s", name);
	*ret = cow_strdup(line ? line : "");
	task_free(t);
	return *ret ? 0 : cow_err_sys(err, -ENOMEM, "/dev/mapper/%s", name);
}

static int dm_params(const char *name, char **ret, struct cow_err *err)
{
	return line_of(DM_DEVICE_TABLE, name, ret, err);
}

static int dm_status(const char *name, char **ret, struct cow_err *err)
{
	return line_of(DM_DEVICE_STATUS, name, ret, err);
}

/* ---- changing ---- */

static int load_table(const char *name, const struct dmnode_table *table, struct cow_err *err)
{
	struct dm_task *t = task_new(DM_DEVICE_RELOAD, name, err);
	int rc;

	if (!t)
		return -EIO;
	rc = add_table(t, table) ? task_error(t, err, "give a table to", name)
				 : task_run(t, err, "give a table to", name);
	task_free(t);
	return rc;
}

/* Resuming puts a loaded table in place, suspending for that moment. */
static int resume(const char *name, bool flush, bool scan, struct cow_err *err)
{
	struct dm_task *t = task_new(DM_DEVICE_RESUME, name, err);
	int rc;

	if (!t)
		return -EIO;
	/* A mounted file system must not be frozen: that writes to the device. */
	if (!dm_task_skip_lockfs(t) || (!flush && !dm_task_no_flush(t)))
		rc = task_error(t, err, "resume", name);
	else
		rc = task_run_synced(t, scan, err, "resume", name);
	task_free(t);
	return rc;
}

static int dm_replace(const char *name, const struct dmnode_table *table, bool flush, bool scan,
		      struct cow_err *err)
{
	int rc = load_table(name, table, err);

	if (rc)
		return rc;
	rc = resume(name, flush, scan, err);
	if (rc)
		simple(DM_DEVICE_CLEAR, "clear", name, NULL);
	return rc;
}

static int dm_suspend(const char *name, bool flush, struct cow_err *err)
{
	struct dm_task *t = task_new(DM_DEVICE_SUSPEND, name, err);
	int rc;

	if (!t)
		return -EIO;
	if (!dm_task_skip_lockfs(t) || (!flush && !dm_task_no_flush(t)))
		rc = task_error(t, err, "suspend", name);
	else
		rc = task_run(t, err, "suspend", name);
	task_free(t);
	return rc;
}

static int dm_resume(const char *name, bool scan, struct cow_err *err)
{
	return resume(name, false, scan, err);
}

static int dm_message(const char *name, const char *message, struct cow_err *err)
{
	struct dm_task *t = task_new(DM_DEVICE_TARGET_MSG, name, err);
	int rc;

	if (!t)
		return -EIO;
	if (!dm_task_set_sector(t, 0) || !dm_task_set_message(t, message))
		rc = task_error(t, err, "send a message to", name);
	else
		rc = task_run(t, err, "send a message to", name);
	task_free(t);
	return rc;
}

/* ---- removing ---- */

/* @deferred: when the last one closes it. -EBUSY has no sentence. */
static int try_remove(const char *name, bool deferred, struct cow_err *err)
{
	struct dm_task *t = task_new(DM_DEVICE_REMOVE, name, err);
	struct cow_err own = { 0 };
	int rc;

	if (!t)
		return -EIO;
	if (deferred && !dm_task_deferred_remove(t))
		rc = task_error(t, &own, "remove", name);
	else
		rc = task_run_synced(t, false, &own, "remove", name);
	task_free(t);
	if (rc == -ENXIO)	/* gone meanwhile */
		return 0;
	if (rc && rc != -EBUSY)
		cow_err_set(err, rc, "%s", cow_err_text(&own, rc));
	return rc;
}

/* From now on its users get errors, and what waits in it does, too. */
static int remove_in_use(const char *name, uint64_t sectors, struct cow_err *err)
{
	const struct dmnode_table broken = { .sectors = sectors, .type = "error", .params = "" };
	int rc = dm_replace(name, &broken, false, false, err);

	return rc ? rc : try_remove(name, true, err);
}

static int dm_remove(const char *name, bool force, struct cow_err *err)
{
	struct dmnode_info info;
	unsigned i;
	int rc = dm_node_info(name, &info, err);

	if (rc)
		return rc;
	if (!info.ours)
		return cow_err_set(err, -EPERM, "/dev/mapper/%s is not ours", name);
	/* udev and its like open every device for a moment. */
	for (i = 0, rc = -EBUSY; rc == -EBUSY && i < REMOVE_TRIES; i++) {
		if (i)
			poll(NULL, 0, REMOVE_MS);
		rc = try_remove(name, false, err);
	}
	if (rc == -EBUSY && force)
		return remove_in_use(name, info.sectors ? info.sectors : 1, err);
	if (rc == -EBUSY)
		cow_err_set(err, rc, "/dev/mapper/%s is in use: a process has it open", name);
	return rc;
}

/* ---- making ---- */

/* Is the file there, and this node's? */
static bool has_file(const char *name, const struct dmnode_info *info)
{
	char path[256];
	struct stat st;

	snprintf(path, sizeof(path), "/dev/mapper/%s", name);
	return stat(path, &st) == 0 && S_ISBLK(st.st_mode) &&
	       st.st_rdev == makedev(info->major, info->minor);
}

static int wait_for_file(const char *name, struct cow_err *err)
{
	struct dmnode_info info;
	unsigned i;
	int rc = dm_node_info(name, &info, err);

	if (rc)
		return cow_err_sys(err, rc, "/dev/mapper/%s is gone", name);
	if (has_file(name, &info))
		return 0;
	/* udev's rules do not know device-mapper, or it is not there after all. */
	simple(DM_DEVICE_MKNODES, "make the file of", name, NULL);
	for (i = 0; i < FILE_TRIES; i++) {
		if (has_file(name, &info))
			return 0;
		poll(NULL, 0, FILE_MS);
	}
	return cow_err_set(err, -ENOENT, "/dev/mapper/%s does not appear", name);
}

static int check_new_name(const char *name, struct cow_err *err)
{
	struct dmnode_info info;
	int rc;

	if (!strcmp(name, "control"))
		return cow_err_set(err, -EINVAL,
				   "/dev/mapper/control is the control node of device-mapper itself");
	rc = dm_node_info(name, &info, err);
	if (rc)
		return rc == -ENOENT ? 0 : rc;
	return cow_err_set(err, -EEXIST, "/dev/mapper/%s exists already%s", name,
			   info.ours ? ", made by cowd" : " and is not ours");
}

static int run_create(struct dm_task *t, const char *name, const struct dmnode_table *table,
		      bool scan, struct cow_err *err)
{
	char uuid[256];

	snprintf(uuid, sizeof(uuid), "%s%s", DMNODE_UUID_PREFIX, name);
	if (!dm_task_set_uuid(t, uuid) || add_table(t, table))
		return task_error(t, err, "create", name);
	/* The library takes the node away again when the table is refused. */
	return task_run_synced(t, scan, err, "create", name);
}

static int dm_create(const char *name, const struct dmnode_table *table, bool scan,
		     struct cow_err *err)
{
	struct dm_task *t;
	int rc = check_new_name(name, err);

	if (rc)
		return rc;
	t = task_new(DM_DEVICE_CREATE, name, err);
	if (!t)
		return -EIO;
	rc = run_create(t, name, table, scan, err);
	task_free(t);
	if (rc)
		return rc;
	rc = wait_for_file(name, err);
	if (rc)
		dm_remove(name, true, NULL);
	return rc;
}

/* ---- the table ---- */

static const struct dmnode_ops dm_ops = {
	.module = { .version = NULL, .size = sizeof(dm_ops) },
	.probe = dm_probe,
	.target = dm_target,
	.info = dm_node_info,
	.params = dm_params,
	.status = dm_status,
	.create = dm_create,
	.replace = dm_replace,
	.suspend = dm_suspend,
	.resume = dm_resume,
	.message = dm_message,
	.remove = dm_remove,
};

const struct cow_module *cow_module_register(void)
{
	static struct dmnode_ops ready;

	ready = dm_ops;
	ready.module.version = cow_version;
	dm_log_with_errno_init(on_log);
	dm_set_dev_dir("/dev");
	/* Names of devices hold nothing that the library would have to encode. */
	dm_set_name_mangling_mode(DM_STRING_MANGLING_NONE);
	return &ready.module;
}
