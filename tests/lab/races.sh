# SPDX-License-Identifier: GPL-2.0-or-later
#
# Random table operations on a node that cowd serves, under load: suspend with and without
# flush, resume, the same table again, a bigger one (cowctl resize), status, messages, and a
# second node of the same table and key that comes and goes. Nothing hangs, nobody sees
# an error or a wrong byte, and the module can be unloaded afterwards.
#
# environment: SEED, CALLS (1,000; FAULT=full 10,000)
# TIMEOUT: 3600
. tests/lib/lab-node.sh

calls=1000
[ "${FAULT:-quick}" != full ] || calls=10000
calls=${CALLS:-$calls}
seed=${SEED:-20061}
size=192
fes=dm

node_lab -m 2048 -e CALLS
pick_front_ends
fe=dm
at_exit 'timeout 30 cowctl stop --force "$node" >/dev/null 2>&1 || true'

ram_overlay $size 40
serve /dev/mapper/over

subtest "$calls table operations under load"
"$BUILD/tests/lab/payload" run -s "$seed" -w 4M -l ${size}M -S "$TMP/state" "$disk" \
	>"$TMP/load" 2>&1 &
load=$!
wait_for 20 '[ -s "$TMP/load" ]'
done=0
while [ $done -lt $calls ]; do
	bounded 300 dmops -n 100 -s $((seed + done)) -2 lab-second "$node" invalidate >"$TMP/ops" ||
		fail "after $done operations: $(cat "$TMP/load")"
	done=$((done + 100))
	cowctl resize "$node" $(((size << 20) + done * 2048)) || fail "after $done operations"
	kill -0 $load 2>/dev/null || fail "after $done operations: $(cat "$TMP/load")"
	kill -USR1 $load
done
kill -TERM $load
wait $load || fail "$(cat "$TMP/load")"
cat "$TMP/ops"
tail -n 1 "$TMP/load"
[ "$(blockdev --getsize64 "$disk")" = $(((size << 20) + done * 2048)) ] ||
	fail "the node has not the new size"

subtest "every byte, served and at rest"
bounded 60 payload verify -S "$TMP/state" "$disk"
cowctl stop "$node"
check_image /dev/mapper/over
cowimg read -q -f dscow /dev/mapper/over "$TMP/flat"
payload verify -S "$TMP/state" "$TMP/flat"
payload verify -s "$seed" /dev/mapper/base

subtest "nothing holds the devices or the module"
drop over base
rmmod dm-userspace
