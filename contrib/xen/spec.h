/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The text by which Xen's configuration names a disk of cowd:
 *
 *	[dmu:]FORMAT:OVERLAY[:BASE][,OPTION]...
 *
 * A colon or comma inside a path or value is written \: or \, and a backslash
 * \\. Options: ring, node, ro, base-format=F, create=yes|no|SIZE, opt=KEY=VALUE.
 * Text in, structure out: nothing is opened, and no library of Xen is needed.
 */
#ifndef COW_XEN_SPEC_H
#define COW_XEN_SPEC_H

#include "cow/err.h"

#define SPEC_TEXT 4096	/* bytes: what xenstore holds in one node */
#define SPEC_OPTS 16	/* opt=KEY=VALUE of one disk; no format has as many */
#define SPEC_PREFIX "dmu:"

enum spec_carrier {
	SPEC_ANY,	/* as the device's type in xenstore suggests */
	SPEC_RING,	/* cowd serves the guest's ring itself */
	SPEC_NODE,	/* a block device of cowd, served by the kernel's backend */
};

struct spec {
	const char *format;
	const char *overlay;
	const char *base;		/* NULL: what the overlay records, if anything */
	const char *base_format;	/* "raw" unless given */
	const char *opts[SPEC_OPTS];	/* KEY=VALUE, for the format */
	unsigned n_opts;
	enum spec_carrier carrier;
	bool read_only;
	bool create;			/* an overlay that does not exist may be made */
	uint64_t size;			/* of what is made; 0: as large as its base */
	char text[SPEC_TEXT + 1];	/* what the strings point into */
};

/* Fills @ret, which is large. 0, or -EINVAL / -E2BIG and a sentence. */
int spec_parse(const char *text, struct spec *ret, struct cow_err *err);

/* Is @word, of @len bytes, one of the options, whatever its value? */
bool spec_is_option(const char *word, size_t len);

#endif
