/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A daemon's hold on its name: the lock that says the name is in use, the
 * record of what must be cleaned up if the daemon is killed, and that cleaning.
 */
#ifndef COWD_RUNSTATE_H
#define COWD_RUNSTATE_H

#include "rundir.h"

struct runstate {
	char *dir;		/* run directory */
	char *name;
	char *mount;		/* DIR/NAME */
	char *disk;		/* DIR/NAME/disk; never opened by the daemon's own thread */
	int lock_fd;
	struct run_state st;	/* as in the state file */
};

/*
 * Takes @name. -EBUSY and a sentence when a live daemon has it. Nothing of an
 * earlier daemon is touched yet.
 */
int runstate_acquire(const char *name, struct runstate **ret, struct cow_err *err);
/* Reads what a killed daemon of this name wrote to rs->st; pid 0: there was none. */
void runstate_read(struct runstate *rs);
/*
 * Removes what it left, after runstate_read(): its loop device (only if it is backed by our
 * disk file, and is not @keep), its mounts, its socket; then makes the mount point. What else
 * its front end made is removed by that front end. The state file stays until it is replaced:
 * if we are killed before, whoever comes next must know of @keep.
 */
int runstate_clean(struct runstate *rs, const char *keep, struct cow_err *err);
/* Writes rs->st; a failure is logged, what is lost is only the clean-up after a kill. */
void runstate_save(struct runstate *rs);
/*
 * Removes our files and gives the name back. @keep_state: what the state file tells of is
 * still there, for a successor. NULL is allowed.
 */
void runstate_release(struct runstate *rs, bool keep_state);
/* Gives the name back and leaves everything else as it was found. NULL is allowed. */
void runstate_abandon(struct runstate *rs);

/* Unmounts @path, with fusermount3 where that needs a privilege we lack. @lazy: busy or not. */
int run_unmount(const char *path, bool lazy);

#endif
