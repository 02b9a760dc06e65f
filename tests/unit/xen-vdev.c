// SPDX-License-Identifier: GPL-2.0-or-later
/* cowd/xen-vdev.h: names of virtual disks and their numbers, the whole range both ways. */
#include "cowd/xen-vdev.h"

#include <errno.h>
#include <stdlib.h>

#include "test.h"

static uint32_t number_of(const char *name)
{
	struct cow_err err = { 0 };
	uint32_t vdev = 0;

	if (xen_vdev_parse(name, &vdev, &err))
		FAIL("%s", err.msg);
	return vdev;
}

TEST(known_numbers)
{
	static const struct {
		const char *name;
		uint32_t vdev;
	} known[] = {
		{ "xvda", 51712 }, { "xvda1", 51713 }, { "xvda15", 51727 }, { "xvdb", 51728 },
		{ "xvdp15", 51967 }, { "xvda16", 1u << 28 | 16 }, { "xvdq", 1u << 28 | 16 << 8 },
		{ "xvdz", 1u << 28 | 25 << 8 }, { "xvdaa", 1u << 28 | 26 << 8 },
		{ "xvdaz255", 1u << 28 | 51 << 8 | 255 }, { "xvdba", 1u << 28 | 52 << 8 },
		{ "hda", 768 }, { "hda1", 769 }, { "hdb63", 895 }, { "hdc", 5632 }, { "hdd1", 5697 },
		{ "sda", 2048 }, { "sda1", 2049 }, { "sdp15", 2303 },
	};
	char buf[XEN_VDEV_NAME_MAX];

	for (unsigned i = 0; i < COW_ARRAY_SIZE(known); i++) {
		CHECK_EQ(number_of(known[i].name), known[i].vdev);
		CHECK_STR(xen_vdev_name(known[i].vdev, buf), known[i].name);
	}
}

TEST(other_spellings)
{
	CHECK_EQ(number_of("d0"), 51712);
	CHECK_EQ(number_of("d0p1"), 51713);
	CHECK_EQ(number_of("d15p15"), 51967);
	CHECK_EQ(number_of("d16p3"), 1u << 28 | 16 << 8 | 3);
	CHECK_EQ(number_of("d1048575p255"), (2u << 28) - 1);
	CHECK_EQ(number_of("51712"), 51712);
	CHECK_EQ(number_of("0xca00"), 51712);
	CHECK_EQ(number_of("0xCA0f"), 51727);
	CHECK_EQ(number_of("769"), 769);
	CHECK_EQ(number_of("268439552"), 1u << 28 | 16 << 8);
}

TEST(refused)
{
	static const char *const bad[] = {
		"", "xvd", "xvd1", "xvdA", "xvda0", "xvda01", "xvda256", "xvda1 ", " xvda", "xvda-1",
		"xvdzzzzzzz", "xvdbgqxo", "hde", "hda64", "hdb64", "hdaa", "sdq", "sda16", "sd", "hd", "d",
		"d00", "d-1", "d0p", "d0p0", "d0p256", "d0p01", "d1048576", "d0p1p1", "vda", "sr0",
		"/dev/xvda", "xvda1p1", "0", "1", "0x", "0xg", "0xca00 ", "051712", "51712x", "51968",
		"896", "5760", "2304", "536870912", "4294967296", "0x100000000", "99999999999999999999",
		"-51712", "+51712", "dmu", "xvda\n", "xvd\xc3\xa4",
	};

	for (unsigned i = 0; i < COW_ARRAY_SIZE(bad); i++) {
		struct cow_err err = { 0 };
		uint32_t vdev = 42;

		if (xen_vdev_parse(bad[i], &vdev, &err) != -EINVAL)
			FAIL("\"%s\" is taken, as %u", bad[i], vdev);
		CHECK_EQ(vdev, 42);
		CHECK_EQ(err.code, -EINVAL);
		CHECK(err.msg[0]);
	}
}

/* Each number has a text, and each text but those of odd numbers is a name; all lead back. */
static void there_and_back(uint32_t vdev, bool has_name)
{
	char buf[XEN_VDEV_NAME_MAX];
	const char *name = xen_vdev_name(vdev, buf);
	bool is_name = name[0] >= 'a';

	if (number_of(name) != vdev || is_name != has_name)
		FAIL("%u is \"%s\", which is %u", vdev, name, number_of(name));
}

TEST(whole_range)
{
	static const struct {
		uint32_t from, to;
	} classic[] = { { 768, 895 }, { 2048, 2303 }, { 5632, 5759 }, { 51712, 51967 } };
	struct cow_err err;
	uint32_t ignored, next = 0;

	for (unsigned i = 0; i < COW_ARRAY_SIZE(classic); i++) {
		for (uint32_t v = classic[i].from; v <= classic[i].to; v++)
			there_and_back(v, true);
		for (; next < classic[i].from; next++) {
			char buf[XEN_VDEV_NAME_MAX];

			err.code = 0;
			CHECK_EQ(xen_vdev_parse(xen_vdev_name(next, buf), &ignored, &err), -EINVAL);
		}
		next = classic[i].to + 1;
	}
	for (uint32_t disk = 0; disk < 1u << 20; disk += disk < 2000 ? 1 : 997)
		for (uint32_t part = 0; part < 256; part += disk < 20 ? 1 : 17)
			there_and_back(1u << 28 | disk << 8 | part, disk > 15 || part > 15);
	there_and_back((2u << 28) - 1, true);
}

TEST(names_are_told_apart)
{
	char name[XEN_VDEV_NAME_MAX], buf[XEN_VDEV_NAME_MAX];
	uint32_t last = 0;

	/* In the order of the alphabet's counting, numbers rise and never repeat. */
	for (uint32_t disk = 16; disk < 20000; disk++) {
		snprintf(name, sizeof(name), "d%up1", disk);
		CHECK(number_of(name) > last);
		last = number_of(name);
		CHECK_EQ(number_of(xen_vdev_name(last, buf)), last);
	}
}
