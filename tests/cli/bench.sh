#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# cowimg bench: it makes the requests that it was asked for, and no others; what it writes
# is exactly what was to be written; flushes happen. Nothing here looks at times.
. tests/lib/test.sh
require_cmd jq python3
cd "$TMP"
seq 1 700000 | head -c 4194304 >base.raw
cp base.raw ref.raw

# stamp COUNT BYTES STEP OFFSET BYTE: what the requests leave in ref.raw
stamp() {
	python3 - "$@" <<'END'
import os, sys
count, size, step, offset, byte = map(int, sys.argv[1:])
with open('ref.raw', 'r+b') as f:
    places = (os.fstat(f.fileno()).st_size - offset - size) // step + 1
    for i in range(min(count, places)):
        f.seek(offset + i * step)
        f.write(bytes([byte]) * size)
END
}

bench() {	# EXPRESSION ARGS...: what JSON says satisfies the expression
	want=$1
	shift
	cowimg bench --output=json "$@" >said
	jq -e "$want" said >/dev/null || fail "bench $*: not $want: $(cat said)"
}

subtest misuse
for bad in '' 'base.raw' '-f raw' '-f raw a b'; do
	expect_fail "cowimg bench $bad" 'missing|too many|never guessed'
	[ $status = 2 ] || fail "status $status"
done
for bad in '-c 0' '-d 0' '-s 0' '-S 0' '-w --flush-interval 0'; do
	expect_fail "cowimg bench -f raw $bad base.raw" 'is above 0'
	[ $status = 2 ] || fail "status $status"
done
for bad in '-c x' '--offset=-1' '--random=x' '-S 1.5'; do
	expect_fail "cowimg bench -f raw $bad base.raw" 'is not a size'
done
expect_fail 'cowimg bench -f raw -d 1025 base.raw' 'at most 1024'
expect_fail 'cowimg bench -f raw -s 1G -d 2 base.raw' 'at most 1024 MiB'
expect_fail 'cowimg bench -f raw -c 15E base.raw' '--count is too large'
expect_fail 'cowimg bench -f raw --pattern 1 base.raw' '--write is missing'
expect_fail 'cowimg bench -f raw --flush-interval 1 base.raw' '--write is missing'
expect_fail 'cowimg bench -f raw -w --no-drain base.raw' 'needs --flush-interval'
expect_fail 'cowimg bench -f raw -w --pattern 256 base.raw' '0 to 255'
expect_fail 'cowimg bench -f raw missing.raw' 'No such file'
expect_fail 'cowimg bench -f raw --offset 4M base.raw' 'past the end'
expect_fail 'cowimg bench -f raw -s 5M base.raw' 'past the end'
cmp base.raw ref.raw

subtest reads, counted and told
bench '.operation == "read" and .requests == 1000 and .depth == 64 and .request_bytes == 4096 and
	.step_bytes == 4096 and .random == false and .flushes == 0 and .iops > 0 and
	.bytes_per_second >= .iops * 4000 and .latency_p50_ns <= .latency_p99_ns and
	.latency_p99_ns <= .latency_max_ns and .latency_max_ns <= .elapsed_ns and .latency_p50_ns > 0' \
	-f raw -c 1000 base.raw
bench '.requests == 1 and .latency_p50_ns == .latency_max_ns' -f raw -c 1 base.raw
bench '.requests == 10 and .random' -f raw -c 10 -s 1000 -d 3 --random=7 base.raw
cowimg bench -f raw -c 100 -d 7 -s 512 base.raw >said
grep -q '^100 reads of 512 bytes, at most 7 at once, in ' said || fail "said: $(cat said)"
[ "$(wc -l <said)" = 3 ] || fail "said: $(cat said)"
cmp base.raw ref.raw

subtest exactly what was to be written is written
bench '.operation == "write" and .requests == 40 and .flushes == 0' \
	-f raw -w -c 40 -s 3000 -S 70000 --offset 5000 --pattern 0xa5 base.raw
