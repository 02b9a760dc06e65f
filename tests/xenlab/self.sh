# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 900
#
# The lab under Xen itself: Xen of the right version runs, output and status come through,
# a guest's output, status, silence and death are noticed, and so is what it left in
# xenstore. The rest of the lab is tested by tests/lab/self.sh.
. tests/lib/xenlab.sh
xen_up -t 400

subtest "domain 0 of the Xen that was asked for"
[ "$(cat /sys/hypervisor/type)" = xen ] || fail "no Xen"
[ "xen-$(xl info xen_version | cut -d . -f 1-2)" = "$LAB_XEN" ] || fail "$(xl info xen_version)"
[ "$(xenstore-read domid)" = 0 ] || fail "not domain 0"

subtest "a guest's output and status"
guest_start g1
cat >"$TMP/wanted" <<'END'
two  words, 'quotes' "and" $signs
  a second line
END
guest_run g1 "cat <<'END'
$(cat "$TMP/wanted")
END
printf end; exit 7" >"$TMP/said" && fail "its status is lost" || [ $? = 7 ] || fail "status $?"
{ cat "$TMP/wanted"; echo end; } | cmp - "$TMP/said" || fail "its output"
guest_run g1 'sleep 1; echo to standard error >&2' | grep -qx 'to standard error' || fail "standard error"
guest_run g1 'exit 0' || fail "status $?"

subtest "a failed command, errors and silence fail a test"
(guest_check g1 'exit 3') >/dev/null 2>&1 && fail "guest_check took status 3"
(guest_calm g1) || fail "not calm"
guest_run g1 'sleep 5' 1 2>/dev/null && fail "in time" || [ $? = 124 ] || fail "status $?"
guest_run g1 'echo "<3>blk_update_request: I/O error, dev xvda" >/dev/kmsg' 20
(guest_calm g1) >/dev/null 2>&1 && fail "calm with I/O errors"

subtest "what is left in xenstore"
modprobe -a loop xen-blkback
truncate -s 1M "$TMP/disk"
xl block-attach g1 "phy:$(losetup -f --show "$TMP/disk"),xvda,w"
(xen_calm) >/dev/null 2>&1 && fail "does not see the disk"
xl block-detach g1 xvda
(xen_calm) || fail "sees a disk that is gone"

subtest "a guest that dies"
guest_run g1 'echo c >/proc/sysrq-trigger' 30 >"$TMP/said" 2>&1 && fail "status 0" || [ $? = 125 ] || fail "status $?"
grep -q 'sysrq triggered crash' "$TMP/said" || fail "does not say why: $(cat "$TMP/said")"
guest_wait g1
