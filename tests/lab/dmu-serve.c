// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A small daemon for the target "userspace", so that the kernel's side is tested
 * without cowd: device 0 takes the writes, device 1 is the base. Its state lies in a
 * file that is mapped, so that it outlives kill -9; it answers with sections, with
 * blocks that are copied, with temporary places, and revokes at random.
 *
 *	dmu-serve -k KEY -s STATE -0 DEVICE -1 DEVICE [-m sections|blocks|mixed]
 *		[-g GRANULE_SHIFT] [-r REVOKE_EVERY] [-t PERCENT_TEMPORARY] [-S SEED] [-w]
 *		[-c FAIL_COMMIT_ERRNO] [-a FAIL_ASK_ERRNO] [-z FAIL_CHANGE_ERRNO] [-n] [-N] [-u]
 *		[-C COMMITTED] [-d PERCENT_DATA] [-p PERCENT_MADE]
 *
 * -w waits for its turn (DMU_HELLO_WAIT), -n answers nothing, -N only questions, -u answers that
 * permit no write. In block mode, -d: reads answered by the bytes themselves (DMU_DATA), -p: writes
 * answered by a place that was made here, instead of one to copy to (DMU_BLOCKS_CHANGED). -C: at each DMU_COMMIT the state is copied to that file: what a power cut leaves.
 * SIGTERM: hands over (DMU_LEAVE) and exits with 0. At the end: counts on standard output.
 *
 * Block mode: block N lives at N's place in the second half of device 0 with neighbours exchanged, so
 * that two blocks side by side are rarely side by side there.
 */
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "dmuchan.h"

#define SECTOR 512u
#define BUFFER (4 * DMU_RECORD_MAX)

/* Of the state file: one byte a granule or block. */
enum { ABSENT, PRESENT };

static struct {
	const char *key, *state, *path[2], *mode, *committed;
	uint32_t shift, revoke_every, temporary, data, made;
	int fail_commit, fail_ask, fail_change;
	bool wait, mute, mute_but_ask, useless;
	unsigned int seed;
} opt = { .mode = "sections", .shift = DMU_GRANULE_SHIFT_MIN, .seed = 1 };

static int chan, dev[2];
static uint64_t sectors, dev_sectors[2];
static uint32_t block;
static uint8_t *state;
static uint64_t revoke_id, revoking_start;
static bool revoking;
static volatile sig_atomic_t stop;
static bool io_failed;		/* since the last request */
static unsigned long n_ask, n_written, n_commit, n_change, n_revoked;

/* Asked while a revocation was under way: answered when it is done. */
#define HELD_MAX 4096
static struct dmu_ask held[HELD_MAX];
static unsigned int helds;

static void on_term(int sig)
{
	(void)sig;
	stop = 1;
}

static bool is_blocks(uint64_t start)
{
	if (!strcmp(opt.mode, "mixed"))
		return (start >> DMU_SECTION_SHIFT) & 1;
	return !strcmp(opt.mode, "blocks");
}

static uint32_t unit_shift(uint64_t start)
{
	return is_blocks(start) ? (uint32_t)__builtin_ctz(block) : opt.shift;
}

/* One byte for each 4 KiB: the first of a unit stands for it. */
static uint8_t *unit_state(uint64_t sector)
{
	uint32_t shift = unit_shift(sector);

	return &state[sector >> shift << shift >> DMU_GRANULE_SHIFT_MIN];
}

/* Where block mode has a block: its neighbours changed places. */
static uint64_t block_place(uint64_t sector)
{
	uint64_t half = (dev_sectors[0] / 2) & ~(uint64_t)(DMU_SECTION_SECTORS - 1);

	return half + (sector ^ block);
}

static uint64_t section_end(uint64_t start)
{
	uint64_t end = (start & ~(uint64_t)(DMU_SECTION_SECTORS - 1)) + DMU_SECTION_SECTORS;

	return end < sectors ? end : sectors;
}

static void put(const void *record, size_t size)
{
	int r = dmu_put(chan, record, size);

	/* A suspension without flushing takes requests back; a revocation may cross an answer. */
	if (r && r != -ENOENT)
		die("dmu-serve: record of type %u: %s", ((const struct dmu_head *)record)->type,
		    strerror(-r));
}

/* ---- data ---- */

