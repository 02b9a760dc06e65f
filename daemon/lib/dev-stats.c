// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a running device tells about itself: its state, and its counters as a
 * structure, a key/value tree and OpenMetrics text. Changes nothing.
 */
#include "dev-impl.h"

static const char *const op_names[COW_OPS] = {
	[COW_OP_READ] = "read",
	[COW_OP_WRITE] = "write",
	[COW_OP_ZERO] = "zero",
	[COW_OP_DISCARD] = "discard",
	[COW_OP_FLUSH] = "flush",
	[COW_OP_WRITTEN] = "written",
	[COW_OP_PRESENT] = "present",
	[COW_OP_PLACE] = "place",
};

/* The chain's counters: one table for both outputs. */
static const struct chain_counter {
	const char *name, *help;
	size_t off;
	bool gauge;
} chain_counters[] = {
#define COUNTER(m, h) { #m, h, offsetof(struct cow_chain_stats, m), false }
#define GAUGE(m, h) { #m, h, offsetof(struct cow_chain_stats, m), true }
	COUNTER(meta_hits, "Metadata blocks found in the cache"),
	COUNTER(meta_misses, "Metadata blocks read"),
	COUNTER(meta_writes, "Metadata blocks written"),
	COUNTER(meta_evictions, "Metadata blocks dropped from the cache"),
	GAUGE(meta_cached_bytes, "Size of the metadata cache"),
	GAUGE(meta_dirty_bytes, "Metadata not written yet"),
	COUNTER(copied_bytes, "Old contents carried over by first writes"),
	COUNTER(allocated_bytes, "Data that became present in the top layer"),
	COUNTER(data_syncs, "Data made durable, times"),
	COUNTER(meta_syncs, "Metadata made durable, times"),
	COUNTER(io_inline, "File operations answered at once"),
	COUNTER(io_async, "File operations answered later"),
	COUNTER(adopted_blocks, "Metadata blocks taken over from a killed process"),
#undef COUNTER
#undef GAUGE
};

static uint64_t counter_value(const struct cow_chain_stats *st, const struct chain_counter *c)
{
	uint64_t v;

	memcpy(&v, (const char *)st + c->off, sizeof(v));
	return v;
}

const char *cow_op_name(enum cow_op op)
{
	return (unsigned)op < COW_OPS ? op_names[op] : "unknown";
}

const char *dev_state(const struct cow_dev *d)
{
	if (d->nospace)
		return "no-space";
	return cow_dev_paused(d) ? "paused" : "running";
}

void cow_dev_get_stats(const struct cow_dev *d, struct cow_dev_stats *ret)
{
	memset(ret, 0, sizeof(*ret));
	memcpy(ret->op, d->op, sizeof(ret->op));
	cow_chain_get_stats(d->chain, &ret->chain);
	ret->inflight = d->inflight;
	ret->parked = d->n_parked;
	ret->uptime_ms = (dev_now_ns() - d->start_ns) / 1000000;
}

void cow_dev_status(struct cow_dev *d, struct cow_kv *kv)
{
	cow_kv_bool(kv, "read_only", cow_dev_readonly(d));
	cow_kv_str(kv, "state", dev_state(d));
	cow_kv_str(kv, "mode", cow_chain_mode_name(cow_chain_mode(d->chain)));
	cow_chain_info(d->chain, kv);
}

void cow_dev_stats_kv(struct cow_dev *d, struct cow_kv *kv)
{
	struct cow_dev_stats st;
	unsigned i, b;

	cow_dev_get_stats(d, &st);
	cow_kv_u64(kv, "uptime_ms", st.uptime_ms);
	cow_kv_u64(kv, "inflight", st.inflight);
	cow_kv_u64(kv, "parked", st.parked);
	cow_kv_size(kv, "occupied_bytes", cow_chain_sectors_used(d->chain) * 512);
	cow_kv_object(kv, "ops");
	for (i = 0; i < COW_OPS; i++) {
		const struct cow_op_stats *op = &st.op[i];

		cow_kv_object(kv, op_names[i]);
		cow_kv_u64(kv, "ops", op->ops);
		cow_kv_u64(kv, "bytes", op->bytes);
		cow_kv_u64(kv, "errors", op->errors);
		cow_kv_u64(kv, "total_ns", op->total_ns);
		cow_kv_list(kv, "latency_log2_us");
		for (b = 0; b < COW_LAT_BUCKETS; b++)
			cow_kv_u64(kv, NULL, op->lat[b]);
		cow_kv_close(kv);
		cow_kv_close(kv);
	}
	cow_kv_close(kv);
	cow_kv_object(kv, "chain");
	for (i = 0; i < COW_ARRAY_SIZE(chain_counters); i++)
		cow_kv_u64(kv, chain_counters[i].name,
			   counter_value(&st.chain, &chain_counters[i]));
	cow_kv_close(kv);
}

