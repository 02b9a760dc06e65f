#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 600
#
# What the pages say of interfaces, held against the sources: the plugin ABI
# (and its example, which is compiled and used), the header of dscow, the verbs,
# JSON members and counters of the daemon and the tools.
. tests/lib/test.sh
require_cmd jq gcc
FACTS=$BUILD/tests/cli/man-facts
[ -x "$FACTS" ] || fail "$FACTS is not built"

# Each word of standard input stands in PAGE as a word of its own, behind a macro.
all_in() {	# PAGE WHAT
	sort -u >"$TMP/words"
	[ "$(wc -l <"$TMP/words")" -ge 2 ] || fail "found too little of $2: this shows nothing"
	while read -r word; do
		grep -Eq "^\.(.* )?$word( .*)?\$" "$1" || fail "$1 does not name $2 '$word'"
	done <"$TMP/words"
}

members() {	# HEADER STRUCT: names of its members
	awk -v start="struct $2 {" '
		$0 == start { on = 1; next }
		/^}/ { on = 0 }
		!on { next }
		{
			line = $0
			# Comments, on one line and over several.
			if (comment) { if (!sub(/^.*\*\//, "", line)) next; comment = 0 }
			gsub(/\/\*.*\*\//, "", line)
			if (sub(/\/\*.*/, "", line)) comment = 1
			if (line ~ /^\t\t/ || line !~ /^\t[a-z]/) next
			if (match(line, /\(\*[a-z_]+\)\(/)) {
				print substr(line, RSTART + 2, RLENGTH - 4)
				next
			}
			sub(/;.*/, "", line)
			gsub(/\[[^\]]*\]/, "", line)
			n = split(line, part, ",")
			for (i = 1; i <= n; i++) {
				sub(/^.*[ \t*]/, "", part[i])
				print part[i]
			}
		}' "$1"
}

subtest the plugin interface
page=man/cow-format.7
api=daemon/include/cow
for s in cow_format cow_image cow_create cow_report cow_backing cow_identity; do
	members $api/format.h $s | all_in $page "member of struct $s"
done
for s in cow_query cow_extent cow_map; do
	members $api/map.h $s | all_in $page "member of struct $s"
done
members $api/format.h cow_format >"$TMP/members"
[ "$(wc -l <"$TMP/members")" -ge 24 ] || fail 'the members of struct cow_format were not found'
# In the page's two lists of it there is nothing that is not a member.
sed -n '/^\.Sh THE FORMAT/,/^\.Sh THE IMAGE/s/^\.It Va //p' $page | tr -s ', ' '\n' >"$TMP/page"
sort "$TMP/page" >"$TMP/page.s"
sort "$TMP/members" | diff - "$TMP/page.s" >&2 || fail "$page: members of struct cow_format"
grep -oh 'COW_\(CAP\|OPEN\|CHECK\|EXT\|META\)_[A-Z]*' $api/format.h $api/map.h $api/meta.h |
	grep -v '_$\|COW_META_H$\|COW_META_CLASSES' | all_in $page constant
cat $api/map.h $api/meta.h | sed 's|/\*.*\*/||' | tr '\n' ' ' | grep -o 'enum cow_[a-z_]* {[^}]*}' |
	grep -o 'COW_[A-Z_]*' | grep -v COW_META_CLASSES | all_in $page constant
sed -n 's/^COW_EXPORT .*[ *]\(cow_[a-z_]*\)(.*/\1/p' $api/format.h $api/meta.h | while read -r fn; do
	grep -q "^\.\(It \)\{0,1\}Fn \"\{0,1\}[a-z_ *]*$fn\>" $page || fail "$page does not describe $fn()"
done || exit 1

subtest its example compiles, and works
mkdir "$TMP/cow"
sed -n '/^\.\\" BEGIN shelf.c/,/^\.\\" END shelf.c/p' $page | grep -v '^\.\\"' | sed 's/\\e/\\/g' >"$TMP/shelf.c"
[ "$(wc -l <"$TMP/shelf.c")" -gt 80 ] || fail 'the example was not found'
if nm -D "$BUILD/lib/libcow.so" | grep -q __asan_init; then
	echo 'built with sanitizers: the example would need them, too; only compiled'
	gcc -std=gnu11 -Wall -Wextra -Wshadow -Werror -Idaemon/include -fsyntax-only "$TMP/shelf.c"
else
	gcc -std=gnu11 -Wall -Wextra -Wshadow -Werror -Idaemon/include -fPIC -fvisibility=hidden \
		-shared -Wl,-z,defs -o "$TMP/cow/cow-shelf.so" "$TMP/shelf.c" -L"$BUILD/lib" -lcow
	cp "$BUILD"/lib/cow/*.so "$TMP/cow/"
	COW_PLUGIN_DIR=$TMP/cow
	export COW_PLUGIN_DIR
	cd "$TMP"
	cowimg create -q -f shelf a.shelf 1000001
	expect_fail 'cowimg create -f shelf b.shelf 65G' 'more than 64 GiB'
	cp a.shelf bad.shelf
	truncate -s -1 bad.shelf
	expect_fail 'cowimg info -f shelf bad.shelf' 'bad.shelf: is cut off'
	truncate -s 1000001 ref
	seq 1 999999 | head -c 300000 >bytes
	cowimg write -q -f shelf -s 3 a.shelf bytes
	dd if=bytes of=ref bs=64K seek=3 oflag=seek_bytes conv=notrunc status=none
	head -c 100001 bytes | cowimg write -q -f shelf -s 900000 a.shelf
	head -c 100001 bytes | dd of=ref bs=64K seek=900000 oflag=seek_bytes conv=notrunc status=none
	cowimg zero -q -f shelf -s 70000 -l 200000 a.shelf
	head -c 200000 /dev/zero | dd of=ref bs=64K seek=70000 oflag=seek_bytes conv=notrunc status=none
	cowimg read -q -f shelf a.shelf out
	cmp ref out || fail 'the example does not read back what was written'
	cowimg map -f shelf --output=json a.shelf | jq -e '.map | map(select(.kind == "zero")) | length > 0' >/dev/null ||
		fail 'the example has no holes'
	cowimg create -q -f dscow -b a.shelf -F shelf over.dscow
	cowimg read -q -f dscow over.dscow out2
	cmp ref out2 || fail 'an overlay over the example reads otherwise'
	cd - >/dev/null
	unset COW_PLUGIN_DIR
fi

subtest the header of dscow
# Offset, length and name of each member, from the C structure (it is packed) and from the page.
awk '
	/^struct dscow_(header|mapsec) \{/ { on = 1; off = 0 }
	/^}/ { on = 0 }
	on && match($0, /^\tu?int(8|16|32|64)_t [a-z_0-9]+/) {
		line = $0
		sub(/^\tu?int/, "", line)
		bytes = line + 0
		sub(/^[0-9]+_t /, "", line)
		name = line
		sub(/[;\[].*/, "", name)
		n = 1
		if (line ~ /^[a-z_0-9]+\[DSCOW_SEC_BITS_BYTES\]/) n = 496
		else if (match(line, /\[[0-9]+\]/)) n = substr(line, RSTART + 1) + 0
		print off, n * bytes / 8, name
		off += n * bytes / 8
	}' formats/dscow/dscow.h >"$TMP/code"
[ "$(wc -l <"$TMP/code")" = 29 ] || fail "dscow.h: $(wc -l <"$TMP/code") members found"
sed -n 's/^\.It \([0-9]*\) Ta \([0-9]*\) Ta \([a-z_0-9]*\) Ta .*/\1 \2 \3/p' man/dscow.5 | diff "$TMP/code" - >&2 ||
	fail 'dscow.h (<) and dscow(5) (>) differ'
[ "$(grep -c '^#define DSCOW_INCOMPAT_[A-Z]*	(1u' formats/dscow/dscow.h)" = \
	"$(grep -c '^\.It incompat bit' man/dscow.5)" ] || fail 'dscow(5): feature bits'
sed -n 's/^#define DSCOW_STATE_\([A-Z_]*\).*(1u << \([0-9]*\)).*/.It bit \2, \1/p' formats/dscow/dscow.h >"$TMP/code"
grep '^\.It bit' man/dscow.5 | diff "$TMP/code" - >&2 || fail 'dscow(5): states'
grep -q "^#define DSCOW_VERSION[^0-9]*1u\$" formats/dscow/dscow.h || fail 'dscow(5) describes version 1'

subtest the control protocol
page=man/cowd-control.7
sed -n 's/^	{ "\([a-z-]*\)", [0-9]*, [0-9]*, "\(.*\)", verb_.*/\1 \2/p' daemon/cowd/verbs.c | sed 's/ $//' >"$TMP/code"
[ "$(wc -l <"$TMP/code")" -ge 12 ] || fail 'the verbs were not found'
sed -n '/^\.Sh VERBS/,/^\.Sh JSON/s/^\.It Ic //p' $page |
	sed 's/Ar //g;s/Op Cm \([^ ]*\)/[\1]/;s/Op \([A-Z]*\)/[\1]/' >"$TMP/page"
sort "$TMP/code" >"$TMP/code.s"
# "Op Cm x" is "[x]" there, and a literal word there is the same word here.
sort "$TMP/page" | diff "$TMP/code.s" - >&2 || fail 'verbs: cowd (<) and the page (>) differ'
for limit in PROTO_PACKET:4096 PROTO_WORDS:16; do
	grep -q "^#define ${limit%:*} ${limit#*:}\>" daemon/cowd/proto.h || fail "$page: ${limit%:*} changed"
done
grep -q '^#define CONTROL_CLIENTS 64\>' daemon/cowd/control.h || fail "$page: CONTROL_CLIENTS changed"
grep -q '^#define CONTROL_REPLY (256u << 10)' daemon/cowd/control.h || fail "$page: CONTROL_REPLY changed"

subtest JSON members and counters
json_keys() {	# SOURCE...: the keys it writes
	sed -n 's/.*cow_kv_[a-z0-9]*([a-z>-]*kv, "\([a-z0-9_]*\)".*/\1/p' "$@"
}
{
	"$FACTS" stats | jq -r '.. | objects | keys[]'
	"$FACTS" status | jq -r '.. | objects | keys[]'
	json_keys daemon/cowd/verbs.c daemon/cowd/views.c daemon/lib/dev-stats.c daemon/tools/cowctl-list.c
	sed -n '/^static void layer_info/,/^}/p' daemon/lib/chain.c >"$TMP/layer.c"
	json_keys "$TMP/layer.c"
} | all_in $page 'JSON member'
{
	json_keys daemon/tools/cowimg-*.c daemon/tools/dscow_tool.c daemon/lib/maplist.c
	json_keys formats/dscow/dscow.c "$TMP/layer.c"
} | grep -v '^present_bytes$' | all_in man/cowimg.1 'JSON member'
echo 'present_bytes cowimg info' | tr ' ' '\n' | all_in man/dscow_tool.1 'word'
"$FACTS" openmetrics | sed -n 's/^\(cowd_[a-z_]*\){.*/\1/p' | sed 's/_seconds_\(bucket\|sum\|count\)$/_seconds/' |
	sort -u >"$TMP/code"
[ "$(wc -l <"$TMP/code")" -ge 20 ] || fail 'the counters were not found'
sed -n '/^\.Sh OPENMETRICS/,/^\.Sh FILES/s/^\.It Va //p' $page | tr -s ', ' '\n' | sort |
	diff "$TMP/code" - >&2 || fail 'counters: cowd (<) and the page (>) differ'

subtest "the target: table line, status, records"
page=man/dm-userspace.4
rst=kernel-compat/dm-userspace.rst
api=kernel-compat/uapi/linux/dm-userspace.h
target=kernel-compat/dmu-target.c
sed -n 's/^	\[GIVEN_[A-Z_]*\] = "\(.*\)",$/\1/p' $target | sort >"$TMP/code"
[ "$(wc -l <"$TMP/code")" -ge 6 ] || fail 'the features were not found'
all_in $page feature <"$TMP/code"
sed -n '/^Table line$/,/^Status$/s/^\([a-z]*_*[a-z_]*:\{0,1\}\)[A-Z]*$/\1/p' $rst | grep . | sort |
	diff "$TMP/code" - >&2 || fail "features: the target (<) and $rst (>) differ"
sed -n 's/.*argv\[0\], "\([a-z_]*\)").*/\1/p' $target >"$TMP/messages"
all_in $page message <"$TMP/messages"
while read -r word; do
	sed -n '/^Messages$/,/^Events$/p' $rst | grep -Eq "^$word( [A-Z]+)?\$" || fail "$rst: message $word"
done <"$TMP/messages"
# As many fields as the sources print, by the same names in both.
fields=$(sed -n 's/.*DMEMIT("\(%s %s %s [%a-z ]*\)".*/\1/p' $target | tr -cd % | wc -c)
sed -n '/^\.Ss Status/,/^\.Ss Messages/s/^\.It //p' $page >"$TMP/status"
[ "$fields" -ge 10 ] && [ "$(wc -l <"$TMP/status")" = "$fields" ] || fail "$page: fields of the status"
tr a-z A-Z <"$TMP/status" | paste -sd ' ' >"$TMP/upper"
sed -n 's/^	\(KEY MODE DAEMON .*\)$/\1/p' $rst | diff "$TMP/upper" - >&2 || fail "$rst: fields of the status"
sed -n 's/^#define \(DMU_[A-Z_]*\)	.*/\1/p' $api |
	grep -Ev '_(MIN|SHIFT|SECTORS|BYTES_MAX)$|^DMU_(FEATURES|NODE|KEY_MAX|DEVICES_MAX)$' | all_in $page constant
sed -n 's|^#define \(DMU_[A-Z]*\)[	0-9]*/\* struct dmu_.*|\1|p' $api >"$TMP/records"
[ "$(wc -l <"$TMP/records")" = 16 ] || fail 'the records were not found'
while read -r word; do
	grep -q "\`\`$word\`\`" $rst || fail "$rst does not name $word"
done <"$TMP/records"
if python3 -c 'import docutils' 2>/dev/null; then
	python3 - $rst <<'END' || fail "$rst is not reStructuredText"
import sys, docutils.core
docutils.core.publish_file(source_path=sys.argv[1], writer_name='null',
                           settings_overrides={'report_level': 1, 'halt_level': 1})
END
fi
