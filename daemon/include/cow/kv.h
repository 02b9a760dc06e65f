/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One way to say facts, two ways to show them: a writer of key/value trees as
 * JSON (stable, for programs) or indented text (unstable, for people).
 */
#ifndef COW_KV_H
#define COW_KV_H

#include <stdio.h>

#include "cow/util.h"

enum cow_kv_style { COW_KV_TEXT, COW_KV_JSON };

struct cow_kv;

/*
 * Starts a tree written to @out as it is built. The root is an object; in JSON
 * its first member is "schema": @schema. Returns NULL when memory is short.
 */
COW_EXPORT struct cow_kv *cow_kv_new(FILE *out, enum cow_kv_style style, unsigned schema);
/* Ends the root, flushes, releases @kv. Returns 0 or -errno of a failed write. */
COW_EXPORT int cow_kv_end(struct cow_kv *kv);

/* @key is NULL inside a list. Strings are escaped; any byte is allowed. */
COW_EXPORT void cow_kv_str(struct cow_kv *kv, const char *key, const char *value);
COW_EXPORT void cow_kv_u64(struct cow_kv *kv, const char *key, uint64_t value);
COW_EXPORT void cow_kv_i64(struct cow_kv *kv, const char *key, int64_t value);
COW_EXPORT void cow_kv_bool(struct cow_kv *kv, const char *key, bool value);
/* Bytes; text style shows the readable size too. */
COW_EXPORT void cow_kv_size(struct cow_kv *kv, const char *key, uint64_t bytes);
COW_EXPORT void cow_kv_object(struct cow_kv *kv, const char *key);
COW_EXPORT void cow_kv_list(struct cow_kv *kv, const char *key);
COW_EXPORT void cow_kv_close(struct cow_kv *kv);	/* innermost object or list */

#endif
