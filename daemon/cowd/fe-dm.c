// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The device-mapper front end: a node /dev/mapper/NAME with one target "userspace"
 * over the files of the chain. The kernel moves the data; what it does not know it
 * asks, and what it wrote it reports (dmstream.c, mapreq.c). Here is the life of
 * the node and of the loop devices below it.
 *
 *	direct I/O, a loop device for each image file, the node made by a child
 *	process while we say hello and answer what is asked of it	(new)
 *	the table's devices are those of our files, hello			(taken up)
 *	the node is flushed and removed by a child, the rest of what was
 *	written is recorded, the stream ends				(stop)
 *
 * When this process is killed, node, loop devices and what the kernel remembers
 * live on. The loop devices go by themselves with the table that names them.
 *
 * Resizing: the kernel forgets the end of the device and asks again behind the new
 * table; until then questions about it are held. The device has its new size by then
 * (cow_dev_resize()), the node not yet, or the other way round for what is cut off.
 */
#include "fe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "blkdev.h"
#include "cow/log.h"
#include "dmnode.h"
#include "dmstream.h"
#include "loopfile.h"

#define CONTROL "/dev/" DMU_NODE
#define TARGET "userspace"
#define BLOCK_DEFAULT (64u << 10)	/* where the image has no blocks; a question's least range */
#define GROW_BYTES COW_MIB(256)	/* sparse; each step costs the system an event */
#define HELLO_MS 2		/* between attempts while the node is being made */
#define END_MS 5000		/* for the kernel to report what it wrote before the node was removed */

struct job {
	struct fe *fe;
	bool running, force;
	fe_done_fn *done;
	void *opaque;
	/* The child's answer, while something else is waited for. */
	int result;
	char sentence[COW_ERR_MAX];
};

struct fe {
	struct fe_cfg cfg;
	struct mapreq map;
	struct dmstream *stream;	/* NULL before hello, and after the end */
	struct cow_source *timer;	/* hello again; or the end is late */
	char node[256];			/* "/dev/mapper/NAME" */
	char *params;			/* of the table */
	unsigned n;			/* layers that have a file: the table's devices */
	struct cow_chain_file file[DMU_PLANES_MAX];
	struct loopfile loop[DMU_PLANES_MAX];	/* fd -1: the file is a block device */
	dev_t rdev[DMU_PLANES_MAX];	/* of the table's devices */
	uint64_t sectors;		/* of the node */
	bool read_only, created, known, suspended;
	bool started;			/* cfg.ready was called with success */
	bool removed, stopping, ended;
	bool doubtful;			/* taken up, and places that the kernel knows may be free again */
	struct job start, stop, resize, pause;
};

static uint64_t sectors_of(struct cow_dev *dev)
{
	return cow_dev_size(dev) / MAPREQ_SECTOR;
}

/* ---- in a child ---- */

static int answer(int out_fd, int rc, const struct cow_err *err)
{
	dprintf(out_fd, "%d\n%s\n", rc, rc ? cow_err_text(err, rc) : "");
	return rc ? 1 : 0;
}

static struct dmnode_table table_of(const struct fe *fe)
{
	return (struct dmnode_table){ .sectors = fe->sectors, .type = TARGET, .params = fe->params,
				      .read_only = fe->read_only };
}

static int child_create(void *arg, int out_fd)
{
	struct fe *fe = ((struct job *)arg)->fe;
	struct dmnode_table table = table_of(fe);
	struct cow_err err = { 0 };

	fe_child_begin(out_fd);
	return answer(out_fd, dmnode_create(fe->cfg.name, &table, &err), &err);
}

static int child_resume(void *arg, int out_fd)
{
	struct fe *fe = ((struct job *)arg)->fe;
	struct cow_err err = { 0 };

	fe_child_begin(out_fd);
	return answer(out_fd, dmnode_resume(fe->cfg.name, &err), &err);
}

static int child_suspend(void *arg, int out_fd)
{
	struct fe *fe = ((struct job *)arg)->fe;
	struct cow_err err = { 0 };

	fe_child_begin(out_fd);
	return answer(out_fd, dmnode_suspend(fe->cfg.name, true, &err), &err);
}

