// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Filling in struct cow_err. A sentence is one line whatever is in it: names
 * come from images and command lines, and must not forge a second message.
 */
#include "cow/err.h"

#include <stdio.h>

#define LONGEST 8192	/* two paths of PATH_MAX; more is cut before it is shortened */
#define TAIL 384	/* bytes kept from the end of what is too long: the reason is there */

/* Control characters become '?'; what is too long loses its middle, not its reason. */
static void store(char *msg, char *text, size_t len)
{
	static const char gap[] = "[...]";

	for (size_t i = 0; i < len; i++)
		if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
			text[i] = '?';
	if (len < COW_ERR_MAX) {
		memcpy(msg, text, len + 1);
		return;
	}
	size_t head = COW_ERR_MAX - 1 - TAIL - (sizeof(gap) - 1);

	memcpy(msg, text, head);
	memcpy(msg + head, gap, sizeof(gap) - 1);
	memcpy(msg + head + sizeof(gap) - 1, text + len - TAIL, TAIL + 1);
}

static size_t format(char *text, const char *fmt, va_list ap) COW_PRINTF(2, 0);
static size_t format(char *text, const char *fmt, va_list ap)
{
	int n = vsnprintf(text, LONGEST, fmt, ap);

	if (n < 0) {
		text[0] = '\0';
		return 0;
	}
	return n < LONGEST ? (size_t)n : LONGEST - 1;
}

int cow_err_vset(struct cow_err *err, int code, const char *fmt, va_list ap)
{
	char text[LONGEST];

	if (!err || err->code)
		return code;
	store(err->msg, text, format(text, fmt, ap));
	err->code = code;
	return code;
}

int cow_err_set(struct cow_err *err, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	cow_err_vset(err, code, fmt, ap);
	va_end(ap);
	return code;
}

int cow_err_sys(struct cow_err *err, int code, const char *fmt, ...)
{
	char text[LONGEST + 128];
	size_t len;
	va_list ap;
	int n;

	if (!err || err->code)
		return code;
	va_start(ap, fmt);
	len = format(text, fmt, ap);
	va_end(ap);
	n = snprintf(text + len, sizeof(text) - len, ": %s", strerror(-code));
	store(err->msg, text, len + (size_t)n);
	err->code = code;
	return code;
}

const char *cow_err_text(const struct cow_err *err, int code)
{
	if (err && err->code && err->msg[0])
		return err->msg;
	return strerror(code < 0 ? -code : code);
}
