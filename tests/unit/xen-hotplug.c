// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What happens when Xen's toolstack adds and removes a disk, with a store in
 * memory and programs that write down how they were called and do as they
 * are told.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "contrib/xen/hotplug.h"
#include "contrib/xen/run.h"
#include "test.h"

#define NODES 16
#define PATH "backend/vbd/7/51712"

/* ---- the world ---- */

static struct {
	char path[128], value[512];
} nodes[NODES];
static unsigned n_nodes;
static bool store_broken, guest_alive, is_block;
static char dir[256];
static struct hotplug h;

static char *file(const char *name)
{
	static char path[4][512];
	static unsigned turn;

	snprintf(path[++turn % 4], sizeof(path[0]), "%s/%s", dir, name);
	return path[turn % 4];
}

static void set(const char *path, const char *value)
{
	unsigned i;

	for (i = 0; i < n_nodes && strcmp(nodes[i].path, path); i++)
		;
	CHECK(i < NODES);
	n_nodes = i == n_nodes ? n_nodes + 1 : n_nodes;
	snprintf(nodes[i].path, sizeof(nodes[i].path), "%s", path);
	snprintf(nodes[i].value, sizeof(nodes[i].value), "%s", value);
}

static const char *get(const char *path)
{
	unsigned i;

	for (i = 0; i < n_nodes; i++)
		if (!strcmp(nodes[i].path, path))
			return nodes[i].value;
	return NULL;
}

static char *store_read(void *arg, const char *path)
{
	const char *value = get(path);

	(void)arg;
	errno = ENOENT;
	return value ? cow_strdup(value) : NULL;
}

static int store_write(void *arg, const char *where, const struct hotplug_node *list, unsigned n)
{
	char path[256];
	unsigned i;

	(void)arg;
	if (store_broken)
		return -ENOENT;
	for (i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "%s/%s", where, list[i].name);
		set(path, list[i].value);
	}
	return 0;
}

static bool store_alive(void *arg, unsigned domain)
{
	(void)arg;
	CHECK_EQ(domain, 7);
	return guest_alive;
}

static bool numbers(const char *path, unsigned *ret_major, unsigned *ret_minor)
{
	CHECK_STR(path, "/dev/mapper/xen-7-51712");
	*ret_major = 253;
	*ret_minor = 17;
	return is_block;
}

static void write_file(const char *name, const char *text)
{
	FILE *f = fopen(file(name), "w");

	CHECK(f != NULL);
	fputs(text, f);
	CHECK_EQ(fclose(f), 0);
}

/* A program that writes down its words and then does @script; $D is the folder. */
static void program(const char *name, const char *script)
{
	char text[2048];

	snprintf(text, sizeof(text),
		 "#!/bin/sh\nD=%s\n{ printf '%s'; for w; do printf ' %%s' \"$w\"; done; echo; } "
		 ">>$D/calls\n%s\n", dir, name, script);
	write_file(name, text);
	CHECK_EQ(chmod(file(name), 0755), 0);
}

static const char *calls(void)
{
	static char text[8192];
	FILE *f = fopen(file("calls"), "r");
	size_t n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;

	if (f)
		fclose(f);
	text[n] = '\0';
	unlink(file("calls"));
	return text;
}

static char *cat(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static char *cat(const char *fmt, ...)
{
	static char text[8192];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return text;
}

static void driver(bool there)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/bus/xen-backend/devices/vbd-7-51712/driver", dir);
	if (!there) {
		rmdir(path);
		return;
	}
	mkdir(file("bus"), 0755);
	mkdir(file("bus/xen-backend"), 0755);
	mkdir(file("bus/xen-backend/devices"), 0755);
	mkdir(file("bus/xen-backend/devices/vbd-7-51712"), 0755);
	mkdir(path, 0755);
}

