// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Copying an image, or a range of one, into a new one or into one that is there: what is
 * opened and created, and what is said about it; the data is moved in cowimg-transfer.c.
 * A new image has no name before all of it is there (see cow_image_draft()).
 */
#include "cowimg-copy.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

/* ---- opening ---- */

static struct cow_create_cfg create_cfg(const struct convert_target *t, const char *path, uint64_t size)
{
	return (struct cow_create_cfg){
		.format = t->cmd.format,
		.path = path,
		.size = size,
		.args = t->cmd.args,
		.backing = t->base,
		.backing_format = t->base_format,
		.backing_dirs = t->cmd.n_dirs ? t->cmd.backing_dirs : NULL,
		.force = t->cmd.force,
		.exist_ok = t->overwrite,
	};
}

static int open_draft(struct convert *cv, const struct convert_target *t, uint64_t size)
{
	struct cow_create_cfg cfg = create_cfg(t, cv->out_path, size);
	struct cow_err err = { 0 };
	int r = cow_image_draft(&cfg, &cv->out, &err);

	return r ? img_fail(cv->cmd, r, &err) : IMG_OK;
}

/* Where what is asked for is, and where it goes; all of the source if nothing is said. */
static int set_range(struct convert *cv)
{
	cv->size = cv->source_size;
	if (!cv->ranged)
		return IMG_OK;
	if (cv->from >= cv->source_size)
		return img_fail_msg(cv->cmd, "%s: ends at %" PRIu64 ", nothing is at offset %" PRIu64,
				    cv->path, cv->source_size, cv->from);
	cv->len = cow_min(cv->len, cv->source_size - cv->from);
	cv->shift = cv->from - cv->begin;
	if (!cow_add_ok(cv->begin, cv->len, &cv->size))
		return img_fail_msg(cv->cmd, "%s: offset %" PRIu64 " is too large", cv->out_path,
				    cv->begin);
	return IMG_OK;
}

static int open_out(struct convert *cv, const struct convert_target *t)
{
	struct cow_create_cfg cfg;

	if (!cv->out_path)
		return IMG_OK;
	if (cv->resumable) {
		cfg = create_cfg(t, cv->out_path, cv->size);
		return resume_open(cv, t, &cfg);
	}
	if (!cv->into)
		return open_draft(cv, t, cv->size);
	if (img_open(&t->cmd, cv->out_path, COW_OPEN_WRITE, &cv->out))
		return IMG_FAILED;
	return img_in_bounds(cv->cmd, cv->out_path, cv->begin, cv->len, cow_chain_size(cv->out));
}

/* What the walk and the placing have to know of source and new image. */
static int study(struct convert *cv)
{
	struct cow_image *img = cv->out ? cow_chain_image(cv->out, 0) : NULL;
	struct cow_extent e = { 0 };
	unsigned layer;
	int r;

	if (img && !cv->ranged)
		cv->size = img->size;
	cv->unit = cow_max(PIECE_UNIT, img ? img->granule : 1);
	cv->shared_from = UINT_MAX;
	if (!img)
		return IMG_OK;
	if (cv->compress) {
		if (img->fmt->encode && img->block < PIECE_UNIT)
			return img_fail_msg(cv->cmd, "%s: clusters of %u bytes are too small to be compressed: "
					    "%u is the least", cv->out_path, img->block, PIECE_UNIT);
		if (!img->fmt->encode || img->data_file[0] || img->encrypted)
			return img_fail_msg(cv->cmd, "%s: format %s%s cannot hold compressed data",
					    cv->out_path, img->fmt->name,
					    img->data_file[0] ? " with a data file" :
					    img->encrypted ? " with encryption" : "");
		cv->unit = img->block;
	}
	for (unsigned i = 1; cow_chain_depth(cv->out) > 1 && i < cow_chain_depth(cv->source); i++) {
		if (img_same_layers(cv->source, i, cv->out, 1) && !cv->verify)
			cv->shared_from = i;
	}
	r = cow_chain_next_extent(cv->out, 0, 0, img->size, &e, &layer);
	cv->blank = !r && e.kind == COW_HOLE && e.len == img->size;
	return r ? img_fail_msg(cv->cmd, "%s: %s", cv->out_path, strerror(-r)) : IMG_OK;
}

/* ---- saying how it went ---- */

static const char *why(const struct convert *cv, int r)
{
	if (r == -ECANCELED)
		return img_progress_why(&cv->progress);
	if (r == -ENODATA)
		return "nothing came";
	return r == -EILSEQ ? "is not what was written" : strerror(-r);
}