/* What is in the node's page cache goes to the device, what was written is committed. */
static int flush_node(const char *node, struct cow_err *err)
{
	COW_CLEANUP_CLOSE int fd = open(node, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return cow_err_sys(err, -errno, "%s", node);
	return fsync(fd) ? cow_err_sys(err, -errno, "%s: flush", node) : 0;
}

static int child_remove(void *arg, int out_fd)
{
	struct job *job = arg;
	struct fe *fe = job->fe;
	struct dmnode_info info = { 0 };
	struct cow_err err = { 0 };
	int rc;

	fe_child_begin(out_fd);
	rc = dmnode_info(fe->cfg.name, &info, &err);
	if (rc == -ENOENT)
		return answer(out_fd, 0, &err);
	if (!rc && info.suspended)
		rc = dmnode_resume(fe->cfg.name, &err);
	if (!rc && info.open_count)
		rc = blkdev_claimed(fe->node, &err);
	if (rc && job->force)
		blkdev_sync(fe->node);
	if ((!rc || job->force) && !fe->read_only)
		rc = flush_node(fe->node, &err);
	if (!rc || job->force) {
		err.code = 0;
		rc = dmnode_remove(fe->cfg.name, job->force, &err);
	}
	return answer(out_fd, rc, &err);
}

static int child_resize(void *arg, int out_fd)
{
	struct fe *fe = ((struct job *)arg)->fe;
	struct dmnode_table table = table_of(fe);
	struct cow_err err = { 0 };
	int rc;

	fe_child_begin(out_fd);
	/* Not flushed: what waits for the answers that are held would never end. */
	rc = dmnode_replace(fe->cfg.name, &table, false, &err);
	return answer(out_fd, rc, &err);
}

/* ---- jobs ---- */

static void job_finish(struct job *job, int rc, const char *sentence)
{
	job->running = false;
	job->done(job->opaque, rc, sentence);
}

/* Takes a child's answer apart. */
static void job_answer(struct job *job, int status, const char *out)
{
	job->sentence[0] = '\0';
	if (sscanf(out, "%d\n%767[^\n]", &job->result, job->sentence) < 1) {
		job->result = -EIO;
		snprintf(job->sentence, sizeof(job->sentence),
			 "a helper process of the front end failed (%d)", status);
	}
}

static bool job_begin(struct fe *fe, struct job *job, fe_done_fn *done, void *opaque)
{
	if (job->running) {
		done(opaque, -EALREADY, "the same is already being done");
		return false;
	}
	job->fe = fe;
	job->done = done;
	job->opaque = opaque;
	job->running = true;
	return true;
}

static void job_child(struct job *job, int (*fn)(void *arg, int out_fd),
		      void (*end)(void *opaque, int status, const char *out, size_t len))
{
	int rc = cow_loop_child(job->fe->cfg.loop, fn, job, end, job);

	if (rc)
		job_finish(job, rc, "cannot start a helper process");
}

/* The usual end: the job is as good as its child. */
static void on_child(void *opaque, int status, const char *out, size_t len)
{
	struct job *job = opaque;

	(void)len;
	job_answer(job, status, out);
	job_finish(job, job->result, job->sentence);
}

/* ---- what the table is made of ---- */

static void close_files(struct fe *fe)
{
	for (unsigned i = 0; i < fe->n; i++)
		loopfile_close(&fe->loop[i]);
}

/* The devices' facts for the map. */
static int describe(struct fe *fe, struct cow_err *err)
{
	struct mapreq_file files[DMU_PLANES_MAX] = { 0 };

	for (unsigned i = 0; i < fe->n; i++) {
		int rc = 0;

		files[i].dev = (uint16_t)i;
		if (fe->loop[i].fd >= 0) {
			files[i].unit = fe->loop[i].unit;
			files[i].size = fe->loop[i].size;
		} else {
			rc = loopfile_geometry(fe->file[i].fd, &files[i].unit, &files[i].size);
		}
		if (rc)
			return cow_err_sys(err, rc, "%s: size", fe->file[i].path);
	}
	return mapreq_init(&fe->map, cow_dev_chain(fe->cfg.dev), files, err);
}

static int find_files(struct fe *fe, struct cow_err *err)
{
	struct cow_chain *c = cow_dev_chain(fe->cfg.dev);
	int rc = mapreq_suits(c, MAPREQ_SECTOR, err);

	if (!rc)
		rc = cow_chain_go_direct(c, err);
	if (rc)
		return rc;
	/* A layer without a file is the last one, and the kernel is told nothing of it. */
	while (fe->n < cow_chain_depth(c) && !cow_chain_file(c, fe->n, &fe->file[fe->n]))
		fe->loop[fe->n++].fd = -1;
	return 0;
}

static int attach_files(struct fe *fe, struct cow_err *err)
{
	for (unsigned i = 0; i < fe->n; i++) {
		int rc = 0;

		if (fe->file[i].blkdev)
			fe->rdev[i] = (dev_t)fe->file[i].dev;
		else
			rc = loopfile_attach(&fe->file[i], &fe->loop[i], err);
		if (rc)
			return rc;
		if (fe->loop[i].fd < 0)
			continue;
		fe->rdev[i] = fe->loop[i].rdev;
		if (!fe->loop[i].direct)
			cow_log(COW_LOG_INFO, "%s: its file system has no direct I/O, the kernel reads "
				"and writes it through the page cache", fe->file[i].path);
	}
	return 0;
}

/* "KEY BLOCK FEATURE... DEV..." */
static int make_params(struct fe *fe)
{
	uint32_t block = cow_chain_image(cow_dev_chain(fe->cfg.dev), 0)->block;
	uint32_t granule = MAPREQ_SECTOR << fe->map.granule_shift;
	char *params, *more;

	if (fe->map.blocks)
		block = granule;
	block = (uint32_t)cow_min(block ? block : BLOCK_DEFAULT, DMU_SECTION_SECTORS * MAPREQ_SECTOR);
	block = (uint32_t)cow_max(block, granule);
	params = cow_asprintf("%s %u granule:%u writable:1", fe->cfg.name, block, granule);
	for (unsigned i = 0; params && i < fe->n; i++) {
		more = cow_asprintf("%s %u:%u", params, major(fe->rdev[i]), minor(fe->rdev[i]));
		cow_free(params);
		params = more;
	}
	fe->params = params;
	return params ? 0 : -ENOMEM;
}

/* ---- a node that a killed daemon left ---- */

/* The devices at the end of the table line @params, of which we have fe->n. */
static int adopt_files(struct fe *fe, char *params, struct cow_err *err)
{
	for (unsigned i = fe->n; i-- > 0;) {
		char *word = strrchr(params, ' ');
		unsigned maj, min;
		int rc = 0;

		if (!word || sscanf(word, " %u:%u", &maj, &min) != 2)
			return cow_err_set(err, -ESTALE, "its table has another form");
		*word = '\0';
		fe->rdev[i] = makedev(maj, min);
		if (!fe->file[i].blkdev)
			rc = loopfile_adopt(&fe->file[i], fe->rdev[i], &fe->loop[i], err);
		else if (fe->rdev[i] != (dev_t)fe->file[i].dev)
			rc = cow_err_set(err, -ESTALE, "device %u:%u is not %s", maj, min,
					 fe->file[i].path);
		if (rc)
			return rc;
	}
	return 0;
}

static int adopt(struct fe *fe, struct cow_err *err)
{
	COW_CLEANUP_FREE char *params = NULL;
	struct cow_err why = { 0 };
	struct dmnode_info info;
	int rc = dmnode_info(fe->cfg.name, &info, err);

	if (!rc)
		rc = dmnode_params(fe->cfg.name, &params, err);
	if (rc)
		return rc;
	fe->params = cow_strdup(params);
	if (!fe->params)
		return cow_err_sys(err, -ENOMEM, "%s", fe->node);
	rc = info.read_only == fe->read_only ? adopt_files(fe, params, &why) :
	     cow_err_set(&why, -ESTALE, "it is %s", info.read_only ? "read-only" : "writable");
	if (rc)
		return cow_err_set(err, rc, "%s, left by a killed daemon, is of something else (%s): "
				   "start that again, or remove it by \"dmsetup remove %s\"", fe->node,
				   cow_err_text(&why, rc), fe->cfg.name);
	fe->sectors = info.sectors;
	fe->suspended = info.suspended;
	fe->created = true;
	return 0;
}

/* ---- the stream ---- */

static void start_failed(struct fe *fe, int rc, const char *sentence)
{
	if (fe->start.running)
		job_finish(&fe->start, rc, sentence);
}

/* Is the kernel's device @d the table's device @i as we know it? */
static bool same_device(const struct fe *fe, unsigned i, const struct dmu_device *d)
{
	bool writable = d->flags & DMU_DEVICE_WRITABLE;

	return makedev(d->major, d->minor) == fe->rdev[i] && (writable || i || fe->read_only);
}

static void resize_if_needed(struct fe *fe);

static void start_if_complete(struct fe *fe)
{
	if (!fe->known || !fe->created || fe->started || !fe->start.running)
		return;
	if (fe->suspended) {
		fe->suspended = false;
		job_child(&fe->start, child_resume, on_child);
		return;
	}
	fe->started = true;
	cow_source_free(fe->timer);
	fe->timer = NULL;
	fe->cfg.changed(fe->cfg.opaque);
	job_finish(&fe->start, 0, "");
	resize_if_needed(fe);
}

static void resize_end(struct fe *fe, int rc, const char *sentence);

static void on_doubtful_forgotten(void *opaque)
{
	struct fe *fe = opaque;

	dmstream_release(fe->stream);
}

/* Before anything is answered. A resize has the kernel forget everything in any case. */
static int forget_doubtful(struct fe *fe)
{
	bool due = fe->doubtful && fe->sectors == sectors_of(fe->cfg.dev);

	fe->doubtful = false;
	return due ? dmstream_hold(fe->stream, 0, on_doubtful_forgotten, fe) : 0;
}

static void on_info(void *opaque, const struct dmu_info *info, const struct dmu_device *devices)
{
	struct fe *fe = opaque;
	bool same = info->devices == fe->n;

	for (unsigned i = 0; same && i < fe->n; i++)
		same = same_device(fe, i, &devices[i]);
	if (!same) {
		cow_log(COW_LOG_ERR, "%s: the kernel has other devices than ours", fe->node);
		start_failed(fe, -ESTALE, "the kernel has other devices than ours");
		return;
	}
	fe->known = true;
	if (forget_doubtful(fe)) {
		start_failed(fe, -EIO, "the kernel cannot be told to forget where blocks are");
		return;
	}
	if (fe->resize.running && info->sectors == fe->sectors)
		resize_end(fe, 0, "");
	start_if_complete(fe);
}

static void end_reached(struct fe *fe);

static void on_gone(void *opaque, int error)
{
	struct fe *fe = opaque;

	fe->ended = true;
	if (error)
		cow_log(COW_LOG_ERR, "%s: the conversation with the kernel broke off: %s", fe->node,
			strerror(-error));
	if (fe->stopping) {
		end_reached(fe);
	} else if (fe->started) {
		fe->cfg.gone(fe->cfg.opaque);
	} else {
		start_failed(fe, error ? error : -ENODEV, "the node is gone");
	}
}

/* The kernel goes to the file itself, which therefore is made longer ahead of need. */
static int on_grow(void *opaque, uint64_t size)
{
	struct fe *fe = opaque;
	int rc;

	if (fe->loop[0].fd < 0)
		return -EIO;		/* a device: no image has anything behind its end */
	rc = cow_chain_extend(cow_dev_chain(fe->cfg.dev), cow_round_up(size, GROW_BYTES));
	if (!rc)
		rc = loopfile_resize(&fe->loop[0]);
	fe->map.size[0] = fe->loop[0].size;
	return rc;
}

static int open_stream(struct fe *fe, struct cow_err *err)
{
	struct dmstream_cfg cfg = {
		.loop = fe->cfg.loop, .dev = fe->cfg.dev, .map = &fe->map, .info = on_info,
		.grow = on_grow, .gone = on_gone, .opaque = fe,
	};
	int fd = open(CONTROL, O_RDWR | O_CLOEXEC | O_NONBLOCK), rc;

	if (fd < 0)
		return cow_err_sys(err, -errno, CONTROL);
	rc = dmstream_new(&cfg, fd, &fe->stream);
	if (rc) {
		close(fd);
		return cow_err_sys(err, rc, CONTROL);
	}
	return 0;
}

/* Why hello was not taken. */
static const char *refusal(int rc)
{
	return rc == -EPROTO ? "the module dm-userspace that is loaded is older than this program" :
			       "the kernel refuses to talk about the node";
}

/* While the child makes the node: the key is known to the kernel from some moment on. */
static void on_hello_timer(void *opaque, uint32_t events)
{
	struct fe *fe = opaque;
	int rc = dmstream_hello(fe->stream, fe->cfg.name);

	(void)events;
	if (rc == -ENODEV && fe->start.running)
		return;
	cow_source_free(fe->timer);
	fe->timer = NULL;
	if (rc && rc != -ENODEV)
		start_failed(fe, rc, refusal(rc));
}

static void on_created(void *opaque, int status, const char *out, size_t len)
{
	struct job *job = opaque;
	struct fe *fe = job->fe;

	(void)len;
	job_answer(job, status, out);
	if (!job->running)
		return;
	if (job->result) {
		start_failed(fe, job->result, job->sentence);
		return;
	}
	fe->created = true;
	start_if_complete(fe);
}

/* ---- life ---- */

static int dm_probe(struct cow_err *why)
{
	uint32_t version[3];
	int rc = dmnode_target(TARGET, version, why);
	int fd;

	if (rc)
		return rc;
	fd = open(CONTROL, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return cow_err_sys(why, -errno, CONTROL);
	close(fd);
	return 0;
}

static int dm_suits(struct cow_dev *dev, struct cow_err *why)
{
	struct cow_chain *c = cow_dev_chain(dev);
	uint32_t unit = MAPREQ_SECTOR;

	for (unsigned i = 0; i < cow_chain_depth(c); i++) {
		struct cow_chain_file f;
		uint64_t size;
		uint32_t u;
		int rc;

		if (cow_chain_file(c, i, &f))
			continue;
		if (!f.blkdev && access(LOOP_CONTROL, R_OK | W_OK))
			return cow_err_sys(why, -errno, "%s needs a loop device: " LOOP_CONTROL,
					   f.path);
		if (!f.blkdev)
			continue;
		rc = loopfile_geometry(f.fd, &u, &size);
		if (rc)
			return cow_err_sys(why, rc, "%s: size", f.path);
		unit = (uint32_t)cow_max(unit, u);
	}
	return mapreq_suits(c, unit, why);
}

static bool dm_alive(const char *name, const char *device)
{
	struct dmnode_info info;

	(void)device;
	return dmnode_info(name, &info, NULL) == 0 && info.ours && info.live_table &&
	       !strcmp(info.type, TARGET);
}

/* Looks at the devices at the end of the table line, from the last one on. */
static bool dm_keeps(const char *name, uint64_t dev, uint64_t ino)
{
	COW_CLEANUP_FREE char *params = NULL;
	unsigned maj, min;
	char *word;

	if (!dm_alive(name, NULL) || dmnode_params(name, &params, NULL))
		return false;
	while ((word = strrchr(params, ' ')) && sscanf(word, " %u:%u", &maj, &min) == 2) {
		if (ino ? loopfile_uses(makedev(maj, min), dev, ino) : makedev(maj, min) == (dev_t)dev)
			return true;
		*word = '\0';
	}
	return false;
}

/* Has the kernel written something that only a daemon of this front end can record? */
static bool holds_writes(const char *name)
{
	COW_CLEANUP_FREE char *line = NULL;
	unsigned uncommitted = 0;

	if (dmnode_status(name, &line, NULL))
		return false;
	return sscanf(line, "%*s %*s %*s %*u %*u %*u %*u %*u %u", &uncommitted) == 1 &&
	       uncommitted;
}

static int dm_clean(const char *name, const char *device, struct cow_err *err)
{
	struct dmnode_info info;
	int rc = dmnode_info(name, &info, err);

	(void)device;
	/* Without a table: killed while it was being made. */
	if (rc == -ENOENT || (!rc && (!info.ours || (info.type[0] && strcmp(info.type, TARGET)))))
		return 0;
	if (!rc && info.type[0] && holds_writes(name))
		return cow_err_set(err, -EBUSY, "it holds writes that are not recorded yet: start it "
				   "with --frontend=dm, or give them up by \"dmsetup remove %s\"", name);
	return rc ? rc : dmnode_remove(name, true, err);
}

static void dm_free(struct fe *fe)
{
	cow_source_free(fe->timer);
	dmstream_free(fe->stream);
	close_files(fe);
	cow_free(fe->params);
	cow_free(fe);
}

/* What the kernel waits for must not wait for memory that only writing to us would free. */
static void lock_memory(void)
{
	if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT))
		cow_log(COW_LOG_DEBUG, "mlockall: %s", strerror(errno));
}

