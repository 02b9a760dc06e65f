// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The Xen front end: this process is the backend of one virtual disk of one guest, and
 * serves the guest's rings itself (xen-conn.c). Here is what is agreed on in xenstore.
 *
 *	toolstack: folders of backend and frontend, both Initialising
 *	we: features, InitWait                      (usable: nothing is lost by waiting)
 *	frontend: rings, Initialised; we: connect, size, Connected; frontend: Connected
 *	frontend: Closing; we: Closing; frontend: Closed; we: disconnect, flush, Closed
 *	frontend: Initialising again; we: InitWait ... unless the toolstack took the disk
 *	back (online is 0, or a folder is gone): then it is over
 *
 * Nothing is concluded from an event: it makes us look at both states, and do what they
 * call for. So it does not matter how often, or how fast, a guest changes its own.
 *
 * A daemon that is killed, or ends by a signal, leaves the states as they are. The guest
 * waits, the next daemon of the same name connects again and goes on with what was in hand.
 *
 * Of the backend's folder we read, besides what every toolstack writes there, two nodes that
 * "cowctl xen-attach" does: logical-sector-size, 4096 for a disk that shall have such sectors if
 * the frontend knows them, and forget, 1 for one whose changes are taken and forgotten.
 */
#include "fe.h"

#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "cow/log.h"
#include "xen-conn.h"
#include "xen-keep.h"
#include "xen-vdev.h"

#define CLOSE_MS 10000		/* for the guest to let go, when that is forced */
#define LOOKS 8			/* each after a change of ours, until nothing is to be done */
#define OWN_TYPE "dmu"		/* of folders that no toolstack takes away */
#define PHYSICAL 4096u		/* sectors, where the size allows it */

struct fe {
	struct fe_cfg cfg;
	const struct xen_lib *lib;
	struct xen_store *store;
	struct cow_source *store_src, *ready_src, *timer;
	struct xen_path path;
	char front[XEN_PATH_MAX];	/* the frontend's folder */
	enum xen_state state;		/* what we said last, or found */
	struct xen_conn *conn;
	struct cow_req flush;
	bool settling;			/* the rings are to be let go when nothing is in flight */
	bool flushing;
	bool read_only, discard, forget;
	unsigned logical;		/* sectors the disk shall have, in bytes */
	unsigned sector;		/* those it has for this frontend */
	bool look;			/* something changed */
	bool give_up;			/* it shall be over, whatever the guest does */
	bool leaving, ended;
	int ready_fd;
	fe_done_fn *stop_done;
	void *stop_opaque;
};

static const char *const state_names[] = {
	"absent", "initialising", "init-wait", "initialised", "connected", "closing", "closed",
	"reconfiguring", "reconfigured",
};

/* ---- what we write ---- */

static int write_size(struct fe *fe, struct xen_store *s)
{
	uint64_t bytes = cow_dev_size(fe->cfg.dev);
	unsigned physical = bytes % PHYSICAL ? fe->sector : PHYSICAL;
	int rc = xen_store_write(s, fe->path.dir, "sectors", "%llu",
				 (unsigned long long)(bytes / fe->sector));

	if (!rc)
		rc = xen_store_write(s, fe->path.dir, "sector-size", "%u", fe->sector);
	if (!rc)
		rc = xen_store_write(s, fe->path.dir, "physical-sector-size", "%u", physical);
	return rc;
}

static unsigned info_bits(struct fe *fe, struct xen_store *s)
{
	unsigned bits = fe->read_only ? XEN_INFO_READONLY : 0;
	uint64_t removable = 0;
	char type[16];

	if (!xen_store_read(s, fe->path.dir, "device-type", type, sizeof(type)) &&
	    !strcmp(type, "cdrom"))
		bits |= XEN_INFO_CDROM;
	if (!xen_store_read_number(s, fe->path.dir, "removable", 1, &removable) && removable)
		bits |= XEN_INFO_REMOVABLE;
	return bits;
}

