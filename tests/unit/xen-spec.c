// SPDX-License-Identifier: GPL-2.0-or-later
/* The text that names a disk in Xen's configuration: what it means, and what it must not be. */
#include <errno.h>

#include "contrib/xen/spec.h"
#include "test.h"

static struct spec s;

static void good(const char *text)
{
	struct cow_err err = { 0 };

	if (spec_parse(text, &s, &err))
		FAIL("%s: %s", text, err.msg);
}

/* One sentence: a line, with @part in it, that does not end in a full stop. */
static void bad(const char *text, const char *part)
{
	struct cow_err err = { 0 };
	int rc = spec_parse(text, &s, &err);

	if (!rc)
		FAIL("%s was accepted", text);
	CHECK(rc == -EINVAL || rc == -E2BIG);
	CHECK_EQ(err.code, rc);
	if (!strstr(err.msg, part) || strchr(err.msg, '\n') || !err.msg[0] ||
	    err.msg[strlen(err.msg) - 1] == '.')
		FAIL("%s: said \"%s\", without \"%s\"", text, err.msg, part);
}

TEST(plain)
{
	good("dscow:/a");
	CHECK_STR(s.format, "dscow");
	CHECK_STR(s.overlay, "/a");
	CHECK(!s.base && !s.read_only && s.create && !s.size && !s.n_opts);
	CHECK_EQ(s.carrier, SPEC_ANY);

	good("dmu:dscow:/a:/b");
	CHECK_STR(s.format, "dscow");
	CHECK_STR(s.overlay, "/a");
	CHECK_STR(s.base, "/b");
	CHECK_STR(s.base_format, "raw");

	good("raw:/dev/vg/disk");
	CHECK_STR(s.overlay, "/dev/vg/disk");
}

TEST(options)
{
	good("dscow:/a:/b,ring,ro,base-format=qcow2,create=no,opt=x=1,opt=y=a=b");
	CHECK_STR(s.base_format, "qcow2");
	CHECK_EQ(s.carrier, SPEC_RING);
	CHECK(s.read_only && !s.create);
	CHECK_EQ(s.n_opts, 2);
	CHECK_STR(s.opts[0], "x=1");
	CHECK_STR(s.opts[1], "y=a=b");

	good("dscow:/a,create=10G,node");
	CHECK(s.create);
	CHECK_EQ(s.size, 10ULL << 30);
	CHECK_EQ(s.carrier, SPEC_NODE);
	good("dscow:/a:/b,create=yes,ring,ring");
	CHECK(s.create && !s.size);
}

TEST(escapes)
{
	good("dscow:/a\\:b\\\\c\\,d:/e\\:");
	CHECK_STR(s.overlay, "/a:b\\c,d");
	CHECK_STR(s.base, "/e:");
	good("dscow:/a,opt=k=1\\,2");
	CHECK_STR(s.opts[0], "k=1,2");
	good("dscow:/with space/\xc3\xa4=%");
	CHECK_STR(s.overlay, "/with space/\xc3\xa4=%");
}

TEST(bad_names)
{
	bad("", "no FORMAT:OVERLAY");
	bad("dmu:", "no FORMAT:OVERLAY");
	bad(":/a", "\"\" is not the name of a format");
	bad("/a", "\"/a\" is not the name of a format");
	bad("-r:/a", "\"-r\" is not the name of a format");
	bad("Dscow:/a", "is not the name of a format");
	bad("../x:/a", "is not the name of a format");
	bad("abcdefghijklmnopqrstuvwxyz0123456789:/a", "is not the name of a format");
	bad("dscow", "no path behind the format");
	bad("dscow,ring", "no path behind the format");
	bad("dmu:dmu:dscow:/a", "does not begin with a slash");
}

