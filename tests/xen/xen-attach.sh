# SPDX-License-Identifier: GPL-2.0-or-later
#
# What "cowctl xen-attach" and "xen-detach" can be asked for at all; with a real Xen:
# tests/xenlab/ring.sh and attach.sh.
. tests/lib/test.sh

misuse() {	# REGEX WORD...
	why=$1
	shift
	cowctl "$@" >"$TMP/out" 2>"$TMP/err" && fail "taken: $*"
	[ $? = 2 ] || fail "status of $*"
	head -n 1 "$TMP/err" | grep -Eq -- "$why" || fail "$*: $(cat "$TMP/err")"
	[ ! -s "$TMP/out" ] || fail "$*: to standard output: $(cat "$TMP/out")"
}

subtest "what is an image's does not go with a disk that has none"
misuse 'format .* -p' xen-attach g1 /a xvda
misuse 'an image is needed' xen-attach -p raw g1 xvda
misuse 'no size' xen-attach -p raw --size 1M g1 /a xvda
misuse 'needs --size' xen-attach --backend null g1 xvda
misuse 'no image' xen-attach --backend null --size 1M g1 /a xvda
misuse 'no image' xen-attach --backend null --size 1M -p raw g1 xvda
misuse 'no image' xen-attach --backend null --size 1M --private g1 xvda
misuse 'only one' xen-attach -p raw -r --private g1 /a xvda
misuse 'null only' xen-attach --backend qdisk --size 1M g1 xvda
misuse '512 or 4096' xen-attach -p raw --sector-size 2048 g1 /a xvda
misuse 'wrong number' xen-attach -p raw g1
misuse 'wrong number' xen-attach -p raw g1 /a xvda xvdb

subtest "other verbs do not take its options"
for o in --backend=null --size=1M --sector-size=512 --private -r; do
	misuse 'does not take' xen-detach $o g1 xvda
	misuse 'does not take' list $o
done

subtest "without Xen it says so"
[ ! -e /proc/xen/capabilities ] || exit 0
for words in 'xen-attach -p raw g1 /a xvda' 'xen-attach --backend null --size 1M g1 xvda' 'xen-detach g1 xvda'; do
	# shellcheck disable=SC2086
	cowctl $words 2>"$TMP/err" && fail "taken: $words"
	[ $? = 1 ] || fail "status of $words"
	[ "$(wc -l <"$TMP/err")" = 1 ] || fail "$words: $(cat "$TMP/err")"
done
