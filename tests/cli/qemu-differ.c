// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Hostile images of the fuzz targets (fuzzimage.h), shown to libcow and to QEMU: both
 * open an image or neither does, see the same size and, sector by sector, read the same
 * or fail; and where one's check finds a corruption the other's does. What is known to
 * differ stands in the tables below, with its reason; anything else is a finding.
 *
 * Each image has its own seed, so SEED=n DIFFER_RUNS=1 shows one again. DIFFER_RUNS: how
 * many of each format; DIFFER_KEEP: a folder where those with a finding are put.
 */
#include "test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <regex.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cow/log.h"
#include "fuzzimage.h"
#include "qcow/qcow-priv.h"

#define RUNS 80u
#define RUNS_FULL 10000u
#define SECTOR 512u
#define CHUNK COW_KIB(64)
#define INPUT_MAX 4096u
#define PATCH_BYTES 10u
#define LOOK_MAX COW_MIB(4)	/* virtual bytes that are read */
#define SIZES 3u		/* of fuzzimage's, those below that */
#define TEXT_MAX 16384u
#define FINDINGS_MAX 20u
#define LINES_MAX 6u
#define LEAKS 3			/* qemu-img check's exit status: nothing worse */

/* What one of the two says of an image. */
struct view {
	bool opens, damaged;	/* damaged: check finds a corruption, or cannot go on */
	uint64_t size;
	uint8_t *data;		/* of what can be read, else 0 */
	bool *unread;		/* of each sector */
	char text[TEXT_MAX];	/* why it does not open, or what check finds */
};

/* A difference that is none: both texts match. */
struct known {
	const char *ours, *theirs;
	const char *why;
};

/* ---- libcow ---- */

static void add_text(struct view *v, const char *line)
{
	size_t used = strlen(v->text);

	snprintf(v->text + used, sizeof(v->text) - used, "%s\n", line);
}

static void take_finding(struct cow_report *rep, const char *sentence)
{
	add_text(rep->opaque, sentence);
}

static struct cow_chain *open_ours(const struct fuzzimage_kind *kind, struct cow_sim *sim, uint32_t flags,
				   struct view *v)
{
	struct cow_chain_cfg cfg = {
		.format = kind->format, .path = FUZZIMAGE, .flags = flags, .no_backing = true,
		.cache_bytes = COW_KIB(256), .io = &cow_io_sim_ops, .io_arg = sim,
	};
	struct cow_chain *c = NULL;
	struct cow_err err = { 0 };

	if (cow_chain_open(&cfg, &c, &err) == 0)
		return c;
	add_text(v, err.msg);
	return NULL;
}

static void make_room(struct view *v)
{
	v->data = cow_zalloc(v->size);
	v->unread = cow_zalloc(cow_div_up(v->size, SECTOR));
	CHECK(v->data && v->unread);
}

/* Sector by sector where it does not go at once. */
static void read_ours(struct cow_chain *c, struct view *v)
{
	for (uint64_t at = 0; at < v->size; at += CHUNK) {
		uint64_t end = cow_min(at + CHUNK, v->size);

		if (cow_chain_pread(c, v->data + at, end - at, at) == 0)
			continue;
		for (uint64_t s = at; s < end; s += SECTOR) {
			size_t n = cow_min(SECTOR, end - s);

			v->unread[s / SECTOR] = cow_chain_pread(c, v->data + s, n, s) != 0;
			if (v->unread[s / SECTOR])
				memset(v->data + s, 0, n);
		}
	}
}

static void check_ours(const struct fuzzimage_kind *kind, struct cow_sim *sim, struct view *v)
{
	struct cow_chain *c = open_ours(kind, sim, COW_OPEN_CHECK, v);
	struct cow_report rep = { .say = take_finding, .opaque = v };
	struct cow_err err = { 0 };
	int rc;

	v->damaged = true;
	if (!c)
		return;
	rc = cow_chain_check(c, &rep, 0, &err);
	v->damaged = rc || rep.corruptions;
	if (rc)
		add_text(v, err.msg);
	(void)cow_chain_close(c);
}

