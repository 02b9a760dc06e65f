#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The pages as a set: clean mdoc, the same skeleton, a page for everything that
# is installed, links that lead somewhere; and the commands that README.md shows
# exist, with the options it gives them.
. tests/lib/test.sh
require_cmd mandoc

subtest mandoc has nothing to complain about
set -- man/*.[1-8]
[ $# -ge 11 ] || fail "only $# pages"
mandoc -Tlint -Wwarning "$@" >"$TMP/lint" || fail "mandoc -Tlint:
$(cat "$TMP/lint")"
[ ! -s "$TMP/lint" ] || fail "mandoc -Tlint: $(cat "$TMP/lint")"

subtest every page has the skeleton
version=$(sed -n 's/^VERSION := \([0-9]*\.[0-9]*\).*/\1/p' GNUmakefile)
for page in "$@"; do
	file=${page#man/}
	grep -q '^\.\\" SPDX-License-Identifier: GPL-2.0-or-later$' "$page" || fail "$page: no SPDX line"
	title=$(sed -n 's/^\.Dt //p' "$page" | tr 'A-Z ' 'a-z.')
	[ "$title" = "$file" ] || fail "$page calls itself $title"
	grep -qx "\.Os cowd $version" "$page" || fail "$page: .Os is not cowd $version"
	for section in NAME DESCRIPTION EXAMPLES LIMITS VERSION 'SEE ALSO'; do
		[ "$page,$section" != man/cowd-security.7,EXAMPLES ] || continue
		grep -qx "\.Sh $section" "$page" || fail "$page has no section $section"
	done
	sed -n '/^\.Sh VERSION/,/^\.Sh SEE/p' "$page" | tr '\n' ' ' | grep -q 'first appeared in cowd' ||
		fail "$page does not say when it first appeared"
	case $file in
	*.1 | *.8)
		for section in SYNOPSIS OPTIONS 'EXIT STATUS'; do
			grep -qx "\.Sh $section" "$page" || fail "$page has no section $section"
		done
		;;
	esac
	awk '!/^\./ && length($0) > 110 { exit 1 }' "$page" || fail "$page has very long lines of text"
done

subtest everything that is installed has a page
for program in "$BUILD"/bin/*; do
	ls man/"${program##*/}".[18] >/dev/null || fail "no page for ${program##*/}"
done
for plugin in "$BUILD"/lib/cow/cow-*.so; do
	name=${plugin##*/cow-}
	name=${name%.so}
	[ -e "man/cow-$name.5" ] || [ -e "man/$name.5" ] || fail "no page for format $name"
done
# And the other way round.
for page in man/*.[18]; do
	name=${page#man/}
	name=${name%.*}
	grep -qw "$name" daemon/build.mk fuse/build.mk contrib/xen/build.mk || fail "$page: there is no program $name"
done
sed -n 's/^MANS := //p' man/build.mk | grep -qF 'man/*.[1-8]' || fail 'man/build.mk does not install all pages'

subtest links lead to pages
elsewhere='cp 1 dd 1 fusermount3 1 qemu-img 1 sh 1 xl 1 fallocate 2 fdatasync 2 fsync 2 lseek 2 openat2 2 read 2
	stat 2 write 2
	dlopen 3 fstab 5 unix 7 dmsetup 8 losetup 8 lsblk 8 mount 8 umount 8'
for page in "$@"; do
	own=${page#man/}
	sed -n 's/.*[. (]Xr \([^ ]*\) \([1-8]\).*/\1 \2/p' "$page" | sort -u >"$TMP/links"
	[ -s "$TMP/links" ] || fail "$page links to nothing"
	while read -r name section; do
		[ "$name.$section" != "$own" ] || [ "$own" = cowctl.8 ] || fail "$page links to itself"
		[ ! -e "man/$name.$section" ] || continue
		echo " $elsewhere " | tr '\n\t' '  ' | grep -q " $name $section " ||
			fail "$page: $name($section) is neither in man/ nor known elsewhere"
	done <"$TMP/links"
done
# A section that is referred to exists.
for page in "$@"; do
	sed -n 's/.*Sx \(.*\)/\1/p' "$page" | sed 's/ [.,]$//;s/ ,$//' | sort -u | while read -r section; do
		grep -qx "\.S[hs] $section" "$page" || fail "$page refers to a section '$section'"
	done || exit 1
done

subtest the commands of README.md exist
sed -n 's/^    //p' README.md | sed 's/ #.*//;s/ *- .*//' | sed 's/&&/\n/g;s/[;|]/\n/g' |
	sed 's/^ *//;s/^sudo //' | grep . >"$TMP/commands"
[ "$(wc -l <"$TMP/commands")" -ge 10 ] || fail 'README.md shows too few commands: this shows nothing'
grep -o '`make [a-z-]*`' README.md | tr -d '`' >>"$TMP/commands"
grep -o '[a-z0-9-]*([1-8])' README.md | sort -u | tr '()' '  ' | while read -r name section; do
	[ -e "man/$name.$section" ] || fail "README.md refers to $name($section)"
done || exit 1
while read -r command rest; do
	case $command in
	make)
		files='GNUmakefile */build.mk'
		case $rest in
		'-C '*)
			rest=${rest#-C }
			files=${rest%% *}/Makefile
			rest=${rest#"${rest%% *}"}
			[ -f "$files" ] || fail "README.md: there is no $files"
			;;
		esac
		for target in $rest; do
			grep -q "^$target:" $files || fail "README.md: make $target"
		done
		continue
		;;
	disk) continue ;;	# a line of a configuration file of Xen
	ls | ldconfig | fusermount3 | modprobe | mount | umount) continue ;;
	esac
	[ -e "man/$command.1" ] || [ -e "man/$command.8" ] || fail "README.md: what is '$command'?"
	[ -x "$BUILD/bin/$command" ] || continue	# built without FUSE
	verb=
	case $command in
	cowimg) verb=${rest%% *} ;;
	cowctl)
		"$command" --help | grep -Eq "^(Usage:)? +cowctl ([a-z|-]*\|)?${rest%% *}([ |]|\$)" ||
			fail "README.md: cowctl has no verb ${rest%% *}"
		;;
	esac
	"$command" $verb --help >"$TMP/help" || fail "README.md: $command $verb"
	for word in $rest; do
		case $word in
		--*) grep -q -- " ${word%%=*}[= ]" "$TMP/help" || fail "README.md: $command $verb $word" ;;
		-?) grep -q -- "^  $word, " "$TMP/help" || fail "README.md: $command $verb $word" ;;
		esac
	done
done <"$TMP/commands"
