# SPDX-License-Identifier: BSD-3-Clause
"""Giving chains back, notifications in both directions, and resuming."""

from __future__ import annotations

import os
import struct

import pytest

from devices.virtio.features import VIRTIO_RING_F_EVENT_IDX
from devices.virtio.queue import split_queue as queue_module
from devices.virtio.queue.split_queue import QueueState, SplitQueue
from sys_util.guest_memory import GuestMemory
from tests.support.driver_queue import (
    DATA,
    NO_INTERRUPT,
    NO_NOTIFY,
    SIZE,
    WRITE,
    Desc,
    DriverQueue,
    Used,
    pop,
)

EVENT_IDX = 1 << VIRTIO_RING_F_EVENT_IDX


# Giving chains back


def test_add_used_is_invisible_until_published(driver: DriverQueue, queue: SplitQueue) -> None:
    queue.add_used(3, 17)
    queue.add_used(1, 0)
    assert driver.used_idx == 0
    queue.publish()
    assert driver.take_used() == [Used(3, 17), Used(1, 0)]


def test_add_used_length_is_cut_to_32_bits(driver: DriverQueue, queue: SplitQueue) -> None:
    queue.add_used(1, 1 << 32)
    queue.publish()
    assert driver.take_used() == [Used(1, 0xFFFF_FFFF)]


def test_add_used_stays_inside_its_ring(driver: DriverQueue, queue: SplitQueue) -> None:
    end = driver.used_ring + 6 + 8 * SIZE
    driver.memory.write(end, b"\xaa" * 16)
    for head in range(SIZE):
        queue.add_used(head, 0xFFFF_FFFF)
    queue.publish()
    assert driver.avail_event == 0
    assert driver.memory.read(end, 16) == b"\xaa" * 16


def test_publish_is_never_seen_half_done(driver: DriverQueue, queue: SplitQueue) -> None:
    """Another process polls the index. ``struct.pack_into`` fails here: it stores a 0 first."""
    indices = (0x1234, 0x1235)
    queue._next_used = indices[0]
    queue.publish()
    idx = driver.memory.view(driver.used_ring, 4).cast("H")
    child = os.fork()
    if child == 0:
        torn = sum(idx[1] not in indices for _ in range(300_000))
        os._exit(1 if torn else 0)
    pid = turn = 0
    while pid == 0:
        for _ in range(1000):
            turn ^= 1
            queue._next_used = indices[turn]
            queue.publish()
        pid, status = os.waitpid(child, os.WNOHANG)
    assert os.waitstatus_to_exitcode(status) == 0


# Notifications


def test_notification_flag_without_event_idx(driver: DriverQueue, queue: SplitQueue) -> None:
    queue.disable_notification()
    assert driver.used_flags == NO_NOTIFY
    assert queue.enable_notification() is False
    assert driver.used_flags == 0
    assert queue.idle


def test_enable_notification_reports_a_chain_that_slipped_in(
    driver: DriverQueue, queue: SplitQueue
) -> None:
    queue.disable_notification()
    assert queue.pop() is None
    driver.offer(0, {0: Desc(DATA, 1)})
    assert queue.enable_notification() is True
    assert not queue.idle


def test_event_idx_asks_for_a_kick_at_the_next_chain(memory: GuestMemory) -> None:
    driver = DriverQueue(memory, SIZE, event_idx=True)
    queue = SplitQueue(memory, driver.activation(), EVENT_IDX)
    for head in range(3):
        driver.offer(head, {head: Desc(DATA, 1)})
        queue.pop()
    queue.disable_notification()
    assert driver.used_flags == 0
    assert queue.enable_notification() is False
    assert driver.avail_event == 3
    driver.offer(3, {3: Desc(DATA, 1)})
    assert driver.needs_kick(3)
    driver.offer(4, {4: Desc(DATA, 1)})
    assert not driver.needs_kick(4)


def test_interrupt_flag_without_event_idx(driver: DriverQueue, queue: SplitQueue) -> None:
    queue.add_used(0, 0)
    queue.publish()
    driver.set_avail_flags(NO_INTERRUPT)
    assert not queue.wants_interrupt()
    queue.add_used(0, 0)
    queue.publish()
    driver.set_avail_flags(0)
    assert queue.wants_interrupt()
    assert not queue.wants_interrupt()


def test_interrupt_flag_is_ignored_with_event_idx(memory: GuestMemory) -> None:
    driver = DriverQueue(memory, SIZE, event_idx=True)
    queue = SplitQueue(memory, driver.activation(), EVENT_IDX)
    driver.set_avail_flags(NO_INTERRUPT)
    queue.add_used(0, 0)
    queue.publish()
    assert queue.wants_interrupt()