static void move_data(int from, uint64_t from_at, int to, uint64_t to_at, uint32_t count)
{
	static uint8_t *buf;
	ssize_t bytes = (ssize_t)count * SECTOR;

	if (!buf && posix_memalign((void **)&buf, 4096, (size_t)DMU_SECTION_SECTORS * SECTOR))
		die("dmu-serve: no memory");
	if (from < 0)
		memset(buf, 0, (size_t)bytes);
	else if (pread(from, buf, (size_t)bytes, (off_t)(from_at * SECTOR)) != bytes)
		io_failed = true;
	if (pwrite(to, buf, (size_t)bytes, (off_t)(to_at * SECTOR)) != bytes)
		io_failed = true;
}

/* Copies a block to its own place. */
static void make_block(uint64_t start)
{
	uint64_t first = start & ~(uint64_t)(block - 1), left = section_end(first) - first;
	uint64_t whole = left < block ? left : block, have = 0;

	if (first < dev_sectors[1])
		have = dev_sectors[1] - first < whole ? dev_sectors[1] - first : whole;
	if (have)
		move_data(dev[1], first, dev[0], block_place(first), (uint32_t)have);
	if (have < whole)
		move_data(-1, 0, dev[0], block_place(first) + have, (uint32_t)(whole - have));
	if (!io_failed)
		*unit_state(start) = PRESENT;
}

/* ---- answers ---- */

static void answer_section(uint64_t id, uint64_t start)
{
	static union {
		struct dmu_section s;
		uint8_t raw[DMU_RECORD_MAX];
	} rec;
	struct dmu_plane *pl = (struct dmu_plane *)(&rec.s + 1);
	uint8_t *bits = (uint8_t *)(pl + 2);
	uint32_t length, granules, i;
	int r;

	start &= ~(uint64_t)(DMU_SECTION_SECTORS - 1);
	length = section_end(start) - start;
	granules = ((length - 1) >> opt.shift) + 1;
	memset(&rec, 0, sizeof(rec));
	rec.s.head.type = DMU_SECTION;
	rec.s.head.id = id;
	rec.s.start = start;
	rec.s.sectors = length;
	rec.s.planes = 2;
	rec.s.granule_shift = opt.shift;
	rec.s.flags = opt.useless ? 0 : DMU_SECTION_WRITE;
	pl[0].position = start;
	pl[0].limit = length;
	pl[0].flags = DMU_PLANE_BITS;
	for (i = 0; i < granules; i++)
		if (*unit_state(start + ((uint64_t)i << opt.shift)))
			bits[i / 8] |= 1 << i % 8;
	pl[1].dev = start < dev_sectors[1] ? 1 : DMU_DEV_ZERO;
	pl[1].position = pl[1].dev == 1 ? start : 0;
	pl[1].limit = length;
	if (pl[1].dev == 1 && dev_sectors[1] - start < length)
		pl[1].limit = dev_sectors[1] - start;
	rec.s.head.size = sizeof(rec.s) + 2 * sizeof(*pl) + (granules + 63) / 64 * 8;
	r = dmu_put(chan, &rec, rec.s.head.size);
	if (r && r != -ENOENT)
		die("dmu-serve: section at %llu: %s", (unsigned long long)start, strerror(-r));
}

static bool chance(uint32_t percent)
{
	return percent && (uint32_t)rand() % 100 < percent;
}

/* As many of the bytes as a record has room for; fewer at the base's end. */
static void answer_data(const struct dmu_ask *a)
{
	static union {
		struct dmu_data d;
		uint8_t raw[DMU_RECORD_MAX];
	} rec;
	static uint8_t *buf;
	uint32_t count = a->need < 24 ? a->need : 24;
	uint64_t first = a->at & ~(uint64_t)(block - 1), at = a->at;
	int from = 1;

	if (!buf && posix_memalign((void **)&buf, 4096, 24 * SECTOR))
		die("dmu-serve: no memory");
	if (count > first + block - a->at)
		count = (uint32_t)(first + block - a->at);
	if (*unit_state(a->at)) {
		from = 0;
		at = block_place(first) + (a->at - first);
	} else if (a->at < dev_sectors[1] && dev_sectors[1] - a->at < count) {
		count = (uint32_t)(dev_sectors[1] - a->at);
	}
	memset(buf, 0, 24 * SECTOR);
	if ((from == 0 || a->at < dev_sectors[1]) &&
	    pread(dev[from], buf, count * SECTOR, (off_t)(at * SECTOR)) != (ssize_t)(count * SECTOR)) {
		dmu_result(chan, a->head.id, -EIO);
		return;
	}
	rec.d = (struct dmu_data){
		.head = { DMU_DATA, (uint32_t)sizeof(rec.d) + count * SECTOR, a->head.id },
		.start = a->at, .sectors = count,
	};
	memcpy(&rec.d + 1, buf, count * SECTOR);
	put(&rec, rec.d.head.size);
}

