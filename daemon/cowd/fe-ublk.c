// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The ublk front end: a block device /dev/ublkbN that the kernel makes and this
 * process serves, and a dm-linear node /dev/mapper/NAME over it where there is
 * device-mapper. Here is the life of the two; requests are in fe-ublk-queue.c.
 *
 *	ADD_DEV, SET_PARAMS, all tags fetched, START_DEV, node          (new)
 *	START_USER_RECOVERY, all tags fetched, END_USER_RECOVERY, node  (taken up)
 *	node removed, STOP_DEV; then the queue is let go and the device deleted
 *
 * When this process is killed, the kernel keeps the device and what is asked of it.
 * The next one takes it up, and gets again what was under way. Some of that was
 * carried out already; to do it twice is right because none of our operations
 * depends on what was there before, and none was acknowledged, so nobody may rely
 * on an order between it and another one.
 *
 * For udev there is a file .ublkbN in the run directory while the contents of the device
 * are not for this machine: contrib/udev looks for it.
 *
 * A device is ours when it carries our mark: a number made of the run directory and
 * the name, which the kernel keeps with the device. Whoever holds the lock of the
 * name may thus take up or remove any device with its mark.
 */
#include "fe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blkdev.h"
#include "cow/log.h"
#include "dmnode.h"
#include "fe-ublk.h"
#include "linear.h"
#include "rundir.h"

/*
 * Of 64, 96 and 128 the depth does not matter to the speed of a thread that answers
 * from memory; a guest's disk rarely has more than 32 to 64 requests.
 */
#define DEPTH 64
#define DEPTH_MAX 1024		/* of a device that another version left */
#define IO_BYTES (512u << 10)	/* for the longest request; DEPTH of these are reserved */
#define IO_BYTES_MAX (32u << 20)
#define DISCARD_BYTES (256u << 20)	/* one takes the thread for a moment */
#define PHYSICAL_SHIFT 12
#define SHIFT_MAX 30

#define RECOVERY (UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE)
#define CHAR_CLASS "/sys/class/ublk-char"
#define BLOCK_FORMAT "/dev/ublkb%u"

/*
 * After a kill the kernel has to see the end of the process and to take back what it
 * held: milliseconds. If every tag was in use, which tune() prevents, Linux before 6.16
 * notices only by the time-out of a request, 30 seconds.
 */
#define QUIESCE_MS 60000
#define QUIESCE_LOOK_MS 5
#define BUSY_TRIES 20		/* udev and its like open every device for a moment */
#define BUSY_MS 50

struct job {
	struct fe *fe;
	bool running, force;
	void (*then)(struct fe *fe, int rc, const char *sentence);
};

struct fe {
	struct fe_cfg cfg;
	struct ublk_ctl *ctl;
	struct ublk_queue *queue;
	uint32_t id;
	char block[32];			/* "/dev/ublkbN" */
	char node[256];			/* "/dev/mapper/NAME"; "": none */
	uint64_t sectors;		/* of the device */
	unsigned depth;
	bool read_only, taken_up;
	bool live, named, stopping;
	bool leave;			/* for the next attempt to take it up */
	struct job job;			/* one at a time: start, stop */
	struct job resize;
	fe_done_fn *stop_done, *resize_done;
	void *stop_opaque, *resize_opaque;
};

static uint64_t sectors_of(struct cow_dev *dev)
{
	return cow_dev_size(dev) >> UBLK_SECTOR_SHIFT;
}

/* ---- which devices are ours ---- */

/* FNV-1a, terminating zero included. */
static uint64_t mix(uint64_t h, const char *s)
{
	do {
		h = (h ^ (uint8_t)*s) * 0x100000001b3ull;
	} while (*s++);
	return h;
}

static int mark_of(const char *name, uint64_t *ret, struct cow_err *err)
{
	COW_CLEANUP_FREE char *dir = NULL;
	int rc = run_dir(false, &dir, err);

	if (rc)
		return rc;
	*ret = mix(mix(mix(0xcbf29ce484222325ull, "cowd"), dir), name);
	return 0;
}

