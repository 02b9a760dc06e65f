# SPDX-License-Identifier: GPL-2.0-or-later
# One line a format: $(call format,NAME,SOURCES,LIBS) makes cow-NAME.so.

DSCOW := $(wildcard formats/dscow/*.c)
DEFLATE := formats/deflate.c formats/inflate.c
QCOW  := $(if $(filter yes,$(HAVE_ZLIB)),$(wildcard formats/qcow/*.c) $(DEFLATE))
QCOW2 := $(if $(filter yes,$(HAVE_ZLIB)),$(wildcard formats/qcow2/*.c) $(DEFLATE))

$(eval $(call format,raw,$(wildcard formats/raw.c)))
$(eval $(call format,zero,$(wildcard formats/zero.c)))
$(eval $(call format,dscow,$(DSCOW),$$(XXHASH_LIBS)))
$(eval $(call format,qcow,$(QCOW),$$(ZLIB_LIBS)))
$(eval $(call format,qcow2,$(QCOW2),$$(ZLIB_LIBS)))