stamp 40 3000 70000 5000 165
cmp base.raw ref.raw
bench '.requests == 500' -f raw -w -c 500 -s 1000 -S 300000 --pattern 3 base.raw	# round and round
stamp 500 1000 300000 0 3
cmp base.raw ref.raw
cowimg create -q -f dscow -b base.raw -F raw over.dscow
before=$(sha256sum <base.raw)
bench '.requests == 90 and .format == "dscow"' \
	-f dscow -w -c 90 -d 16 -s 5000 -S 40000 --offset 1 --pattern 77 over.dscow
stamp 90 5000 40000 1 77
cowimg compare -q -f dscow -F raw over.dscow ref.raw || fail 'the overlay is not what was to be written'
cowimg check -q -f dscow over.dscow
[ "$(sha256sum <base.raw)" = "$before" ] || fail 'the base was written to'

subtest random places, the same for the same seed
for seed in 5 5 6; do
	truncate -s 0 r$seed.raw
	truncate -s 4M r$seed.raw
	cp r$seed.raw r.raw
	bench '.requests == 20' -f raw -w -c 20 -s 4096 --random=$seed --pattern 1 r.raw
	sha256sum <r.raw >>sums
	cowimg map -f raw r.raw >/dev/null
	ones=$(tr -d '\0' <r.raw | wc -c)
	[ "$ones" -gt 0 ] && [ "$ones" -le 81920 ] && [ $((ones % 4096)) = 0 ] || fail "$ones bytes were written"
done
[ "$(uniq sums | wc -l)" = 2 ] || fail "seeds: $(cat sums)"

subtest flushes
bench '.requests == 64 and .flushes == 8' -f raw -w -c 64 -d 4 --pattern 4 --flush-interval 8 ref.raw
bench '.requests == 63 and .flushes == 7' -f raw -w -c 63 -d 4 --pattern 4 --flush-interval 8 --no-drain ref.raw
bench '.flushes == 5' -f dscow -w -c 5 -d 1 -S 64K --flush-interval 1 over.dscow
cowimg bench -f raw -w -c 4 --flush-interval 2 ref.raw >said
grep -q ', with 2 flushes$' said || fail "said: $(cat said)"
if [ -z "${SAN:-}" ] && command -v strace >/dev/null; then
	strace -f -e trace=fdatasync,io_uring_enter -o calls cowimg bench -f raw -w -c 6 --flush-interval 2 ref.raw >/dev/null
	[ "$(grep -c 'fdatasync(\|io_uring_enter(' calls)" -ge 3 ] || fail "flushes did not reach the file: $(cat calls)"
fi

subtest past the page cache
cp ref.raw direct.raw
bench '.requests == 16' -f raw -c 16 --direct direct.raw
bench '.requests == 16 and .flushes == 1' -f raw -w -c 16 -S 8192 --pattern 9 --flush-interval 16 --direct direct.raw
stamp 16 4096 8192 0 9
cmp direct.raw ref.raw

subtest an error ends it
cowimg create -q -f dscow -b base.raw -F raw full.dscow
cat >limited.py <<'END'	# no file grows past 100 KiB
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (102400, 102400))
os.execvp(sys.argv[1], sys.argv[1:])
END
expect_fail 'python3 limited.py cowimg bench -f dscow -w -S 64K full.dscow' \
	'cannot write at offset [0-9]*: File too large'
cowimg check -q -f dscow full.dscow
if env --block-signal=INT true 2>/dev/null; then
	status=0
	env --default-signal=INT --block-signal=INT sh -c 'kill -INT $$; exec cowimg bench -f raw -c 1T base.raw' \
		>said 2>err || status=$?
	[ $status = 1 ] && [ ! -s said ] || fail "interrupted: $status, $(cat said)"
	grep -q 'interrupted by SIGINT after [0-9]* of 1099511627776 requests$' err || fail "interrupted: $(cat err)"
fi
