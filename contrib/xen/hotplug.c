// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Adding and removing a disk of a guest, see hotplug.h. All work is done by
 * other programs: cowimg makes the overlay, cowd serves it, cowctl stops it.
 *
 * A disk is added a second time to start a cowd that was killed: it carries on
 * under the same name, with the same device.
 */
#include "hotplug.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "run.h"
#include "spec.h"

#define NAME_SIZE 48		/* "xen-" and two numbers */
#define NODES_MAX 3
#define TAP_PREFIX "aio:"
#define XENBUS_CLOSED "6"	/* enum xenbus_state */

struct disk {
	const struct hotplug *h;
	const char *path;		/* as the toolstack gave it */
	char *absolute;			/* in xenstore; only with @ring */
	char type[32];
	unsigned domain, device;
	char name[NAME_SIZE];
	struct spec spec;
	bool read_only;
	bool ring;
	bool made;			/* the overlay is ours, and is this one: */
	dev_t made_dev;
	ino_t made_ino;
	uint64_t deadline_ms;
	char *options[SPEC_OPTS];	/* with commas doubled */
};

static int no_memory(struct cow_err *err)
{
	return cow_err_set(err, -ENOMEM, "not enough memory");
}

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static unsigned left_ms(const struct disk *d)
{
	uint64_t now = now_ms();

	return now < d->deadline_ms ? (unsigned)(d->deadline_ms - now) : 0;
}

/* ---- what is asked for ---- */

/* The number at *@p, and a slash behind it unless it is the @last. */
static bool read_number(const char **p, bool last, unsigned *ret)
{
	unsigned long v;
	char *end;

	if (**p < '0' || **p > '9')
		return false;
	errno = 0;
	v = strtoul(*p, &end, 10);
	if (errno || v > UINT_MAX || *end != (last ? '\0' : '/'))
		return false;
	*p = end + 1;
	*ret = (unsigned)v;
	return true;
}

static bool parse_path(struct disk *d)
{
	static const char word[] = "backend/";
	const char *p = d->path, *next;
	size_t len;

	/* The last one: a domain's own path may be before it. */
	for (p = strstr(p, word); p && (next = strstr(p + 1, word)); p = next)
		;
	if (!p || (p != d->path && p[-1] != '/'))
		return false;
	p += strlen(word);
	len = strcspn(p, "/");
	if (!len || len >= sizeof(d->type) || !p[len])
		return false;
	memcpy(d->type, p, len);
	p += len + 1;
	return read_number(&p, false, &d->domain) && read_number(&p, true, &d->device);
}

static struct disk *new_disk(const struct hotplug *h, const char *path, struct cow_err *err)
{
	struct disk *d = cow_zalloc(sizeof(*d));

	if (!d) {
		no_memory(err);
		return NULL;
	}
	d->h = h;
	d->path = path;
	d->deadline_ms = now_ms() + h->start_ms;
	if (!parse_path(d)) {
		cow_err_set(err, -EINVAL, "\"%s\" is not the path of a backend in xenstore", path);
		cow_free(d);
		return NULL;
	}
	snprintf(d->name, sizeof(d->name), "xen-%u-%u", d->domain, d->device);
	return d;
}

static void free_disk(struct disk *d)
{
	unsigned i;

	for (i = 0; i < SPEC_OPTS; i++)
		cow_free(d->options[i]);
	cow_free(d->absolute);
	cow_free(d);
}

static char *read_node(const struct disk *d, const char *name)
{
	COW_CLEANUP_FREE char *path = cow_asprintf("%s/%s", d->path, name);

	if (!path)
		errno = ENOMEM;
	return path ? d->h->store.read(d->h->store.arg, path) : NULL;
}

static int read_params(struct disk *d, struct cow_err *err)
{
	COW_CLEANUP_FREE char *params = read_node(d, "params");
	COW_CLEANUP_FREE char *mode = params ? read_node(d, "mode") : NULL;
	struct cow_err why = { 0 };
	const char *text = params;

	if (!params || !mode)
		return cow_err_sys(err, -errno, "xenstore: %s/%s", d->path,
				   params ? "mode" : "params");
	/* For backendtype=tap libxl puts tapdisk's word for a raw image in front. */
	if (strcmp(d->type, "vbd") && !strncmp(text, TAP_PREFIX, strlen(TAP_PREFIX)))
		text += strlen(TAP_PREFIX);
	if (spec_parse(text, &d->spec, &why))
		return cow_err_set(err, why.code, "disk \"%s\": %s", text, why.msg);
	d->read_only = d->spec.read_only || mode[0] != 'w';
	return 0;
}

