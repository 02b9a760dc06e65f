// SPDX-License-Identifier: GPL-2.0-or-later
/* Disks "dmu:..." in xl's configuration: what they become, and that nothing else changes. */
#include <errno.h>

#include "contrib/xen/config.h"
#include "test.h"

static void disk_is(const char *in, const char *out)
{
	struct cow_err err = { 0 };
	char *got = NULL;

	CHECK(config_is_dmu(in));
	if (config_disk(in, &got, &err))
		FAIL("%s: %s", in, err.msg);
	CHECK_STR(got, out);
	cow_free(got);
}

static void disk_bad(const char *in, const char *part)
{
	struct cow_err err = { 0 };
	char *got = NULL;

	if (!config_disk(in, &got, &err))
		FAIL("%s became %s", in, got);
	if (!strstr(err.msg, part) || strchr(err.msg, '\n'))
		FAIL("%s: said \"%s\", without \"%s\"", in, err.msg, part);
}

static void text_is(const char *in, const char *out)
{
	struct cow_err err = { 0 };
	char *got = NULL;
	size_t len;

	if (config_text(in, strlen(in), &got, &len, &err))
		FAIL("%s: %s", in, err.msg);
	CHECK_STR(got, out);
	CHECK_EQ(len, strlen(out));
	cow_free(got);
}

static void text_stays(const char *in)
{
	text_is(in, in);
}

TEST(disks)
{
	disk_is("dmu:dscow:/a:/b,hda1,w",
		"script=block-dmu,vdev=hda1,access=w,target=dscow:/a:/b");
	disk_is("dmu:dscow:/a,xvda", "script=block-dmu,vdev=xvda,target=dscow:/a");
	disk_is(" dmu:raw:/a, xvdb, r", "script=block-dmu,vdev=xvdb,access=r,target=raw:/a");
	disk_is("dmu:raw:/a,raw,xvdb,ro", "script=block-dmu,vdev=xvdb,access=ro,target=raw:/a");
	disk_is("dmu:raw:/a,hdc:cdrom,r",
		"script=block-dmu,vdev=hdc,access=r,devtype=cdrom,target=raw:/a");
	disk_is("dmu:raw:/a,xvda:disk,w", "script=block-dmu,vdev=xvda,access=w,target=raw:/a");
	disk_is("dmu:dscow:/a:/b,vdev=xvda,access=rw,discard",
		"script=block-dmu,vdev=xvda,access=rw,discard,target=dscow:/a:/b");
	disk_is("dmu:dscow:/a:/b,raw,hda1,w,script=block-dmu",
		"script=block-dmu,vdev=hda1,access=w,target=dscow:/a:/b");
	disk_is("dmu:dscow:/a:/b,xvda,w,backend=storage,backendtype=tap,cdrom",
		"script=block-dmu,vdev=xvda,access=w,backend=storage,backendtype=tap,cdrom,"
		"target=dscow:/a:/b");
}

TEST(disk_options)
{
	disk_is("dmu:dscow:/a:/b,xvda,w,ring,create=no",
		"script=block-dmu,vdev=xvda,access=w,target=dscow:/a:/b,ring,create=no");
	disk_is("dmu:dscow:/a:/b,ring,xvda,opt=k=v\\,w,w",
		"script=block-dmu,vdev=xvda,access=w,target=dscow:/a:/b,ring,opt=k=v\\,w");
	disk_is("dmu:dscow:/a\\,b\\:c,xvda,w",
		"script=block-dmu,vdev=xvda,access=w,target=dscow:/a\\,b\\:c");
	/* In front of the device it is an option, in the place of the access that. */
	disk_is("dmu:dscow:/a,ro,xvda", "script=block-dmu,vdev=xvda,target=dscow:/a,ro");
	disk_is("dmu:dscow:/a,xvda,w,ro", "script=block-dmu,vdev=xvda,access=w,target=dscow:/a,ro");
}

TEST(bad_disks)
{
	disk_bad("dmu:dscow:/a", "the guest's device, such as xvda, is missing");
	disk_bad("dmu:dscow:/a,", "the guest's device");
	disk_bad("dmu:dscow:a,xvda,w", "does not begin with a slash");
	disk_bad("dmu:,xvda,w", "no FORMAT:OVERLAY");
	disk_bad("dmu:dscow:/a,xvda,w,w", "no place for the word \"w\"");
	disk_bad("dmu:dscow:/a,xvda:floppy,w", "of type cdrom or disk, not \"floppy\"");
	disk_bad("dmu:dscow:/a,xvda,w,script=block", "script=block cannot be given");
	disk_bad("dmu:dscow:/a,xvda,w,target=/x", "target=/x cannot be given");
	disk_bad("dmu:dscow:/a,xvda,w,ring,node", "exclude each other");
	disk_bad("dmu:dscow:/a\nb,xvda,w", "control character");
}

