# SPDX-License-Identifier: BSD-3-Clause
"""Cards on a TAP whose process is killed inside a turn of the engine.

A TAP forgets a frame when it is read. So of the frames that arrive one at most is lost, and none is
broken, out of order or there twice. Of those that the guest sends none is lost, and one at most is
sent twice: where the kill comes between the TAP and the used ring.
"""

from __future__ import annotations

from typing import Final

import pytest

from devices.virtio.net.ends import TapEnd
from devices.virtio.queue import native
from tests.support.killed import shared_state
from tests.support.killed_natively import CAN_TRACE, each_native_kill
from tests.support.net_rig import EVENT_IDX, PLAIN, Ioctls, NetRig, frame

pytestmark = [
    pytest.mark.skipif(not native.IS_BUILT, reason="the engine is not built here"),
    pytest.mark.skipif(not CAN_TRACE, reason="no numbers of system calls for this processor"),
]

SIZE: Final = 64
BUFFER_BYTES: Final = 100
# Alone in a buffer; in more buffers than the first one was expected to need; full; alone again.
FRAMES: Final = [frame(length, seed) for seed, length in enumerate((60, 130, 88, 62))]


class Card(NetRig):
    """A card whose processes come and go."""

    def __init__(self, *, event_idx: bool) -> None:
        super().__init__(without=0 if event_idx else EVENT_IDX, saved=shared_state(), engine=True)
        self.driver.start(0, 1, size=SIZE)
        self.driver.start_queue(2)
        self._views: list[memoryview] = []

    def watch(self, queue: int) -> None:
        """Look at this queue and its buffers from now on; they have been offered."""
        driver = self.driver.queues[queue]
        heap = driver._heap_start
        self._views = [
            self.memory.view(driver.used_ring, 6 + 8 * driver.size),
            self.memory.view(heap, driver.allocate(0) - heap),
        ]

    def left(self) -> object:
        return [bytes(view) for view in self._views]

    def close(self) -> None:
        for view in self._views:
            view.release()
        super().close()

    def arrived(self) -> list[bytes]:
        """Return the frames that the driver got, joined of their buffers."""
        pieces, frames = self.received(), []
        while pieces:
            count = int.from_bytes(pieces[0][10:12], "little")
            assert 1 <= count <= len(pieces)
            frames.append(b"".join(pieces[:count])[12:])
            del pieces[:count]
        return frames


@pytest.fixture(autouse=True)
def _calls_to_the_tap(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    Ioctls(monkeypatch)


def only_by_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a child fail where Python moves a frame."""

    def refuse(*_: object) -> int:
        raise AssertionError("Python moved it")

    monkeypatch.setattr(TapEnd, "send", refuse)


def test_no_frame_is_broken_or_there_twice_wherever_the_engine_is_killed() -> None:
    def filled() -> Card:
        card = Card(event_idx=True)
        for data in FRAMES:
            card.host.send(PLAIN + data)
        for _ in range(SIZE // 2):
            card.driver.queues[0].submit([], [BUFFER_BYTES])
        card.watch(0)
        return card

    seen = set()
    for card in each_native_kill(filled, lambda card: card.driver.kick(0)):
        before = card.arrived()
        seen.add(len(before))
        card.restart()
        card.arrive(frame(63, 99))
        got = [*before, *card.arrived()]
        assert got.pop() == frame(63, 99)
        assert got == [data for data in FRAMES if data in got]
        assert len(got) >= len(FRAMES) - 1
    assert seen == set(range(len(FRAMES) + 1))


def test_no_frame_is_lost_and_one_repeated_wherever_the_engine_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only_by_the_engine(monkeypatch)

    def offered() -> Card:
        card = Card(event_idx=False)
        for data in FRAMES:
            card.driver.queues[1].submit([PLAIN, data])
        card.watch(1)
        return card

    repeated = set()
    for card in each_native_kill(offered, lambda card: card.driver.kick(1)):
        card.restart()
        sent = [data[12:] for data in card.sent()]
        twice = [at for at in range(len(FRAMES)) if sent.count(FRAMES[at]) > 1]
        assert len(twice) <= 1
        for at in twice:
            repeated.add(at)
            del sent[at]
        assert sent == FRAMES
        assert len(card.driver.queues[1].collect()) == len(FRAMES)
        assert card.driver.interrupted(1)
    assert repeated == set(range(len(FRAMES)))
