# SPDX-License-Identifier: BSD-3-Clause
"""Chains, sound and hostile, at the boundary of the split queue."""

from __future__ import annotations

from typing import cast

import pytest

from devices.virtio.queue import split_queue as queue_module
from devices.virtio.queue.chain import ChainError
from devices.virtio.queue.split_queue import QueueError, QueueState, SplitQueue
from sys_util.guest_memory import GuestMemory
from tests.support.driver_queue import (
    DATA,
    HIGH,
    INDIRECT,
    NEXT,
    RAM_BYTES,
    SIZE,
    WRITE,
    Desc,
    DriverQueue,
    Used,
    pop,
)

# The layout of the queue


@pytest.mark.parametrize("size", [0, 3, 255, 65536, 0x8000_0000, -8])
def test_activate_bad_size_is_refused(memory: GuestMemory, driver: DriverQueue, size: int) -> None:
    with pytest.raises(QueueError, match=f"queue size {size} is not a power of two in 1..32768"):
        SplitQueue(memory, driver.activation()._replace(size=size), 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"desc_table": 0x1008}, "descriptor table at 0x1008 is not 16-", id="desc"),
        pytest.param({"avail_ring": 0x1001}, "available ring at 0x1001 is not 2-", id="avail"),
        pytest.param({"used_ring": 0x1002}, "used ring at 0x1002 is not 4-", id="used"),
        pytest.param({"desc_table": RAM_BYTES - 64}, "descriptor table: no guest", id="desc-end"),
        pytest.param({"avail_ring": RAM_BYTES - 16}, "available ring: no guest", id="avail-end"),
        pytest.param({"used_ring": RAM_BYTES - 64}, "used ring: no guest", id="used-end"),
        pytest.param({"used_ring": (1 << 64) - 4}, "used ring: no guest", id="wraps"),
        pytest.param({"desc_table": HIGH - 64}, "descriptor table: no guest", id="hole"),
        pytest.param({"avail_ring": 1 << 70}, "available ring: no guest", id="beyond-64-bits"),
    ],
)
def test_activate_bad_layout_is_refused(
    memory: GuestMemory, driver: DriverQueue, change: dict[str, int], reason: str
) -> None:
    layout = driver.activation()
    layout = layout._replace(
        desc_table=change.get("desc_table", layout.desc_table),
        avail_ring=change.get("avail_ring", layout.avail_ring),
        used_ring=change.get("used_ring", layout.used_ring),
    )
    with pytest.raises(QueueError, match=reason):
        SplitQueue(memory, layout, 0)


@pytest.mark.parametrize("size", [1, 2, 1024, 32768])
def test_activate_any_power_of_two_works(size: int) -> None:
    memory = GuestMemory.create([(0, 0x100000)])
    driver = DriverQueue(memory, size, heap=0xF0000)
    queue = SplitQueue(memory, driver.activation(), 0)
    driver.offer(size - 1, {size - 1: Desc(0xF0000, 4, WRITE)})
    assert pop(queue).head == size - 1
    memory.close()


# Well-formed chains


def test_pop_empty_ring_returns_none(queue: SplitQueue) -> None:
    assert queue.pop() is None


def test_pop_follows_the_chain_in_its_order(driver: DriverQueue, queue: SplitQueue) -> None:
    driver.memory.write(DATA, b"abcdef")
    driver.offer(
        3,
        {
            3: Desc(DATA + 4, 2, NEXT, 1),
            1: Desc(DATA, 4, NEXT, 7),
            7: Desc(DATA + 16, 3, NEXT | WRITE, 0),
            0: Desc(HIGH, 5, WRITE),
        },
    )
    chain = pop(queue)
    assert (chain.head, chain.reader.remaining, chain.writer.remaining) == (3, 6, 8)
    assert chain.reader.read(6) == b"efabcd"
    chain.writer.write(b"12345678")
    assert driver.memory.read(DATA + 16, 3) == b"123"
    assert driver.memory.read(HIGH, 5) == b"45678"


def test_pop_zero_length_descriptor_adds_nothing(driver: DriverQueue, queue: SplitQueue) -> None:
    driver.offer(0, {0: Desc(1 << 63, 0, NEXT, 1), 1: Desc(DATA, 2, WRITE)})
    chain = pop(queue)
    assert (chain.reader.remaining, chain.writer.remaining) == (0, 2)
    assert [len(vector) for vector in chain.writer.iovecs(2)] == [2]


