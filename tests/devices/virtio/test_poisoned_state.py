# SPDX-License-Identifier: BSD-3-Clause
"""A process that was taken over leaves anything as its state: the next one starts, and serves.

And the state is gone then, so that no process after it meets it again.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgpack
import pytest

from devices.virtio.saved_state import MAX_STATE_BYTES
from sys_util.eventfd import drain_eventfd
from tests.fuzz import kinds, own_queue_kinds
from tests.fuzz.kinds import BalloonKind, BlockKind, RngKind
from tests.fuzz.own_queue_kinds import ConsoleKind, NetKind, VsockKind
from tests.fuzz.source import RandomSource
from tests.support.stored import store_raw, stored
from tests.support.strangers import DEPTHS, VALUES, deep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devices.virtio.saved_state import SavedState
    from tests.fuzz.kinds import Kind
    from tests.fuzz.source import Source


class Steady(RandomSource):
    """Always decides for the last choice: what the host left beside the state stays as it is."""

    def below(self, count: int) -> int:
        return count - 1


EVERY_KIND = [RngKind, BlockKind, BalloonKind, NetKind, VsockKind, ConsoleKind]


def poisons(honest: dict[str, object]) -> Iterator[bytes]:
    """Yield every state with any value in any of its fields, and with any value as a whole."""
    news = [*VALUES.values(), *map(deep, DEPTHS), *(deep(depth, b"\x81\xa0") for depth in DEPTHS)]
    for new in news:
        yield new
        for name, value in honest.items():
            others = {key: value for key, value in honest.items() if key != name}
            map_of = bytes((0x80 + len(honest),)) + msgpack.packb(others)[1:] + msgpack.packb(name)
            yield map_of + new
            for at in range(len(value) if isinstance(value, list) else 0):
                items = [msgpack.packb(item) for item in value]  # type: ignore[attr-defined]
                items[at] = new
                yield map_of + bytes((0x90 + len(items),)) + b"".join(items)


@pytest.mark.slow
@pytest.mark.parametrize("make", EVERY_KIND)
def test_process_after_one_that_left_anything_starts_and_serves(
    make: Callable[[Source], Kind], monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    source = Steady("poison")
    kind = make(source)
    saved = kind.side.context.saved
    honest = stored(saved) or {"next_port": 0}
    refused = 0
    for poison in poisons(honest):
        if len(poison) > MAX_STATE_BYTES:
            continue
        lines.clear()
        leave(monkeypatch, poison)
        kind.side.reset()
        kind.restart(source)
        refused += any("saved state is not used" in line for line in lines)
        lines.clear()
        leave(monkeypatch, None)
        kind.side.reset()
        kind.restart(source)
        assert not any("saved state" in line for line in lines), "it was met again"
        if refused % 50 == 1:
            kind.side.reset()
            kind.serves()
    assert refused > 50
    kind.close()


@pytest.mark.slow
@pytest.mark.parametrize("make", EVERY_KIND)
def test_full_eventfds_of_the_last_process_stop_no_queue(
    make: Callable[[Source], Kind], lines: list[str]
) -> None:
    """Nobody reads the eventfd of a masked vector: it stays as that process has left it."""
    kind = make(Steady("eventfds"))
    kind.serves()
    side = kind.side
    for fd in (*side._calls.values(), *side._kicks.values()):
        drain_eventfd(fd)
        os.eventfd_write(fd, (1 << 64) - 2)
    side.reset()
    kind.serves()
    assert all(side.interrupted(index) for index in side.queues)
    kind.close()
    lines.clear()


def leave(monkeypatch: pytest.MonkeyPatch, poison: bytes | None) -> None:
    """Let the next restart find ``poison`` as the state, or what the device itself stored."""

    def spoil(_source: Source, saved: SavedState) -> None:
        if poison is not None:
            store_raw(saved, poison)

    for module in (kinds, own_queue_kinds):
        monkeypatch.setattr(module, "spoil_saved", spoil)
