# SPDX-License-Identifier: BSD-3-Clause
"""The syntax tree of a policy: per system call, when it is allowed and what happens otherwise.

A condition is in disjunctive normal form, which is all that minijail's grammar can say:
``Condition`` is an OR of clauses, a clause is an AND of atoms. ``ALWAYS`` is the OR of one empty
AND, ``NEVER`` the empty OR.
"""

from __future__ import annotations

from seccomp.actions import ALLOW, Action
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

U64: Final = 0xFFFFFFFFFFFFFFFF
MAX_ARGS: Final = 6


class Atom(NamedTuple):
    """One comparison of a whole 64-bit argument, unsigned.

    ``op`` is one of ``== != < <= > >=``, ``&`` (any bit of ``value`` is set) or ``in`` (no bit
    outside ``value`` is set).
    """

    arg: int
    op: str
    value: int

    def holds(self, args: Sequence[int]) -> bool:
        """Evaluate the comparison."""
        actual = args[self.arg] & U64
        if self.op in ("==", "!="):
            return (actual == self.value) == (self.op == "==")
        if self.op in ("<", ">="):
            return (actual < self.value) == (self.op == "<")
        if self.op in ("<=", ">"):
            return (actual <= self.value) == (self.op == "<=")
        if self.op == "&":
            return bool(actual & self.value)
        return not actual & ~self.value & U64

    def __str__(self) -> str:
        inverted = ~self.value & U64
        value = f"~{inverted:#x}" if inverted < self.value else f"{self.value:#x}"
        return f"arg{self.arg} {self.op} {value}"


Clause: TypeAlias = tuple[Atom, ...]
Condition: TypeAlias = tuple[Clause, ...]

ALWAYS: Final[Condition] = ((),)
NEVER: Final[Condition] = ()


class Source(NamedTuple):
    """One statement about a system call: its ``file:line``, its text, and what it allows."""

    where: str
    text: str
    allow: Condition


class Rule(NamedTuple):
    """Everything that a policy says about one system call.

    ``otherwise`` is what a call gets that no clause allows; ``None`` is the default action.
    ``text`` is the rule as the policy writes it; ``where`` is the place of ``otherwise``;
    ``sources`` are the statements that were joined.
    """

    name: str
    number: int
    allow: Condition
    otherwise: Action | None
    text: str
    where: str
    sources: tuple[Source, ...] = ()

    def allows(self, args: Sequence[int]) -> bool:
        """Evaluate the condition on the arguments of a call."""
        return any(all(atom.holds(args) for atom in clause) for clause in self.allow)


class PolicyTree(NamedTuple):
    """A parsed policy. ``default`` is ``@default``; ``frequency`` orders the checks."""

    rules: dict[int, Rule]
    default: Action | None
    frequency: dict[int, int]
    default_where: str = ""

    def judge(self, number: int, args: Sequence[int], default: Action) -> Action:
        """Say what the policy means for a call, without any compiler in between."""
        rule = self.rules.get(number)
        if rule is None:
            return default
        return ALLOW if rule.allows(args) else rule.otherwise or default