/* The file for udev: for cow_free(). NULL: no memory, or no run directory. */
static char *hint_of(uint32_t id)
{
	COW_CLEANUP_FREE char *dir = NULL;
	char suffix[16];

	if (run_dir(false, &dir, NULL))
		return NULL;
	snprintf(suffix, sizeof(suffix), "ublkb%u", id);
	return run_path(dir, ".", suffix);
}

static void give_hint(uint32_t id)
{
	COW_CLEANUP_FREE char *path = hint_of(id);
	int fd = path ? open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600) : -ENOMEM;

	if (fd >= 0)
		close(fd);
	else
		cow_log(COW_LOG_WARN, BLOCK_FORMAT ": udev cannot be told to keep off: %s", id,
			strerror(path ? errno : ENOMEM));
}

static void take_hint_back(uint32_t id)
{
	COW_CLEANUP_FREE char *path = hint_of(id);

	if (path)
		unlink(path);
}

static bool parse_block(const char *path, uint32_t *ret)
{
	char again[32];

	if (sscanf(path, BLOCK_FORMAT, ret) != 1)
		return false;
	snprintf(again, sizeof(again), BLOCK_FORMAT, *ret);
	return !strcmp(again, path);
}

static int dev_info(struct ublk_ctl *ctl, uint32_t id, struct ublksrv_ctrl_dev_info *ret)
{
	memset(ret, 0, sizeof(*ret));
	return ublk_ctl_cmd(ctl, UBLK_U_CMD_GET_DEV_INFO, id, ret, sizeof(*ret), 0);
}

/* ---- before anything is served ---- */

static int ublk_probe(struct cow_err *why)
{
	struct ublk_ctl *ctl;
	int rc = ublk_ctl_open(&ctl, why);

	if (!rc)
		ublk_ctl_close(ctl);
	return rc;
}

static int ublk_suits(struct cow_dev *dev, struct cow_err *why)
{
	return sectors_of(dev) ? 0
	       : cow_err_set(why, -EINVAL, "a block device has at least one sector of 512 bytes");
}

/* The kernel is still busy with the end of the killed daemon: wait for it. */
static bool wait_quiesced(struct ublk_ctl *ctl, uint32_t id, struct ublksrv_ctrl_dev_info *info)
{
	unsigned waited;

	for (waited = 0; info->state == UBLK_S_DEV_LIVE && waited < QUIESCE_MS;
	     waited += QUIESCE_LOOK_MS) {
		if (waited == 1000)
			cow_log(COW_LOG_INFO, "waiting until the kernel takes " BLOCK_FORMAT
				" back from a killed daemon", id);
		cow_sleep_ms(QUIESCE_LOOK_MS);
		if (dev_info(ctl, id, info))
			return false;
	}
	return info->state == UBLK_S_DEV_QUIESCED;
}

static bool ublk_alive(const char *name, const char *device)
{
	struct ublksrv_ctrl_dev_info info;
	struct ublk_ctl *ctl;
	bool alive = false;
	uint64_t mark;
	uint32_t id;

	if (!parse_block(device, &id) || mark_of(name, &mark, NULL) || ublk_ctl_open(&ctl, NULL))
		return false;
	if (!dev_info(ctl, id, &info) && info.ublksrv_flags == mark &&
	    (info.flags & RECOVERY) == RECOVERY)
		alive = wait_quiesced(ctl, id, &info);
	ublk_ctl_close(ctl);
	return alive;
}

static void remove_device(struct ublk_ctl *ctl, uint32_t id)
{
	int rc = ublk_ctl_cmd(ctl, UBLK_U_CMD_STOP_DEV, id, NULL, 0, 0);

	if (!rc)
		rc = ublk_ctl_cmd(ctl, UBLK_U_CMD_DEL_DEV_ASYNC, id, NULL, 0, 0);
	if (!rc)
		take_hint_back(id);
	cow_log(rc ? COW_LOG_WARN : COW_LOG_INFO, BLOCK_FORMAT ", left by a killed daemon: %s", id,
		rc ? strerror(-rc) : "removed");
}