/* ---- ring or node ---- */

/* Did the kernel's backend take this device? It then owns the ring. */
static bool has_driver(const struct disk *d)
{
	COW_CLEANUP_FREE char *link =
		cow_asprintf("%s/bus/xen-backend/devices/%s-%u-%u/driver", d->h->sysfs, d->type,
			     d->domain, d->device);

	return link && access(link, F_OK) == 0;
}

static int choose_carrier(struct disk *d, struct cow_err *err)
{
	bool driver = has_driver(d);

	d->ring = d->spec.carrier == SPEC_RING ||
		  (d->spec.carrier == SPEC_ANY && strcmp(d->type, "vbd"));
	if (d->ring && driver)
		return cow_err_set(err, -EBUSY,
				   "option ring: the kernel's xen-blkback has taken this device; "
				   "unload it, or use backendtype=tap (Xen 4.19 and newer)");
	if (!d->ring && !driver)
		return cow_err_set(err, -ENODEV,
				   strcmp(d->type, "vbd") ?
				   "option node: the kernel serves no devices of type %s" :
				   "no xen-blkback in the kernel has taken this device of type %s; "
				   "load it, or use the option ring",
				   d->type);
	return 0;
}

/* cowd may run where relative paths mean something else. */
static int absolute_path(struct disk *d, struct cow_err *err)
{
	COW_CLEANUP_FREE char *domid = NULL;

	if (!d->ring)
		return 0;
	if (d->path[0] == '/') {
		d->absolute = cow_strdup(d->path);
	} else {
		domid = d->h->store.read(d->h->store.arg, "domid");
		if (!domid)
			return cow_err_sys(err, -errno, "xenstore: domid");
		d->absolute = cow_asprintf("/local/domain/%s/%s", domid, d->path);
	}
	return d->absolute ? 0 : no_memory(err);
}

/* ---- the overlay ---- */

static int create_overlay(struct disk *d, struct cow_err *err)
{
	const struct spec *s = &d->spec;
	struct run_args a = { .n = 0 };
	char size[32];
	struct stat st;
	int rc;

	run_add(&a, d->h->cowimg);
	run_add(&a, "create");
	run_add(&a, "-q");
	run_add(&a, "-f");
	run_add(&a, s->format);
	if (s->base) {
		run_add(&a, "-b");
		run_add(&a, s->base);
		run_add(&a, "-F");
		run_add(&a, s->base_format);
	}
	run_add(&a, "--");
	run_add(&a, s->overlay);
	if (s->size) {
		snprintf(size, sizeof(size), "%llu", (unsigned long long)s->size);
		run_add(&a, size);
	}
	rc = run_program(&a, left_ms(d), NULL, err);
	if (rc)
		return rc;
	if (stat(s->overlay, &st))
		return cow_err_sys(err, -errno, "%s was made and is gone", s->overlay);
	d->made = true;
	d->made_dev = st.st_dev;
	d->made_ino = st.st_ino;
	return 0;
}

static int need_overlay(struct disk *d, struct cow_err *err)
{
	const struct spec *s = &d->spec;
	struct stat st;

	if (stat(s->overlay, &st) == 0)
		return 0;
	if (errno != ENOENT)
		return cow_err_sys(err, -errno, "%s", s->overlay);
	if (!s->create)
		return cow_err_set(err, -ENOENT, "%s does not exist, and create=no is given",
				   s->overlay);
	/* Without a base and a size it may be a format without a file; cowd knows. */
	return s->base || s->size ? create_overlay(d, err) : 0;
}

