# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 900
#
# A guest with a disk on its ring, made by block-dmu, is saved under load and restored: as
# another domain, with another cowd. In between the image is sound and nobody has it open; after
# it the load goes on, without an I/O error and without a wrong byte. So does that of a guest
# that is only stopped for a moment, and goes on in place.
. tests/lib/xenlab.sh
require_cmd jq
xen_block_dmu
xen_up -t 800

xen_block_dmu
PATH=$BUILD/tests/lab:$PATH
cd "$TMP"
P=$TMP
case $LAB_XEN in
xen-4.17) type=vbd words=,ring tap= ;;
*) type=vbd3 words= tap=backendtype=tap, ;;
esac
cowd-xenbus $type &
watcher=$!
at_exit 'kill $watcher; cd /; xl destroy g1 >/dev/null 2>&1 || true'

goes_on() {	# the load: on to other blocks, and it lives
	guest_check g1 'kill -USR1 $(cat /tmp/pid); sleep 2; kill -0 $(cat /tmp/pid)'
}

subtest a guest with a load on its disk
truncate -s 40M base.raw
payload fill -s 5 base.raw
cowimg create -q -f dscow -b base.raw -F raw over.dscow
guest_start g1 "${tap}script=block-dmu,vdev=xvda,access=w,target=dscow:$P/over.dscow$words"
guest_disk g1 xvda
was=$(guest_id g1)
guest_check g1 'payload run -s 5 -w 2M -S /tmp/state /dev/xvda >/tmp/load 2>&1 &
	echo $! >/tmp/pid; until [ -s /tmp/load ]; do usleep 100000; done'
goes_on

subtest saved: nobody has the image
xl save g1 saved >said 2>&1 || fail "xl save: $(cat said)"
guest_wait g1
wait_for 20 '[ -z "$(cowctl list)" ]'
xen_calm
cowimg check -q -f dscow over.dscow || fail "the image is not sound"

subtest restored, and it goes on
xl restore saved >said 2>&1 || fail "xl restore: $(cat said)"
rm saved
guest_attach g1
id=$(guest_id g1)
[ "$id" != "$was" ] || fail "the same domain"
cowctl status "xen-$id-51712" --json | jq -e '.xen.backend == "connected"' >/dev/null || fail "$(cowctl list)"
goes_on

subtest stopped for a moment
xl save -c g1 saved >said 2>&1 || fail "xl save -c: $(cat said)"
rm saved
[ "$(guest_id g1)" = "$id" ] || fail "another domain"
goes_on

subtest every byte
guest_check g1 'kill $(cat /tmp/pid); while kill -0 $(cat /tmp/pid) 2>/dev/null; do usleep 100000; done
	tail -n 1 /tmp/load; payload verify -S /tmp/state /dev/xvda' 180
sum=$(guest_check g1 'sha256sum </dev/xvda' 180)
guest_calm g1
guest_check g1 sync
# What waited for its end is gone since xl took it for saved.
guest_destroy g1
wait_for 20 '[ -z "$(cowctl list)" ]'
cowimg check -q -f dscow over.dscow || fail "the image is not sound"
cowimg read -q -f dscow over.dscow flat.raw
[ "$(sha256sum <flat.raw)" = "$sum" ] || fail "the image holds other bytes than the guest saw"
