#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Which base an overlay is opened with: what an image says is a hint, looked
# for below its own folder only; a base that is gone, changed, too deep, or the
# overlay itself is refused in one sentence; nothing outside is ever opened.
. tests/lib/test.sh
cd "$TMP"

# A part that this machine cannot run: counted as skipped, with its reason.
part_skipped() {
	echo "SKIP: $test_name: $*"
	echo 'COUNT: 0 0 1'
}

mkdir dir dir/sub other
head -c 200000 /dev/urandom >dir/base.raw
cp dir/base.raw dir/sub/base.raw
cp dir/base.raw other/base.raw
touch -r dir/base.raw dir/sub/base.raw other/base.raw

read_ok() {	# OVERLAY [OPTION]...: reads as the base does
	cowimg read -f dscow "$@" | cmp - dir/base.raw || fail "does not read as its base: $*"
}

recorded() {	# OVERLAY
	cowimg info -f dscow --output=json "$1" | sed -n 's/.*"base_path": *"\([^"]*\)".*/\1/p' | head -n 1
}

subtest how a base is recorded
cowimg create -q -f dscow -b dir/base.raw -F raw dir/a.dscow
[ "$(recorded dir/a.dscow)" = base.raw ] || fail "recorded $(recorded dir/a.dscow)"
cowimg create -q -f dscow -b dir/sub/base.raw -F raw dir/b.dscow
[ "$(recorded dir/b.dscow)" = sub/base.raw ] || fail "recorded $(recorded dir/b.dscow)"
cowimg create -q -f dscow -b "$PWD/dir/base.raw" -F raw dir/c.dscow
[ "$(recorded dir/c.dscow)" = base.raw ] || fail "recorded $(recorded dir/c.dscow)"
cowimg create -q -f dscow -b other/base.raw -F raw dir/d.dscow
[ "$(recorded dir/d.dscow)" = "$(realpath other/base.raw)" ] || fail "recorded $(recorded dir/d.dscow)"
(cd dir && cowimg create -q -f dscow -b base.raw -F raw e.dscow)
[ "$(recorded dir/e.dscow)" = base.raw ] || fail "recorded $(recorded dir/e.dscow)"
for i in a b c e; do
	read_ok dir/$i.dscow
	(cd dir && cowimg read -f dscow $i.dscow) | cmp - dir/base.raw
done

subtest a base outside must be allowed
expect_fail 'cowimg read -f dscow dir/d.dscow' 'outside.*--backing'
expect_fail 'dscow_tool -m dir/d.dscow' 'outside.*--backing'
read_ok dir/d.dscow --backing other/base.raw
read_ok dir/d.dscow --backing-dir other
read_ok dir/d.dscow --backing-dir dir --backing-dir "$PWD/other/"
read_ok dir/d.dscow --backing-dir .
read_ok dir/d.dscow --backing-dir /
expect_fail 'cowimg read -f dscow --backing-dir dir/sub dir/d.dscow' 'outside'
expect_fail 'cowimg read -f dscow --backing-dir missing dir/d.dscow' 'outside|missing'
expect_fail 'cowimg read -f dscow --backing other/missing dir/d.dscow' 'other/missing.*No such file'
expect_fail 'cowimg read -f dscow --backing "" dir/d.dscow' 'empty'
cowimg info -f dscow dir/d.dscow >info || fail 'info needs no base'
cowimg check -q -f dscow dir/d.dscow || fail 'check needs no base'

subtest the pair can be moved together
cp -a dir moved
read_ok moved/a.dscow
mv moved/base.raw moved/sub/gone
expect_fail 'cowimg read -f dscow moved/a.dscow' "base 'base.raw' does not exist"
read_ok moved/a.dscow --backing moved/sub/gone
read_ok moved/a.dscow --backing-dir dir

subtest a changed base is refused
sha256sum dir/a.dscow >sums
changed() {	# REGEX
	for verb in 'map' 'read' 'write -l 1 --pattern 0' 'zero -l 1' 'commit' 'resize'; do
		set -- "$1" "$verb"
		size=
		[ "$verb" != resize ] || size=+1
		expect_fail "cowimg $verb -f dscow dir/a.dscow $size" "$1"
	done
	sha256sum -c --status sums || fail 'a refused open changed the overlay'
}
touch -d @1234567890 dir/base.raw
changed 'base dir/base.raw was modified.*--force'
cowimg read -f dscow --force dir/a.dscow 2>warning | cmp - dir/base.raw
grep -q 'warning.*modified\|modified.*--force' warning || fail "no warning: $(cat warning)"
touch -r other/base.raw dir/base.raw
read_ok dir/a.dscow
printf '\377\377' | dd of=dir/base.raw bs=1 conv=notrunc status=none
touch -r other/base.raw dir/base.raw
changed 'changed contents'
cp -p other/base.raw dir/base.raw
read_ok dir/a.dscow
truncate -s 199999 dir/base.raw
changed 'shorter'
cowimg read -f dscow --force dir/a.dscow 2>warning >out
[ "$(stat -c %s out)" = 200000 ] && cmp -n 199999 out dir/base.raw && [ "$(tail -c 1 out | od -An -tu1)" -eq 0 ] ||
	fail 'behind a shorter base there are zeroes'
truncate -s 200001 dir/base.raw
changed 'longer'
cowimg read -f dscow --force dir/a.dscow 2>warning >out
[ "$(stat -c %s out)" = 200000 ] && cmp -n 199999 out other/base.raw || fail 'a longer base, by force'
rm dir/base.raw
changed "base 'base.raw' does not exist"
mkdir dir/base.raw
changed 'directory|not a regular'
rmdir dir/base.raw
mkfifo dir/base.raw
changed 'not a regular file'
rm dir/base.raw
cp -p other/base.raw dir/base.raw

