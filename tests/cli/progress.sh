#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Progress of long work: a bar on a terminal alone, lines for programs where they ask for
# them, and no escape code anywhere.
. tests/lib/test.sh
require_cmd jq script
cd "$TMP"
seq 1 600000 >src.raw
cowimg create -q -f dscow -b src.raw -F raw over.dscow
cowimg write -q -f dscow -s 100000 -l 300000 --pattern 7 over.dscow

# Each long verb, on images as above.
verbs() {
	cat <<-END
		check -f dscow over.dscow
		compare -f raw src.raw src.raw
		convert --overwrite -f raw src.raw out.raw
		dd --overwrite -f raw if=src.raw of=out.raw bs=1000 skip=3
		diff -f dscow -F raw over.dscow src.raw
		read -f raw -l 5000 src.raw
		rebase -f dscow -b src.raw -F raw over.dscow
		zero -f dscow -l 5000 over.dscow
		discard -f dscow -l 70000 over.dscow
		write -f dscow -l 70000 --pattern 1 over.dscow
		commit -f dscow over.dscow
	END
}

subtest lines for programs
verbs | while read -r line; do
	# shellcheck disable=SC2086
	cowimg $line --progress-fd=5 5>lines >said 2>&1 || fail "$line: $(cat said)"
	[ -s lines ] || fail "$line: no line"
	jq -es 'map(.schema == 1 and .done_bytes >= 0 and .bytes_per_second >= 0 and
		(.total_bytes == null or .total_bytes >= .done_bytes)) | all' lines >/dev/null ||
		fail "$line: $(cat lines)"
done || exit 1
cowimg convert -q --overwrite --progress-fd 5 -f raw src.raw out.raw 5>lines
jq -es "last | .done_bytes == $(stat -c %s src.raw) and .total_bytes == .done_bytes and .seconds_left == 0" lines >/dev/null ||
	fail "the last line: $(tail -n 1 lines)"

subtest "nobody reads"
(
	exec 5>/dev/full
	cowimg convert -q --overwrite --progress-fd 5 -f raw src.raw out.raw
) || fail 'a full file stopped it'
mkfifo pipe
exec 5<>pipe 6>pipe 5<&-
cowimg convert -q --overwrite --progress-fd 6 -f raw src.raw out.raw || fail "a closed pipe stopped it: $?"
exec 6>&-
cmp src.raw out.raw
for fd in 0 -1 x 77 '' 99999999999; do
	expect_fail "cowimg convert -f raw --progress-fd '$fd' src.raw none" 'open file descriptor'
	[ "$status" = 2 ] || fail "--progress-fd $fd: status $status"
done

subtest a bar, on a terminal alone
script -qec 'cowimg convert -p --overwrite -f raw src.raw out.raw' typescript </dev/null >/dev/null
grep -q '100%.*MiB of .*/s, 0 s left' typescript || fail "no bar: $(cat typescript)"
verbs | while read -r line; do
	# shellcheck disable=SC2086
	cowimg $line -p >said 2>bar || fail "$line: $(cat bar)"
	[ ! -s bar ] || fail "$line: a bar without a terminal"
done || exit 1
! grep -q "$(printf '\033')" typescript || fail 'an escape code'