static int write_features(struct fe *fe, struct xen_store *s)
{
	const struct {
		const char *key;
		uint64_t value;
	} features[] = {
		{ "feature-flush-cache", 1 },
		{ "feature-barrier", 1 },
		{ "feature-discard", fe->discard },
		{ "discard-granularity", PHYSICAL },
		{ "discard-alignment", 0 },
		{ "discard-secure", 0 },
		{ "feature-persistent", 1 },
		{ "feature-max-indirect-segments", XEN_RING_SEGS_MAX },
		{ "max-ring-page-order", XEN_RING_ORDER_MAX },
		{ "multi-queue-max-queues", XEN_QUEUES_MAX },
		{ "info", info_bits(fe, s) },
	};
	int rc = write_size(fe, s);

	for (size_t i = 0; i < COW_ARRAY_SIZE(features) && !rc; i++)
		rc = xen_store_write(s, fe->path.dir, features[i].key, "%llu",
				     (unsigned long long)features[i].value);
	return rc;
}

struct change {
	struct fe *fe;
	enum xen_state state;
	int (*more)(struct fe *fe, struct xen_store *s);	/* written with it; NULL: nothing */
};

/* A folder that was taken away meanwhile must not come to be again by our writing. */
static int write_change(struct xen_store *s, void *opaque)
{
	struct change *c = opaque;
	struct fe *fe = c->fe;
	int now = xen_store_read_state(s, fe->path.dir), rc = 0;

	if (now == XEN_ABSENT)
		return -ENOENT;
	/* The toolstack's word comes first. */
	if (now == XEN_CLOSING && c->state < XEN_CLOSING && fe->state < XEN_CLOSING)
		return -ESTALE;
	if (c->more)
		rc = c->more(fe, s);
	return rc ? rc : xen_store_write(s, fe->path.dir, "state", "%d", c->state);
}

static int change_state(struct fe *fe, enum xen_state state,
			int (*more)(struct fe *fe, struct xen_store *s))
{
	struct change c = { fe, state, more };
	int rc = xen_store_transact(fe->store, write_change, &c);

	if (!rc)
		fe->state = state;
	/* What stands there now is something else than we thought, or it can be written next time. */
	if (!rc || rc == -ENOENT || rc == -ESTALE)
		fe->look = true;
	else
		cow_log_limited(COW_LOG_ERR, "%s: xenstore: %s", fe->path.dir, strerror(-rc));
	return rc;
}

static void set_state(struct fe *fe, enum xen_state state)
{
	if (fe->state != state)
		change_state(fe, state, NULL);
}

/* ---- connecting and disconnecting ---- */

/* A frontend that is connected already goes on with the sectors that it was told of. */
static int choose_sector(struct fe *fe, bool adopt, struct cow_err *err)
{
	const char *dir = adopt ? fe->path.dir : fe->front;
	const char *key = adopt ? "sector-size" : "feature-large-sector-size";
	uint64_t v;
	int rc = xen_store_read_number_or(fe->store, dir, key, UINT32_MAX, 0, &v);

	if (rc)
		return cow_err_sys(err, rc, "%s/%s", dir, key);
	if (adopt)
		fe->sector = v == XEN_SECTOR_LARGE ? XEN_SECTOR_LARGE : XEN_SECTOR;
	else
		fe->sector = v && cow_dev_size(fe->cfg.dev) % fe->logical == 0 ? fe->logical
									       : XEN_SECTOR;
	return 0;
}

static int connect(struct fe *fe, bool adopt, struct cow_err *err)
{
	struct xen_conn_cfg cfg = {
		.loop = fe->cfg.loop, .dev = fe->cfg.dev, .lib = fe->lib, .name = fe->cfg.name,
		.dir = fe->path.dir, .domain = fe->path.domain, .read_only = fe->read_only,
		.discard = fe->discard, .forget = fe->forget,
	};
	struct xen_params params;
	int rc = xen_params_read(fe->store, fe->front, &params, err);

	if (!rc)
		rc = choose_sector(fe, adopt, err);
	cfg.sector = fe->sector;
	return rc ? rc : xen_conn_new(&cfg, &params, adopt, &fe->conn, err);
}

