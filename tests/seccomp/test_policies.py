# SPDX-License-Identifier: BSD-3-Clause
"""The shipped policies, call by call: what they allow, and that they deny a changed argument."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

import seccomp
from seccomp import Policy, count, describe, load_policy, syscall_number
from seccomp.actions import ALLOW, KILL_PROCESS, TRAP, Action
from seccomp.constants_x86_64 import CONSTANTS as C
from seccomp.loader import parse_policy
from seccomp.simulate import decode, run, simulate
from seccomp.syscalls import AUDIT_ARCH_X86_64
from seccomp.verify import probes

DEVICES: Final = (
    *("balloon_device", "block_device", "console_device", "mem_device", "net_device", "rng_device"),
    *("vhost_net_device", "vhost_vsock_device", "vsock_device"),
)
POLICIES: Final = (
    *(
        *DEVICES,
        "control",
        "control_api",
        "file_parser",
        "line_relay",
        "opener",
        "vcpu",
        "vmm",
        "vmm_memory",
        "vmm_memory_reboot",
        "vmm_reboot",
        "vsock_broker",
    ),
)
WARDENS: Final = ("warden", "warden_sealed", "warden_vsock", "forge")  # test_doors.py
MOST_CALLS: Final = {
    "balloon_device": 16,
    "block_device": 24,
    "console_device": 16,
    "mem_device": 16,
    "net_device": 20,
    "rng_device": 16,
    "vhost_net_device": 20,
    "vhost_vsock_device": 24,
    "control": 23,
    "control_api": 25,
    "file_parser": 10,
    "line_relay": 12,
    "opener": 49,
    "vcpu": 28,
    "vmm": 48,
    "vmm_memory": 48,
    "vmm_memory_reboot": 50,
    "vmm_reboot": 50,
    "vsock_broker": 18,
    "vsock_device": 18,
    "forge": 104,
    "warden": 88,
    "warden_sealed": 56,
    "warden_vsock": 92,
}

RW: Final = C["PROT_READ"] | C["PROT_WRITE"]
PRIVATE: Final = C["MAP_PRIVATE"] | C["MAP_ANONYMOUS"]
NEW: Final = C["SOCK_NONBLOCK"] | C["SOCK_CLOEXEC"]
ENOENT: Final = Action("errno", 2)

NEVER_ALLOWED: Final = (
    *("execve", "execveat", "fork", "vfork", "clone", "clone3", "ptrace", "process_vm_readv"),
    *("process_vm_writev", "socket", "socketpair", "connect", "bind", "listen", "mount", "umount2"),
    *("pivot_root", "chroot", "setns", "unshare", "open_by_handle_at", "openat2", "creat", "prctl"),
    *("seccomp", "bpf", "perf_event_open", "io_uring_setup", "io_uring_enter", "userfaultfd"),
    *("memfd_create", "ftruncate", "truncate", "fchmod", "fchown", "setuid", "setresuid", "capset"),
    *("keyctl", "add_key", "request_key", "init_module", "finit_module", "kexec_load", "reboot"),
    *("pidfd_getfd", "name_to_handle_at", "mkdir", "rmdir", "rename", "link", "symlink", "mknod"),
    *("arch_prctl", "personality", "modify_ldt", "iopl", "ioperm", "shmat", "shmget", "msgget"),
    *("remap_file_pages", "pkey_mprotect", "setrlimit", "prlimit64", "splice", "sendfile", "tee"),
)
# Its sockets have no other address family than AF_UNIX.
# What some may after all; with zeros as arguments, a vmm empties the file of a core dump.
MAY_AFTER_ALL: Final = {
    "opener": {"bind", "listen"},
    **{name: {"ftruncate"} for name in ("vmm", "vmm_memory", "vmm_reboot", "vmm_memory_reboot")},
}
NEVER_IN_DEVICES: Final = (
    *("ioctl", "mprotect", "kill", "tgkill", "tkill", "rt_sigaction", "fcntl", "dup", "dup2"),
    *("epoll_create1", "eventfd2", "unlink", "unlinkat", "sendmsg", "recvfrom", "accept4", "wait4"),
    *("pidfd_open", "pidfd_send_signal", "futex", "getsockopt", "msync", "mlock", "fstat"),
)


@pytest.fixture(scope="module", params=POLICIES)
def policy(request: pytest.FixtureRequest) -> Policy:
    name: str = request.param
    return load_policy(name)


@pytest.fixture(scope="module", params=[*POLICIES, *WARDENS])
def any_policy(request: pytest.FixtureRequest) -> Policy:
    name: str = request.param
    return load_policy(name)


def judged(name: str, call: str, *args: int) -> Action:
    return simulate(load_policy(name).bpf, syscall_number(call), args)


def test_package_is_ours_and_not_the_binding_of_libseccomp() -> None:
    assert seccomp.__file__ is not None
    assert Path(seccomp.__file__).parent == Path(__file__).parents[2] / "seccomp"


def test_every_policy_file_is_known_here() -> None:
    folder = Path(str(seccomp.__file__)).parent / "x86_64"
    assert {path.stem for path in folder.glob("*.policy")} == {*POLICIES, *WARDENS, "common_device"}


def test_policy_allows_few_calls(any_policy: Policy) -> None:
    assert 0 < count(any_policy) <= MOST_CALLS[any_policy.name]


def test_every_rule_and_every_changed_argument(any_policy: Policy) -> None:
    tree, program = parse_policy(any_policy.path), decode(any_policy.bpf)
    for rule in tree.rules.values():
        outcomes = set()
        for args in probes(rule):
            found = run(program, rule.number, args, AUDIT_ARCH_X86_64)
            assert found == tree.judge(rule.number, args, TRAP), (rule.name, args)
            outcomes.add(found)
        filtered = rule.allow != ((),) and bool(rule.allow)
        assert (ALLOW in outcomes) == bool(rule.allow), rule.name
        assert (len(outcomes) == 2) == filtered, rule.name


def test_everything_else_is_trapped(any_policy: Policy) -> None:
    tree, program = parse_policy(any_policy.path), decode(any_policy.bpf)
    for number in set(range(600)) - set(tree.rules):
        assert run(program, number, (), AUDIT_ARCH_X86_64) == TRAP


@pytest.mark.parametrize("arch", [0x40000003, 0xC00000B7, 0])
def test_wrong_architecture_is_killed(any_policy: Policy, arch: int) -> None:
    assert simulate(any_policy.bpf, 0, (), arch) == KILL_PROCESS


def test_x32_call_is_killed(any_policy: Policy) -> None:
    assert simulate(any_policy.bpf, 0x40000000, ()) == KILL_PROCESS


def test_dangerous_calls_are_trapped(policy: Policy) -> None:
    never = set(NEVER_ALLOWED) - MAY_AFTER_ALL.get(policy.name, set())
    found = {call: simulate(policy.bpf, syscall_number(call), ()) for call in never}
    assert found == dict.fromkeys(never, TRAP)


@pytest.mark.parametrize("name", DEVICES)
def test_calls_of_the_vmm_are_trapped_in_devices(name: str) -> None:
    found = {call: judged(name, call, 1, 1, 1) for call in NEVER_IN_DEVICES}
    assert found == dict.fromkeys(NEVER_IN_DEVICES, TRAP)


def test_paths_lead_nowhere_but_for_the_opener(policy: Policy) -> None:
    for call in ("open", "openat", "stat", "access", "readlink"):
        action = ENOENT if policy.name != "opener" else TRAP if call == "open" else ALLOW
        assert simulate(policy.bpf, syscall_number(call), ()) == action, call


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("args", "action"),
    [
        pytest.param((0, 4096, RW, PRIVATE), ALLOW, id="malloc"),
        pytest.param((0, 4096, 0, PRIVATE), ALLOW, id="guard"),
        pytest.param((0, 4096, RW | C["PROT_EXEC"], PRIVATE), TRAP, id="executable"),
        pytest.param((0, 4096, RW, C["MAP_SHARED"] | C["MAP_ANONYMOUS"]), TRAP, id="shared"),
        pytest.param((0, 4096, RW, C["MAP_PRIVATE"], 3), TRAP, id="private-file"),
        pytest.param((0, 4096, RW, C["MAP_SHARED"], 3), TRAP, id="shared-file"),
        pytest.param((0, 4096, RW, PRIVATE | C["MAP_HUGETLB"]), TRAP, id="huge"),
        pytest.param((0, 4096, RW, PRIVATE | C["MAP_LOCKED"]), TRAP, id="locked"),
    ],
)
def test_mmap_gives_private_memory_only(name: str, args: tuple[int, ...], action: Action) -> None:
    assert judged(name, "mmap", *args) == action


@pytest.mark.parametrize(
    ("name", "call", "args", "action"),
    [
        ("balloon_device", "fallocate", (3, 3), ALLOW),
        ("balloon_device", "fallocate", (3, C["FALLOC_FL_PUNCH_HOLE"]), TRAP),
        ("balloon_device", "fallocate", (3, 0), TRAP),
        ("balloon_device", "fallocate", (3, C["FALLOC_FL_ZERO_RANGE"] | 1), TRAP),
        ("balloon_device", "getrandom", (0, 16, 0), TRAP),
        ("balloon_device", "madvise", (0, 4096, C["MADV_REMOVE"]), TRAP),
        ("block_device", "pwritev2", (3, 0, 1, 0, 0, C["RWF_DSYNC"]), ALLOW),
        ("block_device", "pwritev2", (3, 0, 1, 0, 0, C["RWF_APPEND"]), TRAP),
        ("block_device", "preadv2", (3, 0, 1, 0, 0, 0), ALLOW),
        ("block_device", "preadv2", (3, 0, 1, 0, 0, C["RWF_NOWAIT"]), ALLOW),
        ("block_device", "preadv2", (3, 0, 1, 0, 0, C["RWF_HIPRI"]), TRAP),
        ("block_device", "fallocate", (3, 3), ALLOW),
        ("block_device", "fallocate", (3, 0), TRAP),
        ("block_device", "fallocate", (3, C["FALLOC_FL_ZERO_RANGE"]), ALLOW),
        ("block_device", "fallocate", (3, C["FALLOC_FL_ZERO_RANGE"] | 1), TRAP),
        ("block_device", "fallocate", (3, C["FALLOC_FL_COLLAPSE_RANGE"]), TRAP),
        ("block_device", "getrandom", (0, 16, 0), TRAP),
        ("net_device", "ioctl", (3, C["TUNSETOFFLOAD"]), ALLOW),
        ("net_device", "ioctl", (3, C["TUNSETQUEUE"]), ALLOW),
        ("net_device", "ioctl", (3, C["TUNSETIFF"]), TRAP),
        ("net_device", "ioctl", (3, C["TUNSETPERSIST"]), TRAP),
        ("net_device", "ioctl", (3, C["TUNSETOFFLOAD"] | 1 << 32), TRAP),
        ("net_device", "preadv", (3, 0, 1), TRAP),
        ("rng_device", "getrandom", (0, 16, 0), ALLOW),
        ("rng_device", "getrandom", (0, 16, C["GRND_RANDOM"]), TRAP),
        ("rng_device", "pwritev", (3, 0, 1), TRAP),
        ("rng_device", "fdatasync", (3,), TRAP),
        ("rng_device", "read", (3, 0, 8), ALLOW),
        ("rng_device", "read", (3, 0, 4096), TRAP),
        ("rng_device", "write", (3, 0, 64), ALLOW),
        ("rng_device", "write", (3, 0, 4096), TRAP),
        ("rng_device", "mremap", (0, 1, 2, C["MREMAP_MAYMOVE"]), ALLOW),
        ("rng_device", "mremap", (0, 1, 2, 3), TRAP),
        ("rng_device", "madvise", (0, 4096, C["MADV_DONTNEED"]), ALLOW),
        ("rng_device", "madvise", (0, 4096, C["MADV_REMOVE"]), TRAP),
        ("rng_device", "recvmsg", (3, 0, C["MSG_CMSG_CLOEXEC"]), ALLOW),
        ("rng_device", "recvmsg", (3, 0, C["MSG_PEEK"]), TRAP),
        ("vhost_net_device", "ioctl", (3, C["VHOST_SET_VRING_ADDR"]), ALLOW),
        ("vhost_net_device", "ioctl", (3, C["VHOST_NET_SET_BACKEND"]), ALLOW),
        ("vhost_net_device", "ioctl", (3, C["TUNSETOFFLOAD"]), ALLOW),
        ("vhost_net_device", "ioctl", (3, C["TUNSETIFF"]), TRAP),
        ("vhost_net_device", "ioctl", (3, C["VHOST_SET_OWNER"]), TRAP),
        ("vhost_net_device", "ioctl", (3, C["VHOST_SET_MEM_TABLE"]), TRAP),
        ("vhost_net_device", "ioctl", (3, C["VHOST_VSOCK_SET_RUNNING"]), TRAP),
        ("vhost_net_device", "readv", (3, 0, 1), TRAP),
        ("vhost_vsock_device", "ioctl", (3, C["VHOST_SET_VRING_ADDR"]), ALLOW),
        ("vhost_vsock_device", "ioctl", (3, C["VHOST_VSOCK_SET_RUNNING"]), ALLOW),
        ("vhost_vsock_device", "ioctl", (3, C["VHOST_SET_OWNER"]), TRAP),
        ("vhost_vsock_device", "ioctl", (3, C["VHOST_SET_MEM_TABLE"]), TRAP),
        ("vhost_vsock_device", "ioctl", (3, C["VHOST_SET_LOG_BASE"]), TRAP),
        ("vhost_vsock_device", "ioctl", (3, C["VHOST_VSOCK_SET_GUEST_CID"]), TRAP),
        ("vhost_vsock_device", "ioctl", (3, C["VHOST_NET_SET_BACKEND"]), TRAP),
        ("vhost_vsock_device", "socket", (C["AF_UNIX"], NEW | C["SOCK_STREAM"]), TRAP),
        ("vsock_broker", "socket", (C["AF_UNIX"], NEW | C["SOCK_STREAM"]), ALLOW),
        ("vsock_broker", "socket", (C["AF_UNIX"], NEW | C["SOCK_SEQPACKET"]), ALLOW),
        ("vsock_broker", "socket", (C["AF_UNIX"], NEW | C["SOCK_DGRAM"]), TRAP),
        ("vsock_broker", "socket", (C["AF_UNIX"], C["SOCK_STREAM"]), TRAP),
        ("vsock_broker", "socket", (C["AF_INET"], NEW | C["SOCK_STREAM"]), TRAP),
        ("vsock_broker", "socket", (C["AF_VSOCK"], NEW | C["SOCK_STREAM"]), TRAP),
        ("vsock_broker", "socket", (C["AF_NETLINK"], NEW | C["SOCK_STREAM"]), TRAP),
        ("vsock_broker", "connect", (3, 0, 110), ALLOW),
        ("vsock_broker", "connect", (3, 0, 111), TRAP),
        ("vsock_broker", "connect", (3, 0, 2), TRAP),
        ("vsock_broker", "newfstatat", (0, 0, 0, C["AT_SYMLINK_NOFOLLOW"]), ALLOW),
        ("vsock_broker", "newfstatat", (0, 0, 0, 0), ENOENT),
        ("vsock_broker", "sendmsg", (3, 0, 0), ALLOW),
        ("vsock_broker", "accept4", (3, 0, 0, C["SOCK_CLOEXEC"]), TRAP),
        ("vsock_broker", "fchdir", (3,), TRAP),
        ("vsock_broker", "setsockopt", (3, 1, C["SO_SNDBUF"]), TRAP),
        ("vsock_device", "socket", (C["AF_UNIX"], NEW | C["SOCK_STREAM"]), TRAP),
        ("vsock_device", "socket", (C["AF_UNIX"], NEW | C["SOCK_SEQPACKET"]), TRAP),
        ("vsock_device", "connect", (3, 0, 110), TRAP),
        ("vsock_device", "accept4", (3, 0, 0, C["SOCK_CLOEXEC"]), ALLOW),
        ("vsock_device", "accept4", (3, 0, 0, 0), TRAP),
        ("vsock_device", "shutdown", (3, C["SHUT_WR"]), ALLOW),
        ("vsock_device", "shutdown", (3, C["SHUT_RDWR"]), TRAP),
        ("vsock_device", "getrandom", (0, 16, 0), TRAP),
        ("vcpu", "ioctl", (3, C["KVM_RUN"]), ALLOW),
        ("vcpu", "ioctl", (3, C["KVM_RUN"] | 1 << 32), TRAP),
        ("vcpu", "ioctl", (3, C["KVM_IRQFD"]), ALLOW),
        ("vcpu", "ioctl", (3, C["KVM_SET_USER_MEMORY_REGION"]), TRAP),
        ("vcpu", "sendmsg", (3, 0, C["MSG_NOSIGNAL"]), ALLOW),
        ("vcpu", "sendmsg", (3, 0, C["MSG_OOB"]), TRAP),
        ("vcpu", "tgkill", (1, 1, 35), TRAP),
        ("vmm", "ioctl", (3, C["KVM_RUN"]), TRAP),
        ("vmm", "ioctl", (3, C["KVM_IRQFD"]), ALLOW),
        ("vmm", "ioctl", (0, C["TCSETS"]), ALLOW),
        ("vmm", "ioctl", (0, C["TIOCSTI"]), TRAP),
        ("vmm", "ioctl", (3, C["KVM_CREATE_VM"]), TRAP),
        ("vmm", "ioctl", (3, C["KVM_CREATE_VCPU"]), TRAP),
        ("vmm", "ioctl", (3, C["KVM_SET_USER_MEMORY_REGION"]), TRAP),
        ("vmm_memory", "ioctl", (3, C["KVM_SET_USER_MEMORY_REGION"]), ALLOW),
        ("vmm_memory", "ioctl", (3, C["KVM_CREATE_VCPU"]), TRAP),
        ("vmm", "kill", (123, 9), TRAP),
        ("vmm", "pidfd_open", (123, 0), TRAP),
        ("vmm", "pidfd_send_signal", (7, 9, 0, 0), ALLOW),
        ("vmm", "pidfd_send_signal", (7, 15, 0, 0), TRAP),
        ("vmm", "kill", (0xFFFFFFFF, 9), TRAP),
        ("vmm", "rt_sigaction", (C["SIGSYS"],), TRAP),
        ("vmm", "rt_sigaction", (C["SIGINT"],), ALLOW),
        ("vmm", "tgkill", (1, 1, 35), ALLOW),
        ("vmm", "tgkill", (1, 1, C["SIGKILL"]), TRAP),
        ("vmm", "mprotect", (0, 4096, RW), ALLOW),
        ("vmm", "mprotect", (0, 4096, C["PROT_EXEC"]), TRAP),
        ("vmm", "sendto", (3, 0, 1, 0, 0), ALLOW),
        ("vmm", "sendto", (3, 0, 1, 0, 0x7000), TRAP),
        ("vmm", "fcntl", (3, C["F_SETFL"]), ALLOW),
        ("vmm", "fcntl", (3, C["F_SETOWN"]), TRAP),
    ],
)
def test_argument_filter(name: str, call: str, args: tuple[int, ...], action: Action) -> None:
    assert judged(name, call, *args) == action


def test_describe_tells_every_call_and_its_rule() -> None:
    told = dict(describe(load_policy("rng_device")))
    assert told["getrandom"] == "arg2 == 0"
    assert told["epoll_wait"] == "1"
    assert told["openat"] == "return ENOENT"