TEST(bad_paths)
{
	bad("dscow:", "the path of the overlay is empty");
	bad("dscow:,ro", "the path of the overlay is empty");
	bad("dscow:/a:", "the path of the base is empty");
	bad("dscow:a", "overlay, \"a\", does not begin with a slash");
	bad("dscow:/a:b/c", "base, \"b/c\", does not begin with a slash");
	bad("dscow:/a:/b:/c", "too many colons");
	bad("dscow:/a:/b:", "too many colons");
	bad("dscow:/a:/a", "/a cannot be its own base");
	bad("raw:/a:/b", "raw image has no base");
	bad("dscow:/a\\b", "a backslash stands only before");
	bad("dscow:/a\\", "a backslash stands only before");
	bad("dscow:/a:/b\\x", "a backslash stands only before");
	bad("ds\\cow:/a", "a backslash stands only before");
	bad("dscow:/a\nb", "control character");
	bad("dscow:/a\x7f", "control character");
}

TEST(bad_options)
{
	bad("dscow:/a,", "there is no option \"\"");
	bad("dscow:/a,hda1", "there is no option \"hda1\"");
	bad("dscow:/a,ring=1", "there is no option \"ring=1\"");
	bad("dscow:/a,create", "there is no option \"create\"");
	bad("dscow:/a,ring,node", "exclude each other");
	bad("dscow:/a,node,ring", "exclude each other");
	bad("dscow:/a,create=", "create= is yes, no or a size");
	bad("dscow:/a,create=0", "create= is yes, no or a size");
	bad("dscow:/a,create=-1", "create= is yes, no or a size");
	bad("dscow:/a,create=99999999999E", "create= is yes, no or a size");
	bad("dscow:/a,base-format=raw", "but no base");
	bad("dscow:/a:/b,base-format=", "is not the name of a format");
	bad("dscow:/a:/b,base-format=../x", "is not the name of a format");
	bad("dscow:/a,opt=", "opt= takes KEY=VALUE");
	bad("dscow:/a,opt=k", "opt= takes KEY=VALUE");
	bad("dscow:/a,opt==v", "opt= takes KEY=VALUE");
	bad("dscow:/a,ro\\", "a backslash stands only before");
}

TEST(limits)
{
	static char text[2 * SPEC_TEXT];
	unsigned i;

	strcpy(text, "dscow:/");
	memset(text + 7, 'a', SPEC_TEXT - 7);
	good(text);
	CHECK_EQ(strlen(s.overlay), SPEC_TEXT - 6);
	text[SPEC_TEXT] = 'a';
	bad(text, "longer than 4096 bytes");

	strcpy(text, "dscow:/a");
	for (i = 0; i < SPEC_OPTS; i++)
		strcat(text, ",opt=k=v");
	good(text);
	strcat(text, ",opt=k=v");
	bad(text, "more than 16 options");
}

/* Every text of three characters that matter, in every place: no crash, one sentence. */
TEST(any_text)
{
	static const char chars[] = "\\:,/a=";
	static const char *const around[][2] = {
		{ "", "" }, { "dscow:", "" }, { "dscow:/a", ":/b" }, { "dscow:/a:/b,", "" },
	};
	unsigned n = sizeof(chars) - 1, i, j;
	char text[64];

	for (i = 0; i < COW_ARRAY_SIZE(around); i++) {
		for (j = 0; j < n * n * n; j++) {
			struct cow_err err = { 0 };

			snprintf(text, sizeof(text), "%s%c%c%c%s", around[i][0], chars[j % n],
				 chars[j / n % n], chars[j / n / n], around[i][1]);
			if (spec_parse(text, &s, &err))
				CHECK(err.msg[0] && !strchr(err.msg, '\n'));
			else
				CHECK(s.overlay[0] == '/' && !err.code);
		}
	}
}

TEST(option_words)
{
	CHECK(spec_is_option("ring", 4));
	CHECK(spec_is_option("create=no,w", 9));
	CHECK(spec_is_option("opt=", 4));
	CHECK(!spec_is_option("opt", 3));
	CHECK(!spec_is_option("ringx", 5));
	CHECK(!spec_is_option("rin", 3));
	CHECK(!spec_is_option("", 0));
}
