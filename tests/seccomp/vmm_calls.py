# SPDX-License-Identifier: BSD-3-Clause
"""What the policies of the vmm, its vCPUs and the warden must allow and deny, call by call.

What stands where, and why, is told in ``device_calls``.
"""

from __future__ import annotations

from typing import Final

from tests.seccomp.calls import Calls

_JAIL: Final = (
    "CLONE_NEWUSER|CLONE_NEWPID|CLONE_NEWNS|CLONE_NEWNET|CLONE_NEWIPC|CLONE_NEWUTS|CLONE_NEWCGROUP"
)
_WARDEN_ALLOWED: Final = Calls(
    (
        f"clone({_JAIL}|SIGCHLD, 0, 0, 0, 0)",
        "socketpair(AF_UNIX, SOCK_SEQPACKET|SOCK_CLOEXEC, 0, 0x1000)",
        "pidfd_send_signal(7, SIGKILL, 0, 0)",
        "openat(AT_FDCWD, 0x1000, O_WRONLY|O_CLOEXEC)",
        "openat(AT_FDCWD, 0x1000, O_RDWR|O_CLOEXEC)",
        "openat(AT_FDCWD, 0x1000, O_RDONLY|O_NONBLOCK|O_CLOEXEC|O_DIRECTORY)",
        "prlimit64(77, 1, 0x1000, 0x1000)",
        "close_range(3, 0xFFFFFFFF, 0)",
        "setpgid(0, 0)",
        "setresuid(1000, 1000, 1000)",
        "mount(0x1000, 0x1000, 0x1000, MS_NOSUID|MS_NODEV|MS_NOEXEC, 0x1000)",
        "umount2(0x1000, 2)",
        "prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)",
        "seccomp(1, 0, 0x1000)",
        "landlock_restrict_self(5, 0)",
        "mmap(0, 0x1000, PROT_READ|PROT_WRITE, MAP_SHARED, 4, 0)",
        "ioctl(6, VHOST_SET_OWNER)",
        "kill(77, SIGKILL)",
        "ftruncate(6, 0x1000)",
    ),
    x86_64=("unlink(0x1000)", "mkdir(0x1000, 0x1ED)", "rmdir(0x1000)", "dup2(3, 0)"),
    aarch64=(
        "unlinkat(AT_FDCWD, 0x1000, 0)",
        "mkdirat(AT_FDCWD, 0x1000, 0x1ED)",
        "unlinkat(AT_FDCWD, 0x1000, AT_REMOVEDIR)",
        "dup3(3, 0, 0)",
    ),
)

ALLOWED: Final[dict[str, Calls]] = {
    "vcpu": Calls(
        (
            "ioctl(11, KVM_RUN, 0)",
            "ioctl(10, KVM_IRQFD, 0x1000)",
            "ioctl(10, KVM_IOEVENTFD, 0x1000)",
            "ioctl(10, KVM_SET_GSI_ROUTING, 0x1000)",
            "ioctl(10, KVM_IRQ_LINE, 0x1000)",
            "write(1, 0x1000, 1)",
            "read(9, 0x1000, 8)",
            "epoll_ctl(3, EPOLL_CTL_DEL, 7, 0)",
            "sendmsg(5, 0x1000, MSG_NOSIGNAL)",
            "sendto(6, 0x1000, 80, 0, 0, 0)",
            "futex(0x1000, FUTEX_WAIT, 0)",
            "madvise(0x1000, 0x1000, MADV_GUARD_INSTALL)",
            "mprotect(0x1000, 0x1000, PROT_READ|PROT_WRITE)",
            "gettid()",
            "exit(0)",
        ),
        x86_64=(
            "ioctl(11, KVM_GET_REGS, 0x1000)",
            "ioctl(11, KVM_KVMCLOCK_CTRL)",
            "poll(0x1000, 1, 0)",
        ),
        aarch64=("ioctl(11, KVM_GET_ONE_REG, 0x1000)", "ppoll(0x1000, 1, 0x1000, 0, 0)"),
    ),
    "vmm": Calls(
        (
            "ioctl(10, KVM_IRQFD, 0x1000)",
            "ioctl(10, KVM_IOEVENTFD, 0x1000)",
            "ioctl(10, KVM_SET_GSI_ROUTING, 0x1000)",
            "ioctl(10, KVM_IRQ_LINE, 0x1000)",
            "ioctl(0, TCGETS, 0x1000)",
            "ioctl(0, TCSETSW, 0x1000)",
            "newfstatat(AT_FDCWD, 0x1000, 0x1000, AT_SYMLINK_NOFOLLOW)",
            "getpid()",
            "clock_nanosleep(CLOCK_MONOTONIC, 0, 0x1000, 0)",
            "futex(0x1000, FUTEX_WAIT, 0)",
            "rt_sigaction(SIGINT, 0x1000, 0, 8)",
            "madvise(0x1000, 0x1000, MADV_GUARD_INSTALL)",
            "mprotect(0x1000, 0x1000, PROT_READ|PROT_WRITE)",
        ),
        x86_64=(
            "ioctl(10, KVM_GET_CLOCK, 0x1000)",
            "ioctl(10, KVM_REINJECT_CONTROL, 0x1000)",
            "ioctl(11, KVM_GET_MSRS, 0x1000)",
            "ioctl(11, KVM_SET_MSRS, 0x1000)",
            "epoll_wait(3, 0x1000, 64, -1)",
            "poll(0x1000, 1, 0)",
            "unlink(0x1000)",
            "lstat(0x1000, 0x1000)",
            "getpgrp()",
        ),
        aarch64=(
            "ioctl(11, KVM_GET_ONE_REG, 0x1000)",
            "ioctl(11, KVM_SET_ONE_REG, 0x1000)",
            "epoll_pwait(3, 0x1000, 64, -1, 0, 0)",
            "ppoll(0x1000, 1, 0x1000, 0, 0)",
            "unlinkat(AT_FDCWD, 0x1000, 0)",
            "getpgid(0)",
        ),
    ),
    "warden": _WARDEN_ALLOWED,
    "warden_vsock": Calls(
        (
            *_WARDEN_ALLOWED.both,
            "socket(AF_UNIX, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0)",
            "connect(9, 0x1000, 110)",
        ),
        _WARDEN_ALLOWED.x86_64,
        _WARDEN_ALLOWED.aarch64,
    ),
}

