# SPDX-License-Identifier: BSD-3-Clause
"""One guest's memory and one queue of eight, for every test of the virtqueue."""

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
