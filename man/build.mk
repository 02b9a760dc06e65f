# SPDX-License-Identifier: GPL-2.0-or-later
# Every man/NAME.SECTION is installed.

MANS := $(wildcard man/*.[1-8])