/*
 * A place that a killed daemon gave out, and had not recorded yet, is known to its successor only by
 * images that can say so: those that answer COW_PLACE.
 */
static bool loses_places(const struct fe *fe)
{
	return fe->map.blocks && !fe->read_only && !cow_chain_image(cow_dev_chain(fe->cfg.dev), 0)->place;
}

static int prepare(struct fe *fe, struct cow_err *err)
{
	int rc = find_files(fe, err);

	if (rc)
		return rc;
	/* What was left need not be recorded: killed just after it was made. */
	if (dm_alive(fe->cfg.name, fe->cfg.left)) {
		rc = adopt(fe, err);
	} else {
		fe->sectors = sectors_of(fe->cfg.dev);
		rc = attach_files(fe, err);
	}
	if (!rc)
		rc = describe(fe, err);
	if (!rc)
		fe->doubtful = fe->created && loses_places(fe);
	if (!rc && !fe->params && make_params(fe))
		rc = -ENOMEM;
	if (!rc)
		rc = open_stream(fe, err);
	return rc ? cow_err_sys(err, rc, "%s", fe->node) : 0;
}

/* Before there is a node that a refusal would leave behind. */
static int first_hello(struct fe *fe, struct cow_err *err)
{
	int rc = dmstream_hello(fe->stream, fe->cfg.name);

	if (rc == -ENODEV && !fe->created) {
		fe->timer = cow_loop_timer(fe->cfg.loop, HELLO_MS, true, on_hello_timer, fe);
		rc = fe->timer ? 0 : -errno;
	} else if (rc) {
		cow_err_set(err, rc, "%s: %s", fe->node, refusal(rc));
	}
	return rc;
}

