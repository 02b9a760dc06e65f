# SPDX-License-Identifier: GPL-2.0-or-later
# TIMEOUT: 600
#
# An install into DESTDIR holds what it should and nothing else stays behind an
# uninstall; a format plugin builds against the installed headers alone, in a
# folder that knows nothing of this tree, and is loaded by the installed cowimg.
. tests/lib/test.sh
require_cmd gcc pkg-config make

D=$TMP/dest
mk() {
	eval "${TEST_MAKE:-make}" 'BUILD="$BUILD" DESTDIR="$D" prefix=/opt/cow "$@"' >"$TMP/make.log" 2>&1 ||
		{ cat "$TMP/make.log"; fail "make $* failed"; }
}

subtest "make install and install-dev"
mk install
mk install-dev
for f in bin/cowimg bin/dscow_tool bin/qcow-create bin/img2qcow bin/qcow2raw lib/libcow.so.0 lib/libcow.so lib/cow/cow-raw.so \
	 lib/cow/cow-zero.so lib/cow/cow-dscow.so include/cow/format.h lib/pkgconfig/cow.pc \
	 sbin/xl-dmu lib/systemd/system/cowd@.service lib/udev/rules.d/12-cowd.rules share/bash-completion/completions/cowctl; do
	[ -e "$D/opt/cow/$f" ] || fail "$f was not installed"
done
if [ -x "$BUILD/bin/block-dmu" ]; then
	[ -x "$D/etc/xen/scripts/block-dmu" ] || fail "block-dmu was not installed"
	strings "$D/etc/xen/scripts/block-dmu" | grep -qx /opt/cow/sbin || fail "block-dmu looks for cowd elsewhere"
	! ldd "$D/etc/xen/scripts/block-dmu" | grep libcow || fail "block-dmu needs libcow"
	[ -e "$D/opt/cow/lib/systemd/system/cowd-xenbus.service" ] || fail "cowd-xenbus.service was not installed"
fi
for page in man/*.[1-8]; do
	[ ! -e "$page" ] || [ -e "$D/opt/cow/share/man/man${page##*.}/${page#man/}" ] ||
		fail "$page was not installed"
done
for h in daemon/lib/*.h; do
	[ ! -e "$D/opt/cow/include/cow/${h##*/}" ] || [ -e "daemon/include/cow/${h##*/}" ] ||
		fail "the internal header $h was installed"
done
! grep -rl "$PWD" "$D/opt/cow/lib/pkgconfig" "$D/opt/cow/lib/systemd" >&2 ||
	fail "an installed file names the build folder"

subtest "the installed programs run from where they are"
"$D/opt/cow/bin/cowimg" --version | grep -q '^cowimg [0-9]' || fail "cowimg --version"
ldd "$D/opt/cow/bin/cowimg" | grep -q "libcow.so.0 => $D/opt/cow/bin/../lib/libcow.so.0" ||
	fail "the installed cowimg does not use the installed libcow"

subtest "libcow exports cow_ only, a plugin or module one symbol"
nm -D --defined-only "$D/opt/cow/lib/libcow.so.0" | awk '$2 != "A" { print $3 }' >"$TMP/syms"
[ -s "$TMP/syms" ] || fail "libcow exports nothing"
! grep -v '^cow_' "$TMP/syms" || fail "libcow exports these"
for p in "$D"/opt/cow/lib/cow/*.so; do
	case ${p##*/} in
	cow-*) only=cow_format_register ;;
	*) only=cow_module_register ;;
	esac
	[ "$(nm -D --defined-only "$p" | awk '{ print $3 }')" = $only ] ||
		fail "$p exports more than $only"
done
# What most runs do not need is not loaded with the program.
for p in cowd cowfuse; do
	! ldd "$D/opt/cow/"*bin/$p 2>/dev/null | grep -E 'libdevmapper|libblkid|libudev' ||
		fail "$p is linked with these"
done

