// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Raw deflate, read (deflate.h). Bounded by the output: a stream that would make more
 * than was asked for is cut off, whatever it claims.
 */
#include "deflate.h"

#include <errno.h>
#include <stdint.h>
#include <zlib.h>

int inflate_raw(const void *raw, size_t raw_len, void *out, size_t len)
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
