#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Every option of every program, and every option of every format, has an entry
# in its man page, spelled alike, and no page has an entry for what is not there.
# The programs' own tables (--help, --long-options) are the truth.
#
# The pages' side of the bargain: an option's entry is a line ".It Fl x , Fl Fl
# long Ns = Ns Ar ARG"; a verb of cowimg has a subsection of OPTIONS, with the
# line behind "Common options:" naming those described in the subsection of that
# name; a key is a line ".It Cm key Ns = Ns Ar VALUE".
. tests/lib/test.sh
MAN=$PWD/man
FACTS=$BUILD/tests/cli/man-facts

# Turns macro lines into text as mandoc would: "-x, --long=ARG".
cat >"$TMP/heads.awk" <<'EOF2'
function text(line,    n, t, i, x, out, glue) {
	n = split(line, t, " ")
	glue = 1
	for (i = 2; i <= n; i++) {
		x = t[i]
		if (x == "Ns") { glue = 1; continue }
		if (x == "Ar" || x == "Cm" || x == "No") continue
		if (x == "Oo") { out = out (glue ? "" : " ") "["; glue = 1; continue }
		if (x == "Oc") { out = out "]"; continue }
		if (x == "Fl" && t[i + 1] == "Fl") { x = "--" t[i + 2]; i += 2 }
		else if (x == "Fl") { x = "-" t[i + 1]; i++ }
		out = out (glue || x == "," ? "" : " ") x
		glue = 0
	}
	return out
}
# Short and long names on the line behind "Common options:".
function listed(line,    n, t, i) {
	n = split(line, t, " ")
	for (i = 2; i <= n; i++) {
		if (t[i] == "," || t[i] == ".") continue
		if (t[i] == "Fl") {
			if (t[i + 1] == "Fl") { print "want --" t[i + 2]; i += 2 }
			continue
		}
		print "want -" t[i]
	}
}
/^\.Sh / { sh = $0; ss = "" }
/^\.Ss / { ss = substr($0, 5) }
sh == ".Sh OPTIONS" && ss == section {
	if (/^\.It Fl /) print "head " text($0)
	if (common) listed($0)
	common = /^Common options:$/
}
EOF2

heads() {	# PAGE SUBSECTION: "head OPTION" and "want -x" lines
	awk -v section="$2" -f "$TMP/heads.awk" "$1"
}

program_heads() {	# COMMAND: its help's options, as the page spells them
	$1 --help | sed -n 's/^ \{2,6\}\(\(-., \)\{0,1\}--[a-z-]*\(\[\{0,1\}=[^ ]*\)\{0,1\}\)\( .*\)\{0,1\}$/\1/p'
}

agree() {	# WHAT: $TMP/code and $TMP/page, unsorted
	[ -s "$TMP/code" ] || fail "$1: the program tells no options: this shows nothing"
	sort "$TMP/code" >"$TMP/code.s"
	sort "$TMP/page" >"$TMP/page.s"
	diff "$TMP/code.s" "$TMP/page.s" >"$TMP/diff" ||
		fail "$1: only the program has (<), only the page has (>):
$(grep '^[<>]' "$TMP/diff")"
}

page_of() {	# PROGRAM
	for page in "$MAN/$1".[18]; do
		[ -e "$page" ] || fail "$1 has no page in man/"
		echo "$page"
		return
	done
}

subtest options of the programs
for program in "$BUILD"/bin/*; do
	name=${program##*/}
	page=$(page_of "$name")
	[ "$name" != cowimg ] || continue
	program_heads "$program" >"$TMP/code"
	heads "$page" '' | sed -n 's/^head //p' >"$TMP/page"
	agree "$name"
	# The short way to the names, which scripts and completion use, says the same.
	"$program" --long-options | sort >"$TMP/long"
	sed 's/^-., //;s/\[*=.*//' "$TMP/code" | sort | diff - "$TMP/long" || fail "$name --long-options"
done