/* A guest with a disk of that text, everything in order; the overlay exists. */
static void world(const char *params, ...) __attribute__((format(printf, 1, 2)));
static void world(const char *params, ...)
{
	static char cowd[300], cowctl[300], cowimg[300];
	char text[1024];
	va_list ap;

	snprintf(dir, sizeof(dir), "%s/hp", test_tmp());
	mkdir(dir, 0755);
	snprintf(cowd, sizeof(cowd), "%s/cowd", dir);
	snprintf(cowctl, sizeof(cowctl), "%s/cowctl", dir);
	snprintf(cowimg, sizeof(cowimg), "%s/cowimg", dir);
	h = (struct hotplug){
		.store = { store_read, store_write, store_alive, NULL },
		.cowd = cowd, .cowctl = cowctl, .cowimg = cowimg, .sysfs = dir,
		.start_ms = 10000, .stop_ms = 100, .numbers = numbers,
	};
	n_nodes = 0;
	store_broken = false;
	guest_alive = is_block = true;
	va_start(ap, params);
	vsnprintf(text, sizeof(text), params, ap);
	va_end(ap);
	set(PATH "/params", text);
	set(PATH "/mode", "w");
	set("domid", "0");
	driver(true);
	write_file("over", "x");
	program("cowd", "echo /dev/mapper/xen-7-51712");
	program("cowimg", "while [ $1 != -- ]; do shift; done; echo image >\"$2\"");
	program("cowctl", "[ $1 != list ]");
	calls();
}

static void add_ok(void)
{
	struct cow_err err = { 0 };

	if (hotplug_add(&h, PATH, &err))
		FAIL("%s", err.msg);
}

static void add_fails(const char *part)
{
	struct cow_err err = { 0 };

	CHECK(hotplug_add(&h, PATH, &err) < 0);
	if (!strstr(err.msg, part))
		FAIL("said \"%s\", without \"%s\"", err.msg, part);
	CHECK(!strchr(err.msg, '\n'));
	CHECK(!get(PATH "/physical-device"));
	CHECK(!get(PATH "/hotplug-status"));
}

/* ---- add ---- */

TEST(add_node)
{
	world("dscow:%s/over", "/tmp/nowhere");
	world("dmu:dscow:%s", file("over"));
	add_ok();
	CHECK_STR(calls(), cat("cowd -p dscow -- xen-7-51712 %s\n", file("over")));
	CHECK_STR(get(PATH "/physical-device"), "fd:11");
	CHECK_STR(get(PATH "/physical-device-path"), "/dev/mapper/xen-7-51712");
	CHECK_STR(get(PATH "/hotplug-status"), "connected");
}

TEST(add_with_all_options)
{
	world("dscow:%s:/b,opt=a=1\\,2,opt=c=d", file("over"));
	set(PATH "/mode", "r");
	add_ok();
	CHECK_STR(calls(), cat("cowd -p dscow -r -b /b -o a=1,,2 -o c=d -- xen-7-51712 %s\n",
			       file("over")));
	world("dscow:%s,ro", file("over"));
	add_ok();
	CHECK_STR(calls(), cat("cowd -p dscow -r -- xen-7-51712 %s\n", file("over")));
}

TEST(add_makes_the_overlay)
{
	world("dscow:%s:/b,base-format=qcow2,create=1M", file("new"));
	unlink(file("new"));
	add_ok();
	CHECK_STR(calls(), cat("cowimg create -q -f dscow -b /b -F qcow2 -- %s 1048576\n"
			       "cowd -p dscow -b /b -- xen-7-51712 %s\n", file("new"),
			       file("new")));
	CHECK_EQ(access(file("new"), F_OK), 0);

	world("dscow:%s:/b,create=no", file("new"));
	unlink(file("new"));
	add_fails("new does not exist, and create=no is given");
	CHECK_STR(calls(), "");

	/* Nothing to make it of: cowd says what it thinks of that. */
	world("dscow:%s", file("new"));
	add_ok();
	CHECK_STR(calls(), cat("cowd -p dscow -- xen-7-51712 %s\n", file("new")));
}

TEST(add_ring)
{
	world("dscow:%s,ring", file("over"));
	driver(false);
	add_ok();
	CHECK_STR(calls(), cat("cowd -p dscow --frontend=xen "
			       "--xenbus=/local/domain/0/" PATH " -- xen-7-51712 %s\n",
			       file("over")));
	CHECK(!get(PATH "/physical-device"));
	CHECK_STR(get(PATH "/hotplug-status"), "connected");

	world("dscow:%s,ring", file("over"));
	set(PATH "/state", "2");
	add_fails("xen-blkback has taken this device");
	CHECK_STR(get(PATH "/state"), "2");	/* its own to end */
	world("dscow:%s", file("over"));
	driver(false);
	add_fails("no xen-blkback in the kernel has taken this device of type vbd");
	CHECK_STR(get(PATH "/state"), "6");
	CHECK_STR(calls(), "");
}