/* ---- OpenMetrics ---- */

/* {device="NAME" with what a label value must not hold escaped; the caller closes the brace. */
static void om_label(FILE *out, const char *name)
{
	fputs("{device=\"", out);
	for (; *name; name++) {
		if (*name == '\n')
			fputs("\\n", out);
		else if (*name == '"' || *name == '\\')
			fprintf(out, "\\%c", *name);
		else
			fputc(*name, out);
	}
	fputc('"', out);
}

static void om_family(FILE *out, const char *name, const char *type, const char *unit,
		      const char *help)
{
	fprintf(out, "# TYPE cowd_%s %s\n", name, type);
	if (unit)
		fprintf(out, "# UNIT cowd_%s %s\n", name, unit);
	fprintf(out, "# HELP cowd_%s %s.\n", name, help);
}

static void om_value(FILE *out, const struct cow_dev *d, const char *name, const char *suffix,
		     uint64_t value)
{
	fprintf(out, "cowd_%s%s", name, suffix);
	om_label(out, d->name);
	fprintf(out, "} %llu\n", (unsigned long long)value);
}

static void om_op_counter(FILE *out, const struct cow_dev *d, const char *name, const char *unit,
			  const char *help, size_t off)
{
	uint64_t v;
	unsigned i;

	om_family(out, name, "counter", unit, help);
	for (i = 0; i < COW_OPS; i++) {
		memcpy(&v, (const char *)&d->op[i] + off, sizeof(v));
		fprintf(out, "cowd_%s_total", name);
		om_label(out, d->name);
		fprintf(out, ",op=\"%s\"} %llu\n", op_names[i], (unsigned long long)v);
	}
}

static void om_latency(FILE *out, const struct cow_dev *d)
{
	unsigned i, b;

	om_family(out, "latency_seconds", "histogram", "seconds",
		  "Time from a request to its answer");
	for (i = 0; i < COW_OPS; i++) {
		const struct cow_op_stats *op = &d->op[i];
		uint64_t sum = 0;

		for (b = 0; b < COW_LAT_BUCKETS; b++) {
			sum += op->lat[b];
			fputs("cowd_latency_seconds_bucket", out);
			om_label(out, d->name);
			fprintf(out, ",op=\"%s\",le=\"", op_names[i]);
			if (b == COW_LAT_BUCKETS - 1)
				fputs("+Inf", out);
			else
				fprintf(out, "%u.%06u", (1u << b) / 1000000, (1u << b) % 1000000);
			fprintf(out, "\"} %llu\n", (unsigned long long)sum);
		}
		fputs("cowd_latency_seconds_sum", out);
		om_label(out, d->name);
		fprintf(out, ",op=\"%s\"} %llu.%09llu\n", op_names[i],
			(unsigned long long)(op->total_ns / 1000000000),
			(unsigned long long)(op->total_ns % 1000000000));
		fputs("cowd_latency_seconds_count", out);
		om_label(out, d->name);
		fprintf(out, ",op=\"%s\"} %llu\n", op_names[i], (unsigned long long)sum);
	}
}

void cow_dev_stats_openmetrics(struct cow_dev *d, FILE *out)
{
	struct cow_dev_stats st;
	unsigned i;

	cow_dev_get_stats(d, &st);
	om_op_counter(out, d, "ops", NULL, "Requests answered", offsetof(struct cow_op_stats, ops));
	om_op_counter(out, d, "bytes", "bytes", "Bytes of requests that succeeded",
		      offsetof(struct cow_op_stats, bytes));
	om_op_counter(out, d, "errors", NULL, "Requests that failed",
		      offsetof(struct cow_op_stats, errors));
	om_latency(out, d);
	om_family(out, "inflight", "gauge", NULL, "Requests being worked on");
	om_value(out, d, "inflight", "", st.inflight);
	om_family(out, "parked", "gauge", NULL, "Requests waiting for a pause to end or for space");
	om_value(out, d, "parked", "", st.parked);
	om_family(out, "size_bytes", "gauge", "bytes", "Size of the device");
	om_value(out, d, "size_bytes", "", cow_dev_size(d));
	om_family(out, "occupied_bytes", "gauge", "bytes", "Space the files of all layers take");
	om_value(out, d, "occupied_bytes", "", cow_chain_sectors_used(d->chain) * 512);
	for (i = 0; i < COW_ARRAY_SIZE(chain_counters); i++) {
		const struct chain_counter *c = &chain_counters[i];
		size_t n = strlen(c->name);
		bool bytes = n > 6 && !strcmp(c->name + n - 6, "_bytes");

		om_family(out, c->name, c->gauge ? "gauge" : "counter", bytes ? "bytes" : NULL,
			  c->help);
		om_value(out, d, c->name, c->gauge ? "" : "_total", counter_value(&st.chain, c));
	}
	fputs("# EOF\n", out);
}