static void accept_frontend(struct fe *fe)
{
	struct cow_err err = { 0 };
	int rc = connect(fe, false, &err);

	if (rc) {
		cow_log_limited(COW_LOG_WARN, "%s: not connected: %s", fe->cfg.name,
				cow_err_text(&err, rc));
		/* From here it goes on only by way of Closed. */
		set_state(fe, XEN_CLOSING);
	} else {
		change_state(fe, XEN_CONNECTED, write_size);
	}
}

static void on_flushed(struct cow_req *req, int result)
{
	struct fe *fe = cow_container_of(req, struct fe, flush);

	if (result)
		cow_log(COW_LOG_ERR, "%s: flush: %s", fe->cfg.name, strerror(-result));
	fe->flushing = false;
	fe->look = true;
}

/* Lets go of the rings. True when that is done, and what the guest wrote is on disk. */
static bool settle(struct fe *fe)
{
	if (!fe->conn)
		return !fe->flushing;
	xen_conn_stop(fe->conn);
	fe->settling = xen_conn_inflight(fe->conn) > 0;
	if (fe->settling)
		return false;
	xen_conn_run(fe->conn);
	xen_conn_free(fe->conn, false);
	fe->conn = NULL;
	if (fe->read_only || fe->forget)
		return true;
	fe->flushing = true;
	fe->flush = (struct cow_req){ .op = COW_OP_FLUSH, .flags = COW_DEV_THROUGH,
				      .done = on_flushed };
	cow_dev_submit(fe->cfg.dev, &fe->flush);
	return !fe->flushing;
}

/* ---- the two states ---- */

static void finish_stop(struct fe *fe)
{
	fe_done_fn *done = fe->stop_done;

	cow_source_free(fe->timer);
	fe->timer = NULL;
	fe->stop_done = NULL;
	fe->ended = true;
	done(fe->stop_opaque, 0, "");
}

/* The disk is not the guest's any more. */
static void end(struct fe *fe)
{
	xen_keep_forget(fe->cfg.name);
	if (!strcmp(fe->path.type, OWN_TYPE)) {
		xen_store_remove(fe->store, fe->front);
		xen_store_remove_backend(fe->store, &fe->path);
	}
	if (fe->stop_done) {
		finish_stop(fe);
	} else {
		fe->ended = true;
		fe->cfg.gone(fe->cfg.opaque);
	}
}

static void closed(struct fe *fe, bool for_good)
{
	if (!settle(fe))
		return;
	set_state(fe, XEN_CLOSED);
	if (for_good)
		end(fe);
	else if (fe->stop_done)
		finish_stop(fe);
}

static bool is_online(struct fe *fe)
{
	uint64_t online;

	return !xen_store_read_number(fe->store, fe->path.dir, "online", 1, &online) && online;
}

static void frontend_is_new(struct fe *fe)
{
	if (fe->conn)
		return;		/* it will close what it had, or be taken away */
	if (fe->state == XEN_CLOSING || fe->stop_done)
		closed(fe, !is_online(fe));
	else if (fe->state == XEN_CLOSED && is_online(fe))
		change_state(fe, XEN_INIT_WAIT, write_features);
}