static int dm_start(const struct fe_cfg *cfg, struct fe **ret, struct cow_err *err)
{
	struct fe *fe = cow_zalloc(sizeof(*fe));
	int rc;

	if (!fe)
		return cow_err_sys(err, -ENOMEM, "%s", cfg->name);
	fe->cfg = *cfg;
	fe->read_only = cow_dev_readonly(cfg->dev);
	dmnode_path(cfg->name, fe->node, sizeof(fe->node));
	rc = prepare(fe, err);
	if (!rc)
		rc = first_hello(fe, err);
	if (rc) {
		dm_free(fe);
		return cow_err_sys(err, rc, "/dev/mapper/%s", cfg->name);
	}
	lock_memory();
	cow_dev_set_external(cfg->dev);
	*ret = fe;
	job_begin(fe, &fe->start, cfg->ready, cfg->opaque);
	if (!fe->created)
		job_child(&fe->start, child_create, on_created);
	return 0;
}

/* ---- stop ---- */

/* Nothing more comes from the kernel. */
static void end_reached(struct fe *fe)
{
	if (!fe->stop.running || !fe->removed || !fe->ended)
		return;
	cow_source_free(fe->timer);
	fe->timer = NULL;
	job_finish(&fe->stop, fe->stop.result, fe->stop.sentence);
}