static void answer_blocks(const struct dmu_ask *a)
{
	struct dmu_blocks b = { .head = { DMU_BLOCKS, sizeof(b), a->head.id } };
	uint64_t left = section_end(a->start) - a->start;

	b.start = a->start;
	b.sectors = left < block ? left : block;
	b.flags = DMU_BLOCKS_READ;
	if (a->op == DMU_OP_READ && chance(opt.data)) {
		answer_data(a);
		return;
	}
	io_failed = false;
	/* Half in the base and half behind it: no answer says that. */
	if (a->start < dev_sectors[1] && dev_sectors[1] - a->start < b.sectors && !*unit_state(a->start))
		make_block(a->start);
	if (a->op == DMU_OP_WRITE && !opt.useless && !*unit_state(a->start) && chance(opt.made)) {
		make_block(a->start);
		b.flags |= DMU_BLOCKS_CHANGED;
	}
	if (io_failed) {
		dmu_result(chan, a->head.id, -EIO);
		return;
	}
	if (chance(opt.temporary))
		b.flags |= DMU_BLOCKS_TEMPORARY;
	if (*unit_state(a->start)) {
		b.flags |= DMU_BLOCKS_WRITE;
		b.position = block_place(a->start);
	} else if (a->op == DMU_OP_READ || opt.useless) {
		b.dev = a->start < dev_sectors[1] ? 1 : DMU_DEV_ZERO;
		b.position = b.dev == 1 ? a->start : 0;
	} else {
		b.flags = DMU_BLOCKS_READ | DMU_BLOCKS_WRITE | DMU_BLOCKS_COPY;
		b.position = block_place(a->start);
		b.from_dev = a->start < dev_sectors[1] ? 1 : DMU_DEV_ZERO;
		b.from = b.from_dev == 1 ? a->start : 0;
	}
	put(&b, sizeof(b));
}

static void take_ask(const struct dmu_ask *a)
{
	n_ask++;
	if (opt.mute)
		return;
	if (opt.fail_ask) {
		dmu_result(chan, a->head.id, -opt.fail_ask);
		return;
	}
	if (revoking && a->start >> DMU_SECTION_SHIFT == revoking_start >> DMU_SECTION_SHIFT) {
		if (helds == HELD_MAX)
			die("dmu-serve: too many requests meanwhile");
		held[helds++] = *a;
		return;
	}
	if (is_blocks(a->start))
		answer_blocks(a);
	else
		answer_section(a->head.id, a->start);
}

/* ---- zeroing ---- */

static void zero_block(uint64_t start, uint32_t count)
{
	uint64_t first = start & ~(uint64_t)(block - 1);

	if (!*unit_state(start))
		make_block(start);
	move_data(-1, 0, dev[0], block_place(first) + (start - first), count);
}

static void take_change(const struct dmu_ask *a)
{
	uint32_t shift = unit_shift(a->start);
	uint64_t at, end = a->start + a->sectors, next;

	n_change++;
	io_failed = false;
	if (opt.mute || opt.mute_but_ask)
		return;
	if (opt.fail_change) {
		dmu_result(chan, a->head.id, -opt.fail_change);
		return;
	}
	for (at = a->start; at < end; at = next) {
		next = ((at >> shift) + 1) << shift;
		if (next > end)
			next = end;
		if (is_blocks(at)) {
			zero_block(at, next - at);
		} else {
			if (at % (1u << shift) || (next % (1u << shift) && next != sectors))
				die("dmu-serve: DMU_CHANGE of a part of a granule at %llu",
				    (unsigned long long)at);
			move_data(-1, 0, dev[0], at, next - at);
			if (!io_failed)
				*unit_state(at) = PRESENT;
		}
	}
	if (dmu_result(chan, a->head.id, io_failed ? -EIO : 0) == -EINVAL)
		die("dmu-serve: the answer to DMU_CHANGE is refused");
}

/* ---- the rest of the stream ---- */

