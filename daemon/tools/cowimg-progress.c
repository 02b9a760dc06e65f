// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Progress of long work, and the polite end of it: a bar on a terminal, one
 * line on SIGUSR1 everywhere, lines for programs, and signals that stop between two steps instead
 * of in the middle of one. Escape codes are never written: the bar is redrawn
 * by carriage return, and only on a terminal.
 */
#include "cowimg.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#define BAR_CELLS 30
#define REDRAW_NS 100000000ull	/* ten times a second is smooth and costs nothing */
#define RETELL_NS 1000000000ull	/* for programs, once a second */

uint64_t img_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

void img_progress_begin(struct img_progress *p, const struct img_cmd *cmd)
{
	static const int watched[] = { SIGINT, SIGTERM, SIGHUP, SIGUSR1 };
	struct sigaction sa;
	sigset_t set;

	memset(p, 0, sizeof(*p));
	p->cmd = cmd;
	p->bar = cmd->progress && !cmd->quiet && isatty(STDERR_FILENO);
	p->start_ns = img_now_ns();
	if (cmd->progress_fd)
		signal(SIGPIPE, SIG_IGN);	/* whoever does not read it any more stops nothing */
	sigemptyset(&set);
	for (size_t i = 0; i < COW_ARRAY_SIZE(watched); i++) {
		/* Ignored by whoever started us (nohup): stays ignored. */
		if (sigaction(watched[i], NULL, &sa) || sa.sa_handler == SIG_IGN)
			continue;
		sigaddset(&set, watched[i]);
	}
	p->sigfd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	/* Blocked only when they can be seen; else they keep their default effect. */
	if (p->sigfd >= 0)
		sigprocmask(SIG_BLOCK, &set, NULL);
}

/* Percent, rate and time left as one text. */
static void describe(const struct img_progress *p, uint64_t now, char *buf, size_t len)
{
	double secs = (double)(now - p->start_ns) / 1e9;
	double rate = secs > 0 ? (double)p->done / secs : 0;
	char done[32], total[32], speed[32];

	cow_human_size(p->done, done, sizeof(done));
	cow_human_size((uint64_t)rate, speed, sizeof(speed));
	if (!p->total) {
		snprintf(buf, len, "%s, %s/s", done, speed);
		return;
	}
	cow_human_size(p->total, total, sizeof(total));
	if (rate < 1) {
		snprintf(buf, len, "%s of %s", done, total);
		return;
	}
	snprintf(buf, len, "%s of %s, %s/s, %.0f s left", done, total, speed,
		 (double)(p->total - p->done) / rate);
}

static int percent(const struct img_progress *p)
{
	return p->total ? (int)((double)p->done * 100 / (double)p->total) : 0;
}

static void draw(struct img_progress *p, uint64_t now)
{
	char cells[BAR_CELLS + 1], text[160];
	int full = percent(p) * BAR_CELLS / 100, n;

	for (int i = 0; i < BAR_CELLS; i++)
		cells[i] = i < full ? '=' : ' ';
	cells[BAR_CELLS] = '\0';
	describe(p, now, text, sizeof(text));
	n = fprintf(stderr, "\r[%s] %3d%%  %s", cells, percent(p), text) - 1;
	if (n < p->width)
		fprintf(stderr, "%*s", p->width - n, "");
	p->width = n;
	p->drawn_ns = now;
	fflush(stderr);
}

/* A line for programs. One that cannot be written is left out. */
static void tell(struct img_progress *p, uint64_t now)
{
	double secs = (double)(now - p->start_ns) / 1e9;
	double rate = secs > 0 ? (double)p->done / secs : 0;
	char line[256];
	int n = snprintf(line, sizeof(line), "{\"schema\": %u, \"done_bytes\": %" PRIu64 ", "
			 "\"bytes_per_second\": %.0f", IMG_SCHEMA, p->done, rate);

	if (p->total)
		n += snprintf(line + n, sizeof(line) - (size_t)n, ", \"total_bytes\": %" PRIu64, p->total);
	if (p->total && rate >= 1)
		n += snprintf(line + n, sizeof(line) - (size_t)n, ", \"seconds_left\": %.0f",
			      (double)(p->total - p->done) / rate);
	n += snprintf(line + n, sizeof(line) - (size_t)n, "}\n");
	p->told_ns = now;
	if (write(p->cmd->progress_fd, line, (size_t)n) < 0)
		return;
}

static void take_signals(struct img_progress *p)
{
	struct signalfd_siginfo si;
	char text[160];

	while (p->sigfd >= 0 && read(p->sigfd, &si, sizeof(si)) == (ssize_t)sizeof(si)) {
		if (si.ssi_signo != SIGUSR1) {
			p->stopped_by = (int)si.ssi_signo;
			continue;
		}
		describe(p, img_now_ns(), text, sizeof(text));
		fprintf(stderr, "%s%s: %d%%: %s\n", p->width ? "\n" : "", p->cmd->cli->prog,
			percent(p), text);
		p->width = 0;
	}
}

bool img_progress_tick(struct img_progress *p, uint64_t done, uint64_t total)
{
	bool complete;
	uint64_t now;

	p->total = total;
	p->done = total ? cow_min(done, total) : done;
	take_signals(p);
	if (p->bar || p->cmd->progress_fd) {
		now = img_now_ns();
		complete = p->total && p->done == p->total;
		if (p->bar && (!p->drawn_ns || now - p->drawn_ns >= REDRAW_NS || complete))
			draw(p, now);
		if (p->cmd->progress_fd && (!p->told_ns || now - p->told_ns >= RETELL_NS))
			tell(p, now);
	}
	return p->stopped_by != 0;
}

int img_progress_wait(struct img_progress *p, int fd, short events)
{
	struct pollfd fds[2] = {
		{ .fd = fd, .events = events },
		{ .fd = p->sigfd, .events = POLLIN },
	};

	for (;;) {
		if (img_progress_tick(p, p->done, p->total))
			return -ECANCELED;
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return -errno;
		if (fds[0].revents)
			return 0;
	}
}

void img_progress_end(struct img_progress *p)
{
	take_signals(p);
	if (p->cmd->progress_fd)
		tell(p, img_now_ns());
	if (p->width)
		fputc('\n', stderr);
	p->width = 0;
	if (p->sigfd >= 0)
		close(p->sigfd);
	p->sigfd = -1;
}

const char *img_progress_why(const struct img_progress *p)
{
	switch (p->stopped_by) {
	case SIGINT:
		return "interrupted by SIGINT";
	case SIGTERM:
		return "interrupted by SIGTERM";
	case SIGHUP:
		return "interrupted by SIGHUP";
	default:
		return "interrupted";
	}
}
