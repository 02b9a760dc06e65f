// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowctl: says a verb to the daemon of a running device and shows its answer.
 * It knows which words a verb takes, not what they do; "list" is the only verb
 * of its own, in cowctl-list.c.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

#include "cow/opt.h"
#include "cowctl.h"
#include "cowd/proto.h"
#include "cowd/rundir.h"

enum {
	OPT_JSON = 256,
	OPT_OPENMETRICS,
	OPT_FORCE,
	OPT_SHRINK,
};

static const struct cow_cli_opt options[] = {
	{ OPT_JSON, "json", NULL, "list, status, stats: for programs" },
	{ OPT_OPENMETRICS, "openmetrics", NULL, "stats: as OpenMetrics text" },
	{ OPT_FORCE, "force", NULL, "stop: although the device is in use" },
	{ OPT_SHRINK, "shrink", NULL, "resize: allow a smaller size; what is behind it is lost" },
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowctl",
	.synopsis = "list [--json]\n"
		    "status NAME [--json]\n"
		    "stats NAME [--json|--openmetrics]\n"
		    "flush|pause|resume NAME\n"
		    "resize NAME SIZE [--shrink]\n"
		    "mount NAME DIR\n"
		    "umount NAME DIR\n"
		    "stop NAME [--force]\n"
		    "log-level NAME [error|warning|info|debug]\n"
		    "version NAME",
	.summary = "Shows and controls the devices that cowd serves.",
	.opts = options,
};

/* Bits of struct ctl_verb.opts, by option. */
#define BIT(opt) (1u << ((opt) - OPT_JSON))

struct ctl_verb {
	const char *name;
	int min, max;		/* words behind NAME */
	unsigned opts;
	bool is_path;		/* the word is a folder */
};

static const struct ctl_verb verbs[] = {
	{ "status", 0, 0, BIT(OPT_JSON), false },
	{ "stats", 0, 0, BIT(OPT_JSON) | BIT(OPT_OPENMETRICS), false },
	{ "flush", 0, 0, 0, false },
	{ "pause", 0, 0, 0, false },
	{ "resume", 0, 0, 0, false },
	{ "resize", 1, 1, BIT(OPT_SHRINK), false },
	{ "mount", 1, 1, 0, true },
	{ "umount", 1, 1, 0, true },
	{ "stop", 0, 0, BIT(OPT_FORCE), false },
	{ "log-level", 0, 1, 0, false },
	{ "version", 0, 0, 0, false },
	{ "list", 0, 0, BIT(OPT_JSON), false },
};

static const struct ctl_verb *find_verb(const char *name)
{
	const struct ctl_verb *v;

	for (v = verbs; v < verbs + COW_ARRAY_SIZE(verbs); v++)
		if (!strcmp(v->name, name))
			return v;
	return NULL;
}

static int to_stdout(void *arg, const char *text, size_t len)
{
	(void)arg;
	return fwrite(text, 1, len, stdout) == len ? 0 : -EIO;
}

/* Says @packet to the daemon of @name; 0 or the exit status. */
static int talk(const char *name, const char *packet)
{
	COW_CLEANUP_FREE char *dir = NULL;
	struct cow_err err = { 0 };
	int rc = run_dir(false, &dir, &err);

	if (!rc)
		rc = ctl_talk(dir, name, packet, 0, to_stdout, NULL, &err);
	if (!rc && fflush(stdout))
		rc = cow_err_sys(&err, -errno, "standard output");
	if (rc)
		fprintf(stderr, "cowctl: %s\n", cow_err_text(&err, rc));
	return rc ? 1 : 0;
}

/*
 * The words the daemon gets: verb, options, arguments. It serves the folder's
 * device perhaps, so it must not resolve the path: done here.
 */
static int compose(const struct ctl_verb *v, unsigned opts, int argc, char **argv, char *packet)
{
	const struct cow_cli_opt *o;
	char path[PATH_MAX], word[64];
	int i, rc;

	packet[0] = '\0';
	rc = proto_join(packet, PROTO_PACKET, v->name);
	for (o = options; o->name && !rc; o++) {
		if (!(opts & BIT(o->val)))
			continue;
		snprintf(word, sizeof(word), "--%s", o->name);
		rc = proto_join(packet, PROTO_PACKET, word);
	}
	for (i = 0; i < argc && !rc; i++) {
		const char *arg = argv[i];

		if (v->is_path) {
			arg = realpath(arg, path);
			if (!arg) {
				fprintf(stderr, "cowctl: %s: %s\n", argv[i], strerror(errno));
				return 1;
			}
		}
		rc = proto_join(packet, PROTO_PACKET, arg);
	}
	if (rc)
		return cow_cli_misuse(&cli, "the arguments are too long");
	return 0;
}

int main(int argc, char **argv)
{
	char packet[PROTO_PACKET];
	struct cow_err err = { 0 };
	const struct ctl_verb *v;
	unsigned opts = 0;
	int opt, n, rc;

	while ((opt = cow_cli_next(&cli, argc, argv)) != -1) {
		if (opt == '?')
			return 2;
		opts |= BIT(opt);
	}
	if (optind == argc)
		return cow_cli_misuse(&cli, "a verb is needed");
	v = find_verb(argv[optind]);
	if (!v)
		return cow_cli_misuse(&cli, "unknown verb \"%s\"", argv[optind]);
	if (opts & ~v->opts)
		return cow_cli_misuse(&cli, "%s does not take that option", v->name);
	if (opts & (opts - 1))
		return cow_cli_misuse(&cli, "only one of these options can be given");
	n = argc - optind - 1;
	if (!strcmp(v->name, "list")) {
		if (n)
			return cow_cli_misuse(&cli, "list takes no name");
		return ctl_list(opts & BIT(OPT_JSON));
	}
	if (!n)
		return cow_cli_misuse(&cli, "%s needs the name of a device", v->name);
	if (n - 1 < v->min || n - 1 > v->max)
		return cow_cli_misuse(&cli, "wrong number of arguments for %s", v->name);
	if (run_name_check(argv[optind + 1], &err))
		return cow_cli_misuse(&cli, "%s", err.msg);
	rc = compose(v, opts, n - 1, argv + optind + 2, packet);
	return rc ? rc : talk(argv[optind + 1], packet);
}
