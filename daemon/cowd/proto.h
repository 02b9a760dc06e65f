/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control protocol as text: how a packet becomes words and words become a
 * packet. Pure functions over the caller's memory, without sockets and without
 * any other header of this project, so that they can be tested and fuzzed alone.
 *
 * A request is one packet of words separated by spaces or tabs; the first is
 * the verb. A word may be written in double quotes. A backslash, inside or
 * outside of quotes, escapes: \\ \" "\ " (a space) \t \n and \xHH. One newline at the end
 * is ignored. Other control characters and NUL are refused, raw or as \x00.
 *
 * The reply is any number of packets that start with '+' and carry text, then
 * one packet '.' followed by "0", or by an error number, a space and a sentence.
 */
#ifndef COWD_PROTO_H
#define COWD_PROTO_H

#include <stddef.h>

#define PROTO_PACKET 4096 /* bytes of a packet, request or reply: room for a path of PATH_MAX */
#define PROTO_WORDS 16		/* no verb takes more than a few */

struct proto_words {
	int argc;
	char *argv[PROTO_WORDS + 1];	/* into text, NULL-terminated */
	char text[PROTO_PACKET + 1];
};

/*
 * Splits the @len bytes at @packet, which need no terminator. Returns 0, or
 * -EINVAL / -E2BIG and in *@why a sentence (static). At least one word on success.
 */
int proto_split(const void *packet, size_t len, struct proto_words *ret, const char **why);

/*
 * Appends @word to the string in @buf of @size bytes, a space before it unless
 * @buf is empty, quoted so that proto_split() gives it back. Returns 0, or -E2BIG
 * with @buf unchanged.
 */
int proto_join(char *buf, size_t size, const char *word);

/*
 * Reads a final packet. Returns 0 for ".0"; a positive error number, with
 * *@ret_sentence pointing into @packet; or -EPROTO. @packet is NUL-terminated.
 */
int proto_final(const char *packet, const char **ret_sentence);

#endif
