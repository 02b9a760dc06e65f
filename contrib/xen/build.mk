# SPDX-License-Identifier: GPL-2.0-or-later
# What Xen's toolstack and its administrator call. xl-dmu needs no library of
# Xen; block-dmu does, and lies in a folder of Xen's, where libcow would not be
# found: it is linked with the parts of libcow that it uses.

$(eval $(call program,xl-dmu,$(addprefix contrib/xen/,xl-dmu.c config.c spec.c)))

HOTPLUG   := $(addprefix contrib/xen/,hotplug.c run.c spec.c)
BLOCK_DMU := contrib/xen/block-dmu.c $(HOTPLUG) $(addprefix daemon/lib/,err.c log.c mem.c opt.c util.c)
SRCS += $(HOTPLUG)

ifeq ($(HAVE_XEN),yes)
ALL  += $(BUILD)/bin/block-dmu
SRCS += contrib/xen/block-dmu.c
$(BUILD)/bin/block-dmu: $(call obj,$(BLOCK_DMU))
	@mkdir -p $(@D)
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@.new $(call obj,$(BLOCK_DMU)) $(XEN_LIBS) && mv $@.new $@
endif

# Where it finds the programs. Who installs elsewhere than the last time builds it anew.
SYSTEMD_RUN ?= /usr/bin/systemd-run
DMU_PATHS = -DBINDIR='"$(bindir)"' -DSBINDIR='"$(sbindir)"' -DSYSTEMD_RUN='"$(SYSTEMD_RUN)"'
$(BUILD)/contrib/xen/block-dmu.o: OBJ_CPPFLAGS = $(DMU_PATHS)
$(BUILD)/contrib/xen/block-dmu.o: $(BUILD)/contrib/xen/paths
$(BUILD)/contrib/xen/paths: FORCE
	@mkdir -p $(@D)
	@echo "$(DMU_PATHS)" | cmp -s - $@ || echo "$(DMU_PATHS)" >$@

$(eval $(call archive,libhotplug-test,$(HOTPLUG) contrib/xen/config.c))

SBINS += $(BUILD)/bin/xl-dmu
XEN_SCRIPTS := $(BUILD)/bin/block-dmu
