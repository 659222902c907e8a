# SPDX-License-Identifier: BSD-3-Clause
"""Calls that the policies of devices must allow or deny, on each architecture.

The allowed calls are those that CPython and glibc make for a device. The denied ones differ from
them as little as possible. If the architectures have different calls for the same purpose, these
are listed under ``x86_64`` and ``aarch64``.
"""

from __future__ import annotations

from typing import Final

from tests.seccomp.calls import Calls

ALLOWED_IN_DEVICES: Final = Calls(
    (
        "epoll_ctl(3, EPOLL_CTL_ADD, 7, 0x1000)",
        "read(3, 0x1000, 8)",
        "write(3, 0x1000, 8)",
        "write(3, 0x1000, 128)",
        "recvmsg(5, 0x1000, MSG_CMSG_CLOEXEC)",
        "recvmsg(5, 0x1000, MSG_CMSG_CLOEXEC|MSG_DONTWAIT)",
        "sendto(5, 0x1000, 8, 0, 0, 0)",
        "sendto(5, 0x1000, 8, MSG_DONTWAIT|MSG_NOSIGNAL, 0, 0)",
        "close(7)",
        "brk(0)",
        "mmap(0, 0x100000, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, 0xFFFFFFFF, 0)",
        "mmap(0, 0x1000, PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
        "mremap(0x1000, 0x1000, 0x2000, MREMAP_MAYMOVE)",
        "munmap(0x1000, 0x1000)",
        "madvise(0x1000, 0x1000, MADV_DONTNEED)",
        "madvise(0x1000, 0x1000, MADV_FREE)",
        "clock_gettime(CLOCK_MONOTONIC, 0x1000)",
        "clock_gettime(CLOCK_REALTIME, 0x1000)",
        "exit_group(0)",
    ),
    x86_64=("epoll_wait(3, 0x1000, 64, -1)", "epoll_wait(3, 0x1000, 64, 0)"),
    aarch64=(
        "epoll_pwait(3, 0x1000, 64, -1, 0, 0)",
        "epoll_pwait(3, 0x1000, 64, 0, 0, 8)",
    ),
)

DENIED_IN_DEVICES: Final = Calls(
    (
        "read(3, 0x1000, 4096)",
        "write(3, 0x1000, 129)",
        "pread64(3, 0x1000, 8, 0)",
        "sendto(5, 0x1000, 8, MSG_OOB, 0, 0)",
        "sendto(5, 0x1000, 8, 0, 0x1000, 16)",
        "recvmsg(5, 0x1000, MSG_PEEK)",
        "recvmmsg(5, 0x1000, 8, 0, 0)",
        "sendmsg(5, 0x1000, 0)",
        "sendmsg(5, 0x1000, MSG_DONTWAIT|MSG_NOSIGNAL)",
        "sendmmsg(5, 0x1000, 8, 0)",
        "mmap(0, 0x1000, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
        "mmap(0, 0x1000, PROT_READ, MAP_PRIVATE, 3, 0)",
        "mmap(0, 0x1000, PROT_READ|PROT_WRITE, MAP_SHARED, 3, 0)",
        "mmap(0x1000, 0x1000, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED, -1, 0)",
        "mprotect(0x1000, 0x1000, PROT_READ)",
        "mremap(0x1000, 0x1000, 0x2000, MREMAP_MAYMOVE|MREMAP_FIXED)",
        "madvise(0x1000, 0x1000, MADV_REMOVE)",
        "madvise(0x1000, 0x1000, MADV_DODUMP)",
        "clock_gettime(CLOCK_BOOTTIME, 0x1000)",
        "clock_settime(CLOCK_REALTIME, 0x1000)",
        "ioctl(3, TIOCSTI)",
        "ioctl(3, KVM_RUN)",
        "fcntl(3, F_SETFL)",
        "fcntl(3, F_ADD_SEALS)",
        "ftruncate(3, 0)",
        "eventfd2(0, 0)",
        "epoll_create1(0)",
        "futex(0x1000, FUTEX_WAKE, 1)",
        "tgkill(1, 1, SIGKILL)",
        "kill(1, SIGKILL)",
        "rt_sigaction(SIGSYS, 0x1000, 0, 8)",
        "rt_sigreturn()",
        "getrandom(0x1000, 8, GRND_RANDOM)",
        "getpid()",
        "gettid()",
        "statx(AT_FDCWD, 0x1000, 0, 0, 0x1000)",
        "openat2(AT_FDCWD, 0x1000, 0x1000, 24)",
    ),
    x86_64=("poll(0x1000, 1, -1)", "epoll_pwait(3, 0x1000, 64, -1, 0x2000, 8)"),
    aarch64=(
        "ppoll(0x1000, 1, 0, 0, 0)",
        "epoll_pwait(3, 0x1000, 64, -1, 0x2000, 8)",
        "epoll_pwait2(3, 0x1000, 64, 0, 0, 0)",
        "mmap(0, 0x1000, PROT_READ|PROT_EXEC|PROT_BTI, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)",
    ),
)