/* Bytes of the places of blocks behind the bits; each is where it was told to be. */
static uint32_t places_bytes(const struct dmu_written *w, uint32_t granules)
{
	const uint8_t *bits = (const uint8_t *)(w + 1);
	const uint64_t *places = (const uint64_t *)(const void *)(bits + (granules + 63) / 64 * 8);
	uint32_t bytes = 0, i;

	for (i = 0; is_blocks(w->start) && i < granules; i++) {
		if (!(bits[i / 8] >> i % 8 & 1))
			continue;
		if (*places++ != block_place(w->start + ((uint64_t)i << w->granule_shift)))
			die("dmu-serve: block %u of a DMU_WRITTEN is somewhere else", i);
		bytes += sizeof(*places);
	}
	if (bytes > DMU_PLACES_MAX * sizeof(*places))
		die("dmu-serve: a DMU_WRITTEN of %u bytes of places", bytes);
	return bytes;
}

static void take_written(const struct dmu_written *w)
{
	const uint8_t *bits = (const uint8_t *)(w + 1);
	uint32_t granules = ((w->sectors - 1) >> w->granule_shift) + 1, i;

	n_written++;
	if (w->head.size != sizeof(*w) + (granules + 63) / 64 * 8 + places_bytes(w, granules) || w->pad[0] || w->pad[1] || w->pad[2] ||
	    w->granule_shift != unit_shift(w->start) || w->start % (64u << w->granule_shift))
		die("dmu-serve: a bad DMU_WRITTEN");
	for (i = 0; i < granules && !opt.mute_but_ask; i++)
		if (bits[i / 8] >> i % 8 & 1)
			*unit_state(w->start + ((uint64_t)i << w->granule_shift)) = PRESENT;
	if (!opt.mute && !opt.mute_but_ask && dmu_simple(chan, DMU_ACK, w->head.id))
		die("dmu-serve: DMU_ACK is refused");
}

static void take_commit(const struct dmu_head *h)
{
	uint64_t bytes = (sectors >> DMU_GRANULE_SHIFT_MIN) + 1;
	FILE *f;

	n_commit++;
	if (opt.mute || opt.mute_but_ask)
		return;
	if (opt.committed) {
		f = fopen(opt.committed, "w");
		if (!f || fwrite(state, 1, bytes, f) != bytes || fclose(f))
			die("dmu-serve: %s: %s", opt.committed, strerror(errno));
	}
	if (dmu_result(chan, h->id, -opt.fail_commit))
		die("dmu-serve: the answer to DMU_COMMIT is refused");
}

static void take_revoked(const struct dmu_head *h)
{
	unsigned int i, n = helds;
	static struct dmu_ask todo[HELD_MAX];

	if (!revoking || h->id != revoke_id)
		die("dmu-serve: DMU_REVOKED of something else");
	n_revoked++;
	revoking = false;
	helds = 0;
	memcpy(todo, held, n * sizeof(todo[0]));
	for (i = 0; i < n; i++)
		take_ask(&todo[i]);
}

static void maybe_revoke(void)
{
	struct dmu_range r = { .head = { DMU_REVOKE, sizeof(r), 0 } };

	if (!opt.revoke_every || revoking || (uint32_t)rand() % opt.revoke_every)
		return;
	r.start = (uint64_t)rand() % sectors;
	r.sectors = 1;
	revoke_id++;
	r.head.id = revoke_id | 1ull << 40;
	revoke_id = r.head.id;
	revoking = true;
	revoking_start = r.start;
	put(&r, sizeof(r));
}

static void take_info(const struct dmu_info *i)
{
	const struct dmu_device *d = (const struct dmu_device *)(i + 1);

	if (i->abi != DMU_ABI || i->devices < 2 ||
	    i->head.size != sizeof(*i) + i->devices * sizeof(*d) || !(d[0].flags & DMU_DEVICE_WRITABLE))
		die("dmu-serve: a bad DMU_INFO");
	block = i->block;
	sectors = i->sectors;
	dev_sectors[0] = d[0].sectors;
	dev_sectors[1] = d[1].sectors;
}

static void take(const struct dmu_head *h)
{
	switch (h->type) {
	case DMU_INFO:
	case DMU_CHANGED:
		take_info((const struct dmu_info *)h);
		break;
	case DMU_ASK:
		take_ask((const struct dmu_ask *)h);
		break;
	case DMU_CHANGE:
		take_change((const struct dmu_ask *)h);
		break;
	case DMU_WRITTEN:
		take_written((const struct dmu_written *)h);
		break;
	case DMU_COMMIT:
		take_commit(h);
		break;
	case DMU_REVOKED:
		take_revoked(h);
		break;
	default:
		die("dmu-serve: record of type %u", h->type);
	}
	maybe_revoke();
}

