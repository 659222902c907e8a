/* SPDX-License-Identifier: BSD-3-Clause */
/* The Linux calls that Python's standard library lacks. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/falloc.h>
#include <linux/filter.h>
#include <linux/mempolicy.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "linux.h"

static int result(long value) { return value < 0 ? -errno : (int)value; }

void crosvm_full_barrier(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* The raw call, because unshare(2) would put only the children of a process into a new PID
 * namespace. The caller has one thread, so no lock of the C library is held in the child. */
int crosvm_clone(unsigned long flags)
{
    return result(syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0));
}

/* The child is in the cgroup from its first instruction on, so it need not be moved there. A
 * sibling (CLONE_PARENT) has the caller's own exit signal, and clone3(2) refuses any other. */
int crosvm_clone_into_cgroup(unsigned long flags, int cgroup_fd)
{
    struct clone_args args = {
        .flags = flags | CLONE_INTO_CGROUP,
        .exit_signal = flags & CLONE_PARENT ? 0 : SIGCHLD,
        .cgroup = cgroup_fd,
    };

    return result(syscall(SYS_clone3, &args, sizeof(args)));
}

int crosvm_mount(const char *source, const char *target, const char *type,
                 unsigned long flags, const char *data)
{
    return result(mount(source, target, type, flags, data));
}

int crosvm_umount2(const char *target, int flags)
{
    return result(umount2(target, flags));
}

int crosvm_pivot_root(const char *new_root, const char *put_old)
{
    return result(syscall(SYS_pivot_root, new_root, put_old));
}

int crosvm_close_range(unsigned int first, unsigned int last)
{
    return result(syscall(SYS_close_range, first, last, 0));
}

int crosvm_close_on_exec(unsigned int first)
{
    return result(syscall(SYS_close_range, first, ~0U, CLOSE_RANGE_CLOEXEC));
}

static int is_kept(const char *variable, const char *kept)
{
    size_t length = strcspn(variable, "=");
    for (; *kept; kept += strlen(kept) + 1)
        if (strlen(kept) == length && !memcmp(variable, kept, length)) return 1;
    return 0;
}

/* Overwrite the strings where the kernel stored them: /proc/PID/environ shows that memory, even
 * if environ no longer refers to it. */
void crosvm_forget_environment(const char *kept)
{
    char **from, **to;
    if (!environ) return;
    for (from = to = environ; *from; from++)
        if (is_kept(*from, kept))
            *to++ = *from;
        else
            explicit_bzero(*from, strlen(*from));
    *to = NULL;
}

int crosvm_fallocate(int fd, int mode, long long offset, long long length)
{
    return result(fallocate(fd, mode, offset, length));
}

int crosvm_prctl(int option, unsigned long arg2, unsigned long arg3,
                 unsigned long arg4, unsigned long arg5)
{
    return result(prctl(option, arg2, arg3, arg4, arg5));
}

/* Set all 64 bits of the three sets. libcap would leave out capabilities newer than itself. */
int crosvm_set_capabilities(unsigned long long mask, unsigned long long inheritable)
{
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
    memset(sets, 0, sizeof(sets));
    sets[0].permitted = sets[0].effective = (unsigned int)mask;
    sets[1].permitted = sets[1].effective = (unsigned int)(mask >> 32);
    sets[0].inheritable = (unsigned int)inheritable;
    sets[1].inheritable = (unsigned int)(inheritable >> 32);
    return result(syscall(SYS_capset, &header, sets));
}

int crosvm_capabilities(unsigned long long *mask)
{
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
    int error = result(syscall(SYS_capget, &header, sets));
    if (error == 0)
        *mask = (unsigned long long)sets[1].permitted << 32 | sets[0].permitted;
    return error;
}

int crosvm_load_filter(const void *program, unsigned short length, int all_threads)
{
    struct sock_fprog fprog = { .len = length, .filter = (struct sock_filter *)program };
    unsigned int flags = all_threads ? SECCOMP_FILTER_FLAG_TSYNC : 0;
    int loaded = result(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &fprog));
    return loaded > 0 ? -ESRCH : loaded; /* the id of a thread that cannot have the filter */
}

/* As soon as the filter is loaded, every call waits for the recorder, and the recorder does not
 * have the listener yet. Only calls with the mark pass the filter, so this has to be C: Python
 * would make other calls. */
int crosvm_load_recording_filter(const void *program, unsigned short length,
                                 int recorder, const void *name,
                                 unsigned int name_bytes, unsigned long mark,
                                 int all_threads)
{
    struct sock_fprog fprog = { .len = length, .filter = (struct sock_filter *)program };
    struct iovec text = { .iov_base = (void *)name, .iov_len = name_bytes };
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr head; } control;
    struct msghdr message;
    unsigned int flags = SECCOMP_FILTER_FLAG_NEW_LISTENER;
    int listener, sent;
    if (all_threads) /* since Linux 5.7 */
        flags |= SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
    memset(&message, 0, sizeof(message));
    memset(&control, 0, sizeof(control));
    message.msg_iov = &text;
    message.msg_iovlen = 1;
    message.msg_control = &control;
    message.msg_controllen = sizeof(control);
    control.head.cmsg_level = SOL_SOCKET;
    control.head.cmsg_type = SCM_RIGHTS;
    control.head.cmsg_len = CMSG_LEN(sizeof(int));
    /* A signal must not interrupt a call that could not be interrupted without the filter. Since
     * Linux 5.19 this flag lets signals other than a fatal one wait for the recorder's answer. */
    listener = result(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                              flags | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &fprog));
    if (listener == -EINVAL)
        listener = result(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &fprog));
    if (listener < 0) return listener;
    memcpy(CMSG_DATA(&control.head), &listener, sizeof(listener));
    sent = result(syscall(SYS_sendmsg, recorder, &message, MSG_NOSIGNAL, 0, 0, mark));
    syscall(SYS_close, listener, 0, 0, 0, 0, mark);
    syscall(SYS_close, recorder, 0, 0, 0, 0, mark);
    return sent < 0 ? sent : 0;
}

