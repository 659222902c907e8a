# SPDX-License-Identifier: BSD-3-Clause
"""The engine with Python behind it against Python alone: disks and network cards in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz import engine_disk, engine_net
from tests.fuzz.source import pick

if TYPE_CHECKING:
    from tests.fuzz.source import Source


Pair = engine_disk.Differential | engine_net.Differential


class Both:
    """A pair of disks and a pair of cards."""

    def __init__(self, source: Source) -> None:
        self._pairs: tuple[Pair, ...] = (
            engine_disk.Differential(source, pick(source, engine_disk.KINDS)),
            engine_net.Differential(source),
        )

    @property
    def mutations(self) -> int:
        """How many chains reached each device."""
        return sum(pair.mutations for pair in self._pairs)

    def episode(self, source: Source) -> None:
        """Live through two drivers of disks that are the same, or of cards."""
        pick(source, self._pairs).episode(source)

    def close(self) -> None:
        """Give everything back, in the order that undoes what each has put in place."""
        for pair in reversed(self._pairs):
            pair.close()


def make(source: Source) -> Both:
    """Build the rig."""
    return Both(source)
