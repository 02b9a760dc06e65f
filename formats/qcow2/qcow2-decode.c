// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Compressed clusters: raw deflate or one zstd frame, that makes exactly one
 * cluster. The stored form is given in whole sectors, so what follows its end
 * there is anything.
 */
#include <errno.h>
#include <zlib.h>
#include <zstd.h>

#include "cow/log.h"
#include "qcow2-priv.h"

#define DEFLATE_WINDOW (-12)	/* raw, 4 KiB: what the format prescribes */

static int inflate_one(const void *raw, size_t raw_len, void *out, size_t len)
{
	z_stream z = { .next_in = (z_const Bytef *)(uintptr_t)raw, .avail_in = (uInt)raw_len,
		       .next_out = out, .avail_out = (uInt)len };
	int rc;

	if (inflateInit2(&z, DEFLATE_WINDOW) != Z_OK)
		return -ENOMEM;
	rc = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	/* Some writers leave the stream without its end: a full cluster is what counts. */
	return (rc == Z_STREAM_END || rc == Z_BUF_ERROR) && z.avail_out == 0 ? 0 : -EIO;
}

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
		rc = inflate_one(raw, map->src.len, out, q->cluster);
	if (rc == -EIO)
		cow_log_limited(COW_LOG_ERR, "%s: the compressed cluster at %llu is damaged", img->path,
				(unsigned long long)map->dst.phys);
	return rc;
}
