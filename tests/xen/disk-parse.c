// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What libxlutil makes of disk specifications, or of the disks in configuration
 * files: a line "target=... script=... vdev=... access=... backend=... cdrom=..."
 * each, or "refused". Compiled by the tests that need it, with Xen's library or
 * with parts of Xen's source.
 *
 * usage: disk-parse DISK...		all of them are the words of one disk
 *        disk-parse --file CONFIG...
 */
#include <stdio.h>
#include <string.h>

#include <libxl.h>
#include <libxlutil.h>

static const char *or_none(const char *s)
{
	return s ? s : "-";
}

static int parse(XLU_Config *cfg, int n, const char *const *words)
{
	libxl_device_disk d;

	libxl_device_disk_init(&d);
	if (xlu_disk_parse(cfg, n, words, &d)) {
		puts("refused");
		return 1;
	}
	printf("target=%s script=%s vdev=%s access=%s backend=%s cdrom=%d\n", or_none(d.pdev_path),
	       or_none(d.script), or_none(d.vdev), d.readwrite ? "rw" : "ro",
	       libxl_disk_backend_to_string(d.backend), d.is_cdrom);
	return 0;
}

static int parse_file(const char *path)
{
	XLU_Config *cfg = xlu_cfg_init(stderr, path);
	XLU_ConfigList *list;
	const char *disk;
	int i, rc = 0;

	if (!cfg || xlu_cfg_readfile(cfg, path) || xlu_cfg_get_list(cfg, "disk", &list, NULL, 0)) {
		puts("refused");
		return 1;
	}
	for (i = 0; (disk = xlu_cfg_get_listitem(list, i)); i++)
		rc |= parse(cfg, 1, &disk);
	return rc;
}

int main(int argc, char **argv)
{
	int i, rc = 0;

	if (argc > 1 && strcmp(argv[1], "--file"))
		return parse(xlu_cfg_init(stderr, "command line"), argc - 1,
			     (const char *const *)(argv + 1));
	for (i = 2; i < argc; i++)
		rc |= parse_file(argv[i]);
	return rc;
}
