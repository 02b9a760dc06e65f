// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * cowimg diff: the ranges in which an image reads otherwise than another one, such
 * as what an incremental backup has to hold. Ranges that both maps call zero, or
 * that come from layers which both images have, are not read.
 */
#include "cowimg-pair.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

#include "cowimg-pieces.h"

static const struct cow_cli_opt opts[] = {
	IMG_CLI_FORMAT,
	{ 'F', "second-format", "FORMAT", "format of the second image (default: that of -f)" },
	{ IMG_OPT_SECOND_OPTIONS, "second-options", "KEY=VALUE,...", "options of the second image's format" },
	{ 'o', "options", "KEY=VALUE,...", "options of the format, for the first image" },
	{ IMG_OPT_BACKING, "backing", "PATH", "where the base of the first image is" },
	{ IMG_OPT_BACKING_DIR, "backing-dir", "DIR",
	  "allow bases in and below DIR; may be given several times" },
	{ IMG_OPT_FORCE, "force", NULL, "accept a base that changed since it was recorded" },
	IMG_CLI_OUTPUT,
	IMG_CLI_PROGRESS,
	{ 0, NULL, NULL, NULL },
};

static const struct cow_cli cli = {
	.prog = "cowimg diff",
	.synopsis = "-f FORMAT [-F FORMAT] [OPTION]... IMAGE1 IMAGE2",
	.summary = "Lists the ranges in which IMAGE2 reads otherwise than IMAGE1.",
	.opts = opts,
};

/* A range of one kind that is not printed yet. */
struct change {
	uint64_t start, len;
	bool zero;
};

struct diff {
	const struct img_cmd *cmd;
	struct img_progress progress;
	struct pair pair;
	struct pieces *pieces;
	struct change last;
	uint64_t changed;
	struct cow_kv *kv;	/* NULL: for people */
};

/* ---- what need not be read ---- */

/* The first unit from @virt on that has to be looked at. */
static int skip_same(struct diff *d, uint64_t virt, uint64_t *ret)
{
	uint64_t at = virt, end;
	bool same = true;
	int r = 0;

	while (at < d->pair.end && !r) {
		r = pair_look(&d->pair, at, &same, &end);
		if (r || !same)
			break;
		at = end;
		if (img_progress_tick(&d->progress, virt, d->pair.end))
			r = -ECANCELED;
	}
	*ret = at < d->pair.end ? cow_round_down(at, PIECE_UNIT) : at;
	return r;
}

/* Fills in the piece that starts at @virt. */
static int plan_piece(struct diff *d, struct piece *p, uint64_t virt)
{
	uint64_t stop = cow_min(cow_round_down(virt, PIECE_BYTES) + PIECE_BYTES, d->pair.end), end;
	bool same;
	int r;

	p->virt = virt;
	p->len = stop - virt;
	memset(p->fate, PIECE_SAME, cow_div_up(p->len, PIECE_UNIT));
	for (uint64_t at = virt; at < stop; at = end) {
		r = pair_look(&d->pair, at, &same, &end);
		if (r)
			return r;
		end = cow_min(end, stop);
		if (!same)
			memset(p->fate + (at - virt) / PIECE_UNIT, PIECE_READ,
			       cow_div_up(end - virt, PIECE_UNIT) - (at - virt) / PIECE_UNIT);
	}
	return 0;
}

/* ---- what is said ---- */

static void print_change(struct diff *d)
{
	const struct change *c = &d->last;
	const char *kind = c->zero ? "zero" : "data";

	if (!c->len)
		return;
	d->changed += c->len;
	if (!d->kv) {
		printf("%-18" PRIu64 " %-18" PRIu64 " %s\n", c->start, c->len, kind);
		return;
	}
	cow_kv_object(d->kv, NULL);
	cow_kv_u64(d->kv, "start", c->start);
	cow_kv_u64(d->kv, "length", c->len);
	cow_kv_str(d->kv, "kind", kind);
	cow_kv_close(d->kv);
}

static void add_change(struct diff *d, uint64_t start, uint64_t len, bool zero)
{
	if (d->last.len && d->last.start + d->last.len == start && d->last.zero == zero) {
		d->last.len += len;
		return;
	}
	print_change(d);
	d->last = (struct change){ start, len, zero };
}

/* ---- the work ---- */

