#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The direction of dependency, read from the #include "..." lines:
#	formats, daemon/tools, fuse  may include cow/ and their own folder
#	                             (tools also what cowctl shares with the daemon)
#	daemon/lib                   may include cow/ and its own folder
#	daemon/cowd                  may include cow/, its own folder, lib/, fuse/, the kernel's ABI
#	daemon/include/cow           may include cow/
# Tests are free. Prints each line that breaks this and exits 1.
set -eu
cd "$(dirname "$0")/../.."

bad=0

# only FOLDER ALLOWED-REGEX: an include resolves to a path from the top of the tree
only() {
	[ -d "$1" ] || return 0
	for f in $(find "$1" -name '*.[ch]'); do
		dir=$(dirname "$f")
		for inc in $(sed -n 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*"\([^"]*\)".*/\1/p' "$f"); do
			where=
			for base in "$dir" daemon/include . daemon; do
				if [ -f "$base/$inc" ]; then
					where=$(realpath --relative-to=. "$base/$inc")
					break
				fi
			done
			if ! echo "${where:-missing}" | grep -Eq "$2"; then
				echo "check-includes: $f includes \"$inc\" (${where:-not found}), which $1 must not" >&2
				bad=1
			fi
		done
		# Our headers by <...> would evade the rule above.
		if grep -Eq '#[[:space:]]*include[[:space:]]*<(cow|lib|cowd|fuse|formats)/' "$f"; then
			echo "check-includes: $f: our headers are included with \"...\"" >&2
			bad=1
		fi
	done
}

cow='daemon/include/cow/'
only daemon/include "^$cow"
only formats "^($cow|formats/)"
only daemon/lib "^($cow|daemon/lib/)"
only daemon/tools "^($cow|daemon/tools/|daemon/cowd/(notify|proto|rundir|xen-[a-z]+)[.]h)"
only fuse "^($cow|fuse/)"
only contrib/xen "^($cow|contrib/xen/)"
only daemon/cowd "^($cow|daemon/cowd/|daemon/lib/|fuse/|kernel-compat/uapi/)"
exit $bad