static void look(struct fe *fe)
{
	int own = xen_store_read_state(fe->store, fe->path.dir);
	int front = xen_store_read_state(fe->store, fe->front);

	if (own == XEN_ABSENT) {
		if (settle(fe))
			end(fe);
		return;
	}
	if (own == XEN_CLOSING && fe->state < XEN_CLOSING)
		fe->state = XEN_CLOSING;	/* the toolstack wants it back */
	if (fe->give_up) {
		closed(fe, false);
		return;
	}
	switch (front) {
	case XEN_INITIALISING:
		frontend_is_new(fe);
		break;
	case XEN_INITIALISED:
	case XEN_CONNECTED:
		if (!fe->conn && fe->state == XEN_INIT_WAIT)
			accept_frontend(fe);
		break;
	case XEN_CLOSING:
		set_state(fe, XEN_CLOSING);
		break;
	case XEN_CLOSED:
		closed(fe, !is_online(fe));
		break;
	case XEN_ABSENT:
		closed(fe, true);
		break;
	default:
		break;	/* nonsense, or of no meaning for disks */
	}
}

static void before_wait(void *opaque)
{
	struct fe *fe = opaque;

	if (fe->conn)
		xen_conn_run(fe->conn);
	if (fe->settling && fe->conn && !xen_conn_inflight(fe->conn))
		fe->look = true;	/* to let go of the rings */
	/* Who started us is told that we are ready before it can be over. */
	if (fe->ready_src)
		return;
	for (unsigned i = 0; fe->look && i < LOOKS && !fe->ended && !fe->leaving; i++) {
		fe->look = false;
		look(fe);
	}
}

static void on_store(void *opaque, uint32_t events)
{
	struct fe *fe = opaque;
	int n = xen_store_events(fe->store);

	(void)events;
	fe->look |= n > 0;
	if (n >= 0)
		return;
	cow_log(COW_LOG_ERR, "%s: xenstore is gone (%s): the guest is served on, but cannot be let go",
		fe->cfg.name, strerror(-n));
	cow_source_free(fe->store_src);
	fe->store_src = NULL;
}

/* ---- beginning ---- */

static int read_choices(struct fe *fe, bool writable)
{
	struct xen_store *s = fe->store;
	const char *dir = fe->path.dir;
	uint64_t discard, forget, logical;
	int rc = xen_store_read_number_or(s, dir, "discard-enable", 1, 1, &discard);

	if (!rc)
		rc = xen_store_read_number_or(s, dir, "forget", 1, 0, &forget);
	if (!rc)
		rc = xen_store_read_number_or(s, dir, "logical-sector-size", UINT32_MAX, XEN_SECTOR,
					      &logical);
	if (!rc && logical != XEN_SECTOR && logical != XEN_SECTOR_LARGE)
		rc = -EINVAL;
	if (rc)
		return rc;
	fe->forget = forget;
	fe->read_only = !writable || (!forget && cow_dev_readonly(fe->cfg.dev));
	fe->discard = discard && !fe->read_only;
	fe->logical = (unsigned)logical;
	fe->sector = XEN_SECTOR;
	return 0;
}

static int read_facts(struct fe *fe, struct cow_err *err)
{
	uint64_t domain;
	char mode[8];
	int rc = xen_store_read_number(fe->store, fe->path.dir, "frontend-id", UINT32_MAX, &domain);

	if (!rc && domain != fe->path.domain)
		return cow_err_set(err, -EINVAL, "%s is of domain %llu", fe->path.dir,
				   (unsigned long long)domain);
	if (!rc)
		rc = xen_store_read(fe->store, fe->path.dir, "frontend", fe->front, sizeof(fe->front));
	if (!rc)
		rc = xen_store_read(fe->store, fe->path.dir, "mode", mode, sizeof(mode));
	if (rc == -ENOENT)
		return cow_err_set(err, rc, "%s: there is no virtual disk in xenstore", fe->path.dir);
	if (!rc)
		rc = read_choices(fe, !strcmp(mode, "w"));
	return rc ? cow_err_sys(err, rc, "%s", fe->path.dir) : 0;
}

