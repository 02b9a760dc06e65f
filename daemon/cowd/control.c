// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The control socket: accepts clients of the right user, cuts packets into
 * words, hands them on, and sends replies without ever waiting for a client.
 * Everything a client can make us keep is bounded: the number of clients, one
 * request each at a time, the bytes of a request and of a reply.
 *
 * A client is
 *	IDLE	   waiting for a packet
 *	BUSY	   a verb works on its request; if the peer goes away now, the
 *		   struct stays (fd -1) until client_done()
 *	SENDING	   the socket takes no more for now; no packet is read meanwhile
 */
#include "control.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cow/log.h"
#include "proto.h"
#include "rundir.h"

#define ACCEPT_PAUSE_MS 1000	/* after accept() failed for lack of something */

enum client_state { CLIENT_IDLE, CLIENT_BUSY, CLIENT_SENDING };

struct client {
	struct control *ctl;
	struct cow_list node;		/* in ctl->clients, least recently active first */
	int fd;				/* -1: the peer is gone */
	struct cow_source *src;
	enum client_state state;
	FILE *out;			/* BUSY: writes to text */
	char *text;			/* of the reply */
	size_t len, sent;
	char final[PROTO_PACKET];	/* empty once sent */
	struct proto_words words;
	struct cow_req req;
};

struct control {
	struct cow_loop *loop;
	int fd;
	struct cow_source *src, *pause;
	struct cow_list clients;
	unsigned n_clients;
	void (*request)(void *opaque, struct client *c, int argc, char **argv);
	void *opaque;
};

/* ---- clients ---- */

static void client_free(struct client *c)
{
	cow_list_del(&c->node);
	c->ctl->n_clients--;
	cow_source_free(c->src);
	if (c->fd >= 0)
		close(c->fd);
	if (c->out)
		fclose(c->out);
	free(c->text);
	cow_free(c);
}

static void client_touch(struct client *c)
{
	cow_list_del(&c->node);
	cow_list_add_tail(&c->ctl->clients, &c->node);
}

