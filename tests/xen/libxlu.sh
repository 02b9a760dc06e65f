# SPDX-License-Identifier: GPL-2.0-or-later
#
# contrib/xen/libxlu-dmu.sh on the real thing: Xen's reader of disk specifications,
# from Debian's source package, refuses dmu: before and understands it after; what
# it understood before, it understands as before. And the script keeps its hands off
# files that are not what it expects.
. tests/lib/test.sh
. tests/lib/xensource.sh
tool=$PWD/contrib/xen/libxlu-dmu.sh

# On files of our own: exactly one insertion, or none.
cd "$TMP"
printf 'a\n[x]:/y {\n  err("unknown deprecated disk prefix");\n}\nb\n' >one.l
cp one.l two.l
sh "$tool" one.l
[ "$(sed -n 2p one.l | cut -c 1-4)" = dmu: ] || fail "not before the rule: $(cat one.l)"
sed '/^dmu:/,/^$/d' one.l | cmp - two.l || fail "more than an insertion"
cp one.l again.l
expect_fail "sh $tool again.l" 'again.l has a rule for dmu: already'
cmp one.l again.l
sed p two.l >twice.l
cp twice.l copy.l
expect_fail "sh $tool twice.l" 'twice.l: .* not found exactly once'
cmp twice.l copy.l
echo x >none.l
expect_fail "sh $tool none.l" 'none.l: .* not found exactly once'
expect_fail "sh $tool nosuch.l" 'nosuch.l: no such file'
expect_fail "sh $tool" 'usage'
[ -z "$(ls ./*.l.* 2>/dev/null)" ] || fail "temporary files are left"
cd - >/dev/null

xen_util_source

subtest "the lexer of Xen's source compiles before and after, without a warning"
parser() {	# NAME
	(
		cd "$TMP/$1"
		flex --header-file=libxlu_disk_l.h --outfile=libxlu_disk_l.c libxlu_disk_l.l
		# shellcheck disable=SC2046
		gcc -std=gnu99 -O1 -Wall -Wdeclaration-after-statement -Werror \
			$(pkg-config --cflags xenlight) -c libxlu_disk_l.c
		# shellcheck disable=SC2046
		gcc -std=gnu99 -O1 -w -I. -o ../parse-"$1" "$OLDPWD/tests/xen/disk-parse.c" libxlu_disk_l.o \
			libxlu_disk.c libxlu_cfg.c libxlu_cfg_l.c libxlu_cfg_y.c \
			$(pkg-config --cflags --libs xenlight)
	)
}
cp -r "$xen_util" "$TMP/before"
cp -r "$xen_util" "$TMP/after"
sh "$tool" "$TMP/after/libxlu_disk_l.l"
parser before
parser after

is() {	# DISK EXPECTED
	[ "$("$TMP/parse-after" "$1" 2>"$TMP/said")" = "$2" ] ||
		fail "$1: $("$TMP/parse-after" "$1" 2>&1)"
}

subtest "dmu: is read as it should"
expect_fail "$TMP/parse-before dmu:dscow:/a:/b,hda1,w" 'unknown value for format'
is 'dmu:dscow:/a:/b,hda1,w' 'target=dscow:/a:/b script=block-dmu vdev=hda1 access=rw backend=unknown cdrom=0'
is 'dmu:raw:/x=y,xvdb,r' 'target=raw:/x=y script=block-dmu vdev=xvdb access=ro backend=unknown cdrom=0'
is 'dmu:dscow:/a, hdc:cdrom, r' 'target=dscow:/a script=block-dmu vdev=hdc access=ro backend=unknown cdrom=1'
is 'dmu:dscow:/a,vdev=xvda,backendtype=tap,access=rw' \
	'target=dscow:/a script=block-dmu vdev=xvda access=rw backend=tap cdrom=0'
is 'dmu:/a,xvda,w' 'target=/a script=block-dmu vdev=xvda access=rw backend=unknown cdrom=0'
for bad in 'dmu:dscow:/a' 'dmu:dscow:/a,xvda,w,script=x' 'dmu:dscow:/a,target=/x,vdev=xvda' 'dmu:dscow:/a,xvda,w,raw'; do
	is "$bad" refused
	[ -s "$TMP/said" ] || fail "$bad is refused without a word"
done

subtest "everything else is read as before"
for disk in '/dev/vg/x,raw,xvda,rw' 'phy:/dev/x,xvda,w' 'file:/x,hda,r' 'format=qcow2,vdev=xvda,target=/x:y,z' \
	    'script=block-dmu,vdev=hda1,access=rw,target=dscow:/a:/b' 'vdev=xvda,target=dmu:dscow:/a:/b' \
	    'drbd:res,xvda,w' 'dmux:/a,xvda,w' 'dmu,xvda,w' 'dscow:/a,xvda,w' '/dmu:/x,raw,xvda,w' ',,hdc:cdrom,r' ''; do
	"$TMP/parse-before" "$disk" >"$TMP/b" 2>&1 || true
	"$TMP/parse-after" "$disk" >"$TMP/a" 2>&1 || true
	diff "$TMP/b" "$TMP/a" || fail "'$disk' is read differently"
	[ -s "$TMP/a" ] || fail "'$disk': nothing was printed"
done
