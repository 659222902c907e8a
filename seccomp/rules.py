# SPDX-License-Identifier: BSD-3-Clause
"""The syntax tree of a policy: when each system call is allowed, and what happens otherwise.

A condition is in disjunctive normal form: ``Condition`` is an OR of clauses, and a clause is an AND
of atoms. ``ALWAYS`` is one clause without atoms, ``NEVER`` has no clause.
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

    ``otherwise`` is the action for a call that no clause allows; ``None`` means the default action.
    ``text`` is the rule as in the policy; ``where`` is the ``file:line`` of ``otherwise``;
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
    """A parsed policy. ``default`` is ``@default``; calls with a high ``frequency`` come first."""

    rules: dict[int, Rule]
    default: Action | None
    frequency: dict[int, int]
    default_where: str = ""

    def judge(self, number: int, args: Sequence[int], default: Action) -> Action:
        """Return the action of the policy for a call, from the tree and not from a program."""
        rule = self.rules.get(number)
        if rule is None:
            return default
        return ALLOW if rule.allows(args) else rule.otherwise or default