static void on_end_late(void *opaque, uint32_t events)
{
	struct fe *fe = opaque;

	(void)events;
	cow_log(COW_LOG_WARN, "%s: the kernel does not end the conversation", fe->node);
	fe->ended = true;
	end_reached(fe);
}

static void on_removed(void *opaque, int status, const char *out, size_t len)
{
	struct job *job = opaque;
	struct fe *fe = job->fe;

	(void)len;
	job_answer(job, status, out);
	if (job->result) {
		fe->stopping = false;
		job_finish(job, job->result, job->sentence);
		/* While it was being stopped somebody else removed it, which stopping hid. */
		if (fe->ended)
			fe->cfg.gone(fe->cfg.opaque);
		return;
	}
	fe->removed = true;
	if (!fe->ended && !fe->timer)
		fe->timer = cow_loop_timer(fe->cfg.loop, END_MS, false, on_end_late, fe);
	if (!fe->timer)
		fe->ended = true;
	end_reached(fe);
}

static void dm_stop(struct fe *fe, bool force, fe_done_fn *done, void *opaque)
{
	if (!job_begin(fe, &fe->stop, done, opaque))
		return;
	fe->stopping = true;
	fe->stop.force = force;
	job_child(&fe->stop, child_remove, on_removed);
}

/* ---- resize ---- */

