#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 900
#
# Encrypted qcow2 images both ways against QEMU: each cipher, mode and vector that
# either side makes, histories in which both take turns, snapshots, subclusters, data
# files, sizes; and what is refused by name.
. tests/lib/test.sh
. tests/lib/qcow2.sh
grep -q 'HAVE_GCRYPT := yes' "$BUILD/config.mk" || skip "built without libgcrypt"

cd "$TMP"
printf 'a secret of 26 characters.' >key
printf x >x
seq 1 900000 | head -c 1000448 >data.raw

reads() {	# IMAGE KEYFILE: to both it reads as data.raw, and both find it clean
	qemu-img convert -q --object "secret,id=s,file=$2" --image-opts \
		"driver=qcow2,file.filename=$1,encrypt.key-secret=s" -O raw got.raw
	cmp got.raw data.raw || fail "QEMU reads $1 otherwise"
	qemu-img check -q --object "secret,id=s,file=$2" --image-opts \
		"driver=qcow2,file.filename=$1,encrypt.key-secret=s" || fail "QEMU finds something in $1"
	cowimg read -q -f qcow2 -o "key_file=$2" "$1" - | cmp - data.raw || fail "cowimg reads $1 otherwise"
	cowimg check -q -f qcow2 "$1" || fail "cowimg finds something in $1"
}
fact() {	# IMAGE MEMBER
	cowimg info -f qcow2 --output=json "$1" | jq -r ".layers[0].format_specific.$2"
}

subtest each cipher that we make
for alg in 128 256; do
	for mode in xts cbc ecb; do
		for iv in plain plain64 essiv; do
			case $alg-$mode-$iv in
			256-* | 128-cbc-* | 128-xts-plain64) ;;
			*) continue ;;
			esac
			cowimg convert -q -f raw -O qcow2 --overwrite -o encrypt.format=luks,key_file=key,encrypt.iter-time=1 \
				-o encrypt.cipher-alg=aes-$alg,encrypt.cipher-mode=$mode,encrypt.ivgen-alg=$iv data.raw a.qcow2
			reads a.qcow2 key
			[ $iv != essiv ] || iv=essiv:sha256
			[ "$(fact a.qcow2 cipher)" = aes-$mode-$iv ] || fail "aes-$mode-$iv: $(fact a.qcow2 cipher)"
		done
	done
done
for hash in sha1 sha384 sha512 ripemd160; do
	cowimg convert -q -f raw -O qcow2 --overwrite -o encrypt.format=luks,key_file=key,encrypt.iter-time=1 \
		-o encrypt.hash-alg=$hash data.raw a.qcow2
	case $hash in
	sha384) cowimg read -q -f qcow2 -o key_file=key a.qcow2 - | cmp - data.raw ;;
	*) reads a.qcow2 key ;;
	esac
done
# QEMU 7.2 has no XTS with 192 bits, and aborts when the key material is no whole sectors.
for mode in xts cbc; do
	cowimg convert -q -f raw -O qcow2 --overwrite -o encrypt.format=luks,key_file=key,encrypt.iter-time=1 \
		-o encrypt.cipher-alg=aes-192,encrypt.cipher-mode=$mode --verify data.raw a.qcow2
done
cowimg convert -q -f raw -O qcow2 --overwrite -o encrypt.format=aes,key_file=key --verify data.raw a.qcow2
reads a.qcow2 key
[ "$(fact a.qcow2 encryption)" = aes ] || fail "method"

subtest each cipher that QEMU makes
while read -r options; do
	rm -f a.qcow2
	qemu_luks a.qcow2 1000448 -o "$options"
	qemu-img convert -q -n --object secret,id=s,data=x --target-image-opts data.raw \
		driver=qcow2,file.filename=a.qcow2,encrypt.key-secret=s
	reads a.qcow2 x
done <<-END
	cluster_size=64k
	encrypt.cipher-alg=aes-128
	encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256
	encrypt.cipher-mode=ecb,encrypt.hash-alg=sha512
	encrypt.ivgen-alg=plain,encrypt.hash-alg=sha1,compat=0.10
END

subtest a key that is wrong, and what is refused by name
cp a.qcow2 before
expect_fail 'cowimg read -f qcow2 -o key_file=key a.qcow2 -' 'a.qcow2: the key is wrong$'
echo x >newline
expect_fail 'cowimg write -f qcow2 -o key_file=newline a.qcow2 data.raw' 'the key is wrong \(it ends with a newline\)'
expect_fail 'cowimg write -f qcow2 a.qcow2 data.raw' 'is encrypted, and no key was given'
cmp a.qcow2 before || fail "a wrong key changed the image"
cowimg info -f qcow2 a.qcow2 >/dev/null
cowimg snapshot -q -f qcow2 -c one a.qcow2
for alg in serpent-256 twofish-256 cast5-128; do
	mode=cbc
	rm -f f.qcow2
	qemu_luks f.qcow2 1M -o encrypt.cipher-alg=$alg,encrypt.cipher-mode=$mode
	expect_fail 'cowimg info -f qcow2 f.qcow2' "is encrypted with the cipher '${alg%-*}', which is not supported"
done
while read -r options words; do
	expect_fail "cowimg create -f qcow2 -o key_file=key,$options bad.qcow2 1M" "$words"
	[ ! -e bad.qcow2 ] || fail "bad.qcow2 was left"
