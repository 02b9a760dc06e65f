// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Clusters that others (the kernel) write to before any entry refers to them: map() handed them
 * out for COW_PLACE, and COW_PLACED will say that they hold what they are to hold.
 *
 * They are in none of the lists of clusters to be handed out, and have refcount 1. So whatever becomes of
 * who writes there, or of this process, they are used for nothing else; a power cut or a kill
 * leaves leaks. What is remembered here only serves to give the same answer again, and to let go at the
 * end what was not written: who wrote says where.
 */
#include <errno.h>

#include "qcow2-priv.h"

static unsigned find(const struct qcow2 *q, uint64_t guest)
{
	unsigned i = 0;

	while (i < q->places && q->place[i].guest != guest)
		i++;
	return i;
}

uint64_t qcow2_place_of(const struct qcow2 *q, uint64_t guest)
{
	unsigned i = find(q, guest);

	return i < q->places ? q->place[i].host : 0;
}

unsigned qcow2_place_room(struct qcow2 *q)
{
	if (!q->place)
		q->place = cow_zalloc(QCOW2_PLACES * sizeof(*q->place));
	return q->place ? QCOW2_PLACES - q->places : 0;
}

void qcow2_place_add(struct qcow2 *q, uint64_t guest, uint64_t host, uint64_t n)
{
	cow_assert(n <= QCOW2_PLACES - q->places);
	for (uint64_t i = 0; i < n; i++)
		q->place[q->places++] = (struct qcow2_place){ guest + i, host + i };
}

void qcow2_place_done(struct qcow2 *q, uint64_t guest, uint64_t host)
{
	unsigned i = find(q, guest);

	if (i == q->places)
		return;
	/* It was written to another one, of which a process knew that was killed. */
	if (q->place[i].host != host)
		qcow2_unref(q, q->place[i].host, 1);
	q->place[i] = q->place[--q->places];
}

int qcow2_place_check(struct cow_image *img, uint64_t host, struct qcow2_refs *refs)
{
	struct qcow2 *q = img->priv;
	uint64_t per = qcow2_ref_per_block(q), in_block = (uint64_t)COW_META_BLOCK << 3 >> q->refcount_order;
	int rc;

	if (host == 0 || host / per >= q->w.reftable_n || !q->w.reftable[host / per] ||
	    qcow2_set_has(&q->w.meta, host))
		return -EIO;
	if (host >= q->w.reserve.start && host - q->w.reserve.start < q->w.reserve.count)
		return -EIO;		/* not handed out */
	rc = qcow2_refs_pin(img, host, refs);
	if (rc)
		return rc;
	return qcow2_ref_get(cow_meta_data(refs->counts), host % in_block, q->refcount_order) == 1 ? 0 : -EIO;
}

void qcow2_places_drop(struct qcow2 *q)
{
	while (q->places)
		qcow2_unref(q, q->place[--q->places].host, 1);
}
