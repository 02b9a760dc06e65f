/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The run directory as seen from outside: where it is, which names a device may
 * have, what a running (or killed) daemon left written there. Shared by cowd and
 * cowctl; knows nothing about a device in operation.
 *
 *	NAME/		mount point of the front end
 *	NAME.sock	control socket
 *	NAME.lock	locked for the life of the process
 *	NAME.state	struct run_state
 */
#ifndef COWD_RUNDIR_H
#define COWD_RUNDIR_H

#include <limits.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "cow/err.h"

#define RUN_NAME_MAX 64
#define RUN_VIEWS 16	/* mounts by "cowctl mount" of one device */

struct run_state {
	long pid;
	char format[32];
	char image[PATH_MAX];		/* empty: did not fit */
	char mount[PATH_MAX];
	char frontend[16];
	char device[64];		/* the front end's own: "/dev/loopN"; empty: none */
	char path[PATH_MAX];		/* what users are told to open; empty: the file */
	char views[RUN_VIEWS][PATH_MAX];	/* empty: free */
};

/*
 * 0, or -EINVAL and a sentence: 1 to 64 of A-Z a-z 0-9 . _ + -, not starting with
 * '.' or '-'.
 */
int run_name_check(const char *name, struct cow_err *err);

/*
 * The run directory: $COW_RUN_DIR, /run/cowd for root, else $XDG_RUNTIME_DIR/cowd.
 * @create makes the last component. It must belong to us or root, and be writable
 * for nobody else. 0 and *@ret, released with cow_free(), or -errno and a sentence.
 */
int run_dir(bool create, char **ret, struct cow_err *err);

/* "DIR/NAMESUFFIX" for cow_free(); NULL when memory is short. */
char *run_path(const char *dir, const char *name, const char *suffix);

/* Reads the state file. -ENOENT, -EBADMSG, other -errno. @st is large: not for the stack. */
int run_state_read(const char *dir, const char *name, struct run_state *st);
/* Replaces the state file as a whole. */
int run_state_write(const char *dir, const char *name, const struct run_state *st);

/*
 * Address of the control socket, of any length of @dir: an fd of the directory is
 * opened, to be closed after bind() or connect(). Returns it or -errno.
 */
int run_socket_address(const char *dir, const char *name, struct sockaddr_un *ret);

#endif
