# SPDX-License-Identifier: BSD-3-Clause
"""Policies explained in English, and the rule that decides about a call."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from seccomp import PolicyError
from seccomp.actions import ALLOW, TRAP, Action
from seccomp.explain import (
    Explainer,
    as_fields,
    as_lines,
    consequence,
    decide,
    explain,
    read_argument,
)
from seccomp.loader import parse_policy
from seccomp.rules import U64
from seccomp.syscalls import ARCHITECTURES, get_arch, get_constants
from seccomp.verify import probes
from seccomp.vocabulary import MEANINGS, Vocabulary, is_ioctl
from tests.seccomp.test_policies import POLICIES

if TYPE_CHECKING:
    from pathlib import Path

    from seccomp.explain import Explanation

ENOENT: Final = Action("errno", 2)
CONSTANTS: Final = get_constants("x86_64")

OWN: Final = """\
@default kill-process
read: 1
write: arg2 <= 128 || arg2 == 4096
ioctl: arg1 == KVM_RUN; return ENOTTY
mmap: arg2 in ~(PROT_EXEC | PROT_GROWSDOWN) && arg3 & MAP_ANONYMOUS | MAP_PRIVATE
madvise: arg2 == MADV_FREE || arg2 == MADV_COLD
recvmsg: arg2 in MSG_PEEK | MSG_DONTWAIT
close: arg0 != 3 && arg0 >= 2 && arg0 < 9 && arg0 > 1
{ptrace, kill}: trap
{open, stat}: return ENOENT
"""


@pytest.fixture
def own(tmp_path: Path) -> Explanation:
    (tmp_path / "own.policy").write_text(OWN)
    return explain("own", directory=str(tmp_path), arch="x86_64")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("write", "either length (arg2) is at most 128; or length (arg2) is 4096"),
        ("ioctl", "request (arg1) is KVM_RUN"),
        (
            "mmap",
            (
                "protection (arg2) has none of PROT_EXEC, PROT_GROWSDOWN and flags (arg3) has any "
                "of MAP_PRIVATE, MAP_ANONYMOUS"
            ),
        ),
        ("madvise", "advice (arg2) is one of MADV_FREE, MADV_COLD"),
        ("recvmsg", "flags (arg2) has nothing but MSG_PEEK, MSG_DONTWAIT"),
        ("close", "arg0 is not 3 and arg0 is at least 2 and arg0 is below 9 and arg0 is above 1"),
    ],
)
def test_condition_in_words(own: Explanation, call: str, words: str) -> None:
    rule = next(rule for rule in own.rules() if rule.name == call)
    told = Explainer("x86_64").condition(call, rule.allow)
    assert told.replace("0x1000", "4096") == words


def test_lines_tell_everything(own: Explanation, tmp_path: Path) -> None:
    text = re.sub(r"\s+", " ", "\n".join(as_lines(own)))
    assert f"own (x86_64, from {tmp_path}: own.policy) allows 7 system calls" in text
    assert "any other is killed: the process ends at once, and nothing is reported" in text
    assert "Allowed with any arguments: read " in text
    assert "request (arg1) is KVM_RUN; else answered with ENOTTY, and not carried out" in text
    assert "Answered with ENOENT, and not carried out: open, stat" in text
    assert re.search("Trapped: the call does not happen[^:]*: kill, ptrace", text)


def test_no_line_is_wider_than_a_page() -> None:
    for name in POLICIES:
        for line in as_lines(explain(name, arch="x86_64")):
            assert len(line) <= 100, line


def test_fields_tell_every_condition_and_place(own: Explanation) -> None:
    fields = as_fields(own)
    calls = fields["calls"]
    assert isinstance(calls, list)
    by_name = {call["name"]: call for call in calls}
    assert fields["default"] == "kill-process"
    assert not fields["built_in"]
    assert by_name["read"]["allowed_if_any_of"] == [[]]
    assert by_name["open"]["allowed_if_any_of"] == []
    assert by_name["open"]["otherwise"] == "return ENOENT"
    assert by_name["ioctl"]["allowed_if_any_of"] == [
        [{"arg": 1, "op": "==", "value": 0xAE80, "text": "request (arg1) is KVM_RUN"}]
    ]
    assert by_name["ioctl"]["where"] == [f"{own.path}:4"]


@pytest.mark.parametrize(
    ("call", "words", "action", "line"),
    [
        ("read", [], ALLOW, "own.policy:2: read: 1"),
        ("write", ["1", "0", "129"], Action("kill-process"), "own.policy:3: .*: does not hold"),
        ("ioctl", ["3", "KVM_RUN"], ALLOW, "own.policy:4: ioctl: arg1 == KVM_RUN"),
        ("ioctl", ["3", "KVM_CREATE_VM"], Action("errno", 25), "own.policy:4: "),
        ("ptrace", [], TRAP, "own.policy:9: ptrace: trap"),
        ("open", ["1"], ENOENT, "own.policy:10: open: return ENOENT"),
        ("execve", [], Action("kill-process"), "own.policy:1: no rule names this call"),
        ("recvmsg", ["3", "0", "MSG_PEEK|MSG_DONTWAIT"], ALLOW, "own.policy:7: "),
        ("recvmsg", ["3", "0", "~0"], Action("kill-process"), "own.policy:7: .*does not hold"),
    ],
)
def test_decision_names_its_rule(
    own: Explanation, call: str, words: list[str], action: Action, line: str
) -> None:
    decision = decide(own, call, words)
    assert decision.action == action
    assert len(decision.reasons) == 1
    assert re.search(line, decision.reasons[0]), decision.reasons


def test_decision_names_the_deciding_part_of_a_long_rule() -> None:
    policy = explain("vmm", arch="x86_64")
    decision = decide(policy, "ioctl", ["3", "KVM_IRQFD"])
    assert decision.call == "ioctl(3, KVM_IRQFD)"
    assert decision.reasons[0].endswith("ioctl: … arg1 == KVM_IRQFD …")


def test_decision_of_a_joined_rule_names_the_statement_that_allows() -> None:
    policy = explain("vmm", arch="x86_64")
    (irqfd,) = decide(policy, "ioctl", ["3", "KVM_IRQFD"]).reasons
    (terminal,) = decide(policy, "ioctl", ["0", "TCGETS"]).reasons
    assert irqfd.partition(": ")[0] != terminal.partition(": ")[0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", POLICIES)
def test_every_rule_decides_as_the_compiled_filter(name: str, arch: str) -> None:
    policy = explain(name, arch=arch)
    for rule in policy.rules():
        for args in list(probes(rule))[:4]:
            decision = decide(policy, rule.name, [str(arg) for arg in args])
            assert decision.action == policy.tree.judge(rule.number, args, TRAP)
            assert decision.reasons
    assert decide(policy, "execve", []).action == TRAP


@pytest.mark.parametrize(
    ("call", "words", "reason"),
    [
        ("rread", [], "unknown system call 'rread', did you mean read?"),
        ("", [], "unknown system call ''"),
        ("x" * 99, [], f"unknown system call '{'x' * 59}$"),
        ("read", ["1"] * 7, "7 arguments; a system call has at most 6"),
        ("mmap", ["0", "PROT_REED"], "'PROT_REED' is neither .* did you mean PROT_READ?"),
        ("mmap", ["PROT_READ|"], "'' in 'PROT_READ|' is neither a number nor a constant"),
        ("open", ["/etc/passwd"], "'/etc/passwd': a filter sees addresses"),
        ("open", ['"x"'], "a filter sees addresses"),
        ("read", ["0x10000000000000000"], "does not fit into 64 bits"),
        ("read", ["-9223372036854775809"], "does not fit into 64 bits"),
        ("read", ["1.5"], "neither a number"),
        ("read", ["\x1b[2J"], r"'\\x1b\[2J' is neither"),
        ("read", ["~" * 40 + "x"], "neither a number"),
    ],
)
def test_what_cannot_be_read_is_named(
    own: Explanation, call: str, words: list[str], reason: str
) -> None:
    with pytest.raises(PolicyError, match=reason):
        decide(own, call, words)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("0", 0),
        ("0x10", 16),
        ("0o17", 15),
        ("-1", U64),
        ("AT_FDCWD", U64 - 99),
        ("PROT_READ|PROT_WRITE", 3),
        ("PROT_READ | 4", 5),
        ("~PROT_EXEC", U64 - 4),
        ("~~1", 1),
        ("18446744073709551615", U64),
    ],
)
def test_argument_is_a_number_or_constants(word: str, value: int) -> None:
    assert read_argument(word, CONSTANTS) == value


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (TRAP, "trapped: "),
        (Action("kill-thread"), "killed: the thread"),
        (Action("log"), "carried out and logged"),
        (Action("errno", 38), "answered with ENOSYS, and not carried out"),
    ],
)
def test_consequence(action: Action, words: str) -> None:
    assert consequence(action).startswith(words)


@pytest.mark.parametrize(
    ("call", "arg", "value", "text"),
    [
        ("mmap", 2, 0, "PROT_NONE"),
        ("mmap", 3, 0x22, "MAP_PRIVATE | MAP_ANONYMOUS"),
        ("mmap", 3, 1 << 40 | 2, "MAP_PRIVATE | 0x10000000000"),
        ("mmap", 2, U64 - 4, "~PROT_EXEC"),
        ("mmap", 2, U64 - 6, "~(PROT_WRITE | PROT_EXEC)"),
        ("socket", 0, 1, "AF_UNIX"),
        ("socket", 1, 0x80805, "SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC"),
        ("socket", 1, 0x8, "8"),
        ("prctl", 0, 15, "PR_SET_NAME"),
        ("prctl", 0, 1, "PR_SET_PDEATHSIG"),
        ("fcntl", 1, 0, "F_DUPFD"),
        ("fcntl", 1, 6, "F_SETLK"),
        ("kill", 1, 6, "SIGABRT"),
        ("kill", 1, 35, "35"),
        ("ioctl", 1, 0x5412, "TIOCSTI"),
        ("ioctl", 1, 26, "26"),
        ("madvise", 2, 0x66, "MADV_GUARD_INSTALL"),
        ("openat", 0, U64 - 99, "-100"),
        ("read", 2, 4096, "0x1000"),
    ],
)
def test_value_is_called_by_name(call: str, arg: int, value: int, text: str) -> None:
    assert Vocabulary("x86_64").value(call, arg, value) == text


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_name_of_a_value_is_that_value(arch: str) -> None:
    words, constants = Vocabulary(arch), get_constants(arch)
    for call, meanings in MEANINGS.items():
        for arg in meanings:
            for value in range(0, 1 << 17, 257):
                text = words.value(call, arg, value)
                assert read_argument(text, constants) == value, (call, arg)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_is_called_an_ioctl_is_one(arch: str) -> None:
    constants = get_constants(arch)
    assert is_ioctl("KVM_RUN", constants["KVM_RUN"])
    assert is_ioctl("VHOST_SET_OWNER", constants["VHOST_SET_OWNER"])
    assert is_ioctl("TUNSETIFF", constants["TUNSETIFF"])
    assert not is_ioctl("KVM_CAP_IRQCHIP", constants["KVM_CAP_IRQCHIP"])
    assert not is_ioctl("VHOST_F_LOG_ALL", constants["VHOST_F_LOG_ALL"])


def test_calls_that_are_explained_exist() -> None:
    known = {name for arch in ARCHITECTURES for name in get_arch(arch).syscalls}
    assert MEANINGS.keys() <= known
    assert parse_policy(explain("vmm", arch="x86_64").path).rules


def test_signal_is_told_to_be_for_the_process_itself() -> None:
    vmm = explain("vmm", arch="x86_64")
    assert "process (arg0) is the one that calls and signal" in " ".join(as_lines(vmm))
    decision = decide(vmm, "tgkill", ["1", "1", "SIGABRT"])
    assert decision.action == ALLOW
    assert decision.reasons[-1] == "in a run only where process (arg0) is the one that calls"
    assert "in a run" not in " ".join(decide(vmm, "tgkill", ["1", "1", "9"]).reasons)
    assert "in a run" not in " ".join(decide(vmm, "getpid", []).reasons)


def test_json_tells_which_calls_are_for_the_process_itself() -> None:
    calls = as_fields(explain("warden", arch="aarch64"))["calls"]
    assert isinstance(calls, list)
    assert [each["name"] for each in calls if each["own_process_only"]] == ["tgkill"]
