// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Loading a module of the kernel; see kmod.h. It knows no module's name.
 */
#include "kmod.h"

#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "cow/util.h"

#define SETTING "/proc/sys/kernel/modprobe"

extern char **environ;

void kmod_load(const char *module)
{
	COW_CLEANUP_FREE char *name = cow_strdup(module);
	char path[256] = "", quiet[] = "-q", dashes[] = "--";
	char *argv[] = { path, quiet, dashes, name, NULL };
	FILE *f = fopen(SETTING, "re");
	pid_t pid;

	if (!f)
		return;
	if (!fgets(path, sizeof(path), f))
		path[0] = '\0';
	fclose(f);
	path[strcspn(path, "\n")] = '\0';
	if (!path[0] || !name || posix_spawn(&pid, path, NULL, NULL, argv, environ))
		return;
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}