ALLOWED: Final[dict[str, Calls]] = {
    "balloon_device": Calls(("fallocate(4, FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP_SIZE, 0, 0x1000)",)),
    "mem_device": Calls(("fallocate(4, FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP_SIZE, 0, 0x1000)",)),
    "block_device": Calls(
        (
            "preadv(6, 0x1000, 4, 0, 0)",
            "preadv2(6, 0x1000, 4, 0, 0, 0)",
            "preadv2(6, 0x1000, 4, 0, 0, RWF_NOWAIT)",
            "pwritev(6, 0x1000, 4, 0, 0)",
            "pwritev2(6, 0x1000, 4, 0, 0, 0)",
            "pwritev2(6, 0x1000, 4, 0, 0, RWF_DSYNC)",
            "fdatasync(6)",
            "fallocate(6, FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP_SIZE, 0, 0x1000)",
            "fallocate(6, FALLOC_FL_ZERO_RANGE, 0, 0x1000)",
        )
    ),
    "console_device": Calls(("readv(6, 0x1000, 4)", "writev(6, 0x1000, 4)")),
    "net_device": Calls(
        (
            "readv(6, 0x1000, 4)",
            "writev(6, 0x1000, 4)",
            "ioctl(6, TUNSETOFFLOAD, 0)",
            "ioctl(6, TUNSETQUEUE, 0x1000)",
            "ioctl(6, FIONREAD, 0x1000)",
            "ioctl(6, TIOCOUTQ, 0x1000)",
            "recvfrom(6, 0x1000, 16384, MSG_PEEK|MSG_DONTWAIT, 0, 0)",
            "setsockopt(6, SOL_SOCKET, SO_PEEK_OFF, 0x1000, 4)",
        )
    ),
    "rng_device": Calls(("getrandom(0x1000, 65536, 0)",)),
    "vhost_net_device": Calls(
        (
            "ioctl(6, VHOST_SET_FEATURES)",
            "ioctl(6, VHOST_SET_VRING_NUM)",
            "ioctl(6, VHOST_SET_VRING_BASE)",
            "ioctl(6, VHOST_GET_VRING_BASE)",
            "ioctl(6, VHOST_SET_VRING_ADDR)",
            "ioctl(6, VHOST_SET_VRING_KICK)",
            "ioctl(6, VHOST_SET_VRING_CALL)",
            "ioctl(6, VHOST_NET_SET_BACKEND)",
            "ioctl(6, TUNSETOFFLOAD)",
        )
    ),
    "vhost_vsock_device": Calls(
        (
            "ioctl(6, VHOST_SET_FEATURES)",
            "ioctl(6, VHOST_SET_VRING_ADDR)",
            "ioctl(6, VHOST_GET_VRING_BASE)",
            "ioctl(6, VHOST_VSOCK_SET_RUNNING)",
        )
    ),
    "vsock_device": Calls(
        (
            "accept4(8, 0, 0, SOCK_CLOEXEC)",
            "getsockname(9, 0x1000, 0x1000)",
            "shutdown(9, SHUT_RD)",
            "shutdown(9, SHUT_WR)",
        )
    ),
}