static int explain(const struct convert *cv, int r)
{
	const struct cow_err *err = cv->pieces ? pieces_error(cv->pieces) : NULL;
	const char *in = cv->path && !cv->gathered ? cv->path : "standard input";
	const char *out = cv->out_path ? cv->out_path : "standard output";
	bool file = cv->out && !cv->into && !cow_img_is_blkdev(cow_chain_image(cv->out, 0), 0);
	const char *kept = cv->resume ? ", and the same command goes on from there" : "";

	if (err && err->code)
		return img_fail(cv->cmd, r, err);
	if (r == -ECANCELED)
		return img_fail_msg(cv->cmd, "%s after %" PRIu64 " of %" PRIu64 " bytes%s%s%s%s", why(cv, r),
				    cv->progress.done, cv->progress.total, file ? "; " : "",
				    file ? out : "", file ? " was not made" : "", kept);
	if (r == -EILSEQ)
		return img_fail_msg(cv->cmd, "%s: at offset %" PRIu64 " %s%s", out, cv->virt, why(cv, r),
				    file ? "; it was not made" : "");
	return img_fail_msg(cv->cmd, "%s: %s at offset %" PRIu64 ": %s%s%s", cv->reading ? in : out,
			    cv->reading ? "cannot read" : "cannot write", cv->virt, why(cv, r),
			    !file ? "" : cv->reading ? "; nothing was made" : "; it was not made", kept);
}

static int report_json(const struct convert *cv, double seconds)
{
	struct cow_kv *kv = cow_kv_new(stdout, COW_KV_JSON, IMG_SCHEMA);
	int r;

	if (!kv)
		return img_fail(cv->cmd, -ENOMEM, NULL);
	cow_kv_str(kv, "path", cv->out_path);
	if (cv->ranged) {
		cow_kv_u64(kv, "offset", cv->begin);
		cow_kv_u64(kv, "length", cv->len);
	} else {
		cow_kv_u64(kv, "size", cv->size);
	}
	if (cv->resumable)
		cow_kv_u64(kv, "resumed_at", cv->begin);
	cow_kv_u64(kv, "read_bytes", cv->read_bytes);
	cow_kv_u64(kv, "written_bytes", cv->written_bytes);
	cow_kv_u64(kv, "zero_bytes", cv->zero_bytes);
	cow_kv_u64(kv, "compressed_bytes", cv->stored_bytes);
	cow_kv_bool(kv, "verified", cv->verify);
	cow_kv_u64(kv, "elapsed_ms", (uint64_t)(seconds * 1000));
	r = cow_kv_end(kv);
	return r ? img_fail(cv->cmd, r, NULL) : IMG_OK;
}

static int report(const struct convert *cv, double seconds)
{
	char written[32], zero[32], rate[32];

	if (!cv->out_path || (cv->cmd->quiet && !cv->cmd->json))
		return IMG_OK;
	if (cv->cmd->json)
		return report_json(cv, seconds);
	cow_human_size(cv->written_bytes, written, sizeof(written));
	cow_human_size(cv->zero_bytes, zero, sizeof(zero));
	cow_human_size((uint64_t)((double)(cv->size - cv->begin) / (seconds > 0 ? seconds : 1)), rate,
		       sizeof(rate));
	if (cv->ranged)
		printf("Copied %" PRIu64 " bytes to offset %" PRIu64 " of %s: ", cv->len, cv->begin,
		       cv->out_path);
	else
		printf("Made %s: %" PRIu64 " bytes, ", cv->out_path, cv->size);
	printf("%s of data, %s of zeroes, in %.1f s (%s/s)%s\n", written, zero, seconds, rate,
	       cv->verify ? ", verified" : "");
	return IMG_OK;
}

/* ---- the work ---- */

/* The data is there: looks at it again, if asked to, and gives it its name. */
static int finish(struct convert *cv)
{
	struct cow_err err = { 0 };
	int r = cv->verify ? convert_verify(cv) : 0;

	if (r)
		return explain(cv, r);
	img_progress_tick(&cv->progress, cv->progress.total, cv->progress.total);
	if (!cv->out || cv->into)
		return IMG_OK;
	if (cv->resume)
		return resume_publish(cv);
	r = cow_image_publish(cv->out, &err);
	cv->out = NULL;
	return r ? img_fail(cv->cmd, r, &err) : IMG_OK;
}

/* Are all units whole granules of @img? */
static bool whole_granules(const struct convert *cv, const struct cow_image *img)
{
	uint64_t end = cv->size == img->size ? 0 : cv->size;

	return !((cv->begin | end) & (img->granule - 1));
}

/* From a source that can be read anywhere, into the image or the pipe. */
static int transfer(struct convert *cv, bool with_base)
{
	struct pieces_cfg cfg = {
		.source = &cv->source_cfg,
		.source_shift = cv->shift,
		.base = with_base ? &cv->base_cfg : NULL,
		.unit = cv->unit,
		.hash = cv->verify,
		.encode_for = cv->compress ? cow_chain_image(cv->out, 0) : NULL,
		.out_fd = -1,
	};
	const struct cow_image *img = cv->out ? cow_chain_image(cv->out, 0) : NULL;
	struct cow_chain_file file;
	int r, status;

	/* Nobody has to see the data on its way. */
	if (img && img->linear && !with_base && !cv->verify && whole_granules(cv, img) &&
	    !cow_chain_file(cv->out, 0, &file)) {
		cfg.out_fd = file.fd;
		cfg.out_shift = img->linear_shift;
	}
	r = pieces_start(&cfg, &cv->pieces);

	if (r)
		return img_fail(cv->cmd, r, NULL);
	cv->progress.total = (cv->size - cv->begin) << cv->verify;
	r = convert_transfer(cv);
	status = r ? explain(cv, r) : IMG_OK;
	pieces_stop(cv->pieces);
	cv->pieces = NULL;
	return status;
}