done <<-END
	encrypt.format=des neither luks nor aes
	encrypt.iter-time=5 need encrypt.format=luks
	encrypt.format=aes,encrypt.hash-alg=sha1 need encrypt.format=luks
	encrypt.format=luks,encrypt.cipher-alg=serpent-256 cipher-alg is not
	encrypt.format=luks,encrypt.cipher-mode=ctr cipher-mode is not
	encrypt.format=luks,encrypt.ivgen-alg=null ivgen-alg is not
	encrypt.format=luks,encrypt.ivgen-hash-alg=sha256 ivgen-hash-alg is
	encrypt.format=luks,encrypt.hash-alg=md5 hash-alg is not
	encrypt.format=luks,encrypt.iter-time=0 iter-time is not
	encrypt.format=luks,data_file=d,data_file_raw=on data_file_raw does not go with encryption
END
[ ! -e d ] || fail "a data file was left"
expect_fail 'cowimg convert -c -f raw -O qcow2 -o encrypt.format=luks,encrypt.iter-time=1,key_file=key data.raw bad.qcow2' \
	'with encryption cannot hold compressed data'

subtest an encrypted image over an encrypted base
cowimg convert -q -f raw -O qcow2 --overwrite -o encrypt.format=luks,encrypt.iter-time=1,key_file=key data.raw base.qcow2
cowimg create -q -f qcow2 -o encrypt.format=luks,encrypt.iter-time=1,key_file=x,backing.key_file=key \
	-b base.qcow2 -F qcow2 top.qcow2
cp data.raw model
for at in 0 1000 65535 300000 999000; do
	head -c 1234 /dev/urandom >piece
	cowimg write -q -f qcow2 -o key_file=x,backing.key_file=key -s $at top.qcow2 piece
	dd if=piece of=model oflag=seek_bytes seek=$at conv=notrunc status=none
done
cowimg zero -q -f qcow2 -o key_file=x,backing.key_file=key -s 131000 -l 140000 top.qcow2
head -c 140000 /dev/zero | dd of=model oflag=seek_bytes seek=131000 conv=notrunc status=none
truncate -s "$(cowimg info -f qcow2 --output=json top.qcow2 | jq .size)" model
cowimg read -q -f qcow2 -o key_file=x,backing.key_file=key top.qcow2 - | cmp - model
qemu-img convert -q --object secret,id=s,file=x --object secret,id=b,file=key --image-opts \
	driver=qcow2,file.filename=top.qcow2,encrypt.key-secret=s,backing.driver=qcow2,backing.file.filename=base.qcow2,backing.encrypt.key-secret=b \
	-O raw got.raw
cmp got.raw model || fail "QEMU reads the pair otherwise"

subtest two images, each with its key
cowimg convert -q -f qcow2 --source-options key_file=x,backing.key_file=key -O qcow2 \
	-o encrypt.format=luks,encrypt.iter-time=1,key_file=x top.qcow2 whole.qcow2
cowimg compare -q -f qcow2 -o key_file=x,backing.key_file=key --second-options key_file=x top.qcow2 whole.qcow2
expect_fail 'cowimg compare -f qcow2 -o key_file=x,backing.key_file=key top.qcow2 whole.qcow2' 'whole.qcow2.*encrypted'
cowimg diff -f qcow2 -o key_file=x --second-options key_file=key --output=json whole.qcow2 base.qcow2 >said
jq -e '.changes[0].start == 0 and .changes[0].length == 4096 and .changed_bytes == 168960' said >/dev/null || fail "said: $(cat said)"
head -c 1000448 /dev/zero | cowimg convert -q -f raw -O qcow2 -o encrypt.format=luks,encrypt.iter-time=1,key_file=x - blank.qcow2
expect_fail 'cowimg rebase -f qcow2 -o key_file=x,backing.key_file=key -b blank.qcow2 -F qcow2 top.qcow2' 'blank.qcow2.*encrypted'
cowimg rebase -q -f qcow2 -o key_file=x,backing.key_file=key -b blank.qcow2 -F qcow2 --base-options key_file=x top.qcow2
cowimg read -q -f qcow2 -o key_file=x,backing.key_file=x top.qcow2 - | cmp - model
cp blank.qcow2 moved.qcow2
cowimg rebase -q -u -f qcow2 -o key_file=x -b moved.qcow2 -F qcow2 --base-options key_file=x top.qcow2
cowimg read -q -f qcow2 -o key_file=x,backing.key_file=x top.qcow2 - | cmp - model
expect_fail 'cowimg rebase -u -f qcow2 --base-options key_file=x top.qcow2' 'goes with -b BASE'

luks=encrypt.format=luks,encrypt.iter-time=10
for who in cowimg qemu-img; do
	history $who 5000192 1000000 $luks
	history $who 5000192 0 $luks,cluster_size=4096 snapshots
	history $who 5000192 1000000 $luks,extended_l2=on snapshots
done
history cowimg 3000320 1000000 encrypt.format=aes,compat=0.10
history qemu-img 3000320 0 encrypt.format=aes,extended_l2=on,cluster_size=16384 snapshots
history cowimg 3000320 0 $luks,compat=0.10
history cowimg 3000320 0 $luks,data_file=data.raw
