# SPDX-License-Identifier: GPL-2.0-or-later
#
# For tests/lab/lab and tests/lab/guest, what their initial file systems have in common.
# The caller has die() and what busybox and modprobe are on its PATH.
#
#	initramfs_busybox DIR			into DIR/bin
#	initramfs_modules TREE DIR MODULE...	kernel modules of a tree of tests/lab/kernels
#						into DIR/lib, with those they depend on; named
#						so that their order is the one to insert them in
#	initramfs_pack DIR FILE			makes the archive, at once

initramfs_busybox() {
	! ldd "$(command -v busybox)" >/dev/null 2>&1 ||
		die "busybox must be the static one: install busybox-static"
	mkdir -p "$1/bin"
	cp "$(command -v busybox)" "$1/bin/busybox"
}

initramfs_modules() {
	im_tree=$1 im_dir=$2 im_release=$(cat "$1/release")
	shift 2
	mkdir -p "$im_dir/lib"
	im_n=100
	for im_m; do
		im_deps=$(modprobe -d "$im_tree" -S "$im_release" --show-depends "$im_m") ||
			die "kernel $im_release has no module $im_m"
		while read -r im_what im_file im_args; do
			[ "$im_what" = insmod ] || continue
			im_name=$(basename "${im_file%.ko*}").ko
			[ -z "$(find "$im_dir/lib" -name "*-$im_name")" ] || continue
			im_n=$((im_n + 1))
			case $im_file in
			*.xz) xz -dc "$im_file" ;;
			*.zst) zstd -dqc "$im_file" ;;
			*) cat "$im_file" ;;
			esac >"$im_dir/lib/$im_n-$im_name"
		done <<END
$im_deps
END
	done
}

initramfs_pack() {
	(cd "$1" && find . | cpio -o -H newc --quiet) >"$2.$$" || die "cannot write $2"
	mv "$2.$$" "$2"
}
