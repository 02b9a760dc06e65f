# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 900
#
# Disks of guests by block-dmu, over the kernel's backend: every spelling an administrator
# may use, several disks at once, read-only, raw files, attached and detached while the guest
# runs, for domain 0 itself; a killed cowd; reboot and destruction; what cannot be added, and
# what is said about it. Direct rings: ring.sh.
. tests/lib/xenlab.sh
require_cmd jq losetup dmsetup cmp
xen_block_dmu
xen_up --module -t 800

xen_block_dmu
modprobe -a loop xen-blkback
cd "$TMP"
P=$TMP
at_exit 'cd /; for n in $(cowctl list --json | jq -r ".devices[].name"); do cowctl stop --force $n; done >/dev/null 2>&1 || true'

devices() {
	cowctl list --json | jq -r '.devices[].name' | sort | tr '\n' ' '
}

# Everything that was added is taken away: no daemon, no node, no loop device.
nothing_left() {
	wait_for 20 '[ -z "$(devices)" ]'
	xen_calm
	[ "$(dmsetup ls)" = 'No devices found' ] || fail "nodes: $(dmsetup ls)"
	wait_for 10 '[ -z "$(losetup -a)" ]'
}

guest_hash() {	# GUEST DISK
	guest_check "$1" "sha256sum </dev/$2"
}

sound() {
	cowimg check -q -f dscow "$1" || fail "$1 is not sound"
}

head -c 8M /dev/urandom >base.raw
head -c 4M /dev/urandom >plain.raw
cp base.raw base.was
cp plain.raw plain.was

subtest "three disks, spelled as the seed line, with script=, and with target="
xl=xl-dmu
guest_start g1 "dmu:dscow:$P/seed.dscow:$P/base.raw,hda1,w" \
	"dmu:dscow:$P/two.dscow:$P/base.raw,raw,xvdb,w,script=block-dmu" \
	"script=block-dmu,vdev=xvdc,access=ro,target=raw:$P/plain.raw"
xl=xl
id=$(guest_id g1)
[ "$(devices)" = "xen-$id-51728 xen-$id-51744 xen-$id-769 " ] || fail "devices: $(devices)"
for d in xvda xvdb xvdc; do
	guest_disk g1 $d
done
[ "$(guest_run g1 'cat /sys/block/xvd[abc]/size /sys/block/xvd[abc]/ro' | tr '\n' ' ')" = \
	"16384 16384 8192 0 0 1 " ] || fail "sizes, or what can be written to"
for d in xvda xvdb; do
	[ "$(guest_hash g1 $d)" = "$(sha256sum <base.raw)" ] || fail "$d: not the base"
done
[ "$(guest_hash g1 xvdc)" = "$(sha256sum <plain.raw)" ] || fail "xvdc: not the file"

subtest "the guest writes where it may"
guest_check g1 'for d in xvda xvdb; do echo "$d was here" | dd of=/dev/$d bs=512 seek=99 conv=sync,fsync status=none; done'
guest_run g1 'dd if=/dev/zero of=/dev/xvdc bs=512 count=1 2>/dev/null' && fail "xvdc can be written to"
guest_check g1 'mkfs.ext4 -q /dev/xvdb && mount /dev/xvdb /mnt && echo written >/mnt/file && umount /mnt'

subtest "a disk is attached and detached"
xl block-attach g1 "script=block-dmu,vdev=xvdd,access=w,target=dscow:$P/three.dscow:$P/base.raw" || fail attach
guest_disk g1 xvdd
guest_check g1 'echo xvdd was here | dd of=/dev/xvdd bs=512 seek=99 conv=sync,fsync status=none'
xl block-detach g1 xvdd || fail detach
wait_for 20 '[ "$(devices)" = "xen-$id-51728 xen-$id-51744 xen-$id-769 " ]'
sound three.dscow
cowimg read -q -f dscow three.dscow flat.raw
dd if=flat.raw bs=512 skip=99 count=1 status=none | grep -q 'xvdd was here' || fail "three.dscow: contents"

