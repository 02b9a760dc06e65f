// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowctl: says a verb to the daemon of a running device and shows its answer.
 * It knows which words a verb takes, not what they do. Verbs of its own are "list", in
 * cowctl-list.c, and those for guests of Xen, in cowctl-xen.c.
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
	OPT_PRIVATE,
	OPT_FORMAT,
	OPT_READ_ONLY,
	OPT_BACKEND,
	OPT_SIZE,
	OPT_SECTOR_SIZE,
};

static const struct cow_cli_opt options[] = {
	{ OPT_JSON, "json", NULL, "list, status, stats: for programs" },
	{ OPT_OPENMETRICS, "openmetrics", NULL, "stats: as OpenMetrics text" },
	{ OPT_FORCE, "force", NULL, "stop, xen-detach: although the device is in use" },
	{ OPT_SHRINK, "shrink", NULL, "resize: allow a smaller size; what is behind it is lost" },
	{ 'p', "format", "FORMAT", "xen-attach: format of IMAGE; always needed, never guessed" },
	{ 'r', "read-only", NULL, "xen-attach: the guest can only read" },
	{ OPT_PRIVATE, "private", NULL, "xen-attach: keep changes in memory, drop them in the end" },
	{ OPT_BACKEND, "backend", "null", "xen-attach: no image; reads zeroes, forgets what is written" },
	{ OPT_SIZE, "size", "SIZE", "xen-attach --backend=null: of the disk" },
	{ OPT_SECTOR_SIZE, "sector-size", "512|4096", "xen-attach: 4096 for a guest that can" },
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
		    "version NAME\n"
		    "xen-attach -p FORMAT [-r|--private] [--sector-size=512|4096] DOMAIN IMAGE VDEV\n"
		    "xen-attach --backend=null --size=SIZE [-r] [--sector-size=512|4096] DOMAIN VDEV\n"
		    "xen-detach [--force] DOMAIN VDEV",
	.summary = "Shows and controls the devices that cowd serves.",
	.opts = options,
};

/* Bits of struct ctl_verb.opts, by option. */
#define BIT(opt) (1u << ((opt) - OPT_JSON))
/* Those with a value, which go together with others. */
#define XEN_VALUES (BIT(OPT_FORMAT) | BIT(OPT_BACKEND) | BIT(OPT_SIZE) | BIT(OPT_SECTOR_SIZE))

static unsigned bit_of(int opt)
{
	return opt == 'p' ? BIT(OPT_FORMAT) : opt == 'r' ? BIT(OPT_READ_ONLY) : BIT(opt);
}

struct ctl_verb {
	const char *name;
	int min, max;		/* words behind NAME; of an own verb, all */
	unsigned opts;
	bool is_path;		/* the word is a folder */
	/* Without a NAME and its daemon; the exit status. NULL: the daemon is told. */
	int (*own)(const struct ctl_xen *xen, unsigned opts, char **words);
};

static int own_list(const struct ctl_xen *xen, unsigned opts, char **words)
{
	(void)xen;
	(void)words;
	return ctl_list(opts & BIT(OPT_JSON));
}

static int own_xen_attach(const struct ctl_xen *xen, unsigned opts, char **words)
{
	int n = 0;

	(void)opts;
	while (words[n])
		n++;
	if (xen->null && (n != 2 || !xen->size || xen->format || xen->private))
		return cow_cli_misuse(&cli, "--backend=null needs --size, and no image");
	if (!xen->null && (n != 3 || !xen->format || xen->size))
		return cow_cli_misuse(&cli, xen->format ? "an image is needed, and no size"
							: "the format of the image must be given with -p");
	return ctl_xen_attach(xen, words[0], xen->null ? NULL : words[1], words[n - 1]);
}

static int own_xen_detach(const struct ctl_xen *xen, unsigned opts, char **words)
{
	(void)opts;
	return ctl_xen_detach(xen, words[0], words[1]);
}

static const struct ctl_verb verbs[] = {
	{ "status", 0, 0, BIT(OPT_JSON), false, NULL },
	{ "stats", 0, 0, BIT(OPT_JSON) | BIT(OPT_OPENMETRICS), false, NULL },
	{ "flush", 0, 0, 0, false, NULL },
	{ "pause", 0, 0, 0, false, NULL },
	{ "resume", 0, 0, 0, false, NULL },
	{ "resize", 1, 1, BIT(OPT_SHRINK), false, NULL },
	{ "mount", 1, 1, 0, true, NULL },
	{ "umount", 1, 1, 0, true, NULL },
	{ "stop", 0, 0, BIT(OPT_FORCE), false, NULL },
	{ "log-level", 0, 1, 0, false, NULL },
	{ "version", 0, 0, 0, false, NULL },
	{ "list", 0, 0, BIT(OPT_JSON), false, own_list },
	{ "xen-attach", 2, 3, BIT(OPT_READ_ONLY) | BIT(OPT_PRIVATE) | XEN_VALUES, false,
	  own_xen_attach },
	{ "xen-detach", 2, 2, BIT(OPT_FORCE), false, own_xen_detach },
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
		if (!(opts & bit_of(o->val)))
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

/* The value of an option that has one. 0, or the exit status. */
static int take_value(struct ctl_xen *xen, int opt)
{
	switch (opt) {
	case 'p':
		xen->format = optarg;
		return 0;
	case OPT_BACKEND:
		xen->null = !strcmp(optarg, "null");
		return xen->null ? 0 : cow_cli_misuse(&cli, "--backend can be null only");
	case OPT_SIZE:
		xen->size = optarg;
		return 0;
	case OPT_SECTOR_SIZE:
		xen->sector_size = optarg;
		return !strcmp(optarg, "512") || !strcmp(optarg, "4096") ? 0
		       : cow_cli_misuse(&cli, "sectors have 512 or 4096 bytes");
	default:
		return 0;
	}
}

int main(int argc, char **argv)
{
	char packet[PROTO_PACKET];
	struct cow_err err = { 0 };
	const struct ctl_verb *v;
	struct ctl_xen xen = { 0 };
	unsigned opts = 0, more;
	int opt, n, rc;

	while ((opt = cow_cli_next(&cli, argc, argv)) != -1) {
		if (opt == '?')
			return 2;
		opts |= bit_of(opt);
		if (take_value(&xen, opt))
			return 2;
	}
	if (optind == argc)
		return cow_cli_misuse(&cli, "a verb is needed");
	v = find_verb(argv[optind]);
	if (!v)
		return cow_cli_misuse(&cli, "unknown verb \"%s\"", argv[optind]);
	if (opts & ~v->opts)
		return cow_cli_misuse(&cli, "%s does not take that option", v->name);
	more = opts & ~XEN_VALUES;
	if (more & (more - 1))
		return cow_cli_misuse(&cli, "only one of these options can be given");
	xen.read_only = opts & BIT(OPT_READ_ONLY);
	xen.private = opts & BIT(OPT_PRIVATE);
	xen.force = opts & BIT(OPT_FORCE);
	n = argc - optind - 1;
	if (v->own) {
		if (n < v->min || n > v->max)
			return cow_cli_misuse(&cli, "wrong number of arguments for %s", v->name);
		return v->own(&xen, opts, argv + optind + 1);
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