/* All with our mark: one may have come to be just before the daemon could record it. */
static int remove_marked(const char *name, struct cow_err *err)
{
	struct ublksrv_ctrl_dev_info info;
	struct ublk_ctl *ctl;
	struct dirent *e;
	uint64_t mark;
	uint32_t id;
	DIR *dir;
	int rc = mark_of(name, &mark, err);

	if (rc)
		return rc;
	dir = opendir(CHAR_CLASS);
	if (!dir)
		return 0;	/* no driver, no devices */
	rc = ublk_ctl_open(&ctl, err);
	if (rc) {
		closedir(dir);
		return rc;
	}
	while ((e = readdir(dir)))
		if (sscanf(e->d_name, "ublkc%u", &id) == 1 && !dev_info(ctl, id, &info) &&
		    info.ublksrv_flags == mark)
			remove_device(ctl, id);
	ublk_ctl_close(ctl);
	closedir(dir);
	return 0;
}

static int ublk_clean(const char *name, const char *device, struct cow_err *err)
{
	int rc;

	(void)device;	/* the mark says more */
	/* The device first: what its users wait for ends, and the node can be changed. */
	rc = remove_marked(name, err);
	if (rc)
		return rc;
	return linear_exists(name) ? linear_detach(name, true, err) : 0;
}

/* ---- in the child ---- */

static int tell(int out_fd, int rc, const struct cow_err *err)
{
	if (rc)
		dprintf(out_fd, "%s", cow_err_text(err, rc));
	return -rc;
}