static int from_image(struct convert *cv, const struct convert_target *t)
{
	struct cow_args *of_base = NULL;
	int status;

	cv->source_cfg = img_chain_cfg(cv->cmd, cv->path, 0);
	if (img_open(cv->cmd, cv->path, 0, &cv->source))
		return IMG_FAILED;
	cv->source_size = cow_chain_size(cv->source);
	status = set_range(cv);
	if (!status)
		status = open_out(cv, t);
	if (!status)
		status = study(cv);
	if (!status && t->base) {
		cv->base_cfg = img_chain_cfg(&t->cmd, t->base, 0);
		cv->base_cfg.format = t->base_format;
		cv->base_cfg.args = NULL;
		if (cow_args_of_base(t->cmd.args, &of_base))
			status = img_fail(cv->cmd, -ENOMEM, NULL);
		cv->base_cfg.args = of_base;
	}
	status = status ? status : transfer(cv, t->base);
	cow_args_free(of_base);
	return status;
}

/* A stream becomes a raw image without a name, which *ret_fd keeps, if that is not all. */
static int from_stream(struct convert *cv, const struct convert_target *t, int *ret_fd)
{
	struct convert_target raw = *t;
	struct cow_chain_file file;
	bool all = !strcmp(t->cmd.format, "raw");
	char proc[64];
	int r, status;

	raw.cmd.format = "raw";
	if (!all) {
		raw.cmd.args = NULL;
		raw.base = raw.base_format = NULL;
		cv->verify = cv->compress = false;
	}
	status = open_draft(cv, &raw, PIECE_BYTES);
	if (!status)
		status = study(cv);
	if (status)
		return status;
	cv->size = 0;
	r = convert_take_stream(cv, STDIN_FILENO);
	if (r || all)
		return r ? explain(cv, r) : IMG_OK;
	r = cow_chain_file(cv->out, 0, &file);
	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", file.fd);
	*ret_fd = r ? -1 : open(proc, O_RDONLY | O_CLOEXEC);
	r = *ret_fd < 0 ? -errno : cow_chain_flush(cv->out);
	cow_chain_close(cv->out);
	cv->out = NULL;
	return r ? img_fail(cv->cmd, r, NULL) : IMG_OK;
}

int convert_image(struct convert *cv, struct convert_target *t)
{
	bool verify = cv->verify, compress = cv->compress;
	int fd = -1, status = IMG_OK;
	uint64_t start = img_now_ns();
	char proc[64];

	t->cmd.n_dirs = cv->cmd->n_dirs;
	memcpy(t->cmd.backing_dirs, cv->cmd->backing_dirs, sizeof(t->cmd.backing_dirs));
	t->cmd.force = cv->cmd->force;
	img_progress_begin(&cv->progress, cv->cmd);
	if (!cv->path)
		status = from_stream(cv, t, &fd);
	if (fd >= 0) {
		cv->verify = verify;
		cv->compress = compress;
		snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
		cv->path = proc;
		cv->gathered = true;
		cv->read_bytes = cv->written_bytes = cv->zero_bytes = 0;
	}
	if (!status && cv->path)
		status = from_image(cv, t);
	if (!status)
		status = finish(cv);
	img_progress_end(&cv->progress);
	status = img_close(cv->cmd, cv->source, cv->path, status);
	if (cv->resume)
		status = resume_end(cv, status);
	else if (cv->into)
		status = img_close(cv->cmd, cv->out, cv->out_path, status);
	else if (cv->out)
		cow_chain_close(cv->out);
	if (fd >= 0)
		close(fd);
	cow_free(cv->moved);
	return status ? status : report(cv, (double)(img_now_ns() - start) / 1e9);
}

/* ---- options ---- */

int convert_opt(struct convert *cv, struct convert_target *t, int c)
{
	switch (c) {
	case 'O':
		t->cmd.format = optarg;
		return 0;
	case 'o':
		return img_common_opt(&t->cmd, c);
	case 'b':
		t->base = optarg;
		return 0;
	case 'F':
		t->base_format = optarg;
		return 0;
	case 'c':
		cv->compress = true;
		return 0;
	case IMG_OPT_SOURCE_OPTIONS:
		return img_add_args(cv->cmd, "--source-options", optarg, &cv->cmd->args);
	case IMG_OPT_OVERWRITE:
		t->overwrite = true;
		return 0;
	case IMG_OPT_VERIFY:
		cv->verify = true;
		return 0;
	case IMG_OPT_RESUME:
		cv->resumable = true;
		return 0;
	default:
		return img_common_opt(cv->cmd, c);
	}
}
