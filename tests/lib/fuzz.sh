#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Runs fuzz targets for a given number of executions each, from the seeds in
# tests/fuzz/corpus/NAME, or those that all targets of a format share, and says one
# line about each.
#
# usage: fuzz.sh NAME...
# environment: BUILD (the plain build; the targets are in $BUILD-fuzz),
#              FUZZ_RUNS, FUZZ_RSS_MB, SEED, FUZZ_SECONDS (stop a target then, with fewer
#              executions; 0: never)
set -eu
cd "$(dirname "$0")/../.."

: "${FUZZ_RUNS:=1000000}" "${FUZZ_RSS_MB:=2048}" "${SEED:=1}" "${FUZZ_SECONDS:=0}"
# Freed memory is kept back for as long as one input lasts; more of it means that every
# allocation takes pages that are new, which costs more than all the rest.
ASAN_OPTIONS=${ASAN_OPTIONS:-detect_odr_violation=0:detect_leaks=1}:quarantine_size_mb=4:malloc_context_size=8
COW_PLUGIN_DIR=$BUILD-fuzz/lib/cow
export ASAN_OPTIONS COW_PLUGIN_DIR
passed=0 failed=0

for name; do
	bin=$BUILD-fuzz/tests/fuzz/$name
	work=$BUILD-fuzz/corpus/$name
	mkdir -p "$work" "$BUILD-fuzz/findings"
	for seeds in "tests/fuzz/corpus/$name" "tests/fuzz/corpus/${name%_*}"; do
		[ ! -d "$seeds" ] || cp -r "$seeds/." "$work/"
	done
	log=$BUILD-fuzz/$name.log
	case $name in
	qcow*) longest=4096 ;;	# numbers to put into an image that is made, and operations
	*) longest=65536 ;;
	esac
	if "$bin" -runs="$FUZZ_RUNS" -seed="$SEED" -max_total_time="$FUZZ_SECONDS" -rss_limit_mb="$FUZZ_RSS_MB" -timeout=25 \
	   -max_len=$longest -print_final_stats=1 -artifact_prefix="$BUILD-fuzz/findings/$name-" \
	   "$work" >"$log" 2>&1; then
		ran=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
		asked=$(sed -n 's/^fuzz: \([0-9]* requests\)$/, \1/p' "$log")
		echo "fuzz: $name: ${ran:-0} executions$asked, no finding"
		passed=$((passed + 1))
	else
		echo "fuzz: $name: a finding (SEED=$SEED), log $log"
		tail -n 60 "$log"
		failed=$((failed + 1))
	fi
done
echo "COUNT: $passed $failed 0"
[ $failed = 0 ]
