# SPDX-License-Identifier: BSD-3-Clause
"""Where a queue stands, as people are told who look for what stands still."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devices.virtio.backend import RingPosition
from devices.virtio.queue.split_queue import QueueError
from devices.virtio.rng.device import Rng, RngSpec
from sys_util.eventfd import is_signalled
from sys_util.guest_memory import GuestMemory
from tests.support.console_driver import LONE, Pipes
from tests.support.device_context import DriverSide

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def side() -> Iterator[DriverSide]:
    memory = GuestMemory.create([(0, 4 << 20)])
    side = DriverSide(Rng(RngSpec()), memory)
    side.start()
    yield side
    side.close()
    memory.close()


def test_position_tells_where_a_queue_stands_and_changes_nothing(side: DriverSide) -> None:
    side.queues[0].submit([], [8])
    side.kick(0)
    side.queues[0].submit([], [8])
    for _ in range(2):
        assert side.worker.positions() == {0: ("device", RingPosition(1, 1, 1, 1, 1, True))}
    assert len(side.queues[0].collect()) == 1
    side.kick(0)
    assert len(side.queues[0].collect()) == 1


def test_position_of_an_unusable_queue_is_nobodys(side: DriverSide, lines: list[str]) -> None:
    side.queues[0].set_avail_idx(1000)
    with pytest.raises(QueueError, match="ahead of a queue"):
        side.kick(0)
    assert side.worker.positions() == {0: ("nobody", None)}
    side.worker.stop_queue(0)
    assert side.worker.positions() == {}


def test_position_of_a_queue_that_its_device_serves_is_that_of_a_port() -> None:
    pipes = Pipes(LONE)
    pipes.driver.start()
    pipes.driver.queues[0].submit(into=[64])
    pipes.driver.kick(0)
    receive, transmit = pipes.driver.worker.positions().values()
    assert (receive[0], transmit[0]) == ("port", "port")
    assert transmit[1] == RingPosition(0, 0, 0, 0, 0, True)
    pipes.close()


def test_look_at_an_eventfd_takes_nothing(side: DriverSide) -> None:
    side.queues[0].submit([], [8])
    side.kick(0)
    call_fd = side.call_fd(0)
    assert is_signalled(call_fd)
    assert is_signalled(call_fd)
    assert side.interrupted(0)
    assert not is_signalled(call_fd)
