# SPDX-License-Identifier: BSD-3-Clause
"""A compiled program does exactly what its policy says."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from seccomp.actions import ALLOW, KILL_PROCESS, LOG, TRAP, Action
from seccomp.compiler import compile_tree, libseccomp_path
from seccomp.cubes import atom_cubes
from seccomp.errors import PolicyError
from seccomp.parser import parse
from seccomp.rules import U64, Atom, PolicyTree, Rule
from seccomp.simulate import decode, run, simulate
from seccomp.syscalls import AUDIT_ARCH_X86_64, get_arch
from seccomp.verify import probes, verify

ARCH = get_arch("x86_64")
EDGES = (0, 1, 2, 3, 5, 7, 0x1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1)
NUMBERS = st.one_of(st.sampled_from([*EDGES, *(U64 - edge for edge in EDGES)]), st.integers(0, U64))
OPERATORS = st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "&", "in"])
SIMPLE_OPERATORS = st.sampled_from(["==", "==", "==", "&", "in", "<"])


def atoms(
    numbers: st.SearchStrategy[int], operators: st.SearchStrategy[str]
) -> st.SearchStrategy[Atom]:
    return st.builds(Atom, st.integers(0, 2), operators, numbers)


def conditions(
    operators: st.SearchStrategy[str], clauses: int, size: int
) -> st.SearchStrategy[tuple[tuple[Atom, ...], ...]]:
    small = st.one_of(st.integers(0, 300), st.sampled_from(EDGES))
    clause = st.lists(atoms(small, operators), min_size=1, max_size=size).map(tuple)
    return st.lists(clause, min_size=1, max_size=clauses).map(tuple)


def tree_of(*rules: Rule) -> PolicyTree:
    return PolicyTree({rule.number: rule for rule in rules}, None, {})


def compiled_or_refused(tree: PolicyTree) -> list[tuple[int, int, int, int]]:
    """Compile; a condition that is too large for BPF gives the empty program."""
    try:
        return decode(compile_tree(tree, ARCH, log_failures=False))
    except PolicyError as error:
        if "too complex" in str(error) or "BPF instructions" in str(error):
            return []
        raise


def compiled(text: str, *, log_failures: bool = False) -> bytes:
    tree = parse({"x.policy": text.encode()}, ARCH.name, ARCH.syscalls)
    return compile_tree(tree, ARCH, log_failures=log_failures)


@given(atoms(NUMBERS, OPERATORS), NUMBERS, st.data())
def test_atom_cubes_cover_exactly_what_the_atom_allows(
    atom: Atom, number: int, data: st.DataObject
) -> None:
    near = data.draw(st.sampled_from([number, atom.value, atom.value - 1, atom.value + 1])) & U64
    args = [near] * 6
    covered = any(near & cube.mask == cube.value for cube in atom_cubes(atom))
    assert covered == atom.holds(args)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    conditions(OPERATORS, clauses=2, size=2),
    st.sampled_from([None, Action("errno", 1), KILL_PROCESS]),
    st.lists(st.lists(NUMBERS, min_size=3, max_size=3), max_size=20),
)
def test_program_equals_policy_for_any_condition(
    condition: tuple[tuple[Atom, ...], ...], otherwise: Action | None, calls: list[list[int]]
) -> None:
    tree = tree_of(Rule("write", 1, condition, otherwise, "", ""))
    program = compiled_or_refused(tree)
    assume(program)
    for call in calls:
        args = [*call, 0, 0, 0]
        assert run(program, 1, args, AUDIT_ARCH_X86_64) == tree.judge(1, args, TRAP)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    conditions(SIMPLE_OPERATORS, clauses=8, size=3),
    conditions(SIMPLE_OPERATORS, clauses=8, size=3),
    st.lists(st.lists(st.sampled_from(EDGES), min_size=3, max_size=3), max_size=30),
)
def test_program_equals_policy_for_long_lists(
    first: tuple[tuple[Atom, ...], ...],
    second: tuple[tuple[Atom, ...], ...],
    calls: list[list[int]],
) -> None:
    tree = tree_of(Rule("read", 0, first, None, "", ""), Rule("write", 1, second, None, "", ""))
    program = compiled_or_refused(tree)
    assume(program)
    for number in (0, 1):
        for call in calls:
            args = [*call, 0, 0, 0]
            assert run(program, number, args, AUDIT_ARCH_X86_64) == tree.judge(number, args, TRAP)


@pytest.mark.parametrize(
    ("text", "number", "args", "action"),
    [
        ("read: 1", 0, (), ALLOW),
        ("read: 1", 1, (), TRAP),
        ("@default kill\nread: 1", 1, (), KILL_PROCESS),
        ("read: return EPERM", 0, (), Action("errno", 1)),
        ("read: kill-thread", 0, (), Action("kill-thread")),
        ("read: log", 0, (), LOG),
        ("read: trap", 0, (), TRAP),
        ("read: arg0 == 1; return EPERM", 0, (1,), ALLOW),
        ("read: arg0 == 1; return EPERM", 0, (2,), Action("errno", 1)),
        ("read: arg0 == 1 || arg0 == 2; return EPERM", 0, (3,), Action("errno", 1)),
        ("read: arg0 >= 10 && arg0 <= 20", 0, (10,), ALLOW),
        ("read: arg0 >= 10 && arg0 <= 20", 0, (20,), ALLOW),
        ("read: arg0 >= 10 && arg0 <= 20", 0, (21,), TRAP),
        ("read: arg0 >= 10 && arg0 <= 20", 0, (9,), TRAP),
        ("read: arg0 == 1", 0, (1 | 1 << 32,), TRAP),
        ("read: arg0 < 0x100000000", 0, (0xFFFFFFFF,), ALLOW),
        ("read: arg0 < 0x100000000", 0, (1 << 32,), TRAP),
        ("read: arg2 != 5 && arg2 != 7", 0, (0, 0, 6), ALLOW),
        ("read: arg2 != 5 && arg2 != 7", 0, (0, 0, 7), TRAP),
        ("read: arg0 < 0", 0, (0,), TRAP),
        ("read: arg0 >= 0", 0, (U64,), ALLOW),
        ("read: arg0 <= -1 && arg1 == 1", 0, (U64, 1), ALLOW),
        ("read: arg0 & 0", 0, (U64,), TRAP),
        ("read: arg0 in 0", 0, (1,), TRAP),
        ("setxattrat: 1", 463, (), ALLOW),
    ],
)
def test_program_gives_the_answer(
    text: str, number: int, args: tuple[int, ...], action: Action
) -> None:
    assert simulate(compiled(text), number, args) == action


@pytest.mark.parametrize(
    ("number", "arch"),
    [(0, 0x40000003), (0x40000000, AUDIT_ARCH_X86_64), (0x40000200, AUDIT_ARCH_X86_64), (0, 0)],
    ids=["i386", "x32", "x32-only", "none"],
)
@pytest.mark.parametrize("log_failures", [False, True])
def test_foreign_abi_is_killed(number: int, arch: int, log_failures: bool) -> None:
    bpf = compiled("read: 1", log_failures=log_failures)
    assert simulate(bpf, number, (), arch) == KILL_PROCESS


def test_log_failures_lets_through_all_but_errno() -> None:
    text = "@default kill\nread: arg0 == 1\nwrite: kill\nopen: return ENOENT\nclose: 1"
    bpf = compiled(text, log_failures=True)
    outcomes = [simulate(bpf, number, (2,)) for number in (0, 1, 2, 3, 4)]
    assert outcomes == [LOG, LOG, Action("errno", 2), ALLOW, LOG]


def test_too_complex_rule_is_refused_by_name() -> None:
    atoms = " && ".join(f"arg{n} >= 0x5555555555555555" for n in range(3))
    with pytest.raises(PolicyError, match="mremap: too complex: needs more than 1024"):
        compiled(f"mremap: {atoms} || arg3 == 1")


def test_program_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seccomp.compiler.BPF_MAXINSNS", 20)
    with pytest.raises(PolicyError, match="BPF instructions; the kernel takes 20"):
        compiled("read: arg0 == 1\nwrite: arg0 == 2\nclose: arg0 == 3")


def test_frequent_calls_are_checked_first() -> None:
    rules = "\n".join(f"{name}: 1" for name in list(ARCH.syscalls)[:40])
    tree = parse({"x": rules.encode()}, ARCH.name, ARCH.syscalls)
    order = []
    for frequency in ({7: 9, 3: 5}, {3: 9, 7: 5}):
        bpf = compile_tree(tree._replace(frequency=frequency), ARCH, log_failures=False)
        order.append([k for code, _, _, k in decode(bpf) if code == 0x15])
    assert order[0].index(7) < order[0].index(3)
    assert order[1].index(3) < order[1].index(7)


def test_verify_finds_a_program_that_allows_too_much() -> None:
    tree = parse({"x": b"read: arg0 == 5"}, ARCH.name, ARCH.syscalls)
    wrong = compiled("read: arg0 in 5")
    with pytest.raises(PolicyError, match=r"read\(.*compiled 'allow' instead of 'trap'"):
        verify(wrong, tree, ARCH, TRAP)


def test_verify_finds_another_default() -> None:
    tree = parse({"x": b"read: 1"}, ARCH.name, ARCH.syscalls)
    with pytest.raises(PolicyError, match="another default action than 'log'"):
        verify(compiled("read: 1"), tree, ARCH, LOG)


def test_probes_lie_on_both_sides_of_every_bound() -> None:
    tree = parse({"x": b"read: arg0 >= 10 && arg0 <= 20"}, ARCH.name, ARCH.syscalls)
    first = {args[0] for args in probes(tree.rules[0])}
    assert {9, 10, 11, 19, 20, 21} <= first


def test_libseccomp_file_is_found() -> None:
    assert "libseccomp.so" in libseccomp_path()
