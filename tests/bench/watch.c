/* SPDX-License-Identifier: BSD-3-Clause */
/* watch MILLISECONDS MARKER... -- COMMAND...
 *
 * Start COMMAND and note when its standard output shows its first byte and each MARKER. Output is
 * passed on; what was seen goes to standard error, times in nanoseconds of CLOCK_MONOTONIC:
 *
 *     watch: start 123 PID          the moment before the process is made
 *     watch: byte 456               the first byte of output
 *     watch: marker 789 TEXT        the first time that TEXT was complete
 *     watch: exit 999 STATUS US     microseconds of processor time, with what it has reaped
 *
 * The command is killed when the time is over or standard input ends. In C, because in the test
 * host an interpreter would take its part of the one processor that is measured. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KEPT_BYTES 65536 /* a marker is looked for in the last so many bytes at most */

enum { OUTPUT, INPUT, PROCESS, COUNT };

static char kept[KEPT_BYTES];
static size_t kept_bytes;

static unsigned long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static pid_t start(char **command, int input, int output)
{
	pid_t pid = vfork();

	if (pid == 0) {
		setpgid(0, 0);
		dup2(input, 0);
		dup2(output, 1);
		execvp(command[0], command);
		_exit(127);
	}
	return pid;
}

/* Note what the new bytes complete, and pass them on. */
static void take(const char *data, size_t length, char **markers, int count)
{
	unsigned long long seen = now();
	int i;

	if (kept_bytes + length > KEPT_BYTES)
		kept_bytes = 0;
	memcpy(kept + kept_bytes, data, length);
	kept_bytes += length;
	for (i = 0; i < count; i++) {
		if (!markers[i] || !memmem(kept, kept_bytes, markers[i], strlen(markers[i])))
			continue;
		fprintf(stderr, "watch: marker %llu %s\n", seen, markers[i]);
		markers[i] = NULL;
	}
	while (length > 0) {
		ssize_t done = write(1, data, length);

		if (done <= 0)
			return;
		data += done;
		length -= done;
	}
}

static void follow(struct pollfd *wait, unsigned long long deadline, char **markers, int count)
{
	int first = 1;

	for (;;) {
		long long left = (long long)(deadline - now()) / 1000000;
		char data[4096];
		ssize_t length;

		if (left <= 0 || poll(wait, COUNT, left) <= 0)
			return;
		if (wait[INPUT].revents && read(wait[INPUT].fd, data, 1) <= 0)
			return;
		if (wait[OUTPUT].revents) {
			length = read(wait[OUTPUT].fd, data, sizeof data);
			if (length <= 0) {
				wait[OUTPUT].fd = -1;
				continue;
			}
			if (first)
				fprintf(stderr, "watch: byte %llu\n", now());
			first = 0;
			take(data, length, markers, count);
		} else if (wait[PROCESS].revents) {
			return;
		}
	}
}

int main(int argc, char **argv)
{
	int count = 0, status = 0, fds[2];
	unsigned long long began;
	struct rusage usage;
	long long cpu_us;
	pid_t pid;

	while (2 + count < argc && strcmp(argv[2 + count], "--") != 0)
		count++;
	if (argc < 4 + count || pipe2(fds, O_CLOEXEC) < 0) {
		fprintf(stderr, "usage: watch MILLISECONDS MARKER... -- COMMAND...\n");
		return 2;
	}
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	began = now();
	pid = start(argv + 3 + count, null, fds[1]);
	close(fds[1]);
	fprintf(stderr, "watch: start %llu %d\n", began, (int)pid);
	struct pollfd wait[COUNT] = {
		{fds[0], POLLIN, 0},
		{0, POLLIN, 0},
		{syscall(SYS_pidfd_open, pid, 0), POLLIN, 0},
	};
	follow(wait, began + atoll(argv[1]) * 1000000ull, argv + 2, count);
	kill(-pid, SIGKILL);
	wait4(pid, &status, 0, &usage);
	cpu_us = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000ll;
	cpu_us += usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
	fprintf(stderr, "watch: exit %llu %d %lld\n", now(),
		WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), cpu_us);
	return 0;
}
