/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the tests of image formats under power cuts and failing disks have in
 * common: images of several shapes on the rig's machine (rig.h), and the tests
 * themselves. The program says which format by defining image_kind.
 */
#ifndef COW_TEST_IMAGE_H
#define COW_TEST_IMAGE_H

#include "rig.h"
#include "test.h"

#define IMAGE_CRASH	"crash.img"
#define IMAGE_FINDINGS	512u	/* bytes that image_finding() fills */

struct image_shape {
	const char *name, *options;	/* options: of create */
	uint32_t cluster;
	uint32_t block;			/* larger than a cluster where those are parts of one; 0: the same */
	uint64_t base_size, size;	/* base_size 0: no base */
	uint64_t cap;			/* grows up to here; 0: not at all */
	bool grows_only;		/* in histories */
	uint64_t fill;			/* written first */
	uint64_t device;		/* on a block device of this size; 0: a file */
	const char *open_options;	/* NULL: none */
	const char *data;		/* name of its data file; NULL: none */
	void (*prepare)(struct rig *r);	/* makes another image and model of it; or NULL */
	/* What more has to hold of image @name, which can be opened: 0, or -errno and a sentence. Or NULL. */
	int (*judge)(struct rig *r, const char *name, struct cow_err *why);
};

struct image_kind {
	const char *format;
	const struct image_shape *shapes;
	size_t n;
	void (*work)(struct rig *r, unsigned ops);	/* NULL: image_work() */
};

extern const struct image_kind image_kind;

#define IMAGE_DATA	"data.raw"	/* image_shape.data */
/* Any file that is there, and stays as it is, has a key: an option of create and open. */
#define IMAGE_KEY	"key_file=/proc/sys/kernel/ostype"

/* A machine with a base and a new image of this shape; nothing is open, the log has begun. */
void image_init(struct rig *r, const struct image_shape *s, uint64_t seed);
int image_try_open(struct rig *r, const char *name, uint32_t flags, struct cow_chain **ret,
		   struct cow_err *err);
/* Its snapshot @snapshot, to be read. */
int image_try_snapshot(struct rig *r, const char *name, const char *snapshot, struct cow_chain **ret,
		       struct cow_err *err);
bool image_encodes(struct rig *r);	/* does r->c take encoded clusters? */
bool image_commits(const struct image_shape *s);	/* can it be emptied into a base? */
void image_open(struct rig *r);		/* for writing, as r->c */
void image_close(struct rig *r);
void image_work(struct rig *r, unsigned ops);	/* random operations, all of which succeed */
/* cow_report.say: findings other than leaks, into the IMAGE_FINDINGS bytes at rep->opaque. */
void image_finding(struct cow_report *rep, const char *sentence);
/* Opens in both ways: no corruption, contents as the model permits at @pos, clean after a repair. */
int image_judge(struct rig *r, const char *name, size_t pos, struct cow_err *why);

/* What a power cut at @pos leaves is judged, or the test fails. */
void image_cut(struct rig *r, const struct image_shape *s, size_t pos, enum cow_sim_crash how);
/* Operation @nth under @requests fails, from then on all where @forever. False: there were fewer. */
bool image_fail_nth(const struct image_shape *s, uint64_t seed, uint64_t nth, bool forever,
		    void (*requests)(struct rig *r));

/* The tests: each over all shapes. */
void image_power_cuts(void);
void image_no_leaks_after_close(unsigned sessions, unsigned ops);
void image_failing_disk(void);
void image_interrupted_emptying(void);	/* over those with a base, that do not grow */
void image_interrupted_rebase(void);	/* over the same */
void image_growth_hides_base(void);	/* over those with a longer base, that grow */
void image_many_at_once(void);
void image_restartable_map(void);
/* On the first shape: a flush after new clusters is one sync of data, one of metadata (@first at first). */
void image_syncs_of_flush(unsigned first);

/*
 * All sequences of up to @first operations on images of the first shape, and of up to @others on those of
 * the others, of four blocks, cut at every write. The base is shorter than the image by half a block: its
 * end is a border, too. IMAGE_HISTORY_ALONE: without a base.
 */
