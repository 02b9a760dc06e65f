// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Names of virtual disks to numbers and back. Each kind of name is a row of a table;
 * the extended numbers take over where those of xvd end.
 */
#include "xen-vdev.h"

#include <errno.h>
#include <stdio.h>

#define EXTENDED (1u << 28)
#define EXTENDED_DISKS (1u << 20)
#define EXTENDED_PARTS 256u
#define EXTENDED_SHIFT 8
#define LETTERS 26u

struct kind {
	const char *prefix;
	uint32_t major;
	uint32_t first;		/* disk with minor 0 */
	uint32_t disks;		/* behind @first */
	unsigned shift;		/* of the disk in the minor number; partitions are below it */
};

static const struct kind kinds[] = {
	{ "xvd", 202, 0, 16, 4 },
	{ "hd", 3, 0, 2, 6 },
	{ "hd", 22, 2, 2, 6 },
	{ "sd", 8, 0, 16, 4 },
};

struct place {
	uint32_t disk, part;	/* part 0: the whole disk */
};

/* Digits without a leading zero, at most @max. False: none, or too large. */
static bool read_number(const char **s, uint32_t max, uint32_t *ret)
{
	const char *p = *s;
	uint64_t v = 0;

	if (*p < '0' || *p > '9' || (*p == '0' && p[1] >= '0' && p[1] <= '9'))
		return false;
	for (; *p >= '0' && *p <= '9'; p++) {
		v = v * 10 + (uint64_t)(*p - '0');
		if (v > max)
			return false;
	}
	*ret = (uint32_t)v;
	*s = p;
	return true;
}

static bool read_hex(const char *s, uint32_t *ret)
{
	uint64_t v = 0;

	if (!*s)
		return false;
	for (; *s; s++) {
		int digit = *s >= '0' && *s <= '9' ? *s - '0'
			    : *s >= 'a' && *s <= 'f' ? *s - 'a' + 10
			    : *s >= 'A' && *s <= 'F' ? *s - 'A' + 10 : -1;

		v = v << 4 | (uint64_t)digit;
		if (digit < 0 || v > UINT32_MAX)
			return false;
	}
	*ret = (uint32_t)v;
	return true;
}

/* Letters: a, b ... z, aa, ab ... */
static bool read_disk(const char **s, uint32_t *ret)
{
	const char *p = *s;
	uint32_t n = 0;

	for (; *p >= 'a' && *p <= 'z'; p++) {
		n = n * LETTERS + (uint32_t)(*p - 'a') + 1;
		if (n > EXTENDED_DISKS)
			return false;
	}
	if (p == *s)
		return false;
	*ret = n - 1;
	*s = p;
	return true;
}

/* The rest of a name: nothing, or the number of a partition. */
static bool read_part(const char *s, uint32_t *ret)
{
	*ret = 0;
	if (!*s)
		return true;
	return read_number(&s, EXTENDED_PARTS - 1, ret) && !*s && *ret > 0;
}

/* "d16", "d16p3" */
static bool read_plain(const char *s, struct place *ret)
{
	if (*s++ != 'd' || !read_number(&s, EXTENDED_DISKS - 1, &ret->disk))
		return false;
	ret->part = 0;
	return !*s || (*s++ == 'p' && *s && read_part(s, &ret->part));
}

static bool read_letters(const char *s, const char *prefix, struct place *ret)
{
	size_t n = strlen(prefix);

	if (strncmp(s, prefix, n))
		return false;
	s += n;
	return read_disk(&s, &ret->disk) && read_part(s, &ret->part);
}

static bool encode(const struct kind *k, const struct place *p, uint32_t *ret)
{
	if (p->disk < k->first || p->disk - k->first >= k->disks || p->part >> k->shift)
		return false;
	*ret = k->major << 8 | (p->disk - k->first) << k->shift | p->part;
	return true;
}

static bool decode(const struct kind *k, uint32_t vdev, struct place *ret)
{
	uint32_t minor = vdev & 0xff;

	if (vdev >> 8 != k->major || minor >> k->shift >= k->disks)
		return false;
	ret->disk = k->first + (minor >> k->shift);
	ret->part = minor & ((1u << k->shift) - 1);
	return true;
}

static uint32_t encode_xvd(const struct place *p)
{
	uint32_t vdev;

	return encode(&kinds[0], p, &vdev) ? vdev
	       : EXTENDED | p->disk << EXTENDED_SHIFT | p->part;
}

static bool is_vdev(uint32_t vdev)
{
	struct place p;

	for (size_t i = 0; i < COW_ARRAY_SIZE(kinds); i++)
		if (decode(&kinds[i], vdev, &p))
			return true;
	return vdev >> 28 == 1;
}

static int parse_number(const char *name, uint32_t *ret, struct cow_err *err)
{
	const char *end = name;
	uint32_t vdev;
	bool ok;

	if (name[0] == '0' && name[1] == 'x')
		ok = read_hex(name + 2, &vdev);
	else
		ok = read_number(&end, UINT32_MAX, &vdev) && !*end;
	if (!ok)
		return cow_err_set(err, -EINVAL, "\"%.32s\" is not the number of a virtual disk", name);
	if (!is_vdev(vdev))
		return cow_err_set(err, -EINVAL, "%.32s is not the number of an xvd, hd or sd disk", name);
	*ret = vdev;
	return 0;
}

int xen_vdev_parse(const char *name, uint32_t *ret, struct cow_err *err)
{
	struct place p;

	if (name[0] >= '0' && name[0] <= '9')
		return parse_number(name, ret, err);
	if (read_plain(name, &p) || read_letters(name, kinds[0].prefix, &p)) {
		*ret = encode_xvd(&p);
		return 0;
	}
	for (size_t i = 1; i < COW_ARRAY_SIZE(kinds); i++)
		if (read_letters(name, kinds[i].prefix, &p) && encode(&kinds[i], &p, ret))
			return 0;
	return cow_err_set(err, -EINVAL, "\"%.32s\" is not the name of a virtual disk: those are "
			   "xvda, xvdb1 ..., hda to hdd, sda to sdp, or d0, d1p1 ...", name);
}

static void write_letters(uint32_t disk, char *out)
{
	char reversed[8];
	unsigned n = 0;

	do {
		reversed[n++] = (char)('a' + disk % LETTERS);
		disk = disk / LETTERS;
	} while (disk-- > 0);
	while (n > 0)
		*out++ = reversed[--n];
	*out = '\0';
}

static const char *write_name(const char *prefix, const struct place *p, char *buf)
{
	char letters[8];

	write_letters(p->disk, letters);
	if (p->part)
		snprintf(buf, XEN_VDEV_NAME_MAX, "%s%s%u", prefix, letters, p->part);
	else
		snprintf(buf, XEN_VDEV_NAME_MAX, "%s%s", prefix, letters);
	return buf;
}

const char *xen_vdev_name(uint32_t vdev, char buf[XEN_VDEV_NAME_MAX])
{
	struct place p;

	for (size_t i = 0; i < COW_ARRAY_SIZE(kinds); i++)
		if (decode(&kinds[i], vdev, &p))
			return write_name(kinds[i].prefix, &p, buf);
	p.disk = (vdev & (EXTENDED - 1)) >> EXTENDED_SHIFT;
	p.part = vdev & (EXTENDED_PARTS - 1);
	if (vdev >> 28 == 1 && encode_xvd(&p) == vdev)
		return write_name(kinds[0].prefix, &p, buf);
	snprintf(buf, XEN_VDEV_NAME_MAX, "%u", vdev);
	return buf;
}
