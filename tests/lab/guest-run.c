// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Runs a shell command in a guest of tests/lib/xenlab.sh, whose init (tests/lab/guest)
 * obeys its console: writes "NUMBER BASE64" to the console's terminal, prints the lines
 * "NUMBER| text" that follow in its log, ends with the status of the line "NUMBER= status".
 * That Xen's console daemon lives and logs is presumed. It knows nothing of domains.
 *
 *   guest-run [-t SECONDS] [-c] TERMINAL LOG COMMAND
 *   guest-run [-t SECONDS] TERMINAL LOG		waits until the guest is ready
 *
 * -c: at the end a line "busy MICROSECONDS", how long the processors here worked meanwhile
 * (one of domain 0 in the lab). The kernel tells in hundredths of a second.
 *
 * Exit status: the command's; 124 no answer in time (60 s), 125 the guest died, 126 wrong use
 * or no such guest.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define COMMAND_MAX 3000u	/* as base64 it must fit in a line of the guest's terminal: 4095 */
#define LINE_MAX_LEN 65536u

static const char base64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static const char *const death[] = { "Kernel panic", "BUG:", "Oops:", "general protection" };

struct answer {
	char tag[16];			/* the number, as the guest repeats it */
	char line[LINE_MAX_LEN];
	size_t len;
	bool dying;			/* the guest's kernel said so; what follows says why */
	int status;			/* -1: not known yet */
};

static int die(const char *what, const char *name)
{
	fprintf(stderr, "guest-run: %s %s: %s\n", what, name, strerror(errno));
	return 126;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Seconds that this machine's processors worked, since some moment. */
static double busy(void)
{
	FILE *f = fopen("/proc/uptime", "re");
	double up = 0, idle = 0;

	if (f && fscanf(f, "%lf %lf", &up, &idle) != 2)
		up = idle = 0;
	if (f)
		fclose(f);
	return up * (double)sysconf(_SC_NPROCESSORS_ONLN) - idle;
}

static size_t encode(const char *text, size_t len, char *out)
{
	char *p = out;
	size_t i;

	for (i = 0; i < len; i += 3) {
		uint32_t v = (uint32_t)(uint8_t)text[i] << 16;

		if (i + 1 < len)
			v |= (uint32_t)(uint8_t)text[i + 1] << 8;
		if (i + 2 < len)
			v |= (uint8_t)text[i + 2];
		*p++ = base64[v >> 18];
		*p++ = base64[v >> 12 & 63];
		*p++ = i + 1 < len ? base64[v >> 6 & 63] : '=';
		*p++ = i + 2 < len ? base64[v & 63] : '=';
	}
	return (size_t)(p - out);
}

static int send_command(const char *terminal, const char *tag, const char *command)
{
	char line[sizeof("4294967295 \n") + (COMMAND_MAX + 2) / 3 * 4];
	int fd = open(terminal, O_WRONLY | O_NOCTTY | O_CLOEXEC);
	size_t len, done = 0;

	if (fd < 0)
		return die("cannot open", terminal);
	len = (size_t)sprintf(line, "%s ", tag);
	len += encode(command, strlen(command), line + len);
	line[len++] = '\n';
	while (done < len) {
		ssize_t n = write(fd, line + done, len - done);

		if (n < 0) {
			close(fd);
			return die("cannot write to", terminal);
		}
		done += (size_t)n;
	}
	close(fd);
	return 0;
}

static void take_line(struct answer *a)
{
	size_t tag = strlen(a->tag), i;

	a->line[a->len] = '\0';
	a->len = 0;
	for (i = 0; i < sizeof(death) / sizeof(*death); i++)
		a->dying |= strstr(a->line, death[i]) != NULL;
	if (a->dying)
		fprintf(stderr, "guest: %s\n", a->line);
	if (strncmp(a->line, a->tag, tag))
		return;
	if (!strncmp(a->line + tag, "| ", 2))
		puts(a->line + tag + 2);
	else if (!strncmp(a->line + tag, "= ", 2))
		a->status = atoi(a->line + tag + 2);
}

static void take(struct answer *a, const char *text, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++) {
		if (text[i] == '\n' || a->len == sizeof(a->line) - 1)
			take_line(a);
		else if (text[i] != '\r')
			a->line[a->len++] = text[i];
	}
}

/* Until the answer is complete. */
static int follow(struct answer *a, int log, const char *terminal, double until)
{
	const struct timespec nap = { .tv_nsec = 20000000 };
	double gone_at = 0;
	char text[4096];

	while (a->status < 0) {
		ssize_t n = read(log, text, sizeof(text));

		if (n < 0)
			return die("cannot read", "the log");
		if (n > 0) {
			take(a, text, (size_t)n);
			continue;
		}
		fflush(stdout);
		/* What a dying guest says comes within the second. */
		if (!gone_at && (a->dying || access(terminal, F_OK)))
			gone_at = now();
		if (gone_at && now() > gone_at + 1) {
			fprintf(stderr, "guest-run: the guest died\n");
			return 125;
		}
		if (now() > until) {
			fprintf(stderr, "guest-run: no answer in time\n");
			return 124;
		}
		nanosleep(&nap, NULL);
	}
	return a->status;
}

int main(int argc, char **argv)
{
	struct answer *a = calloc(1, sizeof(*a));
	double seconds = 60, worked = 0;
	bool count = false;
	int opt, log, ret;

	while ((opt = getopt(argc, argv, "+t:c")) == 't' || opt == 'c') {
		if (opt == 't')
			seconds = atof(optarg);
		else
			count = true;
	}
	argc -= optind;
	argv += optind;
	if (opt != -1 || argc < 2 || argc > 3 || !a || seconds <= 0 ||
	    (argc == 3 && strlen(argv[2]) > COMMAND_MAX)) {
		fprintf(stderr, "usage: guest-run [-t SECONDS] [-c] TERMINAL LOG [COMMAND]   (up to %u bytes)\n",
			COMMAND_MAX);
		return 126;
	}
	a->status = -1;
	log = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (log < 0)
		return die("cannot open", argv[1]);
	if (argc == 2) {
		strcpy(a->tag, "0");
	} else {
		sprintf(a->tag, "%u", (unsigned)getpid());
		if (lseek(log, 0, SEEK_END) < 0)
			return die("cannot seek in", argv[1]);
		worked = busy();
		ret = send_command(argv[0], a->tag, argv[2]);
		if (ret)
			return ret;
	}
	ret = follow(a, log, argv[0], now() + seconds);
	if (count)
		printf("busy %.0f\n", (busy() - worked) * 1e6);
	fflush(stdout);
	free(a);
	close(log);
	return ret;
}
