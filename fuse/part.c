// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Partitions: finds them when somebody first looks for them, never before. The
 * table is written by a guest and therefore hostile; libblkid reads it in a
 * child that has given up every privilege, and of the child's answer each
 * number is checked here. The parent never looks at the table itself.
 *
 * Whoever asked waits (its request is answered later) while this process goes
 * on serving, since the child reads the disk through the mount like anybody.
 */
#include "fuse/view.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "cow/log.h"
#include "fuse/part-reader.h"

#define SCAN_MS 10000	/* a scan that takes longer has found nothing */

/* Somebody who waits for the scan. */
struct waiter {
	struct cow_list node;
	fuse_req_t req;
	struct fuse_file_info fi;	/* opendir's */
	unsigned index;			/* of the partition looked up, 0: opendir */
};

bool view_part_name(const char *name, unsigned *ret_index)
{
	unsigned v = 0;

	if (name[0] != 'p' || name[1] < '1' || name[1] > '9')
		return false;
	for (const char *p = name + 1; *p; p++) {
		if (*p < '0' || *p > '9')
			return false;
		v = v * 10 + (unsigned)(*p - '0');
		if (v > VIEW_PARTS)
			return false;
	}
	*ret_index = v;
	return true;
}

struct view_node *view_part_find(struct cow_fuse *f, unsigned index)
{
	for (unsigned i = 0; i < f->parts.n; i++)
		if (f->parts.nodes[i].index == index)
			return &f->parts.nodes[i];
	return NULL;
}

void view_parts_kv(struct cow_fuse *f, struct cow_kv *kv)
{
	const struct view_parts *p = &f->parts;

	cow_kv_object(kv, "partition_table");
#ifndef HAVE_BLKID
	cow_kv_str(kv, "state", "not supported: built without libblkid");
#else
	cow_kv_str(kv, "state", p->problem ? p->problem : p->scanned ? "read" : "not read yet");
#endif
	cow_kv_list(kv, "partitions");
	for (unsigned i = 0; i < p->n; i++) {
		cow_kv_object(kv, NULL);
		cow_kv_str(kv, "name", p->nodes[i].name);
		cow_kv_u64(kv, "start", p->nodes[i].start);
		cow_kv_u64(kv, "length", p->nodes[i].len);
		cow_kv_close(kv);
	}
	cow_kv_close(kv);
	cow_kv_close(kv);
}

/* ---- who waits ---- */

static void answer_all(struct cow_fuse *f)
{
	cow_source_free(f->parts.timer);
	f->parts.timer = NULL;
	while (!cow_list_empty(&f->parts.waiters)) {
		struct waiter *w = cow_list_entry(f->parts.waiters.next, struct waiter, node);

		cow_list_del(&w->node);
		if (f->dead)
			fuse_reply_none(w->req);
		else if (w->index)
			view_reply_entry(w->req, f, view_part_find(f, w->index));
		else
			fuse_reply_open(w->req, &w->fi);
		cow_free(w);
	}
}

void view_parts_stop(struct cow_fuse *f)
{
	answer_all(f);	/* with nothing: the view is dead */
}

#ifdef HAVE_BLKID

#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define NOBODY 65534
#define CHILD_FD_DISK 3
#define CHILD_FD_OUT 4
#define CHILD_CPU_S 5
#define CHILD_MEMORY COW_MIB(256)	/* beyond what the child is born with */

/* ---- the child ---- */

static void child_limit(int what, rlim_t n)
{
	struct rlimit r = { n, n };

	if (setrlimit(what, &r))
		_exit(3);
}

