/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control protocol's parser and writer; see proto.h for the grammar. It
 * does not know any verb and touches nothing but its arguments.
 */
#include "proto.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

static int fail(const char **why, int code, const char *sentence)
{
	*why = sentence;
	return code;
}

static int hex_digit(unsigned char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Decodes the escape behind a backslash at @p; returns the bytes it took, 0 if it is none. */
static size_t unescape(const unsigned char *p, const unsigned char *end, char *ret)
{
	if (p == end)
		return 0;
	switch (*p) {
	case '\\':
	case '"':
	case ' ':
		*ret = (char)*p;
		return 1;
	case 't':
		*ret = '\t';
		return 1;
	case 'n':
		*ret = '\n';
		return 1;
	case 'x':
		if (end - p < 3 || hex_digit(p[1]) < 0 || hex_digit(p[2]) < 0)
			return 0;
		*ret = (char)(hex_digit(p[1]) << 4 | hex_digit(p[2]));
		return *ret ? 3 : 0;
	default:
		return 0;
	}
}

/* One word from @p on into *out; returns where it ended, NULL with *why. */
static const unsigned char *split_word(const unsigned char *p, const unsigned char *end, char **out,
				       const char **why)
{
	bool quoted = false;
	char *o = *out;
	size_t n;

	for (; p < end; p++) {
		if (!quoted && (*p == ' ' || *p == '\t'))
			break;
		if (*p == '"') {
			quoted = !quoted;
		} else if (*p == '\\') {
			n = unescape(p + 1, end, o);
			if (!n) {
				*why = "the request has an unknown escape";
				return NULL;
			}
			o++;
			p += n;
		} else if (*p < 0x20 || *p == 0x7f) {
			*why = "the request has a control character";
			return NULL;
		} else {
			*o++ = (char)*p;
		}
	}
	if (quoted) {
		*why = "the request has an open quote";
		return NULL;
	}
	*o++ = '\0';
	*out = o;
	return p;
}

int proto_split(const void *packet, size_t len, struct proto_words *ret, const char **why)
{
	const unsigned char *p = packet, *end = p + len;
	char *out = ret->text;

	ret->argc = 0;
	ret->argv[0] = NULL;
	if (len > PROTO_PACKET)
		return fail(why, -E2BIG, "the request is longer than a packet may be");
	if (len && end[-1] == '\n')
		end--;
	for (;;) {
		while (p < end && (*p == ' ' || *p == '\t'))
			p++;
		if (p == end)
			break;
		if (ret->argc == PROTO_WORDS)
			return fail(why, -E2BIG, "the request has too many words");
		/* A word is never longer than its text, so text[] holds all of them. */
		ret->argv[ret->argc] = out;
		p = split_word(p, end, &out, why);
		if (!p)
			return -EINVAL;
		ret->argv[++ret->argc] = NULL;
	}
	if (!ret->argc)
		return fail(why, -EINVAL, "the request is empty");
	return 0;
}

/* Writes @c as it stands inside quotes; returns its length, at most 4. */
static size_t escape(unsigned char c, char *o)
{
	static const char digits[] = "0123456789abcdef";

	if (c >= 0x20 && c != 0x7f && c != '"' && c != '\\') {
		*o = (char)c;
		return 1;
	}
	*o++ = '\\';
	if (c == '"' || c == '\\') {
		*o = (char)c;
		return 2;
	}
	*o++ = 'x';
	*o++ = digits[c >> 4];
	*o = digits[c & 15];
	return 4;
}

static bool is_plain(const char *word)
{
	const unsigned char *p;

	for (p = (const unsigned char *)word; *p; p++)
		if (*p <= 0x20 || *p == 0x7f || *p == '"' || *p == '\\')
			return false;
	return p != (const unsigned char *)word;
}

int proto_join(char *buf, size_t size, const char *word)
{
	bool plain = is_plain(word);
	size_t used = strlen(buf), start = used, n;
	char tmp[4];

	/* The space, two quotes and the NUL first; every byte is then checked as it comes. */
	if (size - used < 4)
		return -E2BIG;
	if (used)
		buf[used++] = ' ';
	if (!plain)
		buf[used++] = '"';
	for (; *word; word++) {
		n = plain ? 1 : escape((unsigned char)*word, tmp);
		if (size - used < n + 2) {
			buf[start] = '\0';
			return -E2BIG;
		}
		memcpy(buf + used, plain ? word : tmp, n);
		used += n;
	}
	if (!plain)
		buf[used++] = '"';
	buf[used] = '\0';
	return 0;
}

int proto_final(const char *packet, const char **ret_sentence)
{
	unsigned code = 0;
	const char *p = packet + 1;

	if (packet[0] != '.')
		return -EPROTO;
	if (!strcmp(p, "0"))
		return 0;
	for (; *p >= '0' && *p <= '9' && code < 100000; p++)
		code = code * 10 + (unsigned)(*p - '0');
	if (!code || *p != ' ' || !p[1])
		return -EPROTO;
	*ret_sentence = p + 1;
	return (int)code;
}
