# SPDX-License-Identifier: BSD-3-Clause
"""What every policy must allow and must deny, call by call, on each architecture.

The allowed calls are what CPython and glibc make of a device's or the vmm's work; the denied ones
are the nearest neighbours of what is allowed. Calls that stand under ``x86_64`` or ``aarch64`` do
the same work where the other architecture has another call for it.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Calls(NamedTuple):
    """Calls in strace's notation: for both architectures, and for one of them."""

    both: tuple[str, ...] = ()
    x86_64: tuple[str, ...] = ()
    aarch64: tuple[str, ...] = ()

    def on(self, arch: str) -> tuple[str, ...]:
        """Return all for one architecture."""
        own = self.x86_64 if arch == "x86_64" else self.aarch64
        return (*self.both, *own)


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
    "balloon_device": Calls(("fallocate(4, FALLOC_FL_PUNCH_HOLE|FALLOC_FL_KEEP_SIZE, 0, 0x1000)",)),
    "block_device": Calls(
        (
            "preadv(6, 0x1000, 4, 0, 0)",
            "preadv2(6, 0x1000, 4, 0, 0, 0)",
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
            "socket(AF_UNIX, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0)",
            "socket(AF_UNIX, SOCK_SEQPACKET|SOCK_NONBLOCK|SOCK_CLOEXEC, 0)",
            "connect(9, 0x1000, 16)",
            "accept4(8, 0, 0, SOCK_CLOEXEC)",
            "getsockname(9, 0x1000, 0x1000)",
            "shutdown(9, SHUT_RD)",
            "shutdown(9, SHUT_WR)",
        )
    ),
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
            "preadv2(6, 0x1000, 4, 0, 0, RWF_NOWAIT)",
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
            "socket(AF_UNIX, SOCK_DGRAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0)",
            "socket(AF_UNIX, SOCK_STREAM, 0)",
            "socket(AF_INET, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0)",
            "socket(AF_VSOCK, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0)",
            "socketpair(AF_UNIX, SOCK_STREAM, 0, 0x1000)",
            "connect(9, 0x1000, 111)",
            "bind(9, 0x1000, 16)",
            "listen(9, 1)",
            "accept4(8, 0, 0, 0)",
            "shutdown(9, SHUT_RDWR)",
            "setsockopt(9, SOL_SOCKET, SO_RCVBUF, 0x1000, 4)",
        )
    ),
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