static int watch(struct fe *fe, struct cow_err *err)
{
	int rc = xen_store_watch(fe->store, fe->path.dir, "state");

	if (!rc)
		rc = xen_store_watch(fe->store, fe->path.dir, "online");
	if (!rc)
		rc = xen_store_watch(fe->store, fe->front, "state");
	if (rc)
		return cow_err_sys(err, rc, "%s: watch", fe->path.dir);
	fe->store_src = cow_loop_fd(fe->cfg.loop, xen_store_fd(fe->store), EPOLLIN, on_store, fe);
	return fe->store_src ? 0 : cow_err_sys(err, -errno, "xenstore");
}

/* The guest is connected to a daemon that ended: go on where that one was. */
static int take_up(struct fe *fe, struct cow_err *err)
{
	uint64_t sectors = 0;
	int rc = connect(fe, true, err);

	if (rc)
		return rc;
	cow_log(COW_LOG_INFO, "%s: domain %u goes on where the last daemon was", fe->cfg.name,
		fe->path.domain);
	xen_store_read_number(fe->store, fe->path.dir, "sectors", UINT64_MAX, &sectors);
	if (sectors != cow_dev_size(fe->cfg.dev) / fe->sector)
		change_state(fe, XEN_CONNECTED, write_size);
	return 0;
}

/* Its daemon was killed, and then the guest ended or the disk was taken back. */
static bool is_ours_to_end(struct fe *fe, int front)
{
	return !strcmp(fe->path.type, OWN_TYPE) && (front == XEN_ABSENT || !is_online(fe));
}

static int begin(struct fe *fe, struct cow_err *err)
{
	int own = xen_store_read_state(fe->store, fe->path.dir);
	int front = xen_store_read_state(fe->store, fe->front);
	int rc;

	if (own > XEN_ABSENT)
		fe->state = (enum xen_state)own;
	if (own > XEN_ABSENT && is_ours_to_end(fe, front))
		return 0;
	if (own <= XEN_ABSENT || front <= XEN_ABSENT)
		return cow_err_set(err, -ENOENT, "%s: backend or frontend is not in xenstore",
				   fe->path.dir);
	if (own == XEN_CONNECTED && (front == XEN_CONNECTED || front == XEN_INITIALISED))
		return take_up(fe, err);
	if (own >= XEN_CLOSING && !(is_online(fe) && front == XEN_INITIALISING))
		return own == XEN_CLOSED && is_online(fe) ? 0
		       : cow_err_set(err, -ESHUTDOWN, "%s is being closed", fe->path.dir);
	rc = change_state(fe, XEN_INIT_WAIT, write_features);
	return rc ? cow_err_sys(err, rc, "%s", fe->path.dir) : 0;
}

static void on_ready(void *opaque, uint32_t events)
{
	struct fe *fe = opaque;

	(void)events;
	cow_source_free(fe->ready_src);
	fe->ready_src = NULL;
	fe->cfg.ready(fe->cfg.opaque, 0, "");
	fe->look = true;
}

/* ---- fe.h ---- */

static void xen_free(struct fe *fe)
{
	cow_loop_before_wait(fe->cfg.loop, NULL, NULL);
	xen_conn_free(fe->conn, true);
	cow_source_free(fe->store_src);
	cow_source_free(fe->ready_src);
	cow_source_free(fe->timer);
	xen_store_close(fe->store);
	cow_free(fe);
}

static int xen_probe(struct cow_err *why)
{
	return xen_lib_probe(why);
}

static int xen_suits(struct cow_dev *dev, struct cow_err *why)
{
	return cow_dev_size(dev) >= XEN_SECTOR ? 0
	       : cow_err_set(why, -EINVAL, "a virtual disk has at least one sector of 512 bytes");
}

static int open_fe(struct fe *fe, struct cow_err *err)
{
	int rc = xen_path_parse(fe->cfg.xenbus, &fe->path, err);

	if (!rc)
		rc = xen_lib_load(&fe->lib, err);
	if (!rc)
		rc = xen_store_open(fe->lib, &fe->store, err);
	if (!rc)
		rc = read_facts(fe, err);
	if (!rc)
		rc = watch(fe, err);
	if (!rc)
		rc = begin(fe, err);
	if (rc)
		return rc;
	fe->ready_src = cow_loop_timer(fe->cfg.loop, 0, false, on_ready, fe);
	return fe->ready_src ? 0 : cow_err_sys(err, -errno, "%s", fe->path.dir);
}

