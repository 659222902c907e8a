# SPDX-License-Identifier: BSD-3-Clause
"""Frames that a TAP held for another driver: whole checksums, and no segments nobody asked for."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from sys_util.tap import TUNSETOFFLOAD
from tests.support.net_rig import EVENT_IDX, MRG_RXBUF, PLAIN, Ioctls, NetRig, frame, header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GUEST_CSUM = 1 << 1
GUEST_TSO4 = 1 << 7
OFFLOADS = (5, 0)
PARTIAL = header(1, 0, 0, 0, 34, 16)
SEGMENTS = header(1, 1, 54, 1448, 34, 16)


pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture(autouse=True)
def ioctls(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> Ioctls:
    return Ioctls(monkeypatch)


@pytest.fixture
def start() -> Iterator[Callable[..., NetRig]]:
    rigs = []

    def start(without: int = 0) -> NetRig:
        rig = NetRig(without=EVENT_IDX | without)
        rigs.append(rig)
        rig.driver.start(size=64)
        return rig

    yield start
    for rig in rigs:
        rig.close()


def summed(data: bytes) -> int:
    """Return the ones' complement sum, as RFC 1071 adds it up."""
    total = sum(
        int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2)
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("length", [60, 61, 1513, 1514, 9000])
@pytest.mark.parametrize("buffers", [[70000], [64] * 150, [12, 1, 33, 17, 1, 1, 9000]], ids=len)
@pytest.mark.parametrize("features", [GUEST_CSUM, GUEST_CSUM | MRG_RXBUF], ids=["merged", "plain"])
def test_checksum_is_completed_for_a_driver_without_checksums(
    start: Callable[[int], NetRig], features: int, buffers: list[int], length: int
) -> None:
    rig = start(features)
    if features & MRG_RXBUF or buffers[0] == 12:
        rig.driver.queues[0].submit([], buffers, indirect=True)
        rig.driver.kick(0)
    else:
        rig.offer(*buffers[:60])
    rig.arrive(frame(length), PARTIAL)
    data = b"".join(rig.received())
    if not data:  # longer than the driver's buffers
        assert sum(buffers[:60]) < length + 12
        return
    assert data[:10] == bytes(10)
    pseudo_header = frame(length)[50:52]  # its sum, where the checksum belongs
    assert summed(pseudo_header + data[12 + 34 :]) == 0xFFFF
    assert data[12 : 12 + 50] == frame(length)[:50]
    assert data[12 + 52 :] == frame(length)[52:]


def test_checksum_of_zero_is_all_ones(start: Callable[[int], NetRig]) -> None:
    rig = start(GUEST_CSUM)
    rig.offer(2000)
    rig.arrive(bytes(34) + b"\xff\xff" + bytes(24), PARTIAL)
    assert rig.received()[0][12 + 50 : 12 + 52] == b"\xff\xff"


@pytest.mark.parametrize(
    ("without", "head"),
    [
        pytest.param(GUEST_CSUM, SEGMENTS, id="segments without checksums"),
        pytest.param(GUEST_TSO4, SEGMENTS, id="segments alone"),
        pytest.param(GUEST_CSUM, header(1, 0, 0, 0, 34, 25), id="checksum behind the end"),
        pytest.param(GUEST_CSUM, header(1, 0, 0, 0, 0xFFFF, 0xFFFF), id="checksum far away"),
        pytest.param(0, header(1, 0x7F, 54, 1448, 34, 16), id="unknown type"),
    ],
)
def test_what_a_driver_cannot_take_is_dropped(
    start: Callable[[int], NetRig], without: int, head: bytes
) -> None:
    rig = start(without)
    rig.offer(2000)
    rig.arrive(frame(60), head)
    rig.arrive(frame(60, 1), header(2))
    (data,) = rig.received()
    assert data[12:] == frame(60, 1)
    assert (rig.device.stats.rx_dropped, rig.device.stats.rx_frames) == (1, 1)


def test_offloads_are_off_once_the_command_is_used(start: Callable[[], NetRig]) -> None:
    rig = start()
    rig.offer(2000, 2000, 2000)
    rig.arrive(frame(60), PARTIAL)
    assert rig.command(*OFFLOADS, struct.pack("<Q", 0)) == 0
    rig.arrive(frame(60), PARTIAL)
    assert rig.command(*OFFLOADS, struct.pack("<Q", GUEST_CSUM)) == 0
    rig.arrive(frame(60), header(5, 0, 0, 0, 34, 16))
    before, between, after = rig.received()
    assert before[:10] == after[:10] == PARTIAL[:10]
    assert between[:10] == PLAIN[:10]


def test_next_process_keeps_the_offloads(start: Callable[[], NetRig]) -> None:
    rig = start()
    rig.command(*OFFLOADS, struct.pack("<Q", 0))
    rig.restart()
    rig.offer(2000)
    rig.arrive(frame(60), PARTIAL)
    assert rig.received()[0][:10] == PLAIN[:10]


def test_reset_lets_the_host_hold_only_what_every_driver_can_take(
    start: Callable[[], NetRig], ioctls: Ioctls
) -> None:
    rig = start()
    assert ioctls.calls[-1] == (TUNSETOFFLOAD, 0b1111)
    rig.driver.reset()
    assert ioctls.calls[-1] == (TUNSETOFFLOAD, 0)
