/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the device has to do before a question of the kernel target can be answered: give
 * a range a place in the top image, or read bytes that the kernel cannot read itself. A
 * fixed number at a time; nothing is allocated while it runs. Talks to no kernel.
 */
#ifndef COWD_DMFETCH_H
#define COWD_DMFETCH_H

#include "cow/dev.h"
#include "kernel-compat/uapi/linux/dm-userspace.h"

struct dmfetch;

/*
 * The one started for @ask, which the owner kept, ended with @result. @data: the record
 * that answers it, until another one is started; NULL: the range is present now.
 */
typedef void dmfetch_done_fn(void *opaque, void *ask, int result, const struct dmu_data *data);

int dmfetch_new(struct cow_dev *dev, dmfetch_done_fn *done, void *opaque, struct dmfetch **ret);
/* Nothing may be under way. NULL is allowed. */
void dmfetch_free(struct dmfetch *f);

/* What @rec asks for; @ask comes back in @done. False: too many are under way, one of them ends. */
bool dmfetch_data(struct dmfetch *f, const struct dmu_ask *rec, void *ask);
/* @op: COW_OP_PRESENT or COW_OP_PLACE, of the first @sectors of what it asks for. */
bool dmfetch_make(struct dmfetch *f, enum cow_op op, const struct dmu_ask *rec, uint32_t sectors, void *ask);

#endif
