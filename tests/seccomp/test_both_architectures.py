# SPDX-License-Identifier: BSD-3-Clause
"""The shipped policies of x86-64 and 64-bit Arm: both allow what their device needs, and no more.

``REPLACED`` and ``IOCTLS`` are the only ways in which a policy of one architecture may differ from
the other's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from seccomp import Policy, load_policy
from seccomp.actions import ALLOW, KILL_PROCESS, TRAP, Action
from seccomp.compiler import compile_tree
from seccomp.errors import PolicyError
from seccomp.loader import parse_policy, policy_path
from seccomp.parser import parse
from seccomp.simulate import decode, run, simulate
from seccomp.syscalls import ARCHITECTURES, AUDIT_ARCH_X86_64, get_arch
from seccomp.verify import probes
from tests.seccomp import device_calls, vmm_calls
from tests.seccomp.calls import Calls, read_call
from tests.seccomp.device_calls import ALLOWED_IN_DEVICES, DENIED_IN_DEVICES

ALLOWED: Final = device_calls.ALLOWED | vmm_calls.ALLOWED
DENIED: Final = device_calls.DENIED | vmm_calls.DENIED
FOLDERS: Final = {arch: Path(policy_path("vmm", arch=arch)).parent for arch in ARCHITECTURES}
POLICIES: Final = tuple(sorted(ALLOWED))
ARM: Final = get_arch("aarch64")
ENOENT: Final = Action("errno", 2)

# Linux keeps the calls on the left for old programs, and aarch64 never had them. There glibc makes
# the call on the right. Its rule must allow only arguments with the same effect: no signal mask, no
# flags, the process itself. ``None``: the rule is that of the call on the left.
REPLACED: Final[dict[str, tuple[str, str | None]]] = {
    "epoll_wait": ("epoll_pwait", "arg4 == 0"),
    "poll": ("ppoll", "arg3 == 0"),
    "unlink": ("unlinkat", "arg2 == 0"),
    "getpgrp": ("getpgid", "arg0 == 0"),
    "dup2": ("dup3", "arg2 == 0"),
    "mkdir": ("mkdirat", None),
    "rmdir": ("unlinkat", "arg2 == AT_REMOVEDIR"),
    "open": ("openat", None),
    "stat": ("newfstatat", None),
    "lstat": ("newfstatat", None),
    "access": ("faccessat", None),
    "readlink": ("readlinkat", None),
}
# arch_prctl sets the register that points to a thread's own data. On Arm that needs no call.
NEEDLESS: Final = frozenset({"arch_prctl"})
# On x86, KVM has requests for all registers or an interrupt controller at once, for clocks and for
# MSRs. On Arm a request is for one register, and the interrupt controller is a device of KVM.
IOCTLS: Final[dict[str, str | None]] = {
    **dict.fromkeys(("GET_REGS", "GET_SREGS", "GET_MSRS"), "GET_ONE_REG"),
    **dict.fromkeys(("SET_REGS", "SET_SREGS", "SET_MSRS"), "SET_ONE_REG"),
    **dict.fromkeys(("GET_LAPIC", "GET_IRQCHIP"), "GET_DEVICE_ATTR"),
    **dict.fromkeys(("SET_LAPIC", "SET_IRQCHIP"), "SET_DEVICE_ATTR"),
    **dict.fromkeys(("GET_CLOCK", "SET_CLOCK", "GET_TSC_KHZ", "KVMCLOCK_CTRL", "REINJECT_CONTROL")),
    **dict.fromkeys(("SET_XCRS", "SET_XSAVE", "SET_DEBUGREGS", "SET_PIT2")),
    "SIGNAL_MSI": None,  # an arm64 processor has no non-maskable interrupt
}

# test_doors.py tests what the warden does with these.
WARDENS: Final = ("warden", "warden_sealed", "warden_vsock", "forge")

CALLS_WITHOUT_PLACE: Final = (
    *("fork", "vfork", "open", "creat", "stat", "lstat", "access", "readlink", "poll", "select"),
    *("epoll_wait", "unlink", "rename", "mkdir", "dup2", "pipe", "getpgrp", "arch_prctl", "iopl"),
)
# What some may after all; with zeros as arguments, a vmm empties the file of a core dump.
MAY_AFTER_ALL: Final = {
    "opener": {"bind", "listen"},
    **{name: {"ftruncate"} for name in ("vmm", "vmm_memory", "vmm_reboot", "vmm_memory_reboot")},
}
NEVER_ALLOWED: Final = (
    *("execve", "execveat", "clone", "clone3", "ptrace", "process_vm_readv", "process_vm_writev"),
    *("socketpair", "bind", "listen", "mount", "umount2", "move_mount", "open_tree", "fsopen"),
    *(
        "pivot_root",
        "chroot",
        "setns",
        "unshare",
        "open_by_handle_at",
        "openat2",
        "name_to_handle_at",
    ),
    *("seccomp", "bpf", "perf_event_open", "io_uring_setup", "io_uring_enter", "userfaultfd"),
    *(
        "memfd_create",
        "memfd_secret",
        "ftruncate",
        "truncate",
        "fchmod",
        "fchown",
        "setuid",
        "capset",
    ),
    *("keyctl", "add_key", "request_key", "init_module", "finit_module", "kexec_load", "reboot"),
    *("pidfd_getfd", "pidfd_open", "mkdirat", "renameat2", "linkat", "symlinkat", "mknodat"),
    *("personality", "shmat", "shmget", "msgget", "remap_file_pages", "pkey_mprotect", "setrlimit"),
    *("prlimit64", "splice", "tee", "vmsplice", "sendfile", "kill", "tkill", "rt_sigqueueinfo"),
    *("sched_setaffinity", "setpriority", "swapon", "syslog", "acct", "quotactl"),
)


def judged(own: dict[str, Calls], common: Calls, name: str, arch: str) -> dict[str, Action]:
    """Return what a policy says of each of its calls in a table."""
    bpf, audit = load_policy(name, arch=arch).bpf, get_arch(arch).audit
    texts = (*own[name].on(arch), *(common.on(arch) if name.endswith("_device") else ()))
    calls = {text: read_call(text, arch) for text in texts}
    return {text: simulate(bpf, call.number, call.args, audit) for text, call in calls.items()}


def alternatives(name: str, arch: str) -> dict[str, frozenset[str]]:
    """Return for each call of a policy the set of its conditions, split at ``||``."""
    tree = parse_policy(policy_path(name, arch=arch), arch)
    return {
        rule.name: frozenset(" ".join(text.split()) for text in rule.text.split("||"))
        for rule in tree.rules.values()
    }


def ioctl_on_aarch64(text: str) -> str | None:
    before, name = text.partition("KVM_")[::2]
    other = IOCTLS.get(name, name) if name else name
    return None if other is None else text if not name else f"{before}KVM_{other}"


def on_aarch64(rules: dict[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Translate the rules of a policy of x86-64 to those that aarch64 should have."""
    found: dict[str, frozenset[str]] = {}
    for name, texts in rules.items():
        if name in NEEDLESS:
            continue
        other, text = REPLACED.get(name, (name, None))
        own = texts if text is None else frozenset({text})
        if name == "ioctl":
            own = frozenset(filter(None, map(ioctl_on_aarch64, own)))
        found[other] = found.get(other, frozenset()) | own
    return without_needless(found)


