# SPDX-License-Identifier: BSD-3-Clause
"""Frames through the queues: merged buffers, awkward layouts, everything a driver can get wrong."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from tests.support.driver_queue import WRITE, Desc
from tests.support.net_rig import EVENT_IDX, MRG_RXBUF, PLAIN, Ioctls, NetRig, frame, header

if TYPE_CHECKING:
    from collections.abc import Iterator

CSUM = 1 << 0
GUEST_CSUM = 1 << 1


pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture(autouse=True)
def _ioctls(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    Ioctls(monkeypatch)


def started(without: int = 0) -> Iterator[NetRig]:
    rig = NetRig(without=EVENT_IDX | without)
    rig.driver.start(size=64)
    yield rig
    rig.close()


@pytest.fixture
def rig() -> Iterator[NetRig]:
    yield from started()


@pytest.fixture
def plain_rig() -> Iterator[NetRig]:
    """A driver without mergeable buffers."""
    yield from started(MRG_RXBUF)


def num_buffers(data: bytes) -> int:
    return int.from_bytes(data[10:12], "little")


def buffers_for(length: int, size: int) -> int:
    return -(-(length + 12) // size)


@pytest.mark.parametrize(
    ("length", "size"),
    [
        (length, size)
        for length in (14, 60, 1514, 65550)
        for size in (12, 13, 100, 1536, 70000)
        if buffers_for(length, size) <= 60  # what the queue has
    ],
)
def test_receive_any_length_into_any_buffers(rig: NetRig, length: int, size: int) -> None:
    needed = buffers_for(length, size)
    rig.offer(*[size] * needed)
    rig.arrive(frame(length))
    received = rig.received()
    assert b"".join(received)[12:] == frame(length)
    assert len(received) == needed == num_buffers(received[0])


def test_receive_many_sizes_in_turn(rig: NetRig) -> None:
    rig.offer(*[1000] * 60)
    lengths = [60, 9000, 14, 20000, 5000, 64, 980, 988, 989]
    for seed, length in enumerate(lengths):
        rig.arrive(frame(length, seed))
    buffers = rig.received()
    for seed, length in enumerate(lengths):
        count = num_buffers(buffers[0])
        assert b"".join(buffers[:count])[12:] == frame(length, seed)
        del buffers[:count]
    assert buffers == []


def test_receive_frame_waits_for_more_buffers(rig: NetRig) -> None:
    rig.offer(100, 100)
    rig.arrive(frame(500))
    assert rig.received() == []
    assert not rig.listens()
    rig.offer(100)
    assert rig.received() == []
    rig.offer(*[100] * 5)
    received = rig.received()
    assert b"".join(received)[12:] == frame(500)
    assert num_buffers(received[0]) == len(received) == 6
    rig.arrive(frame(20, 1))
    assert rig.received()[0][12:] == frame(20, 1)


def test_receive_half_a_frame_and_a_pause_loses_only_that(rig: NetRig) -> None:
    rig.offer(100, 100)
    rig.arrive(frame(500))
    rig.driver.worker.pause()
    state = rig.driver.worker.states()[0]
    assert state.next_avail == state.next_used
    rig.driver.worker.resume()
    rig.driver.kick(0)
    rig.arrive(frame(50, 1))
    assert [data[12:] for data in rig.received()] == [frame(50, 1)]


def test_receive_no_buffers_leaves_the_frames_in_the_host(rig: NetRig) -> None:
    rig.host.send(PLAIN + frame(60))
    assert not rig.listens()
    rig.offer(2000)
    assert [data[12:] for data in rig.received()] == [frame(60)]


def test_receive_batch_is_bounded_and_level_triggered(rig: NetRig) -> None:
    rig.offer(*[100] * 40)
    for seed in range(50):
        rig.host.send(PLAIN + frame(20, seed))
    rig.driver.context.fire(rig.end_fd)
    assert [data[12:] for data in rig.received()] == [frame(20, seed) for seed in range(40)]
    assert not rig.listens()
    rig.offer(*[100] * 20)
    assert [data[12:] for data in rig.received()] == [frame(20, seed) for seed in range(40, 50)]
    assert rig.listens()


def test_receive_header_in_small_descriptors(rig: NetRig) -> None:
    rig.driver.queues[0].submit([], [1, 9, 1, 5, 200])
    rig.driver.kick(0)
    rig.arrive(frame(100), header(1, 1, 54, 1448, 34, 16))
    ((_, used, data),) = rig.driver.queues[0].collect()
    assert used == 112
    assert data[:10] == header(1, 1, 54, 1448, 34, 16)[:10]
    assert num_buffers(data) == 1
    assert data[12:112] == frame(100)


def test_receive_large_segments_are_counted(rig: NetRig) -> None:
    rig.offer(4000, 4000)
    rig.arrive(frame(3000), header(1, 1, 54, 1448, 34, 16))
    rig.arrive(frame(60))
    assert (rig.device.stats.rx_frames, rig.device.stats.rx_large) == (2, 1)


@pytest.mark.parametrize("without", [0, GUEST_CSUM])
def test_receive_flags_are_for_drivers_with_checksums(without: int) -> None:
    for rig in started(without):
        rig.offer(2000)
        rig.arrive(frame(60), header(2))
        assert rig.received()[0][0] == (0 if without else 2)


def test_receive_without_merging_uses_one_chain_each(plain_rig: NetRig) -> None:
    plain_rig.offer(70000, 70000)
    plain_rig.arrive(frame(65550))
    plain_rig.arrive(frame(60))
    received = plain_rig.received()
    assert [data[12:] for data in received] == [frame(65550), frame(60)]
    assert [num_buffers(data) for data in received] == [1, 1]


def test_receive_without_merging_drops_what_does_not_fit(plain_rig: NetRig) -> None:
    plain_rig.offer(1526)
    plain_rig.arrive(frame(2000))
    plain_rig.arrive(frame(60, 1))
    assert [data[12:] for data in plain_rig.received()] == [frame(60, 1)]
    assert plain_rig.device.stats.rx_dropped == 1


@pytest.mark.parametrize(
    ("out", "into"),
    [
        pytest.param([], [11], id="too small for a header"),
        pytest.param([b"x"], [2000], id="device-readable"),
        pytest.param([b"x"], [], id="nothing to write"),
    ],
)
def test_receive_unusable_chain_goes_back(rig: NetRig, out: list[bytes], into: list[int]) -> None:
    rig.driver.queues[0].submit(out, into)
    rig.offer(2000)
    rig.arrive(frame(60))
    used = [used for _, used, _ in rig.driver.queues[0].collect()]
    assert used == [0, 72]
    assert rig.device.stats.rx_unusable == 1


def test_receive_malformed_chain_goes_back(rig: NetRig) -> None:
    queue = rig.driver.queues[0]
    queue.offer(5, {5: Desc(0xFFFF_FFFF_0000, 2000, WRITE)})
    rig.driver.kick(0)
    assert queue.take_used() == [(5, 0)]


def test_receive_buffer_of_very_many_descriptors(rig: NetRig) -> None:
    queue = rig.driver.queues[0]
    queue.submit([], [1] * 1024, indirect=True)
    rig.offer(2000)
    rig.arrive(frame(900))
    rig.arrive(frame(60, 1))
    received = rig.received()
    assert received[0][12:] == frame(900)
    assert received[1][12:] == frame(60, 1)


def test_receive_queue_reset_drops_what_was_held(rig: NetRig) -> None:
    rig.offer(2000, 2000)
    rig.driver.worker.stop_queue(0)
    rig.host.send(PLAIN + frame(60))
    rig.driver.context.fire(rig.end_fd)
    assert rig.driver.queues[0].take_used() == []
    rig.driver.start_queue(0, size=64)
    rig.offer(2000)
    assert [data[12:] for data in rig.received()] == [frame(60)]


@pytest.mark.parametrize("cuts", [[12], [], [1], [5, 7], [12, 14], [13], [10, 4, 1, 1, 1]], ids=str)
def test_send_any_layout(rig: NetRig, cuts: list[int]) -> None:
    data = PLAIN + frame(1514)
    parts = []
    for cut in cuts:
        parts.append(data[:cut])
        data = data[cut:]
    rig.send(*parts, data)
    assert rig.sent() == [PLAIN + frame(1514)]
    assert [used for _, used, _ in rig.driver.queues[1].collect()] == [0]


def test_send_many_at_once(rig: NetRig) -> None:
    arrived = []
    for seed in range(150):
        rig.driver.queues[1].submit([PLAIN + frame(60, seed)])
        if seed % 5 == 4:
            rig.driver.kick(1)
            rig.driver.queues[1].collect()
            arrived += rig.sent()
    assert arrived == [PLAIN + frame(60, seed) for seed in range(150)]


TCP4 = header(1, 1, 54, 1448, 34, 16)


@pytest.mark.parametrize(
    ("head", "length", "passed"),
    [
        pytest.param(PLAIN, 14, PLAIN, id="an ethernet header alone"),
        pytest.param(PLAIN, 65550, PLAIN, id="the longest frame"),
        pytest.param(header(1, 0, 0, 0, 34, 16), 60, header(1, 0, 0, 0, 34, 16), id="checksum"),
        pytest.param(header(1, 0, 0, 0, 0, 58), 60, header(1, 0, 0, 0, 0, 58), id="at the end"),
        pytest.param(TCP4, 9000, TCP4, id="tso4"),
        pytest.param(header(1, 4, 74, 1428, 54, 16), 9000, header(1, 4, 74, 1428, 54, 16), id="6"),
        pytest.param(header(1, 0x81, 54, 9, 34, 16), 99, header(1, 0x81, 54, 9, 34, 16), id="ecn"),
        pytest.param(header(2), 60, PLAIN, id="data valid is the device's"),
        pytest.param(header(0xFE), 60, PLAIN, id="unknown flags"),
        pytest.param(header(0, 0, 9999, 9999), 60, PLAIN, id="lengths without meaning"),
        pytest.param(struct.pack("<12B", *[0] * 10, 7, 7), 60, PLAIN, id="num_buffers"),
    ],
)
def test_send_good_header_is_passed_on(
    rig: NetRig, head: bytes, length: int, passed: bytes
) -> None:
    rig.send(head + frame(length))
    assert rig.sent() == [passed + frame(length)]


@pytest.mark.parametrize(
    ("head", "length"),
    [
        pytest.param(b"", 0, id="nothing"),
        pytest.param(b"", 11, id="half a header"),
        pytest.param(PLAIN, 0, id="no frame"),
        pytest.param(PLAIN, 13, id="short frame"),
        pytest.param(PLAIN, 65551, id="long frame"),
        pytest.param(header(1, 0, 0, 0, 34, 25), 60, id="checksum behind the end"),
        pytest.param(header(1, 0, 0, 0, 0xFFFF, 0xFFFF), 60, id="checksum far away"),
        pytest.param(header(0, 1, 54, 1448), 9000, id="segments without checksum"),
        pytest.param(header(1, 1, 54, 0, 34, 16), 9000, id="segments of nothing"),
        pytest.param(header(1, 1, 9001, 1448, 34, 16), 9000, id="header longer than the frame"),
        pytest.param(header(1, 2, 54, 1448, 34, 16), 9000, id="unknown type"),
        pytest.param(header(1, 3, 54, 1448, 34, 16), 9000, id="ufo, not on offer"),
        pytest.param(header(1, 5, 54, 1448, 34, 6), 9000, id="uso, not on offer"),
        pytest.param(header(1, 0x80, 54, 1448, 34, 16), 9000, id="ecn alone"),
        pytest.param(header(1, 0xFF, 54, 1448, 34, 16), 9000, id="every type"),
    ],
)
def test_send_bad_frame_is_dropped_and_counted(rig: NetRig, head: bytes, length: int) -> None:
    rig.driver.queues[1].submit([head + frame(length)])
    rig.driver.queues[1].submit([PLAIN + frame(60, 1)])
    rig.driver.kick(1)
    assert rig.sent() == [PLAIN + frame(60, 1)]
    assert [used for _, used, _ in rig.driver.queues[1].collect()] == [0, 0]
    assert rig.device.stats.tx_malformed == 1


@pytest.mark.parametrize(
    ("without", "head"),
    [
        pytest.param(CSUM, header(1, 0, 0, 0, 34, 16), id="checksum"),
        pytest.param(1 << 11, TCP4, id="tso4"),
        pytest.param(1 << 12, header(1, 4, 74, 1428, 54, 16), id="tso6"),
        pytest.param(1 << 13, header(1, 0x81, 54, 1448, 34, 16), id="ecn"),
    ],
)
def test_send_what_was_not_negotiated_is_dropped(without: int, head: bytes) -> None:
    for rig in started(without):
        rig.send(head + frame(9000))
        assert rig.sent() == []
        assert rig.device.stats.tx_malformed == 1


def test_send_more_vectors_than_the_host_takes_is_dropped(rig: NetRig) -> None:
    rig.driver.queues[1].submit([PLAIN, *[b"x"] * 1023], indirect=True)
    rig.driver.queues[1].submit([PLAIN, *[b"x"] * 1023], indirect=True)
    rig.driver.kick(1)
    assert len(rig.sent()) + rig.device.stats.tx_dropped == 2


def test_send_device_writable_part_is_ignored(rig: NetRig) -> None:
    rig.driver.queues[1].submit([PLAIN + frame(60)], [100])
    rig.driver.kick(1)
    assert rig.sent() == [PLAIN + frame(60)]


MAC_TABLE = struct.pack("<I6sI6s6s", 1, b"\x52" * 6, 2, b"\x33" * 6, b"\x01" * 6)


@pytest.mark.parametrize(
    ("group", "command", "data"),
    [
        *[pytest.param(0, mode, b"\1", id=f"rx mode {mode}") for mode in range(6)],
        pytest.param(0, 0, b"\0", id="rx mode off"),
        pytest.param(1, 0, MAC_TABLE, id="mac tables"),
        pytest.param(1, 0, bytes(8), id="empty tables"),
        pytest.param(1, 1, b"\x52\x54\x00\x00\x00\x01", id="mac"),
        pytest.param(3, 0, b"", id="announced"),
        pytest.param(5, 0, struct.pack("<Q", 0x382), id="offloads"),
    ],
)
def test_control_good_command(rig: NetRig, group: int, command: int, data: bytes) -> None:
    assert rig.command(group, command, data) == 0


@pytest.mark.parametrize(
    ("group", "command", "data"),
    [
        pytest.param(0, 0, b"", id="rx mode without a value"),
        pytest.param(0, 0, b"\2", id="rx mode neither on nor off"),
        pytest.param(0, 6, b"\1", id="rx mode unknown"),
        pytest.param(1, 0, struct.pack("<I", 1), id="half a table"),
        pytest.param(1, 0, struct.pack("<I", 0xFFFFFFFF), id="a table of 24 GiB"),
        pytest.param(1, 1, b"\x01\x00\x5e\x00\x00\x01", id="multicast mac"),
        pytest.param(1, 1, bytes(6), id="no mac"),
        pytest.param(1, 1, b"\x52\x54", id="short mac"),
        pytest.param(1, 2, b"", id="mac command unknown"),
        pytest.param(2, 0, b"\1\0", id="vlan, not on offer"),
        pytest.param(4, 0, b"\1\0", id="pairs, not on offer"),
        pytest.param(5, 0, struct.pack("<Q", 1 << 54), id="offloads, not negotiated"),
        pytest.param(5, 0, b"\0", id="short offloads"),
        pytest.param(255, 255, b"", id="unknown"),
    ],
)
def test_control_bad_command_is_refused(rig: NetRig, group: int, command: int, data: bytes) -> None:
    assert rig.command(group, command, data) == 1
    assert rig.command(0, 0, b"\1") == 0


def test_control_without_ack_byte_goes_back(rig: NetRig) -> None:
    rig.driver.queues[2].submit([b"\0\0\1"])
    rig.driver.kick(2)
    assert [used for _, used, _ in rig.driver.queues[2].collect()] == [0]


def test_control_command_of_one_byte_is_refused(rig: NetRig) -> None:
    rig.driver.queues[2].submit([b"\0"], [1])
    rig.driver.kick(2)
    assert [data for _, _, data in rig.driver.queues[2].collect()] == [b"\1"]


def test_control_mac_is_seen_in_the_configuration(rig: NetRig) -> None:
    rig.command(1, 1, b"\x52\x54\x00\x00\x00\x01")
    assert rig.config()[0] == b"\x52\x54\x00\x00\x00\x01"
    assert rig.driver.context.config_changes == 1
