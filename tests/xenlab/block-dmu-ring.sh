# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 500
#
# Disks that block-dmu has served by the guest's ring: of type vbd3 where Xen knows it (4.19
# and newer), else of type vbd while the kernel's backend is not loaded. cowd-xenbus answers
# the toolstack. A cowd that was killed is started again, and nothing is left behind.
. tests/lib/xenlab.sh
[ -x "$BUILD/bin/block-dmu" ] || skip "built without xenstore"
xen_up -t 400

cp "$BUILD/bin/block-dmu" /etc/xen/scripts/
COW_BIN_DIR=$BUILD/bin
export COW_BIN_DIR
cd "$TMP"
head -c 8M /dev/urandom >base.raw
sum=$(sha256sum <base.raw)
case $LAB_XEN in
xen-4.17) type=vbd words=ring ;;
*) type=vbd3 words=backendtype=tap ;;
esac
[ ! -e /sys/bus/xen-backend/drivers/vbd ] || fail "xen-blkback is there"

cowd-xenbus $type &
watcher=$!
at_exit 'kill $watcher'

subtest "a guest starts on its ring ($type)"
xl=xl-dmu guest_start g1 "dmu:dscow:$TMP/a.dscow:$TMP/base.raw,xvda,w,$words"
guest_disk g1 xvda
id=$(guest_id g1)
[ "$(guest_run g1 'sha256sum </dev/xvda')" = "$sum" ] || fail "xvda is not the base"
[ "$(cowctl status "xen-$id-51712" --json | jq -r .frontend)" = xen ] || fail "another front end"
[ "$(xenstore-read "/local/domain/0/backend/$type/$id/51712/state")" = 4 ] || fail "not connected"
! xenstore-exists "/local/domain/0/backend/$type/$id/51712/physical-device" || fail "a physical device"
guest_check g1 'mkfs.ext4 -q /dev/xvda && mount /dev/xvda /mnt && echo kept >/mnt/file && umount /mnt'

subtest "attached and detached while the guest runs"
xl-dmu block-attach g1 "dmu:dscow:$TMP/b.dscow:$TMP/base.raw,xvdb,r,$words" || fail "block-attach"
guest_disk g1 xvdb
guest_check g1 '[ $(cat /sys/block/xvdb/ro) = 1 ] && dd if=/dev/xvdb of=/dev/null bs=64k count=1 status=none'
xl block-detach g1 xvdb || fail "block-detach"
wait_for 10 '[ "$(cowctl list | wc -l)" = 1 ]'

subtest "a cowd that was killed is started again, and the guest waits for it"
pid=$(cowctl status "xen-$id-51712" --json | jq .pid)
kill -9 "$pid"
wait_for 5 '! kill -0 $pid 2>/dev/null'
XENBUS_PATH=backend/$type/$id/51712 /etc/xen/scripts/block-dmu add || fail "add, again"
guest_check g1 'mount /dev/xvda /mnt && grep -q kept /mnt/file && echo more >>/mnt/file && umount /mnt'

subtest "what cannot be is one sentence, and leaves nothing"
if xl-dmu block-attach g1 "dmu:dscow:$TMP/no.dscow:$TMP/none,xvdb,w,$words" >said 2>&1; then
	fail "attached without a base"
fi
grep -q 'script: .*none: No such file' said || fail "$(cat said)"
[ "$(cowctl list | wc -l)" = 1 ] || fail "$(cowctl list)"
xl block-detach g1 xvdb >/dev/null 2>&1 || true

subtest "the guest is destroyed with a cowd that was killed"
kill -9 "$(cowctl status "xen-$id-51712" --json | jq .pid)"
# cowd-xenbus says in its place that the backend is over.
xl destroy g1 >said 2>&1 || fail "xl destroy: $(cat said)"
guest_wait g1
xen_calm
wait_for 10 '[ -z "$(cowctl list)" ]'
cowimg check -q -f dscow a.dscow || fail "a.dscow is not sound"
[ "$(sha256sum <base.raw)" = "$sum" ] || fail "the base was written to"
cowimg read -q -f dscow a.dscow flat.raw
e2fsck -fn flat.raw >e2fsck.log 2>&1 || fail "the file system: $(cat e2fsck.log)"