static void ask_ours(const struct fuzzimage_kind *kind, struct cow_sim *sim, struct view *v)
{
	struct cow_chain *c = open_ours(kind, sim, 0, v);

	if (!c)
		return;
	v->opens = true;
	v->size = cow_chain_size(c);
	if (v->size <= LOOK_MAX) {
		make_room(v);
		read_ours(c, v);
	}
	(void)cow_chain_close(c);
	check_ours(kind, sim, v);
}

/* ---- QEMU ---- */

static char *path_of(const char *name)
{
	static char buf[4][4096];
	static unsigned turn;
	char *p = buf[turn++ % 4];

	snprintf(p, sizeof(buf[0]), "%s/%s", test_tmp(), name);
	return p;
}

/* How it ended; what it said on standard output and error goes to the files "out" and "err". */
static int run_qemu_img(char *const argv[])
{
	posix_spawn_file_actions_t to;
	int status;
	pid_t pid;

	CHECK_EQ(posix_spawn_file_actions_init(&to), 0);
	CHECK_EQ(posix_spawn_file_actions_addopen(&to, 1, path_of("out"), O_WRONLY | O_CREAT | O_TRUNC, 0600), 0);
	CHECK_EQ(posix_spawn_file_actions_addopen(&to, 2, path_of("err"), O_WRONLY | O_CREAT | O_TRUNC, 0600), 0);
	CHECK_EQ(posix_spawnp(&pid, "qemu-img", &to, NULL, argv, environ), 0);
	posix_spawn_file_actions_destroy(&to);
	CHECK(waitpid(pid, &status, 0) == pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The file, up to the room there is. */
static void slurp(const char *name, char *buf, size_t size)
{
	FILE *f = fopen(path_of(name), "r");

	CHECK(f);
	buf[fread(buf, 1, size - 1, f)] = 0;
	fclose(f);
}

/* The image without its base, which is none of our business. */
static char *address(const struct fuzzimage_kind *kind)
{
	static char buf[5000];

	snprintf(buf, sizeof(buf), "json:{\"driver\":\"%s\",\"backing\":null,\"file\":{\"driver\":\"file\","
		 "\"filename\":\"%s\"}}", kind->format, path_of("image"));
	return buf;
}

static uint64_t number_after(const char *text, const char *member)
{
	const char *p = strstr(text, member);

	return p ? strtoull(p + strlen(member), NULL, 10) : 0;
}

static void check_theirs(const struct fuzzimage_kind *kind, struct view *v)
{
	int rc = run_qemu_img((char *[]){ "qemu-img", "check", address(kind), NULL });

	slurp("err", v->text, sizeof(v->text));
	v->damaged = rc && rc != LEAKS;
}

/* The sectors that a salvaging conversion complains of. */
static void take_unread(struct view *v)
{
	static const char words[] = "offset ";
	char line[1024];
	FILE *f = fopen(path_of("err"), "r");

	CHECK(f);
	while (fgets(line, sizeof(line), f)) {
		uint64_t at = number_after(line, words);

		if (strstr(line, "error while reading ") && at < v->size)
			v->unread[at / SECTOR] = true;
	}
	fclose(f);
}

static void read_theirs(const struct fuzzimage_kind *kind, struct view *v)
{
	int rc = run_qemu_img((char *[]){ "qemu-img", "convert", "--salvage", "-O", "raw", address(kind),
					  path_of("raw"), NULL });
	FILE *f = fopen(path_of("raw"), "r");

	v->opens = rc == 0 && f;
	if (!v->opens) {
		slurp("err", v->text, sizeof(v->text));
	} else {
		fseek(f, 0, SEEK_END);
		v->size = (uint64_t)ftell(f);
		rewind(f);
		make_room(v);
		CHECK(fread(v->data, 1, v->size, f) == v->size);
		take_unread(v);
	}
	if (f)
		fclose(f);
	unlink(path_of("raw"));
}

/* Does it open? For images that are not read. */
static void open_theirs(const struct fuzzimage_kind *kind, struct view *v)
{
	char out[4096];

	v->opens = run_qemu_img((char *[]){ "qemu-img", "info", "--output=json", address(kind), NULL }) == 0;
	slurp("out", out, sizeof(out));
	slurp("err", v->text, sizeof(v->text));
	v->size = number_after(out, "\"virtual-size\": ");
}

/* ---- the two of them ---- */

#define ALL_LINES(line) "^((" line ")[^\n]*\n)+$"	/* and nothing else */

/* Images that one opens and the other refuses. */
static const struct known opening[] = {
	{ "table is misplaced", "^$", "behind the end of the file: to QEMU there are zeroes" },
	{ "tables? overlaps?", "^$", "QEMU looks for that when it writes" },
	{ "name of the base (lies outside|is misplaced)", "^$", "in the header's own fields: QEMU does not mind" },
	{ "of its base is not a (path|name)", "^$", "QEMU would see when it opens the base" },
	{ "", "napshot", "the disk is read even where the snapshots are damaged" },
	{ "", "Header extension too large", "what marks the end of the extensions has a length" },
	{ "", "data-file-raw requires a data file", "a bit that means nothing then, and is cleared by a write" },
	{ "file, which it does not name", "^$", "qemu-img info does without the data file" },
	{ "header length is not possible", "^$", "no multiple of 8" },
	{ "size is not between 1 byte", "^$", "an empty disk" },
	{ "", "Input/output error", "a name of no bytes at a place that cannot be: it has no base" },
	{ "L1 table would be larger than 32 MiB", "^$", "QEMU takes 2 GiB of memory for it" },
};

/* What only one of the checks takes for a corruption. */
static const struct known checking[] = {
	{ ALL_LINES("leaked"), ALL_LINES("Leaked|ERROR OFLAG_COPIED"),
	  "with a refcount that is too high, the flag is right and the refcount a leak" },
	{ "snapshot [0-9]+ has a misplaced L1 table", "^$", "all zero: an empty snapshot to QEMU" },
	{ ALL_LINES("cluster [0-9]+ is metadata and something|leaked"), "^(Leaked[^\n]*\n)*$",
	  "where the refcount agrees QEMU looks no further" },
	{ ALL_LINES("L2 entry of byte [0-9]+ is damaged"), "^$",
	  "zeroes by an entry, in version 2: neither reads them, QEMU's check is silent" },
};

struct differ {
	const struct fuzzimage_kind *kind;
	bool qcow1;
	struct cow_sim *sim;		/* with the image */
	uint64_t seed;			/* of that */
	const char *name;		/* or its file in the corpus; NULL: from the seed */
	unsigned images, opened, read, checked, damaged, excused, findings;
};

static bool matches(const char *text, const char *pattern)
{
	regex_t re;
	bool yes;

	CHECK_EQ(regcomp(&re, pattern, REG_EXTENDED | REG_NOSUB), 0);
	yes = regexec(&re, text, 0, NULL, 0) == 0;
	regfree(&re);
	return yes;
}

static bool is_known(const struct known *known, size_t n, const struct view *ours, const struct view *theirs)
{
	for (size_t i = 0; i < n; i++) {
		if (matches(ours->text, known[i].ours) && matches(theirs->text, known[i].theirs))
			return true;
	}
	return false;
}

static void write_image(struct cow_sim *sim, const char *path)
{
	static uint8_t buf[CHUNK];
	uint64_t size = cow_sim_size(sim, FUZZIMAGE);
	FILE *f = fopen(path, "w");

	CHECK(f);
	for (uint64_t at = 0; at < size; at += sizeof(buf)) {
		size_t n = cow_min(sizeof(buf), size - at);

		CHECK_EQ(cow_sim_read(sim, FUZZIMAGE, buf, n, at), 0);
		CHECK(fwrite(buf, 1, n, f) == n);
	}
	CHECK_EQ(fclose(f), 0);
}

static void keep(const struct differ *d)
{
	const char *folder = getenv("DIFFER_KEEP");
	char to[4096];

	if (!folder)
		return;
	snprintf(to, sizeof(to), "%s/%s-%" PRIu64 "%s", folder, d->kind->format, d->seed, d->name ? d->name : "");
	write_image(d->sim, to);
}

static void tell(const char *who, const char *text)
{
	fprintf(stderr, "  %s: %s", who, *text ? "" : "nothing\n");
	for (unsigned i = 0; *text && i < LINES_MAX; i++) {
		const char *end = strchrnul(text, '\n');

		fprintf(stderr, "%s%.*s\n", i ? "    " : "", (int)(end - text), text);
		text = *end ? end + 1 : end;
	}
	if (*text)
		fprintf(stderr, "    and so on\n");
}

static void finding(struct differ *d, const char *what, const struct view *ours, const struct view *theirs)
{
	if (d->findings++ < FINDINGS_MAX) {
		fprintf(stderr, "%s, %s %" PRIu64 "%s: %s\n", d->kind->format, d->name ? "corpus" : "SEED", d->seed,
			d->name ? d->name : "", what);
		tell("libcow", ours->text);
		tell("QEMU", theirs->text);
	}
	keep(d);
}

static bool sector_differs(const struct differ *d, const struct view *ours, const struct view *theirs,
			   uint64_t at)
{
	static const uint8_t zeroes[SECTOR];
	bool mine = !ours->unread[at / SECTOR], its = !theirs->unread[at / SECTOR];

	/* A place that no file can have is behind the end of the file to QEMU's qcow. */
	if (its && !mine && d->qcow1 && ours->damaged)
		return memcmp(theirs->data + at, zeroes, SECTOR) != 0;
	return mine != its || memcmp(ours->data + at, theirs->data + at, SECTOR);
}

static void compare_contents(struct differ *d, const struct view *ours, const struct view *theirs)
{
	char what[200];
	uint8_t more[4];

	/* The part of a sector at the end is not there for QEMU. */
	if (ours->size / SECTOR * SECTOR != theirs->size) {
		snprintf(what, sizeof(what), "%" PRIu64 " and %" PRIu64 " bytes", ours->size, theirs->size);
		finding(d, what, ours, theirs);
		return;
	}
	CHECK_EQ(cow_sim_read(d->sim, FUZZIMAGE, more, sizeof(more), QCOW_H_BYTES), 0);
	if (!ours->data || (d->qcow1 && cow_get_be32(more) == QCOW_XEN_MAGIC))	/* QEMU does not know Xen's */
		return;
	d->read++;
	for (uint64_t at = 0; at < theirs->size; at += SECTOR) {
		if (!sector_differs(d, ours, theirs, at))
			continue;
		snprintf(what, sizeof(what), "byte %" PRIu64 ": %s by libcow, %s by QEMU", at,
			 ours->unread[at / SECTOR] ? "not read" : "read",
			 theirs->unread[at / SECTOR] ? "not read" : "read otherwise");
		finding(d, what, ours, theirs);
		return;
	}
}

static void compare_checks(struct differ *d, const struct view *ours, struct view *theirs)
{
	check_theirs(d->kind, theirs);
	d->checked++;
	d->damaged += ours->damaged && theirs->damaged;
	if (ours->damaged == theirs->damaged)
		return;
	if (is_known(checking, COW_ARRAY_SIZE(checking), ours, theirs))
		d->excused++;
	else
		finding(d, ours->damaged ? "damaged to libcow only" : "damaged to QEMU only", ours, theirs);
}

static void compare(struct differ *d, const struct view *ours, struct view *theirs)
{
	if (ours->opens && ours->size <= LOOK_MAX)
		read_theirs(d->kind, theirs);
	else
		open_theirs(d->kind, theirs);
	if (ours->opens != theirs->opens) {
		if (is_known(opening, COW_ARRAY_SIZE(opening), ours, theirs))
			d->excused++;
		else
			finding(d, ours->opens ? "libcow opens it" : "QEMU opens it", ours, theirs);
		return;
	}
	if (!ours->opens)
		return;
	d->opened++;
	compare_contents(d, ours, theirs);
	if (!d->qcow1)	/* QEMU has no check for it */
		compare_checks(d, ours, theirs);
}

static void show(struct differ *d, const uint8_t *input, size_t len)
{
	static struct view ours, theirs;
	struct fuzz_in in = { input, len };
	struct cow_sim *sim = cow_sim_new(1);

	CHECK(sim);
	fuzzimage_make(d->kind, sim, &in);
	write_image(sim, path_of("image"));
	d->sim = sim;
	memset(&ours, 0, sizeof(ours));
	memset(&theirs, 0, sizeof(theirs));
	ask_ours(d->kind, sim, &ours);
	compare(d, &ours, &theirs);
	d->images++;
	cow_free(ours.data);
	cow_free(ours.unread);
	cow_free(theirs.data);
	cow_free(theirs.unread);
	cow_sim_free(sim);
}

/* An image with few patches: so that most of it still means something. */
static size_t make_input(uint64_t seed, uint8_t *input)
{
	unsigned short state[3] = { (unsigned short)seed, (unsigned short)(seed >> 16), (unsigned short)(seed >> 32) };
	size_t patches;

	for (size_t i = 0; i < INPUT_MAX; i++)
		input[i] = (uint8_t)(nrand48(state) >> 16);
	input[2] %= SIZES;
	patches = 1 + input[3] % 3;
	input[3] = (uint8_t)patches;
	if (input[0] < 4) {
		input[0] = 0;	/* raw bytes */
		return INPUT_MAX;
	}
	input[0] = 1;
	return 4 + patches * PATCH_BYTES;
}

static unsigned runs(void)
{
	const char *said = getenv("DIFFER_RUNS"), *fault = getenv("FAULT");

	return said ? (unsigned)strtoul(said, NULL, 10) : fault && !strcmp(fault, "full") ? RUNS_FULL : RUNS;
}

static void show_corpus(struct differ *d)
{
	char folder[64], path[512];
	uint8_t input[INPUT_MAX];
	struct dirent *e;
	size_t n;
	FILE *f;
	DIR *dir;

	snprintf(folder, sizeof(folder), "tests/fuzz/corpus/%s", d->kind->format);
	dir = opendir(folder);
	CHECK(dir);
	while ((e = readdir(dir))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", folder, e->d_name);
		f = fopen(path, "r");
		CHECK(f);
		n = fread(input, 1, sizeof(input), f);
		fclose(f);
		d->name = e->d_name;
		show(d, input, n);
	}
	closedir(dir);
	d->name = NULL;
}

static void show_all(const struct fuzzimage_kind *kind, unsigned n)
{
	const struct cow_format *fmt;
	struct differ d = { .kind = kind, .qcow1 = kind == &fuzzimage_qcow };
	uint8_t input[INPUT_MAX];

	if (cow_format_find(kind->format, &fmt, NULL))
		test_skip("built without zlib and zstd");
	if (system("command -v qemu-img >/dev/null"))
		test_skip("qemu-img is not installed");
	cow_log_set_level((enum cow_log_level)0);
	if (n > 1)
		show_corpus(&d);
	for (unsigned i = 0; i < n; i++) {
		d.seed = test_seed() + i;
		show(&d, input, make_input(d.seed, input));
	}
	printf("%s: %u images, %u opened by both, %u of them read, %u checked, %u damaged to both; %u known to "
	       "differ, %u findings\n", kind->format, d.images, d.opened, d.read, d.checked, d.damaged,
	       d.excused, d.findings);
	CHECK_EQ(d.findings, 0);
}

TEST(qcow2)
{
	show_all(&fuzzimage_qcow2, runs());
}

TEST(qcow)
{
	show_all(&fuzzimage_qcow, runs() / 2 + 1);
}
