# SPDX-License-Identifier: BSD-3-Clause
"""A driver that polls from another process: it may see old and new values, and nothing between.

A store that zeroes the field first, as ``struct.pack_into`` does, is seen within a million looks:
used elements are stale then, and a driver gives the queue up.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from devices.virtio.features import VIRTIO_F_VERSION_1
from devices.virtio.queue.split_queue import SplitQueue
from tests.support.driver_queue import SIZE, DriverQueue

if TYPE_CHECKING:
    from sys_util.guest_memory import GuestMemory

LOOKS = 3_000_000
INDEX = 0x1234
SLOT = (INDEX - 1) % SIZE
HEADS = (0x3, 0x5)
LENGTHS = (0x1122_3344, 0xFFEE_DDCC)


def looks_whole(driver: DriverQueue) -> bool:
    """Return whether index and element were always one of those that are stored."""
    index = driver._used[2:4].cast("H")
    element = driver._used[4 + 8 * SLOT : 12 + 8 * SLOT].cast("Q")
    elements = {length << 32 | head for head, length in zip(HEADS, LENGTHS, strict=True)}
    for _ in range(LOOKS):
        if index[0] not in (INDEX, INDEX + 1) or element[0] not in elements:
            return False
    return True


def give_back(queue: SplitQueue, turn: int) -> None:
    """Use the same slot again, and publish two indices in turn."""
    queue._next_used = INDEX - 1
    queue.add_used(HEADS[turn % 2], LENGTHS[turn % 2])
    queue._next_used = INDEX + turn % 2
    queue.publish()


@pytest.mark.slow
def test_polling_driver_sees_whole_indices_and_elements(memory: GuestMemory) -> None:
    driver = DriverQueue(memory)
    queue = SplitQueue(memory, driver.activation(), 1 << VIRTIO_F_VERSION_1)
    give_back(queue, 0)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if looks_whole(driver) else 2
        finally:
            os._exit(status)
    ended = status = 0
    while not ended:
        for turn in range(2000):
            give_back(queue, turn)
        ended, status = os.waitpid(child, os.WNOHANG)
    assert os.waitstatus_to_exitcode(status) == 0
