#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Makes sure that what cowd is built and tested with is installed. On Debian and
# as root it installs what is missing with apt-get; anywhere else it names what
# is missing and fails. With nothing missing it does nothing and says nothing.
#
# usage: setup.sh GROUP...              groups: build test bench debug
#        setup.sh --have-fuzzer [CLANG]   exit 0 if clang can link a fuzz target
set -eu

# Group, Debian package, and how to see that it is there without dpkg.
packages='
build	gcc	cmd gcc
build	libc6-dev	header stdio.h
build	make	cmd make
build	pkg-config	cmd pkg-config
build	libfuse3-dev	module fuse3
build	liburing-dev	module liburing
build	libxxhash-dev	module libxxhash
build	zlib1g-dev	module zlib
build	libzstd-dev	module libzstd
build	libgcrypt20-dev	module libgcrypt
build	libblkid-dev	module blkid
build	libdevmapper-dev	module devmapper
build	libxen-dev	module xengnttab
test	fuse3	cmd fusermount3
test	util-linux	cmd setsid
test	mount	cmd losetup
test	e2fsprogs	cmd mkfs.ext4
test	python3	cmd python3
test	jq	cmd jq
test	mandoc	cmd mandoc
test	strace	cmd strace
test	fio	cmd fio
test	stress-ng	cmd stress-ng
test	bonnie++	cmd bonnie++
test	dbench	cmd dbench
test	fdisk	cmd sfdisk
test	dmsetup	cmd dmsetup
test	udev	cmd udevadm
test	valgrind	cmd valgrind
test	clang	cmd clang
test	libclang-rt-dev	fuzzer clang
test	qemu-utils	cmd qemu-img
test	qemu-system-common	cmd qemu-storage-daemon
test	qemu-system-x86	cmd qemu-system-x86_64
test	busybox-static	cmd busybox
test	kmod	cmd modprobe
test	cpio	cmd cpio
test	xz-utils	cmd xz
test	zstd	cmd zstd
test	thin-provisioning-tools	cmd thin_check
debug	bc	cmd bc
test	flex	cmd flex
debug	flex	cmd flex
debug	bison	cmd bison
debug	libelf-dev	header libelf.h
debug	libssl-dev	header openssl/ssl.h
debug	xz-utils	cmd xz
bench	python3	cmd python3
bench	qemu-utils	cmd qemu-img
bench	qemu-system-common	cmd qemu-storage-daemon
bench	qemu-system-xen	cmd /usr/libexec/xen-qemu-system-i386
'

have_fuzzer() {
	command -v "$1" >/dev/null 2>&1 || return 1
	dir=$(mktemp -d)
	echo 'int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n);
	      int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return d && n > 9; }' >"$dir/t.c"
	r=0
	"$1" -fsanitize=fuzzer,address,undefined -o "$dir/t" "$dir/t.c" 2>/dev/null || r=1
	rm -rf "$dir"
	return $r
}

if [ "${1:-}" = --have-fuzzer ]; then
	have_fuzzer "${2:-clang}"
	exit
fi

PATH=$PATH:/usr/sbin:/sbin
debian=no
! command -v dpkg-query >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1 || debian=yes

installed() {	# PACKAGE KIND WHAT
	if [ $debian = yes ] &&
	   [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; then
		return 0
	fi
	case $2 in
	cmd) command -v "$3" >/dev/null 2>&1 ;;
	module) command -v pkg-config >/dev/null 2>&1 && pkg-config --exists "$3" ;;
	header) echo "#include <$3>" | gcc -E -o /dev/null - 2>/dev/null ;;
	fuzzer) have_fuzzer "$3" ;;
	esac
}

missing=
for group; do
	case $group in
	build | test | bench | debug) ;;
	*)
		echo "setup: there is no group $group" >&2
		exit 2
		;;
	esac
	list=$(echo "$packages" | while read -r g package kind what; do
		[ "$g" = "$group" ] || continue
		installed "$package" "$kind" "$what" || echo "$package"
	done)
	for p in $list; do
		case " $missing " in
		*" $p "*) ;;
		*) missing="$missing $p" ;;
		esac
	done
done
[ -n "$missing" ] || exit 0

if [ $debian = no ]; then
	echo "setup: please install what Debian calls:$missing" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "setup: missing packages, as root: apt-get install$missing" >&2
	exit 1
fi

echo "  SETUP  installing:$missing"
DEBIAN_FRONTEND=noninteractive
export DEBIAN_FRONTEND
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
	# shellcheck disable=SC2086
	apt-get install -y -q --no-install-recommends $missing >"$log" 2>&1 </dev/null
}
# Package lists may be absent or old: then they are fetched, once.
if ! install; then
	apt-get update -q >>"$log" 2>&1 || true
	if ! install; then
		tail -n 20 "$log" >&2
		echo "setup: apt-get could not install:$missing" >&2
		exit 1
	fi
fi
