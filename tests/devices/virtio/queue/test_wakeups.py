# SPDX-License-Identifier: BSD-3-Clause
"""Driver and device in two processes that wait for each other: no wake-up may get lost."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

import pytest

from devices.virtio.features import VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX
from devices.virtio.queue.worker import QueueWorker
from devices.virtio.rng.device import Rng, RngSpec
from sys_util.linux import full_barrier
from tests.support.driver_queue import DATA, WRITE, Desc, DriverQueue

if TYPE_CHECKING:
    from sys_util.guest_memory import GuestMemory

REQUESTS = 3000
DEPTH = 4
PATIENCE_MS = 20_000  # reached only when a wake-up was lost


def wait(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(PATIENCE_MS):
        raise TimeoutError("nobody woke us")
    os.eventfd_read(fd)


def drive(driver: DriverQueue, kick_fd: int, call_fd: int) -> None:
    """Keep up to DEPTH requests under way, kick when asked to, sleep when nothing is done."""
    driver.write_descs({head: Desc(DATA + 16 * head, 8, WRITE) for head in range(DEPTH)})
    sent = done = 0
    while done < REQUESTS:
        old = driver.avail_idx
        while sent < REQUESTS and sent - done < DEPTH:
            driver.stage(sent % DEPTH)
            sent += 1
        driver.publish()
        full_barrier()
        if driver.avail_idx != old and driver.needs_kick(old):
            os.eventfd_write(kick_fd, 1)
        taken = len(driver.take_used())
        if not taken:
            driver.set_used_event(driver.last_used_idx)
            full_barrier()
            taken = len(driver.take_used())
        if not taken:
            wait(call_fd)
        done += taken


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event-idx"])
def test_two_processes_never_wait_for_each_other(memory: GuestMemory, event_idx: bool) -> None:
    driver = DriverQueue(memory, event_idx=event_idx)
    features = 1 << VIRTIO_F_VERSION_1 | event_idx << VIRTIO_RING_F_EVENT_IDX
    kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            drive(driver, kick_fd, call_fd)
            status = 0
        finally:
            os._exit(status)
    worker = QueueWorker(Rng(RngSpec()), memory)
    worker.start_queue(driver.activation(0, kick_fd, call_fd), features)
    more = worker.on_kick(0)
    while worker.counters.requests < REQUESTS:
        if not more:
            wait(kick_fd)
        more = worker.on_kick(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(kick_fd)
    os.close(call_fd)