_VMM_DENIED: Final = (
    "ioctl(10, KVM_CREATE_VM)",
    "ioctl(10, KVM_CREATE_VCPU)",
    "ioctl(10, KVM_CREATE_DEVICE)",
    "ioctl(10, KVM_SET_USER_MEMORY_REGION)",
    "ioctl(11, KVM_SET_GUEST_DEBUG)",
    "ioctl(0, TIOCSTI)",
    "mmap(0, 0x1000, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
    "mmap(0, 0x1000, PROT_READ, MAP_SHARED, 10, 0)",
    "mprotect(0x1000, 0x1000, PROT_EXEC)",
    "kill(1, SIGKILL)",
    "tgkill(1, 1, SIGKILL)",
    "socket(AF_UNIX, SOCK_STREAM, 0)",
    "connect(3, 0x1000, 16)",
    "sendto(3, 0x1000, 8, 0, 0x1000, 16)",
    "prctl(PR_SET_NO_NEW_PRIVS, 1)",
    "prctl(PR_SET_DUMPABLE, 1)",
)
_WARDEN_DENIED: Final = (
    "clone(SIGCHLD, 0, 0, 0, 0)",
    f"clone({_JAIL}|CLONE_VM|SIGCHLD, 0, 0, 0, 0)",
    "execve(0x1000, 0x1000, 0x1000)",
    "socketpair(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0, 0x1000)",
    "socket(AF_INET, SOCK_STREAM, 0)",
    "kill(0xFFFFFFFF, SIGKILL)",
    "kill(-1, SIGKILL)",
    "kill(0, SIGKILL)",
    "kill(77, SIGSTOP)",
    "pidfd_send_signal(7, SIGTERM, 0, 0)",
    "close_range(3, 0xFFFFFFFF, 2)",
    "setpgid(1, 0)",
    "setresuid(0, 0, 0)",
    "setresgid(1000, 1000, 0)",
    "mount(0x1000, 0x1000, 0x1000, 0, 0)",
    "mount(0x1000, 0x1000, 0, MS_BIND|MS_REC, 0)",
    "umount2(0x1000, 0)",
    "prctl(PR_SET_PTRACER, 1, 0, 0, 0)",
    "seccomp(1, 8, 0x1000)",
    "landlock_restrict_self(5, 1)",
    "mmap(0, 0x1000, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
    "mprotect(0x1000, 0x1000, PROT_EXEC)",
    "ioctl(6, TUNSETIFF)",
    "ioctl(0, TIOCSTI)",
    "ioctl(11, KVM_RUN)",
    "sendto(3, 0x1000, 8, 0, 0x1000, 16)",
)

DENIED: Final[dict[str, Calls]] = {
    "vcpu": Calls(
        (
            *_VMM_DENIED,
            "accept4(3, 0, 0, SOCK_CLOEXEC)",
            "eventfd2(0, 0)",
            "fcntl(3, F_SETFL)",
            "pidfd_send_signal(7, SIGKILL, 0, 0)",
            "wait4(1, 0, 0, 0)",
            "rt_sigaction(SIGINT, 0x1000, 0, 8)",
            "recvmsg(5, 0x1000, MSG_PEEK)",
            "sendmsg(5, 0x1000, MSG_OOB)",
            "ioctl(0, TCSETS, 0x1000)",
        ),
        x86_64=("ioctl(11, KVM_SET_REGS, 0x1000)", "unlink(0x1000)"),
        aarch64=("ioctl(11, KVM_SET_ONE_REG, 0x1000)", "unlinkat(AT_FDCWD, 0x1000, 0)"),
    ),
    "vmm": Calls(
        (
            *_VMM_DENIED,
            "ioctl(11, KVM_RUN, 0)",
            "ioctl(0, TIOCSCTTY)",
            "fcntl(3, F_SETOWN)",
            "rt_sigaction(SIGSYS, 0x1000, 0, 8)",
        ),
        aarch64=(
            "ioctl(11, KVM_ARM_VCPU_INIT, 0x1000)",
            "ioctl(11, KVM_ARM_VCPU_FINALIZE, 0x1000)",
            "unlinkat(AT_FDCWD, 0x1000, AT_REMOVEDIR)",
            "getpgid(1)",
            "ppoll(0x1000, 1, 0x1000, 0x1000, 8)",
            "epoll_pwait(3, 0x1000, 64, -1, 0x1000, 8)",
        ),
    ),
    "warden": Calls(
        (*_WARDEN_DENIED, "socket(AF_UNIX, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0)")
    ),
    "warden_vsock": Calls((*_WARDEN_DENIED, "socket(AF_UNIX, SOCK_STREAM, 0)")),
}
