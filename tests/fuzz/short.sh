# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 900
#
# A short run of every fuzz target that was built. A million executions each are
# for `make fuzz`.
. tests/lib/test.sh

sh contrib/build/setup.sh --have-fuzzer || skip "no clang with libFuzzer"
names=
for src in tests/fuzz/*.c; do
	[ -f "$src" ] || skip "no fuzz targets"
	name=$(basename "$src" .c)
	[ -x "$BUILD-fuzz/tests/fuzz/$name" ] || fail "$name was not built"
	names="$names $name"
done
FUZZ_RUNS=${FUZZ_RUNS:-20000} FUZZ_SECONDS=25 sh tests/lib/fuzz.sh $names