TEST(add_other_type)
{
	struct cow_err err = { 0 };

	world("dscow:%s", file("over"));
	set("/local/domain/3/backend/vbd3/7/51712/params", get(PATH "/params"));
	set("/local/domain/3/backend/vbd3/7/51712/mode", "w");
	CHECK_EQ(hotplug_add(&h, "/local/domain/3/backend/vbd3/7/51712", &err), 0);
	CHECK_STR(calls(), cat("cowd -p dscow --frontend=xen "
			       "--xenbus=/local/domain/3/backend/vbd3/7/51712 -- xen-7-51712 %s\n",
			       file("over")));
	set("/local/domain/3/backend/vbd3/7/51712/hotplug-status", "");
	set("/local/domain/3/backend/vbd3/7/51712/params", "dscow:/x,node");
	CHECK(hotplug_add(&h, "/local/domain/3/backend/vbd3/7/51712", &err) < 0);
	CHECK_STR(err.msg, "option node: the kernel serves no devices of type vbd3");
	CHECK_STR(get("/local/domain/3/backend/vbd3/7/51712/state"), "6");
	/* As libxl writes it for backendtype=tap. */
	set("/local/domain/3/backend/vbd3/7/51712/params", cat("aio:raw:%s", file("over")));
	err = (struct cow_err){ 0 };
	CHECK_EQ(hotplug_add(&h, "/local/domain/3/backend/vbd3/7/51712", &err), 0);
	CHECK(strstr(calls(), "cowd -p raw --frontend=xen "));
}

TEST(add_under_systemd)
{
	world("dscow:%s", file("over"));
	program("systemd-run", "while [ $1 != -- ]; do shift; done; shift; exec \"$@\"");
	h.systemd_run = file("systemd-run");
	add_ok();
	CHECK_STR(calls(), cat("systemd-run --scope --quiet --collect --slice=system.slice "
			       "--property=After=local-fs.target --property=After=remote-fs.target "
			       "--property=Before=xendomains.service --property=TimeoutStopSec=300 "
			       "-- %s -p dscow -- xen-7-51712 %s\ncowd -p dscow -- xen-7-51712 %s\n", h.cowd,
			       file("over"), file("over")));
}

TEST(add_again)
{
	world("dscow:%s", file("over"));
	add_ok();
	calls();
	program("cowctl", "echo 'xen-7-5171         dead      dscow -'\n"
			  "echo 'xen-7-51712        running   dscow /dev/mapper/xen-7-51712 /x'");
	add_ok();
	CHECK_STR(calls(), "cowctl list\n");
	program("cowctl", "echo 'xen-7-51712        dead      dscow /dev/mapper/xen-7-51712 /x'");
	add_ok();
	CHECK_STR(calls(), cat("cowctl list\ncowd -p dscow -- xen-7-51712 %s\n", file("over")));
	/* Where it cannot be started again, what the guest has is left alone. */
	program("cowd", "echo 'cowd: no' >&2; exit 1");
	struct cow_err err = { 0 };
	CHECK(hotplug_add(&h, PATH, &err) < 0);
	CHECK_STR(err.msg, "cowd: no");
	CHECK_STR(calls(), cat("cowctl list\ncowd -p dscow -- xen-7-51712 %s\n", file("over")));
}

/* ---- add fails ---- */

