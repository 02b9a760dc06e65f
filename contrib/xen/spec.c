// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Parsing of a disk's text, see spec.h. The text is copied once, then cut in
 * place: removing backslashes only ever makes it shorter.
 */
#include "spec.h"

#include <errno.h>

#define FORMAT_MAX 31

struct option {
	const char *name;
	bool has_value;
	int (*set)(struct spec *s, char *value, struct cow_err *err);
};

static int exclusive(struct cow_err *err)
{
	return cow_err_set(err, -EINVAL, "the options ring and node exclude each other");
}

static int set_ring(struct spec *s, char *value, struct cow_err *err)
{
	(void)value;
	if (s->carrier == SPEC_NODE)
		return exclusive(err);
	s->carrier = SPEC_RING;
	return 0;
}

static int set_node(struct spec *s, char *value, struct cow_err *err)
{
	(void)value;
	if (s->carrier == SPEC_RING)
		return exclusive(err);
	s->carrier = SPEC_NODE;
	return 0;
}

static int set_ro(struct spec *s, char *value, struct cow_err *err)
{
	(void)value;
	(void)err;
	s->read_only = true;
	return 0;
}

static bool is_format(const char *name)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_-");

	return n && n <= FORMAT_MAX && !name[n] && name[0] != '-';
}

static int set_base_format(struct spec *s, char *value, struct cow_err *err)
{
	if (!is_format(value))
		return cow_err_set(err, -EINVAL, "base-format=%s is not the name of a format",
				   value);
	s->base_format = value;
	return 0;
}

static int set_create(struct spec *s, char *value, struct cow_err *err)
{
	s->create = strcmp(value, "no") != 0;
	if (!s->create || !strcmp(value, "yes"))
		return 0;
	if (cow_parse_size(value, &s->size) || !s->size)
		return cow_err_set(err, -EINVAL,
				   "create= is yes, no or a size such as 10G, not \"%s\"", value);
	return 0;
}

static int set_opt(struct spec *s, char *value, struct cow_err *err)
{
	size_t key = strcspn(value, "=");

	if (!key || !value[key])
		return cow_err_set(err, -EINVAL, "opt= takes KEY=VALUE, not \"%s\"", value);
	if (s->n_opts == SPEC_OPTS)
		return cow_err_set(err, -E2BIG, "more than %d options opt=", SPEC_OPTS);
	s->opts[s->n_opts++] = value;
	return 0;
}

static const struct option options[] = {
	{ "ring", false, set_ring },
	{ "node", false, set_node },
	{ "ro", false, set_ro },
	{ "base-format", true, set_base_format },
	{ "create", true, set_create },
	{ "opt", true, set_opt },
};

static const struct option *find_option(const char *word, size_t len)
{
	size_t name = 0;
	const struct option *o;

	while (name < len && word[name] != '=')
		name++;
	for (o = options; o < options + COW_ARRAY_SIZE(options); o++)
		if (strlen(o->name) == name && !memcmp(o->name, word, name) &&
		    o->has_value == (name < len))
			return o;
	return NULL;
}

bool spec_is_option(const char *word, size_t len)
{
	return find_option(word, len) != NULL;
}

/*
 * Cuts the next field off *@text: up to an unescaped character of @stops, which
 * is returned (0 at the end), without backslashes. NULL: a stray backslash.
 */
static char *cut(char **text, const char *stops, char *ret_stop)
{
	char *in = *text, *out = *text, *start = *text;

	while (*in && !strchr(stops, *in)) {
		if (*in == '\\' && (!in[1] || !strchr("\\:,", *++in)))
			return NULL;
		*out++ = *in++;
	}
	*ret_stop = *in;
	*text = *in ? in + 1 : in;
	*out = '\0';
	return start;
}

static int bad_escape(struct cow_err *err)
{
	return cow_err_set(err, -EINVAL,
			   "a backslash stands only before a colon, a comma or a backslash");
}

static int check_path(const char *what, const char *path, struct cow_err *err)
{
	if (!path[0])
		return cow_err_set(err, -EINVAL, "the path of the %s is empty", what);
	if (path[0] != '/')
		return cow_err_set(err, -EINVAL,
				   "the path of the %s, \"%s\", does not begin with a slash", what,
				   path);
	return 0;
}

static int parse_options(struct spec *s, char *text, char more, struct cow_err *err)
{
	const struct option *o;
	char *word, *value;
	int rc;

	while (more == ',') {
		word = cut(&text, ",", &more);
		if (!word)
			return bad_escape(err);
		o = find_option(word, strlen(word));
		if (!o)
			return cow_err_set(
				err, -EINVAL,
				"there is no option \"%s\"; there are ring, node, ro, "
				"base-format=F, create=yes|no|SIZE, opt=KEY=VALUE",
				word);
		value = strchr(word, '=');
		rc = o->set(s, value ? value + 1 : NULL, err);
		if (rc)
			return rc;
	}
	return 0;
}

static int parse_names(struct spec *s, char **text, char *stop, struct cow_err *err)
{
	s->format = cut(text, ":,", stop);
	if (!s->format)
		return bad_escape(err);
	if (!is_format(s->format))
		return cow_err_set(err, -EINVAL, "\"%s\" is not the name of a format", s->format);
	if (*stop != ':')
		return cow_err_set(err, -EINVAL, "there is no path behind the format \"%s\"",
				   s->format);
	s->overlay = cut(text, ":,", stop);
	if (!s->overlay)
		return bad_escape(err);
	if (*stop == ':') {
		s->base = cut(text, ":,", stop);
		if (!s->base)
			return bad_escape(err);
	}
	if (*stop == ':')
		return cow_err_set(err, -EINVAL,
				   "too many colons for FORMAT:OVERLAY:BASE; "
				   "one that belongs to a path is written \\:");
	return 0;
}

/* What belongs together. */
static int check(const struct spec *s, struct cow_err *err)
{
	int rc = check_path("overlay", s->overlay, err);

	if (!rc && s->base)
		rc = check_path("base", s->base, err);
	if (rc)
		return rc;
	if (s->base && !strcmp(s->format, "raw"))
		return cow_err_set(err, -EINVAL, "a raw image has no base, but \"%s\" is given",
				   s->base);
	if (s->base && !strcmp(s->base, s->overlay))
		return cow_err_set(err, -EINVAL, "%s cannot be its own base", s->base);
	if (s->base_format && !s->base)
		return cow_err_set(err, -EINVAL, "base-format= is given, but no base");
	return 0;
}

int spec_parse(const char *text, struct spec *ret, struct cow_err *err)
{
	size_t len, i;
	char *rest = ret->text, stop;
	int rc;

	if (!strncmp(text, SPEC_PREFIX, strlen(SPEC_PREFIX)))
		text += strlen(SPEC_PREFIX);
	memset(ret, 0, sizeof(*ret));
	ret->create = true;
	len = strlen(text);
	if (!len)
		return cow_err_set(err, -EINVAL, "no FORMAT:OVERLAY is given");
	if (len > SPEC_TEXT)
		return cow_err_set(err, -E2BIG, "longer than %d bytes", SPEC_TEXT);
	for (i = 0; i < len; i++)
		if ((unsigned char)text[i] < ' ' || text[i] == 127)
			return cow_err_set(err, -EINVAL, "there is a control character in it");
	memcpy(ret->text, text, len);
	rc = parse_names(ret, &rest, &stop, err);
	if (!rc)
		rc = parse_options(ret, rest, stop, err);
	if (!rc)
		rc = check(ret, err);
	if (!rc && !ret->base_format)
		ret->base_format = "raw";
	return rc;
}
