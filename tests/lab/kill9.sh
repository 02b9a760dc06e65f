# SPDX-License-Identifier: GPL-2.0-or-later
#
# kill -9 of cowd under load, again and again: whoever uses the node sees neither an
# error nor a wrong byte. Two loads: payload, which knows what each sector holds, and fio
# with its own verification. With the device-mapper target, what the kernel remembers is
# served while no daemon runs (dmu-life.sh holds that to the letter). Afterwards the image is sound, the base as it was.
#
# environment: COW_FE (dm ublk), SEED, KILLS (20; FAULT=full 100)
# TIMEOUT: 3600
. tests/lib/lab-node.sh

kills=20
[ "${FAULT:-quick}" != full ] || kills=100
kills=${KILLS:-$kills}
seed=${SEED:-20061}
hot_at=160 hot=8		# MiB: present and remembered
fio_at=168 fio_size=24
size=$((fio_at + fio_size))
front_ends dm ublk

node_lab -m 2048 -e KILLS
pick_front_ends
at_exit 'timeout 30 cowctl stop --force "$node" >/dev/null 2>&1 || true'

nap() {	# MILLISECONDS: up to
	rnd=$(((rnd * 1103515245 + 12345) & 0x7fffffff))
	sleep "$(printf '0.%03d' $((rnd / 65536 % $1)))"
}

# Until $TMP/enough is there. Its last words are in $TMP/fio.
fio_load() {
	while [ ! -e "$TMP/enough" ]; do
		fio --name=verify --filename="$disk" --allow_file_create=0 --offset=${fio_at}m \
			--size=${fio_size}m --io_size=8m --rw=randrw --rwmixwrite=70 --bsrange=512-64k \
			--ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c --verify_fatal=1 \
			--verify_backlog=64 --verify_state_save=0 --randrepeat=0 --thread >"$TMP/fio" 2>&1 || return 1
		fios=$((fios + 1))
		echo $fios >"$TMP/fios"
	done
}

# Who waits in the kernel, for what: whatever cannot be interrupted, and all of ours.
stuck() {
	for task in /proc/[0-9]*/task/[0-9]*; do
		case $(sed 's/^\([0-9]*\) (\(.*\)) \(.\) .*/\3 \2 \1/' "$task/stat" 2>/dev/null) in
		D* | ?' cowd'* | ?' iou-'* | ?' fio'* | ?' payload'*)
			echo "-- $(sed 's/).*/)/' "$task/stat") $(grep State "$task/status")"
			cat "$task/stack"
			;;
		esac 2>/dev/null
	done
}

# Says who waits, and ends the test, when nothing moves.
watchdog() {
	while sleep 5; do
		[ $(($(date +%s) - $(stat -c %Y "$TMP/moves"))) -gt $(patience 150) ] || continue
		echo "nothing moves; cowd: $(cowctl list 2>&1)"
		stuck
		kill -KILL $$
	done
}

# Reads and writes of blocks that the kernel knows.
hot_start() {
	rm -f "$TMP/hot.status"
	(
		hot_status=0
		payload run -z -k $(patience 300) -t 2 -n 60 -f ${hot_at}M -l ${hot}M -S "$TMP/hot" "$disk" \
			>"$TMP/hot.out" 2>&1 || hot_status=$?
		echo $hot_status >"$TMP/hot.status.new"
		mv "$TMP/hot.status.new" "$TMP/hot.status"
	) &
}

hot_end() {	# SECONDS WHAT: false if it goes on longer
	hot_left=$(($(patience "$1") * 10))
	until [ -e "$TMP/hot.status" ]; do
		[ $hot_left -gt 0 ] || return 1
		hot_left=$((hot_left - 1))
		sleep 0.1
	done
	[ "$(cat "$TMP/hot.status")" = 0 ] || fail "$2: remembered blocks: $(cat "$TMP/hot.out")"
}

