// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The control protocol's words: what is split, what is refused, and that
 * whatever is joined is split into the same words again. No sockets here:
 * tests/cli/cowd.sh has those.
 */
#include <errno.h>
#include <stdlib.h>

#include "cowd/proto.h"
#include "cowd/rundir.h"
#include "test.h"

static struct proto_words words;

static int split(const char *packet, size_t len)
{
	const char *why = NULL;
	int rc = proto_split(packet, len, &words, &why);

	if (rc)
		CHECK(why && *why);
	return rc;
}

#define SPLIT(s) split((s), sizeof(s) - 1)

TEST(plain_words)
{
	CHECK_EQ(SPLIT("status"), 0);
	CHECK_EQ(words.argc, 1);
	CHECK_STR(words.argv[0], "status");
	CHECK(!words.argv[1]);
	CHECK_EQ(SPLIT(" resize\t 10G   --shrink \n"), 0);
	CHECK_EQ(words.argc, 3);
	CHECK_STR(words.argv[1], "10G");
	CHECK_STR(words.argv[2], "--shrink");
}

TEST(quotes_and_escapes)
{
	CHECK_EQ(SPLIT("mount \"/a b\" /c\\ d"), 0);
	CHECK_EQ(words.argc, 3);
	CHECK_STR(words.argv[1], "/a b");
	CHECK_STR(words.argv[2], "/c d");
	CHECK_EQ(SPLIT("a\"b c\"d \"\" \\x41\\\\\\\"\\t\\n"), 0);
	CHECK_EQ(words.argc, 3);
	CHECK_STR(words.argv[0], "ab cd");
	CHECK_STR(words.argv[1], "");
	CHECK_STR(words.argv[2], "A\\\"\t\n");
	CHECK_EQ(SPLIT("\xc3\xa4\xff"), 0);
	CHECK_STR(words.argv[0], "\xc3\xa4\xff");
}

TEST(refused)
{
	CHECK_EQ(SPLIT(""), -EINVAL);
	CHECK_EQ(SPLIT(" \t \n"), -EINVAL);
	CHECK_EQ(SPLIT("a \"b"), -EINVAL);
	CHECK_EQ(SPLIT("a\\"), -EINVAL);
	CHECK_EQ(SPLIT("a\\q"), -EINVAL);
	CHECK_EQ(SPLIT("a\\x4"), -EINVAL);
	CHECK_EQ(SPLIT("a\\x4g"), -EINVAL);
	CHECK_EQ(SPLIT("a\\x00"), -EINVAL);
	CHECK_EQ(SPLIT("a\0b"), -EINVAL);
	CHECK_EQ(SPLIT("a\nb"), -EINVAL);
	CHECK_EQ(SPLIT("a\n\n"), -EINVAL);
	CHECK_EQ(SPLIT("a\x1b[0m"), -EINVAL);
	CHECK_EQ(SPLIT("a\x7f"), -EINVAL);
}

TEST(limits)
{
	char big[PROTO_PACKET + 1];
	unsigned i;

	memset(big, 'a', sizeof(big));
	CHECK_EQ(split(big, PROTO_PACKET), 0);
	CHECK_EQ(strlen(words.argv[0]), PROTO_PACKET);
	CHECK_EQ(split(big, PROTO_PACKET + 1), -E2BIG);
	for (i = 0; i < PROTO_WORDS; i++)
		memcpy(big + 2 * i, "w ", 2);
	CHECK_EQ(split(big, 2 * PROTO_WORDS), 0);
	CHECK_EQ(words.argc, PROTO_WORDS);
	CHECK(!words.argv[PROTO_WORDS]);
	CHECK_EQ(split(big, 2 * PROTO_WORDS + 1), -E2BIG);
}

TEST(join_is_split_again)
{
	char packet[PROTO_PACKET], word[4][64];
	int round, i, n;
	size_t k, len;

	for (round = 0; round < 20000; round++) {
		packet[0] = '\0';
		n = 1 + (int)test_rand_below(4);
		for (i = 0; i < n; i++) {
			len = test_rand_below(sizeof(word[0]));
			for (k = 0; k < len; k++)
				word[i][k] = (char)(1 + test_rand_below(255));
			word[i][len] = '\0';
			CHECK_EQ(proto_join(packet, sizeof(packet), word[i]), 0);
		}
		CHECK_EQ(split(packet, strlen(packet)), 0);
		CHECK_EQ(words.argc, n);
		for (i = 0; i < n; i++)
			CHECK_STR(words.argv[i], word[i]);
	}
}