static void set_attribute(const struct fe *fe, const char *name, const char *value)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "/sys/block/ublkb%u/queue/%s", fe->id, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		cow_log(COW_LOG_WARN, "%s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

/*
 * To sort requests is for the disk below the images. And the last tag must not be used:
 * the kernel always holds it, and notices our end by that.
 */
static void tune(const struct fe *fe)
{
	char value[16];

	snprintf(value, sizeof(value), "%u", fe->depth - 1);
	set_attribute(fe, "scheduler", "none");
	set_attribute(fe, "nr_requests", value);
}

static int child_start(void *arg, int out_fd)
{
	struct fe *fe = ((struct job *)arg)->fe;
	struct cow_err err = { 0 };
	int rc = 0;

	fe_child_begin(out_fd);
	tune(fe);
	if (fe->node[0])
		rc = linear_attach(fe->cfg.name, fe->block, fe->read_only, &err);
	return tell(out_fd, rc, &err);
}

/* The process that has the block device @rdev open, 0: none. */
static long find_opener(dev_t rdev, const char *proc_dir, const char *pid)
{
	struct dirent *e;
	long found = 0;
	struct stat st;
	char path[320];
	DIR *dir;

	snprintf(path, sizeof(path), "%s/%.16s/fd", proc_dir, pid);
	dir = opendir(path);
	while (dir && !found && (e = readdir(dir))) {
		if (e->d_name[0] == '.')
			continue;
		/* Only what is below /dev: the rest could make us wait for whoever serves it. */
		char link[8], file[384];
		ssize_t n;

		snprintf(file, sizeof(file), "%.300s/%.16s", path, e->d_name);
		n = readlink(file, link, sizeof(link));
		if (n >= 5 && !memcmp(link, "/dev/", 5) && !stat(file, &st) &&
		    S_ISBLK(st.st_mode) && st.st_rdev == rdev)
			found = atol(pid);
	}
	if (dir)
		closedir(dir);
	return found;
}

/* Mounts and the like claim the device; that a process merely has it open only /proc tells. */
static int check_opened(const char *dev, struct cow_err *err)
{
	struct dirent *e;
	struct stat st;
	long pid = 0;
	DIR *dir;

	if (stat(dev, &st))
		return 0;
	dir = opendir("/proc");
	while (dir && !pid && (e = readdir(dir)))
		if (e->d_name[0] >= '1' && e->d_name[0] <= '9')
			pid = find_opener(st.st_rdev, "/proc", e->d_name);
	if (dir)
		closedir(dir);
	return pid ? cow_err_set(err, -EBUSY, "%s is in use: process %ld has it open", dev, pid)
		   : 0;
}

static int check_unused(const char *dev, struct cow_err *err)
{
	unsigned i;
	int rc = 0;

	for (i = 0; i < BUSY_TRIES; i++) {
		if (i)
			cow_sleep_ms(BUSY_MS);
		memset(err, 0, sizeof(*err));
		rc = blkdev_claimed(dev, err);
		if (!rc)
			rc = check_opened(dev, err);
		if (!rc)
			break;
	}
	return rc;
}

static int child_stop(void *arg, int out_fd)
{
	struct job *job = arg;
	struct fe *fe = job->fe;
	struct cow_err err = { 0 }, ignored = { 0 };
	int rc = 0;

	fe_child_begin(out_fd);
	if (job->force)
		blkdev_sync(fe->block);
	if (fe->node[0])
		rc = linear_detach(fe->cfg.name, job->force, &err);
	if (rc || job->force)
		return tell(out_fd, rc, &err);
	rc = check_unused(fe->block, &err);
	if (rc && fe->node[0])
		linear_attach(fe->cfg.name, fe->block, fe->read_only, &ignored);
	return tell(out_fd, rc, &err);
}

static int child_resize(void *arg, int out_fd)
{
	struct fe *fe = ((struct job *)arg)->fe;
	struct cow_err err = { 0 };
	int rc;

	fe_child_begin(out_fd);
	rc = linear_resize(fe->cfg.name, fe->block, fe->read_only, &err);
	return tell(out_fd, rc, &err);
}

static void job_done(void *opaque, int status, const char *out, size_t len)
{
	struct job *job = opaque;
	char sentence[COW_ERR_MAX];

	job->running = false;
	if (len)
		snprintf(sentence, sizeof(sentence), "%s", out);
	else
		snprintf(sentence, sizeof(sentence),
			 "a helper process of the front end failed (%d)", status);
	job->then(job->fe, status >= 128 ? -EIO : -status, sentence);
}

static void job_run(struct fe *fe, struct job *job, int (*fn)(void *arg, int out_fd),
		    void (*then)(struct fe *fe, int rc, const char *sentence))
{
	int rc;

	job->fe = fe;
	job->then = then;
	job->running = true;
	rc = cow_loop_child(fe->cfg.loop, fn, job, job_done, job);
	if (rc) {
		job->running = false;
		then(fe, rc, "cannot start a helper process");
	}
}

/* ---- a new device ---- */

static uint8_t shift_of(uint64_t bytes, uint8_t least)
{
	uint8_t shift = least;

	while (shift < SHIFT_MAX && 1ull << shift < bytes)
		shift++;
	return shift;
}

static int set_params(struct fe *fe, struct cow_err *err)
{
	struct cow_image *img = cow_chain_image(cow_dev_chain(fe->cfg.dev), 0);
	struct ublk_params p = {
		.len = UBLK_PARAMS_LEN,
		.types = UBLK_PARAM_TYPE_BASIC,
		.basic = {
			.attrs = UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA,
			.logical_bs_shift = UBLK_SECTOR_SHIFT,
			.physical_bs_shift = PHYSICAL_SHIFT,
			.io_min_shift = shift_of(img->granule, PHYSICAL_SHIFT),
			.max_sectors = IO_BYTES >> UBLK_SECTOR_SHIFT,
			.dev_sectors = fe->sectors,
		},
	};
	int rc;

	p.basic.io_opt_shift = shift_of(img->block, p.basic.io_min_shift);
	if (fe->read_only) {
		p.basic.attrs |= UBLK_ATTR_READ_ONLY;
	} else {
		p.types |= UBLK_PARAM_TYPE_DISCARD;
		p.discard = (struct ublk_param_discard){
			.discard_granularity = 1u << p.basic.io_min_shift,
			.max_discard_sectors = DISCARD_BYTES >> UBLK_SECTOR_SHIFT,
			.max_write_zeroes_sectors = DISCARD_BYTES >> UBLK_SECTOR_SHIFT,
			.max_discard_segments = 1,
		};
	}
	rc = ublk_ctl_cmd(fe->ctl, UBLK_U_CMD_SET_PARAMS, fe->id, &p, UBLK_PARAMS_LEN, 0);
	return rc ? cow_err_sys(err, rc, "%s: parameters", fe->block) : 0;
}

static void set_id(struct fe *fe, uint32_t id)
{
	fe->id = id;
	snprintf(fe->block, sizeof(fe->block), BLOCK_FORMAT, id);
}

static void delete_device(struct fe *fe)
{
	int rc = ublk_ctl_cmd(fe->ctl, UBLK_U_CMD_DEL_DEV_ASYNC, fe->id, NULL, 0, 0);

	take_hint_back(fe->id);
	if (rc && rc != -ENODEV)
		cow_log(COW_LOG_WARN, "%s is not removed: %s", fe->block, strerror(-rc));
}

static int start_queue(struct fe *fe, unsigned depth, uint32_t max_bytes, struct cow_err *err);

static int create_device(struct fe *fe, struct cow_err *err)
{
	struct ublksrv_ctrl_dev_info info = {
		.nr_hw_queues = 1,
		.queue_depth = DEPTH,
		.max_io_buf_bytes = IO_BYTES,
		.dev_id = UINT32_MAX,
		.ublksrv_pid = getpid(),
		.flags = RECOVERY | UBLK_F_CMD_IOCTL_ENCODE |
			 (ublk_ctl_features(fe->ctl) & UBLK_F_UPDATE_SIZE),
	};
	int rc = mark_of(fe->cfg.name, &info.ublksrv_flags, err);

	if (rc)
		return rc;
	rc = ublk_ctl_cmd(fe->ctl, UBLK_U_CMD_ADD_DEV, info.dev_id, &info, sizeof(info), 0);
	if (rc)
		return cow_err_sys(err, rc, "%s: a ublk device", fe->cfg.name);
	set_id(fe, info.dev_id);
	fe->taken_up = false;
	fe->sectors = sectors_of(fe->cfg.dev);
	rc = set_params(fe, err);
	if (!rc)
		rc = start_queue(fe, info.queue_depth, info.max_io_buf_bytes, err);
	if (rc)
		delete_device(fe);
	return rc;
}

/* ---- the device that a killed daemon left ---- */

/* What a device was made with and the image that is to be behind it must fit. */
static int check_params(struct fe *fe, struct cow_err *err)
{
	struct ublk_params p = { .len = UBLK_PARAMS_LEN };
	uint64_t sectors = sectors_of(fe->cfg.dev);
	bool grows = ublk_ctl_features(fe->ctl) & UBLK_F_UPDATE_SIZE;
	int rc = ublk_ctl_cmd(fe->ctl, UBLK_U_CMD_GET_PARAMS, fe->id, &p, UBLK_PARAMS_LEN, 0);

	if (rc)
		return cow_err_sys(err, rc, "%s: parameters", fe->block);
	fe->sectors = p.basic.dev_sectors;
	if (!(p.basic.attrs & UBLK_ATTR_READ_ONLY) != !fe->read_only)
		return cow_err_set(err, -EROFS, "%s, which a killed daemon left, is %s, but the image is not",
				   fe->block, fe->read_only ? "writable" : "read-only");
	if (sectors < fe->sectors)
		return cow_err_set(err, -ERANGE,
				   "%s, which a killed daemon left, has %llu sectors, but the image only %llu",
				   fe->block, (unsigned long long)fe->sectors,
				   (unsigned long long)sectors);
	/* Killed after the image was resized and before the device was. */
	if (sectors > fe->sectors && !grows)
		cow_log(COW_LOG_WARN, "%s has %llu sectors of the image's %llu until it is made anew",
			fe->block, (unsigned long long)fe->sectors, (unsigned long long)sectors);
	return 0;
}

static int start_recovery(struct fe *fe)
{
	unsigned waited;
	int rc = -EBUSY;

	/* -EBUSY: the dead process still has the device, if only for its last moment. */
	for (waited = 0; rc == -EBUSY && waited < QUIESCE_MS; waited += QUIESCE_LOOK_MS) {
		if (waited)
			cow_sleep_ms(QUIESCE_LOOK_MS);
		rc = ublk_ctl_cmd(fe->ctl, UBLK_U_CMD_START_USER_RECOVERY, fe->id, NULL, 0, 0);
	}
	/* Before Linux 6.16: one who was killed since has done this. It has not to be done twice. */
	return rc == -EINVAL ? 0 : rc;
}

static int take_up(struct fe *fe, struct cow_err *err)
{
	struct ublksrv_ctrl_dev_info info;
	uint64_t mark;
	uint32_t id;
	int rc;

	if (!parse_block(fe->cfg.left, &id))
		return cow_err_set(err, -EINVAL, "%s is not a ublk device", fe->cfg.left);
	set_id(fe, id);
	fe->taken_up = true;
	rc = mark_of(fe->cfg.name, &mark, err);
	if (rc)
		return rc;
	rc = dev_info(fe->ctl, id, &info);
	if (rc)
		return cow_err_sys(err, rc, "%s", fe->block);
	if (info.ublksrv_flags != mark)
		return cow_err_set(err, -EPERM, "%s does not belong to %s", fe->block,
				   fe->cfg.name);
	if (info.nr_hw_queues != 1 || info.queue_depth > DEPTH_MAX || info.queue_depth < 2 ||
	    !info.max_io_buf_bytes || info.max_io_buf_bytes > IO_BYTES_MAX ||
	    (info.flags & (RECOVERY | UBLK_F_USER_COPY)) != RECOVERY)
		return cow_err_set(err, -EPROTO, "%s was made by another version of cowd",
				   fe->block);
	rc = check_params(fe, err);
	if (rc)
		return rc;
	rc = start_recovery(fe);
	if (!rc)
		rc = start_queue(fe, info.queue_depth, info.max_io_buf_bytes, err);
	if (!rc)
		return 0;
	/* To wait for a better attempt would be for ever. */
	cow_log(COW_LOG_ERR, "%s, which a killed daemon left, cannot be taken up (%s): its users get errors",
		fe->block, cow_err_text(err, rc));
	memset(err, 0, sizeof(*err));
	rc = ublk_clean(fe->cfg.name, fe->block, err);
	return rc ? rc : create_device(fe, err);
}

/* ---- from the queue to the node ---- */

static void on_queue_gone(void *opaque)
{
	struct fe *fe = opaque;

	if (!fe->live || fe->stopping)
		return;
	cow_log(COW_LOG_WARN, "%s was removed by somebody else", fe->block);
	fe->live = false;
	fe->cfg.gone(fe->cfg.opaque);
}

static void start_failed(struct fe *fe, int rc, const char *sentence)
{
	/* The users of what was taken up wait on. */
	fe->leave = fe->taken_up;
	fe->cfg.ready(fe->cfg.opaque, rc, sentence);
}

/* The device lives, but its name cannot be given: not without its queue being served. */
struct failure {
	struct fe *fe;
	int rc;
	char sentence[COW_ERR_MAX];
};

static void on_withdrawn(void *opaque, int answer)
{
	struct failure *f = opaque;

	f->fe->live = answer != 0;
	start_failed(f->fe, f->rc, f->sentence);
	cow_free(f);
}

static void on_named(struct fe *fe, int rc, const char *sentence)
{
	struct failure *f;

	if (!rc) {
		fe->named = fe->node[0];
		fe->cfg.changed(fe->cfg.opaque);
		fe->cfg.ready(fe->cfg.opaque, 0, "");
		return;
	}
	fe->stopping = true;
	f = cow_zalloc(sizeof(*f));
	if (f) {
		f->fe = fe;
		f->rc = rc;
		snprintf(f->sentence, sizeof(f->sentence), "%s", sentence);
	}
	if (!f || fe->taken_up ||
	    ublk_ctl_send(fe->ctl, fe->cfg.loop, UBLK_U_CMD_STOP_DEV, fe->id, 0, on_withdrawn, f)) {
		cow_free(f);
		start_failed(fe, rc, sentence);
	}
}

static void name_it(struct fe *fe)
{
	fe->cfg.changed(fe->cfg.opaque);
	job_run(fe, &fe->job, child_start, on_named);
}

static void on_caught_up(void *opaque, int answer)
{
	struct fe *fe = opaque;

	if (answer)
		cow_log(COW_LOG_WARN, "%s has not got the image's size: %s", fe->block,
			strerror(-answer));
	else
		fe->sectors = sectors_of(fe->cfg.dev);
	name_it(fe);
}

static void on_live(void *opaque, int answer)
{
	struct fe *fe = opaque;
	struct cow_err err = { 0 };

	if (answer) {
		cow_err_sys(&err, answer, "%s cannot be started", fe->block);
		start_failed(fe, answer, err.msg);
		return;
	}
	fe->live = true;
	if (fe->sectors == sectors_of(fe->cfg.dev) ||
	    !(ublk_ctl_features(fe->ctl) & UBLK_F_UPDATE_SIZE) ||
	    ublk_ctl_send(fe->ctl, fe->cfg.loop, UBLK_U_CMD_UPDATE_SIZE, fe->id,
			  sectors_of(fe->cfg.dev), on_caught_up, fe))
		name_it(fe);
}

static int start_queue(struct fe *fe, unsigned depth, uint32_t max_bytes, struct cow_err *err)
{
	struct ublk_queue_cfg cfg = {
		.loop = fe->cfg.loop,
		.dev = fe->cfg.dev,
		.id = fe->id,
		.depth = depth,
		.max_bytes = max_bytes,
		.keep = !(ublk_ctl_features(fe->ctl) & UBLK_F_UPDATE_SIZE),
		.gone = on_queue_gone,
		.opaque = fe,
	};
	int rc = ublk_queue_new(&cfg, &fe->queue, err);

	if (rc)
		return rc;
	fe->depth = depth;
	/* With --scan it is the node that is looked at, not one device under two names. */
	if (!fe->cfg.scan || fe->node[0])
		give_hint(fe->id);
	rc = ublk_queue_go_live(fe->queue, fe->ctl,
				fe->taken_up ? UBLK_U_CMD_END_USER_RECOVERY : UBLK_U_CMD_START_DEV,
				on_live, fe);
	if (!rc)
		return 0;
	ublk_queue_free(fe->queue, true);
	fe->queue = NULL;
	return cow_err_sys(err, rc, "%s", fe->block);
}

static int ublk_start(const struct fe_cfg *cfg, struct fe **ret, struct cow_err *err)
{
	struct fe *fe = cow_zalloc(sizeof(*fe));
	struct cow_err why = { 0 };
	int rc;

	if (!fe)
		return cow_err_set(err, -ENOMEM, "%s: not enough memory", cfg->name);
	fe->cfg = *cfg;
	fe->read_only = cow_dev_readonly(cfg->dev);
	if (linear_probe(&why) == 0)
		dmnode_path(cfg->name, fe->node, sizeof(fe->node));
	else
		cow_log(COW_LOG_INFO, "no node /dev/mapper/%s: %s", cfg->name, why.msg);
	rc = ublk_ctl_open(&fe->ctl, err);
	if (!rc)
		rc = cfg->left && cfg->left[0] ? take_up(fe, err) : create_device(fe, err);
	if (rc) {
		ublk_ctl_close(fe->ctl);
		cow_free(fe);
		return rc;
	}
	*ret = fe;
	return 0;
}

/* ---- the end, and other sizes ---- */

static void on_stopped(void *opaque, int answer)
{
	struct fe *fe = opaque;
	struct cow_err err = { 0 };

	if (answer) {
		fe->stopping = false;
		cow_err_sys(&err, answer, "%s cannot be stopped", fe->block);
	} else {
		fe->live = false;
	}
	fe->stop_done(fe->stop_opaque, answer, err.msg);
}

static void on_let_go(struct fe *fe, int rc, const char *sentence)
{
	if (rc && !fe->job.force) {
		fe->stopping = false;
		fe->stop_done(fe->stop_opaque, -EBUSY, sentence);
		return;
	}
	if (rc)
		cow_log(COW_LOG_WARN, "%s", sentence);
	if (!fe->live) {
		on_stopped(fe, 0);
		return;
	}
	rc = ublk_ctl_send(fe->ctl, fe->cfg.loop, UBLK_U_CMD_STOP_DEV, fe->id, 0, on_stopped, fe);
	if (rc)
		on_stopped(fe, rc);
}

static void ublk_stop(struct fe *fe, bool force, fe_done_fn *done, void *opaque)
{
	if (fe->job.running || fe->resize.running) {
		done(opaque, -EALREADY, "the device is being started or resized");
		return;
	}
	fe->stopping = true;
	fe->stop_done = done;
	fe->stop_opaque = opaque;
	fe->job.force = force;
	job_run(fe, &fe->job, child_stop, on_let_go);
}

static void ublk_free(struct fe *fe)
{
	/*
	 * The queue first: if the device was not stopped, what is asked of it from now on
	 * fails when it is deleted, and does not wait for us.
	 */
	ublk_queue_free(fe->queue, !fe->live);
	if (!fe->leave)
		delete_device(fe);
	ublk_ctl_close(fe->ctl);
	cow_free(fe);
}

static void resize_ended(struct fe *fe, int rc, const char *sentence)
{
	fe->resize_done(fe->resize_opaque, rc, rc ? sentence : "");
}

static void on_resized(void *opaque, int answer)
{
	struct fe *fe = opaque;
	struct cow_err err = { 0 };

	if (answer) {
		cow_err_sys(&err, answer, "the image is resized, but %s is not", fe->block);
		resize_ended(fe, answer, err.msg);
		return;
	}
	fe->sectors = sectors_of(fe->cfg.dev);
	if (fe->node[0])
		job_run(fe, &fe->resize, child_resize, resize_ended);
	else
		resize_ended(fe, 0, "");
}

static void ublk_resized(struct fe *fe, fe_done_fn *done, void *opaque)
{
	struct cow_err err = { 0 };
	int rc;

	if (!(ublk_ctl_features(fe->ctl) & UBLK_F_UPDATE_SIZE)) {
		cow_err_set(&err, -EOPNOTSUPP,
			    "the image is resized, but %s is not: this needs Linux 6.16 (or stop the device and start it anew)",
			    fe->block);
		done(opaque, -EOPNOTSUPP, err.msg);
		return;
	}
	if (fe->resize.running || fe->stopping) {
		done(opaque, -EBUSY, "the device is being stopped or resized already");
		return;
	}
	fe->resize_done = done;
	fe->resize_opaque = opaque;
	rc = ublk_ctl_send(fe->ctl, fe->cfg.loop, UBLK_U_CMD_UPDATE_SIZE, fe->id,
			   sectors_of(fe->cfg.dev), on_resized, fe);
	if (rc)
		on_resized(fe, rc);
}

static const char *ublk_path(const struct fe *fe)
{
	return fe->named ? fe->node : fe->block;
}

static const char *ublk_block_device(const struct fe *fe)
{
	return fe->block;
}

const struct fe_ops fe_ublk = {
	.name = "ublk",
	.desc = "a ublk device, and a dm-linear node over it",
	.probe = ublk_probe,
	.suits = ublk_suits,
	.alive = ublk_alive,
	.clean = ublk_clean,
	.start = ublk_start,
	.stop = ublk_stop,
	.free = ublk_free,
	.resized = ublk_resized,
	.path = ublk_path,
	.block_device = ublk_block_device,
};
