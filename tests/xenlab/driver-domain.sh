# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 800
#
# A driver domain: the images, cowd, block-dmu, cowd-xenbus and "xl devd" are in a guest, which
# serves another guest's disk, first by its ring, then by a node and that domain's own blkback;
# domain 0 has nothing to do with it but the line with backend=. With a kill of cowd, a second
# disk that comes and goes, and the images at rest afterwards.
. tests/lib/xenlab.sh
. tests/lib/initramfs.sh
xen_block_dmu
guest_modules='xen-evtchn xen-gntdev xen-privcmd xenfs'
xen_up --module -t 700

xen_block_dmu
modprobe -a loop xen-blkback
driver_variables='COW_BIN_DIR=/cow/bin COW_PLUGIN_DIR=/cow/lib/cow DM_DISABLE_UDEV=1'
top=$PWD
cd "$TMP"
at_exit 'cd /; for g in g1 g2 driver; do xl destroy $g; done >/dev/null 2>&1'

# What is Xen's and ours in there: programs, and the libraries that they and the plugins need.
copy_program() {	# FILE PLACE
	mkdir -p "root/${2%/*}"
	cp "$1" "root/$2"
	ldd "$1" 2>/dev/null | grep -o '/[^ ]*' | while read -r lib; do
		[ -e "root/$lib" ] || { mkdir -p "root/${lib%/*}" && cp "$lib" "root/$lib"; }
	done
}

make_root() {
	mkdir -p root/dev root/proc root/sys root/run root/tmp root/img root/var/log/xen root/var/lock root/var/run/xen root/etc/xen
	for p in cowd cowctl cowimg cowd-xenbus; do
		copy_program "$BUILD/bin/$p" "cow/bin/$p"
	done
	copy_program "$BUILD/bin/block-dmu" etc/xen/scripts/block-dmu
	copy_program "$(command -v xl)" bin/xl
	copy_program "$(command -v busybox)" bin/busybox
	for p in "$BUILD"/lib/cow/*.so; do
		copy_program "$p" "cow/lib/cow/${p##*/}"
	done
	copy_program "$BUILD/lib/libcow.so.0" cow/lib/libcow.so.0
	# What libxenstore ends its thread with is loaded by the C library when it comes to that.
	libs=$(ldd "$BUILD/bin/cowd" | grep -o '/[^ ]*/libc\.so\.6')
	copy_program "${libs%/*}/libgcc_s.so.1" "${libs%/*}/libgcc_s.so.1"
	: >root/etc/xen/xl.conf
	initramfs_modules "$($top/tests/lab/kernels --have "$lab_kernel")" root/kernel dm-mod loop xen-blkback
	cp "$BUILD/kmod/$lab_kernel/dm-userspace.ko" root/kernel/lib/999-dm-userspace.ko
	head -c 8M /dev/urandom >root/img/base.raw
}

in_driver() {	# COMMAND: in the root that was made for it
	guest_check driver "export $driver_variables; chroot /mnt $1"
}