hot_must_end() {	# WHAT
	hot_end 100 "$1" || fail "$1: remembered blocks: no end; $(dmsetup status "$node"); $(stuck)"
}

# The daemon is dead; the next one may die too, while it takes over.
successors() {
	while [ $((rnd / 65536 % 4)) = 0 ]; do
		cowd -f --frontend=$fe --log-level=error -p dscow "$node" /dev/mapper/over >/dev/null 2>&1 &
		early=$!
		nap 400
		kill -9 $early 2>/dev/null || true
		wait $early 2>/dev/null || true
		died=$((died + 1))
	done
}

one_kill() {
	: >"$TMP/moves"
	nap 700
	kill -USR1 $load		# on to blocks that nobody asked for yet
	nap 100
	kill -9 "$pid"
	died=$((died + 1))
	wait_for 20 '[ ! -e /proc/$pid ]'
	if [ $fe = dm ]; then
		told=$(dmsetup status "$node")
		hot_start
		if ! hot_end 20 "kill $died, no daemon"; then
			late=$((late + 1))
			echo "kill $died, no daemon: remembered blocks wait"
			echo "$told"
			dmsetup status "$node"
			stuck
		fi
	fi
	successors
	serve /dev/mapper/over
	[ $fe != dm ] || hot_must_end "kill $died, the next daemon"
	# Now and then the kernel forgets, and has to be told again by the new daemon.
	if [ $fe = dm ] && [ $((rnd / 65536 % 3)) = 0 ]; then
		dmsetup message "$node" 0 invalidate
		hot_start
		hot_must_end "kill $died, told anew"
	fi
	kill -0 $load 2>/dev/null || fail "kill $died: $(cat "$TMP/load")"
}

for fe in $fes; do
	subtest "$fe: a load through $kills kills"
	ram_overlay $size 8
	serve /dev/mapper/over
	rm -f "$TMP/enough" "$TMP/state" "$TMP/hot"
	rnd=$seed died=0 fios=0 late=0
	echo 0 >"$TMP/fios"
	payload fill -s "$seed" -f ${hot_at}M -l ${hot}M "$disk"
	payload run -z -t 2 -n 10 -s "$seed" -f ${hot_at}M -l ${hot}M -S "$TMP/hot" "$disk" >/dev/null
	"$BUILD/tests/lab/payload" run -k $(patience 120) -s "$seed" -w 2M -l ${hot_at}M -S "$TMP/state" "$disk" \
		>"$TMP/load" 2>&1 &
	load=$!
	wait_for 20 '[ -s "$TMP/load" ]'
	fio_load &
	fio=$!
	n=0
	: >"$TMP/moves"
	watchdog &
	dog=$!
	while [ $n -lt "$kills" ]; do
		one_kill
		n=$((n + 1))
	done
	kill $dog
	kill -TERM $load
	: >"$TMP/enough"
	wait $load || fail "after $died kills: $(cat "$TMP/load")"
	wait $fio || fail "after $died kills: fio: $(tail -n 5 "$TMP/fio")"
	# What is remembered may be forgotten at any time, so some may have to wait; not most.
	[ $late -le $((kills / 5)) ] || fail "$late times in $kills remembered blocks waited for the next daemon"
	echo "$fe: $died kills, $late late; $(tail -n 1 "$TMP/load"); fio runs: $(cat "$TMP/fios")"

	subtest "$fe: every byte, served and at rest"
	[ $fe != dm ] || dmsetup message "$node" 0 invalidate
	payload verify -S "$TMP/state" "$disk"
	payload verify -S "$TMP/hot" "$disk"
	cowctl stop "$node"
	check_image /dev/mapper/over
	cowimg read -q -f dscow /dev/mapper/over "$TMP/flat"
	payload verify -S "$TMP/state" "$TMP/flat"
	payload verify -S "$TMP/hot" "$TMP/flat"
	rm "$TMP/flat"

	subtest "$fe: the base is as it was"
	payload verify -s "$seed" /dev/mapper/base
	drop over base
done
