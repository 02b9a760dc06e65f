/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One image into another, for the verbs and tools that do that: cowimg-copy.c opens and
 * says what is to be said; cowimg-transfer.c moves the data and checks what it has become.
 */
#ifndef COWIMG_COPY_H
#define COWIMG_COPY_H

#include "cowimg-pieces.h"
#include "cowimg.h"

/* What was moved, for verifying. */
struct moved {
	uint64_t virt, len, hash;
	bool zero;		/* all of it, and there is no hash */
};

struct convert {
	struct img_cmd *cmd;		/* the source's */
	const char *path, *out_path;	/* NULL: a pipe */
	struct img_progress progress;
	bool verify, compress;
	bool gathered;			/* @path is what came through a pipe */
	/* A range alone, to @begin of the new image; clipped at the end of the source. */
	bool ranged;
	uint64_t from, len;
	bool into;			/* OUT is there, and is written into; only with a range */
	bool resumable;			/* what is interrupted is kept, and taken up */

	struct cow_chain_cfg source_cfg, base_cfg;
	struct cow_chain *source;	/* its map is read by this one; the workers open their own */
	struct cow_chain *out;		/* draft, or what is written into; NULL: to standard output */
	unsigned shared_from;		/* layers of the source from here on are the new image's base */
	bool blank;			/* the new image reads as zeroes: those need not be written */
	uint64_t begin, size;		/* bytes of the new image to be made are before @size */
	uint64_t source_size;
	uint64_t shift;			/* what goes to @virt is in the source at @virt + this, modulo 2^64 */
	uint64_t done;			/* everything before it is moved */
	size_t unit;
	struct pieces *pieces;
	struct resume *resume;		/* of a resumable one that is under way */

	struct cow_extent ext;		/* of the source, at the current position; len 0: none yet */
	unsigned ext_layer;
	struct moved *moved;
	size_t n_moved, room_moved;
	uint64_t virt;			/* where an error was met */
	bool reading;			/* it was met in the source */
	uint64_t read_bytes, written_bytes, zero_bytes, stored_bytes;
};

/* What is said of the new image. */
struct convert_target {
	struct img_cmd cmd;		/* its format and options */
	const char *base, *base_format;	/* NULL: none */
	bool overwrite;
};

/* Handles option @c of such a verb. Returns as img_common_opt(). */
int convert_opt(struct convert *cv, struct convert_target *t, int c);
/*
 * All of it; @cv and @t have what the caller asks for, but where bases may be and --force, which
 * are said once for both. An exit status, failures are explained.
 */
int convert_image(struct convert *cv, struct convert_target *t);

/* main() of a verb whose options are those of convert_opt(). @check has what follows them; an exit status. */
int convert_verb(const struct cow_cli *verb,
		 int (*check)(struct convert *cv, struct convert_target *t, int argc, char **argv),
		 int argc, char **argv);

/*
 * main() of a program that does nothing but convert, named by @face, from format @from into
 * @to; of the two @operands the new image is the first.
 */
int convert_face(const struct cow_cli *face, const char *from, const char *to,
		 const char *const *operands, int argc, char **argv);

/*
 * A resumable one, see cowimg-resume.c. resume_open() makes or finds the draft of @cfg: cv->out, of
 * which everything before cv->begin is there. resume_note() now and then records cv->done, 0 or
 * -errno. Then resume_publish(), unless it failed, and always resume_end(), which returns @status
 * or what is worse. Failures but those of resume_note() are explained.
 */
int resume_open(struct convert *cv, const struct convert_target *t, const struct cow_create_cfg *cfg);
int resume_note(struct convert *cv);
int resume_publish(struct convert *cv);
int resume_end(struct convert *cv, int status);

/* Moves everything. 0, -ECANCELED, or -errno with cv->virt and cv->reading. */
int convert_transfer(struct convert *cv);
/* The same from a pipe into cv->out, a raw image that grows; ends at cv->size. -ENODATA: nothing came. */
int convert_take_stream(struct convert *cv, int fd);
/* Reads the new image again. -EILSEQ: it is not what was moved, from cv->virt on. */
int convert_verify(struct convert *cv);

#endif
