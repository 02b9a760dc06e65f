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

static int zstd_one(struct qcow2 *q, const void *raw, size_t raw_len, void *out)
{
	ZSTD_inBuffer in = { raw, raw_len, 0 };
	ZSTD_outBuffer to = { out, q->cluster, 0 };
	ZSTD_DStream *z = q->unzstd ? q->unzstd : ZSTD_createDStream();
	size_t rc = 1;

	if (!z)
		return -ENOMEM;
	q->unzstd = z;
	ZSTD_initDStream(z);
	while (to.pos < to.size && in.pos < in.size && rc != 0) {
		rc = ZSTD_decompressStream(z, &to, &in);
		if (ZSTD_isError(rc))
			break;
	}
	return !ZSTD_isError(rc) && to.pos == to.size ? 0 : -EIO;
}

void qcow2_decode_end(struct qcow2 *q)
{
	ZSTD_freeDStream(q->unzstd);
	q->unzstd = NULL;
}

int qcow2_decode(struct cow_image *img, const struct cow_map *map, const void *raw, void *out)
{
	struct qcow2 *q = img->priv;
	int rc;

	if (q->compression)
		rc = zstd_one(q, raw, map->src.len, out);
	else
		rc = inflate_raw(raw, map->src.len, out, q->cluster);
	if (rc == -EIO)
		cow_log_limited(COW_LOG_ERR, "%s: the compressed cluster at %llu is damaged", img->path,
				(unsigned long long)map->dst.phys);
	return rc;
}