subtest "what cannot be added is told the administrator, and nothing is left of it"
printf 'no image at all' >junk.dscow
refused() {	# TARGET REGEX
	xl block-attach g1 "script=block-dmu,vdev=xvde,access=w,target=$1" >said 2>&1 && fail "attached: $1"
	grep -Eq -- "$2" said || fail "$1: said: $(cat said)"
	xl block-detach g1 xvde >/dev/null 2>&1 || true
	wait_for 20 '[ "$(devices)" = "xen-$id-51728 xen-$id-51744 xen-$id-769 " ]'
	! xenstore-exists "/local/domain/0/backend/vbd/$id/51776" || fail "$1: it is still in xenstore"
}
refused "raw:$P/absent.raw" 'absent.raw: No such file'
refused "dscow:$P/new.dscow:$P/absent.raw" 'absent.raw: No such file'
[ ! -e new.dscow ] || fail "an overlay was left behind"
refused "dscow:$P/junk.dscow" 'junk.dscow'
refused "dscow:$P/two.dscow" 'two.dscow.*(in use|locked|already)'
refused "nosuch:$P/plain.raw" 'nosuch'
refused "dscow:relative.dscow:$P/base.raw" 'relative.dscow'
refused "raw:$P/plain.raw,bogus" 'bogus'

subtest "cowd is killed: the disk is added a second time and goes on"
guest_check g1 '(for i in $(seq 200); do
	echo turn $i | dd of=/dev/xvda bs=512 seek=$((200 + i)) conv=sync,fsync status=none || exit 1; done) >/tmp/turns 2>&1 &
	echo $! >/tmp/pid'
pid=$(cowctl status "xen-$id-769" --json | jq .pid)
kill -9 "$pid"
wait_for 20 '[ ! -e /proc/$pid ]'
XENBUS_PATH=backend/vbd/$id/769 /etc/xen/scripts/block-dmu add || fail "add after a kill"
[ "$(cowctl status "xen-$id-769" --json | jq .pid)" != "$pid" ] || fail "the same cowd"
guest_check g1 'while kill -0 $(cat /tmp/pid) 2>/dev/null; do usleep 100000; done
	dd if=/dev/xvda bs=512 skip=400 count=1 status=none | grep -q "turn 200"'
guest_calm g1

subtest "a reboot keeps the disks"
guest_reboot g1
id=$(guest_id g1)
guest_disk g1 xvda
guest_disk g1 xvdb
guest_check g1 'dd if=/dev/xvda bs=512 skip=99 count=1 status=none | grep -q "xvda was here" &&
	mount /dev/xvdb /mnt && grep -q written /mnt/file && umount /mnt'

subtest "a guest that is destroyed leaves nothing behind"
guest_destroy g1
nothing_left
for f in seed two; do
	sound $f.dscow
done
rm flat.raw
cowimg read -q -f dscow seed.dscow flat.raw
dd if=flat.raw bs=512 skip=99 count=1 status=none | grep -q 'xvda was here' || fail "seed.dscow: contents"
cmp base.raw base.was || fail "the base was written to"
cmp plain.raw plain.was || fail "the raw file was written to"

subtest "a disk for domain 0, a raw file without a loop device by hand"
modprobe xen-blkfront
xl block-attach 0 "script=block-dmu,vdev=xvdz,access=w,target=raw:$P/plain.raw" || fail "attach to domain 0"
wait_for 20 '[ -b /dev/xvdz ]'
cmp /dev/xvdz plain.was || fail "its contents"
echo domain 0 was here | dd of=/dev/xvdz bs=512 seek=3 conv=sync,fsync status=none
xl block-detach 0 xvdz || fail "detach from domain 0"
nothing_left
dd if=plain.raw bs=512 skip=3 count=1 status=none | grep -q 'domain 0 was here' || fail "plain.raw: contents"
