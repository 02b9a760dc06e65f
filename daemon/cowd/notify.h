/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Telling a service manager how it goes (sd_notify's datagram), and where messages
 * go without one.
 */
#ifndef COWD_NOTIFY_H
#define COWD_NOTIFY_H

/* Sends @state, lines of NAME=value, to $NOTIFY_SOCKET; does nothing without one. */
void notify(const char *state);

/*
 * Leaves the terminal: standard input and output to /dev/null, and standard
 * error to the system log's socket where there is one.
 */
void notify_detach_stdio(void);

#endif
