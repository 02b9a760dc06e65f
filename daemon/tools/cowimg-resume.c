// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg convert --resume: what an interrupted conversion leaves, and how the next one
 * takes it up. The new image is filled under the name OUT.part; beside it, in OUT.state,
 * stands how far it is durable, what it is made from, and how. Only when it is complete
 * it gets the name OUT, and OUT.state goes.
 *
 * The state is a few lines of text with a hash over them behind. It is replaced as a
 * whole, after what it says has become durable: so it never says too much.
 */
#include "cowimg-copy.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define NOTE_BYTES COW_MIB(64)	/* moved between two states: what an interruption costs at most */
#define STATE_MAX 512u
#define STATE_FORM "cowimg convert 1\nsource %016" PRIx64 "\ntarget %016" PRIx64 \
		   "\nfile %" PRIu64 "\ndone %" PRIu64 "\n"

struct state {
	uint64_t source, target;	/* hashes: of what is copied, of what is asked for */
	uint64_t file;			/* inode of OUT.part */
	uint64_t done;			/* bytes from the start on */
};

struct resume {
	char *part, *state_path, *state_new;
	struct state state;
	uint64_t noted;			/* bytes moved in this run when the state was written */
};

/* ---- the state ---- */

static size_t state_text(const struct state *s, char *buf, size_t len)
{
	int n = snprintf(buf, len, STATE_FORM, s->source, s->target, s->file, s->done);

	return (size_t)(n + snprintf(buf + n, len - (size_t)n, "check %016" PRIx64 "\n",
				     piece_hash(buf, (size_t)n)));
}

/* -ENOENT; -EBADMSG: it is not what was written. */
static int state_read(const char *path, struct state *ret)
{
	char text[STATE_MAX] = "", again[STATE_MAX];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n < 0)
		return -errno;
	if (sscanf(text, "cowimg convert 1 source %" SCNx64 " target %" SCNx64 " file %" SCNu64
		   " done %" SCNu64, &ret->source, &ret->target, &ret->file, &ret->done) != 4)
		return -EBADMSG;
	state_text(ret, again, sizeof(again));
	return strcmp(text, again) ? -EBADMSG : 0;
}

static int write_file(const char *path, const char *text, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), r = 0;

	if (fd < 0)
		return -errno;
	errno = EIO;	/* of a write that is short */
	if (write(fd, text, len) != (ssize_t)len || fsync(fd))
		r = -errno;
	close(fd);
	return r;
}

static int sync_folder(const char *path)
{
	const char *slash = strrchr(path, '/');
	char *dir COW_CLEANUP_FREE = slash ? cow_asprintf("%.*s", (int)(slash - path) + 1, path) :
		cow_strdup(".");
	int fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1, r = 0;

	if (fd < 0)
		return dir ? -errno : -ENOMEM;
	if (fsync(fd) && errno != EINVAL)
		r = -errno;
	close(fd);
	return r;
}

static int state_write(const struct resume *rs)
{
	char text[STATE_MAX];
	size_t len = state_text(&rs->state, text, sizeof(text));
	int r = write_file(rs->state_new, text, len);

	if (!r && rename(rs->state_new, rs->state_path))
		r = -errno;
	return r ? r : sync_folder(rs->state_path);
}

/* Everything that the source is: each of its layers, as an overlay would record it. */
static int hash_source(struct cow_chain *c, uint64_t *ret)
{
	struct cow_identity id[COW_CHAIN_DEPTH];
	int r = 0;

	memset(id, 0, sizeof(id));
	for (unsigned i = 0; i < cow_chain_depth(c) && !r; i++)
		r = cow_chain_identity(c, i, &id[i]);
	*ret = piece_hash(id, sizeof(id));
	return r;
}

/* Everything that was asked for. */
static int hash_target(const struct convert *cv, const struct convert_target *t, uint64_t *ret)
{
	char *text COW_CLEANUP_FREE = cow_asprintf("%s %s %s %d", t->cmd.format, t->base ? t->base : "",
						   t->base ? t->base_format : "", cv->compress);
	const char *key, *value;
	size_t at = 0;

	while (text && cow_args_next(t->cmd.args, &at, &key, &value)) {
		char *more = cow_asprintf("%s %s=%s", text, key, value);

		cow_free(text);
		text = more;
	}
	if (!text)
		return -ENOMEM;
	*ret = piece_hash(text, strlen(text));
	return 0;
}

/* ---- the draft ---- */

/* Is there something to go on from, of the same source and made in the same way? */
static int find_left(const struct convert *cv, const struct state *now, bool *ret_there)
{
	struct resume *rs = cv->resume;
	struct stat st;
	int r = state_read(rs->state_path, &rs->state);

	*ret_there = r != -ENOENT && (!access(rs->part, F_OK) || errno != ENOENT);
	if (!*ret_there)
		return IMG_OK;
	if (r == -EBADMSG)
		return img_fail_msg(cv->cmd, "%s is damaged: remove it to start anew", rs->state_path);
	if (r)
		return img_fail_msg(cv->cmd, "%s: %s", rs->state_path, strerror(-r));
	if (rs->state.target != now->target)
		return img_fail_msg(cv->cmd, "%s was begun with other options: remove %s to start anew",
				    rs->part, rs->state_path);
	if (rs->state.source != now->source)
		return img_fail_msg(cv->cmd, "%s changed since %s was begun: remove %s to start anew",
				    cv->path, rs->part, rs->state_path);
	if (stat(rs->part, &st) || st.st_ino != rs->state.file)
		return img_fail_msg(cv->cmd, "%s is another file than %s is about: remove that to start "
				    "anew", rs->part, rs->state_path);
	return IMG_OK;
}

