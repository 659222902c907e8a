# SPDX-License-Identifier: BSD-3-Clause
"""Which frames the engine moves, which it leaves to Python, and how queues change hands."""

from __future__ import annotations

import errno
from functools import partialmethod
from typing import TYPE_CHECKING

import pytest

from devices.virtio.commands import SetLimits, SetLink
from devices.virtio.counters import NATIVE, PYTHON, engine_of
from devices.virtio.net.ends import TapEnd
from devices.virtio.queue import native
from tests.support.net_rig import EVENT_IDX, MRG_RXBUF, PLAIN, Ioctls, NetRig, frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.skipif(not native.IS_BUILT, reason="the engine is not built here")

GUEST_CSUM = 1 << 1


class ByPython:
    """How many frames Python asked the TAP for, or sent to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.received = self.sent = 0
        receive, send = TapEnd.receive, TapEnd.send

        def receiving(end: TapEnd, vectors: Sequence[memoryview]) -> int:
            self.received += 1
            return receive(end, vectors)

        def sending(end: TapEnd, header: bytes, parts: Sequence[memoryview]) -> None:
            self.sent += 1
            send(end, header, parts)

        monkeypatch.setattr(TapEnd, "receive", receiving)
        monkeypatch.setattr(TapEnd, "send", sending)


@pytest.fixture
def by_python(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> ByPython:
    Ioctls(monkeypatch)
    return ByPython(monkeypatch)


@pytest.fixture(params=[0, EVENT_IDX], ids=["event", "flags"])
def rig(request: pytest.FixtureRequest, by_python: ByPython) -> Iterator[NetRig]:
    yield from started(request.param)


def started(without: int) -> Iterator[NetRig]:
    rig = NetRig(without=without)
    rig.driver.start(size=64)
    yield rig
    rig.close()


def test_frames_both_ways_are_the_engines(rig: NetRig, by_python: ByPython) -> None:
    rig.offer(*[2000] * 40)
    for length in (60, 1514, 60, 9000, 14, 60):
        rig.send(PLAIN, frame(length))
        assert rig.sent() == [PLAIN + frame(length)]
        rig.arrive(frame(length))
        assert b"".join(rig.received())[12:] == frame(length)
    assert (by_python.received, by_python.sent) == (0, 0)
    stats, counters = rig.device.stats, rig.driver.worker.counters
    assert (stats.rx_frames, stats.tx_frames, stats.rx_dropped, stats.tx_dropped) == (6, 6, 0, 0)
    assert counters.requests == 6 + 6 + 4  # 9012 bytes need four more chains
    assert counters.bytes_from_guest == counters.bytes_to_guest == 6 * 12 + 4 * 60 - 46 + 10514
    assert rig.driver.interrupted(0)
    assert rig.driver.interrupted(1)


def test_malformed_frame_and_header_are_pythons(rig: NetRig, by_python: ByPython) -> None:
    rig.send(PLAIN, frame(13))
    rig.send(b"\0\7" + bytes(10), frame(60))
    rig.send(PLAIN[:11])
    assert rig.device.stats.tx_malformed == 3
    rig.send(PLAIN, frame(60))
    assert rig.sent() == [PLAIN + frame(60)]
    assert by_python.sent == 0


def test_frame_that_the_host_does_not_take_waits_in_python(
    rig: NetRig, by_python: ByPython
) -> None:
    while not by_python.sent:
        rig.send(PLAIN, frame(60))
        rig.driver.queues[1].collect()
    assert rig.device.stats.tx_frames > 5
    assert rig.driver.context.fds[rig.end_fd][1] & 4  # EPOLLOUT


def test_frame_without_enough_buffers_is_kept_by_python(rig: NetRig, by_python: ByPython) -> None:
    rig.offer(100, 100)
    rig.arrive(frame(500))
    assert rig.received() == []
    assert by_python.received == 1
    assert rig.device.stats.rx_dropped == 0
    rig.offer(100, 100, 100, 100, 100)
    assert b"".join(rig.received())[12:] == frame(500)
    rig.arrive(frame(60))
    assert b"".join(rig.received())[12:] == frame(60)
    assert by_python.received == 2  # and saw that there was no other


def test_frame_of_another_size_than_expected_is_the_engines(
    rig: NetRig, by_python: ByPython
) -> None:
    rig.offer(*[100] * 40)
    for length in (50, 2000, 50, 900):
        rig.arrive(frame(length))
        assert b"".join(rig.received())[12:] == frame(length)
    assert by_python.received == 0


@pytest.mark.parametrize("without", [GUEST_CSUM, MRG_RXBUF])
def test_frame_that_the_driver_cannot_take_is_pythons(by_python: ByPython, without: int) -> None:
    for rig in started(without):
        rig.offer(1000, 1000)
        rig.arrive(frame(1200 if without == MRG_RXBUF else 60), b"\0\1" + bytes(10))
        assert rig.device.stats.rx_dropped == 1
        rig.arrive(frame(60))
        assert [data[12:] for data in rig.received()] == [frame(60)]


def returned(end: TapEnd, wanted: int, _error: int) -> None:
    end._returned = wanted


@pytest.mark.parametrize(("error", "link_up"), [(errno.EINVAL, True), (errno.EBADFD, False)])
def test_error_of_the_tap_is_pythons(by_python: ByPython, error: int, link_up: bool) -> None:
    for rig in started(0):
        rig.offer(1000)
        rig.device._native[0].tap.fd = -1  # so that the engine gets an error
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TapEnd, "return_error", partialmethod(returned, error))
            rig.arrive(frame(60))
        rig.device._native[0].tap.fd = rig.end_fd
        assert by_python.received == 1
        assert rig.config()[1] == link_up
        if link_up:
            assert rig.device.stats.rx_dropped == 1
            rig.driver.context.fire(rig.end_fd)
            assert [data[12:] for data in rig.received()] == [frame(60)]


def engines(rig: NetRig) -> list[str]:
    rig.driver.worker.show_engines()
    return [engine_of(rig.driver.worker.counters.cells, index) for index in range(3)]


def test_limit_and_link_make_it_pythons(rig: NetRig, by_python: ByPython) -> None:
    rig.offer(1000, 1000)
    rig.device.command(SetLimits((None, None, None, 1 << 40, None, 1000)))
    rig.send(PLAIN, frame(60))
    rig.arrive(frame(60))
    assert (by_python.received, by_python.sent) == (2, 1)
    assert engines(rig) == [PYTHON] * 3
    rig.device.command(SetLimits((None, None, None, 0, None, 1000)))
    rig.send(PLAIN, frame(60))
    rig.arrive(frame(60))
    assert (by_python.received, by_python.sent) == (2, 1)
    assert engines(rig) == [NATIVE, NATIVE, PYTHON]
    rig.device.command(SetLink(up=False))
    rig.send(PLAIN, frame(60))
    assert rig.device.stats.tx_dropped == 1


def test_queue_changes_hands_in_the_midst_of_its_work(rig: NetRig, by_python: ByPython) -> None:
    for turn in range(300):  # more than once around the ring
        if turn % 7 == 3:
            rig.device.command(SetLimits((None, None, None, (turn % 2) << 40, None, 1000)))
        if turn % 5 == 2:
            assert rig.driver.worker.states()[1].next_used == turn & 0xFFFF
        if turn % 11 == 6:
            rig.driver.worker.withhold_used()
            rig.driver.worker.show_used()
        if turn % 13 == 9:
            rig.driver.worker.pause()
            rig.driver.worker.resume()
        rig.send(PLAIN, frame(60, turn))
        assert rig.sent() == [PLAIN + frame(60, turn)]
        rig.offer(80)
        rig.arrive(frame(60, turn))
        assert [data[12:] for data in rig.received()] == [frame(60, turn)]
        rig.driver.queues[1].collect()
    assert 0 < by_python.sent < 300


def test_dump_names_the_engine(rig: NetRig) -> None:
    rig.send(PLAIN, frame(60))
    rig.offer(1000)
    servers = {index: who for index, (who, _) in rig.driver.worker.positions().items()}
    assert servers == {0: "port (engine)", 1: "port (engine)", 2: "port"}
