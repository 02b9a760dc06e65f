# SPDX-License-Identifier: GPL-2.0-or-later
# One line a format: $(call format,NAME,SOURCES,LIBS) makes cow-NAME.so.

DSCOW := $(wildcard formats/dscow/*.c)
QCOWS := formats/cipher.c formats/deflate.c formats/inflate.c
QCOW  := $(if $(filter yes,$(HAVE_ZLIB)),$(wildcard formats/qcow/*.c) $(QCOWS))
QCOW2 := $(if $(filter yes,$(HAVE_ZLIB)),$(wildcard formats/qcow2/*.c) formats/luks.c $(QCOWS))

$(eval $(call format,raw,$(wildcard formats/raw.c)))
$(eval $(call format,zero,$(wildcard formats/zero.c)))
$(eval $(call format,dscow,$(DSCOW),$$(XXHASH_LIBS)))
$(eval $(call format,qcow,$(QCOW),$$(ZLIB_LIBS) $$(GCRYPT_LIBS)))
$(eval $(call format,qcow2,$(QCOW2),$$(ZLIB_LIBS) $$(GCRYPT_LIBS)))
