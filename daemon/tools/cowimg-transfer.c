// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * From one image into another: the walk over the source's map, which cuts it into
 * pieces for the workers and leaves out what is known to be zero; the placing
 * of what comes back, in order, so that the same input always makes the same
 * image; and the check of what was made.
 */
#include "cowimg-copy.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define STREAM_START COW_GIB(1)	/* a stream's image has this size first, twice as much when it is full */

/* ---- what was moved ---- */

static int remember(struct convert *cv, const struct moved *m)
{
	size_t room = cv->room_moved ? cv->room_moved * 2 : 1024;
	struct moved *grown;

	if (!cv->verify)
		return 0;
	if (cv->n_moved == cv->room_moved) {
		grown = cow_zalloc(room * sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		if (cv->n_moved)
			memcpy(grown, cv->moved, cv->n_moved * sizeof(*grown));
		cow_free(cv->moved);
		cv->moved = grown;
		cv->room_moved = room;
	}
	cv->moved[cv->n_moved++] = *m;
	return 0;
}

/* ---- the walk ---- */

/* What is known of the source for @virt, and how far it goes. */
static int look(struct convert *cv, uint64_t virt, enum piece_fate *fate, uint64_t *ret_end)
{
	uint64_t at = virt + cv->shift;
	struct cow_extent *e = &cv->ext;
	int r;

	*fate = PIECE_ZERO;
	*ret_end = cv->size;
	if (at >= cv->source_size)
		return 0;
	if (!e->len || at - e->virt >= e->len) {
		r = cow_chain_next_extent(cv->source, 0, at, cv->source_size, e, &cv->ext_layer);
		if (r) {
			e->len = 0;
			return r;
		}
	}
	if (cv->ext_layer >= cv->shared_from)
		*fate = PIECE_SAME;
	else if (e->kind == COW_DATA || e->kind == COW_ENCODED)
		*fate = PIECE_READ;
	/* Behind the end of the source there are zeroes; so there are in a hole before. */
	if (*fate != PIECE_ZERO || e->virt + e->len != cv->source_size)
		*ret_end = cow_min(e->virt + e->len - cv->shift, cv->size);
	return 0;
}

/* Zeroes from @virt on, in whole units: how many bytes; 0: fewer than a piece. */
static int look_zero(struct convert *cv, uint64_t virt, uint64_t *ret)
{
	uint64_t at = virt, end;
	enum piece_fate fate;
	int r;

	*ret = 0;
	while (at < cv->size) {
		r = look(cv, at, &fate, &end);
		if (r)
			return r;
		if (fate != PIECE_ZERO)
			break;
		at = end;
	}
	if (at < cv->size)
		at = cow_round_down(at, cv->unit);
	if (at > virt && at - virt >= cow_min(PIECE_BYTES, cv->size - virt))
		*ret = at - virt;
	return 0;
}

/* Units that lie wholly in [@from, @to) of the piece. */
static void mark(struct convert *cv, struct piece *p, uint64_t from, uint64_t to, enum piece_fate fate)
{
	size_t first = cow_div_up(from, cv->unit);
	size_t last = to == p->len ? cow_div_up(to, cv->unit) : to / cv->unit;

	for (size_t i = first; i < last; i++)
		p->fate[i] = (uint8_t)fate;
}

/* Fills in the piece that starts at @virt. */
static int plan_piece(struct convert *cv, struct piece *p, uint64_t virt)
{
	uint64_t span = cow_max(PIECE_BYTES, cv->unit), at, end, zero;
	enum piece_fate fate;
	int r;

	p->virt = virt;
	r = look_zero(cv, virt, &zero);
	if (r)
		return r;
	if (zero) {
		p->zero = true;
		p->len = zero;
		return 0;
	}
	p->len = cow_min(cow_round_down(virt, span) + span, cv->size) - virt;
	memset(p->fate, PIECE_READ, cow_div_up(p->len, cv->unit));
	for (at = virt; at < virt + p->len; at = end) {
		r = look(cv, at, &fate, &end);
		if (r)
			return r;
		end = cow_min(end, virt + p->len);
		if (fate != PIECE_READ)
			mark(cv, p, at - virt, end - virt, fate);
	}
	return 0;
}

/* ---- placing ---- */

/* Everything before @virt is done. True: stop. */
static bool tick(struct convert *cv, uint64_t virt)
{
	return img_progress_tick(&cv->progress, virt - cv->begin, cv->progress.total);
}

static int put_zero_stream(struct convert *cv, uint64_t len)
{
	static const uint8_t zeroes[PIECE_UNIT];
	int r = 0;

	while (len && !r) {
		size_t n = (size_t)cow_min(len, sizeof(zeroes));

		r = img_put_stream(&cv->progress, STDOUT_FILENO, zeroes, n);
		len -= n;
	}
	return r;
}

/* Makes a range read as zeroes, where the new image and its base do not already. */
static int put_zero(struct convert *cv, uint64_t virt, uint64_t len)
{
	uint64_t end = virt + len;
	struct cow_extent e;
	unsigned layer;
	int r = 0;

	cv->zero_bytes += len;
	if (!cv->out)
		return put_zero_stream(cv, len);
	if (cv->blank)
		return 0;
	for (; virt < end && !r; virt += e.len) {
		r = cow_chain_next_extent(cv->out, 0, virt, end, &e, &layer);
		if (r)
			return r;
		/* In steps, for the signals. */
		e.len = cow_min(e.len, IMG_CLEAR_STEP);
		if (e.kind != COW_HOLE)
			r = cow_chain_zero(cv->out, virt, e.len);
		if (!r && tick(cv, virt))
			r = -ECANCELED;
	}
	return r;
}

static int put_data(struct convert *cv, const uint8_t *data, size_t len, uint64_t virt)
{
	cv->written_bytes += len;
	if (!cv->out)
		return img_put_stream(&cv->progress, STDOUT_FILENO, data, len);
	return cow_chain_pwrite(cv->out, data, len, virt);
}

static int put_encoded(struct convert *cv, const struct piece *p, size_t unit)
{
	cv->written_bytes += cow_min(cv->unit, p->len - unit * cv->unit);
	cv->stored_bytes += p->stored_len[unit];
	return cow_chain_pwrite_encoded(cv->out, p->stored + unit * cv->unit, p->stored_len[unit],
					p->virt + unit * cv->unit);
}

static void request_done(struct cow_req *req, int result)
{
	int *r = req->opaque;

	*r = result;
}

/* The data is in its place: the image has to know. */
static int put_placed(struct convert *cv, uint64_t virt, uint64_t len)
{
	int r = 1;
	struct cow_req req = { .op = COW_OP_WRITTEN, .virt = virt, .len = len, .done = request_done,
			       .opaque = &r };

	cv->written_bytes += len;
	cow_req_submit(cv->out, &req);
	while (r > 0)
		cow_chain_poll(cv->out, true);
	return r;
}

/* Units [@i, ...) of one fate, of encoded ones one. *ret_end: the next unit. */
static int place_run(struct convert *cv, const struct piece *p, size_t i, size_t *ret_end)
{
	size_t n = cow_div_up(p->len, cv->unit), end = i + 1;
	uint64_t from = i * cv->unit, len;

	while (end < n && p->fate[end] == p->fate[i] && p->fate[i] != PIECE_ENCODED)
		end++;
	*ret_end = end;
	len = cow_min(end * cv->unit, p->len) - from;
	switch (p->fate[i]) {
	case PIECE_ZERO:
		return put_zero(cv, p->virt + from, len);
	case PIECE_DATA:
		return put_data(cv, p->buf + from, len, p->virt + from);
	case PIECE_ENCODED:
		return put_encoded(cv, p, i);
	case PIECE_PLACED:
		return put_placed(cv, p->virt + from, len);
	default:
		return 0;
	}
}

static int place(struct convert *cv, const struct piece *p)
{
	struct moved m = { .virt = p->virt, .len = p->len, .hash = p->hash, .zero = p->zero };
	int r = remember(cv, &m);

	cv->read_bytes += p->read_bytes;
	if (p->zero)
		return r ? r : put_zero(cv, p->virt, p->len);
	for (size_t i = 0, end; i * cv->unit < p->len && !r; i = end)
		r = place_run(cv, p, i, &end);
	return r;
}

/* Waits for the oldest piece, and puts it where it belongs. */
static int finish_oldest(struct convert *cv, bool *ret_any)
{
	struct piece *p = pieces_oldest(cv->pieces);
	int r;

	*ret_any = p;
	if (!p)
		return 0;
	cv->virt = p->virt;
	cv->reading = p->result && !p->placing;
	r = p->result ? p->result : place(cv, p);
	if (!r)
		cv->done = p->virt + p->len;
	if (!r && cv->resume)
		r = resume_note(cv);
	if (!r && tick(cv, cv->done))
		r = -ECANCELED;
	pieces_release(cv->pieces);
	return r;
}

int convert_transfer(struct convert *cv)
{
	uint64_t virt = cv->begin;
	struct piece *p;
	bool any = true;
	int r = 0;

	while (!r && any) {
		while (virt < cv->size && (p = pieces_free(cv->pieces))) {
			r = plan_piece(cv, p, virt);
			if (r) {
				cv->virt = virt;
				cv->reading = true;
				return r;
			}
			virt += p->len;
			pieces_submit(cv->pieces);
		}
		r = finish_oldest(cv, &any);
	}
	return r;
}

/* ---- a stream ---- */

/* Room for @end bytes. A block device has the size that it has. */
static int stream_room(struct convert *cv, uint64_t end)
{
	uint64_t size = cow_chain_size(cv->out);
	struct cow_err err = { 0 };

	if (end <= size)
		return 0;
	if (cow_img_is_blkdev(cow_chain_image(cv->out, 0), 0))
		return -ENOSPC;
	while (size < end)
		size = size ? size * 2 : STREAM_START;
	return cow_chain_resize(cv->out, size, false, &err);
}

static int stream_piece(struct convert *cv, const uint8_t *buf, size_t len)
{
	struct moved m = { .virt = cv->size, .len = len };
	int r = stream_room(cv, cv->size + len);

	if (!r && cv->verify)
		m.hash = piece_hash(buf, len);
	if (!r)
		r = remember(cv, &m);
	for (size_t at = 0, n; at < len && !r; at += n) {
		bool zero = piece_all_zero(buf + at, cow_min(PIECE_UNIT, len - at));

		for (n = PIECE_UNIT; at + n < len; n += PIECE_UNIT) {
			if (piece_all_zero(buf + at + n, cow_min(PIECE_UNIT, len - at - n)) != zero)
				break;
		}
		n = cow_min(n, len - at);
		r = zero ? put_zero(cv, cv->size + at, n) : put_data(cv, buf + at, n, cv->size + at);
	}
	return r;
}

int convert_take_stream(struct convert *cv, int fd)
{
	uint8_t *buf COW_CLEANUP_FREE = cow_memalign(PIECE_UNIT, PIECE_BYTES);
	struct cow_err err = { 0 };
	size_t n = PIECE_BYTES;
	int r = buf ? 0 : -ENOMEM;

	while (!r && n == PIECE_BYTES) {
		r = img_get_stream(&cv->progress, fd, buf, PIECE_BYTES, &n);
		cv->reading = r;
		if (!r && n)
			r = stream_piece(cv, buf, n);
		if (!r) {
			cv->size += n;
			cv->virt = cv->size;
			cv->read_bytes += n;
			if (img_progress_tick(&cv->progress, cv->size, 0))
				r = -ECANCELED;
		}
	}
	if (!r && !cv->size) {
		cv->reading = true;
		return -ENODATA;
	}
	if (!r && !cow_img_is_blkdev(cow_chain_image(cv->out, 0), 0))
		r = cow_chain_resize(cv->out, cv->size, true, &err);
	return r;
}

/* ---- the check ---- */

/* A range that was moved as zeroes; what is not stored reads as them. */
static int verify_zero(struct convert *cv, const struct moved *m, uint8_t *buf)
{
	uint64_t end = m->virt + m->len;
	struct cow_extent e;
	unsigned layer;
	int r = 0;

	for (uint64_t virt = m->virt; virt < end && !r; virt += e.len) {
		r = cow_chain_next_extent(cv->out, 0, virt, end, &e, &layer);
		if (r || e.kind == COW_HOLE)
			continue;
		e.len = cow_min(e.len, PIECE_BYTES);
		r = cow_chain_pread(cv->out, buf, e.len, virt);
		if (!r && !piece_all_zero(buf, e.len)) {
			cv->virt = virt;
			r = -EILSEQ;
		}
	}
	return r;
}

/* From the disk, as far as that can be asked for. */
static int forget_cached(struct convert *cv)
{
	struct cow_chain_file file;
	int r = cow_chain_flush(cv->out);

	if (!r && !cow_chain_file(cv->out, 0, &file) && file.fd >= 0)
		posix_fadvise(file.fd, 0, 0, POSIX_FADV_DONTNEED);
	return r;
}

int convert_verify(struct convert *cv)
{
	uint8_t *buf COW_CLEANUP_FREE = cow_memalign(PIECE_UNIT, cow_max(PIECE_BYTES, cv->unit));
	int r = buf ? forget_cached(cv) : -ENOMEM;

	for (size_t i = 0; i < cv->n_moved && !r; i++) {
		const struct moved *m = &cv->moved[i];

		cv->virt = m->virt;
		if (m->zero) {
			r = verify_zero(cv, m, buf);
		} else {
			r = cow_chain_pread(cv->out, buf, m->len, m->virt);
			if (!r && piece_hash(buf, m->len) != m->hash)
				r = -EILSEQ;
		}
		if (!r && img_progress_tick(&cv->progress, cv->size + m->virt + m->len, 2 * cv->size))
			r = -ECANCELED;
	}
	return r;
}