TEST(many_words)
{
	struct cow_err err = { 0 };
	char *text = cow_zalloc(65536), *got = NULL;
	unsigned i;

	strcpy(text, "dmu:dscow:/a,xvda,w");
	for (i = 0; i < 64; i++)
		strcat(text, ",discard");
	CHECK_EQ(config_disk(text, &got, &err), 0);
	cow_free(got);
	strcat(text, ",discard");
	CHECK_EQ(config_disk(text, &got, &err), -E2BIG);
	cow_free(text);
}

#define NEW "script=block-dmu,vdev=hda1,access=w,target=dscow:/a:/b"

TEST(files)
{
	text_is("disk = ['dmu:dscow:/a:/b,hda1,w']\n", "disk = ['" NEW "']\n");
	text_is("disk=[\n  'phy:/x,xvdb,w', # 'dmu:x'\n\t\"dmu:dscow:/a:/b,hda1,w\",\n]\nname='x'\n",
		"disk=[\n  'phy:/x,xvdb,w', # 'dmu:x'\n\t\"" NEW "\",\n]\nname='x'\n");
	text_is("disk = []\ndisk += ['dmu:dscow:/a:/b,hda1,w']", "disk = []\ndisk += ['" NEW "']");
	text_is("name = 'a'; disk = ['dmu:dscow:/a:/b,hda1,w']; memory = 3",
		"name = 'a'; disk = ['" NEW "']; memory = 3");
	/* An escape of xl stands for one of ours. */
	text_is("disk = ['dmu:dscow:/a\\\\:b,hda1,w']",
		"disk = ['script=block-dmu,vdev=hda1,access=w,target=dscow:/a\\\\:b']");
	text_is("disk = ['dmu:dscow:/it\\'s,hda1,w']",
		"disk = ['script=block-dmu,vdev=hda1,access=w,target=dscow:/it\\'s']");
	text_is("disk = [\"dmu:dscow:/it's,hda1,w\"]",
		"disk = [\"script=block-dmu,vdev=hda1,access=w,target=dscow:/it's\"]");
}

TEST(other_files)
{
	text_stays("");
	text_stays("name = 'dmu:dscow:/a,hda1,w'\n");
	text_stays("# disk = ['dmu:dscow:/a,hda1,w']\n");
	text_stays("disks = ['dmu:dscow:/a,hda1,w']\nxdisk = ['dmu:x,y']\n");
	text_stays("disk = [ 'phy:/dev/x,xvda,w', \"target=dmu:x\" ]\r\n");
	text_stays("extra = \"disk = ['dmu:dscow:/a,hda1,w']\"\n");
	text_stays("disk = [ 'phy:/x,xvda,w' ]\nvif = [ 'dmu:x' ]\n");
	/* What xl refuses stays wrong in the same way. */
	text_stays("disk = ['dmu:dscow:/a,hda1,w\n");
	text_stays("disk = ['\\q dmu:dscow:/a,hda1,w']\n");
	text_stays("disk = 'dmu");
	text_stays("disk = ['\\");
	text_stays("]]]['\"#");
}

TEST(wrong_lines)
{
	static const char text[] = "name='x'\ndisk = [\n 'phy:/a,xvda,w',\n 'dmu:dscow:a,xvdb,w' ]\n";
	static const char nul[] = "disk = ['dmu:\0dscow:/a,hda1,w']";
	struct cow_err err = { 0 };
	char *got = NULL;
	size_t len;

	CHECK_EQ(config_text(text, strlen(text), &got, &len, &err), -EINVAL);
	CHECK_STR(err.msg, "line 4: dmu:dscow:a,xvdb,w: the path of the overlay, \"a\", "
			   "does not begin with a slash");
	CHECK(!got);
	CHECK_EQ(config_text(nul, sizeof(nul) - 1, &got, &len, &err), 0);
	CHECK(len == sizeof(nul) - 1 && !memcmp(got, nul, len));
	cow_free(got);
}

/* Whatever a file is made of: no crash, and without "dmu:" nothing changes. */
TEST(any_text)
{
	static const char *const parts[] = {
		"disk", "=", "+=", "[", "]", "'", "\"", "\\", "\n", ";", "#", " ", ",", "phy:/a",
		"xvda", "\\'", "dmu", "\x01",
	};
	unsigned i, j;

	for (i = 0; i < 20000; i++) {
		struct cow_err err = { 0 };
		char text[256] = "", *got = NULL;
		size_t len;

		for (j = 0; j < 12; j++)
			strcat(text, parts[test_rand_below(COW_ARRAY_SIZE(parts))]);
		CHECK_EQ(config_text(text, strlen(text), &got, &len, &err), 0);
		CHECK_STR(got, text);
		cow_free(got);
	}
}
