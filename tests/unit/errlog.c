// SPDX-License-Identifier: GPL-2.0-or-later
/* cow/err.h and cow/log.h: one sentence, one line, whatever is in it. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "cow/err.h"
#include "cow/log.h"
#include "test.h"

TEST(err_first_sentence_stays)
{
	struct cow_err e = { 0 };

	CHECK_EQ(cow_err_set(&e, -EINVAL, "%s: first", "a.img"), -EINVAL);
	CHECK_EQ(cow_err_sys(&e, -EIO, "second"), -EIO);
	CHECK_EQ(e.code, -EINVAL);
	CHECK_STR(e.msg, "a.img: first");
	CHECK_STR(cow_err_text(&e, -EIO), "a.img: first");
}

TEST(err_system_text)
{
	struct cow_err e = { 0 }, unset = { 0 };

	CHECK_EQ(cow_err_sys(&e, -ENOENT, "%s", "x"), -ENOENT);
	CHECK_STR(e.msg, "x: No such file or directory");
	CHECK_STR(cow_err_text(&unset, -ENOSPC), "No space left on device");
	CHECK_STR(cow_err_text(NULL, -ENOSPC), "No space left on device");
	CHECK_EQ(cow_err_set(NULL, -EPERM, "nobody listens"), -EPERM);
	CHECK_EQ(cow_err_sys(NULL, -EPERM, "nobody listens"), -EPERM);
}

TEST(err_is_one_line)
{
	struct cow_err e = { 0 };

	cow_err_set(&e, -EINVAL, "%s: bad", "evil\ncowd: all is well\x1b[2J");
	CHECK_STR(e.msg, "evil?cowd: all is well?[2J: bad");
}

TEST(err_long_keeps_the_reason)
{
	static const size_t lens[] = { 700, 766, 767, 768, 769, 1500, 4095, 9000 };
	char path[9001];

	for (size_t i = 0; i < COW_ARRAY_SIZE(lens); i++) {
		struct cow_err e = { 0 };
		size_t want;

		memset(path, 'p', lens[i]);
		path[lens[i]] = '\0';
		cow_err_sys(&e, -EIO, "/%s", path);
		want = strlen("/: Input/output error") + lens[i];
		CHECK_EQ(strlen(e.msg), cow_min(want, COW_ERR_MAX - 1));
		CHECK_STR(e.msg + strlen(e.msg) - 20, ": Input/output error");
		CHECK_EQ(strstr(e.msg, "[...]") != NULL, want >= COW_ERR_MAX);
		CHECK_EQ(e.msg[0], '/');
	}
}

/* Standard error goes to a file between these two. */
static int saved_err, capture_fd;

static void capture_start(void)
{
	char name[256];

	snprintf(name, sizeof(name), "%s/log.XXXXXX", test_tmp());
	capture_fd = mkstemp(name);
	CHECK(capture_fd >= 0);
	unlink(name);
	saved_err = dup(2);
	dup2(capture_fd, 2);
}

static const char *capture_end(void)
{
	static char buf[65536];
	ssize_t n = pread(capture_fd, buf, sizeof(buf) - 1, 0);

	dup2(saved_err, 2);
	close(saved_err);
	close(capture_fd);
	buf[n > 0 ? n : 0] = '\0';
	return buf;
}

TEST(log_lines)
{
	capture_start();
	cow_log_open("t", false);
	cow_log(COW_LOG_ERR, "broken: %d", 5);
	cow_log(COW_LOG_WARN, "careful");
	cow_log(COW_LOG_INFO, "two\nlines");
	cow_log(COW_LOG_DEBUG, "not shown");
	cow_log_set_level(COW_LOG_DEBUG);
	cow_log(COW_LOG_DEBUG, "shown");
	cow_log_set_level(COW_LOG_ERR);
	cow_log(COW_LOG_WARN, "not shown");
	cow_log_open("t", true);
	cow_log(COW_LOG_ERR, "journal");
	cow_log_set_level(COW_LOG_INFO);
	CHECK_STR(capture_end(), "t: broken: 5\nt: warning: careful\nt: two?lines\n"
		  "t: debug: shown\n<3>t: journal\n");
	CHECK_EQ(cow_log_get_level(), COW_LOG_INFO);
}

TEST(log_long_line_is_cut)
{
	const char *s;

	capture_start();
	cow_log_open("t", false);
	cow_log(COW_LOG_ERR, "%9000d", 1);
	s = capture_end();
	CHECK(strlen(s) <= 2048 && s[strlen(s) - 1] == '\n');
	CHECK(strchr(s, '\n') == s + strlen(s) - 1);
}

static unsigned count(const char *s, const char *what)
{
	unsigned n = 0;

	for (; (s = strstr(s, what)); s += strlen(what))
		n++;
	return n;
}

TEST(log_limit)
{
	unsigned said = 0, shown, dropped = 0, more;
	const char *s, *p;

	capture_start();
	cow_log_open("t", false);
	/* However the seconds fall: every message is shown, or counted as dropped, in the end. */
	for (; said < 1000; said++)
		cow_log_limited(COW_LOG_WARN, "flood");
	usleep(1100000);
	cow_log(COW_LOG_INFO, "after");
	s = capture_end();
	shown = count(s, "flood");
	for (p = s; (p = strstr(p, "warning: ")); p += 9)
		if (sscanf(p, "warning: %u more messages", &more) == 1)
			dropped += more;
	CHECK(shown >= 10 && shown < 500);
	CHECK_EQ(shown + dropped, said);
	CHECK(strstr(s, "dropped\nt: after\n"));
}

TEST(log_levels_by_name)
{
	static const enum cow_log_level all[] = { COW_LOG_ERR, COW_LOG_WARN, COW_LOG_INFO,
						  COW_LOG_DEBUG };
	enum cow_log_level l;

	for (size_t i = 0; i < COW_ARRAY_SIZE(all); i++) {
		CHECK_EQ(cow_log_parse_level(cow_log_level_name(all[i]), &l), 0);
		CHECK_EQ(l, all[i]);
	}
	CHECK_EQ(cow_log_parse_level("loud", &l), -EINVAL);
	CHECK_EQ(cow_log_parse_level("", &l), -EINVAL);
}
