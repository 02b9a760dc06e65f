// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Hostile dscow headers. As a test: every header field set to what it must not
 * be, sealed with a correct checksum, is refused in one sentence. With
 * arguments it is the forger of the shell tests:
 *
 *	dscow-forge IMAGE FIELD=VALUE...
 *
 * FIELD is a member of struct dscow_header, or "base" or "base_format", whose
 * value is text. Both copies of the header are written.
 */
#include "test.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
#include <xxhash.h>

#include "cow/chain.h"
#include "dscow/dscow.h"
#include "run.h"

#define MEMBER(m) { #m, offsetof(struct dscow_header, m), sizeof(((struct dscow_header *)0)->m) }

static const struct {
	const char *name;
	size_t off, bytes;
} members[] = {
	MEMBER(magic), MEMBER(version), MEMBER(header_bytes), MEMBER(compat), MEMBER(incompat),
	MEMBER(size), MEMBER(below_limit), MEMBER(first_block), MEMBER(ext_off), MEMBER(ext_first),
	MEMBER(ext_count), MEMBER(block_bits), MEMBER(granule_bits), MEMBER(state),
	MEMBER(text_off), MEMBER(path_len), MEMBER(format_len), MEMBER(reserved0),
	MEMBER(text_hash), MEMBER(base_size), MEMBER(base_mtime_ns), MEMBER(base_sample),
	MEMBER(session), MEMBER(reserved), MEMBER(hash),
};

struct forgery {
	int fd;
	struct dscow_header h;
	char text[DSCOW_TEXT_BYTES];
};

static bool set_text(struct forgery *f, const char *path, size_t path_len, const char *format,
		     size_t format_len)
{
	char text[DSCOW_TEXT_BYTES] = { 0 };

	if (path_len + format_len > sizeof(text))
		return false;
	memcpy(text, path, path_len);
	memcpy(text + path_len, format, format_len);
	memcpy(f->text, text, sizeof(text));
	cow_put_le16(&f->h.path_len, (uint16_t)path_len);
	cow_put_le16(&f->h.format_len, (uint16_t)format_len);
	cow_put_le64(&f->h.text_hash, XXH3_64bits(text, path_len + format_len));
	return true;
}

/* Applies "FIELD=VALUE". False: no such field. */
static bool set_field(struct forgery *f, const char *set)
{
	const char *eq = strchr(set, '='), *value = eq ? eq + 1 : "";
	size_t n = eq ? (size_t)(eq - set) : strlen(set);
	size_t path_len = cow_get_le16(&f->h.path_len), format_len = cow_get_le16(&f->h.format_len);
	uint64_t v;

	if (n == 4 && !memcmp(set, "base", n))
		return set_text(f, value, strlen(value), f->text + path_len, format_len);
	if (n == 11 && !memcmp(set, "base_format", n))
		return set_text(f, f->text, path_len, value, strlen(value));
	v = strtoull(value, NULL, 0);
	for (size_t i = 0; i < COW_ARRAY_SIZE(members); i++) {
		if (strlen(members[i].name) != n || memcmp(members[i].name, set, n))
			continue;
		v = htole64(v);
		memcpy((char *)&f->h + members[i].off, &v,
		       cow_min(members[i].bytes, sizeof(v)));
		return true;
	}
	return false;
}

static bool load(struct forgery *f, const char *path)
{
	f->fd = open(path, O_RDWR | O_CLOEXEC);
	return f->fd >= 0 &&
	       pread(f->fd, &f->h, sizeof(f->h), DSCOW_HEADER_OFF) == (ssize_t)sizeof(f->h) &&
	       pread(f->fd, f->text, sizeof(f->text), cow_get_le32(&f->h.text_off)) >= 0;
}

/* @seal: with a checksum that fits. */
static bool store(struct forgery *f, bool seal)
{
	uint32_t text_off = cow_get_le32(&f->h.text_off);
	bool ok;

	if (seal)
		cow_put_le64(&f->h.hash, XXH3_64bits(&f->h, offsetof(struct dscow_header, hash)));
	ok = pwrite(f->fd, &f->h, sizeof(f->h), DSCOW_HEADER_OFF) == (ssize_t)sizeof(f->h) &&
	     pwrite(f->fd, &f->h, sizeof(f->h), DSCOW_BACKUP_OFF) == (ssize_t)sizeof(f->h);
	if (ok && (text_off == DSCOW_TEXT_OFF_A || text_off == DSCOW_TEXT_OFF_B))
		ok = pwrite(f->fd, f->text, sizeof(f->text), text_off) == (ssize_t)sizeof(f->text);
	return !close(f->fd) && ok;
}

static int forger(int argc, char **argv)
{
	struct forgery f = { .fd = -1 };

	if (!load(&f, argv[1])) {
		perror(argv[1]);
		return 1;
	}
	for (int i = 2; i < argc; i++) {
		if (!set_field(&f, argv[i])) {
			fprintf(stderr, "dscow-forge: cannot set %s\n", argv[i]);
			return 1;
		}
	}
	if (!store(&f, true)) {
		perror(argv[1]);
		return 1;
	}
	return 0;
}

