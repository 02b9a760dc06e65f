// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Compressed clusters: raw deflate or one zstd frame, that makes exactly one
 * cluster. The stored form is given in whole sectors, so what follows its end
 * there is anything.
 */
#include <errno.h>
#include <zstd.h>

#include "../deflate.h"
#include "cow/log.h"
#include "qcow2-priv.h"

static int zstd_one(const void *raw, size_t raw_len, void *out, size_t len)
{
	ZSTD_inBuffer in = { raw, raw_len, 0 };
	ZSTD_outBuffer to = { out, len, 0 };
	ZSTD_DStream *z = ZSTD_createDStream();
	size_t rc = 1;

	if (!z)
		return -ENOMEM;
	ZSTD_initDStream(z);
	while (to.pos < len && in.pos < in.size && rc != 0) {
		rc = ZSTD_decompressStream(z, &to, &in);
		if (ZSTD_isError(rc))
			break;
	}
	ZSTD_freeDStream(z);
	return !ZSTD_isError(rc) && to.pos == len ? 0 : -EIO;
}

int qcow2_decode(struct cow_image *img, const struct cow_map *map, const void *raw, void *out)
{
	const struct qcow2 *q = img->priv;
	int rc;

	if (q->compression)
		rc = zstd_one(raw, map->src.len, out, q->cluster);
	else
		rc = inflate_raw(raw, map->src.len, out, q->cluster);
	if (rc == -EIO)
		cow_log_limited(COW_LOG_ERR, "%s: the compressed cluster at %llu is damaged", img->path,
				(unsigned long long)map->dst.phys);
	return rc;
}
