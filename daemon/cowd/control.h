/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control socket: clients, their packets, their replies. What the words
 * mean is verbs.c's business.
 */
#ifndef COWD_CONTROL_H
#define COWD_CONTROL_H

#include <stdio.h>

#include "cow/chain.h"
#include "cow/loop.h"

#define CONTROL_CLIENTS 64		/* connections at a time */
#define CONTROL_REPLY (256u << 10)	/* bytes of text one reply may have */

struct control;
struct client;

/*
 * Listens at DIR/NAME.sock. @request is called with each well-formed request and
 * must see to it that client_done() is called once for it, now or later.
 */
int control_new(struct cow_loop *l, const char *dir, const char *name,
		void (*request)(void *opaque, struct client *c, int argc, char **argv),
		void *opaque, struct control **ret, struct cow_err *err);
/* Closes the socket and all clients; nothing more is called. NULL is allowed. */
void control_free(struct control *ctl);

/* What control_new() was given. */
void *client_opaque(const struct client *c);
/* Where the text of the reply goes; valid until client_done(). */
FILE *client_out(struct client *c);
/* Ends the reply: @rc 0, or -errno with a sentence (NULL: the text of @rc). */
void client_done(struct client *c, int rc, const char *sentence);
/* A request the verb may use while it works for this client. */
struct cow_req *client_req(struct client *c);

#endif
