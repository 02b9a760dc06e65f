#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The usage lines of a program's --help are the lines of its page's SYNOPSIS.
# A page may show more there, such as how mount(8) calls the program.
. tests/lib/test.sh
require_cmd mandoc
BS=$(printf '\b')

usage() {	# COMMAND
	$1 --help | awk '
		NR == 1 { sub(/^Usage: /, ""); print; next }
		/^       [a-z]/ { sub(/^ */, ""); print; next }
		{ exit }'
}

synopsis() {	# PAGE NAME
	mandoc -Tascii -Owidth=1000 "$1" | sed "s/.$BS//g" |
		sed -n '/^SYNOPSIS/,/^[A-RT-Z]/s/^ \{1,\}\('"$2"' .*\)/\1/p'
}

for program in "$BUILD"/bin/*; do
	name=${program##*/}
	subtest "$name"
	for page in man/"$name".[18]; do
		[ -e "$page" ] || fail "$name has no page in man/"
	done
	usage "$name" >"$TMP/code"
	if [ "$name" = cowimg ]; then
		for verb in $(cowimg --help | sed -n '/^Verbs:/,$s/^  \([a-z]*\) .*/\1/p'); do
			usage "cowimg $verb" >>"$TMP/code"
		done
	fi
	synopsis "$page" "$name" >"$TMP/page"
	[ -s "$TMP/page" ] || fail "$page has no SYNOPSIS"
	diff "$TMP/code" "$TMP/page" >&2 || fail "$name: --help (<) and the page (>) differ"
done
