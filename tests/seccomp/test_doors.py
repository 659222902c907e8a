# SPDX-License-Identifier: BSD-3-Clause
"""Try forbidden calls from inside, under the filters of the vmm's threads, warden and broker."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
from typing import TYPE_CHECKING, Final

import pytest

from jail.ids import JAILED_ID
from jail.namespaces import NAMESPACES
from seccomp import load_policy, syscall_number
from seccomp.actions import ALLOW, TRAP
from seccomp.constants_x86_64 import CONSTANTS as C
from seccomp.loader import parse_policy
from seccomp.simulate import simulate
from seccomp.verify import probes
from sys_util import linux
from tests.seccomp.test_live import denied_call

if TYPE_CHECKING:
    from collections.abc import Callable

VMM: Final = ("vmm", "vcpu")
WARDENS: Final = ("warden", "warden_vsock")
BROKER: Final = "vsock_broker"
PARSER: Final = "file_parser"
# Not line_relay, which cannot report a denied call: see tests/breakout/test_helpers.py.
FORGE: Final = "forge"
SEALED: Final = "warden_sealed"
DOORS: Final = (*VMM, *WARDENS, SEALED, BROKER, PARSER, FORGE)
# Processes with the policies on the right inherit the filter on the left, which has to allow all of
# their calls.
DEVICES: Final = {
    "warden": (
        *(
            "balloon_device",
            "block_device",
            "console_device",
            "mem_device",
            "net_device",
            "rng_device",
        ),
        *("vhost_net_device", "vhost_vsock_device"),
    ),
    "warden_vsock": ("vsock_device", "vsock_broker"),
    "forge": ("warden_vsock", "warden"),
}

NEW_STREAM: Final = C["SOCK_STREAM"] | C["SOCK_NONBLOCK"] | C["SOCK_CLOEXEC"]

LIBC: Final = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: int) -> Callable[[], object]:
    return lambda: LIBC.syscall(syscall_number(name), *args)


def ioctl(request: str) -> Callable[[], object]:
    return lambda: fcntl.ioctl(0, C[request], bytes(64))


def map_executable() -> None:
    mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)


EVERYWHERE: Final = {
    "execve": lambda: os.execv("/bin/true", ["true"]),
    "execveat": call("execveat", 3, 0, 0, 0, 0x1000),
    "fork": call("fork"),
    "vfork": call("vfork"),
    "clone": lambda: linux.clone(0),  # fork(3) of glibc 2.41 blocks SIGSYS, which reports it
    "kill": lambda: os.kill(1, 0),
    "tkill": call("tkill", 1, 9),
    "tgkill": call("tgkill", 1, 1, 9),
    "pidfd_send_signal": call("pidfd_send_signal", 0, 15, 0, 0),
    "pidfd_getfd": call("pidfd_getfd", 0, 0, 0),
    "ptrace": call("ptrace", 16, 1, 0, 0),
    "process_vm_readv": call("process_vm_readv", 1, 0, 0, 0, 0, 0),
    "process_vm_writev": call("process_vm_writev", 1, 0, 0, 0, 0, 0),
    "socket": lambda: socket.socket(socket.AF_INET),
    "bind": call("bind", 0, 0, 0),
    "listen": call("listen", 0, 1),
    "bpf": call("bpf", 0, 0, 0),
    "perf_event_open": call("perf_event_open", 0, 0, 0, 0, 0),
    "userfaultfd": call("userfaultfd", 0),
    "io_uring_setup": call("io_uring_setup", 1, 0),
    "keyctl": call("keyctl", 0, 0),
    "add_key": call("add_key", 0, 0, 0, 0, 0),
    "init_module": call("init_module", 0, 0, 0),
    "finit_module": call("finit_module", 0, 0, 0),
    "kexec_load": call("kexec_load", 0, 0, 0, 0),
    "reboot": call("reboot", 0, 0, 0, 0),
    "personality": call("personality", 0),
    "modify_ldt": call("modify_ldt", 0, 0, 0),
    "open_by_handle_at": call("open_by_handle_at", 0, 0, 0),
    "openat2": call("openat2", -100, 0, 0, 0),
    "creat": call("creat", 0, 0),
    "truncate": lambda: os.truncate("/tmp", 0),
    "rename": lambda: os.rename("/tmp/a", "/tmp/b"),
    "link": lambda: os.link("/tmp/a", "/tmp/b"),
    "symlink": lambda: os.symlink("/tmp/a", "/tmp/b"),
    "mknod": call("mknod", 0, 0, 0),
    "chmod": lambda: os.chmod("/tmp/a", 0o777),
    "chown": lambda: os.chown("/tmp/a", 0, 0),
    "fchmod": lambda: os.fchmod(0, 0o777),
    "setxattr": call("setxattr", 0, 0, 0, 0, 0),
    "memfd_create": lambda: os.memfd_create("x"),
    "chroot": lambda: os.chroot("/"),
    "unshare": call("unshare", 0x10000000),
    "setns": call("setns", 0, 0),
    "open_tree": call("open_tree", 0, 0, 0),
    "move_mount": call("move_mount", 0, 0, 0, 0, 0),
    "fsopen": call("fsopen", 0, 0),
    "swapon": call("swapon", 0, 0),
    "setuid": lambda: os.setuid(0),
    "setgroups": lambda: os.setgroups([0]),
    "setpriority": lambda: os.setpriority(0, 0, -20),
    "sched_setscheduler": call("sched_setscheduler", 0, 0, 0),
    "sched_setaffinity": lambda: os.sched_setaffinity(0, {0}),
    "syslog": call("syslog", 3, 0, 0),
    "settimeofday": call("settimeofday", 0, 0),
    "sethostname": lambda: socket.sethostname("x"),
    "iopl": call("iopl", 3),
    "shmget": call("shmget", 0, 0, 0),
    "mq_open": call("mq_open", 0, 0, 0, 0),
    "process_madvise": call("process_madvise", 0, 0, 0, 0, 0),
    "mmap": map_executable,
    "mprotect": call("mprotect", 0, 4096, 5),
    "pkey_mprotect": call("pkey_mprotect", 0, 4096, 5, 0),
    "remap_file_pages": call("remap_file_pages", 0, 0, 0, 0, 0),
}
IOCTLS: Final = (
    *("KVM_CREATE_VM", "KVM_CREATE_VCPU", "KVM_SET_USER_MEMORY_REGION", "KVM_GET_DIRTY_LOG"),
    *("TIOCSTI", "TUNSETIFF", "FIOASYNC", "KVM_SET_TSS_ADDR", "KVM_CREATE_DEVICE"),
)


# What a process under these filters is allowed to do: a broker, before it loads its own filter,
# changes its root; the forge executes a mould, which loads libraries.
OWN: Final = {"warden_vsock": ("chroot",), FORGE: ("chroot", "execveat", "mmap")}


@pytest.mark.parametrize(
    ("policy", "name"),
    [(p, n) for p in DOORS for n in EVERYWHERE if n not in OWN.get(p, ())],
)
def test_attempt_is_denied(policy: str, name: str) -> None:
    assert denied_call(policy, EVERYWHERE[name]) == name


@pytest.mark.parametrize("policy", DOORS)
@pytest.mark.parametrize("request_name", IOCTLS)
def test_ioctl_is_denied(policy: str, request_name: str) -> None:
    assert denied_call(policy, ioctl(request_name)) == "ioctl"


@pytest.mark.parametrize(
    ("policy", "name", "action"),
    [
        ("vmm", "ioctl", ioctl("KVM_RUN")),
        ("vmm", "clone3", call("clone3", 0, 0)),
        ("vmm", "connect", call("connect", 0, 0, 16)),
        ("vmm", "prctl", lambda: linux.set_process_name("x")),
        ("vmm", "seccomp", call("seccomp", 1, 0, 0)),
        ("vmm", "prlimit64", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))),
        ("vmm", "mkdir", lambda: os.mkdir("/tmp/x")),
        ("vmm", "mount", lambda: linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)),
        ("vmm", "pipe2", os.pipe),
        ("vmm", "pidfd_open", lambda: os.pidfd_open(1)),
        ("vmm", "ftruncate", lambda: os.ftruncate(0, 1)),
        ("vmm", "rt_sigaction", lambda: signal.signal(signal.SIGSYS, signal.SIG_IGN)),
        ("vcpu", "ioctl", ioctl("KVM_SET_REGS")),
        ("vcpu", "ioctl", ioctl("TCSETS")),
        ("vcpu", "clone3", call("clone3", 0, 0)),
        ("vcpu", "connect", call("connect", 0, 0, 16)),
        ("vcpu", "accept4", call("accept4", 0, 0, 0, 0)),
        ("vcpu", "eventfd2", lambda: os.eventfd(0)),
        ("vcpu", "fcntl", lambda: os.dup(0)),
        ("vcpu", "unlink", lambda: os.unlink("/tmp/x")),
        ("vcpu", "wait4", lambda: os.waitpid(-1, 0)),
        ("vcpu", "prctl", call("prctl", C["PR_SET_DUMPABLE"], 1, 0, 0, 0)),
        ("vcpu", "rt_sigaction", lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN)),
        ("warden", "connect", call("connect", 0, 0, 110)),
        ("warden", "socketpair", lambda: socket.socketpair(socket.AF_INET)),
        ("warden", "mount", lambda: linux.mount("/", "/proc", "", 0)),
        ("warden", "umount2", lambda: linux.umount2("/proc", 0)),
        ("warden", "setresuid", lambda: os.setresuid(0, 0, 0)),
        ("warden", "prctl", call("prctl", C["PR_SET_PTRACER"], 1, 0, 0, 0)),
        ("warden", "ioctl", ioctl("KVM_RUN")),
        ("warden_vsock", "socket", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
        ("warden_vsock", "setsockopt", call("setsockopt", 0, 1, C["SO_PEERCRED"], 0, 0)),
        (SEALED, "clone", call("clone", sum(NAMESPACES.values()) | signal.SIGCHLD, 0, 0, 0, 0)),
        (SEALED, "clone3", call("clone3", 0, 88)),
        (SEALED, "mount", lambda: linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)),
        (SEALED, "umount2", call("umount2", 0, 2)),
        (SEALED, "pivot_root", call("pivot_root", 0, 0)),
        (SEALED, "chdir", lambda: os.chdir("/")),
        (SEALED, "fchdir", lambda: os.fchdir(0)),
        (SEALED, "setresuid", lambda: os.setresuid(*(JAILED_ID,) * 3)),
        (SEALED, "capset", call("capset", 0, 0)),
        (SEALED, "prctl", lambda: linux.set_process_name("x")),
        (SEALED, "seccomp", call("seccomp", 1, 0, 0)),
        (SEALED, "socket", lambda: socket.socket(socket.AF_UNIX, NEW_STREAM)),
        (SEALED, "connect", call("connect", 0, 0, 110)),
        (SEALED, "setsockopt", call("setsockopt", 0, 1, C["SO_SNDBUF"], 0, 4)),
        (SEALED, "fallocate", lambda: os.posix_fallocate(0, 0, 1)),
        (SEALED, "mmap", lambda: mmap.mmap(-1, 4096, mmap.MAP_SHARED)),
        (SEALED, "ioctl", ioctl("VHOST_SET_OWNER")),
        ("vsock_broker", "socket", lambda: socket.socket(socket.AF_INET, NEW_STREAM)),
        ("vsock_broker", "socketpair", socket.socketpair),
        ("vsock_broker", "bind", call("bind", 0, 0, 110)),
        ("vsock_broker", "accept4", call("accept4", 0, 0, 0, 0)),
        ("vsock_broker", "chdir", lambda: os.chdir("..")),
        ("vsock_broker", "fchdir", lambda: os.fchdir(0)),
        ("vsock_broker", "pipe2", os.pipe),
        ("vsock_broker", "fcntl", lambda: os.dup(0)),
        ("vsock_broker", "unlink", lambda: os.unlink("/tmp/x")),
        ("vsock_broker", "kill", lambda: os.kill(1, 9)),
        ("vsock_broker", "read", lambda: os.read(0, 8)),
        ("file_parser", "read", lambda: os.read(0, 8)),
        ("file_parser", "sendto", call("sendto", 0, 0, 0, 0, 0, 0)),
        ("file_parser", "sendmsg", call("sendmsg", 0, 0, 0)),
        ("file_parser", "fcntl", lambda: os.dup(0)),
        ("file_parser", "ftruncate", lambda: os.ftruncate(0, 0)),
        ("file_parser", "mmap", lambda: mmap.mmap(-1, 4096, mmap.MAP_SHARED)),
        ("file_parser", "rt_sigaction", lambda: signal.signal(signal.SIGXCPU, signal.SIG_IGN)),
        ("file_parser", "prlimit64", lambda: resource.setrlimit(resource.RLIMIT_CPU, (9, 9))),
    ],
)
def test_attempt_at_what_others_may_is_denied(
    policy: str, name: str, action: Callable[[], object]
) -> None:
    assert denied_call(policy, action) == name


@pytest.mark.parametrize("policy", DOORS)
def test_file_cannot_be_created(policy: str) -> None:
    def create() -> None:
        try:
            os.open(f"/tmp/crosvm-test-{policy}", os.O_CREAT | os.O_WRONLY)
        except FileNotFoundError:
            return
        os._exit(1)

    assert denied_call(policy, create) is None


@pytest.mark.parametrize("policy", [*VMM, BROKER, PARSER])
def test_file_cannot_be_opened(policy: str) -> None:
    def look() -> None:
        for path in ("/dev/kvm", "/proc/self/maps", "/"):
            try:
                os.open(path, os.O_RDONLY)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue
            os._exit(1)

    assert denied_call(policy, look) is None


def test_warden_may_do_what_each_device_may() -> None:
    checked = 0
    for warden, devices in DEVICES.items():
        bpf = load_policy(warden).bpf
        for device in devices:
            policy = load_policy(device)
            for rule in parse_policy(policy.path).rules.values():
                for args in probes(rule):
                    if simulate(policy.bpf, rule.number, args) == ALLOW:
                        assert simulate(bpf, rule.number, args) == ALLOW, (device, rule.name, args)
                        checked += 1
                    else:
                        # The kernel prefers a trap to an errno. So if the device's filter returns
                        # an errno, as for a forgotten import, the inherited one must not trap.
                        answer = simulate(policy.bpf, rule.number, args)
                        assert answer == TRAP or simulate(bpf, rule.number, args) != TRAP
    assert checked > 100


def test_sealed_warden_may_do_nothing_that_it_might_not_before() -> None:
    sealed = load_policy(SEALED)
    checked = 0
    for rule in parse_policy(sealed.path).rules.values():
        for args in probes(rule):
            if simulate(sealed.bpf, rule.number, args) == ALLOW:
                for name in WARDENS:
                    assert simulate(load_policy(name).bpf, rule.number, args) == ALLOW, rule.name
                checked += 1
    assert checked > 50


def test_filter_without_vsock_makes_no_socket() -> None:
    for name, action in (("warden", TRAP), ("warden_vsock", ALLOW)):
        bpf = load_policy(name).bpf
        assert simulate(bpf, syscall_number("socket"), (C["AF_UNIX"], NEW_STREAM, 0)) == action


def test_warden_forks_only_into_new_namespaces() -> None:
    bpf = load_policy("warden").bpf
    whole = sum(NAMESPACES.values()) | signal.SIGCHLD
    assert simulate(bpf, syscall_number("clone"), (whole,)) == ALLOW
    for flag in NAMESPACES.values():
        assert simulate(bpf, syscall_number("clone"), (whole & ~flag,)) == TRAP


def test_warden_becomes_nobody_but_the_user_of_a_jail() -> None:
    bpf = load_policy("warden").bpf
    for call_name in ("setresuid", "setresgid"):
        number = syscall_number(call_name)
        assert simulate(bpf, number, (JAILED_ID,) * 3) == ALLOW
        assert simulate(bpf, number, (JAILED_ID, 0, JAILED_ID)) == TRAP
