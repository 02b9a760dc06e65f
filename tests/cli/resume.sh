#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 600
#
# cowimg convert --resume: killed at every kind of step, killed anywhere, stopped by a
# signal, the next one goes on, and what comes of it is the source; changed sources,
# other options and damaged states are refused.
. tests/lib/test.sh
[ -e "$BUILD/lib/cow/cow-qcow2.so" ] || skip "built without zlib and zstd"
require_cmd qemu-img jq python3
cd "$TMP"

# Noise, zeroes and holes: 200 MiB of data, so that there are states in between.
python3 - <<'END'
import random
random.seed(5)
block = random.randbytes(1 << 20)
with open('src.raw', 'wb') as f:
    for i in range(200):
        if i % 50 == 7:
            f.seek(3 << 20, 1)
        f.write(i.to_bytes(8, 'little') + block[8:-4096 * (i % 3)] if i % 3 else block)
    f.write(b'the end')
END
touch -d @1700000000 src.raw

none_left() {
	[ ! -e out.part ] && [ ! -e out.state ] || fail "left: $(ls)"
}
same() {	# FORMAT
	cowimg compare -q -f "$1" -F raw out src.raw || fail "$1: is not the source"
	[ "$1" = raw ] || cowimg check -q -f "$1" out || fail "$1: has leaks or worse"
	[ "$1" != qcow2 ] || qemu-img check -q out || fail "QEMU finds something"
	none_left
	rm out
}
go_on() {	# FORMAT [OPTION...]
	format=$1
	shift
	cowimg convert --resume --output=json -f raw -O "$format" "$@" src.raw out >said || fail "does not go on: $(cat said)"
}

subtest "nothing to go on from"
for format in raw qcow2; do
	go_on $format
	jq -e '.resumed_at == 0' said >/dev/null || fail "said: $(cat said)"
	same $format
done

subtest a base somewhere else
mkdir elsewhere
head -c 50M src.raw >elsewhere/base.raw
for format in dscow qcow2; do
	go_on $format -b elsewhere/../elsewhere/base.raw -F raw
	cowimg compare -q -f $format -F raw out src.raw || fail "$format over a base is not the source"
	rm out
	none_left
	(
		cd elsewhere
		cowimg convert -q --resume -f raw -O $format -b "$TMP/elsewhere/base.raw" -F raw ../src.raw ../out
	)
	cowimg compare -q -f $format --backing-dir=elsewhere -F raw out src.raw || fail "$format over a base is not the source"
	rm out
	mkdir -p other
	cowimg convert -q --resume -f raw -O $format -b elsewhere/base.raw -F raw src.raw other/out
	cowimg compare -q -f $format --backing=elsewhere/base.raw -F raw other/out src.raw || fail "$format over a base is not the source"
	rm -r other
done

subtest a signal
status=0
cowimg convert --resume -f raw -O qcow2 src.raw out 2>said &
pid=$!
wait_for 60 '[ -e out ] || grep -qs "^done [1-9]" out.state'
kill -TERM $pid 2>/dev/null || true
wait $pid || status=$?
if [ $status != 0 ]; then	# else it was faster
	grep -q 'interrupted by SIGTERM.*and the same command goes on from there' said || fail "said: $(cat said)"
	[ ! -e out ] || fail 'there is half a file'
	go_on qcow2
	jq -e '.resumed_at >= 64 * 1048576' said >/dev/null || fail "said: $(cat said)"
fi
same qcow2

subtest killed anywhere
while read -r format options; do
	for part in 1 2 3; do
		# shellcheck disable=SC2086
		cowimg convert --resume -f raw -O $format $options src.raw out >/dev/null 2>&1 &
		pid=$!
		[ $part = 1 ] || wait_for 60 "[ -e out ] || [ \$(sed -n 's/^done //p' out.state 2>/dev/null || echo 0) -ge $((part * 30000000)) ]"
		kill -9 $pid 2>/dev/null || true
		wait $pid 2>/dev/null || true
	done
	# shellcheck disable=SC2086
	[ -e out ] || go_on $format $options
	same $format
done <<-END
	raw
	dscow
	qcow2
	qcow2 -c
	qcow2 -o cluster_size=4K
	dscow -b elsewhere/base.raw -F raw
END

if ! ldd "$BUILD/bin/cowimg" | grep -q libasan && command -v strace >/dev/null; then
	subtest killed at each kind of step
	while read -r call path; do
		killed_at "$call" "$TMP/$path" cowimg convert -q --resume -f raw -O qcow2 src.raw "$TMP/out"
		[ ! -e out ] || [ $path = out ] || fail "$call $path: there is half a file"
		[ -e out ] || go_on qcow2
		rm -f out.state.new
		rm -f out.state
		same qcow2
	done <<-END
		openat out.part
		write out.state.new
		fsync out.state.new
		rename out.state.new
		renameat2 out.part
	END
fi

subtest what is refused
start() {
	cowimg convert --resume -f raw -O qcow2 src.raw out >/dev/null 2>&1 &
	pid=$!
	wait_for 60 '[ -e out ] || grep -qs "^done [1-9]" out.state'
	kill -9 $pid 2>/dev/null || true
	wait $pid 2>/dev/null || true
	[ ! -e out ] || skip_rest=yes
}
skip_rest=
start
if [ -z "$skip_rest" ]; then
	cp out.state good
	expect_fail 'cowimg convert --resume -f raw -O qcow2 -c src.raw out' 'begun with other options: remove out.state'
	expect_fail 'cowimg convert --resume -f raw -O qcow2 -o cluster_size=4K src.raw out' 'begun with other options'
	touch src.raw
	expect_fail 'cowimg convert --resume -f raw -O qcow2 src.raw out' 'src.raw changed since out.part was begun'
	touch -d @1700000000 src.raw
	sed 's/^done ./done 9/' good >out.state
	expect_fail 'cowimg convert --resume -f raw -O qcow2 src.raw out' 'out.state is damaged: remove it'
	: >out.state
	expect_fail 'cowimg convert --resume -f raw -O qcow2 src.raw out' 'out.state is damaged'
	cp good out.state
	mv out.part kept
	cp kept out.part
	expect_fail 'cowimg convert --resume -f raw -O qcow2 src.raw out' 'out.part is another file'
	mv kept out.part
	[ ! -e out ] || fail 'a refused one made something'
	go_on qcow2
	jq -e '.resumed_at > 0' said >/dev/null || fail "said: $(cat said)"
	same qcow2
	# Without its state it is made anew.
	start
	rm -f out.state
	[ -e out ] || go_on qcow2
	same qcow2
fi
echo precious >out
expect_fail 'cowimg convert --resume -f raw src.raw out' 'out: File exists'
[ "$(cat out)" = precious ] || fail 'it was replaced'
rm -f out
for args in '--verify src.raw out' '--overwrite src.raw out' 'src.raw -' '- out' '-O qcow2 -o data_file=d src.raw out'; do
	expect_fail "cowimg convert --resume -f raw $args </dev/null" '--resume'
	[ $status = 2 ] || fail "$args: status $status"
done
none_left
