# SPDX-License-Identifier: BSD-3-Clause
"""Counters of what one device did since the VM started, which queues wait for a rate limit, and
which engine serves each queue.

A restarted device process counts on from where the last one stopped. Each number is an attribute
that is also stored in a cell, which the vmm maps too, so that it reads the number without asking.
To store an attribute for every request costs half as much as to add to a cell.
"""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REQUESTS: Final = 0
BYTES_FROM_GUEST: Final = 1
BYTES_TO_GUEST: Final = 2
ERRORS: Final = 3
KICKS: Final = 4
INTERRUPTS: Final = 5
_FIRST_SPECIFIC: Final = 6

COUNTER_NAMES: Final = (
    "requests",
    "bytes_from_guest",
    "bytes_to_guest",
    "errors",
    "kicks",
    "interrupts",
)
MAX_SPECIFIC: Final = 10
CELL_COUNT: Final = _FIRST_SPECIFIC + MAX_SPECIFIC

# After the counters come two cells for each limiter: a bit for each queue that waits for its limit,
# and until when, in ns of CLOCK_MONOTONIC. A network card has a limiter for each direction, other
# devices have one.
LIMITERS: Final = 2
_FIRST_WAIT: Final = CELL_COUNT

# Then come two cells with a bit for each started queue that is not served by Python.
_NATIVE: Final = _FIRST_WAIT + 2 * LIMITERS
_VHOST: Final = _NATIVE + 1
_ALL_CELLS: Final = _VHOST + 1

# The engines: the native one in the device's process, Python there, and the host's kernel.
NATIVE: Final = "native"
PYTHON: Final = "python"
VHOST: Final = "vhost"

_MAX_QUEUES: Final = 64  # the bits of a cell
_WRAP: Final = (1 << 64) - 1
_MAX_START: Final = 1 << 62


def _private_cells() -> memoryview[int]:
    return memoryview(bytearray(8 * _ALL_CELLS)).cast("Q")


class LimitWaits:
    """The queues that one limiter makes wait, for the vmm to read by ``waiting_until``."""

    __slots__ = ("_at", "_cells")

    def __init__(self, cells: memoryview[int] | None = None, limiter: int = 0) -> None:
        """Without ``cells`` nobody else sees it."""
        self._cells = _private_cells() if cells is None else cells
        self._at = _FIRST_WAIT + 2 * limiter

    def set(self, queue: int, until_ns: int) -> None:
        """Note that ``queue`` waits, and that every waiting one does until about ``until_ns``."""
        self._cells[self._at + 1] = min(until_ns, _WRAP)
        self._cells[self._at] |= 1 << queue

    def clear(self) -> None:
        """Note that no queue waits."""
        self._cells[self._at] = self._cells[self._at + 1] = 0


def waiting_until(cells: Sequence[int]) -> dict[int, int]:
    """Return for each queue that waits for its limit until when, in ns of CLOCK_MONOTONIC.

    A queue whose time has passed does not wait any more.
    """
    until: dict[int, int] = {}
    for at in range(_FIRST_WAIT, _NATIVE, 2):
        if at + 1 < len(cells) and cells[at]:
            bits, until_ns = cells[at], cells[at + 1]
            until |= {queue: until_ns for queue in range(_MAX_QUEUES) if bits >> queue & 1}
    return until


def engine_of(cells: Sequence[int], queue: int) -> str:
    """Return which engine serves a started queue: ``NATIVE``, ``PYTHON`` or ``VHOST``."""
    if len(cells) < _ALL_CELLS:
        return PYTHON
    if cells[_VHOST] >> queue & 1:
        return VHOST
    return NATIVE if cells[_NATIVE] >> queue & 1 else PYTHON


class Counters:
    """The counters of one device; ``cells`` is a view of at least ``CELL_COUNT`` 64-bit items."""

    __slots__ = (
        "bytes_from_guest",
        "bytes_to_guest",
        "cells",
        "errors",
        "interrupts",
        "kicks",
        "requests",
    )

    def __init__(self, cells: memoryview[int] | None = None) -> None:
        """Continue from the numbers in ``cells``; without cells the vmm cannot see the numbers."""
        if cells is None:
            cells = _private_cells()
        for at in range(_FIRST_SPECIFIC):
            if cells[at] > _MAX_START:  # no real count: a compromised process wrote it
                cells[at] = 0
        self.cells = cells
        self.requests = cells[REQUESTS]
        self.bytes_from_guest = cells[BYTES_FROM_GUEST]
        self.bytes_to_guest = cells[BYTES_TO_GUEST]
        self.errors = cells[ERRORS]
        self.kicks = cells[KICKS]
        self.interrupts = cells[INTERRUPTS]

    @property
    def specific(self) -> memoryview[int]:
        """The cells that only this kind of device has."""
        return self.cells[_FIRST_SPECIFIC:CELL_COUNT]

    def count_error(self) -> None:
        """Count one error of the guest or of the host."""
        self.errors = errors = self.errors + 1
        self.cells[ERRORS] = errors

    def show_engines(self, engines: Mapping[int, str]) -> None:
        """Show the vmm which engine serves each started queue, for ``engine_of``."""
        cells = self.cells
        if len(cells) < _ALL_CELLS:
            return  # nobody reads these cells
        for at, engine in ((_NATIVE, NATIVE), (_VHOST, VHOST)):
            cells[at] = sum(1 << queue for queue, by in engines.items() if by == engine)

    def add(self, specific: int, amount: int = 1) -> None:
        """Add to a counter that only this kind of device has, the ``specific``-th of them."""
        at = _FIRST_SPECIFIC + specific
        self.cells[at] = (self.cells[at] + amount) & _WRAP


def named(cells: Sequence[int], specific_names: Sequence[str]) -> dict[str, int]:
    """Return the numbers in ``cells`` with their names, the device's own last."""
    return dict(zip((*COUNTER_NAMES, *specific_names), cells, strict=False))