static void resize_end(struct fe *fe, int rc, const char *sentence)
{
	if (!fe->resize.running)
		return;
	dmstream_release(fe->stream);
	job_finish(&fe->resize, rc, sentence);
}

static void on_replaced(void *opaque, int status, const char *out, size_t len)
{
	struct job *job = opaque;

	(void)len;
	job_answer(job, status, out);
	if (job->result && job->running)
		resize_end(job->fe, job->result, job->sentence);
	/* Else it ends when the kernel says that it has the new table. */
}

static void on_forgotten(void *opaque)
{
	struct fe *fe = opaque;

	job_child(&fe->resize, child_resize, on_replaced);
}

/* What is cut off may be used for something else at once, and the kernel still writes there. */
static int dm_may_shrink(struct fe *fe, struct cow_err *why)
{
	if (!fe->map.blocks)
		return 0;
	return cow_err_set(why, -EOPNOTSUPP, "%s: the kernel knows where its blocks are: it can only be "
			   "made smaller while it is stopped", fe->node);
}

static void dm_resized(struct fe *fe, fe_done_fn *done, void *opaque)
{
	uint64_t old = fe->sectors, now = sectors_of(fe->cfg.dev);
	struct cow_err err = { 0 };
	int rc = 0;

	if (!job_begin(fe, &fe->resize, done, opaque))
		return;
	if (cow_dev_size(fe->cfg.dev) % fe->map.unit)
		rc = cow_err_set(&err, -EINVAL, "the device is resized, but %s is not: the size is no "
				 "multiple of %u", fe->node, fe->map.unit);
	if (!rc && fe->loop[0].fd >= 0 && loopfile_resize(&fe->loop[0]))
		rc = cow_err_sys(&err, -errno, "the device is resized, but %s is not", fe->node);
	if (!rc)
		rc = describe(fe, &err);
	if (!rc) {
		fe->sectors = now;
		/* Of blocks that have moved, the old places may be used for something else now. */
		rc = dmstream_hold(fe->stream, fe->map.blocks ? 0 : cow_min(old, now), on_forgotten, fe);
	}
	if (rc)
		job_finish(&fe->resize, rc, cow_err_text(&err, rc));
}

