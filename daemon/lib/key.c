// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Keys of encrypted images: from the options to the format that is being opened, and
 * no further. The bytes are read here and wiped as soon as the format has seen them.
 * They are never part of an option, a message or a log.
 *
 * A pipe can be read once, an image be opened more than once: what a pipe gave is
 * kept by the kernel, in a nameless file that takes the place of the descriptor.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine.h"

#define KEY_MAX COW_KIB(64)	/* of any use; more is another file by mistake, or an endless one */

/* All that is left in @fd, at most @max bytes. Their number or -errno. */
static ssize_t read_all(int fd, uint8_t *buf, size_t max)
{
	size_t n = 0;

	while (n < max) {
		ssize_t got = read(fd, buf + n, max - n);

		if (got < 0 && errno != EINTR)
			return -errno;
		if (got == 0)
			break;
		if (got > 0)
			n += (size_t)got;
	}
	return (ssize_t)n;
}

/* Puts the key that came out of the pipe @fd in its place. */
static int keep(int fd, const uint8_t *key, size_t len)
{
	int mem = memfd_create("cow-key", MFD_CLOEXEC), rc = 0;

	if (mem < 0)
		return -errno;
	if (write(mem, key, len) != (ssize_t)len)
		rc = -EIO;
	else if (lseek(mem, 0, SEEK_SET) || dup3(mem, fd, O_CLOEXEC) < 0)
		rc = -errno;
	close(mem);
	return rc;
}

static int read_fd(int fd, uint8_t *buf, size_t max, ssize_t *ret_len)
{
	bool pipe = lseek(fd, 0, SEEK_SET) < 0 && errno == ESPIPE;
	ssize_t n = read_all(fd, buf, max);
	int rc = n < 0 ? (int)n : 0;

	if (rc == 0 && pipe && n > 0)
		rc = keep(fd, buf, (size_t)n);
	*ret_len = n;
	return rc;
}

static int read_file(const char *path, uint8_t *buf, size_t max, ssize_t *ret_len)
{
	int fd COW_CLEANUP_CLOSE = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);

	if (fd < 0)
		return -errno;
	*ret_len = read_all(fd, buf, max);
	return *ret_len < 0 ? (int)*ret_len : 0;
}

int key_take(struct cow_image *img, const struct cow_args *args, struct cow_err *err)
{
	const char *path = cow_args_str(args, "key_file", NULL), *number = cow_args_str(args, "key_fd", NULL);
	char name[32] = "";
	const char *what = path ? path : name;
	uint8_t *buf;
	ssize_t n = 0;
	int rc;

	if (!path && !number)
		return 0;
	if (path && number)
		return cow_err_set(err, -EINVAL, "%s: key_file and key_fd are two ways to say the same",
				   img->path);
	buf = cow_zalloc(KEY_MAX + 1);
	if (!buf)
		return cow_err_sys(err, -ENOMEM, "%s", img->path);
	if (number)
		snprintf(name, sizeof(name), "key_fd=%.16s", number);
	if (path)
		rc = read_file(path, buf, KEY_MAX + 1, &n);
	else
		rc = read_fd((int)cow_min(cow_args_size(args, "key_fd", 0), INT32_MAX), buf, KEY_MAX + 1, &n);
	img->key = buf;
	img->key_len = (size_t)cow_max(n, 0);
	if (rc)
		cow_err_sys(err, rc, "%s: cannot read the key from %.256s", img->path, what);
	else if (n == 0 || n > (ssize_t)KEY_MAX)
		rc = cow_err_set(err, -EINVAL, "%s: the key in %.256s %s", img->path, what,
				 n ? "is longer than 64 KiB" : "is empty");
	if (rc)
		key_drop(img);
	return rc;
}

void key_drop(struct cow_image *img)
{
	uint8_t *buf = (uint8_t *)(uintptr_t)img->key;

	if (buf)
		explicit_bzero(buf, KEY_MAX + 1);
	cow_free(buf);
	img->key = NULL;
	img->key_len = 0;
}

void cow_keys_close(const struct cow_args *args)
{
	const char *key, *value;
	size_t i = 0;

	while (cow_args_next(args, &i, &key, &value)) {
		const char *dot = strrchr(key, '.');

		if (!strcmp(dot ? dot + 1 : key, "key_fd"))
			close(atoi(value));
	}
}
