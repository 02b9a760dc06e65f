// SPDX-License-Identifier: GPL-2.0-or-later
/* See dmfetch.h. */
#include "dmfetch.h"

#include <errno.h>

#define FETCHES 16u
#define SECTOR 512u
#define PAGE_SECTORS 8u

struct fetch {
	struct cow_list node;		/* dmfetch.free, else of nobody */
	struct dmfetch *pool;
	void *ask;
	struct cow_req req;
	uint8_t *record;		/* struct dmu_data and its bytes */
};

struct dmfetch {
	struct cow_dev *dev;
	dmfetch_done_fn *done;
	void *opaque;
	unsigned busy;
	struct cow_list free;
	struct fetch fetch[FETCHES];
};

static uint8_t *bytes_of(struct fetch *f)
{
	return f->record + sizeof(struct dmu_data);
}

static void on_done(struct cow_req *req, int result)
{
	struct fetch *f = req->opaque;
	struct dmfetch *pool = f->pool;

	/* Free for the next one, which may be started as soon as the record was used. */
	pool->busy--;
	cow_list_add_tail(&pool->free, &f->node);
	pool->done(pool->opaque, f->ask, result,
		   req->op == COW_OP_READ ? (const struct dmu_data *)f->record : NULL);
}

static struct fetch *take(struct dmfetch *pool, void *ask)
{
	struct fetch *f;

	if (cow_list_empty(&pool->free))
		return NULL;
	f = cow_list_entry(pool->free.next, struct fetch, node);
	cow_list_del(&f->node);
	pool->busy++;
	f->ask = ask;
	return f;
}

static void submit(struct fetch *f, enum cow_op op, uint64_t start, uint32_t sectors)
{
	uint64_t virt = start * SECTOR, size = cow_dev_size(f->pool->dev);

	f->req = (struct cow_req){
		.op = op, .virt = virt, .buf = bytes_of(f), .done = on_done, .opaque = f,
		.len = cow_min((uint64_t)sectors * SECTOR, size - cow_min(virt, size)),
	};
	cow_dev_submit(f->pool->dev, &f->req);
}

bool dmfetch_data(struct dmfetch *pool, const struct dmu_ask *rec, void *ask)
{
	uint32_t sectors = (uint32_t)cow_min(rec->need, DMU_DATA_SECTORS_MAX);
	struct fetch *f = take(pool, ask);

	if (!f)
		return false;
	if (sectors < rec->need && sectors > PAGE_SECTORS)
		sectors -= (uint32_t)((rec->at + sectors) % PAGE_SECTORS);	/* direct I/O likes whole pages */
	*(struct dmu_data *)f->record = (struct dmu_data){
		.head = { .type = DMU_DATA, .id = rec->head.id,
			  .size = (uint32_t)sizeof(struct dmu_data) + sectors * SECTOR },
		.start = rec->at, .sectors = sectors,
	};
	submit(f, COW_OP_READ, rec->at, sectors);
	return true;
}

bool dmfetch_make(struct dmfetch *pool, enum cow_op op, const struct dmu_ask *rec, uint32_t sectors,
		  void *ask)
{
	struct fetch *f = take(pool, ask);

	if (!f)
		return false;
	submit(f, op, rec->start, sectors);
	return true;
}

int dmfetch_new(struct cow_dev *dev, dmfetch_done_fn *done, void *opaque, struct dmfetch **ret)
{
	struct dmfetch *pool = cow_zalloc(sizeof(*pool));

	if (!pool)
		return -ENOMEM;
	pool->dev = dev;
	pool->done = done;
	pool->opaque = opaque;
	cow_list_init(&pool->free);
	for (unsigned i = 0; i < FETCHES; i++) {
		struct fetch *f = &pool->fetch[i];

		f->pool = pool;
		f->record = cow_memalign(sizeof(uint64_t), DMU_RECORD_MAX);
		if (!f->record) {
			dmfetch_free(pool);
			return -ENOMEM;
		}
		cow_list_add_tail(&pool->free, &f->node);
	}
	*ret = pool;
	return 0;
}

void dmfetch_free(struct dmfetch *pool)
{
	if (!pool)
		return;
	cow_assert(pool->busy == 0);
	for (unsigned i = 0; i < FETCHES; i++)
		cow_free(pool->fetch[i].record);
	cow_free(pool);
}
