# SPDX-License-Identifier: GPL-2.0-or-later
# cowfuse: main.c and everything else in this folder. The rest, without main.c,
# is also linked into cowd (daemon/build.mk).

ifeq ($(HAVE_FUSE),yes)
$(eval $(call program,cowfuse,$(if $(wildcard fuse/main.c),$(wildcard fuse/*.c)),$$(FUSE_LIBS)))
endif
$(eval $(call module,cowfuse-blkid,$(if $(filter yesyes,$(HAVE_FUSE)$(HAVE_BLKID)),fuse/module/blkid.c),$$(BLKID_LIBS)))
