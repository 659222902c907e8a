# SPDX-License-Identifier: BSD-3-Clause
"""What several files of tests begin with: a device and its driver, one queue, an empty log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devices.virtio.balloon.device import BalloonSpec
from devices.virtio.features import VIRTIO_RING_F_INDIRECT_DESC
from devices.virtio.queue.split_queue import SplitQueue
from sys_util.guest_memory import GuestMemory
from tests.devices.virtio.transport.pci_driver import Machine
from tests.support.balloon_rig import BalloonRig
from tests.support.driver_queue import HIGH, RAM_BYTES, DriverQueue
from tests.support.vsock_rig import VsockRig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
def machine() -> Iterator[Machine]:
    """A block device behind virtio-pci, as the machine finds it after a reset."""
    machine = Machine()
    yield machine
    machine.close()


@pytest.fixture
def vsock(tmp_path: Path) -> Iterator[VsockRig]:
    """A vsock device whose driver is ready."""
    vsock = VsockRig(tmp_path)
    vsock.start()
    yield vsock
    vsock.close()


@pytest.fixture
def balloon(lines: list[str]) -> Iterator[BalloonRig]:
    """A balloon whose driver is ready, and a pool of pages that are in use."""
    balloon = BalloonRig(BalloonSpec(page_reporting=True))
    balloon.fill_pool()
    balloon.start()
    yield balloon
    balloon.close()


@pytest.fixture
def every_line_is_expected(lines: list[str]) -> Iterator[None]:
    """Fail where something is logged that the test did not take."""
    yield
    assert lines == []
