#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Teaches Xen's own reader of disk specifications the disks of cowd, so that
# plain xl, and whatever else uses libxlutil, takes them without xl-dmu:
#
#	disk = [ 'dmu:dscow:/srv/vm.dscow:/srv/base.img,hda1,w' ]
#
# usage: libxlu-dmu.sh FILE      FILE: tools/libs/util/libxlu_disk_l.l of Xen's source
#
# One rule is inserted into FILE, before the one that refuses what looks like an
# unknown prefix. The place is found by what that rule says; where it is not found
# exactly once, or where there is a rule for dmu: already, FILE stays as it is.
# Xen's build then makes libxlu_disk_l.c of it anew, for which it needs flex.
#
# The rule takes the text behind "dmu:" up to the next comma as the target, which
# may hold colons, and sets the script; device and access follow as after any of
# the old prefixes. A target with commas in it, such as one with options, is still
# written script=block-dmu,...,target=...
set -eu

die() {
	echo "libxlu-dmu: $*" >&2
	exit 1
}

[ $# = 1 ] || die "usage: libxlu-dmu.sh FILE"
[ -f "$1" ] || die "$1: no such file"
! grep -q '^dmu:' "$1" || die "$1 has a rule for dmu: already"

# The rule begins at the last line before its message that is not indented.
line=$(awk '
	/^[^ \t]/ { start = NR }
	/"unknown deprecated disk prefix"/ { found++; line = start }
	END { if (found == 1) print line }' "$1")
[ -n "$line" ] || die "$1: the rule for unknown prefixes was not found exactly once"

new=$(mktemp "$1.XXXXXX")
trap 'rm -f "$new"' EXIT
{
	head -n "$((line - 1))" "$1"
	cat <<'RULE'
dmu:.*	{
		    /* The target ends at the first comma; what follows is read next. */
		    size_t dmu_end = strcspn(yytext, ",");
		    yyless((int)(dmu_end + (yytext[dmu_end] == ',')));
		    STRIP(',');
		    DPC->had_depr_prefix=1; DEPRECATE("use `script=block-dmu,...,target=...'");
		    SAVESTRING("target", pdev_path, yytext + strlen("dmu:"));
		    SAVESTRING("script", script, "block-dmu");
		}

RULE
	tail -n "+$line" "$1"
} >"$new"
cat "$new" >"$1"
