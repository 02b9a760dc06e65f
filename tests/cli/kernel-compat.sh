#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The folder of the kernel module as people and DKMS use it, without building the
# module (tests/lab does): what is copied for DKMS and for the kernel's build is
# complete, and what a build leaves behind is neither copied nor seen by git.
. tests/lib/test.sh
require_cmd make

version=$(sed -n 's/^VERSION := //p' GNUmakefile)
copy=$TMP/dest/usr/src/dm-userspace-$version
cp -r kernel-compat "$TMP/kernel-compat"
cp GNUmakefile "$TMP/"
# Where the kernel's build is, what it leaves there.
rm -rf "$TMP/kernel-compat/build"
[ ! -e .git ] || git check-ignore -q kernel-compat/build/dm-userspace.ko || fail "git would see kernel-compat/build"

mk() {
	env -u MAKEFLAGS -u MAKELEVEL make -C "$TMP/kernel-compat" "$@" >"$TMP/log" 2>&1
}

subtest "the sources for DKMS"
mk install-dkms DESTDIR="$TMP/dest" || fail "$(cat "$TMP/log")"
grep -qx "PACKAGE_VERSION=\"$version\"" "$copy/dkms.conf" || fail "$(cat "$copy/dkms.conf")"
! grep '@' "$copy/dkms.conf" || fail "something in dkms.conf was not filled in"
(
	cd kernel-compat
	find . -path ./build -prune -o -name '*.[ch]' -print -o -name Kbuild -print
) | sort >"$TMP/want"
[ "$(wc -l <"$TMP/want")" -gt 12 ] || fail 'found too few sources: this shows nothing'
(cd "$copy" && find . -type f ! -name dkms.conf) | sort | diff "$TMP/want" - >&2 ||
	fail 'copied are (>) instead of (<)'

subtest "the kernel's build gets a copy of all sources, with what was given"
mkdir "$TMP/kernel"
cat >"$TMP/kernel/Makefile" <<'MAKEFILE'
VERSION := 6
modules modules_install:
	@echo "$@ $(VERSION) $(CC) $(INSTALL_MOD_PATH)" >>said
	@cd "$(M)" && find . -type f | sort >"$(CURDIR)/got"
MAKEFILE
mk KDIR="$TMP/kernel" CC=some-gcc install DESTDIR="$TMP/dest" || fail "$(cat "$TMP/log")"
diff "$TMP/want" "$TMP/kernel/got" >&2 || fail 'given were (>) instead of (<)'
printf '%s\n' "modules 6 some-gcc " "modules_install 6 some-gcc $TMP/dest" | diff - "$TMP/kernel/said" >&2 ||
	fail 'said was (>) instead of (<)'
mk clean || fail "$(cat "$TMP/log")"
[ ! -e "$TMP/kernel-compat/build" ] && [ -f "$TMP/kernel-compat/dmu-map.c" ] || fail 'clean'

subtest "mistakes get a sentence"
! mk KDIR="$TMP/nowhere" || fail 'built without a kernel'
grep -q "$TMP/nowhere: no build folder of a kernel" "$TMP/log" || fail "$(cat "$TMP/log")"
rm "$TMP/GNUmakefile"
! mk install-dkms DESTDIR="$TMP/other" || fail 'installed without a version'
grep -q 'no version' "$TMP/log" && [ ! -e "$TMP/other" ] || fail "$(cat "$TMP/log")"
