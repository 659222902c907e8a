# SPDX-License-Identifier: BSD-3-Clause
"""Compare a compiled filter with its policy, at the edges of every rule.

libseccomp has miscompiled rules (see cubes.py). So we use a program only if it gives the same
answers as the policy, for calls on both sides of every bound and with each argument changed in
turn.
"""

from __future__ import annotations

from seccomp.actions import KILL_PROCESS
from seccomp.cubes import condition_boxes
from seccomp.errors import PolicyError
from seccomp.rules import MAX_ARGS, U64
from seccomp.simulate import decode, run
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from seccomp.actions import Action
    from seccomp.rules import Clause, PolicyTree, Rule
    from seccomp.syscalls import Arch


def clause_values(clause: Clause, arg: int) -> list[int]:
    """Return values of an argument that are on or beside each bound of the clause."""
    values = {0, U64}
    for atom in clause:
        if atom.arg != arg:
            continue
        value = atom.value
        values |= {value, value - 1, value + 1, ~value, value ^ 1 << 32, value ^ 1 << 63}
        if atom.op in ("&", "in"):
            values |= {1 << bit for bit in range(64) if (value ^ value >> 1) >> bit & 1}
    return sorted(value & U64 for value in values)


def probes(rule: Rule) -> Iterator[tuple[int, ...]]:
    """Yield arguments that each clause allows, and the same ones with one argument changed."""
    yield (0,) * MAX_ARGS
    yield (U64,) * MAX_ARGS
    for clause in rule.allow:
        changes = [(arg, value) for arg in range(MAX_ARGS) for value in clause_values(clause, arg)]
        for index, box in enumerate(condition_boxes((clause,))):
            inside = tuple(cube.value for cube in box)
            yield inside
            yield tuple(cube.value | ~cube.mask & U64 for cube in box)
            if index == 0:
                for arg, value in changes:
                    yield (*inside[:arg], value, *inside[arg + 1 :])


def verify(bpf: bytes, tree: PolicyTree, arch: Arch, default: Action) -> None:
    """Check that the program gives the same answer as the policy for all ``probes``.

    Raises:
        PolicyError: the program gives another answer than the policy.
    """
    program = decode(bpf)
    for rule in tree.rules.values():
        for args in probes(rule):
            wanted = tree.judge(rule.number, args, default)
            found = run(program, rule.number, args, arch.audit)
            if found != wanted:
                shown = ", ".join(f"{arg:#x}" for arg in args)
                raise PolicyError(
                    f"{rule.name}({shown}): libseccomp compiled '{found}' instead of '{wanted}'"
                )
    unlisted = next(number for number in range(4096) if number not in tree.rules)
    if run(program, unlisted, (), arch.audit) != default:
        raise PolicyError(f"libseccomp compiled another default action than '{default}'")
    for audit, number in arch.foreign:
        if run(program, number, (), audit) != KILL_PROCESS:
            raise PolicyError("libseccomp compiled a filter that lets foreign ABIs in")
