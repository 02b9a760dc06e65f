/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The event loop: file descriptors, timers, signals and children on one
 * thread. Handlers run one after the other; a handler may add or remove any
 * source, its own included.
 */
#ifndef COW_LOOP_H
#define COW_LOOP_H

#include <sys/types.h>

#include "cow/util.h"

struct cow_loop;
struct cow_source;

COW_EXPORT struct cow_loop *cow_loop_new(void);	/* NULL: errno */
COW_EXPORT void cow_loop_free(struct cow_loop *l);	/* sources must be gone */

/* @events: EPOLLIN etc., level-triggered. The fd stays the caller's. NULL: errno. */
COW_EXPORT struct cow_source *cow_loop_fd(struct cow_loop *l, int fd, uint32_t events,
					  void (*fn)(void *opaque, uint32_t events), void *opaque);
COW_EXPORT int cow_source_events(struct cow_source *s, uint32_t events);
/* Once after @ms, or every @ms with @repeat. NULL: errno. */
COW_EXPORT struct cow_source *cow_loop_timer(struct cow_loop *l, unsigned ms, bool repeat,
					     void (*fn)(void *opaque, uint32_t events), void *opaque);
/* Blocks @sig for the process and delivers it here. NULL: errno. */
COW_EXPORT struct cow_source *cow_loop_signal(struct cow_loop *l, int sig,
					      void (*fn)(void *opaque, uint32_t sig), void *opaque);
/* Releases the source; NULL is allowed. Its handler is not called again. */
COW_EXPORT void cow_source_free(struct cow_source *s);

/*
 * Runs @fn in a child process and gives its exit status and what it wrote to
 * the fd it was handed (at most 64 KiB) to @done, here in the loop. For what
 * would block on a device this process itself serves. All other fds that are
 * close-on-exec stay open in the child: it must only use what it needs, and
 * its return value is its exit status. Returns 0 or -errno.
 */
COW_EXPORT int cow_loop_child(struct cow_loop *l, int (*fn)(void *arg, int out_fd), void *arg,
			      void (*done)(void *opaque, int status, const char *out, size_t len),
			      void *opaque);

/* Called before each wait, after a round of handlers: batch what they queued. One; NULL: none. */
COW_EXPORT void cow_loop_before_wait(struct cow_loop *l, void (*fn)(void *opaque), void *opaque);

/* Until cow_loop_stop(). Returns its argument. */
COW_EXPORT int cow_loop_run(struct cow_loop *l);
COW_EXPORT void cow_loop_stop(struct cow_loop *l, int status);

#endif
