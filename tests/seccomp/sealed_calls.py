# SPDX-License-Identifier: BSD-3-Clause
"""Calls that the filter of a warden whose guest runs must allow or deny, as in ``vmm_calls``."""

from __future__ import annotations

from typing import Final

from tests.seccomp.calls import Calls

JAIL: Final = (
    "CLONE_NEWUSER|CLONE_NEWPID|CLONE_NEWNS|CLONE_NEWNET|CLONE_NEWIPC|CLONE_NEWUTS|CLONE_NEWCGROUP"
)

SEALED_ALLOWED: Final = Calls(
    (
        "socketpair(AF_UNIX, SOCK_SEQPACKET|SOCK_CLOEXEC, 0, 0x1000)",
        "pidfd_send_signal(7, SIGKILL, 0, 0)",
        "openat(AT_FDCWD, 0x1000, O_WRONLY|O_CLOEXEC)",
        "openat(AT_FDCWD, 0x1000, O_RDWR|O_CLOEXEC)",
        "openat(AT_FDCWD, 0x1000, O_RDONLY|O_NONBLOCK|O_CLOEXEC|O_DIRECTORY)",
        "prlimit64(77, 1, 0x1000, 0x1000)",
        "fcntl(6, F_DUPFD_CLOEXEC, 0)",
        "mmap(0, 0x1000, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
        "ioctl(0, TCSETSW)",
        "kill(77, SIGKILL)",
        "ftruncate(6, 0x1000)",
    ),
    x86_64=("unlink(0x1000)", "mkdir(0x1000, 0x1ED)", "rmdir(0x1000)"),
    aarch64=(
        "unlinkat(AT_FDCWD, 0x1000, 0)",
        "mkdirat(AT_FDCWD, 0x1000, 0x1ED)",
        "unlinkat(AT_FDCWD, 0x1000, AT_REMOVEDIR)",
    ),
)

# Most of these it might call before the guest ran.
SEALED_DENIED: Final = Calls(
    (
        f"clone({JAIL}|SIGCHLD, 0, 0, 0, 0)",
        f"clone({JAIL}|CLONE_PARENT|SIGCHLD, 0, 0, 0, 0)",
        "clone3(0x1000, 88)",
        "close_range(3, 0xFFFFFFFF, 0)",
        "setpgid(0, 0)",
        "setresuid(1000, 1000, 1000)",
        "mount(0x1000, 0x1000, 0x1000, MS_NOSUID|MS_NODEV|MS_NOEXEC, 0x1000)",
        "umount2(0x1000, 2)",
        "chroot(0x1000)",
        "prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)",
        "seccomp(1, 0, 0x1000)",
        "socket(AF_UNIX, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0)",
        "connect(9, 0x1000, 110)",
        "pwritev(9, 0x1000, 1, 0)",
        "mmap(0, 0x1000, PROT_READ|PROT_WRITE, MAP_SHARED, 4, 0)",
        "ioctl(6, VHOST_SET_OWNER)",
    ),
    x86_64=("dup2(3, 0)",),
    aarch64=("dup3(3, 0, 0)",),
)
