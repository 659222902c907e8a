# SPDX-License-Identifier: BSD-3-Clause
"""The entropy device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devices.virtio.queue.chain import ChainError
from devices.virtio.rng.device import REQUEST_QUEUE, Rng, RngSpec
from tests.support.driver_queue import DATA, NEXT, WRITE, Desc, DriverQueue, pop

if TYPE_CHECKING:
    from devices.virtio.queue.split_queue import SplitQueue


def test_fills_every_buffer_of_the_chain(driver: DriverQueue, queue: SplitQueue) -> None:
    request = driver.submit(into=[1, 64, 31])
    chain = pop(queue)
    Rng(RngSpec()).handle_chain(REQUEST_QUEUE, chain)
    assert chain.writer.written == 96
    data = [driver.memory.read(at, length) for at, length in request.answers]
    assert data[1] != b"\xee" * 64
    assert data[1][:31] != data[2]


def test_fills_no_more_than_its_limit(driver: DriverQueue, queue: SplitQueue) -> None:
    request = driver.submit(into=[64])
    chain = pop(queue)
    Rng(RngSpec(max_fill_bytes=16)).handle_chain(REQUEST_QUEUE, chain)
    assert chain.writer.written == 16
    assert driver.memory.read(request.answers[0][0] + 16, 48) == b"\xee" * 48


def test_overlapping_buffers_cost_no_more_than_the_limit(
    driver: DriverQueue, queue: SplitQueue
) -> None:
    driver.offer(0, {0: Desc(0, DATA, NEXT | WRITE, 1), 1: Desc(0x8000, DATA, WRITE)})
    chain = pop(queue)
    chain.writer.iovecs(4)[0][:] = bytes(4)
    Rng(RngSpec(max_fill_bytes=4)).handle_chain(REQUEST_QUEUE, chain)
    assert chain.writer.written == 4


@pytest.mark.parametrize(
    ("out", "into", "reason"),
    [
        pytest.param([b"x"], [8], "device-readable buffer on requestq", id="readable"),
        pytest.param([], [0], "no buffer to fill", id="empty"),
    ],
)
def test_buffer_that_makes_no_sense_is_refused(
    driver: DriverQueue, queue: SplitQueue, out: list[bytes], into: list[int], reason: str
) -> None:
    driver.submit(out, into)
    chain = pop(queue)
    with pytest.raises(ChainError, match=reason):
        Rng(RngSpec()).handle_chain(REQUEST_QUEUE, chain)
    assert chain.writer.written == 0


def test_has_no_features_and_no_config() -> None:
    device = Rng(RngSpec())
    assert (device.features(), device.config(), device.device_type) == (0, b"", 4)
