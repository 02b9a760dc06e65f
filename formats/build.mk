# SPDX-License-Identifier: GPL-2.0-or-later
# One line a format: $(call format,NAME,SOURCES,LIBS) makes cow-NAME.so.

DSCOW := $(wildcard formats/dscow/*.c)

$(eval $(call format,raw,$(wildcard formats/raw.c)))
$(eval $(call format,zero,$(wildcard formats/zero.c)))
$(eval $(call format,dscow,$(DSCOW),$$(XXHASH_LIBS)))