TEST(bad_nodes)
{
	static const char *const paths[] = {
		"", "backend", "backend/", "backend/vbd", "backend/vbd/1", "backend/vbd/1/",
		"backend/vbd/x/1", "backend/vbd/1/51712/", "backend/vbd/1/-1", "xbackend/vbd/1/2",
		"backend//1/2", "backend/vbd/1/99999999999", "backend/vbd/1/2x",
		"backend/0123456789012345678901234567890123456789/1/2", "/local/domain/1/device/vbd/2",
	};
	unsigned i;

	world("dscow:%s", file("over"));
	for (i = 0; i < COW_ARRAY_SIZE(paths); i++) {
		struct cow_err err = { 0 };

		CHECK_EQ(hotplug_add(&h, paths[i], &err), -EINVAL);
		CHECK_EQ(n_nodes, 3);
		CHECK(strstr(err.msg, "is not the path of a backend"));
	}
	world("dscow:over");
	add_fails("disk \"dscow:over\": the path of the overlay, \"over\", does not begin");
	n_nodes = 0;
	add_fails("xenstore: " PATH "/params: No such file");
	set(PATH "/params", "dscow:/x");
	add_fails("xenstore: " PATH "/mode: No such file");
	CHECK_STR(calls(), "");
}

TEST(cowd_fails)
{
	world("dscow:%s:/b", file("new"));
	unlink(file("new"));
	program("cowd", "echo 'cowd: warning' >&2; printf 'cowd: \\033[1m%s is in use\\n\\n' x >&2; exit 1");
	add_fails("cowd: ?[1mx is in use");
	CHECK(access(file("new"), F_OK));

	world("dscow:%s:/b", file("over"));
	program("cowd", "exit 3");
	add_fails("cowd failed (status 3) and did not say why");
	CHECK_EQ(access(file("over"), F_OK), 0);
	program("cowd", "kill -9 $$");
	add_fails("cowd was killed by a signal (Killed)");
	h.cowd = "/nonexistent/cowd";
	add_fails("/nonexistent/cowd cannot be run: No such file");

	world("dscow:%s:/b", file("new"));
	unlink(file("new"));
	program("cowimg", "echo 'cowimg: /b: no' >&2; exit 1");
	add_fails("cowimg: /b: no");
	CHECK_STR(calls(), cat("cowimg create -q -f dscow -b /b -F raw -- %s\n", file("new")));
}

TEST(long_sentence)
{
	world("dscow:%s", file("over"));
	program("cowd", "i=0; while [ $i -lt 3000 ]; do printf 'word '; i=$((i+1)); done >&2; exit 1");
	add_fails("word word");
	program("cowd", "head -c 3000000 /dev/zero | tr '\\0' '\\n' >&2; echo end >&2; echo >&2\n"
			"exit 1");
	add_fails("end");
}

static void kill_named(const char *path)
{
	FILE *f = fopen(path, "re");
	int pid = 0;

	CHECK(f && fscanf(f, "%d", &pid) == 1 && pid > 1);
	fclose(f);
	kill(pid, SIGKILL);
	unlink(path);
}

/* What was made in vain goes, unless somebody has it. */
TEST(overlay_in_use)
{
	world("dscow:%s:/b", file("new"));
	unlink(file("new"));
	program("cowd", "sleep 30 </dev/null >/dev/null 2>&1 & echo $! >$D/sleeper; exit 1");
	add_fails("cowd failed");
	kill_named(file("sleeper"));
	CHECK(access(file("new"), F_OK));

	program("cowd", "mv $D/new $D/other; echo mine >$D/new; exit 1");
	add_fails("cowd failed");
	CHECK_EQ(access(file("new"), F_OK), 0);
	unlink(file("new"));
	unlink(file("other"));
}

TEST(slow_programs)
{
	world("dscow:%s", file("over"));
	h.start_ms = 200;
	program("cowd", "exec sleep 30");
	add_fails("cowd did not end in time and was killed");
}

TEST(store_fails)
{
	world("dscow:%s:/b", file("new"));
	unlink(file("new"));
	store_broken = true;
	add_fails("xenstore: " PATH ": No such file");
	CHECK(strstr(calls(), "\ncowctl stop --force xen-7-51712\n"));
	CHECK(access(file("new"), F_OK));

	world("dscow:%s", file("over"));
	is_block = false;
	add_fails("xen-7-51712: no block device could be made");
	CHECK(strstr(calls(), "\ncowctl stop --force xen-7-51712\n"));
}

/* ---- remove ---- */

static int remove_disk(struct cow_err *err)
{
	memset(err, 0, sizeof(*err));
	return hotplug_remove(&h, PATH, err);
}