static uint64_t child_address_space(void)
{
	FILE *in = fopen("/proc/self/statm", "re");
	unsigned long long pages = 0;

	if (in && fscanf(in, "%llu", &pages) != 1)
		pages = 0;
	if (in)
		fclose(in);
	return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* From here on nothing read from the disk can do more than waste a little time. */
static void child_give_up_everything(void)
{
	child_limit(RLIMIT_AS, child_address_space() + CHILD_MEMORY);
	child_limit(RLIMIT_CPU, CHILD_CPU_S);
	child_limit(RLIMIT_FSIZE, 0);
	child_limit(RLIMIT_CORE, 0);
	child_limit(RLIMIT_NOFILE, CHILD_FD_OUT + 1);
	if (!geteuid() && (setgroups(0, NULL) || setgid(NOBODY) || setuid(NOBODY)))
		_exit(3);
	/* Changing the user took the parent's death signal away. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		_exit(3);
}

/* Opens the disk and closes every other file, the image's and /dev/fuse included. */
static void child_files(const char *mountpoint, int out_fd)
{
	char path[4200];
	struct stat st;
	int disk, out;

	snprintf(path, sizeof(path), "%s/disk", mountpoint);
	disk = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (disk < 0 || fstat(disk, &st) || st.st_ino != VIEW_INO_DISK)
		_exit(2);
	disk = fcntl(disk, F_DUPFD, CHILD_FD_OUT + 1);
	out = fcntl(out_fd, F_DUPFD, CHILD_FD_OUT + 1);
	if (disk < 0 || out < 0 || dup2(disk, CHILD_FD_DISK) < 0 || dup2(out, CHILD_FD_OUT) < 0 ||
	    close_range(CHILD_FD_OUT + 1, ~0u, 0))
		_exit(2);
}

static int child_print(int number, int64_t start, int64_t sectors)
{
	char line[80];
	int len = snprintf(line, sizeof(line), "%d %" PRId64 " %" PRId64 "\n", number, start,
			   sectors);

	return write(CHILD_FD_OUT, line, (size_t)len) == len ? 0 : -EIO;
}

static int scan_child(void *arg, int out_fd)
{
	const struct cow_fuse *f = arg;
	const struct cow_module *module;
	const struct part_reader *reader;
	struct cow_err err = { 0 };
	void *disk;

	alarm(SCAN_MS / 1000);
	child_files(f->mountpoint, out_fd);
	/* Both before everything is given up: only the mounter may ask for the size. */
	if (cow_module_load(PART_READER, sizeof(*reader), &module, &err)) {
		cow_log(COW_LOG_WARN, "partition tables cannot be read: %s", err.msg);
		return 2;
	}
	reader = (const struct part_reader *)module;
	disk = reader->open(CHILD_FD_DISK);
	if (!disk)
		return 2;
	child_give_up_everything();
	return reader->read(disk, child_print) ? 2 : 0;
}

/* ---- the child's answer ---- */

/* The next number of @line. */
static bool take_number(const char **line, const char *end, uint64_t *ret)
{
	const char *p = *line;
	uint64_t v = 0;

	if (p == end || *p < '0' || *p > '9')
		return false;
	for (; p < end && *p >= '0' && *p <= '9'; p++)
		if (!cow_mul_ok(v, 10, &v) || !cow_add_ok(v, (uint64_t)(*p - '0'), &v))
			return false;
	if (p == end || (*p != ' ' && *p != '\n'))
		return false;
	*line = p + 1;
	*ret = v;
	return true;
}

/* "index start length\n" in sectors. False: not something to believe. */
static bool take_line(const char **line, const char *end, uint64_t disk, struct view_node *n)
{
	uint64_t index, start, len;

	if (!take_number(line, end, &index) || !take_number(line, end, &start) ||
	    !take_number(line, end, &len))
		return false;
	if (!index || !cow_mul_ok(start, 512, &start) || !cow_mul_ok(len, 512, &len))
		return false;
	/* One that reaches past the end, or one too many, is left out by the caller. */
	if (index > VIEW_PARTS || start >= disk || len > disk - start)
		index = len = 0;
	*n = (struct view_node){
		.kind = VIEW_PART, .index = (unsigned)index, .start = start, .len = len
	};
	snprintf(n->name, sizeof(n->name), "p%u", n->index);
	return true;
}

static int by_index(const void *a, const void *b)
{
	const struct view_node *x = a, *y = b;

	return (x->index > y->index) - (x->index < y->index);
}

/* Returns the number of partitions in @nodes, or -1 when the answer is not to be believed. */
static int parse(const char *out, size_t len, uint64_t disk, struct view_node *nodes)
{
	const char *end = out + len;
	int n = 0;

	while (out < end) {
		struct view_node one;

		if (!take_line(&out, end, disk, &one))
			return -1;
		if (!one.len)
			continue;
		if (n == VIEW_PARTS)
			return -1;
		nodes[n++] = one;
	}
	qsort(nodes, (size_t)n, sizeof(*nodes), by_index);
	for (int i = 1; i < n; i++)
		if (nodes[i].index == nodes[i - 1].index)
			return -1;
	return n;
}

static bool same_table(const struct view_parts *p, const struct view_node *nodes, unsigned n)
{
	if (p->n != n)
		return false;
	for (unsigned i = 0; i < n; i++)
		if (p->nodes[i].index != nodes[i].index || p->nodes[i].start != nodes[i].start ||
		    p->nodes[i].len != nodes[i].len)
			return false;
	return true;
}

/* Takes over @nodes (may be NULL when there are none). */
static void install(struct cow_fuse *f, struct view_node *nodes, unsigned n)
{
	struct view_parts *p = &f->parts;

	if (same_table(p, nodes, n)) {
		cow_free(nodes);
		return;
	}
	p->table++;
	for (unsigned i = 0; i < n; i++)
		nodes[i].ino =
			VIEW_INO_PART0 + (fuse_ino_t)p->table * VIEW_INO_TABLE + nodes[i].index;
	cow_free(p->nodes);
	p->nodes = nodes;
	p->n = n;
}

static bool part_in_use(const struct cow_fuse *f)
{
	for (unsigned i = 0; i < f->parts.n; i++)
		if (f->parts.nodes[i].opens)
			return true;
	return false;
}

static void scan_done(void *opaque, int status, const char *out, size_t len)
{
	struct cow_fuse *f = opaque;
	struct view_node *nodes = NULL;
	int n = 0;

	f->parts.running = false;
	f->parts.scanned = true;
	f->parts.problem = NULL;
	if (status) {
		f->parts.problem = "not read: the reader failed";
	} else if (len) {
		nodes = cow_zalloc(VIEW_PARTS * sizeof(*nodes));
		n = nodes ? parse(out, len, cow_dev_size(f->dev), nodes) : -1;
		if (n < 0)
			f->parts.problem = nodes ? "not read: the table makes no sense" :
				"not read: not enough memory";
	}
	if (f->parts.problem && !f->dead)
		cow_log_limited(COW_LOG_WARN, "%s: partition table %s", f->mountpoint,
				f->parts.problem);
	if (n <= 0) {
		cow_free(nodes);
		nodes = NULL;
	}
	/* Opened while we looked: its file must stay what it is. */
	if (part_in_use(f))
		cow_free(nodes);
	else
		install(f, nodes, n > 0 ? (unsigned)n : 0);
	answer_all(f);
	view_put(f);
}

static void scan_late(void *opaque, uint32_t events)
{
	struct cow_fuse *f = opaque;

	(void)events;
	cow_log_limited(COW_LOG_WARN, "%s: reading the partition table takes too long",
			f->mountpoint);
	answer_all(f);
}

static bool start_scan(struct cow_fuse *f)
{
	struct view_parts *p = &f->parts;

	p->at = cow_dev_changes(f->dev);
	p->timer = cow_loop_timer(f->loop, SCAN_MS, false, scan_late, f);
	if (!p->timer)
		return false;
	if (cow_loop_child(f->loop, scan_child, f, scan_done, f)) {
		cow_source_free(p->timer);
		p->timer = NULL;
		return false;
	}
	p->running = true;
	view_get(f);
	return true;
}

bool view_parts_wait(struct cow_fuse *f, fuse_req_t req, const struct fuse_file_info *fi,
		     unsigned lookup_index)
{
	struct view_parts *p = &f->parts;
	struct waiter *w;

	if (!p->running && ((p->scanned && p->at == cow_dev_changes(f->dev)) || part_in_use(f)))
		return false;
	/* Running but without a timer: it is late, and nobody waits for it any more. */
	if (p->running && !p->timer)
		return false;
	w = cow_zalloc(sizeof(*w));
	if (!w || (!p->running && !start_scan(f))) {
		cow_free(w);
		return false;
	}
	w->req = req;
	w->index = lookup_index;
	if (fi)
		w->fi = *fi;
	cow_list_add_tail(&p->waiters, &w->node);
	return true;
}

#else

bool view_parts_wait(struct cow_fuse *f, fuse_req_t req, const struct fuse_file_info *fi,
		     unsigned lookup_index)
{
	(void)f, (void)req, (void)fi, (void)lookup_index;
	return false;
}

#endif
