# SPDX-License-Identifier: GPL-2.0-or-later
# Tests are found by wildcard:
#   tests/{unit,format,fault,frontend,cli}/*.c   one program each
#   tests/*/*.sh                                 one test each (not lib, bench)
#   tests/fuzz/*.c                               one fuzz target each
#   tests/bench/*.c                              helpers of tests/bench/bench
#   tests/lab/*.c                                programs for tests/lab/*.sh, which run
#                                                under other kernels (tests/lab/lab), and
#                                                for tests/xenlab/*.sh: under a real Xen
#   tests/xenlab/*.c                             programs that run in its guests
# C tests link libcow statically, so that they see its hidden symbols too; what
# the formats, the front end and the daemon define can be pulled in as well.

TEST_SRCS := $(wildcard $(foreach d,unit format fault frontend cli,tests/$d/*.c))
TEST_ALL  := $(patsubst %.c,$(BUILD)/%,$(TEST_SRCS))
# Those of the front end need libfuse3; without it the runner reports them as skipped.
TEST_BINS := $(if $(filter yes,$(HAVE_FUSE)),$(TEST_ALL),$(filter-out $(BUILD)/tests/frontend/%,$(TEST_ALL)))
TEST_SH   := $(filter-out tests/lib/% tests/bench/%,$(wildcard tests/*/*.sh))
TEST_LIB  := $(wildcard tests/lib/*.c)
FUZZ_SRCS := $(wildcard tests/fuzz/*.c)
FUZZ_BINS := $(patsubst %.c,$(BUILD)/%,$(FUZZ_SRCS))
BENCH_SRCS := $(wildcard tests/bench/*.c)
BENCH_BINS := $(if $(filter yes,$(HAVE_FUSE)),$(patsubst %.c,$(BUILD)/%,$(BENCH_SRCS)))
LAB_SRCS := $(wildcard tests/lab/*.c)
LAB_BINS := $(patsubst %.c,$(BUILD)/%,$(LAB_SRCS))
# They run in guests of Xen, and are linked with its libraries.
XENLAB_SRCS := $(wildcard tests/xenlab/*.c)
XENLAB_BINS := $(if $(filter yes,$(HAVE_XEN)),$(patsubst %.c,$(BUILD)/%,$(XENLAB_SRCS)))
SRCS += $(TEST_SRCS) $(FUZZ_SRCS) $(BENCH_SRCS) $(LAB_SRCS) $(XENLAB_SRCS)

FUZZ_RUNS  ?= 1000000
CHECK_FUZZ_RUNS ?= 20000
FUZZ_RSS_MB ?= 2048
# A test that calls make again must not see other answers than this make.
TEST_MAKE = make CC='$(CC)' $(foreach w,FUSE URING BLKID XXHASH DEVMAPPER XEN ZLIB,WITH_$w=$(WITH_$w))
RUN = BUILD='$(abspath $(BUILD))' SAN='$(SAN)' TEST_MAKE="$(TEST_MAKE)" sh tests/run

$(BUILD)/tests/%.o: OBJ_CPPFLAGS = -iquote daemon/lib -iquote formats -iquote tests -iquote tests/lib \
	-DTEST_BUILD='"$(abspath $(BUILD))"'

$(eval $(call archive,libcow-test,$(LIBCOW)))
$(eval $(call archive,libdscow-test,$(DSCOW)))
$(eval $(call archive,libfuse-test,$(if $(filter yes,$(HAVE_FUSE)),$(FUSE_SHARED))))
$(eval $(call archive,libcowd-test,$(filter-out daemon/cowd/main.c,$(COWD))))
$(eval $(call archive,libtest,$(TEST_LIB)))

# Everything of libcow goes in and is exported: plugins loaded by the test find it there.
TEST_ARCHIVES := $(addprefix $(BUILD)/lib/,libtest.a libhotplug-test.a libcowd-test.a libfuse-test.a libdscow-test.a libcow-test.a)
# The old kind of rpath, which holds for what a loaded plugin needs as well: libcow.so.0.
TEST_LINK = $(ALL_LDFLAGS) -rdynamic -L$(BUILD)/lib -ltest -lhotplug-test -lcowd-test -lfuse-test -ldscow-test \
	-Wl,--whole-archive -lcow-test -Wl,--no-whole-archive -Wl,--disable-new-dtags,-rpath,'$$ORIGIN/../../lib' \
	$(LIBCOW_LIBS) $(FUSE_LIBS)

$(TEST_BINS): $(BUILD)/%: $(BUILD)/%.o $(TEST_ARCHIVES)
	$(call say,LINK,$@)
	$(Q)$(CC) -o $@ $< $(TEST_LINK)

# What cowd is compared with holds nothing of ours.
$(BENCH_BINS): $(BUILD)/%: $(BUILD)/%.o
	$(call say,LINK,$@)
	$(Q)$(CC) -o $@ $< $(ALL_LDFLAGS) $(FUSE_LIBS) $(URING_LIBS)

$(LAB_BINS): $(BUILD)/%: $(BUILD)/%.o
	$(call say,LINK,$@)
	$(Q)$(CC) -o $@ $< $(ALL_LDFLAGS)

# libFuzzer brings main(); the coverage instrumentation is in CFLAGS (see fuzz-bins).
$(FUZZ_BINS): $(BUILD)/%: $(BUILD)/%.o $(TEST_ARCHIVES)
	$(call say,LINK,$@)
	$(Q)$(CC) -fsanitize=fuzzer -o $@ $< $(TEST_LINK)

$(XENLAB_BINS): $(BUILD)/%: $(BUILD)/%.o
	$(call say,LINK,$@)
	$(Q)$(CC) -o $@ $< $(ALL_LDFLAGS) $(XEN_LIBS)

# Under sanitizers: not what builds the tree a second time by itself, nor under emulation.
TEST_SKIP := $(if $(SAN),tests/cli/install.sh tests/fuzz/% tests/lab/% tests/xenlab/%)
# Of those under Xen, check runs the short one that shows that it all works together.
XEN_SH   := $(wildcard tests/xenlab/*.sh)
RUN_BINS := $(TEST_ALL)
RUN_SH   := $(filter-out $(TEST_SKIP) $(filter-out tests/xenlab/smoke.sh,$(XEN_SH)),$(TEST_SH))
ifneq ($(TESTS),)
RUN_BINS := $(filter $(foreach t,$(TESTS),$(BUILD)/tests/$(patsubst tests/%,%,$(basename $t))),$(TEST_ALL))
RUN_SH   := $(filter $(foreach t,$(TESTS),tests/$(patsubst tests/%,%,$(basename $t)).sh),$(TEST_SH))
XEN_SH   := $(filter $(RUN_SH),$(XEN_SH))
endif

test-bins: all $(TEST_BINS)

check:
	$(Q)sh contrib/build/setup.sh build test
	$(Q)$(MAKE) check-now
check-root:
	$(Q)test "$$(id -u)" = 0 || { echo 'check-root: must be run as root' >&2; exit 1; }
	$(Q)$(MAKE) check
check-now: test-bins check-headers check-includes $(if $(filter tests/fuzz/%,$(RUN_SH)),fuzz-bins-if-clang) \
  $(if $(filter tests/lab/% tests/xenlab/%,$(RUN_SH)),lab-ready)
	$(Q)FAULT=$${FAULT:-quick} FUZZ_RUNS=$(CHECK_FUZZ_RUNS) $(RUN) $(RUN_BINS) $(RUN_SH)
check-c: test-bins
	$(Q)FAULT=$${FAULT:-quick} $(RUN) $(RUN_BINS)
check-asan:
	$(Q)sh contrib/build/setup.sh build test
	$(Q)$(MAKE) BUILD=$(BUILD)-asan SAN=address,undefined check-asan-now
check-asan-now: test-bins
	$(Q)FAULT=$${FAULT:-quick} $(RUN) $(RUN_BINS) $(RUN_SH)
# Those that do more with FAULT=full.
LONG_BINS := $(BUILD)/tests/fault/% $(BUILD)/tests/frontend/kill9 $(BUILD)/tests/cli/qemu-differ
LONG_SH   := tests/fault/% tests/frontend/mkfs.sh tests/scale/% tests/cli/qcow2-histories.sh \
	$(foreach t,kill9 crash faults races stress,tests/lab/$t.sh)
check-fault:
	$(Q)sh contrib/build/setup.sh build test
	$(Q)$(MAKE) check-fault-now
check-fault-now: test-bins lab-ready
	$(Q)FAULT=full TEST_TIMEOUT=$${TEST_TIMEOUT:-7200} $(RUN) $(filter $(LONG_BINS),$(RUN_BINS)) \
	  $(filter $(LONG_SH),$(RUN_SH))
check-valgrind:
	$(Q)sh contrib/build/setup.sh build test
	$(Q)$(MAKE) check-valgrind-now
# Not what needs system calls that valgrind does not have (openat2): real files with a base.
VALGRIND_SKIP := $(BUILD)/tests/fault/adopt
check-valgrind-now: test-bins
	$(Q)FAULT=quick TEST_TIMEOUT=$${TEST_TIMEOUT:-3600} \
	  TEST_WRAP='valgrind -q --error-exitcode=99 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite' \
	  $(RUN) $(filter-out $(VALGRIND_SKIP),$(filter $(foreach d,unit format fault,$(BUILD)/tests/$d/%),$(RUN_BINS)))

# ---- the tests of tests/lab, kernel by kernel ----

LAB_KERNELS ?= 6.1 6.12 7
LAB_XENS ?= xen-4.17 xen-4.20
# Fetching a kernel is not part of a test's time. Without it the tests say why they skip.
lab-ready: $(LAB_BINS) $(if $(filter tests/xenlab/%,$(RUN_SH)),$(XENLAB_BINS))
	$(Q)! command -v qemu-system-x86_64 >/dev/null || tests/lab/kernels "$${LAB_KERNEL:-6.1}" \
	  $(if $(filter tests/xenlab/%,$(RUN_SH)),"$${LAB_XEN:-xen-4.17}") >/dev/null || true
check-kernels:
	$(Q)sh contrib/build/setup.sh build test $(filter debug,$(LAB_KERNELS))
	$(Q)$(MAKE) check-kernels-now
# All kernels have their turn, whatever fails; logs go to test-logs/KERNEL.
check-kernels-now: all $(LAB_BINS)
	$(Q)failed=; for k in $(LAB_KERNELS); do \
	  echo "== kernel $$k"; \
	  tests/lab/kernels $$k >/dev/null && LAB_KERNEL=$$k FAULT=$${FAULT:-quick} \
	    $(RUN) $(filter tests/lab/%,$(RUN_SH)) || failed="$$failed $$k"; \
	  d='$(BUILD)/test-logs'; mkdir -p "$$d/$$k"; mv "$$d"/lab-*.log "$$d/$$k/" 2>/dev/null; \
	done; [ -z "$$failed" ] || { echo "check-kernels: failed on:$$failed" >&2; exit 1; }

# The same for each Xen, with kernel 6.1 as its domain 0.
check-xen:
	$(Q)sh contrib/build/setup.sh build test
	$(Q)$(MAKE) check-xen-now
# At length, a guest attacks a cowd with sanitizers, too.
sanitized-cowd:
	$(Q)$(MAKE) BUILD='$(BUILD)-asan' SAN=address,undefined all
check-xen-now: all $(LAB_BINS) $(XENLAB_BINS) $(if $(filter full,$(FAULT)),sanitized-cowd)
	$(Q)failed=; for x in $(LAB_XENS); do \
	  echo "== $$x"; \
	  tests/lab/kernels 6.1 $$x >/dev/null && LAB_XEN=$$x FAULT=$${FAULT:-quick} \
	    $(RUN) $(XEN_SH) || failed="$$failed $$x"; \
	  d='$(BUILD)/test-logs'; mkdir -p "$$d/$$x"; mv "$$d"/xenlab-*.log "$$d/$$x/" 2>/dev/null; \
	done; [ -z "$$failed" ] || { echo "check-xen: failed on:$$failed" >&2; exit 1; }

# Speed of block devices, in the lab; `make bench` compares files on this machine.
bench-lab:
	$(Q)sh contrib/build/setup.sh build test bench
	$(Q)$(MAKE) bench-lab-now
bench-lab-now: all $(BENCH_BINS)
	$(Q)BUILD='$(abspath $(BUILD))' python3 tests/bench/lab-dm $(BENCH_ARGS)
# Of disks in a guest of Xen; with qemu-system-xen installed against its backend too.
bench-xen:
	$(Q)sh contrib/build/setup.sh build test bench
	$(Q)$(MAKE) bench-xen-now
bench-xen-now: all $(BENCH_BINS) $(LAB_BINS)
	$(Q)BUILD='$(abspath $(BUILD))' python3 tests/bench/lab-xen $(BENCH_ARGS)

# ---- fuzzing: an own object tree, instrumented by clang ----

FUZZ_MAKE = $(MAKE) BUILD='$(BUILD)-fuzz' CC='$(CLANG)' SAN=address,undefined \
	CFLAGS='-O1 -g -fsanitize=fuzzer-no-link' fuzz-bins
fuzz-bins: all $(FUZZ_BINS)
fuzz-bins-if-clang:
	$(Q)if sh contrib/build/setup.sh --have-fuzzer '$(CLANG)'; then $(FUZZ_MAKE); fi
fuzz:
	$(Q)sh contrib/build/setup.sh build test
	$(Q)$(MAKE) fuzz-now
fuzz-now:
	$(Q)$(FUZZ_MAKE)
	$(Q)BUILD='$(abspath $(BUILD))' FUZZ_RUNS=$(FUZZ_RUNS) FUZZ_RSS_MB=$(FUZZ_RSS_MB) sh tests/lib/fuzz.sh \
	  $(patsubst tests/fuzz/%.c,%,$(FUZZ_SRCS))

# ---- the shape of the tree ----

HEADERS := $(filter-out tests/lib/%,$(wildcard daemon/*/*.h daemon/include/cow/*.h formats/*.h formats/*/*.h \
	fuse/*.h contrib/xen/*.h tests/*/*.h)) $(wildcard tests/lib/*.h)
check-headers:
	$(call say,CHECK,headers)
	$(Q)for h in $(if $(filter yes,$(HAVE_FUSE)),$(HEADERS),$(filter-out fuse/% daemon/cowd/%,$(HEADERS))); do \
	  echo "#include \"$$h\"" | $(CC) $(ALL_CPPFLAGS) -iquote daemon/lib -iquote tests/lib $(ALL_CFLAGS) -Werror \
	    -fsyntax-only -x c - || { echo "check-headers: $$h does not compile alone" >&2; exit 1; }; done
check-includes:
	$(call say,CHECK,includes)
	$(Q)sh tests/lib/includes.sh

.PHONY: test-bins check check-root check-now check-c check-asan check-asan-now check-fault \
	check-fault-now check-valgrind check-valgrind-now fuzz fuzz-now fuzz-bins fuzz-bins-if-clang \
	check-headers check-includes lab-ready check-xen check-xen-now sanitized-cowd check-kernels check-kernels-now bench-lab bench-lab-now \
	bench-xen bench-xen-now
