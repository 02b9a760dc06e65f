# SPDX-License-Identifier: GPL-2.0-or-later
#
# Power cuts under a running cowd: overlay and base lie on dm-log-writes while
# threads write to the node, zero, discard and flush. The log is then replayed up to
# flushes and up to random points, with unflushed writes missing or torn: what was
# flushed must be there, what was never written must be the base, the image must be sound
# and take new writes. Nothing may have written to the base.
#
# The recording is made under another kernel, the replays on this machine.
# environment: COW_FE (dm ublk bridge), SEED, FAULT=full (all flushes and 1,000 points)
# TIMEOUT: 1800
. tests/lib/lab-node.sh

size=64 ops=1200 flushes=30 points=60
if [ "${FAULT:-quick}" = full ]; then
	ops=6000 flushes=100000 points=1000
fi
seed=${SEED:-20061}
over_size=$((size + 8))
tail_at=$(((size - 1) << 20))	# what payload does not use: for writes after the cut
front_ends dm ublk bridge

# ---- inside: the recording ----

record() {
	slice base $size /dev/ram0
	payload fill -s "$seed" /dev/mapper/base
	slice over $over_size /dev/ram1
	echo "0 $((224 << 11)) linear /dev/ram2 0
$((224 << 11)) $((256 << 11)) linear /dev/ram3 0" | dmsetup create log
	slice baselog 32 /dev/ram2 224
	for d in over log baselog; do
		payload zero "/dev/mapper/$d"
	done
	echo "0 $((size << 11)) log-writes /dev/mapper/base /dev/mapper/baselog" | dmsetup create logged-base
	echo "0 $((over_size << 11)) log-writes /dev/mapper/over /dev/mapper/log" | dmsetup create logged-over
	cowimg create -q -f dscow --overwrite -b /dev/mapper/logged-base -F raw /dev/mapper/logged-over
	serve /dev/mapper/logged-over
	payload run -s "$seed" -n $ops -l $tail_at -M logged-over -H "$TMP/history" -S "$TMP/state" "$disk"
	cowctl stop "$node"
	drop logged-over logged-base
	for log in log baselog; do
		cp --sparse=always "/dev/mapper/$log" "/out/$fe.$log"
	done
	mv "$TMP/history" "/out/$fe.history"
	mv "$TMP/state" "/out/$fe.state"
	drop log baselog over base
	echo "$fe" >>/out/done
}

recording() {
	node_lab
	pick_front_ends
	modprobe dm-log-writes
	for fe in $fes; do
		record
	done
	exit 0
}

[ -z "${COW_IN_LAB:-}" ] || recording

# ---- outside: the replays ----

# The recording of a cut that went wrong is worth more than the sentence.
at_exit '[ $test_status = 0 ] || tar -C "$TMP" -cSzf "$BUILD/test-logs/crash-recording.tgz" out'

replay_to() {	# POINT [SEED]
	rm -f "$TMP/img" "$TMP/flat"
	truncate -s ${over_size}M "$TMP/img"
	logreplay -n "$1" ${2:+-l "$2"} "$TMP/out/$fe.log" "$TMP/img"
}

sound() {
	r=0
	cowimg check -q -f dscow "$TMP/img" >"$TMP/check" 2>&1 || r=$?
	[ $r = 0 ] || [ $r = 3 ] || fail "$at: check says: $(cat "$TMP/check")"
}

flat() {	# makes $TMP/flat
	rm -f "$TMP/flat"
	cowimg read -q -f dscow --backing="$TMP/base" "$TMP/img" "$TMP/flat" || fail "$at: cannot be read"
}

has_flushed() {	# FLUSH
	payload crash -s "$seed" -H "$TMP/out/$fe.history" -m "$1" -l $tail_at "$TMP/flat"
}

contents() {	# FLUSH
	flat
	has_flushed "$1" || fail "$at"
}

# What is left at this point has all that was flushed by then.
cut() {	# POINT FLUSH [SEED]
	at="$fe, point $1, after flush $2, lost by ${3:--} (seed $seed)"
	replay_to "$1" ${3:-}
	sound
	contents "$2"
	# Now and then it is used again.
	[ $(($1 % 4)) = 0 ] || return 0
	head -c 200000 /dev/urandom >"$TMP/new"
	cowimg write -q -f dscow --backing="$TMP/base" -s $((tail_at + 1000)) "$TMP/img" "$TMP/new" ||
		fail "$at: cannot be written"
	sound
	cowimg read -q -f dscow --backing="$TMP/base" -s $((tail_at + 1000)) -l 200000 "$TMP/img" - |
		cmp - "$TMP/new" || fail "$at: what was written afterwards is not there"
	contents "$2"
}

# Prints "POINT FLUSH [SEED]" lines: by lot among the flushes, and anywhere after the first.
choose() {
	logreplay "$TMP/out/$fe.log" | awk -v seed="$seed" -v flushes=$flushes -v points=$points '
	BEGIN { srand(seed); n = 0 }
	$2 == "mark" && $5 ~ /^flush-/ { at[n] = $1 + 1; id[n++] = substr($5, 7) }
	END {
		for (i = 0; i < n; i++)
			if (rand() * n < flushes)
				print at[i], id[i]
		for (; n && points > 0; points--) {
			p = at[0] + int(rand() * (NR - at[0] + 1))
			for (i = 0; i + 1 < n && at[i + 1] <= p; )
				i++
			print p, id[i], int(rand() * 1e9)
		}
	}'
}

(recording) || exit
payload fill -s "$seed" -l ${size}M "$TMP/base"
export COW_VMAP_DIR="$TMP/vmap"	# a machine that was started anew has none
mkdir "$COW_VMAP_DIR"
while read -r fe; do
	subtest "$fe: nothing writes to the base"
	logreplay "$TMP/out/$fe.baselog" >"$TMP/list"
	grep -q ' mark ' "$TMP/list" || fail "$fe: the base was not logged"
	! grep -v -e ' mark ' -e '^[0-9]* flush ' "$TMP/list" || fail "$fe: the base was written to"

	subtest "$fe: cut at flushes and anywhere"
	choose >"$TMP/points"
	n=0
	while read -r point flush lose; do
		cut "$point" "$flush" $lose
		n=$((n + 1))
	done <"$TMP/points"
	[ $n -ge $points ] || fail "only $n points"
	all=$(logreplay "$TMP/out/$fe.log" | wc -l)
	echo "$n cuts of $all entries"

	subtest "$fe: a disk that loses what was flushed would be seen"
	set -- $(grep -v ' .* ' "$TMP/points" | tail -n 1)
	replay_to $(($1 / 2))
	flat
	! has_flushed "$2" 2>"$TMP/seen" || fail "$fe: half of the log has flush $2 of point $1"
	grep -q 'must be there' "$TMP/seen" || fail "$fe: $(cat "$TMP/seen")"

	subtest "$fe: all is there at the end"
	at="$fe, at the end"
	replay_to "$all"
	sound
	flat
	payload verify -S "$TMP/out/$fe.state" "$TMP/flat"
done <"$TMP/out/done"
