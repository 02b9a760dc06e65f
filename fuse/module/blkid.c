// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowfuse-blkid.so: partition tables (GPT, MBR) by libblkid. The only file that
 * knows the library. Runs in the child process of part.c, which believes none of it.
 */
#include <blkid.h>
#include <errno.h>

#include "cow/opt.h"
#include "fuse/part-reader.h"

static void *reader_open(int fd)
{
	blkid_probe pr = blkid_new_probe();

	return pr && !blkid_probe_set_device(pr, fd, 0, 0) ? pr : NULL;
}

static int reader_read(void *disk, int (*found)(int number, int64_t start, int64_t sectors))
{
	char gpt[] = "gpt", dos[] = "dos", *types[] = { gpt, dos, NULL };
	blkid_probe pr = disk;
	blkid_partlist list;
	int i, n, rc = 0;

	if (blkid_probe_enable_superblocks(pr, 0) || blkid_probe_enable_partitions(pr, 1) ||
	    blkid_probe_filter_partitions_type(pr, BLKID_FLTR_ONLYIN, types))
		return -EIO;
	list = blkid_probe_get_partitions(pr);
	n = list ? blkid_partlist_numof_partitions(list) : 0;
	for (i = 0; i < n && !rc; i++) {
		blkid_partition p = blkid_partlist_get_partition(list, i);

		/* An extended partition only holds the logical ones. */
		if (p && !blkid_partition_is_extended(p))
			rc = found(blkid_partition_get_partno(p), blkid_partition_get_start(p),
				   blkid_partition_get_size(p));
	}
	return rc;
}

const struct cow_module *cow_module_register(void)
{
	static struct part_reader reader = {
		.module = { .size = sizeof(reader) },
		.open = reader_open,
		.read = reader_read,
	};

	reader.module.version = cow_version;
	return &reader.module;
}
