# SPDX-License-Identifier: BSD-3-Clause
"""Device x attempt: what stopped each, found out by trying."""

from __future__ import annotations

import signal
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from crosvm_py.kinds.table import DEVICE_KINDS
from seccomp import load_policy
from seccomp.simulate import simulate
from tests.breakout import lies
from tests.breakout.attempt import KINDS
from tests.breakout.lies import LIES
from tests.breakout.prison import Refusal, numbers_for, prison
from tests.breakout.table import ATTEMPTS, GROUPS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.breakout.prison import Prison

ALL_GROUPS: Final = (*GROUPS, lies.GROUP)


class Verdict(Enum):
    """What stopped an attempt, as the matrix shows it."""

    BOTH = "F J"  # the filter; and the jail, where the filter is left out
    FILTER = "F"  # the filter
    JAIL = "J"  # the filter lets the call pass, and the jail refuses it
    KERNEL = "K"  # the kernel ended the process before any filter was asked
    VMM = "V"  # the vmm ended the device for it
    BOUNDED = "B"  # it may be said, and the vmm bounds what comes of it
    OUT = "OUT"  # nothing
    WALL = "GAP"  # the filter; but the jail should have, too, and did not
    NONE = "-"  # there is nothing of the kind to try it on


BAD: Final = frozenset({Verdict.OUT, Verdict.WALL})


class Row(NamedTuple):
    """One attempt, and what stopped it in each kind of device."""

    group: str
    name: str
    cells: dict[str, Verdict]

    @property
    def is_good(self) -> bool:
        """Whether every wall held that has to hold."""
        return not BAD.intersection(self.cells.values())


class Plan(NamedTuple):
    """What to try: sweeps take each ``sweep_step``-th number; floods say ``flood`` messages.

    ``lie_step``: of the lies each kind tells every so many, another one first. ``thread``: not the
    process's first thread makes the attempts, but another.
    """

    kinds: Sequence[str] = KINDS
    groups: Sequence[str] = ALL_GROUPS
    sweep_step: int = 1
    flood: int = 3_000
    lie_step: int = 1
    thread: bool = False

    def numbers(self, kind: str, *, alone: bool) -> list[int]:
        """Return which attempts of the groups a kind makes."""
        found = numbers_for(kind, alone=alone)
        return [number for number in found if ATTEMPTS[number].group in self.groups]

    def lies(self, kind: str) -> list[int]:
        """Return which lies a kind tells."""
        if lies.GROUP not in self.groups:
            return []
        return list(range(KINDS.index(kind) % self.lie_step, len(LIES), self.lie_step))


class Outcomes:
    """What became of every attempt of a plan, by kind and number."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.filtered: dict[tuple[str, int], Refusal | None] = {}
        self.unfiltered: dict[tuple[str, int], Refusal | None] = {}
        self.endings: dict[tuple[str, int], int | Refusal | None] = {}
        self.lies: dict[tuple[str, int], str] = {}

    def find_out(self) -> None:
        """Try it all."""
        plan = self._plan
        with prison(plan.kinds, sweep_step=plan.sweep_step, thread=plan.thread) as inside:
            for kind in plan.kinds:
                self._try_with_filter(inside, kind)
        for kind in plan.kinds:
            with prison([kind]) as inside:  # who ends stays known to its vmm, so not all in one
                for number, verdict in inside.lie(kind, plan.lies(kind), times=plan.flood).items():
                    self.lies[kind, number] = verdict
        with prison(
            plan.kinds, filters=False, sweep_step=plan.sweep_step, thread=plan.thread
        ) as inside:
            for kind in plan.kinds:
                numbers = [n for n in plan.numbers(kind, alone=False) if has_wall(n, kind)]
                for number, refusal in inside.attempt(kind, numbers).items():
                    self.unfiltered[kind, number] = refusal
            inside.check_unharmed()

    def _try_with_filter(self, inside: Prison, kind: str) -> None:
        plan = self._plan
        for number, refusal in inside.attempt(kind, plan.numbers(kind, alone=False)).items():
            self.filtered[kind, number] = refusal
        inside.check_unharmed()
        for number in plan.numbers(kind, alone=True):
            self.endings[kind, number] = inside.attempt_alone(kind, number)
        inside.check_unharmed()

    def rows(self) -> list[Row]:
        """Return the matrix."""
        plan = self._plan
        rows = []
        for number, attempt in enumerate(ATTEMPTS):
            if attempt.group in plan.groups:
                cells = {kind: self._attempt(kind, number) for kind in plan.kinds}
                rows.append(Row(attempt.group, attempt.name, cells))
        if lies.GROUP in plan.groups:
            for number, lie in enumerate(LIES):
                cells = {kind: self._lie(kind, number) for kind in plan.kinds}
                rows.append(Row(lies.GROUP, lie.name, cells))
        return rows

    def _lie(self, kind: str, number: int) -> Verdict:
        verdict = self.lies.get((kind, number))
        if verdict is None:
            return Verdict.NONE
        if verdict.endswith(": trapped"):
            return Verdict.FILTER
        if verdict:  # who floods for longer than a deadline is ended, too
            return Verdict.VMM
        return Verdict.OUT if LIES[number].ends else Verdict.BOUNDED

    def _attempt(self, kind: str, number: int) -> Verdict:
        if (kind, number) in self.endings:
            return _ending(self.endings[kind, number])
        if not ATTEMPTS[number].is_for(kind):
            return Verdict.NONE
        refusal = self.filtered.get((kind, number))
        if refusal is None:
            return Verdict.OUT
        by_filter = _is_by_filter(kind, refusal)
        if not has_wall(number, kind):
            return Verdict.FILTER if by_filter else Verdict.JAIL
        if self.unfiltered.get((kind, number)) is None:
            return Verdict.WALL
        return Verdict.BOTH if by_filter else Verdict.JAIL


def has_wall(number: int, kind: str) -> bool:
    """Whether the jail alone has to stop an attempt."""
    return ATTEMPTS[number].has_jail(kind)


def _ending(status: int | Refusal | None) -> Verdict:
    if isinstance(status, Refusal):
        return Verdict.OUT if status.error else Verdict.FILTER
    if status == -signal.SIGSYS:
        return Verdict.FILTER
    if status in (-signal.SIGILL, -signal.SIGSEGV):
        return Verdict.KERNEL
    return Verdict.OUT


def _is_by_filter(kind: str, refusal: Refusal) -> bool:
    """The filter traps, or answers with an errno by itself: then it would do so again."""
    if not refusal.error:
        return True
    bpf = load_policy(DEVICE_KINDS[kind].policy_name).bpf
    return simulate(bpf, refusal.number, refusal.words).kind != "allow"


def summary() -> list[str]:
    """Return the table that SECURITY.md has: how many attempts, and how many have a second wall."""
    lines = ["| attempts | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    for group in GROUPS:
        cells = []
        for kind in KINDS:
            numbers = [n for n, one in enumerate(ATTEMPTS) if one.group == group]
            numbers = [n for n in numbers if ATTEMPTS[n].is_for(kind)]
            cells.append(f"{len(numbers)} / {sum(has_wall(n, kind) for n in numbers)}")
        lines.append(f"| {group} | " + " | ".join(cells) + " |")
    lines.append(f"| {lies.GROUP} | " + " | ".join([str(len(LIES))] * len(KINDS)) + " |")
    return lines
