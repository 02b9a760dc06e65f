#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 600
#
# Encrypted images: where the key comes from, what is said without one, that it is
# seen nowhere, and both ways against QEMU: images made by either side, changed in
# turns, read by both, found clean.
. tests/lib/test.sh
. tests/lib/qcow2.sh
grep -q 'HAVE_GCRYPT := yes' "$BUILD/config.mk" || skip "built without libgcrypt"

cd "$TMP"
key='a secret of 26 characters.'
printf %s "$key" >key
printf x >other
seq 1 900000 | head -c 5000192 >data.raw
head -c 3000320 data.raw >short.raw

qemu_read() {	# DRIVER IMAGE FILE
	qemu-img convert -q --object secret,id=s,file=key --image-opts \
		"driver=$1,file.filename=$2,encrypt.key-secret=s" -O raw got.raw
	cmp got.raw "$3" || fail "QEMU reads $2 otherwise"
}

subtest keys from files, pipes and descriptors
cowimg convert -q -f raw -O qcow -o encrypt.format=aes,key_file=key --verify data.raw a.qcow
qemu_read qcow a.qcow data.raw
cowimg read -q -f qcow -o key_file=key a.qcow - | cmp - data.raw
cowimg read -q -f qcow -o key_fd=5 a.qcow - 5<key | cmp - data.raw
printf %s "$key" | cowimg read -q -f qcow -o key_file=/dev/stdin a.qcow - | cmp - data.raw
printf %s "$key" | cowimg convert -q -f qcow --source-options key_fd=0 -O raw a.qcow b.raw
cmp b.raw data.raw
printf %s "$key" | cowimg convert -q -f raw -O qcow -o encrypt.format=aes,key_fd=0 --verify data.raw b.qcow
cmp a.qcow b.qcow || fail "a key from a pipe makes another image"

subtest what is said of keys
no() {
	expect_fail "cowimg read -f qcow $1" "$2"
}
no 'a.qcow -' 'a.qcow: is encrypted, and no key was given'
no '-o key_file=none a.qcow -' 'a.qcow: cannot read the key from none: No such file'
no '-o key_file=. a.qcow -' 'cannot read the key from .: Is a directory'
no '-o key_file=/dev/null a.qcow -' 'the key in /dev/null is empty'
no '-o key_file=/dev/zero a.qcow -' 'the key in /dev/zero is longer than 64 KiB'
no '-o key_fd=77 a.qcow -' 'cannot read the key from key_fd=77: Bad file descriptor'
no '-o key_fd=99999999999 a.qcow -' 'cannot read the key from key_fd=99999999999: Bad file descriptor'
no '-o key_fd=x a.qcow -' 'key_fd must be a number'
no '-o key_fd=5,key_file=key a.qcow - 5<key' 'two ways to say the same'
no '-o key_file=key,backing.key_file=key a.qcow -' 'has no base'
cowimg create -q -f qcow plain.qcow 1M
no '-o key_file=key plain.qcow -' 'plain.qcow: is not encrypted, a key is of no use'
expect_fail 'cowimg create -f qcow -o encrypt.format=aes bad.qcow 1M' 'no key was given'
expect_fail 'cowimg create -f qcow -o key_file=key bad.qcow 1M' 'is not encrypted'
expect_fail 'cowimg create -f qcow -o encrypt.format=luks,key_file=key bad.qcow 1M' 'encrypt.format is not aes'
expect_fail 'cowimg convert -c -f raw -O qcow -o encrypt.format=aes,key_file=key data.raw bad.qcow' \
	'with encryption cannot hold compressed data'
[ ! -e bad.qcow ] || fail "bad.qcow was left"

subtest what needs no key
[ "$(cowimg info -f qcow --output=json a.qcow | jq -r '.layers[0].format_specific.encryption')" = aes ]
cowimg check -q -f qcow a.qcow
[ "$(cowimg map -f qcow --output=json a.qcow | jq -c '[.map[] | [.kind, .length]]')" = '[["encoded",5000192]]' ]

subtest a base that is encrypted, and one below
cowimg create -q -f qcow2 -b a.qcow -F qcow -o backing.key_file=key,backing.backing_format=raw o.qcow2 2>err && fail "a base without a base"
grep -q 'has no base, the option backing_format' err
cowimg create -q -f qcow2 -b a.qcow -F qcow -o backing.key_file=key o.qcow2
cowimg create -q -f qcow -b o.qcow2 -F qcow2 -o encrypt.format=aes,key_file=other,backing.backing.key_file=key p.qcow
keys=key_file=other,backing.backing.key_file=key
cp data.raw model
cmp_model() {
	cowimg read -q -f qcow -o $keys p.qcow - | cmp - model || fail "p.qcow reads otherwise"
}
cmp_model
for at in 0 100 511 512 70000 4999692; do
	head -c 500 /dev/urandom >piece
	cowimg write -q -f qcow -o $keys -s $at p.qcow piece
	dd if=piece of=model oflag=seek_bytes seek=$at conv=notrunc status=none
done
cmp_model
expect_fail 'cowimg read -f qcow -o key_file=other p.qcow -' 'a.qcow: is encrypted, and no key was given'
expect_fail 'cowimg read -f qcow -o backing.backing.key_file=key p.qcow -' 'p.qcow: is encrypted, and no key was given'
cp a.qcow a.before
cowimg commit -q -f qcow -o $keys p.qcow
cowimg commit -q -f qcow2 -o backing.key_fd=0 o.qcow2 <key
cmp_model
cowimg read -q -f qcow -o key_file=key a.qcow - | cmp - model
cowimg convert -q -f qcow --source-options key_file=key -O qcow2 -b a.qcow -F qcow -o backing.key_file=key a.qcow same.qcow2
[ "$(cowimg map -f qcow2 -o backing.key_file=key --output=json same.qcow2 | jq -c '[.map[].depth] | unique')" = '[1]' ]

subtest the bytes of a key are seen nowhere
strace -f -s 200 -o trace -e trace=write,writev,pwrite64,pwritev,sendto,sendmsg,execve \
	cowimg read -q -f qcow -o key_file=key a.qcow - >/dev/null
! grep -q "$key" trace || fail "the key was written somewhere"

subtest a daemon closes its descriptor, and reads no data without the key
if [ -e "$BUILD/bin/cowd" ] && [ -w /dev/fuse ]; then
	cowd -f --frontend=fuse --no-loop -p qcow -o key_fd=5 e a.qcow 5<key >node &
	pid=$!
	wait_for 60 '[ -s node ]'
	cmp "$(cat node)" model || fail "the daemon serves something else"
	[ "$(readlink /proc/$pid/fd/5)" != "$TMP/key" ] || fail "the descriptor of the key is still open"
	cowctl stop e
	wait $pid
	cowd --frontend=fuse --no-loop -p qcow -o key_file=key e a.qcow >node
	printf hello | dd of="$(cat node)" bs=1 seek=12345 conv=notrunc status=none
	printf hello | dd of=model bs=1 seek=12345 conv=notrunc status=none
	cmp "$(cat node)" model
	cowctl stop e
	cowimg read -q -f qcow -o key_file=key a.qcow - | cmp - model
fi

for who in cowimg qemu-img; do
	history $who 5000192 1000000 encrypt.format=aes qcow
done
history cowimg 9000448 0 encrypt.format=aes,cluster_size=65536 qcow
