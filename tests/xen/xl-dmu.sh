# SPDX-License-Identifier: GPL-2.0-or-later
#
# xl-dmu, with a program in place of xl that shows what it was given; and what it
# gives is read by Xen's own library as meant, where that is installed.
. tests/lib/test.sh

mkdir "$TMP/bin"
cat >"$TMP/bin/xl" <<'END'
#!/bin/sh
# The words, one a line; files that xl would read are shown.
for w; do
	case $w in
	*/proc/self/fd/*) printf '%s<%s>\n' "${w%%/proc/*}" "$(cat "/proc/$$/fd/${w##*/}")" ;;
	*) printf '[%s]\n' "$w" ;;
	esac
done
exit "${XL_STATUS:-0}"
END
chmod +x "$TMP/bin/xl"
PATH=$TMP/bin:$PATH
cd "$TMP"

gives() {	# EXPECTED WORD...: what xl gets
	want=$1
	shift
	got=$(xl-dmu "$@" | tr '\n' ' ')
	[ "$got" = "$want " ] || fail "xl-dmu $*: xl got $got, not $want"
}

new='script=block-dmu,vdev=hda1,access=w,target=dscow:/a:/b'
cat >vm.cfg <<'END'
# disk = ['dmu:dscow:/x,hda1,w']
name = "vm"
disk = [ 'dmu:dscow:/a:/b,hda1,w',  # first
         'phy:/dev/vg/x,xvdb,w',
	 "dmu:dscow:/with space/o\\:1:/b,hdc:cdrom,r,base-format=dscow" ]
vif = [ 'mac=00:16:3e:00:00:01' ]
END
cat >vm.new <<'END'
# disk = ['dmu:dscow:/x,hda1,w']
name = "vm"
disk = [ 'script=block-dmu,vdev=hda1,access=w,target=dscow:/a:/b',  # first
         'phy:/dev/vg/x,xvdb,w',
	 "script=block-dmu,vdev=hdc,access=r,devtype=cdrom,target=dscow:/with space/o\\:1:/b,base-format=dscow" ]
vif = [ 'mac=00:16:3e:00:00:01' ]
END
file=$(printf '<%s>' "$(cat vm.new)" | tr '\n' ' ')

subtest "a configuration file"
xl-dmu --print=vm.cfg | cmp - vm.new || fail "--print"
gives "[create] $file" create vm.cfg
gives "[-v] [create] $file [-p] [-c]" -v create vm.cfg -p -c
gives "[create] [-p] $file [name=\"x\"]" create -p vm.cfg 'name="x"'
gives "[create] [-f] $file" create -f vm.cfg
gives "[create] [-cf] $file" create -cf vm.cfg
gives "[create] -f$file" create -fvm.cfg
gives "[create] [--defconfig] $file" create --defconfig vm.cfg
gives "[create] --defconfig=$file" create --defconfig=vm.cfg
gives "[crea] $file" crea vm.cfg
gives "[restore] [-p] $file [vm.save]" restore -p vm.cfg vm.save
[ "$(cat vm.cfg | xl-dmu create /dev/stdin | wc -l)" = 7 ] || fail "a pipe"
gives "[create] [disk=['$new']]" create "disk=['dmu:dscow:/a:/b,hda1,w']"

subtest "block-attach"
gives "[block-attach] [3] [$new]" block-attach 3 dmu:dscow:/a:/b,hda1,w
gives "[block-attach] [vm] [$new]" block-attach vm dmu:dscow:/a:/b hda1 w
gives "[-N] [block-a] [vm] [$new]" -N block-a vm dmu:dscow:/a:/b hda1,w

subtest "the rest is not touched"
gives "[list] [dmu:x]" list dmu:x
gives "[block-attach] [vm] [phy:/x] [xvda] [w]" block-attach vm phy:/x xvda w
gives "[block-attach]" block-attach
gives "[restore] [vm.cfg]" restore vm.cfg
gives "[block-detach] [vm] [dmu:x]" block-detach vm dmu:x
gives "[create] [-q]" create -q
gives "[create] [-f]" create -f
gives "[c] [vm.cfg]" c vm.cfg
status=0
XL_STATUS=3 xl-dmu list >/dev/null || status=$?
[ $status = 3 ] || fail "xl's exit status 3 became $status"

subtest "what is wrong is said in one sentence, and xl is not run"
expect_fail 'xl-dmu create nosuch.cfg' '^xl-dmu: nosuch.cfg: No such file'
expect_fail "xl-dmu create $TMP" '^xl-dmu: .*: Is a directory'
printf "\ndisk = ['phy:/a,xvda,w',\n'dmu:dscow:a,xvdb,w']\n" >bad.cfg
expect_fail 'xl-dmu create bad.cfg' \
	'^xl-dmu: bad.cfg: line 3: dmu:dscow:a,xvdb,w: the path of the overlay, "a", does not begin with a slash$'
expect_fail 'xl-dmu --print=bad.cfg' 'bad.cfg: line 3'
expect_fail "xl-dmu create \"disk=['dmu:dscow:/a']\"" 'the guest.s device, such as xvda, is missing'
expect_fail 'xl-dmu block-attach 3 dmu:dscow:/a xvda w x' 'no place for the word "x"'
truncate -s 17M large.cfg
expect_fail 'xl-dmu create large.cfg' 'large.cfg: larger than 16 MiB'
expect_fail "PATH=/nonexistent $BUILD/bin/xl-dmu list" 'xl cannot be run'
status=0
xl-dmu 2>said || status=$?
[ $status = 2 ] || fail "no words: status $status"
[ ! -s expect.out ] || fail "xl was run: $(cat expect.out)"

command -v gcc >/dev/null && pkg-config --exists xlutil xenlight 2>/dev/null || exit 0
subtest "Xen's library reads it as meant"
# shellcheck disable=SC2046
gcc -o disk-parse "$OLDPWD/tests/xen/disk-parse.c" $(pkg-config --cflags --libs xlutil xenlight)
./disk-parse --file vm.new >out || fail "$(cat out)"
cat >want <<'END'
target=dscow:/a:/b script=block-dmu vdev=hda1 access=rw backend=unknown cdrom=0
target=/dev/vg/x script=- vdev=xvdb access=rw backend=unknown cdrom=0
target=dscow:/with space/o\:1:/b,base-format=dscow script=block-dmu vdev=hdc access=ro backend=unknown cdrom=1
END
diff want out || fail "the library reads the file otherwise"
reads() {	# DISK EXPECTED
	printf "disk = ['%s']\n" "$1" >one.cfg
	xl-dmu --print=one.cfg >one.new
	[ "$(./disk-parse --file one.new)" = "$2" ] || fail "$1: $(./disk-parse --file one.new)"
}
reads dmu:raw:/a,xvda 'target=raw:/a script=block-dmu vdev=xvda access=rw backend=unknown cdrom=0'
reads dmu:raw:/a,xvda,r,ring 'target=raw:/a,ring script=block-dmu vdev=xvda access=ro backend=unknown cdrom=0'
reads dmu:raw:/a,vdev=xvda,access=ro,backendtype=tap,discard \
	'target=raw:/a script=block-dmu vdev=xvda access=ro backend=tap cdrom=0'
reads dmu:dscow:/a=b:/c,xvda,rw,create=no \
	'target=dscow:/a=b:/c,create=no script=block-dmu vdev=xvda access=rw backend=unknown cdrom=0'
