// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The generated files: info.json, map.json and stats. Each open makes its own
 * copy and shows that until it is closed. A map can be very long, so it is
 * written in slices between other work, into an unlinked file and not into
 * memory; on a device in use it is therefore no snapshot of one moment.
 *
 * stats is indented text for people; programs use "cowctl stats".
 */
#include "fuse/view.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define INFO_SCHEMA 1
#define MAP_SCHEMA 1
#define MAP_STEP COW_GIB(64)	/* of the disk: what is walked between two looks at the clock */
#define MAP_MAX COW_GIB(1)	/* bytes of a map.json: one reader must not fill a disk */

/* An unlinked file to write to; -errno. */
static int spool(bool large)
{
	static const char *const dirs[] = { "/var/tmp", "/tmp" };
	int fd;

	for (unsigned i = 0; large && i < COW_ARRAY_SIZE(dirs); i++) {
		fd = open(dirs[i], O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		if (fd >= 0)
			return fd;
	}
	fd = memfd_create("cow-text", MFD_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* A stream that writes to @fd, which stays open when it is closed. */
static FILE *stream_on(int fd)
{
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	FILE *out = copy < 0 ? NULL : fdopen(copy, "w");

	if (!out && copy >= 0)
		close(copy);
	return out;
}

static uint64_t size_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : (uint64_t)st.st_size;
}

static void write_info(struct cow_fuse *f, struct cow_kv *kv)
{
	cow_kv_str(kv, "name", cow_dev_name(f->dev));
	cow_dev_status(f->dev, kv);
	cow_kv_object(kv, "view");
	cow_kv_str(kv, "mountpoint", f->mountpoint);
	cow_kv_bool(kv, "writable", f->writable);
	cow_kv_bool(kv, "shared", f->shared);
	cow_kv_close(kv);
	view_parts_kv(f, kv);
}

/* info.json and stats: short, made at once. An fd, or -errno. */
static int make_short(struct cow_fuse *f, const struct view_node *n)
{
	int fd = spool(false), rc;
	struct cow_kv *kv;
	FILE *out;

	if (fd < 0)
		return fd;
	out = stream_on(fd);
	kv = !out ? NULL
		  : cow_kv_new(out, n->kind == VIEW_INFO ? COW_KV_JSON : COW_KV_TEXT, INFO_SCHEMA);
	rc = kv ? 0 : -ENOMEM;
	if (kv && n->kind == VIEW_INFO)
		write_info(f, kv);
	else if (kv)
		cow_dev_stats_kv(f->dev, kv);
	if (kv)
		rc = cow_kv_end(kv);
	if (out && fclose(out) && !rc)
		rc = -errno;
	if (!rc)
		return fd;
	close(fd);
	return rc;
}

uint64_t view_text_size(struct cow_fuse *f, struct view_node *n)
{
	int fd;

	/* A long map is not walked for its length: what it was last time. */
	if (n->kind == VIEW_MAP)
		return n->text_size;
	fd = make_short(f, n);
	if (fd < 0)
		return n->text_size;
	n->text_size = size_of(fd);
	close(fd);
	return n->text_size;
}

/* ---- the map ---- */

struct map_job {
	struct view_job job;
	struct view_handle *h;
	struct cow_kv *kv;
	FILE *out;
	uint64_t pos;
	struct cow_extent ext;		/* found, and perhaps longer than known yet; len 0: none */
	unsigned layer;
};

static void opened(fuse_req_t req, struct view_handle *h)
{
	h->size = size_of(h->fd);
	h->file->text_size = h->size;
	view_reply_open(req, h, FOPEN_DIRECT_IO);
}

static void map_put(struct map_job *j)
{
	if (!j->ext.len)
		return;
	cow_kv_object(j->kv, NULL);
	cow_chain_extent_kv(j->job.f->chain, &j->ext, j->layer, j->kv);
	cow_kv_close(j->kv);
	j->ext.len = 0;
}

/* 0: more to do, 1: all written, or -errno. */
static int map_step(struct map_job *j)
{
	struct cow_chain *c = j->job.f->chain;
	uint64_t end = cow_chain_size(c);
	struct cow_extent ext;
	unsigned layer;
	int rc;

	if (j->pos >= end) {
		map_put(j);
		return 1;
	}
	rc = cow_chain_next_extent(c, 0, j->pos, cow_min(end, j->pos + MAP_STEP), &ext, &layer);
	if (rc)
		return rc;
	j->pos += ext.len;
	if (j->ext.len && cow_extent_joins(&j->ext, j->layer, &ext, layer)) {
		j->ext.len += ext.len;
		return 0;
	}
	map_put(j);
	j->ext = ext;
	j->layer = layer;
	return ftello(j->out) > (off_t)MAP_MAX ? -EFBIG : 0;
}

static int map_end(struct map_job *j)
{
	int rc;

	cow_kv_close(j->kv);
	rc = cow_kv_end(j->kv);
	j->kv = NULL;
	if (fclose(j->out) && !rc)
		rc = -errno;
	j->out = NULL;
	return rc;
}

static bool map_slice(struct view_job *job)
{
	struct map_job *j = cow_container_of(job, struct map_job, job);
	uint64_t until = view_now_ns() + VIEW_SLICE_NS;
	int rc;

	do {
		rc = map_step(j);
	} while (!rc && view_now_ns() < until);
	if (!rc)
		return false;
	if (rc > 0)
		rc = map_end(j);
	if (rc)
		fuse_reply_err(job->req, -rc);
	else
		opened(job->req, j->h);
	if (!rc)
		j->h = NULL;
	return true;
}

static void map_release(struct view_job *job)
{
	struct map_job *j = cow_container_of(job, struct map_job, job);

	if (j->kv)
		cow_kv_end(j->kv);
	if (j->out)
		fclose(j->out);
	if (j->h)
		view_handle_free(j->h);
	cow_free(j);
}

static void open_map(fuse_req_t req, struct cow_fuse *f, struct view_handle *h)
{
	struct map_job *j = cow_zalloc(sizeof(*j));

	h->fd = spool(true);
	if (!j || h->fd < 0)
		goto fail;
	j->out = stream_on(h->fd);
	j->kv = j->out ? cow_kv_new(j->out, COW_KV_JSON, MAP_SCHEMA) : NULL;
	if (!j->kv)
		goto fail;
	cow_kv_size(j->kv, "size", cow_chain_size(f->chain));
	cow_kv_list(j->kv, "map");
	j->job = (struct view_job){ .f = f, .req = req, .step = map_slice, .release = map_release };
	j->h = h;
	view_job_run(f, &j->job);
	return;
fail:
	fuse_reply_err(req, h->fd < 0 ? -h->fd : ENOMEM);
	if (j && j->out)
		fclose(j->out);
	cow_free(j);
	view_handle_free(h);
}

void view_text_open(fuse_req_t req, struct cow_fuse *f, struct view_handle *h)
{
	if (h->file->kind == VIEW_MAP) {
		open_map(req, f, h);
		return;
	}
	h->fd = make_short(f, h->file);
	if (h->fd >= 0) {
		opened(req, h);
		return;
	}
	fuse_reply_err(req, -h->fd);
	view_handle_free(h);
}
