# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 900
#
# Two guests on two overlays of one base, which holds a file system. Each sees the base's
# file, checks and grows the file system, fills it until nothing more goes in, and checks it
# again; neither sees the other's files. Afterwards both images are sound and the file
# systems in them are too; the base is as it was.
. tests/lib/xenlab.sh
guest_programs="$guest_programs resize2fs"
require_cmd mkfs.ext4 e2fsck resize2fs cmp jq
xen_up --module -m 2560 -t 800

modprobe -a loop xen-blkback
cd "$TMP"
at_exit 'cd /; for n in g1 g2; do cowctl stop --force $n >/dev/null 2>&1 || true; done'

subtest two guests start on one base
mkdir files
head -c 3000000 /dev/urandom >files/common
mkfs.ext4 -q -b 1024 -d files base.raw 16M
cp base.raw before.raw
for g in g1 g2; do
	cowimg create -q -f dscow -b base.raw -F raw $g.dscow 40M
	disk=$(cowd --frontend=dm --log-level=error -p dscow $g $g.dscow) || fail "cowd"
	guest_start $g "phy:$disk,xvda,w"
done

subtest each checks the file system, grows it and sees the file of the base
for g in g1 g2; do
	guest_disk $g xvda
	[ "$(guest_run $g 'cat /sys/block/xvda/size')" = 81920 ] || fail "$g: its size"
	guest_check $g 'e2fsck -fp /dev/xvda && resize2fs /dev/xvda && mount /dev/xvda /mnt' 120
	[ "$(guest_check $g 'sha256sum </mnt/common')" = "$(sha256sum <files/common)" ] ||
		fail "$g: the file of the base"
done

subtest each fills its own, at the same time, and it is sound
for g in g1 g2; do
	guest_check $g "echo $g >/mnt/name
		(while cat /mnt/common >>/mnt/filling; do :; done; : >/tmp/full) >/dev/null 2>&1 &"
done
for g in g1 g2; do
	guest_check $g 'until [ -e /tmp/full ]; do usleep 200000; done
		[ "$(df -m /mnt | tail -n 1 | { read -r a b c free e; echo $free; })" -lt 2 ] || exit 9
		umount /mnt && e2fsck -fn /dev/xvda && mount /dev/xvda /mnt && cat /mnt/name &&
		sha256sum </mnt/filling >/tmp/sum' 180 >filled
	grep -qx $g filled || fail "$g sees another's file: $(cat filled)"
	guest_check $g 'cat /tmp/sum' >$g.sum
	guest_off $g
done
xen_calm

subtest both images hold it, and the base nothing of it
for g in g1 g2; do
	cowctl stop $g
	cowimg check -q -f dscow $g.dscow || fail "$g.dscow is not sound"
	cowimg read -q -f dscow $g.dscow flat.raw
	e2fsck -fp flat.raw >e2fsck.log 2>&1 || fail "$g: the file system: $(cat e2fsck.log)"
	mkdir mnt
	mount -o loop,ro flat.raw mnt
	sha256sum <mnt/filling | cmp - $g.sum || fail "$g: what it was filled with"
	[ "$(cat mnt/name)" = $g ] || fail "$g: its name"
	umount mnt
	rmdir mnt
	rm flat.raw
done
cmp base.raw before.raw || fail "the base was written to"