DENIED: Final[dict[str, Calls]] = {
    "mem_device": Calls(
        (
            "fallocate(4, 0, 0, 0x1000)",
            "fallocate(4, FALLOC_FL_PUNCH_HOLE, 0, 0x1000)",
            "madvise(0x1000, 0x1000, MADV_REMOVE)",
            "getrandom(0x1000, 8, 0)",
        )
    ),
    "balloon_device": Calls(
        (
            "fallocate(4, 0, 0, 0x1000)",
            "fallocate(4, FALLOC_FL_PUNCH_HOLE, 0, 0x1000)",
            "fallocate(4, FALLOC_FL_ZERO_RANGE|FALLOC_FL_KEEP_SIZE, 0, 0x1000)",
            "getrandom(0x1000, 8, 0)",
        )
    ),
    "block_device": Calls(
        (
            "preadv2(6, 0x1000, 4, 0, 0, RWF_HIPRI)",
            "preadv2(6, 0x1000, 4, 0, 0, RWF_NOWAIT|RWF_HIPRI)",
            "pwritev2(6, 0x1000, 4, 0, 0, RWF_APPEND)",
            "pwritev2(6, 0x1000, 4, 0, 0, RWF_DSYNC|RWF_HIPRI)",
            "fsync(6)",
            "fallocate(6, FALLOC_FL_COLLAPSE_RANGE, 0, 0x1000)",
            "fallocate(6, 0, 0, 0x1000)",
            "fallocate(6, FALLOC_FL_ZERO_RANGE|FALLOC_FL_KEEP_SIZE, 0, 0x1000)",
            "lseek(6, 0, SEEK_SET)",
            "sendfile(6, 6, 0, 0x1000)",
        )
    ),
    "console_device": Calls(("preadv(6, 0x1000, 4)", "ioctl(6, TCGETS)", "ioctl(6, TCSETS)")),
    "net_device": Calls(
        (
            "ioctl(6, TUNSETIFF)",
            "ioctl(6, TUNSETPERSIST)",
            "ioctl(6, TUNSETOWNER)",
            "ioctl(6, TIOCSTI)",
            "recvfrom(6, 0x1000, 4, 0, 0, 0)",
            "recvfrom(6, 0x1000, 4, MSG_PEEK|MSG_DONTWAIT, 0x1000, 0x1000)",
            "setsockopt(6, SOL_SOCKET, SO_SNDBUFFORCE, 0x1000, 4)",
            "setsockopt(6, IPPROTO_TCP, SO_PEEK_OFF, 0x1000, 4)",
            "preadv(6, 0x1000, 4)",
            "socket(AF_INET, SOCK_DGRAM, 0)",
        )
    ),
    "rng_device": Calls(
        ("getrandom(0x1000, 8, GRND_INSECURE)", "readv(3, 0x1000, 4)", "fdatasync(3)")
    ),
    "vhost_net_device": Calls(
        (
            "ioctl(6, VHOST_SET_OWNER)",
            "ioctl(6, VHOST_RESET_OWNER)",
            "ioctl(6, VHOST_SET_MEM_TABLE)",
            "ioctl(6, VHOST_SET_LOG_BASE)",
            "ioctl(6, VHOST_SET_LOG_FD)",
            "ioctl(6, VHOST_VSOCK_SET_RUNNING)",
            "ioctl(6, TUNSETIFF)",
            "readv(6, 0x1000, 4)",
        )
    ),
    "vhost_vsock_device": Calls(
        (
            "ioctl(6, VHOST_SET_OWNER)",
            "ioctl(6, VHOST_SET_MEM_TABLE)",
            "ioctl(6, VHOST_VSOCK_SET_GUEST_CID)",
            "ioctl(6, VHOST_NET_SET_BACKEND)",
            "socket(AF_UNIX, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0)",
        )
    ),
    "vsock_device": Calls(
        (
            "socket(AF_UNIX, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0)",
            "socket(AF_UNIX, SOCK_SEQPACKET|SOCK_NONBLOCK|SOCK_CLOEXEC, 0)",
            "socketpair(AF_UNIX, SOCK_STREAM, 0, 0x1000)",
            "connect(9, 0x1000, 16)",
            "bind(9, 0x1000, 16)",
            "listen(9, 1)",
            "accept4(8, 0, 0, 0)",
            "shutdown(9, SHUT_RDWR)",
            "setsockopt(9, SOL_SOCKET, SO_RCVBUF, 0x1000, 4)",
        )
    ),
}
