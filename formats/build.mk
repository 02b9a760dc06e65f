# SPDX-License-Identifier: GPL-2.0-or-later
# One line a format: $(call format,NAME,SOURCES,LIBS) makes cow-NAME.so.

DSCOW := $(wildcard formats/dscow/*.c)
QCOW  := $(if $(filter yes,$(HAVE_ZLIB)),$(wildcard formats/qcow/*.c) formats/inflate.c)
QCOW2 := $(if $(filter yes,$(HAVE_ZLIB)),$(wildcard formats/qcow2/*.c) formats/inflate.c)

$(eval $(call format,raw,$(wildcard formats/raw.c)))
$(eval $(call format,zero,$(wildcard formats/zero.c)))
$(eval $(call format,dscow,$(DSCOW),$$(XXHASH_LIBS)))
$(eval $(call format,qcow,$(QCOW),$$(ZLIB_LIBS)))
$(eval $(call format,qcow2,$(QCOW2),$$(ZLIB_LIBS)))
