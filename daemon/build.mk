# SPDX-License-Identifier: GPL-2.0-or-later
# libcow, the daemon and the tools. Sources are found by wildcard: adding a file
# needs no change here.

LIBCOW := $(filter-out $(if $(filter yes,$(HAVE_URING)),,daemon/lib/io-uring.c),$(wildcard daemon/lib/*.c))
LIBCOW_LIBS = $(XXHASH_LIBS) $(URING_LIBS) -ldl
SRCS += $(LIBCOW)
ALL  += $(BUILD)/lib/libcow.so.0 $(BUILD)/lib/libcow.so

$(BUILD)/daemon/lib/opt.o: OBJ_CPPFLAGS = -DCOW_VERSION='"$(VERSION)"'
$(BUILD)/daemon/lib/opt.o: GNUmakefile

# The one library that cannot be left out: identities of bases and every metadata sector use it.
ifneq ($(HAVE_XXHASH),yes)
$(call obj,$(LIBCOW)): | need-xxhash
need-xxhash:
	@echo 'libcow needs libxxhash >= 0.8.0 (Debian: libxxhash-dev), which was not found' >&2; exit 1
.PHONY: need-xxhash
endif

$(BUILD)/lib/libcow.so.0: $(call obj,$(LIBCOW))
	@mkdir -p $(@D)
	$(call say,SHLIB,$@)
	$(Q)$(CC) $(SO_LDFLAGS) -Wl,-soname,libcow.so.0 -o $@.new $(call obj,$(LIBCOW)) $(LIBCOW_LIBS) && mv $@.new $@
$(BUILD)/lib/libcow.so: $(BUILD)/lib/libcow.so.0
	$(Q)ln -sf libcow.so.0 $@

# One verb a file; dscow_tool and blktap's names are thin faces on the same verbs.
COWIMG_VERBS := $(wildcard daemon/tools/cowimg-*.c)
COWIMG       := $(if $(wildcard daemon/tools/cowimg.c),daemon/tools/cowimg.c $(COWIMG_VERBS))
COWIMG_FACES := dscow_tool qcow-create img2qcow qcow2raw
# What a client of the daemon shares with it: the protocol's words, the run directory.
COWCTL       := $(if $(wildcard daemon/tools/cowctl.c),$(wildcard daemon/tools/cowctl*.c) \
		$(addprefix daemon/cowd/,proto.c rundir.c kmod.c xen-lib.c xen-store.c xen-vdev.c))
$(eval $(call program,cowimg,$(COWIMG),$$(XXHASH_LIBS)))
$(foreach f,$(COWIMG_FACES),$(eval $(call program,$f,daemon/tools/$f.c $(COWIMG_VERBS),$$(XXHASH_LIBS))))
$(eval $(call program,cowctl,$(COWCTL)))
$(eval $(call program,cowd-xenbus,$(if $(filter yes,$(HAVE_XEN)),daemon/tools/cowd-xenbus.c \
	$(addprefix daemon/cowd/,kmod.c notify.c xen-lib.c xen-store.c))))

# The daemon carries the FUSE front end inside, and shows every device by FUSE if asked.
COWD := $(filter-out daemon/cowd/fe-ublk$(if $(filter yes,$(HAVE_URING)),-none.c,%),$(wildcard daemon/cowd/*.c)) \
	$(if $(filter yes,$(HAVE_URING)),,daemon/cowd/fe-ublk-none.c)
FUSE_SHARED := $(filter-out fuse/main.c,$(wildcard fuse/*.c))
ifeq ($(HAVE_FUSE),yes)
$(eval $(call program,cowd,$(if $(wildcard daemon/cowd/main.c),$(COWD) $(FUSE_SHARED)),$$(FUSE_LIBS) $$(URING_LIBS)))
endif

# What needs a library that most runs of the daemon do not.
$(eval $(call module,cowd-dm,$(if $(filter yesyes,$(HAVE_FUSE)$(HAVE_DEVMAPPER)),daemon/cowd/module/dm.c),$$(DEVMAPPER_LIBS)))
$(eval $(call module,cowd-xen,$(if $(filter yesyes,$(HAVE_FUSE)$(HAVE_XEN)),daemon/cowd/module/xen.c),$$(XEN_LIBS)))

BINS  += $(addprefix $(BUILD)/bin/,cowimg $(COWIMG_FACES) cowfuse)
SBINS += $(addprefix $(BUILD)/bin/,cowd cowctl cowd-xenbus)
COMPLETED := cowctl cowimg $(COWIMG_FACES) cowfuse