/* The handler of SIGSYS, which SECCOMP_RET_TRAP raises: report which call was denied, then exit.
 * It may only make async-signal-safe calls that every policy allows, and gettid where the report
 * names the thread. */
static unsigned char denied_report[64];
static unsigned int denied_head_bytes;
static int denied_fd = -1;
static int denied_status;
static int denied_main_thread;

static void denied_call(int signal, siginfo_t *info, void *context)
{
    unsigned int nr = (unsigned int)info->si_syscall;
    unsigned int at = denied_head_bytes;
    (void)signal;
    (void)context;
    denied_report[at++] = 0xce; /* msgpack: uint 32, big-endian */
    denied_report[at++] = (unsigned char)(nr >> 24);
    denied_report[at++] = (unsigned char)(nr >> 16);
    denied_report[at++] = (unsigned char)(nr >> 8);
    denied_report[at++] = (unsigned char)nr;
    if (denied_main_thread) /* msgpack: true where it was another thread */
        denied_report[at++] = syscall(SYS_gettid) == denied_main_thread ? 0xc2 : 0xc3;
    if (write(denied_fd, denied_report, at) < 0) { /* nobody is left to tell */ }
    syscall(SYS_exit_group, denied_status);
}

int crosvm_report_denied_calls(int fd, const void *head, unsigned int head_bytes,
                               int status, int names_thread)
{
    struct sigaction action;
    if (head_bytes > sizeof(denied_report) - 6) return -EINVAL;
    denied_status = status;
    denied_main_thread = names_thread ? (int)syscall(SYS_gettid) : 0;
    memcpy(denied_report, head, head_bytes);
    denied_head_bytes = head_bytes;
    denied_fd = fd;
    memset(&action, 0, sizeof(action));
    action.sa_sigaction = denied_call;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    return result(sigaction(SIGSYS, &action, 0));
}

int crosvm_pidfd_send_signal(int pidfd, int signal)
{
    return result(syscall(SYS_pidfd_send_signal, pidfd, signal, 0, 0));
}

/* landlock(7). We define numbers and structures, because the headers may be too old. */
#define NR_LANDLOCK_CREATE_RULESET 444
#define NR_LANDLOCK_ADD_RULE 445
#define NR_LANDLOCK_RESTRICT_SELF 446
#define CREATE_RULESET_VERSION 1
#define RULE_PATH_BENEATH 1

int crosvm_landlock_abi(void)
{
    return result(syscall(NR_LANDLOCK_CREATE_RULESET, 0, 0, CREATE_RULESET_VERSION));
}

/* words: how many of the three members of struct landlock_ruleset_attr the kernel knows. */
int crosvm_landlock_create(unsigned long long fs, unsigned long long net,
                           unsigned long long scoped, unsigned int words)
{
    unsigned long long handled[3] = { fs, net, scoped };
    return result(syscall(NR_LANDLOCK_CREATE_RULESET, handled, 8 * words, 0));
}

int crosvm_landlock_allow(int ruleset, int directory, unsigned long long fs)
{
    struct { unsigned long long allowed; int parent; } __attribute__((packed)) beneath;
    beneath.allowed = fs;
    beneath.parent = directory;
    return result(syscall(NR_LANDLOCK_ADD_RULE, ruleset, RULE_PATH_BENEATH, &beneath, 0));
}

int crosvm_landlock_restrict(int ruleset)
{
    return result(syscall(NR_LANDLOCK_RESTRICT_SELF, ruleset, 0));
}

/* Find free addresses that are as far behind a multiple of alignment as offset is. Another thread
 * could take them before the second mmap, which then gets other addresses. */
static void *free_addresses(unsigned long long offset, size_t length, size_t alignment)
{
    size_t wanted = length + alignment;
    void *found = mmap(NULL, wanted, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (found == MAP_FAILED) return NULL;
    munmap(found, wanted);
    return (char *)found + (offset - (uintptr_t)found) % alignment;
}

/* The kernel maps a huge page only where address and file offset are equally far behind a multiple
 * of its size. */
int crosvm_map_shared(int fd, unsigned long long offset, size_t length, size_t alignment,
                      void **where)
{
    void *hint = length < alignment ? NULL : free_addresses(offset, length, alignment);

    *where = mmap(hint, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    return *where == MAP_FAILED ? -errno : 0;
}

int crosvm_unmap(void *where, size_t length) { return result(munmap(where, length)); }

int crosvm_madvise(void *where, size_t length, int advice)
{
    return result(madvise(where, length, advice));
}

/* The raw call, because the wrapper is in another library (libnuma). */
int crosvm_bind_memory(void *where, size_t length, unsigned int node)
{
    enum { MOST = 1024, BITS = 8 * sizeof(unsigned long) };
    unsigned long nodes[MOST / BITS] = {0};

    if (node >= MOST)
        return -EINVAL;
    nodes[node / BITS] = 1UL << node % BITS;
    /* The kernel takes one bit less than it is told of. */
    return result(syscall(SYS_mbind, where, length, MPOL_BIND, nodes, MOST + 1, 0));
}
