# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 500
#
# Xen's own libxlutil with the rule of contrib/xen/libxlu-dmu.sh in it, built from the source
# of Debian's package: with it plain xl starts a guest whose disk is written as
# 'dmu:FORMAT:OVERLAY:BASE,VDEV,w', attaches another one, and detaches it. Without it xl knows
# nothing of that. The rule itself is tested in tests/xen/libxlu.sh.
. tests/lib/xenlab.sh
. tests/lib/xensource.sh
xen_block_dmu

# The library of Debian's package, made anew; only the lexer differs.
build_library() {	# DIR
	cp -r "$xen_util" "$TMP/util"
	sh contrib/xen/libxlu-dmu.sh "$TMP/util/libxlu_disk_l.l"
	mkdir -p "$1"
	(
		cd "$TMP/util"
		flex --header-file=libxlu_disk_l.h --outfile=libxlu_disk_l.c libxlu_disk_l.l
		echo "VERS_$xen_version.0 { *; };" >map
		# shellcheck disable=SC2046
		gcc -std=gnu99 -O1 -w -fPIC -shared -I. -o "$1/libxlutil.so.$xen_version" \
			-Wl,-soname,"libxlutil.so.$xen_version" -Wl,--version-script=map \
			libxlu_*.c $(pkg-config --cflags --libs xenlight)
	)
}

if [ -z "${COW_IN_LAB:-}" ]; then
	xen_util_source
	LAB_XEN=${LAB_XEN:-xen-4.17}
	[ "$LAB_XEN" = "xen-$xen_version" ] || skip "this machine's libxen-dev is of Xen $xen_version, not $LAB_XEN"
	build_library "$TMP/lib"
	patched=$TMP/lib
	export patched
fi
# shellcheck disable=SC2154
xen_up --module -t 400 -e patched

xen_block_dmu
modprobe -a loop xen-blkback
cp -r "$patched" "$TMP/lib"
cd "$TMP"
at_exit 'cd /; xl destroy g1 >/dev/null 2>&1; for n in $(cowctl list | cut -d " " -f 1); do cowctl stop --force $n; done >/dev/null 2>&1 || true'
head -c 8M /dev/urandom >base.raw
cp base.raw base.was
disk="dmu:dscow:$TMP/over.dscow:$TMP/base.raw,hda1,w"

subtest "xl as it is refuses the line"
guest_config g1 "$disk"
if xl create -q g1.cfg >said 2>&1; then
	fail "xl took it"
fi
grep -q "disk specification.*$TMP/over.dscow" said || fail "$(cat said)"
[ ! -e over.dscow ] || fail "an overlay was made"

subtest "a guest starts with the line, by xl with the patched library"
xl="env LD_LIBRARY_PATH=$TMP/lib xl"
guest_start g1 "$disk"
guest_disk g1 xvda
id=$(guest_id g1)
[ "$(xenstore-read "/local/domain/0/backend/vbd/$id/769/params")" = "dscow:$TMP/over.dscow:$TMP/base.raw" ] ||
	fail "what the script is told"
[ "$(guest_run g1 'sha256sum </dev/xvda')" = "$(sha256sum <base.raw)" ] || fail "not the base"
sum=$(guest_check g1 'mkfs.ext4 -q /dev/xvda && mount /dev/xvda /mnt && head -c 2000000 /dev/urandom >/mnt/file &&
	sha256sum </mnt/file && umount /mnt')

subtest "another disk is attached and detached"
$xl block-attach g1 "dmu:dscow:$TMP/more.dscow:$TMP/base.raw,xvdb,w" || fail "block-attach"
guest_disk g1 xvdb
[ "$(guest_run g1 'sha256sum </dev/xvdb')" = "$(sha256sum <base.raw)" ] || fail "xvdb is not the base"
$xl block-detach g1 xvdb || fail "block-detach"
guest_off g1
xen_calm
wait_for 20 '[ -z "$(cowctl list)" ]'

subtest "the image holds it"
cowimg check -q -f dscow over.dscow || fail "over.dscow is not sound"
cowimg read -q -f dscow over.dscow flat.raw
mkdir mnt
mount -o loop,ro flat.raw mnt
at_exit 'umount "$TMP/mnt"'
[ "$(sha256sum <mnt/file)" = "$sum" ] || fail "the file's contents"
cmp base.raw base.was || fail "the base was written to"