subtest options of the verbs of cowimg
cowimg --help | sed -n '/^Verbs:/,$s/^  \([a-z]*\) .*/\1/p' >"$TMP/verbs"
[ "$(wc -l <"$TMP/verbs")" -ge 12 ] || fail 'cowimg lists too few verbs'
program_heads cowimg >"$TMP/code"
heads man/cowimg.1 'Of cowimg itself' | sed -n 's/^head //p' >"$TMP/page"
agree cowimg
cp "$TMP/page" "$TMP/self"
heads man/cowimg.1 'Common options' | sed -n 's/^head //p' >"$TMP/common"
: >"$TMP/used"
while read -r verb; do
	program_heads "cowimg $verb" | grep -vxFf "$TMP/self" >"$TMP/code"
	heads man/cowimg.1 "$verb" >"$TMP/entries"
	[ -s "$TMP/entries" ] || fail "cowimg(1) has no subsection '$verb' with options"
	sed -n 's/^head //p' "$TMP/entries" >"$TMP/page"
	for want in $(sed -n 's/^want //p' "$TMP/entries"); do
		found=$(awk -v want="$want" '{
			line = $0; gsub(/=.*/, ""); n = split($0, name, ", ")
			for (i = 1; i <= n; i++) if (name[i] == want) print line }' "$TMP/common")
		[ -n "$found" ] || fail "cowimg $verb: $want is not among the common options"
		echo "$found" | tee -a "$TMP/used" >>"$TMP/page"
	done
	agree "cowimg $verb"
	cowimg "$verb" --long-options | sort >"$TMP/long"
	sed 's/^-., //;s/\[*=.*//' "$TMP/self" "$TMP/code" | sort | diff - "$TMP/long" ||
		fail "cowimg $verb --long-options"
done <"$TMP/verbs"
sort -u "$TMP/used" >"$TMP/code"
cp "$TMP/common" "$TMP/page"
agree 'common options that some verb takes'
sed -n '/^\.Sh OPTIONS/,/^\.Sh ENV/s/^\.Ss \([a-z]*\)$/\1/p' man/cowimg.1 >"$TMP/page"
cp "$TMP/verbs" "$TMP/code"
agree 'the verbs of cowimg'

subtest options of mounts by cowfuse
sed -n 's/.*strcmp(key, "\([a-z_]*\)").*/\1/p;s/.*strcmp(key, "rw").*/rw/p' fuse/main.c >"$TMP/code"
sed -n '/passed\[\] = {/,/};/p' fuse/main.c | grep -o '"[a-z_]*"' | tr -d '"' >>"$TMP/code"
sort -u "$TMP/code" -o "$TMP/code"
sed -n '/^\.Sh OPTIONS/,/^\.Sh FILES/s/^\.It Cm \(.*\)/\1/p' man/cowfuse.1 |
	sed 's/ Ns = .*//' | tr -s ', ' '\n' >"$TMP/page"
agree 'cowfuse -o'

subtest options of the formats
[ -x "$FACTS" ] || fail "$FACTS is not built"
COW_PLUGIN_DIR=$BUILD/lib/cow "$FACTS" formats >"$TMP/formats"
for plugin in "$BUILD"/lib/cow/cow-*.so; do
	name=${plugin##*/cow-}
	name=${name%.so}
	page=$MAN/cow-$name.5
	[ -e "$page" ] || page=$MAN/$name.5
	[ -e "$page" ] || fail "format $name has no page in man/"
	sed -n "s/^$name key //p" "$TMP/formats" >"$TMP/code"
	sed -n '/^\.Sh OPTIONS/,/^\.Sh [^O]/s/^\.It Cm \([a-z0-9_.-]*\) Ns = .*/\1/p' "$page" >"$TMP/page"
	agree "format $name"
	# The table of what it can do.
	row=$(sed -n '/^\.It Sy read Ta Sy write/{n;s/^\.It //;s/ Ta / /g;p;}' "$page")
	set -- $row
	[ $# = 7 ] || fail "$page: the table is not one row of seven words: $row"
	can=$(sed -n "s/^$name cap//p" "$TMP/formats")
	for column in "read $1" "write $2" "create $3" "snapshot $4" "backing $5" "encoded $6"; do
		is=no
		case " $can " in *" ${column% *} "*) is=yes ;; esac
		[ "${column#* }" = $is ] || fail "$page: ${column% *} is $is, not ${column#* }"
	done
	case $7 in yes | no) ;; *) fail "$page: remappable is neither yes nor no" ;; esac
done
