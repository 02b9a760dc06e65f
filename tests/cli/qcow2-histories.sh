#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# qcow2 both ways, over the matrix of options: images made by either side, changed by
# it and then by the other, read by both, and found clean by both after each turn; what
# cannot be is refused by both. So many combinations that every two values meet; with
# FAULT=full all of them, which takes hours.
# TIMEOUT: 36000
. tests/lib/test.sh
. tests/lib/qcow2.sh
matrix=$PWD/tests/cli/qcow2_matrix.py
which=pairs limit=600
[ "${FAULT:-quick}" != full ] || which=all limit=35000

cd "$TMP"
subtest "$which of the options' values"
timeout $((limit * ${TEST_PATIENCE:-1})) python3 "$matrix" "${SEED:-20060501}" $which || fail "see above"