@pytest.mark.parametrize(
    ("start", "batch", "used_event", "wanted"),
    [
        pytest.param(0, 1, 0, True, id="exactly"),
        pytest.param(0, 1, 1, False, id="not-yet"),
        pytest.param(0, 3, 2, True, id="last-of-batch"),
        pytest.param(0, 3, 0, True, id="first-of-batch"),
        pytest.param(0, 3, 3, False, id="after-batch"),
        pytest.param(5, 1, 4, False, id="passed-before"),
        pytest.param(5, 1, 0xFFFF, False, id="far-away"),
        pytest.param(65534, 4, 1, True, id="wraps"),
        pytest.param(65534, 4, 2, False, id="wraps-not-yet"),
        pytest.param(65534, 1, 65534, True, id="before-wrap"),
    ],
)
def test_event_idx_interrupt_when_the_driver_asked_for_it(
    memory: GuestMemory, start: int, batch: int, used_event: int, wanted: bool
) -> None:
    driver = DriverQueue(memory, SIZE, event_idx=True)
    queue = SplitQueue(memory, driver.activation(), EVENT_IDX)
    for _ in range(start):
        queue.add_used(0, 0)
    queue.publish()
    queue.wants_interrupt()
    driver.set_used_event(used_event)
    for _ in range(batch):
        queue.add_used(0, 0)
    queue.publish()
    assert queue.wants_interrupt() is wanted


def test_wants_interrupt_nothing_published_is_no(queue: SplitQueue) -> None:
    assert not queue.wants_interrupt()


def barrier_spy(monkeypatch: pytest.MonkeyPatch, driver: DriverQueue) -> list[tuple[int, int, int]]:
    """Record used idx, avail event and used flags as they are in memory at each barrier."""
    seen: list[tuple[int, int, int]] = []

    def record() -> None:
        seen.append((driver.used_idx, driver.avail_event, driver.used_flags))

    monkeypatch.setattr(queue_module, "full_barrier", record)
    return seen


def test_barrier_stands_between_event_and_second_look(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = DriverQueue(memory, SIZE, event_idx=True)
    queue = SplitQueue(memory, driver.activation(), EVENT_IDX)
    driver.offer(0, {0: Desc(DATA, 1)})
    queue.pop()
    seen = barrier_spy(monkeypatch, driver)
    queue.enable_notification()
    assert seen == [(0, 1, 0)]


def test_chain_offered_at_the_barrier_is_seen(
    memory: GuestMemory, driver: DriverQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = SplitQueue(memory, driver.activation(), 0)
    assert queue.pop() is None
    monkeypatch.setattr(queue_module, "full_barrier", lambda: driver.offer(0, {0: Desc(DATA, 1)}))
    assert queue.enable_notification() is True


def test_barrier_stands_between_used_index_and_the_wish_for_interrupts(
    driver: DriverQueue, queue: SplitQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.add_used(0, 0)
    queue.publish()
    seen = barrier_spy(monkeypatch, driver)
    assert queue.wants_interrupt()
    assert seen == [(1, 0, 0)]


# Resuming


def test_resume_goes_on_at_used_idx(memory: GuestMemory, driver: DriverQueue) -> None:
    first = SplitQueue(memory, driver.activation(), 0)
    for head in range(4):
        driver.offer(head, {head: Desc(DATA + 16 * head, 8, WRITE)})
    for _ in range(3):  # the third is popped and lost with the process
        chain = pop(first)
        if chain.head < 2:
            first.add_used(chain.head, 8)
    first.publish()
    second = SplitQueue(memory, driver.activation(resume=True), 0)
    assert second.state() == QueueState(2, 2)
    assert [pop(second).head, pop(second).head] == [2, 3]
    assert second.pop() is None


def test_resume_always_wants_one_interrupt(memory: GuestMemory, driver: DriverQueue) -> None:
    driver.set_avail_flags(NO_INTERRUPT)
    queue = SplitQueue(memory, driver.activation(resume=True), 0)
    assert queue.wants_interrupt()
    assert not queue.wants_interrupt()


def test_fresh_queue_starts_at_zero_whatever_memory_holds(
    memory: GuestMemory, driver: DriverQueue
) -> None:
    memory.write(driver.used_ring + 2, struct.pack("<H", 77))
    queue = SplitQueue(memory, driver.activation(), 0)
    assert queue.state() == QueueState(0, 0)