#define IMAGE_HISTORY_MAX	3u
#define IMAGE_HISTORY_BLOCKS	4u
#define IMAGE_HISTORY_ALONE(name_, options_, block_, cluster_, ...)			\
	{ .name = (name_), .options = (options_), .block = (block_), .cluster = (cluster_),	\
	  .size = IMAGE_HISTORY_BLOCKS * (block_) - 512,				\
	  .cap = (IMAGE_HISTORY_BLOCKS + 2) * (block_), __VA_ARGS__ }
#define IMAGE_HISTORY_SHAPE(name_, options_, block_, cluster_, ...)			\
	IMAGE_HISTORY_ALONE(name_, options_, block_, cluster_,				\
			    .base_size = IMAGE_HISTORY_BLOCKS * (block_) - (block_) / 2 - 100, \
			    __VA_ARGS__)
void image_histories(unsigned first, unsigned others);

/* A session of requests, resizes and a commit, over all shapes (which grow). */
void image_every_operation_fails(void);
void image_every_allocation_fails(void);
#define NTHFAIL_TESTS						\
	TEST(every_operation)					\
	{							\
		image_every_operation_fails();			\
	}							\
	TEST(every_allocation)					\
	{							\
		image_every_allocation_fails();			\
	}

/* prepare() and judge() of a shape with a snapshot inside. */
void image_with_snapshot(struct rig *r);
int image_snapshot_kept(struct rig *r, const char *name, struct cow_err *why);
/* The same with bitmaps: two that record everything and one that records nothing. */
void image_with_bitmaps(struct rig *r);
int image_bitmaps_good(struct rig *r, const char *name, struct cow_err *why);
/* Those that record, as they were judged since the last image_with_bitmaps(). */
extern struct image_bitmap_tally {
	unsigned good, stale;
} image_bitmap_tally;

/* prepare() of a shape whose clusters are all stored encoded. */
void image_with_encoded(struct rig *r);
/* One cluster anywhere, in its stored form. Returns the result of the engine. */
int image_put_encoded(struct rig *r);
/* Encoded clusters among other changes; many flushes: each has few reasons for its order. */
void image_work_encoded(struct rig *r, unsigned ops);
void image_encoded_power_cuts(void);
void image_encoded_failing_disk(void);
/* On the first shape: what is no whole block, or not smaller than one, is no encoded block. */
void image_encoded_refused(void);
/* Small reads of the same clusters, at once and in turn, fetch each once; or all fail. */
void image_encoded_read_at_once(void);

/* Those that every format has to pass that stores encoded clusters; work is image_work_encoded(). */
#define ENCODED_TESTS						\
	TEST(power_cuts)					\
	{							\
		image_encoded_power_cuts();			\
	}							\
	TEST(restartable)					\
	{							\
		image_restartable_map();			\
	}							\
	TEST(failing_disk)					\
	{							\
		image_encoded_failing_disk();			\
	}							\
	TEST(refused)						\
	{							\
		image_encoded_refused();			\
	}							\
	TEST(read_at_once)					\
	{							\
		image_encoded_read_at_once();			\
	}

/* Those that every format has to pass. */
#define IMAGE_TESTS						\
	TEST(power_cuts)					\
	{							\
		image_power_cuts();				\
	}							\
	TEST(no_leaks_after_close)				\
	{							\
		image_no_leaks_after_close(6, 12);		\
	}							\
	TEST(failing_disk)					\
	{							\
		image_failing_disk();				\
	}							\
	TEST(interrupted_emptying)				\
	{							\
		image_interrupted_emptying();			\
	}							\
	TEST(interrupted_rebase)				\
	{							\
		image_interrupted_rebase();			\
	}							\
	TEST(growth_hides_the_base)				\
	{							\
		image_growth_hides_base();			\
	}							\
	TEST(many_requests_at_once)				\
	{							\
		image_many_at_once();				\
	}							\
	TEST(restartable_map)					\
	{							\
		image_restartable_map();			\
	}

#endif
