# SPDX-License-Identifier: BSD-3-Clause
"""Defects of a card's native server, planted for the comparison with Python to find."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from devices.virtio.net.ends import TapEnd
from devices.virtio.net.native import NativeReceive, NativeTap, NativeTransmit
from devices.virtio.queue import native
from tests.fuzz.engine_net import Differential
from tests.fuzz.targets import life_source
from tests.fuzz.test_fuzz import plant_empty_descriptor_without_a_direction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from devices.virtio.queue.split_queue import Handover

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not native.IS_BUILT, reason="the engine is not built here"),
]


def plant_frame_that_is_dropped(patch: pytest.MonkeyPatch) -> None:
    """When buffers run out, a frame is lost of which Python keeps the rest."""
    patch.setattr(TapEnd, "return_frame", lambda _end, _frame: None)


def plant_header_that_is_believed(patch: pytest.MonkeyPatch) -> None:
    """A driver may ask for checksums without having negotiated them."""
    tell = NativeTap.set_host_rules

    def careless(self: NativeTap, gso_types: Iterable[int], *, checksums: bool) -> None:
        tell(self, gso_types, checksums=True)

    patch.setattr(NativeTap, "set_host_rules", careless)


def plant_frame_that_the_driver_cannot_take(patch: pytest.MonkeyPatch) -> None:
    """A driver gets segments that it has not negotiated."""
    tell = NativeTap.set_guest_rules

    def careless(self: NativeTap, gso_types: Iterable[int], flags: int) -> None:
        tell(self, [1, 4, 5], flags)

    patch.setattr(NativeTap, "set_guest_rules", careless)


def plant_frame_sent_twice(patch: pytest.MonkeyPatch) -> None:
    """When a queue goes back to Python, its last frame is sent once more."""
    take = NativeTransmit.take

    def careless(self: NativeTransmit) -> Handover:
        start = take(self)
        return start._replace(next_avail=(start.next_avail - 1) & 0xFFFF)

    patch.setattr(NativeTransmit, "take", careless)


def plant_queue_that_loses_its_place(patch: pytest.MonkeyPatch) -> None:
    """When a queue goes back to Python, the used element that it gave last is written again."""
    take = NativeReceive.take

    def careless(self: NativeReceive) -> Handover:
        start = take(self)
        return start._replace(next_used=(start.next_used - bool(start.next_used)) & 0xFFFF)

    patch.setattr(NativeReceive, "take", careless)


@pytest.mark.parametrize(
    "plant",
    [
        plant_empty_descriptor_without_a_direction,
        plant_frame_that_is_dropped,
        plant_header_that_is_believed,
        plant_frame_that_the_driver_cannot_take,
        plant_frame_sent_twice,
        plant_queue_that_loses_its_place,
    ],
)
def test_planted_difference_is_found(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    plant(monkeypatch)
    for life in reversed(range(4)):  # the last one finds all of them soonest
        source = life_source("engine", 2026, life)
        pair = Differential(source)
        try:
            for _ in range(500):
                pair.episode(source)
        except AssertionError:
            return
        finally:
            with suppress(AssertionError):
                pair.close()
    pytest.fail("nothing was found")
