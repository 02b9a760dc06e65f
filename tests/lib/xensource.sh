# SPDX-License-Identifier: GPL-2.0-or-later
#
# For tests that build parts of Xen's own libraries, after `. tests/lib/test.sh`:
#
#	xen_util_source    sets $xen_version to that of this machine's libxen-dev, and
#	                   $xen_util to a folder with tools/libs/util of its source, which is not
#	                   to be written to; skips where there is none, or no compiler for it
xen_util_source() {
	require_cmd gcc flex pkg-config
	pkg-config --exists xenlight || skip "libxen-dev is not installed"
	xen_version=$(pkg-config --modversion xenlight | cut -d . -f 1,2)
	xen_util=$(tests/lab/kernels --cache)/source-xen-$xen_version
	[ ! -d "$xen_util" ] || return 0
	tests/lab/kernels --source "xen-$xen_version" "$TMP/source" >"$TMP/log" 2>&1 ||
		skip "the source of Xen $xen_version cannot be fetched: $(tail -n 1 "$TMP/log")"
	mkdir -p "${xen_util%/*}"
	cp -r "$TMP/source/tools/libs/util" "$xen_util.$$"
	mv -T "$xen_util.$$" "$xen_util"
}
