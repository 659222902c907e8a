# SPDX-License-Identifier: BSD-3-Clause
"""minijail's grammar: what the parser accepts, and how it refuses the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from seccomp.actions import KILL_PROCESS, KILL_THREAD, LOG, TRAP, Action
from seccomp.errors import PolicyError
from seccomp.loader import parse_policy
from seccomp.parser import parse
from seccomp.rules import ALWAYS, NEVER, U64, Atom, Condition, PolicyTree
from seccomp.syscalls import get_arch

if TYPE_CHECKING:
    from pathlib import Path

ARCH = get_arch("x86_64")
READ = 0
IOCTL = 16


def parsed(text: str | bytes) -> PolicyTree:
    data = text.encode() if isinstance(text, str) else text
    return parse({"x.policy": data}, ARCH.name, ARCH.syscalls)


def one(op: str, value: int, arg: int = 0) -> Condition:
    return ((Atom(arg, op, value & U64),),)


@pytest.mark.parametrize(
    ("body", "condition"),
    [
        ("1", ALWAYS),
        ("allow", ALWAYS),
        ("arg0 == 0", one("==", 0)),
        ("arg1 != 10", one("!=", 10, 1)),
        ("arg0 < 0x1F", one("<", 31)),
        ("arg0 <= 010", one("<=", 8)),
        ("arg2 > 0X10", one(">", 16, 2)),
        ("arg0 >= -1", one(">=", U64)),
        ("arg0 & 6", one("&", 6)),
        ("arg2 in ~PROT_EXEC", one("in", ~4, 2)),
        ("arg3 == MAP_PRIVATE|MAP_ANONYMOUS", one("==", 0x22, 3)),
        ("arg3 in ~(O_CREAT | O_EXCL)", one("in", ~0o300, 3)),
        ("arg0 == (1 | (2 | 4))", one("==", 7)),
        ("arg0 == AT_FDCWD", one("==", -100)),
        ("arg1 == KVM_RUN", one("==", 0xAE80, 1)),
        ("arg0 == 0xffffffffffffffff", one("==", U64)),
        ("arg1 == -0x8000000000000000", one("==", 1 << 63, 1)),
        ("arg0 == 1 || arg0 == 2", one("==", 1) + one("==", 2)),
        ("arg0 == 1 && arg1 == 2", ((Atom(0, "==", 1), Atom(1, "==", 2)),)),
        (
            "arg0 == 1 && arg1 == 2 || arg2 == 3",
            ((Atom(0, "==", 1), Atom(1, "==", 2)), (Atom(2, "==", 3),)),
        ),
        (
            "(arg0 == 1 || arg0 == 2) && arg1 == 3",
            ((Atom(0, "==", 1), Atom(1, "==", 3)), (Atom(0, "==", 2), Atom(1, "==", 3))),
        ),
        ("arg0 == 1 || arg0 == 1", one("==", 1)),
        ("arg0 == \\\n  1 # one", one("==", 1)),
        ("arg0 == 1 || \\\n # arg0 == 2 || \\\n arg0 == 3", one("==", 1) + one("==", 3)),
        ("1\r\n", ALWAYS),
    ],
)
def test_condition_is_understood(body: str, condition: Condition) -> None:
    rule = parsed(f"read: {body}").rules[READ]
    assert (rule.allow, rule.otherwise) == (condition, None)


@pytest.mark.parametrize(
    ("body", "condition", "otherwise"),
    [
        ("return ENOENT", NEVER, Action("errno", 2)),
        ("return 1", NEVER, Action("errno", 1)),
        ("return 0x5", NEVER, Action("errno", 5)),
        ("kill", NEVER, KILL_PROCESS),
        ("kill-process", NEVER, KILL_PROCESS),
        ("kill-thread", NEVER, KILL_THREAD),
        ("trap", NEVER, TRAP),
        ("log", NEVER, LOG),
        ("arg0 == 1; return EPERM", one("==", 1), Action("errno", 1)),
    ],
)
def test_other_outcome_is_understood(body: str, condition: Condition, otherwise: Action) -> None:
    rule = parsed(f"read: {body}").rules[READ]
    assert (rule.allow, rule.otherwise) == (condition, otherwise)


def test_group_gives_every_name_the_rule() -> None:
    rules = parsed("{ read, write,close }: arg0 == 3").rules
    assert [rules[number].allow for number in (0, 1, 3)] == [one("==", 3)] * 3


def test_same_call_twice_is_joined() -> None:
    rule = parsed("read: arg0 == 1\nread: arg0 == 2\nread: return EPERM\nread: return EPERM").rules
    assert rule[READ].allow == one("==", 1) + one("==", 2)
    assert rule[READ].otherwise == Action("errno", 1)


def test_same_call_allowed_without_condition_is_allowed() -> None:
    assert parsed("read: arg0 == 1\nread: 1").rules[READ].allow == ALWAYS


@pytest.mark.parametrize("word", ["kill", "kill-process", "kill-thread", "trap"])
def test_default_restrictive_is_taken(word: str) -> None:
    assert parsed(f"@default {word}\nread: 1").default is not None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("reed: 1", r"x.policy:1: unknown system call 'reed'"),
        ("read: 1\n\nread : FOO", r"x.policy:3: unknown action 'FOO'"),
        ("read: arg0 == FOO", r"unknown constant 'FOO'"),
        ("read: arg0 == 1 |", r"expected a constant before the end of the line"),
        ("read: arg0 == (1 | 2", r"parenthesis is never closed: '\('"),
        ("read: (arg0 == 1", r"parenthesis is never closed"),
        ("read: arg0 == (1 2)", r"expected '\)' before '2'"),
        ("read: arg0 == 1)", r"unexpected '\)'"),
        ("read: arg6 == 1", r"arguments are arg0 to arg5, not 'arg6'"),
        ("read: arg == 1", r"not 'arg'"),
        ("read: arg00 == 1", r"not 'arg00'"),
        ("read: arg0 = 1", r"unexpected character '='"),
        ("read: arg0 1", r"expected an operator, not '1'"),
        ("read: arg0", r"expected an operator before the end"),
        ("read: arg0 == 1 &&", r"expected an argument such as arg0 before the end"),
        ("read: arg0 == 1 || 1", r"expected an argument such as arg0, not '1'"),
        ("read: arg0 == ~~1", r"doubled '~'"),
        ("read: arg0 == 08", r"not a number: '08'"),
        ("read: arg0 == 0x", r"not a number: '0x'"),
        ("read: arg0 == 12ab", r"not a number: '12ab'"),
        ("read: arg0 == 1_0", r"not a number: '1_0'"),
        ("read: arg0 == 0x10000000000000000", r"does not fit into 64 bits"),
        ("read: arg0 == -0x8000000000000001", r"does not fit into 64 bits"),
        ("read: arg0 == " + "9" * 10_000, r"does not fit into 64 bits: '9{40}…'"),
        ("read: arg0 == " + "(" * 1000 + "1" + ")" * 1000, r"nested deeper than 16"),
        ("read: " + "(" * 1000 + "arg0 == 1", r"nested deeper than 16"),
        (
            "read: " + "&&".join(["(arg0 == 1 || arg0 == 2)"] * 11),
            r"more than 1024 alternatives",
        ),
        ("read", r"expected ':' before the end of the line"),
        ("read 1", r"expected ':', not '1'"),
        (": 1", r"expected the name of a system call, not ':'"),
        ("read:", r"expected an argument such as arg0 before the end"),
        ("read: 1 1", r"unexpected '1'"),
        ("read: 2", r"unknown action '2'"),
        ("read: trace", r"unknown action 'trace'"),
        ("read: user-notify", r"unknown action 'user-notify'"),
        ("read: return", r"expected an errno before the end"),
        ("read: return EFOO", r"unknown constant 'EFOO'"),
        ("read: return O_RDONLY", r"expected an errno, not 'O_RDONLY'"),
        ("read: return 4096", r"errno beyond 4095: '4096'"),
        ("read: return -1", r"expected an errno, not '-1'"),
        ("read: arg0 == 1; kill", r"expected 'return', not 'kill'"),
        ("read: arg0 == 1;", r"expected 'return' before the end"),
        ("{read, write: 1", r"brace is never closed: '{'"),
        ("{}: 1", r"expected the name of a system call, not '}'"),
        ("{read,}: 1", r"expected the name of a system call, not '}'"),
        ("read: return EPERM\nread: return EIO", r"x.policy:2: .*contradicts.*x.policy:1"),
        ("@default allow\nread: 1", r"@default takes one of .*, not 'allow'"),
        ("@default log\nread: 1", r"@default takes one of .*, not 'log'"),
        ("@default", r"@default without an action"),
        ("@denylist\nread: return EPERM", r"not supported: '@denylist'"),
        ("@foo", r"unknown directive '@foo'"),
        ("@include", r"expected a path"),
        ("@include # no", r"expected a path"),
        ("@include missing.policy\n", r"x.policy:1: file missing.policy does not exist"),
        ("@frequency missing\n", r"file missing does not exist"),
        ("read: 1 \\", r"x.policy:1: the file ends in the middle of a statement"),
        ("", r"no system call is mentioned"),
        ("# only words\n", r"no system call is mentioned"),
        (b"read: 1\x00", r"unexpected character '\\x00'"),
        (b"# \xff\n", r"x.policy:1: byte 0xff is not UTF-8"),
        ("read: 1\n" + "x" * 100_000, r"x.policy:2: line longer than 16384"),
        ("réad: 1", r"unexpected character 'é'"),
        ("read: $1", r"unexpected character '\$'"),
        ("read[arch=arm]: 1", r"unexpected character '\['"),
    ],
)
def test_bad_policy_is_refused_with_place_and_word(text: str | bytes, reason: str) -> None:
    with pytest.raises(PolicyError, match=reason):
        parsed(text)


def write(folder: Path, **files: str) -> str:
    for name, text in files.items():
        (folder / f"{name}.policy").write_text(text)
    return str(folder / "main.policy")


def test_include_is_relative_to_the_including_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", a="@include b.policy\nread: 1", b="write: 1")
    rules = parse_policy(write(tmp_path, main="@include ./sub/a.policy # both\nclose: 1")).rules
    assert sorted(rules) == [0, 1, 3]


def test_include_takes_an_absolute_path(tmp_path: Path) -> None:
    path = write(tmp_path, main=f"@include {tmp_path}/a.policy\n", a="read: 1")
    assert list(parse_policy(path).rules) == [READ]


def test_include_twice_by_two_ways_is_joined(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        main="@include a.policy\n@include b.policy",
        a="@include c.policy",
        b="@include c.policy\nioctl: arg1 == 2",
        c="ioctl: arg1 == 1\nopen: return ENOENT",
    )
    assert parse_policy(path).rules[IOCTL].allow == one("==", 1, 1) + one("==", 2, 1)


def test_include_cycle_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, main="@include a.policy", a="read: 1\n@include main.policy")
    with pytest.raises(PolicyError, match=r"a.policy:2: file includes itself: 'main.policy'"):
        parse_policy(path)


def test_include_too_deep_is_refused(tmp_path: Path) -> None:
    files = {f"p{n}": f"@include p{n + 1}.policy" for n in range(12)}
    path = write(tmp_path, main="@include p0.policy", p12="read: 1", **files)
    with pytest.raises(PolicyError, match="nested deeper than 10"):
        parse_policy(path)


def test_include_ten_deep_is_taken(tmp_path: Path) -> None:
    files = {f"p{n}": f"@include p{n + 1}.policy" for n in range(9)}
    path = write(tmp_path, main="@include p0.policy", p9="read: 1", **files)
    assert list(parse_policy(path).rules) == [READ]


def test_error_in_an_include_names_the_include(tmp_path: Path) -> None:
    path = write(tmp_path, main="read: 1\n@include a.policy", a="\n\nfoo: 1")
    with pytest.raises(PolicyError, match=r"a.policy:3: unknown system call 'foo'"):
        parse_policy(path)


def test_frequency_is_read(tmp_path: Path) -> None:
    (tmp_path / "freq").write_text("read: 10\n{read, write}: 5\n")
    path = write(tmp_path, main="@frequency freq\nread: 1\n")
    assert parse_policy(path).frequency == {0: 15, 1: 5}


@pytest.mark.parametrize("text", ["read: -1", "read: x", "read:", "read: 1 2", "foo: 1"])
def test_bad_frequency_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "freq").write_text(text)
    with pytest.raises(PolicyError, match="freq:1"):
        parse_policy(write(tmp_path, main="@frequency freq\nread: 1\n"))
