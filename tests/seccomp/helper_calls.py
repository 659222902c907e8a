# SPDX-License-Identifier: BSD-3-Clause
"""Calls that the policies of the vmm's helpers must allow or deny.

They are the control process, its opener, the relay of lines and the reader of kernels.
``device_calls`` explains these tables.
"""

from __future__ import annotations

from typing import Final

from tests.seccomp.calls import Calls

HELPERS_ALLOWED: Final[dict[str, Calls]] = {
    "control_boot": Calls(("pwrite64(6, 0x1000, 9, 0)", "sendmsg(4, 0x1000, 0)")),
    "control_api": Calls(("accept4(5, 0x1000, 0x2000, SOCK_CLOEXEC)", "pwrite64(6, 0x1000, 9, 0)")),
    "control": Calls(
        (
            "accept4(5, 0x1000, 0x2000, SOCK_CLOEXEC)",
            "ioctl(7, FIONBIO, 0x1000)",
            "getsockopt(7, SOL_SOCKET, SO_PEERCRED, 0x1000, 0x2000)",
            "epoll_ctl(3, EPOLL_CTL_ADD, 7, 0x1000)",
            "recvfrom(7, 0x1000, 4097, 0, 0, 0)",
            "recvmsg(4, 0x1000, MSG_CMSG_CLOEXEC)",
            "sendto(7, 0x1000, 200, MSG_NOSIGNAL, 0, 0)",
            "sendto(4, 0x1000, 200, MSG_DONTWAIT|MSG_NOSIGNAL, 0, 0)",
            "close(7)",
            "write(4, 0x1000, 8)",
            "clock_gettime(CLOCK_MONOTONIC, 0x1000)",
            "mmap(0, 0x100000, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
            "exit_group(0)",
        ),
        x86_64=("epoll_wait(3, 0x1000, 64, -1)",),
        aarch64=("epoll_pwait(3, 0x1000, 64, -1, 0, 8)",),
    ),
    "opener": Calls(
        (
            "openat(-100, 0x1000, O_RDWR|O_CLOEXEC|O_NOCTTY|O_NONBLOCK, 0)",
            "openat(-100, 0x1000, O_RDONLY|O_CLOEXEC|O_NOCTTY|O_NONBLOCK|O_NOFOLLOW|O_DIRECT, 0)",
            "fcntl(7, F_OFD_SETLK, 0x1000)",
            "ioctl(7, BLKROGET, 0x1000)",
            "preadv2(7, 0x1000, 1, 0, 0, 0)",
            "lseek(7, 0, 2)",
            "sendmsg(3, 0x1000, 0)",
            "recvmsg(3, 0x1000, MSG_CMSG_CLOEXEC)",
            "sendto(3, 0x1000, 200, MSG_DONTWAIT|MSG_NOSIGNAL, 0, 0)",
            "write(3, 0x1000, 8)",
            "exit_group(0)",
        ),
        x86_64=("epoll_wait(3, 0x1000, 64, -1)",),
        aarch64=("epoll_pwait(3, 0x1000, 64, -1, 0, 8)",),
    ),
    "line_relay": Calls(
        (
            "epoll_ctl(3, EPOLL_CTL_MOD, 4, 0x1000)",
            "read(4, 0x1000, 4096)",
            "sendto(5, 0x1000, 200, MSG_DONTWAIT|MSG_NOSIGNAL, 0, 0)",
            "close(4)",
            "clock_gettime(CLOCK_MONOTONIC, 0x1000)",
            "brk(0)",
            "mmap(0, 0x100000, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
            "munmap(0x1000, 0x1000)",
            "exit_group(0)",
        ),
        x86_64=("epoll_wait(3, 0x1000, 64, -1)",),
        aarch64=("epoll_pwait(3, 0x1000, 64, -1, 0, 8)",),
    ),
    "kernel_parser": Calls(
        (
            "preadv(3, 0x1000, 1, 0, 0)",
            "preadv2(3, 0x1000, 1, 0, 0, 0)",
            "pwrite64(4, 0x1000, 0x100000, 0)",
            "write(5, 0x1000, 9000)",
            "brk(0)",
            "mmap(0, 0x100000, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
            "munmap(0x1000, 0x1000)",
            "madvise(0x1000, 0x1000, MADV_DONTNEED)",
            "mremap(0x1000, 0x1000, 0x2000, MREMAP_MAYMOVE)",
            "exit_group(0)",
        ),
    ),
}