static void on_late_resize(void *opaque, int result, const char *sentence)
{
	struct fe *fe = opaque;

	if (result)
		cow_log(COW_LOG_WARN, "%s: %s", fe->node, sentence);
}

/* Killed between the image's resize and the node's: the node follows now. */
static void resize_if_needed(struct fe *fe)
{
	if (fe->sectors != sectors_of(fe->cfg.dev))
		dm_resized(fe, on_late_resize, fe);
}

/* ---- hold: nothing moves, not even what the kernel knows ---- */

static void dm_hold(struct fe *fe, bool on, fe_done_fn *done, void *opaque)
{
	if (job_begin(fe, &fe->pause, done, opaque))
		job_child(&fe->pause, on ? child_suspend : child_resume, on_child);
}

/* ---- facts ---- */

static void stream_facts(const struct fe *fe, struct cow_kv *kv)
{
	struct dmstream_stats st;

	dmstream_get_stats(fe->stream, &st);
	cow_kv_u64(kv, "asked", st.asks);
	cow_kv_u64(kv, "answers", st.told);
	cow_kv_u64(kv, "written_records", st.written);
	cow_kv_u64(kv, "written_granules", st.granules);
	cow_kv_u64(kv, "changes", st.changes);
	cow_kv_u64(kv, "commits", st.commits);
	cow_kv_u64(kv, "copied_up_granules", st.ragged);
	cow_kv_u64(kv, "places_made", st.made);
	cow_kv_u64(kv, "answers_by_data", st.sent);
}