def without_needless(rules: dict[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Leave out conditions beside "always", which occur where one call replaces two."""
    return {name: frozenset({"1"}) if "1" in own else own for name, own in rules.items()}


@pytest.fixture(scope="module", params=POLICIES)
def arm(request: pytest.FixtureRequest) -> Policy:
    return load_policy(request.param, arch="aarch64")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_policy_has_its_tables_on_every_architecture(arch: str) -> None:
    loaded = {path.stem for path in FOLDERS[arch].glob("*.policy")} - {"common_device"}
    assert loaded == set(ALLOWED) == set(DENIED)


@pytest.mark.parametrize("name", [*POLICIES, "common_device"])
def test_policies_say_the_same_but_for_what_is_listed(name: str) -> None:
    translated = on_aarch64(alternatives(name, "x86_64"))
    assert without_needless(alternatives(name, "aarch64")) == translated


def test_only_calls_that_arm_lacks_are_replaced() -> None:
    assert not (REPLACED.keys() | NEEDLESS) & ARM.syscalls.keys()


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_needed_calls_are_allowed(arch: str, name: str) -> None:
    found = judged(ALLOWED, ALLOWED_IN_DEVICES, name, arch)
    assert found == dict.fromkeys(found, ALLOW)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_neighbours_of_needed_calls_are_trapped(arch: str, name: str) -> None:
    found = judged(DENIED, DENIED_IN_DEVICES, name, arch)
    assert found == dict.fromkeys(found, TRAP)


def test_every_rule_and_every_changed_argument_on_arm(arm: Policy) -> None:
    tree, program = parse_policy(arm.path, arm.arch), decode(arm.bpf)
    for rule in tree.rules.values():
        outcomes = set()
        for args in probes(rule):
            found = run(program, rule.number, args, ARM.audit)
            assert found == tree.judge(rule.number, args, TRAP), (rule.name, args)
            outcomes.add(found)
        assert (ALLOW in outcomes) == bool(rule.allow), rule.name


def test_everything_else_is_trapped_on_arm(arm: Policy) -> None:
    tree, program = parse_policy(arm.path, arm.arch), decode(arm.bpf)
    for number in set(range(600)) - set(tree.rules):
        assert run(program, number, (), ARM.audit) == TRAP


@pytest.mark.parametrize("audit", [AUDIT_ARCH_X86_64, 0x40000003, 0x40000028, 0x800000B7, 0])
def test_foreign_abi_is_killed_on_arm(arm: Policy, audit: int) -> None:
    outcomes = {simulate(arm.bpf, number, (), audit) for number in range(300)}
    assert outcomes == {KILL_PROCESS}


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in WARDENS])
def test_dangerous_calls_are_trapped_on_arm(name: str) -> None:
    bpf = load_policy(name, arch="aarch64").bpf
    never = set(NEVER_ALLOWED) - MAY_AFTER_ALL.get(name, set())
    found = {call: simulate(bpf, ARM.syscalls[call], (), ARM.audit) for call in never}
    assert found == dict.fromkeys(never, TRAP)


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in (*WARDENS, "opener")])
def test_paths_lead_nowhere_on_arm(name: str) -> None:
    bpf = load_policy(name, arch="aarch64").bpf
    for call in ("openat", "faccessat", "readlinkat", "getcwd"):
        assert simulate(bpf, ARM.syscalls[call], (), ARM.audit) == ENOENT, call


@pytest.mark.parametrize("call", CALLS_WITHOUT_PLACE)
def test_call_of_old_programs_cannot_be_named_on_arm(call: str) -> None:
    with pytest.raises(PolicyError, match=f"x:1: unknown system call '{call}'"):
        parse({"x": f"{call}: 1".encode()}, ARM.name, ARM.syscalls)


def test_call_that_libseccomp_cannot_translate_is_refused_by_name() -> None:
    tree = parse({"x": b"file_setattr: 1"}, ARM.name, ARM.syscalls)
    with pytest.raises(PolicyError, match="file_setattr: libseccomp is too old to know it"):
        compile_tree(tree, ARM, log_failures=False)


def test_frequent_calls_are_checked_first_on_arm() -> None:
    text = b"read: 1\nwrite: 1\nppoll: 1\nepoll_pwait: 1"
    tree = parse({"x": text}, ARM.name, ARM.syscalls)
    order = []
    for frequent, rare in (("read", "ppoll"), ("ppoll", "read")):
        counts = {ARM.syscalls[frequent]: 9, ARM.syscalls[rare]: 1}
        bpf = compile_tree(tree._replace(frequency=counts), ARM, log_failures=False)
        order.append([k for code, _, _, k in decode(bpf) if code == 0x15])
    ppoll, read = ARM.syscalls["ppoll"], ARM.syscalls["read"]
    assert order[0].index(read) < order[0].index(ppoll)
    assert order[1].index(ppoll) < order[1].index(read)


def test_foreign_programs_differ_in_the_cache() -> None:
    programs = {arch: load_policy("rng_device", arch=arch).bpf for arch in ARCHITECTURES}
    assert programs["x86_64"] != programs["aarch64"]
    assert {load_policy("rng_device", arch=arch).bpf for arch in ARCHITECTURES} == set(
        programs.values()
    )