TEST(remove_stops)
{
	struct cow_err err;

	world("dscow:%s", file("over"));
	n_nodes = 0;	/* xenstore may have forgotten the disk already */
	CHECK_EQ(remove_disk(&err), 0);
	CHECK_STR(calls(), "cowctl stop xen-7-51712\n");
}

TEST(remove_what_is_gone)
{
	struct cow_err err;

	world("dscow:%s", file("over"));
	program("cowctl", "[ $1 = list ] || { echo 'cowctl: no' >&2; exit 1; }\n"
			  "echo 'xen-7-517120       running   dscow - -'");
	CHECK_EQ(remove_disk(&err), 0);
	CHECK_STR(calls(), "cowctl stop xen-7-51712\ncowctl list\n");
	CHECK_EQ(hotplug_remove(&h, "nonsense", &err), -EINVAL);
}

#define IN_USE "[ $1 != list ] || { echo 'xen-7-51712   running  dscow - -'; exit; }\n"

TEST(remove_waits)
{
	struct cow_err err;

	world("dscow:%s", file("over"));
	h.stop_ms = 5000;
	program("cowctl", IN_USE "[ -e $D/twice ] && rm $D/twice && exit\n"
			  "touch $D/twice; echo 'cowctl: in use' >&2; exit 1");
	CHECK_EQ(remove_disk(&err), 0);
	CHECK_STR(calls(), "cowctl stop xen-7-51712\ncowctl list\ncowctl stop xen-7-51712\n");
}

TEST(remove_in_use)
{
	struct cow_err err;

	world("dscow:%s", file("over"));
	program("cowctl", IN_USE "[ $2 = --force ] || { echo 'cowctl: in use' >&2; exit 1; }");
	CHECK(remove_disk(&err) < 0);
	CHECK_STR(err.msg, "cowctl: in use");
	CHECK(!strstr(calls(), "--force"));
	guest_alive = false;
	CHECK_EQ(remove_disk(&err), 0);
	CHECK(strstr(calls(), "\ncowctl stop --force xen-7-51712\n"));
}

/* A cowd that was killed has left changes behind that only another one can bring home. */
TEST(remove_the_dead)
{
	struct cow_err err;

	world("dscow:%s", file("over"));
	program("cowctl", "[ ! -e $D/alive ] || exit 0\n"
			  "[ $1 = list ] || { echo 'cowctl: dead' >&2; exit 1; }\n"
			  "echo 'xen-7-51712   dead  dscow - -'");
	program("cowd", "touch $D/alive; echo /dev/mapper/xen-7-51712");
	CHECK_EQ(remove_disk(&err), 0);
	CHECK_STR(calls(), cat("cowctl stop xen-7-51712\ncowctl list\n"
			       "cowd -p dscow -- xen-7-51712 %s\ncowctl stop xen-7-51712\n",
			       file("over")));
	unlink(file("alive"));
}

/* ---- programs ---- */

TEST(run_words)
{
	struct cow_err err = { 0 };
	struct run_args a = { .n = 0 };
	char *out = NULL;
	unsigned i;

	world("dscow:%s", file("over"));
	run_add(&a, "/bin/echo");
	run_add(&a, "a b; $(exit 1) `exit 1` '\"");
	CHECK_EQ(run_program(&a, 10000, &out, &err), 0);
	CHECK_STR(out, "a b; $(exit 1) `exit 1` '\"\n");
	cow_free(out);
	for (i = 0; i < RUN_WORDS; i++)
		run_add(&a, "x");
	CHECK_EQ(run_program(&a, 10000, NULL, &err), -E2BIG);
}

TEST(run_leaves_daemons)
{
	struct cow_err err = { 0 };
	struct run_args a = { .n = 0 };
	char *out = NULL;

	/* It holds the pipe and is not waited for. */
	world("dscow:%s", file("over"));
	program("cowd", "echo first; (sleep 2; :) & exit 0");
	run_add(&a, h.cowd);
	CHECK_EQ(run_program(&a, 1500, &out, &err), 0);
	CHECK_STR(out, "first\n");
	cow_free(out);
}