TEST(join_fits_or_fails)
{
	char small[16], want[16];
	const char *const hard[] = { "0123456789012345", "\n\n\n\n", "a b\"c d\"e\\" };
	size_t size, i;

	for (i = 0; i < sizeof(hard) / sizeof(hard[0]); i++) {
		for (size = 5; size <= sizeof(small); size++) {
			memset(small, '#', sizeof(small));
			strcpy(small, "x");
			strcpy(want, small);
			if (proto_join(small, size, hard[i]) == 0) {
				CHECK(strlen(small) < size);
				continue;
			}
			CHECK_STR(small, want);
			if (size < sizeof(small))
				CHECK_EQ(small[size], '#');
		}
	}
}

TEST(final_packets)
{
	const char *sentence = NULL;

	CHECK_EQ(proto_final(".0", &sentence), 0);
	CHECK_EQ(proto_final(".16 in use: mounted", &sentence), 16);
	CHECK_STR(sentence, "in use: mounted");
	CHECK_EQ(proto_final("", &sentence), -EPROTO);
	CHECK_EQ(proto_final(".", &sentence), -EPROTO);
	CHECK_EQ(proto_final(".00", &sentence), -EPROTO);
	CHECK_EQ(proto_final(".0 x", &sentence), -EPROTO);
	CHECK_EQ(proto_final(".5", &sentence), -EPROTO);
	CHECK_EQ(proto_final(".5 ", &sentence), -EPROTO);
	CHECK_EQ(proto_final(".-5 x", &sentence), -EPROTO);
	CHECK_EQ(proto_final(".99999999999999999999 x", &sentence), -EPROTO);
	CHECK_EQ(proto_final("+0", &sentence), -EPROTO);
}

TEST(device_names)
{
	char name[RUN_NAME_MAX + 2];
	struct cow_err err = { 0 };

	CHECK_EQ(run_name_check("vm1.root_A+b-c", NULL), 0);
	CHECK_EQ(run_name_check("", NULL), -EINVAL);
	CHECK_EQ(run_name_check(".x", NULL), -EINVAL);
	CHECK_EQ(run_name_check("-x", NULL), -EINVAL);
	CHECK_EQ(run_name_check("a/b", NULL), -EINVAL);
	CHECK_EQ(run_name_check("a b", NULL), -EINVAL);
	CHECK_EQ(run_name_check("a\n", NULL), -EINVAL);
	memset(name, 'n', sizeof(name));
	name[RUN_NAME_MAX] = '\0';
	CHECK_EQ(run_name_check(name, NULL), 0);
	name[RUN_NAME_MAX] = 'n';
	name[RUN_NAME_MAX + 1] = '\0';
	CHECK_EQ(run_name_check(name, &err), -EINVAL);
	CHECK(strstr(err.msg, "64"));
}

TEST(state_file)
{
	static struct run_state a, b;
	char path[512];
	FILE *f;

	CHECK_EQ(run_state_read(test_tmp(), "none", &b), -ENOENT);
	a.pid = 4711;
	strcpy(a.format, "dscow");
	strcpy(a.image, "/odd \"name\"\n\x01\\x.img");
	strcpy(a.mount, "/run/x");
	strcpy(a.frontend, "bridge");
	strcpy(a.device, "/dev/loop3");
	strcpy(a.path, "/dev/mapper/vm");
	strcpy(a.views[2], "/mnt/a b");
	CHECK_EQ(run_state_write(test_tmp(), "one", &a), 0);
	CHECK_EQ(run_state_read(test_tmp(), "one", &b), 0);
	CHECK_EQ(b.pid, 4711);
	CHECK_STR(b.format, a.format);
	CHECK_STR(b.image, a.image);
	CHECK_STR(b.mount, a.mount);
	CHECK_STR(b.frontend, a.frontend);
	CHECK_STR(b.device, a.device);
	CHECK_STR(b.path, a.path);
	CHECK_STR(b.views[0], "/mnt/a b");

	/* Damage is skipped over, or refused as a whole; never believed. */
	snprintf(path, sizeof(path), "%s/two.state", test_tmp());
	f = fopen(path, "w");
	CHECK(f);
	fputs("pid 5\ndevice \"/dev/lo\nview a b c\nmount /m\n\x01\x02\nimage /cut", f);
	CHECK_EQ(fclose(f), 0);
	CHECK_EQ(run_state_read(test_tmp(), "two", &b), 0);
	CHECK_EQ(b.pid, 5);
	CHECK_STR(b.device, "");
	CHECK_STR(b.frontend, "");
	CHECK_STR(b.views[0], "");
	CHECK_STR(b.mount, "/m");
	CHECK_STR(b.image, "");
	f = fopen(path, "w");
	CHECK(f);
	fputc(0, f);
	CHECK_EQ(fclose(f), 0);
	CHECK_EQ(run_state_read(test_tmp(), "two", &b), -EBADMSG);
	snprintf(path, sizeof(path), "%s/one.state", test_tmp());
	CHECK_EQ(remove(path), 0);
	snprintf(path, sizeof(path), "%s/two.state", test_tmp());
	CHECK_EQ(remove(path), 0);
}
