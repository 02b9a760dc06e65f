#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# cowimg diff: exactly the changed units, against a byte-wise comparison, for images
# of several formats, of other sizes, with bases in common, and for snapshots.
. tests/lib/test.sh
require_cmd jq python3
cd "$TMP"
seq 1 700000 | head -c 4500003 >old.raw
cp old.raw new.raw
seq 9 900000 >other
for at in 0 70000 81920 2000000 4400000; do
	head -c 9000 other | dd of=new.raw oflag=seek_bytes seek=$at conv=notrunc status=none
done
dd if=/dev/zero of=new.raw bs=1000 seek=3000 count=100 conv=notrunc status=none
truncate -s 6000000 new.raw
printf 'at the end' | dd of=new.raw oflag=seek_bytes seek=5999990 conv=notrunc status=none

# truth OLD NEW: the list that is due, from the bytes alone
truth() {
	python3 - "$1" "$2" <<'END'
import json, sys
a, b = (open(p, 'rb').read() for p in sys.argv[1:])
n = max(len(a), len(b))
a, b = a.ljust(n, b'\0'), b.ljust(n, b'\0')
out = []
for at in range(0, n, 4096):
    x, y = a[at:at + 4096], b[at:at + 4096]
    if x == y:
        continue
    kind = 'data' if y.strip(b'\0') else 'zero'
    if out and out[-1]['start'] + out[-1]['length'] == at and out[-1]['kind'] == kind:
        out[-1]['length'] += len(y)
    else:
        out.append({'start': at, 'length': len(y), 'kind': kind})
print(json.dumps(out))
END
}

agree() {	# OLD NEW ARGS...: plain files, and what to say for images that read as they do
	truth "$1" "$2" | jq -cS . >want
	shift 2
	cowimg diff --output=json "$@" >said
	jq -cS .changes said | cmp - want || fail "diff $*: $(cat said), not $(cat want)"
	jq -e '.changed_bytes == ([.changes[].length] | add // 0)' said >/dev/null || fail "changed_bytes: $(cat said)"
}

subtest misuse
for bad in '' '-f raw old.raw' 'old.raw new.raw' '-f raw a b c'; do
	expect_fail "cowimg diff $bad" 'missing|too many|never guessed'
	[ $status = 2 ] || fail "status $status"
done
expect_fail 'cowimg diff -f raw old.raw missing.raw' 'missing.raw.*No such file'

subtest plain files
agree old.raw new.raw -f raw old.raw new.raw
agree new.raw old.raw -f raw new.raw old.raw
agree old.raw old.raw -f raw old.raw old.raw
jq -e '.size1 == 4500003 and .size2 == 4500003 and .changes == []' said >/dev/null || fail "said: $(cat said)"
cowimg diff -f raw old.raw new.raw >said
[ "$(wc -l <said)" = "$(truth old.raw new.raw | jq 'length + 1')" ] || fail "said: $(cat said)"
grep -Eq '^0 +12288 +data$' said || fail "said: $(cat said)"

subtest an overlay and its base
cowimg create -q -f dscow -b old.raw -F raw over.dscow 6000000
for at in 0 70000 81920 2000000 4400000; do
	head -c 9000 other | cowimg write -q -f dscow -s $at over.dscow
done
cowimg zero -q -f dscow -s 3000000 -l 100000 over.dscow
printf 'at the end' | cowimg write -q -f dscow -s 5999990 over.dscow
agree old.raw new.raw -f raw -F dscow old.raw over.dscow
agree new.raw new.raw -f raw -F dscow new.raw over.dscow

subtest overlays over one base
cowimg create -q -f dscow -b old.raw -F raw one.dscow 6000000
cp old.raw one.raw
truncate -s 6000000 one.raw
agree one.raw new.raw -f dscow one.dscow over.dscow
head -c 100 other | cowimg write -q -f dscow -s 500000 one.dscow
head -c 100 other | dd of=one.raw oflag=seek_bytes seek=500000 conv=notrunc status=none
agree one.raw new.raw -f dscow one.dscow over.dscow

[ -e "$BUILD/lib/cow/cow-qcow2.so" ] && command -v qemu-img >/dev/null || exit 0
subtest qcow2, compressed and in snapshots
cowimg convert -q -c -f raw -O qcow2 old.raw s.qcow2
cowimg resize -q -f qcow2 s.qcow2 6000128
cp old.raw s-old.raw
truncate -s 6000128 s-old.raw
agree s-old.raw new.raw -f qcow2 -F raw s.qcow2 new.raw
qemu-img snapshot -c before s.qcow2
cp s-old.raw s-new.raw
for at in 0 70000 2000000; do
	head -c 9000 other | cowimg write -q -f qcow2 -s $at s.qcow2
	head -c 9000 other | dd of=s-new.raw oflag=seek_bytes seek=$at conv=notrunc status=none
done
agree s-old.raw s-new.raw -f qcow2 -o snapshot=before s.qcow2 s.qcow2
agree s-new.raw s-old.raw -f qcow2 --second-options snapshot=before s.qcow2 s.qcow2

subtest what options say of a base
# Both are over the same file; one shows what it was at its snapshot.
for name in then now; do
	cowimg create -q -f qcow2 -b s.qcow2 -F qcow2 $name.qcow2
done
agree s-old.raw s-new.raw -f qcow2 -o backing.snapshot=before then.qcow2 now.qcow2
agree s-new.raw s-old.raw -f qcow2 --second-options backing.snapshot=before now.qcow2 then.qcow2