def test_pop_chain_as_long_as_the_queue_works(driver: DriverQueue, queue: SplitQueue) -> None:
    table = {i: Desc(DATA + i, 1, NEXT, i + 1) for i in range(SIZE - 1)}
    driver.offer(0, table | {SIZE - 1: Desc(DATA + SIZE, 1)})
    assert pop(queue).reader.remaining == SIZE


def test_pop_buffers_may_overlap_and_repeat(driver: DriverQueue, queue: SplitQueue) -> None:
    driver.memory.write(DATA, b"xy")
    driver.offer(0, {0: Desc(DATA, 2, NEXT, 1), 1: Desc(DATA, 2)})
    assert pop(queue).reader.read(4) == b"xyxy"


def test_pop_buffers_may_come_from_regions_in_any_order(
    driver: DriverQueue, queue: SplitQueue
) -> None:
    driver.memory.write(HIGH, b"high")
    driver.memory.write(DATA, b"low")
    driver.offer(0, {0: Desc(HIGH, 4, NEXT, 1), 1: Desc(DATA, 3, NEXT, 2), 2: Desc(HIGH + 1, 3)})
    assert pop(queue).reader.read(10) == b"highlowigh"


def test_pop_hole_below_the_region_of_the_last_buffer_is_no_memory(
    driver: DriverQueue, queue: SplitQueue
) -> None:
    driver.offer(0, {0: Desc(HIGH, 4, NEXT, 1), 1: Desc(HIGH - 8, 4)})
    with pytest.raises(ChainError, match="no guest memory at 0xfffffff8"):
        queue.pop()


def test_pop_last_byte_of_memory_is_usable(driver: DriverQueue, queue: SplitQueue) -> None:
    driver.offer(0, {0: Desc(RAM_BYTES - 1, 1, WRITE)})
    pop(queue).writer.write(b"z")
    assert driver.memory.read(RAM_BYTES - 1, 1) == b"z"


def test_pop_unknown_flags_are_ignored(driver: DriverQueue, queue: SplitQueue) -> None:
    driver.offer(0, {0: Desc(DATA, 2, 0xFFF8)})
    assert pop(queue).reader.remaining == 2


def test_pop_descriptors_are_read_once(driver: DriverQueue, queue: SplitQueue) -> None:
    driver.offer(0, {0: Desc(DATA, 4, WRITE)})
    chain = pop(queue)
    driver.write_descs({0: Desc(DATA + 0x100, 0x1000, WRITE)})
    chain.writer.write(b"late")
    assert driver.memory.read(DATA, 4) == b"late"
    assert chain.writer.remaining == 0


def test_indices_wrap_at_16_bits(driver: DriverQueue, queue: SplitQueue) -> None:
    driver.write_descs({i: Desc(DATA, 4, WRITE) for i in range(SIZE)})
    for turn in range(65536 + 20):
        driver.offer(turn % SIZE)
        queue.add_used(pop(queue).head, 4)
        queue.publish()
    assert driver.used_idx == driver.avail_idx == 20
    assert queue.state() == QueueState(20, 20)
    assert driver.used_elem(19) == Used((65536 + 19) % SIZE, 4)


# Malformed chains: given back, and the next one works


def chain_of(count: int) -> dict[int, Desc]:
    return {i: Desc(DATA, 1, NEXT, i + 1) for i in range(count - 1)} | {count - 1: Desc(DATA, 1)}


MALFORMED = [
    pytest.param({0: Desc(DATA, 1, NEXT, 0)}, "descriptor loop", id="loop-of-one"),
    pytest.param(
        {0: Desc(DATA, 1, NEXT, 1), 1: Desc(DATA, 1, NEXT, 0)}, "descriptor loop", id="loop-of-two"
    ),
    pytest.param({0: Desc(DATA, 1, NEXT, SIZE)}, "descriptor 8 outside a table of 8", id="next"),
    pytest.param({0: Desc(DATA, 1, NEXT, 0xFFFF)}, "descriptor 65535 outside", id="next-far"),
    pytest.param({0: Desc(RAM_BYTES - 1, 2, WRITE)}, "no guest memory", id="address-end"),
    pytest.param({0: Desc(RAM_BYTES, 1)}, "no guest memory at 0x40000", id="address-after"),
    pytest.param({0: Desc(HIGH - 1, 2)}, "no guest memory", id="address-hole"),
    pytest.param({0: Desc((1 << 64) - 1, 1)}, "no guest memory", id="address-top"),
    pytest.param({0: Desc((1 << 64) - 1, 2)}, "no guest memory", id="address-wraps"),
    pytest.param({0: Desc(0, 0xFFFF_FFFF)}, "no guest memory", id="length"),
    pytest.param(
        {0: Desc(DATA, 1, NEXT | WRITE, 1), 1: Desc(DATA, 1)},
        "device-readable descriptor after a device-writable one",
        id="order",
    ),
    pytest.param(
        {0: Desc(DATA, 0, NEXT | WRITE, 1), 1: Desc(DATA, 1)},
        "device-readable descriptor after a device-writable one",
        id="order-empty-first",
    ),
    pytest.param(
        {0: Desc(DATA, 16, INDIRECT | NEXT, 1), 1: Desc(DATA, 1)},
        "indirect descriptor with a next",
        id="indirect-and-next",
    ),
    pytest.param({0: Desc(DATA, 0, INDIRECT)}, "table of 0 bytes", id="indirect-empty"),
    pytest.param({0: Desc(DATA, 15, INDIRECT)}, "table of 15 bytes", id="indirect-short"),
    pytest.param({0: Desc(DATA, 24, INDIRECT)}, "table of 24 bytes", id="indirect-odd"),
    pytest.param(
        {0: Desc(0, 16 * 32769, INDIRECT)}, "table of 32769 descriptors", id="indirect-huge"
    ),
    pytest.param({0: Desc(RAM_BYTES - 16, 32, INDIRECT)}, "no guest memory", id="indirect-end"),
    pytest.param({0: Desc(1 << 40, 16, INDIRECT)}, "no guest memory", id="indirect-nowhere"),
]