HELPERS_DENIED: Final[dict[str, Calls]] = {
    "control_boot": Calls(
        ("ftruncate(6, 0)", "sendmsg(7, 0x1000, MSG_OOB)", "write(6, 0x1000, 8)")
    ),
    "control_api": Calls(
        ("ftruncate(6, 0)", "sendmsg(7, 0x1000, MSG_NOSIGNAL)", "write(2, 0x1000, 8)")
    ),
    "control": Calls(
        (
            "accept4(5, 0x1000, 0x2000, 0)",
            "ioctl(7, TIOCSTI, 0x1000)",
            "sendto(7, 0x1000, 200, MSG_NOSIGNAL, 0x1000, 16)",
            "sendto(7, 0x1000, 200, MSG_OOB, 0, 0)",
            "sendmsg(7, 0x1000, MSG_NOSIGNAL)",
            "recvfrom(7, 0x1000, 4097, 0, 0x1000, 0x2000)",
            "getsockopt(7, SOL_SOCKET, SO_TYPE, 0x1000, 0x2000)",
            "setsockopt(7, SOL_SOCKET, SO_SNDBUF, 0x1000, 4)",
            "socket(AF_UNIX, SOCK_STREAM, 0)",
            "connect(7, 0x1000, 110)",
            "bind(7, 0x1000, 110)",
            "listen(7, 8)",
            "write(2, 0x1000, 8)",
            "fcntl(7, F_SETFL)",
            "pidfd_open(1, 0)",
            "kill(1, SIGKILL)",
            "tgkill(1, 1, SIGABRT)",
            "mmap(0, 0x1000, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
            "mmap(0, 0x1000, PROT_READ|PROT_WRITE, MAP_SHARED|MAP_ANONYMOUS, -1, 0)",
            "prlimit64(0, 7, 0x1000, 0)",
        ),
        aarch64=("epoll_pwait(3, 0x1000, 64, -1, 0x1000, 8)",),
    ),
    "opener": Calls(
        (
            "openat(-100, 0x1000, O_RDWR|O_CREAT|O_CLOEXEC, 0x180)",
            "openat(-100, 0x1000, O_WRONLY|O_TRUNC|O_CLOEXEC, 0)",
            "openat(-100, 0x1000, O_WRONLY|O_APPEND|O_CLOEXEC, 0)",
            "openat(-100, 0x1000, O_PATH|O_CLOEXEC, 0)",
            "write(2, 0x1000, 8)",
            "pwrite64(7, 0x1000, 8, 0)",
            "ftruncate(7, 0)",
            "socket(AF_UNIX, SOCK_STREAM, 0)",
            "connect(7, 0x1000, 110)",
            "sendto(3, 0x1000, 200, 0, 0x1000, 16)",
            "fcntl(7, F_SETOWN, 1)",
            "ioctl(7, TIOCSTI, 0x1000)",
            "ioctl(7, FIONBIO, 0x1000)",
            "pidfd_open(1, 0)",
            "kill(1, SIGKILL)",
            "mmap(0, 0x1000, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
            "mmap(0, 0x1000, PROT_READ, MAP_PRIVATE, 7, 0)",
            "prlimit64(0, 7, 0x1000, 0)",
        ),
        aarch64=("epoll_pwait(3, 0x1000, 64, -1, 0x1000, 8)",),
    ),
    "line_relay": Calls(
        (
            "read(4, 0x1000, 8)",
            "write(4, 0x1000, 8)",
            "sendto(5, 0x1000, 200, MSG_DONTWAIT|MSG_NOSIGNAL, 0x1000, 16)",
            "sendto(5, 0x1000, 200, MSG_OOB, 0, 0)",
            "sendto(5, 0x1000, 200, 0, 0, 0)",
            "sendmsg(5, 0x1000, MSG_DONTWAIT|MSG_NOSIGNAL)",
            "sendmmsg(5, 0x1000, 8, 0)",
            "recvmsg(5, 0x1000, 0)",
            "connect(5, 0x1000, 16)",
            "socket(AF_UNIX, SOCK_DGRAM, 0)",
            "setsockopt(5, SOL_SOCKET, SO_SNDBUF, 0x1000, 4)",
            "mmap(0, 0x1000, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
            "mmap(0, 0x1000, PROT_READ|PROT_WRITE, MAP_SHARED|MAP_ANONYMOUS, -1, 0)",
            "fcntl(4, F_SETFL)",
            "kill(1, SIGKILL)",
            "tgkill(1, 1, SIGABRT)",
            "rt_sigaction(SIGINT, 0x1000, 0, 8)",
            "prlimit64(0, 7, 0x1000, 0)",
            "clock_nanosleep(CLOCK_MONOTONIC, 0, 0x1000, 0)",
            "ioctl(5, FIONBIO, 0x1000)",
        ),
        aarch64=("epoll_pwait(3, 0x1000, 64, -1, 0x1000, 8)",),
    ),
    "kernel_parser": Calls(
        (
            "preadv2(3, 0x1000, 1, 0, 0, 1)",
            "read(3, 0x1000, 8)",
            "pwritev(4, 0x1000, 1, 0)",
            "sendto(5, 0x1000, 8, 0, 0x1000, 16)",
            "sendto(5, 0x1000, 8, 0, 0, 0)",
            "sendmsg(5, 0x1000, 0)",
            "recvmsg(5, 0x1000, 0)",
            "close(3)",
            "fcntl(4, F_ADD_SEALS, 1)",
            "ftruncate(4, 0x1000)",
            "fallocate(4, 0, 0, 0x1000)",
            "mmap(0, 0x1000, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
            "mmap(0, 0x1000, PROT_READ|PROT_WRITE, MAP_SHARED|MAP_ANONYMOUS, -1, 0)",
            "mmap(0, 0x1000, PROT_READ, MAP_PRIVATE, 3, 0)",
            "mprotect(0x1000, 0x1000, PROT_READ|PROT_WRITE)",
            "kill(1, SIGKILL)",
            "tgkill(1, 1, SIGABRT)",
            "rt_sigaction(SIGXCPU, 0x1000, 0, 8)",
            "prlimit64(0, 7, 0x1000, 0)",
            "futex(0x1000, FUTEX_WAIT, 0)",
            "clock_nanosleep(CLOCK_MONOTONIC, 0, 0x1000, 0)",
            "socket(AF_UNIX, SOCK_STREAM, 0)",
            "ioctl(5, FIONBIO, 0x1000)",
        ),
    ),
}
