# SPDX-License-Identifier: BSD-3-Clause
"""What several files of tests begin with: one queue of eight, and a log in which nothing is new."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devices.virtio.features import VIRTIO_RING_F_INDIRECT_DESC
from devices.virtio.queue import SplitQueue
from sys_util.guest_memory import GuestMemory
from tests.support.driver_queue import HIGH, RAM_BYTES, DriverQueue

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory.create([(0, RAM_BYTES), (HIGH, RAM_BYTES)])
    yield memory
    memory.close()


@pytest.fixture
def driver(memory: GuestMemory) -> DriverQueue:
    return DriverQueue(memory)


@pytest.fixture
def queue(memory: GuestMemory, driver: DriverQueue) -> SplitQueue:
    return SplitQueue(memory, driver.activation(), 1 << VIRTIO_RING_F_INDIRECT_DESC)


@pytest.fixture
def every_line_is_expected(lines: list[str]) -> Iterator[None]:
    """Fail where something is logged that the test did not take."""
    yield
    assert lines == []
