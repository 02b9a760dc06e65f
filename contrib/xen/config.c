// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Rewriting of disks and of configuration files, see config.h. A file is read
 * as xl reads it: assignments to names, strings in either quotes, lists over
 * several lines, comments. Only the strings below "disk" are looked into.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>

#include "spec.h"

#define BLANKS " \t\n"
#define WORDS_MAX 64		/* of one disk; xl knows some twenty */

/* ---- one disk ---- */

struct disk {
	const char *vdev, *access;	/* behind another word, without a key */
	bool have_vdev, have_access, cdrom;
	const char *names;		/* FORMAT:OVERLAY:BASE */
	const char *options[WORDS_MAX], *others[WORDS_MAX];
	unsigned n_options, n_others;
};

bool config_is_dmu(const char *disk)
{
	disk += strspn(disk, BLANKS);
	return !strncmp(disk, SPEC_PREFIX, strlen(SPEC_PREFIX));
}

static bool has_key(const char *word, const char *key)
{
	size_t n = strlen(key);

	return !strncmp(word, key, n) && word[n] == '=';
}

/* Words of xl that are no positions. */
static bool is_flag(const char *word)
{
	static const char *const flags[] = {
		"cdrom", "direct-io-safe", "discard", "no-discard", "colo", "no-colo", "trusted",
		"untrusted",
	};
	size_t i;

	for (i = 0; i < COW_ARRAY_SIZE(flags); i++)
		if (!strcmp(word, flags[i]))
			return true;
	return false;
}

static int add_keyed(struct disk *d, const char *word, struct cow_err *err)
{
	if (!strcmp(word, "script=block-dmu"))
		return 0;
	if (has_key(word, "script") || has_key(word, "target"))
		return cow_err_set(err, -EINVAL, "%s cannot be given to a disk that begins with %s",
				   word, SPEC_PREFIX);
	d->have_vdev |= has_key(word, "vdev");
	d->have_access |= has_key(word, "access");
	d->others[d->n_others++] = word;
	return 0;
}

/* The device, with its type perhaps, then the access; xl's old spelling has "raw" before. */
static int add_position(struct disk *d, char *word, struct cow_err *err)
{
	char *colon;

	if (!d->have_vdev) {
		if (!strcmp(word, "raw"))
			return 0;
		colon = strrchr(word, ':');
		if (colon) {
			*colon = '\0';
			d->cdrom = !strcmp(colon + 1, "cdrom");
			if (!d->cdrom && strcmp(colon + 1, "disk"))
				return cow_err_set(err, -EINVAL,
						   "a device is of type cdrom or disk, not \"%s\"",
						   colon + 1);
		}
		d->vdev = word;
		d->have_vdev = true;
		return 0;
	}
	if (d->have_access)
		return cow_err_set(err, -EINVAL, "there is no place for the word \"%s\"", word);
	d->access = word;
	d->have_access = true;
	return 0;
}

static int add_word(struct disk *d, char *word, struct cow_err *err)
{
	bool is_access = !strcmp(word, "ro") && d->have_vdev && !d->have_access;

	if (d->n_options == WORDS_MAX || d->n_others == WORDS_MAX)
		return cow_err_set(err, -E2BIG, "more than %d words", WORDS_MAX);
	if (!d->names) {
		d->names = word + strlen(SPEC_PREFIX);
	} else if (spec_is_option(word, strlen(word)) && !is_access) {
		d->options[d->n_options++] = word;
	} else if (strchr(word, '=')) {
		return add_keyed(d, word, err);
	} else if (is_flag(word)) {
		d->others[d->n_others++] = word;
	} else {
		return add_position(d, word, err);
	}
	return 0;
}

/* Cuts @text at commas without a backslash before them; backslashes stay. */
static int split(struct disk *d, char *text, struct cow_err *err)
{
	char *end;
	bool more = true;
	int rc = 0;

	while (more && !rc) {
		text += strspn(text, BLANKS);
		for (end = text; *end && *end != ','; end++)
			if (*end == '\\' && end[1])
				end++;
		more = *end == ',';
		*end = '\0';
		rc = add_word(d, text, err);
		text = end + 1;
	}
	return rc;
}

static void print_target(FILE *f, const struct disk *d)
{
	unsigned i;

	fputs(d->names, f);
	for (i = 0; i < d->n_options; i++)
		fprintf(f, ",%s", d->options[i]);
}

static void print_disk(FILE *f, const struct disk *d)
{
	unsigned i;

	fputs("script=block-dmu", f);
	if (d->vdev)
		fprintf(f, ",vdev=%s", d->vdev);
	if (d->access)
		fprintf(f, ",access=%s", d->access);
	if (d->cdrom)
		fputs(",devtype=cdrom", f);
	for (i = 0; i < d->n_others; i++)
		fprintf(f, ",%s", d->others[i]);
	fputs(",target=", f);	/* takes all that follows, so it is the last */
	print_target(f, d);
}

static int no_memory(struct cow_err *err)
{
	return cow_err_set(err, -ENOMEM, "not enough memory");
}

/* What @print makes of @d, for cow_free(); NULL: no memory. */
static char *printed(void (*print)(FILE *f, const struct disk *d), const struct disk *d)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return NULL;
	print(f, d);
	if (fclose(f)) {
		cow_free(text);
		return NULL;
	}
	return text;
}