/* What was being written when it was interrupted may have leaked. */
static int mend(const struct convert *cv, const struct img_cmd *out)
{
	struct img_cmd alone = *out;
	struct cow_report rep = { 0 };
	struct cow_err err = { 0 };
	struct cow_chain *c;
	int r;

	alone.no_backing = true;
	alone.n_backing = 0;
	if (img_open(&alone, cv->resume->part, COW_OPEN_WRITE | COW_OPEN_CHECK, &c))
		return IMG_FAILED;
	r = cow_chain_image(c, 0)->fmt->caps & COW_CAP_CHECK ?
		cow_chain_check(c, &rep, COW_CHECK_REPAIR, &err) : 0;
	r = img_close(cv->cmd, c, cv->resume->part, r ? img_fail(cv->cmd, r, &err) : IMG_OK);
	if (r || rep.corruptions <= rep.repaired)
		return r;
	return img_fail_msg(cv->cmd, "%s is damaged: remove %s to start anew", cv->resume->part,
			    cv->resume->state_path);
}

static int make_names(struct convert *cv)
{
	struct resume *rs = cow_zalloc(sizeof(*rs));

	cv->resume = rs;
	if (!rs)
		return -ENOMEM;
	rs->part = cow_asprintf("%s.part", cv->out_path);
	rs->state_path = cow_asprintf("%s.state", cv->out_path);
	rs->state_new = cow_asprintf("%s.state.new", cv->out_path);
	return rs->part && rs->state_path && rs->state_new ? 0 : -ENOMEM;
}

static int start_anew(struct convert *cv, const struct cow_create_cfg *cfg)
{
	struct cow_create_cfg part = *cfg;
	struct cow_err err = { 0 };
	int r;

	part.path = cv->resume->part;
	part.exist_ok = true;		/* one without a state; somebody who is at it has it locked */
	r = cow_image_create(&part, NULL, &err);
	return r ? img_fail(cv->cmd, r, &err) : IMG_OK;
}

static int open_part(struct convert *cv, const struct img_cmd *out, const struct state *now)
{
	struct resume *rs = cv->resume;
	struct cow_chain_file file;
	int r;

	if (img_open(out, rs->part, COW_OPEN_WRITE, &cv->out))
		return IMG_FAILED;
	r = cow_chain_file(cv->out, 0, &file);
	cv->begin = cv->done = rs->state.done;
	rs->state = *now;
	rs->state.done = cv->begin;
	rs->state.file = file.ino;
	if (!r)
		r = state_write(rs);
	return r ? img_fail_msg(cv->cmd, "%s: %s", rs->state_path, strerror(-r)) : IMG_OK;
}

int resume_open(struct convert *cv, const struct convert_target *t, const struct cow_create_cfg *cfg)
{
	struct img_cmd out = img_second(&t->cmd, NULL);
	struct state now = { 0 };
	bool there = false;
	int r = make_names(cv), status;

	if (!r)
		r = hash_source(cv->source, &now.source);
	if (!r)
		r = hash_target(cv, t, &now.target);
	if (r)
		return img_fail(cv->cmd, r, NULL);
	if (t->base)		/* wherever it is */
		out.backing[out.n_backing++] = t->base;
	if (!access(cv->out_path, F_OK))
		return img_fail_msg(cv->cmd, "%s: %s", cv->out_path, strerror(EEXIST));
	status = find_left(cv, &now, &there);
	if (!status)
		status = there ? mend(cv, &out) : start_anew(cv, cfg);
	if (!there)
		cv->resume->state.done = 0;
	return status ? status : open_part(cv, &out, &now);
}

/* ---- while it is filled, and at the end ---- */

static int note(struct convert *cv)
{
	struct resume *rs = cv->resume;
	int r = cow_chain_flush(cv->out);

	rs->state.done = cv->done;
	rs->noted = cv->written_bytes;
	return r ? r : state_write(rs);
}

int resume_note(struct convert *cv)
{
	return cv->written_bytes - cv->resume->noted < NOTE_BYTES ? 0 : note(cv);
}

/* A name that somebody else took meanwhile is left to him. */
static int give_name(const char *from, const char *to)
{
	if (!renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE))
		return 0;
	if (errno != EINVAL)
		return -errno;
	return link(from, to) || unlink(from) ? -errno : 0;	/* a file system that cannot do that */
}

int resume_publish(struct convert *cv)
{
	struct resume *rs = cv->resume;
	int r = note(cv), closed = cow_chain_close(cv->out);

	cv->out = NULL;
	r = r ? r : closed;
	if (!r)
		r = give_name(rs->part, cv->out_path);
	if (!r)
		r = sync_folder(cv->out_path);
	if (r)
		return img_fail_msg(cv->cmd, "%s: %s; all of it is in %s", cv->out_path, strerror(-r), rs->part);
	unlink(rs->state_path);
	return IMG_OK;
}

int resume_end(struct convert *cv, int status)
{
	struct resume *rs = cv->resume;

	if (cv->out && cv->done > cv->begin)
		(void)note(cv);		/* else what was noted before stays true */
	if (cv->out)
		status = img_close(cv->cmd, cv->out, rs->part, status);
	cv->out = NULL;
	cow_free(rs->part);
	cow_free(rs->state_path);
	cow_free(rs->state_new);
	cow_free(rs);
	cv->resume = NULL;
	return status;
}