static int finish_oldest(struct diff *d, bool *ret_any)
{
	struct piece *p = pieces_oldest(d->pieces);
	int r;

	*ret_any = p;
	if (!p)
		return 0;
	r = p->result;
	for (uint64_t at = 0; at < p->len && !r; at += PIECE_UNIT) {
		enum piece_fate fate = p->fate[at / PIECE_UNIT];

		if (fate != PIECE_SAME)
			add_change(d, p->virt + at, cow_min(PIECE_UNIT, p->len - at), fate == PIECE_ZERO);
	}
	if (!r && img_progress_tick(&d->progress, p->virt + p->len, d->pair.end))
		r = -ECANCELED;
	pieces_release(d->pieces);
	return r;
}

static int walk(struct diff *d)
{
	uint64_t virt = 0;
	struct piece *p;
	bool any = true;
	int r = 0;

	while (!r && any) {
		while (!r && virt < d->pair.end && (p = pieces_free(d->pieces))) {
			r = skip_same(d, virt, &virt);
			if (r || virt == d->pair.end)
				break;
			r = plan_piece(d, p, virt);
			if (!r) {
				virt += p->len;
				pieces_submit(d->pieces);
			}
		}
		if (!r)
			r = finish_oldest(d, &any);
	}
	print_change(d);
	return r;
}

static int explain(struct diff *d, int r)
{
	const struct cow_err *err = pieces_error(d->pieces);

	if (err->code)
		return img_fail(d->cmd, r, err);
	return img_fail_msg(d->cmd, "cannot compare %s with %s: %s", d->pair.a.cfg.path, d->pair.b.cfg.path,
			    r == -ECANCELED ? img_progress_why(&d->progress) : strerror(-r));
}

static int list(struct diff *d)
{
	struct pieces_cfg cfg = { .source = &d->pair.b.cfg, .base = &d->pair.a.cfg, .unit = PIECE_UNIT, .out_fd = -1 };
	int r = pieces_start(&cfg, &d->pieces), status;

	if (r)
		return img_fail(d->cmd, r, NULL);
	if (d->kv) {
		cow_kv_u64(d->kv, "size1", d->pair.a.size);
		cow_kv_u64(d->kv, "size2", d->pair.b.size);
		cow_kv_list(d->kv, "changes");
	} else {
		printf("%-18s %-18s %s\n", "Start", "Length", "Kind");
	}
	r = walk(d);
	if (d->kv) {
		cow_kv_close(d->kv);
		cow_kv_u64(d->kv, "changed_bytes", d->changed);
	}
	status = r ? explain(d, r) : IMG_OK;
	pieces_stop(d->pieces);
	return status;
}

static int diff(struct diff *d)
{
	int r, status;

	d->pair.a.size = cow_chain_size(d->pair.a.c);
	d->pair.b.size = cow_chain_size(d->pair.b.c);
	d->pair.end = cow_max(d->pair.a.size, d->pair.b.size);
	pair_find_shared(&d->pair, d->cmd->args, d->cmd->second_args);
	if (d->cmd->json) {
		d->kv = cow_kv_new(stdout, COW_KV_JSON, IMG_SCHEMA);
		if (!d->kv)
			return img_fail(d->cmd, -ENOMEM, NULL);
	}
	img_progress_begin(&d->progress, d->cmd);
	status = list(d);
	img_progress_end(&d->progress);
	r = d->kv ? cow_kv_end(d->kv) : 0;
	return r && !status ? img_fail(d->cmd, r, NULL) : status;
}

static int open_and_diff(const struct img_cmd *cmd, const char *format2, char **paths)
{
	struct img_cmd second = img_second(cmd, format2);
	struct diff d = { .cmd = cmd };
	int status = IMG_FAILED;

	d.pair.a.cfg = img_chain_cfg(cmd, paths[0], 0);
	d.pair.b.cfg = img_chain_cfg(&second, paths[1], 0);
	if (!img_open(cmd, paths[0], 0, &d.pair.a.c) && !img_open(&second, paths[1], 0, &d.pair.b.c))
		status = diff(&d);
	status = img_close(cmd, d.pair.b.c, paths[1], status);
	return img_close(cmd, d.pair.a.c, paths[0], status);
}

int cowimg_diff(int argc, char **argv)
{
	static const char *const operands[] = { "IMAGE1", "IMAGE2", NULL };
	struct img_cmd cmd = { .cli = &cli };
	const char *format2 = NULL;
	int c, status = 0;

	while (!status && (c = cow_cli_next(&cli, argc, argv)) != -1) {
		if (c == 'F')
			format2 = optarg;
		else
			status = img_common_opt(&cmd, c);
	}
	if (!status)
		status = img_operands(&cmd, argc, argv, operands, 2);
	if (!status)
		status = img_need_format(&cmd, argv[optind]);
	if (!status)
		status = open_and_diff(&cmd, format2, argv + optind);
	return img_finish(&cmd, status);
}