subtest "without libdevmapper everything else is built, and it is said what is left out"
mkdir "$TMP/without"
WITH_DEVMAPPER=no sh contrib/build/probe.sh "$TMP/without/config.mk" >"$TMP/said"
grep -q 'LEFT OUT.* devmapper' "$TMP/said" && grep -q 'without devmapper: no /dev/mapper' "$TMP/said" ||
	fail "$(cat "$TMP/said")"
$TEST_MAKE BUILD="$TMP/without" WITH_DEVMAPPER=no -n all >"$TMP/plan"
grep -q "$TMP/without/bin/cowimg" "$TMP/plan" || fail "make -n shows nothing"
! grep -E 'cowd-dm|ldevmapper' "$TMP/plan" || fail "cowd-dm.so is built all the same"
$TEST_MAKE BUILD="$TMP/without" WITH_DEVMAPPER=no "$TMP/without/daemon/cowd/dmnode.o" >"$TMP/log" 2>&1 ||
	fail "$(cat "$TMP/log")"
grep -q 'built without libdevmapper' "$TMP/without/daemon/cowd/dmnode.o" || fail "no sentence"

subtest "a plugin built against the installed headers is loaded"
mkdir "$TMP/plugin"
cat >"$TMP/plugin/ones.c" <<'END'
#include <errno.h>
#include <cow/format.h>

static int ones_probe(const uint8_t *head, size_t len, uint64_t file_size)
{
	(void)head;
	(void)len;
	(void)file_size;
	return 0;
}

static int ones_open(struct cow_image *img, const struct cow_args *args, struct cow_err *err)
{
	(void)args;
	(void)err;
	img->size = cow_img_file_size(img, 0);
	img->granule = 1;
	img->below_limit = img->size;
	return 0;
}

static void ones_close(struct cow_image *img)
{
	(void)img;
}

static int ones_map(struct cow_image *img, const struct cow_query *q, struct cow_map *ret)
{
	if (q->intent != COW_READ && q->intent != COW_REPORT)
		return -EROFS;
	ret->dst.virt = q->virt;
	ret->dst.len = q->len;
	ret->dst.phys = q->virt;
	ret->dst.file = 0;
	ret->dst.kind = COW_DATA;
	ret->gen = img->gen;
	return 0;
}

static struct cow_format ones = {
	.name = "ones", .desc = "a sample", .version = "1",
	.probe = ones_probe, .open = ones_open, .close = ones_close, .map = ones_map,
};
COW_FORMAT_REGISTER(ones)
END
(
	cd "$TMP/plugin"
	export PKG_CONFIG_PATH=$D/opt/cow/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$D
	gcc -std=gnu11 -Wall -Wextra -Werror -fPIC -fvisibility=hidden -shared -Wl,-z,defs \
		$(pkg-config --cflags cow) -o cow-ones.so ones.c $(pkg-config --libs cow)
) || fail "the sample plugin does not build"
[ "$(PKG_CONFIG_PATH=$D/opt/cow/lib/pkgconfig pkg-config --variable=plugindir cow)" = \
	/opt/cow/lib/cow ] || fail "cow.pc has another plugindir"
truncate -s 1M "$TMP/img"
expect_fail "$D/opt/cow/bin/cowimg info -f ones $TMP/img" 'ones'
cp "$TMP/plugin/cow-ones.so" "$D/opt/cow/lib/cow/"
"$D/opt/cow/bin/cowimg" info -f ones "$TMP/img" | grep -q 1048576 ||
	fail "cowimg does not open an image by the sample plugin"
mv "$D/opt/cow/lib/cow/cow-ones.so" "$D/opt/cow/lib/cow/cow-twos.so"
expect_fail "$D/opt/cow/bin/cowimg info -f twos $TMP/img" 'twos'
rm "$D/opt/cow/lib/cow/cow-twos.so"

subtest "make uninstall leaves no file"
mk uninstall
left=$(find "$D" ! -type d)
[ -z "$left" ] || fail "left behind: $left"