static void run(void)
{
	static uint8_t buf[BUFFER] __attribute__((aligned(8)));
	struct pollfd p = { chan, POLLIN, 0 };
	ssize_t n, at;
	bool leaving = false;

	for (;;) {
		if (stop && !leaving) {
			if (dmu_simple(chan, DMU_LEAVE, 77))
				die("dmu-serve: cannot leave");
			leaving = true;
		}
		if (poll(&p, 1, 100) < 0 && errno != EINTR)
			die("dmu-serve: poll: %s", strerror(errno));
		n = read(chan, buf, sizeof(buf));
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n < 0 && errno == ENODEV)
			return;
		if (n < 0)
			die("dmu-serve: read: %s", strerror(errno));
		if (!n && leaving)
			return;
		for (at = 0; at < n; at += ((struct dmu_head *)(buf + at))->size) {
			const struct dmu_head *h = (struct dmu_head *)(buf + at);

			if (h->size < sizeof(*h) || h->size % 8 || at + (ssize_t)h->size > n)
				die("dmu-serve: a record of %u bytes", h->size);
			if (h->type == DMU_LEFT && leaving && h->id == 77)
				return;
			take(h);
		}
	}
}

static void parse(int argc, char **argv)
{
	int c;

	while ((c = getopt(argc, argv, "k:s:0:1:m:g:r:t:S:wc:a:z:nNuC:d:p:")) != -1)
		switch (c) {
		case 'k': opt.key = optarg; break;
		case 's': opt.state = optarg; break;
		case '0': opt.path[0] = optarg; break;
		case '1': opt.path[1] = optarg; break;
		case 'm': opt.mode = optarg; break;
		case 'g': opt.shift = (uint32_t)parse_number(optarg); break;
		case 'r': opt.revoke_every = (uint32_t)parse_number(optarg); break;
		case 't': opt.temporary = (uint32_t)parse_number(optarg); break;
		case 'S': opt.seed = (unsigned int)parse_number(optarg); break;
		case 'w': opt.wait = true; break;
		case 'c': opt.fail_commit = (int)parse_number(optarg); break;
		case 'a': opt.fail_ask = (int)parse_number(optarg); break;
		case 'z': opt.fail_change = (int)parse_number(optarg); break;
		case 'n': opt.mute = true; break;
		case 'N': opt.mute_but_ask = true; break;
		case 'C': opt.committed = optarg; break;
		case 'd': opt.data = (uint32_t)parse_number(optarg); break;
		case 'p': opt.made = (uint32_t)parse_number(optarg); break;
		case 'u': opt.useless = true; break;
		default: exit(2);
		}
	if (!opt.key || !opt.state || !opt.path[0] || !opt.path[1] || optind != argc)
		die("dmu-serve: -k, -s, -0 and -1 are needed");
	srand(opt.seed);
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_term };
	const off_t size = 64 << 20;	/* sparse */
	int fd, i, r;

	parse(argc, argv);
	sigaction(SIGTERM, &sa, NULL);
	fd = open(opt.state, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, size))
		die("dmu-serve: %s: %s", opt.state, strerror(errno));
	state = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (state == MAP_FAILED)
		die("dmu-serve: mmap: %s", strerror(errno));
	for (i = 0; i < 2; i++) {
		dev[i] = open(opt.path[i], (i ? O_RDONLY : O_RDWR) | O_DIRECT | O_CLOEXEC);
		if (dev[i] < 0)
			die("dmu-serve: %s: %s", opt.path[i], strerror(errno));
	}
	chan = dmu_open(O_NONBLOCK);
	if (chan < 0)
		die("dmu-serve: /dev/" DMU_NODE ": %s", strerror(errno));
	r = dmu_hello(chan, opt.key, opt.wait ? DMU_HELLO_WAIT : 0);
	if (r)
		die("dmu-serve: %s: %s", opt.key, strerror(-r));
	run();
	printf("ask=%lu written=%lu commit=%lu change=%lu revoked=%lu\n", n_ask, n_written, n_commit,
	       n_change, n_revoked);
	return 0;
}