rest_driver() {	# until no cowd is there
	in_driver "/bin/busybox sh -c 'for i in \$(/bin/busybox seq 100); do
		[ -n \"\$(/cow/bin/cowctl list)\" ] || exit 0; /bin/busybox usleep 100000; done; /cow/bin/cowctl list; exit 1'"
}

holds() {	# IMAGE SUM
	in_driver "/cow/bin/cowimg check -q -f dscow $1"
	[ "$(in_driver "/cow/bin/cowimg read -q -f dscow $1 - | sha256sum")" = "$2" ] ||
		fail "$1 holds other bytes than the guest saw"
}

subtest "a guest with cowd in it, which knows of no guest yet"
make_root
sum=$(sha256sum <root/img/base.raw)
mkfs.ext4 -q -d root root.img 96M
guest_memory=288
guest_config driver "phy:$(losetup -f --show root.img),xvda,w"
echo 'driver_domain = 1' >>driver.cfg
guest_start driver
guest_disk driver xvda
guest_check driver 'mount /dev/xvda /mnt && for d in dev proc sys; do mount -o bind /$d /mnt/$d || exit 1; done
	mount -t tmpfs t /mnt/run && mkdir -p /mnt/run/xen && mount -t xenfs x /proc/xen'
guest_check driver 'syslogd -O /tmp/messages'
in_driver '/cow/bin/cowd-xenbus vbd >/mnt/tmp/driver.log 2>&1 &'
in_driver '/bin/xl devd -F >>/mnt/tmp/driver.log 2>&1 &'
driver=$(guest_id driver)
at_exit 'guest_run driver "cat /mnt/tmp/driver.log /tmp/messages" 2>/dev/null'

subtest "its disk is another guest's"
guest_memory=192
guest_start g1 "script=block-dmu,vdev=xvda,access=rw,backend=driver,target=dscow:/img/over.dscow:/img/base.raw,ring"
guest_disk g1 xvda
id=$(guest_id g1)
back=/local/domain/$driver/backend/vbd/$id/51712
[ "$(xenstore-read "/local/domain/$id/device/vbd/51712/backend")" = "$back" ] || fail "another backend"
[ "$(xenstore-read "$back/state")" = 4 ] || fail "not connected"
[ "$(guest_run g1 'sha256sum </dev/xvda')" = "$sum" ] || fail "not the base"
guest_check g1 'mkfs.ext4 -q /dev/xvda && mount /dev/xvda /mnt && head -c 2000000 /dev/urandom >/mnt/file && sync'

subtest "cowd is killed there, and started again"
in_driver "/bin/busybox sh -c 'kill -9 \$(/bin/busybox pidof cowd)'"
guest_check g1 '(head -c 500000 /dev/urandom >/mnt/more && sync; echo $? >/tmp/rc) >/dev/null 2>&1 &'
guest_check driver "export $driver_variables XENBUS_PATH=backend/vbd/$id/51712
	chroot /mnt /etc/xen/scripts/block-dmu add"
guest_check g1 'for i in $(seq 200); do [ ! -e /tmp/rc ] || break; usleep 50000; done; [ "$(cat /tmp/rc)" = 0 ] && umount /mnt'
sum=$(guest_check g1 'sha256sum </dev/xvda')
guest_calm g1

subtest "a second disk comes and goes"
xl block-attach g1 "script=block-dmu,vdev=xvdb,access=ro,backend=driver,target=raw:/img/base.raw,ring" || fail attach
guest_disk g1 xvdb
guest_check g1 'dd if=/dev/xvdb of=/dev/null bs=64k status=none'
xl block-detach g1 xvdb || fail detach
guest_check g1 '[ ! -e /sys/block/xvdb ]'

subtest "nothing is left of them but the image"
guest_off g1
wait_for 20 '! xenstore-exists "$back"'
rest_driver
holds /img/over.dscow "$sum"

subtest "a disk by a node, which the blkback of that domain serves"
guest_check driver 'for m in /mnt/kernel/lib/*.ko; do insmod $m || exit 1; done'
guest_start g2 "script=block-dmu,vdev=xvda,access=rw,backend=driver,target=dscow:/img/node.dscow:/img/base.raw"
guest_disk g2 xvda
id=$(guest_id g2)
back=/local/domain/$driver/backend/vbd/$id/51712
[ "$(xenstore-read "$back/physical-device-path")" = "/dev/mapper/xen-$id-51712" ] || fail "another node"
in_driver "/cow/bin/cowctl status xen-$id-51712 --json" | jq -e '.frontend == "dm"' >/dev/null || fail "another front end"
guest_check g2 'mkfs.ext4 -q /dev/xvda && mount /dev/xvda /mnt && head -c 2000000 /dev/urandom >/mnt/file && sync && umount /mnt'
sum=$(guest_check g2 'sha256sum </dev/xvda')

subtest "it is served while no cowd is there, and by the next one"
in_driver "/bin/busybox sh -c 'kill -9 \$(/bin/busybox pidof cowd)'"
[ "$(guest_check g2 'echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/xvda')" = "$sum" ] || fail "other bytes"
guest_check driver "export $driver_variables XENBUS_PATH=backend/vbd/$id/51712
	chroot /mnt /etc/xen/scripts/block-dmu add"
guest_check g2 'mount /dev/xvda /mnt && echo more >/mnt/more && umount /mnt'
sum=$(guest_check g2 'sha256sum </dev/xvda')
guest_off g2
wait_for 20 '! xenstore-exists "$back"'
rest_driver
holds /img/node.dscow "$sum"
guest_off driver
xen_calm
