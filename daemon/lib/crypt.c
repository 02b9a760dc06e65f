// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Data of encrypted images between a request's buffer and the file. What is stored
 * has the length and the place that plain data would have, in units that are
 * enciphered by themselves; the cipher is the format's. Here is how a request, which
 * begins and ends anywhere, comes to whole units. Nothing is enciphered in a
 * caller's buffer: a write goes out from one of the request's own.
 */
#include "engine.h"

int crypt_run(struct cow_layer *l, bool encrypt, uint64_t virt, uint64_t phys, void *buf, uint64_t len)
{
	struct cow_crypt c = { .encrypt = encrypt, .virt = virt, .phys = phys, .in = buf, .out = buf,
			       .len = len };

	cow_assert((virt | phys | len) % COW_CRYPT_UNIT == 0);
	return l->img.fmt->crypt(&l->img, &c);
}

uint64_t crypt_read_step(uint64_t virt, uint64_t len)
{
	uint64_t skip = virt % COW_CRYPT_UNIT;

	if (skip || len < COW_CRYPT_UNIT)
		return cow_min(len, COW_CRYPT_UNIT - skip);
	return cow_round_down(len, COW_CRYPT_UNIT);
}

uint64_t crypt_write_step(const struct cow_image *img, uint64_t virt)
{
	return cow_round_down(virt + cow_max(CRYPT_CHUNK, img->granule), img->granule) - virt;
}

void fetch_aim(struct cow_fetch *f, uint8_t *to, uint64_t virt, uint64_t phys, uint64_t n)
{
	uint64_t skip = virt % COW_CRYPT_UNIT;

	f->ragged = f->cipher && (skip || n % COW_CRYPT_UNIT);
	f->to = to;
	f->virt = virt;
	f->phys = phys;
	f->n = n;
	f->cb.iov[0] = f->ragged ? (struct iovec){ f->unit, COW_CRYPT_UNIT } : (struct iovec){ to, n };
	f->cb.iovcnt = 1;
	f->cb.off = f->ragged ? phys - skip : phys;
	f->cb.len = f->cb.iov[0].iov_len;
}

int fetch_end(struct cow_fetch *f, int result)
{
	uint64_t skip = f->virt % COW_CRYPT_UNIT;

	if (result || !f->cipher)
		return result;
	if (!f->ragged)
		return crypt_run(f->cipher, false, f->virt, f->phys, f->to, f->n);
	result = crypt_run(f->cipher, false, f->virt - skip, f->phys - skip, f->unit, COW_CRYPT_UNIT);
	if (result == 0)
		memcpy(f->to, f->unit + skip, f->n);
	return result;
}

void crypt_edges(struct cow_wr *w, uint64_t virt)
{
	uint64_t before = (virt - w->head) % COW_CRYPT_UNIT;
	uint64_t after = (virt + w->n + w->tail) % COW_CRYPT_UNIT;

	w->own_head = before;
	w->own_tail = after;
	cow_assert(!(before && w->head) && !(after && w->tail));
	w->head += before;
	w->tail += after ? COW_CRYPT_UNIT - after : 0;
}

int crypt_write(struct cow_layer *l, struct cow_wr *w, uint64_t virt, uint64_t phys)
{
	memcpy(w->bounce + w->head, w->data, w->n);
	return crypt_run(l, true, virt, phys, w->bounce, w->head + w->n + w->tail);
}