/* Takes it away again, unless somebody else has it open by now: all who do lock it. */
static void remove_overlay(const struct disk *d)
{
	struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	COW_CLEANUP_CLOSE int fd = -1;
	struct stat st;

	if (!d->made)
		return;
	fd = open(d->spec.overlay, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	if (fd >= 0 && fstat(fd, &st) == 0 && st.st_dev == d->made_dev &&
	    st.st_ino == d->made_ino && fcntl(fd, F_OFD_SETLK, &all) == 0)
		unlink(d->spec.overlay);
}

/* ---- cowd ---- */

/*
 * Under systemd the daemon gets a scope of its own. In that of whoever called xl
 * it would be ended at shutdown before the guest is. Its last flush may take as
 * long as the disk takes.
 */
static void add_scope(const struct disk *d, struct run_args *a)
{
	if (!d->h->systemd_run)
		return;
	run_add(a, d->h->systemd_run);
	run_add(a, "--scope");
	run_add(a, "--quiet");
	run_add(a, "--collect");
	run_add(a, "--slice=system.slice");
	run_add(a, "--property=After=local-fs.target");
	run_add(a, "--property=After=remote-fs.target");
	run_add(a, "--property=Before=xendomains.service");
	run_add(a, "--property=TimeoutStopSec=300");
	run_add(a, "--");
}

/* A comma in an option of the format is two for cowd. */
static char *double_commas(const char *text)
{
	char *out = cow_zalloc(2 * strlen(text) + 1), *p = out;

	for (; out && *text; text++) {
		*p++ = *text;
		if (*text == ',')
			*p++ = ',';
	}
	return out;
}

static int add_format(struct disk *d, struct run_args *a, struct cow_err *err)
{
	const struct spec *s = &d->spec;
	unsigned i;

	run_add(a, "-p");
	run_add(a, s->format);
	if (d->read_only)
		run_add(a, "-r");
	if (s->base) {
		run_add(a, "-b");
		run_add(a, s->base);
	}
	for (i = 0; i < s->n_opts; i++) {
		if (!d->options[i])
			d->options[i] = double_commas(s->opts[i]);
		if (!d->options[i])
			return no_memory(err);
		run_add(a, "-o");
		run_add(a, d->options[i]);
	}
	return 0;
}

/* *@ret_path, for cow_free(), is what cowd printed. */
static int start_cowd(struct disk *d, char **ret_path, struct cow_err *err)
{
	COW_CLEANUP_FREE char *xenbus = NULL;
	struct run_args a = { .n = 0 };
	int rc;

	add_scope(d, &a);
	run_add(&a, d->h->cowd);
	rc = add_format(d, &a, err);
	if (rc)
		return rc;
	if (d->ring) {
		xenbus = cow_asprintf("--xenbus=%s", d->absolute);
		if (!xenbus)
			return no_memory(err);
		run_add(&a, "--frontend=xen");
		run_add(&a, xenbus);
	}
	run_add(&a, "--");
	run_add(&a, d->name);
	run_add(&a, d->spec.overlay);
	rc = run_program(&a, left_ms(d), ret_path, err);
	if (!rc)
		(*ret_path)[strcspn(*ret_path, "\n")] = '\0';
	return rc;
}

static int run_cowctl(const struct disk *d, const char *verb, const char *force, char **ret_out,
		      struct cow_err *err)
{
	struct run_args a = { .n = 0 };

	run_add(&a, d->h->cowctl);
	run_add(&a, verb);
	if (force)
		run_add(&a, force);
	if (strcmp(verb, "list"))
		run_add(&a, d->name);
	return run_program(&a, d->h->start_ms, ret_out, err);
}

enum cowd_state { COWD_NONE, COWD_DEAD, COWD_RUNS };

/* From the line "NAME STATE ..." of a list. */
static enum cowd_state state_in(const char *list, const char *name)
{
	size_t len = strlen(name);
	const char *line = list;

	while (line) {
		if (!strncmp(line, name, len) && line[len] == ' ') {
			line += len + strspn(line + len, " ");
			return strncmp(line, "dead ", 5) ? COWD_RUNS : COWD_DEAD;
		}
		line = strchr(line, '\n');
		if (line)
			line++;
	}
	return COWD_NONE;
}

static int cowd_state(const struct disk *d, enum cowd_state *ret, struct cow_err *err)
{
	COW_CLEANUP_FREE char *list = NULL;
	int rc = run_cowctl(d, "list", NULL, &list, err);

	if (!rc)
		*ret = state_in(list, d->name);
	return rc;
}

/* ---- add ---- */

static int publish(const struct disk *d, const char *device, struct cow_err *err)
{
	struct hotplug_node nodes[NODES_MAX];
	char numbers[32];
	unsigned major, minor, n = 0;
	int rc;

	if (!d->ring) {
		if (!d->h->numbers(device, &major, &minor))
			return cow_err_set(err, -ENODEV,
					   "%s: no block device could be made for xen-blkback, "
					   "only %s", d->name, device);
		snprintf(numbers, sizeof(numbers), "%x:%x", major, minor);
		nodes[n++] = (struct hotplug_node){ "physical-device", numbers };
		nodes[n++] = (struct hotplug_node){ "physical-device-path", device };
	}
	nodes[n++] = (struct hotplug_node){ "hotplug-status", "connected" };
	rc = d->h->store.write(d->h->store.arg, d->path, nodes, n);
	return rc ? cow_err_sys(err, rc, "xenstore: %s", d->path) : 0;
}

static int start_and_publish(struct disk *d, bool again, struct cow_err *err)
{
	COW_CLEANUP_FREE char *device = NULL;
	int rc = start_cowd(d, &device, err);

	if (rc)
		return rc;
	rc = publish(d, device, err);
	if (rc && !again)
		run_cowctl(d, "stop", "--force", NULL, NULL);
	return rc;
}

/* Was this disk added before? Then there is nothing to do while its cowd lives. */
static int added_before(const struct disk *d, bool *ret_again, bool *ret_running,
			struct cow_err *err)
{
	COW_CLEANUP_FREE char *status = read_node(d, "hotplug-status");
	enum cowd_state state;
	int rc;

	*ret_again = status && !strcmp(status, "connected");
	*ret_running = false;
	if (!*ret_again)
		return 0;
	rc = cowd_state(d, &state, err);
	if (!rc)
		*ret_running = state == COWD_RUNS;
	return rc;
}

static int add(struct disk *d, bool *ret_again, struct cow_err *err)
{
	bool running;
	int rc = read_params(d, err);

	if (!rc)
		rc = added_before(d, ret_again, &running, err);
	if (rc || running)
		return rc;
	rc = choose_carrier(d, err);
	if (!rc)
		rc = absolute_path(d, err);
	if (!rc)
		rc = need_overlay(d, err);
	if (!rc)
		rc = start_and_publish(d, *ret_again, err);
	if (rc)
		remove_overlay(d);
	return rc;
}

/* Says that the backend is over, where there is none to say so: the toolstack waits for that. */
static void close_backend(const struct disk *d)
{
	struct hotplug_node state = { "state", XENBUS_CLOSED };

	if (!has_driver(d))
		d->h->store.write(d->h->store.arg, d->path, &state, 1);
}

int hotplug_add(const struct hotplug *h, const char *path, struct cow_err *err)
{
	struct disk *d = new_disk(h, path, err);
	bool again = false;
	int rc;

	if (!d)
		return -EINVAL;
	rc = add(d, &again, err);
	if (rc && !again)
		close_backend(d);
	free_disk(d);
	return rc;
}

/* ---- remove ---- */

/*
 * A cowd that was killed left its device, and changes that only its successor
 * can bring into the image. So there is one, for a moment.
 */
static int revive(struct disk *d, struct cow_err *err)
{
	COW_CLEANUP_FREE char *device = NULL;
	int rc = read_params(d, err);

	d->ring = false;
	return rc ? rc : start_cowd(d, &device, err);
}

/* The kernel's backend lets go of the device a little after the guest did. */
static int stop_patiently(struct disk *d, struct cow_err *err)
{
	enum cowd_state state = COWD_RUNS;
	unsigned wait_ms = 10, waited_ms = 0;
	struct timespec t;
	int rc;

	for (;;) {
		struct cow_err why = { 0 };

		rc = run_cowctl(d, "stop", NULL, NULL, &why);
		if (!rc)
			return 0;
		rc = cowd_state(d, &state, err);
		if (rc || state == COWD_NONE)
			return rc;
		if (state == COWD_DEAD) {
			rc = revive(d, err);
			if (rc)
				return rc;
		} else if (waited_ms >= d->h->stop_ms) {
			return cow_err_set(err, why.code, "%s", why.msg);
		}
		t = (struct timespec){ wait_ms / 1000, (long)(wait_ms % 1000) * 1000000 };
		nanosleep(&t, NULL);
		waited_ms += wait_ms;
		wait_ms = (unsigned)cow_min(2 * (uint64_t)wait_ms, 500);
	}
}

int hotplug_remove(const struct hotplug *h, const char *path, struct cow_err *err)
{
	struct disk *d = new_disk(h, path, err);
	struct cow_err why = { 0 };
	int rc;

	if (!d)
		return -EINVAL;
	rc = stop_patiently(d, &why);
	if (rc && !h->store.alive(h->store.arg, d->domain))
		rc = run_cowctl(d, "stop", "--force", NULL, err);
	else if (rc)
		cow_err_set(err, rc, "%s", why.msg);
	free_disk(d);
	return rc;
}
