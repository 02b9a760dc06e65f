#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Finds the libraries cowd can use and writes what it found as make variables.
# Run by GNUmakefile at every start; it rewrites FILE only when an answer
# changed, so nothing is rebuilt without need. It installs nothing (setup.sh
# does).
#
# usage: probe.sh FILE
# environment: CC PKG_CONFIG WITH_FUSE WITH_URING WITH_BLKID WITH_XXHASH
#              WITH_DEVMAPPER WITH_XEN WITH_ZLIB WITH_GCRYPT
#              (each WITH_* is auto, yes or no; yes and missing is an error)
set -eu

out=$1
tmp=$out.$$
pc=${PKG_CONFIG:-pkg-config}
cc=${CC:-cc}
found= missing= why=
have_pc=yes
command -v "$pc" >/dev/null 2>&1 || have_pc=no

trap 'rm -f "$tmp"' EXIT
mkdir -p "$(dirname "$out")"

# feature NAME PKG-CONFIG-MODULES LEAST-VERSION WHAT-IS-LOST; the version is the first module's
feature() {
	eval "want=\${WITH_$1:-auto}"
	case $want in
	auto | yes | no) ;;
	*)
		echo "probe: WITH_$1=$want: must be auto, yes or no" >&2
		exit 1
		;;
	esac
	got=no
	if [ "$want" != no ] && [ "$have_pc" = yes ] &&
	   "$pc" --exists "${2%% *} >= $3" 2>/dev/null && "$pc" --exists $2 2>/dev/null; then
		got=yes
	fi
	if [ "$want" = yes ] && [ "$got" = no ]; then
		if [ "$have_pc" = no ]; then
			echo "probe: WITH_$1=yes, but $pc, which finds libraries, is not installed" >&2
		else
			echo "probe: WITH_$1=yes, but $2 >= $3 was not found by $pc" >&2
		fi
		exit 1
	fi
	echo "HAVE_$1 := $got"
	if [ "$got" = yes ]; then
		echo "$1_CFLAGS := $("$pc" --cflags $2)"
		echo "$1_LIBS := $("$pc" --libs $2)"
		echo "DEP_CPPFLAGS += -DHAVE_$1=1"
		found="$found ${2%% *} $("$pc" --modversion "${2%% *}"),"
	else
		echo "$1_CFLAGS :="
		echo "$1_LIBS :="
		missing="$missing ${2%% *},"
		why="$why
  without ${2%% *}: $4"
	fi
}

{
	echo "# Written by contrib/build/probe.sh: CC=$cc PKG_CONFIG=$pc"
	echo "DEP_CPPFLAGS :="
	feature FUSE fuse3 3.12 'no cowfuse, and no cowd'
	feature URING liburing 2.0 'plain system calls instead of io_uring: slower at depth'
	feature BLKID blkid 2.30 'no partition files (p1..pN) in a mounted view'
	feature DEVMAPPER devmapper 1.02.155 'no /dev/mapper nodes: the front ends dm, ublk and bridge cannot run'
	feature XEN 'xenstore xengnttab xenevtchn' 3.0 'no disks for guests of Xen: no block-dmu, no front end xen'
	feature ZLIB 'zlib libzstd' 1.2.11 'no qcow and qcow2 images'
	feature GCRYPT libgcrypt 1.9 'encrypted qcow and qcow2 images cannot be read, written or made'
	feature XXHASH libxxhash 0.8.0 'nothing can be built: libcow needs it'
} >"$tmp"

if cmp -s "$tmp" "$out" 2>/dev/null; then
	exit 0
fi
mv "$tmp" "$out"
[ -z "$found" ] || echo "  FOUND  ${found%,}" | tr -s ' ' | sed 's/^ /  /;s/FOUND /FOUND  /'
if [ -n "$missing" ]; then
	echo "  LEFT OUT${missing%,}$why"
	[ "$have_pc" = yes ] || echo "  ($pc is not installed: no library could be looked for)"
	echo "  (make setup installs what is missing on Debian)"
fi