static int xen_start(const struct fe_cfg *cfg, struct fe **ret, struct cow_err *err)
{
	struct fe *fe = cow_zalloc(sizeof(*fe));
	int rc;

	if (!fe)
		return cow_err_sys(err, -ENOMEM, "%s", cfg->name);
	fe->cfg = *cfg;
	rc = open_fe(fe, err);
	if (rc) {
		xen_free(fe);
		return rc;
	}
	cow_loop_before_wait(cfg->loop, before_wait, fe);
	*ret = fe;
	return 0;
}

static void on_close_late(void *opaque, uint32_t events)
{
	struct fe *fe = opaque;

	(void)events;
	cow_log(COW_LOG_WARN, "%s: domain %u does not let go of the disk; it gets no more answers",
		fe->cfg.name, fe->path.domain);
	fe->give_up = fe->look = true;
}

static void xen_stop(struct fe *fe, bool force, fe_done_fn *done, void *opaque)
{
	char sentence[128];

	if (fe->ended) {
		done(opaque, 0, "");
		return;
	}
	if (fe->stop_done || (fe->conn && !force)) {
		snprintf(sentence, sizeof(sentence), "domain %u has the disk: detach it there, or use "
			 "--force", fe->path.domain);
		done(opaque, -EBUSY, fe->stop_done ? "it is being stopped already" : sentence);
		return;
	}
	fe->stop_done = done;
	fe->stop_opaque = opaque;
	fe->look = true;
	if (fe->conn) {
		set_state(fe, XEN_CLOSING);
		fe->timer = cow_loop_timer(fe->cfg.loop, CLOSE_MS, false, on_close_late, fe);
	}
	fe->give_up = !fe->timer;
}

static void xen_leave(struct fe *fe, fe_done_fn *done, void *opaque)
{
	fe->leaving = true;
	if (fe->conn)
		xen_conn_stop(fe->conn);
	done(opaque, 0, "");
}

static void xen_resized(struct fe *fe, fe_done_fn *done, void *opaque)
{
	int rc = fe->state == XEN_CONNECTED ? change_state(fe, XEN_CONNECTED, write_size) : 0;

	done(opaque, rc, rc ? "the guest cannot be told of its disk's new size" : "");
}

static const char *xen_path_of(const struct fe *fe)
{
	return fe->path.dir;
}

static const char *xen_block_device(const struct fe *fe)
{
	(void)fe;
	return "";
}

static void xen_status(struct fe *fe, struct cow_kv *kv)
{
	int front = xen_store_read_state(fe->store, fe->front);
	char vdev[XEN_VDEV_NAME_MAX];

	cow_kv_object(kv, "xen");
	cow_kv_u64(kv, "domain", fe->path.domain);
	cow_kv_str(kv, "vdev", xen_vdev_name(fe->path.dev, vdev));
	cow_kv_str(kv, "backend", state_names[fe->state]);
	cow_kv_str(kv, "frontend", front < 0 ? "nonsense" : state_names[front]);
	if (fe->conn)
		xen_conn_status(fe->conn, kv);
	cow_kv_close(kv);
}

const struct fe_ops fe_xen = {
	.name = "xen",
	.desc = "the backend of a Xen guest's virtual disk; only with --xenbus",
	.ends = true,
	.probe = xen_probe,
	.suits = xen_suits,
	.start = xen_start,
	.stop = xen_stop,
	.leave = xen_leave,
	.free = xen_free,
	.resized = xen_resized,
	.path = xen_path_of,
	.block_device = xen_block_device,
	.status = xen_status,
};
