// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What serving processes do as processes. No signals and no children: those are
 * the event loop's.
 */
#include "cow/proc.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define PATIENCE_LAST_MS 256

/*
 * Not by setsid(): the kernel's scheduler groups tasks by session (autogroup), and
 * being in another group than the client costs a small read a quarter of its time.
 */
void cow_leave_terminal(void)
{
	int tty = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC);

	setpgid(0, 0);
	if (tty >= 0) {
		ioctl(tty, TIOCNOTTY);
		close(tty);
	}
}

bool cow_patience(unsigned *wait_ms)
{
	unsigned next = *wait_ms ? *wait_ms * 2 : 1;

	if (next > PATIENCE_LAST_MS)
		return false;
	*wait_ms = next;
	poll(NULL, 0, (int)next);
	return true;
}