/* One packet. 1: sent; 0: not now; -errno: the peer is gone. */
static int send_packet(struct client *c, char kind, const char *text, size_t len)
{
	char packet[PROTO_PACKET];

	packet[0] = kind;
	memcpy(packet + 1, text, len);
	if (send(c->fd, packet, len + 1, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
		return 1;
	return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 0 : -errno;
}

/* Sends what the socket takes; the client is freed when the peer is gone. */
static void client_send(struct client *c)
{
	size_t n;
	int rc = 1;

	while (rc == 1 && c->sent < c->len) {
		n = cow_min(c->len - c->sent, PROTO_PACKET - 1);
		rc = send_packet(c, '+', c->text + c->sent, n);
		if (rc == 1)
			c->sent += n;
	}
	if (rc == 1)
		rc = send_packet(c, '.', c->final, strlen(c->final));
	if (rc < 0) {
		client_free(c);
		return;
	}
	c->state = rc ? CLIENT_IDLE : CLIENT_SENDING;
	if (rc) {
		free(c->text);
		c->text = NULL;
		c->len = c->sent = 0;
	}
	if (cow_source_events(c->src, rc ? EPOLLIN : EPOLLOUT))
		client_free(c);
}

void *client_opaque(const struct client *c)
{
	return c->ctl->opaque;
}

FILE *client_out(struct client *c)
{
	return c->out;
}

struct cow_req *client_req(struct client *c)
{
	return &c->req;
}

void client_done(struct client *c, int rc, const char *sentence)
{
	cow_assert(c->state == CLIENT_BUSY);
	if (fclose(c->out) && !rc)
		rc = -ENOMEM;	/* it writes to memory */
	c->out = NULL;
	if (c->fd < 0) {
		client_free(c);
		return;
	}
	if (!rc && c->len > CONTROL_REPLY) {
		rc = -EMSGSIZE;
		sentence = "the reply is too long";
	}
	if (rc)
		c->len = 0;
	snprintf(c->final, sizeof(c->final), rc ? "%d %s" : "%d", -rc,
		 sentence ? sentence : strerror(-rc));
	client_touch(c);
	client_send(c);
}

static void client_request(struct client *c, const char *packet, size_t len)
{
	const char *why = NULL;
	int rc;

	c->out = open_memstream(&c->text, &c->len);
	if (!c->out) {
		client_free(c);
		return;
	}
	c->state = CLIENT_BUSY;
	client_touch(c);
	if (cow_source_events(c->src, 0)) {
		client_done(c, -EIO, NULL);
		return;
	}
	rc = proto_split(packet, len, &c->words, &why);
	if (rc)
		client_done(c, rc, why);
	else
		c->ctl->request(c->ctl->opaque, c, c->words.argc, c->words.argv);
}

static void client_event(void *opaque, uint32_t events)
{
	struct client *c = opaque;
	char packet[PROTO_PACKET];
	ssize_t n;

	if (c->state == CLIENT_BUSY) {
		/* Nothing was asked for, so it hung up. */
		cow_source_free(c->src);
		c->src = NULL;
		close(c->fd);
		c->fd = -1;
		return;
	}
	if (c->state == CLIENT_SENDING) {
		client_send(c);
		return;
	}
	if (!(events & EPOLLIN)) {
		client_free(c);
		return;
	}
	/* MSG_TRUNC: the true length, so that a packet cut short is not taken for a request. */
	n = recv(c->fd, packet, sizeof(packet), MSG_DONTWAIT | MSG_TRUNC);
	if (n > 0)
		client_request(c, packet, (size_t)n);
	else if (n == 0 || (errno != EAGAIN && errno != EINTR))
		client_free(c);
}

/* ---- accepting ---- */

static bool is_allowed(int fd)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
	       (peer.uid == 0 || peer.uid == geteuid());
}

/* Makes room by dropping the client that has been idle, or not reading, for longest. */
static bool make_room(struct control *ctl)
{
	struct cow_list *n;

	if (ctl->n_clients < CONTROL_CLIENTS)
		return true;
	cow_list_for_each(n, &ctl->clients) {
		struct client *c = cow_list_entry(n, struct client, node);

		if (c->state != CLIENT_BUSY) {
			client_free(c);
			return true;
		}
	}
	return false;
}

static void refuse(int fd, int code, const char *sentence)
{
	char packet[128];
	int n = snprintf(packet, sizeof(packet), ".%d %s", code, sentence);

	/* Best effort: the closed connection says enough. */
	if (send(fd, packet, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		cow_log_limited(COW_LOG_DEBUG, "control socket: %s", strerror(errno));
	close(fd);
}

static void client_new(struct control *ctl, int fd)
{
	struct client *c = cow_zalloc(sizeof(*c));

	if (!c) {
		refuse(fd, ENOMEM, "not enough memory");
		return;
	}
	c->ctl = ctl;
	c->fd = fd;
	cow_list_add_tail(&ctl->clients, &c->node);
	ctl->n_clients++;
	c->src = cow_loop_fd(ctl->loop, fd, EPOLLIN, client_event, c);
	if (!c->src)
		client_free(c);
}

static void resume_accepting(void *opaque, uint32_t events)
{
	struct control *ctl = opaque;

	(void)events;
	cow_source_free(ctl->pause);
	ctl->pause = NULL;
	cow_source_events(ctl->src, EPOLLIN);
}

static void on_connect(void *opaque, uint32_t events)
{
	struct control *ctl = opaque;
	int fd = accept4(ctl->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)events;
	if (fd < 0) {
		if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
			return;
		/* The connection stays queued: not to be told about it for a while. */
		cow_log_limited(COW_LOG_WARN, "control socket: %s", strerror(errno));
		ctl->pause =
			cow_loop_timer(ctl->loop, ACCEPT_PAUSE_MS, false, resume_accepting, ctl);
		if (ctl->pause)
			cow_source_events(ctl->src, 0);
		return;
	}
	if (!is_allowed(fd))
		refuse(fd, EPERM, "only root and the daemon's own user may give commands");
	else if (!make_room(ctl))
		refuse(fd, EAGAIN, "too many clients are waiting for this device");
	else
		client_new(ctl, fd);
}

static int listen_at(const char *dir, const char *name, struct cow_err *err)
{
	struct sockaddr_un addr;
	int dir_fd = run_socket_address(dir, name, &addr);
	mode_t mask;
	int fd, rc = 0;

	if (dir_fd < 0)
		return cow_err_sys(err, dir_fd, "%s", dir);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0) {
		mask = umask(0177);
		if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(fd, 16))
			rc = -errno;
		umask(mask);
	} else {
		rc = -errno;
	}
	close(dir_fd);
	if (rc) {
		if (fd >= 0)
			close(fd);
		return cow_err_sys(err, rc, "control socket %s/%s.sock", dir, name);
	}
	return fd;
}

int control_new(struct cow_loop *l, const char *dir, const char *name,
		void (*request)(void *opaque, struct client *c, int argc, char **argv),
		void *opaque, struct control **ret, struct cow_err *err)
{
	struct control *ctl = cow_zalloc(sizeof(*ctl));
	int rc;

	if (!ctl)
		return cow_err_set(err, -ENOMEM, "%s: not enough memory", name);
	ctl->loop = l;
	ctl->request = request;
	ctl->opaque = opaque;
	cow_list_init(&ctl->clients);
	ctl->fd = listen_at(dir, name, err);
	if (ctl->fd < 0) {
		rc = ctl->fd;
		cow_free(ctl);
		return rc;
	}
	ctl->src = cow_loop_fd(l, ctl->fd, EPOLLIN, on_connect, ctl);
	if (!ctl->src) {
		rc = cow_err_sys(err, -errno, "control socket of %s", name);
		close(ctl->fd);
		cow_free(ctl);
		return rc;
	}
	*ret = ctl;
	return 0;
}

void control_free(struct control *ctl)
{
	if (!ctl)
		return;
	while (!cow_list_empty(&ctl->clients))
		client_free(cow_list_entry(ctl->clients.next, struct client, node));
	cow_source_free(ctl->pause);
	cow_source_free(ctl->src);
	close(ctl->fd);
	cow_free(ctl);
}