static int check_target(const struct disk *d, struct cow_err *err)
{
	COW_CLEANUP_FREE char *target = printed(print_target, d);
	COW_CLEANUP_FREE struct spec *s = cow_zalloc(sizeof(*s));

	return target && s ? spec_parse(target, s, err) : no_memory(err);
}

int config_disk(const char *disk, char **ret, struct cow_err *err)
{
	COW_CLEANUP_FREE char *text = cow_strdup(disk);
	struct disk d = { 0 };
	const char *p;
	int rc;

	if (!text)
		return no_memory(err);
	for (p = disk; *p; p++)
		if (((unsigned char)*p < ' ' && *p != '\t') || *p == 127)
			return cow_err_set(err, -EINVAL, "there is a control character in it");
	rc = split(&d, text, err);
	if (!rc)
		rc = check_target(&d, err);
	if (!rc && (!d.have_vdev || (d.vdev && !*d.vdev)))
		rc = cow_err_set(err, -EINVAL, "the guest's device, such as xvda, is missing");
	if (rc)
		return rc;
	*ret = printed(print_disk, &d);
	return *ret ? 0 : no_memory(err);
}

/* ---- a file ---- */

struct reader {
	const char *p, *end;
	unsigned line;
	unsigned depth;		/* of brackets */
	bool at_start;		/* of a statement */
	bool in_disk;		/* in what is assigned to "disk" */
	FILE *out;
};

/* As xl takes escapes out of the @len bytes between quotes. NULL: one it is better not to touch. */
static char *dequote(const char *in, size_t len)
{
	static const char from[] = "\"'\\abfnrtv", to[] = "\"'\\\a\b\f\n\r\t\v";
	char *text = cow_zalloc(len + 1), *out = text;
	const char *end = in + len, *known;

	for (; text && in < end; in++) {
		if (*in != '\\') {
			*out++ = *in;
			continue;
		}
		known = ++in < end && *in ? strchr(from, *in) : NULL;
		if (!known) {
			cow_free(text);
			return NULL;
		}
		*out++ = to[known - from];
	}
	return text;
}

static void enquote(FILE *f, const char *text, char quote)
{
	fputc(quote, f);
	for (; *text; text++) {
		if (*text == quote || *text == '\\')
			fputc('\\', f);
		fputc(*text, f);
	}
	fputc(quote, f);
}

/* The byte behind the string that begins at @r->p, or NULL if it does not end in its line. */
static const char *string_end(const struct reader *r)
{
	const char *p = r->p + 1;

	for (; p < r->end && *p != '\n'; p++) {
		if (*p == *r->p)
			return p + 1;
		if (*p == '\\' && (++p == r->end || *p == '\n'))
			return NULL;
	}
	return NULL;
}

static int copy(struct reader *r, const char *to)
{
	fwrite(r->p, 1, (size_t)(to - r->p), r->out);
	r->p = to;
	return 0;
}

static int read_string(struct reader *r, struct cow_err *err)
{
	COW_CLEANUP_FREE char *disk = NULL, *rewritten = NULL;
	struct cow_err why = { 0 };
	const char *end = string_end(r);
	size_t len;
	int rc;

	if (!end)
		return copy(r, r->p + 1);	/* xl will say what is wrong */
	len = (size_t)(end - r->p) - 2;
	disk = r->in_disk && !memchr(r->p, '\0', len + 1) ? dequote(r->p + 1, len) : NULL;
	if (!disk || !config_is_dmu(disk))
		return copy(r, end);
	rc = config_disk(disk, &rewritten, &why);
	if (rc)
		return cow_err_set(err, rc, "line %u: %s: %s", r->line, disk, why.msg);
	enquote(r->out, rewritten, *r->p);
	r->p = end;
	return 0;
}

static bool is_name(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_';
}

static int read_name(struct reader *r)
{
	const char *end = r->p;

	while (end < r->end && is_name(*end))
		end++;
	if (r->at_start)
		r->in_disk = end - r->p == 4 && !memcmp(r->p, "disk", 4);
	r->at_start = false;
	return copy(r, end);
}

static int read_comment(struct reader *r)
{
	const char *end = memchr(r->p, '\n', (size_t)(r->end - r->p));

	return copy(r, end ? end : r->end);
}

static void end_statement(struct reader *r)
{
	if (r->depth)
		return;
	r->at_start = true;
	r->in_disk = false;
}

static int read_token(struct reader *r, struct cow_err *err)
{
	switch (*r->p) {
	case '#':
		return read_comment(r);
	case '"':
	case '\'':
		return read_string(r, err);
	case '\n':
		r->line++;
		end_statement(r);
		break;
	case ';':
		end_statement(r);
		break;
	case '[':
		r->depth++;
		break;
	case ']':
		if (r->depth)
			r->depth--;
		break;
	default:
		if (is_name(*r->p))
			return read_name(r);
	}
	return copy(r, r->p + 1);
}

int config_text(const char *text, size_t len, char **ret, size_t *ret_len, struct cow_err *err)
{
	struct reader r = { .p = text, .end = text + len, .line = 1, .at_start = true };
	char *out = NULL;
	int rc = 0;

	r.out = open_memstream(&out, ret_len);
	if (!r.out)
		return no_memory(err);
	while (r.p < r.end && !rc)
		rc = read_token(&r, err);
	if (fclose(r.out) && !rc)
		rc = no_memory(err);
	if (rc)
		cow_free(out);
	else
		*ret = out;
	return rc;
}