/* ---- the test ---- */

#define IMG_SIZE (10u << 20)

static char base[512], over[512];

static void make_image(void)
{
	struct cow_create_cfg cfg = {
		.format = "dscow", .path = over, .backing = base, .backing_format = "raw",
		.exist_ok = true,
	};
	struct cow_err err = { 0 };
	int fd;

	snprintf(base, sizeof(base), "%s/forge.raw", test_tmp());
	snprintf(over, sizeof(over), "%s/forge.dscow", test_tmp());
	fd = open(base, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && !ftruncate(fd, IMG_SIZE) && !close(fd));
	if (cow_image_create(&cfg, NULL, &err))
		FAIL("%s", err.msg);
}

/* Opens the image as every kind of user does; 0 only when all of them can. */
static int try_open(struct cow_err *err)
{
	static const uint32_t flags[] = {
		0, COW_OPEN_WRITE, COW_OPEN_CHECK, COW_OPEN_WRITE | COW_OPEN_CHECK | COW_OPEN_FORCE,
	};
	uint8_t buf[8192];
	int r = 0;

	for (size_t i = 0; i < COW_ARRAY_SIZE(flags); i++) {
		struct cow_chain_cfg cfg = { .format = "dscow", .path = over, .flags = flags[i],
					     .no_backing = true, .io_sync = true };
		struct cow_err e = { 0 };
		struct cow_chain *c;
		int one = cow_chain_open(&cfg, &c, &e);

		if (one) {
			CHECK(one < 0 && e.code && strstr(e.msg, over) && !strchr(e.msg, '\n'));
			*err = e;
			r = one;
			continue;
		}
		cow_chain_pread(c, buf, sizeof(buf), cow_chain_size(c) - sizeof(buf));
		cow_chain_close(c);
	}
	return r;
}

/* A header with @set, sealed, is refused by all (@bad) or taken by all. */
static void with(const char *set, bool bad)
{
	struct forgery f = { .fd = -1 };
	struct cow_err err = { 0 };
	int r;

	make_image();
	CHECK(load(&f, over));
	CHECK(set_field(&f, set));
	CHECK(store(&f, true));
	r = try_open(&err);
	if (bad && !r)
		FAIL("a header with %s was taken", set);
	if (!bad && r)
		FAIL("a header with %s was refused: %s", set, err.msg);
}

TEST(unchanged_header_is_taken)
{
	with("compat=0", false);
}

TEST(unknown_features)
{
	with("incompat=2", true);
	with("incompat=0x80000000", true);
	with("incompat=0x8000000000000000", true);
	with("compat=0xffffffffffffffff", false);
	with("version=0", true);
	with("version=2", true);
	with("version=0xffffffff", true);
}

TEST(sizes)
{
	with("size=0", true);
	with("size=0x200000000000000", true);
	with("size=0x7fffffffffffffff", true);
	with("size=0xffffffffffffffff", true);
	with("size=0xffffffffffff0000", true);
	with("below_limit=10485761", true);
	with("below_limit=0xffffffffffffffff", true);
	/* The presence map does not fit before the first block. */
	with("size=0x100000000000000", true);
}

TEST(geometry)
{
	static const char *const bad[] = {
		"first_block=0", "first_block=1", "first_block=4096", "first_block=65537",
		"first_block=69632", "first_block=0xffffffffffff0000",
		"first_block=0x7fffffffffff0000", "block_bits=0", "block_bits=11",
		"block_bits=25", "block_bits=63", "block_bits=64", "block_bits=255",
		"granule_bits=0", "granule_bits=11", "granule_bits=17", "granule_bits=64",
		"granule_bits=255",
	};

	for (size_t i = 0; i < COW_ARRAY_SIZE(bad); i++)
		with(bad[i], true);
}

TEST(texts)
{
	with("text_off=1", true);
	with("text_off=4096", true);
	with("text_off=0xfffffe00", true);
	with("path_len=0xffff", true);
	with("path_len=1537", true);
	with("format_len=0xffff", true);
	with("format_len=1537", true);
	with("text_hash=1", true);
	with("base_format=a-name-that-is-too-long-for-a-format", true);
}

TEST(extension)
{
	with("ext_off=4096", true);
	with("ext_count=1", true);
	with("ext_first=1", true);
	with("incompat=1", true);	/* says there is an extension, but there is none */
}

TEST(wrong_magic_or_checksum)
{
	struct forgery f = { .fd = -1 };
	struct cow_err err = { 0 };

	with("magic=0", true);
	make_image();
	CHECK(load(&f, over));
	CHECK(set_field(&f, "size=1048576"));
	CHECK(store(&f, false));
	CHECK(try_open(&err));
}

int main(int argc, char **argv)
{
	setenv("COW_PLUGIN_DIR", TEST_BUILD "/lib/cow", 0);
	if (argc > 2 && strchr(argv[2], '='))
		return forger(argc, argv);
	return test_run(argc, argv);
}