/* The target's own status: KEY MODE DAEMON HITS MISSES SECTIONS BYTES PENDING UNCOMMITTED EPOCH */
static void target_facts(const struct fe *fe, struct cow_kv *kv)
{
	static const char *const names[] = {
		"hits", "misses", "sections", "mapped_bytes", "pending", "uncommitted", "epoch",
	};
	COW_CLEANUP_FREE char *line = NULL;
	char *word, *save = NULL;

	if (dmnode_status(fe->cfg.name, &line, NULL) || !strtok_r(line, " ", &save))
		return;
	word = strtok_r(NULL, " ", &save);
	cow_kv_str(kv, "mode", word ? word : "");
	strtok_r(NULL, " ", &save);
	for (unsigned i = 0; i < COW_ARRAY_SIZE(names) && (word = strtok_r(NULL, " ", &save)); i++)
		cow_kv_u64(kv, names[i], strtoull(word, NULL, 10));
}

static void dm_status(struct fe *fe, struct cow_kv *kv)
{
	cow_kv_object(kv, "kernel");
	if (fe->created && !fe->removed)
		target_facts(fe, kv);
	stream_facts(fe, kv);
	cow_kv_list(kv, "devices");
	for (unsigned i = 0; i < fe->n; i++) {
		cow_kv_object(kv, NULL);
		cow_kv_str(kv, "path", fe->file[i].path);
		cow_kv_u64(kv, "major", major(fe->rdev[i]));
		cow_kv_u64(kv, "minor", minor(fe->rdev[i]));
		cow_kv_str(kv, "kind", fe->loop[i].fd < 0 ? "block device" :
			   fe->loop[i].direct ? "loop device, direct" : "loop device, cached");
		cow_kv_close(kv);
	}
	cow_kv_close(kv);
	cow_kv_close(kv);
}

static const char *dm_path(const struct fe *fe)
{
	return fe->node;
}

static const char *dm_block_device(const struct fe *fe)
{
	return fe->created ? fe->node : "";
}

const struct fe_ops fe_dm = {
	.name = "dm",
	.desc = "a device-mapper node; data that is known where it is never leaves the kernel",
	.probe = dm_probe,
	.suits = dm_suits,
	.alive = dm_alive,
	.keeps = dm_keeps,
	.clean = dm_clean,
	.start = dm_start,
	.stop = dm_stop,
	.free = dm_free,
	.resized = dm_resized,
	.may_shrink = dm_may_shrink,
	.path = dm_path,
	.block_device = dm_block_device,
	.status = dm_status,
	.hold = dm_hold,
};