@pytest.mark.parametrize(("table", "reason"), MALFORMED)
def test_pop_malformed_chain_raises_and_moves_on(
    driver: DriverQueue, queue: SplitQueue, table: dict[int, Desc], reason: str
) -> None:
    driver.offer(0, table)
    driver.offer(5, {5: Desc(DATA, 8, WRITE)})
    with pytest.raises(ChainError, match=reason) as caught:
        queue.pop()
    assert caught.value.head == 0
    assert pop(queue).head == 5
    assert queue.pop() is None


def test_pop_loop_through_the_whole_table_is_found(driver: DriverQueue, queue: SplitQueue) -> None:
    driver.offer(0, {i: Desc(DATA, 1, NEXT, (i + 1) % SIZE) for i in range(SIZE)})
    with pytest.raises(ChainError, match="descriptor loop"):
        queue.pop()


def test_pop_chain_of_more_than_4_gib_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "MAX_CHAIN_BYTES", 0x2FFF)
    memory = GuestMemory.create([(0, RAM_BYTES)])
    driver = DriverQueue(memory, SIZE)
    queue = SplitQueue(memory, driver.activation(), 0)
    table = {0: Desc(DATA, 0x1000, NEXT, 1), 1: Desc(DATA, 0x2000, WRITE)}
    driver.offer(0, table)
    with pytest.raises(ChainError, match="0x3000 bytes in one chain"):
        queue.pop()
    memory.close()


# Indirect tables


@pytest.mark.parametrize("flags", [0, WRITE], ids=["plain", "write-flag-ignored"])
def test_pop_indirect_chain_is_followed(driver: DriverQueue, queue: SplitQueue, flags: int) -> None:
    driver.memory.write(DATA, b"head")
    table = driver.write_table(
        [Desc(DATA, 4), Desc(DATA + 64, 2, WRITE), Desc(HIGH, 3, WRITE)], order=[0, 2, 1]
    )
    driver.offer(6, {6: Desc(table, 48, INDIRECT | flags)})
    chain = pop(queue)
    assert chain.head == 6
    assert chain.reader.read(4) == b"head"
    assert [len(vector) for vector in chain.writer.iovecs(5)] == [2, 3]


def test_pop_direct_descriptors_before_an_indirect_one(
    driver: DriverQueue, queue: SplitQueue
) -> None:
    table = driver.write_table([Desc(DATA + 64, 2), Desc(HIGH, 3, WRITE)])
    driver.offer(0, {0: Desc(DATA, 4, NEXT, 1), 1: Desc(table, 32, INDIRECT)})
    chain = pop(queue)
    assert (chain.reader.remaining, chain.writer.remaining) == (6, 3)


def test_pop_indirect_chain_longer_than_the_queue_works(
    driver: DriverQueue, queue: SplitQueue
) -> None:
    table = driver.write_table([Desc(DATA, 1)] * 1024)
    driver.offer(0, {0: Desc(table, 16 * 1024, INDIRECT)})
    assert pop(queue).reader.remaining == 1024


