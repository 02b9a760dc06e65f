// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * main() of the C tests. Apart from test.c, so that a test with an own main()
 * does not get this one.
 */
#include <stdlib.h>

#include "run.h"

int main(int argc, char **argv)
{
	/* The runner sets it; this is for a test started by hand. */
	setenv("COW_PLUGIN_DIR", TEST_BUILD "/lib/cow", 0);
	return test_run(argc, argv);
}
