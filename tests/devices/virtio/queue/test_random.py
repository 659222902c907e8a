# SPDX-License-Identifier: BSD-3-Clause
"""Random drivers against a simple model, and random garbage."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from devices.virtio.features import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from devices.virtio.queue.chain import ChainError
from devices.virtio.queue.split_queue import QueueError, SplitQueue
from sys_util.guest_memory import GuestMemory
from tests.support.driver_queue import (
    RAM_BYTES,
    SIZE,
    Desc,
    DriverQueue,
)

EVENT_IDX = 1 << VIRTIO_RING_F_EVENT_IDX
INDIRECT_DESC = 1 << VIRTIO_RING_F_INDIRECT_DESC


# Random drivers against a model


buffers = st.lists(st.integers(0, 40), max_size=3)
steps = st.lists(st.tuples(buffers, buffers, st.booleans(), st.booleans()), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(steps=steps, event_idx=st.booleans())
def test_random_requests_all_come_back_once_with_their_bytes(
    steps: list[tuple[list[int], list[int], bool, bool]], event_idx: bool
) -> None:
    memory = GuestMemory.create([(0, RAM_BYTES)])
    driver = DriverQueue(memory, 16, event_idx=event_idx)
    features = INDIRECT_DESC | (EVENT_IDX if event_idx else 0)
    queue = SplitQueue(memory, driver.activation(), features)
    expected: dict[int, tuple[bytes, int]] = {}
    finished = 0
    for number, (out, into, indirect, serve_now) in enumerate(steps):
        data = [bytes([number % 256]) * length for length in out]
        into = into or [1]
        try:
            request = driver.submit(data, into, indirect=indirect)
            expected[request.head] = (b"".join(data), sum(into))
        except IndexError:
            serve_now = True  # the driver has to wait for descriptors
        if not serve_now:
            continue
        while (chain := queue.pop()) is not None:
            body, room = expected[chain.head]
            assert chain.reader.read(chain.reader.remaining) == body
            assert chain.writer.remaining == room
            chain.writer.write(bytes([room % 251]) * room)
            queue.add_used(chain.head, chain.writer.written)
        queue.publish()
        for request, length, answer in driver.collect():
            _, room = expected.pop(request.head)
            assert length == room
            assert answer == bytes([room % 251]) * room
            finished += 1
        assert not expected
    assert queue.state().next_used == finished
    memory.close()


words = st.integers(0, 0xFFFF)
hostile_desc = st.builds(
    Desc,
    st.one_of(st.integers(0, RAM_BYTES + 64), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.integers(0, 64), st.integers(0, 0xFFFF_FFFF)),
    st.one_of(st.integers(0, 7), words),
    st.one_of(st.integers(0, SIZE), words),
)


@settings(max_examples=80, deadline=None)
@given(
    table=st.lists(hostile_desc, min_size=SIZE, max_size=SIZE),
    heads=st.lists(st.one_of(st.integers(0, SIZE - 1), words), min_size=1, max_size=SIZE),
    avail_idx=st.one_of(st.none(), words),
    features=st.sampled_from([0, INDIRECT_DESC, INDIRECT_DESC | EVENT_IDX]),
)
def test_random_garbage_is_only_ever_a_guest_error(
    table: list[Desc], heads: list[int], avail_idx: int | None, features: int
) -> None:
    memory = GuestMemory.create([(0, RAM_BYTES)])
    driver = DriverQueue(memory, SIZE)
    driver.write_descs(dict(enumerate(table)))
    for head in heads:
        driver.offer(head)
    if avail_idx is not None:
        driver.set_avail_idx(avail_idx)
    queue = SplitQueue(memory, driver.activation(), features)
    popped = 0
    for _ in range(SIZE + 1):
        try:
            chain = queue.pop()
        except ChainError:
            popped += 1
            continue
        except QueueError:
            break
        if chain is None:
            break
        popped += 1
        assert chain.reader.remaining + chain.writer.remaining <= 1 << 32
        assert sum(map(len, chain.reader.iovecs(chain.reader.remaining))) == chain.reader.remaining
    assert popped <= SIZE
    memory.close()
