# SPDX-License-Identifier: BSD-3-Clause
"""Make policies from recorded calls: they are exact, readable, and can be loaded."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import pytest

from seccomp import PolicyError, load_policy, syscall_number
from seccomp.actions import ALLOW, KILL_PROCESS, TRAP, Action
from seccomp.loader import parse_policy, policy_path
from seccomp.policy_text import (
    COPY_MARK,
    Writer,
    complete,
    is_copy,
    policy_text,
    runs_of,
    write_policy,
)
from seccomp.record import MAX_CLAUSES, Recording, excess, normal, recording_filter
from seccomp.rules import ALWAYS, NEVER, U64, Atom
from seccomp.simulate import simulate
from seccomp.syscalls import (
    ARCHITECTURES,
    AUDIT_ARCH_I386,
    X32_SYSCALL_BIT,
    get_arch,
    get_constants,
)
from sys_util.seccomp_notify import MARK
from tests.seccomp.test_policies import POLICIES

if TYPE_CHECKING:
    from pathlib import Path

    from seccomp.rules import Condition, PolicyTree

C: Final = get_constants("x86_64")
NOTIFY: Final = Action("user-notify")
RUN: Final = "2026-01-01 00:00 UTC; Linux 6.1; glibc 2.36; Python 3.11.2; 9 calls: crosvm run k"
RW: Final = C["PROT_READ"] | C["PROT_WRITE"]


def reference(name: str = "rng_device") -> PolicyTree:
    return parse_policy(policy_path(name, None, "x86_64"), "x86_64")


def recording(
    *calls: tuple[str, tuple[int, ...]], policy: str = "rng_device", exact: bool = True
) -> Recording:
    found = Recording("x86_64", reference(policy), exact=exact)
    for name, args in calls:
        found.add(syscall_number(name, "x86_64"), (*args, *[0] * (6 - len(args))))
    return found


def written(folder: Path, made: Recording, earlier: PolicyTree | None = None) -> PolicyTree:
    text = policy_text("own", [RUN], "x86_64", made, reference(), earlier)
    write_policy(str(folder), "own.policy", text.encode())
    return parse_policy(str(folder / "own.policy"), "x86_64")


def denied(tree: PolicyTree, name: str, *args: int) -> bool:
    full = (*args, *[0] * (6 - len(args)))
    return tree.judge(syscall_number(name, "x86_64"), full, TRAP) != ALLOW


# The recording filter


@pytest.mark.parametrize("arch_name", ARCHITECTURES)
def test_recording_filter_asks_about_every_call(arch_name: str) -> None:
    arch, bpf = get_arch(arch_name), recording_filter(arch_name)
    for number in {*arch.syscalls.values(), 2000} - {arch.syscalls["exit_group"]}:
        for args in ((), (1, 2, 3, 4, 5, 6), (MARK,) * 5, (0,) * 5 + (MARK ^ 1,)):
            assert simulate(bpf, number, args, arch.audit) == NOTIFY


@pytest.mark.parametrize("arch_name", ARCHITECTURES)
def test_recording_filter_lets_its_listener_and_the_end_pass(arch_name: str) -> None:
    arch, bpf = get_arch(arch_name), recording_filter(arch_name)
    passing = {
        name
        for name, number in arch.syscalls.items()
        if simulate(bpf, number, (0,) * 5 + (MARK,), arch.audit) == ALLOW
    }
    assert passing == {"sendmsg", "close", "exit_group"}
    assert simulate(bpf, arch.syscalls["exit_group"], (), arch.audit) == ALLOW


@pytest.mark.parametrize(
    ("arch", "number"), [(AUDIT_ARCH_I386, 3), (0, 0), (0xC000003E, X32_SYSCALL_BIT | 3)]
)
def test_recording_filter_kills_foreign_calls(arch: int, number: int) -> None:
    assert simulate(recording_filter("x86_64"), number, (), arch) == KILL_PROCESS


# What is refused while recording


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("execve", (), errno.EPERM),
        ("clone3", (), errno.EPERM),
        ("io_uring_setup", (), errno.EPERM),
        ("mmap", (0, 4096, C["PROT_EXEC"]), errno.EPERM),
        ("mprotect", (0, 4096, RW | C["PROT_EXEC"]), errno.EPERM),
        ("openat", (), errno.ENOENT),
        ("stat", (), errno.ENOENT),
        ("mmap", (0, 4096, RW), 0),
        ("read", (0, 0, 8), 0),
        ("socket", (), 0),
    ],
)
def test_refusal(name: str, args: tuple[int, ...], expected: int) -> None:
    made = recording()
    full = (*args, *[0] * (6 - len(args)))
    assert made.refusal(syscall_number(name, "x86_64"), full) == expected
    assert made.refused == ({name: 1} if expected == errno.EPERM else {})


def test_call_without_a_name_is_refused() -> None:
    made = recording()
    assert made.refusal(1999, (0,) * 6) == errno.ENOSYS
    assert made.refused == {"syscall_1999": 1}


# Conditions


@pytest.mark.parametrize(
    ("calls", "name", "text"),
    [
        pytest.param([(1, 0, 3), (2, 9, 3)], "madvise", "arg2 == MADV_WILLNEED", id="one"),
        pytest.param(
            [(0, 0, 4), (0, 0, 8), (0, 0, 4)],
            "madvise",
            "arg2 == MADV_DONTNEED || arg2 == MADV_FREE",
            id="two",
        ),
        pytest.param(
            [(0, 1, 3, 0x22), (0, 1, 0, 0x4022)],
            "mmap",
            "(arg2 == PROT_NONE && arg3 == MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE) || "
            "(arg2 == PROT_READ | PROT_WRITE && arg3 == MAP_PRIVATE | MAP_ANONYMOUS)",
            id="joined",
        ),
        pytest.param([(3, 0, 8)] * 9, "read", "arg2 == 8", id="length"),
        pytest.param([(3, 0, 8), (3, 0, 64)], "read", "arg2 >= 8 && arg2 <= 64", id="lengths"),
        pytest.param([(3, 0, 0), (3, 0, 64)], "read", "arg2 <= 64", id="from-nothing"),
        pytest.param([(3, 0, 1), (3, 0, 9999)], "read", "1", id="any-length"),
        pytest.param([(3, 0, 1, 0, 0)], "sendto", "arg3 == 0 && arg4 == 0", id="no-address"),
        pytest.param([(3, 0, 1, 0, 7), (3, 0, 1, 0, 0)], "sendto", "arg3 == 0", id="address"),
        pytest.param([(3, 9), (4, 0x54AA)], "ioctl", "arg1 == 9 || arg1 == 0x54aa", id="unnamed"),
        pytest.param([(3, U64)], "fcntl", "arg1 == -1", id="negative"),
        pytest.param([(7, 8, 9), (1, 2, 3)], "epoll_ctl", "1", id="harmless"),
    ],
)
def test_arguments_that_matter_become_the_condition(
    calls: list[tuple[int, ...]], name: str, text: str, tmp_path: Path
) -> None:
    tree = written(tmp_path, recording(*((name, args) for args in calls)))
    rule = tree.rules[syscall_number(name, "x86_64")]
    assert " ".join(rule.text.split()) == text
    for args in calls:
        assert not denied(tree, name, *args)


def test_length_is_not_bounded_where_the_policy_so_far_does_not(tmp_path: Path) -> None:
    made = recording(("write", (1, 0, 4000)), ("read", (1, 0, 7)), policy="vmm")
    tree = written(tmp_path, made)
    assert not denied(tree, "write", 1, 0, 1 << 30)
    assert not denied(tree, "read", 1, 0, 1 << 30)


def test_too_many_different_calls_become_no_condition(tmp_path: Path) -> None:
    made = recording(*(("ioctl", (3, number * 2)) for number in range(MAX_CLAUSES + 1)))
    assert made.conditions()["ioctl"] == ALWAYS
    assert not denied(written(tmp_path, made), "ioctl", 3, 1)


def test_exact_policy_allows_nothing_else(tmp_path: Path) -> None:
    tree = written(tmp_path, recording(("getrandom", (0, 16, 0))))
    allowed = {rule.name for rule in tree.rules.values() if rule.allow}
    assert allowed == {"exit_group", "getrandom", "write"}
    assert denied(tree, "getrandom", 0, 16, 1)
    assert denied(tree, "write", 3, 0, 129)


def test_policy_allows_at_any_time_what_the_policy_so_far_did(tmp_path: Path) -> None:
    tree = written(tmp_path, recording(("getrandom", (0, 16, 0)), exact=False))
    assert not denied(tree, "mmap", 0, 4096, RW, 0x22)
    assert denied(tree, "mmap", 0, 4096, RW | 4, 0x22)
    assert not denied(tree, "brk")
    assert denied(tree, "futex"), "the policy so far has none"
    assert denied(tree, "epoll_wait"), "not called"


def test_what_was_answered_with_an_errno_stays_so(tmp_path: Path) -> None:
    tree = written(tmp_path, recording())
    number = syscall_number("openat", "x86_64")
    assert tree.judge(number, (0,) * 6, TRAP) == Action("errno", errno.ENOENT)


def test_last_words_are_always_allowed(tmp_path: Path) -> None:
    tree = written(tmp_path, recording(("write", (3, 0, 512))))
    assert not denied(tree, "exit_group")
    assert not denied(tree, "write", 3, 0, 7)
    assert not denied(tree, "write", 3, 0, 512)
    assert denied(tree, "write", 3, 0, 511)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        pytest.param(((), (Atom(0, "==", 1),)), ALWAYS, id="covered-by-all"),
        pytest.param(
            ((Atom(0, "==", 4),), (Atom(0, "<=", 8),)), ((Atom(0, "<=", 8),),), id="in-range"
        ),
        pytest.param(
            ((Atom(0, "==", 4), Atom(1, "==", 1)), (Atom(0, "==", 4),)),
            ((Atom(0, "==", 4),),),
            id="narrower",
        ),
        pytest.param(NEVER, NEVER, id="nothing"),
    ],
)
def test_clause_that_others_cover_is_left_out(condition: Condition, expected: Condition) -> None:
    assert normal(condition) == expected


# Policies compared


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_exceeds_itself(name: str) -> None:
    assert excess(reference(name), reference(name)) == []


@pytest.mark.parametrize(
    ("name", "args", "within"),
    [
        ("madvise", (0, 0, 4), True),
        ("madvise", (0, 0, 9), False),
        ("getrandom", (0, 16, 1), False),
        ("read", (0, 0, 8), True),
        ("socket", (1, 2, 3), False),
        ("epoll_wait", (1, 2, 3), True),
    ],
)
def test_excess_is_what_the_other_denies(
    name: str, args: tuple[int, ...], within: bool, tmp_path: Path
) -> None:
    found = excess(written(tmp_path, recording((name, args))), reference())
    assert [each.name for each in found] == ([] if within else [name])


# Files


def test_merged_policy_allows_both_runs(tmp_path: Path) -> None:
    first = written(tmp_path, recording(("madvise", (0, 0, 4)), ("mremap", (0, 1, 2, 1))))
    made = recording(("madvise", (0, 0, 8)), ("fdatasync", ()))
    tree = written(tmp_path, made, first)
    for advice in (4, 8):
        assert not denied(tree, "madvise", 0, 0, advice)
    assert denied(tree, "madvise", 0, 0, 9)
    assert not denied(tree, "mremap", 0, 1, 2, 1)
    assert not denied(tree, "fdatasync")


def test_merged_policy_keeps_errnos_and_default(tmp_path: Path) -> None:
    (tmp_path / "old.policy").write_text("@default kill-process\nioctl: arg1 == 1; return ENOTTY\n")
    old = parse_policy(str(tmp_path / "old.policy"), "x86_64")
    tree = written(tmp_path, recording(("ioctl", (3, 2))), old)
    number = syscall_number("ioctl", "x86_64")
    assert tree.default == KILL_PROCESS
    assert [tree.judge(number, (3, n, 0, 0, 0, 0), TRAP) for n in (1, 2, 3)] == [
        *(ALLOW, ALLOW),
        Action("errno", errno.ENOTTY),
    ]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_written_as_it_was_read(name: str, tmp_path: Path) -> None:
    tree, writer = reference(name), Writer("x86_64")
    lines = [
        line
        for rule in tree.rules.values()
        if rule.allow
        for line in writer.statement(rule.name, rule.allow, rule.otherwise)
    ]
    (tmp_path / "copy.policy").write_text("\n".join(lines) + "\n")
    copy = parse_policy(str(tmp_path / "copy.policy"), "x86_64")
    assert excess(copy, tree) == excess(tree, copy) == []
    assert max(map(len, lines)) <= 100


def test_recorded_policy_compiles_and_keeps_its_runs(tmp_path: Path) -> None:
    made = recording(("mmap", (0, 1, 3, 0x22)), ("ioctl", (3, C["KVM_RUN"])), exact=False)
    written(tmp_path, made)
    bpf = load_policy("own", directory=str(tmp_path), arch="x86_64").bpf
    assert simulate(bpf, syscall_number("ioctl", "x86_64"), (3, C["KVM_RUN"])) == ALLOW
    assert simulate(bpf, syscall_number("ioctl", "x86_64"), (3, C["KVM_CREATE_VM"])) == TRAP
    assert runs_of((tmp_path / "own.policy").read_bytes()) == [RUN]


def test_oldest_runs_are_forgotten() -> None:
    runs = [f"{number}: crosvm run" for number in range(40)]
    text = policy_text("own", runs, "x86_64", recording(), reference(), None)
    assert runs_of(text.encode()) == runs[-32:]


def test_directory_is_completed_with_marked_copies(tmp_path: Path) -> None:
    (tmp_path / "a.policy").write_bytes(b"mine")
    sources = [("/x/a.policy", b"read: 1\n"), ("/x/b.policy", b"write: 1\n")]
    assert complete(str(tmp_path), sources) == ["b.policy"]
    assert (tmp_path / "a.policy").read_bytes() == b"mine"
    assert (tmp_path / "b.policy").read_bytes() == COPY_MARK + b"write: 1\n"
    assert is_copy((tmp_path / "b.policy").read_bytes())
    assert not is_copy(b"# own\n")


def test_policy_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "own.policy").mkdir()
    with pytest.raises(PolicyError, match=r"own\.policy: Is a directory"):
        write_policy(str(tmp_path), "own.policy", b"read: 1\n")
    with pytest.raises(PolicyError, match="No such file"):
        write_policy(str(tmp_path / "nowhere"), "own.policy", b"read: 1\n")
    assert [path.name for path in tmp_path.iterdir()] == ["own.policy"]