subtest loops
mkdir loop
cp -p other/base.raw loop/
cowimg create -q -f dscow -b loop/base.raw -F raw loop/a
cowimg create -q -f dscow -b loop/a -F dscow loop/b
cowimg create -q -f dscow -b loop/b -F dscow loop/c
read_ok loop/c
mv loop/a loop/kept
ln -s b loop/a
expect_fail 'cowimg read -f dscow loop/b' 'in the chain already'
rm loop/a
ln loop/c loop/a
expect_fail 'cowimg read -f dscow loop/c' 'in the chain already'
expect_fail 'cowimg write -l 1 --pattern 1 -f dscow loop/c' 'in the chain already|in use'
expect_fail 'cowimg read -f dscow --backing loop/kept loop/kept' 'in the chain already'

subtest depth
mkdir deep
cp -p other/base.raw deep/0
i=1
while [ $i -le 63 ]; do
	[ $i = 1 ] && f=raw || f=dscow
	cowimg create -q -f dscow -b deep/$((i - 1)) -F $f deep/$i
	[ $((i % 16)) != 1 ] || cowimg write -f dscow -s $((i * 1000)) -l 100 --pattern $i deep/$i
	i=$((i + 1))
done
cowimg read -f dscow deep/63 >out	# 64 layers
for i in 1 17 33 49; do
	cowimg read -f dscow -s $((i * 1000)) -l 100 --pattern $i deep/63
done
[ "$(cowimg info -f dscow --backing-chain --output=json deep/63 | grep -o '"format":' | wc -l)" = 64 ]
# One more is too many: it is not made, and one made by pointing an image elsewhere does not open.
expect_fail 'cowimg create -q -f dscow -b deep/63 -F dscow deep/64' 'image 65 of a chain'
[ ! -e deep/64 ]
cowimg create -q -f dscow -b deep/1 -F dscow deep/64
expect_fail 'cowimg read -f dscow --force --backing deep/63 deep/64' 'more than 64'

subtest names that lead outside are not followed
traced=yes
command -v strace >/dev/null || { traced=; part_skipped 'no strace: what is opened is not seen'; }
[ -z "${SAN:-}" ] || { traced=; part_skipped 'strace does not go with sanitizers'; }
mkdir -p jail/in
cp -p other/base.raw jail/secret.raw
cp -p other/base.raw jail/in/base.raw
secret=$(realpath jail/secret.raw)
# forge NAME: an overlay jail/in/over.dscow that says its base is NAME
forge() {
	rm -f jail/in/over.dscow
	cowimg create -q -f dscow -b jail/in/base.raw -F raw jail/in/over.dscow
	"$BUILD/tests/format/dscow-forge" jail/in/over.dscow "base=$1" "base_format=${2-raw}"
}
outside() {	# NAME: refused, and the secret was not opened
	forge "$1"
	expect_fail 'cowimg read -f dscow jail/in/over.dscow' "${2:-outside}"
	if [ -n "$traced" ]; then
		strace -f -y -e trace=open,openat,openat2,openat2,creat,execve,readlink -o trace \
			cowimg read -f dscow jail/in/over.dscow >out 2>&1 && fail "opened $1"
		grep -q 'over.dscow' trace || fail 'the trace shows nothing'
		! grep -E '= [0-9]+<[^>]*(secret\.raw|/etc/passwd)' trace ||
			fail "opened something outside for base name '$1'"
	fi
}
ln -s ../secret.raw jail/in/link
ln -s "$secret" jail/in/abslink
ln -s .. jail/in/up
ln -s /proc/self/cwd jail/in/magic
forge base.raw
read_ok jail/in/over.dscow
forge ./base.raw
read_ok jail/in/over.dscow
outside "$secret"
outside /etc/passwd
outside ../secret.raw
outside ../in/../secret.raw
outside up/secret.raw
outside link
outside abslink
outside magic/jail/secret.raw 'outside|Too many levels'
outside "$(realpath jail/in)/../secret.raw"
outside "$(realpath jail/in)/link"
outside .. 'outside|directory'
outside . 'directory'
outside / 'outside|directory'
outside "json:{\"driver\":\"file\",\"filename\":\"$secret\"}" 'does not exist'
outside "file:$secret" 'does not exist'
outside "nbd://localhost/x" 'does not exist'
outside '|cat /etc/passwd' 'does not exist'
# In its own folder by its full name: inside after all.
forge "$(realpath jail/in/base.raw)"
read_ok jail/in/over.dscow
# A folder that is allowed does not allow what lies above it.
forge ../secret.raw
expect_fail 'cowimg read -f dscow --backing-dir jail/in jail/in/over.dscow' 'outside'
forge base.raw ../raw
expect_fail 'cowimg read -f dscow jail/in/over.dscow' 'not a path|unknown format'
forge base.raw ''
expect_fail 'cowimg read -f dscow jail/in/over.dscow' 'format'
# Control characters of an image's text do not reach the terminal.
forge "$(printf 'a\033[31mb\nc')"
expect_fail 'cowimg read -f dscow jail/in/over.dscow' 'does not exist'
! printf '%s' "$said" | grep -q "$(printf '\033')" || fail 'an escape code of the image was printed'
for cmd in 'cowimg info -f dscow' 'cowimg info -f dscow --output=json' 'dscow_tool -s'; do
	$cmd jail/in/over.dscow >out
	! grep -q "$(printf '\033')" out || fail "$cmd prints an escape code of the image"
done
