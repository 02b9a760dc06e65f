#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Runs fuzz targets for a given number of executions each, from the seeds in
# tests/fuzz/corpus/NAME, and says one line about each.
#
# usage: fuzz.sh NAME...
# environment: BUILD (the plain build; the targets are in $BUILD-fuzz),
#              FUZZ_RUNS, FUZZ_RSS_MB, SEED, FUZZ_SECONDS (stop a target then, with fewer
#              executions; 0: never)
set -eu
cd "$(dirname "$0")/../.."

: "${FUZZ_RUNS:=1000000}" "${FUZZ_RSS_MB:=2048}" "${SEED:=1}" "${FUZZ_SECONDS:=0}"
ASAN_OPTIONS=${ASAN_OPTIONS:-detect_odr_violation=0:detect_leaks=1}
COW_PLUGIN_DIR=$BUILD-fuzz/lib/cow
export ASAN_OPTIONS COW_PLUGIN_DIR
passed=0 failed=0

for name; do
	bin=$BUILD-fuzz/tests/fuzz/$name
	work=$BUILD-fuzz/corpus/$name
	mkdir -p "$work" "$BUILD-fuzz/findings"
	[ ! -d "tests/fuzz/corpus/$name" ] || cp -r "tests/fuzz/corpus/$name/." "$work/"
	log=$BUILD-fuzz/$name.log
	if "$bin" -runs="$FUZZ_RUNS" -seed="$SEED" -max_total_time="$FUZZ_SECONDS" -rss_limit_mb="$FUZZ_RSS_MB" -timeout=25 \
	   -max_len=65536 -print_final_stats=1 -artifact_prefix="$BUILD-fuzz/findings/$name-" \
	   "$work" >"$log" 2>&1; then
		ran=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
		echo "fuzz: $name: ${ran:-0} executions, no finding"
		passed=$((passed + 1))
	else
		echo "fuzz: $name: a finding (SEED=$SEED), log $log"
		tail -n 60 "$log"
		failed=$((failed + 1))
	fi
done
echo "COUNT: $passed $failed 0"
[ $failed = 0 ]