@pytest.mark.parametrize(
    ("descs", "reason"),
    [
        pytest.param([Desc(DATA, 1, NEXT, 0)], "descriptor loop", id="loop"),
        pytest.param([Desc(DATA, 1, NEXT, 1)], "descriptor 1 outside a table of 1", id="next"),
        pytest.param([Desc(DATA, 16, INDIRECT)], "in an indirect table", id="nested"),
        pytest.param([Desc(1 << 50, 1)], "no guest memory", id="address"),
        pytest.param(
            [Desc(DATA, 1, WRITE), Desc(DATA, 1)], "device-readable descriptor after", id="order"
        ),
        pytest.param([Desc(DATA, 1)] * 1025, "longer than allowed", id="too-long"),
    ],
)
def test_pop_malformed_indirect_table_raises_and_moves_on(
    driver: DriverQueue, queue: SplitQueue, descs: list[Desc], reason: str
) -> None:
    table = driver.write_table(descs)
    driver.offer(2, {2: Desc(table, 16 * len(descs), INDIRECT)})
    driver.offer(5, {5: Desc(DATA, 8, WRITE)})
    with pytest.raises(ChainError, match=reason) as caught:
        queue.pop()
    assert caught.value.head == 2
    assert pop(queue).head == 5


def test_pop_indirect_table_that_was_not_negotiated_is_refused(
    memory: GuestMemory, driver: DriverQueue
) -> None:
    queue = SplitQueue(memory, driver.activation(), 0)
    driver.offer(0, {0: Desc(DATA, 16, INDIRECT)})
    with pytest.raises(ChainError, match="not negotiated"):
        queue.pop()


# A ring that makes no sense


def test_pop_available_index_too_far_ahead_is_queue_error(
    driver: DriverQueue, queue: SplitQueue
) -> None:
    driver.set_avail_idx(SIZE + 1)
    with pytest.raises(QueueError, match="avail idx 9 is 9 ahead of a queue of 8"):
        queue.pop()


def test_pop_available_index_going_back_is_queue_error(
    driver: DriverQueue, queue: SplitQueue
) -> None:
    driver.offer(0, {0: Desc(DATA, 1)})
    queue.pop()
    driver.set_avail_idx(0)
    with pytest.raises(QueueError, match="avail idx 0 is 65535 ahead"):
        queue.pop()


def test_enable_notification_sees_a_nonsense_index(driver: DriverQueue, queue: SplitQueue) -> None:
    driver.set_avail_idx(0x4000)
    with pytest.raises(QueueError, match="ahead of a queue"):
        queue.enable_notification()


@pytest.mark.parametrize("head", [SIZE, 0xFFFF])
def test_pop_head_outside_the_table_is_queue_error(
    driver: DriverQueue, queue: SplitQueue, head: int
) -> None:
    driver.offer(head)
    with pytest.raises(QueueError, match=f"head {head} outside a table of 8"):
        queue.pop()


class Words:
    """A ring's words and the barrier around them, in the order in which they were touched."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.order: list[str] = []

    def __getitem__(self, at: int) -> int:
        self.order.append(f"load {at}")
        return self.value

    def __setitem__(self, at: int, value: int) -> None:
        self.order.append(f"store {value} at {at}")

    def barrier(self) -> None:
        self.order.append("barrier")


@pytest.mark.parametrize("keeps_order", [True, False])
def test_index_is_read_before_and_shown_after_what_it_stands_for(
    monkeypatch: pytest.MonkeyPatch, *, keeps_order: bool
) -> None:
    words = Words(7)
    monkeypatch.setattr(queue_module, "KEEPS_ORDER", keeps_order)
    monkeypatch.setattr(queue_module, "full_barrier", words.barrier)
    view = cast("memoryview", words)
    assert queue_module.load_acquire(view, 1) == 7
    queue_module.store_release(view, 1, 8)
    barriers = [] if keeps_order else ["barrier", "barrier"]
    assert words.order == ["load 1", *barriers, "store 8 at 1"]


# Memory that comes and goes


def test_pop_buffer_in_a_block_that_has_gone_is_malformed() -> None:
    block = 2 << 20
    memory = GuestMemory.create([(0, RAM_BYTES)], hot_ranges=[(HIGH, 2 * block, block)])
    driver = DriverQueue(memory)
    queue = SplitQueue(memory, driver.activation(), 0)
    area = memory.hot_areas[0]
    area.show(0, 2)
    area.hide(1, 1)
    for head, gpa in enumerate((HIGH, HIGH + block)):
        driver.offer(head, {head: Desc(gpa, 16, WRITE)})
    assert pop(queue).writer.remaining == 16
    with pytest.raises(ChainError, match="no guest memory at 0x100200000"):
        queue.pop()
    area.hide(0, 1)
    driver.offer(0)
    with pytest.raises(ChainError, match="no guest memory at 0x100000000"):
        queue.pop()
    memory.close()
