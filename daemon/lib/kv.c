// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The writer of key/value trees. It streams: a map of a million extents costs
 * no memory. Text is for people and looks like YAML; JSON is the interface.
 *
 * Strings come from images: both styles show control characters escaped (C1
 * ones too, which terminals obey) and replace what is not UTF-8.
 */
#include "cow/kv.h"

#include <errno.h>
#include <inttypes.h>

#define DEPTH_MAX 16	/* of nesting; the deepest of ours is four */

struct level {
	bool list, used;
};

struct cow_kv {
	FILE *out;
	bool json;
	bool dash;	/* text: the next line continues a "- " */
	int error;	/* first failed write, -errno */
	unsigned depth;
	struct level level[DEPTH_MAX];
};

static void put(struct cow_kv *kv, const char *s)
{
	if (fputs(s, kv->out) < 0 && !kv->error)
		kv->error = errno ? -errno : -EIO;
}

static void put_bytes(struct cow_kv *kv, const char *s, size_t len)
{
	if (fwrite(s, 1, len, kv->out) != len && !kv->error)
		kv->error = errno ? -errno : -EIO;
}

/*
 * Length of the UTF-8 sequence at @s and its code point, or 0 when it is none:
 * truncated, overlong, a surrogate, or beyond U+10FFFF. @s ends with a NUL,
 * which no continuation byte is.
 */
static unsigned utf8_len(const char *str, uint32_t *ret_cp)
{
	const unsigned char *s = (const unsigned char *)str;
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	uint32_t cp;
	unsigned n;

	if (s[0] < 0x80) {
		*ret_cp = s[0];
		return 1;
	}
	if ((s[0] & 0xe0) == 0xc0) {
		n = 2;
		cp = s[0] & 0x1f;
	} else if ((s[0] & 0xf0) == 0xe0) {
		n = 3;
		cp = s[0] & 0x0f;
	} else if ((s[0] & 0xf8) == 0xf0) {
		n = 4;
		cp = s[0] & 0x07;
	} else {
		return 0;
	}
	for (unsigned i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		cp = cp << 6 | (s[i] & 0x3f);
	}
	if (cp < least[n] || cp > 0x10ffff || (cp >= 0xd800 && cp < 0xe000))
		return 0;
	*ret_cp = cp;
	return n;
}

static void put_escape(struct cow_kv *kv, uint32_t cp)
{
	char buf[16];

	switch (cp) {
	case '\n':
		put(kv, "\\n");
		break;
	case '\t':
		put(kv, "\\t");
		break;
	case '\r':
		put(kv, "\\r");
		break;
	default:
		snprintf(buf, sizeof(buf), "\\u%04x", (unsigned)cp);
		put(kv, buf);
	}
}

static void put_escaped(struct cow_kv *kv, const char *s)
{
	while (*s) {
		uint32_t cp;
		unsigned n = utf8_len(s, &cp);

		if (!n) {
			put(kv, "\xef\xbf\xbd");	/* U+FFFD */
			n = 1;
		} else if (cp < 0x20 || (cp >= 0x7f && cp < 0xa0)) {
			put_escape(kv, cp);
		} else {
			if (kv->json && (cp == '"' || cp == '\\'))
				put(kv, "\\");
			put_bytes(kv, s, n);
		}
		s += n;
	}
}

static void put_quoted(struct cow_kv *kv, const char *s)
{
	put(kv, "\"");
	put_escaped(kv, s);
	put(kv, "\"");
}

static void text_indent(struct cow_kv *kv)
{
	if (kv->dash) {		/* the "- " is already there */
		kv->dash = false;
		return;
	}
	for (unsigned i = 1; i < kv->depth; i++)
		put(kv, "  ");
}

/* All that stands before a value. */
static void member(struct cow_kv *kv, const char *key)
{
	struct level *l = &kv->level[kv->depth - 1];

	cow_assert(kv->depth && l->list == !key);
	if (kv->json) {
		if (l->used)
			put(kv, ", ");
		if (key) {
			put_quoted(kv, key);
			put(kv, ": ");
		}
	} else {
		text_indent(kv);
		if (key) {
			put_escaped(kv, key);
			put(kv, ":");
		} else {
			put(kv, "-");
		}
	}
	l->used = true;
}

static void plain(struct cow_kv *kv, const char *key, const char *value)
{
	member(kv, key);
	if (!kv->json)
		put(kv, " ");
	put(kv, value);
	if (!kv->json)
		put(kv, "\n");
}

static void push(struct cow_kv *kv, bool list)
{
	cow_assert(kv->depth < DEPTH_MAX);
	kv->level[kv->depth++] = (struct level){ .list = list };
}

struct cow_kv *cow_kv_new(FILE *out, enum cow_kv_style style, unsigned schema)
{
	struct cow_kv *kv = cow_zalloc(sizeof(*kv));

	if (!kv)
		return NULL;
	kv->out = out;
	kv->json = style == COW_KV_JSON;
	push(kv, false);
	if (kv->json) {
		put(kv, "{");
		cow_kv_u64(kv, "schema", schema);
	}
	return kv;
}

int cow_kv_end(struct cow_kv *kv)
{
	int r;

	cow_assert(kv->depth == 1);
	if (kv->json)
		put(kv, "}\n");
	errno = 0;
	if (fflush(kv->out) && !kv->error)
		kv->error = errno ? -errno : -EIO;
	r = kv->error;
	cow_free(kv);
	return r;
}

void cow_kv_str(struct cow_kv *kv, const char *key, const char *value)
{
	member(kv, key);
	if (kv->json) {
		put_quoted(kv, value);
	} else {
		put(kv, " ");
		put_escaped(kv, value);
		put(kv, "\n");
	}
}

void cow_kv_u64(struct cow_kv *kv, const char *key, uint64_t value)
{
	char buf[24];

	snprintf(buf, sizeof(buf), "%" PRIu64, value);
	plain(kv, key, buf);
}

void cow_kv_i64(struct cow_kv *kv, const char *key, int64_t value)
{
	char buf[24];

	snprintf(buf, sizeof(buf), "%" PRId64, value);
	plain(kv, key, buf);
}

void cow_kv_bool(struct cow_kv *kv, const char *key, bool value)
{
	if (kv->json)
		plain(kv, key, value ? "true" : "false");
	else
		plain(kv, key, value ? "yes" : "no");
}

void cow_kv_size(struct cow_kv *kv, const char *key, uint64_t bytes)
{
	char human[32], buf[64];

	if (kv->json || bytes < 1024) {
		cow_kv_u64(kv, key, bytes);
		return;
	}
	snprintf(buf, sizeof(buf), "%" PRIu64 " (%s)", bytes,
		 cow_human_size(bytes, human, sizeof(human)));
	plain(kv, key, buf);
}

static void open_level(struct cow_kv *kv, const char *key, bool list)
{
	member(kv, key);
	push(kv, list);
	if (kv->json) {
		put(kv, list ? "[" : "{");
	} else if (key) {
		put(kv, "\n");
	} else {	/* an element: its first member stands behind the dash */
		put(kv, " ");
		kv->dash = true;
	}
}

void cow_kv_object(struct cow_kv *kv, const char *key)
{
	open_level(kv, key, false);
}

void cow_kv_list(struct cow_kv *kv, const char *key)
{
	open_level(kv, key, true);
}

void cow_kv_close(struct cow_kv *kv)
{
	cow_assert(kv->depth > 1);
	if (kv->json)
		put(kv, kv->level[kv->depth - 1].list ? "]" : "}");
	if (kv->dash) {		/* an empty element */
		put(kv, "\n");
		kv->dash = false;
	}
	kv->depth--;
}
