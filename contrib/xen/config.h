/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Disks written "dmu:..." in the configuration of xl, turned into what an xl
 * that knows nothing of them understands:
 *
 *	dmu:dscow:/a:/b,hda1,w
 *	script=block-dmu,vdev=hda1,access=w,target=dscow:/a:/b
 *
 * Text in, text out. Everything else stays as it is, byte for byte: what is wrong
 * with it is for xl to say.
 */
#ifndef COW_XEN_CONFIG_H
#define COW_XEN_CONFIG_H

#include "cow/err.h"

/* Is this disk ours to rewrite? */
bool config_is_dmu(const char *disk);

/* Rewrites one such disk into *@ret, for cow_free(). 0, or -errno and a sentence. */
int config_disk(const char *disk, char **ret, struct cow_err *err);

/*
 * Rewrites what is assigned to "disk" in the @len bytes at @text; *@ret, for
 * cow_free(), has *@ret_len bytes and a terminator. 0, or -errno and a sentence
 * with the number of the line.
 */
int config_text(const char *text, size_t len, char **ret, size_t *ret_len, struct cow_err *err);

#endif
