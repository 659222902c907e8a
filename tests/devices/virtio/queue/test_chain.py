# SPDX-License-Identifier: BSD-3-Clause
"""The two byte streams of a chain: no cut into descriptors makes a difference."""

from __future__ import annotations

import struct

import pytest

from devices.virtio.queue.chain import ChainError
from devices.virtio.queue.split_queue import SplitQueue
from tests.support.driver_queue import (
    DriverQueue,
    pop,
)

# Streams


def test_reader_unpacks_across_any_cut(driver: DriverQueue, queue: SplitQueue) -> None:
    layout = struct.Struct("<IIQ")
    for cut in range(1, 16):
        data = layout.pack(1, 2, 3) + b"rest"
        driver.submit([data[:cut], data[cut:]])
        chain = pop(queue)
        assert chain.reader.unpack(layout) == (1, 2, 3)
        assert chain.reader.read(4) == b"rest"
        queue.add_used(chain.head, 0)
        queue.publish()
        driver.collect()


def test_reader_short_of_bytes_raises(driver: DriverQueue, queue: SplitQueue) -> None:
    driver.submit([b"abc"])
    chain = pop(queue)
    with pytest.raises(ChainError, match="chain 0: 4 bytes wanted, 3 are there"):
        chain.reader.read(4)
    with pytest.raises(ChainError, match="16 bytes wanted"):
        chain.reader.unpack(struct.Struct("16s"))
    with pytest.raises(ChainError, match="4 bytes wanted"):
        chain.reader.skip(4)
    assert chain.reader.read(3) == b"abc"


def test_writer_too_much_raises_and_stores_nothing(driver: DriverQueue, queue: SplitQueue) -> None:
    driver.submit(into=[2, 2])
    chain = pop(queue)
    with pytest.raises(ChainError, match="5 bytes wanted, 4 are there"):
        chain.writer.write(b"12345")
    with pytest.raises(ChainError, match="5 bytes wanted"):
        chain.writer.commit(5)
    with pytest.raises(ChainError, match="5 bytes wanted"):
        chain.writer.split_at(5)
    assert chain.writer.written == 0


def test_writer_commit_counts_part_of_the_iovecs(driver: DriverQueue, queue: SplitQueue) -> None:
    request = driver.submit(into=[4, 4])
    chain = pop(queue)
    vectors = chain.writer.iovecs(8)
    vectors[0][:] = b"abcd"
    vectors[1][:2] = b"ef"
    chain.writer.commit(6)
    chain.writer.write(b"gh")
    assert (chain.writer.written, chain.writer.remaining) == (8, 0)
    data = b"".join(driver.memory.read(at, length) for at, length in request.answers)
    assert data == b"abcdefgh"


@pytest.mark.parametrize("offset", range(10))
def test_writer_split_anywhere_writes_both_parts(
    driver: DriverQueue, queue: SplitQueue, offset: int
) -> None:
    request = driver.submit(into=[4, 1, 4])
    first = pop(queue).writer
    second = first.split_at(offset)
    assert (first.remaining, second.remaining) == (offset, 9 - offset)
    second.write(b"987654321"[offset:])
    first.write(b"987654321"[:offset])
    assert first.written == 9
    data = b"".join(driver.memory.read(at, length) for at, length in request.answers)
    assert data == b"987654321"


def test_written_counts_the_split_part_only_without_a_gap(
    driver: DriverQueue, queue: SplitQueue
) -> None:
    driver.submit(into=[9])
    writer = pop(queue).writer
    status = writer.split_at(8)
    status.write(b"\x01")
    assert writer.written == 0
    writer.write(b"half")
    assert writer.written == 4
    writer.write(b"half")
    assert writer.written == 9
